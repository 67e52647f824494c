//! Entries of the flow table: which one a packet belongs to, what it says of the packet, and what becomes of it.

use core::ops::DerefMut;

use super::{Case, Count, World, balance, fast};
use crate::{
    config::Config,
    flow::{ALL_PODS, Flow, FlowKey, Tcp, Want, has_place},
    packet::{Piece, protocol},
};

/// What the flow table says.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Found {
    Nothing,
    Live,
    /// Live, and who sent it is to be known behind a load balancer.
    Pending,
    /// Of another generation, or refused when it was last judged; a copy is in `Case::flow`.
    Old,
    /// The one who answered opens a connection of its own where one lives. It may; but whoever still has that one refuses,
    /// and its entry stays as it is.
    Another,
    /// The one who began accepts a connection of the other side's: the entry is that one's from now on.
    Accepted,
}

#[inline(always)]
pub(super) fn is_of_pod(flow: &Flow, pod: u32, ifindex: u32) -> bool {
    flow.pod == pod && flow.ifindex == ifindex
}

/// Is the entry this very pod's? An address is a key only: pods come and go with it, several get what is sent to a group,
/// and what is masqueraded shares the node's. An interface is never another pod's later; a number may be, after a while.
/// Behind a load balancer there is but the number, so a packet that opens a connection is judged there.
#[inline(always)]
fn is_of<W: World>(world: &W, case: &Case, flow: &Flow) -> bool {
    match case.key.kind {
        FlowKey::BEHIND => flow.pod == case.pod && (case.t.protocol != protocol::TCP || !Tcp::opens(case.t.flags)),
        _ => is_of_pod(flow, case.pod, world.ifindex()),
    }
}

/// Looks `case.key` up and notes the packet in the entry.
#[inline(always)]
pub(super) fn find<W: World>(world: &W, case: &mut Case) -> Found {
    let (protocol, flags, egress, now_s) = (case.t.protocol, case.t.flags, case.egress, case.now_s);
    let Some(mut flow) = world.flow(&case.key) else {
        case.is_known = false;
        return Found::Nothing;
    };
    let owner = flow.pod;
    if !is_of(world, case, &flow) {
        (case.is_known, case.owner) = (true, owner);
        return Found::Nothing;
    }
    let from_initiator = flow.is(Flow::FROM_POD) == egress;
    // Most packets: nothing of what follows can be the case.
    let is_plain = flow.flags & (Flow::PENDING | Flow::OWN | Flow::REFUSED) == 0
        && flow.generation == case.config.generation
        && (protocol != protocol::TCP || flags & Tcp::SYN == 0);
    if is_plain && !flow.is_over(protocol, now_s) {
        return go_on(world, case, flow, from_initiator);
    }
    let opens = protocol == protocol::TCP && Tcp::opens(flags);
    if flow.is(Flow::FAST) {
        case.other = case.key.turned(&flow);
    }
    // Behind a service a backend is chosen for it.
    let is_closed = flow.is(Flow::NAT) && matches!(flow.state, Tcp::TIME_WAIT | Tcp::CLOSE);
    let is_anew = opens && from_initiator && (flow.is(Flow::REFUSED) || is_closed);
    if is_anew || flow.is_over(protocol, now_s) {
        let is_fast = flow.is(Flow::FAST);
        let may_live = !is_anew && is_fast;
        drop(flow);
        (case.is_known, case.owner) = (true, owner);
        if is_anew && is_fast {
            forget_both(world, case);
        }
        if !may_live || !fast::other_lives(world, case) {
            return Found::Nothing;
        }
        match world.flow(&case.key) {
            Some(again) => flow = again,
            None => return Found::Nothing,
        }
    }
    if opens && !from_initiator {
        return Found::Another;
    }
    if protocol == protocol::TCP && Tcp::accepts(flags) && from_initiator {
        (case.is_known, case.owner) = (true, owner);
        return Found::Accepted;
    }
    // What opens a connection may get to a process of this node now, which no later hook would see.
    let anew = (flow.is(Flow::PENDING) && opens) || flow.is(Flow::REFUSED);
    let is_old = flow.generation != case.config.generation && !case.config.has(Config::KEEP_ESTABLISHED);
    // Where nothing isolates the pod there is nothing to judge. Behind a load balancer, and on the short way, another pod is.
    let is_free = case.key.kind == FlowKey::POD && !case.is_isolated() && !flow.is(Flow::FAST);
    if anew || (is_old && !is_free) {
        case.flow = *flow;
        if case.egress && flow.is(Flow::FAST) && flow.is(Flow::NAT) {
            drop(flow);
            if !fast::has_way(world, case) {
                forget_both(world, case);
                return Found::Nothing;
            }
            flow = match world.flow(&case.key) {
                Some(again) => again,
                None => return Found::Nothing,
            };
        }
        if flow.flags & (Flow::NAT | Flow::FROM_POD) == Flow::NAT | Flow::FROM_POD {
            (case.far, case.far_port) = (flow.to, flow.to_port);
        } else {
            (case.far, case.far_port) = (case.key.peer, case.key.peer_port);
        }
        (case.is_known, case.owner) = (true, owner);
        return Found::Old;
    }
    if is_old {
        flow.generation = case.config.generation;
    }
    go_on(world, case, flow, from_initiator)
}

/// Notes the packet in its entry, and in the other direction's what that has to know.
#[inline(always)]
fn go_on<W: World>(world: &W, case: &mut Case, mut flow: impl DerefMut<Target = Flow>, from_initiator: bool) -> Found {
    let before = (flow.flags, flow.state);
    flow.see(case.t.protocol, case.t.flags, from_initiator, case.now_s);
    if case.egress && flow.is(Flow::FAST) {
        let changed = before != (flow.flags, flow.state);
        let (is_nat, is_client, backend) = (flow.is(Flow::NAT), flow.is(Flow::FROM_POD), flow.backend);
        let left = balance::left(&flow, before.1);
        fast::read_way(&mut case.way, &flow);
        if changed {
            case.other = case.key.turned(&flow);
        }
        drop(flow);
        if is_nat {
            // What the backend still has to say gets there, to its end. What it is told does not: the packet is one that nobody
            // knows, and its policies are asked, as the stack does not know whom the service had.
            let has_backend = fast::has_backend(world, case, backend);
            fast::check_way(world, &mut case.way);
            if case.way.ifindex == 0 || (is_client && !has_backend) {
                case.way.ifindex = 0;
                forget_both(world, case);
                return Found::Nothing;
            }
        } else if matches!(case.t.piece, Piece::Whole) {
            fast::check_way(world, &mut case.way);
        } else {
            // The stack puts fragments together, and would wait for those that do not come.
            case.way.ifindex = 0;
        }
        if changed {
            balance::count(world, left, -1);
            fast::tell_other(world, case, from_initiator);
        }
        return Found::Live;
    }
    // The stack brings a whole packet of a flow on the short way: the half of the pod that sent it is gone, or its interface may
    // take no short way any more. Then this half takes none either.
    if flow.flags & (Flow::FAST | Flow::NAT) == Flow::FAST && matches!(case.t.piece, Piece::Whole) {
        flow.flags &= !Flow::FAST;
    }
    // What is to the pod itself may be balanced to somebody else next.
    if flow.is(Flow::PENDING | Flow::OWN) { Found::Pending } else { Found::Live }
}

/// How many entries all pods may have. Those that no policy asks for are to leave half of the table to the others.
#[inline(always)]
pub(super) fn most_flows(case: &Case, isolated: bool) -> u32 {
    if isolated { case.config.max_flows } else { case.config.max_flows / 2 }
}

/// Would there be an entry for this flow of a pod that nothing isolates?
#[inline(always)]
pub(super) fn may_keep<W: World>(world: &W, case: &Case) -> bool {
    // Of what is sent to a group each pod that hears it would have the one entry.
    case.is_stateful && !case.key.local.is_group() && has_room(world, case, Want::Unasked, most_flows(case, false))
}

/// Would [`keep`] find a place? An entry that is there already gives its own.
#[inline(always)]
pub(super) fn has_room<W: World>(world: &W, case: &Case, want: Want, most: u32) -> bool {
    let counts = || Some((world.flow_count(case.pod)?, world.flow_count(ALL_PODS)?));
    case.is_known || counts().is_none_or(|(own, all)| has_place(own.get(), all.get(), most, want))
}

/// Puts `case.flow` into the table, after [`find`]. False: no room, or no more for this pod. An entry that is there already
/// gives its place; of another pod, it goes on counting as that one's until the agent counts again.
#[inline(always)]
pub(super) fn keep<W: World>(world: &W, case: &Case, want: Want, most: u32) -> bool {
    if !case.is_known
        && let Some(own) = world.flow_count(case.flow.pod)
        && let Some(all) = world.flow_count(ALL_PODS)
    {
        if !has_place(own.get(), all.get(), most, want) {
            return false;
        }
        if world.add_flow(&case.key, &case.flow) {
            own.add(1);
            all.add(1);
            return true;
        }
        // Full, or another processor was quicker with a packet of the same flow.
    }
    world.put_flow(&case.key, &case.flow)
}

/// Takes the entry that [`find`] saw out of the table.
#[inline(always)]
pub(super) fn forget<W: World>(world: &W, case: &Case) {
    if case.is_known && world.remove_flow(&case.key) {
        for pod in [case.owner, ALL_PODS] {
            if let Some(count) = world.flow_count(pod) {
                count.add(-1);
            }
        }
    }
}

/// Somebody else may answer from now on.
#[inline(always)]
fn forget_both<W: World>(world: &W, case: &mut Case) {
    let Some(flow) = world.flow(&case.key) else { return };
    (case.other, case.is_known, case.owner) = (case.key.turned(&flow), true, flow.pod);
    let is_client = flow.flags & (Flow::NAT | Flow::FROM_POD) == Flow::NAT | Flow::FROM_POD;
    let left = if is_client && flow.is_active(case.key.protocol) { flow.backend } else { 0 };
    drop(flow);
    balance::count(world, left, -1);
    fast::forget_other(world, case);
    forget(world, case);
    case.is_known = false;
}

/// A live flow is forbidden. Its entry stays until the flow is silent, or the other side's next word would begin one of its
/// own, of which this one's packets were the replies. Who was refused keeps the entry alive by going on; of TCP, where a new
/// connection can be told from an old one, either side does.
#[inline(always)]
pub(super) fn refuse_from_now_on<W: World>(
    world: &W,
    case: &mut Case,
    (class, rule): (u32, u32),
    from_initiator: bool,
) {
    let (protocol, now_s) = (case.t.protocol, case.now_s);
    let is_tcp = protocol == protocol::TCP;
    // Nobody answered a SYN yet, whose next word could do that; and an echo that is asked for anew is always allowed.
    let unanswered = is_tcp && Tcp::opens(case.t.flags) && !case.flow.is(Flow::REPLIED);
    if unanswered || matches!(protocol, protocol::ICMP | protocol::ICMPV6) {
        if case.flow.is(Flow::FAST) {
            fast::forget_other(world, case);
        }
        return forget(world, case);
    }
    let Some(mut flow) = world.flow(&case.key) else { return };
    // The generation stays old: should another processor write over the flag, the next packet is judged all the same.
    flow.flags |= Flow::REFUSED;
    (flow.class, flow.rule) = (class, rule);
    if from_initiator || is_tcp {
        flow.last_seen_s = now_s;
    }
}
