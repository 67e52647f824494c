//! What kube-router's BPF programs and its agent must agree on: the layout of map values, the meaning of map indices,
//! names, and the small pure functions that decide them.
//!
//! No allocation, no I/O, no kernel. Every type that crosses the border derives zerocopy's traits, which refuse padding,
//! `bool` and `Option` when compiled, for the BPF target too; its size and offsets are pinned by constant assertions.
//! The programs' decisions are in [`hooks`], so that they run, and are tested, without a kernel too.
//! With feature `user` the types also carry aya's plain-data marker ([`plain`]), with which the agent reads maps.
//! Feature `twin` adds the tables as plain collections ([`twin`], with the standard library).

#![no_std]

#[cfg(any(test, feature = "twin"))]
extern crate std;

pub mod answer;
pub mod balance;
pub mod config;
pub mod event;
pub mod flow;
pub mod hooks;
pub mod names;
pub mod packet;
#[cfg(feature = "user")]
mod plain;
pub mod policy;
pub mod reason;
pub mod schedule;
pub mod sizes;
pub mod traffic;
#[cfg(any(test, feature = "twin"))]
pub mod twin;

pub use traffic::Traffic;
