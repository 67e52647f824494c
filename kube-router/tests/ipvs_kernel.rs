//! The IPVS plane against a real kernel, with `ipvsadm` as the oracle.
//!
//! Needs root, the module ip_vs, and the commands modprobe, ip and ipvsadm. Each test lives in a network namespace of
//! its own; they take turns, since one of them unloads the module.

use std::{
    collections::{BTreeMap, BTreeSet},
    io::{Read, Write},
    net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket},
    process::{Command, Stdio},
    sync::Mutex,
    thread,
    time::{Duration, Instant},
};

use kube_router::{
    apply::{Connections, IpvsPlane, IpvsTimeouts, OpFailure, PlaneError, ipvs::Ipvs},
    desired::{Scheduler, Virtual, VirtualKey},
    objects::Protocol,
    plan::{IpvsOp, ObservedIpvs},
};

static TURN: Mutex<()> = Mutex::new(());

/// Runs `test` on a thread of its own in a fresh network namespace with ip_vs loaded and `lo` up.
fn in_namespace(test: impl FnOnce(Ipvs) + Send + 'static) {
    let _turn = TURN.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
    run("modprobe", &["ip_vs"]);
    let body = move || {
        nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNET).expect("unshare");
        run("ip", &["link", "set", "lo", "up"]);
        test(Ipvs::open().unwrap());
    };
    if let Err(panic) = thread::spawn(body).join() {
        std::panic::resume_unwind(panic);
    }
}

fn run(program: &str, arguments: &[&str]) -> String {
    let output = Command::new(program).args(arguments).output().expect(program);
    assert!(output.status.success(), "{program} {arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

/// `ipvsadm -Sn`, as a set of lines: the kernel lists in the order of its hash table.
fn saved() -> BTreeSet<String> {
    run("ipvsadm", &["-Sn"]).lines().map(|line| line.trim().to_owned()).collect()
}

fn restore(text: &str) {
    let mut child = Command::new("ipvsadm").arg("-R").stdin(Stdio::piped()).spawn().unwrap();
    child.stdin.take().unwrap().write_all(text.as_bytes()).unwrap();
    assert!(child.wait().unwrap().success());
}

fn lines(text: &[&str]) -> BTreeSet<String> {
    text.iter().map(|line| (*line).to_owned()).collect()
}

fn key(protocol: Protocol, text: &str) -> VirtualKey {
    let socket: SocketAddr = text.parse().unwrap();
    VirtualKey { address: socket.ip(), protocol, port: socket.port() }
}

fn server(scheduler: Scheduler, sched_flags: u32, persistence_s: Option<u32>) -> Virtual {
    Virtual { scheduler, sched_flags, persistence_s, ..Virtual::default() }
}

fn plain() -> Virtual {
    server(Scheduler::Rr, 0, None)
}

fn add(key: VirtualKey, server: Virtual) -> IpvsOp {
    IpvsOp::AddServer { key, server }
}

fn add_destination(key: VirtualKey, destination: &str, weight: u32) -> IpvsOp {
    IpvsOp::AddDestination { key, destination: destination.parse().unwrap(), weight }
}

/// Carries out orders that must all succeed.
fn apply(ipvs: &mut Ipvs, ops: &[IpvsOp]) {
    assert_eq!(ipvs.apply(ops).unwrap(), []);
}

/// What the plane must observe after these additions.
fn expected(ops: &[IpvsOp]) -> ObservedIpvs {
    let mut observed = ObservedIpvs::default();
    for op in ops {
        match op {
            IpvsOp::AddServer { key, server } => drop(observed.servers.insert(*key, server.clone())),
            IpvsOp::AddDestination { key, destination, weight } => {
                observed.servers.get_mut(key).unwrap().destinations.insert(*destination, *weight);
            }
            other => panic!("not an addition: {other:?}"),
        }
    }
    observed
}

fn errnos(failures: &[OpFailure]) -> Vec<(usize, i32)> {
    failures.iter().map(|failure| (failure.index, failure.refusal.errno)).collect()
}

#[test]
#[ignore = "needs root and IPVS: run in a VM"]
fn every_kind_of_server_looks_to_ipvsadm_as_ordered() {
    in_namespace(|mut ipvs| {
        let (tcp, udp, sctp) = (Protocol::Tcp, Protocol::Udp, Protocol::Sctp);
        let ops = [
            add(key(tcp, "10.96.0.1:443"), plain()),
            add_destination(key(tcp, "10.96.0.1:443"), "10.2.0.1:6443", 1),
            add_destination(key(tcp, "10.96.0.1:443"), "10.2.0.2:6443", 0),
            add(key(udp, "10.96.0.10:53"), server(Scheduler::Lc, 0, Some(10800))),
            add_destination(key(udp, "10.96.0.10:53"), "10.2.0.3:5353", 65535),
            add(key(sctp, "10.96.0.11:9999"), server(Scheduler::Dh, 0, None)),
            add_destination(key(sctp, "10.96.0.11:9999"), "10.2.0.4:9999", 1),
            add(key(tcp, "10.96.0.12:80"), server(Scheduler::Sh, 0x8, None)),
            add(key(tcp, "10.96.0.13:80"), server(Scheduler::Mh, 0x18, None)),
            add_destination(key(tcp, "10.96.0.13:80"), "10.2.0.5:80", 1),
            add_destination(key(tcp, "10.96.0.13:80"), "10.2.0.6:80", 1),
            add(key(tcp, "10.96.0.14:80"), server(Scheduler::Mh, 0x8, Some(1))),
            add(key(tcp, "[fd00::1]:443"), server(Scheduler::Rr, 0, Some(300))),
            add_destination(key(tcp, "[fd00::1]:443"), "[fd00:2::1]:6443", 1),
            add(key(udp, "[fd00::a]:53"), server(Scheduler::Lc, 0, None)),
            add_destination(key(udp, "[fd00::a]:53"), "[fd00:2::2]:53", 1),
            add(key(sctp, "[fd00::b]:9999"), server(Scheduler::Mh, 0x10, None)),
            add_destination(key(sctp, "[fd00::b]:9999"), "[fd00:2::3]:9999", 1),
        ];
        apply(&mut ipvs, &ops);
        let wanted = lines(&[
            "-A -t 10.96.0.1:443 -s rr",
            "-a -t 10.96.0.1:443 -r 10.2.0.1:6443 -m -w 1",
            "-a -t 10.96.0.1:443 -r 10.2.0.2:6443 -m -w 0",
            "-A -u 10.96.0.10:53 -s lc -p 10800",
            "-a -u 10.96.0.10:53 -r 10.2.0.3:5353 -m -w 65535",
            "-A --sctp-service 10.96.0.11:9999 -s dh",
            "-a --sctp-service 10.96.0.11:9999 -r 10.2.0.4:9999 -m -w 1",
            "-A -t 10.96.0.12:80 -s sh -b sh-fallback",
            "-A -t 10.96.0.13:80 -s mh -b mh-fallback,mh-port",
            "-a -t 10.96.0.13:80 -r 10.2.0.5:80 -m -w 1",
            "-a -t 10.96.0.13:80 -r 10.2.0.6:80 -m -w 1",
            "-A -t 10.96.0.14:80 -s mh -p 1 -b mh-fallback",
            "-A -t [fd00::1]:443 -s rr -p 300",
            "-a -t [fd00::1]:443 -r [fd00:2::1]:6443 -m -w 1",
            "-A -u [fd00::a]:53 -s lc",
            "-a -u [fd00::a]:53 -r [fd00:2::2]:53 -m -w 1",
            "-A --sctp-service [fd00::b]:9999 -s mh -b mh-port",
            "-a --sctp-service [fd00::b]:9999 -r [fd00:2::3]:9999 -m -w 1",
        ]);
        assert_eq!(saved(), wanted);
        assert_eq!(ipvs.observe().unwrap(), expected(&ops));

        // The same table made by ipvsadm from text reads the same.
        let text = run("ipvsadm", &["-Sn"]);
        run("ipvsadm", &["-C"]);
        assert_eq!(ipvs.observe().unwrap(), ObservedIpvs::default());
        restore(&text);
        assert_eq!(ipvs.observe().unwrap(), expected(&ops));
    });
}

#[test]
#[ignore = "needs root and IPVS: run in a VM"]
fn servers_change_in_place() {
    in_namespace(|mut ipvs| {
        for address in ["10.96.0.1:80", "[fd00::1]:80"] {
            let key = key(Protocol::Tcp, address);
            let destination = if key.address.is_ipv6() { "[fd00:2::1]:80" } else { "10.2.0.1:80" };
            let line = format!("-a -t {address} -r {destination} -m -w 1");
            apply(&mut ipvs, &[add(key, plain()), add_destination(key, destination, 1)]);
            let steps = [
                (server(Scheduler::Lc, 0, None), "-s lc"),
                (server(Scheduler::Mh, 0x18, None), "-s mh -b mh-fallback,mh-port"),
                // ipvsadm does not print the third flag, but observe() below has to tell it.
                (server(Scheduler::Mh, 0x38, None), "-s mh -b mh-fallback,mh-port"),
                (server(Scheduler::Mh, 0x8, Some(60)), "-s mh -p 60 -b mh-fallback"),
                (server(Scheduler::Sh, 0, Some(10800)), "-s sh -p 10800"),
                (server(Scheduler::Sh, 0, Some(90)), "-s sh -p 90"),
                (server(Scheduler::Dh, 0, None), "-s dh"),
                (server(Scheduler::Rr, 0, None), "-s rr"),
            ];
            for (server, options) in steps {
                apply(&mut ipvs, &[IpvsOp::EditServer { key, server: server.clone() }]);
                assert_eq!(saved(), lines(&[&format!("-A -t {address} {options}"), &line]));
                let observed = ipvs.observe().unwrap().servers.remove(&key).unwrap();
                assert_eq!(observed.destinations.len(), 1);
                assert_eq!(Virtual { destinations: BTreeMap::new(), ..observed }, server);
            }
            apply(&mut ipvs, &[IpvsOp::DeleteServer { key }]);
            assert_eq!(saved(), lines(&[]));
        }
    });
}

#[test]
#[ignore = "needs root and IPVS: run in a VM"]
fn destinations_come_change_and_go() {
    in_namespace(|mut ipvs| {
        for (key, destination) in [
            (key(Protocol::Udp, "10.96.0.1:53"), "10.2.0.1:53"),
            (key(Protocol::Sctp, "[fd00::1]:80"), "[fd00:2::1]:80"),
            // An endpoint in the node's own network stays NAT, too.
            (key(Protocol::Tcp, "10.96.0.1:443"), "127.0.0.1:6443"),
        ] {
            apply(&mut ipvs, &[add(key, plain()), add_destination(key, destination, 1)]);
            let socket: SocketAddr = destination.parse().unwrap();
            let weight = |ipvs: &mut Ipvs| ipvs.observe().unwrap().servers[&key].destinations.get(&socket).copied();
            assert_eq!(weight(&mut ipvs), Some(1));
            for wanted in [0, 7, 1] {
                apply(&mut ipvs, &[IpvsOp::EditDestination { key, destination: socket, weight: wanted }]);
                assert_eq!(weight(&mut ipvs), Some(wanted));
                assert!(saved().iter().any(|line| line.ends_with(&format!("-r {destination} -m -w {wanted}"))));
            }
            apply(&mut ipvs, &[IpvsOp::DeleteDestination { key, destination: socket }]);
            assert_eq!(weight(&mut ipvs), None);
            // It comes back out of the kernel's trash as if it were new.
            apply(&mut ipvs, &[add_destination(key, destination, 3)]);
            assert_eq!(weight(&mut ipvs), Some(3));
        }
    });
}

#[test]
#[ignore = "needs root and IPVS: run in a VM"]
fn what_others_made_is_seen_and_can_be_mended() {
    in_namespace(|mut ipvs| {
        // The Go kube-router's IPv4 persistence mask, one-packet scheduling, an unknown scheduler, a mark for each family,
        // a tunnel, a connection limit.
        restore(
            "-A -t 10.96.0.1:80 -s rr -p 10800 -M 32.0.0.0\n-A -u 10.96.0.2:53 -s rr -o\n-A -t 10.96.0.3:80 -s wlc\n\
             -A -f 16051 -s rr\n-A -f 7071 -6 -s rr\n-A -t 10.96.0.4:80 -s rr -p 60\n\
             -a -t 10.96.0.4:80 -r 10.2.0.1:80 -i -w 1\n-a -t 10.96.0.4:80 -r 10.2.0.2:80 -m -w 1 -x 9 -y 5\n",
        );
        let observed = ipvs.observe().unwrap();
        assert_eq!(observed.marks, BTreeSet::from([(16051, false), (7071, true)]));
        let odd = ["10.96.0.1:80", "10.96.0.3:80"].map(|text| key(Protocol::Tcp, text));
        let odd = [odd[0], odd[1], key(Protocol::Udp, "10.96.0.2:53")];
        for key in odd {
            assert_eq!(observed.servers[&key].scheduler, Scheduler::Other, "{key}");
        }
        let last = key(Protocol::Tcp, "10.96.0.4:80");
        assert_eq!(observed.servers[&last].persistence_s, Some(60));
        assert!(observed.servers[&last].destinations.values().eq([&u32::MAX; 2]));

        let mut ops: Vec<_> =
            odd.map(|key| IpvsOp::EditServer { key, server: server(Scheduler::Rr, 0, Some(9)) }).into();
        for destination in ["10.2.0.1:80", "10.2.0.2:80"] {
            ops.push(IpvsOp::EditDestination { key: last, destination: destination.parse().unwrap(), weight: 2 });
        }
        ops.push(IpvsOp::DeleteMarkServer { mark: 16051, ipv6: false });
        ops.push(IpvsOp::DeleteMarkServer { mark: 7071, ipv6: true });
        apply(&mut ipvs, &ops);
        let wanted = lines(&[
            "-A -t 10.96.0.1:80 -s rr -p 9",
            "-A -u 10.96.0.2:53 -s rr -p 9",
            "-A -t 10.96.0.3:80 -s rr -p 9",
            "-A -t 10.96.0.4:80 -s rr -p 60",
            "-a -t 10.96.0.4:80 -r 10.2.0.1:80 -m -w 2",
            "-a -t 10.96.0.4:80 -r 10.2.0.2:80 -m -w 2",
        ]);
        assert_eq!(saved(), wanted);
    });
}

#[test]
#[ignore = "needs root and IPVS: run in a VM"]
fn refusals_name_their_order_and_spare_the_others() {
    in_namespace(|mut ipvs| {
        let here = key(Protocol::Tcp, "10.96.0.1:80");
        let gone = key(Protocol::Tcp, "10.96.0.2:80");
        let destination = "10.2.0.9:80".parse().unwrap();
        let ops = [
            add(here, plain()),
            add(here, plain()),
            add_destination(here, "10.2.0.1:80", 1),
            add_destination(here, "10.2.0.1:80", 1),
            IpvsOp::DeleteDestination { key: here, destination },
            IpvsOp::EditDestination { key: here, destination, weight: 1 },
            add_destination(gone, "10.2.0.1:80", 1),
            IpvsOp::DeleteServer { key: gone },
            IpvsOp::DeleteMarkServer { mark: 5, ipv6: false },
            add(gone, server(Scheduler::Other, 0, None)),
            add_destination(here, "10.2.0.2:80", u32::MAX),
            add_destination(here, "255.255.255.255:80", 1),
            add_destination(here, "10.2.0.2:80", 1),
        ];
        let failures = ipvs.apply(&ops).unwrap();
        use libc::{EEXIST, EINVAL, ENOENT, ERANGE, ESRCH};
        let wanted = [
            (1, EEXIST),
            (3, EEXIST),
            (4, ENOENT),
            (5, ENOENT),
            (6, ESRCH),
            (7, ESRCH),
            (8, ESRCH),
            (9, ENOENT),
            (10, ERANGE),
            (11, EINVAL),
        ];
        assert_eq!(errnos(&failures), wanted);
        let carried_out = [ops[0].clone(), ops[2].clone(), ops[12].clone()];
        assert_eq!(ipvs.observe().unwrap(), expected(&carried_out));
        assert_eq!(ipvs.connections(&gone).unwrap(), BTreeMap::new());
    });
}

#[test]
#[ignore = "needs root and IPVS: run in a VM"]
fn two_thousand_servers_of_ten_destinations() {
    in_namespace(|mut ipvs| {
        let mut ops = Vec::new();
        for n in 0..2000_u16 {
            let [high, low] = n.to_be_bytes();
            let key = VirtualKey { address: [10, 96, high, low].into(), protocol: Protocol::Tcp, port: 80 };
            ops.push(add(key, plain()));
            for pod in 1..=10 {
                let destination = SocketAddr::new([10, high + 100, low, pod].into(), 8080);
                ops.push(IpvsOp::AddDestination { key, destination, weight: 1 });
            }
        }
        apply(&mut ipvs, &ops);
        assert_eq!(saved().len(), 22_000);
        let observed = ipvs.observe().unwrap();
        assert_eq!(observed, expected(&ops));

        // Everything refused: all answers must fit the receive buffer.
        let failures = ipvs.apply(&ops).unwrap();
        let wanted: Vec<_> = (0..ops.len()).map(|index| (index, libc::EEXIST)).collect();
        assert_eq!(errnos(&failures), wanted);
        assert_eq!(ipvs.server_stats().unwrap().len(), 2000);

        let delete: Vec<_> = observed.servers.keys().map(|key| IpvsOp::DeleteServer { key: *key }).collect();
        apply(&mut ipvs, &delete);
        assert_eq!(ipvs.observe().unwrap(), ObservedIpvs::default());
    });
}

#[test]
#[ignore = "needs root and IPVS: run in a VM"]
fn a_destination_list_of_several_messages_is_read_whole() {
    in_namespace(|mut ipvs| {
        let key = key(Protocol::Tcp, "[fd00::1]:80");
        let mut ops = vec![add(key, plain())];
        for n in 1..=1000_u32 {
            let ip: IpAddr = std::net::Ipv6Addr::from(0xfd00_0002_u128 << 96 | u128::from(n)).into();
            ops.push(IpvsOp::AddDestination { key, destination: (ip, 8080).into(), weight: n });
        }
        apply(&mut ipvs, &ops);
        assert_eq!(ipvs.observe().unwrap(), expected(&ops));
    });
}

#[test]
#[ignore = "needs root and IPVS: run in a VM"]
fn a_connection_outlives_every_edit_and_is_counted() {
    in_namespace(|mut ipvs| {
        for address in ["10.96.0.1/32", "10.2.0.1/32"] {
            run("ip", &["address", "add", address, "dev", "lo"]);
        }
        let key = key(Protocol::Tcp, "10.96.0.1:80");
        let destination: SocketAddr = "10.2.0.1:8080".parse().unwrap();
        apply(&mut ipvs, &[add(key, plain()), add_destination(key, "10.2.0.1:8080", 1)]);

        let listener = TcpListener::bind(destination).unwrap();
        let mut client = TcpStream::connect("10.96.0.1:80").unwrap();
        let (mut pod, _) = listener.accept().unwrap();
        for stream in [&client, &pod] {
            stream.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
        }
        let mut echo = |what: &str| {
            for (from, to) in [(&mut client, &mut pod)] {
                let mut byte = [0];
                from.write_all(b"?").unwrap();
                to.read_exact(&mut byte).unwrap_or_else(|error| panic!("{what}: {error}"));
                to.write_all(b"!").unwrap();
                from.read_exact(&mut byte).unwrap_or_else(|error| panic!("{what}: {error}"));
            }
        };
        echo("new");
        let one = BTreeMap::from([(destination, Connections { active: 1, inactive: 0 })]);
        assert_eq!(ipvs.connections(&key).unwrap(), one);

        for server in [
            server(Scheduler::Mh, 0x18, None),
            server(Scheduler::Lc, 0, Some(600)),
            server(Scheduler::Sh, 0, Some(30)),
            server(Scheduler::Rr, 0, None),
        ] {
            apply(&mut ipvs, &[IpvsOp::EditServer { key, server: server.clone() }]);
            echo(&format!("{server:?}"));
        }
        // Draining: no new connections, the old one goes on.
        apply(&mut ipvs, &[IpvsOp::EditDestination { key, destination, weight: 0 }]);
        echo("weight 0");
        assert!(TcpStream::connect_timeout(&"10.96.0.1:80".parse().unwrap(), Duration::from_secs(5)).is_err());
        assert_eq!(ipvs.connections(&key).unwrap(), one);

        // The counters of 6.1 are brought up to date every 2 s.
        let deadline = Instant::now() + Duration::from_secs(20);
        let stats = loop {
            let stats = ipvs.server_stats().unwrap()[&key];
            if stats.packets_out > 6 || Instant::now() > deadline {
                break stats;
            }
            thread::sleep(Duration::from_millis(200));
        };
        assert_eq!(stats.connections, 1);
        // One SYN or SYN-ACK and six bytes each way, besides bare ACKs.
        assert!(stats.packets_in > 6 && stats.packets_out > 6, "{stats:?}");
        assert!(stats.bytes_in >= stats.packets_in * 52 && stats.bytes_out >= stats.packets_out * 52, "{stats:?}");
        // Nothing moves any more, so what ipvsadm reads now is the same.
        thread::sleep(Duration::from_millis(2500));
        let stats = ipvs.server_stats().unwrap()[&key];
        let table = run("ipvsadm", &["-Ln", "--stats", "--exact"]);
        let row: Vec<u64> = table
            .lines()
            .find_map(|line| line.strip_prefix("TCP  10.96.0.1:80"))
            .unwrap()
            .split_whitespace()
            .map(|number| number.parse().unwrap())
            .collect();
        let ours = [stats.connections, stats.packets_in, stats.packets_out, stats.bytes_in, stats.bytes_out];
        assert_eq!(row, ours, "{table}");
    });
}

#[test]
#[ignore = "needs root and IPVS: run in a VM"]
fn rates_rise_with_traffic() {
    in_namespace(|mut ipvs| {
        for address in ["10.96.0.1/32", "10.2.0.1/32"] {
            run("ip", &["address", "add", address, "dev", "lo"]);
        }
        let key = key(Protocol::Udp, "10.96.0.1:53");
        apply(&mut ipvs, &[add(key, plain()), add_destination(key, "10.2.0.1:5353", 1)]);
        let pod = UdpSocket::bind("10.2.0.1:5353").unwrap();
        let client = UdpSocket::bind("127.0.0.1:0").unwrap();
        let deadline = Instant::now() + Duration::from_secs(30);
        let mut seen = false;
        while !seen && Instant::now() < deadline {
            client.send_to(&[0; 100], "10.96.0.1:53").unwrap();
            thread::sleep(Duration::from_millis(5));
            let stats = ipvs.server_stats().unwrap()[&key];
            seen = stats.packets_in_per_s > 0 && stats.bytes_in_per_s >= 128;
            assert_eq!((stats.packets_out, stats.packets_out_per_s), (0, 0), "the pod never answers");
        }
        assert!(seen, "no rate within 30 s: {:?}", ipvs.server_stats());
        drop(pod);
    });
}

#[test]
#[ignore = "needs root and IPVS: run in a VM"]
fn timeouts_of_zero_leave_the_kernels() {
    in_namespace(|mut ipvs| {
        let shown = || {
            let text = run("ipvsadm", &["-L", "--timeout"]);
            let numbers: Vec<u32> = text.split_whitespace().filter_map(|word| word.parse().ok()).collect();
            numbers
        };
        assert_eq!(shown(), [900, 120, 300]);
        let seconds = Duration::from_secs;
        ipvs.set_timeouts(IpvsTimeouts { udp: seconds(17), ..IpvsTimeouts::default() }).unwrap();
        assert_eq!(shown(), [900, 120, 17]);
        ipvs.set_timeouts(IpvsTimeouts { tcp: seconds(71), tcp_fin: seconds(72), ..IpvsTimeouts::default() }).unwrap();
        assert_eq!(shown(), [71, 72, 17]);
        ipvs.set_timeouts(IpvsTimeouts::default()).unwrap();
        assert_eq!(shown(), [71, 72, 17]);
        let endless = IpvsTimeouts { tcp: Duration::MAX, ..IpvsTimeouts::default() };
        match ipvs.set_timeouts(endless) {
            Err(PlaneError::Netlink { source, .. }) => assert_eq!(source.errno(), Some(libc::EINVAL)),
            other => panic!("{other:?}"),
        }
        assert_eq!(shown(), [71, 72, 17]);
    });
}

/// The module goes and comes back under an open plane, with another family number.
#[test]
#[ignore = "needs root and IPVS: run in a VM"]
fn an_unloaded_module_is_told_and_a_loaded_one_found_again() {
    in_namespace(|mut ipvs| {
        let key = key(Protocol::Tcp, "10.96.0.1:80");
        let destination = "10.2.0.9:80".parse().unwrap();
        let ops =
            [add(key, plain()), IpvsOp::DeleteDestination { key, destination }, add_destination(key, "10.2.0.1:80", 1)];
        let good = [ops[0].clone(), ops[2].clone()];
        assert_eq!(ipvs.observe().unwrap(), ObservedIpvs::default());
        unload();
        let modprobe = Modprobe::disable();
        for outcome in [ipvs.observe().map(drop), ipvs.apply(&ops).map(drop), ipvs.set_timeouts(Default::default())] {
            assert!(matches!(outcome, Err(PlaneError::Unavailable { .. })), "{outcome:?}");
        }
        // Asking for the family loads the module where the kernel may.
        drop(modprobe);
        assert_eq!(errnos(&ipvs.apply(&ops).unwrap()), [(1, libc::ENOENT)]);
        assert_eq!(ipvs.observe().unwrap(), expected(&good));

        // Gone and back between two calls: nobody was told, every kind of call must notice by itself.
        let reload = |ipvs: &mut Ipvs| {
            let _ = ipvs.apply(&[IpvsOp::DeleteServer { key }]).unwrap();
            unload();
            run("modprobe", &["ip_vs"]);
        };
        reload(&mut ipvs);
        assert_eq!(errnos(&ipvs.apply(&ops).unwrap()), [(1, libc::ENOENT)]);
        assert_eq!(ipvs.observe().unwrap(), expected(&good));
        reload(&mut ipvs);
        assert_eq!(ipvs.server_stats().unwrap(), BTreeMap::new());
        reload(&mut ipvs);
        ipvs.set_timeouts(IpvsTimeouts { udp: Duration::from_secs(5), ..IpvsTimeouts::default() }).unwrap();
    });
}

/// Keeps the kernel from loading modules by itself while it lives.
struct Modprobe(String);

impl Modprobe {
    const PATH: &str = "/proc/sys/kernel/modprobe";

    fn disable() -> Self {
        let before = std::fs::read_to_string(Self::PATH).unwrap();
        std::fs::write(Self::PATH, "/bin/false").unwrap();
        Modprobe(before)
    }
}

impl Drop for Modprobe {
    fn drop(&mut self) {
        std::fs::write(Self::PATH, &self.0).unwrap();
    }
}

/// Namespaces of earlier tests give the module back a little later, hence the patience.
fn unload() {
    let deadline = Instant::now() + Duration::from_secs(30);
    loop {
        for module in ["ip_vs_rr", "ip_vs_lc", "ip_vs_dh", "ip_vs_sh", "ip_vs_mh", "ip_vs_wlc", "ip_vs"] {
            let _ = Command::new("rmmod").arg(module).stderr(Stdio::null()).status();
        }
        if !std::path::Path::new("/sys/module/ip_vs").exists() {
            return;
        }
        assert!(Instant::now() < deadline, "ip_vs stays in use:\n{}", run("lsmod", &[]));
        thread::sleep(Duration::from_millis(200));
    }
}
