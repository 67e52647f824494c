//! A node's address, and the port of a Service there.
//!
//! A pod of that node is judged as with any other address of the Service: at who answers in the end. A pod of another node
//! is judged there as one that sends to an address, as its node knows its own node ports only, and who answers is judged
//! behind the load balancer. So this has two ways, and neither says a word about the other's end.

use std::net::IpAddr;

use super::{
    answer::{End, Refusal},
    ports::PortWish,
    verdict::Here,
    ways::Answering,
};
use crate::{
    cluster::ClusterState,
    compile::{endpoints::Candidates, policy::model::Traffic},
    desired::policy::Direction,
    objects::{Node, Service, ServicePort, TrafficPolicy},
};

#[derive(Clone, Copy)]
pub(super) struct NodePort<'a> {
    service: &'a Service,
    port: &'a ServicePort,
    address: IpAddr,
    node: &'a str,
}

impl<'a> NodePort<'a> {
    pub fn find(cluster: &'a ClusterState, here: Here<'a>, address: IpAddr, wish: Option<&PortWish>) -> Option<Self> {
        let Some(PortWish::Number(protocol, number)) = wish else { return None };
        let of_node = |node: &&Node| node.internal_ips.iter().chain(&node.external_ips).any(|ip| *ip == address);
        let node = match cluster.nodes().find(of_node) {
            Some(node) => &*node.key.name,
            None => here.addresses.filter(|own| own.contains(&address)).map(|_| here.node)?,
        };
        cluster.services().find_map(|service| {
            let is_asked = |port: &&ServicePort| (port.protocol, port.node_port) == (*protocol, *number);
            let port = service.ports.iter().filter(|port| service.has_node_port(port)).find(is_asked)?;
            Some(NodePort { service, port, address, node })
        })
    }

    pub fn ask(&self, answering: &mut Answering<'_>, sources: &[IpAddr]) -> Result<(), Refusal> {
        let NodePort { service, port, address, node } = *self;
        let sources: Vec<IpAddr> = sources.iter().copied().filter(|ip| ip.is_ipv4() == address.is_ipv4()).collect();
        if sources.is_empty() {
            return Err(answering.no_family());
        }
        let cluster = answering.cluster;
        let number = port.node_port;
        answering.note(format!("port {number} of {address} is that of Service {} on node {node}", service.key));
        let candidates =
            Candidates::collect(cluster.slices_of(&service.key), &port.name, port.protocol, cluster.place(Some(node)));
        let backends = candidates.choose(address, service.external_traffic_policy == TrafficPolicy::Local);
        answering.note_silence(backends.len(), service, port);
        let node_of = |ip| cluster.pod_by_ip(ip).and_then(|pod| pod.node.as_deref());
        for source in sources {
            let sender = node_of(source);
            let is_elsewhere = sender.is_some_and(|sender| sender != node);
            if is_elsewhere {
                let traffic = Traffic::Port(port.protocol, number);
                answering.way(source, address, traffic, format!("{}/{number}", port.protocol), None);
            }
            for backend in &backends {
                let backend = (backend.ip().to_canonical(), backend.port());
                answering.way_through(source, service, port, backend);
                if let Some(way) = answering.ways.last_mut().filter(|_| is_elsewhere) {
                    way.egress = End::nobody(Direction::Egress);
                    way.allowed = way.ingress.state.passes();
                }
                if sender != Some(node) && node_of(backend.0) != Some(node) {
                    answering.note(format!("{node} may give its own address to what it passes on to another node"));
                }
            }
        }
        Ok(())
    }
}
