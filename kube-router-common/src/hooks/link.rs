//! What a pod may say on its link: frames, hardware addresses, ARP and neighbour discovery.

use super::{Case, World};
use crate::{
    packet::{Ends, ON_LINK, Transport, ethertype, halves, icmp, protocol},
    policy::{Address, Peer},
    reason::Reason,
};

/// What kind of frame it is.
pub(super) enum Frame {
    Ip { v4: bool },
    Arp,
}

#[inline(always)]
pub(super) fn frame<W: World>(world: &W) -> Result<Frame, Reason> {
    if world.is_tagged() {
        return Err(Reason::Vlan);
    }
    match world.ethertype() {
        ethertype::IPV4 => Ok(Frame::Ip { v4: true }),
        ethertype::IPV6 => Ok(Frame::Ip { v4: false }),
        ethertype::ARP => Ok(Frame::Arp),
        ethertype::VLAN | ethertype::SERVICE_VLAN => Err(Reason::Vlan),
        _ => Err(Reason::EtherType),
    }
}

/// Does the frame come from this hardware address? An unknown one (all zero) is not checked.
#[inline(always)]
pub(super) fn check_mac<W: World>(world: &W, mac: &[u8; 6]) -> Result<(), Reason> {
    let mac = halves(*mac);
    if mac == [0; 3] {
        return Ok(());
    }
    match world.sender() {
        Some(sender) if sender == mac => Ok(()),
        _ => Err(Reason::SourceMac),
    }
}

/// Is the frame for this hardware address, or for many? An unknown one (all zero) is not compared.
#[inline(always)]
pub(super) fn is_for<W: World>(world: &W, mac: &[u8; 6]) -> bool {
    let mac = halves(*mac);
    match world.link::<6>(0) {
        Some(to) => mac == [0; 3] || to[0] & 1 != 0 || halves(to) == mac,
        None => true,
    }
}

/// ARP out of a pod (RFC 826): its sender is the pod. Probes (RFC 5227) have no sender address.
#[inline(always)]
pub(super) fn check_arp<W: World>(world: &W, mac: &[u8; 6]) -> Result<(), Reason> {
    check_mac(world, mac)?;
    let h = world.net::<18>(0).ok_or(Reason::Truncated)?;
    // Ethernet and IPv4 with their sizes.
    if h[..6] != [0, 1, 8, 0, 6, 4] {
        return Err(Reason::Malformed);
    }
    let claims_mac = *mac == [0; 6] || h[8..14] == *mac;
    let sender = Address::from_v4([h[14], h[15], h[16], h[17]]);
    if claims_mac && (sender.is_unspecified() || is_own(world, &sender)) { Ok(()) } else { Err(Reason::Neighbour) }
}

/// ARP out of an interface whose pod is not known: the sender may be anybody but who is known to be elsewhere. What is not
/// about IPv4 passes, as does everything that is no IP there; Linux believes IEEE 802 as it does Ethernet, so the kind of
/// hardware does not matter.
#[inline(always)]
pub(super) fn check_unknown_arp<W: World>(world: &W) -> Result<(), Reason> {
    let Some(h) = world.net::<18>(0) else { return Ok(()) };
    let sender = Address::from_v4([h[14], h[15], h[16], h[17]]);
    if h[2..6] == [8, 0, 6, 4] && is_elsewhere(world, &sender) { Err(Reason::Neighbour) } else { Ok(()) }
}

/// The same of neighbour discovery: of whom an advertisement speaks, and who asks. A probe (RFC 4862) has no source, and a
/// link-local one cannot be told apart.
#[inline(always)]
pub(super) fn check_unknown_claim<W: World>(world: &W, case: &mut Case) -> Result<(), Reason> {
    if case.t.protocol != protocol::ICMPV6 {
        return Ok(());
    }
    let claimed = &mut case.key.local;
    match case.t.icmp_type {
        icmp::NEIGHBOUR_ADVERT if !world.copy(case.t.at + 8, &mut claimed.0) => return Err(Reason::Truncated),
        icmp::NEIGHBOUR_ADVERT => {}
        icmp::ROUTER_SOLICIT | icmp::NEIGHBOUR_SOLICIT => *claimed = case.ends.source,
        _ => return Ok(()),
    }
    if !claimed.is_link_local() && is_elsewhere(world, claimed) { Err(Reason::Neighbour) } else { Ok(()) }
}

/// Is it the address of a pod that is not here, or of this node? A pod without an interface may be the one here.
#[inline(always)]
fn is_elsewhere<W: World>(world: &W, address: &Address) -> bool {
    match world.endpoint(address) {
        Some(endpoint) => endpoint.ifindex != 0 && endpoint.ifindex != world.ifindex(),
        None => is_of(world, address, Peer::REMOTE | Peer::NODE),
    }
}

/// Has the address one of these flags?
#[inline(always)]
pub(super) fn is_of<W: World>(world: &W, address: &Address, flags: u32) -> bool {
    world.peer(address).is_some_and(|peer| peer.flags & flags != 0)
}

#[inline(always)]
fn is_own<W: World>(world: &W, address: &Address) -> bool {
    world.endpoint(address).is_some_and(|endpoint| endpoint.ifindex == world.ifindex())
}

/// A neighbour advertisement out of a pod speaks of the pod's address, or of a link-local one. Other packets are let
/// through unread, as only what was sent with the full hop limit is a neighbour's word.
#[inline(always)]
pub(super) fn check_advert<W: World>(world: &W, case: &mut Case) -> Result<(), Reason> {
    if !may_discover(&case.ends) {
        return Ok(());
    }
    case.read_transport(world)?;
    if case.t.protocol != protocol::ICMPV6 || case.t.icmp_type != icmp::NEIGHBOUR_ADVERT {
        return Ok(());
    }
    let target = &mut case.key.local;
    if !world.copy(case.t.at + 8, &mut target.0) {
        return Err(Reason::Truncated);
    }
    if target.is_link_local() || is_own(world, target) { Ok(()) } else { Err(Reason::Neighbour) }
}

/// What a pod sends before it has an address, or without one: DHCP, duplicate address detection, discovery of routers and
/// neighbours, reports of multicast listeners. None of it leaves the link.
#[inline(always)]
pub(super) fn is_link_talk(ends: &Ends, t: &Transport) -> bool {
    let ports = (t.source_port, t.destination_port);
    match t.protocol {
        protocol::UDP if ends.v4 => ends.source.is_unspecified() && ports == (68, 67),
        protocol::UDP => ends.source.is_link_local() && ports == (546, 547),
        protocol::ICMPV6 => match t.icmp_type {
            icmp::ROUTER_SOLICIT | icmp::NEIGHBOUR_SOLICIT | icmp::NEIGHBOUR_ADVERT => ends.hop_limit == ON_LINK,
            icmp::LISTENER_QUERY..=icmp::LISTENER_DONE | icmp::LISTENER_REPORT_2 => ends.hop_limit == 1,
            _ => false,
        },
        _ => false,
    }
}

/// Could neighbours take it for discovery?
#[inline(always)]
pub(super) fn may_discover(ends: &Ends) -> bool {
    !ends.v4 && ends.hop_limit == ON_LINK
}

/// May this source be anybody's on the link?
#[inline(always)]
pub(super) fn is_link_source(ends: &Ends) -> bool {
    ends.source.is_unspecified() || (!ends.v4 && ends.source.is_link_local())
}
