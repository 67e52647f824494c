//! Services as tables: what a program reads to choose, for a flow's first packet, the destination that IPVS might.
//!
//! ```text
//! first packet of a flow to a service
//!   vip     = kr_vips[address, port, protocol]   no row, or one without slots: IPVS's alone
//!   slot    = by vip.scheduler                   rr: kr_turns[vip.id]; sh, dh, mh: `schedule`; lc: kr_actives of all
//!   id      = kr_rings[vip.ring, slot]           no row, or schedule::NONE: IPVS's
//!   backend = kr_backends[id]                    not OPEN, or not of this vip: IPVS's
//! packet of a flow that is known to have the backend `id`
//!   backend = kr_backends[id]                    not LIVE: its destination is gone
//! ```
//!
//! A *virtual server* is IPVS's: each node address of a node port is one. A *ring* never changes once a row of `kr_vips` names
//! it; another one takes its place at once, as the row is one element. A *backend* is one destination of one virtual server,
//! as IPVS's own counts are. Its number stays that destination's until nobody can hold it any more: without flags the
//! row is kept for the number alone.

use core::mem::size_of;

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use crate::policy::Address;

/// Virtual servers, plus one, as number 0 is nobody. A cluster with 10,000 services of two ports and two families fills
/// two thirds.
pub const MAX_VIPS: u32 = 65_536;
/// Destinations, plus one: four for each virtual server, those that are gone and may still have flows included.
pub const MAX_BACKENDS: u32 = 262_144;
/// Rows of counts that each virtual server has, so that processors seldom wait for each other.
pub const COUNT_SHARDS: u32 = 4;
/// Slots of all rings, one that is being replaced included: sixteen for each virtual server, or 256 tables of mh.
pub const MAX_SLOTS: u32 = 1_048_576;

/// A virtual server that does not wait for IPVS. The key is [`crate::policy::ServiceKey`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct Vip {
    /// 1 to [`MAX_VIPS`] - 1; index into the table of turns.
    pub id: u32,
    pub ring: u32,
    /// Of the ring; 0: the row rests ([`Vip::rests`]).
    pub slots: u32,
    /// Session affinity by the client's address; 0: none.
    pub affinity_s: u32,
    /// UDP: until then (seconds of CLOCK_MONOTONIC) a flow that is not known may be one that IPVS has, and is IPVS's.
    pub learn_until_s: u32,
    /// [`Vip::RR`] and the others.
    pub scheduler: u8,
    /// [`Vip::HASH_PORT`] and the other.
    pub flags: u8,
    pub pad: u16,
}

impl Vip {
    pub const RR: u8 = 1;
    /// The ring is the list of those who may be chosen, as with [`Vip::RR`].
    pub const LC: u8 = 2;
    pub const SH: u8 = 3;
    pub const DH: u8 = 4;
    pub const MH: u8 = 5;

    /// sh and mh: the client's port counts, too.
    pub const HASH_PORT: u8 = 1;
    /// mh: a slot without anybody is not the end of it (`schedule::mh_fallback`).
    pub const MH_FALLBACK: u8 = 2;

    /// What is left of a row while all new flows are IPVS's: whose the number is, for the backends and counts that have it.
    pub const fn resting(id: u32) -> Vip {
        Vip { id, ring: 0, slots: 0, affinity_s: 0, learn_until_s: 0, scheduler: 0, flags: 0, pad: 0 }
    }

    /// To the programs it is as if there were no row.
    #[inline(always)]
    pub const fn rests(&self) -> bool {
        self.slots == 0
    }
}

/// A place in a ring. The value is a backend's number or `schedule::NONE`.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
#[repr(C)]
pub struct RingKey {
    pub ring: u32,
    pub slot: u32,
}

/// A destination of a virtual server. All zero: the number is nobody's.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct Backend {
    pub address: Address,
    pub port: u16,
    /// [`Backend::LIVE`] and the other; 0: gone from IPVS.
    pub flags: u16,
    /// [`Vip::id`]
    pub vip: u32,
}

/// What a virtual server's flows on the fast path did since its number was given out, as one of [`COUNT_SHARDS`] groups of
/// processors counted: the index is `COUNT_SHARDS * Vip::id + processor % COUNT_SHARDS`. Bytes are those of IP, as IPVS counts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct VipCount {
    pub connections: u64,
    /// From clients.
    pub packets_in: u64,
    pub bytes_in: u64,
    /// From backends.
    pub packets_out: u64,
    pub bytes_out: u64,
}

impl Backend {
    /// Connections that have begun go on.
    pub const LIVE: u16 = 1;
    /// New ones may begin.
    pub const OPEN: u16 = 2;
    /// A pod of another node: nobody masquerades what is sent to it.
    pub const REMOTE: u16 = 4;

    #[inline(always)]
    pub const fn has(&self, flag: u16) -> bool {
        self.flags & flag != 0
    }
}

const _: () = assert!(size_of::<VipCount>() == 40);
const _: () = assert!(size_of::<Vip>() == 24 && size_of::<RingKey>() == 8 && size_of::<Backend>() == 24);
const _: () = assert!(MAX_BACKENDS == 4 * MAX_VIPS && MAX_SLOTS == 16 * MAX_VIPS && MAX_SLOTS / 4_096 == 256);
