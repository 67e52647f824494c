//! Plays a scenario: makes its changes, asks everybody, and compares with the truth table.
//!
//! After a change the first round should be right already; rounds go on until one is, or patience ends, and one more
//! has to be right after it. What differs is told pair by pair, with a picture.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::Write as _,
    io::{self, Write as _},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};

use super::{
    Cluster, Route, Scenario, Table,
    plan::{self, PODS, PORTS},
    probe::{Outcome, Probe, ask_everywhere},
    route::Sample,
    scenarios,
    table::{Cell, Pair},
    told::{self, Explained},
};
use crate::probe::ProbeError;

/// Only scenarios whose name contains this variable's text are played.
const ONLY: &str = "KUBE_ROUTER_TEST_SCENARIO";

/// Long enough for a packet that leaks through a load balancer to be answered.
pub const SILENCE: Duration = Duration::from_secs(2);

/// Rounds that may differ by lost answers alone.
const SILENT_ROUNDS: usize = 3;

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
    /// Where a scenario begins with that, besides its own number: runs that differ here ask others.
    pub turn: usize,
    /// After each step what the agents tell is held against the packets' fate, see [`told`].
    pub explained: Option<Explained>,
}

/// Figures of one scenario.
#[derive(Clone, Debug, Default)]
pub struct Report {
    pub rounds: usize,
    pub questions: usize,
    /// Different questions, step by step.
    pub asked: usize,
    /// As many there were.
    pub cells: usize,
    /// Rounds that came too early: the change was not in force everywhere yet.
    pub early: usize,
    /// Refused, and nobody said so.
    pub silent: usize,
    /// Questions whose explanation was held against their fate, by what is told of them.
    pub explained: BTreeMap<String, usize>,
}

impl Report {
    fn line(&self) -> String {
        let Report { rounds, questions, asked, cells, early, silent, explained } = self;
        let explained: Vec<String> = explained.iter().map(|(what, count)| format!("{count} {what}")).collect();
        format!(
            "{rounds:3} rounds, {early} early; {questions:6} questions about {asked} of {cells} cells, {silent} refused silently; \
             explained: {}",
            if explained.is_empty() { "none".to_owned() } else { explained.join(", ") }
        )
    }
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
        Play {
            routes: vec![Route::Direct],
            ports: cluster.ports.clone(),
            answers: true,
            share: 1,
            turn: 0,
            explained: None,
        }
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
                Ok(report) => format!("ok {seconds:6.2} s {}: {name}", report.line()),
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
        let begin = self.turn + scenarios::number(scenario);
        for (number, step) in scenario.steps.iter().enumerate() {
            let what = || format!("scenario {:?}, step {}", scenario.name, number + 1);
            let truth = Table::parse(step.truth).with_context(what)?;
            cluster.begin_change(step.changes).with_context(what)?;
            self.settle_from(begin, cluster, &truth, &mut report).with_context(what)?;
            if let Some(explained) = &self.explained {
                let turn = begin + report.rounds;
                told::compare(cluster, explained, &self.ports, turn, &mut report.explained).with_context(what)?;
            }
        }
        Ok(report)
    }

    /// Rounds until one is right, and one more.
    pub fn settle(&self, cluster: &Cluster, truth: &Table, report: &mut Report) -> Result<()> {
        self.settle_from(self.turn, cluster, truth, report)
    }

    fn settle_from(&self, begin: usize, cluster: &Cluster, truth: &Table, report: &mut Report) -> Result<()> {
        let mut asked = BTreeSet::new();
        // A change may still be under way.
        let deadline = Instant::now() + cluster.patience.answer * 3;
        let (mut right, mut lost) = (0, 0);
        while right < 2 {
            let sample = Sample { share: self.share, turn: begin + report.rounds };
            let differences = self.round(cluster, truth, sample, &mut asked, report)?;
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
        report.asked += asked.len();
        report.cells += self.cells(cluster, truth).count();
        Ok(())
    }

    /// Whatever the table has a word for: place of the route, route, pair, what is expected.
    fn cells(&self, cluster: &Cluster, truth: &Table) -> impl Iterator<Item = (usize, Route, Pair, Cell)> {
        let pairs = Pair::all(true).filter(|pair| self.ports.contains(&pair.port));
        let all =
            pairs.flat_map(|pair| self.routes.iter().enumerate().map(move |(place, route)| (place, *route, pair)));
        let judged = all.map(|(place, route, pair)| {
            let expected = route.expected(pair, truth.cell(pair), &cluster.objects);
            (place, route, pair, expected)
        });
        judged.filter(|(.., expected)| *expected != Cell::Open)
    }

    fn round(
        &self,
        cluster: &Cluster,
        truth: &Table,
        sample: Sample,
        known: &mut BTreeSet<(Route, Pair)>,
        report: &mut Report,
    ) -> Result<Vec<Difference>> {
        let mut questions = Vec::new();
        let mut asked = Vec::new();
        for from in 0..PODS.len() {
            let (mut probes, mut cases) = (Vec::new(), Vec::new());
            let cells = self.cells(cluster, truth).filter(|(.., pair, _)| pair.from == from);
            for (_, route, pair, expected) in cells.filter(|(place, _, pair, _)| sample.takes(*pair, *place)) {
                // A refusal through a load balancer may be silent.
                let at_most = (expected == Cell::Denied && route.is_balanced()).then_some(SILENCE);
                probes.push(Probe { at_most, ..Probe::new(PORTS[pair.port].0, route.target(pair)) });
                cases.push((route, pair, expected));
                known.insert((route, pair));
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
                let wrong = !route.is_balanced() && answer.client != plan::address(pair.from, pair.ipv4);
                wrong.then(|| format!("seen as {}", answer.client))
            }
            (Cell::Denied, Ok(_)) => Some("allowed".into()),
            (Cell::Denied, Err(ProbeError::Refused | ProbeError::Unreachable)) => None,
            // Through a load balancer an answer may get lost on its way back.
            (Cell::Denied, Err(ProbeError::TimedOut)) if route.is_balanced() || !self.answers => None,
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
