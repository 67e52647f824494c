//! The BPF programs in the kernel: load, attach, replace; their tables and records.
//!
//! In: interface indices, rows, a directory to pin in. Out: rows, counters, records. The programs themselves are the
//! crate kube-router-ebpf; [`object`] is how they get into this binary, [`attach`] how they get onto a device. What the
//! rows mean is said by kube-router-common.
//!
//! With a directory everything outlives the agent: tables, programs, links. The next agent takes over the tables and
//! replaces the programs; packets are judged all the while. Without one, everything goes with the [`Dataplane`], except
//! filters of clsact. Everything belongs to the network namespace of the thread that calls.

pub(in crate::apply) mod attach;
mod balance;
mod counts;
mod object;
mod pinned;
mod plane;
mod resize;
mod retire;
mod stale;
mod syscall;
mod table;
mod tables;

use std::{
    collections::BTreeMap,
    fs, io,
    os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd},
    path::{Path, PathBuf},
};

use aya::{
    Ebpf, EbpfError, EbpfLoader,
    maps::{Map, MapData, MapError, ProgramArray, RingBuf},
    programs::{ProgramError, SchedClassifier},
};
use kube_router_common::{
    config::SCHEMA,
    event::{Event, EventHead},
    hooks::Hook,
    names,
    sizes::Sizes,
};
use zerocopy::FromBytes;

use self::object::Fit;
pub use self::{
    attach::{AttachError, AttachMode, Attached, CLSACT_HANDLE, CLSACT_PRIORITY},
    balance::BalanceMaps,
    object::is_embedded,
    pinned::{Leftovers, Pinned},
    plane::KernelPolicy,
    retire::retire,
    stale::remove_all,
    table::{Row, Table},
    tables::{Swept, Tables, now_s},
};

#[derive(Debug, thiserror::Error)]
pub enum BpfError {
    /// Nothing to load: an agent that is to enforce policy does not start.
    #[error("built without the dataplane object: run cargo xtask build-ebpf, then build again")]
    NoObject,
    /// The kernel refused the object (too old, no privilege, verifier).
    #[error("loading the dataplane object: {0}")]
    Load(#[from] EbpfError),
    #[error("loading program {program}: {source}")]
    LoadProgram { program: &'static str, source: ProgramError },
    /// The object, or what is pinned, is of another version than this agent.
    #[error("the dataplane object has no {0}, or another one")]
    Contents(&'static str),
    /// What is pinned has other rows, though it is of this version; or another size, where nobody made way for it.
    #[error("pinned map {map} is {pinned}, this agent wants {wanted}; kube-router --cleanup-config removes it")]
    Pinned { map: &'static str, pinned: String, wanted: String },
    /// Attaching or detaching; the device may be gone ([`AttachError::is_gone`]).
    #[error("interface {ifindex} {program} by {mode}: {source}")]
    Attach { ifindex: u32, program: &'static str, mode: AttachMode, source: AttachError },
    #[error("map {map}: {source}")]
    Map { map: &'static str, source: io::Error },
    #[error("{}: {source}", path.display())]
    Pin { path: PathBuf, source: io::Error },
    #[error("map {map}: {source}")]
    Aya { map: &'static str, source: MapError },
}

impl BpfError {
    /// Nothing is pinned in its place.
    pub fn is_missing(&self) -> bool {
        matches!(self, BpfError::Map { source, .. } if source.kind() == io::ErrorKind::NotFound)
    }

    /// Has the map no room for the row?
    pub fn is_full(&self) -> bool {
        matches!(self, BpfError::Map { source, .. }
            if matches!(source.raw_os_error(), Some(libc::E2BIG | libc::ENOSPC | libc::ENOMEM)))
    }
}

/// How to load.
#[derive(Clone, Debug, Default)]
pub struct Options {
    /// Directory in a BPF file system, such as [`root`]; made if missing. `None`: nothing is pinned.
    pub pins: Option<PathBuf>,
    /// Other sizes than the object's, by map.
    pub entries: BTreeMap<&'static str, u32>,
}

/// [`Options::entries`] of these sizes.
pub fn entries(sizes: &Sizes) -> BTreeMap<&'static str, u32> {
    names::MAPS.into_iter().filter_map(|map| Some((map, sizes.of(map)?))).collect()
}

/// Where this schema's maps, programs and links are pinned, below `base` (usually `/sys/fs/bpf/kube-router`).
pub fn root(base: &Path) -> PathBuf {
    base.join(format!("v{SCHEMA}"))
}

/// Subdirectory of links.
const LINKS: &str = "links";
/// Private to the programs of one object: not handed on. A packet's case is: what one program began another one ends, which
/// may be a newer agent's by then.
const UNPINNED: [&str; 1] = [names::BUCKETS];

/// The programs, loaded.
pub struct Dataplane {
    ebpf: Ebpf,
    tables: Tables,
    balance: BalanceMaps,
    pins: Option<PathBuf>,
    /// Links that nothing else holds.
    links: BTreeMap<(u32, Hook), OwnedFd>,
}

impl Dataplane {
    /// Loads the embedded object; takes over the tables that are pinned. Needs CAP_BPF, CAP_NET_ADMIN and CAP_PERFMON.
    /// Attaches nothing, and replaces nothing that is attached.
    pub fn load(options: &Options) -> Result<Self, BpfError> {
        let object = object::embedded().ok_or(BpfError::NoObject)?;
        let mut loader = EbpfLoader::new();
        for (map, entries) in &options.entries {
            loader.map_max_entries(map, *entries);
        }
        if let Some(pins) = &options.pins {
            let links = pins.join(LINKS);
            fs::create_dir_all(&links).map_err(|source| BpfError::Pin { path: links, source })?;
            if let Fit::Resized { map, pinned, wanted } = object::fit(object, pins, &options.entries)? {
                let rows = |rows: u32| format!("{rows} rows");
                return Err(BpfError::Pinned { map, pinned: rows(pinned), wanted: rows(wanted) });
            }
            for map in names::MAPS.into_iter().filter(|map| !UNPINNED.contains(map)) {
                loader.map_pin_path(map, pins.join(map));
            }
        }
        let mut ebpf = loader.load(object)?;
        for program in names::PROGRAMS {
            let loaded = classifier(&mut ebpf, program)?.load();
            loaded.map_err(|source| BpfError::LoadProgram { program, source })?;
        }
        let tables = Tables::of(|name| map_fd(&ebpf, name))?;
        let balance = BalanceMaps::of(|name| map_fd(&ebpf, name))?;
        let mut dataplane = Dataplane { ebpf, tables, balance, pins: options.pins.clone(), links: BTreeMap::new() };
        dataplane.set_tails()?;
        if let Some(pins) = &options.pins {
            for program in names::PROGRAMS {
                dataplane.pin_program(program, pins)?;
            }
        }
        Ok(dataplane)
    }

    fn set_tails(&mut self) -> Result<(), BpfError> {
        let failed = |source| BpfError::Aya { map: names::TAILS, source };
        let map = self.ebpf.take_map(names::TAILS).ok_or(BpfError::Contents(names::TAILS))?;
        let mut tails = ProgramArray::try_from(map).map_err(failed)?;
        for (place, program) in names::TAIL_PROGRAMS {
            let load = |source| BpfError::LoadProgram { program, source };
            let fd = classifier(&mut self.ebpf, program)?.fd().map_err(load)?;
            tails.set(place, fd, 0).map_err(failed)?;
        }
        // The array forgets its programs when nobody has it open or pinned; the kernel keeps it for the programs only.
        if self.pins.is_none() {
            std::mem::forget(tails);
        }
        Ok(())
    }

    /// Pins a program in the place of an older one, at once.
    fn pin_program(&mut self, program: &'static str, pins: &Path) -> Result<(), BpfError> {
        let path = pins.join(program);
        let new = pins.join(format!("{program}_new"));
        let failed = |source| BpfError::Pin { path: path.clone(), source };
        let _ = fs::remove_file(&new);
        let fd = self.program(program)?;
        syscall::pin(fd, &new).and_then(|()| fs::rename(&new, &path)).map_err(failed)
    }

    fn program(&self, program: &'static str) -> Result<BorrowedFd<'_>, BpfError> {
        let loaded: &SchedClassifier =
            self.ebpf.program(program).and_then(|loaded| loaded.try_into().ok()).ok_or(BpfError::Contents(program))?;
        Ok(loaded.fd().map_err(|source| BpfError::LoadProgram { program, source })?.as_fd())
    }

    pub fn tables(&self) -> &Tables {
        &self.tables
    }

    /// The tables of the service fast path.
    pub fn balance(&self) -> &BalanceMaps {
        &self.balance
    }

    /// For running packets through it: [`aya::programs::TestRun`].
    pub fn classifier(&self, hook: Hook) -> Result<&SchedClassifier, BpfError> {
        let loaded = self.ebpf.program(hook.program()).and_then(|loaded| loaded.try_into().ok());
        loaded.ok_or(BpfError::Contents(hook.program()))
    }

    /// The kernel's number of the program for a hook; see [`Attached`].
    pub fn program_id(&self, hook: Hook) -> Result<u32, BpfError> {
        let program = hook.program();
        let fd = self.program(program)?;
        syscall::program_id(fd).map_err(|source| BpfError::LoadProgram { program, source: source.into() })
    }

    /// Attaches the hook's program, or puts it in the place of an older one; no packet passes in between. Twice is once.
    pub fn attach(&mut self, ifindex: u32, hook: Hook, mode: AttachMode) -> Result<(), BpfError> {
        let program = hook.program();
        let failed = |source| BpfError::Attach { ifindex, program, mode, source };
        match mode {
            AttachMode::Clsact => attach::clsact(self.program(program)?, ifindex, hook).map_err(failed)?,
            AttachMode::Tcx if self.links.contains_key(&(ifindex, hook)) => return Ok(()),
            AttachMode::Tcx => {
                let links = self.pins.as_ref().map(|pins| pins.join(LINKS));
                let held = attach::tcx(self.program(program)?, ifindex, hook, links.as_deref()).map_err(failed)?;
                self.links.extend(held.map(|link| ((ifindex, hook), link)));
            }
        }
        tracing::debug!(ifindex, %mode, program, "program attached");
        Ok(())
    }

    /// Takes the program off again; nothing if it is not there.
    pub fn detach(&mut self, ifindex: u32, hook: Hook, mode: AttachMode) -> Result<(), BpfError> {
        let program = hook.program();
        let failed = |source| BpfError::Attach { ifindex, program, mode, source };
        match mode {
            AttachMode::Clsact => attach::clsact_detach(ifindex, hook).map_err(failed)?,
            AttachMode::Tcx => {
                self.links.remove(&(ifindex, hook));
                if let Some(pins) = &self.pins {
                    attach::tcx_detach(ifindex, hook, &pins.join(LINKS)).map_err(failed)?;
                }
            }
        }
        tracing::debug!(ifindex, %mode, program, "program detached");
        Ok(())
    }

    /// The records, once: who takes them reads them all.
    pub fn take_events(&mut self) -> Result<Events, BpfError> {
        let map = self.ebpf.take_map(names::EVENTS).ok_or(BpfError::Contents(names::EVENTS))?;
        Events::of(map)
    }
}

/// All programs at both hooks of a device, whosever they are, in the order in which they run.
pub fn attached(ifindex: u32) -> Result<Vec<Attached>, AttachError> {
    attach::attached(ifindex)
}

fn classifier<'a>(ebpf: &'a mut Ebpf, program: &'static str) -> Result<&'a mut SchedClassifier, BpfError> {
    let found = ebpf.program_mut(program).ok_or(BpfError::Contents(program))?;
    found.try_into().map_err(|_| BpfError::Contents(program))
}

fn map_fd(ebpf: &Ebpf, name: &'static str) -> Result<OwnedFd, BpfError> {
    let map = ebpf.map(name).ok_or(BpfError::Contents(name))?;
    let data: &MapData = match map {
        Map::Array(data)
        | Map::HashMap(data)
        | Map::LruHashMap(data)
        | Map::LpmTrie(data)
        | Map::PerCpuHashMap(data)
        | Map::PerCpuArray(data) => data,
        _ => return Err(BpfError::Contents(name)),
    };
    data.fd().as_fd().try_clone_to_owned().map_err(|source| BpfError::Map { map: name, source })
}

/// Records of the programs.
pub struct Events {
    ring: RingBuf<MapData>,
}

impl Events {
    fn of(map: Map) -> Result<Self, BpfError> {
        let ring = RingBuf::try_from(map).map_err(|source| BpfError::Aya { map: names::EVENTS, source })?;
        Ok(Events { ring })
    }

    /// The records that are pinned in `root`. A ring has one reader: each record goes to one of several.
    pub fn open(root: &Path) -> Result<Self, BpfError> {
        let data = MapData::from_pin(root.join(names::EVENTS));
        let map = data.and_then(Map::from_map_data).map_err(|source| BpfError::Aya { map: names::EVENTS, source })?;
        Events::of(map)
    }
}

/// The records that wait; never blocks, and goes on after `None`. What is no record of this version is left out.
impl Iterator for Events {
    type Item = (EventHead, Vec<u8>);

    fn next(&mut self) -> Option<Self::Item> {
        while let Some(item) = self.ring.next() {
            if let Ok(event) = Event::read_from_bytes(&item) {
                let captured = usize::from(event.head.captured).min(event.packet.len());
                return Some((event.head, event.packet[..captured].to_vec()));
            }
        }
        None
    }
}

impl AsRawFd for Events {
    /// Readable when records wait.
    fn as_raw_fd(&self) -> RawFd {
        self.ring.as_raw_fd()
    }
}

#[cfg(all(test, not(kube_router_bpf_object)))]
mod tests {
    use super::*;

    #[test]
    fn without_an_object_the_error_says_what_to_do() {
        assert!(!is_embedded());
        let error = Dataplane::load(&Options::default()).map(|_| ()).expect_err("nothing to load");
        assert!(matches!(error, BpfError::NoObject));
        assert!(error.to_string().contains("cargo xtask build-ebpf"));
    }
}
