//! One Service with its EndpointSlices -> the virtual servers, VIPs, hairpins and health check it wants on this node.
//!
//! | kind | virtual server | VIP on kube-dummy-if | policy that restricts endpoints |
//! |---|---|---|---|
//! | clusterIPs | VIP:port | yes | internalTrafficPolicy |
//! | nodePort | node address:nodePort | no | externalTrafficPolicy |
//! | externalIPs, LoadBalancer ingress IPs | VIP:port | yes, unless it is the node's own | externalTrafficPolicy |
//!
//! A Local policy without a local endpoint means: no virtual server. A Cluster policy without endpoints means: a
//! virtual server without destinations, which the kernel answers with port unreachable.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

use super::{
    NodeView, Problem, Subject,
    addresses::{AddressKind, possible, validate},
    endpoints::Candidates,
    scheduler,
};
use crate::{
    config::ProxyConfig,
    desired::{Frontend, Hairpin, Origin, ServiceState, Virtual, VirtualKey},
    objects::{
        EndpointSlice, Kind, Service, ServicePort, ServiceType, TrafficPolicy, annotations, annotations::Fastpath,
    },
};

/// The value of label service.kubernetes.io/service-proxy-name that means us.
const PROXY_NAME: &str = "kube-router";

/// The API server's limit of `sessionAffinityConfig.clientIP.timeoutSeconds`; manifests have not been there.
const LONGEST_AFFINITY_S: u32 = 86_400;

/// Compiles one service. `None`: the proxy has nothing to do with it.
pub fn compile_service<'a>(
    service: &Service,
    slices: impl Iterator<Item = &'a EndpointSlice> + Clone,
    node: &NodeView,
    config: &ProxyConfig,
) -> (Option<ServiceState>, Vec<Problem>) {
    let mut compiler = Compiler::new(service, node, config);
    if !compiler.is_ours() {
        return (None, compiler.problems);
    }
    for slice in slices.clone() {
        compiler.judge_slice(slice);
    }
    for port in &service.ports {
        compiler.port(port, slices.clone());
    }
    compiler.finish()
}

/// May some load balancer answer for it? Not for those that are headless, or that say whose they are.
pub fn is_balanced(service: &Service) -> bool {
    service.service_type != ServiceType::ExternalName
        && !service.headless_label
        && service.proxy_name.as_deref().is_none_or(|name| name == PROXY_NAME)
        && service.cluster_ips.iter().any(|address| possible(*address).is_ok())
}

struct Compiler<'a> {
    service: &'a Service,
    node: &'a NodeView,
    config: &'a ProxyConfig,
    /// Attributes shared by all of the service's virtual servers.
    template: Virtual,
    fast: bool,
    cluster_addresses: Vec<IpAddr>,
    external_addresses: Vec<(Origin, IpAddr)>,
    state: ServiceState,
    healthy_local: BTreeSet<IpAddr>,
    problems: Vec<Problem>,
}

impl<'a> Compiler<'a> {
    fn new(service: &'a Service, node: &'a NodeView, config: &'a ProxyConfig) -> Self {
        Compiler {
            service,
            node,
            config,
            template: Virtual::default(),
            fast: true,
            cluster_addresses: Vec::new(),
            external_addresses: Vec::new(),
            state: ServiceState { created_s: service.created_s, ..ServiceState::default() },
            healthy_local: BTreeSet::new(),
            problems: Vec::new(),
        }
    }

    fn problem(&mut self, reason: &'static str, text: impl Into<String>) {
        let subject = Subject::Object(Kind::Service, self.service.key.clone());
        self.problems.push(Problem { subject, reason, text: text.into() });
    }

    /// Decides whether the service concerns us, and if so judges what all of its ports share.
    fn is_ours(&mut self) -> bool {
        let service = self.service;
        if service.service_type == ServiceType::ExternalName
            || service.headless_label
            || service.proxy_name.as_deref().is_some_and(|name| name != PROXY_NAME)
        {
            return false;
        }
        for text in &service.bad_cluster_ips {
            self.problem("InvalidClusterIp", format!("clusterIP {text:?} is not an IP address and is ignored"));
        }
        for address in &service.cluster_ips {
            match possible(*address) {
                Ok(address) => self.cluster_addresses.push(address),
                Err(why) => self.problem("InvalidClusterIp", format!("clusterIP {address} is ignored: {why}")),
            }
        }
        if self.cluster_addresses.is_empty() {
            return false;
        }
        let persistence_s = service.affinity_timeout_s.map(|seconds| seconds.min(LONGEST_AFFINITY_S));
        if persistence_s != service.affinity_timeout_s {
            let text = format!(
                "sessionAffinityConfig.clientIP.timeoutSeconds is more than {LONGEST_AFFINITY_S} (one day), which counts"
            );
            self.problem("InvalidAffinityTimeout", text);
        }
        let (scheduler, sched_flags, complaints) = scheduler::choose(&service.annotations);
        for (reason, text) in complaints {
            self.problem(reason, text);
        }
        self.template = Virtual { scheduler, sched_flags, persistence_s, destinations: BTreeMap::new() };
        self.fast = service.annotations.fastpath != Fastpath::Refused;
        if service.annotations.fastpath == Fastpath::Unclear {
            let text =
                format!("annotation {} is neither \"true\" nor \"false\", and is ignored", annotations::FASTPATH);
            self.problem("UnknownFastpath", text);
        }
        self.collect_external_addresses();
        true
    }

    fn collect_external_addresses(&mut self) {
        let service = self.service;
        let external = service.external_ips.iter().map(|ip| (Origin::ExternalIp, AddressKind::ExternalIp, ip));
        let load_balancer = service
            .lb_ingress
            .iter()
            .filter(|ingress| !ingress.proxy_mode && !service.annotations.skip_lb_ips)
            .map(|ingress| (Origin::LoadBalancerIp, AddressKind::LoadBalancerIp, &ingress.ip));
        for (origin, kind, text) in external.chain(load_balancer) {
            match validate(text, kind, self.config) {
                Ok(address) if self.family_enabled(address) => self.external_addresses.push((origin, address)),
                Ok(_) => {}
                Err(why) => self.problem("AddressRejected", why),
            }
        }
        match service.annotations.dsr.as_deref() {
            None => {}
            Some("tunnel") if self.external_addresses.is_empty() => {}
            Some("tunnel") => self.problem(
                "DsrNotAvailable",
                format!(
                    "annotation {}=tunnel asks for direct server return, which this version does not have; the service \
                     works by NAT",
                    annotations::DSR
                ),
            ),
            Some(other) => self.problem(
                "UnknownDsrMode",
                format!(
                    "annotation {} is {other:?}; only \"tunnel\" means something. The service works by NAT",
                    annotations::DSR
                ),
            ),
        }
    }

    fn family_enabled(&self, address: IpAddr) -> bool {
        match address {
            IpAddr::V4(_) => self.config.ipv4,
            IpAddr::V6(_) => self.config.ipv6,
        }
    }

    fn judge_slice(&mut self, slice: &EndpointSlice) {
        let subject = || Subject::Object(Kind::EndpointSlice, slice.key.clone());
        if !slice.bad_addresses.is_empty() {
            self.problems.push(Problem {
                subject: subject(),
                reason: "InvalidEndpointAddress",
                text: format!(
                    "endpoint addresses {:?} are not of the slice's address type and are ignored",
                    slice.bad_addresses
                ),
            });
        }
        for port in slice.ports.iter().filter(|port| port.port.is_none_or(|port| port == 0)) {
            self.problems.push(Problem {
                subject: subject(),
                reason: "InvalidEndpointPort",
                text: format!("port {:?} has no usable number; its endpoints are ignored", port.name),
            });
        }
    }

    fn port<'s>(&mut self, port: &ServicePort, slices: impl Iterator<Item = &'s EndpointSlice>) {
        if port.port == 0 {
            let text = format!("port {:?} has number 0 and is ignored; 1 to 65535 are valid", port.name);
            self.problem("InvalidPort", text);
            return;
        }
        let candidates = Candidates::collect(slices, &port.name, port.protocol, self.node.place());
        self.healthy_local.extend(candidates.healthy_local());

        let service = self.service;
        // service.local forces the external policy to Local and the internal one to Cluster (what the original does).
        let forced = service.annotations.local;
        let internal_local = !forced && service.internal_traffic_policy == TrafficPolicy::Local;
        let external_local = forced || service.external_traffic_policy == TrafficPolicy::Local;

        for address in self.cluster_addresses.clone() {
            if self.family_enabled(address) {
                self.frontend(Origin::ClusterIp, address, port.port, port, &candidates, internal_local);
            }
        }
        for (origin, address) in self.external_addresses.clone() {
            self.frontend(origin, address, port.port, port, &candidates, external_local);
        }
        if self.service.has_node_port(port) {
            for address in self.node_port_addresses() {
                self.frontend(Origin::NodePort, address, port.node_port, port, &candidates, external_local);
            }
        }
        self.hairpins(port, &candidates);
    }

    /// One address per family that the service uses, or every local one with --nodeport-bindon-all-ip (then of both
    /// enabled families, as in the original: an unused family refuses).
    fn node_port_addresses(&self) -> BTreeSet<IpAddr> {
        if self.config.node_port_all_addresses {
            return self.node.local_addresses().filter(|address| self.family_enabled(*address)).collect();
        }
        self.cluster_addresses.iter().filter_map(|like| self.node.address_like(*like)).collect()
    }

    fn frontend(
        &mut self,
        origin: Origin,
        address: IpAddr,
        number: u16,
        port: &ServicePort,
        candidates: &Candidates,
        local_only: bool,
    ) {
        let destinations = candidates.choose(address, local_only);
        if local_only && destinations.is_empty() {
            return;
        }
        let key = VirtualKey { address, protocol: port.protocol, port: number };
        let elsewhere = destinations.iter().filter(|to| candidates.is_elsewhere(to)).copied().collect();
        let server =
            Virtual { destinations: destinations.into_iter().map(|d| (d, 1)).collect(), ..self.template.clone() };
        let frontend = Frontend {
            origin,
            port_name: port.name.clone(),
            fast: self.fast,
            elsewhere,
            hosts: BTreeSet::new(),
            server,
        };
        if origin != Origin::NodePort && !self.node.is_host_address(address) {
            self.state.vips.insert(address);
        }
        match self.state.frontends.get(&key) {
            // The same external and load-balancer address is one virtual server.
            Some(known) if known.port_name == frontend.port_name => {}
            Some(known) => {
                let text =
                    format!("ports {:?} and {:?} both want {key}; the first one has it", known.port_name, port.name);
                self.problem("DuplicatePort", text);
            }
            None => {
                self.state.frontends.insert(key, frontend);
            }
        }
    }

    fn hairpins(&mut self, port: &ServicePort, candidates: &Candidates) {
        let annotations = &self.service.annotations;
        if !(self.config.hairpin_all || annotations.hairpin) {
            return;
        }
        let enabled = self.cluster_addresses.iter().filter(|ip| self.family_enabled(**ip));
        let mut targets: Vec<(IpAddr, u16)> = enabled.map(|ip| (*ip, port.port)).collect();
        if annotations.hairpin_external_ips {
            let external = self.external_addresses.iter().filter(|(origin, _)| *origin == Origin::ExternalIp);
            targets.extend(external.map(|(_, ip)| (*ip, port.port)));
        }
        if self.service.has_node_port(port) {
            let primary = self.cluster_addresses.iter().filter_map(|like| self.node.address_like(*like));
            targets.extend(primary.map(|ip| (ip, port.node_port)));
        }
        for (vip, number) in targets {
            for destination in candidates.choose(vip, true) {
                let pod = destination.ip();
                // A hostNetwork endpoint reaches itself without leaving the node's stack.
                if !self.node.is_host_address(pod) {
                    self.state.hairpins.insert(Hairpin { pod, vip, protocol: port.protocol, port: number });
                }
            }
        }
    }

    fn finish(mut self) -> (Option<ServiceState>, Vec<Problem>) {
        if self.service.health_check_node_port != 0 {
            self.state.health_check = Some((self.service.health_check_node_port, self.healthy_local.len()));
        }
        (Some(self.state), self.problems)
    }
}
