//! Pods start by the real chain while others flood their addresses: nothing passes that should not, and what may pass does
//! with its first packet.
//!
//! What arrives before ADD has returned is counted apart: bridge makes the interface, ours guards it, and only then the
//! runtime starts a process.

mod calm;
mod field;
mod unusual;
mod witness;

use std::{
    sync::{
        Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    thread,
    time::Duration,
};

use calm::Calm;
use field::Field;
use kube_router_tests::{
    pace,
    probe::{FirstTry, ProbeError},
};

/// Pods that start at the same time.
const LANES: usize = 4;

#[derive(Debug)]
struct Outcome {
    chain: Duration,
    ours: Duration,
    early: usize,
    leaked: usize,
    lost: Vec<String>,
    /// Packets that had to be sent again while the machine stood still or threw packets away, whoever they were for.
    disturbed: Vec<String>,
    /// Of what was lost.
    evidence: String,
}

impl Outcome {
    fn take(&mut self, calm: &Calm, what: &str, tries: impl FnOnce() -> Vec<Result<FirstTry, ProbeError>>) {
        let before = calm.now();
        let tries = tries();
        let disturbance = calm.disturbance_since(before);
        for (number, one) in tries.into_iter().enumerate() {
            let text = format!("{what} {number}: {one:?} {}", disturbance.as_deref().unwrap_or_default());
            match one {
                Ok(FirstTry { again: 0, .. }) => {}
                Ok(_) if disturbance.is_some() => self.disturbed.push(text),
                _ => self.lost.push(text),
            }
        }
    }
}

fn start_one(field: &Field, calm: &Calm, number: usize) -> Outcome {
    let pod = field.sandbox(&format!("web-{number}"));
    field.tell(&pod, &[]);
    let added = field.add(&pod);
    assert_eq!(added.said.stderr, "", "published before ADD returned");
    // Who speaks first, and whether the API server knows the address by then, differs from pod to pod.
    if number & 1 == 1 {
        field.tell(&pod, &added.said.addresses());
    }
    let mut outcome = Outcome {
        chain: added.took,
        ours: added.said.took,
        early: 0,
        leaked: 0,
        lost: Vec::new(),
        disturbed: Vec::new(),
        evidence: String::new(),
    };
    let what = |way| format!("{} {:?} {way}", pod.name, added.said.addresses());
    let speaks_first = number & 2 == 2;
    if !speaks_first {
        outcome.take(calm, &what("in"), || field.knock(&added));
    }
    outcome.take(calm, &what("out"), || field.call_out(&pod));
    if speaks_first {
        outcome.take(calm, &what("in"), || field.knock(&added));
    }
    if !outcome.lost.is_empty() {
        outcome.evidence = field.evidence(&pod, &added);
    }
    field.del(&pod, &added);
    (outcome.early, outcome.leaked) = pod.heard(&added);
    field.forget(&pod);
    outcome
}

fn tell(what: &str, mut times: Vec<Duration>) {
    times.sort();
    let at = |percent: usize| times[(times.len() - 1) * percent / 100];
    println!("{what}: {:?} median, {:?} p90, {:?} p99, {:?} worst", at(50), at(90), at(99), at(100));
}

#[test]
#[ignore = "needs root and BPF: cargo xtask test --tier 3 --filter netpol_starts"]
fn a_thousand_pods_start_under_flood() {
    let count = std::env::var("KUBE_ROUTER_TEST_STARTS")
        .map_or(pace::choose(1_000, 20), |text| text.parse().expect("a number"));
    let field = Field::new("nps");
    let calm = Calm::watch();
    let (next, all) = (AtomicUsize::new(0), Mutex::new(Vec::new()));
    thread::scope(|scope| {
        for _ in 0..LANES {
            scope.spawn(|| {
                loop {
                    let number = next.fetch_add(1, Ordering::Relaxed);
                    if number >= count {
                        return;
                    }
                    let outcome = start_one(&field, &calm, number);
                    all.lock().unwrap().push(outcome);
                }
            });
        }
    });
    let all = all.into_inner().unwrap();
    let sent: u64 = field.floods.iter().map(|flood| flood.sent()).sum();
    tell("the chain", all.iter().map(|one| one.chain).collect());
    tell("our plugin", all.iter().map(|one| one.ours).collect());
    let (early, leaked) = all.iter().fold((0, 0), |sum, one| (sum.0 + one.early, sum.1 + one.leaked));
    let lost: Vec<&String> = all.iter().flat_map(|one| &one.lost).collect();
    let disturbed: Vec<&String> = all.iter().flat_map(|one| &one.disturbed).collect();
    all.iter().filter(|one| !one.evidence.is_empty()).for_each(|one| println!("{}", one.evidence));
    println!("{} first packets sent again by a machine that was disturbed: {disturbed:#?}", disturbed.len());
    println!("{} starts, {sent} SYNs sent, {early} arrived before ADD returned, {leaked} after", all.len());
    assert_eq!((all.len(), leaked), (count, 0));
    field.expect_flood_without_policy();
    assert!(lost.is_empty(), "{} first packets lost: {lost:#?}", lost.len());
    assert!(disturbed.len() <= count / 100, "not calm enough to tell: {disturbed:#?}");
}
