//! Which endpoints a service port sends traffic to.
//!
//! Ready first; endpoints that are terminating but still serve only where no ready one is left (Kubernetes' rule for
//! terminating endpoints; the original keeps them at full weight). The rule is applied after the traffic policy: a
//! Local policy looks at local endpoints alone. Any other looks at those that are near first, where the slices say for
//! whom each endpoint is meant to be (`spec.trafficDistribution`, and topology-aware routing): of all ready ones of a family
//! it has to be said, or none of it counts, and so where nobody is meant for this node. As kube-proxy has it.

use std::{
    collections::BTreeMap,
    net::{IpAddr, SocketAddr},
};

use crate::objects::{AddressType, Endpoint, EndpointSlice, Place, Protocol};

/// One usable endpoint of one port.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Candidate {
    pub local: bool,
    /// On another node, as its slice says.
    pub elsewhere: bool,
    /// Serves only until it ends; used when no better one is there.
    pub terminating: bool,
    /// Of hints about nodes, and about zones.
    node_hint: Hint,
    zone_hint: Hint,
}

/// Is an endpoint meant for us?
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Hint {
    Unsaid,
    Others,
    Ours,
}

impl Hint {
    fn of(names: Option<&[Box<str>]>, ours: Option<&str>) -> Hint {
        match names {
            None | Some([]) => Hint::Unsaid,
            Some(names) if names.iter().any(|name| Some(&**name) == ours) => Hint::Ours,
            Some(_) => Hint::Others,
        }
    }
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
        place: Place<'_>,
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
                let local = endpoint.node.as_deref() == Some(place.node);
                let elsewhere = endpoint.node.is_some() && !local;
                let hints = endpoint.hints.as_deref();
                let node_hint = Hint::of(hints.map(|hints| &*hints.nodes), Some(place.node));
                let zone_hint = Hint::of(hints.map(|hints| &*hints.zones), place.zone);
                let candidate = Candidate { local, elsewhere, terminating, node_hint, zone_hint };
                // Slices may overlap for a moment while the controller moves an endpoint: the better word counts.
                found
                    .entry(SocketAddr::new(endpoint.address, port))
                    .and_modify(|known| {
                        known.local |= local;
                        known.elsewhere &= candidate.elsewhere;
                        known.terminating &= terminating;
                        known.node_hint = known.node_hint.max(node_hint);
                        known.zone_hint = known.zone_hint.max(zone_hint);
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
        let ready: Vec<(&SocketAddr, &Candidate)> =
            eligible().filter(|(_, candidate)| !candidate.terminating).collect();
        let chosen: Vec<(&SocketAddr, &Candidate)> = match ready.is_empty() {
            true => eligible().collect(),
            false if local_only => ready,
            false => near(ready),
        };
        chosen.into_iter().map(|(address, _)| *address).collect()
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

/// Those that are meant for this node, else for its zone, else all.
fn near<'a>(ready: Vec<(&'a SocketAddr, &'a Candidate)>) -> Vec<(&'a SocketAddr, &'a Candidate)> {
    let hints: [fn(&Candidate) -> Hint; 2] = [|candidate| candidate.node_hint, |candidate| candidate.zone_hint];
    for hint in hints {
        if ready.iter().all(|(_, candidate)| hint(candidate) != Hint::Unsaid)
            && ready.iter().any(|(_, candidate)| hint(candidate) == Hint::Ours)
        {
            return ready.into_iter().filter(|(_, candidate)| hint(candidate) == Hint::Ours).collect();
        }
    }
    ready
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
