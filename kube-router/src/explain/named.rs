//! What can make a difference: ports and networks that a container, a Service or a policy names.
//!
//! Nothing is judged here. What is left out of these lists is judged with "every other port" and "outside"; so a policy
//! that is overlooked here is not wrong, but unseen.

use std::{collections::BTreeSet, net::IpAddr};

use super::ports::{Range, protocol_named};
use crate::{
    cluster::ClusterState,
    compile::policy::explain::is_about,
    objects::{
        ClusterNetworkPolicy, ClusterProtocol, ClusterRule, DestinationPort, IpBlock, NetworkPolicy, Pod, PolicyRule,
        PortRef, Protocol,
    },
};

/// Ports that the pod's containers name, and those at which services reach it.
pub fn ports_of_pod(cluster: &ClusterState, pod: &Pod) -> BTreeSet<Range> {
    let mut ranges: BTreeSet<Range> = pod.ports.iter().map(|port| (port.protocol, port.port, port.port)).collect();
    for service in cluster.services().filter(|service| service.key.namespace == pod.key.namespace) {
        for slice in cluster.slices_of(&service.key) {
            let here = |ip: &IpAddr| slice.endpoints.iter().any(|endpoint| endpoint.address == *ip);
            if pod.ips.iter().any(here) {
                let numbers = slice.ports.iter().filter_map(|port| Some((port.protocol, port.port?)));
                ranges.extend(numbers.map(|(protocol, port)| (protocol, port, port)));
            }
        }
    }
    ranges
}

/// Ports that policies about pods of a namespace name by number.
pub fn ports_of_policies(cluster: &ClusterState, namespace: &str) -> BTreeSet<Range> {
    let own = cluster.policies_in(namespace).flat_map(|policy| rules(policy).flat_map(ranges));
    let whole = cluster.cluster_policies().filter(|policy| is_about(cluster, policy, namespace));
    own.chain(whole.flat_map(|policy| cluster_rules(policy).flat_map(cluster_ranges))).collect()
}

/// Every block of addresses that a policy names.
pub fn blocks(cluster: &ClusterState) -> Vec<IpBlock> {
    let own = cluster.policies().flat_map(rules).flat_map(|rule| &rule.peers);
    let own = own.filter_map(|peer| peer.block.clone());
    let whole = cluster.cluster_policies().flat_map(cluster_rules).flat_map(|rule| &rule.peers);
    let networks = whole.filter_map(|peer| peer.networks.as_ref()).flatten();
    let whole = networks.map(|cidr| IpBlock { cidr: cidr.clone(), except: Box::default() });
    let mut blocks: Vec<IpBlock> = Vec::new();
    for block in own.chain(whole) {
        if !blocks.contains(&block) {
            blocks.push(block);
        }
    }
    blocks
}

fn rules(policy: &NetworkPolicy) -> impl Iterator<Item = &PolicyRule> {
    policy.ingress.iter().chain(&policy.egress)
}

fn cluster_rules(policy: &ClusterNetworkPolicy) -> impl Iterator<Item = &ClusterRule> {
    policy.ingress.iter().chain(&policy.egress)
}

fn ranges(rule: &PolicyRule) -> impl Iterator<Item = Range> {
    rule.ports.iter().filter_map(|port| {
        let protocol = protocol_named(port.protocol.as_deref().unwrap_or("tcp"))?;
        let Some(PortRef::Number(first)) = &port.port else { return None };
        range(protocol, *first, port.end_port.unwrap_or(*first))
    })
}

fn cluster_ranges(rule: &ClusterRule) -> impl Iterator<Item = Range> {
    rule.protocols.iter().flatten().flat_map(|written| {
        let ClusterProtocol { tcp, udp, sctp, named_port: _ } = written;
        [(Protocol::Tcp, tcp), (Protocol::Udp, udp), (Protocol::Sctp, sctp)].into_iter().filter_map(
            |(protocol, port)| match port.as_ref()? {
                DestinationPort { number: Some(number), range: None } => range(protocol, *number, *number),
                DestinationPort { number: None, range: Some((Some(first), Some(last))) } => {
                    range(protocol, *first, *last)
                }
                _ => None,
            },
        )
    })
}

fn range(protocol: Protocol, first: i64, last: i64) -> Option<Range> {
    let (first, last) = (u16::try_from(first).ok()?, u16::try_from(last).ok()?);
    (first > 0 && first <= last).then_some((protocol, first, last))
}
