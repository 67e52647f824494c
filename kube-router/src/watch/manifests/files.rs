//! Which files count: `*.yaml`, `*.yml` and `*.json` in the directory and below, in path order.
//!
//! Hidden names are skipped: editors keep their locks and copies there, and the `..data` directories behind the
//! symlinks of a mounted ConfigMap would show every file twice.

use std::{
    collections::{BTreeSet, HashSet},
    fs, io,
    path::{Path, PathBuf},
};

/// Directories deeper than this are not read. Far above any sane layout; it bounds the work.
const DEPTH_MAX: usize = 16;

/// The files of `root`, which may be a single file (of any name).
///
/// # Errors
/// `root` itself cannot be read.
pub(super) fn find(root: &Path) -> io::Result<Found> {
    let mut found = Found::default();
    if fs::metadata(root)?.is_dir() {
        found.directory(root, 0)?;
    } else {
        found.files.insert(root.to_owned());
    }
    Ok(found)
}

#[derive(Default)]
pub(super) struct Found {
    pub(super) files: BTreeSet<PathBuf>,
    /// Directories and files below the root that cannot be read.
    pub(super) unreadable: Vec<(PathBuf, io::Error)>,
    /// Real paths, against loops of symlinks.
    visited: HashSet<PathBuf>,
}

impl Found {
    fn directory(&mut self, directory: &Path, depth: usize) -> io::Result<()> {
        if depth > DEPTH_MAX || !self.visited.insert(fs::canonicalize(directory)?) {
            return Ok(());
        }
        let mut paths = Vec::new();
        for entry in fs::read_dir(directory)? {
            let entry = entry?;
            if !entry.file_name().as_encoded_bytes().starts_with(b".") {
                paths.push(entry.path());
            }
        }
        // Which of two links to one directory counts must not depend on the file system.
        paths.sort();
        for path in paths {
            // Follows symlinks; one that leads nowhere is like a missing file.
            match fs::metadata(&path) {
                Ok(metadata) if metadata.is_dir() => {
                    if let Err(error) = self.directory(&path, depth + 1) {
                        self.unreadable.push((path, error));
                    }
                }
                Ok(metadata) if metadata.is_file() && is_manifest(&path) => {
                    self.files.insert(path);
                }
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => self.unreadable.push((path, error)),
            }
        }
        Ok(())
    }
}

fn is_manifest(path: &Path) -> bool {
    path.extension().is_some_and(|extension| extension == "yaml" || extension == "yml" || extension == "json")
}
