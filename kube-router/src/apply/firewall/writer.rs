//! Carries out nftables orders: all of a run in one transaction, and what is refused found out message by message.
//!
//! A transaction is all or nothing, so one impossible order would stop every other. But the kernel names every message
//! that it refused, and a refused transaction has done nothing: so a message of many elements is split into messages of
//! one, a refused message of one is taken out, and the rest is sent again until it is accepted. Removing what is not
//! there is such a refusal too (ENOENT), and counts as done: kernels before 6.3 have no other way to say "remove if
//! there".
//!
//! What goes beyond the size of one transaction is split into several, in order.

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

/// Elements in one message: 128 of at most two keys of 16 bytes or one of 56, and 20 bytes around each key, fit an
/// attribute's 65,535.
const MESSAGE_ELEMENTS: usize = 128;

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

/// What one transaction may hold.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// One `sendmsg` must fit the send buffer.
    pub bytes: usize,
    /// Each message may be answered by an error, and all of them must fit the receive buffer.
    pub messages: usize,
}

/// A step with what earlier rounds taught about it.
struct Waiting<'a> {
    step: &'a Step<'a>,
    /// Its message was refused when it held other steps too: send it alone.
    alone: bool,
}

/// Carries out `steps` in order; returns those that the kernel refuses.
pub fn carry_out(socket: &mut Socket, limits: Limits, steps: &[Step<'_>]) -> Result<Vec<OpFailure>, NlError> {
    let mut failures = Vec::new();
    let mut rest: Vec<_> = steps.iter().map(|step| Waiting { step, alone: false }).collect();
    while !rest.is_empty() {
        let (transaction, messages) = pack(&rest, limits);
        let taken = messages.iter().map(|steps| steps.end).max().unwrap_or(rest.len());
        let refused = transaction.send(socket)?;
        if refused.is_empty() {
            rest.drain(..taken);
            continue;
        }
        // Every round takes a step out or splits a message, so this ends.
        let mut out = vec![false; taken];
        for (message, refusal) in refused {
            let steps = messages.get(message).cloned().ok_or(NlError::Malformed("refusal of an unknown message"))?;
            if steps.len() > 1 {
                rest[steps].iter_mut().for_each(|waiting| waiting.alone = true);
                continue;
            }
            let Some(waiting) = rest.get(steps.start) else { continue };
            let is_ruleset = matches!(waiting.step.order, Order::Ruleset { .. });
            if !out[steps.start] && !is_already_gone(&waiting.step.order, &refusal) {
                failures.push(OpFailure { index: waiting.step.index, refusal });
            }
            out[steps.start] = true;
            if is_ruleset {
                // What else was refused may only miss what the ruleset would have made.
                break;
            }
        }
        let mut out = out.into_iter();
        rest.retain(|_| !out.next().unwrap_or(false));
    }
    Ok(failures)
}

/// As many steps as fit, at least one, with elements of one set and one direction in common messages. Also returns
/// which steps each message carries.
fn pack(steps: &[Waiting<'_>], limits: Limits) -> (Transaction, Vec<std::ops::Range<usize>>) {
    let mut transaction = Transaction::new();
    let mut messages = Vec::new();
    let mut pending: Option<Pending> = None;
    for (at, waiting) in steps.iter().enumerate() {
        let bytes = transaction.bytes() + pending.as_ref().map_or(0, |pending| wire_length(&pending.keys));
        // 256: the fixed part of a message of elements, the largest element and the end of the transaction.
        if at > 0 && (bytes + 256 > limits.bytes || messages.len() + 1 >= limits.messages) {
            break;
        }
        match &waiting.step.order {
            Order::Ruleset { ruleset, rebuild } => {
                flush(&mut transaction, &mut messages, pending.take());
                put_ruleset(&mut transaction, ruleset, *rebuild);
                messages.resize(transaction.len(), at..at + 1);
            }
            Order::Element { add, element } => {
                let keys = sets::keys(element).unwrap_or_default();
                let (name, v6) = (element.set(), element.is_ipv6());
                match &mut pending {
                    Some(p)
                        if (p.add, p.name, p.v6) == (*add, name, v6)
                            && !(p.alone || waiting.alone)
                            && p.steps.len() < MESSAGE_ELEMENTS =>
                    {
                        p.keys.extend(keys);
                        p.steps.end = at + 1;
                    }
                    _ => {
                        flush(&mut transaction, &mut messages, pending.take());
                        let steps = at..at + 1;
                        pending = Some(Pending { add: *add, name, v6, keys, steps, alone: waiting.alone });
                    }
                }
            }
        }
    }
    flush(&mut transaction, &mut messages, pending);
    (transaction, messages)
}

/// A message of elements that is being filled.
struct Pending {
    add: bool,
    name: SetName,
    v6: bool,
    keys: Vec<ElementKey>,
    steps: std::ops::Range<usize>,
    alone: bool,
}

fn flush(transaction: &mut Transaction, messages: &mut Vec<std::ops::Range<usize>>, pending: Option<Pending>) {
    if let Some(Pending { add, name, v6, keys, steps, .. }) = pending {
        transaction.elements(add, name, v6, &keys);
        messages.push(steps);
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

fn is_already_gone(order: &Order<'_>, refusal: &Refusal) -> bool {
    matches!(order, Order::Element { add: false, .. }) && refusal.errno == libc::ENOENT
}

#[cfg(test)]
mod tests {
    use super::*;

    const UNLIMITED: Limits = Limits { bytes: usize::MAX, messages: usize::MAX };

    fn elements(count: u32) -> Vec<Step<'static>> {
        (0..count)
            .map(|n| Step {
                index: n as usize,
                order: Order::Element { add: true, element: SetElement::ServiceIp(std::net::Ipv4Addr::from(n).into()) },
            })
            .collect()
    }

    fn waiting<'a>(steps: &'a [Step<'a>]) -> Vec<Waiting<'a>> {
        steps.iter().map(|step| Waiting { step, alone: false }).collect()
    }

    #[test]
    fn elements_share_messages_and_messages_know_their_steps() {
        let steps = elements(300);
        let (transaction, messages) = pack(&waiting(&steps), UNLIMITED);
        assert_eq!(messages, [0..128, 128..256, 256..300]);
        assert_eq!(transaction.len(), 3);
    }

    #[test]
    fn a_suspect_travels_alone_and_in_order() {
        let steps = elements(5);
        let mut all = waiting(&steps);
        all[2].alone = true;
        assert_eq!(pack(&all, UNLIMITED).1, [0..2, 2..3, 3..5]);
    }

    #[test]
    fn a_change_of_direction_begins_a_message() {
        let mut steps = elements(3);
        if let Order::Element { add, .. } = &mut steps[1].order {
            *add = false;
        }
        assert_eq!(pack(&waiting(&steps), UNLIMITED).1, [0..1, 1..2, 2..3]);
    }

    #[test]
    fn every_message_of_a_ruleset_stands_for_its_step() {
        let ruleset = Ruleset::default();
        let mut steps = elements(2);
        steps.insert(1, Step { index: 9, order: Order::Ruleset { ruleset: &ruleset, rebuild: true } });
        let (transaction, messages) = pack(&waiting(&steps), UNLIMITED);
        assert_eq!(transaction.len(), messages.len());
        assert!(messages.len() > 20);
        assert_eq!((&messages[0], &messages[1], messages.last()), (&(0..1), &(1..2), Some(&(2..3))));
    }

    #[test]
    fn a_transaction_keeps_its_limits_and_takes_at_least_one_step() {
        let steps = elements(10_000);
        let bytes = 16 * 1024;
        let (transaction, messages) = pack(&waiting(&steps), Limits { bytes, ..UNLIMITED });
        let taken = messages.last().unwrap().end;
        assert!(taken > 100 && transaction.bytes() <= bytes, "{taken} steps, {} bytes", transaction.bytes());
        let (transaction, _) = pack(&waiting(&steps), Limits { messages: 10, ..UNLIMITED });
        assert!(transaction.len() <= 10);
        assert_eq!(pack(&waiting(&steps), Limits { bytes: 0, messages: 0 }).1, [0..1]);
    }
}
