//! Objects whose status no kubelet writes here.

use std::net::IpAddr;

use anyhow::Result;
use serde_json::{Value, json};

use super::ApiServer;

impl ApiServer {
    /// A ready Node with these internal addresses; the controller `nodeipam` gives it pod CIDRs.
    pub fn add_node(&self, name: &str, addresses: &[IpAddr]) -> Result<()> {
        self.apply(&json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": name}}).to_string())?;
        let addresses: Vec<Value> =
            addresses.iter().map(|ip| json!({"type": "InternalIP", "address": ip.to_string()})).collect();
        let ready = json!([{"type": "Ready", "status": "True", "reason": "Test"}]);
        self.patch_status("nodes", name, None, &json!({"addresses": addresses, "conditions": ready}))
    }

    /// A Pod that runs on a node with these addresses. `labels` as in YAML: `[("app", "web")]`.
    pub fn add_pod(
        &self,
        namespace: &str,
        name: &str,
        labels: &[(&str, &str)],
        node: &str,
        ips: &[IpAddr],
    ) -> Result<()> {
        let labels: serde_json::Map<String, Value> =
            labels.iter().map(|(key, value)| (key.to_string(), json!(value))).collect();
        let pod = json!({
            "apiVersion": "v1", "kind": "Pod",
            "metadata": {"name": name, "namespace": namespace, "labels": labels},
            "spec": {"nodeName": node, "containers": [{"name": "main", "image": "none.invalid/none"}]},
        });
        self.apply(&pod.to_string())?;
        self.set_pod_ready(namespace, name, ips, true)
    }

    /// What a kubelet does when a readiness probe changes its mind.
    pub fn set_pod_ready(&self, namespace: &str, name: &str, ips: &[IpAddr], ready: bool) -> Result<()> {
        let pod_ips: Vec<Value> = ips.iter().map(|ip| json!({"ip": ip.to_string()})).collect();
        let word = if ready { "True" } else { "False" };
        let status = json!({
            "phase": "Running",
            "podIP": ips.first().map(ToString::to_string),
            "podIPs": pod_ips,
            "conditions": [{"type": "Ready", "status": word}, {"type": "ContainersReady", "status": word}],
        });
        self.patch_status("pods", name, Some(namespace), &status)
    }

    fn patch_status(&self, kind: &str, name: &str, namespace: Option<&str>, status: &Value) -> Result<()> {
        let patch = json!({ "status": status }).to_string();
        let mut args = vec!["patch", kind, name, "--subresource=status", "--type=merge", "-p", &patch];
        args.extend(namespace.iter().flat_map(|namespace| ["-n", namespace]));
        self.kubectl(&args).map(drop)
    }
}
