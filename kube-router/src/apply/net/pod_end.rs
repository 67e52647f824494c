//! A pod's end of a veth, asked for inside the pod's namespace by name.
//!
//! The problem: whoever makes a pod's network knows its namespace and the name that the interface has in there, and wants
//! to know which interface of the node belongs to it. Names on the node's side are told by others and may be outdated; the
//! kernel's word is the peer's index. [`super::pod_links`] answers the opposite question, and confirms this answer.
//!
//! In: an open namespace file, a name. Out: a [`PodEnd`], or `None` if no veth has that name.

use std::{fs::File, io, os::fd::AsFd, thread};

use netlink_sys::protocols::NETLINK_ROUTE;
use nix::sched::{CloneFlags, setns};

use super::wire::RTM_GETLINK;
use crate::nl::{NlError, Socket, attr};

/// include/uapi/linux/if_link.h
const IFLA_ADDRESS: u16 = 1;
const IFLA_IFNAME: u16 = 3;
const IFLA_LINK: u16 = 5;
const IFLA_LINKINFO: u16 = 18;
const IFLA_INFO_KIND: u16 = 1;
/// `struct ifinfomsg`
const HEADER: usize = 16;

/// The end inside the pod.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PodEnd {
    /// A number of the pod's namespace.
    pub index: u32,
    pub mac: [u8; 6],
    /// A number of the namespace in which the other end is.
    pub peer: u32,
}

/// What became of the question.
#[derive(Debug, thiserror::Error)]
pub enum PodEndError {
    /// Not a network namespace, or no right to enter it.
    #[error("entering the namespace: {0}")]
    Enter(#[source] io::Error),
    #[error("asking the kernel: {0}")]
    Ask(#[from] NlError),
}

/// Reads the veth with this name in a namespace. The calling thread stays where it is.
pub fn read(namespace: &File, name: &str) -> Result<Option<PodEnd>, PodEndError> {
    let mut socket = inside(namespace, || Socket::open(NETLINK_ROUTE)).map_err(PodEndError::Enter)??;
    let mut end = None;
    let request = |bytes: &mut Vec<u8>| {
        bytes.extend_from_slice(&[0; HEADER]);
        attr::put_str(bytes, IFLA_IFNAME, name);
    };
    let answer = socket.request(RTM_GETLINK, 0, request, |_, payload| {
        end = parse_veth(payload);
        Ok(())
    });
    match answer {
        Err(error) if error.errno() == Some(libc::ENODEV) => Ok(None),
        Err(error) => Err(error.into()),
        Ok(()) => Ok(end),
    }
}

/// Does something inside a namespace, on a thread of its own that ends with it. Sockets that it opens stay in there.
pub(super) fn inside<T: Send>(namespace: &File, job: impl FnOnce() -> T + Send) -> io::Result<T> {
    let enter = || {
        setns(namespace.as_fd(), CloneFlags::CLONE_NEWNET)?;
        Ok(job())
    };
    thread::scope(|scope| {
        let thread = thread::Builder::new().spawn_scoped(scope, enter)?;
        thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}

/// `None` for any other kind of link.
fn parse_veth(payload: &[u8]) -> Option<PodEnd> {
    let header = payload.get(..HEADER)?;
    let (mut peer, mut mac, mut is_veth) = (None, None, false);
    for (kind, value) in attr::attributes(&payload[HEADER..]) {
        match kind {
            IFLA_ADDRESS => mac = value.try_into().ok(),
            IFLA_LINK => peer = attr::u32(value),
            IFLA_LINKINFO => {
                let mut nested = attr::attributes(value);
                is_veth = nested.any(|(kind, value)| kind == IFLA_INFO_KIND && attr::text(value) == "veth");
            }
            _ => {}
        }
    }
    let end = PodEnd { index: attr::u32(&header[4..])?, mac: mac?, peer: peer? };
    is_veth.then_some(end)
}
