//! One problem as one Event of `events.k8s.io/v1`.
//!
//! The object is asked for first: `kubectl describe` finds Events by the object's uid, which problems do not carry, and an
//! object that is gone needs no Event.

use std::{
    hash::{DefaultHasher, Hash, Hasher},
    time::Duration,
};

use http::{Request, header::ACCEPT};
use kube::{Client, Config};
use serde_json::{Value, json};
use tokio::time::timeout;

use crate::{
    compile::{Problem, Subject},
    objects::{Kind, ObjectKey},
};

const ANSWER_TIMEOUT: Duration = Duration::from_secs(30);
/// Longest note that the API takes, in bytes.
const NOTE_BYTES: usize = 1_024;
/// Of the object's name in the Event's name; names end at 253 bytes.
const NAME_BYTES: usize = 200;
/// Where Events about objects without a namespace live.
const CLUSTER_NAMESPACE: &str = "default";
const CONTROLLER: &str = "kube-router";
const METADATA_ONLY: &str = "application/json;as=PartialObjectMetadata;g=meta.k8s.io;v=1,application/json";

pub(super) enum Outcome {
    /// It is there; perhaps another node was first.
    Said,
    NoObject,
    Forbidden(String),
    Failed(String),
}

/// The server, and who we are.
pub(super) struct Api {
    client: Client,
    node: String,
}

/// The object that an Event is about.
#[derive(Debug, PartialEq)]
struct Regarding {
    api_version: String,
    kind: Kind,
    key: ObjectKey,
    uid: String,
}

impl Api {
    pub(super) fn new(config: Config, node: &str) -> Result<Self, kube::Error> {
        Ok(Api { client: Client::try_from(config)?, node: node.to_owned() })
    }

    /// Tells it. What is about no object is told of the Node.
    pub(super) async fn say(&self, problem: &Problem) -> Outcome {
        let (kind, key) = match &problem.subject {
            Subject::Object(kind, key) => (*kind, key.clone()),
            Subject::Kernel(_) | Subject::Watch(_) | Subject::Input(_) => {
                (Kind::Node, ObjectKey::cluster(self.node.as_str()))
            }
        };
        match self.tell(problem, kind, &key).await {
            Ok(outcome) => outcome,
            Err(kube::Error::Api(status)) if status.code == 409 => Outcome::Said,
            Err(kube::Error::Api(status)) if status.code == 403 => Outcome::Forbidden(status.message),
            Err(error) => Outcome::Failed(error.to_string()),
        }
    }

    async fn tell(&self, problem: &Problem, kind: Kind, key: &ObjectKey) -> Result<Outcome, kube::Error> {
        let Some(regarding) = self.regarding(kind, key).await? else { return Ok(Outcome::NoObject) };
        let event = event(problem, &regarding, &self.node);
        let path = format!("/apis/events.k8s.io/v1/namespaces/{}/events", namespace(key));
        let request =
            Request::post(path).header("content-type", "application/json").body(event.to_string().into_bytes());
        self.request(request).await.map(|_| Outcome::Said)
    }

    /// In whichever version the server has it.
    async fn regarding(&self, kind: Kind, key: &ObjectKey) -> Result<Option<Regarding>, kube::Error> {
        for version in kind.versions() {
            let request = Request::get(path(kind, version, key)).header(ACCEPT, METADATA_ONLY).body(Vec::new());
            match self.request(request).await {
                Ok(found) => {
                    let (group, _) = kind.group_and_resource();
                    let api_version = if group.is_empty() { (*version).into() } else { format!("{group}/{version}") };
                    let uid = found["metadata"]["uid"].as_str().unwrap_or_default().to_owned();
                    return Ok(Some(Regarding { api_version, kind, key: key.clone(), uid }));
                }
                Err(kube::Error::Api(status)) if status.code == 404 => {}
                Err(error) => return Err(error),
            }
        }
        Ok(None)
    }

    async fn request(&self, request: http::Result<Request<Vec<u8>>>) -> Result<Value, kube::Error> {
        let request = request.map_err(kube::Error::HttpError)?;
        match timeout(ANSWER_TIMEOUT, self.client.request(request)).await {
            Ok(answer) => answer,
            Err(late) => Err(kube::Error::Service(Box::new(late))),
        }
    }
}

fn namespace(key: &ObjectKey) -> &str {
    if key.namespace.is_empty() { CLUSTER_NAMESPACE } else { &key.namespace }
}

fn path(kind: Kind, version: &str, key: &ObjectKey) -> String {
    let (group, resource) = kind.group_and_resource();
    let root = if group.is_empty() { format!("/api/{version}") } else { format!("/apis/{group}/{version}") };
    match key.namespace.is_empty() {
        true => format!("{root}/{resource}/{}", key.name),
        false => format!("{root}/namespaces/{}/{resource}/{}", key.namespace, key.name),
    }
}

fn event(problem: &Problem, regarding: &Regarding, node: &str) -> Value {
    let Regarding { api_version, kind, key, uid } = regarding;
    let mut about = json!({"apiVersion": api_version, "kind": kind.to_string(), "name": *key.name, "uid": uid});
    if !key.namespace.is_empty() {
        about["namespace"] = json!(*key.namespace);
    }
    json!({
        "apiVersion": "events.k8s.io/v1",
        "kind": "Event",
        "metadata": {"namespace": namespace(key), "name": name(problem, regarding)},
        "regarding": about,
        "type": "Warning",
        "reason": problem.reason,
        "note": cut(&problem.text, NOTE_BYTES),
        "action": "Reconcile",
        "eventTime": now(),
        "reportingController": CONTROLLER,
        "reportingInstance": node,
    })
}

/// The same on every node that says the same of the same object.
fn name(problem: &Problem, regarding: &Regarding) -> String {
    let mut hasher = DefaultHasher::new();
    (problem.reason, &problem.text, &regarding.uid).hash(&mut hasher);
    let name = cut(&regarding.key.name, NAME_BYTES).trim_end_matches(['.', '-', '…']).to_owned();
    format!("{name}.{:016x}", hasher.finish())
}

/// At most so many bytes, and whole characters.
fn cut(text: &str, most: usize) -> String {
    const MORE: char = '…';
    if text.len() <= most {
        return text.to_owned();
    }
    let end = (0..=most - MORE.len_utf8()).rev().find(|end| text.is_char_boundary(*end)).unwrap_or(0);
    format!("{}{MORE}", &text[..end])
}

/// As the API's MicroTime wants it.
fn now() -> String {
    k8s_openapi::jiff::Timestamp::now().strftime("%Y-%m-%dT%H:%M:%S.%6fZ").to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn policy(name: &str) -> Regarding {
        let key = ObjectKey::new("a", name);
        Regarding { api_version: "networking.k8s.io/v1".into(), kind: Kind::NetworkPolicy, key, uid: "u1".into() }
    }

    fn problem(text: &str) -> Problem {
        let subject = Subject::Object(Kind::NetworkPolicy, ObjectKey::new("a", "x"));
        Problem { subject, reason: "InvalidPort", text: text.into() }
    }

    #[test]
    fn the_name_says_what_is_said_of_whom_and_not_by_whom() {
        let first = event(&problem("no"), &policy("x"), "n1");
        let second = event(&problem("no"), &policy("x"), "n2");
        assert_eq!(first["metadata"], second["metadata"]);
        assert_ne!(first["reportingInstance"], second["reportingInstance"]);
        assert_ne!(name(&problem("no"), &policy("x")), name(&problem("yes"), &policy("x")));
        let later = Regarding { uid: "u2".into(), ..policy("x") };
        assert_ne!(name(&problem("no"), &policy("x")), name(&problem("no"), &later));
    }

    #[test]
    fn the_api_s_limits_are_kept() {
        let long = policy(&format!("{}.{}", "x".repeat(196), "y".repeat(56)));
        let event = event(&problem(&"é".repeat(2_000)), &long, "n1");
        assert!(event["note"].as_str().is_some_and(|note| note.len() <= NOTE_BYTES && note.ends_with("é…")));
        let name = event["metadata"]["name"].as_str().unwrap();
        assert!(name.len() <= 253 && !name.contains("..") && name.is_ascii(), "{name}");
    }

    #[test]
    fn paths() {
        let key = ObjectKey::new("a", "x");
        assert_eq!(path(Kind::Service, "v1", &key), "/api/v1/namespaces/a/services/x");
        assert_eq!(path(Kind::Node, "v1", &ObjectKey::cluster("n1")), "/api/v1/nodes/n1");
        let wanted = "/apis/networking.k8s.io/v1/namespaces/a/networkpolicies/x";
        assert_eq!(path(Kind::NetworkPolicy, "v1", &key), wanted);
    }
}
