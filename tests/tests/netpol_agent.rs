//! Network policy by running agents: two nodes, three pods, this machine's kernel.

use std::{net::SocketAddr, time::Duration};

use kube_router_tests::{
    agent::Agent,
    lab::{Lab, Node, NodeSpec, Pod, Serve},
    objects::{self, Manifests},
    pins::Pins,
    probe::{Answer, Kept, ProbeError, Transport, tcp_get},
    process::{Process, eventually},
};
use serde_json::{Value, json};

const PATIENCE: Duration = Duration::from_secs(5);
const LONG: Duration = Duration::from_secs(60);

struct Cluster {
    manifests: Manifests,
    agents: Vec<Agent>,
    nodes: Vec<Node>,
    _servers: Vec<Process>,
    pods: Vec<Pod>,
    pins: Vec<Pins>,
    _lab: Lab,
}

impl Cluster {
    fn new(prefix: &str) -> Cluster {
        let mut lab = Lab::unique(prefix).unwrap();
        let mut nodes = Vec::new();
        for i in 1..=2 {
            let addresses = [format!("192.168.78.{i}/24"), format!("fd00:78::{i}/64")];
            let cidrs = [format!("10.245.{i}.0/24"), format!("fd00:10:245:{i}::/64")];
            let spec = NodeSpec::new(&format!("n{i}"), &[&addresses[0], &addresses[1]], &[&cidrs[0], &cidrs[1]]);
            nodes.push(lab.node(spec.unwrap()).unwrap());
        }
        lab.route_pods().unwrap();
        let mut servers = Vec::new();
        let mut pods = Vec::new();
        for (name, node, last) in [("web", 1, 17), ("near", 1, 18), ("far", 2, 33)] {
            let addresses = [format!("10.245.{node}.{last}"), format!("fd00:10:245:{node}::{last:x}")];
            let pod = lab.pod(&format!("n{node}"), name, &[&addresses[0], &addresses[1]]).unwrap();
            servers.push(Serve::new().tcp(8080).udp(8080).start(&pod.ns, name).unwrap());
            pods.push(pod);
        }
        let manifests = Manifests::new().unwrap();
        let objects: Vec<Value> = nodes.iter().map(objects::node).collect();
        manifests.put("nodes", &objects).unwrap();
        manifests.put("namespaces", &[objects::namespace("default", json!({}))]).unwrap();
        let objects: Vec<Value> = pods.iter().map(|pod| objects::pod(pod, json!({"app": pod.name}))).collect();
        manifests.put("pods", &objects).unwrap();
        Cluster { manifests, agents: Vec::new(), nodes, _servers: servers, pods, pins: Vec::new(), _lab: lab }
    }

    fn start(&mut self) {
        for node in 0..2 {
            self.pins.push(Pins::new().unwrap());
            self.start_one(node);
        }
    }

    fn start_one(&mut self, node: usize) {
        let (manifests, pins) = (self.manifests.flag(), self.pins[node].flag());
        let flags = ["--run-service-proxy=false", "--run-router=false", "--enable-ipv6", &manifests, &pins];
        let mut agent = Agent::start(&self.nodes[node].ns, &self.nodes[node].name, &flags).unwrap();
        agent.wait_ready(LONG).unwrap();
        self.agents.insert(node, agent);
    }

    fn pod(&self, name: &str) -> &Pod {
        self.pods.iter().find(|pod| pod.name == name).unwrap()
    }

    fn ask(&self, from: &str, to: &str, ipv4: bool) -> Result<Answer, ProbeError> {
        let to = SocketAddr::new(self.pod(to).address(ipv4).unwrap(), 8080);
        self.pod(from).ns.run(|| tcp_get(to, PATIENCE))
    }

    /// Who of the pods reaches `web`, by both families.
    fn reach_web(&self) -> Vec<&str> {
        let mut who = Vec::new();
        for from in ["near", "far"] {
            let answers = [true, false].map(|ipv4| self.ask(from, "web", ipv4));
            match answers.iter().filter(|answer| answer.is_ok()).count() {
                0 => {}
                2 => who.push(from),
                _ => who.push("one family"),
            }
        }
        who
    }

    fn expect_web(&self, expected: &[&str]) {
        let what = format!("{expected:?} reach web");
        eventually(&what, LONG, || self.reach_web() == expected).unwrap();
    }
}

fn allow_from(app: &str) -> Value {
    json!({
        "podSelector": {"matchLabels": {"app": "web"}},
        "ingress": [{"from": [{"podSelector": {"matchLabels": {"app": app}}}]}],
    })
}

#[test]
#[ignore = "needs root and BPF: cargo xtask test --tier 3"]
fn policies_come_change_and_go() {
    let mut cluster = Cluster::new("netpola");
    cluster.start();
    cluster.expect_web(&["near", "far"]);
    let deny = json!({"podSelector": {"matchLabels": {"app": "web"}}});
    cluster.manifests.put("policy", &[objects::policy("default", "web", deny)]).unwrap();
    cluster.expect_web(&[]);
    // With an answer.
    assert!(matches!(cluster.ask("far", "web", true), Err(ProbeError::Refused | ProbeError::Unreachable)));
    // The node itself may always.
    let web = SocketAddr::new(cluster.pod("web").address(true).unwrap(), 8080);
    cluster.nodes[0].ns.run(|| tcp_get(web, PATIENCE)).unwrap();
    assert!(cluster.nodes[1].ns.run(|| tcp_get(web, PATIENCE)).is_err(), "another node may not");

    for app in ["near", "far"] {
        cluster.manifests.put("policy", &[objects::policy("default", "web", allow_from(app))]).unwrap();
        cluster.expect_web(&[app]);
    }
    cluster.manifests.remove("policy").unwrap();
    cluster.expect_web(&["near", "far"]);
}

#[test]
#[ignore = "needs root and BPF: cargo xtask test --tier 3"]
fn a_restart_writes_nothing_and_connections_live_on() {
    let mut cluster = Cluster::new("netpolr");
    cluster.manifests.put("policy", &[objects::policy("default", "web", allow_from("far"))]).unwrap();
    cluster.start();
    cluster.expect_web(&["far"]);
    let web = SocketAddr::new(cluster.pod("web").address(true).unwrap(), 8080);
    let mut kept = cluster.pod("far").ns.run(|| Kept::open(Transport::Tcp, web, PATIENCE)).unwrap();
    kept.ask().unwrap();
    let mut agent = cluster.agents.remove(0);
    agent.kill();
    drop(agent);
    kept.ask().unwrap();
    assert_eq!(cluster.reach_web(), ["far"], "without an agent");
    cluster.start_one(0);
    kept.ask().unwrap();
    assert_eq!(cluster.reach_web(), ["far"]);
    let (_, metrics) = cluster.agents[0].http(20244, "/healthz").map(|_| (0, cluster.agents[0].log())).unwrap();
    let programming = metrics.iter().filter(|line| line.contains("programming")).count();
    assert_eq!(programming, 0, "{metrics:#?}");
}
