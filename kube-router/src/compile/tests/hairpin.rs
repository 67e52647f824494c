//! Pods that reach themselves through their service: by which addresses.

use super::*;
use crate::objects::Protocol;

const SPEC: &str = "spec: {type: NodePort, clusterIP: 10.96.0.10, externalIPs: [203.0.113.9], \
                    ports: [{port: 80, nodePort: 30080}]}, status: {loadBalancer: {ingress: [{ip: 203.0.113.129}]}}";

fn world() -> World {
    World::new(SPEC).endpoints("10.244.1.17@n1 10.244.2.33@n2")
}

fn hairpins(world: &World) -> Vec<String> {
    let lines = world.lines().into_iter();
    lines.filter_map(|line| line.strip_prefix("hairpin ").map(str::to_owned)).collect()
}

const OWN: [&str; 2] = ["10.244.1.17 by tcp 10.96.0.10:80", "10.244.1.17 by tcp 192.168.77.1:30080"];
const WITH_EXTERNAL: [&str; 3] = [OWN[0], OWN[1], "10.244.1.17 by tcp 203.0.113.9:80"];

#[test]
fn hairpin_is_off_unless_the_annotation_is_there_or_the_flag_is_set() {
    assert_eq!(hairpins(&world()), [""; 0]);
    // Presence counts, whatever the value is.
    for value in ["", "true", "false"] {
        assert_eq!(hairpins(&world().annotated("service.hairpin", value)), OWN, "{value:?}");
    }
    assert_eq!(hairpins(&world().config(|config| config.hairpin_all = true)), OWN);
}

#[test]
fn external_addresses_need_an_annotation_of_their_own_and_hairpin_itself() {
    let external = || world().annotated("service.hairpin.externalips", "");
    assert_eq!(hairpins(&external()), [""; 0]);
    assert_eq!(hairpins(&external().annotated("service.hairpin", "")), WITH_EXTERNAL, "but no load-balancer address");
    assert_eq!(hairpins(&external().config(|config| config.hairpin_all = true)), WITH_EXTERNAL);
}

#[test]
fn only_local_pods_that_are_used_need_it() {
    let words = "10.244.1.17@n1 10.244.1.18@n1/notready 10.244.1.19@n1/terminating 10.244.2.33@n2";
    let world = World::new(SPEC).annotated("service.hairpin", "").endpoints(words);
    assert_eq!(hairpins(&world), OWN);
}

/// It reaches itself without leaving the node's stack.
#[test]
fn a_pod_in_the_host_s_network_needs_none() {
    let world = World::new(SPEC).annotated("service.hairpin", "").endpoints("192.168.77.1@n1");
    assert_eq!(hairpins(&world), [""; 0]);
}

#[test]
fn the_node_port_s_hairpin_is_for_the_primary_address_only() {
    let world = world().annotated("service.hairpin", "").config(|config| config.node_port_all_addresses = true);
    assert_eq!(hairpins(&world), OWN);
}

#[test]
fn every_port_and_protocol_has_its_own() {
    let world =
        World::new("spec: {clusterIP: 10.96.0.10, ports: [{name: a, port: 80}, {name: b, port: 53, protocol: UDP}]}")
            .annotated("service.hairpin", "")
            .slice("a", Protocol::Tcp, 8080, "10.244.1.17@n1")
            .slice("b", Protocol::Udp, 5353, "10.244.1.18@n1");
    assert_eq!(hairpins(&world), ["10.244.1.17 by tcp 10.96.0.10:80", "10.244.1.18 by udp 10.96.0.10:53"]);
}

#[test]
fn each_family_has_its_own_and_a_disabled_family_has_none() {
    let dual = || {
        World::new(
            "spec: {type: NodePort, clusterIPs: [10.96.0.10, 'fd00:10:96::10'], ports: [{port: 80, nodePort: 30080}]}",
        )
        .annotated("service.hairpin", "")
        .endpoints("10.244.1.17@n1")
        .endpoints("fd00:10:244:1::11@n1")
    };
    let six = ["fd00:10:244:1::11 by tcp [fd00:10:96::10]:80", "fd00:10:244:1::11 by tcp [fd00:77::1]:30080"];
    assert_eq!(hairpins(&dual().dual_stack()), [OWN[0], OWN[1], six[0], six[1]]);
    assert_eq!(hairpins(&dual()), OWN);
}

/// A service that became ClusterIP may still carry the number.
#[test]
fn a_left_over_node_port_has_none() {
    let spec = SPEC.replace("type: NodePort,", "type: ClusterIP,");
    let world = World::new(&spec).annotated("service.hairpin", "").endpoints("10.244.1.17@n1");
    assert_eq!(hairpins(&world), [OWN[0]]);
}
