//! Live traffic over `lo`: connections survive edits, and the counters tell the truth.

use std::{
    collections::BTreeMap,
    io::{Read, Write},
    net::{SocketAddr, TcpListener, TcpStream, UdpSocket},
    thread,
    time::{Duration, Instant},
};

use kube_router::{
    apply::{Connections, IpvsPlane},
    desired::Scheduler,
    objects::Protocol,
    plan::IpvsOp,
};

use crate::support::*;

#[test]
#[ignore = "needs root and IPVS: cargo xtask test --tier 4"]
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
            let mut byte = [0];
            client.write_all(b"?").unwrap();
            pod.read_exact(&mut byte).unwrap_or_else(|error| panic!("{what}: {error}"));
            pod.write_all(b"!").unwrap();
            client.read_exact(&mut byte).unwrap_or_else(|error| panic!("{what}: {error}"));
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
#[ignore = "needs root and IPVS: cargo xtask test --tier 4"]
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
