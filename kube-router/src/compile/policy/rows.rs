//! Rows for what is new, and the end of what nobody needs any more.

use std::collections::BTreeSet;

use kube_router_common::policy::{ANY, PolicyKey, PolicyRow};

use super::{
    About, PolicyCompiler, Work,
    terms::{ClassId, GroupId},
};
use crate::compile::{Problem, Subject};

impl PolicyCompiler {
    /// Divides the ports anew. New port classes are parts of old ones, so the rows that exist are copied; the groups of
    /// this update have none yet.
    pub(super) fn divide_ports(&mut self) {
        let division = self.ports.divide(self.update);
        self.out.tables.ports.clone_from(self.ports.runs());
        if self.update == 1 {
            self.out.changes.ports = self.ports.runs_to_write_first();
            return;
        }
        let Some(division) = division else { return };
        self.out.changes.ports = division.runs;
        if !division.copies.is_empty() {
            let mut copies = Vec::new();
            for (key, row) in &self.out.tables.rows {
                let parts = division.copies.iter().filter(|(_, from)| *from == key.ports);
                copies.extend(parts.map(|(to, _)| (PolicyKey { ports: *to, ..*key }, *row)));
            }
            for (key, row) in copies {
                self.add_row(key, row);
            }
        }
        if !division.gone.is_empty() {
            let gone: BTreeSet<u32> = division.gone.into_iter().collect();
            let dead: Vec<PolicyKey> =
                self.out.tables.rows.keys().filter(|key| gone.contains(&key.ports)).copied().collect();
            dead.into_iter().for_each(|key| self.out.remove_row(key));
        }
    }

    pub(super) fn write_rows(&mut self, work: &mut Work) {
        let room = self.config.limits.rows.saturating_sub(self.out.tables.rows.len());
        let again: Vec<GroupId> =
            self.denied.iter().filter(|(_, wanted)| **wanted <= room).map(|(group, _)| *group).collect();
        for group in again {
            self.denied.remove(&group);
            self.report(About::Group(group), Vec::new());
            work.new_groups.insert(group);
        }
        for class in self.classes.take_new() {
            let mut groups: BTreeSet<GroupId> = BTreeSet::new();
            for term in self.classes.terms(class) {
                groups.extend(self.terms.users(*term));
            }
            for group in groups.difference(&work.new_groups) {
                self.write_class(*group, class);
            }
        }
        let new = work.new_groups.iter().filter(|group| !work.empty_groups.contains(group));
        for id in new.copied().collect::<Vec<_>>() {
            self.write_group(id);
        }
    }

    fn write_group(&mut self, id: GroupId) {
        let Some(group) = self.groups.get(&id) else { return };
        let mut classes: BTreeSet<ClassId> = BTreeSet::new();
        for term in group.terms(&self.terms) {
            classes.extend(self.terms.classes(term).filter(|class| self.classes.has_members(*class)));
        }
        for (ports, rule) in group.for_everybody(&self.ports) {
            self.add_row(PolicyKey { group: id, class: ANY, ports }, PolicyRow { verdict: PolicyRow::ALLOW, rule });
        }
        for class in classes {
            self.write_class(id, class);
        }
    }

    fn write_class(&mut self, id: GroupId, class: ClassId) {
        let Some(group) = self.groups.get(&id) else { return };
        for (ports, rule) in group.for_class(self.classes.terms(class), &self.terms, &self.ports) {
            self.add_row(PolicyKey { group: id, class, ports }, PolicyRow { verdict: PolicyRow::ALLOW, rule });
        }
    }

    /// A group for which there is no room has no rows at all: what is new is refused to its pods, and nobody has to
    /// find out which half of their policies works.
    fn add_row(&mut self, key: PolicyKey, row: PolicyRow) {
        if let Some(wanted) = self.denied.get_mut(&key.group) {
            *wanted += 1;
            return;
        }
        if self.out.tables.rows.len() < self.config.limits.rows || self.out.tables.rows.contains_key(&key) {
            self.out.add_row(key, row);
            return;
        }
        let had = self.out.tables.rows_of(key.group);
        self.denied.insert(key.group, had.len() + 1);
        had.into_iter().for_each(|key| self.out.remove_row(key));
        let names: Vec<String> = self.groups.get(&key.group).map_or(Vec::new(), |group| {
            group.versions.iter().map(|version| version.policy.source.subject().to_string()).collect()
        });
        let limit = self.config.limits.rows;
        let text = format!(
            "the table of {limit} rows is full; new flows of the pods of {} are refused: {}",
            match names.len() {
                1 => "this policy".to_owned(),
                many => format!("these {many} policies"),
            },
            names.iter().take(5).cloned().collect::<Vec<_>>().join(", ")
        );
        let problem = Problem { subject: Subject::Kernel("policy"), reason: "PolicyTableFull", text };
        self.report(About::Group(key.group), vec![problem]);
    }

    /// What nobody is in any more goes; what only that used is retired.
    pub(super) fn clean_up(&mut self, work: &Work) {
        for id in &work.empty_groups {
            let Some(group) = self.groups.remove(id) else { continue };
            // Its last pods are in it until they are flipped, and by then peers have new classes.
            self.out.tables.rows_of(*id).into_iter().for_each(|key| self.out.retire_row(key));
            self.group_of.remove(&group.key);
            self.group_ids.give_back(*id, self.update);
            self.denied.remove(id);
            self.report(About::Group(*id), Vec::new());
            group.release(*id, &mut self.terms, &mut self.ports);
            for version in &group.versions {
                self.forget_rules(version, group.key.direction);
            }
        }
        for (class, terms) in self.classes.drop_empty(self.update) {
            self.terms.leave(class, &terms);
            let groups: BTreeSet<GroupId> = terms.iter().flat_map(|term| self.terms.users(*term)).copied().collect();
            for id in groups {
                // It wants less now; how much less shows when it is tried again.
                self.denied.entry(id).and_modify(|wanted| *wanted = 0);
                let rows = PolicyKey { group: id, class, ports: 0 }..=PolicyKey { group: id, class, ports: ANY };
                let dead: Vec<PolicyKey> = self.out.tables.rows.range(rows).map(|(key, _)| *key).collect();
                dead.into_iter().for_each(|key| self.out.remove_row(key));
            }
        }
    }
}
