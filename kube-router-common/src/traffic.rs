//! Counting packets by what they carry.

use core::mem::{offset_of, size_of};

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// `ETH_P_IP` and `ETH_P_IPV6` of include/uapi/linux/if_ether.h.
const ETH_P_IP: u16 = 0x0800;
const ETH_P_IPV6: u16 = 0x86dd;
/// include/uapi/linux/in.h
const IPPROTO_ICMP: u8 = 1;
const IPPROTO_TCP: u8 = 6;
const IPPROTO_UDP: u8 = 17;
const IPPROTO_ICMPV6: u8 = 58;
const IPPROTO_SCTP: u8 = 132;

/// Counters of one class on one processor since the program was loaded.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct Traffic {
    pub packets: u64,
    /// With the link-layer header, without the frame check sequence. Of a packet that is segmented or merged by the
    /// kernel (GSO, GRO) as it passes: once.
    pub bytes: u64,
}

const _: () = assert!(size_of::<Traffic>() == 16);
const _: () = assert!(offset_of!(Traffic, packets) == 0 && offset_of!(Traffic, bytes) == 8);

impl Traffic {
    /// Counters start anew when they overflow, after 2^64 bytes.
    pub const fn plus(self, other: Traffic) -> Traffic {
        Traffic { packets: self.packets.wrapping_add(other.packets), bytes: self.bytes.wrapping_add(other.bytes) }
    }
}

/// What a packet carries; the index into the map of counters.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u32)]
pub enum TrafficClass {
    /// Neither IPv4 nor IPv6: ARP and the like.
    NotIp = 0,
    Tcp4 = 1,
    Udp4 = 2,
    Sctp4 = 3,
    Icmp4 = 4,
    /// IPv4 with another protocol, or cut off before it is named.
    Other4 = 5,
    Tcp6 = 6,
    Udp6 = 7,
    Sctp6 = 8,
    Icmp6 = 9,
    /// IPv6 with another next header (extension headers are not followed), or cut off before it is named.
    Other6 = 10,
}

impl TrafficClass {
    pub const COUNT: usize = 11;

    /// In the order of their indices.
    pub const ALL: [TrafficClass; TrafficClass::COUNT] = [
        TrafficClass::NotIp,
        TrafficClass::Tcp4,
        TrafficClass::Udp4,
        TrafficClass::Sctp4,
        TrafficClass::Icmp4,
        TrafficClass::Other4,
        TrafficClass::Tcp6,
        TrafficClass::Udp6,
        TrafficClass::Sctp6,
        TrafficClass::Icmp6,
        TrafficClass::Other6,
    ];

    pub const fn index(self) -> u32 {
        self as u32
    }

    /// The offset in the network header of the byte that [`TrafficClass::of`] wants as `protocol`.
    pub const fn protocol_offset(ethertype: u16) -> Option<u32> {
        match ethertype {
            ETH_P_IP => Some(9),
            ETH_P_IPV6 => Some(6),
            _ => None,
        }
    }

    /// `ethertype` in host byte order; `protocol`: the IPv4 protocol or the IPv6 next header, if it could be read.
    pub const fn of(ethertype: u16, protocol: Option<u8>) -> TrafficClass {
        match (ethertype, protocol) {
            (ETH_P_IP, Some(IPPROTO_TCP)) => TrafficClass::Tcp4,
            (ETH_P_IP, Some(IPPROTO_UDP)) => TrafficClass::Udp4,
            (ETH_P_IP, Some(IPPROTO_SCTP)) => TrafficClass::Sctp4,
            (ETH_P_IP, Some(IPPROTO_ICMP)) => TrafficClass::Icmp4,
            (ETH_P_IP, _) => TrafficClass::Other4,
            (ETH_P_IPV6, Some(IPPROTO_TCP)) => TrafficClass::Tcp6,
            (ETH_P_IPV6, Some(IPPROTO_UDP)) => TrafficClass::Udp6,
            (ETH_P_IPV6, Some(IPPROTO_SCTP)) => TrafficClass::Sctp6,
            (ETH_P_IPV6, Some(IPPROTO_ICMPV6)) => TrafficClass::Icmp6,
            (ETH_P_IPV6, _) => TrafficClass::Other6,
            _ => TrafficClass::NotIp,
        }
    }
}

const _: () = {
    let mut index = 0;
    while index < TrafficClass::COUNT {
        assert!(TrafficClass::ALL[index].index() as usize == index);
        index += 1;
    }
};

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn classes() {
        for (ethertype, protocol, class) in [
            (0x0800, Some(6), TrafficClass::Tcp4),
            (0x0800, Some(17), TrafficClass::Udp4),
            (0x0800, Some(58), TrafficClass::Other4),
            (0x0800, None, TrafficClass::Other4),
            (0x86dd, Some(58), TrafficClass::Icmp6),
            (0x86dd, Some(1), TrafficClass::Other6),
            (0x86dd, Some(132), TrafficClass::Sctp6),
            (0x0806, None, TrafficClass::NotIp),
            (0x0008, Some(6), TrafficClass::NotIp),
        ] {
            assert_eq!(TrafficClass::of(ethertype, protocol), class, "{ethertype:#x} {protocol:?}");
        }
    }

    #[test]
    fn the_protocol_is_where_the_headers_say() {
        // RFC 791 section 3.1, RFC 8200 section 3.
        assert_eq!(TrafficClass::protocol_offset(0x0800), Some(9));
        assert_eq!(TrafficClass::protocol_offset(0x86dd), Some(6));
        assert_eq!(TrafficClass::protocol_offset(0x0806), None);
    }
}
