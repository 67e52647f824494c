//! Many clients for a while: what fails, how long the longest answer took, who answered.

use std::collections::BTreeMap;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use super::{Answer, Connection, sctp_ask, tcp_get, udp_ask};

/// How a question travels.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Transport {
    Tcp,
    Udp,
    Sctp,
    /// One TCP connection for each client, kept for the whole time; a broken one counts once and is made anew.
    KeptTcp,
}

/// What to do.
#[derive(Clone, Debug)]
pub struct LoadSpec {
    pub server: SocketAddr,
    pub transport: Transport,
    /// Clients at work at the same time, each a thread.
    pub clients: usize,
    /// Between a client's questions.
    pub pause: Duration,
    /// It ends by itself after so long.
    pub duration: Duration,
    /// For one question.
    pub timeout: Duration,
}

impl LoadSpec {
    /// Four TCP clients, 20 questions a second each, for at most a minute.
    pub fn new(server: SocketAddr) -> LoadSpec {
        LoadSpec {
            server,
            transport: Transport::Tcp,
            clients: 4,
            pause: Duration::from_millis(50),
            duration: Duration::from_secs(60),
            timeout: super::PATIENCE,
        }
    }
}

/// What came of it.
#[derive(Clone, Debug, Default)]
pub struct LoadReport {
    pub answered: u64,
    pub failed: u64,
    /// Answers by the name of who gave them.
    pub by_name: BTreeMap<String, u64>,
    /// Failures by kind.
    pub errors: BTreeMap<String, u64>,
    /// The longest time to an answer or a failure.
    pub longest: Duration,
}

impl LoadReport {
    fn add(&mut self, result: io::Result<Answer>, took: Duration) {
        self.longest = self.longest.max(took);
        match result {
            Ok(answer) => {
                self.answered += 1;
                *self.by_name.entry(answer.name).or_default() += 1;
            }
            Err(error) => {
                self.failed += 1;
                *self.errors.entry(error.to_string()).or_default() += 1;
            }
        }
    }

    fn merge(&mut self, other: LoadReport) {
        self.answered += other.answered;
        self.failed += other.failed;
        self.longest = self.longest.max(other.longest);
        for (name, count) in other.by_name {
            *self.by_name.entry(name).or_default() += count;
        }
        for (error, count) in other.errors {
            *self.errors.entry(error).or_default() += count;
        }
    }
}

/// Clients at work, until the time is up, or [`Load::stop`], or drop.
#[derive(Debug)]
pub struct Load {
    stop: Arc<AtomicBool>,
    threads: Vec<JoinHandle<LoadReport>>,
}

impl Load {
    /// Starts in the calling thread's namespace.
    pub fn start(spec: &LoadSpec) -> Load {
        let stop = Arc::new(AtomicBool::new(false));
        let client = || {
            let (spec, stop) = (spec.clone(), stop.clone());
            std::thread::spawn(move || client(&spec, &stop))
        };
        let threads = (0..spec.clients).map(|_| client()).collect();
        Load { stop, threads }
    }

    /// Lets the questions under way end, and sums up.
    pub fn stop(mut self) -> LoadReport {
        self.stop.store(true, Ordering::Relaxed);
        self.join()
    }

    /// Waits for the end of the time, and sums up.
    pub fn finish(mut self) -> LoadReport {
        self.join()
    }

    fn join(&mut self) -> LoadReport {
        let mut sum = LoadReport::default();
        for thread in self.threads.drain(..) {
            sum.merge(thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)));
        }
        sum
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}

fn client(spec: &LoadSpec, stop: &AtomicBool) -> LoadReport {
    let mut report = LoadReport::default();
    let mut kept = None;
    let begin = Instant::now();
    while begin.elapsed() < spec.duration && !stop.load(Ordering::Relaxed) {
        let asked = Instant::now();
        let result = match spec.transport {
            Transport::Tcp => tcp_get(spec.server, spec.timeout),
            Transport::Udp => udp_ask(spec.server, spec.timeout),
            Transport::Sctp => sctp_ask(spec.server, spec.timeout),
            Transport::KeptTcp => ask_kept(&mut kept, spec),
        };
        report.add(result, asked.elapsed());
        std::thread::sleep(spec.pause);
    }
    report
}

fn ask_kept(kept: &mut Option<Connection>, spec: &LoadSpec) -> io::Result<Answer> {
    let mut connection = match kept.take() {
        Some(connection) => connection,
        None => Connection::tcp(spec.server, spec.timeout)?,
    };
    let answer = connection.ask()?;
    *kept = Some(connection);
    Ok(answer)
}
