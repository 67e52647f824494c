//! Questions about a small shop of five namespaces, answered in words.

mod answers;
mod cluster_policies;
mod matrix;
pub mod shop;
mod tables;
