//! The bpf() calls that aya has not: elements in batches, links by interface index, links that change their program.
//!
//! All unsafe code of this folder. Arguments are slices and descriptors; the layout is `union bpf_attr` of
//! include/uapi/linux/bpf.h, written field by field, so that one file serves all kernels.

#![expect(unsafe_code, reason = "system calls")]

use std::{
    ffi::CString,
    io,
    os::{
        fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd},
        unix::ffi::OsStrExt,
    },
    path::Path,
};

const MAP_LOOKUP: i32 = 1;
const MAP_UPDATE: i32 = 2;
const MAP_DELETE: i32 = 3;
const MAP_NEXT_KEY: i32 = 4;
const OBJ_PIN: i32 = 6;
const OBJ_GET: i32 = 7;
const GET_INFO: i32 = 15;
const PROG_QUERY: i32 = 16;
const MAP_LOOKUP_BATCH: i32 = 24;
const MAP_UPDATE_BATCH: i32 = 26;
const MAP_DELETE_BATCH: i32 = 27;
const LINK_CREATE: i32 = 28;
const LINK_UPDATE: i32 = 29;

/// `enum bpf_attach_type`
pub const TCX_INGRESS: u32 = 46;
pub const TCX_EGRESS: u32 = 47;

/// `BPF_NOEXIST`
const ONLY_NEW: u64 = 1;

/// The kernel's ENOTSUPP, which is no errno of user space.
const ENOTSUPP: i32 = 524;

/// `union bpf_attr`; newer kernels have more, and take what is missing for zero.
#[repr(C, align(8))]
struct Attr([u8; 72]);

impl Attr {
    fn new() -> Self {
        Attr([0; 72])
    }

    fn u32(mut self, at: usize, value: u32) -> Self {
        self.0[at..at + 4].copy_from_slice(&value.to_ne_bytes());
        self
    }

    fn u64(mut self, at: usize, value: u64) -> Self {
        self.0[at..at + 8].copy_from_slice(&value.to_ne_bytes());
        self
    }

    fn fd(self, at: usize, fd: BorrowedFd<'_>) -> Self {
        self.u32(at, fd.as_raw_fd() as u32)
    }

    fn read(&self, at: usize) -> u32 {
        u32::from_ne_bytes([self.0[at], self.0[at + 1], self.0[at + 2], self.0[at + 3]])
    }

    /// SAFETY of callers: every pointer in here is to memory of the size that the command reads or writes.
    unsafe fn call(&mut self, command: i32) -> io::Result<i32> {
        // SAFETY: the kernel reads and writes at most as many bytes of the attributes as we say there are.
        let result = unsafe { libc::syscall(libc::SYS_bpf, command, self.0.as_mut_ptr(), self.0.len()) };
        if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result as i32) }
    }

    /// SAFETY of callers: as `call`, and the command answers with a new descriptor.
    unsafe fn call_for_fd(&mut self, command: i32) -> io::Result<OwnedFd> {
        // SAFETY: promised by the caller.
        let fd = unsafe { self.call(command)? };
        // SAFETY: a descriptor that the kernel just made for us.
        Ok(unsafe { OwnedFd::from_raw_fd(fd) })
    }
}

/// Sizes of the elements of a map, as user space sees them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shape {
    pub key: usize,
    /// Of a per-CPU map: of all processors together.
    pub value: usize,
}

fn pointer(bytes: &[u8]) -> u64 {
    bytes.as_ptr() as u64
}

fn pointer_mut(bytes: &mut [u8]) -> u64 {
    bytes.as_mut_ptr() as u64
}

/// Does the map know this command? If not, elements go one by one.
pub fn is_unsupported(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EINVAL | libc::EOPNOTSUPP | ENOTSUPP))
}

/// False: there is no such element.
pub fn lookup(map: BorrowedFd<'_>, key: &[u8], value: &mut [u8], shape: Shape) -> io::Result<bool> {
    assert!(key.len() == shape.key && value.len() == shape.value);
    let mut attr = Attr::new().fd(0, map).u64(8, pointer(key)).u64(16, pointer_mut(value));
    // SAFETY: key and value have the map's sizes, which `Table` checked.
    match unsafe { attr.call(MAP_LOOKUP) } {
        Ok(_) => Ok(true),
        Err(error) if error.raw_os_error() == Some(libc::ENOENT) => Ok(false),
        Err(error) => Err(error),
    }
}

pub fn update(map: BorrowedFd<'_>, key: &[u8], value: &[u8], shape: Shape) -> io::Result<()> {
    assert!(key.len() == shape.key && value.len() == shape.value);
    let mut attr = Attr::new().fd(0, map).u64(8, pointer(key)).u64(16, pointer(value));
    // SAFETY: as in `lookup`.
    unsafe { attr.call(MAP_UPDATE).map(drop) }
}

/// False: there is such an element already, and it stays.
pub fn insert(map: BorrowedFd<'_>, key: &[u8], value: &[u8], shape: Shape) -> io::Result<bool> {
    assert!(key.len() == shape.key && value.len() == shape.value);
    let mut attr = Attr::new().fd(0, map).u64(8, pointer(key)).u64(16, pointer(value)).u64(24, ONLY_NEW);
    // SAFETY: as in `lookup`.
    match unsafe { attr.call(MAP_UPDATE) } {
        Ok(_) => Ok(true),
        Err(error) if error.raw_os_error() == Some(libc::EEXIST) => Ok(false),
        Err(error) => Err(error),
    }
}

/// False: there was no such element.
pub fn delete(map: BorrowedFd<'_>, key: &[u8], shape: Shape) -> io::Result<bool> {
    assert!(key.len() == shape.key);
    let mut attr = Attr::new().fd(0, map).u64(8, pointer(key));
    // SAFETY: as in `lookup`.
    match unsafe { attr.call(MAP_DELETE) } {
        Ok(_) => Ok(true),
        Err(error) if error.raw_os_error() == Some(libc::ENOENT) => Ok(false),
        Err(error) => Err(error),
    }
}

/// The key after `key`, or the first; false at the end.
pub fn next_key(map: BorrowedFd<'_>, key: Option<&[u8]>, next: &mut [u8], shape: Shape) -> io::Result<bool> {
    assert!(key.is_none_or(|key| key.len() == shape.key) && next.len() == shape.key);
    let mut attr = Attr::new().fd(0, map).u64(8, key.map_or(0, pointer)).u64(16, pointer_mut(next));
    // SAFETY: as in `lookup`.
    match unsafe { attr.call(MAP_NEXT_KEY) } {
        Ok(_) => Ok(true),
        Err(error) if error.raw_os_error() == Some(libc::ENOENT) => Ok(false),
        Err(error) => Err(error),
    }
}

/// Where a walk in batches stands. Large enough for the key of every map here; hash maps use 4 bytes of it.
pub type Place = [u8; 64];

/// Reads up to as many elements as fit. Returns how many, and whether these were the last. `ENOSPC`: a bucket has more
/// elements than fit.
pub fn lookup_batch(
    map: BorrowedFd<'_>,
    from: Option<&Place>,
    to: &mut Place,
    keys: &mut [u8],
    values: &mut [u8],
    shape: Shape,
) -> io::Result<(usize, bool)> {
    assert!(shape.key <= to.len());
    let room = (keys.len() / shape.key).min(values.len() / shape.value);
    let mut attr = Attr::new()
        .u64(0, from.map_or(0, |from| pointer(from)))
        .u64(8, pointer_mut(to))
        .u64(16, pointer_mut(keys))
        .u64(24, pointer_mut(values))
        .u32(32, room as u32)
        .fd(36, map);
    // SAFETY: there is room for as many keys and values as we say, and for a place of any map.
    match unsafe { attr.call(MAP_LOOKUP_BATCH) } {
        Ok(_) => Ok((attr.read(32) as usize, false)),
        Err(error) if error.raw_os_error() == Some(libc::ENOENT) => Ok((attr.read(32) as usize, true)),
        Err(error) => Err(error),
    }
}

/// Writes all; on an error, how many were written before it.
pub fn update_batch(map: BorrowedFd<'_>, keys: &[u8], values: &[u8], shape: Shape) -> Result<(), (usize, io::Error)> {
    let count = keys.len() / shape.key;
    assert!(keys.len() == count * shape.key && values.len() == count * shape.value);
    let mut attr = Attr::new().u64(16, pointer(keys)).u64(24, pointer(values)).u32(32, count as u32).fd(36, map);
    // SAFETY: there are as many keys and values as we say.
    unsafe { attr.call(MAP_UPDATE_BATCH) }.map(drop).map_err(|error| (done(&attr, count, &error), error))
}

/// As `update_batch`; it stops at a key that is not there (`ENOENT`).
pub fn delete_batch(map: BorrowedFd<'_>, keys: &[u8], shape: Shape) -> Result<(), (usize, io::Error)> {
    let count = keys.len() / shape.key;
    assert!(keys.len() == count * shape.key);
    let mut attr = Attr::new().u64(16, pointer(keys)).u32(32, count as u32).fd(36, map);
    // SAFETY: there are as many keys as we say.
    unsafe { attr.call(MAP_DELETE_BATCH) }.map(drop).map_err(|error| (done(&attr, count, &error), error))
}

/// A map without the command leaves the count as it was.
fn done(attr: &Attr, count: usize, error: &io::Error) -> usize {
    let said = attr.read(32) as usize;
    if is_unsupported(error) && said == count { 0 } else { said.min(count) }
}

fn c_path(path: &Path) -> io::Result<CString> {
    CString::new(path.as_os_str().as_bytes()).map_err(io::Error::other)
}

/// Gives a map, program or link a name in a BPF file system. `EEXIST` if it is taken.
pub fn pin(object: BorrowedFd<'_>, path: &Path) -> io::Result<()> {
    let path = c_path(path)?;
    let mut attr = Attr::new().u64(0, path.as_ptr() as u64).fd(8, object);
    // SAFETY: the path ends with a zero byte and lives until the call returns.
    unsafe { attr.call(OBJ_PIN).map(drop) }
}

pub fn open_pinned(path: &Path) -> io::Result<OwnedFd> {
    let path = c_path(path)?;
    let mut attr = Attr::new().u64(0, path.as_ptr() as u64);
    // SAFETY: as in `pin`; the command answers with a descriptor.
    unsafe { attr.call_for_fd(OBJ_GET) }
}

/// The first bytes of a `struct bpf_*_info`.
fn info(object: BorrowedFd<'_>) -> io::Result<[u8; 32]> {
    let mut bytes = [0; 32];
    let mut attr = Attr::new().fd(0, object).u32(4, bytes.len() as u32).u64(8, pointer_mut(&mut bytes));
    // SAFETY: there is room for as many bytes as we say.
    unsafe { attr.call(GET_INFO)? };
    Ok(bytes)
}

fn word(bytes: &[u8; 32], index: usize) -> u32 {
    let at = index * 4;
    u32::from_ne_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
}

/// The kernel's number of a program.
pub fn program_id(program: BorrowedFd<'_>) -> io::Result<u32> {
    info(program).map(|info| word(&info, 1))
}

/// What a map is made of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MapInfo {
    pub kind: u32,
    pub key_size: u32,
    pub value_size: u32,
    pub max_entries: u32,
    pub flags: u32,
}

pub fn map_info(map: BorrowedFd<'_>) -> io::Result<MapInfo> {
    let info = info(map)?;
    let [kind, key_size, value_size, max_entries, flags] = [0, 2, 3, 4, 5].map(|index| word(&info, index));
    Ok(MapInfo { kind, key_size, value_size, max_entries, flags })
}

/// The interface of a tcx link; 0 if the interface is gone.
pub fn link_ifindex(link: BorrowedFd<'_>) -> io::Result<u32> {
    info(link).map(|info| word(&info, 4))
}

/// Attaches behind the programs that are there. The link lives as long as somebody has it open or it is pinned.
pub fn tcx_link(program: BorrowedFd<'_>, ifindex: u32, attach_type: u32) -> io::Result<OwnedFd> {
    let mut attr = Attr::new().fd(0, program).u32(4, ifindex).u32(8, attach_type);
    // SAFETY: no pointers; the command answers with a descriptor.
    unsafe { attr.call_for_fd(LINK_CREATE) }
}

/// Puts another program in the place of the link's, at once.
pub fn update_link(link: BorrowedFd<'_>, program: BorrowedFd<'_>) -> io::Result<()> {
    let mut attr = Attr::new().fd(0, link).fd(4, program);
    // SAFETY: no pointers.
    unsafe { attr.call(LINK_UPDATE).map(drop) }
}

/// Numbers of the programs at a tcx hook, in the order in which they run (at most 64, the kernel's limit).
pub fn tcx_programs(ifindex: u32, attach_type: u32) -> io::Result<Vec<u32>> {
    let mut ids = [0_u32; 64];
    let mut attr = Attr::new().u32(0, ifindex).u32(4, attach_type).u64(16, ids.as_mut_ptr() as u64);
    attr = attr.u32(24, ids.len() as u32);
    // SAFETY: there is room for as many numbers as we say.
    unsafe { attr.call(PROG_QUERY)? };
    Ok(ids[..(attr.read(24) as usize).min(ids.len())].to_vec())
}
