//! Showing everything out: metrics, health, the status socket, the recorder. Nothing here decides anything.

use std::{
    net::{IpAddr, SocketAddr},
    sync::atomic::{AtomicBool, AtomicU64},
};

use serde::{Deserialize, Serialize};
use tokio::sync::oneshot;

use crate::objects::{ObjectKey, Protocol};

/// A question to the reconcile loop, which alone knows.
#[derive(Debug)]
pub enum Query {
    /// Every virtual server we want, with its destinations.
    Services(oneshot::Sender<Vec<ServiceRow>>),
    /// Every standing problem as (subject, reason, text).
    Problems(oneshot::Sender<Vec<(String, String, String)>>),
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
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DestinationRow {
    pub address: SocketAddr,
    pub weight: u32,
    /// Being drained: weight 0 until its connections or its time are over.
    pub draining: bool,
}

/// The reconcile loop's pulse: alive means idle, or busy with progress made lately. A long sync is not death.
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
}
