//! kube-router as a child process in a node's namespace.
//!
//! The program is `$KUBE_ROUTER_BIN` (set by `cargo xtask test`), else the one beside the running test's folder in
//! cargo's build output. Its status socket is in a folder of its own, since several nodes share this machine's files.

use std::env;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::process::{Command, ExitStatus};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use tempfile::TempDir;

use crate::netns::Netns;
use crate::process::Process;
use crate::{eventually, http};

/// The agent's default for `--health-port`.
const HEALTH_PORT: u16 = 20244;

/// A started agent; killed when dropped, which leaves in the namespace what it had programmed.
#[derive(Debug)]
pub struct Agent {
    ns: Netns,
    args: Vec<String>,
    process: Process,
    files: TempDir,
}

impl Agent {
    /// Starts it with these flags (and `--socket`, `--health-addr`, which the harness needs); does not wait.
    pub fn start(ns: &Netns, args: &[&str]) -> Result<Agent> {
        let files = tempfile::tempdir().context("folder for the agent's socket")?;
        let mut all = vec![
            format!("--socket={}", files.path().join("agent.sock").display()),
            "--health-addr=127.0.0.1".to_string(),
        ];
        all.extend(args.iter().map(ToString::to_string));
        let process = spawn(ns, &all)?;
        Ok(Agent { ns: ns.clone(), args: all, process, files })
    }

    /// [`Agent::start`], then waits until `/readyz` says that the first full pass is through.
    pub fn start_ready(ns: &Netns, args: &[&str], patience: Duration) -> Result<Agent> {
        let mut agent = Agent::start(ns, args)?;
        agent.wait_ready(patience)?;
        Ok(agent)
    }

    /// Starts the same command again after [`Agent::kill`] or [`Agent::stop`].
    pub fn restart(&mut self) -> Result<()> {
        ensure!(self.process.ended()?.is_some(), "the agent still runs");
        self.process = spawn(&self.ns, &self.args)?;
        Ok(())
    }

    /// Until `/readyz` answers 200; an error with the log's end when the agent ends before, or the time is up.
    pub fn wait_ready(&mut self, patience: Duration) -> Result<()> {
        let begin = std::time::Instant::now();
        loop {
            self.process.check()?;
            let answer = self.get(HEALTH_PORT, "/readyz");
            if matches!(answer, Ok((200, _))) {
                return Ok(());
            }
            ensure!(
                begin.elapsed() < patience,
                "/readyz after {patience:?}: {answer:?}; the end of the log:\n{}",
                self.process.log_end()
            );
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    /// An HTTP path of the agent, from inside its namespace.
    pub fn get(&self, port: u16, path: &str) -> std::io::Result<(u16, String)> {
        let server = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
        self.ns.run(|| http::get(server, path, crate::probe::PATIENCE))
    }

    /// Runs `kube-router ARGS` beside it, against its socket where the command knows `--socket`.
    pub fn ask(&self, args: &[&str]) -> Result<String> {
        let program = program()?;
        let program = program.to_string_lossy();
        let mut argv = vec![program.as_ref()];
        argv.extend(args);
        let socket = format!("--socket={}", self.files.path().join("agent.sock").display());
        argv.push(&socket);
        self.ns.output(&argv)
    }

    /// Waits for a text in the log.
    pub fn wait_log(&mut self, text: &str, patience: Duration) -> Result<()> {
        let process = &mut self.process;
        eventually(patience, || {
            let log = process.log();
            if !log.contains(text) {
                process.check()?;
            }
            ensure!(log.contains(text), "no {text:?} in the log, which ends:\n{}", process.log_end());
            Ok(())
        })
    }

    pub fn log(&self) -> String {
        self.process.log()
    }

    /// SIGTERM, and its exit status.
    pub fn stop(&mut self, patience: Duration) -> Result<ExitStatus> {
        self.process.stop(patience)
    }

    /// SIGKILL.
    pub fn kill(&mut self) -> Result<()> {
        self.process.kill()
    }

    pub fn process(&mut self) -> &mut Process {
        &mut self.process
    }
}

fn spawn(ns: &Netns, args: &[String]) -> Result<Process> {
    let mut command = Command::new(program()?);
    command.args(args);
    ns.spawn("kube-router", &mut command)
}

/// The agent's program.
pub fn program() -> Result<PathBuf> {
    let path = match env::var_os("KUBE_ROUTER_BIN") {
        Some(path) => PathBuf::from(path),
        None => {
            // target/debug/deps/TEST-HASH, or target/debug/PROGRAM
            let own = env::current_exe()?;
            let beside = own.ancestors().skip(1).map(|dir| dir.join("kube-router")).find(|path| path.is_file());
            beside.unwrap_or_else(|| own.with_file_name("kube-router"))
        }
    };
    ensure!(path.is_file(), "{}: build the agent first (cargo build -p kube-router)", path.display());
    Ok(path)
}
