//! A crowd of clients that asks without pause, to see whether a change costs anybody an answer.

use std::{
    collections::BTreeMap,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use super::{Answer, Kept, ProbeError, Question, Transport};

/// First failures that are told one by one; the rest is a number.
const TOLD: usize = 10;

/// A client that just failed pauses this long: a refused port would otherwise be asked a hundred thousand times.
const AFTER_FAILURE: Duration = Duration::from_millis(5);

#[derive(Clone, Copy, Debug)]
pub struct LoadSpec {
    pub question: Question,
    /// Clients that ask at the same time, one question each.
    pub clients: usize,
    /// `true`: one connection per client, opened anew after a failure. `false`: one per question.
    pub kept: bool,
    /// Pause of a client between two questions.
    pub pause: Duration,
}

impl LoadSpec {
    pub fn new(question: Question, clients: usize) -> LoadSpec {
        LoadSpec { question, clients, kept: false, pause: Duration::ZERO }
    }

    pub fn kept(mut self) -> LoadSpec {
        self.kept = true;
        self
    }

    pub fn pause(mut self, pause: Duration) -> LoadSpec {
        self.pause = pause;
        self
    }

    /// Asks for `duration` and reports.
    pub fn run(self, duration: Duration) -> LoadReport {
        let load = Load::start(self);
        thread::sleep(duration);
        load.stop()
    }
}

/// What became of the questions.
#[derive(Clone, Debug, Default)]
pub struct LoadReport {
    pub answered: u64,
    pub failed: u64,
    /// Answers by name of the pod.
    pub by_name: BTreeMap<String, u64>,
    /// The first failures, with the time since the start.
    pub first_failures: Vec<(Duration, String)>,
    /// Longest wait for an answer that came.
    pub slowest: Duration,
}

impl LoadReport {
    fn add(&mut self, other: LoadReport) {
        self.answered += other.answered;
        self.failed += other.failed;
        for (name, count) in other.by_name {
            *self.by_name.entry(name).or_default() += count;
        }
        self.first_failures.extend(other.first_failures);
        self.first_failures.sort();
        self.first_failures.truncate(TOLD);
        self.slowest = self.slowest.max(other.slowest);
    }
}

/// A load in progress. Its clients live in the network namespace of the thread that started it.
pub struct Load {
    stop: Arc<AtomicBool>,
    clients: Vec<JoinHandle<LoadReport>>,
}

impl Load {
    pub fn start(spec: LoadSpec) -> Load {
        let stop = Arc::new(AtomicBool::new(false));
        let start = Instant::now();
        let client = |_| {
            let stop = stop.clone();
            thread::spawn(move || client(spec, start, &stop))
        };
        let clients = (0..spec.clients).map(client).collect();
        Load { stop, clients }
    }

    /// Lets every client finish its question, and adds up.
    pub fn stop(mut self) -> LoadReport {
        self.stop.store(true, Ordering::Relaxed);
        let mut report = LoadReport::default();
        for client in self.clients.drain(..) {
            report.add(client.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)));
        }
        report
    }
}

impl Drop for Load {
    /// A load that nobody stopped ends by itself.
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
    }
}

fn client(spec: LoadSpec, start: Instant, stop: &AtomicBool) -> LoadReport {
    let mut report = LoadReport::default();
    let mut connection = None;
    while !stop.load(Ordering::Relaxed) {
        let asked = Instant::now();
        let result = if spec.kept { ask_kept(&mut connection, spec.question) } else { spec.question.ask() };
        match result {
            Ok(answer) => {
                report.answered += 1;
                report.slowest = report.slowest.max(asked.elapsed());
                *report.by_name.entry(answer.name).or_default() += 1;
            }
            Err(error) => {
                report.failed += 1;
                if report.first_failures.len() < TOLD {
                    report.first_failures.push((start.elapsed(), error.to_string()));
                }
                thread::sleep(AFTER_FAILURE);
            }
        }
        if !spec.pause.is_zero() {
            thread::sleep(spec.pause);
        }
    }
    report
}

fn ask_kept(connection: &mut Option<Kept>, question: Question) -> Result<Answer, ProbeError> {
    let mut kept = match connection.take() {
        Some(kept) => kept,
        None => Kept::open_from(question.transport, question.address, question.from, question.timeout)?,
    };
    let answer = match question.transport {
        Transport::Tcp => kept.get(),
        Transport::Udp | Transport::Sctp => kept.ask(),
    }?;
    *connection = Some(kept);
    Ok(answer)
}
