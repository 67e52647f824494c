//! The agent itself, network policy alone, fed from a folder of manifests.

use std::{
    collections::BTreeMap,
    fs,
    io::{Read, Write},
    net::TcpStream,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use kube_router::objects::Object;
use serde_json::{Value, json};

use crate::{
    cluster::{self, Shape},
    lab::{Lab, Namespace},
    pins::Pins,
};

const HEALTH_PORT: u16 = 20244;
const PATIENCE: Duration = Duration::from_secs(300);
/// After it is ready: what is left of the start is done, and memory is given back.
const REST: Duration = Duration::from_secs(5);

/// A folder of manifests, a file for each namespace. Files change by rename.
pub struct Manifests(tempfile::TempDir);

impl Manifests {
    pub fn new(objects: &[Object]) -> Result<Manifests> {
        let manifests = Manifests(tempfile::tempdir()?);
        let mut files: BTreeMap<String, Vec<Value>> = BTreeMap::new();
        for object in objects {
            let key = object.key();
            let file = if key.namespace.is_empty() { &key.name } else { &key.namespace };
            files.entry(file.to_string()).or_default().push(cluster::manifest(object));
        }
        for (file, items) in files {
            manifests.prepare(&file, items)?.put()?;
        }
        manifests.prepare("nodes", vec![cluster::node()])?.put()?;
        Ok(manifests)
    }

    /// Written, but not yet in its place.
    pub fn prepare(&self, file: &str, items: Vec<Value>) -> Result<Prepared> {
        let hidden = self.0.path().join(format!(".{file}.new"));
        let prepared = Prepared { place: self.0.path().join(format!("{file}.json")), hidden };
        fs::write(&prepared.hidden, json!({"apiVersion": "v1", "kind": "List", "items": items}).to_string())?;
        Ok(prepared)
    }
}

pub struct Prepared {
    hidden: PathBuf,
    place: PathBuf,
}

impl Prepared {
    pub fn put(self) -> Result<()> {
        fs::rename(&self.hidden, &self.place).context("rename")
    }
}

/// Dropping it ends the process and takes its programs away.
pub struct Agent {
    child: Child,
    _folder: tempfile::TempDir,
    _pins: Pins,
}

impl Agent {
    /// In the node's namespace; waits until it is ready.
    pub fn start(program: &Path, node: &Namespace, manifests: &Manifests) -> Result<Agent> {
        let (folder, pins) = (tempfile::tempdir()?, Pins::new()?);
        let log = fs::File::create(folder.path().join("log"))?;
        let mut command = Command::new(program);
        command
            .args(["--run-router=false", "--run-service-proxy=false"])
            .args([format!("--hostname-override={}", cluster::NODE), format!("--health-port={HEALTH_PORT}")])
            .arg(format!("--manifests={}", manifests.0.path().display()))
            .arg(format!("--bpf-directory={}", pins.path().display()))
            .arg(format!("--socket={}", folder.path().join("socket").display()))
            .arg(format!("--cni-socket={}", folder.path().join("cni").display()))
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log);
        let child = node.run(move || command.spawn()).with_context(|| program.display().to_string())?;
        let mut agent = Agent { child, _folder: folder, _pins: pins };
        agent.wait_until_ready(node)?;
        Ok(agent)
    }

    fn wait_until_ready(&mut self, node: &Namespace) -> Result<()> {
        let begin = Instant::now();
        while begin.elapsed() < PATIENCE {
            let log = || fs::read_to_string(self._folder.path().join("log")).unwrap_or_default();
            if let Some(status) = self.child.try_wait()? {
                bail!("the agent ended with {status}: {}", log());
            }
            if node.run(is_ready).unwrap_or(false) {
                return Ok(());
            }
            thread::sleep(Duration::from_millis(100));
        }
        bail!("not ready after {PATIENCE:?}")
    }

    /// Fields of /proc/PID/status, in KiB.
    fn memory(&self) -> Result<BTreeMap<String, u64>> {
        let status = fs::read_to_string(format!("/proc/{}/status", self.child.id()))?;
        let field = |line: &str| {
            let (name, value) = line.split_once(':')?;
            Some((name.to_owned(), value.split_whitespace().next()?.parse().ok()?))
        };
        Ok(status.lines().filter_map(field).collect())
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        // Both fail only if it has ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn is_ready() -> Result<bool> {
    let mut stream = TcpStream::connect(("127.0.0.1", HEALTH_PORT))?;
    stream.set_read_timeout(Some(PATIENCE))?;
    write!(stream, "GET /readyz HTTP/1.0\r\n\r\n")?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    Ok(answer.starts_with("HTTP/1.1 200") || answer.starts_with("HTTP/1.0 200"))
}

/// What a whole agent of such a cluster holds in memory.
pub fn measure_memory(program: &Path, shape: Shape) -> Result<()> {
    let lab = Lab::new()?;
    let manifests = Manifests::new(&shape.objects())?;
    let begin = Instant::now();
    let agent = Agent::start(program, &lab.node, &manifests)?;
    let ready_s = begin.elapsed().as_secs_f64();
    thread::sleep(REST);
    let memory = agent.memory()?;
    let [rss, anonymous, peak] = ["VmRSS", "RssAnon", "VmHWM"].map(|field| memory.get(field).copied());
    ensure!(rss.is_some() && peak.is_some(), "/proc/PID/status without memory");
    let line = json!({
        "what": "memory", "policies": shape.policies, "pods": shape.pods, "ready_s": ready_s, "rss_kib": rss,
        "anonymous_kib": anonymous, "peak_kib": peak,
    });
    println!("{line}");
    Ok(())
}
