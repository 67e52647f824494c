//! What `/healthz` and `/readyz` mean: two judgements over the [`Pulse`], pure apart from what is shared there.
//!
//! Healthy has one meaning: the reconcile loop is alive. It waits for events, or it is busy and made progress in the
//! last [`PROGRESS_WITHIN`]. It does not mean that syncs succeed (that is metrics) nor that the API server answers (a
//! restart would not help): a long sync or an API outage must never get the agent killed.
//! Ready means that the first full sync is through; until then the answer says what is missing, and from then on what the
//! node cannot do.

use std::{
    fmt,
    sync::{
        Arc, PoisonError,
        atomic::Ordering::{Acquire, Release},
    },
    time::Duration,
};

use super::Pulse;
use crate::{
    compile::{Problem, Subject},
    objects::Kind,
};

/// A busy loop must show progress (one object, one batch of kernel orders) this often. One netlink batch takes
/// milliseconds, so a minute without any is not load but a hang.
pub const PROGRESS_WITHIN: Duration = Duration::from_secs(60);

/// Lines below the answer of a ready node.
const MOST_NOTES: usize = 10;

/// Is the loop alive.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Health {
    Alive,
    /// Busy without progress for this long.
    Stuck(Duration),
    /// The loop has ended without being asked to.
    Dead,
}

/// Did the first full sync go through.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Readiness {
    Ready,
    /// The first full lists of these kinds are not through.
    WaitingFor(Vec<Kind>),
    /// All lists are there; the first sync with the kernel is not done, or a part of the kernel failed as a whole. An
    /// order that is refused is a problem of its service, not of the node.
    Syncing,
}

impl fmt::Display for Readiness {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Readiness::Ready => f.write_str("OK"),
            Readiness::WaitingFor(kinds) => {
                let kinds: Vec<_> = kinds.iter().map(Kind::to_string).collect();
                write!(f, "waiting for the first full list of {}", kinds.join(", "))
            }
            Readiness::Syncing => f.write_str("the first full sync is not through yet"),
        }
    }
}

impl Pulse {
    /// The loop begins to wait for events.
    pub fn rest(&self) {
        self.idle.store(true, Release);
    }

    /// The loop woke up, or got a step further. `now_ms` is the process clock ([`crate::sys::clock::uptime_ms`]).
    pub fn progress(&self, now_ms: u64) {
        // In this order: whoever sees "not idle" also sees this time.
        self.progress_ms.store(now_ms, Release);
        self.idle.store(false, Release);
    }

    /// The first full sync is through. Never taken back.
    pub fn set_ready(&self) {
        self.ready.store(true, Release);
    }

    /// What of the node's own work cannot be done: full tables, a kernel that refuses. Such a node is ready all the same, as
    /// whatever works goes on working; the answer says what does not. Holds the first [`MOST_NOTES`].
    pub fn set_notes<'a>(&self, problems: impl Iterator<Item = &'a Problem>) {
        let own = problems.filter(|problem| matches!(problem.subject, Subject::Kernel(_)));
        let lines = own.take(MOST_NOTES).map(Problem::to_string).collect();
        *self.notes.lock().unwrap_or_else(PoisonError::into_inner) = lines;
    }

    pub fn notes(&self) -> Vec<String> {
        self.notes.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// From now on `kind` counts for readiness. Call it for every kind before the sources start.
    pub fn watch(&self, kind: Kind) {
        self.watched.fetch_or(bit(kind), Release);
    }

    /// The first full list of `kind` is through (`RelistDone`). Never taken back.
    pub fn set_complete(&self, kind: Kind) {
        self.complete.fetch_or(bit(kind), Release);
    }

    /// Every watched kind, and whether its full list is through.
    pub fn watches(&self) -> impl Iterator<Item = (Kind, bool)> {
        let (watched, complete) = (self.watched.load(Acquire), self.complete.load(Acquire));
        Kind::ALL
            .into_iter()
            .filter(move |kind| watched & bit(*kind) != 0)
            .map(move |kind| (kind, complete & bit(kind) != 0))
    }

    /// Marks the loop dead when the returned guard is dropped, unless [`Vigil::end`] was called: so a panic is seen.
    pub fn vigil(self: &Arc<Self>) -> Vigil {
        Vigil(Some(Arc::clone(self)))
    }

    pub fn health(&self, now_ms: u64) -> Health {
        if self.dead.load(Acquire) {
            return Health::Dead;
        }
        if self.idle.load(Acquire) {
            return Health::Alive;
        }
        // A beat may carry a later time than the one this reader took before.
        let silent = Duration::from_millis(now_ms.saturating_sub(self.progress_ms.load(Acquire)));
        if silent <= PROGRESS_WITHIN { Health::Alive } else { Health::Stuck(silent) }
    }

    pub fn readiness(&self) -> Readiness {
        if self.ready.load(Acquire) {
            return Readiness::Ready;
        }
        let missing: Vec<_> = self.watches().filter(|(_, complete)| !complete).map(|(kind, _)| kind).collect();
        if missing.is_empty() { Readiness::Syncing } else { Readiness::WaitingFor(missing) }
    }
}

/// `Kind` has seven members, so eight bits hold them.
fn bit(kind: Kind) -> u8 {
    1 << kind as u8
}

/// Held by the reconcile loop for as long as it runs; see [`Pulse::vigil`].
#[derive(Debug)]
pub struct Vigil(Option<Arc<Pulse>>);

impl Vigil {
    /// The loop ends because it was told to.
    pub fn end(mut self) {
        self.0 = None;
    }
}

impl Drop for Vigil {
    fn drop(&mut self) {
        if let Some(pulse) = &self.0 {
            pulse.dead.store(true, Release);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::objects::ObjectKey;

    const LIMIT_MS: u64 = PROGRESS_WITHIN.as_millis() as u64;

    #[test]
    fn alive_means_idle_or_busy_with_progress() {
        let pulse = Pulse::default();
        // Before the loop starts the process has its first minute.
        assert_eq!(pulse.health(LIMIT_MS), Health::Alive);
        assert_eq!(pulse.health(LIMIT_MS + 1), Health::Stuck(PROGRESS_WITHIN + Duration::from_millis(1)));
        pulse.rest();
        assert_eq!(pulse.health(100 * LIMIT_MS), Health::Alive);
        pulse.progress(100 * LIMIT_MS);
        assert_eq!(pulse.health(101 * LIMIT_MS), Health::Alive);
        assert!(matches!(pulse.health(101 * LIMIT_MS + 1), Health::Stuck(_)));
        pulse.progress(101 * LIMIT_MS);
        assert_eq!(pulse.health(101 * LIMIT_MS + 1), Health::Alive);
        // A reader whose clock reading is older than the beat.
        assert_eq!(pulse.health(0), Health::Alive);
    }

    #[test]
    fn a_panic_is_death_and_an_ordered_end_is_not() {
        let pulse = Arc::new(Pulse::default());
        pulse.vigil().end();
        pulse.rest();
        assert_eq!(pulse.health(0), Health::Alive);
        let inner = Arc::clone(&pulse);
        let outcome = std::thread::spawn(move || {
            let _vigil = inner.vigil();
            inner.progress(0);
            panic!("on purpose");
        })
        .join();
        assert!(outcome.is_err());
        assert_eq!(pulse.health(0), Health::Dead);
    }

    #[test]
    fn readiness_says_what_is_missing() {
        let pulse = Pulse::default();
        pulse.watch(Kind::Service);
        pulse.watch(Kind::EndpointSlice);
        pulse.watch(Kind::Node);
        pulse.set_complete(Kind::Node);
        assert_eq!(pulse.readiness().to_string(), "waiting for the first full list of Service, EndpointSlice");
        pulse.set_complete(Kind::Service);
        pulse.set_complete(Kind::EndpointSlice);
        assert_eq!(pulse.readiness(), Readiness::Syncing);
        pulse.set_ready();
        assert_eq!(pulse.readiness(), Readiness::Ready);
        let problem = |subject, text: &str| Problem { subject, reason: "PolicyTableFull", text: text.into() };
        let user = Subject::Object(Kind::NetworkPolicy, ObjectKey::new("a", "b"));
        pulse.set_notes([problem(Subject::Kernel("policy"), "full"), problem(user, "bad")].iter());
        assert_eq!(pulse.notes(), ["policy: full (PolicyTableFull)"], "what users wrote is not the node's trouble");
        pulse.set_notes([].iter());
        assert!(pulse.notes().is_empty());
        assert_eq!(pulse.watches().filter(|(_, complete)| *complete).count(), 3);
    }
}
