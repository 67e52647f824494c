//! What the rest of the agent is told of policy: what failed, standing problems, readiness, figures.

use super::{Enforcer, bindings};
use crate::{
    apply::PlaneError,
    compile::{Problem, Subject, interfaces::Claim},
    desired::interfaces::Interfaces,
};

impl Enforcer {
    pub(super) fn failed(&mut self, error: &PlaneError, now_ms: u64) {
        self.running.clear();
        self.update = None;
        self.in_force = None;
        self.full_at_ms = now_ms.saturating_add(self.backoff.fail());
        let full = matches!(error, PlaneError::Bpf(error) if error.is_full());
        let (subject, reason, effect) = match (self.enforces(), full) {
            (true, true) => ("network policy", "PolicyTableFull", "what is not in the table is denied; trying again"),
            (true, false) => ("network policy", "KernelRefused", "policies stay as they were; trying again"),
            (false, _) => ("service fast path", "KernelRefused", "IPVS serves what it does not; trying again"),
        };
        let text = format!("{error}; {effect}");
        self.failure = Some(Problem { subject: Subject::Kernel(subject), reason, text });
        self.report();
    }

    pub(super) fn report(&mut self) {
        let standing = self.compiler.problems().chain(&self.bindings).chain(&self.failure).cloned();
        self.problems = Some(standing.chain(self.services.problem()).collect());
    }

    pub(super) fn report_bindings(&mut self, claims: &[Claim], wanted: &Interfaces) {
        self.bindings = bindings::claimed(claims, &self.links.now, self.config.antispoof);
        self.searched.narrow(wanted);
        let pod = |number: u32| self.compiled().pods().find(|(_, of)| *of == number).map(|(key, _)| key.clone());
        let nowhere = self.searched.problems(pod);
        self.bindings.extend(nowhere);
        self.report();
    }

    /// All standing problems, if they may have changed since the last call.
    pub fn take_problems(&mut self) -> Option<Vec<Problem>> {
        self.problems.take()
    }

    /// Updates that were carried out since the last call.
    pub fn take_finished(&mut self) -> usize {
        std::mem::take(&mut self.finished)
    }

    /// Milliseconds that pods were open which no network plugin announced, and are no longer.
    pub fn take_gaps(&mut self) -> Vec<u64> {
        self.links.gaps.take()
    }

    /// The first pass is through and nothing is wrong with the plane.
    pub fn is_ready(&self) -> bool {
        self.settled && self.failure.is_none()
    }
}
