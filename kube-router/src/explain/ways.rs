//! One question, answered: every way from here to there.
//!
//! A pod with addresses of two families has two ways; a Service has as many as it has ports and endpoints, for policies
//! judge who really answers, behind the load balancer. Without a port every port that anything tells apart is judged.
//! What the verdicts are is not decided here (`verdict.rs`).
//! A node's address and the port of a Service there have a file of their own (`node_port.rs`).

use std::{collections::BTreeSet, net::IpAddr};

use super::{
    answer::{Answer, Question, Refusal, Via, Way},
    holes::{faults, holes},
    named,
    node_port::NodePort,
    party::{self, Party},
    ports::{self, PortWish, labelled, port_label, slot_label},
    verdict::{Here, Packet, verdict},
};
use crate::{
    cluster::ClusterState,
    compile::{endpoints::Candidates, policy::model::Traffic},
    objects::{ObjectKey, Protocol, Service, ServicePort, TrafficPolicy},
};

/// Answers from what is known of the cluster.
///
/// # Errors
/// The question is about somebody or something that is not there.
pub fn answer_explain(cluster: &ClusterState, here: Here<'_>, question: &Question) -> Result<Answer, Refusal> {
    let wish = match &question.port {
        None => None,
        Some(text) => Some(PortWish::read(text).ok_or_else(|| Refusal::BadPort(text.clone()))?),
    };
    let from = party::read(cluster, &question.from)?;
    let to = party::read(cluster, &question.to)?;
    let mut answering =
        Answering { cluster, here, from: name(&from), to: name(&to), ways: Vec::new(), notes: Vec::new() };
    let sources = answering.sources(&from)?;
    match &to {
        Party::Service(key, address) => answering.ask_service(&sources, key, *address, wish.as_ref())?,
        Party::Address(ip) if let Some(front) = NodePort::find(cluster, here, *ip, wish.as_ref()) => {
            front.ask(&mut answering, &sources)?;
        }
        Party::Pod(_) | Party::Address(_) => answering.ask_addresses(&sources, &to, wish.as_ref())?,
    }
    let ends = answering.ways.iter().flat_map(|way| [&way.egress, &way.ingress]);
    let isolating: BTreeSet<String> = ends.flat_map(|end| end.isolated_by.iter().cloned()).collect();
    let faults = faults(cluster, |name| isolating.contains(name));
    faults.into_iter().chain(holes(cluster)).for_each(|note| answering.note(note));
    let Answering { from, to, ways, notes, .. } = answering;
    Ok(Answer { from, to, allowed: !ways.is_empty() && ways.iter().all(|way| way.allowed), ways, notes })
}

fn name(party: &Party) -> String {
    match party {
        Party::Pod(key) => key.to_string(),
        Party::Address(ip) => ip.to_string(),
        Party::Service(key, None) => format!("Service {key}"),
        Party::Service(key, Some(ip)) => format!("Service {key} ({ip})"),
    }
}

pub(super) struct Answering<'a> {
    pub(super) cluster: &'a ClusterState,
    here: Here<'a>,
    from: String,
    to: String,
    pub(super) ways: Vec<Way>,
    notes: Vec<String>,
}

impl Answering<'_> {
    pub(super) fn note(&mut self, text: String) {
        if !self.notes.contains(&text) {
            self.notes.push(text);
        }
    }

    fn sources(&mut self, from: &Party) -> Result<Vec<IpAddr>, Refusal> {
        match from {
            Party::Service(key, _) => Err(Refusal::FromService(key.clone())),
            Party::Pod(_) | Party::Address(_) => self.addresses(from),
        }
    }

    fn addresses(&mut self, party: &Party) -> Result<Vec<IpAddr>, Refusal> {
        let key = match party {
            Party::Address(ip) => {
                if self.cluster.pod_by_ip(*ip).is_none() {
                    self.note(format!("{ip} is no pod's: selectors never match it, only blocks of addresses do"));
                }
                return Ok(vec![*ip]);
            }
            Party::Pod(key) | Party::Service(key, _) => key,
        };
        let Some(pod) = self.cluster.pod(key).filter(|pod| !pod.completed && !pod.ips.is_empty()) else {
            return Err(Refusal::NoAddress(key.to_string()));
        };
        if pod.host_network {
            self.note(format!("{key} uses its node's network: no policy selects it, and to others it is the node"));
        }
        for ip in pod.ips.iter().filter(|_| pod.has_own_network()) {
            if let Some(other) = self.cluster.pod_by_ip(*ip).filter(|other| other.key != *key) {
                self.note(format!("{ip} is also claimed by {}, and counts as that pod's", other.key));
            }
        }
        Ok(pod.ips.iter().map(IpAddr::to_canonical).collect())
    }

    fn ask_addresses(&mut self, sources: &[IpAddr], to: &Party, wish: Option<&PortWish>) -> Result<(), Refusal> {
        let targets = self.addresses(to)?;
        for target in targets {
            let traffic = self.wanted_traffic(sources, target, wish)?;
            for source in sources.iter().filter(|source| source.is_ipv4() == target.is_ipv4()) {
                for (label, traffic) in &traffic {
                    self.way(*source, target, *traffic, label.clone(), None);
                }
            }
        }
        if self.ways.is_empty() { Err(self.no_family()) } else { Ok(()) }
    }

    pub(super) fn no_family(&self) -> Refusal {
        Refusal::NoFamily { from: self.from.clone(), to: self.to.clone() }
    }

    /// What to judge, with labels.
    fn wanted_traffic(
        &self,
        sources: &[IpAddr],
        target: IpAddr,
        wish: Option<&PortWish>,
    ) -> Result<Vec<(String, Traffic)>, Refusal> {
        let pod = self.cluster.pod_by_ip(target);
        match wish {
            Some(PortWish::Portless) => Ok(vec![("icmp".to_owned(), Traffic::Portless)]),
            Some(PortWish::Number(protocol, port)) => {
                Ok(vec![(port_label(pod, *protocol, *port), Traffic::Port(*protocol, *port))])
            }
            Some(PortWish::Name(protocol, name)) => {
                let named = pod.into_iter().flat_map(|pod| &pod.ports);
                let fits = |protocol: &Option<Protocol>, of: Protocol| protocol.is_none_or(|wanted| wanted == of);
                let found: Vec<_> = named
                    .filter(|port| *port.name == **name && fits(protocol, port.protocol))
                    .map(|port| (port_label(pod, port.protocol, port.port), Traffic::Port(port.protocol, port.port)))
                    .collect();
                if found.is_empty() {
                    let known = pod.into_iter().flat_map(|pod| &pod.ports);
                    let known = known.map(|port| port_label(pod, port.protocol, port.port)).collect();
                    return Err(Refusal::NoPort { target: self.to.clone(), port: name.to_string(), known });
                }
                Ok(found)
            }
            None => {
                let mut ranges = pod.map(|pod| named::ports_of_pod(self.cluster, pod)).unwrap_or_default();
                let senders = sources.iter().filter_map(|ip| self.cluster.pod_by_ip(*ip));
                for party in senders.chain(pod) {
                    ranges.extend(named::ports_of_policies(self.cluster, &party.key.namespace));
                }
                let slots = ports::slots(&ranges).into_iter();
                Ok(slots.map(|slot| (slot_label(pod, &slot), slot.traffic())).collect())
            }
        }
    }

    fn ask_service(
        &mut self,
        sources: &[IpAddr],
        key: &ObjectKey,
        address: Option<IpAddr>,
        wish: Option<&PortWish>,
    ) -> Result<(), Refusal> {
        let Some(service) = self.cluster.service(key) else { return Err(Refusal::NoAddress(key.to_string())) };
        let ports: Vec<&ServicePort> = service.ports.iter().filter(|port| is_asked(port, wish)).collect();
        if ports.is_empty() {
            let known = service.ports.iter().map(service_port).collect();
            let port = match wish {
                Some(PortWish::Portless) | None => "icmp".to_owned(),
                Some(PortWish::Number(protocol, port)) => format!("{protocol}/{port}"),
                Some(PortWish::Name(_, name)) => name.to_string(),
            };
            return Err(Refusal::NoPort { target: self.to.clone(), port, known });
        }
        let families: BTreeSet<bool> = match address {
            Some(ip) => BTreeSet::from([ip.is_ipv4()]),
            None if service.cluster_ips.is_empty() => BTreeSet::from([true, false]),
            None => service.cluster_ips.iter().map(IpAddr::is_ipv4).collect(),
        };
        let sources: Vec<IpAddr> = sources.iter().copied().filter(|ip| families.contains(&ip.is_ipv4())).collect();
        if sources.is_empty() {
            return Err(self.no_family());
        }
        for port in ports {
            let mut backends = 0;
            for source in &sources {
                for backend in self.backends(service, port, *source, address) {
                    backends += 1;
                    self.way_through(*source, service, port, backend);
                }
            }
            self.note_silence(backends, service, port);
        }
        Ok(())
    }

    pub(super) fn note_silence(&mut self, backends: usize, service: &Service, port: &ServicePort) {
        if backends == 0 {
            let (port, key) = (service_port(port), &service.key);
            self.note(format!("nothing answers behind port {port} of {key}: no endpoint is ready"));
        }
    }

    pub(super) fn way_through(
        &mut self,
        source: IpAddr,
        service: &Service,
        port: &ServicePort,
        backend: (IpAddr, u16),
    ) {
        let label = port_label(self.cluster.pod_by_ip(backend.0), port.protocol, backend.1);
        let via = Via { service: service.key.clone(), port: service_port(port) };
        self.way(source, backend.0, Traffic::Port(port.protocol, backend.1), label, Some(via));
    }

    fn backends(
        &self,
        service: &Service,
        port: &ServicePort,
        source: IpAddr,
        address: Option<IpAddr>,
    ) -> Vec<(IpAddr, u16)> {
        // Who asks from outside arrives at some node: all endpoints are possible.
        let node = self.cluster.pod_by_ip(source).and_then(|pod| pod.node.as_deref());
        let inside = address.is_none_or(|ip| service.cluster_ips.contains(&ip));
        let policy = if inside { service.internal_traffic_policy } else { service.external_traffic_policy };
        let slices = self.cluster.slices_of(&service.key);
        let candidates = Candidates::collect(slices, &port.name, port.protocol, self.cluster.place(node));
        let local_only = policy == TrafficPolicy::Local && node.is_some();
        candidates.choose(source, local_only).into_iter().map(|to| (to.ip().to_canonical(), to.port())).collect()
    }

    pub(super) fn way(&mut self, from: IpAddr, to: IpAddr, traffic: Traffic, label: String, via: Option<Via>) {
        let packet = Packet { from, to, traffic };
        self.ways.push(verdict(self.cluster, self.here, packet, label, via));
    }
}

fn is_asked(port: &ServicePort, wish: Option<&PortWish>) -> bool {
    match wish {
        None => true,
        Some(PortWish::Number(protocol, number)) => (port.protocol, port.port) == (*protocol, *number),
        Some(PortWish::Name(protocol, name)) => {
            port.name == *name && protocol.is_none_or(|protocol| protocol == port.protocol)
        }
        Some(PortWish::Portless) => false,
    }
}

fn service_port(port: &ServicePort) -> String {
    labelled(&format!("{}/{}", port.protocol, port.port), Some(&port.name))
}
