//! The nodes and pods of the lab as a real cluster: its objects are on an API server beside this machine, pods get
//! their status from here as a kubelet would give it, and the agent reads as its service account.

use std::{fs, net::SocketAddr, thread, time::Duration};

use kube_router_tests::{
    agent::Agent,
    api::{Kubectl, Remote},
    lab::{Pod, Wire},
    objects,
    oracle::{self, Server},
};
use serde_json::Value;

use super::{Cluster, PATIENCE};

/// What an installation applies: service account, role, binding, DaemonSet.
pub const DEPLOY: &str = include_str!("../../../deploy/kube-router.yaml");

pub struct KubeCluster {
    /// Before the cluster: it listens in one of its namespaces.
    pub wire: Wire,
    pub remote: Remote,
    /// The agent's; it names the near end of the wire.
    pub kubeconfig: String,
    pub cluster: Cluster,
    /// Pods of the lab that no object stands for.
    idle: Vec<Pod>,
}

impl KubeCluster {
    /// Nodes n1 to n3 as objects, nothing else of us on the server. The wire is on n1.
    pub fn new(prefix: &str) -> KubeCluster {
        let cluster = Cluster::new(prefix);
        let remote = Remote::from_env().unwrap();
        let kubeconfig = std::env::var("KUBE_ROUTER_TEST_AGENT_KUBECONFIG").unwrap();
        let text = fs::read_to_string(&kubeconfig).unwrap();
        let (_, rest) = text.split_once("https://").unwrap();
        let served: SocketAddr = rest.split_once('"').unwrap().0.parse().unwrap();
        let far = SocketAddr::new(remote.host(), served.port());
        let wire = Wire::new(&cluster.node(1).ns, served.port(), far).unwrap();
        let idle = cluster.lab.pods().filter(|pod| pod.node == "n2").cloned().collect();
        let kube = KubeCluster { wire, remote, kubeconfig: format!("--kubeconfig={kubeconfig}"), cluster, idle };
        kube.reset();
        for node in &kube.cluster.nodes {
            kube.remote.apply(&objects::node(node).to_string()).unwrap();
            let addresses: Vec<_> = node.addresses.iter().map(|net| net.addr()).collect();
            kube.remote.set_node_addresses(&node.name, &addresses).unwrap();
        }
        kube
    }

    /// Removes what an earlier test left on the server.
    fn reset(&self) {
        let remove = |kinds: &str, more: &[&str]| {
            let words = ["delete", kinds, "--ignore-not-found", "--force", "--grace-period=0", "--wait=false"];
            self.remote.kubectl(&[&words, more].concat()).unwrap();
        };
        // In this order: a controller replaces what is missing below it.
        remove("deployments", &["--all"]);
        remove("replicasets", &["--all"]);
        remove("services", &["--field-selector=metadata.name!=kubernetes"]);
        remove("pods,endpointslices,nodes", &["--all"]);
        self.revoke();
    }

    /// Takes the agent's rights.
    pub fn revoke(&self) {
        let words = ["delete", "clusterrole,clusterrolebinding", "kube-router", "--ignore-not-found"];
        self.remote.kubectl(&words).unwrap();
    }

    /// Adds a pod of the lab on n2 to those that pod objects can become.
    pub fn spare_pod(&mut self, name: &str, last: u8) {
        let pod = self.cluster.pod(name, 2, last);
        self.idle.push(pod);
    }

    /// The kubelet of n2: starts pods that have no address, and lets those go that are asked to.
    pub fn kubelet(&mut self) {
        let list = self.remote.kubectl(&["get", "pods", "-o", "json"]).unwrap();
        let list: Value = serde_json::from_str(&list).unwrap();
        for pod in list["items"].as_array().unwrap() {
            let name = pod["metadata"]["name"].as_str().unwrap();
            let address = pod["status"]["podIP"].as_str();
            match (pod["metadata"]["deletionTimestamp"].is_string(), address) {
                (true, _) => {
                    let words = ["delete", "pod", name, "--force", "--grace-period=0", "--ignore-not-found"];
                    self.remote.kubectl(&words).unwrap();
                    let mut all = self.cluster.lab.pods();
                    let own = all.find(|pod| address.is_some_and(|text| pod.addresses[0].to_string() == text));
                    self.idle.extend(own.cloned());
                }
                (false, None) => {
                    let own = self.idle.pop().expect("an idle pod of the lab");
                    self.remote.set_pod_running("default", name, &own.addresses, true).unwrap();
                }
                (false, Some(_)) => {}
            }
        }
    }

    /// Waits, as kubelet, until `happened`.
    pub fn until(&mut self, what: &str, mut happened: impl FnMut(&KubeCluster) -> bool) {
        let begin = std::time::Instant::now();
        while !happened(self) {
            assert!(begin.elapsed() < PATIENCE * 2, "not in time: {what}\n{}", self.state());
            self.kubelet();
            thread::sleep(Duration::from_millis(300));
        }
        println!("{what}: {:.1} s", begin.elapsed().as_secs_f64());
    }

    /// `kubectl WORD WORD ...`
    pub fn kubectl(&self, line: &str) -> String {
        self.remote.kubectl(&line.split_whitespace().collect::<Vec<_>>()).unwrap()
    }

    /// An agent on n1 with the API server as its source.
    pub fn start_agent(&mut self, flags: &[&str]) {
        let kubeconfig = self.kubeconfig.clone();
        let agent = Agent::start(&self.cluster.node(1).ns, "n1", &[&[kubeconfig.as_str()], flags].concat()).unwrap();
        self.cluster.agents.push(agent);
    }

    pub fn agent(&mut self) -> &mut Agent {
        self.cluster.agents.last_mut().expect("an agent")
    }

    /// The virtual server `10.96.2.1:80` (TCP) of n1.
    pub fn server(&self, address: &str) -> Option<Server> {
        let wanted = format!("TCP {address}");
        self.servers().into_iter().find(|server| server.address.to_string() == wanted)
    }

    pub fn servers(&self) -> Vec<Server> {
        oracle::ipvs_servers(&self.cluster.node(1).ns).unwrap()
    }

    /// How many destinations a server of n1 has, all of weight 1; `None` without the server.
    pub fn count(&self, address: &str) -> Option<usize> {
        let weights = self.server(address)?.weights();
        Some(weights.into_iter().filter(|(_, weight)| *weight == 1).count())
    }

    /// Everything that explains a failure.
    pub fn state(&self) -> String {
        let rules = oracle::ipvs_rules(&self.cluster.node(1).ns).unwrap().join("\n");
        let logs: Vec<String> = self.cluster.agents.iter().flat_map(Agent::log).collect();
        let tail = logs[logs.len().saturating_sub(40)..].join("\n");
        let slices = self.remote.kubectl(&["get", "endpointslices,pods", "-o", "wide"]);
        format!("{rules}\n{tail}\n{}", slices.unwrap_or_else(|error| error.to_string()))
    }
}
