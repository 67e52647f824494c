//! What an agent left pinned, used without one: to guard a new pod's interface, to look whether one is guarded, to clean up.
//!
//! The problem: a pod starts while no agent answers. Its programs and tables are still in the kernel, so whoever makes the
//! pod's network can put them onto the interface before the first packet. Nothing is loaded and nothing is decided here:
//! the row of a new interface says that nothing passes, and only an agent replaces it.
//!
//! An agent may come to life at any moment and do the same work. So nothing that is there is overwritten: neither a row
//! for the same pod, nor a program.
//!
//! In: a directory, interface indices. Out: rows, attachments. Everything belongs to the network namespace of the thread
//! that calls, which must be the node's.

use std::{
    collections::BTreeSet,
    fs, io,
    os::fd::{AsFd, OwnedFd},
    path::{Path, PathBuf},
};

use kube_router_common::{
    config::Iface,
    hooks::Hook,
    names,
    policy::{Address, Endpoint},
};

use super::{
    AttachMode, BpfError, LINKS,
    attach::{self, AttachError},
    syscall,
    table::Table,
};

/// The hooks of a pod's interface, on the node's side.
const HOOKS: [Hook; 2] = [Hook::PodOut, Hook::PodIn];

/// The pinned programs of pods' interfaces, and the tables that say whose interface it is.
pub struct Pinned {
    links: PathBuf,
    programs: [(Hook, OwnedFd); 2],
    ifaces: Table<u32, Iface>,
    endpoints: Table<Address, Endpoint>,
}

/// What [`Pinned::sweep`] removed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Leftovers {
    pub interfaces: usize,
    pub endpoints: usize,
    pub links: usize,
}

impl Pinned {
    /// Opens what is pinned in `root` (see [`super::root`]). `None`: nothing is, no agent of this version has run since
    /// the node started. An error: some of it is there and not all of it, or it is not ours.
    pub fn open(root: &Path) -> Result<Option<Self>, BpfError> {
        let wanted = [names::POD_OUT, names::POD_IN, names::IFACES, names::ENDPOINTS];
        let is_missing = |name: &&str| matches!(fs::symlink_metadata(root.join(name)), Err(error) if is_absent(&error));
        if wanted.iter().all(is_missing) {
            return Ok(None);
        }
        let program = |hook: Hook| {
            let path = root.join(hook.program());
            syscall::open_pinned(&path).map(|fd| (hook, fd)).map_err(|source| BpfError::Pin { path, source })
        };
        Ok(Some(Pinned {
            links: root.join(LINKS),
            programs: [program(Hook::PodOut)?, program(Hook::PodIn)?],
            ifaces: Table::open(names::IFACES, root)?,
            endpoints: Table::open(names::ENDPOINTS, root)?,
        }))
    }

    /// Lets nothing pass at this interface until an agent publishes its pod: writes the row, then attaches both programs.
    /// `mac` is the pod's end. Twice is once, and what an agent has published for this very pod stays.
    pub fn guard(&self, ifindex: u32, mac: [u8; 6]) -> Result<(), BpfError> {
        self.deny(ifindex, mac)?;
        let mode = AttachMode::of_kernel();
        for (hook, program) in &self.programs {
            let failed = |source| BpfError::Attach { ifindex, program: hook.program(), mode, source };
            if self.is_attached(ifindex, *hook)? {
                continue;
            }
            match mode {
                AttachMode::Tcx => {
                    let made = fs::create_dir_all(&self.links);
                    made.map_err(|source| BpfError::Pin { path: self.links.clone(), source })?;
                    attach::tcx_if_missing(program.as_fd(), ifindex, *hook, &self.links).map_err(failed)?;
                }
                AttachMode::Clsact => attach::clsact_if_missing(program.as_fd(), ifindex, *hook).map_err(failed)?,
            }
        }
        Ok(())
    }

    fn deny(&self, ifindex: u32, mac: [u8; 6]) -> Result<(), BpfError> {
        let row = Iface { mac, flags: Iface::DEFAULT_DENY, ..Iface::default() };
        let inserted = match self.ifaces.insert(&ifindex, &row) {
            // Rows of interfaces that are gone, which nobody took away while there was no agent.
            Err(error) if error.is_full() => {
                self.sweep()?;
                self.ifaces.insert(&ifindex, &row)
            }
            other => other,
        }?;
        // The row of this pod, by an agent that is quicker; or of a pod that once had this number; or of an interface that an
        // agent saw before anybody said that it is a pod's, and then died: that one is open.
        let holds = |there: Iface| there.mac == mac && there.flags & (Iface::PUBLISHED | Iface::DEFAULT_DENY) != 0;
        if !inserted && !self.ifaces.get(&ifindex)?.is_some_and(holds) {
            self.ifaces.put(&ifindex, &row)?;
        }
        Ok(())
    }

    /// Is the pinned program at its hook, in whichever way?
    pub fn is_attached(&self, ifindex: u32, hook: Hook) -> Result<bool, BpfError> {
        let failed =
            |source| BpfError::Attach { ifindex, program: hook.program(), mode: AttachMode::of_kernel(), source };
        let mut wanted = None;
        for (one, program) in &self.programs {
            if *one == hook {
                wanted = Some(syscall::program_id(program.as_fd()).map_err(|error| failed(AttachError::Link(error)))?);
            }
        }
        let there = attach::attached(ifindex).map_err(failed)?;
        Ok(there.iter().any(|one| one.is_ingress == hook.is_tc_ingress() && Some(one.program) == wanted))
    }

    /// The hooks of a pod's interface that do not hold the pinned program.
    pub fn missing_hooks(&self, ifindex: u32) -> Result<Vec<Hook>, BpfError> {
        let mut missing = Vec::new();
        for hook in HOOKS {
            if !self.is_attached(ifindex, hook)? {
                missing.push(hook);
            }
        }
        Ok(missing)
    }

    pub fn iface(&self, ifindex: u32) -> Result<Option<Iface>, BpfError> {
        self.ifaces.get(&ifindex)
    }

    pub fn endpoint(&self, address: Address) -> Result<Option<Endpoint>, BpfError> {
        self.endpoints.get(&address)
    }

    /// Removes rows and links of interfaces that are gone. Rows are read before interfaces are, so that a row which
    /// appears meanwhile is not taken for one of these. If none of the interfaces is here, nothing is removed: the rows are
    /// about another namespace than the caller's.
    pub fn sweep(&self) -> Result<Leftovers, BpfError> {
        let rows: Vec<u32> = self.ifaces.read_all()?.into_iter().map(|(ifindex, _)| ifindex).collect();
        let endpoints = self.endpoints.read_all()?;
        let here = interfaces().map_err(|source| BpfError::Map { map: names::IFACES, source })?;
        let mut swept = Leftovers::default();
        if rows.iter().any(|ifindex| here.contains(ifindex)) {
            let gone: Vec<u32> = rows.into_iter().filter(|ifindex| !here.contains(ifindex)).collect();
            let stale = endpoints.into_iter().filter(|(_, endpoint)| gone.contains(&endpoint.ifindex));
            let stale: Vec<Address> = stale.map(|(address, _)| address).collect();
            // Endpoints first: while there is a row, its interface is known to be somebody's.
            swept.endpoints = self.endpoints.delete_all(&stale)?;
            swept.interfaces = self.ifaces.delete_all(&gone)?;
        }
        swept.links = match attach::sweep_links(&self.links) {
            Err(error) if !is_absent(&error) => {
                return Err(BpfError::Pin { path: self.links.clone(), source: error });
            }
            other => other.unwrap_or_default(),
        };
        Ok(swept)
    }
}

fn is_absent(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory)
}

/// Of the thread's network namespace.
fn interfaces() -> io::Result<BTreeSet<u32>> {
    let all = nix::net::if_::if_nameindex()?;
    Ok(all.iter().map(|interface| interface.index()).collect())
}
