//! docs/packets.md: the list of crafted packets, as the tests of the programs have it.

use std::{collections::BTreeMap, fs, path::Path};

use kube_router_common::{
    hooks::{Action, Hook},
    twin::cases::{Case, cases},
};

use crate::read;

const START: &str = "## Truncated headers\n";

/// What is told of a case, and the families it holds for.
fn row(case: &Case) -> (String, &str, String) {
    let (family, says) = case.says.split_once(": ").expect("a family");
    let way = match case.hook {
        Hook::PodOut => "out",
        _ => "in",
    };
    let outcome = match (case.action, case.answered) {
        (Action::Pass, _) => "passes",
        (Action::Deliver, _) => "handed over",
        (Action::Drop | Action::Judge | Action::Pair | Action::Balance | Action::Requote, _) => "dropped",
        (Action::Reject, true) => "refused, answered",
        (Action::Reject, false) => "refused, no answer",
    };
    let counter = case.counted.map_or("-".to_owned(), |(_, reason)| format!("`{}`", reason.name()));
    (says.to_owned(), family, format!("{way} | {outcome} | {counter}"))
}

fn tables() -> String {
    let cases = cases(1_000);
    let crafted: Vec<&Case> = cases.iter().filter(|case| !case.class.is_empty()).collect();
    let mut classes: Vec<&str> = Vec::new();
    for case in &crafted {
        if !classes.contains(&case.class) {
            classes.push(case.class);
        }
    }
    let mut text = String::new();
    for class in classes {
        text += &format!("## {class}\n\n| Packet | Family | Way | Outcome | Counter |\n|---|---|---|---|---|\n");
        let mut order: Vec<(String, String)> = Vec::new();
        let mut families: BTreeMap<(String, String), Vec<&str>> = BTreeMap::new();
        for case in crafted.iter().filter(|case| case.class == class) {
            let (says, family, rest) = row(case);
            let key = (says, rest);
            if !families.contains_key(&key) {
                order.push(key.clone());
            }
            let known = families.entry(key).or_default();
            if !known.contains(&family) {
                known.push(family);
            }
        }
        for key in order {
            let family = match families[&key][..] {
                ["V4"] => "IPv4",
                ["V6"] => "IPv6",
                _ => "both",
            };
            text += &format!("| {} | {family} | {} |\n", key.0, key.1);
        }
        text += "\n";
    }
    text
}

#[test]
fn the_list_of_crafted_packets_is_the_tests() {
    let expected = tables();
    let text = read("docs/packets.md");
    let start = text.find(START).unwrap_or(text.len());
    if text[start..].trim_end() != expected.trim_end() {
        let right = Path::new(env!("CARGO_TARGET_TMPDIR")).join("packets.md");
        fs::write(&right, format!("{}{}\n", &text[..start], expected.trim_end())).expect("written");
        panic!(
            "docs/packets.md does not show the crafted packets as they are; the right text is in {}",
            right.display()
        );
    }
}
