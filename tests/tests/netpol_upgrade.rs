//! The agent is killed, replaced and upgraded, and policies are edited, while somebody who is kept out floods the pod and
//! connections of those who are let in stand: nothing leaks, nothing breaks.

use std::{
    io::{self, Read, Write},
    net::{IpAddr, SocketAddr, TcpListener, TcpStream},
    thread,
    time::Duration,
};

use kube_router::apply::bpf;
use kube_router_common::config::SCHEMA;
use kube_router_tests::{
    agent::Agent,
    lab::{Lab, Node, NodeSpec, Pod, Serve},
    objects::{self, Manifests},
    pace,
    pins::Pins,
    probe::{FirstTry, Flood, Kept, Sniffer, Transport, first_try},
    process::Process,
};
use serde_json::{Value, json};

const LONG: Duration = Duration::from_secs(120);
/// The pod serves there, and the client may ask.
const PORT: u16 = 8080;
/// The client serves there, and the pod may ask.
const BACK: u16 = 9090;
/// The same for connections of which the test holds both ends.
const HELD: u16 = 1;
/// With programs: four pods', and the node's own.
const INTERFACES: u64 = 5;

/// Connections each way and family.
fn each() -> usize {
    pace::choose(25, 3)
}

fn patience() -> Duration {
    pace::choose(Duration::from_secs(5), Duration::from_secs(20))
}

/// Both ends of a connection; here it is the one who was called that speaks first.
struct Pair {
    caller: TcpStream,
    called: TcpStream,
}

impl Pair {
    fn talk(&mut self) -> io::Result<()> {
        self.called.write_all(b"!")?;
        self.caller.read_exact(&mut [0])?;
        self.caller.write_all(b"?")?;
        self.called.read_exact(&mut [0])
    }
}

/// web is isolated both ways; client is not; flood and storm are kept out.
struct Siege {
    manifests: Manifests,
    pins: Pins,
    agent: Option<Agent>,
    node: Node,
    pods: Vec<Pod>,
    sniffer: Sniffer,
    floods: Vec<Flood>,
    _servers: [Process; 2],
    _lab: Lab,
}

fn rules(edit: usize) -> Value {
    let client = json!({"podSelector": {"matchLabels": {"app": "client"}}});
    let mut spec = json!({
        "podSelector": {"matchLabels": {"app": "web"}},
        "policyTypes": ["Ingress", "Egress"],
        "ingress": [{"from": [client], "ports": [{"port": PORT, "endPort": PORT + HELD}, {"port": PORT, "protocol": "UDP"}]}],
        "egress": [{"to": [client], "ports": [{"port": BACK, "endPort": BACK + HELD}]}],
    });
    // What changes is about others: peers, prefixes, ports, and both at once.
    let other = match edit % 5 {
        0 => json!(null),
        1 => json!({"from": [{"podSelector": {"matchLabels": {"app": "nobody"}}}]}),
        2 => json!({"from": [{"ipBlock": {"cidr": format!("172.16.{edit}.0/24")}}], "ports": [{"port": 53}]}),
        3 => json!({"from": [client], "ports": [{"port": 7000, "endPort": 7000 + edit}]}),
        _ => json!({"from": [{"ipBlock": {"cidr": "10.0.0.0/8", "except": ["10.247.0.0/16"]}}]}),
    };
    if !other.is_null() {
        spec["ingress"].as_array_mut().unwrap().insert(edit % 2, other);
    }
    objects::policy("default", "web", spec)
}

impl Siege {
    fn new(prefix: &str) -> Siege {
        let mut lab = Lab::unique(prefix).unwrap();
        let spec = NodeSpec::new("n1", &["192.168.80.1/24"], &["10.247.1.0/24", "fd00:10:247:1::/64"]);
        let node = lab.node(spec.unwrap()).unwrap();
        let mut pods = Vec::new();
        for (name, last) in [("web", 16), ("client", 200), ("flood", 201), ("storm", 202)] {
            let addresses = [format!("10.247.1.{last}"), format!("fd00:10:247:1::{last:x}")];
            pods.push(lab.pod("n1", name, &[&addresses[0], &addresses[1]]).unwrap());
        }
        let server = |pod: &Pod, port: u16| Serve::new().tcp(port).udp(port).start(&pod.ns, &pod.name).unwrap();
        let servers = [server(&pods[0], PORT), server(&pods[1], BACK)];
        let manifests = Manifests::new().unwrap();
        manifests.put("node", &[objects::node(&node), objects::namespace("default", json!({}))]).unwrap();
        let known: Vec<Value> = pods.iter().map(|pod| objects::pod(pod, json!({"app": pod.name}))).collect();
        manifests.put("pods", &known).unwrap();
        manifests.put("policy", &[rules(0)]).unwrap();
        let knockers: Vec<IpAddr> = pods[2..].iter().flat_map(|pod| pod.addresses.clone()).collect();
        let sniffer = pods[0].ns.run(|| Sniffer::open(knockers)).unwrap();
        let pins = Pins::new().unwrap();
        let (agent, floods) = (None, Vec::new());
        let mut siege = Siege { manifests, pins, agent, node, pods, sniffer, floods, _servers: servers, _lab: lab };
        siege.start_agent();
        let targets: Vec<SocketAddr> = siege.pods[0].addresses.iter().map(|ip| SocketAddr::new(*ip, PORT)).collect();
        let pause = pace::choose(Duration::from_micros(200), Duration::from_millis(50));
        siege.floods.push(Flood::start_blindly(&siege.pods[2].ns, targets.clone(), pause).unwrap());
        siege.floods.push(Flood::start(&siege.pods[3].ns, targets, pause));
        siege
    }

    fn start_agent(&mut self) {
        let (manifests, pins) = (self.manifests.flag(), self.pins.flag());
        let flags = ["--run-service-proxy=false", "--run-router=false", "--enable-ipv6", "--metrics-port=20241"];
        let flags = [flags.as_slice(), &[&manifests, &pins]].concat();
        let mut agent = Agent::start(&self.node.ns, &self.node.name, &flags).unwrap();
        agent.wait_ready(LONG).unwrap();
        self.agent = Some(agent);
    }

    /// The policy goes, the floods stay: now each of them arrives, so it would have before.
    fn expect_flood_without_policy(&mut self) {
        assert_eq!(self.leaked(), 0, "until the end of the policy");
        self.manifests.remove("policy").unwrap();
        self.sniffer.wait_for_all(LONG).unwrap();
    }

    fn kill_agent(&mut self) {
        self.agent.take().expect("it runs").kill();
    }

    /// Both ways, both families.
    fn connect(&self, transport: Transport) -> Vec<Kept> {
        let mut kept = Vec::new();
        for (from, to, port) in [(1, 0, PORT), (0, 1, BACK)] {
            // The pod may not ask by UDP.
            if transport == Transport::Udp && from == 0 {
                continue;
            }
            for ip in &self.pods[to].addresses {
                let to = SocketAddr::new(*ip, port);
                let open = || Kept::open(transport, to, patience()).unwrap();
                kept.extend((0..each()).map(|_| self.pods[from].ns.run(open)));
            }
        }
        kept
    }

    fn sent(&self) -> u64 {
        self.floods.iter().map(|flood| flood.sent()).sum()
    }

    fn pairs(&self) -> Vec<Pair> {
        let mut pairs = Vec::new();
        for (from, to, port) in [(1, 0, PORT), (0, 1, BACK)] {
            for ip in &self.pods[to].addresses {
                let at = SocketAddr::new(*ip, port + HELD);
                let listener = self.pods[to].ns.run(|| TcpListener::bind(at)).unwrap();
                for _ in 0..each() {
                    let caller = self.pods[from].ns.run(|| TcpStream::connect(at)).unwrap();
                    let (called, _) = listener.accept().unwrap();
                    for end in [&caller, &called] {
                        end.set_read_timeout(Some(patience())).unwrap();
                    }
                    pairs.push(Pair { caller, called });
                }
            }
        }
        pairs
    }

    /// What came in of those who are kept out, since the last look.
    fn leaked(&self) -> usize {
        self.sniffer.arrivals().unwrap().len()
    }

    #[track_caller]
    fn expect(&self, when: &str, (kept, pairs): (&mut [Kept], &mut [Pair])) {
        let count = kept.len() + pairs.len();
        // Each that is silent takes its time.
        let mute = pairs.iter_mut().filter_map(|one| one.talk().err()).map(|error| error.to_string());
        let deaf = kept.iter_mut().filter_map(|one| one.check().err()).map(|error| error.to_string());
        let broken: Vec<String> = mute.chain(deaf).take(3).collect();
        assert!(broken.is_empty(), "{when}: of {count} connections some broke: {broken:?}");
        assert_eq!(self.leaked(), 0, "{when}: packets of those who are kept out");
        for ip in &self.pods[0].addresses {
            let new = self.pods[1].ns.run(|| first_try(SocketAddr::new(*ip, PORT), patience()));
            assert!(matches!(new, Ok(FirstTry { again: 0, .. })), "{when}: a new connection: {new:?}");
        }
    }
}

/// Orders that an agent carried out, by its metrics.
fn writes(agent: &Agent) -> u64 {
    let (_, text) = agent.http(20241, "/metrics").unwrap();
    let line = text.lines().find(|line| line.starts_with("kube_router_kernel_writes_total{plane=\"policy\"}"));
    line.and_then(|line| line.rsplit(' ').next()?.parse::<f64>().ok()).map_or(0, |count| count as u64)
}

#[test]
#[ignore = "needs root and BPF: cargo xtask test --tier 3 --filter netpol_upgrade"]
fn agents_come_and_go_and_policies_change_under_flood() {
    let mut siege = Siege::new("npu");
    let mut kept = siege.connect(Transport::Tcp);
    kept.extend(siege.connect(Transport::Udp));
    let mut pairs = siege.pairs();
    let count = kept.len() + pairs.len();
    siege.expect("at first", (&mut kept, &mut pairs));

    siege.kill_agent();
    thread::sleep(Duration::from_secs(1));
    siege.expect("without an agent", (&mut kept, &mut pairs));
    siege.start_agent();
    siege.expect("after a restart", (&mut kept, &mut pairs));
    let agent = siege.agent.as_ref().unwrap();
    let lines: Vec<String> = agent.log().into_iter().filter(|line| line.contains("programming")).collect();
    assert_eq!(writes(agent), INTERFACES, "programs are replaced, and nothing else is written");
    assert!(lines.is_empty(), "tables were written: {lines:#?}");

    for edit in 1..=pace::choose(50, 5) {
        siege.manifests.put("policy", &[rules(edit)]).unwrap();
        if edit % pace::choose(10, 5) == 0 {
            siege.expect(&format!("after {edit} edits"), (&mut kept, &mut pairs));
        } else {
            thread::sleep(Duration::from_millis(40));
        }
    }
    thread::sleep(Duration::from_secs(1));
    siege.expect("after the edits", (&mut kept, &mut pairs));

    // In the middle of edits, and started into others.
    for round in 0..pace::choose(3, 1) {
        siege.manifests.put("policy", &[rules(round * 3 + 1)]).unwrap();
        siege.kill_agent();
        siege.manifests.put("policy", &[rules(round * 3 + 3)]).unwrap();
        siege.start_agent();
        siege.expect("killed amid edits", (&mut kept, &mut pairs));
    }
    println!("{count} connections, {} SYNs sent, none arrived", siege.sent());
    siege.expect_flood_without_policy();
}

/// UDP says of no packet whether it opens something, so after tables were made anew a flow is known again from its
/// initiator's next packet on. That is what asking is.
#[test]
#[ignore = "needs root and BPF: cargo xtask test --tier 3 --filter netpol_upgrade"]
fn another_schema_takes_over_under_flood() {
    let mut siege = Siege::new("npx");
    let mut kept = siege.connect(Transport::Tcp);
    kept.extend(siege.connect(Transport::Udp));
    let mut pairs = siege.pairs();
    siege.expect("at first", (&mut kept, &mut pairs));
    for schema in [SCHEMA - 1, SCHEMA + 1].into_iter().take(pace::choose(2, 1)) {
        siege.kill_agent();
        siege.pins.become_of(schema).unwrap();
        let other = siege.pins.of_schema(schema);
        let theirs = Pins::tables(&other).unwrap();
        siege.expect("what the other agent left", (&mut kept, &mut pairs));
        siege.start_agent();
        siege.expect("after the change", (&mut kept, &mut pairs));
        assert!(!other.exists(), "what the other one left goes");
        let ours = Pins::tables(&bpf::root(siege.pins.path())).unwrap();
        assert!(ours.len() > 10 && ours.len() == theirs.len() && ours.is_disjoint(&theirs), "{ours:?}, {theirs:?}");
    }
    println!("{} connections, {} SYNs sent, none arrived", kept.len() + pairs.len(), siege.sent());
    siege.expect_flood_without_policy();
}
