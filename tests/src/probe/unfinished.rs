//! Packets whose checksum is left to the device that sends them (packet(7), PACKET_VNET_HDR): the sender names the place
//! where it is to be written. gVisor sends this way, and so may whoever wants to change a packet behind a firewall.

use std::{ffi::CString, mem, os::fd::AsRawFd};

use anyhow::{Context, Result, ensure};
use nix::net::if_::if_nametoindex;
use socket2::{Domain, Protocol, SockAddr, Socket, Type};

/// struct virtio_net_hdr of include/uapi/linux/virtio_net.h, without the fields of later versions.
const HEADER: usize = 10;
const NEEDS_CSUM: u8 = 1;

/// Sends `frame` from a device of the calling thread's namespace. The sum of what follows `from` is to be written `at` bytes
/// behind it; `from` counts from the frame's first byte.
pub fn send_unfinished(device: &str, frame: &[u8], from: u16, at: u16) -> Result<()> {
    let socket =
        Socket::new(Domain::PACKET, Type::RAW, Some(Protocol::from(0))).context("a packet socket (needs root)")?;
    let on: libc::c_int = 1;
    // SAFETY: the pointer leads to a number that outlives the call, and the length is its own.
    let done = unsafe {
        let length = size_of_val(&on) as libc::socklen_t;
        libc::setsockopt(socket.as_raw_fd(), libc::SOL_PACKET, libc::PACKET_VNET_HDR, (&raw const on).cast(), length)
    };
    ensure!(done == 0, "PACKET_VNET_HDR: {}", std::io::Error::last_os_error());
    let mut message = vec![0; HEADER];
    message[0] = NEEDS_CSUM;
    message[6..8].copy_from_slice(&from.to_ne_bytes());
    message[8..10].copy_from_slice(&at.to_ne_bytes());
    message.extend_from_slice(frame);
    socket.send_to(&message, &link(device)?).with_context(|| format!("sending from {device}"))?;
    Ok(())
}

fn link(device: &str) -> Result<SockAddr> {
    let index = if_nametoindex(device).with_context(|| format!("no device {device}"))?;
    // SAFETY: the storage has room for a sockaddr_ll, which is plain numbers, and `length` is set to its size.
    let (_, address) = unsafe {
        SockAddr::try_init(|storage, length| {
            let link = storage.cast::<libc::sockaddr_ll>();
            (*link).sll_family = libc::AF_PACKET as u16;
            (*link).sll_ifindex = index as i32;
            *length = size_of::<libc::sockaddr_ll>() as libc::socklen_t;
            Ok(())
        })
    }?;
    Ok(address)
}

/// From now on a device of the calling thread's namespace gets packets with their checksums written, as hardware wants
/// that cannot write them. A veth, as it is, hands them on unfinished.
pub fn finish_checksums(device: &str) -> Result<()> {
    /// struct ethtool_value of include/uapi/linux/ethtool.h.
    #[repr(C)]
    struct Value {
        command: u32,
        data: u32,
    }
    const ETHTOOL_STXCSUM: u32 = 0x17;
    let socket = Socket::new(Domain::IPV4, Type::DGRAM, None)?;
    let mut value = Value { command: ETHTOOL_STXCSUM, data: 0 };
    let name = CString::new(device)?;
    // SAFETY: a structure of plain numbers, for which zeros are valid.
    let mut request: libc::ifreq = unsafe { mem::zeroed() };
    ensure!(name.as_bytes_with_nul().len() <= request.ifr_name.len(), "{device}: too long for a device");
    for (to, byte) in request.ifr_name.iter_mut().zip(name.as_bytes()) {
        *to = *byte as libc::c_char;
    }
    request.ifr_ifru.ifru_data = (&raw mut value).cast();
    // SAFETY: the request names `value`, of the kind that the command wants; both outlive the call.
    let done = unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCETHTOOL, &raw mut request) };
    ensure!(done == 0, "{device}: checksums by the processor: {}", std::io::Error::last_os_error());
    Ok(())
}
