//! ClusterNetworkPolicy: what must connect, written from the text of the API.

use std::slice::from_ref;

use super::{
    scenarios::{Probe, cluster, expect, ip_of},
    world::*,
};
use crate::{
    compile::policy::{explain::explain, model},
    desired::policy::Direction,
    objects::{Kind, Object, ObjectKey},
};

fn cluster_policy(name: &str, spec: &str) -> Object {
    object(&format!(
        "{{apiVersion: policy.networking.k8s.io/v1alpha2, kind: ClusterNetworkPolicy, metadata: {{name: {name}}}, spec: {spec}}}"
    ))
}

fn spec(tier: &str, priority: u32, subject: &str, rules: &str) -> String {
    format!("{{tier: {tier}, priority: {priority}, subject: {subject}, {rules}}}")
}

const ALL: &str = "{namespaces: {}}";
const X: &str = "{namespaces: {matchLabels: {ns: x}}}";
const FROM_ALL: &str = "from: [{namespaces: {}}]";
const FROM_Y: &str = "from: [{namespaces: {matchLabels: {ns: y}}}]";

/// Adds policies: ClusterNetworkPolicies c0, c1, ... and NetworkPolicies of namespace x.
fn scenario(what: &str, cluster_specs: &[String], specs: &[&str], connects: impl Fn(Probe) -> bool) {
    let mut world = cluster();
    let wide = cluster_specs.iter().enumerate().map(|(i, spec)| applied(cluster_policy(&format!("c{i}"), spec)));
    let own = specs.iter().enumerate().map(|(i, spec)| applied(policy("x", &format!("p{i}"), spec)));
    world.send(wide.chain(own).collect::<Vec<_>>());
    expect(&world, what, connects);
    let problems: Vec<String> = world.compiler.problems().map(ToString::to_string).collect();
    assert!(problems.is_empty(), "{what}: {problems:?}");
    world.send((0..cluster_specs.len()).map(|i| gone(Kind::ClusterNetworkPolicy, "", &format!("c{i}"))));
    world.send((0..specs.len()).map(|i| gone(Kind::NetworkPolicy, "x", &format!("p{i}"))));
    expect(&world, "after deletion", |_| true);
    world.settle();
    assert_eq!(world.compiler.state().rows.len(), 0, "{what}: nothing is left");
}

fn ingress(action: &str, from: &str) -> String {
    format!("ingress: [{{action: {action}, {from}}}]")
}

const DENY_INGRESS: &str = "{podSelector: {}, policyTypes: [Ingress]}";
const ALLOW_INGRESS: &str = "{podSelector: {}, ingress: [{}]}";

#[test]
fn admin_comes_before_network_policy() {
    let deny = spec("Admin", 1, X, &ingress("Deny", FROM_Y));
    scenario("Deny", from_ref(&deny), &[], |p| p.tns != "x" || p.fns != "y");
    scenario("Deny cannot be overridden", from_ref(&deny), &[ALLOW_INGRESS], |p| p.tns != "x" || p.fns != "y");
    scenario("what Deny does not match goes on to NetworkPolicy", &[deny], &[DENY_INGRESS], |p| p.tns != "x");
    let accept = spec("Admin", 1, X, &ingress("Accept", FROM_Y));
    scenario("Accept isolates nobody", from_ref(&accept), &[], |_| true);
    scenario("Accept cannot be overridden", &[accept], &[DENY_INGRESS], |p| p.tns != "x" || p.fns == "y");
    let both = "ingress: [{action: Accept, from: [{namespaces: {matchLabels: {ns: y}}}]}, {action: Deny, from: [{namespaces: {}}]}]";
    scenario("the first rule that matches counts", &[spec("Admin", 1, X, both)], &[], |p| p.tns != "x" || p.fns == "y");
    let ordered = [spec("Admin", 7, X, &ingress("Deny", FROM_ALL)), spec("Admin", 3, X, &ingress("Accept", FROM_Y))];
    scenario("the lower priority value counts", &ordered, &[], |p| p.tns != "x" || p.fns == "y");
    let equal = [spec("Admin", 3, X, &ingress("Deny", FROM_ALL)), spec("Admin", 3, X, &ingress("Accept", FROM_Y))];
    scenario("equal values: by name", &equal, &[], |p| p.tns != "x");
}

#[test]
fn pass_leaves_the_rest_of_the_tier_out() {
    let pass = spec("Admin", 1, X, &ingress("Pass", FROM_Y));
    let deny = spec("Admin", 2, X, &ingress("Deny", FROM_ALL));
    let base = spec("Baseline", 1, X, &ingress("Deny", FROM_ALL));
    let allow_80 = "{podSelector: {}, ingress: [{ports: [{port: 80}]}]}";
    scenario("nobody else says anything", &[pass.clone(), deny.clone()], &[], |p| p.tns != "x" || p.fns == "y");
    scenario("NetworkPolicy decides", &[pass.clone(), deny.clone()], &[allow_80], |p| {
        p.tns != "x" || p.fns == "y" && p.port == tcp(80)
    });
    scenario("Baseline decides", &[pass.clone(), base.clone()], &[], |p| p.tns != "x");
    scenario("NetworkPolicy before Baseline", &[pass, deny, base], &[ALLOW_INGRESS], |p| p.tns != "x" || p.fns == "y");
    let rules = "ingress: [{action: Pass, from: [{namespaces: {matchLabels: {ns: y}}}]}, {action: Deny, from: [{namespaces: {}}]}]";
    scenario("Pass in Baseline is the default", &[spec("Baseline", 0, X, rules)], &[], |p| {
        p.tns != "x" || p.fns == "y"
    });
}

#[test]
fn baseline_is_for_pods_that_no_network_policy_isolates() {
    let deny = spec("Baseline", 1000, ALL, &ingress("Deny", FROM_ALL));
    scenario("nobody is isolated", from_ref(&deny), &[], |_| false);
    scenario("NetworkPolicy overrides", from_ref(&deny), &[ALLOW_INGRESS], |p| p.tns == "x");
    let only_a = "{podSelector: {matchLabels: {pod: a}}, ingress: [{from: [{podSelector: {}}]}]}";
    scenario("only of the pods it selects", from_ref(&deny), &[only_a], |p| p.to("x/a") && p.fns == "x");
    let egress = "{podSelector: {}, policyTypes: [Egress], egress: [{}]}";
    scenario("only in the direction it isolates", &[deny], &[egress], |_| false);
    let accept = "ingress: [{action: Accept, from: [{namespaces: {matchLabels: {ns: x}}}]}, {action: Deny, from: [{namespaces: {}}]}]";
    scenario("Accept", &[spec("Baseline", 1, X, accept)], &[], |p| p.tns != "x" || p.fns == "x");
}

#[test]
fn subjects_and_peers() {
    let pods = "{pods: {namespaceSelector: {matchLabels: {ns: x}}, podSelector: {matchLabels: {pod: a}}}}";
    let deny = spec("Admin", 1, pods, &ingress("Deny", FROM_ALL));
    scenario("pods of a namespace", &[deny], &[], |p| !p.to("x/a"));
    let everywhere = "{pods: {podSelector: {matchLabels: {pod: a}}}}";
    scenario("pods of every namespace", &[spec("Admin", 1, everywhere, &ingress("Deny", FROM_ALL))], &[], |p| {
        p.t != "a"
    });
    let from = "from: [{pods: {namespaceSelector: {matchLabels: {ns: y}}, podSelector: {matchLabels: {pod: b}}}}]";
    scenario("a peer by pod and namespace", &[spec("Admin", 1, X, &ingress("Deny", from))], &[], |p| {
        p.tns != "x" || !p.from("y/b")
    });
    let not_own = "from: [{namespaces: {matchExpressions: [{key: ns, operator: NotIn, values: [x]}]}}]";
    scenario("other namespaces", &[spec("Admin", 1, X, &ingress("Deny", not_own))], &[], |p| {
        p.tns != "x" || p.fns == "x"
    });
    let egress = |to: &str| format!("egress: [{{action: Deny, to: [{to}]}}]");
    scenario("egress", &[spec("Admin", 1, X, &egress("{namespaces: {matchLabels: {ns: z}}}"))], &[], |p| {
        p.fns != "x" || p.tns != "z"
    });
    // "if you Accept or Deny traffic to 0.0.0.0/0, that will allow or deny all IPv4 pod-to-pod traffic as well"
    scenario("networks are also about pods", &[spec("Admin", 1, X, &egress("{networks: [0.0.0.0/0]}"))], &[], |p| {
        p.fns != "x"
    });
    scenario("several networks", &[spec("Admin", 1, X, &egress("{networks: [10.1.1.0/24, 10.1.2.1/32]}"))], &[], |p| {
        p.fns != "x" || p.tns != "y" && !p.to("z/a")
    });
    let pass_pods =
        "egress: [{action: Pass, to: [{namespaces: {}}]}, {action: Deny, to: [{networks: [0.0.0.0/0, '::/0']}]}]";
    let mut world = cluster();
    world.send([applied(cluster_policy("c", &spec("Admin", 1, X, pass_pods)))]);
    expect(&world, "the API's advice for the world outside", |_| true);
    let a = world.cluster.pod(&ObjectKey::new("x", "a")).unwrap();
    for outside in ["203.0.113.9", "2001:db8::1", "192.0.2.1"] {
        assert!(!model::judge(&world.cluster, a, Direction::Egress, ip(outside), tcp(80)).allowed, "{outside}");
    }
    world.compare(&["203.0.113.9", "2001:db8::1", "192.0.2.1", "10.1.1.1"].map(ip), &[tcp(80), udp(80)]).unwrap();
}

#[test]
fn protocols() {
    let rules = |protocol: &str| format!("ingress: [{{action: Deny, {FROM_ALL}, protocols: [{protocol}]}}]");
    let check = |protocol: &str, hit: &dyn Fn(Probe) -> bool| {
        scenario(protocol, &[spec("Admin", 1, X, &rules(protocol))], &[], |p| p.tns != "x" || !hit(p));
    };
    check("{tcp: {destinationPort: {number: 80}}}", &|p| p.port == tcp(80));
    check("{udp: {destinationPort: {range: {start: 81, end: 90}}}}", &|p| p.port == udp(81));
    check("{sctp: {destinationPort: {number: 80}}}", &|p| p.port == sctp(80));
    check("{tcp: {destinationPort: {range: {start: 1, end: 65535}}}}", &|p| p.port == tcp(80) || p.port == tcp(81));
    check("{destinationNamedPort: serve-81-udp}", &|p| p.port == udp(81));
    check("{destinationNamedPort: nobody-has-it}", &|_| false);
    check("{tcp: {destinationPort: {number: 80}}}, {destinationNamedPort: serve-80-sctp}", &|p| {
        p.port == tcp(80) || p.port == sctp(80)
    });
    let to = "egress: [{action: Deny, to: [{namespaces: {matchLabels: {ns: y}}}], protocols: [{destinationNamedPort: serve-80-tcp}]}]";
    scenario("egress by name", &[spec("Admin", 1, X, to)], &[], |p| p.fns != "x" || p.tns != "y" || p.port != tcp(80));
    let accept =
        "ingress: [{action: Accept, from: [{namespaces: {}}], protocols: [{tcp: {destinationPort: {number: 80}}}]}]";
    scenario("Accept of one port beside isolation", &[spec("Admin", 1, X, accept)], &[DENY_INGRESS], |p| {
        p.tns != "x" || p.port == tcp(80)
    });
}

/// Nothing gets around a Deny by leaving its ports out, and nothing through an Accept.
#[test]
fn without_ports() {
    let one = |action: &str| {
        spec(
            "Admin",
            1,
            X,
            &format!(
                "ingress: [{{action: {action}, {FROM_Y}, protocols: [{{tcp: {{destinationPort: {{number: 80}}}}}}]}}]"
            ),
        )
    };
    for (rule, own, allowed) in [
        (one("Deny"), None, false),
        (one("Deny"), Some(ALLOW_INGRESS), false),
        (one("Accept"), Some(DENY_INGRESS), false),
        (one("Accept"), Some(ALLOW_INGRESS), true),
        (one("Pass"), Some(DENY_INGRESS), false),
        (spec("Admin", 1, X, &ingress("Accept", FROM_Y)), Some(DENY_INGRESS), true),
    ] {
        let mut world = cluster();
        world.send([applied(cluster_policy("c", &rule))]);
        world.send(own.map(|spec| applied(policy("x", "p", spec))));
        let a = world.cluster.pod(&ObjectKey::new("x", "a")).unwrap();
        let judged = model::judge(&world.cluster, a, Direction::Ingress, ip_of("y", "b"), model::Traffic::Portless);
        assert_eq!(judged.allowed, allowed, "{rule} {own:?}");
        world.compare(&[ip_of("y", "b"), ip_of("z", "b")], &[model::Traffic::Portless, tcp(80), tcp(81)]).unwrap();
    }
}

#[test]
fn labels_and_namespaces_change() {
    let mut world = cluster();
    world.send([applied(cluster_policy(
        "c",
        &spec(
            "Admin",
            1,
            "{namespaces: {matchLabels: {team: blue}}}",
            &ingress("Deny", "from: [{namespaces: {matchLabels: {team: red}}}]"),
        ),
    ))]);
    expect(&world, "nobody has the labels", |_| true);
    let team = |name: &str, team: &str| {
        let yaml = format!(
            "{{apiVersion: v1, kind: Namespace, metadata: {{name: {name}, labels: {{ns: {name}, team: {team}}}}}}}"
        );
        applied(object(&yaml))
    };
    world.send([team("x", "blue")]);
    expect(&world, "only the subject", |_| true);
    world.send([team("y", "red")]);
    expect(&world, "both", |p| p.tns != "x" || p.fns != "y");
    world.send([team("x", "red"), team("y", "blue")]);
    expect(&world, "the other way round", |p| p.tns != "y" || p.fns != "x");
    world.settle();
    assert!(world.send([]).is_empty());
}

#[test]
fn explain_names_tier_and_rule() {
    let mut world = cluster();
    let named = "ingress: [{name: no-y, action: Deny, from: [{namespaces: {matchLabels: {ns: y}}}]}]";
    world.send([applied(cluster_policy("wall", &spec("Admin", 1, X, named)))]);
    world.send([applied(cluster_policy("floor", &spec("Baseline", 1, X, &ingress("Accept", FROM_ALL))))]);
    let say = |from| {
        let text = explain(&world.cluster, &world.node, from, ip_of("x", "a"), tcp(80)).to_string();
        text.lines().last().unwrap().trim().to_owned()
    };
    assert_eq!(
        say(ip_of("y", "a")),
        "ingress of x/a: denied by ClusterNetworkPolicy wall (tier Admin) ingress[0] (Deny \"no-y\" pods * in namespaces ns=y)"
    );
    assert_eq!(
        say(ip_of("z", "a")),
        "ingress of x/a: allowed by ClusterNetworkPolicy floor (tier Baseline) ingress[0] (Accept pods * in namespaces *)"
    );
}
