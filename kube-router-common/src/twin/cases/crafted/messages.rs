//! ICMP: errors about what never was, and neighbour discovery that claims what is others'.

use std::format;

use super::*;

pub(super) fn errors(list: &mut List, f: Family) {
    let (ours, far, router) = (pod_1(f), stranger(f), nobody(f));
    let v4 = f == Family::V4;
    let sent = Build::udp((ours, 4000), (far, 53), b"query");
    let error = |kind: u8, inner: &[u8]| {
        let mut rest = vec![0; 4];
        rest.extend_from_slice(inner);
        Build::icmp(router, ours, kind, 0, &rest)
    };
    let known = |t: &mut Tables| {
        t.flows.insert(key((ours, 4000), (far, 53), protocol::UDP), live(t, Flow::FROM_POD));
    };
    let foreign = Build::udp((far, 9), (router, 9), b"else").network();
    let later = if v4 {
        sent.clone().with(|b| b.fragment = 4).network()
    } else {
        sent.clone().with(|b| b.extensions = vec![(protocol::FRAGMENT, vec![0, 0, 32, 0, 0, 0, 7])]).network()
    };
    let optional = if v4 {
        sent.clone().with(|b| b.options = vec![1; 4]).network()
    } else {
        sent.clone().with(|b| b.extensions = vec![(protocol::HOP_BY_HOP, vec![0, 1, 4, 0, 0, 0, 0])]).network()
    };
    let sent = sent.network();
    let header = if v4 { 20 } else { 40 };
    let inners: [(&str, &[u8]); 7] = [
        ("what the pod sent", &sent),
        ("somebody else's packet", &foreign),
        ("nothing", &[]),
        ("half of a header", &sent[..header / 2]),
        ("a header alone", &sent[..header]),
        ("a later fragment", &later),
        ("a packet with options", &optional),
    ];
    let (always, related): (&[_], &[_]) = if v4 {
        (
            &[(icmp::UNREACHABLE, "unreachable"), (icmp::TIME_EXCEEDED, "time exceeded")],
            &[(icmp::PARAMETER_PROBLEM, "parameter problem")],
        )
    } else {
        (
            &[(icmp::UNREACHABLE_6, "unreachable"), (icmp::TIME_EXCEEDED_6, "time exceeded")],
            &[(icmp::TOO_BIG_6, "too big"), (icmp::PARAMETER_PROBLEM_6, "parameter problem")],
        )
    };
    for (what, inner) in inners {
        for (kind, says) in always {
            list.into(&format!("{says} about {what}: always, as in the original"), error(*kind, inner)).given(known);
        }
        for (kind, says) in related {
            let entry = list.into(&format!("{says} about {what}"), error(*kind, inner)).given(known);
            if what != "what the pod sent" {
                entry.rejects(IN, Reason::Denied).unanswered();
            }
        }
    }
    let others: &[(u8, &str)] = if v4 {
        &[(5, "redirect"), (9, "router advertisement"), (13, "timestamp"), (17, "address mask"), (42, "extended echo")]
    } else {
        &[
            (icmp::REDIRECT_6, "redirect that is not of this link"),
            (139, "node information"),
            (141, "inverse solicitation"),
            (200, "private"),
            (255, "reserved"),
        ]
    };
    for (kind, what) in others {
        let entry = list.into(&format!("{what}: like any packet without ports"), error(*kind, &sent)).given(known);
        let entry = entry.rejects(IN, Reason::Denied);
        // No errors about errors, nor about what may be one.
        if v4 && *kind != 13 {
            entry.unanswered();
        }
    }
}

/// Neighbour discovery at an interface of which nobody knows whose it is.
pub(super) fn unknown_neighbours(list: &mut List) {
    let f = Family::V6;
    let mut link = [0; 16];
    (link[0], link[1], link[15]) = (0xfe, 0x80, 9);
    let link = Address(link);
    let say = |kind: u8, from: Address, target: Address| {
        let mut rest = vec![0x60, 0, 0, 0];
        rest.extend_from_slice(&target.0);
        Build::icmp(from, pod_1(f), kind, 0, &rest).with(|b| b.hop_limit = 255)
    };
    let options = |count: usize| {
        move |b: &mut Build| b.extensions = vec![(protocol::DESTINATION_OPTIONS, vec![0, 1, 4, 0, 0, 0, 0]); count]
    };
    for (who, target, is_known) in [
        ("a pod of this node", pod_2(f), true),
        ("a pod of another node", friend(f), true),
        ("the node", node(f), true),
        ("nobody", nobody(f), false),
        ("a link-local address", link, false),
    ] {
        for (source, from) in [("link-local", link), ("unknown", in_block(f))] {
            let advert = say(icmp::NEIGHBOUR_ADVERT, from, target);
            let says = format!("unknown interface: advertisement of {who}, {source} source");
            for (says, advert) in
                [(says.clone(), advert.clone()), (format!("{says}, behind options"), advert.clone().with(options(1)))]
            {
                let entry = list.out(&says, advert).at(IF_NEW);
                if is_known {
                    entry.drops(OUT, Reason::Neighbour);
                }
            }
            let unchecked = list.out(&format!("{says}, not checked"), advert.clone()).at(IF_NEW);
            unchecked.given(|t| t.config.flags = Config::NO_ANTISPOOF);
            list.out(&format!("{says}, from afar"), advert.with(|b| b.hop_limit = 64)).at(IF_NEW);
        }
    }
    let many = say(icmp::NEIGHBOUR_ADVERT, in_block(f), friend(f)).with(options(7));
    list.out("unknown interface: an advertisement behind too many options", many)
        .at(IF_NEW)
        .drops(OUT, Reason::Extensions);
    let cut = say(icmp::NEIGHBOUR_ADVERT, link, friend(f)).with(|b| b.transport.truncate(20));
    list.out("unknown interface: an advertisement that is cut", cut).at(IF_NEW).drops(OUT, Reason::Truncated);
    for (kind, what) in [(icmp::NEIGHBOUR_SOLICIT, "neighbour"), (icmp::ROUTER_SOLICIT, "router")] {
        let ask = |from| say(kind, from, pod_1(f));
        let says = |who: &str| format!("unknown interface: {what} solicitation of {who}");
        list.out(&says("the node"), ask(node(f))).at(IF_NEW).drops(OUT, Reason::Neighbour);
        list.out(&says("a pod of another node"), ask(friend(f))).at(IF_NEW).drops(OUT, Reason::Neighbour);
        list.out(&says("nobody"), ask(nobody(f))).at(IF_NEW);
        list.out(&says("a link-local address"), ask(link)).at(IF_NEW);
        list.out(&says("no address"), ask(Address([0; 16]))).at(IF_NEW);
    }
    let own = say(icmp::NEIGHBOUR_ADVERT, nobody(f), nobody(f));
    list.out("unknown interface: advertisement of a pod that policies name and that may be here", own)
        .at(IF_NEW)
        .given(|t| {
            t.peers.insert(nobody(f), Peer { class: FRIEND, flags: 0 });
        });
}

pub(super) fn neighbours(list: &mut List) {
    let f = Family::V6;
    let link = |last: u8| {
        let mut bytes = [0; 16];
        (bytes[0], bytes[1], bytes[15]) = (0xfe, 0x80, last);
        Address(bytes)
    };
    let all = Address([0xff, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1]);
    let say = |kind: u8, from: Address, target: Address| {
        let mut rest = vec![0x60, 0, 0, 0];
        rest.extend_from_slice(&target.0);
        Build::icmp(from, all, kind, 0, &rest).with(|b| b.hop_limit = 255)
    };
    for from in [pod_1(f), link(9)] {
        let who = if from.is_link_local() { "link-local source" } else { "own source" };
        list.out(&format!("advertisement of the own address, {who}"), say(icmp::NEIGHBOUR_ADVERT, from, pod_1(f)));
        for (what, target) in [("another pod", pod_2(f)), ("the node", node(f)), ("nobody", nobody(f))] {
            let advert = say(icmp::NEIGHBOUR_ADVERT, from, target);
            list.out(&format!("advertisement of {what}, {who}"), advert.clone()).drops(OUT, Reason::Neighbour);
            let hidden =
                advert.with(|b| b.extensions = vec![(protocol::DESTINATION_OPTIONS, vec![0, 1, 4, 0, 0, 0, 0])]);
            list.out(&format!("advertisement of {what} behind options, {who}"), hidden).drops(OUT, Reason::Neighbour);
        }
        let cut = say(icmp::NEIGHBOUR_ADVERT, from, pod_1(f)).with(|b| b.transport.truncate(20));
        list.out(&format!("an advertisement that is cut, {who}"), cut).drops(OUT, Reason::Truncated);
    }
    for (kind, what) in [(icmp::ROUTER_ADVERT, "router advertisement"), (icmp::REDIRECT_6, "redirect")] {
        list.out(&format!("a pod is no router: {what}"), say(kind, link(9), all)).drops(OUT, Reason::SourceAddress);
        let far = say(kind, link(8), all).with(|b| b.hop_limit = 64);
        list.into(&format!("{what} from afar"), far).rejects(IN, Reason::Denied).unanswered();
        list.into(&format!("{what} of a router on the link"), say(kind, link(8), all));
    }
    let echo = Build::echo(friend(f), nobody(f), icmp::ECHO_6, 1).with(|b| b.hop_limit = 255);
    list.into("an echo request with a full hop limit is no discovery, to a pod not yet known", echo)
        .at(IF_NEW)
        .given(shut)
        .rejects(IN, Reason::Unpublished);
}
