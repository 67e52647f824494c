//! One question, one answer, one connection.

use std::{
    net::{IpAddr, SocketAddr, UdpSocket},
    time::{Duration, Instant},
};

use super::{
    Answer, ProbeError, Transport,
    transport::{Lines, left},
};

/// An HTTP GET on a new TCP connection.
pub fn tcp_get(address: SocketAddr, timeout: Duration) -> Result<Answer, ProbeError> {
    Question::new(Transport::Tcp, address, timeout).ask()
}

/// One datagram, sent once: what is lost is a [`ProbeError::TimedOut`].
pub fn udp_ask(address: SocketAddr, timeout: Duration) -> Result<Answer, ProbeError> {
    Question::new(Transport::Udp, address, timeout).ask()
}

/// A question on a new SCTP association.
pub fn sctp_ask(address: SocketAddr, timeout: Duration) -> Result<Answer, ProbeError> {
    Question::new(Transport::Sctp, address, timeout).ask()
}

/// A question that can be asked again and again, each time on a connection of its own.
#[derive(Clone, Copy, Debug)]
pub struct Question {
    pub transport: Transport,
    pub address: SocketAddr,
    /// For connecting and answering together.
    pub timeout: Duration,
    /// Client address to use; the kernel's choice if `None`.
    pub from: Option<IpAddr>,
}

impl Question {
    pub fn new(transport: Transport, address: SocketAddr, timeout: Duration) -> Question {
        Question { transport, address, timeout, from: None }
    }

    pub fn from(mut self, from: IpAddr) -> Question {
        self.from = Some(from);
        self
    }

    pub fn ask(&self) -> Result<Answer, ProbeError> {
        let deadline = Instant::now() + self.timeout;
        let socket = self.transport.connect(self.address, self.from, self.timeout)?;
        match self.transport {
            Transport::Udp => ask_by_datagram(&socket.into(), deadline),
            Transport::Tcp => {
                let mut lines = Lines::new(socket);
                http_get(&mut lines, self.address, false, deadline)
            }
            Transport::Sctp => {
                let mut lines = Lines::new(socket);
                lines.say("who\n")?;
                Answer::parse(&lines.hear(deadline)?)
            }
        }
    }
}

/// One GET on a connection, which ends with it unless `keep`.
pub(super) fn http_get(
    lines: &mut Lines,
    address: SocketAddr,
    keep: bool,
    deadline: Instant,
) -> Result<Answer, ProbeError> {
    let connection = if keep { "keep-alive" } else { "close" };
    lines.say(&format!("GET / HTTP/1.1\r\nHost: {address}\r\nConnection: {connection}\r\n\r\n"))?;
    let status = lines.hear(deadline)?;
    if status != "HTTP/1.1 200 OK" {
        return Err(ProbeError::Garbled(status));
    }
    let mut length = None;
    loop {
        let header = lines.hear(deadline)?;
        if header.is_empty() {
            break;
        }
        if let Some((key, value)) = header.split_once(':')
            && key.eq_ignore_ascii_case("content-length")
        {
            length = value.trim().parse().ok();
        }
    }
    let length = length.ok_or_else(|| ProbeError::Garbled("no Content-Length".into()))?;
    Answer::parse(&lines.hear_bytes(length, deadline)?)
}

/// One datagram and its answer, on a connected socket.
pub(super) fn ask_by_datagram(socket: &UdpSocket, deadline: Instant) -> Result<Answer, ProbeError> {
    socket.send(b"who\n")?;
    socket.set_read_timeout(Some(left(deadline)?))?;
    let mut buffer = [0; 2048];
    let length = socket.recv(&mut buffer)?;
    Answer::parse(&String::from_utf8_lossy(&buffer[..length]))
}
