//! A cluster out of namespaces: nodes, their pods, and hosts outside, on one wire.
//!
//! ```text
//!   pod a      pod b                                 pod c
//!   eth0       eth0                                  eth0
//!    |          |                                     |
//!  [ kube-bridge .1 ]   node n1        node n2   [ kube-bridge .1 ]       ext
//!                        eth0           eth0                              eth0
//!                         |              |                                 |
//!                       [ br0 .......... the fabric, a namespace ......... ]
//! ```
//!
//! Nodes have the settings of a Kubernetes node (forwarding on, reverse path filter off, bridged traffic through
//! iptables). Pods have a default route to their bridge, as CNI gives it to them; nodes and hosts outside have none, so
//! that a packet for an address that nobody has programmed goes nowhere. No CNI plugin is involved.
//!
//! Names in the kernel: namespaces `PREFIX-NAME`; links inside a namespace need no prefix.

mod node;

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use anyhow::{Context, Result};
use ipnet::IpNet;

use crate::netns::Netns;

pub use node::{Node, NodeSpec, Pod};

/// Owns the wire and knows the nodes. Namespaces live as long as the lab or any handle to them.
#[derive(Debug)]
pub struct Lab {
    prefix: String,
    fabric: Netns,
    nodes: Vec<Node>,
}

impl Lab {
    /// An empty wire. The prefix keeps labs apart that live at the same time; at most eight characters.
    pub fn new(prefix: &str) -> Result<Lab> {
        let fabric = Netns::create(&format!("{prefix}-fabric"))?;
        // A fixed address, for a bridge takes the lowest of its ports'; no snooping, for nobody here sends the queries
        // that it needs.
        fabric.ip("link add br0 address 0a:00:00:00:00:01 type bridge mcast_snooping 0\nlink set br0 up\n")?;
        Ok(Lab { prefix: prefix.to_string(), fabric, nodes: Vec::new() })
    }

    /// `count` dual-stack nodes `n1`, `n2`, ... with routes between their pods. Node I has 192.168.10.(99+I) and
    /// fd00:10::(99+I), pods 10.244.I.0/24 and fd00:10:244:I::/64.
    pub fn cluster(prefix: &str, count: u8) -> Result<Lab> {
        let mut lab = Lab::new(prefix)?;
        for i in 1..=count {
            let last = 99 + i;
            lab.node(
                NodeSpec::new(&format!("n{i}"))
                    .address(&format!("192.168.10.{last}/24"))
                    .address(&format!("fd00:10::{last}/64"))
                    .pods(&format!("10.244.{i}.0/24"))
                    .pods(&format!("fd00:10:244:{i}::/64")),
            )?;
        }
        lab.route_pods()?;
        Ok(lab)
    }

    /// Adds a node.
    pub fn node(&mut self, spec: NodeSpec) -> Result<Node> {
        let node = Node::create(&self.prefix, &self.fabric, &spec).with_context(|| format!("node {}", spec.name))?;
        self.nodes.push(node.clone());
        Ok(node)
    }

    /// The nodes, in the order in which they were added.
    pub fn nodes(&self) -> &[Node] {
        &self.nodes
    }

    /// A host on the wire that is no node: it forwards nothing, has no pods and no routes beyond the wire. Addresses
    /// carry their prefix length. Give it a way to a service with `ns.ip("route add 10.96.0.0/12 via ...")`.
    pub fn outside(&self, name: &str, addresses: &[&str]) -> Result<Netns> {
        let ns = Netns::create(&format!("{}-{name}", self.prefix))?;
        let addresses = addresses.iter().map(|text| node::parse_net(text)).collect::<Result<Vec<IpNet>>>()?;
        node::plug(&self.fabric, &ns, name, "eth0", &addresses).with_context(|| format!("outside {name}"))?;
        Ok(ns)
    }

    /// A pod on a node, with these addresses (without prefix length: the node's pod CIDR has it). `None`: no address
    /// of that family.
    pub fn pod(&self, node: &Node, name: &str, ip4: Option<Ipv4Addr>, ip6: Option<Ipv6Addr>) -> Result<Pod> {
        Pod::create(&self.prefix, node, name, ip4, ip6).with_context(|| format!("pod {name}"))
    }

    /// A pod with host number `host` of each of its node's pod CIDRs: 5 gives 10.244.1.5 and fd00:10:244:1::5.
    pub fn pod_number(&self, node: &Node, name: &str, host: u8) -> Result<Pod> {
        let mut ip4 = None;
        let mut ip6 = None;
        for cidr in &node.pod_cidrs {
            match cidr.network() {
                IpAddr::V4(base) => ip4 = Some(Ipv4Addr::from_bits(base.to_bits() + u32::from(host))),
                IpAddr::V6(base) => ip6 = Some(Ipv6Addr::from_bits(base.to_bits() + u128::from(host))),
            }
        }
        self.pod(node, name, ip4, ip6)
    }

    /// Static routes from every node to every other node's pods.
    pub fn route_pods(&self) -> Result<()> {
        for from in &self.nodes {
            let mut batch = String::new();
            for to in self.nodes.iter().filter(|to| to.name != from.name) {
                for cidr in &to.pod_cidrs {
                    if let Some(via) = to.address(cidr.network().is_ipv4()) {
                        batch += &format!("route replace {cidr} via {via}\n");
                    }
                }
            }
            from.ns.ip(&batch)?;
        }
        Ok(())
    }
}
