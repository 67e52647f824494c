//! `cargo xtask build-ebpf`: kube-router-ebpf/ -> target/bpf/kube-router-ebpf.o
//!
//! The crate is compiled for bpfel-unknown-none by another rustc than the agent's, so it is no member of the
//! workspace. Any cargo will do: rustup's drives Debian's rustc through `RUSTC`.

use std::env;
use std::fs;
use std::process::{Command, ExitCode};

use anyhow::{Context, Result, ensure};

use crate::setup::{self, BpfToolchain};
use crate::{paths, sh};

const CRATE: &str = "kube-router-ebpf";
const TARGET: &str = "bpfel-unknown-none";

/// True if this checkout has the crate.
pub fn exists() -> bool {
    paths::workspace().join(CRATE).join("Cargo.toml").exists()
}

pub fn run() -> Result<ExitCode> {
    ensure!(exists(), "there is no {CRATE}/ in this checkout");
    build(setup::bpf_toolchain()?)?;
    println!("{}", paths::bpf_object().display());
    Ok(ExitCode::SUCCESS)
}

/// Builds and copies the object to its place; the file keeps its date when nothing changed in it, so that what
/// includes it is not compiled again.
pub fn build(toolchain: BpfToolchain) -> Result<()> {
    let dir = paths::workspace().join(CRATE);
    let mut cargo = cargo(&toolchain)?;
    cargo.current_dir(&dir).args(["build", "--release", "--locked", "--target", TARGET]);
    cargo.arg("--target-dir").arg(dir.join("target"));
    // v3 has 32-bit arithmetic and jumps, which kernels know since 5.1.
    cargo.env(
        "CARGO_TARGET_BPFEL_UNKNOWN_NONE_RUSTFLAGS",
        "-Clinker=bpf-linker -Cdebuginfo=2 -Clink-arg=--btf -Clink-arg=--disable-expand-memcpy-in-order -Ctarget-cpu=v3 --cfg=bpf_target_arch=\"x86_64\"",
    );
    // Flags meant for the agent (coverage, say) do not fit this target, and would replace the ones above.
    for name in ["RUSTFLAGS", "CARGO_ENCODED_RUSTFLAGS", "CARGO_TARGET_DIR", "RUSTC_WRAPPER", "RUSTC_WORKSPACE_WRAPPER"]
    {
        cargo.env_remove(name);
    }
    sh::run("BPF programs", &mut cargo)?;
    let built = dir.join("target").join(TARGET).join("release").join(CRATE);
    let bytes = fs::read(&built).with_context(|| format!("{}: cargo built no such file", built.display()))?;
    ensure!(bytes.starts_with(b"\x7fELF"), "{}: not an ELF object", built.display());
    let object = paths::bpf_object();
    if fs::read(&object).is_ok_and(|old| old == bytes) {
        return Ok(());
    }
    fs::create_dir_all(object.parent().unwrap_or(&object))?;
    fs::write(&object, bytes).with_context(|| object.display().to_string())
}

fn cargo(toolchain: &BpfToolchain) -> Result<Command> {
    Ok(match toolchain {
        BpfToolchain::Debian { rustc } => {
            let cargo = env::var_os("CARGO").or_else(|| paths::program("cargo").map(Into::into)).context("no cargo")?;
            let mut command = sh::command(cargo);
            // Debian's compiler is a stable one; the BPF target needs unstable features.
            command.env("RUSTC", rustc).env("RUSTC_BOOTSTRAP", "1");
            command
        }
        BpfToolchain::Nightly => {
            let mut command = sh::command("rustup");
            command.args(["run", "nightly", "cargo"]).env_remove("RUSTUP_TOOLCHAIN").env_remove("RUSTC");
            command.env("CARGO_UNSTABLE_BUILD_STD", "core");
            command
        }
    })
}
