//! Ports: what `--port` asks for, and into which classes all ports fall when nobody asks; and how they are called.
//!
//! Ports that no rule and no container tells apart have the same verdict, so one of them stands for all.

use std::{collections::BTreeSet, fmt};

use crate::{
    compile::policy::model::Traffic,
    objects::{Pod, Protocol},
};

/// `--port` as typed, understood.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PortWish {
    Number(Protocol, u16),
    /// As the target calls it. `None`: whatever the protocol.
    Name(Option<Protocol>, Box<str>),
    /// ICMP, and whatever else has no ports.
    Portless,
}

/// Ways to write [`PortWish::Portless`].
const PORTLESS: [&str; 3] = ["icmp", "icmpv6", "none"];

impl PortWish {
    /// `tcp/80`, `80`, `udp/dns`, `http`, `icmp`. `None`: none of these.
    pub fn read(text: &str) -> Option<Self> {
        if PORTLESS.contains(&text.to_ascii_lowercase().as_str()) {
            return Some(PortWish::Portless);
        }
        let (protocol, port) = match text.split_once('/') {
            Some((protocol, port)) => (Some(protocol_named(protocol)?), port),
            None => (None, text),
        };
        if port.is_empty() {
            return None;
        }
        match port.parse::<u16>() {
            Ok(0) => None,
            Ok(number) => Some(PortWish::Number(protocol.unwrap_or(Protocol::Tcp), number)),
            Err(_) if port.bytes().all(|byte| byte.is_ascii_digit()) => None,
            Err(_) => Some(PortWish::Name(protocol, port.into())),
        }
    }
}

pub fn protocol_named(word: &str) -> Option<Protocol> {
    [Protocol::Tcp, Protocol::Udp, Protocol::Sctp].into_iter().find(|known| known.name().eq_ignore_ascii_case(word))
}

/// Ports that are judged alike.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Slot {
    /// Both included.
    Range(Protocol, u16, u16),
    /// Every port that is not in a range; one of them.
    Other(Protocol, u16),
    Portless,
}

impl Slot {
    /// One that stands for all.
    pub fn traffic(&self) -> Traffic {
        match self {
            Slot::Range(protocol, port, _) | Slot::Other(protocol, port) => Traffic::Port(*protocol, *port),
            Slot::Portless => Traffic::Portless,
        }
    }
}

impl fmt::Display for Slot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Slot::Range(protocol, first, last) if first == last => write!(f, "{protocol}/{first}"),
            Slot::Range(protocol, first, last) => write!(f, "{protocol}/{first}-{last}"),
            Slot::Other(protocol, _) => write!(f, "other {protocol}"),
            Slot::Portless => f.write_str("icmp"),
        }
    }
}

/// Both included.
pub type Range = (Protocol, u16, u16);

/// Cuts the ports where a range begins or ends.
pub fn slots(ranges: &BTreeSet<Range>) -> Vec<Slot> {
    let mut slots = Vec::new();
    for protocol in [Protocol::Tcp, Protocol::Udp, Protocol::Sctp] {
        let ranges: Vec<(u32, u32)> = ranges
            .iter()
            .filter(|(of, _, _)| *of == protocol)
            .map(|(_, first, last)| (u32::from(*first), u32::from(*last)))
            .collect();
        let mut cuts: BTreeSet<u32> = BTreeSet::from([1, 65_536]);
        cuts.extend(ranges.iter().flat_map(|(first, last)| [*first, last + 1]).filter(|cut| *cut > 0));
        let mut other = None;
        for (first, next) in cuts.iter().zip(cuts.iter().skip(1)) {
            let (first, last) = (*first, *next - 1);
            let covered = ranges.iter().any(|(begin, end)| *begin <= first && last <= *end);
            match (u16::try_from(first), u16::try_from(last)) {
                (Ok(first), Ok(last)) if covered => slots.push(Slot::Range(protocol, first, last)),
                (Ok(first), _) => drop(other.get_or_insert(first)),
                _ => {}
            }
        }
        slots.extend(other.map(|port| Slot::Other(protocol, port)));
    }
    slots.push(Slot::Portless);
    slots
}

/// `tcp/80 (http)`, or without a name.
pub fn labelled(traffic: &str, name: Option<&str>) -> String {
    name.filter(|name| !name.is_empty()).map_or(traffic.to_owned(), |name| format!("{traffic} ({name})"))
}

/// With the names by which the pod calls it.
pub fn port_label(pod: Option<&Pod>, protocol: Protocol, port: u16) -> String {
    let named = pod.into_iter().flat_map(|pod| &pod.ports);
    let names: Vec<&str> =
        named.filter(|known| (known.protocol, known.port) == (protocol, port)).map(|known| &*known.name).collect();
    labelled(&format!("{protocol}/{port}"), Some(&names.join(", ")))
}

pub fn slot_label(pod: Option<&Pod>, slot: &Slot) -> String {
    match slot {
        Slot::Range(protocol, first, last) if first == last => port_label(pod, *protocol, *first),
        slot => slot.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use Protocol::{Sctp, Tcp, Udp};

    #[test]
    fn ways_to_write_a_port() {
        let name = |protocol, name: &str| Some(PortWish::Name(protocol, name.into()));
        for (text, wish) in [
            ("tcp/80", Some(PortWish::Number(Tcp, 80))),
            ("443", Some(PortWish::Number(Tcp, 443))),
            ("UDP/53", Some(PortWish::Number(Udp, 53))),
            ("sctp/7", Some(PortWish::Number(Sctp, 7))),
            ("udp/dns", name(Some(Udp), "dns")),
            ("http", name(None, "http")),
            ("icmp", Some(PortWish::Portless)),
            ("none", Some(PortWish::Portless)),
            ("tcp/0", None),
            ("tcp/70000", None),
            ("quic/443", None),
            ("tcp/", None),
            ("", None),
        ] {
            assert_eq!(PortWish::read(text), wish, "{text}");
        }
    }

    #[test]
    fn ranges_are_cut_where_others_begin_and_end() {
        let ranges = BTreeSet::from([(Tcp, 80, 80), (Tcp, 70, 90), (Udp, 1, 65_535), (Tcp, 1, 5)]);
        let texts: Vec<String> = slots(&ranges).iter().map(ToString::to_string).collect();
        let expected =
            ["tcp/1-5", "tcp/70-79", "tcp/80", "tcp/81-90", "other tcp", "udp/1-65535", "other sctp", "icmp"];
        assert_eq!(texts, expected);
        assert_eq!(slots(&ranges)[4].traffic(), Traffic::Port(Tcp, 6));
    }
}
