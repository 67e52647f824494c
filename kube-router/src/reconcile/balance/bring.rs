//! One virtual server: what IPVS has, or is about to have, against the tables.

use std::collections::{BTreeMap, BTreeSet};

use kube_router_common::{
    balance::{Backend, MAX_SLOTS, Vip},
    schedule::NONE,
};

use super::{
    Balancer,
    leftovers::{self, destinations, place},
};
use crate::{
    compile::{
        balance::{Path, Ring, Why, compile_ring},
        rings::DestinationList,
        service_ports::key_of,
    },
    desired::{Desired, Frontend, Virtual, VirtualKey, balance::BalanceTables},
    objects::Protocol,
    plan::{
        Guard, IpvsOp, ObservedIpvs,
        balance::{BalanceOrder, Wanted, plan_balance},
        numbers::Place,
    },
};

/// What the rings follow from.
pub struct View<'a> {
    pub desired: &'a Desired,
    /// `None`: our proxy does not run, and what IPVS has is not our business.
    pub ipvs: Option<&'a ObservedIpvs>,
    pub guard: Guard<'a>,
}

impl<'a> View<'a> {
    /// A virtual server and its destinations, in the order that counts for its ring: the kernel's.
    fn server(&self, key: &VirtualKey) -> Option<(&'a Virtual, &'a DestinationList)> {
        let ipvs = self.ipvs?;
        ipvs.servers.get(key).zip(ipvs.lists.get(key))
    }

    /// Does its row stay although nobody wants it?
    fn spares(&self, key: &VirtualKey) -> bool {
        !self.guard.deletions || self.guard.spared.is_some_and(|spared| spared.server(key))
    }
}

impl Balancer {
    /// Brings one virtual server up to date.
    pub(super) fn bring(&mut self, key: &VirtualKey, view: &View<'_>, tables: &mut BalanceTables, now_ms: u64) {
        let wish = view.desired.table.server(key).map(|(_, frontend)| frontend);
        let there = view.server(key);
        let mut next = there.map(|(_, list)| list.clone()).unwrap_or_default();
        let mut stays = there.is_some();
        for op in self.closing.get(key).into_iter().flatten() {
            match op {
                IpvsOp::DeleteDestination { destination, .. } => next.delete(*destination),
                IpvsOp::EditDestination { destination, weight, .. } => next.edit(*destination, *weight),
                _ => stays = false,
            }
        }
        let unwanted = wish.is_none() && view.ipvs.is_some();
        if unwanted && view.spares(key) && (stays || there.is_none()) {
            return;
        }
        let ring = match (there, wish) {
            _ if view.ipvs.is_none() => Err(Why::Off),
            _ if let Some(why) = self.fast.off => Err(why),
            (Some((server, _)), Some(wish)) if stays => {
                compile_ring(key, server, next.as_slice(), (wish.fast, !wish.hosts.is_empty()), &self.fast)
            }
            _ => Err(Why::Missing),
        };
        let ring = ring.and_then(|ring| self.place(key, ring, &next, tables, now_ms).ok_or(Why::NoRoom));
        let path = ring.as_ref().map_or_else(|why| Path::Ipvs(*why), |_| Path::Fast);
        match path {
            Path::Ipvs(Why::NoRoom) => drop(self.waiting.insert(*key)),
            _ => drop(self.waiting.remove(key)),
        }
        match wish {
            Some(_) => drop(self.paths.insert(*key, path)),
            None => drop(self.paths.remove(key)),
        }
        let current = there.map(|(_, list)| destinations(list));
        // Counts of a virtual server that comes and goes go on.
        let row = key_of(key);
        let number = self.numbers.known_vip(&row);
        let keeps_number = wish.is_some() || number.is_some_and(|number| self.numbers.has_backends(number));
        let wanted = Wanted {
            keeps_number,
            backends: self.backends(key, ring.as_ref().ok(), current.as_ref(), view, tables, wish),
            ring: ring.ok(),
        };
        let numbers = &mut self.numbers;
        let mut orders = plan_balance(row, wanted, tables, || numbers.ring(tables));
        if let Some(number) = number.filter(|_| !keeps_number) {
            numbers.release_vip(number);
            // Without a row the number is anybody's, should the last orders not be carried out.
            orders.insert(0, BalanceOrder::ForgetVip(number));
        }
        self.order(orders, tables);
    }

    /// Gives numbers to a ring's destinations. `None`: there is no room.
    fn place(
        &mut self,
        key: &VirtualKey,
        ring: Ring,
        list: &DestinationList,
        tables: &BalanceTables,
        now_ms: u64,
    ) -> Option<(Vip, Box<[u32]>)> {
        let row = key_of(key);
        if self.refused.contains(key) {
            return None;
        }
        let id = self.numbers.vip(row)?;
        let mut ids: BTreeMap<u32, u32> = BTreeMap::new();
        for index in &ring.slots {
            if *index != NONE && !ids.contains_key(index) {
                let listed = list.as_slice().get(*index as usize)?;
                ids.insert(*index, self.numbers.backend(id, place(&listed.destination))?);
            }
        }
        let slots: Box<[u32]> = ring.slots.iter().map(|index| ids.get(index).copied().unwrap_or(NONE)).collect();
        let same = tables.vips.get(&row).is_some_and(|vip| tables.ring(vip.ring) == Some(&*slots));
        if !same && tables.slots() + slots.len() > MAX_SLOTS as usize {
            return None;
        }
        let learns = key.protocol == Protocol::Udp;
        let learn_until_s = if learns { self.now_s(now_ms).saturating_add(self.learn_s) } else { 0 };
        Some((Vip { id, learn_until_s, ..ring.vip }, slots))
    }

    /// By the programs' clock, and rather late than early.
    fn now_s(&self, now_ms: u64) -> u32 {
        let (then_ms, then_s) = self.clocks;
        let since = now_ms.saturating_sub(then_ms).div_ceil(1_000);
        then_s.saturating_add(u32::try_from(since).unwrap_or(u32::MAX)).saturating_add(1)
    }

    /// All that are or were the virtual server's, with what they may do from now on.
    fn backends(
        &self,
        key: &VirtualKey,
        ring: Option<&(Vip, Box<[u32]>)>,
        current: Option<&BTreeSet<Place>>,
        view: &View<'_>,
        tables: &BalanceTables,
        wish: Option<&Frontend>,
    ) -> BTreeMap<u32, Backend> {
        let Some(vip) = self.numbers.known_vip(&key_of(key)) else { return BTreeMap::new() };
        let open: BTreeSet<u32> = ring.into_iter().flat_map(|(_, slots)| slots.iter().copied()).collect();
        let elsewhere: BTreeSet<Place> =
            wish.into_iter().flat_map(|wish| &wish.elsewhere).map(leftovers::place).collect();
        let remote = |place: &Place| if elsewhere.contains(place) { Backend::REMOTE } else { 0 };
        let flags = |place: Place, id: u32| {
            let known = tables.backends.get(&id);
            let lives = match view.ipvs {
                Some(_) => current.is_some_and(|current| current.contains(&place)),
                None => known.is_some_and(|backend| backend.has(Backend::LIVE)),
            };
            match (open.contains(&id), lives) {
                (true, _) => Some(Backend::OPEN | Backend::LIVE | remote(&place)),
                (false, true) => Some(Backend::LIVE),
                // A number that was never written needs no row.
                (false, false) => known.map(|_| 0),
            }
        };
        let all = self.numbers.backends(vip);
        let row = |(place, id): (Place, u32)| {
            Some((id, Backend { address: place.0, port: place.1, flags: flags(place, id)?, vip }))
        };
        all.filter_map(row).collect()
    }
}
