//! Which problem is to be told now: each once as long as it stands, again before the server forgets it, and never more than
//! a trickle. Pure: time is an argument.

use std::collections::BTreeMap;

use crate::compile::{Problem, Subject};

/// API servers keep Events for an hour.
const AGAIN_MS: u64 = 30 * 60 * 1_000;
/// Events at once; then one in so many milliseconds. A node with a thousand broken objects needs hours to tell them all:
/// the metric tells their number at once.
const BURST: u64 = 20;
const REFILL_MS: u64 = 20_000;

#[derive(Debug, PartialEq, Eq)]
pub(super) enum Next<'a> {
    Say(&'a Problem),
    /// Nothing before this time; `None`: nothing before the problems change.
    At(Option<u64>),
}

#[derive(Debug, Default)]
pub(super) struct Teller {
    told_ms: BTreeMap<Problem, u64>,
    /// When the bucket is full again: each Event moves it by [`REFILL_MS`].
    full_ms: u64,
}

impl Teller {
    /// What to say of what stands.
    pub(super) fn next<'a>(&mut self, standing: &'a [Problem], now_ms: u64) -> Next<'a> {
        // Events are about objects; what nobody could name is in the log.
        let named = || standing.iter().filter(|problem| !matches!(problem.subject, Subject::Input(_)));
        let due_ms = |problem: &Problem| self.told_ms.get(problem).map_or(0, |told| told + AGAIN_MS);
        let Some(first) = named().min_by_key(|problem| due_ms(problem)) else { return Next::At(None) };
        // There is a place in the bucket from here on.
        let place_ms = (self.full_ms + REFILL_MS).saturating_sub(BURST * REFILL_MS);
        let at_ms = due_ms(first).max(place_ms);
        if at_ms > now_ms { Next::At(Some(at_ms)) } else { Next::Say(first) }
    }

    /// It was said, or it is there already. Forgets what was said so long ago that it would be said again.
    pub(super) fn said(&mut self, problem: &Problem, now_ms: u64) {
        self.told_ms.retain(|_, told| *told + AGAIN_MS > now_ms);
        self.told_ms.insert(problem.clone(), now_ms);
        self.full_ms = self.full_ms.max(now_ms) + REFILL_MS;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::objects::{Kind, ObjectKey};

    fn problem(name: &str) -> Problem {
        let subject = Subject::Object(Kind::NetworkPolicy, ObjectKey::new("a", name));
        Problem { subject, reason: "InvalidPort", text: "no".into() }
    }

    /// Everything that may be said at this time.
    fn all(teller: &mut Teller, standing: &[Problem], now_ms: u64) -> (Vec<String>, Option<u64>) {
        let mut said = Vec::new();
        loop {
            match teller.next(standing, now_ms) {
                Next::At(at) => return (said, at),
                Next::Say(problem) => {
                    said.push(problem.subject.to_string());
                    teller.said(problem, now_ms);
                }
            }
        }
    }

    #[test]
    fn each_problem_is_told_once_and_again_while_it_stands() {
        let mut teller = Teller::default();
        let standing = [problem("x"), problem("y")];
        assert_eq!(all(&mut teller, &[], 0), (vec![], None));
        let (said, at) = all(&mut teller, &standing, 1_000);
        assert_eq!(said, ["NetworkPolicy a/x", "NetworkPolicy a/y"]);
        assert_eq!(at, Some(1_000 + AGAIN_MS));
        assert_eq!(all(&mut teller, &standing, AGAIN_MS).0.len(), 0);
        // Away and back in between: the Event is still there.
        assert_eq!(all(&mut teller, &[], 2_000).0.len(), 0);
        assert_eq!(all(&mut teller, &standing, 3_000).0.len(), 0);
        assert_eq!(all(&mut teller, &standing[..1], 1_000 + AGAIN_MS).0, ["NetworkPolicy a/x"]);
    }

    #[test]
    fn many_problems_become_a_trickle_and_nothing_is_left_out() {
        let mut teller = Teller::default();
        let standing: Vec<Problem> = (0..60).map(|number| problem(&format!("p{number:02}"))).collect();
        let (said, at) = all(&mut teller, &standing, 0);
        assert_eq!((said.len() as u64, at), (BURST, Some(REFILL_MS)));
        let mut count = said.len();
        let mut now_ms = 0;
        while count < standing.len() {
            now_ms += REFILL_MS;
            let (said, _) = all(&mut teller, &standing, now_ms);
            assert_eq!(said.len(), 1);
            count += 1;
        }
        assert_eq!(teller.told_ms.len(), standing.len());
        // After a long silence there is a burst again, and not more.
        assert_eq!(all(&mut teller, &standing, 100 * AGAIN_MS).0.len() as u64, BURST);
        assert_eq!(teller.told_ms.len() as u64, BURST);
    }

    #[test]
    fn what_has_no_name_has_no_event() {
        let unnamed =
            Problem { subject: Subject::Input("a.yaml:3".into()), reason: "InputRejected", text: "no".into() };
        assert_eq!(Teller::default().next(&[unnamed], 0), Next::At(None));
    }
}
