//! Every scenario of network policy between pods on two nodes, at their own addresses: this machine's kernel. After each
//! step the agents explain every question, and the rules that they name are those that have counted it.

use kube_router_tests::netpol::{Cluster, Play, Route, all, cluster::Patience, told::Explained};

#[test]
#[ignore = "needs root and BPF: cargo xtask test --tier 3"]
fn every_scenario_at_the_pods_own_addresses() {
    let mut cluster = Cluster::new("netpols", Patience::HOST).unwrap();
    cluster.start(&["--run-service-proxy=false", "--run-router=false"]).unwrap();
    let play = Play { explained: Some(Explained { routes: vec![Route::Direct], share: 1 }), ..Play::direct(&cluster) };
    play.play_all(&mut cluster, all()).unwrap();
}
