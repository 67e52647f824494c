//! `cargo xtask bench policy`: what network policy costs a packet, a change, a node.
//!
//! The measuring program is kube-router's example `policy_cost`; it prints one JSON object a line.
//!
//! | part | where | clock |
//! |---|---|---|
//! | a packet's way | instruction-counting machine | 1 ns is one instruction; repeats within 1 % |
//! | a new flow with small and large tables | this machine | real time, in pairs: caches count, other load does not |
//! | the compiler, the agent's memory | this machine | real time |
//! | a verdict after a change | this machine | real time, with real-time priority |

use std::{
    fs,
    path::Path,
    process::{Command, ExitCode},
    time::Duration,
};

use anyhow::{Context, Result};
use serde_json::Value;

use super::{Args, goals, measure, parse, plot, policy_report::Report};
use crate::{cargo, host, paths, setup, sh, vm::VmOptions};

/// Policies of the clusters that the compiler gets, each with 10,000 pods.
const CLUSTERS: [&str; 3] = ["100", "1000", "10000"];
const PODS: &str = "10000";
/// Policies while a verdict is waited for.
const LIVE: &str = "1000";
/// A cluster as objects and as tables, and the original's tools.
const MEMORY_MIB: u32 = 3072;
/// For one part on this machine.
const PATIENCE: Duration = Duration::from_secs(600);
const MODULES: [&str; 3] = ["pktgen", "veth", "nf_tables"];

pub fn run(args: &Args) -> Result<ExitCode> {
    if let Some(file) = &args.from {
        return write(&parse(&fs::read(file).with_context(|| file.display().to_string())?)?, args);
    }
    setup::virtual_machines(&[args.kernel])?;
    let mut build = cargo::command();
    build.args(["build", "--release", "--package", "kube-router", "--bin", "kube-router", "--example", "policy_cost"]);
    sh::run("release build", &mut build)?;
    let program = paths::target().join("release/examples/policy_cost");
    let agent = paths::target().join("release/kube-router").display().to_string();

    let machine = VmOptions {
        icount: true,
        memory_mib: MEMORY_MIB,
        timeout: Duration::from_secs(args.timeout),
        modules: MODULES.map(str::to_owned).into(),
        ..VmOptions::new(args.kernel)
    };
    let path = |arguments: &[&str]| {
        let mut argv = vec![program.display().to_string()];
        argv.extend(arguments.iter().map(|argument| (*argument).to_owned()));
        measure("instructions of a packet", &machine, &argv)
    };
    if args.once {
        let lines = path(&["once", "plain", "ours"])?;
        let goals = Report::new(&lines).once();
        for line in &lines {
            println!("{}: established {}, new {}", line["judge"], line["established_ns"], line["new_ns"]);
        }
        print!("{}", goals::table(&goals));
        return Ok(if goals::all_met(&goals) { ExitCode::SUCCESS } else { ExitCode::FAILURE });
    }

    let mut lines = Vec::new();
    for policies in CLUSTERS {
        lines.extend(here(&program, &["compile", policies, PODS])?);
    }
    lines.extend(here(&program, &["lookups", "1000", "100000"])?);
    if !args.without_agent {
        lines.extend(here(&program, &["memory", &agent, CLUSTERS[2], PODS])?);
        lines.extend(at_once(&program, &["verdict", &agent, LIVE])?);
    }
    lines.extend(path(&["path"])?);
    write(&lines, args)
}

/// On this machine: namespaces and BPF need root.
fn here(program: &Path, arguments: &[&str]) -> Result<Vec<Value>> {
    run_here(host::isolated(&[], PATIENCE), program, arguments)
}

/// The same with real-time priority: what else the machine does is not to count.
fn at_once(program: &Path, arguments: &[&str]) -> Result<Vec<Value>> {
    let mut command = host::isolated(&[], PATIENCE);
    command.args(["chrt", "--fifo", "10"]);
    run_here(command, program, arguments)
}

fn run_here(mut command: Command, program: &Path, arguments: &[&str]) -> Result<Vec<Value>> {
    let _progress = sh::Progress::start(&arguments.join(" "));
    let output = command.arg(program).args(arguments).output().with_context(|| program.display().to_string())?;
    anyhow::ensure!(output.status.success(), "{}: {}\n{}", arguments[0], output.status, sh::tail(&output.stderr, 20));
    parse(&output.stdout)
}

fn write(lines: &[Value], args: &Args) -> Result<ExitCode> {
    let folder = paths::target().join("bench");
    fs::create_dir_all(&folder).with_context(|| folder.display().to_string())?;
    let report = Report::new(lines);
    let text = report.markdown(args.kernel.name());
    fs::write(folder.join("policy.md"), &text)?;
    let axes = plot::Axes { x: "policies that select client and server", y: "instructions a packet" };
    fs::write(folder.join("policy.svg"), plot::svg(&axes, &report.curves()))?;
    fs::write(folder.join("policy.json"), lines.iter().map(|line| format!("{line}\n")).collect::<String>())?;
    print!("{text}");
    Ok(if goals::all_met(&report.goals()) { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
