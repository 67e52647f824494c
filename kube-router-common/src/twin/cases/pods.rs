//! What a pod may send and get: frames, sources, verdicts.

use super::*;

pub(super) fn frames(list: &mut List) {
    let web = Build::tcp((pod_1(Family::V4), 4000), (friend(Family::V4), 80), SYN);
    let tagged = web.clone().with(|b| b.ethertype = 0x8100);
    list.out("a VLAN tag is dropped", tagged).drops(OUT, Reason::Vlan);
    let unknown = web.clone().with(|b| b.ethertype = 0x88b5);
    list.out("an unknown ethertype is dropped", unknown).drops(OUT, Reason::EtherType);
    let length = web.clone().with(|b| b.ethertype = 64);
    list.out("an 802.3 frame is dropped", length).drops(OUT, Reason::EtherType);
    let mut short = web.bytes();
    short.truncate(33);
    list.add("a frame that ends in the IPv4 header is dropped", Hook::PodOut, short).drops(OUT, Reason::Truncated);
    let six = Build::tcp((pod_1(Family::V6), 4000), (friend(Family::V6), 80), SYN).bytes();
    list.add("a frame that ends in the IPv6 header is dropped", Hook::PodOut, six[..50].to_vec())
        .drops(OUT, Reason::Truncated);
    let mut wrong = web.bytes();
    wrong[14] = 0x65;
    list.add("a wrong version is dropped", Hook::PodOut, wrong).drops(OUT, Reason::Malformed);
    let own = [10, 1, 0, 1];
    list.add("ARP of the pod passes", Hook::PodOut, arp(MAC_1, MAC_1, own, [10, 1, 0, 9])).passes();
    list.add("an ARP probe passes", Hook::PodOut, arp(MAC_1, MAC_1, [0; 4], own)).passes();
    list.add("ARP that claims another's address is dropped", Hook::PodOut, arp(MAC_1, MAC_1, [10, 1, 0, 2], own))
        .drops(OUT, Reason::Neighbour);
    list.add("ARP that claims another hardware address is dropped", Hook::PodOut, arp(MAC_1, MAC_2, own, own))
        .drops(OUT, Reason::Neighbour);
    list.add("ARP from another hardware address is dropped", Hook::PodOut, arp(MAC_2, MAC_1, own, own))
        .drops(OUT, Reason::SourceMac);
    list.add("ARP to a pod passes", Hook::PodIn, arp(MAC_2, MAC_2, [10, 1, 0, 2], own)).passes();
    let mapped = |host| {
        let mut bytes = [0; 16];
        bytes[10..].copy_from_slice(&[0xff, 0xff, 10, 2, 0, host]);
        bytes
    };
    let mut six = Build::tcp((pod_1(Family::V6), 4000), (friend(Family::V6), 80), SYN).bytes();
    six[38..54].copy_from_slice(&mapped(1));
    list.add("an IPv4-mapped destination is dropped", Hook::PodOut, six.clone()).drops(OUT, Reason::Mapped);
    list.add("an IPv4-mapped address into a pod is dropped", Hook::PodIn, six.clone()).drops(IN, Reason::Mapped);
    six[22..38].copy_from_slice(&mapped(1));
    list.add("an IPv4-mapped source is dropped", Hook::PodOut, six).drops(OUT, Reason::Mapped);
}

pub(super) fn sources(list: &mut List, f: Family) {
    let open = Build::tcp((pod_2(f), 4000), (stranger(f), 1), SYN).with(|b| b.from_mac = MAC_2);
    list.out("a pod that nothing isolates sends anywhere, without an entry", open.clone()).at(IF_2).flows(0);
    list.out("but not as another pod", Build::tcp((pod_1(f), 4000), (friend(f), 80), SYN).with(|b| b.from_mac = MAC_2))
        .at(IF_2)
        .drops(OUT, Reason::SourceAddress);
    let forged = Build::tcp((nobody(f), 4000), (friend(f), 80), SYN);
    list.out("a source that is nobody's is dropped", forged.clone()).drops(OUT, Reason::SourceAddress);
    list.out("unless that is switched off; policies hold", forged.clone())
        .given(|t| t.config.flags = Config::NO_ANTISPOOF)
        .passes()
        .flows(1);
    list.out("a source switched off does not become the node", Build::tcp((node(f), 9), (stranger(f), 1), SYN))
        .given(|t| t.config.flags = Config::NO_ANTISPOOF)
        .rejects(OUT, Reason::Denied);
    let mac = Build::tcp((pod_1(f), 4000), (friend(f), 80), SYN).with(|b| b.from_mac = MAC_2);
    list.out("a foreign hardware address is dropped", mac.clone()).drops(OUT, Reason::SourceMac);
    list.out("unless that is switched off", mac).given(|t| t.config.flags = Config::NO_ANTISPOOF).passes();
    if f == Family::V4 {
        let dhcp = Build::udp((Address::from_v4([0; 4]), 68), (Address::from_v4([255; 4]), 67), &[1; 30]);
        list.out("DHCP of a pod without an address passes", dhcp.clone()).passes();
        let other = Build::udp((Address::from_v4([0; 4]), 68), (Address::from_v4([255; 4]), 53), &[1; 30]);
        list.out("anything else without an address does not", other).drops(OUT, Reason::SourceAddress);
        list.out("nor from another hardware address", dhcp.with(|b| b.from_mac = MAC_2)).drops(OUT, Reason::SourceMac);
        return;
    }
    let mut link = [0; 16];
    (link[0], link[1], link[15]) = (0xfe, 0x80, 9);
    let link = Address(link);
    let group = Address([0xff, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0xff, 0, 0, 1]);
    let target = |kind, from, target: Address, hops| {
        let mut rest = vec![0; 4];
        rest.extend_from_slice(&target.0);
        Build::icmp(from, group, kind, 0, &rest).with(|b| b.hop_limit = hops)
    };
    let unspecified = Address([0; 16]);
    for from in [unspecified, link] {
        let solicit = target(icmp::NEIGHBOUR_SOLICIT, from, pod_1(f), 255);
        list.out("neighbour solicitation passes", solicit).passes();
        let far = target(icmp::NEIGHBOUR_SOLICIT, from, pod_1(f), 64);
        list.out("if it is from the link", far).drops(OUT, Reason::SourceAddress);
    }
    for from in [link, pod_1(f)] {
        list.out("a pod advertises its own address", target(icmp::NEIGHBOUR_ADVERT, from, pod_1(f), 255)).passes();
        list.out("and its link-local one", target(icmp::NEIGHBOUR_ADVERT, from, link, 255)).passes();
        list.out("but not another's", target(icmp::NEIGHBOUR_ADVERT, from, pod_2(f), 255))
            .drops(OUT, Reason::Neighbour);
    }
    let foreign = Build::tcp((link, 1), (friend(f), 80), SYN);
    list.out("nothing else is link-local", foreign).drops(OUT, Reason::SourceAddress);
    let advert = target(icmp::ROUTER_ADVERT, link, pod_1(f), 255);
    list.out("a pod is no router", advert.clone()).drops(OUT, Reason::SourceAddress);
    list.into("router advertisements reach an isolated pod", advert.with(|b| b.to = group)).passes();
}

pub(super) fn verdicts(list: &mut List, f: Family) {
    for protocol in [protocol::TCP, protocol::UDP, protocol::SCTP] {
        let packet = |from, to| match protocol {
            protocol::TCP => Build::tcp(from, to, SYN),
            protocol::UDP => Build::udp(from, to, b"hello"),
            _ => Build::sctp(from, to),
        };
        let says = |text: &str| std::format!("protocol {protocol}: {text}");
        list.out(&says("to the friend's port 80 passes"), packet((pod_1(f), 4000), (friend(f), 80))).flows(1);
        list.into(&says("from the friend to port 80 passes"), packet((friend(f), 4000), (pod_1(f), 80))).flows(1);
        list.out(&says("to the friend's port 81 does not"), packet((pod_1(f), 4000), (friend(f), 81)))
            .rejects(OUT, Reason::Denied)
            .flows(0);
        list.into(&says("from the stranger does not"), packet((stranger(f), 4000), (pod_1(f), 80)))
            .rejects(IN, Reason::Denied)
            .flows(0);
        list.out(&says("to the world does not"), packet((pod_1(f), 4000), (nobody(f), 80)))
            .rejects(OUT, Reason::Denied);
        list.out(&says("to the block passes at any port"), packet((pod_1(f), 4000), (in_block(f), 999))).flows(1);
        list.into(&says("from the block passes at any port"), packet((in_block(f), 4000), (pod_1(f), 999))).flows(1);
        list.into(&says("the node reaches its own pods"), packet((node(f), 4000), (pod_1(f), 999))).flows(1);
        list.out(&says("a pod does not reach its node"), packet((pod_1(f), 4000), (node(f), 80)))
            .rejects(OUT, Reason::Denied);
        list.out(&says("silence where it is asked for"), packet((pod_1(f), 4000), (friend(f), 81)))
            .given(|t| t.config.flags = Config::SILENT)
            .drops(OUT, Reason::Denied);
        list.out(&says("a row that denies wins over a more general one"), packet((pod_1(f), 4000), (in_block(f), 80)))
            .given(|t| {
                let key = PolicyKey { group: GROUP_1_OUT, class: BLOCK, ports: WEB };
                t.policy.insert(key, PolicyRow { verdict: PolicyRow::DENY, rule: 31 });
            })
            .rejects(OUT, Reason::Denied);
    }
    let gre = Build::new(pod_1(f), friend(f), 47, vec![0; 12]);
    list.out("without ports only rows for any port fit: not the friend", gre.clone()).rejects(OUT, Reason::Denied);
    list.out("but the block", gre.clone().with(|b| b.to = in_block(f))).flows(1);
    list.out("a row for what has no ports", gre)
        .given(|t| {
            let key = PolicyKey { group: GROUP_1_OUT, class: ANY, ports: PORTLESS };
            t.policy.insert(key, PolicyRow { verdict: PolicyRow::ALLOW, rule: 0 });
        })
        .flows(1);
    list.out("isolated one way only: the other is open", Build::tcp((pod_1(f), 4000), (stranger(f), 9), SYN))
        .given(|t| {
            t.pods.insert(1, PodGroups { ingress: GROUP_1_IN, egress: 0 });
        })
        .flows(1);
    list.out(
        "padding is no header",
        Build::new(pod_1(f), friend(f), protocol::TCP, vec![0x0f, 0xa0]).with(|b| b.padding = 40),
    )
    .drops(OUT, Reason::Truncated);
    list.out("padding does not matter", Build::tcp((pod_1(f), 4000), (friend(f), 80), SYN).with(|b| b.padding = 40))
        .flows(1);
}
