//! `kube-router monitor`: refused packets and new flows as they happen.

use std::{
    fs::File,
    io::{self, BufWriter, Write},
    ops::ControlFlow,
    path::Path,
};

use anyhow::{Context, Result};
use tokio::runtime::Builder;

use super::look::MonitorWish;
use crate::explain::PolicyNames;
use crate::observe::{
    monitor::Line,
    pcapng::Pcapng,
    socket::{MONITOR_PATH, POLICY_NAMES_PATH, escaped},
    socket_client,
};

/// Where lines and packets go.
struct Sinks<W> {
    json: bool,
    output: W,
    pcap: Option<(Pcapng, BufWriter<File>)>,
}

impl<W: Write> Sinks<W> {
    /// Each record is out before the next one is waited for.
    fn take(&mut self, line: &[u8]) -> io::Result<()> {
        let told: Line = serde_json::from_slice(line)?;
        // The file first: who reads a line finds its packet there.
        if let (Line::Seen(seen), Some((format, file))) = (&told, &mut self.pcap) {
            file.write_all(&format.packet(seen))?;
            file.flush()?;
        }
        match &told {
            _ if self.json => {
                self.output.write_all(line)?;
                self.output.write_all(b"\n")?;
            }
            Line::Seen(seen) => writeln!(self.output, "{}", seen.text())?,
            Line::Lost { lost } => writeln!(self.output, "{lost} records lost: this reader is too slow")?,
        }
        self.output.flush()
    }
}

/// Prints until the agent ends, or the reader goes away.
///
/// # Errors
/// No agent answers, it does not run network policy, or a file cannot be written.
pub fn monitor(wish: &MonitorWish, socket: &Path) -> Result<()> {
    let runtime = Builder::new_current_thread().enable_all().build()?;
    if wish.pcap.is_some() {
        // An older capture is only written over if there will be a new one.
        runtime.block_on(socket_client::get::<PolicyNames>(socket, POLICY_NAMES_PATH))?;
    }
    let pcap = match &wish.pcap {
        None => None,
        Some(path) => {
            let file = || -> io::Result<BufWriter<File>> {
                let mut file = BufWriter::new(File::create(path)?);
                file.write_all(&Pcapng::header())?;
                file.flush()?;
                Ok(file)
            };
            Some((Pcapng::default(), file().with_context(|| path.display().to_string())?))
        }
    };
    let mut sinks = Sinks { json: wish.json, output: io::stdout().lock(), pcap };
    let mut path = MONITOR_PATH.to_owned();
    let drops = wish.drops.then(|| "drops=1".to_owned());
    let pod = wish.pod.as_ref().map(|pod| format!("pod={}", escaped(pod)));
    let wishes: Vec<String> = drops.into_iter().chain(pod).collect();
    if !wishes.is_empty() {
        path = format!("{path}?{}", wishes.join("&"));
    }
    let mut outcome = Ok(());
    runtime.block_on(socket_client::follow(socket, &path, |line| match sinks.take(line) {
        Ok(()) => ControlFlow::Continue(()),
        Err(error) => {
            outcome = Err(error);
            ControlFlow::Break(())
        }
    }))?;
    match outcome {
        // `monitor | head`: the reader has seen enough.
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        outcome => Ok(outcome?),
    }
}
