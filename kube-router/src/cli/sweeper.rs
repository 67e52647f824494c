//! Removes flows that are over, on a thread of its own, as a full table takes a while; tells the loop whose backends are left.

use std::{sync::mpsc as std_mpsc, thread, time::Duration};

use anyhow::Result;
use tokio::sync::{mpsc, watch};
use tracing::warn;

use crate::{
    apply::bpf::{self, BalanceMaps, Tables},
    config::ProgramsConfig,
    reconcile::balance::{Sweep, Sweeping},
    sys::clock,
};

/// Between two looks for flows that are over. Entries outlive their time by this much; they are refused all the same.
const SWEEP_EVERY: Duration = Duration::from_secs(30);
/// The same while the table is more than a quarter full, as a pod that floods gets half of it and no more until a sweep; and
/// while the loop waits for flows to end.
const SWEEP_OFTEN: Duration = Duration::from_secs(5);

pub struct Sweeper {
    stop: Option<std_mpsc::Sender<()>>,
    thread: Option<thread::JoinHandle<()>>,
}

impl Sweeper {
    pub fn start(
        config: &ProgramsConfig,
        tell: mpsc::Sender<Sweep>,
        wanted: watch::Receiver<Sweeping>,
    ) -> Result<Self> {
        let root = bpf::root(&config.pins);
        let (tables, balance) = (Tables::open(&root)?, BalanceMaps::open(&root)?);
        let (stop, stopped) = std_mpsc::channel();
        let many = config.sizes.flows as usize / 4;
        let thread = thread::Builder::new().name("flows".into()).spawn(move || {
            let (mut idle, mut is_crowded) = (Duration::ZERO, false);
            while let Err(std_mpsc::RecvTimeoutError::Timeout) = stopped.recv_timeout(SWEEP_OFTEN) {
                idle += SWEEP_OFTEN;
                let Sweeping { is_awaited, end } = *wanted.borrow();
                if idle < SWEEP_EVERY && !is_crowded && !is_awaited {
                    continue;
                }
                (idle, is_crowded) = (Duration::ZERO, false);
                let began_ms = clock::uptime_ms();
                match tables.sweep_flows(&balance, end, bpf::now_s()) {
                    Ok(swept) => {
                        is_crowded = swept.live > many;
                        // Of one that waits still the loop learns no less.
                        let _ = tell.try_send(Sweep { began_ms, held: swept.held });
                    }
                    Err(error) => warn!(%error, "flows that are over stay for now"),
                }
            }
        })?;
        Ok(Sweeper { stop: Some(stop), thread: Some(thread) })
    }
}

impl Drop for Sweeper {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}
