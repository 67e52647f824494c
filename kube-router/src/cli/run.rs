//! `kube-router [flags]`: wires sources, reconcile loop and servers together, and ends them in order.
//!
//! | thread | runs | must not |
//! |---|---|---|
//! | main | sources and signals | touch the kernel |
//! | reconcile | the one loop with effects | wait for anybody |
//! | observe | health, metrics, status socket | ask the loop without a time limit |
//!
//! SIGTERM and SIGINT end the agent and leave the dataplane as it is.

use std::{collections::BTreeMap, sync::Arc, thread};

use anyhow::{Context, Result, anyhow};
use tokio::{
    runtime::Builder,
    signal::unix::{SignalKind, signal},
    sync::{mpsc, oneshot, watch},
};
use tracing::{info, warn};

use crate::{
    apply::{
        PlaneError, ServerStats,
        conntrack::KernelConntrack,
        firewall::KernelFirewall,
        ipvs::Ipvs,
        net::{NetlinkNet, monitor::AddressMonitor},
        sysctl::ProcSysctl,
    },
    config::Config,
    desired::VirtualKey,
    objects::ObjectEvent,
    observe::{
        Metrics, Pulse, Questions, StatsSource, http,
        server::{Server, Wiring},
        socket,
    },
    reconcile::{
        Reconciler,
        driver::{DriveError, Driver, Inputs, Outputs, Planes},
    },
    sys::clock,
    watch as sources,
    watch::recorded::Recorder,
};

/// Events between a source and the loop. A source waits when it is full; at most some 100 KiB of slim objects.
const EVENTS: usize = 1_024;

impl StatsSource for Ipvs {
    fn server_stats(&mut self) -> Result<BTreeMap<VirtualKey, ServerStats>, PlaneError> {
        Ipvs::server_stats(self)
    }
}

/// Runs the agent until a signal ends it.
///
/// # Errors
/// A start that cannot succeed (address in use, unreadable kubeconfig, no view of the cluster in time).
pub fn run(config: &Config) -> Result<()> {
    let metrics = Arc::new(Metrics::new(config.proxy.enabled));
    let pulse = Arc::new(Pulse::default());
    let (questions, queries) = Questions::channel();
    let (health_checks, health_check_ports) = watch::channel(BTreeMap::new());

    let endpoints = http::bind(&config.http)?;
    let status = socket::bind(&config.socket)?;
    let stats: Option<Box<dyn StatsSource>> = if config.proxy.enabled { Some(Box::new(Ipvs::open()?)) } else { None };
    let wiring =
        Wiring { metrics: metrics.clone(), pulse: pulse.clone(), questions, stats, health_checks: health_check_ports };
    let server = Server::start(endpoints, Some(status), wiring).context("starting the health and metrics server")?;

    let (stop, stopped) = watch::channel(false);
    let (sink, events) = mpsc::channel(EVENTS);
    let outputs = Outputs { metrics, pulse, health_checks, record: None };
    let (ended, end) = oneshot::channel();
    let loop_config = config.clone();
    let worker = thread::Builder::new().name("reconcile".into()).spawn(move || {
        let result = reconcile(&loop_config, events, queries, stopped, outputs);
        // Nobody listens if a signal came first.
        let _ = ended.send(());
        result
    })?;

    let runtime = Builder::new_current_thread().enable_all().build()?;
    let source = runtime.block_on(watch_sources(config, sink, end));
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
) -> Result<()> {
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

/// The reconcile thread. Its planes belong to the network namespace that the process was started in.
fn reconcile(
    config: &Config,
    events: mpsc::Receiver<ObjectEvent>,
    queries: mpsc::Receiver<crate::observe::Query>,
    stop: watch::Receiver<bool>,
    mut outputs: Outputs,
) -> Result<()> {
    // Dropped in a panic, it marks the loop as dead for /healthz.
    let vigil = outputs.pulse.vigil();
    if let Some(path) = &config.record {
        let mut recorder = Recorder::create(path)?;
        outputs.record = Some(Box::new(move |event| recorder.record(event)));
    }
    let planes = Planes {
        ipvs: Box::new(Ipvs::open()?),
        net: Box::new(NetlinkNet::open()?),
        firewall: Box::new(KernelFirewall::open()?),
        conntrack: Box::new(KernelConntrack::open()?),
        sysctl: Box::new(ProcSysctl::new()),
    };
    let reconciler =
        Reconciler::new(config.proxy.clone(), &config.node_name, config.cache_sync_timeout, clock::uptime_ms());
    let runtime = Builder::new_current_thread().enable_all().build()?;
    let result = runtime.block_on(async {
        let (announce, addresses) = mpsc::channel(1);
        tokio::spawn(watch_addresses(announce));
        let inputs = Inputs { events, queries, addresses, stop };
        let timeouts = config.proxy.timeouts;
        Driver::new(reconciler, planes, inputs, outputs, config.cache_sync_timeout, timeouts).run().await
    });
    vigil.end();
    result.map_err(|DriveError::CacheSyncTimeout(_)| super::no_view_in_time(config))
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
