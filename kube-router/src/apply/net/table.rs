//! Reading links, addresses and local routes.
//!
//! In: rtnetlink answers. Out: plain rows. Only the attributes we need are looked at, and a message that lacks them is
//! passed over: tables hold many things that are none of our business.

use std::{
    collections::HashMap,
    net::{IpAddr, Ipv6Addr},
};

use netlink_packet_route::AddressFamily;

use super::{
    DUMMY,
    wire::{self, IPV6_USER_METRIC, LOCAL_TABLE, RTM_GETADDR, RTM_GETLINK, RTM_GETROUTE, full_prefix},
};
use crate::nl::{NlError, Socket, attr};

/// include/uapi/linux/if_link.h, if_addr.h, rtnetlink.h
const IFLA_IFNAME: u16 = 3;
const IFA_ADDRESS: u16 = 1;
const IFA_LOCAL: u16 = 2;
const IFA_FLAGS: u16 = 8;
const RTA_DST: u16 = 1;
const RTA_OIF: u16 = 4;
const RTA_PRIORITY: u16 = 6;
const RTA_PREFSRC: u16 = 7;
const RTA_TABLE: u16 = 15;
const IFF_UP: u32 = 0x1;
const IFA_F_DADFAILED: u32 = 0x08;
const IFA_F_TENTATIVE: u32 = 0x40;
const RTN_LOCAL: u8 = 2;
const RTPROT_KERNEL: u8 = 2;
const RT_SCOPE_HOST: u8 = 254;

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Link {
    pub index: u32,
    pub name: Box<str>,
    pub up: bool,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Address {
    pub link: u32,
    pub address: IpAddr,
    pub prefix: u8,
    /// Not (or not yet) usable: duplicate address detection is under way or failed.
    pub tentative: bool,
}

/// One route `local VIP dev kube-dummy-if table local`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LocalRoute {
    pub link: u32,
    pub vip: IpAddr,
    pub source: Option<IpAddr>,
    pub metric: u32,
    pub protocol: u8,
    /// Always zero for IPv6.
    pub scope: u8,
}

impl LocalRoute {
    /// The route that the kernel makes for an address, or the one we make instead of it.
    pub fn expected(vip: IpAddr, link: u32, source: Option<IpAddr>, by_kernel: bool) -> Self {
        let (metric, scope) = match vip {
            IpAddr::V4(_) => (0, RT_SCOPE_HOST),
            IpAddr::V6(_) => (if by_kernel { 0 } else { IPV6_USER_METRIC }, 0),
        };
        LocalRoute { link, vip, source, metric, protocol: RTPROT_KERNEL, scope }
    }

    /// Has the form that we or the kernel give it, whatever the source.
    pub fn is_regular(&self) -> bool {
        let by_kernel = self.source.is_none() && self.metric == 0;
        *self == LocalRoute::expected(self.vip, self.link, self.source, by_kernel)
    }
}

fn address(value: &[u8]) -> Option<IpAddr> {
    match value.len() {
        4 => Some(IpAddr::from(<[u8; 4]>::try_from(value).ok()?)),
        16 => Some(IpAddr::from(<[u8; 16]>::try_from(value).ok()?)),
        _ => None,
    }
}

/// `struct ifinfomsg`, then attributes.
pub fn parse_link(payload: &[u8]) -> Option<Link> {
    let header = payload.get(..16)?;
    let name = attr::attributes(payload.get(16..)?).find(|(kind, _)| *kind == IFLA_IFNAME)?.1;
    Some(Link {
        index: attr::u32(&header[4..])?,
        name: attr::text(name).into(),
        up: attr::u32(&header[8..])? & IFF_UP != 0,
    })
}

/// `struct ifaddrmsg`, then attributes. The address is the host's own, not a peer's.
pub fn parse_address(payload: &[u8]) -> Option<Address> {
    let header = payload.get(..8)?;
    let (mut local, mut own_or_peer, mut flags) = (None, None, u32::from(header[2]));
    for (kind, value) in attr::attributes(&payload[8..]) {
        match kind {
            IFA_LOCAL => local = address(value),
            IFA_ADDRESS => own_or_peer = address(value),
            IFA_FLAGS => flags = attr::u32(value)?,
            _ => {}
        }
    }
    Some(Address {
        link: attr::u32(&header[4..])?,
        address: local.or(own_or_peer)?,
        prefix: header[1],
        tentative: flags & (IFA_F_TENTATIVE | IFA_F_DADFAILED) != 0,
    })
}

/// `struct rtmsg`, then attributes. `None` for anything but a host route of type local in table local.
pub fn parse_local_route(payload: &[u8]) -> Option<LocalRoute> {
    let header = payload.get(..12)?;
    let (mut vip, mut link, mut source, mut metric, mut table) = (None, None, None, 0, u32::from(header[4]));
    for (kind, value) in attr::attributes(&payload[12..]) {
        match kind {
            RTA_DST => vip = address(value),
            RTA_OIF => link = attr::u32(value),
            RTA_PREFSRC => source = address(value),
            RTA_PRIORITY => metric = attr::u32(value)?,
            RTA_TABLE => table = attr::u32(value)?,
            _ => {}
        }
    }
    let vip = vip?;
    if header[1] != full_prefix(vip) || header[7] != RTN_LOCAL || table != u32::from(LOCAL_TABLE) {
        return None;
    }
    let scope = if vip.is_ipv4() { header[6] } else { 0 };
    // IPv4 writes the address itself as the source of its own route, IPv6 writes none. Both mean "no other source".
    let source = source.filter(|source| *source != vip);
    Some(LocalRoute { link: link?, vip, source, metric, protocol: header[5], scope })
}

/// Every link of the namespace.
pub fn read_links(socket: &mut Socket) -> Result<Vec<Link>, NlError> {
    socket.dump(
        RTM_GETLINK,
        0,
        |bytes| wire::append(bytes, &wire::all_links()),
        |links: &mut Vec<Link>, _, payload| {
            links.extend(parse_link(payload));
            Ok(())
        },
    )
}

/// Every address of the namespace, both families in one dump.
pub fn read_addresses(socket: &mut Socket) -> Result<Vec<Address>, NlError> {
    socket.dump(
        RTM_GETADDR,
        0,
        |bytes| bytes.extend_from_slice(&[0; 8]),
        |addresses: &mut Vec<Address>, _, payload| {
            addresses.extend(parse_address(payload));
            Ok(())
        },
    )
}

/// The local routes of one family on link `index`, in the order in which the kernel tries them.
pub fn read_local_routes(socket: &mut Socket, index: u32, family: AddressFamily) -> Result<Vec<LocalRoute>, NlError> {
    let rows = socket.dump(
        RTM_GETROUTE,
        0,
        |bytes| wire::append(bytes, &wire::local_routes(index, family)),
        |routes: &mut Vec<LocalRoute>, _, payload| {
            routes.extend(parse_local_route(payload).filter(|route| route.link == index && !is_link_local(route.vip)));
            Ok(())
        },
    );
    match rows {
        // The table does not exist before its first route (ENOENT); a kernel without IPv6 has no such request.
        Err(error) if matches!(error.errno(), Some(libc::ENOENT | libc::EOPNOTSUPP | libc::EAFNOSUPPORT)) => {
            Ok(Vec::new())
        }
        rows => rows,
    }
}

/// kube-dummy-if, if it is there.
pub fn read_dummy(socket: &mut Socket) -> Result<Option<Link>, NlError> {
    let mut link = None;
    let answer = socket.request(
        RTM_GETLINK,
        0,
        |bytes| wire::append(bytes, &wire::dummy_by_name()),
        |_, payload| {
            link = parse_link(payload).filter(|link| &*link.name == DUMMY);
            Ok(())
        },
    );
    match answer {
        Err(error) if error.errno() == Some(libc::ENODEV) => Ok(None),
        answer => answer.map(|()| link),
    }
}

/// The local route that a packet to `vip` would use; `None` if it would use another kind of route, or none.
pub fn read_matching_route(socket: &mut Socket, vip: IpAddr) -> Result<Option<LocalRoute>, NlError> {
    let mut route = None;
    let answer = socket.request(
        RTM_GETROUTE,
        0,
        |bytes| wire::append(bytes, &wire::matching_route(vip)),
        |_, payload| {
            route = parse_local_route(payload);
            Ok(())
        },
    );
    match answer {
        Err(NlError::Refused(_)) => Ok(None),
        answer => answer.map(|()| route),
    }
}

/// fe80::/10: made by the kernel for the link, never a VIP.
pub fn is_link_local(address: IpAddr) -> bool {
    matches!(address, IpAddr::V6(address) if Ipv6Addr::is_unicast_link_local(&address))
}

/// Index to name.
pub fn names(links: &[Link]) -> HashMap<u32, &str> {
    links.iter().map(|link| (link.index, &*link.name)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn emitted(message: &impl netlink_packet_core::Emitable) -> Vec<u8> {
        let mut bytes = Vec::new();
        wire::append(&mut bytes, message);
        bytes
    }

    fn ip(text: &str) -> IpAddr {
        text.parse().expect("address")
    }

    #[test]
    fn our_routes_read_back_as_regular() {
        for (vip, source) in [("10.96.0.10", "192.0.2.1"), ("fd00::10", "fd00:77::1")] {
            let (vip, source) = (ip(vip), ip(source));
            let metric = if vip.is_ipv4() { 0 } else { IPV6_USER_METRIC };
            let bytes = emitted(&wire::new_local_route(7, vip, Some(source), metric));
            let route = parse_local_route(&bytes).expect("a local route");
            assert_eq!(route, LocalRoute::expected(vip, 7, Some(source), false));
            assert!(route.is_regular());
        }
    }

    #[test]
    fn own_source_reads_as_none_and_odd_forms_are_told_apart() {
        let vip = ip("10.96.0.10");
        let own = parse_local_route(&emitted(&wire::new_local_route(7, vip, Some(vip), 0))).expect("route");
        assert_eq!((own.source, own.is_regular()), (None, true));
        let odd = parse_local_route(&emitted(&wire::new_local_route(7, vip, None, 5))).expect("route");
        assert!(!odd.is_regular());
        assert!(LocalRoute::expected(ip("fd00::1"), 7, None, true).is_regular());
        assert!(!LocalRoute { metric: 256, ..LocalRoute::expected(ip("fd00::1"), 7, None, true) }.is_regular());
    }

    #[test]
    fn other_tables_are_passed_over() {
        assert_eq!(parse_local_route(&emitted(&wire::ipv6_prefix_route(7, ip("fd00::1")))), None);
        assert_eq!(parse_local_route(&[0; 11]), None);
    }

    #[test]
    fn addresses_read_back() {
        let bytes = emitted(&wire::address(3, ip("10.96.0.10"), 32));
        let expected = Address { link: 3, address: ip("10.96.0.10"), prefix: 32, tentative: false };
        assert_eq!(parse_address(&bytes), Some(expected));
        assert_eq!(parse_address(&[0; 8]), None);
    }
}
