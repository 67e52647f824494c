//! Listening on TCP, at once: an address that cannot be had is an error before anything else starts.

use std::{
    io,
    net::{Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener},
};

use nix::libc::{EADDRNOTAVAIL, EAFNOSUPPORT};
use socket2::{Domain, Protocol, Socket, Type};

/// Connections that the kernel completes before we take them. Short requests: anything above our own bound on
/// connections only needs to survive one turn of the accept loop.
const BACKLOG: i32 = 128;

/// A non-blocking listener. `[::]` also takes IPv4 clients, whatever net.ipv6.bindv6only says, and becomes `0.0.0.0` on
/// a machine without IPv6.
pub fn listen(address: SocketAddr) -> io::Result<TcpListener> {
    match bind(address) {
        Err(error)
            if address.ip() == Ipv6Addr::UNSPECIFIED
                && matches!(error.raw_os_error(), Some(EAFNOSUPPORT | EADDRNOTAVAIL)) =>
        {
            bind((Ipv4Addr::UNSPECIFIED, address.port()).into())
        }
        outcome => outcome,
    }
}

/// [`listen`] on every address of both families.
pub fn listen_everywhere(port: u16) -> io::Result<TcpListener> {
    listen((Ipv6Addr::UNSPECIFIED, port).into())
}

fn bind(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    if address.is_ipv6() {
        socket.set_only_v6(false)?;
    }
    // Connections of a former agent in TIME_WAIT must not keep this one from starting.
    socket.set_reuse_address(true)?;
    socket.set_nonblocking(true)?;
    socket.bind(&address.into())?;
    socket.listen(BACKLOG)?;
    Ok(socket.into())
}
