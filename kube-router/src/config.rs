//! The validated configuration: plain data. The command-line types stop at `cli`, which builds this.

use std::{net::SocketAddr, path::PathBuf, time::Duration};

use ipnet::IpNet;
use kube_router_common::sizes::Sizes;

use crate::apply::IpvsTimeouts;

/// Where objects come from. Exactly one source feeds an agent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Source {
    /// A Kubernetes API server: `kubeconfig` (with `master` overriding its server), else `master`, else in-cluster.
    Kubernetes { kubeconfig: Option<PathBuf>, master: Option<String> },
    /// A YAML file, or a directory of them, watched for changes.
    Manifests(PathBuf),
}

#[derive(Clone, Debug)]
pub struct Config {
    /// Name of this node's Node object.
    pub node_name: Box<str>,
    pub source: Source,
    /// Longest wait for the first complete view.
    pub cache_sync_timeout: Duration,
    /// File to which the event stream is written as JSON lines.
    pub record: Option<PathBuf>,
    pub http: HttpConfig,
    pub proxy: ProxyConfig,
    pub firewall: FirewallConfig,
    pub programs: ProgramsConfig,
    /// Unix socket on which the running agent answers `kube-router dump`.
    pub socket: PathBuf,
}

/// HTTP endpoints; `None` = switched off.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct HttpConfig {
    /// `/healthz` and `/readyz`.
    pub health: Option<SocketAddr>,
    pub metrics: Option<SocketAddr>,
    /// `--metrics-path`.
    pub metrics_path: String,
}

/// The service proxy's switches, named after the original's flags.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ProxyConfig {
    /// `--run-service-proxy`
    pub enabled: bool,
    /// `--enable-ipv4`, `--enable-ipv6`
    pub ipv4: bool,
    pub ipv6: bool,
    /// `--masquerade-all`
    pub masquerade_all: bool,
    /// `--run-router`: connections outside this node's pod CIDRs are masqueraded.
    pub masquerade_outside_pod_cidrs: bool,
    /// `--hairpin-mode`
    pub hairpin_all: bool,
    /// `--nodeport-bindon-all-ip`
    pub node_port_all_addresses: bool,
    /// `--ipvs-permit-all`
    pub guard: bool,
    /// `--ipvs-graceful-termination` with `--ipvs-graceful-period` as fallback; `None` = remove at once.
    pub graceful_period: Option<Duration>,
    /// `--ipvs-sync-period`: the periodic full pass.
    pub sync_period: Duration,
    /// `--excluded-cidrs`: virtual servers in here are never removed.
    pub excluded_cidrs: Vec<IpNet>,
    /// `--service-cluster-ip-range`, `--service-external-ip-range`, `--loadbalancer-ip-range`
    pub cluster_ip_ranges: Vec<IpNet>,
    pub external_ip_ranges: Vec<IpNet>,
    pub load_balancer_ranges: Vec<IpNet>,
    /// `--strict-external-ip-validation`
    pub strict_external_ips: bool,
    /// `--service-{tcp,tcpfin,udp}-timeout`
    pub timeouts: IpvsTimeouts,
}

impl Default for ProxyConfig {
    /// The original's defaults.
    fn default() -> Self {
        ProxyConfig {
            enabled: true,
            ipv4: true,
            ipv6: false,
            masquerade_all: false,
            masquerade_outside_pod_cidrs: true,
            hairpin_all: false,
            node_port_all_addresses: false,
            guard: true,
            graceful_period: None,
            sync_period: Duration::from_secs(300),
            excluded_cidrs: Vec::new(),
            cluster_ip_ranges: vec![IpNet::new([10, 96, 0, 0].into(), 12).expect("a valid CIDR")],
            external_ip_ranges: Vec::new(),
            load_balancer_ranges: Vec::new(),
            strict_external_ips: true,
            timeouts: IpvsTimeouts::default(),
        }
    }
}

/// Network policy's switches, named after the original's flags where it has them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FirewallConfig {
    /// `--run-firewall`
    pub enabled: bool,
    /// `--netpol-default-deny`
    pub default_deny: bool,
    /// `--netpol-reject=drop`
    pub silent: bool,
    /// `--netpol-keep-established`
    pub keep_established: bool,
    /// `--netpol-anti-spoofing`
    pub antispoof: bool,
    /// `--iptables-sync-period`: the periodic full pass.
    pub sync_period: Duration,
    /// `--cni-socket`: where the network plugin asks; `None`: nobody listens.
    pub cni_socket: Option<PathBuf>,
}

impl FirewallConfig {
    /// No policy is enforced, and nobody's addresses are looked at.
    pub fn off() -> Self {
        FirewallConfig { enabled: false, antispoof: false, ..FirewallConfig::default() }
    }
}

impl Default for FirewallConfig {
    /// Policy is enforced, with the original's defaults.
    fn default() -> Self {
        FirewallConfig {
            enabled: true,
            default_deny: false,
            silent: false,
            keep_established: false,
            antispoof: true,
            sync_period: Duration::from_secs(300),
            cni_socket: None,
        }
    }
}

/// What network policy and the service fast path share: the BPF programs and their tables.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ProgramsConfig {
    /// An agent without them does not start.
    pub needed: bool,
    /// `--service-fastpath`
    pub fastpath: Fastpath,
    /// `--bpf-directory`: where maps, programs and links are pinned.
    pub pins: PathBuf,
    /// `--netpol-max-flows` and its like.
    pub sizes: Sizes,
}

/// Do packets to a pod of this node take the short way, past the stack?
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fastpath {
    /// Those that meet nothing there which they are to meet.
    Auto,
    On,
    /// What has begun goes on.
    Off,
}

impl Default for ProgramsConfig {
    /// As policy needs them.
    fn default() -> Self {
        ProgramsConfig {
            needed: true,
            fastpath: Fastpath::Auto,
            pins: PathBuf::from("/sys/fs/bpf/kube-router"),
            sizes: Sizes::default(),
        }
    }
}
