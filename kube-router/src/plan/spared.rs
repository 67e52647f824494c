//! What a plan leaves alone although nobody wants it.
//!
//! After a restart the kernel holds what an earlier run made. If an object cannot be understood, and this process never
//! understood it, some of that may be what the object wants. So what nobody wanted at the first look stays while there
//! are such objects. Whatever somebody was seen to want since is told apart from it, and comes and goes as ever.

use std::{collections::BTreeSet, net::IpAddr};

use super::Observed;
use crate::{
    desired::{Desired, Destination, SetElement, VirtualKey},
    objects::ObjectKey,
};

#[derive(Debug, Default)]
pub struct Spared {
    servers: BTreeSet<VirtualKey>,
    destinations: BTreeSet<(VirtualKey, Destination)>,
    addresses: BTreeSet<IpAddr>,
    elements: BTreeSet<SetElement>,
    /// The rules stay as they are: what they follow from, our Node, is not understood.
    pub ruleset: bool,
}

impl Spared {
    /// Everything in the kernel that nobody wants; of the destinations of a service only if `lacks_endpoints`.
    pub fn unwanted(desired: &Desired, observed: &Observed, lacks_endpoints: impl Fn(&ObjectKey) -> bool) -> Self {
        let mut spared = Spared::default();
        for (key, there) in &observed.ipvs.servers {
            let destinations = there.destinations.keys().map(|destination| (*key, *destination));
            match desired.table.server(key) {
                None => drop(spared.servers.insert(*key)),
                Some((owner, _)) if lacks_endpoints(owner) => spared.destinations.extend(destinations),
                Some(_) => {}
            }
        }
        spared.addresses.extend(&observed.net.dummy_addresses);
        spared.addresses.extend(observed.net.local_routes.keys());
        spared.elements.extend(observed.firewall.nft.iter().chain(&observed.firewall.ipset));
        spared.forget_wanted(desired);
        spared
    }

    /// What somebody wants by now is nobody's secret any more.
    pub fn forget_wanted(&mut self, desired: &Desired) {
        self.servers.retain(|key| desired.table.server(key).is_none());
        self.destinations.retain(|(key, destination)| {
            let server = desired.table.server(key);
            server.is_none_or(|(_, frontend)| !frontend.server.destinations.contains_key(destination))
        });
        self.addresses.retain(|address| !desired.table.wants_vip(address));
        // The host's own addresses come from the kernel, not from objects.
        self.elements.retain(|e| !desired.wants_element(e) && !matches!(e, SetElement::LocalIp(_)));
    }

    pub fn is_empty(&self) -> bool {
        let Spared { servers, destinations, addresses, elements, ruleset } = self;
        servers.is_empty() && destinations.is_empty() && addresses.is_empty() && elements.is_empty() && !ruleset
    }

    pub fn server(&self, key: &VirtualKey) -> bool {
        self.servers.contains(key)
    }

    pub fn destination(&self, key: &VirtualKey, destination: &Destination) -> bool {
        self.destinations.contains(&(*key, *destination))
    }

    pub fn address(&self, address: &IpAddr) -> bool {
        self.addresses.contains(address)
    }

    pub fn element(&self, element: &SetElement) -> bool {
        self.elements.contains(element)
    }
}
