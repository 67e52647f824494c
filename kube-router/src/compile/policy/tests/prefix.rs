//! Whatever part of a plan is carried out: the old verdict or the new one.

use std::collections::BTreeSet;

use proptest::{collection::vec, prelude::*};

use super::{random, world::*};
use crate::{
    compile::policy::{PolicyConfig, address_of},
    desired::policy::{Direction, PolicyTables},
    plan::policy::{PolicyOp, plan_policy},
};

fn questions(world: &World, numbers: &BTreeSet<u32>) -> Vec<Question> {
    let mut questions = Vec::new();
    for pod in numbers {
        let own: Vec<_> = world.compiler.state().endpoints.iter().filter(|(_, n)| *n == pod).map(|(a, _)| *a).collect();
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
            let before = world.compiler.state().clone();
            let changes = world.send([event.clone()]);
            let after = world.compiler.state().clone();
            // A pod that comes or goes has one verdict or none.
            let numbers: BTreeSet<u32> = before.pods.keys().chain(after.pods.keys()).copied().collect();
            let questions = questions(&world, &numbers);
            let (old, new) = (verdicts(&world, &before, &questions), verdicts(&world, &after, &questions));
            let mut kernel = before;
            let mut bumped = false;
            for op in plan_policy(&changes) {
                kernel.carry_out(&op);
                bumped |= op == PolicyOp::BumpGeneration;
                if matches!(op, PolicyOp::SetRow(..)) {
                    continue;
                }
                for (question, (got, (old, new))) in
                    questions.iter().zip(verdicts(&world, &kernel, &questions).iter().zip(old.iter().zip(&new)))
                {
                    prop_assert!(got == old || got == new, "{:?}: {:?}, was {:?}, will be {:?}, after {:?} of {:?}",
                        question, got, old, new, op, event);
                    prop_assert!(!bumped || got == new || new.is_none(), "judged again before the verdict is new");
                }
            }
            let kept = |(old, new): (&Option<bool>, &Option<bool>)| old == new || old.is_none() || new.is_none();
            prop_assert!(bumped || old.iter().zip(&new).all(kept), "live flows must hear of it");
        }
    }
}
