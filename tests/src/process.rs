//! A child process that ends with its owner, and its log.

use std::fs::{self, File};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tempfile::NamedTempFile;

/// Running, or ended and not yet looked at. Killed when dropped.
#[derive(Debug)]
pub struct Process {
    name: String,
    child: Child,
    log: NamedTempFile,
}

impl Process {
    /// Starts it in the calling thread's namespace, without standard input; both output streams go to the log.
    pub fn start(name: &str, command: &mut Command) -> Result<Process> {
        let log = NamedTempFile::with_prefix(format!("{name}-")).context("log file")?;
        let writer = |file: &NamedTempFile| -> Result<File> {
            // Appending, so that both streams and a restart share the file without overwriting each other.
            Ok(File::options().append(true).open(file.path())?)
        };
        let child = command
            .stdin(Stdio::null())
            .stdout(writer(&log)?)
            .stderr(writer(&log)?)
            .spawn()
            .with_context(|| format!("cannot start {:?}", command.get_program()))?;
        Ok(Process { name: name.to_string(), child, log })
    }

    pub fn id(&self) -> u32 {
        self.child.id()
    }

    pub fn name(&self) -> &str {
        &self.name
    }

    /// Everything that it printed so far.
    pub fn log(&self) -> String {
        fs::read(self.log.path()).map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).unwrap_or_default()
    }

    /// The last lines, for an error message.
    pub fn log_end(&self) -> String {
        let log = self.log();
        let lines: Vec<&str> = log.lines().collect();
        lines[lines.len().saturating_sub(25)..].join("\n")
    }

    /// None while it runs.
    pub fn ended(&mut self) -> Result<Option<ExitStatus>> {
        Ok(self.child.try_wait()?)
    }

    /// An error with the end of the log if it does not run any more.
    pub fn check(&mut self) -> Result<()> {
        match self.ended()? {
            None => Ok(()),
            Some(status) => bail!("{} ended with {status}; the end of its log:\n{}", self.name, self.log_end()),
        }
    }

    /// Sends a signal; an error if it has ended already.
    pub fn signal(&mut self, signal: Signal) -> Result<()> {
        self.check()?;
        // The number is ours until we have waited for it, so no other process can have it.
        kill(Pid::from_raw(self.child.id().cast_signed()), signal).with_context(|| format!("{signal} to {}", self.name))
    }

    /// Waits for its end; an error with the end of the log when it takes longer.
    pub fn wait(&mut self, patience: Duration) -> Result<ExitStatus> {
        let begin = Instant::now();
        loop {
            if let Some(status) = self.ended()? {
                return Ok(status);
            }
            if begin.elapsed() > patience {
                bail!("{} still runs after {patience:?}; the end of its log:\n{}", self.name, self.log_end());
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// SIGTERM, then patience, then an error (it is killed on drop all the same).
    pub fn stop(&mut self, patience: Duration) -> Result<ExitStatus> {
        self.signal(Signal::SIGTERM)?;
        self.wait(patience)
    }

    /// SIGKILL, as the kernel does when memory is short.
    pub fn kill(&mut self) -> Result<()> {
        self.child.kill()?;
        self.child.wait()?;
        Ok(())
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // Both fail only if it is gone already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn log_has_both_streams_and_an_early_end_is_told_with_it() {
        let mut process =
            Process::start("sh", Command::new("sh").args(["-c", "echo one; echo two >&2; exit 3"])).expect("start");
        assert_eq!(process.wait(Duration::from_secs(20)).expect("ends").code(), Some(3));
        assert_eq!(process.log(), "one\ntwo\n");
        let told = format!("{:#}", process.check().expect_err("it ended"));
        assert!(told.contains("exit status: 3") && told.contains("two"), "{told}");
    }

    #[test]
    fn stop_is_a_request_and_drop_is_not() {
        let script = "trap 'echo asked; exit 0' TERM; echo ready; while :; do sleep 0.05; done";
        let mut process = Process::start("sh", Command::new("sh").args(["-c", script])).expect("start");
        crate::wait_for("ready", Duration::from_secs(20), || process.log().contains("ready")).expect("ready");
        assert!(process.stop(Duration::from_secs(20)).expect("stops").success());
        assert_eq!(process.log(), "ready\nasked\n");
        let deaf = Process::start("sleep", Command::new("sleep").arg("600")).expect("start");
        let id = deaf.id();
        drop(deaf);
        assert!(!std::path::Path::new(&format!("/proc/{id}")).exists());
    }
}
