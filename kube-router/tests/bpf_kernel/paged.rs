//! Headers in pages: what a pod sends from a ring of packet(7) has the link-layer header in the packet's linear part, and all
//! that follows in pages, where programs do not read directly. It must fare like any other packet.

use std::{
    mem::{size_of, size_of_val},
    ptr::null_mut,
    thread,
    time::{Duration, Instant},
};

use kube_router::apply::bpf::{Dataplane, Options};
use kube_router_common::{
    config::DropKey,
    packet::ethertype,
    reason::{Direction, Reason},
    twin::build::Build,
};

use crate::{
    live::on_a_node,
    net::{CLASS_1, CLASS_2, Pod, address, allow, attach_pods, isolate, next_generation, write_pods},
};

/// include/uapi/linux/if_packet.h
const PACKET_VERSION: i32 = 10;
const PACKET_TX_RING: i32 = 13;
const PAGE: usize = 4096;
const PATIENCE: Duration = Duration::from_secs(20);
const SYN: u8 = 2;

/// Sends a frame from a page.
fn send(frame: &[u8]) {
    let request =
        libc::tpacket_req { tp_block_size: PAGE as u32, tp_block_nr: 1, tp_frame_size: PAGE as u32, tp_frame_nr: 1 };
    let version = libc::tpacket_versions::TPACKET_V2 as i32;
    let to = libc::sockaddr_ll {
        sll_family: libc::AF_PACKET as u16,
        sll_protocol: u16::from_ne_bytes([frame[12], frame[13]]),
        sll_ifindex: nix::net::if_::if_nametoindex("eth0").expect("eth0") as i32,
        sll_hatype: 0,
        sll_pkttype: 0,
        sll_halen: 6,
        sll_addr: [0; 8],
    };
    let failed = || -> ! { panic!("{}", std::io::Error::last_os_error()) };
    // SAFETY: the kernel gets pointers to values that live longer than the calls, with their sizes; the mapping is one page,
    // which header and frame fit into, and nobody else has it while the frame's status does not ask for sending.
    unsafe {
        let socket = libc::socket(libc::AF_PACKET, libc::SOCK_RAW, 0);
        let set = |option, value: *const libc::c_void, length: usize| {
            if libc::setsockopt(socket, libc::SOL_PACKET, option, value, length as u32) != 0 {
                failed();
            }
        };
        set(PACKET_VERSION, (&raw const version).cast(), size_of_val(&version));
        set(PACKET_TX_RING, (&raw const request).cast(), size_of_val(&request));
        let access = libc::PROT_READ | libc::PROT_WRITE;
        let page = libc::mmap(null_mut(), PAGE, access, libc::MAP_SHARED, socket, 0);
        if page == libc::MAP_FAILED {
            failed();
        }
        // TPACKET_ALIGN
        let place = size_of::<libc::tpacket2_hdr>().next_multiple_of(16);
        page.cast::<u8>().add(place).copy_from_nonoverlapping(frame.as_ptr(), frame.len());
        let header: *mut libc::tpacket2_hdr = page.cast();
        (*header).tp_len = frame.len() as u32;
        (*header).tp_status = libc::TP_STATUS_SEND_REQUEST;
        let sent = libc::sendto(socket, null_mut(), 0, 0, (&raw const to).cast(), size_of_val(&to) as u32);
        if sent != frame.len() as isize {
            failed();
        }
        libc::munmap(page, PAGE);
        libc::close(socket);
    }
}

fn until(what: &str, is_so: impl Fn() -> bool) {
    let begin = Instant::now();
    while !is_so() {
        assert!(begin.elapsed() < PATIENCE, "{what}");
        thread::sleep(Duration::from_millis(20));
    }
}

fn refused(dataplane: &Dataplane, pod: u32, direction: Direction, reason: Reason) -> u64 {
    let key = DropKey { pod, direction: direction as u8, reason: reason as u8, pad: 0 };
    dataplane.tables().drops.sums().expect("drops").iter().find(|(k, _)| *k == key).map_or(0, |(_, sum)| sum.packets)
}

fn open(pod_1: &Pod, from: &str, to: &str, port: u16) {
    let build = Build::tcp((address(from), 4000), (address(to), port), SYN);
    let frame = build.bytes();
    assert!(matches!(u16::from_be_bytes([frame[12], frame[13]]), ethertype::IPV4 | ethertype::IPV6));
    pod_1.run(move || send(&frame));
}

#[test]
#[ignore = "needs root and the BPF object: cargo xtask test --tier 2 --filter headers_in_pages"]
fn headers_in_pages_are_read_too() {
    on_a_node(|net| {
        let mut dataplane = Dataplane::load(&Options::default()).expect("load");
        write_pods(&dataplane);
        allow(&dataplane, 11, CLASS_2, 80);
        allow(&dataplane, 11, CLASS_2, 82);
        allow(&dataplane, 20, CLASS_1, 80);
        isolate(&dataplane, 1, true, true);
        isolate(&dataplane, 2, true, false);
        next_generation(&dataplane);
        attach_pods(&mut dataplane);
        for (n, (from, to, other)) in
            [("10.1.0.1", "10.1.0.2", "10.1.0.9"), ("fd00:1::1", "fd00:1::2", "fd00:1::9")].into_iter().enumerate()
        {
            let now = n as u64 + 1;
            let has_flow = |local: &str, peer: &str, local_port, peer_port| {
                let flows = dataplane.tables().flows.read_all().expect("flows");
                flows.iter().any(|(key, _)| {
                    (key.local, key.peer, key.local_port, key.peer_port)
                        == (address(local), address(peer), local_port, peer_port)
                })
            };
            open(&net.pod_1, from, to, 80);
            until("allowed out of pod 1", || has_flow(from, to, 4000, 80));
            until("allowed into pod 2", || has_flow(to, from, 80, 4000));
            open(&net.pod_1, from, to, 81);
            until("denied out of pod 1", || refused(&dataplane, 1, Direction::Egress, Reason::Denied) == now);
            open(&net.pod_1, from, to, 82);
            until("denied into pod 2", || refused(&dataplane, 2, Direction::Ingress, Reason::Denied) == now);
            open(&net.pod_1, other, to, 80);
            until("spoofed", || refused(&dataplane, 1, Direction::Egress, Reason::SourceAddress) == now);
        }
    });
}
