//! IPVS answers, out of the generic netlink form of the kernel's include/uapi/linux/ip_vs.h.
//!
//! In: one dump message behind its netlink header. Out: plain data, or an error for a message that lacks what the
//! kernel always sends (net/netfilter/ipvs/ip_vs_ctl.c, `ip_vs_genl_fill_*`). Pure; no input makes it panic.
//!
//! Attributes that we never ask for become the values which `ObservedIpvs` promises for them, so that whoever compares
//! sees a difference and repairs it.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use super::wire::{AF_INET, AF_INET6, FORWARD_MASQ, GENERIC_HEADER, dest, service, stats, top, whole_address_mask};
use crate::{
    apply::{Connections, ServerStats},
    desired::{
        Destination, Scheduler, Virtual, VirtualKey,
        ipvs::{FLAG_HASHED, FLAG_PERSISTENT, FLAG_SCHED_1, FLAG_SCHED_2, FLAG_SCHED_3},
    },
    nl::{NlError, attr},
    objects::Protocol,
};

const SCHED_FLAGS: u32 = FLAG_SCHED_1 | FLAG_SCHED_2 | FLAG_SCHED_3;

/// What a virtual server is bound to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Identity {
    Key(VirtualKey),
    Mark {
        mark: u32,
        ipv6: bool,
    },
    /// A protocol that Kubernetes has no Service for. It is nobody's rival, so it is left alone.
    OtherProtocol,
}

/// Reads a virtual server's identity and attributes; its destinations come by another dump.
pub fn decode_server(payload: &[u8]) -> Result<(Identity, Virtual), NlError> {
    let [family, sched_name, flags, timeout, netmask, pe_name] = find(
        nested(payload, top::SERVICE)?,
        [service::AF, service::SCHED_NAME, service::FLAGS, service::TIMEOUT, service::NETMASK, service::PE_NAME],
    );
    let family = need(family.and_then(attr::u16), "service family")?;
    let sched_name = need(sched_name, "service scheduler")?;
    let flags = need(flags.and_then(attr::u32), "service flags")?;
    let timeout = need(timeout.and_then(attr::u32), "service timeout")?;
    let netmask = need(netmask.and_then(attr::u32), "service netmask")?;

    let persistent = flags & FLAG_PERSISTENT != 0;
    let odd = flags & !(FLAG_PERSISTENT | FLAG_HASHED | SCHED_FLAGS) != 0
        || netmask != whole_address_mask(family)
        || pe_name.is_some();
    let scheduler = if odd { None } else { Scheduler::from_name(attr::text(sched_name)) };
    let server = Virtual {
        scheduler: scheduler.unwrap_or(Scheduler::Other),
        sched_flags: flags & SCHED_FLAGS,
        persistence_s: persistent.then_some(timeout),
        destinations: Default::default(),
    };
    Ok((decode_identity(payload)?, server))
}

/// Reads a virtual server's identity and its 64-bit counters (kernel 4.1 and later).
pub fn decode_server_stats(payload: &[u8]) -> Result<(Identity, ServerStats), NlError> {
    let [counters] = find(nested(payload, top::SERVICE)?, [service::STATS64]);
    let values = find(
        need(counters, "service counters")?,
        [
            stats::CONNS,
            stats::INPKTS,
            stats::OUTPKTS,
            stats::INBYTES,
            stats::OUTBYTES,
            stats::CPS,
            stats::INPPS,
            stats::OUTPPS,
            stats::INBPS,
            stats::OUTBPS,
        ],
    );
    let mut numbers = [0; 10];
    for (number, value) in numbers.iter_mut().zip(values) {
        *number = need(value.and_then(attr::u64), "service counter")?;
    }
    let [connections, packets_in, packets_out, bytes_in, bytes_out, cps, ppsi, ppso, bpsi, bpso] = numbers;
    let stats = ServerStats {
        connections,
        packets_in,
        packets_out,
        bytes_in,
        bytes_out,
        connections_per_s: cps,
        packets_in_per_s: ppsi,
        packets_out_per_s: ppso,
        bytes_in_per_s: bpsi,
        bytes_out_per_s: bpso,
    };
    Ok((decode_identity(payload)?, stats))
}

/// Reads a destination and its weight: `u32::MAX` for one that is not plain NAT without connection limits.
pub fn decode_destination(payload: &[u8]) -> Result<(Destination, u32), NlError> {
    let inner = nested(payload, top::DEST)?;
    let [method, weight, upper, lower] = find(inner, [dest::FWD_METHOD, dest::WEIGHT, dest::U_THRESH, dest::L_THRESH]);
    let method = need(method.and_then(attr::u32), "destination forwarding method")?;
    let weight = need(weight.and_then(attr::u32), "destination weight")?;
    let upper = need(upper.and_then(attr::u32), "destination upper threshold")?;
    let lower = need(lower.and_then(attr::u32), "destination lower threshold")?;
    let plain = method == FORWARD_MASQ && upper == 0 && lower == 0;
    Ok((destination(inner)?, if plain { weight } else { u32::MAX }))
}

/// Reads a destination and the connections that the kernel counts on it.
pub fn decode_connections(payload: &[u8]) -> Result<(Destination, Connections), NlError> {
    let inner = nested(payload, top::DEST)?;
    let [active, inactive] = find(inner, [dest::ACTIVE_CONNS, dest::INACT_CONNS]);
    let connections = Connections {
        active: need(active.and_then(attr::u32), "destination's active connections")?,
        inactive: need(inactive.and_then(attr::u32), "destination's inactive connections")?,
    };
    Ok((destination(inner)?, connections))
}

fn decode_identity(payload: &[u8]) -> Result<Identity, NlError> {
    let [family, mark, protocol, address, port] = find(
        nested(payload, top::SERVICE)?,
        [service::AF, service::FWMARK, service::PROTOCOL, service::ADDR, service::PORT],
    );
    let family = need(family.and_then(attr::u16), "service family")?;
    if let Some(mark) = mark.and_then(attr::u32) {
        return Ok(Identity::Mark { mark, ipv6: family == AF_INET6 });
    }
    let protocol = need(protocol.and_then(attr::u16), "service protocol")?;
    let address = need(address.and_then(|bytes| ip(family, bytes)), "service address")?;
    let port = need(port.and_then(attr::be16), "service port")?;
    let protocol = u8::try_from(protocol).ok().and_then(Protocol::from_number);
    Ok(protocol.map_or(Identity::OtherProtocol, |protocol| Identity::Key(VirtualKey { address, protocol, port })))
}

fn destination(inner: &[u8]) -> Result<Destination, NlError> {
    let [family, address, port] = find(inner, [dest::ADDR_FAMILY, dest::ADDR, dest::PORT]);
    let family = need(family.and_then(attr::u16), "destination family")?;
    let address = need(address.and_then(|bytes| ip(family, bytes)), "destination address")?;
    let port = need(port.and_then(attr::be16), "destination port")?;
    Ok(SocketAddr::new(address, port))
}

fn ip(family: u16, bytes: &[u8]) -> Option<IpAddr> {
    match family {
        AF_INET => Some(Ipv4Addr::from(<[u8; 4]>::try_from(bytes.get(..4)?).ok()?).into()),
        AF_INET6 => Some(Ipv6Addr::from(<[u8; 16]>::try_from(bytes.get(..16)?).ok()?).into()),
        _ => None,
    }
}

/// The inside of the attribute `kind` behind the generic netlink header.
fn nested(payload: &[u8], kind: u16) -> Result<&[u8], NlError> {
    let [inner] = find(payload.get(GENERIC_HEADER..).unwrap_or(&[]), [kind]);
    need(inner, "IPVS message")
}

/// Looks up several attributes in one walk.
fn find<const N: usize>(bytes: &[u8], kinds: [u16; N]) -> [Option<&[u8]>; N] {
    let mut found = [None; N];
    for (kind, value) in attr::attributes(bytes) {
        if let Some(place) = kinds.iter().position(|wanted| *wanted == kind) {
            found[place] = Some(value);
        }
    }
    found
}

fn need<T>(value: Option<T>, what: &'static str) -> Result<T, NlError> {
    value.ok_or(NlError::Malformed(what))
}
