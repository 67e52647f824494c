//! Which way a virtual server's new flows go: the fast path's, or IPVS's alone, and then why.
//!
//! In: the virtual server as the kernel has it, its destinations in the kernel's order, what its Service says. Out: a
//! [`Ring`], which programs read instead of asking IPVS, or [`Why`] there is none. IPVS is programmed in either case.
//!
//! Orders to the kernel may be refused, so that what IPVS does follows from what it has, not from what is wanted of it.

use std::fmt;

use kube_router_common::{
    balance::Vip,
    schedule::{NONE, Tables},
};

use super::rings::{Listed, hashes_port, ring};
use crate::{
    desired::{Scheduler, Virtual, VirtualKey, ipvs::FLAG_SCHED_1},
    objects::{Protocol, annotations},
};

/// What holds for all virtual servers of this node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FastPath {
    /// All is IPVS's.
    pub off: Option<Why>,
    /// Of the running kernel; `None`: not known.
    pub tables: Option<Tables>,
}

/// Who answers for new flows to a virtual server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Path {
    /// The programs choose. What they do not know is IPVS's.
    Fast,
    Ipvs(Why),
}

/// Why a virtual server is IPVS's alone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Why {
    /// By flag `--service-fastpath`, or without programs.
    Off,
    /// The programs end with the container.
    Passing,
    /// Pods keep their addresses on the fast path: flag `--masquerade-all`.
    Masqueraded,
    /// By annotation.
    Refused,
    Protocol,
    /// rr and lc: an endpoint that only IPVS gives flows to, and not only its share.
    Host,
    /// A client that IPVS knows keeps its destination.
    Affinity,
    /// Not in the kernel, or not for long.
    Missing,
    /// Somebody else's scheduler, or options that we never ask for.
    Scheduler,
    /// A destination that is not plain NAT, or with limits.
    Forwarding,
    NoDestination,
    TableSize,
    /// mh: a destination's weight before it was drained.
    LastWeight,
    /// mh: more destinations than slots.
    TooMany,
    NoRoom,
}

impl fmt::Display for Path {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let why = match self {
            Path::Fast => return f.write_str("fast"),
            Path::Ipvs(why) => why,
        };
        match why {
            Why::Off => f.write_str("IPVS: the fast path is off"),
            Why::Passing => f.write_str("IPVS: the programs end with the container"),
            Why::Masqueraded => f.write_str("IPVS: --masquerade-all"),
            Why::Refused => write!(f, "IPVS: annotation {}", annotations::FASTPATH),
            Why::Protocol => f.write_str("IPVS: SCTP"),
            Why::Host => f.write_str("IPVS: an endpoint in its node's network"),
            Why::Affinity => f.write_str("IPVS: session affinity"),
            Why::Missing => f.write_str("IPVS: not there yet"),
            Why::Scheduler => f.write_str("IPVS: changed by somebody else"),
            Why::Forwarding => f.write_str("IPVS: a destination is not plain NAT"),
            Why::NoDestination => f.write_str("IPVS: no destination takes new connections"),
            Why::TableSize => f.write_str("IPVS: size of the kernel's table not known"),
            Why::LastWeight => f.write_str("IPVS: weight before draining not known"),
            Why::TooMany => f.write_str("IPVS: more destinations than slots"),
            Why::NoRoom => f.write_str("IPVS: no room in the fast path's tables"),
        }
    }
}

/// How programs choose for one virtual server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ring {
    /// Without id, ring and times.
    pub vip: Vip,
    /// Places in the list of destinations, or [`NONE`].
    pub slots: Vec<u32>,
}

/// `server` and `list` are the kernel's; `wanted`: the Service says nothing against it; `hosts`: not all destinations are pods
/// with a network of their own.
pub fn compile_ring(
    key: &VirtualKey,
    server: &Virtual,
    list: &[Listed],
    (wanted, hosts): (bool, bool),
    fast: &FastPath,
) -> Result<Ring, Why> {
    if let Some(why) = fast.off {
        return Err(why);
    }
    if !wanted {
        return Err(Why::Refused);
    }
    if key.protocol == Protocol::Sctp {
        return Err(Why::Protocol);
    }
    if server.persistence_s.is_some() {
        return Err(Why::Affinity);
    }
    // IPVS itself has destinations of the other family only behind tunnels, and programs do not look.
    let is_plain =
        |listed: &Listed| i32::try_from(listed.weight).is_ok() && listed.destination.is_ipv4() == key.address.is_ipv4();
    if !list.iter().all(is_plain) {
        return Err(Why::Forwarding);
    }
    if list.iter().all(|listed| listed.weight == 0) {
        return Err(Why::NoDestination);
    }
    let (scheduler, like) = match server.scheduler {
        // It has no table either, and asks all who are open.
        Scheduler::Lc => (Vip::LC, Scheduler::Rr),
        Scheduler::Rr => (Vip::RR, Scheduler::Rr),
        Scheduler::Sh => (Vip::SH, Scheduler::Sh),
        Scheduler::Dh => (Vip::DH, Scheduler::Dh),
        Scheduler::Mh => (Vip::MH, Scheduler::Mh),
        Scheduler::Other => return Err(Why::Scheduler),
    };
    // The others ask a client's slot, and IPVS finds the same one there.
    if hosts && like == Scheduler::Rr {
        return Err(Why::Host);
    }
    let tables = match (fast.tables, like) {
        (Some(tables), _) => tables,
        (None, Scheduler::Rr) => Tables::default(),
        (None, _) => return Err(Why::TableSize),
    };
    let Some(slots) = ring(like, server.sched_flags, list, &tables) else {
        let forgotten = list.iter().any(|listed| listed.last_weight.is_none());
        return Err(if forgotten { Why::LastWeight } else { Why::TooMany });
    };
    // A table may leave somebody out who is open, if its slots are few.
    if slots.iter().all(|slot| *slot == NONE) {
        return Err(Why::NoDestination);
    }
    let flag = |set: bool, flag: u8| if set { flag } else { 0 };
    let falls_back = server.scheduler == Scheduler::Mh && server.sched_flags & FLAG_SCHED_1 != 0;
    let vip = Vip {
        scheduler,
        flags: flag(hashes_port(server.scheduler, server.sched_flags), Vip::HASH_PORT)
            | flag(falls_back, Vip::MH_FALLBACK),
        ..Vip::default()
    };
    Ok(Ring { vip, slots })
}
