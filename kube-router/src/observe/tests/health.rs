//! `/healthz`, `/readyz`, binding, and health-check node ports.

use std::{
    collections::BTreeMap,
    io::{Read, Write},
    net::{SocketAddr, TcpListener, TcpStream},
    sync::{Arc, atomic::Ordering::Relaxed},
    time::{Duration, Instant},
};

use tokio::sync::watch;

use super::*;
use crate::observe::http::BindError;

#[test]
fn health_is_the_loops_pulse_and_nothing_else() {
    let agent = Agent::start(Stats::Counts);
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
    let agent = Agent::start(Stats::Counts);
    agent.pulse.watch(Kind::Service);
    let answer = get(agent.health, "/readyz");
    assert_eq!((answer.0, answer.2.as_str()), (503, "waiting for the first full list of Service\n"));
    agent.pulse.set_complete(Kind::Service);
    assert_eq!(get(agent.health, "/readyz").2, "the first full sync is not through yet\n");
    agent.pulse.set_ready();
    assert_eq!(get(agent.health, "/readyz").0, 200);
}

#[test]
fn a_flood_of_silent_connections_does_not_shut_out_the_probe() {
    let agent = Agent::start(Stats::Counts);
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
    let wiring = Wiring { metrics, pulse, questions, stats: None, policy: None, health_checks };
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
    let agent = Agent::start(Stats::Counts);
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
