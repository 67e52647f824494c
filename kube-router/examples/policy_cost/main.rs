//! What network policy costs: prints one JSON object a line, for `cargo xtask bench policy` to make a table of.
//!
//!     policy_cost path [JUDGE...]               a packet's way from pod to pod: plain, ours, iptables-nft, iptables-legacy
//!     policy_cost once [JUDGE...]               the same, with one policy only
//!     policy_cost service                       to a service: by IPVS, and past it
//!     policy_cost lookups [FEW MANY]            a new flow, with few and many rows, in real time
//!     policy_cost compile [POLICIES [PODS [NAMESPACES]]]   the compiler: all of a cluster, and one change
//!     policy_cost memory PROGRAM POLICIES PODS  what a whole agent holds
//!     policy_cost verdict PROGRAM POLICIES      from a changed manifest to a packet's changed fate
//!
//! All but `compile` need root and make network namespaces of their own. `path` and `once` need the kernel's packet generator;
//! under QEMU's `-icount shift=0,sleep=off` a nanosecond of it is an instruction.

mod agent;
mod cluster;
mod compile;
mod enforce;
mod front;
mod lab;
mod lookups;
mod original;
mod path;
mod pins;
mod pktgen;
mod service;
mod verdict;

use anyhow::{Context, Result, bail};

use crate::cluster::Shape;

fn main() -> Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let Some((what, rest)) = arguments.split_first() else { bail!("path, once, lookups, compile, memory or verdict") };
    let number = |at: usize, default: u32| match rest.get(at) {
        Some(text) => text.parse().with_context(|| text.clone()),
        None => Ok(default),
    };
    let program = || rest.first().map(std::path::Path::new).context("PROGRAM");
    let namespaces = |pods: u32| (pods / 100).max(1);
    match what.as_str() {
        "path" => path::run(&path::cases(), rest),
        "once" => path::run(&path::cases()[..1], rest),
        "service" => service::run(),
        "lookups" => lookups::run(number(0, 1_000)?, number(1, 100_000)?),
        "compile" => {
            let pods = number(1, 10_000)?;
            compile::run(Shape { policies: number(0, 10_000)?, pods, namespaces: number(2, namespaces(pods))? })
        }
        "memory" => {
            let (policies, pods) = (number(1, 10_000)?, number(2, 10_000)?);
            agent::measure_memory(program()?, Shape { policies, pods, namespaces: namespaces(pods) })
        }
        "verdict" => verdict::run(program()?, number(1, 1_000)?),
        other => bail!("{other}: path, once, service, lookups, compile, memory or verdict"),
    }
}
