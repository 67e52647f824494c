//! Counts that programs add to, put right by a walk of what they count.
//!
//! ```text
//!   read the counts ──> walk ──> read them again ──> write what was found, and what was added meanwhile
//! ```
//!
//! Of what comes while the walk goes on nobody knows whether the walk met it, too: it then counts twice. What programs count
//! between our reading of a number and our writing is lost. Both last until the next walk.

use std::collections::BTreeMap;

use super::{BpfError, Table};

pub struct Recount<'a> {
    table: &'a Table<u32, i32>,
    end: u32,
    before: BTreeMap<u32, i32>,
    pub found: BTreeMap<u32, i32>,
}

impl<'a> Recount<'a> {
    /// Before the walk; of the first `end` rows.
    pub fn begin(table: &'a Table<u32, i32>, end: u32) -> Result<Self, BpfError> {
        let end = end.min(table.max_entries());
        Ok(Recount { table, end, before: table.nonzero(end)?, found: BTreeMap::new() })
    }

    /// The walk met one of these.
    pub fn add(&mut self, number: u32) {
        *self.found.entry(number).or_default() += 1;
    }

    /// After the walk.
    pub fn correct(self) -> Result<(), BpfError> {
        let mut rows = corrections(&self.before, &self.found, &self.table.nonzero(self.end)?);
        rows.retain(|(number, _)| *number < self.end);
        self.table.put_all(&rows)
    }
}

/// The rows that are to be something else.
fn corrections(before: &BTreeMap<u32, i32>, found: &BTreeMap<u32, i32>, now: &BTreeMap<u32, i32>) -> Vec<(u32, i32)> {
    let of = |counts: &BTreeMap<u32, i32>, number| counts.get(number).copied().unwrap_or_default();
    let missing = found.keys().filter(|number| !now.contains_key(number));
    let right = now.keys().chain(missing).filter_map(|number| {
        let meanwhile = of(now, number).saturating_sub(of(before, number));
        let right = of(found, number).saturating_add(meanwhile).max(0);
        (right != of(now, number)).then_some((*number, right))
    });
    right.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_added_meanwhile_is_kept_and_nothing_is_below_zero() {
        for (before, found, now, right) in [
            (0, 0, 0, None),
            (4, 4, 4, None),
            (4, 3, 4, Some(3)),
            (0, 3, 0, Some(3)),
            (4, 3, 6, Some(5)),
            (4, 0, 4, Some(0)),
            (-2, 0, -2, Some(0)),
            (4, 3, 2, Some(1)),
            // Two ended that the walk did not meet.
            (4, 1, 2, Some(0)),
            (2, 0, 0, None),
            (2, 2, 0, None),
            (2, 5, 0, Some(3)),
        ] {
            let counts = |count: i32| BTreeMap::from([(7, count)]).into_iter().filter(|row| row.1 != 0).collect();
            let corrected = corrections(&counts(before), &counts(found), &counts(now));
            assert_eq!(corrected, Vec::from_iter(right.map(|right| (7, right))), "{before} {found} {now}");
        }
    }
}
