//! Two listings, and the list of differences that are wanted.
//!
//! A file of differences reads like a diff from the original's listing to ours:
//!
//! ```text
//! @@ ipvsadm-Sn.txt: Affinity is by the whole client address
//! --A -t 10.96.1.6:80 -s rr -p 600 -M 32.0.0.0
//! +-A -t 10.96.1.6:80 -s rr -p 600
//! ```
//!
//! The reason is a heading of the README beside the recordings. A line too many in it is as wrong as one too few.

use std::collections::{BTreeMap, BTreeSet};

/// `(file, -line or +line)`.
pub type Differences = BTreeSet<(String, String)>;

/// Lines of both listings that the other one lacks.
pub fn compare(file: &str, theirs: &str, ours: &[String], found: &mut Differences) {
    let theirs = counted(theirs.lines());
    let ours = counted(ours.iter().map(String::as_str));
    for (sign, these, those) in [('-', &theirs, &ours), ('+', &ours, &theirs)] {
        let missing = these.iter().filter(|(line, n)| those.get(*line) != Some(*n));
        found.extend(missing.map(|(line, _)| (file.to_owned(), format!("{sign}{line}"))));
    }
}

/// A line that is there twice on one side is a difference, too.
fn counted<'a>(lines: impl Iterator<Item = &'a str>) -> BTreeMap<&'a str, usize> {
    let mut counts = BTreeMap::new();
    lines.for_each(|line| *counts.entry(line).or_default() += 1);
    counts
}

/// The wanted differences, each with its reason.
pub fn wanted(text: &str) -> BTreeMap<(String, String), String> {
    let mut wanted = BTreeMap::new();
    let mut section: Option<(&str, &str)> = None;
    for line in text.lines().filter(|line| !line.is_empty()) {
        if let Some(head) = line.strip_prefix("@@ ") {
            section = Some(head.split_once(": ").unwrap_or_else(|| panic!("no reason: {line}")));
            continue;
        }
        assert!(line.starts_with(['-', '+']), "neither - nor +: {line}");
        let (file, reason) = section.expect("a section comes first");
        let old = wanted.insert((file.to_owned(), line.to_owned()), reason.to_owned());
        assert_eq!(old, None, "{line} is there twice");
    }
    wanted
}

/// Fails with a text that says which lines nobody wanted and which wanted ones did not come.
pub fn check(name: &str, found: &Differences, wanted: &BTreeMap<(String, String), String>) {
    let mut text = String::new();
    for (file, line) in found.iter().filter(|difference| !wanted.contains_key(*difference)) {
        text.push_str(&format!("not wanted, {file}: {line}\n"));
    }
    for ((file, line), reason) in wanted.iter().filter(|(difference, _)| !found.contains(*difference)) {
        text.push_str(&format!("missing, {file}: {line} ({reason})\n"));
    }
    assert!(text.is_empty(), "{name}: differences from the original\n{text}");
}

#[test]
fn a_line_too_few_too_many_or_twice_is_a_difference() {
    let mut found = Differences::new();
    let ours = ["a", "c", "d", "d"].map(str::to_owned);
    compare("f", "a\nb\nd\n", &ours, &mut found);
    let lines: Vec<&str> = found.iter().map(|(_, line)| line.as_str()).collect();
    assert_eq!(lines, ["+c", "+d", "-b", "-d"]);
    let known = wanted("@@ f: why\n-b\n+c\n");
    assert!(std::panic::catch_unwind(|| check("x", &found, &known)).is_err(), "d is not explained");
    let known = wanted("@@ f: why\n-b\n+c\n+d\n-d\n-e\n");
    assert!(std::panic::catch_unwind(|| check("x", &found, &known)).is_err(), "e did not come");
    check("x", &found, &wanted("@@ f: why\n-b\n+c\n+d\n-d\n"));
}
