//! Other sizes while maps are pinned and in force: nothing that is known is lost, and what does not fit is not guessed.

use std::path::PathBuf;

use kube_router::apply::{
    PolicyPlane,
    bpf::{BalanceMaps, BpfError, Dataplane, KernelPolicy, Options, Tables, entries, now_s},
};
use kube_router_common::{
    balance::Vip,
    config::{Config, Iface},
    flow::{Flow, FlowKey, Tcp},
    names,
    policy::{ANY, Endpoint, Peer, PodGroups, PolicyKey, PolicyRow, ServiceKey},
    sizes::Sizes,
};

use crate::{
    alone,
    net::{Pins, address},
};

const SMALL: Sizes = Sizes { flows: 1_024, pods: 64, peers: 1_024, services: 1_024, rows: 1_024 };
const MAC: [u8; 6] = [2, 0, 0, 0, 0, 7];

pub fn base(pins: &Pins) -> PathBuf {
    pins.root().parent().expect("a base").to_owned()
}

fn flow_key(port: u16) -> FlowKey {
    let (local, peer) = (address("10.244.1.11"), address("10.244.2.21"));
    FlowKey { local, peer, local_port: 8080, peer_port: port, protocol: 17, ..FlowKey::default() }
}

fn flow() -> Flow {
    let (flags, state) = (Flow::REPLIED | Flow::NEEDED, Tcp::NONE);
    Flow { last_seen_s: now_s(), generation: 9, ifindex: 12, pod: 7, flags, state, ..Flow::default() }
}

fn fill(tables: &Tables) {
    let own = address("10.244.1.11");
    tables.endpoints.put(&own, &Endpoint { pod: 7, ifindex: 12, mac: MAC, pad: [0; 2] }).expect("endpoint");
    tables.pods.put(&7, &PodGroups { ingress: 3, egress: 0 }).expect("pod");
    tables.ifaces.put(&12, &Iface { mac: MAC, flags: Iface::PUBLISHED, pod: 7, netns: 4 }).expect("iface");
    tables.peers.put(&address("10.244.2.21"), &Peer { class: 4, flags: 0 }).expect("peer");
    tables.ports.put(&8080, &5).expect("port");
    let row = PolicyRow { verdict: PolicyRow::ALLOW, rule: 2 };
    tables.policy.put(&PolicyKey { group: 3, class: 4, ports: ANY }, &row).expect("row");
    tables.flows.put(&flow_key(1), &flow()).expect("flow");
    tables.set_config(&Config { generation: 9, flags: Config::SILENT, ..Config::default() }).expect("config");
}

fn versions(pins: &Pins) -> Vec<String> {
    let entries = std::fs::read_dir(base(pins)).expect("base").map(|entry| entry.expect("entry").file_name());
    let mut names: Vec<String> = entries.filter_map(|name| name.into_string().ok()).collect();
    names.retain(|name| name.starts_with('v'));
    names.sort();
    names
}

#[test]
#[ignore = "needs root and the BPF object: cargo xtask test --tier 2 --filter another_size"]
fn another_size_takes_over_what_the_old_tables_hold() {
    let _alone = alone();
    let pins = Pins::new();
    let mut plane = KernelPolicy::open(&base(&pins), entries(&SMALL)).expect("opens");
    fill(plane.dataplane().tables());
    let before = plane.observe().expect("tables").tables;
    drop(plane);

    // Whoever does not make way is told.
    let large = entries(&Sizes::default());
    let options = Options { pins: Some(pins.root()), entries: large.clone() };
    let error = Dataplane::load(&options).map(drop).expect_err("other sizes");
    assert!(matches!(error, BpfError::Pinned { .. }) && error.to_string().contains("--cleanup-config"), "{error}");

    let mut plane = KernelPolicy::open(&base(&pins), large).expect("opens");
    assert_eq!(versions(&pins), ["v0", "v3"], "the old tables judge until the new ones do");
    assert_eq!(plane.observe().expect("tables").tables, before);
    for map in names::MAPS {
        if let Some(size) = Sizes::default().of(map) {
            let shown = crate::run("bpftool", &format!("-j map show pinned {}/{map}", pins.root().display()));
            let shown: serde_json::Value = serde_json::from_str(&shown).expect("JSON");
            assert_eq!(shown["max_entries"], size, "{map}");
        }
    }
    // A flow that began while programs were being exchanged, and one that went on.
    let old = Tables::open(&base(&pins).join("v0")).expect("old tables");
    old.flows.put(&flow_key(2), &flow()).expect("flow");
    let tables = plane.dataplane().tables();
    let config = tables.config().expect("config");
    assert_eq!((config.generation, config.flags), (10, Config::SILENT));
    assert!(config.learn_until_s > now_s());
    let newer = Flow { last_seen_s: now_s() + 1, ..flow() };
    tables.flows.put(&flow_key(1), &newer).expect("flow");
    plane.settled();
    assert_eq!(versions(&pins), ["v3"]);
    let tables = plane.dataplane().tables();
    assert_eq!(tables.flows.get(&flow_key(1)).expect("read"), Some(newer), "what goes on is not set back");
    assert!(tables.flows.get(&flow_key(2)).expect("read").is_some(), "UDP too");
}

/// Killed before it copied, or before its programs were in force: what is in force is still the first one's.
#[test]
#[ignore = "needs root and the BPF object: cargo xtask test --tier 2 --filter ended_too_early"]
fn agents_that_ended_too_early_lose_no_flow() {
    let _alone = alone();
    let pins = Pins::new();
    let small = || KernelPolicy::open(&base(&pins), entries(&SMALL)).expect("opens");
    let large = || KernelPolicy::open(&base(&pins), entries(&Sizes { flows: 2_048, ..SMALL })).expect("opens");
    let mut plane = small();
    fill(plane.dataplane().tables());
    let key = ServiceKey { address: address("10.96.0.1"), port: 53, protocol: 17, pad: 0 };
    let vip = Vip { id: 1, ring: 1, slots: 1, scheduler: Vip::RR, ..Vip::default() };
    plane.dataplane().balance().vips.put(&key, &vip).expect("row");
    drop(plane);
    std::fs::rename(pins.root(), base(&pins).join("v0")).expect("moved");
    for port in 2..4 {
        let mut plane = large();
        assert_eq!(versions(&pins), ["v0", "v3"]);
        let tables = plane.dataplane().tables();
        assert!(tables.flows.get(&flow_key(1)).expect("read").is_some());
        assert!(tables.config().expect("config").generation > 9);
        // The old programs leave new flows to IPVS from now on, which has them a while longer.
        let learned = plane.dataplane().balance().vips.get(&key).expect("read").map(|vip| vip.learn_until_s);
        assert!(learned.is_some_and(|until| until > now_s() + 300));
        let old = base(&pins).join("v0");
        assert!(BalanceMaps::open(&old).expect("tables").vips.read_all().expect("rows").is_empty());
        Tables::open(&old).expect("tables").flows.put(&flow_key(port), &flow()).expect("flow");
    }
    let mut plane = large();
    plane.settled();
    assert_eq!(versions(&pins), ["v3"]);
    let flows = &plane.dataplane().tables().flows;
    let known = (1..4).filter(|port| flows.get(&flow_key(*port)).expect("read").is_some()).count();
    assert_eq!(known, 3);
}

/// The stack knows the others, or nobody needs them.
#[test]
#[ignore = "needs root and the BPF object: cargo xtask test --tier 2 --filter smaller_flow_table"]
fn a_smaller_flow_table_keeps_what_nobody_else_knows() {
    let _alone = alone();
    let pins = Pins::new();
    let mut plane = KernelPolicy::open(&base(&pins), entries(&SMALL)).expect("opens");
    let tables = plane.dataplane().tables();
    fill(tables);
    let translated = Flow { flags: Flow::NAT | Flow::FAST, backend: 5, ..flow() };
    let tcp = |port| FlowKey { protocol: 6, ..flow_key(port) };
    for port in 0..600_u16 {
        let (key, flow) = match port % 3 {
            0 => (flow_key(port), translated),
            1 => (tcp(port), Flow { state: Tcp::TIME_WAIT, ..translated }),
            _ => (flow_key(port), flow()),
        };
        tables.flows.put(&key, &flow).expect("flow");
    }
    let over = Flow { last_seen_s: 1, ..translated };
    (600..900).for_each(|port| tables.flows.put(&flow_key(port), &over).expect("flow"));
    drop(plane);
    let mut plane = KernelPolicy::open(&base(&pins), entries(&Sizes { flows: 256, ..SMALL })).expect("opens");
    let kept = plane.dataplane().tables().flows.read_all().expect("flows");
    assert_eq!(kept.len(), 224, "an eighth is left for those who come");
    let count = |wanted: &dyn Fn(&FlowKey, &Flow) -> bool| kept.iter().filter(|(key, flow)| wanted(key, flow)).count();
    assert_eq!(count(&|key, flow| key.protocol == 17 && flow.is(Flow::NAT) && key.peer_port < 600), 200);
    assert_eq!(count(&|key, _| key.protocol == 6), 24, "and then those that end");
}

#[test]
#[ignore = "needs root and the BPF object: cargo xtask test --tier 2 --filter does_not_fit"]
fn what_does_not_fit_is_written_anew() {
    let _alone = alone();
    let pins = Pins::new();
    let mut plane = KernelPolicy::open(&base(&pins), entries(&Sizes { pods: 128, ..SMALL })).expect("opens");
    fill(plane.dataplane().tables());
    let groups = PodGroups { ingress: 3, egress: 0 };
    plane.dataplane().tables().pods.put(&100, &groups).expect("a pod with a high number");
    drop(plane);
    let mut plane = KernelPolicy::open(&base(&pins), entries(&SMALL)).expect("opens");
    let tables = plane.dataplane().tables();
    assert!(tables.policy.read_all().expect("rows").is_empty() && tables.flows.read_all().expect("flows").is_empty());
    let config = tables.config().expect("config");
    assert!(config.generation == 1 && config.learn_until_s > now_s());
    drop(plane);
    // It ended before all was in force, and the next one has yet another size.
    let mut plane = KernelPolicy::open(&base(&pins), entries(&Sizes { flows: 2_048, ..SMALL })).expect("opens");
    assert_eq!(versions(&pins), ["v0", "v3", "v4294967295"]);
    plane.settled();
    assert_eq!(versions(&pins), ["v3"]);
}
