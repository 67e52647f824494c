//! Watching for changes of the node's addresses.
//!
//! The problem: node ports on all addresses, the guard's list of local addresses and the preferred source of VIP
//! routes follow the addresses of the node's interfaces, which change behind our back (DHCP, router advertisements, an
//! operator). In: rtnetlink notifications. Out: "something changed, look again", without saying what; any number of
//! changes since the last answer is one answer.
//!
//! Not news: kube-dummy-if, which we change ourselves; an address announced again (every router advertisement renews
//! its lifetime); a link going up or down, whose addresses are announced themselves. A link renamed is news, because
//! names decide which interfaces count.
//!
//! When the kernel had to drop notifications (ENOBUFS), everything may have changed: that is news too.

use std::{
    collections::{HashMap, HashSet},
    net::IpAddr,
};

use netlink_sys::protocols::NETLINK_ROUTE;
use tokio::io::unix::AsyncFd;

use super::{
    DUMMY,
    table::{self, Address, Link},
    wire::{RTM_DELADDR, RTM_DELLINK, RTM_NEWADDR, RTM_NEWLINK},
};
use crate::nl::{NlError, Socket};

/// include/uapi/linux/rtnetlink.h
pub(super) const RTNLGRP_LINK: u32 = 1;
pub(super) const RTNLGRP_TC: u32 = 4;
pub(super) const RTNLGRP_IPV4_IFADDR: u32 = 5;
pub(super) const RTNLGRP_IPV6_IFADDR: u32 = 9;

/// Announces changes of addresses in the network namespace of the thread that opened it.
pub struct AddressMonitor {
    events: AsyncFd<Socket>,
    /// For reading whole tables; the other socket's queue must hold nothing but notifications.
    reader: Socket,
    known: Known,
}

impl AddressMonitor {
    /// Changes after this call are announced. Needs a tokio runtime with I/O.
    pub fn open() -> Result<Self, NlError> {
        let mut events = Socket::open(NETLINK_ROUTE)?;
        for group in [RTNLGRP_LINK, RTNLGRP_IPV4_IFADDR, RTNLGRP_IPV6_IFADDR] {
            events.raw().add_membership(group).map_err(NlError::Socket)?;
        }
        let mut reader = Socket::open(NETLINK_ROUTE)?;
        let known = Known::read(&mut reader)?;
        #[expect(deprecated, reason = "its successor is an unsafe fn; a netlink socket owns one descriptor for life")]
        let events = AsyncFd::new(events).map_err(NlError::Socket)?;
        Ok(AddressMonitor { events, reader, known })
    }

    /// Returns after at least one change. Cancel-safe: a change is announced by the next call if not by this one.
    pub async fn changed(&mut self) -> Result<(), NlError> {
        loop {
            let mut ready = self.events.readable_mut().await.map_err(NlError::Socket)?;
            let (mut news, mut lost) = (false, false);
            loop {
                let known = &mut self.known;
                match ready.get_inner_mut().drain_events(|kind, payload| news |= known.note(kind, payload)) {
                    Ok(()) => break,
                    Err(error) if error.errno() == Some(libc::ENOBUFS) => lost = true,
                    Err(error) => return Err(error),
                }
            }
            ready.clear_ready();
            if lost {
                self.known = Known::read(&mut self.reader)?;
            }
            if news || lost {
                return Ok(());
            }
        }
    }
}

/// What was announced so far.
#[derive(Debug, Default)]
struct Known {
    names: HashMap<u32, Box<str>>,
    /// Addresses of all links but kube-dummy-if; the value tells tentative ones.
    addresses: HashMap<(u32, IpAddr), bool>,
}

impl Known {
    fn read(reader: &mut Socket) -> Result<Self, NlError> {
        let names: HashMap<u32, Box<str>> =
            table::read_links(reader)?.into_iter().map(|link| (link.index, link.name)).collect();
        let dummies: HashSet<u32> =
            names.iter().filter(|(_, name)| &***name == DUMMY).map(|(index, _)| *index).collect();
        let addresses = table::read_addresses(reader)?
            .into_iter()
            .filter(|address| !dummies.contains(&address.link))
            .map(|address| ((address.link, address.address), address.tentative))
            .collect();
        Ok(Known { names, addresses })
    }

    /// Takes in one notification; true if it is news.
    fn note(&mut self, kind: u16, payload: &[u8]) -> bool {
        match kind {
            // A bridge speaks of its ports in its own family: one that leaves it is still there.
            RTM_NEWLINK | RTM_DELLINK if payload.first() != Some(&(libc::AF_UNSPEC as u8)) => false,
            RTM_NEWLINK => table::parse_link(payload).is_some_and(|link| self.link_seen(link)),
            RTM_DELLINK => {
                if let Some(link) = table::parse_link(payload) {
                    self.names.remove(&link.index);
                }
                false
            }
            RTM_NEWADDR => table::parse_address(payload).is_some_and(|address| self.address_seen(&address)),
            RTM_DELADDR => table::parse_address(payload).is_some_and(|address| self.address_gone(&address)),
            _ => false,
        }
    }

    fn link_seen(&mut self, link: Link) -> bool {
        let before = self.names.insert(link.index, link.name.clone());
        before.is_some_and(|before| before != link.name)
    }

    fn is_dummy(&self, link: u32) -> bool {
        self.names.get(&link).is_some_and(|name| &**name == DUMMY)
    }

    fn address_seen(&mut self, address: &Address) -> bool {
        if self.is_dummy(address.link) {
            return false;
        }
        self.addresses.insert((address.link, address.address), address.tentative) != Some(address.tentative)
    }

    fn address_gone(&mut self, address: &Address) -> bool {
        self.addresses.remove(&(address.link, address.address)).is_some()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn link(index: u32, name: &str) -> Link {
        Link { index, name: name.into(), up: true }
    }

    fn address(link: u32, text: &str, tentative: bool) -> Address {
        Address { link, address: text.parse().expect("address"), prefix: 24, tentative }
    }

    #[test]
    fn only_changes_are_news() {
        let mut known = Known::default();
        assert!(!known.link_seen(link(2, "eth0")));
        assert!(known.address_seen(&address(2, "192.0.2.1", false)));
        assert!(!known.address_seen(&address(2, "192.0.2.1", false)), "announced again");
        assert!(known.address_seen(&address(2, "2001:db8::1", true)));
        assert!(known.address_seen(&address(2, "2001:db8::1", false)), "became usable");
        assert!(known.link_seen(link(2, "lan0")), "renamed");
        assert!(known.address_gone(&address(2, "192.0.2.1", false)));
        assert!(!known.address_gone(&address(2, "192.0.2.1", false)));
    }

    /// A bridge says of a port that leaves it that the port's link is gone, in its own family.
    #[test]
    fn a_link_that_leaves_its_bridge_is_still_there() {
        let mut known = Known::default();
        known.link_seen(link(9, DUMMY));
        let mut payload = vec![0; 16];
        payload[0] = libc::AF_BRIDGE as u8;
        payload[4..8].copy_from_slice(&9_u32.to_ne_bytes());
        // IFLA_IFNAME
        payload.extend([18, 0, 3, 0]);
        payload.extend(DUMMY.bytes().chain([0; 3]));
        assert!(table::parse_link(&payload).is_some());
        known.note(RTM_DELLINK, &payload);
        assert!(known.is_dummy(9));
        payload[0] = 0;
        known.note(RTM_DELLINK, &payload);
        assert!(!known.is_dummy(9));
    }

    #[test]
    fn our_own_interface_is_no_news() {
        let mut known = Known::default();
        assert!(!known.link_seen(link(9, DUMMY)));
        assert!(!known.address_seen(&address(9, "10.96.0.1", false)));
        assert!(!known.address_gone(&address(9, "10.96.0.1", false)));
    }
}
