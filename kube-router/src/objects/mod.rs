//! What we keep of Kubernetes objects, and the one closed enum in which every source delivers them.
//!
//! A full typed Pod costs about 48 KiB of resident memory, the owned struct here about 2 KiB or less: each type
//! holds only the fields some compiler reads. Parsing is lenient by design: a value that a later room must judge
//! (an external IP, an annotation) is kept as the text the user wrote, so that the problem can quote it.
//!
//! This room knows nothing about where objects come from (`watch`) or what they mean (`compile`).

pub mod annotations;
mod cluster_network_policy;
mod endpoint_slice;
mod labels;
mod namespace;
mod network_policy;
mod node;
pub mod parse;
mod pod;
mod selector;
mod service;

use std::{fmt, sync::Arc};

use serde::{Deserialize, Serialize};

pub use cluster_network_policy::{
    ClusterNetworkPolicy, ClusterPeer, ClusterProtocol, ClusterRule, ClusterSubject, DestinationPort, NamespacedPod,
};
pub use endpoint_slice::{AddressType, Endpoint, EndpointPort, EndpointSlice, Hints};
pub use labels::Labels;
pub use namespace::Namespace;
pub use network_policy::{IpBlock, NetworkPolicy, PolicyPeer, PolicyPort, PolicyRule, PortRef};
pub use node::{Node, Place};
pub use pod::{NamedPort, Pod};
pub use selector::{LabelOperator, LabelRequirement, LabelSelector};
pub use service::{LoadBalancerIngress, Service, ServicePort, ServiceType, TrafficPolicy};

/// The kinds of object that any source can deliver.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Kind {
    Service,
    EndpointSlice,
    Pod,
    Node,
    Namespace,
    NetworkPolicy,
    ClusterNetworkPolicy,
}

impl Kind {
    /// Every kind, in the order in which sources open their watches.
    pub const ALL: [Kind; 7] = [
        Kind::Node,
        Kind::Service,
        Kind::EndpointSlice,
        Kind::Namespace,
        Kind::Pod,
        Kind::NetworkPolicy,
        Kind::ClusterNetworkPolicy,
    ];
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self, f)
    }
}

/// Namespace and name; the namespace of a cluster-scoped object is empty. Prints as `namespace/name`. Clones share their
/// text: every room has indices by key.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct ObjectKey {
    pub namespace: Arc<str>,
    pub name: Arc<str>,
}

impl ObjectKey {
    pub fn new(namespace: impl Into<Arc<str>>, name: impl Into<Arc<str>>) -> Self {
        ObjectKey { namespace: namespace.into(), name: name.into() }
    }

    /// Stands for an object whose name cannot be read.
    pub fn unnamed() -> Self {
        ObjectKey::new("", "")
    }

    /// Key of a cluster-scoped object.
    pub fn cluster(name: impl Into<Arc<str>>) -> Self {
        ObjectKey::new("", name)
    }
}

/// The key of nothing.
impl Default for ObjectKey {
    fn default() -> Self {
        ObjectKey::new("", "")
    }
}

impl fmt::Display for ObjectKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.namespace.is_empty() { f.write_str(&self.name) } else { write!(f, "{}/{}", self.namespace, self.name) }
    }
}

impl fmt::Debug for ObjectKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// One object of any kind.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum Object {
    Service(Service),
    EndpointSlice(EndpointSlice),
    Pod(Pod),
    Node(Node),
    Namespace(Namespace),
    NetworkPolicy(NetworkPolicy),
    ClusterNetworkPolicy(ClusterNetworkPolicy),
}

impl Object {
    pub fn kind(&self) -> Kind {
        match self {
            Object::Service(_) => Kind::Service,
            Object::EndpointSlice(_) => Kind::EndpointSlice,
            Object::Pod(_) => Kind::Pod,
            Object::Node(_) => Kind::Node,
            Object::Namespace(_) => Kind::Namespace,
            Object::NetworkPolicy(_) => Kind::NetworkPolicy,
            Object::ClusterNetworkPolicy(_) => Kind::ClusterNetworkPolicy,
        }
    }

    pub fn key(&self) -> &ObjectKey {
        match self {
            Object::Service(o) => &o.key,
            Object::EndpointSlice(o) => &o.key,
            Object::Pod(o) => &o.key,
            Object::Node(o) => &o.key,
            Object::Namespace(o) => &o.key,
            Object::NetworkPolicy(o) => &o.key,
            Object::ClusterNetworkPolicy(o) => &o.key,
        }
    }
}

/// Everything a source can say; also one line of a recording.
///
/// A kind is *complete* after its first `RelistDone`, and stays so: what a later `RelistStarted` .. `RelistDone` pair
/// does not mention (`Applied` or `Kept`) is gone, but not before the pair closes.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum ObjectEvent {
    /// A full list of this kind begins.
    RelistStarted(Kind),
    /// The object is now like this (new or changed).
    Applied(Object),
    /// The object is gone.
    Deleted(Kind, ObjectKey),
    /// The running list holds this object, but it cannot be understood (see `Rejected`): what is known of it stays.
    /// [`ObjectKey::unnamed`]: not even its name can.
    Kept(Kind, ObjectKey),
    /// The full list of this kind is through.
    RelistDone(Kind),
    /// This kind cannot be read now (forbidden, unreachable, unreadable); what is known of it stays.
    Unavailable { kind: Kind, reason: String },
    /// A piece of input that could not be understood; the rest goes on. `source` names the object or file and line.
    Rejected { source: String, reason: String },
    /// A piece of input reported by `Rejected` is good again or gone.
    Accepted { source: String },
}

/// Transport protocol of a port. The number is the IP protocol (IANA).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[repr(u8)]
pub enum Protocol {
    Tcp = 6,
    Udp = 17,
    Sctp = 132,
}

impl Protocol {
    /// IP protocol number.
    pub fn number(self) -> u8 {
        self as u8
    }

    pub fn from_number(number: u8) -> Option<Self> {
        match number {
            6 => Some(Protocol::Tcp),
            17 => Some(Protocol::Udp),
            132 => Some(Protocol::Sctp),
            _ => None,
        }
    }

    /// Lower-case name, as in metric labels.
    pub fn name(self) -> &'static str {
        match self {
            Protocol::Tcp => "tcp",
            Protocol::Udp => "udp",
            Protocol::Sctp => "sctp",
        }
    }
}

impl fmt::Display for Protocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}
