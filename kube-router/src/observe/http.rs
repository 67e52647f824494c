//! The endpoints for kubelet and Prometheus: `/healthz`, `/readyz`, and the metrics path.
//!
//! In: two optional addresses. They are bound at once, before the first sync, so that a taken port is an error at
//! start; one address given for both serves both. Any method is answered, other paths are 404.

use std::{
    convert::Infallible,
    io,
    net::{SocketAddr, TcpListener},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
};

use axum::{Router, body::Body, extract::Request, http::StatusCode, response::Response};
use tracing::error;

use super::{
    Pulse,
    health::{Health, Readiness},
    listen::listen,
    scrape::{ScrapeError, Scraper},
    serve::{answer, not_found, plain},
};
use crate::{config::HttpConfig, sys::clock};

/// Content type of the text exposition format.
const METRICS_TEXT: &str = "text/plain; version=0.0.4; charset=utf-8";
const HEALTH_PATH: &str = "/healthz";
const READY_PATH: &str = "/readyz";

/// Connections per address: kubelet, a few load balancers and Prometheus servers, and room for strangers.
pub const PLACES: usize = 64;

/// The configuration asks for something that cannot be; the agent must not start.
#[derive(Debug, thiserror::Error)]
pub enum BindError {
    #[error("{flags}: cannot listen on {address}: {source}")]
    Address { flags: &'static str, address: SocketAddr, source: io::Error },
    #[error("--metrics-path: {path} on {address} is taken by the health endpoint; choose another path or address")]
    Path { path: String, address: SocketAddr },
}

/// What is served on one listener.
#[derive(Debug)]
pub struct Endpoint {
    pub listener: TcpListener,
    health: bool,
    /// The path, if metrics are served here.
    metrics: Option<String>,
}

/// Binds what is configured: no, one or two listeners.
pub fn bind(config: &HttpConfig) -> Result<Vec<Endpoint>, BindError> {
    // "metrics" and "/metrics" are the same wish.
    let path = format!("/{}", config.metrics_path.trim_start_matches('/'));
    let bind = |flags, address| listen(address).map_err(|source| BindError::Address { flags, address, source });
    let mut endpoints = Vec::new();
    if let Some(address) = config.health {
        let metrics = (config.metrics == config.health).then(|| path.clone());
        if metrics.as_deref().is_some_and(|path| path == HEALTH_PATH || path == READY_PATH) {
            return Err(BindError::Path { path, address });
        }
        let listener = bind("--health-addr, --health-port", address)?;
        endpoints.push(Endpoint { listener, health: true, metrics });
    }
    if let Some(address) = config.metrics.filter(|_| config.metrics != config.health) {
        let listener = bind("--metrics-addr, --metrics-port", address)?;
        endpoints.push(Endpoint { listener, health: false, metrics: Some(path) });
    }
    Ok(endpoints)
}

impl Endpoint {
    /// Paths are compared as they are (no patterns: the metrics path is the user's text).
    pub(super) fn router(&self, pulse: &Arc<Pulse>, scraper: &Arc<Scraper>) -> Router {
        let (health, metrics) = (self.health, self.metrics.clone());
        let (pulse, scraper) = (Arc::clone(pulse), Arc::clone(scraper));
        let said = Arc::new(AtomicBool::new(false));
        Router::new().fallback(move |request: Request| async move {
            match request.uri().path() {
                HEALTH_PATH if health => healthz(&pulse, &said),
                READY_PATH if health => readyz(&pulse),
                path if metrics.as_deref() == Some(path) => scrape(&scraper).await,
                _ => not_found(),
            }
        })
    }
}

/// `said`: the present trouble is in the log already; probes come every few seconds.
fn healthz(pulse: &Pulse, said: &AtomicBool) -> Response<Body> {
    let health = pulse.health(clock::uptime_ms());
    if health == Health::Alive {
        said.store(false, Relaxed);
        return plain(StatusCode::OK, "OK\n");
    }
    if !said.swap(true, Relaxed) {
        error!(?health, "the reconcile loop is not alive");
    }
    plain(StatusCode::INTERNAL_SERVER_ERROR, "Unhealthy")
}

fn readyz(pulse: &Pulse) -> Response<Body> {
    let readiness = pulse.readiness();
    let status = if readiness == Readiness::Ready { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    let notes: String = pulse.notes().iter().map(|note| format!("{note}\n")).collect();
    plain(status, format!("{readiness}\n{notes}"))
}

async fn scrape(scraper: &Scraper) -> Response<Body> {
    match scraper.scrape().await {
        Ok(scrape) => {
            let pieces = futures::stream::iter(scrape.pieces().map(Ok::<_, Infallible>));
            answer(StatusCode::OK, METRICS_TEXT, Body::from_stream(pieces))
        }
        Err(error) => {
            let status = match error {
                ScrapeError::Busy => StatusCode::SERVICE_UNAVAILABLE,
                ScrapeError::Encode(_) | ScrapeError::Panicked => StatusCode::INTERNAL_SERVER_ERROR,
            };
            plain(status, format!("{error}\n"))
        }
    }
}
