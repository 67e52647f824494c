//! Parts that make no sense, and clusters that are too large: the outcome of each, closed and said aloud.

use super::world::*;
use crate::{
    compile::{
        Subject,
        policy::{Limits, NumbersInUse, PolicyConfig, address_of, explain::explain},
    },
    objects::{Object, Pod},
};

/// A pod `x/a` with the policy; returns (reasons and texts, does it accept from x/b on TCP 80).
fn with(spec: &str) -> (Vec<String>, bool) {
    let world = World::of([
        Object::Pod(pod("x", "a", "10.0.0.1", &[("pod", "a")])),
        Object::Pod(pod("x", "b", "10.0.0.2", &[("pod", "b")])),
        policy("x", "p", spec),
    ]);
    world.compare(&[ip("10.0.0.2"), ip("10.9.9.9")], &[tcp(80), udp(80)]).unwrap();
    let number = world.compiler.pod_number(&crate::objects::ObjectKey::new("x", "a")).unwrap();
    let groups = world.compiler.state().pods[&number];
    assert_ne!((groups.ingress, groups.egress), (0, 0), "the pod stays isolated: {spec}");
    let question = Question {
        pod: number,
        direction: crate::desired::policy::Direction::Ingress,
        peer: address_of(ip("10.0.0.2")),
        traffic: tcp(80),
    };
    let allowed = world.walk(world.compiler.state(), &question).unwrap().0;
    (world.compiler.problems().map(|problem| format!("{} {}", problem.reason, problem.text)).collect(), allowed)
}

#[test]
fn a_bad_part_grants_nothing_and_is_named() {
    let rule = |rule: &str| format!("{{podSelector: {{}}, ingress: [{rule}]}}");
    let peer = |peer: &str| rule(&format!("{{from: [{peer}, {{podSelector: {{}}}}]}}"));
    let port = |port: &str| rule(&format!("{{ports: [{{port: 80}}, {port}]}}"));
    for (spec, reason, place) in [
        (
            peer("{podSelector: {matchExpressions: [{key: a, operator: Like, values: [b]}]}}"),
            "BadSelector",
            "from[0].podSelector.matchExpressions[0]: \"Like\"",
        ),
        (peer("{podSelector: {matchExpressions: [{key: a, operator: In}]}}"), "BadSelector", "need values"),
        (
            peer("{namespaceSelector: {matchExpressions: [{key: a, operator: Exists, values: [b]}]}}"),
            "BadSelector",
            "from[0].namespaceSelector",
        ),
        (peer("{podSelector: {matchExpressions: [{operator: Exists}]}}"), "BadSelector", "a key is missing"),
        (peer("{}"), "BadPeer", "from[0]: names nobody"),
        (peer("{ipBlock: {cidr: 10.0.0.0/8}, podSelector: {}}"), "BadPeer", "stands alone"),
        (peer("{ipBlock: {cidr: ten}}"), "BadIpBlock", "\"ten\" is not a CIDR"),
        (peer("{ipBlock: {}}"), "BadIpBlock", "is not a CIDR"),
        (peer("{ipBlock: {cidr: '::ffff:10.0.0.0/104'}}"), "BadIpBlock", "IPv4 written as IPv6"),
        (
            peer("{ipBlock: {cidr: 10.0.0.0/16, except: [10.1.0.0/16]}}"),
            "BadIpBlock",
            "except[0]: 10.1.0.0/16 is not a part of 10.0.0.0/16",
        ),
        (peer("{ipBlock: {cidr: 10.0.0.0/16, except: [10.0.0.0/16]}}"), "BadIpBlock", "is not a part"),
        (peer("{ipBlock: {cidr: 10.0.0.0/16, except: ['fd00::/64']}}"), "BadIpBlock", "is not a part"),
        (port("{port: 0}"), "BadPort", "ports[1]: port 0"),
        (port("{port: 65536}"), "BadPort", "65536"),
        (port("{port: -1}"), "BadPort", "-1"),
        (port("{port: 90, endPort: 80}"), "BadPort", "endPort 80 is smaller than port 90"),
        (port("{port: 90, endPort: 70000}"), "BadPort", "endPort 70000"),
        (port("{port: http, endPort: 80}"), "BadPort", "endPort needs a number"),
        (port("{endPort: 80}"), "BadPort", "endPort needs a port"),
        (port("{port: '80'}"), "BadPort", "\"80\" is not the name of a port"),
        (port("{port: 80, protocol: tcp}"), "BadPort", "protocol \"tcp\""),
        (rule("{from: 5}"), "UnreadableRule", "spec.ingress[0].from"),
        (
            "{podSelector: {matchExpressions: [{key: a, operator: Like}]}, ingress: [{}]}".into(),
            "BadSelector",
            "spec.podSelector.matchExpressions[0]",
        ),
        ("{podSelector: 7, ingress: [{}]}".into(), "BadSelector", "spec.podSelector: expected an object"),
    ] {
        let (problems, allowed) = with(&spec);
        assert!(!allowed, "{spec} grants");
        assert_eq!(problems.len(), 1, "{spec}: {problems:?}");
        assert!(problems[0].starts_with(reason) && problems[0].contains(place), "{spec}: {}", problems[0]);
    }
    let (problems, allowed) = with("{podSelector: {}, policyTypes: [Ingres], ingress: [{}]}");
    assert!(allowed && problems[0].starts_with("BadPolicyType"), "{problems:?}");
    let (_, allowed) = with("{podSelector: {}, ingress: [{ports: [{port: 0}]}, {from: [{podSelector: {}}]}]}");
    assert!(allowed, "the rule beside it is good");
}

fn small(limits: Limits, objects: Vec<Object>) -> World {
    let mut world = World::new(PolicyConfig { limits, ..PolicyConfig::new(NODE) });
    world.send(objects.into_iter().map(applied));
    world
}

fn reasons(world: &World) -> Vec<&'static str> {
    let on_policies = ["PolicyTableFull", "TooManyBlocks"];
    let on_node = world
        .compiler
        .problems()
        .filter(|problem| !matches!(problem.subject, Subject::Object(..)) || !on_policies.contains(&problem.reason));
    on_node.map(|problem| problem.reason).collect()
}

/// `pods` pods in x, each with a label of its own, and a policy for x/p0 that allows each on its own port.
fn crowd(pods: u32) -> Vec<Object> {
    let mut objects: Vec<Object> = (0..pods)
        .map(|n| {
            let number = n.to_string();
            Object::Pod(pod("x", &format!("p{n}"), &format!("10.0.{}.{}", n / 250, n % 250 + 1), &[("n", &number)]))
        })
        .collect();
    let rules: Vec<String> = (0..pods)
        .map(|n| format!("{{from: [{{podSelector: {{matchLabels: {{n: '{n}'}}}}}}], ports: [{{port: {}}}]}}", n + 1))
        .collect();
    objects.push(policy(
        "x",
        "crowd",
        &format!("{{podSelector: {{matchLabels: {{n: '0'}}}}, ingress: [{}]}}", rules.join(",")),
    ));
    objects
}

#[test]
fn a_group_that_does_not_fit_has_no_rows_until_there_is_room() {
    let mut objects = crowd(20);
    objects.push(policy("x", "other", "{podSelector: {matchLabels: {n: '1'}}, ingress: [{ports: [{port: 80}]}]}"));
    let mut world = small(Limits { rows: 15, ..Limits::default() }, objects);
    assert_eq!(reasons(&world), ["PolicyTableFull"]);
    let rows = &world.compiler.state().rows;
    assert_eq!(rows.len(), 1, "all of the other's rows, none of the crowd's");
    assert!(!world.compiler.has_leftovers(), "nothing helps yet");
    world.send([applied(crowd(10).pop().unwrap())]);
    world.settle();
    assert_eq!((reasons(&world), world.compiler.state().rows.len()), (vec![], 11));
    // Growing over the limit by a peer's label, not by a policy.
    let mut world = small(Limits { rows: 10, ..Limits::default() }, crowd(10));
    assert_eq!(world.compiler.state().rows.len(), 10);
    world.send([applied(Object::Pod(pod("x", "late", "10.0.9.9", &[("n", "3"), ("m", "1")])))]);
    assert_eq!(world.compiler.state().rows.len(), 10, "a member of a class that exists");
    world.send([applied(policy("x", "more", "{podSelector: {matchLabels: {n: '1'}}, ingress: [{}]}"))]);
    assert_eq!((world.compiler.state().rows.len(), reasons(&world)), (1, vec!["PolicyTableFull"]));
    world.send([applied(policy("x", "crowd", "{podSelector: {matchLabels: {n: '0'}}}"))]);
    world.settle();
    assert_eq!((reasons(&world), world.compiler.state().rows.len()), (vec![], 1));
}

#[test]
fn too_many_classes_peers_prefixes_and_pods_are_closed() {
    let questions = [tcp(1), tcp(5), tcp(12)];
    let addresses: Vec<_> = (1..21).map(|n| ip(&format!("10.0.0.{n}"))).collect();
    let never_open = |world: &World| {
        let mut same = 0;
        for (key, number) in world.compiler.local_pods() {
            let subject = world.cluster.pod(key).unwrap();
            for peer in &addresses {
                for traffic in questions {
                    let direction = crate::desired::policy::Direction::Ingress;
                    let question = Question { pod: number, direction, peer: address_of(*peer), traffic };
                    let rows = world.walk(world.compiler.state(), &question).unwrap().0;
                    let model =
                        crate::compile::policy::model::judge(&world.cluster, subject, direction, *peer, traffic);
                    assert!(model.allowed || !rows, "{key} is open to {peer} {traffic:?}");
                    same += usize::from(rows == model.allowed);
                }
            }
        }
        same
    };
    for (limits, reason) in [
        (Limits { classes: 8, ..Limits::default() }, "TooManyClasses"),
        (Limits { peers: 9, ..Limits::default() }, "TooManyPeers"),
    ] {
        let mut world = small(limits, crowd(20));
        assert_eq!(reasons(&world), [reason]);
        assert!(never_open(&world) > 0);
        let numbers: Vec<u32> = world.compiler.state().peers.values().map(|peer| peer.class).collect();
        assert!(numbers.iter().all(|class| *class < limits.classes) && numbers.len() <= limits.peers);
        assert_eq!(world.compiler.state().peer(address_of(ip("192.0.2.1"))).flags, 1, "the node keeps its place");
        // A smaller policy makes room; numbers that were given back count only once they are confirmed.
        let update = world.send([applied(crowd(4).pop().unwrap())]).update;
        world.compiler.confirm(update);
        world.settle();
        let update = world.send([]).update;
        world.compiler.confirm(update);
        world.send([]);
        assert_eq!(reasons(&world), Vec::<&str>::new());
        world.compare(&addresses, &questions).unwrap();
    }
    let blocks: Vec<String> = (0..10)
        .map(|n| format!("{{ipBlock: {{cidr: 10.0.0.{}/30, except: [10.0.0.{}/32]}}}}", n * 4, n * 4 + 1))
        .collect();
    let mut objects = crowd(20);
    objects.push(policy("x", "b", &format!("{{podSelector: {{}}, ingress: [{{from: [{}]}}]}}", blocks.join(","))));
    let world = small(Limits { cidrs: 7, ..Limits::default() }, objects);
    assert_eq!(reasons(&world), ["TooManyBlocks"]);
    assert_eq!(world.compiler.state().cidrs.len(), 0, "all of a group's blocks or none");
    never_open(&world);

    let mut world = small(Limits { pods: 4, ..Limits::default() }, crowd(5));
    assert_eq!((world.compiler.local_pods().count(), reasons(&world)), (3, vec!["TooManyPods"; 2]));
    assert_eq!(world.compiler.state().endpoints.len(), 3);
    world.send([gone(crate::objects::Kind::Pod, "x", "p4")]);
    assert_eq!(reasons(&world), ["TooManyPods"]);
}

#[test]
fn rules_beyond_the_counters_are_counted_together() {
    let world = small(Limits { rules: 6, ..Limits::default() }, crowd(10));
    assert_eq!(world.compiler.state().rules.len(), 5);
    let uncounted = world.compiler.state().rows.values().filter(|row| row.rule == 0).count();
    assert_eq!((uncounted, world.compiler.state().rows.len()), (5, 10));
}

#[test]
fn two_pods_with_one_address() {
    let claim = |name: &str, created_s, terminating, role: &str| {
        Object::Pod(Pod { created_s, terminating, ..pod("x", name, "10.0.0.1", &[("role", role)]) })
    };
    let mut world = World::of([
        claim("old", 1, false, "a"),
        claim("liar", 9, true, "b"),
        Object::Pod(pod("x", "peer", "10.0.0.9", &[])),
        policy("x", "deny-a", "{podSelector: {matchLabels: {role: a}}}"),
        policy("x", "from-b", "{podSelector: {}, ingress: [{from: [{podSelector: {matchLabels: {role: b}}}]}]}"),
    ]);
    let problem = world.compiler.problems().next().unwrap().to_string();
    assert_eq!(problem, "Pod x/old: 10.0.0.1 is also claimed by x/liar; it counts as x/old's (DuplicatePodAddress)");
    let endpoint = |world: &World| world.compiler.state().endpoints.get(&address_of(ip("10.0.0.1"))).copied();
    assert_eq!(endpoint(&world), world.compiler.pod_number(&crate::objects::ObjectKey::new("x", "old")));
    world.compare(&[ip("10.0.0.1"), ip("10.0.0.9")], &[tcp(80)]).unwrap();
    world.send([gone(crate::objects::Kind::Pod, "x", "old")]);
    assert_eq!((reasons(&world), endpoint(&world).is_some()), (vec![], true));
    world.compare(&[ip("10.0.0.1"), ip("10.0.0.9")], &[tcp(80)]).unwrap();
}

#[test]
fn a_thousand_policies_on_a_pod_and_ten_thousand_addresses_in_one() {
    let mut objects = vec![Object::Pod(pod("x", "a", "10.0.0.1", &[("pod", "a")]))];
    objects.extend((0..1_000).map(|n| {
        policy("x", &format!("p{n:04}"), &format!("{{podSelector: {{}}, ingress: [{{ports: [{{port: {}}}]}}]}}", n + 1))
    }));
    let mut world = World::of(objects);
    assert_eq!(world.compiler.state().rows.len(), 1_000);
    world.compare(&[ip("10.0.0.2")], &[tcp(1), tcp(1_000), tcp(1_001)]).unwrap();
    let addresses: Vec<String> =
        (0..10_000).map(|n| format!("{{ipBlock: {{cidr: 198.18.{}.{}/32}}}}", n / 256, n % 256)).collect();
    world.send([applied(policy(
        "x",
        "many",
        &format!("{{podSelector: {{}}, ingress: [{{from: [{}]}}]}}", addresses.join(",")),
    ))]);
    assert_eq!(world.compiler.state().cidrs.len(), 10_000);
    world.compare(&[ip("198.18.3.3"), ip("198.19.0.1")], &[tcp(2_000)]).unwrap();
}

/// A range divides the ports, and the larger part keeps its number.
#[test]
fn a_rule_for_all_ports_writes_few_elements() {
    let mut world = World::of([Object::Pod(pod("x", "a", "10.0.0.1", &[]))]);
    let changes =
        world.send([applied(policy("x", "p", "{podSelector: {}, ingress: [{ports: [{port: 1, endPort: 65535}]}]}"))]);
    let written: u32 = changes.ports.iter().map(|(first, last, _)| last - first + 1).sum();
    assert_eq!(written, 1, "port 0");
    let changes = world.send([applied(policy("x", "q", "{podSelector: {}, ingress: [{ports: [{port: 80}]}]}"))]);
    assert_eq!(changes.ports.iter().map(|(first, last, _)| last - first + 1).sum::<u32>(), 1);
}

#[test]
fn numbers_of_an_earlier_agent_are_not_given_out() {
    let world = World::of(crowd(5));
    let used = NumbersInUse::of(world.compiler.state());
    let mut next = World::new(PolicyConfig::new(NODE));
    next.compiler.seed(used.clone());
    next.send(crowd(5).into_iter().map(applied));
    let now = NumbersInUse::of(next.compiler.state());
    assert!(now.groups.intersection(&used.groups).all(|group| *group == 0));
    assert!(now.classes.intersection(&used.classes).all(|class| *class == 0));
    assert!(now.rules.is_disjoint(&used.rules) && now.pods.is_disjoint(&used.pods));
    next.compare(&[ip("10.0.0.3")], &[tcp(3), tcp(4)]).unwrap();
}

#[test]
fn explain_names_the_rule_or_the_policies() {
    let world = World::of([
        Object::Pod(pod("x", "a", "10.0.0.1", &[("pod", "a")])),
        Object::Pod(pod("x", "b", "10.0.0.2", &[("pod", "b")])),
        policy(
            "x",
            "web",
            "{podSelector: {matchLabels: {pod: a}}, ingress: [{from: [{podSelector: {matchLabels: {pod: b}}}], ports: [{port: 80}]}]}",
        ),
    ]);
    let say = |from, port| explain(&world.cluster, &world.node, ip(from), ip("10.0.0.1"), tcp(port)).to_string();
    assert_eq!(
        say("10.0.0.2", 80),
        "10.0.0.2 -> 10.0.0.1 tcp/80: allowed\n  egress of x/b: allowed, no policy isolates it\n  ingress of x/a: allowed by \
         NetworkPolicy x/web ingress[0] (pods pod=b in x, tcp/80)\n"
    );
    assert_eq!(
        say("10.9.9.9", 80),
        "10.9.9.9 -> 10.0.0.1 tcp/80: denied\n  ingress of x/a: denied, isolated by NetworkPolicy x/web, no rule of which allows \
         this\n"
    );
    assert_eq!(
        say("192.0.2.1", 81),
        "192.0.2.1 -> 10.0.0.1 tcp/81: allowed\n  ingress of x/a: allowed, its node may reach it\n"
    );
}
