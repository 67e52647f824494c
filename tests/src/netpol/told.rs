//! What the agents tell of a question, held against its fate: `explain` and the packet agree, and the rule that
//! `explain` names is the one whose counter moves.
//!
//! ```text
//!   agents ── explain ──> verdict, rule at each end ──> counts that should move
//!   kernel ── kr_rules before, a round of all questions, kr_rules after ──> counts that did
//! ```
//!
//! The agent of each end is asked, as only that one knows the rule's number on its node. Both must tell the same. All
//! questions of one port are asked at once, and counted to the last flow; a rule that decides on a pair too many or too
//! few cannot hide. A datagram that happens to have the ports of one before belongs to that one's flow and is not
//! counted again; therefore a round that differs is played again, and must differ each time.

use std::{
    collections::BTreeMap,
    fmt::{self, Write as _},
    thread,
};

use anyhow::{Context, Result, bail, ensure};
use kube_router::{
    apply::bpf,
    explain::{Answer, PolicyNames, Question, RuleName, answer::End, answer::Way},
    observe::socket::{POLICY_NAMES_PATH, explain_path},
};

use super::{
    Cluster,
    plan::{self, BEACON_NAMESPACE, PODS, PORTS},
    probe::{Outcome, Probe, ask_everywhere},
    table::Pair,
};
use crate::{agent::Agent, probe::ProbeError};

/// Rounds that may differ.
const ROUNDS: usize = 3;
/// Differences told.
const TOLD: usize = 12;

/// An end's word: the rule, and its number there.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Word {
    rule: Option<RuleName>,
    number: u32,
    allowed: bool,
}

/// What is told of one question.
#[derive(Clone, Debug)]
struct Told {
    allowed: bool,
    egress: Word,
    ingress: Word,
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

/// Asks the agents about every pair on these ports, and everybody everything. How many questions were compared.
pub fn compare(cluster: &Cluster, ports: &[usize]) -> Result<usize> {
    let names = cluster.agents.iter().map(names).collect::<Result<Vec<_>>>()?;
    let told = thread::scope(|scope| {
        let ask = |node: usize| scope.spawn(move || ask_agent(cluster, node, ports));
        let askers: Vec<_> = (0..cluster.agents.len()).map(ask).collect();
        let join = |asker: thread::ScopedJoinHandle<'_, _>| {
            asker.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        };
        askers.into_iter().map(join).collect::<Result<Vec<_>>>()
    })?;
    let mut compared = 0;
    for port in ports {
        let mut expected = BTreeMap::new();
        for pair in Pair::all(false).filter(|pair| pair.port == *port) {
            expected.insert(pair, both(&told, &names, pair).with_context(|| pair.to_string())?);
        }
        let mut round = 1;
        loop {
            let differences = play(cluster, &names, &expected)?;
            match (differences.is_empty(), round < ROUNDS) {
                (true, _) => break,
                (false, true) => round += 1,
                (false, false) => bail!("explain and the packets' fate differ: {}", some(&differences)),
            }
        }
        compared += expected.len();
    }
    Ok(compared)
}

fn names(agent: &Agent) -> Result<PolicyNames> {
    Ok(serde_json::from_str(&agent.told(POLICY_NAMES_PATH)?)?)
}

/// The ways of every pair with an end on this agent's node, by their question.
fn ask_agent(cluster: &Cluster, node: usize, ports: &[usize]) -> Result<BTreeMap<Pair, Way>> {
    let (agent, here) = (&cluster.agents[node], node + 1);
    let mut found = BTreeMap::new();
    for (from, to) in (0..PODS.len()).flat_map(|from| (0..PODS.len()).map(move |to| (from, to))) {
        if from == to || ![plan::node_of(from), plan::node_of(to)].contains(&here) {
            continue;
        }
        let question = Question { from: PODS[from].to_owned(), to: PODS[to].to_owned(), port: None };
        let whole = ask(agent, &question);
        for pair in ports.iter().flat_map(|port| [true, false].map(|ipv4| Pair { from, to, port: *port, ipv4 })) {
            let way = match &whole {
                Ok(answer) => way(answer, pair),
                // A pod that has ended has no address by its name.
                Err(_) => {
                    let [from, to] = [from, to].map(|pod| plan::address(pod, pair.ipv4).to_string());
                    way(&ask(agent, &Question { from, to, port: Some(traffic(pair)) })?, pair)
                }
            };
            found.insert(pair, way.with_context(|| format!("nothing is told of {pair}"))?);
        }
    }
    Ok(found)
}

fn ask(agent: &Agent, question: &Question) -> Result<Answer> {
    Ok(serde_json::from_str(&agent.told(&explain_path(question))?)?)
}

fn way(answer: &Answer, pair: Pair) -> Option<Way> {
    let here = |way: &&Way| way.traffic == traffic(pair) && way.from.address.is_ipv4() == pair.ipv4;
    answer.ways.iter().find(here).cloned()
}

fn traffic(pair: Pair) -> String {
    let (transport, port) = PORTS[pair.port];
    format!("{}/{port}", transport.to_string().to_lowercase())
}

/// What both ends' agents say; an error if they contradict each other or themselves.
fn both(told: &[BTreeMap<Pair, Way>], names: &[PolicyNames], pair: Pair) -> Result<Told> {
    let [sender, receiver] = [pair.from, pair.to].map(|pod| plan::node_of(pod) - 1);
    let at = |node: usize| told[node].get(&pair).context("an agent says nothing");
    let (out, into) = (at(sender)?, at(receiver)?);
    let alike = |one: &End, other: &End| (one.state, &one.rule) == (other.state, &other.rule);
    ensure!(
        alike(&out.egress, &into.egress) && alike(&out.ingress, &into.ingress),
        "two agents contradict each other:\n{out:?}\n{into:?}"
    );
    let egress = word(&out.egress, &names[sender])?;
    Ok(Told { allowed: out.allowed, egress, ingress: word(&into.ingress, &names[receiver])? })
}

/// The rule that is named must be the one that the agent wants to count.
fn word(end: &End, names: &PolicyNames) -> Result<Word> {
    let number = end.wanted.as_ref().map_or(0, |wanted| wanted.rule());
    let counting = names.rules.get(&number);
    let same = match (&end.rule, counting) {
        (Some(rule), Some(counting)) => rule.is_same(counting),
        (None, None) => number == 0,
        _ => false,
    };
    let named = end.rule.as_ref().map_or("no rule".to_owned(), ToString::to_string);
    let counted = names.rule(number);
    ensure!(same, "{}: {named} is named, {counted} is to count", end.direction.name());
    Ok(Word { rule: end.rule.clone(), number, allowed: end.state.passes() })
}

/// One round of these questions; what differs.
fn play(cluster: &Cluster, names: &[PolicyNames], expected: &BTreeMap<Pair, Told>) -> Result<Vec<String>> {
    let before = counts(cluster, names)?;
    let mut questions = Vec::new();
    for from in 0..PODS.len() {
        let pairs = expected.keys().filter(|pair| pair.from == from);
        let probe = |pair: &Pair| Probe::new(PORTS[pair.port].0, plan::socket(pair.to, pair.port, pair.ipv4));
        questions.push((cluster.pod(from)?.ns, pairs.map(probe).collect::<Vec<_>>()));
    }
    let outcomes = ask_everywhere(&questions, cluster.patience.answer);
    let after = counts(cluster, names)?;
    let mut differences = Vec::new();
    // Both are in the order of senders.
    for ((pair, told), outcome) in expected.iter().zip(outcomes.iter().flatten()) {
        if told.allowed != passed(outcome) {
            let outcome = outcome.as_ref().map_or_else(ToString::to_string, |_| "an answer".to_owned());
            differences.push(format!("{pair}: explain says allowed={}, there was: {outcome}\n{told:?}", told.allowed));
        }
    }
    let mut should: BTreeMap<Place, Count> = BTreeMap::new();
    for (pair, told) in expected {
        let [sender, receiver] = [pair.from, pair.to].map(|pod| plan::node_of(pod) - 1);
        count(&mut should, (sender, told.egress.number), &told.egress);
        if told.egress.allowed {
            count(&mut should, (receiver, told.ingress.number), &told.ingress);
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

fn passed(outcome: &Outcome) -> bool {
    // Silence is neither: whoever is refused is told.
    !matches!(outcome, Err(ProbeError::Refused | ProbeError::Unreachable))
}

fn count(should: &mut BTreeMap<Place, Count>, place: Place, word: &Word) {
    // 0: no rule has a say.
    if place.1 != 0 {
        let count = should.entry(place).or_default();
        (count.flows, count.or_more) = (count.flows + 1, count.or_more || !word.allowed);
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
