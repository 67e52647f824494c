//! The packet-filter part of the proxy: a fixed ruleset that decides over sets, and the sets' elements.
//!
//! Rules never grow with services: each decision is one set look-up (VIP guard, SNAT after IPVS, hairpin).

use std::{fmt, net::IpAddr};

use ipnet::IpNet;

use super::VirtualKey;
use crate::objects::Protocol;

/// One element of the hairpin set: a pod that reaches itself through this address gets the address as its client.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Hairpin {
    pub pod: IpAddr,
    pub vip: IpAddr,
    pub protocol: Protocol,
    pub port: u16,
}

/// Our sets. Each exists once per address family.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum SetName {
    /// Addresses of the node (interfaces whose name does not contain dummy, kube or docker). ipset kube-router-local-ips.
    LocalIps,
    /// Address of every virtual server. ipset kube-router-svip.
    ServiceIps,
    /// Address, protocol and port of every virtual server. ipset kube-router-svip-prt. Also our written record of which
    /// virtual servers are ours.
    ServicePorts,
    /// Hairpin combinations; nftables only.
    Hairpins,
    /// Pod CIDRs of this node; nftables only.
    PodCidrs,
}

impl SetName {
    pub const ALL: [SetName; 5] =
        [SetName::LocalIps, SetName::ServiceIps, SetName::ServicePorts, SetName::Hairpins, SetName::PodCidrs];

    /// Name of the ipset that mirrors this set for people and tools (IPv6: with prefix `inet6:`), if there is one.
    pub fn ipset_name(self) -> Option<&'static str> {
        match self {
            SetName::LocalIps => Some("kube-router-local-ips"),
            SetName::ServiceIps => Some("kube-router-svip"),
            SetName::ServicePorts => Some("kube-router-svip-prt"),
            SetName::Hairpins | SetName::PodCidrs => None,
        }
    }

    /// Name of the nftables set, without its family suffix (`4` or `6`).
    pub fn nft_name(self) -> &'static str {
        match self {
            SetName::LocalIps => "local-ips",
            SetName::ServiceIps => "svip",
            SetName::ServicePorts => "svip-prt",
            SetName::Hairpins => "hairpin",
            SetName::PodCidrs => "pod-cidrs",
        }
    }
}

/// One element; the family follows from its address.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum SetElement {
    LocalIp(IpAddr),
    ServiceIp(IpAddr),
    ServicePort(VirtualKey),
    Hairpin(Hairpin),
    PodCidr(IpNet),
}

impl SetElement {
    pub fn set(&self) -> SetName {
        match self {
            SetElement::LocalIp(_) => SetName::LocalIps,
            SetElement::ServiceIp(_) => SetName::ServiceIps,
            SetElement::ServicePort(_) => SetName::ServicePorts,
            SetElement::Hairpin(_) => SetName::Hairpins,
            SetElement::PodCidr(_) => SetName::PodCidrs,
        }
    }

    pub fn address(&self) -> IpAddr {
        match self {
            SetElement::LocalIp(a) | SetElement::ServiceIp(a) => *a,
            SetElement::ServicePort(k) => k.address,
            SetElement::Hairpin(h) => h.vip,
            SetElement::PodCidr(n) => n.addr(),
        }
    }

    pub fn is_ipv6(&self) -> bool {
        self.address().is_ipv6()
    }
}

impl fmt::Display for SetElement {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            SetElement::LocalIp(a) | SetElement::ServiceIp(a) => write!(f, "{a}"),
            SetElement::ServicePort(k) => write!(f, "{},{}:{}", k.address, k.protocol, k.port),
            SetElement::Hairpin(h) => write!(f, "{} -> {},{}:{}", h.pod, h.vip, h.protocol, h.port),
            SetElement::PodCidr(n) => write!(f, "{n}"),
        }
    }
}

/// Whose source address is replaced after IPVS chose a destination.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Masquerade {
    /// Nobody's.
    #[default]
    Off,
    /// Connections that neither come from nor go to this node's pods (original: `--run-router`).
    OutsidePodCidrs,
    /// Every connection (original: `--masquerade-all`).
    All,
}

/// The choices that shape our chains. Two equal values produce byte-identical rules.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Ruleset {
    /// `--ipvs-permit-all`: install the guard in front of service addresses.
    pub guard: bool,
    pub masquerade: Masquerade,
    /// Source address for masquerading; `None` while the node's address of that family is not known or switched off.
    pub node_ipv4: Option<std::net::Ipv4Addr>,
    pub node_ipv6: Option<std::net::Ipv6Addr>,
}
