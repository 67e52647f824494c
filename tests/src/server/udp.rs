//! UDP: each datagram is answered from the address that it was sent to.
//!
//! The kernel tells that address in a control message (ip(7) IP_PKTINFO, RFC 3542 section 6) and takes it back in the same
//! form as the source of the answer.

use std::io::{IoSlice, IoSliceMut};
use std::net::{IpAddr, SocketAddr};
use std::os::fd::AsRawFd;

use anyhow::Result;
use nix::sys::socket::sockopt::{Ipv4PacketInfo, Ipv6RecvPacketInfo};
use nix::sys::socket::{ControlMessage, ControlMessageOwned, MsgFlags, SockaddrStorage, recvmsg, sendmsg, setsockopt};
use socket2::Socket;

use super::Shared;

pub(super) fn want_destination(socket: &Socket, address: IpAddr) -> Result<()> {
    Ok(match address {
        IpAddr::V4(_) => setsockopt(socket, Ipv4PacketInfo, &true)?,
        IpAddr::V6(_) => setsockopt(socket, Ipv6RecvPacketInfo, &true)?,
    })
}

pub(super) fn answer(socket: &Socket, shared: &Shared) {
    let mut buffer = [0; 2048];
    while !shared.stopping() {
        // An error is the tick, or an ICMP error about an earlier answer: both mean "go on".
        let _ = answer_one(socket, shared, &mut buffer);
    }
}

fn answer_one(socket: &Socket, shared: &Shared, buffer: &mut [u8]) -> nix::Result<()> {
    let mut control = nix::cmsg_space!(libc::in6_pktinfo);
    let (client, destination) = {
        let mut parts = [IoSliceMut::new(buffer)];
        let message =
            recvmsg::<SockaddrStorage>(socket.as_raw_fd(), &mut parts, Some(&mut control), MsgFlags::empty())?;
        (message.address, message.cmsgs()?.next())
    };
    let Some(client) = client else { return Ok(()) };
    let seen = if let Some(v4) = client.as_sockaddr_in() {
        SocketAddr::V4((*v4).into())
    } else if let Some(v6) = client.as_sockaddr_in6() {
        SocketAddr::V6((*v6).into())
    } else {
        return Ok(());
    };
    let answer = shared.line(seen);
    let parts = [IoSlice::new(answer.as_bytes())];
    let send = |control: &[ControlMessage]| {
        sendmsg(socket.as_raw_fd(), &parts, control, MsgFlags::empty(), Some(&client)).map(drop)
    };
    // Any link may carry the answer; routing decides.
    match destination {
        Some(ControlMessageOwned::Ipv4PacketInfo(info)) => {
            let info = libc::in_pktinfo { ipi_ifindex: 0, ipi_spec_dst: info.ipi_addr, ipi_addr: info.ipi_addr };
            send(&[ControlMessage::Ipv4PacketInfo(&info)])
        }
        Some(ControlMessageOwned::Ipv6PacketInfo(info)) => {
            let info = libc::in6_pktinfo { ipi6_ifindex: 0, ipi6_addr: info.ipi6_addr };
            send(&[ControlMessage::Ipv6PacketInfo(&info)])
        }
        _ => send(&[]),
    }
}
