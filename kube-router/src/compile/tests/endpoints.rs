//! Which endpoints become destinations.

use super::*;
use crate::objects::{AddressType, EndpointPort, Protocol};

fn web() -> World {
    World::new("spec: {clusterIP: 10.96.0.10, ports: [{port: 80}]}")
}

fn served(words: &str) -> Vec<String> {
    let lines = web().endpoints(words).lines();
    let destinations = lines[0].strip_prefix("ClusterIP tcp 10.96.0.10:80 rr ->").unwrap().to_owned();
    destinations.split_whitespace().map(str::to_owned).collect()
}

#[test]
fn ready_endpoints_are_used_and_the_others_are_not() {
    for (words, expected) in [
        ("10.0.0.1/ready 10.0.0.2/notready 10.0.0.3/null 10.0.0.4/gone", &["10.0.0.1:8080"][..]),
        ("10.0.0.1/notready 10.0.0.2/notready", &[]),
        ("10.0.0.1/null", &[]),
        ("", &[]),
    ] {
        assert_eq!(served(words), expected, "{words}");
    }
}

/// Kubernetes' rule; the original keeps a serving endpoint at full weight until it leaves the slice.
#[test]
fn terminating_endpoints_that_serve_are_the_last_resort() {
    for (words, expected) in [
        ("10.0.0.1/ready 10.0.0.2/terminating", &["10.0.0.1:8080"][..]),
        ("10.0.0.1/notready 10.0.0.2/terminating 10.0.0.3/gone", &["10.0.0.2:8080"]),
        ("10.0.0.1/terminating 10.0.0.2/terminating", &["10.0.0.1:8080", "10.0.0.2:8080"]),
        ("10.0.0.1/gone", &[]),
    ] {
        assert_eq!(served(words), expected, "{words}");
    }
}

/// `publishNotReadyAddresses` reaches us only as `ready: true`, also of a pod that is going.
#[test]
fn published_endpoints_count_as_ready_whatever_their_pods_are() {
    for (words, expected) in [
        ("10.0.0.1/published", &["10.0.0.1:8080"][..]),
        ("10.0.0.1/published 10.0.0.2/ready", &["10.0.0.1:8080", "10.0.0.2:8080"]),
        ("10.0.0.1/published 10.0.0.2/terminating", &["10.0.0.1:8080"]),
    ] {
        assert_eq!(served(words), expected, "{words}");
    }
}

/// `~` is followed by the zones and `^` by the nodes that an endpoint is meant for; this node is n1, in zone a.
#[test]
fn endpoints_that_are_meant_for_the_node_or_its_zone_come_first() {
    for (words, expected) in [
        ("10.0.0.1~a 10.0.0.2~b", &["10.0.0.1:8080"][..]),
        ("10.0.0.1~b+a 10.0.0.2~b", &["10.0.0.1:8080"]),
        // Nobody is meant for us, or not of all it is said: all.
        ("10.0.0.1~b 10.0.0.2~c", &["10.0.0.1:8080", "10.0.0.2:8080"]),
        ("10.0.0.1~a 10.0.0.2", &["10.0.0.1:8080", "10.0.0.2:8080"]),
        // The node is nearer than the zone.
        ("10.0.0.1~a^n1 10.0.0.2~a^n2 10.0.0.3~b^n3", &["10.0.0.1:8080"]),
        ("10.0.0.1~a^n4 10.0.0.2~a^n2 10.0.0.3~b^n3", &["10.0.0.1:8080", "10.0.0.2:8080"]),
        ("10.0.0.1~a^n1 10.0.0.2~a 10.0.0.3~b", &["10.0.0.1:8080", "10.0.0.2:8080"]),
        // Only who is ready has a say.
        ("10.0.0.1~a/terminating 10.0.0.2~b", &["10.0.0.2:8080"]),
        ("10.0.0.1~a 10.0.0.2/notready", &["10.0.0.1:8080"]),
        ("10.0.0.1~b/terminating 10.0.0.2~a/terminating", &["10.0.0.1:8080", "10.0.0.2:8080"]),
        // Each family by itself.
        ("10.0.0.1~a 10.0.0.2~b fd00::1", &["10.0.0.1:8080"]),
    ] {
        assert_eq!(served(words), expected, "{words}");
    }
    let local = World::new("spec: {clusterIP: 10.96.0.10, internalTrafficPolicy: Local, ports: [{port: 80}]}");
    local.endpoints("10.0.0.1@n1~b 10.0.0.2@n2~a").gives_servers(&["ClusterIP tcp 10.96.0.10:80 rr -> 10.0.0.1:8080"]);
}

/// The slices of one service, and destinations in the order of their addresses whatever the order of the slices.
#[test]
fn endpoints_of_several_slices_are_one_list() {
    let expected = ["ClusterIP tcp 10.96.0.10:80 rr -> 10.0.0.2:8080 10.0.0.10:8080 10.0.0.100:8080"];
    web().endpoints("10.0.0.100 10.0.0.2").endpoints("10.0.0.10").gives_servers(&expected);
    web().endpoints("10.0.0.10").endpoints("10.0.0.2 10.0.0.100").gives_servers(&expected);
}

/// While the controller moves an endpoint from slice to slice it is in both, and the two may not agree.
#[test]
fn an_endpoint_in_two_slices_is_one_destination_with_the_better_state() {
    let expected = ["ClusterIP tcp 10.96.0.10:80 rr -> 10.0.0.1:8080"];
    web().endpoints("10.0.0.1").endpoints("10.0.0.1").gives_servers(&expected);
    web().endpoints("10.0.0.1/notready").endpoints("10.0.0.1/ready").gives_servers(&expected);
    web().endpoints("10.0.0.1/ready 10.0.0.2/terminating").endpoints("10.0.0.1/terminating").gives_servers(&expected);
}

#[test]
fn slices_of_names_and_slices_marked_headless_are_ignored() {
    web()
        .endpoints("10.0.0.1")
        .last_slice(|slice| slice.headless_label = true)
        .endpoints("10.0.0.2")
        .last_slice(|slice| slice.address_type = AddressType::Fqdn)
        .endpoints("10.0.0.3")
        .gives(&["ClusterIP tcp 10.96.0.10:80 rr -> 10.0.0.3:8080", "vip 10.96.0.10"]);
}

#[test]
fn a_slice_without_a_port_number_is_named_and_has_no_endpoints() {
    for port in [None, Some(0)] {
        let ports = vec![EndpointPort { name: "".into(), protocol: Protocol::Tcp, port }];
        let world = web().slice_of(ports, "10.0.0.1");
        world.gives_servers(&["ClusterIP tcp 10.96.0.10:80 rr ->"]);
        world.complains(&[("InvalidEndpointPort", "no usable number")]);
    }
}

#[test]
fn addresses_that_the_slice_cannot_hold_are_named() {
    let world = web().endpoints("10.0.0.1").last_slice(|slice| slice.bad_addresses = vec!["fd00::1".into()]);
    world.gives_servers(&["ClusterIP tcp 10.96.0.10:80 rr -> 10.0.0.1:8080"]);
    world.complains(&[("InvalidEndpointAddress", "fd00::1")]);
}

/// Such a service refuses connections: the kernel answers for a virtual server without destinations.
#[test]
fn a_service_without_endpoints_is_a_virtual_server_without_destinations() {
    let expected = ["ClusterIP tcp 10.96.0.10:80 rr ->", "vip 10.96.0.10"];
    web().gives(&expected);
    web().endpoints("10.0.0.1/notready").gives(&expected);
}

#[test]
fn a_pod_in_the_host_s_network_is_an_endpoint_like_any_other() {
    web()
        .endpoints("192.168.77.1@n1 192.168.77.2@n2")
        .gives_servers(&["ClusterIP tcp 10.96.0.10:80 rr -> 192.168.77.1:8080 192.168.77.2:8080"]);
}
