//! The answer to a refused packet: ICMP port unreachable, as the original's REJECT rules send it, for TCP too.
//!
//! In: the packet. Out: the bytes of the answer, from the link-layer header on, addressed back to the sender as if the
//! packet's destination had sent it.
//!
//! A packet of a local socket often carries no checksum yet (CHECKSUM_PARTIAL): the field holds the sum of the pseudo
//! header, and somebody fills it in when the packet leaves the machine, at a place that the kernel remembers and a
//! program can neither read nor clear. The answer quotes the packet, and so that place lies within the answer. Therefore
//! the quote goes beyond the checksum field, and the sum of the whole answer is made to be right after the filling:
//! whatever stands in the quote, filling it makes its sum the complement of the pseudo header's.

use core::hint::black_box;

use crate::{
    packet::{Bytes, Ends, Piece, Transport, icmp, protocol},
    policy::Address,
};

const LINK: usize = 14;
/// Longest answer: link-layer, IPv6 and ICMPv6 headers, quoted IPv6 and TCP headers; and room up to a multiple of 8.
pub const LONGEST: usize = LINK + 40 + 8 + 40 + 20 + 6;

/// Room for an answer.
#[derive(Clone, Copy, Debug)]
#[repr(C, align(8))]
pub struct Answer(pub [u8; LONGEST]);

impl Default for Answer {
    fn default() -> Self {
        Answer([0; LONGEST])
    }
}

/// Is this packet one that may be answered? RFC 1122 section 3.2.2, RFC 4443 section 2.4 (e): no errors about errors,
/// groups, fragments but the first; and nothing that would go to nobody.
#[inline(always)]
pub fn is_due(packet: &impl Bytes, ends: &Ends, t: &Transport) -> bool {
    let to_group = packet.link::<1>(0).is_none_or(|first| first[0] & 1 != 0);
    let plain = ends.header == if ends.v4 { 20 } else { 40 } && t.at == ends.header;
    let nobody = ends.source.is_unspecified() || ends.source.is_group() || ends.destination.is_group();
    let error = match t.protocol {
        protocol::ICMP => !matches!(t.icmp_type, icmp::ECHO | icmp::ECHO_REPLY | 13 | 14),
        protocol::ICMPV6 => t.icmp_type < 128,
        _ => false,
    };
    matches!(t.piece, Piece::Whole) && plain && !to_group && !nobody && !error
}

/// Bytes of the transport header to quote: more than 8 where the checksum field lies behind them. Of SCTP as many as show
/// whose INIT it was, or the one who sent it takes no notice (RFC 4960, appendix C, ICMP6).
#[inline(always)]
pub const fn quoted(protocol: u8) -> usize {
    match protocol {
        protocol::TCP | protocol::SCTP => 20,
        _ => 8,
    }
}

/// The sum of 16-bit words (RFC 1071), not folded. `bytes` is of even length. The compiler is kept from unrolling the loop:
/// it would load everything first, more than a program has registers and stack for.
#[inline(always)]
pub fn sum(bytes: &[u8]) -> u32 {
    let mut sum = 0;
    let mut at = 0;
    while let Some(&[high, low]) = bytes.get(at..).and_then(|rest| rest.first_chunk()) {
        sum += u32::from(u16::from_be_bytes([high, low]));
        at = black_box(at + 2);
    }
    sum
}

#[inline(always)]
pub const fn fold(sum: u32) -> u16 {
    let sum = (sum & 0xffff) + (sum >> 16);
    ((sum & 0xffff) + (sum >> 16)) as u16
}

#[inline(always)]
fn addresses(ends: &Ends) -> u32 {
    if ends.v4 {
        sum(&ends.source.0[12..]) + sum(&ends.destination.0[12..])
    } else {
        sum(&ends.source.0) + sum(&ends.destination.0)
    }
}

/// The sum of the quoted transport header after somebody filled in its checksum, if it has none yet.
#[inline(always)]
fn quote_sum(ends: &Ends, t: &Transport, quote: &[u8; 20]) -> u32 {
    let field = match t.protocol {
        protocol::TCP => u16::from_be_bytes([quote[16], quote[17]]),
        protocol::UDP => u16::from_be_bytes([quote[6], quote[7]]),
        _ => 0,
    };
    let pseudo = fold(addresses(ends) + u32::from(t.protocol) + (ends.total - ends.header));
    if matches!(t.protocol, protocol::TCP | protocol::UDP) && field == pseudo {
        return u32::from(!pseudo);
    }
    // What is not quoted is zero.
    sum(quote)
}

const fn v4(address: &Address) -> [u8; 4] {
    [address.0[12], address.0[13], address.0[14], address.0[15]]
}

/// Copies into a place that is a constant for the compiler.
macro_rules! put {
    ($out:ident, $at:expr, $bytes:expr) => {{
        let bytes = $bytes;
        let mut i = 0;
        while i < bytes.len() {
            $out[$at + i] = bytes[i];
            i += 1;
        }
    }};
}

/// Writes the answer; `None` if the packet is shorter than it says. The answer has [`length`] bytes.
#[inline(always)]
pub fn write(packet: &impl Bytes, ends: &Ends, t: &Transport, out: &mut [u8; LONGEST]) -> Option<()> {
    let link = packet.link::<14>(0)?;
    put!(out, 0, [link[6], link[7], link[8], link[9], link[10], link[11]]);
    put!(out, 6, [link[0], link[1], link[2], link[3], link[4], link[5]]);
    put!(out, 12, [link[12], link[13]]);
    let payload = 8 + ends.header as usize + quoted(t.protocol);
    if ends.v4 {
        read_quote(packet, t, part(out, 62)?)?;
        if !packet.copy::<20>(0, part(out, 42)?) {
            return None;
        }
        let total = (20 + payload) as u16;
        let [high, low] = total.to_be_bytes();
        // Don't fragment, 64 hops.
        put!(out, 14, [0x45, 0xc0, high, low, 0, 0, 0x40, 0, 64, protocol::ICMP, 0, 0]);
        put!(out, 26, v4(&ends.destination));
        put!(out, 30, v4(&ends.source));
        let check = !fold(0x45c0 + u32::from(total) + 0x4000 + 0x4001 + addresses(ends));
        put!(out, 24, check.to_be_bytes());
        // Type 3, code 3.
        let check = !fold(0x0303 + sum(part::<20>(out, 42)?) + quote_sum(ends, t, part(out, 62)?));
        let [high, low] = check.to_be_bytes();
        put!(out, 34, [icmp::UNREACHABLE, 3, high, low, 0, 0, 0, 0]);
    } else {
        read_quote(packet, t, part(out, 102)?)?;
        if !packet.copy::<40>(0, part(out, 62)?) {
            return None;
        }
        let [high, low] = (payload as u16).to_be_bytes();
        put!(out, 14, [0x60, 0, 0, 0, high, low, protocol::ICMPV6, 64]);
        put!(out, 22, ends.destination.0);
        put!(out, 38, ends.source.0);
        // Type 1, code 4, over a pseudo header.
        let pseudo = addresses(ends) + payload as u32 + u32::from(protocol::ICMPV6);
        let check = !fold(pseudo + 0x0104 + sum(part::<40>(out, 62)?) + quote_sum(ends, t, part(out, 102)?));
        let [high, low] = check.to_be_bytes();
        put!(out, 54, [icmp::UNREACHABLE_6, 4, high, low, 0, 0, 0, 0]);
    }
    Some(())
}

/// A part of the answer; where it lies is a constant at every use.
#[inline(always)]
fn part<const N: usize>(out: &mut [u8; LONGEST], at: usize) -> Option<&mut [u8; N]> {
    out.get_mut(at..at + N)?.try_into().ok()
}

#[inline(always)]
fn read_quote(packet: &impl Bytes, t: &Transport, quote: &mut [u8; 20]) -> Option<()> {
    let read = match quoted(t.protocol) {
        20 => packet.copy::<20>(t.at, quote),
        _ => {
            *quote = [0; 20];
            // A protocol without ports may have less to quote.
            let _ = packet.copy::<8>(t.at, quote.first_chunk_mut()?);
            true
        }
    };
    read.then_some(())
}

/// Bytes of the answer.
#[inline(always)]
pub const fn length(v4: bool, protocol: u8) -> usize {
    let headers = if v4 { 20 } else { 40 };
    LINK + 2 * headers + 8 + quoted(protocol)
}

#[cfg(test)]
mod tests {
    use std::vec::Vec;

    use super::*;
    use crate::{
        hooks::{Action, Hook},
        twin::{
            Packet,
            build::Build,
            cases::{Family, IF_1, pod_1, stranger, tables},
        },
    };

    fn answer(bytes: Vec<u8>) -> Vec<u8> {
        let packet = Packet { bytes, ifindex: IF_1, note: 0, mark: 0, checksum: None };
        let outcome = tables(1000).run(Hook::PodOut, &packet);
        assert_eq!(outcome.action, Action::Reject);
        outcome.answer.expect("an answer")
    }

    /// Written from RFC 792 and RFC 4443, without a look at the code above.
    fn check(answer: &[u8], refused: &[u8], f: Family) {
        let (header, quote_from) = if f == Family::V4 { (20, 14) } else { (40, 14) };
        assert_eq!((&answer[..6], &answer[6..12], &answer[12..14]), (&refused[6..12], &refused[..6], &refused[12..14]));
        let icmp = &answer[14 + header..];
        assert_eq!(icmp[..2], if f == Family::V4 { [3, 3] } else { [1, 4] });
        let quote = &icmp[8..];
        assert_eq!(quote, &refused[quote_from..quote_from + quote.len()]);
        let pseudo = if f == Family::V4 {
            let head = &answer[14..34];
            assert_eq!(fold(sum(head)), 0xffff, "the network header's checksum");
            assert_eq!(usize::from(u16::from_be_bytes([head[2], head[3]])), answer.len() - 14);
            assert_eq!((&head[12..16], &head[16..]), (&refused[30..34], &refused[26..30]));
            0
        } else {
            let head = &answer[14..54];
            assert_eq!(usize::from(u16::from_be_bytes([head[4], head[5]])), answer.len() - 54);
            assert_eq!((&head[8..24], &head[24..]), (&refused[38..54], &refused[22..38]));
            sum(&head[8..]) + icmp.len() as u32 + 58
        };
        assert_eq!(fold(pseudo + sum(icmp)), 0xffff, "the message's checksum");
    }

    #[test]
    fn answers_are_what_the_standards_want() {
        for f in Family::BOTH {
            let (from, to) = ((pod_1(f), 4000), (stranger(f), 81));
            for packet in [
                Build::tcp(from, to, 2),
                Build::udp(from, to, b"hello world"),
                Build::udp(from, to, b""),
                Build::sctp(from, to),
                Build::new(from.0, to.0, 47, Vec::from([9; 30])),
            ] {
                check(&answer(packet.bytes()), &packet.bytes(), f);
            }
        }
    }

    /// The packet's checksum is filled in by somebody else later, within the quote: then the answer is right.
    #[test]
    fn answers_about_unfinished_packets_are_right_when_these_are_finished() {
        for f in Family::BOTH {
            let (from, to) = ((pod_1(f), 4000), (stranger(f), 81));
            let unfinished = [
                (Build::tcp(from, to, 2).partial(16), 16),
                (Build::udp(from, to, b"hello world, whatever").partial(6), 6),
                (Build::udp(from, to, b"").partial(6), 6),
            ];
            for (packet, field) in unfinished {
                let mut answer = answer(packet.bytes());
                // As skb_checksum_help: the sum from the start of the transport header to the end of the packet.
                let start = answer.len() - quoted(packet.protocol);
                let check = !fold(sum(&answer[start..]));
                answer[start + field..start + field + 2].copy_from_slice(&check.to_be_bytes());
                let mut finished = packet.bytes();
                let start = finished.len() - packet.transport.len();
                finished[start + field..start + field + 2].copy_from_slice(&check.to_be_bytes());
                super::tests::check(&answer, &finished, f);
            }
        }
    }
}
