//! `plan -o json`, the recordings of `--record` and `replay`.

use std::collections::BTreeSet;

use kube_router::{
    apply::fake::FakeKernel,
    cli::listing,
    objects::{Kind, Object, ObjectEvent},
    observe::ServiceRow,
    watch::recorded::Recorder,
};
use serde_json::Value;

use super::*;
use crate::agent::{Agent, fixture, key, objects};

const SWITCHES: [&str; 4] = [
    "--enable-ipv6",
    "--service-cluster-ip-range=10.96.0.0/12,fd00:10:96::/112",
    "--service-external-ip-range=203.0.113.0/25",
    "--loadbalancer-ip-range=203.0.113.128/25",
];

fn recorded_objects() -> Said {
    let said = plan(&fixture("original/objects"), &SWITCHES);
    assert_eq!((said.status, said.stderr.as_str()), (0, ""));
    said
}

/// The program prints what the pure core programmed on a kernel in memory.
#[test]
fn plan_prints_what_the_recordings_test_compares() {
    let switches = format!("--run-router=false --run-firewall=false {}", SWITCHES.join(" "));
    let kernel = FakeKernel::new();
    let agent = Agent::start("n1", &switches, objects(fixture("original/objects")), kernel);
    let lines: BTreeSet<String> = crate::listing::ipvs(&agent.kernel.observe().unwrap()).into_iter().collect();
    let said = recorded_objects();
    assert_eq!(said.ipvs().into_iter().map(str::to_owned).collect::<BTreeSet<_>>(), lines);
    assert!(lines.len() > 150, "{}", lines.len());
}

#[test]
fn json_says_the_same_as_text() {
    let text = recorded_objects();
    let mut switches = SWITCHES.to_vec();
    switches.extend(["-o", "json"]);
    let said = plan(&fixture("original/objects"), &switches);
    let json: Value = serde_json::from_str(&said.stdout).expect("one JSON document");
    let keys: Vec<&String> = json.as_object().unwrap().keys().collect();
    assert_eq!(keys, ["addresses", "node", "problems", "services", "sets"]);
    assert_eq!(json["node"], "n1");

    let rows: Vec<ServiceRow> = serde_json::from_value(json["services"].clone()).expect("rows as `dump` has them");
    let printed: String = rows.iter().map(listing::ipvsadm).collect();
    assert_eq!(printed.lines().collect::<BTreeSet<_>>(), text.ipvs().into_iter().collect());
    let shared = rows.iter().find(|row| row.address.to_string() == "203.0.113.129").unwrap();
    assert_eq!(
        (shared.service.to_string().as_str(), &*shared.port_name, &*shared.origin),
        ("web/lb", "http", "LoadBalancer")
    );

    let texts = |value: &Value| -> Vec<String> {
        value.as_array().unwrap().iter().map(|item| item.as_str().unwrap().to_owned()).collect()
    };
    assert_eq!(texts(&json["problems"]), text.problems());
    let sets = json["sets"].as_object().unwrap();
    let names: Vec<&str> = sets.keys().map(String::as_str).collect();
    // No set of the host's addresses: `plan` looks at no host.
    assert_eq!(names, ["hairpin4", "hairpin6", "pod-cidrs4", "pod-cidrs6", "svip-prt4", "svip-prt6", "svip4", "svip6"]);
    for (name, members) in sets {
        assert_eq!(texts(members), text.section(&format!("set {name}")), "{name}");
    }
    let addresses: Vec<String> = json["addresses"]
        .as_array()
        .unwrap()
        .iter()
        .map(|row| {
            let address = row["address"].as_str().unwrap();
            let length = if address.contains(':') { 128 } else { 32 };
            format!("{address}/{length} src {}", row["source"].as_str().unwrap())
        })
        .collect();
    assert_eq!(addresses, text.section("addresses on kube-dummy-if"));
}

/// What a recording replays to is what the same objects lead to without the detour.
#[test]
fn a_recording_replays_to_the_same_state() {
    let directory = TempDir::new().unwrap();
    let file = directory.path().join("events.jsonl");
    let mut recorder = Recorder::create(&file).unwrap();
    let events = objects(fixture("original/objects"));
    events.iter().for_each(|event| recorder.record(event));
    drop(recorder);
    assert_eq!(fs::read_to_string(&file).unwrap().lines().count(), events.len(), "an event, a line");

    let mut args = vec!["replay", "--hostname-override=n1", "--run-router=false", "--run-firewall=false"];
    args.extend(SWITCHES);
    args.push(file.to_str().unwrap());
    let said = kube_router(&args);
    assert_eq!((said.status, said.stderr.as_str()), (0, ""));
    let (orders, state) = said.stdout.split_at(said.stdout.find("# IPVS on node").unwrap());
    assert_eq!(state, recorded_objects().stdout);
    let servers = said.ipvs().into_iter().filter(|line| line.starts_with("-A")).count();
    assert_eq!(orders.lines().filter(|line| line.contains("add virtual server")).count(), servers);
}

/// After the start each event's orders stand below the event.
#[test]
fn replay_tells_which_event_caused_which_orders() {
    let directory = directory(&[("good.yaml", GOOD)]);
    let file = directory.path().join("events.jsonl");
    let events = objects(directory.path().join("good.yaml"));
    let slice = events
        .iter()
        .find_map(|event| match event {
            ObjectEvent::Applied(object @ Object::EndpointSlice(_)) => Some(object.clone()),
            _ => None,
        })
        .unwrap();
    let mut lines: Vec<String> = events.iter().map(|event| line(0, event)).collect();
    lines.push("{\"at_ms\": 1000, \"event\": nonsense}".to_owned());
    let Object::EndpointSlice(mut slice) = slice else { panic!() };
    slice.endpoints[0].address = [10, 244, 1, 18].into();
    let moved = ObjectEvent::Applied(Object::EndpointSlice(slice));
    lines.push(line(2_500, &moved));
    lines.push(line(4_000, &ObjectEvent::Deleted(Kind::Service, key("web/good"))));
    fs::write(&file, lines.join("\n")).unwrap();

    let said = kube_router(&[
        "replay",
        "--hostname-override=n1",
        "--run-router=false",
        "--run-firewall=false",
        file.to_str().unwrap(),
    ]);
    assert_eq!(said.status, 0);
    let bad = events.len() + 1;
    assert!(said.stderr.contains(&format!("events.jsonl, line {bad}: ")), "{}", said.stderr);
    assert_eq!(said.stderr.lines().count(), 1);
    let told: Vec<&str> = said.stdout.lines().skip_while(|line| !line.contains("2.500 s")).collect();
    let expected = [
        "     2.500 s  EndpointSlice web/good-1 applied",
        "              add 10.244.1.18:8080 to tcp 10.96.0.80:80",
        "              remove 10.244.1.17:8080 from tcp 10.96.0.80:80",
        "     4.000 s  Service web/good deleted",
        "              remove virtual server tcp 10.96.0.80:80",
        "              remove address 10.96.0.80",
        "# IPVS on node n1, as ipvsadm -Sn prints it",
        "# addresses on kube-dummy-if, with the source of their local routes",
        "# set pod-cidrs4",
        "10.244.1.0/24",
    ];
    assert_eq!(told, expected);
}

fn line(at_ms: u64, event: &ObjectEvent) -> String {
    serde_json::json!({"at_ms": at_ms, "event": event}).to_string()
}
