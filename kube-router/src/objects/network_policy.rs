//! `networking.k8s.io/v1` NetworkPolicy, as written.
//!
//! Nothing is judged here: an operator, a CIDR or a port that makes no sense is kept as text, because a policy with a
//! bad part must still isolate its pods, and only the compiler knows how. A rule that cannot even be read keeps its
//! place, as [`PolicyRule::unreadable`].

use serde::{Deserialize, Serialize};

use super::{LabelSelector, ObjectKey};

/// An old recording has only the key.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct NetworkPolicy {
    pub key: ObjectKey,
    pub pod_selector: LabelSelector,
    /// As written: Ingress, Egress; empty where the API server did not fill it.
    pub policy_types: Box<[Box<str>]>,
    pub ingress: Box<[PolicyRule]>,
    pub egress: Box<[PolicyRule]>,
}

/// An entry of `ingress` or `egress`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PolicyRule {
    /// `from` or `to`; empty: everybody.
    pub peers: Box<[PolicyPeer]>,
    /// Empty: every port of every protocol.
    pub ports: Box<[PolicyPort]>,
    /// Where and why the rule could not be read; it has no peers and no ports then.
    pub unreadable: Option<Box<str>>,
}

/// An entry of `from` or `to`: selectors, or a block of addresses.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PolicyPeer {
    pub pods: Option<LabelSelector>,
    pub namespaces: Option<LabelSelector>,
    pub block: Option<IpBlock>,
}

/// `ipBlock`, as written.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct IpBlock {
    pub cidr: Box<str>,
    pub except: Box<[Box<str>]>,
}

/// An entry of `ports`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PolicyPort {
    /// As written; `None` is TCP.
    pub protocol: Option<Box<str>>,
    /// `None`: all ports of the protocol.
    pub port: Option<PortRef>,
    pub end_port: Option<i64>,
}

/// A port by number, as written, or by the name that a container gives it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum PortRef {
    Number(i64),
    Name(Box<str>),
}
