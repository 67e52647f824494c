//! Every promise of `kube_router_common::twin::cases`, and random packets: the programs do what the twin does.

use std::thread;

use kube_router::apply::bpf::now_s;
use kube_router_common::{
    config::{Config, note},
    event::EventHead,
    flow::{ALL_PODS, Flow},
    hooks::{Action, Hook},
    policy::PodGroups,
    reason::Reason,
    twin::{
        Packet, Tables,
        cases::{self, Family, cases},
        fuzz::{self, Random},
    },
};

use crate::{
    alone,
    rig::{DROP, PASS, REDIRECT, Ran, Rig, filler, namespace, same_flows},
};

pub fn in_a_namespace(body: impl FnOnce() + Send + 'static) {
    let _alone = alone();
    let thread = thread::spawn(|| {
        namespace();
        body();
    });
    thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
}

/// What the kernel should have said, given the twin's outcome.
fn check(ran: &Ran, packet: &Packet, outcome: &kube_router_common::twin::Outcome) -> Result<(), String> {
    let verdict = match (outcome.action, &outcome.answer) {
        (Action::Pass, _) => PASS,
        (Action::Reject, Some(_)) | (Action::Deliver, _) => REDIRECT,
        (Action::Drop | Action::Judge | Action::Pair | Action::Balance | Action::Requote, _) => DROP,
        (Action::Reject, None) => DROP,
    };
    if ran.verdict != verdict {
        return Err(format!("verdict {} instead of {verdict}", ran.verdict as i32));
    }
    let passed = outcome.requoted.as_ref().unwrap_or(&packet.bytes);
    if outcome.action == Action::Pass && &ran.bytes != passed {
        return Err(format!("passed as\n{:02x?} instead of\n{passed:02x?}", ran.bytes));
    }
    if let Some((_, bytes)) = &outcome.delivered
        && &ran.bytes != bytes
    {
        return Err(format!("delivered\n{:02x?} instead of\n{bytes:02x?}", ran.bytes));
    }
    if let Some(answer) = &outcome.answer {
        if &ran.bytes != answer {
            return Err(format!("answer\n{:02x?} instead of\n{answer:02x?}", ran.bytes));
        }
        if ran.mark != note::ANSWER_MARK {
            return Err(format!("mark {:#x}", ran.mark));
        }
    }
    Ok(())
}

/// A record says what was refused and holds the packet's beginning.
fn check_record(rig: &mut Rig, expected: Option<&EventHead>, packet: &Packet) -> Result<bool, String> {
    let records = rig.records();
    let Some((head, bytes)) = records.first() else { return Ok(false) };
    let timeless = EventHead { time_ns: 0, captured: 0, ..*head };
    let captured = packet.bytes.len().min(128);
    if Some(&timeless) != expected || head.time_ns == 0 || bytes != &packet.bytes[..captured] {
        return Err(format!("record {head:?} instead of {expected:?}"));
    }
    Ok(true)
}

#[test]
#[ignore = "needs root and the BPF object: cargo xtask test --tier 2 --filter every_promise"]
fn every_promise_is_kept() {
    in_a_namespace(|| {
        let (mut usual, mut tiny) = (Rig::new(None), Rig::new(Some(1)));
        let mut broken = Vec::new();
        let (mut count, mut answered, mut recorded) = (0, 0, 0);
        let (mut made, mut list) = (now_s(), cases(now_s()));
        for index in 0..list.len() {
            // On a slow machine flows of the list would be over before their turn.
            if now_s() > made + 5 {
                (made, list) = (now_s(), cases(now_s()));
            }
            let case = &list[index];
            let small = case.tables.max_flows <= 1;
            let rig = if small { &mut tiny } else { &mut usual };
            let mut start = case.tables.clone();
            if case.tables.max_flows == 0 {
                let (key, flow) = filler();
                start.flows.insert(key, flow);
                start.max_flows = 1;
            }
            let mut twin = start.clone();
            let outcome = twin.run(case.hook, &case.packet);
            rig.write(&start);
            let Some(mut ran) = rig.run(case.hook, &case.packet) else {
                println!("not run on this kernel: {}", case.says);
                continue;
            };
            if outcome.answer.is_some() && ran.verdict == DROP {
                // The allowance was used up.
                thread::sleep(std::time::Duration::from_millis(50));
                rig.write(&start);
                ran = rig.run(case.hook, &case.packet).expect("ran before");
            }
            let record = check_record(rig, twin.events.first(), &case.packet);
            let kept = check(&ran, &case.packet, &outcome)
                .and_then(|()| if outcome.action == case.action { Ok(()) } else { Err("the twin differs".into()) })
                .and_then(|()| same_flows(&rig.flows(), &twin.flows))
                .and_then(|()| {
                    let (kernel, twin) = (rig.frags(), twin.frags.clone());
                    if kernel == twin { Ok(()) } else { Err(format!("fragments {kernel:?} instead of {twin:?}")) }
                })
                .and_then(|()| {
                    let mut twin_has = twin.actives.clone();
                    twin_has.retain(|_, count| *count != 0);
                    let kernel = rig.actives(&twin.backends);
                    if kernel == twin_has { Ok(()) } else { Err(format!("active {kernel:?} instead of {twin_has:?}")) }
                })
                .and_then(|()| {
                    let (kernel, twin) = (rig.vip_counts(&twin.backends), twin.vip_counts.clone());
                    if kernel == twin { Ok(()) } else { Err(format!("counts {kernel:?} instead of {twin:?}")) }
                })
                .and_then(|()| {
                    let (kernel, twin) = (rig.drops(), twin.drops.clone());
                    if kernel == twin { Ok(()) } else { Err(format!("drops {kernel:?} instead of {twin:?}")) }
                })
                .and_then(|()| {
                    let same = twin.origins.iter().all(|(pod, origin)| rig.origin(*pod) == *origin);
                    if same { Ok(()) } else { Err("origins differ".to_owned()) }
                })
                .and_then(|()| record.map(|told| recorded += usize::from(told)))
                .and_then(|()| {
                    if outcome.action != Action::Pass {
                        return Ok(());
                    }
                    rig.write(&start);
                    let left = rig.note_after(case.hook, &case.packet);
                    if left == outcome.note { Ok(()) } else { Err(format!("note {left} instead of {}", outcome.note)) }
                });
            count += 1;
            answered += usize::from(outcome.answer.is_some());
            if let Err(error) = kept {
                broken.push(format!("{}: {error}", case.says));
            }
        }
        println!("{count} promises, {answered} answers compared byte by byte, {recorded} records");
        assert!(broken.is_empty(), "{} of {count}:\n{}", broken.len(), broken.join("\n"));
        assert!(count > 900 && recorded > 50 && answered > 50);
    });
}

/// Rows change the counters of rules.
#[test]
#[ignore = "needs root and the BPF object: cargo xtask test --tier 2 --filter rules_are_counted"]
fn rules_are_counted_once_for_a_flow() {
    in_a_namespace(|| {
        let mut rig = Rig::new(None);
        let tables = cases::tables(now_s());
        rig.write(&tables);
        let before = rig.dataplane.tables().rules.get(&23).expect("read").unwrap_or_default();
        let (from, to) = (cases::pod_1(Family::V4), cases::friend(Family::V4));
        let bytes = kube_router_common::twin::build::Build::tcp((from, 4000), (to, 80), 2).bytes();
        let packet = Packet { bytes, ifindex: cases::IF_1, note: 0, mark: 0, checksum: None };
        for _ in 0..5 {
            assert_eq!(rig.run(Hook::PodOut, &packet).expect("runs").verdict, PASS);
        }
        let after = rig.dataplane.tables().rules.get(&23).expect("read").unwrap_or_default();
        assert_eq!((after.flows - before.flows, after.bytes - before.bytes), (1, packet.bytes.len() as u64));
    });
}

/// Random and mutated packets through all hooks, on tables that live on: same verdicts, same answers, same flows.
#[test]
#[ignore = "needs root and the BPF object: cargo xtask test --tier 2 --filter random_packets"]
fn random_packets_are_judged_as_by_the_twin() {
    let count = fuzz::number("KUBE_ROUTER_FUZZ_PACKETS", 100_000);
    let seed = fuzz::seed();
    println!("{count} packets (KUBE_ROUTER_FUZZ_PACKETS)");
    in_a_namespace(move || {
        let mut rig = Rig::new(None);
        let mut random = Random::new(seed);
        let seeds: Vec<_> = cases(now_s()).into_iter().map(|case| (case.hook, case.packet)).collect();
        let mut reasons = std::collections::BTreeMap::<u8, u64>::new();
        let (mut passed, mut answers, mut most, mut refused) = (0_u64, 0_u64, 0, 0);
        let mut twin = Tables::default();
        for at in 0..count {
            if at % 5_000 == 0 {
                if at > 0 {
                    same_flows(&rig.flows(), &twin.flows).unwrap_or_else(|error| panic!("after {at}: {error}"));
                    assert_eq!(rig.drops(), twin.drops, "after {at}");
                    // A pod that had some, and has none any more.
                    twin.flow_counts.retain(|_, count| *count != 0);
                    assert_eq!(rig.flow_counts(), twin.flow_counts, "after {at}");
                    assert_eq!(twin.flow_counts.get(&ALL_PODS).copied().unwrap_or_default(), twin.flows.len() as i32);
                    most = most.max(twin.flows.len());
                }
                twin = cases::tables(now_s());
                let flags = [Config::NO_ANTISPOOF, Config::KEEP_ESTABLISHED, Config::ALL_FLOWS, Config::FAST]
                    .map(|flag| flag * (random.draw() as u32 & 1));
                // Most of the time no answers, as there is an allowance.
                let silent = if at % 20_000 == 0 { 0 } else { Config::SILENT };
                // Now and then room for a few only, which are shared.
                twin.config.max_flows = [0, 32][random.below(2)];
                twin.config.flags = flags.into_iter().sum::<u32>() | silent;
                rig.write(&twin);
            }
            if at % 500 == 499 {
                // Policies change under live flows, some of which they come to refuse.
                let groups = PodGroups {
                    ingress: cases::GROUP_1_IN * random.below(2) as u32,
                    egress: cases::GROUP_1_OUT * random.below(2) as u32,
                };
                twin.pods.insert(1, groups);
                twin.config.generation += 1;
                rig.dataplane.tables().pods.put(&1, &groups).expect("groups");
                rig.dataplane.tables().set_config(&twin.config).expect("config");
            }
            let (hook, packet) = random.packet(&seeds);
            twin.now_s = now_s();
            let Some(ran) = rig.run(hook, &packet) else { continue };
            let outcome = twin.run(hook, &packet);
            let exhausted = outcome.answer.is_some() && ran.verdict == DROP;
            if !exhausted {
                check(&ran, &packet, &outcome).unwrap_or_else(|error| {
                    panic!(
                        "packet {at} at {hook:?}: {error}\n{outcome:?}\n{packet:02x?}\n{:?}\n{:?}",
                        rig.drops(),
                        twin.drops
                    )
                });
            }
            passed += u64::from(outcome.action == Action::Pass);
            answers += u64::from(outcome.answer.is_some() && !exhausted);
            refused +=
                u64::from(at % 5_000 == 4_999) * twin.flows.values().filter(|f| f.is(Flow::REFUSED)).count() as u64;
            for head in twin.events.drain(..) {
                *reasons.entry(head.reason).or_default() += 1;
            }
        }
        let named: Vec<_> = reasons
            .iter()
            .map(|(reason, count)| format!("{} {count}", Reason::of(*reason).map_or("?", Reason::name)))
            .collect();
        println!(
            "{passed} passed, {answers} answered, up to {most} flows, {refused} flows refused later; refused: {}",
            named.join(", ")
        );
        assert!(count < 50_000 || (passed > count / 50 && reasons.len() > 8 && refused > 0), "{reasons:?}");
    });
}
