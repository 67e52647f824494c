//! `cargo xtask COMMAND`: everything a developer or CI does to this repository.
//!
//! Each command is a file; what they share is [`sh`] (child processes), [`paths`] (where things are) and [`vm`] (a
//! throw-away machine with a stock Debian kernel). The crate depends on nothing of the agent: it hands paths of
//! built binaries around and never links them.

mod bench;
mod build_ebpf;
mod cargo;
mod demo;
mod host;
mod paths;
mod setup;
mod sh;
mod test;
mod tidy;
mod tiers;
mod vm;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

#[derive(Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask", about = "Developer commands of kube-router", version)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Install what the tests need: packages, bpf-linker, two kernels, Kubernetes components (Debian 12)
    Setup(setup::Args),
    /// Build the BPF programs into target/bpf/
    BuildEbpf,
    /// Run the tests, tier by tier
    Test(test::Args),
    /// Check format, lints, room borders, file sizes and licences
    Tidy(tidy::Args),
    /// Measure services or network policy, most of it in a virtual machine whose clock counts instructions
    Bench(bench::Args),
    /// Show the agent at work on a small cluster of network namespaces
    Demo(demo::Args),
    /// Run one command in a throw-away virtual machine on top of this machine's root filesystem
    Vm(vm::Args),
}

fn main() -> ExitCode {
    let result = match Cli::parse().command {
        Command::Setup(args) => setup::run(&args),
        Command::BuildEbpf => build_ebpf::run(),
        Command::Test(args) => test::run(&args),
        Command::Tidy(args) => tidy::run(&args),
        Command::Bench(args) => bench::run(&args),
        Command::Demo(args) => demo::run(&args),
        Command::Vm(args) => vm::command(&args),
    };
    match result {
        Ok(code) => code,
        Err(error) => {
            eprintln!("xtask: {error:#}");
            ExitCode::FAILURE
        }
    }
}
