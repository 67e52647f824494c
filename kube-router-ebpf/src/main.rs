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
    hooks::{self, Action, Case},
    names::{
        NO_TAIL, TAIL_ANSWER_BACK, TAIL_ANSWER_IN, TAIL_BALANCE_OUT, TAIL_JUDGE_IN, TAIL_JUDGE_OUT, TAIL_PAIR_OUT,
        TAIL_REQUOTE,
    },
};

use crate::view::View;

/// `answer` and `judge` are places among the tails.
#[inline(always)]
fn carry_out(context: &TcContext, case: &Case, action: Action, answer: u32, judge: u32) -> i32 {
    match action {
        Action::Pass => return TC_ACT_UNSPEC,
        Action::Deliver => return kernel::deliver(context, case),
        Action::Drop => {}
        Action::Reject => kernel::tail_call(context, &maps::TAILS, answer),
        Action::Judge | Action::Pair | Action::Balance | Action::Requote => {
            let place = match action {
                Action::Pair => TAIL_PAIR_OUT,
                Action::Balance => TAIL_BALANCE_OUT,
                Action::Requote => TAIL_REQUOTE,
                _ => judge,
            };
            kernel::tail_call(context, &maps::TAILS, place);
            hooks::not_judged(&View::of_pod(context), case);
        }
    }
    TC_ACT_SHOT
}

/// What the pod sends: tc ingress of the node's end of its veth.
#[classifier]
#[inline(always)]
pub fn kr_pod_out(context: TcContext) -> i32 {
    let Some(case) = maps::case() else { return TC_ACT_SHOT };
    let action = hooks::pod_out(&View::of_pod(&context), case);
    carry_out(&context, case, action, TAIL_ANSWER_BACK, TAIL_JUDGE_OUT)
}

/// Tail of [`kr_pod_out`], which has filled the case in.
#[classifier]
#[inline(always)]
pub fn kr_judge_out(context: TcContext) -> i32 {
    let Some(case) = maps::case() else { return TC_ACT_SHOT };
    let action = hooks::judge_out(&View::of_pod(&context), case);
    carry_out(&context, case, action, TAIL_ANSWER_BACK, NO_TAIL)
}

/// Tail of [`kr_judge_out`], the same way.
#[classifier]
#[inline(always)]
pub fn kr_balance_out(context: TcContext) -> i32 {
    let Some(case) = maps::case() else { return TC_ACT_SHOT };
    let action = hooks::balance_out(&View::of_pod(&context), case);
    carry_out(&context, case, action, TAIL_ANSWER_BACK, TAIL_JUDGE_OUT)
}

/// Tail of [`kr_judge_out`], the same way.
#[classifier]
#[inline(always)]
pub fn kr_pair_out(context: TcContext) -> i32 {
    let Some(case) = maps::case() else { return TC_ACT_SHOT };
    let action = hooks::pair_out(&View::of_pod(&context), case);
    carry_out(&context, case, action, TAIL_ANSWER_BACK, TAIL_JUDGE_OUT)
}

/// What the pod gets: tc egress.
#[classifier]
#[inline(always)]
pub fn kr_pod_in(context: TcContext) -> i32 {
    let Some(case) = maps::case() else { return TC_ACT_SHOT };
    let action = hooks::pod_in(&View::of_pod(&context), case);
    carry_out(&context, case, action, TAIL_ANSWER_IN, TAIL_JUDGE_IN)
}

/// Tail of [`kr_pod_in`], which has filled the case in.
#[classifier]
#[inline(always)]
pub fn kr_judge_in(context: TcContext) -> i32 {
    let Some(case) = maps::case() else { return TC_ACT_SHOT };
    let action = hooks::judge_in(&View::of_pod(&context), case);
    carry_out(&context, case, action, TAIL_ANSWER_IN, NO_TAIL)
}

/// Tail of [`kr_pod_out`] and [`kr_pod_in`], the same way.
#[classifier]
#[inline(always)]
pub fn kr_requote(context: TcContext) -> i32 {
    let Some(case) = maps::case() else { return TC_ACT_SHOT };
    match hooks::requote(&View::of_pod(&context), case) {
        Action::Pass if kernel::requote(&context, case) => TC_ACT_UNSPEC,
        _ => TC_ACT_SHOT,
    }
}

#[classifier]
#[inline(always)]
pub fn kr_uplink_in(context: TcContext) -> i32 {
    let Some(case) = maps::case() else { return TC_ACT_SHOT };
    let action = hooks::uplink_in(&View::of_uplink(&context), case);
    carry_out(&context, case, action, TAIL_ANSWER_BACK, NO_TAIL)
}

#[classifier]
#[inline(always)]
pub fn kr_uplink_out(context: TcContext) -> i32 {
    let Some(case) = maps::case() else { return TC_ACT_SHOT };
    let action = hooks::uplink_out(&View::of_uplink(&context), case);
    carry_out(&context, case, action, TAIL_ANSWER_IN, NO_TAIL)
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
