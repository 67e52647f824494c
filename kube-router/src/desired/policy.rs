//! The tables of network policy as they should be (`kube_router_common::policy` says what they mean), and the changes
//! of one update: what [`plan`](crate::plan::policy) puts in order.
//!
//! Interface and hardware address of a pod are not here: who knows the links adds them to the endpoint.

use std::collections::{BTreeMap, BTreeSet};

use kube_router_common::policy::{
    Address, CLASS_WORLD, CidrKey, PORTLESS, PORTS_OTHER, Peer, PodGroups, PolicyKey, PolicyRow, Verdict, judge,
    port_index,
};
use serde::{Deserialize, Serialize};

use crate::objects::ObjectKey;

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Direction {
    /// Into the pod.
    Ingress,
    /// Out of the pod.
    Egress,
}

impl Direction {
    pub const BOTH: [Direction; 2] = [Direction::Ingress, Direction::Egress];

    pub fn name(self) -> &'static str {
        match self {
            Direction::Ingress => "ingress",
            Direction::Egress => "egress",
        }
    }

    pub fn group(self, groups: PodGroups) -> u32 {
        match self {
            Direction::Ingress => groups.ingress,
            Direction::Egress => groups.egress,
        }
    }
}

/// The levels of policy, in the order in which they are asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
pub enum Tier {
    /// ClusterNetworkPolicy before all others.
    Admin,
    /// NetworkPolicy, and namespaces that isolate their pods.
    Namespaced,
    /// ClusterNetworkPolicy for pods that no NetworkPolicy isolates.
    Baseline,
}

impl Tier {
    /// What the API calls the objects of this level.
    pub fn kind(self) -> &'static str {
        match self {
            Tier::Admin | Tier::Baseline => "ClusterNetworkPolicy",
            Tier::Namespaced => "NetworkPolicy",
        }
    }
}

/// What a rule's number stands for.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct RuleInfo {
    pub tier: Tier,
    /// Without a namespace outside [`Tier::Namespaced`].
    pub policy: ObjectKey,
    pub direction: Direction,
    /// Place in the policy's list.
    pub index: u32,
    /// For people.
    pub text: Box<str>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PolicyTables {
    pub rows: BTreeMap<PolicyKey, PolicyRow>,
    /// By the pod's number.
    pub pods: BTreeMap<u32, PodGroups>,
    /// Address -> the pod's number.
    pub endpoints: BTreeMap<Address, u32>,
    pub peers: BTreeMap<Address, Peer>,
    pub cidrs: BTreeMap<CidrKey, Peer>,
    /// First index -> port class, up to the next entry.
    pub ports: BTreeMap<u32, u32>,
    pub rules: BTreeMap<u32, RuleInfo>,
}

impl Default for PolicyTables {
    fn default() -> Self {
        PolicyTables {
            rows: BTreeMap::new(),
            pods: BTreeMap::new(),
            endpoints: BTreeMap::new(),
            peers: BTreeMap::new(),
            cidrs: BTreeMap::new(),
            // An array of the kernel begins as zeroes.
            ports: BTreeMap::from([(0, PORTS_OTHER)]),
            rules: BTreeMap::new(),
        }
    }
}

impl PolicyTables {
    /// Class and flags of an address, as the programs find them.
    pub fn peer(&self, address: Address) -> Peer {
        if let Some(peer) = self.peers.get(&address) {
            return *peer;
        }
        let mut key = CidrKey { length: 32 + 128, family: CidrKey::family_of(address.is_v4()), address };
        // Prefixes are ordered by length: from each length that exists to the next shorter one.
        while let Some((found, _)) =
            self.cidrs.range(..=CidrKey { family: [255; 4], address: Address([255; 16]), ..key }).next_back()
        {
            key.length = found.length;
            key.address = masked(address, key.length - 32);
            if let Some(peer) = self.cidrs.get(&key) {
                return *peer;
            }
            key.length -= 1;
        }
        Peer { class: CLASS_WORLD, flags: 0 }
    }

    /// `None`: a protocol without ports.
    pub fn port_class(&self, port: Option<(u8, u16)>) -> u32 {
        let Some(index) = port.and_then(|(protocol, port)| port_index(protocol, port)) else { return PORTLESS };
        self.ports.range(..=index).next_back().map_or(PORTS_OTHER, |(_, class)| *class)
    }

    /// The walk of the programs for a new flow: pod by number. `None`: no such pod.
    pub fn verdict(&self, pod: u32, direction: Direction, peer: Address, port: Option<(u8, u16)>) -> Option<Verdict> {
        let group = direction.group(*self.pods.get(&pod)?);
        let class = self.peer(peer).class;
        Some(judge(group, class, self.port_class(port), |key| self.rows.get(key).copied()))
    }

    /// The rows of one group.
    pub fn rows_of(&self, group: u32) -> Vec<PolicyKey> {
        let last = PolicyKey { group, class: u32::MAX, ports: u32::MAX };
        self.rows.range(PolicyKey { group, class: 0, ports: 0 }..=last).map(|(key, _)| *key).collect()
    }
}

fn masked(address: Address, length: u32) -> Address {
    let mask = u128::MAX.checked_shl(128 - length).unwrap_or(0);
    Address((u128::from_be_bytes(address.0) & mask).to_be_bytes())
}

/// What one update changes. Every entry holds the value after it; `None` removes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PolicyChanges {
    /// Number of the update; what the compiler wants to hear when the orders are carried out.
    pub update: u64,
    /// Groups of pods until their new ones are ready, before anything else: of an unknown class or port class, a group that
    /// was not made for it would say what it says of everybody, though it denies some of them. So would one that is shut.
    /// And where one object changes both who a peer is and what is asked of it, the old question must not meet the new peer.
    pub closed: BTreeMap<u32, PodGroups>,
    /// Rows of shut groups, which go next and make room: nobody is in such a group by then.
    pub shut_rows: BTreeMap<PolicyKey, PolicyRow>,
    /// Rows to add, before anything that looks for them. No row ever changes its value.
    pub rows: BTreeMap<PolicyKey, PolicyRow>,
    /// Rows to remove, after everything else; some of those added are needed only in between.
    pub dead_rows: BTreeSet<PolicyKey>,
    /// (first index, last index, port class), in order.
    pub ports: Vec<(u32, u32, u32)>,
    pub cidrs: BTreeMap<CidrKey, Option<Peer>>,
    pub peers: BTreeMap<Address, Option<Peer>>,
    pub pods: BTreeMap<u32, Option<PodGroups>>,
    pub endpoints: BTreeMap<Address, Option<u32>>,
    pub rules: BTreeMap<u32, Option<RuleInfo>>,
    /// Verdicts may have changed: live flows must be judged again.
    pub judge_again: bool,
}

impl PolicyChanges {
    /// Nothing for the kernel to do.
    pub fn is_empty(&self) -> bool {
        self.closed.is_empty()
            && self.shut_rows.is_empty()
            && self.rows.is_empty()
            && self.dead_rows.is_empty()
            && self.ports.is_empty()
            && self.cidrs.is_empty()
            && self.peers.is_empty()
            && self.pods.is_empty()
            && self.endpoints.is_empty()
    }
}

/// The tables together with a record of what was done to them.
#[derive(Debug, Default)]
pub struct Recorder {
    pub tables: PolicyTables,
    pub changes: PolicyChanges,
    /// Peers that go in this update.
    leaving: usize,
    /// Group -> rows, where there are any.
    sizes: BTreeMap<u32, usize>,
    /// Groups before this update of pods that it touches.
    before: BTreeMap<u32, Option<PodGroups>>,
}

impl Recorder {
    pub fn begin(&mut self, update: u64) {
        self.changes = PolicyChanges { update, ..PolicyChanges::default() };
        self.leaving = 0;
        self.before.clear();
    }

    /// Rows that the kernel has at most while this update is carried out: what goes, goes last, but for shut groups'.
    pub fn rows_in_kernel(&self) -> usize {
        self.tables.rows.len() + self.changes.dead_rows.len()
    }

    /// The same for peers.
    pub fn peers_in_kernel(&self) -> usize {
        self.tables.peers.len() + self.leaving
    }

    pub fn has_leaving_peers(&self) -> bool {
        self.leaving > 0
    }

    fn leaves(&self, address: &Address) -> bool {
        matches!(self.changes.peers.get(address), Some(None))
    }

    /// Rows of a group.
    pub fn size_of(&self, group: u32) -> usize {
        self.sizes.get(&group).copied().unwrap_or(0)
    }

    pub fn add_row(&mut self, key: PolicyKey, row: PolicyRow) {
        if self.tables.rows.insert(key, row).is_none() {
            *self.sizes.entry(key.group).or_default() += 1;
            if !self.changes.dead_rows.remove(&key) {
                self.changes.rows.insert(key, row);
            }
        }
    }

    fn take_row(&mut self, key: &PolicyKey) -> Option<PolicyRow> {
        let row = self.tables.rows.remove(key)?;
        if let Some(size) = self.sizes.get_mut(&key.group) {
            *size -= 1;
            if *size == 0 {
                self.sizes.remove(&key.group);
            }
        }
        Some(row)
    }

    /// A row that was added in this update is never written at all.
    pub fn remove_row(&mut self, key: PolicyKey) {
        if self.take_row(&key).is_some() && self.changes.rows.remove(&key).is_none() {
            self.changes.dead_rows.insert(key);
        }
    }

    /// A row that was added in this update is written first and removed in the end: somebody looks for it between.
    pub fn retire_row(&mut self, key: PolicyKey) {
        if self.take_row(&key).is_some() {
            self.changes.dead_rows.insert(key);
        }
    }

    /// Every row of the group, before those of others are written. Its pods must be closed first.
    pub fn shut_group(&mut self, group: u32) {
        for key in self.tables.rows_of(group) {
            if let Some(row) = self.take_row(&key)
                && self.changes.rows.remove(&key).is_none()
            {
                self.changes.shut_rows.insert(key, row);
            }
        }
    }

    /// The kernel's groups of pods before this update.
    pub fn pods_before(&self) -> BTreeMap<u32, PodGroups> {
        let mut pods = self.tables.pods.clone();
        for (pod, groups) in &self.before {
            match groups {
                Some(groups) => drop(pods.insert(*pod, *groups)),
                None => drop(pods.remove(pod)),
            }
        }
        pods
    }

    /// Its groups before this update and after it, where they are others and it is still there.
    pub fn regrouped(&self, pod: u32) -> Option<(PodGroups, PodGroups)> {
        let before = (*self.before.get(&pod)?)?;
        let after = *self.tables.pods.get(&pod)?;
        (before != after).then_some((before, after))
    }

    pub fn set_peer(&mut self, address: Address, peer: Option<Peer>) {
        let left = self.leaves(&address);
        set(&mut self.tables.peers, &mut self.changes.peers, address, peer);
        match (left, self.leaves(&address)) {
            (false, true) => self.leaving += 1,
            (true, false) => self.leaving -= 1,
            _ => {}
        }
    }

    pub fn set_cidr(&mut self, key: CidrKey, peer: Option<Peer>) {
        set(&mut self.tables.cidrs, &mut self.changes.cidrs, key, peer);
    }

    pub fn set_pod(&mut self, pod: u32, groups: Option<PodGroups>) {
        self.before.entry(pod).or_insert_with(|| self.tables.pods.get(&pod).copied());
        set(&mut self.tables.pods, &mut self.changes.pods, pod, groups);
    }

    pub fn set_endpoint(&mut self, address: Address, pod: Option<u32>) {
        set(&mut self.tables.endpoints, &mut self.changes.endpoints, address, pod);
    }

    pub fn set_rule(&mut self, number: u32, rule: Option<RuleInfo>) {
        set(&mut self.tables.rules, &mut self.changes.rules, number, rule);
    }
}

fn set<K: Ord + Copy, V: PartialEq + Clone>(
    table: &mut BTreeMap<K, V>,
    changes: &mut BTreeMap<K, Option<V>>,
    key: K,
    value: Option<V>,
) {
    if table.get(&key) == value.as_ref() {
        return;
    }
    match &value {
        Some(value) => drop(table.insert(key, value.clone())),
        None => drop(table.remove(&key)),
    }
    changes.insert(key, value);
}
