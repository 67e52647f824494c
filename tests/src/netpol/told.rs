//! What the agents tell of a question, held against its fate: `explain` and the packet agree, and the rule that
//! `explain` names is the one whose counter moves.
//!
//! ```text
//!   agents ── explain ──> verdict, rule at each end ──> counts that should move
//!   kernel ── kr_rules before, a round of questions, kr_rules after ──> counts that did
//! ```
//!
//! A round is about one port, or about one way to address pods where few questions are asked; it is counted to the last
//! flow, so a rule that decides on a pair too many or too few cannot hide. A datagram that happens to have the ports of
//! one before belongs to that one's flow and is not counted again; therefore a round that differs is played again, and
//! must differ each time.

use std::{
    collections::BTreeMap,
    fmt::{self, Write as _},
};

use anyhow::{Context, Result, bail};
use kube_router::{apply::bpf, explain::PolicyNames, observe::socket::POLICY_NAMES_PATH};

use super::{
    Cluster, Route,
    judge::SILENCE,
    plan::{self, BEACON_NAMESPACE, PODS, PORTS},
    probe::{Outcome, Probe, ask_everywhere},
    route::Sample,
    table::Pair,
    words::{Case, Told, Word, ask, said},
};
use crate::{
    agent::Agent,
    probe::{ProbeError, Transport},
};

/// Rounds that may differ.
const ROUNDS: usize = 3;
/// Differences told.
const TOLD: usize = 12;

/// What is compared after each step.
#[derive(Clone, Debug)]
pub struct Explained {
    pub routes: Vec<Route>,
    /// This part of the questions of each route, as in [`Sample`].
    pub share: usize,
}

/// (node, number of the rule)
type Place = (usize, u32);

/// How often a rule should decide in a round.
#[derive(Clone, Copy, Debug, Default)]
struct Count {
    flows: u64,
    /// A refused client may knock more than once.
    or_more: bool,
}

impl fmt::Display for Count {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}{}", self.flows, if self.or_more { " or more" } else { "" })
    }
}

/// Asks the agents about a part of all pairs on these ports, and then the pairs themselves. Adds how many questions were
/// compared.
pub fn compare(
    cluster: &Cluster,
    explained: &Explained,
    ports: &[usize],
    turn: usize,
    compared: &mut BTreeMap<String, usize>,
) -> Result<()> {
    let names = cluster.agents.iter().map(names).collect::<Result<Vec<_>>>()?;
    let sample = Sample { share: explained.share, turn };
    let mut rounds: BTreeMap<(String, usize), Vec<Case>> = BTreeMap::new();
    for (place, route) in explained.routes.iter().enumerate() {
        let pairs = Pair::all(false).filter(|pair| ports.contains(&pair.port) && sample.takes(*pair, place));
        for pair in pairs.filter(|pair| is_told(cluster, *route, *pair)) {
            let port = if explained.share == 1 { pair.port } else { 0 };
            rounds.entry((route.to_string(), port)).or_default().push((*route, pair));
            if PORTS[pair.port].0 == Transport::Sctp {
                *compared.entry("over SCTP of all these".to_owned()).or_default() += 1;
            }
        }
    }
    let all: Vec<Case> = rounds.values().flatten().copied().collect();
    let told = ask(cluster, &names, &all, explained.share == 1)?;
    for ((route, _), cases) in rounds {
        let questions = Questions::new(cluster, &cases, &told)?;
        let mut round = 1;
        loop {
            let differences = questions.play(cluster, &names)?;
            match (differences.is_empty(), round < ROUNDS) {
                (true, _) => break,
                (false, true) => round += 1,
                (false, false) => {
                    let alone = alone(cluster, &names, &cases, &told)?;
                    bail!("{route}: explain and the packets' fate differ: {}{alone}", some(&differences))
                }
            }
        }
        *compared.entry(route).or_default() += cases.len();
    }
    Ok(())
}

/// The questions of a round that differ when nobody else asks.
fn alone(cluster: &Cluster, names: &[PolicyNames], cases: &[Case], told: &BTreeMap<Case, Told>) -> Result<String> {
    let mut text = String::new();
    for case in cases {
        let differences = Questions::new(cluster, &[*case], told)?.play(cluster, names)?;
        if !differences.is_empty() {
            let _ = writeln!(text, "  alone, {}: {:?}\n  {:?}", said(*case), differences, told.get(case));
        }
    }
    Ok(text)
}

/// Is it known who judges whom? At another node's port that node stands in for the client if it passes the packet on to
/// a third place, and a pod that has ended is no endpoint.
fn is_told(cluster: &Cluster, route: Route, pair: Pair) -> bool {
    let is_there = !route.is_service() || !cluster.objects.has_ended(pair.to);
    is_there
        && match route {
            Route::NodePort(node) => [pair.from, pair.to].map(plan::node_of).contains(&node),
            _ => true,
        }
}

fn names(agent: &Agent) -> Result<PolicyNames> {
    Ok(serde_json::from_str(&agent.told(POLICY_NAMES_PATH)?)?)
}

/// A round, in the order of senders.
struct Questions<'a> {
    cases: Vec<(Case, &'a Told)>,
    probes: Vec<(crate::lab::Namespace, Vec<Probe>)>,
}

impl<'a> Questions<'a> {
    fn new(cluster: &Cluster, cases: &[Case], told: &'a BTreeMap<Case, Told>) -> Result<Self> {
        let mut questions = Questions { cases: Vec::new(), probes: Vec::new() };
        for from in 0..PODS.len() {
            let mut probes = Vec::new();
            for case in cases.iter().filter(|(_, pair)| pair.from == from) {
                let (route, pair) = *case;
                let told = told.get(case).with_context(|| said(*case))?;
                // A refusal through a load balancer may be silent.
                let at_most = (!told.allowed && route.is_balanced()).then_some(SILENCE);
                probes.push(Probe { at_most, ..Probe::new(PORTS[pair.port].0, route.target(pair)) });
                questions.cases.push((*case, told));
            }
            questions.probes.push((cluster.pod(from)?.ns, probes));
        }
        Ok(questions)
    }

    /// Plays it; what differs.
    fn play(&self, cluster: &Cluster, names: &[PolicyNames]) -> Result<Vec<String>> {
        let before = counts(cluster, names)?;
        let outcomes = ask_everywhere(&self.probes, cluster.patience.answer);
        let after = counts(cluster, names)?;
        let mut differences = Vec::new();
        let mut should: BTreeMap<Place, Count> = BTreeMap::new();
        for ((case, told), outcome) in self.cases.iter().zip(outcomes.iter().flatten()) {
            let (route, pair) = *case;
            if told.allowed != passed(route, outcome) {
                let outcome = outcome.as_ref().map_or_else(ToString::to_string, |_| "an answer".to_owned());
                let case = said(*case);
                differences
                    .push(format!("{case}: explain says allowed={}, there was: {outcome}\n{told:?}", told.allowed));
            }
            let [sender, receiver] = [pair.from, pair.to].map(|pod| plan::node_of(pod) - 1);
            // What opens a connection is judged each time behind a load balancer.
            let knocks = route.is_balanced() && PORTS[pair.port].0 == Transport::Tcp && outcome.is_err();
            count(&mut should, (sender, told.egress.number), &told.egress, knocks);
            if told.egress.allowed {
                count(&mut should, (receiver, told.ingress.number), &told.ingress, false);
            }
        }
        for (place, flows) in after {
            let moved = flows - before.get(&place).copied().unwrap_or(0);
            let should = should.get(&place).copied().unwrap_or_default();
            if if should.or_more { moved < should.flows } else { moved != should.flows } {
                let rule = names[place.0].rule(place.1);
                differences.push(format!("n{}: {rule} decided on {moved} flows, not on {should}", place.0 + 1));
            }
        }
        Ok(differences)
    }
}

fn passed(route: Route, outcome: &Outcome) -> bool {
    match outcome {
        Ok(_) => true,
        Err(ProbeError::Refused | ProbeError::Unreachable) => false,
        // Silence is neither, where whoever is refused is told.
        Err(_) => !route.is_balanced(),
    }
}

fn count(should: &mut BTreeMap<Place, Count>, place: Place, word: &Word, knocks: bool) {
    // 0: no rule has a say.
    if place.1 != 0 {
        let count = should.entry(place).or_default();
        (count.flows, count.or_more) = (count.flows + 1, count.or_more || knocks || !word.allowed);
    }
}

/// New flows by rule so far, but those of the beacons.
fn counts(cluster: &Cluster, names: &[PolicyNames]) -> Result<BTreeMap<Place, u64>> {
    let mut counts = BTreeMap::new();
    for (node, (pins, names)) in cluster.pins.iter().zip(names).enumerate() {
        let tables = bpf::Tables::open(&bpf::root(pins.path()))?;
        let ours = names.rules.iter().filter(|(_, rule)| &*rule.policy.namespace != BEACON_NAMESPACE);
        for (number, _) in ours {
            let count = tables.rules.get(number)?;
            counts.insert((node, *number), count.map_or(0, |count| count.flows));
        }
    }
    Ok(counts)
}

fn some(differences: &[String]) -> String {
    let mut text = format!("{} differences\n", differences.len());
    for difference in differences.iter().take(TOLD) {
        // Writing to a String cannot fail.
        let _ = writeln!(text, "  {difference}");
    }
    text
}
