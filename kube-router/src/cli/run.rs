//! `kube-router [flags]`: wires sources, reconcile loop and servers together, and ends them in order.
//!
//! | thread | runs | must not |
//! |---|---|---|
//! | main | sources and signals | touch the kernel |
//! | reconcile | the one loop with effects | wait for anybody |
//! | observe | health, metrics, status socket | ask the loop without a time limit |
//!
//! SIGTERM and SIGINT end the agent and leave the dataplane as it is.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    sync::Arc,
    thread,
};

use anyhow::{Context, Result, anyhow};
use kube_router_common::{balance::VipCount, schedule};
use tokio::{
    io::unix::AsyncFd,
    runtime::Builder,
    signal::unix::{SignalKind, signal},
    sync::{mpsc, oneshot, watch},
};
use tracing::{info, warn};

use super::programs::{self, Programs};
use crate::{
    apply::{
        PlaneError,
        bpf::{self, BalanceMaps, BpfError, Tables},
        conntrack::KernelConntrack,
        firewall::KernelFirewall,
        ipvs::Ipvs,
        net::{NetlinkNet, monitor::AddressMonitor, pod_links::PodLinkMonitor},
        sysctl::ProcSysctl,
    },
    cni::server::{self, CniServer},
    compile::balance::{FastPath, Why},
    config::{Config, Fastpath, Source},
    desired::VirtualKey,
    objects::ObjectEvent,
    observe::{
        BothPaths, FastSource, Metrics, PathStats, PolicyQuery, PolicyQuestions, Pulse, Query, Questions, StatsSource,
        events::{self, Events},
        http,
        policy_metrics::PolicyRows,
        scrape::PolicySource,
        server::{Server, Wiring},
        socket,
    },
    reconcile::{
        Reconciler,
        balance::server_of,
        driver::{DriveError, Driver, Inputs, Outputs, Planes},
    },
    sys::{clock, kernel_config},
    watch as sources,
    watch::recorded::Recorder,
};

/// Events between a source and the loop. A source waits when it is full; at most some 100 KiB of slim objects.
const EVENTS: usize = 1_024;

impl StatsSource for Ipvs {
    fn server_stats(&mut self) -> Result<BTreeMap<VirtualKey, PathStats>, PlaneError> {
        let stats = Ipvs::server_stats(self)?;
        Ok(stats.into_iter().map(|(key, ipvs)| (key, PathStats { ipvs, ..PathStats::default() })).collect())
    }
}

/// Runs the agent until a signal ends it.
///
/// # Errors
/// A start that cannot succeed (address in use, unreadable kubeconfig, no view of the cluster in time).
pub fn run(config: &Config) -> Result<()> {
    let metrics = Arc::new(Metrics::of(config.proxy.enabled, config.firewall.enabled));
    let pulse = Arc::new(Pulse::default());
    let (mut questions, queries) = Questions::channel();
    let (policy, policy_queries) = PolicyQuestions::channel();
    let monitor = policy.monitor().clone();
    if config.firewall.enabled {
        questions = questions.with_policy(policy);
    }
    let (health_checks, health_check_ports) = watch::channel(BTreeMap::new());

    let endpoints = http::bind(&config.http)?;
    let status = socket::bind(&config.socket)?;
    let stats: Option<Box<dyn StatsSource>> = match config.proxy.enabled {
        true => Some(Box::new(BothPaths::new(
            Box::new(Ipvs::open()?),
            Box::new(PinnedCounts(config.programs.pins.clone())),
        ))),
        false => None,
    };
    let policy_source: Option<Box<dyn PolicySource>> = match config.firewall.enabled {
        true => Some(Box::new(PinnedRows { pins: config.programs.pins.clone(), tables: None })),
        false => None,
    };
    let (problems, problem_changes) = watch::channel(0);
    let told = events_of(config).map(|events| events::run(events, questions.clone(), problem_changes));
    let wiring = Wiring {
        metrics: metrics.clone(),
        pulse: pulse.clone(),
        questions,
        stats,
        policy: policy_source,
        health_checks: health_check_ports,
    };
    let server = Server::start(endpoints, Some(status), wiring).context("starting the health and metrics server")?;

    let (stop, stopped) = watch::channel(false);
    let (sink, events) = mpsc::channel(EVENTS);
    let sweeping = watch::channel(Default::default()).0;
    let outputs = Outputs { metrics, pulse, health_checks, problems, record: None, monitor, sweeping };
    let (ended, end) = oneshot::channel();
    let loop_config = config.clone();
    let worker = thread::Builder::new().name("reconcile".into()).spawn(move || {
        let result = reconcile(&loop_config, events, (queries, policy_queries), stopped, outputs);
        // Nobody listens if a signal came first.
        let _ = ended.send(());
        result
    })?;

    let runtime = Builder::new_current_thread().enable_all().build()?;
    let source = runtime.block_on(watch_sources(config, sink, end, told));
    // The order of the end: no more news, then the loop, then what shows it.
    stop.send_replace(true);
    let worked = worker.join().map_err(|_| anyhow!("the reconcile loop ended in a panic; see the message above"))?;
    drop(runtime);
    drop(server);
    worked.and(source)
}

/// Feeds the loop until a signal comes, the loop ends, or the source cannot work at all.
async fn watch_sources(
    config: &Config,
    sink: mpsc::Sender<ObjectEvent>,
    loop_ended: oneshot::Receiver<()>,
    told: Option<impl Future<Output = ()> + Send + 'static>,
) -> Result<()> {
    if let Some(told) = told {
        tokio::spawn(told);
    }
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    tokio::select! {
        result = sources::run(&config.source, sink) => result.context("failed to parse kube-router config")?,
        _ = terminate.recv() => info!(signal = "SIGTERM", "ending; the dataplane stays as it is"),
        _ = interrupt.recv() => info!(signal = "SIGINT", "ending; the dataplane stays as it is"),
        _ = loop_ended => {}
    }
    Ok(())
}

/// Where standing problems are told as Kubernetes Events: in the API server that the objects come from.
fn events_of(config: &Config) -> Option<Events> {
    let Source::Kubernetes { kubeconfig, master } = &config.source else { return None };
    Some(Events { kubeconfig: kubeconfig.clone(), master: master.clone(), node: config.node_name.to_string() })
}

/// The reconcile thread. Its planes belong to the network namespace that the process was started in.
fn reconcile(
    config: &Config,
    events: mpsc::Receiver<ObjectEvent>,
    (queries, policy_queries): (mpsc::Receiver<Query>, mpsc::Receiver<PolicyQuery>),
    stop: watch::Receiver<bool>,
    mut outputs: Outputs,
) -> Result<()> {
    // Dropped in a panic, it marks the loop as dead for /healthz.
    let vigil = outputs.pulse.vigil();
    if let Some(path) = &config.record {
        let mut recorder = Recorder::create(path)?;
        outputs.record = Some(Box::new(move |event| recorder.record(event)));
    }
    let (tell, sweeps) = mpsc::channel(1);
    // Why there are no programs is said in terms of what was asked for.
    let hint = match config.firewall.enabled {
        true => "network policy cannot be enforced (--run-firewall=false starts without it)",
        false => "the service fast path cannot be had (without --service-fastpath=on the agent starts without it)",
    };
    let programs = programs::load(&config.programs, tell, outputs.sweeping.subscribe()).context(hint)?;
    let mut switches = config.programs.clone();
    if !programs.outlive_the_container() {
        switches.fastpath = Fastpath::Off;
    }
    let Programs { plane, records, sweeper, retirement, problem } = programs;
    let has_programs = plane.is_some();
    let planes = Planes {
        ipvs: Box::new(Ipvs::open()?),
        net: Box::new(NetlinkNet::open()?),
        firewall: Box::new(KernelFirewall::open()?),
        conntrack: Box::new(KernelConntrack::open()?),
        sysctl: Box::new(ProcSysctl::new()),
        policy: plane,
    };
    let mut reconciler =
        Reconciler::new(config.proxy.clone(), &config.node_name, config.cache_sync_timeout, clock::uptime_ms());
    if has_programs {
        reconciler = reconciler.with_programs(&switches, config.firewall.clone()).with_fast_path(FastPath {
            off: match switches.fastpath {
                _ if problem.is_some() => Some(Why::Passing),
                Fastpath::Off => Some(Why::Off),
                _ if config.proxy.masquerade_all => Some(Why::Masqueraded),
                _ => None,
            },
            tables: scheduler_tables(),
        });
    }
    reconciler.report_start(problem);
    let (asker, asks) = server::channel();
    let plugins = match &config.firewall.cni_socket {
        Some(path) => Some(CniServer::start(path, asker)?),
        None => None,
    };
    let runtime = Builder::new_current_thread().enable_all().build()?;
    let result = runtime.block_on(async {
        let (announce, addresses) = mpsc::channel(1);
        tokio::spawn(watch_addresses(announce));
        let (announce, links) = mpsc::channel(1);
        if has_programs {
            tokio::spawn(watch_links(announce));
        }
        #[expect(deprecated, reason = "its successor is an unsafe fn; a ring buffer owns one descriptor for life")]
        let records = records.map(AsyncFd::new).transpose();
        let records = records.unwrap_or_else(|error| {
            warn!(%error, "kube-router monitor shows nothing");
            None
        });
        let inputs = Inputs { events, queries, addresses, links, asks, policy_queries, records, sweeps, stop };
        let timeouts = config.proxy.timeouts;
        Driver::new(reconciler, planes, inputs, outputs, config.cache_sync_timeout, timeouts).run().await
    });
    drop(plugins);
    drop((sweeper, retirement));
    vigil.end();
    result.map_err(|DriveError::CacheSyncTimeout(_)| super::no_view_in_time(config))
}

/// Of the running kernel. In a container its configuration may not be in sight, unless it is in /proc.
fn scheduler_tables() -> Option<schedule::Tables> {
    let uname = nix::sys::utsname::uname().ok()?;
    let tables = kernel_config::ipvs_tables(Path::new("/"), &uname.release().to_string_lossy());
    if tables.is_none() {
        info!("the kernel's configuration cannot be read: services with sh, dh and mh stay on IPVS");
    }
    tables
}

/// Says when the host's addresses change. Without it the periodic pass still notices.
async fn watch_addresses(announce: mpsc::Sender<()>) {
    let mut monitor = match AddressMonitor::open() {
        Ok(monitor) => monitor,
        Err(error) => return warn!(%error, "changes of the host's addresses are noticed only by the periodic pass"),
    };
    loop {
        if let Err(error) = monitor.changed().await {
            return warn!(%error, "changes of the host's addresses are noticed only by the periodic pass");
        }
        // One announcement waits at most: it covers all changes before it is taken.
        match announce.try_send(()) {
            Ok(()) | Err(mpsc::error::TrySendError::Full(())) => {}
            Err(mpsc::error::TrySendError::Closed(())) => return,
        }
    }
}

/// What the programs of the fast path count, read from the pinned tables of this agent or of an earlier one.
struct PinnedCounts(PathBuf);

impl FastSource for PinnedCounts {
    fn counts(&mut self) -> Result<BTreeMap<VirtualKey, VipCount>, PlaneError> {
        let failed = |source: BpfError| PlaneError::Io {
            what: "counts of the service fast path".into(),
            source: std::io::Error::other(source),
        };
        let maps = match BalanceMaps::open(&bpf::root(&self.0)) {
            Ok(maps) => maps,
            Err(error) if error.is_missing() => return Ok(BTreeMap::new()),
            Err(error) => return Err(failed(error)),
        };
        let counts = maps.counts().map_err(failed)?;
        Ok(counts.into_iter().filter_map(|(key, count)| Some((server_of(&key)?, count))).collect())
    }
}

/// The pinned tables, opened when they are first asked for: the loop makes them.
struct PinnedRows {
    pins: PathBuf,
    tables: Option<Tables>,
}

impl PolicySource for PinnedRows {
    fn read(&mut self) -> Result<PolicyRows, String> {
        let tables = match self.tables.take() {
            Some(tables) => tables,
            None => Tables::open(&bpf::root(&self.pins)).map_err(|error| error.to_string())?,
        };
        let rows = PolicyRows::read(&tables).map_err(|error| error.to_string());
        self.tables = Some(tables);
        rows
    }
}

/// Says when links of pods or their addresses change. Without it the periodic pass still notices.
async fn watch_links(announce: mpsc::Sender<()>) {
    let failed = |error| warn!(%error, "new pods are noticed only by the periodic pass");
    let mut monitor = match PodLinkMonitor::open() {
        Ok(monitor) => monitor,
        Err(error) => return failed(error),
    };
    loop {
        if let Err(error) = monitor.changed().await {
            return failed(error);
        }
        match announce.try_send(()) {
            Ok(()) | Err(mpsc::error::TrySendError::Full(())) => {}
            Err(mpsc::error::TrySendError::Closed(())) => return,
        }
    }
}
