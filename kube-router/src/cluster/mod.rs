//! The cluster as far as we were told: objects, the indices that make a change cheap, and how complete the view is.
//!
//! [`ClusterState::apply`] takes one event and adds to a [`Dirty`] what a compiler has to look at again. The result
//! of a set of events does not depend on their order across objects. Nothing is forgotten because a source is away:
//! what is known of a kind stays until a complete list says otherwise.

mod pods;
mod relist;
#[cfg(test)]
mod tests;

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    net::IpAddr,
    sync::Arc,
};

use crate::objects::{
    ClusterNetworkPolicy, Endpoint, EndpointSlice, Kind, Namespace, NetworkPolicy, Node, Object, ObjectEvent,
    ObjectKey, Place, Pod, Service,
};
use pods::Pods;
use relist::Relist;

/// Shared names are swept when they have doubled, but not below this.
const SWEEP_FROM: usize = 1_024;

/// What changed since the last look. Names, not objects: a later look reads the newest state.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Dirty {
    /// Services that changed themselves or in their endpoints; also services that are gone.
    pub services: BTreeSet<ObjectKey>,
    /// Node objects by name.
    pub nodes: BTreeSet<Arc<str>>,
    pub pods: BTreeSet<ObjectKey>,
    /// Addresses that a pod of [`Dirty::pods`] has or had.
    pub pod_ips: BTreeSet<IpAddr>,
    /// Namespaces whose labels or annotations changed, by name.
    pub namespaces: BTreeSet<Arc<str>>,
    pub policies: BTreeSet<ObjectKey>,
    /// ClusterNetworkPolicies by name.
    pub cluster_policies: BTreeSet<Arc<str>>,
    /// A kind became complete or unavailable, or an input was rejected or mended.
    pub view: bool,
}

impl Dirty {
    pub fn is_empty(&self) -> bool {
        *self == Dirty::default()
    }
}

/// What a network plugin knows of a pod that has just started.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Announced {
    /// `None`: the runtime did not tell.
    pub uid: Option<Box<str>>,
    pub addresses: Vec<IpAddr>,
}

impl Announced {
    /// Are these the pod's addresses, whatever its object says? If it is that very pod, its object can only be older: it
    /// tells addresses of a sandbox that is gone, as after a reboot.
    fn is_newer_than(&self, pod: &Pod) -> bool {
        let is_same = |pod: &Pod| pod.ips.iter().all(|ip| self.addresses.contains(ip));
        match pod.ips.is_empty() {
            true => pod.may_be(self.uid.as_deref()),
            false => self.uid.is_some() && pod.uid == self.uid && !self.addresses.is_empty() && !is_same(pod),
        }
    }
}

#[derive(Debug, Default)]
pub struct ClusterState {
    // Boxed, because maps keep up to half of their places empty.
    services: BTreeMap<ObjectKey, Box<Service>>,
    slices: HashMap<ObjectKey, Box<EndpointSlice>>,
    /// Service -> its slices, in order. No tree, as nearly every service has one or two, and the smallest tree has room
    /// for eleven.
    slices_of: HashMap<ObjectKey, Vec<ObjectKey>>,
    nodes: BTreeMap<Arc<str>, Node>,
    namespaces: BTreeMap<Arc<str>, Namespace>,
    pods: Pods,
    policies: BTreeMap<ObjectKey, Box<NetworkPolicy>>,
    cluster_policies: BTreeMap<Arc<str>, Box<ClusterNetworkPolicy>>,
    /// Every name that many objects mention (namespaces, nodes), once.
    names: BTreeSet<Arc<str>>,
    /// So many names make a look for those that nobody mentions any more worth it.
    sweep_at: usize,
    relists: HashMap<Kind, Relist>,
    complete: BTreeSet<Kind>,
    unavailable: BTreeMap<Kind, String>,
    rejected: BTreeMap<String, String>,
    /// Addresses that a network plugin gave pods, until the API server tells.
    announced: BTreeMap<ObjectKey, Announced>,
    /// Listed, and never understood: nobody knows what they want.
    obscure: BTreeSet<(Kind, ObjectKey)>,
}

impl ClusterState {
    pub fn new() -> Self {
        ClusterState::default()
    }

    /// Takes one event in; what it touches is added to `dirty`.
    pub fn apply(&mut self, event: ObjectEvent, dirty: &mut Dirty) {
        match event {
            ObjectEvent::RelistStarted(kind) => {
                // A list that broke off is forgotten; so is what kept us from this kind.
                self.relists.insert(kind, Relist::default());
                dirty.view |= self.unavailable.remove(&kind).is_some();
            }
            ObjectEvent::Applied(object) => {
                if let Some(relist) = self.relists.get_mut(&object.kind()) {
                    relist.saw(object.key());
                }
                if !self.obscure.is_empty() {
                    dirty.view |= self.obscure.remove(&(object.kind(), object.key().clone()));
                }
                self.insert(object, dirty);
            }
            ObjectEvent::Deleted(kind, key) => {
                if let Some(relist) = self.relists.get_mut(&kind) {
                    relist.forget(&key);
                }
                self.remove(kind, &key, dirty);
                dirty.view |= self.obscure.remove(&(kind, key));
            }
            ObjectEvent::Kept(kind, key) => {
                if let Some(relist) = self.relists.get_mut(&kind) {
                    relist.saw(&key);
                }
                if !self.knows(kind, &key) {
                    dirty.view |= self.obscure.insert((kind, key));
                }
            }
            ObjectEvent::RelistDone(kind) => {
                if let Some(relist) = self.relists.remove(&kind) {
                    let obscure = self.obscure.len();
                    self.obscure.retain(|(other, key)| *other != kind || relist.has(key));
                    dirty.view |= self.obscure.len() < obscure;
                    for key in self.keys(kind).into_iter().filter(|key| !relist.has(key)) {
                        self.remove(kind, &key, dirty);
                    }
                }
                dirty.view |= self.complete.insert(kind) | self.unavailable.remove(&kind).is_some();
            }
            ObjectEvent::Unavailable { kind, reason } => {
                dirty.view |= self.unavailable.insert(kind, reason.clone()) != Some(reason);
            }
            ObjectEvent::Rejected { source, reason } => {
                dirty.view |= self.rejected.insert(source, reason.clone()) != Some(reason);
            }
            ObjectEvent::Accepted { source } => dirty.view |= self.rejected.remove(&source).is_some(),
        }
    }

    fn insert(&mut self, object: Object, dirty: &mut Dirty) {
        match object {
            Object::Service(mut service) => {
                if self.services.get(&service.key).map(|known| &**known) != Some(&service) {
                    self.intern(&mut service.key.namespace);
                    dirty.services.insert(service.key.clone());
                    self.services.insert(service.key.clone(), Box::new(service));
                }
            }
            Object::EndpointSlice(slice) => self.insert_slice(slice, dirty),
            Object::Node(node) => {
                let known = self.nodes.get(&node.key.name);
                if known != Some(&node) {
                    let (before, after) = (known.map(Node::ips).unwrap_or_default(), node.ips());
                    let moved: BTreeSet<IpAddr> = before.symmetric_difference(&after).copied().collect();
                    // Of the first lists services are looked at when all are there.
                    if self.is_complete(Kind::Node) && !moved.is_empty() {
                        dirty.services.extend(self.served_at(&node.key.name, &moved).cloned());
                    }
                    dirty.nodes.insert(node.key.name.clone());
                    self.nodes.insert(node.key.name.clone(), node);
                }
            }
            Object::Pod(pod) => self.insert_pod(pod, dirty),
            Object::Namespace(namespace) => {
                if self.namespaces.get(&namespace.key.name) != Some(&namespace) {
                    dirty.namespaces.insert(namespace.key.name.clone());
                    self.namespaces.insert(namespace.key.name.clone(), namespace);
                }
            }
            Object::NetworkPolicy(mut policy) => {
                if self.policies.get(&policy.key).map(|known| &**known) != Some(&policy) {
                    self.intern(&mut policy.key.namespace);
                    dirty.policies.insert(policy.key.clone());
                    self.policies.insert(policy.key.clone(), Box::new(policy));
                }
            }
            Object::ClusterNetworkPolicy(policy) => {
                let name = &policy.key.name;
                if self.cluster_policies.get(name).map(|known| &**known) != Some(&policy) {
                    dirty.cluster_policies.insert(name.clone());
                    self.cluster_policies.insert(name.clone(), Box::new(policy));
                }
            }
        }
    }

    fn insert_slice(&mut self, mut slice: EndpointSlice, dirty: &mut Dirty) {
        if self.slices.get(&slice.key).map(|known| &**known) == Some(&slice) {
            return;
        }
        self.intern(&mut slice.key.namespace);
        for node in slice.endpoints.iter_mut().filter_map(|endpoint| endpoint.node.as_mut()) {
            self.intern(node);
        }
        if let Some(service) = &mut slice.service
            && let Some((known, _)) = self.services.get_key_value(service)
        {
            *service = known.clone();
        }
        self.forget_slice(&slice.key, dirty);
        if let Some(service) = &slice.service {
            let names = self.slices_of.entry(service.clone()).or_default();
            if let Err(at) = names.binary_search(&slice.key) {
                if names.is_empty() {
                    names.reserve_exact(1);
                }
                names.insert(at, slice.key.clone());
            }
            dirty.services.insert(service.clone());
        } else {
            dirty.view = true;
        }
        self.slices.insert(slice.key.clone(), Box::new(slice));
    }

    fn forget_slice(&mut self, key: &ObjectKey, dirty: &mut Dirty) {
        let Some(old) = self.slices.remove(key) else { return };
        let Some(service) = old.service else {
            dirty.view = true;
            return;
        };
        if let Some(names) = self.slices_of.get_mut(&service) {
            if let Ok(at) = names.binary_search(key) {
                names.remove(at);
            }
            if names.is_empty() {
                self.slices_of.remove(&service);
            }
        }
        dirty.services.insert(service);
    }

    /// A network plugin gave the pod these addresses, instead of those that it gave before; the pod may not be known yet.
    pub fn announce(&mut self, key: &ObjectKey, announced: Announced, dirty: &mut Dirty) {
        let before = self.announced.insert(key.clone(), announced);
        let old = before.map(|before| before.addresses).unwrap_or_default();
        self.without(key, &old, dirty);
        if let Some(pod) = self.pods.get(key).cloned() {
            self.insert_pod(pod, dirty);
        }
    }

    /// The network plugin took these addresses away. A pod that has others by now keeps them.
    pub fn retract(&mut self, key: &ObjectKey, addresses: &[IpAddr], dirty: &mut Dirty) {
        if self.announced.get(key).is_some_and(|announced| announced.addresses == addresses) {
            self.announced.remove(key);
            self.without(key, addresses, dirty);
        }
    }

    /// Whoever said it, the pod does not have these any more. It gets what is announced.
    fn without(&mut self, key: &ObjectKey, addresses: &[IpAddr], dirty: &mut Dirty) {
        if let Some(pod) = self.pods.get(key).filter(|pod| pod.ips.is_empty() || pod.ips == addresses) {
            self.insert_pod(Pod { ips: Vec::new(), ..pod.clone() }, dirty);
        }
    }

    fn insert_pod(&mut self, mut pod: Pod, dirty: &mut Dirty) {
        if let Some(announced) = self.announced.get(&pod.key)
            && announced.is_newer_than(&pod)
        {
            pod.ips.clone_from(&announced.addresses);
        }
        if self.pods.get(&pod.key) == Some(&pod) {
            return;
        }
        self.intern(&mut pod.key.namespace);
        if let Some(node) = &mut pod.node {
            self.intern(node);
        }
        for port in &mut pod.ports {
            self.intern(&mut port.name);
        }
        self.forget_pod(&pod.key, dirty);
        dirty.pods.insert(pod.key.clone());
        dirty.pod_ips.extend(Pods::addresses(&pod));
        self.pods.insert(pod);
    }

    fn forget_pod(&mut self, key: &ObjectKey, dirty: &mut Dirty) {
        let Some(old) = self.pods.remove(key) else { return };
        dirty.pods.insert(key.clone());
        dirty.pod_ips.extend(Pods::addresses(&old));
    }

    fn remove(&mut self, kind: Kind, key: &ObjectKey, dirty: &mut Dirty) {
        match kind {
            Kind::Service => {
                if self.services.remove(key).is_some() {
                    dirty.services.insert(key.clone());
                }
            }
            Kind::EndpointSlice => self.forget_slice(key, dirty),
            Kind::Node => {
                if self.nodes.remove(&key.name).is_some() {
                    dirty.nodes.insert(key.name.clone());
                }
            }
            Kind::Pod => self.forget_pod(key, dirty),
            Kind::Namespace => {
                if self.namespaces.remove(&key.name).is_some() {
                    dirty.namespaces.insert(key.name.clone());
                }
            }
            Kind::NetworkPolicy => {
                if self.policies.remove(key).is_some() {
                    dirty.policies.insert(key.clone());
                }
            }
            Kind::ClusterNetworkPolicy => {
                if self.cluster_policies.remove(&key.name).is_some() {
                    dirty.cluster_policies.insert(key.name.clone());
                }
            }
        }
    }

    fn keys(&self, kind: Kind) -> Vec<ObjectKey> {
        match kind {
            Kind::Service => self.services.keys().cloned().collect(),
            Kind::EndpointSlice => self.slices.keys().cloned().collect(),
            Kind::Node => self.nodes.keys().map(|name| ObjectKey::cluster(name.clone())).collect(),
            Kind::Pod => self.pods.keys().cloned().collect(),
            Kind::Namespace => self.namespaces.keys().map(|name| ObjectKey::cluster(name.clone())).collect(),
            Kind::NetworkPolicy => self.policies.keys().cloned().collect(),
            Kind::ClusterNetworkPolicy => {
                self.cluster_policies.keys().map(|name| ObjectKey::cluster(name.clone())).collect()
            }
        }
    }

    fn knows(&self, kind: Kind, key: &ObjectKey) -> bool {
        match kind {
            Kind::Service => self.services.contains_key(key),
            Kind::EndpointSlice => self.slices.contains_key(key),
            Kind::Node => self.nodes.contains_key(&key.name),
            Kind::Pod => self.pods.contains_key(key),
            Kind::Namespace => self.namespaces.contains_key(&key.name),
            Kind::NetworkPolicy => self.policies.contains_key(key),
            Kind::ClusterNetworkPolicy => self.cluster_policies.contains_key(&key.name),
        }
    }

    fn intern(&mut self, name: &mut Arc<str>) {
        match self.names.get(name) {
            Some(known) => *name = known.clone(),
            None => {
                if self.names.len() >= self.sweep_at.max(SWEEP_FROM) {
                    self.names.retain(|name| Arc::strong_count(name) > 1);
                    self.sweep_at = self.names.len() * 2;
                }
                self.names.insert(name.clone());
            }
        }
    }

    pub fn service(&self, key: &ObjectKey) -> Option<&Service> {
        self.services.get(key).map(|service| &**service)
    }

    pub fn services(&self) -> impl Iterator<Item = &Service> {
        self.services.values().map(|service| &**service)
    }

    /// The slices of one service, ordered by name.
    pub fn slices_of(&self, service: &ObjectKey) -> impl Iterator<Item = &EndpointSlice> + Clone {
        self.slices_of.get(service).into_iter().flatten().filter_map(|key| self.slices.get(key).map(|slice| &**slice))
    }

    /// Slices that belong to no service.
    pub fn stray_slices(&self) -> impl Iterator<Item = &EndpointSlice> {
        self.slices.values().map(|slice| &**slice).filter(|slice| slice.service.is_none())
    }

    /// Services with endpoints of this node at some of these addresses.
    fn served_at(&self, node: &str, ips: &BTreeSet<IpAddr>) -> impl Iterator<Item = &ObjectKey> {
        let is_there = |endpoint: &Endpoint| endpoint.node.as_deref() == Some(node) && ips.contains(&endpoint.address);
        self.slices
            .values()
            .filter(move |slice| slice.endpoints.iter().any(is_there))
            .filter_map(|slice| slice.service.as_ref())
    }

    /// Of a service's endpoints those that have their node's own address: processes of its network, not pods with one of their
    /// own. All of them, while not all nodes are known.
    pub fn host_endpoints(&self, service: &ObjectKey) -> BTreeSet<IpAddr> {
        let all_known = self.is_complete(Kind::Node);
        let is_host = |endpoint: &&Endpoint| {
            let node = endpoint.node.as_deref().and_then(|name| self.node(name));
            !all_known || node.is_none_or(|node| node.has_ip(endpoint.address))
        };
        let endpoints = self.slices_of(service).flat_map(|slice| &slice.endpoints);
        endpoints.filter(is_host).map(|endpoint| endpoint.address).collect()
    }

    pub fn nodes(&self) -> impl Iterator<Item = &Node> {
        self.nodes.values()
    }

    /// Where a node is; nowhere, if it is not known which.
    pub fn place<'a>(&'a self, node: Option<&'a str>) -> Place<'a> {
        let zone = node.and_then(|name| self.node(name)).and_then(|node| node.zone.as_deref());
        Place { node: node.unwrap_or_default(), zone }
    }

    pub fn node(&self, name: &str) -> Option<&Node> {
        self.nodes.get(name)
    }

    /// Objects of one kind.
    pub fn count(&self, kind: Kind) -> usize {
        match kind {
            Kind::Service => self.services.len(),
            Kind::EndpointSlice => self.slices.len(),
            Kind::Node => self.nodes.len(),
            Kind::Pod => self.pods.len(),
            Kind::Namespace => self.namespaces.len(),
            Kind::NetworkPolicy => self.policies.len(),
            Kind::ClusterNetworkPolicy => self.cluster_policies.len(),
        }
    }

    pub fn namespace(&self, name: &str) -> Option<&Namespace> {
        self.namespaces.get(name)
    }

    pub fn namespaces(&self) -> impl Iterator<Item = &Namespace> {
        self.namespaces.values()
    }

    pub fn pod(&self, key: &ObjectKey) -> Option<&Pod> {
        self.pods.get(key)
    }

    pub fn pods(&self) -> impl Iterator<Item = &Pod> {
        self.pods.values()
    }

    pub fn pods_in<'a>(&'a self, namespace: &'a str) -> impl Iterator<Item = &'a Pod> {
        self.pods.in_namespace(namespace)
    }

    pub fn pods_on(&self, node: &str) -> impl Iterator<Item = &Pod> {
        self.pods.on_node(node)
    }

    /// The running pod that has this address, unless it shares its node's network.
    pub fn pod_by_ip(&self, ip: IpAddr) -> Option<&Pod> {
        self.pods.claimants(ip).first().copied()
    }

    /// Every such pod that says it has this address, the one that is believed first.
    pub fn claimants(&self, ip: IpAddr) -> Vec<&Pod> {
        self.pods.claimants(ip)
    }

    pub fn policy(&self, key: &ObjectKey) -> Option<&NetworkPolicy> {
        self.policies.get(key).map(|policy| &**policy)
    }

    pub fn policies(&self) -> impl Iterator<Item = &NetworkPolicy> {
        self.policies.values().map(|policy| &**policy)
    }

    /// The policies of one namespace, by name.
    pub fn policies_in<'a>(&'a self, namespace: &'a str) -> impl Iterator<Item = &'a NetworkPolicy> {
        let range = self.policies.range(ObjectKey::new(namespace, "")..);
        range.take_while(move |(key, _)| &*key.namespace == namespace).map(|(_, policy)| &**policy)
    }

    pub fn cluster_policy(&self, name: &str) -> Option<&ClusterNetworkPolicy> {
        self.cluster_policies.get(name).map(|policy| &**policy)
    }

    /// By name.
    pub fn cluster_policies(&self) -> impl Iterator<Item = &ClusterNetworkPolicy> {
        self.cluster_policies.values().map(|policy| &**policy)
    }

    pub fn policy_count(&self) -> usize {
        self.policies.len()
    }

    /// This kind was listed completely at least once.
    pub fn is_complete(&self, kind: Kind) -> bool {
        self.complete.contains(&kind)
    }

    /// Kinds that cannot be read, with the reason.
    pub fn unavailable(&self) -> &BTreeMap<Kind, String> {
        &self.unavailable
    }

    /// Objects that are there and were never understood.
    pub fn obscure(&self) -> &BTreeSet<(Kind, ObjectKey)> {
        &self.obscure
    }

    /// Inputs that could not be understood: source -> reason.
    pub fn rejected(&self) -> &BTreeMap<String, String> {
        &self.rejected
    }
}
