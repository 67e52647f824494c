//! `cargo xtask tidy`: what a reviewer should not have to look for.
//!
//! rustfmt and clippy, then checks of our own over the source files: [`rooms`] (who may import what), [`layout`] (file
//! size, module stories, no paths of one machine, tests that the tiers know), licences by cargo-deny. All checks are
//! run, whatever fails; a finding is one line, `file:line: what`.

mod layout;
mod paths_in;
mod rooms;

use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::time::Instant;

use anyhow::{Context, Result};

use crate::{cargo, paths, setup, sh};

#[derive(clap::Args)]
pub struct Args {
    /// Only the checks of our own, which take a second
    #[arg(long)]
    quick: bool,
}

/// A line to look at.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    pub file: PathBuf,
    /// From 1; 0 for the file as a whole.
    pub line: usize,
    pub what: String,
}

impl Finding {
    fn new(file: &Path, line: usize, what: impl Into<String>) -> Finding {
        Finding { file: file.to_path_buf(), line, what: what.into() }
    }
}

impl std::fmt::Display for Finding {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}:{}: {}", self.file.display(), self.line, self.what)
    }
}

/// A text file of the repository.
pub struct Source {
    /// Relative to the workspace.
    pub path: PathBuf,
    pub text: String,
}

impl Source {
    fn is_rust(&self) -> bool {
        self.path.extension().is_some_and(|extension| extension == "rs")
    }
}

pub fn run(args: &Args) -> Result<ExitCode> {
    let mut failed: Vec<String> = Vec::new();
    let mut check = |name: &str, outcome: Result<()>, begin: Instant| {
        match &outcome {
            Ok(()) => println!("{:6.1} s  {name}: ok", begin.elapsed().as_secs_f64()),
            Err(error) => println!("{:6.1} s  {name}: FAILED\n{error:#}", begin.elapsed().as_secs_f64()),
        }
        if outcome.is_err() {
            failed.push(name.to_owned());
        }
    };
    let sources = sources()?;
    for (name, findings) in [("rooms", rooms::check(&sources)), ("layout", layout::check(&sources))] {
        check(name, verdict(&findings), Instant::now());
    }
    if !args.quick {
        let begin = Instant::now();
        check("rustfmt", rustfmt(), begin);
        let begin = Instant::now();
        check("clippy", clippy(), begin);
        let begin = Instant::now();
        check("licences", licences(), begin);
    }
    // What failed may have scrolled away.
    if !failed.is_empty() {
        println!("not tidy: {}; see above", failed.join(", "));
    }
    Ok(if failed.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn verdict(findings: &[Finding]) -> Result<()> {
    let lines: Vec<String> = findings.iter().map(|finding| format!("  {finding}")).collect();
    anyhow::ensure!(lines.is_empty(), "{}", lines.join("\n"));
    Ok(())
}

/// Every tracked file that is text.
fn sources() -> Result<Vec<Source>> {
    let mut sources = Vec::new();
    for path in tracked_files()? {
        let bytes = fs::read(paths::workspace().join(&path)).with_context(|| path.display().to_string())?;
        if let Ok(text) = String::from_utf8(bytes) {
            sources.push(Source { path, text });
        }
    }
    Ok(sources)
}

fn rustfmt() -> Result<()> {
    sh::run("rustfmt", cargo::command().args(["fmt", "--all", "--check"]))?;
    match ebpf_manifest() {
        Some(manifest) => {
            sh::run("rustfmt", cargo::command().args(["fmt", "--check", "--manifest-path"]).arg(manifest))
        }
        None => Ok(()),
    }
}

fn clippy() -> Result<()> {
    let mut clippy = cargo::command();
    clippy.args(["clippy", "--workspace", "--all-targets", "--keep-going", "--quiet", "--", "-D", "warnings"]);
    sh::run("clippy", &mut clippy)
}

/// Licences, banned crates and sources, from the lock files and deny.toml; no database is fetched.
fn licences() -> Result<()> {
    setup::licence_checker()?;
    check_licences(None)?;
    ebpf_manifest().map_or(Ok(()), |manifest| check_licences(Some(&manifest)))
}

fn check_licences(manifest: Option<&Path>) -> Result<()> {
    // Crates of platforms that nobody here builds for are read, too.
    let mut fetch = cargo::command();
    fetch.current_dir(paths::workspace()).args(["fetch", "--locked", "--quiet"]);
    if let Some(manifest) = manifest {
        fetch.arg("--manifest-path").arg(manifest);
    }
    sh::run("crates", &mut fetch)?;
    sh::run("licences", &mut deny(manifest))
}

fn deny(manifest: Option<&Path>) -> Command {
    let mut deny = sh::command("cargo-deny");
    deny.current_dir(paths::workspace()).args([
        "--offline",
        "--locked",
        "--log-level",
        "warn",
        "--config",
        "deny.toml",
    ]);
    if let Some(manifest) = manifest {
        deny.arg("--manifest-path").arg(manifest);
    } else {
        deny.arg("--workspace");
    }
    deny.args(["check", "--hide-inclusion-graph", "licenses", "bans", "sources"]);
    deny
}

/// The BPF crate's, which is no member of the workspace.
fn ebpf_manifest() -> Option<PathBuf> {
    let manifest = paths::workspace().join("kube-router-ebpf/Cargo.toml");
    manifest.exists().then_some(manifest)
}

/// Every regular file tracked by git, relative to the workspace.
fn tracked_files() -> Result<Vec<PathBuf>> {
    use std::os::unix::ffi::OsStringExt;
    // Untracked files count as well (but not ignored ones): a check should fail before the commit, not after it.
    let list = sh::read(sh::command("git").current_dir(paths::workspace()).args([
        "ls-files",
        "-z",
        "--cached",
        "--others",
        "--exclude-standard",
    ]))?;
    let mut files: Vec<PathBuf> = list
        .split(|&byte| byte == 0)
        .filter(|name| !name.is_empty())
        .map(|name| PathBuf::from(OsString::from_vec(name.to_vec())))
        .filter(|file| paths::workspace().join(file).symlink_metadata().is_ok_and(|meta| meta.is_file()))
        .collect();
    files.sort();
    files.dedup();
    Ok(files)
}
