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
    balance::{Backend, Vip},
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

/// Tables that may still be in force, of which flows are taken over when others are.
pub struct Before {
    tables: Tables,
    balance: Option<BalanceMaps>,
}

impl Before {
    pub fn open(root: &Path) -> Result<Self, BpfError> {
        Ok(Before { tables: Tables::open(root)?, balance: BalanceMaps::open(root).ok() })
    }

    /// Is the flow's backend the same there? A number may be another's.
    fn has_backend_of(&self, flow: &Flow, to: &BalanceMaps) -> Result<bool, BpfError> {
        let Some(balance) = &self.balance else { return Ok(false) };
        let place = |row: Option<Backend>| row.map(|row| (row.address, row.port, row.vip)).filter(|place| place.2 != 0);
        let (ours, theirs) = (place(to.backends.get(&flow.backend)?), place(balance.backends.get(&flow.backend)?));
        Ok(ours.is_some() && ours == theirs)
    }
}

/// Until when (seconds of CLOCK_MONOTONIC) something may be a flow that is not known: of TCP, and of UDP.
#[derive(Clone, Copy)]
pub struct LearnUntil {
    pub tcp_s: u32,
    pub udp_s: u32,
}

/// Copies the rows of `old`, and says whether all of them fit.
pub fn take_over(old: &Path, to: &Tables, balance: &BalanceMaps, learn: LearnUntil) -> Result<bool, BpfError> {
    let from = match Tables::open(old) {
        Ok(from) => from,
        Err(error) => {
            warn!(%error, "the tables are of an older agent; they are written anew");
            return Ok(false);
        }
    };
    if let Some(map) = first_too_small(&from, to)? {
        warn!(map, "rows do not fit the table's new size; tables are written anew, and connections past IPVS end");
        return Ok(false);
    }
    take_over_balance(old, balance, learn.udp_s)?;
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
    let config = from.config()?;
    // New flows take the fast path when all interfaces have the new programs.
    to.set_config(&Config { learn_until_s: learn.tcp_s, flags: config.flags & !Config::FAST, ..config })?;
    Ok(true)
}

/// Tables that may be in force still, as no agent since then got as far as its own: those that were moved out of the way, the
/// first one in front, and those of an older schema. Rows of the first of all are the latest that an agent began with.
pub fn left_behind(base: &Path) -> Vec<PathBuf> {
    let older = (ROWS_SINCE..SCHEMA).rev().map(|schema| format!("v{schema}"));
    let is_used =
        |path: &PathBuf| Tables::open(path).and_then(|tables| tables.config()).is_ok_and(|of| of.generation != 0);
    moved_names().chain(older).map(|name| base.join(name)).filter(|path| path.exists() && is_used(path)).collect()
}

/// Flows of UDP that IPVS got while nobody looked after the tables are not known.
pub fn learn_again(balance: &BalanceMaps, until_s: u32) -> Result<(), BpfError> {
    let mut rows = balance.vips.read_all()?;
    rows.retain(|(key, vip)| key.protocol == protocol::UDP && !vip.rests());
    rows.iter_mut().for_each(|(_, vip)| vip.learn_until_s = vip.learn_until_s.max(until_s));
    balance.vips.put_all(&rows)
}

/// Copies what the service fast path has, if the older agent knew it. Its tables have one size. Until the new programs are at
/// work the old ones leave new flows to IPVS, as nobody tells them of endpoints that go; `learn_until_s`: a flow of UDP
/// that is not known by then is none that IPVS got meanwhile.
fn take_over_balance(old: &Path, to: &BalanceMaps, learn_until_s: u32) -> Result<(), BpfError> {
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
pub fn take_over_flows(from: &Before, to: &Tables, balance: &BalanceMaps) -> Result<(), BpfError> {
    for (key, flow) in chosen(from.tables.flows.read_all()?, to.flows.max_entries(), now_s()) {
        if flow.is(Flow::NAT) && !from.has_backend_of(&flow, balance)? {
            continue;
        }
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

/// A smaller table takes those that no other way knows, and leaves room for new ones.
fn copy_flows(from: &Table<FlowKey, Flow>, to: &Table<FlowKey, Flow>) -> Result<(), BpfError> {
    let mut rows = from.read_all()?;
    let room = to.max_entries();
    if room < from.max_entries() && rows.len() > most_kept(room) {
        let known = |rows: &[(FlowKey, Flow)]| rows.iter().filter(|(_, flow)| flow.is(Flow::NAT)).count();
        let before = known(&rows);
        rows = chosen(rows, room, now_s());
        let left_out = before - known(&rows);
        if left_out > 0 {
            warn!(
                left_out,
                room, "the smaller table has no room for some entries of the service fast path, or they are over"
            );
        }
    }
    to.put_all(&rows)
}

/// Of a table with room for so many: the rest is for those who come.
const fn most_kept(room: u32) -> usize {
    (room - room / 8) as usize
}

/// Flows that are not over: first connections that no other way knows, with both of their halves, and of these first what is
/// not about to end; then the others, in half of the room at most.
fn chosen(rows: Vec<(FlowKey, Flow)>, room: u32, now_s: u32) -> Vec<(FlowKey, Flow)> {
    let rows: BTreeMap<FlowKey, Flow> = rows.into_iter().collect();
    let lives = |key: &FlowKey, flow: &Flow| !flow.is_over(key.protocol, now_s);
    // On the short way each direction has an entry, and the flow is over when both are.
    let other = |key: &FlowKey, flow: &Flow| {
        let (key, flow) = rows.get_key_value(&key.turned(flow)).filter(|_| flow.is(Flow::FAST))?;
        flow.is(Flow::FAST).then_some((*key, *flow))
    };
    let mut ranked: Vec<(&FlowKey, &Flow)> = rows
        .iter()
        .filter(|(key, flow)| lives(key, flow) || other(key, flow).is_some_and(|(key, flow)| lives(&key, &flow)))
        .collect();
    ranked.sort_by_key(|(key, flow)| (!flow.is(Flow::NAT), !flow.is_active(key.protocol), !flow.is(Flow::FAST)));
    let mut kept = BTreeMap::new();
    for (key, flow) in ranked {
        let both = [Some((*key, *flow)), other(key, flow)].into_iter().flatten();
        let most = if flow.is(Flow::NAT) { most_kept(room) } else { room as usize / 2 };
        if !kept.contains_key(key) && kept.len() + both.clone().count() <= most {
            kept.extend(both);
        }
    }
    kept.into_iter().collect()
}

fn copy<K: Row, V: Row>(from: &Table<K, V>, to: &Table<K, V>) -> Result<(), BpfError> {
    to.put_all(&from.read_all()?)
}

#[cfg(test)]
mod tests {
    use kube_router_common::{flow::Tcp, policy::Address};

    use super::*;

    const NOW_S: u32 = 10_000;
    const CLIENT: [u8; 4] = [10, 0, 0, 1];
    const SERVICE: [u8; 4] = [10, 96, 0, 1];
    const BACKEND: [u8; 4] = [10, 0, 0, 2];

    /// Both halves of a connection between two pods of the node, seen so many seconds ago.
    fn pair(port: u16, state: u8, ages_s: [u32; 2]) -> [(FlowKey, Flow); 2] {
        let protocol = if state == Tcp::NONE { protocol::UDP } else { protocol::TCP };
        let key = |local, local_port, peer, peer_port| FlowKey {
            local: Address::from_v4(local),
            peer: Address::from_v4(peer),
            local_port,
            peer_port,
            protocol,
            ..FlowKey::default()
        };
        let flow = |flags, to, to_port, age_s| Flow {
            flags: Flow::NAT | Flow::FAST | Flow::REPLIED | flags,
            to: Address::from_v4(to),
            to_port,
            state,
            last_seen_s: NOW_S - age_s,
            ..Flow::default()
        };
        let own = (key(CLIENT, port, SERVICE, 53), flow(Flow::FROM_POD, BACKEND, 5353, ages_s[0]));
        [own, (key(BACKEND, 5353, CLIENT, port), flow(0, SERVICE, 53, ages_s[1]))]
    }

    fn plain(port: u16) -> (FlowKey, Flow) {
        let (key, flow) = pair(port, Tcp::ESTABLISHED, [0; 2])[0];
        (key, Flow { flags: Flow::REPLIED, ..flow })
    }

    #[test]
    fn halves_stay_together() {
        let [own, far] = pair(1, Tcp::NONE, [0; 2]);
        assert_eq!((own.0.turned(&own.1), far.0.turned(&far.1)), (far.0, own.0));
        // The client asked once, and the backend still talks.
        let rows = [pair(1, Tcp::NONE, [9_000, 1]), pair(2, Tcp::NONE, [9_000; 2])].concat();
        assert_eq!(
            chosen(rows.clone(), 64, NOW_S),
            BTreeMap::from_iter(pair(1, Tcp::NONE, [9_000, 1])).into_iter().collect::<Vec<_>>()
        );
        // No half is kept alone for want of room: seven of eight places are three pairs.
        let rows: Vec<_> = (0..100).flat_map(|port| pair(port, Tcp::ESTABLISHED, [0; 2])).collect();
        let kept: BTreeMap<FlowKey, Flow> = chosen(rows, 8, NOW_S).into_iter().collect();
        assert_eq!(kept.len(), 6);
        assert!(kept.iter().all(|(key, flow)| kept.contains_key(&key.turned(flow))));
    }

    #[test]
    fn what_only_these_tables_know_comes_first_and_there_is_room_for_others() {
        let of = |rows: &[(FlowKey, Flow)]| {
            let translated = rows.iter().filter(|(_, flow)| flow.is(Flow::NAT)).count();
            (translated, rows.iter().filter(|(_, flow)| flow.state == Tcp::TIME_WAIT).count(), rows.len())
        };
        let rows = |live: u16, ending: u16, others: u16| {
            let live = (0..live).flat_map(|port| pair(port, Tcp::ESTABLISHED, [0; 2]));
            let ending = (1_000..1_000 + ending).flat_map(|port| pair(port, Tcp::TIME_WAIT, [0; 2]));
            live.chain(ending).chain((2_000..2_000 + others).map(plain)).collect::<Vec<_>>()
        };
        assert_eq!(of(&chosen(rows(20, 100, 100), 64, NOW_S)), (56, 16, 56));
        assert_eq!(of(&chosen(rows(5, 5, 100), 64, NOW_S)), (20, 10, 32));
        assert_eq!(of(&chosen(rows(0, 0, 100), 64, NOW_S)), (0, 0, 32));
    }
}
