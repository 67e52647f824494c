//! Where things are: the workspace, its build output, and the cache outside the tree.
//!
//! The cache (`$KUBE_ROUTER_DEV_CACHE`, else `$XDG_CACHE_HOME/kube-router-dev`, else `~/.cache/kube-router-dev`) holds
//! what takes minutes to make and no commit changes:
//!
//! ```text
//! bin/            bpf-linker, cargo-deny
//! k6.1/ k6.12/    unpacked Debian kernel packages, and the uncompressed kernel beside them
//! k8s/            kubeall, with a link for each Kubernetes component
//! go/             a Go toolchain, where the machine had none
//! ```

use std::env;
use std::ffi::OsString;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

/// The workspace's top folder: this crate's parent, fixed when xtask was compiled.
pub fn workspace() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap_or(Path::new("."))
}

/// Cargo's build folder, honouring `CARGO_TARGET_DIR` as cargo does (relative to the workspace).
pub fn target() -> PathBuf {
    workspace().join(env::var_os("CARGO_TARGET_DIR").unwrap_or_else(|| "target".into()))
}

/// The BPF object that `build-ebpf` writes. Not in a redirected build folder: the agent's build looks for it here.
pub fn bpf_object() -> PathBuf {
    workspace().join("target/bpf/kube-router-ebpf.o")
}

/// The cache folder; not created here.
pub fn cache() -> Result<PathBuf> {
    if let Some(dir) = env::var_os("KUBE_ROUTER_DEV_CACHE") {
        return std::path::absolute(dir).context("KUBE_ROUTER_DEV_CACHE");
    }
    let base = match (env::var_os("XDG_CACHE_HOME"), env::var_os("HOME")) {
        (Some(dir), _) => PathBuf::from(dir),
        (None, Some(home)) => Path::new(&home).join(".cache"),
        (None, None) => anyhow::bail!("neither KUBE_ROUTER_DEV_CACHE, XDG_CACHE_HOME nor HOME is set"),
    };
    Ok(base.join("kube-router-dev"))
}

/// `PATH` for child processes: the cache's programs, then rustup's cargo (so that Debian's rustc in /usr/bin never
/// builds the agent by accident), then what there was, then the sbin folders that a plain user's PATH lacks.
pub fn search_path() -> OsString {
    let mut dirs: Vec<PathBuf> = Vec::new();
    dirs.extend(cache().ok().map(|c| c.join("bin")));
    // CARGO is set by the cargo that runs us; with rustup its folder holds that toolchain's rustc too.
    dirs.extend(env::var_os("CARGO").and_then(|c| Path::new(&c).parent().map(Path::to_path_buf)));
    dirs.extend(env::var_os("PATH").iter().flat_map(env::split_paths));
    dirs.extend(["/usr/sbin", "/sbin"].map(PathBuf::from));
    // A folder name with a colon cannot be in a PATH; then the child inherits ours.
    env::join_paths(dirs).unwrap_or_else(|_| env::var_os("PATH").unwrap_or_default())
}

/// The first executable of that name in [`search_path`].
pub fn program(name: &str) -> Option<PathBuf> {
    use std::os::unix::fs::PermissionsExt;
    env::split_paths(&search_path())
        .map(|dir| dir.join(name))
        .find(|file| file.metadata().is_ok_and(|meta| meta.is_file() && meta.permissions().mode() & 0o111 != 0))
}
