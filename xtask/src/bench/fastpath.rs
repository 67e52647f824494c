//! `cargo xtask bench fastpath`: what a packet to a service costs by IPVS and past it, in instructions.

use std::{process::ExitCode, time::Duration};

use anyhow::Result;
use serde_json::Value;

use super::{Args, goals, goals::Goal, measure};
use crate::{cargo, paths, setup, sh, vm::VmOptions};

const MEMORY_MIB: u32 = 2048;
const MODULES: [&str; 6] = ["pktgen", "veth", "nf_tables", "ip_vs", "ip_vs_rr", "nf_conntrack"];

pub fn run(args: &Args) -> Result<ExitCode> {
    setup::virtual_machines(&[args.kernel])?;
    let mut build = cargo::command();
    build.args(["build", "--release", "--package", "kube-router", "--example", "policy_cost"]);
    sh::run("release build", &mut build)?;
    let program = paths::target().join("release/examples/policy_cost").display().to_string();
    let machine = VmOptions {
        icount: true,
        memory_mib: MEMORY_MIB,
        timeout: Duration::from_secs(args.timeout),
        modules: MODULES.map(str::to_owned).into(),
        ..VmOptions::new(args.kernel)
    };
    let lines = measure("instructions of a packet", &machine, &[program, "service".to_owned()])?;
    println!("| way | services | established | new |\n|---|---|---|---|");
    for line in &lines {
        let cost = |what: &str| line[what].as_f64().unwrap_or_default();
        let (way, services) = (line["way"].as_str().unwrap_or("?"), &line["services"]);
        println!("| {way} | {services} | {:.0} | {:.0} |", cost("established_ns"), cost("new_ns"));
    }
    println!();
    let goals = judge(&lines);
    print!("{}", goals::table(&goals));
    Ok(if goals::all_met(&goals) { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn judge(lines: &[Value]) -> Vec<Goal> {
    let cost = |way: &str, services: u32, what: &str| {
        let line = lines.iter().find(|line| line["way"] == way && line["services"] == services)?;
        line[what].as_f64()
    };
    let ratio = |services, what, way, among| Some(cost("fast", services, what)? / cost(way, among, what)?);
    vec![
        Goal::at_most("established, of IPVS", 0.65, ratio(10, "established_ns", "ipvs", 1), ""),
        Goal::at_most("established, of plain forwarding", 0.80, ratio(10, "established_ns", "plain", 0), ""),
        Goal::at_most("first packet, of IPVS", 1.0, ratio(10, "new_ns", "ipvs", 1), ""),
        Goal::at_most("established, 1,000 services of 10", 1.03, ratio(1_000, "established_ns", "fast", 10), ""),
        Goal::at_most("established, 10,000 services of 10", 1.03, ratio(10_000, "established_ns", "fast", 10), ""),
    ]
}
