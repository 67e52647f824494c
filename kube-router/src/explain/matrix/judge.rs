//! The verdict for a pair of parties, port by port.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

use super::{Outcome, PortOutcome, parties::Kind};
use crate::{
    cluster::ClusterState,
    compile::policy::model::{self, Judgement, Traffic},
    desired::policy::Direction,
    explain::{
        named,
        ports::{self, Range, slot_label},
        rules::{RuleName, source_name},
    },
    objects::Pod,
};

pub struct Judge<'a> {
    cluster: &'a ClusterState,
    reasons: Vec<String>,
    places: BTreeMap<String, usize>,
    /// Namespace -> ports that policies about its pods name.
    named: BTreeMap<&'a str, BTreeSet<Range>>,
}

impl<'a> Judge<'a> {
    pub fn new(cluster: &'a ClusterState) -> Self {
        Judge { cluster, reasons: Vec::new(), places: BTreeMap::new(), named: BTreeMap::new() }
    }

    pub fn into_reasons(self) -> Vec<String> {
        self.reasons
    }

    fn place(&mut self, reason: String) -> usize {
        if let Some(place) = self.places.get(&reason) {
            return *place;
        }
        self.reasons.push(reason.clone());
        self.places.insert(reason, self.reasons.len() - 1);
        self.reasons.len() - 1
    }

    fn named(&mut self, pod: &'a Pod) -> &BTreeSet<Range> {
        let cluster = self.cluster;
        let namespace = &*pod.key.namespace;
        self.named.entry(namespace).or_insert_with(|| named::ports_of_policies(cluster, namespace))
    }

    /// `None`: there is nothing to judge between two parties outside, or without addresses of one family.
    pub fn pair(&mut self, from: &Kind, to: &Kind, same: bool) -> Option<Outcome> {
        if !from.has_pods() && !to.has_pods() {
            return None;
        }
        let (Some(sources), Some(targets)) = (from.addresses(false), to.addresses(same)) else {
            return same.then(Outcome::itself);
        };
        let (source, target) = family(sources, targets)?;
        let (sender, receiver) = (self.cluster.pod_by_ip(source), self.cluster.pod_by_ip(target));
        let mut ranges = to.ports.clone();
        for pod in [sender, receiver].into_iter().flatten() {
            ranges.extend(self.named(pod));
        }
        let slots = ports::slots(&ranges);
        let ports = slots.iter().map(|slot| {
            let traffic = slot.traffic();
            let (egress, out) = self.end(sender, Direction::Egress, target, traffic);
            let (ingress, into) = self.end(receiver, Direction::Ingress, source, traffic);
            PortOutcome { port: slot_label(receiver, slot), allowed: out && into, egress, ingress }
        });
        Some(Outcome::of(ports.collect()))
    }

    fn end(&mut self, pod: Option<&Pod>, direction: Direction, peer: IpAddr, traffic: Traffic) -> (usize, bool) {
        let judgement = pod.map(|pod| model::judge(self.cluster, pod, direction, peer, traffic));
        let (text, allowed) = reason(self.cluster, direction, judgement.as_ref());
        (self.place(text), allowed)
    }
}

fn reason(cluster: &ClusterState, direction: Direction, judgement: Option<&Judgement>) -> (String, bool) {
    let word = direction.name();
    let Some(judgement) = judgement else { return (format!("{word}: not a pod"), true) };
    let verdict = if judgement.allowed { "allowed" } else { "denied" };
    let text = match judgement.rules.first() {
        Some(rule) => {
            let rule = RuleName::of_ref(cluster, rule);
            format!("{word}: {verdict} by {rule}: {}", rule.text)
        }
        None if judgement.allowed => format!("{word}: open, no policy isolates it"),
        None => {
            let names: Vec<String> = judgement.isolated_by.iter().map(source_name).collect();
            format!("{word}: denied, isolated by {}", names.join(", "))
        }
    };
    (text, judgement.allowed)
}

/// The first pair of one family.
fn family(sources: &[IpAddr], targets: &[IpAddr]) -> Option<(IpAddr, IpAddr)> {
    let pairs = targets.iter().flat_map(|target| sources.iter().map(move |source| (*source, *target)));
    pairs.into_iter().find(|(source, target)| source.is_ipv4() == target.is_ipv4())
}
