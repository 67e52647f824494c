//! Classes: which sets of terms exist among peers, each with a number.
//!
//! What a number stands for never changes, so its rows can be written before anybody has it.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    sync::Arc,
};

use kube_router_common::policy::CLASS_WORLD;

use super::{
    ids::Ids,
    terms::{ClassId, TermId},
};

#[derive(Debug)]
struct Class {
    terms: Arc<[TermId]>,
    /// Addresses and prefixes.
    members: u32,
}

#[derive(Debug)]
pub struct Classes {
    by_terms: HashMap<Arc<[TermId]>, ClassId>,
    classes: BTreeMap<ClassId, Class>,
    ids: Ids,
    /// Classes that came in this update.
    new: BTreeSet<ClassId>,
    /// Classes without members.
    empty: BTreeSet<ClassId>,
}

impl Classes {
    pub fn new(most: u32) -> Self {
        Classes {
            by_terms: HashMap::new(),
            classes: BTreeMap::new(),
            ids: Ids::new(CLASS_WORLD + 1..most),
            new: BTreeSet::new(),
            empty: BTreeSet::new(),
        }
    }

    pub fn len(&self) -> usize {
        self.classes.len()
    }

    pub fn ids(&mut self) -> &mut Ids {
        &mut self.ids
    }

    /// Is there one for a new class?
    pub fn has_number(&self) -> bool {
        self.ids.has_some()
    }

    /// The class of these terms (ordered) with one more member. `None`: there are too many classes.
    pub fn join(&mut self, terms: &[TermId]) -> Option<ClassId> {
        if terms.is_empty() {
            return Some(CLASS_WORLD);
        }
        let id = match self.by_terms.get(terms) {
            Some(id) => *id,
            None => {
                let id = self.ids.take()?;
                let terms: Arc<[TermId]> = terms.into();
                self.by_terms.insert(terms.clone(), id);
                self.classes.insert(id, Class { terms, members: 0 });
                self.new.insert(id);
                id
            }
        };
        if let Some(class) = self.classes.get_mut(&id) {
            class.members += 1;
        }
        self.empty.remove(&id);
        Some(id)
    }

    pub fn leave(&mut self, id: ClassId) {
        if let Some(class) = self.classes.get_mut(&id) {
            class.members -= 1;
            if class.members == 0 {
                self.empty.insert(id);
            }
        }
    }

    pub fn terms(&self, id: ClassId) -> &[TermId] {
        self.classes.get(&id).map_or(&[], |class| &class.terms)
    }

    pub fn has_members(&self, id: ClassId) -> bool {
        self.classes.get(&id).is_some_and(|class| class.members > 0)
    }

    /// What came since the last call and has members.
    pub fn take_new(&mut self) -> BTreeSet<ClassId> {
        let mut new = std::mem::take(&mut self.new);
        new.retain(|id| self.has_members(*id));
        new
    }

    /// Ends the classes without members.
    pub fn drop_empty(&mut self, update: u64) -> Vec<(ClassId, Arc<[TermId]>)> {
        let mut dropped = Vec::new();
        for id in std::mem::take(&mut self.empty) {
            if let Some(class) = self.classes.remove(&id) {
                self.by_terms.remove(&class.terms);
                self.ids.give_back(id, update);
                dropped.push((id, class.terms));
            }
        }
        dropped
    }
}
