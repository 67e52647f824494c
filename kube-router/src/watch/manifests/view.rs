//! All files together: who says what about an object, and what changed since the last look.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    hash::{DefaultHasher, Hash, Hasher},
    io,
    path::{Path, PathBuf},
    sync::Arc,
};

use super::{
    document::{self, Contents},
    files::{self, Found},
};
use crate::objects::{Kind, Object, ObjectEvent, ObjectKey};

type Id = (Kind, ObjectKey);

/// The result of one look.
pub(super) enum Look {
    /// What changed, in the order in which it is to be said.
    Events(Vec<ObjectEvent>),
    /// The path itself cannot be read; says why. Nothing is forgotten.
    Missing(String),
    /// As before.
    StillMissing,
    /// A hasty look does not find everything that was said. Nothing is forgotten.
    Fewer,
}

/// What is known of the manifests. `look` brings it up to date.
pub(super) struct View {
    root: PathBuf,
    files: BTreeMap<PathBuf, File>,
    /// What the receiver knows.
    said: BTreeMap<Id, Arc<Object>>,
    /// Objects that are there and cannot be understood, as far as they have names.
    obscure: BTreeSet<Id>,
    rejected: BTreeMap<String, String>,
    /// The receiver has the whole picture: only differences from here on.
    complete: bool,
    missing: bool,
}

#[derive(Default)]
struct File {
    /// Of the contents, so that unchanged files are not parsed again.
    hash: Option<u64>,
    /// With the line of their documents, the first of equal names.
    objects: BTreeMap<Id, (u64, Arc<Object>)>,
    /// Objects that cannot be understood.
    obscure: BTreeSet<Id>,
    /// Source -> reason.
    rejected: BTreeMap<String, String>,
}

impl View {
    pub(super) fn new(root: PathBuf) -> Self {
        View {
            root,
            files: BTreeMap::new(),
            said: BTreeMap::new(),
            obscure: BTreeSet::new(),
            rejected: BTreeMap::new(),
            complete: false,
            missing: false,
        }
    }

    /// Reads what is there now and returns what is new. A hasty look takes nothing back.
    pub(super) fn look(&mut self, hasty: bool) -> Look {
        let Found { files: paths, unreadable, .. } = match files::find(&self.root) {
            Ok(found) => found,
            Err(_) if self.missing => return Look::StillMissing,
            Err(error) => {
                self.missing = true;
                self.complete = false;
                return Look::Missing(error.to_string());
            }
        };
        self.missing = false;
        // A directory that cannot be read now has not lost its files.
        let hidden = |path: &Path| unreadable.iter().any(|(directory, _)| path.starts_with(directory));
        self.files.retain(|path, _| paths.contains(path) || hidden(path));
        for path in paths {
            self.file(path);
        }
        let mut rejected: BTreeMap<String, String> = unreadable
            .iter()
            .map(|(path, error)| (path.display().to_string(), format!("cannot be read: {error}")))
            .collect();
        let objects = self.merge(&mut rejected);
        if hasty && self.complete && self.said.keys().any(|id| !objects.contains_key(id)) {
            return Look::Fewer;
        }
        let mut obscure: BTreeSet<Id> = self.files.values().flat_map(|file| &file.obscure).cloned().collect();
        obscure.retain(|id| !objects.contains_key(id));
        if !unreadable.is_empty() {
            obscure.extend(anything());
        }
        Look::Events(self.difference(objects, obscure, rejected))
    }

    fn file(&mut self, path: PathBuf) {
        let text = fs::read(&path).and_then(|bytes| {
            String::from_utf8(bytes).map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error.utf8_error()))
        });
        match text {
            Ok(text) => {
                let mut hasher = DefaultHasher::new();
                text.hash(&mut hasher);
                let hash = Some(hasher.finish());
                let file = self.files.entry(path.clone()).or_default();
                if file.hash != hash {
                    file.hash = hash;
                    file.update(&path, document::read(&path, &text));
                }
            }
            // Removed between the listing and now.
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                self.files.remove(&path);
            }
            Err(error) => {
                let file = self.files.entry(path.clone()).or_default();
                file.hash = None;
                file.obscure.extend(anything());
                file.rejected = [(path.display().to_string(), format!("cannot be read: {error}"))].into();
            }
        }
    }

    /// The first file in path order that names an object has it.
    fn merge(&self, rejected: &mut BTreeMap<String, String>) -> BTreeMap<Id, Arc<Object>> {
        let mut owners: BTreeMap<&Id, (&Path, u64, &Arc<Object>)> = BTreeMap::new();
        for (path, file) in &self.files {
            rejected.extend(file.rejected.iter().map(|(source, reason)| (source.clone(), reason.clone())));
            for (id, (line, object)) in &file.objects {
                match owners.get(id) {
                    None => {
                        owners.insert(id, (path, *line, object));
                    }
                    Some((first, first_line, _)) => {
                        let place = format!("{}:{first_line}", first.display());
                        add(rejected, source(path, line), duplicate(id, &place));
                    }
                }
            }
        }
        owners.into_iter().map(|(id, (_, _, object))| (id.clone(), object.clone())).collect()
    }

    fn difference(
        &mut self,
        objects: BTreeMap<Id, Arc<Object>>,
        obscure: BTreeSet<Id>,
        rejected: BTreeMap<String, String>,
    ) -> Vec<ObjectEvent> {
        let mut events = Vec::new();
        for (source, reason) in &rejected {
            if self.rejected.get(source) != Some(reason) {
                events.push(ObjectEvent::Rejected { source: source.clone(), reason: reason.clone() });
            }
        }
        if self.complete {
            let new = objects.iter().filter(|(id, object)| {
                // The same allocation is an unchanged file.
                self.said.get(id).is_none_or(|known| !Arc::ptr_eq(known, object) && known != *object)
            });
            events.extend(new.map(|(_, object)| ObjectEvent::Applied(Object::clone(object))));
            let gone: BTreeSet<&Id> = self.said.keys().filter(|id| !objects.contains_key(id)).collect();
            events.extend(gone.into_iter().map(|(kind, key)| ObjectEvent::Deleted(*kind, key.clone())));
            // Only a list can say that there is something which cannot be understood, or no longer.
            let changed: BTreeSet<Kind> = self.obscure.symmetric_difference(&obscure).map(|(kind, _)| *kind).collect();
            for kind in changed {
                events.push(ObjectEvent::RelistStarted(kind));
                events.extend(kept(kind, objects.keys().chain(&obscure)));
                events.push(ObjectEvent::RelistDone(kind));
            }
        } else {
            for kind in Kind::ALL {
                events.push(ObjectEvent::RelistStarted(kind));
                let of_kind = objects.iter().filter(|((other, _), _)| *other == kind);
                events.extend(of_kind.map(|(_, object)| ObjectEvent::Applied(Object::clone(object))));
                events.extend(kept(kind, obscure.iter()));
                events.push(ObjectEvent::RelistDone(kind));
            }
            self.complete = true;
        }
        let mended = self.rejected.keys().filter(|source| !rejected.contains_key(*source));
        events.extend(mended.map(|source| ObjectEvent::Accepted { source: source.clone() }));
        self.said = objects;
        self.obscure = obscure;
        self.rejected = rejected;
        events
    }
}

impl File {
    fn update(&mut self, path: &Path, contents: Contents) {
        let before = std::mem::take(&mut self.objects);
        self.rejected.clear();
        self.obscure = contents.rejections.iter().filter_map(|rejected| rejected.object.clone()).collect();
        if contents.has_gaps {
            self.obscure.extend(anything());
        }
        let named: BTreeSet<&Id> = contents.rejections.iter().filter_map(|rejected| rejected.object.as_ref()).collect();
        // What an unreadable document may have held stays, and what a named but odd one was before.
        let keeps = |id: &Id| contents.has_gaps || named.contains(id);
        let kept: BTreeMap<Id, (u64, Arc<Object>)> = before.into_iter().filter(|(id, _)| keeps(id)).collect();
        for rejected in &contents.rejections {
            add(&mut self.rejected, source(path, &rejected.place), rejected.reason.clone());
        }
        for (line, object) in contents.objects {
            let id = (object.kind(), object.key().clone());
            if let Some((first, _)) = self.objects.get(&id) {
                let reason = duplicate(&id, &source(path, first));
                add(&mut self.rejected, source(path, line), reason);
                continue;
            }
            self.objects.insert(id, (line, Arc::new(object)));
        }
        for (id, object) in kept {
            self.objects.entry(id).or_insert(object);
        }
    }
}

/// What nobody can name may be of any kind.
fn anything() -> impl Iterator<Item = Id> {
    Kind::ALL.into_iter().map(|kind| (kind, ObjectKey::unnamed()))
}

fn kept<'a>(kind: Kind, ids: impl Iterator<Item = &'a Id>) -> impl Iterator<Item = ObjectEvent> {
    let of_kind = ids.filter(move |(other, _)| *other == kind);
    of_kind.map(|(kind, key)| ObjectEvent::Kept(*kind, key.clone()))
}

fn source(path: &Path, place: impl std::fmt::Display) -> String {
    format!("{}:{place}", path.display())
}

fn duplicate((kind, key): &Id, first: &str) -> String {
    format!("{kind} {key} is defined in {first} already, which counts")
}

/// Several reasons at one place make one text.
fn add(rejected: &mut BTreeMap<String, String>, source: String, reason: String) {
    rejected
        .entry(source)
        .and_modify(|text| {
            text.push_str("; ");
            text.push_str(&reason);
        })
        .or_insert(reason);
}
