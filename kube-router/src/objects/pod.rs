//! The fields of a `v1/Pod` that are read.

use std::{net::IpAddr, sync::Arc};

use serde::{Deserialize, Serialize};

use super::{Labels, ObjectKey, Protocol};

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Pod {
    pub key: ObjectKey,
    /// As kubelet and its network plugins know it: `metadata.uid`, or for the mirror of a static pod the hash that is its
    /// uid on the node.
    #[serde(default)]
    pub uid: Option<Box<str>>,
    /// `metadata.creationTimestamp`, seconds since 1970; 0 when absent. The newer pod wins a disputed address.
    #[serde(default)]
    pub created_s: i64,
    pub labels: Labels,
    pub node: Option<Arc<str>>,
    /// `status.hostIPs`, else `status.hostIP`.
    #[serde(default)]
    pub host_ips: Box<[IpAddr]>,
    /// `status.podIPs`, else `status.podIP`.
    pub ips: Vec<IpAddr>,
    pub host_network: bool,
    /// `status.phase` is Succeeded or Failed: its addresses may belong to somebody else by now.
    pub completed: bool,
    /// `metadata.deletionTimestamp` is set.
    #[serde(default)]
    pub terminating: bool,
    /// `metadata.deletionGracePeriodSeconds` once deletion began, else `spec.terminationGracePeriodSeconds`.
    pub grace_period_s: Option<u32>,
    /// Ports with a name, of containers and of init containers that keep running.
    #[serde(default)]
    pub ports: Box<[NamedPort]>,
}

/// An entry of a container's `ports` that has a name.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NamedPort {
    pub name: Arc<str>,
    pub protocol: Protocol,
    pub port: u16,
}

impl Pod {
    /// Can this be the object of a pod with that uid? Not every source and not every runtime tells it.
    pub fn may_be(&self, uid: Option<&str>) -> bool {
        uid.is_none() || self.uid.is_none() || self.uid.as_deref() == uid
    }

    /// The pod has addresses of its own: it runs, and not in its node's network.
    pub fn has_own_network(&self) -> bool {
        !self.completed && !self.host_network
    }
}
