//! Where objects come from: a Kubernetes API server, a directory of manifests, or a recording.
//!
//! Every source speaks [`ObjectEvent`] into a bounded channel and nothing else: no later room can tell them apart.
//! A source lives as long as its future; dropping the future ends its connections and threads. Whatever goes wrong
//! while it lives is an event (`Unavailable`, `Rejected`) and is retried; only what cannot get better by waiting, a
//! wrong configuration, is a [`WatchError`].
//!
//! This room keeps no objects (manifests excepted, which have no server to ask) and judges none.

pub mod kube;
pub mod manifests;
pub mod recorded;

use std::path::PathBuf;

use tokio::sync::mpsc;

use crate::{config::Source, objects::ObjectEvent};

/// Why a source cannot start: the configuration names something that is not there or cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum WatchError {
    #[error("kubeconfig {path}: {reason}; correct the file or name another one by --kubeconfig")]
    Kubeconfig { path: PathBuf, reason: String },
    #[error("--master {url}: {reason}; expected http://host:port or https://host:port")]
    Master { url: String, reason: String },
    #[error("no --kubeconfig and no --master are given, and this is not a pod with a service account: {reason}")]
    InCluster { reason: String },
    #[error("cannot make an API client from {origin}: {reason}")]
    Client { origin: String, reason: String },
    #[error("manifests in {path}: {reason}; name a file or directory that exists and can be read")]
    Manifests { path: PathBuf, reason: String },
}

/// The receiver of the events is gone: the agent is ending.
#[derive(Debug, thiserror::Error)]
#[error("nobody receives events any more")]
pub struct SinkClosed;

/// Delivers the objects of `source` into `sink` until the receiver is dropped. Dropping the future ends it, too.
///
/// Contract on top of [`ObjectEvent`]'s: a `RelistStarted` that follows another one without a `RelistDone` between
/// them restarts the list (the first attempt broke off); an `Unavailable` of a kind is over with its next
/// `RelistStarted`; the same problem is not repeated while it lasts.
///
/// # Errors
/// A configuration that cannot work, at once. An API server that does not answer is not an error.
pub async fn run(source: &Source, sink: mpsc::Sender<ObjectEvent>) -> Result<(), WatchError> {
    match source {
        Source::Kubernetes { kubeconfig, master } => {
            let config = kube::client_config(kubeconfig.as_deref(), master.as_deref()).await?;
            kube::run(config, sink).await
        }
        Source::Manifests(path) => manifests::run(path, sink).await,
    }
}

async fn send(sink: &mpsc::Sender<ObjectEvent>, event: ObjectEvent) -> Result<(), SinkClosed> {
    sink.send(event).await.map_err(|_| SinkClosed)
}
