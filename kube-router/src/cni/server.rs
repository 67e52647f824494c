//! The agent's side: a listener that hands questions to the reconcile loop and never lets an asker hang.
//!
//! ```text
//! plugin ──line──> connection thread ──Ask──> bounded queue ──> the loop
//!        <──line──                   <──Response (or: nobody answered in time)
//! ```
//!
//! The socket is for root only and belongs to one agent, by the same lock as the status socket's
//! ([`crate::observe::socket`]). Who comes while all places are taken waits in the kernel's queue.
//!
//! What the loop has to do with an [`Ask`]: carry out `request.command`, then [`Ask::answer`]. It need not hurry, nor look
//! whether anybody still waits: an asker that gave up did what it does without an agent (the pod's interface is guarded and
//! nothing passes), and an ADD that is carried out late is what that pod is waiting for. The loop's thread is in the node's
//! network namespace, so attaching belongs there; no thread of this file touches the kernel's tables.

use std::{
    io::Write,
    net::Shutdown,
    os::{
        fd::AsRawFd,
        unix::net::{UnixListener, UnixStream},
    },
    path::Path,
    sync::{Arc, Condvar, Mutex, PoisonError, mpsc as reply},
    thread,
    time::{Duration, Instant},
};

use nix::sys::socket as raw;
use tokio::sync::mpsc;
use tracing::{debug, warn};

use super::{
    client::read_line,
    protocol::{self, BadRequest, Request, Response},
};
use crate::observe::socket::{self, Claim, SocketError};

/// Questions that wait for the loop. With those that are being read: as many pods as a runtime starts at once on a node
/// that just booted (110 by a kubelet's default) wait here, in [`PLACES`] or in the kernel's queue.
const QUEUE: usize = 32;
/// Connections at a time, each with a thread.
const PLACES: usize = 32;
/// For a request to arrive: the plugin writes it at once.
const READ: Duration = Duration::from_secs(2);
/// Longest time for an answer, whatever patience an asker claims to have.
const MAX_PATIENCE: Duration = Duration::from_secs(60);
/// Between two attempts to put a question into a full queue.
const AGAIN: Duration = Duration::from_millis(5);

/// A question for the loop.
#[derive(Debug)]
pub struct Ask {
    pub request: Request,
    reply: reply::SyncSender<Response>,
}

impl Ask {
    /// A question and the place where its answer arrives, for who asks without a socket.
    pub fn new(request: Request) -> (Ask, reply::Receiver<Response>) {
        let (sender, receiver) = reply::sync_channel(1);
        (Ask { request, reply: sender }, receiver)
    }

    /// Never waits; an asker that went away does not matter.
    pub fn answer(self, response: Response) {
        let _ = self.reply.try_send(response);
    }
}

/// The loop's end of the queue, and the end for [`CniServer::start`].
pub fn channel() -> (mpsc::Sender<Ask>, mpsc::Receiver<Ask>) {
    mpsc::channel(QUEUE)
}

/// The listener. Dropping it ends the socket; connections that are being answered end by their own deadlines.
pub struct CniServer {
    listener: Arc<UnixListener>,
    accepting: Option<thread::JoinHandle<()>>,
    _claim: Claim,
}

impl CniServer {
    /// Listens on `path` (mode 0600; its directory is made if missing) and hands what it hears to `asks`, the sender of
    /// [`channel`]. A dead agent's socket is replaced; [`SocketError::Taken`] if another agent lives. When the receiver is
    /// gone askers hear that the agent is ending.
    pub fn start(path: &Path, asks: mpsc::Sender<Ask>) -> Result<CniServer, SocketError> {
        let io = |source| SocketError::Io { path: path.into(), source };
        let (listener, claim) = socket::bind(path)?.into_parts();
        listener.set_nonblocking(false).map_err(io)?;
        let listener = Arc::new(listener);
        let accepting = thread::Builder::new().name("cni".into()).spawn({
            let listener = listener.clone();
            move || accept(&listener, &asks)
        });
        Ok(CniServer { listener, accepting: Some(accepting.map_err(io)?), _claim: claim })
    }
}

impl Drop for CniServer {
    fn drop(&mut self) {
        // Wakes the thread out of accept(2), which then fails with EINVAL.
        let _ = raw::shutdown(self.listener.as_raw_fd(), raw::Shutdown::Both);
        if let Some(thread) = self.accepting.take() {
            let _ = thread.join();
        }
    }
}

/// Counts threads. A place is given back when it is dropped.
#[derive(Default)]
struct Places {
    taken: Mutex<usize>,
    freed: Condvar,
}

struct Place(Arc<Places>);

impl Places {
    fn take(self: &Arc<Self>) -> Place {
        let taken = self.taken.lock().unwrap_or_else(PoisonError::into_inner);
        let mut taken = self.freed.wait_while(taken, |taken| *taken >= PLACES).unwrap_or_else(PoisonError::into_inner);
        *taken += 1;
        Place(self.clone())
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        *self.0.taken.lock().unwrap_or_else(PoisonError::into_inner) -= 1;
        self.0.freed.notify_one();
    }
}

fn accept(listener: &UnixListener, asks: &mpsc::Sender<Ask>) {
    let places = Arc::new(Places::default());
    loop {
        let place = places.take();
        let stream = match listener.accept() {
            Ok((stream, _)) => stream,
            Err(error) if error.raw_os_error() == Some(libc::EINVAL) => return,
            Err(error) => {
                // Out of descriptors or memory: others need the time more than we do.
                warn!(%error, "the plugin's socket takes no connection");
                thread::sleep(Duration::from_millis(100));
                continue;
            }
        };
        let asks = asks.clone();
        let served = thread::Builder::new().name("cni-ask".into()).spawn(move || {
            serve(stream, &asks);
            drop(place);
        });
        if let Err(error) = served {
            warn!(%error, "no thread for a plugin's question");
        }
    }
}

fn serve(mut stream: UnixStream, asks: &mpsc::Sender<Ask>) {
    let begin = Instant::now();
    let line = match read_line(&mut stream, begin + READ) {
        Ok(line) => line,
        Err(error) => {
            debug!(%error, "a connection to the plugin's socket without a request");
            return;
        }
    };
    let response = match Request::parse(&line) {
        Ok(request) => hand_on(request, begin, asks),
        Err(error @ BadRequest::Version(_)) => Response::Away { reason: error.to_string() },
        Err(error @ BadRequest::Malformed(_)) => Response::Error {
            code: 6,
            msg: "the agent does not understand the plugin".into(),
            details: error.to_string(),
        },
    };
    let too_long = || Response::Away { reason: "the agent's answer is too long".into() };
    let line = protocol::line(&response).or_else(|| protocol::line(&too_long())).unwrap_or_default();
    // The asker went away, or does not read.
    let _ = stream.set_write_timeout(Some(READ)).and_then(|()| stream.write_all(&line));
    let _ = stream.shutdown(Shutdown::Both);
}

/// One deadline for the place in the queue and for the answer, before the asker's own.
fn hand_on(request: Request, begin: Instant, asks: &mpsc::Sender<Ask>) -> Response {
    let patience = Duration::from_millis(request.patience_ms).min(MAX_PATIENCE);
    let deadline = begin + patience - patience / 5;
    let gone = || Response::Away { reason: "the agent is ending".into() };
    let busy = || Response::Away { reason: "the agent is busy and did not answer in time".into() };
    let command = request.command.name();
    let (mut ask, answer) = Ask::new(request);
    loop {
        match asks.try_send(ask) {
            Ok(()) => break,
            Err(mpsc::error::TrySendError::Closed(_)) => return gone(),
            Err(mpsc::error::TrySendError::Full(_)) if Instant::now() >= deadline => return busy(),
            Err(mpsc::error::TrySendError::Full(back)) => {
                ask = back;
                thread::sleep(AGAIN);
            }
        }
    }
    match answer.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
        Ok(response) => {
            debug!(command, ?response, took = ?begin.elapsed(), "answered the plugin");
            response
        }
        Err(reply::RecvTimeoutError::Timeout) => busy(),
        Err(reply::RecvTimeoutError::Disconnected) => gone(),
    }
}
