//! IPVS virtual servers and destinations (NAT mode), in the kernel's words.

use std::{
    collections::BTreeMap,
    fmt,
    net::{IpAddr, SocketAddr},
};

use crate::objects::Protocol;

/// A virtual server's identity: `protocol address:port`.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct VirtualKey {
    pub address: IpAddr,
    pub protocol: Protocol,
    pub port: u16,
}

impl fmt::Display for VirtualKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.protocol, SocketAddr::new(self.address, self.port))
    }
}

impl fmt::Debug for VirtualKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// A destination's identity inside its virtual server: where the packets go.
pub type Destination = SocketAddr;

/// Schedulers that the annotation `kube-router.io/service.scheduler` offers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Scheduler {
    #[default]
    Rr,
    Lc,
    Dh,
    Sh,
    Mh,
    /// A scheduler that we never ask for, found in the kernel.
    Other,
}

impl Scheduler {
    /// The kernel's name (`ip_vs_<name>`).
    pub fn name(self) -> &'static str {
        match self {
            Scheduler::Rr => "rr",
            Scheduler::Lc => "lc",
            Scheduler::Dh => "dh",
            Scheduler::Sh => "sh",
            Scheduler::Mh => "mh",
            Scheduler::Other => "other",
        }
    }

    pub fn from_name(name: &str) -> Option<Self> {
        [Scheduler::Rr, Scheduler::Lc, Scheduler::Dh, Scheduler::Sh, Scheduler::Mh]
            .into_iter()
            .find(|s| s.name() == name)
    }
}

/// `IP_VS_SVC_F_PERSISTENT` of the kernel's include/uapi/linux/ip_vs.h.
pub const FLAG_PERSISTENT: u32 = 0x1;
/// `IP_VS_SVC_F_HASHED`: set by the kernel on every listed service; never part of a comparison.
pub const FLAG_HASHED: u32 = 0x2;
/// `IP_VS_SVC_F_SCHED1`; with mh it means fallback.
pub const FLAG_SCHED_1: u32 = 0x8;
/// `IP_VS_SVC_F_SCHED2`; with mh it means: include the port in the hash.
pub const FLAG_SCHED_2: u32 = 0x10;
/// `IP_VS_SVC_F_SCHED3`.
pub const FLAG_SCHED_3: u32 = 0x20;

/// A virtual server's attributes and destinations (address -> weight).
///
/// The persistence netmask is not a field: it is always the whole address (255.255.255.255 or /128).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Virtual {
    pub scheduler: Scheduler,
    /// `FLAG_SCHED_*` only.
    pub sched_flags: u32,
    /// Seconds; `None` = no session affinity.
    pub persistence_s: Option<u32>,
    pub destinations: BTreeMap<Destination, u32>,
}

impl Virtual {
    /// The scheduler flags as `ipvsadm` names them: mh has words of its own.
    pub fn flag_names(&self) -> Vec<String> {
        let names = if self.scheduler == Scheduler::Mh {
            ["mh-fallback", "mh-port", "flag-3"]
        } else {
            ["flag-1", "flag-2", "flag-3"]
        };
        [FLAG_SCHED_1, FLAG_SCHED_2, FLAG_SCHED_3]
            .into_iter()
            .zip(names)
            .filter(|(flag, _)| self.sched_flags & flag != 0)
            .map(|(_, name)| name.to_owned())
            .collect()
    }
}
