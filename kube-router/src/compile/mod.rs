//! Pure compilers: the cluster as we know it -> what this node should hold, and what could not be honoured.
//!
//! [`node::compile_node`] reads our own Node once per change; [`services::compile_service`] turns one Service with its
//! slices into one [`ServiceState`](crate::desired::ServiceState). Neither sees the other services, so the cost of an
//! event is the size of what it touches. One bad field never hides the rest: it becomes a [`Problem`].

mod addresses;
pub mod balance;
pub mod endpoints;
pub mod interfaces;
pub mod links;
pub mod node;
pub mod policy;
mod problem;
pub mod rings;
mod scheduler;
pub mod service_ports;
pub mod services;
pub mod sysctls;
#[cfg(test)]
mod tests;

pub use node::{NodeView, compile_node};
pub use problem::{Problem, Subject};
pub use services::compile_service;
