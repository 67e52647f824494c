//! kube-dummy-if, its addresses and routes, address notifications and kernel settings against a real kernel.
//!
//! Every test runs in a fresh network namespace of a thread of its own. What is right is said by `ip`, not by the code
//! under test. Dummy links need a kernel with the dummy module; the tests that need none say so in their ignore text.

use std::{
    collections::BTreeSet,
    net::IpAddr,
    process::Command,
    thread,
    time::{Duration, Instant},
};

use kube_router::{
    apply::{
        NetPlane, SysctlPlane,
        net::{NetlinkNet, monitor::AddressMonitor, pod_links::PodLinks},
        sysctl::ProcSysctl,
    },
    compile::links::Hindrance,
    desired::Sysctl,
    plan::NetOp,
};
use nix::sched::{CloneFlags, unshare};

const NODE4: &str = "192.168.77.1";
const NODE6: &str = "fd00:77::1";

/// Runs `body` on a thread in a network namespace of its own, with loopback up.
fn in_namespace<T: Send + 'static>(body: impl FnOnce() -> T + Send + 'static) -> T {
    let thread = thread::spawn(|| {
        unshare(CloneFlags::CLONE_NEWNET).expect("needs root");
        ip("link set lo up");
        body()
    });
    thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
}

/// A namespace with the node's addresses on `eth0` (a bridge: it is everywhere).
fn in_node<T: Send + 'static>(body: impl FnOnce() -> T + Send + 'static) -> T {
    in_namespace(|| {
        ip("link add eth0 type bridge");
        ip("link set eth0 up");
        ip(&format!("addr add {NODE4}/24 dev eth0"));
        ip(&format!("-6 addr add {NODE6}/64 dev eth0 nodad"));
        // The link-local address becomes usable a second or two later: not in the middle of a test.
        let deadline = Instant::now() + Duration::from_secs(10);
        while !ip("-6 addr show tentative").is_empty() {
            assert!(Instant::now() < deadline, "still tentative");
            thread::sleep(Duration::from_millis(50));
        }
        body()
    })
}

fn try_ip(arguments: &str) -> Result<String, String> {
    let output = Command::new("ip").args(arguments.split_whitespace()).output().expect("ip");
    let text = |bytes| String::from_utf8(bytes).expect("text");
    if output.status.success() { Ok(text(output.stdout)) } else { Err(text(output.stderr)) }
}

fn ip(arguments: &str) -> String {
    try_ip(arguments).unwrap_or_else(|error| panic!("ip {arguments}: {error}"))
}

/// Lines without doubled blanks, sorted.
fn lines(text: &str) -> Vec<String> {
    let mut lines: Vec<String> =
        text.lines().map(|line| line.split_whitespace().collect::<Vec<_>>().join(" ")).collect();
    lines.sort();
    lines
}

fn address(text: &str) -> IpAddr {
    text.parse().expect("address")
}

fn local_routes4() -> Vec<String> {
    lines(&ip("-4 route show table local dev kube-dummy-if"))
}

/// Without the kernel's own fe80 and multicast entries.
fn local_routes6() -> Vec<String> {
    let rows = lines(&ip("-6 route show table local dev kube-dummy-if"));
    rows.into_iter().filter(|row| !row.contains("fe80::") && !row.starts_with("multicast")).collect()
}

fn addresses() -> Vec<String> {
    let rows = lines(&ip("-o addr show dev kube-dummy-if"));
    let form = |row: String| {
        let row = row.split_once("kube-dummy-if ").expect("interface").1.to_owned();
        row.split(" valid_lft").next().expect("one").trim_end_matches(['\\', ' ']).to_owned()
    };
    let mut rows: Vec<String> = rows.into_iter().map(form).filter(|row| !row.contains("fe80::")).collect();
    rows.sort();
    rows
}

fn open() -> NetlinkNet {
    NetlinkNet::open().expect("netlink socket")
}

fn apply(plane: &mut NetlinkNet, ops: &[NetOp]) {
    assert_eq!(plane.apply(ops).expect("apply"), []);
}

fn add(vip: &str, source: &str) -> Vec<NetOp> {
    let vip = address(vip);
    vec![NetOp::AddAddress(vip), NetOp::SetLocalRoute { vip, source: Some(address(source)) }]
}

/// What the kernel makes of a VIP is exactly what the original leaves behind.
#[test]
#[ignore = "needs root and dummy links: run the test binary in a VM with --ignored"]
fn vips_have_the_original_form() {
    in_node(|| {
        let mut plane = open();
        let mut ops = vec![NetOp::EnsureDummy];
        ops.extend(add("10.96.0.10", NODE4));
        ops.extend(add("fd00:10:96::101", NODE6));
        apply(&mut plane, &ops);
        assert_eq!(
            addresses(),
            ["inet 10.96.0.10/32 scope link kube-dummy-if", "inet6 fd00:10:96::101/128 scope global"]
        );
        assert_eq!(local_routes4(), ["local 10.96.0.10 proto kernel scope host src 192.168.77.1"]);
        assert_eq!(local_routes6(), ["local fd00:10:96::101 proto kernel src fd00:77::1 metric 1024 pref medium"]);
        let link = ip("link show dev kube-dummy-if");
        assert!(link.contains("<BROADCAST,NOARP,UP,LOWER_UP> mtu 1500 qdisc noqueue state UNKNOWN"), "{link}");
        let main = ip("-6 route show table main dev kube-dummy-if");
        assert!(!main.contains("fd00:10:96::101"), "{main}");
        assert!(ip("-4 route get 10.96.0.10").contains("src 192.168.77.1"));
        assert!(ip("-6 route get fd00:10:96::101").contains("src fd00:77::1"));
        // The kernel's work queue has nothing up its sleeve.
        thread::sleep(Duration::from_millis(300));
        assert_eq!(local_routes6().len(), 1);
    });
}

#[test]
#[ignore = "needs root and dummy links: run the test binary in a VM with --ignored"]
fn observation_is_what_was_applied_and_twice_is_once() {
    in_node(|| {
        let mut plane = open();
        let empty = plane.observe().expect("observe");
        assert!(!empty.dummy_up && empty.dummy_addresses.is_empty());
        let host: BTreeSet<(Box<str>, IpAddr)> = [("lo", "127.0.0.1"), ("lo", "::1"), ("eth0", NODE4), ("eth0", NODE6)]
            .map(|(name, text)| (name.into(), address(text)))
            .into();
        assert!(empty.host_addresses.is_superset(&host), "{:?}", empty.host_addresses);
        let mut ops = vec![NetOp::EnsureDummy];
        ops.extend(add("10.96.0.10", NODE4));
        ops.extend(add("fd00:10:96::101", NODE6));
        ops.push(NetOp::AddAddress(address("10.96.0.11")));
        ops.push(NetOp::AddAddress(address("fd00:10:96::102")));
        ops.push(NetOp::SetLocalRoute { vip: address("fd00:10:96::102"), source: None });
        for _ in 0..2 {
            apply(&mut plane, &ops);
            // Time for the kernel's own routes that nobody asked to be rid of.
            thread::sleep(Duration::from_millis(100));
            let seen = plane.observe().expect("observe");
            assert!(seen.dummy_up);
            assert_eq!(plane.host_addresses().expect("addresses"), seen.host_addresses);
            let vips = ["10.96.0.10", "10.96.0.11", "fd00:10:96::101", "fd00:10:96::102"].map(address);
            assert_eq!(seen.dummy_addresses, vips.into());
            assert_eq!(
                seen.local_routes.into_iter().collect::<Vec<_>>(),
                vips.into_iter().zip([Some(address(NODE4)), None, Some(address(NODE6)), None]).collect::<Vec<_>>()
            );
            assert_eq!(seen.host_addresses, empty.host_addresses);
        }
        let mut other = open();
        apply(&mut other, &ops);
        assert_eq!(local_routes6().len(), 2);
    });
}

#[test]
#[ignore = "needs root and dummy links: run the test binary in a VM with --ignored"]
fn deleting_leaves_nothing_and_twice_is_no_error() {
    in_node(|| {
        let mut plane = open();
        let gone = |vip: &str| NetOp::DeleteAddress(address(vip));
        apply(
            &mut plane,
            &[gone("10.96.0.10"), NetOp::DeleteDummy, NetOp::DeleteLocalRoute { vip: address("fd00::1") }],
        );
        let mut ops = vec![NetOp::EnsureDummy];
        for vip in ["10.96.0.10", "10.96.0.11"] {
            ops.extend(add(vip, NODE4));
        }
        for vip in ["fd00:10:96::101", "fd00:10:96::102"] {
            ops.extend(add(vip, NODE6));
        }
        apply(&mut plane, &ops);
        ip("addr add 203.0.113.77/24 dev kube-dummy-if");
        ip("-6 addr add fd00:bad::1/64 dev kube-dummy-if");
        // A second plane knows nothing of what the first one did.
        let mut plane = open();
        plane.observe().expect("observe");
        let all = ["10.96.0.10", "fd00:10:96::101", "203.0.113.77", "fd00:bad::1"];
        for _ in 0..2 {
            apply(&mut plane, &all.map(gone));
            assert_eq!(
                addresses(),
                ["inet 10.96.0.11/32 scope link kube-dummy-if", "inet6 fd00:10:96::102/128 scope global"]
            );
            assert_eq!(local_routes4(), ["local 10.96.0.11 proto kernel scope host src 192.168.77.1"]);
            assert_eq!(local_routes6(), ["local fd00:10:96::102 proto kernel src fd00:77::1 metric 1024 pref medium"]);
        }
        // Stale routes without an address.
        ip("route add local 10.96.0.99 dev kube-dummy-if table local proto kernel scope host src 192.168.77.1");
        ip("-6 route add local fd00:10:96::99 dev kube-dummy-if table local proto kernel src fd00:77::1");
        let seen = plane.observe().expect("observe");
        assert!(seen.local_routes.contains_key(&address("10.96.0.99")));
        apply(&mut plane, &["10.96.0.99", "fd00:10:96::99"].map(|vip| NetOp::DeleteLocalRoute { vip: address(vip) }));
        assert_eq!((local_routes4().len(), local_routes6().len()), (1, 1));
        apply(&mut plane, &[NetOp::DeleteDummy]);
        assert!(try_ip("link show dev kube-dummy-if").is_err());
        assert_eq!(ip("-4 route show table local").matches("10.96.").count(), 0);
    });
}

/// Issue #1698, and its IPv4 sibling: whatever routes there are, one remains.
#[test]
#[ignore = "needs root and dummy links: run the test binary in a VM with --ignored"]
fn routes_are_repaired() {
    in_node(|| {
        ip("addr add 192.168.77.9/24 dev eth0");
        ip("-6 addr add fd00:77::9/64 dev eth0 nodad");
        let mut plane = open();
        let (vip4, vip6) = (address("10.96.0.10"), address("fd00:10:96::101"));
        let mut ops = vec![NetOp::EnsureDummy];
        ops.extend(add("10.96.0.10", NODE4));
        ops.extend(add("fd00:10:96::101", NODE6));
        apply(&mut plane, &ops);
        let want = |four: &str, six: &str| {
            [
                NetOp::SetLocalRoute { vip: vip4, source: Some(address(four)) },
                NetOp::SetLocalRoute { vip: vip6, source: Some(address(six)) },
            ]
        };
        let check = |four: &str, six: &str| {
            assert_eq!(local_routes4(), [format!("local 10.96.0.10 proto kernel scope host src {four}")]);
            let form = format!("local fd00:10:96::101 proto kernel src {six} metric 1024 pref medium");
            assert_eq!(local_routes6(), [form]);
        };
        // The node's address changes, without an observation in between.
        apply(&mut plane, &want("192.168.77.9", "fd00:77::9"));
        check("192.168.77.9", "fd00:77::9");
        // Down and up again: IPv4 gets the kernel's routes back, IPv6 loses its addresses.
        ip("link set kube-dummy-if down");
        assert!(!plane.observe().expect("observe").dummy_up);
        apply(&mut plane, &ops);
        check(NODE4, NODE6);
        // Rivals by hand, of a metric, a protocol, a source.
        ip("route append local 10.96.0.10 dev kube-dummy-if table local proto kernel scope host src 10.96.0.10");
        ip("route add local 10.96.0.10 dev kube-dummy-if table local proto boot metric 5");
        ip("route append local 10.96.0.10 dev kube-dummy-if table local proto kernel scope host src 192.168.77.9");
        ip("-6 route add local fd00:10:96::101 dev kube-dummy-if table local proto boot metric 7");
        ip("-6 route add local fd00:10:96::101 dev kube-dummy-if table local metric 5000");
        let seen = plane.observe().expect("observe");
        assert_eq!(seen.local_routes[&vip4], Some(address("0.0.0.0")));
        assert_eq!(seen.local_routes[&vip6], Some(address("::")));
        apply(&mut plane, &want(NODE4, NODE6));
        check(NODE4, NODE6);
        // Right already: nothing changes.
        apply(&mut plane, &want(NODE4, NODE6));
        check(NODE4, NODE6);
        // Back to the kernel's own form.
        let own = [vip4, vip6].map(|vip| NetOp::SetLocalRoute { vip, source: None });
        for _ in 0..2 {
            apply(&mut plane, &own);
            let seen = plane.observe().expect("observe");
            assert_eq!((seen.local_routes[&vip4], seen.local_routes[&vip6]), (None, None));
        }
        apply(&mut plane, &want(NODE4, NODE6));
        check(NODE4, NODE6);
    });
}

/// The node's own address on another interface is not ours to touch.
#[test]
#[ignore = "needs root and dummy links: run the test binary in a VM with --ignored"]
fn other_interfaces_keep_their_routes() {
    in_node(|| {
        ip("addr add 198.51.100.7/32 dev eth0");
        ip("-6 addr add fd00:55::7/128 dev eth0 nodad");
        thread::sleep(Duration::from_millis(100));
        let before = lines(&ip("route show table local dev eth0"));
        let before6 = lines(&ip("-6 route show table local dev eth0"));
        let mut plane = open();
        let mut ops = vec![NetOp::EnsureDummy];
        ops.extend(add("198.51.100.7", NODE4));
        ops.extend(add("fd00:55::7", NODE6));
        ops.push(NetOp::DeleteAddress(address("198.51.100.7")));
        ops.push(NetOp::DeleteAddress(address("fd00:55::7")));
        plane.apply(&ops).expect("apply");
        assert_eq!(lines(&ip("route show table local dev eth0")), before);
        assert_eq!(lines(&ip("-6 route show table local dev eth0")), before6);
    });
}

#[test]
#[ignore = "needs root and dummy links: run the test binary in a VM with --ignored"]
fn refusals_name_their_order() {
    in_node(|| {
        let mut plane = open();
        let orphan = plane.apply(&[NetOp::AddAddress(address("10.96.0.1"))]).expect("apply");
        assert_eq!((orphan[0].index, orphan[0].refusal.errno), (0, libc::ENODEV));
        let mut ops = vec![NetOp::EnsureDummy];
        ops.extend(add("10.96.0.10", "192.0.2.200"));
        ops.extend(add("fd00:10:96::101", "fd00:99::99"));
        ops.extend(add("10.96.0.11", NODE4));
        let failures = plane.apply(&ops).expect("apply");
        let indices: Vec<usize> = failures.iter().map(|failure| failure.index).collect();
        assert_eq!(indices, [2, 4], "{failures:?}");
        assert!(failures.iter().all(|failure| failure.refusal.errno == libc::EINVAL), "{failures:?}");
        assert_eq!(local_routes4().len(), 2);
    });
}

/// The largest cluster we speak of. Prints what it costs.
#[test]
#[ignore = "needs root and dummy links: run the test binary in a VM with --ignored"]
fn twenty_thousand_vips() {
    in_node(|| {
        let mut plane = open();
        let vips = |from: u32, count: u32| (from..from + count).map(|n| IpAddr::from((0x0a60_0000 + n).to_be_bytes()));
        let vips6 = |count: u16| (0..count).map(|n| IpAddr::from([0xfd00, 0x10, 0x96, 0, 0, 0, 1, n]));
        let order = |vip: IpAddr| {
            let source = Some(address(if vip.is_ipv4() { NODE4 } else { NODE6 }));
            [NetOp::AddAddress(vip), NetOp::SetLocalRoute { vip, source }]
        };
        let ops: Vec<NetOp> =
            [NetOp::EnsureDummy].into_iter().chain(vips(1, 20_000).chain(vips6(2_000)).flat_map(order)).collect();
        let start = Instant::now();
        apply(&mut plane, &ops);
        let cold = start.elapsed();
        let start = Instant::now();
        let seen = plane.observe().expect("observe");
        let observed = start.elapsed();
        assert_eq!((seen.dummy_addresses.len(), seen.local_routes.len()), (22_000, 22_000));
        assert!(
            seen.local_routes
                .iter()
                .all(|(vip, source)| *source == Some(address(if vip.is_ipv4() { NODE4 } else { NODE6 })))
        );
        let start = Instant::now();
        apply(&mut plane, &order(vips(30_000, 1).next().expect("one")));
        let one = start.elapsed();
        let start = Instant::now();
        apply(&mut plane, &order(address("fd00:10:96::7777")));
        let one6 = start.elapsed();
        println!("cold {cold:?}, observe {observed:?}, one more {one:?}, one more IPv6 {one6:?}");
    });
}

#[test]
#[ignore = "needs root: cargo test -p kube-router --test net_kernel monitor -- --ignored"]
fn monitor_announces_addresses_of_others() {
    in_node(|| {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("runtime");
        runtime.block_on(async {
            let mut monitor = AddressMonitor::open().expect("monitor");
            let mut quiet_after = async |what: &str, news: bool| {
                let answer = tokio::time::timeout(Duration::from_millis(500), monitor.changed()).await;
                assert_eq!(answer.is_ok(), news, "{what}: {answer:?}");
                while tokio::time::timeout(Duration::from_millis(200), monitor.changed()).await.is_ok() {}
            };
            quiet_after("nothing happened", false).await;
            ip("addr add 192.0.2.7/24 dev eth0");
            quiet_after("added", true).await;
            ip("addr change 192.0.2.7/24 dev eth0 valid_lft 1000 preferred_lft 900");
            quiet_after("lifetime renewed", false).await;
            for n in 10..200 {
                ip(&format!("addr add 192.0.2.{n}/32 dev eth0"));
            }
            quiet_after("many are one", true).await;
            ip("-6 addr add fd00:77::77/64 dev eth0 nodad");
            quiet_after("IPv6", true).await;
            ip("addr del 192.0.2.7/24 dev eth0");
            quiet_after("deleted", true).await;
            ip("link set eth0 down");
            ip("link set eth0 name lan0");
            quiet_after("renamed", true).await;
            // A link of the name that we manage, of whatever type.
            ip("link add kube-dummy-if type bridge");
            ip("link set kube-dummy-if up");
            ip("addr add 10.96.0.1/32 dev kube-dummy-if");
            ip("-6 addr add fd00:10:96::1/128 dev kube-dummy-if");
            ip("addr del 10.96.0.1/32 dev kube-dummy-if");
            quiet_after("our own", false).await;
        });
    });
}

/// More notifications than the socket holds are one "look again".
#[test]
#[ignore = "needs root: cargo test -p kube-router --test net_kernel monitor -- --ignored"]
fn monitor_survives_a_flood() {
    in_node(|| {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("runtime");
        runtime.block_on(async {
            let mut monitor = AddressMonitor::open().expect("monitor");
            ip("link add kube-dummy-if type bridge");
            ip("link set kube-dummy-if up");
            ip("addr add 10.96.0.1/32 dev kube-dummy-if");
            let _ = tokio::time::timeout(Duration::from_millis(300), monitor.changed()).await;
            // 30,000 notifications, none of which is news: more than the 8 MiB that the socket may get at best.
            let file = tempfile::NamedTempFile::new().expect("file");
            let change = |n| format!("addr change 10.96.0.1/32 dev kube-dummy-if valid_lft {n} preferred_lft 1000\n");
            let batch: String = (1_001..31_001).map(change).collect();
            std::fs::write(file.path(), batch).expect("batch");
            ip(&format!("-batch {}", file.path().display()));
            tokio::time::timeout(Duration::from_secs(5), monitor.changed()).await.expect("news").expect("answer");
            let quiet = tokio::time::timeout(Duration::from_millis(300), monitor.changed()).await;
            assert!(quiet.is_err(), "{quiet:?}");
            ip("addr add 192.0.2.7/24 dev eth0");
            tokio::time::timeout(Duration::from_secs(1), monitor.changed()).await.expect("news").expect("answer");
        });
    });
}

/// Settings below net/ are those of the calling thread's namespace, also when the process lives in another.
#[test]
#[ignore = "needs root: cargo test -p kube-router --test net_kernel sysctl -- --ignored"]
fn sysctl_follows_the_thread() {
    let path = "net/ipv4/conf/all/arp_ignore";
    let outside = ProcSysctl::new().read(path).expect("read").expect("a setting");
    in_namespace(move || {
        ip("link add kr0.100 type bridge");
        let mut plane = ProcSysctl::new();
        for (path, value) in [(path, "7"), ("net/ipv4/conf/kr0.100/rp_filter", "2")] {
            plane.write(&Sysctl { path: path.into(), value: value.into() }).expect("write");
            assert_eq!(plane.read(path).expect("read").as_deref(), Some(value));
        }
        // A child of this thread shares its namespace and must agree.
        let seen = Command::new("cat").arg("/proc/sys/net/ipv4/conf/all/arp_ignore").output().expect("cat").stdout;
        assert_eq!(seen, b"7\n");
        assert_eq!(plane.read("net/ipv4/vs/no_such_setting").expect("read"), None);
    });
    assert_eq!(ProcSysctl::new().read(path).expect("read").expect("a setting"), outside);
    assert_eq!(ProcSysctl::new().read("net/ipv4/conf/kr0.100/rp_filter").expect("read"), None);
}

#[test]
#[ignore = "needs root and modules: run the test binary in a VM with --ignored"]
fn sysctl_loads_modules() {
    let mut plane = ProcSysctl::new();
    plane.load_module("ip_vs_rr").expect("load");
    assert!(std::path::Path::new("/sys/module/ip_vs_rr").exists());
    plane.load_module("ip_vs_rr").expect("is there");
    let error = plane.load_module("no_such_module").expect_err("not there").to_string();
    assert!(error.contains("load it on the host") && error.contains("no_such_module"), "{error}");
    assert_eq!(plane.read("net/ipv4/vs/conntrack").expect("read").as_deref(), Some("0"));
}

/// The other kinds of what stands at a pod's link: `pod_links_kernel`.
#[test]
#[ignore = "needs root and bridges that know VLANs: cargo xtask test --tier 4 --filter net_kernel"]
fn a_bridge_that_looks_at_vlans_is_no_short_way() {
    in_namespace(|| {
        let mut pod = Command::new("unshare").args(["--net", "sleep", "60"]).spawn().expect("unshare");
        let own = std::fs::read_link("/proc/thread-self/ns/net").expect("own namespace");
        let theirs = format!("/proc/{}/ns/net", pod.id());
        while std::fs::read_link(&theirs).is_ok_and(|link| link == own) {
            thread::sleep(Duration::from_millis(5));
        }
        ip("link add br0 type bridge");
        ip(&format!("link add veth0 master br0 type veth peer name eth0 netns {}", pod.id()));
        let mut reader = PodLinks::open().expect("socket");
        let mut found = Vec::new();
        for filters in [0, 1, 0] {
            ip(&format!("link set br0 type bridge vlan_filtering {filters}"));
            found.extend(reader.read().expect("read").pods.values().map(|link| link.hindrance));
        }
        pod.kill().expect("kill");
        pod.wait().expect("wait");
        assert_eq!(found, [None, Some(Hindrance::Bridge), None]);
    });
}
