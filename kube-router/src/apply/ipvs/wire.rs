//! IPVS requests, in the generic netlink form of the kernel's include/uapi/linux/ip_vs.h.
//!
//! In: an order. Out: the bytes behind the netlink header, i.e. `struct genlmsghdr` and attributes. Pure; it knows
//! neither sockets nor the family's number. What the kernel does with each attribute is in
//! net/netfilter/ipvs/ip_vs_ctl.c; what it answers is read by [`super::decode`].

use std::net::{IpAddr, SocketAddr};

use crate::{
    apply::IpvsTimeouts,
    desired::{Destination, Virtual, VirtualKey, ipvs::FLAG_PERSISTENT},
    nl::attr,
    plan::IpvsOp,
};

/// `IPVS_GENL_VERSION`.
const VERSION: u8 = 1;
/// Size of `struct genlmsghdr`: u8 command, u8 version, u16 reserved.
pub const GENERIC_HEADER: usize = 4;

/// `IPVS_CMD_*`.
pub mod command {
    pub const NEW_SERVICE: u8 = 1;
    pub const SET_SERVICE: u8 = 2;
    pub const DEL_SERVICE: u8 = 3;
    pub const GET_SERVICE: u8 = 4;
    pub const NEW_DEST: u8 = 5;
    pub const SET_DEST: u8 = 6;
    pub const DEL_DEST: u8 = 7;
    pub const GET_DEST: u8 = 8;
    pub const SET_CONFIG: u8 = 12;
}

/// `IPVS_CMD_ATTR_*`: the first level.
pub mod top {
    pub const SERVICE: u16 = 1;
    pub const DEST: u16 = 2;
    pub const TIMEOUT_TCP: u16 = 4;
    pub const TIMEOUT_TCP_FIN: u16 = 5;
    pub const TIMEOUT_UDP: u16 = 6;
}

/// `IPVS_SVC_ATTR_*`: inside `top::SERVICE`.
pub mod service {
    pub const AF: u16 = 1;
    pub const PROTOCOL: u16 = 2;
    pub const ADDR: u16 = 3;
    pub const PORT: u16 = 4;
    pub const FWMARK: u16 = 5;
    pub const SCHED_NAME: u16 = 6;
    pub const FLAGS: u16 = 7;
    pub const TIMEOUT: u16 = 8;
    pub const NETMASK: u16 = 9;
    pub const PE_NAME: u16 = 11;
    pub const STATS64: u16 = 12;
}

/// `IPVS_DEST_ATTR_*`: inside `top::DEST`.
pub mod dest {
    pub const ADDR: u16 = 1;
    pub const PORT: u16 = 2;
    pub const FWD_METHOD: u16 = 3;
    pub const WEIGHT: u16 = 4;
    pub const U_THRESH: u16 = 5;
    pub const L_THRESH: u16 = 6;
    pub const ACTIVE_CONNS: u16 = 7;
    pub const INACT_CONNS: u16 = 8;
    pub const ADDR_FAMILY: u16 = 11;
}

/// `IPVS_STATS_ATTR_*`: inside `service::STATS64`, all u64 in host order.
pub mod stats {
    pub const CONNS: u16 = 1;
    pub const INPKTS: u16 = 2;
    pub const OUTPKTS: u16 = 3;
    pub const INBYTES: u16 = 4;
    pub const OUTBYTES: u16 = 5;
    pub const CPS: u16 = 6;
    pub const INPPS: u16 = 7;
    pub const OUTPPS: u16 = 8;
    pub const INBPS: u16 = 9;
    pub const OUTBPS: u16 = 10;
}

pub const AF_INET: u16 = libc::AF_INET as u16;
pub const AF_INET6: u16 = libc::AF_INET6 as u16;
/// `IP_VS_CONN_F_MASQ`: forwarding by NAT.
pub const FORWARD_MASQ: u32 = 0;

/// The mask that groups clients one by one: 255.255.255.255, or for IPv6 the prefix length (the kernel keeps both in
/// one field, the mask in network order and the length in the host's).
pub fn whole_address_mask(family: u16) -> u32 {
    if family == AF_INET6 { 128 } else { u32::MAX }
}

/// Writes the request that carries out `op`.
pub fn encode(bytes: &mut Vec<u8>, op: &IpvsOp) {
    match op {
        IpvsOp::AddServer { key, server } => put_server(bytes, command::NEW_SERVICE, key, server),
        IpvsOp::EditServer { key, server } => put_server(bytes, command::SET_SERVICE, key, server),
        IpvsOp::DeleteServer { key } => put_server_command(bytes, command::DEL_SERVICE, key),
        IpvsOp::DeleteMarkServer { mark, ipv6 } => {
            put_header(bytes, command::DEL_SERVICE);
            attr::nest(bytes, top::SERVICE, |bytes| {
                attr::put_u16(bytes, service::AF, if *ipv6 { AF_INET6 } else { AF_INET });
                attr::put_u32(bytes, service::FWMARK, *mark);
            });
        }
        IpvsOp::AddDestination { key, destination, weight } => {
            put_destination(bytes, command::NEW_DEST, key, destination, Some(*weight));
        }
        IpvsOp::EditDestination { key, destination, weight } => {
            put_destination(bytes, command::SET_DEST, key, destination, Some(*weight));
        }
        IpvsOp::DeleteDestination { key, destination } => {
            put_destination(bytes, command::DEL_DEST, key, destination, None);
        }
    }
}

/// A dump of all virtual servers of the network namespace.
pub fn encode_list_servers(bytes: &mut Vec<u8>) {
    put_header(bytes, command::GET_SERVICE);
}

/// A dump of one virtual server's destinations.
pub fn encode_list_destinations(bytes: &mut Vec<u8>, key: &VirtualKey) {
    put_server_command(bytes, command::GET_DEST, key);
}

/// Sets the timeouts that are at least one second; the kernel keeps the others.
pub fn encode_timeouts(bytes: &mut Vec<u8>, timeouts: &IpvsTimeouts) {
    put_header(bytes, command::SET_CONFIG);
    let all =
        [(top::TIMEOUT_TCP, timeouts.tcp), (top::TIMEOUT_TCP_FIN, timeouts.tcp_fin), (top::TIMEOUT_UDP, timeouts.udp)];
    for (kind, timeout) in all {
        // What does not fit is refused by the kernel (EINVAL), as it keeps jiffies in an int.
        let seconds = u32::try_from(timeout.as_secs()).unwrap_or(u32::MAX);
        if seconds != 0 {
            attr::put_u32(bytes, kind, seconds);
        }
    }
}

fn put_header(bytes: &mut Vec<u8>, command: u8) {
    bytes.extend_from_slice(&[command, VERSION, 0, 0]);
}

fn put_server_command(bytes: &mut Vec<u8>, command: u8, key: &VirtualKey) {
    put_header(bytes, command);
    attr::nest(bytes, top::SERVICE, |bytes| put_key(bytes, key));
}

/// NEW_SERVICE and SET_SERVICE want the same, complete set of attributes.
fn put_server(bytes: &mut Vec<u8>, command: u8, key: &VirtualKey, server: &Virtual) {
    put_header(bytes, command);
    attr::nest(bytes, top::SERVICE, |bytes| {
        put_key(bytes, key);
        attr::put_str(bytes, service::SCHED_NAME, server.scheduler.name());
        let persistent = if server.persistence_s.is_some() { FLAG_PERSISTENT } else { 0 };
        // struct ip_vs_flags { flags, mask }: the full mask also clears what somebody else set; the kernel looks
        // after its own FLAG_HASHED.
        let mut flags = [0; 8];
        flags[..4].copy_from_slice(&(server.sched_flags | persistent).to_ne_bytes());
        flags[4..].copy_from_slice(&u32::MAX.to_ne_bytes());
        attr::put(bytes, service::FLAGS, &flags);
        attr::put_u32(bytes, service::TIMEOUT, server.persistence_s.unwrap_or(0));
        attr::put_u32(bytes, service::NETMASK, whole_address_mask(family(&key.address)));
    });
}

/// `weight` is `None` where the destination only needs to be found.
fn put_destination(bytes: &mut Vec<u8>, command: u8, key: &VirtualKey, destination: &Destination, weight: Option<u32>) {
    put_server_command(bytes, command, key);
    attr::nest(bytes, top::DEST, |bytes| {
        put_endpoint(bytes, dest::ADDR, dest::PORT, destination);
        attr::put_u16(bytes, dest::ADDR_FAMILY, family(&destination.ip()));
        if let Some(weight) = weight {
            attr::put_u32(bytes, dest::FWD_METHOD, FORWARD_MASQ);
            attr::put_u32(bytes, dest::WEIGHT, weight);
            attr::put_u32(bytes, dest::U_THRESH, 0);
            attr::put_u32(bytes, dest::L_THRESH, 0);
        }
    });
}

fn put_key(bytes: &mut Vec<u8>, key: &VirtualKey) {
    attr::put_u16(bytes, service::AF, family(&key.address));
    attr::put_u16(bytes, service::PROTOCOL, key.protocol.number().into());
    put_endpoint(bytes, service::ADDR, service::PORT, &SocketAddr::new(key.address, key.port));
}

/// The address goes as `union nf_inet_addr`: 16 bytes, an IPv4 address in the first four.
fn put_endpoint(bytes: &mut Vec<u8>, address_kind: u16, port_kind: u16, endpoint: &SocketAddr) {
    let mut address = [0; 16];
    match endpoint.ip() {
        IpAddr::V4(ip) => address[..4].copy_from_slice(&ip.octets()),
        IpAddr::V6(ip) => address = ip.octets(),
    }
    attr::put(bytes, address_kind, &address);
    attr::put_be16(bytes, port_kind, endpoint.port());
}

fn family(address: &IpAddr) -> u16 {
    if address.is_ipv6() { AF_INET6 } else { AF_INET }
}
