//! Netlink plumbing shared by everything under `apply`: one socket type, requests in batches, dumps, errors that keep
//! the kernel's own words.
//!
//! A netlink request is carried out inside `sendmsg`: when it returns, every answer already waits in our receive
//! queue. So a batch is one `sendmsg` of many requests, none of which asks for an acknowledgement: the kernel still
//! answers the ones that failed, and silence means success. That is what makes cold programming cheap.
//!
//! Payloads are bytes here. [`attr`] writes and reads attributes; families (IPVS, nfnetlink, rtnetlink) live with
//! their planes.

pub mod attr;
#[cfg(test)]
mod tests;

use std::{
    io,
    os::fd::{AsRawFd, RawFd},
};

use netlink_sys::{Socket as RawSocket, SocketAddr};

/// Size of `struct nlmsghdr`.
const HEADER: usize = 16;
/// include/uapi/linux/netlink.h
const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;
const NLM_F_REQUEST: u16 = 0x1;
pub const NLM_F_ACK: u16 = 0x4;
pub const NLM_F_DUMP: u16 = 0x300;
pub const NLM_F_REPLACE: u16 = 0x100;
pub const NLM_F_EXCL: u16 = 0x200;
pub const NLM_F_CREATE: u16 = 0x400;
const NLM_F_DUMP_INTR: u16 = 0x10;
const NLM_F_CAPPED: u16 = 0x100;
const NLM_F_ACK_TLVS: u16 = 0x200;
const NLMSGERR_ATTR_MSG: u16 = 1;

/// Requests sent in one `sendmsg`. 256 failures of at most ~1 KiB of socket memory each fit the default receive
/// buffer of 212,992 bytes; we ask for more below, but may not get it.
const BATCH_MESSAGES: usize = 256;
/// Bytes of one batch; below the default send buffer of 212,992 bytes.
const BATCH_BYTES: usize = 128 * 1024;
/// One receive: the kernel fills dumps in pieces of at most 32 KiB when the reader offers that much.
const RECEIVE_BYTES: usize = 64 * 1024;
/// A dump that was interrupted by a change is read again, so often.
const DUMP_ATTEMPTS: usize = 5;

/// Why a whole exchange failed; what the kernel holds afterwards is not known.
#[derive(Debug, thiserror::Error)]
pub enum NlError {
    /// The request was understood and refused.
    #[error("{0}")]
    Refused(Refusal),
    /// The socket failed; `ENOBUFS` means that answers were lost.
    #[error("netlink socket: {0}")]
    Socket(#[source] io::Error),
    /// The kernel's answer is not what the protocol promises.
    #[error("malformed netlink answer: {0}")]
    Malformed(&'static str),
    /// Five dumps in a row were interrupted by changes.
    #[error("the table kept changing while it was read")]
    Interrupted,
}

impl NlError {
    /// The positive errno, where there is one.
    pub fn errno(&self) -> Option<i32> {
        match self {
            NlError::Refused(refusal) => Some(refusal.errno),
            NlError::Socket(error) => error.raw_os_error(),
            NlError::Malformed(_) | NlError::Interrupted => None,
        }
    }
}

/// One request that the kernel refused.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// Positive errno.
    pub errno: i32,
    /// The kernel's extended-ack text; empty when it gave none.
    pub text: Box<str>,
}

impl std::fmt::Display for Refusal {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}", io::Error::from_raw_os_error(self.errno))?;
        if self.text.is_empty() { Ok(()) } else { write!(f, ": {}", self.text) }
    }
}

/// Requests to be sent together, in order. Build with [`Batch::push`], send with [`Socket::send_batch`].
#[derive(Default)]
pub struct Batch {
    bytes: Vec<u8>,
    /// Start of each message in `bytes`.
    starts: Vec<usize>,
}

impl Batch {
    pub fn new() -> Self {
        Batch::default()
    }

    pub fn len(&self) -> usize {
        self.starts.len()
    }

    pub fn is_empty(&self) -> bool {
        self.starts.is_empty()
    }

    /// Adds a request. `flags` without NLM_F_REQUEST (always set). `body` writes what follows the netlink header.
    pub fn push(&mut self, message_type: u16, flags: u16, body: impl FnOnce(&mut Vec<u8>)) {
        let start = self.bytes.len();
        self.starts.push(start);
        self.bytes.extend_from_slice(&[0; HEADER]);
        body(&mut self.bytes);
        let length = self.bytes.len() - start;
        attr::pad(&mut self.bytes, start);
        let header = &mut self.bytes[start..start + HEADER];
        header[0..4].copy_from_slice(&(length as u32).to_ne_bytes());
        header[4..6].copy_from_slice(&message_type.to_ne_bytes());
        header[6..8].copy_from_slice(&(flags | NLM_F_REQUEST).to_ne_bytes());
    }

    fn end(&self, index: usize) -> usize {
        self.starts.get(index + 1).copied().unwrap_or(self.bytes.len())
    }
}

/// A netlink socket of one protocol. It belongs to the network namespace of the thread that opened it, for good.
pub struct Socket {
    inner: RawSocket,
    sequence: u32,
    buffer: Vec<u8>,
}

impl Socket {
    /// Opens a socket; `protocol` is NETLINK_ROUTE, NETLINK_GENERIC, NETLINK_NETFILTER (netlink_sys::protocols).
    pub fn open(protocol: isize) -> Result<Self, NlError> {
        Socket::open_with(protocol, RECEIVE_BYTES)
    }

    /// As [`Socket::open`], with a receive buffer of `receive_bytes` (at least 8 KiB, the kernel's smallest dump
    /// buffer). The kernel allocates up to 32 KiB for every piece of a dump, as much as the reader has ever offered:
    /// whoever reads thousands of short lists offers less.
    pub fn open_with(protocol: isize, receive_bytes: usize) -> Result<Self, NlError> {
        let mut inner = RawSocket::new(protocol).map_err(NlError::Socket)?;
        inner.bind_auto().map_err(NlError::Socket)?;
        // Old kernels lack some options; all of them only improve errors or capacity.
        let _ = inner.set_ext_ack(true);
        let _ = inner.set_cap_ack(true);
        let _ = inner.set_rx_buf_sz(4 * 1024 * 1024_u32);
        Ok(Socket { inner, sequence: 1, buffer: Vec::with_capacity(receive_bytes) })
    }

    /// The socket underneath, for joining multicast groups and polling.
    pub fn raw(&mut self) -> &mut RawSocket {
        &mut self.inner
    }

    /// Sends all requests and returns the refused ones by their index in the batch. An error means that the fate of
    /// the requests is unknown.
    pub fn send_batch(&mut self, batch: &mut Batch) -> Result<Vec<(usize, Refusal)>, NlError> {
        let mut refused = Vec::new();
        let mut first = 0;
        while first < batch.len() {
            let start = batch.starts[first];
            let mut last = first;
            while last + 1 < batch.len()
                && last + 1 - first < BATCH_MESSAGES
                && batch.end(last + 1) - start <= BATCH_BYTES
            {
                last += 1;
            }
            self.send_chunk(batch, first, last, &mut refused)?;
            first = last + 1;
        }
        Ok(refused)
    }

    /// Sends all requests in one `sendmsg`, as an nfnetlink transaction needs; otherwise as [`Socket::send_batch`].
    pub fn send_whole(&mut self, batch: &mut Batch) -> Result<Vec<(usize, Refusal)>, NlError> {
        let mut refused = Vec::new();
        if !batch.is_empty() {
            let last = batch.len() - 1;
            self.send_chunk(batch, 0, last, &mut refused)?;
        }
        Ok(refused)
    }

    fn send_chunk(
        &mut self,
        batch: &mut Batch,
        first: usize,
        last: usize,
        refused: &mut Vec<(usize, Refusal)>,
    ) -> Result<(), NlError> {
        let base = self.sequence;
        let count = (last - first + 1) as u32;
        self.sequence = self.sequence.wrapping_add(count);
        for (offset, index) in (first..=last).enumerate() {
            let at = batch.starts[index] + 8;
            batch.bytes[at..at + 4].copy_from_slice(&base.wrapping_add(offset as u32).to_ne_bytes());
        }
        let bytes = &batch.bytes[batch.starts[first]..batch.end(last)];
        self.inner.send_to(bytes, &SocketAddr::new(0, 0), 0).map_err(NlError::Socket)?;
        while self.receive(libc::MSG_DONTWAIT)? {
            for message in Messages(&self.buffer) {
                let message = message?;
                let offset = message.sequence.wrapping_sub(base);
                if message.message_type == NLMSG_ERROR
                    && offset < count
                    && let Some(refusal) = parse_error(&message)?
                {
                    refused.push((first + offset as usize, refusal));
                }
            }
        }
        Ok(())
    }

    /// Hands every notification that waits on a socket that joined multicast groups to `each`; never blocks.
    /// [`NlError::Socket`] with `ENOBUFS` says that some were lost.
    pub fn drain_events(&mut self, mut each: impl FnMut(u16, &[u8])) -> Result<(), NlError> {
        while self.receive(libc::MSG_DONTWAIT)? {
            for message in Messages(&self.buffer) {
                let message = message?;
                each(message.message_type, message.payload);
            }
        }
        Ok(())
    }

    /// Sends one request that is answered by data, and hands each answer's type and payload to `each`.
    pub fn request(
        &mut self,
        message_type: u16,
        flags: u16,
        body: impl FnOnce(&mut Vec<u8>),
        mut each: impl FnMut(u16, &[u8]) -> Result<(), NlError>,
    ) -> Result<(), NlError> {
        let sequence = self.send_one(message_type, flags, body)?;
        while self.receive(libc::MSG_DONTWAIT)? {
            for message in Messages(&self.buffer) {
                let message = message?;
                if message.sequence != sequence {
                    continue;
                }
                if message.message_type == NLMSG_ERROR {
                    if let Some(refusal) = parse_error(&message)? {
                        return Err(NlError::Refused(refusal));
                    }
                } else {
                    each(message.message_type, message.payload)?;
                }
            }
        }
        Ok(())
    }

    /// Reads a whole table into a fresh `T`, again from the start when it changed meanwhile.
    pub fn dump<T: Default>(
        &mut self,
        message_type: u16,
        flags: u16,
        body: impl Fn(&mut Vec<u8>),
        mut each: impl FnMut(&mut T, u16, &[u8]) -> Result<(), NlError>,
    ) -> Result<T, NlError> {
        for _ in 0..DUMP_ATTEMPTS {
            let mut result = T::default();
            if self.dump_once(message_type, flags, &body, &mut |t, p| each(&mut result, t, p))? {
                return Ok(result);
            }
        }
        Err(NlError::Interrupted)
    }

    /// `Ok(false)`: interrupted by a change.
    fn dump_once(
        &mut self,
        message_type: u16,
        flags: u16,
        body: &impl Fn(&mut Vec<u8>),
        each: &mut Reader<'_>,
    ) -> Result<bool, NlError> {
        let sequence = self.send_one(message_type, flags | NLM_F_DUMP, body)?;
        let mut consistent = true;
        // After a parse error the rest of the dump must still be read, or it would answer the next request.
        let mut failure = None;
        loop {
            self.receive(0)?;
            for message in Messages(&self.buffer) {
                let message = message?;
                if message.sequence != sequence {
                    continue;
                }
                consistent &= message.flags & NLM_F_DUMP_INTR == 0;
                match message.message_type {
                    NLMSG_DONE => {
                        let code = read_i32(message.payload).unwrap_or(0);
                        if code < 0 {
                            return Err(NlError::Refused(Refusal { errno: -code, text: "".into() }));
                        }
                        return failure.map_or(Ok(consistent), Err);
                    }
                    NLMSG_ERROR => {
                        return match parse_error(&message)? {
                            Some(refusal) => Err(NlError::Refused(refusal)),
                            None => failure.map_or(Ok(consistent), Err),
                        };
                    }
                    other if failure.is_none() => failure = each(other, message.payload).err(),
                    _ => {}
                }
            }
        }
    }

    fn send_one(&mut self, message_type: u16, flags: u16, body: impl FnOnce(&mut Vec<u8>)) -> Result<u32, NlError> {
        let mut batch = Batch::new();
        batch.push(message_type, flags, body);
        let sequence = self.sequence;
        self.sequence = self.sequence.wrapping_add(1);
        batch.bytes[8..12].copy_from_slice(&sequence.to_ne_bytes());
        self.inner.send_to(&batch.bytes, &SocketAddr::new(0, 0), 0).map_err(NlError::Socket)?;
        Ok(sequence)
    }

    /// Fills the buffer with one datagram. `Ok(false)`: nothing there (only with MSG_DONTWAIT).
    fn receive(&mut self, flags: i32) -> Result<bool, NlError> {
        loop {
            self.buffer.clear();
            match self.inner.recv(&mut self.buffer, flags) {
                Ok(_) => return Ok(true),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(false),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(NlError::Socket(error)),
            }
        }
    }
}

/// Takes one message of a dump: type and payload.
type Reader<'a> = dyn FnMut(u16, &[u8]) -> Result<(), NlError> + 'a;

/// For event loops that wait until notifications can be read.
impl AsRawFd for Socket {
    fn as_raw_fd(&self) -> RawFd {
        self.inner.as_raw_fd()
    }
}

struct Message<'a> {
    message_type: u16,
    flags: u16,
    sequence: u32,
    payload: &'a [u8],
}

/// Splits a datagram into messages.
struct Messages<'a>(&'a [u8]);

impl<'a> Iterator for Messages<'a> {
    type Item = Result<Message<'a>, NlError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.0.len() < HEADER {
            return None;
        }
        let length = u32::from_ne_bytes(self.0[0..4].try_into().expect("four bytes")) as usize;
        if length < HEADER || length > self.0.len() {
            self.0 = &[];
            return Some(Err(NlError::Malformed("message length")));
        }
        let (bytes, rest) = (&self.0[..length], &self.0[attr::align(length).min(self.0.len())..]);
        self.0 = rest;
        Some(Ok(Message {
            message_type: u16::from_ne_bytes([bytes[4], bytes[5]]),
            flags: u16::from_ne_bytes([bytes[6], bytes[7]]),
            sequence: u32::from_ne_bytes([bytes[8], bytes[9], bytes[10], bytes[11]]),
            payload: &bytes[HEADER..],
        }))
    }
}

fn read_i32(bytes: &[u8]) -> Option<i32> {
    Some(i32::from_ne_bytes(bytes.get(..4)?.try_into().ok()?))
}

/// `None`: an acknowledgement.
fn parse_error(message: &Message<'_>) -> Result<Option<Refusal>, NlError> {
    let code = read_i32(message.payload).ok_or(NlError::Malformed("error message"))?;
    if code == 0 {
        return Ok(None);
    }
    let mut text = String::new();
    if message.flags & NLM_F_ACK_TLVS != 0 {
        // struct nlmsgerr: i32 error, then the request's header, and its body unless capped.
        let request = message.payload.get(4..4 + HEADER).ok_or(NlError::Malformed("error message"))?;
        let body = u32::from_ne_bytes(request[0..4].try_into().expect("four bytes")) as usize;
        let offset = if message.flags & NLM_F_CAPPED != 0 { 4 + HEADER } else { 4 + attr::align(body) };
        for (kind, value) in attr::attributes(message.payload.get(offset..).unwrap_or(&[])) {
            if kind == NLMSGERR_ATTR_MSG {
                text = attr::text(value).to_owned();
            }
        }
    }
    Ok(Some(Refusal { errno: code.wrapping_neg(), text: text.into() }))
}
