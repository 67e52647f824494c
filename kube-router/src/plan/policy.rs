//! Orders to the tables of network policy, and why they come in this order.
//!
//! ```text
//!   pods whose groups would not stay right           nothing new meanwhile: a table is full, or after a restart into another
//!                                                    cluster
//!   rows of shut groups                              nobody is in them; those that allow go first, as a packet under way
//!                                                    may still look
//!   rows of new groups, classes, port classes        nobody looks for them yet
//!   ports, addresses, prefixes                       flips to new classes; every group has rows for old and new ones
//!   pods                                             flips to new groups, each with all its rows
//!   endpoints                                        a new pod is known once its groups are
//!   generation                                       live flows are judged again
//!   endpoints, pods, rows that go                    nobody looks for them any more
//! ```
//!
//! So whatever prefix of a plan is carried out, every flow gets the old or the new verdict: each order is one element
//! (a run of ports is one after the other), and each flip exchanges one right answer for another.

use std::collections::{BTreeMap, BTreeSet};

use kube_router_common::policy::{
    Address, CLOSED, CidrKey, NOT_ISOLATED, PORT_ENTRIES, PORTS_OTHER, Peer, PodGroups, PolicyKey, PolicyRow,
};

use crate::desired::policy::{PolicyChanges, PolicyTables};

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PolicyOp {
    /// As [`PolicyOp::DeleteRow`], but before others are set.
    ClearRow(PolicyKey),
    SetRow(PolicyKey, PolicyRow),
    /// Gives these indices, both included, this port class.
    SetPorts {
        first: u32,
        last: u32,
        class: u32,
    },
    SetCidr(CidrKey, Peer),
    SetPeer(Address, Peer),
    DeleteCidr(CidrKey),
    DeletePeer(Address),
    SetPod(u32, PodGroups),
    SetEndpoint(Address, u32),
    /// Live flows are to be judged again.
    BumpGeneration,
    DeleteEndpoint(Address),
    DeletePod(u32),
    DeleteRow(PolicyKey),
}

/// Puts the changes of one update in order.
pub fn plan_policy(changes: &PolicyChanges) -> Vec<PolicyOp> {
    let mut ops: Vec<PolicyOp> = changes.closed.iter().map(|(pod, groups)| PolicyOp::SetPod(*pod, *groups)).collect();
    let (allow, rest): (Vec<_>, Vec<_>) =
        changes.shut_rows.iter().partition(|(_, row)| row.verdict == PolicyRow::ALLOW);
    ops.extend(allow.into_iter().chain(rest).map(|(key, _)| PolicyOp::ClearRow(*key)));
    ops.extend(changes.rows.iter().map(|(key, row)| PolicyOp::SetRow(*key, *row)));
    ops.extend(changes.ports.iter().map(|(first, last, class)| PolicyOp::SetPorts {
        first: *first,
        last: *last,
        class: *class,
    }));
    // From the special to the general: nobody is taken for everybody around him meanwhile. What goes uncovers what is
    // shorter, which must be right by then, and goes the other way round.
    ops.extend(changes.peers.iter().filter_map(|(address, peer)| Some(PolicyOp::SetPeer(*address, (*peer)?))));
    ops.extend(changes.cidrs.iter().rev().filter_map(|(key, peer)| Some(PolicyOp::SetCidr(*key, (*peer)?))));
    ops.extend(changes.cidrs.iter().filter(|(_, peer)| peer.is_none()).map(|(key, _)| PolicyOp::DeleteCidr(*key)));
    ops.extend(
        changes.peers.iter().filter(|(_, peer)| peer.is_none()).map(|(address, _)| PolicyOp::DeletePeer(*address)),
    );
    ops.extend(changes.pods.iter().filter_map(|(pod, groups)| Some(PolicyOp::SetPod(*pod, (*groups)?))));
    ops.extend(changes.endpoints.iter().filter_map(|(address, pod)| Some(PolicyOp::SetEndpoint(*address, (*pod)?))));
    if changes.judge_again {
        ops.push(PolicyOp::BumpGeneration);
    }
    let gone = |(address, pod): (&Address, &Option<u32>)| pod.is_none().then_some(PolicyOp::DeleteEndpoint(*address));
    ops.extend(changes.endpoints.iter().filter_map(gone));
    ops.extend(changes.pods.iter().filter(|(_, groups)| groups.is_none()).map(|(pod, _)| PolicyOp::DeletePod(*pod)));
    ops.extend(changes.dead_rows.iter().map(|key| PolicyOp::DeleteRow(*key)));
    ops
}

/// What leads from the tables that are there to those that should be: at the start, and when orders were refused.
///
/// Numbers of `observed` that mean something else in `desired` would break the promise about prefixes; they are
/// seeded into the compiler, so that there are none.
///
/// Where old and new rows are together more than `most_rows`, groups with the most rows that go lose these first, and
/// their pods are shut until all is done: else a table more than half full could never be brought up to date.
pub fn difference(observed: &PolicyTables, desired: &PolicyTables, most_rows: usize) -> PolicyChanges {
    let mut changes = PolicyChanges {
        ports: ports(&observed.ports, &desired.ports),
        cidrs: entries(&observed.cidrs, &desired.cidrs),
        peers: entries(&observed.peers, &desired.peers),
        pods: pods(&observed.pods, &desired.pods),
        endpoints: entries(&observed.endpoints, &desired.endpoints),
        rules: entries(&observed.rules, &desired.rules),
        ..PolicyChanges::default()
    };
    let shut = shut(observed, desired);
    for (key, row) in entries(&observed.rows, &desired.rows) {
        match row {
            Some(row) => drop(changes.rows.insert(key, row)),
            None if shut.contains(&key.group) => drop(changes.shut_rows.insert(key, observed.rows[&key])),
            None => drop(changes.dead_rows.insert(key)),
        }
    }
    // As one namespace's change may do (`close_between` of the compiler).
    let reclassified = changes
        .peers
        .iter()
        .any(|(address, to)| observed.peers.get(address).zip(*to).is_some_and(|(from, to)| from.class != to.class));
    let emptied = make_room(observed, &mut changes, most_rows);
    let denies: BTreeSet<u32> =
        observed.rows.iter().filter(|(_, row)| row.verdict != PolicyRow::ALLOW).map(|(key, _)| key.group).collect();
    for (pod, from) in &observed.pods {
        let to = desired.pods.get(pod);
        let close = |from: u32, to: Option<u32>| {
            let unsafe_between = reclassified || denies.contains(&from) || shut.contains(&from);
            let regrouped = from != NOT_ISOLATED && to.is_some_and(|to| from != to) && unsafe_between;
            if regrouped || emptied.contains(&from) { CLOSED } else { from }
        };
        let groups = PodGroups {
            ingress: close(from.ingress, to.map(|to| to.ingress)),
            egress: close(from.egress, to.map(|to| to.egress)),
        };
        if groups != *from {
            changes.closed.insert(*pod, groups);
            changes.pods.entry(*pod).or_insert(to.copied());
        }
    }
    changes.judge_again = !changes.is_empty();
    changes
}

/// Groups of which rows go first, as there is no room for all: those with the most such rows.
fn make_room(observed: &PolicyTables, changes: &mut PolicyChanges, most_rows: usize) -> BTreeSet<u32> {
    let new = changes.rows.keys().filter(|key| !observed.rows.contains_key(key)).count();
    let mut excess = (observed.rows.len() - changes.shut_rows.len() + new).saturating_sub(most_rows);
    let mut emptied = BTreeSet::new();
    if excess == 0 {
        return emptied;
    }
    let mut dead: BTreeMap<u32, usize> = BTreeMap::new();
    changes.dead_rows.iter().for_each(|key| *dead.entry(key.group).or_default() += 1);
    let mut largest: Vec<(usize, u32)> = dead.into_iter().map(|(group, rows)| (rows, group)).collect();
    largest.sort_unstable();
    while excess > 0
        && let Some((rows, group)) = largest.pop()
    {
        excess = excess.saturating_sub(rows);
        emptied.insert(group);
    }
    let (first, last): (BTreeSet<PolicyKey>, _) =
        std::mem::take(&mut changes.dead_rows).into_iter().partition(|key| emptied.contains(&key.group));
    changes.dead_rows = last;
    changes.shut_rows.extend(first.into_iter().map(|key| (key, observed.rows[&key])));
    emptied
}

/// Groups that nobody has, or whose pods are all shut now: their rows can make room for others.
fn shut(observed: &PolicyTables, desired: &PolicyTables) -> BTreeSet<u32> {
    let mut groups: BTreeSet<u32> = observed.rows.keys().map(|key| key.group).collect();
    groups.retain(|group| desired.rows_of(*group).is_empty());
    for (pod, from) in &observed.pods {
        let to = desired.pods.get(pod).copied().unwrap_or_default();
        for (from, to) in [(from.ingress, to.ingress), (from.egress, to.egress)] {
            if to != CLOSED {
                groups.remove(&from);
            }
        }
    }
    groups
}

fn entries<K: Ord + Copy, V: PartialEq + Clone>(from: &BTreeMap<K, V>, to: &BTreeMap<K, V>) -> BTreeMap<K, Option<V>> {
    let set = to.iter().filter(|(key, value)| from.get(key) != Some(value));
    let gone = from.keys().filter(|key| !to.contains_key(key));
    set.map(|(key, value)| (*key, Some(value.clone()))).chain(gone.map(|key| (*key, None))).collect()
}

/// An element of an array is never missing: it is that of a pod without policies.
fn pods(from: &BTreeMap<u32, PodGroups>, to: &BTreeMap<u32, PodGroups>) -> BTreeMap<u32, Option<PodGroups>> {
    let mut changes = entries(from, to);
    changes.retain(|pod, groups| groups.unwrap_or_default() != from.get(pod).copied().unwrap_or_default());
    changes
}

fn ports(from: &BTreeMap<u32, u32>, to: &BTreeMap<u32, u32>) -> Vec<(u32, u32, u32)> {
    let at = |runs: &BTreeMap<u32, u32>, index: u32| runs.range(..=index).next_back().map_or(PORTS_OTHER, |run| *run.1);
    let mut starts: Vec<u32> = from.keys().chain(to.keys()).copied().chain([0]).collect();
    starts.sort_unstable();
    starts.dedup();
    let ends = starts.iter().skip(1).copied().chain([PORT_ENTRIES]);
    let mut changed: Vec<(u32, u32, u32)> = Vec::new();
    for (first, next) in starts.iter().copied().zip(ends) {
        let class = at(to, first);
        if at(from, first) == class {
            continue;
        }
        match changed.last_mut() {
            Some((_, last, before)) if *last + 1 == first && *before == class => *last = next - 1,
            _ => changed.push((first, next - 1, class)),
        }
    }
    changed
}

impl PolicyTables {
    /// What an order does: the reconciler keeps its view of the kernel current with it.
    pub fn carry_out(&mut self, op: &PolicyOp) {
        match op {
            PolicyOp::SetRow(key, row) => drop(self.rows.insert(*key, *row)),
            PolicyOp::SetPorts { first, last, class } => self.set_ports(*first, *last, *class),
            PolicyOp::SetCidr(key, peer) => drop(self.cidrs.insert(*key, *peer)),
            PolicyOp::SetPeer(address, peer) => drop(self.peers.insert(*address, *peer)),
            PolicyOp::DeleteCidr(key) => drop(self.cidrs.remove(key)),
            PolicyOp::DeletePeer(address) => drop(self.peers.remove(address)),
            PolicyOp::SetPod(pod, groups) => drop(self.pods.insert(*pod, *groups)),
            PolicyOp::SetEndpoint(address, pod) => drop(self.endpoints.insert(*address, *pod)),
            PolicyOp::BumpGeneration => {}
            PolicyOp::DeleteEndpoint(address) => drop(self.endpoints.remove(address)),
            PolicyOp::DeletePod(pod) => drop(self.pods.remove(pod)),
            PolicyOp::ClearRow(key) | PolicyOp::DeleteRow(key) => drop(self.rows.remove(key)),
        }
    }

    fn set_ports(&mut self, first: u32, last: u32, class: u32) {
        let at =
            |runs: &BTreeMap<u32, u32>, index: u32| runs.range(..=index).next_back().map_or(PORTS_OTHER, |run| *run.1);
        let after = at(&self.ports, last + 1);
        let before = first.checked_sub(1).map(|index| at(&self.ports, index));
        self.ports.retain(|start, _| *start < first || *start > last + 1);
        self.ports.remove(&(last + 1));
        if before != Some(class) {
            self.ports.insert(first, class);
        }
        if last + 1 < PORT_ENTRIES && after != class {
            self.ports.insert(last + 1, after);
        }
    }
}
