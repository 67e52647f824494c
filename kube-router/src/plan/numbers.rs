//! Numbers of virtual servers and of their destinations in the tables of the service fast path.
//!
//! A flow keeps the number of its backend, and whatever counts by number goes on counting. So a number stays somebody's
//! until nobody can hold it: a destination that comes back gets its own again, and only what was released
//! ([`Numbers::release`]) is given to somebody else, after the numbers that nobody ever had. The rows themselves say which
//! are taken, so that a restart forgets nothing but whose the numbers of removed virtual servers were.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use kube_router_common::{
    balance::{Backend, MAX_BACKENDS, MAX_VIPS},
    policy::{Address, ServiceKey},
};

use crate::desired::balance::BalanceTables;

/// Numbers from 1 up, the unused ones first.
#[derive(Clone, Debug, Default)]
struct Pool {
    next: u32,
    end: u32,
    released: VecDeque<u32>,
}

impl Pool {
    fn without(taken: &BTreeSet<u32>, end: u32) -> Self {
        let next = taken.last().map_or(1, |last| last + 1);
        let released = (1..next).filter(|number| !taken.contains(number)).collect();
        Pool { next, end, released }
    }

    fn take(&mut self) -> Option<u32> {
        if self.next < self.end {
            self.next += 1;
            return Some(self.next - 1);
        }
        self.released.pop_front()
    }
}

/// Address and port of a destination.
pub type Place = (Address, u16);

#[derive(Clone, Debug, Default)]
pub struct Numbers {
    vips: Pool,
    backends: Pool,
    by_key: BTreeMap<ServiceKey, u32>,
    /// Number of a virtual server -> its backends, those that are gone included.
    of_vip: BTreeMap<u32, BTreeMap<Place, u32>>,
    last_ring: u32,
}

impl Numbers {
    /// What these tables leave free. `before` knows whose numbers are that no row names any more.
    pub fn of(tables: &BalanceTables, before: &Numbers) -> Self {
        let mut of_vip: BTreeMap<u32, BTreeMap<Place, u32>> = BTreeMap::new();
        for (id, backend) in &tables.backends {
            of_vip.entry(backend.vip).or_default().entry((backend.address, backend.port)).or_insert(*id);
        }
        let rows: BTreeSet<u32> = tables.vips.values().map(|vip| vip.id).collect();
        let without_row = before
            .by_key
            .iter()
            .filter(|(_, vip)| of_vip.contains_key(vip) && !rows.contains(vip))
            .map(|(k, v)| (*k, *v));
        let by_key = without_row.chain(tables.vips.iter().map(|(key, vip)| (*key, vip.id))).collect();
        let taken = of_vip.keys().copied().chain(rows).collect();
        let last_ring = tables.rings().map(|(ring, _)| ring).max().unwrap_or(0).max(before.last_ring);
        Numbers {
            vips: Pool::without(&taken, MAX_VIPS),
            backends: Pool::without(&tables.backends.keys().copied().collect(), MAX_BACKENDS),
            by_key,
            of_vip,
            last_ring,
        }
    }

    pub fn known_vip(&self, key: &ServiceKey) -> Option<u32> {
        self.by_key.get(key).copied()
    }

    /// Virtual servers that have a number, also those of which only backends are left.
    pub fn vips(&self) -> impl Iterator<Item = &ServiceKey> {
        self.by_key.keys()
    }

    /// `None`: all are taken.
    pub fn vip(&mut self, key: ServiceKey) -> Option<u32> {
        if let Some(known) = self.known_vip(&key) {
            return Some(known);
        }
        let number = self.vips.take()?;
        self.by_key.insert(key, number);
        Some(number)
    }

    /// All that are or were the virtual server's.
    pub fn backends(&self, vip: u32) -> impl Iterator<Item = (Place, u32)> {
        self.of_vip.get(&vip).into_iter().flatten().map(|(place, id)| (*place, *id))
    }

    /// `None`: all are taken.
    pub fn backend(&mut self, vip: u32, place: Place) -> Option<u32> {
        if let Some(known) = self.of_vip.get(&vip).and_then(|backends| backends.get(&place)) {
            return Some(*known);
        }
        let number = self.backends.take()?;
        self.of_vip.entry(vip).or_default().insert(place, number);
        Some(number)
    }

    /// A number for a ring that no table has. 32 bits last for decades, and then what is there is passed over.
    pub fn ring(&mut self, tables: &BalanceTables) -> u32 {
        loop {
            self.last_ring = self.last_ring.wrapping_add(1).max(1);
            if tables.ring(self.last_ring).is_none() {
                return self.last_ring;
            }
        }
    }

    /// Nobody holds this backend's number any more, and with the last one of a virtual server without a row nobody holds
    /// that one's either.
    pub fn release(&mut self, id: u32, backend: &Backend, has_row: bool) {
        let Some(backends) = self.of_vip.get_mut(&backend.vip) else { return };
        if backends.get(&(backend.address, backend.port)) == Some(&id) {
            backends.remove(&(backend.address, backend.port));
        }
        self.backends.released.push_back(id);
        if backends.is_empty() && !has_row {
            self.of_vip.remove(&backend.vip);
            self.by_key.retain(|_, vip| *vip != backend.vip);
            self.vips.released.push_back(backend.vip);
        }
    }

    /// Virtual servers that have backends, and of which nobody knows any more which they were.
    pub fn nameless(&self) -> BTreeSet<u32> {
        let known: BTreeSet<u32> = self.by_key.values().copied().collect();
        self.of_vip.keys().filter(|vip| !known.contains(vip)).copied().collect()
    }
}
