//! A second reader of headers, for tests: front to back over a slice, from the texts of RFC 791, 792, 768, 9293, 9260, 8200,
//! 4302 and 4443 and the table of refusals in docs/packets.md. It shares names with `packet.rs`, and no line of it.

use std::vec::Vec;

use crate::{packet::Piece, policy::Address, reason::Reason};

/// What a well-formed packet says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Facts {
    pub source: Address,
    pub destination: Address,
    pub hop_limit: u8,
    pub protocol: u8,
    pub piece: Piece,
    /// Of fragments; of IPv4, whatever stands there.
    pub id: u32,
    /// Zero where there are none; the identifier of an ICMP echo, twice.
    pub ports: (u16, u16),
    pub tcp_flags: u8,
    pub icmp: (u8, u8),
}

/// The rest of a packet; whoever takes more than there is finds it truncated.
struct Rest<'a>(&'a [u8]);

impl<'a> Rest<'a> {
    fn take(&mut self, count: usize) -> Result<&'a [u8], Reason> {
        let (taken, rest) = self.0.split_at_checked(count).ok_or(Reason::Truncated)?;
        self.0 = rest;
        Ok(taken)
    }
}

fn number(bytes: &[u8]) -> u32 {
    bytes.iter().fold(0, |number, byte| number << 8 | u32::from(*byte))
}

/// `bytes` begin with the network header; `v4` is what the link layer says.
pub fn read(bytes: &[u8], v4: bool) -> Result<Facts, Reason> {
    if v4 { ipv4(bytes) } else { ipv6(bytes) }
}

/// The part of the bytes that is the packet: `stated` in all. Zero stands for more than 65,535.
fn part(bytes: &[u8], stated: usize) -> Result<&[u8], Reason> {
    match (stated, bytes.len()) {
        (0, 65_536..) => Ok(bytes),
        (0, _) => Err(Reason::Malformed),
        (stated, _) => bytes.get(..stated).ok_or(Reason::Truncated),
    }
}

fn ipv4(bytes: &[u8]) -> Result<Facts, Reason> {
    let fixed = Rest(bytes).take(20)?;
    let words = usize::from(fixed[0] % 16);
    if fixed[0] / 16 != 4 || words < 5 {
        return Err(Reason::Malformed);
    }
    let packet = part(bytes, number(&fixed[2..4]) as usize)?;
    let payload = packet.get(words * 4..).ok_or(Reason::Malformed)?;
    if words > 5 {
        return Err(Reason::IpOptions);
    }
    let address = |at: usize| {
        let mut mapped = [[0; 10].as_slice(), &[0xff; 2]].concat();
        mapped.extend_from_slice(&fixed[at..at + 4]);
        Address(mapped.try_into().unwrap_or_default())
    };
    let place = number(&fixed[6..8]);
    let (more, offset) = (place & 0x2000 != 0, place % 0x2000);
    let mut facts = Facts {
        source: address(12),
        destination: address(16),
        hop_limit: fixed[8],
        protocol: fixed[9],
        piece: piece(offset, more),
        id: number(&fixed[4..6]),
        ports: (0, 0),
        tcp_flags: 0,
        icmp: (0, 0),
    };
    if offset == 1 && facts.protocol == 6 {
        return Err(Reason::Fragment);
    }
    transport(payload, &mut facts)?;
    Ok(facts)
}

fn piece(offset: u32, more: bool) -> Piece {
    if offset > 0 {
        Piece::Later
    } else if more {
        Piece::First
    } else {
        Piece::Whole
    }
}

fn ipv6(bytes: &[u8]) -> Result<Facts, Reason> {
    let fixed = Rest(bytes).take(40)?;
    if fixed[0] / 16 != 6 {
        return Err(Reason::Malformed);
    }
    let address = |at: usize| Address(fixed[at..at + 16].try_into().unwrap_or_default());
    let mapped: Vec<u8> = [[0_u8; 10].as_slice(), &[0xff; 2]].concat();
    if fixed[8..20] == mapped[..] || fixed[24..36] == mapped[..] {
        return Err(Reason::Mapped);
    }
    // RFC 2675: a jumbo payload says 0, and begins with hop-by-hop options.
    let stated = match (number(&fixed[4..6]) as usize, fixed[6]) {
        (0, 0) => 0,
        (payload, _) => 40 + payload,
    };
    let packet = part(bytes, stated)?;
    let mut facts = Facts {
        source: address(8),
        destination: address(24),
        hop_limit: fixed[7],
        protocol: fixed[6],
        piece: Piece::Whole,
        id: 0,
        ports: (0, 0),
        tcp_flags: 0,
        icmp: (0, 0),
    };
    chain(Rest(&packet[40..]), 0, &mut facts)?;
    Ok(facts)
}

/// Header after header: `facts.protocol` says what comes, `behind` how many came.
fn chain(mut rest: Rest<'_>, behind: u32, facts: &mut Facts) -> Result<(), Reason> {
    let kind = facts.protocol;
    if ![0, 43, 44, 51, 60].contains(&kind) {
        return transport(rest.0, facts);
    }
    if behind == 6 {
        return Err(Reason::Extensions);
    }
    let h = rest.take(8)?;
    facts.protocol = h[0];
    let more = match kind {
        44 => 0,
        51 => (usize::from(h[1]) + 2) * 4 - 8,
        _ => usize::from(h[1]) * 8,
    };
    match kind {
        43 if h[3] > 0 => return Err(Reason::Extensions),
        44 if facts.piece != Piece::Whole => return Err(Reason::Extensions),
        44 => {
            let place = number(&h[2..4]);
            let offset = place / 8;
            if offset == 1 && h[0] == 6 {
                return Err(Reason::Fragment);
            }
            facts.piece = piece(offset, place % 2 == 1);
            facts.id = number(&h[4..8]);
            let extends = [0, 43, 44, 51, 60].contains(&h[0]);
            if facts.piece == Piece::First && extends {
                return Err(Reason::Extensions);
            }
        }
        _ => {}
    }
    if facts.piece == Piece::Later {
        return Ok(());
    }
    // A header that says it is longer than the packet is found out by what should follow, if there are too many of them first.
    if more > rest.0.len() {
        let extends = [0, 43, 44, 51, 60].contains(&facts.protocol);
        return Err(if extends && behind == 5 { Reason::Extensions } else { Reason::Truncated });
    }
    rest.take(more)?;
    chain(rest, behind + 1, facts)
}

fn transport(payload: &[u8], facts: &mut Facts) -> Result<(), Reason> {
    if facts.piece == Piece::Later {
        return Ok(());
    }
    let mut rest = Rest(payload);
    match facts.protocol {
        6 => {
            // Of a first fragment, up to the flags.
            let h = rest.take(if facts.piece == Piece::First { 14 } else { 20 })?;
            facts.ports = (number(&h[..2]) as u16, number(&h[2..4]) as u16);
            facts.tcp_flags = h[13];
        }
        17 => {
            let h = rest.take(8)?;
            facts.ports = (number(&h[..2]) as u16, number(&h[2..4]) as u16);
        }
        132 => {
            let h = rest.take(12)?;
            facts.ports = (number(&h[..2]) as u16, number(&h[2..4]) as u16);
        }
        1 | 58 => {
            let h = rest.take(8)?;
            facts.icmp = (h[0], h[1]);
            if facts.protocol == 1 && (h[0] == 0 || h[0] == 8) {
                facts.ports = (number(&h[4..6]) as u16, number(&h[4..6]) as u16);
            }
        }
        _ => {}
    }
    Ok(())
}
