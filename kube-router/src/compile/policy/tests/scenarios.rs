//! The scenarios of Kubernetes' own end-to-end tests of network policy, as a truth table: what must connect is written
//! from the text of the API reference, and both the model and the rows are held against it.
//!
//! Three namespaces x, y, z (label ns) with three pods a, b, c each (label pod); every pod listens on TCP and UDP 80
//! and 81 and on SCTP 80, with names.

use std::net::IpAddr;

use super::world::*;
use crate::{
    compile::policy::{
        address_of,
        model::{self, Traffic},
    },
    desired::policy::Direction,
    objects::{Namespace, Object, ObjectKey, Pod},
};

const NAMESPACES: [&str; 3] = ["x", "y", "z"];
const PODS: [&str; 3] = ["a", "b", "c"];

pub fn ip_of(namespace: &str, name: &str) -> IpAddr {
    let at = |list: [&str; 3], word| list.iter().position(|known| *known == word).unwrap() as u8;
    [10, 1, at(NAMESPACES, namespace), at(PODS, name) + 1].into()
}

fn ports() -> [Traffic; 5] {
    [tcp(80), tcp(81), udp(80), udp(81), sctp(80)]
}

fn a_pod(namespace: &str, name: &str) -> Pod {
    let text = format!(
        "{{apiVersion: v1, kind: Pod, metadata: {{name: {name}, namespace: {namespace}, labels: {{pod: {name}}}}}, spec: \
         {{nodeName: {NODE}, containers: [{{ports: [{{name: serve-80-tcp, containerPort: 80}}, {{name: serve-81-tcp, \
         containerPort: 81}}, {{name: serve-80-udp, containerPort: 80, protocol: UDP}}, {{name: serve-81-udp, containerPort: 81, \
         protocol: UDP}}, {{name: serve-80-sctp, containerPort: 80, protocol: SCTP}}]}}]}}, status: {{podIP: {}}}}}",
        ip_of(namespace, name)
    );
    match object(&text) {
        Object::Pod(pod) => pod,
        other => panic!("{other:?}"),
    }
}

fn space(name: &str) -> Object {
    let labels = [("ns", name)].into_iter().collect();
    Object::Namespace(Namespace { key: ObjectKey::cluster(name), labels, isolation: None })
}

pub fn cluster() -> World {
    let pods = NAMESPACES.iter().flat_map(|ns| PODS.iter().map(|name| Object::Pod(a_pod(ns, name))));
    World::of(NAMESPACES.map(space).into_iter().chain(pods))
}

/// One packet: from pod `f` of namespace `fns` to pod `t` of namespace `tns`.
#[derive(Clone, Copy, Debug)]
pub struct Probe {
    pub fns: &'static str,
    pub f: &'static str,
    pub tns: &'static str,
    pub t: &'static str,
    pub port: Traffic,
}

impl Probe {
    pub fn from(&self, who: &str) -> bool {
        who == format!("{}/{}", self.fns, self.f)
    }

    pub fn to(&self, who: &str) -> bool {
        who == format!("{}/{}", self.tns, self.t)
    }
}

/// Checks every pair of different pods on every port.
pub fn expect(world: &World, what: &str, connects: impl Fn(Probe) -> bool) {
    for fns in NAMESPACES {
        for f in PODS {
            for tns in NAMESPACES {
                for t in PODS.into_iter().filter(|t| (fns, f) != (tns, *t)) {
                    for port in ports() {
                        let probe = Probe { fns, f, tns, t, port };
                        let (from, to) = (ObjectKey::new(fns, f), ObjectKey::new(tns, t));
                        let sides =
                            [(&from, Direction::Egress, ip_of(tns, t)), (&to, Direction::Ingress, ip_of(fns, f))];
                        let by_rows = sides.iter().all(|(key, direction, peer)| {
                            let pod = world.compiler.pod_number(key).expect("local");
                            let peer = address_of(*peer);
                            let question = Question { pod, direction: *direction, peer, traffic: port };
                            world.walk(world.compiler.state(), &question).expect("a pod").0
                        });
                        let by_model = sides.iter().all(|(key, direction, peer)| {
                            let pod = world.cluster.pod(key).expect("there");
                            model::judge(&world.cluster, pod, *direction, *peer, port).allowed
                        });
                        let wanted = connects(probe);
                        assert_eq!((by_model, by_rows), (wanted, wanted), "{what}: {probe:?} (model, rows)");
                    }
                }
            }
        }
    }
}

/// Adds policies to namespace x (`spec` each) and expects.
fn scenario(what: &str, specs: &[&str], connects: impl Fn(Probe) -> bool) {
    let mut world = cluster();
    let policies = specs.iter().enumerate().map(|(i, spec)| applied(policy("x", &format!("p{i}"), spec)));
    world.send(policies);
    expect(&world, what, connects);
    assert_eq!(world.compiler.problems().count(), 0, "{what}");
    // Without them, everything is open again.
    world.send((0..specs.len()).map(|i| gone(crate::objects::Kind::NetworkPolicy, "x", &format!("p{i}"))));
    expect(&world, "after deletion", |_| true);
}

#[test]
fn isolation() {
    scenario("no policy", &[], |_| true);
    scenario("deny all ingress", &["{podSelector: {}, policyTypes: [Ingress]}"], |p| p.tns != "x");
    scenario("deny all egress", &["{podSelector: {}, policyTypes: [Egress]}"], |p| p.fns != "x");
    scenario("deny all", &["{podSelector: {}, policyTypes: [Ingress, Egress]}"], |p| p.fns != "x" && p.tns != "x");
    scenario("types by default: ingress", &["{podSelector: {}}"], |p| p.tns != "x");
    scenario("types by default: egress rules isolate both", &["{podSelector: {}, egress: [{}]}"], |p| p.tns != "x");
    scenario("allow all ingress", &["{podSelector: {}, ingress: [{}]}"], |_| true);
    scenario("allow all egress", &["{podSelector: {}, policyTypes: [Egress], egress: [{}]}"], |_| true);
    scenario("one pod is denied", &["{podSelector: {matchLabels: {pod: a}}}"], |p| !p.to("x/a"));
    scenario("an empty from is everybody", &["{podSelector: {}, ingress: [{from: []}]}"], |_| true);
    scenario(
        "a policy for egress leaves ingress open",
        &["{podSelector: {}, policyTypes: [Egress], ingress: []}"],
        |p| p.fns != "x",
    );
}

#[test]
fn peers() {
    let to_a = |rest: &str| format!("{{podSelector: {{matchLabels: {{pod: a}}}}, ingress: [{{from: [{rest}]}}]}}");
    scenario("a podSelector means the policy's namespace", &[&to_a("{podSelector: {matchLabels: {pod: b}}}")], |p| {
        !p.to("x/a") || p.from("x/b")
    });
    scenario("every pod of the namespace", &[&to_a("{podSelector: {}}")], |p| !p.to("x/a") || p.fns == "x");
    scenario("pods of a namespace", &[&to_a("{namespaceSelector: {matchLabels: {ns: y}}}")], |p| {
        !p.to("x/a") || p.fns == "y"
    });
    scenario("every namespace", &[&to_a("{namespaceSelector: {}}")], |_| true);
    scenario(
        "a namespace by its name",
        &[&to_a("{namespaceSelector: {matchLabels: {kubernetes.io/metadata.name: z}}}")],
        |p| !p.to("x/a") || p.fns == "z",
    );
    scenario(
        "pod and namespace: both",
        &[&to_a("{namespaceSelector: {matchLabels: {ns: y}}, podSelector: {matchLabels: {pod: b}}}")],
        |p| !p.to("x/a") || p.from("y/b"),
    );
    scenario(
        "pod or namespace: either",
        &[&to_a("{namespaceSelector: {matchLabels: {ns: y}}}, {podSelector: {matchLabels: {pod: b}}}")],
        |p| !p.to("x/a") || p.fns == "y" || p.from("x/b"),
    );
    scenario(
        "expressions on pods",
        &[&to_a(
            "{namespaceSelector: {}, podSelector: {matchExpressions: [{key: pod, operator: In, values: [b, c]}]}}",
        )],
        |p| !p.to("x/a") || p.f != "a",
    );
    scenario(
        "expressions on namespaces",
        &[&to_a("{namespaceSelector: {matchExpressions: [{key: ns, operator: NotIn, values: [x]}]}}")],
        |p| !p.to("x/a") || p.fns != "x",
    );
    scenario(
        "a label that nobody has, wanted and not wanted",
        &[
            "{podSelector: {matchLabels: {pod: a}}, ingress: [{from: [{podSelector: {matchExpressions: [{key: no, operator: \
             Exists}]}}]}]}",
            "{podSelector: {matchLabels: {pod: b}}, ingress: [{from: [{podSelector: {matchExpressions: [{key: no, operator: \
             DoesNotExist}]}}]}]}",
        ],
        |p| !p.to("x/a") && (!p.to("x/b") || p.fns == "x"),
    );
    scenario(
        "egress to one pod of one namespace",
        &[
            "{podSelector: {matchLabels: {pod: a}}, policyTypes: [Egress], egress: [{to: [{namespaceSelector: {matchLabels: {ns: \
           y}}, podSelector: {matchLabels: {pod: a}}}]}]}",
        ],
        |p| !p.from("x/a") || p.to("y/a"),
    );
}

#[test]
fn blocks() {
    let to_a = |rest: &str| format!("{{podSelector: {{matchLabels: {{pod: a}}}}, ingress: [{{from: [{rest}]}}]}}");
    scenario("a block is also about pods", &[&to_a("{ipBlock: {cidr: 10.1.1.0/24}}")], |p| {
        !p.to("x/a") || p.fns == "y"
    });
    scenario("except", &[&to_a("{ipBlock: {cidr: 10.1.0.0/16, except: [10.1.1.0/24]}}")], |p| {
        !p.to("x/a") || p.fns != "y"
    });
    scenario(
        "an exception takes nothing from another block",
        &[&to_a("{ipBlock: {cidr: 10.1.0.0/16, except: [10.1.1.0/24]}}, {ipBlock: {cidr: 10.1.1.2/32}}")],
        |p| !p.to("x/a") || p.fns != "y" || p.f == "b",
    );
    scenario("everything", &[&to_a("{ipBlock: {cidr: 0.0.0.0/0}}")], |_| true);
    scenario("the other family", &[&to_a("{ipBlock: {cidr: '::/0'}}")], |p| !p.to("x/a"));
    scenario(
        "egress to a block without one pod",
        &[
            "{podSelector: {matchLabels: {pod: a}}, policyTypes: [Egress], egress: [{to: [{ipBlock: {cidr: 10.1.1.0/24, except: \
           [10.1.1.2/32]}}]}]}",
        ],
        |p| !p.from("x/a") || p.tns == "y" && p.t != "b",
    );
}

#[test]
fn port_rules() {
    let to_a = |rest: &str| format!("{{podSelector: {{matchLabels: {{pod: a}}}}, ingress: [{{ports: [{rest}]}}]}}");
    let only = |ports: &'static [Traffic]| move |p: Probe| !p.to("x/a") || ports.contains(&p.port);
    scenario("a number is TCP", &[&to_a("{port: 80}")], only(&[Traffic::Port(crate::objects::Protocol::Tcp, 80)]));
    scenario("UDP", &[&to_a("{port: 81, protocol: UDP}")], |p| !p.to("x/a") || p.port == udp(81));
    scenario("SCTP", &[&to_a("{port: 80, protocol: SCTP}")], |p| !p.to("x/a") || p.port == sctp(80));
    scenario("a whole protocol", &[&to_a("{protocol: UDP}")], |p| {
        !p.to("x/a") || p.port == udp(80) || p.port == udp(81)
    });
    scenario("a range", &[&to_a("{port: 81, endPort: 90}")], |p| !p.to("x/a") || p.port == tcp(81));
    scenario("all ports as a range", &[&to_a("{port: 1, endPort: 65535}")], |p| {
        !p.to("x/a") || p.port == tcp(80) || p.port == tcp(81)
    });
    scenario("a name", &[&to_a("{port: serve-81-tcp}")], |p| !p.to("x/a") || p.port == tcp(81));
    scenario("a name of another protocol", &[&to_a("{port: serve-81-udp}")], |p| !p.to("x/a"));
    scenario("several", &[&to_a("{port: 80}, {port: serve-81-udp, protocol: UDP}")], |p| {
        !p.to("x/a") || p.port == tcp(80) || p.port == udp(81)
    });
    scenario("no port at all fits", &[&to_a("{port: 9999}")], |p| !p.to("x/a"));
    let from_a =
        |rest: &str| format!("{{podSelector: {{matchLabels: {{pod: a}}}}, policyTypes: [Egress], egress: [{rest}]}}");
    scenario("egress by name, to everybody", &[&from_a("{ports: [{port: serve-80-tcp}]}")], |p| {
        !p.from("x/a") || p.port == tcp(80)
    });
    scenario(
        "egress by name, to a block",
        &[&from_a("{to: [{ipBlock: {cidr: 10.1.2.0/24}}], ports: [{port: serve-80-tcp}]}")],
        |p| !p.from("x/a") || p.tns == "z" && p.port == tcp(80),
    );
    scenario(
        "egress by name, to pods",
        &[&from_a("{to: [{namespaceSelector: {matchLabels: {ns: y}}}], ports: [{port: serve-81-udp, protocol: UDP}]}")],
        |p| !p.from("x/a") || p.tns == "y" && p.port == udp(81),
    );
}

#[test]
fn several_policies_add_up() {
    scenario(
        "one allows a port, one a peer",
        &[
            "{podSelector: {matchLabels: {pod: a}}, ingress: [{ports: [{port: 80}], from: [{namespaceSelector: {matchLabels: {ns: \
             y}}}]}]}",
            "{podSelector: {matchLabels: {pod: a}}, ingress: [{ports: [{port: 81}], from: [{podSelector: {}}]}]}",
            "{podSelector: {}}",
        ],
        |p| match (p.tns, p.t) {
            ("x", "a") => p.fns == "y" && p.port == tcp(80) || p.fns == "x" && p.port == tcp(81),
            ("x", _) => false,
            _ => true,
        },
    );
    scenario(
        "both directions of one policy",
        &[
            "{podSelector: {matchLabels: {pod: a}}, policyTypes: [Ingress, Egress], ingress: [{from: [{namespaceSelector: \
           {matchLabels: {ns: y}}}]}], egress: [{to: [{namespaceSelector: {matchLabels: {ns: z}}}], ports: [{port: 80}]}]}",
        ],
        |p| (!p.to("x/a") || p.fns == "y") && (!p.from("x/a") || p.tns == "z" && p.port == tcp(80)),
    );
    scenario("deny and allow all", &["{podSelector: {}}", "{podSelector: {}, ingress: [{}]}"], |_| true);
}

#[test]
fn labels_policies_and_pods_change() {
    let mut world = cluster();
    world.send([applied(policy(
        "x",
        "p",
        "{podSelector: {matchLabels: {pod: a}}, ingress: [{from: [{namespaceSelector: {matchLabels: {team: blue}}, podSelector: \
         {matchLabels: {role: client}}}]}]}",
    ))]);
    expect(&world, "nobody has the labels", |p| !p.to("x/a"));
    let labelled = |labels: &[(&str, &str)]| {
        let mut pod = a_pod("y", "b");
        pod.labels = labels.iter().copied().collect();
        applied(Object::Pod(pod))
    };
    world.send([labelled(&[("pod", "b"), ("role", "client")])]);
    expect(&world, "only the pod has", |p| !p.to("x/a"));
    let blue = |name: &str| {
        let labels = [("ns", name), ("team", "blue")].into_iter().collect();
        applied(Object::Namespace(Namespace { key: ObjectKey::cluster(name), labels, isolation: None }))
    };
    world.send([blue("y")]);
    expect(&world, "both have", |p| !p.to("x/a") || p.from("y/b"));
    world.send([labelled(&[("pod", "b")])]);
    expect(&world, "the pod has no more", |p| !p.to("x/a"));
    world.send([labelled(&[("pod", "a"), ("role", "client")]), applied(space("y"))]);
    expect(&world, "the namespace has no more", |p| !p.to("x/a"));
    world.send([applied(policy(
        "x",
        "p",
        "{podSelector: {matchLabels: {pod: c}}, ingress: [{from: [{podSelector: {}}]}]}",
    ))]);
    expect(&world, "the policy is about another pod", |p| !p.to("x/c") || p.fns == "x");
    let mut gone = a_pod("x", "b");
    gone.terminating = true;
    world.send([applied(Object::Pod(gone.clone()))]);
    expect(&world, "a terminating pod is still one", |p| !p.to("x/c") || p.fns == "x");
    gone.completed = true;
    world.send([applied(Object::Pod(gone))]);
    assert_eq!(world.compiler.pod_number(&ObjectKey::new("x", "b")), None, "a completed pod is not");
    let c = world.cluster.pod(&ObjectKey::new("x", "c")).unwrap();
    assert!(!model::judge(&world.cluster, c, Direction::Ingress, ip_of("x", "b"), tcp(80)).allowed);
    world.compare(&[ip_of("x", "b"), ip_of("x", "a")], &ports()).unwrap();
}

#[test]
fn a_namespace_of_old_is_isolated_by_its_annotation() {
    let mut world = cluster();
    let isolated = Namespace {
        key: ObjectKey::cluster("x"),
        labels: [("ns", "x")].into_iter().collect(),
        isolation: Some(r#"{"ingress":{"isolation":"DefaultDeny"}}"#.into()),
    };
    world.send([applied(Object::Namespace(isolated))]);
    expect(&world, "isolated", |p| p.tns != "x");
    world.send([applied(policy("x", "p", "{podSelector: {matchLabels: {pod: a}}, ingress: [{ports: [{port: 80}]}]}"))]);
    expect(&world, "a policy opens", |p| p.tns != "x" || p.t == "a" && p.port == tcp(80));
    world.send([applied(space("x"))]);
    expect(&world, "no annotation", |p| !p.to("x/a") || p.port == tcp(80));
}

/// Only of another node's pod is it known that it is behind no interface of this one.
#[test]
fn pods_of_other_nodes_are_marked() {
    let mut world = cluster();
    let mut far = a_pod("x", "b");
    far.node = Some("elsewhere".into());
    let all = policy("x", "p", "{podSelector: {}, ingress: [{from: [{podSelector: {}}]}]}");
    world.send([applied(Object::Pod(far.clone())), applied(all)]);
    let flags = |world: &World| ["a", "b"].map(|name| world.compiler.state().peer(address_of(ip_of("x", name))).flags);
    let remote = kube_router_common::policy::Peer::REMOTE;
    assert_eq!(flags(&world), [0, remote]);
    // While both say they have it, either may.
    let mut twin = a_pod("y", "b");
    twin.ips = far.ips.clone();
    world.send([applied(Object::Pod(twin))]);
    assert_eq!(flags(&world), [0, 0]);
    world.send([applied(Object::Pod(a_pod("y", "b")))]);
    assert_eq!(flags(&world), [0, remote]);
    far.node = None;
    world.send([applied(Object::Pod(far))]);
    assert_eq!(flags(&world), [0, 0]);
}

/// Pods in their node's network and the node itself have no labels; the node's addresses are marked, so that the programs
/// let the node reach its pods.
#[test]
fn the_node_and_pods_in_its_network() {
    let mut world = cluster();
    let mut host = a_pod("x", "b");
    host.host_network = true;
    host.ips = vec![ip("192.0.2.1")];
    world.send([
        applied(Object::Pod(host)),
        applied(policy("x", "p", "{podSelector: {}, ingress: [{from: [{podSelector: {}}]}]}")),
    ]);
    assert_eq!(world.compiler.pod_number(&ObjectKey::new("x", "b")), None);
    let node = world.compiler.state().peer(address_of(ip("192.0.2.1")));
    assert_eq!((node.class, node.flags), (0, kube_router_common::policy::Peer::NODE));
    let a = world.cluster.pod(&ObjectKey::new("x", "a")).unwrap();
    assert!(!model::judge(&world.cluster, a, Direction::Ingress, ip("192.0.2.1"), tcp(80)).allowed);
    world.send([applied(policy("x", "p", "{podSelector: {}, ingress: [{from: [{ipBlock: {cidr: 192.0.2.0/24}}]}]}"))]);
    world.compare(&[ip("192.0.2.1"), ip("192.0.2.2"), ip_of("x", "c")], &ports()).unwrap();
    let a = world.cluster.pod(&ObjectKey::new("x", "a")).unwrap();
    assert!(model::judge(&world.cluster, a, Direction::Ingress, ip("192.0.2.2"), tcp(80)).allowed);
}
