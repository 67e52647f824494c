//! Requests and answers as bytes, without a kernel. The kernel has its say in tests/ipvs_kernel.rs.

use std::time::Duration;

use proptest::prelude::*;

use super::{
    decode::{self, Identity},
    wire,
};
use crate::{
    apply::{Connections, IpvsTimeouts, ServerStats},
    desired::{Scheduler, Virtual, VirtualKey},
    nl::attr,
    objects::Protocol,
    plan::IpvsOp,
};

fn key(text: &str, protocol: Protocol) -> VirtualKey {
    let socket: std::net::SocketAddr = text.parse().unwrap();
    VirtualKey { address: socket.ip(), protocol, port: socket.port() }
}

fn encode(op: &IpvsOp) -> Vec<u8> {
    let mut bytes = Vec::new();
    wire::encode(&mut bytes, op);
    bytes
}

/// A service message as somebody else might have made the service.
fn service(flags: u32, mask: u32, scheduler: &str, extra: impl FnOnce(&mut Vec<u8>)) -> Vec<u8> {
    let mut bytes = vec![wire::command::NEW_SERVICE, 1, 0, 0];
    attr::nest(&mut bytes, wire::top::SERVICE, |bytes| {
        attr::put_u16(bytes, wire::service::AF, 2);
        attr::put_u16(bytes, wire::service::PROTOCOL, 6);
        attr::put(bytes, wire::service::ADDR, &[10, 96, 0, 10, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
        attr::put_be16(bytes, wire::service::PORT, 53);
        attr::put_str(bytes, wire::service::SCHED_NAME, scheduler);
        attr::put(bytes, wire::service::FLAGS, &[flags.to_ne_bytes(), [0xff; 4]].concat());
        attr::put_u32(bytes, wire::service::TIMEOUT, 300);
        attr::put_u32(bytes, wire::service::NETMASK, mask);
        extra(bytes);
    });
    bytes
}

fn destination(method: u32, weight: u32, upper: u32, lower: u32) -> Vec<u8> {
    let mut bytes = vec![wire::command::NEW_DEST, 1, 0, 0];
    attr::nest(&mut bytes, wire::top::DEST, |bytes| {
        attr::put(bytes, wire::dest::ADDR, &[10, 2, 0, 7, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
        attr::put_be16(bytes, wire::dest::PORT, 8080);
        attr::put_u32(bytes, wire::dest::FWD_METHOD, method);
        attr::put_u32(bytes, wire::dest::WEIGHT, weight);
        attr::put_u32(bytes, wire::dest::U_THRESH, upper);
        attr::put_u32(bytes, wire::dest::L_THRESH, lower);
        attr::put_u32(bytes, wire::dest::ACTIVE_CONNS, 3);
        attr::put_u32(bytes, wire::dest::INACT_CONNS, 4);
        attr::put_u16(bytes, wire::dest::ADDR_FAMILY, 2);
    });
    bytes
}

/// `AddServer` of 10.96.0.10:53 UDP, rr, affinity 10800 s, byte by byte as `strace ipvsadm` would show it.
#[cfg(target_endian = "little")]
#[test]
fn a_request_has_the_layout_of_ip_vs_h() {
    let server = Virtual { persistence_s: Some(10800), ..Virtual::default() };
    let bytes = encode(&IpvsOp::AddServer { key: key("10.96.0.10:53", Protocol::Udp), server });
    #[rustfmt::skip]
    let expected = [
        1, 1, 0, 0,
        84, 0, 1, 0x80,
        6, 0, 1, 0, 2, 0, 0, 0,
        6, 0, 2, 0, 17, 0, 0, 0,
        20, 0, 3, 0, 10, 96, 0, 10, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0,
        6, 0, 4, 0, 0, 53, 0, 0,
        7, 0, 6, 0, b'r', b'r', 0, 0,
        12, 0, 7, 0, 1, 0, 0, 0, 255, 255, 255, 255,
        8, 0, 8, 0, 0x30, 0x2a, 0, 0,
        8, 0, 9, 0, 255, 255, 255, 255,
    ];
    assert_eq!(bytes, expected);
}

#[test]
fn an_ipv6_mask_is_a_length_in_host_order() {
    let bytes = encode(&IpvsOp::AddServer { key: key("[fd00::1]:80", Protocol::Tcp), server: Virtual::default() });
    let tail = [&[8, 0, 9, 0][..], &128_u32.to_ne_bytes()].concat();
    assert!(bytes.ends_with(&tail), "{bytes:?}");
}

#[test]
fn what_nobody_of_us_asks_for_reads_as_other() {
    let scheduler = |bytes: &[u8]| decode::decode_server(bytes).unwrap().1.scheduler;
    let nothing = |_: &mut Vec<u8>| {};
    assert_eq!(scheduler(&service(0x2, u32::MAX, "rr", nothing)), Scheduler::Rr);
    assert_eq!(scheduler(&service(0x3, u32::MAX, "lc", nothing)), Scheduler::Lc);
    assert_eq!(scheduler(&service(0x2, u32::MAX, "wlc", nothing)), Scheduler::Other, "scheduler");
    assert_eq!(scheduler(&service(0x6, u32::MAX, "rr", nothing)), Scheduler::Other, "one packet");
    assert_eq!(scheduler(&service(0x3, 32, "rr", nothing)), Scheduler::Other, "mask");
    assert_eq!(scheduler(&service(0x2, 32, "rr", nothing)), Scheduler::Other, "mask that waits for persistence");
    let sip = |bytes: &mut Vec<u8>| attr::put_str(bytes, wire::service::PE_NAME, "sip");
    assert_eq!(scheduler(&service(0x3, u32::MAX, "rr", sip)), Scheduler::Other, "persistence engine");
}

#[test]
fn a_destination_that_is_not_plain_nat_has_the_impossible_weight() {
    let weight = |bytes: &[u8]| decode::decode_destination(bytes).unwrap().1;
    assert_eq!(weight(&destination(0, 5, 0, 0)), 5);
    assert_eq!(weight(&destination(2, 5, 0, 0)), u32::MAX);
    assert_eq!(weight(&destination(3, 5, 0, 0)), u32::MAX);
    assert_eq!(weight(&destination(0, 5, 9, 0)), u32::MAX);
    let (_, connections) = decode::decode_connections(&destination(0, 5, 0, 0)).unwrap();
    assert_eq!(connections, Connections { active: 3, inactive: 4 });
}

#[test]
fn marks_and_foreign_protocols_are_told_apart() {
    let mut bytes = vec![wire::command::NEW_SERVICE, 1, 0, 0];
    attr::nest(&mut bytes, wire::top::SERVICE, |bytes| {
        attr::put_u16(bytes, wire::service::AF, 10);
        attr::put_u32(bytes, wire::service::FWMARK, 7071);
        attr::put_str(bytes, wire::service::SCHED_NAME, "rr");
        attr::put(bytes, wire::service::FLAGS, &[2, 0, 0, 0, 255, 255, 255, 255]);
        attr::put_u32(bytes, wire::service::TIMEOUT, 0);
        attr::put_u32(bytes, wire::service::NETMASK, 128);
    });
    assert_eq!(decode::decode_server(&bytes).unwrap().0, Identity::Mark { mark: 7071, ipv6: true });

    let ours = service(0x2, u32::MAX, "rr", |_| {});
    let gre = service(0x2, u32::MAX, "rr", |bytes| attr::put_u16(bytes, wire::service::PROTOCOL, 47));
    assert_eq!(decode::decode_server(&ours).unwrap().0, Identity::Key(key("10.96.0.10:53", Protocol::Tcp)));
    assert_eq!(decode::decode_server(&gre).unwrap().0, Identity::OtherProtocol);
}

#[test]
fn counters_land_in_their_fields() {
    let bytes = service(0x2, u32::MAX, "rr", |bytes| {
        attr::nest(bytes, wire::service::STATS64, |bytes| {
            for (kind, value) in (1..=10_u16).map(|kind| (kind, u64::from(kind) << 33)) {
                attr::put(bytes, kind, &value.to_ne_bytes());
            }
        });
    });
    let (_, stats) = decode::decode_server_stats(&bytes).unwrap();
    let expected = ServerStats {
        connections: 1 << 33,
        packets_in: 2 << 33,
        packets_out: 3 << 33,
        bytes_in: 4 << 33,
        bytes_out: 5 << 33,
        connections_per_s: 6 << 33,
        packets_in_per_s: 7 << 33,
        packets_out_per_s: 8 << 33,
        bytes_in_per_s: 9 << 33,
        bytes_out_per_s: 10 << 33,
    };
    assert_eq!(stats, expected);
    assert!(decode::decode_server_stats(&service(0x2, u32::MAX, "rr", |_| {})).is_err());
}

#[test]
fn only_timeouts_of_a_second_and_more_are_sent() {
    let mut bytes = Vec::new();
    let timeouts = IpvsTimeouts { tcp: Duration::ZERO, tcp_fin: Duration::from_secs(7), udp: Duration::from_millis(9) };
    wire::encode_timeouts(&mut bytes, &timeouts);
    let sent: Vec<_> = attr::attributes(&bytes[4..]).map(|(kind, value)| (kind, attr::u32(value))).collect();
    assert_eq!(sent, [(wire::top::TIMEOUT_TCP_FIN, Some(7))]);
}

fn any_key() -> impl Strategy<Value = VirtualKey> {
    let protocol = prop_oneof![Just(Protocol::Tcp), Just(Protocol::Udp), Just(Protocol::Sctp)];
    (any::<std::net::IpAddr>(), protocol, any::<u16>()).prop_map(|(address, protocol, port)| VirtualKey {
        address,
        protocol,
        port,
    })
}

fn any_server() -> impl Strategy<Value = Virtual> {
    let scheduler = proptest::sample::select(vec!["rr", "lc", "dh", "sh", "mh"]);
    (scheduler, 0..8_u32, any::<Option<u32>>()).prop_map(|(scheduler, flags, persistence_s)| Virtual {
        scheduler: Scheduler::from_name(scheduler).unwrap(),
        sched_flags: flags << 3,
        persistence_s,
        ..Virtual::default()
    })
}

proptest! {
    /// The kernel lists a server in the form in which it was ordered.
    #[test]
    fn servers_survive_the_wire(key in any_key(), server in any_server()) {
        for op in [
            IpvsOp::AddServer { key, server: server.clone() },
            IpvsOp::EditServer { key, server: server.clone() },
        ] {
            let (identity, decoded) = decode::decode_server(&encode(&op)).unwrap();
            prop_assert_eq!(identity, Identity::Key(key));
            prop_assert_eq!(&decoded, &server);
        }
    }

    #[test]
    fn destinations_survive_the_wire(key in any_key(), ip: std::net::IpAddr, port: u16, weight in 0..=65535_u32) {
        let destination = (ip, port).into();
        for op in [
            IpvsOp::AddDestination { key, destination, weight },
            IpvsOp::EditDestination { key, destination, weight },
        ] {
            prop_assert_eq!(decode::decode_destination(&encode(&op)).unwrap(), (destination, weight));
        }
    }

    /// A message cut anywhere is an error, be it cut outside or inside of the outer attribute.
    #[test]
    fn truncation_is_an_error(key in any_key(), server in any_server(), cut in 0.0..1.0_f64) {
        let whole = encode(&IpvsOp::AddServer { key, server });
        let cut = (whole.len() as f64 * cut) as usize;
        let mut bytes = whole[..cut].to_vec();
        prop_assert!(decode::decode_server(&bytes).is_err());
        if cut >= 8 {
            bytes[4..6].copy_from_slice(&((cut - 4) as u16).to_ne_bytes());
            prop_assert!(decode::decode_server(&bytes).is_err());
        }
    }

    #[test]
    fn noise_never_panics(bytes: Vec<u8>) {
        let _ = decode::decode_server(&bytes);
        let _ = decode::decode_server_stats(&bytes);
        let _ = decode::decode_destination(&bytes);
        let _ = decode::decode_connections(&bytes);
    }

    /// Noise behind a header that lets it in.
    #[test]
    fn noise_in_attributes_never_panics(noise: Vec<u8>, at in 0..200_usize, kind in 1..3_u16) {
        let mut bytes = if kind == wire::top::DEST { destination(0, 1, 0, 0) } else { service(2, 1, "rr", |_| {}) };
        let at = 8 + at % (bytes.len() - 8);
        let end = (at + noise.len()).min(bytes.len());
        bytes[at..end].copy_from_slice(&noise[..end - at]);
        let _ = decode::decode_server(&bytes);
        let _ = decode::decode_server_stats(&bytes);
        let _ = decode::decode_destination(&bytes);
        let _ = decode::decode_connections(&bytes);
    }
}
