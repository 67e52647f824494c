//! kube-router: Kubernetes services, network policy and pod routes on one node.
//!
//! The rooms, in the direction in which data flows (ARCHITECTURE.md at the top of the repository is the tour):
//!
//! ```text
//! objects -> watch -> cluster -> compile -> desired -> plan -> apply -> kernel
//!                                                       reconcile decides when; observe shows everything out;
//!                                                       cni hears of pods that are about to start
//! ```

pub mod apply;
pub mod cli;
pub mod cluster;
pub mod cni;
pub mod compile;
pub mod config;
pub mod desired;
pub mod explain;
pub mod nl;
pub mod objects;
pub mod observe;
pub mod plan;
pub mod reconcile;
pub mod sys;
pub mod watch;
