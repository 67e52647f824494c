//! Which of many selectors match these labels, without asking each.
//!
//! A selector that asks for a label is filed under that label, so only the labels of the object lead to it. Of several
//! labels it asks for, it is filed under the one with the fewest neighbours: `app=shop` may stand in every selector.
//! Selectors that ask for none are asked one by one.

use std::{collections::HashMap, sync::Arc};

use super::selector::{LabelView, Requirement, Selector, Test};

type Entries<T> = Vec<(Arc<Selector>, T)>;

#[derive(Debug)]
struct Drawer<T> {
    by_value: HashMap<Box<str>, Entries<T>>,
    /// For `Exists`.
    any: Entries<T>,
}

#[derive(Debug)]
pub struct LabelIndex<T> {
    drawers: HashMap<Box<str>, Drawer<T>>,
    rest: Entries<T>,
    len: usize,
}

impl<T> Default for LabelIndex<T> {
    fn default() -> Self {
        LabelIndex { drawers: HashMap::new(), rest: Vec::new(), len: 0 }
    }
}

impl<T: Clone + PartialEq> LabelIndex<T> {
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    pub fn insert(&mut self, selector: &Arc<Selector>, item: T) {
        self.len += 1;
        let best = selector.requirements().iter().filter_map(|r| Some((self.neighbours(r)?, r)));
        let Some((_, Requirement { key, test })) = best.min_by_key(|(neighbours, _)| *neighbours) else {
            self.rest.push((selector.clone(), item));
            return;
        };
        let drawer =
            self.drawers.entry(key.clone()).or_insert_with(|| Drawer { by_value: HashMap::new(), any: Vec::new() });
        let Test::In(values) = test else {
            drawer.any.push((selector.clone(), item));
            return;
        };
        for value in values {
            drawer.by_value.entry(value.clone()).or_default().push((selector.clone(), item.clone()));
        }
    }

    /// How many would be asked together with this one; `None` for a requirement that names no label to be there.
    fn neighbours(&self, requirement: &Requirement) -> Option<usize> {
        let drawer = self.drawers.get(&requirement.key);
        match &requirement.test {
            Test::In(values) => {
                let of = |value| drawer.and_then(|drawer| drawer.by_value.get(value)).map_or(0, Vec::len);
                Some(values.iter().map(of).sum())
            }
            Test::Exists => Some(drawer.map_or(0, |drawer| drawer.any.len())),
            Test::NotIn(_) | Test::DoesNotExist => None,
        }
    }

    pub fn remove(&mut self, selector: &Arc<Selector>, item: &T) {
        let before = self.len;
        let mut drop_from = |entries: &mut Entries<T>| {
            if let Some(at) = entries.iter().position(|(known, kept)| kept == item && known == selector) {
                entries.swap_remove(at);
                self.len = before - 1;
            }
        };
        drop_from(&mut self.rest);
        for Requirement { key, test } in selector.requirements() {
            let Some(drawer) = self.drawers.get_mut(key) else { continue };
            match test {
                Test::In(values) => {
                    for value in values {
                        if let Some(entries) = drawer.by_value.get_mut(value) {
                            drop_from(entries);
                            if entries.is_empty() {
                                drawer.by_value.remove(value);
                            }
                        }
                    }
                }
                Test::Exists => drop_from(&mut drawer.any),
                Test::NotIn(_) | Test::DoesNotExist => {}
            }
            if drawer.by_value.is_empty() && drawer.any.is_empty() {
                self.drawers.remove(key);
            }
        }
    }

    /// Calls `found` for every selector that matches, in no particular order.
    pub fn each_match(&self, labels: LabelView<'_>, mut found: impl FnMut(&T)) {
        let mut ask = |entries: &Entries<T>| {
            for (_, item) in entries.iter().filter(|(selector, _)| selector.matches(labels)) {
                found(item);
            }
        };
        ask(&self.rest);
        if self.drawers.is_empty() {
            return;
        }
        for (key, value) in labels.iter() {
            let Some(drawer) = self.drawers.get(key) else { continue };
            ask(&drawer.any);
            if let Some(entries) = drawer.by_value.get(value) {
                ask(entries);
            }
        }
    }

    pub fn matches_any(&self, labels: LabelView<'_>) -> bool {
        let mut any = false;
        self.each_match(labels, |_| any = true);
        any
    }
}
