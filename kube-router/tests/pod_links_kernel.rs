//! Pods' ends of veths as the kernel tells them from the node's side. `ip` makes them and knows better.

use std::{
    collections::BTreeSet,
    net::IpAddr,
    process::{Child, Command, Stdio},
    thread,
    time::Duration,
};

use kube_router::{
    apply::net::pod_links::{PodLinkMonitor, PodLinks},
    compile::links::{Hindrance, PodLink},
};
use nix::sched::{CloneFlags, unshare};

/// Runs `body` on a thread in a network namespace of its own.
fn in_namespace<T: Send + 'static>(body: impl FnOnce() -> T + Send + 'static) -> T {
    let thread = thread::spawn(|| {
        unshare(CloneFlags::CLONE_NEWNET).expect("needs root");
        body()
    });
    thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
}

fn run(line: &str) -> String {
    let words: Vec<&str> = line.split_whitespace().collect();
    let output = Command::new(words[0]).args(&words[1..]).output().expect(words[0]);
    assert!(output.status.success(), "{line}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).expect("text")
}

/// A network namespace without a name, as pods have: it lives as long as its process.
struct Pod(Child);

impl Pod {
    fn new() -> Pod {
        let child =
            Command::new("unshare").args(["-n", "sleep", "600"]).stdout(Stdio::null()).spawn().expect("unshare");
        let own = std::fs::read_link("/proc/thread-self/ns/net").expect("own namespace");
        let theirs = format!("/proc/{}/ns/net", child.id());
        while std::fs::read_link(&theirs).is_ok_and(|link| link == own) {
            thread::sleep(Duration::from_millis(5));
        }
        Pod(child)
    }

    fn run(&self, line: &str) -> String {
        run(&format!("nsenter -t {} -n {line}", self.0.id()))
    }

    /// A veth into the pod, and addresses on it.
    fn connect(&self, host: &str, mac: &str, addresses: &[&str]) {
        run(&format!("ip link add {host} type veth peer name eth0 address {mac} netns {}", self.0.id()));
        run(&format!("ip link set {host} up"));
        self.run("ip link set eth0 up");
        for address in addresses {
            self.run(&format!("ip address add {address} dev eth0"));
        }
    }
}

impl Drop for Pod {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn by_name<'a>(links: impl IntoIterator<Item = &'a PodLink>, name: &str) -> Option<&'a PodLink> {
    links.into_iter().find(|link| &*link.name == name)
}

fn set(addresses: &[&str]) -> BTreeSet<IpAddr> {
    addresses.iter().map(|address| address.parse().expect("address")).collect()
}

#[test]
#[ignore = "needs root: cargo xtask test --tier 1"]
fn every_pod_is_found_by_its_veth() {
    in_namespace(|| {
        run("ip link add pair0 type veth peer name pair1");
        run("ip link add br0 type bridge");
        let (one, two) = (Pod::new(), Pod::new());
        one.connect("vethone", "02:00:00:00:00:01", &["10.1.0.5/24", "fd00:1::5/64"]);
        two.connect("vethtwo", "02:00:00:00:00:02", &["10.1.0.6/24"]);
        run("ip link set vethone master br0");
        let mut reader = PodLinks::open().expect("socket");
        let links = reader.read().expect("read").pods;
        assert_eq!(links.len(), 2, "a pair of this namespace is no pod's: {links:?}");
        let first = by_name(links.values(), "vethone").expect("vethone");
        assert_eq!(first.mac, [2, 0, 0, 0, 0, 1]);
        assert_eq!(first.addresses, set(&["10.1.0.5", "fd00:1::5"]));
        assert_eq!(by_name(links.values(), "vethtwo").expect("vethtwo").addresses, set(&["10.1.0.6"]));

        // A rename, an address more, one less.
        run("ip link set vethtwo down");
        run("ip link set vethtwo name renamed");
        two.run("ip address add 10.2.0.7/24 dev eth0");
        two.run("ip address del 10.1.0.6/24 dev eth0");
        let index = by_name(links.values(), "vethtwo").expect("vethtwo").index;
        let link = reader.read_one(index).expect("read").expect("is there");
        assert_eq!((&*link.name, &link.addresses), ("renamed", &set(&["10.2.0.7"])));
        assert_eq!(reader.read().expect("read").pods.get(&index), Some(&link));

        // The pod goes.
        drop(two);
        let begin = std::time::Instant::now();
        while reader.read_one(index).expect("read").is_some() {
            assert!(begin.elapsed() < Duration::from_secs(30), "still there");
            thread::sleep(Duration::from_millis(20));
        }
        let pair: u32 = run("cat /sys/class/net/lo/ifindex").trim().parse().expect("number");
        assert_eq!(reader.read_one(pair).expect("read"), None, "no veth");
    });
}

#[test]
#[ignore = "needs root: cargo xtask test --tier 1"]
fn an_address_that_appears_in_a_pod_is_announced() {
    in_namespace(|| {
        let pod = Pod::new();
        pod.connect("veth0", "02:00:00:00:00:03", &[]);
        let mut reader = PodLinks::open().expect("socket");
        // The kernel numbers a namespace when it is first mentioned.
        assert_eq!(reader.read().expect("read").pods.len(), 1);
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("runtime");
        runtime.block_on(async {
            let mut monitor = PodLinkMonitor::open().expect("monitor");
            // Whatever was under way.
            while tokio::time::timeout(Duration::from_secs(3), monitor.changed()).await.is_ok() {}
            pod.run("ip address add 10.1.0.9/24 dev eth0");
            tokio::time::timeout(Duration::from_secs(10), monitor.changed()).await.expect("in time").expect("read");
        });
        let links = reader.read().expect("read").pods;
        assert_eq!(by_name(links.values(), "veth0").expect("veth0").addresses, set(&["10.1.0.9"]));
    });
}

/// Of what is handed past the stack, nothing of this would see a packet.
#[test]
#[ignore = "needs root: cargo xtask test --tier 1"]
fn what_stands_at_a_pods_link_is_seen() {
    in_namespace(|| {
        let pod = Pod::new();
        pod.connect("vethone", "02:00:00:00:00:01", &["10.1.0.5/24"]);
        run("ip link add br0 type bridge");
        let mut reader = PodLinks::open().expect("socket");
        let mut expect = |wanted: Option<Hindrance>, after: &str| {
            let links = reader.read().expect("read").pods;
            let link = by_name(links.values(), "vethone").expect("vethone");
            assert_eq!(link.hindrance, wanted, "{after}");
            assert_eq!(reader.read_one(link.index).expect("read").as_ref(), Some(link), "{after}");
        };
        expect(None, "nothing");
        // One instruction: return 0, which is no match.
        let pass = std::env::temp_dir().join(format!("pod_links_kernel-{}", std::process::id()));
        std::fs::write(&pass, "1,6 0 0 0").expect("write");
        for (line, wanted) in [
            ("ip link set vethone master br0", None),
            ("bridge link set dev vethone isolated on", Some(Hindrance::Bridge)),
            ("bridge link set dev vethone isolated off", None),
            ("ip link set vethone nomaster", None),
            ("tc qdisc add dev vethone root tbf rate 1mbit burst 32kbit latency 400ms", Some(Hindrance::Qdisc)),
            ("tc qdisc del dev vethone root", None),
            ("tc qdisc add dev vethone ingress", Some(Hindrance::Qdisc)),
            ("tc qdisc del dev vethone ingress", None),
            ("tc qdisc add dev vethone clsact", None),
            ("tc filter add dev vethone egress prio 7 bpf bytecode-file {pass}", Some(Hindrance::Filter)),
            ("tc filter del dev vethone egress prio 7", None),
            ("tc filter add dev vethone ingress prio 19282 bpf bytecode-file {pass}", None),
            ("tc filter add dev vethone ingress prio 1 bpf bytecode-file {pass}", Some(Hindrance::Filter)),
        ] {
            run(&line.replace("{pass}", &pass.display().to_string()));
            expect(wanted, line);
        }
        std::fs::remove_file(pass).expect("remove");
    });
}
