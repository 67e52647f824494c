//! `cargo xtask setup`: everything that a fresh Debian 12 (amd64, root or sudo) lacks for building and testing.
//!
//! A step looks first and works only where something is missing, so that a second run takes seconds and other
//! commands simply call the steps that they need. What takes minutes to make goes into the cache outside the tree
//! ([`crate::paths::cache`]). Nothing is changed on other systems: there a step names what is missing.

mod apt;
mod kernels;
mod kubernetes;
mod tools;

use std::fs::{self, File};
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Instant;

use anyhow::{Context, Result};

use crate::paths;
use crate::vm::Kernel;

pub use tools::BpfToolchain;

#[derive(clap::Args)]
pub struct Args {
    /// Leave out the BPF toolchain
    #[arg(long)]
    without_bpf: bool,
    /// Leave out QEMU and the kernels
    #[arg(long)]
    without_kernels: bool,
    /// Leave out the Kubernetes components
    #[arg(long)]
    without_kubernetes: bool,
    /// Leave out the licence checker
    #[arg(long)]
    without_licences: bool,
}

pub fn run(args: &Args) -> Result<ExitCode> {
    let begin = Instant::now();
    lab_packages()?;
    if !args.without_bpf {
        bpf_toolchain()?;
    }
    if !args.without_kernels {
        virtual_machines(&Kernel::ALL)?;
    }
    if !args.without_kubernetes {
        kubernetes()?;
    }
    if !args.without_licences {
        step("cargo-deny", tools::cargo_deny_present(), tools::install_cargo_deny)?;
    }
    eprintln!("{:6.1} s  setup is complete; the cache is {}", begin.elapsed().as_secs_f64(), paths::cache()?.display());
    Ok(ExitCode::SUCCESS)
}

/// Oracles and plumbing for tests on the host: nft, ipset, ip, conntrack, ...
pub fn lab_packages() -> Result<()> {
    packages("test packages", apt::LAB)
}

/// What `build-ebpf` needs.
pub fn bpf_toolchain() -> Result<BpfToolchain> {
    if let Ok(toolchain) = tools::find_bpf_toolchain() {
        eprintln!("{:6.1} s  BPF toolchain: present ({toolchain})", 0.0);
        return Ok(toolchain);
    }
    packages("BPF toolchain packages", apt::BPF)?;
    step("bpf-linker", tools::bpf_linker_present(), tools::install_bpf_linker)?;
    tools::find_bpf_toolchain()
}

/// QEMU and these kernels, prepared for their first boot.
pub fn virtual_machines(kernels: &[Kernel]) -> Result<()> {
    packages("virtual machine packages", apt::VM)?;
    for &kernel in kernels {
        step(&format!("kernel {kernel}"), kernel.is_ready(), || kernels::install(kernel))?;
    }
    Ok(())
}

/// The folder with etcd, kube-apiserver, kube-controller-manager and kubectl: `$KUBEBUILDER_ASSETS` if set, else built
/// from published Go modules into the cache.
pub fn kubernetes() -> Result<PathBuf> {
    if let Some(dir) = kubernetes::assets_from_environment()? {
        eprintln!("{:6.1} s  Kubernetes components: present ({})", 0.0, dir.display());
        return Ok(dir);
    }
    step("Kubernetes components", kubernetes::is_built()?, kubernetes::build)?;
    kubernetes::dir()
}

fn packages(what: &str, wanted: &[apt::Package]) -> Result<()> {
    step(what, apt::missing(wanted).is_empty(), || apt::install(what, wanted))
}

/// One line with the seconds it took. Work is done under a lock of the cache: two commands at once would both build.
fn step(what: &str, present: bool, work: impl FnOnce() -> Result<()>) -> Result<()> {
    let begin = Instant::now();
    if !present {
        let cache = paths::cache()?;
        fs::create_dir_all(&cache).with_context(|| cache.display().to_string())?;
        let lock = File::create(cache.join("lock")).context("lock of the cache")?;
        lock.lock().context("lock of the cache")?;
        work().with_context(|| format!("setup: {what}"))?;
    }
    let word = if present { "present" } else { "done" };
    eprintln!("{:6.1} s  {what}: {word}", begin.elapsed().as_secs_f64());
    Ok(())
}
