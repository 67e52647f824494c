//! Every standing problem, by who reported it, so that a new report replaces the old one and changes can be told once.

use std::collections::{BTreeMap, BTreeSet};

use crate::{compile::Problem, desired::VirtualKey, objects::ObjectKey};

/// Problems kept of one reporter that adds up: enough to see the pattern when a whole table is refused.
const MOST_ADDED: usize = 100;

/// Who reports. A report replaces all earlier ones of the same reporter.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Reporter {
    /// What holds since the agent was started.
    Start,
    Service(ObjectKey),
    /// Disputes over one virtual server.
    Dispute(VirtualKey),
    Node,
    /// Sources: rejected input, unavailable kinds, stray slices.
    View,
    /// Kernel settings and modules.
    Settings,
    /// Refused orders and failing planes.
    Kernel,
    /// Network policy: objects that cannot be honoured, limits, the plane.
    Policy,
    /// The service fast path: limits, the plane.
    Balance,
}

#[derive(Debug, Default)]
pub struct Problems {
    standing: BTreeMap<Reporter, Vec<Problem>>,
    appeared: BTreeSet<Problem>,
    resolved: BTreeSet<Problem>,
}

impl Problems {
    pub fn report(&mut self, reporter: Reporter, problems: Vec<Problem>) {
        let old = self.standing.remove(&reporter).unwrap_or_default();
        // Sets, as one reporter may have thousands: anybody who may write EndpointSlices can make stray ones.
        let (before, now): (BTreeSet<&Problem>, BTreeSet<&Problem>) = (old.iter().collect(), problems.iter().collect());
        for problem in now.difference(&before) {
            if !self.resolved.remove(*problem) {
                self.appeared.insert((*problem).clone());
            }
        }
        for problem in before.difference(&now) {
            if !self.appeared.remove(*problem) {
                self.resolved.insert((*problem).clone());
            }
        }
        if !problems.is_empty() {
            self.standing.insert(reporter, problems);
        }
    }

    /// Adds to what the reporter said before. Keeps the first [`MOST_ADDED`].
    pub fn extend(&mut self, reporter: Reporter, problems: Vec<Problem>) {
        if problems.is_empty() {
            return;
        }
        let mut all = self.standing.get(&reporter).cloned().unwrap_or_default();
        for problem in problems.into_iter().take(MOST_ADDED.saturating_sub(all.len())) {
            if !all.contains(&problem) {
                all.push(problem);
            }
        }
        self.report(reporter, all);
    }

    pub fn iter(&self) -> impl Iterator<Item = &Problem> {
        self.standing.values().flatten()
    }

    /// (appeared, resolved) since the last call.
    pub fn take_changes(&mut self) -> (BTreeSet<Problem>, BTreeSet<Problem>) {
        (std::mem::take(&mut self.appeared), std::mem::take(&mut self.resolved))
    }
}
