//! Packets, made field by field; wrong ones too.

use std::{vec, vec::Vec};

use crate::{
    answer::{fold, sum},
    packet::protocol,
    policy::Address,
};

/// What a test wants in a packet. Lengths and checksums are made right unless they are set.
#[derive(Clone, Debug)]
pub struct Build {
    pub from_mac: [u8; 6],
    pub to_mac: [u8; 6],
    /// 0: by the addresses.
    pub ethertype: u16,
    pub from: Address,
    pub to: Address,
    pub hop_limit: u8,
    pub protocol: u8,
    /// Transport header and payload.
    pub transport: Vec<u8>,
    /// IPv4: options, a multiple of 4 bytes. IPv6: extension headers as (kind, bytes without the first).
    pub options: Vec<u8>,
    pub extensions: Vec<(u8, Vec<u8>)>,
    /// IPv4: flags and fragment offset.
    pub fragment: u16,
    pub id: u16,
    /// Behind the packet.
    pub padding: usize,
}

impl Build {
    pub fn new(from: Address, to: Address, protocol: u8, transport: Vec<u8>) -> Self {
        Build {
            from_mac: [2, 0, 0, 0, 0, 1],
            to_mac: [2, 0, 0, 0, 0, 2],
            ethertype: 0,
            from,
            to,
            hop_limit: 64,
            protocol,
            transport,
            options: Vec::new(),
            extensions: Vec::new(),
            fragment: 0,
            id: 7,
            padding: 0,
        }
    }

    pub fn tcp(from: (Address, u16), to: (Address, u16), flags: u8) -> Self {
        let mut header = vec![0; 20];
        header[..2].copy_from_slice(&from.1.to_be_bytes());
        header[2..4].copy_from_slice(&to.1.to_be_bytes());
        header[4..8].copy_from_slice(&[0, 0, 1, 1]);
        (header[12], header[13], header[14]) = (0x50, flags, 0xff);
        Build::new(from.0, to.0, protocol::TCP, header).check(16)
    }

    pub fn udp(from: (Address, u16), to: (Address, u16), payload: &[u8]) -> Self {
        let mut header = vec![0; 8];
        header[..2].copy_from_slice(&from.1.to_be_bytes());
        header[2..4].copy_from_slice(&to.1.to_be_bytes());
        header[4..6].copy_from_slice(&(8 + payload.len() as u16).to_be_bytes());
        header.extend_from_slice(payload);
        Build::new(from.0, to.0, protocol::UDP, header).check(6)
    }

    /// The checksum is not right: nobody here reads it.
    pub fn sctp(from: (Address, u16), to: (Address, u16)) -> Self {
        let mut header = vec![0; 32];
        header[..2].copy_from_slice(&from.1.to_be_bytes());
        header[2..4].copy_from_slice(&to.1.to_be_bytes());
        header[12] = 1;
        Build::new(from.0, to.0, protocol::SCTP, header)
    }

    pub fn icmp(from: Address, to: Address, kind: u8, code: u8, rest: &[u8]) -> Self {
        let mut header = vec![kind, code, 0, 0];
        header.extend_from_slice(rest);
        header.resize(header.len().max(8), 0);
        let protocol = if from.is_v4() { protocol::ICMP } else { protocol::ICMPV6 };
        Build::new(from, to, protocol, header)
    }

    /// An ICMP message with its checksum, which IPv6 alone counts the addresses into.
    pub fn icmp_summed(self) -> Self {
        if self.protocol == protocol::ICMPV6 {
            return self.check(2);
        }
        let sum = self.transport_sum();
        self.with(|b| b.transport[2..4].copy_from_slice(&(!fold(sum)).to_be_bytes()))
    }

    /// ICMP echo with this identifier.
    pub fn echo(from: Address, to: Address, kind: u8, id: u16) -> Self {
        let [high, low] = id.to_be_bytes();
        Build::icmp(from, to, kind, 0, &[high, low, 0, 1, 1, 2, 3, 4])
    }

    fn check(mut self, at: usize) -> Self {
        self.transport[at..at + 2].fill(0);
        let sum = self.pseudo() + self.transport_sum();
        self.transport[at..at + 2].copy_from_slice(&(!fold(sum)).to_be_bytes());
        self
    }

    fn transport_sum(&self) -> u32 {
        let mut even = self.transport.clone();
        even.resize(even.len().next_multiple_of(2), 0);
        sum(&even)
    }

    fn pseudo(&self) -> u32 {
        let skip = if self.from.is_v4() { 12 } else { 0 };
        let addresses = sum(&self.from.0[skip..]) + sum(&self.to.0[skip..]);
        addresses + u32::from(self.protocol) + self.transport.len() as u32
    }

    /// As a local socket leaves it: only the sum of the pseudo header stands in the field at this offset.
    pub fn partial(mut self, at: usize) -> Self {
        let pseudo = fold(self.pseudo());
        self.transport[at..at + 2].copy_from_slice(&pseudo.to_be_bytes());
        self
    }

    pub fn with(mut self, change: impl FnOnce(&mut Self)) -> Self {
        change(&mut self);
        self
    }

    /// The network header and what follows, without padding.
    pub fn network(&self) -> Vec<u8> {
        let mut bytes = Vec::new();
        if self.from.is_v4() {
            let header = 20 + self.options.len();
            bytes.extend_from_slice(&[0x40 | (header / 4) as u8, 0]);
            bytes.extend_from_slice(&((header + self.transport.len()) as u16).to_be_bytes());
            bytes.extend_from_slice(&self.id.to_be_bytes());
            bytes.extend_from_slice(&self.fragment.to_be_bytes());
            bytes.extend_from_slice(&[self.hop_limit, self.protocol, 0, 0]);
            bytes.extend_from_slice(&self.from.0[12..]);
            bytes.extend_from_slice(&self.to.0[12..]);
            bytes.extend_from_slice(&self.options);
            let check = !fold(sum(&bytes));
            bytes[10..12].copy_from_slice(&check.to_be_bytes());
        } else {
            let length: usize = self.extensions.iter().map(|(_, rest)| rest.len() + 1).sum();
            let kinds: Vec<u8> = self.extensions.iter().map(|(kind, _)| *kind).chain([self.protocol]).collect();
            bytes.extend_from_slice(&[0x60, 0, 0, 0]);
            bytes.extend_from_slice(&((length + self.transport.len()) as u16).to_be_bytes());
            bytes.extend_from_slice(&[kinds[0], self.hop_limit]);
            bytes.extend_from_slice(&self.from.0);
            bytes.extend_from_slice(&self.to.0);
            for ((_, rest), next) in self.extensions.iter().zip(&kinds[1..]) {
                bytes.push(*next);
                bytes.extend_from_slice(rest);
            }
        }
        bytes.extend_from_slice(&self.transport);
        bytes
    }

    pub fn bytes(&self) -> Vec<u8> {
        let ethertype = match self.ethertype {
            0 if self.from.is_v4() => 0x0800,
            0 => 0x86dd,
            given => given,
        };
        let mut bytes = self.to_mac.to_vec();
        bytes.extend_from_slice(&self.from_mac);
        bytes.extend_from_slice(&u16::to_be_bytes(ethertype));
        bytes.extend(self.network());
        bytes.resize(bytes.len() + self.padding, 0xee);
        bytes
    }
}

/// ARP over Ethernet.
pub fn arp(from_mac: [u8; 6], sender_mac: [u8; 6], sender: [u8; 4], target: [u8; 4]) -> Vec<u8> {
    let mut bytes = vec![0xff; 6];
    bytes.extend_from_slice(&from_mac);
    bytes.extend_from_slice(&[0x08, 0x06, 0, 1, 8, 0, 6, 4, 0, 1]);
    bytes.extend_from_slice(&sender_mac);
    bytes.extend_from_slice(&sender);
    bytes.extend_from_slice(&[0; 6]);
    bytes.extend_from_slice(&target);
    bytes
}
