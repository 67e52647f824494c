//! Who gives way when a table is full: whoever takes the most of it, so that nobody is shut for what others want.
//!
//! A table is full while what is in it and what is asked for are together more than it holds. Then the largest taker
//! loses all it has there, and the next one, until the others fit; those that go in this update anyway lose it first.
//! Whoever asks is shut only if it is the largest.
//!
//! So the outcome does not depend on who came first: those that fit are the small ones, in whatever order they asked.
//! One thing does depend on the order of events: who was shut and wants less now, or for whom others made room, comes
//! back only where all it wants fits beside what is there, and never shuts another for it, though that may be larger by
//! now. Else two that grow and shrink in turn would shut each other again and again.

use super::{PolicyCompiler, lower::Group, normalize::Source, terms::GroupId};
use crate::{desired::policy::Direction, objects::Protocol};
use std::sync::Arc;

/// What a group is called whatever its number: of two that take as much, one must be the larger.
pub(super) type StableName = (Vec<Source>, Direction, Box<[(Arc<str>, Protocol, u16)]>);

/// Somebody's share of a table.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Share<N> {
    /// It goes in this update.
    pub leaves: bool,
    pub size: usize,
    pub name: N,
    pub group: GroupId,
}

/// Those that are shut so that what is left is smaller by `excess`, the largest first.
pub(super) fn give_way<N: Ord>(mut shares: Vec<Share<N>>, excess: usize) -> Vec<Share<N>> {
    shares.sort();
    let mut freed = 0;
    let mut shut = Vec::new();
    while freed < excess
        && let Some(largest) = shares.pop()
    {
        freed += largest.size;
        shut.push(largest);
    }
    shut
}

impl Group {
    pub(super) fn stable_name(&self) -> StableName {
        let sources = self.versions.iter().map(|version| version.policy.source.clone()).collect();
        (sources, self.key.direction, self.key.names.clone())
    }
}

impl PolicyCompiler {
    /// The largest taker of what `size` measures has this name first.
    pub(super) fn shares(
        &self,
        leaves: impl Fn(GroupId) -> bool,
        size: impl Fn(GroupId) -> usize,
    ) -> Vec<Share<StableName>> {
        let sized = self.groups.iter().map(|(id, group)| (*id, group, size(*id))).filter(|(_, _, size)| *size > 0);
        sized
            .map(|(id, group, size)| Share { leaves: leaves(id), size, name: group.stable_name(), group: id })
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shut(shares: &[(&'static str, usize, bool)], excess: usize) -> Vec<&'static str> {
        let share = |(name, size, leaves): &(&'static str, usize, bool)| Share {
            leaves: *leaves,
            size: *size,
            name: *name,
            group: 0,
        };
        give_way(shares.iter().map(share).collect(), excess).into_iter().map(|share| share.name).collect()
    }

    #[test]
    fn the_largest_gives_way_and_before_it_who_leaves() {
        let three = [("a", 5, false), ("b", 9, false), ("c", 9, false)];
        assert_eq!(shut(&three, 1), ["c"]);
        assert_eq!(shut(&three, 9), ["c"]);
        assert_eq!(shut(&three, 10), ["c", "b"]);
        assert_eq!(shut(&three, 0), [""; 0]);
        let [a, b, _] = three;
        assert_eq!(shut(&[a, b, ("old", 2, true)], 2), ["old"]);
        assert_eq!(shut(&[a, b, ("old", 2, true)], 3), ["old", "b"]);
    }
}
