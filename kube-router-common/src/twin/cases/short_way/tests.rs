//! The short way between two pods of a node: what passes is what passes on the long way, and both entries know the same.

use std::collections::BTreeMap;

use super::{super::*, stand_at};
use crate::{flow::ALL_PODS, twin::fuzz};

/// Two pods of one node, and what was sent between them.
struct Pair {
    f: Family,
    tables: Tables,
}

/// A group that lets the class of each pod in or out at port 80, and one that lets everything.
const SOME: u32 = 71;
const ALL: u32 = 72;
const NONE: u32 = 73;

impl Pair {
    fn new(f: Family, fast: bool) -> Self {
        let mut tables = tables(1_000_000);
        for pod in [1, 2] {
            tables.pods.insert(pod, PodGroups::default());
        }
        for class in [6, 7] {
            let row = PolicyRow { verdict: PolicyRow::ALLOW, rule: 30 + class };
            tables.policy.insert(PolicyKey { group: SOME, class, ports: WEB }, row);
        }
        tables.policy.insert(PolicyKey { group: ALL, class: ANY, ports: ANY }, PolicyRow { verdict: 1, rule: 40 });
        tables.config.flags = Config::ALL_FLOWS | if fast { Config::FAST } else { 0 };
        Pair { f, tables }
    }

    fn isolate(&mut self, pod: u32, ingress: u32, egress: u32) {
        self.tables.pods.insert(pod, PodGroups { ingress, egress });
        self.tables.config.generation += 1;
    }

    fn end(&self, pod: u32, port: u16) -> (Address, u16) {
        (if pod == 1 { pod_1(self.f) } else { pod_2(self.f) }, port)
    }

    /// From one pod to the other, whichever way: how it got there, or who refused it.
    fn send(&mut self, from: u32, build: Build) -> Action {
        let (here, there) = if from == 1 { (IF_1, IF_2) } else { (IF_2, IF_1) };
        let macs = if from == 1 { (MAC_1, MAC_2) } else { (MAC_2, MAC_1) };
        let build = build.with(|b| (b.from_mac, b.to_mac) = macs);
        let packet = Packet { bytes: build.bytes(), ifindex: here, note: 0, mark: 0, checksum: None };
        let before = self.tables.flows.clone();
        let outcome = self.tables.run(Hook::PodOut, &packet);
        match outcome.action {
            Action::Pass => {
                let sent = key_of(&build);
                let packet = Packet { ifindex: there, note: outcome.note, ..packet };
                let action = self.tables.run(Hook::PodIn, &packet).action;
                if action != Action::Pass {
                    // The long way leaves an entry of a flow that the other pod refuses: its next word would be a reply.
                    let own = |flow: &Flow| flow.ifindex == here;
                    self.tables.flows.retain(|_, flow| !own(flow));
                    self.tables.flows.extend(before.into_iter().filter(|(_, flow)| own(flow)));
                    self.tables.count_flows();
                } else if !Tcp::opens(build.transport[13 % build.transport.len()]) {
                    let flow = self.tables.flows.get(&sent.turned(&Flow::default()));
                    assert!(flow.is_none_or(|flow| !flow.is(Flow::FAST)), "a half that nobody sends to: {flow:?}");
                }
                action
            }
            Action::Deliver => {
                assert_eq!(outcome.delivered, Some((there, packet.bytes)));
                Action::Deliver
            }
            action => action,
        }
    }

    fn tcp(&mut self, from: u32, flags: u8) -> Action {
        let (client, server) = (self.end(2, 4000), self.end(1, 80));
        let (source, destination) = if from == 2 { (client, server) } else { (server, client) };
        self.send(from, Build::tcp(source, destination, flags))
    }

    /// May this pod call the other one there?
    fn allows(&self, caller: u32, port: u16) -> bool {
        let (from, to) = (self.tables.pods[&caller], self.tables.pods[&(3 - caller)]);
        [from.egress, to.ingress].into_iter().all(|group| match group {
            0 | ALL => true,
            SOME => port == 80,
            _ => false,
        })
    }

    /// What both entries say must be the same. Returns how many stand alone.
    #[track_caller]
    fn expect_twins(&self) -> usize {
        let mut alone = 0;
        for (key, flow) in self.tables.flows.iter().filter(|(_, flow)| flow.is(Flow::FAST)) {
            let Some(other) = self.tables.flows.get(&key.turned(flow)).filter(|other| other.is(Flow::FAST)) else {
                alone += 1;
                continue;
            };
            assert_eq!(flow.is(Flow::REPLIED), other.is(Flow::REPLIED), "{flow:?} {other:?}");
            assert_eq!((flow.state, flow.to_ifindex, flow.ifindex), (other.state, other.ifindex, other.to_ifindex));
            assert_ne!(flow.is(Flow::FROM_POD), other.is(Flow::FROM_POD));
        }
        let mut counts = BTreeMap::new();
        for pod in self.tables.flows.values().flat_map(|flow| [flow.pod, ALL_PODS]) {
            *counts.entry(pod).or_insert(0) += 1;
        }
        for (pod, count) in &self.tables.flow_counts {
            assert_eq!(*count, counts.get(pod).copied().unwrap_or(0), "pod {pod}");
        }
        alone
    }
}

/// The sender's entry.
fn key_of(build: &Build) -> FlowKey {
    let port = |at: usize| u16::from_be_bytes([build.transport[at], build.transport[at + 1]]);
    key((build.from, port(0)), (build.to, port(2)), build.protocol)
}

const FIN_ACK: u8 = Tcp::FIN | Tcp::ACK;
const SYN_ACK: u8 = Tcp::SYN | Tcp::ACK;
const DELIVER: Action = Action::Deliver;
const REJECT: Action = Action::Reject;

#[test]
fn a_connection_opens_and_closes_on_the_short_way() {
    for f in Family::BOTH {
        let mut pair = Pair::new(f, true);
        pair.isolate(1, SOME, NONE);
        let mut states = Vec::new();
        for (from, flags) in [
            (2, SYN),
            (2, SYN),
            (1, SYN_ACK),
            (2, ACK),
            (1, ACK),
            (2, ACK),
            (1, FIN_ACK),
            (2, ACK),
            (2, FIN_ACK),
            (1, ACK),
        ] {
            assert_eq!(pair.tcp(from, flags), DELIVER, "{f:?} {from} {flags:#x}");
            assert_eq!(pair.expect_twins(), 0);
            states.push(pair.tables.flows.values().next().map_or("gone", |flow| Tcp::name(flow.state)));
        }
        assert_eq!(pair.tables.flows.len(), 2);
        let wanted = [
            "syn-sent",
            "syn-sent",
            "syn-recv",
            "established",
            "established",
            "established",
            "fin-wait",
            "close-wait",
            "last-ack",
            "time-wait",
        ];
        assert_eq!(states, wanted);
        assert_eq!(pair.tables.rules[&36].flows, 1, "the rule that let it in");
    }
}

#[test]
fn the_other_pods_policy_is_asked_at_the_first_packet() {
    for f in Family::BOTH {
        let mut pair = Pair::new(f, true);
        pair.isolate(1, NONE, 0);
        assert_eq!(pair.tcp(2, SYN), REJECT);
        assert!(pair.tables.flows.is_empty());
        let counted: Vec<_> = pair.tables.drops.keys().map(|key| (key.pod, key.direction, key.reason)).collect();
        assert_eq!(counted, [(1, Direction::Ingress as u8, Reason::Denied as u8)]);
        let told: Vec<_> = pair.tables.events.iter().map(|event| (event.pod, event.direction)).collect();
        assert_eq!(told, [(1, Direction::Ingress as u8)]);
    }
}

#[test]
fn what_is_forbidden_ends_and_goes_on_when_it_is_allowed() {
    for (f, isolated) in Family::BOTH.into_iter().flat_map(|f| [1, 2].map(|pod| (f, pod))) {
        let mut pair = Pair::new(f, true);
        for (from, flags) in [(2, SYN), (1, SYN_ACK), (2, ACK)] {
            assert_eq!(pair.tcp(from, flags), DELIVER);
        }
        let (ingress, egress) = if isolated == 1 { (NONE, 0) } else { (0, NONE) };
        pair.isolate(isolated, ingress, egress);
        for _ in 0..3 {
            assert_eq!([pair.tcp(1, ACK), pair.tcp(2, ACK)], [REJECT; 2], "{f:?} {isolated}");
        }
        pair.isolate(isolated, 0, 0);
        assert_eq!([pair.tcp(1, ACK), pair.tcp(2, ACK)], [DELIVER; 2], "{f:?} {isolated}");
        assert_eq!(pair.expect_twins(), 0);
    }
}

/// Whoever took the other half away: the replies would come by the stack, and conntrack would see half of a connection.
#[test]
fn a_half_that_is_left_alone_gives_up_the_short_way() {
    for f in Family::BOTH {
        let mut pair = Pair::new(f, true);
        for (from, flags) in [(2, SYN), (1, SYN_ACK), (2, ACK)] {
            assert_eq!(pair.tcp(from, flags), DELIVER);
        }
        let server = key(pair.end(1, 80), pair.end(2, 4000), protocol::TCP);
        assert!(pair.tables.flows.remove(&server).is_some());
        pair.tables.count_flows();
        assert_eq!(pair.expect_twins(), 1);
        assert_eq!(pair.tcp(2, ACK), DELIVER, "{f:?}: it does not know yet");
        assert_eq!([pair.tcp(1, ACK), pair.tcp(2, ACK), pair.tcp(1, ACK)], [Action::Pass; 3], "{f:?}");
        assert_eq!(pair.expect_twins(), 0);
    }
}

#[test]
fn what_comes_to_stand_at_an_interface_is_met_by_both_directions() {
    for (f, ifindex) in Family::BOTH.into_iter().flat_map(|f| [IF_1, IF_2].map(|ifindex| (f, ifindex))) {
        let mut pair = Pair::new(f, true);
        pair.isolate(1, SOME, NONE);
        for (from, flags) in [(2, SYN), (1, SYN_ACK), (2, ACK)] {
            assert_eq!(pair.tcp(from, flags), DELIVER);
        }
        stand_at(&mut pair.tables, ifindex);
        // One direction learns it from the other's packets.
        for from in [1, 2, 1] {
            pair.tcp(from, ACK);
        }
        assert_eq!([pair.tcp(1, ACK), pair.tcp(2, ACK)], [Action::Pass; 2], "{f:?} {ifindex}");
        assert_eq!(pair.expect_twins(), 0);
    }
}

#[test]
fn what_has_begun_on_the_stack_stays_there() {
    for f in Family::BOTH {
        let mut pair = Pair::new(f, false);
        for (from, flags) in [(2, SYN), (1, SYN_ACK), (2, ACK)] {
            assert_eq!(pair.tcp(from, flags), Action::Pass);
        }
        pair.tables.config.flags |= Config::FAST;
        assert_eq!([pair.tcp(2, ACK), pair.tcp(1, ACK), pair.tcp(2, SYN)], [Action::Pass; 3]);
        // Nor does a connection that has no entry at all.
        pair.tables.flows.clear();
        pair.tables.count_flows();
        assert_eq!([pair.tcp(2, ACK), pair.tcp(1, ACK)], [Action::Pass; 2]);
    }
}

#[test]
fn a_flow_is_over_when_both_directions_are() {
    for f in Family::BOTH {
        let mut pair = Pair::new(f, true);
        pair.isolate(1, SOME, NONE);
        assert_eq!([pair.tcp(2, SYN), pair.tcp(1, SYN_ACK), pair.tcp(2, ACK)], [DELIVER; 3]);
        for _ in 0..10 {
            pair.tables.now_s += 400_000;
            assert_eq!(pair.tcp(2, ACK), DELIVER);
        }
        // Without its entry the reply would be refused.
        assert_eq!(pair.tcp(1, ACK), DELIVER);
        pair.tables.now_s += 432_001;
        assert_eq!(pair.tcp(1, ACK), REJECT);
    }
}

#[test]
fn a_pod_that_is_gone_gets_nothing_the_short_way() {
    for f in Family::BOTH {
        let mut pair = Pair::new(f, true);
        assert_eq!([pair.tcp(2, SYN), pair.tcp(1, SYN_ACK)], [DELIVER; 2]);
        pair.tables.ifaces.remove(&IF_1);
        pair.tables.endpoints.remove(&pod_1(f));
        let here = pair.end(2, 4000);
        let bytes = Build::tcp(here, pair.end(1, 80), ACK).with(|b| (b.from_mac, b.to_mac) = (MAC_2, MAC_1)).bytes();
        let packet = Packet { bytes, ifindex: IF_2, note: 0, mark: 0, checksum: None };
        assert_eq!(pair.tables.run(Hook::PodOut, &packet).action, Action::Pass);
    }
}

#[test]
fn without_a_place_for_both_entries_there_is_none() {
    for f in Family::BOTH {
        for most in [1, 2, 3, 4] {
            let mut pair = Pair::new(f, true);
            pair.isolate(1, SOME, NONE);
            pair.tables.config.max_flows = most;
            pair.tables.max_flows = most as usize;
            let action = pair.tcp(2, SYN);
            assert_eq!(action == DELIVER, pair.tables.flows.values().filter(|flow| flow.is(Flow::FAST)).count() == 2);
            assert_eq!(action == DELIVER, most == 4, "{most}: {action:?}");
            assert_eq!(pair.expect_twins(), 0);
        }
    }
}

/// Random packets, changes of policy and pauses. While policies stay, what arrives on the short way is what arrives on the long
/// one. After a change they may differ about what was refused before, which the short way remembers for both ends; but it
/// carries nothing that policies allow neither as a call nor as a reply.
#[test]
fn the_short_way_decides_as_the_long_one() {
    let mut random = fuzz::Random::new(fuzz::seed());
    let rounds = fuzz::number("KUBE_ROUTER_FUZZ_ROUNDS", 2_000);
    let (mut ways, mut alone) = (BTreeMap::new(), 0);
    for round in 0..rounds {
        let f = Family::BOTH[random.below(2)];
        let (mut short, mut long) = (Pair::new(f, true), Pair::new(f, false));
        let mut told = Vec::new();
        let stays = round % 2 == 0;
        for step in 0..40 {
            match random.below(10) {
                0 if stays && step > 3 => {}
                choice if choice == 0 || (stays && step <= 3) => {
                    let groups = [0, SOME, ALL, NONE];
                    let (pod, ingress, egress) =
                        (1 + random.below(2) as u32, groups[random.below(4)], groups[random.below(4)]);
                    told.push(std::format!("pod {pod}: ingress {ingress}, egress {egress}"));
                    short.isolate(pod, ingress, egress);
                    long.isolate(pod, ingress, egress);
                }
                1 => {
                    let pause = [1, 11, 31, 61, 121][random.below(5)];
                    told.push(std::format!("{pause} s"));
                    short.tables.now_s += pause;
                    long.tables.now_s += pause;
                }
                _ => {
                    let from = 1 + random.below(2) as u32;
                    let ports = ([4000, 4001][random.below(2)], [80, 81][random.below(2)]);
                    let flags = [SYN, SYN_ACK, ACK, ACK, ACK, FIN_ACK, Tcp::RST][random.below(7)];
                    let is_udp = random.below(2) == 0;
                    let send = |pair: &mut Pair| {
                        let (one, two) = if from == 2 {
                            (pair.end(2, ports.0), pair.end(1, ports.1))
                        } else {
                            (pair.end(1, ports.1), pair.end(2, ports.0))
                        };
                        let build = if is_udp { Build::udp(one, two, b"word") } else { Build::tcp(one, two, flags) };
                        pair.send(from, build)
                    };
                    told.push(std::format!("from {from}, {ports:?}, {}", if is_udp { 0 } else { flags }));
                    let (action, other) = (send(&mut short), send(&mut long));
                    *ways.entry(std::format!("{action:?}")).or_insert(0) += 1;
                    let may = short.allows(2, ports.1) || short.allows(1, ports.0);
                    let arrives = |action| matches!(action, Action::Pass | DELIVER);
                    assert!(action != DELIVER || may, "round {round}: {action:?} after {told:#?}");
                    assert!(
                        !stays || arrives(action) == arrives(other),
                        "round {round}: {action:?}, {other:?} after {told:#?}"
                    );
                }
            }
            alone += short.expect_twins();
        }
    }
    std::println!("{ways:?}, halves alone {alone}");
    assert!(ways["Deliver"] > 1_000 && ways["Reject"] > 1_000 && ways["Pass"] > 1_000, "{ways:?}");
}
