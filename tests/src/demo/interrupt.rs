//! Ctrl-C ends the demonstration between two commands, so that it takes its namespaces away.

use std::sync::{Arc, Condvar, Mutex, PoisonError};

use anyhow::{Context, Result};
use nix::sys::signal::{SigSet, Signal};

/// Whether SIGINT or SIGTERM has come. Copies are the same.
#[derive(Clone)]
pub struct Interrupt(Arc<(Mutex<bool>, Condvar)>);

impl Interrupt {
    /// Takes both signals out of the hands of every later thread. To be called while there is one thread only. Children
    /// inherit that, and are ended by SIGKILL.
    pub fn install() -> Result<Interrupt> {
        let signals: SigSet = [Signal::SIGINT, Signal::SIGTERM].into_iter().collect();
        signals.thread_block().context("blocking signals")?;
        let interrupt = Interrupt(Arc::default());
        let theirs = interrupt.clone();
        std::thread::spawn(move || {
            // An error would mean a signal set that the kernel does not know; then nobody is told.
            if signals.wait().is_ok() {
                *theirs.0.0.lock().unwrap_or_else(PoisonError::into_inner) = true;
                theirs.0.1.notify_all();
            }
        });
        Ok(interrupt)
    }

    pub fn has_come(&self) -> bool {
        *self.0.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Returns once a signal has come.
    pub fn wait(&self) {
        let (flag, news) = &*self.0;
        let mut come = flag.lock().unwrap_or_else(PoisonError::into_inner);
        while !*come {
            come = news.wait(come).unwrap_or_else(PoisonError::into_inner);
        }
    }
}
