//! The shipped manifest starts, asks for no more than it needs, and fits the names the agent expects.

use k8s_openapi::api::{apps::v1::DaemonSet, rbac::v1::ClusterRole};
use serde_json::Value;

use super::*;
use crate::config::Source;

fn documents() -> Vec<Value> {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../deploy/kube-router.yaml");
    serde_saphyr::from_multiple(&std::fs::read_to_string(path).unwrap()).unwrap()
}

fn typed<T: serde::de::DeserializeOwned>(kind: &str) -> T {
    let document = documents().into_iter().find(|document| document["kind"] == kind);
    serde_json::from_value(document.unwrap_or_else(|| panic!("no {kind}"))).unwrap()
}

#[test]
fn arguments_start() {
    let daemonset: DaemonSet = typed("DaemonSet");
    let pod = daemonset.spec.unwrap().template.spec.unwrap();
    for container in &pod.containers {
        let argv = std::iter::once("kube-router").chain(container.args.iter().flatten().map(String::as_str));
        let environment = env(&[("NODE_NAME", "n1")]);
        let parsed = parse(argv.map(Into::into), &environment, &facts()).unwrap();
        let Command::Run(config) = parsed.command else { panic!("{:?}", parsed.command) };
        assert_eq!(parsed.notices, []);
        assert!(config.proxy.enabled && config.proxy.masquerade_all);
        let Source::Kubernetes { kubeconfig: Some(kubeconfig), master: None } = &config.source else { panic!() };

        let mounts = container.volume_mounts.as_deref().unwrap_or_default();
        let mounted = |path: &std::path::Path| mounts.iter().any(|mount| path.starts_with(&mount.mount_path));
        assert!(mounted(kubeconfig) && mounted(&config.socket) && mounted("/lib/modules".as_ref()));
        for (probe, path) in [(&container.liveness_probe, "/healthz"), (&container.readiness_probe, "/readyz")] {
            let get = probe.as_ref().and_then(|probe| probe.http_get.as_ref()).unwrap();
            assert_eq!(get.path.as_deref(), Some(path));
            let port = i32::from(config.http.health.unwrap().port());
            assert_eq!(get.port, k8s_openapi::apimachinery::pkg::util::intstr::IntOrString::Int(port));
        }
    }
    assert_eq!(pod.host_network, Some(true));
    assert_eq!(pod.priority_class_name.as_deref(), Some("system-node-critical"));
}

#[test]
fn reads_only_what_it_watches() {
    let role: ClusterRole = typed("ClusterRole");
    let mut resources = Vec::new();
    for rule in role.rules.unwrap() {
        assert_eq!(rule.verbs, ["get", "list", "watch"]);
        resources.extend(rule.resources.unwrap());
    }
    resources.sort();
    assert_eq!(resources, ["endpointslices", "namespaces", "networkpolicies", "nodes", "pods", "services"]);
}

#[test]
fn one_name_everywhere() {
    for document in documents() {
        assert_eq!(document["metadata"]["name"], "kube-router", "{}", document["kind"]);
        if document["kind"] != "ClusterRole" && document["kind"] != "ClusterRoleBinding" {
            assert_eq!(document["metadata"]["namespace"], "kube-system", "{}", document["kind"]);
        }
    }
}
