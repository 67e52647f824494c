//! Live flows that the policies come to forbid: they end, whoever speaks next; or they live on, where that is asked for.

use std::{
    io::{Read, Write},
    net::{SocketAddr, TcpListener, TcpStream, UdpSocket},
    time::Duration,
};

use kube_router::apply::bpf::{Dataplane, Options};
use kube_router_common::{
    config::Config,
    policy::{ANY, Peer, PolicyKey, PolicyRow},
};

use crate::{
    live::on_a_node,
    net::{CLASS_1, CLASS_2, Net, Pod, address, allow, attach_pods, isolate, next_generation, write_pods},
};

/// The class of nobody who is allowed anything.
const FORBIDDEN: u32 = 99;

/// Gives the addresses of a pod a class, as when its labels change.
fn reclass(dataplane: &Dataplane, pod: u32, class: u32) {
    for text in [format!("10.1.0.{pod}"), format!("fd00:1::{pod}")] {
        dataplane.tables().peers.put(&address(&text), &Peer { class, flags: 0 }).expect("class");
    }
    next_generation(dataplane);
}

/// An end of a flow that says words and hears them.
trait End {
    fn say(&mut self);
    fn hears(&mut self) -> bool;
}

impl End for TcpStream {
    fn say(&mut self) {
        self.write_all(b"!").expect("into the socket's buffer");
    }

    fn hears(&mut self) -> bool {
        self.set_read_timeout(Some(Duration::from_secs(2))).expect("timeout");
        self.read_exact(&mut [0]).is_ok()
    }
}

/// Connected; a refusal of what it said is not of interest here.
impl End for UdpSocket {
    fn say(&mut self) {
        let _ = self.send(b"!").or_else(|_| self.send(b"!"));
    }

    fn hears(&mut self) -> bool {
        self.set_read_timeout(Some(Duration::from_secs(1))).expect("timeout");
        // An error that waits is told first.
        self.recv(&mut [0; 8]).or_else(|_| self.recv(&mut [0; 8])).is_ok()
    }
}

fn is_heard(from: &mut impl End, to: &mut impl End) -> bool {
    from.say();
    to.hears()
}

fn both_hear(one: &mut impl End, other: &mut impl End) -> bool {
    is_heard(one, other) && is_heard(other, one)
}

fn listeners(pod: &Pod, port: u16) -> [TcpListener; 2] {
    pod.run(move || ["0.0.0.0", "::"].map(|any| listener(any, port)))
}

/// The caller's end and the other.
fn connection(from: &Pod, to: &str, listener: &TcpListener) -> (TcpStream, TcpStream) {
    let caller = from.connect(to).0.expect("allowed");
    (caller, listener.accept().expect("accepts").0)
}

fn datagrams(pod: &Pod, local: &'static str, peer: &'static str) -> UdpSocket {
    pod.run(move || {
        let socket = UdpSocket::bind(local).expect("bind");
        socket.connect(peer).expect("connect");
        socket
    })
}

/// Ends of pod 1 and pod 2.
fn datagrams_of_both(net: &Net, v6: bool) -> (UdpSocket, UdpSocket) {
    let (one, two) = if v6 { ("[fd00:1::1]:4000", "[fd00:1::2]:7000") } else { ("10.1.0.1:4000", "10.1.0.2:7000") };
    (datagrams(&net.pod_1, one, two), datagrams(&net.pod_2, two, one))
}

fn started() -> Dataplane {
    let mut dataplane = Dataplane::load(&Options::default()).expect("load");
    write_pods(&dataplane);
    // Pod 1 may call pod 2, both say so.
    allow(&dataplane, 20, CLASS_1, 80);
    allow(&dataplane, 11, CLASS_2, 80);
    for (group, class) in [(20, CLASS_1), (11, CLASS_2)] {
        let row = PolicyRow { verdict: PolicyRow::ALLOW, rule: 2 };
        dataplane.tables().policy.put(&PolicyKey { group, class, ports: ANY }, &row).expect("row");
    }
    attach_pods(&mut dataplane);
    dataplane
}

/// Pod 1 calls pod 2, and one of the two is isolated, in the direction of the first word only: that connection ends when it is
/// forbidden, with an entry and without one, as it is older than the isolation. The server speaks first, and it listens. What
/// goes the other way, `ours`, goes on.
fn ends_whoever_speaks(isolated: u32, ours: &'static str) {
    on_a_node(move |net| {
        let dataplane = started();
        let (servers, others) = (listeners(&net.pod_2, 80), listeners(&net.pod_1, 81));
        let (peer, class) = if isolated == 2 { (1, CLASS_1) } else { (2, CLASS_2) };
        let shut = |is_it: bool| isolate(&dataplane, isolated, is_it && isolated == 2, is_it && isolated == 1);
        for (is_tracked, v6) in [(true, false), (true, true), (false, false), (false, true)] {
            let what = format!("tracked: {is_tracked}, IPv6: {v6}");
            let (to_2, to_1) = if v6 { ("[fd00:1::2]:80", "[fd00:1::1]:81") } else { ("10.1.0.2:80", "10.1.0.1:81") };
            reclass(&dataplane, peer, class);
            shut(is_tracked);
            let (mut caller, mut called) = connection(&net.pod_1, to_2, &servers[usize::from(v6)]);
            assert!(both_hear(&mut called, &mut caller), "{what}");
            let (mut one, mut other) = connection(&net.pod_2, to_1, &others[usize::from(v6)]);
            // Still allowed.
            shut(true);
            next_generation(&dataplane);
            assert!(both_hear(&mut called, &mut caller), "{what}: allowed");
            reclass(&dataplane, peer, FORBIDDEN);
            assert!(!is_heard(&mut called, &mut caller), "{what}: the server's word");
            assert!(!is_heard(&mut caller, &mut called), "{what}: the client's");
            assert!(!is_heard(&mut called, &mut caller), "{what}: the server's once more");
            assert!(both_hear(&mut one, &mut other), "{what}: {ours}");
        }
    });
}

#[test]
#[ignore = "needs root and the BPF object: cargo xtask test --tier 2 --filter by_its_servers_word"]
fn a_forbidden_connection_does_not_go_on_by_its_servers_word() {
    ends_whoever_speaks(2, "the pod's own");
}

#[test]
#[ignore = "needs root and the BPF object: cargo xtask test --tier 2 --filter may_not_call"]
fn whom_a_pod_may_not_call_any_more_does_not_keep_the_connection() {
    ends_whoever_speaks(1, "whom it serves");
}

#[test]
#[ignore = "needs root and the BPF object: cargo xtask test --tier 2 --filter forbidden_datagrams"]
fn forbidden_datagrams_stay_so_whoever_speaks_next() {
    on_a_node(|net| {
        let dataplane = started();
        let config = dataplane.tables().config().expect("config");
        dataplane.tables().set_config(&Config { flags: config.flags | Config::ALL_FLOWS, ..config }).expect("config");
        let both = [false, true];
        let ways = both.map(|free| both.map(|served| both.map(|v6| (free, served, v6)))).concat().concat();
        for (free, served, v6) in ways {
            let what = format!("free at first: {free}, pod 2 isolated: {served}, IPv6: {v6}");
            // Either the called one is isolated or the caller, each in the direction of the first word only.
            let shut = |is_it: bool| {
                isolate(&dataplane, 1, false, is_it && !served);
                isolate(&dataplane, 2, is_it && served, false);
            };
            shut(!free);
            let (pod, class) = if served { (1, CLASS_1) } else { (2, CLASS_2) };
            reclass(&dataplane, pod, class);
            let (mut caller, mut called) = datagrams_of_both(&net, v6);
            assert!(both_hear(&mut caller, &mut called), "{what}");
            shut(true);
            reclass(&dataplane, pod, FORBIDDEN);
            for round in 0..3 {
                assert!(!is_heard(&mut called, &mut caller), "{what}: the answerer's word, {round}");
                assert!(!is_heard(&mut caller, &mut called), "{what}: the caller's, {round}");
            }
            reclass(&dataplane, pod, class);
            assert!(both_hear(&mut caller, &mut called), "{what}: allowed again");
            let flows = dataplane.tables().flows.read_all().expect("flows");
            let keys: Vec<_> = flows.into_iter().map(|(key, _)| key).collect();
            dataplane.tables().flows.delete_all(&keys).expect("delete");
        }
    });
}

/// With `--netpol-keep-established`, and the pods were not isolated when the flows began.
#[test]
#[ignore = "needs root and the BPF object: cargo xtask test --tier 2 --filter of_free_pods_live_on"]
fn flows_of_free_pods_live_on_when_that_is_asked_for() {
    on_a_node(|net| {
        let dataplane = started();
        let config = dataplane.tables().config().expect("config");
        let flags = config.flags | Config::ALL_FLOWS | Config::KEEP_ESTABLISHED;
        dataplane.tables().set_config(&Config { flags, ..config }).expect("config");
        let servers = listeners(&net.pod_2, 80);
        for v6 in [false, true] {
            for pod in [1, 2] {
                isolate(&dataplane, pod, false, false);
            }
            let to = if v6 { "[fd00:1::2]:80" } else { "10.1.0.2:80" };
            let (mut caller, mut called) = connection(&net.pod_1, to, &servers[usize::from(v6)]);
            let (mut one, mut two) = datagrams_of_both(&net, v6);
            assert!(both_hear(&mut caller, &mut called) && both_hear(&mut one, &mut two));
            for pod in [1, 2] {
                isolate(&dataplane, pod, true, true);
                reclass(&dataplane, pod, FORBIDDEN);
            }
            assert!(both_hear(&mut called, &mut caller), "TCP, IPv6: {v6}");
            assert!(both_hear(&mut two, &mut one), "UDP, IPv6: {v6}");
            assert!(net.pod_1.connect(to).0.is_err(), "a new one, IPv6: {v6}");
        }
    });
}

/// For one family.
fn listener(any: &str, port: u16) -> TcpListener {
    let address: SocketAddr = SocketAddr::new(any.parse().expect("address"), port);
    let socket = socket2::Socket::new(socket2::Domain::for_address(address), socket2::Type::STREAM, None);
    let socket = socket.expect("socket");
    if address.is_ipv6() {
        socket.set_only_v6(true).expect("only IPv6");
    }
    socket.bind(&address.into()).expect("bind");
    socket.listen(8).expect("listen");
    socket.into()
}
