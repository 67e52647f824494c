//! `cargo xtask bench [services | policy | fastpath]`: what the agent costs, on real kernel tables, as a Markdown table and a plot in
//! target/bench/.
//!
//! Network policy is in [`policy`]. Of services the measuring program is kube-router's example `cost`; it prints one JSON object a line. It runs in two machines:
//!
//! | machine | clock | answers |
//! |---|---|---|
//! | instruction count, one CPU | 1 ns is one instruction of the guest, user and kernel side | how much work; repeats within 1 % whatever else the host does |
//! | ordinary emulation | real time | memory, writes, wake-ups |
//!
//! [`report`] and [`policy_report`] hold the goals and judge; a missed goal makes the command fail.

mod fastpath;
mod goals;
mod plot;
mod policy;
mod policy_report;
mod report;

use std::{fs, path::PathBuf, process::ExitCode, time::Duration};

use anyhow::{Context, Result, bail};
use serde_json::Value;

use crate::{
    cargo, paths, setup, sh,
    vm::{self, Kernel, VmOptions, VmStatus},
};

/// Pods of the cluster whose agent's memory is measured.
const PODS: u32 = 10_000;

/// What is measured.
#[derive(Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum What {
    Services,
    Policy,
    /// A packet to a service, by IPVS and past it
    Fastpath,
}

#[derive(clap::Args)]
pub struct Args {
    #[arg(value_enum, default_value_t = What::Services)]
    what: What,
    /// Numbers of services, ten endpoints each
    #[arg(long, value_delimiter = ',', default_value = "100,1000,10000")]
    services: Vec<u32>,
    /// Leave out what needs a whole agent: memory, restart and rest; of policy, memory and the way from a change to a verdict
    #[arg(long)]
    without_agent: bool,
    /// Of policy: only a packet's way, plain and through our hooks, with one policy on the pods; a minute or two
    #[arg(long)]
    once: bool,
    /// Of policy: measure nothing, judge the lines that an earlier run left (target/bench/policy.json)
    #[arg(long, value_name = "FILE")]
    from: Option<PathBuf>,
    /// Which kernel
    #[arg(long, value_enum, default_value_t = Kernel::V6_1)]
    kernel: Kernel,
    /// Seconds for each machine
    #[arg(long, default_value_t = 1800)]
    timeout: u64,
}

pub fn run(args: &Args) -> Result<ExitCode> {
    match args.what {
        What::Services => services(args),
        What::Policy => policy::run(args),
        What::Fastpath => fastpath::run(args),
    }
}

fn services(args: &Args) -> Result<ExitCode> {
    setup::virtual_machines(&[args.kernel])?;
    let mut build = cargo::command();
    build.args(["build", "--release", "--package", "kube-router", "--bin", "kube-router", "--example", "cost"]);
    sh::run("release build", &mut build)?;
    let program = paths::target().join("release/examples/cost").display().to_string();
    let agent = paths::target().join("release/kube-router").display().to_string();

    let sizes: Vec<String> = args.services.iter().map(u32::to_string).collect();
    let mut table = vec![program.clone(), "table".into()];
    table.extend(sizes);
    let options = |icount| VmOptions {
        icount,
        memory_mib: 2048,
        timeout: Duration::from_secs(args.timeout),
        ..VmOptions::new(args.kernel)
    };
    let mut lines = measure("instructions", &options(true), &table)?;
    if !args.without_agent {
        let services = args.services.iter().max().context("--services: at least one number")?;
        let argv = [program, "agent".into(), agent, services.to_string(), PODS.to_string()];
        lines.extend(measure("memory and rest", &options(false), &argv)?);
    }

    let folder = paths::target().join("bench");
    fs::create_dir_all(&folder).with_context(|| folder.display().to_string())?;
    let report = report::Report::new(&lines);
    let text = report.markdown(args.kernel.name());
    fs::write(folder.join("cost.md"), &text)?;
    fs::write(folder.join("cost.svg"), plot::svg(&plot::Axes { x: "services", y: "instructions" }, &report.curves()))?;
    fs::write(folder.join("cost.json"), lines.iter().map(|line| format!("{line}\n")).collect::<String>())?;
    print!("{text}");
    Ok(if report.all_met() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// What the program says in a machine.
fn measure(what: &str, options: &VmOptions, argv: &[String]) -> Result<Vec<Value>> {
    let _progress = sh::Progress::start(what);
    let output = vm::run(options, argv)?;
    if output.status != VmStatus::Exited(0) {
        bail!("{what}: {}\n{}", output.verdict(), sh::tail(&output.stderr, 20));
    }
    parse(&output.stdout)
}

fn parse(output: &[u8]) -> Result<Vec<Value>> {
    let text = String::from_utf8_lossy(output);
    text.lines().map(|line| serde_json::from_str(line).with_context(|| line.to_owned())).collect()
}
