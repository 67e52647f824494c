//! What the API text of ClusterNetworkPolicy says about one packet.
//!
//! Tiers in the order Admin, NetworkPolicy, Baseline; in a tier by priority, the lower value first, and (the API leaves it
//! open) by name; in a policy by place. The first rule that matches acts: Accept and Deny are final, Pass leaves the rest of
//! the tier out. What no tier decides is allowed.
//!
//! "Fail closed" of the API: an Accept with a part that makes no sense matches nothing, any other rule denies all. What
//! has no ports matches a Deny of some port, and no other rule that names ports.

use std::net::IpAddr;

use super::{RuleRef, Traffic, block_contains, matches, requirements};
use crate::{
    cluster::ClusterState,
    desired::policy::{Direction, Tier},
    objects::{
        ClusterNetworkPolicy, ClusterPeer, ClusterProtocol, ClusterRule, DestinationPort, IpBlock, LabelSelector,
        NamespacedPod, Pod, Protocol,
    },
};

/// The packet's question, at one end.
#[derive(Clone, Copy)]
pub(super) struct Asked<'a> {
    pub cluster: &'a ClusterState,
    pub pod: &'a Pod,
    pub direction: Direction,
    pub peer: IpAddr,
    pub traffic: Traffic,
}

/// The final word of a tier, with the rule that has it. `None`: it has none.
pub(super) fn judge(asked: Asked<'_>, tier: Tier) -> Option<(bool, RuleRef)> {
    let mut policies: Vec<(i64, &ClusterNetworkPolicy)> = Vec::new();
    for policy in asked.cluster.cluster_policies() {
        if (if &*policy.tier == "Baseline" { Tier::Baseline } else { Tier::Admin }) == tier && selects(asked, policy) {
            policies.push((priority(policy).unwrap_or(-1), policy));
        }
    }
    policies.sort_by_key(|(priority, policy)| (*priority, policy.key.name.clone()));
    for (_, policy) in policies {
        let list = match asked.direction {
            Direction::Ingress => &policy.ingress,
            Direction::Egress => &policy.egress,
        };
        for (index, rule) in list.iter().enumerate() {
            let rule_ref =
                RuleRef { tier, policy: policy.key.clone(), direction: asked.direction, index: index as u32 };
            match acts(asked, policy, rule) {
                None => {}
                Some("Accept") => return Some((true, rule_ref)),
                Some("Pass") => return None,
                Some(_) => return Some((false, rule_ref)),
            }
        }
    }
    None
}

fn priority(policy: &ClusterNetworkPolicy) -> Option<i64> {
    policy.priority.filter(|priority| (0..=1_000).contains(priority))
}

pub(super) fn namespace_label<'a>(cluster: &'a ClusterState, namespace: &'a str, key: &str) -> Option<&'a str> {
    match key {
        "kubernetes.io/metadata.name" => Some(namespace),
        key => cluster.namespace(namespace)?.labels.get(key),
    }
}

/// The parts of a subject that make sense select; one that names nobody, or twice, is every pod.
fn selects(asked: Asked<'_>, policy: &ClusterNetworkPolicy) -> bool {
    let in_namespace = |selector: &LabelSelector| {
        let label = |key: &str| namespace_label(asked.cluster, &asked.pod.key.namespace, key);
        requirements(selector, label).into_iter().flatten().all(|holds| holds)
    };
    let is_pod = |selector: &LabelSelector| {
        requirements(selector, |key| asked.pod.labels.get(key)).into_iter().flatten().all(|holds| holds)
    };
    match (&policy.subject.namespaces, &policy.subject.pods) {
        (Some(namespaces), None) => in_namespace(namespaces),
        (None, Some(pods)) => in_namespace(&pods.namespaces) && is_pod(&pods.pods),
        _ => true,
    }
}

fn is_sound(policy: &ClusterNetworkPolicy) -> bool {
    let sound = |selector: &LabelSelector| requirements(selector, |_| None).iter().all(Option::is_some);
    let subject = match (&policy.subject.namespaces, &policy.subject.pods) {
        (Some(namespaces), None) => sound(namespaces),
        (None, Some(pods)) => sound(&pods.namespaces) && sound(&pods.pods),
        _ => false,
    };
    subject && priority(policy).is_some() && ["Admin", "Baseline"].contains(&&*policy.tier)
}

/// What the rule does to this packet: Accept, Deny, Pass, or `None` for nothing.
fn acts(asked: Asked<'_>, policy: &ClusterNetworkPolicy, rule: &ClusterRule) -> Option<&'static str> {
    let action = match &*rule.action {
        "Accept" => "Accept",
        "Deny" => "Deny",
        "Pass" => "Pass",
        _ => return Some("Deny"),
    };
    // A policy that does not say where it stands, or for whom, only denies.
    let acts = if action == "Pass" && !is_sound(policy) { "Deny" } else { action };
    match rule_matches(asked, rule, acts) {
        None => (action != "Accept").then_some("Deny"),
        Some(false) => None,
        Some(true) if action == "Accept" && !is_sound(policy) => None,
        Some(true) => Some(acts),
    }
}

/// `None`: a part makes no sense, or is not supported.
fn rule_matches(asked: Asked<'_>, rule: &ClusterRule, action: &str) -> Option<bool> {
    if rule.unreadable.is_some() || rule.peers.is_empty() {
        return None;
    }
    let peers: Vec<bool> = rule.peers.iter().map(|peer| peer_matches(asked, peer)).collect::<Option<_>>()?;
    let Some(protocols) = &rule.protocols else { return Some(peers.contains(&true)) };
    let by_name = protocols.iter().any(|protocol| protocol.named_port.is_some());
    if protocols.is_empty() || by_name && rule.peers.iter().any(|peer| peer.networks.is_some()) {
        return None;
    }
    let ports: Vec<Vec<(Protocol, i64, i64)>> =
        protocols.iter().map(|protocol| ports_of(asked, protocol)).collect::<Option<_>>()?;
    let mut ports = ports.into_iter().flatten();
    let fits = match asked.traffic {
        Traffic::Portless => action == "Deny" && ports.next().is_some(),
        Traffic::Port(carried, port) => {
            ports.any(|(protocol, first, last)| protocol == carried && (first..=last).contains(&i64::from(port)))
        }
    };
    Some(peers.contains(&true) && fits)
}

fn peer_matches(asked: Asked<'_>, peer: &ClusterPeer) -> Option<bool> {
    let ClusterPeer { namespaces, pods, nodes, networks, domain_names } = peer;
    let set = [namespaces.is_some(), pods.is_some(), nodes.is_some(), networks.is_some(), domain_names.is_some()];
    if set.iter().filter(|set| **set).count() != 1 {
        return None;
    }
    if let Some(networks) = networks {
        if networks.is_empty() || asked.direction == Direction::Ingress {
            return None;
        }
        let inside = networks.iter().map(|cidr| {
            let block = IpBlock { cidr: cidr.clone(), except: Box::default() };
            block_contains(&block, asked.peer)
        });
        return Some(inside.collect::<Option<Vec<bool>>>()?.contains(&true));
    }
    let everything = LabelSelector::default();
    let (namespaces, pods) = match (namespaces, pods) {
        (Some(namespaces), _) => (namespaces, &everything),
        (None, Some(NamespacedPod { namespaces, pods })) => (namespaces, pods),
        (None, None) => return None,
    };
    let peer_pod = asked.cluster.pod_by_ip(asked.peer);
    let namespace = peer_pod.map_or("", |pod| &pod.key.namespace);
    let in_namespace = matches(namespaces, |key| namespace_label(asked.cluster, namespace, key))?;
    let is_pod = matches(pods, |key| peer_pod?.labels.get(key))?;
    Some(peer_pod.is_some() && in_namespace && is_pod)
}

/// (protocol, first, last) of what the entry names on the packet's way; a name may name nothing.
fn ports_of(asked: Asked<'_>, entry: &ClusterProtocol) -> Option<Vec<(Protocol, i64, i64)>> {
    let ClusterProtocol { tcp, udp, sctp, named_port } = entry;
    match (tcp, udp, sctp, named_port) {
        (Some(port), None, None, None) => Some(vec![numbers(Protocol::Tcp, port)?]),
        (None, Some(port), None, None) => Some(vec![numbers(Protocol::Udp, port)?]),
        (None, None, Some(port), None) => Some(vec![numbers(Protocol::Sctp, port)?]),
        (None, None, None, Some(name)) => {
            let target = match asked.direction {
                Direction::Ingress => Some(asked.pod),
                Direction::Egress => asked.cluster.pod_by_ip(asked.peer),
            };
            let ports = target.into_iter().flat_map(|pod| &pod.ports).filter(|port| *port.name == **name);
            Some(ports.map(|port| (port.protocol, i64::from(port.port), i64::from(port.port))).collect())
        }
        _ => None,
    }
}

fn numbers(protocol: Protocol, port: &DestinationPort) -> Option<(Protocol, i64, i64)> {
    let (first, last) = match (port.number, port.range) {
        (Some(number), None) => (number, number),
        (None, Some((Some(start), Some(end)))) if start < end => (start, end),
        _ => return None,
    };
    (first >= 1 && last <= 65_535).then_some((protocol, first, last))
}
