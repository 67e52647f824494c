//! Leaves the compiler's own name in the binary: `kube_router_build_info{goversion}` and the version command show it.

use std::{env, process::Command};

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    println!("cargo:rerun-if-env-changed=RUSTC");
    let version = env::var_os("RUSTC")
        .and_then(|rustc| Command::new(rustc).arg("--version").output().ok())
        .filter(|output| output.status.success())
        .and_then(|output| String::from_utf8(output.stdout).ok());
    println!("cargo:rustc-env=KUBE_ROUTER_COMPILER={}", version.as_deref().map_or("unknown rustc", str::trim));
}
