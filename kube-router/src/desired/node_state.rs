//! Everything this node should hold: the table of services and what follows from the node itself.

use std::{collections::BTreeSet, net::IpAddr};

use ipnet::IpNet;

use super::{Ruleset, SetElement, Table};

#[derive(Debug, Default)]
pub struct Desired {
    pub table: Table,
    pub ruleset: Ruleset,
    /// Addresses of the node itself (set kube-router-local-ips).
    pub local_ips: BTreeSet<IpAddr>,
    /// Pod CIDRs of this node that masquerading spares.
    pub pod_cidrs: BTreeSet<IpNet>,
    /// Source addresses of the VIPs' local routes.
    pub source_ipv4: Option<IpAddr>,
    pub source_ipv6: Option<IpAddr>,
}

impl Desired {
    /// The source that host processes use towards this VIP; `None` leaves the kernel's choice (the VIP itself).
    pub fn route_source(&self, vip: IpAddr) -> Option<IpAddr> {
        if vip.is_ipv4() { self.source_ipv4 } else { self.source_ipv6 }
    }

    pub fn wants_element(&self, element: &SetElement) -> bool {
        match element {
            SetElement::LocalIp(address) => self.local_ips.contains(address),
            SetElement::PodCidr(cidr) => self.pod_cidrs.contains(cidr),
            other => self.table.wants_element(other),
        }
    }

    /// Every element that follows from the node.
    pub fn node_elements(&self) -> impl Iterator<Item = SetElement> {
        let local = self.local_ips.iter().map(|address| SetElement::LocalIp(*address));
        let cidrs = self.pod_cidrs.iter().map(|cidr| SetElement::PodCidr(*cidr));
        local.chain(cidrs)
    }

    /// Every element of every set.
    pub fn elements(&self) -> impl Iterator<Item = SetElement> {
        self.node_elements().chain(self.table.elements())
    }
}
