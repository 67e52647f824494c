//! What the runtime says by environment variables (SPEC.md, "Parameters").
//!
//! Names from outside become parts of messages and requests, so they are judged here and nowhere else.

use std::{fmt, path::PathBuf};

use kube_router::cni::protocol::PodName;

use crate::{Code, Error, Input, version::Version};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Command {
    Add,
    Del,
    Check,
    Gc,
    Status,
    Version,
}

impl Command {
    const ALL: [Command; 6] =
        [Command::Add, Command::Del, Command::Check, Command::Gc, Command::Status, Command::Version];

    pub fn name(self) -> &'static str {
        match self {
            Command::Add => "ADD",
            Command::Del => "DEL",
            Command::Check => "CHECK",
            Command::Gc => "GC",
            Command::Status => "STATUS",
            Command::Version => "VERSION",
        }
    }

    /// The first version that has it, of ours.
    pub fn since(self) -> Version {
        match self {
            Command::Add | Command::Del | Command::Version => Version::V0_3_0,
            Command::Check => Version::V0_4_0,
            Command::Gc | Command::Status => Version::V1_1_0,
        }
    }
}

impl fmt::Display for Command {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// The interface that ADD and CHECK are about.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Target {
    pub container_id: String,
    pub ifname: String,
    pub netns: PathBuf,
    pub pod: Option<PodName>,
}

/// The interface that DEL is about. Its namespace may be gone.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Departure {
    pub container_id: String,
    pub ifname: String,
    pub netns: Option<String>,
    pub pod: Option<PodName>,
}

fn bad(name: &str, why: impl fmt::Display) -> Error {
    Error::new(Code::Environment, format!("{name} {why}"))
}

/// A variable that is set; one without text counts as missing.
fn optional(input: &Input, name: &str) -> Result<Option<String>, Error> {
    let Some(value) = (input.environment)(name) else { return Ok(None) };
    let value = value.into_string().map_err(|_| bad(name, "is not UTF-8"))?;
    Ok(Some(value).filter(|value| !value.is_empty()))
}

fn required(input: &Input, name: &str) -> Result<String, Error> {
    optional(input, name)?.ok_or_else(|| bad(name, "is missing"))
}

pub fn command(input: &Input) -> Result<Command, Error> {
    let name = required(input, "CNI_COMMAND")?;
    let known = Command::ALL.into_iter().find(|command| command.name() == name);
    known.ok_or_else(|| bad("CNI_COMMAND", format!("{name:?} is not known")))
}

impl Target {
    pub fn parse(input: &Input) -> Result<Target, Error> {
        let arguments = optional(input, "CNI_ARGS")?.unwrap_or_default();
        Ok(Target {
            container_id: container_id(input)?,
            ifname: ifname(input)?,
            netns: required(input, "CNI_NETNS")?.into(),
            pod: pod(&arguments)?,
        })
    }
}

impl Departure {
    /// Only what is needed to tell whose end it is must be right.
    pub fn parse(input: &Input) -> Result<Departure, Error> {
        let arguments = optional(input, "CNI_ARGS").ok().flatten().unwrap_or_default();
        Ok(Departure {
            container_id: container_id(input)?,
            ifname: ifname(input)?,
            netns: optional(input, "CNI_NETNS").ok().flatten(),
            pod: pod(&arguments).unwrap_or_default(),
        })
    }
}

/// Letters, digits, `_.-`; the first is a letter or a digit.
fn container_id(input: &Input) -> Result<String, Error> {
    const NAME: &str = "CNI_CONTAINERID";
    /// Runtimes use 64; the specification has no limit.
    const LONGEST: usize = 256;
    let id = required(input, NAME)?;
    let fits = |byte: u8| byte.is_ascii_alphanumeric() || b"_.-".contains(&byte);
    if !id.bytes().all(fits) || !id.as_bytes()[0].is_ascii_alphanumeric() || id.len() > LONGEST {
        return Err(bad(NAME, format!("{id:.80?} is not an id: letters, digits and _.- behind a letter or a digit")));
    }
    Ok(id)
}

/// What the kernel takes for an interface's name (dev_valid_name of net/core/dev.c).
fn ifname(input: &Input) -> Result<String, Error> {
    const NAME: &str = "CNI_IFNAME";
    let name = required(input, NAME)?;
    let is_bad = |c: char| c == '/' || c == ':' || c.is_whitespace() || c == '\0';
    if name.len() > 15 || name == "." || name == ".." || name.contains(is_bad) {
        return Err(bad(NAME, format!("{name:.80?} is no name of an interface")));
    }
    Ok(name)
}

/// `KEY=VALUE` pairs with semicolons between them; those that are not ours are passed over.
fn pod(arguments: &str) -> Result<Option<PodName>, Error> {
    let (mut namespace, mut name, mut uid, mut infra_container_id) = (None, None, None, None);
    for pair in arguments.split(';').filter(|pair| !pair.is_empty()) {
        let (key, value) = pair.split_once('=').ok_or_else(|| bad("CNI_ARGS", format!("{pair:.80?} has no value")))?;
        let field = match key {
            "K8S_POD_NAMESPACE" => &mut namespace,
            "K8S_POD_NAME" => &mut name,
            "K8S_POD_UID" => &mut uid,
            "K8S_POD_INFRA_CONTAINER_ID" => &mut infra_container_id,
            _ => continue,
        };
        // Names of Kubernetes have 253 characters at most.
        if value.len() > 253 || value.contains(char::is_control) {
            return Err(bad("CNI_ARGS", format!("{key} is too long, or no text")));
        }
        *field = Some(value.to_owned()).filter(|value| !value.is_empty());
    }
    Ok(match (namespace, name) {
        (Some(namespace), Some(name)) => Some(PodName { namespace, name, uid, infra_container_id }),
        _ => None,
    })
}
