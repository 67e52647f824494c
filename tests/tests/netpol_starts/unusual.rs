//! Starts that do not go as they usually do: news of the pod is late or old, or there is no agent.

use std::{
    process::Command,
    thread,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use kube_router_common::config::SCHEMA;
use kube_router_tests::{agent::Agent, chain::Chain, lab::Namespace, pace, probe::FirstTry, process::eventually};
use serde_json::json;

use crate::field::{Added, Field, LONG, Start, object};

const FORMER: &str = "02:00:00:00:00:99";
const THIRTY: [&str; 2] = ["10.246.1.30", "fd00:10:246:1::1e"];

/// A chain that gives these addresses.
fn at_thirty(field: &Field) -> Chain {
    let mut chain = field.chain.clone();
    chain.plugins[0]["runtimeConfig"] = json!({"ips": [format!("{}/24", THIRTY[0]), format!("{}/64", THIRTY[1])]});
    chain
}

/// All its first packets pass, both ways.
#[track_caller]
fn expect_open(field: &Field, pod: &Start, added: &Added) {
    for (way, tries) in [("in", field.knock(added)), ("out", field.call_out(pod))] {
        assert!(tries.iter().all(|one| matches!(one, Ok(FirstTry { again: 0, .. }))), "{} {way}: {tries:#?}", pod.name);
    }
}

#[track_caller]
fn expect_shut(field: &Field, added: &Added) {
    assert!(field.knock(added).iter().all(Result::is_err));
}

#[track_caller]
fn expect_open_soon(field: &Field, pod: &Start, added: &Added) {
    let mut last = Vec::new();
    let open = || {
        last = field.knock(added);
        last.iter().all(Result::is_ok)
    };
    if let Err(error) = eventually("the client reaches the pod", LONG, open) {
        let log = field.agent.as_ref().map(Agent::log);
        panic!("{} {error}: {last:?}\n{}\n{log:#?}", pod.name, field.evidence(pod, added));
    }
    expect_open(field, pod, added);
}

#[track_caller]
fn end(field: &Field, pod: &Start, added: &Added) {
    field.del(pod, added);
    assert_eq!(pod.heard(added).1, 0, "{}: packets of those who are kept out", pod.name);
}

fn waits(added: &Added) -> bool {
    added.said.stderr.contains("nothing passes until")
}

#[test]
#[ignore = "needs root and BPF: cargo xtask test --tier 3 --filter netpol_starts"]
fn news_of_a_pod_is_late_or_old() {
    let field = Field::new("npl");

    // ADD waits for it.
    let pod = field.sandbox("late");
    let (told, added) = thread::scope(|scope| {
        let told = scope.spawn(|| {
            thread::sleep(Duration::from_millis(1_000));
            let told = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
            field.tell(&pod, &[]);
            told
        });
        let added = field.add(&pod);
        (told.join().unwrap(), added)
    });
    assert!(!waits(&added) && told < added.at, "told at {told:?}: {added:?}");
    expect_open(&field, &pod, &added);
    end(&field, &pod, &added);
    field.forget(&pod);

    // ADD waited long enough.
    let pod = field.sandbox("later");
    let added = field.add(&pod);
    assert!(waits(&added), "{:?}", added.said);
    expect_shut(&field, &added);
    field.tell(&pod, &[]);
    expect_open_soon(&field, &pod, &added);
    end(&field, &pod, &added);

    // The sandbox failed; the next one of the same pod has another address.
    let mut again = field.sandbox("later");
    again.uid.clone_from(&pod.uid);
    let second = field.add(&again);
    assert_ne!(second.said.addresses(), added.said.addresses());
    assert_eq!(second.said.stderr, "");
    expect_open(&field, &again, &second);
    end(&field, &again, &second);
    field.forget(&again);

    // The API server tells an address from before a reboot.
    let pod = field.sandbox("rebooted");
    field.tell(&pod, &["10.246.1.99".into(), "fd00:10:246:1::99".into()]);
    let added = field.add(&pod);
    assert_eq!(added.said.stderr, "");
    expect_open(&field, &pod, &added);
    end(&field, &pod, &added);
    field.forget(&pod);

    // The last pod of that name was open to everybody, and had the same address.
    let pod = field.sandbox("web-0");
    let addresses = THIRTY.map(String::from);
    field.manifests.put("web-0", &[object(&pod, "open", "00000000-0000-4000-9000-000000000001", &addresses)]).unwrap();
    let mut chain = at_thirty(&field);
    // Time for the agent to see the interface before the plugin tells whose it is.
    chain.pause = Duration::from_millis(300);
    let added = field.add_by(&chain, &pod);
    assert_eq!(added.said.addresses(), addresses);
    assert!(waits(&added), "judged as the old pod: {:?}", added.said);
    expect_shut(&field, &added);
    field.tell(&pod, &[]);
    expect_open_soon(&field, &pod, &added);
    end(&field, &pod, &added);
    field.expect_flood_without_policy();
}

#[test]
#[ignore = "needs root and BPF: cargo xtask test --tier 3 --filter netpol_starts"]
fn neighbours_learn_who_has_an_address_now() {
    let field = Field::new("npn");
    // A pod that is gone had the address.
    let former = THIRTY.map(|ip| format!("neigh replace {ip} lladdr {FORMER} nud stale dev eth0"));
    field.client.ns.ip(&former).unwrap();
    // One that says nothing by itself.
    let pod = field.sandbox("mute");
    field.tell(&pod, &[]);
    let said = field.node.ns.run(|| at_thirty(&field).add(pod.container())).unwrap().done();
    assert_eq!(said.stderr, "");
    let end = said.json["interfaces"].as_array().unwrap().iter().find(|one| one["sandbox"].is_string()).unwrap();
    let mac = end["mac"].as_str().unwrap();
    let learned = || THIRTY.iter().all(|ip| neighbour(&field.client.ns, ip).contains(mac));
    eventually(&format!("the client knows {mac}"), LONG, learned).unwrap();
    field.node.ns.run(|| field.chain.del(pod.container(), &said.json)).unwrap();
}

/// As the kernel has it, without asking anybody.
fn neighbour(of: &Namespace, address: &str) -> String {
    let show = || Command::new("ip").args(["neigh", "show", "to", address, "dev", "eth0"]).output();
    String::from_utf8(of.run(show).unwrap().stdout).unwrap()
}

#[test]
#[ignore = "needs root and BPF: cargo xtask test --tier 3 --filter netpol_starts"]
fn the_agent_goes_and_comes_back() {
    let mut field = Field::new("npg");

    // In the middle of an ADD that waits.
    let pod = field.sandbox("amid");
    let agent = field.agent.as_ref().expect("it runs").id();
    let added = thread::scope(|scope| {
        scope.spawn(|| {
            thread::sleep(Duration::from_millis(800));
            end_process(agent);
        });
        field.add(&pod)
    });
    field.kill_agent();
    assert!(waits(&added), "{:?}", added.said);
    field.tell(&pod, &[]);

    // Absent.
    let absent: Vec<(Start, Added)> = (0..4)
        .map(|number| {
            let pod = field.sandbox(&format!("absent-{number}"));
            field.tell(&pod, &[]);
            let added = field.add(&pod);
            assert!(waits(&added), "{:?}", added.said);
            (pod, added)
        })
        .collect();
    expect_shut(&field, &absent[0].1);
    let begin = Instant::now();
    field.start_agent();
    println!("an agent was ready after {:?}", begin.elapsed());
    // Kubelet tells the addresses, as it does whatever the network makes of the pod.
    for (pod, added) in absent.iter().chain([&(pod, added)]) {
        field.tell(pod, &added.said.addresses());
        expect_open_soon(&field, pod, added);
        end(&field, pod, added);
        field.forget(pod);
    }

    // A pod whose address the API server does not know when the agent restarts, be it of another schema.
    let pod = field.sandbox("young");
    field.tell(&pod, &[]);
    let added = field.add(&pod);
    expect_open(&field, &pod, &added);
    let kept = field.knock(&added);
    for schema in [SCHEMA, SCHEMA - 1, SCHEMA + 1].into_iter().take(pace::choose(3, 2)) {
        field.kill_agent();
        if schema != SCHEMA {
            field.pins.become_of(schema).unwrap();
        }
        field.start_agent();
        let alive = |one: &Result<FirstTry, _>| one.as_ref().is_ok_and(|one| one.is_alive(LONG));
        assert!(kept.iter().all(alive), "schema {schema}");
        expect_open(&field, &pod, &added);
        field.node.ns.run(|| field.chain.last("CHECK", pod.container(), &added.said.json)).unwrap().done();
    }
    drop(kept);
    end(&field, &pod, &added);
    field.expect_flood_without_policy();
}

/// Its row of an interface that is nobody's yet lets everything pass; the plugin must not take that for a pod's.
#[test]
#[ignore = "needs root and BPF: cargo xtask test --tier 3 --filter netpol_starts"]
fn an_agent_dies_between_the_interface_and_the_plugin() {
    let mut field = Field::new("npd");
    let pod = field.sandbox("seen");
    let agent = field.agent.as_ref().expect("it runs").id();
    let mut chain = field.chain.clone();
    // Bridge makes the interface, the agent sees it, and dies.
    chain.pause = Duration::from_millis(2_000) * pace::choose(1, 5);
    let added = thread::scope(|scope| {
        scope.spawn(|| {
            thread::sleep(chain.pause - Duration::from_millis(200));
            end_process(agent);
        });
        field.add_by(&chain, &pod)
    });
    field.kill_agent();
    assert!(waits(&added), "{:?}", added.said);
    expect_shut(&field, &added);
    thread::sleep(Duration::from_secs(1));
    assert_eq!(pod.heard(&added).1, 0, "without an agent");
    field.start_agent();
    field.tell(&pod, &added.said.addresses());
    expect_open_soon(&field, &pod, &added);
    end(&field, &pod, &added);
}

/// One that this test started.
fn end_process(id: u32) {
    use nix::{
        sys::signal::{Signal, kill},
        unistd::Pid,
    };
    kill(Pid::from_raw(id.cast_signed()), Signal::SIGKILL).unwrap();
}
