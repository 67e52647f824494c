//! Random clusters: few labels, few addresses, few ports, so that everything meets everything.

use std::net::IpAddr;

use proptest::{collection::vec, option, prelude::*, sample::select};

use super::{
    random_tiers::{POLICIES, cluster_policy},
    world::*,
};
use crate::{
    compile::policy::model::Traffic,
    objects::{
        IpBlock, Kind, LabelOperator, LabelRequirement, LabelSelector, NamedPort, Namespace, NetworkPolicy, Object,
        ObjectEvent, ObjectKey, Pod, PolicyPeer, PolicyPort, PolicyRule, PortRef, Protocol,
    },
};

/// `c` has no Namespace object.
const NAMESPACES: [&str; 3] = ["a", "b", "c"];
const KEYS: [&str; 3] = ["app", "tier", "kubernetes.io/metadata.name"];
const VALUES: [&str; 4] = ["x", "y", "a", "b"];
pub const NAMES: [&str; 2] = ["http", "dns"];

fn label() -> impl Strategy<Value = (&'static str, &'static str)> {
    (select(&KEYS[..2]), select(&VALUES[..]))
}

fn requirement() -> impl Strategy<Value = LabelRequirement> {
    let operator = prop_oneof![
        4 => Just(LabelOperator::In),
        3 => Just(LabelOperator::NotIn),
        2 => Just(LabelOperator::Exists),
        2 => Just(LabelOperator::DoesNotExist),
    ];
    (select(&KEYS[..]), operator, vec(select(&VALUES[..]), 1..3), 0..40u32).prop_map(|(key, operator, values, odd)| {
        let sound = odd != 0;
        let takes = matches!(operator, LabelOperator::In | LabelOperator::NotIn);
        let operator = if odd == 1 { LabelOperator::Other("Like".into()) } else { operator };
        let values = if takes == sound { values } else { Vec::new() };
        LabelRequirement { key: key.into(), operator, values: values.into_iter().map(Into::into).collect() }
    })
}

pub fn selector() -> impl Strategy<Value = LabelSelector> {
    (vec(label(), 0..2), vec(requirement(), 0..2)).prop_map(|(labels, expressions)| LabelSelector {
        match_labels: labels.into_iter().collect(),
        match_expressions: expressions.into(),
    })
}

/// Mostly good ones, nested and not.
pub const CIDRS: [&str; 16] = [
    "0.0.0.0/0",
    "10.0.0.0/8",
    "10.0.0.0/24",
    "10.0.0.0/29",
    "10.0.0.4/30",
    "10.0.0.6/32",
    "10.0.0.0/16",
    "198.51.100.0/24",
    "::/0",
    "fd00::/64",
    "fd00::/126",
    "fd00::3/128",
    "10.0.0.5/24",
    "nonsense",
    "0.0.0.0/1",
    "::ffff:10.0.0.0/104",
];

fn block() -> impl Strategy<Value = IpBlock> {
    // The odd ones rarely.
    let cidr = || prop_oneof![12 => select(&CIDRS[..12]), 1 => select(&CIDRS[12..])];
    (cidr(), vec(select(&CIDRS[1..12]), 0..3), 0..10u32).prop_map(|(cidr, except, any)| {
        // Mostly exceptions that are inside.
        let inside = |hole: &&str| {
            let (Ok(net), Ok(hole)) = (cidr.parse::<ipnet::IpNet>(), hole.parse::<ipnet::IpNet>()) else {
                return false;
            };
            net.contains(&hole) && net != hole
        };
        let except = except.into_iter().filter(|hole| any == 0 || inside(hole)).map(Into::into).collect();
        IpBlock { cidr: cidr.into(), except }
    })
}

fn peer() -> impl Strategy<Value = PolicyPeer> {
    let pods = |pods| PolicyPeer { pods: Some(pods), ..PolicyPeer::default() };
    let namespaces = |namespaces| PolicyPeer { namespaces: Some(namespaces), ..PolicyPeer::default() };
    let both = |(pods, namespaces)| PolicyPeer { pods: Some(pods), namespaces: Some(namespaces), block: None };
    prop_oneof![
        8 => selector().prop_map(pods),
        6 => selector().prop_map(namespaces),
        8 => (selector(), selector()).prop_map(both),
        10 => block().prop_map(|block| PolicyPeer { block: Some(block), ..PolicyPeer::default() }),
        1 => Just(PolicyPeer::default()),
    ]
}

fn protocol() -> impl Strategy<Value = Protocol> {
    prop_oneof![5 => Just(Protocol::Tcp), 2 => Just(Protocol::Udp), 1 => Just(Protocol::Sctp)]
}

fn port() -> impl Strategy<Value = PolicyPort> {
    let word = prop_oneof![
        20 => protocol().prop_map(|protocol| Some(protocol.name().to_uppercase())),
        8 => Just(None),
        1 => Just(Some("ICMP".to_owned())),
    ];
    let number = select(vec![1, 79, 80, 80, 81, 443, 65_535, 0]);
    let port = prop_oneof![
        6 => number.prop_map(|number| Some(PortRef::Number(number))),
        3 => select(&NAMES[..]).prop_map(|name| Some(PortRef::Name(name.into()))),
        2 => Just(None),
    ];
    (word, port, option::weighted(0.2, select(vec![80, 443, 65_535]))).prop_map(|(word, port, end)| PolicyPort {
        protocol: word.map(Into::into),
        end_port: end.filter(|_| matches!(port, Some(PortRef::Number(_)))),
        port,
    })
}

fn rule() -> impl Strategy<Value = PolicyRule> {
    (vec(peer(), 0..3), vec(port(), 0..3), 0..40u32).prop_map(|(peers, ports, odd)| match odd {
        0 => PolicyRule { unreadable: Some("odd".into()), ..PolicyRule::default() },
        _ => PolicyRule { peers: peers.into(), ports: ports.into(), unreadable: None },
    })
}

fn policy() -> impl Strategy<Value = Object> {
    let types =
        select(vec![&[][..], &["Ingress"], &["Egress"], &["Ingress", "Egress"], &["Ingress", "Egress"], &["Ingres"]]);
    let name = select(vec!["p1", "p2", "p3", "p4"]);
    (select(&NAMESPACES[..]), name, selector(), types, vec(rule(), 0..3), vec(rule(), 0..3)).prop_map(
        |(namespace, name, pod_selector, types, ingress, egress)| {
            Object::NetworkPolicy(NetworkPolicy {
                key: ObjectKey::new(namespace, name),
                pod_selector,
                policy_types: types.iter().map(|word| (*word).into()).collect(),
                ingress: ingress.into(),
                egress: egress.into(),
            })
        },
    )
}

fn a_pod() -> impl Strategy<Value = Object> {
    let place = (select(&NAMESPACES[..]), 0..6u8, 1..9u8, option::weighted(0.3, 1..5u8));
    let port = (select(&NAMES[..]), protocol(), select(vec![80u16, 81, 53]))
        .prop_map(|(name, protocol, port)| NamedPort { name: name.into(), protocol, port });
    (place, vec(label(), 0..3), vec(port, 0..3), 0..40u32, 0..3i64).prop_map(
        |((namespace, number, last, v6), labels, ports, odd, created_s)| {
            let mut ips: Vec<IpAddr> = vec![[10, 0, 0, last].into()];
            ips.extend(v6.map(|last| ip(&format!("fd00::{last}"))));
            Object::Pod(Pod {
                created_s,
                ips: if odd == 5 { Vec::new() } else { ips },
                node: Some(if odd % 3 == 0 { "n2" } else { NODE }.into()),
                host_ips: if odd == 6 { [ip("192.0.2.1")].into() } else { Default::default() },
                host_network: odd == 1,
                completed: odd == 2,
                terminating: odd == 3 || odd == 4,
                ports: ports.into(),
                ..pod(namespace, &format!("pod-{number}"), "", &labels)
            })
        },
    )
}

fn namespace() -> impl Strategy<Value = Object> {
    let isolation = prop_oneof![
        8 => Just(None),
        1 => Just(Some(r#"{"ingress":{"isolation":"DefaultDeny"}}"#)),
        1 => Just(Some("{}")),
        1 => Just(Some("{")),
    ];
    (select(&NAMESPACES[..2]), vec(label(), 0..2), isolation).prop_map(|(name, labels, isolation)| {
        Object::Namespace(Namespace {
            key: ObjectKey::cluster(name),
            labels: labels.into_iter().collect(),
            isolation: isolation.map(Into::into),
        })
    })
}

pub fn cluster() -> impl Strategy<Value = Vec<Object>> {
    let wide = prop_oneof![1 => Just(Vec::new()), 2 => vec(cluster_policy(), 1..4)];
    (vec(namespace(), 0..4), vec(a_pod(), 1..14), vec(policy(), 0..8), wide).prop_map(
        |(namespaces, pods, policies, wide)| namespaces.into_iter().chain(pods).chain(policies).chain(wide).collect(),
    )
}

pub fn event() -> impl Strategy<Value = ObjectEvent> {
    let deletion = prop_oneof![
        (select(&NAMESPACES[..]), 0..6u8).prop_map(|(ns, n)| gone(Kind::Pod, ns, &format!("pod-{n}"))),
        (select(&NAMESPACES[..]), 1..5u8).prop_map(|(ns, n)| gone(Kind::NetworkPolicy, ns, &format!("p{n}"))),
        select(&NAMESPACES[..]).prop_map(|ns| gone(Kind::Namespace, "", ns)),
        select(&POLICIES[..]).prop_map(|name| gone(Kind::ClusterNetworkPolicy, "", name)),
    ];
    prop_oneof![
        8 => a_pod().prop_map(applied),
        6 => policy().prop_map(applied),
        2 => namespace().prop_map(applied),
        4 => cluster_policy().prop_map(applied),
        5 => deletion,
    ]
}

pub fn addresses() -> Vec<IpAddr> {
    [
        "10.0.0.1",
        "10.0.0.2",
        "10.0.0.3",
        "10.0.0.4",
        "10.0.0.5",
        "10.0.0.6",
        "10.0.0.7",
        "10.0.0.8",
        "10.0.0.200",
        "10.0.9.9",
        "10.96.0.10",
        "192.0.2.1",
        "198.51.100.7",
        "203.0.113.9",
        "fd00::1",
        "fd00::2",
        "fd00::3",
        "fd00::4",
        "fd00::77",
        "2001:db8::1",
    ]
    .map(ip)
    .to_vec()
}

pub fn traffic() -> Vec<Traffic> {
    let mut traffic = vec![Traffic::Portless, udp(53), udp(80), sctp(80), tcp(0)];
    traffic.extend([1, 53, 79, 80, 81, 100, 443, 444, 65_535].map(tcp));
    traffic
}

/// Clusters to try: more with KUBE_ROUTER_POLICY_CASES.
pub fn config(default: u32) -> ProptestConfig {
    let cases = std::env::var("KUBE_ROUTER_POLICY_CASES").ok().and_then(|cases| cases.parse().ok());
    ProptestConfig { cases: cases.unwrap_or(default), failure_persistence: None, ..ProptestConfig::default() }
}

/// At least a million pairs of a pod's packet and an answer: rows against the model.
#[test]
fn rows_say_what_the_model_says() {
    let pairs = std::cell::Cell::new(0);
    let (addresses, traffic) = (addresses(), traffic());
    let mut runner = proptest::test_runner::TestRunner::new(config(600));
    let result = runner.run(&cluster(), |objects| {
        let world = World::of(objects);
        pairs.set(pairs.get() + world.compare(&addresses, &traffic).map_err(TestCaseError::fail)?);
        Ok(())
    });
    if let Err(error) = result {
        panic!("{error}");
    }
    println!("{} pairs", pairs.get());
    assert!(pairs.get() >= 1_000_000, "{} pairs", pairs.get());
}
