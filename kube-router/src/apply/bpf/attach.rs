//! Putting classifiers onto devices, and replacing them without a moment in which there is none.
//!
//! There are two ways. tcx (kernels from 6.6) has links: ours are pinned, so they outlive the agent, and another program
//! takes the place of the old one by an update of the link. Before that a filter of the clsact qdisc is the only one:
//! ours has a fixed handle and priority, and a filter with the same handle takes the place of the old one. Detaching and
//! attaching anew would let packets through unjudged (22 of 100 under a flood).
//!
//! The qdisc itself is made if missing and never removed, because others may have their filters on it by now.

use std::{
    fmt, fs, io,
    os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd},
    path::Path,
};

use aya::util::KernelVersion;
use kube_router_common::hooks::Hook;
use netlink_sys::protocols::NETLINK_ROUTE;

use super::syscall;
use crate::nl::{Batch, NLM_F_CREATE, NLM_F_EXCL, NlError, Socket, attr};

/// Place of our clsact filter among those of others: behind those that act (Cilium uses 1), before the kernel's own
/// numbering from 49152 downwards.
pub const CLSACT_PRIORITY: u16 = 0x4b52;
/// Which of the filters of that priority it is.
pub const CLSACT_HANDLE: u32 = 1;

/// linux/rtnetlink.h, linux/pkt_sched.h, linux/pkt_cls.h
const RTM_NEWQDISC: u16 = 36;
const RTM_NEWTFILTER: u16 = 44;
const RTM_DELTFILTER: u16 = 45;
pub(in crate::apply) const RTM_GETTFILTER: u16 = 46;
const TC_H_CLSACT: u32 = 0xffff_fff1;
pub(in crate::apply) const TC_H_INGRESS: u32 = 0xffff_fff2;
pub(in crate::apply) const TC_H_EGRESS: u32 = 0xffff_fff3;
const CLSACT_QDISC: u32 = 0xffff_0000;
pub(in crate::apply) const TCA_KIND: u16 = 1;
const TCA_OPTIONS: u16 = 2;
const TCA_BPF_FD: u16 = 6;
const TCA_BPF_NAME: u16 = 7;
const TCA_BPF_FLAGS: u16 = 8;
const TCA_BPF_ID: u16 = 11;
const TCA_BPF_FLAG_ACT_DIRECT: u32 = 1;
const ETH_P_ALL: u16 = 3;
/// `struct tcmsg`
pub(in crate::apply) const TCMSG: usize = 20;

/// How a classifier is attached.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum AttachMode {
    Tcx,
    Clsact,
}

impl AttachMode {
    /// The best one that the running kernel has. A kernel whose version cannot be told counts as old.
    pub fn of_kernel() -> Self {
        match KernelVersion::current() {
            Ok(version) if version >= KernelVersion::new(6, 6, 0) => AttachMode::Tcx,
            _ => AttachMode::Clsact,
        }
    }
}

impl fmt::Display for AttachMode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            AttachMode::Tcx => "tcx",
            AttachMode::Clsact => "clsact",
        })
    }
}

/// The kernel's refusal.
#[derive(Debug, thiserror::Error)]
pub enum AttachError {
    #[error("{0}")]
    Link(#[from] io::Error),
    #[error("{0}")]
    Filter(#[from] NlError),
}

impl AttachError {
    /// Is the device gone?
    pub fn is_gone(&self) -> bool {
        let errno = match self {
            AttachError::Link(error) => error.raw_os_error(),
            AttachError::Filter(error) => error.errno(),
        };
        errno == Some(libc::ENODEV)
    }
}

/// A program at a hook.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Attached {
    pub mode: AttachMode,
    pub is_ingress: bool,
    /// The kernel's number.
    pub program: u32,
}

fn tcx_type(is_ingress: bool) -> u32 {
    if is_ingress { syscall::TCX_INGRESS } else { syscall::TCX_EGRESS }
}

fn parent(is_ingress: bool) -> u32 {
    if is_ingress { TC_H_INGRESS } else { TC_H_EGRESS }
}

/// Name of a link's pin: the interface and the side; a device has one link of ours at each.
fn link_name(ifindex: u32, hook: Hook) -> String {
    format!("{ifindex}-{}", if hook.is_tc_ingress() { "ingress" } else { "egress" })
}

/// The link of ours that is pinned for this device and side. What is pinned for a device that is gone (the kernel gave
/// its number to another one) is removed.
fn pinned_link(path: &Path, ifindex: u32) -> Result<Option<OwnedFd>, AttachError> {
    match syscall::open_pinned(path) {
        Ok(link) if syscall::link_ifindex(link.as_fd())? == ifindex => Ok(Some(link)),
        Ok(_) => {
            // Another one may have removed it just now: a pod's network plugin works beside the agent.
            let gone = fs::remove_file(path);
            gone.or_else(|error| if error.kind() == io::ErrorKind::NotFound { Ok(()) } else { Err(error) })?;
            Ok(None)
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error.into()),
    }
}

/// Makes a link and pins it. False: somebody else pinned one in between, which stays.
fn pin_new_link(program: BorrowedFd<'_>, ifindex: u32, hook: Hook, path: &Path) -> Result<bool, AttachError> {
    let link = syscall::tcx_link(program, ifindex, tcx_type(hook.is_tc_ingress()))?;
    match syscall::pin(link.as_fd(), path) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(false),
        Err(error) => Err(error.into()),
    }
}

/// Attaches, or replaces the program that is attached; with `links` (a directory in a BPF file system) the link is
/// pinned, without, it is returned and lasts as long as it is held.
pub(super) fn tcx(
    program: BorrowedFd<'_>,
    ifindex: u32,
    hook: Hook,
    links: Option<&Path>,
) -> Result<Option<OwnedFd>, AttachError> {
    let Some(path) = links.map(|links| links.join(link_name(ifindex, hook))) else {
        return Ok(Some(syscall::tcx_link(program, ifindex, tcx_type(hook.is_tc_ingress()))?));
    };
    loop {
        if let Some(link) = pinned_link(&path, ifindex)? {
            syscall::update_link(link.as_fd(), program)?;
            return Ok(None);
        }
        if pin_new_link(program, ifindex, hook, &path)? {
            return Ok(None);
        }
    }
}

/// Attaches where nothing of ours is; a link that is there keeps its program, which may be a newer one.
pub(super) fn tcx_if_missing(
    program: BorrowedFd<'_>,
    ifindex: u32,
    hook: Hook,
    links: &Path,
) -> Result<(), AttachError> {
    let path = links.join(link_name(ifindex, hook));
    if pinned_link(&path, ifindex)?.is_none() {
        pin_new_link(program, ifindex, hook, &path)?;
    }
    Ok(())
}

/// Names of pinned links whose device is gone are taken away. Returns how many.
pub(super) fn sweep_links(links: &Path) -> io::Result<usize> {
    let mut gone = 0;
    for entry in fs::read_dir(links)? {
        let path = entry?.path();
        let is_over = syscall::open_pinned(&path).and_then(|link| syscall::link_ifindex(link.as_fd()));
        if is_over.is_ok_and(|ifindex| ifindex == 0) && fs::remove_file(&path).is_ok() {
            gone += 1;
        }
    }
    Ok(gone)
}

pub(super) fn tcx_detach(ifindex: u32, hook: Hook, links: &Path) -> Result<(), AttachError> {
    match fs::remove_file(links.join(link_name(ifindex, hook))) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error.into()),
        _ => Ok(()),
    }
}

pub(in crate::apply) fn tcmsg(bytes: &mut Vec<u8>, ifindex: u32, handle: u32, parent: u32, info: u32) {
    bytes.extend_from_slice(&[0; 4]);
    for word in [ifindex, handle, parent, info] {
        bytes.extend_from_slice(&word.to_ne_bytes());
    }
}

/// Priority and protocol.
fn filter_info() -> u32 {
    u32::from(CLSACT_PRIORITY) << 16 | u32::from(ETH_P_ALL.to_be())
}

fn send(mut batch: Batch, forgiven: i32) -> Result<(), AttachError> {
    let mut socket = Socket::open(NETLINK_ROUTE)?;
    let refused = socket.send_batch(&mut batch)?;
    match refused.into_iter().find(|(_, refusal)| refusal.errno != forgiven) {
        Some((_, refusal)) => Err(NlError::Refused(refusal).into()),
        None => Ok(()),
    }
}

/// Attaches, or replaces the filter with our handle.
pub(super) fn clsact(program: BorrowedFd<'_>, ifindex: u32, hook: Hook) -> Result<(), AttachError> {
    // Without NLM_F_EXCL: the filter is made, or changed in its place.
    add_filter(program, ifindex, hook, NLM_F_CREATE)
}

/// Attaches where nothing of ours is; a filter with our handle stays as it is.
pub(super) fn clsact_if_missing(program: BorrowedFd<'_>, ifindex: u32, hook: Hook) -> Result<(), AttachError> {
    add_filter(program, ifindex, hook, NLM_F_CREATE | NLM_F_EXCL)
}

fn add_filter(program: BorrowedFd<'_>, ifindex: u32, hook: Hook, flags: u16) -> Result<(), AttachError> {
    let mut batch = Batch::new();
    batch.push(RTM_NEWQDISC, NLM_F_CREATE | NLM_F_EXCL, |bytes| {
        tcmsg(bytes, ifindex, CLSACT_QDISC, TC_H_CLSACT, 0);
        attr::put_str(bytes, TCA_KIND, "clsact");
    });
    batch.push(RTM_NEWTFILTER, flags, |bytes| {
        tcmsg(bytes, ifindex, CLSACT_HANDLE, parent(hook.is_tc_ingress()), filter_info());
        attr::put_str(bytes, TCA_KIND, "bpf");
        attr::nest(bytes, TCA_OPTIONS, |bytes| {
            attr::put_u32(bytes, TCA_BPF_FD, program.as_raw_fd() as u32);
            attr::put_str(bytes, TCA_BPF_NAME, hook.program());
            attr::put_u32(bytes, TCA_BPF_FLAGS, TCA_BPF_FLAG_ACT_DIRECT);
        });
    });
    send(batch, libc::EEXIST)
}

/// Nothing if there is no such filter.
pub(super) fn clsact_detach(ifindex: u32, hook: Hook) -> Result<(), AttachError> {
    let mut batch = Batch::new();
    batch.push(RTM_DELTFILTER, 0, |bytes| {
        tcmsg(bytes, ifindex, CLSACT_HANDLE, parent(hook.is_tc_ingress()), filter_info());
        attr::put_str(bytes, TCA_KIND, "bpf");
    });
    match send(batch, libc::ENOENT) {
        // No such qdisc.
        Err(AttachError::Filter(error)) if error.errno() == Some(libc::EINVAL) => Ok(()),
        other => other,
    }
}

/// All programs at the hooks of a device, whosever they are.
pub(super) fn attached(ifindex: u32) -> Result<Vec<Attached>, AttachError> {
    let mut all = Vec::new();
    for is_ingress in [true, false] {
        if AttachMode::of_kernel() == AttachMode::Tcx {
            let programs = syscall::tcx_programs(ifindex, tcx_type(is_ingress))?;
            all.extend(programs.into_iter().map(|program| Attached { mode: AttachMode::Tcx, is_ingress, program }));
        }
        let mut socket = Socket::open(NETLINK_ROUTE)?;
        let ids: Vec<u32> = socket.dump(
            RTM_GETTFILTER,
            0,
            |bytes| tcmsg(bytes, ifindex, 0, parent(is_ingress), 0),
            |ids: &mut Vec<u32>, _, payload| {
                let attributes = attr::attributes(payload.get(TCMSG..).unwrap_or_default());
                let options = attributes.filter(|(kind, _)| *kind == TCA_OPTIONS);
                let nested = options.flat_map(|(_, options)| attr::attributes(options));
                ids.extend(nested.filter(|(kind, _)| *kind == TCA_BPF_ID).filter_map(|(_, id)| attr::u32(id)));
                Ok(())
            },
        )?;
        all.extend(ids.into_iter().map(|program| Attached { mode: AttachMode::Clsact, is_ingress, program }));
    }
    Ok(all)
}
