//! All services' wishes together, and who wins where two want the same virtual server.
//!
//! ```text
//! ServiceState (per Service) --replace--> Table --server(key)--> the winner's Virtual
//!                                              \-> Changes: the keys that must be looked at again
//! ```
//!
//! The winner of a disputed `protocol address:port` is the older service, then the smaller name: a rule that does not
//! depend on the order of events. When it goes, the next one takes over.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    net::IpAddr,
};

use super::{Frontend, Hairpin, ServiceState, SetElement, VirtualKey};
use crate::objects::ObjectKey;

/// Keys whose desired state may have changed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Changes {
    pub servers: BTreeSet<VirtualKey>,
    pub vips: BTreeSet<IpAddr>,
    pub hairpins: BTreeSet<Hairpin>,
    /// Addresses that the node itself got or lost.
    pub local_ips: BTreeSet<IpAddr>,
    pub health_checks: bool,
}

impl Changes {
    pub fn is_empty(&self) -> bool {
        *self == Changes::default()
    }

    pub fn merge(&mut self, other: Changes) {
        self.servers.extend(other.servers);
        self.vips.extend(other.vips);
        self.hairpins.extend(other.hairpins);
        self.local_ips.extend(other.local_ips);
        self.health_checks |= other.health_checks;
    }

    /// Takes out the keys of the smallest addresses: at least one address, and no more once `most` virtual servers,
    /// addresses and hairpins are reached. The virtual servers of an address are never divided, as their orders and
    /// those of the address depend on each other. Hairpins, on which nothing depends, come along when their turn comes.
    pub fn take_addresses(&mut self, most: usize) -> Changes {
        let mut taken = Changes { health_checks: std::mem::take(&mut self.health_checks), ..Changes::default() };
        let mut count = 0;
        while count < most {
            let next = [
                self.servers.first().map(|key| key.address),
                self.vips.first().copied(),
                self.hairpins.first().map(|hairpin| hairpin.vip),
            ];
            let Some(address) = next.into_iter().flatten().min() else { break };
            count += move_while(&mut self.servers, &mut taken.servers, |key| key.address == address);
            count += move_while(&mut self.vips, &mut taken.vips, |vip| *vip == address);
            count += move_while(&mut self.hairpins, &mut taken.hairpins, |hairpin| hairpin.vip == address);
        }
        taken
    }
}

/// Moves elements from the front of one set to the other; returns how many.
fn move_while<K: Ord>(from: &mut BTreeSet<K>, to: &mut BTreeSet<K>, belongs: impl Fn(&K) -> bool) -> usize {
    let before = to.len();
    while let Some(first) = from.first()
        && belongs(first)
    {
        to.extend(from.pop_first());
    }
    to.len() - before
}

/// A virtual server that `loser` wants and `winner` has.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Dispute {
    pub key: VirtualKey,
    pub winner: ObjectKey,
    pub loser: ObjectKey,
}

/// Age, then name: the smallest wins.
type Rank = (i64, ObjectKey);

/// A [`ServiceState`] as it is kept: ordered slices instead of trees, whose smallest node has room for eleven entries
/// where nearly every service has one (a kilobyte a service).
#[derive(Debug, Default)]
struct Kept {
    created_s: i64,
    frontends: Box<[(VirtualKey, Frontend)]>,
    vips: Box<[IpAddr]>,
    hairpins: Box<[Hairpin]>,
    health_check: Option<(u16, usize)>,
}

impl From<ServiceState> for Kept {
    fn from(state: ServiceState) -> Self {
        Kept {
            created_s: state.created_s,
            frontends: state.frontends.into_iter().collect(),
            vips: state.vips.into_iter().collect(),
            hairpins: state.hairpins.into_iter().collect(),
            health_check: state.health_check,
        }
    }
}

impl Kept {
    fn frontend(&self, key: &VirtualKey) -> Option<&Frontend> {
        let at = self.frontends.binary_search_by(|(known, _)| known.cmp(key)).ok()?;
        Some(&self.frontends[at].1)
    }

    fn is(&self, state: &ServiceState) -> bool {
        self.created_s == state.created_s
            && self.health_check == state.health_check
            && self.frontends.iter().map(|(key, frontend)| (key, frontend)).eq(&state.frontends)
            && self.vips.iter().eq(&state.vips)
            && self.hairpins.iter().eq(&state.hairpins)
    }
}

#[derive(Debug, Default)]
pub struct Table {
    services: BTreeMap<ObjectKey, Kept>,
    /// Who wants a virtual server, the winner first: nearly always one, else few.
    claims: HashMap<VirtualKey, Vec<Rank>>,
    /// Number of claimed virtual servers per address.
    addresses: HashMap<IpAddr, u32>,
    /// Number of services that want the address on kube-dummy-if.
    vips: HashMap<IpAddr, u32>,
    hairpins: HashMap<Hairpin, u32>,
}

impl Table {
    pub fn new() -> Self {
        Table::default()
    }

    /// Replaces what a service wants; `None` = the service is gone. Returns what to look at again.
    pub fn replace(&mut self, key: &ObjectKey, state: Option<ServiceState>) -> Changes {
        let mut changes = Changes::default();
        match (self.services.get(key), &state) {
            (None, None) => return changes,
            (Some(known), Some(state)) if known.is(state) => return changes,
            _ => {}
        }
        let old = self.services.remove(key).unwrap_or_default();
        let gone = state.is_none();
        let new = Kept::from(state.unwrap_or_default());
        let aged = old.created_s != new.created_s;

        for (virtual_key, _) in &old.frontends {
            if aged || new.frontend(virtual_key).is_none() {
                self.release(virtual_key, &(old.created_s, key.clone()));
                changes.servers.insert(*virtual_key);
            }
        }
        for (virtual_key, frontend) in &new.frontends {
            let before = old.frontend(virtual_key);
            if aged || before.is_none() {
                self.claim(*virtual_key, (new.created_s, key.clone()));
            }
            if aged || before != Some(frontend) {
                changes.servers.insert(*virtual_key);
            }
        }
        count(&mut self.vips, missing(&old.vips, &new.vips), missing(&new.vips, &old.vips), &mut changes.vips);
        count(
            &mut self.hairpins,
            missing(&old.hairpins, &new.hairpins),
            missing(&new.hairpins, &old.hairpins),
            &mut changes.hairpins,
        );
        changes.health_checks = old.health_check != new.health_check;
        if !gone {
            self.services.insert(key.clone(), new);
        }
        changes
    }

    fn claim(&mut self, key: VirtualKey, rank: Rank) {
        let claims = self.claims.entry(key).or_default();
        if claims.is_empty() {
            *self.addresses.entry(key.address).or_default() += 1;
        }
        if let Err(at) = claims.binary_search(&rank) {
            claims.reserve_exact(1);
            claims.insert(at, rank);
        }
    }

    fn release(&mut self, key: &VirtualKey, rank: &Rank) {
        let Some(claims) = self.claims.get_mut(key) else { return };
        if let Ok(at) = claims.binary_search(rank) {
            claims.remove(at);
        }
        if claims.is_empty() {
            self.claims.remove(key);
            if let Some(n) = self.addresses.get_mut(&key.address) {
                *n -= 1;
                if *n == 0 {
                    self.addresses.remove(&key.address);
                }
            }
        }
    }

    /// The virtual server as it should be, and whose it is.
    pub fn server(&self, key: &VirtualKey) -> Option<(&ObjectKey, &Frontend)> {
        let (_, owner) = self.claims.get(key)?.first()?;
        let (owner, state) = self.services.get_key_value(owner)?;
        Some((owner, state.frontend(key)?))
    }

    /// Every virtual server, in no particular order.
    pub fn servers(&self) -> impl Iterator<Item = (&VirtualKey, &ObjectKey, &Frontend)> {
        self.claims.keys().filter_map(|key| self.server(key).map(|(owner, frontend)| (key, owner, frontend)))
    }

    pub fn wants_vip(&self, address: &IpAddr) -> bool {
        self.vips.contains_key(address)
    }

    pub fn vips(&self) -> impl Iterator<Item = &IpAddr> {
        self.vips.keys()
    }

    /// Whether a set should hold this element, for the sets whose content follows from services.
    pub fn wants_element(&self, element: &SetElement) -> bool {
        match element {
            SetElement::ServiceIp(address) => self.addresses.contains_key(address),
            SetElement::ServicePort(key) => self.claims.contains_key(key),
            SetElement::Hairpin(hairpin) => self.hairpins.contains_key(hairpin),
            SetElement::LocalIp(_) | SetElement::PodCidr(_) => false,
        }
    }

    /// Every element that follows from services.
    pub fn elements(&self) -> impl Iterator<Item = SetElement> {
        let ips = self.addresses.keys().map(|address| SetElement::ServiceIp(*address));
        let ports = self.claims.keys().map(|key| SetElement::ServicePort(*key));
        let hairpins = self.hairpins.keys().map(|hairpin| SetElement::Hairpin(*hairpin));
        ips.chain(ports).chain(hairpins)
    }

    /// Health-check node ports: port -> number of local endpoints. Of two services with one port the smaller name wins.
    pub fn health_checks(&self) -> BTreeMap<u16, usize> {
        let mut ports = BTreeMap::new();
        for (port, endpoints) in self.services.values().filter_map(|state| state.health_check) {
            ports.entry(port).or_insert(endpoints);
        }
        ports
    }

    /// Disputes over one virtual server.
    pub fn disputes(&self, key: &VirtualKey) -> Vec<Dispute> {
        let Some(claims) = self.claims.get(key) else { return Vec::new() };
        let mut ranks = claims.iter();
        let Some((_, winner)) = ranks.next() else { return Vec::new() };
        ranks.map(|(_, loser)| Dispute { key: *key, winner: winner.clone(), loser: loser.clone() }).collect()
    }

    pub fn service_count(&self) -> usize {
        self.services.len()
    }
}

/// What the ordered slice `from` has and the ordered slice `other` lacks.
fn missing<'a, K: Ord>(from: &'a [K], other: &'a [K]) -> impl Iterator<Item = &'a K> {
    from.iter().filter(|item| other.binary_search(item).is_err())
}

/// Moves reference counts and notes every key that appeared or vanished.
fn count<'a, K: Copy + Eq + std::hash::Hash + Ord + 'a>(
    counts: &mut HashMap<K, u32>,
    gone: impl Iterator<Item = &'a K>,
    come: impl Iterator<Item = &'a K>,
    changed: &mut BTreeSet<K>,
) {
    for key in come {
        *counts.entry(*key).or_default() += 1;
        changed.insert(*key);
    }
    for key in gone {
        changed.insert(*key);
        if let Some(n) = counts.get_mut(key) {
            *n -= 1;
            if *n == 0 {
                counts.remove(key);
            }
        }
    }
}
