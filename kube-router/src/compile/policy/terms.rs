//! Terms: everything by which a rule of this node tells peers apart, each once, with who uses it.
//!
//! ```text
//! rule of a group ── uses ──> term: pods by selector, a block of addresses, or a port by name
//! pod of the cluster ── has ──> terms (by index, without asking each), so a class
//! ```
//!
//! A term that loses its last user is *retired*, but keeps its members until the next update: the groups that used it
//! may still judge packets until their pods have been flipped to others, and must find its members in their classes.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    sync::Arc,
};

use super::{
    index::LabelIndex,
    normalize::{Block, Namespaces, Peers},
    selector::{LabelView, Selector},
};
use crate::{
    cluster::ClusterState,
    objects::{Pod, Protocol},
};

pub type TermId = u32;
pub type GroupId = u32;
pub type ClassId = u32;
/// A port by its name, in egress rules.
pub type PortName = (Arc<str>, Protocol);

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Term {
    Peers(Peers),
    /// Pods that call this port by this name. Comes with the first such pod, goes with the name's last user.
    Named(PortName, u16),
}

#[derive(Debug)]
struct Entry {
    term: Term,
    /// Groups; of a named port, see its name.
    users: BTreeSet<GroupId>,
    /// Classes whose members have this term.
    classes: BTreeSet<ClassId>,
}

#[derive(Debug, Default)]
struct Name {
    users: BTreeSet<GroupId>,
    ports: BTreeMap<u16, TermId>,
}

#[derive(Debug, Default)]
pub struct Terms {
    next: TermId,
    next_selector: u32,
    entries: HashMap<TermId, Entry>,
    by_peers: HashMap<Peers, TermId>,
    names: HashMap<PortName, Name>,
    retired: BTreeSet<TermId>,
    retired_names: BTreeSet<PortName>,
    in_namespace: HashMap<Arc<str>, LabelIndex<TermId>>,
    /// Selectors of namespaces, and what is selected in those that match.
    selectors: HashMap<Arc<Selector>, u32>,
    selector_index: LabelIndex<u32>,
    in_selected: HashMap<u32, LabelIndex<TermId>>,
    /// Selectors that match a namespace, remembered.
    matching: HashMap<Arc<str>, Box<[u32]>>,
}

impl Terms {
    /// The term for these peers with one more user; `true` if its members are not known yet.
    pub fn acquire(&mut self, peers: &Peers, user: GroupId) -> (TermId, bool) {
        if let Some(id) = self.by_peers.get(peers).copied() {
            self.retired.remove(&id);
            self.entry(id).users.insert(user);
            return (id, false);
        }
        let id = self.add(Term::Peers(peers.clone()));
        self.entry(id).users.insert(user);
        self.by_peers.insert(peers.clone(), id);
        if let Peers::Pods { namespaces, pods } = peers {
            self.file(namespaces).insert(pods, id);
        }
        (id, true)
    }

    fn add(&mut self, term: Term) -> TermId {
        self.next += 1;
        self.entries.insert(self.next, Entry { term, users: BTreeSet::new(), classes: BTreeSet::new() });
        self.next
    }

    fn entry(&mut self, id: TermId) -> &mut Entry {
        self.entries.get_mut(&id).expect("ids are handed out by add and die in drop_retired, when nobody has them")
    }

    fn file(&mut self, namespaces: &Namespaces) -> &mut LabelIndex<TermId> {
        match namespaces {
            Namespaces::One(name) => self.in_namespace.entry(name.clone()).or_default(),
            Namespaces::Selected(selector) => {
                let known = self.selectors.get(selector).copied();
                let id = known.unwrap_or_else(|| {
                    self.next_selector += 1;
                    self.selectors.insert(selector.clone(), self.next_selector);
                    self.selector_index.insert(selector, self.next_selector);
                    self.matching.clear();
                    self.next_selector
                });
                self.in_selected.entry(id).or_default()
            }
        }
    }

    /// One more user of the name; `true` if the pods that have it are not known yet.
    pub fn acquire_name(&mut self, name: &PortName, user: GroupId) -> bool {
        self.retired_names.remove(name);
        let new = !self.names.contains_key(name);
        self.names.entry(name.clone()).or_default().users.insert(user);
        new
    }

    pub fn release(&mut self, id: TermId, user: GroupId) {
        let entry = self.entry(id);
        entry.users.remove(&user);
        if entry.users.is_empty() {
            self.retired.insert(id);
        }
    }

    pub fn release_name(&mut self, name: &PortName, user: GroupId) {
        if let Some(known) = self.names.get_mut(name) {
            known.users.remove(&user);
            if known.users.is_empty() {
                self.retired_names.insert(name.clone());
            }
        }
    }

    pub fn has_retired(&self) -> bool {
        !self.retired.is_empty() || !self.retired_names.is_empty()
    }

    pub fn retired(&self) -> (BTreeSet<TermId>, BTreeSet<PortName>) {
        (self.retired.clone(), self.retired_names.clone())
    }

    /// Ends those of the retired that still nobody uses. Returns what they were and in which classes.
    pub fn drop_retired(
        &mut self,
        ids: BTreeSet<TermId>,
        names: BTreeSet<PortName>,
    ) -> Vec<(TermId, Term, BTreeSet<ClassId>)> {
        let mut dropped = Vec::new();
        for id in ids {
            let named = matches!(self.get(id), Some(Term::Named(..)));
            if !self.retired.remove(&id) || named && !self.entry(id).classes.is_empty() {
                continue;
            }
            if let Some(entry) = self.entries.remove(&id) {
                match &entry.term {
                    Term::Peers(peers) => {
                        self.by_peers.remove(peers);
                        self.unfile(peers, id);
                    }
                    Term::Named(name, port) => {
                        if let Some(known) = self.names.get_mut(name) {
                            known.ports.remove(port);
                        }
                    }
                }
                dropped.push((id, entry.term, entry.classes));
            }
        }
        for name in names {
            if self.retired_names.remove(&name)
                && let Some(known) = self.names.remove(&name)
            {
                for id in known.ports.into_values() {
                    dropped.extend(self.entries.remove(&id).map(|entry| (id, entry.term, entry.classes)));
                }
            }
        }
        dropped
    }

    fn unfile(&mut self, peers: &Peers, id: TermId) {
        let Peers::Pods { namespaces, pods } = peers else { return };
        match namespaces {
            Namespaces::One(name) => {
                if let Some(index) = self.in_namespace.get_mut(name) {
                    index.remove(pods, &id);
                    if index.is_empty() {
                        self.in_namespace.remove(name);
                    }
                }
            }
            Namespaces::Selected(selector) => {
                let Some(number) = self.selectors.get(selector).copied() else { return };
                let Some(index) = self.in_selected.get_mut(&number) else { return };
                index.remove(pods, &id);
                if index.is_empty() {
                    self.in_selected.remove(&number);
                    self.selector_index.remove(selector, &number);
                    self.selectors.remove(selector);
                    self.matching.clear();
                }
            }
        }
    }

    /// Terms of a pod, by labels and by the names of its ports. `true` in the second place for each named port that is
    /// heard of for the first time.
    pub fn of_pod(
        &mut self,
        cluster: &ClusterState,
        pod: &Pod,
        new_ports: &mut Vec<(TermId, PortName, u16)>,
    ) -> Vec<TermId> {
        let mut terms = Vec::new();
        let labels = LabelView::of_pod(&pod.labels);
        if let Some(index) = self.in_namespace.get(&pod.key.namespace) {
            index.each_match(labels, |id| terms.push(*id));
        }
        if !self.selectors.is_empty() {
            let selectors = self.matching.entry(pod.key.namespace.clone()).or_insert_with(|| {
                let mut found = Vec::new();
                let view = LabelView::of_namespace(&pod.key.namespace, cluster.namespace(&pod.key.namespace));
                self.selector_index.each_match(view, |id| found.push(*id));
                found.sort_unstable();
                found.into()
            });
            for selector in selectors {
                if let Some(index) = self.in_selected.get(selector) {
                    index.each_match(labels, |id| terms.push(*id));
                }
            }
        }
        if !self.names.is_empty() {
            for port in &pod.ports {
                let name = (port.name.clone(), port.protocol);
                let Some(known) = self.names.get(&name).map(|known| known.ports.get(&port.port).copied()) else {
                    continue;
                };
                terms.push(known.unwrap_or_else(|| {
                    let id = self.add(Term::Named(name.clone(), port.port));
                    self.names.entry(name.clone()).or_default().ports.insert(port.port, id);
                    new_ports.push((id, name, port.port));
                    id
                }));
            }
        }
        terms
    }

    /// The labels of a namespace changed. Does it matter to its pods?
    pub fn namespace_changed(&mut self, cluster: &ClusterState, name: &str) -> bool {
        let old = self.matching.remove(name);
        if self.selectors.is_empty() {
            return false;
        }
        let mut found = Vec::new();
        self.selector_index.each_match(LabelView::of_namespace(name, cluster.namespace(name)), |id| found.push(*id));
        found.sort_unstable();
        // Not remembered: nobody can tell, so it counts as changed.
        old.is_none_or(|old| *old != *found)
    }

    pub fn get(&self, id: TermId) -> Option<&Term> {
        self.entries.get(&id).map(|entry| &entry.term)
    }

    pub fn users(&self, id: TermId) -> &BTreeSet<GroupId> {
        static NOBODY: BTreeSet<GroupId> = BTreeSet::new();
        match self.entries.get(&id) {
            Some(Entry { term: Term::Named(name, _), .. }) => self.names.get(name).map_or(&NOBODY, |name| &name.users),
            Some(entry) => &entry.users,
            None => &NOBODY,
        }
    }

    pub fn classes(&self, id: TermId) -> impl Iterator<Item = ClassId> {
        self.entries.get(&id).into_iter().flat_map(|entry| entry.classes.iter().copied())
    }

    pub fn named(&self, name: &PortName) -> impl Iterator<Item = TermId> {
        self.names.get(name).into_iter().flat_map(|name| name.ports.values().copied())
    }

    pub fn enter(&mut self, class: ClassId, terms: &[TermId]) {
        for id in terms {
            if let Some(entry) = self.entries.get_mut(id) {
                entry.classes.insert(class);
            }
        }
    }

    /// A named port that no class has any more is retired.
    pub fn leave(&mut self, class: ClassId, terms: &[TermId]) {
        for id in terms {
            if let Some(entry) = self.entries.get_mut(id) {
                entry.classes.remove(&class);
                if entry.classes.is_empty() && matches!(entry.term, Term::Named(..)) {
                    self.retired.insert(*id);
                }
            }
        }
    }

    pub fn block(&self, id: TermId) -> Option<&Arc<Block>> {
        match self.get(id)? {
            Term::Peers(Peers::Block(block)) => Some(block),
            _ => None,
        }
    }
}
