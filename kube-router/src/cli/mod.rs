//! The command line: what the user typed becomes one [`Command`] with a validated configuration, or one refusal.
//!
//! The original's command lines are in thousands of manifests, so its flags, value grammar, messages, exit statuses and
//! the order of its checks are kept: flags, log level, help and version, root, stray words, API configuration, values.
//! Beside that form there are commands, chosen by the first word: `plan` and `replay` take the agent's flags, `dump`,
//! `explain`, `matrix` and `monitor` their own ([`look`]).
//!
//! [`parse`] is a pure function of the arguments, the environment and a few facts of the machine; `main` gathers these,
//! prints, sets up the log and carries out the command. Nothing else in the program knows of flags.
//!
//! ```text
//! argv -> args (clap, value, go, duration) -> flags -> validate, later, configure -> config::Config
//! ```

pub mod args;
pub mod cleanup;
mod configure;
pub mod dump;
pub mod duration;
pub mod explain;
pub mod flags;
pub mod go;
pub mod help;
pub mod later;
pub mod listing;
pub mod logging;
pub mod look;
pub mod matrix;
pub mod monitor;
pub mod plan;
mod programs;
mod reading;
mod rehearsal;
pub mod replay;
pub mod run;
mod sweeper;
mod tables;
pub mod validate;
mod value;
pub mod version;

#[cfg(test)]
mod tests;

use std::{collections::BTreeMap, ffi::OsString, fmt, path::PathBuf};

use args::{Line, UsageError};
use flags::Flags;
use later::Notice;
use logging::Verbosity;
use validate::StartError;

use crate::config::Config;

/// Environment variables by name.
pub type Env = BTreeMap<String, String>;

/// The variables that [`parse`] looks at.
pub const ENVIRONMENT: [&str; 3] = ["NODE_NAME", "KUBERNETES_SERVICE_HOST", "KUBERNETES_SERVICE_PORT"];

/// What [`parse`] must know of the machine.
#[derive(Clone, Debug)]
pub struct Facts {
    /// Effective user id.
    pub uid: u32,
    /// Node name of last resort.
    pub hostname: Option<String>,
    /// The kernel has IPv6, so that a socket on `::` serves both families.
    pub ipv6: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OutputFormat {
    Text,
    Json,
}

/// What to do.
#[derive(Clone, Debug)]
pub enum Command {
    Run(Box<Config>),
    /// `--cleanup-config`
    CleanupConfig(Box<Config>),
    Plan {
        config: Box<Config>,
        output: OutputFormat,
    },
    Look(look::LookCommand),
    Replay {
        file: PathBuf,
        config: Box<Config>,
    },
    /// The text, for standard error (where the original prints it); exit status 0.
    Help(String),
    /// The line, likewise.
    Version(String),
}

/// A command and how to start it.
#[derive(Clone, Debug)]
pub struct Parsed {
    pub command: Command,
    pub verbosity: Verbosity,
    /// To be logged first, as warnings.
    pub notices: Vec<Notice>,
}

/// Why nothing is done. Prints as what belongs on standard error.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CliError {
    /// The line cannot be read.
    Usage {
        program: String,
        /// The first word, if it names a command.
        command: Option<&'static str>,
        error: UsageError,
    },
    /// It can be read, but the agent must not start with it.
    Start(#[from] StartError),
    /// Every function is switched off.
    Nothing,
}

impl CliError {
    /// The original's exit statuses.
    pub fn exit_code(&self) -> u8 {
        match self {
            CliError::Usage { .. } => 2,
            CliError::Start(_) => 1,
            CliError::Nothing => 0,
        }
    }
}

impl fmt::Display for CliError {
    /// Of a usage error the last line is the original's message; the eighty lines of usage before it have become the
    /// command forms, a near match and a hint, so that the reason stays on the screen.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            CliError::Usage { program, command, error } => {
                f.write_str(&help::forms(program))?;
                if let UsageError::UnknownFlag { near: Some(near), .. } = error {
                    writeln!(f, "Did you mean {near}?")?;
                }
                match command {
                    Some(command) => writeln!(f, "Run '{program} {command} --help' for its flags.")?,
                    None => writeln!(f, "Run '{program} --help' for all flags.")?,
                }
                write!(f, "{error}")
            }
            CliError::Start(error) => write!(f, "{error}"),
            CliError::Nothing => f.write_str(
                "nothing to do: at least one of --run-router, --run-firewall and --run-service-proxy must be given. Exiting.",
            ),
        }
    }
}

/// Which form of the command line with all flags.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Form {
    Agent,
    Plan,
    Replay,
}

/// Reads a command line; `argv` starts with the program's name.
pub fn parse(argv: impl IntoIterator<Item = OsString>, env: &Env, facts: &Facts) -> Result<Parsed, CliError> {
    let mut argv = argv.into_iter();
    let program = argv.next().map_or("kube-router".to_owned(), |name| name.to_string_lossy().into_owned());
    let args: Result<Vec<String>, UsageError> = argv
        .map(|arg| arg.into_string().map_err(|arg| UsageError::NotUtf8(arg.to_string_lossy().into_owned())))
        .collect();
    let wrong = |command, error| CliError::Usage { program: program.clone(), command, error };
    let args = args.map_err(|error| wrong(None, error))?;
    let (form, args) = match args.first().map(String::as_str) {
        Some(word) if let Some(form) = look::Form::named(word) => {
            return look(&program, form, &args[1..]).map_err(|error| wrong(Some(form.name()), error));
        }
        Some("plan") => (Form::Plan, &args[1..]),
        Some("replay") => (Form::Replay, &args[1..]),
        _ => (Form::Agent, &args[..]),
    };
    let Line { flags, words, output } =
        args::read_flags(args, form == Form::Plan).map_err(|error| wrong(None, error))?;
    let level = go::parse_int32(&flags.verbosity)
        .map_err(|e| StartError(format!("failed to set log level to {}: {e}", go::quote(&flags.verbosity))))?;
    let done = |command, notices| Ok(Parsed { command, verbosity: Verbosity::from_level(level), notices });
    if flags.help {
        let text = match form {
            Form::Agent => help::agent(&program),
            Form::Plan => help::plan(&program),
            Form::Replay => help::replay(&program),
        };
        return done(Command::Help(text), Vec::new());
    }
    if flags.version {
        return done(Command::Version(version::line(&program)), Vec::new());
    }
    if form == Form::Agent && facts.uid != 0 {
        return start(
            "kube-router needs to be run with privileges to program IPVS, packet filter and addresses: run it as root",
        );
    }
    let output = output_format(output)?;
    let file = words_for(form, words)?;
    if flags.cleanup_config && form == Form::Agent {
        return done(Command::CleanupConfig(Box::new(configure::config(&flags, env, facts)?)), Vec::new());
    }
    if form != Form::Replay {
        configure::in_cluster(&flags, env)?;
    }
    let config = Box::new(configure::config(&flags, env, facts)?);
    startable(&flags, &config)?;
    let command = match form {
        Form::Agent => Command::Run(config),
        Form::Plan => Command::Plan { config, output },
        Form::Replay => Command::Replay { file, config },
    };
    done(command, later::notices(&flags))
}

fn start<T>(text: impl Into<String>) -> Result<T, CliError> {
    Err(CliError::Start(StartError(text.into())))
}

/// Values of the functions that are switched on, then functions that are not there yet, then whether any is left.
fn startable(flags: &Flags, config: &Config) -> Result<(), CliError> {
    if flags.run_firewall {
        validate::firewall(flags)?;
    }
    validate::fastpath(flags)?;
    if config.programs.needed {
        validate::programs(flags)?;
    }
    if flags.run_router {
        validate::router(flags)?;
    }
    let refusals = later::refusals(flags);
    if !refusals.is_empty() {
        return start(refusals.join("\n"));
    }
    match (flags.run_service_proxy || flags.run_firewall, flags.run_router) {
        (true, _) => Ok(()),
        (false, false) => Err(CliError::Nothing),
        (false, true) => start(
            "nothing to run: --run-service-proxy=false and --run-firewall=false leave only --run-router, which this release \
             does not have yet",
        ),
    }
}

/// Only `replay` takes a word, its file.
fn words_for(form: Form, mut words: Vec<String>) -> Result<PathBuf, CliError> {
    if form == Form::Replay {
        if words.is_empty() {
            return start("replay needs the FILE to replay, as written by --record");
        }
        let file = words.remove(0);
        return no_words(&words).map(|()| file.into());
    }
    no_words(&words).map(|()| PathBuf::new())
}

fn no_words(words: &[String]) -> Result<(), CliError> {
    if words.is_empty() {
        return Ok(());
    }
    start(format!("unrecognized positional argument(s): [{}]", words.join(" ")))
}

fn output_format(text: Option<String>) -> Result<OutputFormat, CliError> {
    match text.as_deref() {
        None | Some("text") => Ok(OutputFormat::Text),
        Some("json") => Ok(OutputFormat::Json),
        Some(other) => start(format!("--output must be text or json, got '{other}'")),
    }
}

fn look(program: &str, form: look::Form, args: &[String]) -> Result<Parsed, UsageError> {
    let command = match look::read(program, form, args::read_look(form, args)?)? {
        look::LookCommand::Help(text) => Command::Help(text),
        command => Command::Look(command),
    };
    Ok(Parsed { command, verbosity: Verbosity::Info, notices: Vec::new() })
}

/// The original's words.
fn no_view_in_time(config: &Config) -> anyhow::Error {
    let limit = duration::GoDuration::from_std(config.cache_sync_timeout);
    anyhow::anyhow!("failed to synchronize cache: {limit} timeout")
}

/// Writes to standard output; a reader that went away (`| head`) is no error.
fn print(text: &str) -> anyhow::Result<()> {
    use std::io::Write;
    match std::io::stdout().write_all(text.as_bytes()) {
        Err(error) if error.kind() != std::io::ErrorKind::BrokenPipe => Err(error.into()),
        _ => Ok(()),
    }
}
