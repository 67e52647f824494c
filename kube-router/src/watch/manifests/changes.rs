//! When to look: inotify's events, gathered until they are over.
//!
//! Two things are more than a debounce. A file that somebody is still writing (modified, not closed yet) is waited
//! for, because the first half of a file is often a valid file with half of the objects. And the directory behind
//! our path can be exchanged for another one, to which the kernel's watch does not move by itself.

use std::{
    collections::HashSet,
    fs,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use notify::{
    Event, EventKind, RecommendedWatcher, RecursiveMode, Watcher,
    event::{AccessKind, AccessMode, ModifyKind},
};
use tokio::{
    sync::mpsc,
    time::{Instant, timeout, timeout_at},
};
use tracing::debug;

/// Events that follow each other within this belong together.
const DEBOUNCE: Duration = Duration::from_millis(50);
/// A stream of events that does not end is cut after this.
const DEBOUNCE_MAX: Duration = Duration::from_millis(500);
/// Longest wait for somebody who keeps a file open.
const WRITER_MAX: Duration = Duration::from_secs(10);

pub(super) struct Changes {
    path: PathBuf,
    watcher: RecommendedWatcher,
    woken: mpsc::Receiver<()>,
    writing: Writing,
    /// The directory that is watched: its path, device and inode.
    watched: Option<(PathBuf, u64, u64)>,
}

/// Files that were modified and not closed since.
type Writing = Arc<Mutex<HashSet<PathBuf>>>;

impl Changes {
    pub(super) fn new(path: &Path) -> notify::Result<Self> {
        // One pending wake-up is enough: a look sees all changes before it.
        let (wake, woken) = mpsc::channel(1);
        let writing = Writing::default();
        let (known, single) = (writing.clone(), (!path.is_dir()).then(|| path.to_owned()));
        let watcher = notify::recommended_watcher(move |event: notify::Result<Event>| {
            if event.map_or(true, |event| note(&event, single.as_deref(), &known)) {
                // Full: a wake-up is pending already. Closed: the source has ended.
                let _ = wake.try_send(());
            }
        })?;
        Ok(Changes { path: path.to_owned(), watcher, woken, writing, watched: None })
    }

    /// Watches what `path` is now. True: it was something else, or nothing, before, so what happened since the last
    /// look may have gone unseen.
    ///
    /// # Errors
    /// `path` does not exist, or the kernel has no more watches (fs.inotify.max_user_watches).
    pub(super) fn arm(&mut self) -> notify::Result<bool> {
        // A single file is watched by its directory: a save by rename puts a new file in its place.
        let (directory, mode) = if self.path.is_dir() {
            (self.path.clone(), RecursiveMode::Recursive)
        } else {
            let parent = self.path.parent().filter(|parent| !parent.as_os_str().is_empty());
            (parent.unwrap_or(Path::new(".")).to_owned(), RecursiveMode::NonRecursive)
        };
        let now = fs::metadata(&directory).map(|metadata| (directory.clone(), metadata.dev(), metadata.ino()));
        if let (Ok(now), Some(watched)) = (&now, &self.watched)
            && now == watched
        {
            return Ok(false);
        }
        if let Some((old, ..)) = self.watched.take() {
            // It may have gone by itself together with its directory.
            let _ = self.watcher.unwatch(&old);
        }
        let now = now?;
        self.watcher.watch(&directory, mode)?;
        self.watched = Some(now);
        debug!(path = %directory.display(), "manifests are watched");
        Ok(true)
    }

    /// Returns after a change, when it seems to be over, or after `longest` without one.
    pub(super) async fn wait(&mut self, longest: Duration) {
        if timeout(longest, self.woken.recv()).await.is_err() {
            return;
        }
        let began = Instant::now();
        let quiet = |now: Instant| (now + DEBOUNCE).min(began + DEBOUNCE_MAX);
        while timeout_at(quiet(Instant::now()), self.woken.recv()).await.is_ok() && began.elapsed() < DEBOUNCE_MAX {}
        while self.is_written() && began.elapsed() < WRITER_MAX {
            // Woken by the close, or by more of the same.
            let _ = timeout(DEBOUNCE, self.woken.recv()).await;
        }
        self.writing.lock().unwrap_or_else(PoisonError::into_inner).clear();
    }

    fn is_written(&self) -> bool {
        !self.writing.lock().unwrap_or_else(PoisonError::into_inner).is_empty()
    }
}

/// Keeps account of writers; false: the event is none of our business. `single` is the file that is read, if it is
/// only one.
fn note(event: &Event, single: Option<&Path>, writing: &Writing) -> bool {
    if let Some(file) = single {
        // Besides the file itself, what a mounted ConfigMap exchanges.
        let ours = |path: &PathBuf| {
            path.file_name() == file.file_name()
                || path.file_name().is_some_and(|name| name.as_encoded_bytes().starts_with(b".."))
        };
        if !event.need_rescan() && !event.paths.iter().any(ours) {
            return false;
        }
    }
    let mut writing = writing.lock().unwrap_or_else(PoisonError::into_inner);
    match event.kind {
        EventKind::Modify(ModifyKind::Data(_)) => writing.extend(event.paths.iter().cloned()),
        EventKind::Access(AccessKind::Close(AccessMode::Write))
        | EventKind::Remove(_)
        | EventKind::Modify(ModifyKind::Name(_)) => event.paths.iter().for_each(|path| {
            writing.remove(path);
        }),
        // Our own reading.
        EventKind::Access(_) => return false,
        _ => {}
    }
    true
}
