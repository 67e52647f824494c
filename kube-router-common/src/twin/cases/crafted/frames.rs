//! Frames that are not what they say, and ARP that claims what is others'; also where nobody knows who sends.

use super::*;

pub(super) fn frames(list: &mut List) {
    for f in Family::BOTH {
        let frame = |ethertype: u16| move |b: Build| b.with(|b| b.ethertype = ethertype);
        for (what, ethertype, reason) in [
            ("a VLAN tag", 0x8100, Reason::Vlan),
            ("a service VLAN tag (QinQ)", 0x88a8, Reason::Vlan),
            ("an old QinQ tag", 0x9100, Reason::EtherType),
            ("MPLS", 0x8847, Reason::EtherType),
            ("RARP", 0x8035, Reason::EtherType),
            ("LLDP", 0x88cc, Reason::EtherType),
            ("802.3, a length instead of a type", 60, Reason::EtherType),
            ("PPPoE", 0x8864, Reason::EtherType),
        ] {
            list.out(what, frame(ethertype)(web(f, protocol::TCP))).drops(OUT, reason);
            list.into(what, frame(ethertype)(back(f, protocol::TCP))).drops(IN, reason);
        }
        let other = if f == Family::V4 { 0x86dd } else { 0x0800 };
        let says = "the other family's type";
        list.out(says, frame(other)(web(f, protocol::TCP))).drops(OUT, Reason::Malformed);
        list.into(says, frame(other)(back(f, protocol::TCP))).drops(IN, Reason::Malformed);
        for version in [0_u8, 5, 15] {
            let mut bytes = web(f, protocol::TCP).bytes();
            bytes[14] = version << 4 | bytes[14] & 0x0f;
            list.raw_out(f, &std::format!("version {version}"), bytes).drops(OUT, Reason::Malformed);
        }
    }
    let f = Family::V6;
    let mapped = Address::from_v4([10, 2, 0, 1]).0;
    for (what, at) in [("source", 22), ("destination", 38)] {
        let (mut out, mut into) = (web(f, protocol::TCP).bytes(), back(f, protocol::TCP).bytes());
        out[at..at + 16].copy_from_slice(&mapped);
        into[at..at + 16].copy_from_slice(&mapped);
        let says = std::format!("an IPv4-mapped {what}");
        list.raw_out(f, &says, out).drops(OUT, Reason::Mapped);
        list.raw_into(f, &says, into).drops(IN, Reason::Mapped);
    }
}

pub(super) fn arp_claims(list: &mut List) {
    let f = Family::V4;
    let (own, other, gateway) = ([10, 1, 0, 1], [10, 1, 0, 2], [10, 9, 0, 1]);
    let mut add = |says: &str, bytes: Vec<u8>, reason: Option<Reason>| {
        let entry = list.raw_out(f, says, bytes);
        match reason {
            Some(reason) => drop(entry.drops(OUT, reason)),
            None => drop(entry.passes()),
        }
    };
    let mut reply = arp(MAC_1, MAC_1, own, other);
    reply[21] = 2;
    add("ARP: an answer for the own address", reply.clone(), None);
    add("ARP: the own address told to all", arp(MAC_1, MAC_1, own, own), None);
    add("ARP: another pod's address", arp(MAC_1, MAC_1, other, own), Some(Reason::Neighbour));
    add("ARP: the node's address", arp(MAC_1, MAC_1, gateway, own), Some(Reason::Neighbour));
    add("ARP: somebody else's hardware address in it", arp(MAC_1, MAC_2, own, own), Some(Reason::Neighbour));
    add("ARP: from somebody else's hardware address", arp(MAC_2, MAC_1, own, own), Some(Reason::SourceMac));
    let mut lie = reply.clone();
    lie[28..32].copy_from_slice(&gateway);
    add("ARP: an answer for the node's address", lie, Some(Reason::Neighbour));
    let mut odd = reply.clone();
    odd[18] = 8;
    add("ARP: other sizes of addresses", odd, Some(Reason::Malformed));
    let mut odd = reply.clone();
    odd[16..18].copy_from_slice(&[0x86, 0xdd]);
    add("ARP: not about IPv4", odd, Some(Reason::Malformed));
    add("ARP: cut", reply[..14 + 17].to_vec(), Some(Reason::Truncated));
    list.raw_into(f, "ARP: whatever it says", arp(MAC_2, MAC_2, gateway, own)).passes();
}

/// The same at an interface of which nobody knows whose it is.
pub(super) fn unknown_arp(list: &mut List) {
    let f = Family::V4;
    let asked = [10, 1, 0, 1];
    let hides = |t: &mut Tables| {
        t.endpoints.insert(nobody(f), Endpoint { pod: 3, ifindex: 0, mac: [0; 6], pad: [0; 2] });
    };
    for (who, sender, is_known) in [
        ("a pod of this node", [10, 1, 0, 2], true),
        ("a pod of another node", [10, 2, 0, 1], true),
        ("the node", [10, 9, 0, 1], true),
        ("nobody", [10, 7, 0, 1], false),
        ("a service", [10, 8, 0, 1], false),
        ("an address block", [10, 3, 0, 77], false),
    ] {
        let request = arp(MAC_2, MAC_2, sender, asked);
        let mut reply = request.clone();
        reply[21] = 2;
        let mut ieee_802 = reply.clone();
        ieee_802[15] = 6;
        let gratuitous = arp(MAC_2, MAC_2, sender, sender);
        for (what, bytes) in
            [("ask", request), ("answer", reply.clone()), ("answer as IEEE 802", ieee_802), ("tell all", gratuitous)]
        {
            let entry = list.raw_out(f, &std::format!("unknown interface, ARP: {what} as {who}"), bytes).at(IF_NEW);
            if is_known {
                entry.drops(OUT, Reason::Neighbour);
            }
        }
        let says = std::format!("unknown interface, sources not checked, ARP: answer as {who}");
        list.raw_out(f, &says, reply.clone()).at(IF_NEW).given(|t| t.config.flags = Config::NO_ANTISPOOF);
        reply[16..18].copy_from_slice(&[0x86, 0xdd]);
        list.raw_out(f, &std::format!("unknown interface, ARP about something else as {who}"), reply).at(IF_NEW);
    }
    let own = arp(MAC_2, MAC_2, [10, 7, 0, 1], asked);
    list.raw_out(f, "unknown interface, ARP: a pod that has none may be here", own.clone()).at(IF_NEW).given(hides);
    list.raw_out(f, "unknown interface, ARP: also where it is shut", own).at(IF_NEW).given(|t| (hides(t), shut(t)).0);
    let claim = arp(MAC_2, MAC_2, [10, 2, 0, 1], asked);
    let shut_claim =
        list.raw_out(f, "unknown interface that is shut, ARP: ask as a pod of another node", claim.clone());
    shut_claim.at(IF_NEW).given(shut).drops(OUT, Reason::Neighbour);
    list.raw_out(f, "unknown interface, ARP: cut", claim[..14 + 17].to_vec()).at(IF_NEW);
    list.raw_out(f, "unknown interface, ARP: a probe", arp(MAC_2, MAC_2, [0; 4], asked)).at(IF_NEW);
}
