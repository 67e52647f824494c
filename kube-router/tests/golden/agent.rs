//! The agent without a kernel: objects from manifests, switches from a command line, a kernel in memory.

use std::{collections::BTreeSet, net::IpAddr, path::PathBuf};

use kube_router::{
    apply::{IpvsPlane, fake::FakeKernel},
    cli::{self, Facts},
    config::{Config, Source},
    objects::{EndpointSlice, Kind, Object, ObjectEvent, ObjectKey, Service},
    plan::Stage,
    reconcile::{Command, Reconciler},
    watch,
};
use tokio::{runtime::Builder, sync::mpsc};

/// A file or directory below tests/fixtures.
pub fn fixture(path: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures").join(path)
}

/// What the manifest source says first about a path: complete lists of every kind.
pub fn objects(path: PathBuf) -> Vec<ObjectEvent> {
    let runtime = Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let (sink, mut queue) = mpsc::channel(1_024);
        let mut events = Vec::new();
        let read = async {
            let mut open = Kind::ALL.len();
            while open > 0 {
                let event = queue.recv().await.expect("the source lives");
                open -= usize::from(matches!(event, ObjectEvent::RelistDone(_)));
                events.push(event);
            }
        };
        let source = Source::Manifests(path);
        tokio::select! {
            result = watch::run(&source, sink) => panic!("the source ended: {result:?}"),
            () = read => {}
        }
        events
    })
}

/// The configuration that the command line of `plan` makes of these switches.
pub fn config(node: &str, switches: &str) -> Config {
    let line = format!("kube-router plan --manifests=/unused --hostname-override={node} {switches}");
    let facts = Facts { uid: 1_000, hostname: None, ipv6: true };
    let parsed = cli::parse(line.split_whitespace().map(Into::into), &cli::Env::new(), &facts);
    match parsed.unwrap_or_else(|error| panic!("{line}: {error}")).command {
        cli::Command::Plan { config, .. } => *config,
        other => panic!("{other:?}"),
    }
}

/// One run of the agent on one node.
pub struct Agent {
    pub reconciler: Reconciler,
    pub kernel: FakeKernel,
    /// Everything that was taken in.
    pub events: Vec<ObjectEvent>,
    now_ms: u64,
}

impl Agent {
    /// Starts on a kernel that may hold something already, takes the objects in and does everything there is to do.
    pub fn start(node: &str, switches: &str, objects: Vec<ObjectEvent>, kernel: FakeKernel) -> Self {
        let config = config(node, switches);
        let reconciler = Reconciler::new(config.proxy, &config.node_name, config.cache_sync_timeout, 0);
        let mut agent = Agent { reconciler, kernel, events: objects, now_ms: 0 };
        agent.events.iter().cloned().for_each(|event| agent.reconciler.handle_event(event));
        agent.settle();
        assert!(agent.reconciler.is_ready(), "the first full pass is through");
        agent
    }

    /// Carries out commands until the reconciler waits; returns the orders.
    pub fn settle(&mut self) -> Vec<Stage> {
        let before = self.kernel.0.borrow().log.len();
        loop {
            match self.reconciler.poll(self.now_ms) {
                Command::Observe => {
                    let observed = self.kernel.observe();
                    self.reconciler.handle_observed(observed, self.now_ms);
                }
                Command::Apply(stage) => {
                    let result = self.kernel.apply(&stage);
                    assert_eq!(result.as_ref().unwrap(), &[], "refused in {stage:?}");
                    self.reconciler.handle_applied(&stage, result, self.now_ms);
                }
                Command::CountConnections(servers) => {
                    for server in servers {
                        let counts = self.kernel.connections(&server).unwrap();
                        self.reconciler.handle_connections(&server, Some(&counts), self.now_ms);
                    }
                }
                Command::ObservePolicy
                | Command::ApplyPolicy(_)
                | Command::PolicySettled
                | Command::ObserveBalance
                | Command::ApplyBalance(_) => {
                    unreachable!("no policy here")
                }
                Command::Wait { .. } => break,
                Command::GiveUp { missing } => panic!("no complete view: {missing:?}"),
            }
        }
        self.kernel.0.borrow().log[before..].to_vec()
    }

    pub fn pass_time(&mut self, seconds: u64) -> Vec<Stage> {
        self.now_ms += seconds * 1_000;
        self.settle()
    }

    pub fn send(&mut self, event: ObjectEvent) -> Vec<Stage> {
        self.events.push(event.clone());
        self.reconciler.handle_event(event);
        self.settle()
    }

    pub fn edit_service(&mut self, name: &str, edit: impl FnOnce(&mut Service)) -> Vec<Stage> {
        let mut service = self.reconciler.cluster().service(&key(name)).expect(name).clone();
        edit(&mut service);
        self.send(ObjectEvent::Applied(Object::Service(service)))
    }

    /// Edits the slice of that name which belongs to the service.
    pub fn edit_slice(&mut self, service: &str, name: &str, edit: impl FnOnce(&mut EndpointSlice)) -> Vec<Stage> {
        let service = key(service);
        let slice = self.reconciler.cluster().slices_of(&service).find(|slice| &*slice.key.name == name).cloned();
        let mut slice = slice.expect(name);
        edit(&mut slice);
        self.send(ObjectEvent::Applied(Object::EndpointSlice(slice)))
    }

    pub fn delete(&mut self, kind: Kind, name: &str) -> Vec<Stage> {
        self.send(ObjectEvent::Deleted(kind, key(name)))
    }
}

/// `namespace/name`.
pub fn key(name: &str) -> ObjectKey {
    let (namespace, name) = name.split_once('/').expect("namespace/name");
    ObjectKey::new(namespace, name)
}

/// `(interface, address)` pairs as the kernel reports them.
pub fn host_addresses(list: &[(&str, &str)]) -> BTreeSet<(Box<str>, IpAddr)> {
    list.iter().map(|(name, address)| ((*name).into(), address.parse().unwrap())).collect()
}
