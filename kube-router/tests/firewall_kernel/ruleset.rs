//! Our chains and rules, next to what others have.

use std::collections::BTreeSet;

use kube_router::{
    apply::{FirewallPlane, firewall::KernelFirewall},
    desired::{Ruleset, SetName, firewall::Masquerade},
    plan::{Backend, FirewallOp, ObservedFirewall},
};

use crate::support::*;

#[test]
#[ignore = "needs root: cargo test -p kube-router --test firewall_kernel -- --ignored"]
fn every_ruleset_is_read_back_and_written_twice_changes_nothing() {
    in_namespace(|| {
        let mut plane = KernelFirewall::open().unwrap();
        assert_eq!(plane.observe().unwrap(), ObservedFirewall::default());
        for guard in [true, false] {
            for masquerade in [Masquerade::Off, Masquerade::OutsidePodCidrs, Masquerade::All] {
                for (node_ipv4, node_ipv6) in
                    [(None, None), (rich().node_ipv4, None), (rich().node_ipv4, rich().node_ipv6)]
                {
                    let ruleset = Ruleset { guard, masquerade, node_ipv4, node_ipv6 };
                    apply(&mut plane, &[FirewallOp::SetRuleset(ruleset.clone())]);
                    assert_eq!(plane.observe().unwrap().ruleset, Some(ruleset.clone()));
                    let before = sh("nft list table inet kube-router");
                    apply(&mut plane, &[FirewallOp::SetRuleset(ruleset)]);
                    assert_eq!(sh("nft list table inet kube-router"), before);
                }
            }
        }
    });
}

#[test]
#[ignore = "needs root: cargo test -p kube-router --test firewall_kernel -- --ignored"]
fn tables_and_sets_of_others_stay_as_they_are() {
    in_namespace(|| {
        sh("nft -f - <<N
table ip nat { chain POSTROUTING { type nat hook postrouting priority srcnat; oifname \"x\" masquerade; }
 set svip4 { type ipv4_addr; elements = { 1.2.3.4 } } }
table inet firewalld { chain input { type filter hook input priority 10; policy accept; ct state established accept; } }
table ip6 kube-router { chain input { } }
N
ipset create foreign-set hash:ip; ipset add foreign-set 9.9.9.9
ipset create KUBE-SRC-X hash:net family inet6; ipset add KUBE-SRC-X fd00::/64");
        let foreign = || {
            sh(
                "nft list table ip nat; nft list table inet firewalld; nft list table ip6 kube-router; ipset save foreign-set; ipset save KUBE-SRC-X",
            )
        };
        let (before, whole) = (foreign(), sh("nft list ruleset; ipset save"));
        let mut plane = KernelFirewall::open().unwrap();
        let all = every_kind();
        let ops = [
            vec![FirewallOp::SetRuleset(rich()), FirewallOp::EnsureIpsets],
            add(Backend::Nft, &all),
            add(Backend::Ipset, &mirrored(&all)),
        ];
        apply(&mut plane, &ops.concat());
        assert_eq!(plane.observe().unwrap().ruleset, Some(rich()));
        assert_eq!(foreign(), before);
        apply(&mut plane, &[FirewallOp::DeleteAll]);
        assert_eq!(sh("nft list ruleset; ipset save"), whole);
        assert_eq!(plane.observe().unwrap(), ObservedFirewall::default());
        apply(&mut plane, &[FirewallOp::DeleteAll]);
    });
}

#[test]
#[ignore = "needs root: cargo test -p kube-router --test firewall_kernel -- --ignored"]
fn what_somebody_changed_is_noticed_and_put_right() {
    in_namespace(|| {
        let mut plane = KernelFirewall::open().unwrap();
        let all = every_kind();
        let wanted: BTreeSet<_> = all.iter().copied().collect();
        apply(&mut plane, &[vec![FirewallOp::SetRuleset(rich())], add(Backend::Nft, &all)].concat());
        let handle = |chain: &str, text: &str| {
            let listed = sh(&format!("nft -a list chain inet kube-router {chain}"));
            let line = listed.lines().find(|line| line.contains(text)).unwrap_or_else(|| panic!("{text} in {listed}"));
            line.rsplit(' ').next().unwrap().to_owned()
        };
        let reject = handle("services4", "reject with tcp reset");
        let snat = handle("snat6", "fully-random");
        let changes = [
            format!("delete rule inet kube-router services4 handle {reject}"),
            "flush chain inet kube-router postrouting".to_owned(),
            "flush table inet kube-router".to_owned(),
            "add rule inet kube-router input tcp dport 22 drop".to_owned(),
            "insert rule inet kube-router snat4 counter".to_owned(),
            format!("replace rule inet kube-router snat6 handle {snat} masquerade"),
            "add chain inet kube-router input { policy drop; }".to_owned(),
            "add table inet kube-router { flags dormant; }".to_owned(),
            "flush table inet kube-router; delete set inet kube-router local-ips4".to_owned(),
            "delete table inet kube-router".to_owned(),
            "delete table inet kube-router; add table inet kube-router; \
             add set inet kube-router svip4 { type ipv6_addr; }; add chain inet kube-router input"
                .to_owned(),
        ];
        for change in changes {
            // Handles are those of the rules just listed only before the first repair: look them up again.
            let change = change
                .replace(
                    &format!("handle {reject}"),
                    &format!("handle {}", handle("services4", "reject with tcp reset")),
                )
                .replace(&format!("handle {snat}"), &format!("handle {}", handle("snat6", "fully-random")));
            sh(&format!("nft '{change}'"));
            assert_eq!(plane.observe().unwrap().ruleset, None, "{change}");
            apply(&mut plane, &[vec![FirewallOp::SetRuleset(rich())], add(Backend::Nft, &all)].concat());
            let observed = plane.observe().unwrap();
            assert_eq!((observed.ruleset, &observed.nft), (Some(rich()), &wanted), "{change}");
        }
        // What can be kept is kept where the table must be made anew.
        sh("nft 'add chain inet kube-router input { policy drop; }'");
        apply(&mut plane, &[FirewallOp::SetRuleset(rich())]);
        assert_eq!(plane.observe().unwrap().nft, wanted);
        // A chain of somebody's in our table is none of our business.
        sh("nft 'add chain inet kube-router users; add rule inet kube-router users drop'");
        assert_eq!(plane.observe().unwrap().ruleset, Some(rich()));
    });
}

#[test]
#[ignore = "needs root: cargo test -p kube-router --test firewall_kernel -- --ignored"]
fn tools_print_every_rule() {
    in_namespace(|| {
        let mut plane = KernelFirewall::open().unwrap();
        apply(&mut plane, &[vec![FirewallOp::SetRuleset(rich())], add(Backend::Nft, &every_kind())].concat());
        let listed = sh("nft list ruleset");
        println!("{listed}");
        assert!(!listed.contains("@nh,") && !listed.contains("@th,0"), "raw offsets:\n{listed}");
        for name in SetName::ALL {
            assert!(listed.contains(&format!("set {}4 {{", name.nft_name())));
        }
        let rules: serde_json::Value = serde_json::from_str(&sh("nft -j list ruleset")).unwrap();
        assert!(rules["nftables"].as_array().unwrap().iter().filter(|o| o.get("rule").is_some()).count() > 10);
    });
}
