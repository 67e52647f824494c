//! Elements of sets and ipsets, and what is refused.

use std::{collections::BTreeSet, net::IpAddr, time::Instant};

use kube_router::{
    apply::{FirewallPlane, firewall::KernelFirewall},
    desired::{Hairpin, SetElement},
    objects::Protocol,
    plan::{Backend, FirewallOp},
};

use crate::support::*;

#[test]
#[ignore = "needs root: cargo test -p kube-router --test firewall_kernel -- --ignored"]
fn every_kind_of_element_goes_in_and_out_typed() {
    in_namespace(|| {
        let mut plane = KernelFirewall::open().unwrap();
        let all = every_kind();
        let wanted: BTreeSet<_> = all.iter().copied().collect();
        let ops = [vec![FirewallOp::SetRuleset(rich())], add(Backend::Nft, &all)].concat();
        apply(&mut plane, &ops);
        assert_eq!(plane.observe().unwrap().nft, wanted);
        apply(&mut plane, &ops);
        let observed = plane.observe().unwrap();
        assert_eq!((&observed.nft, observed.ruleset), (&wanted, Some(rich())), "adding twice, and elements stay");

        let listed: serde_json::Value = serde_json::from_str(&sh("nft -j list table inet kube-router")).unwrap();
        let set = |name: &str| {
            let found = listed["nftables"].as_array().unwrap().iter().find(|o| o["set"]["name"] == name);
            found.unwrap_or_else(|| panic!("no set {name}"))["set"].clone()
        };
        assert_eq!(set("svip4")["type"], "ipv4_addr");
        assert_eq!(set("svip4")["elem"], serde_json::json!(["10.96.0.10"]));
        assert_eq!(set("local-ips6")["elem"], serde_json::json!(["fd00:10:96::10"]));
        assert_eq!(set("svip-prt6")["type"], serde_json::json!(["ipv6_addr", "inet_proto", "inet_service"]));
        assert!(
            set("svip-prt4")["elem"]
                .as_array()
                .unwrap()
                .contains(&serde_json::json!({"concat": ["10.96.0.10", "tcp", 30080]}))
        );
        let hairpin = serde_json::json!({"concat": ["10.244.1.2", "10.244.1.2", "10.96.0.10", "sctp", 80]});
        assert!(set("hairpin4")["elem"].as_array().unwrap().contains(&hairpin));
        let nets = |name: &str| {
            let elem = set(name)["elem"].clone();
            let nets =
                elem.as_array().unwrap().iter().map(|p| format!("{}/{}", p["prefix"]["addr"], p["prefix"]["len"]));
            nets.map(|net| net.replace('"', "")).collect::<BTreeSet<_>>()
        };
        assert_eq!(nets("pod-cidrs4"), ["10.244.1.0/24", "10.244.2.0/24", "255.255.255.0/24"].map(String::from).into());
        assert_eq!(
            nets("pod-cidrs6"),
            ["fd00:10:244:1::/64", "fd00:10:244:2::/64", "ff00::/8"].map(String::from).into()
        );

        // One by one out again, each leaving the others; then again, when nothing is there.
        let mut left = wanted;
        for element in &all {
            apply(&mut plane, &delete(Backend::Nft, &[*element]));
            left.remove(element);
            assert_eq!(plane.observe().unwrap().nft, left, "after {element}");
        }
        apply(&mut plane, &delete(Backend::Nft, &all));
    });
}

#[test]
#[ignore = "needs root: cargo test -p kube-router --test firewall_kernel -- --ignored"]
fn ipsets_mirror_and_are_made_like_the_originals() {
    in_namespace(|| {
        let mut plane = KernelFirewall::open().unwrap();
        assert!(!plane.observe().unwrap().ipsets_exist);
        let all = mirrored(&every_kind());
        let wanted: BTreeSet<_> = all.iter().copied().collect();
        for _ in 0..2 {
            apply(&mut plane, &[vec![FirewallOp::EnsureIpsets], add(Backend::Ipset, &all)].concat());
            let observed = plane.observe().unwrap();
            assert_eq!((observed.ipsets_exist, &observed.ipset), (true, &wanted));
            assert!(observed.nft.is_empty());
        }
        let saved = sh("ipset save");
        for line in [
            "create kube-router-local-ips hash:ip family inet hashsize 1024 maxelem 65536 timeout 0",
            "create inet6:kube-router-svip-prt hash:ip,port family inet6 hashsize 1024 maxelem 65536 timeout 0",
            "add kube-router-svip 10.96.0.10 timeout 0",
            "add kube-router-svip-prt 10.96.0.10,tcp:30080 timeout 0",
            "add kube-router-svip-prt 10.96.0.10,sctp:30080 timeout 0",
            "add inet6:kube-router-svip-prt fd00:10:96::10,udp:30080 timeout 0",
        ] {
            assert!(saved.lines().any(|l| l.trim_end() == line), "{line}\nnot in\n{saved}");
        }
        apply(&mut plane, &delete(Backend::Ipset, &all));
        apply(&mut plane, &delete(Backend::Ipset, &all));
        assert!(plane.observe().unwrap().ipset.is_empty());
    });
}

#[test]
#[ignore = "needs root: cargo test -p kube-router --test firewall_kernel -- --ignored"]
fn a_refused_order_is_reported_alone() {
    in_namespace(|| {
        let mut plane = KernelFirewall::open().unwrap();
        // Without a table: adds fail, removals are no errors.
        let vip = SetElement::ServiceIp(ip("10.96.0.1"));
        let failures = plane.apply(&[add(Backend::Nft, &[vip]), delete(Backend::Nft, &[vip])].concat()).unwrap();
        assert_eq!(indices(&failures), [0]);
        assert_eq!(failures[0].refusal.errno, libc::ENOENT);

        let net = |text: &str| SetElement::PodCidr(text.parse().unwrap());
        let mixed = Hairpin { pod: ip("10.0.0.1"), vip: ip("::1"), protocol: Protocol::Tcp, port: 1 };
        let mut ops = vec![FirewallOp::SetRuleset(rich())];
        ops.extend(add(Backend::Nft, &(0..300).map(|n| service("10.96.0.1", Protocol::Tcp, n)).collect::<Vec<_>>()));
        ops.extend(add(Backend::Nft, &[net("10.244.0.0/16"), SetElement::Hairpin(mixed), net("10.244.1.0/24")]));
        ops.extend(delete(
            Backend::Nft,
            &[service("10.96.0.1", Protocol::Tcp, 7), service("10.96.0.9", Protocol::Tcp, 7)],
        ));
        ops.extend(add(Backend::Nft, &[vip]));
        let failures = plane.apply(&ops).unwrap();
        // 302: two families; 303: overlaps 301.
        assert_eq!(indices(&failures), [302, 303]);
        let observed = plane.observe().unwrap();
        assert_eq!(observed.ruleset, Some(rich()));
        assert_eq!(observed.nft.len(), 299 + 1 + 1);
        assert!(observed.nft.contains(&vip) && observed.nft.contains(&net("10.244.0.0/16")));
        assert!(!observed.nft.contains(&service("10.96.0.1", Protocol::Tcp, 7)));

        // ipsets: a foreign type under our name, a set that does not exist, a set in use.
        sh("ipset create kube-router-svip hash:net; ipset add kube-router-svip 1.0.0.0/8");
        let failures = plane.apply(&[vec![FirewallOp::EnsureIpsets], add(Backend::Ipset, &[vip])].concat()).unwrap();
        assert_eq!(indices(&failures), [0, 1]);
        assert!(failures[0].refusal.text.contains("kube-router-svip exists as hash:net"), "{failures:?}");
        assert!(sh("ipset save kube-router-svip").ends_with("add kube-router-svip 1.0.0.0/8\n"));
        assert!(!plane.observe().unwrap().ipsets_exist);
        sh("ipset create user list:set; ipset add user kube-router-local-ips");
        let failures = plane.apply(&[FirewallOp::DeleteAll]).unwrap();
        assert_eq!(indices(&failures), [0]);
        assert!(failures[0].refusal.text.contains("kube-router-local-ips: in use"), "{failures:?}");
        assert_eq!(sh("ipset list -n | sort | tr '\\n' ' '"), "kube-router-local-ips kube-router-svip user ");
        assert_eq!(sh("nft list ruleset"), "");
    });
}

#[test]
#[ignore = "needs root: cargo test -p kube-router --test firewall_kernel -- --ignored"]
fn twenty_thousand_elements() {
    in_namespace(|| {
        let mut plane = KernelFirewall::open().unwrap();
        let all: Vec<_> = (0..20_000_u32)
            .map(|n| {
                service(&format!("10.{}.{}.1", 96 + n / 250 / 256, n / 250 % 256), Protocol::Tcp, (n % 250) as u16)
            })
            .collect();
        let timed = |what: &str, plane: &mut KernelFirewall, ops: &[FirewallOp]| {
            let start = Instant::now();
            apply(plane, ops);
            println!("{what}: {:?}", start.elapsed());
        };
        apply(&mut plane, &[FirewallOp::SetRuleset(rich()), FirewallOp::EnsureIpsets]);
        timed("nft add", &mut plane, &add(Backend::Nft, &all));
        timed("ipset add", &mut plane, &add(Backend::Ipset, &all));
        let start = Instant::now();
        let observed = plane.observe().unwrap();
        println!("observe: {:?}", start.elapsed());
        assert_eq!((observed.nft.len(), observed.ipset.len()), (20_000, 20_000));
        // Some of it is gone already: the careful path for everything.
        sh("nft 'delete element inet kube-router svip-prt4 { 10.96.0.1 . tcp . 3 }'");
        timed("nft delete, one missing", &mut plane, &delete(Backend::Nft, &all));
        timed("ipset delete", &mut plane, &delete(Backend::Ipset, &all));
        let observed = plane.observe().unwrap();
        assert!(observed.nft.is_empty() && observed.ipset.is_empty());
        apply(&mut plane, &[FirewallOp::DeleteAll]);
        let start = Instant::now();
        assert_eq!(plane.apply(&add(Backend::Nft, &all)).unwrap().len(), 20_000, "no table: each is reported");
        println!("nft add without a table: {:?}", start.elapsed());
    });
}

#[test]
#[ignore = "needs root: cargo test -p kube-router --test firewall_kernel -- --ignored"]
fn a_full_ipset_reports_what_did_not_fit() {
    in_namespace(|| {
        let mut plane = KernelFirewall::open().unwrap();
        apply(&mut plane, &[FirewallOp::EnsureIpsets]);
        // The kernel counts by regions of the hash, so it may hold a few more than it says.
        let all: Vec<_> =
            (0..67_000_u32).map(|n| SetElement::ServiceIp(IpAddr::from((0x0a00_0000 + n).to_be_bytes()))).collect();
        let failures = plane.apply(&add(Backend::Ipset, &all)).unwrap();
        assert!(failures.iter().all(|failure| failure.refusal.text.contains("full")), "{failures:?}");
        let mut expected: BTreeSet<_> = all.iter().copied().collect();
        for failure in &failures {
            expected.remove(&all[failure.index]);
        }
        assert!(!failures.is_empty() && expected.len() >= 65_536, "{} fit", expected.len());
        assert_eq!(plane.observe().unwrap().ipset, expected, "exactly what was not reported is in");
    });
}
