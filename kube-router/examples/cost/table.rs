//! The agent's loop on real planes, in a fresh network namespace for each measurement.

use std::{
    io::Write,
    process::{Command, Stdio},
    sync::Arc,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use kube_router::{
    apply::{IpvsPlane, ipvs::Ipvs},
    config::ProxyConfig,
    objects::ObjectEvent,
    observe::{Metrics, Pulse},
    reconcile::{
        Reconciler,
        driver::{Driver, Inputs, Outputs},
    },
    sys::clock,
};
use serde_json::json;
use tokio::sync::{mpsc, watch};

use crate::{
    cluster,
    planes::{self, Ledger, Spent},
};

/// Changes of one endpoint that are measured; the median is printed.
const CHANGES: u32 = 9;

/// The kernel takes a network namespace apart after its last process is gone, and would do so while the next one is
/// measured. Time of the machine: where idling costs nothing, it passes at once.
const CLEAN_UP: Duration = Duration::from_secs(20);

pub fn run(sizes: &[u32]) -> Result<()> {
    // The first round loads modules and fills the kernel's allocators; it is not printed.
    on_a_thread(|| measure(20, false))?;
    on_a_thread(|| baseline(20))?;
    thread::sleep(CLEAN_UP);
    for services in sizes {
        on_a_thread(|| measure(*services, true))?;
        thread::sleep(CLEAN_UP);
        let theirs = on_a_thread(|| baseline(*services))?;
        println!("{}", json!({"what": "ipvsadm", "services": services, "ns": nanos(theirs)}));
        thread::sleep(CLEAN_UP);
    }
    Ok(())
}

/// A thread of its own, since it leaves the network namespace of the others.
fn on_a_thread<T: Send>(work: impl FnOnce() -> T + Send) -> T {
    std::thread::scope(|scope| scope.spawn(work).join()).unwrap_or_else(|panic| std::panic::resume_unwind(panic))
}

/// `lo` is up, as the kernel refuses every IPv4 destination (EINVAL) while there is no local routing table.
fn fresh_namespace() -> Result<()> {
    nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNET).context("unshare")?;
    ensure!(Command::new("ip").args(["link", "set", "lo", "up"]).status()?.success(), "ip link set lo up");
    let address = format!("{}/32", cluster::NODE_ADDRESS);
    let add = ["address", "add", &address, "dev", "lo"];
    ensure!(Command::new("ip").args(add).status()?.success(), "ip address add");
    Ok(())
}

fn nanos(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

/// The loop of an agent, with the ends of its channels.
struct Agent {
    driver: Driver,
    ledger: Ledger,
    _ends: (mpsc::Sender<ObjectEvent>, watch::Receiver<std::collections::BTreeMap<u16, usize>>),
}

impl Agent {
    fn start() -> Result<Agent> {
        let (planes, ledger) = planes::open()?;
        let config = ProxyConfig { masquerade_outside_pod_cidrs: false, ..ProxyConfig::default() };
        let patience = Duration::from_secs(60);
        let reconciler = Reconciler::new(config, cluster::NODE, patience, clock::uptime_ms());
        let (sink, events) = mpsc::channel(1);
        let (health_checks, ports) = watch::channel(Default::default());
        let inputs = Inputs {
            events,
            queries: mpsc::channel(1).1,
            addresses: mpsc::channel(1).1,
            stop: watch::channel(false).1,
            links: mpsc::channel(1).1,
            asks: mpsc::channel(1).1,
            policy_queries: mpsc::channel(1).1,
            records: None,
            sweeps: mpsc::channel(1).1,
        };
        let outputs = Outputs {
            metrics: Arc::new(Metrics::new(true)),
            pulse: Arc::new(Pulse::default()),
            health_checks,
            problems: watch::channel(0).0,
            record: None,
            monitor: Default::default(),
            sweeping: watch::channel(Default::default()).0,
        };
        let driver = Driver::new(reconciler, planes, inputs, outputs, patience, Default::default());
        Ok(Agent { driver, ledger, _ends: (sink, ports) })
    }

    /// Takes events in and carries out what follows; returns how long that took, and each plane's part of it.
    fn take(&mut self, events: impl Iterator<Item = ObjectEvent>) -> (Duration, Vec<(&'static str, Spent)>) {
        self.ledger.borrow_mut().clear();
        let mut total = Duration::ZERO;
        for event in events {
            let begin = Instant::now();
            self.driver.take(event);
            total += begin.elapsed();
        }
        let begin = Instant::now();
        self.driver.settle();
        total += begin.elapsed();
        (total, self.ledger.borrow().iter().map(|(name, spent)| (*name, *spent)).collect())
    }
}

fn print(what: &str, services: u32, total: Duration, planes: &[(&'static str, Spent)]) {
    let planes: serde_json::Map<String, serde_json::Value> = planes
        .iter()
        .map(|(name, spent)| {
            let (apply, observe) = (nanos(spent.apply), nanos(spent.observe));
            ((*name).to_owned(), json!({"apply_ns": apply, "observe_ns": observe, "orders": spent.orders}))
        })
        .collect();
    println!("{}", json!({"what": what, "services": services, "ns": nanos(total), "planes": planes}));
}

fn orders(planes: &[(&'static str, Spent)]) -> usize {
    planes.iter().map(|(_, spent)| spent.orders).sum()
}

fn measure(services: u32, show: bool) -> Result<()> {
    fresh_namespace()?;
    let mut agent = Agent::start()?;
    let show = |what: &str, total, planes: &[_]| {
        if show {
            print(what, services, total, planes);
        }
    };
    let (total, planes) = agent.take(cluster::events(services));
    let refused: usize = planes.iter().map(|(_, spent)| spent.refused).sum();
    ensure!(refused == 0, "{refused} orders were refused");
    let observed = Ipvs::open()?.observe()?;
    let objects: usize = observed.servers.values().map(|server| 1 + server.destinations.len()).sum();
    let wanted = (services * (1 + cluster::ENDPOINTS)) as usize;
    ensure!(objects == wanted, "{objects} servers and destinations of {wanted} are there");
    show("cold", total, &planes);

    // One endpoint of a service in the middle goes and comes.
    let mut changes = Vec::new();
    for change in 0..2 * CHANGES {
        let endpoints = cluster::ENDPOINTS - 1 + change % 2;
        changes.push(agent.take(std::iter::once(cluster::slice(services / 2, endpoints))));
    }
    ensure!(changes.iter().all(|(_, planes)| orders(planes) == 1), "a change of one endpoint is one order");
    changes.sort_by_key(|(total, _)| *total);
    let (total, planes) = &changes[CHANGES as usize];
    show("change", *total, planes);

    // A new agent finds everything as it wants it.
    let mut agent = Agent::start()?;
    let (total, planes) = agent.take(cluster::events(services));
    ensure!(orders(&planes) == 0, "{} orders after a restart", orders(&planes));
    show("restart", total, &planes);
    Ok(())
}

/// How long `ipvsadm --restore` takes for the same table.
fn baseline(services: u32) -> Result<Duration> {
    fresh_namespace()?;
    let mut file = tempfile::tempfile()?;
    file.write_all(cluster::as_ipvsadm(services).as_bytes())?;
    std::io::Seek::rewind(&mut file)?;
    let begin = Instant::now();
    let status = Command::new("ipvsadm").arg("--restore").stdin(file).status()?;
    let took = begin.elapsed();
    ensure!(status.success(), "ipvsadm --restore failed");
    let saved = Command::new("ipvsadm").arg("-Sn").stderr(Stdio::inherit()).output()?;
    let lines = saved.stdout.iter().filter(|byte| **byte == b'\n').count();
    let wanted = (services * (1 + cluster::ENDPOINTS)) as usize;
    ensure!(lines == wanted, "{lines} lines of {wanted} are there");
    Ok(took)
}
