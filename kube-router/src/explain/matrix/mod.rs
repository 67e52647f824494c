//! Who can talk to whom, port by port.
//!
//! Pods that policies cannot tell apart are one *party* from the start (same namespace, labels, ports, blocks of
//! addresses), so a cluster of thousands of pods is judged in as many pairs as it has kinds of pods. Parties of one
//! namespace whose rows and columns turn out equal become one as well. Beside pods there are parties outside: an address
//! that no policy names, and one for each block of addresses that a policy names.
//!
//! What is not in the table, as it is the same everywhere: a node may always reach its own pods, and a pod itself.

mod judge;
mod merge;
mod page;
mod parties;
pub mod text;

use std::collections::BTreeMap;

use serde::Serialize;

use super::holes::{faults, holes};
use crate::cluster::ClusterState;
use judge::Judge;
pub use page::page;

/// Pairs that are judged: 300 kinds of pods with each other. At 20 port classes and 2 µs a verdict, some 7 s.
pub const MAX_PAIRS: usize = 90_000;

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum MatrixError {
    #[error("there is no namespace {name} with pods{}", did_you_mean(near))]
    NoNamespace { name: String, near: Vec<String> },
    #[error(
        "the pods are of {parties} kinds, so there are {pairs} pairs to judge, more than {MAX_PAIRS}: choose a namespace \
         with --namespace"
    )]
    TooLarge { parties: usize, pairs: usize },
}

fn did_you_mean(names: &[String]) -> String {
    if names.is_empty() { String::new() } else { format!("; there is {}", names.join(", ")) }
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Matrix {
    /// Only pairs with a pod of this namespace.
    pub namespace: Option<String>,
    pub parties: Vec<Party>,
    /// What cells may say.
    pub outcomes: Vec<Outcome>,
    /// What decided; the outcomes name them by their place.
    pub reasons: Vec<String>,
    /// `cells[from][to]` is the place of an outcome; `None`: not judged.
    pub cells: Vec<Vec<Option<usize>>>,
    pub notes: Vec<String>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Party {
    /// `shop/front-*`, `outside`, `192.168.77.0/24`.
    pub name: String,
    /// `None`: outside.
    pub namespace: Option<String>,
    /// Names of the pods.
    pub pods: Vec<String>,
}

/// One answer for all ports.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
pub struct Outcome {
    pub reach: Reach,
    /// `all`, `none`, `tcp/80 (http)`, `all but tcp/22`.
    pub label: String,
    pub ports: Vec<PortOutcome>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Reach {
    All,
    Some,
    None,
    /// A pod and itself.
    Itself,
}

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
pub struct PortOutcome {
    pub port: String,
    pub allowed: bool,
    /// Places in [`Matrix::reasons`].
    pub egress: usize,
    pub ingress: usize,
}

impl Outcome {
    pub(crate) fn of(ports: Vec<PortOutcome>) -> Self {
        let named = |allowed: bool| -> Vec<&str> {
            ports.iter().filter(|port| port.allowed == allowed).map(|port| &*port.port).collect()
        };
        let (open, shut) = (named(true), named(false));
        let (reach, label) = match (open.len(), shut.len()) {
            (_, 0) => (Reach::All, "all".to_owned()),
            (0, _) => (Reach::None, "none".to_owned()),
            (open_count, shut_count) if shut_count < open_count => {
                (Reach::Some, format!("all but {}", shut.join(", ")))
            }
            _ => (Reach::Some, open.join(", ")),
        };
        Outcome { reach, label, ports }
    }

    fn itself() -> Self {
        Outcome { reach: Reach::Itself, label: "itself".to_owned(), ports: Vec::new() }
    }
}

/// Judges every pair, or every pair with an end in `namespace`.
///
/// # Errors
/// There is no such namespace, or there are too many pairs.
pub fn matrix(cluster: &ClusterState, namespace: Option<&str>) -> Result<Matrix, MatrixError> {
    let (all, mut notes) = parties::find(cluster);
    let is_here = |party: &parties::Kind| namespace.is_none_or(|wanted| party.namespace() == Some(wanted));
    if let Some(name) = namespace
        && !all.iter().any(is_here)
    {
        let known = all.iter().filter_map(|party| party.namespace().map(str::to_owned));
        return Err(MatrixError::NoNamespace { name: name.to_owned(), near: super::near::near(name, known) });
    }
    let (here, parties) = (all.iter().filter(|party| is_here(party)).count(), all.len());
    let pairs = parties * parties - (parties - here) * (parties - here);
    if pairs > MAX_PAIRS {
        return Err(MatrixError::TooLarge { parties, pairs });
    }
    let mut judge = Judge::new(cluster);
    let mut outcomes = Interned::default();
    let mut cells = vec![vec![None; parties]; parties];
    for (i, from) in all.iter().enumerate() {
        for (j, to) in all.iter().enumerate() {
            if is_here(from) || is_here(to) {
                cells[i][j] = judge.pair(from, to, i == j).map(|outcome| outcomes.place(outcome));
            }
        }
    }
    let merged = merge::merge(all, cells);
    notes.push("a node may always reach its own pods".to_owned());
    notes.extend(faults(cluster, |_| true));
    notes.extend(holes(cluster));
    Ok(Matrix {
        namespace: namespace.map(str::to_owned),
        parties: merged.parties.iter().map(parties::Kind::named).collect(),
        outcomes: outcomes.list,
        reasons: judge.into_reasons(),
        cells: merged.cells,
        notes,
    })
}

/// Equal outcomes, once each.
#[derive(Default)]
struct Interned {
    places: BTreeMap<Outcome, usize>,
    list: Vec<Outcome>,
}

impl Interned {
    fn place(&mut self, outcome: Outcome) -> usize {
        if let Some(place) = self.places.get(&outcome) {
            return *place;
        }
        self.list.push(outcome.clone());
        self.places.insert(outcome, self.list.len() - 1);
        self.list.len() - 1
    }
}
