//! `kube-router replay FILE`: takes a recording of `--record` in again, event by event, and prints which orders each
//! event caused and what the node held in the end. Needs no root and touches no kernel.

use std::path::Path;

use anyhow::Result;

use super::{OutputFormat, plan, reading, rehearsal::Rehearsal};
use crate::{
    config::Config,
    objects::ObjectEvent,
    plan::{IpvsOp, NetOp, Stage},
};

/// # Errors
/// The file cannot be read, or is no recording. A line that cannot be understood is named and passed over.
pub fn replay(file: &Path, config: &Config) -> Result<()> {
    let mut rehearsal = Rehearsal::new(config);
    let mut out = String::new();
    reading::recorded_lines(file, |at_ms, event| {
        let title = title(&event);
        rehearsal.at(at_ms);
        rehearsal.take(event);
        let stages = rehearsal.settle();
        if !stages.is_empty() {
            out.push_str(&format!("{:>10.3} s  {title}\n", at_ms as f64 / 1_000.0));
            stages.iter().filter_map(order).for_each(|order| out.push_str(&format!("{:14}{order}\n", "")));
        }
    })?;
    super::print(&out)?;
    super::print(&plan::show(rehearsal, OutputFormat::Text)?)
}

fn title(event: &ObjectEvent) -> String {
    match event {
        ObjectEvent::Applied(object) => format!("{} {} applied", object.kind(), object.key()),
        ObjectEvent::Deleted(kind, key) => format!("{kind} {key} deleted"),
        ObjectEvent::Kept(kind, key) => format!("{kind} {key} cannot be understood, stays as it was"),
        ObjectEvent::RelistStarted(kind) => format!("{kind}: list begins"),
        ObjectEvent::RelistDone(kind) => format!("{kind}: list complete"),
        ObjectEvent::Unavailable { kind, reason } => format!("{kind} unavailable: {reason}"),
        ObjectEvent::Rejected { source, .. } => format!("{source} rejected"),
        ObjectEvent::Accepted { source } => format!("{source} accepted"),
    }
}

/// One line for an order; set elements follow from these and are left out.
fn order(stage: &Stage) -> Option<String> {
    match stage {
        Stage::Ipvs(ops) => ops.first().map(|op| match op {
            IpvsOp::AddServer { key, server } => format!("add virtual server {key} {}", server.scheduler.name()),
            IpvsOp::EditServer { key, server } => format!("change virtual server {key} to {}", server.scheduler.name()),
            IpvsOp::DeleteServer { key } => format!("remove virtual server {key}"),
            IpvsOp::DeleteMarkServer { mark, .. } => format!("remove virtual server of mark {mark}"),
            IpvsOp::AddDestination { key, destination, .. } => format!("add {destination} to {key}"),
            IpvsOp::EditDestination { key, destination, weight } => {
                format!("weight of {destination} in {key} is {weight}")
            }
            IpvsOp::DeleteDestination { key, destination } => format!("remove {destination} from {key}"),
        }),
        Stage::Net(ops) => ops.first().and_then(|op| match op {
            NetOp::AddAddress(address) => Some(format!("add address {address}")),
            NetOp::DeleteAddress(address) => Some(format!("remove address {address}")),
            _ => None,
        }),
        Stage::Firewall(_) | Stage::Conntrack(_) => None,
    }
}
