//! Blocks of addresses as the table of prefixes sees them.
//!
//! Every block and every exception becomes a prefix of the table. The longest prefix around an address then says
//! exactly in which blocks the address is: any block that contains the prefix contains the address, and one that does
//! not contain it would have to be inside it, so a longer prefix would have been found.

use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
};

use super::{normalize::Block, prefix::Prefix, terms::TermId};

#[derive(Debug)]
pub struct Blocks {
    most: usize,
    blocks: HashMap<Prefix, Vec<(TermId, Arc<Block>)>>,
    /// Prefix -> how many blocks name it.
    prefixes: BTreeMap<Prefix, u32>,
    /// (family, length) of blocks -> how many.
    lengths: BTreeMap<(bool, u8), u32>,
    /// Blocks for which there was no room: they contain nobody.
    refused: BTreeMap<TermId, Arc<Block>>,
}

impl Blocks {
    pub fn new(most: usize) -> Self {
        Blocks {
            most,
            blocks: HashMap::new(),
            prefixes: BTreeMap::new(),
            lengths: BTreeMap::new(),
            refused: BTreeMap::new(),
        }
    }

    /// `false`: the table of prefixes would be too large, so the block contains nobody. All of it or nothing: without
    /// its exceptions it would contain too many.
    pub fn add(&mut self, term: TermId, block: &Arc<Block>) -> bool {
        let new = block.prefixes().filter(|prefix| !self.prefixes.contains_key(prefix)).count();
        if self.prefixes.len() + new > self.most {
            self.refused.insert(term, block.clone());
            return false;
        }
        self.refused.remove(&term);
        for prefix in block.prefixes() {
            *self.prefixes.entry(prefix).or_default() += 1;
        }
        self.blocks.entry(block.net).or_default().push((term, block.clone()));
        *self.lengths.entry((block.net.v4, block.net.length())).or_default() += 1;
        true
    }

    /// Others have its room now.
    pub fn refuse(&mut self, term: TermId, block: &Arc<Block>) {
        self.remove(term, block);
        self.refused.insert(term, block.clone());
    }

    /// Those that have a place.
    pub fn placed(&self) -> impl Iterator<Item = (TermId, &Arc<Block>)> {
        self.blocks.values().flatten().map(|(term, block)| (*term, block))
    }

    pub fn remove(&mut self, term: TermId, block: &Block) {
        if self.refused.remove(&term).is_some() {
            return;
        }
        let Some(known) = self.blocks.get_mut(&block.net) else { return };
        known.retain(|(id, _)| *id != term);
        if known.is_empty() {
            self.blocks.remove(&block.net);
        }
        for prefix in block.prefixes() {
            subtract(&mut self.prefixes, &prefix);
        }
        subtract(&mut self.lengths, &(block.net.v4, block.net.length()));
    }

    pub fn refused(&self) -> &BTreeMap<TermId, Arc<Block>> {
        &self.refused
    }

    pub fn is_empty(&self) -> bool {
        self.blocks.is_empty()
    }

    /// The blocks that all of `prefix` is in.
    pub fn around(&self, prefix: Prefix, found: &mut Vec<TermId>) {
        for (_, length) in self.lengths.range((prefix.v4, 0)..=(prefix.v4, prefix.length())).map(|(key, _)| *key) {
            let Some(blocks) = self.blocks.get(&prefix.widened(length)) else { continue };
            let inside = |block: &Block| !excluded(block, prefix);
            found.extend(blocks.iter().filter(|(_, block)| inside(block)).map(|(id, _)| *id));
        }
    }

    /// Does the table need this prefix?
    pub fn names(&self, prefix: Prefix) -> bool {
        self.prefixes.contains_key(&prefix)
    }

    pub fn inside(&self, prefix: Prefix) -> impl Iterator<Item = Prefix> {
        self.prefixes.range(prefix.inside()).map(|(prefix, _)| *prefix).filter(move |inner| prefix.contains(*inner))
    }
}

impl Block {
    /// What it needs in the table.
    pub fn prefixes(&self) -> impl Iterator<Item = Prefix> {
        std::iter::once(self.net).chain(self.except.iter().copied())
    }
}

/// Exceptions are ordered, and one may be in another: what contains a prefix is before it, but not always next to it.
fn excluded(block: &Block, prefix: Prefix) -> bool {
    /// Below this many it is quicker to ask each.
    const FEW: usize = 16;
    if block.except.len() <= FEW {
        return block.except.iter().any(|hole| hole.contains(prefix));
    }
    (block.net.length()..=prefix.length()).any(|length| block.except.binary_search(&prefix.widened(length)).is_ok())
}

fn subtract<K: Ord>(counts: &mut BTreeMap<K, u32>, key: &K) {
    if let Some(count) = counts.get_mut(key) {
        *count -= 1;
        if *count == 0 {
            counts.remove(key);
        }
    }
}
