//! Records with names, to several watchers; a file of packets; questions of policy over the socket.

use std::{collections::BTreeSet, ops::ControlFlow};

use kube_router_common::{
    event::EventHead,
    flow::Tcp,
    policy::{Address, PolicyRow},
    reason::{self, Reason},
    twin::build::Build,
};
use tokio::runtime::Builder;

use super::*;
use crate::{
    cluster::{ClusterState, Dirty},
    compile::policy::{PolicyCompiler, PolicyConfig},
    explain::{Answer, Here, PolicyNames, Question, tests::shop::shop},
    objects::{ClusterNetworkPolicy, Object, ObjectEvent, ObjectKey},
    observe::{
        PolicyQuestions,
        monitor::{Broadcaster, Line, Lines, Seen, SeenKind, Wish},
        pcapng::Pcapng,
        socket::{MONITOR_PATH, OBJECTS_PATH, POLICY_NAMES_PATH, explain_path},
        socket_client::{self, ClientError},
    },
    plan::adopt::Numbered,
};

const FRONT: [u8; 4] = [10, 244, 1, 11];
const CART: [u8; 4] = [10, 244, 1, 12];

fn compiler(cluster: &ClusterState) -> PolicyCompiler {
    let mut compiler = PolicyCompiler::new(PolicyConfig::new("n1"));
    compiler.update(cluster, &Dirty::default(), &BTreeSet::new(), &BTreeSet::new());
    compiler
}

/// A packet from the front to a port of the cart, as the hook of the cart's veth met it.
fn packet(port: u16) -> Vec<u8> {
    Build::tcp((Address::from_v4(FRONT), 34_000), (Address::from_v4(CART), port), Tcp::SYN).bytes()
}

fn seen(kind: u8, reason: u8, rule: u32, port: u16) -> Seen {
    let cluster = shop();
    let compiler = compiler(&cluster);
    let (_, cart) = compiler.local_pods().find(|(key, _)| &*key.name == "cart").unwrap();
    let bytes = packet(port);
    let verdict = if kind == EventHead::DROP { PolicyRow::DENY } else { PolicyRow::ALLOW };
    let head = EventHead {
        time_ns: 3_723_004_000_000,
        length: bytes.len() as u32,
        pod: cart,
        rule,
        ifindex: 9,
        source: Address::from_v4(FRONT),
        destination: Address::from_v4(CART),
        source_port: 34_000,
        destination_port: port,
        protocol: 6,
        kind,
        reason,
        direction: reason::Direction::Ingress as u8,
        verdict: verdict as u8,
        captured: bytes.len() as u8,
        ..EventHead::default()
    };
    Seen::new(&head, &bytes, &cluster, Some(Numbered::plain(&compiler)), 1_000_000_000 * 86_400)
}

fn drop_of(port: u16) -> Seen {
    seen(EventHead::DROP, Reason::Denied as u8, 0, port)
}

#[test]
fn a_record_reads_as_a_line() {
    let dropped = drop_of(9100);
    let ends = "shop/front-1 10.244.1.11:34000 -> shop/cart 10.244.1.12:9100";
    assert_eq!(dropped.text(), format!("01:02:03.004 drop ingress of shop/cart: {ends} tcp, no rule allows it"));
    assert_eq!(dropped.bytes(), packet(9100));
    let cluster = shop();
    let rules = compiler(&cluster).state().rules.clone();
    let (number, _) = rules.iter().find(|(_, rule)| &*rule.policy.name == "cart" && rule.index == 0).unwrap();
    let flow = seen(EventHead::FLOW, 0, *number, 8000);
    assert!(flow.text().ends_with(":8000 tcp, by NetworkPolicy shop/cart ingress[0]"), "{}", flow.text());
    // The page's examples; the times are others.
    let page = include_str!("../../../../docs/looking-at-policy.md");
    let shown: Vec<&str> =
        page.lines().filter_map(|line| line.split_once("drop ingress of").map(|(_, rest)| rest)).collect();
    assert_eq!(shown, [dropped.text().split_once("drop ingress of").unwrap().1]);
    let shown = page.lines().find(|line| line.contains(" flow ingress of ")).unwrap();
    assert_eq!(shown[13..].replace("34002", "34000"), flow.text()[13..]);
    let spoofed = seen(EventHead::DROP, Reason::SourceMac as u8, 0, 80);
    assert!(spoofed.text().ends_with("tcp, source_mac"), "{}", spoofed.text());
    // Nothing is known.
    let blank = Seen::new(&EventHead::default(), &[], &cluster, None, 0);
    assert_eq!(blank.text(), "00:00:00.000 drop egress of interface 0: ? -> ? ?, not isolated");
    let line = serde_json::to_string(&Line::Seen(Box::new(flow.clone()))).unwrap();
    assert_eq!(serde_json::from_str::<Line>(&line).unwrap(), Line::Seen(Box::new(flow)));
}

fn take(lines: &mut Lines) -> Vec<Line> {
    let mut taken = Vec::new();
    while let Some(Some(Ok(line))) = futures::FutureExt::now_or_never(futures::StreamExt::next(lines)) {
        taken.push(serde_json::from_slice(&line).unwrap());
    }
    taken
}

#[test]
fn watchers_get_what_they_wish_and_slow_ones_are_told() {
    let all = Broadcaster::default();
    assert!(!all.is_watched() && !all.wants_flows());
    let mut drops = all.subscribe(Wish { drops: true, pod: None });
    assert!(all.is_watched() && !all.wants_flows());
    let mut cart = all.subscribe(Wish { drops: false, pod: Some("shop/cart".into()) });
    let mut other = all.subscribe(Wish { drops: false, pod: Some("db/postgres-0".into()) });
    assert!(all.wants_flows());
    all.publish(seen(EventHead::FLOW, 0, 0, 8000));
    all.publish(drop_of(9100));
    assert_eq!((take(&mut drops).len(), take(&mut cart).len(), take(&mut other).len()), (1, 2, 0));
    drop((cart, other));
    assert!(all.is_watched() && !all.wants_flows());
    // More than wait.
    let dropped = drop_of(9100);
    (0..3_000).for_each(|_| all.publish(dropped.clone()));
    let first = take(&mut drops);
    assert!(first.len() < 3_000 && first.iter().all(|line| matches!(line, Line::Seen(_))), "{}", first.len());
    all.publish(dropped.clone());
    let rest = take(&mut drops);
    let lost = 3_000 - first.len() as u64;
    assert_eq!(rest, [Line::Lost { lost }, Line::Seen(Box::new(dropped.clone()))]);
    all.publish(dropped.clone());
    assert_eq!(take(&mut drops), [Line::Seen(Box::new(dropped))], "told once");
    drop(drops);
    assert!(!all.is_watched());
}

/// As draft-ietf-opsawg-pcapng has it; tcpdump reads such a file in the lab.
#[test]
fn a_file_has_its_blocks_times_and_comments() {
    let mut format = Pcapng::default();
    let mut file = Pcapng::header();
    file.extend(format.packet(&drop_of(9100)));
    let elsewhere = Seen { ifindex: 10, length: 1_500, kind: SeenKind::Flow, allowed: true, ..drop_of(81) };
    file.extend(format.packet(&elsewhere));
    let number = |bytes: &[u8], at: usize| u32::from_ne_bytes(bytes[at..at + 4].try_into().unwrap());
    let (mut blocks, mut rest) = (Vec::new(), &file[..]);
    while !rest.is_empty() {
        let (block, more) = rest.split_at(number(rest, 4) as usize);
        assert_eq!(number(block, block.len() - 4), number(block, 4), "the length stands at both ends");
        (rest, _) = (more, blocks.push(block));
    }
    let kinds: Vec<u32> = blocks.iter().map(|block| number(block, 0)).collect();
    assert_eq!(kinds, [0x0a0d_0d0a, 1, 6, 1, 6], "section, and an interface before its packet");
    let packet = |at: usize| {
        let block = blocks[at];
        let time_ns = u64::from(number(block, 12)) << 32 | u64::from(number(block, 16));
        (number(block, 8), time_ns, number(block, 20), number(block, 24))
    };
    let captured = self::packet(9100).len() as u32;
    let time_ns = drop_of(9100).time_ns;
    assert_eq!([packet(2), packet(4)], [(0, time_ns, captured, captured), (1, time_ns, captured, 1_500)]);
    let comment = "dropped: ingress of shop/cart, no rule allows it";
    assert!(blocks[2].windows(comment.len()).any(|bytes| bytes == comment.as_bytes()));
}

/// The shop, with a policy of the whole cluster.
fn cluster() -> ClusterState {
    let (mut cluster, mut dirty) = (shop(), Dirty::default());
    let fence = ClusterNetworkPolicy { key: ObjectKey::cluster("fence"), ..ClusterNetworkPolicy::default() };
    cluster.apply(ObjectEvent::Applied(Object::ClusterNetworkPolicy(fence)), &mut dirty);
    cluster
}

/// An agent that knows the shop, with the loop's part played by a thread.
fn agent() -> (Agent, PolicyQuestions) {
    let (policy, mut queries) = PolicyQuestions::channel();
    let agent = Agent::start_with(Stats::Counts, |questions| questions.with_policy(policy.clone()));
    std::thread::spawn(move || {
        let cluster = cluster();
        let compiler = compiler(&cluster);
        while let Some(query) = queries.blocking_recv() {
            query.answer(&cluster, Here { node: "n1", addresses: None, compiler: Some(Numbered::plain(&compiler)) });
        }
    });
    (agent, policy)
}

#[test]
fn questions_of_policy_are_answered_over_the_socket() {
    let (agent, _policy) = agent();
    let runtime = Builder::new_current_thread().enable_all().build().unwrap();
    let socket = agent.socket();
    let question = Question { from: "shop/front-1".into(), to: "svc/db/pg".into(), port: None };
    let answer: Answer = runtime.block_on(socket_client::get(&socket, &explain_path(&question))).unwrap();
    assert_eq!((answer.ways.len(), answer.allowed), (2, false));
    assert!(answer.ways[0].egress.wanted.as_ref().is_some_and(|wanted| wanted.allowed));
    let unknown = Question { from: "shop/front-9".into(), ..question };
    let refusal = runtime.block_on(socket_client::get::<Answer>(&socket, &explain_path(&unknown))).unwrap_err();
    assert!(refusal.to_string().contains("there is shop/front-1"), "{refusal}");
    let names: PolicyNames = runtime.block_on(socket_client::get(&socket, POLICY_NAMES_PATH)).unwrap();
    assert_eq!(names.pods.len(), 5);
    assert!(names.rules.values().any(|rule| rule.to_string() == "NetworkPolicy shop/front egress[1]"));
    // The objects are enough to answer the same elsewhere.
    let objects: Vec<Object> = runtime.block_on(socket_client::get(&socket, OBJECTS_PATH)).unwrap();
    let (mut cluster, mut dirty) = (ClusterState::new(), Dirty::default());
    objects.into_iter().for_each(|object| cluster.apply(ObjectEvent::Applied(object), &mut dirty));
    let table = |cluster| crate::explain::matrix::text::text(&crate::explain::matrix::matrix(cluster, None).unwrap());
    assert_eq!(table(&cluster), table(&self::cluster()));
    assert!(cluster.cluster_policy("fence").is_some());
}

#[test]
fn an_agent_without_policy_says_so() {
    let agent = Agent::start(Stats::Counts);
    let runtime = Builder::new_current_thread().enable_all().build().unwrap();
    for path in [POLICY_NAMES_PATH, OBJECTS_PATH, "/v1/explain?from=a/b&to=c/d"] {
        let error = runtime.block_on(socket_client::get::<serde_json::Value>(&agent.socket(), path)).unwrap_err();
        assert!(error.to_string().contains("does not run network policy"), "{path}: {error}");
    }
    let watched = runtime.block_on(socket_client::follow(&agent.socket(), MONITOR_PATH, |_| ControlFlow::Continue(())));
    assert!(matches!(watched, Err(ClientError::Declined { .. })), "{watched:?}");
}

#[test]
fn records_stream_until_the_watcher_goes() {
    let (agent, policy) = agent();
    let socket = agent.socket();
    let watcher = std::thread::spawn(move || {
        let runtime = Builder::new_current_thread().enable_all().build().unwrap();
        let mut taken = Vec::new();
        let path = format!("{MONITOR_PATH}?drops=1&pod=shop%2Fcart");
        runtime
            .block_on(socket_client::follow(&socket, &path, |line| {
                taken.push(serde_json::from_slice::<Line>(line).unwrap());
                if taken.len() == 3 { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
            }))
            .unwrap();
        taken
    });
    until(true, || policy.monitor().is_watched());
    assert!(!policy.monitor().wants_flows());
    policy.monitor().publish(seen(EventHead::FLOW, 0, 0, 8000));
    let dropped = drop_of(9100);
    (0..3).for_each(|_| policy.monitor().publish(dropped.clone()));
    assert_eq!(watcher.join().unwrap(), vec![Line::Seen(Box::new(dropped)); 3]);
    until(false, || policy.monitor().is_watched());
}
