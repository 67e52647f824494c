//! What the agents tell of a question: `explain` on the nodes of both ends, asked as a person would for this route.
//!
//! | Route | `--to` | `--port` |
//! |---|---|---|
//! | direct | the pod's name; its address where it has ended | the pod's |
//! | headless | the headless service's name | the same |
//! | cluster IP | the cluster IP | the service's |
//! | node port | that node's address | the node port |
//!
//! Both must tell the same of the two ends, and each knows the number that a rule of its own pod has on its node.

use std::{collections::BTreeMap, net::SocketAddr, thread};

use anyhow::{Context, Result, bail, ensure};
use kube_router::{
    explain::{Answer, PolicyNames, Question, RuleName, answer::End, answer::Way},
    observe::socket::explain_path,
};

use super::{
    Cluster, Route,
    plan::{self, PODS, PORTS},
    services,
    table::Pair,
};

pub type Case = (Route, Pair);

/// An end's word: the rule, and its number there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Word {
    pub rule: Option<RuleName>,
    pub number: u32,
    pub allowed: bool,
}

/// What is told of one question.
#[derive(Clone, Debug)]
pub struct Told {
    pub allowed: bool,
    pub egress: Word,
    pub ingress: Word,
}

/// Asks the agents about all of these. `whole`: about all ports of a pair at once, which is less work where most are asked.
pub fn ask(cluster: &Cluster, names: &[PolicyNames], cases: &[Case], whole: bool) -> Result<BTreeMap<Case, Told>> {
    let told = thread::scope(|scope| {
        let ask = |node: usize| scope.spawn(move || ask_agent(cluster, node, cases, whole));
        let askers: Vec<_> = (0..cluster.agents.len()).map(ask).collect();
        let join = |asker: thread::ScopedJoinHandle<'_, _>| {
            asker.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        };
        askers.into_iter().map(join).collect::<Result<Vec<_>>>()
    })?;
    let both = |case: &Case| Ok((*case, both(&told, names, *case).with_context(|| said(*case))?));
    cases.iter().map(both).collect()
}

pub fn said((route, pair): Case) -> String {
    format!("{pair}, {route:?}")
}

/// The ways of all cases with an end on this agent's node.
fn ask_agent(cluster: &Cluster, node: usize, cases: &[Case], whole: bool) -> Result<BTreeMap<Case, Way>> {
    let (agent, here) = (&cluster.agents[node], node + 1);
    let mut answers: BTreeMap<(String, String, Option<String>), Answer> = BTreeMap::new();
    let mut found = BTreeMap::new();
    for (route, pair) in cases.iter().copied() {
        if ![plan::node_of(pair.from), plan::node_of(pair.to)].contains(&here) {
            continue;
        }
        let question = question(cluster, route, pair, whole);
        let key = (question.from.clone(), question.to.clone(), question.port.clone());
        let answer = match answers.get(&key) {
            Some(answer) => answer,
            None => {
                let answer = serde_json::from_str(&agent.told(&explain_path(&question))?)?;
                answers.entry(key).or_insert(answer)
            }
        };
        let way = way(answer, route, pair).with_context(|| format!("nothing is told of {}", said((route, pair))))?;
        ensure!(way.via.is_some() == route.is_service(), "{}: through a service? {way:?}", said((route, pair)));
        found.insert((route, pair), way);
    }
    Ok(found)
}

fn question(cluster: &Cluster, route: Route, pair: Pair, whole: bool) -> Question {
    // A pod that has ended has no address by its name.
    let by_name = |pod: usize| match cluster.objects.has_ended(pod) {
        true => plan::address(pod, pair.ipv4).to_string(),
        false => PODS[pod].to_owned(),
    };
    let target = route.target(pair);
    let (to, port) = match route {
        Route::Direct => (by_name(pair.to), PORTS[pair.port].1),
        Route::Headless => (format!("svc/default/{}", services::headless_name(pair.to)), PORTS[pair.port].1),
        Route::ClusterIp | Route::NodePort(_) => (target.ip().to_string(), target.port()),
    };
    // An address alone is asked about for one port.
    let alone = [pair.from, pair.to].iter().any(|pod| cluster.objects.has_ended(*pod)) || route.is_balanced();
    let port = (!whole || alone).then(|| format!("{}/{port}", transport(pair)));
    Question { from: by_name(pair.from), to, port }
}

fn transport(pair: Pair) -> String {
    PORTS[pair.port].0.to_string().to_lowercase()
}

/// At another node's port the sender is judged on its way to that node, the receiver behind it.
fn way(answer: &Answer, route: Route, pair: Pair) -> Option<Way> {
    let from = plan::address(pair.from, pair.ipv4);
    let find = |to: SocketAddr| {
        let traffic = format!("{}/{}", transport(pair), to.port());
        let ends = [from, to.ip()];
        answer.ways.iter().find(|way| way.traffic == traffic && [way.from.address, way.to.address] == ends).cloned()
    };
    let last = find(plan::socket(pair.to, pair.port, pair.ipv4))?;
    match route {
        Route::NodePort(node) if node != plan::node_of(pair.from) => {
            let Some(first) = find(route.target(pair)) else {
                // Who is no pod (any more) is judged by nobody on its way there.
                return last.from.pod.is_none().then_some(last);
            };
            Some(Way { allowed: first.allowed && last.allowed, egress: first.egress, ..last })
        }
        _ => Some(last),
    }
}

/// What both ends' agents say; an error if they contradict each other or themselves.
fn both(told: &[BTreeMap<Case, Way>], names: &[PolicyNames], case: Case) -> Result<Told> {
    let [sender, receiver] = [case.1.from, case.1.to].map(|pod| plan::node_of(pod) - 1);
    let at = |node: usize| told[node].get(&case).context("an agent says nothing");
    let (out, into) = (at(sender)?, at(receiver)?);
    let alike = |one: &End, other: &End| (one.state, &one.rule) == (other.state, &other.rule);
    if !alike(&out.egress, &into.egress) || !alike(&out.ingress, &into.ingress) {
        bail!("two agents contradict each other:\n{out:?}\n{into:?}");
    }
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
