//! An address range as a prefix, in the form of the tables: 128 bits, IPv4 mapped.
//!
//! Ordered so that everything inside a prefix follows it: by family, first address, length.

use std::{fmt, net::IpAddr};

use ipnet::IpNet;
use kube_router_common::policy::{Address, CidrKey};

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Prefix {
    pub v4: bool,
    /// The first address.
    bits: u128,
    /// 96 to 128 for IPv4.
    length: u8,
}

pub fn address_of(ip: IpAddr) -> Address {
    match ip.to_canonical() {
        IpAddr::V4(ip) => Address::from_v4(ip.octets()),
        IpAddr::V6(ip) => Address(ip.octets()),
    }
}

pub fn ip_of(address: Address) -> IpAddr {
    IpAddr::from(address.0).to_canonical()
}

impl Prefix {
    /// The range of a CIDR without host bits.
    pub fn of_net(net: IpNet) -> Self {
        match net {
            IpNet::V4(net) => {
                let address = Address::from_v4(net.network().octets());
                Prefix { v4: true, bits: u128::from_be_bytes(address.0), length: 96 + net.prefix_len() }
            }
            IpNet::V6(net) => Prefix { v4: false, bits: u128::from(net.network()), length: net.prefix_len() },
        }
    }

    pub fn of_address(address: Address) -> Self {
        Prefix { v4: address.is_v4(), bits: u128::from_be_bytes(address.0), length: 128 }
    }

    pub fn length(self) -> u8 {
        self.length
    }

    /// The range of this length around it; `length` is not more than its own.
    pub fn widened(self, length: u8) -> Self {
        let mask = u128::MAX.checked_shl(u32::from(128 - length)).unwrap_or(0);
        Prefix { v4: self.v4, bits: self.bits & mask, length }
    }

    pub fn contains(self, other: Prefix) -> bool {
        self.v4 == other.v4 && self.length <= other.length && other.widened(self.length) == self
    }

    pub fn first(self) -> Address {
        Address(self.bits.to_be_bytes())
    }

    pub fn last(self) -> Address {
        let host = u128::MAX.checked_shr(u32::from(self.length)).unwrap_or(0);
        Address((self.bits | host).to_be_bytes())
    }

    /// Bounds of every prefix inside this one, itself included, in the order of prefixes.
    pub fn inside(self) -> std::ops::RangeInclusive<Prefix> {
        let last = Prefix { v4: self.v4, bits: u128::from_be_bytes(self.last().0), length: 128 };
        self..=last
    }

    pub fn key(self) -> CidrKey {
        CidrKey { length: 32 + u32::from(self.length), family: CidrKey::family_of(self.v4), address: self.first() }
    }
}

impl fmt::Display for Prefix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let length = if self.v4 { self.length - 96 } else { self.length };
        match self.v4 {
            true => write!(f, "{}/{length}", ip_of(self.first())),
            false => write!(f, "{}/{length}", std::net::Ipv6Addr::from(self.bits)),
        }
    }
}
