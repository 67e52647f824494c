//! The service fast path where no policy is enforced, by running agents on this machine's kernel: what is attached, what is
//! judged (nothing), and what becomes of it all as agents with other flags take over.
//!
//! This machine need not have IPVS, so rows of a service are written here as the agent would; the rest is the agent's.

use std::{
    fs,
    net::{IpAddr, SocketAddr},
    time::Duration,
};

use kube_router::apply::bpf::{self, BalanceMaps, Tables};
use kube_router_common::{
    balance::{Backend, RingKey, Vip},
    config::{Config, Iface},
    flow::Flow,
    policy::{Address, Peer, PodGroups, Service, ServiceKey},
};
use kube_router_tests::{
    agent::Agent,
    lab::{Lab, Node, NodeSpec, Pod, Serve},
    objects::{self, Manifests},
    pins::Pins,
    probe::{Answer, Kept, ProbeError, Transport, tcp_get, udp_ask},
    process::{Process, eventually},
};
use serde_json::json;

const PATIENCE: Duration = Duration::from_secs(5);
const LONG: Duration = Duration::from_secs(60);
const SERVICE: &str = "10.96.0.10:80";

struct Cluster {
    pins: Pins,
    web: Pod,
    near: Pod,
    manifests: Manifests,
    _servers: Vec<Process>,
    node: Node,
    _lab: Lab,
}

impl Cluster {
    /// One node, two pods that answer on 8080, and a policy that isolates one of them.
    fn new(prefix: &str) -> Cluster {
        let mut lab = Lab::unique(prefix).unwrap();
        let spec = NodeSpec::new("n1", &["192.168.79.1/24"], &["10.246.1.0/24"]);
        let node = lab.node(spec.unwrap()).unwrap();
        let mut servers = Vec::new();
        let [web, near] = [("web", 17), ("near", 18)].map(|(name, last)| {
            let pod = lab.pod("n1", name, &[&format!("10.246.1.{last}")]).unwrap();
            servers.push(Serve::new().tcp(8080).udp(8080).start(&pod.ns, name).unwrap());
            pod
        });
        let manifests = Manifests::new().unwrap();
        manifests.put("nodes", &[objects::node(&node)]).unwrap();
        manifests.put("namespaces", &[objects::namespace("default", json!({}))]).unwrap();
        let pods = [&web, &near].map(|pod| objects::pod(pod, json!({"app": pod.name})));
        manifests.put("pods", &pods).unwrap();
        let deny = json!({"podSelector": {"matchLabels": {"app": "web"}}});
        manifests.put("policy", &[objects::policy("default", "web", deny)]).unwrap();
        Cluster { pins: Pins::new().unwrap(), web, near, manifests, _servers: servers, node, _lab: lab }
    }

    fn start(&self, flags: &[&str]) -> Agent {
        let (manifests, pins) = (self.manifests.flag(), self.pins.flag());
        let all = [&["--run-router=false", &manifests, &pins][..], flags].concat();
        Agent::start(&self.node.ns, "n1", &all).unwrap()
    }

    /// Policy alone, in force.
    fn start_policy(&self) -> Agent {
        let mut agent = self.start(&["--run-service-proxy=false"]);
        agent.wait_ready(LONG).unwrap();
        assert!(self.ask().is_err(), "the policy is in force");
        agent
    }

    /// Services alone; returns when both pods are published.
    fn start_fast(&self) -> Agent {
        let mut agent = self.start(&["--run-firewall=false", "--service-fastpath=on"]);
        agent.process().wait_for_line(LONG, |line| line.contains("no policy is enforced")).unwrap();
        agent
    }

    fn web(&self) -> SocketAddr {
        SocketAddr::new(self.web.address(true).unwrap(), 8080)
    }

    fn ask(&self) -> Result<Answer, ProbeError> {
        self.near.ns.run(|| tcp_get(self.web(), PATIENCE))
    }

    fn tables(&self) -> Tables {
        Tables::open(&bpf::root(self.pins.path())).unwrap()
    }

    fn balance(&self) -> BalanceMaps {
        BalanceMaps::open(&bpf::root(self.pins.path())).unwrap()
    }

    fn flags(&self) -> u32 {
        self.tables().config().unwrap().flags
    }

    fn isolated(&self) -> usize {
        let pods = self.tables().pods.read_all().unwrap();
        pods.iter().filter(|(_, groups)| *groups != PodGroups::default()).count()
    }

    fn flows(&self) -> Vec<Flow> {
        self.tables().flows.read_all().unwrap().into_iter().map(|(_, flow)| flow).collect()
    }

    /// As the agent does with a service that IPVS has.
    fn serve(&self) {
        let (tables, balance) = (self.tables(), self.balance());
        let to: SocketAddr = SERVICE.parse().unwrap();
        let key = ServiceKey { address: address(to.ip()), port: to.port(), protocol: 6, pad: 0 };
        tables.peers.put(&key.address, &Peer { class: 20, flags: Peer::SERVICE }).unwrap();
        tables.services.put(&key, &Service::default()).unwrap();
        let flags = Backend::LIVE | Backend::OPEN;
        balance.backends.put(&1, &Backend { address: address(self.web().ip()), port: 8080, flags, vip: 1 }).unwrap();
        balance.rings.put(&RingKey { ring: 1, slot: 0 }, &1).unwrap();
        let vip = Vip { id: 1, ring: 1, slots: 1, scheduler: Vip::RR, ..Vip::default() };
        balance.vips.put(&key, &vip).unwrap();
    }

    fn open(&self) -> Result<Kept, ProbeError> {
        self.near.ns.run(|| Kept::open(Transport::Tcp, SERVICE.parse().unwrap(), PATIENCE))
    }
}

fn address(ip: IpAddr) -> Address {
    match ip {
        IpAddr::V4(ip) => Address::from_v4(ip.octets()),
        IpAddr::V6(ip) => Address(ip.octets()),
    }
}

#[test]
#[ignore = "needs root and BPF: cargo xtask test --tier 3"]
fn services_are_served_and_nothing_is_judged() {
    let cluster = Cluster::new("fastalone");
    assert!(cluster.start_policy().stop(LONG).unwrap().success());
    let agent = cluster.start_fast();
    // The older agent's policy is over, though the object is there.
    cluster.ask().unwrap();
    assert_eq!(cluster.isolated(), 0);
    assert_eq!(cluster.flags(), Config::NO_ANTISPOOF | Config::FAST | Config::FAST_FLOWS);
    let rows = cluster.tables().ifaces.read_all().unwrap();
    let published = rows.iter().filter(|(_, row)| row.flags & Iface::PUBLISHED != 0).count();
    assert_eq!(published, 2, "{rows:?}");
    assert!(rows.iter().all(|(_, row)| row.flags & Iface::DEFAULT_DENY == 0), "{rows:?}");
    assert!(!agent.cni_socket().exists());
    let explained =
        agent.command(&["explain", "--from=default/near", "--to=default/web"]).map_err(|e| format!("{e:#}"));
    assert!(explained.as_ref().is_err_and(|text| text.contains("--run-firewall=false")), "{explained:?}");

    // Only what takes a way past the stack has entries.
    let before = cluster.flows().len();
    cluster.near.ns.run(|| udp_ask(cluster.web(), PATIENCE)).unwrap();
    assert_eq!(cluster.flows().len(), before);
    cluster.serve();
    cluster.open().unwrap().check().unwrap();
    let of_service = cluster.flows().into_iter().filter(|flow| flow.is(Flow::NAT)).count();
    assert_eq!(of_service, 2, "{:?}", cluster.flows());
    assert!(cluster.flows().iter().all(|flow| flow.is(Flow::FAST)), "{:?}", cluster.flows());

    // Another pod's address, as with --netpol-anti-spoofing=false.
    let drops = || cluster.tables().drops.sums().unwrap();
    let before = drops();
    let near = &cluster.near.ns;
    near.command("ip", &["addr", "add", "10.246.1.99/32", "dev", "eth0"]).unwrap();
    near.command("ping", &["-c1", "-W5", "-I", "10.246.1.99", "10.246.1.1"]).unwrap();
    assert_eq!(drops(), before);
}

#[test]
#[ignore = "needs root and BPF: cargo xtask test --tier 3"]
fn agents_with_other_flags_take_over() {
    let cluster = Cluster::new("fastover");
    let mut agent = cluster.start_fast();
    cluster.serve();
    let mut kept = cluster.open().unwrap();
    kept.check().unwrap();
    assert!(agent.stop(LONG).unwrap().success());
    kept.check().unwrap();

    // Without programs: no new flow is balanced by rows that nobody keeps, the old one goes on.
    let mut agent = cluster.start(&["--run-firewall=false", "--service-fastpath=off"]);
    let rests = || cluster.balance().vips.read_all().unwrap().iter().all(|(_, vip)| vip.rests());
    eventually("the row rests", LONG, rests).unwrap();
    assert_eq!(cluster.flags(), Config::NO_ANTISPOOF | Config::FAST_FLOWS);
    assert!(cluster.open().is_err(), "nobody serves on this machine");
    kept.check().unwrap();
    assert!(agent.stop(LONG).unwrap().success());
    kept.check().unwrap();

    // Policy is in force again for new flows; the old one is judged.
    let mut agent = cluster.start_policy();
    assert!(!kept.is_alive(), "web is isolated");
    assert!(agent.stop(LONG).unwrap().success());

    // And out of force without programs to come, at once. When no flow needs the rest it is taken away.
    let mut agent = cluster.start(&["--run-firewall=false", "--service-fastpath=off"]);
    eventually("the policy is over", LONG, || cluster.ask().is_ok()).unwrap();
    assert!(agent.stop(LONG).unwrap().success());
    if cluster.pins.path().exists() && bpf::root(cluster.pins.path()).exists() {
        let tables = cluster.tables();
        for (key, _) in tables.flows.read_all().unwrap() {
            tables.flows.delete(&key).unwrap();
        }
    }
    let agent = cluster.start(&["--run-firewall=false", "--service-fastpath=off"]);
    eventually("nothing is left", LONG, || !cluster.pins.path().exists()).unwrap();
    cluster.ask().unwrap();
    drop(agent);
}

/// Pins of a container's own file system go with it, and with them connections that the node's stack never saw.
#[test]
#[ignore = "needs root and BPF: cargo xtask test --tier 3"]
fn without_the_hosts_file_system_nothing_goes_past_the_stack() {
    let cluster = Cluster::new("fastown");
    let container = ["unshare", "--mount", "sh", "-c", "while umount -l /sys/fs/bpf; do :; done; exec \"$0\" \"$@\""];
    let arguments =
        ["--run-router=false", "--run-service-proxy=false", &cluster.manifests.flag(), &cluster.pins.flag()];
    let mut agent = Agent::start_through(&container, &cluster.node.ns, "n1", &arguments).unwrap();
    agent.wait_ready(LONG).unwrap();
    assert!(cluster.ask().is_err(), "the policy is in force");
    let near = SocketAddr::new(cluster.near.address(true).unwrap(), 8080);
    cluster.web.ns.run(|| tcp_get(near, PATIENCE)).unwrap();
    let problems = agent.told("/v1/problems").unwrap();
    assert!(problems.contains("ProgramsNotKept") && problems.contains("hostPath"), "{problems}");
    let config = format!("{}/kr_config", bpf::root(cluster.pins.path()).display());
    let mounts = format!("--mount=/proc/{}/ns/mnt", agent.id());
    let shown = cluster.node.ns.command("nsenter", &[&mounts, "bpftool", "-j", "map", "dump", "pinned", &config]);
    let shown: serde_json::Value = serde_json::from_str(&shown.unwrap()).unwrap();
    let flags = shown[0]["formatted"]["value"]["flags"].as_u64().unwrap() as u32;
    assert_eq!(flags & (Config::FAST | Config::FAST_FLOWS), 0, "{shown}");
}

#[test]
#[ignore = "needs root and BPF: cargo xtask test --tier 3"]
fn without_programs_services_do_not_wait_unless_told_to() {
    let cluster = Cluster::new("fastnone");
    let nowhere = tempfile::tempdir().unwrap();
    let pins = format!("--bpf-directory={}", nowhere.path().display());
    let mut agent = cluster.start(&["--run-firewall=false", &pins]);
    eventually("it lives", LONG, || agent.health("/healthz").is_ok_and(|(status, _)| status == 200)).unwrap();
    for (flags, way_out) in [
        (&["--run-firewall=false", "--service-fastpath=on", &pins][..], "--service-fastpath=on"),
        (&["--run-service-proxy=false", &pins], "--run-firewall=false"),
    ] {
        drop(agent);
        agent = cluster.start(flags);
        let status = agent.process().wait(LONG).unwrap();
        let log = agent.log().join("\n");
        assert!(!status.success() && log.contains("BPF file system") && log.contains(way_out), "{status}: {log}");
    }
    assert_eq!(fs::read_dir(nowhere.path()).unwrap().count(), 0);
}
