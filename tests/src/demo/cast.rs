//! Who plays: nodes, pods and services, read from the objects that the agents read, so that both agree.
//!
//! Out: names, addresses, and what ipvsadm must say of them. It knows nothing of namespaces or processes.

use std::{collections::BTreeSet, net::IpAddr};

use anyhow::{Context, Result};
use serde_json::Value;

/// The objects, as one would write them.
const OBJECTS: &str = include_str!("../../fixtures/whats-my-ip.yaml");

/// The service of the five pods.
pub const SERVICE: &str = "myip";
/// Its address and port in the cluster, and its port on every node.
pub const CLUSTER_IP: &str = "10.1.36.171:8080";
pub const NODE_PORT: u16 = 39_610;
/// Where its pods listen.
pub const POD_PORT: u16 = 8080;
/// The API server's service.
pub const KUBERNETES: &str = "10.1.0.1:443";
/// Where an API server listens.
pub const API_PORT: u16 = 6443;
/// Both service addresses are out of this range.
pub const SERVICE_RANGE: &str = "10.1.0.0/16";
/// What `sessionAffinity: ClientIP` means where no time is given, in seconds.
pub const AFFINITY_S: u32 = 10_800;

pub struct Cast {
    pub nodes: Vec<NodeRole>,
    /// By address.
    pub pods: Vec<PodRole>,
    pub documents: Vec<Document>,
}

pub struct NodeRole {
    pub name: String,
    pub address: IpAddr,
    pub pod_cidr: String,
}

#[derive(Clone)]
pub struct PodRole {
    pub name: String,
    pub address: IpAddr,
    pub node: String,
}

/// One object, as text.
pub struct Document {
    pub kind: String,
    pub name: String,
    pub yaml: String,
}

impl Document {
    pub fn is(&self, kind: &str, name: &str) -> bool {
        self.kind == kind && self.name == name
    }
}

/// The part of a service's rules that the demonstration changes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Scheduling {
    pub scheduler: &'static str,
    pub affinity: bool,
}

impl Scheduling {
    pub const DEFAULT: Scheduling = Scheduling { scheduler: "rr", affinity: false };

    /// As `ipvsadm -S` spells it.
    pub fn options(&self) -> String {
        let persistence = if self.affinity { format!(" -p {AFFINITY_S}") } else { String::new() };
        format!("-s {}{persistence}", self.scheduler)
    }
}

impl Cast {
    pub fn load() -> Result<Cast> {
        let mut cast = Cast { nodes: Vec::new(), pods: Vec::new(), documents: Vec::new() };
        for yaml in OBJECTS.split("\n---\n") {
            let object: Value = serde_saphyr::from_str(yaml).with_context(|| format!("not an object:\n{yaml}"))?;
            let text = |pointer: &str| text(&object, pointer);
            let (kind, name) = (text("/kind")?, text("/metadata/name")?);
            match (kind.as_str(), name.as_str()) {
                ("Node", _) => cast.nodes.push(NodeRole {
                    name: name.clone(),
                    address: text("/status/addresses/0/address")?.parse().context("a node's address")?,
                    pod_cidr: text("/spec/podCIDR")?,
                }),
                ("EndpointSlice", slice) if slice.starts_with(SERVICE) => {
                    for endpoint in object["endpoints"].as_array().context("a slice without endpoints")? {
                        cast.pods.push(PodRole {
                            name: self::text(endpoint, "/targetRef/name")?,
                            address: self::text(endpoint, "/addresses/0")?.parse().context("a pod's address")?,
                            node: self::text(endpoint, "/nodeName")?,
                        });
                    }
                }
                _ => {}
            }
            cast.documents.push(Document { kind, name, yaml: format!("{}\n", yaml.trim_end()) });
        }
        cast.pods.sort_by_key(|pod| pod.address);
        Ok(cast)
    }

    pub fn document(&self, kind: &str, name: &str) -> Result<&Document> {
        self.documents.iter().find(|document| document.is(kind, name)).with_context(|| format!("no {kind} {name}"))
    }

    pub fn pod_names(&self) -> BTreeSet<String> {
        self.pods.iter().map(|pod| pod.name.clone()).collect()
    }

    /// What `ipvsadm -S -n` must say on a node with this address: these lines and no other.
    pub fn rules(&self, node: IpAddr, api_servers: &[IpAddr], scheduling: &Scheduling) -> BTreeSet<String> {
        let api = api_servers.iter().map(|server| format!("{server}:{API_PORT}"));
        let mut lines = rules(KUBERNETES, "-s rr", api);
        for address in [CLUSTER_IP.to_owned(), format!("{node}:{NODE_PORT}")] {
            let pods = self.pods.iter().map(|pod| format!("{}:{POD_PORT}", pod.address));
            lines.extend(rules(&address, &scheduling.options(), pods));
        }
        lines
    }
}

fn rules(address: &str, options: &str, servers: impl Iterator<Item = String>) -> BTreeSet<String> {
    let servers = servers.map(|server| format!("-a -t {address} -r {server} -m -w 1"));
    servers.chain([format!("-A -t {address} {options}")]).collect()
}

fn text(object: &Value, pointer: &str) -> Result<String> {
    let found = object.pointer(pointer).and_then(Value::as_str);
    found.map(str::to_owned).with_context(|| format!("no text at {pointer} in {object}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_constants_are_those_of_the_objects() {
        let cast = Cast::load().unwrap();
        assert_eq!((cast.nodes.len(), cast.pods.len()), (3, 5));
        for (name, address, node_port) in [(SERVICE, CLUSTER_IP, Some(NODE_PORT)), ("kubernetes", KUBERNETES, None)] {
            let object: Value = serde_saphyr::from_str(&cast.document("Service", name).unwrap().yaml).unwrap();
            let port = &object["spec"]["ports"][0];
            assert_eq!(format!("{}:{}", object["spec"]["clusterIP"].as_str().unwrap(), port["port"]), address);
            assert_eq!(port["nodePort"].as_u64(), node_port.map(u64::from));
        }
    }

    #[test]
    fn rules_are_spelled_as_ipvsadm_does() {
        let mut cast = Cast::load().unwrap();
        cast.pods.truncate(1);
        let node = cast.nodes[1].address;
        let scheduling = Scheduling { scheduler: "sh", affinity: true };
        let rules: Vec<String> = cast.rules(node, &[cast.nodes[0].address], &scheduling).into_iter().collect();
        let expected = [
            "-A -t 10.1.0.1:443 -s rr",
            "-A -t 10.1.36.171:8080 -s sh -p 10800",
            "-A -t 192.168.10.101:39610 -s sh -p 10800",
            "-a -t 10.1.0.1:443 -r 192.168.10.100:6443 -m -w 1",
            "-a -t 10.1.36.171:8080 -r 10.2.0.10:8080 -m -w 1",
            "-a -t 192.168.10.101:39610 -r 10.2.0.10:8080 -m -w 1",
        ];
        assert_eq!(rules, expected);
    }
}
