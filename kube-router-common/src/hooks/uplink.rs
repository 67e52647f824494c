//! The hooks of uplinks and tunnels: they judge nothing of their own, but what is pending.

use super::{Action, Case, World, fast, link, link::Frame, peer_of, refuse, track};
use crate::{
    config::{Config, note},
    policy::{NOT_ISOLATED, Peer},
    reason::Reason,
};

/// From the network: tc ingress of an uplink. A client that talks to a service may be masqueraded further on; its class
/// is noted. So is that of one who claims an address of this node.
#[inline(always)]
pub fn uplink_in<W: World>(world: &W, case: &mut Case) -> Action {
    if world.note() != 0 {
        let ours = world.note() == note::ANSWER && world.mark() == note::ANSWER_MARK;
        world.set_note(0);
        if ours {
            world.clear_mark();
            return Action::Pass;
        }
    }
    let Ok(Frame::Ip { v4 }) = link::frame(world) else { return Action::Pass };
    case.begin(world.config(), false);
    if case.read_ends(world, v4).is_err() {
        return Action::Pass;
    }
    if case.config.has(Config::FAST | Config::FAST_FLOWS) {
        match fast::answer_in(world, case) {
            Ok(true) => return case.deliver(world),
            Ok(false) => {}
            Err(reason) => return refuse(world, case, reason),
        }
    }
    note_client(world, case);
    Action::Pass
}

#[inline(always)]
pub(super) fn note_client<W: World>(world: &W, case: &Case) {
    let target = world.peer(&case.ends.destination);
    let balanced = target.is_some_and(|peer| peer.flags & (Peer::SERVICE | Peer::NODE) != 0);
    let claims_node = world.peer(&case.ends.source).is_some_and(|peer| peer.flags & Peer::NODE != 0);
    if balanced || claims_node {
        let class = peer_of(world, &case.ends.source).class;
        world.set_note(note::of_class(class));
    }
}

/// To the network: tc egress of an uplink.
#[inline(always)]
pub fn uplink_out<W: World>(world: &W, case: &mut Case) -> Action {
    let noted = world.note();
    if noted == 0 || (noted == note::ANSWER && world.mark() == note::ANSWER_MARK) {
        return Action::Pass;
    }
    if let Some(pod) = note::pod(noted) {
        case.begin(world.config(), true);
        case.pod = pod;
        if let Err(reason) = pending(world, case, pod)
            && world.groups(pod).egress != NOT_ISOLATED
        {
            return refuse(world, case, reason);
        }
    }
    // What wraps this packet on its way is another packet.
    world.set_note(0);
    Action::Pass
}

#[inline(always)]
fn pending<W: World>(world: &W, case: &mut Case, pod: u32) -> Result<(), Reason> {
    if !track::is_due_behind(world, case, pod) {
        return Ok(());
    }
    let Frame::Ip { v4 } = link::frame(world)? else { return Ok(()) };
    case.read_ends(world, v4)?;
    case.read_transport(world)?;
    track::behind(world, case, pod)
}
