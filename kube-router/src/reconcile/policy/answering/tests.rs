use std::{
    net::{IpAddr, Ipv4Addr},
    time::Duration,
};

use serde_json::json;

use crate::{
    apply::{
        PolicyPlane,
        fake::{FakeKernel, Fault},
        fake_policy::FakePolicy,
    },
    compile::service_ports::key_of,
    config::{FirewallConfig, ProgramsConfig, ProxyConfig},
    desired::VirtualKey,
    objects::{Kind, ObjectEvent, ObjectKey, Protocol},
    plan::{IpvsOp, Stage, enforcement::PolicyOrder, policy::PolicyOp},
    reconcile::{
        Command, Reconciler,
        policy::tests::{NODE, ip, node, object},
    },
};

/// A reconciler with both kernels, and what it did to them in its order.
struct Rig {
    reconciler: Reconciler,
    ipvs: FakeKernel,
    policy: FakePolicy,
    now_ms: u64,
    done: Vec<Done>,
}

#[derive(Debug, PartialEq)]
enum Done {
    Row(bool),
    Server(bool),
    Destination(bool),
    Judge,
}

const NODE_PORT: VirtualKey =
    VirtualKey { address: IpAddr::V4(Ipv4Addr::new(192, 0, 2, 1)), protocol: Protocol::Tcp, port: 30_080 };

impl Rig {
    fn new(ipvs: &FakeKernel, policy: &FakePolicy) -> Rig {
        ipvs.0.borrow_mut().kernel.net.host_addresses = [("eth0".into(), ip("192.0.2.1"))].into();
        let config = ProxyConfig::default();
        let reconciler = Reconciler::new(config, NODE, Duration::from_secs(60), 0)
            .with_programs(&ProgramsConfig::default(), FirewallConfig::default());
        Rig { reconciler, ipvs: ipvs.clone(), policy: policy.clone(), now_ms: 0, done: Vec::new() }
    }

    fn started(ipvs: &FakeKernel, policy: &FakePolicy) -> Rig {
        let mut rig = Rig::new(ipvs, policy);
        rig.send([node()]).send(Kind::ALL.map(ObjectEvent::RelistDone)).settle();
        assert!(rig.reconciler.is_ready());
        rig
    }

    fn send(&mut self, events: impl IntoIterator<Item = ObjectEvent>) -> &mut Rig {
        events.into_iter().for_each(|event| self.reconciler.handle_event(event));
        self
    }

    /// Carries out what is to be done now; returns what was done at the node port.
    fn settle(&mut self) -> Vec<Done> {
        loop {
            match self.reconciler.poll(self.now_ms) {
                Command::Observe => self.reconciler.handle_observed(self.ipvs.observe(), self.now_ms),
                Command::Apply(stage) => {
                    let before = self.ipvs.0.borrow().log.len();
                    let result = self.ipvs.apply(&stage);
                    self.done.extend(self.ipvs.0.borrow().log[before..].iter().filter_map(served));
                    self.reconciler.handle_applied(&stage, result, self.now_ms);
                }
                Command::ObservePolicy => {
                    let observed = self.policy.observe();
                    self.reconciler.handle_policy_observed(observed, self.now_ms);
                }
                Command::ApplyPolicy(orders) => {
                    let (done, result) = self.policy.apply(&orders);
                    self.done.extend(orders[..done].iter().filter_map(judged));
                    self.reconciler.handle_policy_applied(done, result, self.now_ms);
                }
                Command::PolicySettled => self.policy.settled(),
                Command::Wait { .. } => break,
                other => panic!("{other:?}"),
            }
        }
        // The addresses of a new service have live flows judged again, too: only what follows a row counts here.
        let mut done = std::mem::take(&mut self.done);
        let mut after_row = false;
        done.retain(|done| {
            let counts = *done != Done::Judge || after_row;
            after_row = matches!(done, Done::Row(_));
            counts
        });
        done
    }

    fn has_row(&self) -> bool {
        self.policy.0.borrow().kernel.services.contains_key(&key_of(&NODE_PORT))
    }
}

fn served(stage: &Stage) -> Option<Done> {
    let Stage::Ipvs(ops) = stage else { return None };
    match ops.first()? {
        IpvsOp::AddServer { key, .. } if *key == NODE_PORT => Some(Done::Server(true)),
        IpvsOp::DeleteServer { key } if *key == NODE_PORT => Some(Done::Server(false)),
        IpvsOp::AddDestination { key, .. } if *key == NODE_PORT => Some(Done::Destination(true)),
        IpvsOp::EditDestination { key, weight: 0, .. } | IpvsOp::DeleteDestination { key, .. } if *key == NODE_PORT => {
            Some(Done::Destination(false))
        }
        _ => None,
    }
}

fn judged(order: &PolicyOrder) -> Option<Done> {
    match order {
        PolicyOrder::SetService(key, _) if *key == key_of(&NODE_PORT) => Some(Done::Row(true)),
        PolicyOrder::DeleteService(key) if *key == key_of(&NODE_PORT) => Some(Done::Row(false)),
        PolicyOrder::Table(PolicyOp::BumpGeneration) => Some(Done::Judge),
        _ => None,
    }
}

fn service() -> ObjectEvent {
    object(json!({
        "apiVersion": "v1", "kind": "Service", "metadata": {"name": "web", "namespace": "a"},
        "spec": {"type": "NodePort", "clusterIP": "10.96.0.1", "clusterIPs": ["10.96.0.1"],
                 "ports": [{"port": 80, "nodePort": 30080}]},
    }))
}

fn slice(endpoints: &[&str]) -> ObjectEvent {
    let endpoints: Vec<_> =
        endpoints.iter().map(|ip| json!({"addresses": [ip], "conditions": {"ready": true}})).collect();
    object(json!({
        "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": "IPv4",
        "metadata": {"name": "web", "namespace": "a", "labels": {"kubernetes.io/service-name": "web"}},
        "ports": [{"name": "", "port": 8080, "protocol": "TCP"}], "endpoints": endpoints,
    }))
}

fn gone() -> ObjectEvent {
    ObjectEvent::Deleted(Kind::Service, ObjectKey::new("a", "web"))
}

const COMES: [Done; 4] = [Done::Server(true), Done::Row(true), Done::Judge, Done::Destination(true)];

#[test]
fn a_row_stands_between_its_virtual_server_and_the_first_destination() {
    let mut rig = Rig::started(&FakeKernel::new(), &FakePolicy::default());
    assert_eq!(rig.send([service(), slice(&["10.1.0.11"])]).settle(), COMES);
    assert_eq!(rig.send([slice(&["10.1.0.11", "10.1.0.12"])]).settle(), [Done::Destination(true)]);
    // It goes before the last destination and before the virtual server.
    let mut rig = Rig::started(&FakeKernel::new(), &FakePolicy::default());
    rig.send([service(), slice(&["10.1.0.11"])]).settle();
    assert_eq!(rig.send([slice(&[])]).settle(), [Done::Row(false), Done::Judge, Done::Destination(false)]);
    assert_eq!(rig.send([slice(&["10.1.0.13"])]).settle(), [Done::Row(true), Done::Judge, Done::Destination(true)]);
    assert_eq!(rig.send([gone()]).settle(), [Done::Row(false), Done::Judge, Done::Server(false)]);
    // The same where the first look at the kernel and the objects come together.
    let mut rig = Rig::new(&FakeKernel::new(), &FakePolicy::default());
    rig.send([node(), service(), slice(&["10.1.0.11"])]).send(Kind::ALL.map(ObjectEvent::RelistDone));
    let done: Vec<Done> = rig.settle().into_iter().skip_while(|done| *done != Done::Server(true)).collect();
    assert_eq!(done, COMES);
}

#[test]
fn a_refused_virtual_server_has_no_row_and_holds_up_nobody() {
    let kernel = FakeKernel::new();
    let mut rig = Rig::started(&kernel, &FakePolicy::default());
    let seen = kernel.0.borrow().seen;
    let faults = (seen..seen + 40).map(|number| (number, Fault::Refuse(libc::ENOSPC)));
    kernel.0.borrow_mut().faults.extend(faults);
    assert_eq!(rig.send([service(), slice(&["10.1.0.11"])]).settle(), []);
    assert!(rig.reconciler.is_ready() && !rig.has_row());
    kernel.0.borrow_mut().faults.clear();
    rig.now_ms += 30_000;
    assert_eq!(rig.settle(), COMES);
}

#[test]
fn one_that_was_there_unseen_has_its_row() {
    let kernel = FakeKernel::new();
    let mut rig = Rig::started(&kernel, &FakePolicy::default());
    let server = crate::desired::Virtual::default();
    kernel.0.borrow_mut().kernel.ipvs.servers.insert(NODE_PORT, server);
    let done = rig.send([service(), slice(&["10.1.0.11"])]).settle();
    assert_eq!(done, [Done::Row(true), Done::Judge, Done::Destination(true)]);
}

/// What somebody else removed is found by a full pass: its row goes, and comes with the virtual server.
#[test]
fn a_row_goes_when_its_virtual_server_is_found_missing() {
    let (kernel, policy) = (FakeKernel::new(), FakePolicy::default());
    let mut rig = Rig::started(&kernel, &policy);
    rig.send([service(), slice(&["10.1.0.11"])]).settle();
    kernel.0.borrow_mut().kernel.ipvs.servers.clear();
    rig.now_ms += 3_600_000;
    let done: Vec<Done> = rig.settle().into_iter().skip_while(|done| *done != Done::Row(false)).collect();
    assert_eq!(done[..2], [Done::Row(false), Done::Judge]);
    assert_eq!(done[2..], COMES);
}

#[test]
fn a_restart_keeps_the_rows_of_virtual_servers_that_are_there() {
    let (kernel, policy) = (FakeKernel::new(), FakePolicy::default());
    Rig::started(&kernel, &policy).send([service(), slice(&["10.1.0.11"])]).settle();
    // Also if IPVS cannot be read at first.
    for broken in [0, 1] {
        kernel.0.borrow_mut().broken_observations = broken;
        let mut again = Rig::new(&kernel, &policy);
        again.send([node(), service(), slice(&["10.1.0.11"])]).send(Kind::ALL.map(ObjectEvent::RelistDone));
        assert_eq!(again.settle(), []);
        again.now_ms += 1_000;
        assert_eq!(again.settle(), []);
        assert!(again.reconciler.is_ready() && again.has_row());
    }
}

/// A row that could not be written is made up for, and flows that began meanwhile are judged again.
#[test]
fn a_row_that_comes_late_has_live_flows_judged_again() {
    let policy = FakePolicy::default();
    let mut rig = Rig::started(&FakeKernel::new(), &policy);
    let seen = policy.0.borrow().seen;
    rig.send([service(), slice(&["10.1.0.11"])]);
    // Two rows at most, and the bump.
    policy.0.borrow_mut().faults.extend((seen..seen + 3).map(|number| (number, libc::ENOMEM)));
    assert_eq!(rig.settle(), [Done::Server(true), Done::Destination(true)]);
    assert!(!rig.has_row());
    policy.0.borrow_mut().faults.clear();
    rig.now_ms += 1_000;
    assert_eq!(rig.settle(), [Done::Row(true), Done::Judge]);
}
