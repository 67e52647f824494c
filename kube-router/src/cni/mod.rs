//! Between the CNI plugin and the agent: one question, one answer, on a unix socket.
//!
//! The problem: a container must not run before its interface is guarded and its pod is published. The container runtime
//! waits for the plugin, so the plugin asks the agent to do both and passes the answer on. [`protocol`] is what they say,
//! [`client`] the plugin's side, [`server`] the agent's: a listener that hands each question to the reconcile loop and
//! never lets the asker hang.
//!
//! In: [`protocol::Request`]s. Out: [`server::Ask`]s for the loop, which alone knows what to do with them.

pub mod client;
pub mod protocol;
pub mod server;

#[cfg(test)]
mod tests;
