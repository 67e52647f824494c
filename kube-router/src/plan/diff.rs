//! Key by key: what is wanted against what is there. Collects orders into the stages of a plan.

use std::{collections::BTreeSet, net::IpAddr};

use super::{Backend, FirewallOp, Guard, IpvsOp, NetOp, Observed, Plan, Spared, Stage, UdpFlow};
use crate::{
    desired::{Desired, SetElement, SetName, Virtual, VirtualKey},
    objects::Protocol,
};

pub struct Builder<'a> {
    desired: &'a Desired,
    observed: &'a Observed,
    guard: Guard<'a>,
    ruleset: Vec<FirewallOp>,
    /// Opening elements go in the order: the port first, then the address that makes the guard look.
    add_elements: BTreeSet<(u8, SetElement)>,
    ipvs_make: Vec<IpvsOp>,
    ipvs_add: Vec<IpvsOp>,
    ipvs_close: Vec<IpvsOp>,
    net_add: Vec<NetOp>,
    shut_elements: BTreeSet<SetElement>,
    ipvs_delete: Vec<IpvsOp>,
    net_delete: Vec<NetOp>,
    delete_elements: BTreeSet<SetElement>,
    flows: Vec<UdpFlow>,
}

impl<'a> Builder<'a> {
    pub fn new(desired: &'a Desired, observed: &'a Observed, guard: Guard<'a>) -> Self {
        Builder {
            desired,
            observed,
            guard,
            ruleset: Vec::new(),
            add_elements: BTreeSet::new(),
            ipvs_make: Vec::new(),
            ipvs_add: Vec::new(),
            ipvs_close: Vec::new(),
            net_add: Vec::new(),
            shut_elements: BTreeSet::new(),
            ipvs_delete: Vec::new(),
            net_delete: Vec::new(),
            delete_elements: BTreeSet::new(),
            flows: Vec::new(),
        }
    }

    /// Tables, chains and sets. An incomplete view creates them but does not reshape what works.
    pub fn ruleset(&mut self) {
        let firewall = &self.observed.firewall;
        if !firewall.ipsets_exist {
            self.ruleset.push(FirewallOp::EnsureIpsets);
        }
        let known = self.guard.deletions && self.guard.spared.is_none_or(|spared| !spared.ruleset);
        let reshape = firewall.ruleset.as_ref() != Some(&self.desired.ruleset) && known;
        if reshape || firewall.ruleset.is_none() {
            self.ruleset.push(FirewallOp::SetRuleset(self.desired.ruleset.clone()));
        }
    }

    fn may_go(&self, is_spared: impl FnOnce(&Spared) -> bool) -> bool {
        self.guard.deletions && !self.guard.spared.is_some_and(is_spared)
    }

    pub fn link(&mut self) {
        if !self.observed.net.dummy_up {
            self.net_add.insert(0, NetOp::EnsureDummy);
        }
    }

    pub fn server(&mut self, key: &VirtualKey) {
        let wanted = self.desired.table.server(key).map(|(_, frontend)| &frontend.server);
        match (wanted, self.observed.ipvs.servers.get(key)) {
            (None, None) => {}
            (Some(wanted), None) => {
                self.ipvs_make.push(IpvsOp::AddServer { key: *key, server: attributes(wanted) });
                self.destinations(key, wanted, &Virtual::default());
            }
            (Some(wanted), Some(there)) => {
                if !same_attributes(wanted, there) {
                    self.ipvs_add.push(IpvsOp::EditServer { key: *key, server: attributes(wanted) });
                }
                self.destinations(key, wanted, there);
            }
            (None, Some(there)) => {
                let excluded = self.guard.excluded.iter().any(|cidr| cidr.contains(&key.address));
                if self.may_go(|spared| spared.server(key)) && !excluded {
                    self.ipvs_delete.push(IpvsOp::DeleteServer { key: *key });
                    self.flush(key, there.destinations.keys().copied());
                }
            }
        }
    }

    /// Adds, then edits, then removals, so that a server never runs out of destinations on the way.
    fn destinations(&mut self, key: &VirtualKey, wanted: &Virtual, there: &Virtual) {
        let key = *key;
        for (destination, weight) in &wanted.destinations {
            if !there.destinations.contains_key(destination) {
                self.ipvs_add.push(IpvsOp::AddDestination { key, destination: *destination, weight: *weight });
            }
        }
        for (destination, weight) in &wanted.destinations {
            if there.destinations.get(destination).is_some_and(|current| current != weight) {
                self.ipvs_add.push(IpvsOp::EditDestination { key, destination: *destination, weight: *weight });
            }
        }
        if !self.guard.deletions {
            return;
        }
        for (destination, weight) in &there.destinations {
            if wanted.destinations.contains_key(destination)
                || !self.may_go(|spared| spared.destination(&key, destination))
            {
                continue;
            }
            match self.guard.drained {
                Some(drained) if !drained.contains(&(key, *destination)) => {
                    if *weight != 0 {
                        self.ipvs_close.push(IpvsOp::EditDestination { key, destination: *destination, weight: 0 });
                    }
                }
                _ => {
                    self.ipvs_close.push(IpvsOp::DeleteDestination { key, destination: *destination });
                    self.flush(&key, std::iter::once(*destination));
                }
            }
        }
    }

    fn flush(&mut self, key: &VirtualKey, destinations: impl Iterator<Item = crate::desired::Destination>) {
        if key.protocol == Protocol::Udp {
            self.flows.extend(destinations.map(|destination| UdpFlow { server: *key, destination }));
        }
    }

    /// A virtual server bound to a firewall mark is nobody we know: the original removes it, and so do we.
    pub fn foreign_mark(&mut self, (mark, ipv6): (u32, bool)) {
        if self.guard.deletions {
            self.ipvs_delete.push(IpvsOp::DeleteMarkServer { mark, ipv6 });
        }
    }

    pub fn vip(&mut self, address: IpAddr) {
        let net = &self.observed.net;
        let bound = net.dummy_addresses.contains(&address);
        if self.desired.table.wants_vip(&address) {
            let source = self.desired.route_source(address);
            if !bound {
                self.net_add.push(NetOp::AddAddress(address));
            }
            // A fresh address comes with the kernel's own route, so it always needs ours.
            if source.is_some() && (!bound || net.local_routes.get(&address) != Some(&source)) {
                self.net_add.push(NetOp::SetLocalRoute { vip: address, source });
            }
        } else if self.may_go(|spared| spared.address(&address)) {
            if bound {
                self.net_delete.push(NetOp::DeleteAddress(address));
            }
            // The kernel takes its own route away with the address, but not ours.
            if net.local_routes.get(&address).is_some_and(|source| !(bound && *source == Some(address))) {
                self.net_delete.push(NetOp::DeleteLocalRoute { vip: address });
            }
        }
    }

    pub fn element(&mut self, element: SetElement) {
        let wanted = self.desired.wants_element(&element);
        let mut homes = [Backend::Nft, Backend::Ipset].into_iter().filter(|backend| has_home(*backend, &element));
        if homes.all(|backend| self.holds(backend, &element) == wanted) {
            return;
        }
        if wanted {
            let rank = u8::from(element.set() == SetName::ServiceIps);
            self.add_elements.insert((rank, element));
        } else if self.may_go(|spared| spared.element(&element)) {
            if element.set() == SetName::ServicePorts {
                self.shut_elements.insert(element);
            } else {
                self.delete_elements.insert(element);
            }
        }
    }

    /// The two homes of an element that lack it.
    fn adds(&self) -> Vec<FirewallOp> {
        let mut ops = Vec::new();
        for backend in [Backend::Ipset, Backend::Nft] {
            for (_, element) in &self.add_elements {
                if has_home(backend, element) && !self.holds(backend, element) {
                    ops.push(FirewallOp::AddElement(backend, *element));
                }
            }
        }
        ops
    }

    fn deletes(&self, elements: &BTreeSet<SetElement>) -> Vec<FirewallOp> {
        let mut ops = Vec::new();
        for backend in [Backend::Nft, Backend::Ipset] {
            for element in elements {
                if self.holds(backend, element) {
                    ops.push(FirewallOp::DeleteElement(backend, *element));
                }
            }
        }
        ops
    }

    fn holds(&self, backend: Backend, element: &SetElement) -> bool {
        match backend {
            Backend::Nft => self.observed.firewall.nft.contains(element),
            Backend::Ipset => self.observed.firewall.ipset.contains(element),
        }
    }

    pub fn finish(mut self) -> Plan {
        let mut opening = std::mem::take(&mut self.ruleset);
        opening.append(&mut self.adds());
        let (shut, delete) = (self.deletes(&self.shut_elements), self.deletes(&self.delete_elements));
        let mut stages = vec![
            Stage::Firewall(opening),
            Stage::Ipvs(self.ipvs_make),
            Stage::Ipvs(self.ipvs_add),
            Stage::Ipvs(self.ipvs_close),
            Stage::Net(self.net_add),
            Stage::Firewall(shut),
            Stage::Ipvs(self.ipvs_delete),
            Stage::Net(self.net_delete),
            Stage::Firewall(delete),
            Stage::Conntrack(self.flows),
        ];
        stages.retain(|stage| !stage.is_empty());
        Plan { stages }
    }
}

/// Whether the element's set exists in this backend at all.
fn has_home(backend: Backend, element: &SetElement) -> bool {
    backend == Backend::Nft || element.set().ipset_name().is_some()
}

fn same_attributes(a: &Virtual, b: &Virtual) -> bool {
    a.scheduler == b.scheduler && a.sched_flags == b.sched_flags && a.persistence_s == b.persistence_s
}

fn attributes(server: &Virtual) -> Virtual {
    Virtual {
        scheduler: server.scheduler,
        sched_flags: server.sched_flags,
        persistence_s: server.persistence_s,
        destinations: Default::default(),
    }
}
