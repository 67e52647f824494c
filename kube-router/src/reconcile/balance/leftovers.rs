//! Backends that no row of a virtual server names, and what becomes of them.
//!
//! Flows that began on the fast path go on when their virtual server leaves it, and with them the numbers of their
//! backends. After a restart it is not known any more which virtual server that was; a destination that no virtual server
//! has lets go of them then.

use std::collections::BTreeSet;

use kube_router_common::balance::Backend;

use super::{Balancer, RETRIES, View};
use crate::{
    compile::{policy::address_of, rings::DestinationList},
    desired::{Destination, balance::BalanceTables},
    plan::{balance::BalanceOrder, numbers::Place},
};

pub fn place(destination: &Destination) -> Place {
    (address_of(destination.ip()), destination.port())
}

pub fn destinations(list: &DestinationList) -> BTreeSet<Place> {
    list.as_slice().iter().map(|listed| place(&listed.destination)).collect()
}

impl Balancer {
    pub(super) fn nameless(&self, tables: &BalanceTables, view: &View<'_>) -> Vec<BalanceOrder> {
        let nameless = self.numbers.nameless();
        let Some(ipvs) = view.ipvs.filter(|_| !nameless.is_empty()) else { return Vec::new() };
        let there: BTreeSet<Place> = ipvs.lists.values().flat_map(destinations).collect();
        let of_nobody = tables.backends.iter().filter(|(_, backend)| nameless.contains(&backend.vip));
        let orders = of_nobody.filter_map(|(id, backend)| {
            let lives = backend.has(Backend::LIVE) && there.contains(&(backend.address, backend.port));
            let flags = if lives { Backend::LIVE } else { 0 };
            (flags != backend.flags).then_some(BalanceOrder::SetBackend(*id, Backend { flags, ..*backend }))
        });
        orders.collect()
    }

    /// No flow has these backends any more. Their numbers are free, but for those in use.
    pub(super) fn release(&mut self, ids: &BTreeSet<u32>) {
        let Some(tables) = self.in_force.as_mut().filter(|_| !ids.is_empty()) else { return };
        let rows: BTreeSet<u32> = tables.vips.values().map(|vip| vip.id).collect();
        for id in ids {
            let Some(backend) = tables.backends.get(id).copied().filter(|backend| backend.flags == 0) else { continue };
            let is_last = self.numbers.release(*id, &backend, rows.contains(&backend.vip));
            tables.carry_out(&BalanceOrder::ForgetBackend(*id));
            self.running.push_back(BalanceOrder::ForgetBackend(*id));
            self.running.extend(is_last.then_some(BalanceOrder::ForgetVip(backend.vip)));
        }
        // Who found no number may find one now.
        self.stirred.extend(self.waiting.iter().take(RETRIES));
    }
}
