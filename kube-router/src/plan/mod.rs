//! From "what should be" and "what is" to the least list of orders that leads from one to the other.
//!
//! Orders are data. A [`Plan`] is a list of stages; each stage is carried out by one plane before the next begins.
//!
//! ```text
//!   add:     sets (who may pass)  ->  IPVS (who answers; then for whom)  ->  addresses and routes (who is asked)
//!   remove:  port leaves its set  ->  IPVS  ->  addresses and routes  ->  address leaves its set  ->  UDP flows
//! ```
//!
//! So every prefix of a plan is safe: an address is never asked before its virtual server answers, and what is being
//! removed is shut before it is taken apart. New virtual servers are a stage of their own: policy's rows stand before one
//! of them has a destination (`reconcile/policy/answering.rs`). New destinations come before old ones go, and what goes is a stage,
//! too: the fast path lets go of a destination before IPVS does (`reconcile/balance.rs`).

pub mod adopt;
pub mod balance;
mod diff;
pub mod enforcement;
pub mod model;
pub mod numbers;
mod ops;
pub mod policy;
mod spared;
#[cfg(test)]
mod tests;

use std::{collections::BTreeSet, net::IpAddr};

use ipnet::IpNet;

pub use model::Observed;
pub use ops::{Backend, FirewallOp, IpvsOp, NetOp, ObservedFirewall, ObservedIpvs, ObservedNet, UdpFlow};

pub use spared::Spared;

use crate::desired::{Changes, Desired, Destination, SetElement, VirtualKey};
use diff::Builder;

/// Orders for one plane, carried out together.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Stage {
    Firewall(Vec<FirewallOp>),
    Ipvs(Vec<IpvsOp>),
    Net(Vec<NetOp>),
    Conntrack(Vec<UdpFlow>),
}

impl Stage {
    pub fn len(&self) -> usize {
        match self {
            Stage::Firewall(ops) => ops.len(),
            Stage::Ipvs(ops) => ops.len(),
            Stage::Net(ops) => ops.len(),
            Stage::Conntrack(flows) => flows.len(),
        }
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// Non-empty stages in the order in which they must be carried out.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Plan {
    pub stages: Vec<Stage>,
}

impl Plan {
    pub fn is_empty(&self) -> bool {
        self.stages.is_empty()
    }

    /// Number of orders.
    pub fn len(&self) -> usize {
        self.stages.iter().map(Stage::len).sum()
    }
}

/// What may be removed, and how.
#[derive(Clone, Copy, Debug)]
pub struct Guard<'a> {
    /// The view of the cluster is complete: what nobody wants may go. Otherwise orders only add.
    pub deletions: bool,
    /// This stays even then.
    pub spared: Option<&'a Spared>,
    /// Destinations are drained (weight 0) before they go; these have been drained long enough. `None`: no draining.
    pub drained: Option<&'a BTreeSet<(VirtualKey, Destination)>>,
    /// `--excluded-cidrs`: virtual servers in here are never removed.
    pub excluded: &'a [IpNet],
}

/// Orders for the keys that changed, leaving everything else unread.
pub fn plan_changes(changes: &Changes, desired: &Desired, observed: &Observed, guard: Guard<'_>) -> Plan {
    let mut builder = Builder::new(desired, observed, guard);
    let mut addresses: BTreeSet<IpAddr> = changes.vips.clone();
    for key in &changes.servers {
        builder.server(key);
        builder.element(SetElement::ServicePort(*key));
        addresses.insert(key.address);
    }
    for address in addresses {
        builder.vip(address);
        builder.element(SetElement::ServiceIp(address));
    }
    for hairpin in &changes.hairpins {
        builder.element(SetElement::Hairpin(*hairpin));
    }
    for address in &changes.local_ips {
        builder.element(SetElement::LocalIp(*address));
    }
    builder.finish()
}

/// What a full pass begins with: orders for all that does not hang on one address.
pub fn plan_foundation(desired: &Desired, observed: &Observed, guard: Guard<'_>) -> Plan {
    let mut builder = Builder::new(desired, observed, guard);
    builder.ruleset();
    builder.link();
    for mark in &observed.ipvs.marks {
        builder.foreign_mark(*mark);
    }
    let held = observed.firewall.nft.iter().chain(&observed.firewall.ipset).copied();
    for element in desired.node_elements().chain(held) {
        if matches!(element, SetElement::LocalIp(_) | SetElement::PodCidr(_)) {
            builder.element(element);
        }
    }
    builder.finish()
}

/// Every key that hangs on an address and is wanted or there. [`plan_changes`] over all of them, in the parts that
/// [`Changes::take_addresses`] gives, is the rest of a full pass: no need to hold the orders of a whole cluster.
pub fn all_keys(desired: &Desired, observed: &Observed) -> Changes {
    let mut all = Changes::default();
    all.servers.extend(desired.table.servers().map(|(key, _, _)| *key));
    all.servers.extend(observed.ipvs.servers.keys());
    all.vips.extend(desired.table.vips());
    all.vips.extend(&observed.net.dummy_addresses);
    all.vips.extend(observed.net.local_routes.keys());
    let held = observed.firewall.nft.iter().chain(&observed.firewall.ipset).copied();
    for element in desired.table.elements().chain(held) {
        match element {
            SetElement::ServiceIp(address) => drop(all.vips.insert(address)),
            SetElement::ServicePort(key) => drop(all.servers.insert(key)),
            SetElement::Hairpin(hairpin) => drop(all.hairpins.insert(hairpin)),
            SetElement::LocalIp(_) | SetElement::PodCidr(_) => {}
        }
    }
    all
}

/// Orders that remove exactly what is ours (`--cleanup-config`).
///
/// IPVS entries carry no owner. Ours are: a virtual server whose address is on kube-dummy-if or that is written down in
/// our sets (nftables `svip-prt`, ipset kube-router-svip-prt; the latter is also where the original writes its own),
/// unless its address is in an excluded CIDR.
pub fn plan_cleanup(observed: &Observed, excluded: &[IpNet]) -> Plan {
    let recorded = |key: &VirtualKey| {
        let element = SetElement::ServicePort(*key);
        observed.firewall.nft.contains(&element) || observed.firewall.ipset.contains(&element)
    };
    let ours = observed
        .ipvs
        .servers
        .keys()
        .filter(|key| observed.net.dummy_addresses.contains(&key.address) || recorded(key))
        .filter(|key| !excluded.iter().any(|cidr| cidr.contains(&key.address)))
        .map(|key| IpvsOp::DeleteServer { key: *key })
        .collect();
    let mut stages = vec![Stage::Ipvs(ours)];
    if observed.net.dummy_exists {
        stages.push(Stage::Net(vec![NetOp::DeleteDummy]));
    }
    if observed.firewall.tables_exist || observed.firewall.ipsets_any {
        stages.push(Stage::Firewall(vec![FirewallOp::DeleteAll]));
    }
    stages.retain(|stage| !stage.is_empty());
    Plan { stages }
}
