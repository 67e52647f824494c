//! The BPF programs at the start of the agent: loaded where the configuration needs them; else what an older agent left is retired.

use std::{path::Path, sync::mpsc as std_mpsc, thread, time::Duration};

use anyhow::Result;
use tokio::sync::{mpsc, watch};
use tracing::{info, warn};

use super::sweeper::Sweeper;
use crate::{
    apply::{
        PolicyPlane,
        bpf::{self, KernelPolicy},
    },
    compile::Problem,
    config::ProgramsConfig,
    reconcile::balance::{Sweep, Sweeping},
    sys::bpffs,
};

/// Between two looks whether flows still need what an older agent left.
const RETIRE_EVERY: Duration = Duration::from_secs(30);

/// The programs and what comes with them, or nothing of that. Threads end when they are dropped.
#[derive(Default)]
pub struct Programs {
    pub plane: Option<Box<dyn PolicyPlane>>,
    pub records: Option<bpf::Events>,
    pub sweeper: Option<Sweeper>,
    /// Of those that an older agent left.
    pub retirement: Option<Retirement>,
    /// How long they go on without the agent, if that is not what it should be.
    pub problem: Option<Problem>,
}

impl Programs {
    /// What takes a way past the stack would end with the container.
    pub fn outlive_the_container(&self) -> bool {
        self.problem.is_none()
    }
}

/// # Errors
/// They are needed, and cannot be had.
pub fn load(config: &ProgramsConfig, tell: mpsc::Sender<Sweep>, wanted: watch::Receiver<Sweeping>) -> Result<Programs> {
    if !config.needed {
        return Ok(Programs { retirement: Retirement::begin(&config.pins), ..Programs::default() });
    }
    let problem = bpffs::ensure(&config.pins)?;
    let mut plane = KernelPolicy::open(&config.pins, bpf::entries(&config.sizes))?;
    let records = plane.dataplane().take_events()?;
    let sweeper = Sweeper::start(config, tell, wanted)?;
    let plane: Option<Box<dyn PolicyPlane>> = Some(Box::new(plane));
    Ok(Programs { plane, records: Some(records), sweeper: Some(sweeper), retirement: None, problem })
}

/// Waits for the end of the flows that need what an older agent left, on a thread of its own.
pub struct Retirement {
    stop: Option<std_mpsc::Sender<()>>,
    thread: Option<thread::JoinHandle<()>>,
}

impl Retirement {
    /// Puts it out of force at once. `None`: there is nothing to wait for.
    fn begin(pins: &Path) -> Option<Self> {
        // A directory elsewhere was never ours.
        if !pins.exists() || !bpffs::is_bpffs(pins) || is_retired(pins, true) {
            return None;
        }
        let pins = pins.to_owned();
        let (stop, stopped) = std_mpsc::channel();
        let wait = move || {
            while let Err(std_mpsc::RecvTimeoutError::Timeout) = stopped.recv_timeout(RETIRE_EVERY) {
                if is_retired(&pins, false) {
                    return;
                }
            }
        };
        let thread = thread::Builder::new().name("retire".into()).spawn(wait);
        let thread =
            thread.inspect_err(|error| warn!(%error, "programs of an earlier agent stay until the next start"));
        Some(Retirement { stop: Some(stop), thread: thread.ok() })
    }
}

/// Is nothing left?
fn is_retired(pins: &Path, first: bool) -> bool {
    match bpf::retire(pins) {
        Ok(0) => {
            info!(pins = %pins.display(), "removed the programs of an earlier agent");
            true
        }
        Ok(flows) => {
            if first {
                info!(flows, "programs of an earlier agent stay while connections need them; they do nothing else");
            }
            false
        }
        Err(error) => {
            if first {
                warn!(%error, "what an earlier agent left may be in force: kube-router --cleanup-config removes it");
            }
            false
        }
    }
}

impl Drop for Retirement {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}
