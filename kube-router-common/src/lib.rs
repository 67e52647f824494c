//! What kube-router's BPF programs and its agent must agree on: the layout of map values, the meaning of map indices,
//! names, and the small pure functions that decide them.
//!
//! No allocation, no I/O, no kernel. Every type that crosses the border derives zerocopy's traits, which refuse padding,
//! `bool` and `Option` when compiled, for the BPF target too; its size and offsets are pinned by constant assertions.
//! With feature `user` the types also carry aya's plain-data marker ([`plain`]), with which the agent reads maps.

#![no_std]

pub mod names;
#[cfg(feature = "user")]
mod plain;
pub mod policy;
pub mod traffic;

pub use traffic::{Traffic, TrafficClass};
