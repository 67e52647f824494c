//! Which policies select which pods of this node, and so which group each pod is in.

use std::{collections::BTreeSet, net::IpAddr, sync::Arc};

use super::{
    About, LocalPod, Numbered, PolicyCompiler, Work, address_of,
    lower::{Group, GroupKey, Version, names_in_use},
    normalize::{self, Policy, Source},
    selector::LabelView,
    terms::GroupId,
    tiers,
};
use crate::{
    cluster::{ClusterState, Dirty},
    compile::{Problem, Subject},
    desired::policy::{Direction, RuleInfo},
    objects::{Kind, ObjectKey, Pod},
};

impl PolicyCompiler {
    /// Addresses of the node and of services. Returns pods that may have become ours, or ours no more.
    pub(super) fn take_surroundings(
        &mut self,
        cluster: &ClusterState,
        node: &BTreeSet<IpAddr>,
        services: &BTreeSet<IpAddr>,
        work: &mut Work,
    ) -> Vec<ObjectKey> {
        let mut moved = Vec::new();
        if *services != self.service_ips {
            work.addresses.extend(services.symmetric_difference(&self.service_ips).map(|ip| address_of(*ip)));
            self.service_ips = services.clone();
        }
        if *node != self.node_ips {
            let changed: BTreeSet<IpAddr> = node.symmetric_difference(&self.node_ips).copied().collect();
            work.addresses.extend(changed.iter().map(|ip| address_of(*ip)));
            self.node_ips = node.clone();
            let of_changed = |pod: &&Pod| pod.host_ips.iter().any(|ip| changed.contains(&ip.to_canonical()));
            for pod in cluster.pods().filter(of_changed) {
                work.addresses.extend(pod.ips.iter().map(|ip| address_of(*ip)));
                moved.push(pod.key.clone());
            }
        }
        moved
    }

    pub(super) fn take_policies(&mut self, cluster: &ClusterState, dirty: &Dirty, work: &mut Work) {
        for key in &dirty.policies {
            self.take_source(cluster, Source::Policy(key.clone()), work);
        }
        for name in &dirty.cluster_policies {
            self.take_source(cluster, Source::Cluster(name.clone()), work);
        }
    }

    fn take_source(&mut self, cluster: &ClusterState, source: Source, work: &mut Work) {
        if !self.config.enforced {
            return;
        }
        let some = |(policy, problems)| (Some(policy), problems);
        let read = match &source {
            Source::Policy(key) => cluster.policy(key).map(normalize::policy).map(some),
            Source::Cluster(name) => cluster.cluster_policy(name).map(tiers::policy).map(some),
            Source::Namespace(name) => cluster.namespace(name).map(normalize::isolation),
        };
        let (policy, problems) = read.unwrap_or_default();
        self.set_policy(source.clone(), policy, work);
        self.report(About::Source(source), problems);
    }

    pub(super) fn take_namespaces(&mut self, cluster: &ClusterState, dirty: &Dirty, work: &mut Work) {
        for name in &dirty.namespaces {
            self.take_source(cluster, Source::Namespace(name.clone()), work);
            if !self.cluster_wide.is_empty() {
                self.mark_local(name, work);
            }
            if self.terms.namespace_changed(cluster, name) {
                let pods = cluster.pods_in(name).filter(|pod| pod.has_own_network());
                work.addresses.extend(pods.flat_map(|pod| &pod.ips).map(|ip| address_of(*ip)));
            }
        }
    }

    fn set_policy(&mut self, source: Source, policy: Option<Policy>, work: &mut Work) {
        let old = self.versions.get(&source).cloned();
        if old.as_ref().map(|version| &version.policy) == policy.as_ref() {
            return;
        }
        if let Some(old) = old {
            self.mark_subjects(&old, work);
            self.versions.remove(&source);
            self.cluster_wide.remove(&source);
            if let Some(namespace) = source.namespace()
                && let Some(index) = self.subjects.get_mut(namespace)
            {
                index.remove(&old.policy.pods, &old);
                if index.is_empty() {
                    self.subjects.remove(namespace);
                }
            }
        }
        if let Some(policy) = policy {
            self.last_version += 1;
            let version = Arc::new(Version { number: self.last_version, policy });
            self.mark_subjects(&version, work);
            match source.namespace() {
                Some(namespace) => {
                    let index = self.subjects.entry(namespace.clone()).or_default();
                    index.insert(&version.policy.pods, version.clone());
                }
                None => drop(self.cluster_wide.insert(source.clone(), version.clone())),
            }
            self.versions.insert(source, version);
        }
    }

    /// The labels are looked at when the pod's turn comes; here it is enough to name those of the namespace.
    fn mark_subjects(&self, version: &Version, work: &mut Work) {
        match version.policy.source.namespace() {
            Some(namespace) => self.mark_local(namespace, work),
            None => work.pods.extend(self.local.keys().cloned()),
        }
    }

    fn mark_local(&self, namespace: &Arc<str>, work: &mut Work) {
        let pods = self.local.range(ObjectKey::new(namespace.clone(), "")..);
        work.pods.extend(pods.map(|(key, _)| key).take_while(|key| key.namespace == *namespace).cloned());
    }

    pub(super) fn take_pods<'a>(
        &mut self,
        cluster: &ClusterState,
        pods: impl Iterator<Item = &'a ObjectKey>,
        work: &mut Work,
    ) {
        for key in pods {
            let pod = cluster.pod(key).filter(|pod| self.is_local(pod));
            match (self.local.contains_key(key), pod) {
                (false, None) => self.report(About::Pod(key.clone()), Vec::new()),
                (true, None) => self.forget_pod(key, work),
                (true, Some(_)) => drop(work.pods.insert(key.clone())),
                (false, Some(_)) => match self.pod_ids.take() {
                    Some(number) => {
                        self.local.insert(key.clone(), LocalPod { number, groups: [None, None] });
                        self.report(About::Pod(key.clone()), Vec::new());
                        work.pods.insert(key.clone());
                    }
                    None => {
                        let text = format!(
                            "this node has more than {} pods (--netpol-max-pods); {}",
                            self.config.limits.pods - 1,
                            if self.config.enforced {
                                "nothing passes from or to this one"
                            } else {
                                "this one takes no fast path to services"
                            }
                        );
                        self.crowd.insert(key.clone());
                        self.homeless.extend(cluster.pod(key).iter().flat_map(|pod| pod.ips.iter().copied()));
                        let subject = Subject::Object(Kind::Pod, key.clone());
                        self.report(About::Pod(key.clone()), vec![Problem { subject, reason: "TooManyPods", text }]);
                    }
                },
            }
        }
    }

    pub(super) fn is_local(&self, pod: &Pod) -> bool {
        let here = pod.node.as_ref() == Some(&self.config.node)
            || pod.host_ips.iter().any(|ip| self.node_ips.contains(&ip.to_canonical()));
        here && pod.has_own_network() && !pod.ips.is_empty()
    }

    fn forget_pod(&mut self, key: &ObjectKey, work: &mut Work) {
        let Some(pod) = self.local.remove(key) else { return };
        for group in pod.groups.into_iter().flatten() {
            self.leave_group(group, work);
        }
        self.out.set_pod(pod.number, None);
        self.pod_ids.give_back(pod.number, self.update);
    }

    /// Puts a pod of this node into the groups of its policies.
    pub(super) fn regroup(&mut self, cluster: &ClusterState, key: &ObjectKey, work: &mut Work) {
        let Some(pod) = cluster.pod(key) else { return };
        let Some(old) = self.local.get(key).map(|local| local.groups) else { return };
        let labels = LabelView::of_pod(&pod.labels);
        let mut selected: Vec<Arc<Version>> = Vec::new();
        if let Some(index) = self.subjects.get(&key.namespace) {
            index.each_match(labels, |version| selected.push(version.clone()));
        }
        if !self.cluster_wide.is_empty() {
            // Few, and few pods are local: each is asked.
            let namespace = LabelView::of_namespace(&key.namespace, cluster.namespace(&key.namespace));
            let selects = |version: &&Arc<Version>| {
                version.policy.namespaces.match_labels(namespace) && version.policy.pods.matches(labels)
            };
            selected.extend(self.cluster_wide.values().filter(selects).cloned());
        }
        selected.sort_by(|a, b| (a.policy.rank, &a.policy.source).cmp(&(b.policy.rank, &b.policy.source)));
        let new = Direction::BOTH.map(|direction| {
            let speaking = |version: &&Arc<Version>| version.policy.rules[direction as usize].is_some();
            let versions: Box<[Arc<Version>]> = selected.iter().filter(speaking).cloned().collect();
            (!versions.is_empty()).then(|| self.join_group(direction, versions, pod, work))
        });
        for group in old.into_iter().flatten() {
            self.leave_group(group, work);
        }
        if let Some(local) = self.local.get_mut(key) {
            local.groups = new;
        }
        self.publish(key);
    }

    fn join_group(
        &mut self,
        direction: Direction,
        versions: Box<[Arc<Version>]>,
        pod: &Pod,
        work: &mut Work,
    ) -> GroupId {
        let mut numbers: Box<[u32]> = versions.iter().map(|version| version.number).collect();
        numbers.sort_unstable();
        let names = match direction {
            Direction::Ingress => names_in_use(&versions, &pod.ports),
            Direction::Egress => Box::default(),
        };
        let key = GroupKey { direction, versions: numbers, names };
        let id = match self.group_of.get(&key) {
            Some(id) => *id,
            None => self.new_group(key, versions, work),
        };
        if let Some(group) = self.groups.get_mut(&id) {
            group.pods += 1;
        }
        work.empty_groups.remove(&id);
        id
    }

    fn new_group(&mut self, key: GroupKey, versions: Box<[Arc<Version>]>, work: &mut Work) -> GroupId {
        let id = self.group_ids.take().expect("four thousand million groups do not pass in the life of a node");
        let mut numbers = Vec::new();
        for version in &versions {
            let numbers_of = self.number_rules(version, key.direction);
            numbers.extend(numbers_of);
        }
        let numbers = numbers.into_iter();
        let group = Group::new(id, key.clone(), versions, numbers, &mut self.terms, &mut self.ports, &mut work.fresh);
        self.group_of.insert(key, id);
        self.groups.insert(id, group);
        work.new_groups.insert(id);
        id
    }

    /// The numbers of a version's rules, with one more user. 0 where there are too many.
    fn number_rules(&mut self, version: &Version, direction: Direction) -> Vec<u32> {
        if let Some(known) = self.rules.get_mut(&(version.number, direction)) {
            known.users += 1;
            return known.numbers.to_vec();
        }
        let mut numbers = Vec::new();
        let Some(policy) = version.policy.source.policy() else { return numbers };
        let tier = version.policy.rank.tier;
        for rule in version.policy.rules[direction as usize].iter().flatten() {
            let number = self.rule_ids.take().unwrap_or(0);
            numbers.push(number);
            if number != 0 {
                let text = rule.to_string().into();
                let info = RuleInfo { tier, policy: policy.clone(), direction, index: rule.index, text };
                self.out.set_rule(number, Some(info));
            }
        }
        let numbered = Numbered { numbers: numbers.clone().into(), users: 1 };
        self.rules.insert((version.number, direction), numbered);
        numbers
    }

    pub(super) fn forget_rules(&mut self, version: &Version, direction: Direction) {
        let key = (version.number, direction);
        let Some(known) = self.rules.get_mut(&key) else { return };
        known.users -= 1;
        if known.users > 0 {
            return;
        }
        for number in known.numbers.iter().filter(|number| **number != 0) {
            self.out.set_rule(*number, None);
            self.rule_ids.give_back(*number, self.update);
        }
        self.rules.remove(&key);
    }

    fn leave_group(&mut self, id: GroupId, work: &mut Work) {
        let Some(group) = self.groups.get_mut(&id) else { return };
        group.pods -= 1;
        if group.pods == 0 {
            work.empty_groups.insert(id);
        }
    }
}
