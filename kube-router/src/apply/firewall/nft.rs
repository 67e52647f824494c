//! nf_tables messages that write our table (`nft_read` has those that read it).
//!
//! One transaction is one `sendmsg`: a begin, the messages, an end. The kernel carries out all or nothing, and names
//! every message that it refused. Everything lives in the one table `inet kube-router`, so that tables of others next
//! to it are never touched. Source: include/uapi/linux/netfilter/nf_tables.h, net/netfilter/nf_tables_api.c.

use super::{
    expr,
    nfnetlink::{self, SUBSYS_NFTABLES, message_type, put_header},
    rules::{Chain, Rule},
    sets::{self, ElementKey},
};
use crate::{
    desired::SetName,
    nl::{Batch, NLM_F_CREATE, NlError, Refusal, Socket, attr},
};

/// Name of our table, in family inet.
pub const TABLE: &str = "kube-router";
/// What people read above our rules.
const TABLE_COMMENT: &str = "written by kube-router: changes made by hand are undone";
pub(super) const INET: u8 = 1; // NFPROTO_INET

const NEWTABLE: u8 = 0;
const DELTABLE: u8 = 2;
const NEWCHAIN: u8 = 3;
const NEWRULE: u8 = 6;
const DELRULE: u8 = 8;
const NEWSET: u8 = 9;
const NEWSETELEM: u8 = 12;
const DELSETELEM: u8 = 14;
const NLM_F_APPEND: u16 = 0x800;

pub(super) const POLICY_ACCEPT: u32 = 1; // NF_ACCEPT
const LIST_ELEM: u16 = 1;
pub(super) const INTERVAL_END: u32 = 1; // NFT_SET_ELEM_INTERVAL_END
/// Bytes of one element's attributes without its key: list element, key, value, flags.
const ELEMENT_OVERHEAD: usize = 20;

/// Messages to be carried out together or not at all.
pub struct Transaction {
    batch: Batch,
    bytes: usize,
}

impl Transaction {
    pub fn new() -> Self {
        let mut transaction = Transaction { batch: Batch::new(), bytes: 0 };
        transaction.frame(nfnetlink::BATCH_BEGIN);
        transaction
    }

    /// Messages so far.
    pub fn len(&self) -> usize {
        self.batch.len() - 1
    }

    /// Size on the wire so far.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// Carries the messages out. Returns the refused ones by their order; if there are any, nothing was done.
    pub fn send(mut self, socket: &mut Socket) -> Result<Vec<(usize, Refusal)>, NlError> {
        self.frame(nfnetlink::BATCH_END);
        let last = self.batch.len() - 1;
        let mut refused = Vec::new();
        for (index, refusal) in socket.send_whole(&mut self.batch)? {
            if index == 0 || index == last {
                return Err(NlError::Refused(refusal));
            }
            refused.push((index - 1, refusal));
        }
        Ok(refused)
    }

    fn frame(&mut self, kind: u16) {
        self.batch.push(kind, 0, |body| put_header(body, libc::AF_UNSPEC as u8, SUBSYS_NFTABLES.into()));
    }

    fn push(&mut self, command: u8, flags: u16, body: impl FnOnce(&mut Vec<u8>)) {
        let mut length = 0;
        self.batch.push(message_type(SUBSYS_NFTABLES, command), flags, |bytes| {
            let start = bytes.len();
            put_header(bytes, INET, 0);
            body(bytes);
            length = bytes.len() - start;
        });
        self.bytes += 16 + attr::align(length);
    }

    /// Makes our table if it is missing.
    pub fn add_table(&mut self) {
        self.push(NEWTABLE, NLM_F_CREATE, |body| {
            attr::put_str(body, 1, TABLE); // NFTA_TABLE_NAME
            attr::put_be32(body, 2, 0);
            attr::put(body, 6, &comment(TABLE_COMMENT)); // NFTA_TABLE_USERDATA
        });
    }

    /// Removes our table with all that is in it.
    pub fn delete_table(&mut self) {
        self.push(DELTABLE, 0, |body| attr::put_str(body, 1, TABLE));
    }

    /// Makes a set if it is missing. `id` distinguishes the sets made in one transaction.
    pub fn add_set(&mut self, name: SetName, v6: bool, id: u32) {
        let layout = sets::layout(name, v6);
        self.push(NEWSET, NLM_F_CREATE, |body| {
            attr::put_str(body, 1, TABLE); // NFTA_SET_TABLE
            attr::put_str(body, 2, sets::nft_name(name, v6));
            attr::put_be32(body, 3, layout.flags);
            attr::put_be32(body, 4, layout.key_type);
            attr::put_be32(body, 5, layout.key_length);
            attr::put_be32(body, 10, id); // NFTA_SET_ID
        });
    }

    /// Makes a chain if it is missing.
    pub fn add_chain(&mut self, chain: &Chain) {
        self.push(NEWCHAIN, NLM_F_CREATE, |body| {
            attr::put_str(body, 1, TABLE); // NFTA_CHAIN_TABLE
            attr::put_str(body, 3, chain.name);
            if let Some(hook) = &chain.hook {
                attr::nest(body, 4, |nested| {
                    attr::put_be32(nested, 1, hook.number);
                    attr::put_be32(nested, 2, hook.priority as u32);
                });
                attr::put_be32(body, 5, POLICY_ACCEPT);
                attr::put_str(body, 7, hook.kind);
            }
        });
    }

    /// Removes all rules of a chain.
    pub fn flush_chain(&mut self, chain: &Chain) {
        self.push(DELRULE, 0, |body| {
            attr::put_str(body, 1, TABLE); // NFTA_RULE_TABLE
            attr::put_str(body, 2, chain.name);
        });
    }

    /// Appends a rule.
    pub fn add_rule(&mut self, rule: &Rule) {
        self.push(NEWRULE, NLM_F_CREATE | NLM_F_APPEND, |body| {
            attr::put_str(body, 1, TABLE); // NFTA_RULE_TABLE
            attr::put_str(body, 2, rule.chain);
            attr::nest(body, 4, |list| expr::put_all(list, &rule.expressions));
            attr::put(body, 7, &comment(&rule.comment)); // NFTA_RULE_USERDATA
        });
    }

    /// Adds or removes keys of one set. Adding what is there is accepted, removing what is not there refuses it all.
    pub fn elements(&mut self, add: bool, name: SetName, v6: bool, keys: &[ElementKey]) {
        let (command, flags) = if add { (NEWSETELEM, NLM_F_CREATE) } else { (DELSETELEM, 0) };
        self.push(command, flags, |body| {
            attr::put_str(body, 1, TABLE); // NFTA_SET_ELEM_LIST_TABLE
            attr::put_str(body, 2, sets::nft_name(name, v6));
            attr::nest(body, 3, |list| {
                for key in keys {
                    attr::nest(list, LIST_ELEM, |element| {
                        attr::nest(element, 1, |data| attr::put(data, 1, &key.bytes)); // KEY { VALUE }
                        if key.end {
                            attr::put_be32(element, 3, INTERVAL_END);
                        }
                    });
                }
            });
        });
    }
}

/// Upper bound of what `keys` cost in one [`Transaction::elements`] message.
pub fn wire_length(keys: &[ElementKey]) -> usize {
    keys.iter().map(|key| ELEMENT_OVERHEAD + key.bytes.len()).sum()
}

/// A comment as nft keeps it: type 0, length, text with its terminating zero. The text has fewer than 128 bytes.
pub(super) fn comment(text: &str) -> Vec<u8> {
    let mut bytes = vec![0, (text.len() + 1) as u8];
    bytes.extend_from_slice(text.as_bytes());
    bytes.push(0);
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::desired::SetElement;

    #[test]
    fn the_wire_length_of_elements_is_bounded() {
        assert!(TABLE_COMMENT.len() < 128);
        let element = SetElement::PodCidr("fd00::/64".parse().unwrap());
        let keys = sets::keys(&element).unwrap();
        let (mut empty, mut full) = (Transaction::new(), Transaction::new());
        empty.elements(true, SetName::PodCidrs, true, &[]);
        full.elements(true, SetName::PodCidrs, true, &keys);
        assert!(full.bytes() - empty.bytes() <= wire_length(&keys));
    }
}
