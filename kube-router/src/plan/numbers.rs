//! Numbers of virtual servers and of their destinations in the tables of the service fast path.
//!
//! A flow keeps the number of its backend, and whatever counts by number goes on counting. So a number stays somebody's
//! until nobody can hold it: a destination that comes back gets its own again, and only what was released
//! ([`Numbers::release`]) is given to somebody else, after the numbers that nobody ever had. The rows themselves say which
//! are taken and whose they are, so that a restart forgets nothing.

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
    /// The other way round.
    keys: BTreeMap<u32, ServiceKey>,
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
        let by_key: BTreeMap<ServiceKey, u32> =
            without_row.chain(tables.vips.iter().map(|(key, vip)| (*key, vip.id))).collect();
        let taken = of_vip.keys().copied().chain(rows).collect();
        let last_ring = tables.rings().map(|(ring, _)| ring).max().unwrap_or(0).max(before.last_ring);
        Numbers {
            vips: Pool::without(&taken, MAX_VIPS),
            backends: Pool::without(&tables.backends.keys().copied().collect(), MAX_BACKENDS),
            keys: by_key.iter().map(|(key, vip)| (*vip, *key)).collect(),
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
        self.keys.insert(number, key);
        Some(number)
    }

    /// All that are or were the virtual server's.
    pub fn backends(&self, vip: u32) -> impl Iterator<Item = (Place, u32)> {
        self.of_vip.get(&vip).into_iter().flatten().map(|(place, id)| (*place, *id))
    }

    pub fn known_backend(&self, vip: u32, place: Place) -> Option<u32> {
        self.of_vip.get(&vip)?.get(&place).copied()
    }

    /// `None`: all are taken.
    pub fn backend(&mut self, vip: u32, place: Place) -> Option<u32> {
        if let Some(known) = self.known_backend(vip, place) {
            return Some(known);
        }
        let number = self.backends.take()?;
        self.of_vip.entry(vip).or_default().insert(place, number);
        Some(number)
    }

    /// No backend has this number or a larger one.
    pub fn backends_end(&self) -> u32 {
        self.backends.next
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

    /// Whose number it is, if that is still known.
    pub fn key(&self, vip: u32) -> Option<ServiceKey> {
        self.keys.get(&vip).copied()
    }

    /// Has the virtual server backends, those that are gone included?
    pub fn has_backends(&self, vip: u32) -> bool {
        self.of_vip.get(&vip).is_some_and(|backends| !backends.is_empty())
    }

    /// Nobody holds this backend's number any more.
    pub fn release(&mut self, id: u32, backend: &Backend) {
        let Some(backends) = self.of_vip.get_mut(&backend.vip) else { return };
        if backends.get(&(backend.address, backend.port)) == Some(&id) {
            backends.remove(&(backend.address, backend.port));
        }
        self.backends.released.push_back(id);
    }

    /// Nobody wants the virtual server any more, and it has no backends.
    pub fn release_vip(&mut self, vip: u32) {
        self.of_vip.remove(&vip);
        if let Some(key) = self.keys.remove(&vip) {
            self.by_key.remove(&key);
        }
        self.vips.released.push_back(vip);
    }

    /// Virtual servers that have backends, and of which nobody knows any more which they were.
    pub fn nameless(&self) -> BTreeSet<u32> {
        let known: BTreeSet<u32> = self.by_key.values().copied().collect();
        self.of_vip.keys().filter(|vip| !known.contains(vip)).copied().collect()
    }
}

#[cfg(test)]
mod tests {
    use kube_router_common::balance::Vip;

    use super::*;

    fn key(last: u8) -> ServiceKey {
        ServiceKey { address: Address::from_v4([10, 96, 0, last]), port: 80, protocol: 6, pad: 0 }
    }

    fn place(last: u8) -> Place {
        (Address::from_v4([10, 244, 0, last]), 8080)
    }

    fn backend(vip: u32, last: u8, flags: u16) -> Backend {
        Backend { address: place(last).0, port: 8080, flags, vip }
    }

    #[test]
    fn a_number_stays_and_new_ones_come_before_released_ones() {
        let mut numbers = Numbers::of(&BalanceTables::default(), &Numbers::default());
        let vip = numbers.vip(key(1)).expect("free");
        assert_eq!((vip, numbers.vip(key(1)), numbers.vip(key(2))), (1, Some(1), Some(2)));
        assert_eq!((numbers.backend(1, place(1)), numbers.backend(1, place(2))), (Some(1), Some(2)));
        assert_eq!(numbers.backend(2, place(1)), Some(3), "of another virtual server it is another");
        numbers.release(1, &backend(1, 1, 0));
        assert_eq!(numbers.backend(1, place(3)), Some(4));
        numbers.backends.next = numbers.backends.end;
        assert_eq!((numbers.backend(1, place(4)), numbers.backend(1, place(5))), (Some(1), None));
        assert_eq!(numbers.backend(1, place(2)), Some(2), "who has one needs no room");
    }

    #[test]
    fn a_virtual_server_s_number_is_given_again_when_it_was_released() {
        let mut numbers = Numbers::of(&BalanceTables::default(), &Numbers::default());
        numbers.vip(key(1));
        numbers.backend(1, place(1));
        numbers.backend(1, place(2));
        numbers.release(1, &backend(1, 1, 0));
        assert!(numbers.has_backends(1));
        numbers.release(2, &backend(1, 2, 0));
        assert_eq!(
            (numbers.has_backends(1), numbers.key(1), numbers.known_vip(&key(1))),
            (false, Some(key(1)), Some(1))
        );
        numbers.release_vip(1);
        assert_eq!((numbers.key(1), numbers.known_vip(&key(1))), (None, None));
        numbers.vips.next = numbers.vips.end;
        assert_eq!(numbers.vip(key(9)), Some(1));
    }

    #[test]
    fn rows_say_which_numbers_are_taken() {
        let vip = Vip { id: 5, ring: 70, slots: 1, ..Vip::default() };
        let rows = [(9, backend(5, 1, 3)), (4, backend(5, 2, 0)), (2, backend(3, 7, 0)), (8, Backend::default())];
        let ring = [(kube_router_common::balance::RingKey { ring: 70, slot: 0 }, 9)];
        let tables = BalanceTables::from_rows([(key(1), vip)], ring, rows);
        let mut numbers = Numbers::of(&tables, &Numbers::default());
        assert_eq!(
            (numbers.vip(key(1)), numbers.backend(5, place(1)), numbers.backend(5, place(2))),
            (Some(5), Some(9), Some(4))
        );
        assert_eq!((numbers.vip(key(2)), numbers.backend(6, place(1))), (Some(6), Some(10)));
        assert_eq!((numbers.ring(&tables), numbers.backends_end()), (71, 11));
        assert_eq!(numbers.nameless(), BTreeSet::from([3]));
        // Who remembers whose the third was gives it back.
        let mut before = Numbers::of(&BalanceTables::default(), &Numbers::default());
        let ids: Vec<_> = (7..10).map(|last| before.vip(key(last))).collect();
        assert_eq!(ids, [Some(1), Some(2), Some(3)]);
        let mut numbers = Numbers::of(&tables, &before);
        assert_eq!((numbers.vip(key(9)), numbers.nameless().len()), (Some(3), 0));
        assert_eq!(numbers.vip(key(8)), Some(6), "nobody could have known its number");
    }
}
