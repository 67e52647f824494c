//! An answer as text: a block for each pair of addresses, in it the ports that are judged alike, last the verdict.

use std::fmt::Write;

use super::{
    answer::{Answer, End, State, Way},
    rules::RuleName,
};

/// A person reads the first ones.
const MOST_POLICIES: usize = 6;

pub fn answer(answer: &Answer) -> String {
    let mut out = String::new();
    let mut rest = &answer.ways[..];
    while let [first, ..] = rest {
        let same = |way: &&Way| (&way.from, &way.to, &way.via) == (&first.from, &first.to, &first.via);
        let length = rest.iter().take_while(same).count();
        block(&mut out, &rest[..length]);
        rest = &rest[length..];
    }
    for note in &answer.notes {
        // Writing to a String cannot fail, here and below.
        let _ = writeln!(out, "note: {note}");
    }
    let _ = writeln!(out, "verdict: {}", verdict(answer));
    out
}

/// The last line.
pub fn verdict(answer: &Answer) -> String {
    let denied = answer.ways.iter().filter(|way| !way.allowed).count();
    match (answer.ways.len(), denied) {
        (0, _) => "denied, nothing answers there".to_owned(),
        (_, 0) => "allowed".to_owned(),
        (1, 1) => "denied".to_owned(),
        (all, denied) if all == denied => "denied, every way".to_owned(),
        (all, denied) => format!("denied in part, {denied} of {all} ways"),
    }
}

/// Ways between two addresses.
fn block(out: &mut String, ways: &[Way]) {
    let Some(first) = ways.first() else { return };
    let via = match &first.via {
        Some(via) => format!(" through Service {} {}", via.service, via.port),
        None => String::new(),
    };
    let _ = writeln!(out, "{} -> {}{via}", first.from, first.to);
    let mut kinds: Vec<(&Way, Vec<&str>)> = Vec::new();
    for way in ways {
        let alike = |other: &Way| is_alike(&way.egress, &other.egress) && is_alike(&way.ingress, &other.ingress);
        match kinds.iter_mut().find(|(other, _)| alike(other)) {
            Some((_, labels)) => labels.push(&way.label),
            None => kinds.push((way, vec![&way.label])),
        }
    }
    for (way, labels) in kinds {
        let _ = writeln!(out, "  {}: {}", labels.join(", "), if way.allowed { "allowed" } else { "denied" });
        for line in [end(&way.egress), end(&way.ingress)].into_iter().flatten() {
            let _ = writeln!(out, "    {line}");
        }
    }
}

fn is_alike(a: &End, b: &End) -> bool {
    (a.state, &a.isolated_by, &a.rule, &a.also) == (b.state, &b.isolated_by, &b.rule, &b.also)
}

/// `None`: nobody is judged there.
pub fn end(end: &End) -> Option<String> {
    let head = format!("{} of {}", end.direction.name(), end.pod.as_ref()?);
    Some(match end.state {
        State::NoPod => return None,
        State::Open => format!("{head}: open, no policy isolates it"),
        State::OwnNode => format!("{head}: allowed, its own node may always reach it"),
        State::Itself => format!("{head}: allowed, a pod may always reach itself"),
        State::Denied if end.rule.is_some() => {
            format!("{head}: denied by {}", end.rule.as_ref().map(rule).unwrap_or_default())
        }
        State::Denied => format!("{head}: denied, isolated by {}; no rule allows this", policies(&end.isolated_by)),
        State::Allowed => {
            let by = end.rule.as_ref().map_or("a rule".to_owned(), rule);
            let also = match &end.also[..] {
                [] => String::new(),
                also => format!("; so do {}", list(also.iter().map(ToString::to_string).collect())),
            };
            format!("{head}: allowed by {by}{also}")
        }
    })
}

fn rule(rule: &RuleName) -> String {
    if rule.text.is_empty() { rule.to_string() } else { format!("{rule}: {}", rule.text) }
}

fn policies(names: &[String]) -> String {
    list(names.to_vec())
}

fn list(mut names: Vec<String>) -> String {
    let more = names.len().saturating_sub(MOST_POLICIES);
    names.truncate(MOST_POLICIES);
    let more = if more > 0 { format!(" and {more} more") } else { String::new() };
    names.join(", ") + &more
}
