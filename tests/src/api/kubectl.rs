//! Talking to the API server: kubectl, and the status that a kubelet would write.

use std::{
    net::IpAddr,
    path::Path,
    process::Command,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result};
use serde_json::{Value, json};

use super::Api;
use crate::process;

/// How often a condition on the server is looked at.
const POLL: Duration = Duration::from_millis(200);

impl Api {
    /// kubectl as administrator; standard output.
    pub fn kubectl(&self, arguments: &[&str]) -> Result<String> {
        let command = self.kubectl_command(&self.kubeconfig(), arguments);
        self.spec.run(|| process::output(command))
    }

    /// kubectl as the agent's service account.
    pub fn kubectl_as_agent(&self, arguments: &[&str]) -> Result<String> {
        let command = self.kubectl_command(&self.agent_kubeconfig(), arguments);
        self.spec.run(|| process::output(command))
    }

    /// kubectl with something on standard input (`-f -`).
    pub fn kubectl_with_input(&self, arguments: &[&str], input: &str) -> Result<String> {
        let command = self.kubectl_command(&self.kubeconfig(), arguments);
        self.spec.run(|| process::output_with_input(command, input))
    }

    fn kubectl_command(&self, kubeconfig: &Path, arguments: &[&str]) -> Command {
        let mut command = Command::new(self.programs.join("kubectl"));
        command
            .env_remove("KUBECONFIG")
            .env("HOME", &self.folder)
            .arg(format!("--kubeconfig={}", kubeconfig.display()))
            .arg(format!("--cache-dir={}", self.folder.join("kubectl-cache").display()))
            .args(arguments);
        command
    }

    /// `kubectl apply -f -`: any number of documents.
    pub fn apply(&self, yaml: &str) -> Result<()> {
        self.kubectl_with_input(&["apply", "-f", "-"], yaml).map(drop)
    }

    /// `kubectl delete -f -`, without waiting for the objects to be gone.
    pub fn delete(&self, yaml: &str) -> Result<()> {
        self.kubectl_with_input(&["delete", "--wait=false", "--ignore-not-found", "-f", "-"], yaml).map(drop)
    }

    /// An object as JSON, e.g. `get("default", "service/web")`.
    pub fn get(&self, namespace: &str, object: &str) -> Result<Value> {
        let text = self.kubectl(&["get", "-n", namespace, object, "-o", "json"])?;
        serde_json::from_str(&text).context("kubectl get -o json")
    }

    /// Merges `status` into the status of an object, e.g. `patch_status("default", "pod/a", &json!({...}))`.
    pub fn patch_status(&self, namespace: &str, object: &str, status: &Value) -> Result<()> {
        let patch = json!({ "status": status }).to_string();
        let arguments = ["patch", "-n", namespace, object, "--subresource=status", "--type=merge", "-p", &patch];
        self.kubectl(&arguments).map(drop)
    }

    /// A node's addresses (its InternalIPs in this order, and its Hostname), and that it is ready: a kubelet's part.
    pub fn set_node_addresses(&self, node: &str, internal: &[IpAddr]) -> Result<()> {
        let mut addresses: Vec<Value> =
            internal.iter().map(|address| json!({"type": "InternalIP", "address": address})).collect();
        addresses.push(json!({"type": "Hostname", "address": node}));
        let ready = json!([{"type": "Ready", "status": "True", "reason": "KubeletReady", "message": ""}]);
        // Nodes have no namespace, and kubectl ignores the one that it is told.
        self.patch_status("default", &format!("node/{node}"), &json!({"addresses": addresses, "conditions": ready}))
    }

    /// A pod that runs with these addresses: a kubelet's part. The EndpointSlice controller takes it from there.
    pub fn set_pod_running(&self, namespace: &str, pod: &str, addresses: &[IpAddr], ready: bool) -> Result<()> {
        let truth = if ready { "True" } else { "False" };
        let all: Vec<Value> = addresses.iter().map(|address| json!({"ip": address})).collect();
        let status = json!({
            "phase": "Running",
            "podIP": addresses.first(),
            "podIPs": all,
            "conditions": [{"type": "Ready", "status": truth}],
        });
        self.patch_status(namespace, &format!("pod/{pod}"), &status)
    }

    /// Asks kubectl until `wanted` accepts the answer; an error carries the last one.
    pub fn wait_for(&self, arguments: &[&str], timeout: Duration, wanted: impl Fn(&str) -> bool) -> Result<String> {
        let deadline = Instant::now() + timeout;
        loop {
            let answer = self.kubectl(arguments);
            match answer {
                Ok(answer) if wanted(&answer) => return Ok(answer),
                last if Instant::now() >= deadline => {
                    anyhow::bail!("kubectl {arguments:?}: not within {timeout:?}; the last answer was {last:?}")
                }
                _ => thread::sleep(POLL),
            }
        }
    }
}
