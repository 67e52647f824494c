//! When to look: inotify's events, gathered until they are over.
//!
//! A file that was renamed into its place, or closed after writing, is whole: the look follows at once. A file that was
//! made or went may be half of a change (an editor moves the old one away, then writes the new one), so that is waited
//! for until nothing more follows.
//!
//! Two things are more than a debounce. A file that somebody is still writing (modified, not closed yet) is waited
//! for, because the first half of a file is often a valid file with half of the objects. And the directory behind
//! our path can be exchanged for another one, to which the kernel's watch does not move by itself.

use std::{
    collections::HashSet,
    fs,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use notify::{
    Event, EventKind, RecommendedWatcher, RecursiveMode, Watcher,
    event::{AccessKind, AccessMode, ModifyKind, RenameMode},
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
    news: News,
    /// The directory that is watched: its path, device and inode.
    watched: Option<(PathBuf, u64, u64)>,
}

/// What happened since the last look.
#[derive(Default)]
struct Happened {
    /// Files that were modified and not closed since.
    writing: HashSet<PathBuf>,
    /// Something that may be a part of a change.
    is_loose: bool,
}

type News = Arc<Mutex<Happened>>;

impl Changes {
    pub(super) fn new(path: &Path) -> notify::Result<Self> {
        // One pending wake-up is enough: a look sees all changes before it.
        let (wake, woken) = mpsc::channel(1);
        let news = News::default();
        let (known, single) = (news.clone(), (!path.is_dir()).then(|| path.to_owned()));
        let watcher = notify::recommended_watcher(move |event: notify::Result<Event>| {
            if event.map_or(true, |event| note(&event, single.as_deref(), &known)) {
                // Full: a wake-up is pending already. Closed: the source has ended.
                let _ = wake.try_send(());
            }
        })?;
        Ok(Changes { path: path.to_owned(), watcher, woken, news, watched: None })
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

    /// Returns after a change, when it seems to be over, or after `longest` without one. True: it was told by events that
    /// are whole in themselves, and nothing was waited for.
    pub(super) async fn wait(&mut self, longest: Duration) -> bool {
        if timeout(longest, self.woken.recv()).await.is_err() {
            return false;
        }
        let began = Instant::now();
        let hasty = !self.happened().is_loose;
        if !hasty {
            self.quiet(began).await;
        }
        while !self.happened().writing.is_empty() && began.elapsed() < WRITER_MAX {
            // Woken by the close, or by more of the same.
            let _ = timeout(DEBOUNCE, self.woken.recv()).await;
        }
        // Something loose may have come while a writer was waited for.
        std::mem::take(&mut *self.happened()).writing.is_empty() && hasty
    }

    /// Returns when nothing more follows.
    pub(super) async fn settle(&mut self) {
        self.quiet(Instant::now()).await;
    }

    async fn quiet(&mut self, began: Instant) {
        let quiet = |now: Instant| (now + DEBOUNCE).min(began + DEBOUNCE_MAX);
        while timeout_at(quiet(Instant::now()), self.woken.recv()).await.is_ok() && began.elapsed() < DEBOUNCE_MAX {}
    }

    fn happened(&self) -> MutexGuard<'_, Happened> {
        self.news.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Keeps account of what is not whole; false: the event is none of our business. `single` is the file that is read, if it
/// is only one.
fn note(event: &Event, single: Option<&Path>, news: &News) -> bool {
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
    let mut happened = news.lock().unwrap_or_else(PoisonError::into_inner);
    let closed = |happened: &mut Happened| happened.writing.retain(|path| !event.paths.contains(path));
    match event.kind {
        EventKind::Modify(ModifyKind::Data(_)) => happened.writing.extend(event.paths.iter().cloned()),
        EventKind::Access(AccessKind::Close(AccessMode::Write)) => closed(&mut happened),
        // `Both` repeats what the two halves of a rename said before.
        EventKind::Modify(ModifyKind::Name(RenameMode::To | RenameMode::Both)) => closed(&mut happened),
        // Our own reading.
        EventKind::Access(_) => return false,
        _ => {
            closed(&mut happened);
            happened.is_loose |= !event.paths.iter().all(|path| is_draft(path));
        }
    }
    true
}

/// A hidden file, which nobody reads where it is; but not what the links of a mounted ConfigMap lead through.
fn is_draft(path: &Path) -> bool {
    let name = path.file_name().map(|name| name.as_encoded_bytes()).unwrap_or_default();
    name.starts_with(b".") && !name.starts_with(b"..")
}

#[cfg(test)]
mod tests {
    use notify::event::{CreateKind, DataChange, RemoveKind};

    use super::*;

    fn happened(events: &[(EventKind, &str)]) -> (bool, usize) {
        let news = News::default();
        for (kind, path) in events {
            note(&Event::new(*kind).add_path(path.into()), None, &news);
        }
        let happened = news.lock().unwrap();
        (happened.is_loose, happened.writing.len())
    }

    #[test]
    fn a_rename_and_a_close_are_whole_in_themselves() {
        let create = EventKind::Create(CreateKind::File);
        let write = EventKind::Modify(ModifyKind::Data(DataChange::Any));
        let close = EventKind::Access(AccessKind::Close(AccessMode::Write));
        let name = |mode| EventKind::Modify(ModifyKind::Name(mode));
        let draft = [(create, "/m/.a.new"), (write, "/m/.a.new"), (close, "/m/.a.new")];
        let placed = [(name(RenameMode::From), "/m/.a.new"), (name(RenameMode::To), "/m/a.yaml")];
        assert_eq!(happened(&[&draft[..], &placed].concat()), (false, 0));
        assert_eq!(happened(&[(write, "/m/a.yaml")]), (false, 1), "somebody is writing");
        assert_eq!(happened(&[(write, "/m/a.yaml"), (close, "/m/a.yaml")]), (false, 0));
        assert_eq!(happened(&[(name(RenameMode::To), "/m/..data")]), (false, 0), "a mounted ConfigMap");
        // An editor that moves the old file away, or one that makes a new one.
        assert!(happened(&[(name(RenameMode::From), "/m/a.yaml"), (name(RenameMode::To), "/m/a.yaml~")]).0);
        for kind in [create, EventKind::Remove(RemoveKind::File)] {
            assert!(happened(&[(kind, "/m/a.yaml")]).0);
        }
    }
}
