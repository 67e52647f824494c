//! The asking side of the status socket: one GET, one JSON answer.

use std::{
    io,
    path::{Path, PathBuf},
    time::Duration,
};

use axum::body::{Body, Bytes};
use http::{Request, StatusCode};
use http_body_util::{BodyExt, Limited};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use serde::de::DeserializeOwned;
use tokio::{net::UnixStream, time::timeout};

use super::socket::ANSWER_WAIT;

/// The agent itself answers or declines within [`ANSWER_WAIT`].
const WAIT: Duration = ANSWER_WAIT.saturating_add(Duration::from_secs(5));
/// Largest answer: 20,000 virtual servers of 300 bytes with 100 destinations of 60 bytes each would be 126 MB.
const MAX_BYTES: usize = 256 * 1024 * 1024;

#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    #[error(
        "no agent answers on {}: is kube-router running on this node? Ask from inside its pod (kubectl exec) or on the \
         node itself",
        .0.display()
    )]
    NotRunning(PathBuf),
    #[error("no permission to open {}: run this as root", .0.display())]
    NotAllowed(PathBuf),
    #[error("cannot open {}: {source}", path.display())]
    Connect { path: PathBuf, source: io::Error },
    #[error("the agent did not answer within {} s", WAIT.as_secs())]
    Late,
    /// The agent answered and declined.
    #[error("the agent declined ({status}): {reason}")]
    Declined { status: StatusCode, reason: String },
    #[error("the connection to the agent broke: {0}")]
    Broken(Box<dyn std::error::Error + Send + Sync>),
    #[error("the agent's answer is not understood (is it another version?): {0}")]
    Malformed(#[from] serde_json::Error),
}

/// Asks for `path` (one of the constants in [`super::socket`]).
pub async fn get<T: DeserializeOwned>(socket: &Path, path: &'static str) -> Result<T, ClientError> {
    let body = timeout(WAIT, exchange(socket, path)).await.map_err(|_| ClientError::Late)??;
    Ok(serde_json::from_slice(&body)?)
}

async fn exchange(socket: &Path, path: &'static str) -> Result<Bytes, ClientError> {
    let stream = UnixStream::connect(socket).await.map_err(|source| match source.kind() {
        io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused => ClientError::NotRunning(socket.into()),
        io::ErrorKind::PermissionDenied => ClientError::NotAllowed(socket.into()),
        _ => ClientError::Connect { path: socket.into(), source },
    })?;
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await.map_err(broken)?;
    let mut request = Request::new(Body::empty());
    *request.uri_mut() = http::Uri::from_static(path);
    // HTTP/1.1 demands a host; a socket has none.
    request.headers_mut().insert(http::header::HOST, http::HeaderValue::from_static("localhost"));
    let answer = async {
        let response = sender.send_request(request).await.map_err(broken)?;
        let status = response.status();
        let body = Limited::new(response.into_body(), MAX_BYTES).collect().await.map_err(ClientError::Broken)?;
        Ok::<_, ClientError>((status, body.to_bytes()))
    };
    // The connection moves the bytes, the answer is what we wait for; the connection's own error shows in the answer.
    let (_, answer) = tokio::join!(connection, answer);
    match answer? {
        (StatusCode::OK, body) => Ok(body),
        (status, body) => Err(ClientError::Declined { status, reason: String::from_utf8_lossy(&body).trim().into() }),
    }
}

fn broken(error: hyper::Error) -> ClientError {
    ClientError::Broken(Box::new(error))
}
