//! What the policy compiler costs without a kernel: a cold compile, and one event at a time.

use std::{
    collections::BTreeSet,
    net::{IpAddr, Ipv4Addr},
    time::{Duration, Instant},
};

use anyhow::Result;
use kube_router::{
    cluster::{ClusterState, Dirty},
    compile::policy::{PolicyCompiler, PolicyConfig},
    objects::{Object, ObjectEvent},
    plan::policy::plan_policy,
};
use serde_json::json;

use crate::cluster::{LOCAL, Measured, NODE, NODE_ADDRESS, Shape};

const SERVICES: u32 = 10_000;

struct Agent {
    cluster: ClusterState,
    compiler: PolicyCompiler,
    node: BTreeSet<IpAddr>,
    services: BTreeSet<IpAddr>,
}

impl Agent {
    /// Time, and orders to the kernel without the end of what nobody needs any more.
    fn event(&mut self, object: Object) -> (Duration, usize) {
        let began = Instant::now();
        let mut dirty = Dirty::default();
        self.cluster.apply(ObjectEvent::Applied(object), &mut dirty);
        let changes = self.compiler.update(&self.cluster, &dirty, &self.node, &self.services);
        let orders = plan_policy(&changes).len();
        let took = began.elapsed();
        self.compiler.confirm(changes.update);
        while self.compiler.has_leftovers() {
            let rest = self.compiler.update(&self.cluster, &Dirty::default(), &self.node, &self.services);
            self.compiler.confirm(rest.update);
        }
        (took, orders)
    }

    fn series(&mut self, shape: &Shape, event: &str, objects: impl Iterator<Item = Object>) {
        let mut all: Vec<(Duration, usize)> = objects.map(|object| self.event(object)).collect();
        let most = all.iter().map(|(_, orders)| *orders).max();
        all.sort();
        let ns = |at: usize| all.get(at).map(|(took, _)| took.as_nanos());
        let line = json!({
            "what": "change", "policies": shape.policies, "pods": shape.pods, "event": event,
            "median_ns": ns(all.len() / 2), "worst_ns": ns(all.len().saturating_sub(1)), "orders": most,
        });
        println!("{line}");
    }
}

pub fn run(shape: Shape) -> Result<()> {
    let mut agent = Agent {
        cluster: ClusterState::new(),
        compiler: PolicyCompiler::new(PolicyConfig::new(NODE)),
        node: BTreeSet::from([NODE_ADDRESS.into()]),
        services: (0..SERVICES).map(|n| IpAddr::V4(Ipv4Addr::from(0x0a60_0001 + n))).collect(),
    };
    let mut dirty = Dirty::default();
    let measured = Measured { policies: 2, neighbours: 0, last: false };
    for object in shape.objects().into_iter().chain(measured.objects()) {
        agent.cluster.apply(ObjectEvent::Applied(object), &mut dirty);
    }
    let began = Instant::now();
    let changes = agent.compiler.update(&agent.cluster, &dirty, &agent.node, &agent.services);
    let compiled = began.elapsed();
    let orders = plan_policy(&changes).len();
    let planned = began.elapsed();
    drop((changes, dirty));
    let tables = agent.compiler.state();
    let line = json!({
        "what": "cold", "policies": shape.policies, "pods": shape.pods, "local": agent.compiler.local_pods().count(),
        "rows": tables.rows.len(), "peers": tables.peers.len(), "prefixes": tables.cidrs.len(),
        "rules": tables.rules.len(), "orders": orders, "compile_ns": compiled.as_nanos(),
        "plan_ns": (planned - compiled).as_nanos(),
    });
    println!("{line}");

    // What speaks of this pod is the same whatever the size of the cluster.
    agent.series(
        &shape,
        "a peer that two policies name gets another label",
        (0..500).map(|n| measured.peer(0, n % 2 == 0)),
    );
    let peers = |n: u32| (n * 37 + 1) % shape.pods;
    let role = |n: u32| format!("client-{}", n % 7);
    agent.series(&shape, "a peer gets a label", (0..500).map(|n| shape.pod(peers(n), Some(&role(n)))));
    agent.series(&shape, "a peer loses it", (0..500).map(|n| shape.pod(peers(n), None)));
    agent.series(&shape, "a pod of ours gets a label", (0..LOCAL).map(|n| shape.pod(shape.ours(n), Some("client-3"))));
    agent.series(&shape, "a policy of ours gets another port", (0..LOCAL).map(|n| shape.policy_of_ours(n, 4000)));
    agent.series(&shape, "a policy of others gets another port", (0..100).map(|n| shape.policy(n * 3 + 1, 4001)));
    Ok(())
}
