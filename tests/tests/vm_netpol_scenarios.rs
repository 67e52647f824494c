//! Scenarios of network policy with the service proxy on: between pods at their own addresses, in all protocols, and some
//! of them through cluster IPs and node ports. The truth table does not ask a headless service: its name resolves to the
//! pods' own addresses, and from there on it is the same.
//!
//! An emulated machine is slow: each round asks a part of all questions, the next round another one, and no two
//! neighbours among the scenarios begin with the same; neither do the two kernels. After each step a sample of the questions, on
//! every way to a pod and in every scenario, is explained, and the rules that are named are those that have counted it.

use std::{fs, time::Instant};

use kube_router_tests::{
    lab::load_modules,
    netpol::{Cluster, Play, Route, all, cluster::Patience, told::Explained},
};

const FLAGS: [&str; 1] = ["--service-cluster-ip-range=10.96.0.0/12,fd00:10:96::/112"];

fn cluster(prefix: &str) -> Cluster {
    load_modules(&["ip_vs", "ip_vs_rr", "dummy", "sctp", "br_netfilter", "nf_conntrack"]).unwrap();
    let begin = Instant::now();
    let mut cluster = Cluster::new(prefix, Patience::EMULATED).unwrap();
    cluster.add_services().unwrap();
    cluster.start(&FLAGS).unwrap();
    println!("cluster after {:.1} s", begin.elapsed().as_secs_f64());
    cluster
}

/// Two rounds a step: half of the questions, and a quarter of those that include services.
const DIRECT: usize = 4;
const SERVICES: usize = 8;
const EXPLAINED: usize = 16;

/// On 6.1 as many rounds later as a step has, so that both kernels together are asked twice as much.
fn turn() -> usize {
    let release = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap();
    let minor: usize = release.split('.').nth(1).unwrap().parse().unwrap();
    2 * (minor % 2)
}

#[test]
#[ignore = "needs IPVS and SCTP: cargo xtask test --tier 6"]
fn every_scenario_and_some_through_services() {
    let mut cluster = cluster("netpolv");
    let balanced = [Route::ClusterIp, Route::NodePort(1), Route::NodePort(2)];
    let explained = [&[Route::Direct, Route::Headless], &balanced[..]].concat();
    let explained = Some(Explained { routes: explained, share: EXPLAINED });
    let direct = Play { share: DIRECT, turn: turn(), explained, ..Play::direct(&cluster) };
    let routes = [&[Route::Direct], &balanced[..]].concat();
    let services = Play { routes, share: SERVICES, ..direct.clone() };
    let through = services.play_all(&mut cluster, all().filter(|scenario| scenario.services));
    direct.play_all(&mut cluster, all().filter(|scenario| !scenario.services)).unwrap();
    through.unwrap();
}
