//! Random ClusterNetworkPolicies, of the same few labels, addresses and ports.

use proptest::{collection::vec, option, prelude::*, sample::select};

use super::random::{CIDRS, NAMES, selector};
use crate::objects::{
    ClusterNetworkPolicy, ClusterPeer, ClusterProtocol, ClusterRule, ClusterSubject, DestinationPort, NamespacedPod,
    Object, ObjectKey,
};

pub const POLICIES: [&str; 4] = ["c1", "c2", "c3", "c4"];

fn namespaced() -> impl Strategy<Value = NamespacedPod> {
    (selector(), selector()).prop_map(|(namespaces, pods)| NamespacedPod { namespaces, pods })
}

fn peer(egress: bool) -> impl Strategy<Value = ClusterPeer> {
    let networks = move |list: Vec<&'static str>, odd: u32| ClusterPeer {
        networks: (egress || odd == 0).then(|| list.into_iter().map(Into::into).collect()),
        namespaces: (!egress && odd > 0).then(Default::default),
        ..ClusterPeer::default()
    };
    prop_oneof![
        8 => selector().prop_map(|namespaces| ClusterPeer { namespaces: Some(namespaces), ..ClusterPeer::default() }),
        10 => namespaced().prop_map(|pods| ClusterPeer { pods: Some(pods), ..ClusterPeer::default() }),
        8 => (vec(select(&CIDRS[..12]), 1..4), 0..40u32).prop_map(move |(list, odd)| networks(list, odd)),
        1 => (select(&CIDRS[..]), 0..20u32).prop_map(|(net, odd)| match odd {
            0 => ClusterPeer { networks: Some([].into()), ..ClusterPeer::default() },
            1 => ClusterPeer { domain_names: Some(["example.org".into()].into()), ..ClusterPeer::default() },
            2 => ClusterPeer { nodes: Some(Default::default()), ..ClusterPeer::default() },
            3 => ClusterPeer::default(),
            4 => ClusterPeer {
                namespaces: Some(Default::default()),
                networks: Some([net.into()].into()),
                ..ClusterPeer::default()
            },
            _ => ClusterPeer { namespaces: Some(Default::default()), ..ClusterPeer::default() },
        }),
    ]
}

fn port() -> impl Strategy<Value = DestinationPort> {
    let number = select(vec![1, 79, 80, 80, 81, 443, 65_535]);
    let range = select(vec![(1, 65_535), (79, 81), (80, 443), (81, 82), (443, 65_535)]);
    prop_oneof![
        20 => number.prop_map(|number| DestinationPort { number: Some(number), range: None }),
        12 => range.prop_map(|(a, b)| DestinationPort { number: None, range: Some((Some(a), Some(b))) }),
        1 => select(vec![
            DestinationPort::default(),
            DestinationPort { number: Some(0), range: None },
            DestinationPort { number: None, range: Some((Some(81), Some(81))) },
            DestinationPort { number: None, range: Some((Some(81), None)) },
            DestinationPort { number: Some(80), range: Some((Some(81), Some(90))) },
        ]),
    ]
}

fn protocol() -> impl Strategy<Value = ClusterProtocol> {
    prop_oneof![
        10 => port().prop_map(|port| ClusterProtocol { tcp: Some(port), ..ClusterProtocol::default() }),
        5 => port().prop_map(|port| ClusterProtocol { udp: Some(port), ..ClusterProtocol::default() }),
        2 => port().prop_map(|port| ClusterProtocol { sctp: Some(port), ..ClusterProtocol::default() }),
        6 => select(&NAMES[..]).prop_map(|name| ClusterProtocol {
            named_port: Some(name.into()),
            ..ClusterProtocol::default()
        }),
    ]
}

fn rule(egress: bool) -> impl Strategy<Value = ClusterRule> {
    let action = prop_oneof![10 => Just("Accept"), 12 => Just("Deny"), 8 => Just("Pass"), 1 => Just("Drop")];
    let protocols = option::weighted(0.6, prop_oneof![30 => vec(protocol(), 1..4), 1 => Just(Vec::new())]);
    let peers = prop_oneof![40 => vec(peer(egress), 1..3), 1 => Just(Vec::new())];
    (action, peers, protocols, 0..60u32).prop_map(|(action, peers, protocols, odd)| ClusterRule {
        name: if odd % 2 == 0 { "named".into() } else { Box::default() },
        action: action.into(),
        peers: peers.into(),
        protocols: protocols.map(Into::into),
        unreadable: (odd == 7).then(|| "odd".into()),
    })
}

fn subject() -> impl Strategy<Value = ClusterSubject> {
    prop_oneof![
        10 => selector().prop_map(|namespaces| ClusterSubject { namespaces: Some(namespaces), pods: None }),
        10 => Just(ClusterSubject { namespaces: Some(Default::default()), pods: None }),
        20 => namespaced().prop_map(|pods| ClusterSubject { namespaces: None, pods: Some(pods) }),
        1 => option::of(namespaced()).prop_map(|pods| ClusterSubject { namespaces: pods.clone().map(|p| p.pods), pods }),
    ]
}

pub fn cluster_policy() -> impl Strategy<Value = Object> {
    let tier = prop_oneof![15 => Just("Admin"), 15 => Just("Baseline"), 1 => Just("Platform")];
    let priority = prop_oneof![30 => (0..3i64).prop_map(Some), 1 => Just(None), 1 => Just(Some(1_001))];
    (select(&POLICIES[..]), tier, priority, subject(), vec(rule(false), 0..4), vec(rule(true), 0..4)).prop_map(
        |(name, tier, priority, subject, ingress, egress)| {
            Object::ClusterNetworkPolicy(ClusterNetworkPolicy {
                key: ObjectKey::cluster(name),
                tier: tier.into(),
                priority,
                subject,
                ingress: ingress.into(),
                egress: egress.into(),
            })
        },
    )
}
