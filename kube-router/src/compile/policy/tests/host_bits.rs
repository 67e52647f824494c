//! CIDRs with bits beyond their length: the same policy as without them, and one problem that says so.

use super::world::*;
use crate::{
    compile::policy::{normalize, tiers},
    objects::Object,
};

fn wide(networks: &str) -> Object {
    object(&format!(
        "{{apiVersion: policy.networking.k8s.io/v1beta1, kind: ClusterNetworkPolicy, metadata: {{name: wide}}, spec: \
         {{tier: Admin, priority: 1, subject: {{namespaces: {{}}}}, egress: \
         [{{action: Deny, to: [{{networks: [{networks}]}}]}}]}}}}"
    ))
}

/// As compiled, and what is said of it.
fn read(object: &Object) -> (normalize::Policy, Vec<String>) {
    let (policy, problems) = match object {
        Object::NetworkPolicy(policy) => normalize::policy(policy),
        Object::ClusterNetworkPolicy(policy) => tiers::policy(policy),
        other => panic!("no policy: {other:?}"),
    };
    (policy, problems.iter().map(ToString::to_string).collect())
}

#[test]
fn bits_beyond_the_length_change_nothing_and_are_told() {
    let block = |block: &str| policy("x", "p", &format!("{{podSelector: {{}}, ingress: [{{from: [{block}]}}]}}"));
    let of = "spec.ingress[0].from[0].ipBlock";
    for (written, meant, told) in [
        (
            block("{ipBlock: {cidr: 10.1.2.3/16}}"),
            block("{ipBlock: {cidr: 10.1.0.0/16}}"),
            format!("{of}.cidr: 10.1.2.3/16 is read as 10.1.0.0/16"),
        ),
        (
            block("{ipBlock: {cidr: 10.1.0.0/16, except: [10.1.9.0/24, 10.1.2.3/24]}}"),
            block("{ipBlock: {cidr: 10.1.0.0/16, except: [10.1.9.0/24, 10.1.2.0/24]}}"),
            format!("{of}.except[1]: 10.1.2.3/24 is read as 10.1.2.0/24"),
        ),
        (
            block("{ipBlock: {cidr: 10.1.2.3/16, except: [10.1.2.3/24]}}"),
            block("{ipBlock: {cidr: 10.1.0.0/16, except: [10.1.2.0/24]}}"),
            format!(
                "{of}.cidr: 10.1.2.3/16 is read as 10.1.0.0/16; {of}.except[0]: 10.1.2.3/24 is read as 10.1.2.0/24"
            ),
        ),
        (
            block("{ipBlock: {cidr: 'fd00:1:2::3/32', except: ['fd00:1:2::3/48']}}"),
            block("{ipBlock: {cidr: 'fd00:1::/32', except: ['fd00:1:2::/48']}}"),
            format!(
                "{of}.cidr: fd00:1:2::3/32 is read as fd00:1::/32; {of}.except[0]: fd00:1:2::3/48 is read as fd00:1:2::/48"
            ),
        ),
        // Everything, not the one address.
        (
            block("{ipBlock: {cidr: 10.1.2.3/0}}"),
            block("{ipBlock: {cidr: 0.0.0.0/0}}"),
            format!("{of}.cidr: 10.1.2.3/0 is read as 0.0.0.0/0"),
        ),
        (
            policy(
                "x",
                "p",
                "{podSelector: {}, policyTypes: [Egress], egress: [{to: [{ipBlock: {cidr: 10.1.2.3/31}}]}]}",
            ),
            policy(
                "x",
                "p",
                "{podSelector: {}, policyTypes: [Egress], egress: [{to: [{ipBlock: {cidr: 10.1.2.2/31}}]}]}",
            ),
            "spec.egress[0].to[0].ipBlock.cidr: 10.1.2.3/31 is read as 10.1.2.2/31".to_owned(),
        ),
    ] {
        let told = format!("NetworkPolicy x/p: {told} (HostBitsIgnored)");
        assert_eq!(read(&written), (read(&meant).0, vec![told]));
        assert_eq!(read(&meant).1, [""; 0], "nothing is wrong with it");
    }
    assert_eq!(
        read(&wide("10.2.0.0/16, 10.1.2.3/16")),
        (
            read(&wide("10.2.0.0/16, 10.1.0.0/16")).0,
            vec![
                "ClusterNetworkPolicy wide: spec.egress[0].to[0].networks[1]: 10.1.2.3/16 is read as 10.1.0.0/16 \
                 (HostBitsIgnored)"
                    .to_owned()
            ]
        )
    );
}

/// In a range that counts for nothing, or that is refused for another reason, there is nothing to be read.
#[test]
fn what_is_not_read_is_not_told() {
    let (_, told) = read(&policy(
        "x",
        "p",
        "{podSelector: {}, policyTypes: [Ingress], egress: [{to: [{ipBlock: {cidr: 10.1.2.3/16}}]}]}",
    ));
    assert_eq!(told, [""; 0]);
    for networks in ["'::ffff:10.1.2.3/104'", "'::ffff:10.1.2.3/96'"] {
        let (policy, told) = read(&policy(
            "x",
            "p",
            &format!("{{podSelector: {{}}, ingress: [{{from: [{{ipBlock: {{cidr: {networks}}}}}]}}]}}"),
        ));
        assert_eq!(policy.rules[0].as_deref().map(<[_]>::len), Some(0), "it grants nothing");
        assert!(told.len() == 1 && told[0].contains("is IPv4 written as IPv6"), "{told:?}");
        assert!(told[0].ends_with("(BadIpBlock)"), "{told:?}");
    }
}

#[test]
fn a_policy_that_is_full_of_them_is_told_once() {
    let blocks: Vec<String> =
        (0..10_000).map(|n| format!("{{ipBlock: {{cidr: 198.{}.{}.1/31}}}}", n / 256, n % 256)).collect();
    let written = policy("x", "many", &format!("{{podSelector: {{}}, ingress: [{{from: [{}]}}]}}", blocks.join(",")));
    let (_, told) = read(&written);
    assert_eq!(told.len(), 1);
    assert!(told[0].contains("; and 9995 more") && told[0].len() < 1_024, "{}", told[0]);
}

/// From objects to rows: the neighbours of the written address are let in, its exception's neighbours are not, and a
/// policy that is corrected has no problem any more.
#[test]
fn packets_are_judged_by_the_range() {
    let mut world = World::of([
        Object::Pod(pod("x", "a", "10.0.0.1 fd00::1", &[])),
        policy(
            "x",
            "p",
            "{podSelector: {}, ingress: [{from: [{ipBlock: {cidr: 10.1.2.3/16, except: [10.1.7.7/24]}}, \
             {ipBlock: {cidr: 'fd00:1:2::3/32'}}]}]}",
        ),
    ]);
    let peers = ["10.1.2.3", "10.1.255.255", "10.1.7.1", "10.2.0.1", "fd00:1:9::9", "fd00:2::1"].map(ip);
    let number = world.compiler.pod_number(&crate::objects::ObjectKey::new("x", "a")).unwrap();
    let allowed = |world: &World| {
        peers.map(|peer| {
            let question = Question {
                pod: number,
                direction: crate::desired::policy::Direction::Ingress,
                peer: crate::compile::policy::address_of(peer),
                traffic: tcp(80),
            };
            world.walk(world.compiler.state(), &question).unwrap().0
        })
    };
    assert_eq!(allowed(&world), [true, true, false, false, true, false]);
    world.compare(&peers, &[tcp(80)]).unwrap();
    assert_eq!(world.compiler.problems().map(|problem| problem.reason).collect::<Vec<_>>(), ["HostBitsIgnored"]);
    world.send([applied(policy("x", "p", "{podSelector: {}, ingress: [{from: [{ipBlock: {cidr: 10.1.2.3/32}}]}]}"))]);
    assert_eq!(world.compiler.problems().count(), 0);
    assert_eq!(allowed(&world), [true, false, false, false, false, false]);
}
