//! What packets experience in front of service addresses.

use std::{io::ErrorKind, time::Duration};

use kube_router::{
    apply::firewall::KernelFirewall,
    desired::{Ruleset, SetElement},
    objects::Protocol,
    plan::{Backend, FirewallOp},
};

use crate::support::*;

#[test]
#[ignore = "needs root: cargo test -p kube-router --test firewall_kernel -- --ignored"]
fn the_guard_lets_services_and_pings_in_and_refuses_the_rest_at_once() {
    in_namespace(|| {
        // This namespace is the node.
        let client = Namespace::new();
        sh(&format!("ip link add n0 type veth peer name c0; ip link set c0 netns {}", client.pid()));
        sh("ip addr add 10.9.0.1/24 dev n0; ip -6 addr add fd09::1/64 dev n0 nodad; ip link set n0 up
            ip addr add 10.96.0.10/32 dev lo; ip -6 addr add fd96::10/128 dev lo");
        client.sh("ip addr add 10.9.0.2/24 dev c0; ip -6 addr add fd09::2/64 dev c0 nodad; ip link set c0 up
            ip route add 10.96.0.10 via 10.9.0.1; ip -6 route add fd96::10 via fd09::1");
        // Link-local addresses on both sides are checked for a second before neighbours answer.
        for address in ["10.9.0.1", "fd09::1"] {
            client.sh(&format!("for i in 1 2 3 4 5; do ping -c1 -W1 {address} >/dev/null && break; done"));
        }
        serve(&[80, 81]);
        let (vips, nodes) = (["10.96.0.10", "fd96::10"], ["10.9.0.1", "fd09::1"]);
        let mut plane = KernelFirewall::open().unwrap();
        let mut elements: Vec<_> = vips.map(|vip| SetElement::ServiceIp(ip(vip))).into();
        elements.extend(vips.map(|vip| service(vip, Protocol::Tcp, 80)));
        elements.extend(nodes.map(|node| SetElement::LocalIp(ip(node))));
        // NodePort: the node's own addresses are service addresses too, and keep all their ports.
        elements.extend(nodes.map(|node| SetElement::ServiceIp(ip(node))));
        elements.extend(nodes.map(|node| service(node, Protocol::Tcp, 30080)));
        apply(&mut plane, &[vec![FirewallOp::SetRuleset(rich())], add(Backend::Nft, &elements)].concat());

        let connect =
            |address: &str, port| client.ask(address, port, Duration::from_secs(3)).map_err(|error| error.kind());
        for (address, from) in std::iter::zip(vips, ["10.9.0.2", "fd09::2"]) {
            assert_eq!(connect(address, 80), Ok(from.to_owned()), "a port in the set");
            for _ in 0..3 {
                assert_eq!(connect(address, 81), Err(ErrorKind::ConnectionRefused), "listening, but no service");
            }
            client.sh(&format!("ping -c1 -W2 {address}"));
            // What is no TCP is refused too, by ICMP.
            let probe = client.sh(&format!("echo x | socat -T2 -t2 - UDP:[{address}]:5301 2>&1; true")
                .replace("[10.96.0.10]", "10.96.0.10"));
            assert!(probe.contains("Connection refused"), "{probe}");
        }
        for (address, from) in std::iter::zip(nodes, ["10.9.0.2", "fd09::2"]) {
            assert_eq!(connect(address, 81), Ok(from.to_owned()), "the node's own address: all ports open");
            assert_eq!(connect(address, 82), Err(ErrorKind::ConnectionRefused), "an ordinary closed port");
            client.sh(&format!("ping -c1 -W2 {address}"));
        }
        // From the node itself.
        assert!(ask("10.96.0.10:80".parse().unwrap(), Duration::from_secs(3)).is_ok());
        assert!(ask("10.96.0.10:81".parse().unwrap(), Duration::from_secs(3)).is_err());

        // Large UDP to a service address, in fragments, is judged whole.
        let udp = std::net::UdpSocket::bind("0.0.0.0:5300").unwrap();
        udp.set_read_timeout(Some(Duration::from_secs(3))).unwrap();
        apply(&mut plane, &add(Backend::Nft, &[service("10.96.0.10", Protocol::Udp, 5300)]));
        client.sh("head -c 4000 /dev/zero | socat -b 8000 -u - UDP:10.96.0.10:5300");
        assert_eq!(udp.recv(&mut [0; 8000]).unwrap(), 4000);

        // Without the guard everything that listens answers.
        apply(&mut plane, &[FirewallOp::SetRuleset(Ruleset { guard: false, ..rich() })]);
        for address in vips {
            assert!(connect(address, 81).is_ok(), "{address} without guard");
        }
    });
}
