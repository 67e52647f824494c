//! A container runtime's part in CNI: calls the plugins of a chain in their order, with the environment and the
//! configuration that SPEC.md asks for ("Lifecycle and ordering", "Deriving execution configuration from plugin
//! configuration").
//!
//! In: plugins as in a `.conflist`, a container. Out: what each plugin said. The reference plugins are Debian's; ours is
//! the program that cargo built. Plugins belong to the network namespace of the calling thread: the node's.

use std::{
    fs::{self, File},
    io::Write,
    os::fd::AsRawFd,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};
use nix::sched::{CloneFlags, setns, unshare};
use serde_json::{Value, json};

use crate::process::built_program;

/// Where Debian's package containernetworking-plugins has them.
pub const REFERENCE: &str = "/usr/lib/cni";
/// `type` of our plugin.
pub const OURS: &str = "kube-router-cni";

/// What a plugin said.
#[derive(Debug)]
pub struct Said {
    pub ok: bool,
    /// The result, or the error; null for nothing.
    pub json: Value,
    pub stderr: String,
    pub took: Duration,
}

impl Said {
    /// Of the error.
    pub fn code(&self) -> Option<u64> {
        self.json["code"].as_u64().filter(|_| !self.ok)
    }

    #[track_caller]
    pub fn done(self) -> Said {
        assert!(self.ok, "{self:?}");
        self
    }

    /// Of the result, without lengths.
    pub fn addresses(&self) -> Vec<String> {
        let ips = self.json["ips"].as_array().map(Vec::as_slice).unwrap_or_default();
        let address = |ip: &Value| Some(ip["address"].as_str()?.split('/').next()?.to_owned());
        ips.iter().filter_map(address).collect()
    }
}

/// What a runtime knows of a container when it calls a plugin.
#[derive(Clone, Copy, Debug)]
pub struct Container<'a> {
    pub id: &'a str,
    /// Of its network namespace.
    pub netns: &'a str,
    /// Name in the namespace `default`.
    pub pod: &'a str,
    /// Older runtimes do not tell it.
    pub uid: Option<&'a str>,
}

/// A network: version, name, and the plugins' part of a `.conflist`.
#[derive(Clone, Debug)]
pub struct Chain {
    pub version: &'static str,
    pub plugins: Vec<Value>,
    /// Before each plugin but the first.
    pub pause: Duration,
}

impl Chain {
    /// One plugin, once.
    pub fn call(&self, command: &str, of: Container<'_>, plugin: &Value, prev: Option<&Value>) -> Result<Said> {
        let mut config = plugin.clone();
        config["cniVersion"] = self.version.into();
        config["name"] = "mynet".into();
        if let Some(prev) = prev {
            config["prevResult"] = prev.clone();
        }
        let program = match config["type"].as_str() {
            Some(OURS) => built_program(OURS, "KUBE_ROUTER_CNI_BIN")?,
            Some(other) => Path::new(REFERENCE).join(other),
            None => bail!("a plugin without a type: {config}"),
        };
        let uid = of.uid.map(|uid| format!(";K8S_POD_UID={uid}")).unwrap_or_default();
        let begin = Instant::now();
        let mut child = Command::new(&program)
            .env_clear()
            .envs([("CNI_COMMAND", command), ("CNI_CONTAINERID", of.id), ("CNI_NETNS", of.netns)])
            .envs([("CNI_IFNAME", "eth0"), ("CNI_PATH", REFERENCE), ("PATH", "/usr/sbin:/usr/bin:/sbin:/bin")])
            .env("CNI_ARGS", format!("IgnoreUnknown=1;K8S_POD_NAMESPACE=default;K8S_POD_NAME={}{uid}", of.pod))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .with_context(|| format!("{} (cargo xtask setup installs the reference plugins)", program.display()))?;
        let mut stdin = child.stdin.take().context("a plugin's standard input")?;
        stdin.write_all(config.to_string().as_bytes())?;
        drop(stdin);
        let output = child.wait_with_output()?;
        let json = serde_json::from_slice(&output.stdout).unwrap_or(Value::Null);
        let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
        Ok(Said { ok: output.status.success(), json, stderr, took: begin.elapsed() })
    }

    /// The whole chain in its order; ends at the first error. Says what the last one said.
    pub fn add(&self, of: Container<'_>) -> Result<Said> {
        let mut last: Option<Said> = None;
        for plugin in &self.plugins {
            thread::sleep(if last.is_some() { self.pause } else { Duration::ZERO });
            let said = self.call("ADD", of, plugin, last.as_ref().map(|said| &said.json))?;
            if !said.ok {
                return Ok(said);
            }
            last = Some(said);
        }
        last.context("a chain without plugins")
    }

    /// In reverse order; every plugin must succeed.
    pub fn del(&self, of: Container<'_>, result: &Value) -> Result<()> {
        for plugin in self.plugins.iter().rev() {
            let said = self.call("DEL", of, plugin, Some(result))?;
            if !said.ok {
                bail!("DEL of {}: {said:?}", plugin["type"]);
            }
        }
        Ok(())
    }

    /// The last plugin only.
    pub fn last(&self, command: &str, of: Container<'_>, result: &Value) -> Result<Said> {
        self.call(command, of, self.plugins.last().context("a chain without plugins")?, Some(result))
    }
}

/// bridge with host-local, portmap, and ours with these keys, as people have them. `ranges` is host-local's.
pub fn usual_plugins(leases: &Path, ranges: &Value, mut ours: Value) -> Vec<Value> {
    ours["type"] = OURS.into();
    vec![
        json!({ "type": "bridge", "bridge": "kube-bridge", "isDefaultGateway": true, "hairpinMode": true,
                "mtu": 1400, "ipam": { "type": "host-local", "dataDir": leases, "ranges": ranges } }),
        json!({ "type": "portmap", "snat": true, "runtimeConfig": { "portMappings": [] } }),
        ours,
    ]
}

/// The network namespace that a runtime makes for a pod before it calls the plugins. Dropped, it goes with its links.
pub struct Sandbox(File);

impl Sandbox {
    /// Needs root.
    pub fn new() -> Result<Sandbox> {
        let inside = || -> Result<File> {
            unshare(CloneFlags::CLONE_NEWNET).context("a new network namespace (needs root)")?;
            for of in ["all", "default"] {
                // No waiting for duplicate addresses.
                fs::write(format!("/proc/sys/net/ipv6/conf/{of}/accept_dad"), "0")?;
            }
            Ok(File::open("/proc/thread-self/ns/net")?)
        };
        let made = thread::scope(|scope| scope.spawn(inside).join());
        made.unwrap_or_else(|panic| std::panic::resume_unwind(panic)).map(Sandbox)
    }

    /// A path that leads there as long as this lives.
    pub fn path(&self) -> PathBuf {
        PathBuf::from(format!("/proc/{}/fd/{}", std::process::id(), self.0.as_raw_fd()))
    }

    /// Calls `work` inside, in a thread that ends with it.
    pub fn run<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        let inside = || {
            setns(&self.0, CloneFlags::CLONE_NEWNET).expect("entering a namespace that we made ourselves");
            work()
        };
        let joined = thread::scope(|scope| scope.spawn(inside).join());
        joined.unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    }
}
