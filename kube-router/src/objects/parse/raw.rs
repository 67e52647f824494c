//! The JSON shape of everything we read, field names as in the API reference. Unknown fields are skipped.
//!
//! One struct serves all kinds: in YAML `kind` may stand after `spec`, so the reader has to take a section before it
//! knows whose it is. No two of our kinds use one name for different things. It also reads lists (`items`), both the
//! pages of the API server and what `kubectl get -o yaml` prints.

use serde::Deserialize;

pub(super) use super::field::Text;
use super::field::{Field, NumberOrText, OurAnnotations, Section, TextMap};

pub(super) type List<T> = Field<Vec<Field<T>>>;

/// Any object or list of objects.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct RawObject {
    pub api_version: Field<Text>,
    pub kind: Field<Text>,
    pub metadata: Field<Metadata>,
    pub spec: Field<Spec>,
    pub status: Field<Status>,
    /// EndpointSlice
    pub address_type: Field<Text>,
    /// EndpointSlice
    pub ports: List<Port>,
    /// EndpointSlice
    pub endpoints: List<Endpoint>,
    /// Lists
    pub items: List<RawObject>,
}

/// `metadata` of an object or of a list.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Metadata {
    pub name: Field<Text>,
    pub uid: Field<Text>,
    pub namespace: Field<Text>,
    pub generate_name: Field<Text>,
    pub resource_version: Field<Text>,
    /// Lists: where the next page begins.
    #[serde(rename = "continue")]
    pub continue_token: Field<Text>,
    pub creation_timestamp: Field<Text>,
    pub deletion_timestamp: Field<Text>,
    pub deletion_grace_period_seconds: Field<i64>,
    pub labels: Field<TextMap>,
    pub annotations: Field<OurAnnotations>,
    pub owner_references: List<Owner>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct Owner {
    pub name: Field<Text>,
}

/// `spec` of Service, Pod, Node and both kinds of policy.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Spec {
    #[serde(rename = "type")]
    pub service_type: Field<Text>,
    #[serde(rename = "clusterIP")]
    pub cluster_ip: Field<Text>,
    #[serde(rename = "clusterIPs")]
    pub cluster_ips: List<Text>,
    #[serde(rename = "externalIPs")]
    pub external_ips: List<Text>,
    pub ports: List<Port>,
    pub session_affinity: Field<Text>,
    pub session_affinity_config: Field<AffinityConfig>,
    pub internal_traffic_policy: Field<Text>,
    pub external_traffic_policy: Field<Text>,
    pub health_check_node_port: Field<i64>,

    pub node_name: Field<Text>,
    pub host_network: Field<bool>,
    pub termination_grace_period_seconds: Field<i64>,

    pub containers: List<Container>,
    pub init_containers: List<Container>,

    #[serde(rename = "podCIDR")]
    pub pod_cidr: Field<Text>,
    #[serde(rename = "podCIDRs")]
    pub pod_cidrs: List<Text>,

    pub pod_selector: Field<Selector>,
    pub policy_types: List<Text>,
    pub ingress: List<PolicyRule>,
    pub egress: List<PolicyRule>,

    pub tier: Field<Text>,
    pub priority: Field<i64>,
    pub subject: Field<ClusterSubject>,
}

/// An entry of a Pod's `containers` or `initContainers`.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Container {
    pub ports: List<ContainerPort>,
    pub restart_policy: Field<Text>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ContainerPort {
    pub name: Field<Text>,
    pub protocol: Field<Text>,
    pub container_port: Field<i64>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Selector {
    pub match_labels: Field<TextMap>,
    pub match_expressions: List<Requirement>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct Requirement {
    pub key: Field<Text>,
    pub operator: Field<Text>,
    pub values: List<Text>,
}

/// An entry of a policy's `ingress` (with `from`) or `egress` (with `to`).
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct PolicyRule {
    pub from: List<PolicyPeer>,
    pub to: List<PolicyPeer>,
    pub ports: List<PolicyPort>,
    /// ClusterNetworkPolicy
    pub name: Field<Text>,
    /// ClusterNetworkPolicy
    pub action: Field<Text>,
    /// ClusterNetworkPolicy
    pub protocols: List<PolicyProtocol>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct PolicyPeer {
    pub pod_selector: Field<Selector>,
    pub namespace_selector: Field<Selector>,
    pub ip_block: Field<IpBlock>,
    // ClusterNetworkPolicy
    pub namespaces: Field<Selector>,
    pub pods: Field<NamespacedPod>,
    pub nodes: Field<Selector>,
    pub networks: List<Text>,
    pub domain_names: List<Text>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct IpBlock {
    pub cidr: Field<Text>,
    pub except: List<Text>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct PolicyPort {
    pub protocol: Field<Text>,
    pub port: Field<NumberOrText>,
    pub end_port: Field<i64>,
}

/// `subject` of a ClusterNetworkPolicy.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct ClusterSubject {
    pub namespaces: Field<Selector>,
    pub pods: Field<NamespacedPod>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct NamespacedPod {
    pub namespace_selector: Field<Selector>,
    pub pod_selector: Field<Selector>,
}

/// An entry of `protocols` of a ClusterNetworkPolicy's rule.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct PolicyProtocol {
    pub tcp: Field<Transport>,
    pub udp: Field<Transport>,
    pub sctp: Field<Transport>,
    pub destination_named_port: Field<Text>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Transport {
    pub destination_port: Field<DestinationPort>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct DestinationPort {
    pub number: Field<i64>,
    pub range: Field<PortRange>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct PortRange {
    pub start: Field<i64>,
    pub end: Field<i64>,
}

/// An entry of a Service's or an EndpointSlice's `ports`.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Port {
    pub name: Field<Text>,
    pub protocol: Field<Text>,
    pub port: Field<i64>,
    pub node_port: Field<i64>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct AffinityConfig {
    #[serde(rename = "clientIP")]
    pub client_ip: Field<ClientIp>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ClientIp {
    pub timeout_seconds: Field<i64>,
}

/// `status` of Service, Pod and Node.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Status {
    pub load_balancer: Field<LoadBalancer>,

    pub phase: Field<Text>,
    #[serde(rename = "podIP")]
    pub pod_ip: Field<Text>,
    #[serde(rename = "podIPs")]
    pub pod_ips: List<PodIp>,
    #[serde(rename = "hostIP")]
    pub host_ip: Field<Text>,
    #[serde(rename = "hostIPs")]
    pub host_ips: List<PodIp>,

    pub addresses: List<NodeAddress>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct LoadBalancer {
    pub ingress: List<Ingress>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Ingress {
    pub ip: Field<Text>,
    pub ip_mode: Field<Text>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct PodIp {
    pub ip: Field<Text>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct NodeAddress {
    #[serde(rename = "type")]
    pub address_type: Field<Text>,
    pub address: Field<Text>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Endpoint {
    pub addresses: List<Text>,
    pub conditions: Field<Conditions>,
    pub node_name: Field<Text>,
    pub hints: Field<Hints>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Hints {
    pub for_zones: List<Hint>,
    pub for_nodes: List<Hint>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct Hint {
    pub name: Field<Text>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct Conditions {
    pub ready: Field<bool>,
    pub serving: Field<bool>,
    pub terminating: Field<bool>,
}

impl Section for RawObject {}
impl Section for Metadata {}
impl Section for Owner {}
impl Section for Spec {}
impl Section for Container {}
impl Section for ContainerPort {}
impl Section for Selector {}
impl Section for Requirement {}
impl Section for PolicyRule {}
impl Section for PolicyPeer {}
impl Section for IpBlock {}
impl Section for PolicyPort {}
impl Section for ClusterSubject {}
impl Section for NamespacedPod {}
impl Section for PolicyProtocol {}
impl Section for Transport {}
impl Section for DestinationPort {}
impl Section for PortRange {}
impl Section for Port {}
impl Section for AffinityConfig {}
impl Section for ClientIp {}
impl Section for Status {}
impl Section for LoadBalancer {}
impl Section for Ingress {}
impl Section for Hints {}
impl Section for Hint {}
impl Section for PodIp {}
impl Section for NodeAddress {}
impl Section for Endpoint {}
impl Section for Conditions {}
