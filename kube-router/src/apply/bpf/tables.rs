//! All tables of the programs, typed, and what the agent does with them as a whole.

use std::{
    collections::{BTreeMap, BTreeSet, HashSet},
    os::fd::OwnedFd,
    path::Path,
};

use kube_router_common::{
    Traffic,
    balance::Backend,
    config::{Config, DropKey, FragKey, FragPorts, Iface, Origin, RuleCount},
    flow::{ALL_PODS, Flow, FlowKey},
    names,
    policy::{Address, CidrKey, Endpoint, Peer, PodGroups, PolicyKey, PolicyRow, Service, ServiceKey},
};

use super::{BalanceMaps, BpfError, counts::Recount, table::Table};

pub struct Tables {
    pub endpoints: Table<Address, Endpoint>,
    pub pods: Table<u32, PodGroups>,
    pub ifaces: Table<u32, Iface>,
    pub peers: Table<Address, Peer>,
    pub cidrs: Table<CidrKey, Peer>,
    pub services: Table<ServiceKey, Service>,
    pub ports: Table<u32, u32>,
    pub policy: Table<PolicyKey, PolicyRow>,
    pub rules: Table<u32, RuleCount>,
    pub flows: Table<FlowKey, Flow>,
    pub flow_counts: Table<u32, i32>,
    pub frags: Table<FragKey, FragPorts>,
    pub origins: Table<u32, Origin>,
    pub drops: Table<DropKey, Traffic>,
    config: Table<u32, Config>,
}

/// What a pass over the flows found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Swept {
    pub live: usize,
    /// Silent for their time, or their service does not have the backend any more.
    pub over: usize,
    /// Of pods that are gone.
    pub orphans: usize,
    /// Backends of services that live flows have.
    pub held: BTreeSet<u32>,
}

impl Tables {
    /// The tables that are pinned in `root`, for reading beside a running agent, or without one.
    pub fn open(root: &Path) -> Result<Self, BpfError> {
        Ok(Tables {
            endpoints: Table::open(names::ENDPOINTS, root)?,
            pods: Table::open(names::PODS, root)?,
            ifaces: Table::open(names::IFACES, root)?,
            peers: Table::open(names::PEERS, root)?,
            cidrs: Table::open(names::CIDRS, root)?,
            services: Table::open(names::SERVICES, root)?,
            ports: Table::open(names::PORTS, root)?,
            policy: Table::open(names::POLICY, root)?,
            rules: Table::open(names::RULES, root)?,
            flows: Table::open(names::FLOWS, root)?,
            flow_counts: Table::open(names::FLOW_COUNTS, root)?,
            frags: Table::open(names::FRAGS, root)?,
            origins: Table::open(names::ORIGINS, root)?,
            drops: Table::open_per_cpu(names::DROPS, root)?,
            config: Table::open(names::CONFIG, root)?,
        })
    }

    pub(super) fn of(mut map: impl FnMut(&'static str) -> Result<OwnedFd, BpfError>) -> Result<Self, BpfError> {
        Ok(Tables {
            endpoints: Table::new(names::ENDPOINTS, map(names::ENDPOINTS)?)?,
            pods: Table::new(names::PODS, map(names::PODS)?)?,
            ifaces: Table::new(names::IFACES, map(names::IFACES)?)?,
            peers: Table::new(names::PEERS, map(names::PEERS)?)?,
            cidrs: Table::new(names::CIDRS, map(names::CIDRS)?)?,
            services: Table::new(names::SERVICES, map(names::SERVICES)?)?,
            ports: Table::new(names::PORTS, map(names::PORTS)?)?,
            policy: Table::new(names::POLICY, map(names::POLICY)?)?,
            rules: Table::new(names::RULES, map(names::RULES)?)?,
            flows: Table::new(names::FLOWS, map(names::FLOWS)?)?,
            flow_counts: Table::new(names::FLOW_COUNTS, map(names::FLOW_COUNTS)?)?,
            frags: Table::new(names::FRAGS, map(names::FRAGS)?)?,
            origins: Table::new(names::ORIGINS, map(names::ORIGINS)?)?,
            drops: Table::per_cpu(names::DROPS, map(names::DROPS)?)?,
            config: Table::new(names::CONFIG, map(names::CONFIG)?)?,
        })
    }

    pub fn config(&self) -> Result<Config, BpfError> {
        Ok(self.config.get(&0)?.unwrap_or_default())
    }

    /// The whole configuration changes at once.
    pub fn set_config(&self, config: &Config) -> Result<(), BpfError> {
        self.config.put(&0, config)
    }

    /// Removes flows that are over at `now_s` (seconds of CLOCK_MONOTONIC; [`now_s`]), and of pods that are gone; counts the
    /// rest anew, for pods and for backends, whose numbers are below `end`. What the programs touch between the reading and
    /// the removal is read once more; should one come back even then, its next packet is judged anew.
    pub fn sweep_flows(&self, balance: &BalanceMaps, end: u32, now_s: u32) -> Result<Swept, BpfError> {
        let mut owned = Recount::begin(&self.flow_counts, u32::MAX)?;
        let mut actives = Recount::begin(&balance.actives, end)?;
        let flows = self.flows.read_all()?;
        // After the flows: a pod's interface is here before its first flow.
        let owners = Owners::of(self.ifaces.read_all()?);
        // Of a flow on the short way each direction has an entry, and the flow is over when both are.
        let lives = |(key, flow): &(FlowKey, Flow)| flow.is(Flow::FAST) && !flow.is_over(key.protocol, now_s);
        let alive: HashSet<FlowKey> = flows.iter().filter(|row| lives(row)).map(|(key, _)| *key).collect();
        let is_over = |key: &FlowKey, flow: &Flow| {
            flow.is_over(key.protocol, now_s) && !(flow.is(Flow::FAST) && alive.contains(&key.turned(flow)))
        };
        let mut swept = Swept::default();
        let mut backends = BTreeMap::new();
        for (key, flow) in flows {
            let is_stranded = match flow.is(Flow::NAT) {
                true => !has_backend(balance, &mut backends, flow.backend)?,
                false => false,
            };
            let again = |goes: &dyn Fn(&Flow) -> bool| -> Result<bool, BpfError> {
                Ok(self.flows.get(&key)?.is_some_and(|flow| goes(&flow)))
            };
            let strands = |now: &Flow| is_stranded && now.is(Flow::NAT) && now.backend == flow.backend;
            let over = |flow: &Flow| is_over(&key, flow) || strands(flow);
            let gone = |flow: &Flow| owners.are_gone(&key, flow);
            if over(&flow) && again(&over)? && self.flows.delete(&key)? {
                swept.over += 1;
            } else if gone(&flow) && again(&gone)? && self.flows.delete(&key)? {
                swept.orphans += 1;
            } else {
                swept.live += 1;
                owned.add(flow.pod);
                if flow.is(Flow::NAT) {
                    swept.held.insert(flow.backend);
                    // The other direction is the same connection.
                    if flow.is(Flow::FROM_POD) && flow.is_active(key.protocol) {
                        actives.add(flow.backend);
                    }
                }
            }
        }
        correct_owned(owned)?;
        actives.correct()?;
        Ok(swept)
    }

    /// Counts the flows of each pod: programs that do not count may have been at work, and flows have been copied.
    pub fn count_flows(&self) -> Result<(), BpfError> {
        let mut owned = Recount::begin(&self.flow_counts, u32::MAX)?;
        self.flows.read_all()?.iter().for_each(|(_, flow)| owned.add(flow.pod));
        correct_owned(owned)
    }
}

/// Do connections with this backend go on? What was read is in `known`.
fn has_backend(balance: &BalanceMaps, known: &mut BTreeMap<u32, bool>, backend: u32) -> Result<bool, BpfError> {
    if let Some(is_live) = known.get(&backend) {
        return Ok(*is_live);
    }
    let is_live = balance.backends.get(&backend)?.is_some_and(|row| row.has(Backend::LIVE));
    known.insert(backend, is_live);
    Ok(is_live)
}

/// Of each pod, and of all.
fn correct_owned(mut owned: Recount<'_>) -> Result<(), BpfError> {
    owned.found.insert(ALL_PODS, owned.found.values().sum());
    owned.correct()
}

/// Whose interfaces there are.
struct Owners {
    by_interface: BTreeMap<u32, u32>,
    pods: BTreeSet<u32>,
}

impl Owners {
    fn of(ifaces: Vec<(u32, Iface)>) -> Self {
        let by_interface: BTreeMap<u32, u32> = ifaces.into_iter().map(|(index, iface)| (index, iface.pod)).collect();
        let pods = by_interface.values().copied().collect();
        Owners { by_interface, pods }
    }

    /// Is this a flow of a pod that is gone? It counts for nobody any more, whoever has the pod's address or number now. An
    /// interface whose pod is not known at the moment has not lost it yet.
    fn are_gone(&self, key: &FlowKey, flow: &Flow) -> bool {
        match key.kind {
            // Met at an uplink, or at another pod's interface.
            FlowKey::BEHIND => !self.pods.contains(&flow.pod),
            _ => self.by_interface.get(&flow.ifindex).is_none_or(|pod| *pod != flow.pod && *pod != 0),
        }
    }
}

/// The clock of the flow table.
pub fn now_s() -> u32 {
    let now = nix::time::clock_gettime(nix::time::ClockId::CLOCK_MONOTONIC);
    now.map_or(0, |now| now.tv_sec() as u32)
}
