//! Objects, read once: from a source until every kind is listed, from a recording, or from the running agent.

use std::{path::Path, time::Duration};

use anyhow::{Context, Result, anyhow, bail};
use tokio::{runtime::Builder, sync::mpsc, time};

use super::look::Objects;
use crate::{
    cluster::{ClusterState, Dirty},
    config::Source,
    objects::{Kind, Object, ObjectEvent},
    observe::{
        socket,
        socket_client::{self, ClientError},
    },
    watch::{self, recorded},
};

/// A directory on a slow disk.
const WAIT: Duration = Duration::from_secs(60);

/// Hands over what the source says until every kind was listed, or cannot be. `false`: not within `wait`.
///
/// # Errors
/// The source cannot be used, or none of its kinds can be read.
pub fn source(source: &Source, wait: Duration, mut take: impl FnMut(ObjectEvent)) -> Result<bool> {
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
                take(event);
            }
        };
        tokio::select! {
            result = watch::run(source, sink) => result.context("reading objects")?,
            result = time::timeout(wait, read) => {
                if result.is_err() {
                    return Ok(false);
                }
            }
        }
        match refusal {
            // A kind that may not be read is a problem among others; a source that says nothing at all is no cluster.
            Some(reason) if !listed => bail!("nothing can be read: {reason}"),
            _ => Ok(true),
        }
    })
}

/// The cluster as these objects say.
pub fn cluster(objects: &Objects) -> Result<ClusterState> {
    let (mut cluster, mut dirty) = (ClusterState::new(), Dirty::default());
    match objects {
        Objects::Manifests(path) => {
            let whole = source(&Source::Manifests(path.clone()), WAIT, |event| cluster.apply(event, &mut dirty))?;
            if !whole {
                bail!("{} was not read within {} s", path.display(), WAIT.as_secs());
            }
        }
        Objects::Recording(path) => recording(path, |event| cluster.apply(event, &mut dirty))?,
        Objects::Agent(path) => {
            let runtime = Builder::new_current_thread().enable_all().build()?;
            let objects = runtime.block_on(socket_client::get(path, socket::OBJECTS_PATH));
            let objects: Vec<Object> = objects.map_err(or_files)?;
            objects.into_iter().for_each(|object| cluster.apply(ObjectEvent::Applied(object), &mut dirty));
        }
    }
    Ok(cluster)
}

/// Whoever has no agent may still have the objects.
pub fn or_files(error: ClientError) -> anyhow::Error {
    match error {
        ClientError::NotRunning(_) => {
            anyhow!("{error}. Without an agent objects are read from files: --manifests=DIR or --recording=FILE")
        }
        other => other.into(),
    }
}

fn recording(path: &Path, mut take: impl FnMut(ObjectEvent)) -> Result<()> {
    recorded_lines(path, |_, event| take(event))
}

/// Hands over every event of a recording with its time in ms. A line that cannot be understood is named and passed over.
///
/// # Errors
/// The file cannot be read, or none of its lines can be understood: it is no recording.
pub fn recorded_lines(path: &Path, mut take: impl FnMut(u64, ObjectEvent)) -> Result<()> {
    let (mut understood, mut wrong) = (0_u64, 0_u64);
    for line in recorded::replay(path)? {
        match line {
            Ok((at_ms, event)) => {
                understood += 1;
                take(at_ms, event);
            }
            Err(error) => {
                wrong += 1;
                eprintln!("{error}; the line is passed over");
            }
        }
    }
    if understood == 0 && wrong > 0 {
        bail!("{} is no recording: give a file that --record wrote, or objects by --manifests", path.display());
    }
    Ok(())
}
