//! The API server source against a real kube-apiserver.
//!
//! `KUBE_ROUTER_TEST_KUBECONFIG` names an administrator's kubeconfig, `KUBE_ROUTER_TEST_AGENT_KUBECONFIG` one of a
//! user without any rights. `KUBE_ROUTER_TEST_APISERVER_{STOP,START,EXPIRE}` are shell commands that stop and start
//! the server, and that make every older resourceVersion invalid (compact etcd, restart the server).
//!
//! ```sh
//! cargo test -p kube-router --test kube_api -- --ignored
//! ```

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    env,
    path::{Path, PathBuf},
    process::Command,
    sync::{Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use k8s_openapi::{
    NamespaceResourceScope,
    api::{
        core::v1::{Namespace, Node, Pod, Service},
        discovery::v1::EndpointSlice,
        networking::v1::NetworkPolicy,
    },
};
use kube::{
    Api, Client, Resource,
    api::{DeleteParams, Patch, PatchParams, PostParams},
};
use kube_router::{
    config::Source,
    objects::{Kind, Object, ObjectEvent, ObjectKey},
    watch,
};
use serde::{Serialize, de::DeserializeOwned};
use serde_json::{Value, json};
use tokio::{sync::mpsc, time::timeout};

/// Only a failing test waits this long. Retries of a source wait up to 30 s.
const PATIENCE: Duration = Duration::from_secs(90);

/// The server is stopped by some tests, so they take turns.
static SERVER: Mutex<()> = Mutex::new(());

fn variable(name: &str) -> String {
    env::var(name).unwrap_or_else(|_| panic!("{name} is not set, see the head of this file"))
}

fn admin() -> PathBuf {
    variable("KUBE_ROUTER_TEST_KUBECONFIG").into()
}

fn server(action: &str) {
    let command = variable(&format!("KUBE_ROUTER_TEST_APISERVER_{action}"));
    let status = Command::new("sh").args(["-c", &command]).status().unwrap();
    assert!(status.success(), "{command}: {status}");
}

/// The server is stopped. It is back for the other tests even where this one fails.
struct Outage;

impl Outage {
    fn begin() -> Self {
        server("STOP");
        Self
    }

    fn end(self) {}
}

impl Drop for Outage {
    fn drop(&mut self) {
        server("START");
    }
}

/// What a receiver knows that follows the events.
struct Follower {
    events: mpsc::Receiver<ObjectEvent>,
    objects: BTreeMap<(Kind, ObjectKey), Object>,
    complete: BTreeSet<Kind>,
    lists: BTreeMap<Kind, usize>,
    mentioned: BTreeMap<Kind, BTreeSet<ObjectKey>>,
    unavailable: BTreeMap<Kind, String>,
    rejected: BTreeMap<String, String>,
}

impl Follower {
    async fn next(&mut self, what: &str) {
        let event = timeout(PATIENCE, self.events.recv())
            .await
            .unwrap_or_else(|_| panic!("no event while waiting for: {what}; unavailable: {:?}", self.unavailable));
        match event.expect("the source lives") {
            ObjectEvent::RelistStarted(kind) => {
                self.mentioned.insert(kind, BTreeSet::new());
                self.unavailable.remove(&kind);
            }
            ObjectEvent::Applied(object) => {
                let (kind, key) = (object.kind(), object.key().clone());
                if let Some(mentioned) = self.mentioned.get_mut(&kind) {
                    mentioned.insert(key.clone());
                }
                self.objects.insert((kind, key), object);
            }
            ObjectEvent::Deleted(kind, key) => {
                self.objects.remove(&(kind, key));
            }
            ObjectEvent::Kept(kind, key) => {
                if let Some(mentioned) = self.mentioned.get_mut(&kind) {
                    mentioned.insert(key);
                }
            }
            ObjectEvent::RelistDone(kind) => {
                let mentioned = self.mentioned.remove(&kind).expect("a list that was started");
                self.objects.retain(|(other, key), _| *other != kind || mentioned.contains(key));
                self.complete.insert(kind);
                *self.lists.entry(kind).or_default() += 1;
            }
            ObjectEvent::Unavailable { kind, reason } => {
                println!("unavailable: {reason}");
                assert_eq!(self.unavailable.insert(kind, reason.clone()), None, "{kind} said twice: {reason}");
            }
            ObjectEvent::Rejected { source, reason } => {
                self.rejected.insert(source, reason);
            }
            ObjectEvent::Accepted { source } => {
                self.rejected.remove(&source);
            }
        }
    }

    async fn until(&mut self, what: &str, condition: impl Fn(&Follower) -> bool) {
        let began = Instant::now();
        while !condition(self) {
            assert!(began.elapsed() < PATIENCE, "waited in vain for: {what}");
            self.next(what).await;
        }
        println!("{what}: {:.1} s", began.elapsed().as_secs_f64());
    }

    async fn complete(&mut self) {
        self.until("all kinds are listed", |f| f.complete.len() == Kind::ALL.len()).await;
    }

    /// Follows for a while in which nothing particular is expected.
    async fn drain(&mut self, time: Duration) {
        let end = tokio::time::Instant::now() + time;
        while tokio::time::timeout_at(end, self.next("draining")).await.is_ok() {}
    }

    fn get(&self, kind: Kind, namespace: &str, name: &str) -> Option<&Object> {
        self.objects.get(&(kind, ObjectKey::new(namespace, name)))
    }

    fn slice_node(&self, name: &str) -> Option<String> {
        match self.get(Kind::EndpointSlice, "default", name)? {
            Object::EndpointSlice(slice) => slice.endpoints[0].node.as_deref().map(ToOwned::to_owned),
            other => panic!("{other:?}"),
        }
    }
}

fn with_client<F: AsyncFnOnce(Client)>(test: F) {
    let _turn: MutexGuard<'_, ()> = SERVER.lock().unwrap_or_else(PoisonError::into_inner);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let config = watch::kube::client_config(Some(&admin()), None).await.unwrap();
        test(Client::try_from(config).unwrap()).await;
    });
}

fn with_source<F: AsyncFnOnce(&mut Follower, Client)>(source: Source, test: F) {
    with_client(async |client| {
        let (sink, events) = mpsc::channel(64);
        let mut follower = Follower {
            events,
            objects: BTreeMap::new(),
            complete: BTreeSet::new(),
            lists: BTreeMap::new(),
            mentioned: BTreeMap::new(),
            unavailable: BTreeMap::new(),
            rejected: BTreeMap::new(),
        };
        tokio::select! {
            result = watch::run(&source, sink) => panic!("the source ended: {result:?}"),
            () = test(&mut follower, client) => {}
        }
    });
}

fn kubernetes(kubeconfig: &Path) -> Source {
    Source::Kubernetes { kubeconfig: Some(kubeconfig.to_owned()), master: None }
}

fn name(what: &str) -> String {
    format!("kr-{what}-{}", std::process::id())
}

async fn create<K: Resource + Clone + std::fmt::Debug + DeserializeOwned + Serialize>(api: &Api<K>, object: Value) {
    api.create(&PostParams::default(), &serde_json::from_value(object).unwrap()).await.unwrap();
}

async fn delete<K: Resource + Clone + std::fmt::Debug + DeserializeOwned>(api: &Api<K>, name: &str) {
    api.delete(name, &DeleteParams::default().grace_period(0)).await.unwrap();
}

async fn patch<K: Resource + Clone + std::fmt::Debug + DeserializeOwned>(api: &Api<K>, name: &str, patch: Value) {
    api.patch(name, &PatchParams::default(), &Patch::Merge(patch)).await.unwrap();
}

fn default<K: Resource<DynamicType = (), Scope = NamespaceResourceScope>>(client: &Client) -> Api<K> {
    Api::namespaced(client.clone(), "default")
}

fn slice(name: &str, node: &str) -> Value {
    json!({
        "metadata": {"name": name, "labels": {"kubernetes.io/service-name": "web"}}, "addressType": "IPv4",
        "ports": [{"name": "http", "port": 8080}],
        "endpoints": [{"addresses": ["10.1.2.3"], "nodeName": node, "conditions": {"ready": true}}],
    })
}

#[test]
#[ignore = "needs a kube-apiserver: see the head of this file"]
fn every_kind_is_listed_watched_updated_and_deleted() {
    with_source(kubernetes(&admin()), async |follower, client| {
        let (one, node_name, space) = (name("one"), name("node"), name("space"));
        let (services, pods, policies): (Api<Service>, Api<Pod>, Api<NetworkPolicy>) =
            (default(&client), default(&client), default(&client));
        let slices: Api<EndpointSlice> = default(&client);
        let (nodes, namespaces): (Api<Node>, Api<Namespace>) = (Api::all(client.clone()), Api::all(client));

        // Before the watches begin, so that the list has it.
        create(&services, json!({"metadata": {"name": &one}, "spec": {"ports": [{"port": 80}]}})).await;
        follower.complete().await;
        let Some(Object::Service(service)) = follower.get(Kind::Service, "default", &one) else { panic!() };
        assert_eq!((service.cluster_ips.len(), service.ports[0].port), (1, 80));
        assert!(service.created_s > 1_700_000_000, "{}", service.created_s);
        assert!(follower.get(Kind::Service, "default", "kubernetes").is_some());
        assert!(follower.get(Kind::Namespace, "", "default").is_some());

        create(&slices, slice(&one, "n1")).await;
        create(&nodes, json!({"metadata": {"name": &node_name}, "spec": {"podCIDR": "10.244.7.0/24"}})).await;
        create(&namespaces, json!({"metadata": {"name": &space, "labels": {"team": "a"}}})).await;
        create(&policies, json!({"metadata": {"name": &one}, "spec": {"podSelector": {}}})).await;
        let spec = json!({"nodeName": &node_name, "containers": [{"name": "c", "image": "x"}]});
        create(&pods, json!({"metadata": {"name": &one, "labels": {"app": "x"}}, "spec": spec})).await;
        let everything = [
            (Kind::EndpointSlice, "default", &one),
            (Kind::Node, "", &node_name),
            (Kind::Namespace, "", &space),
            (Kind::NetworkPolicy, "default", &one),
            (Kind::Pod, "default", &one),
        ];
        follower.until("created", |f| everything.iter().all(|(kind, ns, n)| f.get(*kind, ns, n).is_some())).await;

        patch(&services, &one, json!({"spec": {"ports": [{"port": 81}], "sessionAffinity": "ClientIP"}})).await;
        let status = json!({"status": {"phase": "Running", "podIPs": [{"ip": "10.244.7.9"}], "podIP": "10.244.7.9"}});
        pods.patch_status(&one, &PatchParams::default(), &Patch::Merge(status)).await.unwrap();
        let status = json!({"status": {"addresses": [{"type": "InternalIP", "address": "192.0.2.7"}]}});
        nodes.patch_status(&node_name, &PatchParams::default(), &Patch::Merge(status)).await.unwrap();
        follower
            .until("updated", |f| {
                matches!(f.get(Kind::Service, "default", &one), Some(Object::Service(s)) if s.ports[0].port == 81
                    && s.affinity_timeout_s == Some(10_800))
                    && matches!(f.get(Kind::Pod, "default", &one), Some(Object::Pod(p)) if p.ips.len() == 1
                        && p.node.as_deref() == Some(&node_name) && p.grace_period_s == Some(30))
                    && matches!(f.get(Kind::Node, "", &node_name), Some(Object::Node(n)) if n.internal_ips.len() == 1
                        && n.pod_cidrs.len() == 1)
            })
            .await;

        delete(&services, &one).await;
        delete(&slices, &one).await;
        delete(&policies, &one).await;
        delete(&pods, &one).await;
        delete(&nodes, &node_name).await;
        follower
            .until("deleted", |f| {
                let left = |(kind, ns, n): &(Kind, &str, &String)| f.get(*kind, ns, n).is_some();
                // The namespace needs a controller to go.
                !everything.iter().filter(|(kind, ..)| *kind != Kind::Namespace).any(left)
                    && f.get(Kind::Service, "default", &one).is_none()
            })
            .await;
        assert!(follower.rejected.is_empty() && follower.unavailable.is_empty());
    });
}

/// More objects than a page holds.
#[test]
#[ignore = "needs a kube-apiserver: see the head of this file"]
fn a_list_of_several_pages() {
    const COUNT: usize = 1_150;
    let of_this_test = |f: &Follower, prefix: &str| {
        f.objects.keys().filter(|(kind, key)| *kind == Kind::EndpointSlice && key.name.starts_with(prefix)).count()
    };
    let prefix = name("page");
    with_source(kubernetes(&admin()), async |follower, client| {
        let slices: Api<EndpointSlice> = default(&client);
        for chunk in (0..COUNT).collect::<Vec<_>>().chunks(50) {
            let requests = chunk.iter().map(|i| {
                let object = slice(&format!("{prefix}-{i}"), "n1");
                let slices = &slices;
                async move { create(slices, object).await }
            });
            futures::future::join_all(requests).await;
        }
        follower.complete().await;
        follower.until("all are known", |f| of_this_test(f, &prefix) == COUNT).await;
    });
    // A second source has them from its list alone.
    with_source(kubernetes(&admin()), async |follower, client| {
        follower.complete().await;
        assert_eq!(of_this_test(follower, &prefix), COUNT);
        let slices: Api<EndpointSlice> = default(&client);
        for chunk in (0..COUNT).collect::<Vec<_>>().chunks(50) {
            let requests = chunk.iter().map(|i| {
                let (slices, name) = (&slices, format!("{prefix}-{i}"));
                async move { delete(slices, &name).await }
            });
            futures::future::join_all(requests).await;
        }
        follower.until("all are gone", |f| of_this_test(f, &prefix) == 0).await;
    });
}

#[test]
#[ignore = "needs a kube-apiserver that can be stopped: see the head of this file"]
fn a_short_outage_is_survived_in_silence() {
    with_source(kubernetes(&admin()), async |follower, client| {
        let slices: Api<EndpointSlice> = default(&client);
        let one = name("short");
        create(&slices, slice(&one, "before")).await;
        follower.complete().await;
        follower.until("known", |f| f.slice_node(&one).is_some()).await;
        Outage::begin().end();
        let mut object = slice(&one, "after");
        object["metadata"] = json!({});
        // The server needs a moment; this client has no retries for refused connections.
        let began = Instant::now();
        while slices.patch(&one, &PatchParams::default(), &Patch::Merge(&object)).await.is_err() {
            assert!(began.elapsed() < PATIENCE);
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        follower.until("changed", |f| f.slice_node(&one).as_deref() == Some("after")).await;
        println!("lists: {:?}, unavailable: {:?}", follower.lists, follower.unavailable);
        assert!(follower.unavailable.is_empty());
        delete(&slices, &one).await;
        follower.until("deleted", |f| f.slice_node(&one).is_none()).await;
    });
}

#[test]
#[ignore = "needs a kube-apiserver that can be stopped: see the head of this file"]
fn a_long_outage_is_announced_once_and_ends_with_a_list() {
    with_source(kubernetes(&admin()), async |follower, _| {
        follower.complete().await;
        let known = follower.objects.clone();
        let outage = Outage::begin();
        // A resource that this server lacks is not watched, only asked for again at long intervals.
        let served = |kind: &Kind| !kind.is_custom();
        let all =
            |f: &Follower| Kind::ALL.iter().filter(|kind| served(kind)).all(|kind| f.unavailable.contains_key(kind));
        follower.until("announced", all).await;
        for (kind, reason) in &follower.unavailable {
            assert!(reason.contains("cannot be reached"), "{kind}: {reason}");
        }
        // `next` fails if a kind is announced twice.
        follower.drain(Duration::from_secs(5)).await;
        assert_eq!(follower.objects, known, "nothing is forgotten");
        outage.end();
        let listed_again = |f: &Follower| f.lists.iter().filter(|(kind, _)| served(kind)).all(|(_, lists)| *lists == 2);
        follower.until("back", |f| f.unavailable.is_empty() && listed_again(f)).await;
    });
}

#[test]
#[ignore = "needs a kube-apiserver whose history can be dropped: see the head of this file"]
fn an_expired_version_leads_to_a_new_list() {
    with_source(kubernetes(&admin()), async |follower, client| {
        let slices: Api<EndpointSlice> = default(&client);
        let one = name("expired");
        follower.complete().await;
        // The versions we hold must be older than the compaction.
        create(&slices, slice(&one, "n1")).await;
        follower.until("known", |f| f.slice_node(&one).is_some()).await;
        server("EXPIRE");
        follower.until("listed again", |f| f.lists.values().any(|lists| *lists > 1)).await;
        println!("lists: {:?}", follower.lists);
        delete(&slices, &one).await;
        follower.until("alive", |f| f.slice_node(&one).is_none()).await;
    });
}

#[test]
#[ignore = "needs a kube-apiserver with RBAC: see the head of this file"]
fn a_user_without_rights_is_told_what_to_grant() {
    let agent = variable("KUBE_ROUTER_TEST_AGENT_KUBECONFIG");
    with_source(kubernetes(Path::new(&agent)), async |follower, _| {
        // This server has no custom resources, which anybody may see.
        let custom: BTreeSet<Kind> = Kind::ALL.into_iter().filter(|kind| kind.is_custom()).collect();
        let all = |f: &Follower| f.unavailable.len() + custom.len() == Kind::ALL.len() && f.complete == custom;
        follower.until("announced", all).await;
        for (kind, reason) in &follower.unavailable {
            let (_, resource) = kind.group_and_resource();
            for word in ["403", "list", "watch", "ClusterRole", resource] {
                assert!(reason.contains(word), "{kind}: {word} is not in: {reason}");
            }
        }
        follower.drain(Duration::from_secs(5)).await;
        assert_eq!(follower.complete, custom);
    });
}

/// A kubeconfig like the administrator's with one value replaced.
fn altered(directory: &Path, pointer: &str, value: &str) -> PathBuf {
    let text = std::fs::read_to_string(admin()).unwrap();
    let mut config: Value = serde_saphyr::from_str(&text).unwrap();
    *config.pointer_mut(pointer).unwrap_or_else(|| panic!("the test kubeconfig has no {pointer}")) = value.into();
    let path = directory.join("kubeconfig");
    // JSON is YAML.
    std::fs::write(&path, config.to_string()).unwrap();
    path
}

#[test]
#[ignore = "needs a kube-apiserver: see the head of this file"]
fn wrong_credentials_and_a_wrong_authority_are_told_apart() {
    let directory = tempfile::tempdir().unwrap();
    let path = altered(directory.path(), "/users/0/user/token", "wrong");
    with_source(kubernetes(&path), async |follower, _| {
        follower.until("announced", |f| f.unavailable.len() == Kind::ALL.len()).await;
        assert!(follower.unavailable.values().all(|reason| reason.contains("401")), "{:?}", follower.unavailable);
    });

    // A valid certificate, but nobody's authority here.
    let ca = directory.path().join("other-ca.crt");
    let made = Command::new("openssl")
        .args(["req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "1"])
        .args(["-subj", "/CN=other", "-keyout", "/dev/null", "-out"])
        .arg(&ca)
        .output()
        .unwrap();
    assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
    let path = altered(directory.path(), "/clusters/0/cluster/certificate-authority", ca.to_str().unwrap());
    with_source(kubernetes(&path), async |follower, _| {
        follower.until("announced", |f| f.unavailable.len() == Kind::ALL.len()).await;
        for reason in follower.unavailable.values() {
            assert!(reason.contains("certificate"), "{reason}");
        }
    });
}

/// Objects of each kind in the memory test; a slice has ten endpoints.
const LARGE: usize = 10_000;
/// Heap of a process that follows and keeps them all, at its highest. The whole agent may use 64 MB.
const HEAP_MAX_KB: u64 = 40 * 1024;
/// Set in the environment of the process that follows.
const FOLLOWER: &str = "KUBE_ROUTER_TEST_FOLLOWER";

#[test]
#[ignore = "needs a kube-apiserver and five minutes: see the head of this file"]
fn ten_thousand_of_everything_fit() {
    if env::var_os(FOLLOWER).is_some() {
        return follow_and_tell_the_heap();
    }
    let chosen = json!({"kr-test": "large"});
    with_client(async |client| {
        let services: Api<Service> = default(&client);
        let slices: Api<EndpointSlice> = default(&client);
        let pods: Api<Pod> = default(&client);
        let prefix = name("large");
        for chunk in (0..LARGE).collect::<Vec<_>>().chunks(64) {
            let requests = chunk.iter().map(|i| {
                let (services, slices, pods, name) = (&services, &slices, &pods, format!("{prefix}-{i}"));
                let metadata = json!({"name": &name, "labels": &chosen});
                // Headless: the server's address allocator is slow.
                let spec = json!({"clusterIP": "None", "selector": {"app": &name}, "ports": [{"port": 80}]});
                let service = json!({"metadata": &metadata, "spec": spec});
                let endpoints: Vec<Value> = (0..10)
                    .map(|e| {
                        let address = format!("10.{}.{}.{e}", i / 250, i % 250);
                        let node = format!("node-{}", (i + e) % 500);
                        json!({"addresses": [address], "nodeName": node, "conditions": {"ready": true, "serving": true},
                               "targetRef": {"kind": "Pod", "namespace": "default", "name": &name}})
                    })
                    .collect();
                let slice = json!({"metadata": &metadata, "addressType": "IPv4",
                    "ports": [{"name": "http", "port": 8080}], "endpoints": endpoints});
                let spec =
                    json!({"nodeName": format!("node-{}", i % 500), "containers": [{"name": "c", "image": "x"}]});
                let pod = json!({"metadata": &metadata, "spec": spec});
                async move {
                    create(services, service).await;
                    create(slices, slice).await;
                    create(pods, pod).await;
                }
            });
            futures::future::join_all(requests).await;
        }
        // Another process: this one's heap has been used for the requests.
        let child = Command::new(env::current_exe().unwrap())
            .args(["--ignored", "--exact", "ten_thousand_of_everything_fit", "--nocapture"])
            .env(FOLLOWER, "1")
            .output()
            .unwrap();
        let all = kube::api::ListParams::default().labels("kr-test=large");
        let now = DeleteParams::default().grace_period(0);
        // Collections of services cannot be deleted everywhere; names can.
        slices.delete_collection(&now, &all).await.unwrap();
        pods.delete_collection(&now, &all).await.unwrap();
        services.delete_collection(&now, &all).await.unwrap();
        let text = String::from_utf8_lossy(&child.stdout);
        let peak = text.lines().find_map(|line| line.split("heap peak kB: ").nth(1));
        let peak: u64 = peak.unwrap_or_else(|| panic!("{child:?}")).trim().parse().unwrap();
        println!("{text}");
        assert!(peak < HEAP_MAX_KB, "{peak} kB");
    });
}

/// The other process of the test above.
fn follow_and_tell_the_heap() {
    let heap = || {
        let status = std::fs::read_to_string("/proc/self/status").unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix("RssAnon:")).unwrap().to_owned();
        line.trim().trim_end_matches(" kB").parse::<u64>().unwrap()
    };
    let peak = std::sync::Arc::new(std::sync::atomic::AtomicU64::new(0));
    let sampled = peak.clone();
    std::thread::spawn(move || {
        loop {
            sampled.fetch_max(heap(), std::sync::atomic::Ordering::Relaxed);
            std::thread::sleep(Duration::from_millis(5));
        }
    });
    let began = heap();
    let mut objects: BTreeMap<Kind, HashMap<ObjectKey, Box<Object>>> = BTreeMap::new();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let source = kubernetes(&admin());
        let (sink, mut events) = mpsc::channel(64);
        let follow = async {
            let mut complete = 0;
            while complete < Kind::ALL.len() {
                match timeout(PATIENCE, events.recv()).await.unwrap().unwrap() {
                    ObjectEvent::Applied(object) => {
                        let of_kind = objects.entry(object.kind()).or_default();
                        of_kind.insert(object.key().clone(), Box::new(object));
                    }
                    ObjectEvent::RelistDone(_) => complete += 1,
                    _ => {}
                }
            }
        };
        tokio::select! {
            result = watch::run(&source, sink) => panic!("the source ended: {result:?}"),
            () = follow => {}
        }
    });
    for kind in [Kind::Service, Kind::EndpointSlice, Kind::Pod] {
        assert!(objects[&kind].len() >= LARGE, "{kind}: {}", objects[&kind].len());
    }
    println!("heap at start kB: {began}, with all objects kB: {}", heap());
    println!("heap peak kB: {}", peak.load(std::sync::atomic::Ordering::Relaxed));
}
