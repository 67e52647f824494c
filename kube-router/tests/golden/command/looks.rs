//! `explain` and `matrix`: the examples of docs/looking-at-policy.md, exit statuses, sources.

use kube_router::{objects::ObjectEvent, watch::recorded::Recorder};
use serde_json::Value;

use super::*;
use crate::agent::{fixture, objects};

const PAGE: &str = include_str!("../../../../docs/looking-at-policy.md");
const SHOP: &str = "kube-router/tests/fixtures/policies/shop.yaml";

/// Runs where the page's paths are right.
fn at_the_top(command: &str) -> Said {
    let top = concat!(env!("CARGO_MANIFEST_DIR"), "/..");
    let words = command.split_whitespace().skip(1);
    let mut program = Command::new(env!("CARGO_BIN_EXE_kube-router"));
    Said::of(program.env_clear().current_dir(top).args(words).output().expect("the program starts"))
}

#[test]
fn the_examples_of_the_page_are_what_is_printed() {
    let mut compared = 0;
    for block in PAGE.split("```console\n").skip(1) {
        let block = block.split("```").next().expect("a block");
        for example in block.split("$ ").skip(1) {
            let (command, expected) = example.split_once('\n').expect("a command and its output");
            let said = at_the_top(command);
            assert_eq!(said.stdout, expected, "{command}\n{}", said.stderr);
            compared += 1;
        }
    }
    assert!(compared >= 4);
}

#[test]
fn exit_statuses_tell_the_verdict() {
    for (ask, status, last) in [
        ("--from=shop/front-1 --to=shop/cart --port=http", 0, "verdict: allowed"),
        ("--from=shop/front-1 --to=shop/cart --port=9100", 1, "verdict: denied"),
        ("--from=shop/front-1 --to=shop/cart", 1, "verdict: denied in part, 6 of 7 ways"),
    ] {
        let said = at_the_top(&format!("kube-router explain --manifests={SHOP} {ask}"));
        assert_eq!((said.status, said.stdout.lines().last()), (status, Some(last)), "{ask}");
    }
    for (ask, reason) in [
        ("--from=shop/font-1 --to=shop/cart", "there is shop/front-1"),
        ("--from=shop/front-1", "explain needs --from and --to"),
        ("--from=shop/front-1 --to=shop/cart --port=a/b", "is no port"),
    ] {
        let said = at_the_top(&format!("kube-router explain --manifests={SHOP} {ask}"));
        assert_eq!((said.status, said.stdout.as_str()), (2, ""), "{ask}");
        assert!(said.stderr.lines().last().is_some_and(|last| last.contains(reason)), "{}", said.stderr);
    }
    let gone = at_the_top("kube-router explain --socket=/nonexistent/s --from=a/b --to=c/d");
    assert_eq!(gone.status, 2);
    assert!(gone.stderr.contains("is kube-router running on this node?"), "{}", gone.stderr);
}

#[test]
fn a_recording_answers_like_its_manifests() {
    let directory = TempDir::new().unwrap();
    let file = directory.path().join("events.jsonl");
    let mut recorder = Recorder::create(&file).unwrap();
    let events: Vec<ObjectEvent> = objects(fixture("policies/shop.yaml"));
    events.iter().for_each(|event| recorder.record(event));
    drop(recorder);
    let recording = format!("--recording={}", file.display());
    for ask in ["explain --from=shop/front-1 --to=db/pg", "matrix -n shop", "matrix -o json", "matrix -o html"] {
        let manifests = at_the_top(&format!("kube-router {ask} --manifests={SHOP}"));
        let recorded = at_the_top(&format!("kube-router {ask} {recording}"));
        assert_eq!((&manifests.stdout, manifests.status), (&recorded.stdout, recorded.status), "{ask}");
        assert!(!manifests.stdout.is_empty());
    }
}

#[test]
fn data_says_what_words_say() {
    let said = at_the_top(&format!("kube-router explain --manifests={SHOP} --from=shop/front-1 --to=db/pg -o json"));
    let answer: Value = serde_json::from_str(&said.stdout).expect("JSON");
    assert_eq!((said.status, &answer["allowed"], &answer["faults"]), (1, &Value::Bool(false), &Value::Null));
    let states: Vec<&Value> = answer["ways"].as_array().unwrap().iter().map(|way| &way["egress"]["state"]).collect();
    assert_eq!(states, ["allowed", "denied"]);
    assert_eq!(answer["ways"][0]["ingress"]["rule"]["policy"]["name"], "postgres");
}

/// What could not be understood may be a policy: a table without it must not look like the whole truth.
#[test]
fn what_is_not_understood_is_told() {
    let directory = TempDir::new().unwrap();
    let file = directory.path().join("broken.yaml");
    fs::write(&file, "kind: [\n").unwrap();
    let manifests = format!("--manifests={}", file.display());
    let matrix = at_the_top(&format!("kube-router matrix {manifests}"));
    assert!(matrix.stdout.contains("note: there is no pod"), "{}", matrix.stdout);
    assert!(matrix.stdout.contains("broken.yaml:1 is not understood"), "{}", matrix.stdout);
    let explain = at_the_top(&format!("kube-router explain {manifests} --from=a/b --to=c/d"));
    assert_eq!(explain.status, 2);
    assert!(explain.stderr.starts_with("there is no pod or service a/b\nnote: "), "{}", explain.stderr);
    assert!(explain.stderr.contains("broken.yaml:1 is not understood"), "{}", explain.stderr);
}

/// A rule that grants nothing because it cannot be understood looks like no rule at all.
#[test]
fn what_is_wrong_with_a_policy_is_told() {
    let policy = "\
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: p, namespace: a}
spec: {podSelector: {}, ingress: [{ports: [{port: 99999}]}]}
---
apiVersion: v1
kind: Pod
metadata: {name: w, namespace: a}
spec: {nodeName: n1}
status: {phase: Running, podIP: 10.0.0.1, podIPs: [{ip: 10.0.0.1}]}
---
apiVersion: v1
kind: Pod
metadata: {name: w, namespace: b}
spec: {nodeName: n1}
status: {phase: Running, podIP: 10.0.0.2, podIPs: [{ip: 10.0.0.2}]}
";
    let directory = TempDir::new().unwrap();
    let file = directory.path().join("p.yaml");
    fs::write(&file, policy).unwrap();
    let manifests = format!("--manifests={}", file.display());
    let note = "note: NetworkPolicy a/p: spec.ingress[0].ports[0]: port 99999 is not a port number";
    for (line, told) in [
        ("explain --from=b/w --to=a/w --port=80", true),
        ("explain --from=a/w --to=b/w --port=80", false),
        ("matrix", true),
    ] {
        let said = at_the_top(&format!("kube-router {line} {manifests}"));
        assert_eq!(said.stdout.contains(note), told, "{line}: {}", said.stdout);
    }
}

#[test]
fn a_wrong_line_points_to_the_help_of_its_command() {
    for (line, command) in [("explain --frm=a", "explain --help"), ("matrix -o xml", "matrix --help")] {
        let said = at_the_top(&format!("kube-router {line}"));
        assert_eq!(said.status, 2);
        assert!(said.stderr.contains(&format!("{command}' for its flags.")), "{}", said.stderr);
    }
    assert!(at_the_top("kube-router --frm=a").stderr.contains("kube-router --help' for all flags."));
}
