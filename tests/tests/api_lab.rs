//! The control plane: it starts, remembers, fails and forgets when told to, and tells users apart.

use std::{fs, time::Duration};

use kube_router_tests::{
    api::{Api, ApiSpec, Component, Kubectl},
    lab::Lab,
};

const PATIENCE: Duration = Duration::from_secs(30);

const OBJECTS: &str = r#"
apiVersion: v1
kind: Node
metadata: {name: node1}
spec: {podCIDR: 10.2.0.0/24, podCIDRs: [10.2.0.0/24]}
---
apiVersion: v1
kind: Service
metadata: {name: web, namespace: default}
spec:
  type: NodePort
  clusterIP: 10.96.7.7
  selector: {app: web}
  ports: [{name: http, port: 80, targetPort: 8080, nodePort: 8081}]
---
apiVersion: v1
kind: Pod
metadata: {name: a, namespace: default, labels: {app: web}}
spec: {nodeName: node1, containers: [{name: c, image: none}]}
"#;

const ROLE: &str = r#"
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRole
metadata: {name: kube-router}
rules: [{apiGroups: [""], resources: [services], verbs: [get, list, watch]}]
---
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRoleBinding
metadata: {name: kube-router}
roleRef: {apiGroup: rbac.authorization.k8s.io, kind: ClusterRole, name: kube-router}
subjects: [{kind: ServiceAccount, name: kube-router, namespace: kube-system}]
"#;

#[test]
#[ignore = "needs Kubernetes components: cargo xtask test --tier 5"]
fn a_control_plane_lives_and_fails() {
    let spec = ApiSpec { node_port_range: Some("8000-9000".into()), ..ApiSpec::default() };
    let mut api = Api::up(spec.controllers(&["endpointslice"])).unwrap();
    api.apply(OBJECTS).unwrap();
    api.set_node_addresses("node1", &["192.168.10.100".parse().unwrap()]).unwrap();
    assert_eq!(api.get("default", "node/node1").unwrap()["status"]["addresses"][0]["address"], "192.168.10.100");
    api.set_pod_running("default", "a", &["10.2.0.10".parse().unwrap()], true).unwrap();
    let slices = ["get", "endpointslices", "-o", "jsonpath={.items[*].endpoints[*].addresses[*]}"];
    api.wait_for(&slices, PATIENCE, |answer| answer == "10.2.0.10").unwrap();

    // The agent's account may do nothing, then what it was given.
    let denied = api.kubectl_as_agent(&["get", "services"]).unwrap_err();
    assert!(format!("{denied:#}").contains("Forbidden"), "{denied:#}");
    api.apply(ROLE).unwrap();
    assert!(api.kubectl_as_agent(&["get", "services"]).unwrap().contains("10.96.7.7"));
    assert!(api.kubectl_as_agent(&["delete", "service", "web"]).is_err());

    // An outage of the server, then of its store: nothing is forgotten.
    api.stop(Component::ApiServer);
    assert!(api.kubectl(&["get", "nodes"]).is_err());
    api.start(Component::ApiServer).unwrap();
    assert!(api.kubectl(&["get", "nodes"]).unwrap().contains("node1"));
    api.kill(Component::Etcd);
    // Reads may still come from the server's cache; a write cannot.
    assert!(api.kubectl(&["--request-timeout=3s", "annotate", "service", "web", "test/lost=yes"]).is_err());
    api.start(Component::Etcd).unwrap();
    api.wait_for(&["get", "service", "web"], PATIENCE, |answer| answer.contains("10.96.7.7")).unwrap();

    // The history goes, the present stays.
    let annotate = |number: u32| {
        let annotation = format!("test/number={number}");
        api.kubectl(&["annotate", "--overwrite", "service", "web", &annotation]).unwrap();
    };
    annotate(1);
    let service = api.get("default", "service/web").unwrap();
    let version = service["metadata"]["resourceVersion"].as_str().unwrap();
    let watch = format!("/api/v1/services?watch=1&timeoutSeconds=1&resourceVersion={version}");
    annotate(2);
    let events = api.kubectl(&["get", "--raw", &watch]).unwrap();
    assert!(events.contains(r#""type":"MODIFIED""#) && !events.contains(r#""code":410"#), "{events}");
    api.expire().unwrap();
    let events = api.kubectl(&["get", "--raw", &watch]).unwrap();
    assert!(events.contains(r#""code":410"#), "{events}");
    assert!(api.kubectl(&["get", "services"]).unwrap().contains("10.96.7.7"));

    // Its data serves another one; the folder of the first goes with it.
    api.down();
    let folder = api.folder().to_owned();
    let again = Api::up(ApiSpec { data: Some(api.data()), ..ApiSpec::default() }).unwrap();
    assert!(again.kubectl(&["get", "services"]).unwrap().contains("10.96.7.7"));
    drop(api);
    assert!(!folder.exists());
    assert!(again.kubectl(&["get", "services"]).is_ok());
}

#[test]
#[ignore = "needs Kubernetes components: cargo xtask test --tier 5"]
fn a_control_plane_on_the_nodes_network() {
    let mut lab = Lab::unique("apilab").unwrap();
    let ns = lab.outside("api", &["192.168.10.9/24"]).unwrap();
    let elsewhere = lab.outside("other", &["192.168.10.100/24"]).unwrap();
    let api = Api::up(ApiSpec::default().inside(&ns, "192.168.10.9".parse().unwrap())).unwrap();
    assert_eq!(api.url(), "https://192.168.10.9:6443");
    let token = fs::read_to_string(api.folder().join("admin.token")).unwrap();
    let authority = api.folder().join("ca.crt");
    let bearer = format!("Authorization: Bearer {token}");
    let answer = elsewhere.command(
        "curl",
        &["-sS", "-m", "20", "--cacert", authority.to_str().unwrap(), "-H", &bearer, &format!("{}/readyz", api.url())],
    );
    assert_eq!(answer.unwrap(), "ok");
}
