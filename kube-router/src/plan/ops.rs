//! The orders of each plane and what each plane reports of the kernel.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, SocketAddr},
};

use crate::{
    compile::rings::DestinationList,
    desired::{Destination, Ruleset, SetElement, Virtual, VirtualKey},
};

/// Orders to IPVS. Every one is a single netlink request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum IpvsOp {
    /// Creates the virtual server with the attributes of `server`; its destinations come as orders of their own.
    AddServer {
        key: VirtualKey,
        server: Virtual,
    },
    /// Changes attributes in place; connections and destinations stay.
    EditServer {
        key: VirtualKey,
        server: Virtual,
    },
    /// Removes the virtual server with its destinations.
    DeleteServer {
        key: VirtualKey,
    },
    /// Removes a virtual server that is bound to a firewall mark (never ours in this version).
    DeleteMarkServer {
        mark: u32,
        ipv6: bool,
    },
    AddDestination {
        key: VirtualKey,
        destination: Destination,
        weight: u32,
    },
    /// Changes weight (and forwarding method back to NAT) in place.
    EditDestination {
        key: VirtualKey,
        destination: Destination,
        weight: u32,
    },
    DeleteDestination {
        key: VirtualKey,
        destination: Destination,
    },
}

impl IpvsOp {
    /// The virtual server that it is about; none for one that is bound to a mark.
    pub fn key(&self) -> Option<&VirtualKey> {
        match self {
            IpvsOp::AddServer { key, .. }
            | IpvsOp::EditServer { key, .. }
            | IpvsOp::DeleteServer { key }
            | IpvsOp::AddDestination { key, .. }
            | IpvsOp::EditDestination { key, .. }
            | IpvsOp::DeleteDestination { key, .. } => Some(key),
            IpvsOp::DeleteMarkServer { .. } => None,
        }
    }
}

/// All of IPVS in this network namespace.
///
/// What we never ask for reads as a value that equals nothing we ask for: an unknown scheduler, one-packet scheduling
/// or a wrong netmask reads as `Scheduler::Other`; a destination that is not plain NAT reads as weight `u32::MAX`.
/// Destinations that only linger in the kernel's trash are not listed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ObservedIpvs {
    pub servers: BTreeMap<VirtualKey, Virtual>,
    /// The destinations of each in the kernel's order.
    pub lists: BTreeMap<VirtualKey, DestinationList>,
    /// Virtual servers bound to a firewall mark: (mark, is IPv6).
    pub marks: BTreeSet<(u32, bool)>,
}

/// Orders to links, addresses and routes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum NetOp {
    /// Creates kube-dummy-if (type dummy) if missing, and sets it up.
    EnsureDummy,
    /// Puts the address on kube-dummy-if: /32 scope link, /128 scope global.
    AddAddress(IpAddr),
    /// Takes an address (also one put there by hand) off kube-dummy-if.
    DeleteAddress(IpAddr),
    /// `local VIP dev kube-dummy-if table local proto kernel [scope host] src SOURCE`, instead of whatever local route to
    /// the VIP exists. For IPv6 other local routes to the VIP on kube-dummy-if are removed.
    SetLocalRoute { vip: IpAddr, source: Option<IpAddr> },
    /// Removes local routes to the VIP on kube-dummy-if.
    DeleteLocalRoute { vip: IpAddr },
    /// Removes kube-dummy-if with all its addresses.
    DeleteDummy,
}

/// Links, addresses and routes as far as the proxy cares.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ObservedNet {
    /// kube-dummy-if exists.
    pub dummy_exists: bool,
    /// kube-dummy-if exists and is up.
    pub dummy_up: bool,
    /// Addresses on kube-dummy-if without IPv6 link-local ones.
    pub dummy_addresses: BTreeSet<IpAddr>,
    /// Local-table routes on kube-dummy-if: VIP -> preferred source.
    pub local_routes: BTreeMap<IpAddr, Option<IpAddr>>,
    /// Every address of every other interface: (interface name, address).
    pub host_addresses: BTreeSet<(Box<str>, IpAddr)>,
}

/// Where a set exists: nftables decides, ipset mirrors for people and tools.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Backend {
    Nft,
    Ipset,
}

/// Orders to the packet filter. Consecutive nftables orders are one atomic transaction.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum FirewallOp {
    /// Creates our table, sets and chains if missing and replaces the chains' rules in one transaction; elements stay.
    SetRuleset(Ruleset),
    /// Creates the mirrored ipsets that are missing.
    EnsureIpsets,
    /// Adding what is there is no error.
    AddElement(Backend, SetElement),
    /// Removing what is not there is no error.
    DeleteElement(Backend, SetElement),
    /// Removes our table and our ipsets.
    DeleteAll,
}

/// The packet filter as far as it is ours.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ObservedFirewall {
    /// Our chains hold exactly the rules of this ruleset; `None`: missing, changed by somebody, or of another version.
    pub ruleset: Option<Ruleset>,
    /// Our nftables table with all its sets exists (whatever its chains hold).
    pub tables_exist: bool,
    /// All mirrored ipsets of both families exist with the right type.
    pub ipsets_exist: bool,
    /// At least one of them exists.
    pub ipsets_any: bool,
    pub nft: BTreeSet<SetElement>,
    pub ipset: BTreeSet<SetElement>,
}

/// UDP conntrack entries that must go: clients of `server` that are tied to `destination`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct UdpFlow {
    pub server: VirtualKey,
    pub destination: SocketAddr,
}
