//! Our nftables sets as data: names, key layout, and elements to key bytes and back.
//!
//! A key is its fields in a row, each padded to four bytes (the registers' grid). The type number tells tools how to
//! print keys: six bits for each field, the first field highest. Pod CIDRs are an interval set: each network is two
//! elements, the first address, and the first address past it flagged as an end; a network that reaches the last
//! address has no end. Knows nothing about messages.

use std::{
    collections::BTreeSet,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

use ipnet::{IpNet, Ipv4Subnets, Ipv6Subnets};

use super::nfnetlink;
use crate::{
    desired::{Hairpin, SetElement, SetName, VirtualKey},
    objects::Protocol,
};

/// `NFT_SET_INTERVAL`.
const SET_INTERVAL: u32 = 0x4;

/// A field of a set's key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Field {
    Address,
    Protocol,
    Port,
}

impl Field {
    fn length(self, v6: bool) -> usize {
        match self {
            Field::Address if v6 => 16,
            Field::Address => 4,
            Field::Protocol => 1,
            Field::Port => 2,
        }
    }

    /// Bytes in a key, in whole registers.
    pub fn padded_length(self, v6: bool) -> usize {
        self.length(v6).next_multiple_of(4)
    }

    /// nft's number of the datatype (`enum datatypes`, part of what tools and kernel exchange since the beginning).
    fn datatype(self, v6: bool) -> u32 {
        match self {
            Field::Address if v6 => 8, // ipv6_addr
            Field::Address => 7,       // ipv4_addr
            Field::Protocol => 12,     // inet_proto
            Field::Port => 13,         // inet_service
        }
    }
}

/// What the kernel keeps of a set's definition.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Layout {
    pub key_type: u32,
    /// Bytes.
    pub key_length: u32,
    pub flags: u32,
}

/// One key of an element; `end` marks the first address past an interval.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct ElementKey {
    pub bytes: Vec<u8>,
    pub end: bool,
}

/// Every set of ours with its family (true = IPv6).
pub fn all() -> impl Iterator<Item = (SetName, bool)> {
    SetName::ALL.into_iter().flat_map(|name| [(name, false), (name, true)])
}

/// Name with the family's suffix.
pub fn nft_name(name: SetName, v6: bool) -> &'static str {
    match (name, v6) {
        (SetName::LocalIps, false) => "local-ips4",
        (SetName::LocalIps, true) => "local-ips6",
        (SetName::ServiceIps, false) => "svip4",
        (SetName::ServiceIps, true) => "svip6",
        (SetName::ServicePorts, false) => "svip-prt4",
        (SetName::ServicePorts, true) => "svip-prt6",
        (SetName::Hairpins, false) => "hairpin4",
        (SetName::Hairpins, true) => "hairpin6",
        (SetName::PodCidrs, false) => "pod-cidrs4",
        (SetName::PodCidrs, true) => "pod-cidrs6",
    }
}

/// The key's fields in order. Hairpin: source, destination, then the address, protocol and port first asked for.
fn fields(name: SetName) -> &'static [Field] {
    match name {
        SetName::LocalIps | SetName::ServiceIps | SetName::PodCidrs => &[Field::Address],
        SetName::ServicePorts => &[Field::Address, Field::Protocol, Field::Port],
        SetName::Hairpins => &[Field::Address, Field::Address, Field::Address, Field::Protocol, Field::Port],
    }
}

pub fn layout(name: SetName, v6: bool) -> Layout {
    let fields = fields(name);
    Layout {
        key_type: fields.iter().fold(0, |number, field| number << 6 | field.datatype(v6)),
        key_length: fields.iter().map(|field| field.padded_length(v6) as u32).sum(),
        flags: if name == SetName::PodCidrs { SET_INTERVAL } else { 0 },
    }
}

/// The keys of an element; `None` if it mixes families.
pub fn keys(element: &SetElement) -> Option<Vec<ElementKey>> {
    let mut bytes = Vec::with_capacity(56);
    match element {
        SetElement::LocalIp(address) | SetElement::ServiceIp(address) => bytes = nfnetlink::octets(*address),
        SetElement::ServicePort(key) => put_service(&mut bytes, key),
        SetElement::Hairpin(hairpin) => {
            if hairpin.pod.is_ipv4() != hairpin.vip.is_ipv4() {
                return None;
            }
            let pod = nfnetlink::octets(hairpin.pod);
            bytes.extend_from_slice(&pod);
            bytes.extend_from_slice(&pod);
            let key = VirtualKey { address: hairpin.vip, protocol: hairpin.protocol, port: hairpin.port };
            put_service(&mut bytes, &key);
        }
        SetElement::PodCidr(network) => return Some(interval(network)),
    }
    Some(vec![ElementKey { bytes, end: false }])
}

fn put_service(bytes: &mut Vec<u8>, key: &VirtualKey) {
    bytes.extend_from_slice(&nfnetlink::octets(key.address));
    bytes.extend_from_slice(&[key.protocol.number(), 0, 0, 0]);
    bytes.extend_from_slice(&key.port.to_be_bytes());
    bytes.extend_from_slice(&[0, 0]);
}

fn interval(network: &IpNet) -> Vec<ElementKey> {
    let past = match network.broadcast() {
        IpAddr::V4(last) => u32::from(last).checked_add(1).map(|next| IpAddr::from(Ipv4Addr::from(next))),
        IpAddr::V6(last) => u128::from(last).checked_add(1).map(|next| IpAddr::from(Ipv6Addr::from(next))),
    };
    let start = ElementKey { bytes: nfnetlink::octets(network.network()), end: false };
    let end = past.map(|past| ElementKey { bytes: nfnetlink::octets(past), end: true });
    std::iter::once(start).chain(end).collect()
}

/// The elements of a set from its keys as listed. Keys that stand for nothing we know (a protocol that services do not
/// have) are left out.
pub fn elements(name: SetName, v6: bool, keys: Vec<ElementKey>) -> BTreeSet<SetElement> {
    if name == SetName::PodCidrs {
        return networks(keys).into_iter().map(SetElement::PodCidr).collect();
    }
    keys.iter().filter_map(|key| element(name, v6, &key.bytes)).collect()
}

fn element(name: SetName, v6: bool, bytes: &[u8]) -> Option<SetElement> {
    let address_length = Field::Address.length(v6);
    match name {
        SetName::LocalIps => Some(SetElement::LocalIp(nfnetlink::address(bytes)?)),
        SetName::ServiceIps => Some(SetElement::ServiceIp(nfnetlink::address(bytes)?)),
        SetName::ServicePorts => Some(SetElement::ServicePort(service(address_length, bytes)?)),
        SetName::Hairpins => {
            let pod = nfnetlink::address(bytes.get(..address_length)?)?;
            let key = service(address_length, bytes.get(2 * address_length..)?)?;
            let hairpin = Hairpin { pod, vip: key.address, protocol: key.protocol, port: key.port };
            Some(SetElement::Hairpin(hairpin))
        }
        SetName::PodCidrs => None,
    }
}

fn service(address_length: usize, bytes: &[u8]) -> Option<VirtualKey> {
    let (address, rest) = bytes.split_at_checked(address_length)?;
    let [protocol, _, _, _, high, low, _, _] = *rest else { return None };
    Some(VirtualKey {
        address: nfnetlink::address(address)?,
        protocol: Protocol::from_number(protocol)?,
        port: u16::from_be_bytes([high, low]),
    })
}

/// Networks between starts and ends. A range that is no network (somebody else's) reads as the networks it consists of.
fn networks(mut keys: Vec<ElementKey>) -> Vec<IpNet> {
    // Where one interval ends and the next begins at the same address, the end comes first.
    keys.sort_by(|a, b| (&a.bytes, !a.end).cmp(&(&b.bytes, !b.end)));
    let mut networks = Vec::new();
    for (at, key) in keys.iter().enumerate().filter(|(_, key)| !key.end) {
        let Some(first) = nfnetlink::address(&key.bytes) else { continue };
        let past = keys[at + 1..].first().and_then(|next| nfnetlink::address(&next.bytes));
        match (first, past) {
            (IpAddr::V4(first), past) => {
                let last = match past {
                    Some(IpAddr::V4(past)) => Ipv4Addr::from(u32::from(past).wrapping_sub(1)),
                    _ => Ipv4Addr::BROADCAST,
                };
                networks.extend(Ipv4Subnets::new(first, last, 0).map(IpNet::V4));
            }
            (IpAddr::V6(first), past) => {
                let last = match past {
                    Some(IpAddr::V6(past)) => Ipv6Addr::from(u128::from(past).wrapping_sub(1)),
                    _ => Ipv6Addr::from(u128::MAX),
                };
                networks.extend(Ipv6Subnets::new(first, last, 0).map(IpNet::V6));
            }
        }
    }
    networks
}

#[cfg(test)]
mod tests {
    use super::*;

    fn every_kind() -> Vec<SetElement> {
        let mut all = Vec::new();
        for (a, b, net) in
            [("10.96.0.1", "10.244.1.2", "10.244.1.0/24"), ("fd00:10:96::1", "fd00:10:244:1::2", "fd00:10:244:1::/64")]
        {
            let (vip, pod): (IpAddr, IpAddr) = (a.parse().unwrap(), b.parse().unwrap());
            all.extend([SetElement::LocalIp(vip), SetElement::ServiceIp(vip)]);
            for protocol in [Protocol::Tcp, Protocol::Udp, Protocol::Sctp] {
                all.push(SetElement::ServicePort(VirtualKey { address: vip, protocol, port: 30080 }));
                all.push(SetElement::Hairpin(Hairpin { pod, vip, protocol, port: 80 }));
            }
            all.push(SetElement::PodCidr(net.parse().unwrap()));
        }
        all
    }

    #[test]
    fn elements_read_back() {
        for element in every_kind() {
            let read = elements(element.set(), element.is_ipv6(), keys(&element).unwrap());
            assert_eq!(read.into_iter().collect::<Vec<_>>(), [element]);
        }
    }

    #[test]
    fn keys_have_the_length_of_their_set() {
        for element in every_kind() {
            let length = layout(element.set(), element.is_ipv6()).key_length as usize;
            assert!(keys(&element).unwrap().iter().all(|key| key.bytes.len() == length), "{element}");
        }
    }

    #[test]
    fn networks_at_the_edges_and_side_by_side() {
        let all: Vec<IpNet> =
            ["0.0.0.0/1", "128.0.0.0/2", "192.168.0.0/24", "255.255.255.0/24"].map(|n| n.parse().unwrap()).to_vec();
        let mut listed: Vec<_> = all.iter().flat_map(interval).collect();
        listed.reverse();
        assert_eq!(networks(listed), all);
        let whole: IpNet = "::/0".parse().unwrap();
        assert_eq!(interval(&whole).len(), 1);
        assert_eq!(networks(interval(&whole)), [whole]);
        // nft opens an interval set that does not begin at zero with an end at zero.
        let zero = ElementKey { bytes: vec![0; 4], end: true };
        assert_eq!(networks([vec![zero], interval(&all[2])].concat()), [all[2]]);
    }

    #[test]
    fn a_hairpin_of_mixed_families_has_no_key() {
        let hairpin =
            Hairpin { pod: [10, 0, 0, 1].into(), vip: "::1".parse().unwrap(), protocol: Protocol::Tcp, port: 1 };
        assert_eq!(keys(&SetElement::Hairpin(hairpin)), None);
    }

    #[test]
    fn names_are_the_shared_names_with_the_family() {
        for (name, v6) in all() {
            assert_eq!(nft_name(name, v6), format!("{}{}", name.nft_name(), if v6 { 6 } else { 4 }));
        }
    }
}
