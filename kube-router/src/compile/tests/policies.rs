//! internalTrafficPolicy, externalTrafficPolicy and the annotation service.local.

use super::*;

const CLUSTER: &str = "ClusterIP tcp 10.96.0.10:80 rr ->";
const NODE: &str = "NodePort tcp 192.168.77.1:30080 rr ->";
const EXTERNAL: &str = "ExternalIP tcp 203.0.113.9:80 rr ->";
const BALANCER: &str = "LoadBalancer tcp 203.0.113.129:80 rr ->";
const BOTH: &str = " 10.244.1.17:8080 10.244.2.33:8080";
const OURS: &str = " 10.244.1.17:8080";
const THEIRS: &str = " 10.244.2.33:8080";

/// A service with every kind of address.
fn world(policies: &str) -> World {
    World::new(&format!(
        "spec: {{type: LoadBalancer, clusterIP: 10.96.0.10, externalIPs: [203.0.113.9], {policies} \
         ports: [{{port: 80, nodePort: 30080}}]}}, status: {{loadBalancer: {{ingress: [{{ip: 203.0.113.129}}]}}}}"
    ))
}

#[track_caller]
fn check(world: World, cluster: Option<&str>, external: Option<&str>) {
    let kinds = [(CLUSTER, cluster), (NODE, external), (EXTERNAL, external), (BALANCER, external)];
    let expected: Vec<String> =
        kinds.iter().filter_map(|(head, destinations)| Some(format!("{head}{}", (*destinations)?))).collect();
    world.gives_servers(&expected.iter().map(String::as_str).collect::<Vec<_>>());
    // An address without virtual server is not on the node.
    let vips: Vec<String> = world.lines().into_iter().filter(|line| line.starts_with("vip ")).collect();
    let mut wanted = Vec::new();
    wanted.extend(cluster.map(|_| "vip 10.96.0.10".to_owned()));
    wanted.extend(external.iter().flat_map(|_| ["vip 203.0.113.9", "vip 203.0.113.129"]).map(str::to_owned));
    assert_eq!(vips, wanted);
}

#[test]
fn each_policy_restricts_its_own_kinds_of_addresses_to_local_endpoints() {
    for (policies, cluster, external) in [
        ("", BOTH, BOTH),
        ("internalTrafficPolicy: Cluster, externalTrafficPolicy: Cluster,", BOTH, BOTH),
        ("internalTrafficPolicy: Local,", OURS, BOTH),
        ("externalTrafficPolicy: Local,", BOTH, OURS),
        ("internalTrafficPolicy: Local, externalTrafficPolicy: Local,", OURS, OURS),
    ] {
        let world = world(policies).endpoints("10.244.1.17@n1 10.244.2.33@n2");
        check(world, Some(cluster), Some(external));
    }
}

#[test]
fn a_local_policy_without_a_local_endpoint_means_no_virtual_server_and_no_address() {
    for (policies, cluster, external) in [
        ("", Some(THEIRS), Some(THEIRS)),
        ("internalTrafficPolicy: Local,", None, Some(THEIRS)),
        ("externalTrafficPolicy: Local,", Some(THEIRS), None),
        ("internalTrafficPolicy: Local, externalTrafficPolicy: Local,", None, None),
    ] {
        check(world(policies).endpoints("10.244.2.33@n2 10.244.1.17@n1/notready"), cluster, external);
    }
}

/// An endpoint whose node is not known is on no node.
#[test]
fn only_an_endpoint_that_names_this_node_is_local() {
    let policies = "externalTrafficPolicy: Local,";
    check(world(policies).endpoints("10.244.1.17"), Some(OURS), None);
    check(world(policies).endpoints("10.244.1.17@N1"), Some(OURS), None);
    check(world(policies).endpoints("10.244.1.17@n1"), Some(OURS), Some(OURS));
}

/// Local traffic has no other place to go, so this node's own terminating endpoint comes before a ready one elsewhere.
#[test]
fn with_a_local_policy_the_last_resort_is_chosen_among_local_endpoints() {
    let world = world("externalTrafficPolicy: Local,").endpoints("10.244.1.17@n1/terminating 10.244.2.33@n2");
    check(world, Some(THEIRS), Some(OURS));
}

#[test]
fn service_local_forces_the_external_policy_to_local_and_the_internal_one_to_cluster() {
    for policies in [
        "",
        "internalTrafficPolicy: Local,",
        "externalTrafficPolicy: Local,",
        "internalTrafficPolicy: Local, externalTrafficPolicy: Cluster,",
    ] {
        let annotated = || world(policies).annotated("service.local", "true");
        check(annotated().endpoints("10.244.1.17@n1 10.244.2.33@n2"), Some(BOTH), Some(OURS));
        check(annotated().endpoints("10.244.2.33@n2"), Some(THEIRS), None);
    }
}

#[test]
fn service_local_counts_only_with_the_value_true() {
    for value in ["false", "True", "1", "yes", "", " true"] {
        check(
            world("").annotated("service.local", value).endpoints("10.244.1.17@n1 10.244.2.33@n2"),
            Some(BOTH),
            Some(BOTH),
        );
    }
}

/// One family's local endpoint does not keep the other family's address alive.
#[test]
fn a_local_policy_is_judged_by_family() {
    World::new(
        "spec: {type: NodePort, clusterIPs: [10.96.0.10, 'fd00:10:96::10'], externalTrafficPolicy: Local, \
         ports: [{port: 80, nodePort: 30080}]}",
    )
    .dual_stack()
    .endpoints("10.244.1.17@n1")
    .endpoints("fd00:10:244:2::21@n2")
    .gives_servers(&[
        "ClusterIP tcp 10.96.0.10:80 rr -> 10.244.1.17:8080",
        "NodePort tcp 192.168.77.1:30080 rr -> 10.244.1.17:8080",
        "ClusterIP tcp [fd00:10:96::10]:80 rr -> [fd00:10:244:2::21]:8080",
    ]);
}

/// The load balancer in front asks this port on every node.
#[test]
fn the_health_check_counts_local_endpoints_that_are_not_terminating() {
    for (words, count) in [
        ("10.244.1.17@n1 10.244.1.18@n1 10.244.2.33@n2", 2),
        ("10.244.1.17@n1/terminating 10.244.1.18@n1", 1),
        ("10.244.1.17@n1/terminating", 0),
        ("10.244.1.17@n1/notready 10.244.2.33@n2", 0),
        ("", 0),
    ] {
        let lines = world("externalTrafficPolicy: Local, healthCheckNodePort: 30222,").endpoints(words).lines();
        assert_eq!(lines.last(), Some(&format!("health check 30222: {count}")), "{words}");
    }
    let lines = world("externalTrafficPolicy: Local,").endpoints("10.244.1.17@n1").lines();
    assert!(!lines.iter().any(|line| line.starts_with("health check")), "none is asked for");
}

/// An endpoint is counted once, however many ports it serves and whatever families it has.
#[test]
fn the_health_check_of_a_service_with_several_ports_counts_pods() {
    use crate::objects::{EndpointPort, Protocol};
    let ports = ["a", "b"].map(|name| EndpointPort { name: name.into(), protocol: Protocol::Tcp, port: Some(1) });
    let world = World::new(
        "spec: {type: LoadBalancer, clusterIP: 10.96.0.10, externalTrafficPolicy: Local, healthCheckNodePort: 30222, \
         ports: [{name: a, port: 80}, {name: b, port: 81}]}",
    )
    .slice_of(ports.into(), "10.244.1.17@n1 10.244.1.18@n1");
    assert_eq!(world.lines().last().unwrap(), "health check 30222: 2");
}
