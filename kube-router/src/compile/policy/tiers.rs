//! From a ClusterNetworkPolicy as written to rules that make sense, and problems for the parts that do not.
//!
//! The API asks for it: what cannot be read fails closed (text of ClusterNetworkPolicyIngressPeer). No bad part opens
//! anything, and a policy that cannot be placed denies before all others.
//!
//! | Bad | Then |
//! |---|---|
//! | a peer, a protocol, no peers, an unreadable rule | Accept: the rule matches nothing; Deny and Pass: it denies everything |
//! | an action | it denies everything |
//! | a tier | the Admin tier; no rule accepts, and Pass denies |
//! | a priority | before all of its tier; no rule accepts, and Pass denies |
//! | the subject | the requirements that make sense select, without any every pod; no rule accepts, and Pass denies |
//! | more entries than the API takes | all are honoured |
//! | bits of a network beyond its length | they do not count: `host_bits.rs` |

use std::sync::Arc;

use super::{
    host_bits::HostBits,
    normalize::{Action, Bad, Block, Namespaces, Peers, Policy, Ports, Problems, Rank, Rule, Source, read_net},
    selector::Selector,
};
use crate::{
    compile::Problem,
    desired::policy::{Direction, Tier},
    objects::{
        ClusterNetworkPolicy, ClusterPeer, ClusterProtocol, ClusterRule, DestinationPort, LabelSelector, NamespacedPod,
        Protocol,
    },
};

/// Rules of a direction, peers, protocols, networks: the most that the API takes.
const MOST_ENTRIES: usize = 25;
/// Characters of a rule's name.
const MOST_NAME: usize = 100;
const PRIORITIES: std::ops::RangeInclusive<i64> = 0..=1_000;

/// Reads a policy. The problems name the field.
pub fn policy(written: &ClusterNetworkPolicy) -> (Policy, Vec<Problem>) {
    let source = Source::Cluster(written.key.name.clone());
    let mut problems = Problems { subject: source.subject(), found: Vec::new() };
    let (rank, placed) = rank(written, &mut problems);
    let (namespaces, pods, selected) = subject(written, &mut problems);
    let sound = placed && selected;
    let mut host_bits = HostBits::default();
    for (i, rule) in written.egress.iter().enumerate() {
        for (j, peer) in rule.peers.iter().enumerate() {
            for (k, text) in peer.networks.iter().flatten().enumerate() {
                host_bits.look(text, || format!("spec.egress[{i}].to[{j}].networks[{k}]"));
            }
        }
    }
    problems.found.extend(host_bits.problem(&problems.subject));
    let rules = Direction::BOTH.map(|direction| {
        let list = match direction {
            Direction::Ingress => &written.ingress,
            Direction::Egress => &written.egress,
        };
        limit(list.len(), || format!("spec.{} has {} rules", direction.name(), list.len()), &mut problems);
        let rules: Box<[Rule]> = list
            .iter()
            .enumerate()
            .filter_map(|(i, rule)| read_rule(rule, i, direction, sound, &mut problems))
            .collect();
        // A policy without rules says nothing about this direction; one whose rules match nothing still has them.
        (!list.is_empty()).then_some(rules)
    });
    (Policy { source, rank, namespaces: Namespaces::Selected(namespaces), pods, rules }, problems.found)
}

/// Where it stands, and whether it says so itself.
fn rank(written: &ClusterNetworkPolicy, problems: &mut Problems) -> (Rank, bool) {
    let tier = match &*written.tier {
        "Admin" => Some(Tier::Admin),
        "Baseline" => Some(Tier::Baseline),
        word => {
            let text = format!("spec.tier: \"{word}\" is neither Admin nor Baseline; it denies before all others");
            problems.add("BadTier", text);
            None
        }
    };
    let priority = written.priority.filter(|priority| PRIORITIES.contains(priority));
    if priority.is_none() {
        let found = written.priority.map_or("no number".to_owned(), |priority| priority.to_string());
        problems.add("BadPriority", format!("spec.priority: {found} is not 0 to 1000; it denies before all others"));
    }
    let rank = Rank { tier: tier.unwrap_or(Tier::Admin), priority: priority.unwrap_or(-1) };
    (rank, tier.is_some() && priority.is_some())
}

fn subject(written: &ClusterNetworkPolicy, problems: &mut Problems) -> (Arc<Selector>, Arc<Selector>, bool) {
    let mut sound = true;
    let mut read = |selector: &LabelSelector, path: &str| {
        let (selector, bad) = Selector::read(selector);
        for (inner, why) in bad {
            sound = false;
            problems
                .add("BadSelector", format!("spec.subject.{path}{inner}: {why}; the rest selects, and only denies"));
        }
        Arc::new(selector)
    };
    let (namespaces, pods) = match (&written.subject.namespaces, &written.subject.pods) {
        (Some(namespaces), None) => (read(namespaces, "namespaces."), Arc::default()),
        (None, Some(pods)) => {
            (read(&pods.namespaces, "pods.namespaceSelector."), read(&pods.pods, "pods.podSelector."))
        }
        (namespaces, _) => {
            sound = false;
            let what = if namespaces.is_some() { "both namespaces and pods" } else { "nobody" };
            problems
                .add("BadSubject", format!("spec.subject names {what}; every pod is its subject, and it only denies"));
            (Arc::default(), Arc::default())
        }
    };
    (namespaces, pods, sound)
}

fn limit(count: usize, what: impl FnOnce() -> String, problems: &mut Problems) {
    if count > MOST_ENTRIES {
        problems.add("TooManyEntries", format!("{}; the API takes {MOST_ENTRIES}. All are honoured", what()));
    }
}

fn read_rule(
    written: &ClusterRule,
    index: usize,
    direction: Direction,
    sound: bool,
    problems: &mut Problems,
) -> Option<Rule> {
    let place = format!("spec.{}[{index}]", direction.name());
    let label = |action: &str| match &*written.name {
        "" => format!("{action} ").into(),
        name => format!("{action} \"{name}\" ").into(),
    };
    let nothing = |action: &str| Rule {
        index: index as u32,
        action: Action::Deny,
        peers: None,
        ports: None,
        label: label(action),
    };
    let action = match &*written.action {
        "Accept" => Action::Accept,
        "Deny" => Action::Deny,
        "Pass" => Action::Pass,
        word => {
            let text = format!("{place}.action: \"{word}\" is not Accept, Deny or Pass; the rule denies everything");
            problems.add("BadAction", text);
            return Some(nothing("Deny"));
        }
    };
    if written.name.chars().count() > MOST_NAME {
        problems.add("TooManyEntries", format!("{place}.name is longer than {MOST_NAME} characters; it is taken so"));
    }
    match read_parts(written, &place, direction, problems) {
        Err((reason, text)) => {
            let then = if action == Action::Accept { "accepts nothing" } else { "denies everything" };
            problems.add(reason, format!("{place}{text}; the rule {then}"));
            (action != Action::Accept).then(|| nothing("Deny"))
        }
        Ok(_) if action == Action::Accept && !sound => None,
        Ok((peers, ports)) => {
            let action = if sound { action } else { Action::Deny };
            Some(Rule { index: index as u32, action, peers: Some(peers), ports, label: label(action.name()) })
        }
    }
}

type Parts = (Box<[Peers]>, Option<Box<[Ports]>>);

fn read_parts(written: &ClusterRule, place: &str, direction: Direction, problems: &mut Problems) -> Result<Parts, Bad> {
    if let Some(why) = &written.unreadable {
        return Err(("UnreadableRule", format!(": {why}")));
    }
    let list = if direction == Direction::Ingress { "from" } else { "to" };
    if written.peers.is_empty() {
        return Err(("BadPeer", format!(".{list} names nobody")));
    }
    limit(written.peers.len(), || format!("{place}.{list} has {} entries", written.peers.len()), problems);
    let mut peers = Vec::new();
    for (i, peer) in written.peers.iter().enumerate() {
        let networks = peer.networks.iter().flatten().count();
        limit(networks, || format!("{place}.{list}[{i}].networks has {networks} entries"), problems);
        read_peer(peer, direction, &mut peers).map_err(|(reason, text)| (reason, format!(".{list}[{i}]{text}")))?;
    }
    let Some(protocols) = &written.protocols else { return Ok((peers.into(), None)) };
    if protocols.is_empty() {
        return Err(("BadPort", ".protocols names none".to_owned()));
    }
    limit(protocols.len(), || format!("{place}.protocols has {} entries", protocols.len()), problems);
    let mut ports = Vec::new();
    for (i, protocol) in protocols.iter().enumerate() {
        read_protocol(protocol, &mut ports).map_err(|why| ("BadPort", format!(".protocols[{i}]{why}")))?;
    }
    let nameless = |peer: &ClusterPeer| peer.nodes.is_some() || peer.networks.is_some() || peer.domain_names.is_some();
    if protocols.iter().any(|protocol| protocol.named_port.is_some()) && written.peers.iter().any(nameless) {
        return Err(("BadPort", ": nodes, networks and domainNames have no named ports".to_owned()));
    }
    Ok((peers.into(), Some(ports.into())))
}

fn select(written: &LabelSelector, path: &str) -> Result<Arc<Selector>, Bad> {
    match Selector::read(written) {
        (selector, bad) if bad.is_empty() => Ok(Arc::new(selector)),
        (_, bad) => Err(("BadSelector", format!(".{path}.{}: {}", bad[0].0, bad[0].1))),
    }
}

fn read_peer(written: &ClusterPeer, direction: Direction, peers: &mut Vec<Peers>) -> Result<(), Bad> {
    let ClusterPeer { namespaces, pods, nodes, networks, domain_names } = written;
    let only_egress = nodes.is_some() || networks.is_some() || domain_names.is_some();
    if only_egress && direction == Direction::Ingress {
        return Err(("BadPeer", ": nodes, networks and domainNames are for egress".to_owned()));
    }
    match (namespaces, pods, nodes, networks, domain_names) {
        (Some(namespaces), None, None, None, None) => {
            let namespaces = Namespaces::Selected(select(namespaces, "namespaces")?);
            peers.push(Peers::Pods { namespaces, pods: Arc::default() });
        }
        (None, Some(NamespacedPod { namespaces, pods }), None, None, None) => {
            let namespaces = Namespaces::Selected(select(namespaces, "pods.namespaceSelector")?);
            peers.push(Peers::Pods { namespaces, pods: select(pods, "pods.podSelector")? });
        }
        (None, None, None, Some(networks), None) if !networks.is_empty() => {
            for (i, text) in networks.iter().enumerate() {
                let net = read_net(text).map_err(|why| ("BadIpBlock", format!(".networks[{i}]: {why}")))?;
                peers.push(Peers::Block(Arc::new(Block { net, except: Box::default() })));
            }
        }
        (None, None, Some(_), None, None) => {
            return Err(("UnsupportedPeer", ".nodes: not supported; name the addresses in networks".to_owned()));
        }
        (None, None, None, None, Some(_)) => {
            return Err(("UnsupportedPeer", ".domainNames: not supported; name the addresses in networks".to_owned()));
        }
        (None, None, None, None | Some(_), None) => return Err(("BadPeer", ": names nobody".to_owned())),
        _ => return Err(("BadPeer", ": names peers in more than one way".to_owned())),
    }
    Ok(())
}

fn read_protocol(written: &ClusterProtocol, ports: &mut Vec<Ports>) -> Result<(), String> {
    let transports = [(Protocol::Tcp, &written.tcp), (Protocol::Udp, &written.udp), (Protocol::Sctp, &written.sctp)];
    let mut set = transports.into_iter().filter_map(|(protocol, port)| Some((protocol, port.as_ref()?)));
    match (set.next(), set.next(), &written.named_port) {
        (None, None, Some(name)) => {
            let named = |protocol| Ports::Named { protocol, name: (&**name).into() };
            ports.extend([Protocol::Tcp, Protocol::Udp, Protocol::Sctp].map(named));
        }
        (Some((protocol, port)), None, None) => {
            let (first, last) = read_port(port).map_err(|why| format!(".{protocol}.destinationPort{why}"))?;
            ports.push(Ports::Range { protocol, first, last });
        }
        (None, None, None) => return Err(": names no protocol".to_owned()),
        _ => return Err(": names more than one protocol".to_owned()),
    }
    Ok(())
}

fn read_port(written: &DestinationPort) -> Result<(u16, u16), String> {
    let number = |number: Option<i64>, field: &str| match number.map(u16::try_from) {
        Some(Ok(port)) if port != 0 => Ok(port),
        Some(_) => Err(format!(".{field}: {} is not a port number (1 to 65535)", number.unwrap_or_default())),
        None => Err(format!(".{field} is missing")),
    };
    match (written.number, written.range) {
        (Some(_), None) => number(written.number, "number").map(|port| (port, port)),
        (None, Some((start, end))) => match (number(start, "range.start")?, number(end, "range.end")?) {
            (start, end) if start < end => Ok((start, end)),
            (start, end) => Err(format!(".range: start {start} is not less than end {end}")),
        },
        (None, None) => Err(" is missing".to_owned()),
        (Some(_), Some(_)) => Err(" has both number and range".to_owned()),
    }
}
