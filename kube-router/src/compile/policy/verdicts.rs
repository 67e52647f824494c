//! Rows of a group that has tiers: some ClusterNetworkPolicy speaks of its pods.
//!
//! ```text
//! Admin rules in order ──> Accept, Deny: done          Pass, nothing matches ──.
//! isolated by NetworkPolicy? ──> yes: what its rules allow, nothing else        <'
//! Baseline rules in order ──> Accept, Deny: done       Pass, nothing matches ──> allowed
//! ```
//!
//! The answer is worked out here for every port class that the rules tell apart and written down where the four lookups
//! find it first. Rows deny, too. A class whose rest of ports is like everybody's has rows where it differs; any other
//! has a row for its rest, and so nothing more general shows through.
//!
//! A packet without ports (another protocol, a later fragment whose first one nobody saw) could be any port's as far as a
//! rule can tell: to a Deny that names ports it belongs, to an Accept or Pass that names ports it does not. So nothing gets
//! around a Deny by leaving its ports out. [`PORTLESS`] has rows like any port class.

use std::collections::{BTreeMap, BTreeSet};

use kube_router_common::policy::{ANY, PORTLESS, PolicyRow};

use super::{
    lower::{Group, GroupRule},
    normalize::Action,
    ports::{PortClass, Ports, range},
    terms::{TermId, Terms},
};
use crate::desired::policy::Tier;

const ALLOWED: PolicyRow = PolicyRow { verdict: PolicyRow::ALLOW, rule: 0 };
const DENIED: PolicyRow = PolicyRow { verdict: PolicyRow::DENY, rule: 0 };

/// A rule whose peers match, with the port classes that it names.
struct Hit<'a> {
    rule: &'a GroupRule,
    at: usize,
    /// By number.
    ports: BTreeSet<PortClass>,
    /// By a name that these peers have.
    named: BTreeSet<PortClass>,
}

impl Hit<'_> {
    /// `port` is a class, [`PORTLESS`], or [`ANY`] for those that no rule names.
    fn matches(&self, port: PortClass) -> bool {
        match (&self.rule.ranges, port) {
            (None, _) => true,
            (Some(_), PORTLESS) => {
                self.rule.action == Action::Deny && !(self.ports.is_empty() && self.named.is_empty())
            }
            (Some(_), port) => self.ports.contains(&port) || self.named.contains(&port),
        }
    }
}

/// Verdicts of one class of peers.
struct Answers {
    /// Port classes with another answer than the rest.
    special: BTreeMap<PortClass, PolicyRow>,
    rest: PolicyRow,
}

impl Answers {
    fn at(&self, port: PortClass) -> PolicyRow {
        self.special.get(&port).copied().unwrap_or(self.rest)
    }
}

/// Rows for every peer.
pub fn for_everybody(group: &Group, terms: &Terms, ports: &Ports) -> Vec<(PortClass, PolicyRow)> {
    let Answers { special, rest } = answers(group, &hits(group, &[], terms, ports));
    // Without a row it is denied, too.
    special.into_iter().chain((rest != DENIED).then_some((ANY, rest))).collect()
}

/// Rows for peers with just these terms.
pub fn for_class(group: &Group, class: &[TermId], terms: &Terms, ports: &Ports) -> Vec<(PortClass, PolicyRow)> {
    let answers_of = |class: &[TermId]| answers(group, &hits(group, class, terms, ports));
    let (own, everybody) = (answers_of(class), answers_of(&[]));
    if own.rest != everybody.rest {
        return own.special.into_iter().chain([(ANY, own.rest)]).collect();
    }
    let named: BTreeSet<PortClass> = own.special.keys().chain(everybody.special.keys()).copied().collect();
    named.into_iter().filter(|port| own.at(*port) != everybody.at(*port)).map(|port| (port, own.at(port))).collect()
}

fn hits<'a>(group: &'a Group, class: &[TermId], terms: &Terms, ports: &Ports) -> Vec<Hit<'a>> {
    let touched = group.touched(class, terms);
    let mut hits = Vec::new();
    for (at, rule) in group.rules.iter().enumerate() {
        if !rule.open && touched.rules.binary_search(&(at as u32)).is_err() {
            continue;
        }
        let numbers = rule.ranges.iter().flatten().flat_map(|range| ports.classes(*range).iter().copied());
        let mut named = BTreeSet::new();
        for (name, port) in &touched.named {
            if group.by_name[*name].contains(&(at as u32))
                && let Some(range) = ports.id(range(name.1, *port, *port))
            {
                named.extend(ports.classes(range));
            }
        }
        hits.push(Hit { rule, at, ports: numbers.collect(), named });
    }
    hits
}

fn answers(group: &Group, hits: &[Hit<'_>]) -> Answers {
    let rest = answer(group, hits, ANY);
    let named: BTreeSet<PortClass> = hits.iter().flat_map(|hit| hit.ports.iter().chain(&hit.named)).copied().collect();
    let all = named.into_iter().chain([PORTLESS]).map(|port| (port, answer(group, hits, port)));
    Answers { special: all.filter(|(_, row)| *row != rest).collect(), rest }
}

fn answer(group: &Group, hits: &[Hit<'_>], port: PortClass) -> PolicyRow {
    let in_tier = |tier| hits.iter().filter(move |hit| hit.rule.tier == tier && hit.matches(port));
    let decides = |tier| {
        let hit: &Hit<'_> = in_tier(tier).next()?;
        let verdict = match hit.rule.action {
            Action::Accept => PolicyRow::ALLOW,
            Action::Deny => PolicyRow::DENY,
            Action::Pass => return None,
        };
        Some(PolicyRow { verdict, rule: hit.rule.number })
    };
    // As without tiers, the rule that names the most counts.
    let allows = || {
        let rank = |hit: &&Hit<'_>| (hit.rule.open && !hit.named.contains(&port), hit.rule.ranges.is_none(), hit.at);
        let best = in_tier(Tier::Namespaced).min_by_key(rank);
        best.map_or(DENIED, |hit| PolicyRow { verdict: PolicyRow::ALLOW, rule: hit.rule.number })
    };
    let namespaced = || group.is_isolated().then(allows);
    decides(Tier::Admin).or_else(namespaced).or_else(|| decides(Tier::Baseline)).unwrap_or(ALLOWED)
}
