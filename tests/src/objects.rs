//! Kubernetes objects for the tests, written as manifests into a folder that agents watch.
//!
//! A manifest appears, changes and goes by rename and unlink, as an editor or a config map would do it.

use std::{fs, net::IpAddr, path::Path};

use anyhow::{Context, Result};
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::lab::{Node, Pod};

/// A folder of manifests. Dropping it removes it.
pub struct Manifests(TempDir);

impl Manifests {
    pub fn new() -> Result<Manifests> {
        Ok(Manifests(TempDir::with_prefix("manifests").context("a folder for manifests")?))
    }

    pub fn path(&self) -> &Path {
        self.0.path()
    }

    /// `--manifests=<folder>`
    pub fn flag(&self) -> String {
        format!("--manifests={}", self.path().display())
    }

    /// Writes objects as one file, at once.
    pub fn put(&self, file: &str, objects: &[Value]) -> Result<()> {
        let list = json!({"apiVersion": "v1", "kind": "List", "items": objects});
        self.put_text(&format!("{file}.json"), &serde_json::to_string_pretty(&list)?)
    }

    /// The same with a text and the file's whole name.
    pub fn put_text(&self, file: &str, text: &str) -> Result<()> {
        let hidden = self.path().join(format!(".{file}.new"));
        fs::write(&hidden, text)?;
        fs::rename(hidden, self.path().join(file))?;
        Ok(())
    }

    pub fn remove(&self, file: &str) -> Result<()> {
        Ok(fs::remove_file(self.path().join(format!("{file}.json")))?)
    }
}

/// A Node object for a node of the lab.
pub fn node(node: &Node) -> Value {
    let addresses: Vec<Value> =
        node.addresses.iter().map(|net| json!({"type": "InternalIP", "address": net.addr()})).collect();
    json!({
        "apiVersion": "v1", "kind": "Node", "metadata": {"name": node.name},
        "spec": {"podCIDRs": node.pod_cidrs}, "status": {"addresses": addresses},
    })
}

/// A running Pod of `default` for a pod of the lab.
pub fn pod(pod: &Pod, labels: Value) -> Value {
    let ips: Vec<Value> = pod.addresses.iter().map(|ip| json!({"ip": ip})).collect();
    json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {"name": pod.name, "namespace": "default", "labels": labels},
        "spec": {"nodeName": pod.node, "containers": [{"name": "main", "image": "none"}]},
        "status": {"phase": "Running", "podIP": pod.addresses.first(), "podIPs": ips},
    })
}

/// A Namespace with its usual label.
pub fn namespace(name: &str, mut labels: Value) -> Value {
    labels["kubernetes.io/metadata.name"] = json!(name);
    json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name, "labels": labels}})
}

/// A NetworkPolicy of `namespace`.
pub fn policy(namespace: &str, name: &str, spec: Value) -> Value {
    json!({
        "apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy",
        "metadata": {"name": name, "namespace": namespace}, "spec": spec,
    })
}

/// A service under construction: its Service and its EndpointSlices.
#[derive(Clone, Debug)]
pub struct ServiceSpec {
    name: String,
    cluster_ips: Vec<IpAddr>,
    kind: &'static str,
    /// protocol, port, target port, node port
    ports: Vec<(&'static str, u16, u16, u16)>,
    endpoints: Vec<EndpointSpec>,
    spec: Value,
    annotations: Value,
    ingress: Vec<IpAddr>,
}

#[derive(Clone, Debug)]
pub struct EndpointSpec {
    pub address: IpAddr,
    pub node: String,
    /// ready, serving, terminating
    pub conditions: (bool, bool, bool),
}

impl ServiceSpec {
    pub fn new(name: &str, cluster_ips: &[&str]) -> ServiceSpec {
        ServiceSpec {
            name: name.to_owned(),
            cluster_ips: cluster_ips.iter().map(|ip| ip.parse().expect("an address")).collect(),
            kind: "ClusterIP",
            ports: Vec::new(),
            endpoints: Vec::new(),
            spec: json!({}),
            annotations: json!({}),
            ingress: Vec::new(),
        }
    }

    /// A name for its endpoints, without an address of its own.
    pub fn headless(name: &str) -> ServiceSpec {
        ServiceSpec::new(name, &[])
    }

    /// `TCP`, `UDP` or `SCTP`; `node_port` 0 means none.
    pub fn port(mut self, protocol: &'static str, port: u16, target: u16, node_port: u16) -> Self {
        self.ports.push((protocol, port, target, node_port));
        self
    }

    pub fn kind(mut self, kind: &'static str) -> Self {
        self.kind = kind;
        self
    }

    /// Ready endpoints at these pods' addresses of both families.
    pub fn pods<'a>(mut self, pods: impl IntoIterator<Item = &'a Pod>) -> Self {
        for pod in pods {
            for address in &pod.addresses {
                let conditions = (true, true, false);
                self.endpoints.push(EndpointSpec { address: *address, node: pod.node.clone(), conditions });
            }
        }
        self
    }

    pub fn endpoint(mut self, endpoint: EndpointSpec) -> Self {
        self.endpoints.push(endpoint);
        self
    }

    /// A field of `spec`.
    pub fn with(mut self, field: &str, value: Value) -> Self {
        self.spec[field] = value;
        self
    }

    pub fn annotation(mut self, key: &str, value: &str) -> Self {
        self.annotations[key] = json!(value);
        self
    }

    /// An address in `status.loadBalancer.ingress`.
    pub fn ingress(mut self, address: &str) -> Self {
        self.ingress.push(address.parse().expect("an address"));
        self
    }

    /// The Service and one slice per family.
    pub fn objects(&self) -> Vec<Value> {
        let ports: Vec<Value> = self
            .ports
            .iter()
            .map(|(protocol, port, target, node_port)| {
                let name = format!("{}-{port}", protocol.to_lowercase());
                let mut entry = json!({"name": name, "protocol": protocol, "port": port, "targetPort": target});
                if *node_port != 0 {
                    entry["nodePort"] = json!(node_port);
                }
                entry
            })
            .collect();
        let mut spec = self.spec.clone();
        spec["type"] = json!(self.kind);
        if self.cluster_ips.is_empty() {
            (spec["clusterIP"], spec["clusterIPs"]) = (json!("None"), json!(["None"]));
        } else {
            (spec["clusterIP"], spec["clusterIPs"]) = (json!(self.cluster_ips[0]), json!(self.cluster_ips));
        }
        spec["ports"] = json!(ports);
        let ingress: Vec<Value> = self.ingress.iter().map(|ip| json!({"ip": ip, "ipMode": "VIP"})).collect();
        let mut objects = vec![json!({
            "apiVersion": "v1", "kind": "Service",
            "metadata": {"name": self.name, "namespace": "default", "annotations": self.annotations},
            "spec": spec, "status": {"loadBalancer": {"ingress": ingress}},
        })];
        for (family, ipv6) in [("IPv4", false), ("IPv6", true)] {
            objects.push(self.slice(family, ipv6));
        }
        objects
    }

    fn slice(&self, family: &str, ipv6: bool) -> Value {
        let ports: Vec<Value> = self
            .ports
            .iter()
            .map(|(protocol, port, target, _)| {
                json!({"name": format!("{}-{port}", protocol.to_lowercase()), "protocol": protocol, "port": target})
            })
            .collect();
        let endpoints: Vec<Value> = self
            .endpoints
            .iter()
            .filter(|endpoint| endpoint.address.is_ipv6() == ipv6)
            .map(|endpoint| {
                let (ready, serving, terminating) = endpoint.conditions;
                json!({
                    "addresses": [endpoint.address], "nodeName": endpoint.node,
                    "conditions": {"ready": ready, "serving": serving, "terminating": terminating},
                })
            })
            .collect();
        json!({
            "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice",
            "metadata": {
                "name": format!("{}-{}", self.name, family.to_lowercase()), "namespace": "default",
                "labels": {"kubernetes.io/service-name": self.name},
            },
            "addressType": family, "ports": ports, "endpoints": endpoints,
        })
    }
}
