//! The three transports, and a stream socket over the two that have streams.

use std::{
    fmt,
    io::{self, BufRead, BufReader, Read, Write},
    net::{IpAddr, SocketAddr, UdpSocket},
    time::{Duration, Instant},
};

use socket2::{Domain, Protocol, Socket, Type};

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Transport {
    Tcp,
    Udp,
    /// One-to-one style (RFC 6458, section 4).
    Sctp,
}

impl fmt::Display for Transport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Transport::Tcp => "TCP",
            Transport::Udp => "UDP",
            Transport::Sctp => "SCTP",
        })
    }
}

impl Transport {
    /// An unbound socket for talking with `peer`'s family.
    pub fn socket(self, peer: IpAddr) -> io::Result<Socket> {
        let domain = if peer.is_ipv4() { Domain::IPV4 } else { Domain::IPV6 };
        match self {
            Transport::Tcp => Socket::new(domain, Type::STREAM, Some(Protocol::TCP)),
            Transport::Udp => Socket::new(domain, Type::DGRAM, Some(Protocol::UDP)),
            Transport::Sctp => Socket::new(domain, Type::STREAM, Some(Protocol::from(libc::IPPROTO_SCTP))),
        }
    }

    /// A connected socket. Every later read or write waits at most `timeout`.
    pub(super) fn connect(self, peer: SocketAddr, from: Option<IpAddr>, timeout: Duration) -> io::Result<Socket> {
        let socket = self.socket(peer.ip())?;
        let from = match (self, from) {
            (_, Some(from)) => Some(from),
            // With one address only the association has one path, so that what a NAT does is what is seen.
            (Transport::Sctp, None) => Some(local_address_towards(peer)?),
            _ => None,
        };
        if let Some(from) = from {
            socket.bind(&SocketAddr::new(from, 0).into())?;
        }
        socket.connect_timeout(&peer.into(), timeout)?;
        socket.set_read_timeout(Some(timeout))?;
        socket.set_write_timeout(Some(timeout))?;
        Ok(socket)
    }
}

/// The address that the kernel would use to talk to `peer`; sends nothing.
pub fn local_address_towards(peer: SocketAddr) -> io::Result<IpAddr> {
    let any: SocketAddr = if peer.is_ipv4() { ([0, 0, 0, 0], 0).into() } else { ([0u16; 8], 0).into() };
    let socket = UdpSocket::bind(any)?;
    socket.connect(peer)?;
    Ok(socket.local_addr()?.ip())
}

/// A stream spoken in lines, with a deadline instead of a patience per read.
pub(super) struct Lines {
    reader: BufReader<Socket>,
}

impl Lines {
    pub fn new(socket: Socket) -> Lines {
        Lines { reader: BufReader::new(socket) }
    }

    pub fn say(&mut self, text: &str) -> io::Result<()> {
        let mut socket = self.reader.get_ref();
        socket.write_all(text.as_bytes())
    }

    /// The next line without its end; the end of the stream is `UnexpectedEof`.
    pub fn hear(&mut self, deadline: Instant) -> io::Result<String> {
        let mut line = Vec::new();
        loop {
            self.reader.get_ref().set_read_timeout(Some(left(deadline)?))?;
            let ready = self.reader.fill_buf()?;
            if ready.is_empty() {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            let end = ready.iter().position(|byte| *byte == b'\n');
            let taken = end.map_or(ready.len(), |end| end + 1);
            line.extend_from_slice(&ready[..taken]);
            self.reader.consume(taken);
            if end.is_some() {
                return Ok(String::from_utf8_lossy(&line).trim_end().to_owned());
            }
        }
    }

    /// Exactly `length` bytes.
    pub fn hear_bytes(&mut self, length: usize, deadline: Instant) -> io::Result<String> {
        let mut bytes = vec![0; length];
        self.reader.get_ref().set_read_timeout(Some(left(deadline)?))?;
        self.reader.read_exact(&mut bytes)?;
        Ok(String::from_utf8_lossy(&bytes).into_owned())
    }
}

/// Time left, or `TimedOut`; a socket's time limit must not be zero.
pub(super) fn left(deadline: Instant) -> io::Result<Duration> {
    match deadline.saturating_duration_since(Instant::now()) {
        Duration::ZERO => Err(io::ErrorKind::TimedOut.into()),
        left => Ok(left),
    }
}
