//! The tables as plain collections, and a packet as a slice: the programs without the kernel.
//!
//! Same decisions, other effects: what a test asserts here, the BPF programs do, and a fuzz test holds the two against
//! each other. Also answers what the live tables would do with a packet, if they are read into it.

pub mod build;
pub mod cases;
pub mod fuzz;
pub mod oracle;

use core::{
    cell::{Cell, RefCell, RefMut},
    ops::DerefMut,
};
use std::{
    collections::{BTreeMap, BTreeSet},
    vec::Vec,
};

use crate::{
    answer,
    balance::{Backend, MAX_BACKENDS, RingKey, Vip, VipCount},
    config::{Config, DropKey, FragKey, FragPorts, Iface, Origin, RuleCount, note},
    event::{BUCKET_ANSWERS, EventHead},
    flow::{ALL_PODS, Flow, FlowKey},
    hooks::{self, Action, Began, Case, Count, Hook, Way, World},
    packet::{Bytes, Ends, Piece, ends, ethertype, protocol, transport},
    policy::{
        Address, CidrKey, DEFAULT_FLOWS, Endpoint, MAX_RULES, Peer, PodGroups, PolicyKey, PolicyRow, Service,
        ServiceKey,
    },
    traffic::Traffic,
};

const LINK: usize = 14;

/// What the maps hold.
#[derive(Clone, Debug)]
pub struct Tables {
    pub config: Config,
    pub endpoints: BTreeMap<Address, Endpoint>,
    pub pods: BTreeMap<u32, PodGroups>,
    pub ifaces: BTreeMap<u32, Iface>,
    pub peers: BTreeMap<Address, Peer>,
    pub cidrs: BTreeMap<CidrKey, Peer>,
    pub services: BTreeMap<ServiceKey, Service>,
    pub vips: BTreeMap<ServiceKey, Vip>,
    pub rings: BTreeMap<RingKey, u32>,
    pub backends: BTreeMap<u32, Backend>,
    pub turns: BTreeMap<u32, u32>,
    /// As the programs count.
    pub actives: BTreeMap<u32, i32>,
    /// By virtual server, all groups of processors together.
    pub vip_counts: BTreeMap<u32, VipCount>,
    /// Through which interface the node sends to whom.
    pub routes: BTreeMap<Address, u32>,
    pub ports: BTreeMap<u32, u32>,
    pub policy: BTreeMap<PolicyKey, PolicyRow>,
    pub flows: BTreeMap<FlowKey, Flow>,
    /// As the programs count; [`Tables::count_flows`] after flows were written by hand.
    pub flow_counts: BTreeMap<u32, i32>,
    pub frags: BTreeMap<FragKey, FragPorts>,
    pub origins: BTreeMap<u32, Origin>,
    pub rules: BTreeMap<u32, RuleCount>,
    pub drops: BTreeMap<DropKey, Traffic>,
    /// Without time and captured bytes.
    pub events: Vec<EventHead>,
    /// Where pods listen, by the interface.
    pub listeners: BTreeSet<(u32, Address, u16)>,
    /// Where their connections begin, the same way.
    pub clients: BTreeSet<(u32, Address, u16)>,
    pub max_flows: usize,
    pub now_s: u32,
    /// Are buckets empty?
    pub exhausted: bool,
    /// The last number that chance gave.
    pub chance: u32,
}

impl Default for Tables {
    fn default() -> Self {
        Tables {
            config: Config::default(),
            endpoints: BTreeMap::new(),
            pods: BTreeMap::new(),
            listeners: BTreeSet::new(),
            clients: BTreeSet::new(),
            ifaces: BTreeMap::new(),
            peers: BTreeMap::new(),
            cidrs: BTreeMap::new(),
            services: BTreeMap::new(),
            vips: BTreeMap::new(),
            rings: BTreeMap::new(),
            backends: BTreeMap::new(),
            turns: BTreeMap::new(),
            actives: BTreeMap::new(),
            vip_counts: BTreeMap::new(),
            routes: BTreeMap::new(),
            ports: BTreeMap::new(),
            policy: BTreeMap::new(),
            flows: BTreeMap::new(),
            flow_counts: BTreeMap::new(),
            frags: BTreeMap::new(),
            origins: BTreeMap::new(),
            rules: BTreeMap::new(),
            drops: BTreeMap::new(),
            events: Vec::new(),
            max_flows: DEFAULT_FLOWS as usize,
            now_s: 0,
            exhausted: false,
            chance: 1,
        }
    }
}

/// A packet as a hook meets it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Packet {
    /// From the link-layer header on.
    pub bytes: Vec<u8>,
    pub ifindex: u32,
    pub note: u16,
    pub mark: u32,
    /// Of a packet that no IP socket of this node built: where its device is to write a checksum, from the network header on.
    pub checksum: Option<u32>,
}

/// What came of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Outcome {
    pub action: Action,
    /// After the hook.
    pub note: u16,
    pub mark: u32,
    /// Of [`Action::Reject`], unless no answer is due or the allowance is used up.
    pub answer: Option<Vec<u8>>,
    /// Of [`Action::Deliver`]: to the pod at the other end of this interface, as these bytes.
    pub delivered: Option<(u32, Vec<u8>)>,
    /// Of [`Action::Pass`]: as these bytes, if it was changed.
    pub requoted: Option<Vec<u8>>,
}

impl Tables {
    /// As the agent does from time to time.
    pub fn count_flows(&mut self) {
        self.flow_counts.clear();
        for pod in self.flows.values().flat_map(|flow| [flow.pod, ALL_PODS]) {
            *self.flow_counts.entry(pod).or_default() += 1;
        }
    }

    pub fn run(&mut self, hook: Hook, packet: &Packet) -> Outcome {
        let view = View {
            packet,
            note: Cell::new(packet.note),
            mark: Cell::new(packet.mark),
            tables: RefCell::new(core::mem::take(self)),
        };
        let case = &mut Case::used();
        let action = match hook {
            Hook::PodOut => {
                let mut action = hooks::pod_out(&view, case);
                loop {
                    action = match action {
                        Action::Judge => hooks::judge_out(&view, case),
                        Action::Balance => hooks::balance_out(&view, case),
                        Action::Pair => hooks::pair_out(&view, case),
                        action => break action,
                    };
                }
            }
            Hook::PodIn => match hooks::pod_in(&view, case) {
                Action::Judge => hooks::judge_in(&view, case),
                action => action,
            },
            Hook::UplinkIn => hooks::uplink_in(&view, case),
            Hook::UplinkOut => hooks::uplink_out(&view, case),
        };
        let requoted = (action == Action::Requote).then(|| view.requoted(case));
        let action = if action == Action::Requote { hooks::requote(&view, case) } else { action };
        let answer = if action == Action::Reject { view.answer() } else { None };
        let delivered = (action == Action::Deliver).then(|| (case.way.ifindex, view.delivered(&case.way)));
        let outcome = Outcome { action, note: view.note.get(), mark: view.mark.get(), answer, delivered, requoted };
        *self = view.tables.into_inner();
        outcome
    }
}

struct View<'a> {
    packet: &'a Packet,
    note: Cell<u16>,
    mark: Cell<u32>,
    tables: RefCell<Tables>,
}

impl View<'_> {
    fn answer(&self) -> Option<Vec<u8>> {
        let v4 = self.ethertype() == ethertype::IPV4;
        let ends = ends(self, v4).ok()?;
        let t = transport(self, &ends).ok()?;
        if !answer::is_due(self, &ends, &t) || !self.allowed(BUCKET_ANSWERS) {
            return None;
        }
        let mut out = [0; answer::LONGEST];
        answer::write(self, &ends, &t, &mut out)?;
        Some(out[..answer::length(v4, t.protocol)].to_vec())
    }
}

impl View<'_> {
    fn delivered(&self, way: &Way) -> Vec<u8> {
        let mut bytes = self.packet.bytes.clone();
        if way.mac != [0; 6] {
            bytes[..6].copy_from_slice(&way.mac);
        }
        if way.rewrites != 0 {
            self.rewrite(&mut bytes, way);
        }
        bytes
    }

    fn rewrite(&self, bytes: &mut [u8], way: &Way) {
        let v4 = self.ethertype() == ethertype::IPV4;
        let Ok(ends) = ends(self, v4) else { return };
        let Ok(t) = transport(self, &ends) else { return };
        let is_source = way.rewrites == Way::SOURCE;
        let length = if v4 { 4 } else { 16 };
        let first = LINK + if v4 { 12 } else { 8 };
        let address_at = first + if is_source { 0 } else { length };
        let ports_at = LINK + t.at as usize;
        let port_at = ports_at + if is_source { 0 } else { 2 };
        let check_at = ports_at + if t.protocol == protocol::TCP { 16 } else { 6 };
        let is_later = matches!(t.piece, Piece::Later);
        let has_check = is_later || t.protocol == protocol::TCP || half(bytes, check_at) != 0;
        let mut checks = Vec::new();
        checks.extend(v4.then_some(LINK + 10));
        checks.extend((has_check && !is_later).then_some(check_at));
        replace(bytes, address_at, &way.address.0[16 - length..], &checks);
        if is_later {
            return;
        }
        let checks = if has_check { core::slice::from_ref(&check_at) } else { &[] };
        replace(bytes, port_at, &way.port.to_be_bytes(), checks);
    }

    /// The ICMP error, about a packet as its sender sent it. Of IPv4 the quoted header's own checksum makes up for the address.
    fn requoted(&self, case: &Case) -> Vec<u8> {
        let (mut bytes, way) = (self.packet.bytes.clone(), &case.way);
        let v4 = self.ethertype() == ethertype::IPV4;
        let (header, length, first) = if v4 { (20, 4, 12) } else { (40, 16, 8) };
        let address = &way.address.0[16 - length..];
        let is_source = way.rewrites == Way::QUOTED_SOURCE;
        let (message, other) = (LINK + case.t.at as usize, if is_source { 0 } else { 1 });
        let (quoted, check) = (message + 8, message + 2);
        let at = quoted + first + other * length;
        replace(&mut bytes, at, address, &[if v4 { quoted + 10 } else { check }]);
        replace(&mut bytes, quoted + header + 2 * other, &way.port.to_be_bytes(), &[check]);
        if is_source {
            replace(&mut bytes, LINK + first + length, address, &[if v4 { LINK + 10 } else { check }]);
        }
        bytes
    }
}

fn half(bytes: &[u8], at: usize) -> u16 {
    u16::from_be_bytes([bytes[at], bytes[at + 1]])
}

/// Writes new bytes, and what they change in these checksums (RFC 1624, equation 3), word by word.
fn replace(bytes: &mut [u8], at: usize, new: &[u8], checks: &[usize]) {
    for (word, value) in new.chunks_exact(2).enumerate() {
        let (from, to) = (half(bytes, at + 2 * word), half(value, 0));
        for check in checks {
            let sum = u32::from(!half(bytes, *check)) + u32::from(!from) + u32::from(to);
            let folded = (sum & 0xffff) + (sum >> 16);
            let folded = (folded & 0xffff) + (folded >> 16);
            bytes[*check..check + 2].copy_from_slice(&(!(folded as u16)).to_be_bytes());
        }
        bytes[at + 2 * word..at + 2 * word + 2].copy_from_slice(value);
    }
}

/// One of a table's counts.
struct Counter<'a> {
    tables: &'a RefCell<Tables>,
    of: fn(&mut Tables) -> &mut BTreeMap<u32, i32>,
    key: u32,
}

impl Count for Counter<'_> {
    fn get(&self) -> i32 {
        (self.of)(&mut self.tables.borrow_mut()).get(&self.key).copied().unwrap_or_default()
    }

    fn add(&self, number: i32) {
        *(self.of)(&mut self.tables.borrow_mut()).entry(self.key).or_default() += number;
    }
}

fn part<const N: usize>(bytes: &[u8], at: usize) -> Option<[u8; N]> {
    bytes.get(at..at.checked_add(N)?)?.try_into().ok()
}

impl Bytes for View<'_> {
    fn copy<const N: usize>(&self, at: u32, to: &mut [u8; N]) -> bool {
        match part(&self.packet.bytes, LINK + at as usize) {
            Some(bytes) => {
                *to = bytes;
                true
            }
            None => false,
        }
    }

    fn link<const N: usize>(&self, at: u32) -> Option<[u8; N]> {
        part(&self.packet.bytes, at as usize)
    }

    fn net_length(&self) -> u32 {
        self.packet.bytes.len().saturating_sub(LINK) as u32
    }

    /// As eth_type_trans of net/ethernet/eth.c: below 1,536 it is a length.
    fn ethertype(&self) -> u16 {
        const ETH_P_802_2: u16 = 4;
        let kind = u16::from_be_bytes(part(&self.packet.bytes, 12).unwrap_or_default());
        if kind >= 0x0600 { kind } else { ETH_P_802_2 }
    }

    fn is_tagged(&self) -> bool {
        false
    }

    fn is_priority_tagged(&self) -> bool {
        false
    }
}

impl<'p> World for View<'p> {
    fn length(&self) -> u32 {
        self.packet.bytes.len() as u32
    }

    fn has_link_header(&self) -> bool {
        true
    }

    fn ifindex(&self) -> u32 {
        self.packet.ifindex
    }

    fn note(&self) -> u16 {
        self.note.get()
    }

    fn set_note(&self, note: u16) {
        self.note.set(note);
    }

    fn mark(&self) -> u32 {
        self.mark.get() & note::MARK_MASK
    }

    fn clear_mark(&self) {
        self.mark.set(0);
    }

    fn has_foreign_socket(&self) -> bool {
        self.packet.checksum.is_some()
    }

    fn has_changes_before(&self, at: u32) -> bool {
        self.packet.checksum.is_some_and(|place| place < at)
    }

    fn now_s(&self) -> u32 {
        self.tables.borrow().now_s
    }

    fn config(&self) -> Config {
        self.tables.borrow().config
    }

    fn endpoint(&self, address: &Address) -> Option<Endpoint> {
        self.tables.borrow().endpoints.get(address).copied()
    }

    fn iface(&self, ifindex: u32) -> Option<Iface> {
        self.tables.borrow().ifaces.get(&ifindex).copied()
    }

    fn groups(&self, pod: u32) -> PodGroups {
        self.tables.borrow().pods.get(&pod).copied().unwrap_or_default()
    }

    fn who_began(&self, key: &FlowKey) -> Began {
        let tables = self.tables.borrow();
        let sockets = |of: &BTreeSet<_>| of.contains(&(self.ifindex(), key.local, key.local_port));
        match (sockets(&tables.listeners), sockets(&tables.clients)) {
            (true, _) => Began::Peer,
            (_, true) => Began::Pod,
            _ => Began::Unknown,
        }
    }

    fn peer(&self, address: &Address) -> Option<Peer> {
        self.tables.borrow().peers.get(address).copied()
    }

    fn prefix(&self, key: &CidrKey) -> Option<Peer> {
        let tables = self.tables.borrow();
        let covers = |prefix: &CidrKey| {
            let bits = u128::from_be_bytes(prefix.address.0) ^ u128::from_be_bytes(key.address.0);
            let length = prefix.length.saturating_sub(32);
            prefix.family == key.family && bits.checked_shr(128 - length).unwrap_or(0) == 0
        };
        let best = tables.cidrs.iter().filter(|(prefix, _)| covers(prefix)).max_by_key(|(prefix, _)| prefix.length);
        best.map(|(_, peer)| *peer)
    }

    fn service(&self, key: &ServiceKey, to: &mut Service) -> bool {
        let found = self.tables.borrow().services.get(key).copied();
        *to = found.unwrap_or(*to);
        found.is_some()
    }

    fn vip(&self, key: &ServiceKey) -> Option<Vip> {
        self.tables.borrow().vips.get(key).copied()
    }

    fn route(&self, _ends: &Ends, to: &Address) -> Option<u32> {
        self.tables.borrow().routes.get(to).copied()
    }

    fn ring(&self, key: &RingKey) -> Option<u32> {
        self.tables.borrow().rings.get(key).copied()
    }

    fn backend(&self, backend: u32) -> Option<Backend> {
        self.tables.borrow().backends.get(&backend).copied()
    }

    fn take_turn(&self, vip: u32) -> u32 {
        let mut tables = self.tables.borrow_mut();
        let turn = tables.turns.entry(vip).or_default();
        *turn = turn.wrapping_add(1);
        turn.wrapping_sub(1)
    }

    fn count_connection(&self, vip: u32) {
        self.tables.borrow_mut().vip_counts.entry(vip).or_default().connections += 1;
    }

    fn count_packet(&self, vip: u32, is_answer: bool) {
        let bytes = self.packet.bytes.len().saturating_sub(LINK) as u64;
        let mut tables = self.tables.borrow_mut();
        let count = tables.vip_counts.entry(vip).or_default();
        if is_answer {
            (count.packets_out, count.bytes_out) = (count.packets_out + 1, count.bytes_out + bytes);
        } else {
            (count.packets_in, count.bytes_in) = (count.packets_in + 1, count.bytes_in + bytes);
        }
    }

    fn actives(&self, backend: u32) -> Option<impl Count> {
        let counter = Counter { tables: &self.tables, of: |tables| &mut tables.actives, key: backend };
        (backend < MAX_BACKENDS).then_some(counter)
    }

    /// xorshift32 (Marsaglia).
    fn random(&self) -> u32 {
        let chance = &mut self.tables.borrow_mut().chance;
        *chance ^= *chance << 13;
        *chance ^= *chance >> 17;
        *chance ^= *chance << 5;
        *chance
    }

    fn port_class(&self, index: u32) -> u32 {
        self.tables.borrow().ports.get(&index).copied().unwrap_or_default()
    }

    fn row(&self, key: &PolicyKey) -> Option<PolicyRow> {
        self.tables.borrow().policy.get(key).copied()
    }

    fn flow<'a>(&'a self, key: &FlowKey) -> Option<impl DerefMut<Target = Flow> + use<'a, 'p>> {
        RefMut::filter_map(self.tables.borrow_mut(), |tables| tables.flows.get_mut(key)).ok()
    }

    fn put_flow(&self, key: &FlowKey, flow: &Flow) -> bool {
        let mut tables = self.tables.borrow_mut();
        let room = tables.flows.contains_key(key) || tables.flows.len() < tables.max_flows;
        if room {
            tables.flows.insert(*key, *flow);
        }
        room
    }

    fn add_flow(&self, key: &FlowKey, flow: &Flow) -> bool {
        let is_there = self.tables.borrow().flows.contains_key(key);
        !is_there && self.put_flow(key, flow)
    }

    fn remove_flow(&self, key: &FlowKey) -> bool {
        self.tables.borrow_mut().flows.remove(key).is_some()
    }

    fn flow_count(&self, pod: u32) -> Option<impl Count> {
        Some(Counter { tables: &self.tables, of: |tables| &mut tables.flow_counts, key: pod })
    }

    fn fragment(&self, key: &FragKey) -> Option<FragPorts> {
        self.tables.borrow().frags.get(key).copied()
    }

    fn put_fragment(&self, key: &FragKey, ports: &FragPorts) {
        self.tables.borrow_mut().frags.insert(*key, *ports);
    }

    fn origin(&self, pod: u32) -> Origin {
        self.tables.borrow().origins.get(&pod).copied().unwrap_or_default()
    }

    fn set_origin(&self, pod: u32, address: &Address) {
        let mut tables = self.tables.borrow_mut();
        let origin = tables.origins.entry(pod).or_default();
        if address.is_v4() {
            origin.v4 = *address;
        } else {
            origin.v6 = *address;
        }
    }

    fn count_rule(&self, rule: u32) {
        let rule = if rule < MAX_RULES { rule } else { 0 };
        let bytes = u64::from(self.length());
        let mut tables = self.tables.borrow_mut();
        let count = tables.rules.entry(rule).or_default();
        (count.flows, count.bytes) = (count.flows + 1, count.bytes + bytes);
    }

    fn count_drop(&self, key: &DropKey) {
        let packet = Traffic { packets: 1, bytes: u64::from(self.length()) };
        let mut tables = self.tables.borrow_mut();
        let count = tables.drops.entry(*key).or_default();
        *count = count.plus(packet);
    }

    fn allowed(&self, _bucket: u32) -> bool {
        !self.tables.borrow().exhausted
    }

    fn record(&self, fill: impl FnOnce(&mut EventHead)) {
        let mut head = EventHead::default();
        fill(&mut head);
        self.tables.borrow_mut().events.push(head);
    }
}
