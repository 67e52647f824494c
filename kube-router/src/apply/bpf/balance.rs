//! The tables of the service fast path in the kernel.
//!
//! Apart from the tables of policy, as an agent may have pinned those and not these. In: orders, carried out one after the
//! other, a ring's rows in one call. Out: rows.

use std::{collections::BTreeMap, ops::Range, os::fd::OwnedFd, path::Path};

use kube_router_common::{
    balance::{Backend, COUNT_SHARDS, RingKey, Vip, VipCount},
    names,
    policy::ServiceKey,
};

use super::{BpfError, table::Table};
use crate::{desired::balance::BalanceTables, plan::balance::BalanceOrder};

pub struct BalanceMaps {
    pub vips: Table<ServiceKey, Vip>,
    pub rings: Table<RingKey, u32>,
    pub backends: Table<u32, Backend>,
    pub actives: Table<u32, i32>,
    pub turns: Table<u32, u32>,
    pub vip_counts: Table<u32, VipCount>,
}

impl BalanceMaps {
    /// The tables that are pinned in `root`, for reading beside a running agent, or without one.
    pub fn open(root: &Path) -> Result<Self, BpfError> {
        Ok(BalanceMaps {
            vips: Table::open(names::VIPS, root)?,
            rings: Table::open(names::RINGS, root)?,
            backends: Table::open(names::BACKENDS, root)?,
            actives: Table::open(names::ACTIVES, root)?,
            turns: Table::open(names::TURNS, root)?,
            vip_counts: Table::open(names::VIP_COUNTS, root)?,
        })
    }

    pub(super) fn of(mut map: impl FnMut(&'static str) -> Result<OwnedFd, BpfError>) -> Result<Self, BpfError> {
        Ok(BalanceMaps {
            vips: Table::new(names::VIPS, map(names::VIPS)?)?,
            rings: Table::new(names::RINGS, map(names::RINGS)?)?,
            backends: Table::new(names::BACKENDS, map(names::BACKENDS)?)?,
            actives: Table::new(names::ACTIVES, map(names::ACTIVES)?)?,
            turns: Table::new(names::TURNS, map(names::TURNS)?)?,
            vip_counts: Table::new(names::VIP_COUNTS, map(names::VIP_COUNTS)?)?,
        })
    }

    pub fn read(&self) -> Result<BalanceTables, BpfError> {
        Ok(BalanceTables::from_rows(self.vips.read_all()?, self.rings.read_all()?, self.backends.read_all()?))
    }

    /// What the virtual servers did whose rows there are.
    pub fn counts(&self) -> Result<BTreeMap<ServiceKey, VipCount>, BpfError> {
        let vips = self.vips.read_all()?;
        let end = vips.iter().map(|(_, vip)| vip.id + 1).max().unwrap_or_default();
        let rows = self.vip_counts.first(end * COUNT_SHARDS)?;
        let of = |id: u32| rows.get(shards(id).start as usize..shards(id).end as usize).map(total).unwrap_or_default();
        Ok(vips.into_iter().map(|(key, vip)| (key, of(vip.id))).collect())
    }

    /// What one virtual server did.
    pub fn count(&self, vip: u32) -> Result<VipCount, BpfError> {
        let rows: Result<Vec<_>, _> =
            shards(vip).map(|index| Ok((index, self.vip_counts.get(&index)?.unwrap_or_default()))).collect();
        rows.map(|rows| total(&rows))
    }

    pub fn carry_out(&self, order: &BalanceOrder) -> Result<(), BpfError> {
        match order {
            BalanceOrder::SetBackend(id, backend) => self.backends.put(id, backend),
            BalanceOrder::WriteRing(ring, slots) => {
                let rows: Vec<(RingKey, u32)> = keys(*ring, slots.len() as u32).zip(slots.iter().copied()).collect();
                self.rings.put_all(&rows)
            }
            // Without memory for the new row the old one goes: the number is nameless then, but nobody chooses by it.
            BalanceOrder::SetVip(key, vip) if vip.rests() => {
                self.vips.put(key, vip).or_else(|_| self.vips.delete(key).map(drop))
            }
            BalanceOrder::SetVip(key, vip) => self.vips.put(key, vip),
            BalanceOrder::DeleteVip(key) => self.vips.delete(key).map(drop),
            BalanceOrder::DeleteRing(ring, slots) => {
                self.rings.delete_all(&keys(*ring, *slots).collect::<Vec<_>>()).map(drop)
            }
            BalanceOrder::ForgetBackend(id) => {
                self.backends.put(id, &Backend::default())?;
                self.actives.put(id, &0)
            }
            BalanceOrder::ForgetVip(id) => {
                let zeroes: Vec<(u32, VipCount)> = shards(*id).map(|index| (index, VipCount::default())).collect();
                self.vip_counts.put_all(&zeroes)
            }
        }
    }
}

/// Where a virtual server's counts are.
fn shards(vip: u32) -> Range<u32> {
    vip * COUNT_SHARDS..(vip + 1) * COUNT_SHARDS
}

/// Of all groups of processors.
fn total(rows: &[(u32, VipCount)]) -> VipCount {
    rows.iter().fold(VipCount::default(), |sum, (_, count)| VipCount {
        connections: sum.connections + count.connections,
        packets_in: sum.packets_in + count.packets_in,
        bytes_in: sum.bytes_in + count.bytes_in,
        packets_out: sum.packets_out + count.packets_out,
        bytes_out: sum.bytes_out + count.bytes_out,
    })
}

fn keys(ring: u32, slots: u32) -> impl Iterator<Item = RingKey> {
    (0..slots).map(move |slot| RingKey { ring, slot })
}
