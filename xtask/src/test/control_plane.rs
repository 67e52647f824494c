//! The API server beside a virtual machine: started on this machine, where it takes seconds instead of minutes.
//!
//! The guest sees this machine's loopback at 10.0.2.2, and its folders, so it can use the kubeconfigs as they are once
//! something carries the connections there; what the tests tell the control plane goes the same way.

use std::io::{BufRead, BufReader};
use std::path::PathBuf;
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};

use crate::{paths, sh};

/// This machine in QEMU's user-mode network.
const HOST_OF_A_GUEST: &str = "10.0.2.2";

/// A server that is being stopped takes a few seconds.
const END: Duration = Duration::from_secs(20);

/// Ends when dropped.
pub struct ControlPlane {
    child: Child,
    /// For the tests.
    pub variables: Vec<(String, String)>,
}

impl ControlPlane {
    pub fn program() -> PathBuf {
        paths::target().join("debug/with-api-server")
    }

    /// The flag that chooses controllers.
    pub fn controllers(names: &[&str]) -> String {
        format!("--controllers={}", names.join(","))
    }

    /// Returns once it answers.
    pub fn start(controllers: &[&str], environment: &[(String, String)]) -> Result<ControlPlane> {
        let mut command = sh::command(ControlPlane::program());
        command.arg(ControlPlane::controllers(controllers)).arg(format!("--announce={HOST_OF_A_GUEST}"));
        command.envs(environment.iter().cloned()).stdin(Stdio::piped()).stdout(Stdio::piped());
        let child = command.spawn().with_context(|| format!("cannot start {}", sh::line(&command)))?;
        let mut started = ControlPlane { child, variables: Vec::new() };
        let stdout = started.child.stdout.take().context("piped")?;
        for line in BufReader::new(stdout).lines() {
            let line = line?;
            match line.split_once('=') {
                Some((name, value)) => started.variables.push((name.to_owned(), value.to_owned())),
                None => return Ok(started),
            }
        }
        anyhow::bail!("{} ended before it served; see its message above", sh::line(&command))
    }
}

impl Drop for ControlPlane {
    fn drop(&mut self) {
        // It ends with its input, and takes its servers and its folder with it.
        drop(self.child.stdin.take());
        let begin = Instant::now();
        while begin.elapsed() < END && matches!(self.child.try_wait(), Ok(None)) {
            std::thread::sleep(Duration::from_millis(50));
        }
        // Both fail only if it is gone already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
