//! Promises about ICMP errors that quote what was translated between a pod and a service's backend: who sent the packet is
//! told of the addresses that it knows.

use super::{
    balanced::{begun, begun_remotely},
    *,
};

/// Message types of unreachable, too big, time exceeded, parameter problem, with codes.
fn errors(f: Family) -> [(u8, u8); 4] {
    match f {
        Family::V4 => [(3, 3), (3, 4), (11, 0), (12, 0)],
        Family::V6 => [(1, 4), (2, 0), (3, 0), (4, 0)],
    }
}

/// The rest of the message's header: the size that would fit, where that is what it is about.
const REST: [u8; 4] = [0, 0, 5, 0];

/// About a packet as it was sent, whose transport checksum is that of the packet as it arrived.
fn error(from: Address, to: Address, kind: (u8, u8), (sent, arrived): (&Build, &Build)) -> Build {
    let mut quoted = REST.to_vec();
    quoted.extend_from_slice(&sent.clone().network());
    let check = REST.len() + if from.is_v4() { 20 } else { 40 } + 16;
    quoted[check..check + 2].copy_from_slice(&arrived.clone().network()[check - REST.len()..][..2]);
    Build::icmp(from, to, kind.0, kind.1, &quoted).icmp_summed()
}

pub(super) fn quoted(list: &mut List, f: Family) {
    let (client, at, by) = ((pod_1(f), 4000), (service(f), 443), (pod_2(f), 8080));
    let there = (friend(f), 8080);
    let says = |kind: (u8, u8), text: &str| std::format!("ICMP error {}, {}, {text}", kind.0, kind.1);
    let to = |end| Build::tcp(client, end, ACK);
    let back = |end| Build::tcp(end, client, ACK);
    for kind in errors(f) {
        let plain = |from: Address, to: Address, about: Build| error(from, to, kind, (&about, &about));
        list.out(
            &says(kind, "of a backend: as if about the service"),
            plain(by.0, client.0, to(by)).with(|b| b.from_mac = MAC_2),
        )
        .at(IF_2)
        .given(move |t| begun(t, f, Tcp::ESTABLISHED))
        .requotes(error(by.0, client.0, kind, (&to(at), &to(by))).network());
        list.out(&says(kind, "of a client: for the backend"), plain(client.0, at.0, back(at)))
            .given(move |t| begun(t, f, Tcp::ESTABLISHED))
            .requotes(error(client.0, by.0, kind, (&back(by), &back(at))).network());
        let on_the_way = || plain(nobody(f), client.0, to(there));
        let wanted = || error(nobody(f), client.0, kind, (&to(at), &to(there))).network();
        list.into(&says(kind, "about what went to another node"), on_the_way())
            .given(move |t| begun_remotely(t, f))
            .requotes(wanted());
        list.into(&says(kind, "about the same, and policies isolate the client"), on_the_way())
            .given(move |t| begun_remotely(t, f))
            .given(|t| {
                t.pods.insert(1, PodGroups { ingress: GROUP_1_IN, egress: GROUP_1_OUT });
            })
            .requotes(wanted());
        list.into(&says(kind, "about the service already"), plain(by.0, client.0, to(at)))
            .given(move |t| begun(t, f, Tcp::ESTABLISHED));
        list.out(&says(kind, "about what was never translated"), plain(client.0, there.0, back(there)))
            .given(move |t| begun(t, f, Tcp::ESTABLISHED));
        let short = Build::icmp(by.0, client.0, kind.0, kind.1, &REST).with(|b| b.from_mac = MAC_2);
        list.out(&says(kind, "that quotes nothing"), short).at(IF_2).given(move |t| begun(t, f, Tcp::ESTABLISHED));
    }
}
