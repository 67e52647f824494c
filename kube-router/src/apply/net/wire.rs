//! The bodies of the rtnetlink requests this plane makes (include/uapi/linux/{rtnetlink,if_addr,if_link}.h).
//!
//! Requests are built with `netlink-packet-route`, whose types carry the kernel's names. Answers are read by
//! [`super::table`] attribute by attribute instead: that crate refuses a whole message for one attribute it does not
//! understand, and an answer of tomorrow's kernel must not blind the agent.

use std::net::IpAddr;

use netlink_packet_core::Emitable;
use netlink_packet_route::{
    AddressFamily,
    address::{AddressAttribute, AddressMessage, AddressScope},
    link::{InfoKind, LinkAttribute, LinkExtentMask, LinkFlags, LinkInfo, LinkMessage},
    route::{RouteAttribute, RouteFlags, RouteMessage, RouteProtocol, RouteScope, RouteType},
};

use super::DUMMY;

pub const RTM_NEWLINK: u16 = 16;
pub const RTM_DELLINK: u16 = 17;
pub const RTM_GETLINK: u16 = 18;
pub const RTM_SETLINK: u16 = 19;
pub const RTM_NEWADDR: u16 = 20;
pub const RTM_DELADDR: u16 = 21;
pub const RTM_GETADDR: u16 = 22;
pub const RTM_NEWROUTE: u16 = 24;
pub const RTM_DELROUTE: u16 = 25;
pub const RTM_GETROUTE: u16 = 26;

/// `RT_TABLE_LOCAL`.
pub const LOCAL_TABLE: u8 = 255;
const MAIN_TABLE: u8 = 254;
/// What IPv6 makes of a route that names no metric (`IP6_RT_PRIO_USER`, include/net/ip6_route.h).
pub const IPV6_USER_METRIC: u32 = 1024;
/// What the kernel gives the route of a prefix (`IP6_RT_PRIO_ADDRCONF`).
const IPV6_PREFIX_METRIC: u32 = 256;

/// Prefix length of a single address.
pub fn full_prefix(address: IpAddr) -> u8 {
    if address.is_ipv4() { 32 } else { 128 }
}

fn family(address: IpAddr) -> AddressFamily {
    if address.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 }
}

/// Appends `message` to `bytes`.
pub fn append(bytes: &mut Vec<u8>, message: &impl Emitable) {
    let start = bytes.len();
    bytes.resize(start + message.buffer_len(), 0);
    message.emit(&mut bytes[start..]);
}

/// kube-dummy-if, up. With NLM_F_CREATE it is made if missing; an existing one is only set up.
pub fn dummy_up() -> LinkMessage {
    let mut message = LinkMessage::default();
    message.header.flags = LinkFlags::Up;
    message.header.change_mask = LinkFlags::Up;
    message.attributes =
        vec![LinkAttribute::IfName(DUMMY.into()), LinkAttribute::LinkInfo(vec![LinkInfo::Kind(InfoKind::Dummy)])];
    message
}

/// kube-dummy-if by name, to be read or deleted.
pub fn dummy_by_name() -> LinkMessage {
    let mut message = LinkMessage::default();
    message.attributes = vec![LinkAttribute::IfName(DUMMY.into())];
    message
}

/// Every link, without the counters that make up most of the answer.
pub fn all_links() -> LinkMessage {
    let mut message = LinkMessage::default();
    message.attributes = vec![LinkAttribute::ExtMask(vec![LinkExtentMask::SkipStats])];
    message
}

/// An address on link `index`. IPv4: scope link, no broadcast address. IPv6: scope global by its own nature, and
/// without duplicate address detection, so that it is usable when the request returns.
pub fn address(index: u32, address: IpAddr, prefix: u8) -> AddressMessage {
    let mut message = AddressMessage::default();
    message.header.family = family(address);
    message.header.prefix_len = prefix;
    message.header.index = index;
    message.attributes = vec![AddressAttribute::Local(address), AddressAttribute::Address(address)];
    if address.is_ipv4() {
        message.header.scope = AddressScope::Link;
    }
    // No IFA_F_NODAD: a dummy link has no ARP, so the kernel checks for no duplicates there and the address is usable
    // at once; and `ip addr` shows what it always showed.
    message
}

fn route(index: u32, vip: IpAddr, table: u8, kind: RouteType) -> RouteMessage {
    let mut message = RouteMessage::default();
    message.header.address_family = family(vip);
    message.header.destination_prefix_length = full_prefix(vip);
    message.header.table = table;
    message.header.kind = kind;
    message.attributes = vec![RouteAttribute::Destination(vip.into()), RouteAttribute::Oif(index)];
    message
}

/// `local VIP dev kube-dummy-if table local proto kernel [scope host] [src SOURCE] [metric METRIC]`, to be added.
pub fn new_local_route(index: u32, vip: IpAddr, source: Option<IpAddr>, metric: u32) -> RouteMessage {
    let mut message = route(index, vip, LOCAL_TABLE, RouteType::Local);
    message.header.protocol = RouteProtocol::Kernel;
    if vip.is_ipv4() {
        message.header.scope = RouteScope::Host;
    }
    message.attributes.extend(source.map(|source| RouteAttribute::PrefSource(source.into())));
    if metric != 0 {
        message.attributes.push(RouteAttribute::Priority(metric));
    }
    message
}

/// The first local route to `vip` on link `index` that has this source, metric and protocol (include/uapi numbers);
/// what is `None` or zero may be anything. IPv6 does not look at the source.
pub fn old_local_route(index: u32, vip: IpAddr, source: Option<IpAddr>, metric: u32, protocol: u8) -> RouteMessage {
    let mut message = route(index, vip, LOCAL_TABLE, RouteType::Local);
    message.header.protocol = protocol.into();
    message.header.scope = RouteScope::NoWhere;
    message.attributes.extend(source.map(|source| RouteAttribute::PrefSource(source.into())));
    if metric != 0 {
        message.attributes.push(RouteAttribute::Priority(metric));
    }
    message
}

/// The `VIP dev kube-dummy-if proto kernel metric 256` that IPv6 adds to the main table along with an address.
pub fn ipv6_prefix_route(index: u32, vip: IpAddr) -> RouteMessage {
    let mut message = route(index, vip, MAIN_TABLE, RouteType::Unicast);
    message.header.protocol = RouteProtocol::Kernel;
    message.attributes.push(RouteAttribute::Priority(IPV6_PREFIX_METRIC));
    message
}

/// Asks for all local routes of one family on link `index`. The kernel filters if the socket asked for strict checks.
pub fn local_routes(index: u32, family: AddressFamily) -> RouteMessage {
    let mut message = RouteMessage::default();
    message.header.address_family = family;
    message.header.table = LOCAL_TABLE;
    message.header.kind = RouteType::Local;
    message.attributes = vec![RouteAttribute::Oif(index)];
    message
}

/// Asks which entry of the routing tables a packet of this host to `vip` would use (`ip route get fibmatch`).
pub fn matching_route(vip: IpAddr) -> RouteMessage {
    let mut message = RouteMessage::default();
    message.header.address_family = family(vip);
    message.header.destination_prefix_length = full_prefix(vip);
    message.header.flags = RouteFlags::FibMatch;
    message.attributes = vec![RouteAttribute::Destination(vip.into())];
    message
}
