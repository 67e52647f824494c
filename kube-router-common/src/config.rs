//! What the agent tells the programs besides the tables of policy, and small tables of the programs' own.

use core::mem::size_of;

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use crate::policy::Address;

/// Version of all layouts in this crate; part of the path under which maps are pinned.
pub const SCHEMA: u32 = 3;

/// Since this version a table's rows mean what they mean now: what an agent of it left is taken over. Whoever changes a
/// meaning says here where it ends; then flows of the service fast path end with the older agent's programs, as no other
/// way knows their backends.
pub const ROWS_SINCE: u32 = 2;

/// One element; a zeroed one means: generation 0, anti-spoofing, answers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct Config {
    /// Flows of another generation are judged again.
    pub generation: u32,
    /// [`Config::NO_ANTISPOOF`] and the others.
    pub flags: u32,
    /// Until then (seconds of CLOCK_MONOTONIC) a TCP packet that opens nothing and is denied the way it goes may be the
    /// reply of a connection older than the flow table.
    pub learn_until_s: u32,
    /// Rows that fit `kr_flows`, which pods share ([`crate::flow::has_place`]); 0: not known, then nobody's share is looked at.
    pub max_flows: u32,
}

impl Config {
    /// Source addresses of pods are not checked.
    pub const NO_ANTISPOOF: u32 = 2;
    /// Refused packets get no answer.
    pub const SILENT: u32 = 4;
    /// Flows of an older generation live on.
    pub const KEEP_ESTABLISHED: u32 = 8;
    /// An event for every new flow.
    pub const FLOW_EVENTS: u32 = 16;
    /// Flows of pods that nothing isolates are known too, for the policy that will.
    pub const ALL_FLOWS: u32 = 32;
    /// What a pod begins to send to another one of this node takes the short way.
    pub const FAST: u32 = 64;
    /// Some flows may have taken the short way, and go on.
    pub const FAST_FLOWS: u32 = 128;

    #[inline(always)]
    pub const fn has(&self, flag: u32) -> bool {
        self.flags & flag != 0
    }
}

/// The node's end of a pod's veth, or an uplink.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct Iface {
    /// The pod's end; all zero: not known, not checked.
    pub mac: [u8; 6],
    /// `Iface::PUBLISHED` and the others.
    pub flags: u16,
    pub pod: u32,
    /// The pod's network namespace: the number that the node's knows it by (`link-netnsid`), plus one; 0: not known.
    pub netns: u32,
}

impl Iface {
    /// Addresses and groups of the pod are in the tables.
    pub const PUBLISHED: u16 = 1;
    /// Until then nothing passes but ARP and neighbour discovery.
    pub const DEFAULT_DENY: u16 = 2;
    /// A device without a link-layer header (IPIP and the like).
    pub const NO_LINK_HEADER: u16 = 4;
    /// No pod's: an uplink or tunnel. The programs do not ask; the agent does when it starts.
    pub const UPLINK: u16 = 8;
    /// With [`Iface::DEFAULT_DENY`]: only while some pod that policies are about has no interface, as it may hide here. For
    /// the agent.
    pub const SUSPECT: u16 = 16;
    /// A pod's, and nothing stands here that packets must meet: they may be handed to the pod, and on from it, past the stack.
    pub const DIRECT: u16 = 32;
}

/// Interfaces: pods, uplinks and tunnels.
pub const DEFAULT_IFACES: u32 = 4_096 + 1_024;

/// Which packet a fragment belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct FragKey {
    pub source: Address,
    pub destination: Address,
    pub id: u32,
    /// IPv4: the protocol (RFC 791 counts ids per protocol). IPv6: 44.
    pub protocol: u32,
}

/// What the first fragment said, if it was allowed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct FragPorts {
    pub source: u16,
    pub destination: u16,
    /// Perhaps with [`FragPorts::PASSES`].
    pub protocol: u32,
}

impl FragPorts {
    /// A message of ICMP that is allowed whatever the policies say.
    pub const PASSES: u32 = 0x100;
}

/// Packets that are being sent in fragments at the same moment. An older one gives way; its later fragments then fit rows
/// without ports only.
pub const DEFAULT_FRAGS: u32 = 4_096;

/// Where a pod's masqueraded packets come from: its addresses, as last seen towards a service.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct Origin {
    pub v4: Address,
    pub v6: Address,
}

/// New flows a rule decided on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct RuleCount {
    pub flows: u64,
    /// Of the first packets.
    pub bytes: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct DropKey {
    /// 0 if it is not known.
    pub pod: u32,
    /// [`crate::reason::Direction`]
    pub direction: u8,
    /// [`crate::reason::Reason`]
    pub reason: u8,
    pub pad: u16,
}

/// `skb->tc_index`, which survives routing and IPVS: what later hooks must know of a packet.
pub mod note {
    /// Up to here it is a pod's number: that pod's egress verdict is still pending.
    pub const LAST_POD: u16 = 4_095;
    /// From here it is the class of an outside client, plus this.
    pub const FIRST_CLASS: u16 = 4_096;
    /// Classes that can be noted.
    pub const LAST_CLASS: u32 = 61_000;
    /// A client whose class cannot be noted: only rows for any class fit.
    pub const NO_CLASS: u16 = 0xfffe;
    /// Our own ICMP answer; counts only together with [`ANSWER_MARK`].
    pub const ANSWER: u16 = 0xffff;
    /// Bits of `skb->mark`. A mark does not leave a network namespace, so no pod can forge it, as it could a note.
    pub const ANSWER_MARK: u32 = 0x0060_0000;
    pub const MARK_MASK: u32 = 0x00f0_0000;

    #[inline(always)]
    pub const fn of_class(class: u32) -> u16 {
        if class > LAST_CLASS { NO_CLASS } else { class as u16 + FIRST_CLASS }
    }

    /// The pod whose verdict is pending.
    #[inline(always)]
    pub const fn pod(note: u16) -> Option<u32> {
        if note != 0 && note <= LAST_POD { Some(note as u32) } else { None }
    }
}

const _: () = assert!(note::LAST_POD as u32 + 1 >= crate::policy::MAX_PODS);
const _: () = assert!(note::FIRST_CLASS as u32 + note::LAST_CLASS < note::NO_CLASS as u32);
const _: () = assert!(size_of::<Config>() == 16 && size_of::<Iface>() == 16 && size_of::<FragKey>() == 40);
const _: () = assert!(size_of::<FragPorts>() == 8 && size_of::<Origin>() == 32 && size_of::<RuleCount>() == 16);
const _: () = assert!(size_of::<DropKey>() == 8);
