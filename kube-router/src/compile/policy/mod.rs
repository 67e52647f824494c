//! Network policy: what the pods of this node may receive and send, as tables.
//!
//! ```text
//! policies ──normalize──> rules that make sense, problems
//! pods of this node ──resolve──> groups: who has the same policies        pods ──> group
//! peers of their rules ──terms──> members ──classes──> class of each      address, prefix ──> class
//! ports of their rules ──ports──> port classes                            port ──> port class
//! groups x classes ──lower──> rows                                        what may pass, and by which rule
//! ```
//!
//! An update costs what the event touches: selectors are found by the labels of a pod, not asked one by one, and
//! a pod's new label is one element of the table of peers, however many policies there are.
//!
//! ## Change without a gap
//!
//! Numbers change their meaning never (groups, classes) or in a way that nobody notices (port classes). In an update
//! there are the groups that judge now and those that will. Classes are told apart by what *either* uses, so rows of
//! the old groups stay right while addresses are flipped one by one to new classes, and rows of the new groups are there
//! before the first pod is flipped to them. What only the old groups used is *retired* and dropped at the next update;
//! [`PolicyCompiler::has_leftovers`] says that one should follow. Order of the orders: `plan/policy.rs`.
//!
//! A batch of several events may pass through a state that neither its begin nor its end had, but never through one
//! that was not the answer to some of its events.

mod blocks;
mod classes;
mod closing;
pub mod explain;
mod host_bits;
mod ids;
mod index;
mod lower;
mod members;
pub mod model;
pub mod normalize;
mod placing;
mod ports;
mod prefix;
mod resolve;
mod room;
mod rows;
mod selector;
mod terms;
#[cfg(test)]
mod tests;
pub mod tiers;
mod verdicts;
mod words;

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    net::IpAddr,
    sync::Arc,
};

use kube_router_common::{names, policy::Address, sizes::Sizes};

use crate::{
    cluster::{ClusterState, Dirty},
    compile::Problem,
    desired::policy::{Direction, PolicyChanges, PolicyTables, Recorder},
    objects::{Kind, ObjectKey},
};
use blocks::Blocks;
use classes::Classes;
use ids::Ids;
use index::LabelIndex;
use lower::{Fresh, Group, GroupKey, Version};
use normalize::Source;
use ports::Ports;
use prefix::Prefix;
pub use prefix::{address_of, ip_of};
use terms::{GroupId, Terms};

/// Each must have been listed completely before the first update, and one that cannot be read must hold later ones back:
/// without it some policy, or some pod that it speaks of, may be missing. A cluster without the custom resource counts as
/// one with no such object.
pub const POLICY_KINDS: [Kind; 7] = [
    Kind::Node,
    Kind::Service,
    // They name the node's processes behind services.
    Kind::EndpointSlice,
    Kind::Namespace,
    Kind::Pod,
    Kind::NetworkPolicy,
    Kind::ClusterNetworkPolicy,
];

/// The same where no policy is enforced.
pub const PROGRAM_KINDS: [Kind; 4] = [Kind::Node, Kind::Service, Kind::EndpointSlice, Kind::Pod];

/// Numbers of classes end here.
pub const MAX_CLASSES: u32 = 61_000;

/// How large the tables are. When one is full, what does not fit is denied, and a problem says so (`room.rs`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    pub rows: usize,
    pub classes: u32,
    pub peers: usize,
    pub cidrs: usize,
    pub pods: u32,
    pub rules: u32,
}

impl Limits {
    /// What fits into maps of these sizes.
    pub fn of(sizes: &Sizes) -> Self {
        let of = |map| sizes.of(map).unwrap_or_default();
        Limits {
            rows: of(names::POLICY) as usize,
            classes: MAX_CLASSES,
            peers: of(names::PEERS) as usize,
            // What takes another's place is there before that goes.
            cidrs: of(names::CIDRS) as usize / 2,
            pods: of(names::PODS),
            rules: of(names::RULES),
        }
    }
}

impl Default for Limits {
    fn default() -> Self {
        Limits::of(&Sizes::default())
    }
}

#[derive(Clone, Debug)]
pub struct PolicyConfig {
    /// Name of our Node.
    pub node: Arc<str>,
    pub limits: Limits,
    /// Policies count. Without, there are none: what is left are this node's pods, the nodes and the services.
    pub enforced: bool,
}

impl PolicyConfig {
    pub fn new(node: impl Into<Arc<str>>) -> Self {
        PolicyConfig { node: node.into(), limits: Limits::default(), enforced: true }
    }
}

/// Numbers that an earlier agent left in the kernel's tables.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NumbersInUse {
    pub groups: BTreeSet<u32>,
    pub classes: BTreeSet<u32>,
    pub port_classes: BTreeSet<u32>,
    pub rules: BTreeSet<u32>,
    pub pods: BTreeSet<u32>,
}

impl NumbersInUse {
    /// Every number in these tables.
    pub fn of(tables: &PolicyTables) -> Self {
        let mut used = NumbersInUse::default();
        for (key, row) in &tables.rows {
            used.groups.insert(key.group);
            used.classes.insert(key.class);
            used.port_classes.insert(key.ports);
            used.rules.insert(row.rule);
        }
        used.groups.extend(tables.pods.values().flat_map(|groups| [groups.ingress, groups.egress]));
        used.classes.extend(tables.peers.values().chain(tables.cidrs.values()).map(|peer| peer.class));
        used.port_classes.extend(tables.ports.values());
        used.pods.extend(tables.pods.keys().chain(tables.endpoints.values()));
        used
    }
}

/// A pod of this node with addresses of its own.
#[derive(Debug)]
struct LocalPod {
    number: u32,
    /// By direction; `None`: not isolated.
    groups: [Option<GroupId>; 2],
}

/// Numbers of the rules of a version in one direction.
#[derive(Debug)]
struct Numbered {
    numbers: Box<[u32]>,
    /// Groups.
    users: u32,
}

/// What a standing problem is about.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum About {
    Source(Source),
    Address(IpAddr),
    Pod(ObjectKey),
    Group(GroupId),
    Blocks,
    Classes,
    Peers,
    Closed,
}

/// What an update still has to look at.
#[derive(Debug, Default)]
struct Work {
    /// Local pods whose policies may have changed.
    pods: BTreeSet<ObjectKey>,
    addresses: BTreeSet<Address>,
    prefixes: BTreeSet<Prefix>,
    /// Groups whose rows are to be written.
    new_groups: BTreeSet<GroupId>,
    /// Groups that lost their last pod.
    empty_groups: BTreeSet<GroupId>,
    fresh: Fresh,
}

pub struct PolicyCompiler {
    config: PolicyConfig,
    update: u64,
    out: Recorder,
    problems: BTreeMap<About, Vec<Problem>>,

    versions: HashMap<Source, Arc<Version>>,
    last_version: u32,
    /// Namespace -> its policies by the pods they select.
    subjects: HashMap<Arc<str>, LabelIndex<Arc<Version>>>,
    /// The policies that select pods of many namespaces.
    cluster_wide: BTreeMap<Source, Arc<Version>>,
    local: BTreeMap<ObjectKey, LocalPod>,
    pod_ids: Ids,
    /// Pods of this node without a number, and their addresses.
    crowd: BTreeSet<ObjectKey>,
    homeless: BTreeSet<IpAddr>,

    groups: BTreeMap<GroupId, Group>,
    group_of: HashMap<GroupKey, GroupId>,
    group_ids: Ids,
    /// (version, direction) -> its rules.
    rules: HashMap<(u32, Direction), Numbered>,
    rule_ids: Ids,
    /// Groups without rows, as there is no room, with how many rows they want, or want at least.
    denied: BTreeMap<GroupId, usize>,
    /// Groups whose pods may have no new flows, though they have rows.
    closed: BTreeSet<GroupId>,

    terms: Terms,
    blocks: Blocks,
    /// Groups are gone that may have held places which others should have.
    blocks_moved: bool,
    classes: Classes,
    ports: Ports,
    node_ips: BTreeSet<IpAddr>,
    service_ips: BTreeSet<IpAddr>,
    /// Addresses and prefixes for which there was no class or no place.
    refused: BTreeSet<Address>,
    refused_prefixes: BTreeSet<Prefix>,
    /// No number was left for some of them.
    lacks_classes: bool,
}

impl PolicyCompiler {
    pub fn new(config: PolicyConfig) -> Self {
        let limits = config.limits;
        PolicyCompiler {
            update: 0,
            out: Recorder::default(),
            problems: BTreeMap::new(),
            versions: HashMap::new(),
            last_version: 0,
            subjects: HashMap::new(),
            cluster_wide: BTreeMap::new(),
            local: BTreeMap::new(),
            pod_ids: Ids::new(1..limits.pods),
            crowd: BTreeSet::new(),
            homeless: BTreeSet::new(),
            groups: BTreeMap::new(),
            group_of: HashMap::new(),
            group_ids: Ids::new(1..u32::MAX),
            rules: HashMap::new(),
            rule_ids: Ids::new(1..limits.rules),
            denied: BTreeMap::new(),
            closed: BTreeSet::new(),
            terms: Terms::default(),
            blocks: Blocks::new(limits.prefixes()),
            blocks_moved: false,
            classes: Classes::new(limits.classes),
            ports: Ports::default(),
            node_ips: BTreeSet::new(),
            service_ips: BTreeSet::new(),
            refused: BTreeSet::new(),
            refused_prefixes: BTreeSet::new(),
            lacks_classes: false,
            config,
        }
    }

    /// Numbers that must not be given out before the first update is confirmed, so that rows of an earlier agent and
    /// ours never mix. Call it before the first update.
    pub fn seed(&mut self, used: NumbersInUse) {
        self.group_ids.seed(used.groups);
        self.classes.ids().seed(used.classes);
        self.ports.ids().seed(used.port_classes);
        self.rule_ids.seed(used.rules);
        self.pod_ids.seed(used.pods);
    }

    /// Takes in what changed. The first update looks at the whole cluster, whatever `dirty` says.
    ///
    /// `node` are the addresses of this node; `services` every address at which a service of this node answers.
    /// The changes of an update build on those of the one before: carry them out in order.
    pub fn update(
        &mut self,
        cluster: &ClusterState,
        dirty: &Dirty,
        node: &BTreeSet<IpAddr>,
        services: &BTreeSet<IpAddr>,
    ) -> PolicyChanges {
        self.take_in(cluster, dirty, Some((node, services)))
    }

    /// The same where neither the node nor the addresses of services have changed: these can be many, and are not looked at.
    pub fn update_objects(&mut self, cluster: &ClusterState, dirty: &Dirty) -> PolicyChanges {
        self.take_in(cluster, dirty, None)
    }

    fn take_in(
        &mut self,
        cluster: &ClusterState,
        dirty: &Dirty,
        around: Option<(&BTreeSet<IpAddr>, &BTreeSet<IpAddr>)>,
    ) -> PolicyChanges {
        self.update += 1;
        self.out.begin(self.update);
        let everything = (self.update == 1).then(|| everything(cluster));
        let dirty = everything.as_ref().unwrap_or(dirty);
        let retired = (self.terms.retired(), self.ports.retired());
        let mut work = Work::default();
        work.addresses.extend(dirty.pod_ips.iter().map(|ip| address_of(*ip)));
        work.addresses.append(&mut self.refused);
        work.prefixes.append(&mut self.refused_prefixes);

        let around = around.filter(|(node, services)| **node != self.node_ips || **services != self.service_ips);
        let shut_before = self.shut();
        let moved = around.map(|(node, services)| self.take_surroundings(cluster, node, services, &mut work));
        self.take_policies(cluster, dirty, &mut work);
        self.take_namespaces(cluster, dirty, &mut work);
        let crowd = std::mem::take(&mut self.crowd);
        self.homeless.clear();
        self.take_pods(cluster, dirty.pods.iter().chain(moved.iter().flatten()).chain(&crowd), &mut work);
        for pod in std::mem::take(&mut work.pods) {
            self.regroup(cluster, &pod, &mut work);
        }
        self.settle_terms(cluster, retired.0, &mut work);
        self.classify(cluster, &mut work);
        self.close();
        self.close_between(&dirty.namespaces);
        self.ports.drop_retired(retired.1);
        self.write_rows(&work);
        self.clean_up(&work);

        let mut changes = std::mem::take(&mut self.out.changes);
        // Leftovers alone change numbers, but no verdict.
        let quiet = dirty.is_empty() && moved.is_none() && shut_before == self.shut();
        changes.judge_again = !changes.is_empty() && !quiet;
        changes
    }

    /// The orders of this update and of all before it are carried out: their numbers may be used again.
    pub fn confirm(&mut self, update: u64) {
        for ids in [&mut self.group_ids, &mut self.rule_ids, &mut self.pod_ids, self.classes.ids(), self.ports.ids()] {
            ids.confirm(update);
        }
    }

    /// Something waits only for the last update to be carried out: call [`PolicyCompiler::update`] once more.
    pub fn has_leftovers(&self) -> bool {
        let room = self.config.limits.rows.saturating_sub(self.out.tables.rows.len());
        let numbers = !self.crowd.is_empty() && self.pod_ids.has_some();
        let peers = !self.refused.is_empty() && self.out.has_leaving_peers();
        numbers
            || peers
            || (self.lacks_classes && self.classes.has_number())
            || self.blocks_moved
            || self.terms.has_retired()
            || self.ports.has_retired()
            || self.denied.values().any(|wanted| *wanted <= room)
    }

    /// The tables as they should be.
    pub fn state(&self) -> &PolicyTables {
        &self.out.tables
    }

    /// Sets of pods with the same rules in a direction.
    pub fn group_count(&self) -> usize {
        self.groups.len()
    }

    /// Is there any policy in the cluster, about whichever pods?
    pub fn has_policies(&self) -> bool {
        !self.versions.is_empty()
    }

    /// Sets of peers that rules tell apart.
    pub fn class_count(&self) -> usize {
        self.classes.len()
    }

    pub fn problems(&self) -> impl Iterator<Item = &Problem> {
        self.problems.values().flatten()
    }

    /// Number of a pod of this node.
    pub fn pod_number(&self, pod: &ObjectKey) -> Option<u32> {
        self.local.get(pod).map(|pod| pod.number)
    }

    /// Addresses of this node's pods that are too many to have numbers: nothing is to pass there.
    pub fn homeless(&self) -> &BTreeSet<IpAddr> {
        &self.homeless
    }

    pub fn local_pods(&self) -> impl Iterator<Item = (&ObjectKey, u32)> {
        self.local.iter().map(|(key, pod)| (key, pod.number))
    }

    fn report(&mut self, about: About, problems: Vec<Problem>) {
        match problems.is_empty() {
            true => drop(self.problems.remove(&about)),
            false => drop(self.problems.insert(about, problems)),
        }
    }
}

fn everything(cluster: &ClusterState) -> Dirty {
    Dirty {
        pods: cluster.pods().map(|pod| pod.key.clone()).collect(),
        pod_ips: cluster.pods().filter(|pod| pod.has_own_network()).flat_map(|pod| pod.ips.iter().copied()).collect(),
        namespaces: cluster.namespaces().map(|namespace| namespace.key.name.clone()).collect(),
        policies: cluster.policies().map(|policy| policy.key.clone()).collect(),
        cluster_policies: cluster.cluster_policies().map(|policy| policy.key.name.clone()).collect(),
        ..Dirty::default()
    }
}
