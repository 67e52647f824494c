//! The laboratory on a kernel with IPVS and SCTP: a service made by hand, seen by the probes and by the oracle.

use std::{collections::BTreeSet, net::SocketAddr, time::Duration};

use kube_router_tests::{
    lab::{Lab, Node, NodeSpec, Serve, load_modules},
    oracle::{self, ServerAddress},
    probe::{Kept, LoadSpec, ProbeError, Question, Transport, sctp_ask, tcp_get, udp_ask},
    process::Process,
};

const PATIENCE: Duration = Duration::from_secs(10);
const NAMES: [&str; 2] = ["a", "b"];

struct Cluster {
    lab: Lab,
    n1: Node,
    _servers: Vec<Process>,
}

fn cluster(prefix: &str) -> Cluster {
    load_modules(&["ip_vs", "ip_vs_rr", "dummy", "sctp"]).unwrap();
    let mut lab = Lab::unique(prefix).unwrap();
    let spec = NodeSpec::new("n1", &["192.168.10.100/24", "fd10::100/64"], &["10.2.0.0/24", "fd02::/64"]).unwrap();
    let n1 = lab.node(spec).unwrap();
    let spec = NodeSpec::new("n2", &["192.168.10.101/24", "fd10::101/64"], &["10.2.1.0/24", "fd02:0:0:1::/64"]);
    lab.node(spec.unwrap()).unwrap();
    lab.route_pods().unwrap();
    lab.pod("n1", "a", &["10.2.0.10", "fd02::10"]).unwrap();
    lab.pod("n2", "b", &["10.2.1.10", "fd02:0:0:1::10"]).unwrap();
    let serve = Serve::new().tcp(8080).udp(8080).sctp(8080);
    let servers = lab.pods().map(|pod| serve.start(&pod.ns, &pod.name).unwrap()).collect();
    Cluster { lab, n1, _servers: servers }
}

fn address(text: &str) -> SocketAddr {
    text.parse().unwrap()
}

#[test]
#[ignore = "needs IPVS and SCTP: cargo xtask test --tier 4"]
fn pods_talk_in_three_protocols() {
    let cluster = cluster("vmlab");
    let a = cluster.lab.pods().find(|pod| pod.name == "a").unwrap();
    for to in ["10.2.1.10:8080", "[fd02:0:0:1::10]:8080"] {
        let to = address(to);
        let answers = a.ns.run(|| [tcp_get(to, PATIENCE), udp_ask(to, PATIENCE), sctp_ask(to, PATIENCE)]);
        for answer in answers {
            let answer = answer.unwrap();
            assert_eq!((answer.name.as_str(), answer.ip), ("b", to.ip()));
            assert_eq!(answer.client, a.address(to.is_ipv4()).unwrap());
        }
    }
    let refused = a.ns.run(|| sctp_ask(address("10.2.1.10:81"), PATIENCE));
    assert!(matches!(refused, Err(ProbeError::Refused)), "{refused:?}");
    let mut kept = a.ns.run(|| Kept::open(Transport::Sctp, address("10.2.1.10:8080"), PATIENCE)).unwrap();
    kept.check().unwrap();
    assert_eq!(kept.ask().unwrap().name, "b");
}

#[test]
#[ignore = "needs IPVS and SCTP: cargo xtask test --tier 4"]
fn a_service_made_by_hand() {
    let cluster = cluster("vmlabs");
    let n1 = &cluster.n1.ns;
    n1.ip(&[
        "link add kube-dummy-if type dummy".into(),
        "link set kube-dummy-if up".into(),
        "address add 10.96.0.10/32 dev kube-dummy-if".into(),
        "route replace local 10.96.0.10 dev kube-dummy-if table local proto kernel scope host src 192.168.10.100"
            .into(),
    ])
    .unwrap();
    n1.set_sysctl("net/ipv4/vs/conntrack", "1").unwrap();
    let before = n1.run(|| tcp_get(address("10.96.0.10:80"), PATIENCE));
    assert!(matches!(before, Err(ProbeError::Refused)), "{before:?}");
    for flag in ["-t", "-u", "--sctp-service"] {
        n1.command("ipvsadm", &["-A", flag, "10.96.0.10:80", "-s", "rr"]).unwrap();
        for to in ["10.2.0.10:8080", "10.2.1.10:8080"] {
            n1.command("ipvsadm", &["-a", flag, "10.96.0.10:80", "-r", to, "-m"]).unwrap();
        }
    }
    let vip = address("10.96.0.10:80");
    for ask in [tcp_get, udp_ask, sctp_ask] {
        let answers: BTreeSet<String> =
            n1.run(|| (0..4).map(|_| ask(vip, PATIENCE).map(|answer| answer.name)).collect::<Result<_, _>>()).unwrap();
        assert_eq!(answers, NAMES.map(str::to_owned).into());
    }

    let servers = oracle::ipvs_servers(n1).unwrap();
    assert_eq!(servers.len(), 3);
    assert_eq!(servers[0].address, ServerAddress::Tcp(vip));
    assert_eq!(servers[0].weights(), [(address("10.2.0.10:8080"), 1), (address("10.2.1.10:8080"), 1)]);
    assert!(oracle::ipvs_rules(n1).unwrap().contains(&"-A -t 10.96.0.10:80 -s rr".to_owned()));
    let elsewhere = cluster.lab.nodes().find(|node| node.name == "n2").unwrap();
    assert!(oracle::ipvs_servers(&elsewhere.ns).unwrap().is_empty());

    // A crowd, evenly served.
    let question = Question::new(Transport::Tcp, vip, PATIENCE);
    let report = n1.run(|| LoadSpec::new(question, 4).run(Duration::from_secs(2)));
    assert_eq!(report.failed, 0, "{report:?}");
    assert_eq!(report.by_name.len(), 2, "{report:?}");

    // A kept connection stays with its pod when the server gets weight 0; new ones go elsewhere.
    let mut kept = n1.run(|| Kept::open(Transport::Tcp, vip, PATIENCE)).unwrap();
    let pod = kept.ask().unwrap();
    let to = format!("{}:8080", pod.ip);
    n1.command("ipvsadm", &["-e", "-t", "10.96.0.10:80", "-r", &to, "-m", "-w", "0"]).unwrap();
    for _ in 0..3 {
        assert_ne!(n1.run(|| tcp_get(vip, PATIENCE)).unwrap().name, pod.name);
    }
    assert_eq!(kept.ask().unwrap(), pod);
    n1.command("ipvsadm", &["-C"]).unwrap();
    assert!(kept.check().is_err(), "the service is gone, and its connections with it");
}
