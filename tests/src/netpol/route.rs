//! How a pod is addressed, what may come of it, and which questions a round asks where it cannot ask all.

use std::{fmt, net::SocketAddr};

use super::{
    Objects, plan,
    table::{Cell, Pair},
};

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Route {
    /// Its own address.
    Direct,
    /// The same: a headless service is a name that resolves to the pod's own address. Only what is told of it is another
    /// question.
    Headless,
    ClusterIp,
    /// A node's address, and the port of the pod's service there.
    NodePort(usize),
}

impl Route {
    pub fn target(self, pair: Pair) -> SocketAddr {
        match self {
            Route::Direct | Route::Headless => plan::socket(pair.to, pair.port, pair.ipv4),
            Route::ClusterIp => (plan::cluster_ip(pair.to, pair.ipv4), plan::service_port(pair.port)).into(),
            Route::NodePort(node) => (plan::node_address(node, pair.ipv4), plan::node_port(pair.to, pair.port)).into(),
        }
    }

    /// Does a load balancer choose who answers?
    pub fn is_balanced(self) -> bool {
        !matches!(self, Route::Direct | Route::Headless)
    }

    /// Is a service of the pod asked, which has no endpoint once the pod has ended?
    pub fn is_service(self) -> bool {
        self != Route::Direct
    }

    /// What may be the outcome, where the truth table says `cell`.
    ///
    /// A policy is about the pod that answers in the end, whatever address was used. Behind the address of another node
    /// that node may stand in for the client, or for the pod: "it is not defined whether this happens before or after
    /// NetworkPolicy processing". Then nothing may pass that would not pass directly, and more is not asked for.
    ///
    /// A pod that has ended is no endpoint: nobody answers for it, even if somebody has its address by now.
    pub fn expected(self, pair: Pair, cell: Cell, objects: &Objects) -> Cell {
        match self {
            _ if self.is_balanced() && objects.has_ended(pair.to) => Cell::Denied,
            Route::Direct | Route::Headless if pair.from == pair.to => Cell::Open,
            Route::NodePort(node) if node != plan::node_of(pair.from) => {
                let stands_in = objects.any_egress() || node != plan::node_of(pair.to);
                if pair.from == pair.to || (stands_in && cell == Cell::Allowed) { Cell::Open } else { cell }
            }
            _ => cell,
        }
    }
}

impl fmt::Display for Route {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Route::Direct => "direct",
            Route::Headless => "headless",
            Route::ClusterIp => "cluster IP",
            Route::NodePort(_) => "node port",
        })
    }
}

/// A part of all questions: one of so many, in turns.
#[derive(Clone, Copy, Debug)]
pub struct Sample {
    /// A fourth, if it is 4. 1: all of them.
    pub share: usize,
    /// Other questions with each number, and all of them with as many numbers as there are shares.
    pub turn: usize,
}

impl Sample {
    /// `place` of the route among those that are asked.
    pub fn takes(self, pair: Pair, place: usize) -> bool {
        let Pair { from, to, port, ipv4 } = pair;
        (from + 2 * to + 3 * port + usize::from(ipv4) + place + self.turn).is_multiple_of(self.share)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::netpol::plan::PODS;

    #[test]
    fn every_question_has_its_turn_once() {
        for pair in Pair::all(true) {
            let takes = |turn: &usize| Sample { share: 8, turn: *turn }.takes(pair, 2);
            assert_eq!((5..13).filter(takes).count(), 1, "{pair}");
        }
        let asked = |turn| Pair::all(false).filter(move |pair| Sample { share: 16, turn }.takes(*pair, 0));
        for turn in 0..16 {
            // Whoever is asked about, there is something of it in each turn.
            let count = asked(turn).count();
            assert!(count.abs_diff(9 * 8 * 10 / 16) < 10, "{count}");
            assert!((0..PODS.len()).all(|pod| asked(turn).any(|pair| pair.from == pod)));
            assert!((0..PODS.len()).all(|pod| asked(turn).any(|pair| pair.to == pod)));
        }
    }
}
