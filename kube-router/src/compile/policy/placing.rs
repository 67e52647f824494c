//! Which blocks have a place in the table of prefixes, where it is too small for all: those of the groups that name the
//! fewest. The others match nobody, and pods whose rules deny or pass by them are shut (`closing.rs`).
//!
//! Here the order of events decides nothing: it is settled anew whenever blocks or groups come or go.

use std::{
    collections::{BTreeSet, HashSet},
    sync::Arc,
};

use super::{
    About, Limits, PolicyCompiler, Work,
    normalize::Block,
    prefix::Prefix,
    room::{Share, StableName},
    rows::MOST_NAMED,
    terms::{GroupId, TermId},
};
use crate::compile::{Problem, Subject};

impl Limits {
    /// Prefixes may need as many classes, and some must be left for pods.
    pub(super) fn prefixes(&self) -> usize {
        self.cidrs.min(self.classes as usize / 4 * 3)
    }
}

impl PolicyCompiler {
    /// Gives places to fresh blocks and marks whom that concerns. `room`: others lost theirs.
    pub(super) fn place_blocks(&mut self, room: bool, work: &mut Work) {
        let regrouped = !work.new_groups.is_empty() || !work.empty_groups.is_empty();
        let fresh: Vec<(TermId, Arc<Block>)> =
            work.fresh.terms.iter().filter_map(|id| Some((*id, self.terms.block(*id)?.clone()))).collect();
        for (id, block) in &fresh {
            if self.blocks.add(*id, block) {
                self.mark_block(block, work);
            }
        }
        if self.blocks.refused().is_empty() {
            return self.report(About::Blocks, Vec::new());
        }
        if fresh.is_empty() && !regrouped && !room {
            return;
        }
        let (wanted, without) = self.choose_blocks(work);
        let lost: Vec<(TermId, Arc<Block>)> = self
            .blocks
            .placed()
            .filter(|(id, _)| !wanted.contains(id))
            .map(|(id, block)| (id, block.clone()))
            .collect();
        for (id, block) in &lost {
            self.mark_block(block, work);
            self.blocks.refuse(*id, block);
        }
        let won: Vec<(TermId, Arc<Block>)> = self
            .blocks
            .refused()
            .iter()
            .filter(|(id, _)| wanted.contains(id))
            .map(|(id, block)| (*id, block.clone()))
            .collect();
        for (id, block) in &won {
            self.blocks.add(*id, block);
            self.mark_block(block, work);
        }
        let problems = self.too_many_blocks(&without);
        self.report(About::Blocks, problems);
    }

    /// What is in a block has other terms now.
    fn mark_block(&self, block: &Block, work: &mut Work) {
        work.prefixes.extend(block.prefixes());
        work.prefixes.extend(self.blocks.inside(block.net));
        let peers = self.out.tables.peers.range(block.net.first()..=block.net.last());
        work.addresses.extend(peers.map(|(address, _)| *address));
    }

    fn blocks_of(&self, id: GroupId) -> impl Iterator<Item = (TermId, &Arc<Block>)> {
        let terms = self.groups.get(&id).into_iter().flat_map(|group| group.terms(&self.terms));
        terms.filter_map(|term| Some((term, self.terms.block(term)?)))
    }

    /// The blocks that get a place, and the groups of which some get none.
    fn choose_blocks(&self, work: &Work) -> (HashSet<TermId>, Vec<Share<StableName>>) {
        let size = |id| self.blocks_of(id).map(|(_, block)| 1 + block.except.len()).sum();
        let mut shares = self.shares(|id| work.empty_groups.contains(&id), size);
        shares.sort();
        let most = self.config.limits.prefixes();
        let (mut prefixes, mut terms) = (HashSet::new(), HashSet::new());
        shares.retain(|share| {
            let asked = self.blocks_of(share.group).flat_map(|(_, block)| block.prefixes());
            let new: HashSet<Prefix> = asked.filter(|prefix| !prefixes.contains(prefix)).collect();
            if prefixes.len() + new.len() > most {
                return true;
            }
            prefixes.extend(new);
            terms.extend(self.blocks_of(share.group).map(|(term, _)| term));
            false
        });
        shares.retain(|share| !share.leaves);
        (terms, shares)
    }

    fn too_many_blocks(&self, without: &[Share<StableName>]) -> Vec<Problem> {
        let sources: BTreeSet<_> = without
            .iter()
            .flat_map(|share| self.groups.get(&share.group))
            .flat_map(|group| {
                let direction = group.key.direction as usize;
                group.versions.iter().filter(move |version| version.policy.names_blocks(direction))
            })
            .map(|version| &version.policy.source)
            .collect();
        if sources.is_empty() {
            return Vec::new();
        }
        let limit = self.config.limits.prefixes();
        let full = format!("the ipBlocks of this node's policies need more than {limit} prefixes (--netpol-max-peers)");
        let names: Vec<String> = sources.iter().take(MOST_NAMED).map(|source| source.subject().to_string()).collect();
        let text = format!(
            "{full}; those of {} policies, which name the most, match nobody: {}",
            sources.len(),
            names.join(", ")
        );
        let on_node = Problem { subject: Subject::Kernel("policy"), reason: "TooManyBlocks", text };
        let on_policy = sources.iter().take(MOST_NAMED).map(|source| Problem {
            subject: source.subject(),
            reason: "TooManyBlocks",
            text: format!("{full}; its pods' policies name the most, so its ipBlocks match nobody"),
        });
        [on_node].into_iter().chain(on_policy).collect()
    }
}
