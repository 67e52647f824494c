//! `kube-router dump services`: asks the running agent over its status socket and prints the answer.
//!
//! Reads nothing from the kernel itself: this shows what the agent wants; `ipvsadm -Sn` shows what the kernel has.

use std::{io, path::Path};

use crate::observe::{
    ServiceRow,
    socket::SERVICES_PATH,
    socket_client::{self, ClientError},
    table,
};

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

/// Prints every virtual server of the agent behind `socket` to `output`. Blocks; not to be called inside a runtime.
pub fn services(socket: &Path, format: Format, output: &mut impl io::Write) -> Result<(), DumpError> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(DumpError::Start)?;
    let rows: Vec<ServiceRow> = runtime.block_on(socket_client::get(socket, SERVICES_PATH))?;
    match print(&rows, format, output) {
        // `dump services | head`: the reader has seen enough.
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        outcome => Ok(outcome?),
    }
}

fn print(rows: &[ServiceRow], format: Format, output: &mut impl io::Write) -> io::Result<()> {
    match format {
        Format::Text => output.write_all(table::services(rows).as_bytes())?,
        Format::Json => {
            serde_json::to_writer_pretty(&mut *output, rows)?;
            output.write_all(b"\n")?;
        }
    }
    output.flush()
}
