use std::{
    collections::BTreeMap,
    net::{IpAddr, Ipv4Addr, SocketAddr},
};

use proptest::{collection::btree_map, option, prelude::*};

use super::*;
use crate::{
    apply::fake::FakeKernel,
    desired::{Frontend, Hairpin, Origin, Ruleset, Scheduler, ServiceState, Virtual, firewall::Masquerade},
    objects::{ObjectKey, Protocol},
};

const FULL: Guard<'static> = Guard { deletions: true, spared: None, drained: None, excluded: &[] };

fn ip(last: u8) -> IpAddr {
    IpAddr::V4(Ipv4Addr::new(10, 96, 0, last))
}

/// A small world, so that keys collide often.
fn key() -> impl Strategy<Value = VirtualKey> {
    (1..4u8, prop_oneof![Just(Protocol::Tcp), Just(Protocol::Udp)], 80..82u16)
        .prop_map(|(last, protocol, port)| VirtualKey { address: ip(last), protocol, port })
}

fn frontend() -> impl Strategy<Value = Frontend> {
    let destinations = btree_map((1..5u8).prop_map(|d| SocketAddr::from(([10, 244, 0, d], 8080))), Just(1u32), 0..4);
    let scheduler = prop_oneof![Just(Scheduler::Rr), Just(Scheduler::Sh)];
    (scheduler, option::of(Just(600u32)), destinations).prop_map(|(scheduler, persistence_s, destinations)| Frontend {
        origin: Origin::ClusterIp,
        port_name: "".into(),
        fast: true,
        elsewhere: BTreeSet::new(),
        hosts: BTreeSet::new(),
        server: Virtual { scheduler, sched_flags: 0, persistence_s, destinations },
    })
}

fn service() -> impl Strategy<Value = Option<ServiceState>> {
    option::weighted(
        0.8,
        (0..3i64, btree_map(key(), frontend(), 0..4)).prop_map(|(created_s, frontends)| {
            let vips = frontends.keys().map(|key| key.address).collect();
            let hairpins = frontends
                .keys()
                .map(|key| Hairpin {
                    pod: [10, 244, 0, 1].into(),
                    vip: key.address,
                    protocol: key.protocol,
                    port: key.port,
                })
                .collect();
            ServiceState { created_s, frontends, vips, hairpins, health_check: None }
        }),
    )
}

/// A history: which service becomes what.
fn history() -> impl Strategy<Value = Vec<(u8, Option<ServiceState>)>> {
    prop::collection::vec((0..4u8, service()), 1..12)
}

fn desired() -> Desired {
    Desired {
        ruleset: Ruleset {
            guard: true,
            masquerade: Masquerade::All,
            node_ipv4: Some(Ipv4Addr::new(192, 168, 10, 100)),
            node_ipv6: None,
        },
        local_ips: [ip(200)].into(),
        source_ipv4: Some([192, 168, 10, 100].into()),
        ..Desired::default()
    }
}

fn name(number: u8) -> ObjectKey {
    ObjectKey::new("web", format!("s{number}"))
}

/// A full pass in the smallest parts: one address at a time.
fn plan_full(desired: &Desired, observed: &Observed, guard: Guard<'_>) -> Plan {
    let mut plan = plan_foundation(desired, observed, guard);
    let mut all = all_keys(desired, observed);
    while !all.is_empty() {
        plan.stages.extend(plan_changes(&all.take_addresses(1), desired, observed, guard).stages);
    }
    plan
}

fn carry_out(kernel: &FakeKernel, plan: &Plan) {
    for stage in &plan.stages {
        let failures = kernel.apply(stage).expect("no faults");
        assert_eq!(failures, [], "in {stage:?}");
    }
}

fn assert_equal(desired: &Desired, observed: &Observed) {
    let servers: BTreeMap<VirtualKey, Virtual> =
        desired.table.servers().map(|(key, _, frontend)| (*key, frontend.server.clone())).collect();
    assert_eq!(observed.ipvs.servers, servers);
    let vips: BTreeSet<IpAddr> = desired.table.vips().copied().collect();
    assert_eq!(observed.net.dummy_addresses, vips);
    assert_eq!(observed.net.local_routes, vips.iter().map(|vip| (*vip, desired.route_source(*vip))).collect());
    let elements: BTreeSet<SetElement> = desired.elements().collect();
    assert_eq!(observed.firewall.nft, elements);
    let mirrored = elements.iter().filter(|element| element.set().ipset_name().is_some()).copied().collect();
    assert_eq!(observed.firewall.ipset, mirrored);
    assert_eq!(observed.firewall.ruleset.as_ref(), Some(&desired.ruleset));
}

proptest! {
    /// Event by event or all at once: the kernel ends as desired, and a second pass writes nothing.
    #[test]
    fn applying_the_plan_gives_the_desired_state(history in history()) {
        let mut desired = desired();
        let kernel = FakeKernel::new();
        carry_out(&kernel, &plan_full(&desired, &kernel.observe().unwrap(), FULL));
        for (number, state) in history {
            let changes = desired.table.replace(&name(number), state);
            carry_out(&kernel, &plan_changes(&changes, &desired, &kernel.observe().unwrap(), FULL));
            let observed = kernel.observe().unwrap();
            assert_equal(&desired, &observed);
            prop_assert_eq!(plan_full(&desired, &observed, FULL), Plan::default());
            prop_assert_eq!(plan_changes(&changes, &desired, &observed, FULL), Plan::default());
        }
    }

    /// The table does not remember how it came about.
    #[test]
    fn the_table_depends_on_its_services_and_not_on_their_history(
        history in history(),
        order in Just((0..4u8).collect::<Vec<_>>()).prop_shuffle(),
    ) {
        let mut grown = desired();
        let mut last = BTreeMap::new();
        for (number, state) in history {
            grown.table.replace(&name(number), state.clone());
            last.insert(number, state);
        }
        let mut fresh = desired();
        for number in order {
            fresh.table.replace(&name(number), last.get(&number).cloned().flatten());
        }
        let elements = |desired: &Desired| desired.elements().collect::<BTreeSet<_>>();
        let servers = |desired: &Desired| {
            desired.table.servers().map(|(k, o, f)| (*k, (o.clone(), f.clone()))).collect::<BTreeMap<_, _>>()
        };
        prop_assert_eq!(elements(&grown), elements(&fresh));
        prop_assert_eq!(servers(&grown), servers(&fresh));
    }

    /// After every single order each virtual server is the old one, the new one or between the two, and never open
    /// without its server: an address is bound only while each open port of it has a virtual server.
    #[test]
    fn every_prefix_of_a_plan_is_safe(before in history(), after in history()) {
        let mut desired = desired();
        let kernel = FakeKernel::new();
        for (number, state) in before {
            desired.table.replace(&name(number), state);
        }
        carry_out(&kernel, &plan_full(&desired, &kernel.observe().unwrap(), FULL));
        let old = kernel.observe().unwrap();
        for (number, state) in after {
            desired.table.replace(&name(number), state);
        }
        let plan = plan_full(&desired, &old, FULL);
        for stage in &plan.stages {
            for single in singles(stage) {
                kernel.apply(&single).expect("no faults");
                check_prefix(&old, &desired, &kernel.observe().unwrap())?;
            }
        }
    }

    /// Without a complete view nothing is ever removed or reshaped.
    #[test]
    fn an_incomplete_view_only_adds(before in history(), after in history()) {
        let incomplete = Guard { deletions: false, ..FULL };
        let mut desired = desired();
        let kernel = FakeKernel::new();
        for (number, state) in before {
            desired.table.replace(&name(number), state);
        }
        carry_out(&kernel, &plan_full(&desired, &kernel.observe().unwrap(), FULL));
        for (number, state) in after {
            desired.table.replace(&name(number), state);
        }
        for stage in plan_full(&desired, &kernel.observe().unwrap(), incomplete).stages {
            for single in singles(&stage) {
                let removes = matches!(
                    &single,
                    Stage::Conntrack(_)
                ) || matches!(&single, Stage::Ipvs(ops) if matches!(ops[0],
                        IpvsOp::DeleteServer { .. } | IpvsOp::DeleteDestination { .. } | IpvsOp::DeleteMarkServer { .. }))
                  || matches!(&single, Stage::Net(ops) if matches!(ops[0],
                        NetOp::DeleteAddress(_) | NetOp::DeleteLocalRoute { .. } | NetOp::DeleteDummy))
                  || matches!(&single, Stage::Firewall(ops) if matches!(ops[0],
                        FirewallOp::DeleteElement(..) | FirewallOp::DeleteAll));
                prop_assert!(!removes, "{:?}", single);
            }
        }
    }
}

fn singles(stage: &Stage) -> Vec<Stage> {
    match stage {
        Stage::Ipvs(ops) => ops.iter().map(|op| Stage::Ipvs(vec![op.clone()])).collect(),
        Stage::Net(ops) => ops.iter().map(|op| Stage::Net(vec![op.clone()])).collect(),
        Stage::Firewall(ops) => ops.iter().map(|op| Stage::Firewall(vec![op.clone()])).collect(),
        Stage::Conntrack(flows) => vec![Stage::Conntrack(flows.clone())],
    }
}

fn check_prefix(old: &Observed, desired: &Desired, now: &Observed) -> Result<(), TestCaseError> {
    for (key, server) in &now.ipvs.servers {
        let before = old.ipvs.servers.get(key);
        let wanted = desired.table.server(key).map(|(_, frontend)| &frontend.server);
        prop_assert!(before.is_some() || wanted.is_some());
        for destination in server.destinations.keys() {
            let known = |server: Option<&Virtual>| server.is_some_and(|s| s.destinations.contains_key(destination));
            prop_assert!(known(before) || known(wanted), "{destination} of {key} was never asked for");
        }
        // Destinations that stay are never missing, and a server that has some before and after always has some.
        if let (Some(before), Some(wanted)) = (before, wanted) {
            for destination in before.destinations.keys().filter(|d| wanted.destinations.contains_key(*d)) {
                prop_assert!(server.destinations.contains_key(destination));
            }
            if !before.destinations.is_empty() && !wanted.destinations.is_empty() {
                prop_assert!(!server.destinations.is_empty(), "{key} had nobody to answer");
            }
        }
    }
    for key in old.ipvs.servers.keys() {
        if desired.table.server(key).is_some() {
            prop_assert!(now.ipvs.servers.contains_key(key), "{key} was away");
        }
    }
    // Whoever may pass the guard to a bound address finds a virtual server there.
    for element in &now.firewall.nft {
        if let SetElement::ServicePort(key) = element
            && now.net.dummy_addresses.contains(&key.address)
            && !old.net.dummy_addresses.contains(&key.address)
        {
            prop_assert!(now.ipvs.servers.contains_key(key), "{key} is open and nobody answers");
        }
    }
    // A bound address is guarded.
    for address in &now.net.dummy_addresses {
        prop_assert!(now.firewall.nft.contains(&SetElement::ServiceIp(*address)), "{address} is bound without guard");
    }
    Ok(())
}

fn one_service(destinations: &[u8]) -> ServiceState {
    let key = VirtualKey { address: ip(1), protocol: Protocol::Udp, port: 53 };
    let server = Virtual {
        destinations: destinations.iter().map(|d| (SocketAddr::from(([10, 244, 0, *d], 53)), 1)).collect(),
        ..Virtual::default()
    };
    let frontend = Frontend {
        origin: Origin::ClusterIp,
        port_name: "dns".into(),
        fast: true,
        elsewhere: BTreeSet::new(),
        hosts: BTreeSet::new(),
        server,
    };
    ServiceState { frontends: [(key, frontend)].into(), vips: [ip(1)].into(), ..ServiceState::default() }
}

#[test]
fn removing_one_udp_endpoint_flushes_its_flows_alone() {
    let mut desired = desired();
    let kernel = FakeKernel::new();
    desired.table.replace(&name(0), Some(one_service(&[1, 2])));
    carry_out(&kernel, &plan_full(&desired, &kernel.observe().unwrap(), FULL));
    let changes = desired.table.replace(&name(0), Some(one_service(&[2])));
    let plan = plan_changes(&changes, &desired, &kernel.observe().unwrap(), FULL);
    let key = VirtualKey { address: ip(1), protocol: Protocol::Udp, port: 53 };
    let gone = SocketAddr::from(([10, 244, 0, 1], 53));
    assert_eq!(
        plan.stages,
        [
            Stage::Ipvs(vec![IpvsOp::DeleteDestination { key, destination: gone }]),
            Stage::Conntrack(vec![UdpFlow { server: key, destination: gone }]),
        ]
    );
}

#[test]
fn graceful_removal_drains_first_and_deletes_when_the_drain_is_over() {
    let mut desired = desired();
    let kernel = FakeKernel::new();
    desired.table.replace(&name(0), Some(one_service(&[1, 2])));
    carry_out(&kernel, &plan_full(&desired, &kernel.observe().unwrap(), FULL));
    let changes = desired.table.replace(&name(0), Some(one_service(&[2])));
    let key = VirtualKey { address: ip(1), protocol: Protocol::Udp, port: 53 };
    let destination = SocketAddr::from(([10, 244, 0, 1], 53));
    let none = BTreeSet::new();
    let guard = Guard { drained: Some(&none), ..FULL };
    let plan = plan_changes(&changes, &desired, &kernel.observe().unwrap(), guard);
    assert_eq!(plan.stages, [Stage::Ipvs(vec![IpvsOp::EditDestination { key, destination, weight: 0 }])]);
    carry_out(&kernel, &plan);
    assert!(plan_full(&desired, &kernel.observe().unwrap(), guard).is_empty(), "a draining destination is left alone");
    let over = [(key, destination)].into();
    let plan = plan_full(&desired, &kernel.observe().unwrap(), Guard { drained: Some(&over), ..FULL });
    assert_eq!(plan.stages[0], Stage::Ipvs(vec![IpvsOp::DeleteDestination { key, destination }]));
}

#[test]
fn a_foreign_virtual_server_goes_unless_its_address_is_excluded() {
    let desired = desired();
    let kernel = FakeKernel::new();
    let key = |last| VirtualKey { address: ip(last), protocol: Protocol::Tcp, port: 99 };
    for last in [50, 60] {
        kernel.0.borrow_mut().kernel.ipvs.servers.insert(key(last), Virtual::default());
    }
    kernel.0.borrow_mut().kernel.ipvs.marks.insert((77, false));
    let excluded = ["10.96.0.60/32".parse().unwrap()];
    carry_out(&kernel, &plan_full(&desired, &kernel.observe().unwrap(), Guard { excluded: &excluded, ..FULL }));
    let observed = kernel.observe().unwrap();
    assert_eq!(observed.ipvs.servers.keys().collect::<Vec<_>>(), [&key(60)]);
    assert!(observed.ipvs.marks.is_empty());
}

#[test]
fn cleanup_removes_what_is_ours_and_nothing_else() {
    let mut desired = desired();
    let kernel = FakeKernel::new();
    desired.table.replace(&name(0), Some(one_service(&[1])));
    // A node port: no VIP, but written down in the set.
    let node_port = VirtualKey { address: [192, 168, 10, 100].into(), protocol: Protocol::Tcp, port: 30080 };
    let frontend = Frontend {
        origin: Origin::NodePort,
        port_name: "".into(),
        fast: true,
        elsewhere: BTreeSet::new(),
        hosts: BTreeSet::new(),
        server: Virtual::default(),
    };
    let state = ServiceState { frontends: [(node_port, frontend)].into(), ..ServiceState::default() };
    desired.table.replace(&name(1), Some(state));
    carry_out(&kernel, &plan_full(&desired, &kernel.observe().unwrap(), FULL));
    let foreign = VirtualKey { address: ip(99), protocol: Protocol::Tcp, port: 99 };
    kernel.0.borrow_mut().kernel.ipvs.servers.insert(foreign, Virtual::default());
    carry_out(&kernel, &plan_cleanup(&kernel.observe().unwrap(), &[]));
    let observed = kernel.observe().unwrap();
    assert_eq!(observed.ipvs.servers.keys().collect::<Vec<_>>(), [&foreign]);
    assert_eq!(observed.net, ObservedNet::default());
    assert_eq!(observed.firewall, ObservedFirewall::default());
    assert!(plan_cleanup(&observed, &[]).is_empty());
}
