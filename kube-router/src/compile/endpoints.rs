//! Which endpoints a service port sends traffic to.
//!
//! Ready first; endpoints that are terminating but still serve only where no ready one is left (Kubernetes' rule for
//! terminating endpoints; the original keeps them at full weight). The rule is applied after the traffic policy: a
//! Local policy looks at local endpoints alone.

use std::{
    collections::BTreeMap,
    net::{IpAddr, SocketAddr},
};

use crate::objects::{AddressType, Endpoint, EndpointSlice, Protocol};

/// One usable endpoint of one port.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Candidate {
    pub local: bool,
    /// On another node, as its slice says.
    pub elsewhere: bool,
    /// Serves only until it ends; used when no better one is there.
    pub terminating: bool,
}

/// The usable endpoints of one service port, both families.
#[derive(Debug, Default)]
pub struct Candidates(BTreeMap<SocketAddr, Candidate>);

impl Candidates {
    /// Collects the port's endpoints from the slices of its service.
    pub fn collect<'a>(
        slices: impl Iterator<Item = &'a EndpointSlice>,
        port_name: &str,
        protocol: Protocol,
        node: &str,
    ) -> Self {
        let mut found: BTreeMap<SocketAddr, Candidate> = BTreeMap::new();
        for slice in slices {
            if slice.headless_label || slice.address_type == AddressType::Fqdn {
                continue;
            }
            let port = slice
                .ports
                .iter()
                .find(|port| *port.name == *port_name && port.protocol == protocol)
                .and_then(|port| port.port);
            let Some(port) = port.filter(|port| *port != 0) else { continue };
            for endpoint in &slice.endpoints {
                let Some(terminating) = usable(endpoint) else { continue };
                let local = endpoint.node.as_deref() == Some(node);
                let candidate = Candidate { local, elsewhere: endpoint.node.is_some() && !local, terminating };
                // Slices may overlap for a moment while the controller moves an endpoint: the better word counts.
                found
                    .entry(SocketAddr::new(endpoint.address, port))
                    .and_modify(|known| {
                        known.local |= local;
                        known.elsewhere &= candidate.elsewhere;
                        known.terminating &= terminating;
                    })
                    .or_insert(candidate);
            }
        }
        Candidates(found)
    }

    /// The chosen destinations of one family; with `local_only` only this node's.
    pub fn choose(&self, like: IpAddr, local_only: bool) -> Vec<SocketAddr> {
        let eligible = || {
            self.0
                .iter()
                .filter(|(address, candidate)| address.is_ipv6() == like.is_ipv6() && (candidate.local || !local_only))
        };
        let ready: Vec<SocketAddr> =
            eligible().filter(|(_, candidate)| !candidate.terminating).map(|(address, _)| *address).collect();
        if ready.is_empty() { eligible().map(|(address, _)| *address).collect() } else { ready }
    }

    /// On which other node it is, somebody knows.
    pub fn is_elsewhere(&self, address: &SocketAddr) -> bool {
        self.0.get(address).is_some_and(|candidate| candidate.elsewhere)
    }

    pub fn addresses(&self) -> impl Iterator<Item = SocketAddr> {
        self.0.keys().copied()
    }

    /// Addresses of local endpoints that are not terminating, for the health-check node port.
    pub fn healthy_local(&self) -> impl Iterator<Item = IpAddr> {
        self.0.iter().filter(|(_, c)| c.local && !c.terminating).map(|(address, _)| address.ip())
    }
}

/// `None`: not usable; otherwise whether it is terminating. `ready` is true for terminating endpoints only when the
/// service publishes not-ready addresses, and then it counts as ready.
fn usable(endpoint: &Endpoint) -> Option<bool> {
    if endpoint.ready || (endpoint.serving && !endpoint.terminating) {
        Some(false)
    } else if endpoint.serving {
        Some(true)
    } else {
        None
    }
}
