//! What nftables, ipset and conntrack share on the wire: the four bytes of `struct nfgenmsg` between the netlink
//! header and the attributes, and message types made of a subsystem and a command (include/uapi/linux/netfilter/
//! nfnetlink.h).

use std::net::IpAddr;

use crate::{
    apply::PlaneError,
    nl::{NlError, Socket, attr},
};

/// `NFNL_SUBSYS_*`.
pub const SUBSYS_CTNETLINK: u8 = 1;
pub const SUBSYS_IPSET: u8 = 6;
pub const SUBSYS_NFTABLES: u8 = 10;

/// `NFNL_MSG_BATCH_BEGIN` and `_END`.
pub const BATCH_BEGIN: u16 = 0x10;
pub const BATCH_END: u16 = 0x11;

/// Size of `struct nfgenmsg`.
const GENERIC_HEADER: usize = 4;

/// The netlink message type of a subsystem's command.
pub const fn message_type(subsystem: u8, command: u8) -> u16 {
    (subsystem as u16) << 8 | command as u16
}

/// Writes `struct nfgenmsg`. `resource` is zero except in a batch's frame.
pub fn put_header(bytes: &mut Vec<u8>, family: u8, resource: u16) {
    bytes.push(family);
    bytes.push(0); // NFNETLINK_V0
    bytes.extend_from_slice(&resource.to_be_bytes());
}

/// The attributes after `struct nfgenmsg`.
pub fn attributes(payload: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    attr::attributes(payload.get(GENERIC_HEADER..).unwrap_or(&[]))
}

/// `NFPROTO_IPV4` or `NFPROTO_IPV6`.
pub const fn family(ipv6: bool) -> u8 {
    if ipv6 { libc::NFPROTO_IPV6 as u8 } else { libc::NFPROTO_IPV4 as u8 }
}

/// Network byte order, 4 or 16 bytes.
pub fn octets(address: IpAddr) -> Vec<u8> {
    match address {
        IpAddr::V4(a) => a.octets().to_vec(),
        IpAddr::V6(a) => a.octets().to_vec(),
    }
}

/// Reads 4 or 16 bytes in network order.
pub fn address(bytes: &[u8]) -> Option<IpAddr> {
    match bytes.len() {
        4 => Some(<[u8; 4]>::try_from(bytes).ok()?.into()),
        16 => Some(<[u8; 16]>::try_from(bytes).ok()?.into()),
        _ => None,
    }
}

/// Opens a NETLINK_NETFILTER socket in the calling thread's network namespace.
pub fn open(what: &'static str) -> Result<Socket, PlaneError> {
    Socket::open(netlink_sys::protocols::NETLINK_NETFILTER).map_err(|source| failed(what, source))
}

/// A whole exchange failed. A subsystem that is not there answers a plain request with EINVAL and a batch with
/// EOPNOTSUPP (net/netfilter/nfnetlink.c).
pub fn failed(what: &'static str, source: NlError) -> PlaneError {
    match source.errno() {
        Some(libc::EINVAL | libc::EOPNOTSUPP | libc::EPROTONOSUPPORT) => PlaneError::Unavailable { what, source },
        _ => PlaneError::Netlink { what, source },
    }
}
