//! When to try again: one second, doubling to half a minute, back to the start after a success.

const FIRST_MS: u64 = 1_000;
const LAST_MS: u64 = 30_000;

#[derive(Debug, Default)]
pub struct Backoff {
    failures: u32,
}

impl Backoff {
    /// Notes a failure and returns the delay until the next try.
    pub fn fail(&mut self) -> u64 {
        let delay = FIRST_MS.saturating_mul(1 << self.failures.min(5)).min(LAST_MS);
        self.failures = self.failures.saturating_add(1);
        delay
    }

    pub fn succeed(&mut self) {
        self.failures = 0;
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
