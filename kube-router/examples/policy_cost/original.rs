//! The same policies in the chains and sets of the original, as text for `ipset restore` and `iptables-restore`.
//!
//! As it was seen on a node (iptables, IPv4): `KUBE-ROUTER-FORWARD` asks for every local pod's address, both ways, once
//! more for bridged packets; a pod's chain jumps to the chain of every policy that selects it; a policy's chain has a pair
//! of rules for every peer kind and port. Sets hold the pods that a selector means. Names are numbered, not hashed, with
//! the same length. Only what these clusters use: selectors of exact labels, blocks, numbered ports.

use std::{collections::BTreeMap, fmt::Write};

use kube_router::objects::{LabelSelector, NetworkPolicy, Object, Pod, PolicyPeer, PolicyPort, PolicyRule, PortRef};

use crate::cluster::NODE;

pub struct Layout {
    pub sets: String,
    pub rules: String,
}

struct Original<'a> {
    pods: Vec<&'a Pod>,
    namespaces: BTreeMap<&'a str, &'a kube_router::objects::Labels>,
    sets: String,
    set_count: usize,
    chains: String,
    rules: String,
}

/// Pods and policies keep their order.
pub fn layout(objects: &[Object]) -> Layout {
    let pods: Vec<&Pod> =
        objects.iter().filter_map(|object| if let Object::Pod(pod) = object { Some(pod) } else { None }).collect();
    let namespaces = objects.iter().filter_map(|object| match object {
        Object::Namespace(namespace) => Some((&*namespace.key.name, &namespace.labels)),
        _ => None,
    });
    let mut original = Original {
        pods,
        namespaces: namespaces.collect(),
        sets: String::new(),
        set_count: 0,
        chains: String::new(),
        rules: String::new(),
    };
    original.common();
    let mut policies = Vec::new();
    for (n, object) in objects.iter().enumerate() {
        if let Object::NetworkPolicy(policy) = object {
            let chain = format!("KUBE-NWPLCY-{n:016}");
            original.policy(&chain, policy);
            policies.push((chain, policy));
        }
    }
    let local: Vec<(usize, &Pod)> =
        original.pods.iter().copied().enumerate().filter(|(_, pod)| pod.node.as_deref() == Some(NODE)).collect();
    for (n, pod) in local {
        original.pod(n, pod, &policies);
    }
    original.end()
}

fn selects(selector: &LabelSelector, labels: &kube_router::objects::Labels) -> bool {
    selector.match_labels.iter().all(|(key, value)| labels.get(key) == Some(value))
}

impl Original<'_> {
    fn chain(&mut self, name: &str) {
        let _ = writeln!(self.chains, ":{name} - [0:0]");
    }

    fn rule(&mut self, text: &str) {
        let _ = writeln!(self.rules, "-A {text}");
    }

    fn common(&mut self) {
        for chain in ["COMMON", "DEFAULT", "TAIL"] {
            self.chain(&format!("KUBE-NWPLCY-{chain}"));
        }
        let common = "KUBE-NWPLCY-COMMON -m comment --comment";
        self.rule(&format!("{common} \"rule to drop invalid state for pod\" -m conntrack --ctstate INVALID -j DROP"));
        self.rule(&format!(
            "{common} \"rule for stateful firewall for pod\" -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT"
        ));
        for (kind, what) in
            [(8, "echo requests"), (3, "destination unreachable messages"), (11, "time exceeded messages")]
        {
            self.rule(&format!("{common} \"allow icmp {what}\" -p icmp -m icmp --icmp-type {kind} -j ACCEPT"));
        }
        self.rule(
            "KUBE-NWPLCY-DEFAULT -m comment --comment \"rule to mark traffic matching a network policy\" -j MARK \
             --set-xmark 0x10000/0x10000",
        );
        self.rule(
            "KUBE-NWPLCY-TAIL -m comment --comment \"accept netpol-ok\" -m mark --mark 0x20000/0x20000 -j ACCEPT",
        );
        for hook in ["FORWARD", "INPUT", "OUTPUT"] {
            self.chain(&format!("KUBE-ROUTER-{hook}"));
            self.rule(&format!(
                "{hook} -m comment --comment \"kube-router netpol - TEMCG2JMHZYE7H7T\" -j KUBE-ROUTER-{hook}"
            ));
        }
    }

    fn set(&mut self, direction: &str, kind: &str, members: impl IntoIterator<Item = String>) -> String {
        self.set_count += 1;
        let name = format!("KUBE-{direction}-{:016}", self.set_count);
        let _ = writeln!(self.sets, "create {name} {kind} family inet maxelem 65536 timeout 0");
        for member in members {
            let _ = writeln!(self.sets, "add {name} {member}");
        }
        name
    }

    fn addresses(&self, namespace: &str, peers: &[&PolicyPeer]) -> Vec<String> {
        let means = |pod: &&&Pod| {
            peers.iter().any(|peer| {
                let there = match &peer.namespaces {
                    Some(selector) => {
                        self.namespaces.get(&*pod.key.namespace).is_some_and(|labels| selects(selector, labels))
                    }
                    None => *pod.key.namespace == *namespace,
                };
                there && peer.pods.as_ref().is_none_or(|selector| selects(selector, &pod.labels))
            })
        };
        self.pods.iter().filter(means).flat_map(|pod| &pod.ips).map(|ip| format!("{ip} timeout 0")).collect()
    }

    fn policy(&mut self, chain: &str, policy: &NetworkPolicy) {
        self.chain(chain);
        let subject = PolicyPeer { pods: Some(policy.pod_selector.clone()), ..PolicyPeer::default() };
        let subjects = self.addresses(&policy.key.namespace, &[&subject]);
        for (rules, own, peer, word) in
            [(&policy.ingress, "DST", "SRC", "ingress"), (&policy.egress, "SRC", "DST", "egress")]
        {
            if rules.is_empty() {
                continue;
            }
            let own = (self.set(own, "hash:ip", subjects.iter().cloned()), own);
            for rule in rules {
                self.permit(chain, policy, rule, &own, peer, word);
            }
        }
    }

    fn permit(
        &mut self,
        chain: &str,
        policy: &NetworkPolicy,
        rule: &PolicyRule,
        own: &(String, &str),
        peer: &str,
        word: &str,
    ) {
        let (blocks, selectors): (Vec<_>, Vec<_>) = rule.peers.iter().partition(|peer| peer.block.is_some());
        let mut sets = Vec::new();
        if !selectors.is_empty() {
            let members = self.addresses(&policy.key.namespace, &selectors);
            sets.push((self.set(peer, "hash:ip", members), "pods"));
        }
        if !blocks.is_empty() {
            let members = blocks.iter().filter_map(|peer| peer.block.as_ref()).flat_map(|block| {
                let except = block.except.iter().map(|cidr| format!("{cidr} timeout 0 nomatch"));
                std::iter::once(format!("{} timeout 0", block.cidr)).chain(except)
            });
            let members: Vec<String> = members.collect();
            sets.push((self.set(peer, "hash:net", members), "cidr"));
        }
        for (set, tag) in sets {
            let side = |direction: &str| direction.to_lowercase();
            let mut pair = [(own.0.clone(), side(own.1)), (set, side(peer))];
            pair.sort_by_key(|(_, side)| side == "dst");
            let matches: String = pair.iter().map(|(set, side)| format!("-m set --match-set {set} {side} ")).collect();
            for port in &rule.ports {
                let comment = format!("-m comment --comment \"{} {word} {tag}\"", policy.key);
                let head = format!("{chain} {comment} {matches}{}", match_port(port));
                self.rule(&format!("{head} -j MARK --set-xmark 0x10000/0x10000"));
                self.rule(&format!("{head} -m mark --mark 0x10000/0x10000 -j RETURN"));
            }
        }
    }

    fn pod(&mut self, n: usize, pod: &Pod, policies: &[(String, &NetworkPolicy)]) {
        let chain = format!("KUBE-POD-FW-{n:016}");
        self.chain(&chain);
        let Some(ip) = pod.ips.first() else { return };
        let name = &pod.key;
        for (hook, bridged, ways) in [("FORWARD", true, "ds"), ("OUTPUT", false, "ds"), ("INPUT", false, "s")] {
            for way in ways.chars() {
                let tag = if way == 'd' { "in" } else { "out" };
                let head = format!("KUBE-ROUTER-{hook} -{way} {ip}/32");
                let tail = format!("-m comment --comment \"{name} {tag}\" -j {chain}");
                self.rule(&format!("{head} {tail}"));
                if bridged {
                    self.rule(&format!("{head} -m physdev --physdev-is-bridged {tail}"));
                }
            }
        }
        self.rule(&format!("{chain} -m comment --comment \"common netpol rules\" -j KUBE-NWPLCY-COMMON"));
        self.rule(&format!(
            "{chain} -d {ip}/32 -m comment --comment \"from local node\" -m addrtype --src-type LOCAL -j ACCEPT"
        ));
        let selecting: Vec<&(String, &NetworkPolicy)> = policies
            .iter()
            .filter(|(_, policy)| policy.key.namespace == name.namespace && selects(&policy.pod_selector, &pod.labels))
            .collect();
        if selecting.is_empty() {
            for (way, tag) in [('s', "egress"), ('d', "ingress")] {
                self.rule(&format!(
                    "{chain} -{way} {ip}/32 -m comment --comment \"default {tag}\" -j KUBE-NWPLCY-DEFAULT"
                ));
            }
        }
        for (policy_chain, policy) in selecting {
            self.rule(&format!("{chain} -m comment --comment \"{} policy\" -j {policy_chain}", policy.key));
        }
        let unmarked = "-m mark ! --mark 0x10000/0x10000";
        self.rule(&format!(
            "{chain} -m comment --comment \"{name} log-drop\" {unmarked} -m limit --limit 10/min --limit-burst 10 -j NFLOG \
             --nflog-group 100"
        ));
        self.rule(&format!(
            "{chain} -m comment --comment \"{name} reject\" {unmarked} -j REJECT --reject-with icmp-port-unreachable"
        ));
        self.rule(&format!("{chain} -j MARK --set-xmark 0x0/0x10000"));
        self.rule(&format!("{chain} -m comment --comment \"set netpol-ok mark\" -j MARK --set-xmark 0x20000/0x20000"));
    }

    fn end(mut self) -> Layout {
        for hook in ["FORWARD", "INPUT", "OUTPUT"] {
            let rule = format!("KUBE-ROUTER-{hook} -m comment --comment \"rule to explicitly");
            let decision = "handle traffic for network policies ACCEPT/REJECT decision";
            self.rule(&format!("{rule} {decision}\" -j KUBE-NWPLCY-TAIL"));
            let comply = "ACCEPT traffic that comply to network policies";
            self.rule(&format!("{rule} {comply}\" -m mark --mark 0x20000/0x20000 -j ACCEPT"));
        }
        let bases = ":INPUT ACCEPT [0:0]\n:FORWARD ACCEPT [0:0]\n:OUTPUT ACCEPT [0:0]\n";
        Layout { sets: self.sets, rules: format!("*filter\n{bases}{}{}COMMIT\n", self.chains, self.rules) }
    }
}

fn match_port(port: &PolicyPort) -> String {
    let protocol = port.protocol.as_deref().unwrap_or("TCP").to_lowercase();
    match port.port {
        Some(PortRef::Number(number)) => format!("-p {protocol} -m {protocol} --dport {number}"),
        _ => format!("-p {protocol}"),
    }
}
