//! Port classes: which sets of port ranges exist among (protocol, port), each with a number.
//!
//! Unlike the classes of peers, a number keeps standing for the larger part when a new range divides it: else a rule
//! for the ports 1 to 65535 would rewrite a third of the table; for that, too, the protocols are apart from the start. That is safe: groups that judge packets now do not use the
//! new range, so both parts mean the same to them, and the part with the new number gets copies of their rows. The
//! other way round, ranges that nobody uses any more are dropped and the parts that they divided become one again.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use kube_router_common::policy::{PORT_ENTRIES, PORT_PROTOCOLS, PORTLESS, PORTS_OTHER, port_index};

use super::ids::Ids;
use crate::objects::Protocol;

pub type RangeId = u32;
pub type PortClass = u32;
/// First and last index into the table of ports (see [`port_index`]), of one protocol.
pub type Range = (u32, u32);

pub fn range(protocol: Protocol, first: u16, last: u16) -> Range {
    let index = |port| port_index(protocol.number(), port).expect("the protocols of a policy have ports");
    (index(first), index(last))
}

#[derive(Debug)]
pub struct Ports {
    next: RangeId,
    ids: Ids,
    ranges: HashMap<Range, RangeId>,
    /// Range -> its place and how many use it.
    uses: BTreeMap<RangeId, (Range, u32)>,
    /// First index -> class, up to the next one.
    runs: BTreeMap<u32, PortClass>,
    classes_of: HashMap<RangeId, Vec<PortClass>>,
    retired: BTreeSet<RangeId>,
    changed: bool,
}

/// (first index, last index, number of the set of ranges).
type Part = (u32, u32, usize);

/// What a new division asks for.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Division {
    /// (first, last, class) where the class differs from before.
    pub runs: Vec<(u32, u32, PortClass)>,
    /// New classes and the old one they are a part of.
    pub copies: Vec<(PortClass, PortClass)>,
    /// Classes that no port has any more.
    pub gone: Vec<PortClass>,
}

impl Default for Ports {
    fn default() -> Self {
        Ports {
            next: 0,
            ids: Ids::new(PORT_PROTOCOLS..PORTLESS),
            ranges: HashMap::new(),
            uses: BTreeMap::new(),
            runs: (0..PORT_PROTOCOLS)
                .map(|place| (place * (PORT_ENTRIES / PORT_PROTOCOLS), PORTS_OTHER + place))
                .collect(),
            classes_of: HashMap::new(),
            retired: BTreeSet::new(),
            changed: false,
        }
    }
}

impl Ports {
    pub fn ids(&mut self) -> &mut Ids {
        &mut self.ids
    }

    pub fn acquire(&mut self, range: Range) -> RangeId {
        let id = match self.ranges.get(&range) {
            Some(id) => *id,
            None => {
                self.next += 1;
                self.ranges.insert(range, self.next);
                self.uses.insert(self.next, (range, 0));
                self.changed = true;
                self.next
            }
        };
        if let Some((_, count)) = self.uses.get_mut(&id) {
            *count += 1;
        }
        self.retired.remove(&id);
        id
    }

    pub fn release(&mut self, id: RangeId) {
        if let Some((_, count)) = self.uses.get_mut(&id) {
            *count -= 1;
            if *count == 0 {
                self.retired.insert(id);
            }
        }
    }

    pub fn release_range(&mut self, range: Range) {
        if let Some(id) = self.ranges.get(&range).copied() {
            self.release(id);
        }
    }

    pub fn has_retired(&self) -> bool {
        !self.retired.is_empty()
    }

    pub fn retired(&self) -> BTreeSet<RangeId> {
        self.retired.clone()
    }

    /// Ends those of the retired that still nobody uses.
    pub fn drop_retired(&mut self, ids: BTreeSet<RangeId>) {
        for id in ids {
            if self.retired.remove(&id)
                && let Some((range, _)) = self.uses.remove(&id)
            {
                self.ranges.remove(&range);
                self.changed = true;
            }
        }
    }

    pub fn id(&self, range: Range) -> Option<RangeId> {
        self.ranges.get(&range).copied()
    }

    /// The classes that make up this range.
    pub fn classes(&self, range: RangeId) -> &[PortClass] {
        self.classes_of.get(&range).map_or(&[], |classes| classes)
    }

    /// First index -> class, up to the next one.
    pub fn runs(&self) -> &BTreeMap<u32, PortClass> {
        &self.runs
    }

    /// All runs that an empty table lacks: (first, last, class).
    pub fn runs_to_write_first(&self) -> Vec<(u32, u32, PortClass)> {
        overlay(&self.runs, 0, PORT_ENTRIES - 1).filter(|(_, _, class)| *class != PORTS_OTHER).collect()
    }

    /// Divides the ports anew if ranges came or went.
    pub fn divide(&mut self, update: u64) -> Option<Division> {
        if !std::mem::take(&mut self.changed) {
            return None;
        }
        let (parts, sets) = self.parts();
        let mut shared: HashMap<(usize, PortClass), u32> = HashMap::new();
        for (first, last, set) in &parts {
            for (first, last, class) in overlay(&self.runs, *first, *last) {
                *shared.entry((*set, class)).or_default() += last - first + 1;
            }
        }
        let mut pairs: Vec<((usize, PortClass), u32)> = shared.into_iter().collect();
        pairs.sort_by_key(|((set, class), size)| (std::cmp::Reverse(*size), *set, *class));

        let mut kept: HashMap<usize, PortClass> = HashMap::new();
        let mut taken = BTreeSet::new();
        for ((set, class), _) in &pairs {
            if !kept.contains_key(set) && taken.insert(*class) {
                kept.insert(*set, *class);
            }
        }
        let mut division = Division::default();
        for ((set, class), _) in &pairs {
            if !kept.contains_key(set) {
                let new =
                    self.ids.take().expect("four thousand million port classes do not pass in the life of a node");
                kept.insert(*set, new);
                division.copies.push((new, *class));
            }
        }
        self.replace(&parts, &sets, &kept, &mut division, update);
        Some(division)
    }

    /// Every port, cut where a range begins or ends, with the number of the set of ranges it is in.
    fn parts(&self) -> (Vec<Part>, Vec<Vec<RangeId>>) {
        let protocols = (0..PORT_PROTOCOLS).map(|place| (place * (PORT_ENTRIES / PORT_PROTOCOLS), Default::default()));
        let mut cuts: BTreeMap<u32, (Vec<RangeId>, Vec<RangeId>)> = protocols.collect();
        for (id, ((first, last), _)) in &self.uses {
            cuts.entry(*first).or_default().0.push(*id);
            cuts.entry(last + 1).or_default().1.push(*id);
        }
        let mut open = BTreeSet::new();
        let mut known: HashMap<(u32, Vec<RangeId>), usize> = HashMap::new();
        let mut sets = Vec::new();
        let mut parts: Vec<Part> = Vec::new();
        let ends: Vec<u32> = cuts.keys().skip(1).copied().chain([PORT_ENTRIES]).collect();
        for ((first, (begin, end)), next) in cuts.into_iter().zip(ends) {
            open.retain(|id| !end.contains(id));
            open.extend(begin);
            if first >= PORT_ENTRIES {
                break;
            }
            let set: Vec<RangeId> = open.iter().copied().collect();
            let place = first / (PORT_ENTRIES / PORT_PROTOCOLS);
            let number = *known.entry((place, set.clone())).or_insert_with(|| {
                sets.push(set);
                sets.len() - 1
            });
            parts.push((first, next - 1, number));
        }
        (parts, sets)
    }

    fn replace(
        &mut self,
        parts: &[Part],
        sets: &[Vec<RangeId>],
        kept: &HashMap<usize, PortClass>,
        division: &mut Division,
        update: u64,
    ) {
        let mut runs = BTreeMap::new();
        let mut latest = None;
        for (first, last, set) in parts {
            let class = kept[set];
            for (first, last, old) in overlay(&self.runs, *first, *last) {
                match division.runs.last_mut() {
                    _ if old == class => {}
                    Some((_, end, before)) if *end + 1 == first && *before == class => *end = last,
                    _ => division.runs.push((first, last, class)),
                }
            }
            if latest != Some(class) {
                runs.insert(*first, class);
                latest = Some(class);
            }
        }
        let now: BTreeSet<PortClass> = runs.values().copied().collect();
        let before: BTreeSet<PortClass> = self.runs.values().copied().collect();
        division.gone = before.difference(&now).copied().collect();
        // The first ones stay for the protocols.
        for class in division.gone.iter().filter(|class| **class >= PORT_PROTOCOLS) {
            self.ids.give_back(*class, update);
        }
        self.runs = runs;
        self.classes_of.clear();
        for (set, class) in kept {
            for range in &sets[*set] {
                self.classes_of.entry(*range).or_default().push(*class);
            }
        }
    }
}

/// The runs between two indices, both included.
fn overlay(runs: &BTreeMap<u32, PortClass>, first: u32, last: u32) -> impl Iterator<Item = (u32, u32, PortClass)> {
    let start = runs.range(..=first).next_back().map_or(0, |(start, _)| *start);
    runs.range(start..=last).map(move |(start, class)| {
        let next = runs.range(start + 1..).next().map_or(PORT_ENTRIES, |(next, _)| *next);
        ((*start).max(first), (next - 1).min(last), *class)
    })
}
