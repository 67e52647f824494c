//! Orders to the tables of the service fast path, and why they come in this order.
//!
//! ```text
//!   backends that open        nobody looks for them yet
//!   a new ring                its rows name backends that are open by now
//!   the virtual server        flips to it: one element, so a packet sees the old ring or the new one, each whole
//!   the old ring              nobody looks for it any more
//!   backends that close       no ring names them any more
//! ```
//!
//! A virtual server that leaves goes the other way round: its row, its ring, its backends. The row stays without a ring
//! ([`Vip::rests`]) while somebody wants the virtual server or a backend has its number: an agent that starts knows whose the
//! number is, and counts go on. A packet that found a ring just before it went finds no slot, and is IPVS's. IPVS itself is told of a destination before the ring that names it, and of
//! its end after the ring that does not (`reconcile/balance.rs`).

use std::collections::{BTreeMap, BTreeSet};

use kube_router_common::{
    balance::{Backend, COUNT_SHARDS, Vip},
    policy::ServiceKey,
};

use crate::desired::balance::{BalanceTables, HOLE};

/// What the kernel holds, and when.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ObservedBalance {
    pub tables: BalanceTables,
    /// CLOCK_MONOTONIC in seconds, as the programs have it.
    pub now_s: u32,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum BalanceOrder {
    SetBackend(u32, Backend),
    /// All rows of a new ring.
    WriteRing(u32, Box<[u32]>),
    SetVip(ServiceKey, Vip),
    DeleteVip(ServiceKey),
    /// The ring and its slots; those without a row do not matter.
    DeleteRing(u32, u32),
    /// Nobody holds the number any more; whoever gets it next begins with no connections.
    ForgetBackend(u32),
    /// The same of a virtual server's number; it begins without counts.
    ForgetVip(u32),
}

impl BalanceOrder {
    /// Rows that it writes.
    pub fn rows(&self) -> usize {
        match self {
            BalanceOrder::WriteRing(_, slots) => slots.len(),
            BalanceOrder::DeleteRing(_, slots) => *slots as usize,
            BalanceOrder::ForgetVip(_) => COUNT_SHARDS as usize,
            _ => 1,
        }
    }
}

/// What one virtual server is to have.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Wanted {
    /// `None`: it is IPVS's alone. The ring's number is not looked at.
    pub ring: Option<(Vip, Box<[u32]>)>,
    /// Without a ring its row rests, if there is one, as someone still asks whose the number is.
    pub keeps_number: bool,
    /// All that are or were its own.
    pub backends: BTreeMap<u32, Backend>,
}

/// The orders for one virtual server; `number` gives a new ring's. A ring that says the same already stays, and so does what
/// a row says of the time to learn.
pub fn plan_balance(
    key: ServiceKey,
    wanted: Wanted,
    there: &BalanceTables,
    number: impl FnOnce() -> u32,
) -> Vec<BalanceOrder> {
    let mut orders = Vec::new();
    let row = there.vips.get(&key);
    let mut closed = Vec::new();
    for (id, backend) in wanted.backends {
        let now = there.backends.get(&id).copied().unwrap_or_default();
        let open = Backend { flags: now.flags | backend.flags, ..backend };
        if open != now {
            orders.push(BalanceOrder::SetBackend(id, open));
        }
        if backend != open {
            closed.push(BalanceOrder::SetBackend(id, backend));
        }
    }
    let gone = match wanted.ring {
        Some((vip, slots)) => {
            let same = row.filter(|row| there.ring(row.ring) == Some(&*slots)).map(|row| row.ring);
            let vip = Vip {
                ring: same.unwrap_or_else(number),
                slots: slots.len() as u32,
                learn_until_s: row.filter(|row| !row.rests()).map_or(vip.learn_until_s, |row| row.learn_until_s),
                ..vip
            };
            if same.is_none() {
                orders.push(BalanceOrder::WriteRing(vip.ring, slots));
            }
            if row != Some(&vip) {
                orders.push(BalanceOrder::SetVip(key, vip));
            }
            row.filter(|_| same.is_none())
        }
        None => row.inspect(|row| match (wanted.keeps_number, row.rests()) {
            (true, true) => {}
            (true, false) => orders.push(BalanceOrder::SetVip(key, Vip::resting(row.id))),
            (false, _) => orders.push(BalanceOrder::DeleteVip(key)),
        }),
    };
    orders.extend(gone.filter(|row| !row.rests()).map(|row| {
        let slots = there.ring(row.ring).map_or(0, |slots| slots.len() as u32);
        BalanceOrder::DeleteRing(row.ring, slots.max(row.slots))
    }));
    orders.extend(closed);
    orders
}

/// Rings that no virtual server has: their writing, or their removal, came to no end.
pub fn plan_strays(there: &BalanceTables) -> Vec<BalanceOrder> {
    let used: BTreeSet<u32> = there.vips.values().filter(|vip| !vip.rests()).map(|vip| vip.ring).collect();
    let strays = there.rings().filter(|(ring, _)| !used.contains(ring));
    strays.map(|(ring, slots)| BalanceOrder::DeleteRing(ring, slots.len() as u32)).collect()
}

impl BalanceTables {
    /// What an order does.
    pub fn carry_out(&mut self, order: &BalanceOrder) {
        match order {
            BalanceOrder::SetBackend(id, backend) => drop(self.backends.insert(*id, *backend)),
            BalanceOrder::WriteRing(ring, slots) => self.put_ring(*ring, slots.clone()),
            BalanceOrder::SetVip(key, vip) => drop(self.vips.insert(*key, *vip)),
            BalanceOrder::DeleteVip(key) => drop(self.vips.remove(key)),
            BalanceOrder::DeleteRing(ring, _) => self.take_ring(*ring),
            BalanceOrder::ForgetBackend(id) => drop(self.backends.remove(id)),
            BalanceOrder::ForgetVip(_) => {}
        }
    }

    /// What an order leaves that fails on its way, after so many of its rows.
    pub fn carry_out_partly(&mut self, order: &BalanceOrder, rows: usize) {
        match order {
            BalanceOrder::WriteRing(ring, slots) if rows > 0 => {
                self.put_ring(*ring, slots.iter().copied().take(rows).collect());
            }
            BalanceOrder::DeleteRing(ring, _) => {
                let left = self.ring(*ring).map(|slots| {
                    slots.iter().enumerate().map(|(slot, backend)| if slot < rows { HOLE } else { *backend }).collect()
                });
                left.into_iter().for_each(|left| self.put_ring(*ring, left));
            }
            _ => {}
        }
    }
}
