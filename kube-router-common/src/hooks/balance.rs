//! Whom a service's scheduler gives a flow to, for its first packet: whom IPVS would choose, or might.
//!
//! lc goes by the connections that the programs know of, not by IPVS's. They count one when its entries are made and take it
//! back when it begins to close; the agent counts again now and then.

use core::hint::black_box;

use super::{Case, Count, World};
use crate::{
    balance::{Backend, RingKey, Vip},
    flow::{Flow, Tcp},
    packet::protocol,
    policy::ServiceKey,
    schedule,
};

/// lc: rings up to this size are looked through; of larger ones two slots are compared.
const LOOKED_THROUGH: u32 = 64;

/// Is the packet at hand for a virtual server that does not leave all to IPVS? It is noted.
#[inline(always)]
pub(super) fn find_vip<W: World>(world: &W, case: &mut Case) -> bool {
    if case.vip.id == 0 {
        case.service_key =
            ServiceKey { address: case.key.peer, port: case.key.peer_port, protocol: case.key.protocol, pad: 0 };
        match world.vip(&case.service_key) {
            Some(vip) if !vip.rests() => case.vip = vip,
            _ => return false,
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
    let id = match vip.scheduler {
        Vip::RR => at(world, vip, world.take_turn(vip.id).checked_rem(vip.slots)?)?,
        Vip::LC if vip.slots > LOOKED_THROUGH => less_of_two(world, vip)?,
        Vip::LC => least(world, vip)?,
        Vip::SH => at(world, vip, schedule::hashed_slot(schedule::key(&case.key.local, port), vip.slots))?,
        Vip::DH => at(world, vip, schedule::hashed_slot(schedule::key(&case.key.peer, 0), vip.slots))?,
        Vip::MH => at(world, vip, schedule::mh_slot(schedule::key(&case.key.local, port), vip.slots))?,
        _ => return None,
    };
    let backend = world.backend(id)?;
    (backend.has(Backend::OPEN) && backend.vip == vip.id).then_some((id, backend))
}

#[inline(always)]
fn at<W: World>(world: &W, vip: &Vip, slot: u32) -> Option<u32> {
    world.ring(&RingKey { ring: vip.ring, slot })
}

/// Number and active connections of the backend in a slot.
#[inline(always)]
fn load<W: World>(world: &W, vip: &Vip, slot: u32) -> Option<(u32, i32)> {
    let id = at(world, vip, slot)?;
    Some((id, world.actives(id)?.get()))
}

/// Of all slots. Of equals it is the first after a start that moves on, so that an idle service does not give all to one.
#[inline(always)]
fn least<W: World>(world: &W, vip: &Vip) -> Option<u32> {
    // The compiler is not to know that it is small: the bound that the verifier can see would go.
    let slots = black_box(vip.slots);
    let start = world.take_turn(vip.id).checked_rem(slots)?;
    let (mut chosen, mut fewest, mut seen) = (schedule::NONE, i32::MAX, 0);
    while seen < LOOKED_THROUGH && seen < slots {
        // A remainder is any number to a verifier. One that is counted up and begins at 0 again is followed number by number.
        if let Some((id, actives)) = load(world, vip, (start + seen) % slots)
            && actives < fewest
        {
            (chosen, fewest) = (id, actives);
        }
        seen += 1;
    }
    Some(chosen)
}

/// Of two slots that chance names, which is nearly as good as of all (Mitzenmacher, The Power of Two Choices in Randomized
/// Load Balancing, IEEE TPDS 12(10), 2001).
#[inline(always)]
fn less_of_two<W: World>(world: &W, vip: &Vip) -> Option<u32> {
    let any = || ((u64::from(world.random()) * u64::from(vip.slots)) >> 32) as u32;
    let (one, other) = (load(world, vip, any())?, load(world, vip, any())?);
    Some(if other.1 < one.1 { other.0 } else { one.0 })
}

/// A backend has got a connection, or one begins to close; 0 is nobody.
#[inline(always)]
pub(super) fn count<W: World>(world: &W, backend: u32, number: i32) {
    if backend != 0
        && let Some(actives) = world.actives(backend)
    {
        actives.add(number);
    }
}

/// Whose connection begins to close, now that the client's entry has left this state; the other entry says nobody.
#[inline(always)]
pub(super) fn left(flow: &Flow, state: u8) -> u32 {
    let is_client = flow.flags & (Flow::NAT | Flow::FROM_POD) == Flow::NAT | Flow::FROM_POD;
    if is_client && Tcp::is_active(state) && !Tcp::is_active(flow.state) { flow.backend } else { 0 }
}
