//! Putting a classifier onto a device.
//!
//! There are two ways. tcx (kernels from 6.6) ties the program to a file descriptor: it goes when the agent goes.
//! Before that a filter of the clsact qdisc is the only one; it stays until somebody deletes it. So ours has a fixed
//! handle and priority, and an older one with our program's name is removed first: a killed agent leaves no second copy.
//!
//! The qdisc itself is made if missing and never removed, because others may have their filters on it by now.

use std::{fmt, io};

use aya::{
    programs::{
        LinkOrder, ProgramError, SchedClassifier, TcAttachType, TcError,
        tc::{self, NlOptions, SchedClassifierLinkId, TcAttachOptions, TcHandle},
    },
    util::KernelVersion,
};
use kube_router_common::names::COUNT_PROGRAM;

/// Place of our clsact filter among those of others: behind those that act (Cilium uses 1), before the kernel's own
/// numbering from 49152 downwards.
pub const CLSACT_PRIORITY: u16 = 0x4b52;
/// Which of the filters of that priority it is.
pub const CLSACT_HANDLE: TcHandle = TcHandle::new(0, 1);

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Direction {
    /// From the device into the stack.
    Ingress,
    /// From the stack to the device.
    Egress,
}

impl fmt::Display for Direction {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Direction::Ingress => "ingress",
            Direction::Egress => "egress",
        })
    }
}

/// How a classifier is attached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
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

pub fn attach(
    program: &mut SchedClassifier,
    device: &str,
    direction: Direction,
    mode: AttachMode,
) -> Result<SchedClassifierLinkId, ProgramError> {
    let hook = match direction {
        Direction::Ingress => TcAttachType::Ingress,
        Direction::Egress => TcAttachType::Egress,
    };
    let options = match mode {
        AttachMode::Tcx => TcAttachOptions::TcxOrder(LinkOrder::default()),
        AttachMode::Clsact => {
            prepare_clsact(device, hook)?;
            TcAttachOptions::Netlink(NlOptions { priority: CLSACT_PRIORITY, handle: CLSACT_HANDLE, classid: None })
        }
    };
    program.attach_with_options(device, hook, options)
}

/// The qdisc is there, and no filter of ours is on it.
fn prepare_clsact(device: &str, hook: TcAttachType) -> Result<(), TcError> {
    match tc::qdisc_add_clsact(device) {
        Ok(()) => return Ok(()),
        Err(TcError::NetlinkError(error)) if error.raw_os_error() == Some(libc::EEXIST) => {}
        Err(error) => return Err(error),
    }
    match tc::qdisc_detach_program(device, hook, COUNT_PROGRAM) {
        Err(TcError::IoError(error)) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}
