//! Scenarios of network policy with the service proxy on: between pods at their own addresses, in all protocols, and some
//! of them through cluster IPs and node ports. A headless service is not asked: its name resolves to the pods' own
//! addresses, and from there on it is the same.

use std::time::Instant;

use kube_router_tests::{
    lab::load_modules,
    netpol::{Cluster, Play, Route, all, cluster::Patience},
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

/// An emulated machine is slow: each round asks a part of all questions, the next round another one.
const DIRECT: usize = 4;
const SERVICES: usize = 8;

#[test]
#[ignore = "needs IPVS and SCTP: cargo xtask test --tier 6"]
fn every_scenario_and_some_through_services() {
    let mut cluster = cluster("netpolv");
    let direct = Play { share: DIRECT, ..Play::direct(&cluster) };
    let routes = vec![Route::Direct, Route::ClusterIp, Route::NodePort(1), Route::NodePort(2)];
    let services = Play { routes, share: SERVICES, ..direct.clone() };
    let through = services.play_all(&mut cluster, all().filter(|scenario| scenario.services));
    direct.play_all(&mut cluster, all().filter(|scenario| !scenario.services)).unwrap();
    through.unwrap();
}
