//! One packet, judged at both ends: the model's word, the rule that has it, and what the agent wants the kernel to say.

use std::{collections::BTreeSet, net::IpAddr};

use super::{
    answer::{End, Spot, State, Via, Way},
    rules::{RuleName, source_name},
    walk::{Walk, walk},
};
use crate::{
    cluster::ClusterState,
    compile::policy::{
        address_of,
        explain::{Explanation, explain},
        model::Traffic,
    },
    desired::policy::Direction,
    objects::{ObjectKey, Pod},
    plan::adopt::Numbered,
};

/// What is known of the node that answers.
#[derive(Clone, Copy, Default)]
pub struct Here<'a> {
    pub node: &'a str,
    /// Every address of this node.
    pub addresses: Option<&'a BTreeSet<IpAddr>>,
    /// Of a running agent: what the kernel's tables should say is told beside the verdicts.
    pub compiler: Option<Numbered<'a>>,
}

/// A new flow's first one.
#[derive(Clone, Copy, Debug)]
pub struct Packet {
    pub from: IpAddr,
    pub to: IpAddr,
    pub traffic: Traffic,
}

/// Judges it; label and service are passed on.
pub fn verdict(cluster: &ClusterState, here: Here<'_>, packet: Packet, label: String, via: Option<Via>) -> Way {
    let Packet { from, to, traffic } = packet;
    let (sender, receiver) = (cluster.pod_by_ip(from), cluster.pod_by_ip(to));
    let host = receiver.map(|pod| node_addresses(cluster, here, pod)).unwrap_or_default();
    let explanation = explain(cluster, &host, from, to, traffic);
    let itself = sender.is_some() && sender.map(|pod| &pod.key) == receiver.map(|pod| &pod.key);
    let end = |direction| end(cluster, here, &explanation, direction, itself);
    let (egress, ingress) = (end(Direction::Egress), end(Direction::Ingress));
    Way {
        from: Spot { address: from, pod: sender.map(|pod| pod.key.clone()) },
        to: Spot { address: to, pod: receiver.map(|pod| pod.key.clone()) },
        traffic: match traffic {
            Traffic::Port(protocol, port) => format!("{protocol}/{port}"),
            Traffic::Portless => "icmp".to_owned(),
        },
        label,
        via,
        allowed: egress.state.passes() && ingress.state.passes(),
        egress,
        ingress,
    }
}

fn end(cluster: &ClusterState, here: Here<'_>, explanation: &Explanation, direction: Direction, itself: bool) -> End {
    let Explanation { from, to, traffic, .. } = *explanation;
    let (judged, own, peer) = match direction {
        Direction::Egress => (&explanation.egress, from, to),
        Direction::Ingress => (&explanation.ingress, to, from),
    };
    let state = match judged {
        None => State::NoPod,
        Some(_) if itself => State::Itself,
        Some(_) if direction == Direction::Ingress && explanation.from_own_node => State::OwnNode,
        Some((_, judgement)) if !judgement.allowed => State::Denied,
        Some((_, judgement)) if judgement.rules.is_empty() => State::Open,
        Some(_) => State::Allowed,
    };
    let (pod, judgement) = match judged {
        Some((pod, judgement)) => (Some(pod), Some(judgement).filter(|_| !itself)),
        None => (None, None),
    };
    let rules = judgement.into_iter().flat_map(|judgement| &judgement.rules);
    let mut rules = rules.map(|rule| RuleName::of_ref(cluster, rule));
    let isolated_by = judgement.into_iter().flat_map(|judgement| &judgement.isolated_by);
    End {
        direction,
        state,
        pod: pod.cloned(),
        isolated_by: isolated_by.map(source_name).collect(),
        rule: rules.next(),
        also: rules.collect(),
        wanted: pod.filter(|_| !itself).and_then(|pod| wanted(here, pod, direction, own, peer, traffic)),
    }
}

/// `None`: no pod of this node, or nobody compiles here.
fn wanted(
    here: Here<'_>,
    pod: &ObjectKey,
    direction: Direction,
    own: IpAddr,
    peer: IpAddr,
    traffic: Traffic,
) -> Option<Walk> {
    let compiler = here.compiler?;
    compiler.compiler.pod_number(pod)?;
    let Ok(walk) = walk(&compiler, direction, address_of(own), address_of(peer), traffic);
    Some(walk)
}

fn node_addresses(cluster: &ClusterState, here: Here<'_>, pod: &Pod) -> BTreeSet<IpAddr> {
    let Some(name) = pod.node.as_deref() else { return BTreeSet::new() };
    let node = cluster.node(name);
    let told = node.into_iter().flat_map(|node| node.internal_ips.iter().chain(&node.external_ips)).copied();
    let own = here.addresses.filter(|_| here.node == name).into_iter().flatten().copied();
    told.chain(own).map(|ip| ip.to_canonical()).collect()
}
