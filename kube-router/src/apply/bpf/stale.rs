//! Pins that nothing needs any more: of interfaces that are gone, and of agents with another schema.

use std::{
    fs,
    path::{Path, PathBuf},
};

use kube_router_common::{config::Iface, names};
use tracing::{info, warn};

use super::{AttachMode, BpfError, LINKS, attach, plane::hooks, root, table::Table};
use crate::desired::interfaces::Role;

/// Removes the pins of links whose interface is gone: names begin with its index.
pub fn remove_links(root: &Path, is_there: impl Fn(u32) -> bool) {
    let Ok(pins) = fs::read_dir(root.join(LINKS)) else { return };
    for pin in pins.flatten() {
        let name = pin.file_name();
        let index = name.to_str().and_then(|name| name.split('-').next()?.parse().ok());
        if index.is_some_and(|index| !is_there(index))
            && let Err(error) = fs::remove_file(pin.path())
        {
            warn!(pin = %pin.path().display(), %error, "not removed");
        }
    }
}

/// Removes what agents of other schemas pinned, links first: by now this schema's programs judge every packet.
pub fn remove_other_schemas(base: &Path) {
    let ours = root(base);
    for schema in schemas(base).into_iter().filter(|schema| *schema != ours) {
        match remove_tree(&schema.join(LINKS)).and_then(|()| remove_tree(&schema)) {
            Ok(()) => info!(pins = %schema.display(), "removed what an agent of another schema left"),
            Err(error) => warn!(pins = %schema.display(), %error, "not removed"),
        }
    }
}

/// What agents of all schemas pinned below `base`; nothing else that may be there.
pub fn schemas(base: &Path) -> Vec<PathBuf> {
    let is_schema = |path: &PathBuf| {
        let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        name.strip_prefix('v').is_some_and(|number| number.parse::<u32>().is_ok())
    };
    let entries = fs::read_dir(base).into_iter().flatten().flatten();
    entries.map(|entry| entry.path()).filter(is_schema).collect()
}

/// A BPF file system knows no recursive removal; neither would a link into somewhere else be followed.
fn remove_tree(directory: &Path) -> std::io::Result<()> {
    let entries = match fs::read_dir(directory) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(()),
        entries => entries?,
    };
    for entry in entries {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            remove_tree(&entry.path())?;
        } else {
            fs::remove_file(entry.path())?;
        }
    }
    fs::remove_dir(directory)
}

/// Takes everything of every schema away: programs off their interfaces, then pins. Returns how many interfaces had some.
/// Nothing pinned: nothing to do.
///
/// # Errors
/// The first thing that could not be taken away; the rest was tried.
pub fn remove_all(base: &Path) -> Result<usize, BpfError> {
    if !base.exists() {
        return Ok(0);
    }
    let (mut interfaces, mut failed) = (0, None);
    for schema in schemas(base) {
        match remove_schema(&schema) {
            Ok(count) => interfaces += count,
            Err(error) => failed = failed.or(Some(error)),
        }
    }
    if failed.is_none()
        && let Err(source) = fs::remove_dir(base)
    {
        failed = Some(BpfError::Pin { path: base.to_owned(), source });
    }
    failed.map_or(Ok(interfaces), Err)
}

/// The same of one schema.
pub fn remove_schema(schema: &Path) -> Result<usize, BpfError> {
    let (mut interfaces, mut failed) = (0, None);
    // Links go with their pins; filters must be taken off. Rows of another schema may not be readable, and then the
    // interfaces that are there are tried.
    let rows = Table::<u32, Iface>::open(names::IFACES, schema).and_then(|ifaces| ifaces.read_all());
    for (index, row) in rows.unwrap_or_default() {
        interfaces += 1;
        for hook in hooks(Role::of(&row)) {
            match attach::clsact_detach(index, hook) {
                Err(error) if !error.is_gone() => {
                    let (program, mode) = (hook.program(), AttachMode::Clsact);
                    failed = failed.or(Some(BpfError::Attach { ifindex: index, program, mode, source: error }));
                }
                _ => {}
            }
        }
    }
    for directory in [&schema.join(LINKS), schema] {
        if let Err(source) = remove_tree(directory) {
            failed = failed.or(Some(BpfError::Pin { path: directory.to_owned(), source }));
        }
    }
    failed.map_or(Ok(interfaces), Err)
}
