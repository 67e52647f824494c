//! The source against a small HTTP server that plays an API server's part from a script. What a real one does is
//! seen in `tests/kube_api.rs`; here is what a real one does rarely, or never.

use std::{
    collections::VecDeque,
    sync::{Arc, Mutex},
    time::Duration,
};

use serde_json::{Value, json};
use tokio::{
    io::{AsyncBufReadExt, AsyncWriteExt, BufReader},
    net::{TcpListener, TcpStream},
    sync::mpsc,
    time::timeout,
};

use super::*;
use crate::objects::{Object, ObjectKey};

const PATIENCE: Duration = Duration::from_secs(20);

/// An answer to one request for services.
enum Answer {
    /// Status and body.
    Whole(u16, Value),
    /// A watch: lines, then the end of the stream.
    Lines(Vec<Value>),
    /// The same, but the stream stays open.
    Open(Vec<Value>),
    /// Closes the connection without a word.
    Nothing,
}

/// Asserts that the request's target has these parts.
type Step = (&'static [&'static str], Answer);

type Script = Arc<Mutex<VecDeque<Step>>>;

async fn serve(stream: TcpStream, path: &str, script: Script) {
    let mut stream = BufReader::new(stream);
    let mut target = String::new();
    loop {
        let mut line = String::new();
        if stream.read_line(&mut line).await.unwrap_or(0) == 0 {
            return;
        }
        if target.is_empty() {
            target = line.split(' ').nth(1).unwrap_or_default().to_owned();
        }
        if line == "\r\n" {
            break;
        }
    }
    let step = if target.starts_with(path) { script.lock().unwrap().pop_front() } else { None };
    let answer = match step {
        Some((parts, answer)) => {
            for part in parts {
                assert!(target.contains(part), "expected {part} in {target}");
            }
            answer
        }
        None if target.contains("watch=true") => Answer::Open(vec![]),
        None => Answer::Whole(200, json!({"metadata": {"resourceVersion": "1"}, "items": []})),
    };
    let (status, body, hold) = match answer {
        Answer::Whole(status, body) => (status, body.to_string(), false),
        Answer::Lines(lines) => (200, lines.iter().map(|line| format!("{line}\n")).collect(), false),
        Answer::Open(lines) => (200, lines.iter().map(|line| format!("{line}\n")).collect(), true),
        Answer::Nothing => return,
    };
    let head = format!("HTTP/1.1 {status} x\r\nContent-Type: application/json\r\nConnection: close\r\n\r\n");
    stream.write_all(head.as_bytes()).await.unwrap();
    stream.write_all(body.as_bytes()).await.unwrap();
    stream.flush().await.unwrap();
    if hold {
        // Until the client goes.
        let _ = stream.read_line(&mut String::new()).await;
    }
}

/// Runs the script and returns the events about services until `enough` says so.
fn play(script: Vec<Step>, enough: impl Fn(&[ObjectEvent]) -> bool) -> Vec<ObjectEvent> {
    play_for(Kind::Service, "/api/v1/services", script, enough)
}

fn play_for(
    wanted: Kind,
    path: &'static str,
    script: Vec<Step>,
    enough: impl Fn(&[ObjectEvent]) -> bool,
) -> Vec<ObjectEvent> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let script: Script = Arc::new(Mutex::new(script.into()));
        let left = script.clone();
        let server = async move {
            // The connections live and panic in here, so that a wrong request fails the test.
            let mut connections = tokio::task::JoinSet::new();
            loop {
                tokio::select! {
                    Ok((stream, _)) = listener.accept() => { connections.spawn(serve(stream, path, script.clone())); }
                    Some(ended) = connections.join_next() => ended.unwrap(),
                }
            }
        };
        let (sink, mut events) = mpsc::channel(1);
        let config = client_config(None, Some(&url)).await.unwrap();
        let mut seen = Vec::new();
        let follow = async {
            while !enough(&seen) {
                let event = timeout(PATIENCE, events.recv()).await;
                let event = event.unwrap_or_else(|_| panic!("no more events after {seen:#?}")).unwrap();
                let ours = match &event {
                    ObjectEvent::RelistStarted(kind)
                    | ObjectEvent::RelistDone(kind)
                    | ObjectEvent::Deleted(kind, _)
                    | ObjectEvent::Kept(kind, _)
                    | ObjectEvent::Unavailable { kind, .. } => *kind == wanted,
                    _ => true,
                };
                if ours {
                    seen.push(event);
                }
            }
        };
        tokio::select! {
            () = server => {}
            result = run(config, sink) => panic!("the source ended: {result:?}"),
            () = follow => {}
        }
        assert_eq!(left.lock().unwrap().len(), 0, "the whole script was played");
        seen
    })
}

fn service(name: &str, version: u32, port: Value) -> Value {
    json!({"metadata": {"name": name, "namespace": "x", "resourceVersion": version.to_string()},
           "spec": {"ports": [{"port": port}]}})
}

fn list(version: u32, items: Vec<Value>) -> Answer {
    Answer::Whole(
        200,
        json!({"kind": "ServiceList", "metadata": {"resourceVersion": version.to_string()}, "items": items}),
    )
}

fn event(kind: &str, object: Value) -> Value {
    json!({"type": kind, "object": object})
}

fn status(code: u16) -> Answer {
    Answer::Whole(
        code,
        json!({"kind": "Status", "status": "Failure", "code": code, "message": "said so", "reason": "R"}),
    )
}

/// In short: `+a` applied, `=a` kept, `-a` deleted, `[` list started, `]` done, `?a` rejected, `!a` accepted, `U` unavailable.
fn short(events: &[ObjectEvent]) -> String {
    let words: Vec<String> = events
        .iter()
        .map(|event| match event {
            ObjectEvent::RelistStarted(_) => "[".into(),
            ObjectEvent::RelistDone(_) => "]".into(),
            ObjectEvent::Applied(Object::Service(service)) => format!("+{}{}", service.key.name, service.ports[0].port),
            ObjectEvent::Applied(other) => format!("+{}", other.key().name),
            ObjectEvent::Deleted(_, key) => format!("-{}", key.name),
            ObjectEvent::Unavailable { .. } => "U".into(),
            ObjectEvent::Rejected { source, .. } => format!("?{source}"),
            ObjectEvent::Accepted { source } => format!("!{source}"),
            ObjectEvent::Kept(_, key) => format!("={}", key.name),
        })
        .collect();
    words.join(" ")
}

fn ends_with(event: &'static str) -> impl Fn(&[ObjectEvent]) -> bool {
    move |events| short(events).ends_with(event)
}

#[test]
fn pages_then_a_watch_that_resumes_where_it_ended() {
    let page = json!({"metadata": {"resourceVersion": "9", "continue": "t1"}, "items": [service("a", 3, json!(1))]});
    let bookmark = json!({"kind": "Service", "apiVersion": "v1", "metadata": {"resourceVersion": "15"}});
    let script: Vec<Step> = vec![
        (&["limit=500"], Answer::Whole(200, page)),
        (&["limit=500", "continue=t1"], list(10, vec![service("b", 4, json!(2))])),
        (
            &["watch=true", "resourceVersion=10", "allowWatchBookmarks=true", "timeoutSeconds=2"],
            Answer::Lines(vec![
                event("MODIFIED", service("a", 11, json!(11))),
                event("DELETED", service("b", 12, json!(2))),
            ]),
        ),
        // From the last event, not from the list; then from the bookmark.
        (&["watch=true", "resourceVersion=12"], Answer::Lines(vec![event("BOOKMARK", bookmark)])),
        (&["watch=true", "resourceVersion=15"], Answer::Open(vec![event("ADDED", service("c", 16, json!(3)))])),
    ];
    let events = play(script, ends_with("+c3"));
    assert_eq!(short(&events), "[ +a1 +b2 ] +a11 -b +c3", "no second list");
}

#[test]
fn one_bad_object_blocks_nothing() {
    let script: Vec<Step> = vec![
        (
            &[],
            list(
                10,
                vec![
                    service("a", 1, json!(1)),
                    service("b", 2, json!("http")),
                    json!("what"),
                    json!({"metadata": 5}),
                    service("c", 3, json!(3)),
                ],
            ),
        ),
        (
            &["watch=true"],
            Answer::Open(vec![
                event("MODIFIED", service("a", 11, json!({}))),
                event("MODIFIED", service("a", 12, json!([]))),
                event("MODIFIED", service("b", 13, json!(2))),
                event("DELETED", service("a", 14, json!(null))),
                event("ADDED", service("d", 15, json!(4))),
            ]),
        ),
    ];
    let events = play(script, ends_with("+d4"));
    assert_eq!(
        short(&events),
        "[ +a1 =b ?Service x/b = ?list of Service = ?Service without a usable name +c3 ] \
         ?Service x/a ?Service x/a +b2 !Service x/b -a !Service x/a +d4"
    );
    let reason = events.iter().find_map(|event| match event {
        ObjectEvent::Rejected { source, reason } if source == "Service x/b" => Some(reason.as_str()),
        _ => None,
    });
    assert_eq!(reason, Some("spec.ports[0].port: expected a whole number, found a string"));
}

/// From the same version the same line would come again, for ever.
#[test]
fn a_watch_that_cannot_be_read_is_followed_by_a_list() {
    let script: Vec<Step> = vec![
        (&["limit=500"], list(10, vec![])),
        (&["watch=true", "resourceVersion=10"], Answer::Lines(vec![json!("what")])),
        (&["limit=500"], list(20, vec![service("a", 11, json!(1))])),
        (&["watch=true", "resourceVersion=20"], Answer::Open(vec![event("ADDED", service("b", 21, json!(2)))])),
    ];
    assert_eq!(short(&play(script, ends_with("+b2"))), "[ ] [ +a1 ] +b2");
}

#[test]
fn a_rejection_ends_when_the_object_is_not_listed_any_more_and_is_not_repeated_when_it_is() {
    let odd = || vec![service("a", 1, json!("x")), service("b", 1, json!("x"))];
    let gone = json!({"kind": "Status", "code": 410, "message": "too old resource version"});
    let script: Vec<Step> = vec![
        (&[], list(10, odd())),
        (&["watch=true"], Answer::Lines(vec![event("ERROR", gone)])),
        (&["limit=500"], list(20, odd().split_off(1))),
        (&["watch=true", "resourceVersion=20"], Answer::Open(vec![event("ADDED", service("c", 21, json!(1)))])),
    ];
    let events = play(script, ends_with("+c1"));
    assert_eq!(short(&events), "[ =a ?Service x/a =b ?Service x/b ] [ =b ] !Service x/a +c1");
}

#[test]
fn expired_versions_and_tokens_lead_to_a_new_list() {
    let page = json!({"metadata": {"continue": "old"}, "items": [service("a", 3, json!(1))]});
    let script: Vec<Step> = vec![
        (&["limit=500"], Answer::Whole(200, page)),
        (&["continue=old"], status(410)),
        (&["limit=500"], list(10, vec![service("b", 3, json!(2))])),
        (&["watch=true", "resourceVersion=10"], status(410)),
        (&["limit=500"], list(20, vec![])),
        (&["watch=true", "resourceVersion=20"], Answer::Open(vec![event("ADDED", service("c", 21, json!(3)))])),
    ];
    let events = play(script, ends_with("+c3"));
    assert_eq!(short(&events), "[ +a1 [ +b2 ] [ ] +c3");
}

fn reasons(events: &[ObjectEvent]) -> Vec<&str> {
    let mut reasons = Vec::new();
    for event in events {
        if let ObjectEvent::Unavailable { reason, .. } = event {
            reasons.push(reason.as_str());
        }
    }
    reasons
}

/// Every change of state is said once, however many retries it takes.
#[test]
fn a_refusal_is_said_once() {
    let script: Vec<Step> = vec![
        (&[], status(403)),
        (&[], status(403)),
        (&[], status(401)),
        (&[], list(10, vec![service("a", 1, json!(1))])),
        (&["watch=true"], Answer::Open(vec![event("ADDED", service("b", 11, json!(2)))])),
    ];
    let events = play(script, ends_with("+b2"));
    assert_eq!(short(&events), "U U [ +a1 ] +b2");
    for (reason, word) in reasons(&events).iter().zip(["ClusterRole", "credentials"]) {
        assert!(reason.contains(word), "{reason}");
    }
}

#[test]
fn broken_answers_before_the_first_list_are_said() {
    let script: Vec<Step> = vec![
        (&[], Answer::Nothing),
        (&[], Answer::Whole(200, json!("<html>"))),
        (&[], Answer::Whole(200, json!({"hello": "world"}))),
        (&[], status(404)),
        (&[], list(10, vec![])),
        (&["watch=true"], Answer::Open(vec![event("ADDED", service("b", 11, json!(2)))])),
    ];
    let events = play(script, ends_with("+b2"));
    assert_eq!(short(&events), "U U U [ ] +b2");
    for (reason, word) in reasons(&events).iter().zip(["cannot be reached", "something else", "does not serve"]) {
        assert!(reason.contains(word), "{reason}");
    }
}

#[test]
fn an_interrupted_watch_is_no_alarm_at_first() {
    let script: Vec<Step> = vec![
        (&[], list(10, vec![service("a", 1, json!(1))])),
        (&["watch=true"], Answer::Nothing),
        (&["watch=true"], status(403)),
        (&["watch=true", "resourceVersion=10"], Answer::Open(vec![event("ADDED", service("b", 11, json!(2)))])),
    ];
    let events = play(script, ends_with("+b2"));
    assert_eq!(short(&events), "[ +a1 ] +b2");
    assert_eq!(
        events
            .iter()
            .filter(|event| matches!(event, ObjectEvent::Applied(object) if *object.key() == ObjectKey::new("x", "a")))
            .count(),
        1
    );
}

fn group(versions: &[&str]) -> Answer {
    let versions: Vec<Value> = versions.iter().map(|version| json!({"version": version})).collect();
    Answer::Whole(200, json!({"kind": "APIGroup", "name": "policy.networking.k8s.io", "versions": versions}))
}

fn resources(names: &[&str]) -> Answer {
    let names: Vec<Value> = names.iter().map(|name| json!({"name": name})).collect();
    Answer::Whole(200, json!({"kind": "APIResourceList", "resources": names}))
}

fn wide(name: &str, version: u32) -> Value {
    json!({"metadata": {"name": name, "resourceVersion": version.to_string()}, "spec": {"tier": "Admin", "priority": 1}})
}

const GROUP: &str = "/apis/policy.networking.k8s.io";

/// A custom resource: not there, there, gone for a moment, gone.
#[test]
fn a_custom_resource_that_is_not_there_is_an_empty_list() {
    const OLD: &[&str] = &["/v1alpha2/clusternetworkpolicies"];
    let script: Vec<Step> = vec![
        (&[], status(404)),
        // The group has other resources.
        (&[], group(&["v1alpha1", "v1alpha2"])),
        (&["/v1alpha2"], resources(&["somethingelse"])),
        (&["/v1alpha1"], resources(&["adminnetworkpolicies"])),
        (&[], group(&["v1alpha1", "v1alpha2"])),
        (&["/v1alpha2"], resources(&["clusternetworkpolicies", "clusternetworkpolicies/status"])),
        (OLD, list(10, vec![wide("a", 3)])),
        (&["/v1alpha2/clusternetworkpolicies", "watch=true"], Answer::Lines(vec![event("ADDED", wide("b", 11))])),
        (&["watch=true", "resourceVersion=11"], status(404)),
        (&[], status(404)),
        (&[], group(&["v1beta1", "v1alpha2"])),
        (&["/v1beta1"], resources(&["clusternetworkpolicies"])),
        (&["/v1beta1/clusternetworkpolicies"], list(20, vec![wide("a", 3)])),
        (&["/v1beta1/clusternetworkpolicies", "watch=true"], status(404)),
        (&[], status(404)),
        (&[], status(404)),
    ];
    let events = play_for(Kind::ClusterNetworkPolicy, GROUP, script, |events| {
        events.iter().filter(|event| matches!(event, ObjectEvent::RelistDone(_))).count() == 4
    });
    assert_eq!(short(&events), "[ ] [ +a ] +b [ +a ] [ ]");
}

/// Nobody knows what is in it, so it does not count as empty.
#[test]
fn a_custom_resource_that_cannot_be_read_is_not_empty() {
    let script: Vec<Step> = vec![
        (&[], status(403)),
        (&[], group(&["v2"])),
        (&["/v2"], resources(&["clusternetworkpolicies"])),
        (&[], group(&["v1alpha2"])),
        (&["/v1alpha2"], resources(&["clusternetworkpolicies"])),
        (&["/v1alpha2/clusternetworkpolicies"], status(403)),
        (&[], status(404)),
    ];
    let events = play_for(Kind::ClusterNetworkPolicy, GROUP, script, ends_with("]"));
    assert_eq!(short(&events), "U U U [ ]");
    for (reason, word) in reasons(&events).iter().zip(["discover", "only as v2", "ClusterRole"]) {
        assert!(reason.contains(word), "{reason}");
    }
}
