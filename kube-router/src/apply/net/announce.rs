//! Tells a pod's neighbours which hardware address its addresses have now.
//!
//! The problem: addresses are used again. Who talked to the former owner of one still has that pod's hardware address, and
//! the kernel neither forgets it while its table is small (`gc_thresh1`) nor doubts it before it was used in vain for five
//! seconds (`delay_first_probe_time`). A pod that waits to be called, by the node's probes say, would seem dead for so
//! long. And one that speaks first may get its first answer lost: its question for the neighbour's hardware address
//! does correct the neighbour, but packets that another processor delivers may overtake that question.
//!
//! In: the pod's namespace, its end of the veth, its addresses. Out: for each address one ARP announcement (RFC 5227, 2.3,
//! which asks for two) or one unsolicited neighbour advertisement (RFC 4861, 7.2.6). As Linux is by default, who has no
//! entry for the address makes none.

use std::{
    collections::BTreeSet,
    fs::File,
    io, mem,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddrV6},
};

use socket2::{Domain, Protocol, SockAddr, Socket, Type};

use super::pod_end::{PodEnd, inside};

const ALL_NODES: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1);
/// Anything less was forwarded, and is not believed (RFC 4861, 7.1.2).
const HOP_LIMIT: u32 = 255;
/// `ETH_P_ARP`, as addresses of packet(7) want it.
const ARP: u16 = (libc::ETH_P_ARP as u16).to_be();

/// Announces all of them, and returns the first failure. The calling thread stays in its namespace.
pub fn announce(namespace: &File, end: &PodEnd, addresses: &BTreeSet<IpAddr>) -> io::Result<()> {
    let one = |address: &IpAddr| match address {
        IpAddr::V4(address) => announce_v4(end, *address),
        IpAddr::V6(address) => announce_v6(end, *address),
    };
    inside(namespace, || addresses.iter().map(one).fold(Ok(()), io::Result::and))?
}

fn announce_v4(end: &PodEnd, address: Ipv4Addr) -> io::Result<()> {
    // Of no protocol: it hears nothing, each packet it sends names its own.
    let socket = Socket::new(Domain::PACKET, Type::DGRAM, None)?;
    socket.send_to(&arp(end.mac, address), &everybody(end.index)?).map(drop)
}

fn announce_v6(end: &PodEnd, address: Ipv6Addr) -> io::Result<()> {
    // The kernel writes the checksum (RFC 3542, 3.1).
    let socket = Socket::new(Domain::IPV6, Type::RAW, Some(Protocol::ICMPV6))?;
    socket.set_multicast_hops_v6(HOP_LIMIT)?;
    match socket.bind(&SocketAddrV6::new(address, 0, 0, end.index).into()) {
        // Nobody may use it before duplicate address detection is done (RFC 4862, 5.4).
        Err(error) if error.raw_os_error() == Some(libc::EADDRNOTAVAIL) => return Ok(()),
        bound => bound?,
    }
    let to = SocketAddrV6::new(ALL_NODES, 0, 0, end.index);
    socket.send_to(&advertisement(end.mac, address), &to.into()).map(drop)
}

/// A question of the owner for its own address (RFC 826).
fn arp(mac: [u8; 6], address: Ipv4Addr) -> [u8; 28] {
    let mut packet = [0; 28];
    // Ethernet, IPv4, the lengths of their addresses, a request.
    packet[..8].copy_from_slice(&[0, 1, 8, 0, 6, 4, 0, 1]);
    packet[8..14].copy_from_slice(&mac);
    packet[14..18].copy_from_slice(&address.octets());
    packet[24..].copy_from_slice(&address.octets());
    packet
}

/// RFC 4861, 4.4 and 4.6.1, without the checksum.
fn advertisement(mac: [u8; 6], address: Ipv6Addr) -> [u8; 32] {
    let mut packet = [0; 32];
    packet[0] = 136;
    // Override: what the neighbour has is wrong.
    packet[4] = 0x20;
    packet[8..24].copy_from_slice(&address.octets());
    // The target's link-layer address, eight bytes.
    packet[24..26].copy_from_slice(&[2, 1]);
    packet[26..].copy_from_slice(&mac);
    packet
}

/// The broadcast address of an Ethernet.
fn everybody(index: u32) -> io::Result<SockAddr> {
    // SAFETY: a structure of plain numbers, for which zeros are valid.
    let mut address: libc::sockaddr_ll = unsafe { mem::zeroed() };
    address.sll_family = libc::AF_PACKET as u16;
    address.sll_protocol = ARP;
    address.sll_ifindex = index.cast_signed();
    address.sll_halen = 6;
    address.sll_addr = [0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0, 0];
    let init = |storage: *mut socket2::SockAddrStorage, length: *mut libc::socklen_t| {
        // SAFETY: the storage has room for an address of any family, and the length is what was written.
        unsafe {
            storage.cast::<libc::sockaddr_ll>().write(address);
            length.write(mem::size_of::<libc::sockaddr_ll>() as libc::socklen_t);
        }
        Ok(())
    };
    // SAFETY: the closure initialises both as the function wants it.
    unsafe { SockAddr::try_init(init) }.map(|((), address)| address)
}

#[cfg(test)]
mod tests {
    use super::*;

    const MAC: [u8; 6] = [2, 0, 0, 0, 0, 7];

    #[test]
    fn an_arp_announcement_names_its_owner_twice() {
        let packet = arp(MAC, Ipv4Addr::new(10, 1, 0, 5));
        let expected = [
            &[0, 1, 8, 0, 6, 4, 0, 1][..], // request
            &MAC,
            &[10, 1, 0, 5], // sender
            &[0; 6],
            &[10, 1, 0, 5], // target
        ];
        assert_eq!(packet.as_slice(), expected.concat());
    }

    #[test]
    fn a_neighbour_advertisement_overrides() {
        let address: Ipv6Addr = "fd00::5".parse().unwrap();
        let packet = advertisement(MAC, address);
        let expected = [&[136, 0, 0, 0, 0x20, 0, 0, 0][..], &address.octets(), &[2, 1], &MAC];
        assert_eq!(packet.as_slice(), expected.concat());
    }
}
