//! A node with pods on a bridge: namespaces on threads of their own.
//!
//! ```text
//!   pod 1 (10.1.0.1, fd00:1::1) ─ veth v101 ┐
//!   pod 2 (10.1.0.2, fd00:1::2) ─ veth v102 ┴ kube-bridge (10.1.0.254, fd00:1::fe) of the node
//! ```

use std::{
    fs,
    net::{IpAddr, SocketAddr, TcpListener, TcpStream},
    path::PathBuf,
    sync::mpsc,
    thread,
    time::{Duration, Instant},
};

use kube_router::apply::{
    bpf::{AttachMode, Dataplane, Options},
    net::pod_links::PodLinks,
};
use kube_router_common::{
    config::{Config, Iface},
    hooks::Hook,
    policy::{ANY, Address, Endpoint, Peer, PodGroups, PolicyKey, PolicyRow},
    twin::cases::{IF_1, IF_2, IF_UPLINK, MAC_1, MAC_2},
};
use nix::{
    mount::{MsFlags, mount, umount},
    sched::{CloneFlags, unshare},
    unistd::{Pid, gettid},
};

use crate::run;

type Job = Box<dyn FnOnce() + Send>;

/// A namespace; jobs run in it.
pub struct Pod(mpsc::Sender<Job>);

impl Pod {
    /// With the thread that is in it.
    fn bare() -> (Self, Pid) {
        let (jobs, inbox) = mpsc::channel::<Job>();
        let (ready, thread_id) = mpsc::channel();
        thread::spawn(move || {
            unshare(CloneFlags::CLONE_NEWNET).expect("needs root");
            ready.send(gettid()).expect("test waits");
            for job in inbox {
                job();
            }
        });
        (Pod(jobs), thread_id.recv().expect("pod"))
    }

    fn new(ifindex: u32, mac: [u8; 6], host: u8) -> Self {
        let (pod, tid) = Pod::bare();
        run("ip", &format!("link add v{ifindex} index {ifindex} type veth peer name eth0 netns {tid}"));
        run("ip", &format!("link set v{ifindex} master kube-bridge up"));
        let mac = mac.map(|byte| format!("{byte:02x}")).join(":");
        pod.run(move || {
            run("ip", &format!("link set eth0 address {mac}"));
            run("ip", &format!("addr add 10.1.0.{host}/24 dev eth0"));
            run("ip", &format!("-6 addr add fd00:1::{host:x}/64 dev eth0 nodad"));
            run("ip", "link set eth0 up");
            run("ip", "link set lo up");
            run("ip", "route add default via 10.1.0.254");
            run("ip", "-6 route add default via fd00:1::fe");
        });
        pod
    }

    pub fn run<T: Send + 'static>(&self, job: impl FnOnce() -> T + Send + 'static) -> T {
        let (answer, result) = mpsc::channel();
        self.0.send(Box::new(move || drop(answer.send(job())))).expect("pod");
        result.recv_timeout(Duration::from_secs(120)).expect("job done")
    }

    /// Accepts connections for as long as the test lasts.
    pub fn listen(&self, port: u16) {
        self.run(move || {
            for address in ["::", "0.0.0.0"] {
                let address: IpAddr = address.parse().expect("address");
                // Where "::" takes both families the second bind is not needed.
                let Ok(listener) = TcpListener::bind((address, port)) else { continue };
                thread::spawn(move || {
                    let mut open = Vec::new();
                    for connection in listener.incoming() {
                        open.extend(connection);
                    }
                });
            }
        });
    }

    /// Connects; says the error's kind and how long it took.
    pub fn connect(&self, to: &str) -> (Result<TcpStream, std::io::ErrorKind>, Duration) {
        let to: SocketAddr = to.parse().expect("address");
        self.run(move || {
            let start = Instant::now();
            let result = TcpStream::connect_timeout(&to, Duration::from_secs(10)).map_err(|error| error.kind());
            (result, start.elapsed())
        })
    }
}

pub struct Net {
    pub pod_1: Pod,
    pub pod_2: Pod,
}

/// Classes in these tests.
pub const CLASS_1: u32 = 11;
pub const CLASS_2: u32 = 12;

pub fn address(text: &str) -> Address {
    match text.parse().expect("address") {
        IpAddr::V4(v4) => Address::from_v4(v4.octets()),
        IpAddr::V6(v6) => Address(v6.octets()),
    }
}

impl Net {
    /// On this thread, which becomes the node.
    pub fn new() -> Self {
        unshare(CloneFlags::CLONE_NEWNET).expect("needs root");
        run("ip", "link set lo up");
        run("ip", "link add kube-bridge type bridge");
        run("ip", "addr add 10.1.0.254/24 dev kube-bridge");
        run("ip", "-6 addr add fd00:1::fe/64 dev kube-bridge nodad");
        run("ip", "link set kube-bridge up");
        let (pod_1, pod_2) = (Pod::new(IF_1, MAC_1, 1), Pod::new(IF_2, MAC_2, 2));
        for target in ["10.1.0.1", "10.1.0.2", "fd00:1::1", "fd00:1::2"] {
            run("ping", &format!("-c 1 -W 10 {target}"));
        }
        Net { pod_1, pod_2 }
    }

    /// Another node, one hop behind the uplink v103, and a pod's addresses there: 10.2.0.2, fd00:2::2.
    pub fn other_node(&self) -> Pod {
        let (node, tid) = Pod::bare();
        run("ip", &format!("link add v{IF_UPLINK} index {IF_UPLINK} type veth peer name eth0 netns {tid}"));
        run("ip", &format!("link set v{IF_UPLINK} up"));
        run("ip", &format!("addr add 192.168.77.1/24 dev v{IF_UPLINK}"));
        run("ip", &format!("-6 addr add fd00:77::1/64 dev v{IF_UPLINK} nodad"));
        node.run(|| {
            run("ip", "link set lo up");
            run("ip", "link set eth0 up");
            for address in ["192.168.77.2/24 dev eth0", "10.2.0.2/32 dev lo"] {
                run("ip", &format!("addr add {address}"));
            }
            for address in ["fd00:77::2/64 dev eth0", "fd00:2::2/128 dev lo"] {
                run("ip", &format!("-6 addr add {address} nodad"));
            }
            run("ip", "route add 10.1.0.0/24 via 192.168.77.1 src 10.2.0.2");
            run("ip", "-6 route add fd00:1::/64 via fd00:77::1 src fd00:2::2");
        });
        run("ip", "route add 10.2.0.0/24 via 192.168.77.2");
        run("ip", "-6 route add fd00:2::/64 via fd00:77::2");
        for setting in ["ipv4/ip_forward", "ipv6/conf/all/forwarding"] {
            fs::write(format!("/proc/sys/net/{setting}"), "1").expect("forwarding");
        }
        node
    }
}

/// Pods, addresses, classes; groups 0.
pub fn write_pods(dataplane: &Dataplane) {
    let (maps, mut links) = (dataplane.tables(), PodLinks::open().expect("rtnetlink"));
    for (pod, ifindex, mac, class) in [(1, IF_1, MAC_1, CLASS_1), (2, IF_2, MAC_2, CLASS_2)] {
        let netns = links.read_one(ifindex).expect("link").map_or(0, |link| link.namespace + 1);
        maps.ifaces.put(&ifindex, &Iface { mac, flags: Iface::PUBLISHED | Iface::DIRECT, pod, netns }).expect("iface");
        for text in [format!("10.1.0.{pod}"), format!("fd00:1::{pod}")] {
            let address = address(&text);
            maps.endpoints.put(&address, &Endpoint { pod, ifindex, mac, pad: [0; 2] }).expect("endpoint");
            maps.peers.put(&address, &Peer { class, flags: 0 }).expect("peer");
        }
    }
    for text in ["10.1.0.254", "fd00:1::fe"] {
        maps.peers.put(&address(text), &Peer { class: 9, flags: Peer::NODE }).expect("peer");
    }
}

/// Isolates a pod: group numbers are the pod's tens.
pub fn isolate(dataplane: &Dataplane, pod: u32, ingress: bool, egress: bool) {
    let groups =
        PodGroups { ingress: if ingress { pod * 10 } else { 0 }, egress: if egress { pod * 10 + 1 } else { 0 } };
    dataplane.tables().pods.put(&pod, &groups).expect("groups");
}

/// Allows a TCP port (its class is the port) of a class; a change of generation follows.
pub fn allow(dataplane: &Dataplane, group: u32, class: u32, port: u16) {
    let maps = dataplane.tables();
    let index = kube_router_common::policy::port_index(6, port).expect("TCP");
    maps.ports.put(&index, &u32::from(port)).expect("port");
    let ports = if port == 0 { ANY } else { u32::from(port) };
    let row = PolicyRow { verdict: PolicyRow::ALLOW, rule: 1 };
    maps.policy.put(&PolicyKey { group, class, ports }, &row).expect("row");
}

pub fn next_generation(dataplane: &Dataplane) {
    let config = dataplane.tables().config().expect("config");
    let config = Config { generation: config.generation + 1, ..config };
    dataplane.tables().set_config(&config).expect("config");
}

pub fn attach(dataplane: &mut Dataplane, ifindex: u32, hook: Hook) {
    dataplane.attach(ifindex, hook, AttachMode::of_kernel()).expect("attach");
}

pub fn attach_pods(dataplane: &mut Dataplane) {
    for ifindex in [IF_1, IF_2] {
        for hook in [Hook::PodOut, Hook::PodIn] {
            attach(dataplane, ifindex, hook);
        }
    }
}

/// A BPF file system of the test's own.
pub struct Pins {
    base: tempfile::TempDir,
}

impl Pins {
    pub fn new() -> Self {
        let base = tempfile::tempdir().expect("directory");
        let none: Option<&str> = None;
        mount(Some("bpf"), base.path(), Some("bpf"), MsFlags::empty(), none).expect("bpf file system");
        Pins { base }
    }

    pub fn root(&self) -> PathBuf {
        kube_router::apply::bpf::root(self.base.path())
    }

    pub fn options(&self) -> Options {
        Options { pins: Some(self.root()), ..Options::default() }
    }
}

impl Drop for Pins {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(self.root());
        let _ = umount(self.base.path());
    }
}
