//! kube-router-cni: a chained CNI plugin. No container runs before its interface is guarded.
//!
//! The problem: network policy is enforced by programs on the node's end of a pod's veth. That end is made by another
//! plugin, and the container starts as soon as all plugins are done. So this one, last in the chain, has the agent put the
//! programs there and publish the pod's addresses, and only then lets the runtime go on. Without an agent it guards the
//! interface itself with what the agent left pinned: then nothing passes until an agent publishes the pod.
//!
//! ```text
//! environment, stdin ──> invocation, config, prev_result ──> commands ──> stdout
//!                        pure: what is asked                 │  agent (kube_router::cni)
//!                                                            └─ kernel (kernel.rs): the veth, pinned programs
//! ```
//!
//! It keeps nothing on disk, makes no interface and gives no address. docs/cni.md is the table of outcomes.

pub mod commands;
pub mod config;
pub mod error;
pub mod invocation;
pub mod kernel;
pub mod prev_result;
pub mod version;

use std::ffi::OsString;

pub use error::{Code, Error};

/// Longest network configuration. A chain's result with all its routes has some KiB; valid attachments of a GC 90 bytes
/// each.
pub const MAX_INPUT: usize = 1024 * 1024;

/// Where everything that a runtime says comes from.
pub struct Input<'a> {
    /// A variable's value.
    pub environment: &'a dyn Fn(&str) -> Option<OsString>,
    /// Standard input.
    pub config: &'a [u8],
}

/// Tells a person what happened, in one line; runtimes put standard error into their logs.
pub type Notes<'a> = &'a mut dyn FnMut(&str);

/// Carries out one invocation. The answer is for standard output; empty where CNI wants none.
pub fn run(input: &Input, notes: Notes) -> Result<String, Error> {
    use invocation::Command;

    let command = invocation::command(input)?;
    if command == Command::Version {
        return Ok(version::answer(input.config));
    }
    let config = config::Config::parse(input.config)?;
    let version = config.version;
    let outcome = if version < command.since() {
        Err(Error::new(Code::IncompatibleVersion, format!("{command} does not exist in CNI {version}")))
    } else {
        match command {
            Command::Add => commands::add(&config, &invocation::Target::parse(input)?, notes),
            Command::Check => commands::check(&config, &invocation::Target::parse(input)?, notes),
            Command::Del => commands::del(&config, &invocation::Departure::parse(input)?, notes),
            Command::Gc => commands::gc(&config, notes),
            Command::Status => commands::status(&config, notes),
            Command::Version => Ok(String::new()),
        }
    };
    outcome.map_err(|error| error.of_version(version))
}
