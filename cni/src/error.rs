//! Errors as CNI wants them: a number that the runtime acts on, and words for people.
//!
//! Numbers below 100 are the specification's (SPEC.md, "Error"); the others are ours and are explained in docs/cni.md.

use serde::Serialize;

use crate::version::Version;

/// What the runtime, or a person, does differently.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Code {
    IncompatibleVersion,
    /// A variable is missing or says nonsense.
    Environment,
    Io,
    /// The input is no JSON.
    Decode,
    Config,
    TryAgain,
    /// STATUS: pods cannot be added.
    NotAvailable,
    /// STATUS: nor are those that are there as they should be.
    Limited,
    /// The interface is not what it should be.
    Interface,
    /// CHECK: a hook does not hold our program, or a row is missing.
    Unguarded,
    /// The agent's own.
    Agent(u32),
}

impl Code {
    pub fn number(self) -> u32 {
        match self {
            Code::IncompatibleVersion => 1,
            Code::Environment => 4,
            Code::Io => 5,
            Code::Decode => 6,
            Code::Config => 7,
            Code::TryAgain => 11,
            Code::NotAvailable => 50,
            Code::Limited => 51,
            Code::Interface => 100,
            Code::Unguarded => 101,
            Code::Agent(number) => number,
        }
    }
}

/// What goes to standard output in the place of a result.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Error {
    pub code: Code,
    /// Short: what is wrong.
    pub msg: String,
    /// Longer: what was seen, what to do.
    pub details: String,
    pub(crate) version: Version,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Shown<'a> {
    cni_version: &'a str,
    code: u32,
    msg: &'a str,
    #[serde(skip_serializing_if = "str::is_empty")]
    details: &'a str,
}

impl Error {
    pub fn new(code: Code, msg: impl Into<String>) -> Self {
        Error { code, msg: msg.into(), details: String::new(), version: Version::NEWEST }
    }

    pub fn with(self, details: impl ToString) -> Self {
        Error { details: details.to_string(), ..self }
    }

    /// Said in the version that was asked in.
    pub fn of_version(self, version: Version) -> Self {
        Error { version, ..self }
    }

    pub fn to_json(&self) -> String {
        let shown = Shown {
            cni_version: self.version.text(),
            code: self.code.number(),
            msg: &self.msg,
            details: &self.details,
        };
        // Strings and a number; there is nothing in it that JSON cannot say.
        let mut text = serde_json::to_string(&shown).unwrap_or_default();
        text.push('\n');
        text
    }
}
