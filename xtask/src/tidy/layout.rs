//! Files: their size, their first lines, what they must not name, and whether the tiers know their tests.

use std::path::Path;

use super::{Finding, Source, rooms};
use crate::tiers;

/// What fits a sitting, with room to spare; the usual file has 100 to 300 lines.
const MAX_LINES: usize = 800;

/// Folders that exist on one machine only. Written in pieces, for this file is checked too.
const MACHINE_PATHS: &[&str] =
    &[concat!("/wo", "rk/"), concat!("/ro", "ot/"), concat!("/fa", "rm/"), concat!("../sha", "red")];

pub fn check(sources: &[Source]) -> Vec<Finding> {
    let mut findings = Vec::new();
    for source in sources {
        machine_paths(source, &mut findings);
        if source.is_rust() {
            size(source, &mut findings);
            story(source, &mut findings);
            ignored_tests(source, &mut findings);
        }
    }
    findings
}

fn is_test(path: &Path) -> bool {
    path.iter().any(|word| word == "tests" || word == "tests.rs" || word == "benches")
}

fn size(source: &Source, findings: &mut Vec<Finding>) {
    let lines = source.text.lines().count();
    if lines > MAX_LINES && !is_test(&source.path) {
        findings.push(Finding::new(
            &source.path,
            0,
            format!("{lines} lines; more than {MAX_LINES} do not fit a sitting"),
        ));
    }
}

/// A file of a pure room begins with its story.
fn story(source: &Source, findings: &mut Vec<Finding>) {
    let inside = source.path.strip_prefix("kube-router/src").ok();
    let pure = inside.is_some_and(|inside| rooms::pure_room(inside).is_some() && !rooms::is_test(inside));
    if pure && !source.text.starts_with("//!") {
        findings.push(Finding::new(&source.path, 1, "a file of a pure room opens with //! and its story"));
    }
}

fn machine_paths(source: &Source, findings: &mut Vec<Finding>) {
    for (at, line) in source.text.lines().enumerate() {
        if let Some(path) = MACHINE_PATHS.iter().find(|path| names(line, path)) {
            findings.push(Finding::new(&source.path, at + 1, format!("{path} is a path of one machine")));
        }
    }
}

/// True if the text names this top-level folder: what stands before is no part of a longer path.
fn names(line: &str, path: &str) -> bool {
    line.match_indices(path).any(|(at, _)| !line[..at].ends_with(|c: char| c.is_alphanumeric() || "_-.}/".contains(c)))
}

/// A test that is not run by default must say what it needs, and be where `cargo xtask test` runs it.
fn ignored_tests(source: &Source, findings: &mut Vec<Finding>) {
    // In pieces, for the same reason as above.
    let attribute = concat!("#[ign", "ore");
    for (at, line) in source.text.lines().enumerate() {
        let Some(rest) = line.trim_start().strip_prefix(attribute) else { continue };
        if !rest.starts_with(" = \"") {
            findings.push(Finding::new(&source.path, at + 1, "an ignored test says what it needs: = \"needs ...\""));
        }
        let target = test_target(&source.path);
        let known = target.is_some_and(|(package, name)| tiers::rule_for(package, name).is_some());
        if !known {
            findings.push(Finding::new(&source.path, at + 1, "no tier runs this test: see xtask/src/tiers.rs"));
        }
    }
}

/// Package folder and target of an integration test's file: `p/tests/a.rs`, `p/tests/a/main.rs` and what is beside it.
fn test_target(path: &Path) -> Option<(&str, &str)> {
    let mut words = path.iter().map(|word| word.to_str().unwrap_or_default());
    let (package, tests, name) = (words.next()?, words.next()?, words.next()?);
    (tests == "tests").then(|| (package, name.trim_end_matches(".rs")))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn findings(path: &str, text: &str) -> Vec<String> {
        let source = Source { path: path.into(), text: text.to_string() };
        check(&[source]).iter().map(|finding| format!("{}: {}", finding.line, finding.what)).collect()
    }

    #[test]
    fn long_files_are_found_but_not_tests() {
        let long = "//! story\n".repeat(MAX_LINES + 1);
        assert_eq!(findings("xtask/src/x.rs", &long).len(), 1);
        assert_eq!(findings("xtask/src/tests.rs", &long), Vec::<String>::new());
        assert_eq!(findings("xtask/src/x.rs", &"\n".repeat(MAX_LINES)), Vec::<String>::new());
        assert_eq!(findings("notes.md", &long), Vec::<String>::new());
    }

    #[test]
    fn files_of_pure_rooms_open_with_their_story() {
        assert_eq!(findings("kube-router/src/plan/x.rs", "use a::b;").len(), 1);
        assert_eq!(findings("kube-router/src/plan/x.rs", "//! What it does."), Vec::<String>::new());
        assert_eq!(findings("kube-router/src/apply/x.rs", "use a::b;"), Vec::<String>::new());
        assert_eq!(findings("kube-router/src/plan/tests.rs", "use a::b;"), Vec::<String>::new());
    }

    #[test]
    fn paths_of_one_machine_are_found_in_any_file() {
        for folder in ["wo_rk", "ro_ot", "fa_rm"] {
            let folder = folder.replace('_', "");
            assert_eq!(findings("README.md", &format!("see\n/{folder}/x")).len(), 1, "{folder}");
            assert_eq!(findings("README.md", &format!("see $HOME/{folder}/x, a/{folder}/x")), Vec::<String>::new());
        }
        assert_eq!(findings("a.sh", &format!("cp ../{}/x .", "shared")).len(), 1);
    }

    #[test]
    fn ignored_tests_say_why_and_are_known_to_a_tier() {
        let bare = format!("#[{}]\nfn t() {{}}", "ignore");
        let told = format!("    #[{} = \"needs root\"]", "ignore");
        assert_eq!(findings("kube-router/tests/ipvs_kernel/main.rs", &told), Vec::<String>::new());
        assert_eq!(findings("tests/tests/lab.rs", &told), Vec::<String>::new());
        assert_eq!(findings("tests/tests/lab.rs", &bare).len(), 1, "no reason");
        assert_eq!(findings("kube-router/tests/unheard.rs", &told).len(), 1, "no tier");
        assert_eq!(findings("kube-router/src/nl/mod.rs", &told).len(), 1, "no integration test");
    }
}
