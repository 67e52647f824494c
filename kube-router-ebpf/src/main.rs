//! kube-router's BPF programs.
//!
//! In: packets at the hooks of a device. Out: verdicts, and flows, counters and records in maps. What happens to a packet
//! is decided by `kube_router_common::hooks`, where it is tested; here is what reads packets, looks up maps and calls
//! helpers.
//!
//! Names of maps and programs are at most 15 characters, the ones in `kube_router_common::names`. A verdict to pass is
//! TC_ACT_UNSPEC: the next program or the stack decides, under clsact as under tcx (whose TCX_NEXT is the same -1).

#![no_std]
#![no_main]
#![feature(core_intrinsics)]
#![allow(internal_features)]

mod kernel;
mod maps;
mod view;

use aya_ebpf::{
    bindings::{TC_ACT_SHOT, TC_ACT_UNSPEC},
    macros::classifier,
    programs::TcContext,
};
use kube_router_common::{
    hooks::{self, Action, Way},
    names::{TAIL_ANSWER_BACK, TAIL_ANSWER_IN},
};

use crate::view::View;

#[inline(always)]
fn carry_out(context: &TcContext, action: Action, way: &Way, answer: u32) -> i32 {
    match action {
        Action::Deliver => kernel::deliver(context, way),
        Action::Pass => TC_ACT_UNSPEC,
        Action::Drop => TC_ACT_SHOT,
        Action::Reject => {
            kernel::tail_call(context, &maps::TAILS, answer);
            TC_ACT_SHOT
        }
    }
}

#[classifier]
#[inline(always)]
pub fn kr_pod_out(context: TcContext) -> i32 {
    let Some(case) = maps::case() else { return TC_ACT_SHOT };
    let action = hooks::pod_out(&View::of_pod(&context), case);
    carry_out(&context, action, &case.way, TAIL_ANSWER_BACK)
}

#[classifier]
#[inline(always)]
pub fn kr_pod_in(context: TcContext) -> i32 {
    let Some(case) = maps::case() else { return TC_ACT_SHOT };
    let action = hooks::pod_in(&View::of_pod(&context), case);
    carry_out(&context, action, &case.way, TAIL_ANSWER_IN)
}

#[classifier]
#[inline(always)]
pub fn kr_uplink_in(context: TcContext) -> i32 {
    let Some(case) = maps::case() else { return TC_ACT_SHOT };
    let action = hooks::uplink_in(&View::of_uplink(&context), case);
    carry_out(&context, action, &case.way, TAIL_ANSWER_BACK)
}

#[classifier]
#[inline(always)]
pub fn kr_uplink_out(context: TcContext) -> i32 {
    let Some(case) = maps::case() else { return TC_ACT_SHOT };
    let action = hooks::uplink_out(&View::of_uplink(&context), case);
    carry_out(&context, action, &case.way, TAIL_ANSWER_IN)
}

/// Tail of a program at ingress: the answer goes out where the packet came in.
#[classifier]
#[inline(always)]
pub fn kr_answer_back(context: TcContext) -> i32 {
    let Some(case) = maps::case() else { return TC_ACT_SHOT };
    View::of_refused(&context).answer(case, 0)
}

/// Tail of a program at egress: the answer comes in as if somebody behind the device had sent it.
#[classifier]
#[inline(always)]
pub fn kr_answer_in(context: TcContext) -> i32 {
    let Some(case) = maps::case() else { return TC_ACT_SHOT };
    View::of_refused(&context).answer(case, kernel::REDIRECT_INGRESS)
}
