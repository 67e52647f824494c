//! The tables of IPVS's schedulers, slot by slot: which destination gets which clients.
//!
//! In: a virtual server's scheduler with its flags, its destinations in the kernel's order ([`DestinationList`]), the
//! sizes of the kernel's tables. Out: a *ring*, whose slots are indices into that list or [`NONE`]. What a packet's slot
//! is, `kube_router_common::schedule` tells; both together give the destination that the kernel would pick, as
//! `tests/ipvs_scheduling.rs` asks real kernels.
//!
//! **Order.** The kernel keeps destinations in a list and puts a new one *in front*; the tables are filled from front to
//! back. An edited destination stays where it is, one that is deleted and added again comes to the front, and a dump lists
//! them in this order. Which order the agent's own maps have is of no meaning here.
//!
//! **Weight 0.** What happens to clients of a destination whose weight is set to 0, as draining does:
//!
//! | scheduler | places in the table | its clients | the others |
//! |---|---|---|---|
//! | `sh` | one slot each time round instead of as many as its weight | refused; with sh-fallback the next slots' destinations get them | move, unless the weight was 1 before |
//! | `dh` | one slot each time round, as all have whatever their weight | refused | stay |
//! | `mh` | as many as with its last weight other than 0; none if it was added with 0 | refused; with mh-fallback spread over the others | stay |
//! | `rr` | none | | |
//!
//! Refused means ICMP port unreachable: the kernel does not look for somebody else. Here such slots say [`NONE`], and so does
//! the whole ring of a virtual server without destinations that could be picked. sh-fallback depends on the slot alone, so
//! a ring has it built in; mh-fallback depends on the client, and is `schedule::mh_fallback` on a ring with [`NONE`] in it.
//!
//! **Deleting.** When one of 100 destinations of the same weight leaves, 387 of 10,000 clients of mh move, 100 of which had
//! the one that left; of sh, 8,066, as it deals the slots out anew. dh does as sh. Both figures are means over the hundred
//! that could leave, with 4,093 and 256 slots; a test measures them.
//!
//! Not here: thresholds (a destination that has its fill counts as unavailable), which this agent never sets, and session
//! affinity, where only a client's first connection is a scheduler's matter.

use kube_router_common::schedule::{self, NONE, Tables};

use super::policy::address_of;
use crate::desired::{
    Destination, Scheduler,
    ipvs::{FLAG_SCHED_1, FLAG_SCHED_2},
};

/// A destination as the kernel has it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Listed {
    pub destination: Destination,
    pub weight: u32,
    /// The last weight other than 0 since it was added, for mh; 0 if there was none. `None`: nobody knows, as it had weight
    /// 0 when the list was read, and the kernel does not tell.
    pub last_weight: Option<u32>,
}

/// The destinations of one virtual server in the kernel's order, the newest first. It follows the orders that the kernel
/// carried out; those that it would refuse (to add twice, to edit what is not there) change nothing.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct DestinationList(Vec<Listed>);

impl DestinationList {
    /// From a dump, in the order of its messages.
    pub fn from_dump(dump: impl IntoIterator<Item = (Destination, u32)>) -> Self {
        let listed =
            |(destination, weight)| Listed { destination, weight, last_weight: (weight != 0).then_some(weight) };
        DestinationList(dump.into_iter().map(listed).collect())
    }

    /// The same for one that comes back while the kernel still has it in its trash.
    pub fn add(&mut self, destination: Destination, weight: u32) {
        if self.find(destination).is_none() {
            self.0.insert(0, Listed { destination, weight, last_weight: Some(weight) });
        }
    }

    pub fn edit(&mut self, destination: Destination, weight: u32) {
        if let Some(listed) = self.find(destination) {
            listed.weight = weight;
            if weight != 0 {
                listed.last_weight = Some(weight);
            }
        }
    }

    pub fn delete(&mut self, destination: Destination) {
        self.0.retain(|listed| listed.destination != destination);
    }

    /// Takes over last weights that a dump does not tell, if it tells of the destinations what `before` says.
    pub fn remember(&mut self, before: &DestinationList) {
        let told = |listed: &Listed| (listed.destination, listed.weight);
        if self.0.iter().map(told).eq(before.0.iter().map(told)) {
            self.clone_from(before);
        }
    }

    pub fn as_slice(&self) -> &[Listed] {
        &self.0
    }

    fn find(&mut self, destination: Destination) -> Option<&mut Listed> {
        self.0.iter_mut().find(|listed| listed.destination == destination)
    }
}

/// Does the client's port count for its slot?
pub fn hashes_port(scheduler: Scheduler, sched_flags: u32) -> bool {
    matches!(scheduler, Scheduler::Sh | Scheduler::Mh) && sched_flags & FLAG_SCHED_2 != 0
}

/// The table that the kernel has for these destinations; for rr, which has none, all that take their turns, once each.
///
/// `None` where the next pick cannot be foretold, so that the virtual server must stay IPVS's: other schedulers, a
/// last weight that is not known (mh), more destinations than slots (mh: the kernel goes on with its old table), a weight
/// that no kernel has.
pub fn ring(scheduler: Scheduler, sched_flags: u32, list: &[Listed], tables: &Tables) -> Option<Vec<u32>> {
    if list.iter().any(|listed| i32::try_from(listed.weight).is_err()) {
        return None;
    }
    let is_open = |index: u32| list.get(index as usize).is_some_and(|listed| listed.weight > 0);
    let answer = |index: u32| if is_open(index) { index } else { NONE };
    Some(match scheduler {
        Scheduler::Rr => (0_u32..).zip(list).map(|(index, _)| index).filter(|index| is_open(*index)).collect(),
        Scheduler::Dh => {
            let turns = vec![1; list.len()];
            dealt(&turns, 1_usize.checked_shl(tables.dh_bits)?).into_iter().map(answer).collect()
        }
        Scheduler::Sh => {
            let turns: Vec<u32> = list.iter().map(|listed| listed.weight.max(1)).collect();
            let table: Vec<u32> = dealt(&turns, 1_usize.checked_shl(tables.sh_bits)?).into_iter().map(answer).collect();
            if sched_flags & FLAG_SCHED_1 == 0 { table } else { with_sh_fallback(&table) }
        }
        Scheduler::Mh => mh_table(list, tables)?.into_iter().map(answer).collect(),
        Scheduler::Lc | Scheduler::Other => return None,
    })
}

/// Slots dealt out round and round: so many to each in its turn. Without anybody, [`NONE`].
fn dealt(turns: &[u32], slots: usize) -> Vec<u32> {
    let round = (0_u32..).zip(turns).flat_map(|(index, turns)| std::iter::repeat_n(index, *turns as usize));
    let mut table: Vec<u32> = round.cycle().take(slots).collect();
    table.resize(slots, NONE);
    table
}

/// Whom a slot's clients get if it has nobody: from the slot of twice its number on, as it is their hash and where the
/// search begins at once, the first that has somebody.
fn with_sh_fallback(table: &[u32]) -> Vec<u32> {
    let others = |slot: usize| (0..table.len()).map(move |offset| table[(2 * slot + offset) % table.len()]);
    let answer = |slot: usize| std::iter::once(table[slot]).chain(others(slot)).find(|index| *index != NONE);
    (0..table.len()).map(|slot| answer(slot).unwrap_or(NONE)).collect()
}

/// Maglev hashing: each destination has an order of its own in which it wants the slots, and they take one, or as many as
/// their share is, in turns until none is left.
fn mh_table(list: &[Listed], tables: &Tables) -> Option<Vec<u32>> {
    let slots = tables.mh_slots()?;
    let weights: Vec<u32> = list.iter().map(|listed| listed.last_weight).collect::<Option<_>>()?;
    if list.len() > slots as usize {
        return None;
    }
    let mut table = vec![NONE; slots as usize];
    let shares = mh_shares(&weights, tables);
    if shares.iter().all(|share| *share == 0) {
        return Some(table);
    }
    let mut wishes: Vec<(usize, usize)> = list.iter().map(|listed| mh_wish(listed.destination, slots)).collect();
    let mut left = table.len();
    loop {
        for ((index, (next, skip)), share) in (0_u32..).zip(&mut wishes).zip(&shares) {
            for _ in 0..*share {
                while table[*next] != NONE {
                    *next = (*next + *skip) % table.len();
                }
                table[*next] = index;
                left -= 1;
                if left == 0 {
                    return Some(table);
                }
            }
        }
    }
}

/// The first slot that a destination wants, and the step to the next.
fn mh_wish(destination: Destination, slots: u32) -> (usize, usize) {
    let key = schedule::key(&address_of(destination.ip()), destination.port());
    let (offset, skip) = schedule::mh_places(key, slots);
    (offset as usize, skip as usize)
}

/// Slots that each takes at a time: weights without what they all have in common, and so small that a round is a small
/// part of the table; but at least one.
fn mh_shares(weights: &[u32], tables: &Tables) -> Vec<u32> {
    let common = weights.iter().copied().fold(0, greatest_common_divisor);
    if common == 0 {
        return vec![0; weights.len()];
    }
    let most = weights.iter().max().map_or(0, |most| most / common);
    let shift = (u32::BITS - most.leading_zeros()).saturating_sub(tables.mh_index / 2);
    weights.iter().map(|weight| ((weight / common) >> shift).max(u32::from(*weight != 0))).collect()
}

fn greatest_common_divisor(a: u32, b: u32) -> u32 {
    if b == 0 { a } else { greatest_common_divisor(b, a % b) }
}
