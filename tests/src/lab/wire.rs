//! A wire from a namespace of the lab to a server outside of it, which can be cut.
//!
//! In a virtual machine the host's servers are reached from the first namespace only. A wire listens on the loopback
//! of another one, and carries each connection there. Cut, it resets what it carries and refuses the rest: what a client
//! sees when a server goes away, while others still talk to the server.

use std::{
    io,
    net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, JoinHandle},
    time::Duration,
};

use anyhow::{Context, Result};

use super::Namespace;

/// Patience for the far end.
const CONNECT: Duration = Duration::from_secs(10);

/// A wire. Dropping it cuts it.
pub struct Wire {
    here: Namespace,
    port: u16,
    to: SocketAddr,
    strand: Option<Strand>,
}

/// What is gone when the wire is cut.
struct Strand {
    cut: Arc<AtomicBool>,
    carried: Arc<Mutex<Vec<TcpStream>>>,
    here: Namespace,
    port: u16,
    accepting: Option<JoinHandle<()>>,
}

impl Wire {
    /// From `127.0.0.1:port` in `here` to `to` as the first namespace reaches it.
    pub fn new(here: &Namespace, port: u16, to: SocketAddr) -> Result<Wire> {
        let mut wire = Wire { here: here.clone(), port, to, strand: None };
        wire.join()?;
        Ok(wire)
    }

    pub fn cut(&mut self) {
        self.strand = None;
    }

    /// Joins it again. Does nothing to a whole one.
    pub fn join(&mut self) -> Result<()> {
        if self.strand.is_some() {
            return Ok(());
        }
        let port = self.port;
        let listener = self.here.run(|| TcpListener::bind((Ipv4Addr::LOCALHOST, port)));
        let listener = listener.with_context(|| format!("port {port} of {}", self.here.name()))?;
        let (cut, carried, to) = (Arc::<AtomicBool>::default(), Arc::<Mutex<_>>::default(), self.to);
        let accepting = thread::spawn({
            // Started here and not in the namespace: a socket belongs to the namespace of the thread that makes it.
            let (cut, carried) = (cut.clone(), carried.clone());
            move || {
                while let Ok((near, _)) = listener.accept() {
                    if cut.load(Ordering::Acquire) {
                        return;
                    }
                    let (cut, carried) = (cut.clone(), carried.clone());
                    // A far end that cannot be reached: the near one is closed.
                    thread::spawn(move || drop(carry(near, to, &cut, &carried)));
                }
            }
        });
        self.strand = Some(Strand { cut, carried, here: self.here.clone(), port, accepting: Some(accepting) });
        Ok(())
    }
}

impl Drop for Strand {
    fn drop(&mut self) {
        self.cut.store(true, Ordering::Release);
        // Wakes the thread that accepts; it then closes the listener.
        let (here, port) = (&self.here, self.port);
        let _ = here.run(|| TcpStream::connect((Ipv4Addr::LOCALHOST, port)));
        // The port must be free when this returns. A thread that panicked has closed it, too.
        let _ = self.accepting.take().map(JoinHandle::join);
        for stream in lock(&self.carried).drain(..) {
            // It may have ended by itself.
            let _ = stream.shutdown(Shutdown::Both);
        }
    }
}

fn carry(near: TcpStream, to: SocketAddr, cut: &AtomicBool, carried: &Mutex<Vec<TcpStream>>) -> io::Result<()> {
    let far = TcpStream::connect_timeout(&to, CONNECT)?;
    for stream in [&near, &far] {
        stream.set_nodelay(true)?;
        lock(carried).push(stream.try_clone()?);
    }
    if cut.load(Ordering::Acquire) {
        // Perhaps too late to be among those that the cut has ended.
        near.shutdown(Shutdown::Both)?;
        return far.shutdown(Shutdown::Both);
    }
    for (mut from, mut to) in [(near.try_clone()?, far.try_clone()?), (far, near)] {
        thread::spawn(move || {
            // However it ends, both ends learn it.
            let _ = io::copy(&mut from, &mut to);
            let _ = to.shutdown(Shutdown::Both);
            let _ = from.shutdown(Shutdown::Both);
        });
    }
    Ok(())
}

fn lock(carried: &Mutex<Vec<TcpStream>>) -> MutexGuard<'_, Vec<TcpStream>> {
    carried.lock().unwrap_or_else(PoisonError::into_inner)
}
