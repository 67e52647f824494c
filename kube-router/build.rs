//! Embeds the BPF object, if it was built, and records the compiler's version for the version line.
//!
//! `cargo xtask build-ebpf` writes `target/bpf/kube-router-ebpf.o` at the top of the repository; the environment
//! variable KUBE_ROUTER_BPF_OBJECT names another file (and then it must exist). With an object the cfg
//! `kube_router_bpf_object` is set and the object lies in OUT_DIR; without one the agent builds all the same.

use std::{env, error::Error, fs, path::PathBuf, process::Command};

const NAME: &str = "kube-router-ebpf.o";

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo::rustc-check-cfg=cfg(kube_router_bpf_object)");
    println!("cargo::rerun-if-env-changed=KUBE_ROUTER_BPF_OBJECT");
    let copy = PathBuf::from(env::var("OUT_DIR")?).join(NAME);
    let object = match env::var_os("KUBE_ROUTER_BPF_OBJECT") {
        Some(path) => {
            let path = PathBuf::from(path);
            println!("cargo::rerun-if-changed={}", path.display());
            Some(path)
        }
        None => {
            let directory = PathBuf::from(env::var("CARGO_MANIFEST_DIR")?).join("../target/bpf");
            // Cargo can watch a directory that is there for a file to appear, but takes one that is not for changed,
            // every time. If it cannot be made, the only loss is that.
            let _ = fs::create_dir_all(&directory);
            println!("cargo::rerun-if-changed={}", directory.display());
            let path = directory.join(NAME);
            path.exists().then_some(path)
        }
    };
    if let Some(object) = object {
        fs::copy(&object, &copy).map_err(|error| format!("BPF object {}: {error}", object.display()))?;
        println!("cargo::rustc-cfg=kube_router_bpf_object");
    }
    println!("cargo::rustc-env=KUBE_ROUTER_COMPILER={}", compiler());
    Ok(())
}

/// `rustc 1.95.0` of "rustc 1.95.0 (hash date)"; `rustc` where it does not say.
fn compiler() -> String {
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rerun-if-env-changed=RUSTC");
    let rustc = env::var_os("RUSTC").unwrap_or_else(|| "rustc".into());
    let output = Command::new(rustc).arg("--version").output().ok();
    let text = output.and_then(|output| String::from_utf8(output.stdout).ok()).unwrap_or_default();
    let words: Vec<&str> = text.split_whitespace().take(2).collect();
    if words.is_empty() { "rustc".to_owned() } else { words.join(" ") }
}
