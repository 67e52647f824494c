//! What cargo builds for us: the programs, and the test binaries with the folder that each belongs to.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};
use serde_json::Value;

use crate::{paths, sh};

/// One compiled test target.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TestBinary {
    /// The package's folder below the workspace: `kube-router`, `tests`.
    pub package: String,
    /// The target's name, as in `cargo test --test NAME`.
    pub name: String,
    /// True for files below the package's `tests/`, false for unit tests of a library or program.
    pub integration: bool,
    pub path: PathBuf,
}

/// The cargo that runs us, in the workspace.
pub fn command() -> Command {
    let mut command = sh::command(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.current_dir(paths::workspace());
    command
}

/// Builds the agent and the helper programs.
pub fn build_programs() -> Result<()> {
    sh::run("agent and helper programs", command().args(["build", "--package", "kube-router"]))?;
    sh::run("agent and helper programs", command().args(["build", "--package", "kube-router-tests", "--bins"]))
}

/// Builds every test of the workspace, with the same features as `cargo test --workspace`.
pub fn build_tests() -> Result<Vec<TestBinary>> {
    let _progress = sh::Progress::start("tests: compile");
    let mut build = command();
    build.args(["test", "--workspace", "--no-run", "--message-format=json-render-diagnostics"]);
    let output = build.stderr(Stdio::piped()).stdout(Stdio::piped()).output().context("cannot start cargo")?;
    if !output.status.success() {
        bail!("tests: compile: {} ended with {}:\n{}", sh::line(&build), output.status, text(&output.stderr));
    }
    Ok(parse(&String::from_utf8_lossy(&output.stdout)))
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// Cargo's JSON messages, one a line (doc.rust-lang.org, "External tools").
fn parse(messages: &str) -> Vec<TestBinary> {
    let mut found: Vec<TestBinary> = messages
        .lines()
        .filter_map(|line| serde_json::from_str::<Value>(line).ok())
        .filter(|message| message["profile"]["test"] == true)
        .filter_map(|message| {
            let manifest = Path::new(message["manifest_path"].as_str()?).parent()?.to_path_buf();
            Some(TestBinary {
                package: manifest.file_name()?.to_str()?.to_string(),
                name: message["target"]["name"].as_str()?.to_string(),
                integration: message["target"]["kind"].as_array()?.iter().any(|kind| kind == "test"),
                path: message["executable"].as_str()?.into(),
            })
        })
        .collect();
    found.sort_by(|a, b| (&a.package, &a.name).cmp(&(&b.package, &b.name)));
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parse_takes_test_executables_only() {
        let messages = r#"{"reason":"compiler-artifact","manifest_path":"/w/kube-router/Cargo.toml","target":{"kind":["test"],"name":"ipvs_kernel"},"profile":{"test":true},"executable":"/w/target/ipvs_kernel-1"}
{"reason":"compiler-artifact","manifest_path":"/w/kube-router/Cargo.toml","target":{"kind":["lib"],"name":"kube_router"},"profile":{"test":false},"executable":null}
{"reason":"compiler-artifact","manifest_path":"/w/tests/Cargo.toml","target":{"kind":["lib"],"name":"kube_router_tests"},"profile":{"test":true},"executable":"/w/target/lib-1"}
not json
{"reason":"build-finished","success":true}"#;
        let found: Vec<_> = parse(messages).into_iter().map(|t| (t.package, t.name, t.integration)).collect();
        let want = [
            ("kube-router".to_string(), "ipvs_kernel".to_string(), true),
            ("tests".to_string(), "kube_router_tests".to_string(), false),
        ];
        assert_eq!(found, want);
    }
}
