//! The plane of network policy in memory, with a failure at any order. For tests.

use std::{cell::RefCell, collections::BTreeMap, rc::Rc};

use super::{PlaneError, PolicyPlane};
use crate::{
    compile::links::{Links, PodLink},
    plan::{
        balance::{BalanceOrder, ObservedBalance},
        enforcement::{ObservedPolicy, PolicyOrder},
    },
};

#[derive(Debug, Default)]
pub struct FakePolicyState {
    pub kernel: ObservedPolicy,
    /// Orders carried out.
    pub log: Vec<PolicyOrder>,
    /// Orders seen so far, failed ones included.
    pub seen: usize,
    /// Errno at the n-th order.
    pub faults: BTreeMap<usize, i32>,
    pub broken_observations: usize,
    pub settled: usize,
    pub balance: ObservedBalance,
    /// Orders to the fast path's tables that were carried out.
    pub balance_log: Vec<BalanceOrder>,
    /// The n-th of them fails after so many of its rows.
    pub balance_faults: BTreeMap<usize, usize>,
}

/// A handle; clones share the kernel.
#[derive(Clone, Debug, Default)]
pub struct FakePolicy(pub Rc<RefCell<FakePolicyState>>);

fn broken(errno: i32) -> PlaneError {
    PlaneError::Io { what: "fake".into(), source: std::io::Error::from_raw_os_error(errno) }
}

impl PolicyPlane for FakePolicy {
    fn observe(&mut self) -> Result<ObservedPolicy, PlaneError> {
        let mut state = self.0.borrow_mut();
        if state.broken_observations > 0 {
            state.broken_observations -= 1;
            return Err(broken(libc::ENOBUFS));
        }
        Ok(state.kernel.clone())
    }

    fn links(&mut self) -> Result<Links, PlaneError> {
        Ok(self.0.borrow().kernel.links.clone())
    }

    fn link(&mut self, index: u32) -> Result<Option<PodLink>, PlaneError> {
        Ok(self.0.borrow().kernel.links.pods.get(&index).cloned())
    }

    fn apply(&mut self, orders: &[PolicyOrder]) -> (usize, Result<(), PlaneError>) {
        let mut state = self.0.borrow_mut();
        for (done, order) in orders.iter().enumerate() {
            let number = state.seen;
            state.seen += 1;
            if let Some(errno) = state.faults.remove(&number) {
                return (done, Err(broken(errno)));
            }
            state.kernel.carry_out(order);
            state.log.push(order.clone());
        }
        (orders.len(), Ok(()))
    }

    fn observe_balance(&mut self) -> Result<ObservedBalance, PlaneError> {
        Ok(self.0.borrow().balance.clone())
    }

    fn balance(&mut self, orders: &[BalanceOrder]) -> (usize, Result<(), PlaneError>) {
        let mut state = self.0.borrow_mut();
        for (done, order) in orders.iter().enumerate() {
            let number = state.balance_log.len();
            if let Some(rows) = state.balance_faults.remove(&number) {
                state.balance.tables.carry_out_partly(order, rows);
                return (done, Err(broken(libc::ENOMEM)));
            }
            state.balance.tables.carry_out(order);
            state.balance_log.push(order.clone());
        }
        (orders.len(), Ok(()))
    }

    fn settled(&mut self) {
        self.0.borrow_mut().settled += 1;
    }
}
