//! Orders to everything that enforces policy: tables, interfaces, programs, and their order.
//!
//! ```text
//!   settings
//!   rows, ports, prefixes, peers, groups of pods       plan/policy.rs: whatever was done so far, the answer is right
//!   endpoints, rows of interfaces, programs            a pod is known once its groups are; a row comes before programs
//!   generation                                         live flows are judged again
//!   endpoints, programs, rows of interfaces that go
//!   pods, rows of policy that go
//! ```
//!
//! Orders are carried out one after the other, and never one after another that failed.

use std::collections::BTreeMap;

use kube_router_common::{
    config::{Config, Iface},
    policy::{Address, Endpoint, Service, ServiceKey},
};

use super::policy::PolicyOp;
use crate::{
    compile::links::Links,
    desired::{
        interfaces::{InterfaceChanges, Interfaces, Role},
        policy::PolicyTables,
    },
};

/// What the agent tells the programs; [`Config`] without what changes by itself.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Settings {
    /// `Config::SILENT` and the others.
    pub flags: u32,
}

impl Settings {
    pub fn of(config: &Config) -> Self {
        Settings { flags: config.flags }
    }
}

/// What the kernel holds of policy.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ObservedPolicy {
    /// Without rules, which the kernel knows by number only.
    pub tables: PolicyTables,
    /// `attached` holds what has the programs of this agent.
    pub interfaces: Interfaces,
    pub services: BTreeMap<ServiceKey, Service>,
    pub settings: Settings,
    pub links: Links,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PolicyOrder {
    SetSettings(Settings),
    Table(PolicyOp),
    SetService(ServiceKey, Service),
    DeleteService(ServiceKey),
    SetEndpoint(Address, Endpoint),
    SetIface(u32, Iface),
    Attach(u32, Role),
    DeleteEndpoint(Address),
    Detach(u32, Role),
    DeleteIface(u32),
}

/// `ops` come from [`super::policy::plan_policy`]; endpoints are taken from `changes`, which know their interfaces.
pub fn plan_enforcement(
    ops: Vec<PolicyOp>,
    services: &BTreeMap<ServiceKey, Option<Service>>,
    changes: &InterfaceChanges,
) -> Vec<PolicyOrder> {
    let is_late =
        |op: &PolicyOp| matches!(op, PolicyOp::BumpGeneration | PolicyOp::DeletePod(_) | PolicyOp::DeleteRow(_));
    let mut orders = Vec::with_capacity(ops.len());
    let (mut generation, mut late) = (None, Vec::new());
    for op in ops {
        match op {
            PolicyOp::SetEndpoint(..) | PolicyOp::DeleteEndpoint(_) => {}
            PolicyOp::BumpGeneration => generation = Some(PolicyOrder::Table(op)),
            op if is_late(&op) => late.push(PolicyOrder::Table(op)),
            op => orders.push(PolicyOrder::Table(op)),
        }
    }
    // What goes makes room, and nobody answers there any more.
    orders.extend(services.iter().filter(|(_, row)| row.is_none()).map(|(key, _)| PolicyOrder::DeleteService(*key)));
    orders.extend(services.iter().filter_map(|(key, row)| Some(PolicyOrder::SetService(*key, (*row)?))));
    let endpoints = changes.endpoints.iter();
    orders.extend(endpoints.clone().filter_map(|(address, to)| Some(PolicyOrder::SetEndpoint(*address, (*to)?))));
    orders.extend(changes.ifaces.iter().filter_map(|(index, to)| Some(PolicyOrder::SetIface(*index, (*to)?))));
    orders.extend(changes.attach.iter().map(|(index, role)| PolicyOrder::Attach(*index, *role)));
    orders.extend(generation);
    let gone = endpoints.filter(|(_, to)| to.is_none());
    orders.extend(gone.map(|(address, _)| PolicyOrder::DeleteEndpoint(*address)));
    // Of two roles the new one has its programs by now.
    let other = |index: &u32| changes.attach.contains_key(index);
    orders.extend(
        changes.detach.iter().filter(|(i, _)| !other(i)).map(|(index, role)| PolicyOrder::Detach(*index, *role)),
    );
    let gone = changes.ifaces.iter().filter(|(_, to)| to.is_none());
    orders.extend(gone.map(|(index, _)| PolicyOrder::DeleteIface(*index)));
    orders.extend(late);
    orders
}

impl ObservedPolicy {
    /// What an order does.
    pub fn carry_out(&mut self, order: &PolicyOrder) {
        match order {
            PolicyOrder::SetSettings(settings) => self.settings = *settings,
            PolicyOrder::Table(op) => self.tables.carry_out(op),
            PolicyOrder::SetService(key, row) => drop(self.services.insert(*key, *row)),
            PolicyOrder::DeleteService(key) => drop(self.services.remove(key)),
            PolicyOrder::SetEndpoint(address, endpoint) => drop(self.tables.endpoints.insert(*address, endpoint.pod)),
            PolicyOrder::DeleteEndpoint(address) => drop(self.tables.endpoints.remove(address)),
            _ => {}
        }
        self.interfaces.carry_out(order);
    }
}

impl Interfaces {
    /// What an order does.
    pub fn carry_out(&mut self, order: &PolicyOrder) {
        match order {
            PolicyOrder::SetSettings(_)
            | PolicyOrder::Table(_)
            | PolicyOrder::SetService(..)
            | PolicyOrder::DeleteService(_) => {}
            PolicyOrder::SetEndpoint(address, endpoint) => drop(self.endpoints.insert(*address, *endpoint)),
            PolicyOrder::SetIface(index, iface) => drop(self.ifaces.insert(*index, *iface)),
            PolicyOrder::Attach(index, role) => drop(self.attached.insert(*index, *role)),
            PolicyOrder::DeleteEndpoint(address) => drop(self.endpoints.remove(address)),
            PolicyOrder::Detach(index, _) => drop(self.attached.remove(index)),
            PolicyOrder::DeleteIface(index) => {
                self.ifaces.remove(index);
                // The row goes last: an interface without one is gone, or has lost its programs.
                self.attached.remove(index);
            }
        }
    }
}
