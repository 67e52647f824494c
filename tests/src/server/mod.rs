//! What runs in a pod: says who it is and who asked, over TCP, UDP and SCTP, IPv4 and IPv6.
//!
//! The answer is one line, so that a test sees both ends of a connection:
//!
//! ```text
//! HOSTNAME:<name> IP:<the pod's address of that family> CLIENT:<address the server sees>:<port>
//! ```
//!
//! TCP and SCTP (one-to-one style, RFC 6458 section 4) are line protocols: every line is answered with it, except `GET ...`
//! (HTTP/1.1, for curl; then closed) and `keep` (from then on every line is echoed, for long-lived connections). Each
//! UDP datagram is answered from the address that it was sent to, as a server for a direct-return address must.

mod stream;
mod udp;

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::{Context, Result};
use socket2::{Domain, Protocol, Socket, Type};

/// IPPROTO_SCTP
pub const SCTP: i32 = 132;

/// How long a thread sleeps in a system call before it looks whether it should end.
const TICK: Duration = Duration::from_millis(100);

/// What to serve.
#[derive(Clone, Debug, Default)]
pub struct ServerSpec {
    pub name: String,
    /// Printed in answers; `None` switches the family off.
    pub ip4: Option<Ipv4Addr>,
    pub ip6: Option<Ipv6Addr>,
    pub tcp: Vec<u16>,
    pub udp: Vec<u16>,
    pub sctp: Vec<u16>,
}

impl ServerSpec {
    /// TCP on one port; [`crate::lab::Pod::serve`] fills in name and addresses.
    pub fn tcp(port: u16) -> ServerSpec {
        ServerSpec { tcp: vec![port], ..ServerSpec::default() }
    }

    pub fn and_udp(mut self, port: u16) -> ServerSpec {
        self.udp.push(port);
        self
    }

    pub fn and_sctp(mut self, port: u16) -> ServerSpec {
        self.sctp.push(port);
        self
    }
}

/// A running server; ends, with its connections, when dropped.
#[derive(Debug)]
pub struct Server {
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<()>>,
}

/// What the threads share.
#[derive(Debug)]
struct Shared {
    spec: ServerSpec,
    stop: AtomicBool,
    open: Mutex<Vec<Socket>>,
}

impl Shared {
    fn stopping(&self) -> bool {
        self.stop.load(Ordering::Relaxed)
    }

    /// The answer to a client.
    fn line(&self, client: SocketAddr) -> String {
        let ip = match client.ip() {
            IpAddr::V4(_) => self.spec.ip4.map(IpAddr::V4),
            IpAddr::V6(_) => self.spec.ip6.map(IpAddr::V6),
        };
        let ip = ip.map(|ip| ip.to_string()).unwrap_or_default();
        format!("HOSTNAME:{} IP:{ip} CLIENT:{client}\n", self.spec.name)
    }

    fn open(&self) -> std::sync::MutexGuard<'_, Vec<Socket>> {
        self.open.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }
}

impl Server {
    /// Binds in the calling thread's namespace; when it returns, every port answers.
    pub fn start(spec: ServerSpec) -> Result<Server> {
        let shared = Arc::new(Shared { spec, stop: AtomicBool::new(false), open: Mutex::default() });
        let mut server = Server { shared: shared.clone(), threads: Vec::new() };
        let spec = &shared.spec;
        let mut addresses: Vec<IpAddr> = Vec::new();
        addresses.extend(spec.ip4.map(|_| IpAddr::V4(Ipv4Addr::UNSPECIFIED)));
        addresses.extend(spec.ip6.map(|_| IpAddr::V6(Ipv6Addr::UNSPECIFIED)));
        for address in addresses {
            let streams = spec.tcp.iter().map(|port| (port, Protocol::TCP));
            for (&port, protocol) in streams.chain(spec.sctp.iter().map(|port| (port, Protocol::from(SCTP)))) {
                let listener = bind(SocketAddr::new(address, port), Type::STREAM, protocol)?;
                listener.listen(128).context("listen")?;
                let shared = shared.clone();
                server.threads.push(std::thread::spawn(move || stream::accept(&listener, &shared)));
            }
            for &port in &spec.udp {
                let socket = bind(SocketAddr::new(address, port), Type::DGRAM, Protocol::UDP)?;
                udp::want_destination(&socket, address)?;
                let shared = shared.clone();
                server.threads.push(std::thread::spawn(move || udp::answer(&socket, &shared)));
            }
        }
        Ok(server)
    }

    /// Connections that a client has open.
    pub fn connections(&self) -> usize {
        self.shared.open().len()
    }

    /// Closes every connection and goes on serving.
    pub fn close_connections(&self) {
        for socket in self.shared.open().iter() {
            // The client may have been quicker.
            let _ = socket.shutdown(std::net::Shutdown::Both);
        }
    }

    /// Serves until the process ends.
    pub fn forever(mut self) {
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::Relaxed);
        self.close_connections();
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}

fn bind(address: SocketAddr, kind: Type, protocol: Protocol) -> Result<Socket> {
    let what = || format!("{address}, protocol {}", i32::from(protocol));
    let socket = Socket::new(Domain::for_address(address), kind, Some(protocol)).with_context(what)?;
    if address.is_ipv6() {
        socket.set_only_v6(true)?;
    }
    if i32::from(protocol) != SCTP {
        // For SCTP this option has its own rules (RFC 6458 section 8.1.26 is about ports), and nothing lingers there.
        socket.set_reuse_address(true)?;
    }
    socket.set_read_timeout(Some(TICK))?;
    socket.bind(&address.into()).with_context(what)?;
    Ok(socket)
}

/// The errors of a socket whose time-out passed.
fn is_tick(error: &std::io::Error) -> bool {
    matches!(
        error.kind(),
        std::io::ErrorKind::WouldBlock | std::io::ErrorKind::TimedOut | std::io::ErrorKind::Interrupted
    )
}
