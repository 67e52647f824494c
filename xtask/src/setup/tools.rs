//! Rust tools that are built once into the cache, and the two toolchains that can compile for BPF.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

use crate::{paths, sh};

const BPF_LINKER: &str = "0.13.0";
const CARGO_DENY: &str = "0.20.2";

/// A compiler that knows bpfel-unknown-none.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum BpfToolchain {
    /// Debian's rustc, with a prebuilt core.
    Debian { rustc: PathBuf },
    /// rustup's nightly, which builds core from rust-src.
    Nightly,
}

impl std::fmt::Display for BpfToolchain {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            BpfToolchain::Debian { rustc } => write!(f, "{}", rustc.display()),
            BpfToolchain::Nightly => write!(f, "rustup's nightly"),
        }
    }
}

/// What is there, Debian's first; else an error that names what is missing from both.
pub fn find_bpf_toolchain() -> Result<BpfToolchain> {
    let mut missing = Vec::new();
    if !bpf_linker_present() {
        missing.push(format!("bpf-linker {BPF_LINKER} (cargo install bpf-linker)"));
    }
    let rustc = Path::new("/usr/bin/rustc");
    let debian = rustc.exists() && Path::new("/usr/lib/rustlib/bpfel-unknown-none").exists();
    if !debian {
        look_for_nightly(&mut missing);
    }
    if !missing.is_empty() {
        bail!(
            "no BPF toolchain. Missing: {}. On Debian 12 `cargo xtask setup` installs rustc-web, \
             libstd-rust-web-dev-bpf, llvm-22-dev and bpf-linker instead",
            missing.join("; ")
        );
    }
    Ok(if debian { BpfToolchain::Debian { rustc: rustc.to_path_buf() } } else { BpfToolchain::Nightly })
}

/// Adds what a nightly toolchain lacks for building core.
fn look_for_nightly(missing: &mut Vec<String>) {
    match sh::read_text(sh::command("rustup").args(["run", "nightly", "rustc", "--print", "sysroot"])) {
        Err(_) => missing.push("a nightly toolchain (rustup toolchain install nightly --component rust-src)".into()),
        Ok(root) if Path::new(&root).join("lib/rustlib/src/rust/library/core").is_dir() => {}
        Ok(_) => missing.push("component rust-src (rustup component add rust-src --toolchain nightly)".into()),
    }
}

pub fn bpf_linker_present() -> bool {
    // Any version will do where a developer brought one: the object is checked when it is built.
    paths::program("bpf-linker").is_some()
}

pub fn install_bpf_linker() -> Result<()> {
    let mut install = cargo_install("bpf-linker", BPF_LINKER)?;
    install.args(["--no-default-features", "--features", "llvm-22"]);
    install.env("LLVM_PREFIX", "/usr/lib/llvm-22").env("LLVM_SYS_221_PREFIX", "/usr/lib/llvm-22");
    // Half the build time, and 3 MB instead of 42.
    install.env("CARGO_PROFILE_RELEASE_DEBUG", "0").env("CARGO_PROFILE_RELEASE_OPT_LEVEL", "1");
    sh::run("bpf-linker", &mut install)
}

pub fn cargo_deny_present() -> bool {
    paths::program("cargo-deny").is_some()
}

pub fn install_cargo_deny() -> Result<()> {
    let mut install = cargo_install("cargo-deny", CARGO_DENY)?;
    // It reads one lock file: an unoptimised build is fast enough and takes a third of the time.
    install.args(["--debug", "--no-default-features"]).env("CARGO_PROFILE_DEV_DEBUG", "0");
    sh::run("cargo-deny", &mut install)
}

fn cargo_install(name: &str, version: &str) -> Result<std::process::Command> {
    let cargo = std::env::var_os("CARGO").or_else(|| paths::program("cargo").map(Into::into)).context("no cargo")?;
    let mut install = sh::command(cargo);
    install.args(["install", name, "--version", version, "--locked", "--root"]).arg(paths::cache()?);
    // Not below the workspace: its cargo configuration is not meant for tools.
    install.current_dir(paths::cache()?);
    Ok(install)
}
