//! Network policy as live traffic: scenarios with a truth table each, a cluster to play them in, and a prober.
//!
//! ```text
//!   scenarios ──> changes ──> objects ──> manifests ──> agents ──> kernel
//!       └───────> truth table <── judge ──> difference <── probes ──┘
//!                                  told ──> counters of rules, words ──> explain
//! ```
//!
//! The cluster is always the same: namespaces x, y and z with pods a, b and c in each, on two nodes. A truth table says
//! for every pair of pods, port and family whether they may talk; it is written by hand from the text of Kubernetes
//! and knows nothing of our compiler. Where that text leaves something open, the table leaves it out.

pub mod cluster;
pub mod datagrams;
pub mod judge;
pub mod objects;
pub mod plan;
pub mod probe;
pub mod route;
pub mod scenario;
mod scenarios;
mod services;
pub mod table;
pub mod told;
mod words;

pub use self::{
    cluster::Cluster,
    judge::Play,
    objects::Objects,
    route::Route,
    scenario::{Change, Scenario, Step},
    scenarios::all,
    table::{Cell, Table},
};
