//! The fixed cluster: who is where. Policies of the scenarios name these addresses, so they are part of the tables.
//!
//! | node | pods | IPv4 | IPv6 |
//! |---|---|---|---|
//! | n1 | x/a x/b y/a y/c z/b | `10.246.1.<namespace><pod>` | `fd00:10:246:1::<namespace><pod>` |
//! | n2 | x/c y/b z/a z/c | `10.246.2.<namespace><pod>` | `fd00:10:246:2::<namespace><pod>` |
//!
//! Both digits count from 1: x/a is 10.246.1.11, z/c is 10.246.2.33. Every namespace is on both nodes.

use std::net::{IpAddr, SocketAddr};

use crate::probe::Transport;

pub const NAMESPACES: [&str; 3] = ["x", "y", "z"];
pub const PODS: [&str; 9] = ["x/a", "x/b", "x/c", "y/a", "y/b", "y/c", "z/a", "z/b", "z/c"];
/// Number of each pod's node, from 1.
const NODES: [usize; 9] = [1, 1, 2, 1, 2, 1, 2, 1, 2];

/// What every pod serves. SCTP only where the kernel has it.
pub const PORTS: [(Transport, u16); 5] =
    [(Transport::Tcp, 80), (Transport::Tcp, 81), (Transport::Udp, 80), (Transport::Udp, 81), (Transport::Sctp, 80)];

/// Pods that tell when the agents have taken in a change: one on each node, in a namespace of their own.
pub const BEACONS: [&str; 2] = ["beacon-1", "beacon-2"];
pub const BEACON_NAMESPACE: &str = "beacon";

pub fn pod(name: &str) -> Option<usize> {
    PODS.iter().position(|pod| *pod == name)
}

pub fn node_of(pod: usize) -> usize {
    NODES[pod]
}

/// `x` and `a`.
pub fn names(pod: usize) -> (&'static str, &'static str) {
    PODS[pod].split_once('/').unwrap_or((PODS[pod], ""))
}

/// The pod's name in the lab and in its answers.
pub fn lab_name(pod: usize) -> String {
    PODS[pod].replace('/', "-")
}

pub fn address(pod: usize, ipv4: bool) -> IpAddr {
    numbered(NODES[pod], 10 * (pod / 3 + 1) + pod % 3 + 1, ipv4)
}

/// The decimal digits of `last` are the last ones of the address.
pub fn numbered(node: usize, last: usize, ipv4: bool) -> IpAddr {
    let text = if ipv4 { format!("10.246.{node}.{last}") } else { format!("fd00:10:246:{node}::{last}") };
    text.parse().unwrap_or_else(|_| unreachable!("{text} is an address"))
}

pub fn beacon(node: usize, ipv4: bool) -> IpAddr {
    numbered(node, 250, ipv4)
}

pub fn node_address(node: usize, ipv4: bool) -> IpAddr {
    let text = if ipv4 { format!("192.168.79.{node}") } else { format!("fd00:79::{node}") };
    text.parse().unwrap_or_else(|_| unreachable!("{text} is an address"))
}

/// The cluster IP of the service in front of one pod.
pub fn cluster_ip(pod: usize, ipv4: bool) -> IpAddr {
    let last = 10 * (pod / 3 + 1) + pod % 3 + 1;
    let text = if ipv4 { format!("10.96.2.{last}") } else { format!("fd00:10:96::2:{last}") };
    text.parse().unwrap_or_else(|_| unreachable!("{text} is an address"))
}

/// Ports of the services differ from those of the pods: a policy is about the pod's.
pub fn service_port(port: usize) -> u16 {
    8000 + PORTS[port].1
}

pub fn node_port(pod: usize, port: usize) -> u16 {
    30_100 + 10 * pod as u16 + port as u16
}

pub fn socket(pod: usize, port: usize, ipv4: bool) -> SocketAddr {
    SocketAddr::new(address(pod, ipv4), PORTS[port].1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_say_who_and_where() {
        let of = |name| address(pod(name).unwrap(), true).to_string();
        assert_eq!((of("x/a"), of("z/c")), ("10.246.1.11".into(), "10.246.2.33".into()));
        assert_eq!(address(pod("y/b").unwrap(), false).to_string(), "fd00:10:246:2::22");
        for namespace in 0..3 {
            let nodes: Vec<usize> = (0..3).map(|pod| node_of(3 * namespace + pod)).collect();
            assert!(nodes.contains(&1) && nodes.contains(&2), "every namespace is on both nodes");
        }
    }
}
