//! The kube-router binary: gathers arguments, environment and facts, then prints or carries out the command.

use std::{env, fs, path::Path, process::ExitCode};

use kube_router::cli::{self, Command, Facts, Parsed, logging, version};
use tracing::{info, warn};

fn main() -> ExitCode {
    let environment =
        cli::ENVIRONMENT.iter().filter_map(|&name| Some((name.to_owned(), env::var(name).ok()?))).collect();
    let facts = Facts {
        uid: nix::unistd::geteuid().as_raw(),
        hostname: fs::read_to_string("/proc/sys/kernel/hostname").ok().map(|name| name.trim_end().to_owned()),
        ipv6: Path::new("/proc/net/if_inet6").exists(),
    };
    let Parsed { command, verbosity, notices } = match cli::parse(env::args_os(), &environment, &facts) {
        Ok(parsed) => parsed,
        Err(error) => {
            eprintln!("{error}");
            return ExitCode::from(error.exit_code());
        }
    };
    if let Command::Help(text) | Command::Version(text) = &command {
        eprintln!("{}", text.trim_end());
        return ExitCode::SUCCESS;
    }
    if let Some(complaint) = logging::init(verbosity, env::var("RUST_LOG").ok().as_deref()) {
        warn!("{complaint}");
    }
    if let Command::Run(config) = &command {
        info!(node = %config.node_name, "{}", version::line("kube-router"));
    }
    for notice in &notices {
        warn!(flag = notice.flag, "{}", notice.text);
    }
    carry_out(command)
}

/// The integration of the rooms fills this in.
fn carry_out(_command: Command) -> ExitCode {
    eprintln!("this build reads command lines only: it has no agent in it");
    ExitCode::FAILURE
}
