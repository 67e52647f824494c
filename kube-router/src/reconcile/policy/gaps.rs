//! How long pods were open that no network plugin announced: from the first sight of their link until they were judged by
//! their rules. With the plugin there is no such time; without it, this is what it would save.

use std::collections::{BTreeMap, BTreeSet};

use crate::compile::links::Links;

#[derive(Debug, Default)]
pub(super) struct Gaps {
    seen: BTreeSet<u32>,
    /// Links of pods that are not judged yet, and when they were seen first.
    open_ms: BTreeMap<u32, u64>,
    measured_ms: Vec<u64>,
}

impl Gaps {
    /// `now_ms`: `None` during the first pass. Links that are older than the agent are not its to measure.
    pub(super) fn look(&mut self, links: &Links, now_ms: Option<u64>) {
        let before = std::mem::replace(&mut self.seen, links.pods.keys().copied().collect());
        let new = now_ms.into_iter().flat_map(|ms| self.seen.difference(&before).map(move |index| (*index, ms)));
        self.open_ms.extend(new);
        self.open_ms.retain(|index, _| links.pods.contains_key(index));
    }

    /// A network plugin brings this one, and waits until it is judged.
    pub(super) fn announced(&mut self, index: u32) {
        self.seen.insert(index);
        self.open_ms.remove(&index);
    }

    /// Orders were carried out: those that are `guarded` now are open no longer.
    pub(super) fn closed(&mut self, guarded: impl Fn(u32) -> bool, now_ms: u64) {
        let closed = self.open_ms.extract_if(.., |index, _| guarded(*index));
        self.measured_ms.extend(closed.map(|(_, since)| now_ms.saturating_sub(since)));
    }

    pub(super) fn take(&mut self) -> Vec<u64> {
        std::mem::take(&mut self.measured_ms)
    }
}
