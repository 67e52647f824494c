//! Numbers of backends that are gone rest, until no flow can have them any more.
//!
//! ```text
//!   the row loses its flags ──> a sweep finds nobody ──> so does the next ──> the number is free
//!                                    ^                       |
//!                                    +── finds a flow <──────+
//! ```
//!
//! Only sweeps count that begin after the row was written. One alone is not enough: a program that read the ring before it
//! was replaced may write its flow where the walk has been; it is through long before the next walk begins.

use std::collections::{BTreeMap, BTreeSet};

use kube_router_common::balance::{Backend, MAX_BACKENDS};

use crate::plan::balance::BalanceOrder;

/// What a pass over all flows found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Sweep {
    /// By the reconciler's clock.
    pub began_ms: u64,
    /// Backends that flows have.
    pub held: BTreeSet<u32>,
}

/// What a pass is to know.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sweeping {
    /// Its word is waited for: it is to come soon.
    pub is_awaited: bool,
    /// Backends have numbers below this.
    pub end: u32,
}

impl Default for Sweeping {
    fn default() -> Self {
        Sweeping { is_awaited: false, end: MAX_BACKENDS }
    }
}

struct Rest {
    since_ms: u64,
    /// The last sweep that counts found nobody.
    is_alone: bool,
}

#[derive(Default)]
pub struct Resting {
    numbers: BTreeMap<u32, Rest>,
    last: Option<Sweep>,
}

impl Resting {
    /// This order was carried out.
    pub fn follow(&mut self, order: &BalanceOrder, now_ms: u64) {
        match order {
            BalanceOrder::SetBackend(id, backend) if backend.flags == 0 => self.begin(*id, now_ms),
            BalanceOrder::SetBackend(id, _) | BalanceOrder::ForgetBackend(id) => drop(self.numbers.remove(id)),
            _ => {}
        }
    }

    /// The rows were read.
    pub fn see(&mut self, backends: &BTreeMap<u32, Backend>, now_ms: u64) {
        let rests = |id: &u32| backends.get(id).is_some_and(|backend| backend.flags == 0);
        self.numbers.retain(|id, _| rests(id));
        backends.keys().filter(|id| rests(id)).for_each(|id| self.begin(*id, now_ms));
    }

    fn begin(&mut self, id: u32, now_ms: u64) {
        self.numbers.entry(id).or_insert(Rest { since_ms: now_ms, is_alone: false });
    }

    /// The numbers that are free now.
    pub fn take(&mut self, sweep: Sweep) -> BTreeSet<u32> {
        let mut free = BTreeSet::new();
        for (id, rest) in self.numbers.iter_mut().filter(|(_, rest)| sweep.began_ms > rest.since_ms) {
            let is_alone = !sweep.held.contains(id);
            if is_alone && rest.is_alone {
                free.insert(*id);
            }
            rest.is_alone = is_alone;
        }
        self.last = Some(sweep);
        free
    }

    /// May there be flows with this backend, which gets no new ones since then? Until a sweep has looked there may.
    pub fn may_be_held(&self, id: u32, since_ms: u64) -> bool {
        self.last.as_ref().is_none_or(|sweep| sweep.began_ms <= since_ms || sweep.held.contains(&id))
    }
}
