//! The firewall plane against a real kernel, judged by nft, ipset and by what packets do.
//!
//! Each test works in a network namespace of its own, made on a thread of its own, and leaves nothing behind.

use std::{
    collections::BTreeSet,
    io::ErrorKind,
    net::{IpAddr, SocketAddr, TcpListener, TcpStream},
    process::Command,
    time::{Duration, Instant},
};

use kube_router::{
    apply::{FirewallPlane, OpFailure, firewall::KernelFirewall},
    desired::{Hairpin, Ruleset, SetElement, SetName, VirtualKey, firewall::Masquerade},
    objects::Protocol,
    plan::{Backend, FirewallOp, ObservedFirewall},
};
use nix::sched::{CloneFlags, unshare};

/// Runs `test` in a fresh network namespace with loopback up.
fn in_namespace(test: impl FnOnce() + Send + 'static) {
    std::thread::spawn(|| {
        unshare(CloneFlags::CLONE_NEWNET).expect("needs root");
        sh("ip link set lo up");
        test();
    })
    .join()
    .expect("the test's thread panicked");
}

/// Runs a shell command in this thread's namespace; panics if it fails.
fn sh(command: &str) -> String {
    let output = Command::new("sh").args(["-c", command]).output().expect("sh");
    let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{command}: {out}{err}");
    out.into_owned()
}

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

fn service(address: &str, protocol: Protocol, port: u16) -> SetElement {
    SetElement::ServicePort(VirtualKey { address: ip(address), protocol, port })
}

fn every_kind() -> Vec<SetElement> {
    let mut all = Vec::new();
    for (vip, pod, nets) in [
        ("10.96.0.10", "10.244.1.2", ["10.244.1.0/24", "10.244.2.0/24", "255.255.255.0/24"]),
        ("fd00:10:96::10", "fd00:10:244:1::2", ["fd00:10:244:1::/64", "fd00:10:244:2::/64", "ff00::/8"]),
    ] {
        all.extend([SetElement::LocalIp(ip(vip)), SetElement::ServiceIp(ip(vip))]);
        for protocol in [Protocol::Tcp, Protocol::Udp, Protocol::Sctp] {
            all.push(service(vip, protocol, 30080));
            all.push(SetElement::Hairpin(Hairpin { pod: ip(pod), vip: ip(vip), protocol, port: 80 }));
        }
        all.extend(nets.map(|net| SetElement::PodCidr(net.parse().unwrap())));
    }
    all
}

fn rich() -> Ruleset {
    Ruleset {
        guard: true,
        masquerade: Masquerade::OutsidePodCidrs,
        node_ipv4: Some([192, 168, 10, 100].into()),
        node_ipv6: Some("fd00:77::1".parse().unwrap()),
    }
}

fn add(backend: Backend, elements: &[SetElement]) -> Vec<FirewallOp> {
    elements.iter().map(|element| FirewallOp::AddElement(backend, *element)).collect()
}

fn delete(backend: Backend, elements: &[SetElement]) -> Vec<FirewallOp> {
    elements.iter().map(|element| FirewallOp::DeleteElement(backend, *element)).collect()
}

fn mirrored(elements: &[SetElement]) -> Vec<SetElement> {
    elements.iter().copied().filter(|element| element.set().ipset_name().is_some()).collect()
}

fn apply(plane: &mut KernelFirewall, ops: &[FirewallOp]) {
    assert_eq!(plane.apply(ops).unwrap(), [], "nothing is refused");
}

fn indices(failures: &[OpFailure]) -> Vec<usize> {
    failures.iter().map(|failure| failure.index).collect()
}

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

#[test]
#[ignore = "needs root: cargo test -p kube-router --test firewall_kernel -- --ignored"]
fn the_guard_lets_services_and_pings_in_and_refuses_the_rest_at_once() {
    in_namespace(|| {
        // This namespace is the node; the client is another one, held by a sleeping process that we end by its id.
        let mut client = Command::new("unshare").args(["-n", "sleep", "300"]).spawn().unwrap();
        std::thread::sleep(Duration::from_millis(300));
        let enter = format!("nsenter -t {} -n", client.id());
        sh(&format!("ip link add n0 type veth peer name c0; ip link set c0 netns {}", client.id()));
        sh("ip addr add 10.9.0.1/24 dev n0; ip -6 addr add fd09::1/64 dev n0 nodad; ip link set n0 up
            ip addr add 10.96.0.10/32 dev lo; ip -6 addr add fd96::10/128 dev lo");
        sh(&format!("{enter} sh -c 'ip addr add 10.9.0.2/24 dev c0; ip -6 addr add fd09::2/64 dev c0 nodad
            ip link set lo up; ip link set c0 up; ip route add 10.96.0.10 via 10.9.0.1; ip -6 route add fd96::10 via fd09::1'"));
        let (vips, nodes) = (["10.96.0.10", "fd96::10"], ["10.9.0.1", "fd09::1"]);
        let listeners: Vec<_> = [80_u16, 81].map(|port| TcpListener::bind(format!("[::]:{port}")).unwrap()).into();
        let mut plane = KernelFirewall::open().unwrap();
        let mut elements: Vec<_> = vips.map(|vip| SetElement::ServiceIp(ip(vip))).into();
        elements.extend(vips.map(|vip| service(vip, Protocol::Tcp, 80)));
        elements.extend(nodes.map(|node| SetElement::LocalIp(ip(node))));
        // NodePort: the node's own addresses are service addresses too, and keep all their ports.
        elements.extend(nodes.map(|node| SetElement::ServiceIp(ip(node))));
        elements.extend(nodes.map(|node| service(node, Protocol::Tcp, 30080)));
        apply(&mut plane, &[vec![FirewallOp::SetRuleset(rich())], add(Backend::Nft, &elements)].concat());

        // From the client, as its own thread in its namespace.
        let pid = client.id();
        let connect = move |address: &str, port: u16| {
            let to = SocketAddr::new(ip(address), port);
            std::thread::spawn(move || {
                let namespace = std::fs::File::open(format!("/proc/{pid}/ns/net")).unwrap();
                nix::sched::setns(namespace, CloneFlags::CLONE_NEWNET).unwrap();
                TcpStream::connect_timeout(&to, Duration::from_secs(3)).map(drop).map_err(|error| error.kind())
            })
            .join()
            .unwrap()
        };
        for address in vips {
            assert_eq!(connect(address, 80), Ok(()), "{address} port in the set");
            let start = Instant::now();
            assert_eq!(connect(address, 81), Err(ErrorKind::ConnectionRefused), "{address} listening, not a service");
            assert!(start.elapsed() < Duration::from_millis(900), "refused at once");
            sh(&format!("{enter} ping -c1 -W2 {address}"));
        }
        for address in nodes {
            assert_eq!(connect(address, 81), Ok(()), "{address} is the node's own: all ports open");
            assert_eq!(connect(address, 82), Err(ErrorKind::ConnectionRefused), "an ordinary closed port");
            sh(&format!("{enter} ping -c1 -W2 {address}"));
        }
        // What is no TCP is refused too, by ICMP.
        let probe = format!("{enter} sh -c 'echo x | socat -T2 -t2 - UDP:10.96.0.10:5301 2>&1; true'");
        assert!(sh(&probe).contains("Connection refused"));
        // Large UDP to a service address, in fragments, is judged whole.
        let udp = std::net::UdpSocket::bind("0.0.0.0:5300").unwrap();
        udp.set_read_timeout(Some(Duration::from_secs(3))).unwrap();
        apply(&mut plane, &add(Backend::Nft, &[service("10.96.0.10", Protocol::Udp, 5300)]));
        sh(&format!("{enter} sh -c 'head -c 4000 /dev/zero | socat -b 8000 -u - UDP:10.96.0.10:5300'"));
        assert_eq!(udp.recv(&mut [0; 8000]).unwrap(), 4000);

        // Without the guard everything that listens answers.
        apply(&mut plane, &[FirewallOp::SetRuleset(Ruleset { guard: false, ..rich() })]);
        for address in vips {
            assert_eq!(connect(address, 81), Ok(()), "{address} without guard");
        }
        drop(listeners);
        client.kill().unwrap();
        client.wait().unwrap();
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
