//! A service in front of every pod, and a headless one, with the endpoints that a control plane would find.

use serde_json::Value;

use super::{
    Objects,
    plan::{self, PODS, PORTS},
};
use crate::{
    objects::{EndpointSpec, ServiceSpec},
    probe::Transport,
};

/// Of the pod's service; it is in `default`.
pub fn name(pod: usize) -> String {
    plan::lab_name(pod)
}

pub fn headless_name(pod: usize) -> String {
    format!("{}-headless", plan::lab_name(pod))
}

/// Services of type NodePort with these of [`PORTS`], and headless ones.
pub fn all(pods: &Objects, ports: &[usize]) -> Vec<Value> {
    let mut all = Vec::new();
    for pod in 0..PODS.len() {
        let ips = [true, false].map(|v4| plan::cluster_ip(pod, v4).to_string());
        let mut balanced = ServiceSpec::new(&name(pod), &[&ips[0], &ips[1]])
            .kind("NodePort")
            .annotation("kube-router.io/service.hairpin", "");
        let mut headless = ServiceSpec::headless(&headless_name(pod));
        for port in ports {
            let (transport, number) = PORTS[*port];
            let protocol = match transport {
                Transport::Tcp => "TCP",
                Transport::Udp => "UDP",
                Transport::Sctp => "SCTP",
            };
            balanced = balanced.port(protocol, plan::service_port(*port), number, plan::node_port(pod, *port));
            headless = headless.port(protocol, number, number, 0);
        }
        for address in [true, false].map(|v4| plan::address(pod, v4)) {
            if let Some(conditions) = pods.conditions(pod) {
                let endpoint = EndpointSpec { address, node: format!("n{}", plan::node_of(pod)), conditions };
                balanced = balanced.endpoint(endpoint.clone());
                headless = headless.endpoint(endpoint);
            }
        }
        all.extend(balanced.objects());
        all.extend(headless.objects());
    }
    all
}
