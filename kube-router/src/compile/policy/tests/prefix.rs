//! Whatever part of a plan is carried out: the old verdict or the new one.

use std::collections::BTreeSet;

use proptest::{collection::vec, prelude::*};

use super::{random, world::*};
use crate::{
    compile::policy::{PolicyConfig, address_of},
    desired::policy::{Direction, PolicyTables},
    objects::{NamedPort, Object, ObjectEvent, Protocol},
    plan::policy::{PolicyOp, plan_policy},
};

/// About every pod of these tables, but not about its own addresses: what it sends to itself passes no hook.
fn questions(tables: [&PolicyTables; 2], numbers: &BTreeSet<u32>) -> Vec<Question> {
    let mut questions = Vec::new();
    for pod in numbers {
        let endpoints = tables.iter().flat_map(|tables| &tables.endpoints);
        let own: Vec<_> = endpoints.filter(|(_, n)| *n == pod).map(|(a, _)| *a).collect();
        for direction in Direction::BOTH {
            for peer in random::addresses().into_iter().map(address_of).filter(|peer| !own.contains(peer)) {
                let traffic = random::traffic().into_iter().step_by(2);
                questions.extend(traffic.map(|traffic| Question { pod: *pod, direction, peer, traffic }));
            }
        }
    }
    questions
}

fn verdicts(world: &World, tables: &PolicyTables, questions: &[Question]) -> Vec<Option<bool>> {
    questions.iter().map(|question| world.walk(tables, question).map(|(allowed, _)| allowed)).collect()
}

/// Carries out the plan of this event order by order.
fn step(world: &mut World, event: ObjectEvent) -> Result<(), TestCaseError> {
    let before = world.compiler.state().clone();
    // Where it goes to: one that leaves this node may be met at its new address, by nobody but itself.
    let moving = match &event {
        ObjectEvent::Applied(Object::Pod(pod)) => world.compiler.pod_number(&pod.key).map(|number| (number, &pod.ips)),
        _ => None,
    };
    let itself = |question: &Question| {
        moving.is_some_and(|(pod, ips)| question.pod == pod && ips.iter().any(|ip| address_of(*ip) == question.peer))
    };
    let changes = world.send([event.clone()]);
    let after = world.compiler.state().clone();
    // A pod that comes or goes has one verdict or none.
    let numbers: BTreeSet<u32> = before.pods.keys().chain(after.pods.keys()).copied().collect();
    let mut questions = questions([&before, &after], &numbers);
    questions.retain(|question| !itself(question));
    let (old, new) = (verdicts(world, &before, &questions), verdicts(world, &after, &questions));
    let mut kernel = before;
    let mut bumped = false;
    for op in plan_policy(&changes) {
        kernel.carry_out(&op);
        bumped |= op == PolicyOp::BumpGeneration;
        if matches!(op, PolicyOp::SetRow(..)) {
            continue;
        }
        let got = verdicts(world, &kernel, &questions);
        for (question, (got, (old, new))) in questions.iter().zip(got.iter().zip(old.iter().zip(&new))) {
            // One namespace's change of both ends, see `close_between`.
            let closed = *got == Some(false) && changes.closed.contains_key(&question.pod);
            prop_assert!(
                got == old || got == new || closed,
                "{question:?}: {got:?}, was {old:?}, will be {new:?}, after {op:?} of {event:?}"
            );
            prop_assert!(!bumped || got == new || new.is_none(), "judged again before the verdict is new");
        }
    }
    let kept = |(old, new): (&Option<bool>, &Option<bool>)| old == new || old.is_none() || new.is_none();
    prop_assert!(bumped || old.iter().zip(&new).all(kept), "live flows must hear of it");
    Ok(())
}

proptest! {
    #![proptest_config(random::config(12))]

    #[test]
    fn every_prefix_of_a_plan_gives_the_old_or_the_new_verdict(
        objects in random::cluster(),
        events in vec(random::event(), 1..8),
        lazy in any::<bool>(),
    ) {
        let mut world = World::new(PolicyConfig::new(NODE));
        world.send(objects.into_iter().map(applied));
        for event in events {
            if !lazy {
                world.settle();
            }
            step(&mut world, event)?;
        }
    }
}

/// The last pod of a class goes, and in the same update a port class is divided: until the address is flipped, the class
/// needs its rows for the new part.
#[test]
fn a_class_that_ends_has_rows_for_new_port_classes() {
    let mut peer = pod("c", "peer", "10.0.0.4", &[]);
    peer.ports = [NamedPort { name: "dns".into(), protocol: Protocol::Tcp, port: 81 }].into();
    let mut world = World::of([
        Object::Pod(pod("a", "us", "10.0.0.1", &[])),
        Object::Pod(peer),
        policy(
            "a",
            "p",
            "{podSelector: {}, policyTypes: [Egress], egress: [{to: [{ipBlock: {cidr: 0.0.0.0/0}}], ports: [{protocol: UDP}, {port: dns}]}]}",
        ),
        policy(
            "c",
            "p",
            "{podSelector: {matchLabels: {app: b}}, policyTypes: [Egress], egress: [{ports: [{protocol: UDP, port: 1, endPort: 80}]}]}",
        ),
    ]);
    step(&mut world, applied(Object::Pod(pod("c", "peer", "10.0.0.7", &[("app", "b")])))).unwrap();
}
