//! Recordings: what a source said, one JSON line per event, and their replay.
//!
//! A line is `{"at_ms":..., "event":...}`; `at_ms` counts from the start of the recording. [`Recorder`] must never
//! hold up the agent: a thread of its own writes, and a disk that is full or too slow ends the recording with one
//! error in the log. It ends it, rather than leaving lines out, because a recording with holes would lie.

use std::{
    fs::{File, OpenOptions, Permissions},
    io::{self, BufRead, BufReader, BufWriter, Write},
    os::unix::fs::{OpenOptionsExt, PermissionsExt},
    path::{Path, PathBuf},
    sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, TrySendError, sync_channel},
    thread::JoinHandle,
    time::{Duration, Instant},
};

use serde::{Deserialize, Serialize};
use tracing::{error, info};

use crate::objects::ObjectEvent;

/// Lines that wait for the disk: a second's worth of the fastest list we have seen (10,000 objects), about 10 MB.
const QUEUE: usize = 10_000;
/// The file is brought up to date when nothing has come for this long.
const IDLE: Duration = Duration::from_millis(200);
const FILE_MODE: u32 = 0o600;

#[derive(Serialize)]
struct LineRef<'a> {
    at_ms: u64,
    event: &'a ObjectEvent,
}

#[derive(Deserialize)]
struct Line {
    at_ms: u64,
    event: ObjectEvent,
}

/// Why a recording cannot be made or read.
#[derive(Debug, thiserror::Error)]
pub enum RecordError {
    /// Tells its cause itself, so the cause is no `source`.
    #[error("recording {path}: {error}")]
    File { path: PathBuf, error: io::Error },
    #[error("recording {path}, line {line}: {reason}")]
    Line { path: PathBuf, line: u64, reason: String },
}

/// Writes events to a file. Dropping it completes the file.
pub struct Recorder {
    path: PathBuf,
    began: Instant,
    /// `None` once recording has stopped.
    lines: Option<SyncSender<String>>,
    writer: Option<JoinHandle<()>>,
}

impl Recorder {
    /// Starts a recording; an older file of that name is overwritten.
    ///
    /// # Errors
    /// The file cannot be created.
    pub fn create(path: &Path) -> Result<Self, RecordError> {
        let wrong = |error| RecordError::File { path: path.to_owned(), error };
        let file = create_private(path).map_err(wrong)?;
        let (lines, queue) = sync_channel(QUEUE);
        let name = path.to_owned();
        let writer = std::thread::Builder::new()
            .name("recorder".into())
            .spawn(move || {
                if let Err(error) = write_all(file, &queue) {
                    error!(path = %name.display(), %error, "recording stopped, its end is missing");
                }
            })
            .map_err(wrong)?;
        info!(path = %path.display(), "recording events");
        Ok(Recorder { path: path.to_owned(), began: Instant::now(), lines: Some(lines), writer: Some(writer) })
    }

    /// Records one event, now. Never blocks and never fails: trouble ends the recording, not the agent.
    pub fn record(&mut self, event: &ObjectEvent) {
        let Some(lines) = &self.lines else { return };
        let at_ms = u64::try_from(self.began.elapsed().as_millis()).unwrap_or(u64::MAX);
        let line = match to_line(at_ms, event) {
            Ok(line) => line,
            Err(error) => {
                error!(path = %self.path.display(), %error, "recording stopped: an event cannot be written as JSON");
                self.lines = None;
                return;
            }
        };
        match lines.try_send(line) {
            Ok(()) => {}
            Err(TrySendError::Full(_)) => {
                error!(path = %self.path.display(), waiting = QUEUE, "recording stopped: the disk is too slow");
                self.lines = None;
            }
            // The writer has ended and said why.
            Err(TrySendError::Disconnected(_)) => self.lines = None,
        }
    }

    /// False once the recording has stopped.
    pub fn is_recording(&self) -> bool {
        self.lines.is_some()
    }
}

impl Drop for Recorder {
    fn drop(&mut self) {
        self.lines = None;
        if let Some(writer) = self.writer.take() {
            // A panic in the writer was reported by the panic hook.
            let _ = writer.join();
        }
    }
}

/// A recording tells the whole cluster, so only its owner may read it; also where an older file had another mode.
fn create_private(path: &Path) -> io::Result<File> {
    let file = OpenOptions::new().write(true).create(true).truncate(true).mode(FILE_MODE).open(path)?;
    if file.metadata()?.is_file() {
        file.set_permissions(Permissions::from_mode(FILE_MODE))?;
    }
    Ok(file)
}

fn to_line(at_ms: u64, event: &ObjectEvent) -> serde_json::Result<String> {
    let mut line = serde_json::to_string(&LineRef { at_ms, event })?;
    line.push('\n');
    Ok(line)
}

fn write_all(file: File, queue: &Receiver<String>) -> io::Result<()> {
    let mut file = BufWriter::new(file);
    loop {
        match queue.recv_timeout(IDLE) {
            Ok(line) => file.write_all(line.as_bytes())?,
            Err(RecvTimeoutError::Timeout) => file.flush()?,
            Err(RecvTimeoutError::Disconnected) => return file.flush(),
        }
    }
}

/// Reads a recording: for each line the time in milliseconds since its start, and the event. A line that cannot be
/// read is an error of its own and does not end the reading; empty lines are skipped.
///
/// # Errors
/// The file cannot be opened.
pub fn replay(
    path: &Path,
) -> Result<impl Iterator<Item = Result<(u64, ObjectEvent), RecordError>> + use<>, RecordError> {
    let path = path.to_owned();
    let file = File::open(&path).map_err(|error| RecordError::File { path: path.clone(), error })?;
    let mut number = 0;
    let mut lines = BufReader::new(file).lines();
    Ok(std::iter::from_fn(move || {
        loop {
            number += 1;
            let wrong = |reason| RecordError::Line { path: path.clone(), line: number, reason };
            let text = match lines.next()? {
                Ok(text) => text,
                Err(error) if error.kind() == io::ErrorKind::InvalidData => return Some(Err(wrong(error.to_string()))),
                Err(error) => return Some(Err(RecordError::File { path: path.clone(), error })),
            };
            if text.trim().is_empty() {
                continue;
            }
            let line = serde_json::from_str(&text).map_err(|error| wrong(error.to_string()));
            return Some(line.map(|Line { at_ms, event }| (at_ms, event)));
        }
    }))
}

#[cfg(test)]
mod tests;
