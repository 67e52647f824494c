//! The API server as a source: one list-and-watch loop per kind, cluster-wide and unfiltered.
//!
//! kube's `watcher` does the same dance, but hides when an interrupted watch is working again (no event says so, and
//! a problem would stay on show until some object changes), logs a refused request at every retry, and wants a
//! Kubernetes type per kind. The loop here uses kube's client (TLS, tokens, requests, event framing) and keeps the
//! state in the open; see `kind.rs`.

mod backoff;
mod client;
mod delivery;
mod discovery;
mod failure;
mod kind;

#[cfg(test)]
mod tests;

use std::sync::atomic::{AtomicBool, Ordering};

use futures::future::join_all;
use kube::{Client, Config};
use tokio::sync::{Notify, Semaphore, mpsc};
use tracing::{info, warn};

pub use client::client_config;

use super::WatchError;
use crate::objects::{Kind, ObjectEvent};
use kind::KindWatch;

/// List pages in flight over all kinds. A page of 500 pods can be 10 MB of JSON, so one at a time bounds the memory
/// of start-up; the kinds take turns page by page.
const PAGES_IN_FLIGHT: usize = 1;

/// Watches all kinds until the receiver is dropped.
///
/// # Errors
/// Certificates or keys in `config` that cannot be used.
pub async fn run(config: Config, sink: mpsc::Sender<ObjectEvent>) -> Result<(), WatchError> {
    let link = Link::new(config.cluster_url.to_string());
    let client = Client::try_from(config).map_err(|error| WatchError::Client {
        origin: format!("the configuration for {}", link.server),
        reason: failure::chain(&error),
    })?;
    let pages = Semaphore::new(PAGES_IN_FLIGHT);
    join_all(Kind::ALL.map(|kind| KindWatch::new(kind, &client, &pages, &link, &sink).run())).await;
    Ok(())
}

/// The connection to the API server, which all kinds share: its loss and return are logged once, not once per kind,
/// and the first kind that gets through wakes the others.
struct Link {
    server: String,
    down: AtomicBool,
    back: Notify,
}

impl Link {
    fn new(server: String) -> Self {
        Link { server, down: AtomicBool::new(false), back: Notify::new() }
    }

    fn lost(&self, why: &str) {
        if !self.down.swap(true, Ordering::Relaxed) {
            warn!(server = self.server, error = why, "API server unreachable, retrying; the last known objects stay");
        }
    }

    fn works(&self) {
        if self.down.swap(false, Ordering::Relaxed) {
            info!(server = self.server, "API server reachable again");
            self.back.notify_waiters();
        }
    }
}
