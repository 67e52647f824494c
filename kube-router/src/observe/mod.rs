//! Showing everything out: metrics, health, the status socket, the recorder, Kubernetes Events. Nothing here decides anything.
//!
//! The answers that only the reconcile loop knows are asked of it ([`Query`], [`questions`]) with a bounded wait; all
//! else is read from atomics ([`Pulse`], [`Metrics`]) or from the kernel. [`server`] runs on a thread of its own, so
//! that a busy, stuck or dead loop can neither delay nor silence `/healthz`.
//!
//! ```text
//! reconcile loop --Pulse, Metrics--> server thread --http--> kubelet, Prometheus, load balancers (node_port_health)
//!       ^--------------Query------------'   `--unix socket--> kube-router dump, explain, matrix
//!       ^--------------Query------------events--> API server --> kubectl describe
//!       `---records of the programs---> monitor::Broadcaster --stream--> kube-router monitor
//! ```

pub mod events;
pub mod health;
pub mod http;
pub mod listen;
pub mod metrics;
pub mod monitor;
pub mod node_port_health;
mod paths;
pub mod pcapng;
pub mod policy;
pub mod policy_metrics;
pub mod process;
pub mod questions;
pub mod scrape;
pub mod serve;
pub mod server;
pub mod socket;
pub mod socket_client;
pub mod table;
pub mod traffic;

#[cfg(test)]
mod tests;

use std::{
    net::{IpAddr, SocketAddr},
    sync::{
        Mutex,
        atomic::{AtomicBool, AtomicU8, AtomicU64},
    },
};

use serde::{Deserialize, Serialize};
use tokio::sync::oneshot;

pub use metrics::{Metrics, Plane};
pub use paths::{BothPaths, FastSource, PathStats};
pub use policy::{PolicyQuery, PolicyQuestions};
pub use questions::Questions;
pub use traffic::StatsSource;

use crate::{
    compile::Problem,
    desired::VirtualKey,
    objects::{ObjectKey, Protocol},
};

/// A question to the reconcile loop, which alone knows.
#[derive(Debug)]
pub enum Query {
    /// Every virtual server we want, with its destinations.
    Services(oneshot::Sender<Vec<ServiceRow>>),
    /// Virtual servers with their Services, in no order.
    Owners(oneshot::Sender<Vec<(VirtualKey, ObjectKey)>>),
    /// Every standing problem.
    Problems(oneshot::Sender<Vec<Problem>>),
}

/// One virtual server as `kube-router dump services` and the metrics show it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServiceRow {
    pub service: ObjectKey,
    pub port_name: String,
    /// ClusterIP, NodePort, ExternalIP or LoadBalancer.
    pub origin: String,
    pub address: IpAddr,
    pub protocol: Protocol,
    pub port: u16,
    pub scheduler: String,
    /// `mh-fallback`, `mh-port`.
    pub sched_flags: Vec<String>,
    pub persistence_s: Option<u32>,
    pub destinations: Vec<DestinationRow>,
    /// Without the fast path's programs: nobody asks.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub path: Option<PathRow>,
}

/// Who has a virtual server's new flows.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PathRow {
    /// `fast`, or `IPVS` and why.
    pub path: String,
    /// Its number in the tables of the fast path.
    pub number: Option<u32>,
    /// Of its ring.
    pub slots: Option<u32>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DestinationRow {
    pub address: SocketAddr,
    pub weight: u32,
    /// Being drained: weight 0 until its connections or its time are over.
    pub draining: bool,
}

/// A standing problem as the status socket shows it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProblemRow {
    pub subject: String,
    pub reason: String,
    pub text: String,
}

impl From<Problem> for ProblemRow {
    fn from(problem: Problem) -> Self {
        ProblemRow { subject: problem.subject.to_string(), reason: problem.reason.to_owned(), text: problem.text }
    }
}

/// The reconcile loop's pulse: alive means idle, or busy with progress made lately. A long sync is not death.
///
/// The loop writes it and the servers read it through the methods in [`health`]; nobody waits for anybody.
#[derive(Debug, Default)]
pub struct Pulse {
    /// The loop waits for events.
    pub idle: AtomicBool,
    /// Milliseconds of the process clock at the last sign of progress.
    pub progress_ms: AtomicU64,
    /// The loop ended by panic.
    pub dead: AtomicBool,
    /// The first full sync is through.
    pub ready: AtomicBool,
    /// Kinds of object that this agent watches: one bit per `Kind`.
    pub watched: AtomicU8,
    /// Of these, the kinds whose full list is through.
    pub complete: AtomicU8,
    /// What a ready node cannot do, a line each.
    pub notes: Mutex<Vec<String>>,
}
