//! Headers: fragments, options, extension chains, truncation, ICMP.

use super::*;

/// An IPv6 extension header of 8 bytes, without its first.
fn extension() -> Vec<u8> {
    vec![0, 1, 4, 0, 0, 0, 0]
}

fn fragment_header(offset: u16, more: bool, id: u8) -> (u8, Vec<u8>) {
    let word = offset << 3 | u16::from(more);
    let [high, low] = word.to_be_bytes();
    (protocol::FRAGMENT, vec![0, high, low, 0, 0, 0, id])
}

pub(super) fn headers(list: &mut List, f: Family) {
    let web = Build::udp((pod_1(f), 4000), (friend(f), 80), &[5; 24]);
    let piece = |offset: u16, more: bool, part: Vec<u8>| {
        let mut b = web.clone();
        b.transport = part;
        if f == Family::V4 {
            b.fragment = offset | if more { 0x2000 } else { 0 };
        } else {
            b.extensions = vec![fragment_header(offset, more, 7)];
        }
        b
    };
    let whole = web.transport.clone();
    list.out("a first fragment is judged by its ports", piece(0, true, whole[..16].to_vec())).flows(1);
    list.out("a first fragment without ports is dropped", piece(0, true, whole[..4].to_vec()))
        .drops(OUT, Reason::Truncated);
    list.out(
        "a later fragment of an unknown packet fits rows without ports only",
        piece(2, false, whole[16..].to_vec()),
    )
    .rejects(OUT, Reason::Denied)
    .unanswered();
    let to_block = piece(2, false, whole[16..].to_vec()).with(|b| b.to = in_block(f));
    list.out("which the block has", to_block).flows(0);
    list.out("a later fragment of a known packet has its ports", piece(2, false, whole[16..].to_vec()))
        .given(|t| {
            let protocol = u32::from(if f == Family::V4 { protocol::UDP } else { protocol::FRAGMENT });
            let key = crate::config::FragKey { source: pod_1(f), destination: friend(f), id: 7, protocol };
            let udp = u32::from(protocol::UDP);
            t.frags.insert(key, crate::config::FragPorts { source: 4000, destination: 80, protocol: udp });
        })
        .flows(1);
    let tcp = Build::tcp((pod_1(f), 4000), (friend(f), 80), SYN);
    let mut overlap = tcp.clone();
    if f == Family::V4 {
        overlap.fragment = 1;
        let options = tcp.clone().with(|b| b.options = vec![1, 1, 1, 1]);
        list.out("IPv4 options of an isolated pod are dropped", options).drops(OUT, Reason::IpOptions);
        let other = tcp.clone().with(|b| (b.options, b.from, b.from_mac) = (vec![1; 8], pod_2(f), MAC_2));
        list.out("of another pod they pass", other).at(IF_2).passes();
        let mut long = tcp.bytes();
        long[16..18].copy_from_slice(&[0, 200]);
        list.add("V4: a length beyond the packet is dropped", Hook::PodOut, long).drops(OUT, Reason::Truncated);
    } else {
        overlap.extensions = vec![fragment_header(1, false, 7)];
        for count in 1..=6 {
            let chain = tcp.clone().with(|b| b.extensions = vec![(protocol::DESTINATION_OPTIONS, extension()); count]);
            list.out("extension headers are stepped over", chain).flows(1);
        }
        let chain = tcp.clone().with(|b| b.extensions = vec![(protocol::HOP_BY_HOP, extension()); 7]);
        list.out("seven are too many", chain).drops(OUT, Reason::Extensions);
        let ah = (protocol::AUTHENTICATION, vec![4, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
        list.out("an authentication header is stepped over", tcp.clone().with(|b| b.extensions = vec![ah])).flows(1);
        let mut routing = extension();
        routing[2] = 1;
        let route = tcp.clone().with(|b| b.extensions = vec![(protocol::ROUTING, routing)]);
        list.out("a routing header with hops to go is dropped", route).drops(OUT, Reason::Extensions);
        let mut done = extension();
        done[2] = 0;
        let route = tcp.clone().with(|b| b.extensions = vec![(protocol::ROUTING, done)]);
        list.out("one that is done is stepped over", route).flows(1);
        let mut long = extension();
        long[0] = 30;
        let chain = tcp.clone().with(|b| b.extensions = vec![(protocol::DESTINATION_OPTIONS, long)]);
        list.out("an extension header longer than the packet", chain).drops(OUT, Reason::Truncated);
    }
    list.out("a fragment that overwrites TCP's flags is dropped", overlap).drops(OUT, Reason::Fragment);
    let short = Build::new(pod_1(f), friend(f), protocol::TCP, tcp.transport[..16].to_vec());
    list.out("a TCP header that is cut is dropped", short).drops(OUT, Reason::Truncated);
    let short = Build::new(pod_1(f), friend(f), protocol::UDP, vec![0; 7]);
    list.out("a UDP header that is cut is dropped", short).drops(OUT, Reason::Truncated);
    let short = Build::new(friend(f), pod_1(f), protocol::SCTP, vec![0; 11]);
    list.into("an SCTP header that is cut is dropped", short).drops(IN, Reason::Truncated);
}

pub(super) fn icmp_cases(list: &mut List) {
    for f in Family::BOTH {
        let (ours, theirs) = (pod_1(f), stranger(f));
        let (request, reply) =
            if f == Family::V4 { (icmp::ECHO, icmp::ECHO_REPLY) } else { (icmp::ECHO_6, icmp::ECHO_REPLY_6) };
        let entries = usize::from(f == Family::V4);
        list.out("echo requests pass out", Build::echo(ours, theirs, request, 77)).flows(entries);
        list.into("echo requests pass in", Build::echo(theirs, ours, request, 77)).flows(entries);
        let (unreachable, exceeded, problem) = if f == Family::V4 {
            (icmp::UNREACHABLE, icmp::TIME_EXCEEDED, icmp::PARAMETER_PROBLEM)
        } else {
            (icmp::UNREACHABLE_6, icmp::TIME_EXCEEDED_6, icmp::PARAMETER_PROBLEM_6)
        };
        for kind in [unreachable, exceeded] {
            list.into("errors pass in", Build::icmp(theirs, ours, kind, 1, &[0; 32])).flows(0);
            list.out("errors pass out", Build::icmp(ours, theirs, kind, 1, &[0; 32])).flows(0);
        }
        let mut about = vec![problem];
        if f == Family::V6 {
            about.push(icmp::TOO_BIG_6);
        }
        for kind in about {
            let sent = Build::udp((ours, 4000), (theirs, 53), b"query").network();
            let got = Build::udp((theirs, 53), (ours, 4000), b"query").network();
            let error = |from, to, inner: &[u8]| {
                let mut rest = vec![0; 4];
                rest.extend_from_slice(inner);
                Build::icmp(from, to, kind, 0, &rest)
            };
            let known = |t: &mut Tables| {
                t.flows.insert(key((ours, 4000), (theirs, 53), protocol::UDP), live(t, Flow::FROM_POD));
            };
            let router = nobody(f);
            list.into("an error about a known flow passes in", error(router, ours, &sent)).given(known).flows(1);
            list.out("an error about a known flow passes out", error(ours, theirs, &got)).given(known).flows(1);
            list.into("an error about an unknown flow does not", error(router, ours, &sent))
                .rejects(IN, Reason::Denied)
                .unanswered();
            list.into("nor one that quotes too little", error(router, ours, &sent[..20]))
                .given(known)
                .rejects(IN, Reason::Denied)
                .unanswered();
        }
        if f == Family::V6 {
            list.into("echo replies pass", Build::echo(theirs, ours, reply, 77)).flows(0);
            continue;
        }
        list.into("an echo reply without its request does not pass", Build::echo(theirs, ours, reply, 77))
            .rejects(IN, Reason::Denied);
        list.into("with it it does", Build::echo(theirs, ours, reply, 77))
            .given(|t| {
                t.flows.insert(key((ours, 77), (theirs, 77), protocol::ICMP), live(t, Flow::FROM_POD));
            })
            .flows(1);
        list.into("with another's it does not", Build::echo(theirs, ours, reply, 78))
            .given(|t| {
                t.flows.insert(key((ours, 77), (theirs, 77), protocol::ICMP), live(t, Flow::FROM_POD));
            })
            .rejects(IN, Reason::Denied);
        list.into("a timestamp request is like any packet without ports", Build::icmp(theirs, ours, 13, 0, &[0; 16]))
            .rejects(IN, Reason::Denied);
    }
}
