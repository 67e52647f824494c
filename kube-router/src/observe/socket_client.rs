//! The asking side of the status socket: one GET, one JSON answer.

use std::{
    io,
    ops::ControlFlow,
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
/// One record of `monitor` has less than 2 KiB.
const LONGEST_LINE: usize = 64 * 1024;

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
pub async fn get<T: DeserializeOwned>(socket: &Path, path: &str) -> Result<T, ClientError> {
    let body = timeout(WAIT, exchange(socket, path)).await.map_err(|_| ClientError::Late)??;
    Ok(serde_json::from_slice(&body)?)
}

async fn connected(socket: &Path) -> Result<TokioIo<UnixStream>, ClientError> {
    let stream = UnixStream::connect(socket).await.map_err(|source| match source.kind() {
        io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused => ClientError::NotRunning(socket.into()),
        io::ErrorKind::PermissionDenied => ClientError::NotAllowed(socket.into()),
        _ => ClientError::Connect { path: socket.into(), source },
    })?;
    Ok(TokioIo::new(stream))
}

fn request(path: &str) -> Result<Request<Body>, ClientError> {
    // HTTP/1.1 demands a host; a socket has none.
    let request = Request::get(path).header(http::header::HOST, "localhost").body(Body::empty());
    request.map_err(|error| ClientError::Broken(Box::new(error)))
}

async fn exchange(socket: &Path, path: &str) -> Result<Bytes, ClientError> {
    let (mut sender, connection) = http1::handshake(connected(socket).await?).await.map_err(broken)?;
    let request = request(path)?;
    let answer = async {
        let response = sender.send_request(request).await.map_err(broken)?;
        let status = response.status();
        let body = Limited::new(response.into_body(), MAX_BYTES).collect().await.map_err(ClientError::Broken)?;
        Ok::<_, ClientError>((status, body.to_bytes()))
    };
    // The connection moves the bytes, the answer is what we wait for; the connection's own error shows in the answer.
    let (_, answer) = tokio::join!(connection, answer);
    let (status, body) = answer?;
    if status == StatusCode::OK { Ok(body) } else { Err(declined(status, &body)) }
}

fn declined(status: StatusCode, body: &[u8]) -> ClientError {
    ClientError::Declined { status, reason: String::from_utf8_lossy(body).trim().into() }
}

/// Follows a path whose answer has no end, line by line, until `line` says that it is enough.
pub async fn follow(
    socket: &Path,
    path: &str,
    mut line: impl FnMut(&[u8]) -> ControlFlow<()>,
) -> Result<(), ClientError> {
    let (mut sender, connection) = http1::handshake(connected(socket).await?).await.map_err(broken)?;
    let request = request(path)?;
    let lines = async {
        let response = sender.send_request(request).await.map_err(broken)?;
        let status = response.status();
        let mut body = response.into_body();
        if status != StatusCode::OK {
            let told = Limited::new(body, LONGEST_LINE).collect().await.map_err(ClientError::Broken)?.to_bytes();
            return Err(declined(status, &told));
        }
        let mut waiting: Vec<u8> = Vec::new();
        while let Some(frame) = body.frame().await {
            waiting.extend_from_slice(frame.map_err(broken)?.data_ref().map_or(&[][..], |data| &data[..]));
            while let Some(end) = waiting.iter().position(|byte| *byte == b'\n') {
                if line(&waiting[..end]).is_break() {
                    return Ok(());
                }
                waiting.drain(..=end);
            }
            if waiting.len() > LONGEST_LINE {
                return Err(ClientError::Broken("a line without end".into()));
            }
        }
        Ok(())
    };
    // Whichever ends first: a connection that breaks shows in the lines, too.
    tokio::pin!(connection);
    tokio::pin!(lines);
    tokio::select! {
        outcome = &mut lines => outcome,
        _ = &mut connection => lines.await,
    }
}

fn broken(error: hyper::Error) -> ClientError {
    ClientError::Broken(Box::new(error))
}
