//! From rules as the kernel lists them back to the [`Ruleset`] that made them.
//!
//! Each rule's comment says the whole ruleset and the rule's place in it. The comment gives the value; then our rules
//! are made again from it, and every chain must hold exactly them, comments and expressions. What anybody added, took
//! out or replaced makes the answer `None`.

use std::fmt::Write as _;

use super::{
    expr::Expr,
    rules::{CHAINS, rules},
};
use crate::desired::{Ruleset, firewall::Masquerade};

/// Version of the rules; part of every comment. Raise it with every change to what [`rules`] returns.
const VERSION: &str = "kube-router v1";

/// The ruleset as text. With the longest addresses and rule number 123 bytes: nft shows at most 128.
pub fn describe(ruleset: &Ruleset) -> String {
    let mut text = VERSION.to_owned();
    if ruleset.guard {
        text.push_str(" guard");
    }
    match ruleset.masquerade {
        Masquerade::Off => {}
        Masquerade::OutsidePodCidrs => text.push_str(" masquerade=outside-pod-cidrs"),
        Masquerade::All => text.push_str(" masquerade=all"),
    }
    // Writing to a String cannot fail.
    if let Some(address) = ruleset.node_ipv4 {
        let _ = write!(text, " node4={address}");
    }
    if let Some(address) = ruleset.node_ipv6 {
        let _ = write!(text, " node6={address}");
    }
    text
}

/// Reads a comment of ours; `None` for anything else.
fn parse(comment: &str) -> Option<Ruleset> {
    let (text, _) = comment.rsplit_once(" #")?;
    let mut ruleset = Ruleset::default();
    for word in text.strip_prefix(VERSION)?.split_ascii_whitespace() {
        match word.split_once('=').unwrap_or((word, "")) {
            ("guard", "") => ruleset.guard = true,
            ("masquerade", "all") => ruleset.masquerade = Masquerade::All,
            ("masquerade", "outside-pod-cidrs") => ruleset.masquerade = Masquerade::OutsidePodCidrs,
            ("node4", address) => ruleset.node_ipv4 = Some(address.parse().ok()?),
            ("node6", address) => ruleset.node_ipv6 = Some(address.parse().ok()?),
            _ => return None,
        }
    }
    Some(ruleset)
}

/// A rule as the kernel lists it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ListedRule {
    pub chain: String,
    /// Empty if there is none, or not in nft's form.
    pub comment: String,
    /// `None`: contains something that no rule of ours contains.
    pub expressions: Option<Vec<Expr>>,
}

/// The ruleset of which the listed rules are exactly the rules; chains that are not ours are left out of sight.
pub fn recognise(listed: &[ListedRule]) -> Option<Ruleset> {
    let ours = |name: &str| CHAINS.iter().any(|chain| chain.name == name);
    let ruleset = listed.iter().filter(|rule| ours(&rule.chain)).find_map(|rule| parse(&rule.comment))?;
    let wanted = rules(&ruleset);
    let intact = CHAINS.iter().all(|chain| {
        let wanted = wanted.iter().filter(|rule| rule.chain == chain.name);
        let listed = listed.iter().filter(|rule| rule.chain == chain.name);
        wanted
            .map(|rule| (rule.comment.as_str(), Some(&rule.expressions)))
            .eq(listed.map(|rule| (rule.comment.as_str(), rule.expressions.as_ref())))
    });
    intact.then_some(ruleset)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn every_ruleset() -> Vec<Ruleset> {
        let mut all = Vec::new();
        for guard in [false, true] {
            for masquerade in [Masquerade::Off, Masquerade::OutsidePodCidrs, Masquerade::All] {
                for node_ipv4 in [None, Some([192, 168, 100, 100].into())] {
                    for node_ipv6 in [None, Some("2001:db8:1111:2222:3333:4444:5555:6666".parse().unwrap())] {
                        all.push(Ruleset { guard, masquerade, node_ipv4, node_ipv6 });
                    }
                }
            }
        }
        all
    }

    fn listed(ruleset: &Ruleset) -> Vec<ListedRule> {
        rules(ruleset)
            .into_iter()
            .map(|rule| ListedRule {
                chain: rule.chain.to_owned(),
                comment: rule.comment,
                expressions: Some(rule.expressions),
            })
            .collect()
    }

    #[test]
    fn every_ruleset_is_recognised_from_its_rules() {
        for ruleset in every_ruleset() {
            assert_eq!(recognise(&listed(&ruleset)), Some(ruleset));
        }
    }

    #[test]
    fn any_change_is_noticed() {
        for ruleset in every_ruleset() {
            let intact = listed(&ruleset);
            for at in 0..intact.len() {
                let mut without = intact.clone();
                without.remove(at);
                assert_eq!(recognise(&without), None, "{ruleset:?} without rule {at}");
                let mut twice = intact.clone();
                twice.insert(at, intact[at].clone());
                assert_eq!(recognise(&twice), None, "{ruleset:?} with rule {at} twice");
                let mut changed = intact.clone();
                changed[at].expressions.as_mut().unwrap().pop();
                assert_eq!(recognise(&changed), None, "{ruleset:?} with rule {at} changed");
                let mut unreadable = intact.clone();
                unreadable[at].expressions = None;
                assert_eq!(recognise(&unreadable), None);
            }
        }
    }

    #[test]
    fn chains_of_others_in_our_table_do_not_matter() {
        let ruleset = Ruleset::default();
        let mut rules = listed(&ruleset);
        rules.insert(0, ListedRule { chain: "users".into(), comment: String::new(), expressions: None });
        assert_eq!(recognise(&rules), Some(ruleset));
    }

    #[test]
    fn garbage_is_not_a_ruleset() {
        for text in ["", "#", " #", "kube-router v1", "kube-router v2 #1/1", "kube-router v1 guard=x #1/1"] {
            assert_eq!(parse(text), None, "{text}");
        }
        assert_eq!(parse("kube-router v1 node4=1.2.3 #1/1"), None);
        assert_eq!(parse("kube-router v1 #1/1"), Some(Ruleset::default()));
    }

    #[test]
    fn comments_fit_what_nft_shows() {
        for ruleset in every_ruleset() {
            for rule in rules(&ruleset) {
                assert!(rule.comment.len() < 128, "{} bytes: {}", rule.comment.len(), rule.comment);
            }
        }
    }
}
