//! Much of it, with real packets: a thousand policies on one pod, a policy that names ten thousand addresses, and CIDRs
//! with bits beyond their length. The first, the middle and the last part grant each something of their own, so that a list
//! that is cut anywhere is noticed; then one part of many changes or goes.

mod common;

use std::{
    thread,
    time::{Duration, Instant},
};

use common::netpol::started;
use kube_router_tests::{
    agent::Agent,
    netpol::{
        Cluster,
        plan::{self, PORTS, pod, socket},
    },
    objects,
    process::eventually,
};
use serde_json::{Value, json};

const POLICIES: usize = 1_000;
const ADDRESSES: usize = 10_000;
/// TCP 80 and UDP 80, of [`PORTS`].
const ASKED: [usize; 2] = [0, 2];
const METRICS_PORT: u16 = 20_242;
const METRICS: &str = "--metrics-port=20242";
/// All others, which no part grants anything.
const ELSE: [&str; 4] = ["x/c", "y/c", "z/a", "x/b"];

/// Who gets an answer of x/a, of all that are asked about, in both families and protocols; nobody may get a part of them.
fn answered(cluster: &Cluster, pods: &[&'static str]) -> Vec<&'static str> {
    let one = |from: &&'static str| {
        let mut outcomes = Vec::new();
        for ipv4 in [true, false] {
            for port in ASKED {
                let to = socket(pod("x/a").unwrap(), port, ipv4);
                outcomes.push(cluster.ask(from, PORTS[port].0, to).unwrap().is_ok());
            }
        }
        assert!(outcomes.windows(2).all(|pair| pair[0] == pair[1]), "{from}: {outcomes:?}");
        outcomes[0]
    };
    pods.iter().copied().filter(|from| one(from)).collect()
}

/// The policies as they are from now on: exactly these get answers, soon and from then on.
#[track_caller]
fn expect(cluster: &mut Cluster, policies: &[Value], allowed: &[&'static str], refused: &[&'static str]) {
    let begin = Instant::now();
    cluster.manifests.put("many", policies).unwrap();
    // Files are read in the order of their changes.
    cluster.change(&[]).unwrap();
    println!("{} policies in force after {:?}", policies.len(), begin.elapsed());
    let all = [allowed, refused, &ELSE].concat();
    assert_eq!(answered(cluster, &all), allowed);
}

/// What `explain` says of TCP 80 at x/a, by the objects and by the kernel's tables, which agree.
#[track_caller]
fn explained(cluster: &Cluster, from: &str, allowed: bool) -> String {
    let maps = format!("--maps={}", cluster.pins[0].path().display());
    let agent = &cluster.agents[0];
    let command = ["explain", "--from", from, "--to=x/a", "--port=tcp/80", &maps];
    let socket = format!("--socket={}", agent.socket().display());
    let arguments = [&command[..], &[&socket]].concat();
    let program = kube_router_tests::agent::program().unwrap();
    let output = agent.ns().run(|| std::process::Command::new(program).args(arguments).output()).unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    assert_eq!(output.status.code(), Some(i32::from(!allowed)), "{from}: {text}");
    assert!(text.contains("kernel: agrees, "), "{from}: {text}");
    text
}

/// Standing problems, by the agent's own count.
fn problems(agent: &Agent) -> Vec<String> {
    let (_, text) = agent.http(METRICS_PORT, "/metrics").unwrap();
    let of = |line: &&str| line.starts_with("kube_router_problems{") && !line.ends_with(" 0");
    text.lines().filter(of).map(str::to_owned).collect()
}

/// A policy of x/a that grants one pod, or nobody who asks.
fn granting(number: usize, from: Option<&str>) -> Value {
    let spec = match from {
        Some(from) => {
            let (namespace, name) = from.split_once('/').unwrap();
            json!({
                "podSelector": {"matchLabels": {"pod": "a"}},
                "ingress": [{"from": [{
                    "namespaceSelector": {"matchLabels": {"ns": namespace}},
                    "podSelector": {"matchLabels": {"pod": name}},
                }]}],
            })
        }
        None => json!({
            "podSelector": {"matchLabels": {"pod": "a"}},
            "ingress": [{"ports": [{"port": 20_000 + number}]}],
        }),
    };
    objects::policy("x", &format!("p{number:04}"), spec)
}

#[test]
#[ignore = "needs root and BPF: cargo xtask test --tier 3 --filter netpol_many"]
fn each_of_a_thousand_policies_on_a_pod_counts() {
    let mut cluster = started("netpol1", &[METRICS]);
    let (first, middle, last) = (0, POLICIES / 2, POLICIES - 1);
    let mut policies: Vec<Value> = (0..POLICIES).map(|number| granting(number, None)).collect();
    expect(&mut cluster, &policies, &[], &["y/a", "y/b", "z/c", "z/b"]);
    for (number, from) in [(first, "y/b"), (middle, "z/c"), (last, "y/a")] {
        policies[number] = granting(number, Some(from));
    }
    expect(&mut cluster, &policies, &["y/b", "z/c", "y/a"], &["z/b"]);
    for (from, number) in [("y/b", first), ("z/c", middle), ("y/a", last)] {
        let told = explained(&cluster, from, true);
        assert!(told.contains(&format!("allowed by NetworkPolicy x/p{number:04} ingress[0]")), "{told}");
    }
    let told = explained(&cluster, "z/b", false);
    assert!(told.contains("ingress of x/a: denied, isolated by ") && told.contains("NetworkPolicy x/p0000"), "{told}");
    println!("denied, in {} characters: {:.200}", told.len(), told);

    // One that changes, one that goes, one that comes back; the others stay.
    policies[middle] = granting(middle, Some("z/b"));
    expect(&mut cluster, &policies, &["y/b", "z/b", "y/a"], &["z/c"]);
    let gone = policies.pop().unwrap();
    expect(&mut cluster, &policies, &["y/b", "z/b"], &["z/c", "y/a"]);
    explained(&cluster, "y/a", false);
    policies.push(gone);
    expect(&mut cluster, &policies, &["y/b", "z/b", "y/a"], &["z/c"]);
    // Whoever is the last one that isolates does so alone.
    let only = vec![granting(first, Some("y/b"))];
    expect(&mut cluster, &only, &["y/b"], &["z/b", "z/c", "y/a"]);
    for agent in &cluster.agents {
        assert_eq!(problems(agent), [""; 0]);
    }
    cluster.manifests.put("many", &[]).unwrap();
    cluster.change(&[]).unwrap();
    assert_eq!(answered(&cluster, &ELSE), ELSE, "none of them, none isolated");
}

/// Ten thousand ipBlocks of one address each in the one rule of one policy; these are the pods' among them.
fn naming(ends: &[&str]) -> Value {
    let mut blocks: Vec<String> = (0..ADDRESSES - 2 * ends.len())
        .map(|n| match n % 2 {
            0 => format!("198.18.{}.{}/32", n / 2 / 250, n / 2 % 250),
            _ => format!("2001:db8::{:x}/128", n / 2),
        })
        .collect();
    for (place, name) in ends.iter().enumerate() {
        // The first at the beginning, the last at the end, and those between them in the middle.
        let at = blocks.len() * place / (ends.len() - 1);
        let own = [true, false].map(|ipv4| plan::address(pod(name).unwrap(), ipv4));
        blocks.splice(at..at, [format!("{}/32", own[0]), format!("{}/128", own[1])]);
    }
    assert_eq!(blocks.len(), ADDRESSES);
    let peers: Vec<Value> = blocks.iter().map(|cidr| json!({"ipBlock": {"cidr": cidr}})).collect();
    let spec = json!({"podSelector": {"matchLabels": {"pod": "a"}}, "ingress": [{"from": peers}]});
    objects::policy("x", "addresses", spec)
}

#[test]
#[ignore = "needs root and BPF: cargo xtask test --tier 3 --filter netpol_many"]
fn each_of_ten_thousand_addresses_in_a_policy_counts() {
    let mut cluster = started("netpol2", &[METRICS]);
    expect(&mut cluster, &[naming(&["y/b", "z/c", "y/a"])], &["y/b", "z/c", "y/a"], &["z/b"]);
    for from in ["y/b", "y/a"] {
        let told = explained(&cluster, from, true);
        assert!(told.contains("ingress of x/a: allowed by NetworkPolicy x/addresses ingress[0]"), "{told:.2000}");
    }
    let told = explained(&cluster, "z/b", false);
    assert!(told.contains("isolated by NetworkPolicy x/addresses"), "{told:.2000}");
    assert!(told.len() < 4_000, "not ten thousand names: {}", told.len());
    // The last one becomes another, and the one in the middle goes.
    expect(&mut cluster, &[naming(&["y/b", "z/c", "z/b"])], &["y/b", "z/c", "z/b"], &["y/a"]);
    expect(&mut cluster, &[naming(&["y/b", "z/b"])], &["y/b", "z/b"], &["y/a", "z/c"]);
    explained(&cluster, "z/c", false);
    for agent in &cluster.agents {
        assert_eq!(problems(agent), [""; 0]);
    }
}

/// The pods of node n2 but those of z, of which the addresses end in 31 to 33: none of the CIDRs is written as a range.
fn with_host_bits() -> Value {
    let block = |cidr: &str, except: &str| json!({"ipBlock": {"cidr": cidr, "except": [except]}});
    let peers = [block("10.246.2.99/24", "10.246.2.44/28"), block("fd00:10:246:2::99/64", "fd00:10:246:2::3f/124")];
    let spec = json!({"podSelector": {"matchLabels": {"pod": "a"}}, "ingress": [{"from": peers}]});
    objects::policy("x", "bits", spec)
}

#[test]
#[ignore = "needs root and BPF: cargo xtask test --tier 3 --filter netpol_many"]
fn a_cidr_with_host_bits_is_its_range_and_is_told_once() {
    let mut cluster = started("netpol3", &[METRICS]);
    cluster.manifests.put("many", &[with_host_bits()]).unwrap();
    cluster.change(&[]).unwrap();
    // 10.246.2.22 and ::22 are in; 10.246.2.33 is in 10.246.2.32/28 and ::33 in ::30/124; 10.246.1.21 is of the other node.
    assert_eq!(answered(&cluster, &["y/b", "z/c", "y/a"]), ["y/b"]);
    let standing = ["kube_router_problems{reason=\"HostBitsIgnored\"} 1"];
    for round in 0..3 {
        for agent in &cluster.agents {
            assert_eq!(problems(agent), standing, "round {round}");
            let told: Vec<String> = agent.log().into_iter().filter(|line| line.contains("HostBitsIgnored")).collect();
            assert_eq!(told.len(), 1, "{told:#?}");
            let names =
                ["x/bits", "10.246.2.99/24 is read as 10.246.2.0/24", "10.246.2.44/28 is read as 10.246.2.32/28"];
            assert!(names.iter().all(|name| told[0].contains(name)), "{}", told[0]);
        }
        // Something else changes.
        cluster.manifests.put("other", &[granting(round, None)]).unwrap();
        cluster.change(&[]).unwrap();
        thread::sleep(Duration::from_millis(100));
    }
    cluster.manifests.remove("many").unwrap();
    for agent in &cluster.agents {
        eventually("the problem is gone", cluster.patience.change, || problems(agent).is_empty()).unwrap();
    }
}
