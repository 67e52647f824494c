//! A BPF file system to pin things in.
//!
//! systemd mounts one at `/sys/fs/bpf` on nearly every host; a container sees it only if it is handed in.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use nix::{
    mount::{MsFlags, mount},
    sys::statfs::{BPF_FS_MAGIC, statfs},
};

use crate::compile::{Problem, Subject};

/// Where it belongs.
const USUAL: &str = "/sys/fs/bpf";

/// The first PID namespace's link (`PROC_PID_INIT_INO`, include/linux/proc_ns.h).
const FIRST_PID_NAMESPACE: &str = "pid:[4026531836]";

#[derive(Debug, thiserror::Error)]
pub enum BpffsError {
    #[error("{} is in no BPF file system: mount one (mount -t bpf bpf {USUAL}), or hand in the host's {USUAL}", .0.display())]
    Elsewhere(PathBuf),
    #[error("mounting a BPF file system at {USUAL}: {0}; hand in the host's")]
    Mount(io::Error),
    #[error("{}: {source}", path.display())]
    Path { path: PathBuf, source: io::Error },
}

/// Mounts one at the usual place if `directory` is to be there and none is mounted; makes the directory. It is a problem if
/// this container alone sees the file system, which then ends with it.
pub fn ensure(directory: &Path) -> Result<Option<Problem>, BpffsError> {
    let mut is_own = false;
    if !is_bpffs(directory) {
        if !directory.starts_with(USUAL) {
            return Err(BpffsError::Elsewhere(directory.to_owned()));
        }
        mount(Some("bpf"), USUAL, Some("bpf"), MsFlags::empty(), None::<&str>)
            .map_err(|errno| BpffsError::Mount(errno.into()))?;
        tracing::info!(at = USUAL, "BPF file system mounted");
        is_own = !mounts_are_the_hosts();
    }
    fs::create_dir_all(directory).map_err(|source| BpffsError::Path { path: directory.to_owned(), source })?;
    Ok(is_own.then(|| Problem {
        subject: Subject::Kernel("BPF programs"),
        reason: "ProgramsNotKept",
        text: "/sys/fs/bpf is the container's own: between its end and the next start no policy is enforced (before \
               kernel 6.6: pods that it isolates have no network), and the services' fast path stays off; mount the \
               host's /sys/fs/bpf as a hostPath volume"
            .into(),
    }))
}

/// Has the host's first process the same mounts as this one? In another PID namespace number 1 is another process.
fn mounts_are_the_hosts() -> bool {
    let namespace = |path: &str| fs::read_link(path).ok();
    namespace("/proc/self/ns/pid").is_some_and(|link| link == Path::new(FIRST_PID_NAMESPACE))
        && namespace("/proc/self/ns/mnt").is_some_and(|own| namespace("/proc/1/ns/mnt") == Some(own))
}

/// Judged by the nearest directory that is there.
pub fn is_bpffs(directory: &Path) -> bool {
    let there = directory.ancestors().find(|path| path.exists());
    there.and_then(|path| statfs(path).ok()).is_some_and(|fs| fs.filesystem_type() == BPF_FS_MAGIC)
}
