//! The command line as clap sees it, and clap's complaints in the words of the original.
//!
//! clap splits the line, finds the flags and suggests near matches; every value is read by our own [`FlagValue`]
//! types. Scripts and operators know pflag's messages, so each complaint becomes a [`UsageError`] that prints like
//! pflag's. Three forms where clap alone would differ are kept: a boolean never takes the next argument, any other
//! flag takes it whatever it looks like (`--kubeconfig --x`), and words between flags are collected, not refused.

use std::collections::BTreeMap;

use clap::{
    Arg, ArgAction, ArgMatches, Command,
    builder::ValueParser,
    error::{ContextKind, ContextValue, Error, ErrorKind},
};

use super::{
    flags::{Flag, Flags, TABLE},
    go::quote,
    look::{self, LookFlag},
    value::FlagValue,
};

/// Why a command line cannot be read; prints like pflag's message.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum UsageError {
    #[error("unknown flag: --{name}")]
    UnknownFlag { name: String, near: Option<String> },
    #[error("unknown shorthand flag: {letter:?} in -{cluster}")]
    UnknownShorthand { letter: char, cluster: String },
    #[error("bad flag syntax: {0}")]
    BadSyntax(String),
    #[error("flag needs an argument: {0}")]
    NeedsArgument(String),
    /// `flag` is as the user may write it (`-v, --v`), `value` is quoted or masked.
    #[error("invalid argument {value} for \"{flag}\" flag: {reason}")]
    InvalidValue { flag: String, value: String, reason: String },
    #[error("argument is not valid UTF-8: {0}")]
    NotUtf8(String),
    /// Anything else that clap may say.
    #[error("{0}")]
    Other(String),
}

/// The words (positional arguments) of a command line.
const WORDS: &str = "words";

/// clap's argument for one row of the table.
pub fn arg<T: FlagValue>(flag: &'static Flag) -> Arg {
    let arg = bare(flag.name, flag.short, T::TYPE.is_empty());
    arg.value_parser(ValueParser::new(move |text: &str| {
        T::parse(text).map_err(|reason| UsageError::InvalidValue {
            flag: match flag.short {
                Some(short) => format!("-{short}, --{}", flag.name),
                None => format!("--{}", flag.name),
            },
            value: if flag.is_secret() { "\"***\"".to_owned() } else { quote(text) },
            reason: reason.to_string(),
        })
    }))
}

fn bare(name: &'static str, short: Option<char>, boolean: bool) -> Arg {
    let arg = Arg::new(name).long(name).action(ArgAction::Append);
    let arg = match short {
        Some(short) => arg.short(short),
        None => arg,
    };
    if boolean {
        arg.num_args(0..=1).require_equals(true).default_missing_value("true")
    } else {
        arg.num_args(1).allow_hyphen_values(true)
    }
}

fn command() -> Command {
    let words = Arg::new(WORDS).num_args(0..).action(ArgAction::Append);
    Command::new("kube-router").no_binary_name(true).disable_help_flag(true).disable_version_flag(true).arg(words)
}

/// A command line of the agent's flags.
pub struct Line {
    pub flags: Flags,
    pub words: Vec<String>,
    /// The last value of `-o`, where there is such a flag.
    pub output: Option<String>,
}

/// Reads all of the agent's flags, and `-o`/`--output` too if `output`.
pub fn read_flags(args: &[String], output: bool) -> Result<Line, UsageError> {
    let mut command = command().args(TABLE.iter().map(|flag| (flag.arg)(flag)));
    if output {
        command = command.arg(bare("output", Some('o'), false));
    }
    let mut matches = command.try_get_matches_from(args).map_err(|error| translate(&error, args))?;
    let words = words(&mut matches);
    let output = if output { last(&mut matches, "output") } else { None };
    Ok(Line { flags: Flags::take(&mut matches), words, output })
}

/// A command line with few flags, see [`super::look`].
pub struct Look {
    /// The last value of each flag that was given, by its name.
    pub values: BTreeMap<&'static str, String>,
    pub words: Vec<String>,
}

pub fn read_look(form: look::Form, args: &[String]) -> Result<Look, UsageError> {
    let command = command().args(look::flags_of(form).map(look_arg));
    let mut matches = command.try_get_matches_from(args).map_err(|error| translate(&error, args))?;
    let values = look::flags_of(form).filter_map(|flag| Some((flag.name, last(&mut matches, flag.name)?))).collect();
    Ok(Look { values, words: words(&mut matches) })
}

/// Values of booleans are read here: they become `true` or `false`.
fn look_arg(flag: &'static LookFlag) -> Arg {
    let arg = bare(flag.name, flag.short, flag.type_name.is_empty());
    if !flag.type_name.is_empty() {
        return arg;
    }
    arg.value_parser(ValueParser::new(move |text: &str| {
        bool::parse(text).map(|value| value.to_string()).map_err(|reason| UsageError::InvalidValue {
            flag: format!("--{}", flag.name),
            value: quote(text),
            reason: reason.to_string(),
        })
    }))
}

fn last(matches: &mut ArgMatches, name: &str) -> Option<String> {
    matches.remove_many::<String>(name).and_then(Iterator::last)
}

fn words(matches: &mut ArgMatches) -> Vec<String> {
    matches.remove_many::<String>(WORDS).into_iter().flatten().collect()
}

fn translate(error: &Error, args: &[String]) -> UsageError {
    let context = |kind| match error.get(kind) {
        Some(ContextValue::String(text)) => Some(text.as_str()),
        _ => None,
    };
    let own = std::error::Error::source(error).and_then(|source| source.downcast_ref::<UsageError>());
    match (error.kind(), own) {
        (ErrorKind::ValueValidation, Some(own)) => own.clone(),
        (ErrorKind::UnknownArgument, _) => {
            let text = context(ContextKind::InvalidArg).unwrap_or_default();
            // Anything is near to a flag of a letter or two.
            let near = context(ContextKind::SuggestedArg).filter(|_| text.len() > "--xy".len());
            unknown(text, near.map(str::to_owned), args)
        }
        // Every value is taken whatever it looks like, so one is missing only at the end of the line.
        (ErrorKind::InvalidValue, _) => {
            let last = args.last().map(String::as_str).unwrap_or_default();
            UsageError::NeedsArgument(match last.strip_prefix('-') {
                Some(cluster) if !cluster.starts_with('-') => {
                    let letter = cluster.chars().last().unwrap_or_default();
                    format!("{letter:?} in -{letter}")
                }
                _ => last.to_owned(),
            })
        }
        _ => UsageError::Other(error.to_string().lines().next().unwrap_or_default().to_owned()),
    }
}

/// `text` is how clap names the flag that it does not know: `--name` or `-x`, without value or neighbours.
fn unknown(text: &str, near: Option<String>, args: &[String]) -> UsageError {
    match text.strip_prefix("--") {
        Some(name) if name.is_empty() || name.starts_with('-') => {
            let whole = args.iter().find(|arg| arg.starts_with("---") || arg.starts_with("--="));
            UsageError::BadSyntax(whole.cloned().unwrap_or_else(|| text.to_owned()))
        }
        Some(name) => UsageError::UnknownFlag { name: name.to_owned(), near },
        None => {
            let letter = text.chars().nth(1).unwrap_or_default();
            // pflag shows the rest of the cluster from the unknown letter on.
            let cluster = args.iter().find_map(|arg| {
                let cluster = arg.strip_prefix('-').filter(|cluster| !cluster.starts_with('-'))?;
                cluster.find(letter).map(|at| cluster[at..].to_owned())
            });
            UsageError::UnknownShorthand { letter, cluster: cluster.unwrap_or_else(|| letter.to_string()) }
        }
    }
}
