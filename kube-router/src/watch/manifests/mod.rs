//! A file or directory of manifests as a source, watched for changes.
//!
//! Any change in the directory leads to a new look at all of it: names and contents, of which only files with new
//! contents are parsed. The difference to what was said before is what is emitted. That makes editors' renames,
//! `kubectl`'s symlink swaps, overflows of the kernel's event queue and missed events one case.
//!
//! What is new is said at once. What a look no longer finds is looked for once more a little later before it is said to be
//! gone: somebody may be moving it from one file to another.
//!
//! Nothing is lost by a typo: a file that cannot be read or parsed keeps what it said before until it is mended or
//! removed, and a vanished directory keeps everything. `files.rs` finds files, `document.rs` reads one, `view.rs`
//! merges them and finds the differences.

mod changes;
mod document;
mod files;
mod view;

#[cfg(test)]
mod tests;

use std::{io, path::Path, time::Duration};

use tokio::sync::mpsc;
use tracing::{debug, warn};

use super::{SinkClosed, WatchError, send};
use crate::objects::{Kind, ObjectEvent};
use changes::Changes;
use view::{Look, View};

/// A look without any event: for changes that inotify does not see (a symlink's target elsewhere, a network file
/// system). Unchanged files cost one read.
const PERIOD: Duration = Duration::from_secs(30);
/// The same while there is nothing to watch.
const MISSING_PERIOD: Duration = Duration::from_secs(1);

/// Delivers the manifests in `path` until the receiver is dropped.
///
/// # Errors
/// `path` does not exist or cannot be read or watched, at the start. Later that is an `Unavailable` of every kind.
pub async fn run(path: &Path, sink: mpsc::Sender<ObjectEvent>) -> Result<(), WatchError> {
    let wrong = |reason: String| WatchError::Manifests { path: path.to_owned(), reason };
    let mut changes = Changes::new(path).map_err(|error| wrong(error.to_string()))?;
    // Watching begins before the first look, so that no change falls between the two.
    changes.arm().map_err(|error| wrong(error.to_string()))?;
    let mut view = View::new(path.to_owned());
    let (mut first, mut hasty) = (true, false);
    loop {
        let (returned, look) = look(view, hasty).await.map_err(|error| wrong(error.to_string()))?;
        view = returned;
        let mut period = PERIOD;
        let said = match look {
            Look::Missing(reason) if first => return Err(wrong(reason)),
            Look::Missing(reason) => {
                period = MISSING_PERIOD;
                unavailable(&sink, path, &reason).await
            }
            Look::StillMissing => {
                period = MISSING_PERIOD;
                Ok(())
            }
            Look::Fewer => {
                changes.settle().await;
                hasty = false;
                continue;
            }
            Look::Events(events) => emit(&sink, events).await,
        };
        if said.is_err() {
            return Ok(());
        }
        (first, hasty) = (false, false);
        match changes.arm() {
            Ok(false) => {}
            // Another directory took the place of the watched one: see what is in it.
            Ok(true) => continue,
            Err(error) => {
                debug!(path = %path.display(), %error, "manifests cannot be watched, looking again soon");
                period = MISSING_PERIOD;
            }
        }
        tokio::select! {
            () = sink.closed() => return Ok(()),
            whole = changes.wait(period) => hasty = whole,
        }
    }
}

/// Reading and parsing block, so they have a thread of their own.
async fn look(mut view: View, hasty: bool) -> Result<(View, Look), io::Error> {
    tokio::task::spawn_blocking(move || {
        let look = view.look(hasty);
        (view, look)
    })
    .await
    .map_err(io::Error::other)
}

async fn emit(sink: &mpsc::Sender<ObjectEvent>, events: Vec<ObjectEvent>) -> Result<(), SinkClosed> {
    for event in events {
        send(sink, event).await?;
    }
    Ok(())
}

async fn unavailable(sink: &mpsc::Sender<ObjectEvent>, path: &Path, reason: &str) -> Result<(), SinkClosed> {
    warn!(path = %path.display(), error = reason, "manifests are gone; their objects stay until they are back");
    for kind in Kind::ALL {
        let reason = format!("{}: {reason}; the objects stay until it is back", path.display());
        send(sink, ObjectEvent::Unavailable { kind, reason }).await?;
    }
    Ok(())
}
