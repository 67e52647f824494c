//! The clusters that are measured, as objects and as manifests.
//!
//! [`Shape`] is a usual cluster of any size: applications of ten pods, spread over namespaces, each with policies about
//! its callers and whom it calls; 64 of the pods are on our node. [`Measured`] are two more pods of our node, a client and
//! a server with a number of policies of their own; of these only the last one allows what the client sends.

use std::net::{IpAddr, Ipv4Addr};

use kube_router::objects::{
    IpBlock, LabelSelector, Namespace, NetworkPolicy, Object, ObjectKey, Pod, PolicyPeer, PolicyPort, PolicyRule,
    PortRef,
};
use serde_json::{Value, json};

/// Our node.
pub const NODE: &str = "n0";
pub const NODE_ADDRESS: Ipv4Addr = Ipv4Addr::new(192, 168, 10, 100);
/// Pods of a shape that are ours.
pub const LOCAL: u32 = 64;
/// Pods of one application.
const REPLICAS: u32 = 10;

pub const CLIENT: Ipv4Addr = Ipv4Addr::new(10, 130, 0, 10);
pub const SERVER: Ipv4Addr = Ipv4Addr::new(10, 130, 0, 11);
/// Where the server listens, UDP.
pub const PORT: u16 = 9;
const MEASURED: &str = "measured";

/// What an ingress or egress rule of [`Shape`] allows at least: a selector of pods.
fn select(key: &str, value: String) -> LabelSelector {
    LabelSelector { match_labels: [(key, value)].into_iter().collect(), ..LabelSelector::default() }
}

fn pods(selector: LabelSelector) -> PolicyPeer {
    PolicyPeer { pods: Some(selector), ..PolicyPeer::default() }
}

fn rule(peers: &[PolicyPeer], protocol: Option<&str>, port: u32) -> PolicyRule {
    let port =
        PolicyPort { protocol: protocol.map(Into::into), port: Some(PortRef::Number(port.into())), end_port: None };
    PolicyRule { peers: peers.into(), ports: [port].into(), unreadable: None }
}

fn pod(key: ObjectKey, labels: Vec<(&str, String)>, node: &str, ip: Ipv4Addr) -> Object {
    Object::Pod(Pod {
        uid: None,
        key,
        created_s: 1_700_000_000,
        labels: labels.into_iter().collect(),
        node: Some(node.into()),
        host_ips: Default::default(),
        ips: vec![IpAddr::V4(ip)],
        host_network: false,
        completed: false,
        terminating: false,
        grace_period_s: Some(30),
        ports: Default::default(),
    })
}

fn namespace(name: &str) -> Object {
    let labels = [("kubernetes.io/metadata.name", name.to_owned())].into_iter().collect();
    Object::Namespace(Namespace { key: ObjectKey::cluster(name), labels, isolation: None })
}

#[derive(Clone, Copy, Debug)]
pub struct Shape {
    pub policies: u32,
    pub pods: u32,
    pub namespaces: u32,
}

impl Shape {
    pub fn objects(&self) -> Vec<Object> {
        let namespaces = (0..self.namespaces).map(|n| namespace(&self.namespace(n)));
        let pods = (0..self.pods).map(|n| self.pod(n, None));
        namespaces.chain(pods).chain((0..self.policies).map(|n| self.policy(n, 80 + n % 100))).collect()
    }

    fn namespace(&self, n: u32) -> String {
        format!("team-{}", n % self.namespaces)
    }

    /// The n-th pod of our node.
    pub fn ours(&self, n: u32) -> u32 {
        n * (self.pods / LOCAL)
    }

    /// Pods in the order of applications, applications spread over namespaces.
    pub fn pod(&self, n: u32, role: Option<&str>) -> Object {
        let app = n / REPLICAS;
        let mut labels = vec![("app", format!("app-{app}")), ("pod-template-hash", "6c9f7d5b8".to_owned())];
        labels.extend(role.map(|value| ("role", value.to_owned())));
        let step = self.pods / LOCAL;
        let node =
            if n.is_multiple_of(step) && n / step < LOCAL { NODE.to_owned() } else { format!("n{}", 1 + n % 156) };
        let key = ObjectKey::new(self.namespace(app), format!("app-{app}-6c9f7d5b8-{n:05}"));
        pod(key, labels, &node, Ipv4Addr::from(0x0a80_0001 + n))
    }

    /// A policy of the application of the n-th pod of our node.
    pub fn policy_of_ours(&self, n: u32, port: u32) -> Object {
        self.policy(self.ours(n) / REPLICAS, port)
    }

    /// Who may call the application (another one, a role, one of the next namespace, a block), and whom it may call.
    pub fn policy(&self, n: u32, port: u32) -> Object {
        let apps = self.pods / REPLICAS;
        let app = n % apps;
        let other = (app + n / apps * self.namespaces + self.namespaces) % apps;
        let peers = [
            pods(select("app", format!("app-{other}"))),
            pods(select("role", format!("client-{}", n % 7))),
            PolicyPeer {
                namespaces: Some(select("kubernetes.io/metadata.name", self.namespace(app + 1))),
                pods: Some(select("app", format!("app-{}", (app + 1) % apps))),
                block: None,
            },
            PolicyPeer {
                block: Some(IpBlock {
                    cidr: format!("172.{}.{}.0/24", 16 + n % 16, n % 256).into(),
                    except: [format!("172.{}.{}.128/25", 16 + n % 16, n % 256).into()].into(),
                }),
                ..PolicyPeer::default()
            },
        ];
        Object::NetworkPolicy(NetworkPolicy {
            key: ObjectKey::new(self.namespace(app), format!("policy-{n:05}")),
            pod_selector: select("app", format!("app-{app}")),
            policy_types: ["Ingress".into(), "Egress".into()].into(),
            ingress: [rule(&peers, None, port)].into(),
            egress: [rule(&peers[..2], None, 8000 + n % 50)].into(),
        })
    }
}

/// Client and server.
#[derive(Clone, Copy, Debug)]
pub struct Measured {
    /// Policies that select both.
    pub policies: u32,
    /// Pods of our node beside the two, each with a policy of its own.
    pub neighbours: u32,
    /// The two are the last ones of the node by name and in the order of events; otherwise the first ones.
    pub last: bool,
}

impl Measured {
    pub fn objects(&self) -> Vec<Object> {
        let two = || [("client", CLIENT), ("server", SERVER)].map(|(name, ip)| self.pod(name, ip));
        let neighbours = (0..self.neighbours).map(|n| {
            let labels = vec![("neighbour", n.to_string())];
            pod(ObjectKey::new(MEASURED, format!("m-{n:03}")), labels, NODE, Ipv4Addr::from(0x0a82_0100 + n))
        });
        let peers = (0..self.policies).map(|n| self.peer(n, false));
        let mut objects = vec![namespace(MEASURED)];
        if self.last {
            objects.extend(neighbours.chain(two()));
        } else {
            objects.extend(two().into_iter().chain(neighbours));
        }
        objects.extend(peers);
        objects.extend((0..self.policies).map(|n| self.policy(n, n + 1 == self.policies)));
        objects.extend((0..self.neighbours).map(|n| {
            let name = format!("neighbour-{n:03}");
            let (who, from) = (select("neighbour", n.to_string()), select("neighbour", (n + 1).to_string()));
            both_ways(&name, who, &[pods(from)], 80)
        }));
        objects
    }

    fn pod(&self, name: &str, ip: Ipv4Addr) -> Object {
        let name = if self.last { format!("z-{name}") } else { format!("a-{name}") };
        pod(ObjectKey::new(MEASURED, name), vec![("measured", "yes".to_owned())], NODE, ip)
    }

    /// A pod elsewhere that one of the policies speaks of; `named`: by its labels it is like client and server, and may
    /// talk to them.
    pub fn peer(&self, n: u32, named: bool) -> Object {
        let mut labels = vec![("peer", n.to_string())];
        labels.extend(named.then(|| ("measured", "yes".to_owned())));
        pod(ObjectKey::new(MEASURED, format!("peer-{n}")), labels, "n1", Ipv4Addr::from(0x0a82_0200 + n))
    }

    /// One of the policies of client and server: allows them each other, or only a pod that says nothing.
    pub fn policy(&self, n: u32, allows: bool) -> Object {
        let measured = select("measured", "yes".to_owned());
        let peer = if allows { measured.clone() } else { select("peer", n.to_string()) };
        let port = if allows { PORT.into() } else { 5000 + n };
        both_ways(&format!("policy-{n:03}"), measured, &[pods(peer)], port)
    }
}

fn both_ways(name: &str, pod_selector: LabelSelector, peers: &[PolicyPeer], port: u32) -> Object {
    Object::NetworkPolicy(NetworkPolicy {
        key: ObjectKey::new(MEASURED, name),
        pod_selector,
        policy_types: ["Ingress".into(), "Egress".into()].into(),
        ingress: [rule(peers, Some("UDP"), port)].into(),
        egress: [rule(peers, Some("UDP"), port)].into(),
    })
}

/// The Node object, for agents that need one.
pub fn node() -> Value {
    json!({
        "apiVersion": "v1", "kind": "Node", "metadata": {"name": NODE}, "spec": {"podCIDRs": ["10.130.0.0/24"]},
        "status": {"addresses": [{"type": "InternalIP", "address": NODE_ADDRESS.to_string()}]},
    })
}

fn selector(selector: &LabelSelector) -> Value {
    json!({"matchLabels": selector.match_labels})
}

fn rules(rules: &[PolicyRule], peers: &str) -> Value {
    let peer = |peer: &PolicyPeer| {
        let mut value = json!({});
        if let Some(block) = &peer.block {
            value["ipBlock"] = json!({"cidr": block.cidr, "except": block.except});
        }
        for (name, of) in [("podSelector", &peer.pods), ("namespaceSelector", &peer.namespaces)] {
            if let Some(of) = of {
                value[name] = selector(of);
            }
        }
        value
    };
    let port = |port: &PolicyPort| {
        let number = match &port.port {
            Some(PortRef::Number(number)) => json!(number),
            _ => Value::Null,
        };
        json!({"protocol": port.protocol.as_deref().unwrap_or("TCP"), "port": number})
    };
    let rule = |rule: &PolicyRule| {
        json!({
            peers: rule.peers.iter().map(peer).collect::<Vec<_>>(),
            "ports": rule.ports.iter().map(port).collect::<Vec<_>>(),
        })
    };
    rules.iter().map(rule).collect()
}

/// As `kubectl get -o json` prints it, without what nobody reads.
pub fn manifest(object: &Object) -> Value {
    let metadata = |key: &ObjectKey| json!({"namespace": &*key.namespace, "name": &*key.name});
    match object {
        Object::Namespace(namespace) => json!({
            "apiVersion": "v1", "kind": "Namespace",
            "metadata": {"name": &*namespace.key.name, "labels": namespace.labels},
        }),
        Object::Pod(pod) => {
            let mut metadata = metadata(&pod.key);
            metadata["labels"] = json!(pod.labels);
            metadata["creationTimestamp"] = json!("2023-11-14T22:13:20Z");
            json!({
                "apiVersion": "v1", "kind": "Pod", "metadata": metadata,
                "spec": {"nodeName": pod.node, "containers": [{"name": "main", "image": "registry.example/app:1"}]},
                "status": {"phase": "Running", "podIPs": pod.ips.iter().map(|ip| json!({"ip": ip})).collect::<Vec<_>>()},
            })
        }
        Object::NetworkPolicy(policy) => json!({
            "apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy", "metadata": metadata(&policy.key),
            "spec": {
                "podSelector": selector(&policy.pod_selector), "policyTypes": policy.policy_types,
                "ingress": rules(&policy.ingress, "from"), "egress": rules(&policy.egress, "to"),
            },
        }),
        _ => Value::Null,
    }
}
