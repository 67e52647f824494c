//! A BPF file system to pin things in.
//!
//! systemd mounts one at `/sys/fs/bpf` on nearly every host; a container sees it only if it is handed in.

use std::{
    io,
    path::{Path, PathBuf},
};

use nix::{
    mount::{MsFlags, mount},
    sys::statfs::{BPF_FS_MAGIC, statfs},
};

/// Where it belongs.
const USUAL: &str = "/sys/fs/bpf";

#[derive(Debug, thiserror::Error)]
pub enum BpffsError {
    #[error("{} is in no BPF file system: mount one (mount -t bpf bpf {USUAL}), or hand in the host's {USUAL}", .0.display())]
    Elsewhere(PathBuf),
    #[error("mounting a BPF file system at {USUAL}: {0}; hand in the host's")]
    Mount(io::Error),
    #[error("{}: {source}", path.display())]
    Path { path: PathBuf, source: io::Error },
}

/// Mounts one at the usual place if `directory` is to be there and none is mounted; makes the directory.
pub fn ensure(directory: &Path) -> Result<(), BpffsError> {
    if !is_bpffs(directory) {
        if !directory.starts_with(USUAL) {
            return Err(BpffsError::Elsewhere(directory.to_owned()));
        }
        mount(Some("bpf"), USUAL, Some("bpf"), MsFlags::empty(), None::<&str>)
            .map_err(|errno| BpffsError::Mount(errno.into()))?;
        tracing::info!(at = USUAL, "BPF file system mounted");
    }
    std::fs::create_dir_all(directory).map_err(|source| BpffsError::Path { path: directory.to_owned(), source })
}

/// Judged by the nearest directory that is there.
pub fn is_bpffs(directory: &Path) -> bool {
    let there = directory.ancestors().find(|path| path.exists());
    there.and_then(|path| statfs(path).ok()).is_some_and(|fs| fs.filesystem_type() == BPF_FS_MAGIC)
}
