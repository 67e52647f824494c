//! The firewall plane behind IPVS: whose source address is replaced, and whose is not.
//!
//! ```text
//! client 10.0.1.2 ---- 10.0.1.1 node 10.0.2.1 ---- 10.0.2.2 remote (stands for a pod of another node; no way back to
//!                               10.0.3.1 ---- 10.0.3.2 pod (in this node's pod CIDR)      the client)
//! ```
//!
//! The same with fd01::, fd02::, fd03::. IPVS is programmed with ipvsadm, the filter by us. Every server tells its
//! client the address that it sees.

#[path = "firewall_kernel/support.rs"]
#[allow(dead_code, reason = "shared with firewall_kernel, which uses the rest")]
mod support;

use std::{net::UdpSocket, time::Duration};

use kube_router::{
    apply::{ConntrackPlane, conntrack::KernelConntrack, firewall::KernelFirewall},
    desired::{Hairpin, Ruleset, SetElement, VirtualKey, firewall::Masquerade},
    objects::Protocol,
    plan::{Backend, FirewallOp, UdpFlow},
};
use support::*;

/// Emulated machines are slow, and a first packet may wait for neighbour discovery.
const PATIENCE: Duration = Duration::from_secs(8);
/// Long enough to see that no answer comes: a repeated SYN goes after one second.
const SILENCE: Duration = Duration::from_millis(2500);

struct Family {
    vip: &'static str,
    vip2: &'static str,
    client: &'static str,
    node: &'static str,
    node_at_client: &'static str,
    remote: &'static str,
    pod: &'static str,
    pod_cidr: &'static str,
}

const FAMILIES: [Family; 2] = [
    Family {
        vip: "10.96.0.10",
        vip2: "10.96.0.11",
        client: "10.0.1.2",
        node: "10.0.2.1",
        node_at_client: "10.0.1.1",
        remote: "10.0.2.2",
        pod: "10.0.3.2",
        pod_cidr: "10.0.3.0/24",
    },
    Family {
        vip: "fd96::10",
        vip2: "fd96::11",
        client: "fd01::2",
        node: "fd02::1",
        node_at_client: "fd01::1",
        remote: "fd02::2",
        pod: "fd03::2",
        pod_cidr: "fd03::/64",
    },
];

struct Lab {
    client: Namespace,
    remote: Namespace,
    pod: Namespace,
    plane: KernelFirewall,
}

fn host_port(address: &str, port: u16) -> String {
    if address.contains(':') { format!("[{address}]:{port}") } else { format!("{address}:{port}") }
}

/// Builds the topology around this thread's namespace, which is the node.
fn lab() -> Lab {
    sh("modprobe -a ip_vs ip_vs_rr dummy veth 2>/dev/null; true");
    let (client, remote, pod) = (Namespace::new(), Namespace::new(), Namespace::new());
    for (n, peer) in [(1, &client), (2, &remote), (3, &pod)] {
        sh(&format!(
            "ip link add n{n} type veth peer name eth0; ip link set eth0 netns {pid}
             ip addr add 10.0.{n}.1/24 dev n{n}; ip -6 addr add fd0{n}::1/64 dev n{n} nodad; ip link set n{n} up",
            pid = peer.pid()
        ));
        peer.sh(&format!(
            "ip addr add 10.0.{n}.2/24 dev eth0; ip -6 addr add fd0{n}::2/64 dev eth0 nodad; ip link set eth0 up"
        ));
    }
    for (n, peer) in [(1, &client), (3, &pod)] {
        peer.sh(&format!("ip route add default via 10.0.{n}.1; ip -6 route add default via fd0{n}::1"));
    }
    remote.sh("ip route add 10.0.3.0/24 via 10.0.2.1; ip -6 route add fd03::/64 via fd02::1");
    sh("sysctl -qw net.ipv4.ip_forward=1 net.ipv6.conf.all.forwarding=1 net.ipv4.vs.conntrack=1 \
            net.ipv4.conf.all.send_redirects=0 net.ipv4.conf.n3.send_redirects=0
        ip link add kube-dummy-if type dummy; ip link set kube-dummy-if up");
    for family in &FAMILIES {
        let bits = if family.vip.contains(':') { "128 nodad" } else { "32" };
        let at = |address, port| host_port(address, port);
        sh(&format!(
            "ip addr add {vip}/{bits} dev kube-dummy-if; ip addr add {vip2}/{bits} dev kube-dummy-if
             ipvsadm -A -t {a} -s rr; ipvsadm -a -t {a} -r {r} -m
             ipvsadm -A -u {u} -s rr; ipvsadm -a -u {u} -r {ru} -m
             ipvsadm -A -t {b} -s rr; ipvsadm -a -t {b} -r {p} -m
             ipvsadm -A -t {n} -s rr; ipvsadm -a -t {n} -r {r} -m",
            vip = family.vip,
            vip2 = family.vip2,
            a = at(family.vip, 80),
            u = at(family.vip, 53),
            b = at(family.vip2, 80),
            n = at(family.node_at_client, 30080),
            r = at(family.remote, 8080),
            ru = at(family.remote, 5353),
            p = at(family.pod, 8080),
        ));
    }
    for peer in [&remote, &pod] {
        peer.run(|| serve(&[8080]));
    }
    let mut plane = KernelFirewall::open().unwrap();
    let mut elements = Vec::new();
    for family in &FAMILIES {
        for address in [family.vip, family.vip2, family.node_at_client] {
            elements.push(SetElement::ServiceIp(ip(address)));
        }
        for address in [family.node, family.node_at_client] {
            elements.push(SetElement::LocalIp(ip(address)));
        }
        elements.push(service(family.vip, Protocol::Tcp, 80));
        elements.push(service(family.vip, Protocol::Udp, 53));
        elements.push(service(family.vip2, Protocol::Tcp, 80));
        elements.push(service(family.node_at_client, Protocol::Tcp, 30080));
        elements.push(SetElement::PodCidr(family.pod_cidr.parse().unwrap()));
    }
    let ops = [vec![FirewallOp::SetRuleset(ruleset(Masquerade::Off))], add(Backend::Nft, &elements)];
    apply(&mut plane, &ops.concat());
    // Neighbour discovery and duplicate address detection are over before anything is timed.
    for family in &FAMILIES {
        client.sh(&format!("for i in 1 2 3 4 5; do ping -c1 -W1 {} >/dev/null && break; done", family.node_at_client));
        for peer in [family.remote, family.pod] {
            sh(&format!("for i in 1 2 3 4 5; do ping -c1 -W1 {peer} >/dev/null && break; done"));
        }
    }
    Lab { client, remote, pod, plane }
}

fn ruleset(masquerade: Masquerade) -> Ruleset {
    Ruleset {
        guard: true,
        masquerade,
        node_ipv4: Some([10, 0, 2, 1].into()),
        node_ipv6: Some("fd02::1".parse().unwrap()),
    }
}

impl Lab {
    fn set(&mut self, masquerade: Masquerade) {
        apply(&mut self.plane, &[FirewallOp::SetRuleset(ruleset(masquerade))]);
    }
}

#[test]
#[ignore = "needs root and a kernel with IPVS: run the test binary with --ignored in a VM"]
fn masquerading_makes_a_remote_backend_answer_and_shows_it_the_node() {
    in_namespace(|| {
        let mut lab = lab();
        println!("{}", sh("uname -r"));
        for family in &FAMILIES {
            for (address, port) in [(family.vip, 80), (family.node_at_client, 30080)] {
                lab.set(Masquerade::Off);
                assert!(lab.client.ask(address, port, SILENCE).is_err(), "{address}: no way back without SNAT");
                for masquerade in [Masquerade::All, Masquerade::OutsidePodCidrs] {
                    lab.set(masquerade);
                    let seen = lab.client.ask(address, port, PATIENCE);
                    assert_eq!(seen.unwrap(), family.node, "{address} port {port}, {masquerade:?}");
                }
            }
            // From the node itself.
            let to = host_port(family.vip, 80).parse().unwrap();
            assert_eq!(ask(to, PATIENCE).unwrap(), family.node);
        }
        println!("{}", sh("nft list ruleset; ipvsadm -Ln; conntrack -L 2>/dev/null"));
    });
}

#[test]
#[ignore = "needs root and a kernel with IPVS: run the test binary with --ignored in a VM"]
fn traffic_from_and_to_this_nodes_pods_keeps_its_source() {
    in_namespace(|| {
        let mut lab = lab();
        for family in &FAMILIES {
            lab.set(Masquerade::OutsidePodCidrs);
            assert_eq!(lab.client.ask(family.vip2, 80, PATIENCE).unwrap(), family.client, "to a pod of this node");
            assert_eq!(lab.pod.ask(family.vip, 80, PATIENCE).unwrap(), family.pod, "from a pod of this node");
            lab.set(Masquerade::All);
            assert_eq!(lab.client.ask(family.vip2, 80, PATIENCE).unwrap(), family.node);
            assert_eq!(lab.pod.ask(family.vip, 80, PATIENCE).unwrap(), family.node);
            assert_eq!(lab.client.ask(family.pod, 8080, PATIENCE).unwrap(), family.client, "no service: untouched");
        }
    });
}

#[test]
#[ignore = "needs root and a kernel with IPVS: run the test binary with --ignored in a VM"]
fn a_pod_reaches_itself_and_sees_the_service_as_its_client() {
    in_namespace(|| {
        let mut lab = lab();
        for masquerade in [Masquerade::OutsidePodCidrs, Masquerade::All] {
            lab.set(masquerade);
            for family in &FAMILIES {
                let hairpin = Hairpin { pod: ip(family.pod), vip: ip(family.vip2), protocol: Protocol::Tcp, port: 80 };
                let element = [SetElement::Hairpin(hairpin)];
                if masquerade == Masquerade::OutsidePodCidrs {
                    assert!(lab.pod.ask(family.vip2, 80, SILENCE).is_err(), "without hairpin nothing comes back");
                }
                apply(&mut lab.plane, &add(Backend::Nft, &element));
                assert_eq!(lab.pod.ask(family.vip2, 80, PATIENCE).unwrap(), family.vip2, "{masquerade:?}");
                let others = lab.client.ask(family.vip2, 80, PATIENCE).unwrap();
                assert_ne!(others, family.vip2, "clients other than the pod are no hairpins");
                apply(&mut lab.plane, &delete(Backend::Nft, &element));
            }
        }
    });
}

#[test]
#[ignore = "needs root and a kernel with IPVS: run the test binary with --ignored in a VM"]
fn what_others_dnat_is_theirs() {
    in_namespace(|| {
        let mut lab = lab();
        sh("nft -f - <<N
table inet docker {
 chain prerouting {
  type nat hook prerouting priority dstnat;
  ip daddr 10.0.1.1 tcp dport 8888 dnat ip to 10.0.3.2:8080
  ip6 daddr fd01::1 tcp dport 8888 dnat ip6 to [fd03::2]:8080
 }
}
N");
        lab.set(Masquerade::All);
        for family in &FAMILIES {
            // Even if the port is, wrongly, in our set.
            apply(&mut lab.plane, &add(Backend::Nft, &[service(family.node_at_client, Protocol::Tcp, 8888)]));
            assert_eq!(lab.client.ask(family.node_at_client, 8888, PATIENCE).unwrap(), family.client);
        }
    });
}

#[test]
#[ignore = "needs root and a kernel with IPVS: run the test binary with --ignored in a VM"]
fn udp_is_masqueraded_and_its_conntrack_entries_can_be_flushed() {
    in_namespace(|| {
        let mut lab = lab();
        lab.set(Masquerade::All);
        lab.remote.run(|| {
            let server = UdpSocket::bind("[::]:5353").unwrap();
            std::thread::spawn(move || {
                while let Ok((_, from)) = server.recv_from(&mut [0; 16]) {
                    let _ = server.send_to(from.ip().to_canonical().to_string().as_bytes(), from);
                }
            });
        });
        let mut conntrack = KernelConntrack::open().unwrap();
        for family in &FAMILIES {
            let server = VirtualKey { address: ip(family.vip), protocol: Protocol::Udp, port: 53 };
            let to = host_port(family.vip, 53);
            let seen = lab.client.run(move || {
                let socket = UdpSocket::bind(if to.starts_with('[') { "[::]:0" } else { "0.0.0.0:0" }).unwrap();
                socket.set_read_timeout(Some(PATIENCE)).unwrap();
                socket.connect(to).unwrap();
                socket.send(b"x").unwrap();
                let mut answer = [0; 64];
                let length = socket.recv(&mut answer).unwrap();
                String::from_utf8(answer[..length].to_vec()).unwrap()
            });
            assert_eq!(seen, family.node);
            let kind = if family.vip.contains(':') { "ipv6" } else { "ipv4" };
            let entries =
                || sh(&format!("conntrack -L -f {kind} -p udp --orig-port-dst 53 2>/dev/null")).lines().count();
            assert_eq!(entries(), 1);
            let other = UdpFlow { server, destination: host_port(family.pod, 5353).parse().unwrap() };
            assert_eq!(conntrack.flush_udp(&[other]).unwrap(), 0);
            let flow = UdpFlow { server, destination: host_port(family.remote, 5353).parse().unwrap() };
            assert_eq!(conntrack.flush_udp(&[flow]).unwrap(), 1);
            assert_eq!(entries(), 0);
        }
    });
}
