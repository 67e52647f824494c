//! From a policy as written to rules that make sense, and problems for the parts that do not.
//!
//! A bad part fails closed: the pods stay selected and isolated, and what is bad grants nothing.
//!
//! | Bad | Then |
//! |---|---|
//! | a peer, a port, an unreadable rule | the whole rule grants nothing |
//! | the policy's own podSelector | the requirements that make sense select; no rule grants anything |
//! | a policyType | as if there were no types: Ingress, and Egress if there are egress rules |
//! | the isolation annotation of a namespace | its pods are isolated |
//! | bits of a CIDR beyond its length | they do not count: `host_bits.rs` |

use std::sync::Arc;

use ipnet::IpNet;
use serde::Deserialize;

use super::{
    host_bits::HostBits,
    prefix::Prefix,
    selector::{LabelView, Selector},
};
use crate::{
    compile::{Problem, Subject},
    desired::policy::{Direction, Tier},
    objects::{
        IpBlock, Kind, LabelSelector, Namespace, NetworkPolicy, ObjectKey, PolicyPeer, PolicyPort, PolicyRule, PortRef,
        Protocol, annotations,
    },
};

/// The object that speaks of pods.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Source {
    /// By its annotation; has no rules.
    Namespace(Arc<str>),
    Policy(ObjectKey),
    /// ClusterNetworkPolicy by its name.
    Cluster(Arc<str>),
}

impl Source {
    /// Where its pods are; `None`: anywhere.
    pub fn namespace(&self) -> Option<&Arc<str>> {
        match self {
            Source::Namespace(name) => Some(name),
            Source::Policy(key) => Some(&key.namespace),
            Source::Cluster(_) => None,
        }
    }

    /// The key of a source with rules.
    pub fn policy(&self) -> Option<ObjectKey> {
        match self {
            Source::Namespace(_) => None,
            Source::Policy(key) => Some(key.clone()),
            Source::Cluster(name) => Some(ObjectKey::cluster(name.clone())),
        }
    }

    pub fn subject(&self) -> Subject {
        match self {
            Source::Namespace(name) => Subject::Object(Kind::Namespace, ObjectKey::cluster(name.clone())),
            Source::Policy(key) => Subject::Object(Kind::NetworkPolicy, key.clone()),
            Source::Cluster(name) => Subject::Object(Kind::ClusterNetworkPolicy, ObjectKey::cluster(name.clone())),
        }
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Policy {
    pub source: Source,
    pub rank: Rank,
    pub namespaces: Namespaces,
    /// Pods of these namespaces.
    pub pods: Arc<Selector>,
    /// Rules of ingress and egress; `None`: the policy does not speak of this direction.
    pub rules: [Option<Box<[Rule]>>; 2],
}

impl Policy {
    /// Does it name peers by their addresses, in this direction?
    pub fn names_blocks(&self, direction: usize) -> bool {
        let peers = self.rules[direction].iter().flatten().flat_map(|rule| rule.peers.iter().flatten());
        peers.into_iter().any(|peers| matches!(peers, Peers::Block(_)))
    }
}

/// When a policy is asked; of equal ranks, the name decides.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Rank {
    pub tier: Tier,
    /// The smaller one first; 0 for what adds up.
    pub priority: i64,
}

impl Rank {
    pub const NAMESPACED: Rank = Rank { tier: Tier::Namespaced, priority: 0 };
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    Accept,
    Deny,
    /// The next tier decides.
    Pass,
}

impl Action {
    pub fn name(self) -> &'static str {
        match self {
            Action::Accept => "Accept",
            Action::Deny => "Deny",
            Action::Pass => "Pass",
        }
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rule {
    /// Place in the list as written.
    pub index: u32,
    pub action: Action,
    /// For people: action and name, where rules have them.
    pub label: Box<str>,
    /// `None`: everybody.
    pub peers: Option<Box<[Peers]>>,
    /// `None`: every port of every protocol.
    pub ports: Option<Box<[Ports]>>,
}

/// Peers that one entry names.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Peers {
    Pods { namespaces: Namespaces, pods: Arc<Selector> },
    Block(Arc<Block>),
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Namespaces {
    One(Arc<str>),
    Selected(Arc<Selector>),
}

impl Namespaces {
    /// Of a selector; a single namespace is found by its name, not by labels.
    pub fn match_labels(&self, labels: LabelView<'_>) -> bool {
        matches!(self, Namespaces::Selected(selector) if selector.matches(labels))
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Block {
    pub net: Prefix,
    /// Inside `net`, ordered.
    pub except: Box<[Prefix]>,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Ports {
    /// Both included.
    Range {
        protocol: Protocol,
        first: u16,
        last: u16,
    },
    Named {
        protocol: Protocol,
        name: Arc<str>,
    },
}

/// Reads a policy. The problems name the field.
pub fn policy(written: &NetworkPolicy) -> (Policy, Vec<Problem>) {
    let source = Source::Policy(written.key.clone());
    let mut problems = Problems { subject: source.subject(), found: Vec::new() };
    let (pods, bad) = Selector::read(&written.pod_selector);
    let sound = bad.is_empty();
    for (path, why) in bad {
        problems
            .add("BadSelector", format!("spec.podSelector.{path}: {why}; the rest selects, and nothing is granted"));
    }
    let isolates = isolates(written, &mut problems);
    let mut rules = |written: &NetworkPolicy, direction: Direction| {
        let list = match direction {
            Direction::Ingress => &written.ingress,
            Direction::Egress => &written.egress,
        };
        let read = |(i, rule): (usize, &PolicyRule)| match read_rule(rule, i, direction, &written.key.namespace) {
            Ok(rule) => Some(rule),
            Err((reason, text)) => {
                problems.add(reason, format!("spec.{}[{i}]{text}; the rule grants nothing", direction.name()));
                None
            }
        };
        list.iter().enumerate().filter_map(read).filter(|_| sound).collect()
    };
    let rules = Direction::BOTH.map(|direction| isolates[direction as usize].then(|| rules(written, direction)));
    let mut host_bits = HostBits::default();
    for (list, place, peers, counts) in
        [(&written.ingress, "spec.ingress", "from", isolates[0]), (&written.egress, "spec.egress", "to", isolates[1])]
    {
        if counts {
            host_bits.look_at_rules(list, place, peers);
        }
    }
    problems.found.extend(host_bits.problem(&problems.subject));
    let namespaces = Namespaces::One(written.key.namespace.clone());
    (Policy { source, rank: Rank::NAMESPACED, namespaces, pods: Arc::new(pods), rules }, problems.found)
}

/// What the annotation of old asks for.
pub fn isolation(namespace: &Namespace) -> (Option<Policy>, Vec<Problem>) {
    #[derive(Deserialize)]
    struct Annotation {
        ingress: Option<Ingress>,
    }
    #[derive(Deserialize)]
    struct Ingress {
        isolation: Option<String>,
    }
    let Some(text) = &namespace.isolation else { return (None, Vec::new()) };
    let source = Source::Namespace(namespace.key.name.clone());
    let mut problems = Problems { subject: source.subject(), found: Vec::new() };
    let isolated = match serde_json::from_str::<Annotation>(text) {
        Ok(annotation) => match annotation.ingress.and_then(|ingress| ingress.isolation).as_deref() {
            None | Some("") => false,
            Some("DefaultDeny") => true,
            Some(word) => {
                problems.add("BadIsolation", isolation_text(&format!("\"{word}\" is not DefaultDeny")));
                true
            }
        },
        Err(error) => {
            problems.add("BadIsolation", isolation_text(&error.to_string()));
            true
        }
    };
    let policy = isolated.then(|| Policy {
        source,
        rank: Rank::NAMESPACED,
        namespaces: Namespaces::One(namespace.key.name.clone()),
        pods: Arc::default(),
        rules: [Some(Box::default()), None],
    });
    (policy, problems.found)
}

fn isolation_text(why: &str) -> String {
    format!("annotation {}: {why}; the pods accept nothing but what policies allow", annotations::NETWORK_POLICY)
}

pub(super) struct Problems {
    pub subject: Subject,
    pub found: Vec<Problem>,
}

impl Problems {
    pub fn add(&mut self, reason: &'static str, text: String) {
        self.found.push(Problem { subject: self.subject.clone(), reason, text });
    }
}

/// "If this field is not specified, it will default based on the existence of ingress or egress rules" (API reference).
fn isolates(written: &NetworkPolicy, problems: &mut Problems) -> [bool; 2] {
    let mut isolates = [false, false];
    let mut default = written.policy_types.is_empty();
    for word in &written.policy_types {
        match &**word {
            "Ingress" => isolates[0] = true,
            "Egress" => isolates[1] = true,
            word => {
                default = true;
                problems.add("BadPolicyType", format!("spec.policyTypes: \"{word}\" is neither Ingress nor Egress"));
            }
        }
    }
    if default {
        isolates = [true, isolates[1] || !written.egress.is_empty()];
    }
    isolates
}

/// Reason and text, which begins with the path below the rule.
pub(super) type Bad = (&'static str, String);

fn read_rule(written: &PolicyRule, index: usize, direction: Direction, own: &Arc<str>) -> Result<Rule, Bad> {
    if let Some(why) = &written.unreadable {
        return Err(("UnreadableRule", format!(": {why}")));
    }
    let list = if direction == Direction::Ingress { "from" } else { "to" };
    let peers = written
        .peers
        .iter()
        .enumerate()
        .map(|(i, peer)| read_peer(peer, own).map_err(|(reason, text)| (reason, format!(".{list}[{i}]{text}"))));
    let peers: Box<[Peers]> = peers.collect::<Result<_, _>>()?;
    let ports = written
        .ports
        .iter()
        .enumerate()
        .map(|(i, port)| read_port(port).map_err(|why| ("BadPort", format!(".ports[{i}]: {why}"))));
    let ports: Box<[Ports]> = ports.collect::<Result<_, _>>()?;
    Ok(Rule {
        index: index as u32,
        action: Action::Accept,
        label: Box::default(),
        peers: Some(peers).filter(|peers| !peers.is_empty()),
        ports: Some(ports).filter(|ports| !ports.is_empty()),
    })
}

fn read_peer(written: &PolicyPeer, own: &Arc<str>) -> Result<Peers, Bad> {
    let select = |written: &LabelSelector, name: &str| match Selector::read(written) {
        (selector, bad) if bad.is_empty() => Ok(Arc::new(selector)),
        (_, bad) => {
            let (path, why) = &bad[0];
            Err(("BadSelector", format!(".{name}.{path}: {why}")))
        }
    };
    match (&written.pods, &written.namespaces, &written.block) {
        (None, None, Some(block)) => Ok(Peers::Block(Arc::new(read_block(block)?))),
        (_, _, Some(_)) => Err(("BadPeer", ": an ipBlock stands alone, without selectors".to_owned())),
        (None, None, None) => Err(("BadPeer", ": names nobody".to_owned())),
        (pods, namespaces, None) => Ok(Peers::Pods {
            namespaces: match namespaces {
                None => Namespaces::One(own.clone()),
                Some(selector) => Namespaces::Selected(select(selector, "namespaceSelector")?),
            },
            pods: pods.as_ref().map_or(Ok(Arc::default()), |selector| select(selector, "podSelector"))?,
        }),
    }
}

fn read_block(written: &IpBlock) -> Result<Block, Bad> {
    let net = read_net(&written.cidr).map_err(|why| ("BadIpBlock", format!(".ipBlock.cidr: {why}")))?;
    let mut except = Vec::with_capacity(written.except.len());
    for (i, text) in written.except.iter().enumerate() {
        let bad = |why: String| ("BadIpBlock", format!(".ipBlock.except[{i}]: {why}"));
        let hole = read_net(text).map_err(bad)?;
        if hole == net || !net.contains(hole) {
            return Err(bad(format!("{hole} is not a part of {net}")));
        }
        except.push(hole);
    }
    except.sort();
    except.dedup();
    Ok(Block { net, except: except.into() })
}

pub(super) fn read_net(text: &str) -> Result<Prefix, String> {
    let net: IpNet = text.parse().map_err(|_| format!("\"{text}\" is not a CIDR"))?;
    // Bits beyond the length do not count, as in the original's sets: 10.1.2.3/8 is 10.0.0.0/8.
    match net.trunc() {
        IpNet::V6(net) if net.prefix_len() >= 96 && net.network().to_ipv4_mapped().is_some() => {
            Err(format!("{net} is IPv4 written as IPv6"))
        }
        net => Ok(Prefix::of_net(net)),
    }
}

fn read_port(written: &PolicyPort) -> Result<Ports, String> {
    let protocol = match written.protocol.as_deref() {
        None | Some("TCP") => Protocol::Tcp,
        Some("UDP") => Protocol::Udp,
        Some("SCTP") => Protocol::Sctp,
        Some(word) => return Err(format!("protocol \"{word}\" is not TCP, UDP or SCTP")),
    };
    let number = |number: i64, field: &str| match u16::try_from(number) {
        Ok(port) if port != 0 => Ok(port),
        _ => Err(format!("{field} {number} is not a port number (1 to 65535)")),
    };
    match (&written.port, written.end_port) {
        (None, None) => Ok(Ports::Range { protocol, first: 0, last: u16::MAX }),
        (None, Some(_)) => Err("endPort needs a port".to_owned()),
        (Some(PortRef::Number(first)), end) => {
            let first = number(*first, "port")?;
            let last = end.map_or(Ok(first), |end| number(end, "endPort"))?;
            if last < first {
                return Err(format!("endPort {last} is smaller than port {first}"));
            }
            Ok(Ports::Range { protocol, first, last })
        }
        (Some(PortRef::Name(name)), Some(_)) => Err(format!("endPort needs a number as port, not \"{name}\"")),
        (Some(PortRef::Name(name)), None) => {
            // RFC 6335: a name has a letter, so that it is no number.
            if name.len() > 15 || !name.chars().any(|c| c.is_ascii_lowercase()) {
                return Err(format!("\"{name}\" is not the name of a port"));
            }
            Ok(Ports::Named { protocol, name: (&**name).into() })
        }
    }
}
