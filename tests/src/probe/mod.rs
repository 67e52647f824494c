//! What asks a pod's [`crate::server`]: one question, a connection that is kept, or many clients for a while.
//!
//! All functions work in the calling thread's namespace: call them inside [`crate::netns::Netns::run`].

mod load;

use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream, UdpSocket};
use std::time::{Duration, Instant};

use socket2::{Domain, Protocol, Socket, Type};

pub use load::{Load, LoadReport, LoadSpec, Transport};

use crate::server::SCTP;

/// Enough for a question in an emulated machine at its slowest.
pub const PATIENCE: Duration = Duration::from_secs(5);

/// Who answered, and whom it saw.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    pub name: String,
    pub ip: String,
    pub client: SocketAddr,
}

impl Answer {
    /// The server's line; `InvalidData` for anything else.
    pub fn parse(line: &str) -> io::Result<Answer> {
        let malformed = || io::Error::new(io::ErrorKind::InvalidData, format!("not an answer: {line:?}"));
        let mut words = line.split_whitespace();
        let mut field = |key: &str| words.next().and_then(|word| word.strip_prefix(key)).ok_or_else(malformed);
        Ok(Answer {
            name: field("HOSTNAME:")?.to_string(),
            ip: field("IP:")?.to_string(),
            client: field("CLIENT:")?.parse().map_err(|_| malformed())?,
        })
    }
}

/// One TCP connection, one question.
pub fn tcp_get(server: SocketAddr, timeout: Duration) -> io::Result<Answer> {
    Connection::tcp(server, timeout)?.ask()
}

/// One SCTP association (RFC 6458 one-to-one style), one question.
pub fn sctp_ask(server: SocketAddr, timeout: Duration) -> io::Result<Answer> {
    Connection::sctp(server, timeout)?.ask()
}

/// One datagram from a fresh port, and its answer; sent once.
pub fn udp_ask(server: SocketAddr, timeout: Duration) -> io::Result<Answer> {
    let any: SocketAddr = match server {
        SocketAddr::V4(_) => (Ipv4Addr::UNSPECIFIED, 0).into(),
        SocketAddr::V6(_) => (Ipv6Addr::UNSPECIFIED, 0).into(),
    };
    udp_ask_from(&UdpSocket::bind(any)?, server, timeout)
}

/// The same from a socket of the caller's. The socket is not connected, so the answer's source is checked here: an
/// answer from another address than was asked would not reach a real client.
pub fn udp_ask_from(socket: &UdpSocket, server: SocketAddr, timeout: Duration) -> io::Result<Answer> {
    socket.set_read_timeout(Some(timeout))?;
    socket.send_to(b"who\n", server)?;
    let mut buffer = [0; 2048];
    let (length, from) = socket.recv_from(&mut buffer)?;
    if from != server {
        return Err(io::Error::new(io::ErrorKind::InvalidData, format!("asked {server}, answered by {from}")));
    }
    Answer::parse(&String::from_utf8_lossy(&buffer[..length]))
}

/// A connection that stays open.
#[derive(Debug)]
pub struct Connection {
    socket: Socket,
    deadline: Duration,
}

impl Connection {
    /// Time-outs of `connect` and of every later answer are the same.
    pub fn tcp(server: SocketAddr, timeout: Duration) -> io::Result<Connection> {
        let stream = TcpStream::connect_timeout(&server, timeout)?;
        stream.set_nodelay(true)?;
        Ok(Connection { socket: stream.into(), deadline: timeout })
    }

    pub fn sctp(server: SocketAddr, timeout: Duration) -> io::Result<Connection> {
        let socket = Socket::new(Domain::for_address(server), Type::STREAM, Some(Protocol::from(SCTP)))?;
        // A blocking connect ends at the send time-out (net/sctp/socket.c, sctp_wait_for_connect).
        socket.set_write_timeout(Some(timeout))?;
        socket.connect(&server.into())?;
        Ok(Connection { socket, deadline: timeout })
    }

    pub fn local(&self) -> io::Result<SocketAddr> {
        self.socket.local_addr()?.as_socket().ok_or_else(|| io::Error::from(io::ErrorKind::Unsupported))
    }

    /// Who is there?
    pub fn ask(&mut self) -> io::Result<Answer> {
        Answer::parse(&self.exchange("who\n")?)
    }

    /// From now on the server echoes.
    pub fn keep(&mut self) -> io::Result<()> {
        self.echo("keep")
    }

    /// Sends a line and expects it back; only after [`Connection::keep`].
    pub fn echo(&mut self, line: &str) -> io::Result<()> {
        let back = self.exchange(&format!("{line}\n"))?;
        if back.trim_end() == line {
            Ok(())
        } else {
            Err(io::Error::new(io::ErrorKind::InvalidData, format!("sent {line:?}, got {back:?}")))
        }
    }

    fn exchange(&mut self, line: &str) -> io::Result<String> {
        self.socket.write_all(line.as_bytes())?;
        let begin = Instant::now();
        let mut answer = Vec::new();
        let mut buffer = [0; 512];
        while !answer.ends_with(b"\n") {
            let left = self.deadline.saturating_sub(begin.elapsed());
            if left.is_zero() {
                return Err(io::ErrorKind::TimedOut.into());
            }
            self.socket.set_read_timeout(Some(left))?;
            match self.socket.read(&mut buffer)? {
                0 => return Err(io::ErrorKind::UnexpectedEof.into()),
                length => answer.extend_from_slice(&buffer[..length]),
            }
        }
        Ok(String::from_utf8_lossy(&answer).into_owned())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::server::{Server, ServerSpec};

    #[test]
    fn answer_is_the_servers_line() {
        let answer = Answer::parse("HOSTNAME:a IP:10.2.0.10 CLIENT:10.2.1.1:4711\n").expect("an answer");
        assert_eq!((answer.name.as_str(), answer.ip.as_str()), ("a", "10.2.0.10"));
        assert_eq!(answer.client, SocketAddr::from(([10, 2, 1, 1], 4711)));
        for bad in ["", "HTTP/1.1 404 Not Found", "HOSTNAME:a IP:1.2.3.4 CLIENT:nobody"] {
            assert_eq!(Answer::parse(bad).map_err(|e| e.kind()), Err(io::ErrorKind::InvalidData), "{bad:?}");
        }
    }

    /// A free port of loopback; nobody else takes it between the two binds, except by great bad luck.
    fn free_port() -> u16 {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("bind");
        listener.local_addr().expect("address").port()
    }

    #[test]
    fn server_answers_on_loopback() {
        let port = free_port();
        let spec =
            ServerSpec { name: "me".into(), ip4: Some(Ipv4Addr::LOCALHOST), ..ServerSpec::tcp(port).and_udp(port) };
        let server = Server::start(spec).expect("start");
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
        for answer in [tcp_get(address, PATIENCE), udp_ask(address, PATIENCE)] {
            let answer = answer.expect("an answer");
            assert_eq!((answer.name.as_str(), answer.client.ip()), ("me", address.ip()));
        }
        let mut kept = Connection::tcp(address, PATIENCE).expect("connect");
        assert_eq!(kept.ask().expect("ask").client, kept.local().expect("local"));
        kept.keep().expect("keep");
        kept.echo("still there").expect("echo");
        assert_eq!(server.connections(), 1);
        server.close_connections();
        assert!(kept.echo("now?").is_err(), "the server closed it");
        drop(server);
        assert!(tcp_get(address, PATIENCE).is_err(), "nothing listens any more");
    }

    #[test]
    fn http_clients_are_answered_too() {
        let port = free_port();
        let spec = ServerSpec { name: "web".into(), ip4: Some(Ipv4Addr::LOCALHOST), ..ServerSpec::tcp(port) };
        let _server = Server::start(spec).expect("start");
        let mut stream = TcpStream::connect((Ipv4Addr::LOCALHOST, port)).expect("connect");
        stream.write_all(b"GET / HTTP/1.1\r\nHost: web\r\n\r\n").expect("write");
        let mut all = String::new();
        stream.read_to_string(&mut all).expect("read");
        let (head, body) = all.split_once("\r\n\r\n").expect("a head and a body");
        assert!(head.starts_with("HTTP/1.1 200 OK\r\n") && head.contains(&format!("Content-Length: {}", body.len())));
        assert_eq!(Answer::parse(body).expect("answer").name, "web");
    }
}
