//! kube-router at work on a small cluster, for people to watch: see the library's `demo`.
//!
//! Needs root and a kernel with IPVS. `cargo xtask demo` finds or brings one.

use std::process::ExitCode;

use clap::Parser;
use kube_router_tests::demo::{self, Options};

/// Shows kube-router at work on three nodes, five pods and two services, made of network namespaces.
#[derive(Parser)]
struct Arguments {
    /// Leave everything up at the end and say how to look around; Ctrl-C ends it
    #[arg(long)]
    keep: bool,
    /// Feed the agents from a real Kubernetes API server (programs in the folder KUBE_ROUTER_TEST_KUBE_BIN)
    #[arg(long)]
    from_cluster: bool,
}

/// 0: all checks passed. 1: a check failed. 2: it could not be shown to the end.
fn main() -> ExitCode {
    let Arguments { keep, from_cluster } = Arguments::parse();
    match demo::run(Options { keep, from_cluster }) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("demo: {error:#}");
            ExitCode::from(2)
        }
    }
}
