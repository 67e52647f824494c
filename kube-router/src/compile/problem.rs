//! A problem: something a user asked for that we cannot do, said once, naming its object.

use std::fmt;

use serde::Serialize;

use crate::objects::{Kind, ObjectKey};

/// What a problem is about.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
pub enum Subject {
    Object(Kind, ObjectKey),
    /// A file with line, or an object that could not even be named.
    Input(String),
    /// A kind of object that cannot be read from the API server.
    Watch(Kind),
    /// A part of the kernel, by the plane's name.
    Kernel(&'static str),
}

impl fmt::Display for Subject {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Subject::Object(kind, key) => write!(f, "{kind} {key}"),
            Subject::Input(input) => f.write_str(input),
            Subject::Watch(kind) => write!(f, "watch of {kind}"),
            Subject::Kernel(plane) => f.write_str(plane),
        }
    }
}

/// `reason` is a stable CamelCase word (for metrics and Kubernetes Events), `text` a sentence that says what happens
/// instead and what to do.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
pub struct Problem {
    pub subject: Subject,
    pub reason: &'static str,
    pub text: String,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {} ({})", self.subject, self.text, self.reason)
    }
}
