//! The documents say what is true: command lines in them parse, names in them exist, tables in them equal the code.
//!
//! In: README.md, ARCHITECTURE.md, CONTRIBUTING.md, docs/*.md and the crates' and manifests' README files. What a test
//! finds wrong is one line, `file:line: what`. The table of flags is generated: when it differs, the right one is
//! written to a file that the message names.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Path, PathBuf},
};

use kube_router::{
    cli::{
        self, Facts,
        flags::{Area, Flag, TABLE},
        later::Need,
        look,
    },
    compile::sysctls,
};

use kube_router_common::reason::Reason;

#[path = "docs/markdown.rs"]
mod markdown;
#[path = "docs/packets.rs"]
mod packets;

use markdown::{Document, Line};

/// Flags in the documents that belong to other programs.
const FOREIGN_FLAGS: &[&str] = &["output", "stats"];

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

fn read(path: &str) -> String {
    fs::read_to_string(root().join(path)).unwrap_or_else(|error| panic!("{path}: {error}"))
}

fn documents() -> Vec<Document> {
    let mut paths: Vec<PathBuf> = Vec::new();
    for dir in ["", "docs", "deploy", "kube-router-ebpf", "tests"] {
        let entries = fs::read_dir(root().join(dir)).expect(dir).map(|entry| entry.expect(dir).path());
        paths.extend(entries.filter(|path| path.extension().is_some_and(|extension| extension == "md")));
    }
    assert!(paths.len() >= 8, "documents are missing: {paths:?}");
    paths.iter().map(|path| Document::read(path)).collect()
}

/// Collects findings over all documents and fails with all of them.
fn check(find: impl Fn(&Document, &mut dyn FnMut(&Line, String))) {
    let mut findings = Vec::new();
    for document in documents() {
        find(&document, &mut |line, what| findings.push(format!("{}:{}: {what}", document.name(), line.number)));
    }
    assert!(findings.is_empty(), "\n{}\n", findings.join("\n"));
}

#[test]
fn command_lines_parse() {
    let facts = Facts { uid: 0, hostname: Some("node".into()), ipv6: true };
    let inside = ["KUBERNETES_SERVICE_HOST", "KUBERNETES_SERVICE_PORT"].map(|name| (name.to_owned(), "1".to_owned()));
    let environment = BTreeMap::from(inside);
    let mut seen = BTreeSet::new();
    for document in documents() {
        for (line, argv) in document.commands("kube-router") {
            if let Err(error) = cli::parse(argv.iter().map(Into::into), &environment, &facts) {
                panic!("{}:{}: {argv:?}\n{error}", document.name(), line.number);
            }
            seen.insert(argv.get(1).map(|word| if word.starts_with('-') { "agent" } else { word }.to_owned()));
        }
    }
    for form in ["agent", "dump", "explain", "matrix", "monitor", "plan", "replay"] {
        assert!(seen.contains(&Some(form.to_owned())), "no document shows the form {form}: {seen:?}");
    }
}

#[test]
fn flags_exist() {
    check(|document, wrong| {
        for (line, span) in document.spans() {
            let Some(flag) = span.strip_prefix("--") else { continue };
            let name = flag.split(['=', ' ']).next().unwrap_or_default();
            let known = TABLE.iter().any(|row| row.name == name)
                || look::FLAGS.iter().any(|row| row.name == name)
                || FOREIGN_FLAGS.contains(&name);
            if !known {
                wrong(line, format!("there is no flag --{name}"));
            }
        }
    });
}

/// Commands are the variants of `enum Command` in xtask/src/main.rs, in kebab case.
#[test]
fn xtask_commands_exist() {
    let source = read("xtask/src/main.rs");
    let body = source.split("enum Command {").nth(1).and_then(|rest| rest.split("\n}").next());
    let variants = body.expect("xtask/src/main.rs has `enum Command`").lines().map(str::trim);
    let commands: BTreeSet<String> =
        variants.filter(|line| line.starts_with(|c: char| c.is_ascii_uppercase())).map(kebab).collect();
    assert!(commands.contains("test"), "{commands:?}");
    check(|document, wrong| {
        for line in &document.lines {
            for rest in line.text.split("cargo xtask ").skip(1) {
                let end = rest.find(|c: char| !(c.is_ascii_alphanumeric() || c == '-')).unwrap_or(rest.len());
                // COMMAND stands for any.
                if !commands.contains(&rest[..end]) && &rest[..end] != "COMMAND" {
                    wrong(line, format!("there is no `cargo xtask {}`: {commands:?}", &rest[..end]));
                }
            }
        }
    });
}

fn kebab(variant: &str) -> String {
    let name = variant.split(|c: char| !c.is_ascii_alphanumeric()).next().unwrap_or_default();
    let mut text = String::new();
    for (at, c) in name.char_indices() {
        if c.is_ascii_uppercase() && at > 0 {
            text.push('-');
        }
        text.push(c.to_ascii_lowercase());
    }
    text
}

#[test]
fn links_resolve() {
    check(|document, wrong| {
        for (line, target) in document.links() {
            let (path, anchor) = target.split_once('#').unwrap_or((&target, ""));
            let file = if path.is_empty() { document.path.clone() } else { document.dir().join(path) };
            if !file.exists() {
                wrong(line, format!("{target}: no such file"));
            } else if !anchor.is_empty() && !Document::read(&file).has_anchor(anchor) {
                wrong(line, format!("{target}: no such heading"));
            }
        }
    });
}

/// `like/this.rs`, `this/` or `plan/*.rs` (the folder is meant): below the repository, its agent's source or tests,
/// or the document's own folder.
#[test]
fn named_files_exist() {
    check(|document, wrong| {
        for (line, span) in document.spans() {
            let path = span.split('*').next().unwrap_or_default();
            let named = [".rs", ".md", ".toml", ".yaml", "/"].iter().any(|end| span.ends_with(end));
            let plain = path.chars().all(|c| c.is_ascii_alphanumeric() || "/._-".contains(c));
            // Files that a build makes are not there yet, and what starts at / or has blanks is not ours.
            if !named || !plain || path.starts_with('/') || path.starts_with("target/") {
                continue;
            }
            let homes = [root(), root().join("kube-router/src"), root().join("kube-router"), document.dir()];
            if !homes.iter().any(|home| home.join(path).exists()) {
                wrong(line, format!("{span}: no such file"));
            }
        }
    });
}

#[test]
fn flags_table_is_the_code() {
    let mut expected = String::new();
    for area in Area::ALL {
        expected.push_str(&format!("## {}\n\n", area.title()));
        expected.push_str("| Flag | Type | Default | State | What |\n|---|---|---|---|---|\n");
        TABLE.iter().filter(|flag| flag.area == area).for_each(|flag| expected.push_str(&row(flag)));
        expected.push('\n');
    }
    let text = read("docs/flags.md");
    let table = &text[text.find("## ").unwrap_or(text.len())..];
    if table.trim_end() != expected.trim_end() {
        let right = Path::new(env!("CARGO_TARGET_TMPDIR")).join("flags.md");
        fs::write(&right, text.split("## ").next().unwrap_or_default().to_owned() + expected.trim_end() + "\n")
            .expect("written");
        panic!("docs/flags.md does not show the flags as they are; the right text is in {}", right.display());
    }
}

fn row(flag: &Flag) -> String {
    let short = flag.short.map(|c| format!("`-{c}`, ")).unwrap_or_default();
    let default = if flag.default.is_empty() { String::new() } else { format!("`{}`", flag.default) };
    let kind = if flag.type_name.is_empty() { "bool" } else { flag.type_name };
    let state = match flag.need {
        Need::Works => "works",
        Need::Asks(_) => "later, refused",
        Need::Shapes(_) => "later, refused unless off",
        Need::Harmless(_) => "later, no effect yet",
        Need::Deprecated(_) => "deprecated, no effect",
    };
    format!("| {short}`--{}` | {kind} | {default} | {state} | {} |\n", flag.name, flag.help)
}

/// The reasons are the CamelCase literals of the rooms that report problems, but for the value of an annotation.
#[test]
fn problems_table_is_the_code() {
    let mut reasons = BTreeSet::new();
    for room in ["compile", "compile/policy", "reconcile", "reconcile/policy", "sys"] {
        let dir = root().join("kube-router/src").join(room);
        for entry in fs::read_dir(&dir).expect("room") {
            let path = entry.expect("room").path();
            if path.is_file() && !path.ends_with("tests.rs") {
                let text = fs::read_to_string(&path).expect("source");
                let code = text.split("#[cfg(test)]\nmod tests {").next().unwrap_or_default();
                reasons.extend(code.split('"').skip(1).step_by(2).filter(|word| is_reason(word)).map(str::to_owned));
            }
        }
    }
    reasons.remove("DefaultDeny");
    assert!(reasons.contains("AddressInUse") && reasons.contains("SysctlMissing"), "{reasons:?}");
    let text = read("docs/troubleshooting.md");
    let section = text.split("\n## Problems\n").nth(1).expect("a section of problems");
    let cells = section.lines().filter_map(|line| line.strip_prefix("| `")?.split('`').next());
    assert_eq!(cells.map(str::to_owned).collect::<BTreeSet<_>>(), reasons);
}

/// Reasons of refused packets stand with their numbers and names in docs/maps.md.
#[test]
fn reasons_of_drops_are_the_code() {
    let text = read("docs/maps.md");
    let (_, section) = text.split_once("\n## Reasons\n").expect("a section of reasons");
    let shown: Vec<(String, String)> = section
        .lines()
        .filter_map(|line| line.strip_prefix("| ")?.split_once(" | `"))
        .map(|(number, rest)| (number.to_owned(), rest.split('`').next().unwrap_or_default().to_owned()))
        .collect();
    let wanted: Vec<(String, String)> =
        Reason::ALL.iter().map(|reason| ((*reason as u8).to_string(), reason.name().to_owned())).collect();
    assert_eq!(shown, wanted);
}

/// At least two capitals, no two of them in a row, and nothing but letters.
fn is_reason(word: &str) -> bool {
    let capitals = word.chars().filter(char::is_ascii_uppercase).count();
    let lone_capitals =
        word.as_bytes().windows(2).all(|pair| !(pair[0].is_ascii_uppercase() && pair[1].is_ascii_uppercase()));
    word.starts_with(|c: char| c.is_ascii_uppercase())
        && word.ends_with(|c: char| c.is_ascii_lowercase())
        && word.chars().all(|c| c.is_ascii_alphabetic())
        && capitals >= 2
        && lone_capitals
}

#[test]
fn annotations_and_settings_are_the_code() {
    let text = read("docs/service-proxy.md");
    let code = read("kube-router/src/objects/annotations.rs");
    let keys = |text: &str, quote: char| -> BTreeSet<String> {
        let words = text.split(quote).filter(|word| word.starts_with("kube-router.io/") && word.len() > 15);
        words.map(str::to_owned).collect()
    };
    assert_eq!(keys(&text, '`'), keys(&code, '"'));

    let (_, section) = text.split_once("\n## Kernel settings\n").expect("a section of settings");
    let shown: Vec<(String, String)> = section
        .lines()
        .filter_map(|line| line.strip_prefix("| `")?.split_once("` | "))
        .map(|(path, rest)| (path.to_owned(), rest.split(" |").next().unwrap_or_default().to_owned()))
        .collect();
    let wanted: Vec<(String, String)> = sysctls::wanted(Some("IFACE"))
        .into_iter()
        .map(|wanted| {
            let condition = wanted.only_if.map(|value| format!(", if it was {value}")).unwrap_or_default();
            (wanted.sysctl.path, wanted.sysctl.value + &condition)
        })
        .collect();
    assert_eq!(shown, wanted);
}
