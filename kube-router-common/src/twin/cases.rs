//! What the programs promise, as a list: a sentence, tables, a packet, what is to come of it. The twin is held to it
//! wherever tests run, the programs where there is a kernel.

mod balanced;
mod crafted;
mod flows;
mod headers;
mod paths;
mod pods;
mod quoted;
#[cfg(test)]
mod sequences;
mod short_way;

use std::{string::String, vec, vec::Vec};

use super::{
    Packet, Tables,
    build::{Build, arp},
};
use crate::{
    config::{Config, Iface, Origin, note},
    flow::{Flow, FlowKey, Tcp},
    hooks::{Action, Hook},
    packet::{icmp, protocol},
    policy::{
        ANY, Address, CidrKey, Endpoint, PORTLESS, Peer, PodGroups, PolicyKey, PolicyRow, Service, ServiceKey,
        port_index,
    },
    reason::{Direction, Reason},
};

pub struct Case {
    pub says: String,
    /// Of the crafted packets; else empty.
    pub class: &'static str,
    pub tables: Tables,
    pub hook: Hook,
    pub packet: Packet,
    pub action: Action,
    /// The one drop counter that moves.
    pub counted: Option<(Direction, Reason)>,
    /// After the hook; `None`: not looked at.
    pub note: Option<u16>,
    /// Flows there are afterwards; `None`: not looked at.
    pub flows: Option<usize>,
    /// Of [`Action::Deliver`]: through which interface, to which hardware address.
    pub delivered: Option<(u32, [u8; 6])>,
    /// Of a packet that passes as another one: from the network header on.
    pub requoted: Option<Vec<u8>>,
    /// Where an answer is due, it is checked by those who know how; here only whether there is one.
    pub answered: bool,
}

/// The two families of the same addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Family {
    V4,
    V6,
}

impl Family {
    pub const BOTH: [Family; 2] = [Family::V4, Family::V6];

    /// 10.N.0.H or fd00:N::H.
    pub fn address(self, net: u8, host: u8) -> Address {
        match self {
            Family::V4 => Address::from_v4([10, net, 0, host]),
            Family::V6 => {
                let mut bytes = [0; 16];
                (bytes[0], bytes[3], bytes[15]) = (0xfd, net, host);
                Address(bytes)
            }
        }
    }

    fn of(address: &Address) -> Family {
        if address.is_v4() { Family::V4 } else { Family::V6 }
    }
}

/// Interfaces: pod 1, pod 2, an uplink, a pod that is not published.
pub const IF_1: u32 = 101;
pub const IF_2: u32 = 102;
pub const IF_UPLINK: u32 = 103;
pub const IF_NEW: u32 = 104;
pub const MAC_1: [u8; 6] = [2, 0, 0, 0, 0, 1];
pub const MAC_2: [u8; 6] = [2, 0, 0, 0, 0, 2];

/// Classes: the friend is allowed, others are not; the block is a prefix.
pub const FRIEND: u32 = 3;
pub const STRANGER: u32 = 4;
pub const BLOCK: u32 = 5;
/// Port class of port 80 of TCP, UDP and SCTP.
pub const WEB: u32 = 2;
pub const GROUP_1_IN: u32 = 11;
pub const GROUP_1_OUT: u32 = 12;
pub const GENERATION: u32 = 9;

/// Addresses by role.
pub fn pod_1(f: Family) -> Address {
    f.address(1, 1)
}
pub fn pod_2(f: Family) -> Address {
    f.address(1, 2)
}
pub fn friend(f: Family) -> Address {
    f.address(2, 1)
}
pub fn stranger(f: Family) -> Address {
    f.address(2, 2)
}
pub fn in_block(f: Family) -> Address {
    f.address(3, 77)
}
pub fn node(f: Family) -> Address {
    f.address(9, 1)
}
pub fn service(f: Family) -> Address {
    f.address(8, 1)
}
pub fn nobody(f: Family) -> Address {
    f.address(7, 1)
}

/// A pod that is known, where nothing stands in the way.
const THERE: u16 = Iface::PUBLISHED | Iface::DIRECT;

/// Pod 1 is isolated both ways: port 80 of the friend, anything of the block. Pod 2 is not isolated and is class 6.
pub fn tables(now_s: u32) -> Tables {
    let mut t = Tables { now_s, ..Tables::default() };
    t.config = Config { generation: GENERATION, ..Config::default() };
    t.pods.insert(1, PodGroups { ingress: GROUP_1_IN, egress: GROUP_1_OUT });
    for (ifindex, mac, pod, flags) in [(IF_1, MAC_1, 1, THERE), (IF_2, MAC_2, 2, THERE), (IF_NEW, [0; 6], 0, 0)] {
        t.ifaces.insert(ifindex, Iface { mac, flags, pod, netns: 0 });
    }
    for f in Family::BOTH {
        t.endpoints.insert(pod_1(f), Endpoint { pod: 1, ifindex: IF_1, mac: MAC_1, pad: [0; 2] });
        t.endpoints.insert(pod_2(f), Endpoint { pod: 2, ifindex: IF_2, mac: MAC_2, pad: [0; 2] });
        for (address, class, flags) in [
            (friend(f), FRIEND, Peer::REMOTE),
            (stranger(f), STRANGER, Peer::REMOTE),
            (pod_1(f), 7, 0),
            (pod_2(f), 6, 0),
            (node(f), 8, Peer::NODE),
            (service(f), 1, Peer::SERVICE),
        ] {
            t.peers.insert(address, Peer { class, flags });
        }
        let key = ServiceKey { address: service(f), port: 443, protocol: protocol::TCP, pad: 0 };
        t.services.insert(key, Service::default());
        let v4 = f == Family::V4;
        let length = if v4 { 32 + 96 + 16 } else { 32 + 32 };
        let key = CidrKey { length, family: CidrKey::family_of(v4), address: f.address(3, 0) };
        t.cidrs.insert(key, Peer { class: BLOCK, flags: 0 });
    }
    for protocol in [protocol::TCP, protocol::UDP, protocol::SCTP] {
        if let Some(index) = port_index(protocol, 80) {
            t.ports.insert(index, WEB);
        }
    }
    for (group, class, ports, rule) in [
        (GROUP_1_IN, FRIEND, WEB, 21),
        (GROUP_1_IN, BLOCK, ANY, 22),
        (GROUP_1_OUT, FRIEND, WEB, 23),
        (GROUP_1_OUT, BLOCK, ANY, 24),
    ] {
        let row = PolicyRow { verdict: PolicyRow::ALLOW, rule };
        t.policy.insert(PolicyKey { group, class, ports }, row);
    }
    t
}

/// Default deny, at the interface of the pod that is not published.
fn shut(t: &mut Tables) {
    t.ifaces.insert(IF_NEW, Iface { flags: Iface::DEFAULT_DENY, ..Iface::default() });
}

fn key(local: (Address, u16), peer: (Address, u16), protocol: u8) -> FlowKey {
    FlowKey { local: local.0, peer: peer.0, local_port: local.1, peer_port: peer.1, protocol, kind: 0, pad: 0 }
}

/// A live flow of pod 1.
fn live(t: &Tables, flags: u16) -> Flow {
    let state = Tcp::ESTABLISHED;
    Flow { last_seen_s: t.now_s, generation: GENERATION, ifindex: IF_1, pod: 1, flags, state, ..Flow::default() }
}

struct List {
    now_s: u32,
    class: &'static str,
    cases: Vec<Case>,
}

impl List {
    fn add(&mut self, says: &str, hook: Hook, bytes: Vec<u8>) -> Entry<'_> {
        let ifindex = match hook {
            Hook::PodOut | Hook::PodIn => IF_1,
            Hook::UplinkIn | Hook::UplinkOut => IF_UPLINK,
        };
        self.cases.push(Case {
            says: says.into(),
            class: self.class,
            tables: tables(self.now_s),
            hook,
            packet: Packet { bytes, ifindex, note: 0, mark: 0, checksum: None },
            action: Action::Pass,
            counted: None,
            note: None,
            flows: None,
            delivered: None,
            requoted: None,
            answered: false,
        });
        let at = self.cases.len() - 1;
        Entry(&mut self.cases[at])
    }

    fn out(&mut self, says: &str, packet: Build) -> Entry<'_> {
        let family = Family::of(&packet.from);
        self.add(&std::format!("{family:?}: {says}"), Hook::PodOut, packet.bytes())
    }

    fn into(&mut self, says: &str, packet: Build) -> Entry<'_> {
        let family = Family::of(&packet.from);
        let packet = packet.with(|b| (b.from_mac, b.to_mac) = (MAC_2, MAC_1));
        self.add(&std::format!("{family:?}: {says}"), Hook::PodIn, packet.bytes())
    }
}

struct Entry<'a>(&'a mut Case);

impl Entry<'_> {
    fn sent_to(self, mac: [u8; 6]) -> Self {
        self.0.packet.bytes[..6].copy_from_slice(&mac);
        self
    }

    fn passes(self) -> Self {
        self
    }

    fn drops(self, direction: Direction, reason: Reason) -> Self {
        (self.0.action, self.0.counted) = (Action::Drop, Some((direction, reason)));
        self
    }

    fn rejects(self, direction: Direction, reason: Reason) -> Self {
        (self.0.action, self.0.counted, self.0.answered) = (Action::Reject, Some((direction, reason)), true);
        self
    }

    fn delivers(self, ifindex: u32, mac: [u8; 6]) -> Self {
        (self.0.action, self.0.delivered) = (Action::Deliver, Some((ifindex, mac)));
        self
    }

    fn requotes(self, network: Vec<u8>) -> Self {
        self.0.requoted = Some(network);
        self
    }

    fn unanswered(self) -> Self {
        self.0.answered = false;
        self
    }

    fn counts(self, direction: Direction, reason: Reason) -> Self {
        self.0.counted = Some((direction, reason));
        self
    }

    fn given(self, change: impl FnOnce(&mut Tables)) -> Self {
        change(&mut self.0.tables);
        self
    }

    fn at(self, ifindex: u32) -> Self {
        self.0.packet.ifindex = ifindex;
        self
    }

    fn noted(self, note: u16) -> Self {
        self.0.packet.note = note;
        self
    }

    fn marked(self, mark: u32) -> Self {
        self.0.packet.mark = mark;
        self
    }

    fn notes(self, note: u16) -> Self {
        self.0.note = Some(note);
        self
    }

    fn flows(self, flows: usize) -> Self {
        self.0.flows = Some(flows);
        self
    }
}

/// All promises, for a clock that says `now_s`.
pub fn cases(now_s: u32) -> Vec<Case> {
    let mut list = List { now_s, class: "", cases: Vec::new() };
    pods::frames(&mut list);
    for f in Family::BOTH {
        pods::sources(&mut list, f);
        pods::verdicts(&mut list, f);
        flows::live_flows(&mut list, f);
        flows::foreign_flows(&mut list, f);
        flows::refused_flows(&mut list, f);
        flows::kept_flows(&mut list, f);
        paths::services(&mut list, f);
        short_way::short_way(&mut list, f);
        balanced::balanced(&mut list, f);
        quoted::quoted(&mut list, f);
        paths::full_table(&mut list, f);
        paths::shared_table(&mut list, f);
        headers::headers(&mut list, f);
        paths::answers(&mut list, f);
        paths::unpublished(&mut list, f);
        paths::uplinks(&mut list, f);
    }
    headers::icmp_cases(&mut list);
    crafted::add(&mut list);
    list.cases
}

const OUT: Direction = Direction::Egress;
const IN: Direction = Direction::Ingress;
const SYN: u8 = Tcp::SYN;
const ACK: u8 = Tcp::ACK;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_twin_keeps_every_promise() {
        let cases = cases(1_000_000);
        let mut broken = Vec::new();
        for case in &cases {
            let mut tables = case.tables.clone();
            let outcome = tables.run(case.hook, &case.packet);
            let drops: Vec<_> = tables.drops.keys().map(|key| (key.direction, key.reason)).collect();
            let counted: Vec<_> = case.counted.iter().map(|(d, r)| (*d as u8, *r as u8)).collect();
            let kept = outcome.action == case.action
                && drops == counted
                && case.note.is_none_or(|note| note == outcome.note || case.action == Action::Reject)
                && outcome.delivered.as_ref().map(|(ifindex, bytes)| (*ifindex, bytes[..6].to_vec()))
                    == case.delivered.map(|(ifindex, mac)| (ifindex, mac.to_vec()))
                && outcome.requoted.as_ref().map(|bytes| bytes[14..].to_vec()) == case.requoted
                && case.flows.is_none_or(|flows| flows == tables.flows.len())
                && outcome.answer.is_some() == case.answered;
            if !kept {
                let flows = tables.flows.len();
                broken.push(std::format!("{}: {outcome:?} {drops:?} flows {flows}", case.says));
            }
        }
        let crafted = cases.iter().filter(|case| !case.class.is_empty()).count();
        std::println!("{} promises, {crafted} of them crafted packets", cases.len());
        assert!(cases.len() > 900 && crafted > 550, "{} {crafted}", cases.len());
        assert!(broken.is_empty(), "of {}:\n{}", cases.len(), broken.join("\n"));
    }

    #[test]
    fn what_would_be_changed_behind_the_hooks_stays() {
        let packet = |bytes: Vec<u8>, at: u32| {
            let packet = Packet { bytes, ifindex: IF_1, note: 0, mark: 0, checksum: Some(at) };
            let mut tables = tables(1_000_000);
            let action = tables.run(Hook::PodOut, &packet).action;
            assert!(action == Action::Pass || tables.drops.keys().any(|key| key.reason == Reason::Malformed as u8));
            action
        };
        for f in Family::BOTH {
            let header = if f == Family::V4 { 20 } else { 40 };
            let (from, to) = ((pod_1(f), 4000), (friend(f), 80));
            let later = Build::udp(from, (f.address(3, 1), 53), &[1; 40]);
            let mut list = vec![
                (Build::tcp(from, to, SYN), header + 14),
                (Build::udp(from, to, b"hello"), header + 4),
                (Build::sctp(from, to), header + 4),
                (Build::echo(from.0, f.address(3, 1), if f == Family::V4 { 8 } else { 128 }, 1), header + 56),
                (Build::new(from.0, f.address(3, 1), 47, vec![0; 40]), header),
            ];
            if f == Family::V4 {
                list.push((later.with(|b| b.fragment = 5), header));
            } else {
                let options = (60, vec![0, 1, 4, 0, 0, 0, 0]);
                list.push((Build::udp(from, to, b"hello").with(|b| b.extensions = vec![options]), header + 8 + 4));
            }
            for (build, judged) in list {
                for at in 0..judged + 4 {
                    let wanted = if at < judged { Action::Drop } else { Action::Pass };
                    assert_eq!(packet(build.bytes(), at), wanted, "{f:?} protocol {} at {at}", build.protocol);
                }
            }
        }
        let asks = arp(MAC_1, MAC_1, [10, 1, 0, 1], [10, 1, 0, 2]);
        assert_eq!([27, 28].map(|at| packet(asks.clone(), at)), [Action::Drop, Action::Pass]);
        // A device took the tag off, and nobody reads what is left.
        let tagged = Build::udp((pod_1(Family::V4), 4000), (friend(Family::V4), 80), b"hello");
        let tagged = tagged.with(|b| b.ethertype = 0x8100).bytes();
        let unread = Packet { bytes: tagged, ifindex: IF_NEW, note: 0, mark: 0, checksum: Some(26) };
        assert_eq!(tables(1_000_000).run(Hook::PodOut, &unread).action, Action::Pass);
    }
}
