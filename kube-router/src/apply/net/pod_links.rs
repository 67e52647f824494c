//! Which interface of the node leads to which pod.
//!
//! The problem: policy is enforced at the node's end of a pod's veth, but nobody tells which one that is: network plugins
//! name them as they like, and renames happen. The kernel knows: a veth's node end says in which namespace its other
//! end lives (by a number, `IFLA_LINK_NETNSID`), and rtnetlink answers for another namespace when it is named by that
//! number (`IFLA_TARGET_NETNSID`, `IFA_TARGET_NETNSID`; Linux 4.20). So hardware address and IP addresses of the pod's
//! end are read from here, without entering the pod's namespace, without a runtime's socket, and before the first packet.
//!
//! In: nothing, or the index of one link. Out: [`Links`], [`PodLink`]s. A pod with several interfaces has several; which addresses
//! are a pod's according to the cluster is not known here. A veth pair within this namespace is no pod's.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

use netlink_packet_route::AddressFamily;
use netlink_sys::protocols::NETLINK_ROUTE;
use tokio::io::unix::AsyncFd;

use super::{
    hindrances::{Hindrances, Port},
    monitor::{RTNLGRP_IPV4_IFADDR, RTNLGRP_IPV6_IFADDR, RTNLGRP_LINK, RTNLGRP_TC},
    table::parse_address,
    wire::{RTM_GETADDR, RTM_GETLINK, RTM_SETLINK},
};
use crate::{
    compile::links::{Device, DeviceKind, Links, PodLink},
    nl::{NlError, Socket, attr},
};

/// include/uapi/linux/if_link.h, if_addr.h
const IFLA_ADDRESS: u16 = 1;
const IFLA_IFNAME: u16 = 3;
const IFLA_LINK: u16 = 5;
const IFLA_MASTER: u16 = 10;
pub(super) const IFLA_LINKINFO: u16 = 18;
const IFLA_IFALIAS: u16 = 20;
const IFLA_EXT_MASK: u16 = 29;
const IFLA_LINK_NETNSID: u16 = 37;
const IFLA_TARGET_NETNSID: u16 = 46;
pub(super) const IFLA_INFO_KIND: u16 = 1;
const RTEXT_FILTER_SKIP_STATS: u32 = 8;
const IFA_TARGET_NETNSID: u16 = 10;

/// What the node's end tells.
struct NodeEnd {
    index: u32,
    name: Box<str>,
    peer: u32,
    namespace: i32,
    alias: Option<Box<str>>,
    master: Option<u32>,
    port: Port,
}

/// Reads pods' links from the network namespace of the thread that opened it.
pub struct PodLinks {
    socket: Socket,
}

impl PodLinks {
    pub fn open() -> Result<Self, NlError> {
        let mut socket = Socket::open(NETLINK_ROUTE)?;
        // Without it the kernel ignores which namespace and which link are asked for.
        socket.raw().set_netlink_get_strict_chk(true).map_err(NlError::Socket)?;
        Ok(PodLinks { socket })
    }

    /// All links of the node. A namespace that goes away meanwhile is left out.
    pub fn read(&mut self) -> Result<Links, NlError> {
        type Found = (Vec<NodeEnd>, BTreeMap<u32, Device>, Hindrances);
        let (ends, devices, bridges) =
            self.socket.dump(RTM_GETLINK, 0, link_request, |found: &mut Found, _, payload| {
                found.0.extend(parse_node_end(payload));
                found.1.extend(parse_device(payload));
                found.2.note_link(payload);
                Ok(())
            })?;
        let hindrances = bridges.with_qdiscs(&mut self.socket)?;
        let mut links = Links { devices, pods: BTreeMap::new() };
        for end in ends {
            if let Some(link) = self.follow(end, &hindrances)? {
                links.pods.insert(link.index, link);
            }
        }
        Ok(links)
    }

    /// The one with this index; `None` if it is gone or no pod's.
    pub fn read_one(&mut self, index: u32) -> Result<Option<PodLink>, NlError> {
        let mut end = None;
        let answer = self.socket.request(
            RTM_GETLINK,
            0,
            |bytes| one_link(bytes, index),
            |_, payload| {
                end = parse_node_end(payload);
                Ok(())
            },
        );
        gone_is_none(answer)?;
        let Some(end) = end else { return Ok(None) };
        let mut bridges = Hindrances::default();
        if let Some(master) = end.master {
            let answer = self.socket.request(
                RTM_GETLINK,
                0,
                |bytes| one_link(bytes, master),
                |_, payload| {
                    bridges.note_link(payload);
                    Ok(())
                },
            );
            gone_is_none(answer)?;
        }
        let hindrances = bridges.with_qdiscs(&mut self.socket)?;
        self.follow(end, &hindrances)
    }

    /// Writes the node's end's alias.
    pub fn set_alias(&mut self, index: u32, alias: &str) -> Result<(), NlError> {
        let request = |bytes: &mut Vec<u8>| {
            link_header(bytes, index);
            attr::put(bytes, IFLA_IFALIAS, alias.as_bytes());
        };
        self.socket.request(RTM_SETLINK, 0, request, |_, _| Ok(()))
    }

    /// What the other end has.
    fn follow(&mut self, end: NodeEnd, hindrances: &Hindrances) -> Result<Option<PodLink>, NlError> {
        let mut mac = None;
        let request = |bytes: &mut Vec<u8>| {
            link_header(bytes, end.peer);
            attr::put_u32(bytes, IFLA_EXT_MASK, RTEXT_FILTER_SKIP_STATS);
            attr::put(bytes, IFLA_TARGET_NETNSID, &end.namespace.to_ne_bytes());
        };
        let answer = self.socket.request(RTM_GETLINK, 0, request, |_, payload| {
            mac = parse_mac(payload);
            Ok(())
        });
        gone_is_none(answer)?;
        let Some(mac) = mac else { return Ok(None) };
        let mut addresses = BTreeSet::new();
        for family in [AddressFamily::Inet, AddressFamily::Inet6] {
            let request = |bytes: &mut Vec<u8>| {
                bytes.extend_from_slice(&[u8::from(family), 0, 0, 0]);
                bytes.extend_from_slice(&end.peer.to_ne_bytes());
                attr::put(bytes, IFA_TARGET_NETNSID, &end.namespace.to_ne_bytes());
            };
            let found = self.socket.dump(RTM_GETADDR, 0, request, |found: &mut BTreeSet<IpAddr>, _, payload| {
                found.extend(parse_address(payload).filter(|row| row.link == end.peer).map(|row| row.address));
                Ok(())
            });
            match found {
                Ok(found) => addresses.extend(found.into_iter().filter(|address| !is_link_local(*address))),
                Err(error) => gone_is_none(Err(error))?,
            }
        }
        let NodeEnd { index, name, peer, namespace, alias, master, port } = end;
        let namespace = namespace.cast_unsigned();
        let hindrance = match hindrances.at(&mut self.socket, index, master, port) {
            Ok(hindrance) => hindrance,
            Err(error) => {
                gone_is_none(Err(error))?;
                return Ok(None);
            }
        };
        Ok(Some(PodLink { index, name, peer, namespace, mac, addresses, alias, master, hindrance }))
    }
}

/// A link or namespace that is not there (any more) is no failure.
fn gone_is_none(answer: Result<(), NlError>) -> Result<(), NlError> {
    match answer {
        Err(error) if matches!(error.errno(), Some(libc::ENODEV | libc::EINVAL | libc::ENOENT)) => Ok(()),
        other => other,
    }
}

fn is_link_local(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(address) => address.is_link_local(),
        IpAddr::V6(address) => address.is_unicast_link_local(),
    }
}

/// `struct ifinfomsg` for this index.
fn link_header(bytes: &mut Vec<u8>, index: u32) {
    bytes.extend_from_slice(&[0; 4]);
    bytes.extend_from_slice(&index.to_ne_bytes());
    bytes.extend_from_slice(&[0; 8]);
}

fn link_request(bytes: &mut Vec<u8>) {
    one_link(bytes, 0);
}

fn one_link(bytes: &mut Vec<u8>, index: u32) {
    link_header(bytes, index);
    attr::put_u32(bytes, IFLA_EXT_MASK, RTEXT_FILTER_SKIP_STATS);
}

/// `None`: not a veth, or its other end is here, too.
fn parse_node_end(payload: &[u8]) -> Option<NodeEnd> {
    let header = payload.get(..16)?;
    let (mut name, mut peer, mut namespace, mut is_veth, mut alias, mut master) = (None, None, None, false, None, None);
    for (kind, value) in attr::attributes(&payload[16..]) {
        match kind {
            IFLA_IFNAME => name = Some(attr::text(value)),
            IFLA_IFALIAS => alias = Some(attr::text(value).into()),
            IFLA_LINK => peer = attr::u32(value),
            IFLA_MASTER => master = attr::u32(value),
            IFLA_LINK_NETNSID => namespace = attr::u32(value),
            IFLA_LINKINFO => {
                is_veth =
                    attr::attributes(value).any(|(kind, value)| kind == IFLA_INFO_KIND && attr::text(value) == "veth")
            }
            _ => {}
        }
    }
    let namespace = namespace?.cast_signed();
    // A negative number: the namespace cannot be named from here.
    let known = is_veth && namespace >= 0;
    let index = attr::u32(&header[4..])?;
    let port = Port::parse(payload);
    known.then_some(NodeEnd { index, name: name?.into(), peer: peer?, namespace, alias, master, port })
}

/// include/uapi/linux/if_arp.h
const ARPHRD_ETHER: u16 = 1;
const ARPHRD_LOOPBACK: u16 = 772;

fn parse_device(payload: &[u8]) -> Option<(u32, Device)> {
    let header = payload.get(..16)?;
    let (mut name, mut kind, mut master, mut over, mut is_far) = (None, String::new(), None, None, false);
    for (attribute, value) in attr::attributes(&payload[16..]) {
        match attribute {
            IFLA_IFNAME => name = Some(attr::text(value)),
            IFLA_MASTER => master = attr::u32(value),
            IFLA_LINK => over = attr::u32(value),
            IFLA_LINK_NETNSID => is_far = true,
            IFLA_LINKINFO => {
                let found = attr::attributes(value).find(|(attribute, _)| *attribute == IFLA_INFO_KIND);
                kind = found.map(|(_, value)| attr::text(value).to_string()).unwrap_or_default();
            }
            _ => {}
        }
    }
    let hardware = u16::from_ne_bytes([header[2], header[3]]);
    let kind = match &*kind {
        _ if hardware == ARPHRD_LOOPBACK => DeviceKind::Inner,
        "bridge" | "openvswitch" | "dummy" | "ifb" | "nlmon" | "vrf" => DeviceKind::Inner,
        "veth" => DeviceKind::Veth,
        _ => DeviceKind::Outer,
    };
    // Of a veth it is the other end, and of what came from elsewhere a number there.
    let over = over.filter(|_| kind == DeviceKind::Outer && !is_far);
    let has_link_header = hardware == ARPHRD_ETHER;
    Some((attr::u32(&header[4..])?, Device { name: name?.into(), kind, has_link_header, master, over }))
}

fn parse_mac(payload: &[u8]) -> Option<[u8; 6]> {
    let (_, value) = attr::attributes(payload.get(16..)?).find(|(kind, _)| *kind == IFLA_ADDRESS)?;
    value.try_into().ok()
}

/// Announces that pods' links or their addresses may have changed: here, and in every namespace that has a number here.
pub struct PodLinkMonitor {
    events: AsyncFd<Socket>,
}

impl PodLinkMonitor {
    /// Changes after this call are announced. Needs a tokio runtime with I/O.
    pub fn open() -> Result<Self, NlError> {
        let mut events = Socket::open(NETLINK_ROUTE)?;
        events.raw().set_listen_all_namespaces(true).map_err(NlError::Socket)?;
        for group in [RTNLGRP_LINK, RTNLGRP_TC, RTNLGRP_IPV4_IFADDR, RTNLGRP_IPV6_IFADDR] {
            events.raw().add_membership(group).map_err(NlError::Socket)?;
        }
        #[expect(deprecated, reason = "its successor is an unsafe fn; a netlink socket owns one descriptor for life")]
        let events = AsyncFd::new(events).map_err(NlError::Socket)?;
        Ok(PodLinkMonitor { events })
    }

    /// Returns after at least one change. Cancel-safe.
    pub async fn changed(&mut self) -> Result<(), NlError> {
        let mut ready = self.events.readable_mut().await.map_err(NlError::Socket)?;
        match ready.get_inner_mut().drain_events(|_, _| ()) {
            Ok(()) => {}
            // Some were lost: news all the same.
            Err(error) if error.errno() == Some(libc::ENOBUFS) => {}
            Err(error) => return Err(error),
        }
        ready.clear_ready();
        Ok(())
    }
}
