//! Numbers for things in the kernel's tables.
//!
//! A number that is given back may still stand in a table until the orders that remove it are carried out. So it rests
//! until [`Ids::confirm`] says that everything up to the update in which it was given back is done. Numbers found in
//! tables that an earlier agent left are [`Ids::seed`]ed and rest likewise until the first update is done.

use std::collections::{BTreeSet, VecDeque};

#[derive(Debug)]
pub struct Ids {
    next: u32,
    /// Exclusive.
    end: u32,
    free: VecDeque<u32>,
    /// (update, number), oldest first.
    resting: VecDeque<(u64, u32)>,
    seeded: BTreeSet<u32>,
}

impl Ids {
    pub fn new(numbers: std::ops::Range<u32>) -> Self {
        Ids {
            next: numbers.start,
            end: numbers.end,
            free: VecDeque::new(),
            resting: VecDeque::new(),
            seeded: BTreeSet::new(),
        }
    }

    /// Before the first number is taken.
    pub fn seed(&mut self, numbers: impl IntoIterator<Item = u32>) {
        let range = self.next..self.end;
        for number in numbers.into_iter().filter(|number| range.contains(number)) {
            if self.seeded.insert(number) {
                self.resting.push_back((1, number));
            }
        }
    }

    /// `None` when all are taken. Unused numbers come first, so that one that was used rests as long as possible.
    pub fn take(&mut self) -> Option<u32> {
        while self.seeded.contains(&self.next) {
            self.next += 1;
        }
        if self.next < self.end {
            self.next += 1;
            return Some(self.next - 1);
        }
        self.free.pop_front()
    }

    /// Would [`Ids::take`] give one?
    pub fn has_some(&self) -> bool {
        !self.free.is_empty() || (self.next..self.end).any(|number| !self.seeded.contains(&number))
    }

    pub fn give_back(&mut self, number: u32, update: u64) {
        self.resting.push_back((update, number));
    }

    /// The orders of this update and of all before it are carried out.
    pub fn confirm(&mut self, update: u64) {
        while let Some((of, number)) = self.resting.front().copied()
            && of <= update
        {
            self.resting.pop_front();
            self.free.push_back(number);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_number_rests_until_its_removal_is_confirmed() {
        let mut ids = Ids::new(1..3);
        assert_eq!((ids.take(), ids.take(), ids.take()), (Some(1), Some(2), None));
        ids.give_back(2, 7);
        assert_eq!(ids.take(), None);
        ids.confirm(6);
        assert_eq!(ids.take(), None);
        ids.confirm(7);
        assert_eq!((ids.take(), ids.take()), (Some(2), None));
    }

    #[test]
    fn numbers_of_an_earlier_agent_rest_until_the_first_update_is_done() {
        let mut ids = Ids::new(1..5);
        ids.seed([0, 1, 3, 3, 9]);
        assert_eq!((ids.take(), ids.take(), ids.take()), (Some(2), Some(4), None));
        ids.confirm(1);
        assert_eq!((ids.take(), ids.take(), ids.take()), (Some(1), Some(3), None));
    }
}
