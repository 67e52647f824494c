//! A reconciler with both kernels, looked at after every order.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, SocketAddr},
    time::Duration,
};

use kube_router_common::{
    balance::{Backend, Vip},
    policy::ServiceKey,
    schedule::{NONE, Tables},
};
use serde_json::json;

use crate::{
    apply::{Connections, PolicyPlane, fake::FakeKernel, fake_policy::FakePolicy},
    compile::{
        balance::{FastPath, Path, compile_ring},
        policy::{address_of, ip_of},
        service_ports::key_of,
    },
    config::ProxyConfig,
    desired::{
        VirtualKey,
        balance::{BalanceTables, HOLE},
    },
    objects::{
        Kind, ObjectEvent, ObjectKey, Protocol,
        parse::{Claim, RawObject},
    },
    plan::{Stage, balance::BalanceOrder},
    reconcile::{Command, Reconciler, balance::Sweep},
};

/// Small ones; every size of sh, dh and mh is a ring like others.
pub const TABLES: Tables = Tables { sh_bits: 4, dh_bits: 4, mh_index: 8 };

/// A service as it is to be.
#[derive(Clone, Debug)]
pub struct Serving {
    pub scheduler: &'static str,
    pub protocol: Protocol,
    /// The last number of their addresses.
    pub endpoints: BTreeSet<u8>,
    pub fast: bool,
}

impl Serving {
    pub fn by(scheduler: &'static str, endpoints: &[u8]) -> Self {
        Serving { scheduler, protocol: Protocol::Tcp, endpoints: endpoints.iter().copied().collect(), fast: true }
    }
}

pub struct Rig {
    pub reconciler: Reconciler,
    pub ipvs: FakeKernel,
    pub tables: FakePolicy,
    pub now_ms: u64,
    pub fast: FastPath,
    graceful: bool,
    objects: BTreeMap<(Kind, ObjectKey), ObjectEvent>,
    /// Whose a number was when it was first written, for the flows that have it.
    held: BTreeMap<u32, (u32, SocketAddr)>,
    /// Backends that flows have.
    flows: BTreeSet<u32>,
    /// Those that were open since the last sweep, and between it and the one before.
    open: [BTreeSet<u32>; 2],
    /// The same of virtual servers.
    named: BTreeMap<u32, ServiceKey>,
    /// Numbers that a row with a ring had since their counts were taken back.
    counted: BTreeSet<u32>,
    /// Tables could not be written, or somebody else was at work, so IPVS may be ahead of them.
    pub behind: bool,
}

impl Rig {
    pub fn new(graceful: bool) -> Rig {
        let ipvs = FakeKernel::new();
        ipvs.0.borrow_mut().kernel.net.host_addresses = [("eth0".into(), "192.0.2.1".parse().expect("an IP"))].into();
        let fast = FastPath { off: None, tables: Some(TABLES) };
        let mut rig = Rig {
            reconciler: reconciler(graceful, fast),
            ipvs,
            tables: FakePolicy::default(),
            now_ms: 0,
            fast,
            graceful,
            objects: BTreeMap::new(),
            held: BTreeMap::new(),
            flows: BTreeSet::new(),
            open: Default::default(),
            named: BTreeMap::new(),
            counted: BTreeSet::new(),
            behind: false,
        };
        rig.put(json!({
            "apiVersion": "v1", "kind": "Node", "metadata": {"name": "n1"},
            "status": {"addresses": [{"type": "InternalIP", "address": "192.0.2.1"}]},
        }));
        rig.list();
        rig
    }

    fn list(&mut self) {
        self.objects.values().cloned().for_each(|event| self.reconciler.handle_event(event));
        Kind::ALL.into_iter().for_each(|kind| self.reconciler.handle_event(ObjectEvent::RelistDone(kind)));
    }

    pub fn restart(&mut self) {
        self.tables.0.borrow_mut().balance.now_s += 1;
        self.reconciler = reconciler(self.graceful, self.fast);
        self.now_ms = 0;
        self.list();
    }

    fn put(&mut self, object: serde_json::Value) {
        let raw: RawObject = serde_json::from_value(object).expect("an object");
        let Claim::Ours(kind) = raw.claim() else { panic!("not ours") };
        let object = raw.parse(kind).expect("sound").object;
        let event = ObjectEvent::Applied(object);
        let ObjectEvent::Applied(object) = &event else { unreachable!() };
        self.objects.insert((kind, object.key().clone()), event.clone());
        self.reconciler.handle_event(event);
    }

    pub fn serve(&mut self, number: u8, serving: &Serving) {
        let protocol = serving.protocol.to_string().to_uppercase();
        let name = format!("s{number}");
        let mut annotations = json!({"kube-router.io/service.scheduler": serving.scheduler});
        if !serving.fast {
            annotations["kube-router.io/service.fastpath"] = "false".into();
        }
        self.put(json!({
            "apiVersion": "v1", "kind": "Service",
            "metadata": {"name": name, "namespace": "a", "annotations": annotations},
            "spec": {"clusterIP": format!("10.96.0.{number}"), "clusterIPs": [format!("10.96.0.{number}")],
                     "ports": [{"port": 80, "protocol": protocol}]},
        }));
        let endpoint = |last: &u8| json!({"addresses": [format!("10.244.0.{last}")], "conditions": {"ready": true}, "nodeName": "n1"});
        self.put(json!({
            "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": "IPv4",
            "metadata": {"name": name, "namespace": "a", "labels": {"kubernetes.io/service-name": name}},
            "ports": [{"name": "", "port": 8080, "protocol": protocol}],
            "endpoints": serving.endpoints.iter().map(endpoint).collect::<Vec<_>>(),
        }));
    }

    pub fn remove(&mut self, number: u8) {
        let key = ObjectKey::new("a", format!("s{number}"));
        for kind in [Kind::Service, Kind::EndpointSlice] {
            self.objects.remove(&(kind, key.clone()));
            self.reconciler.handle_event(ObjectEvent::Deleted(kind, key.clone()));
        }
    }

    pub fn busy(&mut self, endpoint: u8, busy: bool) {
        let destination = SocketAddr::from(([10, 244, 0, endpoint], 8080));
        let mut state = self.ipvs.0.borrow_mut();
        let servers: Vec<VirtualKey> = (0..3).flat_map(|number| [tcp(number), udp(number)]).collect();
        for server in servers {
            let connections = Connections { active: u32::from(busy), inactive: 0 };
            state.connections.insert((server, destination), connections);
        }
    }

    pub fn fail_table(&mut self, order: usize, rows: usize) {
        let mut state = self.tables.0.borrow_mut();
        let at = state.balance_log.len() + order;
        state.balance_faults.insert(at, rows);
    }

    /// Programs give flows to this endpoint, with every number of it that they may have read in a ring.
    pub fn begin_flows(&mut self, endpoint: u8) {
        let held = &self.held;
        let is_there = |id: &&u32| held.get(id).is_some_and(|(_, place)| is_endpoint(place, endpoint));
        self.flows.extend(self.open.iter().flatten().filter(is_there));
    }

    pub fn end_flows(&mut self, endpoint: u8) {
        let held = &self.held;
        self.flows.retain(|id| !held.get(id).is_some_and(|(_, place)| is_endpoint(place, endpoint)));
    }

    /// All flows are passed over. A program takes less time than there is between two sweeps, so that a ring that was
    /// replaced before the last one is in nobody's hands.
    pub fn sweep(&mut self) {
        self.now_ms += 1;
        self.sweep_begun(self.now_ms);
    }

    pub fn sweep_begun(&mut self, began_ms: u64) {
        self.reconciler.handle_swept(Sweep { began_ms, held: self.flows.clone() });
        let state = self.tables.0.borrow();
        let open = state.balance.tables.backends.iter().filter(|(_, backend)| backend.has(Backend::OPEN));
        let last = std::mem::replace(&mut self.open[0], open.map(|(id, _)| *id).collect());
        self.open[1] = last;
    }

    /// Carries out what is to be done now, one order at a time.
    pub fn settle(&mut self) {
        let mut read = false;
        loop {
            let command = self.reconciler.poll(self.now_ms);
            // What was read and then mended is up to date.
            self.behind &= !read || matches!(command, Command::ApplyBalance(_));
            match command {
                Command::Observe => self.reconciler.handle_observed(self.ipvs.observe(), self.now_ms),
                Command::Apply(Stage::Ipvs(ops)) => {
                    let mut failures = Vec::new();
                    for (index, op) in ops.iter().enumerate() {
                        let refused = self.ipvs.apply(&Stage::Ipvs(vec![op.clone()])).expect("not broken");
                        failures
                            .extend(refused.into_iter().map(|failure| crate::apply::OpFailure { index, ..failure }));
                        self.check();
                    }
                    self.reconciler.handle_applied(&Stage::Ipvs(ops), Ok(failures), self.now_ms);
                }
                Command::Apply(stage) => {
                    let result = self.ipvs.apply(&stage);
                    self.reconciler.handle_applied(&stage, result, self.now_ms);
                }
                Command::CountConnections(servers) => {
                    for server in servers {
                        let counts = crate::apply::IpvsPlane::connections(&mut self.ipvs.clone(), &server).ok();
                        self.reconciler.handle_connections(&server, counts.as_ref(), self.now_ms);
                    }
                }
                Command::ObserveBalance => {
                    let result = self.tables.observe_balance();
                    read = true;
                    self.reconciler.handle_balance_observed(result, self.now_ms);
                }
                Command::ApplyBalance(orders) => {
                    self.look_before(&orders[0]);
                    let (done, result) = self.tables.balance(&orders[..1]);
                    orders[..done].iter().for_each(|order| self.note(order));
                    let row = match orders[0] {
                        BalanceOrder::SetVip(_, vip) => !vip.rests(),
                        BalanceOrder::WriteRing(..) => true,
                        _ => false,
                    };
                    if result.is_err() {
                        read = false;
                        self.behind |= !row;
                    }
                    self.reconciler.handle_balance_applied(done, result, self.now_ms);
                    self.check();
                }
                Command::Wait { .. } => break,
                other => panic!("{other:?}"),
            }
        }
    }

    /// Who was given a number, and who gave it back.
    fn note(&mut self, order: &BalanceOrder) {
        if let BalanceOrder::ForgetBackend(id) = order {
            assert!(!self.flows.contains(id), "a flow has {id}");
            assert!(!self.open.iter().any(|open| open.contains(id)), "a program may be about to give {id} to a flow");
            self.held.remove(id);
        }
        if let BalanceOrder::ForgetVip(vip) = order {
            assert!(!self.held.values().any(|(of, _)| of == vip), "a backend has {vip}");
            self.counted.remove(vip);
        }
        // A number that no row has and no backend is anybody's; then it must not have counts.
        let rows: Vec<u32> = self.tables.0.borrow().balance.tables.vips.values().map(|vip| vip.id).collect();
        let (counted, held) = (&self.counted, &self.held);
        self.named.retain(|vip, _| {
            let is_somebodys = rows.contains(vip) || held.values().any(|(of, _)| of == vip);
            assert!(is_somebodys || !counted.contains(vip), "{vip} has counts and is nobody's");
            is_somebodys
        });
        if let BalanceOrder::SetVip(_, vip) = order
            && !vip.rests()
        {
            self.counted.insert(vip.id);
        }
        if let BalanceOrder::SetBackend(id, backend) = order {
            let place = SocketAddr::new(ip_of(backend.address), backend.port);
            let before = *self.held.entry(*id).or_insert((backend.vip, place));
            assert_eq!(before, (backend.vip, place), "a flow may have {id}");
            assert_ne!(*id, 0);
            if backend.has(Backend::OPEN) {
                self.open[0].insert(*id);
            }
        }
    }

    /// What is about to be put in force.
    fn look_before(&mut self, order: &BalanceOrder) {
        let state = self.tables.0.borrow();
        let tables = &state.balance.tables;
        match order {
            BalanceOrder::SetVip(key, vip) => {
                let before = *self.named.entry(vip.id).or_insert(*key);
                assert_eq!(before, *key, "{} is somebody else's", vip.id);
                if vip.rests() {
                    assert_eq!(tables.vips.get(key).map(|row| row.id), Some(vip.id));
                    return;
                }
                let open: Vec<_> = tables.ring(vip.ring).expect("written").iter().filter(|id| **id != NONE).collect();
                assert!(open.iter().all(|id| tables.backends[id].has(Backend::OPEN)), "{order:?}");
            }
            BalanceOrder::WriteRing(ring, _) => assert!(tables.ring(*ring).is_none(), "a ring never changes"),
            _ => {}
        }
    }

    /// What holds between any two orders.
    fn check(&self) {
        let state = self.tables.0.borrow();
        let tables = &state.balance.tables;
        let kernel = &self.ipvs.0.borrow().kernel.ipvs;
        for (key, vip) in tables.vips.iter().filter(|(_, vip)| !vip.rests()) {
            let ring = tables.ring(vip.ring).unwrap_or_else(|| panic!("{key:?} has no ring"));
            assert_eq!(ring.len(), vip.slots as usize, "{key:?}");
            assert!(!ring.is_empty() && !ring.contains(&HOLE), "{key:?}: {ring:?}");
            let server = VirtualKey {
                address: ip_of(key.address),
                protocol: Protocol::from_number(key.protocol).expect("known"),
                port: key.port,
            };
            for id in ring.iter().filter(|id| **id != NONE) {
                let backend = tables.backends[id];
                assert!(backend.vip == vip.id && backend.has(Backend::LIVE), "{key:?}: {id} is {backend:?}");
                let destination = SocketAddr::new(ip_of(backend.address), backend.port);
                let there = kernel.servers.get(&server).and_then(|server| server.destinations.get(&destination));
                let open = there.is_some_and(|weight| *weight > 0);
                assert!(open || self.behind, "{server}: IPVS was ahead with {destination}");
            }
        }
    }

    /// The row, if it does not rest.
    pub fn vip(&self, server: &VirtualKey) -> Option<Vip> {
        self.row(server).filter(|row| !row.rests())
    }

    pub fn row(&self, server: &VirtualKey) -> Option<Vip> {
        self.tables.0.borrow().balance.tables.vips.get(&key_of(server)).copied()
    }

    pub fn orders(&self) -> usize {
        self.tables.0.borrow().balance_log.len()
    }

    /// The address ends that a virtual server's ring names, slot by slot.
    pub fn ring(&self, server: &VirtualKey) -> Vec<Option<u8>> {
        let state = self.tables.0.borrow();
        let tables = &state.balance.tables;
        let last = |id: &u32| tables.backends.get(id).map(|backend| backend.address.0[15]);
        let ring = self.vip(server).and_then(|vip| tables.ring(vip.ring));
        ring.into_iter().flatten().map(last).collect()
    }

    /// Number and flags of a destination.
    pub fn backend(&self, server: &VirtualKey, last: u8) -> Option<(u32, u16)> {
        let state = self.tables.0.borrow();
        let address = address_of(IpAddr::from([10, 244, 0, last]));
        let vip = self.named.iter().filter(|(_, key)| **key == key_of(server)).map(|(vip, _)| *vip).next_back()?;
        let mut backends = state.balance.tables.backends.iter();
        backends.find(|(_, one)| one.vip == vip && one.address == address).map(|(id, one)| (*id, one.flags))
    }

    /// When nothing is left to be done.
    pub fn check_settled(&self) {
        assert!(!self.behind);
        let state = self.tables.0.borrow();
        let tables: &BalanceTables = &state.balance.tables;
        let kernel = &self.ipvs.0.borrow().kernel.ipvs;
        let rings: BTreeSet<u32> = tables.rings().map(|(ring, _)| ring).collect();
        let in_force: BTreeMap<ServiceKey, Vip> =
            tables.vips.iter().filter(|(_, vip)| !vip.rests()).map(|(key, vip)| (*key, *vip)).collect();
        assert_eq!(rings, in_force.values().map(|vip| vip.ring).collect(), "no strays");
        let desired = &self.reconciler.desired().table;
        for (key, _, frontend) in desired.servers() {
            let list = kernel.lists[key].as_slice();
            let says = (frontend.fast, !frontend.hosts.is_empty());
            let wanted = compile_ring(key, &kernel.servers[key], list, says, &self.fast);
            let (path, row) = self.reconciler.path(key).expect("a balancer");
            assert_eq!(row, in_force.get(&key_of(key)).copied(), "{key}");
            // Only the list that was followed knows what weights were.
            if let Err(why) = &wanted {
                assert_eq!(path, Path::Ipvs(*why), "{key}");
            }
            assert_eq!(path == Path::Fast, in_force.contains_key(&key_of(key)), "{key}: {path}");
            let (Path::Fast, Ok(wanted)) = (path, wanted) else { continue };
            let vip = tables.vips[&key_of(key)];
            assert_eq!((vip.scheduler, vip.flags, vip.affinity_s), (wanted.vip.scheduler, wanted.vip.flags, 0));
            let place = |id: &u32| {
                let backend = tables.backends.get(id)?;
                Some(SocketAddr::new(ip_of(backend.address), backend.port))
            };
            let ring: Vec<_> = tables.ring(vip.ring).expect("there").iter().map(place).collect();
            let slots = wanted.slots.iter().map(|slot| Some(list.get(*slot as usize)?.destination));
            assert_eq!(ring, slots.collect::<Vec<_>>(), "{key}");
        }
        let served: BTreeSet<ServiceKey> = desired.servers().map(|(key, _, _)| key_of(key)).collect();
        assert!(in_force.keys().all(|key| served.contains(key)), "nobody's rows are gone");
        let numbers: BTreeSet<u32> = tables.backends.values().map(|backend| backend.vip).collect();
        let needed = |(key, vip): (&ServiceKey, &Vip)| served.contains(key) || numbers.contains(&vip.id);
        assert!(tables.vips.iter().all(needed), "and those that rest are somebody's");
        for (id, backend) in &tables.backends {
            let place = SocketAddr::new(ip_of(backend.address), backend.port);
            let in_use = in_force.iter().find(|(_, vip)| vip.id == backend.vip);
            let Some((key, vip)) = in_use else {
                assert!(!backend.has(Backend::OPEN), "{id}");
                continue;
            };
            let server = kernel.servers.iter().find(|(server, _)| key_of(server) == *key).expect("there").1;
            assert_eq!(backend.has(Backend::LIVE), server.destinations.contains_key(&place), "{id} {place}");
            let named = tables.ring(vip.ring).expect("there").contains(id);
            assert_eq!(backend.has(Backend::OPEN), named, "{id} {place}");
        }
    }
}

fn is_endpoint(place: &SocketAddr, endpoint: u8) -> bool {
    place.ip() == IpAddr::from([10, 244, 0, endpoint])
}

pub fn tcp(number: u8) -> VirtualKey {
    VirtualKey { address: [10, 96, 0, number].into(), protocol: Protocol::Tcp, port: 80 }
}

pub fn udp(number: u8) -> VirtualKey {
    VirtualKey { protocol: Protocol::Udp, ..tcp(number) }
}

fn reconciler(graceful: bool, fast: FastPath) -> Reconciler {
    let graceful_period = graceful.then_some(Duration::from_secs(30));
    let config = ProxyConfig { graceful_period, ..ProxyConfig::default() };
    Reconciler::new(config, "n1", Duration::from_secs(60), 0).with_fast_path(fast)
}
