//! The shop of the policy act: who is in it, and the policies in the order in which they come.

use serde_json::{Value, json};

/// Address of the pod that answers.
pub const WEB: &str = "10.2.0.20";
/// The client outside, as a policy names it.
pub const CLIENT_BLOCK: &str = "192.168.10.200/32";

pub struct ShopPod {
    namespace: &'static str,
    pub name: &'static str,
    /// Namespace and name.
    pub shown: &'static str,
    pub address: &'static str,
    /// Where it answers.
    pub port: Option<u16>,
    pub labels: &'static str,
}

/// On one node each, in the nodes' order.
pub const PODS: [ShopPod; 3] = [
    ShopPod { namespace: "shop", name: "web", shown: "shop/web", address: WEB, port: Some(80), labels: "app=web" },
    ShopPod {
        namespace: "shop",
        name: "front",
        shown: "shop/front",
        address: "10.2.3.20",
        port: None,
        labels: "app=front",
    },
    ShopPod {
        namespace: "ops",
        name: "probe",
        shown: "ops/probe",
        address: "10.2.4.20",
        port: None,
        labels: "app=probe",
    },
];

impl ShopPod {
    /// As the API server would have it.
    pub fn object(&self, node: &str) -> Value {
        let (key, value) = self.labels.split_once('=').unwrap_or((self.labels, ""));
        let ports: Vec<Value> =
            self.port.map(|port| json!({"name": "http", "containerPort": port})).into_iter().collect();
        json!({
            "apiVersion": "v1", "kind": "Pod",
            "metadata": {"name": self.name, "namespace": self.namespace, "labels": {key: value}},
            "spec": {"nodeName": node, "containers": [{"name": "main", "image": "shop", "ports": ports}]},
            "status": {"phase": "Running", "podIP": self.address, "podIPs": [{"ip": self.address}]},
        })
    }
}

pub fn namespaces() -> Vec<Value> {
    let namespace = |name: &str| json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name, "labels": {"team": name}}});
    ["shop", "ops"].map(namespace).into()
}

pub struct Step {
    pub sentence: &'static str,
    /// Of its policy.
    pub name: &'static str,
    pub policy: &'static str,
    /// Who is answered once it is in force.
    pub answered: &'static [&'static str],
}

/// Each policy comes beside those before it: policies add up.
pub const STEPS: [Step; 4] = [
    Step {
        sentence: "A policy that selects all pods of the shop and has no rule shuts it:",
        name: "deny-all",
        policy: "\
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: deny-all, namespace: shop}
spec: {podSelector: {}, policyTypes: [Ingress]}
",
        answered: &[],
    },
    Step {
        sentence: "A second policy opens shop/web for pods of the shop with a label:",
        name: "front-only",
        policy: "\
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: front-only, namespace: shop}
spec:
  podSelector: {matchLabels: {app: web}}
  ingress:
  - from: [{podSelector: {matchLabels: {app: front}}}]
    ports: [{port: 80}]
",
        answered: &["shop/front"],
    },
    Step {
        sentence: "A third one opens it for every pod of another team's namespaces:",
        name: "from-ops",
        policy: "\
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: from-ops, namespace: shop}
spec:
  podSelector: {matchLabels: {app: web}}
  ingress:
  - from: [{namespaceSelector: {matchLabels: {team: ops}}}]
",
        answered: &["shop/front", "ops/probe"],
    },
    Step {
        sentence: "A fourth one opens it for an address outside the cluster:",
        name: "from-outside",
        policy: "\
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: from-outside, namespace: shop}
spec:
  podSelector: {matchLabels: {app: web}}
  ingress:
  - from: [{ipBlock: {cidr: 192.168.10.200/32}}]
    ports: [{port: 80}]
",
        answered: &["shop/front", "ops/probe", "outside"],
    },
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn policies_can_be_read_and_name_what_is_there() {
        for step in &STEPS {
            let policy: Value = serde_saphyr::from_str(step.policy).unwrap();
            assert_eq!(policy["metadata"]["name"], step.name);
        }
        assert!(STEPS[3].policy.contains(CLIENT_BLOCK));
        assert_eq!(PODS[0].object("n")["metadata"]["labels"]["app"], "web");
    }
}
