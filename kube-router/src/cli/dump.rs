//! `kube-router dump services` and `dump problems`: ask the running agent over its status socket and print the answer.
//!
//! Reads nothing from the kernel itself: this shows what the agent wants, and what it cannot do; `ipvsadm -Sn` shows what
//! the kernel has.

use std::{io, path::Path};

use serde::{Serialize, de::DeserializeOwned};

use crate::observe::{
    socket::{PROBLEMS_PATH, SERVICES_PATH},
    socket_client::{self, ClientError},
    table,
};

/// What is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum What {
    /// Every virtual server that the agent wants.
    Services,
    /// Every standing problem.
    Problems,
}

impl What {
    pub fn named(word: &str) -> Option<Self> {
        match word {
            "services" => Some(What::Services),
            "problems" => Some(What::Problems),
            _ => None,
        }
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
    /// No epoll instance; the machine is out of something.
    #[error("cannot start: {0}")]
    Start(#[source] io::Error),
}

/// Prints the answer of the agent behind `socket` to `output`. Blocks; not to be called inside a runtime.
pub fn dump(what: What, socket: &Path, format: Format, output: &mut impl io::Write) -> Result<(), DumpError> {
    match what {
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
    match printed.and_then(|()| output.flush()) {
        // `dump services | head`: the reader has seen enough.
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        outcome => Ok(outcome?),
    }
}
