//! From the rules of a group to rows.
//!
//! A *group* is a set of local pods that the same policies select in one direction, with the same numbers behind the
//! names of their ports. Its rules never change: an edited policy makes another group. So what a group says about a
//! class is worked out once, when the later of the two comes.
//!
//! ```text
//! rule names          row
//! peers and ports     (class, port class) for every class with such a term, every port class in such a range
//! peers               (class, ANY)
//! ports               (ANY, port class)
//! nothing             (ANY, ANY)
//! ```
//!
//! All rows allow; no row denies. Of several rules for one row, the first by policy and place counts it. Where a
//! ClusterNetworkPolicy speaks of the pods, too, it is different: `verdicts.rs`.

use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
};

use kube_router_common::policy::{ANY, PolicyRow};

use super::{
    normalize::{Action, Policy, Ports as WrittenPorts},
    ports::{PortClass, Ports, RangeId, range},
    terms::{GroupId, PortName, Term, TermId, Terms},
    verdicts,
};
use crate::{
    desired::policy::{Direction, Tier},
    objects::{NamedPort, Protocol},
};

/// A policy with the number of its wording.
#[derive(Debug)]
pub struct Version {
    pub number: u32,
    pub policy: Policy,
}

impl PartialEq for Version {
    fn eq(&self, other: &Self) -> bool {
        self.number == other.number
    }
}

/// What makes pods one group.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct GroupKey {
    pub direction: Direction,
    /// Numbers of versions, ordered.
    pub versions: Box<[u32]>,
    /// Ingress: the pods' ports whose names the rules mention, ordered.
    pub names: Box<[(Arc<str>, Protocol, u16)]>,
}

#[derive(Debug)]
pub(super) struct GroupRule {
    pub number: u32,
    pub tier: Tier,
    pub action: Action,
    /// Peers are not named.
    pub open: bool,
    /// `None`: ports are not named. Names that are resolved here are ranges, too.
    pub ranges: Option<Box<[RangeId]>>,
}

#[derive(Debug)]
pub struct Group {
    pub key: GroupKey,
    pub versions: Box<[Arc<Version>]>,
    pub(super) rules: Vec<GroupRule>,
    by_term: HashMap<TermId, Vec<u32>>,
    pub(super) by_name: HashMap<PortName, Vec<u32>>,
    /// How many pods are in it.
    pub pods: u32,
}

/// What of a group concerns a class.
pub(super) struct Touched<'a> {
    /// Places of the rules that name such peers, ordered.
    pub rules: Vec<u32>,
    /// Names of ports that the group mentions, and what the class means by them.
    pub named: Vec<(&'a PortName, u16)>,
}

/// What a group brought into use for the first time.
#[derive(Debug, Default)]
pub struct Fresh {
    pub terms: Vec<TermId>,
    pub names: Vec<PortName>,
}

/// The ports of a pod that decide about its group, given the policies that select it.
pub fn names_in_use(versions: &[Arc<Version>], ports: &[NamedPort]) -> Box<[(Arc<str>, Protocol, u16)]> {
    if ports.is_empty() {
        return Box::default();
    }
    let rules = versions.iter().flat_map(|version| version.policy.rules[Direction::Ingress as usize].iter().flatten());
    let mut names = Vec::new();
    for written in rules.flat_map(|rule| rule.ports.iter().flatten()) {
        if let WrittenPorts::Named { protocol, name } = written {
            let same = |port: &&NamedPort| port.protocol == *protocol && port.name == *name;
            names.extend(ports.iter().filter(same).map(|port| (port.name.clone(), port.protocol, port.port)));
        }
    }
    names.sort();
    names.dedup();
    names.into()
}

impl Group {
    /// `versions` ordered by rank and source; `numbers` are the numbers of their rules, in the same order.
    pub fn new(
        id: GroupId,
        key: GroupKey,
        versions: Box<[Arc<Version>]>,
        numbers: impl Iterator<Item = u32>,
        terms: &mut Terms,
        ports: &mut Ports,
        fresh: &mut Fresh,
    ) -> Self {
        let mut group =
            Group { key, versions, rules: Vec::new(), by_term: HashMap::new(), by_name: HashMap::new(), pods: 0 };
        let versions = group.versions.clone();
        let direction = group.key.direction as usize;
        let written = versions.iter().flat_map(|version| {
            let rules = version.policy.rules[direction].iter().flatten();
            rules.map(|rule| (version.policy.rank.tier, rule))
        });
        for ((tier, rule), number) in written.zip(numbers) {
            let at = group.rules.len() as u32;
            for peers in rule.peers.iter().flatten() {
                let (term, new) = terms.acquire(peers, id);
                let rules = group.by_term.entry(term).or_default();
                if rules.last() != Some(&at) {
                    rules.push(at);
                }
                if new {
                    fresh.terms.push(term);
                }
            }
            let mut ranges = Vec::new();
            let mut names = Vec::new();
            for written in rule.ports.iter().flatten() {
                match written {
                    WrittenPorts::Range { protocol, first, last } => {
                        ranges.push(ports.acquire(range(*protocol, *first, *last)));
                    }
                    WrittenPorts::Named { protocol, name } if group.key.direction == Direction::Ingress => {
                        let own = group.key.names.iter().filter(|(known, of, _)| of == protocol && known == name);
                        ranges.extend(own.map(|(_, _, port)| ports.acquire(range(*protocol, *port, *port))));
                    }
                    WrittenPorts::Named { protocol, name } => names.push((name.clone(), *protocol)),
                }
            }
            names.sort();
            names.dedup();
            for name in &names {
                if terms.acquire_name(name, id) {
                    fresh.names.push(name.clone());
                }
                group.by_name.entry(name.clone()).or_default().push(at);
            }
            let ranges = rule.ports.is_some().then(|| ranges.into());
            group.rules.push(GroupRule { number, tier, action: rule.action, open: rule.peers.is_none(), ranges });
        }
        group
    }

    /// Gives back what [`Group::new`] took.
    pub fn release(&self, id: GroupId, terms: &mut Terms, ports: &mut Ports) {
        self.by_term.keys().for_each(|term| terms.release(*term, id));
        self.by_name.keys().for_each(|name| terms.release_name(name, id));
        self.rules.iter().flat_map(|rule| rule.ranges.iter().flatten()).for_each(|range| ports.release(*range));
    }

    /// The terms by which it tells peers apart.
    pub fn terms<'a>(&'a self, terms: &'a Terms) -> impl Iterator<Item = TermId> {
        self.by_term.keys().copied().chain(self.by_name.keys().flat_map(|name| terms.named(name)))
    }

    /// Some ClusterNetworkPolicy is among its policies. They stand in order, so one is first or last.
    fn has_tiers(&self) -> bool {
        let ends = [self.versions.first(), self.versions.last()];
        ends.into_iter().flatten().any(|version| version.policy.rank.tier != Tier::Namespaced)
    }

    /// What the namespaced tier does not allow, it denies.
    pub fn is_isolated(&self) -> bool {
        self.versions.iter().any(|version| version.policy.rank.tier == Tier::Namespaced)
    }

    /// To miss a peer could mean to allow it.
    pub fn denies(&self) -> bool {
        self.has_tiers() && self.rules.iter().any(|rule| rule.action != Action::Accept)
    }

    /// Rows for every peer: port class (or [`ANY`]) and what it says.
    pub fn for_everybody(&self, terms: &Terms, ports: &Ports) -> Vec<(PortClass, PolicyRow)> {
        if self.has_tiers() {
            return verdicts::for_everybody(self, terms, ports);
        }
        let mut best = Best::default();
        for (at, rule) in self.rules.iter().enumerate().filter(|(_, rule)| rule.open) {
            best.take(at as u32, &rule.ranges, ports);
        }
        self.numbered(best)
    }

    pub(super) fn touched<'a>(&'a self, class: &[TermId], terms: &'a Terms) -> Touched<'a> {
        let mut named: Vec<(&PortName, u16)> = Vec::new();
        let mut hit = Vec::new();
        for term in class {
            if let Some(rules) = self.by_term.get(term) {
                hit.extend(rules);
            }
            if !self.by_name.is_empty()
                && let Some(Term::Named(name, port)) = terms.get(*term)
                && self.by_name.contains_key(name)
            {
                named.push((name, *port));
            }
        }
        hit.sort_unstable();
        hit.dedup();
        Touched { rules: hit, named }
    }

    /// Rows for peers with just these terms, beyond those for everybody.
    pub fn for_class(&self, class: &[TermId], terms: &Terms, ports: &Ports) -> Vec<(PortClass, PolicyRow)> {
        if self.has_tiers() {
            return verdicts::for_class(self, class, terms, ports);
        }
        let Touched { rules: hit, named } = self.touched(class, terms);
        let mut best = Best::default();
        for at in &hit {
            best.take(*at, &self.rules[*at as usize].ranges, ports);
        }
        for (name, port) in named {
            for at in &self.by_name[name] {
                let rule = &self.rules[*at as usize];
                if (rule.open || hit.binary_search(at).is_ok())
                    && let Some(range) = ports.id(range(name.1, port, port))
                {
                    best.take(*at, &Some([range].into()), ports);
                }
            }
        }
        self.numbered(best)
    }

    fn numbered(&self, best: Best) -> Vec<(PortClass, PolicyRow)> {
        let row = |at: u32| PolicyRow { verdict: PolicyRow::ALLOW, rule: self.rules[at as usize].number };
        best.0.into_iter().map(|(class, at)| (class, row(at))).collect()
    }
}

/// The first rule for each port class.
#[derive(Default)]
struct Best(BTreeMap<PortClass, u32>);

impl Best {
    fn take(&mut self, rule: u32, ranges: &Option<Box<[RangeId]>>, ports: &Ports) {
        let mut add = |class| {
            let first = self.0.entry(class).or_insert(rule);
            *first = rule.min(*first);
        };
        match ranges {
            None => add(ANY),
            Some(ranges) => ranges.iter().flat_map(|range| ports.classes(*range)).for_each(|class| add(*class)),
        }
    }
}
