//! Debian packages, each with the program by which another system would notice that it is missing.

use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::{paths, sh};

/// A Debian package and a file that proves it present: a program's name, or an absolute path.
pub type Package = (&'static str, &'static str);

/// Tests on the host.
pub const LAB: &[Package] = &[
    ("iproute2", "ip"),
    ("nftables", "nft"),
    ("iptables", "iptables"),
    ("ipset", "ipset"),
    ("ipvsadm", "ipvsadm"),
    ("conntrack", "conntrack"),
    ("bpftool", "bpftool"),
    ("socat", "socat"),
    ("tcpdump", "tcpdump"),
    ("iputils-ping", "ping"),
    ("curl", "curl"),
    ("openssl", "openssl"),
    ("util-linux", "setpriv"),
    ("containernetworking-plugins", "/usr/lib/cni/bridge"),
];

/// The BPF toolchain of Debian 12: rustc 1.96 with a prebuilt core for bpfel-unknown-none, and LLVM for bpf-linker.
pub const BPF: &[Package] = &[
    ("rustc-web", "/usr/bin/rustc"),
    ("libstd-rust-web-dev-bpf", "/usr/lib/rustlib/bpfel-unknown-none"),
    ("llvm-22-dev", "/usr/lib/llvm-22/bin/llvm-config"),
    ("gcc", "gcc"),
    ("libc6-dev", "/usr/include/stdio.h"),
];

/// The virtual machine.
pub const VM: &[Package] = &[
    ("qemu-system-x86", "qemu-system-x86_64"),
    ("busybox-static", "/bin/busybox"),
    ("kmod", "modprobe"),
    ("xz-utils", "xz"),
    ("zstd", "zstd"),
];

/// pip, for the Go toolchain where there is none.
pub const PIP: &[Package] = &[("python3-pip", "pip3")];

/// Those whose proof is not there.
pub fn missing(wanted: &[Package]) -> Vec<Package> {
    let there = |proof: &str| match proof.starts_with('/') {
        true => Path::new(proof).exists(),
        false => paths::program(proof).is_some(),
    };
    wanted.iter().copied().filter(|(_, proof)| !there(proof)).collect()
}

/// True on the one system that setup changes.
pub fn is_debian_12() -> bool {
    let release = fs::read_to_string("/etc/os-release").unwrap_or_default();
    release.lines().any(|line| line == "ID=debian") && release.lines().any(|line| line == "VERSION_CODENAME=bookworm")
}

/// Installs what is missing and starts no service. On another system: an error that names all of it.
pub fn install(what: &str, wanted: &[Package]) -> Result<()> {
    let missing = missing(wanted);
    if !is_debian_12() {
        let list: Vec<String> = missing.iter().map(|(name, proof)| format!("{proof} (package {name})")).collect();
        bail!("this is not Debian 12, so nothing was changed; missing: {}", list.join(", "));
    }
    let _policy = NoServices::new()?;
    sh::run(&format!("{what}: lists"), apt_get().arg("update"))?;
    let names = missing.iter().map(|(name, _)| name);
    sh::run(what, apt_get().args(["install", "--no-install-recommends"]).args(names))
}

/// `apt-get`, as root, never asking.
pub fn apt_get() -> Command {
    let mut command = as_root("env");
    command.args(["DEBIAN_FRONTEND=noninteractive", "apt-get", "-q", "-y", "-o", "DPkg::Lock::Timeout=600"]);
    // Downloads into a folder that only root may read would fail as user _apt.
    command.args(["-o", "APT::Sandbox::User=root"]);
    command
}

/// A command with root's rights: itself for root, `sudo` for others (which fails at once where it would ask).
pub fn as_root(program: &str) -> Command {
    if nix::unistd::geteuid().is_root() {
        return sh::command(program);
    }
    let mut command = sh::command("sudo");
    command.args(["-n", program]);
    command
}

/// While it lives, packages do not start their services (Debian policy 9.3.3, invoke-rc.d). Somebody else's policy
/// file is left alone.
struct NoServices {
    ours: bool,
}

const POLICY: &str = "/usr/sbin/policy-rc.d";

impl NoServices {
    fn new() -> Result<NoServices> {
        let ours = !Path::new(POLICY).exists();
        if ours {
            let script = format!("printf '#!/bin/sh\\nexit 101\\n' >{POLICY} && chmod 755 {POLICY}");
            sh::run(POLICY, as_root("sh").args(["-c", &script])).context("root's rights are needed (or sudo)")?;
        }
        Ok(NoServices { ours })
    }
}

impl Drop for NoServices {
    fn drop(&mut self) {
        if self.ours
            && let Err(error) = sh::run(POLICY, as_root("rm").arg(POLICY))
        {
            eprintln!("setup: {POLICY} is left behind: {error:#}");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn missing_names_programs_and_files_that_are_not_there() {
        let wanted =
            [("coreutils", "ls"), ("nothing", "no-such-program"), ("base-files", "/etc"), ("other", "/no/such/file")];
        let names: Vec<&str> = missing(&wanted).iter().map(|(name, _)| *name).collect();
        assert_eq!(names, ["nothing", "other"]);
    }
}
