//! Which services are handled, and what each kind of address becomes.

use super::*;
use crate::objects::{EndpointPort, Protocol};

#[test]
fn a_cluster_ip_service_has_one_virtual_server_and_its_address_on_the_node() {
    World::new("spec: {clusterIP: 10.96.0.10, ports: [{port: 80, targetPort: 8080}]}")
        .endpoints("10.244.1.17@n1 10.244.2.33@n2")
        .gives(&["ClusterIP tcp 10.96.0.10:80 rr -> 10.244.1.17:8080 10.244.2.33:8080", "vip 10.96.0.10"]);
}

#[test]
fn services_that_are_not_ours_are_left_alone_with_all_their_addresses() {
    let rest = "externalIPs: [203.0.113.9], ports: [{port: 80}]";
    for spec in [
        "type: ExternalName, externalName: example.org, clusterIP: 10.96.0.10",
        "clusterIP: None",
        "clusterIP: none",
        "clusterIP: NONE",
        "clusterIP: ''",
        "clusterIPs: [None]",
        "type: ClusterIP",
    ] {
        World::new(&format!("spec: {{{spec}, {rest}}}")).endpoints("10.244.1.17@n1").gives(&["nothing"]);
    }
    let world = || World::new("spec: {clusterIP: 10.96.0.10, ports: [{port: 80}]}").endpoints("10.244.1.17@n1");
    world().labelled("service.kubernetes.io/service-proxy-name", "other").gives(&["nothing"]);
    // The value matters even when it is empty: it is not our name.
    world().labelled("service.kubernetes.io/service-proxy-name", "").gives(&["nothing"]);
    for value in ["", "false", "true"] {
        world().labelled("service.kubernetes.io/headless", value).gives(&["nothing"]);
    }
}

#[test]
fn a_service_that_names_us_as_its_proxy_is_ours() {
    World::new("spec: {clusterIP: 10.96.0.10, ports: [{port: 80}]}")
        .labelled("service.kubernetes.io/service-proxy-name", "kube-router")
        .gives_servers(&["ClusterIP tcp 10.96.0.10:80 rr ->"]);
}

#[test]
fn a_cluster_ip_that_is_no_address_is_named_and_the_other_one_works() {
    World::new("spec: {clusterIPs: [10.96.0.10, ten], ports: [{port: 80}]}").gives(&[
        "ClusterIP tcp 10.96.0.10:80 rr ->",
        "vip 10.96.0.10",
        "Service shop/web: clusterIP \"ten\" is not an IP address and is ignored (InvalidClusterIp)",
    ]);
    World::new("spec: {clusterIP: ten, ports: [{port: 80}]}").complains(&[("InvalidClusterIp", "\"ten\"")]);
}

#[test]
fn each_port_and_protocol_is_a_virtual_server_of_its_own_with_its_own_target() {
    World::new(
        "spec: {clusterIP: 10.96.0.10, ports: [{name: http, port: 80}, {name: https, port: 443}, \
         {name: dns, port: 53, protocol: UDP}, {name: dns-tcp, port: 53}, {name: sig, port: 53, protocol: SCTP}]}",
    )
    .slice_of(
        [("http", Protocol::Tcp, 8080), ("https", Protocol::Tcp, 8443), ("dns", Protocol::Udp, 5353)]
            .map(|(name, protocol, port)| EndpointPort { name: name.into(), protocol, port: Some(port) })
            .into(),
        "10.244.1.17@n1",
    )
    .slice("dns-tcp", Protocol::Tcp, 5354, "10.244.1.18@n1")
    .slice("sig", Protocol::Sctp, 1132, "10.244.1.19@n1")
    .gives(&[
        "ClusterIP tcp 10.96.0.10:53 rr -> 10.244.1.18:5354",
        "ClusterIP tcp 10.96.0.10:80 rr -> 10.244.1.17:8080",
        "ClusterIP tcp 10.96.0.10:443 rr -> 10.244.1.17:8443",
        "ClusterIP udp 10.96.0.10:53 rr -> 10.244.1.17:5353",
        "ClusterIP sctp 10.96.0.10:53 rr -> 10.244.1.19:1132",
        "vip 10.96.0.10",
    ]);
}

/// A named target port may be another number in each pod; the slices say which.
#[test]
fn pods_of_one_port_may_listen_on_different_numbers() {
    World::new("spec: {clusterIP: 10.96.0.10, ports: [{name: http, port: 80, targetPort: web}]}")
        .slice("http", Protocol::Tcp, 8080, "10.244.1.17@n1")
        .slice("http", Protocol::Tcp, 9090, "10.244.1.18@n1")
        .gives_servers(&["ClusterIP tcp 10.96.0.10:80 rr -> 10.244.1.17:8080 10.244.1.18:9090"]);
}

#[test]
fn a_slice_with_another_port_name_or_protocol_is_not_for_this_port() {
    World::new("spec: {clusterIP: 10.96.0.10, ports: [{name: http, port: 80}]}")
        .slice("web", Protocol::Tcp, 8080, "10.244.1.17@n1")
        .slice("http", Protocol::Udp, 8080, "10.244.1.18@n1")
        .gives_servers(&["ClusterIP tcp 10.96.0.10:80 rr ->"]);
}

#[test]
fn two_ports_that_want_one_number_are_named_and_the_first_has_it() {
    let world = World::new("spec: {clusterIP: 10.96.0.10, ports: [{name: a, port: 80}, {name: b, port: 80}]}")
        .slice("a", Protocol::Tcp, 1, "10.244.1.17@n1")
        .slice("b", Protocol::Tcp, 2, "10.244.1.17@n1");
    world.gives_servers(&["ClusterIP tcp 10.96.0.10:80 rr -> 10.244.1.17:1"]);
    world.complains(&[("DuplicatePort", "tcp 10.96.0.10:80")]);
}

#[test]
fn both_families_of_a_dual_stack_service_are_served_each_by_its_own_endpoints() {
    let world = || {
        World::new("spec: {clusterIPs: [10.96.0.10, 'fd00:10:96::10'], ports: [{port: 80}]}")
            .endpoints("10.244.1.17@n1 10.244.2.33@n2")
            .endpoints("fd00:10:244:1::11@n1")
    };
    world().dual_stack().gives(&[
        "ClusterIP tcp 10.96.0.10:80 rr -> 10.244.1.17:8080 10.244.2.33:8080",
        "ClusterIP tcp [fd00:10:96::10]:80 rr -> [fd00:10:244:1::11]:8080",
        "vip 10.96.0.10",
        "vip fd00:10:96::10",
    ]);
    let only4 = ["ClusterIP tcp 10.96.0.10:80 rr -> 10.244.1.17:8080 10.244.2.33:8080", "vip 10.96.0.10"];
    world().gives(&only4);
    world()
        .dual_stack()
        .config(|config| config.ipv4 = false)
        .gives(&["ClusterIP tcp [fd00:10:96::10]:80 rr -> [fd00:10:244:1::11]:8080", "vip fd00:10:96::10"]);
}

#[test]
fn every_kind_of_address_reaches_the_same_endpoints() {
    World::new(
        "spec: {type: LoadBalancer, clusterIP: 10.96.0.10, externalIPs: [203.0.113.9], \
         ports: [{port: 80, nodePort: 30080}]}, status: {loadBalancer: {ingress: [{ip: 203.0.113.129}]}}",
    )
    .endpoints("10.244.2.33@n2")
    .gives(&[
        "ClusterIP tcp 10.96.0.10:80 rr -> 10.244.2.33:8080",
        "NodePort tcp 192.168.77.1:30080 rr -> 10.244.2.33:8080",
        "ExternalIP tcp 203.0.113.9:80 rr -> 10.244.2.33:8080",
        "LoadBalancer tcp 203.0.113.129:80 rr -> 10.244.2.33:8080",
        "vip 10.96.0.10",
        "vip 203.0.113.9",
        "vip 203.0.113.129",
    ]);
}

#[test]
fn an_external_address_that_is_the_node_s_own_is_served_and_not_put_on_kube_dummy_if() {
    let world = || {
        World::new("spec: {clusterIP: 10.96.0.10, externalIPs: [192.168.77.1], ports: [{port: 80}]}")
            .config(|config| config.strict_external_ips = false)
            .endpoints("10.244.1.17@n1")
    };
    world().gives(&[
        "ClusterIP tcp 10.96.0.10:80 rr -> 10.244.1.17:8080",
        "ExternalIP tcp 192.168.77.1:80 rr -> 10.244.1.17:8080",
        "vip 10.96.0.10",
    ]);
}

#[test]
fn a_service_without_ports_is_nothing_to_serve() {
    World::new("spec: {clusterIP: 10.96.0.10, ports: []}").gives(&[]);
}
