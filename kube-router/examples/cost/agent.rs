//! A whole agent as a child process: its memory, a restart with nothing to do, and its rest.

use std::{
    collections::BTreeMap,
    ffi::OsString,
    fs,
    io::{Read, Write},
    net::{SocketAddr, TcpListener, TcpStream},
    path::Path,
    process::{Child, Command},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use serde_json::json;

use crate::{
    api_server::{self, Sizes},
    cluster,
};

/// An emulated machine is some thirty times slower than a real one.
const PATIENCE: Duration = Duration::from_secs(900);
const REST: Duration = Duration::from_secs(30);

pub fn run(program: &Path, services: u32, pods: u32) -> Result<()> {
    let address = format!("{}/32", cluster::NODE_ADDRESS);
    ensure!(Command::new("ip").args(["address", "add", &address, "dev", "lo"]).status()?.success(), "ip address add");
    let url = api_server::start(Sizes { services, pods })?;
    for what in ["first", "restart"] {
        let mut agent = Agent::start(program, &url)?;
        let ready_s = agent.wait_until_ready()?;
        // What is left over from the start is done, and memory is given back.
        thread::sleep(Duration::from_secs(5));
        let writes = agent.writes()?;
        thread::sleep(Duration::from_secs(1));
        let before = agent.sample()?;
        thread::sleep(REST);
        let after = agent.sample()?;
        println!(
            "{}",
            json!({
                "what": what, "services": services, "pods": pods, "ready_s": ready_s,
                "rss_kib": after.memory.get("VmRSS"), "peak_kib": after.memory.get("VmHWM"),
                "anonymous_kib": after.memory.get("RssAnon"),
                "writes": writes, "rest_s": REST.as_secs(), "rest_writes": agent.writes()? - writes,
                "rest_wakeups": after.wakeups_since(&before), "rest_cpu_ms": after.cpu_ms - before.cpu_ms,
            })
        );
        let servers = Command::new("ipvsadm").args(["-Sn"]).output()?.stdout;
        let lines = servers.iter().filter(|byte| **byte == b'\n').count();
        let wanted = (services * (1 + cluster::ENDPOINTS)) as usize;
        ensure!(lines == wanted, "{lines} servers and destinations of {wanted} are there");
    }
    Ok(())
}

struct Agent {
    child: Child,
    health: SocketAddr,
    metrics: SocketAddr,
    _directory: tempfile::TempDir,
}

struct Sample {
    /// Fields of /proc/PID/status, in KiB.
    memory: BTreeMap<String, u64>,
    /// Voluntary context switches by thread.
    wakeups: BTreeMap<OsString, u64>,
    cpu_ms: u64,
}

impl Sample {
    /// Of the threads that live now; one that ended since (a scrape's helper) did so by its one last wake-up.
    fn wakeups_since(&self, earlier: &Sample) -> u64 {
        self.wakeups.iter().map(|(thread, count)| count - earlier.wakeups.get(thread).copied().unwrap_or(0)).sum()
    }
}

impl Agent {
    fn start(program: &Path, url: &str) -> Result<Agent> {
        let directory = tempfile::tempdir()?;
        let (health, metrics) = (free_port()?, free_port()?);
        let child = Command::new(program)
            .args(["--run-router=false", "--run-firewall=false", "--run-service-proxy=true"])
            // What is measured is the work for IPVS.
            .arg("--service-fastpath=off")
            .args([format!("--master={url}"), "--cache-sync-timeout=15m".to_owned()])
            .arg(format!("--hostname-override={}", cluster::NODE))
            .args(["--health-addr=127.0.0.1".to_owned(), format!("--health-port={}", health.port())])
            .args(["--metrics-addr=127.0.0.1".to_owned(), format!("--metrics-port={}", metrics.port())])
            .args(["--socket".as_ref(), directory.path().join("socket").as_os_str()])
            .spawn()
            .with_context(|| program.display().to_string())?;
        Ok(Agent { child, health, metrics, _directory: directory })
    }

    fn wait_until_ready(&mut self) -> Result<f64> {
        let begin = Instant::now();
        while begin.elapsed() < PATIENCE {
            if let Some(status) = self.child.try_wait()? {
                bail!("the agent ended with {status}");
            }
            if get(self.health, "/readyz").is_ok_and(|answer| answer.starts_with("HTTP/1.1 200")) {
                return Ok(begin.elapsed().as_secs_f64());
            }
            thread::sleep(Duration::from_millis(100));
        }
        bail!("not ready after {PATIENCE:?}")
    }

    /// Orders to the kernel so far, by the agent's own count.
    fn writes(&self) -> Result<u64> {
        let metrics = get(self.metrics, "/metrics")?;
        let lines = metrics.lines().filter(|line| line.starts_with("kube_router_kernel_writes_total"));
        Ok(lines.filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok()).sum::<f64>() as u64)
    }

    fn sample(&self) -> Result<Sample> {
        let proc = format!("/proc/{}", self.child.id());
        let mut wakeups = BTreeMap::new();
        for task in fs::read_dir(format!("{proc}/task"))? {
            let task = task?;
            let status = fs::read_to_string(task.path().join("status"))?;
            wakeups.insert(task.file_name(), fields(&status).get("voluntary_ctxt_switches").copied().unwrap_or(0));
        }
        let stat = fs::read_to_string(format!("{proc}/stat"))?;
        // utime and stime, in ticks of 10 ms, are the 14th and 15th field; the second may hold blanks.
        let after_name = stat.rsplit(')').next().unwrap_or_default();
        let ticks = after_name.split_whitespace().skip(11).take(2).filter_map(|text| text.parse::<u64>().ok());
        let memory = fields(&fs::read_to_string(format!("{proc}/status"))?);
        Ok(Sample { memory, wakeups, cpu_ms: ticks.sum::<u64>() * 10 })
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        // Both fail only if it has ended already. The dataplane stays, as with any end of an agent.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn fields(status: &str) -> BTreeMap<String, u64> {
    let field = |line: &str| {
        let (name, value) = line.split_once(':')?;
        Some((name.to_owned(), value.split_whitespace().next()?.parse().ok()?))
    };
    status.lines().filter_map(field).collect()
}

fn free_port() -> Result<SocketAddr> {
    Ok(TcpListener::bind("127.0.0.1:0")?.local_addr()?)
}

fn get(address: SocketAddr, path: &str) -> Result<String> {
    let mut stream = TcpStream::connect(address)?;
    stream.set_read_timeout(Some(Duration::from_secs(60)))?;
    write!(stream, "GET {path} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n")?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    Ok(answer)
}
