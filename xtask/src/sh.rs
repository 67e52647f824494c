//! Child processes for developer commands: quiet while they work, complete when they fail.
//!
//! [`run`] keeps the child's output back and shows its end only when the child fails; anything that takes longer than
//! two seconds shows its name and the elapsed time. [`read`] returns standard output. [`pass`] lets the child talk.

use std::ffi::OsStr;
use std::io::{IsTerminal, Read, Write};
use std::process::{Command, ExitStatus, Stdio};
use std::sync::mpsc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

/// Lines of a failed child's output that are shown.
const TAIL_LINES: usize = 40;
/// Shorter work shows nothing.
const QUIET: Duration = Duration::from_secs(2);
/// Between progress lines where there is no terminal to rewrite one.
const LOG_INTERVAL: Duration = Duration::from_secs(30);

/// A command with our `PATH`, without standard input.
pub fn command(program: impl AsRef<OsStr>) -> Command {
    let mut command = Command::new(program);
    command.env("PATH", crate::paths::search_path()).stdin(Stdio::null());
    command
}

/// Runs to the end; the output is dropped, or its end shown if the exit status is not zero.
pub fn run(what: &str, command: &mut Command) -> Result<()> {
    let _progress = Progress::start(what);
    let (mut reader, writer) = std::io::pipe().context("pipe")?;
    let mut child = command
        .stdout(writer.try_clone().context("pipe")?)
        .stderr(writer)
        .spawn()
        .with_context(|| format!("{what}: cannot start {}", line(command)))?;
    // The command still holds our copies of the pipe's writing end; without this the read below would never end.
    command.stdout(Stdio::null()).stderr(Stdio::null());
    let mut output = Vec::new();
    reader.read_to_end(&mut output).context("pipe")?;
    let status = child.wait().context("wait")?;
    if !status.success() {
        bail!("{what}: {} ended with {status}; the end of its output:\n{}", line(command), tail(&output, TAIL_LINES));
    }
    Ok(())
}

/// Runs to the end and returns standard output; standard error is shown if the exit status is not zero.
pub fn read(command: &mut Command) -> Result<Vec<u8>> {
    let output = command
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .output()
        .with_context(|| format!("cannot start {}", line(command)))?;
    if !output.status.success() {
        bail!("{} ended with {}:\n{}", line(command), output.status, tail(&output.stderr, TAIL_LINES));
    }
    Ok(output.stdout)
}

/// [`read`], as text without white space around it.
pub fn read_text(command: &mut Command) -> Result<String> {
    Ok(String::from_utf8_lossy(&read(command)?).trim().to_string())
}

/// Runs to the end with our standard output and error.
pub fn pass(command: &mut Command) -> Result<ExitStatus> {
    command.status().with_context(|| format!("cannot start {}", line(command)))
}

/// The command as one would type it.
pub fn line(command: &Command) -> String {
    let words = std::iter::once(command.get_program()).chain(command.get_args());
    words.map(|word| quote(&word.to_string_lossy())).collect::<Vec<_>>().join(" ")
}

/// A word for a POSIX shell.
pub fn quote(word: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_./:=,@%+".contains(c);
    if !word.is_empty() && word.chars().all(plain) {
        word.to_string()
    } else {
        format!("'{}'", word.replace('\'', r"'\''"))
    }
}

/// The last lines, indented.
pub fn tail(output: &[u8], lines: usize) -> String {
    let text = String::from_utf8_lossy(output);
    let all: Vec<&str> = text.lines().collect();
    all[all.len().saturating_sub(lines)..].iter().map(|line| format!("  | {line}")).collect::<Vec<_>>().join("\n")
}

/// Shows, while it lives and after the first two seconds, what is being done and for how long.
pub struct Progress {
    stop: Option<mpsc::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Progress {
    pub fn start(what: &str) -> Progress {
        let (stop, stopped) = mpsc::channel();
        let what = what.to_string();
        let thread = std::thread::spawn(move || show(&what, &stopped));
        Progress { stop: Some(stop), thread: Some(thread) }
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn show(what: &str, stopped: &mpsc::Receiver<()>) {
    let begin = Instant::now();
    let terminal = std::io::stderr().is_terminal();
    let mut wait = QUIET;
    while let Err(mpsc::RecvTimeoutError::Timeout) = stopped.recv_timeout(wait) {
        let seconds = begin.elapsed().as_secs();
        // Nothing to do about a closed stderr.
        let _ = if terminal {
            write!(std::io::stderr(), "\r\x1b[K{seconds:4} s  {what} ...")
        } else {
            writeln!(std::io::stderr(), "{seconds:4} s  {what} ...")
        };
        wait = if terminal { Duration::from_millis(500) } else { LOG_INTERVAL };
    }
    if terminal && begin.elapsed() > QUIET {
        let _ = write!(std::io::stderr(), "\r\x1b[K");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn failure_shows_the_command_and_the_end_of_both_streams() {
        let error = run("greeting", command("sh").args(["-c", "seq 100; echo spoken; echo shouted >&2; exit 7"]));
        let text = format!("{:#}", error.expect_err("exit 7 is a failure"));
        assert!(text.contains("exit status: 7") && text.contains("sh -c 'seq 100;"), "{text}");
        assert!(text.contains("| spoken") && text.contains("| shouted"), "{text}");
        assert!(!text.contains("| 50\n"), "only the end is shown: {text}");
    }

    #[test]
    fn success_is_silent_and_read_returns_standard_output() {
        run("nothing", &mut command("true")).expect("true");
        assert_eq!(read_text(command("sh").args(["-c", "echo a; echo b >&2"])).expect("sh"), "a");
    }

    #[test]
    fn quote_survives_a_shell() {
        for word in ["plain", "two words", "it's", "", "$HOME `x` \\"] {
            let echoed = read(command("sh").args(["-c", &format!("printf %s {}", quote(word))])).expect("sh");
            assert_eq!(String::from_utf8_lossy(&echoed), word);
        }
    }
}
