//! Services come, change and go, order by order, on two kernels in memory: IPVS and the tables of the fast path.

mod rig;
mod stories;

use std::collections::BTreeSet;

use proptest::{collection::vec, prelude::*, sample::select};

use self::rig::{Rig, Serving};
use crate::{apply::fake::Fault, objects::Protocol};

#[derive(Clone, Debug)]
enum Step {
    Serve(u8, Serving),
    Remove(u8),
    /// Connections to this endpoint end, or begin.
    Busy(u8, bool),
    Pass(u64),
    Restart,
    /// The n-th order to the tables from now fails after so many rows.
    Fault(usize, usize),
    /// IPVS refuses the n-th order from now.
    Refuse(usize),
    /// Flows of the fast path to this endpoint begin, or end.
    Flows(u8, bool),
    Sweep,
}

fn serving() -> impl Strategy<Value = Serving> {
    let scheduler = select(vec!["rr", "rr", "lc", "sh", "dh", "mh"]);
    let protocol = select(vec![Protocol::Tcp, Protocol::Udp, Protocol::Sctp]);
    let endpoints = vec(1..6_u8, 0..5).prop_map(BTreeSet::from_iter);
    (scheduler, protocol, endpoints, prop::bool::weighted(0.9))
        .prop_map(|(scheduler, protocol, endpoints, fast)| Serving { scheduler, protocol, endpoints, fast })
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        8 => (0..3_u8, serving()).prop_map(|(service, serving)| Step::Serve(service, serving)),
        2 => (0..3_u8).prop_map(Step::Remove),
        1 => (1..6_u8, any::<bool>()).prop_map(|(endpoint, busy)| Step::Busy(endpoint, busy)),
        3 => select(vec![1_000, 6_000, 31_000, 400_000]).prop_map(Step::Pass),
        1 => Just(Step::Restart),
        1 => (0..6_usize, 0..20_usize).prop_map(|(order, rows)| Step::Fault(order, rows)),
        1 => (0..10_usize).prop_map(Step::Refuse),
        2 => (1..6_u8, any::<bool>()).prop_map(|(endpoint, begin)| Step::Flows(endpoint, begin)),
        4 => Just(Step::Sweep),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, ..ProptestConfig::default() })]

    /// What must hold is checked by the rig after every single write; here is the end of it.
    #[test]
    fn whatever_happens_every_ring_is_whole_and_of_open_backends(
        graceful in any::<bool>(), steps in vec(step(), 1..25)
    ) {
        let mut rig = Rig::new(graceful);
        rig.settle();
        for step in steps {
            match step {
                Step::Serve(service, serving) => rig.serve(service, &serving),
                Step::Remove(service) => rig.remove(service),
                Step::Busy(endpoint, busy) => rig.busy(endpoint, busy),
                Step::Pass(ms) => rig.now_ms += ms,
                Step::Restart => rig.restart(),
                Step::Fault(order, rows) => rig.fail_table(order, rows),
                Step::Refuse(order) => {
                    let mut state = rig.ipvs.0.borrow_mut();
                    let at = state.seen + order;
                    state.faults.insert(at, Fault::Refuse(libc::ENOMEM));
                }
                Step::Flows(endpoint, true) => rig.begin_flows(endpoint),
                Step::Flows(endpoint, false) => rig.end_flows(endpoint),
                Step::Sweep => rig.sweep(),
            }
            rig.settle();
        }
        // Whatever was refused is tried again.
        rig.tables.0.borrow_mut().balance_faults.clear();
        rig.ipvs.0.borrow_mut().faults.clear();
        for _ in 0..4 {
            rig.now_ms += 400_000;
            rig.settle();
        }
        rig.check_settled();
        let log = |rig: &Rig| rig.tables.0.borrow().balance_log.clone();
        let before = log(&rig);
        rig.now_ms += 400_000;
        rig.settle();
        rig.restart();
        rig.settle();
        prop_assert_eq!(&log(&rig)[before.len()..], &[], "a pass and a restart write nothing");
        rig.check_settled();
    }
}
