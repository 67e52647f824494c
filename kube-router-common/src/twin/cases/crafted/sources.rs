//! Sources that cannot be, or are somebody else.

use std::format;

use super::*;

pub(super) fn sources(list: &mut List, f: Family) {
    let v6 = |first: u16, last: u16| {
        let mut bytes = [0; 16];
        bytes[..2].copy_from_slice(&first.to_be_bytes());
        bytes[14..].copy_from_slice(&last.to_be_bytes());
        Address(bytes)
    };
    let odd: [(&str, Address); 4] = match f {
        Family::V4 => [
            ("loopback", Address::from_v4([127, 0, 0, 1])),
            ("a group", Address::from_v4([224, 0, 0, 1])),
            ("broadcast", Address::from_v4([255; 4])),
            ("unspecified", Address::from_v4([0; 4])),
        ],
        Family::V6 => [
            ("loopback", v6(0, 1)),
            ("a group", v6(0xff02, 1)),
            ("link-local", v6(0xfe80, 9)),
            ("unspecified", v6(0, 0)),
        ],
    };
    let others = [
        ("another pod", pod_2(f)),
        ("the node", node(f)),
        ("a service", service(f)),
        ("a peer elsewhere", friend(f)),
        ("nobody", nobody(f)),
    ];
    for (what, from) in odd.into_iter().chain(others) {
        let packet = Build::tcp((from, 4000), (friend(f), 80), SYN);
        list.out(&format!("from {what}"), packet).drops(OUT, Reason::SourceAddress);
    }
    for (what, from) in odd {
        let packet = Build::tcp((from, 4000), (pod_1(f), 80), SYN);
        let entry =
            list.into(&format!("from {what}: as anybody whom no rule names"), packet).rejects(IN, Reason::Denied);
        if from.is_group() || from.is_unspecified() {
            entry.unanswered();
        }
    }
    let own = Build::tcp((pod_1(f), 80), (pod_1(f), 80), SYN);
    list.out("from itself to itself (LAND): as any peer", own.clone()).rejects(OUT, Reason::Denied);
    list.into("from itself to itself (LAND): as any peer", own).rejects(IN, Reason::Denied);
    let mac = web(f, protocol::TCP).with(|b| b.from_mac = MAC_2);
    list.out("from another hardware address", mac).drops(OUT, Reason::SourceMac);
}
