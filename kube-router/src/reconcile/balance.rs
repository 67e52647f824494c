//! When the tables of the service fast path are read, compiled and carried out: a part of the
//! [`Reconciler`](super::Reconciler), and like it without effects, clock or threads.
//!
//! ```text
//!   a destination comes:  IPVS ──> ring
//!   a destination goes:   ring ──> IPVS (weight 0, or away) ──> backend is not live
//!   a server goes:        row, ring ──> IPVS ──> backends are not live
//! ```
//!
//! Rings follow what IPVS has, so an order to IPVS that was carried out stirs its virtual server. Orders that close something
//! are told beforehand ([`Balancer::foresee`]), and the stage they are in waits for the ring without it. If tables cannot
//! be written, nobody waits: IPVS is the truth, and a virtual server whose ring was refused is left to it.
//!
//! The tables are read at the start, at every full pass of services, and after an order that failed; between, this is their
//! view as the orders leave it. Where a whole table has no room, who comes later waits for it on IPVS.

mod bring;
mod leftovers;
mod rest;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use kube_router_common::{
    balance::{MAX_BACKENDS, Vip},
    policy::ServiceKey,
};

pub use self::{
    bring::View,
    rest::{Sweep, Sweeping},
};
use self::{leftovers::place, rest::Resting};
use super::{MOST_NAMED, backoff::Backoff};
use crate::{
    apply::PlaneError,
    compile::{
        Problem, Subject,
        balance::{FastPath, Path, Why},
        policy::ip_of,
        service_ports::key_of,
    },
    config::ProxyConfig,
    desired::{Destination, VirtualKey, balance::BalanceTables},
    objects::Protocol,
    plan::{
        IpvsOp, Stage,
        balance::{BalanceOrder, ObservedBalance, plan_strays},
        numbers::Numbers,
    },
};

/// Rings that the kernel refuses, one after the other, before the rest waits as after any failure.
const REFUSED_AT_ONCE: usize = 8;

/// Rows written before the loop looks around again: some tens of milliseconds.
const CHUNK_ROWS: usize = 65_536;
/// Virtual servers compiled before their orders are carried out: mh's table takes up to a millisecond.
const SERVERS_AT_A_TIME: usize = 256;
/// Of those that wait for room, so many try again when some was freed.
const RETRIES: usize = 64;
/// How long IPVS may know a UDP flow of which it sees no packet: its own timeout, if nobody set it.
const UDP_TIMEOUT_S: u32 = 300;

/// The next thing to do for the fast path.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum BalanceStep {
    /// Read the tables; answer with [`Balancer::handle_observed`].
    Observe,
    /// Carry out until one fails; answer with [`Balancer::handle_applied`].
    Apply(Vec<BalanceOrder>),
    Wait {
        until_ms: Option<u64>,
    },
}

pub struct Balancer {
    fast: FastPath,
    learn_s: u32,
    /// As our orders leave them. `None`: they must be read.
    in_force: Option<BalanceTables>,
    numbers: Numbers,
    resting: Resting,
    /// To be compared with the tables.
    stirred: BTreeSet<VirtualKey>,
    /// All are.
    all: bool,
    /// What IPVS is about to be told to close.
    closing: BTreeMap<VirtualKey, Vec<IpvsOp>>,
    paths: BTreeMap<VirtualKey, Path>,
    waiting: BTreeSet<VirtualKey>,
    /// The kernel had no room for their rings since the last full pass.
    refused: BTreeSet<VirtualKey>,
    running: VecDeque<BalanceOrder>,
    read_at_ms: Option<u64>,
    /// One moment by the reconciler's clock and by that of the programs, in seconds.
    clocks: (u64, u32),
    backoff: Backoff,
    failure: Option<Problem>,
    problems: Option<Vec<Problem>>,
}

impl Balancer {
    pub fn new(fast: FastPath, proxy: &ProxyConfig) -> Self {
        let udp_s = u32::try_from(proxy.timeouts.udp.as_secs()).unwrap_or(u32::MAX);
        Balancer {
            fast,
            learn_s: udp_s.max(UDP_TIMEOUT_S),
            in_force: None,
            numbers: Numbers::default(),
            resting: Resting::default(),
            stirred: BTreeSet::new(),
            all: false,
            closing: BTreeMap::new(),
            paths: BTreeMap::new(),
            waiting: BTreeSet::new(),
            refused: BTreeSet::new(),
            running: VecDeque::new(),
            // Without our proxy there is no pass of services to begin with.
            read_at_ms: (!proxy.enabled).then_some(0),
            clocks: (0, 0),
            backoff: Backoff::default(),
            failure: None,
            problems: None,
        }
    }

    /// What these virtual servers should have may be something else now.
    pub fn stir<'a>(&mut self, servers: impl IntoIterator<Item = &'a VirtualKey>) {
        self.stirred.extend(servers);
    }

    /// A full pass begins: IPVS was read, or could not be.
    pub fn begin_pass(&mut self, now_ms: u64) {
        self.closing.clear();
        self.refused.clear();
        self.read_at_ms = Some(now_ms);
    }

    /// What IPVS was to be told is not told.
    pub fn forget_closing(&mut self) {
        self.stirred.extend(std::mem::take(&mut self.closing).into_keys());
    }

    /// Hears of orders before IPVS does. `true`: these have to wait for the tables.
    pub fn foresee(&mut self, stage: &Stage) -> bool {
        let (Stage::Ipvs(ops), Some(tables)) = (stage, &self.in_force) else { return false };
        let mut waits = false;
        for op in ops {
            let (IpvsOp::DeleteServer { key }
            | IpvsOp::DeleteDestination { key, .. }
            | IpvsOp::EditDestination { key, weight: 0, .. }) = op
            else {
                continue;
            };
            if tables.vips.get(&key_of(key)).is_none_or(Vip::rests) {
                continue;
            }
            let known = self.closing.entry(*key).or_default();
            if !known.contains(op) {
                known.push(op.clone());
                self.stirred.insert(*key);
                waits = true;
            }
        }
        waits
    }

    /// IPVS has carried the orders out, or refused them.
    pub fn follow(&mut self, stage: &Stage) {
        let Stage::Ipvs(ops) = stage else { return };
        for op in ops {
            let Some(key) = op.key() else { continue };
            self.stirred.insert(*key);
            if let Some(closing) = self.closing.get_mut(key) {
                closing.retain(|known| known != op);
                if closing.is_empty() {
                    self.closing.remove(key);
                }
            }
        }
    }

    /// Is there something to compare?
    pub fn is_stirred(&self) -> bool {
        self.in_force.is_some() && (self.all || !self.stirred.is_empty())
    }

    /// The next step. Call again after each answer until it says `Wait`. Without a view nothing is changed.
    pub fn poll(&mut self, view: Option<&View<'_>>, now_ms: u64) -> BalanceStep {
        loop {
            if !self.running.is_empty() {
                return BalanceStep::Apply(self.chunk());
            }
            let Some(view) = view else { return BalanceStep::Wait { until_ms: None } };
            if self.read_at_ms.is_some_and(|at| now_ms >= at) {
                return BalanceStep::Observe;
            }
            if !self.is_stirred() {
                self.settled();
                return BalanceStep::Wait { until_ms: self.read_at_ms };
            }
            self.compare(view, now_ms);
        }
    }

    fn chunk(&self) -> Vec<BalanceOrder> {
        let mut rows = 0;
        let fits = |order: &&BalanceOrder| {
            let first = rows == 0;
            rows += order.rows();
            first || rows <= CHUNK_ROWS
        };
        self.running.iter().take_while(fits).cloned().collect()
    }

    /// Answer to [`BalanceStep::Observe`].
    pub fn handle_observed(&mut self, result: Result<ObservedBalance, PlaneError>, now_ms: u64) {
        match result {
            Ok(observed) => {
                self.read_at_ms = None;
                self.clocks = (now_ms, observed.now_s);
                self.numbers = Numbers::of(&observed.tables, &self.numbers);
                self.resting.see(&observed.tables.backends, now_ms);
                self.in_force = Some(observed.tables);
                self.all = true;
            }
            Err(error) => self.failed(&error, now_ms),
        }
    }

    /// Answer to [`BalanceStep::Apply`]: so many of the orders were carried out.
    pub fn handle_applied(&mut self, done: usize, result: Result<(), PlaneError>, now_ms: u64) {
        for order in self.running.drain(..done.min(self.running.len())) {
            self.resting.follow(&order, now_ms);
        }
        let Err(error) = result else { return };
        let refused = self.ring_of_next().filter(|key| !self.refused.contains(key));
        self.failed(&error, now_ms);
        if let Some(key) = refused {
            self.refused.insert(key);
            // Each costs a reading of all tables: of many only the first ones are put aside at once.
            if self.refused.len() <= REFUSED_AT_ONCE {
                self.read_at_ms = Some(now_ms);
            }
        }
    }

    /// All flows were passed over.
    pub fn handle_swept(&mut self, sweep: Sweep) {
        let free = self.resting.take(sweep);
        self.release(&free);
    }

    /// How flows are to be passed over, while something drains or nothing does.
    pub fn sweeping(&self, drains: bool) -> Sweeping {
        let end = if self.in_force.is_some() { self.numbers.backends_end() } else { MAX_BACKENDS };
        Sweeping { is_awaited: self.fast.off.is_none() && drains, end }
    }

    /// May there be flows to this destination that IPVS does not see? It gets no new ones since then. While the tables are
    /// not known there may.
    pub fn may_have_flows(&self, server: &VirtualKey, destination: &Destination, since_ms: u64) -> bool {
        let vip = self.numbers.known_vip(&key_of(server));
        match vip.and_then(|vip| self.numbers.known_backend(vip, place(destination))) {
            Some(id) => self.resting.may_be_held(id, since_ms),
            None => self.in_force.is_none(),
        }
    }

    /// The tables are known, and nothing is left to be done.
    fn settled(&mut self) {
        if self.in_force.is_some() && self.failure.take().is_some() {
            self.backoff.succeed();
            self.report();
        }
    }

    /// Whose ring the next order writes or puts in force.
    fn ring_of_next(&self) -> Option<VirtualKey> {
        let row = |order: &BalanceOrder| match order {
            BalanceOrder::SetVip(key, vip) if !vip.rests() => server_of(key),
            _ => None,
        };
        match self.running.front()? {
            BalanceOrder::WriteRing(..) => self.running.iter().find_map(row),
            next => row(next),
        }
    }

    /// What the tables hold is not known any more.
    fn failed(&mut self, error: &PlaneError, now_ms: u64) {
        self.running.clear();
        self.in_force = None;
        self.read_at_ms = Some(now_ms.saturating_add(self.backoff.fail()));
        let text = format!("{error}; trying again");
        self.failure = Some(Problem { subject: SUBJECT, reason: "KernelRefused", text });
        self.report();
    }

    /// Compares some of what is stirred with the tables; the orders are to be carried out next.
    fn compare(&mut self, view: &View<'_>, now_ms: u64) {
        let Some(mut tables) = self.in_force.take() else { return };
        let waiting = self.waiting.len();
        if std::mem::take(&mut self.all) {
            self.stirred.extend(view.desired.table.servers().map(|(key, _, _)| key));
            self.stirred.extend(self.numbers.vips().filter_map(server_of));
            self.stirred.extend(std::mem::take(&mut self.paths).into_keys());
            let orders = plan_strays(&tables).into_iter().chain(self.nameless(&tables, view));
            self.order(orders.collect(), &mut tables);
        }
        for _ in 0..SERVERS_AT_A_TIME {
            let Some(key) = self.stirred.pop_first() else { break };
            let slots = tables.slots();
            self.bring(&key, view, &mut tables, now_ms);
            if tables.slots() < slots {
                self.stirred.extend(self.waiting.iter().take(RETRIES));
            }
        }
        self.in_force = Some(tables);
        if waiting > 0 || !self.waiting.is_empty() {
            self.report();
        }
    }

    fn order(&mut self, orders: Vec<BalanceOrder>, tables: &mut BalanceTables) {
        orders.iter().for_each(|order| tables.carry_out(order));
        self.running.extend(orders);
    }

    /// Who has the virtual server's new flows.
    pub fn path(&self, key: &VirtualKey) -> Path {
        self.paths.get(key).copied().unwrap_or(Path::Ipvs(Why::Missing))
    }

    /// Its row, as our orders leave it, unless it rests.
    pub fn row(&self, key: &VirtualKey) -> Option<Vip> {
        self.in_force.as_ref()?.vips.get(&key_of(key)).copied().filter(|row| !row.rests())
    }

    /// Standing problems, if they may have changed.
    pub fn take_problems(&mut self) -> Option<Vec<Problem>> {
        self.problems.take()
    }

    fn report(&mut self) {
        self.problems = Some(self.failure.iter().cloned().chain(self.no_room()).collect());
    }

    fn no_room(&self) -> Option<Problem> {
        let names: Vec<String> = self.waiting.iter().take(MOST_NAMED).map(VirtualKey::to_string).collect();
        let more = self.waiting.len().saturating_sub(names.len());
        let more = if more > 0 { format!(" and {more} more") } else { String::new() };
        let text = format!("the tables have no room for {}{more}: IPVS alone serves them", names.join(", "));
        (!names.is_empty()).then_some(Problem { subject: SUBJECT, reason: "TooManyFastServices", text })
    }
}

const SUBJECT: Subject = Subject::Kernel("service fast path");

/// The virtual server of a row, if its protocol is one that we know.
pub fn server_of(row: &ServiceKey) -> Option<VirtualKey> {
    Some(VirtualKey { address: ip_of(row.address), protocol: Protocol::from_number(row.protocol)?, port: row.port })
}
