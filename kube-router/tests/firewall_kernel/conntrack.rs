//! Conntrack entries made with the conntrack command, flushed by us.

use std::time::Instant;

use kube_router::{
    apply::{ConntrackPlane, conntrack::KernelConntrack},
    desired::VirtualKey,
    objects::Protocol,
    plan::UdpFlow,
};

use crate::support::*;

fn flow(protocol: Protocol, server: &str, destination: &str) -> UdpFlow {
    let server: std::net::SocketAddr = server.parse().unwrap();
    let server = VirtualKey { address: server.ip(), protocol, port: server.port() };
    UdpFlow { server, destination: destination.parse().unwrap() }
}

/// Makes entries: (protocol, client, client port, server, server port, destination, destination port).
fn insert(entries: &[(&str, &str, u16, &str, u16, &str, u16)]) {
    let lines: Vec<_> = entries
        .iter()
        .map(|(protocol, client, client_port, server, port, destination, destination_port)| {
            let state = if *protocol == "tcp" { "--state ESTABLISHED" } else { "" };
            format!(
                "conntrack -I -p {protocol} -t 600 {state} -s {client} -d {server} --sport {client_port} \
                 --dport {port} --reply-src {destination} --reply-dst {client} --reply-port-src {destination_port} \
                 --reply-port-dst {client_port}"
            )
        })
        .collect();
    sh(&format!("({}) 2>&1", lines.join(" && ")));
}

/// Entries as `server:port destination:port`, sorted.
fn list() -> Vec<String> {
    let listed = sh("(conntrack -L -f ipv4; conntrack -L -f ipv6) 2>/dev/null");
    let mut all: Vec<_> = listed
        .lines()
        .map(|line| {
            let values = |key: &str| -> Vec<String> {
                line.split(' ').filter_map(|word| word.strip_prefix(key)).map(str::to_owned).collect()
            };
            let (dst, dport, src, sport) = (values("dst="), values("dport="), values("src="), values("sport="));
            format!("{} {}:{} {}:{}", line.split(' ').next().unwrap(), dst[0], dport[0], src[1], sport[1])
        })
        .collect();
    all.sort();
    all
}

#[test]
#[ignore = "needs root: cargo test -p kube-router --test firewall_kernel -- --ignored"]
fn only_flows_of_the_gone_destination_are_flushed() {
    in_namespace(|| {
        insert(&[
            ("udp", "10.0.0.1", 4000, "10.96.0.10", 53, "10.244.1.2", 5353),
            ("udp", "10.0.0.2", 4000, "10.96.0.10", 53, "10.244.1.2", 5353),
            ("udp", "10.0.0.3", 4000, "10.96.0.10", 53, "10.244.1.3", 5353),
            ("udp", "10.0.0.4", 4000, "10.96.0.10", 54, "10.244.1.2", 5353),
            ("udp", "10.0.0.5", 4000, "10.96.0.11", 53, "10.244.1.2", 5353),
            ("udp", "10.0.0.6", 4000, "10.96.0.10", 53, "10.244.1.2", 5354),
            ("tcp", "10.0.0.7", 4000, "10.96.0.10", 53, "10.244.1.2", 5353),
            ("udp", "fd00::1", 4000, "fd00:96::10", 53, "fd00:1::2", 5353),
            ("udp", "fd00::3", 4000, "fd00:96::10", 53, "fd00:1::3", 5353),
        ]);
        assert_eq!(list().len(), 9);
        let mut plane = KernelConntrack::open().unwrap();
        let flows = [
            flow(Protocol::Udp, "10.96.0.10:53", "10.244.1.2:5353"),
            flow(Protocol::Udp, "[fd00:96::10]:53", "[fd00:1::2]:5353"),
            flow(Protocol::Tcp, "10.96.0.10:53", "10.244.1.2:5353"),
        ];
        assert_eq!(plane.flush_udp(&flows).unwrap(), 3);
        let left = [
            "tcp 10.96.0.10:53 10.244.1.2:5353",
            "udp 10.96.0.10:53 10.244.1.2:5354",
            "udp 10.96.0.10:53 10.244.1.3:5353",
            "udp 10.96.0.10:54 10.244.1.2:5353",
            "udp 10.96.0.11:53 10.244.1.2:5353",
            "udp fd00:96::10:53 fd00:1::3:5353",
        ];
        assert_eq!(list(), left);
        assert_eq!(plane.flush_udp(&flows).unwrap(), 0);
        assert_eq!(plane.flush_udp(&[]).unwrap(), 0);
    });
}

#[test]
#[ignore = "needs root: cargo test -p kube-router --test firewall_kernel -- --ignored"]
fn many_servers_at_once_take_the_unfiltered_way_to_the_same_result() {
    in_namespace(|| {
        let addresses: Vec<_> = (0..12).map(|n| format!("10.96.1.{n}")).collect();
        let entries: Vec<_> = addresses
            .iter()
            .zip(0..)
            .flat_map(|(server, n)| {
                [
                    ("udp", "10.0.0.1", 4000 + n, server.as_str(), 53, "10.244.1.2", 5353),
                    ("udp", "10.0.0.2", 4000 + n, server.as_str(), 53, "10.244.1.3", 5353),
                ]
            })
            .collect();
        insert(&entries);
        let flows: Vec<_> = addresses[..10]
            .iter()
            .map(|server| flow(Protocol::Udp, &format!("{server}:53"), "10.244.1.2:5353"))
            .collect();
        let mut plane = KernelConntrack::open().unwrap();
        let start = Instant::now();
        assert_eq!(plane.flush_udp(&flows).unwrap(), 10);
        println!("ten of 24 entries: {:?}", start.elapsed());
        let left = list();
        assert_eq!(left.len(), 14);
        assert_eq!(left.iter().filter(|line| line.ends_with("10.244.1.2:5353")).count(), 2);
    });
}
