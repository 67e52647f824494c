//! Many clients of a service that does not wait for IPVS: each backend gets its share, and those who only knock take nothing
//! from those who were let in.

use std::collections::BTreeMap;

use kube_router::apply::bpf::now_s;
use kube_router_common::{
    balance::{Backend, RingKey, Vip},
    config::Config,
    flow::{ALL_PODS, Flow, Tcp},
    hooks::Hook,
    packet::protocol,
    policy::{PodGroups, ServiceKey},
    twin::{
        self, Packet,
        build::Build,
        cases::{self, Family, IF_1, IF_2, pod_1, pod_2, service},
    },
};

use crate::{
    promises::in_a_namespace,
    rig::{DROP, PASS, REDIRECT, Rig},
};

const V4: Family = Family::V4;
const VIP: u32 = 3;
const RING: u32 = 5;
const FIRST: u32 = 10;
const PORT: u16 = 443;

/// So many backends at pod 2, each with a port of its own; nothing isolates anybody.
fn served(scheduler: u8, backends: u32) -> twin::Tables {
    let mut tables = cases::tables(now_s());
    tables.config.flags = Config::FAST | Config::FAST_FLOWS | Config::NO_ANTISPOOF;
    tables.pods.insert(1, PodGroups::default());
    tables.pods.insert(2, PodGroups::default());
    for slot in 0..backends {
        tables.rings.insert(RingKey { ring: RING, slot }, FIRST + slot);
        let flags = Backend::LIVE | Backend::OPEN;
        tables.backends.insert(FIRST + slot, Backend { address: pod_2(V4), port: 8080 + slot as u16, flags, vip: VIP });
    }
    let key = ServiceKey { address: service(V4), port: PORT, protocol: protocol::TCP, pad: 0 };
    tables.vips.insert(key, Vip { id: VIP, ring: RING, slots: backends, scheduler, ..Vip::default() });
    tables
}

fn packet(build: &Build, ifindex: u32) -> Packet {
    Packet { bytes: build.bytes(), ifindex, note: 0, mark: 0, checksum: None }
}

fn from_client(port: u16, flags: u8) -> Packet {
    packet(&Build::tcp((pod_1(V4), port), (service(V4), PORT), flags), IF_1)
}

/// Every other one from pod 1 itself, at another port; the others with addresses that are not its own.
fn knock(number: u32) -> Packet {
    if number.is_multiple_of(2) {
        return from_client(5_000 + (number / 2 % 60_000) as u16, Tcp::SYN);
    }
    let mut from = pod_1(V4);
    let [.., high, low] = (number >> 6).to_be_bytes();
    (from.0[12], from.0[13], from.0[14], from.0[15]) = (100, (number >> 22) as u8, high, low);
    packet(&Build::tcp((from, 1024 + (number & 63) as u16), (service(V4), PORT), Tcp::SYN), IF_1)
}

fn from_server(to: u16, port: u16, flags: u8) -> Packet {
    let build = Build::tcp((pod_2(V4), port), (pod_1(V4), to), flags);
    packet(&build.with(|b| (b.from_mac, b.to_mac) = (cases::MAC_2, cases::MAC_1)), IF_2)
}

fn verdict(rig: &Rig, packet: &Packet) -> u32 {
    rig.run(Hook::PodOut, packet).expect("runs").verdict
}

/// Connections that each backend has, by the client's entries.
fn shares(rig: &Rig) -> BTreeMap<u32, u32> {
    let mut shares = BTreeMap::new();
    for flow in rig.flows().into_values().filter(|flow| flow.is(Flow::NAT) && flow.is(Flow::FROM_POD)) {
        *shares.entry(flow.backend).or_default() += 1;
    }
    shares
}

#[test]
#[ignore = "needs root and the BPF object: cargo xtask test --tier 2 --filter each_backend"]
fn each_backend_gets_its_share_within_a_twentieth() {
    in_a_namespace(|| {
        let mut rig = Rig::new(Some(65_536));
        // lc compares all of 64, and two of more.
        for (scheduler, backends) in [(Vip::RR, 10), (Vip::LC, 10), (Vip::RR, 100), (Vip::LC, 64), (Vip::LC, 100)] {
            rig.write(&served(scheduler, backends));
            let clients = 20_000_u32;
            for port in 0..clients as u16 {
                assert_eq!(verdict(&rig, &from_client(10_000 + port, Tcp::SYN)), REDIRECT);
            }
            let shares = shares(&rig);
            let fair = clients / backends;
            let (least, most) = (shares.values().min().copied(), shares.values().max().copied());
            println!("scheduler {scheduler}, {backends} backends: {least:?} to {most:?} of {clients}, fair is {fair}");
            assert_eq!(shares.len(), backends as usize);
            assert!(shares.values().all(|share| share.abs_diff(fair) * 20 <= fair), "{shares:?}");
        }
    });
}

/// A million who never answer.
#[test]
#[ignore = "needs root and the BPF object: cargo xtask test --tier 2 --filter half_open"]
fn a_flood_of_half_open_connections_ends_none_and_shuts_nobody_out() {
    in_a_namespace(|| {
        const MOST: u32 = 16_384;
        const KNOCKS: u32 = 1_000_000;
        let mut rig = Rig::new(Some(MOST));
        let mut tables = served(Vip::LC, 3);
        tables.config.max_flows = MOST;
        rig.write(&tables);
        let standing: Vec<(u16, u16)> = (0..100)
            .map(|number| {
                let port = 4_000 + number;
                assert_eq!(verdict(&rig, &from_client(port, Tcp::SYN)), REDIRECT);
                let is_its = |key: &kube_router_common::flow::FlowKey| key.local == pod_1(V4) && key.local_port == port;
                let backend = rig.flows().into_iter().find(|(key, _)| is_its(key)).expect("an entry").1.to_port;
                assert_eq!(verdict(&rig, &from_server(port, backend, Tcp::SYN | Tcp::ACK)), REDIRECT);
                assert_eq!(verdict(&rig, &from_client(port, Tcp::ACK)), REDIRECT);
                (port, backend)
            })
            .collect();
        let (mut fast, mut left) = (0, 0);
        for number in 0..KNOCKS {
            match verdict(&rig, &knock(number)) {
                REDIRECT => fast += 1,
                // To IPVS, which has its own defences.
                PASS => left += 1,
                other => panic!("knock {number}: {other}"),
            }
            if number % 100_000 == 0 {
                assert!(rig.flows().len() <= MOST as usize);
            }
        }
        let flows = rig.flows();
        println!("{KNOCKS} knocks: {fast} got an entry, {left} were left to IPVS, {} entries of {MOST}", flows.len());
        assert!(fast > 1_000 && left > KNOCKS / 2 && flows.len() < MOST as usize);
        assert_eq!(rig.flow_counts().get(&ALL_PODS).copied(), Some(flows.len() as i32));
        for (port, backend) in &standing {
            assert_eq!(verdict(&rig, &from_client(*port, Tcp::ACK)), REDIRECT, "the client of port {port}");
            assert_eq!(verdict(&rig, &from_server(*port, *backend, Tcp::ACK)), REDIRECT, "its server");
        }
        // Whoever comes now gets through, by one way or the other.
        assert_ne!(verdict(&rig, &from_client(3_999, Tcp::SYN)), DROP);
    });
}
