//! One named network namespace.
//!
//! A namespace belongs to a thread in Linux, so [`Netns::run`] takes a fresh thread into it: sockets made in the
//! closure, and threads and processes started from it, stay there. The name (`/run/netns/NAME`, as `ip netns add`
//! makes it) lets `ip -n NAME` and people look in. Use `nsenter --net=/run/netns/NAME` rather than `ip netns exec`:
//! the latter hides /sys/fs/bpf.

use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;

use anyhow::{Context, Result, ensure};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, setns, unshare};

use crate::process::Process;

const NAMES: &str = "/run/netns";

/// A handle; the namespace's name is removed when the last clone is dropped.
#[derive(Clone, Debug)]
pub struct Netns(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    name: String,
    file: File,
}

impl Netns {
    /// Makes it, with loopback down. An existing name is an error: it is somebody else's.
    pub fn create(name: &str) -> Result<Netns> {
        fs::create_dir_all(NAMES).context(NAMES)?;
        let path = Path::new(NAMES).join(name);
        File::create_new(&path)
            .with_context(|| format!("{}: is it in use, or left by a killed test?", path.display()))?;
        let made = std::thread::scope(|scope| {
            let thread = scope.spawn(|| -> Result<File> {
                unshare(CloneFlags::CLONE_NEWNET).context("a network namespace (this needs root)")?;
                let here = Path::new("/proc/thread-self/ns/net");
                mount(Some(here), &path, None::<&str>, MsFlags::MS_BIND, None::<&str>).context("bind the name")?;
                Ok(File::open(here)?)
            });
            thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        });
        match made {
            Ok(file) => Ok(Netns(Arc::new(Inner { name: name.to_string(), file }))),
            Err(error) => {
                let _ = fs::remove_file(&path);
                Err(error)
            }
        }
    }

    pub fn name(&self) -> &str {
        &self.0.name
    }

    /// For `nsenter --net=`.
    pub fn path(&self) -> PathBuf {
        Path::new(NAMES).join(&self.0.name)
    }

    /// Runs the closure on a thread inside; a panic in it is a panic here.
    pub fn run<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        std::thread::scope(|scope| {
            let thread = scope.spawn(|| {
                // Fails only without CAP_SYS_ADMIN, and then the namespace could not have been made.
                setns(&self.0.file, CloneFlags::CLONE_NEWNET).expect("setns into a namespace that we made");
                work()
            });
            thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })
    }

    /// Starts a program inside; it is killed when the handle is dropped.
    pub fn spawn(&self, name: &str, command: &mut Command) -> Result<Process> {
        self.run(|| Process::start(name, command))
    }

    /// Runs a program inside to its end and returns what it printed; a failure carries its standard error.
    pub fn output(&self, argv: &[&str]) -> Result<String> {
        let output = self.run(|| Command::new(argv[0]).args(&argv[1..]).stdin(Stdio::null()).output());
        let output = output.with_context(|| format!("cannot start {}", argv[0]))?;
        ensure!(
            output.status.success(),
            "{}: {} ended with {}: {}",
            self.name(),
            argv.join(" "),
            output.status,
            String::from_utf8_lossy(&output.stderr).trim()
        );
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }

    /// Commands for `ip`, one a line, in one process: a start costs up to 60 ms in an emulated machine.
    pub fn ip(&self, batch: &str) -> Result<()> {
        let mut command = Command::new("ip");
        command.args(["-batch", "-"]).stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::piped());
        let mut child = self.run(|| command.spawn()).context("cannot start ip (package iproute2)")?;
        if let Some(mut stdin) = child.stdin.take() {
            // It stops reading at the first command that fails; its own words follow below.
            let _ = stdin.write_all(batch.as_bytes());
        }
        let output = child.wait_with_output()?;
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        ensure!(output.status.success(), "{}: ip: {}\nof:\n{batch}", self.name(), said.trim());
        Ok(())
    }

    /// Writes a setting of this namespace; the key as `sysctl` spells it, with slashes or dots.
    pub fn sysctl(&self, key: &str, value: &str) -> Result<()> {
        let file = sysctl_path(key);
        self.run(|| fs::write(&file, value)).with_context(|| format!("{}: {key} = {value}", self.name()))
    }

    /// Reads a setting of this namespace.
    pub fn read_sysctl(&self, key: &str) -> Result<String> {
        let file = sysctl_path(key);
        let text = self.run(|| fs::read_to_string(&file)).with_context(|| format!("{}: {key}", self.name()))?;
        Ok(text.trim().to_string())
    }
}

fn sysctl_path(key: &str) -> PathBuf {
    let key = if key.contains('/') { key.to_string() } else { key.replace('.', "/") };
    Path::new("/proc/sys").join(key)
}

impl Drop for Inner {
    fn drop(&mut self) {
        let path = Path::new(NAMES).join(&self.name);
        if let Err(error) = umount2(&path, MntFlags::MNT_DETACH) {
            eprintln!("{}: {error}", path.display());
        }
        let _ = fs::remove_file(&path);
    }
}
