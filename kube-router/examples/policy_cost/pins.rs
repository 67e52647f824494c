//! A directory of the BPF file system. Dropping it takes programs and tables away.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
    sync::atomic::{AtomicU32, Ordering},
};

use anyhow::{Context, Result};

const BPFFS: &str = "/sys/fs/bpf";

pub struct Pins(PathBuf);

impl Pins {
    /// Mounts the file system where nobody has.
    pub fn new() -> Result<Pins> {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        if !fs::read_to_string("/proc/mounts")?.contains(" /sys/fs/bpf bpf ") {
            let mounted = Command::new("mount").args(["-t", "bpf", "bpf", BPFFS]).status();
            mounted.context("mounting a BPF file system (needs root)")?;
        }
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let path = Path::new(BPFFS).join(format!("kr-bench-{}-{number}", std::process::id()));
        fs::create_dir_all(&path).with_context(|| path.display().to_string())?;
        Ok(Pins(path))
    }

    pub fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for Pins {
    fn drop(&mut self) {
        remove(&self.0);
    }
}

fn remove(directory: &Path) {
    for entry in fs::read_dir(directory).into_iter().flatten().flatten() {
        let path = entry.path();
        if path.is_dir() { remove(&path) } else { drop(fs::remove_file(&path)) }
    }
    let _ = fs::remove_dir(directory);
}
