//! Headers that end early, state wrong lengths, or carry more than they should.

use std::format;

use super::*;

const PORTS: [u8; 3] = [protocol::TCP, protocol::UDP, protocol::SCTP];

pub(super) fn truncated(list: &mut List, f: Family) {
    let network = if f == Family::V4 { 20 } else { 40 };
    for keep in [network / 2, network - 1, network, network + 7, network + 19] {
        let cut = |packet: Build| {
            let mut bytes = packet.bytes();
            bytes.truncate(14 + keep);
            bytes
        };
        let says = format!("the frame ends after {keep} bytes");
        list.raw_out(f, &says, cut(web(f, protocol::TCP))).drops(OUT, Reason::Truncated);
        list.raw_into(f, &says, cut(back(f, protocol::TCP))).drops(IN, Reason::Truncated);
    }
    for (protocol, lengths) in [(protocol::TCP, [0, 8, 19]), (protocol::UDP, [0, 4, 7]), (protocol::SCTP, [0, 8, 11])] {
        for length in lengths {
            let says = format!("a {} header of {length} bytes", name(protocol));
            let cut = |mut b: Build| {
                b.transport.truncate(length);
                b
            };
            list.out(&says, cut(web(f, protocol))).drops(OUT, Reason::Truncated);
            list.into(&says, cut(back(f, protocol))).drops(IN, Reason::Truncated);
            let padded = cut(web(f, protocol)).with(|b| b.padding = 46);
            list.out(&format!("{says}, padded"), padded).drops(OUT, Reason::Truncated);
        }
    }
    let (echo, far) = (if f == Family::V4 { icmp::ECHO } else { icmp::ECHO_6 }, stranger(f));
    for length in [0, 4, 7] {
        let short = Build::echo(pod_1(f), far, echo, 1).with(|b| b.transport.truncate(length));
        list.out(&format!("an ICMP header of {length} bytes"), short).drops(OUT, Reason::Truncated);
    }
}

pub(super) fn lengths(list: &mut List, f: Family) {
    let empty = |mut b: Build| {
        b.transport.truncate(8);
        b.transport[4..6].copy_from_slice(&[0, 8]);
        b
    };
    list.out("UDP without data", empty(web(f, protocol::UDP))).flows(1);
    list.into("UDP without data", empty(back(f, protocol::UDP))).flows(1);
    for stated in [0_u16, 7, 0xffff] {
        let lying = |mut b: Build| {
            b.transport[4..6].copy_from_slice(&stated.to_be_bytes());
            b
        };
        let says = format!("UDP that states a length of {stated}: the receiver's affair");
        list.out(&says, lying(web(f, protocol::UDP))).flows(1);
        list.into(&says, lying(back(f, protocol::UDP))).flows(1);
    }
    let stating = |length: u16| {
        let mut bytes = web(f, protocol::TCP).bytes();
        let at = if f == Family::V4 { 16 } else { 18 };
        bytes[at..at + 2].copy_from_slice(&length.to_be_bytes());
        bytes
    };
    let longer = |f: Family| if f == Family::V4 { 41 } else { 21 };
    list.raw_out(f, "a length beyond the frame", stating(longer(f))).drops(OUT, Reason::Truncated);
    list.raw_out(f, "the longest length in a short frame", stating(0xffff)).drops(OUT, Reason::Truncated);
    if f == Family::V4 {
        list.raw_out(f, "a length of 0 in a short frame", stating(0)).drops(OUT, Reason::Malformed);
        list.raw_out(f, "a length less than the header's", stating(19)).drops(OUT, Reason::Malformed);
        for words in [0, 4, 15] {
            let mut bytes = web(f, protocol::TCP).bytes();
            bytes[14] = 0x40 | words;
            let entry = list.raw_out(f, &format!("a header of {words} words"), bytes);
            entry.drops(OUT, Reason::Malformed);
        }
    } else {
        list.raw_out(f, "a length of 0 without a jumbo option", stating(0)).drops(OUT, Reason::Truncated);
        let jumbo = vec![0, 0xc2, 4, 0, 1, 0, 0];
        let jumbo = web(f, protocol::TCP).with(|b| b.extensions = vec![(protocol::HOP_BY_HOP, jumbo)]);
        let mut bytes = jumbo.bytes();
        bytes[18..20].fill(0);
        list.raw_out(f, "a jumbo option in a short frame", bytes).drops(OUT, Reason::Malformed);
    }
    let padded = web(f, protocol::TCP).with(|b| b.padding = 600);
    list.out("600 bytes behind the packet", padded).flows(1);
}

/// Nobody here looks at sums: whoever is to be reached does, and a packet that is thrown away reaches nobody.
pub(super) fn checksums(list: &mut List, f: Family) {
    for (protocol, at) in [(protocol::TCP, 16), (protocol::UDP, 6), (protocol::SCTP, 8)] {
        let wrong = |mut b: Build| {
            b.transport[at] ^= 0x55;
            b
        };
        let says = format!("a wrong {} checksum: the receiver's affair", name(protocol));
        list.out(&says, wrong(web(f, protocol))).flows(1);
        list.into(&says, wrong(back(f, protocol))).flows(1);
        let denied = wrong(web(f, protocol)).with(|b| b.transport[3] = 81);
        list.out(&format!("a wrong {} checksum to a port that is not allowed", name(protocol)), denied)
            .rejects(OUT, Reason::Denied);
    }
    let none = web(f, protocol::UDP).with(|b| b.transport[6..8].fill(0));
    list.out("UDP without a checksum", none).flows(1);
    if f == Family::V4 {
        let mut bytes = web(f, protocol::TCP).bytes();
        bytes[24] ^= 0x55;
        list.raw_out(f, "a wrong header checksum: the receiver's affair", bytes).flows(1);
    }
}

pub(super) fn options(list: &mut List) {
    let f = Family::V4;
    let all: [(&str, Vec<u8>); 10] = [
        ("no-operation", vec![1; 4]),
        ("end of list", vec![0; 4]),
        ("record route", vec![7, 7, 4, 0, 0, 0, 0, 0]),
        ("loose source route", vec![131, 7, 4, 10, 2, 0, 2, 0]),
        ("strict source route", vec![137, 7, 4, 10, 2, 0, 2, 0]),
        ("timestamp", vec![68, 8, 5, 0, 0, 0, 0, 0]),
        ("router alert", vec![148, 4, 0, 0]),
        ("length 0", vec![148, 0, 0, 0]),
        ("length beyond the header", vec![7, 40, 4, 0]),
        ("40 bytes", vec![1; 40]),
    ];
    for (what, options) in all {
        for protocol in PORTS {
            let says = format!("{} with options: {what}", name(protocol));
            let options = options.clone();
            let with = |b: Build| b.with(|b| b.options = options);
            if protocol == protocol::TCP {
                list.out(&says, with.clone()(web(f, protocol))).drops(OUT, Reason::IpOptions);
                let open = with.clone()(web(f, protocol)).with(|b| (b.from, b.from_mac) = (pod_2(f), MAC_2));
                list.out(&format!("{says}, of a pod that nothing isolates"), open).at(IF_2).passes();
            }
            list.into(&says, with(back(f, protocol))).drops(IN, Reason::IpOptions);
        }
    }
    // What is masqueraded behind a service must not become the node.
    let hidden = Build::tcp((pod_2(f), 4000), (service(f), 443), SYN);
    let hidden = hidden.with(|b| (b.from_mac, b.options) = (MAC_2, vec![1; 4]));
    list.out("options to a service, of a pod that nothing isolates: noted who it is", hidden).at(IF_2).notes(2);
}

/// An extension header of 8 bytes without its first.
fn padding() -> Vec<u8> {
    vec![0, 1, 4, 0, 0, 0, 0]
}

pub(super) fn extensions(list: &mut List) {
    let f = Family::V6;
    let chain = |kinds: &[u8]| {
        let kinds: Vec<_> = kinds.iter().map(|kind| (*kind, padding())).collect();
        move |b: Build| b.with(|b| b.extensions = kinds)
    };
    let of = |kind: u8, rest: &[u8]| {
        let rest = rest.to_vec();
        move |b: Build| b.with(|b| b.extensions = vec![(kind, rest)])
    };
    use protocol::{AUTHENTICATION, DESTINATION_OPTIONS, HOP_BY_HOP, ROUTING};
    let ah = [4, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    let good: [(&str, Build); 7] = [
        ("hop-by-hop options", chain(&[HOP_BY_HOP])(web(f, protocol::TCP))),
        ("a router alert", of(HOP_BY_HOP, &[0, 5, 2, 0, 0, 1, 0])(web(f, protocol::TCP))),
        ("destination options twice", chain(&[DESTINATION_OPTIONS, DESTINATION_OPTIONS])(web(f, protocol::TCP))),
        ("hop-by-hop options at the end", chain(&[DESTINATION_OPTIONS, HOP_BY_HOP])(web(f, protocol::TCP))),
        ("a routing header that is done", of(ROUTING, &[0, 4, 0, 0, 0, 0, 0])(web(f, protocol::TCP))),
        ("an authentication header", of(AUTHENTICATION, &ah)(web(f, protocol::UDP))),
        ("six headers", chain(&[DESTINATION_OPTIONS; 6])(web(f, protocol::SCTP))),
    ];
    for (what, packet) in good {
        list.out(&format!("{what}: judged by what follows"), packet.clone()).flows(1);
        let denied = packet.with(|b| b.to = stranger(f));
        list.out(&format!("{what}, to somebody who is not allowed"), denied).rejects(OUT, Reason::Denied).unanswered();
    }
    let bad: [(&str, Build, Build, Reason); 6] = {
        let both = |change: &dyn Fn(Build) -> Build| (change(web(f, protocol::TCP)), change(back(f, protocol::TCP)));
        let (a, b) = both(&|b| of(ROUTING, &[0, 0, 1, 0, 0, 0, 0])(b));
        let (c, d) = both(&|b| of(ROUTING, &[0, 2, 1, 0, 0, 0, 0])(b));
        let (e, g) = both(&|b| chain(&[DESTINATION_OPTIONS; 7])(b));
        let (h, i) = both(&|b| of(DESTINATION_OPTIONS, &[200, 1, 4, 0, 0, 0, 0])(b));
        let (j, k) = both(&|b| of(HOP_BY_HOP, &[0, 1])(b).with(|b| b.transport.clear()));
        let (l, m) = both(&|b| of(AUTHENTICATION, &[255, 0, 0, 0, 0, 0, 0])(b));
        [
            ("routing type 0 with hops to go", a, b, Reason::Extensions),
            ("routing type 2 with hops to go", c, d, Reason::Extensions),
            ("seven headers", e, g, Reason::Extensions),
            ("a header longer than the packet", h, i, Reason::Truncated),
            ("a header that is cut", j, k, Reason::Truncated),
            ("an authentication header longer than the packet", l, m, Reason::Truncated),
        ]
    };
    for (what, out, into, reason) in bad {
        list.out(what, out).drops(OUT, reason);
        list.into(what, into).drops(IN, reason);
    }
}

pub(super) fn portless(list: &mut List, f: Family) {
    for (number, what) in [
        (4, "IPv4 in IP"),
        (41, "IPv6 in IP"),
        (47, "GRE"),
        (50, "encrypted (ESP)"),
        (59, "no next header"),
        (103, "PIM"),
        (135, "mobility header"),
        (139, "HIP"),
        (140, "shim6"),
        (255, "protocol 255"),
    ] {
        let packet = |from, to| Build::new(from, to, number, vec![0x45; 40]);
        list.out(&format!("{what}: as no port is allowed, but some are"), packet(pod_1(f), friend(f)))
            .rejects(OUT, Reason::Denied);
        list.into(&format!("{what}: as no port is allowed, but some are"), packet(friend(f), pod_1(f)))
            .rejects(IN, Reason::Denied);
        list.out(&format!("{what}: where all ports are allowed"), packet(pod_1(f), in_block(f))).flows(1);
    }
}

/// No flag opens a way past the tables: what belongs to no live flow is judged as a first packet.
pub(super) fn tcp_flags(list: &mut List, f: Family) {
    const FIN: u8 = Tcp::FIN;
    const RST: u8 = Tcp::RST;
    for (what, flags) in [
        ("no flags", 0),
        ("FIN", FIN),
        ("Xmas: FIN, PSH, URG", 0x29),
        ("SYN and FIN", SYN | FIN),
        ("SYN and RST", SYN | RST),
        ("SYN and ACK", SYN | ACK),
        ("RST", RST),
        ("ACK", ACK),
        ("all flags", 0xff),
    ] {
        list.out(&format!("{what}: allowed"), Build::tcp((pod_1(f), 4000), (friend(f), 80), flags)).flows(1);
        list.out(&format!("{what}: not allowed"), Build::tcp((pod_1(f), 4000), (friend(f), 81), flags))
            .rejects(OUT, Reason::Denied)
            .flows(0);
        list.into(&format!("{what}: not allowed"), Build::tcp((stranger(f), 4000), (pod_1(f), 80), flags))
            .rejects(IN, Reason::Denied)
            .flows(0);
    }
    for (what, flags) in [("SYN", SYN), ("SYN and FIN", SYN | FIN), ("SYN, PSH, URG", SYN | 0x28)] {
        let (pod, far) = ((pod_1(f), 4000), (stranger(f), 443));
        list.into(&format!("{what} from the one who answered a live flow"), Build::tcp(far, pod, flags))
            .given(|t| {
                t.flows.insert(key(pod, far, protocol::TCP), live(t, Flow::FROM_POD | Flow::REPLIED));
            })
            .rejects(IN, Reason::Denied);
    }
}
