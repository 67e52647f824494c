//! When to try again: one second, doubling to half a minute, back to the start after a success.
//!
//! Orders that are refused have a pace of their own, up to the period of full passes: one service that the kernel will
//! never take must not have the whole kernel read for ever. Whatever is refused for the first time starts it over.

use std::collections::BTreeSet;

use crate::compile::Problem;

const FIRST_MS: u64 = 1_000;
const LAST_MS: u64 = 30_000;

#[derive(Debug, Default)]
pub struct Backoff {
    failures: u32,
}

impl Backoff {
    /// Notes a failure and returns the delay until the next try.
    pub fn fail(&mut self) -> u64 {
        self.fail_within(LAST_MS)
    }

    fn fail_within(&mut self, last_ms: u64) -> u64 {
        let delay = FIRST_MS.saturating_mul(1 << self.failures.min(32)).min(last_ms);
        self.failures = self.failures.saturating_add(1);
        delay
    }

    pub fn succeed(&mut self) {
        self.failures = 0;
    }
}

/// What the kernel refuses, and when to ask again.
#[derive(Debug, Default)]
pub struct Refusals {
    before: BTreeSet<Problem>,
    now: BTreeSet<Problem>,
    backoff: Backoff,
}

impl Refusals {
    pub fn note(&mut self, problem: Problem) {
        self.now.insert(problem);
    }

    /// After a full pass: the delay until the next one; `None`: nothing was refused.
    pub fn after_full(&mut self, period_ms: u64) -> Option<u64> {
        let new = !self.now.is_subset(&self.before);
        self.before = std::mem::take(&mut self.now);
        if new || self.before.is_empty() {
            self.backoff.succeed();
        }
        (!self.before.is_empty()).then(|| self.backoff.fail_within(period_ms))
    }

    /// After a change: the delay until a full pass; `None`: nothing was refused that was not before.
    pub fn after_change(&mut self, period_ms: u64) -> Option<u64> {
        let known = self.before.len();
        self.before.append(&mut self.now);
        if self.before.len() == known {
            return None;
        }
        self.backoff.succeed();
        Some(self.backoff.fail_within(period_ms))
    }
}

#[cfg(test)]
mod tests {
    use super::Backoff;

    #[test]
    fn doubles_to_half_a_minute_and_starts_over() {
        let mut backoff = Backoff::default();
        let delays: Vec<u64> = (0..7).map(|_| backoff.fail()).collect();
        assert_eq!(delays, [1_000, 2_000, 4_000, 8_000, 16_000, 30_000, 30_000]);
        backoff.succeed();
        assert_eq!(backoff.fail(), 1_000);
    }
}
