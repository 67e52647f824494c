//! Other sizes than those of the maps that are pinned, or another schema.
//!
//! The problem: a map keeps its size, and programs keep their maps. So there are new maps and new programs beside the old
//! ones, as for another schema: what is pinned gets the name of one, goes on judging while the new programs are attached,
//! and is removed when everything is in force (`stale.rs`). As rows mean the same in both, the new tables begin as a
//! copy of the old ones, with live flows; then this is a restart like any other. What an agent of an older schema left is
//! taken over in the same way, if its rows mean the same ([`ROWS_SINCE`]).
//!
//! Rows that do not fit, as the tables get smaller, are no reason to keep the old ones: then nothing is copied and the
//! new tables are written from the beginning, as for another schema. Of flows only those are left out that nobody needs, or
//! that another way knows.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
};

use kube_router_common::{
    balance::Vip,
    config::{Config, ROWS_SINCE, SCHEMA},
    flow::{Flow, FlowKey},
    packet::protocol,
    policy::ServiceKey,
};
use tracing::{info, warn};

use super::{
    BalanceMaps, BpfError, Tables, now_s,
    object::{self, Fit},
    root,
    table::{Row, Table},
};

/// So many agents may end one after the other before their tables are in force.
const MOST_MOVED: u32 = 100;

/// Numbers that no schema has.
fn moved_names() -> impl Iterator<Item = String> {
    std::iter::once(0).chain((u32::MAX - MOST_MOVED..=u32::MAX).rev()).map(|number| format!("v{number}"))
}

/// Moves what is pinned out of the way if its sizes are not these; says where it is then.
pub fn make_way(base: &Path, entries: &BTreeMap<&'static str, u32>) -> Result<Option<PathBuf>, BpfError> {
    let object = object::embedded().ok_or(BpfError::NoObject)?;
    let pins = root(base);
    let Fit::Resized { map, pinned, wanted } = object::fit(object, &pins, entries)? else { return Ok(None) };
    // More than one is taken if an agent ended before all was in force.
    let mut names = moved_names().map(|name| base.join(name));
    let Some(old) = names.find(|name| !name.exists()) else { return Ok(None) };
    fs::rename(&pins, &old).map_err(|source| BpfError::Pin { path: pins, source })?;
    info!(map, pinned, wanted, old = %old.display(), "tables get another size; the old ones judge until the new ones do");
    Ok(Some(old))
}

/// Copies the rows of `old`, if all of them fit. Returns its tables then, for [`take_over_flows`]. Until `learn_until_s` replies of
/// connections that began meanwhile are looked for.
pub fn take_over(old: &Path, to: &Tables, learn_until_s: u32) -> Result<Option<Tables>, BpfError> {
    let from = match Tables::open(old) {
        Ok(from) => from,
        Err(error) => {
            warn!(%error, "the tables are of an older agent; they are written anew");
            return Ok(None);
        }
    };
    if let Some(map) = first_too_small(&from, to)? {
        warn!(map, "rows do not fit the table's new size; tables are written anew");
        return Ok(None);
    }
    copy(&from.policy, &to.policy)?;
    copy_used(&from.ports, &to.ports)?;
    copy(&from.cidrs, &to.cidrs)?;
    copy(&from.peers, &to.peers)?;
    copy_used(&from.pods, &to.pods)?;
    copy_used(&from.rules, &to.rules)?;
    copy_used(&from.origins, &to.origins)?;
    copy(&from.services, &to.services)?;
    copy(&from.endpoints, &to.endpoints)?;
    copy(&from.ifaces, &to.ifaces)?;
    copy(&from.frags, &to.frags)?;
    copy_flows(&from.flows, &to.flows)?;
    // Last: whoever finds it finds all.
    to.set_config(&Config { learn_until_s, ..from.config()? })?;
    Ok(Some(from))
}

/// Tables of an older schema, or that were moved out of the way, and that are still in force: the first ones, as no agent since
/// then got as far as its own.
pub fn left_behind(base: &Path) -> Option<PathBuf> {
    let older = (ROWS_SINCE..SCHEMA).map(|schema| format!("v{schema}"));
    let is_used =
        |path: &PathBuf| Tables::open(path).and_then(|tables| tables.config()).is_ok_and(|of| of.generation != 0);
    older.chain(moved_names()).map(|name| base.join(name)).filter(|path| path.exists()).find(is_used)
}

/// Copies what the service fast path has, if the older agent knew it. Its tables have one size. Until the new programs are at
/// work the old ones leave new flows to IPVS, as nobody tells them of endpoints that go; `learn_until_s`: a flow of UDP
/// that is not known by then is none that IPVS got meanwhile.
pub fn take_over_balance(old: &Path, to: &BalanceMaps, learn_until_s: u32) -> Result<(), BpfError> {
    let Ok(from) = BalanceMaps::open(old) else { return Ok(()) };
    copy_used(&from.backends, &to.backends)?;
    copy_used(&from.actives, &to.actives)?;
    copy_used(&from.turns, &to.turns)?;
    copy_used(&from.vip_counts, &to.vip_counts)?;
    copy(&from.rings, &to.rings)?;
    // Last: whoever finds a row finds what it names.
    let rows = from.vips.read_all()?;
    let learning = |(key, vip): &(ServiceKey, Vip)| match key.protocol {
        protocol::UDP => (*key, Vip { learn_until_s: vip.learn_until_s.max(learn_until_s), ..*vip }),
        _ => (*key, *vip),
    };
    to.vips.put_all(&rows.iter().map(learning).collect::<Vec<_>>())?;
    from.vips.delete_all(&rows.iter().map(|(key, _)| *key).collect::<Vec<_>>()).map(drop)
}

/// Adds flows that began since the copy; those that are known by now stay as they are. A full table takes no more.
pub fn take_over_flows(from: &Tables, to: &Tables) -> Result<(), BpfError> {
    for (key, flow) in needed(from.flows.read_all()?) {
        match to.flows.insert(&key, &flow) {
            Err(error) if error.is_full() => break,
            other => drop(other?),
        }
    }
    to.count_flows()
}

fn first_too_small(from: &Tables, to: &Tables) -> Result<Option<&'static str>, BpfError> {
    fn rows<K: Row, V: Row>(from: &Table<K, V>, to: &Table<K, V>) -> Result<Option<&'static str>, BpfError> {
        Ok((from.read_all()?.len() > to.max_entries() as usize).then_some(to.name()))
    }
    fn numbers<V: Row>(from: &Table<u32, V>, to: &Table<u32, V>) -> Result<Option<&'static str>, BpfError> {
        Ok(used(from)?.last().is_some_and(|(number, _)| *number >= to.max_entries()).then_some(to.name()))
    }
    let small = [
        rows(&from.policy, &to.policy)?,
        rows(&from.cidrs, &to.cidrs)?,
        rows(&from.peers, &to.peers)?,
        rows(&from.services, &to.services)?,
        rows(&from.endpoints, &to.endpoints)?,
        rows(&from.ifaces, &to.ifaces)?,
        numbers(&from.pods, &to.pods)?,
        numbers(&from.rules, &to.rules)?,
        numbers(&from.origins, &to.origins)?,
    ];
    Ok(small.into_iter().flatten().next())
}

/// Elements of an array that are not as they began, in order.
fn used<V: Row>(table: &Table<u32, V>) -> Result<Vec<(u32, V)>, BpfError> {
    let mut rows = table.read_all()?;
    rows.retain(|(_, value)| value.as_bytes().iter().any(|byte| *byte != 0));
    rows.sort_unstable_by_key(|(number, _)| *number);
    Ok(rows)
}

fn copy_used<V: Row>(from: &Table<u32, V>, to: &Table<u32, V>) -> Result<(), BpfError> {
    to.put_all(&used(from)?)
}

/// Flows that are not over, and first those that no other way knows; of these first what is not about to end.
fn needed(mut rows: Vec<(FlowKey, Flow)>) -> Vec<(FlowKey, Flow)> {
    let now_s = now_s();
    rows.retain(|(key, flow)| !flow.is_over(key.protocol, now_s));
    rows.sort_by_key(|(key, flow)| (!flow.is(Flow::NAT), !flow.is_active(key.protocol), !flow.is(Flow::FAST)));
    rows
}

fn copy_flows(from: &Table<FlowKey, Flow>, to: &Table<FlowKey, Flow>) -> Result<(), BpfError> {
    let mut rows = from.read_all()?;
    let room = to.max_entries() as usize;
    if rows.len() > room {
        rows = needed(rows);
        let ended = rows.iter().skip(room).filter(|(_, flow)| flow.is(Flow::NAT)).count();
        if ended > 0 {
            warn!(ended, room, "the smaller table has no room for some entries of the service fast path: they end");
        }
        rows.truncate(room);
    }
    to.put_all(&rows)
}

fn copy<K: Row, V: Row>(from: &Table<K, V>, to: &Table<K, V>) -> Result<(), BpfError> {
    to.put_all(&from.read_all()?)
}
