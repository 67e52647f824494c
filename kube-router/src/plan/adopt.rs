//! Numbers across a restart.
//!
//! The compiler numbers groups, classes and the like as it comes across them, so a new agent would number the same
//! policies otherwise than the last one did, and have to write every row anew; meanwhile new flows of peers with new
//! classes would be refused. So what means the same keeps its number: contents of the kernel's tables and of the
//! compiler's are matched, and a [`Renaming`] stands between the compiler and the kernel from then on.
//!
//! A number is taken over only if that changes no verdict at any moment:
//!
//! | | taken over if |
//! |---|---|
//! | port class | it holds exactly the same ports |
//! | class | it holds exactly the same addresses and prefixes |
//! | pod | it has an address in common |
//! | group | every pod that has it will have it, and its rows for the classes and port classes taken over give the same verdicts; one that denies somebody knows no others |
//! | rule | it decides in the rows of such a group |
//!
//! All else gets numbers that the kernel's tables do not use (the compiler is told which these are). A renaming is a
//! permutation made of swaps, so it never gives two things one number, however the compiler reuses its own.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    hash::Hash,
};

use kube_router_common::policy::{
    ANY, Address, CLASS_WORLD, CLOSED, CidrKey, NOT_ISOLATED, PORT_ENTRIES, PORTLESS, Peer, PodGroups, PolicyKey,
    PolicyRow,
};

use crate::{
    compile::policy::PolicyCompiler,
    desired::policy::{PolicyChanges, PolicyTables, RuleInfo},
    objects::ObjectKey,
};

/// The compiler's numbers -> the kernel's. Whatever is not named keeps its number.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Renaming {
    groups: Swaps,
    classes: Swaps,
    ports: Swaps,
    pods: Swaps,
    rules: Swaps,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Swaps(HashMap<u32, u32>);

impl Swaps {
    fn get(&self, number: u32) -> u32 {
        self.0.get(&number).copied().unwrap_or(number)
    }

    /// False: one of them has its partner already.
    fn add(&mut self, a: u32, b: u32) -> bool {
        if self.0.contains_key(&a) || self.0.contains_key(&b) {
            return self.get(a) == b;
        }
        self.0.insert(a, b);
        self.0.insert(b, a);
        true
    }
}

/// What the compiler knows, under the kernel's numbers.
#[derive(Clone, Copy)]
pub struct Numbered<'a> {
    pub compiler: &'a PolicyCompiler,
    /// `None`: the compiler's numbers are the kernel's.
    renaming: Option<&'a Renaming>,
}

impl<'a> Numbered<'a> {
    pub fn new(compiler: &'a PolicyCompiler, renaming: &'a Renaming) -> Self {
        Numbered { compiler, renaming: Some(renaming).filter(|renaming| !renaming.is_identity()) }
    }

    /// Of a compiler that began with empty tables.
    pub fn plain(compiler: &'a PolicyCompiler) -> Self {
        Numbered { compiler, renaming: None }
    }

    /// Pods of this node.
    pub fn pods(self) -> impl Iterator<Item = (&'a ObjectKey, u32)> {
        self.compiler.local_pods().map(move |(key, number)| (key, self.renaming.map_or(number, |r| r.pod(number))))
    }

    pub fn rules(self) -> impl Iterator<Item = (u32, &'a RuleInfo)> {
        let rules = self.compiler.state().rules.iter();
        rules.map(move |(number, info)| (self.renaming.map_or(*number, |renaming| renaming.rule(*number)), info))
    }

    pub fn rule(self, number: u32) -> Option<&'a RuleInfo> {
        self.compiler.state().rules.get(&self.renaming.map_or(number, |renaming| renaming.rule(number)))
    }

    /// The tables under the compiler's numbers, and what leads from these to the kernel's, and back.
    pub fn tables(self) -> (&'a PolicyTables, Option<&'a Renaming>) {
        (self.compiler.state(), self.renaming)
    }
}

impl Renaming {
    /// As this is its own inverse, it leads back as well.
    pub fn pod(&self, number: u32) -> u32 {
        self.pods.get(number)
    }

    pub fn rule(&self, number: u32) -> u32 {
        self.rules.get(number)
    }

    pub fn class(&self, number: u32) -> u32 {
        self.classes.get(number)
    }

    pub fn port_class(&self, number: u32) -> u32 {
        self.ports.get(number)
    }

    pub fn group(&self, number: u32) -> u32 {
        self.groups.get(number)
    }

    pub fn key(&self, key: PolicyKey) -> PolicyKey {
        PolicyKey {
            group: self.groups.get(key.group),
            class: self.classes.get(key.class),
            ports: self.ports.get(key.ports),
        }
    }

    pub fn row(&self, row: PolicyRow) -> PolicyRow {
        PolicyRow { rule: self.rules.get(row.rule), ..row }
    }

    pub fn peer(&self, peer: Peer) -> Peer {
        Peer { class: self.classes.get(peer.class), ..peer }
    }

    pub fn groups_of(&self, groups: PodGroups) -> PodGroups {
        PodGroups { ingress: self.groups.get(groups.ingress), egress: self.groups.get(groups.egress) }
    }

    pub fn tables(&self, tables: &PolicyTables) -> PolicyTables {
        PolicyTables {
            rows: tables.rows.iter().map(|(key, row)| (self.key(*key), self.row(*row))).collect(),
            pods: tables.pods.iter().map(|(pod, groups)| (self.pod(*pod), self.groups_of(*groups))).collect(),
            endpoints: tables.endpoints.iter().map(|(address, pod)| (*address, self.pod(*pod))).collect(),
            peers: tables.peers.iter().map(|(address, peer)| (*address, self.peer(*peer))).collect(),
            cidrs: tables.cidrs.iter().map(|(key, peer)| (*key, self.peer(*peer))).collect(),
            ports: tables.ports.iter().map(|(first, class)| (*first, self.ports.get(*class))).collect(),
            rules: tables.rules.iter().map(|(rule, info)| (self.rule(*rule), info.clone())).collect(),
        }
    }

    pub fn changes(&self, changes: PolicyChanges) -> PolicyChanges {
        if self.is_identity() {
            return changes;
        }
        let peer = |peer: Option<Peer>| peer.map(|peer| self.peer(peer));
        PolicyChanges {
            update: changes.update,
            closed: changes.closed.into_iter().map(|(pod, groups)| (self.pod(pod), self.groups_of(groups))).collect(),
            shut_rows: changes.shut_rows.into_iter().map(|(key, row)| (self.key(key), self.row(row))).collect(),
            rows: changes.rows.into_iter().map(|(key, row)| (self.key(key), self.row(row))).collect(),
            dead_rows: changes.dead_rows.into_iter().map(|key| self.key(key)).collect(),
            ports: changes.ports.into_iter().map(|(first, last, class)| (first, last, self.ports.get(class))).collect(),
            cidrs: changes.cidrs.into_iter().map(|(key, to)| (key, peer(to))).collect(),
            peers: changes.peers.into_iter().map(|(key, to)| (key, peer(to))).collect(),
            pods: changes
                .pods
                .into_iter()
                .map(|(pod, groups)| (self.pod(pod), groups.map(|groups| self.groups_of(groups))))
                .collect(),
            endpoints: changes.endpoints.into_iter().map(|(key, pod)| (key, pod.map(|pod| self.pod(pod)))).collect(),
            rules: changes.rules.into_iter().map(|(rule, info)| (self.rule(rule), info)).collect(),
            judge_again: changes.judge_again,
        }
    }

    fn is_identity(&self) -> bool {
        [&self.groups, &self.classes, &self.ports, &self.pods, &self.rules].iter().all(|swaps| swaps.0.is_empty())
    }
}

/// `desired` must not use numbers of `observed` (see `PolicyCompiler::seed`), but for those that are fixed (world, other
/// ports, any).
pub fn adopt(observed: &PolicyTables, desired: &PolicyTables) -> Renaming {
    let mut renaming = Renaming::default();
    port_classes(observed, desired, &mut renaming.ports);
    classes(observed, desired, &mut renaming.classes);
    pods(observed, desired, &mut renaming.pods);
    groups(observed, desired, &mut renaming);
    renaming
}

fn port_classes(observed: &PolicyTables, desired: &PolicyTables, swaps: &mut Swaps) {
    let contents = |runs: &BTreeMap<u32, u32>| {
        let mut contents: HashMap<u32, Vec<(u32, u32)>> = HashMap::new();
        let ends = runs.keys().skip(1).copied().chain([PORT_ENTRIES]);
        for ((first, class), end) in runs.iter().zip(ends) {
            let runs = contents.entry(*class).or_default();
            match runs.last_mut() {
                Some((_, last)) if *last == *first => *last = end,
                _ => runs.push((*first, end)),
            }
        }
        contents
    };
    let (theirs, ours) = (contents(&observed.ports), contents(&desired.ports));
    let in_use: BTreeSet<u32> = theirs.keys().copied().chain(observed.rows.keys().map(|key| key.ports)).collect();
    let numbers: BTreeSet<u32> = ours.keys().copied().collect();
    match_contents(theirs, ours, swaps, |_| false);
    // Every compiler begins with the same numbers for ports that no rule names. Where these are not the same ports, rows
    // of the last agent would speak of them.
    let fresh = (0..PORTLESS).rev().filter(|number| !in_use.contains(number) && !numbers.contains(number));
    let taken = numbers.iter().filter(|number| in_use.contains(number) && !swaps.0.contains_key(number));
    let pairs: Vec<(u32, u32)> = taken.copied().zip(fresh).collect();
    pairs.into_iter().filter(|(number, _)| !observed_same(observed, desired, *number)).for_each(|(number, fresh)| {
        swaps.add(number, fresh);
    });
}

/// Does the port class hold the same ports on both sides?
fn observed_same(observed: &PolicyTables, desired: &PolicyTables, class: u32) -> bool {
    let runs = |tables: &PolicyTables| -> Vec<(u32, u32)> {
        let ends = tables.ports.keys().skip(1).copied().chain([PORT_ENTRIES]);
        let runs = tables.ports.iter().zip(ends).filter(|((_, of), _)| **of == class);
        runs.map(|((first, _), end)| (*first, end)).collect()
    };
    runs(observed) == runs(desired)
}

fn classes(observed: &PolicyTables, desired: &PolicyTables, swaps: &mut Swaps) {
    let contents = |tables: &PolicyTables| {
        let mut contents: HashMap<u32, (Vec<Address>, Vec<CidrKey>)> = HashMap::new();
        for (address, peer) in &tables.peers {
            contents.entry(peer.class).or_default().0.push(*address);
        }
        for (key, peer) in &tables.cidrs {
            contents.entry(peer.class).or_default().1.push(*key);
        }
        contents
    };
    // What everybody is, is fixed on both sides.
    match_contents(contents(observed), contents(desired), swaps, |class| class == CLASS_WORLD);
}

fn match_contents<C: Eq + Hash>(
    observed: HashMap<u32, C>,
    desired: HashMap<u32, C>,
    swaps: &mut Swaps,
    is_fixed: impl Fn(u32) -> bool,
) {
    let by_content: HashMap<C, u32> = observed.into_iter().map(|(number, content)| (content, number)).collect();
    let mut pairs: Vec<(u32, u32)> =
        desired.into_iter().filter_map(|(number, content)| Some((number, *by_content.get(&content)?))).collect();
    pairs.sort_unstable();
    pairs.retain(|(ours, theirs)| !is_fixed(*ours) && !is_fixed(*theirs) && ours != theirs);
    for (ours, theirs) in pairs {
        swaps.add(ours, theirs);
    }
}

fn pods(observed: &PolicyTables, desired: &PolicyTables, swaps: &mut Swaps) {
    for (address, ours) in &desired.endpoints {
        if let Some(theirs) = observed.endpoints.get(address)
            && ours != theirs
        {
            swaps.add(*ours, *theirs);
        }
    }
}

fn groups(observed: &PolicyTables, desired: &PolicyTables, renaming: &mut Renaming) {
    let (ours_by_group, theirs_by_group) = (by_group(desired), by_group(observed));
    let known_classes: BTreeSet<u32> =
        observed.peers.values().chain(observed.cidrs.values()).map(|p| p.class).collect();
    let known_ports: BTreeSet<u32> = observed.ports.values().copied().collect();
    let same_ports: BTreeSet<u32> =
        known_ports.iter().copied().filter(|class| observed_same(observed, desired, *class)).collect();
    // Only what both sides know by the same number must agree; rows for anything else are not looked up yet.
    let adopted =
        |class: u32, known: &BTreeSet<u32>, swaps: &Swaps| known.contains(&class) && swaps.0.contains_key(&class);
    let (classes, ports) = (&renaming.classes, &renaming.ports);
    let shared = |key: &PolicyKey| {
        let class = matches!(key.class, ANY | CLASS_WORLD) || adopted(key.class, &known_classes, classes);
        class
            && (matches!(key.ports, ANY | PORTLESS)
                || adopted(key.ports, &known_ports, ports)
                || same_ports.contains(&key.ports))
    };
    let place = |key: &PolicyKey| (key.class, key.ports);
    let verdicts = |rows: Vec<(PolicyKey, PolicyRow)>| -> Signature {
        let rows = rows.into_iter().filter(|(key, _)| shared(key));
        rows.map(|(key, row)| (place(&key), row.verdict)).collect::<BTreeMap<_, _>>().into_iter().collect()
    };
    let signatures = |groups: &HashMap<u32, Vec<(PolicyKey, PolicyRow)>>, rename: bool| -> BTreeMap<u32, Signature> {
        let named = |rows: &[(PolicyKey, PolicyRow)]| {
            rows.iter().map(|(key, row)| (if rename { renaming.key(*key) } else { *key }, *row)).collect()
        };
        groups.iter().map(|(group, rows)| (*group, verdicts(named(rows)))).collect()
    };
    let (mine, its) = (signatures(&ours_by_group, true), signatures(&theirs_by_group, false));
    let none = Signature::new();
    let is_fixed = |group| matches!(group, NOT_ISOLATED | CLOSED);
    // A group that denies must know all it speaks of: it may say more of everybody than of somebody.
    let whole = |group: &u32, of: &HashMap<u32, Vec<(PolicyKey, PolicyRow)>>, signatures: &BTreeMap<u32, Signature>| {
        let rows = of.get(group).map_or(&[][..], Vec::as_slice);
        let denies = rows.iter().any(|(_, row)| row.verdict != PolicyRow::ALLOW);
        !denies || signatures.get(group).is_some_and(|signature| signature.len() == rows.len())
    };
    let same = |ours: &u32, theirs: &u32| {
        mine.get(ours).unwrap_or(&none) == its.get(theirs).unwrap_or(&none)
            && whole(ours, &ours_by_group, &mine)
            && whole(theirs, &theirs_by_group, &its)
    };
    // Whoever has the group now must have it then: on the way its rows speak for all of them.
    let mut heirs: BTreeMap<u32, BTreeSet<u32>> = BTreeMap::new();
    for (pod, ours) in &desired.pods {
        let Some(theirs) = observed.pods.get(&renaming.pods.get(*pod)) else { continue };
        for (ours, theirs) in [(ours.ingress, theirs.ingress), (ours.egress, theirs.egress)] {
            if !is_fixed(theirs) {
                heirs.entry(theirs).or_default().insert(ours);
            }
        }
    }
    let inherited = heirs.iter().filter_map(|(theirs, ours)| match ours.first() {
        Some(first) if ours.len() == 1 && !is_fixed(*first) => Some((*first, *theirs)),
        _ => None,
    });
    // Groups that no pod has any more may be anybody's.
    let mut unused: HashMap<&Signature, Vec<u32>> = HashMap::new();
    for (group, signature) in its.iter().filter(|(group, _)| !heirs.contains_key(group)) {
        unused.entry(signature).or_default().push(*group);
    }
    let rest = mine.iter().filter(|(group, _)| !heirs.values().any(|ours| ours.len() == 1 && ours.contains(group)));
    let rest = rest.filter_map(|(group, signature)| Some((*group, unused.get_mut(signature)?.pop()?)));
    let pairs: Vec<(u32, u32)> = inherited.chain(rest).filter(|(ours, theirs)| same(ours, theirs)).collect();
    for (ours, theirs) in pairs {
        if renaming.groups.0.contains_key(&ours) || !renaming.groups.add(ours, theirs) {
            continue;
        }
        let there: HashMap<(u32, u32), u32> =
            theirs_by_group.get(&theirs).into_iter().flatten().map(|(key, row)| (place(key), row.rule)).collect();
        for (key, row) in ours_by_group.get(&ours).into_iter().flatten() {
            let rule = there.get(&place(&renaming.key(*key))).copied().unwrap_or(0);
            if row.rule != 0 && rule != 0 && row.rule != rule {
                renaming.rules.add(row.rule, rule);
            }
        }
    }
}

/// The verdicts of a group, in the order of their places.
type Signature = Vec<((u32, u32), u32)>;

fn by_group(tables: &PolicyTables) -> HashMap<u32, Vec<(PolicyKey, PolicyRow)>> {
    let mut groups: HashMap<u32, Vec<(PolicyKey, PolicyRow)>> = HashMap::new();
    for (key, row) in &tables.rows {
        groups.entry(key.group).or_default().push((*key, *row));
    }
    groups
}
