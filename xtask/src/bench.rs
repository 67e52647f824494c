//! `cargo xtask bench`: measurements that do not depend on how busy this machine is.
//!
//! A bench is a program `bench-NAME` of the test crate, run in a virtual machine with one CPU whose clock advances one
//! nanosecond per executed instruction: its durations are instruction counts, repeatable within about one per cent, on
//! any host. They say nothing about cache misses, locks or several CPUs. The program prints a line for each
//! measurement, as often as it likes ([`report::Measurement`]); the median over all boots goes into
//! target/bench/NAME.md and NAME.svg.

mod report;

use std::fs;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, Result, ensure};

use crate::vm::{self, Kernel, VmOptions, VmStatus};
use crate::{build_ebpf, cargo, paths, setup, sh};

use report::Report;

#[derive(clap::Args)]
pub struct Args {
    /// Only this bench; repeatable. Without it: all
    #[arg(long, value_name = "NAME")]
    only: Vec<String>,
    /// Which kernel
    #[arg(long, value_enum, default_value_t = Kernel::V6_1)]
    kernel: Kernel,
    /// Boots; a measurement is the median over all of them
    #[arg(long, default_value_t = 3)]
    boots: u32,
    /// Seconds for one boot
    #[arg(long, default_value_t = 600)]
    timeout: u64,
    /// Arguments for the bench
    #[arg(last = true)]
    rest: Vec<String>,
}

pub fn run(args: &Args) -> Result<ExitCode> {
    let benches = benches(&args.only)?;
    setup::lab_packages()?;
    setup::virtual_machines(&[args.kernel])?;
    if build_ebpf::exists() {
        build_ebpf::build(setup::bpf_toolchain()?)?;
    }
    let mut build = cargo::command();
    // As shipped: a count of unoptimised instructions would measure the compiler.
    build.args(["build", "--release", "--package", "kube-router", "--package", "kube-router-tests", "--bins"]);
    sh::run("release build", &mut build)?;
    let folder = paths::target().join("bench");
    fs::create_dir_all(&folder)?;
    for name in benches {
        let report = measure(&name, args)?;
        for (extension, text) in [("md", report.markdown(&name)), ("svg", report.svg(&name))] {
            let file = folder.join(format!("{name}.{extension}"));
            fs::write(&file, text).with_context(|| file.display().to_string())?;
            println!("{}", file.display());
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// The benches that the test crate has, or those of them that were asked for.
fn benches(only: &[String]) -> Result<Vec<String>> {
    let mut names: Vec<String> = fs::read_dir(paths::workspace().join("tests/src/bin"))?
        .flatten()
        .filter_map(|entry| {
            let name = entry.file_name().into_string().ok()?;
            Some(name.strip_prefix("bench-")?.strip_suffix(".rs")?.to_string())
        })
        .collect();
    names.sort();
    for name in only {
        ensure!(names.contains(name), "there is no bench {name}; there are: {}", names.join(", "));
    }
    names.retain(|name| only.is_empty() || only.contains(name));
    ensure!(!names.is_empty(), "the test crate has no program bench-NAME");
    Ok(names)
}

fn measure(name: &str, args: &Args) -> Result<Report> {
    let release = paths::target().join("release");
    let text = |path: PathBuf| path.to_string_lossy().into_owned();
    let options = VmOptions {
        icount: true,
        timeout: Duration::from_secs(args.timeout),
        env: vec![("KUBE_ROUTER_BIN".into(), text(release.join("kube-router")))],
        modules: ["ip_vs", "br_netfilter"].map(String::from).to_vec(),
        ..VmOptions::new(args.kernel)
    };
    let mut argv = vec![text(release.join(format!("bench-{name}")))];
    argv.extend(args.rest.iter().cloned());
    let mut report = Report::new(args.kernel);
    for boot in 1..=args.boots {
        let _progress = sh::Progress::start(&format!("bench {name}, boot {boot} of {}", args.boots));
        let output = vm::run(&options, &argv)?;
        let said = || sh::tail(&output.stderr, 25);
        ensure!(output.status == VmStatus::Exited(0), "bench {name}: {}\n{}", output.verdict(), said());
        let found = report.add(&String::from_utf8_lossy(&output.stdout))?;
        ensure!(found > 0, "bench {name} printed no measurement\n{}", said());
    }
    Ok(report)
}
