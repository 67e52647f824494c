//! The running original's recordings, run after run over the state that the run before left, as they were made.

use std::{collections::BTreeSet, fs};

use kube_router::{
    apply::fake::FakeKernel,
    desired::{VirtualKey, firewall::Masquerade},
    objects::{Kind, ObjectEvent, Protocol},
    plan::{IpvsOp, Stage},
};

use crate::{
    agent::{Agent, fixture, host_addresses, objects},
    diff::{self, Differences},
    listing,
};

const RANGES: &str = "--enable-ipv6 --service-cluster-ip-range=10.96.0.0/12,fd00:10:96::/112 \
    --service-external-ip-range=203.0.113.0/25,2001:db8:113::/64 \
    --loadbalancer-ip-range=203.0.113.128/25,2001:db8:114::/64";

/// The addresses of node n1, and those of the pods' links that came with the first pods.
const HOST: [(&str, &str); 5] = [
    ("lo", "127.0.0.1"),
    ("lo", "::1"),
    ("eth0", "192.168.77.1"),
    ("eth0", "fd00:77::1"),
    ("eth0", "fe80::1cb7:75ff:fe4c:2e07"),
];
const PODS: [(&str, &str); 5] = [
    ("kube-bridge", "10.244.1.1"),
    ("kube-bridge", "fd00:10:244:1::1"),
    ("kube-bridge", "fe80::2c53:deff:fe98:36f5"),
    ("veth-p1", "fe80::2c53:deff:fe98:36f5"),
    ("veth-p2", "fe80::64d5:2aff:feca:34f1"),
];

fn recorded() -> Vec<ObjectEvent> {
    objects(fixture("original/objects"))
}

fn foreign(address: &str, port: u16) -> VirtualKey {
    VirtualKey { address: address.parse().unwrap(), protocol: Protocol::Tcp, port }
}

/// The first run finds a service by address and one by mark that nobody knows.
fn proxy_only() -> Agent {
    let kernel = FakeKernel::new();
    {
        let mut state = kernel.0.borrow_mut();
        state.kernel.net.host_addresses = host_addresses(&HOST);
        state.kernel.ipvs.servers.insert(foreign("172.31.0.9", 99), Default::default());
        state.kernel.ipvs.marks.insert((7, false));
    }
    Agent::start(
        "n1",
        "--run-router=false --run-firewall=false --run-service-proxy=true --masquerade-all --ipvs-sync-period=5s \
         --iptables-sync-period=10s --metrics-port=80",
        recorded(),
        kernel,
    )
}

/// The original was also told to run its router and its firewall and where its container runtime is.
const ALL_FEATURES: &str =
    "--run-service-proxy --ipvs-graceful-termination --ipvs-graceful-period=15s --metrics-port=8080";

fn all_features() -> Agent {
    let kernel = proxy_only().kernel;
    kernel.0.borrow_mut().kernel.net.host_addresses.extend(host_addresses(&PODS));
    Agent::start("n1", &format!("{ALL_FEATURES} {RANGES}"), recorded(), kernel)
}

/// The same process after several changes of objects, and time to drain.
fn all_features_changed() -> Agent {
    let mut agent = all_features();
    for service in ["plain", "udp"] {
        let service_key = format!("web/{service}");
        let orders = agent.edit_slice(&service_key, &format!("{service}-v4"), |slice| {
            slice.endpoints.retain(|endpoint| endpoint.address.to_string() != "10.244.2.33");
        });
        let drains = |op: &IpvsOp| matches!(op, IpvsOp::EditDestination { weight: 0, .. });
        assert!(orders.iter().all(|stage| matches!(stage, Stage::Ipvs(ops) if ops.iter().all(drains))), "{orders:?}");
    }
    agent.delete(Kind::EndpointSlice, "web/nodeport-v4");
    agent.edit_service("web/sched-lc", |service| service.annotations.scheduler = Some("sh".into()));
    agent.edit_service("web/affinity", |service| service.affinity_timeout_s = None);
    agent.edit_service("web/v4only", |service| service.affinity_timeout_s = Some(10_800));
    agent.edit_service("web/dsr", |service| service.annotations.dsr = None);
    agent.delete(Kind::Service, "web/external");
    agent.delete(Kind::Service, "web/shared-b");
    agent.kernel.0.borrow_mut().kernel.net.dummy_addresses.insert([203, 0, 113, 77].into());
    agent.pass_time(5);
    agent.pass_time(300);
    agent
}

/// The next process, with other switches, over the state left by the one before.
fn other_switches() -> Agent {
    let Agent { kernel, events, .. } = all_features_changed();
    {
        let mut state = kernel.0.borrow_mut();
        for (address, port) in [("203.0.113.200", 99), ("172.31.0.9", 99)] {
            state.kernel.ipvs.servers.insert(foreign(address, port), Default::default());
        }
        state.kernel.ipvs.marks.insert((77, false));
    }
    let switches = "--run-router=false --run-firewall=false --hairpin-mode --nodeport-bindon-all-ip --masquerade-all \
         --strict-external-ip-validation=false --ipvs-permit-all=false \
         --excluded-cidrs=203.0.113.200/32,172.30.0.0/16 --service-tcp-timeout=600s --service-tcpfin-timeout=60s \
         --service-udp-timeout=120s --metrics-port=8080";
    Agent::start("n1", &format!("{switches} {RANGES}"), events, kernel)
}

/// The original was also told to offer graceful restart of BGP, and to leave tunnels and egress alone.
fn masquerade_all_no_overlay() -> Agent {
    let Agent { kernel, events, .. } = other_switches();
    Agent::start("n1", "--run-firewall=false --masquerade-all", events, kernel)
}

fn check(name: &str, agent: &Agent) {
    let kernel = agent.kernel.observe().unwrap();
    let read = |file: &str| fs::read_to_string(fixture(&format!("original/{name}/{file}"))).expect(file);
    let mut found = Differences::new();
    for (file, ours) in [
        ("ipvsadm-Sn.txt", listing::ipvs(&kernel)),
        ("kube-dummy-if.txt", listing::addresses(&kernel)),
        ("local-routes.txt", listing::routes(&kernel)),
        ("ipset-save.txt", listing::sets(&kernel)),
        ("hairpin.txt", listing::hairpins(&kernel)),
    ] {
        diff::compare(file, &read(file), &ours, &mut found);
    }
    let wanted = diff::wanted(&read("differences.txt"));
    diff::check(name, &found, &wanted);
}

fn masquerade(agent: &Agent) -> Masquerade {
    agent.kernel.observe().unwrap().firewall.ruleset.expect("our rules are there").masquerade
}

#[test]
fn proxy_only_programs_what_the_original_does() {
    let agent = proxy_only();
    check("proxy-only", &agent);
    assert_eq!(masquerade(&agent), Masquerade::All);
}

#[test]
fn all_features_program_what_the_original_does() {
    let mut agent = all_features();
    check("all-features", &agent);
    assert_eq!(masquerade(&agent), Masquerade::OutsidePodCidrs);
    assert_eq!(agent.pass_time(300), [], "and then there is nothing to do");
    // On a kernel that held nothing the end is the same.
    let kernel = FakeKernel::new();
    kernel.0.borrow_mut().kernel.net.host_addresses = host_addresses(&HOST);
    kernel.0.borrow_mut().kernel.net.host_addresses.extend(host_addresses(&PODS));
    let fresh = Agent::start("n1", &format!("{ALL_FEATURES} {RANGES}"), recorded(), kernel);
    assert_eq!(fresh.kernel.observe().unwrap(), agent.kernel.observe().unwrap());
}

#[test]
fn changes_of_objects_lead_where_they_lead_the_original() {
    check("all-features-changed", &all_features_changed());
}

#[test]
fn other_switches_program_what_the_original_does() {
    let agent = other_switches();
    check("other-switches", &agent);
    let ruleset = agent.kernel.observe().unwrap().firewall.ruleset.expect("our rules are there");
    assert!(!ruleset.guard);
    assert_eq!(ruleset.masquerade, Masquerade::All);
}

#[test]
fn masquerade_all_without_overlay_programs_what_the_original_does() {
    let agent = masquerade_all_no_overlay();
    check("masquerade-all-no-overlay", &agent);
    assert_eq!(masquerade(&agent), Masquerade::All);
}

/// Every reason is a heading of the README that explains it, and every heading there is a reason for something.
#[test]
fn every_difference_has_a_reason_that_is_explained() {
    let mut used = BTreeSet::new();
    for name in ["proxy-only", "all-features", "all-features-changed", "other-switches", "masquerade-all-no-overlay"] {
        let text = fs::read_to_string(fixture(&format!("original/{name}/differences.txt"))).unwrap();
        used.extend(diff::wanted(&text).into_values());
    }
    let readme = fs::read_to_string(fixture("original/README.md")).unwrap();
    let explained: BTreeSet<String> =
        readme.lines().filter_map(|line| line.strip_prefix("### ")).map(Into::into).collect();
    assert_eq!(used, explained);
}
