//! The IPVS plane against a real kernel, with `ipvsadm` as the oracle.
//!
//! Needs root, the module ip_vs, and the commands modprobe, ip and ipvsadm. Each test lives in a network namespace of
//! its own; they take turns, since one of them unloads the module.

mod life;
mod others;
mod support;
mod tables;
mod traffic;
