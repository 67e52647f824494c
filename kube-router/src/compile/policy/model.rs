//! What Kubernetes says about one packet, as directly as it can be written down: the oracle of the tests, and what
//! `explain` shows to people.
//!
//! From the API reference of NetworkPolicy: a pod that no policy selects in a direction is open in that direction; one
//! that is selected accepts what some rule of some selecting policy allows, and nothing else. A rule allows what
//! matches its peers and its ports; an empty list of either matches everything.
//!
//! Before and after it ClusterNetworkPolicy has its say: `model/tiers.rs`.
//!
//! Slow on purpose. It shares nothing with the compiler but words: no selector, no prefix, no rule has gone through it. Where
//! a part of a policy makes no sense, the answer to "does it match?" is `None`, and a rule with such a part grants
//! nothing (see `normalize.rs` for the table).

mod tiers;

use std::net::IpAddr;

use ipnet::IpNet;

use super::normalize::Source;
use crate::{
    cluster::ClusterState,
    desired::policy::{Direction, Tier},
    objects::{
        IpBlock, LabelOperator, LabelSelector, NetworkPolicy, ObjectKey, Pod, PolicyPeer, PolicyPort, PolicyRule,
        PortRef, Protocol,
    },
};

/// What a packet carries: a protocol with a destination port, or something else.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Traffic {
    Port(Protocol, u16),
    Portless,
}

/// A rule, by its place.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct RuleRef {
    pub tier: Tier,
    pub policy: ObjectKey,
    pub direction: Direction,
    pub index: u32,
}

/// The verdict for one pod in one direction.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Judgement {
    /// The policies that select the pod in this direction, and its namespace if that does by its annotation.
    pub isolated_by: Vec<Source>,
    pub allowed: bool,
    /// The rule of a ClusterNetworkPolicy that decides. Or every rule of a NetworkPolicy that allows it; the first is the
    /// one that counts it: the one that names both peers and ports before the one that names only peers, only ports,
    /// nothing; then by name. Empty: none allows it, or nobody says anything.
    pub rules: Vec<RuleRef>,
}

/// `pod` is asked whether traffic from (ingress) or to (egress) `peer` may pass; `traffic` has the destination's port.
pub fn judge(cluster: &ClusterState, pod: &Pod, direction: Direction, peer: IpAddr, traffic: Traffic) -> Judgement {
    let namespaced = namespaced(cluster, pod, direction, peer, traffic);
    let asked = tiers::Asked { cluster, pod, direction, peer, traffic };
    let isolated = !namespaced.isolated_by.is_empty();
    let decided =
        tiers::judge(asked, Tier::Admin).or_else(|| if isolated { None } else { tiers::judge(asked, Tier::Baseline) });
    match decided {
        Some((allowed, rule)) => Judgement { allowed, rules: vec![rule], ..namespaced },
        None => namespaced,
    }
}

/// The word of NetworkPolicy alone.
fn namespaced(cluster: &ClusterState, pod: &Pod, direction: Direction, peer: IpAddr, traffic: Traffic) -> Judgement {
    let namespace = &*pod.key.namespace;
    let mut isolated_by = Vec::new();
    if direction == Direction::Ingress && annotation_isolates(cluster, namespace) {
        isolated_by.push(Source::Namespace(pod.key.namespace.clone()));
    }
    let mut rules = Vec::new();
    for policy in cluster.policies_in(namespace) {
        if !selects(policy, pod) || !isolates(policy, direction) {
            continue;
        }
        isolated_by.push(Source::Policy(policy.key.clone()));
        if !is_sound(&policy.pod_selector) {
            continue;
        }
        let list = match direction {
            Direction::Ingress => &policy.ingress,
            Direction::Egress => &policy.egress,
        };
        for (index, rule) in list.iter().enumerate() {
            if let Some(rank) = allows(cluster, policy, rule, direction, pod, peer, traffic) {
                let (tier, policy, index) = (Tier::Namespaced, policy.key.clone(), index as u32);
                rules.push((rank, RuleRef { tier, policy, direction, index }));
            }
        }
    }
    rules.sort();
    let rules: Vec<RuleRef> = rules.into_iter().map(|(_, rule)| rule).collect();
    Judgement { allowed: isolated_by.is_empty() || !rules.is_empty(), isolated_by, rules }
}

fn annotation_isolates(cluster: &ClusterState, namespace: &str) -> bool {
    let Some(text) = cluster.namespace(namespace).and_then(|namespace| namespace.isolation.as_ref()) else {
        return false;
    };
    match serde_json::from_str::<serde_json::Value>(text) {
        Ok(value) if value.is_object() => match &value["ingress"] {
            serde_json::Value::Null => false,
            ingress if ingress.is_object() => {
                !matches!(&ingress["isolation"], serde_json::Value::Null) && ingress["isolation"] != ""
            }
            _ => true,
        },
        _ => true,
    }
}

/// A podSelector with a part that makes no sense selects by its other parts.
fn selects(policy: &NetworkPolicy, pod: &Pod) -> bool {
    requirements(&policy.pod_selector, |key| pod.labels.get(key)).into_iter().flatten().all(|holds| holds)
}

fn isolates(policy: &NetworkPolicy, direction: Direction) -> bool {
    let has = |word: &str| policy.policy_types.iter().any(|known| **known == *word);
    let odd = policy.policy_types.iter().any(|word| !["Ingress", "Egress"].contains(&&**word));
    let default = policy.policy_types.is_empty() || odd;
    match direction {
        Direction::Ingress => has("Ingress") || default,
        Direction::Egress => has("Egress") || default && !policy.egress.is_empty(),
    }
}

fn is_sound(selector: &LabelSelector) -> bool {
    requirements(selector, |_| None).iter().all(Option::is_some)
}

/// Whether each requirement holds; `None` for one that makes no sense.
fn requirements<'a>(selector: &LabelSelector, get: impl Fn(&str) -> Option<&'a str>) -> Vec<Option<bool>> {
    let labels = selector.match_labels.iter().map(|(key, value)| Some(get(key) == Some(value)));
    let expressions = selector.match_expressions.iter().map(|expression| {
        let value = get(&expression.key);
        let listed = value.is_some_and(|value| expression.values.iter().any(|known| **known == *value));
        if expression.key.is_empty() {
            return None;
        }
        match (&expression.operator, expression.values.is_empty()) {
            (LabelOperator::In, false) => Some(listed),
            (LabelOperator::NotIn, false) => Some(!listed),
            (LabelOperator::Exists, true) => Some(value.is_some()),
            (LabelOperator::DoesNotExist, true) => Some(value.is_none()),
            _ => None,
        }
    });
    labels.chain(expressions).collect()
}

fn matches<'a>(selector: &LabelSelector, get: impl Fn(&str) -> Option<&'a str>) -> Option<bool> {
    requirements(selector, get).into_iter().try_fold(true, |all, holds| Some(all & holds?))
}

/// How widely the rule speaks of the traffic it allows (smaller: it names more), or `None` if it does not allow it.
fn allows(
    cluster: &ClusterState,
    policy: &NetworkPolicy,
    rule: &PolicyRule,
    direction: Direction,
    pod: &Pod,
    peer: IpAddr,
    traffic: Traffic,
) -> Option<(bool, bool)> {
    if rule.unreadable.is_some() {
        return None;
    }
    // Nobody has the address of a pod that has ended, and a pod in its node's network has none of its own.
    let peer_pod = cluster.pod_by_ip(peer);
    let peers: Vec<bool> =
        rule.peers.iter().map(|entry| peer_matches(cluster, policy, entry, peer_pod, peer)).collect::<Option<_>>()?;
    let target = if direction == Direction::Ingress { Some(pod) } else { peer_pod };
    let ports: Vec<PortMatch> =
        rule.ports.iter().map(|entry| port_matches(entry, target, traffic)).collect::<Option<_>>()?;
    let peer_ok = peers.is_empty() || peers.contains(&true);
    let port_ok = ports.is_empty() || ports.iter().any(|port| *port != PortMatch::No);
    if !peer_ok || !port_ok {
        return None;
    }
    // A port that the peer names is a statement about the peer.
    let by_name = direction == Direction::Egress && ports.contains(&PortMatch::Name);
    Some((peers.is_empty() && !by_name, ports.is_empty()))
}

fn peer_matches(
    cluster: &ClusterState,
    policy: &NetworkPolicy,
    entry: &PolicyPeer,
    peer_pod: Option<&Pod>,
    peer: IpAddr,
) -> Option<bool> {
    match (&entry.pods, &entry.namespaces, &entry.block) {
        (None, None, Some(block)) => block_contains(block, peer),
        (None, None, None) | (_, _, Some(_)) => None,
        (pods, namespaces, None) => {
            let (namespace, labels) = match peer_pod {
                Some(pod) => (&*pod.key.namespace, Some(&pod.labels)),
                None => ("", None),
            };
            let pod_ok = match pods {
                None => true,
                Some(selector) => matches(selector, |key| labels?.get(key))?,
            };
            let namespace_ok = match namespaces {
                None => *namespace == *policy.key.namespace,
                Some(selector) => matches(selector, |key| match key {
                    "kubernetes.io/metadata.name" => Some(namespace),
                    key => cluster.namespace(namespace)?.labels.get(key),
                })?,
            };
            Some(peer_pod.is_some() && pod_ok && namespace_ok)
        }
    }
}

fn block_contains(block: &IpBlock, ip: IpAddr) -> Option<bool> {
    let net = |text: &str| {
        let net: IpNet = text.parse().ok()?;
        let mapped = matches!(net, IpNet::V6(v6) if v6.prefix_len() >= 96 && v6.addr().to_ipv4_mapped().is_some());
        (!mapped).then_some(net.trunc())
    };
    let whole = net(&block.cidr)?;
    let mut inside = whole.contains(&ip);
    for text in &block.except {
        let hole = net(text)?;
        if hole == whole || !whole.contains(&hole) {
            return None;
        }
        inside &= !hole.contains(&ip);
    }
    Some(inside)
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum PortMatch {
    No,
    Number,
    Name,
}

/// `target` is the pod that the packet goes to, if a pod has that address.
fn port_matches(entry: &PolicyPort, target: Option<&Pod>, traffic: Traffic) -> Option<PortMatch> {
    let protocol = match entry.protocol.as_deref() {
        None | Some("TCP") => Protocol::Tcp,
        Some("UDP") => Protocol::Udp,
        Some("SCTP") => Protocol::Sctp,
        Some(_) => return None,
    };
    let (numbers, how) = match (&entry.port, entry.end_port) {
        (None, None) => (vec![0..=65_535], PortMatch::Number),
        (Some(PortRef::Number(first)), end) => {
            let last = end.unwrap_or(*first);
            if !(1..=65_535).contains(first) || !(*first..=65_535).contains(&last) {
                return None;
            }
            (vec![*first..=last], PortMatch::Number)
        }
        (Some(PortRef::Name(name)), None) => {
            if name.len() > 15 || !name.bytes().any(|byte| byte.is_ascii_lowercase()) {
                return None;
            }
            let named = target.into_iter().flat_map(|pod| &pod.ports);
            let named = named.filter(|port| *port.name == **name && port.protocol == protocol);
            (named.map(|port| i64::from(port.port)..=i64::from(port.port)).collect(), PortMatch::Name)
        }
        (None, Some(_)) | (Some(PortRef::Name(_)), Some(_)) => return None,
    };
    let Traffic::Port(carried, port) = traffic else { return Some(PortMatch::No) };
    let fits = carried == protocol && numbers.iter().any(|range| range.contains(&i64::from(port)));
    Some(if fits { how } else { PortMatch::No })
}
