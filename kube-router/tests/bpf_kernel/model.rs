//! The chain from a policy to a packet, end to end: random objects, compiled by the compiler, written by the plane, and packets
//! run through the programs. Their verdict is what the text of Kubernetes says (`compile/policy/model.rs`), and what a
//! walk of the agent's rows and of the kernel's says.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

use kube_router::{
    apply::{
        PolicyPlane,
        bpf::{KernelPolicy, entries},
    },
    cluster::{ClusterState, Dirty},
    compile::policy::{
        Limits, PolicyCompiler, PolicyConfig, address_of,
        model::{self, Traffic},
    },
    desired::{
        interfaces::InterfaceChanges,
        policy::{Direction, PolicyTables},
    },
    explain::walk::walk,
    objects::{ObjectEvent, Pod, Protocol},
    plan::{enforcement::plan_enforcement, policy::plan_policy},
};
use kube_router_common::{
    config::Iface,
    hooks::Hook,
    packet::icmp,
    policy::{Address, Endpoint},
    sizes::Sizes,
    twin::{
        Packet,
        build::Build,
        fuzz::{self, Random},
    },
};

use crate::{
    cluster::{self, NODE, NODE_ADDRESSES},
    net::Pins,
    promises::in_a_namespace,
    rig::{DROP, Front, PASS, REDIRECT},
    run,
};

const VETHS: u32 = 200;
const MAC: [u8; 6] = [2, 0, 0, 0, 0, 9];

/// What a packet carries, and what the model is asked for it. `None`: allowed whatever the policies say.
#[derive(Clone, Copy, Debug)]
pub enum Carried {
    Ports(Protocol, u16),
    /// A message of ICMP that is like any packet without ports.
    Query,
    Echo,
    Gre,
}

impl Carried {
    pub fn any(random: &mut Random) -> Self {
        let port = [1, 53, 79, 80, 81, 443, 444, 65_535][random.below(8)];
        match random.below(10) {
            0 => Carried::Query,
            1 => Carried::Echo,
            2 => Carried::Gre,
            3 | 4 => Carried::Ports(Protocol::Udp, port),
            5 => Carried::Ports(Protocol::Sctp, port),
            _ => Carried::Ports(Protocol::Tcp, port),
        }
    }

    fn traffic(self) -> Option<Traffic> {
        match self {
            Carried::Ports(protocol, port) => Some(Traffic::Port(protocol, port)),
            Carried::Query | Carried::Gre => Some(Traffic::Portless),
            Carried::Echo => None,
        }
    }

    /// `number` makes every packet the first of a flow.
    fn packet(self, from: Address, to: Address, number: u16) -> Build {
        let v4 = from.is_v4();
        match self {
            Carried::Ports(Protocol::Tcp, port) => Build::tcp((from, number), (to, port), 2),
            Carried::Ports(Protocol::Udp, port) => Build::udp((from, number), (to, port), b"hello"),
            Carried::Ports(Protocol::Sctp, port) => Build::sctp((from, number), (to, port)),
            Carried::Query => Build::icmp(from, to, if v4 { 13 } else { 139 }, 0, &[0; 16]),
            Carried::Echo => Build::echo(from, to, if v4 { icmp::ECHO } else { icmp::ECHO_6 }, number),
            Carried::Gre => Build::new(from, to, 47, vec![0; 12]),
        }
    }
}

/// The agent's side, played.
pub struct Agent {
    pub cluster: ClusterState,
    pub compiler: PolicyCompiler,
    plane: KernelPolicy,
    front: Front,
    /// Pods' interfaces, by their number.
    veths: BTreeMap<u32, u32>,
    endpoints: BTreeMap<Address, Endpoint>,
}

impl Agent {
    /// With interfaces in this thread's namespace.
    pub fn start(pins: &Pins, sizes: &Sizes) -> Self {
        for index in VETHS..VETHS + cluster::OURS as u32 + 2 {
            if nix::net::if_::if_nametoindex(&*format!("v{index}")).is_err() {
                run("ip", &format!("link add v{index} index {index} type veth peer name w{index}"));
            }
        }
        let base = pins.root().parent().expect("a base").to_owned();
        let mut plane = KernelPolicy::open(&base, entries(sizes)).expect("plane");
        let front = Front::of(plane.dataplane());
        let compiler = PolicyCompiler::new(PolicyConfig { limits: Limits::of(sizes), ..PolicyConfig::new(NODE) });
        let (veths, endpoints) = (BTreeMap::new(), BTreeMap::new());
        Agent { cluster: ClusterState::new(), compiler, plane, front, veths, endpoints }
    }

    /// Takes events in and has the plane carry everything out.
    pub fn learn(&mut self, events: impl IntoIterator<Item = ObjectEvent>) {
        let mut dirty = Dirty::default();
        events.into_iter().for_each(|event| self.cluster.apply(event, &mut dirty));
        let node: BTreeSet<IpAddr> = NODE_ADDRESSES.map(|text| text.parse().expect("address")).into();
        loop {
            let changes = self.compiler.update(&self.cluster, &dirty, &node, &BTreeSet::new());
            let (mut ifaces, mut endpoints) = (BTreeMap::new(), BTreeMap::new());
            let pods: BTreeMap<u32, _> = self.compiler.local_pods().map(|(key, pod)| (pod, key)).collect();
            let gone: Vec<u32> = self.veths.keys().filter(|pod| !pods.contains_key(pod)).copied().collect();
            for pod in gone {
                ifaces.insert(self.veths.remove(&pod).expect("known"), None);
            }
            for pod in pods.keys().filter(|pod| !self.veths.contains_key(pod)).copied().collect::<Vec<_>>() {
                let taken: BTreeSet<u32> = self.veths.values().copied().collect();
                let free = (VETHS..).find(|veth| !taken.contains(veth)).expect("one");
                self.veths.insert(pod, free);
                ifaces.insert(free, Some(Iface { mac: MAC, flags: Iface::PUBLISHED, pod, netns: 0 }));
            }
            let wanted: BTreeMap<Address, Endpoint> = (self.compiler.state().endpoints.iter())
                .map(|(address, pod)| {
                    (*address, Endpoint { pod: *pod, ifindex: self.veths[pod], mac: MAC, pad: [0; 2] })
                })
                .collect();
            endpoints.extend(self.endpoints.keys().filter(|key| !wanted.contains_key(key)).map(|key| (*key, None)));
            let differs = |(address, row): &(&Address, &Endpoint)| self.endpoints.get(*address) != Some(*row);
            endpoints.extend(wanted.iter().filter(differs).map(|(address, row)| (*address, Some(*row))));
            self.endpoints = wanted;
            let interfaces = InterfaceChanges { ifaces, endpoints, ..InterfaceChanges::default() };
            let orders = plan_enforcement(plan_policy(&changes), &BTreeMap::new(), &interfaces);
            let (done, result) = self.plane.apply(&orders);
            result.unwrap_or_else(|error| panic!("order {:?}: {error}", orders[done]));
            self.compiler.confirm(changes.update);
            if !self.compiler.has_leftovers() {
                return;
            }
            dirty = Dirty::default();
        }
    }

    /// What the kernel's maps hold, without what only the agent knows.
    fn kernel(&mut self) -> PolicyTables {
        self.plane.observe().expect("maps").tables
    }

    pub fn forget_flows(&mut self) {
        let flows = &self.plane.dataplane().tables().flows;
        let keys: Vec<_> = flows.read_all().expect("flows").into_iter().map(|(key, _)| key).collect();
        flows.delete_all(&keys).expect("delete");
    }
}

/// One pair of objects and a packet.
#[derive(Clone, Debug)]
pub struct Question {
    /// Of this node.
    pub pod: Pod,
    pub address: Address,
    pub direction: Direction,
    pub peer: IpAddr,
    pub carried: Carried,
    /// Makes its packet the first of a flow.
    pub number: u16,
}

impl Question {
    fn is_own_node(&self) -> bool {
        self.direction == Direction::Ingress && NODE_ADDRESSES.iter().any(|text| text.parse() == Ok(self.peer))
    }
}

impl Agent {
    /// About pods of this node, all of one moment.
    pub fn questions(&mut self, random: &mut Random, count: u16) -> Vec<Question> {
        self.forget_flows();
        let keys: BTreeMap<u32, _> = self.compiler.local_pods().map(|(key, pod)| (pod, key)).collect();
        let owners: Vec<_> = self.compiler.state().endpoints.iter().map(|(to, pod)| (*to, keys[pod])).collect();
        let peers = cluster::addresses();
        let ask = |number| {
            let (address, pod) = owners[random.below(owners.len())];
            let family: Vec<&IpAddr> = peers.iter().filter(|peer| peer.is_ipv4() == address.is_v4()).collect();
            Question {
                pod: self.cluster.pod(pod).expect("a pod").clone(),
                address,
                direction: Direction::BOTH[random.below(2)],
                peer: *family[random.below(family.len())],
                carried: Carried::any(random),
                number: 1_024 + number,
            }
        };
        if owners.is_empty() { Vec::new() } else { (0..count).map(ask).collect() }
    }

    /// The API's text.
    pub fn model(&self, question: &Question) -> bool {
        let Some(traffic) = question.carried.traffic() else { return true };
        let judgement = model::judge(&self.cluster, &question.pod, question.direction, question.peer, traffic);
        judgement.allowed || question.is_own_node()
    }

    /// The agent's rows, and the kernel's.
    fn walks(&self, question: &Question, kernel: &PolicyTables) -> [bool; 2] {
        let Some(traffic) = question.carried.traffic() else { return [true; 2] };
        [self.compiler.state(), kernel].map(|tables| {
            let Ok(walk) = walk(tables, question.direction, question.address, address_of(question.peer), traffic);
            walk.allowed
        })
    }

    /// The programs, with a packet that begins a flow.
    pub fn run(&mut self, question: &Question) -> bool {
        if matches!(question.carried, Carried::Gre) {
            // Without ports there is one flow between two ends.
            self.forget_flows();
        }
        let (own, peer) = (question.address, address_of(question.peer));
        let (hook, packet) = match question.direction {
            Direction::Egress => (Hook::PodOut, question.carried.packet(own, peer, question.number)),
            Direction::Ingress => (Hook::PodIn, question.carried.packet(peer, own, question.number)),
        };
        let bytes = packet.with(|b| b.from_mac = MAC).bytes();
        let packet = Packet { bytes, ifindex: self.endpoints[&own].ifindex, note: 0, mark: 0, checksum: None };
        let ran = self.front.run(hook, &packet).expect("long enough");
        // Refused with an answer, or without one where the allowance is used up.
        assert!([PASS, DROP, REDIRECT].contains(&ran.verdict), "{question:?}: {}", ran.verdict);
        ran.verdict == PASS
    }
}

#[test]
#[ignore = "needs root and the BPF object: cargo xtask test --tier 2 --filter model_maps_and_packets"]
fn model_maps_and_packets_say_the_same() {
    let wanted = fuzz::number("KUBE_ROUTER_MODEL_PAIRS", 12_000);
    let seed = fuzz::seed();
    in_a_namespace(move || {
        let pins = Pins::new();
        let mut agent = Agent::start(&pins, &Sizes::default());
        let mut random = Random::new(seed);
        let mut seen = Seen::default();
        agent.learn((0..40).map(|_| cluster::event(&mut random)));
        while seen.pairs < wanted {
            agent.learn((0..1 + random.below(6)).map(|_| cluster::event(&mut random)));
            let kernel = agent.kernel();
            agree(&kernel, agent.compiler.state());
            seen.rounds += 1;
            for question in agent.questions(&mut random, 200) {
                let (wanted, walked) = (agent.model(&question), agent.walks(&question, &kernel));
                assert!(walked.iter().all(|allowed| *allowed == wanted), "{question:?}: rows {walked:?}");
                assert_eq!(agent.run(&question), wanted, "{question:?}: the programs say otherwise");
                seen.note(wanted, &question);
            }
        }
        println!("{seen:?}");
        assert!(seen.pairs >= wanted);
        // Nothing that the list names is missing.
        assert!(seen.allowed > wanted / 20 && seen.denied > wanted / 20 && seen.v6 > wanted / 5);
        assert!(seen.protocols.values().all(|count| *count > wanted / 50) && seen.protocols.len() == 6);
    });
}

/// How much of what there was.
#[derive(Debug, Default)]
struct Seen {
    rounds: u64,
    pairs: u64,
    allowed: u64,
    denied: u64,
    v6: u64,
    protocols: BTreeMap<String, u64>,
}

impl Seen {
    fn note(&mut self, allowed: bool, question: &Question) {
        self.pairs += 1;
        self.allowed += u64::from(allowed);
        self.denied += u64::from(!allowed);
        self.v6 += u64::from(question.peer.is_ipv6());
        let name = match question.carried {
            Carried::Ports(protocol, _) => protocol.name().to_owned(),
            other => format!("{other:?}"),
        };
        *self.protocols.entry(name).or_default() += 1;
    }
}

/// The maps are the rows that were compiled.
fn agree(kernel: &PolicyTables, wanted: &PolicyTables) {
    assert_eq!(kernel.rows, wanted.rows);
    assert_eq!(kernel.pods, wanted.pods);
    assert_eq!(kernel.endpoints, wanted.endpoints);
    assert_eq!(kernel.peers, wanted.peers);
    assert_eq!(kernel.cidrs, wanted.cidrs);
}
