//! The kernel's pinned tables, for a dump and for a walk.

use std::path::{Path, PathBuf};

use kube_router_common::policy::{Address, CLASS_WORLD, CidrKey, Peer, PodGroups, PolicyKey, PolicyRow};

use crate::{
    apply::bpf::{self, BalanceMaps, BpfError, Tables},
    explain::walk::Look,
};

#[derive(Debug, thiserror::Error)]
pub enum TablesError {
    #[error(
        "there are no tables of network policy in {}: they are made when kube-router starts with --run-firewall, or for \
         the service fast path, on this node, and stay when it ends. In a container /sys/fs/bpf must be the node's; --maps names another place",
        .0.display()
    )]
    Missing(PathBuf),
    #[error("the kernel's tables cannot be read: {0}")]
    Kernel(#[from] BpfError),
}

/// What is pinned below `maps`.
pub fn open(maps: &Path) -> Result<Tables, TablesError> {
    let root = bpf::root(maps);
    if !root.exists() {
        return Err(TablesError::Missing(root));
    }
    Ok(Tables::open(&root)?)
}

/// The same for the service fast path.
pub fn open_balance(maps: &Path) -> Result<BalanceMaps, TablesError> {
    let root = bpf::root(maps);
    if !root.exists() {
        return Err(TablesError::Missing(root));
    }
    Ok(BalanceMaps::open(&root)?)
}

pub struct Pinned(pub Tables);

impl Look for Pinned {
    type Error = BpfError;

    fn pod_at(&self, address: &Address) -> Result<Option<u32>, BpfError> {
        Ok(self.0.endpoints.get(address)?.map(|endpoint| endpoint.pod))
    }

    fn groups(&self, pod: u32) -> Result<Option<PodGroups>, BpfError> {
        self.0.pods.get(&pod)
    }

    fn peer(&self, address: &Address) -> Result<Peer, BpfError> {
        if let Some(peer) = self.0.peers.get(address)? {
            return Ok(peer);
        }
        // All bits count: the trie finds the longest prefix.
        let key = CidrKey { length: 160, family: CidrKey::family_of(address.is_v4()), address: *address };
        Ok(self.0.cidrs.get(&key)?.unwrap_or(Peer { class: CLASS_WORLD, flags: 0 }))
    }

    fn port_class(&self, index: u32) -> Result<u32, BpfError> {
        Ok(self.0.ports.get(&index)?.unwrap_or_default())
    }

    fn row(&self, key: &PolicyKey) -> Result<Option<PolicyRow>, BpfError> {
        self.0.policy.get(key)
    }
}
