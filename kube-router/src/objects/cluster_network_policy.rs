//! `policy.networking.k8s.io` ClusterNetworkPolicy (v1alpha2, v1beta1), as written.
//!
//! As with NetworkPolicy nothing is judged here: what makes no sense is kept, because only the compiler knows how a
//! policy with a bad part still denies what it was made to deny.

use serde::{Deserialize, Serialize};

use super::{LabelSelector, ObjectKey};

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct ClusterNetworkPolicy {
    /// Without a namespace.
    pub key: ObjectKey,
    /// Admin or Baseline, as written; what stands there instead, if it is no text.
    pub tier: Box<str>,
    /// As written; `None`: missing, or no number.
    pub priority: Option<i64>,
    pub subject: ClusterSubject,
    pub ingress: Box<[ClusterRule]>,
    pub egress: Box<[ClusterRule]>,
}

/// `subject`: one of the two is set.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct ClusterSubject {
    pub namespaces: Option<LabelSelector>,
    pub pods: Option<NamespacedPod>,
}

/// Pods by their labels, in namespaces by theirs; an empty selector selects all.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct NamespacedPod {
    pub namespaces: LabelSelector,
    pub pods: LabelSelector,
}

/// An entry of `ingress` or `egress`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct ClusterRule {
    pub name: Box<str>,
    /// Accept, Deny or Pass, as written; empty if it cannot be read.
    pub action: Box<str>,
    /// `from` or `to`.
    pub peers: Box<[ClusterPeer]>,
    /// `None`: whatever the packet carries.
    pub protocols: Option<Box<[ClusterProtocol]>>,
    /// Where and why the rest could not be read; it has no peers and no protocols then.
    pub unreadable: Option<Box<str>>,
}

/// An entry of `from` or `to`: one of these is set.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct ClusterPeer {
    pub namespaces: Option<LabelSelector>,
    pub pods: Option<NamespacedPod>,
    /// Egress only.
    pub nodes: Option<LabelSelector>,
    /// CIDRs, as written. Egress only.
    pub networks: Option<Box<[Box<str>]>>,
    /// Egress only.
    pub domain_names: Option<Box<[Box<str>]>>,
}

/// An entry of `protocols`: one of these is set.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct ClusterProtocol {
    pub tcp: Option<DestinationPort>,
    pub udp: Option<DestinationPort>,
    pub sctp: Option<DestinationPort>,
    /// A port of any protocol, by the name that a container gives it.
    pub named_port: Option<Box<str>>,
}

/// `destinationPort` of a protocol: one of these is set.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct DestinationPort {
    pub number: Option<i64>,
    /// Start and end.
    pub range: Option<(Option<i64>, Option<i64>)>,
}
