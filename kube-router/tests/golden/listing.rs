//! The kernel in memory, printed as the tools of a real one print it.

use std::net::IpAddr;

use kube_router::{
    cli::listing,
    desired::{SetElement, SetName, Virtual, VirtualKey},
    objects::ObjectKey,
    observe::{DestinationRow, ServiceRow},
    plan::Observed,
};

/// `ipvsadm -Sn`.
pub fn ipvs(kernel: &Observed) -> Vec<String> {
    let mut lines: Vec<String> = Vec::new();
    for (key, server) in &kernel.ipvs.servers {
        lines.extend(listing::ipvsadm(&row(key, server)).lines().map(str::to_owned));
    }
    lines.extend(kernel.ipvs.marks.iter().map(|(mark, _)| format!("-A -f {mark}")));
    lines
}

fn row(key: &VirtualKey, server: &Virtual) -> ServiceRow {
    let row = |(address, weight): (&std::net::SocketAddr, &u32)| DestinationRow {
        address: *address,
        weight: *weight,
        draining: false,
    };
    ServiceRow {
        service: ObjectKey::new("", ""),
        port_name: String::new(),
        origin: String::new(),
        address: key.address,
        protocol: key.protocol,
        port: key.port,
        scheduler: server.scheduler.name().to_owned(),
        sched_flags: server.flag_names(),
        persistence_s: server.persistence_s,
        destinations: server.destinations.iter().map(row).collect(),
        path: None,
    }
}

/// The addresses in `ip address show dev kube-dummy-if`.
pub fn addresses(kernel: &Observed) -> Vec<String> {
    let line = |address: &IpAddr| match address {
        IpAddr::V4(v4) => format!("inet {v4}/32 scope link kube-dummy-if"),
        IpAddr::V6(v6) => format!("inet6 {v6}/128 scope global"),
    };
    kernel.net.dummy_addresses.iter().map(line).collect()
}

/// `ip route show table local dev kube-dummy-if`, without link-local and broadcast.
pub fn routes(kernel: &Observed) -> Vec<String> {
    let line = |(vip, source): (&IpAddr, &Option<IpAddr>)| {
        let source = source.map(|source| format!(" src {source}")).unwrap_or_default();
        match vip {
            IpAddr::V4(_) => format!("local {vip} proto kernel scope host{source}"),
            IpAddr::V6(_) => format!("local {vip} proto kernel{source} metric 1024 pref medium"),
        }
    };
    kernel.net.local_routes.iter().map(line).collect()
}

/// The members in `ipset save`.
pub fn sets(kernel: &Observed) -> Vec<String> {
    let line = |element: &SetElement| {
        let prefix = if element.is_ipv6() { "inet6:" } else { "" };
        Some(format!("add {prefix}{} {element} timeout 0", element.set().ipset_name()?))
    };
    kernel.firewall.ipset.iter().filter_map(line).collect()
}

/// The original has one iptables rule for what is one set element here; its rules do not mention the protocol.
pub fn hairpins(kernel: &Observed) -> Vec<String> {
    let line = |element: &SetElement| match element {
        SetElement::Hairpin(hairpin) => {
            let length = if element.is_ipv6() { 128 } else { 32 };
            let (pod, vip, port) = (hairpin.pod, hairpin.vip, hairpin.port);
            Some(format!(
                "-A KUBE-ROUTER-HAIRPIN -s {pod}/{length} -d {pod}/{length} -m ipvs --vaddr {vip} --vport {port} \
                 -j SNAT --to-source {vip}"
            ))
        }
        other => {
            assert_ne!(other.set(), SetName::Hairpins);
            None
        }
    };
    kernel.firewall.nft.iter().filter_map(line).collect()
}
