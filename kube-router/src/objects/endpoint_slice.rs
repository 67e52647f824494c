//! The fields of a `discovery.k8s.io/v1` EndpointSlice that the proxy and BGP read.

use std::{net::IpAddr, sync::Arc};

use serde::{Deserialize, Serialize};

use super::{ObjectKey, Protocol};

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum AddressType {
    Ipv4,
    Ipv6,
    Fqdn,
}

/// One entry of `ports`. `port` is `None` where the slice leaves it open ("all ports"): such an entry is not usable.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct EndpointPort {
    pub name: Box<str>,
    pub protocol: Protocol,
    pub port: Option<u16>,
}

/// One entry of `endpoints`. `addresses` beyond the first are interchangeable by definition, so one is kept.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Endpoint {
    pub address: IpAddr,
    /// Missing (null) conditions count as false, as in the original.
    pub ready: bool,
    pub serving: bool,
    pub terminating: bool,
    pub node: Option<Arc<str>>,
    /// For whom it is meant to be; `None`: the slice does not say.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hints: Option<Box<Hints>>,
}

/// `hints` of an endpoint: names of zones and of nodes, each of which may be empty.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hints {
    pub zones: Box<[Box<str>]>,
    pub nodes: Box<[Box<str>]>,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct EndpointSlice {
    pub key: ObjectKey,
    /// The owning Service: label `kubernetes.io/service-name`, else the single owner's name, else `generateName`
    /// without its trailing "-". `None`: belongs to nobody and is reported.
    pub service: Option<ObjectKey>,
    pub address_type: AddressType,
    /// Label `service.kubernetes.io/headless` is present: the proxy ignores the slice.
    pub headless_label: bool,
    pub ports: Vec<EndpointPort>,
    pub endpoints: Vec<Endpoint>,
    /// Addresses that do not parse or are not of `address_type`, as written.
    pub bad_addresses: Vec<Box<str>>,
}
