//! A full table: the largest taker is shut, whoever came first, and the others go on.

use std::collections::{BTreeMap, BTreeSet};

use kube_router_common::policy::{CLOSED, PolicyRow};
use proptest::{collection::vec, prelude::*};

use super::{random, world::*};
use crate::{
    compile::{
        Subject,
        policy::{Limits, NumbersInUse, PolicyConfig, address_of, model},
    },
    desired::policy::{Direction, PolicyTables},
    objects::{Kind, Object, ObjectEvent, ObjectKey},
    plan::{
        adopt::adopt,
        policy::{difference, plan_policy},
    },
};

fn small(rows: usize) -> World {
    let limits = Limits { rows, ..Limits::default() };
    World::new(PolicyConfig { limits, ..PolicyConfig::new(NODE) })
}

/// A pod of the namespace, and its policy that wants so many rows.
fn tenant(namespace: &str, place: u8, rows: usize) -> Vec<ObjectEvent> {
    let rules: Vec<String> = (1..=rows).map(|port| format!("{{ports: [{{port: {port}}}]}}")).collect();
    let spec = format!("{{podSelector: {{}}, ingress: [{}]}}", rules.join(","));
    let pod = Object::Pod(pod(namespace, "pod", &format!("10.0.0.{place}"), &[]));
    vec![applied(pod), applied(policy(namespace, "p", &spec))]
}

/// Namespace -> rows of its pod, `None` if it is shut.
fn rows(world: &World) -> BTreeMap<String, Option<usize>> {
    let tables = world.compiler.state();
    let of = |(key, number): (&ObjectKey, u32)| {
        let group = tables.pods[&number].ingress;
        (key.namespace.to_string(), (group != CLOSED).then(|| tables.rows_of(group).len()))
    };
    world.compiler.local_pods().map(of).collect()
}

fn told(world: &World) -> Vec<String> {
    world.compiler.problems().map(ToString::to_string).collect()
}

#[test]
fn the_greedy_is_shut_whoever_came_first() {
    for order in [["greedy", "small"], ["small", "greedy"]] {
        for together in [false, true] {
            let mut world = small(15);
            let of = |name| if name == "greedy" { tenant("greedy", 1, 15) } else { tenant("small", 2, 3) };
            match together {
                true => drop(world.send(order.into_iter().flat_map(of))),
                false => order.into_iter().for_each(|name| drop(world.send(of(name)))),
            }
            // It is so at once: the small one is not shut while the other's rows go.
            let wanted = BTreeMap::from([("greedy".to_owned(), None), ("small".to_owned(), Some(3))]);
            assert_eq!(rows(&world), wanted, "{order:?} {together}");
            assert_eq!(world.compiler.state().rows.len(), 3);
            assert!(!world.compiler.has_leftovers(), "nothing helps");
            let told = told(&world);
            assert_eq!(told.len(), 2, "{told:?}");
            let on_node = "policy: the table of 15 rows (--netpol-max-rows) is full; this policy asked for the most, 15, and new \
                           flows to its pods are refused: NetworkPolicy greedy/p (PolicyTableFull)";
            assert!(told.contains(&on_node.to_owned()), "{told:?}");
            assert!(world.compiler.problems().any(|problem| {
                problem.subject == Subject::Object(Kind::NetworkPolicy, ObjectKey::new("greedy", "p"))
                    && problem.reason == "PolicyTableFull"
            }));
            // It wants less, but not so little that it fits; then it does.
            world.send(tenant("greedy", 1, 13));
            world.settle();
            assert_eq!(rows(&world), wanted);
            world.send(tenant("greedy", 1, 12));
            world.settle();
            assert_eq!(rows(&world)["greedy"], Some(12));
            assert!(told_nothing(&world));
        }
    }
}

fn told_nothing(world: &World) -> bool {
    world.compiler.problems().next().is_none()
}

#[test]
fn who_is_shut_comes_back_when_others_go_and_shuts_nobody_for_it() {
    let mut world = small(15);
    world.send(tenant("a", 1, 8));
    world.send(tenant("b", 2, 9));
    assert_eq!(rows(&world)["b"], None);
    // The one that is there becomes the larger one: still there is room for it alone.
    world.send(tenant("a", 1, 14));
    world.settle();
    assert_eq!((rows(&world)["a"], rows(&world)["b"]), (Some(14), None));
    world.send([gone(Kind::NetworkPolicy, "a", "p")]);
    world.settle();
    assert_eq!(rows(&world)["b"], Some(9));
    assert!(told_nothing(&world));
}

/// An edit needs the old rows and the new ones for a moment. Whoever makes it pays for that, with its pods shut meanwhile.
#[test]
fn an_edit_of_one_shuts_no_other() {
    let mut world = small(15);
    world.send(tenant("large", 1, 9));
    world.send(tenant("small", 2, 5));
    let large = world.compiler.state().pods[&1].ingress;
    let changes = world.send(tenant("small", 2, 6));
    assert_eq!(rows(&world), BTreeMap::from([("large".to_owned(), Some(9)), ("small".to_owned(), Some(6))]));
    assert_eq!(world.compiler.state().pods[&1].ingress, large);
    assert_eq!(changes.closed.keys().collect::<Vec<_>>(), [&2]);
    assert_eq!((changes.shut_rows.len(), changes.rows.len(), changes.dead_rows.len()), (5, 6, 0));
    assert!(told_nothing(&world));
}

/// What remains of the rows on the way is no more than all of them: those that deny go last.
#[test]
fn rows_that_deny_go_last() {
    let wide = |rules: &str| {
        object(&format!(
            "{{apiVersion: policy.networking.k8s.io/v1beta1, kind: ClusterNetworkPolicy, metadata: {{name: c}}, spec: \
             {{tier: Admin, priority: 1, subject: {{namespaces: {{}}}}, ingress: [{rules}]}}}}"
        ))
    };
    let rule = |port: u16| {
        format!(
            "{{action: Deny, from: [{{namespaces: {{}}}}], protocols: [{{tcp: {{destinationPort: {{number: {port}}}}}}}]}}"
        )
    };
    let rules = |count: u16| (1..=count).map(rule).collect::<Vec<_>>().join(",");
    let mut world = small(8);
    world.send([
        applied(Object::Pod(pod("x", "a", "10.0.0.1", &[]))),
        applied(Object::Pod(pod("x", "b", "10.0.0.2", &[]))),
    ]);
    world.send([applied(wide(&rules(3)))]);
    let before = world.compiler.state().clone();
    assert!(before.rows.values().any(|row| row.verdict == PolicyRow::DENY));
    // A peer that its rules tell apart comes.
    let label =
        rules(3) + ",{action: Deny, from: [{pods: {namespaceSelector: {}, podSelector: {matchLabels: {n: '1'}}}}]}";
    world.send([applied(wide(&label))]);
    world.settle();
    let before = world.compiler.state().clone();
    assert!(!before.rows.is_empty(), "it fits so far");
    let changes = world.send([applied(Object::Pod(pod("x", "c", "10.0.0.3", &[("n", "1")])))]);
    assert!(!changes.shut_rows.is_empty() && changes.shut_rows.len() == before.rows.len(), "{changes:?}");
    let mut kernel = before.clone();
    for op in plan_policy(&changes) {
        kernel.carry_out(&op);
        for (pod, peer, port) in
            (1..=2).flat_map(|pod| (1..=3).flat_map(move |peer| (1..=4).map(move |port| (pod, peer, port))))
        {
            let ask = |tables: &PolicyTables| {
                let peer = address_of(ip(&format!("10.0.0.{peer}")));
                tables.verdict(pod, Direction::Ingress, peer, Some((6, port))).is_some_and(|verdict| verdict.allowed)
            };
            assert!(!ask(&kernel) || ask(&before), "{op:?} opens {pod} to {peer} at {port}");
        }
    }
}

/// Else an agent that starts into a table that is full of what it shuts would never get on.
#[test]
fn after_a_restart_rows_of_the_shut_make_room_first() {
    let mut before = World::of([]);
    before.send(tenant("greedy", 1, 15));
    let mut kernel = before.compiler.state().clone();
    let mut after = small(15);
    after.compiler.seed(NumbersInUse::of(&kernel));
    after.send(tenant("greedy", 1, 15).into_iter().chain(tenant("small", 2, 3)));
    let wanted = adopt(&kernel, after.compiler.state()).tables(after.compiler.state());
    for op in plan_policy(&difference(&kernel, &wanted, 15)) {
        kernel.carry_out(&op);
        assert!(kernel.rows.len() <= 15, "{op:?}");
    }
    assert_eq!((kernel.rows.len(), &kernel.pods), (3, &wanted.pods));
    assert!(kernel.pods.values().any(|groups| groups.ingress == CLOSED));
}

/// Who can no longer be told apart must not get around a Deny, not even until pods are closed.
#[test]
fn pods_are_closed_before_a_peer_loses_its_class() {
    let deny = |label: &str| {
        object(&format!(
            "{{apiVersion: policy.networking.k8s.io/v1beta1, kind: ClusterNetworkPolicy, metadata: {{name: {label}}}, spec: \
             {{tier: Admin, priority: 1, subject: {{pods: {{namespaceSelector: {{}}, podSelector: {{matchLabels: {{is: it}}}}}}}}, \
             ingress: [{{action: Deny, from: [{{pods: {{namespaceSelector: {{}}, podSelector: {{matchLabels: {{{label}: '1'}}}}}}}}]}}]}}}}"
        ))
    };
    let limits = Limits { classes: 3, ..Limits::default() };
    let mut world = World::new(PolicyConfig { limits, ..PolicyConfig::new(NODE) });
    let peer =
        |last: u8, labels| applied(Object::Pod(pod("x", &format!("p{last}"), &format!("10.0.0.{last}"), labels)));
    world.send([
        peer(1, &[("is", "it")]),
        peer(2, &[("n", "1")]),
        peer(3, &[("m", "1")]),
        applied(deny("n")),
        applied(deny("m")),
    ]);
    assert!(told_nothing(&world), "two classes fit");
    let mut kernel = world.compiler.state().clone();
    let number = world.compiler.pod_number(&ObjectKey::new("x", "p1")).unwrap();
    let open = |tables: &PolicyTables, last: u8| {
        let peer = address_of(ip(&format!("10.0.0.{last}")));
        tables.verdict(number, Direction::Ingress, peer, Some((6, 80))).is_some_and(|verdict| verdict.allowed)
    };
    assert!(open(&kernel, 9) && !open(&kernel, 2) && !open(&kernel, 3));
    // A third class.
    let changes = world.send([peer(2, &[("n", "1"), ("m", "1")])]);
    for op in plan_policy(&changes) {
        kernel.carry_out(&op);
        assert!(!open(&kernel, 2) && !open(&kernel, 3), "{op:?}");
    }
    assert!(!open(&kernel, 9) && told(&world).iter().any(|text| text.contains("PolicyClosed")));
}

/// Nothing else needs to happen for it.
#[test]
fn a_class_that_is_free_again_goes_to_who_waits_for_one() {
    let limits = Limits { classes: 3, ..Limits::default() };
    let mut world = World::new(PolicyConfig { limits, ..PolicyConfig::new(NODE) });
    let from = |label: &str| {
        format!("{{podSelector: {{}}, ingress: [{{from: [{{podSelector: {{matchLabels: {{{label}: '1'}}}}}}]}}]}}")
    };
    world.send([applied(Object::Pod(pod("x", "us", "10.0.0.1", &[])))]);
    let settle = |world: &mut World| {
        for _ in 0..10 {
            let update = if world.compiler.has_leftovers() { world.send([]).update } else { return };
            world.compiler.confirm(update);
        }
        panic!("leftovers without end");
    };
    for (last, label) in [(2, "a"), (3, "b"), (4, "c")] {
        let peer = pod("x", label, &format!("10.0.0.{last}"), &[(label, "1")]);
        let update = world.send([applied(Object::Pod(peer)), applied(policy("x", label, &from(label)))]).update;
        world.compiler.confirm(update);
        settle(&mut world);
    }
    let open = |world: &World, last: u8| {
        let number = world.compiler.pod_number(&ObjectKey::new("x", "us")).unwrap();
        let peer = address_of(ip(&format!("10.0.0.{last}")));
        world.compiler.state().verdict(number, Direction::Ingress, peer, Some((6, 80))).unwrap().allowed
    };
    assert_eq!([2, 3, 4].map(|last| open(&world, last)), [true, true, false]);
    assert!(told(&world).iter().any(|text| text.contains("TooManyClasses")));
    let update = world.send([applied(Object::Pod(pod("x", "a", "10.0.0.2", &[("b", "1")])))]).update;
    world.compiler.confirm(update);
    settle(&mut world);
    assert_eq!([2, 3, 4].map(|last| open(&world, last)), [true, true, true]);
    assert!(told_nothing(&world));
}

/// The pods of a namespace become isolated while they get the label that the rules above let pass.
#[test]
fn one_change_of_both_ends_opens_nothing_between() {
    let rule = |action, labels| format!("{{action: {action}, from: [{{namespaces: {{matchLabels: {labels}}}}}]}}");
    let rules = rule("Pass", "{tier: a}") + "," + &rule("Deny", "{}");
    let spec = format!("{{tier: Admin, priority: 1, subject: {{namespaces: {{}}}}, ingress: [{rules}]}}");
    let mut world = World::of([
        Object::Pod(pod("x", "a", "10.0.0.1", &[])),
        Object::Pod(pod("x", "b", "10.0.0.2", &[])),
        object("{apiVersion: v1, kind: Namespace, metadata: {name: x}}"),
        object(&format!(
            "{{apiVersion: policy.networking.k8s.io/v1beta1, kind: ClusterNetworkPolicy, metadata: {{name: c}}, spec: {spec}}}"
        )),
    ]);
    let isolation = r#"'{"ingress":{"isolation":"DefaultDeny"}}'"#;
    let annotations = format!("annotations: {{net.beta.kubernetes.io/network-policy: {isolation}}}");
    let mut kernel = world.compiler.state().clone();
    let changes = world.send([applied(object(&format!(
        "{{apiVersion: v1, kind: Namespace, metadata: {{name: x, labels: {{tier: a}}, {annotations}}}}}"
    )))]);
    assert_ne!(changes.closed, BTreeMap::new());
    for op in plan_policy(&changes) {
        kernel.carry_out(&op);
        for (to, from) in [(1, 2), (2, 1)] {
            let pod = world.compiler.pod_number(&ObjectKey::new("x", if to == 1 { "a" } else { "b" })).unwrap();
            let peer = address_of(ip(&format!("10.0.0.{from}")));
            let verdict = kernel.verdict(pod, Direction::Ingress, peer, Some((6, 80))).unwrap();
            assert!(!verdict.allowed, "{op:?} opens {to} to {from}");
        }
    }
    assert_eq!(&kernel.pods, &world.compiler.state().pods);
    assert!(told_nothing(&world));
}

/// Who fits is no matter of the order.
#[test]
fn the_order_of_events_does_not_decide() {
    let mut runner = proptest::test_runner::TestRunner::new(random::config(60));
    let cases = vec(1..12usize, 2..8).prop_flat_map(|sizes| {
        let order = Just((0..sizes.len()).collect::<Vec<_>>()).prop_shuffle();
        (Just(sizes), order)
    });
    let result = runner.run(&cases, |(sizes, order)| {
        let event = |at: usize| tenant(&format!("n{at}"), at as u8 + 1, sizes[at]);
        let (mut one, mut all) = (small(20), small(20));
        order.iter().for_each(|at| drop(one.send(event(*at))));
        all.send((0..sizes.len()).flat_map(event));
        prop_assert_eq!(rows(&one), rows(&all));
        prop_assert!(!one.compiler.has_leftovers() && !all.compiler.has_leftovers());
        let total: usize = rows(&one).values().flatten().sum();
        let smallest = sizes.iter().enumerate().filter(|(at, _)| rows(&one)[&format!("n{at}")].is_none());
        prop_assert!(smallest.map(|(_, size)| size).min().is_none_or(|size| total + size > 20));
        Ok(())
    });
    if let Err(error) = result {
        panic!("{error}");
    }
}

/// A pod of the namespace, and its policy that names so many prefixes.
fn networks(namespace: &str, place: u8, count: usize) -> Vec<ObjectEvent> {
    let block = |n| format!("{{ipBlock: {{cidr: 198.18.{place}.{n}/32}}}}");
    let blocks: Vec<String> = (1..=count).map(block).collect();
    let spec = format!("{{podSelector: {{}}, ingress: [{{from: [{}]}}]}}", blocks.join(","));
    let pod = Object::Pod(pod(namespace, "pod", &format!("10.0.0.{place}"), &[]));
    vec![applied(pod), applied(policy(namespace, "p", &spec))]
}

/// Namespaces of which each pod may be reached from the first address that it names.
fn reached(world: &World) -> BTreeSet<String> {
    let open = |(key, number): &(&ObjectKey, u32)| {
        let pod = world.cluster.pod(key).expect("local pods exist").ips[0].to_string();
        let peer = ip(&format!("198.18.{}.1", pod.rsplit('.').next().unwrap()));
        let verdict = world.compiler.state().verdict(*number, Direction::Ingress, address_of(peer), Some((6, 80)));
        verdict.is_some_and(|verdict| verdict.allowed)
    };
    world.compiler.local_pods().filter(open).map(|(key, _)| key.namespace.to_string()).collect()
}

#[test]
fn who_names_the_most_prefixes_gives_way() {
    let names = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect::<BTreeSet<_>>();
    for order in [["greedy", "small", "other"], ["other", "small", "greedy"], ["small", "greedy", "other"]] {
        for together in [false, true] {
            let limits = Limits { cidrs: 12, ..Limits::default() };
            let mut world = World::new(PolicyConfig { limits, ..PolicyConfig::new(NODE) });
            let of = |name| match name {
                "greedy" => networks("greedy", 1, 12),
                "small" => networks("small", 2, 3),
                _ => networks("other", 3, 4),
            };
            match together {
                true => drop(world.send(order.into_iter().flat_map(of))),
                false => order.into_iter().for_each(|name| drop(world.send(of(name)))),
            }
            world.settle();
            assert_eq!(reached(&world), names(&["other", "small"]), "{order:?}");
            assert_eq!(world.compiler.state().cidrs.len(), 7);
            let told = told(&world);
            assert_eq!(told.len(), 2, "{told:?}");
            assert!(told.iter().all(|text| text.contains("TooManyBlocks") && text.contains("NetworkPolicy greedy/p")));
            // A block has a place with the smallest who names it, though it is not new.
            let third = "{podSelector: {}, ingress: [{from: [{ipBlock: {cidr: 198.18.1.1/32}}]}]}";
            world.send([
                applied(Object::Pod(pod("third", "pod", "10.0.1.1", &[]))),
                applied(policy("third", "p", third)),
            ]);
            assert_eq!(reached(&world), names(&["greedy", "other", "small", "third"]));
            world.send([gone(Kind::Pod, "third", "pod")]);
            world.settle();
            assert_eq!(reached(&world), names(&["other", "small"]));
            world.send([applied(policy(
                "small",
                "p",
                "{podSelector: {}, ingress: [{from: [{ipBlock: {cidr: 198.18.1.1/32}}]}]}",
            ))]);
            world.settle();
            assert_eq!(reached(&world), names(&["greedy", "other"]));
            world.send(networks("small", 2, 3));
            world.send(networks("greedy", 1, 6));
            world.settle();
            assert_eq!(reached(&world), names(&["other", "small"]));
            world.send(networks("greedy", 1, 5));
            world.settle();
            assert_eq!(reached(&world), names(&["greedy", "other", "small"]));
            assert!(told_nothing(&world));
        }
    }
}

/// Prefixes have classes of their own, and some are left for pods.
#[test]
fn prefixes_do_not_take_all_classes() {
    let limits = Limits { classes: 16, ..Limits::default() };
    let mut world = World::new(PolicyConfig { limits, ..PolicyConfig::new(NODE) });
    world.send(networks("greedy", 1, 15));
    world.send(networks("small", 2, 3));
    let peer = Object::Pod(pod("peer", "pod", "10.0.0.9", &[("a", "b")]));
    let spec = "{podSelector: {}, ingress: [{from: [{namespaceSelector: {}, podSelector: {matchLabels: {a: b}}}]}]}";
    world.send([applied(peer), applied(policy("small", "q", spec))]);
    world.settle();
    assert_eq!(reached(&world), BTreeSet::from(["peer".to_owned(), "small".to_owned()]));
    let number = world.compiler.pod_number(&ObjectKey::new("small", "pod")).unwrap();
    let verdict = world.compiler.state().verdict(number, Direction::Ingress, address_of(ip("10.0.0.9")), Some((6, 80)));
    assert!(verdict.unwrap().allowed);
    assert!(world.compiler.problems().all(|problem| problem.reason == "TooManyBlocks"));
}

type Answers = BTreeMap<(u32, usize, usize, usize), bool>;

/// Leads a cluster through tables of these sizes.
fn lead(limits: Limits, events: Vec<ObjectEvent>) -> Result<(), TestCaseError> {
    let only_rows = limits == Limits { rows: limits.rows, ..Limits::default() };
    let addresses = random::addresses();
    let traffic = [tcp(80), tcp(81), udp(53), model::Traffic::Portless];
    let answers = |world: &World| -> Answers {
        let mut answers = Answers::new();
        for (key, number) in world.compiler.local_pods() {
            let pod = world.cluster.pod(key).expect("local pods exist");
            for (place, direction) in Direction::BOTH.into_iter().enumerate() {
                for (at, peer) in addresses.iter().enumerate() {
                    // What a pod says to itself never leaves it; and one event may change both ends of it.
                    if pod.ips.contains(peer) {
                        continue;
                    }
                    for (port, traffic) in traffic.iter().enumerate() {
                        let model = model::judge(&world.cluster, pod, direction, *peer, *traffic);
                        answers.insert((number, place, at, port), model.allowed);
                    }
                }
            }
        }
        answers
    };
    let ask = |tables: &PolicyTables, (pod, place, at, port): (u32, usize, usize, usize)| {
        let port = match traffic[port] {
            model::Traffic::Port(protocol, port) => Some((protocol.number(), port)),
            model::Traffic::Portless => None,
        };
        let verdict = tables.verdict(pod, Direction::BOTH[place], address_of(addresses[at]), port);
        verdict.is_some_and(|verdict| verdict.allowed)
    };
    let mut world = World::new(PolicyConfig { limits, ..PolicyConfig::new(NODE) });
    let mut kernel = world.compiler.state().clone();
    let mut before = answers(&world);
    for event in events {
        let mut event = Some(event);
        let mut rounds = 0;
        while event.is_some() || world.compiler.has_leftovers() {
            rounds += 1;
            prop_assert!(rounds < 9, "shut and opened without end");
            let changes = world.send(event.take());
            let after = answers(&world);
            for op in plan_policy(&changes) {
                kernel.carry_out(&op);
                prop_assert!(
                    kernel.rows.len() <= limits.rows && kernel.cidrs.len() <= limits.cidrs.saturating_mul(2),
                    "{:?}",
                    op
                );
                for (question, old) in &before {
                    // Whose number is another pod's is for other tests.
                    let Some(new) = after.get(question) else { continue };
                    prop_assert!(*old || *new || !ask(&kernel, *question), "{:?} opens {:?}", op, question);
                }
            }
            world.compiler.confirm(changes.update);
            kernel.rules.clone_from(&world.compiler.state().rules);
            prop_assert_eq!(&kernel, world.compiler.state());
            before = after;
        }
        if !only_rows {
            continue;
        }
        let of = |groups: &kube_router_common::policy::PodGroups| [groups.ingress, groups.egress];
        let used: BTreeSet<u32> = kernel.pods.values().flat_map(of).collect();
        prop_assert!(kernel.rows.keys().all(|key| used.contains(&key.group)), "rows of who is shut");
        for (question, allowed) in &before {
            let groups = of(&kernel.pods[&question.0]);
            match groups[question.1] {
                CLOSED => prop_assert!(!ask(&kernel, *question)),
                _ => prop_assert_eq!(ask(&kernel, *question), *allowed, "{:?}", question),
            }
        }
        let shut = kernel.pods.values().flat_map(of).any(|group| group == CLOSED);
        prop_assert_eq!(shut, world.compiler.problems().any(|problem| problem.reason == "PolicyTableFull"));
    }
    Ok(())
}

proptest! {
    #![proptest_config(random::config(50))]

    /// Nothing opens, not even between two orders; what is not shut is whole; and the table is never too small.
    #[test]
    fn a_small_table_of_rows_under_random_events(rows in 4..30usize, events in vec(random::event(), 1..30)) {
        lead(Limits { rows, ..Limits::default() }, events)?;
    }

    /// Nothing opens, not even between two orders.
    #[test]
    fn small_tables_of_peers_under_random_events(
        which in 0..3u8,
        size in 3..12u32,
        events in vec(random::event(), 1..30),
    ) {
        let all = Limits::default();
        let limits = match which {
            0 => Limits { cidrs: size as usize, ..all },
            1 => Limits { classes: size, ..all },
            _ => Limits { peers: size as usize, ..all },
        };
        lead(limits, events)?;
    }
}
