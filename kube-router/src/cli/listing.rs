//! What this node would program, printed: virtual servers as `ipvsadm -Sn` would save them, addresses, sets, problems.

use std::fmt::Write;

use serde::Serialize;

use crate::{
    desired::{Desired, SetElement},
    objects::Protocol,
    observe::ServiceRow,
    reconcile::{Reconciler, driver::report},
};

/// The whole answer, for JSON.
#[derive(Debug, Serialize)]
pub struct Listing {
    pub node: String,
    pub services: Vec<ServiceRow>,
    /// Addresses for kube-dummy-if, each with the source address of its local route.
    pub addresses: Vec<Address>,
    /// Members of the sets by nftables name; the first three have ipsets of the original's names.
    pub sets: std::collections::BTreeMap<String, Vec<String>>,
    pub problems: Vec<String>,
}

#[derive(Debug, Serialize)]
pub struct Address {
    pub address: std::net::IpAddr,
    pub source: Option<std::net::IpAddr>,
}

impl Listing {
    pub fn new(reconciler: &mut Reconciler) -> Self {
        let problems = reconciler.problems().iter().map(ToString::to_string).collect();
        let desired = reconciler.desired();
        let mut vips: Vec<_> = desired.table.vips().copied().collect();
        vips.sort();
        Listing {
            node: reconciler.node().name.to_string(),
            services: report::rows(reconciler),
            addresses: vips
                .into_iter()
                .map(|address| Address { address, source: desired.route_source(address) })
                .collect(),
            sets: sets(desired),
            problems,
        }
    }

    pub fn text(&self) -> String {
        let mut out = String::new();
        let section = |out: &mut String, title: &str| {
            let _ = writeln!(out, "# {title}");
        };
        section(&mut out, &format!("IPVS on node {}, as ipvsadm -Sn prints it", self.node));
        let mut servers: Vec<&ServiceRow> = self.services.iter().collect();
        servers.sort_by_key(|row| (row.protocol, row.address, row.port));
        for row in servers {
            out.push_str(&ipvsadm(row));
        }
        section(&mut out, "addresses on kube-dummy-if, with the source of their local routes");
        for Address { address, source } in &self.addresses {
            let length = if address.is_ipv4() { 32 } else { 128 };
            let source = source.map(|source| format!(" src {source}")).unwrap_or_default();
            let _ = writeln!(out, "{address}/{length}{source}");
        }
        for (name, members) in &self.sets {
            section(&mut out, &format!("set {name}"));
            for member in members {
                let _ = writeln!(out, "{member}");
            }
        }
        if !self.problems.is_empty() {
            section(&mut out, "problems");
            for problem in &self.problems {
                let _ = writeln!(out, "{problem}");
            }
        }
        out
    }
}

fn sets(desired: &Desired) -> std::collections::BTreeMap<String, Vec<String>> {
    let mut elements: Vec<SetElement> = desired.elements().collect();
    elements.sort();
    let mut sets: std::collections::BTreeMap<String, Vec<String>> = Default::default();
    for element in elements {
        let family = if element.is_ipv6() { "6" } else { "4" };
        sets.entry(format!("{}{family}", element.set().nft_name())).or_default().push(element.to_string());
    }
    sets
}

/// One virtual server and its destinations in the form of `ipvsadm -Sn`.
pub fn ipvsadm(row: &ServiceRow) -> String {
    let kind = match row.protocol {
        Protocol::Tcp => "-t",
        Protocol::Udp => "-u",
        Protocol::Sctp => "--sctp-service",
    };
    let server = std::net::SocketAddr::new(row.address, row.port);
    let mut out = format!("-A {kind} {server} -s {}", row.scheduler);
    if let Some(seconds) = row.persistence_s {
        let _ = write!(out, " -p {seconds}");
    }
    if !row.sched_flags.is_empty() {
        let _ = write!(out, " -b {}", row.sched_flags.join(","));
    }
    out.push('\n');
    for destination in &row.destinations {
        let _ = writeln!(out, "-a {kind} {server} -r {} -m -w {}", destination.address, destination.weight);
    }
    out
}
