//! The tables of the service fast path (`kube_router_common::balance` says what they mean), as the kernel has them.

use std::collections::BTreeMap;

use kube_router_common::{
    balance::{Backend, MAX_SLOTS, RingKey, Vip},
    policy::ServiceKey,
};

/// What stands for a slot without a row.
pub const HOLE: u32 = 0;

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct BalanceTables {
    pub vips: BTreeMap<ServiceKey, Vip>,
    /// Ring -> what its slots say; private, as the rows are counted.
    rings: BTreeMap<u32, Box<[u32]>>,
    slots: usize,
    /// Only numbers that are somebody's.
    pub backends: BTreeMap<u32, Backend>,
}

impl BalanceTables {
    /// From rows in any order. A ring of which rows are missing, as its writing came to no end, has holes.
    pub fn from_rows(
        vips: impl IntoIterator<Item = (ServiceKey, Vip)>,
        slots: impl IntoIterator<Item = (RingKey, u32)>,
        backends: impl IntoIterator<Item = (u32, Backend)>,
    ) -> Self {
        let mut rings: BTreeMap<u32, Vec<u32>> = BTreeMap::new();
        // No ring has more slots than there are.
        for (RingKey { ring, slot }, backend) in slots.into_iter().filter(|(key, _)| key.slot < MAX_SLOTS) {
            let ring = rings.entry(ring).or_default();
            let slot = slot as usize;
            if ring.len() <= slot {
                ring.resize(slot + 1, HOLE);
            }
            ring[slot] = backend;
        }
        let mut tables = BalanceTables {
            vips: vips.into_iter().collect(),
            backends: backends.into_iter().filter(|(_, backend)| *backend != Backend::default()).collect(),
            ..BalanceTables::default()
        };
        rings.into_iter().for_each(|(ring, slots)| tables.put_ring(ring, slots.into()));
        tables
    }

    pub fn ring(&self, ring: u32) -> Option<&[u32]> {
        self.rings.get(&ring).map(|slots| &**slots)
    }

    pub fn rings(&self) -> impl Iterator<Item = (u32, &[u32])> {
        self.rings.iter().map(|(ring, slots)| (*ring, &**slots))
    }

    pub fn put_ring(&mut self, ring: u32, slots: Box<[u32]>) {
        self.take_ring(ring);
        self.slots += slots.len();
        self.rings.insert(ring, slots);
    }

    pub fn take_ring(&mut self, ring: u32) {
        let gone = self.rings.remove(&ring);
        self.slots -= gone.map_or(0, |slots| slots.len());
    }

    /// Rows of all rings; holes count.
    pub fn slots(&self) -> usize {
        self.slots
    }
}
