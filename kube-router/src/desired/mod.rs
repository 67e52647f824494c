//! What the kernel should hold, as plain data: ordered maps, `Eq`, `Debug`, no behaviour beyond merging.
//!
//! One [`ServiceState`] per Service comes from the compiler. [`Table`] keeps them all, decides who wins a disputed
//! address, and answers for one key at a time, so that an event costs what it touches.

pub mod balance;
pub mod firewall;
pub mod interfaces;
pub mod ipvs;
mod node_state;
pub mod policy;
mod table;

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

pub use firewall::{Hairpin, Ruleset, SetElement, SetName};
pub use ipvs::{Destination, Scheduler, Virtual, VirtualKey};
pub use node_state::Desired;
pub use table::{Changes, Dispute, Table};

/// A kernel setting under /proc/sys.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sysctl {
    /// Path below /proc/sys, with slashes.
    pub path: String,
    pub value: String,
}

/// Which field of the Service asked for a virtual server.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Origin {
    ClusterIp,
    NodePort,
    ExternalIp,
    LoadBalancerIp,
}

impl Origin {
    pub fn name(self) -> &'static str {
        match self {
            Origin::ClusterIp => "ClusterIP",
            Origin::NodePort => "NodePort",
            Origin::ExternalIp => "ExternalIP",
            Origin::LoadBalancerIp => "LoadBalancer",
        }
    }
}

/// A virtual server with what the rest of the agent wants to know about it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Frontend {
    pub origin: Origin,
    /// `spec.ports[].name`.
    pub port_name: Box<str>,
    /// The Service has nothing against the fast path.
    pub fast: bool,
    /// Destinations that are pods of other nodes.
    pub elsewhere: BTreeSet<Destination>,
    /// Destinations that are no pods with a network of their own.
    pub hosts: BTreeSet<Destination>,
    pub server: Virtual,
}

/// All that one Service wants from the kernel of this node.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ServiceState {
    /// `metadata.creationTimestamp` in seconds; the older service wins a disputed key, then the smaller name.
    pub created_s: i64,
    pub frontends: BTreeMap<VirtualKey, Frontend>,
    /// Addresses for kube-dummy-if (not node addresses).
    pub vips: BTreeSet<IpAddr>,
    pub hairpins: BTreeSet<Hairpin>,
    /// Health-check node port and the number of local endpoints that are not terminating.
    pub health_check: Option<(u16, usize)>,
}
