//! Promises about packets that follow each other, and about who began what they belong to.

use super::*;

/// Pod 1, and what was sent so far.
struct Talk {
    f: Family,
    tables: Tables,
}

impl Talk {
    fn new(f: Family, groups: PodGroups) -> Self {
        let mut tables = tables(1_000_000);
        tables.pods.insert(1, groups);
        Talk { f, tables }
    }

    fn run(&mut self, hook: Hook, build: Build) -> Action {
        let build = build.with(|b| {
            if hook == Hook::PodIn {
                (b.from_mac, b.to_mac) = (MAC_2, MAC_1);
            }
        });
        self.tables.run(hook, &Packet { bytes: build.bytes(), ifindex: IF_1, note: 0, mark: 0, checksum: None }).action
    }

    /// The stranger's word.
    fn heard(&mut self, protocol: u8) -> Action {
        self.run(Hook::PodIn, word((stranger(self.f), 4000), (pod_1(self.f), 7000), protocol))
    }

    /// The pod's.
    fn said(&mut self, protocol: u8) -> Action {
        self.run(Hook::PodOut, word((pod_1(self.f), 7000), (stranger(self.f), 4000), protocol))
    }

    /// As the agent does after every change.
    fn isolate(&mut self, groups: PodGroups) {
        self.tables.pods.insert(1, groups);
        self.tables.config.generation += 1;
    }
}

fn word(from: (Address, u16), to: (Address, u16), protocol: u8) -> Build {
    match protocol {
        protocol::TCP => Build::tcp(from, to, ACK),
        protocol::UDP => Build::udp(from, to, b"word"),
        _ => Build::sctp(from, to),
    }
}

const FREE: PodGroups = PodGroups { ingress: 0, egress: 0 };
const SERVED: PodGroups = PodGroups { ingress: GROUP_1_IN, egress: 0 };
const CALLING: PodGroups = PodGroups { ingress: 0, egress: GROUP_1_OUT };
/// Isolated, and the stranger is allowed.
const OPEN: u32 = 99;

/// A pod that a policy isolates, which lets the stranger in and out.
fn open(f: Family, groups: PodGroups) -> Talk {
    let mut talk = Talk::new(f, groups);
    let row = PolicyRow { verdict: PolicyRow::ALLOW, rule: 1 };
    talk.tables.policy.insert(PolicyKey { group: OPEN, class: STRANGER, ports: ANY }, row);
    talk
}

const PROTOCOLS: [u8; 3] = [protocol::TCP, protocol::UDP, protocol::SCTP];
const PASS: Action = Action::Pass;
const REJECT: Action = Action::Reject;

#[test]
fn who_is_refused_is_not_let_in_by_the_pods_next_word() {
    for (f, protocol) in Family::BOTH.into_iter().flat_map(|f| PROTOCOLS.map(|protocol| (f, protocol))) {
        let mut talk = open(f, PodGroups { ingress: OPEN, egress: 0 });
        assert_eq!([talk.heard(protocol), talk.said(protocol), talk.heard(protocol)], [PASS; 3]);
        talk.isolate(SERVED);
        for round in 0..50 {
            assert_eq!([talk.said(protocol), talk.heard(protocol)], [REJECT; 2], "{f:?} {protocol} {round}");
            talk.tables.now_s += 100;
        }
        assert_eq!(talk.tables.flows.len(), 1);
        talk.isolate(PodGroups { ingress: OPEN, egress: 0 });
        assert_eq!([talk.said(protocol), talk.heard(protocol)], [PASS; 2], "allowed again");
        let flow = talk.tables.flows.values().next();
        assert!(flow.is_some_and(|flow| !flow.is(Flow::REFUSED) && !flow.is(Flow::FROM_POD)), "the same one goes on");
    }
}

#[test]
fn whom_the_pod_may_not_call_does_not_answer_its_way_back() {
    for (f, protocol) in Family::BOTH.into_iter().flat_map(|f| PROTOCOLS.map(|protocol| (f, protocol))) {
        let mut talk = open(f, PodGroups { ingress: 0, egress: OPEN });
        assert_eq!([talk.said(protocol), talk.heard(protocol)], [PASS; 2]);
        talk.isolate(CALLING);
        assert_eq!([talk.said(protocol), talk.heard(protocol), talk.said(protocol)], [REJECT; 3], "{f:?} {protocol}");
    }
}

/// A SYN that nobody asked for does not make a connection another one: whoever still has it does not accept.
#[test]
fn a_connection_is_turned_by_who_accepts_another_and_by_nobody_else() {
    for f in Family::BOTH {
        let (own, far) = ((pod_1(f), 7000), (stranger(f), 4000));
        let began = |talk: &Talk| talk.tables.flows.values().map(|flow| flow.is(Flow::FROM_POD)).collect::<Vec<_>>();
        let started = || {
            let mut talk = open(f, PodGroups { ingress: 0, egress: OPEN });
            assert_eq!([talk.said(protocol::TCP), talk.heard(protocol::TCP)], [PASS; 2]);
            assert_eq!(talk.run(Hook::PodIn, Build::tcp(far, own, SYN)), PASS, "nothing forbids it");
            assert_eq!(began(&talk), [true], "the old one's entry stays");
            talk
        };
        let mut talk = started();
        talk.isolate(CALLING);
        assert_eq!([talk.heard(protocol::TCP), talk.said(protocol::TCP)], [REJECT; 2], "judged as what it was");
        assert_eq!(talk.run(Hook::PodIn, Build::tcp(far, own, SYN)), PASS, "again");
        assert_eq!([talk.said(protocol::TCP), talk.heard(protocol::TCP)], [REJECT; 2], "and it stays refused");
        // The pod's end is gone, and somebody listens.
        assert_eq!(talk.run(Hook::PodOut, Build::tcp(own, far, SYN | ACK)), PASS);
        assert_eq!((talk.heard(protocol::TCP), talk.said(protocol::TCP), began(&talk)), (PASS, PASS, vec![false]));
        let mut talk = started();
        assert_eq!(talk.run(Hook::PodOut, Build::tcp(own, far, SYN | ACK)), PASS);
        talk.isolate(SERVED);
        assert_eq!([talk.heard(protocol::TCP), talk.said(protocol::TCP)], [REJECT; 2], "the other's by now");
    }
}

#[test]
fn a_syn_in_a_forbidden_connection_does_not_end_the_refusal() {
    for f in Family::BOTH {
        let mut talk = open(f, PodGroups { ingress: OPEN, egress: 0 });
        assert_eq!([talk.heard(protocol::TCP), talk.said(protocol::TCP)], [PASS; 2]);
        talk.isolate(SERVED);
        assert_eq!(talk.run(Hook::PodIn, Build::tcp((stranger(f), 4000), (pod_1(f), 7000), SYN)), REJECT);
        assert_eq!([talk.said(protocol::TCP), talk.heard(protocol::TCP)], [REJECT; 2]);
    }
}

/// Who stands behind the node's address only its own packets tell; the pod's word must not vouch for it.
#[test]
fn a_masqueraded_peer_is_judged_by_its_own_packets() {
    for f in Family::BOTH {
        let (own, through) = ((pod_1(f), 80), (node(f), 4000));
        let word = |talk: &mut Talk, class: u32| {
            let bytes = Build::tcp(through, own, ACK).with(|b| (b.from_mac, b.to_mac) = (MAC_2, MAC_1)).bytes();
            let note = note::of_class(class);
            let packet = Packet { bytes, ifindex: IF_1, note, mark: 0, checksum: None };
            talk.tables.run(Hook::PodIn, &packet).action
        };
        // Without an entry, and somebody listens.
        let mut talk = Talk::new(f, SERVED);
        talk.tables.listeners.insert((IF_1, own.0, own.1));
        assert_eq!(talk.run(Hook::PodOut, Build::tcp(own, through, ACK)), PASS);
        assert_eq!((word(&mut talk, STRANGER), word(&mut talk, FRIEND)), (REJECT, PASS));
        // With one; the peer's class is another since the policies changed.
        talk.isolate(SERVED);
        assert_eq!(talk.run(Hook::PodOut, Build::tcp(own, through, ACK)), PASS);
        assert_eq!(word(&mut talk, STRANGER), REJECT);
        assert_eq!(talk.run(Hook::PodOut, Build::tcp(own, through, ACK)), REJECT, "refused by now");
    }
}

/// An address of a service may lead to somebody else with the next packet.
#[test]
fn what_a_pod_sends_to_itself_through_a_service_is_known_behind_it() {
    for f in Family::BOTH {
        let mut talk = Talk::new(f, PodGroups { ingress: GROUP_1_IN, egress: GROUP_1_OUT });
        let (own, front) = ((pod_1(f), 8080), (service(f), 99));
        let run = |talk: &mut Talk, hook: Hook, build: Build, note: u16| {
            let bytes = build
                .with(|b| {
                    if hook == Hook::PodIn {
                        b.to_mac = MAC_1
                    }
                })
                .bytes();
            talk.tables.run(hook, &Packet { bytes, ifindex: IF_1, note, mark: 0, checksum: None })
        };
        let came = run(&mut talk, Hook::PodIn, Build::udp(front, own, b"to itself"), 1);
        assert_eq!(came.action, PASS);
        for _ in 0..2 {
            let left = run(&mut talk, Hook::PodOut, Build::udp(own, front, b"or to whom"), 0);
            assert_eq!((left.action, left.note), (PASS, 1), "who sent it is told");
            talk.tables.config.generation += 1;
        }
    }
}

/// Egress is judged behind the load balancer, so what is to live on must be known there, too.
#[test]
fn a_free_pods_flow_to_a_service_lives_on_if_it_is_to() {
    for (f, keep) in Family::BOTH.into_iter().flat_map(|f| [(f, true), (f, false)]) {
        let mut talk = Talk::new(f, FREE);
        talk.tables.config.flags = Config::ALL_FLOWS | if keep { Config::KEEP_ESTABLISHED } else { 0 };
        let behind = |talk: &mut Talk| {
            let bytes = Build::tcp((pod_1(f), 4000), (pod_2(f), 81), ACK).with(|b| b.to_mac = MAC_2).bytes();
            talk.tables.run(Hook::PodIn, &Packet { bytes, ifindex: IF_2, note: 1, mark: 0, checksum: None }).action
        };
        assert_eq!(behind(&mut talk), PASS);
        talk.isolate(CALLING);
        assert_eq!(behind(&mut talk), if keep { PASS } else { REJECT });
    }
}

#[test]
fn no_rule_decides_on_what_a_pod_sends_to_itself() {
    for f in Family::BOTH {
        let mut talk = Talk::new(f, SERVED);
        let deny = PolicyRow { verdict: PolicyRow::DENY, rule: 5 };
        talk.tables.policy.insert(PolicyKey { group: GROUP_1_IN, class: ANY, ports: ANY }, deny);
        let bytes = Build::tcp((pod_1(f), 4000), (pod_1(f), 80), SYN).with(|b| b.to_mac = MAC_1).bytes();
        let counts =
            |tables: &Tables| tables.rules.iter().map(|(rule, count)| (*rule, count.flows)).collect::<Vec<_>>();
        for (note, action, counted) in [(1, PASS, (0, 1)), (2, REJECT, (5, 1))] {
            let mut tables = talk.tables.clone();
            let packet = Packet { bytes: bytes.clone(), ifindex: IF_1, note, mark: 0, checksum: None };
            assert_eq!((tables.run(Hook::PodIn, &packet).action, counts(&tables)), (action, vec![counted]));
        }
    }
}

#[test]
fn a_refused_flow_ends_when_the_refused_one_is_silent() {
    for f in Family::BOTH {
        let mut talk = open(f, PodGroups { ingress: OPEN, egress: 0 });
        assert_eq!([talk.heard(protocol::UDP), talk.said(protocol::UDP)], [PASS; 2]);
        talk.isolate(SERVED);
        assert_eq!(talk.heard(protocol::UDP), REJECT);
        // It has nothing to say, and the pod has.
        for _ in 0..12 {
            talk.tables.now_s += 10;
            assert_eq!(talk.said(protocol::UDP), REJECT);
        }
        talk.tables.now_s += 10;
        assert_eq!(
            [talk.said(protocol::UDP), talk.heard(protocol::UDP)],
            [PASS; 2],
            "the pod's own flow, and its answer"
        );
    }
}

/// The programs ask the kernel; here it is a table.
#[test]
fn who_listens_did_not_begin_the_connection() {
    for f in Family::BOTH {
        let run = |far: Address, prepare: &dyn Fn(&mut Tables), flags: u8| {
            let mut talk = Talk::new(f, SERVED);
            talk.tables.listeners.insert((IF_1, pod_1(f), 80));
            prepare(&mut talk.tables);
            let action = talk.run(Hook::PodOut, Build::tcp((pod_1(f), 80), (far, 4000), flags));
            (action, talk.tables.flows.values().map(|flow| flow.is(Flow::FROM_POD)).collect::<Vec<_>>())
        };
        let as_is = |_: &mut Tables| {};
        assert_eq!(run(stranger(f), &as_is, ACK), (REJECT, vec![]), "the peer may not talk to it");
        assert_eq!(run(friend(f), &as_is, ACK), (PASS, vec![false]), "it may, and it began");
        assert_eq!(run(stranger(f), &as_is, SYN), (PASS, vec![true]), "one of its own, from that port");
        let learning = |t: &mut Tables| t.config.learn_until_s = t.now_s + 60;
        assert_eq!(run(stranger(f), &learning, ACK), (PASS, vec![true]), "not while we learn");
        let elsewhere = |t: &mut Tables| t.listeners.clear();
        assert_eq!(run(stranger(f), &elsewhere, ACK), (PASS, vec![true]), "nobody listens");
        let keep = |t: &mut Tables| t.config.flags = Config::KEEP_ESTABLISHED;
        assert_eq!(run(stranger(f), &keep, ACK), (PASS, vec![true]), "connections are to live on");
        let isolated = |t: &mut Tables| {
            t.pods.insert(1, PodGroups { ingress: GROUP_1_IN, egress: GROUP_1_OUT });
        };
        assert_eq!(run(friend(f), &isolated, ACK), (REJECT, vec![]), "who listens may not say more for it");
    }
}

#[test]
fn who_has_a_socket_and_does_not_listen_began_the_connection() {
    for f in Family::BOTH {
        let run = |far: Address, prepare: &dyn Fn(&mut Tables), flags: u8| {
            let mut talk = Talk::new(f, CALLING);
            talk.tables.clients.insert((IF_1, pod_1(f), 4000));
            prepare(&mut talk.tables);
            let action = talk.run(Hook::PodIn, Build::tcp((far, 80), (pod_1(f), 4000), flags));
            (action, talk.tables.flows.values().map(|flow| flow.is(Flow::FROM_POD)).collect::<Vec<_>>())
        };
        let as_is = |_: &mut Tables| {};
        assert_eq!(run(stranger(f), &as_is, ACK), (REJECT, vec![]), "the pod may not call it");
        assert_eq!(run(friend(f), &as_is, ACK), (PASS, vec![true]), "it may, and it did");
        assert_eq!(run(stranger(f), &as_is, SYN), (PASS, vec![false]), "one of the peer's own");
        let virtual_machine = |t: &mut Tables| t.clients.clear();
        assert_eq!(run(stranger(f), &virtual_machine, ACK), (PASS, vec![false]), "no socket tells");
        let listening = |t: &mut Tables| {
            t.listeners.insert((IF_1, pod_1(f), 4000));
        };
        assert_eq!(run(stranger(f), &listening, ACK), (PASS, vec![false]), "of many that it serves");
    }
}

#[test]
fn connections_of_a_free_pod_live_on_only_if_they_are_to() {
    for (f, protocol) in Family::BOTH.into_iter().flat_map(|f| PROTOCOLS.map(|protocol| (f, protocol))) {
        for served in [true, false] {
            for keep in [true, false] {
                let mut talk = Talk::new(f, FREE);
                talk.tables.config.flags = Config::ALL_FLOWS | if keep { Config::KEEP_ESTABLISHED } else { 0 };
                let first = if served { talk.heard(protocol) } else { talk.said(protocol) };
                assert_eq!([first, talk.said(protocol), talk.heard(protocol)], [PASS; 3]);
                talk.isolate(PodGroups { ingress: GROUP_1_IN, egress: GROUP_1_OUT });
                let then = if keep { PASS } else { REJECT };
                assert_eq!([talk.said(protocol), talk.heard(protocol)], [then; 2], "{f:?} {protocol} {served} {keep}");
                // Isolated in the direction of the first word only: the other side's word is not a way around.
                talk.isolate(FREE);
                talk.tables.flows.clear();
                let first = if served { talk.heard(protocol) } else { talk.said(protocol) };
                assert_eq!([first, talk.said(protocol), talk.heard(protocol)], [PASS; 3]);
                talk.isolate(if served { SERVED } else { CALLING });
                let words = [talk.said(protocol), talk.heard(protocol), talk.said(protocol)];
                assert_eq!(words, [then; 3], "{f:?} {protocol} {served} {keep}");
            }
        }
    }
}
