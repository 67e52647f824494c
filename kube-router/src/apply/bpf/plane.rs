//! The plane of network policy: tables, interfaces and programs in the kernel.
//!
//! Tables are written in batches of orders of one sort, in the orders' order. Links are read from rtnetlink.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
};

use kube_router_common::{
    config::{Config, Iface},
    hooks::Hook,
    policy::{PORT_ENTRIES, PORTS_OTHER, PodGroups, PolicyKey},
};

use tracing::warn;

use super::{
    AttachMode, BpfError, Dataplane, Options, Tables, attached, now_s,
    resize::{self, Before, LearnUntil},
    root, stale,
};
use crate::{
    apply::{PlaneError, PolicyPlane, net::pod_links::PodLinks},
    compile::links::{Links, PodLink},
    desired::{
        interfaces::{Interfaces, Role},
        policy::PolicyTables,
    },
    plan::{
        balance::{BalanceOrder, ObservedBalance},
        enforcement::{ObservedPolicy, PolicyOrder, Settings},
        policy::PolicyOp,
    },
};

/// How long packets of older connections are looked for after tables were made anew: two probes of a client whose
/// retransmission backed off, or a request on most idle connections.
const LEARN_S: u32 = 120;
/// How long IPVS knows a silent flow of UDP.
const UDP_S: u32 = 300;

pub struct KernelPolicy {
    dataplane: Dataplane,
    links: PodLinks,
    mode: AttachMode,
    base: PathBuf,
    /// Tables of another size or schema that may still be in force, and whose rows were taken over.
    before: Vec<Before>,
    /// New flows are to take the fast path, but not while interfaces have programs of those tables: both pods of a flow must
    /// have programs that know it.
    fast_later: bool,
}

pub(super) fn hooks(role: Role) -> [Hook; 2] {
    match role {
        Role::Pod => [Hook::PodOut, Hook::PodIn],
        Role::Uplink => [Hook::UplinkOut, Hook::UplinkIn],
    }
}

impl KernelPolicy {
    /// Loads the programs, pinned below `base`, and takes over what an earlier agent left there, whatever sizes it had.
    /// Attaches nothing.
    pub fn open(base: &Path, entries: BTreeMap<&'static str, u32>) -> Result<Self, PlaneError> {
        resize::make_way(base, &entries)?;
        let options = Options { pins: Some(root(base)), entries };
        let dataplane = Dataplane::load(&options)?;
        let tables = dataplane.tables();
        let is_new = tables.config()?.generation == 0;
        let left_behind = resize::left_behind(base);
        let learn = LearnUntil { tcp_s: now_s() + LEARN_S, udp_s: now_s() + LEARN_S + UDP_S };
        let taken_over = match left_behind.first() {
            Some(old) if is_new => resize::take_over(old, tables, dataplane.balance(), learn)?,
            // By one that ended before all was in force; flows have begun since.
            Some(_) => resize::learn_again(dataplane.balance(), learn.udp_s).map(|()| true)?,
            None => false,
        };
        let before = left_behind.iter().filter(|_| taken_over).map(|old| Before::open(old));
        let before = before.collect::<Result<Vec<_>, _>>()?;
        tables.count_flows()?;
        let mut config = Config { max_flows: tables.flows.max_entries(), ..tables.config()? };
        if config.generation == 0 {
            config.learn_until_s = now_s() + LEARN_S;
        }
        // Whoever ended between a change of policy and the word that flows are to be judged again has not said it.
        config.generation = next(config.generation);
        tables.set_config(&config)?;
        let links = PodLinks::open().map_err(|source| PlaneError::Netlink { what: "links", source })?;
        let mode = AttachMode::of_kernel();
        Ok(KernelPolicy { dataplane, links, mode, base: base.to_owned(), before, fast_later: false })
    }

    pub fn dataplane(&mut self) -> &mut Dataplane {
        &mut self.dataplane
    }

    fn tables(&self) -> &Tables {
        self.dataplane.tables()
    }

    fn read_tables(&self) -> Result<(PolicyTables, Interfaces), BpfError> {
        let t = self.tables();
        let endpoints: BTreeMap<_, _> = t.endpoints.read_all()?.into_iter().collect();
        let ifaces: BTreeMap<u32, Iface> = t.ifaces.read_all()?.into_iter().collect();
        let mut pods: BTreeMap<u32, PodGroups> =
            t.pods.read_all()?.into_iter().filter(|(_, groups)| *groups != PodGroups::default()).collect();
        let named = endpoints.values().map(|endpoint| endpoint.pod).chain(ifaces.values().map(|iface| iface.pod));
        for pod in named.filter(|pod| *pod != 0) {
            pods.entry(pod).or_default();
        }
        let mut ports = BTreeMap::from([(0, PORTS_OTHER)]);
        let mut last = PORTS_OTHER;
        let mut all = t.ports.read_all()?;
        all.sort_unstable();
        for (index, class) in all.into_iter().filter(|(index, _)| *index < PORT_ENTRIES) {
            if class != last {
                ports.insert(index, class);
                last = class;
            }
        }
        let tables = PolicyTables {
            rows: t.policy.read_all()?.into_iter().collect(),
            pods,
            endpoints: endpoints.iter().map(|(address, endpoint)| (*address, endpoint.pod)).collect(),
            peers: t.peers.read_all()?.into_iter().collect(),
            cidrs: t.cidrs.read_all()?.into_iter().collect(),
            ports,
            rules: BTreeMap::new(),
        };
        Ok((tables, Interfaces { ifaces, endpoints, attached: BTreeMap::new() }))
    }

    /// Has the interface both of its role's programs, those of this object?
    fn is_attached(&self, index: u32, role: Role) -> Result<bool, BpfError> {
        let Ok(there) = attached(index) else { return Ok(false) };
        for hook in hooks(role) {
            let program = self.dataplane.program_id(hook)?;
            if !there.iter().any(|one| one.program == program && one.is_ingress == hook.is_tc_ingress()) {
                return Ok(false);
            }
        }
        Ok(true)
    }

    fn put(&mut self, order: &PolicyOrder) -> Result<(), BpfError> {
        let t = self.dataplane.tables();
        match order {
            PolicyOrder::SetSettings(Settings { flags }) => {
                let config = t.config()?;
                self.fast_later = !self.before.is_empty() && flags & Config::FAST != 0;
                let flags = if self.fast_later { flags & !Config::FAST } else { *flags };
                t.set_config(&Config { flags, ..config })
            }
            PolicyOrder::SetService(key, service) => t.services.put(key, service),
            PolicyOrder::DeleteService(key) => t.services.delete(key).map(drop),
            PolicyOrder::Table(op) => write(t, op),
            PolicyOrder::SetEndpoint(address, endpoint) => t.endpoints.put(address, endpoint),
            PolicyOrder::DeleteEndpoint(address) => t.endpoints.delete(address).map(drop),
            PolicyOrder::SetIface(index, iface) => t.ifaces.put(index, iface),
            PolicyOrder::DeleteIface(index) => t.ifaces.delete(index).map(drop),
            PolicyOrder::Attach(index, role) => {
                hooks(*role).into_iter().try_for_each(|hook| ungone(self.dataplane.attach(*index, hook, self.mode)))
            }
            PolicyOrder::Detach(index, role) => {
                hooks(*role).into_iter().try_for_each(|hook| ungone(self.dataplane.detach(*index, hook, self.mode)))
            }
        }
    }

    /// Carries out the run of like orders at the start of `orders`; returns how many they are.
    fn put_run(&mut self, orders: &[PolicyOrder]) -> Result<usize, BpfError> {
        fn run<T>(orders: &[PolicyOrder], of: impl Fn(&PolicyOp) -> Option<T>) -> Vec<T> {
            let ops = orders.iter().map_while(|order| match order {
                PolicyOrder::Table(op) => of(op),
                _ => None,
            });
            ops.collect()
        }
        let t = self.dataplane.tables();
        let rows = run(orders, |op| if let PolicyOp::SetRow(key, row) = op { Some((*key, *row)) } else { None });
        if rows.len() > 1 {
            t.policy.put_all(&rows)?;
            return Ok(rows.len());
        }
        let peers = run(orders, |op| if let PolicyOp::SetPeer(key, peer) = op { Some((*key, *peer)) } else { None });
        if peers.len() > 1 {
            t.peers.put_all(&peers)?;
            return Ok(peers.len());
        }
        let dead: Vec<PolicyKey> = run(orders, |op| match op {
            PolicyOp::ClearRow(key) | PolicyOp::DeleteRow(key) => Some(*key),
            _ => None,
        });
        if dead.len() > 1 {
            t.policy.delete_all(&dead)?;
            return Ok(dead.len());
        }
        match orders.first() {
            Some(order) => self.put(order).map(|()| 1),
            None => Ok(0),
        }
    }
}

/// A device that is gone needs no programs; that it is gone will be announced.
fn ungone(result: Result<(), BpfError>) -> Result<(), BpfError> {
    match result {
        Err(BpfError::Attach { source, .. }) if source.is_gone() => Ok(()),
        other => other,
    }
}

/// The generation after this one; 0 is that of tables nobody has written yet.
fn next(generation: u32) -> u32 {
    generation.wrapping_add(1).max(1)
}

fn write(t: &Tables, op: &PolicyOp) -> Result<(), BpfError> {
    match op {
        PolicyOp::SetRow(key, row) => t.policy.put(key, row),
        PolicyOp::SetPorts { first, last, class } => {
            let rows: Vec<(u32, u32)> = (*first..=*last).map(|index| (index, *class)).collect();
            t.ports.put_all(&rows)
        }
        PolicyOp::SetCidr(key, peer) => t.cidrs.put(key, peer),
        PolicyOp::SetPeer(address, peer) => t.peers.put(address, peer),
        PolicyOp::DeleteCidr(key) => t.cidrs.delete(key).map(drop),
        PolicyOp::DeletePeer(address) => t.peers.delete(address).map(drop),
        PolicyOp::SetPod(pod, groups) => t.pods.put(pod, groups),
        PolicyOp::DeletePod(pod) => {
            t.pods.put(pod, &PodGroups::default())?;
            // Whoever gets the number next begins with none. The pod's flows go with the next sweep.
            t.flow_counts.put(pod, &0)
        }
        PolicyOp::BumpGeneration => {
            let config = t.config()?;
            t.set_config(&Config { generation: next(config.generation), ..config })
        }
        PolicyOp::ClearRow(key) | PolicyOp::DeleteRow(key) => t.policy.delete(key).map(drop),
        // They are written with their interface.
        PolicyOp::SetEndpoint(..) | PolicyOp::DeleteEndpoint(_) => Ok(()),
    }
}

impl PolicyPlane for KernelPolicy {
    fn observe(&mut self) -> Result<ObservedPolicy, PlaneError> {
        let links = self.links()?;
        let (tables, mut interfaces) = self.read_tables()?;
        for (index, row) in &interfaces.ifaces {
            let role = Role::of(row);
            if links.devices.contains_key(index) && self.is_attached(*index, role)? {
                interfaces.attached.insert(*index, role);
            }
        }
        let services = self.tables().services.read_all()?.into_iter().collect();
        let settings = Settings::of(&self.tables().config()?);
        stale::remove_links(&root(&self.base), |index| links.devices.contains_key(&index));
        Ok(ObservedPolicy { tables, interfaces, services, settings, links })
    }

    fn links(&mut self) -> Result<Links, PlaneError> {
        self.links.read().map_err(|source| PlaneError::Netlink { what: "links", source })
    }

    fn link(&mut self, index: u32) -> Result<Option<PodLink>, PlaneError> {
        self.links.read_one(index).map_err(|source| PlaneError::Netlink { what: "links", source })
    }

    fn apply(&mut self, orders: &[PolicyOrder]) -> (usize, Result<(), PlaneError>) {
        let mut done = 0;
        while done < orders.len() {
            match self.put_run(&orders[done..]) {
                Ok(count) => done += count,
                Err(error) => return (done, Err(error.into())),
            }
        }
        (done, Ok(()))
    }

    fn observe_balance(&mut self) -> Result<ObservedBalance, PlaneError> {
        Ok(ObservedBalance { tables: self.dataplane.balance().read()?, now_s: now_s() })
    }

    fn balance(&mut self, orders: &[BalanceOrder]) -> (usize, Result<(), PlaneError>) {
        for (done, order) in orders.iter().enumerate() {
            if let Err(error) = self.dataplane.balance().carry_out(order) {
                return (done, Err(error.into()));
            }
        }
        (orders.len(), Ok(()))
    }

    fn settled(&mut self) {
        for before in std::mem::take(&mut self.before) {
            if let Err(error) = resize::take_over_flows(&before, self.tables(), self.dataplane.balance()) {
                warn!(%error, "flows that began while the tables were exchanged are not taken over");
            }
        }
        stale::remove_other_schemas(&self.base);
        if std::mem::take(&mut self.fast_later) {
            let begun = self
                .tables()
                .config()
                .and_then(|config| self.tables().set_config(&Config { flags: config.flags | Config::FAST, ..config }));
            if let Err(error) = begun {
                warn!(%error, "the fast path stays off until the next start");
            }
        }
    }
}
