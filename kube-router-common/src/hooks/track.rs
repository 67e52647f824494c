//! Flows and verdicts: a live flow passes, anything else is judged.

use super::{
    Began, Case, Way, World, balance, count,
    entries::{self, Found, find, forget, is_of_pod, keep, may_keep, most_flows, refuse_from_now_on},
    fast, fill, is_balanced, peer_of,
    pod::ingress_class,
};
use crate::{
    balance::Backend,
    config::{Config, FragKey, FragPorts, note},
    event::{BUCKET_FLOWS, EventHead},
    flow::{Flow, FlowKey, Tcp, Want},
    packet::{self, Icmp, Piece, protocol},
    policy::{Address, NOT_ISOLATED, PORTLESS, Peer, Service, Verdict, judge, port_index},
    reason::Reason,
};

/// What the tables of policy say.
#[derive(Clone, Copy)]
struct Judged {
    allowed: bool,
    rule: u32,
    class: u32,
    pending: bool,
    masqueraded: bool,
    /// Ingress from an address of the node: whose it is, only the peer's own packets tell.
    unsure: bool,
}

/// A later hook is to know that this pod sent the packet, and from which address.
#[inline(always)]
pub(super) fn note_origin<W: World>(world: &W, pod: u32, source: &Address) {
    let origin = world.origin(pod);
    let known = if source.is_v4() { &origin.v4 } else { &origin.v6 };
    if known != source {
        world.set_origin(pod, source);
    }
    world.set_note(pod as u16);
}

#[inline(always)]
fn frag_key(case: &Case) -> FragKey {
    let protocol = if case.ends.v4 { case.t.protocol } else { protocol::FRAGMENT };
    let (source, destination) = (case.ends.source, case.ends.destination);
    FragKey { source, destination, id: case.t.id, protocol: u32::from(protocol) }
}

/// A later fragment gets the ports of the first one, if that was allowed. Returns whether it passes whatever they are.
#[inline(always)]
pub(super) fn read_fragment<W: World>(world: &W, case: &mut Case) -> bool {
    case.ports_known = true;
    if !matches!(case.t.piece, Piece::Later) {
        return false;
    }
    let Some(ports) = world.fragment(&frag_key(case)) else {
        case.ports_known = false;
        return false;
    };
    (case.t.source_port, case.t.destination_port) = (ports.source, ports.destination);
    case.t.protocol = ports.protocol as u8;
    // Not the start of anything.
    case.t.flags = Tcp::ACK;
    ports.protocol & FragPorts::PASSES != 0
}

/// An allowed first fragment tells its ports to the later ones.
#[inline(always)]
pub(super) fn tell_fragments<W: World>(world: &W, case: &Case) {
    if matches!(case.t.piece, Piece::First) {
        let (source, destination) = (case.t.source_port, case.t.destination_port);
        let passes = if case.passes { FragPorts::PASSES } else { 0 };
        let protocol = u32::from(case.t.protocol) | passes;
        world.put_fragment(&frag_key(case), &FragPorts { source, destination, protocol });
    }
}

/// What is still to be done about a packet.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Next {
    Done,
    /// [`judge_flow`]
    Judge,
    /// [`pair`]
    Pair,
    /// [`balance`]
    Balance,
}

/// A packet of a pod that some policy isolates, or may come to.
#[inline(always)]
pub(super) fn track<W: World>(world: &W, case: &mut Case) -> Result<Next, Reason> {
    (case.passes, case.is_allowed, case.is_old) = (false, false, false);
    let next = look_up(world, case)?;
    if next == Next::Done {
        pass_on(world, case);
    }
    Ok(next)
}

/// Where nothing isolates the pod later fragments pass, too.
#[inline(always)]
fn pass_on<W: World>(world: &W, case: &Case) {
    if case.is_isolated() || case.way.rewrites != 0 {
        tell_fragments(world, case);
    }
}

/// The verdict on a packet that [`track`] found no live flow for.
#[inline(always)]
pub(super) fn judge_flow<W: World>(world: &W, case: &mut Case) -> Result<Next, Reason> {
    let from_pod = case.from_pod;
    let next = begin(world, case, from_pod)?;
    if next == Next::Done {
        pass_on(world, case);
    }
    Ok(next)
}

#[inline(always)]
fn look_up<W: World>(world: &W, case: &mut Case) -> Result<Next, Reason> {
    let egress = case.egress;
    if read_fragment(world, case) {
        return Ok(Next::Done);
    }

    case.is_stateful = case.ports_known;
    if matches!(case.t.protocol, protocol::ICMP | protocol::ICMPV6) && !matches!(case.t.piece, Piece::Later) {
        match packet::icmp_kind(&case.ends, &case.t, !egress) {
            Icmp::Always => {
                case.passes = true;
                if packet::is_error(&case.ends, &case.t) {
                    is_related(world, case);
                }
                return Ok(Next::Done);
            }
            Icmp::Echo => case.is_allowed = true,
            Icmp::EchoReply => {}
            Icmp::Related if is_related(world, case) => return Ok(Next::Done),
            Icmp::Related | Icmp::Other => case.is_stateful = false,
        }
    }

    if egress {
        (case.key.local, case.key.peer) = (case.ends.source, case.ends.destination);
        (case.key.local_port, case.key.peer_port) = (case.t.source_port, case.t.destination_port);
    } else {
        (case.key.local, case.key.peer) = (case.ends.destination, case.ends.source);
        (case.key.local_port, case.key.peer_port) = (case.t.destination_port, case.t.source_port);
    }
    (case.key.protocol, case.key.kind, case.key.pad) = (case.t.protocol, FlowKey::POD, 0);
    case.now_s = world.now_s();
    let found = if case.is_stateful { find(world, case) } else { Found::Nothing };
    let mut from_pod = egress;
    match found {
        Found::Live => return Ok(Next::Done),
        Found::Pending => {
            if egress {
                note_origin(world, case.pod, &case.key.local);
            }
            return Ok(Next::Done);
        }
        Found::Old => {
            case.is_old = true;
            from_pod = case.flow.is(Flow::FROM_POD);
        }
        Found::Another => (case.flow, case.is_stateful) = (Flow::default(), false),
        Found::Accepted => (case.flow, from_pod) = (Flow::default(), !egress),
        // It passes in any case, and who began is worth finding out only where that can be kept.
        Found::Nothing if !case.is_isolated() && !is_wanted(world, case) => return Ok(Next::Done),
        Found::Nothing => case.flow = Flow::default(),
    }
    case.from_pod = from_pod;
    Ok(Next::Judge)
}

/// Is a flow of a pod that nothing isolates to have an entry? For the policy that may come, or for the short way.
#[inline(always)]
fn is_wanted<W: World>(world: &W, case: &mut Case) -> bool {
    let may_be_fast = (fast::may_begin(case, case.egress) && world.endpoint(&case.key.peer).is_some())
        || (fast::may_begin_service(case, case.egress) && balance::find_vip(world, case));
    (case.config.has(Config::ALL_FLOWS) || may_be_fast) && may_keep(world, case)
}

/// The first packet of a flow, or of a flow since the policies changed, or any packet of one that they refuse.
#[inline(always)]
fn begin<W: World>(world: &W, case: &mut Case, mut from_pod: bool) -> Result<Next, Reason> {
    let (egress, old) = (case.egress, case.is_old);
    // Of TCP alone it can be told that a packet opens nothing.
    let may_be_older = case.t.protocol == protocol::TCP && !Tcp::opens(case.t.flags);
    let mut judged = decide(world, case, from_pod);
    if judged.pending && judged.allowed && may_balance(world, case, from_pod) {
        return Ok(Next::Balance);
    }
    let own = case.is_own || (old && case.flow.is(Flow::OWN));
    judged.allowed |= case.is_allowed || own;
    if own {
        // No rule decided.
        judged.rule = 0;
    }
    if may_be_older && !old && !own {
        (judged, from_pod) = find_direction(world, case, judged, from_pod);
    }
    if case.is_isolated() {
        world.count_rule(judged.rule);
    }
    (case.class, case.rule, case.egress) = (judged.class, judged.rule, from_pod);
    if !judged.allowed {
        if old {
            refuse_from_now_on(world, case, (judged.class, judged.rule), from_pod == egress);
        }
        return Err(Reason::Denied);
    }
    if case.is_isolated() && case.config.has(Config::FLOW_EVENTS) && world.allowed(BUCKET_FLOWS) {
        world.record(|head| fill(world, case, head, EventHead::FLOW, 0));
    }
    let is_plain = !judged.pending && !own && !judged.unsure;
    if !old && is_plain && fast::may_begin(case, from_pod) && world.endpoint(&case.key.peer).is_some() {
        (case.far, case.far_port) = (case.key.peer, case.key.peer_port);
        return Ok(Next::Pair);
    }
    let is_whole = matches!(case.t.piece, Piece::Whole);
    let to_ifindex = if old && case.flow.is(Flow::FAST) {
        match egress {
            // The other pod is another node's.
            true if case.flow.to_ifindex == Flow::ROUTED => Flow::ROUTED,
            true => match fast::judge_again(world, case, from_pod) {
                // It was there a moment ago; with the next packet the flow is one that nobody knows.
                Ok(0) if case.flow.is(Flow::NAT) => return Err(Reason::BackendGone),
                Ok(to_ifindex) => to_ifindex,
                Err(reason) => {
                    refuse_from_now_on(world, case, (case.class, case.rule), from_pod == egress);
                    return Err(reason);
                }
            },
            // As in `find`: by the stack fragments may come. A translated flow knows no other way.
            false if is_whole && !case.flow.is(Flow::NAT) => 0,
            false => case.flow.to_ifindex,
        }
    } else {
        0
    };
    if (judged.pending || own) && egress {
        note_origin(world, case.pod, &case.key.local);
    }
    // What IPVS has got is not to be tried again with the next packet.
    let is_ipvs = !old && judged.pending && from_pod && (case.is_tried || is_left(world, case));
    if !old && !case.is_isolated() && !case.config.has(Config::ALL_FLOWS) && !is_ipvs {
        return Ok(Next::Done);
    }
    // The pod speaks first since its peer was judged, of whom it knows the node's address only: the peer's next packet decides.
    if judged.unsure && egress {
        return Ok(Next::Done);
    }
    // The reply to an echo that was not seen leaves no trace either.
    if !case.is_stateful || (case.t.protocol == protocol::ICMP && !case.is_allowed) {
        return Ok(Next::Done);
    }
    let flags = flag(from_pod, Flow::FROM_POD)
        | flag(judged.pending, Flow::PENDING)
        | flag(judged.masqueraded, Flow::MASQUERADED)
        | flag(own, Flow::OWN)
        | flag(is_ipvs, Flow::IPVS);
    (case.class, case.rule) = (judged.class, judged.rule);
    let before = (case.flow.is(Flow::REPLIED), case.flow.state);
    enter(world, case, flags, to_ifindex, from_pod == egress)?;
    let changed = before != (case.flow.is(Flow::REPLIED), case.flow.state);
    if egress && to_ifindex != 0 {
        if is_whole || case.flow.is(Flow::NAT) {
            fast::read_way(&mut case.way, &case.flow);
            fast::check_way(world, &mut case.way);
        }
        if changed {
            balance::count(world, balance::left(&case.flow, before.1), -1);
            case.other = case.key.turned(&case.flow);
            fast::tell_other(world, case, from_pod == egress);
        }
    }
    Ok(Next::Done)
}

/// A datagram to a service that begins a flow with IPVS, as a fragment for one, where the next one could begin one here.
#[inline(always)]
fn is_left<W: World>(world: &W, case: &mut Case) -> bool {
    case.t.protocol == protocol::UDP && case.config.has(Config::FAST) && balance::find_vip(world, case)
}

/// The policies let a connection out that may take the short way: what does the other pod's say, and is there room for both
/// entries? If not for both, the packet takes the stack.
#[inline(always)]
pub(super) fn pair<W: World>(world: &W, case: &mut Case) -> Result<Next, Reason> {
    let (class, rule) = (case.class, case.rule);
    let to_ifindex = if !has_room(world, case) {
        0
    } else if case.is_remote {
        if fast::begin_remote(world, case) { Flow::ROUTED } else { 0 }
    } else {
        fast::begin(world, case)?
    };
    if to_ifindex == 0 && case.backend != 0 {
        return Ok(Next::Judge);
    }
    if to_ifindex == 0 && !case.is_isolated() && !case.config.has(Config::ALL_FLOWS) {
        return Ok(Next::Done);
    }
    (case.class, case.rule) = (class, rule);
    (case.flow.backend, case.flow.to, case.flow.to_port) = (case.backend, case.far, case.far_port);
    let entered = enter(world, case, Flow::FROM_POD | flag(case.backend != 0, Flow::NAT), to_ifindex, true);
    if to_ifindex != 0 {
        if entered == Ok(true) {
            balance::count(world, case.backend, 1);
            if case.backend != 0 {
                world.count_connection(case.vip.id);
                case.served = case.vip.id;
            }
            // Its interface was looked at a moment ago.
            fast::read_way(&mut case.way, &case.flow);
        } else {
            fast::forget_other(world, case);
            if case.backend != 0 && entered.is_ok() {
                case.flow = Flow::default();
                return Ok(Next::Judge);
            }
        }
    }
    entered.map(|_| Next::Done)
}

/// May a backend be chosen here for the first packet of a flow to a service?
#[inline(always)]
fn may_balance<W: World>(world: &W, case: &mut Case, from_pod: bool) -> bool {
    !case.is_old && !case.is_tried && fast::may_begin_service(case, from_pod) && balance::find_vip(world, case)
}

/// A pod calls a service: who answers, and may it? Where that is not found out here, IPVS chooses, and the verdict falls behind it.
#[inline(always)]
pub(super) fn balance<W: World>(world: &W, case: &mut Case) -> Result<Next, Reason> {
    case.is_tried = true;
    let Some((id, backend)) = balance::choose(world, case) else { return Ok(Next::Judge) };
    (case.far, case.far_port) = (backend.address, backend.port);
    if !fast::find_end(world, case) {
        case.is_remote = backend.has(Backend::REMOTE) && fast::is_remote(world, case);
        if !case.is_remote {
            return Ok(Next::Judge);
        }
    }
    let class = peer_of(world, &case.far).class;
    let verdict = ask(world, case, case.groups.egress, class, case.far_port);
    (case.class, case.rule, case.backend) = (class, verdict.rule, id);
    if case.is_isolated() {
        world.count_rule(verdict.rule);
    }
    if !verdict.allowed {
        return Err(Reason::Denied);
    }
    if case.is_isolated() && case.config.has(Config::FLOW_EVENTS) && world.allowed(BUCKET_FLOWS) {
        world.record(|head| fill(world, case, head, EventHead::FLOW, 0));
    }
    Ok(Next::Pair)
}

#[inline(always)]
fn flag(set: bool, flag: u16) -> u16 {
    if set { flag } else { 0 }
}

/// Puts the flow into the table, after its verdict. False: there is no room, and no reply needs the entry.
#[inline(always)]
fn enter<W: World>(
    world: &W,
    case: &mut Case,
    flags: u16,
    to_ifindex: u32,
    from_initiator: bool,
) -> Result<bool, Reason> {
    let needed = needs_entry(case, flags & Flow::FROM_POD != 0);
    case.flow.flags = (case.flow.flags & (Flow::REPLIED | Flow::NAT | Flow::IPVS))
        | flags
        | flag(needed, Flow::NEEDED)
        | flag(to_ifindex != 0, Flow::FAST);
    (case.flow.generation, case.flow.ifindex, case.flow.pod) = (case.config.generation, world.ifindex(), case.pod);
    (case.flow.class, case.flow.rule, case.flow.to_ifindex) = (case.class, case.rule, to_ifindex);
    case.flow.see(case.t.protocol, case.t.flags, from_initiator, case.now_s);
    let want = Want::of(case.is_isolated() && !case.is_allowed, needed);
    if keep(world, case, want, most_flows(case, case.is_isolated())) {
        return Ok(true);
    }
    if needed {
        return Err(Reason::TableFull);
    }
    if case.is_isolated() {
        count(world, case, Reason::Untracked);
    }
    Ok(false)
}

/// Would the replies be judged?
#[inline(always)]
fn needs_entry(case: &Case, from_pod: bool) -> bool {
    let replies = if from_pod { case.groups.ingress } else { case.groups.egress };
    replies != NOT_ISOLATED
}

/// Would [`pair`] find a place for the pod's own entry?
#[inline(always)]
fn has_room<W: World>(world: &W, case: &Case) -> bool {
    let want = Want::of(case.is_isolated(), needs_entry(case, true));
    entries::has_room(world, case, want, most_flows(case, case.is_isolated()))
}

/// In the middle of a TCP connection that has no entry, as it is older than the pod's isolation or than the table: who began
/// it? The answerer's next word must not make it a connection of its own, whose replies pass. `judged` is the verdict in the
/// direction that `from_pod` says; returned are both as they should be.
#[inline(always)]
fn find_direction<W: World>(world: &W, case: &mut Case, judged: Judged, from_pod: bool) -> (Judged, bool) {
    let other = if from_pod { case.groups.ingress } else { case.groups.egress };
    let is_learning = case.now_s < case.config.learn_until_s;
    let matters = if judged.allowed { other != NOT_ISOLATED || !case.is_isolated() } else { is_learning };
    if !matters {
        return (judged, from_pod);
    }
    let began = if case.config.has(Config::KEEP_ESTABLISHED) { Began::Unknown } else { world.who_began(&case.key) };
    let is_other_way = match began {
        Began::Pod => !from_pod,
        Began::Peer => from_pod,
        Began::Unknown => false,
    };
    // Denied: perhaps a reply of what was there before us. Then no word of a socket ends it: who served may have closed the
    // one that listened.
    if is_other_way || !judged.allowed {
        let reverse = decide(world, case, !from_pod);
        if reverse.allowed || !is_learning {
            return (reverse, !from_pod);
        }
    }
    (judged, from_pod)
}

/// Asks the tables of policy, in the direction of the flow's first packet.
#[inline(always)]
fn decide<W: World>(world: &W, case: &mut Case, from_pod: bool) -> Judged {
    let peer = peer_of(world, &case.key.peer);
    let mut judged =
        Judged { allowed: true, rule: 0, class: peer.class, pending: false, masqueraded: false, unsure: false };
    let (group, port) = if from_pod {
        // At the node's own address nobody would look behind a load balancer that is gone.
        if case.flow.is(Flow::NAT) {
            let class = peer_of(world, &case.far).class;
            let verdict = ask(world, case, case.groups.egress, class, case.far_port);
            (judged.class, judged.allowed, judged.rule) = (class, verdict.allowed, verdict.rule);
            return judged;
        }
        let was_pending = case.flow.is(Flow::PENDING) && peer.flags & Peer::NODE == 0;
        let (address, port) = (case.key.peer, case.key.peer_port);
        let balanced = is_balanced(world, case, &peer, &address, port);
        if case.ports_known && (was_pending || balanced) {
            judged.pending = true;
            if balanced {
                judge_host(world, case, &mut judged);
            }
            return judged;
        }
        (case.groups.egress, case.key.peer_port)
    } else {
        judged.unsure = peer.flags & Peer::NODE != 0;
        if case.flow.is(Flow::MASQUERADED) && case.note == 0 {
            (judged.class, judged.masqueraded) = (case.flow.class, true);
        } else {
            match ingress_class(world, peer, case.ends.v4, case.note) {
                Some((class, masqueraded)) => (judged.class, judged.masqueraded) = (class, masqueraded),
                None => return judged,
            }
        }
        (case.groups.ingress, case.key.local_port)
    };
    let verdict = ask(world, case, group, judged.class, port);
    (judged.allowed, judged.rule) = (verdict.allowed, verdict.rule);
    judged
}

/// May the pod talk to the process of this node that a service may choose?
#[inline(always)]
fn judge_host<W: World>(world: &W, case: &Case, judged: &mut Judged) {
    if case.service.host_port == 0 || case.groups.egress == NOT_ISOLATED {
        return;
    }
    judged.class = peer_of(world, &case.service.host).class;
    let verdict = ask(world, case, case.groups.egress, judged.class, case.service.host_port);
    judged.allowed = verdict.allowed && case.service.flags & Service::MORE == 0;
    judged.rule = verdict.rule;
}

#[inline(always)]
pub(super) fn ask<W: World>(world: &W, case: &Case, group: u32, class: u32, port: u16) -> Verdict {
    let ports = match port_index(case.t.protocol, port) {
        Some(index) if case.ports_known => world.port_class(index),
        _ => PORTLESS,
    };
    judge(group, class, ports, |key| world.row(key))
}

/// Is the packet that this ICMP error quotes one of a flow of this pod? If it was translated, so is the quotation.
#[inline(always)]
fn is_related<W: World>(world: &W, case: &mut Case) -> bool {
    if !packet::read_quoted(world, &case.ends, &case.t, &mut case.other) {
        return false;
    }
    // An error that goes out quotes what the pod got; one that comes in, what it sent.
    let local = if case.egress {
        (case.other.local, case.other.peer) = (case.other.peer, case.other.local);
        (case.other.local_port, case.other.peer_port) = (case.other.peer_port, case.other.local_port);
        &case.ends.source
    } else {
        &case.ends.destination
    };
    if case.other.local != *local {
        return false;
    }
    (case.other.kind, case.other.pad) = (FlowKey::POD, 0);
    let (protocol, now_s) = (case.other.protocol, world.now_s());
    let ifindex = world.ifindex();
    let pod = case.pod;
    let is_live =
        |flow: &Flow| is_of_pod(flow, pod, ifindex) && !flow.is(Flow::REFUSED) && !flow.is_over(protocol, now_s);
    let found = world.flow(&case.other).filter(|flow| is_live(flow)).map(|flow| *flow);
    if let Some(flow) = found {
        // What came in is quoted as it came in, what went out as it went out of the pod.
        if case.egress && flow.is(Flow::NAT) {
            let is_client = flow.is(Flow::FROM_POD);
            (case.far, case.far_port) = if is_client {
                (case.other.peer, case.other.peer_port)
            } else {
                (case.other.local, case.other.local_port)
            };
            (case.way.address, case.way.port) = (flow.to, flow.to_port);
            case.way.rewrites = if is_client { Way::QUOTED_SOURCE } else { Way::QUOTED_DESTINATION };
        }
        return true;
    }
    if case.egress {
        return false;
    }
    // What went out to the backend of another node.
    case.other.kind = FlowKey::NET;
    let Some(flow) = world.flow(&case.other).filter(|flow| is_live(flow)) else { return false };
    (case.far, case.far_port) = (case.other.peer, case.other.peer_port);
    (case.way.address, case.way.port, case.way.rewrites) = (flow.to, flow.to_port, Way::QUOTED_DESTINATION);
    true
}

/// The egress verdict of pod `origin`, with the endpoint that a load balancer chose.
#[inline(always)]
pub(super) fn behind<W: World>(world: &W, case: &mut Case, origin: u32) -> Result<(), Reason> {
    case.passes = false;
    judge_behind(world, case, origin)?;
    tell_fragments(world, case);
    Ok(())
}

/// Is the egress verdict of this pod's flows to services due behind the load balancer? Without one, where flows are to live
/// on, they are known from there on.
#[inline(always)]
pub(super) fn is_due_behind<W: World>(world: &W, case: &Case, origin: u32) -> bool {
    world.groups(origin).egress != NOT_ISOLATED || case.config.has(Config::KEEP_ESTABLISHED)
}

#[inline(always)]
fn judge_behind<W: World>(world: &W, case: &mut Case, origin: u32) -> Result<(), Reason> {
    read_fragment(world, case);
    case.now_s = world.now_s();
    (case.key.local, case.key.peer) = (case.ends.source, case.ends.destination);
    (case.key.local_port, case.key.peer_port) = (case.t.source_port, case.t.destination_port);
    (case.key.protocol, case.key.kind, case.key.pad) = (case.t.protocol, FlowKey::BEHIND, 0);
    if case.ports_known && matches!(find(world, case), Found::Live) {
        return Ok(());
    }
    // Nobody looked, if the ports are not known.
    case.is_known &= case.ports_known;
    let group = world.groups(origin).egress;
    let class = peer_of(world, &case.key.peer).class;
    let verdict = ask(world, case, group, class, case.key.peer_port);
    if group != NOT_ISOLATED {
        world.count_rule(verdict.rule);
    }
    (case.class, case.rule) = (class, verdict.rule);
    if !verdict.allowed {
        forget(world, case);
        return Err(Reason::Denied);
    }
    if case.ports_known {
        case.flow = Flow {
            generation: case.config.generation,
            ifindex: world.ifindex(),
            pod: origin,
            class,
            rule: verdict.rule,
            flags: Flow::FROM_POD,
            ..Flow::default()
        };
        case.flow.see(case.t.protocol, case.t.flags, true, case.now_s);
        // Only spares the next packet this work; no room is no harm.
        let isolated = group != NOT_ISOLATED;
        let want = if isolated { Want::Spares } else { Want::Unasked };
        let _ = keep(world, case, want, most_flows(case, isolated));
    }
    Ok(())
}

/// Does the pod's number fit a note?
const _: () = assert!(crate::policy::MAX_PODS - 1 <= note::LAST_POD as u32);
