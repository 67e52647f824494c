//! `kube-router dump`: what the running agent wants (`services`) and cannot do (`problems`), asked over its status socket;
//! and what the kernel's tables hold (`policy`, `endpoints`, `flows`; `backends` of services), see [`kernel`].
//!
//! The first two read nothing from the kernel: `ipvsadm -Sn` shows what that has.

pub mod kernel;
mod rows;

use std::{
    io::{self, Write as _},
    path::Path,
};

use serde::{Serialize, de::DeserializeOwned};

use super::tables::{self, TablesError};
use crate::{
    apply::bpf::BpfError,
    observe::{
        socket::{PROBLEMS_PATH, SERVICES_PATH},
        socket_client::{self, ClientError},
        table,
    },
};

/// What is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum What {
    /// Every virtual server that the agent wants.
    Services,
    /// Every standing problem.
    Problems,
    /// Rows of the kernel: who may reach whom.
    Policy,
    /// Pods of this node, as the kernel knows them.
    Endpoints,
    /// Live flows of pods.
    Flows,
    /// Destinations of services on the fast path.
    Backends,
}

impl What {
    pub const ALL: [What; 6] =
        [What::Services, What::Problems, What::Policy, What::Endpoints, What::Flows, What::Backends];

    pub fn name(self) -> &'static str {
        match self {
            What::Services => "services",
            What::Problems => "problems",
            What::Policy => "policy",
            What::Endpoints => "endpoints",
            What::Flows => "flows",
            What::Backends => "backends",
        }
    }

    pub fn named(word: &str) -> Option<Self> {
        What::ALL.into_iter().find(|what| what.name() == word)
    }
}

/// `-o`
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Format {
    #[default]
    Text,
    Json,
}

#[derive(Debug, thiserror::Error)]
pub enum DumpError {
    #[error(transparent)]
    Agent(#[from] ClientError),
    #[error("cannot write the answer: {0}")]
    Output(#[from] io::Error),
    #[error(transparent)]
    Tables(#[from] TablesError),
    /// No epoll instance; the machine is out of something.
    #[error("cannot start: {0}")]
    Start(#[source] io::Error),
}

impl From<BpfError> for DumpError {
    fn from(error: BpfError) -> Self {
        DumpError::Tables(error.into())
    }
}

/// Prints the answer of the agent behind `socket`, or what is pinned below `maps`, to `output`. Blocks; not to be called
/// inside a runtime.
pub fn dump(
    what: What,
    socket: &Path,
    maps: &Path,
    format: Format,
    output: &mut impl io::Write,
) -> Result<(), DumpError> {
    match what {
        What::Policy | What::Endpoints | What::Flows => {
            let tables = tables::open(maps)?;
            let (names, complaint) = kernel::names(socket)?;
            complaint.into_iter().for_each(|complaint| eprintln!("{complaint}"));
            let mut output = io::BufWriter::new(output);
            ended(kernel::dump(what, &tables, &names, format, &mut output).and_then(|()| Ok(output.flush()?)))
        }
        What::Backends => {
            let tables = tables::open_balance(maps)?;
            let mut output = io::BufWriter::new(output);
            ended(kernel::backends(&tables, format, &mut output).and_then(|()| Ok(output.flush()?)))
        }
        What::Services => ask(SERVICES_PATH, table::services, socket, format, output),
        What::Problems => ask(PROBLEMS_PATH, table::problems, socket, format, output),
    }
}

fn ask<Row: DeserializeOwned + Serialize>(
    path: &'static str,
    table: impl Fn(&[Row]) -> String,
    socket: &Path,
    format: Format,
    output: &mut impl io::Write,
) -> Result<(), DumpError> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(DumpError::Start)?;
    let rows: Vec<Row> = runtime.block_on(socket_client::get(socket, path))?;
    let printed = match format {
        Format::Text => output.write_all(table(&rows).as_bytes()),
        Format::Json => serde_json::to_writer_pretty(&mut *output, &rows)
            .map_err(io::Error::from)
            .and_then(|()| output.write_all(b"\n")),
    };
    ended(printed.and_then(|()| output.flush()).map_err(DumpError::Output))
}

/// `dump services | head`: the reader has seen enough.
fn ended(outcome: Result<(), DumpError>) -> Result<(), DumpError> {
    match outcome {
        Err(DumpError::Output(error)) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        outcome => outcome,
    }
}
