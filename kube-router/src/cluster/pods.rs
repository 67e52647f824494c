//! Pods, by name, by address, by node.
//!
//! Two pods may claim one address: an old one that is not gone yet, or one that lies. Who has it must not depend on
//! the order in which they were heard of: one that is not terminating before one that is, the newer before the older,
//! then the smaller name.

use std::{
    cmp::Reverse,
    collections::{BTreeMap, BTreeSet, HashMap},
    net::IpAddr,
    ops::Bound,
    sync::Arc,
};

use crate::objects::{ObjectKey, Pod};

#[derive(Debug, Default)]
pub struct Pods {
    // Boxed, because maps keep up to half of their places empty.
    pods: BTreeMap<ObjectKey, Box<Pod>>,
    /// Nearly always one; a completed or hostNetwork pod has none.
    by_ip: HashMap<IpAddr, Vec<ObjectKey>>,
    by_node: HashMap<Arc<str>, BTreeSet<ObjectKey>>,
}

impl Pods {
    pub fn len(&self) -> usize {
        self.pods.len()
    }

    pub fn contains_key(&self, key: &ObjectKey) -> bool {
        self.pods.contains_key(key)
    }

    pub fn get(&self, key: &ObjectKey) -> Option<&Pod> {
        self.pods.get(key).map(|pod| &**pod)
    }

    pub fn keys(&self) -> impl Iterator<Item = &ObjectKey> {
        self.pods.keys()
    }

    pub fn values(&self) -> impl Iterator<Item = &Pod> {
        self.pods.values().map(|pod| &**pod)
    }

    pub fn in_namespace(&self, namespace: &str) -> impl Iterator<Item = &Pod> {
        let from = Bound::Included(ObjectKey::new(namespace, ""));
        let range = self.pods.range((from, Bound::Unbounded));
        range.take_while(move |(key, _)| &*key.namespace == namespace).map(|(_, pod)| &**pod)
    }

    pub fn on_node(&self, node: &str) -> impl Iterator<Item = &Pod> {
        self.by_node.get(node).into_iter().flatten().filter_map(|key| self.get(key))
    }

    /// Who claims this address, the one that has it first.
    pub fn claimants(&self, ip: IpAddr) -> Vec<&Pod> {
        let mut pods: Vec<&Pod> =
            self.by_ip.get(&ip.to_canonical()).into_iter().flatten().filter_map(|key| self.get(key)).collect();
        pods.sort_by_key(|pod| (pod.terminating, Reverse(pod.created_s), &pod.key));
        pods
    }

    pub fn insert(&mut self, pod: Pod) {
        self.remove(&pod.key);
        for ip in Pods::addresses(&pod) {
            let claimants = self.by_ip.entry(ip).or_default();
            if !claimants.contains(&pod.key) {
                claimants.reserve_exact(1);
                claimants.push(pod.key.clone());
            }
        }
        if let Some(node) = &pod.node {
            self.by_node.entry(node.clone()).or_default().insert(pod.key.clone());
        }
        self.pods.insert(pod.key.clone(), Box::new(pod));
    }

    pub fn remove(&mut self, key: &ObjectKey) -> Option<Box<Pod>> {
        let old = self.pods.remove(key)?;
        for ip in Pods::addresses(&old) {
            if let Some(claimants) = self.by_ip.get_mut(&ip) {
                claimants.retain(|claimant| claimant != key);
                if claimants.is_empty() {
                    self.by_ip.remove(&ip);
                }
            }
        }
        if let Some(node) = &old.node
            && let Some(pods) = self.by_node.get_mut(node)
        {
            pods.remove(key);
            if pods.is_empty() {
                self.by_node.remove(node);
            }
        }
        Some(old)
    }

    /// The addresses that are the pod's own.
    pub fn addresses(pod: &Pod) -> impl Iterator<Item = IpAddr> {
        pod.ips.iter().filter(|_| pod.has_own_network()).map(|ip| ip.to_canonical())
    }
}
