//! Network policy and who is who: addresses that are given to another pod, pretended addresses, interfaces under other
//! names, pods that nobody has told the agent of.

mod common;

use std::{
    net::{IpAddr, SocketAddr},
    os::fd::AsRawFd,
};

use anyhow::Context;
use common::netpol::{DENY_INGRESS, FLAGS, cluster, drops, started};
use kube_router_common::reason::Reason;
use kube_router_tests::{
    lab::{Pod, Serve},
    netpol::{
        Change::{Apply, Phase},
        Cluster,
        datagrams::{Listener, send},
        plan::{self, pod, socket as served},
    },
    objects,
    probe::Transport,
    process::eventually,
};
use nix::{
    ifaddrs::getifaddrs,
    sys::socket::{self, AddressFamily, MsgFlags, SockFlag, SockType},
};
use serde_json::{Value, json};

const FAMILIES: [bool; 2] = [true, false];

/// Pods called b may talk to y/a, and x/b is isolated.
const ABOUT_B: &str = "
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {namespace: y, name: from-b}
spec:
  podSelector: {matchLabels: {pod: a}}
  ingress: [{from: [{namespaceSelector: {}, podSelector: {matchLabels: {pod: b}}}]}]
---
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {namespace: x, name: into-b}
spec: {podSelector: {matchLabels: {pod: b}}, policyTypes: [Ingress]}";

/// z may talk to x/late, and that may talk to y/a.
const ABOUT_LATE: &str = "
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {namespace: x, name: late}
spec:
  podSelector: {matchLabels: {pod: late}}
  policyTypes: [Ingress, Egress]
  ingress: [{from: [{namespaceSelector: {matchLabels: {ns: z}}}]}]
  egress: [{to: [{namespaceSelector: {matchLabels: {ns: y}}, podSelector: {matchLabels: {pod: a}}}]}]";

fn reaches(cluster: &Cluster, from: &Pod, to: &str, ipv4: bool) -> bool {
    cluster.ask_from(&from.ns, Transport::Tcp, served(pod(to).unwrap(), 0, ipv4)).is_ok()
}

/// The object of a pod of the lab that is none of the nine.
fn object(pod: &Pod, namespace: &str, labels: Value) -> Value {
    let mut object = objects::pod(pod, labels);
    object["metadata"]["namespace"] = json!(namespace);
    object
}

#[test]
#[ignore = "needs root and BPF: cargo xtask test --tier 3"]
fn an_address_that_returns_is_the_new_pods() {
    let mut cluster = started("netpoli", &[]);
    cluster.change(&[Apply(ABOUT_B)]).unwrap();
    let old = cluster.named("x/b").unwrap();
    let (z, target) = (cluster.named("z/a").unwrap(), plan::pod("x/b").unwrap());
    for ipv4 in FAMILIES {
        assert!(reaches(&cluster, &old, "y/a", ipv4) && !reaches(&cluster, &z, "x/b", ipv4));
    }
    // It has completed, and its sandbox is gone; the object stays a while.
    cluster.change(&[Phase("Succeeded", "x/b")]).unwrap();
    cluster.lab.remove_pod(&old.name).unwrap();
    let addresses = FAMILIES.map(|ipv4| plan::address(target, ipv4).to_string());
    let new = cluster.lab.pod("n1", "x-new", &[&addresses[0], &addresses[1]]).unwrap();
    let _server = Serve::new().tcp(80).start(&new.ns, "x-new").unwrap();
    // A network plugin announces the new hardware address; here the old one is forgotten instead.
    cluster.nodes[0].ns.ip(&["neighbour flush dev kube-bridge".into()]).unwrap();
    cluster.objects.others.push(object(&new, "x", json!({"pod": "new"})));
    for old_object in ["is still there", "is gone"] {
        if old_object == "is gone" {
            cluster.objects.absent.insert(target);
        }
        cluster.change(&[]).unwrap();
        for ipv4 in FAMILIES {
            let open = || reaches(&cluster, &z, "x/b", ipv4);
            let what = format!("the new pod is not isolated; IPv4 {ipv4}, the old one's object {old_object}");
            eventually(&what, cluster.patience.change, open).unwrap();
            assert!(!reaches(&cluster, &new, "y/a", ipv4), "not called b; the old one's object {old_object}");
            assert!(reaches(&cluster, &new, "y/b", ipv4), "may send elsewhere; the old one's object {old_object}");
        }
    }
    // The other way round: whoever is called b now is isolated, at the same address.
    cluster.objects.others = vec![object(&new, "x", json!({"pod": "b"}))];
    cluster.change(&[]).unwrap();
    for ipv4 in FAMILIES {
        assert!(reaches(&cluster, &new, "y/a", ipv4) && !reaches(&cluster, &z, "x/b", ipv4));
    }
}

#[test]
#[ignore = "needs root and BPF: cargo xtask test --tier 3"]
fn an_interface_may_get_another_name() {
    let mut cluster = started("netpolw", &[]);
    cluster.change(&[Apply(DENY_INGRESS)]).unwrap();
    let (a, y) = (cluster.named("x/a").unwrap(), cluster.named("y/a").unwrap());
    let rename = |from: &str, to: &str| {
        let lines =
            [format!("link set {from} down"), format!("link set {from} name {to}"), format!("link set {to} up")];
        cluster.nodes[0].ns.ip(&lines).unwrap();
    };
    rename(&a.port, "renamed0");
    for ipv4 in FAMILIES {
        let back = || reaches(&cluster, &a, "y/a", ipv4);
        eventually("the link is up again", cluster.patience.change, back).unwrap();
        assert!(!reaches(&cluster, &y, "x/a", ipv4));
    }
    rename("renamed0", &a.port);
    cluster.objects.reset();
    cluster.change(&[]).unwrap();
    let open = || reaches(&cluster, &y, "x/a", true);
    eventually("policies go on changing", cluster.patience.change, open).unwrap();
}

/// y/a listens to x/a only, and x/b takes x/a's address as one more of its own.
#[test]
#[ignore = "needs root and BPF: cargo xtask test --tier 3"]
fn a_pod_cannot_take_the_place_of_another() {
    const FROM_XA: &str = "
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {namespace: y, name: from-xa}
spec:
  podSelector: {matchLabels: {pod: a}}
  ingress: [{from: [{namespaceSelector: {matchLabels: {ns: x}}, podSelector: {matchLabels: {pod: a}}}]}]";
    let mut cluster = started("netpolp", &[]);
    cluster.change(&[Apply(FROM_XA)]).unwrap();
    let (a, b, y) = (cluster.named("x/a").unwrap(), cluster.named("x/b").unwrap(), cluster.named("y/a").unwrap());
    let listener = Listener::start(&y.ns, 7000).unwrap();
    for ipv4 in FAMILIES {
        let (stolen, to) = (a.address(ipv4).unwrap(), y.address(ipv4).unwrap());
        assert!(!reaches(&cluster, &b, "y/a", ipv4), "also makes the two neighbours");
        let before = drops(&cluster, 1, Reason::SourceAddress);
        let nodad = if ipv4 { "" } else { " nodad" };
        b.ns.ip(&[format!("address add {stolen}/{} dev eth0{nodad}", if ipv4 { 32 } else { 128 })]).unwrap();
        // Also after the agent has seen the address there.
        for _ in 0..2 {
            send(&b.ns, stolen, SocketAddr::new(to, 7000), 5).unwrap();
            cluster.change(&[]).unwrap();
        }
        assert_eq!(listener.from(stolen), 0, "{stolen}");
        assert!(drops(&cluster, 1, Reason::SourceAddress) >= before + 10, "{stolen}");
        // Both go on being who they are.
        assert!(reaches(&cluster, &a, "y/a", ipv4) && !reaches(&cluster, &b, "y/a", ipv4), "{stolen}");
        let answer = cluster.ask("z/a", Transport::Tcp, served(pod("x/a").unwrap(), 0, ipv4)).unwrap();
        assert_eq!(answer.unwrap().name, "x-a");
        send(&a.ns, stolen, SocketAddr::new(to, 7000), 1).unwrap();
        eventually("the real one's datagram", cluster.patience.change, || listener.from(stolen) == 1).unwrap();
    }
}

#[test]
#[ignore = "needs root and BPF: cargo xtask test --tier 3"]
fn pretended_sources_are_dropped_unless_that_is_switched_off() {
    for (flag, passes) in [("--netpol-anti-spoofing=true", false), ("--netpol-anti-spoofing=false", true)] {
        let cluster = started(if passes { "netpolo" } else { "netpolf" }, &[flag]);
        let (b, y) = (cluster.named("x/b").unwrap(), cluster.named("y/b").unwrap());
        let listener = Listener::start(&y.ns, 7000).unwrap();
        b.ns.ip(&["address add 203.0.113.9/32 dev lo".into(), "address add 2001:db8::9/128 dev lo nodad".into()])
            .unwrap();
        for ipv4 in FAMILIES {
            let source = if ipv4 { "203.0.113.9" } else { "2001:db8::9" }.parse().unwrap();
            let (own, to) = (b.address(ipv4).unwrap(), SocketAddr::new(y.address(ipv4).unwrap(), 7000));
            let before = drops(&cluster, 1, Reason::SourceAddress);
            send(&b.ns, source, to, 5).unwrap();
            send(&b.ns, own, to, 1).unwrap();
            eventually("its own datagram", cluster.patience.change, || listener.from(own) == 1).unwrap();
            assert_eq!(listener.from(source), if passes { 5 } else { 0 }, "{flag}");
            let dropped = drops(&cluster, 1, Reason::SourceAddress) - before;
            assert_eq!(dropped, if passes { 0 } else { 5 }, "{flag}");
        }
    }
}

#[test]
#[ignore = "needs root and BPF: cargo xtask test --tier 3"]
fn tagged_frames_are_dropped_and_counted() {
    let cluster = started("netpolt", &[]);
    let b = cluster.named("x/b").unwrap();
    let before = drops(&cluster, 1, Reason::Vlan);
    let frame: Vec<u8> = [&[0xff; 6][..], &[2, 0, 0, 0, 0, 1], &[0x81, 0, 0, 5, 0x08, 0], &[0; 46]].concat();
    b.ns.run(|| send_frames(&frame, 5)).unwrap();
    let counted = || drops(&cluster, 1, Reason::Vlan) >= before + 5;
    eventually("tagged frames are counted", cluster.patience.change, counted).unwrap();
    assert!(reaches(&cluster, &b, "y/b", true), "untagged ones pass");
}

/// Where nobody knows who sends, frames of other networks pass, and those that the kernel takes for untagged do not.
#[test]
#[ignore = "needs root and BPF: cargo xtask test --tier 3"]
fn a_priority_tag_hides_no_claim_of_an_unknown_pod() {
    let mut cluster = started("netpolv", &[]);
    let late = cluster.lab.pod("n1", "late", &["10.246.1.77"]).unwrap();
    let b = cluster.named("x/b").unwrap();
    let IpAddr::V4(claimed) = b.address(true).unwrap() else { panic!("an IPv4 address") };
    let asked = cluster.named("x/c").unwrap();
    let IpAddr::V4(to) = asked.address(true).unwrap() else { panic!("an IPv4 address") };
    let mac = [2, 0, 0, 0, 0, 9];
    // "b's address is at mine", to everybody.
    let arp: Vec<u8> =
        [&[8, 6, 0, 1, 8, 0, 6, 4, 0, 1][..], &mac, &claimed.octets(), &[0; 6], &to.octets(), &[0; 18]].concat();
    let frame = |tags: &[u8]| [&[0xff; 6][..], &mac, tags, &arp].concat();
    let believed =
        || asked.ns.command("ip", &["neigh", "show", &claimed.to_string()]).unwrap().contains("02:00:00:00:00:09");
    assert!(reaches(&cluster, &asked, "x/b", true), "it knows where b is");
    let before = drops(&cluster, 1, Reason::Vlan);
    let tag = |id| [0x81, 0, 0, id];
    for frame in [frame(&tag(0)), frame(&[tag(0), tag(0)].concat())] {
        late.ns.run(|| send_frames(&frame, 3)).unwrap();
    }
    let counted = |count| {
        let cluster = &cluster;
        move || drops(cluster, 1, Reason::Vlan) >= before + count
    };
    eventually("they are counted", cluster.patience.change, counted(6)).unwrap();
    assert_eq!(drops(&cluster, 1, Reason::Vlan), before + 6, "where they came from");
    assert!(!believed());
    late.ns.run(|| send_frames(&frame(&tag(7)), 3)).unwrap();
    eventually("it is other pods that do not take them", cluster.patience.change, counted(7)).unwrap();
}

/// Sends a frame out of `eth0` as it is.
fn send_frames(frame: &[u8], count: usize) -> anyhow::Result<()> {
    let mut links = getifaddrs()?.filter(|interface| interface.interface_name == "eth0");
    let link = links.find_map(|interface| interface.address?.as_link_addr().copied()).context("no eth0")?;
    let socket = socket::socket(AddressFamily::Packet, SockType::Raw, SockFlag::empty(), None)?;
    for _ in 0..count {
        socket::sendto(socket.as_raw_fd(), frame, &link, MsgFlags::empty())?;
    }
    Ok(())
}

/// A pod with its own idea of where to keep its address, before anybody saw it at its interface.
#[test]
#[ignore = "needs root and BPF: cargo xtask test --tier 3"]
fn a_pod_cannot_hide_from_its_policies() {
    let mut cluster = started("netpolh", &[]);
    let late = cluster.lab.pod("n1", "late", &["10.246.1.77"]).unwrap();
    let _server = Serve::new().tcp(80).start(&late.ns, "late").unwrap();
    let gateway = "10.246.1.1";
    let hide = ["addr flush dev eth0 scope global", "addr add 10.246.1.77/32 dev lo"].map(str::to_owned);
    let routes = |source: &str| {
        [format!("route add {gateway} dev eth0{source}"), format!("route add default via {gateway} dev eth0{source}")]
    };
    late.ns.ip(&[&hide[..], &routes(" src 10.246.1.77")].concat()).unwrap();
    let z = cluster.named("z/a").unwrap();
    let into = |cluster: &Cluster| {
        let to = SocketAddr::new(late.address(true).unwrap(), 80);
        cluster.ask_from(&z.ns, Transport::Tcp, to).is_ok()
    };
    assert!(into(&cluster) && reaches(&cluster, &late, "y/a", true), "no policy is about it");
    cluster.change(&[Apply(ABOUT_LATE)]).unwrap();
    cluster.objects.others.push(object(&late, "x", json!({"pod": "late"})));
    cluster.change(&[]).unwrap();
    assert!(!into(&cluster), "nothing gets there, though one policy allows it");
    assert!(!reaches(&cluster, &late, "y/a", true) && !reaches(&cluster, &late, "y/b", true), "nor out");
    assert!(reaches(&cluster, &z, "y/a", true), "others are none the worse");
    let show = [
        "route flush dev eth0".to_owned(),
        "addr flush dev lo scope global".to_owned(),
        "addr add 10.246.1.77/24 dev eth0".to_owned(),
        format!("route add default via {gateway}"),
    ];
    late.ns.ip(&show).unwrap();
    eventually("it is bound once it shows", cluster.patience.change, || into(&cluster)).unwrap();
    assert!(reaches(&cluster, &late, "y/a", true) && !reaches(&cluster, &late, "y/b", true), "as its policies say");
}

/// A pod that runs before the agent has heard of it.
#[test]
#[ignore = "needs root and BPF: cargo xtask test --tier 3"]
fn an_unknown_pod_gets_nothing_where_that_is_the_default() {
    let mut cluster = cluster("netpold");
    cluster.start(&[&FLAGS[..], &["--netpol-default-deny"]].concat()).unwrap();
    let late = cluster.lab.pod("n1", "late", &["10.246.1.77", "fd00:10:246:1::77"]).unwrap();
    let _server = Serve::new().tcp(80).start(&late.ns, "late").unwrap();
    let z = cluster.named("z/a").unwrap();
    let into = |ipv4| {
        let to = SocketAddr::new(late.address(ipv4).unwrap(), 80);
        cluster.ask_from(&z.ns, Transport::Tcp, to).is_ok()
    };
    for ipv4 in FAMILIES {
        let shut = || !reaches(&cluster, &late, "y/a", ipv4) && !reaches(&cluster, &late, "y/b", ipv4) && !into(ipv4);
        eventually("an unknown pod gets nothing", cluster.patience.change, shut).unwrap();
        assert!(shut(), "and so it stays");
    }
    assert!(drops(&cluster, 1, Reason::Unpublished) > 0);
    let published = object(&late, "x", json!({"pod": "late"}));
    cluster.objects.others.push(published);
    cluster.change(&[]).unwrap();
    for ipv4 in FAMILIES {
        let to = SocketAddr::new(late.address(ipv4).unwrap(), 80);
        let open = || {
            reaches(&cluster, &late, "y/a", ipv4)
                && reaches(&cluster, &late, "y/b", ipv4)
                && cluster.ask_from(&z.ns, Transport::Tcp, to).is_ok()
        };
        eventually("a pod that is known now", cluster.patience.change, open).unwrap();
    }
}
