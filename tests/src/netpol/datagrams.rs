//! Datagrams one way: who sends how many, and which of them arrive.
//!
//! For what a question cannot show: a packet whose answer would go astray, or that must not arrive even once.

use std::{
    collections::BTreeMap,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, JoinHandle},
    time::Duration,
};

use anyhow::{Context, Result};

use crate::{lab::Namespace, pace, probe::Transport};

/// How often a thread looks whether it is to end.
const TICK: Duration = Duration::from_millis(20);

/// Counts what arrives at a port of a namespace, by source address. Ends when it is dropped.
pub struct Listener {
    stop: Arc<AtomicBool>,
    seen: Arc<Mutex<BTreeMap<IpAddr, u64>>>,
    threads: Vec<JoinHandle<()>>,
}

impl Listener {
    pub fn start(ns: &Namespace, port: u16) -> Result<Listener> {
        let mut listener = Listener { stop: Arc::default(), seen: Arc::default(), threads: Vec::new() };
        for any in [IpAddr::V4(Ipv4Addr::UNSPECIFIED), IpAddr::V6(Ipv6Addr::UNSPECIFIED)] {
            let socket = ns.run(|| bound(any, port)).with_context(|| format!("listening on {port}"))?;
            socket.set_read_timeout(Some(TICK))?;
            let (stop, seen) = (listener.stop.clone(), listener.seen.clone());
            listener.threads.push(thread::spawn(move || {
                let mut buffer = [0; 64];
                while !stop.load(Ordering::Relaxed) {
                    let Ok((_, from)) = socket.recv_from(&mut buffer) else { continue };
                    *seen.lock().unwrap_or_else(PoisonError::into_inner).entry(from.ip()).or_default() += 1;
                }
            }));
        }
        Ok(listener)
    }

    /// Datagrams from this address so far.
    pub fn from(&self, source: IpAddr) -> u64 {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner).get(&source).copied().unwrap_or(0)
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            // It holds nothing that a panic could have spoilt.
            let _ = thread.join();
        }
    }
}

fn bound(address: IpAddr, port: u16) -> std::io::Result<UdpSocket> {
    let socket = Transport::Udp.socket(address)?;
    if address.is_ipv6() {
        socket.set_only_v6(true)?;
    }
    socket.bind(&SocketAddr::new(address, port).into())?;
    Ok(socket.into())
}

/// Sends `count` datagrams from an address of the namespace; what the kernel refuses to send is no error.
pub fn send(ns: &Namespace, from: IpAddr, to: SocketAddr, count: usize) -> Result<()> {
    ns.run(|| {
        let socket = bound(from, 0).with_context(|| format!("sending from {from}"))?;
        for _ in 0..count {
            // A refusal of an earlier one is told here.
            let _ = socket.send_to(b"hello", to);
        }
        Ok(())
    })
}

/// Sends without pause, each datagram from a new port, until it is dropped.
pub struct Flood {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<u64>>,
}

impl Flood {
    pub fn start(ns: &Namespace, from: IpAddr, to: SocketAddr) -> Flood {
        let stop = Arc::new(AtomicBool::new(false));
        let (ns, told) = (ns.clone(), stop.clone());
        let pause = pace::choose(Duration::from_micros(200), Duration::from_millis(200));
        let work = move || {
            let mut sent = 0;
            while !told.load(Ordering::Relaxed) {
                let Ok(socket) = bound(from, 0) else { continue };
                for _ in 0..16 {
                    sent += u64::from(socket.send_to(b"flood", to).is_ok());
                }
                // The machine has other things to do.
                thread::sleep(pause);
            }
            sent
        };
        Flood { stop, thread: Some(thread::spawn(move || ns.run(work))) }
    }

    /// Ends it; how many it sent.
    pub fn stop(mut self) -> u64 {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.take().and_then(|thread| thread.join().ok()).unwrap_or(0)
    }
}

impl Drop for Flood {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
    }
}
