//! What the programs tell as it happens: records in the ring buffer, and the allowance that keeps them few.

use core::mem::size_of;

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use crate::policy::Address;

/// Bytes of a packet that a record keeps, from the link-layer header on.
pub const CAPTURE: usize = 128;
/// Bytes of the ring buffer: about 5,000 records wait while the agent is busy; what does not fit is lost.
pub const RING_BYTES: u32 = 1 << 20;

/// The record without the packet.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct EventHead {
    /// CLOCK_MONOTONIC
    pub time_ns: u64,
    /// Of the packet, with its link-layer header.
    pub length: u32,
    /// 0: not known.
    pub pod: u32,
    /// The peer's class, if it was looked up.
    pub class: u32,
    pub rule: u32,
    pub ifindex: u32,
    /// All zero if the packet was refused before it was read; so with the ports.
    pub source: Address,
    pub destination: Address,
    pub source_port: u16,
    pub destination_port: u16,
    pub protocol: u8,
    /// [`EventHead::DROP`] or [`EventHead::FLOW`].
    pub kind: u8,
    /// [`crate::reason::Reason`]; 0 for a flow.
    pub reason: u8,
    /// [`crate::reason::Direction`]
    pub direction: u8,
    /// [`crate::policy::PolicyRow::ALLOW`] or [`crate::policy::PolicyRow::DENY`].
    pub verdict: u8,
    /// Bytes of the packet that follow, at most [`CAPTURE`].
    pub captured: u8,
    pub pad: [u8; 2],
}

impl EventHead {
    pub const DROP: u8 = 1;
    pub const FLOW: u8 = 2;
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct Event {
    pub head: EventHead,
    pub packet: [u8; CAPTURE],
}

const _: () = assert!(size_of::<EventHead>() == 72 && size_of::<Event>() == 200);

/// Allowances in the table of buckets: one for each [`crate::reason::Reason`], and these.
pub const BUCKET_ANSWERS: u32 = crate::reason::REASONS as u32;
pub const BUCKET_FLOWS: u32 = BUCKET_ANSWERS + 1;
pub const BUCKETS: usize = BUCKET_FLOWS as usize + 1;

/// A token bucket; each processor has its own.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct Bucket {
    /// When the last token was added, CLOCK_MONOTONIC.
    pub filled_ns: u64,
    pub tokens: u64,
}

/// How fast a bucket fills, and how much it holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rate {
    pub interval_ns: u64,
    pub burst: u64,
}

impl Rate {
    /// Answers: 1,000 a second, as the kernel's net.ipv4.icmp_msgs_per_sec, and its burst of 50 doubled.
    pub const ANSWERS: Rate = Rate { interval_ns: 1_000_000, burst: 100 };
    /// Records of one reason: 100 a second.
    pub const DROPS: Rate = Rate { interval_ns: 10_000_000, burst: 100 };
    /// Records of new flows, which are off unless somebody looks: 10,000 a second.
    pub const FLOWS: Rate = Rate { interval_ns: 100_000, burst: 2_000 };

    #[inline(always)]
    pub const fn of(bucket: u32) -> Rate {
        match bucket {
            BUCKET_ANSWERS => Rate::ANSWERS,
            BUCKET_FLOWS => Rate::FLOWS,
            _ => Rate::DROPS,
        }
    }
}

impl Bucket {
    /// Takes a token, if there is one. A new bucket is full.
    #[inline(always)]
    pub fn take(&mut self, rate: Rate, now_ns: u64) -> bool {
        let passed = now_ns.saturating_sub(self.filled_ns);
        let new = passed / rate.interval_ns;
        if new > 0 {
            let tokens = self.tokens + if new > rate.burst { rate.burst } else { new };
            self.tokens = if tokens > rate.burst { rate.burst } else { tokens };
            self.filled_ns = if self.tokens == rate.burst { now_ns } else { self.filled_ns + new * rate.interval_ns };
        }
        if self.tokens == 0 {
            return false;
        }
        self.tokens -= 1;
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bucket_gives_its_burst_then_its_rate() {
        let rate = Rate { interval_ns: 1_000, burst: 5 };
        let mut bucket = Bucket::default();
        let mut taken = |from: u64, to: u64| (from..to).filter(|now| bucket.take(rate, *now)).count();
        let start = 1_000_000;
        assert_eq!(taken(start, start + 100), 5, "the burst");
        assert_eq!(taken(start + 100, start + 900), 0);
        assert_eq!(taken(start + 900, start + 20_900), 20, "the rate, without drift");
        assert_eq!(taken(start + 1_000_000, start + 1_000_100), 5, "no more than the burst after a pause");
        assert_eq!(taken(0, 10), 0, "a clock that goes back gives nothing");
    }
}
