//! A cluster with agents on its nodes, shared by the traffic tests.
//!
//! ```text
//!   client (outside) ---- n1: web-1, c1 ---- n2: web-2, c2 ---- n3: c3
//! ```
#![allow(dead_code, reason = "each test file uses a part of it")]

pub mod every_kind;
pub mod kube;
pub mod netpol;

use std::{net::IpAddr, time::Duration};

use kube_router_tests::{
    agent::Agent,
    lab::{Lab, Namespace, Node, NodeSpec, Pod, Serve, load_modules},
    objects::{self, Manifests},
    pins::Pins,
    process::Process,
};

/// For anything that should happen; an emulated machine under load needs long.
pub const PATIENCE: Duration = Duration::from_secs(60);
/// For one answer.
pub const ANSWER: Duration = Duration::from_secs(10);

/// IPVS alone: what is asked here is what it does, with its schedulers, its connections and its counters.
pub const IPVS: [&str; 2] = ["--run-firewall=false", "--service-fastpath=off"];

/// Flags of every agent here. The router's flag is left alone, so that masquerading spares pods as it does beside routing.
pub const FLAGS: [&str; 4] = [
    "--enable-ipv6",
    "--service-cluster-ip-range=10.96.0.0/12,fd00:10:96::/112",
    "--service-external-ip-range=203.0.113.0/25,2001:db8:113::/64",
    "--loadbalancer-ip-range=203.0.113.128/25,2001:db8:114::/64",
];

pub struct Cluster {
    pub manifests: Manifests,
    pub agents: Vec<Agent>,
    pub nodes: Vec<Node>,
    pub outside: Namespace,
    pub pins: Vec<Pins>,
    servers: Vec<Process>,
    pub lab: Lab,
}

impl Cluster {
    /// Three nodes, five pods and a client outside whose routes to services lead to n1. No agent yet.
    pub fn new(prefix: &str) -> Cluster {
        load_modules(&["ip_vs", "ip_vs_rr", "dummy", "sctp", "br_netfilter", "nf_conntrack"]).unwrap();
        let mut lab = Lab::unique(prefix).unwrap();
        let nodes: Vec<Node> = (1..=3)
            .map(|i| {
                let spec = NodeSpec::new(
                    &format!("n{i}"),
                    &[&format!("192.168.77.{i}/24"), &format!("fd00:77::{i}/64")],
                    &[&format!("10.244.{i}.0/24"), &format!("fd00:10:244:{i}::/64")],
                );
                lab.node(spec.unwrap()).unwrap()
            })
            .collect();
        lab.route_pods().unwrap();
        let outside = lab.outside("client", &["192.168.77.100/24", "fd00:77::100/64"]).unwrap();
        for range in ["10.96.0.0/12", "203.0.113.0/24"] {
            lab.route(&outside, range, "192.168.77.1").unwrap();
        }
        for range in ["fd00:10:96::/112", "2001:db8:113::/64", "2001:db8:114::/64"] {
            lab.route(&outside, range, "fd00:77::1").unwrap();
        }
        let mut cluster = Cluster {
            manifests: Manifests::new().unwrap(),
            agents: Vec::new(),
            nodes,
            outside,
            pins: Vec::new(),
            servers: Vec::new(),
            lab,
        };
        for (name, node, last) in [("web-1", 1, 17), ("c1", 1, 18), ("web-2", 2, 33), ("c2", 2, 34), ("c3", 3, 49)] {
            cluster.pod(name, node, last);
        }
        let objects: Vec<_> = cluster.nodes.iter().map(objects::node).collect();
        cluster.manifests.put("nodes", &objects).unwrap();
        cluster
    }

    /// A pod that answers TCP, UDP and SCTP on 8080.
    pub fn pod(&mut self, name: &str, node: u8, last: u8) -> Pod {
        self.make_pod(name, node, last, false)
    }

    /// One whose bridge port may send a frame back where it came from.
    pub fn hairpin_pod(&mut self, name: &str, node: u8, last: u8) -> Pod {
        self.make_pod(name, node, last, true)
    }

    fn make_pod(&mut self, name: &str, node: u8, last: u8, hairpin: bool) -> Pod {
        let addresses = [format!("10.244.{node}.{last}"), format!("fd00:10:244:{node}::{last:x}")];
        let addresses: Vec<&str> = addresses.iter().map(String::as_str).collect();
        let node = format!("n{node}");
        let pod = if hairpin {
            self.lab.pod_with_hairpin(&node, name, &addresses)
        } else {
            self.lab.pod(&node, name, &addresses)
        };
        let pod = pod.unwrap();
        self.servers.push(Serve::new().tcp(8080).udp(8080).sctp(8080).start(&pod.ns, name).unwrap());
        pod
    }

    pub fn find(&self, name: &str) -> Pod {
        self.lab.pods().find(|pod| pod.name == name).unwrap_or_else(|| panic!("no pod {name}")).clone()
    }

    pub fn node(&self, number: usize) -> &Node {
        &self.nodes[number - 1]
    }

    /// Starts an agent on each of these nodes and waits until all are ready.
    pub fn start(&mut self, nodes: &[usize], flags: &[&str]) {
        self.launch(nodes, &[&IPVS[..], flags].concat());
    }

    /// The same with services past IPVS where that can be, in the place of such agents that ran before.
    pub fn start_fast(&mut self, nodes: &[usize], flags: &[&str]) {
        let pods: Vec<_> = self.lab.pods().map(|pod| objects::pod(pod, serde_json::json!({}))).collect();
        self.manifests.put("pods", &pods).unwrap();
        self.agents.clear();
        self.pins.resize_with(nodes.len(), || Pins::new().unwrap());
        self.launch(nodes, flags);
    }

    fn launch(&mut self, nodes: &[usize], flags: &[&str]) {
        let manifests = self.manifests.flag();
        let start = |(at, number): (usize, &usize)| {
            let pins = self.pins.get(at).map(Pins::flag);
            let mut all: Vec<&str> = vec![&manifests];
            all.extend(FLAGS);
            all.extend(pins.as_deref());
            all.extend(flags);
            Agent::start(&self.node(*number).ns, &format!("n{number}"), &all).unwrap()
        };
        let mut agents: Vec<Agent> = nodes.iter().enumerate().map(start).collect();
        for agent in &mut agents {
            agent.wait_ready(PATIENCE * 2).unwrap();
        }
        self.agents.extend(agents);
    }
}

/// The namespace's own address of the family of `like`, for a node.
pub fn own(node: &Node, like: IpAddr) -> IpAddr {
    node.address(like.is_ipv4()).unwrap()
}
