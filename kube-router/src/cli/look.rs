//! The commands that look at network policy: `explain`, `matrix`, `monitor`, and `dump` in its several forms.
//!
//! They have few flags of their own instead of the agent's hundred; this is their table, from which come the parser and
//! the help texts.

use std::{collections::BTreeMap, path::PathBuf};

use super::{
    args::{Look, UsageError},
    dump, flags, help,
};
use crate::explain::Question;

/// Which command.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    Dump,
    Explain,
    Matrix,
    Monitor,
}

impl Form {
    /// As typed.
    pub fn name(self) -> &'static str {
        match self {
            Form::Dump => "dump",
            Form::Explain => "explain",
            Form::Matrix => "matrix",
            Form::Monitor => "monitor",
        }
    }

    pub fn named(word: &str) -> Option<Form> {
        ALL.iter().copied().find(|form| form.name() == word)
    }
}

/// A flag of these commands.
pub struct LookFlag {
    pub name: &'static str,
    pub short: Option<char>,
    /// Empty: true or false.
    pub type_name: &'static str,
    pub help: &'static str,
    pub forms: &'static [Form],
}

use Form::{Dump, Explain, Matrix, Monitor};

const ALL: &[Form] = &[Dump, Explain, Matrix, Monitor];

pub static FLAGS: &[LookFlag] = &[
    LookFlag { name: "help", short: Some('h'), type_name: "", help: "print this text", forms: ALL },
    LookFlag {
        name: "from",
        short: None,
        type_name: "string",
        help: "who sends: NS/POD or an address",
        forms: &[Explain],
    },
    LookFlag {
        name: "to",
        short: None,
        type_name: "string",
        help: "who is asked: NS/POD, NS/SERVICE, svc/NS/SERVICE or an address",
        forms: &[Explain],
    },
    LookFlag {
        name: "port",
        short: None,
        type_name: "string",
        help: "tcp/80, udp/53, a name (http, udp/dns) or icmp; without it, every port",
        forms: &[Explain],
    },
    LookFlag {
        name: "namespace",
        short: Some('n'),
        type_name: "string",
        help: "only pairs with a pod of this namespace",
        forms: &[Matrix],
    },
    LookFlag {
        name: "manifests",
        short: None,
        type_name: "string",
        help: "read objects from this YAML file or directory, without an agent",
        forms: &[Explain, Matrix],
    },
    LookFlag {
        name: "recording",
        short: None,
        type_name: "string",
        help: "read objects from this file of --record, without an agent",
        forms: &[Explain, Matrix],
    },
    LookFlag { name: "drops", short: None, type_name: "", help: "only what was refused", forms: &[Monitor] },
    LookFlag {
        name: "pod",
        short: None,
        type_name: "string",
        help: "only packets of the pod NS/NAME",
        forms: &[Monitor],
    },
    LookFlag { name: "json", short: None, type_name: "", help: "one JSON object a line", forms: &[Monitor] },
    LookFlag {
        name: "pcap",
        short: None,
        type_name: "string",
        help: "write packets to this file (pcapng) with pod and rule as comments",
        forms: &[Monitor],
    },
    LookFlag {
        name: "socket",
        short: None,
        type_name: "string",
        help: "the agent's socket (default /run/kube-router/kube-router.sock)",
        forms: ALL,
    },
    LookFlag {
        name: "maps",
        short: None,
        type_name: "string",
        help: "where BPF maps are pinned (default /sys/fs/bpf/kube-router)",
        forms: &[Dump, Explain],
    },
    LookFlag {
        name: "output",
        short: Some('o'),
        type_name: "string",
        help: "text (default) or json; matrix also html",
        forms: &[Dump, Explain, Matrix],
    },
];

const MAPS: &str = "/sys/fs/bpf/kube-router";

pub fn flags_of(form: Form) -> impl Iterator<Item = &'static LookFlag> {
    FLAGS.iter().filter(move |flag| flag.forms.contains(&form))
}

/// Where objects come from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Objects {
    Manifests(PathBuf),
    Recording(PathBuf),
    /// The running agent, by its socket.
    Agent(PathBuf),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Output {
    Text,
    Json,
    Html,
}

/// One of these commands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LookCommand {
    Help(String),
    Dump { what: dump::What, socket: PathBuf, maps: PathBuf, output: Output },
    Explain { question: Question, objects: Objects, maps: PathBuf, output: Output },
    Matrix { namespace: Option<String>, objects: Objects, output: Output },
    Monitor { wish: MonitorWish, socket: PathBuf },
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct MonitorWish {
    pub drops: bool,
    pub pod: Option<String>,
    pub json: bool,
    pub pcap: Option<PathBuf>,
}

/// What was typed after the command's name becomes the command.
pub fn read(program: &str, form: Form, look: Look) -> Result<LookCommand, UsageError> {
    let Look { values, words } = look;
    let values = Values(values);
    if values.is_set("help") {
        return Ok(LookCommand::Help(help::look(program, form)));
    }
    let mut words = words.into_iter();
    let socket = values.path("socket").unwrap_or_else(|| flags::default("socket").into());
    let maps = values.path("maps").unwrap_or_else(|| MAPS.into());
    let html = form == Form::Matrix;
    let output = match values.text("output").as_deref() {
        None | Some("text") => Output::Text,
        Some("json") => Output::Json,
        Some("html") if html => Output::Html,
        Some(other) => {
            let known = if html { "text, json or html" } else { "text or json" };
            return wrong(format!("--output must be {known}, got '{other}'"));
        }
    };
    let command = match form {
        Form::Dump => {
            let known = dump::What::ALL.map(dump::What::name).join(", ");
            let Some(word) = words.next() else { return wrong(format!("dump needs to know what: {known}")) };
            let Some(what) = dump::What::named(&word) else {
                return wrong(format!("dump knows {known}, not '{word}'"));
            };
            LookCommand::Dump { what, socket, maps, output }
        }
        Form::Explain => {
            let (Some(from), Some(to)) = (values.text("from"), values.text("to")) else {
                return wrong("explain needs --from and --to".to_owned());
            };
            let question = Question { from, to, port: values.text("port") };
            LookCommand::Explain { question, objects: values.objects(socket)?, maps, output }
        }
        Form::Matrix => {
            LookCommand::Matrix { namespace: values.text("namespace"), objects: values.objects(socket)?, output }
        }
        Form::Monitor => {
            let wish = MonitorWish {
                drops: values.is_set("drops"),
                pod: values.text("pod").map(|pod| if pod.contains('/') { pod } else { format!("default/{pod}") }),
                json: values.is_set("json"),
                pcap: values.path("pcap"),
            };
            LookCommand::Monitor { wish, socket }
        }
    };
    let rest: Vec<String> = words.collect();
    if rest.is_empty() {
        Ok(command)
    } else {
        wrong(format!("unrecognized positional argument(s): [{}]", rest.join(" ")))
    }
}

fn wrong<T>(text: String) -> Result<T, UsageError> {
    Err(UsageError::Other(text))
}

/// Values by the flag's name.
struct Values(BTreeMap<&'static str, String>);

impl Values {
    /// `None` also for an empty one.
    fn text(&self, name: &str) -> Option<String> {
        self.0.get(name).filter(|text| !text.is_empty()).cloned()
    }

    fn path(&self, name: &str) -> Option<PathBuf> {
        self.text(name).map(PathBuf::from)
    }

    fn is_set(&self, name: &str) -> bool {
        self.0.get(name).is_some_and(|text| text == "true")
    }

    fn objects(&self, socket: PathBuf) -> Result<Objects, UsageError> {
        match (self.path("manifests"), self.path("recording")) {
            (Some(_), Some(_)) => wrong("--manifests and --recording: one source of objects is enough".to_owned()),
            (Some(path), None) => Ok(Objects::Manifests(path)),
            (None, Some(path)) => Ok(Objects::Recording(path)),
            (None, None) => Ok(Objects::Agent(socket)),
        }
    }
}
