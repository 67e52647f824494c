//! A child process of a test: its output is collected line by line, and it never outlives its handle.
//!
//! In: a `Command`. Out: a [`Process`] whose lines can be waited for. It does not know about namespaces: a child is born
//! in the network namespace of the thread that spawns it, which is what [`Namespace::spawn`](crate::lab::Namespace) uses.

use std::{
    io::{BufRead, BufReader, Read, Write},
    os::unix::process::ExitStatusExt,
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Output, Stdio},
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};

/// How often a condition without a notification is looked at again.
pub const POLL: Duration = Duration::from_millis(20);

/// Lines of a log shown in an error.
const TAIL: usize = 25;

/// A running (or ended) child. Dropping it kills it and waits for its end.
pub struct Process {
    name: String,
    child: Child,
    output: Arc<Collected>,
    ended: Option<ExitStatus>,
}

#[derive(Default)]
struct Collected {
    lines: Mutex<Vec<String>>,
    more: Condvar,
}

impl Collected {
    fn lines(&self) -> MutexGuard<'_, Vec<String>> {
        // A reader that panicked has at worst lost a line; what it did collect is still true.
        self.lines.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Collects until the end of the stream; bytes that are not UTF-8 are replaced.
    fn collect(self: Arc<Self>, stream: impl Read + Send + 'static) {
        thread::spawn(move || {
            let mut stream = BufReader::new(stream);
            let mut bytes = Vec::new();
            while matches!(stream.read_until(b'\n', &mut bytes), Ok(n) if n > 0) {
                let line = String::from_utf8_lossy(&bytes).trim_end().to_owned();
                bytes.clear();
                self.lines().push(line);
                self.more.notify_all();
            }
        });
    }
}

impl Process {
    /// Starts `command` with no input and both outputs collected. `name` is for messages.
    pub fn spawn(name: &str, mut command: Command) -> Result<Process> {
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().with_context(|| format!("starting {name} ({command:?})"))?;
        let output = Arc::new(Collected::default());
        if let Some(stdout) = child.stdout.take() {
            output.clone().collect(stdout);
        }
        if let Some(stderr) = child.stderr.take() {
            output.clone().collect(stderr);
        }
        Ok(Process { name: name.to_owned(), child, output, ended: None })
    }

    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// How it ended, or `None` while it runs.
    pub fn ended(&mut self) -> Option<ExitStatus> {
        if self.ended.is_none() {
            self.ended = self.child.try_wait().ok().flatten();
        }
        self.ended
    }

    pub fn is_running(&mut self) -> bool {
        self.ended().is_none()
    }

    /// Everything it has written so far, standard output and error in order of arrival.
    pub fn log(&self) -> Vec<String> {
        self.output.lines().clone()
    }

    /// The end of the log, for an error message.
    pub fn log_tail(&self) -> String {
        let lines = self.output.lines();
        lines[lines.len().saturating_sub(TAIL)..].join("\n")
    }

    /// The first line, from the beginning of the log, that `wanted` accepts.
    pub fn wait_for_line(&mut self, timeout: Duration, wanted: impl Fn(&str) -> bool) -> Result<String> {
        let deadline = Instant::now() + timeout;
        let mut seen = 0;
        loop {
            // Looked at before the lines: what a process wrote before its end still counts.
            let over = self.ended();
            let output = self.output.clone();
            let mut lines = output.lines();
            if let Some(line) = lines[seen..].iter().find(|line| wanted(line)) {
                return Ok(line.clone());
            }
            seen = lines.len();
            let left = deadline.saturating_duration_since(Instant::now());
            if let Some(status) = over {
                drop(lines);
                bail!("{} ended ({status}) before the awaited line:\n{}", self.name, self.log_tail());
            }
            if left.is_zero() {
                drop(lines);
                bail!("{}: no such line within {timeout:?}:\n{}", self.name, self.log_tail());
            }
            lines = output.more.wait_timeout(lines, left.min(POLL * 5)).unwrap_or_else(PoisonError::into_inner).0;
            drop(lines);
        }
    }

    /// Sends `signal`; a process that has ended already is an error.
    pub fn signal(&mut self, signal: Signal) -> Result<()> {
        if let Some(status) = self.ended() {
            bail!("{} has ended ({status})", self.name);
        }
        // The child has not been waited for, so its number cannot belong to another process.
        kill(Pid::from_raw(self.child.id().cast_signed()), signal).with_context(|| format!("{signal} to {}", self.name))
    }

    /// Waits for the end.
    pub fn wait(&mut self, timeout: Duration) -> Result<ExitStatus> {
        let deadline = Instant::now() + timeout;
        loop {
            if let Some(status) = self.ended() {
                return Ok(status);
            }
            if Instant::now() >= deadline {
                bail!("{} still runs after {timeout:?}:\n{}", self.name, self.log_tail());
            }
            thread::sleep(POLL);
        }
    }

    /// SIGTERM, then the status. One that does not end in time is killed, and that is an error.
    pub fn terminate(&mut self, timeout: Duration) -> Result<ExitStatus> {
        self.signal(Signal::SIGTERM)?;
        let result = self.wait(timeout);
        if result.is_err() {
            self.kill();
        }
        result
    }

    /// SIGKILL, and waits for the end. Does nothing to one that has ended.
    pub fn kill(&mut self) {
        if self.ended().is_none() {
            // Failure means that it has just ended, which `wait` tells.
            let _ = self.child.kill();
            self.ended = Some(self.child.wait().unwrap_or(ExitStatus::from_raw(Signal::SIGKILL as i32)));
        }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.kill();
    }
}

/// Runs to the end and returns standard output; a failure carries the command and what it said.
pub fn output(mut command: Command) -> Result<String> {
    let done = command.stdin(Stdio::null()).output().with_context(|| format!("starting {command:?}"))?;
    judged(&command, done)
}

/// The same with something on standard input.
pub fn output_with_input(mut command: Command, input: &str) -> Result<String> {
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().with_context(|| format!("starting {command:?}"))?;
    let stdin = child.stdin.take();
    // Written beside the reading: a program that answers as it reads would else wait for us while we wait for it.
    let done = thread::scope(|scope| {
        scope.spawn(move || {
            // One that does not read to the end says why by its status.
            let _ = stdin.map(|mut stdin| stdin.write_all(input.as_bytes()));
        });
        child.wait_with_output()
    });
    judged(&command, done.with_context(|| format!("waiting for {command:?}"))?)
}

fn judged(command: &Command, done: Output) -> Result<String> {
    if !done.status.success() {
        bail!("{command:?}: {}: {}", done.status, String::from_utf8_lossy(&done.stderr).trim());
    }
    String::from_utf8(done.stdout).with_context(|| format!("{command:?} wrote something that is not UTF-8"))
}

/// Asks `happened` until it says yes. `what` is the sentence for the error.
pub fn eventually(what: &str, timeout: Duration, mut happened: impl FnMut() -> bool) -> Result<()> {
    let deadline = Instant::now() + timeout;
    while !happened() {
        if Instant::now() >= deadline {
            bail!("not within {timeout:?}: {what}");
        }
        thread::sleep(POLL);
    }
    Ok(())
}

/// A program of this workspace: the file named by `variable`, else the one that cargo built beside the running test.
pub fn built_program(name: &str, variable: &str) -> Result<PathBuf> {
    if let Some(path) = std::env::var_os(variable) {
        let path = PathBuf::from(path);
        if !path.is_file() {
            bail!("{variable}={}: no such file", path.display());
        }
        return Ok(path);
    }
    let me = std::env::current_exe().context("where the running program is")?;
    // A test is in target/<profile>/deps, a program in target/<profile>.
    let found = me.ancestors().skip(1).take(2).map(|folder: &Path| folder.join(name)).find(|path| path.is_file());
    found.with_context(|| {
        format!("no program {name} beside {}; build the workspace first, or set {variable} to it", me.display())
    })
}
