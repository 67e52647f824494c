//! kube-router's BPF programs.
//!
//! In: packets at the hooks of a device. Out: counters in maps. Decisions that need no kernel are functions of
//! `kube-router-common`, where they are tested; here is what reads packets, looks up maps and calls helpers.
//!
//! Names of maps and programs are at most 15 characters, the ones in `kube_router_common::names`.

#![no_std]
#![no_main]

mod kernel;
mod traffic;

use aya_ebpf::{bindings::TC_ACT_UNSPEC, macros::classifier, programs::TcContext};

/// Counts a packet and lets the next program or the stack decide on it, under clsact as under tcx (whose
/// `TCX_NEXT` is the same -1).
#[classifier]
pub fn kr_count(context: TcContext) -> i32 {
    traffic::count(&context);
    TC_ACT_UNSPEC
}
