//! nf_tables messages that read our table: its shape, its rules, its sets' elements, each in one dump.
//!
//! What is not there reads as empty. The dumps are not one snapshot together: what changes between two of them is seen
//! by the next observation.

use std::collections::{BTreeMap, BTreeSet};

use super::{
    expr,
    nfnetlink::{self, SUBSYS_NFTABLES, message_type, put_header},
    nft::{INET, INTERVAL_END, POLICY_ACCEPT, TABLE},
    recognise::ListedRule,
    rules::{CHAINS, Hook},
    sets::{self, ElementKey, Layout},
};
use crate::{
    desired::SetElement,
    nl::{NlError, Socket, attr},
};

const GETTABLE: u8 = 1;
const GETCHAIN: u8 = 4;
const GETRULE: u8 = 7;
const GETSET: u8 = 10;
const GETSETELEM: u8 = 13;

/// How our table stands, apart from rules and elements.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shape {
    /// No table.
    Absent,
    /// What is there is right, but a set or a chain is missing.
    Incomplete,
    /// Table, all sets and all chains are as we make them.
    Whole,
    /// Something under one of our names is different from what we make: it cannot be changed in place.
    Foreign,
}

/// Reads what exists of our table.
pub struct Reader<'a> {
    pub socket: &'a mut Socket,
}

impl Reader<'_> {
    pub fn shape(&mut self) -> Result<Shape, NlError> {
        let Some(dormant) = self.table()? else { return Ok(Shape::Absent) };
        let (sets, chains) = (self.sets()?, self.chains()?);
        let mut missing = false;
        let mut foreign = dormant;
        for (name, v6) in sets::all() {
            match sets.get(sets::nft_name(name, v6)) {
                None => missing = true,
                Some(layout) => foreign |= *layout != sets::layout(name, v6),
            }
        }
        for chain in &CHAINS {
            match chains.get(chain.name) {
                None => missing = true,
                Some(found) => foreign |= *found != chain.hook.as_ref().map(|hook| (hook.clone(), POLICY_ACCEPT)),
            }
        }
        Ok(match (foreign, missing) {
            (true, _) => Shape::Foreign,
            (false, true) => Shape::Incomplete,
            (false, false) => Shape::Whole,
        })
    }

    /// Whether our table is switched off (dormant or owned by a process); `None`: there is none.
    fn table(&mut self) -> Result<Option<bool>, NlError> {
        let mut flags = None;
        let asked = self.socket.request(
            message_type(SUBSYS_NFTABLES, GETTABLE),
            0,
            |body| {
                put_header(body, INET, 0);
                attr::put_str(body, 1, TABLE);
            },
            |_, payload| {
                flags = field(payload, 2).and_then(attr::be32);
                Ok(())
            },
        );
        match asked {
            Err(NlError::Refused(refusal)) if refusal.errno == libc::ENOENT => Ok(None),
            other => other.map(|()| Some(flags.unwrap_or(0) != 0)),
        }
    }

    fn sets(&mut self) -> Result<BTreeMap<String, Layout>, NlError> {
        self.dump(GETSET, Some(1), None, |sets: &mut BTreeMap<_, _>, payload| {
            let number = |kind| field(payload, kind).and_then(attr::be32);
            let layout = Layout {
                key_type: number(4).unwrap_or(0),
                key_length: number(5).unwrap_or(0),
                flags: number(3).unwrap_or(0),
            };
            sets.insert(name(payload, 2), layout);
        })
    }

    /// Chains of our table; base chains with their policy.
    fn chains(&mut self) -> Result<BTreeMap<String, Option<(Hook, u32)>>, NlError> {
        self.dump(GETCHAIN, None, None, |chains: &mut BTreeMap<_, _>, payload| {
            if name(payload, 1) != TABLE {
                return;
            }
            let hook = field(payload, 4).map(|nested| {
                let number = |kind| attr::attributes(nested).find(|(k, _)| *k == kind).and_then(|(_, v)| attr::be32(v));
                let kind = field(payload, 7).map(attr::text).unwrap_or("");
                let kind = ["filter", "nat"].into_iter().find(|known| *known == kind).unwrap_or("");
                let hook =
                    Hook { kind, number: number(1).unwrap_or(u32::MAX), priority: number(2).unwrap_or(0) as i32 };
                (hook, field(payload, 5).and_then(attr::be32).unwrap_or(POLICY_ACCEPT))
            });
            chains.insert(name(payload, 3), hook);
        })
    }

    /// All rules of our table, in order within each chain.
    pub fn rules(&mut self) -> Result<Vec<ListedRule>, NlError> {
        self.dump(GETRULE, Some(1), None, |rules: &mut Vec<_>, payload| {
            if name(payload, 1) == TABLE {
                rules.push(ListedRule {
                    chain: name(payload, 2),
                    comment: field(payload, 7).map(read_comment).unwrap_or("").to_owned(),
                    expressions: field(payload, 4).and_then(expr::parse_all),
                });
            }
        })
    }

    /// Every element that one of our sets holds; sets that are missing or not as we make them are passed over.
    pub fn elements(&mut self) -> Result<BTreeSet<SetElement>, NlError> {
        let present = self.sets()?;
        let mut all = BTreeSet::new();
        for (name, v6) in sets::all() {
            if present.get(sets::nft_name(name, v6)) != Some(&sets::layout(name, v6)) {
                continue;
            }
            let keys: Vec<ElementKey> =
                self.dump(GETSETELEM, Some(1), Some(sets::nft_name(name, v6)), |keys: &mut Vec<_>, payload| {
                    let list = field(payload, 3).unwrap_or(&[]);
                    keys.extend(attr::attributes(list).filter_map(|(_, element)| read_key(element)));
                })?;
            all.append(&mut sets::elements(name, v6, keys));
        }
        Ok(all)
    }

    /// Dumps objects of family inet: of our table if the table's attribute is given, and of one set.
    fn dump<T: Default>(
        &mut self,
        command: u8,
        table_attribute: Option<u16>,
        set: Option<&str>,
        mut each: impl FnMut(&mut T, &[u8]),
    ) -> Result<T, NlError> {
        let body = |bytes: &mut Vec<u8>| {
            put_header(bytes, INET, 0);
            if let Some(kind) = table_attribute {
                attr::put_str(bytes, kind, TABLE);
            }
            if let Some(set) = set {
                attr::put_str(bytes, 2, set);
            }
        };
        let asked = self.socket.dump(message_type(SUBSYS_NFTABLES, command), 0, body, |result, _, payload| {
            each(result, payload);
            Ok(())
        });
        match asked {
            // Gone between two questions.
            Err(NlError::Refused(refusal)) if refusal.errno == libc::ENOENT => Ok(T::default()),
            other => other,
        }
    }
}

fn read_key(element: &[u8]) -> Option<ElementKey> {
    let field = |kind| attr::attributes(element).find(|(k, _)| *k == kind).map(|(_, value)| value);
    let (_, value) = attr::attributes(field(1)?).next()?;
    let end = field(3).and_then(attr::be32).unwrap_or(0) & INTERVAL_END != 0;
    Some(ElementKey { bytes: value.to_vec(), end })
}

fn field(payload: &[u8], kind: u16) -> Option<&[u8]> {
    nfnetlink::attributes(payload).find(|(k, _)| *k == kind).map(|(_, value)| value)
}

fn name(payload: &[u8], kind: u16) -> String {
    field(payload, kind).map(attr::text).unwrap_or("").to_owned()
}

fn read_comment(userdata: &[u8]) -> &str {
    match userdata {
        [0, length, rest @ ..] => rest.get(..usize::from(*length)).map(attr::text).unwrap_or(""),
        _ => "",
    }
}

#[cfg(test)]
mod tests {
    use super::{super::nft::comment, *};

    #[test]
    fn comments_read_back_and_garbage_does_not() {
        assert_eq!(read_comment(&comment("kube-router v1 #1/1")), "kube-router v1 #1/1");
        assert_eq!(read_comment(&[]), "");
        assert_eq!(read_comment(&[0, 200, b'x']), "");
        assert_eq!(read_comment(&[1, 2, b'x', 0]), "");
    }
}
