//! Entries of the mirrored ipsets.
//!
//! Many entries travel inside one request, which the kernel carries out up to the first that it refuses; such a request
//! is sent again entry by entry, which is harmless, since adding what is there and removing what is not are no errors.

use std::collections::BTreeSet;

use super::{
    ipset::{ATTR_DATA, DATA_TIMEOUT, Found, Set, explain, look_up, put_net32, send},
    nfnetlink::{self, SUBSYS_IPSET, message_type},
};
use crate::{
    apply::OpFailure,
    desired::{SetElement, SetName, VirtualKey},
    nl::{NlError, Refusal, Socket, attr},
    objects::Protocol,
};

/// Entries in one request: 512 of at most 48 bytes fit an attribute's 65,535.
const MESSAGE_ENTRIES: usize = 512;
const LIST: u8 = 7;
const ADD: u8 = 9;
const DEL: u8 = 10;
const ATTR_ADT: u16 = 8;
const ATTR_LINENO: u16 = 9;
const DATA_IP: u16 = 1;
const DATA_PORT: u16 = 4;
const DATA_PROTO: u16 = 7;

/// Adds or removes entries; `entries` are (index in the slice given to `apply`, element). Adding what is there and
/// removing what is not are no errors.
pub fn change(socket: &mut Socket, add: bool, entries: &[(usize, SetElement)]) -> Result<Vec<OpFailure>, NlError> {
    let mut failures = Vec::new();
    // A set's entries need not stand together; order matters only between orders of the same entry, and here all
    // orders go one way.
    for set in Set::all() {
        let ours: Vec<_> = entries.iter().filter(|(_, element)| Set::of(element) == Some(set)).collect();
        if ours.is_empty() {
            continue;
        }
        if let Ok(Found::Other(what)) = look_up(socket, set) {
            let refusal =
                Refusal { errno: libc::EEXIST, text: format!("ipset {} exists as {what}", set.ipset()).into() };
            failures.extend(ours.iter().map(|(index, _)| OpFailure { index: *index, refusal: refusal.clone() }));
            continue;
        }
        for chunk in ours.chunks(MESSAGE_ENTRIES) {
            if put_entries(socket, add, set, chunk.iter().map(|(_, element)| element))?.is_none() {
                continue;
            }
            for (index, element) in chunk {
                if let Some(refusal) = put_entries(socket, add, set, std::iter::once(element))? {
                    failures.push(OpFailure { index: *index, refusal: explain(set, refusal) });
                }
            }
        }
    }
    for (index, element) in entries.iter().filter(|(_, element)| Set::of(element).is_none()) {
        let text = format!("no ipset mirrors {}", element.set().nft_name());
        failures.push(OpFailure { index: *index, refusal: Refusal { errno: libc::EINVAL, text: text.into() } });
    }
    failures.sort_by_key(|failure| failure.index);
    Ok(failures)
}

fn put_entries<'a>(
    socket: &mut Socket,
    add: bool,
    set: Set,
    elements: impl Iterator<Item = &'a SetElement>,
) -> Result<Option<Refusal>, NlError> {
    // Without NLM_F_EXCL the kernel passes over what is there (add) and what is not (del).
    send(socket, if add { ADD } else { DEL }, 0, |body| {
        set.put(body);
        put_net32(body, ATTR_LINENO, 0);
        attr::nest(body, ATTR_ADT, |list| elements.for_each(|element| put_entry(list, add, element)));
    })
}

fn put_entry(list: &mut Vec<u8>, add: bool, element: &SetElement) {
    attr::nest(list, ATTR_DATA, |data| {
        let octets = nfnetlink::octets(element.address());
        // IPSET_ATTR_IPADDR_IPV4 or _IPV6, big endian.
        let kind = if element.is_ipv6() { 2 } else { 1 };
        attr::nest(data, DATA_IP, |ip| attr::put(ip, kind | attr::NET_BYTEORDER, &octets));
        if let SetElement::ServicePort(key) = element {
            attr::put_be16(data, DATA_PORT | attr::NET_BYTEORDER, key.port);
            attr::put_u8(data, DATA_PROTO, key.protocol.number());
        }
        if add {
            put_net32(data, DATA_TIMEOUT, 0);
        }
    });
}

/// What exists of our mirrored sets.
pub struct Ipsets {
    /// All of them exist with the right type.
    pub complete: bool,
    /// At least one exists with the right type.
    pub any: bool,
    pub members: BTreeSet<SetElement>,
}

pub fn observe(socket: &mut Socket) -> Result<Ipsets, NlError> {
    let mut found = Ipsets { complete: true, any: false, members: BTreeSet::new() };
    for set in Set::all() {
        match look_up(socket, set) {
            Ok(Found::Ours) => {
                found.any = true;
                found.members.append(&mut members(socket, set)?);
            }
            Ok(_) => found.complete = false,
            // No ipset in this kernel: creating will say so, and nothing else depends on it.
            Err(NlError::Refused(refusal)) => {
                tracing::debug!(ipset = set.ipset(), %refusal, "ipset cannot be read");
                found.complete = false;
            }
            Err(error) => return Err(error),
        }
    }
    Ok(found)
}

fn members(socket: &mut Socket, set: Set) -> Result<BTreeSet<SetElement>, NlError> {
    let asked = socket.dump(
        message_type(SUBSYS_IPSET, LIST),
        0,
        |body| set.put(body),
        |members: &mut BTreeSet<_>, _, payload| {
            for (_, list) in nfnetlink::attributes(payload).filter(|(kind, _)| *kind == ATTR_ADT) {
                members.extend(attr::attributes(list).filter_map(|(_, data)| parse_entry(set, data)));
            }
            Ok(())
        },
    );
    match asked {
        Err(NlError::Refused(refusal)) if refusal.errno == libc::ENOENT => Ok(BTreeSet::new()),
        other => other,
    }
}

fn parse_entry(set: Set, data: &[u8]) -> Option<SetElement> {
    let field = |kind| attr::attributes(data).find(|(k, _)| *k == kind).map(|(_, value)| value);
    let address = nfnetlink::address(attr::attributes(field(DATA_IP)?).next()?.1)?;
    match set.name {
        SetName::LocalIps => Some(SetElement::LocalIp(address)),
        SetName::ServiceIps => Some(SetElement::ServiceIp(address)),
        SetName::ServicePorts => {
            let protocol = Protocol::from_number(*field(DATA_PROTO)?.first()?)?;
            let port = attr::be16(field(DATA_PORT)?)?;
            Some(SetElement::ServicePort(VirtualKey { address, protocol, port }))
        }
        SetName::Hairpins | SetName::PodCidrs => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entries_read_back() {
        let key =
            |address: &str| VirtualKey { address: address.parse().unwrap(), protocol: Protocol::Sctp, port: 38412 };
        for element in [
            SetElement::LocalIp([10, 0, 0, 1].into()),
            SetElement::ServiceIp("fd00::1".parse().unwrap()),
            SetElement::ServicePort(key("10.96.0.10")),
            SetElement::ServicePort(key("fd00::10")),
        ] {
            let mut list = Vec::new();
            put_entry(&mut list, true, &element);
            let (_, data) = attr::attributes(&list).next().unwrap();
            assert_eq!(parse_entry(Set::of(&element).unwrap(), data), Some(element));
        }
    }
}
