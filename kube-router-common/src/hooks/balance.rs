//! Whom a service's scheduler gives a flow to, for its first packet: whom IPVS would choose, or might.

use super::{Case, World};
use crate::{
    balance::{Backend, RingKey, Vip},
    packet::protocol,
    policy::ServiceKey,
    schedule,
};

/// The virtual server that the packet at hand is for, if it does not leave all to IPVS.
#[inline(always)]
pub(super) fn vip<W: World>(world: &W, case: &mut Case) -> Option<Vip> {
    case.service_key =
        ServiceKey { address: case.key.peer, port: case.key.peer_port, protocol: case.key.protocol, pad: 0 };
    world.vip(&case.service_key)
}

/// Number and row of a backend that takes new flows. `None`: IPVS is to choose.
#[inline(always)]
pub(super) fn choose<W: World>(world: &W, case: &Case, vip: &Vip) -> Option<(u32, Backend)> {
    // What is not known may be IPVS's.
    let is_learning = case.key.protocol == protocol::UDP && case.now_s < vip.learn_until_s;
    if vip.affinity_s != 0 || is_learning {
        return None;
    }
    let port = if vip.flags & Vip::HASH_PORT != 0 { case.key.local_port } else { 0 };
    let slot = match vip.scheduler {
        Vip::RR => world.take_turn(vip.id).checked_rem(vip.slots)?,
        Vip::SH => schedule::hashed_slot(schedule::key(&case.key.local, port), vip.slots),
        Vip::DH => schedule::hashed_slot(schedule::key(&case.key.peer, 0), vip.slots),
        Vip::MH => schedule::mh_slot(schedule::key(&case.key.local, port), vip.slots),
        _ => return None,
    };
    let id = world.ring(&RingKey { ring: vip.ring, slot })?;
    let backend = world.backend(id)?;
    (backend.has(Backend::OPEN) && backend.vip == vip.id).then_some((id, backend))
}
