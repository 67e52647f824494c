//! What kind of control plane, and the command lines that make it.

use std::{
    net::{IpAddr, Ipv4Addr, SocketAddr},
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};

use crate::lab::Namespace;

/// User name of the agent's kubeconfig, as RBAC knows it.
pub const AGENT_USER: &str = "system:serviceaccount:kube-system:kube-router";

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Component {
    Etcd,
    ApiServer,
    ControllerManager,
}

impl Component {
    pub(super) const ALL_PROGRAMS: [&str; 4] = ["etcd", "kube-apiserver", "kube-controller-manager", "kubectl"];

    pub(super) fn program(self) -> &'static str {
        match self {
            Component::Etcd => "etcd",
            Component::ApiServer => "kube-apiserver",
            Component::ControllerManager => "kube-controller-manager",
        }
    }
}

/// A control plane to start. `ApiSpec::default()` serves on the loopback of this machine, without controllers.
#[derive(Clone)]
pub struct ApiSpec {
    /// Where its processes and kubectl live; `None` = the namespace of the caller.
    pub ns: Option<Namespace>,
    /// Served on and advertised.
    pub address: IpAddr,
    /// `None` = a free one.
    pub port: Option<u16>,
    /// Controllers to run, e.g. `endpointslice`, `nodeipam`; none = no controller manager.
    pub controllers: Vec<String>,
    /// One per family, primary first.
    pub service_cidrs: Vec<String>,
    /// Ranges from which `nodeipam` gives each node its pod CIDRs.
    pub cluster_cidrs: Vec<String>,
    /// `--service-node-port-range`
    pub node_port_range: Option<String>,
    /// etcd data of an earlier control plane that is down; copied.
    pub data: Option<PathBuf>,
    /// Keys, kubeconfigs and data; `None` = a temporary folder. What is in there is used again, except etcd's data
    /// unless `data` names it.
    pub folder: Option<PathBuf>,
    pub api_server_arguments: Vec<String>,
    pub controller_manager_arguments: Vec<String>,
}

impl Default for ApiSpec {
    fn default() -> Self {
        let list = |texts: [&str; 2]| texts.map(str::to_owned).to_vec();
        ApiSpec {
            ns: None,
            address: Ipv4Addr::LOCALHOST.into(),
            port: None,
            controllers: Vec::new(),
            service_cidrs: list(["10.96.0.0/12", "fd00:10:96::/112"]),
            cluster_cidrs: list(["10.244.0.0/16", "fd00:10:244::/56"]),
            node_port_range: None,
            data: None,
            folder: None,
            api_server_arguments: Vec::new(),
            controller_manager_arguments: Vec::new(),
        }
    }
}

impl ApiSpec {
    /// With these controllers.
    pub fn controllers(mut self, names: &[&str]) -> ApiSpec {
        self.controllers = names.iter().map(|name| (*name).to_owned()).collect();
        self
    }

    /// In a namespace of the lab, on one of its addresses and the usual port.
    pub fn inside(mut self, ns: &Namespace, address: IpAddr) -> ApiSpec {
        self.ns = Some(ns.clone());
        self.address = address;
        self.port = Some(6443);
        self
    }

    pub(super) fn run<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        match &self.ns {
            Some(ns) => ns.run(work),
            None => work(),
        }
    }
}

pub(super) fn etcd_arguments(spec: &ApiSpec, data: &Path, client: SocketAddr, peer: SocketAddr) -> Vec<String> {
    let mut arguments = vec![
        "--name=test".to_owned(),
        format!("--data-dir={}", data.display()),
        format!("--listen-client-urls=http://{client}"),
        format!("--advertise-client-urls=http://{client}"),
        format!("--listen-peer-urls=http://{peer}"),
        format!("--initial-advertise-peer-urls=http://{peer}"),
        format!("--initial-cluster=test=http://{peer}"),
        // The data need not outlive a power cut.
        "--unsafe-no-fsync".to_owned(),
        "--quota-backend-bytes=2147483648".to_owned(),
    ];
    if spec.data.is_some() {
        // The data names its old member addresses.
        arguments.push("--force-new-cluster".to_owned());
    }
    arguments
}

pub(super) fn api_server_arguments(
    spec: &ApiSpec,
    folder: &Path,
    address: SocketAddr,
    etcd: SocketAddr,
) -> Vec<String> {
    let file = |flag: &str, name: &str| format!("--{flag}={}", folder.join(name).display());
    let mut arguments = vec![
        format!("--etcd-servers=http://{etcd}"),
        format!("--bind-address={}", address.ip()),
        format!("--advertise-address={}", address.ip()),
        format!("--secure-port={}", address.port()),
        file("tls-cert-file", "server.crt"),
        file("tls-private-key-file", "server.key"),
        file("client-ca-file", "ca.crt"),
        file("token-auth-file", "tokens.csv"),
        "--service-account-issuer=https://kubernetes.default.svc".to_owned(),
        file("service-account-key-file", "sa.key"),
        file("service-account-signing-key-file", "sa.key"),
        "--authorization-mode=RBAC".to_owned(),
        // Pods of a test need no account.
        "--disable-admission-plugins=ServiceAccount".to_owned(),
        "--allow-privileged".to_owned(),
        "--profiling=false".to_owned(),
        format!("--service-cluster-ip-range={}", spec.service_cidrs.join(",")),
    ];
    if address.ip().is_loopback() {
        // A loopback address is no valid endpoint of the service default/kubernetes.
        arguments.push("--endpoint-reconciler-type=none".to_owned());
    }
    if let Some(range) = &spec.node_port_range {
        arguments.push(format!("--service-node-port-range={range}"));
    }
    arguments.extend(spec.api_server_arguments.iter().cloned());
    arguments
}

pub(super) fn controller_manager_arguments(spec: &ApiSpec, kubeconfig: &Path) -> Vec<String> {
    let mut arguments = vec![
        format!("--kubeconfig={}", kubeconfig.display()),
        format!("--controllers={}", spec.controllers.join(",")),
        "--leader-elect=false".to_owned(),
        "--secure-port=0".to_owned(),
        // The defaults are for a shared server: 20 requests a second.
        "--kube-api-qps=500".to_owned(),
        "--kube-api-burst=1000".to_owned(),
    ];
    if spec.controllers.iter().any(|name| matches!(name.as_str(), "nodeipam" | "node-ipam-controller")) {
        arguments.push("--allocate-node-cidrs".to_owned());
        arguments.push(format!("--cluster-cidr={}", spec.cluster_cidrs.join(",")));
        arguments.push(format!("--service-cluster-ip-range={}", spec.service_cidrs.join(",")));
    }
    arguments.extend(spec.controller_manager_arguments.iter().cloned());
    arguments
}
