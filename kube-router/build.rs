//! Records the compiler's version for the version line.

use std::{env, process::Command};

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rerun-if-env-changed=RUSTC");
    let rustc = env::var_os("RUSTC").unwrap_or_else(|| "rustc".into());
    let output = Command::new(rustc).arg("--version").output().ok();
    let text = output.and_then(|output| String::from_utf8(output.stdout).ok()).unwrap_or_default();
    // "rustc 1.95.0 (hash date)"
    let compiler: Vec<&str> = text.split_whitespace().take(2).collect();
    let compiler = if compiler.is_empty() { "rustc".to_owned() } else { compiler.join(" ") };
    println!("cargo::rustc-env=KUBE_ROUTER_COMPILER={compiler}");
}
