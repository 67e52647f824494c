//! Nodes, pods and clients as network namespaces on one machine.
//!
//! ```text
//!   pod --veth-- kube-bridge [node namespace] eth0 --veth-- br0 [fabric namespace] --veth-- eth0 [outside namespace]
//! ```
//!
//! Every node has a `kube-bridge` with the first address of each of its pod CIDRs, as the CNI bridge plugin would make
//! it; a pod's default route is that address. Nodes have no default route: a packet for an address that nobody
//! programmed stays on the machine, so an answer always comes from a pod of the lab. Routes between the nodes' pod
//! CIDRs are put there by [`Lab::route_pods`], the place of a router.
//!
//! The lab knows nothing about services. It removes what it made and only that, also when a test panics.

mod namespace;
mod serve;
mod spec;
mod wire;

use std::{collections::BTreeMap, net::IpAddr, path::Path, process::Command};

use anyhow::{Context, Result, bail};
use ipnet::IpNet;

pub use self::{
    namespace::Namespace,
    serve::Serve,
    spec::{Node, NodeSpec, Pod, first_address},
    wire::Wire,
};

/// The bridge that connects a node's pods.
pub const POD_BRIDGE: &str = "kube-bridge";

/// A laboratory. Dropping it removes its namespaces and whatever still runs in them.
pub struct Lab {
    prefix: String,
    fabric: Namespace,
    nodes: BTreeMap<String, Node>,
    pods: BTreeMap<String, Pod>,
    outside: Vec<Namespace>,
    /// Number of the next interface; never used twice, so a removed pod's name cannot return too early.
    next: usize,
}

impl Lab {
    /// An empty lab whose namespaces are called `<prefix>-<name>`. Needs root.
    pub fn new(prefix: &str) -> Result<Lab> {
        if !Path::new("/proc/sys/net/bridge").exists() {
            // A kernel without the module can still do everything but filter between pods of one bridge.
            let _ = load_modules(&["br_netfilter"]);
        }
        let fabric = Namespace::create(&format!("{prefix}-fabric"))?;
        let lab = Lab {
            prefix: prefix.to_owned(),
            fabric,
            nodes: BTreeMap::new(),
            pods: BTreeMap::new(),
            outside: Vec::new(),
            next: 0,
        };
        quiet_ipv6(&lab.fabric)?;
        for key in ["net/bridge/bridge-nf-call-iptables", "net/bridge/bridge-nf-call-ip6tables"] {
            if lab.fabric.sysctl(key).is_some() {
                lab.fabric.set_sysctl(key, "0")?;
            }
        }
        lab.fabric.ip(&["link set lo up".into(), "link add br0 type bridge".into(), "link set br0 up".into()])?;
        Ok(lab)
    }

    /// A lab whose prefix carries this process's number, so that tests can run beside each other.
    pub fn unique(prefix: &str) -> Result<Lab> {
        Lab::new(&format!("{prefix}{}", std::process::id()))
    }

    /// Adds a node.
    pub fn node(&mut self, spec: NodeSpec) -> Result<Node> {
        if self.nodes.contains_key(&spec.name) {
            bail!("node {} exists already", spec.name);
        }
        let namespace = self.namespace(&spec.name)?;
        let node = Node {
            name: spec.name,
            ns: namespace,
            interface: spec.interface,
            addresses: spec.addresses,
            pod_cidrs: spec.pod_cidrs,
        };
        // Known from here on, so that a failure below does not leave the namespace behind.
        self.nodes.insert(node.name.clone(), node.clone());
        quiet_ipv6(&node.ns)?;
        for (key, value) in [
            ("net/ipv4/ip_forward", "1"),
            ("net/ipv6/conf/all/forwarding", "1"),
            ("net/ipv4/conf/all/rp_filter", "0"),
            ("net/ipv4/conf/default/rp_filter", "0"),
        ] {
            node.ns.set_sysctl(key, value)?;
        }
        for key in ["net/bridge/bridge-nf-call-iptables", "net/bridge/bridge-nf-call-ip6tables"] {
            if node.ns.sysctl(key).is_some() {
                node.ns.set_sysctl(key, "1")?;
            }
        }
        self.plug(&node.ns, &node.interface)?;
        let mut lines = vec!["link set lo up".to_owned()];
        lines.extend(node.addresses.iter().map(|address| add_address(*address, &node.interface)));
        lines.push(format!("link set {} up", node.interface));
        // A bridge otherwise takes the lowest address of its ports, and changes it when a pod comes or goes.
        let number = self.nodes.len();
        lines.push(format!(
            "link add {POD_BRIDGE} address 0a:58:00:00:{:02x}:{:02x} type bridge",
            number >> 8,
            number & 255
        ));
        for cidr in &node.pod_cidrs {
            let gateway = IpNet::new(first_address(cidr), cidr.prefix_len())?;
            lines.push(add_address(gateway, POD_BRIDGE));
        }
        lines.push(format!("link set {POD_BRIDGE} up"));
        node.ns.ip(&lines)?;
        Ok(node)
    }

    /// A machine on the nodes' network that is not of the cluster. It routes nothing and knows no route but its own
    /// network; see [`Lab::route`].
    pub fn outside(&mut self, name: &str, addresses: &[&str]) -> Result<Namespace> {
        let namespace = self.namespace(name)?;
        self.outside.push(namespace.clone());
        quiet_ipv6(&namespace)?;
        self.plug(&namespace, "eth0")?;
        let mut lines = vec!["link set lo up".to_owned()];
        for address in addresses {
            let address = address.parse().with_context(|| format!("address {address} of {name}"))?;
            lines.push(add_address(address, "eth0"));
        }
        lines.push("link set eth0 up".into());
        namespace.ip(&lines)?;
        Ok(namespace)
    }

    /// A pod on `node` with these addresses, each inside one of the node's pod CIDRs.
    pub fn pod(&mut self, node: &str, name: &str, addresses: &[&str]) -> Result<Pod> {
        self.add_pod(node, name, addresses, false)
    }

    /// The same with hairpin mode on its bridge port: the bridge may send a packet back to the pod it came from.
    pub fn pod_with_hairpin(&mut self, node: &str, name: &str, addresses: &[&str]) -> Result<Pod> {
        self.add_pod(node, name, addresses, true)
    }

    fn add_pod(&mut self, node: &str, name: &str, addresses: &[&str], hairpin: bool) -> Result<Pod> {
        let node = self.nodes.get(node).with_context(|| format!("no node {node}"))?.clone();
        let mut inside = vec!["link set lo up".to_owned()];
        let mut routes = Vec::new();
        let mut own = Vec::new();
        for address in addresses {
            let address: IpAddr = address.parse().with_context(|| format!("address {address} of {name}"))?;
            let cidr = node.pod_cidrs.iter().find(|cidr| cidr.contains(&address));
            let cidr = cidr.with_context(|| format!("{address} is in no pod CIDR of {}", node.name))?;
            own.push(address);
            inside.push(add_address(IpNet::new(address, cidr.prefix_len())?, "eth0"));
            routes.push(format!("route add default via {}", first_address(cidr)));
        }
        inside.push("link set eth0 up".into());
        inside.append(&mut routes);

        let namespace = self.namespace(name)?;
        let port = format!("veth{}", self.number());
        let pod =
            Pod { name: name.to_owned(), ns: namespace, node: node.name.clone(), port: port.clone(), addresses: own };
        self.pods.insert(pod.name.clone(), pod.clone());
        quiet_ipv6(&pod.ns)?;
        let mut outside = vec![
            format!("link add {port} type veth peer name eth0 netns {}", pod.ns.name()),
            format!("link set {port} master {POD_BRIDGE} up"),
        ];
        if hairpin {
            outside.push(format!("link set {port} type bridge_slave hairpin on"));
        }
        node.ns.ip(&outside)?;
        pod.ns.ip(&inside)?;
        Ok(pod)
    }

    /// Takes a pod away with everything in it, as a node's end of a pod: no farewell is sent.
    pub fn remove_pod(&mut self, name: &str) -> Result<()> {
        let pod = self.pods.remove(name).with_context(|| format!("no pod {name}"))?;
        let node = self.nodes.get(&pod.node).with_context(|| format!("no node {}", pod.node))?;
        node.ns.ip(&[format!("link delete {}", pod.port)])?;
        pod.ns.remove()
    }

    /// Routes from every node to the pod CIDRs of all others, over the first address of the same family.
    pub fn route_pods(&self) -> Result<()> {
        for here in self.nodes.values() {
            let mut lines = Vec::new();
            for there in self.nodes.values().filter(|there| there.name != here.name) {
                for cidr in &there.pod_cidrs {
                    if let Some(via) = there.address(cidr.addr().is_ipv4()) {
                        lines.push(format!("route replace {cidr} via {via}"));
                    }
                }
            }
            here.ns.ip(&lines)?;
        }
        Ok(())
    }

    /// One route: `destination` (CIDR) over `via`.
    pub fn route(&self, from: &Namespace, destination: &str, via: &str) -> Result<()> {
        from.ip(&[format!("route replace {destination} via {via}")])
    }

    /// Cuts a node from the others (`false`), or joins it again.
    pub fn connect(&self, node: &str, connected: bool) -> Result<()> {
        let node = self.nodes.get(node).with_context(|| format!("no node {node}"))?;
        // Downed at the far end, so that the node keeps its addresses and routes.
        let state = if connected { "up" } else { "down" };
        self.fabric.ip(&[format!("link set {} {state}", fabric_port(&node.ns, &self.prefix))])
    }

    pub fn nodes(&self) -> impl Iterator<Item = &Node> {
        self.nodes.values()
    }

    pub fn pods(&self) -> impl Iterator<Item = &Pod> {
        self.pods.values()
    }

    /// An empty namespace of this lab.
    fn namespace(&self, name: &str) -> Result<Namespace> {
        Namespace::create(&format!("{}-{name}", self.prefix))
    }

    fn number(&mut self) -> usize {
        self.next += 1;
        self.next
    }

    /// An interface in `namespace` on the network between the nodes; still down.
    fn plug(&self, namespace: &Namespace, interface: &str) -> Result<()> {
        let port = fabric_port(namespace, &self.prefix);
        self.fabric.ip(&[
            format!("link add {port} type veth peer name {interface} netns {}", namespace.name()),
            format!("link set {port} master br0 up"),
        ])
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        let pods = self.pods.values().map(|pod| &pod.ns);
        let nodes = self.nodes.values().map(|node| &node.ns);
        for namespace in pods.chain(&self.outside).chain(nodes).chain([&self.fabric]) {
            if let Err(error) = namespace.remove() {
                eprintln!("lab: {} stays behind: {error:#}", namespace.name());
            }
        }
    }
}

/// The port of `namespace` on the fabric's bridge: its short name, as far as an interface name goes (15 bytes).
fn fabric_port(namespace: &Namespace, prefix: &str) -> String {
    let short = namespace.name().strip_prefix(prefix).unwrap_or(namespace.name()).trim_start_matches('-');
    format!("p-{}", &short[short.len().saturating_sub(13)..])
}

fn add_address(address: IpNet, interface: &str) -> String {
    let nodad = if address.addr().is_ipv6() { " nodad" } else { "" };
    format!("address add {address} dev {interface}{nodad}")
}

/// No waiting for duplicate addresses, no addresses from strangers.
fn quiet_ipv6(namespace: &Namespace) -> Result<()> {
    for key in ["net/ipv6/conf/all", "net/ipv6/conf/default"] {
        namespace.set_sysctl(&format!("{key}/accept_dad"), "0")?;
        namespace.set_sysctl(&format!("{key}/accept_ra"), "0")?;
    }
    Ok(())
}

/// Loads kernel modules; built-in ones count as loaded.
pub fn load_modules(names: &[&str]) -> Result<()> {
    let mut command = Command::new("modprobe");
    command.arg("-a").args(names);
    crate::process::output(command).map(drop)
}
