//! `kube-router matrix`: who can talk to whom, for all pods at once.

use anyhow::Result;

use super::{
    look::{Objects, Output},
    reading,
};
use crate::explain::matrix::{matrix, page, text::text};

/// # Errors
/// The objects cannot be read, there is no such namespace, or there are too many pairs.
pub fn show(namespace: Option<&str>, objects: &Objects, output: Output) -> Result<()> {
    let matrix = matrix(&reading::cluster(objects)?, namespace)?;
    super::print(&match output {
        Output::Text => text(&matrix),
        Output::Json => serde_json::to_string_pretty(&matrix)? + "\n",
        Output::Html => page(&matrix)?,
    })
}
