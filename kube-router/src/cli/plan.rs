//! `kube-router plan`: what this node would program from given objects. Needs no root and touches no kernel.

use anyhow::{Context, Result, bail};
use tokio::{runtime::Builder, sync::mpsc, time};

use super::{OutputFormat, listing::Listing, rehearsal::Rehearsal};
use crate::{
    config::Config,
    objects::{Kind, ObjectEvent},
    watch,
};

/// Reads the source until every kind was listed (or cannot be), and prints the result.
///
/// # Errors
/// The source cannot be used, none of its kinds can be read, or it did not answer within --cache-sync-timeout.
pub fn plan(config: &Config, output: OutputFormat) -> Result<()> {
    let mut rehearsal = Rehearsal::new(config);
    Builder::new_current_thread().enable_all().build()?.block_on(async {
        let (sink, mut events) = mpsc::channel(1_024);
        let mut open: Vec<Kind> = Kind::ALL.to_vec();
        let (mut listed, mut refusal) = (false, None);
        let read = async {
            while !open.is_empty() {
                let Some(event) = events.recv().await else { break };
                match &event {
                    ObjectEvent::RelistDone(kind) => {
                        listed = true;
                        open.retain(|other| other != kind);
                    }
                    ObjectEvent::Unavailable { kind, reason } => {
                        refusal.get_or_insert_with(|| reason.clone());
                        open.retain(|other| other != kind);
                    }
                    _ => {}
                }
                rehearsal.take(event);
            }
        };
        tokio::select! {
            result = watch::run(&config.source, sink) => result.context("reading objects")?,
            result = time::timeout(config.cache_sync_timeout, read) => {
                result.map_err(|_| super::no_view_in_time(config))?;
            }
        }
        match refusal {
            // A kind that may not be read is a problem among others; a source that says nothing at all is no cluster.
            Some(reason) if !listed => bail!("nothing can be read: {reason}"),
            _ => Ok(()),
        }
    })?;
    rehearsal.settle();
    super::print(&show(rehearsal, output)?)
}

/// The listing in the wanted form.
pub fn show(mut rehearsal: Rehearsal, output: OutputFormat) -> Result<String> {
    let listing = Listing::new(rehearsal.reconciler());
    Ok(match output {
        OutputFormat::Text => listing.text(),
        OutputFormat::Json => serde_json::to_string_pretty(&listing)? + "\n",
    })
}
