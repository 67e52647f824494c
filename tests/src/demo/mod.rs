//! A demonstration for people: kube-router at work on a small cluster, in the order in which one would look at it.
//!
//! Three nodes, five pods that say their address, two services and a client outside, after a deployment that was
//! written up when kube-router was young: the same addresses, the same commands. Everything shown is the real output of
//! a real program, and everything claimed is checked; a claim that fails is named, and the demonstration goes on.
//!
//! * [`cast`] knows who plays: names and addresses, from `tests/fixtures/whats-my-ip.yaml`.
//! * [`stage`] builds the cluster; [`feed`] is how the agents learn of it (files, or an API server).
//! * [`look`], [`change`] and [`policy`] are the acts (of the last one [`shop`] knows who plays); [`narrator`] is the only one that prints.
//!
//! It is not the place to test corner cases: those tests are silent, and elsewhere.

mod cast;
mod change;
mod feed;
mod interrupt;
mod keep;
mod look;
mod narrator;
mod policy;
mod shop;
mod stage;

use anyhow::Result;

use self::{cast::Cast, interrupt::Interrupt, narrator::Narrator, stage::Stage};

/// What the command line asks for.
#[derive(Clone, Copy, Debug, Default)]
pub struct Options {
    /// Leave everything up at the end, until a signal.
    pub keep: bool,
    /// A Kubernetes API server and its controller tell the agents, instead of files.
    pub from_cluster: bool,
}

/// Plays it. `Ok(false)`: a check failed, and the summary has named it.
///
/// # Errors
/// The cluster could not be built, or a signal ended it.
pub fn run(options: Options) -> Result<bool> {
    // First of all, while there is one thread: see there.
    let interrupt = Interrupt::install()?;
    let mut narrator = Narrator::new(interrupt.clone());
    let mut stage = Stage::build(Cast::load()?, options.from_cluster, &mut narrator)?;
    look::perform(&mut stage, &mut narrator)?;
    change::perform(&mut stage, &mut narrator)?;
    policy::perform(&mut stage, &mut narrator)?;
    let good = narrator.finish();
    if options.keep {
        keep::look_around(&stage);
        interrupt.wait();
    }
    Ok(good)
}
