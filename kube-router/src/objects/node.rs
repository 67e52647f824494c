//! The fields of a `v1/Node` that are read.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use super::ObjectKey;

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Node {
    pub key: ObjectKey,
    /// `status.addresses` of type InternalIP, in order.
    pub internal_ips: Vec<IpAddr>,
    /// `status.addresses` of type ExternalIP, in order.
    pub external_ips: Vec<IpAddr>,
    /// `spec.podCIDRs`, else `spec.podCIDR`.
    pub pod_cidrs: Vec<IpNet>,
    /// Label `topology.kubernetes.io/zone`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub zone: Option<Box<str>>,
    /// The annotations of [`super::annotations::OF_NODES`], as written.
    pub annotations: BTreeMap<Box<str>, Box<str>>,
}

impl Node {
    /// Its own, of both types.
    pub fn ips(&self) -> BTreeSet<IpAddr> {
        self.internal_ips.iter().chain(&self.external_ips).copied().collect()
    }

    pub fn has_ip(&self, ip: IpAddr) -> bool {
        self.internal_ips.contains(&ip) || self.external_ips.contains(&ip)
    }
}

/// Where somebody is who asks for a service; by default nowhere.
#[derive(Clone, Copy, Debug, Default)]
pub struct Place<'a> {
    pub node: &'a str,
    pub zone: Option<&'a str>,
}
