//! From the JSON shape of an object to the slim struct that is kept.
//!
//! In: a [`RawObject`], read from an API page, a watch event or a manifest. Out: an [`Object`], or a [`Rejection`]
//! that names the object and the field. One value of a wrong type or range costs its object, never its neighbours.
//! Where an entry of a status list is odd and the object is good without it, the object is taken and the entry is
//! named in `ignored`.
//!
//! This does not know where the object came from, and judges nothing that depends on configuration.

mod cluster_policy;
mod endpoint_slice;
mod field;
mod policy;
mod raw;
mod service;
mod workload;

#[cfg(test)]
mod tests;

use std::fmt;

pub use field::{BadField, Field, Text};
pub use raw::RawObject;

use field::Shape;
use raw::Metadata;

use super::{Kind, Object, ObjectKey, Protocol};

/// Longest name of an object (RFC 1123 subdomain), in bytes.
pub const NAME_MAX: usize = 253;

/// NetworkPolicy as it was until Kubernetes 1.16, with the same fields.
const OLD_POLICY: &str = "extensions/v1beta1";

/// An object and the entries of it that were left out.
#[derive(Clone, Debug, PartialEq)]
pub struct Parsed {
    pub object: Object,
    pub ignored: Vec<BadField>,
}

/// Why an object was not taken. `key` is `None` when it cannot even be named.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{}: {field}", Named(*kind, key.as_ref()))]
pub struct Rejection {
    pub kind: Kind,
    pub key: Option<ObjectKey>,
    pub field: BadField,
}

/// Prints as `Service web/plain`.
pub struct Named<'a>(pub Kind, pub Option<&'a ObjectKey>);

impl fmt::Display for Named<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.1 {
            Some(key) => write!(f, "{} {key}", self.0),
            None => write!(f, "{} without a usable name", self.0),
        }
    }
}

/// What a document says it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Claim {
    /// One of the kinds we read.
    Ours(Kind),
    /// `v1/List`, or the typed list of a kind we read: the objects are in `items`.
    List(Option<Kind>),
    /// Something else, which is none of our business.
    Foreign,
    /// Not a Kubernetes object, or a version of it that we cannot read.
    Unusable(BadField),
}

impl Kind {
    /// API group (empty: core) and plural name, as in request paths and RBAC rules.
    pub fn group_and_resource(self) -> (&'static str, &'static str) {
        match self {
            Kind::Service => ("", "services"),
            Kind::EndpointSlice => ("discovery.k8s.io", "endpointslices"),
            Kind::Pod => ("", "pods"),
            Kind::Node => ("", "nodes"),
            Kind::Namespace => ("", "namespaces"),
            Kind::NetworkPolicy => ("networking.k8s.io", "networkpolicies"),
            Kind::ClusterNetworkPolicy => ("policy.networking.k8s.io", "clusternetworkpolicies"),
        }
    }

    /// The versions of the group that are read, the newest first. They differ in nothing that we read.
    pub fn versions(self) -> &'static [&'static str] {
        match self {
            Kind::ClusterNetworkPolicy => &["v1beta1", "v1alpha2"],
            _ => &["v1"],
        }
    }

    /// A custom resource: a cluster may do without, and then there are no such objects.
    pub fn is_custom(self) -> bool {
        self == Kind::ClusterNetworkPolicy
    }

    fn is_cluster_scoped(self) -> bool {
        matches!(self, Kind::Node | Kind::Namespace | Kind::ClusterNetworkPolicy)
    }

    /// By the word in `kind:`, or in `kind:` of its list.
    fn by_word(word: &str) -> Option<(Kind, bool)> {
        let (stem, is_list) = word.strip_suffix("List").map_or((word, false), |stem| (stem, true));
        // Debug prints the Kubernetes word.
        Kind::ALL.into_iter().find(|kind| format!("{kind:?}") == stem).map(|kind| (kind, is_list))
    }
}

impl RawObject {
    /// What this object says it is, by `apiVersion` and `kind`.
    pub fn claim(&self) -> Claim {
        let Some(word) = self.kind.peek() else {
            return Claim::Unusable(BadField::new("kind", "missing: this is not a Kubernetes object"));
        };
        let Some(api_version) = self.api_version.peek() else {
            return Claim::Unusable(BadField::new("apiVersion", "missing: this is not a Kubernetes object"));
        };
        if &**word == "List" && &**api_version == "v1" {
            return Claim::List(None);
        }
        let Some((kind, is_list)) = Kind::by_word(word) else { return Claim::Foreign };
        let (group, version) = api_version.rsplit_once('/').unwrap_or(("", api_version));
        if kind == Kind::NetworkPolicy && &**api_version == OLD_POLICY {
            return if is_list { Claim::List(Some(kind)) } else { Claim::Ours(kind) };
        }
        match (group == kind.group_and_resource().0, kind.versions().contains(&version)) {
            (false, _) => Claim::Foreign,
            (true, true) if is_list => Claim::List(Some(kind)),
            (true, true) => Claim::Ours(kind),
            (true, false) => {
                let text = format!("{api_version} is not read, use {}", kind.versions().join(" or "));
                Claim::Unusable(BadField::new("apiVersion", text))
            }
        }
    }

    /// What to say of an `apiVersion` that is read but that no API server serves any more.
    pub fn deprecation(&self) -> Option<&'static str> {
        let old = self.api_version.peek().is_some_and(|version| &**version == OLD_POLICY);
        old.then_some("extensions/v1beta1 is deprecated and read as networking.k8s.io/v1; change apiVersion")
    }

    /// Namespace and name, for an object of this kind. A namespaced object without a namespace is in `default`.
    ///
    /// # Errors
    /// No name, or one that no Kubernetes object can have.
    pub fn key(&self, kind: Kind) -> Result<ObjectKey, BadField> {
        let none = Metadata::default();
        let metadata = match &self.metadata {
            Field::Wrong(found) => return Err(BadField::new("metadata", format!("expected an object, found {found}"))),
            Field::Absent => &none,
            Field::Value(metadata) => metadata,
        };
        let name = text(metadata.name.clone(), "metadata.name")?
            .ok_or_else(|| BadField::new("metadata.name", "missing"))
            .and_then(|name| bounded(name, "metadata.name"))?;
        if kind.is_cluster_scoped() {
            return Ok(ObjectKey::cluster(name));
        }
        let namespace = text(metadata.namespace.clone(), "metadata.namespace")?.unwrap_or_else(|| "default".into());
        Ok(ObjectKey::new(bounded(namespace, "metadata.namespace")?, name))
    }

    /// The slim object of this kind.
    ///
    /// # Errors
    /// A value of a wrong type or out of range.
    pub fn parse(mut self, kind: Kind) -> Result<Parsed, Rejection> {
        let key = self.key(kind).map_err(|field| Rejection { kind, key: None, field })?;
        let mut ignored = Vec::new();
        let object = self.object(kind, key.clone(), &mut ignored);
        object.map(|object| Parsed { object, ignored }).map_err(|field| Rejection { kind, key: Some(key), field })
    }

    fn object(&mut self, kind: Kind, key: ObjectKey, ignored: &mut Vec<BadField>) -> Result<Object, BadField> {
        let metadata = std::mem::take(&mut self.metadata).get("metadata")?.unwrap_or_default();
        Ok(match kind {
            Kind::Service => Object::Service(service::parse(key, metadata, self)?),
            Kind::EndpointSlice => Object::EndpointSlice(endpoint_slice::parse(key, metadata, self)?),
            Kind::Pod => Object::Pod(workload::pod(key, metadata, self, ignored)?),
            Kind::Node => Object::Node(workload::node(key, metadata, self, ignored)?),
            Kind::Namespace => Object::Namespace(workload::namespace(key, metadata)?),
            Kind::NetworkPolicy => Object::NetworkPolicy(policy::parse(key, self)?),
            Kind::ClusterNetworkPolicy => Object::ClusterNetworkPolicy(cluster_policy::parse(key, self)?),
        })
    }
}

/// A text that says something: the empty string is how Go programs write "nothing".
fn text(field: Field<Text>, path: impl fmt::Display) -> Result<Option<Text>, BadField> {
    Ok(field.get(path)?.filter(|text| !text.is_empty()))
}

/// The entries of a list with their paths. A `null` entry is skipped.
fn entries<T: Shape>(field: Field<Vec<Field<T>>>, path: &str) -> Result<Vec<(String, T)>, BadField> {
    let mut entries = Vec::new();
    for (i, entry) in field.get(path)?.unwrap_or_default().into_iter().enumerate() {
        let path = format!("{path}[{i}]");
        if let Some(entry) = entry.get(&path)? {
            entries.push((path, entry));
        }
    }
    Ok(entries)
}

fn bounded(name: Text, path: &str) -> Result<Text, BadField> {
    match name.len() {
        ..=NAME_MAX => Ok(name),
        length => Err(BadField::new(path, format!("{length} characters long, at most {NAME_MAX} are possible"))),
    }
}

/// A port number; 0 when there is none.
fn port(field: Field<i64>, path: impl fmt::Display) -> Result<u16, BadField> {
    let number = field.get(&path)?.unwrap_or(0);
    u16::try_from(number).map_err(|_| BadField::new(path, format!("{number} is not a port number (0 to 65535)")))
}

/// A transport protocol, TCP when there is none. The words are case-sensitive in the API.
fn protocol(field: Field<Text>, path: impl fmt::Display) -> Result<Protocol, BadField> {
    match text(field, &path)?.as_deref() {
        None | Some("TCP") => Ok(Protocol::Tcp),
        Some("UDP") => Ok(Protocol::Udp),
        Some("SCTP") => Ok(Protocol::Sctp),
        Some(word) => Err(unknown(path, word, "TCP, UDP or SCTP")),
    }
}

fn unknown(path: impl fmt::Display, word: &str, choices: &str) -> BadField {
    BadField::new(path, format!("unknown value \"{word}\" (expected {choices})"))
}
