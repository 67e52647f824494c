//! The status socket: what `kube-router dump` asks, on a unix socket that only root can open.
//!
//! `GET /v1/services`, `/v1/problems` and `/v1/version` answer JSON. The socket belongs to one agent: a lock file beside
//! it decides who, so a file left by a dead agent is replaced and a living agent's is never taken.

use std::{
    fs, io,
    os::{
        fd::OwnedFd,
        unix::{
            fs::{DirBuilderExt, FileTypeExt, OpenOptionsExt},
            net::UnixListener as StdListener,
        },
    },
    path::{Path, PathBuf},
    time::Duration,
};

use axum::{
    Router,
    body::Body,
    extract::Request,
    http::{Method, Response, StatusCode, request::Parts},
    serve::Listener,
};
use nix::{
    errno::Errno,
    fcntl::{Flock, FlockArg},
    sys::stat::{Mode, fchmod},
};
use serde::{Deserialize, Serialize};
use socket2::{Domain, SockAddr, Socket, Type};
use tokio::net::{UnixListener, unix};

use super::{
    Questions,
    monitor::Wish,
    questions::NoAnswer,
    serve::{answer, not_found, plain, serve},
};
use crate::{explain::Question, sys::version};

pub const SERVICES_PATH: &str = "/v1/services";
pub const PROBLEMS_PATH: &str = "/v1/problems";
pub const VERSION_PATH: &str = "/v1/version";
/// With `from`, `to` and perhaps `port`: [`explain_path`].
pub const EXPLAIN_PATH: &str = "/v1/explain";
pub const POLICY_NAMES_PATH: &str = "/v1/policy-names";
/// Objects that network policy is about.
pub const OBJECTS_PATH: &str = "/v1/objects";
/// A stream, see [`super::monitor`].
pub const MONITOR_PATH: &str = "/v1/monitor";

/// How long a person waits for the reconcile loop; longer than a scrape does.
pub const ANSWER_WAIT: Duration = Duration::from_secs(10);
const PLACES: usize = 16;
const BACKLOG: i32 = 16;
const DIRECTORY_MODE: u32 = 0o755;
const SOCKET_MODE: u32 = 0o600;

#[derive(Debug, thiserror::Error)]
pub enum SocketError {
    /// Two agents on one node fight over the same kernel: the second must not run.
    #[error("another kube-router already answers on {}; only one may run on a node", .0.display())]
    Taken(PathBuf),
    #[error("{} exists and is not a socket; move it away", .0.display())]
    NotASocket(PathBuf),
    #[error("cannot make the socket {}: {source}", path.display())]
    Io { path: PathBuf, source: io::Error },
}

/// Answer of [`VERSION_PATH`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct VersionRow {
    pub version: String,
    pub compiler: String,
}

/// The bound socket. Dropping it removes the file and then gives the lock back.
#[derive(Debug)]
pub struct BoundSocket {
    listener: StdListener,
    claim: Claim,
}

/// A path that nobody else may listen on. Dropping it removes the file and then gives the lock back.
#[derive(Debug)]
pub struct Claim {
    path: PathBuf,
    _lock: Flock<fs::File>,
}

impl Drop for Claim {
    fn drop(&mut self) {
        // The lock is still held, so this is our own file; if somebody removed it already, so much the better.
        let _ = fs::remove_file(&self.path);
    }
}

/// Claims `path` and listens on it; makes its directory if needed.
pub fn bind(path: &Path) -> Result<BoundSocket, SocketError> {
    let io = |source| SocketError::Io { path: path.into(), source };
    if let Some(directory) = path.parent().filter(|directory| !directory.as_os_str().is_empty()) {
        fs::DirBuilder::new().recursive(true).mode(DIRECTORY_MODE).create(directory).map_err(io)?;
    }
    let mut lock_path = path.as_os_str().to_owned();
    lock_path.push(".lock");
    let lock = fs::OpenOptions::new().create(true).truncate(false).write(true).mode(SOCKET_MODE).open(lock_path);
    let lock = match Flock::lock(lock.map_err(io)?, FlockArg::LockExclusiveNonblock) {
        Ok(lock) => lock,
        Err((_, Errno::EWOULDBLOCK)) => return Err(SocketError::Taken(path.into())),
        Err((_, errno)) => return Err(io(errno.into())),
    };
    remove_stale(path)?;
    let listener = listen(path).map_err(io)?;
    Ok(BoundSocket { listener, claim: Claim { path: path.into(), _lock: lock } })
}

/// Removes the socket file of a dead agent. The lock already tells that no agent lives; a listener without the lock
/// (somebody deleted the lock file) still counts.
fn remove_stale(path: &Path) -> Result<(), SocketError> {
    let io = |source| SocketError::Io { path: path.into(), source };
    match fs::symlink_metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(io(error)),
        Ok(metadata) if !metadata.file_type().is_socket() => return Err(SocketError::NotASocket(path.into())),
        Ok(_) => {}
    }
    match knock(path) {
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => fs::remove_file(path).map_err(io),
        // A living listener whose queue is full.
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => Err(SocketError::Taken(path.into())),
        Err(error) => Err(io(error)),
        Ok(()) => Err(SocketError::Taken(path.into())),
    }
}

/// Connects without waiting.
fn knock(path: &Path) -> io::Result<()> {
    let socket = Socket::new(Domain::UNIX, Type::STREAM, None)?;
    socket.set_nonblocking(true)?;
    socket.connect(&SockAddr::unix(path)?)
}

/// The file appears with its final mode: bind(2) gives it the mode of the socket's own inode (net/unix/af_unix.c).
fn listen(path: &Path) -> io::Result<StdListener> {
    let socket = Socket::new(Domain::UNIX, Type::STREAM, None)?;
    fchmod(&socket, Mode::from_bits_truncate(SOCKET_MODE))?;
    socket.bind(&SockAddr::unix(path)?)?;
    socket.listen(BACKLOG)?;
    socket.set_nonblocking(true)?;
    Ok(OwnedFd::from(socket).into())
}

impl BoundSocket {
    /// For who serves it without a runtime. The listener does not block unless told to; the claim lasts longer than it.
    pub fn into_parts(self) -> (StdListener, Claim) {
        (self.listener, self.claim)
    }

    /// To be called inside the runtime that will serve it.
    pub(super) fn into_listener(self) -> io::Result<ClaimedListener> {
        Ok(ClaimedListener { listener: UnixListener::from_std(self.listener)?, _claim: self.claim })
    }
}

/// A listener that lives as long as its claim on the path.
pub(super) struct ClaimedListener {
    listener: UnixListener,
    _claim: Claim,
}

impl Listener for ClaimedListener {
    type Io = tokio::net::UnixStream;
    type Addr = unix::SocketAddr;

    async fn accept(&mut self) -> (Self::Io, Self::Addr) {
        Listener::accept(&mut self.listener).await
    }

    fn local_addr(&self) -> io::Result<Self::Addr> {
        self.listener.local_addr()
    }
}

/// Serves until dropped.
pub(super) async fn run(listener: ClaimedListener, questions: Questions) {
    let router = Router::new().fallback(move |request: Request| async move {
        let (parts, _) = request.into_parts();
        respond(&parts, &questions).await
    });
    // `monitor` looks on for hours.
    serve(listener, router, PLACES, None).await;
}

async fn respond(request: &Parts, questions: &Questions) -> Response<Body> {
    if request.method != Method::GET {
        return plain(StatusCode::METHOD_NOT_ALLOWED, "only GET is answered here\n");
    }
    match request.uri.path() {
        SERVICES_PATH => json(questions.services(ANSWER_WAIT).await),
        PROBLEMS_PATH => json(questions.problems(ANSWER_WAIT).await),
        EXPLAIN_PATH => explained(request, questions).await,
        POLICY_NAMES_PATH => json(match questions.policy() {
            Ok(policy) => policy.names(ANSWER_WAIT).await,
            Err(reason) => Err(reason),
        }),
        OBJECTS_PATH => json(match questions.policy() {
            Ok(policy) => policy.objects(ANSWER_WAIT).await,
            Err(reason) => Err(reason),
        }),
        MONITOR_PATH => match questions.policy() {
            Ok(policy) => {
                let wish = Wish { drops: value(request, "drops").is_some(), pod: value(request, "pod") };
                let lines = policy.monitor().subscribe(wish);
                answer(StatusCode::OK, "application/x-ndjson", Body::from_stream(lines))
            }
            Err(reason) => declined(reason),
        },
        VERSION_PATH => json(Ok(VersionRow { version: version::VERSION.into(), compiler: version::COMPILER.into() })),
        _ => not_found(),
    }
}

async fn explained(request: &Parts, questions: &Questions) -> Response<Body> {
    let question = Question {
        from: value(request, "from").unwrap_or_default(),
        to: value(request, "to").unwrap_or_default(),
        port: value(request, "port"),
    };
    let outcome = match questions.policy() {
        Ok(policy) => policy.explain(question, ANSWER_WAIT).await,
        Err(reason) => Err(reason),
    };
    match outcome {
        Ok(Err(refusal)) => plain(StatusCode::BAD_REQUEST, format!("{refusal}\n")),
        Ok(Ok(answer)) => json(Ok(answer)),
        Err(reason) => declined(reason),
    }
}

/// The path of a question.
pub fn explain_path(question: &Question) -> String {
    let mut path = format!("{EXPLAIN_PATH}?from={}&to={}", escaped(&question.from), escaped(&question.to));
    if let Some(port) = &question.port {
        path.push_str("&port=");
        path.push_str(&escaped(port));
    }
    path
}

/// RFC 3986: all but unreserved characters as %XX.
pub fn escaped(text: &str) -> String {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-._~".contains(&byte);
    text.bytes().map(|byte| if plain(byte) { char::from(byte).to_string() } else { format!("%{byte:02X}") }).collect()
}

fn unescaped(text: &str) -> Option<String> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.bytes();
    while let Some(byte) = rest.next() {
        bytes.push(match byte {
            b'%' => {
                let digit = |byte: u8| char::from(byte).to_digit(16);
                (digit(rest.next()?)? * 16 + digit(rest.next()?)?) as u8
            }
            byte => byte,
        });
    }
    String::from_utf8(bytes).ok()
}

/// A parameter of the request; what cannot be read is not there.
fn value(request: &Parts, name: &str) -> Option<String> {
    let pairs = request.uri.query()?.split('&').filter_map(|pair| pair.split_once('='));
    pairs.filter(|(known, _)| *known == name).find_map(|(_, value)| unescaped(value))
}

fn declined(reason: NoAnswer) -> Response<Body> {
    plain(StatusCode::SERVICE_UNAVAILABLE, format!("{reason}\n"))
}

fn json<T: Serialize>(outcome: Result<T, NoAnswer>) -> Response<Body> {
    let value = match outcome {
        Ok(value) => value,
        Err(reason) => return declined(reason),
    };
    match serde_json::to_vec(&value) {
        Ok(text) => answer(StatusCode::OK, "application/json", text),
        Err(error) => plain(StatusCode::INTERNAL_SERVER_ERROR, format!("{error}\n")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_question_survives_its_path() {
        let question = Question { from: "a b/c&d=%\u{e9}".into(), to: "fd00::1".into(), port: Some("tcp/80".into()) };
        let (parts, ()) = http::Request::get(explain_path(&question)).body(()).unwrap().into_parts();
        assert_eq!(value(&parts, "from").as_ref(), Some(&question.from));
        assert_eq!(value(&parts, "to").as_ref(), Some(&question.to));
        assert_eq!(value(&parts, "port"), question.port);
        assert_eq!(value(&parts, "pod"), None);
        for bad in ["%", "%4", "%zz", "%ff"] {
            assert_eq!(unescaped(bad), None, "{bad}");
        }
    }
}
