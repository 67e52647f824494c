//! A real control plane without nodes: etcd, kube-apiserver and, on demand, kube-controller-manager, as child
//! processes.
//!
//! No kubelet and no scheduler: a test writes Node and Pod objects with their status itself ([`ApiServer::add_node`],
//! [`ApiServer::add_pod`]), and the real controllers make EndpointSlices of them. Authorization is RBAC; the agent's
//! kubeconfig is the service account kube-system/kube-router, which may do nothing until a manifest allows it.
//!
//! The programs are those of `$KUBEBUILDER_ASSETS`, else what `cargo xtask setup` built into the cache.
//!
//! [`pki`] makes keys and kubeconfigs, [`flags`] the command lines, [`objects`] a few objects.

mod flags;
mod objects;
mod pki;

use std::collections::BTreeMap;
use std::env;
use std::fs;
use std::io::Write;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use tempfile::TempDir;

use crate::netns::Netns;
use crate::process::Process;
use crate::{eventually, http};

/// A server that starts beside compilers and virtual machines; five seconds where it is quiet.
const START: Duration = Duration::from_secs(120);
/// With watches open kube-apiserver takes over ten seconds to end; nothing is lost when it is killed.
const STOP: Duration = Duration::from_secs(3);

/// One of the processes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Component {
    Etcd,
    ApiServer,
    ControllerManager,
}

impl Component {
    fn program(self) -> &'static str {
        match self {
            Component::Etcd => "etcd",
            Component::ApiServer => "kube-apiserver",
            Component::ControllerManager => "kube-controller-manager",
        }
    }
}

/// What to start.
#[derive(Clone, Debug)]
pub struct ApiSpec {
    /// Where it is served: an address of the namespace that it starts in.
    pub address: IpAddr,
    pub port: u16,
    /// etcd's client port on loopback; the next one is its peer port.
    pub etcd_port: u16,
    /// Controllers to run; none: no controller manager.
    pub controllers: Vec<String>,
    pub service_cidrs: String,
    pub pod_cidrs: String,
    /// What [`ApiServer::save`] left: a cluster full of objects is then there at once. Copied, not changed.
    pub data: Option<PathBuf>,
    /// More arguments of kube-apiserver.
    pub api_args: Vec<String>,
}

impl Default for ApiSpec {
    /// On loopback port 6443, with the controllers for EndpointSlices, pod CIDRs and namespaces.
    fn default() -> ApiSpec {
        ApiSpec {
            address: Ipv4Addr::LOCALHOST.into(),
            port: 6443,
            etcd_port: 2379,
            controllers: ["endpointslice", "nodeipam", "namespace"].map(String::from).to_vec(),
            service_cidrs: "10.96.0.0/12,fd00:10:96::/112".into(),
            pod_cidrs: "10.244.0.0/16,fd00:10:244::/48".into(),
            data: None,
            api_args: Vec::new(),
        }
    }
}

/// A running control plane; its processes are killed and its files removed when dropped.
#[derive(Debug)]
pub struct ApiServer {
    spec: ApiSpec,
    ns: Option<Netns>,
    files: TempDir,
    programs: PathBuf,
    processes: BTreeMap<Component, Process>,
}

impl ApiServer {
    /// Starts everything, in a namespace or where the caller is, and waits until it is ready.
    pub fn start(spec: ApiSpec, ns: Option<&Netns>) -> Result<ApiServer> {
        let files = tempfile::tempdir().context("folder for the API server")?;
        pki::create(files.path(), &spec)?;
        if let Some(data) = &spec.data {
            copy(data, &files.path().join("etcd")).with_context(|| data.display().to_string())?;
        }
        let mut api = ApiServer { spec, ns: ns.cloned(), files, programs: programs()?, processes: BTreeMap::new() };
        api.start_component(Component::Etcd)?;
        api.start_component(Component::ApiServer)?;
        if !api.spec.controllers.is_empty() {
            api.start_component(Component::ControllerManager)?;
        }
        Ok(api)
    }

    /// Starts one again after [`ApiServer::stop_component`], and waits until it is ready (the controller manager: until
    /// it runs).
    pub fn start_component(&mut self, component: Component) -> Result<()> {
        ensure!(!self.processes.contains_key(&component), "{} runs already", component.program());
        let mut command = Command::new(self.programs.join(component.program()));
        command.args(flags::of(component, &self.spec, self.files.path()));
        let name = component.program();
        let process = self.inside(|| Process::start(name, &mut command))?;
        self.processes.insert(component, process);
        self.wait_ready(component)
    }

    fn wait_ready(&mut self, component: Component) -> Result<()> {
        let begin = std::time::Instant::now();
        loop {
            for process in self.processes.values_mut() {
                process.check()?;
            }
            let ready = match component {
                Component::Etcd => self.etcd("GET", "/health", "").map(drop),
                Component::ApiServer => self.kubectl(&["get", "--raw", "/readyz"]).map(drop),
                Component::ControllerManager => Ok(()),
            };
            let Err(error) = ready else { return Ok(()) };
            if begin.elapsed() > START {
                let log = self.processes.get(&component).map(Process::log_end).unwrap_or_default();
                bail!("{} is not ready after {START:?}: {error:#}; the end of its log:\n{log}", component.program());
            }
            std::thread::sleep(Duration::from_millis(100));
        }
    }

    /// An outage of one component.
    pub fn stop_component(&mut self, component: Component) -> Result<()> {
        let mut process =
            self.processes.remove(&component).with_context(|| format!("{} does not run", component.program()))?;
        if process.stop(STOP).is_err() {
            process.kill()?;
        }
        Ok(())
    }

    /// Makes every older resourceVersion and continue token worthless (410 Gone): compacts etcd and restarts the API
    /// server, whose watch cache would still know them.
    pub fn expire(&mut self) -> Result<()> {
        let status: serde_json::Value = serde_json::from_str(&self.etcd("POST", "/v3/maintenance/status", "{}")?)?;
        let revision = status["header"]["revision"].as_str().context("etcd tells no revision")?.to_string();
        self.etcd("POST", "/v3/kv/compaction", &format!("{{\"revision\":\"{revision}\",\"physical\":true}}"))?;
        self.stop_component(Component::ApiServer)?;
        self.start_component(Component::ApiServer)
    }

    /// Stops everything and copies the cluster's objects to a folder, for [`ApiSpec::data`].
    pub fn save(mut self, to: &Path) -> Result<()> {
        for component in [Component::ControllerManager, Component::ApiServer, Component::Etcd] {
            if self.processes.contains_key(&component) {
                self.stop_component(component)?;
            }
        }
        copy(&self.files.path().join("etcd"), to)
    }

    /// For a user that may do everything.
    pub fn admin_kubeconfig(&self) -> PathBuf {
        self.files.path().join("admin.kubeconfig")
    }

    /// For the agent's service account.
    pub fn agent_kubeconfig(&self) -> PathBuf {
        self.files.path().join("agent.kubeconfig")
    }

    /// `https://ADDRESS:PORT`
    pub fn url(&self) -> String {
        format!("https://{}", SocketAddr::new(self.spec.address, self.spec.port))
    }

    /// Standard output of `kubectl ARGS` as admin; an error with what it said when it fails.
    pub fn kubectl(&self, args: &[&str]) -> Result<String> {
        self.kubectl_with(&self.admin_kubeconfig(), args, "")
    }

    /// The same as the agent's service account.
    pub fn kubectl_as_agent(&self, args: &[&str]) -> Result<String> {
        self.kubectl_with(&self.agent_kubeconfig(), args, "")
    }

    /// Creates or changes objects from YAML.
    pub fn apply(&self, yaml: &str) -> Result<()> {
        self.kubectl_with(&self.admin_kubeconfig(), &["apply", "--server-side", "-f", "-"], yaml).map(drop)
    }

    /// Waits until a JSON path of an object is not empty and returns it.
    pub fn wait_field(&self, args: &[&str], json_path: &str, patience: Duration) -> Result<String> {
        let output = format!("-o=jsonpath={{{json_path}}}");
        let mut argv = vec!["get"];
        argv.extend(args);
        argv.push(&output);
        eventually(patience, || {
            let text = self.kubectl(&argv)?;
            ensure!(!text.is_empty(), "{args:?}: {json_path} is empty");
            Ok(text)
        })
    }

    /// What a component printed since it was last started.
    pub fn log(&self, component: Component) -> String {
        self.processes.get(&component).map(Process::log).unwrap_or_default()
    }

    fn kubectl_with(&self, kubeconfig: &Path, args: &[&str], stdin: &str) -> Result<String> {
        let mut command = Command::new(self.programs.join("kubectl"));
        command.arg("--cache-dir").arg(self.files.path().join("kubectl")).arg("--kubeconfig").arg(kubeconfig);
        command.args(args).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = self.inside(|| command.spawn()).context("cannot start kubectl")?;
        if let Some(mut pipe) = child.stdin.take() {
            // If it ended before it read all, its status says why.
            let _ = pipe.write_all(stdin.as_bytes());
        }
        let output = child.wait_with_output()?;
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        ensure!(output.status.success(), "kubectl {}: {}", args.join(" "), said.trim());
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }

    fn etcd(&self, method: &str, path: &str, body: &str) -> Result<String> {
        let server = SocketAddr::from((Ipv4Addr::LOCALHOST, self.spec.etcd_port));
        let (status, answer) = self.inside(|| http::request(server, method, path, body, crate::probe::PATIENCE))?;
        ensure!(status == 200, "etcd: {method} {path}: {status} {answer}");
        Ok(answer)
    }

    fn inside<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        match &self.ns {
            Some(ns) => ns.run(work),
            None => work(),
        }
    }
}

/// The folder of the programs.
fn programs() -> Result<PathBuf> {
    let dir = match env::var_os("KUBEBUILDER_ASSETS") {
        Some(dir) => PathBuf::from(dir),
        None => {
            let cache = match (env::var_os("KUBE_ROUTER_DEV_CACHE"), env::var_os("XDG_CACHE_HOME"), env::var_os("HOME"))
            {
                (Some(dir), ..) => PathBuf::from(dir),
                (_, Some(dir), _) => Path::new(&dir).join("kube-router-dev"),
                (.., Some(home)) => Path::new(&home).join(".cache/kube-router-dev"),
                _ => bail!("none of KUBEBUILDER_ASSETS, KUBE_ROUTER_DEV_CACHE, XDG_CACHE_HOME and HOME is set"),
            };
            cache.join("k8s")
        }
    };
    ensure!(dir.join("kube-apiserver").exists(), "{}: no kube-apiserver: run `cargo xtask setup`", dir.display());
    Ok(dir)
}

/// A folder with all that is in it.
fn copy(from: &Path, to: &Path) -> Result<()> {
    fs::create_dir_all(to)?;
    for entry in fs::read_dir(from)? {
        let entry = entry?;
        let target = to.join(entry.file_name());
        if entry.file_type()?.is_dir() {
            copy(&entry.path(), &target)?;
        } else {
            fs::copy(entry.path(), &target)?;
        }
    }
    Ok(())
}
