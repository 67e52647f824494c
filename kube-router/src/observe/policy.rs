//! Questions about network policy: asked over the status socket, answered by the loop, which alone knows the objects.
//!
//! The loop calls [`PolicyQuery::answer`] with its view of the cluster; the records of the programs it hands to
//! [`PolicyQuestions::monitor`].

use std::time::Duration;

use tokio::sync::{mpsc, oneshot};

use super::{
    monitor::Broadcaster,
    questions::{NoAnswer, QUEUE, ask},
};
use crate::{
    cluster::ClusterState,
    explain::{Answer, Here, PolicyNames, Question, Refusal, answer_explain},
    objects::Object,
};

/// For the loop.
#[derive(Debug)]
pub enum PolicyQuery {
    Explain(Question, oneshot::Sender<Result<Answer, Refusal>>),
    /// What the numbers in the kernel's tables stand for.
    Names(oneshot::Sender<PolicyNames>),
    /// All objects that policy is about.
    Objects(oneshot::Sender<Vec<Object>>),
}

impl PolicyQuery {
    /// Answers it; a person who went away meanwhile is no error.
    pub fn answer(self, cluster: &ClusterState, here: Here<'_>) {
        match self {
            PolicyQuery::Explain(question, reply) => drop(reply.send(answer_explain(cluster, here, &question))),
            PolicyQuery::Names(reply) => drop(reply.send(here.compiler.map(PolicyNames::of).unwrap_or_default())),
            PolicyQuery::Objects(reply) => drop(reply.send(objects(cluster))),
        }
    }
}

fn objects(cluster: &ClusterState) -> Vec<Object> {
    let slices = |service| cluster.slices_of(service).cloned().map(Object::EndpointSlice);
    let mut objects: Vec<Object> = cluster.namespaces().cloned().map(Object::Namespace).collect();
    objects.extend(cluster.pods().cloned().map(Object::Pod));
    objects.extend(cluster.policies().cloned().map(Object::NetworkPolicy));
    objects.extend(cluster.cluster_policies().cloned().map(Object::ClusterNetworkPolicy));
    objects.extend(cluster.services().flat_map(|service| slices(&service.key)));
    objects.extend(cluster.services().cloned().map(Object::Service));
    objects
}

/// The asking end, and who passes records on. Cheap to clone.
#[derive(Clone, Debug)]
pub struct PolicyQuestions {
    queries: mpsc::Sender<PolicyQuery>,
    monitor: Broadcaster,
}

impl PolicyQuestions {
    /// The asking end, and the answering end for the loop.
    pub fn channel() -> (PolicyQuestions, mpsc::Receiver<PolicyQuery>) {
        let (queries, receiver) = mpsc::channel(QUEUE);
        (PolicyQuestions { queries, monitor: Broadcaster::default() }, receiver)
    }

    /// Where the loop publishes the programs' records.
    pub fn monitor(&self) -> &Broadcaster {
        &self.monitor
    }

    pub async fn explain(&self, question: Question, wait: Duration) -> Result<Result<Answer, Refusal>, NoAnswer> {
        ask(&self.queries, wait, |reply| PolicyQuery::Explain(question, reply)).await
    }

    pub async fn names(&self, wait: Duration) -> Result<PolicyNames, NoAnswer> {
        ask(&self.queries, wait, PolicyQuery::Names).await
    }

    pub async fn objects(&self, wait: Duration) -> Result<Vec<Object>, NoAnswer> {
        ask(&self.queries, wait, PolicyQuery::Objects).await
    }
}
