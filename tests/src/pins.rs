//! A directory of the BPF file system for one agent. Dropping it takes programs and tables away.

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
    process::Command,
    sync::atomic::{AtomicU32, Ordering},
};

use anyhow::{Context, Result};
use kube_router::apply::bpf;
use kube_router_common::names;
use serde_json::Value;

const BPFFS: &str = "/sys/fs/bpf";

pub struct Pins(PathBuf);

impl Pins {
    pub fn new() -> Result<Pins> {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        if !Path::new("/proc/mounts").exists() || !fs::read_to_string("/proc/mounts")?.contains(" /sys/fs/bpf bpf ") {
            let mounted = Command::new("mount").args(["-t", "bpf", "bpf", BPFFS]).status();
            mounted.context("mounting a BPF file system (needs root)")?;
        }
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let path = PathBuf::from(format!("{BPFFS}/kr-test-{}-{number}", std::process::id()));
        fs::create_dir_all(&path).with_context(|| format!("making {}", path.display()))?;
        Ok(Pins(path))
    }

    pub fn path(&self) -> &Path {
        &self.0
    }

    /// `--bpf-directory=<directory>`
    pub fn flag(&self) -> String {
        format!("--bpf-directory={}", self.0.display())
    }

    /// Makes what an agent left that of another schema: the next one must take over from an older one what it understands,
    /// and must neither use nor overlook what a later one left.
    ///
    /// An agent knows its schema's number in one place, the name of this directory; programs hold their tables themselves,
    /// whatever these are called. So this is what an agent of another number would have left, but for one thing: the
    /// tables have our layout, and whoever read them would not stumble. [`Pins::tables`] shows whether somebody did.
    pub fn become_of(&self, schema: u32) -> Result<()> {
        let other = self.of_schema(schema);
        fs::rename(bpf::root(&self.0), &other).with_context(|| format!("making {}", other.display()))
    }

    /// The kernel's numbers of the tables that are pinned there, by `bpftool`.
    pub fn tables(directory: &Path) -> Result<BTreeSet<u64>> {
        let mut numbers = BTreeSet::new();
        for map in names::MAPS {
            let pin = directory.join(map);
            if !pin.exists() {
                continue;
            }
            let show = Command::new("bpftool").args(["-j", "map", "show", "pinned"]).arg(&pin).output();
            let shown: Value = serde_json::from_slice(&show.context("bpftool")?.stdout)
                .with_context(|| format!("bpftool about {}", pin.display()))?;
            numbers.insert(shown["id"].as_u64().with_context(|| format!("{}: {shown}", pin.display()))?);
        }
        Ok(numbers)
    }

    /// Where this schema's are.
    pub fn of_schema(&self, schema: u32) -> PathBuf {
        self.0.join(format!("v{schema}"))
    }

    /// The pin of a map or program of the schema in use.
    pub fn of(&self, name: &str) -> PathBuf {
        let schema = fs::read_dir(&self.0).ok().and_then(|mut entries| entries.next()?.ok());
        schema.map_or_else(|| self.0.clone(), |schema| schema.path()).join(name)
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
