//! What we order is what ipvsadm shows, and what it shows is what we observe.

use std::{
    collections::BTreeMap,
    net::{IpAddr, SocketAddr},
};

use kube_router::{
    apply::{IpvsPlane, ipvs::Ipvs},
    desired::{Scheduler, Virtual, VirtualKey},
    objects::Protocol,
    plan::{IpvsOp, ObservedIpvs},
};

use crate::support::*;

#[test]
#[ignore = "needs root and IPVS: cargo xtask test --tier 4"]
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
#[ignore = "needs root and IPVS: cargo xtask test --tier 4"]
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
#[ignore = "needs root and IPVS: cargo xtask test --tier 4"]
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
#[ignore = "needs root and IPVS: cargo xtask test --tier 4"]
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
#[ignore = "needs root and IPVS: cargo xtask test --tier 4"]
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
