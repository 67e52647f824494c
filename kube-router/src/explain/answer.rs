//! Questions and answers about one sender and one receiver, as data; or why there is no answer.
//!
//! A question has as many ways as there are pairs of addresses, ports and endpoints between the two; each way has a
//! verdict at both ends. Programs get these types as JSON, people the words of `text.rs`.

use std::{fmt, net::IpAddr};

use serde::{Deserialize, Serialize};

use super::{rules::RuleName, walk::Walk};
use crate::{desired::policy::Direction, objects::ObjectKey};

/// As typed.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Question {
    pub from: String,
    pub to: String,
    /// `None`: every port.
    pub port: Option<String>,
}

/// Why there is no answer.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    #[error("there is no {what} {name}{}", did_you_mean(near))]
    Unknown { what: &'static str, name: String, near: Vec<String> },
    #[error("'{0}' is no port: write tcp/80, udp/53, a name (http, udp/dns), or icmp")]
    BadPort(String),
    #[error("{0} has no address: it has not started yet, or it has ended")]
    NoAddress(String),
    #[error("{from} and {to} have no addresses of one family")]
    NoFamily { from: String, to: String },
    #[error("a service sends nothing: ask about the pods behind {0}")]
    FromService(ObjectKey),
    #[error("{target} has no port {port}{}", known_ports(known))]
    NoPort { target: String, port: String, known: Vec<String> },
}

fn did_you_mean(near: &[String]) -> String {
    if near.is_empty() { String::new() } else { format!("; there is {}", near.join(", ")) }
}

fn known_ports(known: &[String]) -> String {
    if known.is_empty() { String::new() } else { format!("; it has {}", known.join(", ")) }
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Answer {
    pub from: String,
    pub to: String,
    /// Of every way.
    pub allowed: bool,
    pub ways: Vec<Way>,
    /// What a reader should know besides.
    pub notes: Vec<String>,
}

/// From one address to another, with one kind of traffic.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Way {
    pub from: Spot,
    pub to: Spot,
    /// `tcp/80`, `icmp`; of ports that are judged alike, one.
    pub traffic: String,
    /// `tcp/1000-2000`, `other udp`, `tcp/80 (http)`.
    pub label: String,
    pub via: Option<Via>,
    pub allowed: bool,
    pub egress: End,
    pub ingress: End,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Spot {
    pub address: IpAddr,
    pub pod: Option<ObjectKey>,
}

impl fmt::Display for Spot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.pod {
            Some(pod) => write!(f, "{pod} ({})", self.address),
            None => write!(f, "{}", self.address),
        }
    }
}

/// The service in between.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Via {
    pub service: ObjectKey,
    /// The service's port, as `tcp/80 (http)`.
    pub port: String,
}

/// The verdict at one end.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct End {
    pub direction: Direction,
    pub state: State,
    pub pod: Option<ObjectKey>,
    /// Policies that select the pod in this direction, and its namespace where an annotation does.
    pub isolated_by: Vec<String>,
    /// The rule that decided; `None` where there is none, or none that allows it.
    pub rule: Option<RuleName>,
    /// Further rules that would.
    pub also: Vec<RuleName>,
    /// What the agent wants the kernel to say, for a pod of its node.
    pub wanted: Option<Walk>,
}

impl End {
    /// Where nobody is judged.
    pub fn nobody(direction: Direction) -> End {
        let (isolated_by, also) = (Vec::new(), Vec::new());
        End { direction, state: State::NoPod, pod: None, isolated_by, rule: None, also, wanted: None }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum State {
    /// No pod with a network of its own is there, or it is judged on another way.
    NoPod,
    /// No policy isolates the pod, and no rule says anything.
    Open,
    Allowed,
    Denied,
    /// A node may always reach its own pods.
    OwnNode,
    /// A pod and itself.
    Itself,
}

impl State {
    pub fn passes(self) -> bool {
        self != State::Denied
    }
}
