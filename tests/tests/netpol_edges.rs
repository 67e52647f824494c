//! Network policy and what is not between two pods: nodes, processes of nodes, ICMP, and what a refused client sees.

mod common;

use std::{
    net::{IpAddr, Ipv4Addr, SocketAddr, UdpSocket},
    process::Command,
    time::{Duration, Instant},
};

use common::netpol::{DENY_ALL, DENY_INGRESS, FLAGS, cluster, drops, started};
use kube_router_common::{
    answer::{fold, sum},
    reason::Reason,
};
use kube_router_tests::{
    lab::{Namespace, Serve},
    netpol::{
        Change::{Apply, Delete},
        datagrams::{Listener, send},
        plan::{self, node_address, pod, socket},
    },
    probe::{ProbeError, Transport, finish_checksums, send_unfinished},
    process::eventually,
};
use serde_json::json;

const FAMILIES: [bool; 2] = [true, false];

/// "traffic to and from the node where a Pod is running is always allowed" holds for this node, not for others.
#[test]
#[ignore = "needs root and BPF: cargo xtask test --tier 3"]
fn a_node_reaches_its_own_pods_and_no_others() {
    let mut cluster = started("netpoln", &[]);
    cluster.change(&[Apply(DENY_ALL)]).unwrap();
    let (own, other, outside) = (cluster.nodes[0].ns.clone(), cluster.nodes[1].ns.clone(), cluster.outside.clone());
    for ipv4 in FAMILIES {
        for (transport, port) in [(Transport::Tcp, 0), (Transport::Udp, 2)] {
            let to = socket(pod("x/a").unwrap(), port, ipv4);
            cluster.ask_from(&own, transport, to).unwrap_or_else(|error| panic!("own node, {transport} {to}: {error}"));
            for (ns, who) in [(&other, "other node"), (&outside, "outside")] {
                let outcome = cluster.ask_from(ns, transport, to);
                let refused = matches!(outcome, Err(ProbeError::Refused | ProbeError::Unreachable));
                assert!(refused, "{who}, {transport} {to}: {outcome:?}");
            }
        }
    }
    cluster.change(&[Delete("x", "deny")]).unwrap();
    for ns in [&own, &other, &outside] {
        cluster.ask_from(ns, Transport::Tcp, socket(pod("x/a").unwrap(), 0, true)).unwrap();
    }
}

/// Policies are about pods of the pod network; processes of the node, and pods with hostNetwork, are none.
#[test]
#[ignore = "needs root and BPF: cargo xtask test --tier 3"]
fn processes_of_nodes_are_not_affected() {
    let mut cluster = cluster("netpolh");
    let _server = Serve::new().tcp(9000).udp(9000).start(&cluster.nodes[0].ns, "host").unwrap();
    let ips: Vec<_> = FAMILIES.map(|ipv4| json!({"ip": node_address(1, ipv4)})).into();
    cluster.objects.others.push(json!({
        "apiVersion": "v1", "kind": "Pod", "metadata": {"name": "host", "namespace": "x", "labels": {"pod": "host"}},
        "spec": {
            "nodeName": "n1", "hostNetwork": true,
            "containers": [{"name": "main", "image": "none", "ports": [{"containerPort": 9000, "hostPort": 9000}]}],
        },
        "status": {"phase": "Running", "podIP": node_address(1, true), "podIPs": ips},
    }));
    cluster.start(&FLAGS).unwrap();
    cluster.change(&[Apply(DENY_ALL)]).unwrap();
    for ipv4 in FAMILIES {
        for transport in [Transport::Tcp, Transport::Udp] {
            let to = SocketAddr::new(node_address(1, ipv4), 9000);
            // A datagram's answer to a pod of the same node would come from the bridge's address.
            let clients: &[&str] = if transport == Transport::Udp { &["y/b"] } else { &["y/a", "y/b"] };
            for from in clients {
                let outcome = cluster.ask(from, transport, to).unwrap();
                outcome.unwrap_or_else(|error| panic!("{from} {transport} {to}: {error}"));
            }
            cluster.ask_from(&cluster.nodes[1].ns, transport, to).unwrap();
            cluster.ask_from(&cluster.outside, transport, to).unwrap();
        }
        // It sends, too, what a pod of its namespace may not.
        let to = socket(pod("y/b").unwrap(), 0, ipv4);
        cluster.ask_from(&cluster.nodes[0].ns, Transport::Tcp, to).unwrap();
        assert!(cluster.ask("x/a", Transport::Tcp, to).unwrap().is_err());
    }
}

/// Exit status of `curl` and the time that it took.
fn curl(ns: &Namespace, to: SocketAddr) -> (i32, Duration) {
    let begin = Instant::now();
    let mut command = Command::new("curl");
    command.args(["--silent", "--output", "/dev/null", "--max-time", "5", "--noproxy", "*", &format!("http://{to}/")]);
    let done = ns.run(|| command.output()).unwrap();
    (done.status.code().unwrap_or(-1), begin.elapsed())
}

/// curl's "Failed to connect to host", and "Operation timeout".
const REFUSED: i32 = 7;
const TIMEOUT: i32 = 28;

#[test]
#[ignore = "needs root and BPF: cargo xtask test --tier 3"]
fn a_refused_client_learns_it() {
    let mut cluster = started("netpolc", &[]);
    cluster.change(&[Apply(DENY_ALL)]).unwrap();
    for ipv4 in FAMILIES {
        // Ingress from the same node and from the other one, and egress.
        for (from, to) in [("y/a", "x/a"), ("y/b", "x/a"), ("x/a", "y/a"), ("x/a", "y/b")] {
            let address = socket(pod(to).unwrap(), 0, ipv4);
            let (status, took) = curl(&cluster.named(from).unwrap().ns, address);
            println!("{from} -> {to} {address}: curl ended with {status} after {took:?}");
            assert_eq!(status, REFUSED, "{from} -> {to} {address}");
        }
        let address = socket(pod("y/b").unwrap(), 0, ipv4);
        assert_eq!(curl(&cluster.named("y/a").unwrap().ns, address).0, 0, "allowed: {address}");
    }
}

#[test]
#[ignore = "needs root and BPF: cargo xtask test --tier 3"]
fn reject_can_be_silent() {
    let mut cluster = started("netpolq", &["--netpol-reject=drop"]);
    // Beacons are asked for a refused port; silence there is what this flag makes.
    cluster.change(&[Apply(DENY_INGRESS)]).unwrap();
    for ipv4 in FAMILIES {
        let address = socket(pod("x/a").unwrap(), 0, ipv4);
        assert_eq!(curl(&cluster.named("y/b").unwrap().ns, address).0, TIMEOUT, "{address}");
        let outcome = cluster.ask("y/a", Transport::Udp, socket(pod("x/a").unwrap(), 2, ipv4)).unwrap();
        assert!(matches!(outcome, Err(ProbeError::TimedOut)), "{outcome:?}");
    }
}

/// A client isolated for ingress gets the answers to what it asked, and nothing else; to ping is always allowed.
#[test]
#[ignore = "needs root and BPF: cargo xtask test --tier 3"]
fn replies_pings_and_nothing_else() {
    let mut cluster = started("netpolu", &[]);
    cluster.change(&[Apply(DENY_INGRESS)]).unwrap();
    for ipv4 in FAMILIES {
        for to in ["y/a", "y/b"] {
            let to = pod(to).unwrap();
            cluster.ask("x/a", Transport::Udp, socket(to, 2, ipv4)).unwrap().unwrap();
            cluster.ask("x/a", Transport::Tcp, socket(to, 0, ipv4)).unwrap().unwrap();
        }
        // A datagram to the port of a socket that waits for another's answer.
        let a = cluster.named("x/a").unwrap();
        let listener = Listener::start(&a.ns, 7000).unwrap();
        let asker = a.address(ipv4).unwrap();
        let y = cluster.named("y/b").unwrap();
        send(&y.ns, y.address(ipv4).unwrap(), SocketAddr::new(asker, 7000), 5).unwrap();
        send(&cluster.nodes[0].ns, node_address(1, ipv4), SocketAddr::new(asker, 7000), 1).unwrap();
        eventually("the node's datagram", cluster.patience.change, || listener.from(node_address(1, ipv4)) == 1)
            .unwrap();
        assert_eq!(listener.from(y.address(ipv4).unwrap()), 0);
        drop(listener);

        for from in [&cluster.named("y/a").unwrap().ns, &y.ns, &cluster.outside, &cluster.nodes[1].ns] {
            from.command("ping", &["-c", "1", "-W", "3", &asker.to_string()]).unwrap();
        }
    }
}

/// "Packet too big" of a router on the way reaches a pod that only talks to one other pod; its network would not work
/// without.
#[test]
#[ignore = "needs root and BPF: cargo xtask test --tier 3"]
fn errors_about_own_packets_are_related() {
    const ONLY_ZC: &str = "
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {namespace: x, name: only}
spec:
  podSelector: {matchLabels: {pod: a}}
  policyTypes: [Ingress, Egress]
  egress: [{to: [{namespaceSelector: {matchLabels: {ns: z}}, podSelector: {matchLabels: {pod: c}}}]}]";
    let mut cluster = started("netpolm", &[]);
    cluster.change(&[Apply(ONLY_ZC)]).unwrap();
    cluster.nodes[1].ns.ip(&["link set kube-bridge mtu 1300".into()]).unwrap();
    let a = cluster.named("x/a").unwrap();
    for ipv4 in FAMILIES {
        let to = socket(pod("z/c").unwrap(), 2, ipv4);
        a.ns.run(|| {
            let any: IpAddr = if ipv4 { [0, 0, 0, 0].into() } else { [0u16; 8].into() };
            let udp = UdpSocket::bind((any, 0)).unwrap();
            udp.connect(to).unwrap();
            udp.send(&[0; 1400]).unwrap();
        });
        let target = plan::address(pod("z/c").unwrap(), ipv4).to_string();
        let knows = || a.ns.command("ip", &["route", "get", &target]).is_ok_and(|route| route.contains("mtu 1300"));
        eventually("the path's MTU is known", Duration::from_secs(5), knows).unwrap();
        // The router itself gets nowhere.
        let outcome = cluster.ask_from(&cluster.nodes[1].ns, Transport::Udp, socket(pod("x/a").unwrap(), 2, ipv4));
        assert!(outcome.is_err());
    }
}

/// A datagram in its Ethernet frame, without a checksum of its own.
fn frame(macs: [[u8; 6]; 2], from: Ipv4Addr, to: Ipv4Addr, ports: [u16; 2], word: u16) -> Vec<u8> {
    let mut header = vec![0x45, 0, 0, 30, 0, 1, 0, 0, 64, 17, 0, 0];
    header.extend([from.octets(), to.octets()].concat());
    let check = !sum_of(&header);
    header[10..12].copy_from_slice(&check.to_be_bytes());
    let datagram = [ports[0], ports[1], 10, 0, word].map(u16::to_be_bytes).concat();
    [&macs[0][..], &macs[1], &[8, 0], &header, &datagram].concat()
}

fn sum_of(bytes: &[u8]) -> u16 {
    fold(sum(bytes))
}

/// The hardware address in the words of `ip`, behind the word `key`.
fn mac(text: &str, key: &str) -> [u8; 6] {
    let word =
        text.split_whitespace().skip_while(|word| *word != key).nth(1).unwrap_or_else(|| panic!("{key}: {text}"));
    let bytes: Vec<u8> = word.split(':').map(|byte| u8::from_str_radix(byte, 16).unwrap()).collect();
    bytes.try_into().unwrap()
}

/// A packet that was judged leaves the node as it was: who may send to one port only cannot have a checksum written over
/// it. Whose checksum goes where checksums are is served.
#[test]
#[ignore = "needs root and BPF: cargo xtask test --tier 3"]
fn a_checksum_becomes_no_port() {
    const ONE_PORT: &str = "
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {namespace: x, name: one-port}
spec:
  podSelector: {matchLabels: {pod: a}}
  policyTypes: [Egress]
  egress: [{ports: [{port: 7001, protocol: UDP}]}]";
    const ALLOWED: u16 = 7001;
    const REFUSED: u16 = 7002;
    let mut cluster = started("netpolw", &[]);
    cluster.change(&[Apply(ONE_PORT)]).unwrap();
    let (a, b) = (cluster.named("x/a").unwrap(), cluster.named("y/b").unwrap());
    let (IpAddr::V4(from), IpAddr::V4(to)) = (a.address(true).unwrap(), b.address(true).unwrap()) else {
        panic!("asked for IPv4");
    };
    let [allowed, refused] = [ALLOWED, REFUSED].map(|port| Listener::start(&b.ns, port).unwrap());
    let arrived = |listener: &Listener| listener.from(from.into());
    cluster.nodes[0].ns.run(|| finish_checksums("eth0")).unwrap();
    // As everybody does; the router is a neighbour from then on.
    send(&a.ns, from.into(), (to, ALLOWED).into(), 1).unwrap();
    send(&a.ns, from.into(), (to, REFUSED).into(), 1).unwrap();
    eventually("an allowed datagram", cluster.patience.change, || arrived(&allowed) == 1).unwrap();
    let macs = [("neigh", "lladdr"), ("link", "link/ether")]
        .map(|(what, key)| mac(&a.ns.command("ip", &[what, "show", "dev", "eth0"]).unwrap(), key));
    // The sum of these words is the other port.
    let mut odd = (0..=u16::MAX).map(|word| frame(macs, from, to, [5000, ALLOWED], word));
    let odd = odd.find(|frame| !sum_of(&frame[34..]) == REFUSED).unwrap();
    // Source port, destination port, and the length, which no rule is about.
    for place in [2, 2, 2, 0, 1, 3, 4] {
        a.ns.run(|| send_unfinished("eth0", &odd, 34, place)).unwrap();
    }
    let mut usual = frame(macs, from, to, [5000, ALLOWED], 0);
    // The device adds the datagram to the sum of what stands in front of it (RFC 768).
    let pseudo = sum_of(&[&from.octets()[..], &to.octets(), &[0, 17, 0, 10]].concat());
    usual[40..42].copy_from_slice(&pseudo.to_be_bytes());
    a.ns.run(|| send_unfinished("eth0", &usual, 34, 6)).unwrap();
    eventually("a datagram whose checksum the device writes", cluster.patience.change, || arrived(&allowed) == 2)
        .unwrap();
    assert_eq!((arrived(&refused), drops(&cluster, 1, Reason::Malformed)), (0, 6));
}
