//! Kinds of pods that no policy can tell apart, and parties outside the cluster.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

use ipnet::IpNet;

use super::Party;
use crate::{
    cluster::ClusterState,
    explain::{named, ports::Range},
    objects::{IpBlock, ObjectKey, Pod, Protocol},
};

#[derive(Clone, Debug)]
pub struct Kind {
    who: Who,
    /// Ports at which it may be asked, beside those that policies name.
    pub ports: BTreeSet<Range>,
}

#[derive(Clone, Debug)]
enum Who {
    /// At least one; each has an address.
    Pods(Vec<(ObjectKey, Vec<IpAddr>)>),
    Outside {
        name: String,
        address: IpAddr,
    },
}

impl Kind {
    pub fn namespace(&self) -> Option<&str> {
        match &self.who {
            Who::Pods(pods) => pods.first().map(|(key, _)| &*key.namespace),
            Who::Outside { .. } => None,
        }
    }

    /// Addresses of one that stands for all; of a second one where there is.
    pub fn addresses(&self, second: bool) -> Option<&[IpAddr]> {
        match &self.who {
            Who::Pods(pods) => pods.get(usize::from(second)).map(|(_, ips)| &**ips),
            Who::Outside { address, .. } if !second => Some(std::slice::from_ref(address)),
            Who::Outside { .. } => None,
        }
    }

    pub fn has_pods(&self) -> bool {
        matches!(self.who, Who::Pods(_))
    }

    /// Takes the other's pods in.
    pub fn join(&mut self, other: Kind) {
        if let (Who::Pods(own), Who::Pods(others)) = (&mut self.who, other.who) {
            own.extend(others);
            own.sort();
        }
    }

    pub fn named(&self) -> Party {
        match &self.who {
            Who::Outside { name, .. } => Party { name: name.clone(), namespace: None, pods: Vec::new() },
            Who::Pods(pods) => {
                let names: Vec<&str> = pods.iter().map(|(key, _)| &*key.name).collect();
                let namespace = self.namespace().unwrap_or_default().to_owned();
                let name = format!("{namespace}/{}", common(&names));
                let pods = pods.iter().map(|(key, _)| key.to_string()).collect();
                Party { name, namespace: Some(namespace), pods }
            }
        }
    }
}

/// `front-*` for what begins alike, else the first name.
fn common(names: &[&str]) -> String {
    let (first, last) = match names {
        [] => return String::new(),
        [only] => return (*only).to_owned(),
        [first, .., last] => (*first, *last),
    };
    // The names are ordered, so what the first and the last share all share.
    let shared = first.bytes().zip(last.bytes()).take_while(|(a, b)| a == b).count();
    match first[..shared].rfind('-') {
        Some(end) if end > 0 => format!("{}-*", &first[..end]),
        _ => format!("{first}, ..."),
    }
}

/// What policies can see of a pod.
type Look = (ObjectKey, Vec<(String, String)>, Vec<(String, Protocol, u16)>, BTreeSet<Range>, Vec<bool>);

/// Every party, pods by namespace and name first; and what was left out.
pub fn find(cluster: &ClusterState) -> (Vec<Kind>, Vec<String>) {
    let blocks = named::blocks(cluster);
    let mut kinds: BTreeMap<Look, Vec<(ObjectKey, Vec<IpAddr>)>> = BTreeMap::new();
    let (mut homeless, mut host) = (0, 0);
    for pod in cluster.pods().filter(|pod| !pod.completed) {
        if pod.host_network {
            host += 1;
            continue;
        }
        let ips: Vec<IpAddr> = pod.ips.iter().map(IpAddr::to_canonical).collect();
        if !ips.iter().any(|ip| cluster.pod_by_ip(*ip).is_some_and(|owner| owner.key == pod.key)) {
            homeless += 1;
            continue;
        }
        kinds.entry(look(cluster, pod, &blocks)).or_default().push((pod.key.clone(), ips));
    }
    let pods = kinds.into_iter().map(|((_, _, _, ports, _), pods)| Kind { who: Who::Pods(pods), ports });
    let mut found: Vec<Kind> = pods.collect();
    found.sort_by(|a, b| first_key(a).cmp(&first_key(b)));
    found.extend(outside(cluster, &blocks));
    let mut notes = Vec::new();
    if !found.iter().any(Kind::has_pods) {
        notes.push("there is no pod with an address of its own".to_owned());
    }
    if host > 0 {
        notes.push(format!("left out, as they use their node's network and no policy selects them: {host} pods"));
    }
    if homeless > 0 {
        notes.push(format!("left out, as they have no address of their own: {homeless} pods"));
    }
    (found, notes)
}

fn first_key(kind: &Kind) -> Option<&ObjectKey> {
    match &kind.who {
        Who::Pods(pods) => pods.first().map(|(key, _)| key),
        Who::Outside { .. } => None,
    }
}

fn look(cluster: &ClusterState, pod: &Pod, blocks: &[IpBlock]) -> Look {
    let mut named: Vec<_> = pod.ports.iter().map(|port| (port.name.to_string(), port.protocol, port.port)).collect();
    named.sort();
    let labels = pod.labels.iter().map(|(key, value)| (key.to_owned(), value.to_owned())).collect();
    let inside = pod.ips.iter().flat_map(|ip| blocks.iter().map(|block| contains(block, ip.to_canonical()))).collect();
    let namespace = ObjectKey::new(pod.key.namespace.clone(), "");
    (namespace, labels, named, named::ports_of_pod(cluster, pod), inside)
}

fn contains(block: &IpBlock, ip: IpAddr) -> bool {
    let inside = |text: &str| text.parse::<IpNet>().is_ok_and(|net| net.contains(&ip));
    inside(&block.cidr) && !block.except.iter().any(|hole| inside(hole))
}

/// Addresses for documents (RFC 5737, RFC 3849), which no pod has.
const NOBODY: [[u8; 4]; 3] = [[203, 0, 113, 251], [198, 51, 100, 251], [192, 0, 2, 251]];

/// One address for each set of blocks that some address is in.
fn outside(cluster: &ClusterState, blocks: &[IpBlock]) -> Vec<Kind> {
    let texts = blocks.iter().flat_map(|block| std::iter::once(&block.cidr).chain(&block.except));
    let nets = texts.filter_map(|text| text.parse::<IpNet>().ok());
    // The second address: the first of a network is seldom anybody's.
    let inside = nets.filter_map(|net| net.hosts().nth(1).or(Some(net.addr())));
    let mut found: Vec<(Vec<bool>, Kind)> = Vec::new();
    for ip in NOBODY.into_iter().map(IpAddr::from).chain(inside) {
        let set: Vec<bool> = blocks.iter().map(|block| contains(block, ip)).collect();
        if cluster.pod_by_ip(ip).is_some() || found.iter().any(|(known, _)| *known == set) {
            continue;
        }
        let around = blocks.iter().zip(&set).filter(|(_, inside)| **inside).map(|(block, _)| title(block));
        let around: Vec<String> = around.collect();
        let name = if around.is_empty() { "outside".to_owned() } else { around.join(" and ") };
        found.push((set, Kind { who: Who::Outside { name, address: ip }, ports: BTreeSet::new() }));
    }
    found.into_iter().map(|(_, kind)| kind).collect()
}

fn title(block: &IpBlock) -> String {
    if block.except.is_empty() {
        block.cidr.to_string()
    } else {
        format!("{} except {}", block.cidr, block.except.join(" "))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_many_pods() {
        for (names, expected) in [
            (vec!["front-1", "front-2"], "front-*"),
            (vec!["front-7d9-abc", "front-7d9-abd"], "front-7d9-*"),
            (vec!["a", "b"], "a, ..."),
            (vec!["cart"], "cart"),
        ] {
            assert_eq!(common(&names), expected);
        }
    }
}
