//! The flow table is shared: who floods it takes no other pod's places.
//!
//! Two pods, each isolated both ways, and a table for 64 flows in the kernel. What is counted here is held against a count
//! of the table itself.

use std::{collections::BTreeMap, path::PathBuf};

use kube_router::{
    apply::{
        PolicyPlane,
        bpf::{Dataplane, KernelPolicy, Options, Tables, now_s},
    },
    plan::{enforcement::PolicyOrder, policy::PolicyOp},
};
use kube_router_common::{
    config::{Config, DropKey},
    flow::{ALL_PODS, Flow, FlowKey, Tcp},
    hooks::Hook,
    names,
    policy::{ANY, Address, PodGroups, PolicyKey, PolicyRow},
    reason::{Direction, Reason},
    twin::{
        self, Packet,
        build::Build,
        cases::{self, BLOCK, Family, IF_1, IF_2, in_block, pod_1, pod_2},
    },
};

use crate::{
    net::Pins,
    promises::in_a_namespace,
    rig::{DROP, Front, PASS, Rig},
};

pub const MOST: u32 = 64;
const PORT: u16 = 80;

/// Both pods isolated both ways; anything of the block passes.
pub fn world() -> twin::Tables {
    let mut tables = cases::tables(now_s());
    tables.config.max_flows = MOST;
    tables.pods.insert(2, PodGroups { ingress: 31, egress: 32 });
    for group in [31, 32] {
        let row = PolicyRow { verdict: PolicyRow::ALLOW, rule: 25 };
        tables.policy.insert(PolicyKey { group, class: BLOCK, ports: ANY }, row);
    }
    tables
}

/// Opens a connection from pod 1 or 2.
pub fn syn(pod: u32, port: u16) -> Packet {
    let (from, ifindex) = if pod == 1 { (pod_1(Family::V4), IF_1) } else { (pod_2(Family::V4), IF_2) };
    let mut build = Build::tcp((from, port), (in_block(Family::V4), PORT), Tcp::SYN);
    build.from_mac = if pod == 1 { cases::MAC_1 } else { cases::MAC_2 };
    Packet { bytes: build.bytes(), ifindex, note: 0, mark: 0, checksum: None }
}

fn syn_ack(port: u16) -> Packet {
    let build = Build::tcp((in_block(Family::V4), PORT), (pod_2(Family::V4), port), Tcp::SYN | Tcp::ACK);
    let build = build.with(|b| (b.from_mac, b.to_mac) = (cases::MAC_1, cases::MAC_2));
    Packet { bytes: build.bytes(), ifindex: IF_2, note: 0, mark: 0, checksum: None }
}

/// Packets that open connections, of each of these ports; how many passed.
pub fn flood(front: &Front, pod: u32, ports: std::ops::Range<u16>) -> usize {
    let verdicts = ports.map(|port| front.run(Hook::PodOut, &syn(pod, port)).expect("runs").verdict);
    verdicts.inspect(|verdict| assert!([PASS, DROP].contains(verdict))).filter(|verdict| *verdict == PASS).count()
}

/// What the programs counted, of pods that have some.
fn counted(tables: &Tables) -> BTreeMap<u32, i32> {
    let mut counts = tables.flow_counts.read_all().expect("counts");
    counts.retain(|(_, count)| *count != 0);
    counts.into_iter().collect()
}

/// What there is.
fn there(tables: &Tables) -> BTreeMap<u32, i32> {
    let mut counts = BTreeMap::new();
    for (_, flow) in tables.flows.read_all().expect("flows") {
        *counts.entry(flow.pod).or_default() += 1;
        *counts.entry(ALL_PODS).or_default() += 1;
    }
    counts
}

/// As if all flows of the pod were seen for the last time long ago.
fn grow_old(tables: &Tables, pod: u32) {
    for (key, flow) in tables.flows.read_all().expect("flows") {
        if flow.pod == pod {
            tables.flows.put(&key, &Flow { last_seen_s: 0, state: Tcp::CLOSE, ..flow }).expect("flow");
        }
    }
}

#[test]
#[ignore = "needs root and the BPF object: cargo xtask test --tier 2 --filter leaves_places"]
fn a_flood_leaves_places_for_other_pods() {
    in_a_namespace(|| {
        let mut rig = Rig::new(Some(MOST));
        rig.write(&world());
        let front = Front::of(&rig.dataplane);
        let tables = rig.dataplane.tables();
        assert_eq!(flood(&front, 1, 1_000..3_000), 32, "half of the table");
        let refused = DropKey { pod: 1, direction: Direction::Egress as u8, reason: Reason::TableFull as u8, pad: 0 };
        let drops: BTreeMap<_, _> = tables.drops.sums().expect("drops").into_iter().collect();
        assert_eq!(drops.get(&refused).map(|sum| sum.packets), Some(2_000 - 32));
        assert_eq!(flood(&front, 1, 1_000..1_032), 32, "what is known goes on");
        assert_eq!(counted(tables), there(tables));

        // The other one opens connections, and gets its replies.
        assert_eq!(flood(&front, 2, 5_000..5_010), 10);
        for port in 5_000..5_010 {
            assert_eq!(front.run(Hook::PodIn, &syn_ack(port)).expect("runs").verdict, PASS, "{port}");
        }
        assert_eq!(front.run(Hook::PodIn, &syn_ack(5_010)).expect("runs").verdict, PASS, "the block may come in");
        assert_eq!(counted(tables), there(tables));

        // It floods as well: half of what the first one left.
        assert_eq!(flood(&front, 2, 6_000..8_000) + 11, 16);
        assert_eq!(counted(tables), BTreeMap::from([(ALL_PODS, 48), (1, 32), (2, 16)]));
        assert_eq!(counted(tables), there(tables));

        // The first one's connections end, and it gets places again, but not as many as when it was alone.
        grow_old(tables, 1);
        let swept = tables.sweep_flows(rig.dataplane.balance(), 0, now_s()).expect("sweep");
        assert_eq!((swept.live, swept.over, swept.orphans), (16, 32, 0));
        assert_eq!(counted(tables), BTreeMap::from([(ALL_PODS, 16), (2, 16)]));
        assert_eq!(flood(&front, 1, 9_000..11_000), 24);
        assert_eq!(counted(tables), there(tables));
    });
}

#[test]
#[ignore = "needs root and the BPF object: cargo xtask test --tier 2 --filter floods_get_a_third"]
fn two_floods_get_a_third_each() {
    in_a_namespace(|| {
        let mut rig = Rig::new(Some(MOST));
        rig.write(&world());
        let front = Front::of(&rig.dataplane);
        let tables = rig.dataplane.tables();
        for port in 1_000..3_000 {
            flood(&front, 1, port..port + 1);
            flood(&front, 2, port..port + 1);
        }
        assert_eq!(counted(tables), BTreeMap::from([(ALL_PODS, 43), (1, 22), (2, 21)]));
        assert_eq!(counted(tables), there(tables));
        // A policy that forbids them all: each entry is given back by the program that refuses the next packet.
        let config = tables.config().expect("config");
        tables.set_config(&Config { generation: config.generation + 1, ..config }).expect("config");
        for (key, _) in tables.policy.read_all().expect("rows") {
            tables.policy.delete(&key).expect("delete");
        }
        for pod in [1, 2] {
            for port in 1_000..3_000 {
                front.run(Hook::PodOut, &syn(pod, port)).expect("runs");
            }
        }
        assert_eq!((counted(tables), there(tables)), (BTreeMap::new(), BTreeMap::new()));
    });
}

/// Of a pod that is gone: not counted for the next one of this number, and removed with the next sweep.
#[test]
#[ignore = "needs root and the BPF object: cargo xtask test --tier 2 --filter inherits_no_flows"]
fn a_number_that_is_used_again_inherits_no_flows() {
    in_a_namespace(|| {
        let pins = Pins::new();
        let mut plane = KernelPolicy::open(&base(&pins), sizes()).expect("opens");
        let mut rig = Rig::new(None);
        rig.write(&world());
        write(&world(), plane.dataplane().tables());
        let front = Front::of(plane.dataplane());
        assert_eq!(flood(&front, 1, 1_000..3_000), 32);
        let behind = FlowKey { local: Address([9; 16]), kind: FlowKey::BEHIND, ..FlowKey::default() };
        let flow = Flow { last_seen_s: now_s(), state: Tcp::ESTABLISHED, pod: 1, ..Flow::default() };
        plane.dataplane().tables().flows.put(&behind, &flow).expect("flow");
        let orders = [PolicyOrder::DeleteIface(IF_1), PolicyOrder::Table(PolicyOp::DeletePod(1))];
        let (done, result) = plane.apply(&orders);
        result.expect("applied");
        assert_eq!(done, 2);
        let dataplane = plane.dataplane();
        let tables = dataplane.tables();
        assert_eq!(tables.flow_counts.get(&1).expect("read"), Some(0));
        assert_eq!(flood(&front, 2, 1_000..1_005), 5);
        let swept = tables.sweep_flows(dataplane.balance(), 0, now_s()).expect("sweep");
        assert_eq!((swept.live, swept.over, swept.orphans), (5, 0, 33));
        assert_eq!(counted(tables), BTreeMap::from([(ALL_PODS, 5), (2, 5)]));
        assert_eq!(counted(tables), there(tables));
    });
}

pub fn base(pins: &Pins) -> PathBuf {
    pins.root().parent().expect("a base").to_owned()
}

pub fn sizes() -> BTreeMap<&'static str, u32> {
    BTreeMap::from([(names::FLOWS, MOST)])
}

/// The rows that a flood needs.
pub fn write(from: &twin::Tables, to: &Tables) {
    let generation = from.config.generation;
    to.set_config(&Config { generation, ..to.config().expect("config") }).expect("config");
    for (address, endpoint) in &from.endpoints {
        to.endpoints.put(address, endpoint).expect("endpoint");
    }
    for (pod, groups) in &from.pods {
        to.pods.put(pod, groups).expect("groups");
    }
    for (index, iface) in &from.ifaces {
        to.ifaces.put(index, iface).expect("interface");
    }
    for (key, peer) in &from.cidrs {
        to.cidrs.put(key, peer).expect("prefix");
    }
    for (key, row) in &from.policy {
        to.policy.put(key, row).expect("row");
    }
}

/// The next agent finds the right counts, whoever counted or did not, and whatever size it wants.
#[test]
#[ignore = "needs root and the BPF object: cargo xtask test --tier 2 --filter counts_outlive"]
fn counts_outlive_the_agent_and_the_size() {
    in_a_namespace(|| {
        let pins = Pins::new();
        let mut plane = KernelPolicy::open(&base(&pins), sizes()).expect("opens");
        write(&world(), plane.dataplane().tables());
        assert_eq!(flood(&Front::of(plane.dataplane()), 1, 1_000..3_000), 32);
        drop(plane);

        let mut plane = KernelPolicy::open(&base(&pins), sizes()).expect("opens");
        let tables = plane.dataplane().tables();
        assert_eq!(counted(tables), BTreeMap::from([(ALL_PODS, 32), (1, 32)]));
        assert_eq!(flood(&Front::of(plane.dataplane()), 1, 3_000..5_000), 0);
        drop(plane);

        // Programs of an older agent, which do not count.
        let options = Options { pins: Some(pins.root()), entries: sizes() };
        let older = Dataplane::load(&options).expect("load");
        for (key, flow) in older.tables().flows.read_all().expect("flows").into_iter().take(12) {
            older.tables().flows.delete(&key).expect("delete");
            assert_eq!(flow.pod, 1);
        }
        drop(older);
        let mut plane = KernelPolicy::open(&base(&pins), sizes()).expect("opens");
        assert_eq!(counted(plane.dataplane().tables()), BTreeMap::from([(ALL_PODS, 20), (1, 20)]));
        drop(plane);

        // Twice the size, and flows that began in the old table while the programs were exchanged.
        let mut plane = KernelPolicy::open(&base(&pins), BTreeMap::from([(names::FLOWS, 2 * MOST)])).expect("opens");
        assert_eq!(plane.dataplane().tables().config().expect("config").max_flows, 2 * MOST);
        assert_eq!(counted(plane.dataplane().tables()), BTreeMap::from([(ALL_PODS, 20), (1, 20)]));
        let front = Front::of(plane.dataplane());
        assert_eq!(flood(&front, 2, 1_000..1_003), 3);
        let old = Tables::open(&base(&pins).join("v0")).expect("old tables");
        let (key, flow) = old.flows.read_all().expect("flows")[0];
        old.flows.put(&FlowKey { peer_port: 7, ..key }, &flow).expect("flow");
        plane.settled();
        let tables = plane.dataplane().tables();
        assert_eq!(counted(tables), BTreeMap::from([(ALL_PODS, 24), (1, 21), (2, 3)]));
        assert_eq!(counted(tables), there(tables));
        assert_eq!(flood(&front, 1, 6_000..8_000) + 21, 63, "half of what the other one left, rounded up");
    });
}
