//! The kube-router program on a node of the lab.
//!
//! In: a node's namespace and flags. Out: a running agent that can be asked whether it is ready, ended as a container
//! runtime would (SIGTERM), or killed. The program is the file in KUBE_ROUTER_BIN, else the one cargo built beside the
//! running test. It knows no flag but the ones every agent here needs: its node's name, its socket, its health port.

use std::{
    io::{Read, Write},
    net::{Ipv4Addr, TcpStream},
    os::unix::net::UnixStream,
    path::{Path, PathBuf},
    process::{Command, ExitStatus},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};
use tempfile::TempDir;

use crate::{
    lab::Namespace,
    process::{Process, built_program},
};

/// The agent's default health port. Each namespace has its own loopback, so every agent can have it.
pub const HEALTH_PORT: u16 = 20244;

/// Patience for one HTTP question to the agent: an emulated machine under load takes seconds to answer.
const HTTP_PATIENCE: Duration = Duration::from_secs(30);

/// How often readiness is asked for.
const POLL: Duration = Duration::from_millis(50);

/// Where the program is.
pub fn program() -> Result<PathBuf> {
    built_program("kube-router", "KUBE_ROUTER_BIN")
}

/// A running agent. Dropping it kills it.
pub struct Agent {
    process: Process,
    ns: Namespace,
    /// Holds its socket.
    folder: TempDir,
}

impl Agent {
    /// Starts an agent for `node` in `ns`: `kube-router --hostname-override=NODE --socket=... --health-port=20244 ARGUMENTS`.
    pub fn start(ns: &Namespace, node: &str, arguments: &[&str]) -> Result<Agent> {
        Agent::start_with(ns, node, arguments, &[])
    }

    /// The same with environment variables.
    pub fn start_with(ns: &Namespace, node: &str, arguments: &[&str], env: &[(&str, &str)]) -> Result<Agent> {
        Agent::start_command(Command::new(program()?), ns, node, arguments, env)
    }

    /// The same by another program, which is to become the agent: its arguments are followed by the agent's program and
    /// the agent's arguments.
    pub fn start_through(wrapper: &[&str], ns: &Namespace, node: &str, arguments: &[&str]) -> Result<Agent> {
        let (first, others) = wrapper.split_first().context("a program")?;
        let mut command = Command::new(first);
        command.args(others).arg(program()?);
        Agent::start_command(command, ns, node, arguments, &[])
    }

    fn start_command(
        mut command: Command,
        ns: &Namespace,
        node: &str,
        arguments: &[&str],
        env: &[(&str, &str)],
    ) -> Result<Agent> {
        let folder = TempDir::new().context("a folder for the agent's socket")?;
        command
            .arg(format!("--hostname-override={node}"))
            .arg(format!("--socket={}", folder.path().join("kube-router.sock").display()))
            .arg(format!("--cni-socket={}", folder.path().join("cni.sock").display()))
            .arg(format!("--health-port={HEALTH_PORT}"))
            .args(arguments)
            .envs(env.iter().copied());
        let process = ns.spawn(&format!("kube-router on {node}"), command)?;
        Ok(Agent { process, ns: ns.clone(), folder })
    }

    pub fn id(&self) -> u32 {
        self.process.id()
    }

    /// The Unix socket that `kube-router dump --socket=` asks.
    pub fn socket(&self) -> PathBuf {
        self.folder.path().join("kube-router.sock")
    }

    /// The Unix socket on which the network plugin asks.
    pub fn cni_socket(&self) -> PathBuf {
        self.folder.path().join("cni.sock")
    }

    /// Its namespace.
    pub fn ns(&self) -> &Namespace {
        &self.ns
    }

    /// `GET path` on its health port: status and body.
    pub fn health(&self, path: &str) -> Result<(u16, String)> {
        self.http(HEALTH_PORT, path)
    }

    /// `GET path` on any of its ports, e.g. the metrics.
    pub fn http(&self, port: u16, path: &str) -> Result<(u16, String)> {
        self.ns.run(|| get(port, path))
    }

    /// `GET path` on its socket, where the commands that look at it ask: the body of a good answer.
    pub fn told(&self, path: &str) -> Result<String> {
        let stream = UnixStream::connect(self.socket()).context("the agent's socket")?;
        match exchange(stream, path)? {
            (200, body) => Ok(body),
            (status, body) => bail!("{path}: {status} {}", body.trim()),
        }
    }

    /// Waits until `/readyz` says 200: everything that should be in the kernel is there.
    pub fn wait_ready(&mut self, timeout: Duration) -> Result<()> {
        let deadline = Instant::now() + timeout;
        let mut last = String::from("no answer");
        loop {
            match self.health("/readyz") {
                Ok((200, _)) => return Ok(()),
                Ok((status, body)) => last = format!("{status} {}", body.trim()),
                Err(error) => last = format!("{error:#} (before: {last})").chars().take(300).collect(),
            }
            if let Some(status) = self.process.ended() {
                bail!("the agent ended ({status}) before it was ready:\n{}", self.process.log_tail());
            }
            if Instant::now() >= deadline {
                bail!("not ready within {timeout:?}: {last}\n{}", self.process.log_tail());
            }
            std::thread::sleep(POLL);
        }
    }

    /// SIGTERM, and how it ended.
    pub fn stop(&mut self, timeout: Duration) -> Result<ExitStatus> {
        self.process.terminate(timeout)
    }

    /// SIGKILL: no farewell, nothing cleaned up.
    pub fn kill(&mut self) {
        self.process.kill();
    }

    /// The process itself, for its log, its lines and other signals.
    pub fn process(&mut self) -> &mut Process {
        &mut self.process
    }

    pub fn log(&self) -> Vec<String> {
        self.process.log()
    }

    /// Asks the running agent, as an operator would: `kube-router ARGUMENTS --socket=<its socket>`.
    pub fn command(&self, arguments: &[&str]) -> Result<String> {
        let socket = format!("--socket={}", self.socket().display());
        run(&self.ns, &[arguments, &[&socket]].concat())
    }
}

/// Runs the program once in `ns`, e.g. for `--cleanup-config`; standard output.
pub fn run(ns: &Namespace, arguments: &[&str]) -> Result<String> {
    let program = program()?;
    let program: &Path = &program;
    ns.command(program.to_str().context("the program's path is not UTF-8")?, arguments)
}

fn get(port: u16, path: &str) -> Result<(u16, String)> {
    let address = (Ipv4Addr::LOCALHOST, port).into();
    let stream = TcpStream::connect_timeout(&address, HTTP_PATIENCE).with_context(|| format!("port {port}"))?;
    stream.set_read_timeout(Some(HTTP_PATIENCE))?;
    stream.set_write_timeout(Some(HTTP_PATIENCE))?;
    exchange(stream, path)
}

fn exchange(mut stream: impl Read + Write, path: &str) -> Result<(u16, String)> {
    // 1.0, so that the answer is neither chunked nor kept open.
    write!(stream, "GET {path} HTTP/1.0\r\nHost: localhost\r\n\r\n")?;
    let mut bytes = Vec::new();
    stream.read_to_end(&mut bytes).with_context(|| format!("reading {path}"))?;
    let text = String::from_utf8_lossy(&bytes);
    let (head, body) = text.split_once("\r\n\r\n").context("no end of the HTTP head")?;
    let status = head.split(' ').nth(1).and_then(|status| status.parse().ok()).context("no HTTP status")?;
    Ok((status, body.to_owned()))
}
