//! The few nftables expressions that our rules are made of, as values that can be written, read back and compared.
//!
//! A rule is a list of expressions working on sixteen 32-bit slots ("registers"). Reading back matters as much as
//! writing: `observe` must tell whether our chains hold exactly our rules, and the kernel lists expressions with
//! additions of its own (default flags, the upper end of a one-address range), so bytes cannot be compared.
//! Source: include/uapi/linux/netfilter/nf_tables.h; the kernel's dump functions in net/netfilter/nft_*.c.

use crate::nl::attr;

/// `NFT_META_*`.
pub const META_NFPROTO: u32 = 15;
pub const META_L4PROTO: u32 = 16;
/// `NFT_CT_*`.
pub const CT_DIRECTION: u32 = 1;
pub const CT_STATUS: u32 = 2;
pub const CT_PROTO_DST: u32 = 12;
pub const CT_DST_IP: u32 = 20;
pub const CT_DST_IP6: u32 = 22;
/// `NFT_PAYLOAD_*`.
pub const NETWORK_HEADER: u32 = 1;
pub const TRANSPORT_HEADER: u32 = 2;
/// `NFT_JUMP`, `NF_ACCEPT`.
pub const JUMP: i32 = -3;
pub const ACCEPT: i32 = 1;
/// `NFT_REJECT_TCP_RST`, `NFT_REJECT_ICMPX_UNREACH`, `NFT_REJECT_ICMPX_PORT_UNREACH`.
pub const REJECT_TCP_RESET: u32 = 1;
pub const REJECT_ICMPX: u32 = 2;
pub const ICMPX_PORT_UNREACHABLE: u8 = 1;
/// `NF_NAT_RANGE_MAP_IPS`: the kernel adds it to every rule that names an address.
const NAT_MAP_IPS: u32 = 1;
/// `NF_NAT_RANGE_PROTO_RANDOM_FULLY`.
pub const NAT_FULLY_RANDOM: u32 = 1 << 4;

const LIST_ELEM: u16 = 1; // NFTA_LIST_ELEM
const EXPR_NAME: u16 = 1;
const EXPR_DATA: u16 = 2;
const DATA_VALUE: u16 = 1;
const DATA_VERDICT: u16 = 2;
const VERDICT_CODE: u16 = 1;
const VERDICT_CHAIN: u16 = 2;
const LOOKUP_F_INV: u32 = 1;
const NAT_SNAT: u32 = 0;
const CMP_EQ: u32 = 0;
const CMP_NEQ: u32 = 1;

/// One of the sixteen 32-bit slots; addresses of IPv6 take four in a row.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Slot(pub u8);

impl Slot {
    /// The register number as the kernel lists it: 1..4 for the four 128-bit registers, 8.. for what lies between.
    fn number(self) -> u32 {
        let slot = u32::from(self.0);
        if slot.is_multiple_of(4) { 1 + slot / 4 } else { 8 + slot }
    }

    fn from_number(number: u32) -> Option<Self> {
        match number {
            1..=4 => Some(Slot((number as u8 - 1) * 4)),
            8..=23 => Some(Slot(number as u8 - 8)),
            _ => None,
        }
    }
}

/// One expression.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Expr {
    Meta {
        key: u32,
        to: Slot,
    },
    /// `direction`: 0 = original, for the keys that are read from one of the two tuples.
    Ct {
        key: u32,
        direction: Option<u8>,
        to: Slot,
    },
    Payload {
        base: u32,
        offset: u32,
        length: u32,
        to: Slot,
    },
    /// The slot AND `mask`, in place.
    Mask {
        slot: Slot,
        mask: Vec<u8>,
    },
    Compare {
        slot: Slot,
        equal: bool,
        value: Vec<u8>,
    },
    Lookup {
        slot: Slot,
        set: Box<str>,
        inverted: bool,
    },
    Load {
        to: Slot,
        value: Vec<u8>,
    },
    Verdict {
        code: i32,
        chain: Option<Box<str>>,
    },
    /// `family`: NFPROTO_*. The address lies in the slot.
    Snat {
        family: u32,
        address: Slot,
        flags: u32,
    },
    /// `code`: of the ICMP message, where the kind is one.
    Reject {
        kind: u32,
        code: Option<u8>,
    },
}

impl Expr {
    fn name(&self) -> &'static str {
        match self {
            Expr::Meta { .. } => "meta",
            Expr::Ct { .. } => "ct",
            Expr::Payload { .. } => "payload",
            Expr::Mask { .. } => "bitwise",
            Expr::Compare { .. } => "cmp",
            Expr::Lookup { .. } => "lookup",
            Expr::Load { .. } | Expr::Verdict { .. } => "immediate",
            Expr::Snat { .. } => "nat",
            Expr::Reject { .. } => "reject",
        }
    }

    fn put_data(&self, out: &mut Vec<u8>) {
        match self {
            Expr::Meta { key, to } => {
                attr::put_be32(out, 1, to.number()); // NFTA_META_DREG
                attr::put_be32(out, 2, *key);
            }
            Expr::Ct { key, direction, to } => {
                attr::put_be32(out, 1, to.number()); // NFTA_CT_DREG
                attr::put_be32(out, 2, *key);
                if let Some(direction) = direction {
                    attr::put_u8(out, 3, *direction);
                }
            }
            Expr::Payload { base, offset, length, to } => {
                attr::put_be32(out, 1, to.number()); // NFTA_PAYLOAD_DREG
                attr::put_be32(out, 2, *base);
                attr::put_be32(out, 3, *offset);
                attr::put_be32(out, 4, *length);
            }
            Expr::Mask { slot, mask } => {
                attr::put_be32(out, 1, slot.number()); // NFTA_BITWISE_SREG
                attr::put_be32(out, 2, slot.number());
                attr::put_be32(out, 3, mask.len() as u32);
                attr::nest(out, 4, |data| attr::put(data, DATA_VALUE, mask));
                attr::nest(out, 5, |data| attr::put(data, DATA_VALUE, &vec![0; mask.len()]));
            }
            Expr::Compare { slot, equal, value } => {
                attr::put_be32(out, 1, slot.number()); // NFTA_CMP_SREG
                attr::put_be32(out, 2, if *equal { CMP_EQ } else { CMP_NEQ });
                attr::nest(out, 3, |data| attr::put(data, DATA_VALUE, value));
            }
            Expr::Lookup { slot, set, inverted } => {
                attr::put_str(out, 1, set); // NFTA_LOOKUP_SET
                attr::put_be32(out, 2, slot.number());
                if *inverted {
                    attr::put_be32(out, 5, LOOKUP_F_INV);
                }
            }
            Expr::Load { to, value } => {
                attr::put_be32(out, 1, to.number()); // NFTA_IMMEDIATE_DREG
                attr::nest(out, 2, |data| attr::put(data, DATA_VALUE, value));
            }
            Expr::Verdict { code, chain } => {
                attr::put_be32(out, 1, 0); // NFT_REG_VERDICT
                attr::nest(out, 2, |data| {
                    attr::nest(data, DATA_VERDICT, |verdict| {
                        attr::put_be32(verdict, VERDICT_CODE, *code as u32);
                        if let Some(chain) = chain {
                            attr::put_str(verdict, VERDICT_CHAIN, chain);
                        }
                    })
                });
            }
            Expr::Snat { family, address, flags } => {
                attr::put_be32(out, 1, NAT_SNAT); // NFTA_NAT_TYPE
                attr::put_be32(out, 2, *family);
                attr::put_be32(out, 3, address.number());
                if *flags != 0 {
                    attr::put_be32(out, 7, *flags);
                }
            }
            Expr::Reject { kind, code } => {
                attr::put_be32(out, 1, *kind); // NFTA_REJECT_TYPE
                if let Some(code) = code {
                    attr::put_u8(out, 2, *code);
                }
            }
        }
    }

    /// `None`: an expression, or a form of one, that we never write.
    fn parse(name: &str, data: &[u8]) -> Option<Expr> {
        let field = |kind| attr::attributes(data).find(|(k, _)| *k == kind).map(|(_, value)| value);
        let number = |kind| field(kind).and_then(attr::be32);
        let slot = |kind| number(kind).and_then(Slot::from_number);
        let value = |kind| Some(find(field(kind)?, DATA_VALUE)?.to_vec());
        match name {
            "meta" => Some(Expr::Meta { key: number(2)?, to: slot(1)? }),
            "ct" => {
                let direction = field(3).and_then(|value| value.first().copied());
                Some(Expr::Ct { key: number(2)?, direction, to: slot(1)? })
            }
            "payload" => Some(Expr::Payload { base: number(2)?, offset: number(3)?, length: number(4)?, to: slot(1)? }),
            "bitwise" => {
                let plain = number(6).unwrap_or(0) == 0 && value(5)?.iter().all(|byte| *byte == 0);
                (plain && number(1) == number(2)).then_some(Expr::Mask { slot: slot(1)?, mask: value(4)? })
            }
            "cmp" => match number(2)? {
                op @ (CMP_EQ | CMP_NEQ) => {
                    Some(Expr::Compare { slot: slot(1)?, equal: op == CMP_EQ, value: value(3)? })
                }
                _ => None,
            },
            "lookup" => {
                let inverted = number(5).unwrap_or(0) & LOOKUP_F_INV != 0;
                Some(Expr::Lookup { slot: slot(2)?, set: attr::text(field(1)?).into(), inverted })
            }
            "immediate" if number(1)? == 0 => {
                let verdict = find(field(2)?, DATA_VERDICT)?;
                let chain = find(verdict, VERDICT_CHAIN).map(|chain| attr::text(chain).into());
                Some(Expr::Verdict { code: attr::be32(find(verdict, VERDICT_CODE)?)? as i32, chain })
            }
            "immediate" => Some(Expr::Load { to: slot(1)?, value: value(2)? }),
            "nat" => {
                let one_address = field(4).is_none() || number(4) == number(3);
                let plain = one_address && field(5).is_none() && number(1)? == NAT_SNAT;
                let flags = number(7).unwrap_or(0) & !NAT_MAP_IPS;
                plain.then_some(Expr::Snat { family: number(2)?, address: slot(3)?, flags })
            }
            "reject" => {
                Some(Expr::Reject { kind: number(1)?, code: field(2).and_then(|value| value.first().copied()) })
            }
            _ => None,
        }
    }
}

/// Writes the content of NFTA_RULE_EXPRESSIONS.
pub fn put_all(out: &mut Vec<u8>, expressions: &[Expr]) {
    for expression in expressions {
        attr::nest(out, LIST_ELEM, |element| {
            attr::put_str(element, EXPR_NAME, expression.name());
            attr::nest(element, EXPR_DATA, |data| expression.put_data(data));
        });
    }
}

/// Reads the content of NFTA_RULE_EXPRESSIONS. `None`: something that no rule of ours contains.
pub fn parse_all(bytes: &[u8]) -> Option<Vec<Expr>> {
    attr::attributes(bytes)
        .map(|(_, element)| Expr::parse(attr::text(find(element, EXPR_NAME)?), find(element, EXPR_DATA)?))
        .collect()
}

fn find(bytes: &[u8], kind: u16) -> Option<&[u8]> {
    attr::attributes(bytes).find(|(k, _)| *k == kind).map(|(_, value)| value)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn one_of_each() -> Vec<Expr> {
        vec![
            Expr::Meta { key: META_NFPROTO, to: Slot(0) },
            Expr::Ct { key: CT_STATUS, direction: None, to: Slot(4) },
            Expr::Ct { key: CT_PROTO_DST, direction: Some(0), to: Slot(13) },
            Expr::Payload { base: NETWORK_HEADER, offset: 16, length: 4, to: Slot(1) },
            Expr::Mask { slot: Slot(0), mask: vec![0x20, 0, 0, 0] },
            Expr::Compare { slot: Slot(0), equal: false, value: vec![2] },
            Expr::Lookup { slot: Slot(0), set: "svip4".into(), inverted: true },
            Expr::Load { to: Slot(0), value: vec![1, 2, 3, 4] },
            Expr::Verdict { code: JUMP, chain: Some("services4".into()) },
            Expr::Verdict { code: ACCEPT, chain: None },
            Expr::Snat { family: 2, address: Slot(0), flags: NAT_FULLY_RANDOM },
            Expr::Reject { kind: REJECT_ICMPX, code: Some(ICMPX_PORT_UNREACHABLE) },
            Expr::Reject { kind: REJECT_TCP_RESET, code: None },
        ]
    }

    #[test]
    fn what_is_written_reads_back() {
        let mut bytes = Vec::new();
        put_all(&mut bytes, &one_of_each());
        assert_eq!(parse_all(&bytes), Some(one_of_each()));
    }

    #[test]
    fn registers_are_numbered_as_the_kernel_lists_them() {
        assert_eq!([0, 1, 3, 4, 12, 13].map(|slot| Slot(slot).number()), [1, 9, 11, 2, 4, 21]);
        for slot in 0..16 {
            assert_eq!(Slot::from_number(Slot(slot).number()), Some(Slot(slot)));
        }
        assert_eq!(Slot::from_number(0), None);
        assert_eq!(Slot::from_number(24), None);
    }

    #[test]
    fn an_expression_of_somebody_else_is_not_ours() {
        let mut bytes = Vec::new();
        attr::nest(&mut bytes, LIST_ELEM, |element| {
            attr::put_str(element, EXPR_NAME, "counter");
            attr::nest(element, EXPR_DATA, |_| {});
        });
        assert_eq!(parse_all(&bytes), None);
    }

    #[test]
    fn the_kernels_additions_do_not_count_as_changes() {
        let mut data = Vec::new();
        attr::put_be32(&mut data, 1, NAT_SNAT);
        attr::put_be32(&mut data, 2, 2);
        attr::put_be32(&mut data, 3, 1);
        attr::put_be32(&mut data, 4, 1);
        attr::put_be32(&mut data, 7, NAT_MAP_IPS);
        assert_eq!(Expr::parse("nat", &data), Some(Expr::Snat { family: 2, address: Slot(0), flags: 0 }));
    }
}
