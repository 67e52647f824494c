//! How long to wait after a failure: exponential, with jitter so that the nodes of a cluster do not return in step.

use std::{
    hash::{BuildHasher, Hasher, RandomState},
    time::Duration,
};

/// The first wait lies between half of this and this.
const FIRST: Duration = Duration::from_millis(500);
/// No wait is longer.
const LONGEST: Duration = Duration::from_secs(30);

#[derive(Debug, Default)]
pub(super) struct Backoff {
    failures: u32,
}

impl Backoff {
    /// The next wait; `random` is any number.
    pub(super) fn next(&mut self, random: u64) -> Duration {
        let ceiling = FIRST.saturating_mul(1 << self.failures.min(16)).min(LONGEST);
        self.failures = self.failures.saturating_add(1);
        let half = ceiling / 2;
        // Below 30,000 ms, so the conversion cannot fail; a wait of `half` would do as well.
        let span_ms = u64::try_from(half.as_millis()).unwrap_or(0) + 1;
        half + Duration::from_millis(random % span_ms)
    }

    pub(super) fn reset(&mut self) {
        self.failures = 0;
    }
}

/// A random number. The standard library seeds its hash maps from the system; more is not needed to spread retries.
pub(super) fn random() -> u64 {
    RandomState::new().build_hasher().finish()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_grow_to_the_cap_and_start_again_after_a_success() {
        let mut backoff = Backoff::default();
        let longest: Vec<u64> = (0..9).map(|_| backoff.next(u64::MAX - 1).as_millis() as u64).collect();
        for (i, wait) in longest.iter().enumerate() {
            let ceiling = (500u64 << i).min(30_000);
            assert!((ceiling / 2..=ceiling).contains(wait), "wait {i} is {wait} ms");
        }
        assert_eq!(backoff.next(0), Duration::from_secs(15));
        for random in [0, 1, 7_777_777, u64::MAX] {
            assert!(backoff.next(random) <= LONGEST);
        }
        backoff.reset();
        assert_eq!(backoff.next(0), Duration::from_millis(250));
    }

    #[test]
    fn jitter_differs() {
        assert_ne!(random(), random());
    }
}
