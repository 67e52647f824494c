//! Plays a scenario: makes its changes, asks everybody, and compares with the truth table.
//!
//! After a change the first round should be right already; rounds go on until one is, or patience ends, and one more
//! has to be right after it. What differs is told pair by pair, with a picture.

use std::{
    collections::BTreeMap,
    fmt::Write as _,
    io::{self, Write as _},
    net::SocketAddr,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};

use super::{
    Cluster, Scenario, Table,
    plan::{self, PODS, PORTS},
    probe::{Outcome, Probe, ask_everywhere},
    table::{Cell, Pair},
    told,
};
use crate::probe::ProbeError;

/// Only scenarios whose name contains this variable's text are played.
const ONLY: &str = "KUBE_ROUTER_TEST_SCENARIO";

/// Long enough for a packet that leaks through a load balancer to be answered.
const SILENCE: Duration = Duration::from_secs(2);

/// Rounds that may differ by lost answers alone.
const SILENT_ROUNDS: usize = 3;

/// How a pod is addressed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Route {
    /// Its own address; a headless service is nothing else: its name resolves to that address.
    Direct,
    ClusterIp,
    /// A node's address, and the port of the pod's service there.
    NodePort(usize),
}

impl Route {
    fn target(self, pair: Pair) -> SocketAddr {
        match self {
            Route::Direct => plan::socket(pair.to, pair.port, pair.ipv4),
            Route::ClusterIp => (plan::cluster_ip(pair.to, pair.ipv4), plan::service_port(pair.port)).into(),
            Route::NodePort(node) => (plan::node_address(node, pair.ipv4), plan::node_port(pair.to, pair.port)).into(),
        }
    }

    /// What is asked through this route, and what may be the outcome.
    ///
    /// A policy is about the pod that answers in the end, whatever address was used. Behind the address of another node
    /// that node may stand in for the client, or for the pod: "it is not defined whether this happens before or after
    /// NetworkPolicy processing". Then nothing may pass that would not pass directly, and more is not asked for.
    fn expected(self, pair: Pair, cell: Cell, any_egress: bool) -> Cell {
        match self {
            Route::Direct if pair.from == pair.to => Cell::Open,
            Route::NodePort(node) if node != plan::node_of(pair.from) => {
                let stands_in = any_egress || node != plan::node_of(pair.to);
                if pair.from == pair.to || (stands_in && cell == Cell::Allowed) { Cell::Open } else { cell }
            }
            _ => cell,
        }
    }
}

/// What is asked in each round.
#[derive(Clone, Debug)]
pub struct Play {
    pub routes: Vec<Route>,
    /// Indices of [`PORTS`].
    pub ports: Vec<usize>,
    /// Refused packets are answered, so that a client learns it at once.
    pub answers: bool,
    /// Each round asks this part of the questions (a fourth, if it is 4), the next round others. 1: everything.
    pub share: usize,
    /// After each step what the agents tell is held against the packets' fate, see [`told`].
    pub explained: bool,
}

/// Figures of one scenario.
#[derive(Clone, Copy, Debug, Default)]
pub struct Report {
    pub rounds: usize,
    pub questions: usize,
    /// Rounds that came too early: the change was not in force everywhere yet.
    pub early: usize,
    /// Refused, and nobody said so.
    pub silent: usize,
    /// Questions whose explanation was held against their fate.
    pub explained: usize,
}

struct Difference {
    route: Route,
    pair: Pair,
    expected: Cell,
    seen: String,
    /// Allowed, and no answer.
    is_silence: bool,
}

impl Play {
    pub fn direct(cluster: &Cluster) -> Play {
        Play { routes: vec![Route::Direct], ports: cluster.ports.clone(), answers: true, share: 1, explained: false }
    }

    /// Plays all of these, tells a line for each, and fails if any did, with all that differs.
    pub fn play_all<'a>(&self, cluster: &mut Cluster, scenarios: impl Iterator<Item = &'a Scenario>) -> Result<()> {
        let only = std::env::var(ONLY).unwrap_or_default();
        let mut failures = Vec::new();
        for scenario in scenarios.filter(|scenario| scenario.name.contains(&only)) {
            let begin = Instant::now();
            let played = self.play(cluster, scenario);
            let (seconds, name) = (begin.elapsed().as_secs_f64(), scenario.name);
            let line = match &played {
                Ok(Report { rounds, questions, early, silent, explained }) => {
                    format!(
                        "ok {seconds:6.2} s {rounds:3} rounds, {early} early; {questions:6} questions, {silent} refused silently, {explained} explained: {name}"
                    )
                }
                Err(error) => format!("WRONG {seconds:6.2} s {name}\n{error:#}"),
            };
            // Past libtest, which keeps what is printed until the end: a machine that is emulated takes minutes.
            let _ = writeln!(io::stderr(), "{line}");
            failures.extend(played.err().map(|error| format!("{error:#}")));
        }
        ensure!(failures.is_empty(), "{} scenarios failed\n{}", failures.len(), failures.join("\n"));
        Ok(())
    }

    /// Steps one after the other, from a cluster as new.
    pub fn play(&self, cluster: &mut Cluster, scenario: &Scenario) -> Result<Report> {
        cluster.objects.reset();
        let mut report = Report::default();
        for (number, step) in scenario.steps.iter().enumerate() {
            let what = || format!("scenario {:?}, step {}", scenario.name, number + 1);
            let truth = Table::parse(step.truth).with_context(what)?;
            cluster.begin_change(step.changes).with_context(what)?;
            self.settle(cluster, &truth, &mut report).with_context(what)?;
            if self.explained {
                report.explained += told::compare(cluster, &self.ports).with_context(what)?;
            }
        }
        Ok(report)
    }

    /// Rounds until one is right, and one more.
    pub fn settle(&self, cluster: &Cluster, truth: &Table, report: &mut Report) -> Result<()> {
        // A change may still be under way.
        let deadline = Instant::now() + cluster.patience.answer * 3;
        let (mut right, mut lost) = (0, 0);
        while right < 2 {
            let differences = self.round(cluster, truth, report)?;
            if differences.is_empty() {
                right += 1;
                continue;
            }
            // A machine that stood still loses answers, but never grants or refuses anything.
            let is_silence = differences.iter().all(|difference| difference.is_silence);
            if right > 0 && !is_silence {
                bail!("was right once, and then not any more: {}", told(&differences, truth));
            }
            let over = if is_silence { lost == SILENT_ROUNDS } else { Instant::now() >= deadline };
            if over {
                bail!("{}", told(&differences, truth));
            }
            lost += usize::from(is_silence);
            right = 0;
            report.early += 1;
        }
        Ok(())
    }

    fn round(&self, cluster: &Cluster, truth: &Table, report: &mut Report) -> Result<Vec<Difference>> {
        let any_egress = cluster.objects.any_egress();
        let mut questions = Vec::new();
        let mut asked = Vec::new();
        for from in 0..PODS.len() {
            let (mut probes, mut cases) = (Vec::new(), Vec::new());
            for pair in Pair::all(true).filter(|pair| pair.from == from && self.ports.contains(&pair.port)) {
                for (number, route) in self.routes.iter().enumerate() {
                    let turn =
                        pair.from + 2 * pair.to + 3 * pair.port + usize::from(pair.ipv4) + number + report.rounds;
                    if !turn.is_multiple_of(self.share) {
                        continue;
                    }
                    let expected = route.expected(pair, truth.cell(pair), any_egress);
                    if expected != Cell::Open {
                        // A refusal through a load balancer may be silent.
                        let at_most = (expected == Cell::Denied && *route != Route::Direct).then_some(SILENCE);
                        probes.push(Probe { at_most, ..Probe::new(PORTS[pair.port].0, route.target(pair)) });
                        cases.push((*route, pair, expected));
                    }
                }
            }
            questions.push((cluster.pod(from)?.ns, probes));
            asked.push(cases);
        }
        let outcomes = ask_everywhere(&questions, cluster.patience.answer);
        report.rounds += 1;
        let mut differences = Vec::new();
        for ((route, pair, expected), outcome) in asked.into_iter().flatten().zip(outcomes.into_iter().flatten()) {
            report.questions += 1;
            let is_silent = expected == Cell::Denied && matches!(outcome, Err(ProbeError::TimedOut));
            report.silent += usize::from(is_silent);
            if let Some(seen) = self.differs(route, pair, expected, &outcome) {
                let is_silence = matches!(outcome, Err(ProbeError::TimedOut));
                differences.push(Difference { route, pair, expected, seen, is_silence });
            }
        }
        Ok(differences)
    }

    fn differs(&self, route: Route, pair: Pair, expected: Cell, outcome: &Outcome) -> Option<String> {
        match (expected, outcome) {
            (Cell::Open, _) => None,
            (Cell::Allowed, Ok(answer)) if answer.name != plan::lab_name(pair.to) => {
                Some(format!("answered by {}", answer.name))
            }
            (Cell::Allowed, Ok(answer)) => {
                let wrong = route == Route::Direct && answer.client != plan::address(pair.from, pair.ipv4);
                wrong.then(|| format!("seen as {}", answer.client))
            }
            (Cell::Denied, Ok(_)) => Some("allowed".into()),
            (Cell::Denied, Err(ProbeError::Refused | ProbeError::Unreachable)) => None,
            // Through a load balancer an answer may get lost on its way back.
            (Cell::Denied, Err(ProbeError::TimedOut)) if route != Route::Direct || !self.answers => None,
            (_, Err(error)) => Some(error.to_string()),
        }
    }
}

/// Differences told in this many lines at most.
const TOLD: usize = 24;

fn told(differences: &[Difference], truth: &Table) -> String {
    let mut text = format!("{} answers differ from the truth table:\n", differences.len());
    for d in differences.iter().take(TOLD) {
        let expected = if d.expected == Cell::Allowed { "allowed" } else { "denied" };
        let _ = writeln!(text, "  {}, {:?}: should be {expected}, was {}", d.pair, d.route, d.seen);
    }
    if differences.len() > TOLD {
        let _ = writeln!(text, "  and {} more", differences.len() - TOLD);
    }
    let mut wrong: BTreeMap<(usize, bool), Vec<Pair>> = BTreeMap::new();
    for d in differences {
        wrong.entry((d.pair.port, d.pair.ipv4)).or_default().push(d.pair);
    }
    // The others are mostly the same.
    for ((port, ipv4), pairs) in wrong.into_iter().take(1) {
        picture(&mut text, port, ipv4, &pairs, truth);
    }
    text
}

/// The table of one port and family: `.` allowed, `x` denied, `?` open; `!` where it was otherwise.
fn picture(text: &mut String, port: usize, ipv4: bool, wrong: &[Pair], truth: &Table) {
    let (transport, number) = PORTS[port];
    let family = if ipv4 { "IPv4" } else { "IPv6" };
    let _ = writeln!(text, "  expected on {transport}/{number} {family} (! differs); rows ask, columns answer");
    let _ = writeln!(text, "        {}", PODS.join(" "));
    for (from, name) in PODS.iter().enumerate() {
        let mark = |to| {
            let pair = Pair { from, to, port, ipv4 };
            let sign = match truth.cell(pair) {
                Cell::Allowed => '.',
                Cell::Denied => 'x',
                Cell::Open => '?',
            };
            format!("{sign}{}", if wrong.contains(&pair) { "! " } else { "  " })
        };
        let row: Vec<String> = (0..PODS.len()).map(mark).collect();
        let _ = writeln!(text, "    {name} {}", row.join(" "));
    }
}
