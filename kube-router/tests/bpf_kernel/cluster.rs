//! Random clusters as an API server would tell of them: few labels, addresses and ports, so that everything meets everything.

use std::net::IpAddr;

use kube_router::objects::{
    Kind, ObjectEvent, ObjectKey,
    parse::{Claim, RawObject},
};
use kube_router_common::twin::fuzz::Random;
use serde_json::{Value, json};

pub const NODE: &str = "n1";
pub const NODE_ADDRESSES: [&str; 2] = ["10.9.0.1", "fd00:9::1"];
/// Pod N has 10.1.0.N and fd00:1::N; the first ones are ours. Who comes back has the address of who went.
pub const PODS: usize = 12;
pub const OURS: usize = 6;
const NAMESPACES: [&str; 2] = ["a", "b"];
const PORTS: [u16; 5] = [1, 80, 81, 443, 65_535];

/// Addresses of pods, of the node, and of others, some of them in blocks.
pub fn addresses() -> Vec<IpAddr> {
    let pods = (1..=PODS).flat_map(|pod| [format!("10.1.0.{pod}"), format!("fd00:1::{pod:x}")]);
    let others = [
        "10.1.0.200",
        "10.1.9.9",
        "192.0.2.7",
        "198.51.100.7",
        "203.0.113.9",
        "fd00:1::77",
        "fd00:2::1",
        "2001:db8::1",
    ];
    let all = pods.chain(others.into_iter().chain(NODE_ADDRESSES).map(String::from));
    all.map(|text| text.parse().expect("address")).collect()
}

pub fn applied(value: Value) -> ObjectEvent {
    let raw: RawObject = serde_json::from_value(value.clone()).unwrap_or_else(|error| panic!("{value}: {error}"));
    let Claim::Ours(kind) = raw.claim() else { panic!("{value}") };
    ObjectEvent::Applied(raw.parse(kind).unwrap_or_else(|error| panic!("{value}: {error}")).object)
}

fn pick<'a, T>(random: &mut Random, list: &'a [T]) -> &'a T {
    &list[random.below(list.len())]
}

fn chance(random: &mut Random, percent: usize) -> bool {
    random.below(100) < percent
}

fn some(random: &mut Random, most: usize, make: impl Fn(&mut Random) -> Value) -> Vec<Value> {
    (0..random.below(most + 1)).map(|_| make(random)).collect()
}

fn labels(random: &mut Random) -> Value {
    let mut labels = json!({});
    for key in ["app", "tier"] {
        if chance(random, 70) {
            labels[key] = json!(pick(random, &["x", "y"]));
        }
    }
    labels
}

fn selector(random: &mut Random) -> Value {
    let key = *pick(random, &["app", "tier"]);
    match random.below(5) {
        0 => json!({}),
        1 => json!({"matchLabels": labels(random)}),
        2 => json!({"matchExpressions": [{"key": key, "operator": pick(random, &["Exists", "DoesNotExist"])}]}),
        _ => json!({"matchExpressions": [
            {"key": key, "operator": pick(random, &["In", "NotIn"]), "values": [pick(random, &["x", "y"])]}
        ]}),
    }
}

fn block(random: &mut Random) -> Value {
    let blocks = [
        json!({"cidr": "0.0.0.0/0"}),
        json!({"cidr": "0.0.0.0/0", "except": ["10.0.0.0/8"]}),
        json!({"cidr": "10.1.0.0/24", "except": ["10.1.0.0/29"]}),
        json!({"cidr": "10.1.0.3/32"}),
        json!({"cidr": "192.0.2.0/24", "except": ["192.0.2.0/30"]}),
        json!({"cidr": "198.51.100.0/24"}),
        json!({"cidr": "::/0", "except": ["fd00::/16"]}),
        json!({"cidr": "fd00:1::/64", "except": ["fd00:1::/125"]}),
        json!({"cidr": "2001:db8::/32"}),
    ];
    pick(random, &blocks).clone()
}

fn peer(random: &mut Random) -> Value {
    match random.below(4) {
        0 => json!({"podSelector": selector(random)}),
        1 => json!({"namespaceSelector": selector(random)}),
        2 => json!({"podSelector": selector(random), "namespaceSelector": selector(random)}),
        _ => json!({"ipBlock": block(random)}),
    }
}

fn port(random: &mut Random) -> Value {
    let protocol = pick(random, &["TCP", "TCP", "UDP", "SCTP"]);
    match random.below(6) {
        0 => json!({"protocol": protocol}),
        1 | 2 => json!({"protocol": protocol, "port": pick(random, &["http", "dns"])}),
        3 => json!({"protocol": protocol, "port": 80, "endPort": pick(random, &[81, 443])}),
        _ => json!({"protocol": protocol, "port": pick(random, &PORTS)}),
    }
}

fn rules(random: &mut Random, peers: &str) -> Vec<Value> {
    some(random, 2, |random| json!({peers: some(random, 2, peer), "ports": some(random, 2, port)}))
}

fn policy(random: &mut Random) -> Value {
    let types = [json!(["Ingress"]), json!(["Egress"]), json!(["Ingress", "Egress"])];
    json!({
        "apiVersion": "networking.k8s.io/v1",
        "kind": "NetworkPolicy",
        "metadata": {"name": pick(random, &["p1", "p2", "p3", "p4"]), "namespace": pick(random, &NAMESPACES)},
        "spec": {
            "podSelector": selector(random),
            "policyTypes": pick(random, &types),
            "ingress": rules(random, "from"),
            "egress": rules(random, "to"),
        },
    })
}

fn cluster_port(random: &mut Random) -> Value {
    let number = json!({"destinationPort": {"number": pick(random, &PORTS)}});
    let range = json!({"destinationPort": {"range": {"start": 80, "end": 443}}});
    let transport = if chance(random, 50) { number } else { range };
    match random.below(5) {
        0 => json!({"destinationNamedPort": pick(random, &["http", "dns"])}),
        1 => json!({"udp": transport}),
        2 => json!({"sctp": transport}),
        _ => json!({"tcp": transport}),
    }
}

fn cluster_rules(random: &mut Random, peers: &str) -> Vec<Value> {
    some(random, 3, |random| {
        let pods = json!({"namespaceSelector": selector(random), "podSelector": selector(random)});
        let peer = match random.below(if peers == "to" { 3 } else { 2 }) {
            0 => json!({"namespaces": selector(random)}),
            1 => json!({"pods": pods}),
            _ => {
                json!({"networks": [pick(random, &["10.1.0.0/29", "192.0.2.0/24", "0.0.0.0/0", "fd00:1::/64", "::/0"])]})
            }
        };
        let mut rule = json!({"action": pick(random, &["Accept", "Deny", "Deny", "Pass"]), peers: [peer]});
        if chance(random, 60) {
            rule["protocols"] = json!([cluster_port(random), cluster_port(random)]);
        }
        rule
    })
}

fn cluster_policy(random: &mut Random) -> Value {
    let subject = if chance(random, 50) {
        json!({"namespaces": selector(random)})
    } else {
        json!({"pods": {"namespaceSelector": selector(random), "podSelector": selector(random)}})
    };
    json!({
        "apiVersion": "policy.networking.k8s.io/v1alpha2",
        "kind": "ClusterNetworkPolicy",
        "metadata": {"name": pick(random, &["c1", "c2", "c3"])},
        "spec": {
            "tier": pick(random, &["Admin", "Baseline"]),
            "priority": random.below(3),
            "subject": subject,
            "ingress": cluster_rules(random, "from"),
            "egress": cluster_rules(random, "to"),
        },
    })
}

fn pod(random: &mut Random) -> Value {
    let number = 1 + random.below(PODS);
    let ports = some(random, 2, |random| {
        json!({
            "name": pick(random, &["http", "dns"]),
            "containerPort": pick(random, &PORTS),
            "protocol": pick(random, &["TCP", "UDP", "SCTP"]),
        })
    });
    json!({
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": format!("pod-{number}"), "namespace": namespace_of(number), "labels": labels(random)},
        "spec": {"nodeName": if number <= OURS { NODE } else { "n2" }, "containers": [{"ports": ports}]},
        "status": {
            "phase": "Running",
            "podIP": format!("10.1.0.{number}"),
            "podIPs": [{"ip": format!("10.1.0.{number}")}, {"ip": format!("fd00:1::{number:x}")}],
        },
    })
}

fn namespace_of(pod: usize) -> &'static str {
    NAMESPACES[pod % 2]
}

fn namespace(random: &mut Random) -> Value {
    let name = pick(random, &NAMESPACES);
    json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name, "labels": labels(random)}})
}

/// Something happens.
pub fn event(random: &mut Random) -> ObjectEvent {
    match random.below(20) {
        0..6 => applied(pod(random)),
        6..12 => applied(policy(random)),
        12..15 => applied(cluster_policy(random)),
        15 => applied(namespace(random)),
        16 => {
            let number = 1 + random.below(PODS);
            ObjectEvent::Deleted(Kind::Pod, ObjectKey::new(namespace_of(number), format!("pod-{number}")))
        }
        17 | 18 => {
            let name = *pick(random, &["p1", "p2", "p3", "p4"]);
            ObjectEvent::Deleted(Kind::NetworkPolicy, ObjectKey::new(*pick(random, &NAMESPACES), name))
        }
        _ => ObjectEvent::Deleted(Kind::ClusterNetworkPolicy, ObjectKey::cluster(*pick(random, &["c1", "c2", "c3"]))),
    }
}
