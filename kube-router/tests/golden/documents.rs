//! The listings that guides of 2018 show their readers, from the objects that these guides create.

use std::{collections::BTreeSet, net::SocketAddr};

use kube_router::{
    apply::{Connections, fake::FakeKernel},
    desired::VirtualKey,
    objects::{Kind, Protocol},
    plan::{IpvsOp, Observed, Stage},
};

use crate::{
    agent::{Agent, fixture, objects},
    listing,
};

fn start(file: &str, node: &str) -> Agent {
    let switches = "--service-cluster-ip-range=10.0.0.0/12";
    Agent::start(node, switches, objects(fixture(&format!("documents/{file}"))), FakeKernel::new())
}

/// `ipvsadm -L -n` without its three lines of headings, one block per virtual server. The kernel lists them in the
/// order of a hash table, so the blocks are a set; inside a block the order counts.
fn blocks(agent: &Agent) -> BTreeSet<String> {
    let state = agent.kernel.0.borrow();
    let block = |(key, server): (&VirtualKey, &kube_router::desired::Virtual)| {
        let persistent = server.persistence_s.map(|seconds| format!(" persistent {seconds}")).unwrap_or_default();
        let protocol = key.protocol.name().to_uppercase();
        let address = SocketAddr::new(key.address, key.port);
        let mut text = format!("{protocol}  {address} {}{persistent}\n", server.scheduler.name());
        for (destination, weight) in &server.destinations {
            let Connections { active, inactive } =
                state.connections.get(&(*key, *destination)).copied().unwrap_or_default();
            let destination = destination.to_string();
            text.push_str(&format!("  -> {destination:<28} Masq    {weight:<6} {active:<10} {inactive:<10}\n"));
        }
        text
    };
    state.kernel.ipvs.servers.iter().map(block).collect()
}

/// The blocks of a listing as a document shows it.
fn shown(listing: &str) -> BTreeSet<String> {
    let mut blocks = Vec::new();
    for line in listing.lines() {
        if !line.starts_with(' ') {
            blocks.push(String::new());
        }
        let block: &mut String = blocks.last_mut().expect("a server comes first");
        block.push_str(line);
        block.push('\n');
    }
    blocks.into_iter().collect()
}

/// Destinations of the document's five pods, and how many connections the first of them has had.
fn pods(inactive: u32) -> String {
    let line = |address: &str, inactive: u32| {
        format!("  -> {address}               Masq    1      0          {inactive}         \n")
    };
    let last = "  -> 10.2.3.5:8080                Masq    1      0          0         \n\
                \x20 -> 10.2.4.8:8080                Masq    1      0          0         \n";
    line("10.2.0.10:8080", inactive) + &line("10.2.2.10:8080", 0) + &line("10.2.2.11:8080", 0) + last
}

const API_SERVERS: &str = "\
TCP  10.1.0.1:443 rr
  -> 192.168.10.100:6443          Masq    1      0          0         
  -> 192.168.10.101:6443          Masq    1      0          0         
  -> 192.168.10.102:6443          Masq    1      0          0         
";

#[test]
fn the_walk_through_s_listing_appears_on_every_node_with_its_own_node_port() {
    for node in ["192.168.10.101", "192.168.10.106"] {
        let agent = start("five-nodes.yaml", node);
        let listing = format!("TCP  {node}:39610 rr\n{}{API_SERVERS}TCP  10.1.36.171:8080 rr\n{}", pods(0), pods(0));
        assert_eq!(blocks(&agent), shown(&listing));
    }
}

#[test]
fn a_connection_that_was_made_shows_in_the_listing() {
    let agent = start("five-nodes.yaml", "192.168.10.106");
    let key = VirtualKey { address: [10, 1, 36, 171].into(), protocol: Protocol::Tcp, port: 8080 };
    let first = SocketAddr::from(([10, 2, 0, 10], 8080));
    let counts = Connections { active: 0, inactive: 1 };
    agent.kernel.0.borrow_mut().connections.insert((key, first), counts);
    let listing =
        format!("TCP  192.168.10.106:39610 rr\n{}{API_SERVERS}TCP  10.1.36.171:8080 rr\n{}", pods(0), pods(1));
    assert_eq!(blocks(&agent), shown(&listing));
}

/// `kubectl delete svc myip`, then `kubectl expose ... --session-affinity=ClientIP`, which is given another address.
#[test]
fn the_affinity_chapter_s_listings_appear() {
    let mut agent = start("five-nodes.yaml", "192.168.10.101");
    let mut service = None;
    agent.edit_service("default/myip", |known| service = Some(known.clone()));
    agent.delete(Kind::Service, "default/myip");
    assert_eq!(blocks(&agent), shown(API_SERVERS), "the address and the node port are gone");
    let mut service = service.unwrap();
    service.cluster_ips = vec![[10, 1, 21, 161].into()];
    service.service_type = Default::default();
    service.ports[0].node_port = 0;
    service.affinity_timeout_s = Some(10_800);
    agent.send(kube_router::objects::ObjectEvent::Applied(kube_router::objects::Object::Service(service)));

    // `ipvsadm -S -n`, line for line and in this order.
    let kernel: Observed = agent.kernel.observe().unwrap();
    let saved = "\
-A -t 10.1.0.1:443 -s rr
-a -t 10.1.0.1:443 -r 192.168.10.100:6443 -m -w 1
-a -t 10.1.0.1:443 -r 192.168.10.101:6443 -m -w 1
-a -t 10.1.0.1:443 -r 192.168.10.102:6443 -m -w 1
-A -t 10.1.21.161:8080 -s rr -p 10800
-a -t 10.1.21.161:8080 -r 10.2.0.10:8080 -m -w 1
-a -t 10.1.21.161:8080 -r 10.2.2.10:8080 -m -w 1
-a -t 10.1.21.161:8080 -r 10.2.2.11:8080 -m -w 1
-a -t 10.1.21.161:8080 -r 10.2.3.5:8080 -m -w 1
-a -t 10.1.21.161:8080 -r 10.2.4.8:8080 -m -w 1
";
    assert_eq!(listing::ipvs(&kernel).join("\n") + "\n", saved);
    // The document's `ipvsadm -L -n` beside it is cut before its last line.
    let listing = format!("{API_SERVERS}TCP  10.1.21.161:8080 rr persistent 10800\n{}", pods(0));
    assert_eq!(blocks(&agent), shown(&listing));
    let addresses: Vec<String> = kernel.net.dummy_addresses.iter().map(ToString::to_string).collect();
    assert_eq!(addresses, ["10.1.0.1", "10.1.21.161"], "each service has its address on kube-dummy-if");
}

/// `kubectl annotate service my-service kube-router.io/service.scheduler=...`
#[test]
fn a_change_of_scheduler_is_one_order_per_virtual_server() {
    let mut agent = start("five-nodes.yaml", "192.168.10.101");
    for scheduler in ["lc", "rr", "sh", "dh", "mh"] {
        let annotation = Some(scheduler.into());
        let orders = agent.edit_service("default/myip", |service| service.annotations.scheduler = annotation);
        let mut edited = Vec::new();
        for stage in &orders {
            let Stage::Ipvs(ops) = stage else { panic!("{scheduler}: {stage:?}") };
            for op in ops {
                let IpvsOp::EditServer { key, server } = op else { panic!("{scheduler}: {op:?}") };
                assert_eq!(server.scheduler.name(), scheduler);
                edited.push(key.to_string());
            }
        }
        assert_eq!(edited, ["tcp 10.1.36.171:8080", "tcp 192.168.10.101:39610"], "{scheduler}");
    }
    // Annotating with what is there already is no change.
    assert_eq!(agent.edit_service("default/myip", |service| service.annotations.scheduler = Some("mh".into())), []);
}

/// `sessionAffinityConfig.clientIP.timeoutSeconds` and switching affinity on and off change servers in place, too.
#[test]
fn a_change_of_affinity_is_one_order_per_virtual_server() {
    let mut agent = start("five-nodes.yaml", "192.168.10.101");
    for timeout in [Some(10_800), Some(600), None] {
        let orders = agent.edit_service("default/myip", |service| service.affinity_timeout_s = timeout);
        let edit = |op: &IpvsOp| matches!(op, IpvsOp::EditServer { server, .. } if server.persistence_s == timeout);
        assert_eq!(orders.len(), 2, "{orders:?}");
        assert!(orders.iter().all(|stage| matches!(stage, Stage::Ipvs(ops) if ops.iter().all(edit))), "{orders:?}");
    }
}

/// This guide calls `ipvsadm` without `-n`, which prints port 443 as https and 80 as http.
#[test]
fn the_installer_s_listing_appears() {
    let agent = start("three-nodes.yaml", "192.168.1.3");
    let listing = "\
TCP  10.68.0.1:https rr persistent 10800
  -> 192.168.1.1:6443            Masq    1      0          0
TCP  10.68.199.39:http rr
  -> 172.20.1.5:http              Masq    1      0          0
  -> 172.20.2.6:http              Masq    1      0          0
  -> 172.20.2.8:http              Masq    1      0          0
";
    let words = |text: &str| {
        let word = |word: &str| match word.split_once(':') {
            Some((address, "443")) => format!("{address}:https"),
            Some((address, "80")) => format!("{address}:http"),
            _ => word.to_owned(),
        };
        text.split_whitespace().map(word).collect::<Vec<_>>()
    };
    let ours: Vec<String> = blocks(&agent).iter().flat_map(|block| words(block)).collect();
    assert_eq!(ours, words(listing));
}
