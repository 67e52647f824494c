//! The fields of a `v1/Pod` that are read.

use std::{collections::BTreeMap, net::IpAddr};

use serde::{Deserialize, Serialize};

use super::ObjectKey;

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Pod {
    pub key: ObjectKey,
    pub labels: BTreeMap<Box<str>, Box<str>>,
    pub node: Option<Box<str>>,
    /// `status.podIPs`, else `status.podIP`.
    pub ips: Vec<IpAddr>,
    pub host_network: bool,
    /// `status.phase` is Succeeded or Failed: its addresses may belong to somebody else by now.
    pub completed: bool,
    /// `metadata.deletionGracePeriodSeconds` once deletion began, else `spec.terminationGracePeriodSeconds`.
    pub grace_period_s: Option<u32>,
}
