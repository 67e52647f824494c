//! The one loop with effects: waits for events, feeds the [`Reconciler`], carries out its commands on the planes.
//!
//! It runs on a thread of its own, because the planes block while the kernel works; the sources and the servers that
//! show things out have threads of theirs and are never in its way. Nothing is decided here.

pub mod report;
#[cfg(test)]
mod tests;

use std::{
    collections::BTreeMap,
    sync::Arc,
    time::{Duration, Instant},
};

use tokio::{
    io::unix::AsyncFd,
    sync::{mpsc, watch},
};
use tracing::{debug, error, info, warn};

use super::{
    Command, Reconciler,
    attachments::Attachments,
    balance::{Sweep, Sweeping},
    journal,
    policy::Enforcer,
    settings,
};
use crate::{
    apply::{
        ConntrackPlane, Failures, FirewallPlane, IpvsPlane, IpvsTimeouts, NetPlane, PlaneError, PolicyPlane,
        SysctlPlane,
        bpf::{BpfError, Events},
    },
    cni::server::Ask,
    compile::{Problem, Subject},
    explain::Here,
    objects::{Kind, ObjectEvent},
    observe::{
        Metrics, Plane, PolicyQuery, Pulse, Query,
        monitor::{Broadcaster, Seen},
    },
    plan::{Observed, Stage, balance::BalanceOrder, enforcement::PolicyOrder},
    sys::{clock, memory},
};

/// Orders between two signs of life; the kernel takes about a second for them at most.
const CHUNK: usize = 8_192;
/// The same for addresses: the kernel walks a list of all of them for each.
const NET_CHUNK: usize = 512;
/// Events taken in before the kernel is brought up to date again.
const EVENTS_PER_ROUND: usize = 4_096;
/// Records passed on before the loop looks around again; the ring holds some 5,000.
const RECORDS_PER_ROUND: usize = 8_192;

/// Times that reading all links took, in which they are not read again: a pod that changes its addresses without end
/// gets a fifth of the loop.
const LINKS_REST: u32 = 4;

/// Events taken in, or orders carried out, after which freed memory is worth giving back: below it is a megabyte or two.
const GIVE_BACK_AFTER: usize = 4_096;

/// The kernel's planes; each belongs to the driver's thread.
pub struct Planes {
    pub ipvs: Box<dyn IpvsPlane>,
    pub net: Box<dyn NetPlane>,
    pub firewall: Box<dyn FirewallPlane>,
    pub conntrack: Box<dyn ConntrackPlane>,
    pub sysctl: Box<dyn SysctlPlane>,
    /// `None`: nobody asked for network policy.
    pub policy: Option<Box<dyn PolicyPlane>>,
}

/// Everything the loop waits for. A closed events channel is no end: what is programmed stays cared for.
pub struct Inputs {
    pub events: mpsc::Receiver<ObjectEvent>,
    pub queries: mpsc::Receiver<Query>,
    /// The host's addresses changed.
    pub addresses: mpsc::Receiver<()>,
    /// Links of pods or their addresses changed.
    pub links: mpsc::Receiver<()>,
    /// Questions of the network plugin.
    pub asks: mpsc::Receiver<Ask>,
    /// Questions about network policy.
    pub policy_queries: mpsc::Receiver<PolicyQuery>,
    /// Records of the programs; `None`: no network policy.
    pub records: Option<AsyncFd<Events>>,
    /// What passes over the flows found; none without network policy.
    pub sweeps: mpsc::Receiver<Sweep>,
    /// `true`: end the loop and leave the dataplane as it is.
    pub stop: watch::Receiver<bool>,
}

/// Takes every event down before the loop takes it in.
pub type Record = Box<dyn FnMut(&ObjectEvent) + Send>;

/// Where the loop reports.
pub struct Outputs {
    pub metrics: Arc<Metrics>,
    pub pulse: Arc<Pulse>,
    pub health_checks: watch::Sender<BTreeMap<u16, usize>>,
    /// How often the standing problems changed.
    pub problems: watch::Sender<u64>,
    /// Called with every event before it is taken in (`--record`).
    pub record: Option<Record>,
    /// Who looks on at the programs' records.
    pub monitor: Broadcaster,
    /// What passes over the flows go by.
    pub sweeping: watch::Sender<Sweeping>,
}

/// Why the loop ended by itself.
#[derive(Debug, thiserror::Error)]
pub enum DriveError {
    /// The original's words; the missing kinds follow in the log.
    #[error("failed to synchronize cache: {0:?} timeout")]
    CacheSyncTimeout(Duration),
}

pub struct Driver {
    reconciler: Reconciler,
    planes: Planes,
    inputs: Inputs,
    outputs: Outputs,
    cache_sync_timeout: Duration,
    /// Still to be set.
    timeouts: Option<IpvsTimeouts>,
    attachments: Attachments,
    /// Start of the running pass.
    pass_began: Option<Instant>,
    /// The same of network policy.
    policy_began: Option<Instant>,
    /// Links are not read again before.
    links_rest_until: Instant,
    /// Events and orders since memory was given back.
    churn: usize,
}

impl Driver {
    pub fn new(
        reconciler: Reconciler,
        planes: Planes,
        inputs: Inputs,
        outputs: Outputs,
        cache_sync_timeout: Duration,
        timeouts: IpvsTimeouts,
    ) -> Self {
        for kind in Kind::ALL {
            outputs.pulse.watch(kind);
        }
        Driver {
            reconciler,
            planes,
            inputs,
            outputs,
            cache_sync_timeout,
            timeouts: (timeouts != IpvsTimeouts::default()).then_some(timeouts),
            attachments: Attachments::default(),
            pass_began: None,
            policy_began: None,
            links_rest_until: Instant::now(),
            churn: 0,
        }
    }

    /// Runs until it is told to stop.
    pub async fn run(mut self) -> Result<(), DriveError> {
        if !self.reconciler.has_proxy() {
            self.read_addresses();
        }
        loop {
            self.alive();
            let until_ms = match self.settle() {
                Command::Wait { until_ms } => until_ms,
                Command::GiveUp { missing } => {
                    error!(?missing, "no complete list of these kinds; is the API server reachable?");
                    return Err(DriveError::CacheSyncTimeout(self.cache_sync_timeout));
                }
                _ => continue,
            };
            if self.stopped() {
                return Ok(());
            }
            self.attachments.answer(&self.reconciler, clock::uptime_ms());
            let until_ms = [until_ms, self.attachments.until_ms()].into_iter().flatten().min();
            self.outputs.pulse.rest();
            let wake = async {
                match until_ms {
                    Some(at) => tokio::time::sleep(Duration::from_millis(at.saturating_sub(clock::uptime_ms()))).await,
                    None => std::future::pending().await,
                }
            };
            let stop = async {
                // A vanished sender means that nobody is left who wants us to run.
                let _ = self.inputs.stop.wait_for(|stop| *stop).await;
            };
            tokio::select! {
                () = stop => return Ok(()),
                Some(event) = self.inputs.events.recv() => {
                    self.take(event);
                    for _ in 1..EVENTS_PER_ROUND {
                        match self.inputs.events.try_recv() {
                            Ok(event) => self.take(event),
                            Err(_) => break,
                        }
                    }
                }
                Some(query) = self.inputs.queries.recv() => self.answer(query),
                Some(()) = self.inputs.addresses.recv() => self.read_addresses(),
                Some(()) = after(self.links_rest_until, self.inputs.links.recv()) => self.read_links(),
                Some(query) = self.inputs.policy_queries.recv() => self.answer_policy(query),
                () = self.outputs.monitor.changed() => {
                    self.reconciler.record_flows(self.outputs.monitor.wants_flows());
                }
                Some(sweep) = self.inputs.sweeps.recv() => self.reconciler.handle_swept(sweep),
                () = records(self.inputs.records.as_mut()) => self.pass_records(),
                Some(ask) = self.inputs.asks.recv() => {
                    self.take_ask(ask);
                    while let Ok(ask) = self.inputs.asks.try_recv() {
                        self.take_ask(ask);
                    }
                }
                () = wake => {}
            }
        }
    }

    fn alive(&self) {
        self.outputs.pulse.progress(clock::uptime_ms());
    }

    /// Takes one event in. What follows from it is carried out by the next [`Driver::settle`].
    pub fn take(&mut self, event: ObjectEvent) {
        if let Some(record) = &mut self.outputs.record {
            record(&event);
        }
        if let ObjectEvent::RelistDone(kind) = &event {
            self.outputs.pulse.set_complete(*kind);
        }
        self.churn += 1;
        self.reconciler.handle_event(event);
    }

    fn stopped(&self) -> bool {
        *self.inputs.stop.borrow()
    }

    /// Carries out commands until there is nothing to do, and returns what to wait for. Ends between two steps when the
    /// loop is told to stop: every prefix of a plan is safe, and the next agent goes on from there.
    pub fn settle(&mut self) -> Command {
        loop {
            if self.stopped() {
                return Command::Wait { until_ms: None };
            }
            let now_ms = clock::uptime_ms();
            match self.reconciler.poll(now_ms) {
                Command::Observe => {
                    self.give_back();
                    self.pass_began = Some(Instant::now());
                    let result = self.observe();
                    match &result {
                        Ok(observed) => self.churn += observed.ipvs.servers.len() + observed.firewall.nft.len(),
                        Err(error) => debug!(%error, "the kernel could not be read"),
                    }
                    self.reconciler.handle_observed(result, clock::uptime_ms());
                }
                Command::Apply(stage) => {
                    self.pass_began.get_or_insert_with(Instant::now);
                    journal::foreign(&self.reconciler.take_foreign());
                    for part in parts(stage) {
                        self.alive();
                        let result = self.apply(&part);
                        let broken = result.is_err();
                        self.reconciler.handle_applied(&part, result, clock::uptime_ms());
                        if broken || self.stopped() {
                            break;
                        }
                    }
                }
                Command::CountConnections(servers) => {
                    for server in servers {
                        let counts = self.planes.ipvs.connections(&server).ok();
                        self.reconciler.handle_connections(&server, counts.as_ref(), now_ms);
                    }
                }
                Command::ObservePolicy => {
                    self.give_back();
                    self.policy_began = Some(Instant::now());
                    let result = self.on_policy(|plane| plane.observe());
                    let result = self.noted(Plane::Policy, result);
                    self.reconciler.handle_policy_observed(result, clock::uptime_ms());
                }
                Command::ApplyPolicy(orders) => {
                    self.alive();
                    self.policy_began.get_or_insert_with(Instant::now);
                    let (done, result) = self.apply_policy(&orders);
                    self.reconciler.handle_policy_applied(done, result, clock::uptime_ms());
                }
                Command::ObserveBalance => {
                    let result = self.on_policy(|plane| plane.observe_balance());
                    let result = self.noted(Plane::Policy, result);
                    // Arrays are read whole.
                    self.churn += GIVE_BACK_AFTER;
                    self.reconciler.handle_balance_observed(result, clock::uptime_ms());
                }
                Command::ApplyBalance(orders) => {
                    self.alive();
                    let (done, result) = self.balance(&orders);
                    self.reconciler.handle_balance_applied(done, result, clock::uptime_ms());
                }
                Command::PolicySettled => {
                    match self.reconciler.enforces() {
                        true => info!("network policy is in force"),
                        false => info!("programs of the service fast path are in force; no policy is enforced"),
                    }
                    if let Some(plane) = &mut self.planes.policy {
                        plane.settled();
                    }
                }
                idle @ (Command::Wait { .. } | Command::GiveUp { .. }) => {
                    self.give_back();
                    self.report();
                    return idle;
                }
            }
        }
    }

    fn give_back(&mut self) {
        if self.churn >= GIVE_BACK_AFTER {
            self.churn = 0;
            memory::give_back();
        }
    }

    fn observe(&mut self) -> Result<Observed, PlaneError> {
        settings::load_modules(&mut *self.planes.sysctl);
        self.ensure_settings();
        self.alive();
        let ipvs = self.planes.ipvs.observe();
        let ipvs = self.noted(Plane::Ipvs, ipvs)?;
        self.alive();
        let net = self.planes.net.observe();
        let net = self.noted(Plane::Net, net)?;
        let firewall = self.planes.firewall.observe();
        let firewall = self.noted(Plane::Firewall, firewall)?;
        Ok(Observed { ipvs, net, firewall })
    }

    /// Counts a failure of a plane.
    fn noted<T>(&self, plane: Plane, result: Result<T, PlaneError>) -> Result<T, PlaneError> {
        result.inspect_err(|_| self.outputs.metrics.sync_failed(plane))
    }

    fn ensure_settings(&mut self) {
        let interface = self.reconciler.node().primary_interface().map(str::to_owned);
        let (written, mut problems) = settings::ensure(&mut *self.planes.sysctl, interface.as_deref());
        self.outputs.metrics.kernel_wrote(Plane::Sysctl, written);
        if problems.iter().any(|problem| problem.reason != "SysctlMissing") {
            self.outputs.metrics.sync_failed(Plane::Sysctl);
        }
        problems.extend(self.ensure_timeouts());
        self.reconciler.handle_settings(problems);
    }

    /// Sets the timeouts once. A kernel that refuses them goes on with its own, so services do not have to wait.
    fn ensure_timeouts(&mut self) -> Option<Problem> {
        match self.planes.ipvs.set_timeouts(self.timeouts?) {
            Ok(()) => {
                self.timeouts = None;
                None
            }
            Err(error) => Some(Problem {
                subject: Subject::Kernel("IPVS"),
                reason: "KernelRefused",
                text: format!("{error}; the kernel's own timeouts stay, trying again"),
            }),
        }
    }

    fn apply(&mut self, stage: &Stage) -> Failures {
        journal::stage(stage, self.reconciler.desired());
        self.churn += stage.len();
        let (plane, result) = match stage {
            Stage::Ipvs(ops) => (Plane::Ipvs, self.planes.ipvs.apply(ops)),
            Stage::Net(ops) => (Plane::Net, self.planes.net.apply(ops)),
            Stage::Firewall(ops) => (Plane::Firewall, self.planes.firewall.apply(ops)),
            // A flow that stays is a nuisance for one client, not a reason to doubt the rest.
            Stage::Conntrack(flows) => {
                let flushed = self.planes.conntrack.flush_udp(flows);
                let flushed = self.noted(Plane::Conntrack, flushed).unwrap_or_else(|error| {
                    warn!(%error, "UDP conntrack entries of removed endpoints stay until they time out");
                    0
                });
                self.outputs.metrics.kernel_wrote(Plane::Conntrack, flushed);
                return Ok(Vec::new());
            }
        };
        let result = self.noted(plane, result);
        if let Ok(failures) = &result {
            self.outputs.metrics.kernel_wrote(plane, stage.len() - failures.len());
            if !failures.is_empty() {
                self.outputs.metrics.sync_failed(plane);
            }
        }
        result
    }

    fn on_policy<T>(
        &mut self,
        call: impl FnOnce(&mut dyn PolicyPlane) -> Result<T, PlaneError>,
    ) -> Result<T, PlaneError> {
        match &mut self.planes.policy {
            Some(plane) => call(&mut **plane),
            None => Err(PlaneError::Bpf(BpfError::NoObject)),
        }
    }

    fn apply_policy(&mut self, orders: &[PolicyOrder]) -> (usize, Result<(), PlaneError>) {
        journal::policy(orders);
        self.churn += orders.len();
        let Some(plane) = &mut self.planes.policy else { return (0, Err(PlaneError::Bpf(BpfError::NoObject))) };
        let (done, result) = plane.apply(orders);
        self.outputs.metrics.kernel_wrote(Plane::Policy, done);
        (done, self.noted(Plane::Policy, result))
    }

    fn balance(&mut self, orders: &[BalanceOrder]) -> (usize, Result<(), PlaneError>) {
        debug!(orders = orders.len(), "tables of the service fast path change");
        self.churn += orders.len();
        let Some(plane) = &mut self.planes.policy else { return (0, Err(PlaneError::Bpf(BpfError::NoObject))) };
        let (done, result) = plane.balance(orders);
        self.outputs.metrics.kernel_wrote(Plane::Policy, done);
        (done, self.noted(Plane::Policy, result))
    }

    fn answer_policy(&mut self, query: PolicyQuery) {
        let node = self.reconciler.node();
        let addresses = node.host_addresses.iter().map(|(_, address)| *address).collect();
        let compiler = self.reconciler.enforcer().map(Enforcer::compiled);
        let here = Here { node: &node.name, addresses: Some(&addresses), compiler };
        query.answer(self.reconciler.cluster(), here);
    }

    /// The ring is always emptied, so that what is shown is new.
    fn pass_records(&mut self) {
        let Some(records) = &mut self.inputs.records else { return };
        let monitor = &self.outputs.monitor;
        let watched = monitor.is_watched();
        for (head, bytes) in records.get_mut().by_ref().take(RECORDS_PER_ROUND) {
            if watched {
                let compiler = self.reconciler.enforcer().map(Enforcer::compiled);
                let cluster = self.reconciler.cluster();
                monitor.publish(Seen::new(&head, &bytes, cluster, compiler, clock::boot_unix_ns()));
            }
        }
    }

    fn take_ask(&mut self, ask: Ask) {
        let plane = &mut self.planes.policy;
        let read = |index: u32| match plane {
            Some(plane) => plane.link(index).map_err(|error| error.to_string()),
            None => Err("this agent enforces no policies (--run-firewall=false)".to_owned()),
        };
        self.attachments.take(ask, &mut self.reconciler, read, clock::uptime_ms());
    }

    fn read_links(&mut self) {
        let began = Instant::now();
        match self.on_policy(|plane| plane.links()) {
            Ok(links) => self.reconciler.handle_links(links, clock::uptime_ms()),
            Err(error) => debug!(%error, "links could not be read; the next full pass will"),
        }
        self.links_rest_until = Instant::now() + began.elapsed() * LINKS_REST;
    }

    fn read_addresses(&mut self) {
        match self.planes.net.host_addresses() {
            Ok(addresses) => self.reconciler.handle_host_addresses(addresses),
            Err(error) => debug!(%error, "the host's addresses could not be read; the next full pass will"),
        }
    }
}

async fn after<T>(then: Instant, work: impl Future<Output = T>) -> T {
    tokio::time::sleep_until(then.into()).await;
    work.await
}

/// Until records wait.
async fn records(records: Option<&mut AsyncFd<Events>>) {
    match records {
        Some(records) => match records.readable_mut().await {
            // Level is told by the next look: what is left over after a round must wake us again.
            Ok(mut ready) => ready.clear_ready(),
            Err(_) => std::future::pending().await,
        },
        None => std::future::pending().await,
    }
}

/// The stage in parts that take well under the time after which the loop would be called stuck.
fn parts(stage: Stage) -> Box<dyn Iterator<Item = Stage>> {
    match stage {
        Stage::Ipvs(ops) => Box::new(parts_of(ops, CHUNK).map(Stage::Ipvs)),
        Stage::Net(ops) => Box::new(parts_of(ops, NET_CHUNK).map(Stage::Net)),
        Stage::Firewall(ops) => Box::new(parts_of(ops, CHUNK).map(Stage::Firewall)),
        Stage::Conntrack(flows) => Box::new(parts_of(flows, CHUNK).map(Stage::Conntrack)),
    }
}

fn parts_of<T>(ops: Vec<T>, size: usize) -> impl Iterator<Item = Vec<T>> {
    let mut rest = ops.into_iter();
    std::iter::from_fn(move || {
        let part: Vec<T> = rest.by_ref().take(size).collect();
        (!part.is_empty()).then_some(part)
    })
}
