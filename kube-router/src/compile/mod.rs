//! Pure compilers: the cluster as we know it -> what this node should hold, and what could not be honoured.

mod problem;

pub use problem::{Problem, Subject};
