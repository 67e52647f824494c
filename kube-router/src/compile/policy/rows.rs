//! Rows for what is new, and the end of what nobody needs any more.
//!
//! First it is counted what each group asks for, then it is settled who gets it (`room.rs`), then it is written: a group
//! has all of its rows or none. One that is shut has none, and its pods' group is closed before these go.

use std::collections::{BTreeMap, BTreeSet};

use kube_router_common::policy::{ANY, PolicyKey, PolicyRow};

use super::{
    About, PolicyCompiler, Work,
    lower::Group,
    room::give_way,
    terms::{ClassId, GroupId},
};
use crate::{
    compile::{Problem, Subject},
    desired::policy::Direction,
};

/// Of a problem's policies, so many are named.
pub(super) const MOST_NAMED: usize = 5;

/// What a group asks for in an update.
#[derive(Debug, Default)]
struct Asked {
    /// Rows that it has, under new port classes: how many these are. They may be very many, and are made once they fit.
    copies: usize,
    classes: BTreeSet<ClassId>,
    /// The rows for everybody, too.
    is_new: bool,
    rows: usize,
    /// As long as all that is asked for fits.
    list: Option<Vec<(PolicyKey, PolicyRow)>>,
}

type Asking = BTreeMap<GroupId, Asked>;

/// Port class -> new ones that were a part of it.
type Parts = BTreeMap<u32, Vec<u32>>;

impl PolicyCompiler {
    /// Divides the ports anew. New port classes are parts of old ones, so the rows that exist are to be copied; the groups
    /// of this update have none yet.
    fn divide_ports(&mut self) -> (Asking, Parts) {
        let (mut asking, mut parts) = (Asking::new(), Parts::new());
        let division = self.ports.divide(self.update);
        self.out.tables.ports.clone_from(self.ports.runs());
        if self.update == 1 {
            self.out.changes.ports = self.ports.runs_to_write_first();
            return (asking, parts);
        }
        let Some(division) = division else { return (asking, parts) };
        self.out.changes.ports = division.runs;
        for (new, from) in division.copies {
            parts.entry(from).or_default().push(new);
        }
        if !parts.is_empty() {
            for key in self.out.tables.rows.keys() {
                if let Some(new) = parts.get(&key.ports) {
                    asking.entry(key.group).or_default().copies += new.len();
                }
            }
        }
        if !division.gone.is_empty() {
            let gone: BTreeSet<u32> = division.gone.into_iter().collect();
            let dead: Vec<PolicyKey> =
                self.out.tables.rows.keys().filter(|key| gone.contains(&key.ports)).copied().collect();
            dead.into_iter().for_each(|key| self.out.remove_row(key));
            // They may want less now; how much less shows when they are tried again.
            self.denied.values_mut().for_each(|wanted| *wanted = 0);
        }
        (asking, parts)
    }

    /// The rows of a group that are to be copied, as their copies.
    fn copies(&self, id: GroupId, parts: &Parts) -> Vec<(PolicyKey, PolicyRow)> {
        let copies = |(key, row): (PolicyKey, PolicyRow)| {
            let new = parts.get(&key.ports).into_iter().flatten();
            new.map(move |ports| (PolicyKey { ports: *ports, ..key }, row))
        };
        let rows = PolicyKey { group: id, class: 0, ports: 0 }..=PolicyKey { group: id, class: ANY, ports: ANY };
        self.out.tables.rows.range(rows).map(|(key, row)| (*key, *row)).flat_map(copies).collect()
    }

    pub(super) fn write_rows(&mut self, work: &Work) {
        let (mut asking, parts) = self.divide_ports();
        self.ask(work, &mut asking);
        let shut = self.make_room(work, &mut asking);
        for (id, asked) in asking {
            let rows = asked.list.unwrap_or_else(|| self.rows(id, asked.is_new, &asked.classes, usize::MAX).1);
            let copies = if asked.copies > 0 { self.copies(id, &parts) } else { Vec::new() };
            copies.into_iter().chain(rows).for_each(|(key, row)| self.out.add_row(key, row));
        }
        let back = self.bring_back(&shut);
        if !shut.is_empty() || back {
            self.publish_all();
        }
        self.close_first(&shut);
    }

    /// What groups ask for because they, classes or port classes are new.
    fn ask(&mut self, work: &Work, asking: &mut Asking) {
        for class in self.classes.take_new() {
            for term in self.classes.terms(class) {
                for group in self.terms.users(*term) {
                    asking.entry(*group).or_default().classes.insert(class);
                }
            }
        }
        for id in &work.new_groups {
            match work.empty_groups.contains(id) {
                true => drop(asking.remove(id)),
                false => {
                    let classes = self.classes_of(*id);
                    let asked = asking.entry(*id).or_default();
                    (asked.is_new, asked.classes) = (true, classes);
                }
            }
        }
        let mut room = self.config.limits.rows;
        for (id, asked) in asking.iter_mut() {
            let (count, rows) = self.rows(*id, asked.is_new, &asked.classes, room);
            asked.rows = asked.copies + count;
            asked.list = (rows.len() == count).then_some(rows);
            room -= asked.list.as_ref().map_or(0, Vec::len);
        }
        for (id, wanted) in &mut self.denied {
            *wanted += asking.remove(id).map_or(0, |asked| asked.rows);
        }
    }

    /// Classes that exist among the peers of a group's rules.
    fn classes_of(&self, id: GroupId) -> BTreeSet<ClassId> {
        let terms = self.groups.get(&id).into_iter().flat_map(|group| group.terms(&self.terms));
        terms.flat_map(|term| self.terms.classes(term)).filter(|class| self.classes.has_members(*class)).collect()
    }

    /// How many rows these are, and the first ones of them.
    fn rows(
        &self,
        id: GroupId,
        everybody: bool,
        classes: &BTreeSet<ClassId>,
        most: usize,
    ) -> (usize, Vec<(PolicyKey, PolicyRow)>) {
        let (mut count, mut list) = (0, Vec::new());
        let Some(group) = self.groups.get(&id) else { return (count, list) };
        let mut take = |class, rows: Vec<(u32, PolicyRow)>| {
            let free = most - list.len();
            count += rows.len();
            list.extend(rows.into_iter().take(free).map(|(ports, row)| (PolicyKey { group: id, class, ports }, row)));
        };
        if everybody {
            take(ANY, group.for_everybody(&self.terms, &self.ports));
        }
        for class in classes {
            take(*class, group.for_class(self.classes.terms(*class), &self.terms, &self.ports));
        }
        (count, list)
    }

    /// Shuts the largest until the rest fits.
    fn make_room(&mut self, work: &Work, asking: &mut Asking) -> BTreeSet<GroupId> {
        let asked: usize = asking.values().map(|asked| asked.rows).sum();
        let excess = (self.out.rows_in_kernel() + asked).saturating_sub(self.config.limits.rows);
        let mut shut = BTreeSet::new();
        if excess == 0 {
            return shut;
        }
        let size = |id| self.out.size_of(id) + asking.get(&id).map_or(0, |asked| asked.rows);
        for share in give_way(self.shares(|id| work.empty_groups.contains(&id), size), excess) {
            let id = share.group;
            asking.remove(&id);
            self.out.shut_group(id);
            shut.insert(id);
            if !share.leaves {
                self.denied.insert(id, share.size);
                let problems = self.groups.get(&id).map_or(Vec::new(), |group| self.table_full(group, share.size));
                self.report(About::Group(id), problems);
            }
        }
        shut
    }

    /// Gives those that were shut their rows again, the smallest first, where all of them fit.
    fn bring_back(&mut self, shut_now: &BTreeSet<GroupId>) -> bool {
        let mut waiting: Vec<_> = self.denied.iter().map(|(id, wanted)| (*wanted, *id)).collect();
        waiting.retain(|(_, id)| !shut_now.contains(id));
        waiting.sort_by_cached_key(|(wanted, id)| (*wanted, self.groups.get(id).map(Group::stable_name)));
        let mut back = false;
        for (wanted, id) in waiting {
            let room = self.config.limits.rows.saturating_sub(self.out.rows_in_kernel());
            if wanted > room {
                break;
            }
            let (count, rows) = self.rows(id, true, &self.classes_of(id), room);
            if count > room {
                self.denied.insert(id, count);
                continue;
            }
            self.denied.remove(&id);
            self.report(About::Group(id), Vec::new());
            rows.into_iter().for_each(|(key, row)| self.out.add_row(key, row));
            back = true;
        }
        back
    }

    /// What is told of a group that was shut: on the node, and on its policies.
    fn table_full(&self, group: &Group, wanted: usize) -> Vec<Problem> {
        let limit = self.config.limits.rows;
        let subjects = || group.versions.iter().map(|version| version.policy.source.subject());
        let names: Vec<String> = subjects().take(MOST_NAMED).map(|subject| subject.to_string()).collect();
        let whose = match group.versions.len() {
            1 => "this policy".to_owned(),
            many => format!("these {many} policies"),
        };
        let what = match group.key.direction {
            Direction::Ingress => "new flows to its pods are refused",
            Direction::Egress => "new flows from its pods are refused",
        };
        let full = format!("the table of {limit} rows (--netpol-max-rows) is full");
        let on_node = Problem {
            subject: Subject::Kernel("policy"),
            reason: "PolicyTableFull",
            text: format!("{full}; {whose} asked for the most, {wanted}, and {what}: {}", names.join(", ")),
        };
        let on_policy = |subject| Problem {
            subject,
            reason: "PolicyTableFull",
            text: format!("{full}; this policy's pods want the most, {wanted} with all their policies, and {what}"),
        };
        [on_node].into_iter().chain(subjects().take(MOST_NAMED).map(on_policy)).collect()
    }

    /// What nobody is in any more goes; what only that used is retired.
    pub(super) fn clean_up(&mut self, work: &Work) {
        self.blocks_moved = !work.empty_groups.is_empty() && !self.blocks.refused().is_empty();
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
                // If it was shut, it wants less now.
                if let (Some(wanted), Some(group)) = (self.denied.get_mut(&id), self.groups.get(&id)) {
                    let rows = group.for_class(&terms, &self.terms, &self.ports).len();
                    *wanted = wanted.saturating_sub(rows);
                }
                let rows = PolicyKey { group: id, class, ports: 0 }..=PolicyKey { group: id, class, ports: ANY };
                let dead: Vec<PolicyKey> = self.out.tables.rows.range(rows).map(|(key, _)| *key).collect();
                // Its last members have it until they are flipped, and by then ports may have new classes.
                dead.into_iter().for_each(|key| self.out.retire_row(key));
            }
        }
    }
}
