//! Talking to the API server: kubectl, and the status that a kubelet would write.
//!
//! The same questions work on an [`Api`](super::Api) of this process and on one of another machine
//! ([`Remote`](super::Remote)); all of them end in one call of kubectl.

use std::{
    net::IpAddr,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

/// How often a condition on the server is looked at.
const POLL: Duration = Duration::from_millis(200);

/// Who asks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum User {
    /// A member of system:masters.
    Admin,
    /// The agent's service account.
    Agent,
}

/// Something that runs kubectl.
pub trait Kubectl {
    /// Runs it with something on standard input; returns standard output.
    fn call(&self, user: User, arguments: &[&str], input: Option<&str>) -> Result<String>;

    /// kubectl as administrator; standard output.
    fn kubectl(&self, arguments: &[&str]) -> Result<String> {
        self.call(User::Admin, arguments, None)
    }

    /// kubectl as the agent's service account.
    fn kubectl_as_agent(&self, arguments: &[&str]) -> Result<String> {
        self.call(User::Agent, arguments, None)
    }

    /// kubectl with something on standard input (`-f -`).
    fn kubectl_with_input(&self, arguments: &[&str], input: &str) -> Result<String> {
        self.call(User::Admin, arguments, Some(input))
    }

    /// `kubectl apply -f -`: any number of documents.
    fn apply(&self, yaml: &str) -> Result<()> {
        self.kubectl_with_input(&["apply", "-f", "-"], yaml).map(drop)
    }

    /// `kubectl delete -f -`, without waiting for the objects to be gone.
    fn delete(&self, yaml: &str) -> Result<()> {
        self.kubectl_with_input(&["delete", "--wait=false", "--ignore-not-found", "-f", "-"], yaml).map(drop)
    }

    /// An object as JSON, e.g. `get("default", "service/web")`.
    fn get(&self, namespace: &str, object: &str) -> Result<Value> {
        let text = self.kubectl(&["get", "-n", namespace, object, "-o", "json"])?;
        serde_json::from_str(&text).context("kubectl get -o json")
    }

    /// Merges `status` into the status of an object, e.g. `patch_status("default", "pod/a", &json!({...}))`.
    fn patch_status(&self, namespace: &str, object: &str, status: &Value) -> Result<()> {
        let patch = json!({ "status": status }).to_string();
        let arguments = ["patch", "-n", namespace, object, "--subresource=status", "--type=merge", "-p", &patch];
        self.kubectl(&arguments).map(drop)
    }

    /// A node's addresses (its InternalIPs in this order, and its Hostname), and that it is ready: a kubelet's part.
    fn set_node_addresses(&self, node: &str, internal: &[IpAddr]) -> Result<()> {
        let mut addresses: Vec<Value> =
            internal.iter().map(|address| json!({"type": "InternalIP", "address": address})).collect();
        addresses.push(json!({"type": "Hostname", "address": node}));
        let ready = json!([{"type": "Ready", "status": "True", "reason": "KubeletReady", "message": ""}]);
        // Nodes have no namespace, and kubectl ignores the one that it is told.
        self.patch_status("default", &format!("node/{node}"), &json!({"addresses": addresses, "conditions": ready}))
    }

    /// A pod that runs with these addresses: a kubelet's part. The EndpointSlice controller takes it from there.
    fn set_pod_running(&self, namespace: &str, pod: &str, addresses: &[IpAddr], ready: bool) -> Result<()> {
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
    fn wait_for(&self, arguments: &[&str], timeout: Duration, wanted: impl Fn(&str) -> bool) -> Result<String> {
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
