use std::{collections::BTreeSet, net::IpAddr, time::Duration};

use kube_router_common::{
    config::{Config, Iface},
    policy::{PodGroups, Service},
};
use serde_json::{Value, json};

use super::{Attached, Guarded};
use crate::{
    apply::{PolicyPlane, fake_policy::FakePolicy},
    compile::{
        links::{Device, PodLink},
        policy::{PROGRAM_KINDS, address_of},
    },
    config::{FirewallConfig, ProgramsConfig, ProxyConfig},
    objects::{
        Kind, ObjectEvent, ObjectKey,
        parse::{Claim, RawObject},
    },
    plan::{
        enforcement::{PolicyOrder, Settings},
        policy::PolicyOp,
    },
    reconcile::{Command, Reconciler},
};

pub(super) const NODE: &str = "n1";

pub(super) fn object(value: Value) -> ObjectEvent {
    let raw: RawObject = serde_json::from_value(value).expect("an object");
    let Claim::Ours(kind) = raw.claim() else { panic!("not ours") };
    ObjectEvent::Applied(raw.parse(kind).expect("sound").object)
}

pub(super) fn node() -> ObjectEvent {
    object(json!({
        "apiVersion": "v1", "kind": "Node", "metadata": {"name": NODE}, "spec": {"podCIDRs": ["10.1.0.0/24"]},
        "status": {"addresses": [{"type": "InternalIP", "address": "192.0.2.1"}]},
    }))
}

fn pod(name: &str, ip: Option<&str>) -> ObjectEvent {
    let status = ip.map_or(json!({}), |ip| json!({"podIP": ip, "podIPs": [{"ip": ip}]}));
    object(json!({
        "apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, "namespace": "default", "labels": {"app": name}},
        "spec": {"nodeName": NODE, "containers": [{"name": "c", "image": "i"}]}, "status": status,
    }))
}

fn isolate(name: &str) -> ObjectEvent {
    object(json!({
        "apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy", "metadata": {"name": name, "namespace": "default"},
        "spec": {"podSelector": {"matchLabels": {"app": name}}, "policyTypes": ["Ingress", "Egress"]},
    }))
}

pub(super) fn ip(text: &str) -> IpAddr {
    text.parse().expect("an IP")
}

fn link(index: u32, addresses: &[&str]) -> PodLink {
    PodLink {
        index,
        name: format!("veth{index}").into(),
        peer: 2,
        namespace: 3,
        mac: [2, 0, 0, 0, 0, index as u8],
        addresses: addresses.iter().map(|address| ip(address)).collect(),
        alias: None,
        master: None,
        hindrance: None,
    }
}

struct Rig {
    reconciler: Reconciler,
    kernel: FakePolicy,
    now_ms: u64,
}

impl Rig {
    fn new(kernel: &FakePolicy, config: FirewallConfig) -> Rig {
        let proxy = ProxyConfig { enabled: false, ..ProxyConfig::default() };
        let programs = ProgramsConfig::default();
        let mut reconciler = Reconciler::new(proxy, NODE, Duration::from_secs(60), 0).with_programs(&programs, config);
        reconciler.handle_host_addresses([("eth0".into(), ip("192.0.2.1"))].into());
        Rig { reconciler, kernel: kernel.clone(), now_ms: 0 }
    }

    fn send(&mut self, events: impl IntoIterator<Item = ObjectEvent>) -> &mut Rig {
        events.into_iter().for_each(|event| self.reconciler.handle_event(event));
        self
    }

    fn complete(&mut self) -> &mut Rig {
        self.send(Kind::ALL.map(ObjectEvent::RelistDone))
    }

    fn put_link(&mut self, link: PodLink) -> &mut Rig {
        {
            let links = &mut self.kernel.0.borrow_mut().kernel.links;
            links.devices.insert(link.index, Device::of(&link));
            links.pods.insert(link.index, link);
        }
        self.look()
    }

    fn take_link(&mut self, index: u32) -> &mut Rig {
        {
            let links = &mut self.kernel.0.borrow_mut().kernel.links;
            links.devices.remove(&index);
            links.pods.remove(&index);
        }
        self.look()
    }

    fn look(&mut self) -> &mut Rig {
        let links = self.kernel.links().expect("in memory");
        self.reconciler.handle_links(links, self.now_ms);
        self
    }

    /// Carries out what is to be done now; returns how many orders that were.
    fn settle(&mut self) -> usize {
        let before = self.kernel.0.borrow().log.len();
        loop {
            match self.reconciler.poll(self.now_ms) {
                Command::ObservePolicy => {
                    let observed = self.kernel.observe();
                    self.reconciler.handle_policy_observed(observed, self.now_ms);
                }
                Command::ApplyPolicy(orders) => {
                    let (done, result) = self.kernel.apply(&orders);
                    self.reconciler.handle_policy_applied(done, result, self.now_ms);
                }
                Command::PolicySettled => self.kernel.settled(),
                Command::Wait { .. } => break,
                other => panic!("{other:?}"),
            }
        }
        self.kernel.0.borrow().log.len() - before
    }

    fn row(&self, index: u32) -> Option<Iface> {
        self.kernel.0.borrow().kernel.interfaces.ifaces.get(&index).copied()
    }

    /// The interface that has this address.
    fn owner(&self, address: &str) -> Option<u32> {
        let state = self.kernel.0.borrow();
        state.kernel.interfaces.endpoints.get(&address_of(ip(address))).map(|endpoint| endpoint.ifindex)
    }

    fn reasons(&mut self) -> Vec<&'static str> {
        self.reconciler.problems().iter().map(|problem| problem.reason).collect()
    }
}

fn two_pods(kernel: &FakePolicy) -> Rig {
    let mut rig = Rig::new(kernel, FirewallConfig::default());
    rig.put_link(link(11, &["10.1.0.11"])).put_link(link(12, &["10.1.0.12"]));
    rig.send([node(), pod("web", Some("10.1.0.11")), pod("free", Some("10.1.0.12")), isolate("web")]);
    rig
}

#[test]
fn nothing_is_written_before_the_view_is_complete() {
    let kernel = FakePolicy::default();
    let mut rig = two_pods(&kernel);
    assert_eq!(rig.settle(), 0);
    assert!(!rig.reconciler.is_ready());
    rig.complete().settle();
    assert!(rig.reconciler.is_ready());
    assert_eq!((rig.owner("10.1.0.11"), rig.owner("10.1.0.12")), (Some(11), Some(12)));
    assert_eq!(kernel.0.borrow().settled, 1);
    // Rows come before programs, groups before the endpoint.
    let log = kernel.0.borrow().log.clone();
    let place = |wanted: &dyn Fn(&PolicyOrder) -> bool| log.iter().position(wanted).expect("an order");
    let row = place(&|order| matches!(order, PolicyOrder::SetIface(11, _)));
    assert!(row < place(&|order| matches!(order, PolicyOrder::Attach(11, _))));
    assert!(place(&|order| matches!(order, PolicyOrder::SetEndpoint(..))) < row);
    assert_eq!(rig.settle(), 0, "and that is all");
}

#[test]
fn a_restart_writes_nothing() {
    let kernel = FakePolicy::default();
    two_pods(&kernel).complete().settle();
    let mut again = two_pods(&kernel);
    assert_eq!(again.complete().settle(), 0, "{:?}", kernel.0.borrow().log);
    assert!(again.reconciler.is_ready());
    // Numbers of the old agent, names of the new one.
    let numbered = again.reconciler.enforcer().expect("on").compiled();
    let web = numbered.pods().find(|(key, _)| &*key.name == "web").expect("web").1;
    assert_eq!(again.row(11).map(|row| row.pod), Some(web));
}

/// The programs are there for services: they know who is where, and judge nothing, whatever an older agent had in force.
#[test]
fn where_policy_is_not_enforced_pods_are_published_and_nobody_is_shut() {
    let kernel = FakePolicy::default();
    let isolated = || {
        let state = kernel.0.borrow();
        state.kernel.tables.pods.values().filter(|groups| **groups != PodGroups::default()).count()
    };
    let mut policed = two_pods(&kernel);
    // One that hides, so that another one's interface is shut.
    policed.put_link(link(13, &[])).send([pod("shy", Some("10.1.0.19")), isolate("shy")]).complete().settle();
    assert_eq!((isolated(), policed.owner("10.1.0.19")), (2, Some(0)));
    assert_ne!(policed.row(13).map(|row| row.flags), Some(0));

    let mut rig = Rig::new(&kernel, FirewallConfig::off());
    rig.put_link(link(14, &["10.1.0.14"]));
    rig.send([node(), isolate("web"), isolate("shy"), pod("web", Some("10.1.0.11")), pod("free", Some("10.1.0.12"))]);
    rig.send([pod("shy", Some("10.1.0.19"))]);
    // Nobody waits for policies, which may be forbidden.
    rig.send(PROGRAM_KINDS.map(ObjectEvent::RelistDone)).settle();
    assert!(rig.reconciler.is_ready() && rig.reasons().is_empty(), "{:?}", rig.reasons());
    assert_eq!((rig.owner("10.1.0.11"), rig.owner("10.1.0.12"), rig.owner("10.1.0.19")), (Some(11), Some(12), None));
    let open = Iface::PUBLISHED | Iface::DIRECT;
    let flags = [11, 12, 13, 14].map(|index| rig.row(index).map(|row| row.flags));
    assert_eq!(flags, [Some(open), Some(open), Some(0), Some(0)]);
    assert_eq!(isolated(), 0);
    {
        let state = kernel.0.borrow();
        assert_eq!(state.kernel.settings.flags, Config::NO_ANTISPOOF | Config::FAST | Config::FAST_FLOWS);
        assert!(state.kernel.tables.rows.is_empty());
    }
    rig.send([isolate("free")]).settle();
    assert_eq!(isolated(), 0);
    // And back.
    two_pods(&kernel).complete().settle();
    assert_eq!(isolated(), 1);
}

#[test]
fn from_the_first_policy_on_all_flows_are_known() {
    let kernel = FakePolicy::default();
    let mut rig = Rig::new(&kernel, FirewallConfig::default());
    rig.put_link(link(11, &["10.1.0.11"])).send([node(), pod("web", Some("10.1.0.11"))]).complete().settle();
    let knows_all = |log: &[PolicyOrder]| {
        let orders = log.iter().filter_map(|order| match order {
            PolicyOrder::SetSettings(settings) => Some(settings.flags & Config::ALL_FLOWS != 0),
            _ => None,
        });
        orders.collect::<Vec<_>>()
    };
    let log = || kernel.0.borrow().log.clone();
    assert_eq!(knows_all(&log()), [false]);
    let before = log().len();
    // About nobody here, but the next one may be.
    rig.send([isolate("somebody else")]).settle();
    assert_eq!(knows_all(&log()[before..]), [true]);
    rig.send([isolate("web"), isolate("free")]).settle();
    assert_eq!(knows_all(&log()[before..]), [true], "once");
    kernel.0.borrow_mut().kernel.settings = Settings::default();
    rig.now_ms += 400_000;
    rig.settle();
    assert_eq!(knows_all(&log()[before..]), [true, true], "somebody took it away");
}

#[test]
fn a_failure_at_any_order_is_made_up_for() {
    let whole = FakePolicy::default();
    let orders = two_pods(&whole).complete().settle();
    for number in 0..orders {
        let kernel = FakePolicy::default();
        kernel.0.borrow_mut().faults.insert(number, libc::ENOMEM);
        let mut rig = two_pods(&kernel);
        rig.complete().settle();
        assert!(!rig.reconciler.is_ready(), "order {number}");
        assert!(rig.reasons().contains(&"KernelRefused"));
        rig.now_ms += 1_000;
        rig.settle();
        assert!(rig.reconciler.is_ready(), "order {number}");
        assert!(rig.reasons().is_empty(), "{:?}", rig.reasons());
        let (there, wanted) = (kernel.0.borrow(), whole.0.borrow());
        assert_eq!(there.kernel.interfaces.attached, wanted.kernel.interfaces.attached);
        assert_eq!(there.kernel.tables.endpoints.len(), wanted.kernel.tables.endpoints.len());
        assert_eq!(there.kernel.tables.rows.len(), wanted.kernel.tables.rows.len());
    }
}

/// A change of a policy and a new interface in one plan: the tables are written, the interface's programs are refused.
#[test]
fn live_flows_are_judged_again_though_an_order_before_failed() {
    let is_bump = |order: &PolicyOrder| *order == PolicyOrder::Table(PolicyOp::BumpGeneration);
    let change = |rig: &mut Rig| {
        rig.complete().settle();
        rig.put_link(link(13, &["10.1.0.13"])).send([pod("new", Some("10.1.0.13")), isolate("free")]);
    };
    let whole = FakePolicy::default();
    let mut rig = two_pods(&whole);
    change(&mut rig);
    let before = whole.0.borrow().log.len();
    let orders = rig.settle();
    let log = whole.0.borrow().log.clone();
    let bump = log.iter().skip(before).position(is_bump).expect("the policy is new");
    for number in 0..orders {
        let kernel = FakePolicy::default();
        let mut rig = two_pods(&kernel);
        change(&mut rig);
        let seen = kernel.0.borrow().seen;
        kernel.0.borrow_mut().faults.insert(seen + number, libc::ENOMEM);
        rig.settle();
        rig.now_ms += 1_000;
        rig.settle();
        let bumps = kernel.0.borrow().log.iter().skip(before).filter(|order| is_bump(order)).count();
        assert!(bumps > 0, "order {number}, the bump is {bump}");
        assert!(rig.reconciler.is_ready());
    }
}

#[test]
fn what_somebody_else_takes_off_is_put_back_by_the_periodic_pass() {
    let kernel = FakePolicy::default();
    let mut rig = two_pods(&kernel);
    rig.complete().settle();
    kernel.0.borrow_mut().kernel.interfaces.attached.remove(&11);
    rig.now_ms += 300_000;
    assert_eq!(rig.settle(), 1);
    assert!(kernel.0.borrow().kernel.interfaces.attached.contains_key(&11));
}

#[test]
fn an_interface_outlives_its_pod_shut_if_policies_were_about_it() {
    let kernel = FakePolicy::default();
    let mut rig = two_pods(&kernel);
    rig.complete().settle();
    for name in ["web", "free"] {
        rig.send([ObjectEvent::Deleted(Kind::Pod, ObjectKey::new("default", name))]);
    }
    rig.settle();
    assert_eq!(rig.row(11).map(|row| row.flags), Some(Iface::DEFAULT_DENY));
    assert_eq!(rig.row(12).map(|row| row.flags), Some(0), "a pod like any other that nobody knows");
    rig.take_link(11).take_link(12).settle();
    assert_eq!((rig.row(11), rig.row(12)), (None, None));
    let state = kernel.0.borrow();
    assert!(state.kernel.tables.pods.values().all(|groups| *groups == PodGroups::default()));
    assert!(state.kernel.tables.endpoints.is_empty());
}

#[test]
fn an_address_that_another_pod_takes_stays_where_it_was() {
    let kernel = FakePolicy::default();
    let mut rig = two_pods(&kernel);
    rig.complete().settle();
    rig.put_link(link(12, &["10.1.0.12", "10.1.0.11"])).settle();
    assert_eq!(rig.owner("10.1.0.11"), Some(11));
    assert!(rig.reasons().contains(&"AddressClaimed"));
    // Also if it drops its own, and after a restart.
    rig.put_link(link(12, &["10.1.0.11"])).settle();
    assert_eq!((rig.owner("10.1.0.11"), rig.owner("10.1.0.12")), (Some(11), Some(12)));
    let mut again = Rig::new(&kernel, FirewallConfig::default());
    again.send([node(), pod("web", Some("10.1.0.11")), pod("free", Some("10.1.0.12")), isolate("web")]).complete();
    again.settle();
    assert_eq!((again.owner("10.1.0.11"), again.owner("10.1.0.12")), (Some(11), Some(12)));
}

#[test]
fn a_pod_that_shows_nowhere_is_told_of_after_a_while() {
    let kernel = FakePolicy::default();
    let mut rig = two_pods(&kernel);
    rig.complete().settle();
    let told = |rig: &mut Rig| rig.reasons().contains(&"PodWithoutInterface");
    rig.put_link(link(11, &[])).settle();
    assert_eq!((rig.owner("10.1.0.11"), told(&mut rig)), (Some(11), false), "who is bound stays bound");
    rig.send([pod("shy", Some("10.1.0.13")), isolate("shy")]).put_link(link(30, &[])).settle();
    assert_eq!((rig.owner("10.1.0.13"), told(&mut rig)), (Some(0), false));
    let shut = Iface::DEFAULT_DENY | Iface::SUSPECT;
    assert_eq!(rig.row(30).map(|row| row.flags), Some(shut));
    let period_ms = FirewallConfig::default().sync_period.as_millis() as u64 + 1;
    let mut tell = Vec::new();
    for _ in 0..2 {
        rig.now_ms += period_ms;
        rig.settle();
        tell.push(told(&mut rig));
    }
    assert_eq!(tell, [false, true], "after two full passes");
    rig.put_link(link(30, &["10.1.0.13"])).settle();
    assert_eq!((rig.owner("10.1.0.13"), told(&mut rig)), (Some(30), false), "and no longer than needed");
    // No policy is about one that hides: its neighbours are free at once.
    rig.send([pod("sly", Some("10.1.0.14")), isolate("sly")]).put_link(link(31, &[])).settle();
    assert_eq!(rig.row(31).map(|row| row.flags), Some(shut));
    rig.send([ObjectEvent::Deleted(Kind::NetworkPolicy, ObjectKey::new("default", "sly"))]).settle();
    assert_eq!((rig.row(31).map(|row| row.flags), rig.owner("10.1.0.14")), (Some(0), None));
}

#[test]
fn an_address_given_to_a_new_pod_moves_to_the_new_interface() {
    let kernel = FakePolicy::default();
    let mut rig = two_pods(&kernel);
    rig.complete().settle();
    // The old sandbox lingers.
    rig.send([ObjectEvent::Deleted(Kind::Pod, ObjectKey::new("default", "free"))]);
    rig.put_link(link(20, &["10.1.0.12"])).send([pod("next", Some("10.1.0.12"))]).settle();
    assert_eq!(rig.owner("10.1.0.12"), Some(20));
}

#[test]
fn a_pod_that_the_plugin_attaches_is_judged_at_once_or_shut() {
    let kernel = FakePolicy::default();
    let mut rig = two_pods(&kernel);
    rig.complete().settle();
    let attach = |rig: &mut Rig, index: u32, name: &str, address: &str| {
        let attached = Attached {
            network: "net".into(),
            container: name.into(),
            pod_ifname: "eth0".into(),
            pod: ObjectKey::new("default", name),
            uid: None,
            addresses: BTreeSet::from([ip(address)]),
        };
        rig.put_link(link(index, &[address]));
        rig.reconciler.handle_attached(link(index, &[address]), attached);
        rig.settle();
        rig.reconciler.enforcer().expect("on").guard(index, &BTreeSet::from([ip(address)]))
    };
    rig.send([pod("known", None)]).settle();
    assert_eq!(attach(&mut rig, 30, "known", "10.1.0.30"), Guarded::Published);
    assert_eq!(attach(&mut rig, 31, "late", "10.1.0.31"), Guarded::Denied);
    rig.send([pod("late", None)]).settle();
    let guard =
        |rig: &Rig, index, address| rig.reconciler.enforcer().expect("on").guard(index, &BTreeSet::from([ip(address)]));
    assert_eq!(guard(&rig, 31, "10.1.0.31"), Guarded::Published);
    rig.reconciler.handle_detached(|attached| &*attached.container == "late");
    rig.settle();
    assert_eq!(rig.owner("10.1.0.31"), None);
}

#[test]
fn how_long_a_pod_was_open_is_measured_where_no_plugin_announced_it() {
    let kernel = FakePolicy::default();
    let mut rig = two_pods(&kernel);
    rig.complete().settle();
    assert_eq!(rig.reconciler.take_policy_gaps(), [0; 0], "older than this agent");
    rig.now_ms = 1_000;
    rig.put_link(link(13, &["10.1.0.13"])).settle();
    assert_eq!(rig.reconciler.take_policy_gaps(), [0; 0], "open, until the API server tells the address");
    rig.now_ms = 1_250;
    rig.look().send([pod("new", Some("10.1.0.13"))]).settle();
    assert_eq!(rig.reconciler.take_policy_gaps(), [250]);
    rig.look().settle();
    // One that goes before it is known, and one that a plugin brings.
    rig.put_link(link(14, &["10.1.0.14"])).take_link(14).put_link(link(15, &["10.1.0.15"]));
    let attached = Attached {
        network: "n".into(),
        container: "c".into(),
        pod_ifname: "eth0".into(),
        pod: ObjectKey::new("default", "brought"),
        uid: None,
        addresses: [ip("10.1.0.15")].into(),
    };
    rig.reconciler.handle_attached(link(15, &["10.1.0.15"]), attached);
    rig.send([pod("brought", Some("10.1.0.15"))]).settle();
    assert!(rig.row(15).is_some_and(|row| row.flags & Iface::PUBLISHED != 0));
    assert_eq!(rig.reconciler.take_policy_gaps(), [0; 0]);
}

#[test]
fn default_deny_shuts_what_is_not_known_and_nothing_else() {
    let kernel = FakePolicy::default();
    let mut rig = Rig::new(&kernel, FirewallConfig { default_deny: true, ..FirewallConfig::default() });
    rig.put_link(link(40, &["10.1.0.40"])).put_link(link(41, &["172.17.0.2"])).put_link(link(42, &[]));
    rig.send([node()]).complete().settle();
    assert_eq!(rig.row(40).map(|row| row.flags), Some(Iface::DEFAULT_DENY));
    assert_eq!(rig.row(41).map(|row| row.flags), Some(0), "no pod's, as its address says");
    assert_eq!(rig.row(42).map(|row| row.flags), Some(Iface::DEFAULT_DENY));
    rig.send([pod("web", Some("10.1.0.40"))]).settle();
    assert_eq!(rig.row(40).map(|row| row.flags), Some(Iface::PUBLISHED | Iface::DIRECT));
}

#[test]
fn services_and_the_node_s_processes_behind_them_are_told() {
    let kernel = FakePolicy::default();
    let mut rig = two_pods(&kernel);
    rig.send([
        object(json!({
            "apiVersion": "v1", "kind": "Service", "metadata": {"name": "api", "namespace": "default"},
            "spec": {"clusterIP": "10.96.0.1", "clusterIPs": ["10.96.0.1"], "ports": [{"port": 443}]},
        })),
        object(json!({
            "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": "IPv4",
            "metadata": {"name": "api-1", "namespace": "default", "labels": {"kubernetes.io/service-name": "api"}},
            "ports": [{"name": "", "port": 6443, "protocol": "TCP"}],
            "endpoints": [{"addresses": ["192.0.2.1"], "conditions": {"ready": true}}],
        })),
    ]);
    rig.complete().settle();
    let rows: Vec<Service> = kernel.0.borrow().kernel.services.values().copied().collect();
    assert_eq!(rows, [Service { host: address_of(ip("192.0.2.1")), host_port: 6443, flags: 0 }]);
    // Flows to the service were judged when somebody else answered: they are again when such a process comes.
    let slice = |address: &str| {
        object(json!({
            "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": "IPv4",
            "metadata": {"name": "api-1", "namespace": "default", "labels": {"kubernetes.io/service-name": "api"}},
            "ports": [{"name": "", "port": 6443, "protocol": "TCP"}],
            "endpoints": [{"addresses": [address], "conditions": {"ready": true}}],
        }))
    };
    let last = |rig: &mut Rig, address: &str| {
        rig.send([slice(address)]).settle();
        kernel.0.borrow().log.last().cloned()
    };
    assert!(matches!(last(&mut rig, "192.0.2.7"), Some(PolicyOrder::SetService(..))));
    assert_eq!(last(&mut rig, "192.0.2.1"), Some(PolicyOrder::Table(PolicyOp::BumpGeneration)));
    rig.send([ObjectEvent::Deleted(Kind::Service, ObjectKey::new("default", "api"))]).settle();
    assert!(kernel.0.borrow().kernel.services.is_empty());
}

/// Rows that name the node's processes come from EndpointSlices: without these a restart would take the names out.
#[test]
fn a_restart_waits_for_endpoint_slices() {
    let kernel = FakePolicy::default();
    let service = || {
        object(json!({
            "apiVersion": "v1", "kind": "Service", "metadata": {"name": "api", "namespace": "default"},
            "spec": {"clusterIP": "10.96.0.1", "clusterIPs": ["10.96.0.1"], "ports": [{"port": 443}]},
        }))
    };
    let slice = || {
        object(json!({
            "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": "IPv4",
            "metadata": {"name": "api-1", "namespace": "default", "labels": {"kubernetes.io/service-name": "api"}},
            "ports": [{"name": "", "port": 6443, "protocol": "TCP"}],
            "endpoints": [{"addresses": ["192.0.2.1"], "conditions": {"ready": true}}],
        }))
    };
    two_pods(&kernel).send([service(), slice()]).complete().settle();
    let mut again = two_pods(&kernel);
    let others = Kind::ALL.into_iter().filter(|kind| *kind != Kind::EndpointSlice);
    again.send([service()]).send(others.map(ObjectEvent::RelistDone)).settle();
    let ports: Vec<u16> = kernel.0.borrow().kernel.services.values().map(|row| row.host_port).collect();
    assert_eq!(ports, [6443]);
    assert_eq!(again.send([slice()]).complete().settle(), 0);
    assert!(again.reconciler.is_ready());
}

#[test]
fn a_policy_that_nobody_understands_after_a_restart_opens_nothing() {
    let kernel = FakePolicy::default();
    two_pods(&kernel).complete().settle();
    let mut again = Rig::new(&kernel, FirewallConfig::default());
    let unread = ObjectEvent::Kept(Kind::NetworkPolicy, ObjectKey::new("default", "web"));
    again.send([node(), pod("web", Some("10.1.0.11")), pod("free", Some("10.1.0.12")), unread]).complete();
    assert_eq!(again.settle(), 0);
    assert!(again.reasons().contains(&"PolicyHeld") && !again.reconciler.is_ready());
    again.send([isolate("web")]);
    again.now_ms += 1_000;
    assert_eq!(again.settle(), 0, "it says what it said before");
    assert!(again.reasons().is_empty() && again.reconciler.is_ready());
    // The same for a pod: rules may be about it.
    let mut again = Rig::new(&kernel, FirewallConfig::default());
    let unread = ObjectEvent::Kept(Kind::Pod, ObjectKey::new("default", "free"));
    again.send([node(), pod("web", Some("10.1.0.11")), isolate("web"), unread]).complete();
    assert_eq!(again.settle(), 0);
    assert!(again.reasons().contains(&"PolicyHeld"));
    // On a node that had none before, the rest is better than nothing.
    let mut fresh = Rig::new(&FakePolicy::default(), FirewallConfig::default());
    let unread = ObjectEvent::Kept(Kind::NetworkPolicy, ObjectKey::new("default", "other"));
    fresh.send([node(), isolate("web"), unread]).complete().settle();
    assert!(fresh.reconciler.is_ready());
}
