//! What an order does to the kernel, as a model: the reconciler keeps its view of the kernel current with it, and the
//! in-memory kernel of the tests is made of it.
//!
//! Errors are the kernel's positive errno values.

use libc::{EEXIST, ENOENT, ESRCH};

use super::{Backend, FirewallOp, IpvsOp, NetOp, ObservedFirewall, ObservedIpvs, ObservedNet};
use crate::desired::{SetElement, Virtual};

/// The kernel as the planes report it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Observed {
    pub ipvs: ObservedIpvs,
    pub net: ObservedNet,
    pub firewall: ObservedFirewall,
}

impl ObservedIpvs {
    /// Carries out one order (net/netfilter/ipvs/ip_vs_ctl.c).
    pub fn carry_out(&mut self, op: &IpvsOp) -> Result<(), i32> {
        match op {
            IpvsOp::AddServer { key, server } => {
                if self.servers.contains_key(key) {
                    return Err(EEXIST);
                }
                self.servers.insert(*key, Virtual { destinations: Default::default(), ..server.clone() });
                self.lists.insert(*key, Default::default());
            }
            IpvsOp::EditServer { key, server } => {
                let known = self.servers.get_mut(key).ok_or(ESRCH)?;
                known.scheduler = server.scheduler;
                known.sched_flags = server.sched_flags;
                known.persistence_s = server.persistence_s;
            }
            IpvsOp::DeleteServer { key } => {
                self.servers.remove(key).ok_or(ESRCH)?;
                self.lists.remove(key);
            }
            IpvsOp::DeleteMarkServer { mark, ipv6 } => {
                if !self.marks.remove(&(*mark, *ipv6)) {
                    return Err(ESRCH);
                }
            }
            IpvsOp::AddDestination { key, destination, weight } => {
                let known = self.servers.get_mut(key).ok_or(ESRCH)?;
                if known.destinations.contains_key(destination) {
                    return Err(EEXIST);
                }
                known.destinations.insert(*destination, *weight);
                self.lists.entry(*key).or_default().add(*destination, *weight);
            }
            IpvsOp::EditDestination { key, destination, weight } => {
                let known = self.servers.get_mut(key).ok_or(ESRCH)?;
                *known.destinations.get_mut(destination).ok_or(ENOENT)? = *weight;
                self.lists.entry(*key).or_default().edit(*destination, *weight);
            }
            IpvsOp::DeleteDestination { key, destination } => {
                let known = self.servers.get_mut(key).ok_or(ESRCH)?;
                known.destinations.remove(destination).ok_or(ENOENT)?;
                self.lists.entry(*key).or_default().delete(*destination);
            }
        }
        Ok(())
    }
}

impl ObservedNet {
    /// Carries out one order; all of them are idempotent.
    pub fn carry_out(&mut self, op: &NetOp) -> Result<(), i32> {
        match op {
            NetOp::EnsureDummy => {
                self.dummy_exists = true;
                self.dummy_up = true;
            }
            NetOp::AddAddress(_) | NetOp::SetLocalRoute { .. } if !self.dummy_up => return Err(libc::ENODEV),
            NetOp::AddAddress(address) => {
                if self.dummy_addresses.insert(*address) {
                    // The kernel makes a local route of its own, with the address as source.
                    self.local_routes.insert(*address, Some(*address));
                }
            }
            NetOp::DeleteAddress(address) => {
                self.dummy_addresses.remove(address);
                if self.local_routes.get(address) == Some(&Some(*address)) {
                    self.local_routes.remove(address);
                }
            }
            NetOp::SetLocalRoute { vip, source } => {
                if source.is_some() {
                    self.local_routes.insert(*vip, *source);
                }
            }
            NetOp::DeleteLocalRoute { vip } => {
                self.local_routes.remove(vip);
            }
            NetOp::DeleteDummy => {
                self.dummy_exists = false;
                self.dummy_up = false;
                self.dummy_addresses.clear();
                self.local_routes.clear();
            }
        }
        Ok(())
    }
}

impl ObservedFirewall {
    /// Carries out one order; elements need their set, which comes with the ruleset (nftables) or on its own (ipset).
    pub fn carry_out(&mut self, op: &FirewallOp) -> Result<(), i32> {
        match op {
            FirewallOp::SetRuleset(ruleset) => {
                self.ruleset = Some(ruleset.clone());
                self.tables_exist = true;
            }
            FirewallOp::EnsureIpsets => {
                self.ipsets_exist = true;
                self.ipsets_any = true;
            }
            FirewallOp::AddElement(backend, element) => {
                self.elements_mut(*backend)?.insert(*element);
            }
            FirewallOp::DeleteElement(backend, element) => {
                if let Ok(elements) = self.elements_mut(*backend) {
                    elements.remove(element);
                }
            }
            FirewallOp::DeleteAll => *self = ObservedFirewall::default(),
        }
        Ok(())
    }

    fn elements_mut(&mut self, backend: Backend) -> Result<&mut std::collections::BTreeSet<SetElement>, i32> {
        match backend {
            Backend::Nft if self.tables_exist => Ok(&mut self.nft),
            Backend::Ipset if self.ipsets_exist => Ok(&mut self.ipset),
            _ => Err(ENOENT),
        }
    }
}
