//! Serving HTTP/1 with everything bounded: connections, their lifetime, the head of a request.
//!
//! Each connection answers one request and is closed: our clients (probes, Prometheus, our own CLI) ask seconds apart,
//! so kept connections would only occupy places. When all places are taken, the oldest connection gives way: it had
//! the most time to get its answer, and a flood of silent connections can never shut out the next probe.

use std::{collections::VecDeque, time::Duration};

use axum::{
    Router,
    body::Body,
    http::{Response, StatusCode, header::CONTENT_TYPE},
    serve::Listener,
};
use hyper::server::conn::http1;
use hyper_util::{
    rt::{TokioIo, TokioTimer},
    service::TowerToHyperService,
};
use tokio::{
    task::{AbortHandle, JoinSet},
    time::timeout,
};
use tracing::debug;

/// From accept to the end of the answer, for most. The slowest answer is a scrape (8 s) to a slow reader.
pub const CONNECTION_LIFETIME: Duration = Duration::from_secs(30);
/// From accept to the end of the request's head.
const HEAD_WAIT: Duration = Duration::from_secs(5);
/// Of a request's head; ours have a few hundred bytes. (hyper's smallest.)
const BUFFER_BYTES: usize = 8 * 1024;

/// Content type of every plain answer, as the original's.
pub const TEXT: &str = "text/plain; charset=utf-8";

/// Serves until dropped; dropping closes the listener and every connection. Connections may last `lifetime`; `None`: as
/// long as there is a place.
pub async fn serve<L: Listener>(mut listener: L, router: Router, places: usize, lifetime: Option<Duration>) {
    let mut connections = JoinSet::new();
    let mut by_age: VecDeque<AbortHandle> = VecDeque::with_capacity(places);
    loop {
        let (io, _) = listener.accept().await;
        while connections.try_join_next().is_some() {}
        by_age.retain(|connection| !connection.is_finished());
        if by_age.len() >= places
            && let Some(oldest) = by_age.pop_front()
        {
            debug!(places, "every place is taken: the oldest connection is closed");
            oldest.abort();
        }
        let connection = http1::Builder::new()
            .keep_alive(false)
            .timer(TokioTimer::new())
            .header_read_timeout(HEAD_WAIT)
            .max_buf_size(BUFFER_BYTES)
            .serve_connection(TokioIo::new(io), TowerToHyperService::new(router.clone()));
        by_age.push_back(connections.spawn(async move {
            match timeout(lifetime.unwrap_or(Duration::MAX), connection).await {
                Ok(Ok(())) => {}
                Ok(Err(error)) => debug!(%error, "connection ended early"),
                Err(_) => debug!("connection closed at the end of its lifetime"),
            }
        }));
    }
}

/// An answer of plain text.
pub fn plain(status: StatusCode, body: impl Into<Body>) -> Response<Body> {
    answer(status, TEXT, body)
}

pub fn answer(status: StatusCode, content_type: &'static str, body: impl Into<Body>) -> Response<Body> {
    let mut response = Response::new(body.into());
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, http::HeaderValue::from_static(content_type));
    response
}

pub fn not_found() -> Response<Body> {
    plain(StatusCode::NOT_FOUND, "404 page not found\n")
}
