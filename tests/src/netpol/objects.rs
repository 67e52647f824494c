//! The objects of the cluster as a user changes them, and the one manifest that says all of it.
//!
//! One file for everything: a step is taken in as a whole, and the beacon's policy, which is part of it, tells when.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::{Context, Result, bail};
use serde_json::{Map, Value, json};

use super::{
    plan::{self, BEACON_NAMESPACE, BEACONS, NAMESPACES, PODS, PORTS},
    scenario::Change,
};
use crate::{objects, probe::Transport};

#[derive(Clone, Debug)]
struct PodState {
    labels: Map<String, Value>,
    phase: &'static str,
    terminating: bool,
}

/// What the API server would hold.
#[derive(Clone, Debug)]
pub struct Objects {
    namespaces: BTreeMap<&'static str, Map<String, Value>>,
    pods: Vec<PodState>,
    /// By namespace and name.
    policies: BTreeMap<(String, String), Value>,
    /// The port at which the beacons answer each other.
    pub beacon_port: u16,
    /// Who has the address of a pod that has ended: another one, without labels, of this namespace.
    heirs: BTreeMap<usize, &'static str>,
    /// Pods that the API server does not know (any more).
    pub absent: BTreeSet<usize>,
    /// Other objects, as they are.
    pub others: Vec<Value>,
}

impl Default for Objects {
    /// Namespaces are labelled `ns: x`, pods `pod: a`.
    fn default() -> Self {
        let label = |key: &str, value: &str| Map::from_iter([(key.to_owned(), json!(value))]);
        Objects {
            namespaces: NAMESPACES.iter().map(|name| (*name, label("ns", name))).collect(),
            pods: (0..PODS.len())
                .map(|pod| PodState { labels: label("pod", plan::names(pod).1), phase: "Running", terminating: false })
                .collect(),
            policies: BTreeMap::new(),
            beacon_port: 80,
            heirs: BTreeMap::new(),
            absent: BTreeSet::new(),
            others: Vec::new(),
        }
    }
}

impl Objects {
    /// As at the beginning.
    pub fn reset(&mut self) {
        *self = Objects { beacon_port: self.beacon_port, ..Objects::default() };
    }

    pub fn apply(&mut self, change: Change) -> Result<()> {
        match change {
            Change::Apply(yaml) => {
                for policy in parse(yaml)? {
                    let part = |key: &str| policy["metadata"][key].as_str().map(str::to_owned);
                    let key = part("namespace").zip(part("name")).context("a policy needs namespace and name")?;
                    self.policies.insert(key, policy);
                }
            }
            Change::Delete(namespace, name) => {
                let gone = self.policies.remove(&(namespace.to_owned(), name.to_owned()));
                gone.with_context(|| format!("no policy {namespace}/{name} to delete"))?;
            }
            Change::LabelPod(pod, key, value) => set(&mut self.pod(pod)?.labels, key, value),
            Change::LabelNamespace(name, key, value) => {
                let labels = self.namespaces.get_mut(name).with_context(|| format!("no namespace {name}"))?;
                set(labels, key, value);
            }
            Change::Phase(phase, pod) => self.pod(pod)?.phase = phase,
            Change::Terminate(pod) => self.pod(pod)?.terminating = true,
            Change::Inherit(namespace, pod) => {
                let number = plan::pod(pod).with_context(|| format!("no pod {pod}"))?;
                if !self.has_ended(number) {
                    bail!("{pod} still has its address");
                }
                self.heirs.insert(number, namespace);
            }
        }
        Ok(())
    }

    /// Have its containers ended, so that it has given its address back?
    pub fn has_ended(&self, pod: usize) -> bool {
        matches!(self.pods[pod].phase, "Succeeded" | "Failed")
    }

    /// What an EndpointSlice says of the pod: ready, serving, terminating. `None`: it is not in there.
    pub fn conditions(&self, pod: usize) -> Option<(bool, bool, bool)> {
        let terminating = self.pods[pod].terminating;
        (!self.has_ended(pod)).then_some((!terminating, true, terminating))
    }

    /// Does any policy isolate pods for what they send?
    pub fn any_egress(&self) -> bool {
        let says = |policy: &Value| match policy["spec"]["policyTypes"].as_array() {
            Some(types) => types.contains(&json!("Egress")),
            None => !policy["spec"]["egress"].is_null(),
        };
        self.policies.values().any(says)
    }

    fn pod(&mut self, name: &str) -> Result<&mut PodState> {
        let number = plan::pod(name).with_context(|| format!("no pod {name}"))?;
        Ok(&mut self.pods[number])
    }

    /// All of it; nodes and services are not among it.
    pub fn manifest(&self) -> Vec<Value> {
        let mut all = Vec::new();
        for (name, labels) in &self.namespaces {
            all.push(objects::namespace(name, Value::Object(labels.clone())));
        }
        all.push(objects::namespace(BEACON_NAMESPACE, json!({})));
        let present = self.pods.iter().enumerate().filter(|(number, _)| !self.absent.contains(number));
        all.extend(present.map(|(number, state)| pod_object(number, state)));
        all.extend(self.heirs.iter().map(|(pod, namespace)| heir(*pod, namespace)));
        all.extend(self.others.iter().cloned());
        for (index, name) in BEACONS.iter().enumerate() {
            let node = index + 1;
            let ips: Vec<Value> = [true, false].map(|v4| json!({"ip": plan::beacon(node, v4)})).into();
            all.push(json!({
                "apiVersion": "v1", "kind": "Pod",
                "metadata": {"name": name, "namespace": BEACON_NAMESPACE, "labels": {"beacon": "yes"}},
                "spec": {"nodeName": format!("n{node}"), "containers": [{"name": "main", "image": "none"}]},
                "status": {"phase": "Running", "podIP": plan::beacon(node, true), "podIPs": ips},
            }));
        }
        all.extend(self.policies.values().cloned());
        let ports = json!([{"port": self.beacon_port}]);
        let beacon = json!({"podSelector": {}, "policyTypes": ["Ingress"], "ingress": [{"ports": ports}]});
        all.push(objects::policy(BEACON_NAMESPACE, "zz-last", beacon));
        all
    }
}

fn set(labels: &mut Map<String, Value>, key: &str, value: &str) {
    if value.is_empty() {
        labels.remove(key);
    } else {
        labels.insert(key.to_owned(), json!(value));
    }
}

/// Container ports carry names: `serve-80-tcp`, and `web`, which is 80 at every pod a, 81 at every b, and nothing at c.
fn pod_object(number: usize, state: &PodState) -> Value {
    let (namespace, name) = plan::names(number);
    let mut ports: Vec<Value> = PORTS
        .iter()
        .map(|(transport, port)| {
            let protocol = transport.to_string();
            let name = format!("serve-{port}-{}", protocol.to_lowercase());
            json!({"name": name, "containerPort": port, "protocol": protocol})
        })
        .collect();
    let web = match name {
        "a" => Some(80),
        "b" => Some(81),
        _ => None,
    };
    ports.extend(web.map(|port| json!({"name": "web", "containerPort": port, "protocol": Transport::Tcp.to_string()})));
    let ips: Vec<Value> = [true, false].map(|v4| json!({"ip": plan::address(number, v4)})).into();
    let mut object = json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {"name": name, "namespace": namespace, "labels": state.labels},
        "spec": {
            "nodeName": format!("n{}", plan::node_of(number)),
            "containers": [{"name": "main", "image": "none", "ports": ports}],
        },
        "status": {"phase": state.phase, "podIP": plan::address(number, true), "podIPs": ips},
    });
    if state.terminating {
        object["metadata"]["deletionTimestamp"] = json!("2026-01-01T00:00:00Z");
    }
    object
}

fn heir(pod: usize, namespace: &str) -> Value {
    let state = PodState { labels: Map::new(), phase: "Running", terminating: false };
    let mut object = pod_object(pod, &state);
    object["metadata"]["namespace"] = json!(namespace);
    object["metadata"]["name"] = json!(format!("heir-of-{}", plan::lab_name(pod)));
    object
}

/// The documents of a text; a kind that is not NetworkPolicy is a slip of the pen.
pub fn parse(yaml: &str) -> Result<Vec<Value>> {
    let mut policies = Vec::new();
    for document in yaml.split("\n---").filter(|document| !document.trim().is_empty()) {
        // `y` is a name here, as it is for Kubernetes.
        let options = serde_saphyr::options! { strict_booleans: true };
        let policy: Value = serde_saphyr::from_str_with_options(document, options)
            .with_context(|| format!("not an object:\n{document}"))?;
        if policy["kind"] != "NetworkPolicy" || policy["apiVersion"] != "networking.k8s.io/v1" {
            bail!("not a NetworkPolicy:\n{document}");
        }
        policies.push(policy);
    }
    Ok(policies)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn changes_change_what_they_say() {
        let mut objects = Objects::default();
        let before = objects.manifest();
        let policy = "
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: one, namespace: x}
spec: {podSelector: {}}
---
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: two, namespace: x}
spec: {podSelector: {}}";
        objects.apply(Change::Apply(policy)).unwrap();
        assert_eq!(objects.manifest().len(), before.len() + 2);
        objects.apply(Change::Delete("x", "one")).unwrap();
        assert!(objects.apply(Change::Delete("x", "one")).is_err());
        objects.apply(Change::LabelPod("x/a", "pod", "")).unwrap();
        objects.apply(Change::LabelNamespace("y", "ns", "other")).unwrap();
        assert!(objects.apply(Change::LabelPod("x/q", "pod", "a")).is_err());
        let text = json!(objects.manifest()).to_string();
        assert!(text.contains("\"two\"") && text.contains("\"ns\":\"other\"") && !text.contains("\"one\""));
        objects.reset();
        assert_eq!(objects.manifest(), before);
    }
}
