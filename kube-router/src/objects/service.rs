//! The fields of a `v1/Service` that the proxy, BGP and the load-balancer allocator read.

use std::net::IpAddr;

use serde::{Deserialize, Serialize};

use super::{ObjectKey, Protocol, annotations::ServiceAnnotations};

/// `spec.type`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum ServiceType {
    #[default]
    ClusterIp,
    NodePort,
    LoadBalancer,
    ExternalName,
}

/// `spec.internalTrafficPolicy` and `spec.externalTrafficPolicy`. A missing value is `Cluster`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum TrafficPolicy {
    #[default]
    Cluster,
    Local,
}

/// One entry of `spec.ports`. Numbers are as written; 0 means absent (and is reported by the compiler).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServicePort {
    pub name: Box<str>,
    pub protocol: Protocol,
    pub port: u16,
    /// 0: none.
    pub node_port: u16,
}

/// One entry of `status.loadBalancer.ingress` that has an `ip`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LoadBalancerIngress {
    /// As written; judged by the compiler.
    pub ip: Box<str>,
    /// `ipMode: Proxy`: traffic arrives at the node already translated, so the address is not ours to answer.
    pub proxy_mode: bool,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Service {
    pub key: ObjectKey,
    /// `metadata.creationTimestamp`, seconds since 1970; 0 when absent. The older service wins a disputed address.
    pub created_s: i64,
    pub service_type: ServiceType,
    /// `spec.clusterIP(s)` that are addresses; empty for headless services.
    pub cluster_ips: Vec<IpAddr>,
    /// `spec.clusterIP(s)` entries that are neither an address nor "None", as written.
    pub bad_cluster_ips: Vec<Box<str>>,
    /// `spec.externalIPs`, as written.
    pub external_ips: Vec<Box<str>>,
    pub lb_ingress: Vec<LoadBalancerIngress>,
    pub ports: Vec<ServicePort>,
    /// `spec.sessionAffinity: ClientIP` with its timeout in seconds (API default 10800).
    pub affinity_timeout_s: Option<u32>,
    pub internal_traffic_policy: TrafficPolicy,
    pub external_traffic_policy: TrafficPolicy,
    /// 0: none.
    pub health_check_node_port: u16,
    /// Label `service.kubernetes.io/service-proxy-name`.
    pub proxy_name: Option<Box<str>>,
    /// Label `service.kubernetes.io/headless` is present.
    pub headless_label: bool,
    pub annotations: ServiceAnnotations,
}

impl Service {
    /// Every address at which it may answer; entries that are none are left out.
    pub fn addresses(&self) -> impl Iterator<Item = IpAddr> {
        let external = self.external_ips.iter().filter_map(|text| text.parse().ok());
        let balanced =
            self.lb_ingress.iter().filter(|entry| !entry.proxy_mode).filter_map(|entry| entry.ip.parse().ok());
        self.cluster_ips.iter().copied().chain(external).chain(balanced)
    }

    /// A number that is left over from another type of the service does not count.
    pub fn has_node_port(&self, port: &ServicePort) -> bool {
        port.node_port != 0 && matches!(self.service_type, ServiceType::NodePort | ServiceType::LoadBalancer)
    }
}
