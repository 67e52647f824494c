//! What the tests of network policy share: the cluster of the scenarios on this machine, and its simplest policies.

use kube_router::apply::bpf::Tables;
use kube_router_common::reason::Reason;
use kube_router_tests::netpol::{Cluster, cluster::Patience};

pub const FLAGS: [&str; 2] = ["--run-service-proxy=false", "--run-router=false"];

/// Isolates every pod of x in both directions.
pub const DENY_ALL: &str = "
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {namespace: x, name: deny}
spec: {podSelector: {}, policyTypes: [Ingress, Egress]}";

/// Isolates every pod of x for what comes in.
pub const DENY_INGRESS: &str = "
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {namespace: x, name: deny}
spec: {podSelector: {}, policyTypes: [Ingress]}";

/// Without agents.
pub fn cluster(prefix: &str) -> Cluster {
    Cluster::new(prefix, Patience::here()).unwrap()
}

/// With agents and these further flags.
pub fn started(prefix: &str, flags: &[&str]) -> Cluster {
    let mut cluster = cluster(prefix);
    cluster.start(&[&FLAGS, flags].concat()).unwrap();
    cluster
}

/// Packets that node `node` dropped for a reason.
pub fn drops(cluster: &Cluster, node: usize, reason: Reason) -> u64 {
    let tables = Tables::open(&cluster.pins[node - 1].of("")).unwrap();
    let sums = tables.drops.sums().unwrap();
    sums.iter().filter(|(key, _)| key.reason == reason as u8).map(|(_, traffic)| traffic.packets).sum()
}
