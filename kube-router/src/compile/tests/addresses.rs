//! External and load-balancer addresses: which are taken, and what is said of the others.

use super::*;

fn external(addresses: &str) -> World {
    World::new(&format!("spec: {{clusterIP: 10.96.0.10, externalIPs: [{addresses}], ports: [{{port: 80}}]}}"))
}

fn balancer(ingress: &str) -> World {
    World::new(&format!(
        "spec: {{type: LoadBalancer, clusterIP: 10.96.0.10, ports: [{{port: 80}}]}}, \
         status: {{loadBalancer: {{ingress: [{ingress}]}}}}"
    ))
}

/// The taken addresses beside the ClusterIP, and the complaints.
fn judged(world: &World) -> (Vec<String>, Vec<String>) {
    let lines = world.lines();
    let vips = lines.iter().filter_map(|line| line.strip_prefix("vip ")).filter(|vip| *vip != "10.96.0.10");
    let rejected = lines.iter().filter_map(|line| line.strip_prefix("Service shop/web: rejecting "));
    let reason = " (AddressRejected)";
    (vips.map(str::to_owned).collect(), rejected.map(|text| text.strip_suffix(reason).unwrap().to_owned()).collect())
}

#[track_caller]
fn check(world: &World, taken: &[&str], rejected: &[&str]) {
    let (vips, texts) = judged(world);
    assert_eq!(vips, taken);
    assert_eq!(texts, rejected);
}

#[test]
fn external_addresses_must_lie_in_a_configured_range() {
    for (address, text) in [
        ("203.0.113.9", None),
        ("203.0.113.0", None),
        ("203.0.113.127", None),
        ("203.0.113.128", Some("not within any configured --service-external-ip-range")),
        ("198.51.100.4", Some("not within any configured --service-external-ip-range")),
        ("10.96.200.4", Some("conflicts with cluster IP range")),
        ("10.111.255.255", Some("conflicts with cluster IP range")),
        ("example.org", Some("not an IP address")),
        ("203.0.113.9/32", Some("not an IP address")),
    ] {
        match text {
            None => check(&external(address), &[address], &[]),
            Some(text) => check(&external(address), &[], &[&format!("externalIP {address}: {text}")]),
        }
    }
}

#[test]
fn load_balancer_addresses_have_a_range_of_their_own() {
    check(&balancer("{ip: 203.0.113.129}"), &["203.0.113.129"], &[]);
    let text = "loadBalancerIP 203.0.113.5: not within any configured --loadbalancer-ip-range";
    check(&balancer("{ip: 203.0.113.5}, {ip: 203.0.113.130}"), &["203.0.113.130"], &[text]);
    let text = "loadBalancerIP 10.96.0.99: conflicts with cluster IP range";
    check(&balancer("{ip: 10.96.0.99}"), &[], &[text]);
}

#[test]
fn without_a_range_every_address_of_that_kind_is_refused() {
    let none = |world: World| {
        world.config(|config| {
            config.external_ip_ranges.clear();
            config.load_balancer_ranges.clear();
        })
    };
    let text = "externalIP 203.0.113.9: no --service-external-ip-range is configured (strict mode default-deny)";
    check(&none(external("203.0.113.9")), &[], &[text]);
    let text = "loadBalancerIP 203.0.113.129: no --loadbalancer-ip-range is configured (strict mode default-deny)";
    check(&none(balancer("{ip: 203.0.113.129}")), &[], &[text]);
}

#[test]
fn without_strict_validation_any_address_is_taken_that_can_be_one() {
    let loose = |world: World| world.config(|config| config.strict_external_ips = false);
    check(&loose(external("198.51.100.4, 10.96.200.4")), &["10.96.200.4", "198.51.100.4"], &[]);
    check(&loose(balancer("{ip: 203.0.113.5}")), &["203.0.113.5"], &[]);
    for address in
        ["127.0.0.1", "0.0.0.0", "224.0.0.251", "'::1'", "'::'", "'ff02::1'", "'fe80::1'", "'::ffff:127.0.0.1'"]
    {
        let (vips, texts) = judged(&loose(external(address)).dual_stack());
        assert_eq!((vips.len(), texts.len()), (0, 1), "{address}: {texts:?}");
    }
}

/// They come from the API server, but also from manifests.
#[test]
fn cluster_addresses_are_judged_too() {
    for address in
        ["127.0.0.1", "0.0.0.0", "224.0.0.251", "'::1'", "'::'", "'ff02::1'", "'fe80::1'", "'::ffff:0.0.0.0'"]
    {
        let world = World::new(&format!("spec: {{clusterIPs: [10.96.0.10, {address}], ports: [{{port: 80}}]}}"));
        world.dual_stack().complains(&[("InvalidClusterIp", address.trim_matches('\''))]);
        let world = World::new(&format!("spec: {{clusterIPs: [10.96.0.10, {address}], ports: [{{port: 80}}]}}"));
        world.dual_stack().gives_servers(&["ClusterIP tcp 10.96.0.10:80 rr ->"]);
    }
    let mapped = World::new("spec: {clusterIP: '::ffff:10.96.0.10', ports: [{port: 80}]}");
    mapped.gives(&["ClusterIP tcp 10.96.0.10:80 rr ->", "vip 10.96.0.10"]);
}

/// Else it would slip past the ranges, or be programmed as an IPv6 address that nobody can reach.
#[test]
fn an_ipv4_address_written_as_ipv6_is_the_ipv4_address() {
    check(&external("'::ffff:203.0.113.9'"), &["203.0.113.9"], &[]);
    let text = "externalIP ::ffff:10.96.200.4: conflicts with cluster IP range";
    check(&external("'::ffff:10.96.200.4'"), &[], &[text]);
}

#[test]
fn addresses_of_a_disabled_family_are_left_out_in_silence() {
    check(&external("203.0.113.9, '2001:db8:113::9'"), &["203.0.113.9"], &[]);
    check(&external("203.0.113.9, '2001:db8:113::9'").dual_stack(), &["203.0.113.9", "2001:db8:113::9"], &[]);
}

#[test]
fn the_same_address_twice_is_one_virtual_server() {
    let world = external("203.0.113.9, 203.0.113.9");
    world.complains(&[]);
    world.gives_servers(&["ClusterIP tcp 10.96.0.10:80 rr ->", "ExternalIP tcp 203.0.113.9:80 rr ->"]);
}

#[test]
fn ingress_entries_in_proxy_mode_or_without_an_address_are_not_ours() {
    let ingress = "{ip: 203.0.113.129, ipMode: VIP}, {ip: 203.0.113.130, ipMode: Proxy}, {hostname: lb.example}, \
                   {ip: 203.0.113.131}";
    check(&balancer(ingress), &["203.0.113.129", "203.0.113.131"], &[]);
}

#[test]
fn skiplbips_leaves_load_balancer_addresses_out_and_external_ones_in() {
    let world = || {
        World::new(
            "spec: {type: LoadBalancer, clusterIP: 10.96.0.10, externalIPs: [203.0.113.9], ports: [{port: 80}]}, \
             status: {loadBalancer: {ingress: [{ip: 203.0.113.129}, {ip: 198.51.100.1}]}}",
        )
    };
    for value in ["", "true", "false"] {
        check(&world().annotated("service.skiplbips", value), &["203.0.113.9"], &[]);
    }
    assert_eq!(judged(&world()).1.len(), 1);
}
