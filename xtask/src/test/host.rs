//! Test binaries on this machine, with root's rights and namespaces of their own.
//!
//! The wrapper gives each binary a fresh network, mount and PID namespace: links, rules, named namespaces, pinned BPF
//! objects and processes that a test leaves behind are gone when it ends, however it ends, and nothing it does to
//! "the machine's" network touches the machine's.

use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result};

use crate::cargo::TestBinary;
use crate::sh;

/// What the binary finds: an own /run (named namespaces live there), bpffs, loopback.
const INSIDE: &str = "mount -t tmpfs -o mode=755 tmpfs /run && mkdir /run/netns /run/lock \
     && mount -t bpf bpf /sys/fs/bpf && ip link set lo up && exec \"$@\"";

/// An error that says what to do when namespaces cannot be made.
pub fn check_rights() -> Result<()> {
    sh::run("namespaces", wrapper(&[], Duration::from_secs(20)).arg("true")).context(
        "tiers 1, 2, 3 and 5 need root or password-less sudo, and the right to make namespaces \
         (KUBE_ROUTER_TEST_ROOT=skip leaves them out)",
    )
}

/// The binary, ready to be started; it is killed when the time is up or when we end.
pub fn command(
    binary: &TestBinary,
    filter: Option<&str>,
    environment: &[(String, String)],
    timeout: Duration,
) -> Command {
    let mut command = wrapper(environment, timeout);
    command.arg(&binary.path).args(["--ignored", "--test-threads=1"]).args(filter);
    command
}

fn wrapper(environment: &[(String, String)], timeout: Duration) -> Command {
    let mut words: Vec<String> = Vec::new();
    if !nix::unistd::geteuid().is_root() {
        words.extend(["sudo", "-n"].map(String::from));
    }
    words.extend(["setpriv", "--pdeathsig", "KILL", "env"].map(String::from));
    // Through env, not the process's own environment: sudo would drop it.
    words.extend(environment.iter().map(|(name, value)| format!("{name}={value}")));
    words.push(format!("PATH={}", crate::paths::search_path().to_string_lossy()));
    words.extend(["timeout", "--signal=KILL"].map(String::from));
    words.push(timeout.as_secs().to_string());
    words.extend(["unshare", "--mount", "--net", "--pid", "--fork", "--mount-proc", "--kill-child"].map(String::from));
    words.extend(["sh", "-c", INSIDE, "sh"].map(String::from));
    let mut command = sh::command(&words[0]);
    command.args(&words[1..]);
    command
}
