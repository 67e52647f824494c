//! Counts of virtual servers on both paths: what IPVS counts, and what the programs of the fast path count, which IPVS never
//! sees.
//!
//! IPVS estimates its rates itself. Those of the fast path are what was added since the last reading, which is the last
//! scrape but for those that follow each other at once.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use kube_router_common::balance::VipCount;

use super::StatsSource;
use crate::{
    apply::{PlaneError, ServerStats},
    desired::VirtualKey,
};

/// Readings that are nearer to each other have the same rates.
const APART: Duration = Duration::from_secs(1);

/// What one virtual server did, by path.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PathStats {
    pub ipvs: ServerStats,
    pub fast: ServerStats,
}

impl PathStats {
    pub fn total(&self) -> ServerStats {
        let (a, b) = (&self.ipvs, &self.fast);
        ServerStats {
            connections: a.connections + b.connections,
            packets_in: a.packets_in + b.packets_in,
            packets_out: a.packets_out + b.packets_out,
            bytes_in: a.bytes_in + b.bytes_in,
            bytes_out: a.bytes_out + b.bytes_out,
            connections_per_s: a.connections_per_s + b.connections_per_s,
            packets_in_per_s: a.packets_in_per_s + b.packets_in_per_s,
            packets_out_per_s: a.packets_out_per_s + b.packets_out_per_s,
            bytes_in_per_s: a.bytes_in_per_s + b.bytes_in_per_s,
            bytes_out_per_s: a.bytes_out_per_s + b.bytes_out_per_s,
        }
    }
}

/// Where the fast path's counts come from. Read on a worker thread, by one scrape at a time.
pub trait FastSource: Send {
    /// Of every virtual server that has a row.
    fn counts(&mut self) -> Result<BTreeMap<VirtualKey, VipCount>, PlaneError>;
}

/// A source of both.
pub struct BothPaths {
    ipvs: Box<dyn StatsSource>,
    fast: Box<dyn FastSource>,
    rates: Rates,
}

impl BothPaths {
    pub fn new(ipvs: Box<dyn StatsSource>, fast: Box<dyn FastSource>) -> Self {
        BothPaths { ipvs, fast, rates: Rates::default() }
    }
}

impl StatsSource for BothPaths {
    fn server_stats(&mut self) -> Result<BTreeMap<VirtualKey, PathStats>, PlaneError> {
        let mut stats = self.ipvs.server_stats()?;
        for (key, fast) in self.rates.of(Instant::now(), self.fast.counts()?) {
            // One that IPVS does not have yet, or any more, is not shown.
            if let Some(stats) = stats.get_mut(&key) {
                stats.fast = fast;
            }
        }
        Ok(stats)
    }
}

/// The last reading, and the one that its rates are since.
#[derive(Default)]
struct Rates {
    read: Option<Instant>,
    stats: BTreeMap<VirtualKey, ServerStats>,
}

impl Rates {
    fn of(&mut self, now: Instant, counts: BTreeMap<VirtualKey, VipCount>) -> BTreeMap<VirtualKey, ServerStats> {
        let passed = self.read.map(|read| now.saturating_duration_since(read));
        let is_apart = passed.is_none_or(|passed| passed >= APART);
        let stats = counts.into_iter().map(|(key, count)| {
            let before = self.stats.get(&key).copied();
            (key, with_rates(&count, before.unwrap_or_default(), passed.filter(|_| is_apart && before.is_some())))
        });
        let stats: BTreeMap<VirtualKey, ServerStats> = stats.collect();
        if is_apart {
            (self.read, self.stats) = (Some(now), stats.clone());
        }
        stats
    }
}

/// `passed`: since `before`; `None`: its rates stay.
fn with_rates(count: &VipCount, before: ServerStats, passed: Option<Duration>) -> ServerStats {
    let rate = |now: u64, then: u64, as_it_was: u64| match passed {
        Some(passed) => (now.saturating_sub(then) as f64 / passed.as_secs_f64()).round() as u64,
        None => as_it_was,
    };
    ServerStats {
        connections: count.connections,
        packets_in: count.packets_in,
        packets_out: count.packets_out,
        bytes_in: count.bytes_in,
        bytes_out: count.bytes_out,
        connections_per_s: rate(count.connections, before.connections, before.connections_per_s),
        packets_in_per_s: rate(count.packets_in, before.packets_in, before.packets_in_per_s),
        packets_out_per_s: rate(count.packets_out, before.packets_out, before.packets_out_per_s),
        bytes_in_per_s: rate(count.bytes_in, before.bytes_in, before.bytes_in_per_s),
        bytes_out_per_s: rate(count.bytes_out, before.bytes_out, before.bytes_out_per_s),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::observe::traffic::tests::key;

    /// One server of IPVS's, and counts that grow by as much with every reading.
    struct Server(u64);

    impl StatsSource for Server {
        fn server_stats(&mut self) -> Result<BTreeMap<VirtualKey, PathStats>, PlaneError> {
            let ipvs = ServerStats { connections: 5, bytes_in: 100, ..ServerStats::default() };
            Ok([(key("10.96.0.1", 80), PathStats { ipvs, ..PathStats::default() })].into())
        }
    }

    impl FastSource for Server {
        fn counts(&mut self) -> Result<BTreeMap<VirtualKey, VipCount>, PlaneError> {
            self.0 += 7;
            let count = VipCount { connections: self.0, bytes_in: 10 * self.0, ..VipCount::default() };
            Ok([(key("10.96.0.1", 80), count), (key("10.96.0.2", 80), count)].into())
        }
    }

    #[test]
    fn both_paths_are_added_up_for_what_ipvs_has() {
        let stats = BothPaths::new(Box::new(Server(0)), Box::new(Server(0))).server_stats().expect("stats");
        assert_eq!(stats.len(), 1);
        let stats = stats[&key("10.96.0.1", 80)];
        assert_eq!((stats.ipvs.connections, stats.fast.connections, stats.total().connections), (5, 7, 12));
        assert_eq!(stats.total().bytes_in, 170);
    }

    #[test]
    fn rates_are_what_came_since_the_last_reading() {
        let (mut rates, mut source, start) = (Rates::default(), Server(0), Instant::now());
        let mut at = |ms| {
            let stats = rates.of(start + Duration::from_millis(ms), source.counts().expect("counts"));
            let stats = stats[&key("10.96.0.1", 80)];
            (stats.connections, stats.connections_per_s, stats.bytes_in_per_s)
        };
        assert_eq!(at(0), (7, 0, 0));
        assert_eq!(at(2_000), (14, 4, 35));
        assert_eq!(at(2_500), (21, 4, 35), "too near to tell");
        assert_eq!(at(4_000), (28, 7, 70), "14 in two seconds");
    }
}
