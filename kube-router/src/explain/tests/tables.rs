//! The walk through the compiler's tables agrees with the model, and every element that is wrong is named.

use std::collections::BTreeSet;

use kube_router_common::policy::{PodGroups, PolicyRow};

use super::shop::shop;
use crate::{
    cluster::Dirty,
    compile::policy::{PolicyCompiler, PolicyConfig, address_of, model::Traffic},
    desired::policy::PolicyTables,
    explain::{
        Answer, Here, PolicyNames, Question, answer_explain,
        walk::{Walk, differences, walk},
    },
    objects::Protocol,
    plan::adopt::Numbered,
};

type Spoil<'a> = &'a dyn Fn(&mut PolicyTables);

fn compiled() -> PolicyCompiler {
    let mut compiler = PolicyCompiler::new(PolicyConfig::new("n1"));
    let node = BTreeSet::from(["192.168.77.1".parse().unwrap()]);
    compiler.update(&shop(), &Dirty::default(), &node, &BTreeSet::new());
    compiler
}

fn ask(compiler: &PolicyCompiler, from: &str, to: &str) -> Answer {
    let here = Here { node: "n1", addresses: None, compiler: Some(Numbered::plain(compiler)) };
    let question = Question { from: from.into(), to: to.into(), port: Some("tcp/5432".into()) };
    answer_explain(&shop(), here, &question).unwrap()
}

#[test]
fn what_the_agent_wants_is_told_for_pods_of_its_node() {
    let compiler = compiled();
    for (from, to, ends) in [
        ("shop/front-1", "db/postgres-0", (true, true)),
        ("shop/front-2", "db/postgres-0", (false, true)),
        ("shop/front-1", "db/postgres-1", (true, false)),
        ("192.168.77.1", "db/postgres-0", (false, true)),
        ("203.0.113.1", "db/postgres-0", (false, true)),
        ("default/visitor", "old/ledger", (true, true)),
    ] {
        let answer = ask(&compiler, from, to);
        let way = &answer.ways[0];
        assert_eq!((way.egress.wanted.is_some(), way.ingress.wanted.is_some()), ends, "{from} {to}");
        for end in [&way.egress, &way.ingress] {
            assert!(
                end.wanted.as_ref().is_none_or(|wanted| wanted.allowed == end.state.passes()),
                "{from} {to}: {end:?}"
            );
            // The rule that counts it is the one that the answer names.
            let names = PolicyNames::of(Numbered::plain(&compiler));
            let counted = end.wanted.as_ref().and_then(|wanted| names.rules.get(&wanted.rule()));
            assert!(counted.is_none() || counted == end.rule.as_ref(), "{from} {to}: {counted:?} {end:?}");
        }
    }
}

#[test]
fn every_element_that_differs_is_named() {
    let compiler = compiled();
    let answer = ask(&compiler, "shop/front-1", "db/postgres-0");
    let wanted = answer.ways[0].egress.wanted.clone().unwrap();
    let (own, peer) = (address_of(wanted.address), address_of(wanted.peer));
    let again = |spoil: Spoil<'_>| -> (Walk, Vec<String>) {
        let mut tables = compiler.state().clone();
        spoil(&mut tables);
        let Ok(found) = walk(&tables, wanted.direction, own, peer, Traffic::Port(Protocol::Tcp, 5432));
        let names = PolicyNames::of(Numbered::plain(&compiler));
        let faults = differences(&wanted, &found, "tcp/5432", |number| names.rule(number));
        (found, faults)
    };
    assert_eq!(again(&|_| {}), (wanted.clone(), Vec::new()));
    let pod = wanted.pod.unwrap();
    let cases: [(Spoil<'_>, &str); 6] = [
        (&|tables| tables.endpoints.retain(|address, _| *address != own), "kr_eps[10.244.1.11] has no row"),
        (&|tables| tables.pods.extend([(pod, PodGroups::default())]), "].egress is group 0 (open), the agent wants"),
        (
            &|tables| tables.peers.retain(|address, _| *address != peer),
            "kr_peers[10.244.1.21] or its prefix in kr_cidrs has class 0",
        ),
        (&|tables| tables.ports.extend([(5432, 99)]), "kr_ports[tcp/5432] is port class 99"),
        (&|tables| tables.rows.clear(), "no row that fits, the agent wants [class"),
        (
            &|tables| tables.rows.values_mut().for_each(|row| row.verdict = PolicyRow::DENY),
            "deny by NetworkPolicy shop/front egress[1], the agent wants [class",
        ),
    ];
    for (spoil, text) in cases {
        let (_, faults) = again(spoil);
        assert_eq!(faults.len(), 1, "{faults:?}");
        assert!(faults[0].contains(text), "{text}: {faults:?}");
    }
}
