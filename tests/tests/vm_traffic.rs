//! Every kind of service address, in every protocol and family, from every place, under both traffic policies: who
//! answers, and which client address the pod sees.

mod common;

use std::{
    collections::{BTreeSet, HashMap, HashSet},
    net::{IpAddr, SocketAddr},
};

use common::{ANSWER, Cluster, PATIENCE, own};
use kube_router::apply::bpf::{self, Tables};
use kube_router_common::{
    config::Config,
    flow::{Flow, FlowKey},
};
use kube_router_tests::{
    agent::run,
    lab::Namespace,
    objects::ServiceSpec,
    oracle,
    pins::Pins,
    probe::{Answer, ProbeError, Question, Transport},
    process::eventually,
};
use serde_json::json;

const TRANSPORTS: [(Transport, &str); 3] =
    [(Transport::Tcp, "TCP"), (Transport::Udp, "UDP"), (Transport::Sctp, "SCTP")];

const POLICIES: [(u8, &str); 2] = [(1, "Cluster"), (2, "Local")];

fn ask(ns: &Namespace, transport: Transport, to: SocketAddr) -> Result<Answer, ProbeError> {
    ns.run(|| Question::new(transport, to, ANSWER).ask())
}

/// A service of every kind in one: `number` tells its addresses apart.
fn everything(name: &str, number: u8, policy: &str) -> ServiceSpec {
    let mut spec = ServiceSpec::new(name, &[&format!("10.96.1.{number}"), &format!("fd00:10:96::1{number}")])
        .kind("LoadBalancer")
        .with("externalIPs", json!([format!("203.0.113.{number}"), format!("2001:db8:113::{number}")]))
        .with("internalTrafficPolicy", json!(policy))
        .with("externalTrafficPolicy", json!(policy))
        .ingress(&format!("203.0.113.{}", 128 + number))
        .ingress(&format!("2001:db8:114::{number}"));
    for (offset, (_, protocol)) in TRANSPORTS.iter().enumerate() {
        spec = spec.port(protocol, 80, 8080, 30_000 + 10 * u16::from(number) + offset as u16);
    }
    spec
}

struct Target {
    kind: &'static str,
    address: SocketAddr,
}

fn targets(number: u8, transport: usize, node: IpAddr) -> Vec<Target> {
    let ip = |v4: String, v6: String| -> IpAddr { if node.is_ipv4() { v4 } else { v6 }.parse().unwrap() };
    let port80 = |address| SocketAddr::new(address, 80);
    vec![
        Target {
            kind: "ClusterIP",
            address: port80(ip(format!("10.96.1.{number}"), format!("fd00:10:96::1{number}"))),
        },
        Target {
            kind: "ExternalIP",
            address: port80(ip(format!("203.0.113.{number}"), format!("2001:db8:113::{number}"))),
        },
        Target {
            kind: "LoadBalancer",
            address: port80(ip(format!("203.0.113.{}", 128 + number), format!("2001:db8:114::{number}"))),
        },
        Target { kind: "NodePort", address: SocketAddr::new(node, 30_000 + 10 * u16::from(number) + transport as u16) },
    ]
}

#[test]
#[ignore = "needs IPVS and SCTP: cargo xtask test --tier 4"]
fn every_address_kind_protocol_family_client_and_policy() {
    everybody_asks_everything("traffic", |cluster| cluster.start(&[1, 2], &[]));
}

#[test]
#[ignore = "needs IPVS, SCTP and the BPF object: cargo xtask test --tier 4"]
fn every_address_kind_protocol_family_client_and_policy_past_ipvs() {
    let mut cluster =
        everybody_asks_everything("past", |cluster| cluster.start_fast(&[1, 2], &["--run-firewall=true"]));
    expect_fast(&cluster);
    // Agents that enforce no policy take the tables over; whoever asks from a pod is asked for again.
    cluster.start_fast(&[1, 2], &["--run-firewall=false", "--service-fastpath=on"]);
    let before: Vec<HashSet<FlowKey>> = cluster.pins.iter().map(|pins| flows(pins).into_keys().collect()).collect();
    ask_everything(&cluster, &["local pod", "remote pod"]);
    for (pins, before) in cluster.pins.iter().zip(before) {
        let new = flows(pins).into_iter().filter(|(key, _)| !before.contains(key));
        let (fast, others): (Vec<_>, Vec<_>) = new.partition(|(_, flow)| flow.is(Flow::FAST));
        // What IPVS chose for is known, so that it stays with IPVS.
        let unwanted: Vec<_> = others.iter().filter(|(_, flow)| !flow.is(Flow::IPVS)).collect();
        assert!(!fast.is_empty() && unwanted.is_empty(), "{} on the short way, and besides {unwanted:?}", fast.len());
        let flags = tables(pins).config().unwrap().flags;
        assert_eq!(flags, Config::NO_ANTISPOOF | Config::FAST | Config::FAST_FLOWS);
    }
}

fn tables(pins: &Pins) -> Tables {
    Tables::open(&bpf::root(pins.path())).unwrap()
}

fn flows(pins: &Pins) -> HashMap<FlowKey, Flow> {
    tables(pins).flows.read_all().unwrap().into_iter().collect()
}

fn expect_fast(cluster: &Cluster) {
    for (agent, pins) in cluster.agents.iter().zip(&cluster.pins) {
        let maps = format!("--maps={}", pins.path().display());
        let ask = |what| run(agent.ns(), &["dump", what, &maps]).unwrap();
        let [backends, flows] = ["backends", "flows"].map(ask);
        println!("{backends}\n{flows}");
        assert!(flows.contains("fast"), "{flows}");
    }
}

fn everybody_asks_everything(prefix: &str, start: impl FnOnce(&mut Cluster)) -> Cluster {
    let mut cluster = Cluster::new(prefix);
    let (web1, web2) = (cluster.find("web-1"), cluster.find("web-2"));
    for (number, policy) in POLICIES {
        let name = policy.to_lowercase();
        let spec = everything(&name, number, policy).pods([&web1, &web2]);
        cluster.manifests.put(&name, &spec.objects()).unwrap();
    }
    start(&mut cluster);
    ask_everything(&cluster, &["node", "local pod", "remote pod", "outside"]);
    cluster
}

/// `clients`: who asks.
fn ask_everything(cluster: &Cluster, clients: &[&str]) {
    let mut failures = Vec::new();
    let mut cases = 0;
    for (number, policy) in POLICIES {
        for (index, (transport, protocol)) in TRANSPORTS.into_iter().enumerate() {
            for ipv4 in [true, false] {
                let n1 = cluster.node(1).address(ipv4).unwrap();
                for target in targets(number, index, n1) {
                    // Who asks, its address, and the node that balances for it.
                    let via_n1_only = target.kind == "NodePort";
                    let (c1, c2) = (cluster.find("c1"), cluster.find("c2"));
                    let all = [
                        ("node", cluster.node(1).ns.clone(), n1, 1),
                        ("local pod", c1.ns.clone(), c1.address(ipv4).unwrap(), 1),
                        ("remote pod", c2.ns.clone(), c2.address(ipv4).unwrap(), if via_n1_only { 1 } else { 2 }),
                        (
                            "outside",
                            cluster.outside.clone(),
                            if ipv4 { "192.168.77.100" } else { "fd00:77::100" }.parse().unwrap(),
                            1,
                        ),
                    ];
                    for (who, ns, source, balancer) in all.into_iter().filter(|all| clients.contains(&all.0)) {
                        cases += 1;
                        let case = format!("{} {protocol} {} from {who}, policy {policy}", target.kind, target.address);
                        if let Err(why) = check(cluster, &ns, transport, &target, source, balancer, policy) {
                            failures.push(format!("{case}: {why}"));
                        }
                    }
                }
            }
        }
    }
    println!("{cases} cases, {} failed", failures.len());
    assert!(failures.is_empty(), "{}\n{}", failures.join("\n"), cluster.agents[0].log().join("\n"));
    assert_eq!(cases, 4 * 3 * 2 * 2 * clients.len());
}

/// Asks until every eligible pod has answered, and compares the client address that each saw.
fn check(
    cluster: &Cluster,
    ns: &Namespace,
    transport: Transport,
    target: &Target,
    source: IpAddr,
    balancer: usize,
    policy: &str,
) -> Result<(), String> {
    let local = format!("web-{balancer}");
    let eligible: BTreeSet<String> =
        if policy == "Local" { [local.clone()].into() } else { ["web-1".to_owned(), "web-2".to_owned()].into() };
    let balancer_address = own(cluster.node(balancer), source);
    let mut answered = BTreeSet::new();
    for _ in 0..2 {
        let answer = ask(ns, transport, target.address).map_err(|error| error.to_string())?;
        // A pod of the balancing node keeps its address, and so does whoever reaches a pod of the balancing node.
        let source_is_own_pod = source != balancer_address && node_of(cluster, source) == Some(balancer);
        let expected = if source_is_own_pod || answer.name == local { source } else { balancer_address };
        if answer.client != expected {
            return Err(format!("{} saw {} instead of {expected}", answer.name, answer.client));
        }
        answered.insert(answer.name);
    }
    if answered == eligible { Ok(()) } else { Err(format!("answered: {answered:?}, eligible: {eligible:?}")) }
}

/// Number of the node whose pod has this address.
fn node_of(cluster: &Cluster, address: IpAddr) -> Option<usize> {
    cluster.nodes.iter().position(|node| node.pod_cidrs.iter().any(|cidr| cidr.contains(&address))).map(|i| i + 1)
}

#[test]
#[ignore = "needs IPVS and SCTP: cargo xtask test --tier 4"]
fn a_node_without_local_endpoints_does_not_serve_a_local_policy() {
    let mut cluster = Cluster::new("local");
    let (web1, web2) = (cluster.find("web-1"), cluster.find("web-2"));
    for (number, policy) in [(1, "Cluster"), (2, "Local")] {
        let spec = everything(&policy.to_lowercase(), number, policy).pods([&web1, &web2]);
        cluster.manifests.put(&policy.to_lowercase(), &spec.objects()).unwrap();
    }
    cluster.start(&[3], &[]);
    let n3 = own(cluster.node(3), "0.0.0.0".parse().unwrap());
    let tcp = |number: u16| SocketAddr::new(n3, 30_000 + 10 * number);
    assert_eq!(ask(&cluster.outside, Transport::Tcp, tcp(1)).unwrap().client, n3);
    let local = ask(&cluster.outside, Transport::Tcp, tcp(2));
    assert!(matches!(local, Err(ProbeError::Refused)), "{local:?}");
    let addresses = oracle::addresses(&cluster.node(3).ns).unwrap();
    let vips: Vec<String> = addresses["kube-dummy-if"].iter().map(ToString::to_string).collect();
    assert!(vips.contains(&"10.96.1.1/32".to_owned()) && !vips.contains(&"10.96.1.2/32".to_owned()), "{vips:?}");
}

#[test]
#[ignore = "needs IPVS and SCTP: cargo xtask test --tier 4"]
fn a_pod_reaches_itself_through_its_service_when_hairpin_is_asked_for() {
    let mut cluster = Cluster::new("hairpin");
    // The reply comes back through the port that it left by: the CNI configuration must allow that (hairpinMode).
    let web1 = cluster.hairpin_pod("self-1", 1, 19);
    let spec = ServiceSpec::new("self", &["10.96.1.9", "fd00:10:96::19"])
        .kind("NodePort")
        .port("TCP", 80, 8080, 30_090)
        .pods([&web1])
        .annotation("kube-router.io/service.hairpin", "");
    cluster.manifests.put("self", &spec.objects()).unwrap();
    cluster.start(&[1], &[]);
    for to in ["10.96.1.9:80", "[fd00:10:96::19]:80", "192.168.77.1:30090", "[fd00:77::1]:30090"] {
        let to: SocketAddr = to.parse().unwrap();
        let answer = ask(&web1.ns, Transport::Tcp, to).unwrap_or_else(|error| panic!("{to}: {error}"));
        assert_eq!((answer.name.as_str(), answer.client), ("self-1", to.ip()), "the pod sees the service address");
    }
}

#[test]
#[ignore = "needs IPVS and SCTP: cargo xtask test --tier 4"]
fn the_guard_answers_ping_refuses_other_ports_and_leaves_the_node_alone() {
    let mut cluster = Cluster::new("guard");
    let web1 = cluster.find("web-1");
    let spec = everything("guarded", 1, "Cluster").pods([&web1]);
    cluster.manifests.put("guarded", &spec.objects()).unwrap();
    // A service of the node itself, listening on every address.
    let _sshd = kube_router_tests::lab::Serve::new().tcp(2222).start(&cluster.node(1).ns, "host").unwrap();
    cluster.start(&[1], &[]);
    let outside = &cluster.outside;
    for vip in ["10.96.1.1", "203.0.113.1", "203.0.113.129"] {
        outside.command("ping", &["-c1", "-W5", vip]).unwrap();
        let refused = ask(outside, Transport::Tcp, format!("{vip}:2222").parse().unwrap());
        assert!(matches!(refused, Err(ProbeError::Refused)), "{vip}:2222: {refused:?}");
    }
    outside.command("ping", &["-6", "-c1", "-W5", "fd00:10:96::11"]).unwrap();
    let refused = ask(outside, Transport::Tcp, "[fd00:10:96::11]:2222".parse().unwrap());
    assert!(matches!(refused, Err(ProbeError::Refused)), "{refused:?}");
    assert_eq!(ask(outside, Transport::Tcp, "192.168.77.1:2222".parse().unwrap()).unwrap().name, "host");
}

#[test]
#[ignore = "needs IPVS and SCTP: cargo xtask test --tier 4"]
fn a_service_without_endpoints_refuses_at_once() {
    let mut cluster = Cluster::new("empty");
    cluster.manifests.put("empty", &everything("empty", 1, "Cluster").objects()).unwrap();
    cluster.start(&[1], &[]);
    let c1 = cluster.find("c1");
    for (who, ns) in [("node", &cluster.node(1).ns), ("pod", &c1.ns), ("outside", &cluster.outside)] {
        for to in ["10.96.1.1:80", "203.0.113.1:80", "[fd00:10:96::11]:80", "192.168.77.1:30010"] {
            let answer = ask(ns, Transport::Tcp, to.parse().unwrap());
            assert!(matches!(answer, Err(ProbeError::Refused)), "{to} from {who}: {answer:?}");
        }
    }
}

#[test]
#[ignore = "needs IPVS and SCTP: cargo xtask test --tier 4"]
fn affinity_survives_the_removal_of_another_backend_and_moves_when_its_own_goes() {
    let mut cluster = Cluster::new("affinity");
    let pods = ["web-1", "web-2", "c1"].map(|name| cluster.find(name));
    let spec = |names: &[&str]| {
        ServiceSpec::new("sticky", &["10.96.1.5"])
            .port("TCP", 80, 8080, 0)
            .with("sessionAffinity", json!("ClientIP"))
            .with("sessionAffinityConfig", json!({"clientIP": {"timeoutSeconds": 600}}))
            .pods(pods.iter().filter(|pod| names.contains(&pod.name.as_str())))
    };
    cluster.manifests.put("sticky", &spec(&["web-1", "web-2", "c1"]).objects()).unwrap();
    cluster.start(&[1], &[]);
    let outside = &cluster.outside;
    let vip: SocketAddr = "10.96.1.5:80".parse().unwrap();
    let first = ask(outside, Transport::Tcp, vip).unwrap().name;
    for _ in 0..4 {
        assert_eq!(ask(outside, Transport::Tcp, vip).unwrap().name, first);
    }
    let others: Vec<&str> = ["web-1", "web-2", "c1"].into_iter().filter(|name| *name != first).collect();
    let settled = |count: usize| {
        let servers = oracle::ipvs_servers(&cluster.node(1).ns).unwrap();
        servers.iter().any(|server| server.destinations.len() == count)
    };
    cluster.manifests.put("sticky", &spec(&[&first, others[0]]).objects()).unwrap();
    eventually("another backend goes", PATIENCE, || settled(2)).unwrap();
    assert_eq!(ask(outside, Transport::Tcp, vip).unwrap().name, first);
    cluster.manifests.put("sticky", &spec(&[others[0]]).objects()).unwrap();
    eventually("its own backend goes", PATIENCE, || settled(1)).unwrap();
    assert_eq!(ask(outside, Transport::Tcp, vip).unwrap().name, others[0]);
}

#[test]
#[ignore = "needs IPVS and SCTP: cargo xtask test --tier 4"]
fn schedulers_change_in_place_and_distribute_as_they_should() {
    let mut cluster = Cluster::new("sched");
    let pods = ["web-1", "web-2"].map(|name| cluster.find(name));
    let spec = |scheduler: &str| {
        ServiceSpec::new("sched", &["10.96.1.6"])
            .port("TCP", 80, 8080, 0)
            .annotation("kube-router.io/service.scheduler", scheduler)
            .pods(&pods)
    };
    cluster.manifests.put("sched", &spec("rr").objects()).unwrap();
    cluster.start(&[1], &[]);
    let vip: SocketAddr = "10.96.1.6:80".parse().unwrap();
    let ns = cluster.node(1).ns.clone();
    let mut kept = cluster.outside.run(|| kube_router_tests::probe::Kept::open(Transport::Tcp, vip, ANSWER)).unwrap();
    let pod = kept.ask().unwrap();
    for scheduler in ["lc", "sh", "dh", "mh", "rr"] {
        cluster.manifests.put("sched", &spec(scheduler).objects()).unwrap();
        let shown = format!("-A -t {vip} -s {scheduler}");
        eventually(scheduler, PATIENCE, || {
            oracle::ipvs_rules(&ns).unwrap().iter().any(|line| line.starts_with(&shown))
        })
        .unwrap();
        let names: Vec<String> = (0..6).map(|_| ask(&cluster.outside, Transport::Tcp, vip).unwrap().name).collect();
        let distinct: BTreeSet<&String> = names.iter().collect();
        match scheduler {
            "rr" => assert_eq!(names.iter().filter(|name| *name == "web-1").count(), 3, "{names:?}"),
            // One client and one address: the hash has one answer.
            "sh" | "dh" | "mh" => assert_eq!(distinct.len(), 1, "{scheduler}: {names:?}"),
            _ => {}
        }
        kept.check().unwrap_or_else(|error| panic!("the open connection broke at {scheduler}: {error}"));
    }
    assert_eq!(kept.ask().unwrap(), pod);
}
