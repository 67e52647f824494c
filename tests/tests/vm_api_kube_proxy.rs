//! kube-proxy in its IPVS mode as the oracle: the same objects, the same kernel, each program in a node namespace of its
//! own with the same addresses. Their virtual servers, destinations, weights and persistence must be equal, but for what
//! [`DIFFERENCES`] says and why. A difference that goes away fails the test just as a new one does.

mod common;

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    net::SocketAddr,
    process::Command,
    thread,
    time::{Duration, Instant},
};

use common::{
    PATIENCE,
    every_kind::{changed, services},
};
use kube_router_tests::{
    agent::Agent,
    api::{self, Kubectl, Remote},
    lab::{Lab, Namespace, NodeSpec, Wire, load_modules},
    objects::ServiceSpec,
    oracle::{self, Server},
};
use serde_json::{Value, json};

/// A virtual server that the two see differently.
struct Difference {
    /// As `Server::address` prints it.
    server: &'static str,
    /// `-` = no such virtual server.
    agent: &'static str,
    kube_proxy: &'static str,
    why: &'static str,
}

/// A policy asks for local endpoints and there are none: the original has no virtual server then, so that the address
/// leaves the node (and its announcements) and packets follow the routes to a node that has endpoints.
const INTERNAL: &str = "no virtual server without a local endpoint, as in the original; kube-proxy keeps an empty one";
const EXTERNAL: &str = "the same for externalTrafficPolicy; kube-proxy takes the endpoints of other nodes instead";

/// The same before and after [`changed`].
const DIFFERENCES: &[Difference] = &[
    Difference { server: "TCP 10.96.3.9:80", agent: "-", kube_proxy: "rr: ", why: INTERNAL },
    Difference { server: "TCP [fd00:10:96::309]:80", agent: "-", kube_proxy: "rr: ", why: INTERNAL },
    Difference {
        server: "TCP 203.0.113.11:80",
        agent: "-",
        kube_proxy: "rr: 10.244.2.12:8080 Masq 1, 10.244.2.14:8080 Masq 1",
        why: EXTERNAL,
    },
    Difference {
        server: "TCP 192.168.77.1:30011",
        agent: "-",
        kube_proxy: "rr: 10.244.2.12:8080 Masq 1, 10.244.2.14:8080 Masq 1",
        why: EXTERNAL,
    },
    Difference {
        server: "TCP [fd00:77::1]:30011",
        agent: "-",
        kube_proxy: "rr: [fd00:10:244:2::12]:8080 Masq 1, [fd00:10:244:2::14]:8080 Masq 1",
        why: EXTERNAL,
    },
];

/// How long the two must agree.
const STEADY: Duration = Duration::from_secs(6);

/// Virtual server -> everything else about it, in one line.
type Table = BTreeMap<String, String>;

/// A node "n1" in a lab of its own, with a way to the server.
struct Place {
    ns: Namespace,
    _wire: Wire,
    _lab: Lab,
}

impl Place {
    fn new(prefix: &str, remote: &Remote) -> Place {
        let mut lab = Lab::unique(prefix).unwrap();
        let addresses = ["192.168.77.1/24", "fd00:77::1/64"];
        let node =
            lab.node(NodeSpec::new("n1", &addresses, &["10.244.1.0/24", "fd00:10:244:1::/64"]).unwrap()).unwrap();
        let text = fs::read_to_string(kubeconfig("")).unwrap();
        let (_, rest) = text.split_once("https://").unwrap();
        let served: SocketAddr = rest.split_once('"').unwrap().0.parse().unwrap();
        let wire = Wire::new(&node.ns, served.port(), SocketAddr::new(remote.host(), served.port())).unwrap();
        Place { ns: node.ns, _wire: wire, _lab: lab }
    }

    /// The virtual servers, each as one line.
    fn table(&self) -> Table {
        oracle::ipvs_servers(&self.ns).unwrap().iter().map(line).collect()
    }
}

fn kubeconfig(whose: &str) -> String {
    std::env::var(format!("KUBE_ROUTER_TEST_{whose}KUBECONFIG")).unwrap()
}

/// `rr persistent 600: 10.244.1.11:8080 Masq 1, ...`
fn line(server: &Server) -> (String, String) {
    let mut text = server.scheduler.clone();
    if let Some(seconds) = server.persistence {
        text += &format!(" persistent {seconds}");
    }
    if let Some(mask) = &server.mask {
        text += &format!(" mask {mask}");
    }
    let flags = &server.scheduler_flags;
    if !flags.is_empty() || server.one_packet {
        text += &format!(" flags {flags:?} one-packet {}", server.one_packet);
    }
    let destinations: Vec<String> = server
        .destinations
        .iter()
        .map(|destination| format!("{} {} {}", destination.address, destination.forward, destination.weight))
        .collect();
    (server.address.to_string(), format!("{text}: {}", destinations.join(", ")))
}

/// Waits until both are `complete` and differ as [`DIFFERENCES`] says, and stay so for [`STEADY`]. kube-proxy takes many
/// seconds for its steps in an emulated machine, so a table that stands still is not yet its last word.
fn agree(ours: &Place, theirs: &Place, complete: impl Fn(&Table) -> bool) {
    let known: BTreeMap<String, (String, String)> = DIFFERENCES
        .iter()
        .map(|known| (known.server.to_owned(), (known.agent.to_owned(), known.kube_proxy.to_owned())))
        .collect();
    let deadline = Instant::now() + PATIENCE * 3;
    let mut since = Instant::now();
    loop {
        let (agent, kube_proxy) = (ours.table(), theirs.table());
        let found = differences(&agent, &kube_proxy);
        if found != known || !complete(&agent) {
            since = Instant::now();
        } else if since.elapsed() > STEADY {
            println!("{} virtual servers; differences:", agent.len());
            DIFFERENCES.iter().for_each(|known| println!("{}: {}", known.server, known.why));
            return;
        }
        if Instant::now() > deadline {
            for (name, (agent, kube_proxy)) in &found {
                let news = if known.contains_key(name) { "known" } else { "new" };
                println!("{news}: {name}\n       agent: {agent}\n  kube-proxy: {kube_proxy}");
            }
            panic!("complete: {}; the differences, above, are not those of the table", complete(&agent));
        }
        thread::sleep(Duration::from_millis(500));
    }
}

/// Server -> the agent's view, kube-proxy's view.
fn differences(agent: &Table, kube_proxy: &Table) -> BTreeMap<String, (String, String)> {
    let seen = |table: &Table, name: &String| table.get(name).cloned().unwrap_or("-".to_owned());
    let names: BTreeSet<&String> = agent.keys().chain(kube_proxy.keys()).collect();
    names
        .into_iter()
        .map(|name| (name.clone(), (seen(agent, name), seen(kube_proxy, name))))
        .filter(|(_, (agent, kube_proxy))| agent != kube_proxy)
        .collect()
}

/// By `kubectl create` or `kubectl replace`: `apply` cannot tell two ports of one number apart.
fn write(verb: &str, remote: &Remote, services: &[ServiceSpec]) {
    let objects: Vec<Value> = services.iter().flat_map(ServiceSpec::objects).collect();
    let list = json!({"apiVersion": "v1", "kind": "List", "items": objects});
    remote.kubectl_with_input(&[verb, "-f", "-"], &list.to_string()).unwrap();
    for service in objects.iter().filter(|object| !object["status"]["loadBalancer"]["ingress"][0].is_null()) {
        let name = format!("service/{}", service["metadata"]["name"].as_str().unwrap());
        remote.patch_status("default", &name, &service["status"]).unwrap();
    }
}

#[test]
#[ignore = "needs IPVS and Kubernetes components: cargo xtask test --tier 5"]
fn the_same_objects_make_the_same_virtual_servers() {
    load_modules(&["ip_vs", "ip_vs_rr", "ip_vs_sh", "dummy", "sctp", "nf_conntrack", "ip_set", "xt_set"]).unwrap();
    let remote = Remote::from_env().unwrap();
    let (ours, theirs) = (Place::new("kpa", &remote), Place::new("kpb", &remote));
    for kinds in ["deployments,replicasets,pods,nodes", "services,endpointslices"] {
        let words = ["delete", kinds, "--field-selector=metadata.name!=kubernetes", "--force", "--grace-period=0"];
        remote.kubectl(&[&words[..], &["--wait=false"]].concat()).unwrap();
    }
    for number in 1..=2u8 {
        let name = format!("n{number}");
        let node = json!({
            "apiVersion": "v1", "kind": "Node", "metadata": {"name": name},
            "spec": {"podCIDRs": [format!("10.244.{number}.0/24"), format!("fd00:10:244:{number}::/64")]},
        });
        remote.apply(&node.to_string()).unwrap();
        let addresses = [format!("192.168.77.{number}"), format!("fd00:77::{number}")];
        remote.set_node_addresses(&name, &addresses.map(|address| address.parse().unwrap())).unwrap();
    }
    remote.apply(common::kube::DEPLOY).unwrap();
    write("create", &remote, &services());

    let mut kube_proxy = Command::new(api::programs().unwrap().join("kube-proxy"));
    kube_proxy.args([
        &*format!("--kubeconfig={}", kubeconfig("")),
        "--proxy-mode=ipvs",
        "--hostname-override=n1",
        "--cluster-cidr=10.244.0.0/16,fd00:10:244::/48",
        // Else on every address of the node, which the agent does with --nodeport-bindon-all-ip.
        "--nodeport-addresses=primary",
        "--conntrack-max-per-core=0",
        "--healthz-bind-address=127.0.0.1:11256",
        "--metrics-bind-address=127.0.0.1:11249",
    ]);
    let _kube_proxy = theirs.ns.spawn("kube-proxy", kube_proxy).unwrap();
    let flags = [
        &*format!("--kubeconfig={}", kubeconfig("AGENT_")),
        "--run-router=false",
        "--run-firewall=false",
        "--enable-ipv6",
        "--service-cluster-ip-range=10.96.0.0/12,fd00:10:96::/112",
        "--service-external-ip-range=203.0.113.0/25,2001:db8:113::/64",
        "--loadbalancer-ip-range=203.0.113.128/25,2001:db8:114::/64",
    ];
    let _agent = Agent::start(&ours.ns, "n1", &flags).unwrap();
    // Every service is there: these are the first and, with the rest, well above 60 virtual servers.
    agree(&ours, &theirs, |table| table.len() > 60 && table.contains_key("SCTP [fd00:10:96::301]:80"));

    let (gone, new) = changed();
    for name in gone {
        let slices = format!("kubernetes.io/service-name={name}");
        remote.kubectl(&["delete", "service", name]).unwrap();
        remote.kubectl(&["delete", "endpointslices", "-l", &slices]).unwrap();
    }
    write("replace", &remote, &new);
    agree(&ours, &theirs, |table| {
        !table.contains_key("TCP 10.96.3.2:81")
            && table.get("TCP 10.96.3.12:80").is_some_and(|line| line.contains("10.244.1.11"))
            && table.get("TCP [fd00:10:96::314]:80").is_some_and(|line| !line.contains("fd00:10:244"))
    });
}
