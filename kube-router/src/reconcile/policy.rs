//! When network policy is read, compiled and carried out: a part of the [`Reconciler`](super::Reconciler), and like it
//! without effects, clock or threads.
//!
//! ```text
//!              kinds complete          observed                     done
//!   Starting ------------------> Observe --------> Apply... ----------------> Wait
//!                                   ^                | failed                   | event, link: compile what it touches,
//!                                   +---- backoff ---+                          |        Apply the orders
//!                                   +------------------ period -----------------+
//! ```
//!
//! Until the first view is complete nothing is written, and what an earlier agent left goes on judging. Orders build on
//! each other, so after one that failed nothing more is done but to read the kernel and begin with the difference;
//! every prefix of a plan is safe. Policy goes before services: it is never kept waiting by a long pass of theirs.

mod answering;
mod bindings;
mod gaps;
mod known_links;
#[cfg(test)]
mod tests;
mod told;

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    net::IpAddr,
};

use ipnet::IpNet;
use kube_router_common::{
    config::Iface,
    policy::{Address, PodGroups, Service, ServiceKey},
};

pub use self::known_links::Attached;
use self::{answering::Answering, bindings::Searched, known_links::KnownLinks};
use super::{MOST_NAMED, backoff::Backoff, name};
use crate::{
    apply::PlaneError,
    cluster::{ClusterState, Dirty},
    compile::{
        NodeView, Problem, Subject,
        interfaces::{Claim, Surroundings, compile_interfaces},
        links::Links,
        policy::{Limits, NumbersInUse, POLICY_KINDS, PROGRAM_KINDS, PolicyCompiler, PolicyConfig, address_of, ip_of},
        service_ports::ServicePorts,
    },
    config::{Fastpath, FirewallConfig, ProgramsConfig, ProxyConfig},
    desired::{
        interfaces::{InterfaceChanges, Interfaces},
        policy::{PolicyChanges, PolicyTables},
    },
    objects::{Kind, ObjectKey},
    plan::{
        adopt::{Numbered, Renaming, adopt},
        enforcement::{ObservedPolicy, PolicyOrder, Settings, plan_enforcement},
        policy::{PolicyOp, difference, plan_policy},
    },
};

/// Orders carried out before the loop looks around again: some milliseconds.
const CHUNK: usize = 4_096;
/// Between two looks whether objects have been mended.
const HELD_MS: u64 = 1_000;

/// The next thing to do for policy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PolicyStep {
    /// Read the kernel; answer with [`Enforcer::handle_observed`].
    Observe,
    /// Carry out; answer with [`Enforcer::handle_applied`].
    Apply(Vec<PolicyOrder>),
    /// The first pass is through.
    Settled,
    Wait {
        until_ms: Option<u64>,
    },
}

/// Whether packets of an interface are judged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Guarded {
    /// By the pod's rules.
    Published,
    /// Nothing passes.
    Denied,
    No,
}

pub struct Enforcer {
    config: FirewallConfig,
    fastpath: Fastpath,
    limits: Limits,
    compiler: PolicyCompiler,
    renaming: Renaming,
    services: ServicePorts,
    pub(super) answering: Answering,
    /// As our orders leave it.
    ports_with_row: BTreeSet<ServiceKey>,
    dirty: Dirty,
    pub(super) links: KnownLinks,
    host: BTreeSet<(Box<str>, IpAddr)>,
    /// As the Node object has them.
    node: BTreeSet<IpAddr>,
    host_changed: bool,
    pod_cidrs: BTreeSet<IpNet>,
    /// Interfaces as the kernel has them. `None`: it must be read.
    in_force: Option<Interfaces>,
    running: VecDeque<PolicyOrder>,
    /// Update of the compiler that is being carried out.
    update: Option<u64>,
    backoff: Backoff,
    full_at_ms: u64,
    settled: bool,
    told_settled: bool,
    problems: Option<Vec<Problem>>,
    failure: Option<Problem>,
    bindings: Vec<Problem>,
    searched: Searched,
    /// Pods, by the kernel's numbers, that policies were about before this update.
    isolated: BTreeSet<u32>,
    finished: usize,
    flow_records: bool,
    /// There were policies since the start. From then on every pod's flows are known, so that a policy that isolates it ends
    /// what it forbids.
    had_policies: bool,
    /// As last ordered or observed.
    settings: Settings,
    /// Tables changed, or were about to, and live flows were not told yet: orders between may have failed.
    owes_judging: bool,
}

impl Enforcer {
    pub fn new(config: FirewallConfig, programs: &ProgramsConfig, node: &str) -> Self {
        let (limits, enforced) = (Limits::of(&programs.sizes), config.enabled);
        Enforcer {
            compiler: PolicyCompiler::new(PolicyConfig { node: node.into(), limits, enforced }),
            services: ServicePorts::new(programs.sizes.services as usize),
            answering: Answering::default(),
            ports_with_row: BTreeSet::new(),
            config,
            fastpath: programs.fastpath,
            limits,
            renaming: Renaming::default(),
            dirty: Dirty::default(),
            links: KnownLinks::default(),
            host: BTreeSet::new(),
            node: BTreeSet::new(),
            host_changed: false,
            pod_cidrs: BTreeSet::new(),
            in_force: None,
            running: VecDeque::new(),
            update: None,
            backoff: Backoff::default(),
            full_at_ms: 0,
            settled: false,
            told_settled: false,
            problems: None,
            failure: None,
            bindings: Vec::new(),
            searched: Searched::default(),
            isolated: BTreeSet::new(),
            finished: 0,
            flow_records: false,
            had_policies: false,
            settings: Settings::default(),
            owes_judging: false,
        }
    }

    /// Is policy enforced? Otherwise the programs are there for services alone, and judge nothing.
    pub fn enforces(&self) -> bool {
        self.config.enabled
    }

    fn kinds(&self) -> &'static [Kind] {
        if self.enforces() { &POLICY_KINDS } else { &PROGRAM_KINDS }
    }

    /// Our own proxy balances services.
    pub fn balanced_by(mut self, proxy: &ProxyConfig) -> Self {
        self.services.balanced_by(proxy);
        self.answering.ours = true;
        self
    }

    /// What an event touched.
    pub fn note(&mut self, touched: &Dirty) {
        self.dirty.services.extend(touched.services.iter().cloned());
        self.dirty.pods.extend(touched.pods.iter().cloned());
        self.dirty.pod_ips.extend(&touched.pod_ips);
        self.dirty.namespaces.extend(touched.namespaces.iter().cloned());
        self.dirty.policies.extend(touched.policies.iter().cloned());
        self.dirty.cluster_policies.extend(touched.cluster_policies.iter().cloned());
    }

    pub fn handle_links(&mut self, links: Links, now_ms: u64) {
        self.links.replace(links, self.settled.then_some(now_ms));
    }

    /// What is in force at an interface: its pod's rules, with these addresses.
    pub fn guard(&self, index: u32, addresses: &BTreeSet<IpAddr>) -> Guarded {
        let Some(in_force) = self.in_force.as_ref().filter(|state| state.attached.contains_key(&index)) else {
            return Guarded::No;
        };
        let row = in_force.ifaces.get(&index).copied().unwrap_or_default();
        let here = |ip: &IpAddr| in_force.endpoints.get(&address_of(*ip)).is_some_and(|to| to.ifindex == index);
        match row.flags {
            flags if flags & Iface::PUBLISHED != 0 && addresses.iter().all(here) => Guarded::Published,
            flags if flags & (Iface::PUBLISHED | Iface::DEFAULT_DENY) != 0 => Guarded::Denied,
            _ => Guarded::No,
        }
    }

    /// Addresses and pod CIDRs of the node.
    pub fn handle_node(&mut self, node: &NodeView) {
        if self.services.set_node(node) {
            self.host_changed = true;
            self.links.changed = true;
        }
        let own = BTreeSet::from_iter([node.ipv4.map(IpAddr::V4), node.ipv6.map(IpAddr::V6)].into_iter().flatten());
        if self.node != own || self.host != node.host_addresses || self.pod_cidrs != node.pod_cidrs {
            let before = self.node_addresses();
            self.host = node.host_addresses.clone();
            self.host_changed |= before != self.node_addresses();
            self.node = own;
            self.pod_cidrs = node.pod_cidrs.clone();
            self.links.changed = true;
        }
    }

    /// The next step. Call again after each answer until it says `Wait`.
    pub fn poll(&mut self, cluster: &ClusterState, now_ms: u64) -> PolicyStep {
        if !self.running.is_empty() {
            let count = self.running.len().min(CHUNK);
            return PolicyStep::Apply(self.running.range(..count).cloned().collect());
        }
        if let Some(update) = self.update.take() {
            self.compiler.confirm(update);
            self.finished += 1;
            self.backoff.succeed();
            self.failure = None;
            self.report();
            self.settled = true;
        }
        if !self.kinds().iter().all(|kind| cluster.is_complete(*kind)) {
            return PolicyStep::Wait { until_ms: None };
        }
        if self.settled && !self.told_settled {
            self.told_settled = true;
            return PolicyStep::Settled;
        }
        if now_ms >= self.full_at_ms {
            return PolicyStep::Observe;
        }
        if self.in_force.is_some() && self.is_due() {
            self.compile(cluster);
            return self.poll(cluster, now_ms);
        }
        if self.in_force.is_some() && self.answering.is_stirred() {
            self.follow_servers();
            return self.poll(cluster, now_ms);
        }
        PolicyStep::Wait { until_ms: Some(self.full_at_ms) }
    }

    fn is_due(&self) -> bool {
        !self.dirty.is_empty() || self.links.changed || self.compiler.has_leftovers()
    }

    /// Takes in what changed; the result is to be carried out before the next call.
    fn take_in(&mut self, cluster: &ClusterState) -> (PolicyChanges, BTreeMap<ServiceKey, Option<Service>>) {
        let mut dirty = std::mem::take(&mut self.dirty);
        let node = self.node_addresses();
        let host_changed = std::mem::take(&mut self.host_changed);
        if host_changed {
            dirty.services.extend(cluster.services().map(|service| service.key.clone()));
        }
        let mut touched = BTreeSet::new();
        for key in std::mem::take(&mut dirty.services) {
            touched.extend(self.services.update(cluster, &key, &node));
        }
        let services = self.service_rows(&touched);
        let moved = self.services.take_moved() || host_changed;
        let changes = match moved {
            true => self.compiler.update(cluster, &dirty, &node, self.services.addresses()),
            false => self.compiler.update_objects(cluster, &dirty),
        };
        (changes, services)
    }

    /// What the rows of these ports, and of those whose virtual servers came or went, should be by now.
    fn service_rows(&mut self, touched: &BTreeSet<ServiceKey>) -> BTreeMap<ServiceKey, Option<Service>> {
        let stirred = self.answering.take();
        let row = |port: &ServiceKey| self.services.row(port).filter(|_| self.answering.at(port));
        // Where nobody answered and nobody does there is no row to take away.
        let touched = touched.iter().filter(|port| self.answering.at(port) || stirred.contains(port));
        let moved = stirred.iter().filter(|port| self.services.row(port).is_some());
        let rows: BTreeMap<ServiceKey, Option<Service>> = touched.chain(moved).map(|port| (*port, row(port))).collect();
        for (port, row) in &rows {
            match row {
                // Until now flows were judged as ones to that address, and nobody would look at who answers them from now on.
                Some(_) => self.owes_judging |= self.ports_with_row.insert(*port),
                None => drop(self.ports_with_row.remove(port)),
            }
        }
        rows
    }

    /// Rows follow virtual servers that came or went; nothing else has changed.
    fn follow_servers(&mut self) {
        let services = self.service_rows(&BTreeSet::new());
        self.owe_judging_at(&services);
        let again = self.owes_judging.then_some(PolicyOp::BumpGeneration);
        let orders = plan_enforcement(again.into_iter().collect(), &services, &InterfaceChanges::default());
        self.running = orders.into();
    }

    fn node_addresses(&self) -> BTreeSet<IpAddr> {
        // A link-local address is nobody's who could be told apart from a pod's.
        let is_global = |ip: &IpAddr| match ip {
            IpAddr::V4(_) => true,
            IpAddr::V6(ip) => !ip.is_unicast_link_local(),
        };
        self.host.iter().map(|(_, address)| *address).filter(is_global).collect()
    }

    fn compile(&mut self, cluster: &ClusterState) {
        let (changes, services) = self.take_in(cluster);
        self.update = Some(changes.update);
        let mut changes = self.renaming.changes(changes);
        self.owe_judging(&mut changes, &services);
        self.links.changed = false;
        let Some(in_force) = &self.in_force else { return };
        let (wanted, claims) = self.interfaces(cluster, in_force);
        self.isolated = self.isolated_now();
        let there: BTreeSet<u32> = self.links.now.devices.keys().copied().collect();
        let orders = plan_enforcement(plan_policy(&changes), &services, &in_force.changes_to(&wanted, &there));
        self.running = self.order_settings().into_iter().chain(orders).collect();
        self.report_bindings(&claims, &wanted);
    }

    /// Are live flows to be judged again? Also those to a service behind which a process of this node came up, or that
    /// answers no more at an address of the node: no hook would see these packets again.
    fn owe_judging(&mut self, changes: &mut PolicyChanges, services: &BTreeMap<ServiceKey, Option<Service>>) {
        self.owes_judging |= changes.judge_again;
        self.owe_judging_at(services);
        changes.judge_again = self.owes_judging;
    }

    fn owe_judging_at(&mut self, services: &BTreeMap<ServiceKey, Option<Service>>) {
        let node = self.node_addresses();
        let is_node = |key: &ServiceKey| key.address == Address::default() || node.contains(&ip_of(key.address));
        let bares = |(key, row): (&ServiceKey, &Option<Service>)| match row {
            Some(row) => row.host_port != 0,
            None => is_node(key),
        };
        self.owes_judging |= services.iter().any(bares);
    }

    fn interfaces(&self, cluster: &ClusterState, in_force: &Interfaces) -> (Interfaces, Vec<Claim>) {
        let tables = self.compiler.state();
        let endpoints: BTreeMap<Address, u32> =
            tables.endpoints.iter().map(|(address, pod)| (*address, self.renaming.pod(*pod))).collect();
        let pods = tables.pods.keys().map(|pod| self.renaming.pod(*pod)).collect();
        let number = |pod: &ObjectKey| self.compiler.pod_number(pod).map(|number| self.renaming.pod(number));
        // An older pod of that name has another uid, and if that is not told, other addresses in most cases.
        let number = |attached: &Attached| {
            cluster.pod(&attached.pod).filter(|pod| pod.may_be(attached.uid.as_deref()))?;
            number(&attached.pod)
        };
        let known = |attached: &Attached| {
            let number = number(attached)?;
            attached.addresses.iter().all(|ip| endpoints.get(&address_of(*ip)) == Some(&number)).then_some(number)
        };
        let declared = self.links.attachments.iter().filter_map(|(index, of)| Some((*index, known(of)?))).collect();
        let announced = self.links.attachments.iter().map(|(index, of)| (*index, number(of))).collect();
        let guarded = self.isolated_now();
        let isolated = self.isolated.union(&guarded).copied().collect();
        let surroundings = Surroundings {
            links: &self.links.now,
            endpoints: &endpoints,
            pods: &pods,
            homeless: self.compiler.homeless(),
            guarded: &guarded,
            isolated: &isolated,
            node: &self.node,
            shown: &self.links.shown,
            declared: &declared,
            announced: &announced,
            released: &self.links.released,
            host: &self.host,
            pod_cidrs: &self.pod_cidrs,
            enforced: self.enforces(),
            default_deny: self.config.default_deny,
            past_all: self.fastpath == Fastpath::On,
        };
        compile_interfaces(&surroundings, in_force)
    }

    fn isolated_now(&self) -> BTreeSet<u32> {
        isolated(self.compiler.state()).map(|pod| self.renaming.pod(pod)).collect()
    }

    /// Answer to [`PolicyStep::Observe`].
    pub fn handle_observed(&mut self, cluster: &ClusterState, result: Result<ObservedPolicy, PlaneError>, now_ms: u64) {
        let observed = match result {
            Ok(observed) => observed,
            Err(error) => return self.failed(&error, now_ms),
        };
        if let Some(problem) = self.held(cluster, &observed) {
            self.full_at_ms = now_ms.saturating_add(HELD_MS);
            self.failure = Some(problem);
            return self.report();
        }
        self.full_at_ms = now_ms.saturating_add(u64::try_from(self.config.sync_period.as_millis()).unwrap_or(u64::MAX));
        self.handle_links(observed.links, now_ms);
        self.links.changed = false;
        let first = self.compiler.state().pods.is_empty() && self.update.is_none() && !self.settled;
        if first {
            self.compiler.seed(NumbersInUse::of(&observed.tables));
            self.dirty.services.extend(cluster.services().map(|service| service.key.clone()));
        }
        self.ports_with_row = observed.services.keys().copied().collect();
        let update = self.take_in(cluster).0.update;
        if first {
            self.renaming = adopt(&observed.tables, self.compiler.state());
        }
        self.update = Some(update);
        let wanted = self.renaming.tables(self.compiler.state());
        let mut changes = difference(&observed.tables, &wanted, self.limits.rows);
        self.answering.assume(observed.services.keys());
        let mut wanted = self.services.all();
        wanted.retain(|port, _| self.answering.at(port));
        self.owes_judging |= wanted.keys().any(|port| !observed.services.contains_key(port));
        self.ports_with_row = wanted.keys().copied().collect();
        let services = differing(&observed.services, wanted);
        self.owe_judging(&mut changes, &services);
        self.isolated.extend(isolated(&observed.tables));
        let (wanted, claims) = self.interfaces(cluster, &observed.interfaces);
        self.isolated = self.isolated_now();
        let there: BTreeSet<u32> = self.links.now.devices.keys().copied().collect();
        let mut orders =
            plan_enforcement(plan_policy(&changes), &services, &observed.interfaces.changes_to(&wanted, &there));
        self.settings = observed.settings;
        if let Some(order) = self.order_settings() {
            orders.insert(0, order);
        }
        self.running = orders.into();
        self.in_force = Some(observed.interfaces);
        self.searched.look(&wanted);
        self.report_bindings(&claims, &wanted);
    }

    /// Nobody knows what a policy says that this process could never read, or whom one is about, but the last agent did: what
    /// is in force stays.
    fn held(&self, cluster: &ClusterState, observed: &ObservedPolicy) -> Option<Problem> {
        let matters = |kind: &Kind| {
            matches!(kind, Kind::NetworkPolicy | Kind::ClusterNetworkPolicy | Kind::Namespace | Kind::Pod)
        };
        let names: Vec<String> = cluster
            .obscure()
            .iter()
            .filter(|(kind, _)| matters(kind))
            .take(MOST_NAMED)
            .map(|(kind, key)| name(*kind, key))
            .collect();
        if !self.enforces() || self.settled || names.is_empty() || observed.tables.pods.is_empty() {
            return None;
        }
        Some(Problem {
            subject: Subject::Kernel("network policy"),
            reason: "PolicyHeld",
            text: format!(
                "policies stay as the last agent left them, and new pods are not covered, as these objects cannot be \
                 understood: {}; mend or remove them",
                names.join(", ")
            ),
        })
    }

    /// What the programs are to be told, if that is something new.
    fn order_settings(&mut self) -> Option<PolicyOrder> {
        use kube_router_common::config::Config;
        self.had_policies |= self.compiler.has_policies();
        let flag = |set: bool, flag: u32| if set { flag } else { 0 };
        let settings = Settings {
            flags: flag(self.config.silent, Config::SILENT)
                | flag(self.config.keep_established, Config::KEEP_ESTABLISHED)
                | flag(!self.config.antispoof, Config::NO_ANTISPOOF)
                | flag(self.flow_records, Config::FLOW_EVENTS)
                | flag(self.had_policies || self.config.keep_established, Config::ALL_FLOWS)
                | match self.fastpath {
                    Fastpath::Auto | Fastpath::On => Config::FAST | Config::FAST_FLOWS,
                    // An agent before this one may have begun some.
                    Fastpath::Off => {
                        flag(self.settings.flags & Config::FAST != 0, Config::FAST_FLOWS)
                            | self.settings.flags & Config::FAST_FLOWS
                    }
                },
        };
        let is_new = std::mem::replace(&mut self.settings, settings) != settings;
        is_new.then_some(PolicyOrder::SetSettings(settings))
    }

    /// Answer to [`PolicyStep::Apply`]: so many of the orders were carried out.
    pub fn handle_applied(&mut self, done: usize, result: Result<(), PlaneError>, now_ms: u64) {
        for order in self.running.drain(..done.min(self.running.len())) {
            self.owes_judging &= order != PolicyOrder::Table(PolicyOp::BumpGeneration);
            if let Some(in_force) = &mut self.in_force {
                in_force.carry_out(&order);
            }
        }
        let rows = self.in_force.as_ref().map(|in_force| &in_force.ifaces);
        let flags = |index| rows.and_then(|rows| rows.get(&index)).map_or(0, |row| row.flags);
        self.links.gaps.closed(|index| flags(index) & (Iface::PUBLISHED | Iface::DEFAULT_DENY) != 0, now_ms);
        if let Err(error) = result {
            self.failed(&error, now_ms);
        }
    }

    /// What is compiled, under the kernel's numbers.
    pub fn compiled(&self) -> Numbered<'_> {
        Numbered::new(&self.compiler, &self.renaming)
    }

    /// Are new flows to be recorded?
    pub fn record_flows(&mut self, wanted: bool) {
        if self.flow_records != wanted {
            self.flow_records = wanted;
            if self.in_force.is_some() {
                let order = self.order_settings();
                self.running.extend(order);
            }
        }
    }
}

fn differing(
    from: &BTreeMap<ServiceKey, Service>,
    to: BTreeMap<ServiceKey, Service>,
) -> BTreeMap<ServiceKey, Option<Service>> {
    let gone: Vec<ServiceKey> = from.keys().filter(|key| !to.contains_key(key)).copied().collect();
    let set = to.into_iter().filter(|(key, row)| from.get(key) != Some(row)).map(|(key, row)| (key, Some(row)));
    set.chain(gone.into_iter().map(|key| (key, None))).collect()
}

/// Pods that policies are about.
fn isolated(tables: &PolicyTables) -> impl Iterator<Item = u32> + '_ {
    tables.pods.iter().filter(|(_, groups)| **groups != PodGroups::default()).map(|(pod, _)| *pod)
}
