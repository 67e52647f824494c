//! The tables of the service fast path in a real kernel: what is ordered is there, and the next agent finds it.

use kube_router::{
    apply::{
        PolicyPlane,
        bpf::{Dataplane, KernelPolicy, Options, entries, now_s},
    },
    plan::balance::BalanceOrder,
};
use kube_router_common::{
    balance::{Backend, Vip},
    config::Iface,
    flow::{Flow, FlowKey, Tcp},
    policy::ServiceKey,
    schedule::NONE,
    sizes::Sizes,
};

use crate::{
    alone,
    net::{Pins, address},
    sizes::base,
};

fn key(last: u8) -> ServiceKey {
    ServiceKey { address: address(&format!("10.96.0.{last}")), port: 80, protocol: 6, pad: 0 }
}

fn carry_out(plane: &mut KernelPolicy, orders: &[BalanceOrder]) {
    let (done, result) = plane.balance(orders);
    assert!(result.is_ok() && done == orders.len(), "{done}: {result:?}");
}

#[test]
#[ignore = "needs root and the BPF object: cargo xtask test --tier 2 --filter fast_path_outlive"]
fn rows_of_the_fast_path_outlive_the_agent_and_another_size() {
    let _alone = alone();
    let pins = Pins::new();
    let small = Sizes { flows: 1_024, ..Sizes::default() };
    let mut plane = KernelPolicy::open(&base(&pins), entries(&small)).expect("opens");
    assert_eq!(plane.observe_balance().expect("tables").tables, Default::default());
    let backend = Backend { address: address("10.244.0.9"), port: 8080, flags: Backend::LIVE | Backend::OPEN, vip: 1 };
    let ring: Box<[u32]> = (0..5_000).map(|slot| if slot % 3 == 0 { NONE } else { 7 }).collect();
    let vip = Vip { id: 1, ring: 3, slots: 5_000, scheduler: Vip::MH, learn_until_s: 9, ..Vip::default() };
    carry_out(
        &mut plane,
        &[
            BalanceOrder::SetBackend(7, backend),
            BalanceOrder::SetBackend(8, Backend { flags: 0, ..backend }),
            BalanceOrder::WriteRing(3, ring.clone()),
            BalanceOrder::SetVip(key(1), vip),
            BalanceOrder::SetVip(key(2), vip),
            BalanceOrder::WriteRing(4, [7].into()),
            // More than there are: nothing happened to the rest.
            BalanceOrder::DeleteRing(4, 3),
            BalanceOrder::DeleteVip(key(2)),
        ],
    );
    plane.dataplane().balance().turns.put(&1, &41).expect("turns");
    plane.dataplane().balance().actives.put(&8, &2).expect("actives");
    let before = plane.observe_balance().expect("tables").tables;
    assert_eq!((before.vips.len(), before.slots(), before.backends.len()), (1, 5_000, 2));
    assert_eq!((before.vips[&key(1)], before.ring(3)), (vip, Some(&*ring)));
    drop(plane);
    for sizes in [small, Sizes::default()] {
        let mut plane = KernelPolicy::open(&base(&pins), entries(&sizes)).expect("opens");
        assert_eq!(plane.observe_balance().expect("tables").tables, before, "{sizes:?}");
        assert_eq!(plane.dataplane().balance().turns.get(&1).expect("read"), Some(41), "turns go on");
        assert_eq!(plane.dataplane().balance().actives.get(&8).expect("read"), Some(2));
    }
    let mut plane = KernelPolicy::open(&base(&pins), entries(&Sizes::default())).expect("opens");
    carry_out(&mut plane, &[BalanceOrder::ForgetBackend(8)]);
    assert_eq!(plane.observe_balance().expect("tables").tables.backends.len(), 1);
    assert_eq!(plane.dataplane().balance().actives.get(&8).expect("read"), Some(0));
}

#[test]
#[ignore = "needs root and the BPF object: cargo xtask test --tier 2 --filter no_room_for_its_ring"]
fn a_kernel_that_has_no_room_for_its_ring_says_so_and_what_was_written_can_be_deleted() {
    let _alone = alone();
    let pins = Pins::new();
    let mut plane = KernelPolicy::open(&base(&pins), entries(&Sizes::default())).expect("opens");
    let full: Box<[u32]> = vec![NONE; kube_router_common::balance::MAX_SLOTS as usize - 10].into();
    carry_out(&mut plane, &[BalanceOrder::WriteRing(1, full)]);
    let (done, result) = plane.balance(&[BalanceOrder::WriteRing(2, vec![NONE; 2_000].into())]);
    assert!(done == 0 && result.is_err());
    let there = plane.observe_balance().expect("tables").tables;
    let part = there.ring(2).map_or(0, <[u32]>::len);
    assert!(part < 2_000, "{part}");
    carry_out(&mut plane, &[BalanceOrder::DeleteRing(2, 2_000)]);
    assert!(plane.observe_balance().expect("tables").tables.ring(2).is_none());
}

fn flow(port: u16, backend: u32, flags: u16, state: u8) -> (FlowKey, Flow) {
    let (local, peer) = (address("10.244.0.9"), address("10.96.0.1"));
    let key = FlowKey { local, peer, local_port: port, peer_port: 80, protocol: 6, ..FlowKey::default() };
    let (to, last_seen_s) = (address("10.244.0.8"), now_s());
    (key, Flow { last_seen_s, ifindex: 7, pod: 1, backend, to, to_port: 8080, flags, state, ..Flow::default() })
}

#[test]
#[ignore = "needs root and the BPF object: cargo xtask test --tier 2 --filter counts_each_connection"]
fn a_sweep_counts_each_connection_once_and_says_who_is_held() {
    let _alone = alone();
    let dataplane = Dataplane::load(&Options::default()).expect("load");
    let (tables, balance) = (dataplane.tables(), dataplane.balance());
    tables.ifaces.put(&7, &Iface { pod: 1, ..Iface::default() }).expect("interface");
    // A machine that has just started has no time before this.
    let now = now_s() + 100;
    let (client, server) = (Flow::FAST | Flow::NAT | Flow::FROM_POD, Flow::FAST | Flow::NAT);
    let add = |port, backend, state| {
        let (key, own) = flow(port, backend, client, state);
        let own = Flow { last_seen_s: now, ..own };
        let far = Flow { to: key.peer, to_port: key.peer_port, flags: server, ..own };
        tables.flows.put(&key, &own).expect("flow");
        tables.flows.put(&key.turned(&own), &far).expect("flow");
        (key, own)
    };
    let row = |flags| Backend { address: address("10.244.0.8"), port: 8080, flags, vip: 1 };
    for (backend, flags) in [(4, 0), (5, Backend::LIVE | Backend::OPEN), (6, Backend::LIVE), (7, Backend::LIVE)] {
        balance.backends.put(&backend, &row(flags)).expect("backend");
    }
    add(1_006, 4, Tcp::ESTABLISHED);
    add(1_000, 5, Tcp::SYN_SENT);
    add(1_001, 5, Tcp::ESTABLISHED);
    add(1_002, 5, Tcp::FIN_WAIT);
    add(1_003, 6, Tcp::TIME_WAIT);
    let (over, old) = add(1_004, 7, Tcp::SYN_RECV);
    for key in [over, over.turned(&old)] {
        let flow = tables.flows.get(&key).expect("read").expect("there");
        tables.flows.put(&key, &Flow { last_seen_s: now - 61, ..flow }).expect("flow");
    }
    let (key, plain) = flow(1_005, 9, Flow::FAST | Flow::FROM_POD, Tcp::ESTABLISHED);
    tables.flows.put(&key, &Flow { last_seen_s: now, ..plain }).expect("flow");
    for (backend, wrong) in [(5, 9), (6, 1), (7, 1), (8, -3), (9_000, 4), (9_001, 4)] {
        balance.actives.put(&backend, &wrong).expect("count");
    }
    let began = std::time::Instant::now();
    let swept = tables.sweep_flows(balance, 9_001, now).expect("sweep");
    println!("swept in {:?}", began.elapsed());
    assert_eq!((swept.live, swept.over, swept.orphans), (9, 4, 0), "one is silent, the other's backend is gone");
    assert_eq!(swept.held, [5, 6].into(), "what closes is held, too; what goes to no service has no backend");
    let counted = balance.actives.nonzero(u32::MAX).expect("read");
    assert_eq!(counted, [(5, 2), (9_001, 4)].into(), "the last one is nobody's number");
}
