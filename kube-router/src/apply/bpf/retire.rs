//! What an agent with programs left, where this one runs without them.
//!
//! Programs that are attached go on with the tables that they find, which nobody keeps from now on. So they are told to do
//! nothing new: no pod is isolated, no interface is shut, nobody's address is looked at, and no new flow takes a way past the
//! stack. Flows that took one before know no other way: while there are some, programs and tables stay.

use std::{fs, path::Path};

use kube_router_common::{
    balance::Vip,
    config::{Config, Iface},
    flow::Flow,
    policy::{Address, PodGroups},
};

use super::{
    BalanceMaps, BpfError, Tables, now_s,
    stale::{remove_schema, schemas},
};
use crate::compile::interfaces::NOWHERE;

/// Puts what is pinned below `base` out of force, and takes away what no flow needs. Returns how many flows need the rest; 0:
/// nothing is left. Twice is once.
///
/// # Errors
/// Something may be in force still.
pub fn retire(base: &Path) -> Result<usize, BpfError> {
    let mut flows = 0;
    for schema in schemas(base) {
        let needed_by = match Tables::open(&schema) {
            Ok(tables) => disarm(&schema, &tables)?,
            // Another schema's, or a part only: nobody can tell it what to do.
            Err(_) => 0,
        };
        if needed_by == 0 {
            remove_schema(&schema)?;
        }
        flows += needed_by;
    }
    if flows == 0 {
        // With something of others in it, it stays.
        let _ = fs::remove_dir(base);
    }
    Ok(flows)
}

/// Returns how many flows take the short way, or one to a backend.
fn disarm(schema: &Path, tables: &Tables) -> Result<usize, BpfError> {
    let before = tables.config()?;
    let fast = before.has(Config::FAST | Config::FAST_FLOWS);
    let config = Config { flags: Config::NO_ANTISPOOF | if fast { Config::FAST_FLOWS } else { 0 }, ..before };
    if config != before {
        tables.set_config(&config)?;
    }
    // An older agent may have had none of these. Rings and backends stay for the flows that live.
    if let Ok(balance) = BalanceMaps::open(schema) {
        let rows = balance.vips.read_all()?.into_iter();
        balance.vips.put_all(&rows.map(|(key, vip)| (key, Vip::resting(vip.id))).collect::<Vec<_>>())?;
        // Of pods that are gone, and of those that ended without a word.
        tables.sweep_flows(&balance, 0, now_s())?;
    }
    let mut pods = tables.pods.read_all()?;
    pods.retain(|(_, groups)| *groups != PodGroups::default());
    for (pod, _) in pods {
        tables.pods.put(&pod, &PodGroups::default())?;
    }
    for (index, row) in tables.ifaces.read_all()? {
        let flags = row.flags & !(Iface::DEFAULT_DENY | Iface::SUSPECT);
        if flags != row.flags {
            tables.ifaces.put(&index, &Iface { flags, ..row })?;
        }
    }
    let endpoints = tables.endpoints.read_all()?.into_iter();
    let hidden: Vec<Address> = endpoints.filter(|(_, to)| to.ifindex == NOWHERE).map(|(address, _)| address).collect();
    tables.endpoints.delete_all(&hidden)?;
    let now_s = now_s();
    let flows = tables.flows.read_all()?;
    Ok(flows.iter().filter(|(key, flow)| flow.is(Flow::FAST) && !flow.is_over(key.protocol, now_s)).count())
}
