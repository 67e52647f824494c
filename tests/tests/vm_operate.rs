//! Operating the agent under load: rolling endpoints, crash and restart, removal of everything.

mod common;

use std::{
    collections::BTreeMap,
    net::SocketAddr,
    thread,
    time::{Duration, Instant},
};

use common::{ANSWER, Cluster, FLAGS, IPVS, PATIENCE};
use kube_router_tests::{
    agent::{self, Agent},
    lab::Pod,
    objects::{EndpointSpec, ServiceSpec},
    oracle,
    probe::{Kept, Load, LoadSpec, Question, Transport},
    process::eventually,
};

const VIP: &str = "10.96.2.1:80";

fn vip() -> SocketAddr {
    VIP.parse().unwrap()
}

fn service<'a>(pods: impl IntoIterator<Item = &'a Pod>) -> ServiceSpec {
    ServiceSpec::new("web", &["10.96.2.1"])
        .kind("NodePort")
        .port("TCP", 80, 8080, 30_021)
        .port("UDP", 80, 8080, 0)
        .pods(pods)
}

fn kernel_writes(agent: &Agent) -> BTreeMap<String, u64> {
    let (status, text) = agent.http(8080, "/metrics").unwrap();
    assert_eq!(status, 200);
    text.lines()
        .filter_map(|line| line.strip_prefix("kube_router_kernel_writes_total{plane=\"")?.split_once("\"} "))
        .map(|(plane, count)| (plane.to_owned(), count.parse().unwrap()))
        .collect()
}

#[test]
#[ignore = "needs IPVS: cargo xtask test --tier 4"]
fn rolling_endpoints_and_crashes_under_load_fail_no_request() {
    let mut cluster = Cluster::new("rolling");
    let pods = [1u8, 2, 3, 4].map(|i| cluster.pod(&format!("roll-{i}"), 1 + i % 2, 100 + i));
    cluster.manifests.put("web", &service(&pods[..2]).objects()).unwrap();
    let flags = ["--ipvs-graceful-termination", "--ipvs-graceful-period=20s", "--metrics-port=8080"];
    cluster.start(&[1], &flags);

    let question = Question::new(Transport::Tcp, vip(), ANSWER);
    let load = cluster.outside.run(|| Load::start(LoadSpec::new(question, 10).pause(Duration::from_millis(20))));
    let mut kept = cluster.outside.run(|| Kept::open(Transport::Tcp, vip(), ANSWER)).unwrap();
    let pod = kept.ask().unwrap();

    // A rolling update: each step replaces a pod by the next one. The leaving pod goes through "terminating".
    let begin = Instant::now();
    let mut step = 0;
    while begin.elapsed() < Duration::from_secs(40) {
        let (stay, leave, come) = (step % 4, (step + 1) % 4, (step + 2) % 4);
        let mut next = service([&pods[stay], &pods[come]]);
        for address in &pods[leave].addresses {
            let conditions = (false, true, true);
            next = next.endpoint(EndpointSpec { address: *address, node: pods[leave].node.clone(), conditions });
        }
        cluster.manifests.put("web", &next.objects()).unwrap();
        thread::sleep(Duration::from_millis(700));
        cluster.manifests.put("web", &service([&pods[stay], &pods[come]]).objects()).unwrap();
        thread::sleep(Duration::from_millis(700));
        step += 1;
    }
    assert!(step > 5, "only {step} steps");

    // Crash and restart with nothing changed: traffic does not notice, and nothing is written.
    let before = oracle::ipvs_rules(&cluster.node(1).ns).unwrap();
    let mut first = cluster.agents.remove(0);
    first.kill();
    thread::sleep(Duration::from_secs(2));
    cluster.start(&[1], &flags);
    let writes = kernel_writes(&cluster.agents[0]);
    let unchanged: Vec<String> =
        oracle::ipvs_rules(&cluster.node(1).ns).unwrap().into_iter().filter(|line| !line.ends_with("-w 0")).collect();
    let before: Vec<String> = before.into_iter().filter(|line| !line.ends_with("-w 0")).collect();
    assert_eq!(unchanged, before);
    assert_eq!(writes.iter().filter(|(_, count)| **count != 0).collect::<Vec<_>>(), [], "a restart wrote");

    let report = load.stop();
    assert_eq!(report.failed, 0, "{report:?}\n{}", cluster.agents[0].log().join("\n"));
    assert!(report.answered > 100, "{report:?}");
    println!("{step} rolling steps, {} requests, 0 failed, slowest {:?}", report.answered, report.slowest);
    drop((kept, pod));
}

#[test]
#[ignore = "needs IPVS: cargo xtask test --tier 4"]
fn a_removed_udp_endpoint_loses_its_flows_and_the_others_keep_theirs() {
    let mut cluster = Cluster::new("udp");
    let (web1, web2) = (cluster.find("web-1"), cluster.find("web-2"));
    cluster.manifests.put("web", &service([&web1, &web2]).objects()).unwrap();
    cluster.start(&[1], &[]);
    // Two clients with fixed ports, one on each pod.
    let mut kept: Vec<Kept> =
        (0..2).map(|_| cluster.outside.run(|| Kept::open(Transport::Udp, vip(), ANSWER)).unwrap()).collect();
    let names: Vec<String> = kept.iter_mut().map(|client| client.ask().unwrap().name).collect();
    assert_ne!(names[0], names[1]);
    let (gone, stays) = if names[0] == "web-1" { (0, 1) } else { (1, 0) };
    cluster.manifests.put("web", &service([&web2]).objects()).unwrap();
    let ns = &cluster.node(1).ns;
    eventually("the endpoint goes", PATIENCE, || {
        !oracle::ipvs_rules(ns).unwrap().iter().any(|line| line.contains("-r 10.244.1.17:8080"))
    })
    .unwrap();
    assert_eq!(kept[stays].ask().unwrap().name, "web-2");
    assert_eq!(kept[gone].ask().unwrap().name, "web-2", "the client of the removed pod is served by the other one");
}

#[test]
#[ignore = "needs IPVS: cargo xtask test --tier 4"]
fn an_end_leaves_the_dataplane_and_cleanup_takes_exactly_ours() {
    let mut cluster = Cluster::new("cleanup");
    let web1 = cluster.find("web-1");
    cluster.manifests.put("web", &service([&web1]).objects()).unwrap();
    let ns = cluster.node(1).ns.clone();
    let foreign = ["-A", "-t", "198.18.0.1:99", "-s", "wlc"];
    ns.command("ipvsadm", &foreign).unwrap();
    ns.command("nft", &["add table inet somebody { set s { type ipv4_addr; elements = { 192.0.2.1 } }; }"]).unwrap();
    ns.command("ipset", &["create", "somebody", "hash:ip"]).unwrap();
    let somebody = || {
        (
            ns.command("nft", &["list", "table", "inet", "somebody"]).unwrap(),
            ns.command("ipset", &["save", "somebody"]).unwrap(),
        )
    };
    let before = somebody();
    cluster.start(&[1], &["--excluded-cidrs=198.18.0.0/15"]);
    let running = (oracle::ipvs_rules(&ns).unwrap(), oracle::addresses(&ns).unwrap(), oracle::ipsets(&ns).unwrap());
    assert!(running.0.iter().any(|line| line.contains("198.18.0.1:99")), "excluded: kept");
    assert!(cluster.agents[0].stop(PATIENCE).unwrap().success());
    let after = (oracle::ipvs_rules(&ns).unwrap(), oracle::addresses(&ns).unwrap(), oracle::ipsets(&ns).unwrap());
    assert_eq!(running, after, "SIGTERM leaves the dataplane as it is");
    let answer = cluster.outside.run(|| Question::new(Transport::Tcp, vip(), ANSWER).ask());
    assert_eq!(answer.unwrap().name, "web-1", "and it works");

    let mut flags = vec!["--cleanup-config", "--excluded-cidrs=198.18.0.0/15"];
    let manifests = cluster.manifests.flag();
    flags.push(&manifests);
    flags.extend(IPVS.iter().chain(&FLAGS));
    agent::run(&ns, &flags).unwrap();
    assert_eq!(oracle::ipvs_rules(&ns).unwrap(), ["-A -t 198.18.0.1:99 -s wlc"]);
    assert!(!oracle::addresses(&ns).unwrap().contains_key("kube-dummy-if"));
    assert!(!oracle::ipsets(&ns).unwrap().iter().any(|line| line.contains("kube-router")));
    assert!(!oracle::nft(&ns).unwrap().contains("kube-router"));
    assert_eq!(somebody(), before);
}

#[test]
#[ignore = "needs IPVS: cargo xtask test --tier 4"]
fn what_others_break_is_mended_by_the_periodic_pass() {
    let mut cluster = Cluster::new("mend");
    let web1 = cluster.find("web-1");
    cluster.manifests.put("web", &service([&web1]).objects()).unwrap();
    cluster.start(&[1], &["--ipvs-sync-period=3s"]);
    let ns = cluster.node(1).ns.clone();
    // A dummy that is made anew has another hardware address, and so another link-local one.
    let routes = |ns| {
        let mut lines = oracle::local_routes(ns).unwrap();
        lines.retain(|line| !line.starts_with("local fe80:"));
        lines
    };
    let state = || {
        (
            oracle::ipvs_rules(&ns).unwrap(),
            oracle::addresses(&ns).unwrap(),
            routes(&ns),
            oracle::ipset_members(&ns).unwrap(),
            // Missing while somebody has it deleted.
            ns.command("nft", &["-s", "list", "table", "inet", "kube-router"]).ok(),
        )
    };
    let wanted = state();
    ns.command("ipvsadm", &["-D", "-t", VIP]).unwrap();
    ns.command("ipvsadm", &["-A", "-t", "10.96.9.9:9", "-s", "rr"]).unwrap();
    ns.ip(&["address add 10.96.9.9/32 dev kube-dummy-if".into(), "address del 10.96.2.1/32 dev kube-dummy-if".into()])
        .unwrap();
    ns.command("ipset", &["flush", "kube-router-svip"]).unwrap();
    ns.command("nft", &["flush", "chain", "inet", "kube-router", "postrouting"]).unwrap();
    let mended = |what: &str| {
        if let Err(error) = eventually(what, PATIENCE, || state() == wanted) {
            panic!("{error}\nwanted: {wanted:#?}\nfound: {:#?}", state());
        }
    };
    mended("everything is as it should be");
    ns.ip(&["link del kube-dummy-if".into()]).unwrap();
    ns.command("nft", &["delete", "table", "inet", "kube-router"]).unwrap();
    mended("and again");
    assert_eq!(cluster.outside.run(|| Question::new(Transport::Tcp, vip(), ANSWER).ask()).unwrap().name, "web-1");
}
