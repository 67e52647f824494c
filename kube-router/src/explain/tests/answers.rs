//! What is answered, and what is refused.

use super::shop::{cluster, shop};
use crate::explain::{Answer, Here, Question, answer::State, answer_explain, text};

fn question(from: &str, to: &str, port: &str) -> Question {
    let port = Some(port.to_owned()).filter(|port| !port.is_empty());
    Question { from: from.into(), to: to.into(), port }
}

fn ask(from: &str, to: &str, port: &str) -> Answer {
    let question = question(from, to, port);
    answer_explain(&shop(), Here::default(), &question).unwrap_or_else(|refusal| panic!("{question:?}: {refusal}"))
}

fn refused(from: &str, to: &str, port: &str) -> String {
    answer_explain(&shop(), Here::default(), &question(from, to, port)).unwrap_err().to_string()
}

fn states(answer: &Answer) -> Vec<(State, State)> {
    answer.ways.iter().map(|way| (way.egress.state, way.ingress.state)).collect()
}

#[test]
fn an_answer_names_both_rules() {
    let expected = "\
shop/front-1 (10.244.1.11) -> db/postgres-0 (10.244.1.21)
  tcp/5432 (pg): allowed
    egress of shop/front-1: allowed by NetworkPolicy shop/front egress[1]: pods role=primary in namespaces team=data, \
tcp/5432
    ingress of db/postgres-0: allowed by NetworkPolicy db/postgres ingress[0]: pods * in namespaces team=shop, tcp/5432
verdict: allowed
";
    let answer = ask("shop/front-1", "db/postgres-0", "tcp/5432");
    assert_eq!(text::answer(&answer), expected);
    assert!(answer.allowed);
    let written = serde_json::to_string(&answer).unwrap();
    assert_eq!(serde_json::from_str::<Answer>(&written).unwrap(), answer);
    assert!(written.contains("\"state\":\"allowed\"") && written.contains("\"direction\":\"egress\""), "{written}");
}

#[test]
fn both_ends_are_judged() {
    use State::{Allowed, Denied, Itself, NoPod, Open, OwnNode};
    for (from, to, port, expected) in [
        ("shop/front-1", "db/postgres-0", "tcp/5432", (Allowed, Allowed)),
        ("shop/front-1", "db/postgres-1", "pg", (Denied, Allowed)),
        ("shop/front-1", "shop/cart", "http", (Allowed, Allowed)),
        ("shop/front-1", "shop/cart", "tcp/9100", (Denied, Denied)),
        ("watch/prometheus", "shop/cart", "metrics", (Open, Allowed)),
        ("watch/prometheus", "db/postgres-1", "tcp/metrics", (Open, Allowed)),
        ("visitor", "shop/front-2", "80", (Open, Denied)),
        ("default/visitor", "pod/shop/front-2", "tcp/8080", (Open, Allowed)),
        ("default/visitor", "old/ledger", "http", (Open, Denied)),
        ("old/ledger", "default/visitor", "udp/53", (Open, Open)),
        ("shop/cart", "shop/front-1", "icmp", (Open, Denied)),
        ("203.0.113.9", "10.244.1.21", "tcp/5432", (NoPod, Denied)),
        // Another node is what a block says it is; the own one may.
        ("192.168.77.2", "db/postgres-0", "tcp/5432", (NoPod, Allowed)),
        ("192.168.77.200", "db/postgres-0", "tcp/5432", (NoPod, Denied)),
        ("192.168.77.1", "db/postgres-0", "tcp/1", (NoPod, OwnNode)),
        ("default/agent", "db/postgres-0", "tcp/1", (NoPod, OwnNode)),
        ("default/agent", "db/postgres-1", "tcp/1", (NoPod, Denied)),
        ("shop/front-1", "203.0.113.9", "tcp/443", (Denied, NoPod)),
        ("shop/cart", "203.0.113.9", "tcp/443", (Open, NoPod)),
        ("old/ledger", "old/ledger", "tcp/80", (Itself, Itself)),
    ] {
        let answer = ask(from, to, port);
        assert_eq!(states(&answer), [expected], "{from} {to} {port}");
        assert_eq!(answer.allowed, expected.0 != Denied && expected.1 != Denied, "{from} {to} {port}");
    }
}

#[test]
fn a_service_is_followed_to_its_endpoints() {
    for to in ["db/pg", "svc/db/pg", "10.96.0.21"] {
        let text = text::answer(&ask("shop/front-1", to, ""));
        let expected = "\
shop/front-1 (10.244.1.11) -> db/postgres-0 (10.244.1.21) through Service db/pg tcp/5432 (pg)
  tcp/5432 (pg): allowed
    egress of shop/front-1: allowed by NetworkPolicy shop/front egress[1]: pods role=primary in namespaces team=data, \
tcp/5432
    ingress of db/postgres-0: allowed by NetworkPolicy db/postgres ingress[0]: pods * in namespaces team=shop, tcp/5432
shop/front-1 (10.244.1.11) -> db/postgres-1 (10.244.2.21) through Service db/pg tcp/5432 (pg)
  tcp/5432 (pg): denied
    egress of shop/front-1: denied, isolated by NetworkPolicy shop/front; no rule allows this
    ingress of db/postgres-1: allowed by NetworkPolicy db/postgres ingress[0]: pods * in namespaces team=shop, tcp/5432
verdict: denied in part, 1 of 2 ways
";
        assert_eq!(text, expected, "{to}");
    }
    assert_eq!(refused("shop/cart", "svc/db/pg", "80"), "Service db/pg has no port tcp/80; it has tcp/5432 (pg)");
    assert_eq!(refused("db/pg", "shop/cart", ""), "a service sends nothing: ask about the pods behind db/pg");
    let empty = cluster(
        "{apiVersion: v1, kind: Service, metadata: {name: s, namespace: a}, spec: {clusterIP: 10.96.0.1, ports: [{port: 80}]}}",
    );
    let answer = answer_explain(&empty, Here::default(), &question("203.0.113.1", "a/s", "80")).unwrap();
    assert!(!answer.allowed);
    assert!(text::answer(&answer).ends_with(
        "note: nothing answers behind port tcp/80 of a/s: no endpoint is ready\nverdict: denied, nothing answers there\n"
    ));
}

#[test]
fn without_a_port_every_port_that_matters_is_judged() {
    let text = text::answer(&ask("watch/prometheus", "db/postgres-0", ""));
    let expected = "\
watch/prometheus (10.244.2.31) -> db/postgres-0 (10.244.1.21)
  tcp/5432 (pg), other tcp, other udp, other sctp, icmp: denied
    egress of watch/prometheus: open, no policy isolates it
    ingress of db/postgres-0: denied, isolated by NetworkPolicy db/metrics, NetworkPolicy db/postgres; no rule allows this
  tcp/9187 (metrics): allowed
    egress of watch/prometheus: open, no policy isolates it
    ingress of db/postgres-0: allowed by NetworkPolicy db/metrics ingress[0]: pods * in namespaces team=ops, tcp/metrics
verdict: denied in part, 5 of 6 ways
";
    assert_eq!(text, expected);
}

#[test]
fn refusals_say_what_there_is() {
    for (from, to, port, text) in [
        ("shop/font-1", "shop/cart", "", "there is no pod or service shop/font-1; there is shop/front-1, shop/front-2"),
        ("pod/shop/front", "shop/cart", "", "there is no pod shop/front; there is shop/front-1, shop/front-2"),
        ("shop/cart", "svc/shop/pg", "", "there is no service shop/pg; there is db/pg"),
        ("shop/cart", "nobody/nowhere", "", "there is no pod or service nobody/nowhere"),
        (
            "shop/cart",
            "db/postgres-0",
            "quic",
            "db/postgres-0 has no port quic; it has tcp/5432 (pg), tcp/9187 (metrics)",
        ),
        (
            "shop/cart",
            "db/postgres-0",
            "tcp/0",
            "'tcp/0' is no port: write tcp/80, udp/53, a name (http, udp/dns), or icmp",
        ),
        ("shop/cart", "fd00::1", "80", "shop/cart and fd00::1 have no addresses of one family"),
    ] {
        assert_eq!(refused(from, to, port), text, "{from} {to} {port}");
    }
}

#[test]
fn what_a_reader_should_know_is_noted() {
    let notes = |from: &str, to: &str| ask(from, to, "80").notes.join("\n");
    assert!(notes("203.0.113.9", "shop/cart").contains("203.0.113.9 is no pod's"));
    assert!(notes("default/agent", "shop/cart").contains("default/agent uses its node's network"));
    assert_eq!(notes("shop/front-1", "shop/cart"), "");
}

#[test]
fn a_node_port_is_followed_to_its_endpoints() {
    use State::{Allowed, Denied, NoPod};
    let of_type = "spec: {type: NodePort, clusterIP: 10.96.0.21, ports: [{name: pg, port: 5432, targetPort: pg, nodePort: 30432}]}";
    let yaml = include_str!("../../../tests/fixtures/policies/shop.yaml");
    let ours = yaml.replace("spec: {clusterIP: 10.96.0.21, ports: [{name: pg, port: 5432, targetPort: pg}]}", of_type);
    assert!(ours.contains(of_type));
    let cluster = cluster(&ours);
    let ask = |from: &str, to: &str, port: &str| {
        let question = question(from, to, port);
        answer_explain(&cluster, Here::default(), &question).unwrap_or_else(|refusal| panic!("{question:?}: {refusal}"))
    };
    // At its own node's port the sender is judged at both endpoints, behind the load balancer.
    let answer = ask("shop/front-1", "192.168.77.1", "30432");
    assert_eq!(states(&answer), [(Allowed, Allowed), (Denied, Allowed)]);
    assert!(answer.ways.iter().all(|way| way.via.is_some()) && answer.notes.len() == 1, "{answer:?}");
    // To another node's port it talks as to any address outside.
    let answer = ask("shop/front-1", "192.168.77.2", "tcp/30432");
    assert_eq!(states(&answer), [(Denied, NoPod), (NoPod, Allowed), (NoPod, Allowed)]);
    let text = text::answer(&answer);
    let first = "shop/front-1 (10.244.1.11) -> 192.168.77.2\n  tcp/30432: denied\n    egress of shop/front-1: denied, ";
    assert!(text.starts_with(first) && text.contains("note: n2 may give its own address to what"), "{text}");
    assert_eq!(states(&ask("203.0.113.9", "192.168.77.1", "30432")), [(NoPod, Denied), (NoPod, Denied)]);
    // Nobody serves that one.
    assert_eq!(states(&ask("shop/front-1", "192.168.77.1", "udp/30432")), [(Denied, NoPod)]);
}
