//! What the programs tell as it happens, with names, to everybody who looks on.
//!
//! ```text
//! ring buffer ──loop──> Seen::new: names of pods and rules ──Broadcaster::publish──> a bounded queue for each watcher
//! ```
//!
//! The ring has one reader, the loop, and the loop waits for nobody: a watcher who reads too slowly loses records, and is
//! told how many. New flows are recorded only while somebody wants them ([`Broadcaster::wants_flows`]).

use std::{
    convert::Infallible,
    fmt::Write as _,
    net::{IpAddr, SocketAddr},
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    task::{Context, Poll},
};

use axum::body::Bytes;
use futures::Stream;
use kube_router_common::{
    event::EventHead,
    packet::protocol,
    policy::{Address, PolicyRow},
    reason::{self, Reason},
};
use serde::{Deserialize, Serialize};
use tokio::sync::{
    Notify,
    mpsc::{self, error::TrySendError},
};

use crate::{
    cluster::ClusterState,
    compile::policy::ip_of,
    desired::policy::Direction,
    explain::RuleName,
    objects::{ObjectKey, Protocol},
    plan::adopt::Numbered,
};

/// Records that wait for one watcher: a tenth of a second of the fastest flood that the programs let through; 1 MB.
const QUEUE: usize = 1_024;

/// One record with names: a line of JSON on the socket.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Seen {
    /// Nanoseconds since 1970.
    pub time_ns: u64,
    pub kind: SeenKind,
    /// From the point of view of `pod`.
    pub direction: Direction,
    pub allowed: bool,
    /// Why it was refused; see docs/maps.md.
    pub reason: Option<String>,
    /// The pod whose policies were asked; `None`: not known.
    pub pod: Option<ObjectKey>,
    /// Its number in the tables, 0: not known.
    pub pod_number: u32,
    /// The rule that decided.
    pub rule: Option<RuleName>,
    pub rule_number: u32,
    /// The peer's class, if it was looked up.
    pub class: u32,
    /// `None`: refused before the packet was read so far; so with the ports and pods of the addresses.
    pub source: Option<IpAddr>,
    pub destination: Option<IpAddr>,
    pub source_port: u16,
    pub destination_port: u16,
    /// IP protocol number.
    pub protocol: u8,
    pub source_pod: Option<ObjectKey>,
    pub destination_pod: Option<ObjectKey>,
    pub ifindex: u32,
    /// Of the packet, with its link-layer header.
    pub length: u32,
    /// The packet's first bytes, in hexadecimal.
    pub packet: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum SeenKind {
    Drop,
    Flow,
}

/// A line of the stream.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Line {
    Seen(Box<Seen>),
    /// So many records were left out here, as they were not taken in time.
    Lost {
        lost: u64,
    },
}

impl Seen {
    /// `unix_ns` is what to add to CLOCK_MONOTONIC ([`crate::sys::clock::boot_unix_ns`]).
    pub fn new(
        head: &EventHead,
        packet: &[u8],
        cluster: &ClusterState,
        compiler: Option<Numbered<'_>>,
        unix_ns: u64,
    ) -> Self {
        let ip = |address: Address| (address != Address::default()).then(|| ip_of(address));
        let (source, destination) = (ip(head.source), ip(head.destination));
        let pod_at = |ip: Option<IpAddr>| Some(cluster.pod_by_ip(ip?)?.key.clone());
        let mut locals = compiler.into_iter().flat_map(Numbered::pods);
        Seen {
            time_ns: head.time_ns.saturating_add(unix_ns),
            kind: if head.kind == EventHead::FLOW { SeenKind::Flow } else { SeenKind::Drop },
            direction: match reason::Direction::of(head.direction) {
                Some(reason::Direction::Ingress) => Direction::Ingress,
                _ => Direction::Egress,
            },
            allowed: u32::from(head.verdict) == PolicyRow::ALLOW,
            reason: Reason::of(head.reason).map(|reason| reason.name().to_owned()),
            pod: locals.find(|(_, number)| *number == head.pod).map(|(key, _)| key.clone()),
            pod_number: head.pod,
            rule: compiler.and_then(|compiler| compiler.rule(head.rule)).map(RuleName::of_info),
            rule_number: head.rule,
            class: head.class,
            source_pod: pod_at(source),
            destination_pod: pod_at(destination),
            source,
            destination,
            source_port: head.source_port,
            destination_port: head.destination_port,
            protocol: head.protocol,
            ifindex: head.ifindex,
            length: head.length,
            packet: packet.iter().map(|byte| format!("{byte:02x}")).collect(),
        }
    }

    /// The packet's first bytes; what is no hexadecimal ends them.
    pub fn bytes(&self) -> Vec<u8> {
        let digits: Vec<u8> = self.packet.chars().map_while(|c| c.to_digit(16)).map(|digit| digit as u8).collect();
        digits.chunks_exact(2).map(|pair| pair[0] * 16 + pair[1]).collect()
    }

    /// Is it about this pod, as `namespace/name`, in any role?
    pub fn is_of(&self, pod: &str) -> bool {
        let roles = [&self.pod, &self.source_pod, &self.destination_pod];
        roles.into_iter().flatten().any(|key| key.to_string() == pod)
    }

    /// What decided, in words.
    pub fn why(&self) -> String {
        match (&self.reason, &self.rule) {
            (_, Some(rule)) => format!("by {rule}"),
            (Some(reason), None) if reason == Reason::Denied.name() => "no rule allows it".to_owned(),
            (Some(reason), None) => reason.clone(),
            (None, None) if self.rule_number != 0 => format!("by rule {}", self.rule_number),
            (None, None) => "not isolated".to_owned(),
        }
    }

    /// One line for people, in UTC.
    pub fn text(&self) -> String {
        let end = |ip: Option<IpAddr>, port: u16, pod: &Option<ObjectKey>| {
            let Some(ip) = ip else { return "?".to_owned() };
            let address = if port == 0 { ip.to_string() } else { SocketAddr::new(ip, port).to_string() };
            pod.as_ref().map_or(address.clone(), |pod| format!("{pod} {address}"))
        };
        let mut out = clock(self.time_ns);
        let verdict = match self.kind {
            SeenKind::Drop if self.allowed => "pass",
            SeenKind::Drop => "drop",
            SeenKind::Flow => "flow",
        };
        let pod = match &self.pod {
            Some(pod) => pod.to_string(),
            None if self.pod_number == 0 => format!("interface {}", self.ifindex),
            None => format!("pod {}", self.pod_number),
        };
        // Writing to a String cannot fail.
        let _ = write!(
            out,
            " {verdict} {} of {pod}: {} -> {} {}, {}",
            self.direction.name(),
            end(self.source, self.source_port, &self.source_pod),
            end(self.destination, self.destination_port, &self.destination_pod),
            protocol_name(self.protocol),
            self.why()
        );
        out
    }
}

pub fn protocol_name(number: u8) -> String {
    match (Protocol::from_number(number), number) {
        (Some(known), _) => known.name().to_owned(),
        (None, 0) => "?".to_owned(),
        (None, protocol::ICMP) => "icmp".to_owned(),
        (None, protocol::ICMPV6) => "icmpv6".to_owned(),
        (None, number) => format!("protocol {number}"),
    }
}

/// `13:07:59.004`, in UTC.
fn clock(unix_ns: u64) -> String {
    let ms = unix_ns / 1_000_000;
    let (s, ms) = (ms / 1_000, ms % 1_000);
    format!("{:02}:{:02}:{:02}.{ms:03}", s / 3_600 % 24, s / 60 % 60, s % 60)
}

/// What a watcher wants to see.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Wish {
    /// No flows.
    pub drops: bool,
    /// `namespace/name`
    pub pod: Option<String>,
}

impl Wish {
    fn wants(&self, seen: &Seen) -> bool {
        !(self.drops && seen.kind == SeenKind::Flow) && self.pod.as_ref().is_none_or(|pod| seen.is_of(pod))
    }
}

#[derive(Debug)]
struct Watcher {
    wish: Wish,
    lines: mpsc::Sender<Bytes>,
    lost: u64,
}

/// Passes records on to everybody who looks on. Cheap to clone; nobody ever waits for anybody.
#[derive(Clone, Debug, Default)]
pub struct Broadcaster(Arc<Watchers>);

#[derive(Debug, Default)]
struct Watchers {
    list: Mutex<Vec<Watcher>>,
    /// Somebody came or went.
    changed: Notify,
}

impl Broadcaster {
    fn watchers(&self) -> MutexGuard<'_, Vec<Watcher>> {
        // A list of queues has no state that a panic could leave half done.
        self.0.list.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The lines for one more watcher, until they are dropped.
    pub fn subscribe(&self, wish: Wish) -> Lines {
        let (lines, receiver) = mpsc::channel(QUEUE);
        self.watchers().push(Watcher { wish, lines, lost: 0 });
        self.0.changed.notify_one();
        Lines { lines: receiver, watchers: Arc::clone(&self.0) }
    }

    /// Until somebody came or went since the last call. Cancel-safe.
    pub async fn changed(&self) {
        self.0.changed.notified().await;
    }

    /// Does anybody look on? If not, records need no names.
    pub fn is_watched(&self) -> bool {
        self.watchers().iter().any(|watcher| !watcher.lines.is_closed())
    }

    /// Does anybody want new flows? While this is so the programs must be told to record them
    /// ([`kube_router_common::config::Config::FLOW_EVENTS`]).
    pub fn wants_flows(&self) -> bool {
        self.watchers().iter().any(|watcher| !watcher.wish.drops && !watcher.lines.is_closed())
    }

    pub fn publish(&self, seen: Seen) {
        let mut watchers = self.watchers();
        watchers.retain(|watcher| !watcher.lines.is_closed());
        if !watchers.iter().any(|watcher| watcher.wish.wants(&seen)) {
            return;
        }
        let wanted = watchers.iter().map(|watcher| watcher.wish.wants(&seen)).collect::<Vec<_>>();
        let Some(line) = line(&Line::Seen(Box::new(seen))) else { return };
        for (watcher, _) in watchers.iter_mut().zip(wanted).filter(|(_, wanted)| *wanted) {
            watcher.send(&line);
        }
    }
}

impl Watcher {
    fn send(&mut self, record: &Bytes) {
        if self.lost > 0 {
            let Some(told) = line(&Line::Lost { lost: self.lost }) else { return };
            // Room for one is no room for both.
            if self.lines.capacity() < 2 || self.lines.try_send(told).is_err() {
                self.lost += 1;
                return;
            }
            self.lost = 0;
        }
        if let Err(TrySendError::Full(_)) = self.lines.try_send(record.clone()) {
            self.lost += 1;
        }
    }
}

fn line(line: &Line) -> Option<Bytes> {
    let mut text = serde_json::to_vec(line).ok()?;
    text.push(b'\n');
    Some(text.into())
}

/// Lines of JSON for one watcher.
#[derive(Debug)]
pub struct Lines {
    lines: mpsc::Receiver<Bytes>,
    watchers: Arc<Watchers>,
}

impl Drop for Lines {
    fn drop(&mut self) {
        self.lines.close();
        self.watchers.changed.notify_one();
    }
}

impl Stream for Lines {
    type Item = Result<Bytes, Infallible>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        self.lines.poll_recv(context).map(|line| line.map(Ok))
    }
}
