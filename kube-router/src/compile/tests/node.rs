//! Our own node: its addresses, pod CIDRs and the shape of the rules.

use std::{collections::BTreeSet, net::IpAddr};

use crate::{
    compile::{NodeView, Problem, compile_node},
    config::ProxyConfig,
    desired::firewall::Masquerade,
    objects::{Node, ObjectKey},
};

fn node(internal: &[&str], external: &[&str], annotations: &[(&str, &str)]) -> Node {
    let ips = |list: &[&str]| list.iter().map(|ip| ip.parse().unwrap()).collect();
    Node {
        key: ObjectKey::cluster("n1"),
        internal_ips: ips(internal),
        external_ips: ips(external),
        zone: None,
        pod_cidrs: vec!["10.244.1.0/24".parse().unwrap(), "fd00:10:244:1::/64".parse().unwrap()],
        annotations: annotations.iter().map(|(key, value)| ((*key).into(), (*value).into())).collect(),
    }
}

fn dual() -> ProxyConfig {
    ProxyConfig { ipv6: true, ..ProxyConfig::default() }
}

fn compile(node: &Node, config: &ProxyConfig) -> (NodeView, Vec<Problem>) {
    compile_node("n1", Some(node), &NodeView::default(), &BTreeSet::new(), config)
}

/// `address` as text; "" for none.
fn addresses(view: &NodeView) -> (String, String) {
    (view.ipv4.map_or(String::new(), |ip| ip.to_string()), view.ipv6.map_or(String::new(), |ip| ip.to_string()))
}

#[test]
fn the_node_s_address_of_a_family_is_the_first_internal_one_else_the_first_external_one() {
    for (internal, external, ipv4, ipv6) in [
        (&["192.0.2.1", "192.0.2.2", "fd00::1"][..], &["198.51.100.1"][..], "192.0.2.1", "fd00::1"),
        (&["fd00::1"], &["198.51.100.1", "198.51.100.2"], "198.51.100.1", "fd00::1"),
        (&["fd00::2", "fd00::1", "192.0.2.1"], &[], "192.0.2.1", "fd00::2"),
        (&[], &["2001:db8::1", "198.51.100.1"], "198.51.100.1", "2001:db8::1"),
    ] {
        let (view, problems) = compile(&node(internal, external, &[]), &dual());
        assert_eq!(addresses(&view), (ipv4.to_owned(), ipv6.to_owned()));
        assert_eq!(problems, []);
    }
}

#[test]
fn a_family_that_is_on_and_has_no_address_is_named_and_one_that_is_off_is_not() {
    let only4 = node(&["192.0.2.1"], &[], &[]);
    assert_eq!(compile(&only4, &ProxyConfig::default()).1, []);
    let (view, problems) = compile(&only4, &dual());
    assert_eq!(addresses(&view), ("192.0.2.1".to_owned(), String::new()));
    assert_eq!(problems.len(), 1);
    assert!(problems[0].text.contains("IPv6") && problems[0].text.contains("--enable-ipv6=false"), "{}", problems[0]);
    let (view, _) = compile(&node(&["192.0.2.1", "fd00::1"], &[], &[]), &ProxyConfig::default());
    assert_eq!(addresses(&view).1, "", "a disabled family has no address");
}

#[test]
fn pod_cidrs_come_from_the_annotations_before_the_spec() {
    let (one, many) = ("kube-router.io/pod-cidr", "kube-router.io/pod-cidrs");
    for (annotations, expected, complaints) in [
        (&[][..], &["10.244.1.0/24", "fd00:10:244:1::/64"][..], 0),
        (&[(one, "10.7.0.0/24")], &["10.7.0.0/24"], 0),
        (&[(many, "10.8.0.0/24,fd00:8::/64")], &["10.8.0.0/24", "fd00:8::/64"], 0),
        (&[(one, "10.7.0.0/24"), (many, "10.8.0.0/24")], &["10.7.0.0/24"], 0),
        (&[(one, "10.7.0.9/24")], &["10.7.0.0/24"], 0),
        (&[(many, "10.8.0.0/24,nonsense")], &["10.8.0.0/24"], 1),
        (&[(one, "nonsense")], &["10.244.1.0/24", "fd00:10:244:1::/64"], 1),
    ] {
        let (view, problems) = compile(&node(&["192.0.2.1", "fd00::1"], &[], annotations), &dual());
        let cidrs: Vec<String> = view.pod_cidrs.iter().map(ToString::to_string).collect();
        assert_eq!(cidrs, expected, "{annotations:?}");
        assert_eq!(problems.len(), complaints, "{annotations:?}: {problems:?}");
        assert!(problems.iter().all(|problem| problem.reason == "InvalidPodCidr"));
    }
    let (view, _) = compile(&node(&["192.0.2.1"], &[], &[]), &ProxyConfig::default());
    assert_eq!(view.pod_cidrs.len(), 1, "a disabled family has none");
}

/// A node that registers again: no object, then one that is still empty.
#[test]
fn what_the_node_said_once_stays_in_use_until_it_says_something_else() {
    let full = node(&["192.0.2.1", "fd00::1"], &[], &[]);
    let (last, _) = compile(&full, &dual());
    let mut empty = node(&[], &[], &[]);
    empty.pod_cidrs.clear();
    for (now, reasons) in [
        (None, &["NodeMissing"][..]),
        (Some(&empty), &["NodeWithoutAddress", "NodeWithoutAddress", "NodeWithoutPodCidr"]),
        (Some(&full), &[]),
    ] {
        let (view, problems) = compile_node("n1", now, &last, &BTreeSet::new(), &dual());
        assert_eq!(view, last);
        assert_eq!(problems.iter().map(|problem| problem.reason).collect::<Vec<_>>(), reasons);
    }
    let host: BTreeSet<_> = [("eth0".into(), [192, 0, 2, 1].into())].into();
    let (view, _) = compile_node("n1", None, &last, &host, &dual());
    assert_eq!(view.host_addresses, host, "what the kernel says is not the Node's");
    let (view, _) = compile_node("n1", Some(&node(&["192.0.2.9"], &[], &[])), &last, &BTreeSet::new(), &dual());
    assert_eq!(addresses(&view), ("192.0.2.9".to_owned(), "fd00::1".to_owned()));
}

#[test]
fn masquerading_follows_masquerade_all_and_then_run_router() {
    for (all, router, cidrs, expected) in [
        (false, false, true, Masquerade::Off),
        (false, true, true, Masquerade::OutsidePodCidrs),
        (true, false, true, Masquerade::All),
        (true, true, true, Masquerade::All),
        // The original makes one rule per pod CIDR.
        (false, true, false, Masquerade::Off),
        (true, false, false, Masquerade::All),
    ] {
        let config =
            ProxyConfig { masquerade_all: all, masquerade_outside_pod_cidrs: router, ..ProxyConfig::default() };
        let mut node = node(&["192.0.2.1"], &[], &[]);
        if !cidrs {
            node.pod_cidrs.clear();
        }
        let ruleset = compile(&node, &config).0.ruleset(&config);
        assert_eq!(ruleset.masquerade, expected, "all {all}, router {router}, cidrs {cidrs}");
        assert_eq!(ruleset.node_ipv4, Some([192, 0, 2, 1].into()));
        assert!(ruleset.guard, "--ipvs-permit-all");
    }
}

#[test]
fn addresses_of_our_own_of_docker_s_and_of_dummy_links_are_not_the_node_s_local_ones() {
    let list = [
        ("lo", "127.0.0.1"),
        ("eth0", "192.0.2.1"),
        ("eth0", "fe80::1"),
        ("veth12", "fe80::2"),
        ("kube-bridge", "10.244.1.1"),
        ("docker0", "172.17.0.1"),
        ("dummy7", "192.0.2.9"),
        ("mydockerlink", "192.0.2.10"),
    ];
    let host: BTreeSet<(Box<str>, IpAddr)> = list.map(|(name, address)| (name.into(), address.parse().unwrap())).into();
    let (view, _) = compile_node("n1", Some(&node(&["192.0.2.1"], &[], &[])), &NodeView::default(), &host, &dual());
    let local: BTreeSet<String> = view.local_addresses().map(|address| address.to_string()).collect();
    assert_eq!(local, ["127.0.0.1", "192.0.2.1", "fe80::1", "fe80::2"].map(str::to_owned).into());
    assert_eq!(view.primary_interface(), Some("eth0"));
    assert!(view.is_host_address("10.244.1.1".parse().unwrap()), "yet it is an address of the host");
}

/// A node whose uplink is called like that: the guard must not take its address for a service's alone.
#[test]
fn the_node_s_own_address_is_local_whatever_its_interface_is_called() {
    let list = [("docker0", "192.0.2.1"), ("docker0", "172.17.0.1"), ("kube-uplink", "fd00::1")];
    let host: BTreeSet<(Box<str>, IpAddr)> = list.map(|(name, address)| (name.into(), address.parse().unwrap())).into();
    let node = node(&["192.0.2.1", "fd00::1"], &[], &[]);
    let (view, _) = compile_node("n1", Some(&node), &NodeView::default(), &host, &dual());
    let local: BTreeSet<String> = view.local_addresses().map(|address| address.to_string()).collect();
    assert_eq!(local, ["192.0.2.1", "fd00::1"].map(str::to_owned).into());
}

/// The kernel refuses intervals that overlap.
#[test]
fn pod_cidrs_inside_others_are_part_of_them() {
    let cidrs = "10.8.0.0/16,10.8.3.0/24,10.9.0.0/24,fd00:8::/48,fd00:8::/64";
    let (view, _) = compile(&node(&["192.0.2.1"], &[], &[("kube-router.io/pod-cidrs", cidrs)]), &dual());
    let cidrs: Vec<String> = view.pod_cidrs.iter().map(ToString::to_string).collect();
    assert_eq!(cidrs, ["10.8.0.0/16", "10.9.0.0/24", "fd00:8::/48"]);
}

#[test]
fn a_node_that_moves_to_another_zone_serves_all_anew() {
    let (before, _) = compile(&node(&["192.168.77.1"], &[], &[]), &ProxyConfig::default());
    let moved = Node { zone: Some("a".into()), ..node(&["192.168.77.1"], &[], &[]) };
    let (after, _) = compile(&moved, &ProxyConfig::default());
    assert_eq!((after.place().node, after.place().zone), ("n1", Some("a")));
    assert!(after.serves_like(&after.clone()) && !after.serves_like(&before));
}
