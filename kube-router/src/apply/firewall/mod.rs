//! The packet filter: our nftables table `inet kube-router`, which decides, and six ipsets that mirror it for people
//! and tools.
//!
//! In: orders ([`FirewallOp`]); out: what the kernel holds ([`ObservedFirewall`]). Rules are few and do not grow with
//! services: every decision is a set look-up, and a changed service changes elements only. Consecutive nftables orders
//! are one transaction; nobody ever sees a half-made table.
//!
//! | file | holds |
//! |---|---|
//! | `rules` | chains and rules of a ruleset |
//! | `recognise` | rules read back to the ruleset |
//! | `expr` | the expressions that rules are made of |
//! | `sets` | names, key layouts, elements to keys and back |
//! | `nft`, `nft_read` | messages that write and read our table |
//! | `writer` | transactions, and the search for refused orders |
//! | `ipset`, `ipset_entries` | the mirrored ipsets and what is in them |
//!
//! No command is executed. Tables, chains and ipsets of others are never touched.

mod expr;
mod ipset;
mod ipset_entries;
pub(super) mod nfnetlink;
mod nft;
mod nft_read;
mod recognise;
mod rules;
mod sets;
mod writer;

use std::collections::HashSet;

use nix::sys::socket::{getsockopt, setsockopt, sockopt};

use self::{
    nft::Transaction,
    nft_read::{Reader, Shape},
    writer::{Limits, Order, Step},
};
use crate::{
    apply::{Failures, FirewallPlane, OpFailure, PlaneError},
    desired::SetElement,
    nl::{NlError, Refusal, Socket},
    plan::{Backend, FirewallOp, ObservedFirewall},
};

const NFTABLES: &str = "nftables";
const IPSET: &str = "ipset";

/// Bytes of one nftables transaction, which must be one `sendmsg`: about 120,000 elements of IPv4 service ports, 50,000
/// of IPv6 hairpins. What goes beyond is split into several transactions.
const TRANSACTION_BYTES: usize = 4 * 1024 * 1024;
/// Messages of one transaction, of up to 128 elements each.
const TRANSACTION_MESSAGES: usize = 4096;
/// What one error message takes of the receive buffer, at most.
const ERROR_BYTES: usize = 2048;

/// The kernel's packet filter in one network namespace.
pub struct KernelFirewall {
    socket: Socket,
    limits: Limits,
}

impl KernelFirewall {
    /// Opens the plane in the network namespace of the calling thread; it stays there wherever the value goes.
    pub fn open() -> Result<Self, PlaneError> {
        let mut socket = nfnetlink::open(NFTABLES)?;
        let raw = socket.raw();
        // The forced variants need CAP_NET_ADMIN of the first user namespace; the others are bound by wmem_max and
        // rmem_max. What we get shapes the transactions.
        if setsockopt(raw, sockopt::SndBufForce, &TRANSACTION_BYTES).is_err() {
            let _ = setsockopt(raw, sockopt::SndBuf, &TRANSACTION_BYTES);
        }
        let _ = setsockopt(raw, sockopt::RcvBufForce, &(TRANSACTION_MESSAGES * ERROR_BYTES));
        let sends = getsockopt(raw, sockopt::SndBuf).unwrap_or(0);
        let receives = getsockopt(raw, sockopt::RcvBuf).unwrap_or(0);
        let limits = Limits {
            // af_netlink.c refuses what exceeds the buffer less 32 bytes.
            bytes: sends.saturating_sub(1024).clamp(64 * 1024, TRANSACTION_BYTES),
            messages: (receives / ERROR_BYTES).clamp(64, TRANSACTION_MESSAGES),
        };
        Ok(KernelFirewall { socket, limits })
    }

    fn nftables(&mut self, ops: &[FirewallOp], first: usize, failures: &mut Vec<OpFailure>) -> Result<(), PlaneError> {
        let failed = |source| nfnetlink::failed(NFTABLES, source);
        let mut steps = Vec::with_capacity(ops.len());
        for (index, op) in (first..).zip(ops) {
            match op {
                FirewallOp::SetRuleset(ruleset) => {
                    let mut reader = Reader { socket: &mut self.socket };
                    let rebuild = reader.shape().map_err(failed)? == Shape::Foreign;
                    steps.push(Step { index, order: Order::Ruleset { ruleset, rebuild } });
                    if rebuild {
                        tracing::info!(table = nft::TABLE, "table has another form than ours: it is made anew");
                        let kept = reader.elements().map_err(failed)?;
                        steps.extend(
                            kept.into_iter()
                                .map(|element| Step { index, order: Order::Element { add: true, element } }),
                        );
                    }
                }
                FirewallOp::AddElement(_, element) | FirewallOp::DeleteElement(_, element) => {
                    let add = matches!(op, FirewallOp::AddElement(..));
                    if sets::keys(element).is_some() {
                        steps.push(Step { index, order: Order::Element { add, element: *element } });
                    } else {
                        let text = format!("{element}: addresses of two families").into();
                        failures.push(OpFailure { index, refusal: Refusal { errno: libc::EINVAL, text } });
                    }
                }
                FirewallOp::EnsureIpsets | FirewallOp::DeleteAll => {}
            }
        }
        let refused = writer::carry_out(&mut self.socket, self.limits, &steps).map_err(failed)?;
        let refused_at: HashSet<usize> = refused.iter().map(|failure| failure.index).collect();
        for (_, op) in (first..).zip(ops).filter(|(index, _)| !refused_at.contains(index)) {
            match op {
                FirewallOp::SetRuleset(ruleset) => tracing::info!(table = nft::TABLE, ?ruleset, "ruleset written"),
                FirewallOp::AddElement(_, element) => tracing::debug!(%element, "nftables element added"),
                FirewallOp::DeleteElement(_, element) => tracing::debug!(%element, "nftables element removed"),
                FirewallOp::EnsureIpsets | FirewallOp::DeleteAll => {}
            }
        }
        failures.extend(refused);
        Ok(())
    }

    fn ipset(&mut self, ops: &[FirewallOp], first: usize, failures: &mut Vec<OpFailure>) -> Result<(), PlaneError> {
        let add = matches!(ops.first(), Some(FirewallOp::AddElement(..)));
        let entries: Vec<(usize, SetElement)> =
            (first..).zip(ops).filter_map(|(index, op)| element(op).map(|(_, element)| (index, element))).collect();
        tracing::debug!(add, entries = entries.len(), "ipset entries");
        let refused =
            ipset_entries::change(&mut self.socket, add, &entries).map_err(|source| self::failed(IPSET, source))?;
        failures.extend(refused);
        Ok(())
    }

    fn delete_all(&mut self, index: usize, failures: &mut Vec<OpFailure>) -> Result<(), PlaneError> {
        let mut transaction = Transaction::new();
        // Adding first makes removing what is not there no error.
        transaction.add_table();
        transaction.delete_table();
        match transaction.send(&mut self.socket) {
            Ok(refused) => match refused.into_iter().next() {
                None => tracing::info!(table = nft::TABLE, "table removed"),
                Some((_, refusal)) => failures.push(OpFailure { index, refusal }),
            },
            // No nftables in this kernel: there is nothing to remove.
            Err(NlError::Refused(refusal)) if refusal.errno == libc::EOPNOTSUPP => {}
            Err(source) => return Err(nfnetlink::failed(NFTABLES, source)),
        }
        let refused = ipset::destroy(&mut self.socket).map_err(|source| self::failed(IPSET, source))?;
        failures.extend(refused.map(|refusal| OpFailure { index, refusal }));
        Ok(())
    }
}

fn failed(what: &'static str, source: NlError) -> PlaneError {
    PlaneError::Netlink { what, source }
}

/// Orders that can be carried out together.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Run {
    Nftables,
    Ipset { add: bool },
    Alone,
}

fn run_of(op: &FirewallOp) -> Run {
    match op {
        FirewallOp::SetRuleset(_) => Run::Nftables,
        FirewallOp::EnsureIpsets | FirewallOp::DeleteAll => Run::Alone,
        FirewallOp::AddElement(Backend::Nft, _) | FirewallOp::DeleteElement(Backend::Nft, _) => Run::Nftables,
        FirewallOp::AddElement(Backend::Ipset, _) => Run::Ipset { add: true },
        FirewallOp::DeleteElement(Backend::Ipset, _) => Run::Ipset { add: false },
    }
}

fn element(op: &FirewallOp) -> Option<(Backend, SetElement)> {
    match op {
        FirewallOp::AddElement(backend, element) | FirewallOp::DeleteElement(backend, element) => {
            Some((*backend, *element))
        }
        _ => None,
    }
}

impl FirewallPlane for KernelFirewall {
    fn observe(&mut self) -> Result<ObservedFirewall, PlaneError> {
        let nftables = |source| nfnetlink::failed(NFTABLES, source);
        let mut reader = Reader { socket: &mut self.socket };
        let mut observed = ObservedFirewall::default();
        let shape = reader.shape().map_err(nftables)?;
        if shape == Shape::Whole {
            observed.ruleset = recognise::recognise(&reader.rules().map_err(nftables)?);
        }
        observed.tables_exist = shape != Shape::Absent;
        if observed.tables_exist {
            observed.nft = reader.elements().map_err(nftables)?;
        }
        let ipsets = ipset_entries::observe(&mut self.socket).map_err(|source| failed(IPSET, source))?;
        (observed.ipsets_exist, observed.ipsets_any) = (ipsets.complete, ipsets.any);
        observed.ipset = ipsets.members;
        Ok(observed)
    }

    fn apply(&mut self, ops: &[FirewallOp]) -> Failures {
        let mut failures = Vec::new();
        let mut first = 0;
        while let Some(op) = ops.get(first) {
            let run = run_of(op);
            let length = match run {
                Run::Alone => 1,
                _ => ops[first..].iter().take_while(|op| run_of(op) == run).count(),
            };
            let together = &ops[first..first + length];
            match op {
                FirewallOp::EnsureIpsets => {
                    let refused = ipset::ensure(&mut self.socket).map_err(|source| failed(IPSET, source))?;
                    failures.extend(refused.map(|refusal| OpFailure { index: first, refusal }));
                }
                FirewallOp::DeleteAll => self.delete_all(first, &mut failures)?,
                _ if run == Run::Nftables => self.nftables(together, first, &mut failures)?,
                _ => self.ipset(together, first, &mut failures)?,
            }
            first += length;
        }
        failures.sort_by_key(|failure| failure.index);
        failures.dedup_by_key(|failure| failure.index);
        Ok(failures)
    }
}
