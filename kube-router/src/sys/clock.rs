//! The two clocks, in one place.
//!
//! The process clock never jumps and starts at zero when it is first asked: use it for ages, deadlines and the
//! [`crate::observe::Pulse`]. The wall clock is for people and for metrics that carry a date; it may jump.
//! Pure rooms take time as an argument instead of calling this.

use std::{
    sync::LazyLock,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

static START: LazyLock<Instant> = LazyLock::new(Instant::now);

/// Time since the process clock was first asked (CLOCK_MONOTONIC: a suspended machine does not age).
pub fn uptime() -> Duration {
    START.elapsed()
}

/// [`uptime`] in whole milliseconds.
pub fn uptime_ms() -> u64 {
    // A process would have to run for 584 million years.
    u64::try_from(uptime().as_millis()).unwrap_or(u64::MAX)
}

/// Seconds since 1970 by the wall clock; 0 while that clock stands before 1970.
pub fn unix_seconds() -> f64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0.0, |since| since.as_secs_f64())
}

/// What to add to CLOCK_MONOTONIC, the clock of the BPF programs, to have nanoseconds since 1970.
pub fn boot_unix_ns() -> u64 {
    let monotonic =
        nix::time::clock_gettime(nix::time::ClockId::CLOCK_MONOTONIC).map_or(Duration::ZERO, Duration::from);
    let unix = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(unix.saturating_sub(monotonic).as_nanos()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_process_clock_runs_forward_and_the_wall_clock_is_in_this_century() {
        let first = uptime();
        std::thread::sleep(Duration::from_millis(2));
        assert!(uptime() >= first + Duration::from_millis(2));
        assert!(unix_seconds() > 1_600_000_000.0);
    }
}
