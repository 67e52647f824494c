//! Whole command lines: what the running original was seen doing with them is the oracle where it applies.

mod commands;
mod config;
mod deploy;
mod recorded;
mod table;

use super::{CliError, Command, Env, Facts, Parsed, parse};
use crate::config::Config;

pub fn facts() -> Facts {
    Facts { uid: 0, hostname: Some("host".into()), ipv6: true }
}

pub fn env(pairs: &[(&str, &str)]) -> Env {
    pairs.iter().map(|&(name, value)| (name.to_owned(), value.to_owned())).collect()
}

pub fn in_cluster() -> Env {
    env(&[("KUBERNETES_SERVICE_HOST", "10.96.0.1"), ("KUBERNETES_SERVICE_PORT", "443")])
}

/// `line` split at blanks, as root inside a cluster.
pub fn read(line: &str) -> Result<Parsed, CliError> {
    read_in(line, &in_cluster(), &facts())
}

pub fn read_in(line: &str, env: &Env, facts: &Facts) -> Result<Parsed, CliError> {
    parse(std::iter::once("kube-router").chain(line.split_whitespace()).map(Into::into), env, facts)
}

/// The configuration that an agent would run with.
pub fn run(line: &str) -> Config {
    match read(line).map(|parsed| parsed.command) {
        Ok(Command::Run(config)) => *config,
        other => panic!("{line}: {other:?}"),
    }
}

/// Exit status and last line on standard error of a line that does nothing.
pub fn refused(line: &str) -> (u8, String) {
    let error = read(line).map(|parsed| parsed.command).expect_err(line);
    (error.exit_code(), error.to_string().lines().last().unwrap_or_default().to_owned())
}
