//! Carries out nftables orders: all of a run in one transaction, and what is refused found out one by one.
//!
//! A transaction is all or nothing, so one impossible order would stop every other. The fast path packs a whole run
//! into one transaction. If the kernel refuses any of it, nothing has happened, and the run is done again in small
//! steps, in order, one message for each order: the refused ones are taken out until the rest is accepted. Removing
//! what is not there is such a refusal too (ENOENT), and counts as done: kernels before 6.3 have no other way to say
//! "remove if there".

use super::{
    nft::{Transaction, wire_length},
    rules::{self, CHAINS},
    sets::{self, ElementKey},
};
use crate::{
    apply::OpFailure,
    desired::{Ruleset, SetElement, SetName},
    nl::{NlError, Refusal, Socket},
};

/// Elements in one message: 128 of at most 56 + 20 bytes fit an attribute's 65,535.
const MESSAGE_ELEMENTS: usize = 128;
/// Messages of one transaction when refused orders are sought. Each may be answered by an error of about 1 KiB of
/// socket memory, and the receive buffer is at least 212,992 bytes.
const CAREFUL_MESSAGES: usize = 128;

/// One order, with its index in the slice given to `apply`.
pub struct Step<'a> {
    pub index: usize,
    pub order: Order<'a>,
}

pub enum Order<'a> {
    /// `rebuild`: what is there cannot be changed in place; remove the table first.
    Ruleset {
        ruleset: &'a Ruleset,
        rebuild: bool,
    },
    Element {
        add: bool,
        element: SetElement,
    },
}

/// `limit`: bytes of one transaction.
pub fn carry_out(socket: &mut Socket, limit: usize, steps: &[Step<'_>]) -> Result<Vec<OpFailure>, NlError> {
    let mut failures = Vec::new();
    let mut rest = steps;
    while !rest.is_empty() {
        let (transaction, taken) = pack(rest, limit);
        let (now, later) = rest.split_at(taken);
        if !transaction.send(socket)?.is_empty() {
            carefully(socket, now, &mut failures)?;
        }
        rest = later;
    }
    Ok(failures)
}

/// As many steps as fit, with elements of one set and one direction in common messages. Takes at least one step.
fn pack(steps: &[Step<'_>], limit: usize) -> (Transaction, usize) {
    let mut transaction = Transaction::new();
    let mut pending: Option<Pending> = None;
    let mut taken = 0;
    for step in steps {
        let waiting = pending.as_ref().map_or(0, |pending| wire_length(&pending.keys));
        // 256: the largest fixed part of a message of elements and the end of the transaction.
        if taken > 0 && transaction.bytes() + waiting + 256 > limit {
            break;
        }
        taken += 1;
        match &step.order {
            Order::Ruleset { ruleset, rebuild } => {
                flush(&mut transaction, pending.take());
                put_ruleset(&mut transaction, ruleset, *rebuild);
            }
            Order::Element { add, element } => {
                let keys = sets::keys(element).unwrap_or_default();
                let (name, v6) = (element.set(), element.is_ipv6());
                match &mut pending {
                    Some(p) if (p.add, p.name, p.v6) == (*add, name, v6) && p.count < MESSAGE_ELEMENTS => {
                        p.keys.extend(keys);
                        p.count += 1;
                    }
                    _ => {
                        flush(&mut transaction, pending.take());
                        pending = Some(Pending { add: *add, name, v6, keys, count: 1 });
                    }
                }
            }
        }
    }
    flush(&mut transaction, pending);
    (transaction, taken)
}

/// A message of elements that is being filled.
struct Pending {
    add: bool,
    name: SetName,
    v6: bool,
    keys: Vec<ElementKey>,
    count: usize,
}

fn flush(transaction: &mut Transaction, pending: Option<Pending>) {
    if let Some(Pending { add, name, v6, keys, .. }) = pending {
        transaction.elements(add, name, v6, &keys);
    }
}

fn put_ruleset(transaction: &mut Transaction, ruleset: &Ruleset, rebuild: bool) {
    transaction.add_table();
    if rebuild {
        transaction.delete_table();
        transaction.add_table();
    }
    for (id, (name, v6)) in sets::all().enumerate() {
        transaction.add_set(name, v6, id as u32 + 1);
    }
    for chain in &CHAINS {
        transaction.add_chain(chain);
    }
    for chain in &CHAINS {
        transaction.flush_chain(chain);
    }
    for rule in &rules::rules(ruleset) {
        transaction.add_rule(rule);
    }
}

/// Does what can be done of `steps`, in order.
fn carefully(socket: &mut Socket, steps: &[Step<'_>], failures: &mut Vec<OpFailure>) -> Result<(), NlError> {
    let is_ruleset = |step: &Step<'_>| matches!(step.order, Order::Ruleset { .. });
    let mut rest = steps;
    while let Some(first) = rest.first() {
        let taken = if is_ruleset(first) {
            1
        } else {
            rest.iter().take(CAREFUL_MESSAGES).take_while(|step| !is_ruleset(step)).count()
        };
        let (now, later) = rest.split_at(taken);
        if let Order::Ruleset { ruleset, rebuild } = first.order {
            let mut transaction = Transaction::new();
            put_ruleset(&mut transaction, ruleset, rebuild);
            // One refused message makes others meaningless: the first says why.
            if let Some((_, refusal)) = transaction.send(socket)?.into_iter().next() {
                failures.push(OpFailure { index: first.index, refusal });
            }
        } else {
            one_by_one(socket, now, failures)?;
        }
        rest = later;
    }
    Ok(())
}

/// Elements only: takes refused ones out until the kernel accepts the others. Each round takes out at least one.
fn one_by_one(socket: &mut Socket, steps: &[Step<'_>], failures: &mut Vec<OpFailure>) -> Result<(), NlError> {
    let mut left: Vec<_> = steps.iter().collect();
    while !left.is_empty() {
        let mut transaction = Transaction::new();
        for step in &left {
            if let Order::Element { add, element } = step.order {
                let keys = sets::keys(&element).unwrap_or_default();
                transaction.elements(add, element.set(), element.is_ipv6(), &keys);
            }
        }
        let refused = transaction.send(socket)?;
        if refused.is_empty() {
            break;
        }
        for (at, refusal) in &refused {
            let step = left[*at];
            if !is_already_gone(&step.order, refusal) {
                failures.push(OpFailure { index: step.index, refusal: refusal.clone() });
            }
        }
        let mut at = 0..;
        left.retain(|_| at.next().is_none_or(|at| refused.iter().all(|(index, _)| *index != at)));
    }
    Ok(())
}

fn is_already_gone(order: &Order<'_>, refusal: &Refusal) -> bool {
    matches!(order, Order::Element { add: false, .. }) && refusal.errno == libc::ENOENT
}

#[cfg(test)]
mod tests {
    use super::*;

    fn elements(count: u32) -> Vec<Step<'static>> {
        (0..count)
            .map(|n| Step {
                index: n as usize,
                order: Order::Element { add: true, element: SetElement::ServiceIp(std::net::Ipv4Addr::from(n).into()) },
            })
            .collect()
    }

    #[test]
    fn elements_share_messages() {
        let (transaction, taken) = pack(&elements(1000), usize::MAX);
        assert_eq!((taken, transaction.len()), (1000, 1000_usize.div_ceil(MESSAGE_ELEMENTS)));
    }

    #[test]
    fn a_transaction_keeps_its_limit_and_takes_at_least_one_step() {
        let limit = 16 * 1024;
        let (transaction, taken) = pack(&elements(10_000), limit);
        assert!(taken > 100 && transaction.bytes() <= limit, "{taken} steps, {} bytes", transaction.bytes());
        assert_eq!(pack(&elements(2), 0).1, 1);
    }

    #[test]
    fn the_order_of_orders_is_kept() {
        let mut steps = elements(3);
        if let Order::Element { add, .. } = &mut steps[1].order {
            *add = false;
        }
        assert_eq!(pack(&steps, usize::MAX).0.len(), 3);
    }
}
