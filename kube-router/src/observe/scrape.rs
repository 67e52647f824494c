//! One scrape: collect what the different owners know, bounded in time, and write it as Prometheus text.
//!
//! A scrape never fails because one owner is slow: it goes without that part and counts the omission. Scrapes take
//! turns, so a kernel that does not answer holds one worker thread and not one per scrape.

use std::{
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

use prometheus::TextEncoder;
use tokio::{sync::Semaphore, task::spawn_blocking, time::timeout};
use tracing::{debug, warn};

use super::{
    Metrics, Pulse, Questions, StatsSource,
    metrics::ScrapePart,
    policy_metrics::{self, PolicyRows},
    traffic::Traffic,
};
use crate::{desired::VirtualKey, objects::ObjectKey};

/// How long a scrape waits for the reconcile loop to name our services.
pub const SERVICES_WAIT: Duration = Duration::from_secs(2);
/// How long a scrape waits for its turn and for everything else; Prometheus itself gives up after 10 s by default.
const SCRAPE_WAIT: Duration = Duration::from_secs(8);

#[derive(Debug, thiserror::Error)]
pub enum ScrapeError {
    /// Ask again later.
    #[error("another scrape is still running, or the kernel does not answer")]
    Busy,
    /// The text could not be made.
    #[error("the metrics could not be written: {0}")]
    Encode(#[from] prometheus::Error),
    #[error("collecting the metrics ended in a panic")]
    Panicked,
}

/// The kernel's counts, and whether reading them failed last time (said once, then counted only).
struct Kernel {
    source: Mutex<Box<dyn StatsSource>>,
    failing: AtomicBool,
}

/// Counters and sizes of the tables of network policy.
pub trait PolicySource: Send {
    /// # Errors
    /// Why they cannot be read, for the log.
    fn read(&mut self) -> Result<PolicyRows, String>;
}

/// The answer to one scrape.
pub struct Scrape {
    /// The agent's own numbers.
    own: String,
    traffic: Option<Traffic>,
}

impl Scrape {
    /// The text, piece by piece.
    pub fn pieces(self) -> impl Iterator<Item = String> + Send + 'static {
        std::iter::once(self.own).chain(self.traffic.into_iter().flat_map(Traffic::pieces))
    }
}

/// Everything one scrape needs.
pub struct Scraper {
    metrics: Arc<Metrics>,
    pulse: Arc<Pulse>,
    questions: Questions,
    /// `None`: the service proxy does not run.
    stats: Option<Arc<Kernel>>,
    /// `None`: no network policy.
    policy: Option<Arc<Mutex<Box<dyn PolicySource>>>>,
    turn: Arc<Semaphore>,
}

impl Scraper {
    pub fn new(
        metrics: Arc<Metrics>,
        pulse: Arc<Pulse>,
        questions: Questions,
        stats: Option<Box<dyn StatsSource>>,
        policy: Option<Box<dyn PolicySource>>,
    ) -> Scraper {
        let stats =
            stats.map(|source| Arc::new(Kernel { source: Mutex::new(source), failing: AtomicBool::new(false) }));
        let policy = policy.map(|source| Arc::new(Mutex::new(source)));
        Scraper { metrics, pulse, questions, stats, policy, turn: Arc::new(Semaphore::new(1)) }
    }

    /// What the text will say, in the exposition format 0.0.4.
    pub async fn scrape(&self) -> Result<Scrape, ScrapeError> {
        let _in_flight = InFlight::new(&self.metrics);
        let outcome = timeout(SCRAPE_WAIT, self.in_turn()).await.unwrap_or(Err(ScrapeError::Busy));
        self.metrics.scrape_answered(match &outcome {
            Ok(_) => 200,
            Err(ScrapeError::Busy) => 503,
            Err(_) => 500,
        });
        outcome
    }

    async fn in_turn(&self) -> Result<Scrape, ScrapeError> {
        // Never closed; and the work below keeps the turn even when this future is dropped.
        let turn = Arc::clone(&self.turn).acquire_owned().await.map_err(|_| ScrapeError::Busy)?;
        let services = match &self.stats {
            None => None,
            Some(kernel) => match self.questions.owners(SERVICES_WAIT).await {
                Ok(owners) => Some((Arc::clone(kernel), owners)),
                Err(reason) => {
                    debug!(%reason, "metrics without per-service numbers");
                    self.metrics.scrape_failed(ScrapePart::Services);
                    None
                }
            },
        };
        let policy = match &self.policy {
            None => None,
            Some(source) => {
                let asked = match self.questions.policy() {
                    Ok(policy) => policy.names(SERVICES_WAIT).await,
                    Err(reason) => Err(reason),
                };
                // Without names the numbers are added up under empty labels.
                Some((Arc::clone(source), asked.unwrap_or_default()))
            }
        };
        let (metrics, pulse) = (Arc::clone(&self.metrics), Arc::clone(&self.pulse));
        let work = spawn_blocking(move || {
            let _turn = turn;
            let traffic = services.and_then(|(kernel, owners)| kernel.traffic(&metrics, owners));
            metrics.set_watches(&pulse);
            let mut own = String::new();
            let mut families = metrics.gather();
            if let Some((source, names)) = policy {
                match source.lock().unwrap_or_else(PoisonError::into_inner).read() {
                    Ok(rows) => families.extend(policy_metrics::families(&rows, &names)?),
                    Err(error) => {
                        debug!(error, "metrics without those of network policy");
                        metrics.scrape_failed(ScrapePart::Kernel);
                    }
                }
            }
            TextEncoder::new().encode_utf8(&families, &mut own)?;
            Ok(Scrape { own, traffic })
        });
        work.await.map_err(|_| ScrapeError::Panicked)?
    }
}

/// Counts a scrape for as long as it is held: a client that goes away drops the scrape in the middle.
struct InFlight<'a>(&'a Metrics);

impl<'a> InFlight<'a> {
    fn new(metrics: &'a Metrics) -> Self {
        metrics.requests_in_flight.inc();
        InFlight(metrics)
    }
}

impl Drop for InFlight<'_> {
    fn drop(&mut self) {
        self.0.requests_in_flight.dec();
    }
}

impl Kernel {
    fn traffic(&self, metrics: &Metrics, owners: Vec<(VirtualKey, ObjectKey)>) -> Option<Traffic> {
        let start = Instant::now();
        // A source that panicked once may work again.
        let stats = self.source.lock().unwrap_or_else(PoisonError::into_inner).server_stats();
        match stats {
            Ok(stats) => {
                let traffic = Traffic::new(owners, &stats);
                metrics.exported(start.elapsed());
                self.failing.store(false, Relaxed);
                Some(traffic)
            }
            Err(error) => {
                if !self.failing.swap(true, Relaxed) {
                    warn!(%error, "metrics go without per-service numbers");
                }
                metrics.scrape_failed(ScrapePart::Kernel);
                None
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_scrape_that_nobody_waits_for_any_more_is_not_in_flight() {
        let metrics = Arc::new(Metrics::new(false));
        let (questions, _loop) = Questions::channel();
        let scraper = Scraper::new(Arc::clone(&metrics), Arc::default(), questions, None, None);
        let _turn = Arc::clone(&scraper.turn).acquire_owned().await;
        timeout(Duration::from_millis(10), scraper.scrape()).await.map(|_| ()).unwrap_err();
        assert_eq!(metrics.requests_in_flight.get(), 0);
    }
}
