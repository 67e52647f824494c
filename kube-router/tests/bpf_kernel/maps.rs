//! docs/maps.md: its commands run on real maps, and what they print has the fields that the page shows.

use std::process::Command;

use kube_router::{
    apply::bpf::{Dataplane, now_s},
    cli::dump::{Format, What, kernel},
    explain::PolicyNames,
    objects::ObjectKey,
    observe::policy_metrics::PolicyRows,
};
use kube_router_common::{
    balance::{Backend, RingKey, Vip},
    config::{Config, DropKey, FragKey, FragPorts, Iface, Origin, RuleCount},
    flow::{ALL_PODS, Flow, FlowKey, Tcp},
    names,
    policy::{ANY, Address, CidrKey, Endpoint, Peer, PodGroups, PolicyKey, PolicyRow, Service, ServiceKey, port_index},
    reason::{Direction, Reason},
};
use zerocopy::IntoBytes;

use crate::{
    alone,
    net::{Pins, address},
    run,
};

const PAGE: &str = include_str!("../../../docs/maps.md");
/// The page's root.
const ROOT: &str = "/sys/fs/bpf/kube-router/v3";
const MAC: [u8; 6] = [0x02, 0, 0, 0, 0, 7];

/// Pod 7 (10.244.1.11), isolated for ingress: its group 3 may be reached by class 4, at port class 5, by rule 2.
fn fill(dataplane: &Dataplane, pins: &Pins) {
    let tables = dataplane.tables();
    let (own, peer) = (address("10.244.1.11"), address("10.244.2.21"));
    tables.endpoints.put(&own, &Endpoint { pod: 7, ifindex: 12, mac: MAC, pad: [0; 2] }).expect("endpoint");
    tables.pods.put(&7, &PodGroups { ingress: 3, egress: 0 }).expect("pod");
    tables.ifaces.put(&12, &Iface { mac: MAC, flags: Iface::PUBLISHED, pod: 7, netns: 4 }).expect("iface");
    tables.peers.put(&peer, &Peer { class: 4, flags: Peer::REMOTE }).expect("peer");
    tables.peers.put(&address("192.168.77.1"), &Peer { class: 0, flags: Peer::NODE }).expect("node");
    let block = CidrKey { length: 32 + 96 + 24, family: CidrKey::family_of(true), address: address("203.0.113.0") };
    tables.cidrs.put(&block, &Peer { class: 6, flags: 0 }).expect("block");
    let key = ServiceKey { address: address("10.96.0.1"), port: 443, protocol: 6, pad: 0 };
    let service = Service { host: address("192.168.77.1"), host_port: 6443, flags: 0 };
    tables.services.put(&key, &service).expect("service");
    tables.ports.put(&port_index(6, 8080).expect("TCP"), &5).expect("port");
    let row = PolicyRow { verdict: PolicyRow::ALLOW, rule: 2 };
    tables.policy.put(&PolicyKey { group: 3, class: 4, ports: 5 }, &row).expect("row");
    tables.policy.put(&PolicyKey { group: 3, class: 6, ports: ANY }, &row).expect("row");
    tables.rules.put(&2, &RuleCount { flows: 41, bytes: 3_034 }).expect("rule");
    let key = FlowKey { local: own, peer, local_port: 8080, peer_port: 40_112, protocol: 6, ..FlowKey::default() };
    let flow = Flow {
        last_seen_s: now_s(),
        generation: 9,
        ifindex: 12,
        pod: 7,
        class: 4,
        rule: 2,
        flags: Flow::REPLIED | Flow::NEEDED,
        state: Tcp::ESTABLISHED,
        ..Flow::default()
    };
    tables.flows.put(&key, &flow).expect("flow");
    tables.flow_counts.put(&ALL_PODS, &1).expect("count");
    tables.flow_counts.put(&7, &1).expect("count");
    let fragment = FragKey { source: peer, destination: own, id: 4_711, protocol: 17 };
    tables.frags.put(&fragment, &FragPorts { source: 53, destination: 40_113, protocol: 17 }).expect("fragment");
    tables.origins.put(&7, &Origin { v4: own, v6: Address::default() }).expect("origin");
    let config = Config { generation: 9, max_flows: 262_144, ..Config::default() };
    tables.set_config(&config).expect("config");
    let refused = DropKey { pod: 7, direction: Direction::Ingress as u8, reason: Reason::Denied as u8, pad: 0 };
    let hex = |bytes: &[u8]| bytes.iter().map(|byte| format!("{byte:02x}")).collect::<Vec<_>>().join(" ");
    // For each processor.
    let values = hex([3_u64, 222].as_bytes());
    let balance = dataplane.balance();
    let key = ServiceKey { address: address("10.96.0.10"), port: 53, protocol: 17, pad: 0 };
    let vip = Vip { id: 3, ring: 8, slots: 1, learn_until_s: 29_600, scheduler: Vip::RR, ..Vip::default() };
    balance.backends.put(&12, &Backend { address: own, port: 5353, flags: 3, vip: 3 }).expect("backend");
    balance.rings.put(&RingKey { ring: 8, slot: 0 }, &12).expect("slot");
    balance.vips.put(&key, &vip).expect("vip");
    let drops = pins.root().join(names::DROPS);
    run(
        "bpftool",
        &format!("map update pinned {} key hex {} value hex {values}", drops.display(), hex(refused.as_bytes())),
    );
}

/// (command, sample output) of the page's console blocks.
fn samples() -> Vec<(String, String)> {
    let mut samples: Vec<(String, String)> = Vec::new();
    for block in PAGE.split("```console\n").skip(1) {
        let block = block.split("```").next().unwrap_or_default();
        for line in block.lines() {
            match (line.strip_prefix("$ "), samples.last_mut()) {
                (Some(command), _) => samples.push((command.to_owned(), String::new())),
                (None, Some((_, output))) => *output += &format!("{line}\n"),
                (None, None) => {}
            }
        }
    }
    samples
}

/// `"name":` of what bpftool prints.
fn fields(text: &str) -> Vec<&str> {
    let quoted = text.split('"').skip(1).step_by(2);
    let after = text.split('"').skip(2).step_by(2);
    quoted.zip(after).filter(|(_, after)| after.starts_with(':')).map(|(name, _)| name).collect()
}

#[test]
#[ignore = "needs root and the BPF object: cargo xtask test --tier 2 --filter page_about_maps"]
fn the_page_about_maps_shows_what_bpftool_prints() {
    let _alone = alone();
    let pins = Pins::new();
    let dataplane = Dataplane::load(&pins.options()).expect("load");
    fill(&dataplane, &pins);
    let samples = samples();
    for map in names::MAPS {
        assert!(PAGE.contains(&format!("## {map}\n")), "the page does not tell of {map}");
        assert!(samples.iter().any(|(command, _)| command.contains(map)), "the page has no command for {map}");
    }
    for (command, sample) in &samples {
        let command = command.replace(ROOT, &pins.root().display().to_string());
        let output = Command::new("sh").args(["-c", &command]).output().expect("sh");
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        println!("$ {command}\n{text}");
        assert!(output.status.success(), "{command}: {}", String::from_utf8_lossy(&output.stderr));
        let printed = fields(&text);
        for field in fields(sample) {
            assert!(printed.contains(&field), "{command} prints no field {field}:\n{text}");
        }
        // Numbers of the sample rows, but for clocks and addresses of memory.
        for number in ["\"rule\": 2", "\"flows\": 41", "\"class\": 4"] {
            assert!(!sample.contains(number) || text.contains(number), "{command}: no {number}\n{text}");
        }
    }
}

/// The same maps through `kube-router dump` and as metrics.
#[test]
#[ignore = "needs root and the BPF object: cargo xtask test --tier 2 --filter dump_reads"]
fn dump_reads_the_pinned_maps() {
    let _alone = alone();
    let pins = Pins::new();
    let dataplane = Dataplane::load(&pins.options()).expect("load");
    fill(&dataplane, &pins);
    drop(dataplane);
    let tables = kube_router::apply::bpf::Tables::open(&pins.root()).expect("pinned");
    let names = PolicyNames { pods: [(7, ObjectKey::new("shop", "front-1"))].into(), ..PolicyNames::default() };
    let dump = |what, format| {
        let mut out = Vec::new();
        kernel::dump(what, &tables, &names, format, &mut out).expect("dump");
        String::from_utf8(out).expect("text")
    };
    let words = |line: &str| line.split_whitespace().map(str::to_owned).collect::<Vec<_>>().join(" ");
    let lines = |what| dump(what, Format::Text).lines().skip(1).map(words).collect::<Vec<_>>();
    assert_eq!(lines(What::Endpoints), ["shop/front-1 7 10.244.1.11 12 02:00:00:00:00:07 group 3 open"]);
    assert_eq!(
        lines(What::Policy),
        [
            "3 ingress shop/front-1 10.244.2.21 tcp/8080 allow rule 2",
            "3 ingress shop/front-1 203.0.113.0/24 any allow rule 2"
        ]
    );
    let flows = lines(What::Flows);
    assert!(flows[0].starts_with("shop/front-1 10.244.1.11:8080 10.244.2.21:40112 tcp peer established"), "{flows:?}");
    let balance = kube_router::apply::bpf::BalanceMaps::open(&pins.root()).expect("pinned");
    let mut out = Vec::new();
    kernel::backends(&balance, Format::Text, &mut out).expect("dump");
    let backends = String::from_utf8(out).expect("text");
    assert_eq!(
        backends.lines().skip(1).map(words).collect::<Vec<_>>(),
        ["udp 10.96.0.10:53 3 12 10.244.1.11:5353 open 0"]
    );
    for what in [What::Endpoints, What::Policy, What::Flows] {
        let rows: serde_json::Value = serde_json::from_str(&dump(what, Format::Json)).expect("JSON");
        assert!(rows.as_array().is_some_and(|rows| !rows.is_empty()), "{rows}");
    }
    tables
        .flows
        .delete_all(&tables.flows.read_all().expect("flows").iter().map(|(key, _)| *key).collect::<Vec<_>>())
        .expect("delete");
    assert_eq!(dump(What::Flows, Format::Json), "[]\n");

    let rows = PolicyRows::read(&tables).expect("rows");
    assert_eq!(rows.rules, [(2, RuleCount { flows: 41, bytes: 3_034 })]);
    assert_eq!(rows.drops.len(), 1);
    assert!(
        rows.tables.contains(&(names::POLICY, 2, u64::from(kube_router_common::policy::DEFAULT_ROWS))),
        "{:?}",
        rows.tables
    );
}
