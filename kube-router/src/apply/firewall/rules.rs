//! Our chains and rules as values: from a [`Ruleset`] to the rules, and from rules read back to the [`Ruleset`].
//!
//! ```text
//! input (filter, input, priority 0)          only with `guard`
//!   to @svipN -> servicesN:  protocol and port in @svip-prtN: accept
//!                            the ICMP a host must answer: accept
//!                            not an address of the node's own (@local-ipsN): refuse
//! postrouting (nat, postrouting, priority 100)
//!   original direction, not DNATed by others, not to @svipN, but once sent to @svip-prtN -> snatN:
//!                            pod to itself (@hairpinN): source = the service address
//!                            masquerade, unless switched off: source = the node's address
//! ```
//!
//! The guard sees packets before IPVS does (IPVS hooks LOCAL_IN at priorities 98 and 99), so it judges the address
//! that the client asked for. It refuses TCP with a reset, where the original sends port unreachable to all: a client
//! on this machine gets that ICMP while its own connect() still holds the socket, takes it for a passing trouble and
//! tries again after a second (seen on 6.1, 6.12 and 6.18), and ICMP errors are limited to about one a second for each
//! peer. After IPVS the packet carries the backend, and conntrack's original tuple still the
//! service (needs `net.ipv4.vs.conntrack=1`): that is the equivalent of iptables' `-m ipvs --vmethod MASQ`, which
//! nftables lacks. IPVS leaves the DNAT bit of a connection alone, so with the bit set the rewriting was somebody
//! else's. A nat chain sees the first packet of a connection only.
//!
//! Every rule carries a comment with the whole ruleset as text and its place, so that the value can be read back.

use std::fmt::Write as _;

use super::{
    expr::{self, Expr, Slot},
    nfnetlink,
    sets::{self, Field},
};
use crate::desired::{Ruleset, SetName, firewall::Masquerade};

/// Version of the rules; part of every comment. Raise it with every change to what [`rules`] returns.
const VERSION: &str = "kube-router v1";

/// A chain of ours.
pub struct Chain {
    pub name: &'static str,
    /// `None`: reached by a jump only.
    pub hook: Option<Hook>,
}

/// Where a base chain is attached.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hook {
    pub kind: &'static str,
    /// `NF_INET_*`.
    pub number: u32,
    pub priority: i32,
}

/// Our chains in an order in which they can be made.
pub const CHAINS: [Chain; 6] = [
    Chain { name: "services4", hook: None },
    Chain { name: "services6", hook: None },
    Chain { name: "snat4", hook: None },
    Chain { name: "snat6", hook: None },
    Chain { name: "input", hook: Some(Hook { kind: "filter", number: 1, priority: 0 }) },
    Chain { name: "postrouting", hook: Some(Hook { kind: "nat", number: 4, priority: 100 }) },
];

/// A rule of one of our chains.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rule {
    pub chain: &'static str,
    pub expressions: Vec<Expr>,
    pub comment: String,
}

/// ICMP types let through to service addresses besides what conntrack needs: (IPv6, type).
/// IPv4: destination-unreachable, echo-request, time-exceeded. IPv6: destination-unreachable, packet-too-big,
/// time-exceeded, echo-request, echo-reply, neighbour solicitation and advertisement. (packet-too-big is ours: without
/// it path MTU discovery through a service address fails.)
const ICMP4: [u8; 3] = [3, 8, 11];
const ICMP6: [u8; 7] = [1, 2, 3, 128, 129, 135, 136];

/// `IPS_DST_NAT` in host byte order, as `ct status` is loaded.
const IPS_DST_NAT: u32 = 1 << 5;

/// The rules of a ruleset, chain by chain, in order.
pub fn rules(ruleset: &Ruleset) -> Vec<Rule> {
    let mut all: Vec<(&'static str, Vec<Expr>)> = Vec::new();
    for v6 in [false, true] {
        if ruleset.guard {
            all.push(("input", guard_jump(v6)));
            all.extend(guard(v6).into_iter().map(|rule| (by_family(v6, "services4", "services6"), rule)));
        }
        all.push(("postrouting", after_ipvs(v6)));
        all.push((by_family(v6, "snat4", "snat6"), hairpin(v6)));
        if let Some(rule) = masquerade(ruleset, v6) {
            all.push((by_family(v6, "snat4", "snat6"), rule));
        }
    }
    let (text, count) = (describe(ruleset), all.len());
    all.into_iter()
        .enumerate()
        .map(|(at, (chain, expressions))| Rule { chain, expressions, comment: format!("{text} #{}/{count}", at + 1) })
        .collect()
}

fn guard_jump(v6: bool) -> Vec<Expr> {
    let mut rule = of_family(v6);
    rule.extend([destination(v6, Slot(0)), in_set(SetName::ServiceIps, v6, false)]);
    rule.push(jump(by_family(v6, "services4", "services6")));
    rule
}

fn guard(v6: bool) -> Vec<Vec<Expr>> {
    let accept = Expr::Verdict { code: expr::ACCEPT, chain: None };
    let mut rules = Vec::new();

    let mut port = of_family(v6);
    let mut key = Key::default();
    port.push(destination(v6, key.take(Field::Address, v6)));
    port.push(Expr::Meta { key: expr::META_L4PROTO, to: key.take(Field::Protocol, v6) });
    let to = key.take(Field::Port, v6);
    port.push(Expr::Payload { base: expr::TRANSPORT_HEADER, offset: 2, length: 2, to });
    port.extend([in_set(SetName::ServicePorts, v6, false), accept.clone()]);
    rules.push(port);

    let (protocol, types) = if v6 { (libc::IPPROTO_ICMPV6, &ICMP6[..]) } else { (libc::IPPROTO_ICMP, &ICMP4[..]) };
    for kind in types {
        let mut icmp = of_family(v6);
        icmp.push(Expr::Meta { key: expr::META_L4PROTO, to: Slot(0) });
        icmp.push(Expr::Compare { slot: Slot(0), equal: true, value: vec![protocol as u8] });
        icmp.push(Expr::Payload { base: expr::TRANSPORT_HEADER, offset: 0, length: 1, to: Slot(0) });
        icmp.push(Expr::Compare { slot: Slot(0), equal: true, value: vec![*kind] });
        icmp.push(accept.clone());
        rules.push(icmp);
    }

    let not_the_nodes = [destination(v6, Slot(0)), in_set(SetName::LocalIps, v6, true)];
    let mut reset = of_family(v6);
    reset.push(Expr::Meta { key: expr::META_L4PROTO, to: Slot(0) });
    reset.push(Expr::Compare { slot: Slot(0), equal: true, value: vec![libc::IPPROTO_TCP as u8] });
    reset.extend(not_the_nodes.clone());
    reset.push(Expr::Reject { kind: expr::REJECT_TCP_RESET, code: None });
    rules.push(reset);

    let mut refuse = of_family(v6);
    refuse.extend(not_the_nodes);
    refuse.push(Expr::Reject { kind: expr::REJECT_ICMPX, code: Some(expr::ICMPX_PORT_UNREACHABLE) });
    rules.push(refuse);
    rules
}

fn after_ipvs(v6: bool) -> Vec<Expr> {
    let mut rule = vec![
        Expr::Ct { key: expr::CT_DIRECTION, direction: None, to: Slot(0) },
        Expr::Compare { slot: Slot(0), equal: true, value: vec![0] },
        Expr::Ct { key: expr::CT_STATUS, direction: None, to: Slot(0) },
        Expr::Mask { slot: Slot(0), mask: IPS_DST_NAT.to_ne_bytes().to_vec() },
        Expr::Compare { slot: Slot(0), equal: true, value: vec![0; 4] },
    ];
    rule.extend(of_family(v6));
    rule.extend([destination(v6, Slot(0)), in_set(SetName::ServiceIps, v6, true)]);
    let mut key = Key::default();
    original_service(v6, &mut key, &mut rule);
    rule.push(in_set(SetName::ServicePorts, v6, false));
    rule.push(jump(by_family(v6, "snat4", "snat6")));
    rule
}

fn hairpin(v6: bool) -> Vec<Expr> {
    let mut rule = of_family(v6);
    let mut key = Key::default();
    rule.push(source(v6, key.take(Field::Address, v6)));
    rule.push(destination(v6, key.take(Field::Address, v6)));
    original_service(v6, &mut key, &mut rule);
    rule.push(in_set(SetName::Hairpins, v6, false));
    rule.push(original_destination(v6, Slot(0)));
    rule.push(Expr::Snat { family: nfnetlink::family(v6).into(), address: Slot(0), flags: 0 });
    rule
}

fn masquerade(ruleset: &Ruleset, v6: bool) -> Option<Vec<Expr>> {
    let node = if v6 { ruleset.node_ipv6?.octets().to_vec() } else { ruleset.node_ipv4?.octets().to_vec() };
    let mut rule = of_family(v6);
    match ruleset.masquerade {
        Masquerade::Off => return None,
        Masquerade::All => {}
        Masquerade::OutsidePodCidrs => {
            rule.extend([source(v6, Slot(0)), in_set(SetName::PodCidrs, v6, true)]);
            rule.extend([destination(v6, Slot(0)), in_set(SetName::PodCidrs, v6, true)]);
        }
    }
    rule.push(Expr::Load { to: Slot(0), value: node });
    let family = nfnetlink::family(v6).into();
    rule.push(Expr::Snat { family, address: Slot(0), flags: expr::NAT_FULLY_RANDOM });
    Some(rule)
}

/// Hands out the slots of a concatenated key, field after field.
#[derive(Default)]
struct Key(u8);

impl Key {
    fn take(&mut self, field: Field, v6: bool) -> Slot {
        let slot = Slot(self.0);
        self.0 += (field.padded_length(v6) / 4) as u8;
        slot
    }
}

fn by_family(v6: bool, four: &'static str, six: &'static str) -> &'static str {
    if v6 { six } else { four }
}

/// In an inet table every rule that reads an IP header says first which; without it tools print raw offsets.
fn of_family(v6: bool) -> Vec<Expr> {
    vec![
        Expr::Meta { key: expr::META_NFPROTO, to: Slot(0) },
        Expr::Compare { slot: Slot(0), equal: true, value: vec![nfnetlink::family(v6)] },
    ]
}

fn source(v6: bool, to: Slot) -> Expr {
    let (offset, length) = if v6 { (8, 16) } else { (12, 4) };
    Expr::Payload { base: expr::NETWORK_HEADER, offset, length, to }
}

fn destination(v6: bool, to: Slot) -> Expr {
    let (offset, length) = if v6 { (24, 16) } else { (16, 4) };
    Expr::Payload { base: expr::NETWORK_HEADER, offset, length, to }
}

fn original_destination(v6: bool, to: Slot) -> Expr {
    Expr::Ct { key: if v6 { expr::CT_DST_IP6 } else { expr::CT_DST_IP }, direction: Some(0), to }
}

/// Address, protocol and port to which the connection's first packet was sent.
fn original_service(v6: bool, key: &mut Key, rule: &mut Vec<Expr>) {
    rule.push(original_destination(v6, key.take(Field::Address, v6)));
    rule.push(Expr::Meta { key: expr::META_L4PROTO, to: key.take(Field::Protocol, v6) });
    rule.push(Expr::Ct { key: expr::CT_PROTO_DST, direction: Some(0), to: key.take(Field::Port, v6) });
}

fn in_set(name: SetName, v6: bool, inverted: bool) -> Expr {
    Expr::Lookup { slot: Slot(0), set: sets::nft_name(name, v6).into(), inverted }
}

fn jump(chain: &'static str) -> Expr {
    Expr::Verdict { code: expr::JUMP, chain: Some(chain.into()) }
}

/// The ruleset as text. With the longest addresses and rule number 123 bytes: nft shows at most 128.
fn describe(ruleset: &Ruleset) -> String {
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

    #[test]
    fn without_a_node_address_nothing_of_that_family_is_masqueraded() {
        let ruleset =
            Ruleset { masquerade: Masquerade::All, node_ipv4: Some([10, 0, 0, 1].into()), ..Default::default() };
        let chains: Vec<_> = rules(&ruleset).into_iter().map(|rule| rule.chain).collect();
        assert_eq!(chains, ["postrouting", "snat4", "snat4", "postrouting", "snat6"]);
    }
}
