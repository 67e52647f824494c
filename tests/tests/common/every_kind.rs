//! Services of every kind that matters to virtual servers, dual-stack, for node n1 beside a node n2.

use kube_router_tests::objects::{EndpointSpec, ServiceSpec};
use serde_json::json;

/// Conditions of an endpoint: ready, serving, terminating.
const READY: (bool, bool, bool) = (true, true, false);
const NOT_READY: (bool, bool, bool) = (false, false, false);
const LEAVING: (bool, bool, bool) = (false, true, true);
const LEAVING_DEAF: (bool, bool, bool) = (false, false, true);
/// `publishNotReadyAddresses`: ready whatever the pod says.
const PUBLISHED: (bool, bool, bool) = (true, false, false);
const PUBLISHED_LEAVING: (bool, bool, bool) = (true, false, true);

/// A dual-stack service with addresses that end in `number`.
fn service(name: &str, number: u8) -> ServiceSpec {
    ServiceSpec::new(name, &[&format!("10.96.3.{number}"), &format!("fd00:10:96::3{number:02}")])
        .with("ipFamilyPolicy", json!("RequireDualStack"))
        .with("ipFamilies", json!(["IPv4", "IPv6"]))
}

/// With an endpoint of both families; odd ones are on n1, even ones on n2.
fn with(mut service: ServiceSpec, endpoints: &[(u8, (bool, bool, bool))]) -> ServiceSpec {
    for (number, conditions) in endpoints {
        let node = 2 - number % 2;
        for address in [format!("10.244.{node}.{number}"), format!("fd00:10:244:{node}::{number}")] {
            let address = address.parse().expect("an address");
            let endpoint = EndpointSpec { address, node: format!("n{node}"), conditions: *conditions };
            service = service.endpoint(endpoint);
        }
    }
    service
}

/// Two endpoints here, one on the other node.
fn everywhere(service: ServiceSpec) -> ServiceSpec {
    with(service, &[(11, READY), (13, READY), (12, READY)])
}

fn elsewhere(service: ServiceSpec) -> ServiceSpec {
    with(service, &[(12, READY), (14, READY)])
}

fn node_port(service: ServiceSpec, port: u16) -> ServiceSpec {
    service.kind("NodePort").port("TCP", 80, 8080, port)
}

/// One of every kind.
pub fn services() -> Vec<ServiceSpec> {
    let plain = |name, number| service(name, number).port("TCP", 80, 8080, 0);
    let local = |field| move |service: ServiceSpec| service.with(field, json!("Local"));
    let internal = local("internalTrafficPolicy");
    let external = local("externalTrafficPolicy");
    let affinity = |service: ServiceSpec, seconds: u32| {
        service
            .with("sessionAffinity", json!("ClientIP"))
            .with("sessionAffinityConfig", json!({"clientIP": {"timeoutSeconds": seconds}}))
    };
    vec![
        everywhere(service("protocols", 1).port("TCP", 80, 8080, 0).port("UDP", 80, 8080, 0).port("SCTP", 80, 8080, 0)),
        everywhere(service("ports", 2).port("TCP", 81, 8081, 0).port("TCP", 82, 8082, 0).port("UDP", 53, 5353, 0)),
        everywhere(node_port(service("node-port", 3).port("UDP", 80, 8080, 30_103), 30_003)),
        everywhere(plain("external", 4).with("externalIPs", json!(["203.0.113.4", "2001:db8:113::4"]))),
        everywhere(
            node_port(service("balancer", 5), 30_005)
                .kind("LoadBalancer")
                .ingress("203.0.113.133")
                .ingress("2001:db8:114::5"),
        ),
        everywhere(affinity(plain("sticky", 6), 600)),
        everywhere(affinity(node_port(service("sticky-port", 7), 30_007), 86_400)),
        everywhere(internal(plain("internal-local", 8))),
        elsewhere(internal(plain("internal-local-none", 9))),
        everywhere(external(
            node_port(service("external-local", 10), 30_010).with("externalIPs", json!(["203.0.113.10"])),
        )),
        elsewhere(external(
            node_port(service("external-local-none", 11), 30_011).with("externalIPs", json!(["203.0.113.11"])),
        )),
        with(plain("empty", 12), &[]),
        with(node_port(service("empty-port", 13), 30_013), &[]),
        with(plain("not-ready", 14), &[(11, NOT_READY), (12, READY)]),
        with(plain("all-not-ready", 15), &[(11, NOT_READY)]),
        with(plain("leaving", 16), &[(11, LEAVING), (12, READY), (13, LEAVING_DEAF)]),
        with(plain("all-leaving", 17), &[(11, LEAVING), (12, LEAVING), (13, LEAVING_DEAF)]),
        with(plain("published", 18), &[(11, PUBLISHED), (12, READY)]),
        with(plain("published-leaving", 19), &[(11, PUBLISHED_LEAVING), (12, READY)]),
        with(external(node_port(service("local-leaving", 20), 30_020)), &[(11, LEAVING), (12, READY)]),
        ServiceSpec::new("only-ipv6", &["fd00:10:96::321"])
            .with("ipFamilies", json!(["IPv6"]))
            .port("TCP", 80, 8080, 0)
            .endpoint(EndpointSpec {
                address: "fd00:10:244:1::11".parse().unwrap(),
                node: "n1".into(),
                conditions: READY,
            }),
    ]
}

/// What is different afterwards: names of services that are deleted, and services in their new form.
pub fn changed() -> (Vec<&'static str>, Vec<ServiceSpec>) {
    let plain = |name, number| service(name, number).port("TCP", 80, 8080, 0);
    let gone = vec!["ports", "balancer"];
    let new = vec![
        // Affinity ends, and begins.
        everywhere(plain("sticky", 6)).with("sessionAffinity", json!("None")),
        everywhere(plain("external", 4)).with("sessionAffinity", json!("ClientIP")),
        // The policy's end brings the others back.
        everywhere(plain("internal-local", 8)).with("internalTrafficPolicy", json!("Cluster")),
        // Endpoints go and come.
        with(service("protocols", 1).port("TCP", 80, 8080, 0).port("UDP", 80, 8080, 0), &[(12, READY), (15, READY)]),
        with(plain("empty", 12), &[(11, READY)]),
        with(plain("not-ready", 14), &[]),
    ];
    (gone, new)
}
