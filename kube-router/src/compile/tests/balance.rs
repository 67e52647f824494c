//! Which virtual servers programs may choose for, and what they are told.

use std::net::SocketAddr;

use kube_router_common::{
    balance::Vip,
    schedule::{NONE, Tables},
};

use super::world::World;
use crate::{
    compile::{
        balance::{FastPath, Path, Ring, Why, compile_ring},
        rings::DestinationList,
    },
    desired::{Scheduler, Virtual, VirtualKey},
    objects::Protocol,
};

const TABLES: Tables = Tables { sh_bits: 4, dh_bits: 5, mh_index: 8 };
const FAST: FastPath = FastPath { off: None, tables: Some(TABLES) };
const BOTH: u32 = 0x18;

fn key(protocol: Protocol) -> VirtualKey {
    VirtualKey { address: [10, 96, 0, 1].into(), protocol, port: 80 }
}

fn server(scheduler: Scheduler, sched_flags: u32) -> Virtual {
    Virtual { scheduler, sched_flags, ..Virtual::default() }
}

/// As in a dump: destination 0 in front.
fn list(weights: &[u32]) -> DestinationList {
    let pod = |number| SocketAddr::from(([10, 2, 0, number], 8080));
    DestinationList::from_dump((0..).map(pod).zip(weights.iter().copied()))
}

fn compile(server: &Virtual, weights: &[u32], fast: &FastPath) -> Result<Ring, Why> {
    compile_ring(&key(Protocol::Tcp), server, list(weights).as_slice(), (true, false), fast)
}

#[test]
fn every_scheduler_of_ours_has_a_ring() {
    for (scheduler, flags, number, told, slots) in [
        (Scheduler::Rr, 0, Vip::RR, 0, 2),
        (Scheduler::Lc, 0, Vip::LC, 0, 2),
        (Scheduler::Sh, 0, Vip::SH, 0, 16),
        (Scheduler::Sh, BOTH, Vip::SH, Vip::HASH_PORT, 16),
        (Scheduler::Dh, BOTH, Vip::DH, 0, 32),
        (Scheduler::Mh, 0x8, Vip::MH, Vip::MH_FALLBACK, 251),
        (Scheduler::Mh, BOTH, Vip::MH, Vip::HASH_PORT | Vip::MH_FALLBACK, 251),
        (Scheduler::Rr, BOTH, Vip::RR, 0, 2),
    ] {
        let ring = compile(&server(scheduler, flags), &[1, 1], &FAST).expect("fast");
        assert_eq!((ring.vip.scheduler, ring.vip.flags), (number, told), "{scheduler:?}");
        assert_eq!(ring.slots.len(), slots, "{scheduler:?}");
    }
}

#[test]
fn who_drains_is_in_no_list_and_leaves_slots_to_nobody() {
    for scheduler in [Scheduler::Rr, Scheduler::Lc] {
        assert_eq!(compile(&server(scheduler, 0), &[0, 1, 3], &FAST).expect("fast").slots, [1, 2]);
    }
    let dh = compile(&server(Scheduler::Dh, 0), &[0, 1], &FAST).expect("fast").slots;
    assert_eq!(dh[..4], [NONE, 1, NONE, 1]);
}

#[test]
fn whatever_ipvs_must_decide_has_a_reason() {
    let rr = server(Scheduler::Rr, 0);
    let off = FastPath { off: Some(Why::Off), ..FAST };
    let blind = FastPath { tables: None, ..FAST };
    for (server, weights, fast, why) in [
        (&rr, &[1][..], &off, Why::Off),
        (&Virtual { persistence_s: Some(600), ..rr.clone() }, &[1], &FAST, Why::Affinity),
        (&rr, &[], &FAST, Why::NoDestination),
        (&rr, &[0, 0], &FAST, Why::NoDestination),
        (&rr, &[1, u32::MAX], &FAST, Why::Forwarding),
        (&server(Scheduler::Other, 0), &[1], &FAST, Why::Scheduler),
        (&server(Scheduler::Sh, 0), &[1], &blind, Why::TableSize),
        (&server(Scheduler::Mh, 0), &[1], &blind, Why::TableSize),
        (&server(Scheduler::Mh, 0), &[1, 0], &FAST, Why::LastWeight),
        (&server(Scheduler::Mh, 0), &[1; 252], &FAST, Why::TooMany),
    ] {
        assert_eq!(compile(server, weights, fast), Err(why), "{server:?} {weights:?}");
    }
    let list = list(&[1]);
    assert_eq!(compile_ring(&key(Protocol::Sctp), &rr, list.as_slice(), (true, false), &FAST), Err(Why::Protocol));
    assert_eq!(compile_ring(&key(Protocol::Udp), &rr, list.as_slice(), (false, false), &FAST), Err(Why::Refused));
    assert_eq!(compile_ring(&key(Protocol::Tcp), &rr, list.as_slice(), (true, true), &FAST), Err(Why::Host));
    assert!(compile_ring(&key(Protocol::Tcp), &server(Scheduler::Sh, 0), list.as_slice(), (true, true), &FAST).is_ok());
    assert!(compile(&rr, &[1], &blind).is_ok());
    let of_both =
        DestinationList::from_dump([("10.2.0.1:80", 1), ("[fd00::1]:80", 1)].map(|(at, w)| (at.parse().unwrap(), w)));
    assert_eq!(compile_ring(&key(Protocol::Tcp), &rr, of_both.as_slice(), (true, false), &FAST), Err(Why::Forwarding));
    assert_eq!(Path::Ipvs(Why::Refused).to_string(), "IPVS: annotation kube-router.io/service.fastpath");
}

#[test]
fn a_service_can_refuse_the_fast_path() {
    let world = || World::new("spec: {type: NodePort, clusterIP: 10.96.0.10, ports: [{port: 80, nodePort: 30080}]}");
    let wanted = |world: &World| -> Vec<bool> {
        let state = world.compile().0.expect("ours");
        state.frontends.values().map(|frontend| frontend.fast).collect()
    };
    assert_eq!(wanted(&world()), [true, true]);
    for (value, fast, complaints) in [
        ("true", true, &[][..]),
        ("false", false, &[]),
        ("False", true, &[("UnknownFastpath", "service.fastpath")]),
        ("", true, &[("UnknownFastpath", "service.fastpath")]),
    ] {
        let world = world().annotated("service.fastpath", value);
        world.complains(complaints);
        assert_eq!(wanted(&world), [fast, fast], "{value:?}");
    }
}
