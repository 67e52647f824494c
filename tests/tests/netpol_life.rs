//! Network policy over time: connections that a change forbids, and agents that die and come back under load.

mod common;

use std::{
    net::SocketAddr,
    thread,
    time::{Duration, Instant},
};

use common::netpol::{DENY_ALL, DENY_INGRESS, FLAGS, started};
use kube_router::apply::bpf::Tables;
use kube_router_common::config::Config;
use kube_router_tests::{
    netpol::{
        Change::{Apply, Delete, LabelPod},
        Cluster,
        datagrams::{Flood, Listener},
        plan::{pod, socket},
    },
    pace,
    probe::{Kept, Transport},
    process::eventually,
};

const FAMILIES: [bool; 2] = [true, false];

fn soon() -> Duration {
    pace::choose(Duration::from_secs(10), Duration::from_secs(60))
}

/// x/a may be reached by y/b only.
const FROM_YB: &str = "
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {namespace: x, name: deny}
spec:
  podSelector: {matchLabels: {pod: a}}
  policyTypes: [Ingress]
  ingress: [{from: [{namespaceSelector: {matchLabels: {ns: y}}, podSelector: {matchLabels: {pod: b}}}]}]";

/// Connections of `from` to x/a, in both protocols and families.
fn connections(cluster: &Cluster, from: &str) -> Vec<Kept> {
    let ns = cluster.named(from).unwrap().ns;
    let mut all = Vec::new();
    for ipv4 in FAMILIES {
        for (transport, port) in [(Transport::Tcp, 0), (Transport::Udp, 2)] {
            let to = socket(pod("x/a").unwrap(), port, ipv4);
            let mut kept = ns.run(|| Kept::open(transport, to, cluster.patience.answer)).unwrap();
            kept.check().unwrap();
            all.push(kept);
        }
    }
    all
}

/// For two minutes after its tables were made anew an agent takes connections of pods that were not isolated for older than
/// its tables, and lets them live if either end might have begun them. Here that time is over at once.
fn end_learning(cluster: &Cluster) {
    for pins in &cluster.pins {
        let tables = Tables::open(&pins.of("")).unwrap();
        let config = tables.config().unwrap();
        tables.set_config(&Config { learn_until_s: 0, ..config }).unwrap();
    }
}

/// How many of them still work.
fn alive(all: &mut [Kept]) -> usize {
    thread::scope(|scope| {
        let ask = |kept| scope.spawn(move || Kept::is_alive(kept));
        let asked: Vec<_> = all.iter_mut().map(ask).collect();
        asked.into_iter().filter_map(|thread| thread.join().ok()).filter(|alive| *alive).count()
    })
}

#[test]
#[ignore = "needs root and BPF: cargo xtask test --tier 3"]
fn a_connection_ends_with_its_permission() {
    let mut cluster = started("netpole", &[]);
    end_learning(&cluster);
    // By a policy that isolates, by one that changes, and by a label that goes.
    let (mut near, mut far) = (connections(&cluster, "y/a"), connections(&cluster, "y/b"));
    cluster.change(&[Apply(FROM_YB)]).unwrap();
    assert_eq!((alive(&mut near), alive(&mut far)), (0, 4), "y/b may, y/a may not any more");
    cluster.change(&[LabelPod("y/b", "pod", "other")]).unwrap();
    assert_eq!(alive(&mut far), 0, "not called b any more");
    cluster.change(&[Delete("x", "deny")]).unwrap();
    let mut near = connections(&cluster, "y/a");
    cluster.change(&[Apply(DENY_INGRESS)]).unwrap();
    assert_eq!(alive(&mut near), 0);
    // What x/a itself began goes on: it is isolated for ingress only.
    cluster.change(&[Delete("x", "deny")]).unwrap();
    let to = socket(pod("y/b").unwrap(), 0, true);
    let mut own =
        cluster.named("x/a").unwrap().ns.run(|| Kept::open(Transport::Tcp, to, cluster.patience.answer)).unwrap();
    own.check().unwrap();
    cluster.change(&[Apply(DENY_INGRESS)]).unwrap();
    own.check().unwrap();
    cluster.change(&[Apply(DENY_ALL)]).unwrap();
    assert!(!own.is_alive());
}

#[test]
#[ignore = "needs root and BPF: cargo xtask test --tier 3"]
fn a_connection_lives_on_where_that_is_asked_for() {
    let mut cluster = started("netpolk", &["--netpol-keep-established"]);
    // In the original whatever conntrack knows; here what isolated pods have.
    cluster.change(&[Apply(FROM_YB)]).unwrap();
    let mut far = connections(&cluster, "y/b");
    cluster.change(&[Apply(DENY_INGRESS)]).unwrap();
    assert_eq!(alive(&mut far), 4, "permission is gone, connections are not");
    assert!(cluster.ask("y/b", Transport::Tcp, socket(pod("x/a").unwrap(), 0, true)).unwrap().is_err(), "a new one");
    cluster.change(&[Apply(FROM_YB)]).unwrap();
    assert_eq!(alive(&mut far), 4);
}

/// An allowed and a denied pod send without pause while the agent of the node is killed, started, stopped, and killed
/// in the midst of changes. Nothing of the denied one arrives, ever.
#[test]
#[ignore = "needs root and BPF: cargo xtask test --tier 3"]
fn nothing_leaks_while_agents_die_and_return() {
    let mut cluster = started("netpolz", &[]);
    cluster.change(&[Apply(FROM_YB)]).unwrap();
    let (a, near, far) = (cluster.named("x/a").unwrap(), cluster.named("y/a").unwrap(), cluster.named("y/b").unwrap());
    let listener = Listener::start(&a.ns, 7000).unwrap();
    let mut floods = Vec::new();
    for ipv4 in FAMILIES {
        let to = SocketAddr::new(a.address(ipv4).unwrap(), 7000);
        for from in [&near, &far] {
            floods.push(Flood::start(&from.ns, from.address(ipv4).unwrap(), to));
        }
    }
    let arrived = |from: &kube_router_tests::lab::Pod| -> [u64; 2] {
        FAMILIES.map(|ipv4| listener.from(from.address(ipv4).unwrap()))
    };
    let goes_on = |when: &str| {
        let before = arrived(&far);
        let enough = pace::choose(100, 16);
        let more = || arrived(&far).iter().zip(before).all(|(now, before)| *now > before + enough);
        eventually(&format!("the allowed one's datagrams, {when}"), soon(), more).unwrap();
        assert_eq!(arrived(&near), [0, 0], "the denied one's, {when}");
    };
    goes_on("with both agents");
    for round in 0..pace::choose(3, 1) {
        cluster.agents[0].kill();
        goes_on("without an agent");
        // Killed before it is ready, at another moment each time.
        let mut hasty = cluster.start_agent(0, &FLAGS).unwrap();
        thread::sleep(Duration::from_millis(40 + 60 * round) * pace::choose(1, 10));
        hasty.kill();
        goes_on("after one that did not get far");
        cluster.agents[0] = cluster.start_agent(0, &FLAGS).unwrap();
        cluster.agents[0].wait_ready(cluster.patience.change).unwrap();
        goes_on("with a new agent");
    }
    // Changes that keep the verdict of these two, and a kill in their midst.
    for value in ["1", "2", "3", "4", "5", "6"].into_iter().take(pace::choose(6, 1)) {
        cluster.objects.apply(LabelPod("z/a", "round", value)).unwrap();
        cluster.objects.apply(Apply(DENY_Z)).unwrap();
        cluster.write().unwrap();
        thread::sleep(Duration::from_millis(15) * pace::choose(1, 10));
        cluster.agents[0].kill();
        cluster.agents[0] = cluster.start_agent(0, &FLAGS).unwrap();
        cluster.agents[0].wait_ready(cluster.patience.change).unwrap();
        cluster.objects.apply(Delete("z", "deny")).unwrap();
        cluster.change(&[]).unwrap();
        goes_on("after a kill amid changes");
    }
    assert!(cluster.agents[0].stop(cluster.patience.change).unwrap().success());
    goes_on("after an orderly end");
    // Had the policy not been there, the denied one's would have arrived: they do as soon as it is gone.
    cluster.agents[0] = cluster.start_agent(0, &FLAGS).unwrap();
    cluster.agents[0].wait_ready(cluster.patience.change).unwrap();
    goes_on("until the end of the policy");
    let denied_until_now = arrived(&near);
    cluster.change(&[Delete("x", "deny")]).unwrap();
    let both = || arrived(&near).iter().all(|count| *count > 16);
    eventually("the denied one's datagrams without the policy", soon(), both).unwrap();
    let sent: Vec<u64> = floods.into_iter().map(Flood::stop).collect();
    println!(
        "sent {sent:?}, arrived {denied_until_now:?} of the denied one, {:?} when nothing denied it, {:?} of the allowed one",
        arrived(&near),
        arrived(&far)
    );
    assert_eq!(denied_until_now, [0, 0]);
}

const DENY_Z: &str = "
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {namespace: z, name: deny}
spec: {podSelector: {}, policyTypes: [Ingress]}";

/// A change is in force soon; measured because it is promised, with a bound far above what is expected.
#[test]
#[ignore = "needs root and BPF: cargo xtask test --tier 3"]
fn changes_are_quick() {
    let mut cluster = started("netpolx", &[]);
    let mut slowest = Duration::ZERO;
    for round in 0..pace::choose(10, 4) {
        let begin = Instant::now();
        if round % 2 == 0 {
            cluster.change(&[Apply(DENY_ALL)]).unwrap();
        } else {
            cluster.change(&[Delete("x", "deny")]).unwrap();
        }
        slowest = slowest.max(begin.elapsed());
    }
    println!("from the manifest to both nodes: {slowest:?} at most");
    assert!(slowest < pace::choose(Duration::from_secs(5), Duration::from_secs(60)), "{slowest:?}");
}
