//! What the kernel holds, told by programs that nobody here wrote, in a form that can be compared.
//!
//! In: a namespace. Out: sorted lines, or parsed entries where a test needs to reason about them. Whatever differs from
//! run to run (counters, hash seeds, order) is left out; nothing else is.

mod ipvs;

use std::{collections::BTreeMap, net::IpAddr};

use anyhow::{Context, Result};
use ipnet::IpNet;
use serde::Deserialize;

pub use self::ipvs::{Destination, Server, ServerAddress, ipvs_rules, ipvs_servers, parse_ipvs};
use crate::lab::Namespace;

/// Without its duplicates of white space, sorted.
fn sorted(text: &str) -> Vec<String> {
    let tidy = |line: &str| line.split_whitespace().collect::<Vec<_>>().join(" ");
    let mut lines: Vec<String> = text.lines().map(tidy).filter(|line| !line.is_empty()).collect();
    lines.sort();
    lines
}

/// `ipset save`: sets and members, sorted, without the sizes that the kernel chose for its tables.
pub fn ipsets(ns: &Namespace) -> Result<Vec<String>> {
    let text = ns.command("ipset", &["save"])?;
    let mut lines = Vec::new();
    for line in sorted(&text) {
        let mut words = line.split(' ');
        let mut kept: Vec<&str> = Vec::new();
        while let Some(word) = words.next() {
            if matches!(word, "hashsize" | "initval" | "bucketsize") {
                words.next();
            } else {
                kept.push(word);
            }
        }
        lines.push(kept.join(" "));
    }
    lines.sort();
    Ok(lines)
}

/// Members of each set, as `ipset save` prints them.
pub fn ipset_members(ns: &Namespace) -> Result<BTreeMap<String, Vec<String>>> {
    let mut sets: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for line in ipsets(ns)? {
        let mut words = line.splitn(3, ' ');
        match (words.next(), words.next(), words.next()) {
            (Some("create"), Some(set), _) => drop(sets.entry(set.to_owned()).or_default()),
            (Some("add"), Some(set), Some(member)) => sets.entry(set.to_owned()).or_default().push(member.to_owned()),
            _ => anyhow::bail!("not a line of ipset save: {line}"),
        }
    }
    Ok(sets)
}

/// Addresses by interface, sorted; an interface without any is there with none. Link-local IPv6 ones are left out.
pub fn addresses(ns: &Namespace) -> Result<BTreeMap<String, Vec<IpNet>>> {
    #[derive(Deserialize)]
    struct Link {
        ifname: String,
        addr_info: Vec<Address>,
    }
    #[derive(Deserialize)]
    struct Address {
        local: IpAddr,
        prefixlen: u8,
    }
    let text = ns.command("ip", &["-json", "address", "show"])?;
    let links: Vec<Link> = serde_json::from_str(&text).context("ip -json address")?;
    let mut found = BTreeMap::new();
    for link in links {
        let mut own = Vec::new();
        for address in link.addr_info {
            if !matches!(address.local, IpAddr::V6(v6) if v6.is_unicast_link_local()) {
                own.push(IpNet::new(address.local, address.prefixlen).context("a prefix length")?);
            }
        }
        own.sort();
        found.insert(link.ifname, own);
    }
    Ok(found)
}

/// Everything that `ip -json address` says, for what the shorter forms leave out (flags, scope, lifetimes).
pub fn links(ns: &Namespace) -> Result<serde_json::Value> {
    let text = ns.command("ip", &["-json", "-details", "address", "show"])?;
    serde_json::from_str(&text).context("ip -json address")
}

/// `ip route show table local` of both families, sorted.
pub fn local_routes(ns: &Namespace) -> Result<Vec<String>> {
    routes(ns, "local")
}

/// Routes of one table of both families, sorted. A table that does not exist is empty.
pub fn routes(ns: &Namespace, table: &str) -> Result<Vec<String>> {
    let mut all = Vec::new();
    for family in ["-4", "-6"] {
        // `all` and a filter: asking for an absent table is an error of ip's.
        let text = ns.command("ip", &[family, "route", "show", "table", "all"])?;
        let wanted = match table {
            "main" => None,
            other => Some(other),
        };
        for line in sorted(&text) {
            let mut words: Vec<&str> = line.split(' ').collect();
            let named = words.iter().position(|word| *word == "table");
            let at = named.and_then(|at| words.get(at + 1).copied());
            if at == wanted {
                if let Some(named) = named {
                    words.drain(named..named + 2);
                }
                all.push(words.join(" "));
            }
        }
    }
    all.sort();
    Ok(all)
}

/// `nft -s list ruleset` (without counters), in its own order.
pub fn nft(ns: &Namespace) -> Result<String> {
    ns.command("nft", &["--stateless", "list", "ruleset"])
}

/// `conntrack -L` of both families, or of what `filter` selects, sorted.
pub fn conntrack(ns: &Namespace, filter: &[&str]) -> Result<Vec<String>> {
    let mut all = Vec::new();
    for family in ["ipv4", "ipv6"] {
        let text = ns.command("conntrack", &[&["-L", "-f", family], filter].concat())?;
        all.extend(sorted(&text));
    }
    all.sort();
    Ok(all)
}
