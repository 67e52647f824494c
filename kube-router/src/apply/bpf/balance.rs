//! The tables of the service fast path in the kernel.
//!
//! Apart from the tables of policy, as an agent may have pinned those and not these. In: orders, carried out one after the
//! other, a ring's rows in one call. Out: rows.

use std::{os::fd::OwnedFd, path::Path};

use kube_router_common::{
    balance::{Backend, RingKey, Vip},
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
        })
    }

    pub(super) fn of(mut map: impl FnMut(&'static str) -> Result<OwnedFd, BpfError>) -> Result<Self, BpfError> {
        Ok(BalanceMaps {
            vips: Table::new(names::VIPS, map(names::VIPS)?)?,
            rings: Table::new(names::RINGS, map(names::RINGS)?)?,
            backends: Table::new(names::BACKENDS, map(names::BACKENDS)?)?,
            actives: Table::new(names::ACTIVES, map(names::ACTIVES)?)?,
            turns: Table::new(names::TURNS, map(names::TURNS)?)?,
        })
    }

    pub fn read(&self) -> Result<BalanceTables, BpfError> {
        Ok(BalanceTables::from_rows(self.vips.read_all()?, self.rings.read_all()?, self.backends.read_all()?))
    }

    pub fn carry_out(&self, order: &BalanceOrder) -> Result<(), BpfError> {
        match order {
            BalanceOrder::SetBackend(id, backend) => self.backends.put(id, backend),
            BalanceOrder::WriteRing(ring, slots) => {
                let rows: Vec<(RingKey, u32)> = keys(*ring, slots.len() as u32).zip(slots.iter().copied()).collect();
                self.rings.put_all(&rows)
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
        }
    }
}

fn keys(ring: u32, slots: u32) -> impl Iterator<Item = RingKey> {
    (0..slots).map(move |slot| RingKey { ring, slot })
}
