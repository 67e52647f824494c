//! The paths (`a::b::c`) that a Rust file names outside its tests, with their lines.
//!
//! Works on tokens, so comments and strings do not count and macro arguments do. `use` trees are expanded; `super` and
//! `self` are resolved against the file's place in its crate. Items under `#[cfg(test)]` are left out.

use std::path::Path;

use anyhow::Result;
use proc_macro2::{Delimiter, Group, TokenStream, TokenTree};

/// A path and the line (from 1) on which it begins.
pub type PathAt = (Vec<String>, usize);

/// All of them, in the file's order. `file` is relative to the workspace.
pub fn paths_in(file: &Path, text: &str) -> Result<Vec<PathAt>> {
    // A shebang is no Rust token.
    let text = if text.starts_with("#!/") { text.split_once('\n').map_or("", |(_, rest)| rest) } else { text };
    let tokens: TokenStream = text.parse().map_err(|error| anyhow::anyhow!("{}: {error}", file.display()))?;
    let mut found = Vec::new();
    walk(tokens, &mut found);
    let module = module_of(file);
    for (path, _) in &mut found {
        resolve(&module, path);
    }
    Ok(found)
}

fn walk(tokens: TokenStream, found: &mut Vec<PathAt>) {
    let tokens: Vec<TokenTree> = tokens.into_iter().collect();
    let mut at = 0;
    while at < tokens.len() {
        if is_test_attribute(&tokens[at..]) {
            at += skip_item(&tokens[at..]);
            continue;
        }
        match &tokens[at] {
            TokenTree::Ident(word) if word == "use" => {
                let end = tokens[at..].iter().position(|token| is_punct(token, ';')).map_or(tokens.len(), |i| at + i);
                expand(&tokens[at + 1..end], &[], found);
                at = end;
            }
            TokenTree::Ident(word) => {
                let (path, length) = path_at(&tokens[at..]);
                if path.len() > 1 {
                    found.push((path, word.span().start().line));
                }
                at += length;
            }
            TokenTree::Group(group) => {
                walk(group.stream(), found);
                at += 1;
            }
            _ => at += 1,
        }
    }
}

/// `a::b::c` at the beginning; its words and how many tokens it takes.
fn path_at(tokens: &[TokenTree]) -> (Vec<String>, usize) {
    let mut words = Vec::new();
    let mut at = 0;
    while let Some(TokenTree::Ident(word)) = tokens.get(at) {
        words.push(word.to_string());
        at += 1;
        let separated =
            tokens.get(at).is_some_and(|t| is_punct(t, ':')) && tokens.get(at + 1).is_some_and(|t| is_punct(t, ':'));
        if !(separated && matches!(tokens.get(at + 2), Some(TokenTree::Ident(_)))) {
            break;
        }
        at += 2;
    }
    (words, at.max(1))
}

/// A `use` tree: `a::{b, c::d as e, f::*}`.
fn expand(tokens: &[TokenTree], prefix: &[String], found: &mut Vec<PathAt>) {
    for tree in tokens.split(|token| is_punct(token, ',')) {
        let mut path = prefix.to_vec();
        let mut line = 0;
        for token in tree {
            match token {
                TokenTree::Ident(word) if word == "as" => break,
                TokenTree::Ident(word) => {
                    line = word.span().start().line;
                    path.push(word.to_string());
                }
                TokenTree::Group(group) if group.delimiter() == Delimiter::Brace => {
                    expand(&group.stream().into_iter().collect::<Vec<_>>(), &path, found);
                    line = 0;
                }
                _ => {}
            }
        }
        if line > 0 {
            found.push((path, line));
        }
    }
}

/// `#[cfg(test)]`, also inside `all(...)`; not inside `not(...)`.
fn is_test_attribute(tokens: &[TokenTree]) -> bool {
    let [TokenTree::Punct(hash), TokenTree::Group(attribute), ..] = tokens else { return false };
    if hash.as_char() != '#' {
        return false;
    }
    let inner: Vec<TokenTree> = attribute.stream().into_iter().collect();
    match inner.as_slice() {
        [TokenTree::Ident(name), TokenTree::Group(condition)] if name == "cfg" => has_test(condition),
        _ => false,
    }
}

fn has_test(condition: &Group) -> bool {
    let text = condition.stream().to_string();
    !text.contains("not") && text.split(|c: char| !c.is_alphanumeric() && c != '_').any(|word| word == "test")
}

/// Tokens up to the end of the item that begins here: its first `;` or `{...}`.
fn skip_item(tokens: &[TokenTree]) -> usize {
    let ends = |token: &TokenTree| match token {
        TokenTree::Group(group) => group.delimiter() == Delimiter::Brace,
        token => is_punct(token, ';'),
    };
    tokens.iter().position(ends).map_or(tokens.len(), |last| last + 1)
}

fn is_punct(token: &TokenTree, wanted: char) -> bool {
    matches!(token, TokenTree::Punct(punct) if punct.as_char() == wanted)
}

/// `kube-router/src/plan/ops.rs` is `plan::ops`; `plan/mod.rs` is `plan`.
fn module_of(file: &Path) -> Vec<String> {
    let words: Vec<String> = file.iter().map(|word| word.to_string_lossy().into_owned()).collect();
    let Some(src) = words.iter().position(|word| word == "src") else { return Vec::new() };
    let mut module = words[src + 1..].to_vec();
    if let Some(last) = module.pop() {
        let name = last.trim_end_matches(".rs");
        if !["mod", "lib", "main"].contains(&name) {
            module.push(name.to_string());
        }
    }
    module
}

/// Makes `super::x` and `self::x` begin with `crate`.
fn resolve(module: &[String], path: &mut Vec<String>) {
    let ups = path.iter().take_while(|word| *word == "super").count();
    let relative = ups > 0 || path.first().is_some_and(|word| word == "self");
    if relative {
        let rest = path.split_off(ups.max(1));
        *path = vec!["crate".to_string()];
        path.extend(module.iter().take(module.len().saturating_sub(ups)).cloned());
        path.extend(rest);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(text: &str) -> Vec<String> {
        let paths = paths_in(Path::new("kube-router/src/plan/ops.rs"), text).expect("tokens");
        paths.into_iter().map(|(path, line)| format!("{line} {}", path.join("::"))).collect()
    }

    #[test]
    fn use_trees_are_expanded() {
        let text = "use std::{fs, net::{IpAddr as A, TcpStream}};\npub use crate::nl::*;\nuse ::kube;";
        let want = ["1 std::fs", "1 std::net::IpAddr", "1 std::net::TcpStream", "2 crate::nl", "3 kube"];
        assert_eq!(found(text), want);
    }

    #[test]
    fn code_and_macros_count_comments_strings_and_tests_do_not() {
        let text = r#"
            // std::fs::read in a comment
            fn f() { let _ = "std::process::exit"; println!("{}", std::env::consts::OS); }
            #[cfg(test)]
            mod tests { use std::fs; }
            #[cfg(all(test, unix))]
            use std::process;
            #[cfg(not(test))]
            fn g() { std::thread::sleep(d) }
        "#;
        assert_eq!(found(text), ["3 std::env::consts::OS", "9 std::thread::sleep"]);
    }

    #[test]
    fn relative_paths_are_resolved() {
        assert_eq!(
            found("use super::super::nl::Socket; use self::inner::X; use super::Op;"),
            ["1 crate::nl::Socket", "1 crate::plan::ops::inner::X", "1 crate::plan::Op",]
        );
    }
}
