//! One node with an agent, a chain, a client that policy lets in, and two that it keeps out and that knock all the time at
//! every address a new pod may get.

use std::{
    net::{IpAddr, SocketAddr, TcpListener},
    sync::atomic::{AtomicU16, AtomicU32, Ordering},
    thread,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use kube_router_tests::{
    agent::Agent,
    chain::{Chain, Container, Said, Sandbox, usual_plugins},
    lab::{Lab, Node, NodeSpec, Pod},
    objects::{self, Manifests},
    pace,
    pins::Pins,
    probe::{FirstTry, Flood, ProbeError, Sniffer, first_try, first_try_from},
};
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::witness::{self, Witness};

pub const LONG: Duration = Duration::from_secs(120);
pub const PORT: u16 = 8080;
/// Where the client listens, so that a pod can be the one who begins.
pub const CLIENT_PORT: u16 = 9090;
/// Where pods call from: so many ports from this one on.
const FIRST_PORT: u16 = 10_000;
const PORTS: u16 = 20_000;
const METRICS_PORT: u16 = 20_241;
/// host-local gives these out one after the other, and begins again.
const RANGE: std::ops::Range<u8> = 16..32;

pub struct Field {
    pub manifests: Manifests,
    pub agent: Option<Agent>,
    pub pins: Pins,
    pub node: Node,
    pub client: Pod,
    pub floods: Vec<Flood>,
    pub chain: Chain,
    knockers: Vec<IpAddr>,
    witness: Witness,
    folder: TempDir,
    _lab: Lab,
}

impl Field {
    pub fn new(prefix: &str) -> Field {
        let mut lab = Lab::unique(prefix).unwrap();
        let spec = NodeSpec::new("n1", &["192.168.79.1/24"], &["10.246.1.0/24", "fd00:10:246:1::/64"]);
        let node = lab.node(spec.unwrap()).unwrap();
        let mut pods = Vec::new();
        for (name, last) in [("client", 200), ("flood", 201), ("storm", 202)] {
            let addresses = [format!("10.246.1.{last}"), format!("fd00:10:246:1::{last:x}")];
            pods.push(lab.pod("n1", name, &[&addresses[0], &addresses[1]]).unwrap());
        }
        let manifests = Manifests::new().unwrap();
        manifests.put("node", &[objects::node(&node), objects::namespace("default", json!({}))]).unwrap();
        let known: Vec<Value> = pods.iter().map(|pod| objects::pod(pod, json!({"app": pod.name}))).collect();
        manifests.put("known", &known).unwrap();
        let policy = json!({
            "podSelector": {"matchLabels": {"app": "web"}},
            "ingress": [{"from": [{"podSelector": {"matchLabels": {"app": "client"}}}]}],
        });
        manifests.put("policy", &[objects::policy("default", "web", policy)]).unwrap();
        let folder = TempDir::new().unwrap();
        let pins = Pins::new().unwrap();
        let range = |v4: bool| match v4 {
            true => json!([{"subnet": "10.246.1.0/24", "rangeStart": format!("10.246.1.{}", RANGE.start),
                            "rangeEnd": format!("10.246.1.{}", RANGE.end - 1)}]),
            false => json!([{"subnet": "fd00:10:246:1::/64", "rangeStart": format!("fd00:10:246:1::{:x}", RANGE.start),
                             "rangeEnd": format!("fd00:10:246:1::{:x}", RANGE.end - 1)}]),
        };
        let ours = json!({ "socket": folder.path().join("cni.sock"), "pins": pins.path() });
        let plugins = usual_plugins(&folder.path().join("leases"), &json!([range(true), range(false)]), ours);
        for ip in &pods[0].addresses {
            let listener = pods[0].ns.run(|| TcpListener::bind(SocketAddr::new(*ip, CLIENT_PORT)).unwrap());
            // Takes them in, so that there is room for the next one.
            thread::spawn(move || while listener.accept().is_ok() {});
        }
        let knockers = pods[1..].iter().flat_map(|pod| pod.addresses.clone()).collect();
        let targets: Vec<SocketAddr> = RANGE
            .flat_map(|last| [format!("10.246.1.{last}:{PORT}"), format!("[fd00:10:246:1::{last:x}]:{PORT}")])
            .map(|target| target.parse().unwrap())
            .collect();
        let mut field = Field {
            witness: Witness::call(&node, &pods[0]),
            manifests,
            agent: None,
            pins,
            node,
            client: pods[0].clone(),
            floods: Vec::new(),
            chain: Chain { version: "1.0.0", plugins, pause: Duration::ZERO },
            knockers,
            folder,
            _lab: lab,
        };
        field.start_agent();
        let pause = pace::choose(Duration::from_millis(1), Duration::from_millis(300));
        field.floods.push(Flood::start_blindly(&pods[1].ns, targets.clone(), pause).unwrap());
        field.floods.push(Flood::start(&pods[2].ns, targets, pause));
        field
    }

    pub fn start_agent(&mut self) {
        let (manifests, pins) = (self.manifests.flag(), self.pins.flag());
        let socket = format!("--cni-socket={}", self.folder.path().join("cni.sock").display());
        let metrics = format!("--metrics-port={METRICS_PORT}");
        let only = ["--run-service-proxy=false", "--run-router=false", "--enable-ipv6"];
        let flags = [&only[..], &[&manifests, &pins, &socket, &metrics]].concat();
        let mut agent = Agent::start(&self.node.ns, &self.node.name, &flags).unwrap();
        agent.wait_ready(LONG).unwrap();
        self.agent = Some(agent);
    }

    /// No farewell.
    pub fn kill_agent(&mut self) {
        let mut agent = self.agent.take().expect("it runs");
        agent.kill();
    }

    /// As the API server has it; without addresses it has not started yet.
    pub fn tell(&self, pod: &Start, addresses: &[String]) {
        self.manifests.put(&pod.name, &[object(pod, "web", &pod.uid, addresses)]).unwrap();
    }

    pub fn forget(&self, pod: &Start) {
        self.manifests.remove(&pod.name).unwrap();
    }

    pub fn add(&self, pod: &Start) -> Added {
        self.add_by(&self.chain, pod)
    }

    pub fn add_by(&self, chain: &Chain, pod: &Start) -> Added {
        let begin = std::time::Instant::now();
        let said = self.node.ns.run(|| chain.add(pod.container())).unwrap().done();
        let (took, at) = (begin.elapsed(), SystemTime::now().duration_since(UNIX_EPOCH).unwrap());
        self.forget_former_owner(&said.addresses());
        // A container's first deed.
        let listener = pod.sandbox.run(|| TcpListener::bind(("::", PORT)).unwrap());
        Added { took, at, said, _listener: listener }
    }

    /// The client's kernel may still have the hardware address of a pod that had this address before. ADD announces the new
    /// one, but what is handed over by different processors may come in another order: the client would then answer
    /// the first packet to the former owner. That is no loss of the agent's.
    fn forget_former_owner(&self, addresses: &[String]) {
        let forget: Vec<String> = addresses.iter().map(|ip| format!("neigh flush to {ip} dev eth0")).collect();
        self.client.ns.ip(&forget).unwrap();
    }

    pub fn del(&self, pod: &Start, added: &Added) {
        self.node.ns.run(|| self.chain.del(pod.container(), &added.said.json)).unwrap();
    }

    /// Why a packet of `pod` or for it may have been lost.
    pub fn evidence(&self, pod: &Start, added: &Added) -> String {
        let refused = self.agent.as_ref().map(|agent| witness::refused(agent, METRICS_PORT, &pod.name));
        let saw = self.witness.saw(&added.said.addresses(), pod.called_from());
        format!("{saw:#?}\n{refused:#?}\n{}", pod.sandbox.run(witness::counts))
    }

    /// From the client to the pod, by each of its addresses.
    pub fn knock(&self, added: &Added) -> Vec<Result<FirstTry, ProbeError>> {
        let addresses = added.said.addresses();
        let to = addresses.iter().map(|ip| SocketAddr::new(ip.parse().unwrap(), PORT));
        to.map(|to| self.client.ns.run(|| first_try(to, patience()))).collect()
    }

    /// From the pod to the client, by both families. From a port that nobody who had its addresses before called from: the
    /// client's kernel may remember them for a minute, and answers the same ports as a connection that is over (RFC 9293,
    /// 3.10.7.4), so that the caller tries again.
    pub fn call_out(&self, pod: &Start) -> Vec<Result<FirstTry, ProbeError>> {
        static NEXT: AtomicU16 = AtomicU16::new(0);
        let port = FIRST_PORT + NEXT.fetch_add(1, Ordering::Relaxed) % PORTS;
        pod.called_from.store(port, Ordering::Relaxed);
        let to = self.client.addresses.iter().map(|ip| SocketAddr::new(*ip, CLIENT_PORT));
        to.map(|to| pod.sandbox.run(|| first_try_from(port, to, patience()))).collect()
    }

    /// The policy goes, the floods stay: at a pod that starts then each of them arrives, so it would have at all before.
    pub fn expect_flood_without_policy(&self) {
        self.manifests.remove("policy").unwrap();
        let pod = self.sandbox("open");
        self.tell(&pod, &[]);
        let added = self.add(&pod);
        self.tell(&pod, &added.said.addresses());
        // Some came before the pod's interface was guarded, which proves nothing.
        pod.sniffer.arrivals().unwrap();
        pod.sniffer.wait_for_all(LONG).unwrap();
        self.del(&pod, &added);
    }

    pub fn sandbox(&self, name: &str) -> Start {
        static NEXT: AtomicU32 = AtomicU32::new(1);
        let sandbox = Sandbox::new().unwrap();
        let sniffer = sandbox.run(|| Sniffer::open(self.knockers.clone())).unwrap();
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let netns = sandbox.path().to_string_lossy().into_owned();
        let uid = format!("00000000-0000-4000-8000-{number:012x}");
        Start {
            name: name.into(),
            id: format!("c{number}"),
            uid,
            called_from: AtomicU16::new(0),
            netns,
            sniffer,
            sandbox,
        }
    }
}

fn patience() -> Duration {
    pace::choose(Duration::from_secs(5), Duration::from_secs(20))
}

/// A pod that is to start, has started, or goes.
pub struct Start {
    pub name: String,
    pub id: String,
    pub uid: String,
    /// The port of its last call.
    called_from: AtomicU16,
    netns: String,
    sniffer: Sniffer,
    pub sandbox: Sandbox,
}

impl Start {
    pub fn container(&self) -> Container<'_> {
        Container { id: &self.id, netns: &self.netns, pod: &self.name, uid: Some(&self.uid) }
    }

    fn called_from(&self) -> u16 {
        self.called_from.load(Ordering::Relaxed)
    }

    /// Packets of those who are kept out, since the last look: before ADD returned, when nobody was there to hear them,
    /// and after.
    pub fn heard(&self, added: &Added) -> (usize, usize) {
        let all = self.sniffer.arrivals().unwrap();
        let early = all.iter().filter(|(at, _)| *at <= added.at).count();
        (early, all.len() - early)
    }
}

#[derive(Debug)]
pub struct Added {
    /// The whole chain.
    pub took: Duration,
    /// When it was done, since 1970.
    pub at: Duration,
    pub said: Said,
    _listener: TcpListener,
}

pub fn object(pod: &Start, app: &str, uid: &str, addresses: &[String]) -> Value {
    let ips: Vec<Value> = addresses.iter().map(|ip| json!({"ip": ip})).collect();
    let phase = if ips.is_empty() { "Pending" } else { "Running" };
    json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {"name": pod.name, "namespace": "default", "uid": uid, "labels": {"app": app}},
        "spec": {"nodeName": "n1", "containers": [{"name": "main", "image": "none"}]},
        "status": {"phase": phase, "podIP": addresses.first(), "podIPs": ips},
    })
}
