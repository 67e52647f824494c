//! The one loop with effects: waits for events, feeds the [`Reconciler`], carries out its commands on the planes.
//!
//! It runs on a thread of its own, because the planes block while the kernel works; the sources and the servers that
//! show things out have threads of theirs and are never in its way. Nothing is decided here.

use std::{
    collections::BTreeMap,
    net::IpAddr,
    sync::Arc,
    time::{Duration, Instant},
};

use tokio::sync::{mpsc, watch};
use tracing::{debug, error, info, warn};

use super::{Command, Pass, Reconciler, journal, settings};
use crate::{
    apply::{ConntrackPlane, Failures, FirewallPlane, IpvsPlane, IpvsTimeouts, NetPlane, PlaneError, SysctlPlane},
    compile::{Problem, Subject},
    objects::{Kind, ObjectEvent},
    observe::{DestinationRow, Metrics, Plane, Pulse, Query, ServiceRow},
    plan::{Observed, Stage},
    sys::{clock, memory},
};

/// Orders between two signs of life; the kernel takes about a second for them at most.
const CHUNK: usize = 8_192;
/// The same for addresses: the kernel walks a list of all of them for each.
const NET_CHUNK: usize = 512;
/// Events taken in before the kernel is brought up to date again.
const EVENTS_PER_ROUND: usize = 4_096;

/// Events taken in, or orders carried out, after which freed memory is worth giving back: below it is a megabyte or two.
const GIVE_BACK_AFTER: usize = 4_096;

/// The kernel's planes; each belongs to the driver's thread.
pub struct Planes {
    pub ipvs: Box<dyn IpvsPlane>,
    pub net: Box<dyn NetPlane>,
    pub firewall: Box<dyn FirewallPlane>,
    pub conntrack: Box<dyn ConntrackPlane>,
    pub sysctl: Box<dyn SysctlPlane>,
}

/// Everything the loop waits for. A closed events channel is no end: what is programmed stays cared for.
pub struct Inputs {
    pub events: mpsc::Receiver<ObjectEvent>,
    pub queries: mpsc::Receiver<Query>,
    /// The host's addresses changed.
    pub addresses: mpsc::Receiver<()>,
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
    /// Called with every event before it is taken in (`--record`).
    pub record: Option<Record>,
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
    /// Start of the running pass.
    pass_began: Option<Instant>,
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
            pass_began: None,
            churn: 0,
        }
    }

    /// Runs until it is told to stop.
    pub async fn run(mut self) -> Result<(), DriveError> {
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

    fn read_addresses(&mut self) {
        match self.planes.net.host_addresses() {
            Ok(addresses) => self.reconciler.handle_host_addresses(addresses),
            Err(error) => debug!(%error, "the host's addresses could not be read; the next full pass will"),
        }
    }

    /// Tells what changed since the last report.
    fn report(&mut self) {
        for pass in self.reconciler.take_passes() {
            let took = self.pass_began.take().map(|began| began.elapsed()).unwrap_or_default();
            self.passed(pass, took);
        }
        let (appeared, resolved) = self.reconciler.problems().take_changes();
        for problem in &appeared {
            warn!(subject = %problem.subject, reason = problem.reason, "{}", problem.text);
        }
        for problem in &resolved {
            info!(subject = %problem.subject, reason = problem.reason, "resolved: {}", problem.text);
        }
        if !appeared.is_empty() || !resolved.is_empty() {
            let reasons: Vec<&'static str> = self.reconciler.problems().iter().map(|problem| problem.reason).collect();
            self.outputs.metrics.set_problems(reasons);
        }
        self.outputs.metrics.set_drain_queue(self.reconciler.draining());
        for kind in Kind::ALL {
            self.outputs.metrics.set_objects(kind, self.reconciler.cluster().count(kind));
        }
        if let Some(ports) = self.reconciler.take_health_checks() {
            self.outputs.health_checks.send_replace(ports);
        }
        if self.reconciler.is_ready() {
            self.outputs.pulse.set_ready();
        }
    }

    fn passed(&mut self, pass: Pass, took: Duration) {
        self.outputs.metrics.sync_done(took, pass.refused == 0);
        if pass.full {
            // kube-dummy-if, and with it its rp_filter, may be new.
            self.ensure_settings();
        }
        if pass.orders > 0 {
            debug!(full = pass.full, orders = pass.orders, refused = pass.refused, ?took, "synced");
        }
    }

    fn answer(&mut self, query: Query) {
        // A reader that went away does not matter.
        match query {
            Query::Services(reply) => drop(reply.send(rows(&self.reconciler))),
            Query::Owners(reply) => {
                let servers = self.reconciler.desired().table.servers();
                drop(reply.send(servers.map(|(key, owner, _)| (*key, owner.clone())).collect()));
            }
            Query::Problems(reply) => {
                let rows = self
                    .reconciler
                    .problems()
                    .iter()
                    .map(|problem| (problem.subject.to_string(), problem.reason.to_owned(), problem.text.clone()));
                drop(reply.send(rows.collect()));
            }
        }
    }
}

/// Every virtual server we want, ordered by service, with what is being drained.
pub fn rows(reconciler: &Reconciler) -> Vec<ServiceRow> {
    let observed = reconciler.observed();
    let mut rows: Vec<ServiceRow> = reconciler
        .desired()
        .table
        .servers()
        .map(|(key, owner, frontend)| {
            let wanted = &frontend.server.destinations;
            let mut destinations: Vec<DestinationRow> = wanted
                .iter()
                .map(|(address, weight)| DestinationRow { address: *address, weight: *weight, draining: false })
                .collect();
            if let Some(there) = observed.and_then(|observed| observed.ipvs.servers.get(key)) {
                let draining = there.destinations.keys().filter(|address| !wanted.contains_key(address));
                destinations.extend(draining.map(|address| DestinationRow {
                    address: *address,
                    weight: 0,
                    draining: true,
                }));
            }
            ServiceRow {
                service: owner.clone(),
                port_name: frontend.port_name.to_string(),
                origin: frontend.origin.name().to_owned(),
                address: key.address,
                protocol: key.protocol,
                port: key.port,
                scheduler: frontend.server.scheduler.name().to_owned(),
                sched_flags: frontend.server.flag_names(),
                persistence_s: frontend.server.persistence_s,
                destinations,
            }
        })
        .collect();
    rows.sort_by(|a, b| {
        let rank = |row: &ServiceRow| -> (IpAddr, u8, u16) { (row.address, row.protocol.number(), row.port) };
        a.service.cmp(&b.service).then_with(|| rank(a).cmp(&rank(b)))
    });
    rows
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        apply::{
            Connections,
            fake::{FakeKernel, Fault},
        },
        config::ProxyConfig,
        desired::{Destination, VirtualKey},
        nl::{NlError, Refusal},
        objects::{Namespace, Object, ObjectKey},
        plan::{IpvsOp, ObservedIpvs},
        reconcile::PROXY_KINDS,
    };

    /// Refuses timeouts so many times.
    struct Stubborn(FakeKernel, usize);

    impl IpvsPlane for Stubborn {
        fn observe(&mut self) -> Result<ObservedIpvs, PlaneError> {
            IpvsPlane::observe(&mut self.0)
        }
        fn apply(&mut self, ops: &[IpvsOp]) -> Failures {
            IpvsPlane::apply(&mut self.0, ops)
        }
        fn connections(&mut self, server: &VirtualKey) -> Result<BTreeMap<Destination, Connections>, PlaneError> {
            self.0.connections(server)
        }
        fn set_timeouts(&mut self, _: IpvsTimeouts) -> Result<(), PlaneError> {
            let Some(left) = self.1.checked_sub(1) else { return Ok(()) };
            self.1 = left;
            let refusal = Refusal { errno: libc::EINVAL, text: "".into() };
            Err(PlaneError::Netlink { what: "IPVS timeouts", source: NlError::Refused(refusal) })
        }
    }

    /// A driver on a fake kernel, with every list complete and empty.
    fn driver(kernel: &FakeKernel, refused_timeouts: usize) -> Driver {
        let planes = Planes {
            ipvs: Box::new(Stubborn(kernel.clone(), refused_timeouts)),
            net: Box::new(kernel.clone()),
            firewall: Box::new(kernel.clone()),
            conntrack: Box::new(kernel.clone()),
            sysctl: Box::new(kernel.clone()),
        };
        // Nobody receives or sends: `settle` only looks at what it was given.
        let inputs = Inputs {
            events: mpsc::channel(1).1,
            queries: mpsc::channel(1).1,
            addresses: mpsc::channel(1).1,
            stop: watch::channel(false).1,
        };
        let outputs = Outputs {
            metrics: Arc::new(Metrics::new(true)),
            pulse: Arc::default(),
            health_checks: watch::channel(BTreeMap::new()).0,
            record: None,
        };
        let config = ProxyConfig { sync_period: Duration::from_millis(1), ..ProxyConfig::default() };
        let limit = Duration::from_secs(60);
        let reconciler = Reconciler::new(config, "n1", limit, clock::uptime_ms());
        let timeouts = IpvsTimeouts { tcp: Duration::from_secs(900), ..IpvsTimeouts::default() };
        let mut driver = Driver::new(reconciler, planes, inputs, outputs, limit, timeouts);
        PROXY_KINDS.into_iter().for_each(|kind| driver.take(ObjectEvent::RelistDone(kind)));
        driver
    }

    #[test]
    fn timeouts_that_are_refused_stop_nothing_and_are_not_forgotten() {
        let mut driver = driver(&FakeKernel::new(), 3);
        let refused = |driver: &mut Driver| driver.reconciler.problems().iter().any(|p| p.reason == "KernelRefused");
        driver.settle();
        assert!(driver.reconciler.is_ready());
        assert!(refused(&mut driver));
        // Two tries in each full pass.
        std::thread::sleep(Duration::from_millis(5));
        driver.settle();
        assert!(!refused(&mut driver) && driver.timeouts.is_none());
    }

    /// Every pod's veth brings an address.
    #[test]
    fn the_host_s_addresses_are_read_without_looking_at_all_else() {
        let kernel = FakeKernel::new();
        let mut driver = driver(&kernel, 0);
        driver.settle();
        kernel.0.borrow_mut().kernel.net.host_addresses.insert(("eth0".into(), [192, 0, 2, 1].into()));
        // An observation would fail and be counted.
        kernel.0.borrow_mut().broken_observations = 1;
        driver.read_addresses();
        driver.reconciler.poll(0);
        assert_eq!(kernel.0.borrow().broken_observations, 1);
        assert_eq!(driver.reconciler.node().local_addresses().count(), 1);
    }

    /// Somebody who ends the agent does not wait for a whole cluster.
    #[test]
    fn a_loop_that_is_told_to_stop_goes_no_further() {
        let kernel = FakeKernel::new();
        let mut driver = driver(&kernel, 0);
        let (stop, stopped) = watch::channel(true);
        driver.inputs.stop = stopped;
        driver.settle();
        assert_eq!(kernel.0.borrow().seen, 0);
        stop.send_replace(false);
        driver.settle();
        assert!(kernel.0.borrow().seen > 0);
    }

    #[test]
    fn refusals_broken_observations_and_objects_are_counted() {
        let kernel = FakeKernel::new();
        // The first order makes ipsets, tables and chains.
        kernel.0.borrow_mut().faults.insert(0, Fault::Refuse(libc::EBUSY));
        let mut driver = driver(&kernel, 0);
        driver.take(ObjectEvent::Applied(Object::Namespace(Namespace {
            key: ObjectKey::cluster("web"),
            labels: Default::default(),
            isolation: None,
        })));
        driver.settle();
        let text = |driver: &Driver| {
            prometheus::TextEncoder::new().encode_to_string(&driver.outputs.metrics.gather()).unwrap()
        };
        assert!(text(&driver).contains("kube_router_sync_failures_total{plane=\"firewall\"} 1\n"));
        assert!(text(&driver).contains("kube_router_objects{kind=\"Namespace\"} 1\n"));
        kernel.0.borrow_mut().broken_observations = 1;
        std::thread::sleep(Duration::from_millis(1_100));
        driver.settle();
        assert!(text(&driver).contains("kube_router_sync_failures_total{plane=\"ipvs\"} 1\n"));
    }
}
