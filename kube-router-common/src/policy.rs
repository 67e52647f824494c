//! Network policy as tables: what the compiler writes and the programs look up.
//!
//! ```text
//! packet at a pod's hook
//!   endpoint = kr_eps[pod address]            whose packet; interface and hardware address (anti-spoofing)
//!   pod      = kr_pods[endpoint.pod]          ingress group, egress group; 0: not isolated
//!   flow     = kr_flows[tuple]                a live flow of this generation: done
//!   peer     = kr_peers[address], else kr_cidrs[longest prefix]       class and flags
//!   ports    = kr_ports[protocol, port]       port class
//!   verdict  = kr_policy[group, class, ports] first hit of four, from the most special to the most general key
//! ```
//!
//! A *class* is a set of peers that no rule tells apart; a *port class* the same for ports; a *group* is a set of local
//! pods with the same rules in one direction. So the cost of a verdict does not depend on the number of policies.
//!
//! Addresses have 16 bytes in network order; an IPv4 address is mapped (`::ffff:a.b.c.d`, RFC 4291 section 2.5.5.2), and
//! no packet may carry a mapped address itself. All numbers are in the byte order of the machine, ports too.

use core::mem::size_of;

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// Group of a pod that no policy speaks of in this direction: everything is allowed.
pub const NOT_ISOLATED: u32 = 0;
/// Group that never has rows: nothing is allowed.
pub const CLOSED: u32 = u32::MAX;
/// Class of a peer that no rule names.
pub const CLASS_WORLD: u32 = 0;
/// Port class of a port that no rule names.
pub const PORTS_OTHER: u32 = 0;
/// In a key of [`PolicyKey`]: whatever the class, or the port class, is.
pub const ANY: u32 = u32::MAX;
/// Port class of what has no ports, or of a fragment whose ports are unknown. Rules that allow ports have no rows for it, so
/// that only those for [`ANY`] fit; rules that deny ports have.
pub const PORTLESS: u32 = u32::MAX - 1;

/// Pods of one node, plus one, as number 0 is nobody. A kubelet's default is 110, large nodes run 250 to 500; two
/// addresses each.
pub const MAX_PODS: u32 = 4_096;
/// Addresses of local pods: two for each pod.
pub const DEFAULT_ENDPOINTS: u32 = 2 * MAX_PODS;
/// Addresses of all pods of the cluster that a policy of this node names or could name, of nodes, and of services.
pub const DEFAULT_PEERS: u32 = 262_144;
/// Prefixes of ipBlocks and of their exceptions, and as many again while they change.
pub const DEFAULT_CIDRS: u32 = 131_072;
/// Rows of all groups: groups x classes x port classes that some rule allows.
pub const DEFAULT_ROWS: u32 = 1_048_576;
/// Rules that are told apart by counters. Further ones are counted as rule 0.
pub const MAX_RULES: u32 = 65_536;
/// Ports of services: each address with each port, and each node port once.
pub const DEFAULT_SERVICES: u32 = 131_072;
/// Flows of pods; as the kernel's own table (nf_conntrack_max) has on a machine of this size.
pub const DEFAULT_FLOWS: u32 = 262_144;
/// Protocols with ports: TCP, UDP, SCTP, in this order in the table of ports.
pub const PORT_PROTOCOLS: u32 = 3;
pub const PORT_ENTRIES: u32 = PORT_PROTOCOLS * 65_536;
/// Counters of refused packets: pod, direction and reason.
pub const DEFAULT_DROPS: u32 = 16_384;

/// Index into the table of port classes; `None` for a protocol without ports.
#[inline(always)]
pub const fn port_index(protocol: u8, port: u16) -> Option<u32> {
    let place = match protocol {
        6 => 0,
        17 => 1,
        132 => 2,
        _ => return None,
    };
    Some(place * 65_536 + port as u32)
}

/// An address; see the module about IPv4. Aligned, so that programs copy and compare words instead of bytes.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
#[repr(C, align(4))]
pub struct Address(pub [u8; 16]);

impl Address {
    #[inline(always)]
    pub const fn from_v4(octets: [u8; 4]) -> Self {
        let [a, b, c, d] = octets;
        Address([0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, a, b, c, d])
    }

    /// Is this the form that stands for IPv4?
    pub const fn is_v4(&self) -> bool {
        matches!(self.0, [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, ..])
    }
}

/// Key of the table of prefixes. The family stands in front, so that `::/0` does not cover mapped IPv4.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct CidrKey {
    /// Bits that count, from the start of `family`: 32 + 96 + length for IPv4, 32 + length for IPv6.
    pub length: u32,
    /// 4 or 6 in the last byte.
    pub family: [u8; 4],
    pub address: Address,
}

impl CidrKey {
    pub const fn family_of(v4: bool) -> [u8; 4] {
        if v4 { [0, 0, 0, 4] } else { [0, 0, 0, 6] }
    }
}

/// A local pod's address.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct Endpoint {
    /// Number of the pod, 1 to [`MAX_PODS`] - 1.
    pub pod: u32,
    /// The node's end of the pod's veth.
    pub ifindex: u32,
    /// The pod's end.
    pub mac: [u8; 6],
    pub pad: [u8; 2],
}

/// A local pod: one element, so that both directions and both families change at once.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct PodGroups {
    pub ingress: u32,
    pub egress: u32,
}

/// What is known of a peer's address.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct Peer {
    pub class: u32,
    /// [`Peer::NODE`] and the others.
    pub flags: u32,
}

impl Peer {
    /// An address of this node: what it sends to its own pods is always allowed.
    pub const NODE: u32 = 1;
    /// An address of a service; its ports are in the table of services.
    pub const SERVICE: u32 = 2;
    /// A pod of another node: nothing behind an interface of this node speaks for it.
    pub const REMOTE: u32 = 4;
}

/// A port at which a service answers. Who really answers is seen behind the load balancer; egress is judged there.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
#[repr(C)]
pub struct ServiceKey {
    /// All zero: any address of the node.
    pub address: Address,
    pub port: u16,
    pub protocol: u8,
    pub pad: u8,
}

/// A process of this node among those who may answer. What a load balancer hands to it passes no hook any more, so a pod
/// whose policies forbid it is refused at once, whomever it would have got.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct Service {
    /// Port 0: none.
    pub host: Address,
    pub host_port: u16,
    /// [`Service::MORE`]
    pub flags: u16,
}

impl Service {
    /// There are more such processes than one: pods with egress rules are refused.
    pub const MORE: u16 = 1;
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct PolicyKey {
    pub group: u32,
    /// A class or [`ANY`].
    pub class: u32,
    /// A port class or [`ANY`].
    pub ports: u32,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct PolicyRow {
    /// [`PolicyRow::ALLOW`] or [`PolicyRow::DENY`]; anything else denies.
    pub verdict: u32,
    /// The rule that decided, for counters and explanations; 0 if it has no number.
    pub rule: u32,
}

impl PolicyRow {
    pub const ALLOW: u32 = 1;
    pub const DENY: u32 = 2;
}

const _: () = assert!(size_of::<CidrKey>() == 24 && size_of::<Endpoint>() == 16 && size_of::<PodGroups>() == 8);
const _: () = assert!(size_of::<ServiceKey>() == 20 && size_of::<Service>() == 20);
const _: () = assert!(size_of::<Peer>() == 8 && size_of::<PolicyKey>() == 12 && size_of::<PolicyRow>() == 8);

/// The answer for one new flow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Verdict {
    pub allowed: bool,
    /// See [`PolicyRow::rule`]; 0 where no row fits.
    pub rule: u32,
}

/// Looks the four rows up, most special first. No row: denied. `lookup` reads the table of rows, wherever it is; the
/// programs and the agent's own walk of the rows share this.
#[inline(always)]
pub fn judge(group: u32, class: u32, ports: u32, mut lookup: impl FnMut(&PolicyKey) -> Option<PolicyRow>) -> Verdict {
    if group == NOT_ISOLATED {
        return Verdict { allowed: true, rule: 0 };
    }
    let keys = [(class, ports), (class, ANY), (ANY, ports), (ANY, ANY)];
    for (class, ports) in keys {
        if let Some(row) = lookup(&PolicyKey { group, class, ports }) {
            return Verdict { allowed: row.verdict == PolicyRow::ALLOW, rule: row.rule };
        }
    }
    Verdict { allowed: false, rule: 0 }
}
