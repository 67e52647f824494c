//! Rules in words, for people: what counters and `explain` show.

use std::fmt;

use super::normalize::{Namespaces, Peers, Ports, Rule};

impl fmt::Display for Rule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.label)?;
        match &self.peers {
            None => f.write_str("everybody")?,
            Some(peers) => list(f, peers, " or ")?,
        }
        match &self.ports {
            None => Ok(()),
            Some(ports) => {
                f.write_str(", ")?;
                list(f, ports, " ")
            }
        }
    }
}

fn list<T: fmt::Display>(f: &mut fmt::Formatter<'_>, items: &[T], between: &str) -> fmt::Result {
    /// A policy may name thousands; a line is for people.
    const MOST: usize = 8;
    for (i, item) in items.iter().take(MOST).enumerate() {
        write!(f, "{}{item}", if i == 0 { "" } else { between })?;
    }
    if items.len() > MOST { write!(f, "{between}{} more", items.len() - MOST) } else { Ok(()) }
}

impl fmt::Display for Peers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Peers::Pods { namespaces: Namespaces::One(name), pods } => write!(f, "pods {pods} in {name}"),
            Peers::Pods { namespaces: Namespaces::Selected(names), pods } => {
                write!(f, "pods {pods} in namespaces {names}")
            }
            Peers::Block(block) => {
                write!(f, "{}", block.net)?;
                if block.except.is_empty() {
                    return Ok(());
                }
                f.write_str(" except ")?;
                list(f, &block.except, " ")
            }
        }
    }
}

impl fmt::Display for Ports {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Ports::Range { protocol, first: 0, last: u16::MAX } => write!(f, "{protocol}"),
            Ports::Range { protocol, first, last } if first == last => write!(f, "{protocol}/{first}"),
            Ports::Range { protocol, first, last } => write!(f, "{protocol}/{first}-{last}"),
            Ports::Named { protocol, name } => write!(f, "{protocol}/{name}"),
        }
    }
}
