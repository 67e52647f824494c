//! The shipped manifest starts, asks for no more than it needs, and fits the names the agent expects.

use k8s_openapi::api::{apps::v1::DaemonSet, rbac::v1::ClusterRole};
use serde_json::Value;

use super::*;
use crate::{config::Source, objects::Kind};

const NAMES: [&str; 2] = ["kube-router", "kube-router-policy"];

fn documents(name: &str) -> Vec<Value> {
    let path = format!("{}/../deploy/{name}.yaml", env!("CARGO_MANIFEST_DIR"));
    serde_saphyr::from_multiple(&std::fs::read_to_string(path).unwrap()).unwrap()
}

fn typed<T: serde::de::DeserializeOwned>(name: &str, kind: &str) -> T {
    let document = documents(name).into_iter().find(|document| document["kind"] == kind);
    serde_json::from_value(document.unwrap_or_else(|| panic!("no {kind}"))).unwrap()
}

/// Of the agent's container: what it is told to do, and the paths that are mounted.
fn agent(name: &str) -> (Config, Vec<String>) {
    let daemonset: DaemonSet = typed(name, "DaemonSet");
    let pod = daemonset.spec.unwrap().template.spec.unwrap();
    assert_eq!(pod.host_network, Some(true));
    assert_eq!(pod.priority_class_name.as_deref(), Some("system-node-critical"));
    let container = pod.containers.first().unwrap();
    let argv = std::iter::once("kube-router").chain(container.args.iter().flatten().map(String::as_str));
    let parsed = parse(
        argv.map(Into::into),
        &env(&[("NODE_NAME", "n1"), ("KUBERNETES_SERVICE_HOST", "10.96.0.1"), ("KUBERNETES_SERVICE_PORT", "443")]),
        &facts(),
    )
    .unwrap();
    let Command::Run(config) = parsed.command else { panic!("{:?}", parsed.command) };
    assert_eq!(parsed.notices, []);
    for (probe, path) in [(&container.liveness_probe, "/healthz"), (&container.readiness_probe, "/readyz")] {
        let get = probe.as_ref().and_then(|probe| probe.http_get.as_ref()).unwrap();
        assert_eq!(get.path.as_deref(), Some(path));
        let port = i32::from(config.http.health.unwrap().port());
        assert_eq!(get.port, k8s_openapi::apimachinery::pkg::util::intstr::IntOrString::Int(port));
    }
    let mounts = container.volume_mounts.iter().flatten().map(|mount| mount.mount_path.clone()).collect();
    (*config, mounts)
}

fn is_mounted(mounts: &[String], path: &std::path::Path) -> bool {
    mounts.iter().any(|mount| path.starts_with(mount))
}

#[test]
fn arguments_start() {
    let (config, mounts) = agent("kube-router");
    assert!(config.proxy.enabled && config.proxy.masquerade_all && !config.firewall.enabled);
    let Source::Kubernetes { kubeconfig: Some(kubeconfig), master: None } = &config.source else { panic!() };
    for path in [kubeconfig, &config.socket, &"/lib/modules".into()] {
        assert!(is_mounted(&mounts, path), "{}", path.display());
    }
}

#[test]
fn policy_alone_starts() {
    let (config, mounts) = agent("kube-router-policy");
    assert!(config.firewall.enabled && !config.proxy.enabled);
    for path in [&config.programs.pins, &config.socket, &config.firewall.cni_socket.unwrap()] {
        assert!(is_mounted(&mounts, path), "{}", path.display());
    }
}

#[test]
fn reads_only_what_it_watches() {
    for name in NAMES {
        let role: ClusterRole = typed(name, "ClusterRole");
        let mut resources = Vec::new();
        let (events, rules): (Vec<_>, Vec<_>) =
            role.rules.unwrap().into_iter().partition(|rule| rule.resources.as_deref() == Some(&["events".to_owned()]));
        // Creating alone: what was said is neither read nor changed.
        assert_eq!(events.len(), 1);
        assert_eq!(events[0].verbs, ["create"]);
        assert_eq!(events[0].api_groups.as_deref(), Some(["events.k8s.io".to_owned()].as_slice()));
        for rule in rules {
            assert_eq!(rule.verbs, ["get", "list", "watch"]);
            resources.extend(rule.resources.unwrap());
        }
        resources.sort();
        let mut watched: Vec<&str> = Kind::ALL.iter().map(|kind| kind.group_and_resource().1).collect();
        watched.sort();
        assert_eq!(resources, watched);
    }
}

#[test]
fn one_name_everywhere() {
    for (name, document) in NAMES.into_iter().flat_map(|name| documents(name).into_iter().map(move |one| (name, one))) {
        assert_eq!(document["metadata"]["name"], name, "{}", document["kind"]);
        if document["kind"] != "ClusterRole" && document["kind"] != "ClusterRoleBinding" {
            assert_eq!(document["metadata"]["namespace"], "kube-system", "{}", document["kind"]);
        }
    }
}
