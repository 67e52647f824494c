//! The cluster of the scenarios, with agents on both nodes.

use std::{
    net::SocketAddr,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};
use serde_json::Value;

use super::{
    objects::Objects,
    plan::{self, BEACONS, PODS, PORTS},
    probe::{Outcome, Probe, ask_all, ask_everywhere, has_sctp},
    scenario::Change,
    services,
};
use crate::{
    agent::Agent,
    lab::{Lab, Namespace, Node, NodeSpec, Pod, Serve},
    objects::{self as kube, Manifests},
    pace,
    pins::Pins,
    probe::{ProbeError, Transport},
    process::Process,
};

/// How long things may take.
#[derive(Clone, Copy, Debug)]
pub struct Patience {
    /// One answer.
    pub answer: Duration,
    /// An agent that starts, or a change until it is in force.
    pub change: Duration,
}

impl Patience {
    pub const HOST: Patience = Patience { answer: Duration::from_secs(3), change: Duration::from_secs(30) };
    /// An emulated machine under load.
    pub const EMULATED: Patience = Patience { answer: Duration::from_secs(10), change: Duration::from_secs(120) };

    /// As this machine needs it.
    pub fn here() -> Patience {
        pace::choose(Patience::HOST, Patience::EMULATED)
    }
}

pub struct Cluster {
    pub objects: Objects,
    pub manifests: Manifests,
    pub agents: Vec<Agent>,
    pub nodes: Vec<Node>,
    /// Of the network, and of no node.
    pub outside: Namespace,
    pub pins: Vec<Pins>,
    pub patience: Patience,
    /// Indices of [`PORTS`] that this kernel can serve.
    pub ports: Vec<usize>,
    /// As they were written last, if there are any.
    services: Option<Vec<Value>>,
    servers: Vec<Process>,
    pub lab: Lab,
}

impl Cluster {
    /// Nodes, pods, their servers, and manifests of all of it; no agent yet.
    pub fn new(prefix: &str, patience: Patience) -> Result<Cluster> {
        let mut lab = Lab::unique(prefix)?;
        let mut nodes = Vec::new();
        for node in 1..=2 {
            let addresses = [format!("192.168.79.{node}/24"), format!("fd00:79::{node}/64")];
            let cidrs = [format!("10.246.{node}.0/24"), format!("fd00:10:246:{node}::/64")];
            let spec = NodeSpec::new(&format!("n{node}"), &[&addresses[0], &addresses[1]], &[&cidrs[0], &cidrs[1]])?;
            nodes.push(lab.node(spec)?);
        }
        lab.route_pods()?;
        let outside = lab.outside("outside", &["192.168.79.100/24", "fd00:79::100/64"])?;
        for node in 1..=2 {
            lab.route(&outside, &format!("10.246.{node}.0/24"), &format!("192.168.79.{node}"))?;
            lab.route(&outside, &format!("fd00:10:246:{node}::/64"), &format!("fd00:79::{node}"))?;
        }
        let ports: Vec<usize> =
            (0..PORTS.len()).filter(|port| PORTS[*port].0 != Transport::Sctp || has_sctp()).collect();
        let mut serve = Serve::new();
        for port in &ports {
            serve = match PORTS[*port] {
                (Transport::Tcp, port) => serve.tcp(port),
                (Transport::Udp, port) => serve.udp(port),
                (Transport::Sctp, port) => serve.sctp(port),
            };
        }
        let mut servers = Vec::new();
        for number in 0..PODS.len() {
            let addresses = [true, false].map(|v4| plan::address(number, v4).to_string());
            let (node, name) = (format!("n{}", plan::node_of(number)), plan::lab_name(number));
            // The bridge may send a packet back to the pod that it came from, as the way to itself through a service needs.
            let pod = lab.pod_with_hairpin(&node, &name, &[&addresses[0], &addresses[1]])?;
            servers.push(serve.start(&pod.ns, &name)?);
        }
        for (index, name) in BEACONS.iter().enumerate() {
            let addresses = [true, false].map(|v4| plan::beacon(index + 1, v4).to_string());
            let pod = lab.pod(&format!("n{}", index + 1), name, &[&addresses[0], &addresses[1]])?;
            servers.push(Serve::new().tcp(80).tcp(81).start(&pod.ns, name)?);
        }
        let cluster = Cluster {
            objects: Objects::default(),
            manifests: Manifests::new()?,
            agents: Vec::new(),
            nodes,
            outside,
            pins: Vec::new(),
            patience,
            ports,
            services: None,
            servers,
            lab,
        };
        let nodes: Vec<Value> = cluster.nodes.iter().map(kube::node).collect();
        cluster.manifests.put("nodes", &nodes)?;
        cluster.write()?;
        Ok(cluster)
    }

    /// Services in front of every pod, which follow what becomes of it.
    pub fn add_services(&mut self) -> Result<()> {
        self.services = Some(Vec::new());
        self.write_services().map(drop)
    }

    /// True: they have changed.
    fn write_services(&mut self) -> Result<bool> {
        let Some(written) = &mut self.services else { return Ok(false) };
        let wanted = services::all(&self.objects, &self.ports);
        let changed = *written != wanted;
        if changed {
            self.manifests.put("services", &wanted)?;
            *written = wanted;
        }
        Ok(changed)
    }

    /// An agent on each node.
    pub fn start(&mut self, flags: &[&str]) -> Result<()> {
        for index in 0..self.nodes.len() {
            self.pins.push(Pins::new()?);
            let agent = self.start_agent(index, flags)?;
            self.agents.push(agent);
        }
        for agent in &mut self.agents {
            agent.wait_ready(self.patience.change)?;
        }
        Ok(())
    }

    /// One more agent on a node whose tables stay; not waited for.
    pub fn start_agent(&self, index: usize, flags: &[&str]) -> Result<Agent> {
        let own = [self.manifests.flag(), self.pins[index].flag()];
        let mut all: Vec<&str> = vec!["--enable-ipv6", &own[0], &own[1]];
        all.extend(flags);
        Agent::start(&self.nodes[index].ns, &self.nodes[index].name, &all)
    }

    /// Writes the objects as they are now.
    pub fn write(&self) -> Result<()> {
        self.manifests.put("cluster", &self.objects.manifest())
    }

    /// Makes changes, and waits until both agents enforce them.
    pub fn change(&mut self, changes: &[Change]) -> Result<()> {
        self.begin_change(changes)?;
        // The beacons are lit while the agents still write what else came with them, which takes a slow machine a while.
        // What comes after that they take in after it.
        self.begin_change(&[])
    }

    /// Makes changes, and waits until both agents enforce some of them.
    pub fn begin_change(&mut self, changes: &[Change]) -> Result<()> {
        for change in changes {
            self.objects.apply(*change)?;
        }
        self.objects.beacon_port = if self.objects.beacon_port == 80 { 81 } else { 80 };
        let services_changed = self.write_services()?;
        self.write()?;
        self.wait_for_beacons()?;
        // They are in another file: what comes after both is taken in after both.
        if services_changed { self.begin_change(&[]) } else { Ok(()) }
    }

    /// The agents of both nodes enforce what was written last.
    fn wait_for_beacons(&self) -> Result<()> {
        let deadline = Instant::now() + self.patience.change;
        let other = |port| if port == 80 { 81 } else { 80 };
        let beacon = |name: &str| self.lab.pods().find(|pod| pod.name == name).context("no beacon");
        let ask = |from: &str, node, port| -> Result<(Namespace, Vec<Probe>)> {
            let to = (plan::beacon(node, true), port).into();
            // A connection that the change ends halfway is silent from then on.
            let at_most = Some(self.patience.answer / 3);
            Ok((beacon(from)?.ns.clone(), vec![Probe { at_most, ..Probe::new(Transport::Tcp, to) }]))
        };
        let (open, shut) = (self.objects.beacon_port, other(self.objects.beacon_port));
        let mut questions = Vec::new();
        for port in [open, shut] {
            questions.push(ask(BEACONS[1], 1, port)?);
            questions.push(ask(BEACONS[0], 2, port)?);
        }
        loop {
            let outcomes = ask_everywhere(&questions, self.patience.answer);
            let lit: Vec<bool> = outcomes.iter().map(|outcome| outcome[0].is_ok()).collect();
            if lit == [true, true, false, false] {
                return Ok(());
            }
            if Instant::now() >= deadline {
                let logs: Vec<String> = self.agents.iter().map(|agent| agent.log().join("\n")).collect();
                bail!("the agents did not take in a change: beacons {lit:?}\n{}", logs.join("\n---\n"));
            }
            thread::sleep(Duration::from_millis(10));
        }
    }

    /// One question from a pod (`x/a`).
    pub fn ask(&self, from: &str, transport: Transport, to: SocketAddr) -> Result<Outcome> {
        Ok(self.ask_from(&self.named(from)?.ns, transport, to))
    }

    /// One question from anywhere.
    pub fn ask_from(&self, ns: &Namespace, transport: Transport, to: SocketAddr) -> Outcome {
        let outcomes = ns.run(|| ask_all(&[Probe::new(transport, to)], self.patience.answer));
        outcomes.into_iter().next().unwrap_or(Err(ProbeError::TimedOut))
    }

    pub fn pod(&self, number: usize) -> Result<Pod> {
        let name = plan::lab_name(number);
        self.lab.pods().find(|pod| pod.name == name).cloned().with_context(|| format!("no pod {name}"))
    }

    /// By its name, `x/a`.
    pub fn named(&self, name: &str) -> Result<Pod> {
        self.pod(plan::pod(name).with_context(|| format!("no pod {name}"))?)
    }

    /// Its server has to be ended before the pod is.
    pub fn servers(&mut self) -> &mut Vec<Process> {
        &mut self.servers
    }
}
