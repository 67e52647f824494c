//! Packets that somebody made to get past policy, or that something broke: what comes of each. docs/packets.md shows this
//! list; a test compares.
//!
//! Unless a line says otherwise the same packet, well made, would be allowed: to or from the friend's port 80.

mod fragments;
mod frames;
mod headers;
mod messages;
mod sources;

use super::*;

pub(super) fn add(list: &mut List) {
    for f in Family::BOTH {
        list.class = "Truncated headers";
        headers::truncated(list, f);
        list.class = "Lengths and checksums";
        headers::lengths(list, f);
        headers::checksums(list, f);
        list.class = "Fragments";
        fragments::fragments(list, f);
    }
    list.class = "Fragments";
    fragments::of_ipv6(list);
    list.class = "IPv4 options";
    headers::options(list);
    list.class = "IPv6 extension headers";
    headers::extensions(list);
    for f in Family::BOTH {
        list.class = "Protocols without ports";
        headers::portless(list, f);
        list.class = "TCP flags";
        headers::tcp_flags(list, f);
        list.class = "Sources";
        sources::sources(list, f);
        list.class = "ICMP";
        messages::errors(list, f);
    }
    list.class = "Frames";
    frames::frames(list);
    list.class = "ARP and neighbour discovery";
    frames::arp_claims(list);
    messages::neighbours(list);
    list.class = "At interfaces of nobody known";
    frames::unknown_arp(list);
    messages::unknown_neighbours(list);
    list.class = "";
}

/// To the friend's port 80.
fn web(f: Family, protocol: u8) -> Build {
    let (from, to) = ((pod_1(f), 4000), (friend(f), 80));
    match protocol {
        protocol::TCP => Build::tcp(from, to, SYN),
        protocol::UDP => Build::udp(from, to, &[5; 24]),
        _ => Build::sctp(from, to),
    }
}

/// The same from the friend to the pod's port 80.
fn back(f: Family, protocol: u8) -> Build {
    let (from, to) = ((friend(f), 4000), (pod_1(f), 80));
    match protocol {
        protocol::TCP => Build::tcp(from, to, SYN),
        protocol::UDP => Build::udp(from, to, &[5; 24]),
        _ => Build::sctp(from, to),
    }
}

fn name(protocol: u8) -> &'static str {
    match protocol {
        protocol::TCP => "TCP",
        protocol::UDP => "UDP",
        protocol::SCTP => "SCTP",
        _ => "ICMP",
    }
}

impl List {
    /// Raw bytes out of the pod.
    fn raw_out(&mut self, f: Family, says: &str, bytes: Vec<u8>) -> Entry<'_> {
        self.add(&std::format!("{f:?}: {says}"), Hook::PodOut, bytes)
    }

    fn raw_into(&mut self, f: Family, says: &str, bytes: Vec<u8>) -> Entry<'_> {
        self.add(&std::format!("{f:?}: {says}"), Hook::PodIn, bytes)
    }
}
