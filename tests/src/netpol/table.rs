//! A truth table: may this pod talk to that one, on this port, in this family?
//!
//! Written as sentences, each of which overrides what was said before; nothing said means allowed, as in a cluster
//! without policies:
//!
//! ```text
//! deny any to x/a
//! allow y/b, z to x/a on tcp/80, udp/80
//! allow */c to x/a over ipv4
//! skip z/c to any
//! ```
//!
//! `skip` is for what Kubernetes leaves open. A pod and itself are no pair: that traffic does not leave the pod.

use std::fmt;

use anyhow::{Context, Result, bail};

use super::plan::{PODS, PORTS};
use crate::probe::Transport;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cell {
    Allowed,
    Denied,
    /// Kubernetes does not say.
    Open,
}

/// One question of the table; numbers are those of [`PODS`] and [`PORTS`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Pair {
    pub from: usize,
    pub to: usize,
    pub port: usize,
    pub ipv4: bool,
}

impl Pair {
    /// All of them; a pod and itself only if asked for.
    pub fn all(itself: bool) -> impl Iterator<Item = Pair> {
        let pods = PODS.len();
        (0..pods * pods * PORTS.len() * 2).filter_map(move |number| {
            let (from, rest) = (number / (pods * PORTS.len() * 2), number % (pods * PORTS.len() * 2));
            let (to, rest) = (rest / (PORTS.len() * 2), rest % (PORTS.len() * 2));
            let pair = Pair { from, to, port: rest / 2, ipv4: rest % 2 == 0 };
            (itself || from != to).then_some(pair)
        })
    }

    fn index(self) -> usize {
        ((self.from * PODS.len() + self.to) * PORTS.len() + self.port) * 2 + usize::from(!self.ipv4)
    }
}

impl fmt::Display for Pair {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (transport, port) = PORTS[self.port];
        let family = if self.ipv4 { "IPv4" } else { "IPv6" };
        write!(f, "{} -> {} {transport}/{port} {family}", PODS[self.from], PODS[self.to])
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Table {
    cells: Vec<Cell>,
}

impl Table {
    /// Everything allowed.
    pub fn open() -> Table {
        Table { cells: vec![Cell::Allowed; PODS.len() * PODS.len() * PORTS.len() * 2] }
    }

    /// One sentence a line.
    pub fn parse(text: &str) -> Result<Table> {
        let mut table = Table::open();
        for line in text.lines().map(str::trim).filter(|line| !line.is_empty()) {
            table.say(line).with_context(|| format!("in the table's line {line:?}"))?;
        }
        Ok(table)
    }

    /// A pod may always talk to itself: "a Pod cannot block access to itself".
    pub fn cell(&self, pair: Pair) -> Cell {
        if pair.from == pair.to { Cell::Allowed } else { self.cells[pair.index()] }
    }

    fn say(&mut self, line: &str) -> Result<()> {
        let (verb, rest) = line.split_once(' ').context("no verb")?;
        let cell = match verb {
            "allow" => Cell::Allowed,
            "deny" => Cell::Denied,
            "skip" => Cell::Open,
            other => bail!("neither allow, deny nor skip: {other}"),
        };
        let (rest, family) = match rest.split_once(" over ") {
            Some((rest, "ipv4")) => (rest, Some(true)),
            Some((rest, "ipv6")) => (rest, Some(false)),
            Some((_, other)) => bail!("no family: {other}"),
            None => (rest, None),
        };
        let (rest, ports) = match rest.split_once(" on ") {
            Some((rest, ports)) => (rest, parse_ports(ports)?),
            None => (rest, (0..PORTS.len()).collect()),
        };
        let (from, to) = rest.split_once(" to ").context("no \"to\"")?;
        let (from, to) = (parse_pods(from)?, parse_pods(to)?);
        for pair in Pair::all(false) {
            let family = family.is_none_or(|ipv4| ipv4 == pair.ipv4);
            if family && from.contains(&pair.from) && to.contains(&pair.to) && ports.contains(&pair.port) {
                self.cells[pair.index()] = cell;
            }
        }
        Ok(())
    }
}

/// `any`, `x` (a namespace), `x/a`, `*/a`; several with commas.
fn parse_pods(text: &str) -> Result<Vec<usize>> {
    let mut found = Vec::new();
    for word in text.split(',').map(str::trim) {
        let before = found.len();
        found.extend((0..PODS.len()).filter(|pod| match (word, word.split_once('/')) {
            ("any", _) => true,
            (_, Some(("*", name))) => PODS[*pod].ends_with(&format!("/{name}")),
            (_, Some(_)) => PODS[*pod] == word,
            (_, None) => PODS[*pod].starts_with(&format!("{word}/")),
        }));
        if found.len() == before {
            bail!("nobody is called {word:?}");
        }
    }
    Ok(found)
}

fn parse_ports(text: &str) -> Result<Vec<usize>> {
    let mut found = Vec::new();
    for word in text.split(',').map(str::trim) {
        let before = found.len();
        found.extend((0..PORTS.len()).filter(|port| {
            let (transport, number) = PORTS[*port];
            let name = match transport {
                Transport::Tcp => "tcp",
                Transport::Udp => "udp",
                Transport::Sctp => "sctp",
            };
            word == name || word == format!("{name}/{number}")
        }));
        if found.len() == before {
            bail!("nobody serves {word:?}");
        }
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::netpol::plan::pod;

    fn cell(table: &Table, from: &str, to: &str, port: usize, ipv4: bool) -> Cell {
        table.cell(Pair { from: pod(from).unwrap(), to: pod(to).unwrap(), port, ipv4 })
    }

    #[test]
    fn later_sentences_override_earlier_ones() {
        let table = Table::parse(
            "deny any to x/a
             allow y/b, z to x/a on tcp/80, udp
             allow */c to x/a over ipv4
             skip z/c to y",
        )
        .unwrap();
        assert_eq!(cell(&table, "x/b", "x/a", 0, true), Cell::Denied);
        assert_eq!(cell(&table, "y/b", "x/a", 0, false), Cell::Allowed);
        assert_eq!(cell(&table, "y/b", "x/a", 1, false), Cell::Denied);
        assert_eq!(cell(&table, "z/a", "x/a", 3, false), Cell::Allowed);
        assert_eq!(cell(&table, "y/c", "x/a", 1, true), Cell::Allowed);
        assert_eq!(cell(&table, "y/c", "x/a", 1, false), Cell::Denied);
        assert_eq!(cell(&table, "z/c", "y/a", 1, false), Cell::Open);
        assert_eq!(cell(&table, "x/a", "x/a", 0, true), Cell::Allowed, "itself");
    }

    #[test]
    fn a_slip_of_the_pen_is_an_error() {
        for wrong in ["deny any", "forbid any to x", "deny q to x", "deny any to x on icmp", "deny x to y over ipx"] {
            assert!(Table::parse(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn pairs_are_all_there_once() {
        let pairs: std::collections::BTreeSet<Pair> = Pair::all(true).collect();
        assert_eq!(pairs.len(), 9 * 9 * PORTS.len() * 2);
        assert_eq!(Pair::all(false).count(), 9 * 8 * PORTS.len() * 2);
    }
}
