//! `kube-router plan`: what this node would program from given objects. Needs no root and touches no kernel.

use anyhow::Result;

use super::{OutputFormat, listing::Listing, reading, rehearsal::Rehearsal};
use crate::config::Config;

/// Reads the source until every kind was listed (or cannot be), and prints the result.
///
/// # Errors
/// The source cannot be used, none of its kinds can be read, or it did not answer within --cache-sync-timeout.
pub fn plan(config: &Config, output: OutputFormat) -> Result<()> {
    let mut rehearsal = Rehearsal::new(config);
    if !reading::source(&config.source, config.cache_sync_timeout, |event| rehearsal.take(event))? {
        return Err(super::no_view_in_time(config));
    }
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
