//! From raw objects to events, and which of them stand rejected.
//!
//! No object is kept here. What is kept is one line per object that could not be understood, so that the same reason
//! is not repeated at every change or list, and its end can be said.

use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
};

use tokio::sync::mpsc;

use crate::{
    objects::{
        Kind, Object, ObjectEvent, ObjectKey,
        parse::{Named, Parsed, RawObject},
    },
    watch::SinkClosed,
};

/// Interned node names are swept when they have doubled, but not below this.
const SWEEP_FROM: usize = 1024;

pub(super) struct Delivery<'a> {
    kind: Kind,
    sink: &'a mpsc::Sender<ObjectEvent>,
    /// Standing rejections: object -> reason.
    rejected: HashMap<String, String>,
    /// Those of them that the running list has seen.
    seen: HashSet<String>,
    /// A list is running.
    listing: bool,
    nodes: Interner,
}

impl<'a> Delivery<'a> {
    pub(super) fn new(kind: Kind, sink: &'a mpsc::Sender<ObjectEvent>) -> Self {
        Delivery {
            kind,
            sink,
            rejected: HashMap::new(),
            seen: HashSet::new(),
            listing: false,
            nodes: Interner::default(),
        }
    }

    pub(super) async fn send(&self, event: ObjectEvent) -> Result<(), SinkClosed> {
        crate::watch::send(self.sink, event).await
    }

    pub(super) async fn list_begins(&mut self) -> Result<(), SinkClosed> {
        self.seen.clear();
        self.listing = true;
        self.send(ObjectEvent::RelistStarted(self.kind)).await
    }

    /// Rejected objects that the list does not hold are gone.
    pub(super) async fn list_ends(&mut self) -> Result<(), SinkClosed> {
        self.listing = false;
        self.send(ObjectEvent::RelistDone(self.kind)).await?;
        let gone: Vec<String> = self.rejected.keys().filter(|source| !self.seen.contains(*source)).cloned().collect();
        for source in gone {
            self.accept(source).await?;
        }
        self.seen.clear();
        Ok(())
    }

    /// An object as it is now.
    pub(super) async fn take(&mut self, raw: RawObject) -> Result<(), SinkClosed> {
        match raw.parse(self.kind) {
            Ok(Parsed { mut object, ignored }) => {
                let source = Named(self.kind, Some(object.key())).to_string();
                if let Object::EndpointSlice(slice) = &mut object {
                    for node in slice.endpoints.iter_mut().filter_map(|endpoint| endpoint.node.as_mut()) {
                        self.nodes.intern(node);
                    }
                }
                self.send(ObjectEvent::Applied(object)).await?;
                if ignored.is_empty() {
                    return self.accept(source).await;
                }
                let reasons: Vec<String> = ignored.iter().map(ToString::to_string).collect();
                self.reject(source, reasons.join("; ")).await
            }
            Err(rejection) => {
                let source = Named(self.kind, rejection.key.as_ref()).to_string();
                self.kept(rejection.key.unwrap_or_else(ObjectKey::unnamed)).await?;
                self.reject(source, rejection.field.to_string()).await
            }
        }
    }

    /// An object cannot be understood. It is there all the same: the running list must not take it for gone.
    pub(super) async fn kept(&mut self, key: ObjectKey) -> Result<(), SinkClosed> {
        if self.listing { self.send(ObjectEvent::Kept(self.kind, key)).await } else { Ok(()) }
    }

    /// An object that is gone.
    pub(super) async fn remove(&mut self, raw: RawObject) -> Result<(), SinkClosed> {
        match raw.key(self.kind) {
            Ok(key) => {
                let source = Named(self.kind, Some(&key)).to_string();
                self.send(ObjectEvent::Deleted(self.kind, key)).await?;
                self.accept(source).await
            }
            Err(_) => self.accept(Named(self.kind, None).to_string()).await,
        }
    }

    /// Said once per reason.
    pub(super) async fn reject(&mut self, source: String, reason: String) -> Result<(), SinkClosed> {
        self.seen.insert(source.clone());
        if self.rejected.get(&source) == Some(&reason) {
            return Ok(());
        }
        self.rejected.insert(source.clone(), reason.clone());
        self.send(ObjectEvent::Rejected { source, reason }).await
    }

    async fn accept(&mut self, source: String) -> Result<(), SinkClosed> {
        match self.rejected.remove(&source) {
            Some(_) => self.send(ObjectEvent::Accepted { source }).await,
            None => Ok(()),
        }
    }
}

/// One allocation per node name instead of one per endpoint.
#[derive(Default)]
struct Interner {
    names: HashSet<Arc<str>>,
    sweep_at: usize,
}

impl Interner {
    fn intern(&mut self, name: &mut Arc<str>) {
        if let Some(known) = self.names.get(&**name) {
            *name = known.clone();
            return;
        }
        if self.names.len() >= self.sweep_at.max(SWEEP_FROM) {
            self.names.retain(|name| Arc::strong_count(name) > 1);
            self.sweep_at = self.names.len() * 2;
        }
        self.names.insert(name.clone());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equal_names_share_one_allocation_and_unused_ones_are_swept() {
        let mut interner = Interner::default();
        let (mut one, mut two): (Arc<str>, Arc<str>) = ("n1".into(), "n1".into());
        interner.intern(&mut one);
        interner.intern(&mut two);
        assert!(Arc::ptr_eq(&one, &two));
        for i in 0..10_000 {
            interner.intern(&mut format!("gone-{i}").into());
        }
        assert!(interner.names.len() <= 2 * SWEEP_FROM, "{}", interner.names.len());
        assert!(interner.names.contains("n1"));
    }
}
