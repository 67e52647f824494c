//! Where our own proxy answers by now: a row of `kr_services` needs a virtual server that is in the kernel.
//!
//! ```text
//!   comes:  virtual server ──> row, live flows are judged again ──> destinations
//!   goes:   row ──> destinations, virtual server
//! ```
//!
//! A row makes the programs wait for what the load balancer chooses. Without a virtual server nobody chooses, and at an
//! address of the node the node's own process would answer, unjudged; without a row nobody looks at what was chosen. A
//! virtual server that has no destination (or none with a weight) refuses, so while one comes nobody answers in between.
//! While one goes, new flows are judged by the service's address for a moment.
//!
//! Another load balancer does not tell: where one serves, every row that is wanted is written.

#[cfg(test)]
mod tests;

use std::collections::BTreeSet;

use kube_router_common::policy::ServiceKey;

use crate::{compile::service_ports::key_of, desired::VirtualKey};

#[derive(Debug, Default)]
pub struct Answering {
    /// Our own proxy serves.
    pub(super) ours: bool,
    /// Virtual servers in the kernel. `None`: nobody has looked yet.
    there: Option<BTreeSet<ServiceKey>>,
    /// Came or went since the last call of `take`.
    stirred: BTreeSet<ServiceKey>,
}

impl Answering {
    pub(super) fn at(&self, key: &ServiceKey) -> bool {
        !self.ours || self.there.as_ref().is_some_and(|there| there.contains(key))
    }

    /// While nobody could look, who has a row from an earlier agent is believed to answer.
    pub(super) fn assume<'a>(&mut self, rows: impl Iterator<Item = &'a ServiceKey>) {
        if self.ours {
            self.there.get_or_insert_with(|| rows.copied().collect());
        }
    }

    /// These are all.
    pub fn see<'a>(&mut self, servers: impl Iterator<Item = &'a VirtualKey>) {
        let there: BTreeSet<ServiceKey> = servers.map(key_of).collect();
        // The first look comes before the first one at the rows, which are compared as a whole then.
        if let Some(before) = &self.there {
            self.stirred.extend(before.symmetric_difference(&there));
        }
        self.there = Some(there);
    }

    pub fn came(&mut self, server: &VirtualKey) {
        let key = key_of(server);
        if self.there.get_or_insert_default().insert(key) {
            self.stirred.insert(key);
        }
    }

    pub fn went(&mut self, server: &VirtualKey) {
        let key = key_of(server);
        if self.there.as_mut().is_some_and(|there| there.remove(&key)) {
            self.stirred.insert(key);
        }
    }

    pub(super) fn is_stirred(&self) -> bool {
        !self.stirred.is_empty()
    }

    pub(super) fn take(&mut self) -> BTreeSet<ServiceKey> {
        std::mem::take(&mut self.stirred)
    }
}
