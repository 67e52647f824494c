//! Why one may talk to another: questions about network policy, answered in words for people and in data for programs.
//!
//! ```text
//! what was typed ──party, ways──> addresses and ports ──verdict──> both verdicts, each with the rule that decided
//! all pods       ──matrix──> who can talk to whom, as text, data, or a page to look at
//! tables         ──walk──> the same verdict from the kernel's point of view, to be held against the first
//! ```
//!
//! The verdicts are the model's (`compile/policy/model.rs`), not the compiler's: an explanation that shared the
//! compiler's mistakes would explain them away. In: objects, tables. Out: plain data and text. Knows no kernel and no
//! socket: who has these brings the tables.

pub mod answer;
pub mod holes;
pub mod matrix;
mod named;
mod near;
mod node_port;
pub mod party;
pub mod ports;
pub mod rules;
pub mod text;
mod verdict;
pub mod walk;
mod ways;

#[cfg(test)]
pub(crate) mod tests;

pub use answer::{Answer, Question, Refusal};
pub use rules::{PolicyNames, RuleName};
pub use verdict::Here;
pub use ways::answer_explain;
