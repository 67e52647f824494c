//! The virtual machine is what the other `vm_*` files count on.

use std::fs;
use std::net::IpAddr;

use kube_router_tests::lab::Lab;
use kube_router_tests::probe::{Connection, PATIENCE, sctp_ask};
use kube_router_tests::server::ServerSpec;

#[test]
#[ignore = "needs a virtual machine: cargo xtask test --tier 4 --filter machine"]
fn machine_runs_the_kernel_that_was_asked_for() {
    let wanted = std::env::var("KUBE_ROUTER_VM").expect("set by the machine's start script");
    let release = fs::read_to_string("/proc/sys/kernel/osrelease").expect("osrelease");
    assert!(release.starts_with(&format!("{wanted}.")), "{wanted} was asked for, {release} runs");
}

#[test]
#[ignore = "needs a virtual machine: cargo xtask test --tier 4 --filter machine"]
fn machine_has_ipvs_and_no_way_out() {
    assert!(fs::read_to_string("/proc/net/ip_vs").expect("ip_vs is loaded").starts_with("IP Virtual Server"));
    let routes = fs::read_to_string("/proc/net/route").expect("routes");
    let default = routes.lines().skip(1).any(|line| line.split_whitespace().nth(1) == Some("00000000"));
    assert!(!default, "a default route would let test traffic leave:\n{routes}");
}

#[test]
#[ignore = "needs a virtual machine: cargo xtask test --tier 4 --filter sctp"]
fn sctp_between_pods() {
    let lab = Lab::cluster("sctp", 2).expect("cluster");
    let [n1, n2] = lab.nodes() else { panic!("two nodes") };
    let a = lab.pod_number(n1, "a", 5).expect("pod a");
    let b = lab.pod_number(n2, "b", 6).expect("pod b");
    let _server = b.serve(ServerSpec::default().and_sctp(9000)).expect("serve");
    for ip in [IpAddr::from(b.ip4.expect("v4")), IpAddr::from(b.ip6.expect("v6"))] {
        let answer = a.ns.run(|| sctp_ask((ip, 9000).into(), PATIENCE)).expect("an answer");
        assert_eq!((answer.name.as_str(), answer.ip), ("b", ip.to_string()));
        let mut kept = a.ns.run(|| Connection::sctp((ip, 9000).into(), PATIENCE)).expect("connect");
        kept.keep().expect("keep");
        kept.echo("still there").expect("echo");
    }
    let nobody = a.ns.run(|| sctp_ask((b.ip4.expect("v4"), 9001).into(), PATIENCE));
    assert!(nobody.is_err(), "nothing listens on that port");
}
