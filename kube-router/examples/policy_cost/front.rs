//! A program of a few instructions that gives each packet of a test run another peer and another port, then calls the
//! program that is measured. A test run otherwise shows the same packet again and again, and all it looks up stays in the
//! processor's cache.

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

use anyhow::{Context, Result, ensure};

const MAP_CREATE: i32 = 0;
const MAP_UPDATE: i32 = 2;
const PROG_LOAD: i32 = 5;
const PROG_TEST_RUN: i32 = 10;

/// The verdict to pass (TC_ACT_UNSPEC).
pub const PASS: u32 = u32::MAX;
/// What the front says if there is nothing behind it.
const NOBODY: u32 = 99;

/// Peers have the addresses from here on; each belongs to the pod with its number modulo [`PODS`].
pub const FIRST_PEER: u32 = 0x0a80_0001;
pub const FIRST_POD: u32 = 0x0a40_0001;
pub const PODS: u32 = 64;

/// `union bpf_attr`.
struct Attr([u8; 72]);

impl Attr {
    fn new() -> Self {
        Attr([0; 72])
    }

    fn u32(mut self, at: usize, value: u32) -> Self {
        self.0[at..at + 4].copy_from_slice(&value.to_ne_bytes());
        self
    }

    fn pointer<T>(mut self, at: usize, to: &[T]) -> Self {
        self.0[at..at + 8].copy_from_slice(&(to.as_ptr() as u64).to_ne_bytes());
        self
    }

    fn read(&self, at: usize) -> u32 {
        u32::from_ne_bytes([self.0[at], self.0[at + 1], self.0[at + 2], self.0[at + 3]])
    }

    fn call(&mut self, command: i32) -> Result<i32> {
        // SAFETY: pointers in the attribute are to memory that outlives the call and is as large as it says.
        let result = unsafe { libc::syscall(libc::SYS_bpf, command, self.0.as_mut_ptr(), self.0.len()) };
        ensure!(result >= 0, "bpf({command}): {}", std::io::Error::last_os_error());
        Ok(i32::try_from(result)?)
    }

    fn call_for_fd(&mut self, command: i32) -> Result<OwnedFd> {
        let fd = self.call(command)?;
        // SAFETY: a descriptor that was just made for us.
        Ok(unsafe { OwnedFd::from_raw_fd(fd) })
    }
}

/// One instruction: code, registers, immediate.
fn instruction(code: u8, to: u8, from: u8, offset: i16, number: i32) -> u64 {
    let mut bytes = [code, from << 4 | to, 0, 0, 0, 0, 0, 0];
    bytes[2..4].copy_from_slice(&offset.to_ne_bytes());
    bytes[4..].copy_from_slice(&number.to_ne_bytes());
    u64::from_ne_bytes(bytes)
}

fn load(code: &[u64]) -> Result<OwnedFd> {
    // BPF_PROG_TYPE_SCHED_CLS
    Attr::new()
        .u32(0, 3)
        .u32(4, u32::try_from(code.len())?)
        .pointer(8, code)
        .pointer(16, b"GPL\0")
        .call_for_fd(PROG_LOAD)
}

/// A program that says yes to everything.
pub fn empty() -> Result<OwnedFd> {
    load(&[instruction(0xb7, 0, 0, 0, -1), instruction(0x95, 0, 0, 0, 0)])
}

pub struct Front {
    program: OwnedFd,
    /// Kept for the programs in it.
    _array: OwnedFd,
}

impl Front {
    /// In front of a program that judges packets from so many peers to pods.
    pub fn new(behind: BorrowedFd<'_>, peers: u32) -> Result<Front> {
        // BPF_MAP_TYPE_PROG_ARRAY with one place.
        let array = Attr::new().u32(0, 3).u32(4, 4).u32(8, 4).u32(12, 1).call_for_fd(MAP_CREATE).context("array")?;
        let (key, value) = ([0_u32], [behind.as_raw_fd()]);
        Attr::new().u32(0, array.as_raw_fd().cast_unsigned()).pointer(8, &key).pointer(16, &value).call(MAP_UPDATE)?;
        let (store, random, tail_call) = (9, 7, 12);
        let address = |from: u8, first: u32, at: i16| {
            [
                instruction(0xbf, 1, from, 0, 0),                // r1 = which
                instruction(0x07, 1, 0, 0, first.cast_signed()), // as an address
                instruction(0xdc, 1, 0, 0, 32),                  // in network order
                instruction(0x63, 10, 1, at, 0),                 // onto the stack
            ]
        };
        let put = |from: i16, at: i32, length: i32| {
            [
                instruction(0xbf, 1, 6, 0, 0),
                instruction(0xb7, 2, 0, 0, at),
                instruction(0xbf, 3, 10, 0, 0),
                instruction(0x07, 3, 0, 0, from.into()),
                instruction(0xb7, 4, 0, 0, length),
                instruction(0xb7, 5, 0, 0, 0),
                instruction(0x85, 0, 0, 0, store),
            ]
        };
        let mut code = vec![
            instruction(0xbf, 6, 1, 0, 0),                   // r6 = context
            instruction(0x85, 0, 0, 0, random),              //
            instruction(0xbf, 7, 0, 0, 0),                   //
            instruction(0x97, 7, 0, 0, peers.cast_signed()), // r7 = number of the peer
            instruction(0xbf, 8, 7, 0, 0),                   //
            instruction(0x97, 8, 0, 0, PODS.cast_signed()),  // r8 = number of the pod
            instruction(0x85, 0, 0, 0, random),              //
            instruction(0x63, 10, 0, -12, 0),                // the port
        ];
        code.extend(address(7, FIRST_PEER, -8));
        code.extend(address(8, FIRST_POD, -4));
        code.extend(put(-8, 14 + 12, 8));
        code.extend(put(-12, 14 + 20, 2));
        code.extend([
            instruction(0xbf, 1, 6, 0, 0),
            instruction(0x18, 2, 1, 0, array.as_raw_fd()),
            0,
            instruction(0xb7, 3, 0, 0, 0),
            instruction(0x85, 0, 0, 0, tail_call),
            instruction(0xb7, 0, 0, 0, NOBODY.cast_signed()),
            instruction(0x95, 0, 0, 0, 0),
        ]);
        Ok(Front { program: load(&code).context("the program in front")?, _array: array })
    }

    /// Runs the packet so many times, as if it came from or went to this interface. The last verdict, and the mean
    /// nanoseconds of a run.
    pub fn run(&self, packet: &[u8], ifindex: u32, times: u32) -> Result<(u32, u32)> {
        // `struct __sk_buff` as far as ifindex.
        let mut context = [0_u8; 44];
        context[40..].copy_from_slice(&ifindex.to_ne_bytes());
        let mut attr = Attr::new()
            .u32(0, self.program.as_fd().as_raw_fd().cast_unsigned())
            .u32(8, u32::try_from(packet.len())?)
            .pointer(16, packet)
            .u32(32, times)
            .u32(40, u32::try_from(context.len())?)
            .pointer(48, &context);
        attr.call(PROG_TEST_RUN).context("a test run")?;
        Ok((attr.read(4), attr.read(36)))
    }
}
