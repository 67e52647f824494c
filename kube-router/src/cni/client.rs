//! The plugin's side: connect, ask, hear one line; all of it within a time.
//!
//! No runtime and no thread: the plugin lives for milliseconds. Each step gets what is left of the time, so an agent that
//! answers one byte a second is as silent as one that answers nothing.

use std::{
    io::{self, ErrorKind, Read, Write},
    os::unix::net::UnixStream,
    path::Path,
    time::{Duration, Instant},
};

use socket2::{Domain, SockAddr, Socket, Type};

use super::protocol::{self, MAX_LINE, Request, Response};

/// Why there is no answer. What the caller does is the same for all; the words are for people.
#[derive(Debug, thiserror::Error)]
pub enum Unanswered {
    #[error("no socket is there")]
    Absent,
    #[error("nobody listens on the socket")]
    Refused,
    #[error("no answer within {} ms", .0.as_millis())]
    Silent(Duration),
    #[error("the answer is not understood: {0}")]
    Garbled(String),
    #[error("the request is longer than {MAX_LINE} bytes")]
    TooLong,
    #[error("{0}")]
    Io(#[source] io::Error),
}

/// Asks and waits, at most `patience` in all. `patience_ms` of the request should say the same.
pub fn ask(socket: &Path, request: &Request, patience: Duration) -> Result<Response, Unanswered> {
    let line = protocol::line(request).ok_or(Unanswered::TooLong)?;
    let deadline = Instant::now() + patience;
    let mut stream = connect(socket, patience).map_err(|error| said(error, patience))?;
    stream.write_all(&line).map_err(|error| said(error, patience))?;
    let answer = read_line(&mut stream, deadline).map_err(|error| said(error, patience))?;
    serde_json::from_slice(&answer).map_err(|error| Unanswered::Garbled(error.to_string()))
}

fn said(error: io::Error, patience: Duration) -> Unanswered {
    match error.kind() {
        ErrorKind::NotFound | ErrorKind::NotADirectory => Unanswered::Absent,
        ErrorKind::ConnectionRefused => Unanswered::Refused,
        ErrorKind::WouldBlock | ErrorKind::TimedOut => Unanswered::Silent(patience),
        ErrorKind::InvalidData => Unanswered::Garbled(error.to_string()),
        ErrorKind::UnexpectedEof | ErrorKind::ConnectionReset | ErrorKind::BrokenPipe => {
            Unanswered::Garbled("the connection ended before the answer".into())
        }
        _ => Unanswered::Io(error),
    }
}

/// The time for writing is also the kernel's for a listener whose queue is full (net/unix/af_unix.c).
fn connect(path: &Path, patience: Duration) -> io::Result<UnixStream> {
    let socket = Socket::new(Domain::UNIX, Type::STREAM, None)?;
    socket.set_write_timeout(Some(patience))?;
    socket.connect(&SockAddr::unix(path)?)?;
    Ok(std::os::fd::OwnedFd::from(socket).into())
}

/// One line without its newline, of at most [`MAX_LINE`] bytes. `TimedOut` or `WouldBlock` at the deadline, `InvalidData`
/// for a longer one, `UnexpectedEof` if there is none.
pub(super) fn read_line(stream: &mut UnixStream, deadline: Instant) -> io::Result<Vec<u8>> {
    let mut line = Vec::new();
    let mut part = [0; 4096];
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(ErrorKind::TimedOut.into());
        }
        stream.set_read_timeout(Some(left))?;
        let count = match stream.read(&mut part) {
            Ok(0) => return Err(ErrorKind::UnexpectedEof.into()),
            Ok(count) => count,
            Err(error) if error.kind() == ErrorKind::Interrupted => continue,
            Err(error) => return Err(error),
        };
        let end = part[..count].iter().position(|byte| *byte == b'\n');
        line.extend_from_slice(&part[..end.unwrap_or(count)]);
        if line.len() >= MAX_LINE {
            return Err(io::Error::new(ErrorKind::InvalidData, "the line is too long"));
        }
        if end.is_some() {
            return Ok(line);
        }
    }
}
