//! Access to packets and map values: the one place of this crate with unsafe code (besides what every BPF object must
//! hold: licence and panic handler).

use aya_ebpf::{bindings::bpf_hdr_start_off::BPF_HDR_START_NET, helpers::bpf_skb_load_bytes_relative, programs::TcContext};
use kube_router_common::Traffic;

/// The packet's protocol (`ETH_P_*`, host byte order). The kernel has taken off VLAN tags, and knows it for devices
/// without a link-layer header too.
#[inline(always)]
pub fn ethertype(context: &TcContext) -> u16 {
    // SAFETY: the kernel hands a valid `__sk_buff` to the program and the verifier lets this field be read.
    let protocol = unsafe { (*context.skb.skb).protocol };
    u16::from_be(protocol as u16)
}

/// One byte of the network header; `None` if the packet ends before it.
#[inline(always)]
pub fn network_byte(context: &TcContext, offset: u32) -> Option<u8> {
    let mut byte = 0u8;
    // SAFETY: the helper writes one byte, to a variable of one byte, or fails.
    let failed = unsafe {
        bpf_skb_load_bytes_relative(context.skb.skb.cast(), offset, (&raw mut byte).cast(), 1, BPF_HDR_START_NET)
    };
    (failed == 0).then_some(byte)
}

/// Adds to counters of this processor. A program of another kind that interrupts here may lose one addition.
#[inline(always)]
pub fn add(counters: *mut Traffic, packet: Traffic) {
    // SAFETY: `counters` comes from a lookup in a per-CPU array that succeeded: it is valid and aligned, and only this
    // processor writes to it.
    unsafe { *counters = (*counters).plus(packet) }
}

#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";

#[panic_handler]
fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
    loop {}
}
