//! Fragments: those that would write over ports, those without a beginning, and those that hide one.

use std::format;

use super::*;
use crate::config::{FragKey, FragPorts};

fn piece(b: Build, offset: u16, more: bool, part: &[u8]) -> Build {
    let v4 = b.from.is_v4();
    b.with(|b| {
        b.transport = part.to_vec();
        if v4 {
            b.fragment = offset | if more { 0x2000 } else { 0 };
        } else {
            let [high, low] = (offset << 3 | u16::from(more)).to_be_bytes();
            b.extensions.push((protocol::FRAGMENT, vec![0, high, low, 0, 0, 0, 7]));
        }
    })
}

fn frag_key(f: Family, from: Address, to: Address, protocol: u8) -> FragKey {
    let protocol = if f == Family::V4 { protocol } else { protocol::FRAGMENT };
    FragKey { source: from, destination: to, id: 7, protocol: u32::from(protocol) }
}

/// The first fragment of `web` was seen.
fn began(f: Family, protocol: u8) -> impl Fn(&mut Tables) {
    move |t| {
        let key = frag_key(f, pod_1(f), friend(f), protocol);
        t.frags.insert(key, FragPorts { source: 4000, destination: 80, protocol: u32::from(protocol) });
        let key = frag_key(f, friend(f), pod_1(f), protocol);
        t.frags.insert(key, FragPorts { source: 4000, destination: 80, protocol: u32::from(protocol) });
    }
}

pub(super) fn fragments(list: &mut List, f: Family) {
    for protocol in [protocol::TCP, protocol::UDP, protocol::SCTP] {
        let (out, into) = (web(f, protocol), back(f, protocol));
        let whole = out.transport.clone();
        let says = |text: &str| format!("{}: {text}", name(protocol));
        list.out(&says("a first fragment that is allowed"), piece(out.clone(), 0, true, &whole)).flows(1);
        let denied = piece(out.clone(), 0, true, &whole).with(|b| b.transport[3] = 81);
        list.out(&says("a first fragment of a port that is not allowed"), denied.clone())
            .rejects(OUT, Reason::Denied)
            .unanswered();
        list.out(&says("the same over an allowed one with its number"), denied)
            .given(began(f, protocol))
            .rejects(OUT, Reason::Denied)
            .unanswered();
        for (what, needed) in [("nothing", 0), ("half of the ports", 2)] {
            list.out(
                &says(&format!("a tiny first fragment with {what}")),
                piece(out.clone(), 0, true, &whole[..needed]),
            )
            .drops(OUT, Reason::Truncated);
        }
        let tail = &whole[16..];
        list.out(&says("a later fragment, the first one not seen"), piece(out.clone(), 2, false, tail))
            .rejects(OUT, Reason::Denied)
            .unanswered();
        list.into(&says("a later fragment, the first one not seen"), piece(into.clone(), 2, true, tail))
            .rejects(IN, Reason::Denied)
            .unanswered();
        let far = piece(out.clone(), 0x1fff, false, tail);
        list.out(&says("a fragment that ends beyond 65,535 bytes, the first one not seen"), far)
            .rejects(OUT, Reason::Denied)
            .unanswered();
        list.out(&says("a later fragment of an allowed one"), piece(out.clone(), 2, false, tail))
            .given(began(f, protocol))
            .flows(1);
        list.out(&says("a later fragment that overlaps another: no ports there"), piece(out.clone(), 2, true, tail))
            .given(began(f, protocol))
            .flows(1);
        let over = |b: Build| piece(b, 1, true, &whole[8..]);
        if protocol == protocol::TCP {
            list.out("TCP: a later fragment over the flags", over(out.clone()))
                .given(began(f, protocol))
                .drops(OUT, Reason::Fragment);
            list.into("TCP: a later fragment over the flags", over(into))
                .given(began(f, protocol))
                .drops(IN, Reason::Fragment);
            list.out("TCP: a tiny first fragment without the flags", piece(out, 0, true, &whole[..8]))
                .drops(OUT, Reason::Truncated);
        } else {
            list.out(&says("a later fragment right behind the ports"), over(out)).given(began(f, protocol)).flows(1);
        }
    }
    // Who sends a header in pieces to a service, where it is put together again, is not to become the node.
    let tiny = piece(Build::tcp((pod_2(f), 4000), (service(f), 443), SYN), 0, true, &[0; 8]);
    list.out(
        "a tiny first fragment to a service, of a pod that nothing isolates: noted who it is",
        tiny.with(|b| b.from_mac = MAC_2),
    )
    .at(IF_2)
    .notes(2);
    let (kind, number) = if f == Family::V4 { (icmp::ECHO, 1) } else { (icmp::ECHO_6, 58) };
    let echo = Build::echo(pod_1(f), stranger(f), kind, 77);
    let part = echo.transport.clone();
    list.out("an echo request in fragments, the first", piece(echo.clone(), 0, true, &part))
        .flows(usize::from(f == Family::V4));
    list.out("the later ones", piece(echo.clone(), 2, false, &part)).given(move |t| {
        let key = frag_key(f, pod_1(f), stranger(f), number);
        let passes = if f == Family::V4 { 0 } else { FragPorts::PASSES };
        let protocol = u32::from(number) | passes;
        t.frags.insert(
            key,
            FragPorts {
                source: 77 * u16::from(f == Family::V4),
                destination: 77 * u16::from(f == Family::V4),
                protocol,
            },
        );
        if f == Family::V4 {
            t.flows.insert(super::super::key((pod_1(f), 77), (stranger(f), 77), number), live(t, Flow::FROM_POD));
        }
    });
    list.out("the later ones, the first one not seen", piece(echo, 2, false, &part))
        .rejects(OUT, Reason::Denied)
        .unanswered();
    if f == Family::V4 {
        let odd = web(f, protocol::UDP).with(|b| b.fragment = 0x8000);
        list.out("the reserved flag", odd).flows(1);
        let odd = web(f, protocol::UDP).with(|b| b.fragment = 0x6000);
        list.out("\"don't fragment\" on a first fragment", odd).flows(1);
    }
}

pub(super) fn of_ipv6(list: &mut List) {
    let f = Family::V6;
    let options = || vec![(protocol::DESTINATION_OPTIONS, vec![0, 1, 4, 0, 0, 0, 0])];
    for protocol in [protocol::TCP, protocol::UDP] {
        let (out, whole) = (web(f, protocol), web(f, protocol).transport);
        let says = |text: &str| format!("{}: {text}", name(protocol));
        list.out(&says("a fragment that is the whole packet"), piece(out.clone(), 0, false, &whole)).flows(1);
        let before = out.clone().with(|b| b.extensions = options());
        list.out(&says("options in front of the fragment header"), piece(before, 0, true, &whole)).flows(1);
        let behind = piece(out.clone(), 0, true, &whole).with(|b| b.extensions.extend(options()));
        list.out(&says("options behind it: a later fragment could write over the ports"), behind)
            .drops(OUT, Reason::Extensions);
        let into = piece(back(f, protocol), 0, true, &whole).with(|b| b.extensions.extend(options()));
        list.into(&says("options behind it: a later fragment could write over the ports"), into)
            .drops(IN, Reason::Extensions);
        let twice = piece(piece(out, 0, true, &whole), 0, true, &whole);
        list.out(&says("two fragment headers"), twice).drops(OUT, Reason::Extensions);
    }
}
