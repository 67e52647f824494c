//! A node, and a pod on it.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use anyhow::{Context, Result, ensure};
use ipnet::IpNet;

use crate::netns::Netns;
use crate::server::{Server, ServerSpec};

/// What a node should be.
#[derive(Clone, Debug)]
pub struct NodeSpec {
    pub name: String,
    interface: String,
    addresses: Vec<String>,
    pods: Vec<String>,
}

impl NodeSpec {
    /// Without addresses; its link on the wire is `eth0`.
    pub fn new(name: &str) -> NodeSpec {
        NodeSpec { name: name.to_string(), interface: "eth0".into(), addresses: Vec::new(), pods: Vec::new() }
    }

    /// One more address, with the wire's prefix length.
    pub fn address(mut self, address: &str) -> NodeSpec {
        self.addresses.push(address.to_string());
        self
    }

    /// One more pod CIDR; the bridge gets its first address.
    pub fn pods(mut self, cidr: &str) -> NodeSpec {
        self.pods.push(cidr.to_string());
        self
    }

    /// The name of the link on the wire.
    pub fn interface(mut self, name: &str) -> NodeSpec {
        self.interface = name.to_string();
        self
    }
}

/// A handle to a node.
#[derive(Clone, Debug)]
pub struct Node {
    pub name: String,
    pub ns: Netns,
    /// The link on the wire.
    pub interface: String,
    /// On the wire, with prefix length.
    pub addresses: Vec<IpNet>,
    pub pod_cidrs: Vec<IpNet>,
    links: Arc<AtomicU32>,
}

impl Node {
    pub(super) fn create(prefix: &str, fabric: &Netns, spec: &NodeSpec) -> Result<Node> {
        let nets = |texts: &[String]| texts.iter().map(|text| parse_net(text)).collect::<Result<Vec<IpNet>>>();
        let addresses = nets(&spec.addresses)?;
        let pod_cidrs: Vec<IpNet> = nets(&spec.pods)?.iter().map(IpNet::trunc).collect();
        let ns = Netns::create(&format!("{prefix}-{}", spec.name))?;
        for (key, value) in [
            ("net.ipv4.ip_forward", "1"),
            ("net.ipv4.conf.all.rp_filter", "0"),
            ("net.ipv4.conf.default.rp_filter", "0"),
            ("net.ipv6.conf.all.forwarding", "1"),
        ] {
            ns.sysctl(key, value)?;
        }
        for key in ["net.bridge.bridge-nf-call-iptables", "net.bridge.bridge-nf-call-ip6tables"] {
            ns.sysctl(key, "1").context("module br_netfilter is needed")?;
        }
        plug(fabric, &ns, &spec.name, &spec.interface, &addresses)?;
        // Fixed address: else the bridge takes the lowest of its ports' and every new pod can change it.
        let mut batch =
            "link add kube-bridge address 0a:00:00:00:00:02 type bridge mcast_snooping 0\nlink set kube-bridge up\n"
                .to_string();
        for cidr in &pod_cidrs {
            batch += &add_address(&net(first(cidr), cidr.prefix_len())?, "kube-bridge");
        }
        ns.ip(&batch)?;
        Ok(Node {
            name: spec.name.clone(),
            ns,
            interface: spec.interface.clone(),
            addresses,
            pod_cidrs,
            links: Arc::default(),
        })
    }

    /// The first address of a family.
    pub fn address(&self, ipv4: bool) -> Option<IpAddr> {
        self.addresses.iter().map(IpNet::addr).find(|address| address.is_ipv4() == ipv4)
    }

    /// The first IPv4 address; a panic for a node without one.
    pub fn ip4(&self) -> IpAddr {
        self.address(true).expect("this node was given an IPv4 address")
    }

    /// The first IPv6 address; a panic for a node without one.
    pub fn ip6(&self) -> IpAddr {
        self.address(false).expect("this node was given an IPv6 address")
    }
}

/// A handle to a pod.
#[derive(Clone, Debug)]
pub struct Pod {
    pub name: String,
    pub ns: Netns,
    pub node: Node,
    pub ip4: Option<Ipv4Addr>,
    pub ip6: Option<Ipv6Addr>,
    /// The node's end of its link.
    pub port: String,
}

impl Pod {
    pub(super) fn create(
        prefix: &str,
        node: &Node,
        name: &str,
        ip4: Option<Ipv4Addr>,
        ip6: Option<Ipv6Addr>,
    ) -> Result<Pod> {
        let ns = Netns::create(&format!("{prefix}-{name}"))?;
        let port = format!("veth{}", node.links.fetch_add(1, Ordering::Relaxed));
        let peer = node.ns.name();
        let mut batch =
            format!("link set lo up\nlink add eth0 type veth peer name {port} netns {peer}\nlink set eth0 up\n");
        for ip in [ip4.map(IpAddr::V4), ip6.map(IpAddr::V6)].into_iter().flatten() {
            let cidr = node.pod_cidrs.iter().find(|cidr| cidr.contains(&ip));
            let cidr = cidr.with_context(|| format!("{ip} is in no pod CIDR of node {}", node.name))?;
            batch += &add_address(&net(ip, cidr.prefix_len())?, "eth0");
            batch += &format!("route add default via {}\n", first(cidr));
        }
        // The node's end first: a default route by IPv6 wants a link that is up at both ends.
        let (setup, rest) = batch.split_at(batch.find("link set eth0 up").unwrap_or(batch.len()));
        ns.ip(setup)?;
        node.ns.ip(&format!("link set dev {port} master kube-bridge up\n"))?;
        ns.ip(rest)?;
        Ok(Pod { name: name.to_string(), ns, node: node.clone(), ip4, ip6, port })
    }

    /// Lets the bridge send a packet back out of the port it came from, as the CNI option `hairpinMode` does.
    pub fn hairpin(&self, on: bool) -> Result<()> {
        let word = if on { "on" } else { "off" };
        self.node.ns.ip(&format!("link set dev {} type bridge_slave hairpin {word}\n", self.port))
    }

    /// Serves on these ports, from threads of this process, until the handle is dropped.
    pub fn serve(&self, spec: ServerSpec) -> Result<Server> {
        let spec = ServerSpec { name: self.name.clone(), ip4: self.ip4, ip6: self.ip6, ..spec };
        self.ns.run(|| Server::start(spec))
    }
}

pub(super) fn parse_net(text: &str) -> Result<IpNet> {
    text.parse().with_context(|| format!("{text:?} is not ADDRESS/LENGTH"))
}

fn net(address: IpAddr, length: u8) -> Result<IpNet> {
    Ok(IpNet::new(address, length)?)
}

/// The gateway of a pod CIDR: its first address after the network's own.
fn first(cidr: &IpNet) -> IpAddr {
    match cidr.network() {
        IpAddr::V4(base) => IpAddr::V4(Ipv4Addr::from_bits(base.to_bits() + 1)),
        IpAddr::V6(base) => IpAddr::V6(Ipv6Addr::from_bits(base.to_bits() + 1)),
    }
}

fn add_address(address: &IpNet, link: &str) -> String {
    // Duplicate detection would keep an IPv6 address unusable for its first second.
    let quick = if address.addr().is_ipv6() { " nodad" } else { "" };
    format!("address add {address} dev {link}{quick}\n")
}

/// Connects a namespace to the wire.
pub(super) fn plug(fabric: &Netns, ns: &Netns, port: &str, link: &str, addresses: &[IpNet]) -> Result<()> {
    ensure!(port.len() <= 15, "{port}: longer than a link's name may be");
    fabric.ip(&format!("link add name {port} master br0 up type veth peer name {link} netns {}\n", ns.name()))?;
    let mut batch = format!("link set lo up\nlink set dev {link} up\n");
    for address in addresses {
        batch += &add_address(address, link);
    }
    ns.ip(&batch)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn gateway_is_the_first_address() {
        let gateway = |cidr: &str| first(&parse_net(cidr).expect("cidr").trunc()).to_string();
        assert_eq!(gateway("10.244.1.0/24"), "10.244.1.1");
        assert_eq!(gateway("10.2.3.0/25"), "10.2.3.1");
        assert_eq!(gateway("fd00:10:244:2::/64"), "fd00:10:244:2::1");
    }

    #[test]
    fn addresses_of_ipv6_skip_duplicate_detection() {
        let command = |text: &str| add_address(&parse_net(text).expect("net"), "eth0");
        assert_eq!(command("10.0.0.1/24"), "address add 10.0.0.1/24 dev eth0\n");
        assert_eq!(command("fd00::1/64"), "address add fd00::1/64 dev eth0 nodad\n");
    }
}
