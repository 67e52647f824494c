//! The control plane that other `api_*` files count on.

use std::net::IpAddr;
use std::time::Duration;

use kube_router_tests::api::{ApiServer, ApiSpec, Component};
use kube_router_tests::lab::Lab;

const LONG: Duration = Duration::from_secs(60);

#[test]
#[ignore = "needs kube-apiserver: cargo xtask test --tier 5 --filter controllers_work"]
fn controllers_work_on_what_a_test_writes() {
    let lab = Lab::new("api-a").expect("lab");
    let master = lab.outside("master", &["192.168.10.104/24"]).expect("master");
    let spec = ApiSpec { address: [192, 168, 10, 104].into(), ..ApiSpec::default() };
    let api = ApiServer::start(spec, Some(&master)).expect("start");

    api.add_node("n1", &[IpAddr::from([192, 168, 10, 100])]).expect("node");
    let cidrs = api.wait_field(&["node", "n1"], ".spec.podCIDRs", LONG).expect("pod CIDRs");
    assert!(cidrs.contains("10.244.") && cidrs.contains("fd00:10:244"), "{cidrs}");

    api.apply(
        "apiVersion: v1\nkind: Service\nmetadata: {name: web, namespace: default}\n\
         spec: {selector: {app: web}, ports: [{port: 80, targetPort: 8080}]}\n",
    )
    .expect("service");
    let ip = IpAddr::from([10, 244, 0, 5]);
    api.add_pod("default", "web-1", &[("app", "web")], "n1", &[ip]).expect("pod");
    let slice = ["endpointslices", "-l", "kubernetes.io/service-name=web"];
    let address = api.wait_field(&slice, ".items[0].endpoints[0].addresses[0]", LONG).expect("endpoint");
    assert_eq!(address, ip.to_string());

    let denied = api.kubectl_as_agent(&["get", "pods"]).expect_err("no rights yet");
    assert!(format!("{denied:#}").contains("system:serviceaccount:kube-system:kube-router"), "{denied:#}");
}

#[test]
#[ignore = "needs kube-apiserver: cargo xtask test --tier 5 --filter outage"]
fn outage_expiry_and_saved_data() {
    let spec = ApiSpec { controllers: Vec::new(), ..ApiSpec::default() };
    let mut api = ApiServer::start(spec.clone(), None).expect("start");
    api.apply("apiVersion: v1\nkind: ConfigMap\nmetadata: {name: kept, namespace: default}\n").expect("apply");
    let version = |api: &ApiServer| api.kubectl(&["get", "cm", "kept", "-o=jsonpath={.metadata.resourceVersion}"]);
    let old = version(&api).expect("version");

    api.stop_component(Component::ApiServer).expect("stop");
    version(&api).expect_err("an outage");
    api.start_component(Component::ApiServer).expect("start again");
    assert_eq!(version(&api).expect("version"), old);

    // Of the list: a restarted server knows no version of before its start.
    let list = api.kubectl(&["get", "--raw", "/api/v1/configmaps?limit=1"]).expect("list");
    let list: serde_json::Value = serde_json::from_str(&list).expect("JSON");
    let version_now = list["metadata"]["resourceVersion"].as_str().expect("a version").to_string();
    let watch = format!("/api/v1/configmaps?watch=1&timeoutSeconds=1&resourceVersion={version_now}");
    let before = api.kubectl(&["get", "--raw", &watch]).expect("watch");
    assert!(!before.contains("410"), "{before}");
    // A later write, so that there is something to compact.
    api.apply("apiVersion: v1\nkind: ConfigMap\nmetadata: {name: later, namespace: default}\n").expect("apply");
    api.expire().expect("expire");
    let after = api.kubectl(&["get", "--raw", &watch]).map_or_else(|error| format!("{error:#}"), |text| text);
    assert!(after.contains("410") || after.contains("too old resource version"), "{after}");

    let saved = tempfile::tempdir().expect("tempdir");
    api.save(saved.path()).expect("save");
    let api = ApiServer::start(ApiSpec { data: Some(saved.path().into()), ..spec }, None).expect("start from data");
    assert_eq!(version(&api).expect("still there"), old);
}
