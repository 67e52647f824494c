//! Connections of pods past IPVS, while everything around them changes: none moves, none ends, and new ones get through.

mod common;

use std::{net::SocketAddr, thread, time::Duration};

use common::{ANSWER, Cluster, PATIENCE};
use kube_router::apply::bpf::{self, BalanceMaps, Tables};
use kube_router_common::{
    balance::{Backend, Vip},
    config::ROWS_SINCE,
    flow::Flow,
};
use kube_router_tests::{
    lab::Pod,
    objects::{EndpointSpec, ServiceSpec},
    oracle, pace,
    probe::{Kept, Load, LoadSpec, Question, Transport},
    process::eventually,
};

const VIP: &str = "10.96.2.1:80";
/// The client's; the others need no agent to answer.
const NODES: [usize; 1] = [1];

/// Connections that live through it all, of TCP as many as of UDP; KUBE_ROUTER_KEPT_CONNECTIONS says another number.
fn each() -> usize {
    std::env::var("KUBE_ROUTER_KEPT_CONNECTIONS").map_or(pace::choose(500, 50), |text| text.parse().expect("a number"))
}

const POLICY: [&str; 3] = ["--run-firewall=true", "--ipvs-graceful-termination", "--ipvs-graceful-period=3600s"];

fn vip() -> SocketAddr {
    VIP.parse().unwrap()
}

fn service<'a>(pods: impl IntoIterator<Item = &'a Pod>) -> ServiceSpec {
    ServiceSpec::new("web", &["10.96.2.1"]).port("TCP", 80, 8080, 0).port("UDP", 80, 8080, 0).pods(pods)
}

/// A client's connections, and whom each has.
struct Living {
    kept: Vec<(Transport, Kept, String)>,
}

impl Living {
    fn open(client: &Pod) -> Living {
        // A thousand files are what a process may have.
        let myself = std::process::id().to_string();
        client.ns.command("prlimit", &["--pid", &myself, "--nofile=8192:8192"]).unwrap();
        let open = |transport| {
            let mut kept = client.ns.run(|| Kept::open(transport, vip(), ANSWER)).unwrap();
            let name = kept.ask().unwrap().name;
            (transport, kept, name)
        };
        let transports = [Transport::Tcp, Transport::Udp].into_iter().flat_map(|transport| vec![transport; each()]);
        Living { kept: transports.map(open).collect() }
    }

    fn check(&mut self, after: &str) {
        for (transport, kept, name) in &mut self.kept {
            let client = kept.local();
            let answer =
                kept.ask().unwrap_or_else(|error| panic!("{after}: {transport:?} {client} to {name}: {error}"));
            assert_eq!(&answer.name, name, "{after}: {transport:?} {client} has moved");
        }
        println!("{after}: all {} go on", self.kept.len());
    }

    fn of(&self, name: &str) -> usize {
        self.kept.iter().filter(|(_, _, pod)| pod == name).count()
    }
}

impl Cluster {
    fn tables(&self) -> Tables {
        Tables::open(&bpf::root(self.pins[0].path())).unwrap()
    }

    fn balance(&self) -> BalanceMaps {
        BalanceMaps::open(&bpf::root(self.pins[0].path())).unwrap()
    }

    /// The virtual servers of the service, as n1's programs have them.
    fn vips(&self) -> Vec<Vip> {
        let mut rows = self.balance().vips.read_all().unwrap();
        rows.retain(|(key, _)| key.port == 80);
        rows.into_iter().map(|(_, vip)| vip).collect()
    }

    /// Waits until both are as they should be.
    fn wait(&self, what: &str, holds: impl Fn(&Vip) -> bool) {
        let all = || {
            let vips = self.vips();
            vips.len() == 2 && vips.iter().all(&holds)
        };
        eventually(what, PATIENCE, all).unwrap_or_else(|error| panic!("{error}: {:?}", self.vips()));
    }

    /// As if the time were over in which IPVS may have flows of UDP that nobody else knows.
    fn learned(&self) {
        let maps = self.balance();
        for (key, vip) in maps.vips.read_all().unwrap() {
            maps.vips.put(&key, &Vip { learn_until_s: 0, ..vip }).unwrap();
        }
    }

    fn past_ipvs(&self) -> usize {
        let flows = self.tables().flows.read_all().unwrap();
        flows.iter().filter(|(_, flow)| flow.is(Flow::FAST) && flow.is(Flow::NAT)).count()
    }
}

fn fast(vip: &Vip) -> bool {
    !vip.rests()
}

#[test]
#[ignore = "needs IPVS and the BPF object: cargo xtask test --tier 4"]
fn a_thousand_connections_stay_where_they_are() {
    let mut cluster = Cluster::new("kept");
    let (client, near) = (cluster.find("c1"), cluster.find("web-1"));
    let (far, other) = (cluster.find("web-2"), cluster.pod("web-3", 1, 103));
    let all = [&near, &far, &other];
    let put = |cluster: &Cluster, spec: ServiceSpec| cluster.manifests.put("web", &spec.objects()).unwrap();
    put(&cluster, service(all));
    cluster.start_fast(&NODES, &POLICY);
    cluster.wait("both take the fast path", fast);
    cluster.learned();
    let mut living = Living::open(&client);
    assert!(all.iter().all(|pod| living.of(&pod.name) > each() / 4), "{:?}", all.map(|pod| living.of(&pod.name)));
    assert_eq!(cluster.past_ipvs(), 2 * 2 * each(), "each has two entries");
    let question = Question::new(Transport::Tcp, vip(), ANSWER);
    let load = client.ns.run(|| Load::start(LoadSpec::new(question, 2).pause(Duration::from_millis(50))));

    for (scheduler, number) in [("mh", Vip::MH), ("lc", Vip::LC)] {
        put(&cluster, service(all).annotation("kube-router.io/service.scheduler", scheduler));
        cluster.wait("another scheduler", |vip| vip.scheduler == number);
        living.check(scheduler);
    }

    // One goes, and first says so; its connections have as long as they like.
    let leaving = |pod: &Pod, spec: ServiceSpec| {
        let endpoint = |address| EndpointSpec { address, node: pod.node.clone(), conditions: (false, true, true) };
        pod.addresses.iter().fold(spec, |spec, address| spec.endpoint(endpoint(*address)))
    };
    put(&cluster, leaving(&other, service([&near, &far])));
    cluster.wait("nobody new gets the leaving one", |vip| vip.slots == 2);
    put(&cluster, service([&near, &far]));
    let ns = cluster.node(1).ns.clone();
    let drains =
        || oracle::ipvs_rules(&ns).unwrap().iter().any(|line| line.contains(":8080") && line.ends_with("-w 0"));
    eventually("IPVS drains it", PATIENCE, drains).unwrap();
    living.check("a backend drains");
    put(&cluster, service([&near, &far]).port("TCP", 81, 8080, 0));
    eventually("another port", PATIENCE, || {
        oracle::ipvs_rules(&ns).unwrap().iter().any(|line| line.contains("10.96.2.1:81 "))
    })
    .unwrap();
    living.check("the service is edited");

    put(&cluster, service([&near, &far]).annotation("kube-router.io/service.fastpath", "false"));
    cluster.wait("new flows are IPVS's", Vip::rests);
    living.check("the fast path is off for the service");
    put(&cluster, service([&near, &far]));
    cluster.wait("and on again", fast);
    living.check("and on again");

    // A crash, and what an agent does that comes after it.
    cluster.agents.clear();
    living.check("the agent is killed");
    cluster.start_fast(&NODES, &POLICY);
    living.check("another one starts");
    for agent in &mut cluster.agents {
        assert!(agent.stop(PATIENCE).unwrap().success());
    }
    cluster.start_fast(&NODES, &[&POLICY[..], &["--service-fastpath=off"]].concat());
    cluster.wait("new flows are IPVS's", Vip::rests);
    living.check("the fast path is off");
    cluster.start_fast(&NODES, &POLICY);
    cluster.wait("and on again", fast);
    living.check("and on again");
    let before = cluster.past_ipvs();
    cluster.agents.clear();
    cluster.pins.iter().for_each(|pins| pins.become_of(ROWS_SINCE).unwrap());
    cluster.start_fast(&NODES, &POLICY);
    living.check("an agent of another schema takes over");
    assert!(cluster.past_ipvs() >= before.min(2 * 2 * each()));

    // Room for these and the eighth that stays free: who comes now is soon IPVS's.
    let most = format!("--netpol-max-flows={}", (2 * 2 * each() * 5 / 4).max(1_024));
    cluster.start_fast(&NODES, &[&POLICY[..], &[&most]].concat());
    living.check("the table is smaller");
    let mut more = Vec::new();
    for _ in 0..each() / 2 {
        let mut kept = client.ns.run(|| Kept::open(Transport::Tcp, vip(), ANSWER)).unwrap();
        let name = kept.ask().unwrap().name;
        more.push((kept, name));
    }
    living.check("the table is full");
    for (kept, name) in &mut more {
        assert_eq!(&kept.ask().unwrap().name, name);
    }
    cluster.start_fast(&NODES, &["--run-firewall=false", "--service-fastpath=on", "--ipvs-graceful-termination"]);
    living.check("no policy is enforced");

    thread::sleep(Duration::from_secs(1));
    let report = load.stop();
    // Known: one that begins while an agent takes tables over or turns the fast path may be ended, one of some thousands.
    assert!(report.failed * 200 <= report.answered, "{report:?}");
    assert!(report.answered > 100, "{report:?}");
    println!(
        "{} new connections meanwhile, {} failed, the slowest took {:?}",
        report.answered, report.failed, report.slowest
    );
    // The drained one still has its own, and nobody else.
    let backends = cluster.balance().backends.read_all().unwrap();
    let shut = backends.iter().filter(|(_, backend)| backend.has(Backend::LIVE) && !backend.has(Backend::OPEN)).count();
    assert_eq!(shut, 2, "{backends:?}");
}
