//! From orders to rtnetlink requests, and what must be remembered between them.
//!
//! An order becomes one to four requests; [`Owner`] leads a refusal back to its order and says which errno is no error
//! for this request. [`Knowledge`] is what was last seen (or done) on kube-dummy-if: a deletion must name exactly what
//! it deletes, and addresses or routes of unusual form are known only from looking.

use std::{
    collections::{BTreeMap, HashMap},
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

use super::{
    table::{Address, LocalRoute},
    wire::{
        self, IPV6_USER_METRIC, RTM_DELADDR, RTM_DELLINK, RTM_DELROUTE, RTM_NEWADDR, RTM_NEWLINK, RTM_NEWROUTE,
        full_prefix,
    },
};
use crate::nl::{Batch, NLM_F_CREATE, NLM_F_EXCL, NLM_F_REPLACE};

/// Metric of the passing copy of an IPv6 route: above the kernel's 0, below ours.
const COVER_METRIC: u32 = 1;
const RTPROT_KERNEL: u8 = 2;
/// `RTPROT_UNSPEC`: of whatever protocol.
const ANY_PROTOCOL: u8 = 0;

const ALREADY_THERE: &[i32] = &[libc::EEXIST];
const NOT_THERE: &[i32] = &[libc::ESRCH, libc::ENODEV, libc::EADDRNOTAVAIL, libc::ENOENT];

/// Which order a request belongs to.
pub struct Owner {
    pub op: usize,
    /// Refusals that mean "it is so already".
    pub no_error: &'static [i32],
    pub adds_address: bool,
}

/// Requests under construction.
#[derive(Default)]
pub struct Orders {
    batch: Batch,
    owners: Vec<Owner>,
}

impl Orders {
    pub fn into_parts(self) -> (Batch, Vec<Owner>) {
        (self.batch, self.owners)
    }

    fn push(
        &mut self,
        op: usize,
        kind: u16,
        flags: u16,
        no_error: &'static [i32],
        body: &impl netlink_packet_core::Emitable,
    ) {
        self.batch.push(kind, flags, |bytes| wire::append(bytes, body));
        self.owners.push(Owner { op, no_error, adds_address: kind == RTM_NEWADDR });
    }

    pub fn ensure_dummy(&mut self, op: usize) {
        self.push(op, RTM_NEWLINK, NLM_F_CREATE, &[], &wire::dummy_up());
    }

    pub fn delete_dummy(&mut self, op: usize) {
        self.push(op, RTM_DELLINK, 0, NOT_THERE, &wire::dummy_by_name());
    }

    pub fn add_address(&mut self, op: usize, index: u32, vip: IpAddr) {
        let body = wire::address(index, vip, full_prefix(vip));
        self.push(op, RTM_NEWADDR, NLM_F_CREATE | NLM_F_EXCL, ALREADY_THERE, &body);
        if vip.is_ipv6() {
            self.push(op, RTM_DELROUTE, 0, NOT_THERE, &wire::ipv6_prefix_route(index, vip));
        }
    }

    /// Takes the address off, whatever its prefix length, and what local routes remain.
    pub fn delete_address(&mut self, op: usize, index: u32, vip: IpAddr, knowledge: &Knowledge) {
        let odd = knowledge.odd_prefixes.get(&vip).map_or(&[][..], Vec::as_slice);
        for prefix in odd.iter().copied().chain([full_prefix(vip)]) {
            self.push(op, RTM_DELADDR, 0, NOT_THERE, &wire::address(index, vip, prefix));
        }
        // The kernel took its own route along; one more is ours.
        self.delete_first_local_routes(op, index, vip, knowledge.routes_of(vip).len().max(1));
    }

    pub fn delete_local_routes(&mut self, op: usize, index: u32, vip: IpAddr, knowledge: &Knowledge) {
        // Ours and the kernel's own, unless more were seen.
        self.delete_first_local_routes(op, index, vip, knowledge.routes_of(vip).len().max(2));
    }

    fn delete_first_local_routes(&mut self, op: usize, index: u32, vip: IpAddr, count: usize) {
        for _ in 0..count {
            self.push(op, RTM_DELROUTE, 0, NOT_THERE, &wire::old_local_route(index, vip, None, 0, ANY_PROTOCOL));
        }
    }

    /// First half of setting a route: the wanted one comes in beside those that are there (`before`).
    ///
    /// IPv4 puts it in front of the others (NLM_F_CREATE alone). Not NLM_F_REPLACE: that would replace the first route
    /// to the VIP on whatever interface. IPv6 replaces the route of the same metric. `source` differs from `vip`;
    /// `None` asks for the kernel's own route.
    pub fn add_local_route(
        &mut self,
        op: usize,
        index: u32,
        vip: IpAddr,
        source: Option<IpAddr>,
        before: &[LocalRoute],
    ) {
        if vip.is_ipv4() {
            let body = wire::new_local_route(index, vip, Some(source.unwrap_or(vip)), 0);
            self.push(op, RTM_NEWROUTE, NLM_F_CREATE, ALREADY_THERE, &body);
        } else if source.is_some() || !before.iter().any(is_own_ipv6) {
            let body = wire::new_local_route(index, vip, source, 0);
            self.push(op, RTM_NEWROUTE, NLM_F_CREATE | NLM_F_REPLACE, &[], &body);
        }
    }

    /// Second half, for where the first was not refused: the other routes to the VIP go.
    pub fn remove_other_routes(
        &mut self,
        op: usize,
        index: u32,
        vip: IpAddr,
        source: Option<IpAddr>,
        before: &[LocalRoute],
    ) {
        if vip.is_ipv4() {
            self.remove_other_ipv4_routes(op, index, vip, source, before);
        } else {
            self.remove_other_ipv6_routes(op, index, vip, source, before);
        }
    }

    /// IPv4 tells routes apart by source, metric and protocol.
    fn remove_other_ipv4_routes(
        &mut self,
        op: usize,
        index: u32,
        vip: IpAddr,
        source: Option<IpAddr>,
        before: &[LocalRoute],
    ) {
        let own = LocalRoute::expected(vip, index, None, true);
        if source.is_some() {
            self.push(op, RTM_DELROUTE, 0, NOT_THERE, &wire::old_local_route(index, vip, Some(vip), 0, RTPROT_KERNEL));
        }
        let wanted = LocalRoute::expected(vip, index, source, false);
        for route in before.iter().filter(|route| **route != wanted && **route != own) {
            // The kernel's own has the VIP as source, a route made by hand may have none.
            let by_kernel = route.metric == 0 && route.protocol == RTPROT_KERNEL;
            let filter = route.source.or(by_kernel.then_some(vip));
            let body = wire::old_local_route(index, vip, filter, route.metric, route.protocol);
            self.push(op, RTM_DELROUTE, 0, NOT_THERE, &body);
        }
    }

    /// IPv6 tells routes apart by metric, but cannot name metric 0, which is the kernel's own.
    fn remove_other_ipv6_routes(
        &mut self,
        op: usize,
        index: u32,
        vip: IpAddr,
        source: Option<IpAddr>,
        before: &[LocalRoute],
    ) {
        let keep = if source.is_none() && before.iter().any(is_own_ipv6) { 0 } else { IPV6_USER_METRIC };
        for metric in before.iter().map(|route| route.metric).filter(|metric| *metric != 0 && *metric != keep) {
            self.push(op, RTM_DELROUTE, 0, NOT_THERE, &wire::old_local_route(index, vip, None, metric, ANY_PROTOCOL));
        }
        if source.is_some() {
            let cover = wire::new_local_route(index, vip, source, COVER_METRIC);
            self.push(op, RTM_NEWROUTE, NLM_F_CREATE | NLM_F_REPLACE, &[], &cover);
            self.delete_first_local_routes(op, index, vip, 1);
            let body = wire::old_local_route(index, vip, None, COVER_METRIC, ANY_PROTOCOL);
            self.push(op, RTM_DELROUTE, 0, NOT_THERE, &body);
        }
    }
}

fn is_own_ipv6(route: &LocalRoute) -> bool {
    route.source.is_none() && route.metric == 0
}

/// What is on kube-dummy-if, as last seen and changed since.
#[derive(Default)]
pub struct Knowledge {
    routes: HashMap<IpAddr, Vec<LocalRoute>>,
    /// Prefix lengths other than /32 and /128 (addresses put there by hand).
    odd_prefixes: HashMap<IpAddr, Vec<u8>>,
}

impl Knowledge {
    pub fn new(addresses: &[Address], routes: Vec<LocalRoute>, dummy: Option<u32>) -> Self {
        let mut knowledge = Knowledge::default();
        for address in addresses.iter().filter(|address| Some(address.link) == dummy) {
            if address.prefix != full_prefix(address.address) {
                knowledge.odd_prefixes.entry(address.address).or_default().push(address.prefix);
            }
        }
        for route in routes {
            knowledge.routes.entry(route.vip).or_default().push(route);
        }
        knowledge
    }

    fn routes_of(&self, vip: IpAddr) -> &[LocalRoute] {
        self.routes.get(&vip).map_or(&[], Vec::as_slice)
    }

    /// VIP to preferred source; the unspecified address where there is more than the one route of usual form.
    pub fn sources(&self) -> BTreeMap<IpAddr, Option<IpAddr>> {
        let source = |vip: &IpAddr, routes: &[LocalRoute]| match routes {
            [route] if route.is_regular() => route.source,
            _ if vip.is_ipv4() => Some(Ipv4Addr::UNSPECIFIED.into()),
            _ => Some(Ipv6Addr::UNSPECIFIED.into()),
        };
        self.routes.iter().map(|(vip, routes)| (*vip, source(vip, routes))).collect()
    }

    /// A fresh address brings a route of the kernel's own.
    pub fn address_added(&mut self, index: u32, vip: IpAddr) {
        let routes = self.routes.entry(vip).or_default();
        if routes.is_empty() {
            routes.push(LocalRoute::expected(vip, index, None, true));
        }
    }

    pub fn address_deleted(&mut self, vip: IpAddr) {
        self.routes.remove(&vip);
        self.odd_prefixes.remove(&vip);
    }

    /// Returns what was known before.
    pub fn route_set(&mut self, index: u32, vip: IpAddr, source: Option<IpAddr>) -> Vec<LocalRoute> {
        let now = LocalRoute::expected(vip, index, source, source.is_none());
        self.routes.insert(vip, vec![now]).unwrap_or_default()
    }

    pub fn restore(&mut self, vip: IpAddr, routes: Vec<LocalRoute>) {
        self.routes.insert(vip, routes);
    }

    pub fn routes_deleted(&mut self, vip: IpAddr) {
        self.routes.remove(&vip);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ip(text: &str) -> IpAddr {
        text.parse().expect("address")
    }

    fn known(routes: Vec<LocalRoute>) -> Knowledge {
        Knowledge::new(&[], routes, Some(7))
    }

    #[test]
    fn only_a_single_usual_route_reads_as_its_source() {
        let (vip4, vip6) = (ip("10.96.0.1"), ip("fd00::1"));
        let (node4, node6) = (ip("192.0.2.1"), ip("fd00:77::1"));
        let ours4 = LocalRoute::expected(vip4, 7, Some(node4), false);
        let own4 = LocalRoute::expected(vip4, 7, None, true);
        let ours6 = LocalRoute::expected(vip6, 7, Some(node6), false);
        let own6 = LocalRoute::expected(vip6, 7, None, true);
        let read = |routes: &[LocalRoute]| known(routes.to_vec()).sources();
        let entry = |vip: IpAddr, source: Option<IpAddr>| BTreeMap::from([(vip, source)]);
        assert_eq!(read(std::slice::from_ref(&ours4)), entry(vip4, Some(node4)));
        assert_eq!(read(std::slice::from_ref(&own4)), entry(vip4, None));
        assert_eq!(read(&[ours4, own4]), entry(vip4, Some(ip("0.0.0.0"))));
        assert_eq!(read(std::slice::from_ref(&ours6)), entry(vip6, Some(node6)));
        assert_eq!(read(&[own6.clone(), ours6]), entry(vip6, Some(ip("::"))));
        assert_eq!(read(&[LocalRoute { protocol: 3, ..own6 }]), entry(vip6, Some(ip("::"))));
    }

    #[test]
    fn every_request_knows_its_order() {
        let mut orders = Orders::default();
        let knowledge = Knowledge::default();
        orders.ensure_dummy(0);
        orders.add_address(1, 7, ip("fd00::1"));
        orders.add_local_route(2, 7, ip("10.96.0.1"), Some(ip("192.0.2.1")), &[]);
        orders.remove_other_routes(2, 7, ip("10.96.0.1"), Some(ip("192.0.2.1")), &[]);
        orders.delete_address(3, 7, ip("10.96.0.1"), &knowledge);
        let (batch, owners) = orders.into_parts();
        assert_eq!(batch.len(), owners.len());
        assert_eq!(owners.iter().map(|owner| owner.op).collect::<Vec<_>>(), [0, 1, 1, 2, 2, 3, 3]);
    }
}
