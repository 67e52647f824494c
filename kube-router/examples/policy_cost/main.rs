//! What the policy compiler costs: a cold compile, and one event at a time, for 10,000 pods of which 64 are ours.
//!
//! ```sh
//! cargo run --release -p kube-router --example policy_cost [POLICIES [PODS [NAMESPACES]]]
//! ```

use std::{
    collections::BTreeSet,
    net::{IpAddr, Ipv4Addr},
    time::{Duration, Instant},
};

use kube_router::{
    cluster::{ClusterState, Dirty},
    compile::policy::{PolicyCompiler, PolicyConfig},
    objects::{
        IpBlock, LabelSelector, Namespace, NetworkPolicy, Object, ObjectEvent, ObjectKey, Pod, PolicyPeer, PolicyPort,
        PolicyRule, PortRef,
    },
    plan::policy::plan_policy,
};

const LOCAL: u32 = 64;
/// Pods of one application.
const REPLICAS: u32 = 10;

struct Shape {
    policies: u32,
    pods: u32,
    namespaces: u32,
}

impl Shape {
    fn namespace(&self, n: u32) -> String {
        format!("team-{}", n % self.namespaces)
    }

    /// Applications are spread over namespaces, pods over applications.
    fn app(&self, pod: u32) -> u32 {
        pod / REPLICAS
    }

    fn pod(&self, n: u32, extra: Option<&str>) -> Object {
        let app = self.app(n);
        let mut labels = vec![("app", format!("app-{app}")), ("pod-template-hash", "6c9f7d5b8".to_owned())];
        labels.extend(extra.map(|value| ("role", value.to_owned())));
        let local = n.is_multiple_of(self.pods / LOCAL);
        Object::Pod(Pod {
            key: ObjectKey::new(self.namespace(app), format!("app-{app}-6c9f7d5b8-{n:05}")),
            created_s: 1_700_000_000,
            labels: labels.into_iter().collect(),
            node: Some(if local { "n0".into() } else { format!("n{}", 1 + n % 156).into() }),
            host_ips: Default::default(),
            ips: vec![IpAddr::V4(Ipv4Addr::from(0x0a80_0001 + n))],
            host_network: false,
            completed: false,
            terminating: false,
            grace_period_s: Some(30),
            ports: Default::default(),
        })
    }

    /// Every application has policies: who may call it (one application, a role, another namespace, a block), and whom
    /// it may call.
    fn policy(&self, n: u32, port: i64) -> Object {
        let apps = self.pods / REPLICAS;
        let app = n % apps;
        let select = |key: &str, value: String| LabelSelector {
            match_labels: [(key, value)].into_iter().collect(),
            ..LabelSelector::default()
        };
        let pods = |pods| PolicyPeer { pods: Some(pods), ..PolicyPeer::default() };
        let other = (app + n / apps * self.namespaces + self.namespaces) % apps;
        let peers = [
            pods(select("app", format!("app-{other}"))),
            pods(select("role", format!("client-{}", n % 7))),
            PolicyPeer {
                namespaces: Some(select("kubernetes.io/metadata.name", self.namespace(n + 1))),
                pods: Some(select("app", format!("app-{}", (app + 1) % apps))),
                block: None,
            },
            PolicyPeer {
                block: Some(IpBlock {
                    cidr: format!("172.{}.{}.0/24", 16 + n % 16, n % 256).into(),
                    except: [format!("172.{}.{}.128/25", 16 + n % 16, n % 256).into()].into(),
                }),
                ..PolicyPeer::default()
            },
        ];
        let ports = |port: i64| {
            let port = PolicyPort { protocol: None, port: Some(PortRef::Number(port)), end_port: None };
            Box::<[PolicyPort]>::from([port])
        };
        let rule =
            |peers: &[PolicyPeer], port| PolicyRule { peers: peers.into(), ports: ports(port), unreadable: None };
        Object::NetworkPolicy(NetworkPolicy {
            key: ObjectKey::new(self.namespace(app), format!("policy-{n:05}")),
            pod_selector: select("app", format!("app-{app}")),
            policy_types: ["Ingress".into(), "Egress".into()].into(),
            ingress: [rule(&peers, port)].into(),
            egress: [rule(&peers[..2], 8000 + i64::from(n % 50))].into(),
        })
    }
}

fn resident_mb() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap_or_default();
    line.split_whitespace().next().and_then(|kb| kb.parse::<u64>().ok()).unwrap_or(0) / 1024
}

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

    fn series(&mut self, what: &str, objects: impl Iterator<Item = Object>) {
        let mut all: Vec<(Duration, usize)> = objects.map(|object| self.event(object)).collect();
        all.sort();
        let (median, worst) = (all[all.len() / 2], all[all.len() - 1]);
        let most = all.iter().map(|(_, orders)| *orders).max().unwrap_or(0);
        println!(
            "{what:44} median {:>9.1} us, worst {:>9.1} us, at most {most} orders",
            median.0.as_secs_f64() * 1e6,
            worst.0.as_secs_f64() * 1e6
        );
    }
}

fn main() {
    let numbers: Vec<u32> = std::env::args().skip(1).filter_map(|word| word.parse().ok()).collect();
    let at = |i: usize, default| numbers.get(i).copied().unwrap_or(default);
    let shape = Shape { policies: at(0, 10_000), pods: at(1, 10_000), namespaces: at(2, 100) };
    let mut agent = Agent {
        cluster: ClusterState::new(),
        compiler: PolicyCompiler::new(PolicyConfig::new("n0")),
        node: BTreeSet::from([[192, 168, 10, 100].into()]),
        services: (0..10_000u32).map(|n| IpAddr::V4(Ipv4Addr::from(0x0a60_0001 + n))).collect(),
    };
    let before = resident_mb();
    let mut dirty = Dirty::default();
    for n in 0..shape.namespaces {
        let key = ObjectKey::cluster(shape.namespace(n));
        let namespace = Namespace { key, labels: Default::default(), isolation: None };
        agent.cluster.apply(ObjectEvent::Applied(Object::Namespace(namespace)), &mut dirty);
    }
    for n in 0..shape.pods {
        agent.cluster.apply(ObjectEvent::Applied(shape.pod(n, None)), &mut dirty);
    }
    for n in 0..shape.policies {
        agent.cluster.apply(ObjectEvent::Applied(shape.policy(n, 80 + i64::from(n % 100))), &mut dirty);
    }
    let objects = resident_mb();
    let began = Instant::now();
    let changes = agent.compiler.update(&agent.cluster, &dirty, &agent.node, &agent.services);
    let compiled = began.elapsed();
    let orders = plan_policy(&changes).len();
    let planned = began.elapsed();
    drop((changes, dirty));
    let tables = agent.compiler.state();
    println!(
        "{} policies, {} pods ({} ours), {} namespaces",
        shape.policies,
        shape.pods,
        agent.compiler.local_pods().count(),
        shape.namespaces
    );
    println!(
        "{} rows, {} peers, {} prefixes, {} port runs, {} rules",
        tables.rows.len(),
        tables.peers.len(),
        tables.cidrs.len(),
        tables.ports.len(),
        tables.rules.len()
    );
    println!(
        "cold compile {:.0} ms, with the plan of {orders} orders {:.0} ms",
        compiled.as_secs_f64() * 1e3,
        planned.as_secs_f64() * 1e3
    );
    println!("resident: {before} MB, with the objects {objects} MB, compiled {} MB", resident_mb());

    let step = shape.pods / LOCAL;
    let peers = |n: u32| (n * 37 + 1) % shape.pods;
    agent.series("a peer gets a label", (0..500).map(|n| shape.pod(peers(n), Some(&format!("client-{}", n % 7)))));
    agent.series("a peer loses it", (0..500).map(|n| shape.pod(peers(n), None)));
    agent.series("a pod of ours gets a label", (0..LOCAL).map(|n| shape.pod(n * step, Some("client-3"))));
    agent.series("a policy of ours gets another port", (0..100).map(|n| shape.policy(n * step / REPLICAS, 4000)));
    agent.series("a policy of others gets another port", (0..100).map(|n| shape.policy(n * 3 + 1, 4001)));
}
