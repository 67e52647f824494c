//! A map as a table of typed rows: read all of it, write and delete many rows with few calls.
//!
//! Rows are plain data of kube-router-common. Batches save half of the time of single calls; a kind of map without them
//! (some kernels' tries, for one) is served row by row.

use std::{
    collections::BTreeMap,
    io,
    marker::PhantomData,
    os::fd::{AsFd, OwnedFd},
    path::Path,
};

use kube_router_common::Traffic;
use zerocopy::{FromBytes, Immutable, IntoBytes};

use super::{
    BpfError,
    syscall::{self, Shape},
};

/// Rows of one call. 4,096 rows of 68 bytes each way are 278 KiB.
const BATCH: usize = 4_096;

pub trait Row: FromBytes + IntoBytes + Immutable + Copy {}
impl<T: FromBytes + IntoBytes + Immutable + Copy> Row for T {}

pub struct Table<K, V> {
    name: &'static str,
    fd: OwnedFd,
    shape: Shape,
    max_entries: u32,
    rows: PhantomData<fn() -> (K, V)>,
}

impl<K: Row, V: Row> Table<K, V> {
    /// The sizes of the rows must be the map's.
    pub(super) fn new(name: &'static str, fd: OwnedFd) -> Result<Self, BpfError> {
        let shape = Shape { key: size_of::<K>(), value: size_of::<V>() };
        Table::with_shape(name, fd, shape)
    }

    fn with_shape(name: &'static str, fd: OwnedFd, shape: Shape) -> Result<Self, BpfError> {
        let info = syscall::map_info(fd.as_fd()).map_err(|source| BpfError::Map { map: name, source })?;
        if (info.key_size, info.value_size) != (size_of::<K>() as u32, size_of::<V>() as u32) {
            return Err(BpfError::Contents(name));
        }
        Ok(Table { name, fd, shape, max_entries: info.max_entries, rows: PhantomData })
    }

    pub(super) fn open(name: &'static str, root: &Path) -> Result<Self, BpfError> {
        let fd = syscall::open_pinned(&root.join(name)).map_err(|source| BpfError::Map { map: name, source })?;
        Table::new(name, fd)
    }

    fn failed(&self) -> impl Fn(io::Error) -> BpfError + use<K, V> {
        let map = self.name;
        move |source| BpfError::Map { map, source }
    }

    pub fn name(&self) -> &'static str {
        self.name
    }

    /// Rows that fit.
    pub fn max_entries(&self) -> u32 {
        self.max_entries
    }

    pub fn get(&self, key: &K) -> Result<Option<V>, BpfError> {
        let mut bytes = vec![0; self.shape.value];
        let found = syscall::lookup(self.fd.as_fd(), key.as_bytes(), &mut bytes, self.shape).map_err(self.failed())?;
        Ok(if found { V::read_from_prefix(&bytes).ok().map(|(value, _)| value) } else { None })
    }

    /// Adds or replaces one row; each is replaced at once.
    pub fn put(&self, key: &K, value: &V) -> Result<(), BpfError> {
        syscall::update(self.fd.as_fd(), key.as_bytes(), value.as_bytes(), self.shape).map_err(self.failed())
    }

    /// Adds one row. False: there is one with this key, and it stays.
    pub fn insert(&self, key: &K, value: &V) -> Result<bool, BpfError> {
        syscall::insert(self.fd.as_fd(), key.as_bytes(), value.as_bytes(), self.shape).map_err(self.failed())
    }

    /// Adds or replaces rows in their order. On an error ([`BpfError::is_full`] for no room) the first ones are written.
    pub fn put_all(&self, rows: &[(K, V)]) -> Result<(), BpfError> {
        for part in rows.chunks(BATCH) {
            let keys: Vec<u8> = part.iter().flat_map(|(key, _)| key.as_bytes()).copied().collect();
            let values: Vec<u8> = part.iter().flat_map(|(_, value)| value.as_bytes()).copied().collect();
            match syscall::update_batch(self.fd.as_fd(), &keys, &values, self.shape) {
                Ok(()) => {}
                Err((done, error)) if syscall::is_unsupported(&error) => {
                    for (key, value) in &part[done..] {
                        self.put(key, value)?;
                    }
                }
                Err((_, error)) => return Err(self.failed()(error)),
            }
        }
        Ok(())
    }

    /// False: it was not there.
    pub fn delete(&self, key: &K) -> Result<bool, BpfError> {
        syscall::delete(self.fd.as_fd(), key.as_bytes(), self.shape).map_err(self.failed())
    }

    /// Deletes rows; missing ones do not matter. Returns how many were there.
    pub fn delete_all(&self, keys: &[K]) -> Result<usize, BpfError> {
        let mut gone = 0;
        let mut rest = keys;
        while !rest.is_empty() {
            let part = &rest[..rest.len().min(BATCH)];
            let bytes: Vec<u8> = part.iter().flat_map(|key| key.as_bytes()).copied().collect();
            let done = match syscall::delete_batch(self.fd.as_fd(), &bytes, self.shape) {
                Ok(()) => part.len(),
                Err((done, error)) if error.raw_os_error() == Some(libc::ENOENT) => {
                    gone += done;
                    rest = &rest[(done + 1).min(rest.len())..];
                    continue;
                }
                Err((done, error)) if syscall::is_unsupported(&error) => {
                    gone += done;
                    for key in &part[done..] {
                        gone += usize::from(self.delete(key)?);
                    }
                    rest = &rest[part.len()..];
                    continue;
                }
                Err((_, error)) => return Err(self.failed()(error)),
            };
            gone += done;
            rest = &rest[done..];
        }
        Ok(gone)
    }

    /// All rows. Rows that come or go meanwhile may be missing, as in any walk of a live hash table.
    pub fn read_all(&self) -> Result<Vec<(K, V)>, BpfError> {
        let mut rows = Vec::new();
        self.each(|key, value| {
            if let Ok((value, _)) = V::read_from_prefix(value) {
                rows.push((key, value));
            }
        })?;
        Ok(rows)
    }

    fn each(&self, mut row: impl FnMut(K, &[u8])) -> Result<(), BpfError> {
        self.each_while(|key, value| {
            row(key, value);
            true
        })
    }

    /// Row by row, until one says false.
    fn each_while(&self, mut row: impl FnMut(K, &[u8]) -> bool) -> Result<(), BpfError> {
        let mut room = BATCH.min(self.max_entries.max(1) as usize);
        let (mut from, mut to) = (None, [0; 64]);
        let (mut keys, mut values) = (vec![0; room * self.shape.key], vec![0; room * self.shape.value]);
        loop {
            let read =
                syscall::lookup_batch(self.fd.as_fd(), from.as_ref(), &mut to, &mut keys, &mut values, self.shape);
            match read {
                Ok((count, last)) => {
                    let pairs = keys.chunks(self.shape.key).zip(values.chunks(self.shape.value));
                    for (key, value) in pairs.take(count) {
                        if let Ok(key) = K::read_from_bytes(key)
                            && !row(key, value)
                        {
                            return Ok(());
                        }
                    }
                    if last {
                        return Ok(());
                    }
                    from = Some(to);
                }
                Err(error) if error.raw_os_error() == Some(libc::ENOSPC) => {
                    room *= 2;
                    keys.resize(room * self.shape.key, 0);
                    values.resize(room * self.shape.value, 0);
                }
                Err(error) if from.is_none() && syscall::is_unsupported(&error) => return self.each_single(row),
                Err(error) => return Err(self.failed()(error)),
            }
        }
    }

    fn each_single(&self, mut row: impl FnMut(K, &[u8]) -> bool) -> Result<(), BpfError> {
        let mut key: Option<Vec<u8>> = None;
        let mut next = vec![0; self.shape.key];
        let mut value = vec![0; self.shape.value];
        while syscall::next_key(self.fd.as_fd(), key.as_deref(), &mut next, self.shape).map_err(self.failed())? {
            if syscall::lookup(self.fd.as_fd(), &next, &mut value, self.shape).map_err(self.failed())?
                && let Ok(key) = K::read_from_bytes(&next)
                && !row(key, &value)
            {
                return Ok(());
            }
            key = Some(next.clone());
        }
        Ok(())
    }
}

impl Table<u32, i32> {
    /// The rows of an array that count something, of the first `end`: 65,536 take some ten milliseconds.
    pub fn nonzero(&self, end: u32) -> Result<BTreeMap<u32, i32>, BpfError> {
        let mut rows = BTreeMap::new();
        self.each_while(|key, value| {
            if key < end
                && let Ok((value, _)) = i32::read_from_prefix(value)
                && value != 0
            {
                rows.insert(key, value);
            }
            key < end
        })?;
        Ok(rows)
    }
}

impl<V: Row> Table<u32, V> {
    /// The first `end` rows of an array.
    pub fn first(&self, end: u32) -> Result<Vec<(u32, V)>, BpfError> {
        let mut rows = Vec::new();
        self.each_while(|key, value| {
            if key < end
                && let Ok((value, _)) = V::read_from_prefix(value)
            {
                rows.push((key, value));
            }
            key < end
        })?;
        Ok(rows)
    }
}

impl<K: Row> Table<K, Traffic> {
    /// A map with counters for every processor.
    pub(super) fn per_cpu(name: &'static str, fd: OwnedFd) -> Result<Self, BpfError> {
        let processors = aya::util::nr_cpus().map_err(|(_, source)| BpfError::Map { map: name, source })?;
        Table::with_shape(name, fd, Shape { key: size_of::<K>(), value: size_of::<Traffic>() * processors })
    }

    pub(super) fn open_per_cpu(name: &'static str, root: &Path) -> Result<Self, BpfError> {
        let fd = syscall::open_pinned(&root.join(name)).map_err(|source| BpfError::Map { map: name, source })?;
        Table::per_cpu(name, fd)
    }

    /// All rows, added up over processors.
    pub fn sums(&self) -> Result<Vec<(K, Traffic)>, BpfError> {
        let mut rows = Vec::new();
        self.each(|key, bytes| {
            let each = bytes.chunks(size_of::<Traffic>()).filter_map(|one| Traffic::read_from_bytes(one).ok());
            rows.push((key, each.fold(Traffic::default(), Traffic::plus)));
        })?;
        Ok(rows)
    }
}
