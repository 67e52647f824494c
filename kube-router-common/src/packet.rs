//! Reading headers: from where a packet comes and goes, and what it is a part of.
//!
//! In: a packet that gives out bytes ([`Bytes`]), whoever holds it: the kernel, or a slice. Out: addresses ([`Ends`]),
//! ports and the like ([`Transport`]), or the [`Reason`] why it is refused. Knows nothing of pods and policy.
//!
//! Two steps, because the second is needed for isolated pods only. Every read is bounded by the length that the network
//! header states, so link-layer padding is never taken for a header.

use crate::{flow::FlowKey, policy::Address, reason::Reason};

/// A packet.
pub trait Bytes {
    /// `N` bytes from offset `at` of the network header on; false if the packet is shorter.
    fn copy<const N: usize>(&self, at: u32, to: &mut [u8; N]) -> bool;
    /// The same as a value.
    #[inline(always)]
    fn net<const N: usize>(&self, at: u32) -> Option<[u8; N]> {
        let mut bytes = [0; N];
        self.copy(at, &mut bytes).then_some(bytes)
    }
    /// The same as words in the packet's byte order: for what is read of every packet, as programs load words at once.
    #[inline(always)]
    fn words<const N: usize>(&self, at: u32) -> Option<[u32; N]> {
        let mut words = [0; N];
        let mut next = at;
        for word in &mut words {
            *word = u32::from_ne_bytes(self.net(next)?);
            next += 4;
        }
        Some(words)
    }
    #[inline(always)]
    fn half(&self, at: u32) -> Option<u16> {
        self.net(at).map(u16::from_ne_bytes)
    }
    /// The same from the link-layer header on; `None` too if there is none.
    fn link<const N: usize>(&self, at: u32) -> Option<[u8; N]>;
    /// The sender's hardware address, in the packet's byte order.
    #[inline(always)]
    fn sender(&self) -> Option<[u16; 3]> {
        self.link(6).map(halves)
    }
    /// Bytes from the network header on.
    fn net_length(&self) -> u32;
    /// `ETH_P_*`, host byte order.
    fn ethertype(&self) -> u16;
    /// Did it carry a VLAN tag that has been taken off?
    fn is_tagged(&self) -> bool;
    /// Is it one with a priority and no network (VLAN 0)? The kernel takes such a frame for one without a tag.
    fn is_priority_tagged(&self) -> bool;
}

/// include/uapi/linux/if_ether.h
pub mod ethertype {
    pub const IPV4: u16 = 0x0800;
    pub const ARP: u16 = 0x0806;
    pub const IPV6: u16 = 0x86dd;
    pub const VLAN: u16 = 0x8100;
    pub const SERVICE_VLAN: u16 = 0x88a8;
}

/// <https://www.iana.org/assignments/protocol-numbers>
pub mod protocol {
    pub const HOP_BY_HOP: u8 = 0;
    pub const ICMP: u8 = 1;
    pub const TCP: u8 = 6;
    pub const UDP: u8 = 17;
    pub const ROUTING: u8 = 43;
    pub const FRAGMENT: u8 = 44;
    pub const AUTHENTICATION: u8 = 51;
    pub const ICMPV6: u8 = 58;
    pub const DESTINATION_OPTIONS: u8 = 60;
    pub const SCTP: u8 = 132;
}

const IPV4_HEADER: u32 = 20;
const IPV6_HEADER: u32 = 40;
/// How an address begins that stands for IPv4, in the packet's byte order.
const MAPPED: [u32; 3] = [0, 0, 0xffff_u32.to_be()];
/// Extension headers that are followed. RFC 8200 knows seven kinds, and only destination options may come twice.
const MAX_EXTENSIONS: u32 = 6;

/// The network header.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Ends {
    pub source: Address,
    pub destination: Address,
    pub v4: bool,
    /// IPv4: the protocol. IPv6: the first next header.
    pub protocol: u8,
    pub hop_limit: u8,
    /// Where the network header ends.
    pub header: u32,
    /// Where the packet ends, padding excluded.
    pub total: u32,
    /// IPv4: flags and fragment offset.
    pub fragment: u16,
    pub id: u32,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(u8)]
pub enum Piece {
    #[default]
    Whole = 0,
    /// The first fragment: it has the ports.
    First,
    /// A later one: it has none.
    Later,
}

/// What the packet carries.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Transport {
    pub protocol: u8,
    pub piece: Piece,
    /// TCP's flags.
    pub flags: u8,
    pub icmp_type: u8,
    pub icmp_code: u8,
    /// Of an ICMP echo, source and destination are its identifier. Zero for what has no ports.
    pub source_port: u16,
    pub destination_port: u16,
    /// Where its header begins.
    pub at: u32,
    /// Of fragments; see [`crate::config::FragKey`].
    pub id: u32,
}

/// So many bytes of a transport header are looked at for a verdict: ports, TCP's flags, and of ICMP its type, the neighbour
/// that it speaks of and the packet that it quotes. Nobody leaves ICMP's checksum to a device.
#[inline(always)]
pub const fn judged(protocol: u8, piece: Piece) -> u32 {
    match (piece, protocol) {
        (Piece::Later, _) => 0,
        (_, protocol::TCP) => 14,
        (_, protocol::UDP | protocol::SCTP) => 4,
        (_, protocol::ICMP | protocol::ICMPV6) => 8 + 40 + 8,
        _ => 0,
    }
}

/// A hardware address, in its byte order.
#[inline(always)]
pub const fn halves(mac: [u8; 6]) -> [u16; 3] {
    zerocopy::transmute!(mac)
}

const fn be16(bytes: [u8; 2]) -> u16 {
    u16::from_be_bytes(bytes)
}

/// Protocols that IPVS balances and policies can name ports of.
#[inline(always)]
pub const fn has_ports(protocol: u8) -> bool {
    matches!(protocol, protocol::TCP | protocol::UDP | protocol::SCTP)
}

/// Reads the network header into `ends`. `v4`: what the ethertype says.
#[inline(always)]
pub fn read_ends(packet: &impl Bytes, v4: bool, ends: &mut Ends) -> Result<(), Reason> {
    if v4 { ends4(packet, ends) } else { ends6(packet, ends) }
}

/// The same as a value.
pub fn ends(packet: &impl Bytes, v4: bool) -> Result<Ends, Reason> {
    let mut ends = Ends::default();
    read_ends(packet, v4, &mut ends).map(|()| ends)
}

#[inline(always)]
fn ends4(packet: &impl Bytes, ends: &mut Ends) -> Result<(), Reason> {
    let [first, second, third, source, destination] = packet.words(0).ok_or(Reason::Truncated)?;
    let [first, second, third] = [first, second, third].map(u32::from_be);
    let header = (first >> 24 & 0x0f) * 4;
    if first >> 28 != 4 || header < IPV4_HEADER {
        return Err(Reason::Malformed);
    }
    let total = total(first & 0xffff, packet.net_length())?;
    if total < header {
        return Err(Reason::Malformed);
    }
    ends.source = Address::from_words([MAPPED[0], MAPPED[1], MAPPED[2], source]);
    ends.destination = Address::from_words([MAPPED[0], MAPPED[1], MAPPED[2], destination]);
    ends.v4 = true;
    ends.protocol = (third >> 16) as u8;
    ends.hop_limit = (third >> 24) as u8;
    ends.header = header;
    ends.total = total;
    ends.fragment = second as u16;
    ends.id = second >> 16;
    Ok(())
}

#[inline(always)]
fn ends6(packet: &impl Bytes, ends: &mut Ends) -> Result<(), Reason> {
    let [first, second, s0, s1, s2, s3, d0, d1, d2, d3] = packet.words(0).ok_or(Reason::Truncated)?;
    let [first, second] = [first, second].map(u32::from_be);
    if first >> 28 != 6 {
        return Err(Reason::Malformed);
    }
    if [s0, s1, s2] == MAPPED || [d0, d1, d2] == MAPPED {
        return Err(Reason::Mapped);
    }
    ends.source = Address::from_words([s0, s1, s2, s3]);
    ends.destination = Address::from_words([d0, d1, d2, d3]);
    let (payload, next) = (second >> 16, (second >> 8) as u8);
    // Without a length: a jumbo option (RFC 2675), which the kernel itself writes into what it will segment later.
    let stated = match payload {
        0 if next == protocol::HOP_BY_HOP => 0,
        0 => IPV6_HEADER,
        payload => payload + IPV6_HEADER,
    };
    ends.v4 = false;
    ends.protocol = next;
    ends.hop_limit = second as u8;
    ends.header = IPV6_HEADER;
    ends.total = total(stated, packet.net_length())?;
    ends.fragment = 0;
    ends.id = 0;
    Ok(())
}

/// The stated length, if it can be. 0 is stated by what is longer than the field can say (and is segmented later).
#[inline(always)]
fn total(stated: u32, there: u32) -> Result<u32, Reason> {
    match stated {
        0 if there > 65_535 => Ok(there),
        0 => Err(Reason::Malformed),
        stated if stated > there => Err(Reason::Truncated),
        stated => Ok(stated),
    }
}

/// Reads what follows the network header into `t`.
#[inline(always)]
pub fn read_transport(packet: &impl Bytes, ends: &Ends, t: &mut Transport) -> Result<(), Reason> {
    *t = Transport { protocol: ends.protocol, at: ends.header, id: ends.id, ..Transport::default() };
    if ends.v4 {
        if ends.header != IPV4_HEADER {
            return Err(Reason::IpOptions);
        }
        // RFC 791: bit 13 is "more fragments", the rest an offset in units of 8 bytes.
        t.piece = piece(ends.fragment & 0x1fff, ends.fragment & 0x2000 != 0, t.protocol)?;
    } else {
        extensions(packet, ends, t)?;
    }
    if matches!(t.piece, Piece::Later) {
        return Ok(());
    }
    ports(packet, ends.total, t)
}

/// The same as a value.
pub fn transport(packet: &impl Bytes, ends: &Ends) -> Result<Transport, Reason> {
    let mut t = Transport::default();
    read_transport(packet, ends, &mut t).map(|()| t)
}

#[inline(always)]
fn piece(offset: u16, more: bool, protocol: u8) -> Result<Piece, Reason> {
    match (offset, more) {
        (0, false) => Ok(Piece::Whole),
        (0, true) => Ok(Piece::First),
        (1, _) if protocol == protocol::TCP => Err(Reason::Fragment),
        _ => Ok(Piece::Later),
    }
}

/// Follows the chain of extension headers (RFC 8200 section 4).
#[inline(always)]
fn extensions(packet: &impl Bytes, ends: &Ends, t: &mut Transport) -> Result<(), Reason> {
    let mut left = MAX_EXTENSIONS;
    // Old verifiers follow a way back only if it is a jump; a condition at the end is one.
    let mut has_one = is_extension(t.protocol);
    while has_one {
        if left == 0 {
            return Err(Reason::Extensions);
        }
        left -= 1;
        if t.at + 8 > ends.total {
            return Err(Reason::Truncated);
        }
        let h = packet.net::<8>(t.at).ok_or(Reason::Truncated)?;
        let length = match t.protocol {
            // RFC 4302: in units of 4 bytes, less 2.
            protocol::AUTHENTICATION => (u32::from(h[1]) + 2) * 4,
            protocol::FRAGMENT => 8,
            _ => (u32::from(h[1]) + 1) * 8,
        };
        match t.protocol {
            // Its destination is not where it will end.
            protocol::ROUTING if h[3] != 0 => return Err(Reason::Extensions),
            protocol::FRAGMENT => {
                // A fragment of a fragment does not exist.
                if !matches!(t.piece, Piece::Whole) {
                    return Err(Reason::Extensions);
                }
                let word = be16([h[2], h[3]]);
                t.piece = piece(word >> 3, word & 1 != 0, h[0])?;
                t.id = u32::from_be_bytes([h[4], h[5], h[6], h[7]]);
                // Ports that do not stand at its very start could be overwritten by a later fragment, where a receiver
                // takes overlapping ones (RFC 5722 forbids it).
                if matches!(t.piece, Piece::First) && is_extension(h[0]) {
                    return Err(Reason::Extensions);
                }
            }
            _ => {}
        }
        t.protocol = h[0];
        t.at += length;
        if matches!(t.piece, Piece::Later) {
            return Ok(());
        }
        has_one = is_extension(t.protocol);
    }
    if t.at > ends.total { Err(Reason::Truncated) } else { Ok(()) }
}

#[inline(always)]
const fn is_extension(next: u8) -> bool {
    matches!(
        next,
        protocol::HOP_BY_HOP
            | protocol::ROUTING
            | protocol::FRAGMENT
            | protocol::AUTHENTICATION
            | protocol::DESTINATION_OPTIONS
    )
}

/// Reads ports, flags, types. A header must be there as a whole; of a first fragment, all that is looked at.
#[inline(always)]
fn ports(packet: &impl Bytes, total: u32, t: &mut Transport) -> Result<(), Reason> {
    let needed = match (t.protocol, t.piece) {
        (protocol::TCP, Piece::Whole) => 20,
        (protocol::TCP, _) => 14,
        (protocol::SCTP, _) => 12,
        (protocol::UDP | protocol::ICMP | protocol::ICMPV6, _) => 8,
        _ => return Ok(()),
    };
    if t.at + needed > total {
        return Err(Reason::Truncated);
    }
    let [first, second] = packet.words(t.at).ok_or(Reason::Truncated)?.map(u32::from_be);
    match t.protocol {
        protocol::ICMP | protocol::ICMPV6 => {
            t.icmp_type = (first >> 24) as u8;
            t.icmp_code = (first >> 16) as u8;
            if t.protocol == protocol::ICMP && (t.icmp_type == icmp::ECHO || t.icmp_type == icmp::ECHO_REPLY) {
                t.source_port = (second >> 16) as u16;
                t.destination_port = t.source_port;
            }
        }
        _ => {
            t.source_port = (first >> 16) as u16;
            t.destination_port = first as u16;
        }
    }
    if t.protocol == protocol::TCP {
        t.flags = u16::from_be(packet.half(t.at + 12).ok_or(Reason::Truncated)?) as u8;
    }
    Ok(())
}

/// What is to be done with a message of ICMP.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Icmp {
    /// Allowed whatever the policies say.
    Always,
    /// Allowed, and its reply will be looked up.
    Echo,
    /// Allowed if the echo was seen.
    EchoReply,
    /// Allowed if it is about a known flow.
    Related,
    /// As any packet without ports.
    Other,
}

/// Types of ICMP (RFC 792) and ICMPv6 (RFC 4443, RFC 4861, RFC 2710, RFC 3810).
pub mod icmp {
    pub const ECHO_REPLY: u8 = 0;
    pub const UNREACHABLE: u8 = 3;
    pub const ECHO: u8 = 8;
    pub const TIME_EXCEEDED: u8 = 11;
    pub const PARAMETER_PROBLEM: u8 = 12;
    pub const UNREACHABLE_6: u8 = 1;
    pub const TOO_BIG_6: u8 = 2;
    pub const TIME_EXCEEDED_6: u8 = 3;
    pub const PARAMETER_PROBLEM_6: u8 = 4;
    pub const ECHO_6: u8 = 128;
    pub const ECHO_REPLY_6: u8 = 129;
    pub const LISTENER_QUERY: u8 = 130;
    pub const LISTENER_DONE: u8 = 132;
    pub const ROUTER_SOLICIT: u8 = 133;
    pub const ROUTER_ADVERT: u8 = 134;
    pub const NEIGHBOUR_SOLICIT: u8 = 135;
    pub const NEIGHBOUR_ADVERT: u8 = 136;
    pub const REDIRECT_6: u8 = 137;
    pub const LISTENER_REPORT_2: u8 = 143;
}

/// The hop limit of what cannot have come from another link (RFC 4861).
pub const ON_LINK: u8 = 255;

/// The original's list of what is always allowed, plus what IPv6 cannot live without: router discovery and the reports
/// by which a bridge learns who listens to which neighbour solicitations.
#[inline(always)]
pub fn icmp_kind(ends: &Ends, t: &Transport, into_pod: bool) -> Icmp {
    if ends.v4 {
        return match t.icmp_type {
            icmp::ECHO => Icmp::Echo,
            icmp::ECHO_REPLY => Icmp::EchoReply,
            icmp::UNREACHABLE | icmp::TIME_EXCEEDED => Icmp::Always,
            icmp::PARAMETER_PROBLEM => Icmp::Related,
            _ => Icmp::Other,
        };
    }
    match t.icmp_type {
        icmp::UNREACHABLE_6 | icmp::TIME_EXCEEDED_6 | icmp::ECHO_6 | icmp::ECHO_REPLY_6 => Icmp::Always,
        icmp::TOO_BIG_6 | icmp::PARAMETER_PROBLEM_6 => Icmp::Related,
        icmp::ROUTER_SOLICIT | icmp::NEIGHBOUR_SOLICIT | icmp::NEIGHBOUR_ADVERT => Icmp::Always,
        // A router's word on the link. The node's kernel redirects what it sends back out of a pod's bridge.
        icmp::ROUTER_ADVERT | icmp::REDIRECT_6
            if into_pod && ends.hop_limit == ON_LINK && ends.source.is_link_local() =>
        {
            Icmp::Always
        }
        icmp::LISTENER_QUERY..=icmp::LISTENER_DONE | icmp::LISTENER_REPORT_2 => Icmp::Always,
        _ => Icmp::Other,
    }
}

/// Does it quote a packet (RFC 1122, 3.2.2; RFC 4443, 2.1)? A redirect does as well, but is for who routes.
#[inline(always)]
pub const fn is_error(ends: &Ends, t: &Transport) -> bool {
    if ends.v4 {
        matches!(t.icmp_type, icmp::UNREACHABLE | icmp::TIME_EXCEEDED | icmp::PARAMETER_PROBLEM)
    } else {
        matches!(t.icmp_type, icmp::UNREACHABLE_6 | icmp::TOO_BIG_6 | icmp::TIME_EXCEEDED_6 | icmp::PARAMETER_PROBLEM_6)
    }
}

/// Reads the packet that an ICMP error quotes, as far as it matters for finding its flow, into `key` as if `local` had
/// sent it. False if it quotes too little.
#[inline(always)]
pub fn read_quoted(packet: &impl Bytes, ends: &Ends, t: &Transport, key: &mut FlowKey) -> bool {
    let at = t.at + 8;
    let header = if ends.v4 {
        let Some(h) = packet.net::<20>(at) else { return false };
        if h[0] != 0x45 || be16([h[6], h[7]]) & 0x1fff != 0 {
            return false;
        }
        key.local = Address::from_v4([h[12], h[13], h[14], h[15]]);
        key.peer = Address::from_v4([h[16], h[17], h[18], h[19]]);
        key.protocol = h[9];
        IPV4_HEADER
    } else {
        let Some([next]) = packet.net::<1>(at + 6) else { return false };
        key.protocol = next;
        if !packet.copy(at + 8, &mut key.local.0) || !packet.copy(at + 24, &mut key.peer.0) {
            return false;
        }
        IPV6_HEADER
    };
    if at + header + 8 > ends.total {
        return false;
    }
    let Some(h) = packet.net::<8>(at + header) else { return false };
    (key.local_port, key.peer_port) = match key.protocol {
        protocol if has_ports(protocol) => (be16([h[0], h[1]]), be16([h[2], h[3]])),
        protocol::ICMP => (be16([h[4], h[5]]), be16([h[4], h[5]])),
        _ => (0, 0),
    };
    true
}

impl Address {
    /// As it lies in a packet.
    #[inline(always)]
    const fn from_words(words: [u32; 4]) -> Self {
        zerocopy::transmute!(words)
    }

    /// fe80::/10
    #[inline(always)]
    pub const fn is_link_local(&self) -> bool {
        self.0[0] == 0xfe && self.0[1] & 0xc0 == 0x80
    }

    /// `::` or 0.0.0.0
    #[inline(always)]
    pub const fn is_unspecified(&self) -> bool {
        let number = u128::from_be_bytes(self.0);
        number == 0 || number == 0xffff_0000_0000
    }

    /// Multicast of either family, or 255.255.255.255.
    #[inline(always)]
    pub const fn is_group(&self) -> bool {
        if self.is_v4() {
            self.0[12] & 0xf0 == 0xe0 || matches!(self.0, [.., 0xff, 0xff, 0xff, 0xff])
        } else {
            self.0[0] == 0xff
        }
    }
}
