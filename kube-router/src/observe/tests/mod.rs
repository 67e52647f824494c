//! The servers as a client sees them: real sockets, with curl and raw TCP as the clients nobody here wrote.

mod health;
mod monitor;
mod scrape;
mod socket;

use std::{
    collections::BTreeMap,
    net::SocketAddr,
    path::PathBuf,
    process::Command,
    sync::Arc,
    thread::sleep,
    time::{Duration, Instant},
};

use tokio::sync::{mpsc, watch};

use kube_router_common::{
    Traffic,
    config::{DropKey, RuleCount},
};

use super::{
    Metrics, PathStats, Pulse, Query, Questions, ServiceRow, StatsSource, http,
    server::{Server, Wiring},
    socket as status_socket,
    table::tests::row,
    traffic::tests::key,
};
use crate::{
    apply::{PlaneError, ServerStats},
    compile::{Problem, Subject},
    config::HttpConfig,
    desired::VirtualKey,
    objects::{Kind, ObjectKey},
};

/// A kernel that counts, refuses, or makes its reader panic.
enum Stats {
    Counts,
    Fails,
    Panics,
}

impl StatsSource for Stats {
    fn server_stats(&mut self) -> Result<BTreeMap<VirtualKey, PathStats>, PlaneError> {
        match self {
            Stats::Counts => {}
            Stats::Fails => {
                return Err(PlaneError::Io { what: "read".into(), source: std::io::ErrorKind::Other.into() });
            }
            Stats::Panics => panic!("on purpose"),
        }
        let ipvs = ServerStats { connections: 42, ..ServerStats::default() };
        let stats = PathStats { ipvs, ..PathStats::default() };
        Ok(BTreeMap::from([(key("10.96.1.1", 80), stats), (key("192.0.2.1", 25), stats)]))
    }
}

/// One row of everything.
struct Rows;

impl super::scrape::PolicySource for Rows {
    fn read(&mut self) -> Result<super::policy_metrics::PolicyRows, String> {
        let drop = DropKey { pod: 1, direction: 0, reason: 1, pad: 0 };
        Ok(super::policy_metrics::PolicyRows {
            drops: vec![(drop, Traffic { packets: 2, bytes: 120 })],
            rules: vec![(3, RuleCount { flows: 4, bytes: 300 })],
            tables: vec![("kr_flows", 5, 262_144)],
        })
    }
}

struct Agent {
    pulse: Arc<Pulse>,
    metrics: Arc<Metrics>,
    queries: Option<mpsc::Receiver<Query>>,
    ports: watch::Sender<BTreeMap<u16, usize>>,
    health: SocketAddr,
    metrics_at: SocketAddr,
    directory: tempfile::TempDir,
    _server: Server,
}

impl Agent {
    /// Health and metrics on two addresses, the status socket, and a loop that does not answer (yet).
    fn start(stats: Stats) -> Agent {
        Agent::start_with(stats, |questions| questions)
    }

    fn start_with(stats: Stats, more: impl FnOnce(Questions) -> Questions) -> Agent {
        let directory = tempfile::tempdir().unwrap();
        let local = Some("127.0.0.1:0".parse().unwrap());
        let config = HttpConfig { health: local, metrics: None, metrics_path: String::new() };
        let mut endpoints = http::bind(&config).unwrap();
        let config = HttpConfig { health: None, metrics: local, metrics_path: "/metrics".into() };
        endpoints.extend(http::bind(&config).unwrap());
        let address = |endpoint: &http::Endpoint| endpoint.listener.local_addr().unwrap();
        let (health, metrics_at) = (address(&endpoints[0]), address(&endpoints[1]));
        let socket = status_socket::bind(&directory.path().join("run/agent.sock")).unwrap();
        let (questions, queries) = Questions::channel();
        let (ports, health_checks) = watch::channel(BTreeMap::new());
        let (pulse, metrics) = (Arc::new(Pulse::default()), Arc::new(Metrics::of(true, true)));
        let wiring = Wiring {
            metrics: Arc::clone(&metrics),
            pulse: Arc::clone(&pulse),
            questions: more(questions),
            policy: Some(Box::new(Rows)),
            stats: Some(Box::new(stats)),
            health_checks,
        };
        let server = Server::start(endpoints, Some(socket), wiring).unwrap();
        Agent { pulse, metrics, queries: Some(queries), ports, health, metrics_at, directory, _server: server }
    }

    /// From now on the loop answers.
    fn answer(&mut self, rows: Vec<ServiceRow>) {
        let mut queries = self.queries.take().unwrap();
        std::thread::spawn(move || {
            while let Some(query) = queries.blocking_recv() {
                match query {
                    Query::Services(sender) => drop(sender.send(rows.clone())),
                    Query::Owners(sender) => {
                        let owner = |row: &ServiceRow| {
                            let key = VirtualKey { address: row.address, protocol: row.protocol, port: row.port };
                            (key, row.service.clone())
                        };
                        drop(sender.send(rows.iter().map(owner).collect()));
                    }
                    Query::Problems(sender) => {
                        let subject = Subject::Object(Kind::Node, ObjectKey::cluster("n"));
                        drop(sender.send(vec![Problem { subject, reason: "R", text: "t".into() }]));
                    }
                }
            }
        });
    }

    fn socket(&self) -> PathBuf {
        self.directory.path().join("run/agent.sock")
    }
}

/// Status, content type and body as curl gets them.
fn curl(arguments: &[&str]) -> (u16, String, String) {
    let output = Command::new("curl")
        .args([
            "--silent",
            "--show-error",
            "--max-time",
            "20",
            "--noproxy",
            "*",
            "-w",
            "\n%{http_code} %{content_type}",
        ])
        .args(arguments)
        .output()
        .unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    let (body, status) = text.rsplit_once('\n').unwrap();
    let (code, content_type) = status.split_once(' ').unwrap();
    (code.parse().unwrap(), content_type.into(), body.into())
}

fn get(address: SocketAddr, path: &str) -> (u16, String, String) {
    curl(&[&format!("http://{address}{path}")])
}

fn until<T: PartialEq + std::fmt::Debug>(wanted: T, mut probe: impl FnMut() -> T) {
    let deadline = Instant::now() + Duration::from_secs(5);
    loop {
        let seen = probe();
        if seen == wanted {
            return;
        }
        assert!(Instant::now() < deadline, "still {seen:?}, not {wanted:?}");
        sleep(Duration::from_millis(10));
    }
}
