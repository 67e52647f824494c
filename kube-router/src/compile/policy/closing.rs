//! Groups that are shut, as a table is full: their pods get a group that never has rows.
//!
//! That is one element of a pod, so none of its packets is judged by half of its rules. It is the first order of the
//! update that shuts, and the last of the one that opens again: between, rows go or come, and addresses have classes of
//! which the rows know nothing.
//!
//! Two reasons shut. A group has no rows, as others are smaller (`rows.rs`). Or some peers cannot be told from others:
//! who only allows, allows them less then; but a Deny or Pass would miss them.

use std::{collections::BTreeSet, sync::Arc};

use kube_router_common::policy::{CLOSED, NOT_ISOLATED, PodGroups};

use super::{About, PolicyCompiler, terms::GroupId};
use crate::{
    compile::{Problem, Subject},
    objects::ObjectKey,
};

impl PolicyCompiler {
    /// The kernel's groups of a pod.
    pub(super) fn publish(&mut self, pod: &ObjectKey) {
        let Some(local) = self.local.get(pod) else { return };
        let number = local.number;
        let [ingress, egress] = local.groups.map(|group| match group {
            None => NOT_ISOLATED,
            Some(group) if self.closed.contains(&group) || self.denied.contains_key(&group) => CLOSED,
            Some(group) => group,
        });
        self.out.set_pod(number, Some(PodGroups { ingress, egress }));
    }

    pub(super) fn publish_all(&mut self) {
        for pod in self.local.keys().cloned().collect::<Vec<_>>() {
            self.publish(&pod);
        }
    }

    /// Every group that is shut.
    pub(super) fn shut(&self) -> BTreeSet<GroupId> {
        self.closed.iter().chain(self.denied.keys()).copied().collect()
    }

    /// The pods that the kernel has in these groups are closed before anything else happens.
    pub(super) fn close_first(&mut self, shut: &BTreeSet<GroupId>) {
        if shut.is_empty() {
            return;
        }
        let close = |group| if shut.contains(&group) { CLOSED } else { group };
        for (pod, before) in self.out.pods_before() {
            let now = self.out.changes.closed.get(&pod).copied().unwrap_or(before);
            let groups = PodGroups { ingress: close(now.ingress), egress: close(now.egress) };
            if groups != now {
                self.out.changes.closed.insert(pod, groups);
            }
        }
    }

    /// A namespace's change may give its pods other groups and other classes, and no order of the two is right for what
    /// they say to each other: the old rules might allow what is new about a peer, and the new ones what was. So those
    /// pods are closed between. Changes of several objects need no such thing: done one by one, they could be in any order.
    pub(super) fn close_between(&mut self, namespaces: &BTreeSet<Arc<str>>) {
        if namespaces.is_empty() || self.out.changes.peers.is_empty() {
            return;
        }
        let close = |before: u32, after: u32| {
            if before == after || before == NOT_ISOLATED { before } else { CLOSED }
        };
        for (_, pod) in self.local.iter().filter(|(key, _)| namespaces.contains(&key.namespace)) {
            let Some((before, after)) = self.out.regrouped(pod.number) else { continue };
            let now = self.out.changes.closed.get(&pod.number).copied().unwrap_or(before);
            let groups =
                PodGroups { ingress: close(now.ingress, after.ingress), egress: close(now.egress, after.egress) };
            if groups != before {
                self.out.changes.closed.insert(pod.number, groups);
            }
        }
    }

    /// Closes and opens, now that the addresses of this update have their places.
    pub(super) fn close(&mut self) {
        let homeless = !self.refused.is_empty() || !self.refused_prefixes.is_empty();
        let blocks = self.blocks.refused();
        if !homeless && blocks.is_empty() && self.closed.is_empty() {
            return;
        }
        let blind = |id: &GroupId| homeless || blocks.keys().any(|term| self.terms.users(*term).contains(id));
        let denying = self.groups.iter().filter(|(_, group)| group.denies()).map(|(id, _)| *id);
        let closed: BTreeSet<GroupId> = denying.filter(blind).collect();
        let shut = |pod: &&ObjectKey| self.local[*pod].groups.iter().flatten().any(|group| closed.contains(group));
        let pods: Vec<ObjectKey> = self.local.keys().filter(shut).cloned().collect();
        let problem = || {
            let names: Vec<String> = pods.iter().take(5).map(ToString::to_string).collect();
            let text = format!(
                "a table is full, so that rules which deny or pass would miss peers; new flows of {} pods are refused: {}",
                pods.len(),
                names.join(", ")
            );
            vec![Problem { subject: Subject::Kernel("policy"), reason: "PolicyClosed", text }]
        };
        let problems = if pods.is_empty() { Vec::new() } else { problem() };
        let new = closed.difference(&self.closed).copied().collect();
        self.closed = closed;
        self.report(About::Closed, problems);
        self.publish_all();
        self.close_first(&new);
    }
}
