//! Destinations on their way out (`--ipvs-graceful-termination`).
//!
//! ```text
//!            unwanted            no connections left, or deadline over
//!  weight 1 ---------> weight 0 -------------------------------------> deleted
//!      ^                   |
//!      +------- wanted ----+
//! ```
//!
//! Connections are IPVS's and the fast path's.
//!
//! The queue lives in the kernel: a destination of weight 0 that nobody wants is being drained, also after a restart
//! (its time then starts again). What is wanted again simply leaves the queue.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{Ipv4Addr, SocketAddr, SocketAddrV4},
};

use crate::desired::{Destination, VirtualKey};

/// How often connections are counted (the original's interval).
const CHECK_INTERVAL_MS: u64 = 5_000;

type Key = (VirtualKey, Destination);

/// The first of all destinations in their order.
const FIRST: Destination = SocketAddr::V4(SocketAddrV4::new(Ipv4Addr::UNSPECIFIED, 0));

#[derive(Clone, Copy, Debug)]
struct Drain {
    began_ms: u64,
    deadline_ms: u64,
}

#[derive(Debug, Default)]
pub struct Drains {
    running: BTreeMap<Key, Drain>,
    over: BTreeSet<Key>,
    next_check_ms: Option<u64>,
}

impl Drains {
    /// Begins to drain, unless it is being drained already.
    pub fn begin(&mut self, key: Key, now_ms: u64, period_ms: u64) {
        let drain = Drain { began_ms: now_ms, deadline_ms: now_ms.saturating_add(period_ms) };
        self.running.entry(key).or_insert(drain);
        self.next_check_ms.get_or_insert(now_ms.saturating_add(CHECK_INTERVAL_MS));
    }

    /// The destination is wanted again or gone.
    pub fn end(&mut self, key: &Key) {
        self.running.remove(key);
        self.over.remove(key);
        if self.running.is_empty() {
            self.next_check_ms = None;
        }
    }

    pub fn retain(&mut self, keep: impl Fn(&Key) -> bool) {
        let gone: Vec<Key> = self.running.keys().filter(|key| !keep(key)).copied().collect();
        for key in gone {
            self.end(&key);
        }
    }

    /// The virtual server is gone, and with it all of its destinations.
    pub fn end_server(&mut self, server: &VirtualKey) {
        let gone: Vec<Key> = self.of(server).map(|(key, _)| *key).collect();
        for key in gone {
            self.end(&key);
        }
    }

    fn of(&self, server: &VirtualKey) -> impl Iterator<Item = (&Key, &Drain)> {
        let server = *server;
        self.running.range((server, FIRST)..).take_while(move |((key, _), _)| *key == server)
    }

    pub fn contains(&self, key: &Key) -> bool {
        self.running.contains_key(key)
    }

    /// Destinations being drained.
    pub fn count(&self) -> usize {
        self.running.len()
    }

    /// When the kernel must be asked next; `None`: nothing is being drained.
    pub fn next_check_ms(&self) -> Option<u64> {
        self.next_check_ms
    }

    /// The servers to ask about, if it is time.
    pub fn due(&mut self, now_ms: u64) -> BTreeSet<VirtualKey> {
        if self.next_check_ms.is_none_or(|at| now_ms < at) {
            return BTreeSet::new();
        }
        self.next_check_ms = Some(now_ms.saturating_add(CHECK_INTERVAL_MS));
        self.running.keys().map(|(server, _)| *server).collect()
    }

    /// Takes the connection counts of one server in, where `busy` is asked about what drains since a time; returns whether
    /// anything is over.
    pub fn judge(&mut self, server: &VirtualKey, busy: impl Fn(&Destination, u64) -> bool, now_ms: u64) -> bool {
        let is_over = |((_, destination), drain): &(&Key, &Drain)| {
            now_ms >= drain.deadline_ms || !busy(destination, drain.began_ms)
        };
        let over: Vec<Key> = self.of(server).filter(is_over).map(|(key, _)| *key).collect();
        let any = !over.is_empty();
        self.over.extend(over);
        any
    }

    /// Drained long enough: may be deleted.
    pub fn over(&self) -> &BTreeSet<Key> {
        &self.over
    }
}
