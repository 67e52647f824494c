//! One named network namespace, and running things in it.
//!
//! Made and entered inside this process: a fork costs tens of milliseconds in an emulated machine, a thread costs
//! nothing. A namespace belongs to a thread, and both threads and children inherit that of the thread that starts them;
//! so [`Namespace::run`] enters it in a thread of its own, and whatever the closure starts is in there too.
//! The name is bound below /run/netns as `ip netns` does, so that `ip -n NAME` and
//! `nsenter --net=/run/netns/NAME` work for whoever looks on.

use std::{
    fs::{self, File},
    os::unix::fs::MetadataExt,
    path::PathBuf,
    process::Command,
    sync::Arc,
    thread,
};

use anyhow::{Context, Result};
use nix::{
    mount::{MntFlags, MsFlags, mount, umount2},
    sched::{CloneFlags, setns, unshare},
    sys::signal::{Signal, kill},
    unistd::Pid,
};

use crate::process::{self, Process};

const DIRECTORY: &str = "/run/netns";

/// A handle to a namespace; copies are the same namespace. The [`Lab`](super::Lab) that made it removes it.
#[derive(Clone)]
pub struct Namespace {
    name: Arc<str>,
    file: Arc<File>,
}

impl Namespace {
    /// A new, empty namespace. One of that name already there is an error: it belongs to somebody else.
    pub(super) fn create(name: &str) -> Result<Namespace> {
        fs::create_dir_all(DIRECTORY).with_context(|| format!("creating {DIRECTORY}"))?;
        let path = PathBuf::from(DIRECTORY).join(name);
        File::create_new(&path)
            .with_context(|| format!("creating {} (left over? `ip netns delete {name}` removes it)", path.display()))?;
        let made: Result<File> = thread::scope(|scope| {
            scope
                .spawn(|| {
                    unshare(CloneFlags::CLONE_NEWNET).context("a new network namespace (needs root)")?;
                    mount(Some("/proc/thread-self/ns/net"), &path, None::<&str>, MsFlags::MS_BIND, None::<&str>)
                        .with_context(|| format!("binding {}", path.display()))?;
                    File::open(&path).with_context(|| format!("opening {}", path.display()))
                })
                .join()
                .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        });
        match made {
            Ok(file) => Ok(Namespace { name: name.into(), file: Arc::new(file) }),
            Err(error) => {
                // Best effort: the error to tell is the first one.
                let _ = umount2(&path, MntFlags::MNT_DETACH);
                let _ = fs::remove_file(&path);
                Err(error)
            }
        }
    }

    /// Ends what still runs in it and removes its name. The kernel frees it once the last handle is gone.
    pub(super) fn remove(&self) -> Result<()> {
        for pid in self.processes()? {
            // Failure means that it ended in the meantime.
            let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
        }
        let path = self.path();
        umount2(&path, MntFlags::MNT_DETACH).with_context(|| format!("unmounting {}", path.display()))?;
        fs::remove_file(&path).with_context(|| format!("removing {}", path.display()))
    }

    pub fn name(&self) -> &str {
        &self.name
    }

    pub fn path(&self) -> PathBuf {
        PathBuf::from(DIRECTORY).join(&*self.name)
    }

    /// Processes whose main thread is in here; never this process itself.
    pub fn processes(&self) -> Result<Vec<i32>> {
        let mine = self.file.metadata().context("looking at a namespace")?;
        let me = std::process::id().cast_signed();
        let mut found = Vec::new();
        for entry in fs::read_dir("/proc").context("listing /proc")? {
            let Some(pid) = entry.ok().and_then(|entry| entry.file_name().to_str()?.parse::<i32>().ok()) else {
                continue;
            };
            // A process that has just ended has no link any more.
            let Ok(theirs) = fs::metadata(format!("/proc/{pid}/ns/net")) else { continue };
            if (theirs.dev(), theirs.ino()) == (mine.dev(), mine.ino()) && pid != me {
                found.push(pid);
            }
        }
        Ok(found)
    }

    /// Calls `work` inside, in a thread that ends with it. A panic in there continues here.
    pub fn run<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        let inside = || {
            // The descriptor is a namespace that this process made, which took the privilege that entering takes.
            setns(&self.file, CloneFlags::CLONE_NEWNET).expect("entering a namespace that we made ourselves");
            work()
        };
        let joined = thread::scope(|scope| scope.spawn(inside).join());
        joined.unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    }

    /// Starts a program inside, its output collected.
    pub fn spawn(&self, name: &str, command: Command) -> Result<Process> {
        self.run(|| Process::spawn(name, command))
    }

    /// Runs a program inside to its end and returns its standard output; a failure is an error with what it said.
    pub fn command(&self, program: &str, arguments: &[&str]) -> Result<String> {
        let mut command = Command::new(program);
        command.args(arguments);
        self.run(|| process::output(command)).with_context(|| format!("in {}", self.name))
    }

    /// `ip -batch` inside, one process for all the lines.
    pub fn ip(&self, lines: &[String]) -> Result<()> {
        if lines.is_empty() {
            return Ok(());
        }
        let mut text = lines.join("\n");
        text.push('\n');
        let mut command = Command::new("ip");
        command.args(["-batch", "-"]);
        let done = self.run(|| process::output_with_input(command, &text));
        done.map(drop).with_context(|| format!("in {}:\n{text}", self.name))
    }

    /// Writes a sysctl of this namespace, e.g. `net/ipv4/ip_forward`.
    pub fn set_sysctl(&self, key: &str, value: &str) -> Result<()> {
        let path = sysctl_path(key);
        self.run(|| fs::write(&path, value)).with_context(|| format!("{} = {value} in {}", path.display(), self.name))
    }

    /// Reads a sysctl of this namespace; `None` if the kernel does not have it.
    pub fn sysctl(&self, key: &str) -> Option<String> {
        let path = sysctl_path(key);
        self.run(|| fs::read_to_string(path)).ok().map(|text| text.trim().to_owned())
    }
}

/// Slashes only: an interface name may hold a dot.
fn sysctl_path(key: &str) -> PathBuf {
    PathBuf::from("/proc/sys").join(key)
}
