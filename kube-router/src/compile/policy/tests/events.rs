//! Events in any order, in batches of any size: always the model's answer, and in the end the tables of a fresh compile.

use proptest::{collection::vec, prelude::*};

use super::{random, world::*};
use crate::{
    compile::policy::PolicyConfig,
    plan::policy::{difference, plan_policy},
};

/// What does not depend on numbers: sizes, and who is in them.
fn shape(world: &World) -> String {
    let tables = world.compiler.state();
    let flags: Vec<_> = tables.peers.iter().map(|(address, peer)| (address, peer.flags)).collect();
    let rules: std::collections::BTreeSet<_> = tables.rules.values().collect();
    let problems: std::collections::BTreeSet<_> = world.compiler.problems().collect();
    let classes: std::collections::BTreeSet<u32> =
        tables.peers.values().chain(tables.cidrs.values()).map(|peer| peer.class).collect();
    let cidrs: Vec<_> = tables.cidrs.keys().collect();
    format!(
        "{} rows, {} pods, {} port runs {:?}, {} classes\n{flags:?}\n{cidrs:?}\n{rules:#?}\n{problems:#?}\n{:?}",
        tables.rows.len(),
        tables.pods.len(),
        tables.ports.len(),
        tables.ports.keys().collect::<Vec<_>>(),
        classes.len(),
        tables.endpoints.keys().collect::<Vec<_>>(),
    )
}

proptest! {
    #![proptest_config(random::config(80))]

    #[test]
    fn increments_lead_where_a_fresh_compile_leads(
        batches in vec((vec(random::event(), 1..5), any::<bool>(), any::<bool>()), 1..25),
    ) {
        let (addresses, traffic) = (random::addresses(), random::traffic());
        let mut world = World::new(PolicyConfig::new(NODE));
        let mut kernel = world.compiler.state().clone();
        for (events, settle, move_node) in batches {
            if move_node && !world.node.remove(&ip("10.0.0.200")) {
                world.node.insert(ip("10.0.0.200"));
            }
            let mut changes = vec![world.send(events)];
            while settle && world.compiler.has_leftovers() {
                changes.push(world.send([]));
                prop_assert!(changes.len() < 9);
            }
            for changes in changes {
                plan_policy(&changes).iter().for_each(|op| kernel.carry_out(op));
                world.compiler.confirm(changes.update);
            }
            kernel.rules.clone_from(&world.compiler.state().rules);
            prop_assert_eq!(&kernel, world.compiler.state(), "the plan leads to the tables");
            world.compare(&addresses, &traffic).map_err(TestCaseError::fail)?;
        }
        world.settle();
        prop_assert!(world.send([]).is_empty(), "nothing left to do");
        let mut fresh = World::new(PolicyConfig::new(NODE));
        fresh.node.clone_from(&world.node);
        fresh.cluster = std::mem::take(&mut world.cluster);
        fresh.send([]);
        fresh.settle();
        prop_assert_eq!(shape(&world), shape(&fresh));
        // As after a restart: the kernel still holds what the old compiler made.
        let changes = difference(world.compiler.state(), fresh.compiler.state(), usize::MAX);
        kernel = world.compiler.state().clone();
        plan_policy(&changes).iter().for_each(|op| kernel.carry_out(op));
        kernel.rules.clone_from(&fresh.compiler.state().rules);
        let mut fresh = fresh.compiler.state().clone();
        for pods in [&mut kernel.pods, &mut fresh.pods] {
            pods.retain(|_, groups| *groups != Default::default());
        }
        prop_assert_eq!(&kernel, &fresh);
    }
}
