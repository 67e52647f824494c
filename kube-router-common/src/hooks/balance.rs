//! Whom a service's scheduler gives a flow to, for its first packet: whom IPVS would choose, or might.

use super::{Case, World};
use crate::{
    balance::{Backend, RingKey, Vip},
    packet::protocol,
    policy::ServiceKey,
    schedule,
};

/// Is the packet at hand for a virtual server that does not leave all to IPVS? It is noted.
#[inline(always)]
pub(super) fn find_vip<W: World>(world: &W, case: &mut Case) -> bool {
    if case.vip.id == 0 {
        case.service_key =
            ServiceKey { address: case.key.peer, port: case.key.peer_port, protocol: case.key.protocol, pad: 0 };
        match world.vip(&case.service_key) {
            Some(vip) => case.vip = vip,
            None => return false,
        }
    }
    true
}

/// Number and row of a backend that takes new flows. `None`: IPVS is to choose.
#[inline(always)]
pub(super) fn choose<W: World>(world: &W, case: &Case) -> Option<(u32, Backend)> {
    let vip = &case.vip;
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
