//! The tables of the service fast path in a real kernel: what is ordered is there, and the next agent finds it.

use kube_router::{
    apply::{
        PolicyPlane,
        bpf::{KernelPolicy, entries},
    },
    plan::balance::BalanceOrder,
};
use kube_router_common::{
    balance::{Backend, Vip},
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
