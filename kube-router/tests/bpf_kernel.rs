//! The BPF object in a real kernel: load, attach, count real packets, read, detach.
//!
//! Every test has two fresh network namespaces, joined by a veth pair, on threads of its own. `tc` and `bpftool` say
//! what is there. A binary built without the object fails these tests; it does not pass them.

use std::{
    collections::BTreeMap,
    net::UdpSocket,
    process::Command,
    sync::{Mutex, MutexGuard, PoisonError, mpsc},
    thread,
    time::Duration,
};

use kube_router::apply::bpf::{AttachMode, BpfError, Dataplane, Direction};
use kube_router_common::{Traffic, TrafficClass};
use nix::{
    sched::{CloneFlags, unshare},
    unistd::gettid,
};

/// `bpftool` finds maps by name, in all namespaces.
static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());

const ETHERNET: u64 = 14;
const IPV4: u64 = 20;
const IPV6: u64 = 40;
const UDP: u64 = 8;

fn run(program: &str, arguments: &str) -> String {
    let output = Command::new(program).args(arguments.split_whitespace()).output().expect(program);
    let text = |bytes| String::from_utf8(bytes).expect("text");
    assert!(output.status.success(), "{program} {arguments}: {}", text(output.stderr));
    text(output.stdout)
}

/// Work to be done in the other namespace.
type Job = Box<dyn FnOnce() + Send>;

/// A namespace "node" (the calling thread) with device `node`, and one "pod" with device `pod`.
struct Wire {
    pod: mpsc::Sender<Job>,
    _alone: MutexGuard<'static, ()>,
}

impl Wire {
    fn new() -> Self {
        let alone = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
        unshare(CloneFlags::CLONE_NEWNET).expect("needs root");
        let (pod, jobs) = mpsc::channel::<Job>();
        let (ready, pod_thread) = mpsc::channel();
        thread::spawn(move || {
            unshare(CloneFlags::CLONE_NEWNET).expect("needs root");
            ready.send(gettid()).expect("test waits");
            for job in jobs {
                job();
            }
        });
        let tid = pod_thread.recv().expect("pod");
        run("ip", &format!("link add node type veth peer name pod netns {tid}"));
        run("ip", "addr add 192.0.2.1/24 dev node");
        run("ip", "-6 addr add fd00:2::1/64 dev node nodad");
        run("ip", "link set node up");
        let wire = Wire { pod, _alone: alone };
        wire.in_pod(|| {
            run("ip", "addr add 192.0.2.2/24 dev pod");
            run("ip", "-6 addr add fd00:2::2/64 dev pod nodad");
            run("ip", "link set pod up");
        });
        // Neighbours are known and IPv6 works before anything is counted.
        run("ping", "-c 1 -W 5 192.0.2.2");
        run("ping", "-c 1 -W 5 fd00:2::2");
        wire
    }

    fn in_pod<T: Send + 'static>(&self, job: impl FnOnce() -> T + Send + 'static) -> T {
        let (answer, result) = mpsc::channel();
        self.pod.send(Box::new(move || drop(answer.send(job())))).expect("pod");
        result.recv_timeout(Duration::from_secs(60)).expect("job done")
    }
}

/// Runs `body` on a thread of its own, because it changes the namespace.
fn on_a_wire(body: impl FnOnce(&Wire) + Send + 'static) {
    let thread = thread::spawn(|| body(&Wire::new()));
    thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
}

/// Sends datagrams between two sockets and waits for each.
fn send(from: &UdpSocket, to: &UdpSocket, count: usize, size: usize) {
    to.set_read_timeout(Some(Duration::from_secs(10))).expect("timeout");
    let mut buffer = vec![0; 65536];
    for _ in 0..count {
        from.send_to(&vec![7; size], to.local_addr().expect("address")).expect("send");
        assert_eq!(to.recv(&mut buffer).expect("arrives"), size);
    }
}

fn counted(dataplane: &Dataplane, class: TrafficClass) -> Traffic {
    dataplane.traffic().expect("counters")[&class]
}

fn tc_filters(direction: Direction) -> String {
    run("tc", &format!("filter show dev node {direction}"))
}

/// Packets of known number and size in one direction, and the counters afterwards.
fn counters_tell_the_truth(mode: AttachMode) {
    on_a_wire(move |wire| {
        let mut dataplane = Dataplane::load().expect("load");
        assert!(dataplane.traffic().expect("counters").values().all(|traffic| *traffic == Traffic::default()));
        dataplane.attach("node", Direction::Ingress, mode).expect("attach");
        dataplane.attach("node", Direction::Ingress, mode).expect("twice is once");
        let socket = |address: &str| UdpSocket::bind((address, 0)).expect("bind");
        let (node4, node6) = (socket("192.0.2.1"), socket("fd00:2::1"));
        let (pod4, pod6) = wire.in_pod(move || (socket("192.0.2.2"), socket("fd00:2::2")));
        send(&pod4, &node4, 7, 100);
        send(&pod6, &node6, 5, 300);
        send(&node4, &pod4, 9, 50); // the other way: not ingress
        run("ping", "-c 3 -i 0.2 192.0.2.2"); // three answers come in
        let udp4 = Traffic { packets: 7, bytes: 7 * (ETHERNET + IPV4 + UDP + 100) };
        let udp6 = Traffic { packets: 5, bytes: 5 * (ETHERNET + IPV6 + UDP + 300) };
        assert_eq!(counted(&dataplane, TrafficClass::Udp4), udp4);
        assert_eq!(counted(&dataplane, TrafficClass::Udp6), udp6);
        assert_eq!(counted(&dataplane, TrafficClass::Icmp4), Traffic { packets: 3, bytes: 3 * 98 });
        assert_eq!(counted(&dataplane, TrafficClass::Tcp4), Traffic::default());

        dataplane.attach("node", Direction::Egress, mode).expect("attach");
        send(&node4, &pod4, 2, 50);
        let both = Traffic { packets: 9, bytes: udp4.bytes + 2 * (ETHERNET + IPV4 + UDP + 50) };
        assert_eq!(counted(&dataplane, TrafficClass::Udp4), both);

        for direction in [Direction::Ingress, Direction::Egress] {
            dataplane.detach("node", direction).expect("detach");
            dataplane.detach("node", direction).expect("twice is once");
        }
        send(&pod4, &node4, 3, 100);
        send(&node4, &pod4, 3, 100);
        assert_eq!(counted(&dataplane, TrafficClass::Udp4), both);
    });
}

#[test]
#[ignore = "needs root and the BPF object: cargo test -p kube-router --test bpf_kernel -- --ignored"]
fn clsact_counts() {
    counters_tell_the_truth(AttachMode::Clsact);
}

/// Where the kernel has no tcx, attaching says so and the agent chooses clsact by itself.
#[test]
#[ignore = "needs root and the BPF object: cargo test -p kube-router --test bpf_kernel -- --ignored"]
fn tcx_counts_where_there_is_tcx() {
    let release = run("uname", "-r");
    let mut numbers = release.split('.').map(|part| part.parse::<u32>().expect("number"));
    let version = (numbers.next().expect("major"), numbers.next().expect("minor"));
    if version >= (6, 6) {
        assert_eq!(AttachMode::of_kernel(), AttachMode::Tcx);
        counters_tell_the_truth(AttachMode::Tcx);
    } else {
        assert_eq!(AttachMode::of_kernel(), AttachMode::Clsact);
        on_a_wire(|_| {
            let mut dataplane = Dataplane::load().expect("load");
            let refused = dataplane.attach("node", Direction::Ingress, AttachMode::Tcx);
            assert!(matches!(refused, Err(BpfError::Attach { mode: AttachMode::Tcx, .. })), "{refused:?}");
            dataplane.attach("node", Direction::Ingress, AttachMode::of_kernel()).expect("attach");
        });
    }
}

#[test]
#[ignore = "needs root and the BPF object: cargo test -p kube-router --test bpf_kernel -- --ignored"]
fn clsact_filters_have_a_fixed_place_and_leave() {
    on_a_wire(|wire| {
        let mut killed = Dataplane::load().expect("load");
        killed.attach("node", Direction::Ingress, AttachMode::Clsact).expect("attach");
        // As after SIGKILL: the filter stays.
        std::mem::forget(killed);
        assert_eq!(tc_filters(Direction::Ingress).matches("kr_count direct-action").count(), 1);
        let mut dataplane = Dataplane::load().expect("load");
        dataplane.attach("node", Direction::Ingress, AttachMode::Clsact).expect("attach");
        let filters = tc_filters(Direction::Ingress);
        assert_eq!(filters.matches("kr_count direct-action").count(), 1, "{filters}");
        assert!(filters.contains("pref 19282 bpf") && filters.contains("handle 0x1 kr_count"), "{filters}");
        let socket = |address: &str| UdpSocket::bind((address, 0)).expect("bind");
        let node = socket("192.0.2.1");
        let pod = wire.in_pod(move || socket("192.0.2.2"));
        send(&pod, &node, 4, 10);
        assert_eq!(counted(&dataplane, TrafficClass::Udp4).packets, 4);
        drop(dataplane);
        assert_eq!(tc_filters(Direction::Ingress), "");
    });
}

/// The packet goes on to the next program, from tcx to tcx to clsact to the stack; before tcx, from filter to filter.
#[test]
#[ignore = "needs root and the BPF object: cargo test -p kube-router --test bpf_kernel -- --ignored"]
fn counting_hides_nothing_from_others() {
    let modes = match AttachMode::of_kernel() {
        AttachMode::Tcx => vec![AttachMode::Tcx, AttachMode::Tcx, AttachMode::Clsact],
        AttachMode::Clsact => vec![AttachMode::Clsact],
    };
    on_a_wire(move |wire| {
        let attached = |mode: &AttachMode| {
            let mut dataplane = Dataplane::load().expect("load");
            dataplane.attach("node", Direction::Ingress, *mode).expect("attach");
            dataplane
        };
        let dataplanes: Vec<Dataplane> = modes.iter().map(attached).collect();
        let dropping = modes.len() == 1;
        if dropping {
            // Somebody else's filter behind ours (the host kernel of some developers has no such action).
            run("tc", "filter add dev node ingress pref 40000 protocol ip u32 match ip dport 4242 0xffff action drop");
        }
        let node = UdpSocket::bind("192.0.2.1:0").expect("bind");
        let pod = wire.in_pod(|| {
            let pod = UdpSocket::bind("192.0.2.2:0").expect("bind");
            pod.send_to(b"dropped", "192.0.2.1:4242").expect("send");
            pod
        });
        send(&pod, &node, 2, 10);
        for dataplane in &dataplanes {
            assert_eq!(counted(dataplane, TrafficClass::Udp4).packets, 3);
        }
        if dropping {
            let dropped = run("tc", "-s filter show dev node ingress pref 40000");
            assert!(dropped.contains("1 pkt"), "{dropped}");
        }
    });
}

/// What people see: field names, not bytes; and the same numbers.
#[test]
#[ignore = "needs root, bpftool and the BPF object: cargo test -p kube-router --test bpf_kernel -- --ignored"]
fn bpftool_names_the_fields() {
    on_a_wire(|wire| {
        let mut dataplane = Dataplane::load().expect("load");
        dataplane.attach("node", Direction::Ingress, AttachMode::of_kernel()).expect("attach");
        let node = UdpSocket::bind("192.0.2.1:0").expect("bind");
        let pod = wire.in_pod(|| UdpSocket::bind("192.0.2.2:0").expect("bind"));
        send(&pod, &node, 6, 10);
        let text = run("bpftool", "map dump name kr_traffic");
        assert!(text.contains("\"packets\": 0") && text.contains("\"bytes\": 0"), "{text}");
        let rows: serde_json::Value =
            serde_json::from_str(&run("bpftool", "-j map dump name kr_traffic")).expect("JSON");
        let mut sums: BTreeMap<u64, (u64, u64)> = BTreeMap::new();
        for row in rows.as_array().expect("rows") {
            let row = &row["formatted"];
            let sum = sums.entry(row["key"].as_u64().expect("key")).or_default();
            for value in row["values"].as_array().expect("values") {
                sum.0 += value["value"]["packets"].as_u64().expect("packets");
                sum.1 += value["value"]["bytes"].as_u64().expect("bytes");
            }
        }
        assert_eq!(sums[&2], (6, 6 * (ETHERNET + IPV4 + UDP + 10)), "{text}");
        assert_eq!(sums.len(), TrafficClass::COUNT);
        let programs = run("bpftool", "prog show name kr_count");
        assert!(programs.contains("sched_cls"), "{programs}");
    });
}
