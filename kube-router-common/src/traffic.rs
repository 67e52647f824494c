//! Counters of packets.

use core::mem::{offset_of, size_of};

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// Counters on one processor since the map was made.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct Traffic {
    pub packets: u64,
    /// With the link-layer header, without the frame check sequence. Of a packet that is segmented or merged by the
    /// kernel (GSO, GRO) as it passes: once.
    pub bytes: u64,
}

const _: () = assert!(size_of::<Traffic>() == 16);
const _: () = assert!(offset_of!(Traffic, packets) == 0 && offset_of!(Traffic, bytes) == 8);

impl Traffic {
    /// Counters start anew when they overflow, after 2^64 bytes.
    pub const fn plus(self, other: Traffic) -> Traffic {
        Traffic { packets: self.packets.wrapping_add(other.packets), bytes: self.bytes.wrapping_add(other.bytes) }
    }
}
