//! Real traffic between pods: allowed, refused at once, stopped, replaced under flood.

use std::{
    io::{ErrorKind, Write},
    net::UdpSocket,
    process::Command,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use kube_router::apply::bpf::{AttachMode, BpfError, Dataplane, Options, Tables, attached, now_s};
use kube_router_common::{
    flow::Flow,
    hooks::Hook,
    names,
    policy::{Address, Peer},
    reason::{Direction, Reason},
    twin::{
        cases::{IF_1, IF_2},
        fuzz,
    },
};

use crate::{
    alone,
    net::{CLASS_1, CLASS_2, Net, Pins, address, allow, attach_pods, isolate, next_generation, write_pods},
};

pub fn on_a_node(body: impl FnOnce(Net) + Send + 'static) {
    let _alone = alone();
    let thread = thread::spawn(|| body(Net::new()));
    thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
}

fn refused_packets(dataplane: &Dataplane, pod: u32, direction: Direction) -> u64 {
    let sums = dataplane.tables().drops.sums().expect("drops");
    let fits = |key: &kube_router_common::config::DropKey| {
        (key.pod, key.direction, key.reason) == (pod, direction as u8, Reason::Denied as u8)
    };
    sums.iter().filter(|(key, _)| fits(key)).map(|(_, traffic)| traffic.packets).sum()
}

/// At both hooks, both families, with a socket and with curl.
#[test]
#[ignore = "needs root and the BPF object: cargo xtask test --tier 2 --filter refused_at_once"]
fn denied_connections_are_refused_at_once() {
    on_a_node(|net| {
        let mut dataplane = Dataplane::load(&Options::default()).expect("load");
        write_pods(&dataplane);
        allow(&dataplane, 20, CLASS_1, 80);
        allow(&dataplane, 11, CLASS_2, 80);
        attach_pods(&mut dataplane);
        for port in [80, 81] {
            net.pod_2.listen(port);
        }
        // Well before anybody gives up; an emulated machine takes seconds.
        let quick = Duration::from_secs(8);
        for (what, ingress_of_2, egress_of_1) in
            [("ingress", true, false), ("egress", false, true), ("both", true, true)]
        {
            isolate(&dataplane, 2, ingress_of_2, false);
            isolate(&dataplane, 1, egress_of_1, egress_of_1);
            next_generation(&dataplane);
            for to in ["10.1.0.2", "[fd00:1::2]"] {
                let (allowed, _) = net.pod_1.connect(&format!("{to}:80"));
                allowed.unwrap_or_else(|error| panic!("{what} {to}: {error}"));
                let (denied, took) = net.pod_1.connect(&format!("{to}:81"));
                assert_eq!(denied.map(drop), Err(ErrorKind::ConnectionRefused), "{what} {to} after {took:?}");
                assert!(took < quick, "{what} {to}: {took:?}");
                let url = format!("http://{to}:81/");
                let (code, took) = net.pod_1.run(move || {
                    let start = Instant::now();
                    let curl = Command::new("curl").args(["-g", "-s", "-m", "10", &url]).status();
                    (curl.ok().and_then(|status| status.code()), start.elapsed())
                });
                // 7: failed to connect. Where there is no curl, the socket has said it.
                assert!(matches!(code, Some(7) | None), "{code:?}");
                assert!(took < quick, "{what} curl {to}: {took:?}");
            }
        }
        assert!(refused_packets(&dataplane, 2, Direction::Ingress) >= 4);
        assert!(refused_packets(&dataplane, 1, Direction::Egress) >= 4);
        // The node reaches its pods whatever the policies say, and its pods' replies reach it.
        for to in ["10.1.0.2:81", "[fd00:1::2]:81"] {
            let to = to.parse().expect("address");
            std::net::TcpStream::connect_timeout(&to, Duration::from_secs(5)).expect("node to pod");
        }
        let records = dataplane.take_events().expect("events");
        let told: Vec<_> = records.map(|(head, _)| (head.pod, head.direction, head.destination_port)).collect();
        assert!(told.contains(&(2, Direction::Ingress as u8, 81)), "{told:?}");
        assert!(told.contains(&(1, Direction::Egress as u8, 81)), "{told:?}");
    });
}

/// UDP senders learn it as well.
#[test]
#[ignore = "needs root and the BPF object: cargo xtask test --tier 2 --filter datagrams_are_refused"]
fn datagrams_are_refused_too() {
    on_a_node(|net| {
        let mut dataplane = Dataplane::load(&Options::default()).expect("load");
        write_pods(&dataplane);
        isolate(&dataplane, 2, true, false);
        attach_pods(&mut dataplane);
        for (from, to) in [("10.1.0.1:0", "10.1.0.2:53"), ("[fd00:1::1]:0", "[fd00:1::2]:53")] {
            let error = net.pod_1.run(move || {
                let socket = UdpSocket::bind(from).expect("bind");
                socket.connect(to).expect("connect");
                socket.set_read_timeout(Some(Duration::from_secs(5))).expect("timeout");
                socket.send(b"query").expect("send");
                socket.recv(&mut [0; 64]).map_err(|error| error.kind())
            });
            assert_eq!(error, Err(ErrorKind::ConnectionRefused), "{to}");
        }
    });
}

#[test]
#[ignore = "needs root and the BPF object: cargo xtask test --tier 2 --filter stops_a_live_connection"]
fn a_change_of_policy_stops_a_live_connection() {
    on_a_node(|net| {
        let mut dataplane = Dataplane::load(&Options::default()).expect("load");
        write_pods(&dataplane);
        allow(&dataplane, 20, CLASS_1, 80);
        isolate(&dataplane, 2, true, false);
        attach_pods(&mut dataplane);
        net.pod_2.listen(80);
        let mut connection = net.pod_1.connect("10.1.0.2:80").0.expect("allowed");
        connection.write_all(b"hello").expect("sends");
        let flows = dataplane.tables().flows.read_all().expect("flows");
        assert_eq!(flows.len(), 1, "{flows:?}");
        // Pod 1 becomes another class: one element.
        let peers = &dataplane.tables().peers;
        peers.put(&address("10.1.0.1"), &Peer { class: 99, flags: 0 }).expect("class");
        next_generation(&dataplane);
        let before = refused_packets(&dataplane, 2, Direction::Ingress);
        connection.write_all(b"more").expect("into the socket's buffer");
        let deadline = Instant::now() + Duration::from_secs(5);
        while refused_packets(&dataplane, 2, Direction::Ingress) == before {
            assert!(Instant::now() < deadline, "still passes");
            thread::sleep(Duration::from_millis(20));
        }
        let flows = dataplane.tables().flows.read_all().expect("flows");
        assert!(flows.len() == 1 && flows[0].1.is(Flow::REFUSED), "{flows:?}");
    });
}

/// What the agent pins goes on without it, and the next agent takes it over.
#[test]
#[ignore = "needs root and the BPF object: cargo xtask test --tier 2 --filter outlives_the_agent"]
fn what_is_pinned_outlives_the_agent() {
    on_a_node(|net| {
        let pins = Pins::new();
        let mut first = Dataplane::load(&pins.options()).expect("load");
        write_pods(&first);
        allow(&first, 20, CLASS_1, 80);
        isolate(&first, 2, true, false);
        attach_pods(&mut first);
        let program = first.program_id(Hook::PodIn).expect("id");
        drop(first);
        net.pod_2.listen(80);
        net.pod_2.listen(81);
        let mut connection = net.pod_1.connect("10.1.0.2:80").0.expect("allowed without an agent");
        let (denied, took) = net.pod_1.connect("10.1.0.2:81");
        assert_eq!(denied.map(drop), Err(ErrorKind::ConnectionRefused), "{took:?}");

        let on = |ifindex| attached(ifindex).expect("list").into_iter().map(|one| one.program).collect::<Vec<_>>();
        assert!(on(IF_2).contains(&program), "{:?}", on(IF_2));
        let mut second = Dataplane::load(&pins.options()).expect("load again");
        attach_pods(&mut second);
        let replaced = second.program_id(Hook::PodIn).expect("id");
        assert!(on(IF_2).contains(&replaced) && !on(IF_2).contains(&program));
        assert_eq!(on(IF_2).len(), 2, "one at each side");
        connection.write_all(b"hello").expect("the connection lives on");
        assert_eq!(second.tables().flows.read_all().expect("flows").len(), 1);
        let reader = Tables::open(&pins.root()).expect("beside the agent");
        assert_eq!(reader.endpoints.read_all().expect("endpoints").len(), 4);

        // Sizes are checked, as a map that is taken over keeps its own.
        let mut other = pins.options();
        other.entries.insert(names::FLOWS, 1000);
        let refused = Dataplane::load(&other).map(drop);
        assert!(matches!(refused, Err(BpfError::Pinned { map: names::FLOWS, .. })), "{refused:?}");

        for hook in [Hook::PodOut, Hook::PodIn] {
            second.detach(IF_1, hook, AttachMode::of_kernel()).expect("detach");
            second.detach(IF_1, hook, AttachMode::of_kernel()).expect("twice is once");
        }
        // The kernel takes a link whose last pin went off a moment later.
        let gone = (0..100).any(|_| {
            std::thread::sleep(Duration::from_millis(20));
            on(IF_1).is_empty()
        });
        assert!(gone, "{:?}", on(IF_1));
    });
}

/// A flood of packets that no policy allows, while the programs are replaced again and again.
#[test]
#[ignore = "needs root and the BPF object: cargo xtask test --tier 2 --filter replaced_under_flood"]
fn replaced_under_flood_without_a_leak() {
    on_a_node(|net| {
        let pins = Pins::new();
        let mut dataplane = Dataplane::load(&pins.options()).expect("load");
        write_pods(&dataplane);
        isolate(&dataplane, 2, true, false);
        let mut config = dataplane.tables().config().expect("config");
        config.flags = kube_router_common::config::Config::SILENT;
        dataplane.tables().set_config(&config).expect("config");
        attach_pods(&mut dataplane);
        let inbox = net.pod_2.run(|| UdpSocket::bind("10.1.0.2:4242").expect("bind"));
        inbox.set_nonblocking(true).expect("nonblocking");
        let stop = Arc::new(AtomicBool::new(false));
        let flood = net.pod_1.run({
            let stop = stop.clone();
            move || {
                let socket = UdpSocket::bind("10.1.0.1:0").expect("bind");
                thread::spawn(move || {
                    let mut sent = 0_u64;
                    while !stop.load(Ordering::Relaxed) {
                        sent += u64::from(socket.send_to(b"flood", "10.1.0.2:4242").is_ok());
                    }
                    sent
                })
            }
        });
        let replacements = fuzz::number("KUBE_ROUTER_REPLACEMENTS", 20);
        for _ in 0..replacements {
            // As a new agent does.
            dataplane = Dataplane::load(&pins.options()).expect("load");
            attach_pods(&mut dataplane);
        }
        stop.store(true, Ordering::Relaxed);
        let sent = flood.join().expect("flood");
        thread::sleep(Duration::from_millis(200));
        let leaked = std::iter::from_fn(|| inbox.recv(&mut [0; 16]).ok()).count();
        let refused = refused_packets(&dataplane, 2, Direction::Ingress);
        println!("{sent} sent, {refused} refused, {leaked} leaked, {replacements} replacements");
        assert_eq!(leaked, 0);
        assert!(sent > 1_000 && refused + 10 >= sent, "{sent} sent, {refused} refused");
    });
}

#[test]
#[ignore = "needs root and the BPF object: cargo xtask test --tier 2 --filter tables_hold"]
fn tables_hold_what_is_written() {
    let _alone = alone();
    let dataplane = Dataplane::load(&Options::default()).expect("load");
    let peers = &dataplane.tables().peers;
    let rows: Vec<(Address, Peer)> = (0..20_000_u32)
        .map(|n| {
            let [a, b, c, d] = n.to_be_bytes();
            (Address::from_v4([a, b, c, d]), Peer { class: n, flags: 0 })
        })
        .collect();
    peers.put_all(&rows).expect("write");
    let mut read = peers.read_all().expect("read");
    read.sort_by_key(|(address, _)| *address);
    assert_eq!(read, rows);
    assert_eq!(peers.get(&rows[77].0).expect("read"), Some(rows[77].1));
    // Some that are not there, among them the first and the last.
    let mut keys: Vec<Address> = rows.iter().map(|(address, _)| *address).collect();
    keys.truncate(15_000);
    keys.insert(0, Address([1; 16]));
    keys.insert(7_000, Address([2; 16]));
    keys.push(Address([3; 16]));
    assert_eq!(peers.delete_all(&keys).expect("delete"), 15_000);
    assert_eq!(peers.read_all().expect("read").len(), 5_000);
    assert!(!peers.delete(&keys[1]).expect("delete"));

    let flows = &dataplane.tables().flows;
    let now_s = now_s();
    let (key, flow) = crate::rig::filler();
    let closed = kube_router_common::flow::Tcp::CLOSE;
    let over = kube_router_common::flow::Flow { last_seen_s: now_s.saturating_sub(11), state: closed, ..flow };
    flows.put(&key, &flow).expect("write");
    for port in 1..=500 {
        flows.put(&kube_router_common::flow::FlowKey { local_port: port, ..key }, &over).expect("write");
    }
    let swept = dataplane.tables().sweep_flows(dataplane.balance(), 0, now_s).expect("sweep");
    // Its pod has no interface here.
    assert_eq!((swept.live, swept.over, swept.orphans), (0, 500, 1));
    assert_eq!(flows.read_all().expect("read").len(), 0);

    let small = Options { pins: None, entries: [(names::PEERS, 10)].into() };
    let small = Dataplane::load(&small).expect("load");
    let full = small.tables().peers.put_all(&rows[..20]);
    assert!(full.as_ref().is_err_and(BpfError::is_full), "{full:?}");
    assert_eq!(small.tables().peers.read_all().expect("read").len(), 10);
}
