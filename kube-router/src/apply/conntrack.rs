//! Conntrack entries of UDP clients whose destination is gone.
//!
//! UDP has no end of a connection: as long as a client keeps sending from one port, its conntrack entry (and with it
//! the destination that IPVS once chose) lives on. So when a destination is removed, the entries that tie clients to it
//! must go. An entry is meant if its original tuple is towards `server` and its reply tuple comes from `destination`;
//! entries of the same server with other destinations stay. (The original flushed the whole service.)
//!
//! The kernel can filter a dump by the original tuple (CTA_FILTER, since 5.8); what it hands out is judged here again,
//! so an older kernel that ignores or refuses the filter only costs time. Each dump walks the whole table: with many
//! servers at once one unfiltered dump for each family is cheaper.
//! Source: include/uapi/linux/netfilter/nfnetlink_conntrack.h, net/netfilter/nf_conntrack_netlink.c.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::SocketAddr,
};

use super::{
    ConntrackPlane, PlaneError,
    firewall::nfnetlink::{self, SUBSYS_CTNETLINK, message_type, put_header},
};
use crate::{
    nl::{Batch, NlError, Socket, attr},
    objects::Protocol,
    plan::UdpFlow,
};

const CONNTRACK: &str = "conntrack";

/// Servers of one family for which the kernel is asked one by one.
const FILTERED_DUMPS: usize = 4;

/// `IPCTNL_MSG_CT_GET`, `IPCTNL_MSG_CT_DELETE`.
const GET: u8 = 1;
const DELETE: u8 = 2;
// CTA_*
const TUPLE_ORIG: u16 = 1;
const TUPLE_REPLY: u16 = 2;
const ID: u16 = 12;
const ZONE: u16 = 18;
const FILTER: u16 = 25;
// CTA_TUPLE_*, CTA_PROTO_*, CTA_FILTER_*
const TUPLE_IP: u16 = 1;
const TUPLE_PROTO: u16 = 2;
const PROTO_NUM: u16 = 1;
const PROTO_SRC_PORT: u16 = 2;
const PROTO_DST_PORT: u16 = 3;
const FILTER_ORIG_FLAGS: u16 = 1;
const FILTER_REPLY_FLAGS: u16 = 2;
/// Which parts of the given original tuple the kernel compares (`CTA_FILTER_F_*` in net/netfilter/nf_internals.h):
/// destination address, protocol, destination port. Not the address of IPv6: ctnetlink_filter_match_tuple() of many
/// kernels (seen on 6.1 and 6.18) has that comparison the wrong way round and leaves out exactly what matches.
const FILTER_IPV4: u32 = 1 << 1 | FILTER_IPV6;
const FILTER_IPV6: u32 = 1 << 3 | 1 << 5;

/// The kernel's conntrack table in one network namespace.
pub struct KernelConntrack {
    socket: Socket,
    /// The kernel understands CTA_FILTER, as far as we know.
    filters: bool,
}

impl KernelConntrack {
    /// Opens the plane in the network namespace of the calling thread; it stays there wherever the value goes.
    pub fn open() -> Result<Self, PlaneError> {
        Ok(KernelConntrack { socket: nfnetlink::open(CONNTRACK)?, filters: true })
    }

    fn find(&mut self, v6: bool, wanted: &Wanted) -> Result<Vec<Entry>, NlError> {
        if !self.filters || wanted.len() > FILTERED_DUMPS {
            return self.dump(v6, None, wanted);
        }
        let mut found = Vec::new();
        for server in wanted.keys() {
            match self.dump(v6, Some(*server), wanted) {
                Ok(entries) => found.extend(entries),
                Err(NlError::Refused(refusal)) if matches!(refusal.errno, libc::EINVAL | libc::EOPNOTSUPP) => {
                    tracing::debug!(%refusal, "conntrack filter refused: reading whole tables instead");
                    self.filters = false;
                    return self.dump(v6, None, wanted);
                }
                Err(error) => return Err(error),
            }
        }
        Ok(found)
    }

    fn dump(&mut self, v6: bool, server: Option<SocketAddr>, wanted: &Wanted) -> Result<Vec<Entry>, NlError> {
        self.socket.dump(
            message_type(SUBSYS_CTNETLINK, GET),
            0,
            |body| {
                put_header(body, nfnetlink::family(v6), 0);
                if let Some(server) = server {
                    put_filter(body, server);
                }
            },
            |found: &mut Vec<Entry>, _, payload| {
                found.extend(Entry::parse(payload).filter(|entry| entry.is_wanted(wanted)));
                Ok(())
            },
        )
    }

    fn delete(&mut self, v6: bool, entries: &[Entry]) -> Result<usize, NlError> {
        let mut batch = Batch::new();
        for entry in entries {
            batch.push(message_type(SUBSYS_CTNETLINK, DELETE), 0, |body| {
                put_header(body, nfnetlink::family(v6), 0);
                attr::put(body, TUPLE_ORIG | attr::NESTED, &entry.original_bytes);
                for (kind, value) in [(ID, &entry.id), (ZONE, &entry.zone)] {
                    if let Some(value) = value {
                        attr::put(body, kind, value);
                    }
                }
            });
        }
        let refused = self.socket.send_batch(&mut batch)?;
        // ENOENT: the entry ended by itself, or was listed twice.
        if let Some((_, refusal)) = refused.iter().find(|(_, refusal)| refusal.errno != libc::ENOENT) {
            return Err(NlError::Refused(refusal.clone()));
        }
        Ok(entries.len() - refused.len())
    }
}

/// Server -> destinations that are gone.
type Wanted = BTreeMap<SocketAddr, BTreeSet<SocketAddr>>;

impl ConntrackPlane for KernelConntrack {
    fn flush_udp(&mut self, flows: &[UdpFlow]) -> Result<usize, PlaneError> {
        let mut removed = 0;
        for v6 in [false, true] {
            let mut wanted = Wanted::new();
            for flow in flows.iter().filter(|flow| flow.server.address.is_ipv6() == v6) {
                if flow.server.protocol == Protocol::Udp {
                    let server = SocketAddr::new(flow.server.address, flow.server.port);
                    wanted.entry(server).or_default().insert(flow.destination);
                }
            }
            if wanted.is_empty() {
                continue;
            }
            let gone = self
                .find(v6, &wanted)
                .and_then(|entries| self.delete(v6, &entries))
                .map_err(|source| nfnetlink::failed(CONNTRACK, source))?;
            if gone > 0 {
                tracing::info!(entries = gone, servers = ?wanted.keys(), "UDP conntrack entries removed");
            }
            removed += gone;
        }
        Ok(removed)
    }
}

fn put_filter(body: &mut Vec<u8>, server: SocketAddr) {
    attr::nest(body, TUPLE_ORIG, |tuple| {
        attr::nest(tuple, TUPLE_IP, |ip| {
            // CTA_IP_V4_DST, CTA_IP_V6_DST
            attr::put(ip, if server.is_ipv6() { 4 } else { 2 }, &nfnetlink::octets(server.ip()));
        });
        attr::nest(tuple, TUPLE_PROTO, |proto| {
            attr::put_u8(proto, PROTO_NUM, Protocol::Udp.number());
            attr::put_be16(proto, PROTO_DST_PORT, server.port());
        });
    });
    attr::nest(body, FILTER, |filter| {
        attr::put_u32(filter, FILTER_ORIG_FLAGS, if server.is_ipv6() { FILTER_IPV6 } else { FILTER_IPV4 });
        attr::put_u32(filter, FILTER_REPLY_FLAGS, 0);
    });
}

/// A UDP entry, with what it takes to delete exactly this one.
#[derive(Debug)]
struct Entry {
    /// Where the client sends to.
    server: SocketAddr,
    /// Where replies come from.
    replier: SocketAddr,
    original_bytes: Vec<u8>,
    id: Option<Vec<u8>>,
    zone: Option<Vec<u8>>,
}

impl Entry {
    /// `None`: not UDP.
    fn parse(payload: &[u8]) -> Option<Entry> {
        let field = |kind| nfnetlink::attributes(payload).find(|(k, _)| *k == kind).map(|(_, value)| value);
        let original = field(TUPLE_ORIG)?;
        Some(Entry {
            server: end(original, [2, 4], PROTO_DST_PORT)?,
            replier: end(field(TUPLE_REPLY)?, [1, 3], PROTO_SRC_PORT)?,
            original_bytes: original.to_vec(),
            id: field(ID).map(<[u8]>::to_vec),
            zone: field(ZONE).map(<[u8]>::to_vec),
        })
    }

    fn is_wanted(&self, wanted: &Wanted) -> bool {
        wanted.get(&self.server).is_some_and(|destinations| destinations.contains(&self.replier))
    }
}

/// One end of a UDP tuple; `address_kinds`: the attributes of its IPv4 and IPv6 address.
fn end(tuple: &[u8], address_kinds: [u16; 2], port_kind: u16) -> Option<SocketAddr> {
    let find = |bytes, kind| attr::attributes(bytes).find(|(k, _)| *k == kind).map(|(_, value)| value);
    let proto = find(tuple, TUPLE_PROTO)?;
    if *find(proto, PROTO_NUM)?.first()? != Protocol::Udp.number() {
        return None;
    }
    let (_, address) = attr::attributes(find(tuple, TUPLE_IP)?).find(|(kind, _)| address_kinds.contains(kind))?;
    Some(SocketAddr::new(nfnetlink::address(address)?, attr::be16(find(proto, port_kind)?)?))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tuple(bytes: &mut Vec<u8>, kind: u16, source: SocketAddr, destination: SocketAddr, protocol: u8) {
        attr::nest(bytes, kind, |tuple| {
            attr::nest(tuple, TUPLE_IP, |ip| {
                let v6 = source.is_ipv6();
                attr::put(ip, if v6 { 3 } else { 1 }, &nfnetlink::octets(source.ip()));
                attr::put(ip, if v6 { 4 } else { 2 }, &nfnetlink::octets(destination.ip()));
            });
            attr::nest(tuple, TUPLE_PROTO, |proto| {
                attr::put_u8(proto, PROTO_NUM, protocol);
                attr::put_be16(proto, PROTO_SRC_PORT, source.port());
                attr::put_be16(proto, PROTO_DST_PORT, destination.port());
            });
        });
    }

    fn entry(client: &str, server: &str, destination: &str, protocol: u8) -> Option<Entry> {
        let [client, server, destination] = [client, server, destination].map(|s| s.parse().unwrap());
        let mut payload = vec![0; 4];
        tuple(&mut payload, TUPLE_ORIG, client, server, protocol);
        tuple(&mut payload, TUPLE_REPLY, destination, client, protocol);
        Entry::parse(&payload)
    }

    #[test]
    fn only_the_named_destination_of_the_named_server_is_wanted() {
        let wanted = Wanted::from([
            ("10.96.0.10:53".parse().unwrap(), ["10.244.1.2:5353".parse().unwrap()].into()),
            ("[fd00::10]:53".parse().unwrap(), ["[fd00::2]:5353".parse().unwrap()].into()),
        ]);
        let is_wanted =
            |client, server, destination| entry(client, server, destination, 17).unwrap().is_wanted(&wanted);
        assert!(is_wanted("10.0.0.1:4000", "10.96.0.10:53", "10.244.1.2:5353"));
        assert!(is_wanted("[fd00::1]:4000", "[fd00::10]:53", "[fd00::2]:5353"));
        assert!(!is_wanted("10.0.0.1:4000", "10.96.0.10:53", "10.244.1.3:5353"));
        assert!(!is_wanted("10.0.0.1:4000", "10.96.0.10:53", "10.244.1.2:53"));
        assert!(!is_wanted("10.0.0.1:4000", "10.96.0.11:53", "10.244.1.2:5353"));
        assert!(!is_wanted("10.0.0.1:4000", "10.96.0.10:54", "10.244.1.2:5353"));
    }

    #[test]
    fn tcp_is_not_ours() {
        assert!(entry("10.0.0.1:4000", "10.96.0.10:53", "10.244.1.2:5353", 6).is_none());
    }
}
