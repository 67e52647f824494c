//! The lab itself: traffic between pods, nodes and the outside, and nothing left afterwards.

use std::net::{IpAddr, SocketAddr};
use std::path::Path;
use std::time::Duration;

use kube_router_tests::lab::{Lab, Pod};
use kube_router_tests::probe::{Answer, Load, LoadSpec, PATIENCE, Transport, tcp_get, udp_ask};
use kube_router_tests::server::ServerSpec;

fn four(pod: &Pod, port: u16) -> SocketAddr {
    (pod.ip4.expect("dual-stack"), port).into()
}

fn six(pod: &Pod, port: u16) -> SocketAddr {
    (pod.ip6.expect("dual-stack"), port).into()
}

fn is_from(answer: std::io::Result<Answer>, name: &str, client: impl Into<IpAddr>) {
    let answer = answer.unwrap_or_else(|error| panic!("{name} did not answer: {error}"));
    assert_eq!((answer.name.as_str(), answer.client.ip()), (name, client.into()));
}

#[test]
#[ignore = "needs root: cargo xtask test --tier 3 --filter pods_reach"]
fn pods_reach_each_other_over_both_families() {
    let lab = Lab::cluster("lab-a", 2).expect("cluster");
    let [n1, n2] = lab.nodes() else { panic!("two nodes") };
    let a = lab.pod_number(n1, "a", 5).expect("pod a");
    let b = lab.pod_number(n1, "b", 6).expect("pod b");
    let c = lab.pod_number(n2, "c", 7).expect("pod c");
    let _b = b.serve(ServerSpec::tcp(8080).and_udp(5353)).expect("serve");
    let _c = c.serve(ServerSpec::tcp(8080).and_udp(5353)).expect("serve");
    let (a4, a6) = (a.ip4.expect("v4"), a.ip6.expect("v6"));
    a.ns.run(|| {
        for pod in [&b, &c] {
            is_from(tcp_get(four(pod, 8080), PATIENCE), &pod.name, a4);
            is_from(tcp_get(six(pod, 8080), PATIENCE), &pod.name, a6);
            is_from(udp_ask(four(pod, 5353), PATIENCE), &pod.name, a4);
            is_from(udp_ask(six(pod, 5353), PATIENCE), &pod.name, a6);
        }
    });
    // From the node, the client is the bridge's address towards its own pods and the wire's towards others.
    n1.ns.run(|| is_from(tcp_get(four(&b, 8080), PATIENCE), "b", [10, 244, 1, 1]));
    n1.ns.run(|| is_from(tcp_get(four(&c, 8080), PATIENCE), "c", n1.ip4()));
}

#[test]
#[ignore = "needs root: cargo xtask test --tier 3 --filter nothing_leaves"]
fn nothing_leaves_by_a_default_route() {
    let lab = Lab::cluster("lab-b", 1).expect("cluster");
    let node = &lab.nodes()[0];
    let outside = lab.outside("ext", &["192.168.10.200/24", "fd00:10::200/64"]).expect("outside");
    let pod = lab.pod_number(node, "p", 9).expect("pod");
    let _server = pod.serve(ServerSpec::tcp(80)).expect("serve");
    let vip: SocketAddr = ([10, 96, 0, 10], 80).into();
    for ns in [&node.ns, &outside] {
        let error = ns.run(|| tcp_get(vip, PATIENCE)).expect_err("nobody has this address");
        assert_eq!(error.kind(), std::io::ErrorKind::NetworkUnreachable);
    }
    outside.run(|| tcp_get(four(&pod, 80), PATIENCE)).expect_err("no route to pods either, until one is given");
    outside.ip("route add 10.244.1.0/24 via 192.168.10.100\n").expect("route");
    outside.run(|| is_from(tcp_get(four(&pod, 80), PATIENCE), "p", [192, 168, 10, 200]));
}

#[test]
#[ignore = "needs root: cargo xtask test --tier 3 --filter load_counts"]
fn load_counts_who_answers_and_what_fails() {
    let lab = Lab::cluster("lab-c", 1).expect("cluster");
    let node = &lab.nodes()[0];
    let pod = lab.pod_number(node, "p", 9).expect("pod");
    let server = pod.serve(ServerSpec::tcp(80)).expect("serve");
    let spec = LoadSpec { duration: Duration::from_secs(1), ..LoadSpec::new(four(&pod, 80)) };
    let report = node.ns.run(|| Load::start(&spec)).finish();
    assert!(report.answered >= 4 && report.failed == 0, "{report:?}");
    assert_eq!(report.by_name.keys().collect::<Vec<_>>(), ["p"]);

    let kept = LoadSpec { transport: Transport::KeptTcp, ..spec.clone() };
    let load = node.ns.run(|| Load::start(&kept));
    kube_router_tests::wait_for("four connections", PATIENCE, || server.connections() == 4).expect("connections");
    server.close_connections();
    let report = load.finish();
    assert_eq!(report.failed, 4, "each of four connections broke once: {report:?}");

    drop(server);
    let report = node.ns.run(|| Load::start(&spec)).finish();
    assert!(report.answered == 0 && report.failed >= 4, "{report:?}");
}

#[test]
#[ignore = "needs root: cargo xtask test --tier 3 --filter lab_takes"]
fn lab_takes_away_what_it_made_and_nothing_else() {
    let bystander = kube_router_tests::netns::Netns::create("lab-d-not-mine").expect("namespace");
    let names = {
        let lab = Lab::cluster("lab-d", 2).expect("cluster");
        let pod = lab.pod_number(&lab.nodes()[0], "p", 9).expect("pod");
        let mut names: Vec<_> = lab.nodes().iter().map(|node| node.ns.path()).collect();
        names.push(pod.ns.path());
        assert!(names.iter().all(|name| name.exists()));
        assert!(Lab::new("lab-d").is_err(), "a name in use is not taken over");
        names
    };
    assert!(names.iter().all(|name| !name.exists()), "{names:?}");
    assert!(!Path::new("/run/netns/lab-d-fabric").exists());
    assert!(bystander.path().exists());
}
