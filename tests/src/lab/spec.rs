//! What a node and a pod of the lab are: plain data.

use std::net::IpAddr;

use anyhow::{Context, Result};
use ipnet::IpNet;

use super::Namespace;

/// What to build for a node.
#[derive(Clone, Debug)]
pub struct NodeSpec {
    pub(super) name: String,
    pub(super) interface: String,
    pub(super) addresses: Vec<IpNet>,
    pub(super) pod_cidrs: Vec<IpNet>,
}

impl NodeSpec {
    /// Addresses with their prefix (`192.168.10.100/24`), pod CIDRs likewise; both families may be mixed.
    pub fn new(name: &str, addresses: &[&str], pod_cidrs: &[&str]) -> Result<NodeSpec> {
        Ok(NodeSpec {
            name: name.to_owned(),
            interface: "eth0".to_owned(),
            addresses: parse_all(addresses).with_context(|| format!("addresses of {name}"))?,
            pod_cidrs: parse_all(pod_cidrs).with_context(|| format!("pod CIDRs of {name}"))?,
        })
    }

    /// Name of its interface on the network between the nodes; `eth0` unless said otherwise.
    pub fn interface(mut self, interface: &str) -> NodeSpec {
        self.interface = interface.to_owned();
        self
    }
}

fn parse_all(texts: &[&str]) -> Result<Vec<IpNet>> {
    texts.iter().map(|text| text.parse().with_context(|| format!("{text:?}"))).collect()
}

/// A node that stands.
#[derive(Clone)]
pub struct Node {
    pub name: String,
    pub ns: Namespace,
    pub interface: String,
    pub addresses: Vec<IpNet>,
    pub pod_cidrs: Vec<IpNet>,
}

impl Node {
    /// Its first address of a family.
    pub fn address(&self, ipv4: bool) -> Option<IpAddr> {
        self.addresses.iter().map(IpNet::addr).find(|address| address.is_ipv4() == ipv4)
    }
}

/// A pod that stands.
#[derive(Clone)]
pub struct Pod {
    pub name: String,
    pub ns: Namespace,
    /// Name of its node.
    pub node: String,
    /// The node's end of its link: a port of the pod bridge.
    pub port: String,
    pub addresses: Vec<IpAddr>,
}

impl Pod {
    /// Its first address of a family.
    pub fn address(&self, ipv4: bool) -> Option<IpAddr> {
        self.addresses.iter().copied().find(|address| address.is_ipv4() == ipv4)
    }
}

/// The gateway of a pod CIDR: network address plus one.
pub fn first_address(cidr: &IpNet) -> IpAddr {
    match cidr {
        IpNet::V4(cidr) => IpAddr::V4((u32::from(cidr.network()) + 1).into()),
        IpNet::V6(cidr) => IpAddr::V6((u128::from(cidr.network()) + 1).into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_gateway_is_the_first_address() {
        for (cidr, gateway) in [("10.2.0.0/24", "10.2.0.1"), ("10.2.7.9/16", "10.2.0.1"), ("fd00:2::/64", "fd00:2::1")]
        {
            assert_eq!(first_address(&cidr.parse().unwrap()).to_string(), gateway, "{cidr}");
        }
    }

    #[test]
    fn an_address_needs_its_prefix() {
        assert!(NodeSpec::new("n", &["192.168.10.100"], &[]).is_err());
        assert!(NodeSpec::new("n", &["192.168.10.100/24"], &["10.2.0.0/24", "fd00::/64"]).is_ok());
    }
}
