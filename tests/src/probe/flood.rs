//! Somebody who knocks at addresses without end, and somebody who listens whether a knock comes in.

use std::{
    collections::BTreeSet,
    io::IoSliceMut,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    os::fd::AsRawFd,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use nix::sys::socket::{ControlMessageOwned, MsgFlags, recvmsg, setsockopt, sockopt};
use socket2::{Domain, Protocol, Socket, Type};

use super::Transport;
use crate::{lab::Namespace, process::POLL};

/// What goes there, a bridge sends to all its ports, and each takes it for its own.
const EVERYBODY: &str = "ff:ff:ff:ff:ff:ff";

/// Sends the first packet of a TCP connection to each address in turn, again and again. Dropping it ends it.
pub struct Flood {
    stop: Arc<AtomicBool>,
    sent: Arc<AtomicU64>,
    thread: Option<JoinHandle<()>>,
}

impl Flood {
    /// From `ns`, with this pause after each round.
    pub fn start(ns: &Namespace, targets: Vec<SocketAddr>, pause: Duration) -> Flood {
        let (stop, sent) = (Arc::<AtomicBool>::default(), Arc::<AtomicU64>::default());
        let thread = thread::spawn({
            let (ns, stop, sent) = (ns.clone(), stop.clone(), sent.clone());
            move || {
                ns.run(|| {
                    while !stop.load(Ordering::Relaxed) {
                        for target in &targets {
                            knock(*target);
                        }
                        sent.fetch_add(targets.len() as u64, Ordering::Relaxed);
                        thread::sleep(pause);
                    }
                });
            }
        });
        Flood { stop, sent, thread: Some(thread) }
    }

    /// The same without asking whose hardware address it is: every packet reaches every port of the bridge at once.
    pub fn start_blindly(ns: &Namespace, targets: Vec<SocketAddr>, pause: Duration) -> Result<Flood> {
        let addresses: BTreeSet<IpAddr> = targets.iter().map(SocketAddr::ip).collect();
        let neighbour = |ip: &IpAddr| format!("neigh replace {ip} lladdr {EVERYBODY} dev eth0 nud permanent");
        ns.ip(&addresses.iter().map(neighbour).collect::<Vec<_>>())?;
        Ok(Flood::start(ns, targets, pause))
    }

    /// So far.
    pub fn sent(&self) -> u64 {
        self.sent.load(Ordering::Relaxed)
    }
}

impl Drop for Flood {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        // A thread that panicked has ended, too.
        let _ = self.thread.take().map(JoinHandle::join);
    }
}

/// A connection that is given up as soon as its first packet is out.
fn knock(target: SocketAddr) {
    let Ok(socket) = Transport::Tcp.socket(target.ip()) else { return };
    if socket.set_nonblocking(true).is_ok() {
        let _ = socket.connect(&target.into());
    }
}

/// Hears all that arrives in a network namespace, whatever its firewall makes of it.
pub struct Sniffer {
    socket: Socket,
    from: BTreeSet<IpAddr>,
}

/// Room for what arrives between two looks: some 30,000 packets as the kernel counts them.
const ROOM: usize = 32 << 20;

impl Sniffer {
    /// In the namespace of the calling thread, on links that are there and those that will be. Notes TCP packets of
    /// these senders.
    pub fn open(from: impl IntoIterator<Item = IpAddr>) -> Result<Sniffer> {
        let all = Protocol::from(i32::from((libc::ETH_P_ALL as u16).to_be()));
        let socket = Socket::new(Domain::PACKET, Type::RAW, Some(all)).context("a packet socket (needs root)")?;
        setsockopt(&socket, sockopt::RcvBufForce, &ROOM)?;
        setsockopt(&socket, sockopt::ReceiveTimestampns, &true)?;
        Ok(Sniffer { socket, from: from.into_iter().collect() })
    }

    /// Waits until each of the senders has been heard: their packets do come where nothing holds them up.
    pub fn wait_for_all(&self, patience: Duration) -> Result<()> {
        let deadline = Instant::now() + patience;
        let mut missing = self.from.clone();
        while !missing.is_empty() {
            for (_, from) in self.arrivals()? {
                missing.remove(&from);
            }
            ensure!(Instant::now() < deadline, "nothing of {missing:?} within {patience:?}");
            thread::sleep(POLL);
        }
        Ok(())
    }

    /// When each packet since the last call came in, as time since 1970, and from whom.
    pub fn arrivals(&self) -> Result<Vec<(Duration, IpAddr)>> {
        let mut found = Vec::new();
        let mut bytes = [0u8; 128];
        let mut control = nix::cmsg_space!(nix::sys::time::TimeSpec);
        loop {
            let mut parts = [IoSliceMut::new(&mut bytes)];
            let flags = MsgFlags::MSG_DONTWAIT;
            let (length, at) = match recvmsg::<()>(self.socket.as_raw_fd(), &mut parts, Some(&mut control), flags) {
                Ok(message) => {
                    let at = message.cmsgs()?.find_map(|one| match one {
                        ControlMessageOwned::ScmTimestampns(at) => Some(Duration::from(at)),
                        _ => None,
                    });
                    (message.bytes, at.context("a packet without its time")?)
                }
                Err(nix::errno::Errno::EAGAIN) => return Ok(found),
                Err(error) => return Err(error).context("reading packets"),
            };
            if let Some(source) = tcp_source(&bytes[..length]).filter(|source| self.from.contains(source)) {
                found.push((at, source));
            }
        }
    }
}

/// The sender of a TCP packet in an Ethernet frame.
fn tcp_source(frame: &[u8]) -> Option<IpAddr> {
    const TCP: u8 = 6;
    match frame.get(12..14)? {
        [0x08, 0x00] if *frame.get(23)? == TCP => {
            Some(Ipv4Addr::from(<[u8; 4]>::try_from(frame.get(26..30)?).ok()?).into())
        }
        [0x86, 0xdd] if *frame.get(20)? == TCP => {
            Some(Ipv6Addr::from(<[u8; 16]>::try_from(frame.get(22..38)?).ok()?).into())
        }
        _ => None,
    }
}
