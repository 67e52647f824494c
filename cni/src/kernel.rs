//! The kernel's word: which interface of the node is the pod's, and whether it is guarded.
//!
//! Names in results are what other plugins once called things; they may have been renamed since, and several interfaces may
//! be listed. So the pod's end is looked up by its name inside the namespace, its peer's index leads to the node's end, and
//! that one must point back.

use std::{
    collections::BTreeSet,
    fmt,
    fs::{self, File},
    io,
    net::IpAddr,
    os::unix::fs::MetadataExt,
};

use kube_router::{
    apply::{
        bpf::{BpfError, Pinned},
        net::{
            announce::announce as announce_inside,
            pod_end::{self, PodEnd, PodEndError},
            pod_links::PodLinks,
        },
    },
    cni::protocol::{HostEnd, Namespace},
    compile::{links::Tag, policy::address_of},
};
use kube_router_common::{config::Iface, hooks::Hook};

use crate::{Code, Error, invocation::Target};

/// Both ends of a pod's veth.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Veth {
    pub namespace: Namespace,
    pub host: HostEnd,
    pub pod_end: PodEnd,
    /// That the pod's end has, whoever gave them.
    pub addresses: BTreeSet<IpAddr>,
    /// Of the node's end.
    pub alias: Option<Box<str>>,
}

/// Looks the pod's veth up. The process must be in the node's namespace, where runtimes start plugins.
pub fn look(target: &Target) -> Result<Veth, Error> {
    let path = target.netns.display();
    let name = &target.ifname;
    let unusable =
        |why: &dyn fmt::Display| Error::new(Code::Environment, format!("CNI_NETNS {path} cannot be used")).with(why);
    let namespace = File::open(&target.netns).map_err(|error| unusable(&error))?;
    let inode = namespace.metadata().map_err(|error| unusable(&error))?.ino();
    let own = fs::metadata("/proc/self/ns/net").map(|own| own.ino());
    if own.is_ok_and(|own| own == inode) {
        return Err(unusable(&"it is the node's own namespace; pods with hostNetwork need no plugin"));
    }
    let failed = |error: &dyn fmt::Display| Error::new(Code::Io, format!("{name} cannot be looked up")).with(error);
    let pod = match pod_end::read(&namespace, name) {
        Ok(Some(pod)) => pod,
        Ok(None) => {
            return Err(Error::new(Code::Interface, format!("{name} in {path} is not there, or no veth"))
                .with("put kube-router-cni behind a plugin that makes a veth (bridge, ptp); policy needs the node's end of it"));
        }
        Err(error @ PodEndError::Enter(_)) => return Err(unusable(&error)),
        Err(error) => return Err(failed(&error)),
    };
    let mut links = PodLinks::open().map_err(|error| failed(&error))?;
    let host = links.read_one(pod.peer).map_err(|error| failed(&error))?;
    // A number alone could be that of an unrelated interface, if the other end is not in this namespace.
    let host = host.filter(|host| host.peer == pod.index && host.mac == pod.mac).ok_or_else(|| {
        Error::new(Code::Interface, format!("the other end of {name} in {path} is not on this node's side"))
            .with(format!("{name} says that its peer has index {}, and that interface does not lead back", pod.peer))
    })?;
    Ok(Veth {
        namespace: Namespace { path: target.netns.to_string_lossy().into_owned(), inode },
        host: HostEnd { name: host.name.into(), ifindex: host.index },
        pod_end: pod,
        addresses: host.addresses,
        alias: host.alias,
    })
}

/// Writes at the node's end whose it is, for agents to come. `Err` says why that is not so; the pod starts all the same.
pub fn tag(veth: &Veth, tag: &Tag) -> Result<(), String> {
    let wanted = tag.alias();
    match veth.alias.as_deref() {
        Some(alias) if alias == wanted => Ok(()),
        Some(alias) if !alias.is_empty() && !Tag::is_ours(alias) => {
            Err(format!("it has an alias already: {alias:.80?}"))
        }
        _ => {
            let written = PodLinks::open().and_then(|mut links| links.set_alias(veth.host.ifindex, &wanted));
            written.map_err(|error| error.to_string())
        }
    }
}

/// Tells the pod's neighbours its hardware address: a former owner of its addresses had another.
pub fn announce(target: &Target, veth: &Veth, addresses: &BTreeSet<IpAddr>) -> io::Result<()> {
    announce_inside(&File::open(&target.netns)?, &veth.pod_end, addresses)
}

/// What is wrong with a pod's interface.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// The pinned program is not at this hook.
    Hook(Hook),
    NoRow,
    OtherMac,
    /// The row says that nothing passes yet. This one is a matter of time.
    NotPublished,
    /// No row for this address, or one that leads elsewhere.
    Address(IpAddr),
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Fault::Hook(hook) => write!(f, "{} is not attached", hook.program()),
            Fault::NoRow => f.write_str("kr_ifaces has no row for it"),
            Fault::OtherMac => f.write_str("its row in kr_ifaces is about another hardware address"),
            Fault::NotPublished => f.write_str("the pod is not published, so nothing passes"),
            Fault::Address(address) => write!(f, "kr_eps does not lead {address} to it"),
        }
    }
}

/// Compares what is pinned with what ADD promised.
pub fn faults(pinned: &Pinned, veth: &Veth, addresses: &BTreeSet<IpAddr>) -> Result<Vec<Fault>, BpfError> {
    let ifindex = veth.host.ifindex;
    let mut faults: Vec<Fault> = pinned.missing_hooks(ifindex)?.into_iter().map(Fault::Hook).collect();
    match pinned.iface(ifindex)? {
        None => faults.push(Fault::NoRow),
        Some(row) if row.mac != veth.pod_end.mac => faults.push(Fault::OtherMac),
        Some(row) if row.flags & Iface::PUBLISHED == 0 => faults.push(Fault::NotPublished),
        Some(_) => {
            for address in addresses {
                let row = pinned.endpoint(address_of(*address))?;
                if row.is_none_or(|row| row.ifindex != ifindex) {
                    faults.push(Fault::Address(*address));
                }
            }
        }
    }
    Ok(faults)
}
