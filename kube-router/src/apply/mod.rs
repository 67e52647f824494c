//! Effects: the planes carry out orders from `plan` and report what the kernel holds. They decide nothing.
//!
//! Each plane is a trait over exactly the calls that are made, so that [`fake`] can stand in for the kernel with
//! faults injected at any order. Every plane owns its netlink sockets and belongs to the thread that made it.

pub mod bpf;
pub mod conntrack;
pub mod fake;
pub mod fake_policy;
pub mod firewall;
pub mod ipvs;
pub mod net;
pub mod sysctl;

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    time::Duration,
};

use crate::{
    compile::links::{Links, PodLink},
    desired::{Destination, Sysctl, VirtualKey},
    nl::{NlError, Refusal},
    plan::balance::{BalanceOrder, ObservedBalance},
    plan::enforcement::{ObservedPolicy, PolicyOrder},
    plan::{FirewallOp, IpvsOp, NetOp, ObservedFirewall, ObservedIpvs, ObservedNet, UdpFlow},
};

/// One order that was refused; `index` counts in the slice handed to `apply`. Orders not listed were carried out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OpFailure {
    pub index: usize,
    pub refusal: Refusal,
}

/// A plane failed as a whole; what the kernel holds now must be observed again.
#[derive(Debug, thiserror::Error)]
pub enum PlaneError {
    /// The kernel lacks the subsystem (module missing or unloaded).
    #[error("{what} is not available in this kernel: {source}")]
    Unavailable { what: &'static str, source: NlError },
    #[error("{what}: {source}")]
    Netlink { what: &'static str, source: NlError },
    #[error("{what}: {source}")]
    Io { what: String, source: std::io::Error },
    #[error("network policy: {0}")]
    Bpf(#[from] bpf::BpfError),
}

pub type Failures = Result<Vec<OpFailure>, PlaneError>;

/// Connections of a destination, as the kernel counts them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Connections {
    pub active: u32,
    pub inactive: u32,
}

/// Traffic of one virtual server since it was made. Rates are per second, from the kernel's estimators.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ServerStats {
    pub connections: u64,
    pub packets_in: u64,
    pub packets_out: u64,
    pub bytes_in: u64,
    pub bytes_out: u64,
    pub connections_per_s: u64,
    pub packets_in_per_s: u64,
    pub packets_out_per_s: u64,
    pub bytes_in_per_s: u64,
    pub bytes_out_per_s: u64,
}

/// IPVS's global timeouts in seconds; zero leaves the kernel's value.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct IpvsTimeouts {
    pub tcp: Duration,
    pub tcp_fin: Duration,
    pub udp: Duration,
}

/// Interface name and address, of every interface but kube-dummy-if.
pub type HostAddresses = BTreeSet<(Box<str>, IpAddr)>;

pub trait IpvsPlane {
    fn observe(&mut self) -> Result<ObservedIpvs, PlaneError>;
    fn apply(&mut self, ops: &[IpvsOp]) -> Failures;
    /// Connections of every destination of one virtual server; empty if the server is gone.
    fn connections(&mut self, server: &VirtualKey) -> Result<BTreeMap<Destination, Connections>, PlaneError>;
    fn set_timeouts(&mut self, timeouts: IpvsTimeouts) -> Result<(), PlaneError>;
}

pub trait NetPlane {
    fn observe(&mut self) -> Result<ObservedNet, PlaneError>;
    /// That part of [`NetPlane::observe`] alone, for two dumps instead of four.
    fn host_addresses(&mut self) -> Result<HostAddresses, PlaneError>;
    fn apply(&mut self, ops: &[NetOp]) -> Failures;
}

pub trait FirewallPlane {
    fn observe(&mut self) -> Result<ObservedFirewall, PlaneError>;
    fn apply(&mut self, ops: &[FirewallOp]) -> Failures;
}

pub trait ConntrackPlane {
    /// Removes the conntrack entries of these UDP flows; returns how many went.
    fn flush_udp(&mut self, flows: &[UdpFlow]) -> Result<usize, PlaneError>;
}

pub trait PolicyPlane {
    /// Tables, interfaces and links, and where this agent's programs are attached.
    fn observe(&mut self) -> Result<ObservedPolicy, PlaneError>;
    /// The links alone.
    fn links(&mut self) -> Result<Links, PlaneError>;
    /// One pod's link; `None`: it is gone, or no pod's.
    fn link(&mut self, index: u32) -> Result<Option<PodLink>, PlaneError>;
    /// Carries the orders out until one fails: returns how many were, and why it ended.
    fn apply(&mut self, orders: &[PolicyOrder]) -> (usize, Result<(), PlaneError>);
    /// The tables of the service fast path.
    fn observe_balance(&mut self) -> Result<ObservedBalance, PlaneError>;
    /// As [`PolicyPlane::apply`].
    fn balance(&mut self, orders: &[BalanceOrder]) -> (usize, Result<(), PlaneError>);
    /// Everything is in force for the first time: what an older agent needed may go.
    fn settled(&mut self);
}

pub trait SysctlPlane {
    /// Current value; `None`: this kernel has no such setting.
    fn read(&mut self, path: &str) -> Result<Option<String>, PlaneError>;
    fn write(&mut self, sysctl: &Sysctl) -> Result<(), PlaneError>;
    /// Loads a kernel module by name unless it is there; an error is for information only.
    fn load_module(&mut self, name: &str) -> Result<(), PlaneError>;
}
