//! Health-check node ports: for each Service with `spec.healthCheckNodePort` a small HTTP server on every address of
//! the node, by which an external load balancer learns whether this node has endpoints of that Service.
//!
//! In: the wanted ports and their counts, as often as they change. Out: listeners that follow. `GET /healthz` answers
//! 200 or 503 with the original's text. A port that cannot be had is said once, and tried again at the next change and
//! every [`RETRY`]; the others are not affected.

use std::{
    collections::BTreeMap,
    io,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
    time::Duration,
};

use axum::{Router, body::Body, extract::Request, http::StatusCode, response::Response};
use tokio::{
    net::TcpListener,
    sync::watch,
    task::{AbortHandle, JoinSet},
    time::sleep,
};
use tracing::{info, warn};

use super::{
    Metrics,
    listen::listen_everywhere,
    serve::{CONNECTION_LIFETIME, not_found, plain, serve},
};

/// Health-check node port -> local endpoints that are not terminating.
pub type Ports = BTreeMap<u16, usize>;

/// A port that was taken may become free without any event of ours.
const RETRY: Duration = Duration::from_secs(30);
/// Connections per port: a handful of load balancers, each probing every few seconds.
const PLACES: usize = 16;

/// Follows `wanted` until its sender is gone; dropping this closes every port.
pub async fn run(wanted: watch::Receiver<Ports>, metrics: Arc<Metrics>) {
    follow(wanted, &metrics, RETRY).await;
}

async fn follow(mut wanted: watch::Receiver<Ports>, metrics: &Metrics, retry: Duration) {
    let mut servers = Servers::default();
    loop {
        let ports = wanted.borrow_and_update().clone();
        servers.follow(&ports);
        metrics.set_health_check_ports(servers.open.len(), servers.failed.len());
        let changed = tokio::select! {
            changed = wanted.changed() => changed,
            () = sleep(retry), if !servers.failed.is_empty() => Ok(()),
        };
        if changed.is_err() {
            return;
        }
    }
}

#[derive(Default)]
struct Servers {
    open: BTreeMap<u16, Open>,
    /// Why a port could not be had, as last said.
    failed: BTreeMap<u16, Option<i32>>,
    tasks: JoinSet<()>,
}

struct Open {
    endpoints: Arc<AtomicUsize>,
    task: AbortHandle,
}

impl Servers {
    fn follow(&mut self, ports: &Ports) {
        self.open.retain(|port, server| {
            let keep = ports.contains_key(port);
            if !keep {
                server.task.abort();
                info!(port, "health-check node port closed");
            }
            keep
        });
        while self.tasks.try_join_next().is_some() {}
        self.failed.retain(|port, _| ports.contains_key(port));
        for (&port, &endpoints) in ports {
            match self.open.get(&port) {
                Some(server) => server.endpoints.store(endpoints, Relaxed),
                None => self.open(port, endpoints),
            }
        }
    }

    fn open(&mut self, port: u16, endpoints: usize) {
        let listener = listen_everywhere(port).and_then(TcpListener::from_std);
        match listener {
            Ok(listener) => {
                let endpoints = Arc::new(AtomicUsize::new(endpoints));
                let task = self.tasks.spawn(serve(
                    listener,
                    router(Arc::clone(&endpoints)),
                    PLACES,
                    Some(CONNECTION_LIFETIME),
                ));
                self.open.insert(port, Open { endpoints, task });
                self.failed.remove(&port);
                info!(port, "health-check node port open");
            }
            Err(error) => self.say_once(port, &error),
        }
    }

    fn say_once(&mut self, port: u16, error: &io::Error) {
        let reason = error.raw_os_error();
        if self.failed.insert(port, reason) != Some(reason) {
            warn!(port, %error, "cannot listen on a health-check node port; will try again");
        }
    }
}

fn router(endpoints: Arc<AtomicUsize>) -> Router {
    Router::new().fallback(move |request: Request| async move {
        if request.uri().path() == "/healthz" { judge(endpoints.load(Relaxed)) } else { not_found() }
    })
}

fn judge(endpoints: usize) -> Response<Body> {
    match endpoints {
        0 => plain(StatusCode::SERVICE_UNAVAILABLE, "No Service Endpoints Found\n"),
        count => plain(StatusCode::OK, format!("{count} Service Endpoints found\n")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_taken_port_is_tried_again_without_any_change() {
        let taken = listen_everywhere(0).unwrap();
        let port = taken.local_addr().unwrap().port();
        let (_sender, wanted) = watch::channel(Ports::from([(port, 1)]));
        let metrics = Metrics::new(true);
        let watching = async {
            // Some retries fail while the port is taken.
            sleep(Duration::from_millis(50)).await;
            drop(taken);
            while tokio::net::TcpStream::connect(("127.0.0.1", port)).await.is_err() {
                sleep(Duration::from_millis(5)).await;
            }
        };
        tokio::select! {
            () = follow(wanted, &metrics, Duration::from_millis(10)) => panic!("ended early"),
            () = watching => {}
            () = sleep(Duration::from_secs(5)) => panic!("never had the port"),
        }
    }
}
