//! Decides WHEN: a state machine without effects, clock or threads. The driver feeds it events and results and
//! carries out what [`Reconciler::poll`] returns; time is an argument, in milliseconds of any steady clock.
//!
//! ```text
//!            kinds complete          observed           plan empty or done
//!  Starting ----------------> Observe --------> Apply... -----------------> Wait
//!      |                        ^                 | plane failed             | event: compile what it touches,
//!      | cache-sync-timeout     +---- backoff ----+                          |        Apply the difference
//!      v                        +------ period, or backoff after refusals ---+
//!   GiveUp
//! ```
//!
//! Between two observations the reconciler keeps its own view of the kernel, changed by every order that succeeded
//! (`plan::model`), so that an event needs no reading. Orders that were refused are problems, and bring an early full
//! pass with a fresh observation.

pub mod attachments;
mod backoff;
pub mod balance;
pub mod drain;
pub mod driver;
mod journal;
pub mod policy;
pub mod problems;
mod settings;
mod steps;
#[cfg(test)]
mod tests;

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    net::IpAddr,
    time::Duration,
};

use crate::{
    apply::Connections,
    cluster::{ClusterState, Dirty},
    compile::{NodeView, Problem, Subject, balance::FastPath, compile_node, compile_service, policy::POLICY_KINDS},
    config::{FirewallConfig, ProgramsConfig, ProxyConfig},
    desired::{Changes, Desired, Destination, VirtualKey},
    objects::{Kind, ObjectEvent, ObjectKey},
    plan::{Guard, Observed, Plan, Spared, Stage, balance::BalanceOrder, enforcement::PolicyOrder, plan_changes},
};
use backoff::{Backoff, Refusals};
use balance::{BalanceStep, Balancer, View};
use drain::Drains;
use policy::{Enforcer, PolicyStep};
use problems::{Problems, Reporter};

/// Kinds that the service proxy cannot do without. Pods only refine drain times.
pub const PROXY_KINDS: [Kind; 3] = [Kind::Node, Kind::Service, Kind::EndpointSlice];

/// Obscure objects told by name in one problem.
const MOST_NAMED: usize = 5;

/// What the driver must do next.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Command {
    /// Read the kernel and answer with [`Reconciler::handle_observed`].
    Observe,
    /// Carry out one stage and answer with [`Reconciler::handle_applied`].
    Apply(Stage),
    /// Count connections of these servers and answer with [`Reconciler::handle_connections`] for each.
    CountConnections(BTreeSet<VirtualKey>),
    /// Read tables and interfaces of policy and answer with [`Reconciler::handle_policy_observed`].
    ObservePolicy,
    /// Carry out until one fails and answer with [`Reconciler::handle_policy_applied`].
    ApplyPolicy(Vec<PolicyOrder>),
    /// Read the tables of the fast path and answer with [`Reconciler::handle_balance_observed`].
    ObserveBalance,
    /// Carry out until one fails and answer with [`Reconciler::handle_balance_applied`].
    ApplyBalance(Vec<BalanceOrder>),
    /// Policy is in force for the first time: what only an older agent needed may go.
    PolicySettled,
    /// Nothing to do before this time (or any event).
    Wait { until_ms: Option<u64> },
    /// The first view of the cluster did not come in time; these kinds are missing.
    GiveUp { missing: Vec<Kind> },
}

/// What a full pass found in the kernel that nobody had written down as ours.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Foreign {
    pub servers: Vec<VirtualKey>,
    pub marks: Vec<u32>,
}

/// A finished pass, for logs and metrics.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Pass {
    pub full: bool,
    pub orders: usize,
    pub refused: usize,
}

pub struct Reconciler {
    config: ProxyConfig,
    node_name: Box<str>,
    cluster: ClusterState,
    dirty: Dirty,
    host_addresses: BTreeSet<(Box<str>, IpAddr)>,
    node: NodeView,
    node_dirty: bool,
    desired: Desired,
    /// Changed since the last plan.
    pending: Changes,
    observed: Option<Observed>,
    /// Stages of the running plan.
    running: VecDeque<Stage>,
    /// What a full pass has yet to compare, once the running stages are through.
    uncompared: Changes,
    pass: Option<Pass>,
    finished: Vec<Pass>,
    foreign: Foreign,
    /// Set while objects are obscure that were so when the kernel was first compared with a complete view.
    spared: Option<Spared>,
    /// That comparison is through: what is in the kernel from now on is ours or nobody's.
    sorted: bool,
    drains: Drains,
    problems: Problems,
    backoff: Backoff,
    refusals: Refusals,
    give_up_at_ms: u64,
    /// The service proxy has its first view.
    started: bool,
    /// So has everybody else.
    viewed: bool,
    /// A full pass is due then.
    full_at_ms: u64,
    synced_once: bool,
    /// The kernel was read once, or could not be.
    looked: bool,
    health_checks_changed: bool,
    enforcer: Option<Enforcer>,
    balancer: Option<Balancer>,
}

impl Reconciler {
    pub fn new(config: ProxyConfig, node_name: &str, cache_sync_timeout: Duration, now_ms: u64) -> Self {
        Reconciler {
            config,
            node_name: node_name.into(),
            cluster: ClusterState::new(),
            dirty: Dirty::default(),
            host_addresses: BTreeSet::new(),
            node: NodeView { name: node_name.into(), ..NodeView::default() },
            node_dirty: true,
            desired: Desired::default(),
            pending: Changes::default(),
            observed: None,
            running: VecDeque::new(),
            uncompared: Changes::default(),
            pass: None,
            finished: Vec::new(),
            foreign: Foreign::default(),
            spared: None,
            sorted: false,
            drains: Drains::default(),
            problems: Problems::default(),
            backoff: Backoff::default(),
            refusals: Refusals::default(),
            give_up_at_ms: now_ms.saturating_add(u64::try_from(cache_sync_timeout.as_millis()).unwrap_or(u64::MAX)),
            started: false,
            viewed: false,
            full_at_ms: now_ms,
            synced_once: false,
            looked: false,
            health_checks_changed: false,
            enforcer: None,
            balancer: None,
        }
    }

    /// Keeps the tables and interfaces of the BPF programs, too; enforces network policy, if `firewall` says so.
    pub fn with_programs(mut self, programs: &ProgramsConfig, firewall: FirewallConfig) -> Self {
        let enforcer = Enforcer::new(firewall, programs, &self.node_name);
        self.enforcer = Some(if self.config.enabled { enforcer.balanced_by(&self.config) } else { enforcer });
        self
    }

    /// Keeps the tables of the service fast path, too.
    pub fn with_fast_path(mut self, fast: FastPath) -> Self {
        self.balancer = Some(Balancer::new(fast, &self.config));
        self
    }

    /// Stands until the agent ends.
    pub fn report_start(&mut self, problem: Option<Problem>) {
        self.problems.report(Reporter::Start, problem.into_iter().collect());
    }

    pub fn handle_event(&mut self, event: ObjectEvent) {
        let Some(enforcer) = &mut self.enforcer else { return self.cluster.apply(event, &mut self.dirty) };
        let mut touched = Dirty::default();
        self.cluster.apply(event, &mut touched);
        enforcer.note(&touched);
        self.dirty.services.append(&mut touched.services);
        self.dirty.nodes.append(&mut touched.nodes);
        self.dirty.view |= touched.view;
    }

    /// The next order. Call again after each answer until it says `Wait`.
    pub fn poll(&mut self, now_ms: u64) -> Command {
        let mut until_ms = None;
        // Before the first look at the kernel the host's addresses are unknown, and all would be compiled twice.
        if self.looked {
            self.refresh_node();
            if let Some(enforcer) = &mut self.enforcer {
                enforcer.handle_node(&self.node);
                let step = enforcer.poll(&self.cluster, now_ms);
                self.report_policy();
                match step {
                    PolicyStep::Observe => return Command::ObservePolicy,
                    PolicyStep::Apply(orders) => return Command::ApplyPolicy(orders),
                    PolicyStep::Settled => return Command::PolicySettled,
                    PolicyStep::Wait { until_ms: until } => until_ms = until,
                }
            }
        }
        let until = match self.poll_balancer(now_ms) {
            BalanceStep::Observe => return Command::ObserveBalance,
            BalanceStep::Apply(orders) => return Command::ApplyBalance(orders),
            BalanceStep::Wait { until_ms } => until_ms,
        };
        until_ms = [until_ms, until].into_iter().flatten().min();
        match self.poll_services(now_ms) {
            // What services came to want may be the fast path's matter alone.
            Command::Wait { .. } if self.observed.is_some() && self.is_stirred() => self.poll(now_ms),
            Command::Wait { until_ms: until } => {
                Command::Wait { until_ms: [until, until_ms].into_iter().flatten().min() }
            }
            command => command,
        }
    }

    fn is_stirred(&self) -> bool {
        self.balancer.as_ref().is_some_and(Balancer::is_stirred)
    }

    fn poll_balancer(&mut self, now_ms: u64) -> BalanceStep {
        let Some(mut balancer) = self.balancer.take() else { return BalanceStep::Wait { until_ms: None } };
        let ipvs = self.observed.as_ref().map(|observed| &observed.ipvs);
        let view = (ipvs.is_some() || !self.config.enabled).then(|| View {
            desired: &self.desired,
            ipvs,
            guard: self.guard(),
        });
        let step = balancer.poll(view.as_ref(), now_ms);
        if let Some(problems) = balancer.take_problems() {
            self.problems.report(Reporter::Balance, problems);
        }
        self.balancer = Some(balancer);
        step
    }

    fn poll_services(&mut self, now_ms: u64) -> Command {
        while !self.uncompared.is_empty() && self.running.is_empty() {
            self.compare_more();
        }
        if let Some(stage) = self.next_stage() {
            if self.balancer.as_mut().is_some_and(|balancer| balancer.foresee(&stage)) {
                self.running.push_front(stage);
                return self.poll(now_ms);
            }
            return Command::Apply(stage);
        }
        self.finish_pass(now_ms);
        // Before the wait for a first list: why there is none is what a user needs to know.
        if std::mem::take(&mut self.dirty.view) {
            self.report_view();
        }
        if !self.viewed
            && let Some(command) = self.first_view(now_ms)
        {
            return command;
        }
        let give_up_at_ms = (!self.viewed).then_some(self.give_up_at_ms);
        if !self.config.enabled {
            self.dirty.services.clear();
            return Command::Wait { until_ms: give_up_at_ms };
        }
        if self.looked {
            self.compile();
        }
        let due = self.drains.due(now_ms);
        if !due.is_empty() {
            return Command::CountConnections(due);
        }
        if now_ms >= self.full_at_ms {
            // Until the answer is there nothing else is planned; the period starts over when it is.
            return Command::Observe;
        }
        if let Some(observed) = self.observed.as_ref().filter(|_| !self.pending.is_empty()) {
            let changes = std::mem::take(&mut self.pending);
            if let Some(balancer) = &mut self.balancer {
                balancer.stir(&changes.servers);
            }
            let plan = plan_changes(&changes, &self.desired, observed, self.guard());
            if !plan.is_empty() {
                self.begin(plan, false);
                return self.poll_services(now_ms);
            }
        }
        let times = [Some(self.full_at_ms), self.drains.next_check_ms(), give_up_at_ms];
        Command::Wait { until_ms: times.into_iter().flatten().min() }
    }

    /// What to do while no complete view was there yet.
    fn first_view(&mut self, now_ms: u64) -> Option<Command> {
        let proxy = self.missing(&PROXY_KINDS, self.config.enabled);
        let policy = self.missing(&POLICY_KINDS, self.enforces());
        self.started |= proxy.is_empty();
        self.viewed |= self.started && policy.is_empty();
        if self.viewed {
            return None;
        }
        if now_ms >= self.give_up_at_ms {
            let missing: BTreeSet<Kind> = proxy.into_iter().chain(policy).collect();
            return Some(Command::GiveUp { missing: missing.into_iter().collect() });
        }
        // Services do not wait for what only policy needs.
        (!self.started).then_some(Command::Wait { until_ms: Some(self.give_up_at_ms) })
    }

    /// Of these kinds, those that were not listed completely and may still come.
    fn missing(&self, kinds: &[Kind], wanted: bool) -> Vec<Kind> {
        let kinds: &[Kind] = if wanted { kinds } else { &[] };
        let mut missing: Vec<Kind> = kinds.iter().copied().filter(|kind| !self.cluster.is_complete(*kind)).collect();
        // One kind may be forbidden while others can be read. Where none can, nobody has answered yet.
        if missing.len() < kinds.len() {
            missing.retain(|kind| !self.cluster.unavailable().contains_key(kind));
        }
        missing
    }

    /// Is network policy enforced? Programs alone need not be ready for services to be.
    pub fn enforces(&self) -> bool {
        self.enforcer.as_ref().is_some_and(Enforcer::enforces)
    }

    fn is_complete(&self) -> bool {
        PROXY_KINDS.into_iter().all(|kind| self.cluster.is_complete(kind))
    }

    /// The objects that nobody understood and that the proxy needs, with their kinds.
    fn obscure(&self) -> impl Iterator<Item = &(Kind, ObjectKey)> {
        let ours = |(kind, key): &&(Kind, ObjectKey)| match kind {
            Kind::Node => *key.name == *self.node_name || *key == ObjectKey::unnamed(),
            kind => PROXY_KINDS.contains(kind),
        };
        self.cluster.obscure().iter().filter(ours)
    }

    /// Decides at a full pass what stays for the sake of objects that nobody understood.
    fn spare(&mut self, observed: &Observed) {
        if self.obscure().next().is_none() {
            self.spared = None;
            self.sorted |= self.is_complete();
        } else if let Some(spared) = &mut self.spared {
            spared.forget_wanted(&self.desired);
        } else if !self.sorted && self.is_complete() {
            // A slice's services are in its namespace.
            let slices = self.obscure().filter(|(kind, _)| *kind == Kind::EndpointSlice);
            let spaces: BTreeSet<&str> = slices.map(|(_, slice)| &*slice.namespace).collect();
            let lacks = |service: &ObjectKey| spaces.contains(&*service.namespace) || spaces.contains("");
            let mut spared = Spared::unwanted(&self.desired, observed, lacks);
            spared.ruleset = self.cluster.node(&self.node_name).is_none()
                && self.obscure().any(|(kind, _)| *kind == Kind::Node)
                && observed.firewall.ruleset.as_ref().is_some_and(|there| *there != self.desired.ruleset);
            self.spared = Some(spared);
            self.sorted = true;
        }
        self.dirty.view = true;
    }

    fn guard(&self) -> Guard<'_> {
        Guard {
            deletions: self.is_complete(),
            spared: self.spared.as_ref(),
            drained: self.config.graceful_period.map(|_| self.drains.over()),
            excluded: &self.config.excluded_cidrs,
        }
    }

    fn begin(&mut self, plan: Plan, full: bool) {
        self.pass = Some(Pass { full, orders: plan.len(), refused: 0 });
        self.running = plan.stages.into();
    }

    /// Brings the desired state up to date with everything that changed since the last call.
    fn compile(&mut self) {
        self.refresh_node();
        let dirty = std::mem::take(&mut self.dirty);
        for key in &dirty.services {
            self.compile_one(key);
        }
    }

    fn refresh_node(&mut self) {
        if self.dirty.nodes.remove(&*self.node_name) || self.node_dirty {
            self.node_dirty = false;
            self.compile_node();
        }
    }

    fn compile_node(&mut self) {
        let node = self.cluster.node(&self.node_name);
        let (view, problems) = compile_node(&self.node_name, node, &self.node, &self.host_addresses, &self.config);
        self.problems.report(Reporter::Node, problems);
        let ruleset = view.ruleset(&self.config);
        let local_ips: BTreeSet<IpAddr> = view.local_addresses().collect();
        let sources = (view.ipv4.map(IpAddr::V4), view.ipv6.map(IpAddr::V6));
        // Every pod's veth brings a link-local address: that must cost its set element, not a look at every service.
        self.pending.local_ips.extend(local_ips.symmetric_difference(&self.desired.local_ips));
        let shared_changed = ruleset != self.desired.ruleset
            || view.pod_cidrs != self.desired.pod_cidrs
            || sources != (self.desired.source_ipv4, self.desired.source_ipv6);
        self.desired.ruleset = ruleset;
        self.desired.local_ips = local_ips;
        self.desired.pod_cidrs = view.pod_cidrs.clone();
        (self.desired.source_ipv4, self.desired.source_ipv6) = sources;
        if shared_changed && self.started {
            // Rare, and it concerns every VIP's route: compare everything.
            self.full_at_ms = 0;
        }
        let concerned = view.services_concerned(&self.node, &self.config);
        self.node = view;
        let keys: Vec<ObjectKey> =
            self.cluster.services().filter(|service| concerned(service)).map(|service| service.key.clone()).collect();
        for key in keys {
            self.compile_one(&key);
        }
    }

    fn compile_one(&mut self, key: &ObjectKey) {
        let (mut state, problems) = match self.cluster.service(key) {
            Some(service) => compile_service(service, self.cluster.slices_of(key), &self.node, &self.config),
            None => (None, Vec::new()),
        };
        if let Some(state) = &mut state {
            // What pods send to another node itself somebody may have to masquerade.
            let hosts = self.cluster.host_endpoints(key);
            for frontend in state.frontends.values_mut() {
                frontend.elsewhere.retain(|to| !hosts.contains(&to.ip()));
                let destinations = frontend.server.destinations.keys();
                frontend.hosts = destinations.filter(|to| hosts.contains(&to.ip())).copied().collect();
            }
        }
        self.problems.report(Reporter::Service(key.clone()), problems);
        let changes = self.desired.table.replace(key, state);
        for server in &changes.servers {
            let disputes = self.desired.table.disputes(server);
            let problems = disputes.into_iter().map(|dispute| Problem {
                subject: Subject::Object(Kind::Service, dispute.loser),
                reason: "AddressInUse",
                text: format!(
                    "{} belongs to service {}, which comes first by age, then by name; change one of them",
                    dispute.key, dispute.winner
                ),
            });
            self.problems.report(Reporter::Dispute(*server), problems.collect());
        }
        self.health_checks_changed |= changes.health_checks;
        self.pending.merge(changes);
    }

    fn report_view(&mut self) {
        let mut problems: Vec<Problem> = Vec::new();
        if let Some(spared) = &self.spared {
            let names: Vec<String> = self.obscure().take(MOST_NAMED).map(|(kind, key)| name(*kind, key)).collect();
            if names.is_empty() {
                // Mended: what nobody wants may go now.
                self.full_at_ms = 0;
            } else if !spared.is_empty() {
                problems.push(Problem {
                    subject: Subject::Kernel("kernel"),
                    reason: "RemovalsHeld",
                    text: format!(
                        "what was found at the start and no object wants stays, as it may belong to an object that \
                         cannot be understood: {}",
                        names.join(", ")
                    ),
                });
            }
        }
        for (kind, reason) in self.cluster.unavailable() {
            let effect = if self.config.enabled && PROXY_KINDS.contains(kind) && !self.cluster.is_complete(*kind) {
                "; the service proxy only adds and deletes nothing until it can be read"
            } else {
                ""
            };
            problems.push(Problem {
                subject: Subject::Watch(*kind),
                reason: "WatchUnavailable",
                text: format!("{reason}{effect}"),
            });
        }
        for (source, reason) in self.cluster.rejected() {
            problems.push(Problem {
                subject: Subject::Input(source.clone()),
                reason: "InputRejected",
                text: reason.clone(),
            });
        }
        for slice in self.cluster.stray_slices() {
            problems.push(Problem {
                subject: Subject::Object(Kind::EndpointSlice, slice.key.clone()),
                reason: "SliceWithoutService",
                text: "belongs to no service: set label kubernetes.io/service-name".to_owned(),
            });
        }
        self.problems.report(Reporter::View, problems);
    }

    /// Answer to [`Command::CountConnections`]. An error counts as "still busy" until the deadline.
    pub fn handle_connections(
        &mut self,
        server: &VirtualKey,
        counts: Option<&BTreeMap<Destination, Connections>>,
        now_ms: u64,
    ) {
        let connected = |destination: &Destination| match counts {
            Some(counts) => counts.get(destination).is_some_and(|c| c.active + c.inactive > 0),
            None => true,
        };
        let balancer = self.balancer.as_ref();
        let has_flows = |destination: &Destination, since_ms: u64| {
            balancer.is_some_and(|balancer| balancer.may_have_flows(server, destination, since_ms))
        };
        let busy = |destination: &Destination, since_ms| connected(destination) || has_flows(destination, since_ms);
        if self.drains.judge(server, busy, now_ms) {
            self.pending.servers.insert(*server);
        }
    }

    /// The addresses of the host's interfaces changed.
    pub fn handle_host_addresses(&mut self, addresses: BTreeSet<(Box<str>, IpAddr)>) {
        // Without a proxy nothing else of the kernel is looked at.
        self.looked |= !self.config.enabled;
        if addresses != self.host_addresses {
            self.host_addresses = addresses;
            self.node_dirty = true;
        }
    }

    /// Problems with kernel settings or modules replace those of the last report.
    pub fn handle_settings(&mut self, problems: Vec<Problem>) {
        self.problems.report(Reporter::Settings, problems);
    }

    fn drain_period_ms(&self, destination: &Destination) -> u64 {
        let pod = self.cluster.pod_by_ip(destination.ip()).and_then(|pod| pod.grace_period_s);
        match pod {
            Some(seconds) => u64::from(seconds) * 1_000,
            None => self.config.graceful_period.unwrap_or_default().as_millis() as u64,
        }
    }
}

fn name(kind: Kind, key: &ObjectKey) -> String {
    if *key == ObjectKey::unnamed() { format!("a {kind}, or what may be one") } else { format!("{kind} {key}") }
}
