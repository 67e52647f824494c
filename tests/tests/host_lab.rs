//! The laboratory itself, on a kernel without IPVS: nodes, pods, routes, both families, and that it leaves nothing.

use std::{
    fs,
    net::SocketAddr,
    path::Path,
    time::{Duration, Instant},
};

use kube_router_tests::{
    lab::{Lab, NodeSpec, Pod, Serve},
    oracle,
    probe::{Kept, Load, LoadSpec, ProbeError, Question, Transport, tcp_get, udp_ask},
    process::eventually,
};

const PATIENCE: Duration = Duration::from_secs(5);

fn two_nodes(prefix: &str) -> (Lab, Pod, Pod) {
    let mut lab = Lab::unique(prefix).unwrap();
    lab.node(NodeSpec::new("n1", &["192.168.10.100/24", "fd10::100/64"], &["10.2.0.0/24", "fd02:0::/64"]).unwrap())
        .unwrap();
    let second = NodeSpec::new("n2", &["192.168.10.101/24", "fd10::101/64"], &["10.2.1.0/24", "fd02:0:0:1::/64"]);
    lab.node(second.unwrap().interface("ens32")).unwrap();
    lab.route_pods().unwrap();
    let a = lab.pod("n1", "a", &["10.2.0.10", "fd02::10"]).unwrap();
    let b = lab.pod("n2", "b", &["10.2.1.10", "fd02:0:0:1::10"]).unwrap();
    (lab, a, b)
}

fn at(pod: &Pod, ipv4: bool, port: u16) -> SocketAddr {
    SocketAddr::new(pod.address(ipv4).unwrap(), port)
}

#[test]
#[ignore = "needs root: cargo xtask test --tier 3"]
fn pods_of_two_nodes_talk_over_routes() {
    let (lab, a, b) = two_nodes("hostlab");
    let _server = Serve::new().tcp(8080).udp(5353).start(&b.ns, "b").unwrap();
    for ipv4 in [true, false] {
        let answers = a.ns.run(|| [tcp_get(at(&b, ipv4, 8080), PATIENCE), udp_ask(at(&b, ipv4, 5353), PATIENCE)]);
        for answer in answers {
            let answer = answer.unwrap();
            assert_eq!(answer.name, "b");
            assert_eq!(answer.ip, b.address(ipv4).unwrap());
            assert_eq!(answer.client, a.address(ipv4).unwrap(), "nothing on the way translates");
        }
    }
    // Its own node has a route too, and another program's HTTP client agrees.
    let n2 = lab.nodes().find(|node| node.name == "n2").unwrap();
    assert_eq!(n2.interface, "ens32");
    let text = n2.ns.command("curl", &["-sS", "-m", "5", "-d", "a body", "http://10.2.1.10:8080/any/path"]).unwrap();
    assert_eq!(text, "HOSTNAME:b IP:10.2.1.10 CLIENT:10.2.1.1\n");
}

#[test]
#[ignore = "needs root: cargo xtask test --tier 3"]
fn failures_are_told_apart() {
    let (lab, a, b) = two_nodes("hostlabf");
    let _server = Serve::new().tcp(8080).start(&b.ns, "b").unwrap();
    let refused = a.ns.run(|| tcp_get(at(&b, true, 81), PATIENCE));
    assert!(matches!(refused, Err(ProbeError::Refused)), "{refused:?}");
    let refused = a.ns.run(|| udp_ask(at(&b, false, 81), PATIENCE));
    assert!(matches!(refused, Err(ProbeError::Refused)), "{refused:?}");
    // A service address that nobody programmed: the node has no default route.
    let nowhere = a.ns.run(|| tcp_get("10.96.0.10:80".parse().unwrap(), PATIENCE));
    assert!(matches!(nowhere, Err(ProbeError::Unreachable)), "{nowhere:?}");
    lab.connect("n2", false).unwrap();
    let silent = a.ns.run(|| tcp_get(at(&b, true, 8080), Duration::from_millis(300)));
    assert!(matches!(silent, Err(ProbeError::TimedOut)), "{silent:?}");
    lab.connect("n2", true).unwrap();
    eventually("the node is back", PATIENCE * 2, || a.ns.run(|| tcp_get(at(&b, true, 8080), PATIENCE)).is_ok())
        .unwrap();
}

#[test]
#[ignore = "needs root: cargo xtask test --tier 3"]
fn kept_connections_and_load() {
    let (mut lab, a, b) = two_nodes("hostlabk");
    let _server = Serve::new().tcp(8080).udp(5353).start(&b.ns, "b").unwrap();
    for (transport, port) in [(Transport::Tcp, 8080), (Transport::Udp, 5353)] {
        let mut kept = a.ns.run(|| Kept::open(transport, at(&b, true, port), PATIENCE)).unwrap();
        assert_eq!(kept.local().ip(), a.address(true).unwrap());
        assert_eq!(kept.ask().unwrap().name, "b");
        kept.check().unwrap();
    }
    let question = Question::new(Transport::Tcp, at(&b, true, 8080), PATIENCE);
    let (fresh, kept) = a.ns.run(|| {
        let spec = LoadSpec::new(question, 8);
        (spec.run(Duration::from_millis(500)), spec.kept().run(Duration::from_millis(500)))
    });
    for report in [fresh, kept] {
        assert_eq!(report.failed, 0, "{report:?}");
        assert!(report.answered > 50, "{report:?}");
        assert_eq!(report.by_name["b"], report.answered);
    }
    // A thousand connections at once.
    let mut many: Vec<Kept> = a
        .ns
        .run(|| (0..1000).map(|_| Kept::open(Transport::Tcp, at(&b, true, 8080), PATIENCE)).collect::<Result<_, _>>())
        .unwrap();
    assert!(many.iter_mut().all(Kept::is_alive));

    // The pod goes in the middle of a load: the load counts it, and every connection to the pod is dead.
    let patience = Duration::from_millis(200);
    let load = a.ns.run(|| Load::start(LoadSpec::new(Question::new(Transport::Tcp, at(&b, true, 8080), patience), 2)));
    std::thread::sleep(Duration::from_millis(100));
    lab.remove_pod("b").unwrap();
    std::thread::sleep(Duration::from_millis(300));
    let report = load.stop();
    assert!(report.answered > 0 && report.failed > 0, "{report:?}");
    assert!(!report.first_failures.is_empty());
}

#[test]
#[ignore = "needs root: cargo xtask test --tier 3"]
fn an_outside_client_knows_only_given_routes() {
    let (mut lab, _a, b) = two_nodes("hostlabo");
    let _server = Serve::new().tcp(8080).start(&b.ns, "b").unwrap();
    let client = lab.outside("client", &["192.168.10.10/24"]).unwrap();
    let before = client.run(|| tcp_get(at(&b, true, 8080), PATIENCE));
    assert!(matches!(before, Err(ProbeError::Unreachable)), "{before:?}");
    lab.route(&client, "10.2.1.0/24", "192.168.10.101").unwrap();
    assert_eq!(client.run(|| tcp_get(at(&b, true, 8080), PATIENCE)).unwrap().client.to_string(), "192.168.10.10");
}

#[test]
#[ignore = "needs root: cargo xtask test --tier 3"]
fn oracles_read_a_namespace() {
    let (lab, a, _b) = two_nodes("hostlabq");
    let addresses = oracle::addresses(&a.ns).unwrap();
    assert_eq!(addresses["eth0"], ["10.2.0.10/24".parse().unwrap(), "fd02::10/64".parse().unwrap()]);
    assert!(oracle::local_routes(&a.ns).unwrap().iter().any(|route| route.starts_with("local 10.2.0.10 dev eth0")));
    assert!(oracle::routes(&a.ns, "main").unwrap().iter().any(|route| route.starts_with("default via 10.2.0.1 ")));
    assert!(oracle::routes(&a.ns, "77").unwrap().is_empty());
    a.ns.command("ipset", &["create", "s", "hash:ip", "timeout", "0"]).unwrap();
    a.ns.command("ipset", &["add", "s", "10.0.0.9"]).unwrap();
    let want = ["add s 10.0.0.9 timeout 0", "create s hash:ip family inet maxelem 65536 timeout 0"];
    assert_eq!(oracle::ipsets(&a.ns).unwrap(), want);
    assert_eq!(oracle::ipset_members(&a.ns).unwrap()["s"], ["10.0.0.9 timeout 0"]);
    let n1 = lab.nodes().next().unwrap();
    assert_eq!(n1.ns.sysctl("net/ipv4/ip_forward").as_deref(), Some("1"));
    assert_eq!(a.ns.sysctl("net/ipv4/ip_forward").as_deref(), Some("0"));
    assert!(oracle::ipsets(&n1.ns).unwrap().is_empty(), "sets belong to one namespace");
}

#[test]
#[ignore = "needs root: cargo xtask test --tier 3"]
fn it_leaves_nothing() {
    let (lab, _a, b) = two_nodes("hostlabz");
    let mut server = Serve::new().tcp(8080).start(&b.ns, "b").unwrap();
    let mut sleeper = std::process::Command::new("sleep");
    sleeper.arg("600");
    let mut sleeper = b.ns.spawn("sleep", sleeper).unwrap();
    assert_eq!(b.ns.processes().unwrap().len(), 2);
    let names = || -> Vec<String> {
        let entries = fs::read_dir("/run/netns").unwrap();
        let prefix = format!("hostlabz{}-", std::process::id());
        let names = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap());
        names.filter(|name| name.starts_with(&prefix)).collect()
    };
    assert_eq!(names().len(), 5, "{:?}", names());
    // A second one of that name would take over what is not its own.
    assert!(Lab::new(&format!("hostlabz{}", std::process::id())).is_err());
    assert_eq!(names().len(), 5);
    let start = Instant::now();
    drop(lab);
    assert!(start.elapsed() < PATIENCE);
    assert_eq!(names(), Vec::<String>::new());
    for process in [&mut server, &mut sleeper] {
        process.wait(PATIENCE).unwrap();
        assert!(!Path::new(&format!("/proc/{}", process.id())).exists());
    }
    assert!(b.ns.processes().unwrap().is_empty());
}
