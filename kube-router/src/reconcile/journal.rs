//! The log of changes: what we did to the kernel, for which service. Silent when nothing is done.

use tracing::{info, warn};

use super::Foreign;
use crate::{
    desired::{Desired, VirtualKey},
    plan::{IpvsOp, NetOp, Stage, enforcement::PolicyOrder},
};

/// Stages longer than this are told as one line.
const DETAILED: usize = 16;

pub fn stage(stage: &Stage, desired: &Desired) {
    if stage.len() > DETAILED {
        let plane = match stage {
            Stage::Firewall(_) => "firewall",
            Stage::Ipvs(_) => "ipvs",
            Stage::Net(_) => "net",
            Stage::Conntrack(_) => "conntrack",
        };
        info!(plane, orders = stage.len(), "programming");
        return;
    }
    match stage {
        Stage::Ipvs(ops) => ops.iter().for_each(|op| ipvs(op, desired)),
        Stage::Net(ops) => ops.iter().for_each(net),
        // Sets and flows follow from the two above.
        Stage::Firewall(_) | Stage::Conntrack(_) => {}
    }
}

fn ipvs(op: &IpvsOp, desired: &Desired) {
    let service = |key: &VirtualKey| desired.table.server(key).map(|(owner, _)| owner.to_string()).unwrap_or_default();
    match op {
        IpvsOp::AddServer { key, server } => {
            info!(service = service(key), server = %key, scheduler = server.scheduler.name(), "virtual server added");
        }
        IpvsOp::EditServer { key, server } => {
            let (scheduler, persistence_s) = (server.scheduler.name(), server.persistence_s);
            info!(service = service(key), server = %key, scheduler, ?persistence_s, "virtual server changed");
        }
        IpvsOp::DeleteServer { key } => info!(server = %key, "virtual server removed"),
        IpvsOp::DeleteMarkServer { mark, .. } => info!(mark, "virtual server removed"),
        IpvsOp::AddDestination { key, destination, .. } => {
            info!(service = service(key), server = %key, %destination, "destination added");
        }
        IpvsOp::EditDestination { key, destination, weight } => {
            info!(service = service(key), server = %key, %destination, weight, "destination changed");
        }
        IpvsOp::DeleteDestination { key, destination } => {
            info!(service = service(key), server = %key, %destination, "destination removed");
        }
    }
}

fn net(op: &NetOp) {
    match op {
        NetOp::EnsureDummy => info!("kube-dummy-if set up"),
        NetOp::AddAddress(vip) => info!(%vip, "service address added to kube-dummy-if"),
        NetOp::DeleteAddress(vip) => info!(%vip, "service address removed from kube-dummy-if"),
        NetOp::DeleteDummy => info!("kube-dummy-if removed"),
        NetOp::SetLocalRoute { .. } | NetOp::DeleteLocalRoute { .. } => {}
    }
}

/// What pods are judged by: the interfaces one by one, the tables by their number of orders.
pub fn policy(orders: &[PolicyOrder]) {
    let is_table = |order: &&PolicyOrder| matches!(order, PolicyOrder::Table(_));
    let tables = orders.iter().filter(is_table).count();
    if tables > 0 {
        info!(plane = "policy", orders = tables, "programming");
    }
    let attached = orders.iter().filter(|order| matches!(order, PolicyOrder::Attach(..))).count();
    for order in orders {
        match order {
            PolicyOrder::Attach(..) if attached > DETAILED => {}
            PolicyOrder::Attach(ifindex, role) => info!(ifindex, ?role, "programs attached"),
            PolicyOrder::Detach(ifindex, role) => info!(ifindex, ?role, "programs taken off"),
            _ => {}
        }
    }
    if attached > DETAILED {
        info!(interfaces = attached, "programs attached");
    }
}

pub fn foreign(foreign: &Foreign) {
    for server in &foreign.servers {
        warn!(%server, "removing a virtual server that is not ours, as the original does; --excluded-cidrs keeps such");
    }
    for mark in &foreign.marks {
        warn!(mark, "removing a virtual server by firewall mark that is not ours, as the original does");
    }
}
