//! Asking the reconcile loop, and not waiting for ever.
//!
//! The loop answers between two steps of its work. The queue is bounded, and one deadline covers both the place in
//! the queue and the answer, so a stuck loop costs every asker the same known time and no memory.

use std::time::Duration;

use tokio::{
    sync::{mpsc, oneshot},
    time::timeout,
};

use super::{PolicyQuestions, ProblemRow, Query, ServiceRow};
use crate::{compile::Problem, desired::VirtualKey, objects::ObjectKey};

/// Questions that may wait for the loop: the askers are one scrape at a time and a handful of people.
pub const QUEUE: usize = 16;

/// Why there is no answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NoAnswer {
    /// Ask again later.
    #[error("the reconcile loop is busy and did not answer within {} s", .0.as_secs())]
    Late(Duration),
    /// The loop has ended; only a restart helps.
    #[error("the reconcile loop has ended")]
    Gone,
    /// This agent runs without what was asked about.
    #[error("this agent does not run network policy: it was started with --run-firewall=false")]
    NoPolicy,
}

/// The asking end. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Questions {
    queries: mpsc::Sender<Query>,
    policy: Option<PolicyQuestions>,
}

impl Questions {
    /// The asking end, and the answering end for the reconcile loop.
    pub fn channel() -> (Questions, mpsc::Receiver<Query>) {
        let (sender, receiver) = mpsc::channel(QUEUE);
        (Questions { queries: sender, policy: None }, receiver)
    }

    /// Network policy runs and answers too.
    pub fn with_policy(self, policy: PolicyQuestions) -> Questions {
        Questions { policy: Some(policy), ..self }
    }

    pub fn policy(&self) -> Result<&PolicyQuestions, NoAnswer> {
        self.policy.as_ref().ok_or(NoAnswer::NoPolicy)
    }

    /// Every virtual server we want.
    pub async fn services(&self, wait: Duration) -> Result<Vec<ServiceRow>, NoAnswer> {
        self.ask(wait, Query::Services).await
    }

    /// Every virtual server we want, with its Service: what a scrape needs, without the destinations.
    pub async fn owners(&self, wait: Duration) -> Result<Vec<(VirtualKey, ObjectKey)>, NoAnswer> {
        self.ask(wait, Query::Owners).await
    }

    /// Every standing problem, for people.
    pub async fn problems(&self, wait: Duration) -> Result<Vec<ProblemRow>, NoAnswer> {
        Ok(self.standing(wait).await?.into_iter().map(ProblemRow::from).collect())
    }

    /// Every standing problem.
    pub async fn standing(&self, wait: Duration) -> Result<Vec<Problem>, NoAnswer> {
        self.ask(wait, Query::Problems).await
    }

    async fn ask<T>(&self, wait: Duration, query: impl FnOnce(oneshot::Sender<T>) -> Query) -> Result<T, NoAnswer> {
        ask(&self.queries, wait, query).await
    }
}

pub(super) async fn ask<Q, T>(
    queries: &mpsc::Sender<Q>,
    wait: Duration,
    query: impl FnOnce(oneshot::Sender<T>) -> Q,
) -> Result<T, NoAnswer> {
    let exchange = async {
        let (sender, answer) = oneshot::channel();
        queries.send(query(sender)).await.map_err(|_| NoAnswer::Gone)?;
        answer.await.map_err(|_| NoAnswer::Gone)
    };
    timeout(wait, exchange).await.unwrap_or(Err(NoAnswer::Late(wait)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{compile::Subject, objects::Kind};

    #[tokio::test]
    async fn a_stuck_loop_costs_the_deadline_and_a_dead_one_nothing() {
        let wait = Duration::from_millis(10);
        let (questions, receiver) = Questions::channel();
        // Twice the queue: neither a full queue nor a missing answer holds anybody longer than the deadline.
        for _ in 0..2 * QUEUE {
            let start = tokio::time::Instant::now();
            assert_eq!(questions.services(wait).await, Err(NoAnswer::Late(wait)));
            assert!((wait..100 * wait).contains(&start.elapsed()), "{:?}", start.elapsed());
        }
        drop(receiver);
        assert_eq!(questions.services(wait).await, Err(NoAnswer::Gone));
    }

    #[tokio::test]
    async fn problems_come_as_rows() {
        let (questions, mut receiver) = Questions::channel();
        let answering = tokio::spawn(async move {
            let Some(Query::Problems(sender)) = receiver.recv().await else { panic!("another question") };
            let subject = Subject::Object(Kind::Service, ObjectKey::new("a", "b"));
            sender.send(vec![Problem { subject, reason: "BadIP", text: "no".into() }]).unwrap();
        });
        let rows = questions.problems(Duration::from_secs(2)).await.unwrap();
        assert_eq!(rows, [ProblemRow { subject: "Service a/b".into(), reason: "BadIP".into(), text: "no".into() }]);
        answering.await.unwrap();
    }
}
