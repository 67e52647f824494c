//! The cluster of the demonstration, and the agents on it.
//!
//! In: the cast. Out: namespaces that behave like three nodes, five pods and a client, with one kube-router on each
//! node. Pods find each other by static routes: connecting pods is another network's task here.

use std::{collections::BTreeMap, net::IpAddr, time::Duration};

use anyhow::{Context, Result};

use super::{
    cast::{Cast, POD_PORT, PodRole, SERVICE_RANGE, Scheduling},
    feed::{self, Feed},
    narrator::{Narrator, Place},
};
use crate::{
    agent::{self, Agent},
    lab::{Lab, Namespace, NodeSpec, Pod, Serve, load_modules},
    oracle,
    pins::Pins,
    process::{Process, eventually},
};

/// The uplink of every node.
pub const INTERFACE: &str = "ens32";

/// Address of the client outside.
const CLIENT: &str = "192.168.10.200";

/// For anything that should happen; an emulated machine under load needs long.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// Fields end in this order: first those who work in the namespaces.
pub struct Stage {
    agents: BTreeMap<String, Agent>,
    /// By node: where its agent's tables of policy are.
    pins: BTreeMap<String, Pins>,
    servers: BTreeMap<String, Process>,
    pub feed: Box<dyn Feed>,
    flags: Vec<String>,
    client: Namespace,
    pub cast: Cast,
    pub lab: Lab,
}

impl Stage {
    /// Builds everything and waits until every agent says that it is ready.
    pub fn build(cast: Cast, from_cluster: bool, narrator: &mut Narrator) -> Result<Stage> {
        narrator.act("A small cluster");
        load_modules(&["ip_vs", "ip_vs_rr", "dummy", "br_netfilter", "nf_conntrack"])
            .context("a kernel with IPVS is needed (`cargo xtask demo` brings one in a virtual machine)")?;
        let mut lab = Lab::new("demo")?;
        for node in &cast.nodes {
            let spec = NodeSpec::new(&node.name, &[&format!("{}/24", node.address)], &[&node.pod_cidr])?;
            lab.node(spec.interface(INTERFACE))?;
            narrator.say(format_args!("node           {} on {INTERFACE}, its pods in {}", node.address, node.pod_cidr));
        }
        lab.route_pods()?;
        let mut servers = BTreeMap::new();
        for role in &cast.pods {
            // As with kubelet's `--hairpin-mode hairpin-veth`, so that a pod can reach itself through its service.
            let pod = lab.pod_with_hairpin(&role.node, &role.name, &[&role.address.to_string()])?;
            servers.insert(role.name.clone(), Serve::new().tcp(POD_PORT).start(&pod.ns, &role.name)?);
            narrator.say(format_args!("pod            {} {:9} on {}", role.name, role.address, role.node));
        }
        let client = lab.outside("client", &[&format!("{CLIENT}/24")])?;
        narrator.say(format_args!("client outside {CLIENT}"));
        let feed = feed::open(from_cluster, &cast, &mut lab, narrator)?;
        let flags = [
            format!("--service-cluster-ip-range={SERVICE_RANGE}"),
            "--masquerade-all".to_owned(),
            "--run-router=false".to_owned(),
        ];
        let flags = feed.flags().into_iter().chain(flags).collect();
        let mut stage =
            Stage { agents: BTreeMap::new(), pins: BTreeMap::new(), servers, feed, flags, client, cast, lab };
        narrator.say("\nOn each node the agent is started:\n");
        let nodes: Vec<String> = stage.cast.nodes.iter().map(|node| node.name.clone()).collect();
        for node in &nodes {
            stage.start_agent(node, narrator)?;
        }
        for node in &nodes {
            stage.wait_ready(node)?;
        }
        stage.settle(narrator, "every agent is ready, and every node has the same services", &Scheduling::DEFAULT);
        Ok(stage)
    }

    pub fn start_agent(&mut self, node: &str, narrator: &mut Narrator) -> Result<()> {
        if !self.pins.contains_key(node) {
            self.pins.insert(node.to_owned(), Pins::new()?);
        }
        let place = self.node(node)?;
        // One machine plays all nodes, and there is one BPF file system on it.
        let pins = self.pins.get(node).map(Pins::flag);
        let flags: Vec<&str> = self.flags.iter().chain(&pins).map(String::as_str).collect();
        let agent = Agent::start(place.ns, node, &flags)?;
        let line = format!("kube-router --hostname-override={node} {} &", flags.join(" "));
        narrator.shown(place.name, &line, "")?;
        self.agents.insert(node.to_owned(), agent);
        Ok(())
    }

    pub fn wait_ready(&mut self, node: &str) -> Result<()> {
        self.agent(node)?.wait_ready(5 * PATIENCE)
    }

    pub fn agent(&mut self, node: &str) -> Result<&mut Agent> {
        self.agents.get_mut(node).with_context(|| format!("no agent on {node}"))
    }

    pub fn agents(&self) -> impl Iterator<Item = (&str, &Agent)> {
        self.agents.iter().map(|(node, agent)| (node.as_str(), agent))
    }

    /// The prompt of a node.
    pub fn node(&self, name: &str) -> Result<Place<'_>> {
        let node = self.lab.nodes().find(|node| node.name == name).with_context(|| format!("no node {name}"))?;
        Ok(Place { name: &node.name, ns: &node.ns })
    }

    pub fn pod(&self, name: &str) -> Result<&Pod> {
        self.lab.pods().find(|pod| pod.name == name).with_context(|| format!("no pod {name}"))
    }

    pub fn client(&self) -> Place<'_> {
        Place { name: "outside", ns: &self.client }
    }

    /// Asks the agent of a node in front of the audience, as an operator there would.
    pub fn ask_agent(&self, narrator: &mut Narrator, node: &str, arguments: &[&str]) -> Result<String> {
        let agent = self.agents.get(node).with_context(|| format!("no agent on {node}"))?;
        let socket = format!("--socket={}", agent.socket().display());
        let output = agent::run(agent.ns(), &[arguments, &[&socket]].concat())?;
        narrator.shown(node, &Narrator::line("kube-router", &[arguments, &[&socket]].concat()), &output)?;
        Ok(output)
    }

    /// `--maps=` for commands that look at the tables of a node.
    pub fn maps(&self, node: &str) -> Result<String> {
        let pins = self.pins.get(node).with_context(|| format!("no tables on {node}"))?;
        Ok(format!("--maps={}", pins.path().display()))
    }

    /// One more pod; one that answers somewhere is called by its name.
    pub fn add_pod(&mut self, role: &PodRole, port: Option<u16>) -> Result<()> {
        let pod = self.lab.pod(&role.node, &role.name, &[&role.address.to_string()])?;
        if let Some(port) = port {
            self.servers.insert(role.name.clone(), Serve::new().tcp(port).start(&pod.ns, &role.name)?);
        }
        Ok(())
    }

    /// The client outside finds pods by their own addresses, too.
    pub fn let_client_reach_pods(&self) -> Result<()> {
        self.cast
            .nodes
            .iter()
            .try_for_each(|node| self.lab.route(&self.client, &node.pod_cidr, &node.address.to_string()))
    }

    /// Takes a pod away, with what runs in it.
    pub fn remove_pod(&mut self, role: &PodRole) -> Result<()> {
        self.servers.remove(&role.name);
        self.lab.remove_pod(&role.name)?;
        self.cast.pods.retain(|pod| pod.name != role.name);
        Ok(())
    }

    /// Waits until every node's IPVS rules are what they must be for the cast as it is now, and checks it.
    pub fn settle(&self, narrator: &mut Narrator, claim: &str, scheduling: &Scheduling) {
        let settled = eventually(claim, PATIENCE, || self.difference(scheduling).is_none());
        narrator
            .check(claim, settled.map_err(|_| self.difference(scheduling).unwrap_or_else(|| "too late".to_owned())));
    }

    /// The first node that differs, and in which lines.
    fn difference(&self, scheduling: &Scheduling) -> Option<String> {
        let servers = self.feed.api_servers();
        self.cast.nodes.iter().find_map(|role| {
            let expected = self.cast.rules(role.address, &servers, scheduling);
            let rules = self.node(&role.name).and_then(|place| oracle::ipvs_rules(place.ns));
            match rules {
                Err(error) => Some(format!("{}: {error:#}", role.name)),
                Ok(lines) => {
                    let seen = lines.into_iter().collect();
                    let missing: Vec<_> = expected.difference(&seen).collect();
                    let surplus: Vec<_> = seen.difference(&expected).collect();
                    let same = missing.is_empty() && surplus.is_empty();
                    (!same).then(|| format!("{}: missing {missing:?}, surplus {surplus:?}", role.name))
                }
            }
        })
    }

    /// The node whose prompt is shown most: the one that the document was written on.
    pub fn here(&self) -> Result<(String, IpAddr)> {
        let node = self.cast.nodes.get(1).context("a second node")?;
        Ok((node.name.clone(), node.address))
    }
}
