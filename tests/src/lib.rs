//! The test harness: a small cluster out of network namespaces, servers and clients to send traffic, a real API
//! server, and the agent as a child process.
//!
//! ```text
//! lab      nodes, pods and an outside host as namespaces on one wire
//! netns    one named namespace: run a closure or a program in it
//! server   what runs in a pod: says its name over TCP, UDP and SCTP
//! probe    what asks: one question, or many clients for a while
//! api      etcd, kube-apiserver and kube-controller-manager as child processes
//! agent    kube-router as a child process in a namespace
//! http     a plain request
//! process  a child process that ends with its owner, and its log
//! ```
//!
//! Everything here needs root, and removes on drop what it made, and only that. Tests that use it are `#[ignore]`d;
//! `cargo xtask test` runs them where they can run.

pub mod agent;
pub mod api;
pub mod http;
pub mod lab;
pub mod netns;
pub mod probe;
pub mod process;
pub mod server;

use std::time::{Duration, Instant};

use anyhow::{Result, anyhow};

/// Asks until the answer is Ok or the time is up; then the last error is returned. Emulated machines are up to ten
/// times slower than this one: wait for what should happen, never for an amount of time.
pub fn eventually<T>(patience: Duration, mut ask: impl FnMut() -> Result<T>) -> Result<T> {
    let begin = Instant::now();
    loop {
        match ask() {
            Ok(answer) => return Ok(answer),
            Err(error) if begin.elapsed() > patience => {
                return Err(error.context(format!("still so after {:.1} s", begin.elapsed().as_secs_f64())));
            }
            Err(_) => std::thread::sleep(Duration::from_millis(50)),
        }
    }
}

/// [`eventually`], for a condition in words.
pub fn wait_for(what: &str, patience: Duration, mut holds: impl FnMut() -> bool) -> Result<()> {
    eventually(patience, || if holds() { Ok(()) } else { Err(anyhow!("{what}: not yet")) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn eventually_returns_the_first_success_or_the_last_error() {
        let mut asked = 0;
        let mut ask = || {
            asked += 1;
            if asked == 3 { Ok(asked) } else { Err(anyhow!("try {asked}")) }
        };
        assert_eq!(eventually(Duration::from_secs(60), &mut ask).expect("third"), 3);
        let error = eventually(Duration::ZERO, || Err::<(), _>(anyhow!("no"))).expect_err("never");
        assert!(format!("{error:#}").contains("still so after") && format!("{error:#}").ends_with("no"));
    }
}
