//! Does the very first packet of a connection get through?

use std::{
    io, mem,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    os::fd::AsRawFd,
    thread,
    time::{Duration, Instant},
};

use socket2::Socket;

use super::{ProbeError, Transport};
use crate::process::POLL;

/// A connection that came to be.
#[derive(Debug)]
pub struct FirstTry {
    pub took: Duration,
    /// Packets that had to be sent again.
    pub again: u32,
    /// Ends the connection when dropped.
    pub socket: Socket,
}

/// Connects, and tells how often the kernel had to try.
pub fn first_try(to: SocketAddr, patience: Duration) -> Result<FirstTry, ProbeError> {
    connect(Transport::Tcp.socket(to.ip())?, to, patience)
}

/// The same, from a port of one's own.
pub fn first_try_from(port: u16, to: SocketAddr, patience: Duration) -> Result<FirstTry, ProbeError> {
    let socket = Transport::Tcp.socket(to.ip())?;
    let any: IpAddr = if to.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
    if any.is_ipv6() {
        socket.set_only_v6(true)?;
    }
    socket.bind(&SocketAddr::new(any, port).into())?;
    connect(socket, to, patience)
}

fn connect(socket: Socket, to: SocketAddr, patience: Duration) -> Result<FirstTry, ProbeError> {
    let begin = Instant::now();
    socket.connect_timeout(&to.into(), patience)?;
    let took = begin.elapsed();
    Ok(FirstTry { took, again: tcp_info(&socket)?.tcpi_total_retrans, socket })
}

impl FirstTry {
    /// Says something. Does the other side's kernel acknowledge it, whether anybody reads or not?
    pub fn is_alive(&self, patience: Duration) -> bool {
        let deadline = Instant::now() + patience;
        let mut said = self.socket.send(b"?").is_ok();
        while said && Instant::now() < deadline {
            match tcp_info(&self.socket) {
                Ok(info) if info.tcpi_state == ESTABLISHED && info.tcpi_unacked == 0 => return true,
                Ok(info) => said = info.tcpi_state == ESTABLISHED,
                Err(_) => said = false,
            }
            thread::sleep(POLL);
        }
        false
    }
}

/// TCP_ESTABLISHED of include/net/tcp_states.h.
const ESTABLISHED: u8 = 1;

fn tcp_info(socket: &Socket) -> io::Result<libc::tcp_info> {
    // SAFETY: a structure of plain numbers, for which zeros are valid.
    let mut info: libc::tcp_info = unsafe { mem::zeroed() };
    let mut length = mem::size_of::<libc::tcp_info>() as libc::socklen_t;
    // SAFETY: the pointers lead to `info` and its length, which outlive the call; the kernel writes no more than that.
    let done = unsafe {
        libc::getsockopt(socket.as_raw_fd(), libc::IPPROTO_TCP, libc::TCP_INFO, (&raw mut info).cast(), &raw mut length)
    };
    if done != 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(info)
}
