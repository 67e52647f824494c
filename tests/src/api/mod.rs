//! A real Kubernetes control plane without a node: etcd, kube-apiserver, and kube-controller-manager on demand.
//!
//! In: an [`ApiSpec`]. Out: an [`Api`] that answers, with one kubeconfig for an administrator and one for the agent's
//! service account, which may do nothing until a ClusterRole says so. Parts can be stopped and started (an outage), and
//! the history can be thrown away (every older resourceVersion gets 410). There is no kubelet: a test writes the status
//! of nodes and pods itself, e.g. by [`Api::set_pod_running`].
//!
//! The programs are those in the folder KUBE_ROUTER_TEST_KUBE_BIN (`cargo xtask setup` builds them). Without it every
//! call fails: a test that needs them cannot pass without them.

mod etcd;
mod keys;
mod kubectl;
mod spec;

use std::{
    fs::{self, DirBuilder},
    net::{IpAddr, SocketAddr, TcpListener},
    os::unix::fs::DirBuilderExt,
    path::{Path, PathBuf},
    process::Command,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};
use nix::sys::signal::Signal;
use tempfile::TempDir;

pub use self::spec::{AGENT_USER, ApiSpec, Component};
use crate::process::{self, Process};

/// Folder with etcd, kube-apiserver, kube-controller-manager and kubectl.
pub const PROGRAMS: &str = "KUBE_ROUTER_TEST_KUBE_BIN";

/// Start of one part: 3-7 s on two busy cores, minutes in an emulated machine on such cores.
const START: Duration = Duration::from_secs(300);

/// How often a part that starts is asked: each question to the API server is a program of its own, and takes the time of
/// the server that it waits for.
const ASK: Duration = Duration::from_millis(200);

/// An API server with open watches takes over ten seconds to end by itself; no test wants to wait for that.
const STOP: Duration = Duration::from_secs(3);

/// A control plane. Dropping it ends its processes and, unless the folder was given, removes its data.
pub struct Api {
    spec: ApiSpec,
    programs: PathBuf,
    folder: PathBuf,
    /// Removes the folder if it is ours.
    _temporary: Option<TempDir>,
    address: SocketAddr,
    etcd_client: SocketAddr,
    etcd_peer: SocketAddr,
    /// In the order in which they end.
    controller_manager: Option<Process>,
    api_server: Option<Process>,
    etcd: Option<Process>,
}

impl Api {
    /// Starts everything and waits until the API server is ready.
    pub fn up(spec: ApiSpec) -> Result<Api> {
        let programs = programs()?;
        let (folder, temporary) = match &spec.folder {
            Some(folder) => (folder.clone(), None),
            None => {
                let temporary = TempDir::new().context("a folder for the control plane")?;
                (temporary.path().to_owned(), Some(temporary))
            }
        };
        DirBuilder::new().recursive(true).mode(0o700).create(&folder).with_context(|| folder.display().to_string())?;
        let folder = folder.canonicalize()?;
        let [port, client, peer] = spec.run(|| free_ports(spec.address, spec.port))?;
        let loopback = IpAddr::from([127, 0, 0, 1]);
        let mut api = Api {
            address: SocketAddr::new(spec.address, port),
            etcd_client: SocketAddr::new(loopback, client),
            etcd_peer: SocketAddr::new(loopback, peer),
            spec,
            programs,
            folder,
            _temporary: temporary,
            controller_manager: None,
            api_server: None,
            etcd: None,
        };
        keys::create(&api.folder, &api.spec)?;
        api.write_kubeconfigs()?;
        api.place_data()?;
        api.start(Component::Etcd)?;
        api.start(Component::ApiServer)?;
        if !api.spec.controllers.is_empty() {
            api.start(Component::ControllerManager)?;
        }
        Ok(api)
    }

    /// `https://address:port`
    pub fn url(&self) -> String {
        format!("https://{}", self.address)
    }

    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// A member of system:masters.
    pub fn kubeconfig(&self) -> PathBuf {
        self.folder.join("kubeconfig")
    }

    /// The service account kube-system/kube-router; without rights of its own.
    pub fn agent_kubeconfig(&self) -> PathBuf {
        self.folder.join("agent.kubeconfig")
    }

    /// etcd's data; what [`ApiSpec::data`] takes after [`Api::down`].
    pub fn data(&self) -> PathBuf {
        self.folder.join("etcd")
    }

    /// Starts a part that does not run and waits until it works. Does nothing to one that runs.
    pub fn start(&mut self, component: Component) -> Result<()> {
        if let Some(process) = self.slot(component)
            && process.is_running()
        {
            return Ok(());
        }
        let command = self.command_of(component);
        let process = self.spec.run(|| Process::spawn(component.program(), command))?;
        *self.slot(component) = Some(process);
        let deadline = Instant::now() + START;
        while !self.works(component) {
            let Some(process) = self.slot(component) else { bail!("{} is gone", component.program()) };
            if let Some(status) = process.ended() {
                bail!("{} ended ({status}):\n{}", component.program(), process.log_tail());
            }
            if Instant::now() >= deadline {
                bail!("{} does not work after {START:?}:\n{}", component.program(), process.log_tail());
            }
            std::thread::sleep(ASK);
        }
        Ok(())
    }

    /// Stops a part: an outage. Its clients' connections end; a part that is slow to go is killed.
    pub fn stop(&mut self, component: Component) {
        if let Some(mut process) = self.slot(component).take() {
            // One that cannot be signalled has ended, and the kill below does nothing.
            if process.signal(Signal::SIGTERM).is_ok() && process.wait(STOP).is_err() {
                process.kill();
            }
        }
    }

    /// Kills a part: its clients notice only what the kernel tells them.
    pub fn kill(&mut self, component: Component) {
        *self.slot(component) = None;
    }

    /// Throws the history away and restarts the API server: every older resourceVersion and continue token is answered
    /// with 410 from now on.
    pub fn expire(&mut self) -> Result<()> {
        let revision = self.spec.run(|| etcd::revision(self.etcd_client))?;
        self.spec.run(|| etcd::compact(self.etcd_client, revision))?;
        self.stop(Component::ApiServer);
        self.start(Component::ApiServer)
    }

    /// Ends everything; the folder stays until the value is dropped, and for ever if it was given.
    pub fn down(&mut self) {
        for component in [Component::ControllerManager, Component::ApiServer, Component::Etcd] {
            self.stop(component);
        }
    }

    /// What a part has written so far; nothing if it does not run.
    pub fn log(&mut self, component: Component) -> Vec<String> {
        self.slot(component).as_ref().map(Process::log).unwrap_or_default()
    }

    fn slot(&mut self, component: Component) -> &mut Option<Process> {
        match component {
            Component::Etcd => &mut self.etcd,
            Component::ApiServer => &mut self.api_server,
            Component::ControllerManager => &mut self.controller_manager,
        }
    }

    fn works(&self, component: Component) -> bool {
        match component {
            Component::Etcd => self.spec.run(|| etcd::is_healthy(self.etcd_client)),
            // Connecting first, as even a small program takes longer to say that nobody listens.
            Component::ApiServer => {
                self.spec.run(|| std::net::TcpStream::connect_timeout(&self.address, STOP)).is_ok() && self.is_ready()
            }
            // It says nothing; its work shows.
            Component::ControllerManager => true,
        }
    }

    /// Asked by curl: in an emulated machine kubectl takes seconds to start.
    fn is_ready(&self) -> bool {
        let mut curl = Command::new("curl");
        curl.args(["-sS", "-m", "10", "--cacert"])
            .arg(self.folder.join("ca.crt"))
            .arg(format!("{}/readyz", self.url()));
        self.spec.run(|| process::output(curl)).is_ok_and(|answer| answer == "ok")
    }

    fn command_of(&self, component: Component) -> Command {
        let mut command = Command::new(self.programs.join(component.program()));
        match component {
            Component::Etcd => {
                command.args(spec::etcd_arguments(&self.spec, &self.data(), self.etcd_client, self.etcd_peer))
            }
            Component::ApiServer => {
                command.args(spec::api_server_arguments(&self.spec, &self.folder, self.address, self.etcd_client))
            }
            Component::ControllerManager => {
                command.args(spec::controller_manager_arguments(&self.spec, &self.kubeconfig()))
            }
        };
        command
    }

    fn write_kubeconfigs(&self) -> Result<()> {
        for (file, token) in [(self.kubeconfig(), "admin.token"), (self.agent_kubeconfig(), "agent.token")] {
            let token = fs::read_to_string(self.folder.join(token))?;
            let authority = self.folder.join("ca.crt");
            let text = format!(
                "apiVersion: v1\nkind: Config\ncurrent-context: test\n\
                 clusters: [{{name: test, cluster: {{server: \"{}\", certificate-authority: \"{}\"}}}}]\n\
                 users: [{{name: test, user: {{token: \"{token}\"}}}}]\n\
                 contexts: [{{name: test, context: {{cluster: test, user: test}}}}]\n",
                self.url(),
                authority.display(),
            );
            fs::write(&file, text).with_context(|| file.display().to_string())?;
        }
        Ok(())
    }

    /// Copies given data, so that the original serves again; without any, an earlier run's is removed.
    fn place_data(&self) -> Result<()> {
        let data = self.data();
        let same = self.spec.data.as_ref().is_some_and(|given| given.canonicalize().is_ok_and(|given| given == data));
        if !same {
            if data.exists() {
                fs::remove_dir_all(&data).with_context(|| data.display().to_string())?;
            }
            if let Some(given) = &self.spec.data {
                let mut copy = Command::new("cp");
                copy.arg("-r").arg(given).arg(&data);
                process::output(copy)?;
            }
        }
        Ok(())
    }
}

/// The folder of the programs, or an error that says how to get it.
pub fn programs() -> Result<PathBuf> {
    let folder = std::env::var_os(PROGRAMS)
        .with_context(|| format!("{PROGRAMS} is not set: the folder with {}", Component::ALL_PROGRAMS.join(", ")))?;
    let folder = PathBuf::from(folder);
    for program in Component::ALL_PROGRAMS {
        if !folder.join(program).is_file() {
            bail!("{PROGRAMS}={}: no {program} in there", folder.display());
        }
    }
    Ok(folder)
}

/// Ports for the API and for etcd's two sides; all three are held until all are known, so they differ.
fn free_ports(address: IpAddr, wanted: Option<u16>) -> Result<[u16; 3]> {
    let hold = |address: IpAddr, port| -> Result<TcpListener> {
        TcpListener::bind((address, port)).with_context(|| format!("listening on {address}:{port}"))
    };
    let loopback = IpAddr::from([127, 0, 0, 1]);
    let held = [hold(address, wanted.unwrap_or(0))?, hold(loopback, 0)?, hold(loopback, 0)?];
    let mut ports = [0; 3];
    for (port, listener) in ports.iter_mut().zip(&held) {
        *port = listener.local_addr()?.port();
    }
    Ok(ports)
}
