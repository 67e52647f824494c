//! ClusterNetworkPolicies with parts that make no sense, and too many peers: closed, and said aloud.

use super::world::*;
use crate::{
    compile::policy::{Limits, PolicyConfig, address_of, model},
    desired::policy::Direction,
    objects::{Object, ObjectKey},
};

fn wide(name: &str, spec: &str) -> Object {
    object(&format!(
        "{{apiVersion: policy.networking.k8s.io/v1beta1, kind: ClusterNetworkPolicy, metadata: {{name: {name}}}, spec: {spec}}}"
    ))
}

fn pods() -> Vec<Object> {
    vec![
        Object::Pod(pod("x", "a", "10.0.0.1", &[("pod", "a")])),
        Object::Pod(pod("x", "b", "10.0.0.2", &[("pod", "b")])),
        policy("x", "all", "{podSelector: {}, ingress: [{}], egress: [{}]}"),
    ]
}

/// Reasons and texts; may x/a send to x/b on TCP 80, on TCP 81?
fn with(spec: &str) -> (Vec<String>, bool, bool) {
    let world = World::of(pods().into_iter().chain([wide("c", spec)]));
    world.compare(&["10.0.0.2", "10.0.0.1", "203.0.113.9"].map(ip), &[tcp(80), tcp(81), udp(80)]).unwrap();
    let number = world.compiler.pod_number(&ObjectKey::new("x", "a")).unwrap();
    let ask = |port| {
        let peer = address_of(ip("10.0.0.2"));
        let question = Question { pod: number, direction: Direction::Egress, peer, traffic: tcp(port) };
        world.walk(world.compiler.state(), &question).unwrap().0
    };
    let text = |problem: &crate::compile::Problem| format!("{} {}", problem.reason, problem.text);
    (world.compiler.problems().map(text).collect(), ask(80), ask(81))
}

#[test]
fn a_bad_part_of_a_rule_never_opens() {
    let all = "{namespaces: {}}";
    for (to, protocols, reason, place) in [
        ("", "", "BadPeer", "spec.egress[0].to names nobody"),
        ("{}", "", "BadPeer", "to[0]: names nobody"),
        ("{serviceAccounts: {}}", "", "BadPeer", "to[0]: names nobody"),
        ("{namespaces: {}, networks: [10.0.0.0/8]}", "", "BadPeer", "more than one way"),
        ("{networks: []}", "", "BadPeer", "to[0]: names nobody"),
        ("{networks: [ten]}", "", "BadIpBlock", "to[0].networks[0]: \"ten\" is not a CIDR"),
        ("{nodes: {}}", "", "UnsupportedPeer", "to[0].nodes: not supported"),
        ("{domainNames: ['*.example.org']}", "", "UnsupportedPeer", "to[0].domainNames: not supported"),
        (
            "{namespaces: {matchExpressions: [{key: a, operator: Like}]}}",
            "",
            "BadSelector",
            "to[0].namespaces.matchExpressions[0]",
        ),
        (
            "{pods: {podSelector: {matchExpressions: [{key: a, operator: In}]}}}",
            "",
            "BadSelector",
            "to[0].pods.podSelector",
        ),
        (all, "{}", "BadPort", "protocols[0]: names no protocol"),
        (all, "{tcp: {}}", "BadPort", "protocols[0].tcp.destinationPort is missing"),
        (all, "{tcp: {destinationPort: {number: 0}}}", "BadPort", "number: 0 is not a port number"),
        (all, "{udp: {destinationPort: {range: {start: 81, end: 81}}}}", "BadPort", "start 81 is not less than end 81"),
        (all, "{tcp: {destinationPort: {range: {start: 81}}}}", "BadPort", "range.end is missing"),
        (all, "{tcp: {destinationPort: {number: 1, range: {start: 1, end: 2}}}}", "BadPort", "both number and range"),
        (
            all,
            "{tcp: {destinationPort: {number: 1}}, udp: {destinationPort: {number: 1}}}",
            "BadPort",
            "more than one protocol",
        ),
        ("{networks: [10.0.0.0/8]}", "{destinationNamedPort: http}", "BadPort", "have no named ports"),
        (all, "5", "UnreadableRule", "spec.egress[0].protocols[0]"),
        ("7", "", "UnreadableRule", "spec.egress[0].to[0]"),
    ] {
        let protocols = if protocols.is_empty() { String::new() } else { format!(", protocols: [{protocols}]") };
        for (action, allowed) in [("Accept", false), ("Deny", false), ("Pass", false)] {
            // Behind it the tier denies, so an Accept that would match shows.
            let spec = format!(
                "{{tier: Admin, priority: 1, subject: {{namespaces: {{}}}}, egress: [{{action: {action}, to: [{to}]{protocols}}}, \
                 {{action: Deny, to: [{{namespaces: {{}}}}]}}]}}"
            );
            let (problems, on_80, on_81) = with(&spec);
            assert_eq!((on_80, on_81), (allowed, allowed), "{spec}");
            assert_eq!(problems.len(), 1, "{spec}: {problems:?}");
            assert!(problems[0].starts_with(reason) && problems[0].contains(place), "{spec}: {}", problems[0]);
            let then = if action == "Accept" { "accepts nothing" } else { "denies everything" };
            assert!(problems[0].ends_with(then), "{}", problems[0]);
        }
    }
}

#[test]
fn a_policy_that_cannot_be_placed_only_denies() {
    let rules = |subject: &str, tier: &str, priority: &str, actions: [&str; 2]| {
        format!(
            "{{tier: {tier}, priority: {priority}, subject: {subject}, egress: [{{action: {}, to: [{{namespaces: {{}}}}], \
             protocols: [{{tcp: {{destinationPort: {{number: 80}}}}}}]}}, {{action: {}, to: [{{namespaces: {{}}}}]}}]}}",
            actions[0], actions[1]
        )
    };
    for (subject, tier, priority, reason) in [
        ("{}", "Admin", "1", "BadSubject spec.subject names nobody"),
        ("{namespaces: {}, pods: {podSelector: {}}}", "Admin", "1", "BadSubject spec.subject names both"),
        (
            "{namespaces: {matchExpressions: [{key: a, operator: Like}]}}",
            "Admin",
            "1",
            "BadSelector spec.subject.namespaces.match",
        ),
        ("{pods: {podSelector: 5}}", "Admin", "1", "BadSelector spec.subject"),
        ("{namespaces: {}}", "Admin", "1001", "BadPriority spec.priority: 1001"),
        ("{namespaces: {}}", "Admin", "high", "BadPriority spec.priority: no number"),
        ("{namespaces: {}}", "Namespaced", "1", "BadTier spec.tier: \"Namespaced\""),
        ("{namespaces: {}}", "7", "1", "BadTier spec.tier"),
    ] {
        let (problems, on_80, on_81) = with(&rules(subject, tier, priority, ["Deny", "Accept"]));
        assert!(problems.len() == 1 && problems[0].starts_with(reason), "{reason}: {problems:?}");
        assert_eq!((on_80, on_81), (false, true), "Deny as written, Accept matches nothing: {reason}");
        let (_, on_80, on_81) = with(&rules(subject, tier, priority, ["Pass", "Accept"]));
        assert_eq!((on_80, on_81), (false, true), "Pass denies: {reason}");
    }
    let (problems, on_80, _) =
        with("{tier: Admin, priority: 1, subject: {namespaces: {}}, egress: [{action: Drop, to: []}]}");
    assert!(
        !on_80 && problems.len() == 1 && problems[0].starts_with("BadAction spec.egress[0].action: \"Drop\""),
        "{problems:?}"
    );
    let ingress = "{tier: Admin, priority: 1, subject: {namespaces: {}}, ingress: [{action: Deny, from: [{networks: [0.0.0.0/0]}]}]}";
    assert!(with(ingress).0[0].contains("are for egress"), "{:?}", with(ingress).0);
}

#[test]
fn more_than_the_api_takes_is_honoured() {
    let nets: Vec<String> = (0..26).map(|n| format!("10.0.0.{n}/32")).collect();
    let (problems, on_80, _) = with(&format!(
        "{{tier: Admin, priority: 1, subject: {{namespaces: {{}}}}, egress: [{{action: Deny, to: [{{networks: [{}]}}]}}]}}",
        nets.join(",")
    ));
    assert!(!on_80 && problems[0].starts_with("TooManyEntries spec.egress[0].to[0].networks has 26"), "{problems:?}");
}

/// Who cannot be told apart must not be missed by a Deny.
#[test]
fn pods_with_denying_rules_are_closed_while_a_table_is_full() {
    let crowd = |count: u32| -> Vec<Object> {
        let peer = |n: u32| pod("x", &format!("p{n}"), &format!("10.0.0.{}", n + 1), &[("n", &n.to_string())]);
        let pods = (0..count).map(|n| Object::Pod(peer(n)));
        let rule = |n: u32| {
            format!(
                "{{action: Deny, from: [{{pods: {{podSelector: {{matchLabels: {{n: '{n}'}}}}}}}}], protocols: [{{tcp: \
                 {{destinationPort: {{number: {}}}}}}}]}}",
                n + 1
            )
        };
        let rules: Vec<String> = (0..count).map(rule).collect();
        let spec = format!(
            "{{tier: Admin, priority: 1, subject: {{pods: {{podSelector: {{matchLabels: {{n: '0'}}}}}}}}, ingress: [{}]}}",
            rules.join(",")
        );
        pods.chain([wide("c", &spec)]).collect()
    };
    let addresses: Vec<_> = (1..13).map(|n| ip(&format!("10.0.0.{n}"))).collect();
    let limits = [
        Limits { classes: 6, ..Limits::default() },
        Limits { peers: 8, ..Limits::default() },
        Limits { rows: 9, ..Limits::default() },
    ];
    for limits in limits {
        let mut world = World::new(PolicyConfig { limits, ..PolicyConfig::new(NODE) });
        world.send(crowd(12).into_iter().map(applied));
        let reasons: Vec<_> = world.compiler.problems().map(|problem| problem.reason).collect();
        assert!(reasons.contains(&"PolicyClosed") || reasons == ["PolicyTableFull"; 2], "{reasons:?}");
        let mut same = 0;
        for (key, number) in world.compiler.local_pods() {
            let subject = world.cluster.pod(key).unwrap();
            for peer in &addresses {
                for traffic in [tcp(1), tcp(5), tcp(99)] {
                    let direction = Direction::Ingress;
                    let question = Question { pod: number, direction, peer: address_of(*peer), traffic };
                    let rows = world.walk(world.compiler.state(), &question).unwrap().0;
                    let model = model::judge(&world.cluster, subject, direction, *peer, traffic).allowed;
                    assert!(model || !rows, "{key} is open to {peer} {traffic:?}");
                    same += usize::from(rows == model);
                }
            }
        }
        assert!(same > 300, "the other pods are not concerned: {same}");
        let update = world.send([applied(crowd(3).pop().unwrap())]).update;
        world.compiler.confirm(update);
        world.settle();
        for _ in 0..2 {
            let update = world.send([]).update;
            world.compiler.confirm(update);
        }
        let reasons: Vec<_> = world.compiler.problems().map(|problem| problem.reason).collect();
        assert!(reasons.is_empty(), "{reasons:?}");
        world.compare(&addresses, &[tcp(1), tcp(3), tcp(5)]).unwrap();
    }
}
