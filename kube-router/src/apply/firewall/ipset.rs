//! The mirrored ipsets: a copy of three of our sets for people and for tools that look there. Nothing decides by them.
//!
//! ipset is subsystem 6 of nfnetlink. Sets have `timeout 0` (entries are permanent, but may be given a time), as the
//! original's. `ipset_entries` fills them. Source: include/uapi/linux/netfilter/ipset/ip_set.h,
//! net/netfilter/ipset/ip_set_core.c.

use super::nfnetlink::{self, SUBSYS_IPSET, message_type, put_header};
use crate::{
    desired::{SetElement, SetName},
    nl::{Batch, NLM_F_CREATE, NlError, Refusal, Socket, attr},
};

/// Entries that one set can hold; the original's. Every service port of the cluster needs one: 10,000 services of six
/// ports fit. What goes beyond is refused entry by entry, and reported; the nftables sets that decide have no limit.
const MAX_ELEMENTS: u32 = 65536;
const HASH_SIZE: u32 = 1024;
/// The type revision in which hash:ip,port knows SCTP. Newer ones add nothing that we use, and an older `ipset` command
/// refuses to show sets of a revision that it does not know.
const WANTED_REVISION: u8 = 1;
/// `IPSET_PROTOCOL_MIN`: spoken by every kernel that we meet (7 exists since 4.20 and differs elsewhere).
const PROTOCOL: u8 = 6;

const CREATE: u8 = 2;
const DESTROY: u8 = 3;
const HEADER: u8 = 12;
const TYPE: u8 = 13;

// IPSET_ATTR_*, at command level.
const ATTR_PROTOCOL: u16 = 1;
const ATTR_SETNAME: u16 = 2;
const ATTR_TYPENAME: u16 = 3;
const ATTR_REVISION: u16 = 4;
const ATTR_FAMILY: u16 = 5;
pub(super) const ATTR_DATA: u16 = 7;
const ATTR_REVISION_MIN: u16 = 10;
// IPSET_ATTR_*, inside data.
pub(super) const DATA_TIMEOUT: u16 = 6;
const DATA_HASHSIZE: u16 = 18;
const DATA_MAXELEM: u16 = 19;

const ERR_BUSY: i32 = 4100;
const ERR_TYPE_SPECIFIC_HASH_FULL: i32 = 4352;

/// A mirrored set.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Set {
    pub name: SetName,
    pub v6: bool,
}

impl Set {
    pub fn all() -> impl Iterator<Item = Set> {
        let mirrored = SetName::ALL.into_iter().filter(|name| name.ipset_name().is_some());
        mirrored.flat_map(|name| [Set { name, v6: false }, Set { name, v6: true }])
    }

    pub fn of(element: &SetElement) -> Option<Set> {
        element.set().ipset_name()?;
        Some(Set { name: element.set(), v6: element.is_ipv6() })
    }

    /// At most 31 characters.
    pub fn ipset(self) -> String {
        let prefix = if self.v6 { "inet6:" } else { "" };
        format!("{prefix}{}", self.name.ipset_name().unwrap_or_default())
    }

    fn type_name(self) -> &'static str {
        if self.name == SetName::ServicePorts { "hash:ip,port" } else { "hash:ip" }
    }

    /// Writes what every request begins with.
    pub fn put(self, body: &mut Vec<u8>) {
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
pub(super) enum Found {
    Nothing,
    Ours,
    /// Type and family as text.
    Other(String),
}

pub(super) fn look_up(socket: &mut Socket, set: Set) -> Result<Found, NlError> {
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
pub(super) fn explain(set: Set, refusal: Refusal) -> Refusal {
    let meaning = match refusal.errno {
        ERR_BUSY => "in use by a rule or another set".to_owned(),
        ERR_TYPE_SPECIFIC_HASH_FULL => format!("full ({MAX_ELEMENTS} entries)"),
        libc::EINVAL | libc::EOPNOTSUPP => "not possible; does this kernel have ipset and the set's type?".to_owned(),
        _ => refusal.text.to_string(),
    };
    Refusal { errno: refusal.errno, text: format!("ipset {}: {meaning}", set.ipset()).into() }
}

pub(super) fn send(
    socket: &mut Socket,
    command: u8,
    flags: u16,
    body: impl FnOnce(&mut Vec<u8>),
) -> Result<Option<Refusal>, NlError> {
    let mut batch = Batch::new();
    batch.push(message_type(SUBSYS_IPSET, command), flags, body);
    Ok(socket.send_batch(&mut batch)?.into_iter().next().map(|(_, refusal)| refusal))
}

pub(super) fn put_net32(bytes: &mut Vec<u8>, kind: u16, value: u32) {
    attr::put_be32(bytes, kind | attr::NET_BYTEORDER, value);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn six_sets_with_names_that_fit() {
        let names: Vec<_> = Set::all().map(Set::ipset).collect();
        assert_eq!(names.len(), 6);
        assert!(names.contains(&"inet6:kube-router-svip-prt".to_owned()));
        assert!(names.iter().all(|name| name.len() <= 31));
    }
}
