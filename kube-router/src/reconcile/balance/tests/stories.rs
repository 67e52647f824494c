//! Single changes, told by what is written and when.

use kube_router_common::{
    balance::{Backend, Vip},
    schedule::NONE,
};

use super::rig::{Rig, Serving, TABLES, tcp, udp};
use crate::{
    compile::balance::{FastPath, Path, Why},
    objects::Protocol,
    plan::balance::BalanceOrder,
};

const OPEN: u16 = Backend::LIVE | Backend::OPEN;

fn serving(graceful: bool, scheduler: &'static str, endpoints: &[u8]) -> Rig {
    let mut rig = Rig::new(graceful);
    rig.serve(1, &Serving::by(scheduler, endpoints));
    rig.settle();
    rig
}

fn path(rig: &Rig) -> Path {
    rig.reconciler.path(&tcp(1)).expect("a balancer").0
}

fn orders_since(rig: &Rig, before: usize) -> Vec<BalanceOrder> {
    rig.tables.0.borrow().balance_log[before..].to_vec()
}

#[test]
fn a_new_service_is_written_from_its_backends_up_and_only_once() {
    let mut rig = serving(false, "rr", &[1, 2]);
    let log = orders_since(&rig, 0);
    let [BalanceOrder::SetBackend(..), BalanceOrder::SetBackend(..), BalanceOrder::WriteRing(ring, slots), last] =
        &log[..]
    else {
        panic!("{log:?}")
    };
    let BalanceOrder::SetVip(_, vip) = last else { panic!("{log:?}") };
    assert_eq!((vip.ring, vip.slots, slots.len(), vip.scheduler), (*ring, 2, 2, Vip::RR));
    // The newest in front, as the kernel has it.
    assert_eq!(rig.ring(&tcp(1)), [Some(2), Some(1)]);
    assert_eq!(path(&rig), Path::Fast);
    rig.settle();
    rig.now_ms += 400_000;
    rig.settle();
    assert_eq!(rig.orders(), 4, "a full pass finds nothing");
}

#[test]
fn one_endpoint_costs_what_its_own_service_has() {
    let mut rig = serving(false, "rr", &[1, 2]);
    for number in 2..40 {
        rig.serve(number, &Serving::by("mh", &[1, 2, 3]));
    }
    rig.settle();
    let before = rig.orders();
    rig.serve(1, &Serving::by("rr", &[1, 2, 3]));
    rig.settle();
    let rows: usize = orders_since(&rig, before).iter().map(BalanceOrder::rows).sum();
    assert_eq!(rows, 1 + 3 + 1 + 2, "a backend, a ring, the flip, the old ring");
}

#[test]
fn who_drains_leaves_the_ring_and_comes_back_under_its_number() {
    let mut rig = serving(true, "rr", &[1, 2]);
    let number = rig.backend(&tcp(1), 2).expect("known").0;
    rig.busy(2, true);
    rig.serve(1, &Serving::by("rr", &[1]));
    rig.settle();
    assert_eq!(rig.ring(&tcp(1)), [Some(1)]);
    assert_eq!(rig.backend(&tcp(1), 2), Some((number, Backend::LIVE)));
    rig.serve(1, &Serving::by("rr", &[1, 2]));
    rig.settle();
    assert_eq!(rig.backend(&tcp(1), 2), Some((number, OPEN)));
    // Gone from IPVS, it keeps the number; another one gets another.
    rig.serve(1, &Serving::by("rr", &[1, 3]));
    rig.settle();
    rig.now_ms += 60_000;
    rig.settle();
    assert_eq!(rig.backend(&tcp(1), 2), Some((number, 0)));
    assert!(rig.backend(&tcp(1), 3).expect("known").0 > number);
    rig.restart();
    rig.serve(1, &Serving::by("rr", &[1, 2, 3]));
    rig.settle();
    assert_eq!(rig.backend(&tcp(1), 2), Some((number, OPEN)));
}

#[test]
fn a_number_is_free_when_two_sweeps_found_nobody_with_it() {
    let mut rig = serving(false, "rr", &[1, 2]);
    let [one, two] = [1, 2].map(|last| rig.backend(&tcp(1), last).expect("known").0);
    rig.begin_flows(2);
    rig.serve(1, &Serving::by("rr", &[1]));
    rig.settle();
    let before = rig.orders();
    let swept = |rig: &mut Rig| {
        rig.sweep();
        rig.settle();
        orders_since(rig, before)
    };
    assert_eq!((swept(&mut rig), swept(&mut rig)), (vec![], vec![]), "a flow has it");
    rig.end_flows(2);
    assert_eq!(swept(&mut rig), []);
    // Somebody had read the ring before it was replaced.
    rig.begin_flows(2);
    rig.end_flows(2);
    assert_eq!(swept(&mut rig), [BalanceOrder::ForgetBackend(two)]);
    assert_eq!(swept(&mut rig).len(), 1, "once");
    assert_eq!(rig.backend(&tcp(1), 1), Some((one, OPEN)), "in use, with or without flows");
}

#[test]
fn a_flow_between_two_sweeps_and_a_restart_begin_it_anew() {
    let mut rig = serving(false, "rr", &[1, 2]);
    let two = rig.backend(&tcp(1), 2).expect("known").0;
    rig.serve(1, &Serving::by("rr", &[1]));
    rig.settle();
    let before = rig.orders();
    rig.sweep();
    rig.begin_flows(2);
    rig.sweep();
    rig.end_flows(2);
    rig.sweep();
    rig.settle();
    assert_eq!(orders_since(&rig, before), [], "a late flow was met by the second");
    rig.restart();
    rig.settle();
    rig.sweep();
    rig.settle();
    assert_eq!(orders_since(&rig, before), []);
    rig.sweep();
    rig.settle();
    assert_eq!(orders_since(&rig, before), [BalanceOrder::ForgetBackend(two)]);
}

/// The walk of a sweep that began before has passed some flows already.
#[test]
fn a_sweep_counts_only_if_it_began_after_the_row_was_written() {
    let mut rig = serving(false, "rr", &[1, 2]);
    rig.now_ms = 100;
    rig.serve(1, &Serving::by("rr", &[1]));
    rig.settle();
    let before = rig.orders();
    for began_ms in [99, 100, 101] {
        rig.sweep_begun(began_ms);
        rig.settle();
    }
    assert_eq!(orders_since(&rig, before), []);
    rig.sweep_begun(102);
    rig.settle();
    assert_eq!(orders_since(&rig, before).len(), 1);
}

fn drains(rig: &Rig, last: u8) -> bool {
    let state = rig.ipvs.0.borrow();
    let destinations = &state.kernel.ipvs.servers[&tcp(1)].destinations;
    destinations
        .iter()
        .any(|(place, weight)| *weight == 0 && place.to_string().starts_with(&format!("10.244.0.{last}:")))
}

#[test]
fn a_drain_waits_for_flows_past_ipvs_and_not_for_ever() {
    for ends in [true, false] {
        let mut rig = serving(true, "rr", &[1, 2]);
        let pass = |rig: &mut Rig, ms: u64, sweeps: bool| {
            if sweeps {
                rig.sweep();
            }
            rig.now_ms += ms;
            rig.settle();
            drains(rig, 2)
        };
        rig.begin_flows(2);
        assert!(!rig.reconciler.sweeping().is_awaited);
        rig.sweep();
        rig.serve(1, &Serving::by("rr", &[1]));
        rig.settle();
        assert!(rig.reconciler.sweeping().is_awaited);
        assert!(pass(&mut rig, 6_000, false), "no sweep began since");
        assert!(pass(&mut rig, 6_000, true), "there are flows");
        if ends {
            rig.end_flows(2);
            assert!(!pass(&mut rig, 6_000, true));
        } else {
            assert!(pass(&mut rig, 6_000, true));
            assert!(!pass(&mut rig, 15_000, true), "its time is over");
            assert_eq!(rig.backend(&tcp(1), 2).map(|(_, flags)| flags), Some(0), "its flows are refused");
        }
        assert!(!rig.reconciler.sweeping().is_awaited);
    }
}

#[test]
fn a_drain_of_ipvs_alone_waits_for_no_sweep() {
    let mut rig = Rig::new(true);
    let serving = |endpoints: &[u8]| Serving { fast: false, ..Serving::by("rr", endpoints) };
    rig.serve(1, &serving(&[1, 2]));
    rig.settle();
    rig.serve(1, &serving(&[1]));
    rig.settle();
    assert!(drains(&rig, 2));
    rig.now_ms += 6_000;
    rig.settle();
    assert!(!drains(&rig, 2));
}

/// All destinations are exchanged at once: there is no moment without a ring.
#[test]
fn a_ring_never_runs_empty_between_two_sets_of_endpoints() {
    let mut rig = serving(false, "rr", &[1]);
    let before = rig.orders();
    rig.serve(1, &Serving::by("rr", &[2]));
    rig.settle();
    let log = orders_since(&rig, before);
    assert!(!log.iter().any(|order| matches!(order, BalanceOrder::SetVip(_, vip) if vip.rests())), "{log:?}");
    assert_eq!(rig.ring(&tcp(1)), [Some(2)]);
}

#[test]
fn a_service_that_goes_takes_its_row_first() {
    let mut rig = serving(false, "rr", &[1]);
    let before = rig.orders();
    rig.remove(1);
    rig.settle();
    let log = orders_since(&rig, before);
    let kinds = |order: &BalanceOrder| match order {
        BalanceOrder::SetVip(_, vip) if vip.rests() => "rests",
        BalanceOrder::DeleteVip(_) => "row",
        BalanceOrder::DeleteRing(..) => "ring",
        BalanceOrder::SetBackend(_, backend) if backend.flags == Backend::LIVE => "shut",
        BalanceOrder::SetBackend(_, backend) if backend.flags == 0 => "gone",
        _ => "else",
    };
    assert_eq!(log.iter().map(kinds).collect::<Vec<_>>(), ["rests", "ring", "shut", "gone"]);
    // The number's name stays until nobody has the number.
    let before = rig.orders();
    for _ in 0..2 {
        rig.sweep();
        rig.settle();
    }
    let log = orders_since(&rig, before);
    let [BalanceOrder::ForgetBackend(_), BalanceOrder::ForgetVip(_), BalanceOrder::DeleteVip(_)] = &log[..] else {
        panic!("{log:?}")
    };
    rig.check_settled();
}

#[test]
fn what_a_service_counted_stays_its_own_while_it_has_no_endpoints() {
    let mut rig = serving(false, "rr", &[1]);
    let number = rig.row(&tcp(1)).expect("fast").id;
    for endpoints in [&[][..], &[2], &[]] {
        rig.serve(1, &Serving::by("rr", endpoints));
        rig.settle();
        for _ in 0..3 {
            rig.sweep();
            rig.settle();
        }
        assert_eq!(rig.row(&tcp(1)).map(|row| (row.id, row.rests())), Some((number, endpoints.is_empty())));
        rig.check_settled();
    }
    // Nobody has a backend's number any more, and then nobody wants the service.
    rig.restart();
    rig.settle();
    assert_eq!(rig.row(&tcp(1)).map(|row| row.id), Some(number));
    rig.remove(1);
    rig.settle();
    assert_eq!(rig.row(&tcp(1)), None);
    let log = rig.tables.0.borrow().balance_log.clone();
    assert!(
        matches!(&log[log.len() - 2..], [BalanceOrder::ForgetVip(id), BalanceOrder::DeleteVip(_)] if *id == number)
    );
    rig.serve(2, &Serving::by("rr", &[1]));
    rig.settle();
    rig.check_settled();
}

#[test]
fn udp_learns_when_it_begins_and_not_again() {
    let mut rig = Rig::new(false);
    let udp_service = |endpoints: &[u8]| Serving { protocol: Protocol::Udp, ..Serving::by("rr", endpoints) };
    rig.tables.0.borrow_mut().balance.now_s = 5_000;
    rig.serve(1, &udp_service(&[1]));
    rig.settle();
    let until = rig.vip(&udp(1)).expect("fast").learn_until_s;
    assert!((5_300..5_305).contains(&until), "{until}");
    rig.now_ms += 50_000;
    rig.serve(1, &udp_service(&[1, 2]));
    rig.settle();
    assert_eq!(rig.vip(&udp(1)).map(|vip| (vip.slots, vip.learn_until_s)), Some((2, until)));
    rig.restart();
    rig.settle();
    assert_eq!(rig.vip(&udp(1)).map(|vip| vip.learn_until_s), Some(until));
    // Off and on again: IPVS may have had flows between.
    rig.serve(1, &Serving { fast: false, ..udp_service(&[1, 2]) });
    rig.settle();
    assert_eq!((rig.vip(&udp(1)), rig.ring(&udp(1))), (None, vec![]));
    assert_eq!(rig.backend(&udp(1), 1).map(|(_, flags)| flags), Some(Backend::LIVE), "what has begun goes on");
    rig.now_ms += 100_000;
    rig.serve(1, &udp_service(&[1, 2]));
    rig.settle();
    assert!(rig.vip(&udp(1)).expect("fast").learn_until_s >= until + 50);
}

#[test]
fn why_ipvs_serves_alone() {
    let mut rig = serving(false, "rr", &[1]);
    let fast = rig.fast;
    for (scheduler, fast, endpoints, expected) in [
        ("rr", fast, &[1][..], Path::Fast),
        ("lc", fast, &[1], Path::Fast),
        ("mh", fast, &[1], Path::Fast),
        ("rr", fast, &[], Path::Ipvs(Why::NoDestination)),
        ("rr", FastPath { off: Some(Why::Masqueraded), ..fast }, &[1], Path::Ipvs(Why::Masqueraded)),
        ("sh", FastPath { tables: None, ..fast }, &[1], Path::Ipvs(Why::TableSize)),
        ("lc", FastPath { tables: None, ..fast }, &[1], Path::Fast),
    ] {
        rig.fast = fast;
        rig.restart();
        rig.serve(1, &Serving::by(scheduler, endpoints));
        rig.settle();
        assert_eq!(path(&rig), expected, "{scheduler} {fast:?} {endpoints:?}");
        assert_eq!(rig.vip(&tcp(1)).is_some(), expected == Path::Fast);
        rig.check_settled();
    }
}

/// The weight that a drained destination had is not in a dump, but the agent that drained it knows.
#[test]
fn mh_is_fast_while_somebody_knows_what_was_drained() {
    let mut rig = serving(true, "mh", &[1, 2]);
    let clients = |rig: &Rig, last| rig.ring(&tcp(1)).iter().filter(|slot| **slot == last).count();
    assert_eq!(clients(&rig, Some(1)) + clients(&rig, Some(2)), TABLES.mh_slots().expect("a size") as usize);
    let (one, two) = (clients(&rig, Some(1)), clients(&rig, Some(2)));
    rig.busy(2, true);
    rig.serve(1, &Serving::by("mh", &[1]));
    rig.settle();
    assert_eq!((clients(&rig, Some(1)), clients(&rig, None)), (one, two), "its slots are nobody's");
    rig.reconciler.handle_observed(rig.ipvs.observe(), rig.now_ms);
    rig.settle();
    assert_eq!(path(&rig), Path::Fast, "a full pass reads the same list");
    rig.restart();
    rig.settle();
    assert_eq!(path(&rig), Path::Ipvs(Why::LastWeight));
    assert!(rig.tables.0.borrow().balance.tables.rings().all(|(_, slots)| !slots.contains(&NONE)));
    rig.now_ms += 60_000;
    rig.settle();
    assert_eq!(path(&rig), Path::Fast, "drained and gone");
}

#[test]
fn a_ring_that_is_refused_leaves_the_service_to_ipvs_until_the_next_pass() {
    let mut rig = serving(false, "rr", &[1, 2]);
    // The first order is the flip to a ring of three: backend, ring.
    rig.fail_table(1, 2);
    rig.serve(1, &Serving::by("rr", &[1, 2, 3]));
    rig.settle();
    assert_eq!(path(&rig), Path::Ipvs(Why::NoRoom));
    let problems: Vec<String> = rig.reconciler.problems().iter().map(|problem| problem.text.clone()).collect();
    assert!(problems.len() == 1 && problems[0].contains(&tcp(1).to_string()), "{problems:?}");
    assert_eq!(rig.tables.0.borrow().balance.tables.slots(), 0, "nothing is left of either ring");
    rig.now_ms += 400_000;
    rig.settle();
    assert_eq!((path(&rig), rig.reconciler.problems().iter().count()), (Path::Fast, 0));
    rig.check_settled();
}

#[test]
fn rows_of_nobody_go_with_the_first_complete_view_and_flows_may_end() {
    let mut rig = serving(false, "rr", &[1]);
    rig.fast.off = Some(Why::Off);
    rig.restart();
    rig.settle();
    assert_eq!(rig.vip(&tcp(1)), None);
    let number = rig.backend(&tcp(1), 1).expect("kept");
    assert_eq!(number.1, Backend::LIVE);
    // A row that rests says whose it is.
    assert!(rig.row(&tcp(1)).is_some());
    // Nobody knows any more whose it was; IPVS still has the destination, and then not.
    rig.tables.0.borrow_mut().balance.tables.vips.clear();
    rig.restart();
    rig.settle();
    assert_eq!(rig.backend(&tcp(1), 1), Some(number));
    rig.serve(1, &Serving::by("rr", &[2]));
    rig.settle();
    rig.now_ms += 400_000;
    rig.settle();
    assert_eq!(rig.backend(&tcp(1), 1), Some((number.0, 0)));
}

/// What cannot be taken away either is tried again, later and later; IPVS goes on meanwhile.
#[test]
fn a_table_that_refuses_everything_holds_nobody_up() {
    let mut rig = serving(false, "rr", &[1]);
    rig.fail_table(0, 0);
    rig.remove(1);
    rig.settle();
    assert!(rig.ipvs.0.borrow().kernel.ipvs.servers.is_empty());
    assert!(rig.vip(&tcp(1)).is_some());
    let reasons = |rig: &mut Rig| rig.reconciler.problems().iter().map(|problem| problem.reason).collect::<Vec<_>>();
    assert_eq!(reasons(&mut rig), ["KernelRefused"]);
    rig.now_ms += 1_000;
    rig.settle();
    assert_eq!((rig.vip(&tcp(1)), reasons(&mut rig)), (None, vec![]));
    rig.check_settled();
}

/// IPVS was emptied by somebody: the rows follow, and come back with it.
#[test]
fn what_ipvs_has_lost_is_not_fast() {
    let mut rig = serving(false, "rr", &[1, 2]);
    rig.ipvs.0.borrow_mut().kernel.ipvs = Default::default();
    let before = rig.orders();
    rig.behind = true;
    rig.now_ms += 400_000;
    rig.settle();
    let log = orders_since(&rig, before);
    assert!(matches!(log[0], BalanceOrder::SetVip(_, vip) if vip.rests()), "{log:?}");
    assert_eq!((path(&rig), rig.ring(&tcp(1)).len()), (Path::Fast, 2));
    rig.check_settled();
}
