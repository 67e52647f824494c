//! What happens to a packet at each hook: the decisions of the BPF programs, without the kernel.
//!
//! In: a packet and the tables, behind the trait [`World`]. Out: an [`Action`], and through the same trait new flows,
//! counters, records and notes for later hooks. The BPF crate implements the trait with maps and helpers; the agent's
//! twin with plain collections, so that tests and explanations run the very same code.
//!
//! ```text
//!   pod ──> pod_out ──> stack, IPVS ──> pod_in ──> pod              egress, then ingress verdict
//!                            └───────> uplink_out ──> network       egress verdict of what IPVS rewrote
//!   network ──> uplink_in ──> stack, IPVS ──> pod_in ──> pod        the client's class before masquerading
//! ```

mod balance;
mod entries;
mod fast;
mod link;
mod pod;
mod track;
mod uplink;

use core::ops::DerefMut;

pub use self::{
    pod::{balance_out, judge_in, judge_out, not_judged, pair_out, pod_in, pod_out, requote},
    uplink::{uplink_in, uplink_out},
};
use crate::{
    answer::Answer,
    balance::{Backend, RingKey, Vip},
    config::{Config, DropKey, FragKey, FragPorts, Iface, Origin},
    event::EventHead,
    flow::{Flow, FlowKey},
    names,
    packet::{self, Bytes, Ends, Transport},
    policy::{Address, CidrKey, Endpoint, Peer, PodGroups, PolicyKey, PolicyRow, Service, ServiceKey},
    reason::{Direction, Reason},
};

/// Where packets are met.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Hook {
    /// tc ingress of the node's end of a pod's veth.
    PodOut,
    /// tc egress of it.
    PodIn,
    /// tc ingress of an uplink or tunnel.
    UplinkIn,
    /// tc egress of it.
    UplinkOut,
}

impl Hook {
    pub const ALL: [Hook; 4] = [Hook::PodOut, Hook::PodIn, Hook::UplinkIn, Hook::UplinkOut];

    /// The program that belongs there.
    pub const fn program(self) -> &'static str {
        match self {
            Hook::PodOut => names::POD_OUT,
            Hook::PodIn => names::POD_IN,
            Hook::UplinkIn => names::UPLINK_IN,
            Hook::UplinkOut => names::UPLINK_OUT,
        }
    }

    /// tc ingress (from the device into the stack) or egress?
    pub const fn is_tc_ingress(self) -> bool {
        matches!(self, Hook::PodOut | Hook::UplinkIn)
    }
}

/// What the kernel is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// On to the next program, or the stack.
    Pass,
    Drop,
    /// Drop, and answer the sender.
    Reject,
    /// Into the pod at the other end of [`Case::way`].
    Deliver,
    /// There is no live flow: the verdict falls in [`judge_out`] or [`judge_in`]. A program of its own, as established flows
    /// are to be found soon, and a verifier walks both only once then.
    Judge,
    /// The flow may take the short way to another pod, whose verdict falls in [`pair_out`].
    Pair,
    /// A first packet to a service, for which a backend is chosen in [`balance_out`].
    Balance,
    /// An ICMP error that quotes what was translated: the sender of that packet is to know it again; see [`requote`].
    Requote,
}

/// Who began a connection, as the sockets in the pod tell.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Began {
    /// There is no socket (a virtual machine's connection), or the pod's network namespace is not known.
    Unknown,
    /// There is one, and nobody listens where it is.
    Pod,
    /// Somebody listens at its local address and port.
    Peer,
}

/// A number that all processors add to.
pub trait Count {
    fn get(&self) -> i32;
    fn add(&self, number: i32);
}

/// The packet's surroundings: tables, clock, and what a hook may write.
pub trait World: Bytes {
    /// With the link-layer header.
    fn length(&self) -> u32;
    /// Does it begin with an Ethernet header?
    fn has_link_header(&self) -> bool;
    fn ifindex(&self) -> u32;
    fn note(&self) -> u16;
    fn set_note(&self, note: u16);
    /// The bits of [`crate::config::note::MARK_MASK`].
    fn mark(&self) -> u32;
    fn clear_mark(&self);
    /// Has it a socket, and none of IPv4 or IPv6: of `packet(7)`, AF_XDP, a virtual machine?
    fn has_foreign_socket(&self) -> bool;
    /// Is a checksum to be written, once it leaves the node, that would change bytes before `at`, from the network header on?
    /// Then the packet is good for nothing any more. Whoever builds a packet names the place (`csum_start` and `csum_offset` of
    /// struct virtio_net_hdr).
    fn has_changes_before(&self, at: u32) -> bool;
    fn now_s(&self) -> u32;

    fn config(&self) -> Config;
    fn endpoint(&self, address: &Address) -> Option<Endpoint>;
    fn iface(&self, ifindex: u32) -> Option<Iface>;
    fn groups(&self, pod: u32) -> PodGroups;
    /// What the kernel of the pod at hand has to say about a TCP connection.
    fn who_began(&self, key: &FlowKey) -> Began;
    fn peer(&self, address: &Address) -> Option<Peer>;
    fn prefix(&self, key: &CidrKey) -> Option<Peer>;
    /// Copies the row to its place; false: there is none.
    fn service(&self, key: &ServiceKey, to: &mut Service) -> bool;
    fn vip(&self, key: &ServiceKey) -> Option<Vip>;
    /// The interface through which the node sends to this address.
    fn route(&self, ends: &Ends, to: &Address) -> Option<u32>;
    fn ring(&self, key: &RingKey) -> Option<u32>;
    fn backend(&self, backend: u32) -> Option<Backend>;
    /// The next number of a virtual server's own.
    fn take_turn(&self, vip: u32) -> u32;
    /// A virtual server has got a connection.
    fn count_connection(&self, vip: u32);
    /// The packet at hand goes to one of its backends, or comes from there.
    fn count_packet(&self, vip: u32, is_answer: bool);
    /// How many active connections a backend has.
    fn actives(&self, backend: u32) -> Option<impl Count>;
    /// Any number.
    fn random(&self) -> u32;
    fn port_class(&self, index: u32) -> u32;
    fn row(&self, key: &PolicyKey) -> Option<PolicyRow>;

    /// The entry in its place.
    fn flow<'a>(&'a self, key: &FlowKey) -> Option<impl DerefMut<Target = Flow> + use<'a, Self>>;
    /// Adds or replaces. False: no room.
    fn put_flow(&self, key: &FlowKey, flow: &Flow) -> bool;
    /// Adds only. False: there is an entry, or no room.
    fn add_flow(&self, key: &FlowKey, flow: &Flow) -> bool;
    /// False: there was none.
    fn remove_flow(&self, key: &FlowKey) -> bool;
    /// How many entries a pod has, or [`crate::flow::ALL_PODS`].
    fn flow_count(&self, pod: u32) -> Option<impl Count>;
    fn fragment(&self, key: &FragKey) -> Option<FragPorts>;
    fn put_fragment(&self, key: &FragKey, ports: &FragPorts);
    fn origin(&self, pod: u32) -> Origin;
    fn set_origin(&self, pod: u32, address: &Address);

    fn count_rule(&self, rule: u32);
    fn count_drop(&self, key: &DropKey);
    /// Takes from a bucket; see [`crate::event::Rate`].
    fn allowed(&self, bucket: u32) -> bool;
    /// Passes a record on, with the time and the packet's bytes; the rest is filled in, in its place.
    fn record(&self, fill: impl FnOnce(&mut EventHead));
}

/// The short way to a pod.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Way {
    /// The node's end of its veth, or [`Flow::ROUTED`]; 0: the stack finds the way.
    pub ifindex: u32,
    /// The pod's end; all zero: not known.
    pub mac: [u8; 6],
    pub port: u16,
    /// With [`Way::SOURCE`] and [`Way::DESTINATION`]: what is written over one end of the packet.
    pub address: Address,
    /// One of these, or 0.
    pub rewrites: u32,
}

impl Way {
    pub const SOURCE: u32 = 1;
    pub const DESTINATION: u32 = 2;
    /// Of the packet that an ICMP error quotes, the destination.
    pub const QUOTED_DESTINATION: u32 = 3;
    /// Of the packet that an ICMP error quotes, the source, which is whom the error is for.
    pub const QUOTED_SOURCE: u32 = 4;

    #[inline(always)]
    pub const fn is_quoted(&self) -> bool {
        self.rewrites >= Way::QUOTED_DESTINATION
    }
}

/// All that is known of the packet at hand. The programs keep it outside of their small stacks, so it is passed around by
/// reference and written in place; zeros are a valid one.
#[derive(Clone, Copy, Debug, Default)]
#[repr(C)]
pub struct Case {
    pub ends: Ends,
    pub t: Transport,
    /// From the point of view of the pod at hand.
    pub key: FlowKey,
    /// Of a second look-up.
    pub other: FlowKey,
    pub flow: Flow,
    pub service_key: ServiceKey,
    pub service: Service,
    pub groups: PodGroups,
    pub config: Config,
    /// What counters and records name.
    pub pod: u32,
    pub class: u32,
    pub rule: u32,
    pub note: u16,
    /// The verdict's direction: from the pod?
    pub egress: bool,
    pub has_ends: bool,
    pub has_ports: bool,
    pub ports_known: bool,
    /// From the pod to itself, through a service.
    pub is_own: bool,
    /// Whatever the tables say; an entry is made.
    pub is_allowed: bool,
    /// The same, without one.
    pub passes: bool,
    /// The flow is known, from another generation.
    pub is_old: bool,
    /// Of a flow that is to be judged: the direction of the first packet.
    pub from_pod: bool,
    /// There is to be an entry.
    pub is_stateful: bool,
    /// No backend could be chosen here: IPVS does it, and the flow stays with it.
    pub is_tried: bool,
    /// The other end of a flow that is judged, as policies see it: behind a service, the backend. Of an ICMP error: the end of
    /// the quoted packet that is written over.
    pub far: Address,
    pub far_port: u16,
    /// Its number; 0: no service.
    pub backend: u32,
    /// Number of the virtual server whose flow it is.
    pub served: u32,
    /// It is on another node.
    pub is_remote: bool,
    /// The packet's source is the address of the pod at hand, at this interface.
    pub is_at_home: bool,
    /// Whose service it is for; number 0: nobody's, or IPVS's alone.
    pub vip: Vip,
    /// The pod of this node that the flow goes to; pod 0: not looked for.
    pub end: Endpoint,
    /// The table has `key`, as an entry of pod `owner`, which need not be the one at hand. Not said of a live flow.
    pub is_known: bool,
    pub owner: u32,
    pub now_s: u32,
    pub way: Way,
    /// [`Case::READY`]: filled in for another program. The one who fills it in may be of an older agent than the one
    /// who reads: layout and meaning of a case are part of [`crate::config::SCHEMA`].
    ready: u32,
    pub answer: Answer,
}

#[cfg(any(test, feature = "twin"))]
impl Case {
    /// As the packet before may have left it: whatever a hook does not write itself is another one's.
    pub fn used() -> Self {
        let address = Address([0xee; 16]);
        let key = FlowKey { local: address, peer: address, local_port: 7, peer_port: 7, protocol: 7, kind: 7, pad: 7 };
        let flow = Flow { flags: u16::MAX, pod: 7, ifindex: 7, backend: 7, to: address, to_port: 7, ..Flow::default() };
        Case {
            key,
            other: key,
            flow,
            groups: PodGroups { ingress: 7, egress: 7 },
            pod: 7,
            class: 7,
            rule: 7,
            note: 7,
            egress: true,
            has_ends: true,
            has_ports: true,
            ports_known: false,
            is_own: true,
            is_allowed: true,
            passes: true,
            is_old: true,
            from_pod: true,
            is_stateful: true,
            is_tried: true,
            far: address,
            far_port: 7,
            backend: 7,
            served: 7,
            is_remote: true,
            is_at_home: true,
            vip: Vip { id: 7, ring: 7, slots: 7, ..Vip::default() },
            end: Endpoint { pod: 7, ifindex: 7, ..Endpoint::default() },
            is_known: true,
            owner: 7,
            now_s: 7,
            way: Way { ifindex: 7, mac: [7; 6], port: 7, address, rewrites: 7 },
            ..Case::default()
        }
    }
}

impl Case {
    const READY: u32 = 0x6b72_0001;

    /// Left for another program.
    #[inline(always)]
    fn hand_on(&mut self, action: Action) -> Action {
        self.ready = Case::READY;
        action
    }

    /// Was it? Once only.
    #[inline(always)]
    fn take_over(&mut self) -> bool {
        core::mem::take(&mut self.ready) == Case::READY
    }

    /// Leaves by [`Case::way`].
    #[inline(always)]
    fn deliver<W: World>(&self, world: &W) -> Action {
        if self.way.rewrites != 0 {
            world.count_packet(self.served, self.way.rewrites == Way::SOURCE);
        }
        Action::Deliver
    }

    #[inline(always)]
    fn begin(&mut self, config: Config, egress: bool) {
        (self.pod, self.class, self.rule) = (0, 0, 0);
        (self.note, self.egress, self.has_ends, self.has_ports, self.is_own) = (0, egress, false, false, false);
        (self.config, self.is_tried, self.backend, self.is_remote) = (config, false, 0, false);
        (self.way.ifindex, self.way.rewrites, self.ports_known) = (0, 0, false);
        (self.is_at_home, self.vip.id, self.end.pod) = (false, 0, 0);
    }

    /// Is some policy about the pod at hand?
    #[inline(always)]
    fn is_isolated(&self) -> bool {
        self.groups != PodGroups::default()
    }

    #[inline(always)]
    fn direction(&self) -> Direction {
        if self.egress { Direction::Egress } else { Direction::Ingress }
    }

    #[inline(always)]
    fn read_ends<W: World>(&mut self, world: &W, v4: bool) -> Result<(), Reason> {
        packet::read_ends(world, v4, &mut self.ends)?;
        self.has_ends = true;
        Ok(())
    }

    #[inline(always)]
    fn read_transport<W: World>(&mut self, world: &W) -> Result<(), Reason> {
        packet::read_transport(world, &self.ends, &mut self.t)?;
        self.has_ports = true;
        Ok(())
    }
}

/// Counts and tells a refusal, in this order, and says what happens.
#[inline(always)]
fn refuse<W: World>(world: &W, case: &Case, reason: Reason) -> Action {
    count(world, case, reason);
    if world.allowed(reason as u32) {
        world.record(|head| fill(world, case, head, EventHead::DROP, reason as u8));
    }
    let answers = reason.answers() && !case.config.has(Config::SILENT);
    if answers { Action::Reject } else { Action::Drop }
}

#[inline(always)]
fn count<W: World>(world: &W, case: &Case, reason: Reason) {
    let (direction, reason) = (case.direction() as u8, reason as u8);
    world.count_drop(&DropKey { pod: case.pod, direction, reason, pad: 0 });
}

/// Writes a record whose fields are all zero so far.
#[inline(always)]
fn fill<W: World>(world: &W, case: &Case, head: &mut EventHead, kind: u8, reason: u8) {
    head.length = world.length();
    (head.pod, head.class, head.rule) = (case.pod, case.class, case.rule);
    head.ifindex = world.ifindex();
    (head.kind, head.reason, head.direction) = (kind, reason, case.direction() as u8);
    head.verdict = if kind == EventHead::DROP { PolicyRow::DENY } else { PolicyRow::ALLOW } as u8;
    if case.has_ends {
        (head.source, head.destination, head.protocol) = (case.ends.source, case.ends.destination, case.ends.protocol);
    }
    if case.has_ports {
        (head.source_port, head.destination_port) = (case.t.source_port, case.t.destination_port);
        head.protocol = case.t.protocol;
    }
}

/// Class and flags of an address: exact, else the longest prefix, else the world.
#[inline(always)]
fn peer_of<W: World>(world: &W, address: &Address) -> Peer {
    if let Some(peer) = world.peer(address) {
        return peer;
    }
    let v4 = address.is_v4();
    // All bits count: family and address.
    let key = CidrKey { length: 160, family: CidrKey::family_of(v4), address: *address };
    world.prefix(&key).unwrap_or(Peer { class: crate::policy::CLASS_WORLD, flags: 0 })
}

/// Does a service answer at this port of this peer? Who really answers is seen later. The row is in `Case::service`.
#[inline(always)]
fn is_balanced<W: World>(world: &W, case: &mut Case, peer: &Peer, address: &Address, port: u16) -> bool {
    if !packet::has_ports(case.t.protocol) {
        return false;
    }
    case.service_key = ServiceKey { address: *address, port, protocol: case.t.protocol, pad: 0 };
    if peer.flags & Peer::SERVICE != 0 && world.service(&case.service_key, &mut case.service) {
        return true;
    }
    case.service_key.address = Address::default();
    peer.flags & Peer::NODE != 0 && world.service(&case.service_key, &mut case.service)
}
