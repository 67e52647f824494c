//! A new agent on an old one's tables: it writes nothing that need not be, and opens nothing on the way.

use std::collections::BTreeSet;

use proptest::{collection::vec, prelude::*};

use kube_router_common::policy::{PolicyKey, PolicyRow};

use super::{random, world::*};
use crate::{
    compile::policy::{NumbersInUse, PolicyConfig, address_of, model::Traffic},
    desired::policy::{Direction, PolicyTables},
    plan::{
        adopt::{Renaming, adopt},
        policy::{PolicyOp, difference, plan_policy},
    },
};

/// A second agent's world with the first one's cluster, told of what is in the kernel.
fn restarted(old: World, kernel: &PolicyTables) -> (World, Renaming) {
    let mut new = World::new(PolicyConfig::new(NODE));
    new.node = old.node;
    new.services = old.services;
    new.cluster = old.cluster;
    new.compiler.seed(NumbersInUse::of(kernel));
    new.send([]);
    let renaming = adopt(kernel, new.compiler.state());
    (new, renaming)
}

/// What the kernel tells of tables: no rules.
fn seen(tables: &PolicyTables) -> PolicyTables {
    PolicyTables { rules: Default::default(), ..tables.clone() }
}

/// Without the numbers of rules, which are for counters alone.
fn bare(tables: &PolicyTables) -> PolicyTables {
    let mut tables = seen(tables);
    tables.rows.values_mut().for_each(|row| row.rule = 0);
    tables.pods.retain(|_, groups| *groups != Default::default());
    tables
}

fn port(traffic: Traffic) -> Option<(u8, u16)> {
    match traffic {
        Traffic::Port(protocol, port) => Some((protocol.number(), port)),
        Traffic::Portless => None,
    }
}

proptest! {
    #![proptest_config(random::config(60))]

    #[test]
    fn nothing_is_written_where_nothing_changed(events in vec(random::event(), 1..40)) {
        let mut world = World::new(PolicyConfig::new(NODE));
        for event in events {
            let update = world.send([event]).update;
            world.compiler.confirm(update);
        }
        world.settle();
        let kernel = seen(world.compiler.state());
        let (new, renaming) = restarted(world, &kernel);
        let wanted = renaming.tables(new.compiler.state());
        let mut ops = plan_policy(&difference(&kernel, &wanted, kernel.rows.len()));
        // A pod whose address counts as another's cannot be recognised, and no packet is its.
        let known: BTreeSet<u32> = kernel.endpoints.values().chain(wanted.endpoints.values()).copied().collect();
        let unknown = |pod: &u32| !known.contains(pod);
        ops.retain(|op| !matches!(op, PolicyOp::SetPod(pod, _) | PolicyOp::DeletePod(pod) if unknown(pod)));
        ops.retain(|op| *op != PolicyOp::BumpGeneration);
        // Of groups that no packet asks for, the rules may be taken for each other's: counters alone would tell.
        let told = |key: &PolicyKey, row: &PolicyRow| kernel.rows.get(key).is_some_and(|there| there.verdict == row.verdict);
        ops.retain(|op| !matches!(op, PolicyOp::SetRow(key, row) if told(key, row)));
        prop_assert!(ops.is_empty(), "{:?}\n{:?}\n{:?}\n{:?}", ops, kernel.rows, wanted.rows, new.compiler.state().rules);
    }

    #[test]
    fn a_restart_into_another_cluster_opens_nothing_on_the_way(
        before in vec(random::event(), 1..25),
        between in vec(random::event(), 0..6),
        after in vec(random::event(), 0..6),
        room in 0..9usize,
    ) {
        let (addresses, traffic) = (random::addresses(), random::traffic());
        let mut world = World::new(PolicyConfig::new(NODE));
        for event in before {
            let update = world.send([event]).update;
            world.compiler.confirm(update);
        }
        world.settle();
        let old = seen(world.compiler.state());
        // The old agent does not hear of these.
        let mut dirty = Default::default();
        between.into_iter().for_each(|event| world.cluster.apply(event, &mut dirty));
        let (mut new, renaming) = restarted(world, &old);
        let wanted = renaming.tables(new.compiler.state());
        let mut kernel = old.clone();
        let most = old.rows.len().max(wanted.rows.len()) + room;
        for op in plan_policy(&difference(&old, &wanted, most)) {
            kernel.carry_out(&op);
            prop_assert!(kernel.rows.len() <= most, "{:?}: no room for it", op);
            for (address, number) in &kernel.endpoints {
                // Another pod's address now: what the old one was allowed is no answer, but it is gone.
                let same = old.endpoints.get(address) == Some(number) && wanted.endpoints.get(address) == Some(number);
                for direction in Direction::BOTH.into_iter().filter(|_| same) {
                    for peer in &addresses {
                        for traffic in &traffic {
                            let ask = |tables: &PolicyTables| {
                                tables.verdict(*number, direction, address_of(*peer), port(*traffic))
                            };
                            let allowed = |tables: &PolicyTables| ask(tables).is_some_and(|verdict| verdict.allowed);
                            prop_assert!(
                                !allowed(&kernel) || allowed(&old) || allowed(&wanted),
                                "{:?}: pod {} {:?} {} {:?}", op, number, direction, peer, traffic
                            );
                        }
                    }
                }
            }
        }
        prop_assert_eq!(bare(&kernel), bare(&wanted));
        // From here on it goes as ever, under the numbers that were taken over.
        new.compiler.confirm(1);
        for event in after {
            let changes = new.send([event]);
            let update = changes.update;
            plan_policy(&renaming.changes(changes)).iter().for_each(|op| kernel.carry_out(op));
            new.compiler.confirm(update);
            prop_assert_eq!(bare(&kernel), bare(&renaming.tables(new.compiler.state())));
        }
    }
}
