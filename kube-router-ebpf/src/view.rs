//! A packet at a hook, with the maps around it: what the decisions of `kube_router_common::hooks` look at.

use core::ops::DerefMut;

use aya_ebpf::{
    bindings::{BPF_NOEXIST, TC_ACT_SHOT},
    programs::TcContext,
};
use kube_router_common::{
    Traffic, answer,
    balance::{Backend, COUNT_SHARDS, RingKey, Vip, VipCount},
    config::{Config, DropKey, FragKey, FragPorts, Iface, Origin, note},
    event::{BUCKET_ANSWERS, EventHead, Rate},
    flow::{Flow, FlowKey},
    hooks::{Began, Case, Count, World},
    packet::{Bytes, Ends, ethertype, read_ends, read_transport},
    policy::{Address, CidrKey, Endpoint, MAX_RULES, Peer, PodGroups, PolicyKey, PolicyRow, Service, ServiceKey},
};

use crate::{
    kernel::{self, Plain},
    maps,
};

/// Ethernet's header.
const LINK: u32 = 14;

pub struct View<'a> {
    context: &'a TcContext,
    /// Bytes before the network header.
    link: u32,
    is_veth: bool,
}

impl<'a> View<'a> {
    #[inline(always)]
    pub fn of_pod(context: &'a TcContext) -> Self {
        View { context, link: LINK, is_veth: true }
    }

    /// Of a packet that is answered, whatever the device.
    #[inline(always)]
    pub fn of_refused(context: &'a TcContext) -> Self {
        View { context, link: LINK, is_veth: false }
    }

    /// A tunnel has no link-layer header.
    #[inline(always)]
    pub fn of_uplink(context: &'a TcContext) -> Self {
        let bare = match kernel::get(&maps::IFACES, &kernel::ifindex(context)) {
            Some(iface) => iface.flags & Iface::NO_LINK_HEADER != 0,
            None => false,
        };
        View { context, link: if bare { 0 } else { LINK }, is_veth: false }
    }

    /// Turns the packet into an answer to its sender; drops it if none is due.
    #[inline(always)]
    pub fn answer(&self, case: &mut Case, redirect: u64) -> i32 {
        let v4 = self.ethertype() == ethertype::IPV4;
        let (ends, t) = (&mut case.ends, &mut case.t);
        if read_ends(self, v4, ends).is_err() || read_transport(self, ends, t).is_err() {
            return TC_ACT_SHOT;
        }
        if !answer::is_due(self, ends, t) || !self.allowed(BUCKET_ANSWERS) {
            return TC_ACT_SHOT;
        }
        let bytes = &mut case.answer.0;
        if answer::write(self, ends, t, bytes).is_none() {
            return TC_ACT_SHOT;
        }
        let length = answer::length(v4, t.protocol);
        // The network and ICMP headers go between the link-layer header and the packet, whose rest is cut off.
        let inserted = if v4 { 28 } else { 48 };
        if !kernel::reshape(self.context, length as u32 - inserted, inserted as i32) {
            return TC_ACT_SHOT;
        }
        let written = match (v4, answer::quoted(t.protocol)) {
            (true, 20) => kernel::store(self.context, bytes, answer::length(true, 6)),
            (true, 12) => kernel::store(self.context, bytes, answer::length(true, 132)),
            (true, _) => kernel::store(self.context, bytes, answer::length(true, 17)),
            (false, 20) => kernel::store(self.context, bytes, answer::length(false, 6)),
            (false, 12) => kernel::store(self.context, bytes, answer::length(false, 132)),
            (false, _) => kernel::store(self.context, bytes, answer::length(false, 17)),
        };
        if !written {
            return TC_ACT_SHOT;
        }
        kernel::set_note(self.context, note::ANSWER);
        kernel::set_mark(self.context, note::ANSWER_MARK);
        kernel::redirect(self.ifindex(), redirect)
    }
}

impl View<'_> {
    /// From the network header on, without a helper where that can be: a pod's interface is always a veth, so that the
    /// network header lies behind an Ethernet header. An uplink may be anything.
    #[inline(always)]
    fn network<T: Plain>(&self, at: u32) -> Option<T> {
        let direct = if self.is_veth { kernel::at_hand(self.context, LINK + at) } else { None };
        direct.or_else(|| if self.bring(at, size_of::<T>()) { kernel::network(self.context, at) } else { None })
    }

    /// Takes what a pod says out of its reach, before it is read.
    #[inline(always)]
    fn bring(&self, at: u32, length: usize) -> bool {
        !self.is_veth || kernel::bring(self.context, LINK.saturating_add(at), length)
    }
}

/// The row of a virtual server that this processor counts in.
#[inline(always)]
fn vip_count(vip: u32) -> Option<*mut VipCount> {
    let shard = kernel::processor() % COUNT_SHARDS;
    maps::VIP_COUNTS.get_ptr_mut(vip.wrapping_mul(COUNT_SHARDS).wrapping_add(shard))
}

impl Bytes for View<'_> {
    #[inline(always)]
    fn copy<const N: usize>(&self, at: u32, to: &mut [u8; N]) -> bool {
        self.bring(at, N) && kernel::copy(self.context, at, to)
    }

    #[inline(always)]
    fn net<const N: usize>(&self, at: u32) -> Option<[u8; N]> {
        if self.bring(at, N) { kernel::network(self.context, at) } else { None }
    }

    #[inline(always)]
    fn words<const N: usize>(&self, at: u32) -> Option<[u32; N]> {
        self.network(at)
    }

    #[inline(always)]
    fn half(&self, at: u32) -> Option<u16> {
        self.network(at)
    }

    #[inline(always)]
    fn sender(&self) -> Option<[u16; 3]> {
        // All that calls this are pods' veths, whose link-layer header is always in the linear part.
        kernel::at_hand(self.context, 6)
    }

    #[inline(always)]
    fn link<const N: usize>(&self, at: u32) -> Option<[u8; N]> {
        if self.link == 0 { None } else { kernel::bytes(self.context, at) }
    }

    #[inline(always)]
    fn net_length(&self) -> u32 {
        self.context.len().saturating_sub(self.link)
    }

    #[inline(always)]
    fn ethertype(&self) -> u16 {
        kernel::ethertype(self.context)
    }

    #[inline(always)]
    fn is_tagged(&self) -> bool {
        kernel::is_tagged(self.context)
    }

    #[inline(always)]
    fn is_priority_tagged(&self) -> bool {
        kernel::vlan(self.context) == Some(0)
    }
}

impl<'p> World for View<'p> {
    #[inline(always)]
    fn length(&self) -> u32 {
        self.context.len()
    }

    #[inline(always)]
    fn has_link_header(&self) -> bool {
        self.link != 0
    }

    #[inline(always)]
    fn ifindex(&self) -> u32 {
        kernel::ifindex(self.context)
    }

    #[inline(always)]
    fn note(&self) -> u16 {
        kernel::note(self.context)
    }

    #[inline(always)]
    fn set_note(&self, note: u16) {
        kernel::set_note(self.context, note);
    }

    #[inline(always)]
    fn mark(&self) -> u32 {
        kernel::mark(self.context) & note::MARK_MASK
    }

    #[inline(always)]
    fn clear_mark(&self) {
        kernel::set_mark(self.context, 0);
    }

    #[inline(always)]
    fn has_foreign_socket(&self) -> bool {
        kernel::has_foreign_socket(self.context)
    }

    #[inline(always)]
    fn has_changes_before(&self, at: u32) -> bool {
        // All that calls this are pods' veths.
        kernel::is_partial(self.context) && kernel::is_written_before(self.context, LINK + at)
    }

    #[inline(always)]
    fn now_s(&self) -> u32 {
        (kernel::coarse_ns() / 1_000_000_000) as u32
    }

    #[inline(always)]
    fn config(&self) -> Config {
        maps::CONFIG.get(0).copied().unwrap_or_default()
    }

    #[inline(always)]
    fn endpoint(&self, address: &Address) -> Option<Endpoint> {
        kernel::get(&maps::ENDPOINTS, address)
    }

    #[inline(always)]
    fn iface(&self, ifindex: u32) -> Option<Iface> {
        kernel::get(&maps::IFACES, &ifindex)
    }

    #[inline(always)]
    fn groups(&self, pod: u32) -> PodGroups {
        maps::PODS.get(pod).copied().unwrap_or_default()
    }

    #[inline(always)]
    fn who_began(&self, key: &FlowKey) -> Began {
        let netns = self.iface(self.ifindex()).unwrap_or_default().netns;
        if netns == 0 { Began::Unknown } else { kernel::who_began(self.context, netns - 1, key) }
    }

    #[inline(always)]
    fn peer(&self, address: &Address) -> Option<Peer> {
        kernel::get(&maps::PEERS, address)
    }

    #[inline(always)]
    fn prefix(&self, key: &CidrKey) -> Option<Peer> {
        kernel::longest(&maps::CIDRS, key)
    }

    #[inline(always)]
    fn service(&self, key: &ServiceKey, to: &mut Service) -> bool {
        kernel::with(maps::SERVICES.get_ptr_mut(key), |service| *to = *service).is_some()
    }

    #[inline(always)]
    fn vip(&self, key: &ServiceKey) -> Option<Vip> {
        kernel::get(&maps::VIPS, key)
    }

    #[inline(always)]
    fn route(&self, ends: &Ends, to: &Address) -> Option<u32> {
        kernel::route_of(self.context, ends, to)
    }

    #[inline(always)]
    fn ring(&self, key: &RingKey) -> Option<u32> {
        kernel::get(&maps::RINGS, key)
    }

    #[inline(always)]
    fn backend(&self, backend: u32) -> Option<Backend> {
        maps::BACKENDS.get(backend).copied()
    }

    #[inline(always)]
    fn take_turn(&self, vip: u32) -> u32 {
        kernel::take_turn(maps::TURNS.get_ptr_mut(vip))
    }

    #[inline(always)]
    fn count_connection(&self, vip: u32) {
        if let Some(count) = vip_count(vip) {
            kernel::add_connection(count);
        }
    }

    #[inline(always)]
    fn count_packet(&self, vip: u32, is_answer: bool) {
        if let Some(count) = vip_count(vip) {
            kernel::add_packet(count, is_answer, u64::from(self.context.len().saturating_sub(LINK)));
        }
    }

    #[inline(always)]
    fn actives(&self, backend: u32) -> Option<impl Count> {
        kernel::Shared::of(maps::ACTIVES.get_ptr_mut(backend))
    }

    #[inline(always)]
    fn random(&self) -> u32 {
        kernel::random()
    }

    #[inline(always)]
    fn port_class(&self, index: u32) -> u32 {
        maps::PORTS.get(index).copied().unwrap_or_default()
    }

    #[inline(always)]
    fn row(&self, key: &PolicyKey) -> Option<PolicyRow> {
        kernel::get(&maps::POLICY, key)
    }

    #[inline(always)]
    fn flow<'a>(&'a self, key: &FlowKey) -> Option<impl DerefMut<Target = Flow> + use<'a, 'p>> {
        kernel::shared(maps::FLOWS.get_ptr_mut(key))
    }

    #[inline(always)]
    fn put_flow(&self, key: &FlowKey, flow: &Flow) -> bool {
        maps::FLOWS.insert(key, flow, 0).is_ok()
    }

    #[inline(always)]
    fn add_flow(&self, key: &FlowKey, flow: &Flow) -> bool {
        maps::FLOWS.insert(key, flow, u64::from(BPF_NOEXIST)).is_ok()
    }

    #[inline(always)]
    fn remove_flow(&self, key: &FlowKey) -> bool {
        maps::FLOWS.remove(key).is_ok()
    }

    #[inline(always)]
    fn flow_count(&self, pod: u32) -> Option<impl Count> {
        kernel::Shared::of(maps::FLOW_COUNTS.get_ptr_mut(pod))
    }

    #[inline(always)]
    fn fragment(&self, key: &FragKey) -> Option<FragPorts> {
        kernel::with(maps::FRAGS.get_ptr_mut(key), |ports| *ports)
    }

    #[inline(always)]
    fn put_fragment(&self, key: &FragKey, ports: &FragPorts) {
        let _ = maps::FRAGS.insert(key, ports, 0);
    }

    #[inline(always)]
    fn origin(&self, pod: u32) -> Origin {
        maps::ORIGINS.get(pod).copied().unwrap_or_default()
    }

    #[inline(always)]
    fn set_origin(&self, pod: u32, address: &Address) {
        kernel::with(maps::ORIGINS.get_ptr_mut(pod), |origin| {
            if address.is_v4() {
                origin.v4 = *address;
            } else {
                origin.v6 = *address;
            }
        });
    }

    #[inline(always)]
    fn count_rule(&self, rule: u32) {
        let rule = if rule < MAX_RULES { rule } else { 0 };
        if let Some(count) = maps::RULES.get_ptr_mut(rule) {
            kernel::add_shared(count, u64::from(self.context.len()));
        }
    }

    #[inline(always)]
    fn count_drop(&self, key: &DropKey) {
        let packet = Traffic { packets: 1, bytes: u64::from(self.context.len()) };
        let counted = kernel::with(maps::DROPS.get_ptr_mut(key), |counters| *counters = counters.plus(packet));
        if counted.is_none() && maps::DROPS.insert(key, packet, 0).is_err() {
            // No room for another pod: it is counted for nobody.
            let key = DropKey { pod: 0, ..*key };
            let counted = kernel::with(maps::DROPS.get_ptr_mut(key), |counters| *counters = counters.plus(packet));
            if counted.is_none() {
                let _ = maps::DROPS.insert(key, packet, 0);
            }
        }
    }

    #[inline(always)]
    fn allowed(&self, bucket: u32) -> bool {
        let rate = Rate::of(bucket);
        kernel::with(maps::BUCKETS.get_ptr_mut(bucket), |tokens| tokens.take(rate, kernel::now_ns())).unwrap_or(false)
    }

    #[inline(always)]
    fn record(&self, fill: impl FnOnce(&mut EventHead)) {
        kernel::record(self.context, &maps::EVENTS, fill);
    }
}
