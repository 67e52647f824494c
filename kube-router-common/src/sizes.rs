//! How many rows each map holds: a handful of numbers that people can reason about, and what follows from them.
//!
//! | map | rows | bytes of a row, about | full |
//! |---|---|---|---|
//! | `kr_flows` | flows | 160 | no pod has more than are free: a further flow whose replies need an entry is refused, others pass uncounted among flows |
//! | `kr_frags` | flows / 64 | 150 | the oldest gives way; its later fragments fit rules without ports only |
//! | `kr_pods`, `kr_origins`, `kr_flow_counts` | pods | 44 | further pods are shut |
//! | `kr_eps` | 2 x pods: one address of each family | 110 | as above |
//! | `kr_ifaces` | pods + 1,024 uplinks, tunnels and the like | 90 | as above |
//! | `kr_drops` | 4 x pods: few pods are refused for many reasons | 16 a processor | counted for nobody |
//! | `kr_peers` | peers | 100 | a peer without a row is nobody that a rule names; pods that deny or pass are shut |
//! | `kr_cidrs` | peers / 2: a fourth, and as many again while they change | 100 | as above |
//! | `kr_services` | service ports | 120 | a pod with egress rules is judged by the service's address, which no rule names |
//! | `kr_policy` | rows | 100 | a group without all its rows has none, and its pods no new flows |
//! | `kr_rules` | rows / 16, at most 65,536 | 16 | counted as rule 0 |
//!
//! The other maps have one size: every port (`kr_ports`), 1 MiB of records (`kr_events`), single elements, and those of the
//! service fast path (`kr_vips` and its like, [`crate::balance`]): what finds no room there is IPVS's, as it would be without them.
//! Their arrays, which are there as a whole, have 20.5 MiB: 32 bytes for a backend and its connections, 168 for
//! turns and counts of a virtual server.

use crate::{
    config::{DEFAULT_FRAGS, DEFAULT_IFACES},
    names,
    policy::{
        DEFAULT_CIDRS, DEFAULT_DROPS, DEFAULT_ENDPOINTS, DEFAULT_FLOWS, DEFAULT_PEERS, DEFAULT_ROWS, DEFAULT_SERVICES,
        MAX_PODS, MAX_RULES,
    },
};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sizes {
    /// `--netpol-max-flows`
    pub flows: u32,
    /// `--netpol-max-pods`; one is nobody.
    pub pods: u32,
    /// `--netpol-max-peers`
    pub peers: u32,
    /// `--netpol-max-service-ports`
    pub services: u32,
    /// `--netpol-max-rows`
    pub rows: u32,
}

impl Default for Sizes {
    fn default() -> Self {
        Sizes {
            flows: DEFAULT_FLOWS,
            pods: MAX_PODS,
            peers: DEFAULT_PEERS,
            services: DEFAULT_SERVICES,
            rows: DEFAULT_ROWS,
        }
    }
}

/// Interfaces that are no pod's.
const UPLINKS: u32 = 1_024;

impl Sizes {
    /// Rows of a map; `None`: it has one size.
    pub fn of(&self, map: &str) -> Option<u32> {
        Some(match map {
            names::FLOWS => self.flows,
            names::FRAGS => (self.flows / 64).max(64),
            names::PODS | names::ORIGINS | names::FLOW_COUNTS => self.pods,
            names::ENDPOINTS => 2 * self.pods,
            names::IFACES => self.pods + UPLINKS,
            names::DROPS => 4 * self.pods,
            names::PEERS => self.peers,
            names::CIDRS => self.peers / 2,
            names::SERVICES => self.services,
            names::POLICY => self.rows,
            // The programs know no more.
            names::RULES => (self.rows / 16).clamp(2, MAX_RULES),
            _ => return None,
        })
    }
}

/// The sizes that the object is compiled with.
const _: () = {
    assert!(
        DEFAULT_FRAGS == DEFAULT_FLOWS / 64
            && DEFAULT_ENDPOINTS == 2 * MAX_PODS
            && DEFAULT_IFACES == MAX_PODS + UPLINKS
    );
    assert!(DEFAULT_DROPS == 4 * MAX_PODS && DEFAULT_CIDRS == DEFAULT_PEERS / 2 && MAX_RULES == DEFAULT_ROWS / 16);
};
