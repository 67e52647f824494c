//! The kube-router binary: gathers arguments, environment and facts, then prints or carries out the command.

use std::{env, fs, io, path::Path, process::ExitCode};

use anyhow::Context;
use kube_router::cli::{
    self, Command, Facts, Parsed, logging,
    look::{LookCommand, Output},
    version,
};
use kube_router::sys::memory;
use tracing::{info, warn};

fn main() -> ExitCode {
    memory::keep_small();
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

fn carry_out(command: Command) -> ExitCode {
    let result = match command {
        Command::Run(config) => cli::run::run(&config).context("failed to run kube-router"),
        Command::CleanupConfig(config) => cli::cleanup::cleanup(&config),
        Command::Plan { config, output } => cli::plan::plan(&config, output),
        Command::Replay { file, config } => cli::replay::replay(&file, &config),
        Command::Look(command) => return look(command),
        // Printed before the log was set up.
        Command::Help(_) | Command::Version(_) => Ok(()),
    };
    ended(result)
}

fn look(command: LookCommand) -> ExitCode {
    let result = match command {
        LookCommand::Explain { question, objects, maps, output } => {
            return cli::explain::explain(&question, &objects, &maps, output);
        }
        LookCommand::Matrix { namespace, objects, output } => cli::matrix::show(namespace.as_deref(), &objects, output),
        LookCommand::Monitor { wish, socket } => cli::monitor::monitor(&wish, &socket),
        LookCommand::Dump { what, socket, maps, output } => {
            let format = if output == Output::Json { cli::dump::Format::Json } else { cli::dump::Format::Text };
            cli::dump::dump(what, &socket, &maps, format, &mut io::stdout().lock()).map_err(Into::into)
        }
        // Printed before the log was set up.
        LookCommand::Help(_) => Ok(()),
    };
    ended(result)
}

/// The last line on standard error is the reason, as in the original.
fn ended(result: anyhow::Result<()>) -> ExitCode {
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error:#}");
            ExitCode::FAILURE
        }
    }
}
