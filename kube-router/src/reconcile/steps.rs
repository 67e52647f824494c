//! The answers to orders: what the kernel holds now, what was refused, what follows from it.

use std::{collections::BTreeSet, net::IpAddr};

use kube_router_common::balance::Vip;

use super::{
    Foreign, Pass, Reconciler,
    balance::{Sweep, Sweeping},
    policy::{Attached, Enforcer},
    problems::{Problems, Reporter},
};
use crate::{
    apply::{OpFailure, PlaneError},
    cluster::{Announced, ClusterState, Dirty},
    compile::{
        NodeView, Problem, Subject,
        balance::Path,
        links::{Links, PodLink},
    },
    desired::{Desired, SetElement, VirtualKey},
    objects::{Kind, ObjectKey, Protocol},
    plan::{
        Backend, FirewallOp, IpvsOp, NetOp, Observed, Stage, all_keys, balance::ObservedBalance,
        enforcement::ObservedPolicy, plan_changes, plan_foundation,
    },
};

/// Virtual servers and addresses compared before the orders they need are carried out: with ten destinations each,
/// some 6,000 orders or half a megabyte.
const KEYS_AT_A_TIME: usize = 1_024;

impl Reconciler {
    /// The next stage of the running plan, without the addresses whose virtual servers could not be made: an address
    /// that nobody answers for would be answered by the host itself.
    pub(super) fn next_stage(&mut self) -> Option<Stage> {
        while let Some(stage) = self.running.pop_front() {
            let stage = match (stage, &self.observed) {
                (Stage::Net(ops), Some(observed)) if self.pass.is_some_and(|pass| pass.refused > 0) => {
                    let answered = |address| has_server(observed, address);
                    Stage::Net(
                        ops.into_iter()
                            .filter(|op| match op {
                                NetOp::AddAddress(address) => answered(*address),
                                NetOp::SetLocalRoute { vip, .. } => answered(*vip),
                                _ => true,
                            })
                            .collect(),
                    )
                }
                (stage, _) => stage,
            };
            if !stage.is_empty() {
                return Some(stage);
            }
        }
        None
    }

    /// Answer to [`Command::Observe`].
    pub fn handle_observed(&mut self, result: Result<Observed, PlaneError>, now_ms: u64) {
        self.looked = true;
        let observed = match result {
            Ok(observed) => observed,
            Err(error) => return self.plane_failed(&error, now_ms),
        };
        let observed = self.remembering(observed);
        self.handle_host_addresses(observed.net.host_addresses.clone());
        if let Some(enforcer) = &mut self.enforcer {
            enforcer.answering.see(observed.ipvs.servers.keys());
        }
        self.compile();
        self.full_at_ms = now_ms.saturating_add(self.period_ms());
        self.resume_drains(&observed, now_ms);
        self.pending = Default::default();
        self.spare(&observed);
        let plan = plan_foundation(&self.desired, &observed, self.guard());
        self.foreign = foreign(&plan.stages, &observed);
        self.problems.report(Reporter::Kernel, Vec::new());
        self.uncompared = all_keys(&self.desired, &observed);
        self.observed = Some(observed);
        self.begin(plan, true);
        if let Some(balancer) = &mut self.balancer {
            balancer.begin_pass(now_ms);
        }
    }

    /// With what the last view knew and a dump does not tell.
    fn remembering(&self, mut observed: Observed) -> Observed {
        for (key, list) in &mut observed.ipvs.lists {
            if let Some(before) = self.observed.as_ref().and_then(|observed| observed.ipvs.lists.get(key)) {
                list.remember(before);
            }
        }
        observed
    }

    /// The next part of a full pass.
    pub(super) fn compare_more(&mut self) {
        let part = self.uncompared.take_addresses(KEYS_AT_A_TIME);
        let Some(observed) = &self.observed else { return };
        let plan = plan_changes(&part, &self.desired, observed, self.guard());
        let found = foreign(&plan.stages, observed);
        self.foreign.servers.extend(found.servers);
        self.foreign.marks.extend(found.marks);
        if let Some(pass) = &mut self.pass {
            pass.orders += plan.len();
        }
        self.running.extend(plan.stages);
    }

    /// Destinations that an earlier run, or an earlier order, left at weight 0.
    fn resume_drains(&mut self, observed: &Observed, now_ms: u64) {
        if self.config.graceful_period.is_none() {
            return;
        }
        let there = |key: &(VirtualKey, std::net::SocketAddr)| {
            observed.ipvs.servers.get(&key.0).is_some_and(|server| server.destinations.contains_key(&key.1))
        };
        self.drains.retain(there);
        for (key, server) in &observed.ipvs.servers {
            let Some((_, frontend)) = self.desired.table.server(key) else { continue };
            for (destination, weight) in &server.destinations {
                if *weight == 0 && !frontend.server.destinations.contains_key(destination) {
                    let period = self.drain_period_ms(destination);
                    self.drains.begin((*key, *destination), now_ms, period);
                }
            }
        }
    }

    /// Answer to [`Command::Apply`].
    pub fn handle_applied(&mut self, stage: &Stage, result: Result<Vec<OpFailure>, PlaneError>, now_ms: u64) {
        let failures = match result {
            Ok(failures) => failures,
            Err(error) => return self.plane_failed(&error, now_ms),
        };
        let Some(mut observed) = self.observed.take() else { return };
        let refused: BTreeSet<usize> = failures.iter().map(|failure| failure.index).collect();
        for order in orders(stage).enumerate().filter(|(index, _)| !refused.contains(index)).map(|(_, order)| order) {
            // The model may lack what the kernel had: the next look mends that.
            let _ = match order {
                Order::Ipvs(op) => {
                    self.note_drain(op, now_ms);
                    self.tell_enforcer(op);
                    observed.ipvs.carry_out(op)
                }
                Order::Net(op) => observed.net.carry_out(op),
                Order::Firewall(op) => observed.firewall.carry_out(op),
            };
        }
        if let Some(balancer) = &mut self.balancer {
            balancer.follow(stage);
        }
        if let Some(pass) = &mut self.pass {
            pass.refused += failures.len();
        }
        let mut problems = Vec::new();
        for failure in &failures {
            let Some(order) = orders(stage).nth(failure.index) else { continue };
            match order {
                // Its server's refusal says why.
                Order::Ipvs(IpvsOp::AddDestination { key, .. }) if !observed.ipvs.servers.contains_key(key) => continue,
                // One that is there already answers: only our view lacked it, and the next look mends that.
                Order::Ipvs(op @ IpvsOp::AddServer { .. }) if failure.refusal.errno == libc::EEXIST => {
                    self.tell_enforcer(op);
                }
                Order::Ipvs(IpvsOp::AddServer { key, .. }) => self.shut(key),
                _ => {}
            }
            problems.push(describe(&self.desired, &self.node, order, failure));
        }
        problems.iter().for_each(|problem| self.refusals.note(problem.clone()));
        self.problems.extend(Reporter::Kernel, problems);
        self.observed = Some(observed);
    }

    /// A virtual server that could not be made leaves the set of open ports again.
    fn shut(&mut self, key: &VirtualKey) {
        let element = SetElement::ServicePort(*key);
        self.running.push_back(Stage::Firewall(vec![
            FirewallOp::DeleteElement(Backend::Nft, element),
            FirewallOp::DeleteElement(Backend::Ipset, element),
        ]));
    }

    /// Policy's rows follow virtual servers.
    fn tell_enforcer(&mut self, op: &IpvsOp) {
        match (op, &mut self.enforcer) {
            (IpvsOp::AddServer { key, .. }, Some(enforcer)) => enforcer.answering.came(key),
            (IpvsOp::DeleteServer { key }, Some(enforcer)) => enforcer.answering.went(key),
            _ => {}
        }
    }

    fn note_drain(&mut self, op: &IpvsOp, now_ms: u64) {
        match op {
            IpvsOp::EditDestination { key, destination, weight: 0 } => {
                let period = self.drain_period_ms(destination);
                self.drains.begin((*key, *destination), now_ms, period);
            }
            IpvsOp::EditDestination { key, destination, .. }
            | IpvsOp::AddDestination { key, destination, .. }
            | IpvsOp::DeleteDestination { key, destination } => self.drains.end(&(*key, *destination)),
            IpvsOp::DeleteServer { key } => self.drains.end_server(key),
            _ => {}
        }
    }

    /// What the kernel holds is unknown now: forget it, and look again after a while.
    fn plane_failed(&mut self, error: &PlaneError, now_ms: u64) {
        if let Some(balancer) = &mut self.balancer {
            balancer.forget_closing();
        }
        self.running.clear();
        self.uncompared = Default::default();
        self.pass = None;
        self.observed = None;
        self.full_at_ms = now_ms.saturating_add(self.backoff.fail());
        let (subject, reason) = match error {
            PlaneError::Unavailable { what, .. } => (*what, "KernelFeatureMissing"),
            PlaneError::Netlink { what, .. } => (*what, "KernelRefused"),
            PlaneError::Io { .. } => ("kernel settings", "KernelRefused"),
            PlaneError::Bpf(_) => ("network policy", "KernelRefused"),
        };
        let text = format!("{error}; trying again");
        self.problems.report(Reporter::Kernel, vec![Problem { subject: Subject::Kernel(subject), reason, text }]);
    }

    /// Answer to [`Command::ObservePolicy`](super::Command::ObservePolicy).
    pub fn handle_policy_observed(&mut self, result: Result<ObservedPolicy, PlaneError>, now_ms: u64) {
        if let Ok(observed) = &result {
            self.recognise(&observed.links);
        }
        if let Some(enforcer) = &mut self.enforcer {
            enforcer.handle_observed(&self.cluster, result, now_ms);
        }
    }

    /// Answer to [`Command::ApplyPolicy`](super::Command::ApplyPolicy).
    pub fn handle_policy_applied(&mut self, done: usize, result: Result<(), PlaneError>, now_ms: u64) {
        if let Some(enforcer) = &mut self.enforcer {
            enforcer.handle_applied(done, result, now_ms);
        }
    }

    /// Answer to [`Command::ObserveBalance`](super::Command::ObserveBalance).
    pub fn handle_balance_observed(&mut self, result: Result<ObservedBalance, PlaneError>, now_ms: u64) {
        if let Some(balancer) = &mut self.balancer {
            balancer.handle_observed(result, now_ms);
        }
    }

    /// Answer to [`Command::ApplyBalance`](super::Command::ApplyBalance).
    pub fn handle_balance_applied(&mut self, done: usize, result: Result<(), PlaneError>, now_ms: u64) {
        if let Some(balancer) = &mut self.balancer {
            balancer.handle_applied(done, result, now_ms);
        }
    }

    /// All flows were passed over.
    pub fn handle_swept(&mut self, sweep: Sweep) {
        if let Some(balancer) = &mut self.balancer {
            balancer.handle_swept(sweep);
        }
    }

    /// How flows are to be passed over.
    pub fn sweeping(&self) -> Sweeping {
        self.balancer.as_ref().map_or_else(Sweeping::default, |balancer| balancer.sweeping(self.draining() > 0))
    }

    /// Who has a virtual server's new flows, with its row; `None`: without the fast path's programs nobody asks.
    pub fn path(&self, key: &VirtualKey) -> Option<(Path, Option<Vip>)> {
        self.balancer.as_ref().map(|balancer| (balancer.path(key), balancer.row(key)))
    }

    /// Links came, went or changed their addresses.
    pub fn handle_links(&mut self, links: Links, now_ms: u64) {
        self.recognise(&links);
        if let Some(enforcer) = &mut self.enforcer {
            enforcer.handle_links(links, now_ms);
        }
    }

    /// Takes in what a network plugin did without our knowing: links that are gone, and those that it wrote a pod's name at.
    fn recognise(&mut self, links: &Links) {
        let Some(enforcer) = &mut self.enforcer else { return };
        let mut touched = Dirty::default();
        for attached in enforcer.links.take_vanished(links) {
            retract(&mut self.cluster, &attached, &mut touched);
        }
        for (index, attached) in enforcer.links.strange(links) {
            announce(&mut self.cluster, enforcer, &attached, &mut touched);
            enforcer.links.attach(index, attached);
        }
        enforcer.note(&touched);
    }

    /// A network plugin attached a pod to this link.
    pub fn handle_attached(&mut self, link: PodLink, attached: Attached) {
        let Some(enforcer) = &mut self.enforcer else { return };
        let mut touched = Dirty::default();
        announce(&mut self.cluster, enforcer, &attached, &mut touched);
        enforcer.note(&touched);
        enforcer.links.put(link.clone());
        enforcer.links.attach(link.index, attached);
    }

    /// A network plugin takes off what `goes` says.
    pub fn handle_detached(&mut self, goes: impl Fn(&Attached) -> bool) {
        let Some(enforcer) = &mut self.enforcer else { return };
        let mut touched = Dirty::default();
        for attached in enforcer.links.detach(goes) {
            retract(&mut self.cluster, &attached, &mut touched);
        }
        enforcer.note(&touched);
    }

    pub(super) fn report_policy(&mut self) {
        if let Some(problems) = self.enforcer.as_mut().and_then(Enforcer::take_problems) {
            self.problems.report(Reporter::Policy, problems);
        }
    }

    /// Somebody wants to see new flows, or nobody does any more.
    pub fn record_flows(&mut self, wanted: bool) {
        if let Some(enforcer) = &mut self.enforcer {
            enforcer.record_flows(wanted);
        }
    }

    pub fn has_proxy(&self) -> bool {
        self.config.enabled
    }

    /// Updates of policy that were carried out since the last call.
    pub fn take_policy_updates(&mut self) -> usize {
        self.enforcer.as_mut().map_or(0, Enforcer::take_finished)
    }

    /// Milliseconds that pods were open which no network plugin announced.
    pub fn take_policy_gaps(&mut self) -> Vec<u64> {
        self.enforcer.as_mut().map_or_else(Vec::new, Enforcer::take_gaps)
    }

    pub fn enforcer(&self) -> Option<&Enforcer> {
        self.enforcer.as_ref()
    }

    fn period_ms(&self) -> u64 {
        u64::try_from(self.config.sync_period.as_millis()).unwrap_or(u64::MAX).max(1)
    }

    pub(super) fn finish_pass(&mut self, now_ms: u64) {
        let Some(pass) = self.pass.take() else { return };
        let period_ms = self.period_ms();
        let retry = if pass.full {
            self.backoff.succeed();
            self.synced_once = true;
            // The period counts from the end: a pass that takes longer would leave no time for events and signals.
            self.full_at_ms = self.full_at_ms.max(now_ms.saturating_add(period_ms));
            self.refusals.after_full(period_ms)
        } else {
            self.refusals.after_change(period_ms)
        };
        if let Some(delay) = retry {
            self.full_at_ms = self.full_at_ms.min(now_ms.saturating_add(delay));
        }
        self.finished.push(pass);
    }

    /// Passes that ended since the last call.
    pub fn take_passes(&mut self) -> Vec<Pass> {
        std::mem::take(&mut self.finished)
    }

    /// What the last full pass is about to remove although it was never ours.
    pub fn take_foreign(&mut self) -> Foreign {
        std::mem::take(&mut self.foreign)
    }

    /// A full pass came to its end: every wanted order was carried out, or is a problem that stands.
    pub fn is_ready(&self) -> bool {
        let enforcer = self.enforcer.as_ref().filter(|enforcer| enforcer.enforces());
        (self.synced_once || !self.config.enabled) && enforcer.is_none_or(Enforcer::is_ready)
    }

    /// The health-check node ports, if they changed since the last call.
    pub fn take_health_checks(&mut self) -> Option<std::collections::BTreeMap<u16, usize>> {
        std::mem::take(&mut self.health_checks_changed).then(|| self.desired.table.health_checks())
    }

    pub fn problems(&mut self) -> &mut Problems {
        &mut self.problems
    }

    pub fn desired(&self) -> &Desired {
        &self.desired
    }

    pub fn node(&self) -> &NodeView {
        &self.node
    }

    pub fn cluster(&self) -> &crate::cluster::ClusterState {
        &self.cluster
    }

    pub fn draining(&self) -> usize {
        self.drains.count()
    }

    /// The kernel as the reconciler believes it to be.
    pub fn observed(&self) -> Option<&Observed> {
        self.observed.as_ref()
    }
}

#[derive(Clone, Copy)]
enum Order<'a> {
    Ipvs(&'a IpvsOp),
    Net(&'a NetOp),
    Firewall(&'a FirewallOp),
}

/// The orders of a stage; flows to flush are never refused and change nothing that we look at.
fn orders(stage: &Stage) -> Box<dyn Iterator<Item = Order<'_>> + '_> {
    match stage {
        Stage::Ipvs(ops) => Box::new(ops.iter().map(Order::Ipvs)),
        Stage::Net(ops) => Box::new(ops.iter().map(Order::Net)),
        Stage::Firewall(ops) => Box::new(ops.iter().map(Order::Firewall)),
        Stage::Conntrack(_) => Box::new(std::iter::empty()),
    }
}

/// A refused order becomes a problem of the object that wanted it.
fn describe(desired: &Desired, node: &NodeView, order: Order<'_>, failure: &OpFailure) -> Problem {
    let owner = |key: &VirtualKey| desired.table.server(key).map(|(owner, _)| owner.clone());
    let (service, what, plane): (Option<ObjectKey>, String, _) = match order {
        Order::Ipvs(op) => match op {
            IpvsOp::AddServer { key, .. } => (owner(key), format!("adding virtual server {key}"), "IPVS"),
            IpvsOp::EditServer { key, .. } => (owner(key), format!("changing virtual server {key}"), "IPVS"),
            IpvsOp::DeleteServer { key } => (owner(key), format!("removing virtual server {key}"), "IPVS"),
            IpvsOp::DeleteMarkServer { mark, .. } => (None, format!("removing virtual server of mark {mark}"), "IPVS"),
            IpvsOp::AddDestination { key, destination, .. } => {
                (owner(key), format!("adding {destination} to {key}"), "IPVS")
            }
            IpvsOp::EditDestination { key, destination, .. } => {
                (owner(key), format!("changing {destination} of {key}"), "IPVS")
            }
            IpvsOp::DeleteDestination { key, destination } => {
                (owner(key), format!("removing {destination} from {key}"), "IPVS")
            }
        },
        Order::Net(op) => (None, format!("{op:?}"), "kube-dummy-if"),
        Order::Firewall(FirewallOp::AddElement(backend, element)) => {
            (None, format!("adding {element} to the {backend:?} set {}", element.set().nft_name()), "firewall")
        }
        Order::Firewall(FirewallOp::DeleteElement(backend, element)) => {
            (None, format!("removing {element} from the {backend:?} set {}", element.set().nft_name()), "firewall")
        }
        Order::Firewall(op) => (None, format!("{op:?}"), "firewall"),
    };
    let subject = match service {
        Some(key) => Subject::Object(Kind::Service, key),
        None => Subject::Kernel(plane),
    };
    let text = format!("{what} on node {}: {}; trying again", node.name, failure.refusal);
    Problem { subject, reason: "KernelRefused", text }
}

fn has_server(observed: &Observed, address: IpAddr) -> bool {
    let first = VirtualKey { address, protocol: Protocol::Tcp, port: 0 };
    observed.ipvs.servers.range(first..).next().is_some_and(|(key, _)| key.address == address)
}

/// Virtual servers about to be removed that no set of ours mentions.
fn foreign(stages: &[Stage], observed: &Observed) -> Foreign {
    let mut found = Foreign::default();
    let ops = stages.iter().filter_map(|stage| match stage {
        Stage::Ipvs(ops) => Some(ops),
        _ => None,
    });
    for op in ops.flatten() {
        match op {
            IpvsOp::DeleteServer { key } => {
                let element = SetElement::ServicePort(*key);
                if !observed.firewall.nft.contains(&element) && !observed.firewall.ipset.contains(&element) {
                    found.servers.push(*key);
                }
            }
            IpvsOp::DeleteMarkServer { mark, .. } => found.marks.push(*mark),
            _ => {}
        }
    }
    found
}

fn addresses(attached: &Attached) -> Vec<IpAddr> {
    attached.addresses.iter().map(|ip| ip.to_canonical()).collect()
}

fn announce(cluster: &mut ClusterState, enforcer: &Enforcer, attached: &Attached, touched: &mut Dirty) {
    // A further network's addresses are not the pod's to the API.
    if enforcer.links.is_first(attached) {
        let announced = Announced { uid: attached.uid.clone(), addresses: addresses(attached) };
        cluster.announce(&attached.pod, announced, touched);
    }
}

fn retract(cluster: &mut ClusterState, attached: &Attached, touched: &mut Dirty) {
    cluster.retract(&attached.pod, &addresses(attached), touched);
}
