//! Full tables: nothing opens, what fits goes on, and a problem says what is wrong; when there is room again, all is well.
//!
//! Random clusters are led through the kernel's maps with one of them small, as in `model.rs`.

use std::collections::BTreeSet;

use kube_router::objects::{Kind, ObjectEvent, ObjectKey};
use kube_router_common::{
    sizes::Sizes,
    twin::fuzz::{self, Random},
};

use crate::{cluster, model::Agent, net::Pins, promises::in_a_namespace};

/// Everything that policies say is taken back.
fn without_policies() -> Vec<ObjectEvent> {
    let namespaced = ["a", "b"].into_iter().flat_map(|namespace| {
        ["p1", "p2", "p3", "p4"].map(|name| (Kind::NetworkPolicy, ObjectKey::new(namespace, name)))
    });
    let wide = ["c1", "c2", "c3"].map(|name| (Kind::ClusterNetworkPolicy, ObjectKey::cluster(name)));
    namespaced.chain(wide).map(|(kind, key)| ObjectEvent::Deleted(kind, key)).collect()
}

/// Leads a cluster through maps of these sizes; `reasons` are the problems that may be told, the first one must.
fn lead(sizes: Sizes, reasons: &[&str], seed: u64) {
    let pins = Pins::new();
    let mut agent = Agent::start(&pins, &sizes);
    let mut random = Random::new(seed);
    let mut told = BTreeSet::new();
    let (mut pairs, mut allowed, mut short, mut exact) = (0, 0, 0, 0);
    for _ in 0..250 {
        agent.learn([cluster::event(&mut random)]);
        let problems: Vec<String> = agent.compiler.problems().map(|problem| problem.reason.to_owned()).collect();
        let full = problems.iter().any(|reason| reasons.contains(&reason.as_str()));
        told.extend(problems);
        for question in agent.questions(&mut random, 20) {
            let (wanted, got) = (agent.model(&question), agent.run(&question));
            assert!(wanted || !got, "opened: {question:?}");
            assert!(got || !wanted || full, "refused, and no problem says why: {question:?} {told:?}");
            pairs += 1;
            allowed += u32::from(got);
            short += u32::from(wanted && !got);
            exact += u32::from(wanted == got && full);
        }
    }
    println!(
        "{:?}: {pairs} pairs, {allowed} allowed, {short} refused for want of room, {exact} as they should",
        reasons
    );
    assert!(told.contains(reasons[0]), "{told:?}");
    assert!(allowed > pairs / 20 && exact > 0, "what fits goes on");
    // A pod without a number is shut by its interface's row, which is not looked at here.
    assert!(short > 0 || reasons[0] == "TooManyPods");
    agent.learn(without_policies());
    for question in agent.questions(&mut random, 200) {
        let (wanted, got) = (agent.model(&question), agent.run(&question));
        assert_eq!(got, wanted, "there is room again: {question:?}");
    }
}

/// One map after the other, small enough to be full most of the time.
#[test]
#[ignore = "needs root and the BPF object: cargo xtask test --tier 2 --filter full_tables"]
fn full_tables_never_open() {
    let seed = fuzz::seed();
    in_a_namespace(move || {
        // Echo requests, which nobody allows, get a seventeenth of the flows at most.
        let roomy = Sizes { flows: 65_536, pods: 64, peers: 4_096, services: 1_024, rows: 16_384 };
        lead(Sizes { rows: 96, ..roomy }, &["PolicyTableFull", "PolicyClosed"], seed);
        lead(Sizes { peers: 16, ..roomy }, &["TooManyPeers", "TooManyBlocks", "PolicyClosed"], seed);
        lead(Sizes { pods: 4, ..roomy }, &["TooManyPods"], seed);
    });
}
