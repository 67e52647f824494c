//! `kube-router explain` on a node: the built program, an agent's status socket, and real pinned maps.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::Path,
    process::Command,
    sync::Arc,
    thread,
};

use kube_router::{
    apply::bpf::{Dataplane, Tables},
    cluster::{ClusterState, Dirty},
    compile::policy::{PolicyCompiler, PolicyConfig, address_of},
    explain::Here,
    objects::{
        ObjectEvent,
        parse::{Claim, RawObject},
    },
    observe::{
        Metrics, PolicyQuestions, Pulse, Questions,
        server::{Server, Wiring},
        socket,
    },
    plan::adopt::Numbered,
};
use kube_router_common::policy::{Endpoint, PORT_ENTRIES, PodGroups, PolicyRow};
use tokio::sync::watch;

use crate::{alone, net::Pins};

fn shop() -> ClusterState {
    let (mut cluster, mut dirty) = (ClusterState::new(), Dirty::default());
    let yaml = include_str!("../fixtures/policies/shop.yaml");
    let raw: Vec<RawObject> = serde_saphyr::from_multiple(yaml).expect("YAML");
    for raw in raw {
        let Claim::Ours(kind) = raw.claim() else { panic!("not ours") };
        cluster.apply(ObjectEvent::Applied(raw.parse(kind).expect("an object").object), &mut dirty);
    }
    cluster
}

fn compile(cluster: &ClusterState) -> PolicyCompiler {
    let mut compiler = PolicyCompiler::new(PolicyConfig::new("n1"));
    let node = BTreeSet::from(["192.168.77.1".parse().expect("address")]);
    compiler.update(cluster, &Dirty::default(), &node, &BTreeSet::new());
    compiler
}

/// The maps as the agent wants them.
fn write(compiler: &PolicyCompiler, tables: &Tables) {
    let wanted = compiler.state();
    let endpoint = |(address, pod): (&_, &u32)| (*address, Endpoint { pod: *pod, ifindex: 1, ..Endpoint::default() });
    tables.endpoints.put_all(&wanted.endpoints.iter().map(endpoint).collect::<Vec<_>>()).expect("endpoints");
    tables.pods.put_all(&rows(&wanted.pods)).expect("pods");
    tables.peers.put_all(&rows(&wanted.peers)).expect("peers");
    tables.cidrs.put_all(&rows(&wanted.cidrs)).expect("cidrs");
    tables.policy.put_all(&rows(&wanted.rows)).expect("rows");
    let class = |index: u32| wanted.ports.range(..=index).next_back().map_or(0, |(_, class)| *class);
    tables.ports.put_all(&(0..PORT_ENTRIES).map(|index| (index, class(index))).collect::<Vec<_>>()).expect("ports");
}

fn rows<K: Copy, V: Copy>(map: &BTreeMap<K, V>) -> Vec<(K, V)> {
    map.iter().map(|(key, value)| (*key, *value)).collect()
}

/// As the agent's: a loop that answers, played by a thread.
fn agent(socket: &Path) -> Server {
    let (policy, mut queries) = PolicyQuestions::channel();
    let (questions, _) = Questions::channel();
    let wiring = Wiring {
        metrics: Arc::new(Metrics::new(false)),
        pulse: Arc::new(Pulse::default()),
        questions: questions.with_policy(policy),
        policy: None,
        stats: None,
        health_checks: watch::channel(BTreeMap::new()).1,
    };
    thread::spawn(move || {
        let cluster = shop();
        let compiler = compile(&cluster);
        while let Some(query) = queries.blocking_recv() {
            query.answer(&cluster, Here { node: "n1", addresses: None, compiler: Some(Numbered::plain(&compiler)) });
        }
    });
    Server::start(Vec::new(), Some(socket::bind(socket).expect("socket")), wiring).expect("server")
}

#[test]
#[ignore = "needs root and the BPF object: cargo xtask test --tier 2 --filter explain_finds"]
fn explain_finds_what_differs_in_the_kernel() {
    let _alone = alone();
    let pins = Pins::new();
    let dataplane = Dataplane::load(&pins.options()).expect("load");
    let cluster = shop();
    let compiler = compile(&cluster);
    write(&compiler, dataplane.tables());
    let directory = tempfile::tempdir().expect("directory");
    let socket = directory.path().join("agent.sock");
    let _server = agent(&socket);
    let root = pins.root();
    let maps = root.parent().expect("a root has a base");
    let ask = |from: &str, to: &str| {
        let output = Command::new(env!("CARGO_BIN_EXE_kube-router"))
            .args(["explain", "--port=tcp/5432", "--from", from, "--to", to])
            .arg(format!("--socket={}", socket.display()))
            .arg(format!("--maps={}", maps.display()))
            .output()
            .expect("explain");
        let text = String::from_utf8(output.stdout).expect("text");
        (output.status.code(), text + &String::from_utf8_lossy(&output.stderr))
    };
    let (code, text) = ask("shop/front-1", "db/postgres-0");
    assert_eq!(code, Some(0), "{text}");
    assert!(text.ends_with("verdict: allowed\nkernel: agrees, 2 verdicts compared\n"), "{text}");
    let (code, text) = ask("default/visitor", "db/postgres-0");
    assert_eq!(code, Some(1), "{text}");
    assert!(text.ends_with("kernel: agrees, 2 verdicts compared\n"), "{text}");
    let (code, text) = ask("watch/prometheus", "db/postgres-1");
    assert_eq!(code, Some(1), "{text}");
    assert!(text.ends_with("kernel: not asked, no pod of this node is judged\n"), "{text}");

    // A row that nobody wants: the kernel would let the visitor in.
    let tables = dataplane.tables();
    let wanted = compiler.state();
    let database = wanted.endpoints[&address_of([10, 244, 1, 21].into())];
    let group = wanted.pods[&database].ingress;
    let any = kube_router_common::policy::PolicyKey { group, class: u32::MAX, ports: u32::MAX };
    tables.policy.put(&any, &PolicyRow { verdict: PolicyRow::ALLOW, rule: 0 }).expect("row");
    let (code, text) = ask("default/visitor", "db/postgres-0");
    assert_eq!(code, Some(3), "{text}");
    let fault = format!("FAULT: ingress of db/postgres-0: kr_policy, group {group}: [class any, ports any] allow by -");
    assert!(text.contains(&fault), "{text}");
    tables.policy.delete(&any).expect("delete");

    // A pod that is open although policies isolate it.
    tables.pods.put(&database, &PodGroups::default()).expect("pod");
    let (code, text) = ask("default/visitor", "db/postgres-0");
    assert_eq!(code, Some(3), "{text}");
    assert!(
        text.contains(&format!("kr_pods[{database}].ingress is group 0 (open), the agent wants {group}")),
        "{text}"
    );
}
