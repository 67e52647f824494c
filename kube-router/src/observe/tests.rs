//! The servers as a client sees them: real sockets, with curl and raw TCP as the clients nobody here wrote.

use std::{
    collections::{BTreeMap, BTreeSet},
    io::{Read, Write},
    net::{SocketAddr, TcpListener, TcpStream},
    path::Path,
    process::Command,
    sync::{Arc, atomic::Ordering::Relaxed},
    thread::sleep,
    time::{Duration, Instant},
};

use tokio::sync::{mpsc, watch};

use super::{
    Metrics, Pulse, Query, Questions, ServiceRow, StatsSource,
    http::{self, BindError},
    server::{Server, Wiring},
    socket::{self, SocketError},
    traffic::tests::{key, row},
};
use crate::{
    apply::{PlaneError, ServerStats},
    cli::dump,
    config::HttpConfig,
    desired::VirtualKey,
    objects::Kind,
};

/// The original's series with only the proxy running, as `name type`, without those of the Go runtime.
const ORIGINAL: &str = include_str!("testdata/original-proxy-only.txt");

struct Stats(bool);

impl StatsSource for Stats {
    fn server_stats(&mut self) -> Result<BTreeMap<VirtualKey, ServerStats>, PlaneError> {
        if !self.0 {
            return Err(PlaneError::Io { what: "read".into(), source: std::io::ErrorKind::Other.into() });
        }
        let stats = ServerStats { connections: 42, ..ServerStats::default() };
        Ok(BTreeMap::from([(key("10.96.1.1", 80), stats), (key("192.0.2.1", 25), stats)]))
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
        let directory = tempfile::tempdir().unwrap();
        let local = Some("127.0.0.1:0".parse().unwrap());
        let config = HttpConfig { health: local, metrics: None, metrics_path: String::new() };
        let mut endpoints = http::bind(&config).unwrap();
        let config = HttpConfig { health: None, metrics: local, metrics_path: "/metrics".into() };
        endpoints.extend(http::bind(&config).unwrap());
        let address = |endpoint: &http::Endpoint| endpoint.listener.local_addr().unwrap();
        let (health, metrics_at) = (address(&endpoints[0]), address(&endpoints[1]));
        let socket = socket::bind(&directory.path().join("run/agent.sock")).unwrap();
        let (questions, queries) = Questions::channel();
        let (ports, health_checks) = watch::channel(BTreeMap::new());
        let (pulse, metrics) = (Arc::new(Pulse::default()), Arc::new(Metrics::new(true)));
        let wiring = Wiring {
            metrics: Arc::clone(&metrics),
            pulse: Arc::clone(&pulse),
            questions,
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
                    Query::Problems(sender) => drop(sender.send(vec![("Node n".into(), "R".into(), "t".into())])),
                }
            }
        });
    }

    fn socket(&self) -> std::path::PathBuf {
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

#[test]
fn health_is_the_loops_pulse_and_nothing_else() {
    let agent = Agent::start(Stats(true));
    let plain = "text/plain; charset=utf-8".to_string();
    let healthy = (200, plain.clone(), "OK\n".to_string());
    // Before any sync, without an answering loop, by any method.
    assert_eq!(get(agent.health, "/healthz"), healthy);
    assert_eq!(curl(&["-X", "POST", "-d", "x", &format!("http://{}/healthz?verbose", agent.health)]), healthy);
    assert_eq!(get(agent.health, "/").0, 404);
    assert_eq!(get(agent.health, "/metrics").0, 404);
    assert_eq!(get(agent.metrics_at, "/healthz").0, 404);
    agent.pulse.dead.store(true, Relaxed);
    assert_eq!(get(agent.health, "/healthz"), (500, plain, "Unhealthy".into()));
}

#[test]
fn readiness_names_what_is_missing() {
    let agent = Agent::start(Stats(true));
    agent.pulse.watch(Kind::Service);
    let answer = get(agent.health, "/readyz");
    assert_eq!((answer.0, answer.2.as_str()), (503, "waiting for the first full list of Service\n"));
    agent.pulse.set_complete(Kind::Service, true);
    assert_eq!(get(agent.health, "/readyz").2, "the first full sync is not through yet\n");
    agent.pulse.set_ready();
    assert_eq!(get(agent.health, "/readyz").0, 200);
}

#[test]
fn a_flood_of_silent_connections_does_not_shut_out_the_probe() {
    let agent = Agent::start(Stats(true));
    let silent: Vec<_> = (0..3 * http::PLACES).map(|_| TcpStream::connect(agent.health).unwrap()).collect();
    let start = Instant::now();
    assert_eq!(get(agent.health, "/healthz").0, 200);
    assert!(start.elapsed() < Duration::from_secs(2));
    // The first came first and went first.
    silent[0].set_read_timeout(Some(Duration::from_secs(2))).unwrap();
    assert!(matches!((&silent[0]).read(&mut [0]), Ok(0) | Err(_)));
    let newest = silent.last().unwrap();
    (&*newest).write_all(b"GET /healthz HTTP/1.0\r\n\r\n").unwrap();
    let mut text = String::new();
    (&*newest).read_to_string(&mut text).unwrap();
    assert!(text.starts_with("HTTP/1.0 200 OK"), "{text}");
}

/// (name, type, label names) of every family in a scrape.
fn families(text: &str) -> BTreeSet<(String, String, BTreeSet<String>)> {
    let mut families: BTreeMap<&str, (&str, BTreeSet<String>)> = BTreeMap::new();
    let mut current = "";
    for line in text.lines() {
        if let Some((name, kind)) = line.strip_prefix("# TYPE ").and_then(|rest| rest.split_once(' ')) {
            current = name;
            assert!(families.insert(name, (kind, BTreeSet::new())).is_none(), "{name} twice");
        } else if let Some((_, labels)) = line.split_once('{').filter(|_| !line.starts_with('#')) {
            let labels = labels.split("\",").filter_map(|label| Some(label.split_once('=')?.0.to_string()));
            families.get_mut(current).unwrap().1.extend(labels.filter(|label| label != "le"));
        }
    }
    families.into_iter().map(|(name, (kind, labels))| (name.into(), kind.into(), labels)).collect()
}

#[test]
fn a_scrape_has_the_originals_names_and_the_documented_ones_and_no_others() {
    let mut agent = Agent::start(Stats(true));
    agent.answer(vec![row("plain", "10.96.1.1", 80)]);
    agent.pulse.watch(Kind::Service);
    agent.metrics.set_problems(["BadIP"]);
    agent.metrics.set_objects(Kind::Service, 1);
    let (status, content_type, text) = get(agent.metrics_at, "/metrics");
    assert_eq!((status, content_type.as_str()), (200, "text/plain; version=0.0.4; charset=utf-8"));
    let families = families(&text);

    let ours: BTreeSet<String> = families.iter().map(|(name, kind, _)| format!("{name} {kind}")).collect();
    for original in ORIGINAL.lines() {
        assert!(ours.contains(original), "missing: {original}");
    }
    let documented: BTreeSet<_> = documented().into_iter().collect();
    assert_eq!(documented, families);
    assert!(text.contains(
        "\nkube_router_service_total_connections{port=\"80\",protocol=\"tcp\",service_name=\"plain\",\
         service_vip=\"10.96.1.1\",svc_namespace=\"web\"} 42\n"
    ));
    assert!(text.contains("\nkube_router_controller_ipvs_services 2\n"));
    assert!(text.contains("\nkube_router_watch_complete{kind=\"Service\"} 0\n"));
    assert!(!text.contains("192.0.2.1"));
    // The next scrape has seen this one.
    let (_, _, text) = get(agent.metrics_at, "/metrics");
    assert!(text.contains("\npromhttp_metric_handler_requests_total{code=\"200\"} 1\n"));
    assert!(text.contains("\nkube_router_controller_ipvs_metrics_export_time_count 2\n"));
}

/// The tables of docs/metrics.md: | `name` | type | `label`, `label` | meaning |
fn documented() -> Vec<(String, String, BTreeSet<String>)> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/metrics.md");
    let text = std::fs::read_to_string(path).unwrap();
    let cells = |line: &str| line.split('|').map(|cell| cell.replace('`', "").trim().to_string()).collect::<Vec<_>>();
    let rows = text.lines().filter(|line| line.starts_with("| `")).map(cells);
    rows.map(|row| {
        let labels = row[3].split(", ").filter(|label| !label.is_empty()).map(String::from).collect();
        (row[1].clone(), row[2].clone(), labels)
    })
    .collect()
}

#[test]
fn a_scrape_goes_without_what_it_cannot_get() {
    // The loop does not answer: two seconds, then the rest; and health is not delayed meanwhile.
    let agent = Agent::start(Stats(true));
    let at = agent.metrics_at;
    let scrape = std::thread::spawn(move || (Instant::now(), get(at, "/metrics")));
    sleep(Duration::from_millis(300));
    let start = Instant::now();
    assert_eq!(get(agent.health, "/healthz").0, 200);
    assert!(start.elapsed() < Duration::from_secs(1));
    let (start, (status, _, text)) = scrape.join().unwrap();
    assert_eq!(status, 200);
    assert!((Duration::from_millis(1900)..Duration::from_secs(5)).contains(&start.elapsed()));
    assert!(text.contains("\nkube_router_scrape_failures_total{part=\"services\"} 1\n"));
    assert!(text.contains("\nprocess_open_fds ") && !text.contains("kube_router_service_"));

    // The kernel cannot be read.
    let mut agent = Agent::start(Stats(false));
    agent.answer(vec![row("plain", "10.96.1.1", 80)]);
    let (status, _, text) = get(agent.metrics_at, "/metrics");
    assert_eq!(status, 200);
    assert!(text.contains("\nkube_router_scrape_failures_total{part=\"kernel\"} 1\n"));
    assert!(!text.contains("kube_router_controller_ipvs_services "));
}

#[test]
fn addresses_are_bound_at_once_and_may_be_shared() {
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap();
    let mut config = HttpConfig { health: Some(address), metrics: None, metrics_path: "/metrics".into() };
    let error = http::bind(&config).unwrap_err();
    assert!(matches!(error, BindError::Address { .. }));
    assert!(error.to_string().starts_with(&format!("--health-addr, --health-port: cannot listen on {address}: ")));
    config = HttpConfig { health: None, metrics: Some(address), ..config };
    assert!(http::bind(&config).unwrap_err().to_string().starts_with("--metrics-addr, --metrics-port"));
    config = HttpConfig { health: Some(address), metrics: Some(address), metrics_path: "healthz".into() };
    assert!(matches!(http::bind(&config), Err(BindError::Path { .. })));

    // One address for both, with a path that no router pattern could hold.
    drop(taken);
    config.metrics_path = "/{m}".into();
    let endpoints = http::bind(&config).unwrap();
    assert_eq!(endpoints.len(), 1);
    let (questions, _) = Questions::channel();
    let (_ports, health_checks) = watch::channel(BTreeMap::new());
    let (pulse, metrics) = (Arc::default(), Arc::new(Metrics::new(false)));
    let wiring = Wiring { metrics, pulse, questions, stats: None, health_checks };
    let server = Server::start(endpoints, None, wiring).unwrap();
    assert_eq!(get(address, "/healthz").0, 200);
    let (status, _, text) = curl(&["-g", &format!("http://{address}/{{m}}")]);
    assert_eq!(status, 200);
    // No proxy: nothing of it, and no wait for anybody.
    assert!(text.contains("kube_router_build_info{") && !text.contains("ipvs_services"));
    drop(server);
    assert!(TcpStream::connect(address).is_err());
}

/// A port that is free on all addresses now.
fn free_port() -> u16 {
    TcpListener::bind("[::]:0").unwrap().local_addr().unwrap().port()
}

#[test]
fn health_check_ports_follow_what_is_wanted() {
    let agent = Agent::start(Stats(true));
    let port = free_port();
    let taken = TcpListener::bind("[::]:0").unwrap();
    let taken_port = taken.local_addr().unwrap().port();
    agent.ports.send_replace(BTreeMap::from([(port, 3), (taken_port, 1)]));
    let v4: SocketAddr = format!("127.0.0.1:{port}").parse().unwrap();
    let v6: SocketAddr = format!("[::1]:{port}").parse().unwrap();
    until(true, || TcpStream::connect(v4).is_ok());
    let plain = "text/plain; charset=utf-8".to_string();
    for address in [v4, v6] {
        assert_eq!(get(address, "/healthz"), (200, plain.clone(), "3 Service Endpoints found\n".into()));
        assert_eq!(get(address, "/").0, 404);
    }
    // An update without a restart of the listener; and the port that was taken is had at the next change.
    drop(taken);
    agent.ports.send_replace(BTreeMap::from([(port, 0), (taken_port, 1)]));
    until((503, plain.clone(), "No Service Endpoints Found\n".into()), || get(v4, "/healthz"));
    let other: SocketAddr = format!("127.0.0.1:{taken_port}").parse().unwrap();
    until((200, plain, "1 Service Endpoints found\n".into()), || get(other, "/healthz"));
    agent.ports.send_replace(BTreeMap::new());
    until(false, || TcpStream::connect(v6).is_ok());
}

#[test]
fn dump_shows_what_the_loop_answers() {
    let mut agent = Agent::start(Stats(true));
    let rows = vec![row("plain", "10.96.1.1", 80)];
    agent.answer(rows.clone());
    let mut text = Vec::new();
    dump::services(&agent.socket(), dump::Format::Text, &mut text).unwrap();
    assert_eq!(String::from_utf8(text).unwrap(), super::table::services(&rows));
    let mut json = Vec::new();
    dump::services(&agent.socket(), dump::Format::Json, &mut json).unwrap();
    assert_eq!(serde_json::from_slice::<Vec<ServiceRow>>(&json).unwrap(), rows);

    let socket = agent.socket();
    let ask = |path: &str| curl(&["--unix-socket", socket.to_str().unwrap(), &format!("http://localhost{path}")]);
    assert_eq!(ask("/v1/problems").2, r#"[{"subject":"Node n","reason":"R","text":"t"}]"#);
    let (status, content_type, version) = ask("/v1/version");
    assert_eq!((status, content_type.as_str()), (200, "application/json"));
    assert!(version.contains("\"compiler\":\"rustc "), "{version}");
    assert_eq!(ask("/v2/services").0, 404);
}

#[test]
fn dump_says_what_to_do_when_no_agent_answers() {
    let agent = Agent::start(Stats(true));
    let socket = agent.socket();
    let dump = || dump::services(&socket, dump::Format::Text, &mut Vec::new()).unwrap_err().to_string();
    // The loop is gone.
    let mut agent = agent;
    agent.queries = None;
    assert!(dump().contains("the reconcile loop has ended"));
    drop(agent);
    assert!(dump().contains("is kube-router running on this node?"));
}

#[test]
fn a_socket_belongs_to_one_agent() {
    use std::os::unix::{fs::PermissionsExt, net::UnixListener};
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("a/b/agent.sock");
    let mode = |path: &Path| std::fs::metadata(path).unwrap().permissions().mode() & 0o777;

    let first = socket::bind(&path).unwrap();
    assert_eq!(mode(&path), 0o600);
    assert_eq!(mode(path.parent().unwrap()), 0o755);
    assert!(matches!(socket::bind(&path), Err(SocketError::Taken(_))));
    drop(first);
    assert!(!path.exists());

    // Left by a dead agent: replaced.
    drop(UnixListener::bind(&path).unwrap());
    assert!(path.exists());
    drop(socket::bind(&path).unwrap());
    // Somebody listens although nobody holds the lock: not stolen.
    let living = UnixListener::bind(&path).unwrap();
    assert!(matches!(socket::bind(&path), Err(SocketError::Taken(_))));
    drop(living);
    std::fs::remove_file(&path).unwrap();
    // A file is nobody's socket: kept.
    std::fs::write(&path, "precious").unwrap();
    assert!(matches!(socket::bind(&path), Err(SocketError::NotASocket(_))));
    assert_eq!(std::fs::read_to_string(&path).unwrap(), "precious");
}
