//! Standing problems as Events of a real kube-apiserver.
//!
//! `KUBE_ROUTER_TEST_KUBECONFIG` names an administrator's kubeconfig, `KUBE_ROUTER_TEST_AGENT_KUBECONFIG` one of a user
//! without any rights.

use std::{env, path::PathBuf, time::Duration};

use k8s_openapi::api::{
    core::v1::{Namespace, Node, Service},
    events::v1::Event,
};
use kube::{
    Api, Client,
    api::{ListParams, PostParams},
};
use kube_router::{
    compile::{Problem, Subject},
    objects::{Kind, ObjectKey},
    observe::{
        Query, Questions,
        events::{self, Events},
    },
    watch::kube::client_config,
};
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use tokio::{
    sync::watch,
    time::{Instant, sleep},
};

/// Only a failing test waits this long.
const PATIENCE: Duration = Duration::from_secs(60);

fn variable(name: &str) -> PathBuf {
    env::var(name).unwrap_or_else(|_| panic!("{name} is not set, see the head of this file")).into()
}

fn object<T: DeserializeOwned>(value: Value) -> T {
    serde_json::from_value(value).unwrap()
}

fn problem(subject: Subject, text: &str) -> Problem {
    Problem { subject, reason: "InvalidExternalIP", text: text.into() }
}

/// An agent's loop whose problems are these, and what tells them.
fn agent(kubeconfig: &str, node: &str, standing: Vec<Problem>) -> watch::Sender<u64> {
    let (questions, mut queries) = Questions::channel();
    let (changes, changed) = watch::channel(1);
    tokio::spawn(async move {
        while let Some(query) = queries.recv().await {
            let Query::Problems(reply) = query else { panic!("another question") };
            let _ = reply.send(standing.clone());
        }
    });
    let events = Events { kubeconfig: Some(variable(kubeconfig)), master: None, node: node.into() };
    tokio::spawn(events::run(events, questions, changed));
    changes
}

async fn events_in(client: &Client, namespace: &str) -> Vec<Event> {
    let events: Api<Event> = Api::namespaced(client.clone(), namespace);
    let all = events.list(&ListParams::default()).await.unwrap().items;
    all.into_iter().filter(|event| event.reporting_controller.as_deref() == Some("kube-router")).collect()
}

async fn until(client: &Client, namespace: &str, count: usize) -> Vec<Event> {
    let began = Instant::now();
    loop {
        let events = events_in(client, namespace).await;
        if events.len() >= count {
            return events;
        }
        assert!(began.elapsed() < PATIENCE, "{count} Events are expected in {namespace}, there are {events:#?}");
        sleep(Duration::from_millis(200)).await;
    }
}

#[tokio::test]
#[ignore = "needs kube-apiserver: cargo xtask test --tier 5 --filter kube_events"]
async fn problems_are_told_once_for_all_nodes_on_the_objects_they_are_about() {
    let client = Client::try_from(client_config(Some(&variable("KUBE_ROUTER_TEST_KUBECONFIG")), None).await.unwrap());
    let client = client.unwrap();
    let parameters = PostParams::default();
    let namespace: Namespace = object(json!({"metadata": {"name": "told"}}));
    Api::all(client.clone()).create(&parameters, &namespace).await.unwrap();
    let node: Node = object(json!({"metadata": {"name": "node-that-tells"}}));
    Api::all(client.clone()).create(&parameters, &node).await.unwrap();
    let service: Service = object(json!({"metadata": {"name": "web"}, "spec": {"ports": [{"port": 80}]}}));
    let service = Api::namespaced(client.clone(), "told").create(&parameters, &service).await.unwrap();

    let about = |name: &str| Subject::Object(Kind::Service, ObjectKey::new("told", name));
    let standing = vec![
        problem(about("web"), "127.0.0.1 is no external IP"),
        problem(about("gone"), "of an object that is not there"),
        problem(Subject::Kernel("ipvs"), "refused"),
    ];
    // Whoever may not says nothing, and that stops nobody.
    let _mute = agent("KUBE_ROUTER_TEST_AGENT_KUBECONFIG", "mute", standing.clone());
    let _one = agent("KUBE_ROUTER_TEST_KUBECONFIG", "node-that-tells", standing.clone());
    let told = until(&client, "told", 1).await;
    let on_nodes = until(&client, "default", 1).await;
    let _other = agent("KUBE_ROUTER_TEST_KUBECONFIG", "another", standing[..2].to_vec());
    sleep(Duration::from_secs(5)).await;
    assert_eq!(events_in(&client, "told").await, told);

    let [event] = &told[..] else { panic!("{told:#?}") };
    let regarding = event.regarding.clone().unwrap();
    assert_eq!((regarding.kind.as_deref(), regarding.name.as_deref()), (Some("Service"), Some("web")));
    assert_eq!(regarding.uid, service.metadata.uid, "kubectl describe asks for the uid");
    assert_eq!(event.reason.as_deref(), Some("InvalidExternalIP"));
    assert_eq!(event.note.as_deref(), Some("127.0.0.1 is no external IP"));
    assert_eq!(
        (event.type_.as_deref(), event.reporting_instance.as_deref()),
        (Some("Warning"), Some("node-that-tells"))
    );
    let [event] = &on_nodes[..] else { panic!("{on_nodes:#?}") };
    assert_eq!(event.regarding.as_ref().unwrap().name.as_deref(), Some("node-that-tells"));
    assert_eq!(event.note.as_deref(), Some("refused"));
}
