//! The short way: what a pod sends to another pod of this node is handed to it at once, past bridge, netfilter and routing.
//!
//! ```text
//!   pod ──> pod_out ═══════════════════════════════════> the other pod      judged for both, at the first packet
//!              └──> stack ──> pod_in ──> the other pod                      where there is no such entry
//! ```
//!
//! Such a flow has two entries, one of each pod, made together with the first packet: conntrack would take the replies to what
//! it did not see for invalid, so both directions take the short way, or none. Each entry sees the packets that its pod sends.
//! What changes its state is told to the other one, so both have the same at all times; when they last saw a packet differs,
//! and the flow is over when both are.

use super::{
    Case, Way, World, balance,
    entries::{is_of_pod, keep, most_flows},
    fill, peer_of,
    pod::published,
    track::{ask, read_fragment, tell_fragments},
};
use crate::{
    balance::Backend,
    config::{Config, Iface},
    event::{BUCKET_FLOWS, EventHead},
    flow::{ALL_PODS, Flow, FlowKey, Tcp, Want},
    hooks::Count,
    packet::{Piece, protocol},
    policy::{NOT_ISOLATED, Peer, PodGroups},
    reason::Reason,
};

/// A pod's interface, if nothing stands there that packets must meet.
#[inline(always)]
fn direct<W: World>(world: &W, ifindex: u32) -> Option<Iface> {
    published(world, ifindex).filter(|iface| iface.flags & Iface::DIRECT != 0)
}

/// Where the entry leads, and what it makes of a packet.
#[inline(always)]
pub(super) fn read_way(way: &mut Way, flow: &Flow) {
    (way.ifindex, way.rewrites) = (flow.to_ifindex, 0);
    if flow.is(Flow::NAT) {
        (way.address, way.port) = (flow.to, flow.to_port);
        way.rewrites = if flow.is(Flow::FROM_POD) { Way::DESTINATION } else { Way::SOURCE };
    }
}

/// Is the pod still there? And does nothing stand there by now: the stack goes on with what it can, but knows no translation.
#[inline(always)]
pub(super) fn check_way<W: World>(world: &W, way: &mut Way) {
    if way.ifindex == Flow::ROUTED {
        return;
    }
    let iface = if way.rewrites != 0 { published(world, way.ifindex) } else { direct(world, way.ifindex) };
    match iface {
        Some(iface) => way.mac = iface.mac,
        None => way.ifindex = 0,
    }
}

/// Is the backend still one of its service's? Whose it is or was is noted.
#[inline(always)]
pub(super) fn has_backend<W: World>(world: &W, case: &mut Case, backend: u32) -> bool {
    let Some(backend) = world.backend(backend) else { return false };
    case.served = backend.vip;
    backend.has(Backend::LIVE)
}

/// Does the translated flow in `case.flow` still lead somewhere?
#[inline(always)]
pub(super) fn has_way<W: World>(world: &W, case: &mut Case) -> bool {
    let backend = case.flow.backend;
    let has_backend = has_backend(world, case, backend) || !case.flow.is(Flow::FROM_POD);
    has_backend && (case.flow.to_ifindex == Flow::ROUTED || published(world, case.flow.to_ifindex).is_some())
}

/// The entry, whose other direction is `case.other`, has seen no packet for long: has that one's?
#[inline(always)]
pub(super) fn other_lives<W: World>(world: &W, case: &Case) -> bool {
    let (protocol, now_s) = (case.t.protocol, case.now_s);
    world.flow(&case.other).is_some_and(|flow| flow.is(Flow::FAST) && !flow.is_over(protocol, now_s))
}

/// Is the entry `case.other` the other direction's? By now it may be another flow's.
#[inline(always)]
fn is_other(case: &Case, flow: &Flow) -> bool {
    flow.is(Flow::FAST) && case.other.turned(flow) == case.key
}

/// The other direction's entry, `case.other`, learns of a packet that changed this one.
#[inline(always)]
pub(super) fn tell_other<W: World>(world: &W, case: &Case, from_initiator: bool) {
    if let Some(mut flow) = world.flow(&case.other)
        && is_other(case, &flow)
    {
        let before = flow.state;
        flow.see(case.t.protocol, case.t.flags, from_initiator, case.now_s);
        let left = balance::left(&flow, before);
        drop(flow);
        balance::count(world, left, -1);
    }
}

/// May this packet of a pod be the first one of a flow that takes the short way? Only what opens a connection of TCP: the stack
/// goes on with what it has begun, and any other packet may be the reply to one whose addresses were translated there.
#[inline(always)]
pub(super) fn may_begin(case: &Case, from_pod: bool) -> bool {
    case.t.protocol == protocol::TCP && Tcp::opens(case.t.flags) && is_first(case, from_pod)
}

/// The same of a flow to a service, which a datagram may begin, too: no reply is sent to a service's address.
#[inline(always)]
pub(super) fn may_begin_service(case: &Case, from_pod: bool) -> bool {
    let opens = match case.t.protocol {
        protocol::TCP => Tcp::opens(case.t.flags),
        protocol::UDP => true,
        _ => false,
    };
    opens && is_first(case, from_pod)
}

#[inline(always)]
fn is_first(case: &Case, from_pod: bool) -> bool {
    case.config.has(Config::FAST) && case.egress && from_pod && case.is_stateful && matches!(case.t.piece, Piece::Whole)
}

/// The pod of this node behind `case.far`, in `case.end`. Nobody's, if the sender's address is not its own: the answers would be
/// another one's.
#[inline(always)]
fn other_end<W: World>(world: &W, case: &mut Case) -> Option<Iface> {
    if !case.is_at_home {
        return None;
    }
    case.end = world.endpoint(&case.far)?;
    let iface = published(world, case.end.ifindex)?;
    (case.end.pod != case.pod && iface.pod == case.end.pod).then_some(iface)
}

/// The same, if nothing stands between the two; it is noted. False: there is none.
#[inline(always)]
pub(super) fn find_end<W: World>(world: &W, case: &mut Case) -> bool {
    let found = other_end(world, case).filter(|iface| iface.flags & Iface::DIRECT != 0);
    match found {
        Some(iface) if direct(world, world.ifindex()).is_some() => case.way.mac = iface.mac,
        _ => case.end.pod = 0,
    }
    case.end.pod != 0
}

/// The other pod's verdict, and its entry: the first half of the pair, so that the reply finds it. Returns the interface that
/// leads there; 0: the packet takes the stack, where the other pod's hook judges it.
#[inline(always)]
pub(super) fn begin<W: World>(world: &W, case: &mut Case) -> Result<u32, Reason> {
    if case.end.pod == 0 && !find_end(world, case) {
        return Ok(0);
    }
    let end = case.end;
    case.other = FlowKey {
        local: case.far,
        peer: case.key.local,
        local_port: case.far_port,
        peer_port: case.key.local_port,
        protocol: case.key.protocol,
        kind: FlowKey::POD,
        pad: 0,
    };
    forget_ended(world, case);
    let (known, owner) = match world.flow(&case.other) {
        // The stack sorts out what becomes of it.
        Some(flow) if is_of_pod(&flow, end.pod, end.ifindex) && !flow.is_over(case.t.protocol, case.now_s) => {
            return Ok(0);
        }
        Some(flow) => (true, flow.pod),
        None => (false, 0),
    };
    let peer = peer_of(world, &case.key.local);
    if peer.flags & Peer::NODE != 0 {
        return Ok(0);
    }
    let groups = world.groups(end.pod);
    let isolated = groups != PodGroups::default();
    let verdict = ask(world, case, groups.ingress, peer.class, case.far_port);
    let own = (case.pod, case.class, case.rule);
    (case.pod, case.class, case.rule, case.egress) = (end.pod, peer.class, verdict.rule, false);
    if verdict.allowed {
        let needed = groups.egress != NOT_ISOLATED;
        let kept = (case.is_known, case.owner);
        (case.flow, case.is_known, case.owner) = (Flow::default(), known, owner);
        case.flow.flags =
            Flow::FAST | if needed { Flow::NEEDED } else { 0 } | if case.backend != 0 { Flow::NAT } else { 0 };
        (case.flow.backend, case.flow.to, case.flow.to_port) = (case.backend, case.key.peer, case.key.peer_port);
        (case.flow.generation, case.flow.ifindex, case.flow.pod) = (case.config.generation, end.ifindex, end.pod);
        (case.flow.class, case.flow.rule, case.flow.to_ifindex) = (peer.class, verdict.rule, world.ifindex());
        case.flow.see(case.t.protocol, case.t.flags, true, case.now_s);
        let want = Want::of(isolated, needed);
        core::mem::swap(&mut case.key, &mut case.other);
        let has_place = keep(world, case, want, most_flows(case, isolated));
        core::mem::swap(&mut case.key, &mut case.other);
        (case.flow, case.is_known, case.owner) = (Flow::default(), kept.0, kept.1);
        if !has_place {
            (case.pod, case.class, case.rule, case.egress) = (own.0, own.1, own.2, true);
            return Ok(0);
        }
    }
    if isolated {
        world.count_rule(verdict.rule);
    }
    if !verdict.allowed {
        return Err(Reason::Denied);
    }
    if isolated && case.config.has(Config::FLOW_EVENTS) && world.allowed(BUCKET_FLOWS) {
        world.record(|head| fill(world, case, head, EventHead::FLOW, 0));
    }
    (case.pod, case.class, case.rule, case.egress) = (own.0, own.1, own.2, true);
    Ok(end.ifindex)
}

/// Is the backend on a node that is reached by an interface where its answers are met? Its pod's policies are that node's.
#[inline(always)]
pub(super) fn is_remote<W: World>(world: &W, case: &Case) -> bool {
    if !case.is_at_home || direct(world, world.ifindex()).is_none() {
        return false;
    }
    let Some(ifindex) = world.route(&case.ends, &case.far) else { return false };
    let met = |iface: Iface| iface.flags & (Iface::UPLINK | Iface::NO_LINK_HEADER) == Iface::UPLINK;
    world.iface(ifindex).is_some_and(met)
}

/// The entry for what a backend of another node answers: the first half of the pair. False: there is no room, or the answers
/// could not be told from those to a connection that the pod has with the backend itself.
#[inline(always)]
pub(super) fn begin_remote<W: World>(world: &W, case: &mut Case) -> bool {
    case.other = FlowKey {
        local: case.key.local,
        peer: case.far,
        local_port: case.key.local_port,
        peer_port: case.far_port,
        protocol: case.key.protocol,
        kind: FlowKey::POD,
        pad: 0,
    };
    let (protocol, now_s) = (case.t.protocol, case.now_s);
    let pod = case.pod;
    let lives = |flow: &Flow| flow.pod == pod && !flow.is_over(protocol, now_s);
    if world.flow(&case.other).is_some_and(|flow| lives(&flow)) {
        return false;
    }
    case.other.kind = FlowKey::NET;
    forget_ended(world, case);
    let (known, owner) = match world.flow(&case.other) {
        Some(flow) if lives(&flow) => return false,
        Some(flow) => (true, flow.pod),
        None => (false, 0),
    };
    let kept = (case.is_known, case.owner);
    (case.flow, case.is_known, case.owner) = (Flow::default(), known, owner);
    case.flow.flags = Flow::FAST | Flow::NAT;
    (case.flow.generation, case.flow.ifindex, case.flow.pod) = (case.config.generation, world.ifindex(), case.pod);
    (case.flow.class, case.flow.rule, case.flow.to_ifindex) = (case.class, case.rule, world.ifindex());
    (case.flow.backend, case.flow.to, case.flow.to_port) = (case.backend, case.key.peer, case.key.peer_port);
    case.flow.see(case.t.protocol, case.t.flags, true, case.now_s);
    let isolated = case.groups != PodGroups::default();
    core::mem::swap(&mut case.key, &mut case.other);
    let has_place = keep(world, case, Want::of(isolated, false), most_flows(case, isolated));
    core::mem::swap(&mut case.key, &mut case.other);
    (case.flow, case.is_known, case.owner) = (Flow::default(), kept.0, kept.1);
    has_place
}

/// From the network to a pod of this node: is it what a service's backend answers? Then the pod gets it from the service.
#[inline(always)]
pub(super) fn answer_in<W: World>(world: &W, case: &mut Case) -> Result<bool, Reason> {
    if !matches!(case.ends.protocol, protocol::TCP | protocol::UDP | protocol::FRAGMENT) || !world.has_link_header() {
        return Ok(false);
    }
    let Some(pod) = world.endpoint(&case.ends.destination) else { return Ok(false) };
    if case.read_transport(world).is_err() {
        return Ok(false);
    }
    case.passes = false;
    let _ = read_fragment(world, case);
    // The backend may call the pod, too: that is the policies' affair.
    if !case.ports_known || (case.t.protocol == protocol::TCP && Tcp::opens(case.t.flags)) {
        return Ok(false);
    }
    (case.key.local, case.key.peer) = (case.ends.destination, case.ends.source);
    (case.key.local_port, case.key.peer_port) = (case.t.destination_port, case.t.source_port);
    (case.key.protocol, case.key.kind, case.key.pad) = (case.t.protocol, FlowKey::NET, 0);
    case.now_s = world.now_s();
    let Some(flow) = world.flow(&case.key) else { return Ok(false) };
    if !is_of_pod(&flow, pod.pod, pod.ifindex) {
        return Ok(false);
    }
    case.other = case.key.turned(&flow);
    let is_over = flow.is_over(case.t.protocol, case.now_s);
    let is_old = flow.generation != case.config.generation && !case.config.has(Config::KEEP_ESTABLISHED);
    (case.pod, case.backend) = (flow.pod, flow.backend);
    read_way(&mut case.way, &flow);
    drop(flow);
    if is_over && !other_lives(world, case) {
        return Ok(false);
    }
    if is_old {
        judge_answer(world, case)?;
    }
    let changed = match world.flow(&case.key) {
        Some(mut flow) => {
            let before = (flow.flags, flow.state);
            flow.see(case.t.protocol, case.t.flags, false, case.now_s);
            before != (flow.flags, flow.state)
        }
        None => return Ok(false),
    };
    if changed {
        tell_other(world, case, false);
    }
    tell_fragments(world, case);
    let backend = case.backend;
    has_backend(world, case, backend);
    check_way(world, &mut case.way);
    // Its pod is gone, or not known at the moment.
    Ok(case.way.ifindex != 0)
}

/// The policies changed: may the pod still talk with the backend?
#[inline(always)]
fn judge_answer<W: World>(world: &W, case: &mut Case) -> Result<(), Reason> {
    let class = peer_of(world, &case.key.peer).class;
    let group = world.groups(case.pod).egress;
    let verdict = ask(world, case, group, class, case.key.peer_port);
    if group != NOT_ISOLATED {
        world.count_rule(verdict.rule);
    }
    (case.class, case.rule, case.egress) = (class, verdict.rule, true);
    if !verdict.allowed {
        return Err(Reason::Denied);
    }
    if let Some(mut flow) = world.flow(&case.key) {
        flow.generation = case.config.generation;
    }
    Ok(())
}

/// One half is not there, or is not to be: neither is the other, `case.other`.
#[inline(always)]
pub(super) fn forget_other<W: World>(world: &W, case: &Case) {
    let owner = match world.flow(&case.other) {
        Some(flow) if is_other(case, &flow) => flow.pod,
        _ => return,
    };
    take_out(world, &case.other, owner);
}

#[inline(always)]
fn take_out<W: World>(world: &W, key: &FlowKey, owner: u32) {
    if world.remove_flow(key) {
        for pod in [owner, ALL_PODS] {
            if let Some(count) = world.flow_count(pod) {
                count.add(-1);
            }
        }
    }
}

/// The half that the answers of a new flow need, `case.other`, is that of one that has ended, to another service with the same
/// backend: both halves of that one go.
#[inline(always)]
fn forget_ended<W: World>(world: &W, case: &mut Case) {
    let Some(ended) = world.flow(&case.other) else { return };
    let is_closed = matches!(ended.state, Tcp::TIME_WAIT | Tcp::CLOSE);
    if case.t.protocol != protocol::TCP || !is_closed || !ended.is(Flow::NAT) || !ended.is(Flow::FAST) {
        return;
    }
    let owner = ended.pod;
    let key = case.other.turned(&ended);
    drop(ended);
    let twin = match world.flow(&key) {
        Some(flow) if flow.is(Flow::FAST) && key.turned(&flow) == case.other => Some(flow.pod),
        _ => None,
    };
    if let Some(pod) = twin {
        take_out(world, &key, pod);
    }
    take_out(world, &case.other, owner);
}

/// The policies changed: what does the other pod's say, in the direction of the first packet? The interface that leads there;
/// 0: it is another pod's by now, and the stack finds out what becomes of the flow.
#[inline(always)]
pub(super) fn judge_again<W: World>(world: &W, case: &mut Case, from_pod: bool) -> Result<u32, Reason> {
    // A translated flow goes on past whatever came to stand there.
    let is_there = if case.flow.is(Flow::NAT) { other_end(world, case).is_some() } else { find_end(world, case) };
    let end = case.end;
    if !is_there || end.ifindex != case.flow.to_ifindex {
        return Ok(0);
    }
    let groups = world.groups(end.pod);
    let class = peer_of(world, &case.key.local).class;
    let (group, port) = if from_pod { (groups.ingress, case.far_port) } else { (groups.egress, case.key.local_port) };
    let verdict = ask(world, case, group, class, port);
    if groups != PodGroups::default() {
        world.count_rule(verdict.rule);
    }
    if verdict.allowed {
        return Ok(end.ifindex);
    }
    (case.pod, case.class, case.rule, case.egress) = (end.pod, class, verdict.rule, !from_pod);
    Err(Reason::Denied)
}
