//! The mirrored ipsets: a copy of three of our sets for people and for tools that look there. Nothing decides by them.
//!
//! ipset is subsystem 6 of nfnetlink. Many entries travel inside one request, which the kernel carries out up to the
//! first that it refuses; such a request is sent again entry by entry. Sets and entries have `timeout 0` (permanent in
//! a set that knows timeouts), as the original's. Source: include/uapi/linux/netfilter/ipset/ip_set.h,
//! net/netfilter/ipset/ip_set_core.c.

use std::collections::BTreeSet;

use super::nfnetlink::{self, SUBSYS_IPSET, message_type, put_header};
use crate::{
    apply::OpFailure,
    desired::{SetElement, SetName, VirtualKey},
    nl::{Batch, NLM_F_CREATE, NlError, Refusal, Socket, attr},
    objects::Protocol,
};

/// Entries that one set can hold; the original's. Every service port of the cluster needs one: 10,000 services of six
/// ports fit. What goes beyond is refused entry by entry, and reported; the nftables sets that decide have no limit.
const MAX_ELEMENTS: u32 = 65536;
const HASH_SIZE: u32 = 1024;
/// Entries in one request: 512 of at most 48 bytes fit an attribute's 65,535.
const MESSAGE_ENTRIES: usize = 512;
/// The type revision in which hash:ip,port knows SCTP. Newer ones add nothing that we use, and an older `ipset` command
/// refuses to show sets of a revision that it does not know.
const WANTED_REVISION: u8 = 1;
/// `IPSET_PROTOCOL_MIN`: spoken by every kernel that we meet (7 exists since 4.20 and differs elsewhere).
const PROTOCOL: u8 = 6;

const CREATE: u8 = 2;
const DESTROY: u8 = 3;
const LIST: u8 = 7;
const ADD: u8 = 9;
const DEL: u8 = 10;
const HEADER: u8 = 12;
const TYPE: u8 = 13;

// IPSET_ATTR_*, at command level.
const ATTR_PROTOCOL: u16 = 1;
const ATTR_SETNAME: u16 = 2;
const ATTR_TYPENAME: u16 = 3;
const ATTR_REVISION: u16 = 4;
const ATTR_FAMILY: u16 = 5;
const ATTR_DATA: u16 = 7;
const ATTR_ADT: u16 = 8;
const ATTR_LINENO: u16 = 9;
const ATTR_REVISION_MIN: u16 = 10;
// Inside data.
const DATA_IP: u16 = 1;
const DATA_PORT: u16 = 4;
const DATA_TIMEOUT: u16 = 6;
const DATA_PROTO: u16 = 7;
const DATA_HASHSIZE: u16 = 18;
const DATA_MAXELEM: u16 = 19;

const ERR_BUSY: i32 = 4100;
const ERR_TYPE_SPECIFIC_HASH_FULL: i32 = 4352;

/// A mirrored set.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Set {
    name: SetName,
    v6: bool,
}

impl Set {
    fn all() -> impl Iterator<Item = Set> {
        let mirrored = SetName::ALL.into_iter().filter(|name| name.ipset_name().is_some());
        mirrored.flat_map(|name| [Set { name, v6: false }, Set { name, v6: true }])
    }

    fn of(element: &SetElement) -> Option<Set> {
        element.set().ipset_name()?;
        Some(Set { name: element.set(), v6: element.is_ipv6() })
    }

    /// At most 31 characters.
    fn ipset(self) -> String {
        let prefix = if self.v6 { "inet6:" } else { "" };
        format!("{prefix}{}", self.name.ipset_name().unwrap_or_default())
    }

    fn type_name(self) -> &'static str {
        if self.name == SetName::ServicePorts { "hash:ip,port" } else { "hash:ip" }
    }

    /// Writes what every request begins with.
    fn put(self, body: &mut Vec<u8>) {
        put_start(body);
        attr::put_str(body, ATTR_SETNAME, &self.ipset());
    }
}

fn put_start(body: &mut Vec<u8>) {
    put_header(body, libc::AF_UNSPEC as u8, 0);
    attr::put_u8(body, ATTR_PROTOCOL, PROTOCOL);
}

/// What the kernel has under a set's name.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Found {
    Nothing,
    Ours,
    /// Type and family as text.
    Other(String),
}

fn look_up(socket: &mut Socket, set: Set) -> Result<Found, NlError> {
    let mut found = Found::Nothing;
    let asked = socket.request(
        message_type(SUBSYS_IPSET, HEADER),
        0,
        |body| set.put(body),
        |_, payload| {
            let field = |kind| nfnetlink::attributes(payload).find(|(k, _)| *k == kind).map(|(_, value)| value);
            let type_name = field(ATTR_TYPENAME).map(attr::text).unwrap_or("");
            let family = field(ATTR_FAMILY).and_then(|value| value.first().copied()).unwrap_or(0);
            found = if type_name == set.type_name() && family == nfnetlink::family(set.v6) {
                Found::Ours
            } else {
                Found::Other(format!("{type_name}, family {family}"))
            };
            Ok(())
        },
    );
    match asked {
        Err(NlError::Refused(refusal)) if refusal.errno == libc::ENOENT => Ok(Found::Nothing),
        other => other.map(|()| found),
    }
}

/// Makes the sets that are missing. The refusal names the set and what is wrong with it.
pub fn ensure(socket: &mut Socket) -> Result<Option<Refusal>, NlError> {
    let mut refused = None;
    for set in Set::all() {
        let refusal = match look_up(socket, set) {
            Ok(Found::Ours) => continue,
            Ok(Found::Other(what)) => {
                Refusal { errno: libc::EEXIST, text: format!("ipset {} exists as {what}", set.ipset()).into() }
            }
            Ok(Found::Nothing) => match create(socket, set)? {
                None => {
                    tracing::info!(ipset = set.ipset(), "ipset created");
                    continue;
                }
                Some(refusal) => explain(set, refusal),
            },
            Err(NlError::Refused(refusal)) => explain(set, refusal),
            Err(error) => return Err(error),
        };
        refused.get_or_insert(refusal);
    }
    Ok(refused)
}

fn create(socket: &mut Socket, set: Set) -> Result<Option<Refusal>, NlError> {
    let mut revision = WANTED_REVISION;
    let asked = socket.request(
        message_type(SUBSYS_IPSET, TYPE),
        0,
        |body| {
            put_start(body);
            attr::put_str(body, ATTR_TYPENAME, set.type_name());
            attr::put_u8(body, ATTR_FAMILY, nfnetlink::family(set.v6));
        },
        |_, payload| {
            let number = |kind| {
                nfnetlink::attributes(payload).find(|(k, _)| *k == kind).and_then(|(_, value)| value.first().copied())
            };
            let highest = number(ATTR_REVISION).unwrap_or(WANTED_REVISION);
            let lowest = number(ATTR_REVISION_MIN).unwrap_or(highest);
            revision = WANTED_REVISION.max(lowest).min(highest);
            Ok(())
        },
    );
    match asked {
        Err(NlError::Refused(refusal)) => return Ok(Some(refusal)),
        other => other?,
    }
    send(socket, CREATE, NLM_F_CREATE, |body| {
        set.put(body);
        attr::put_str(body, ATTR_TYPENAME, set.type_name());
        attr::put_u8(body, ATTR_REVISION, revision);
        attr::put_u8(body, ATTR_FAMILY, nfnetlink::family(set.v6));
        attr::nest(body, ATTR_DATA, |data| {
            put_net32(data, DATA_HASHSIZE, HASH_SIZE);
            put_net32(data, DATA_MAXELEM, MAX_ELEMENTS);
            put_net32(data, DATA_TIMEOUT, 0);
        });
    })
}

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

/// Removes our sets, and nothing but them. The refusal names the sets that stay.
pub fn destroy(socket: &mut Socket) -> Result<Option<Refusal>, NlError> {
    let mut refused: Option<Refusal> = None;
    for set in Set::all() {
        match look_up(socket, set) {
            Ok(Found::Ours) => {}
            // Not there, not of our making, or no ipset at all.
            Ok(_) | Err(NlError::Refused(_)) => continue,
            Err(error) => return Err(error),
        }
        match send(socket, DESTROY, 0, |body| set.put(body))? {
            None => tracing::info!(ipset = set.ipset(), "ipset removed"),
            Some(refusal) => {
                let refusal = explain(set, refusal);
                let text = match &refused {
                    Some(before) => format!("{}; {}", before.text, refusal.text).into(),
                    None => refusal.text,
                };
                refused = Some(Refusal { errno: refusal.errno, text });
            }
        }
    }
    Ok(refused)
}

/// Adds the set's name and, for ipset's own error numbers, the meaning.
fn explain(set: Set, refusal: Refusal) -> Refusal {
    let meaning = match refusal.errno {
        ERR_BUSY => "in use by a rule or another set".to_owned(),
        ERR_TYPE_SPECIFIC_HASH_FULL => format!("full ({MAX_ELEMENTS} entries)"),
        libc::EINVAL | libc::EOPNOTSUPP => "not possible; does this kernel have ipset and the set's type?".to_owned(),
        _ => refusal.text.to_string(),
    };
    Refusal { errno: refusal.errno, text: format!("ipset {}: {meaning}", set.ipset()).into() }
}

fn send(
    socket: &mut Socket,
    command: u8,
    flags: u16,
    body: impl FnOnce(&mut Vec<u8>),
) -> Result<Option<Refusal>, NlError> {
    let mut batch = Batch::new();
    batch.push(message_type(SUBSYS_IPSET, command), flags, body);
    Ok(socket.send_batch(&mut batch)?.into_iter().next().map(|(_, refusal)| refusal))
}

fn put_net32(bytes: &mut Vec<u8>, kind: u16, value: u32) {
    attr::put_be32(bytes, kind | attr::NET_BYTEORDER, value);
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

    #[test]
    fn six_sets_with_names_that_fit() {
        let names: Vec<_> = Set::all().map(Set::ipset).collect();
        assert_eq!(names.len(), 6);
        assert!(names.contains(&"inet6:kube-router-svip-prt".to_owned()));
        assert!(names.iter().all(|name| name.len() <= 31));
    }
}
