//! Who may import what. The lists here are the architecture's rules, and the only place where they are written as code.
//!
//! The pure rooms decide; they do not act. So nothing in them may reach an effect: the runtime, the API client, BPF,
//! netlink, files, processes, sockets, the clock, randomness, or one of our own rooms that has any of these. Their
//! tests may. And the command line knows every room while no room knows the command line.

use std::path::Path;

use super::paths_in::paths_in;
use super::{Finding, Source};

const SRC: &str = "kube-router/src";

/// Decisions only.
const PURE: &[&str] = &["objects", "cluster", "compile", "desired", "explain", "plan", "reconcile"];

/// Parts of pure rooms that act; each with its room's leave.
const DRIVERS: &[&str] = &["reconcile/driver.rs", "reconcile/driver"];

/// Beginnings of paths that mean an effect.
const EFFECTS: &[&str] = &[
    "tokio",
    "futures",
    "kube",
    "aya",
    "aya_obj",
    "axum",
    "hyper",
    "notify",
    "netlink_sys",
    "netlink_packet_core",
    "netlink_packet_route",
    "nix",
    "libc",
    "socket2",
    "procfs",
    "rand",
    "getrandom",
    "std::fs",
    "std::process",
    "std::env",
    "std::thread",
    "std::os",
    "std::net::TcpStream",
    "std::net::TcpListener",
    "std::net::UdpSocket",
    "std::net::ToSocketAddrs",
    "crate::nl",
    "crate::sys",
    "crate::watch",
    "crate::observe",
];

/// Ends of paths that mean an effect, whatever stands before.
const CALLS: &[&str] = &["Instant::now", "SystemTime::now", "Utc::now", "Timestamp::now", "OsRng", "RandomState::new"];

/// Paths under `crate::apply` that are plain data: the orders and their outcome.
const APPLY: &str = "crate::apply";

pub fn check(sources: &[Source]) -> Vec<Finding> {
    let rust = sources.iter().filter(|source| source.is_rust());
    rust.filter_map(|source| Some((source, source.path.strip_prefix(SRC).ok()?)))
        .filter(|(_, inside)| !is_test(inside))
        .flat_map(|(source, inside)| check_file(&source.path, inside, &source.text))
        .collect()
}

/// `tests.rs`, `tests/` and `testdata/` below a room.
pub fn is_test(inside: &Path) -> bool {
    inside.iter().any(|word| word == "tests" || word == "tests.rs" || word == "testdata")
}

/// The pure room that a file belongs to, if any.
pub fn pure_room(inside: &Path) -> Option<&'static str> {
    if DRIVERS.iter().any(|driver| inside.starts_with(driver)) {
        return None;
    }
    PURE.iter().copied().find(|room| inside.starts_with(room) || inside == Path::new(&format!("{room}.rs")))
}

fn check_file(file: &Path, inside: &Path, text: &str) -> Vec<Finding> {
    let paths = match paths_in(file, text) {
        Ok(paths) => paths,
        Err(error) => return vec![Finding::new(file, 0, format!("{error:#}"))],
    };
    let room = pure_room(inside);
    let may_know_cli = inside.starts_with("cli") || inside == Path::new("main.rs");
    let mut findings = Vec::new();
    for (path, line) in paths {
        let path = path.join("::");
        if !may_know_cli && is_below(&path, "crate::cli") {
            findings.push(Finding::new(file, line, format!("{path}: only cli and main may know the command line")));
        }
        if let Some(room) = room
            && is_effect(&path)
        {
            findings.push(Finding::new(file, line, format!("{path}: {room} is a pure room, and this is an effect")));
        }
    }
    findings
}

fn is_effect(path: &str) -> bool {
    // The numbers of errors are words of the plan's vocabulary.
    if path
        .strip_prefix("libc::E")
        .is_some_and(|rest| rest.chars().all(|c| c.is_ascii_uppercase() || c.is_ascii_digit()))
    {
        return false;
    }
    let call = |call: &&str| path == *call || path.ends_with(&format!("::{call}"));
    EFFECTS.iter().any(|effect| is_below(path, effect)) || CALLS.iter().any(call) || is_acting_apply(path)
}

/// Of `apply`, its own top (orders, outcomes, the traits) is shared vocabulary; the planes below it act.
fn is_acting_apply(path: &str) -> bool {
    path.strip_prefix(APPLY)
        .and_then(|rest| rest.strip_prefix("::"))
        .is_some_and(|rest| rest.starts_with(|c: char| c.is_ascii_lowercase()))
}

fn is_below(path: &str, top: &str) -> bool {
    path.strip_prefix(top).is_some_and(|rest| rest.is_empty() || rest.starts_with("::"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn findings(file: &str, text: &str) -> Vec<String> {
        let source = Source { path: Path::new(SRC).join(file), text: text.to_string() };
        check(&[source]).iter().map(|finding| format!("{}: {}", finding.line, finding.what)).collect()
    }

    #[test]
    fn a_pure_room_may_not_reach_an_effect() {
        for bad in [
            "use tokio::time;",
            "use libc::getpid;",
            "use std::{collections::BTreeMap, fs};",
            "use std::net::{IpAddr, TcpStream};",
            "fn f() { let now = std::time::Instant::now(); }",
            "use std::time::Instant;\nfn f() { Instant::now(); }",
            "use super::super::nl::Socket;",
            "use crate::apply::ipvs::Plane;",
            "fn f() { debug!(\"{}\", std::env::args().count()) }",
        ] {
            assert_eq!(findings("plan/ops.rs", bad).len(), 1, "{bad}");
            assert_eq!(findings("apply/ipvs/mod.rs", bad), Vec::<String>::new(), "{bad}");
        }
    }

    #[test]
    fn a_pure_room_may_use_data_and_its_tests_may_do_anything() {
        for good in [
            "use std::{net::IpAddr, time::{Duration, Instant}};",
            "use crate::{apply::{Op, IpvsTimeouts}, config::ProxyConfig};",
            "#[cfg(test)]\nmod tests { use std::fs; }",
            "// tokio::spawn\nconst TEXT: &str = \"std::fs\";",
            "use crate::objects::kube_types; use crate::nlx::y;",
            "use libc::{ENOENT, EEXIST};",
        ] {
            assert_eq!(findings("compile/services.rs", good), Vec::<String>::new(), "{good}");
        }
        assert_eq!(findings("plan/tests.rs", "use std::fs;"), Vec::<String>::new());
        assert_eq!(findings("reconcile/driver.rs", "use tokio::select;"), Vec::<String>::new());
        assert_eq!(findings("reconcile/mod.rs", "use tokio::select;").len(), 1);
    }

    #[test]
    fn only_cli_and_main_know_the_command_line() {
        assert_eq!(findings("config.rs", "use crate::{cli::flags, plan};").len(), 1);
        assert_eq!(findings("watch/mod.rs", "fn f() { crate::cli::run() }").len(), 1);
        assert_eq!(findings("cli/run.rs", "use crate::cli::flags;"), Vec::<String>::new());
        assert_eq!(findings("watch/mod.rs", "use crate::client::X;"), Vec::<String>::new());
    }

    #[test]
    fn a_finding_says_where() {
        assert_eq!(
            findings("plan/ops.rs", "\n\nuse aya::Ebpf;\n"),
            ["3: aya::Ebpf: plan is a pure room, and this is an effect"]
        );
    }
}
