//! The fields of a `v1/Pod` that are read.

use std::{net::IpAddr, sync::Arc};

use serde::{Deserialize, Serialize};

use super::{Labels, ObjectKey};

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Pod {
    pub key: ObjectKey,
    pub labels: Labels,
    pub node: Option<Arc<str>>,
    /// `status.podIPs`, else `status.podIP`.
    pub ips: Vec<IpAddr>,
    pub host_network: bool,
    /// `status.phase` is Succeeded or Failed: its addresses may belong to somebody else by now.
    pub completed: bool,
    /// `metadata.deletionGracePeriodSeconds` once deletion began, else `spec.terminationGracePeriodSeconds`.
    pub grace_period_s: Option<u32>,
}
