//! The two hooks of a pod's veth, on the node's end.

use super::{
    Action, Case, World, is_balanced,
    link::{self, Frame},
    peer_of, refuse,
    track::{self, Next},
    uplink,
};
use crate::{
    config::{Config, Iface, note},
    packet::{self, icmp, protocol},
    policy::{ANY, NOT_ISOLATED, Peer, PodGroups},
    reason::Reason,
};

/// Bytes of ARP about IPv4 (RFC 826).
const ARP: u32 = 28;

/// Whose packet it is.
enum Owner {
    Pod,
    /// Nobody's that is known, or not one that policies are about: it passes, unjudged.
    Nobody,
}

/// Out of a pod: tc ingress of the veth.
#[inline(always)]
pub fn pod_out<W: World>(world: &W, case: &mut Case) -> Action {
    if world.note() != 0 {
        // Our answer on behalf of this pod. A note alone proves nothing: the pod's own programs can write one.
        let ours = world.note() == note::ANSWER && world.mark() == note::ANSWER_MARK;
        world.set_note(0);
        if ours {
            world.clear_mark();
            return Action::Pass;
        }
    }
    case.begin(world.config(), true);
    match out(world, case) {
        Ok(Next::Judge) => case.hand_on(Action::Judge),
        Ok(_) => match leave(world, case, Ok(())) {
            Action::Pass if case.way.is_quoted() => case.hand_on(Action::Requote),
            action => action,
        },
        Err(reason) => leave(world, case, Err(reason)),
    }
}

/// Goes on where [`pod_out`] says so.
#[inline(always)]
pub fn judge_out<W: World>(world: &W, case: &mut Case) -> Action {
    if !case.take_over() {
        return not_judged(world, case);
    }
    match track::judge_flow(world, case) {
        Ok(Next::Pair) => case.hand_on(Action::Pair),
        Ok(Next::Balance) => case.hand_on(Action::Balance),
        Ok(_) => leave(world, case, Ok(())),
        Err(reason) => leave(world, case, Err(reason)),
    }
}

/// Goes on where [`judge_out`] says so; if IPVS is to choose, that one does again.
#[inline(always)]
pub fn balance_out<W: World>(world: &W, case: &mut Case) -> Action {
    if !case.take_over() {
        return not_judged(world, case);
    }
    match track::balance(world, case) {
        Ok(Next::Pair) => case.hand_on(Action::Pair),
        Ok(_) => case.hand_on(Action::Judge),
        Err(reason) => leave(world, case, Err(reason)),
    }
}

/// Goes on where [`judge_out`] or [`balance_out`] says so.
#[inline(always)]
pub fn pair_out<W: World>(world: &W, case: &mut Case) -> Action {
    if !case.take_over() {
        return not_judged(world, case);
    }
    match track::pair(world, case) {
        Ok(Next::Judge) => case.hand_on(Action::Judge),
        Ok(_) => leave(world, case, Ok(())),
        Err(reason) => leave(world, case, Err(reason)),
    }
}

/// Goes on where [`pod_out`] or [`pod_in`] says so: the packet passes once the quoted one is as its sender knows it.
#[inline(always)]
pub fn requote<W: World>(world: &W, case: &mut Case) -> Action {
    if case.take_over() { Action::Pass } else { not_judged(world, case) }
}

/// Nobody goes on where a hook said so.
#[inline(always)]
pub fn not_judged<W: World>(world: &W, case: &Case) -> Action {
    refuse(world, case, Reason::Handover)
}

#[inline(always)]
fn leave<W: World>(world: &W, case: &Case, verdict: Result<(), Reason>) -> Action {
    match verdict.and_then(|()| check_changes(world, case)) {
        Ok(()) if case.way.ifindex != 0 => case.deliver(world),
        Ok(()) => Action::Pass,
        Err(reason) => refuse(world, case, reason),
    }
}

/// A checksum that is left to the device is written behind the last hook, at a place that the sender names: not over what
/// was judged.
#[inline(always)]
fn check_changes<W: World>(world: &W, case: &Case) -> Result<(), Reason> {
    if !world.has_foreign_socket() {
        return Ok(());
    }
    let judged = match (case.has_ends, case.has_ports) {
        (_, true) => case.t.at + packet::judged(case.t.protocol, case.t.piece),
        (true, false) => case.ends.header,
        (false, false) if world.ethertype() == packet::ethertype::ARP => ARP,
        // Nobody read it.
        (false, false) => return Ok(()),
    };
    if world.has_changes_before(judged) { Err(Reason::Malformed) } else { Ok(()) }
}

#[inline(always)]
fn out<W: World>(world: &W, case: &mut Case) -> Result<Next, Reason> {
    if let Owner::Nobody = checked_out(world, case)? {
        return Ok(Next::Done);
    }
    case.groups = world.groups(case.pod);
    let next = follow(world, case)?;
    if next == Next::Done && case.way.ifindex == 0 && !case.is_isolated() && world.note() == 0 {
        // Who sends is still to be known behind a load balancer that masquerades.
        if let Some(peer) = world.peer(&case.ends.destination)
            && peer.flags & (Peer::NODE | Peer::SERVICE) != 0
        {
            // A header that is cut into fragments is whole again when it gets there.
            let readable = case.read_transport(world).is_ok();
            let (address, port) = (case.ends.destination, case.t.destination_port);
            if !readable || is_balanced(world, case, &peer, &address, port) {
                track::note_origin(world, case.pod, &case.ends.source);
            }
        }
    }
    Ok(next)
}

/// Flow and verdict, if policies isolate the pod. The flow alone, where some may come to: it is to be known who began it.
#[inline(always)]
fn follow<W: World>(world: &W, case: &mut Case) -> Result<Next, Reason> {
    // What takes the short way is met where it leaves a pod; an error about it may come from anywhere.
    let is_met = case.egress || matches!(case.ends.protocol, protocol::ICMP | protocol::ICMPV6);
    let may_be_fast = is_met && case.config.has(Config::FAST | Config::FAST_FLOWS);
    if !case.is_isolated() && !case.config.has(Config::ALL_FLOWS) && !may_be_fast {
        return Ok(Next::Done);
    }
    match case.read_transport(world) {
        // Only policies refuse what can't be read.
        Err(_) if !case.is_isolated() => Ok(Next::Done),
        Err(reason) => Err(reason),
        Ok(()) => track::track(world, case),
    }
}

/// Frame, hardware address, source address.
#[inline(always)]
fn checked_out<W: World>(world: &W, case: &mut Case) -> Result<Owner, Reason> {
    let ifindex = world.ifindex();
    let antispoof = !case.config.has(Config::NO_ANTISPOOF);
    let frame = match link::frame(world) {
        // One that counts as untagged would be read by others as what was not checked here.
        Err(_) if is_nobodys(world, ifindex) && !(antispoof && world.is_priority_tagged()) => {
            return Ok(Owner::Nobody);
        }
        frame => frame?,
    };
    let Frame::Ip { v4 } = frame else {
        if let Some(iface) = published(world, ifindex) {
            case.pod = iface.pod;
            if antispoof {
                link::check_arp(world, &iface.mac)?;
            }
        } else if antispoof {
            link::check_unknown_arp(world)?;
        }
        return Ok(Owner::Nobody);
    };
    match case.read_ends(world, v4) {
        Err(_) if is_nobodys(world, ifindex) => return Ok(Owner::Nobody),
        read => read?,
    }
    if let Some(endpoint) = world.endpoint(&case.ends.source)
        && endpoint.ifindex == ifindex
    {
        (case.pod, case.is_at_home) = (endpoint.pod, true);
        if antispoof {
            link::check_mac(world, &endpoint.mac)?;
            link::check_advert(world, case)?;
        }
        return Ok(Owner::Pod);
    }
    unusual_source(world, case, antispoof)
}

/// The source is no address of this pod.
#[inline(always)]
fn unusual_source<W: World>(world: &W, case: &mut Case, antispoof: bool) -> Result<Owner, Reason> {
    let is_link_source = link::is_link_source(&case.ends);
    // Neighbours believe what has the full hop limit, whatever its source.
    let is_read = is_link_source || link::may_discover(&case.ends);
    let read = if is_read { case.read_transport(world) } else { Ok(()) };
    let talk = is_link_source && read.is_ok() && link::is_link_talk(&case.ends, &case.t);
    let Some(iface) = published(world, world.ifindex()) else {
        if antispoof && link::may_discover(&case.ends) {
            read?;
            link::check_unknown_claim(world, case)?;
        }
        return if talk { Ok(Owner::Nobody) } else { unknown_out(world, case, antispoof) };
    };
    case.pod = iface.pod;
    if antispoof {
        if !talk {
            return Err(Reason::SourceAddress);
        }
        link::check_mac(world, &iface.mac)?;
        link::check_advert(world, case)?;
    }
    if talk {
        return Ok(Owner::Nobody);
    }
    // Whoever it says it is: to later hooks it is this pod, never the node.
    track::note_origin(world, iface.pod, &case.ends.source);
    Ok(Owner::Pod)
}

/// Out of an interface whose pod is not known.
#[inline(always)]
fn unknown_out<W: World>(world: &W, case: &mut Case, antispoof: bool) -> Result<Owner, Reason> {
    if denies_unknown(world, world.ifindex()) {
        return Err(Reason::Unpublished);
    }
    // A pod's that is somewhere else, or that hides here from its policies.
    if let Some(endpoint) = world.endpoint(&case.ends.source) {
        if antispoof || endpoint.ifindex == 0 {
            case.pod = endpoint.pod;
            return Err(Reason::SourceAddress);
        }
    } else if antispoof && link::is_of(world, &case.ends.source, Peer::REMOTE) {
        return Err(Reason::SourceAddress);
    }
    uplink::note_client(world, case);
    Ok(Owner::Nobody)
}

#[inline(always)]
pub(super) fn published<W: World>(world: &W, ifindex: u32) -> Option<Iface> {
    match world.iface(ifindex) {
        Some(iface) if iface.flags & Iface::PUBLISHED != 0 => Some(iface),
        _ => None,
    }
}

/// Does the interface lead to somebody who need not be a pod? Then what is no IP packet is not ours to refuse.
#[inline(always)]
fn is_nobodys<W: World>(world: &W, ifindex: u32) -> bool {
    match world.iface(ifindex) {
        Some(iface) => iface.flags & (Iface::PUBLISHED | Iface::DEFAULT_DENY) == 0,
        None => true,
    }
}

/// Is nothing to pass at an interface whose pod is not known?
#[inline(always)]
fn denies_unknown<W: World>(world: &W, ifindex: u32) -> bool {
    match world.iface(ifindex) {
        Some(iface) => iface.flags & Iface::DEFAULT_DENY != 0,
        None => false,
    }
}

/// Into a pod: tc egress of the veth.
#[inline(always)]
pub fn pod_in<W: World>(world: &W, case: &mut Case) -> Action {
    if world.note() == note::ANSWER && world.mark() == note::ANSWER_MARK {
        return Action::Pass;
    }
    case.begin(world.config(), false);
    match into(world, case) {
        Ok(Next::Judge) => case.hand_on(Action::Judge),
        Ok(_) if case.way.is_quoted() => case.hand_on(Action::Requote),
        Ok(_) => Action::Pass,
        Err(reason) => refuse(world, case, reason),
    }
}

/// Goes on where [`pod_in`] says so.
#[inline(always)]
pub fn judge_in<W: World>(world: &W, case: &mut Case) -> Action {
    if !case.take_over() {
        return not_judged(world, case);
    }
    match track::judge_flow(world, case) {
        Ok(_) => Action::Pass,
        Err(reason) => refuse(world, case, reason),
    }
}

#[inline(always)]
fn into<W: World>(world: &W, case: &mut Case) -> Result<Next, Reason> {
    let ifindex = world.ifindex();
    let frame = match link::frame(world) {
        Err(_) if is_nobodys(world, ifindex) => return Ok(Next::Done),
        frame => frame?,
    };
    let Frame::Ip { v4 } = frame else { return Ok(Next::Done) };
    match case.read_ends(world, v4) {
        Err(_) if is_nobodys(world, ifindex) => return Ok(Next::Done),
        read => read?,
    }
    case.note = world.note();
    let known = find_owner(world, case, ifindex)?;
    case.groups = if known { world.groups(case.pod) } else { PodGroups::default() };
    let origin = note::pod(case.note).unwrap_or(0);
    // A pod's way to itself through a service is its own affair. It is tracked, so that the answer finds its way, too.
    case.is_own = origin != 0 && origin == case.pod;
    let pending = origin != 0 && !case.is_own && track::is_due_behind(world, case, origin);
    let read = if pending { case.read_transport(world) } else { Ok(()) };
    if let Err(reason) = read
        && world.groups(origin).egress != NOT_ISOLATED
    {
        return Err(reason);
    }
    if pending && read.is_ok() {
        let pod = case.pod;
        (case.pod, case.egress) = (origin, true);
        track::behind(world, case, origin)?;
        (case.pod, case.egress) = (pod, false);
    }
    if !known {
        let passes = !denies_unknown(world, ifindex) || is_discovery(world, case);
        return if passes { Ok(Next::Done) } else { Err(Reason::Unpublished) };
    }
    follow(world, case)
}

/// Neighbour and router discovery.
#[inline(always)]
fn is_discovery<W: World>(world: &W, case: &mut Case) -> bool {
    case.ends.hop_limit == packet::ON_LINK
        && case.read_transport(world).is_ok()
        && case.t.protocol == protocol::ICMPV6
        && matches!(case.t.icmp_type, icmp::ROUTER_SOLICIT..=icmp::NEIGHBOUR_ADVERT)
}

/// The pod behind this interface: by the address, or, for multicast and addresses nobody published, by the interface.
/// What is for another pod of this node is no business of this one's: a bridge flooded it, or that one hides here. Neither
/// is an unknown address behind another hardware address, where this one's verdict could be a refusal: it would end the
/// connection of whom it is for. Only who forwards for others gets it, where sources are not checked either.
#[inline(always)]
fn find_owner<W: World>(world: &W, case: &mut Case, ifindex: u32) -> Result<bool, Reason> {
    let (mut other, mut is_hidden) = (0, false);
    if let Some(endpoint) = world.endpoint(&case.ends.destination) {
        if endpoint.ifindex == ifindex {
            case.pod = endpoint.pod;
            return Ok(true);
        }
        (other, is_hidden) = (endpoint.pod, endpoint.ifindex == 0);
    }
    let here = world.iface(ifindex).unwrap_or_default();
    let known = here.flags & Iface::PUBLISHED != 0;
    case.pod = if known { here.pod } else { 0 };
    let antispoof = !case.config.has(Config::NO_ANTISPOOF);
    if other != 0 && other != case.pod && (antispoof || is_hidden) {
        return Err(Reason::Elsewhere);
    }
    let may_refuse =
        if known { world.groups(case.pod) != PodGroups::default() } else { here.flags & Iface::DEFAULT_DENY != 0 };
    if antispoof && may_refuse && !link::is_for(world, &here.mac) {
        return Err(Reason::Elsewhere);
    }
    Ok(known)
}

/// The peer's class as the ingress rules see it, and whether it stands behind a masquerade. `None`: the node itself, which
/// may always talk to its own pods.
#[inline(always)]
pub(super) fn ingress_class<W: World>(world: &W, peer: Peer, v4: bool, noted: u16) -> Option<(u32, bool)> {
    if peer.flags & Peer::NODE == 0 {
        return Some((peer.class, false));
    }
    if noted == 0 {
        return None;
    }
    if let Some(pod) = note::pod(noted) {
        let origin = world.origin(pod);
        let address = if v4 { &origin.v4 } else { &origin.v6 };
        return Some((peer_of(world, address).class, true));
    }
    if noted >= note::NO_CLASS {
        return Some((ANY, true));
    }
    Some((u32::from(noted - note::FIRST_CLASS), true))
}
