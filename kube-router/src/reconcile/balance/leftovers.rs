//! Numbers that may be given back, and backends of which nobody knows the virtual server.
//!
//! Flows that began on the fast path go on when their virtual server leaves it, and with them the numbers of their
//! backends; its row rests and keeps its name. Where rows were lost, it is not known any more which virtual server that
//! was; a destination that no virtual server has lets go of them then.

use std::collections::BTreeSet;

use kube_router_common::balance::Backend;

use super::{Balancer, RETRIES, View, server_of};
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
        let mut orders = Vec::new();
        for id in ids {
            let Some(backend) = tables.backends.get(id).copied().filter(|backend| backend.flags == 0) else { continue };
            self.numbers.release(*id, &backend);
            orders.push(BalanceOrder::ForgetBackend(*id));
            let key = self.numbers.key(backend.vip);
            let is_wanted = key.as_ref().and_then(server_of).is_some_and(|server| self.paths.contains_key(&server));
            if !is_wanted && !self.numbers.has_backends(backend.vip) {
                self.numbers.release_vip(backend.vip);
                // Without a row the number is anybody's, should this be the last order that is carried out.
                orders.push(BalanceOrder::ForgetVip(backend.vip));
                orders.extend(key.map(BalanceOrder::DeleteVip));
            }
        }
        orders.iter().for_each(|order| tables.carry_out(order));
        self.running.extend(orders);
        // Who found no number may find one now.
        self.stirred.extend(self.waiting.iter().take(RETRIES));
    }
}
