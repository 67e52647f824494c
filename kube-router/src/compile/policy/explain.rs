//! Why one packet passes or not, in words for people: the model's judgement at both ends.

use std::{collections::BTreeSet, fmt, net::IpAddr};

use super::{
    model::{Judgement, RuleRef, Traffic, judge},
    normalize::{self, Source},
    selector::LabelView,
    tiers,
};
use crate::{
    cluster::ClusterState,
    desired::policy::{Direction, Tier},
    objects::{ClusterNetworkPolicy, ObjectKey, Pod},
};

/// The verdicts of a new flow.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Explanation {
    pub from: IpAddr,
    pub to: IpAddr,
    pub traffic: Traffic,
    /// At the pod that sends; `None`: the sender is no pod, or one in its node's network.
    pub egress: Option<(ObjectKey, Judgement)>,
    /// At the pod that receives.
    pub ingress: Option<(ObjectKey, Judgement)>,
    /// The sender is the receiver's node, which may always reach its own pods.
    pub from_own_node: bool,
    /// (rule, what it says) of the rules that decided.
    texts: Vec<(RuleRef, String)>,
}

/// `host` are the addresses of the node on which `to` runs, as far as they are known.
pub fn explain(
    cluster: &ClusterState,
    host: &BTreeSet<IpAddr>,
    from: IpAddr,
    to: IpAddr,
    traffic: Traffic,
) -> Explanation {
    let at = |pod: Option<&Pod>, direction, peer| {
        pod.map(|pod| (pod.key.clone(), judge(cluster, pod, direction, peer, traffic)))
    };
    let (sender, receiver) = (cluster.pod_by_ip(from), cluster.pod_by_ip(to));
    let egress = at(sender, Direction::Egress, to);
    let ingress = at(receiver, Direction::Ingress, from);
    let from_own_node = host.contains(&from) || receiver.is_some_and(|pod| pod.host_ips.contains(&from));
    let deciding = [&egress, &ingress].into_iter().flatten().filter_map(|(_, judgement)| judgement.rules.first());
    let texts = deciding.filter_map(|rule| Some((rule.clone(), rule_text(cluster, rule)?))).collect();
    Explanation { from, to, traffic, egress, ingress, from_own_node, texts }
}

/// What a rule says, for people.
pub fn rule_text(cluster: &ClusterState, rule: &RuleRef) -> Option<String> {
    let (policy, _) = match rule.tier {
        Tier::Namespaced => normalize::policy(cluster.policy(&rule.policy)?),
        Tier::Admin | Tier::Baseline => tiers::policy(cluster.cluster_policy(&rule.policy.name)?),
    };
    let rules = policy.rules.into_iter().nth(rule.direction as usize)??;
    rules.iter().find(|known| known.index == rule.index).map(ToString::to_string)
}

/// Can a pod of this namespace be the policy's subject?
pub fn is_about(cluster: &ClusterState, policy: &ClusterNetworkPolicy, namespace: &str) -> bool {
    let labels = LabelView::of_namespace(namespace, cluster.namespace(namespace));
    tiers::policy(policy).0.namespaces.match_labels(labels)
}

impl Explanation {
    pub fn allowed(&self) -> bool {
        let passes = |end: &Option<(ObjectKey, Judgement)>| end.as_ref().is_none_or(|(_, judgement)| judgement.allowed);
        passes(&self.egress) && (self.from_own_node || passes(&self.ingress))
    }

    fn end(&self, f: &mut fmt::Formatter<'_>, pod: &ObjectKey, judgement: &Judgement, word: &str) -> fmt::Result {
        write!(f, "  {word} of {pod}: ")?;
        let Some(rule) = judgement.rules.first() else {
            if judgement.isolated_by.is_empty() {
                return writeln!(f, "allowed, no policy isolates it");
            }
            let names: Vec<String> = judgement.isolated_by.iter().map(named).collect();
            return writeln!(f, "denied, isolated by {}, no rule of which allows this", names.join(", "));
        };
        let text = self.texts.iter().find(|(known, _)| known == rule).map_or("", |(_, text)| text);
        let verdict = if judgement.allowed { "allowed" } else { "denied" };
        let tier = match rule.tier {
            Tier::Admin => " (tier Admin)",
            Tier::Namespaced => "",
            Tier::Baseline => " (tier Baseline)",
        };
        let RuleRef { policy, index, .. } = rule;
        writeln!(f, "{verdict} by {} {policy}{tier} {word}[{index}] ({text})", rule.tier.kind())
    }
}

fn named(source: &Source) -> String {
    source.subject().to_string()
}

impl fmt::Display for Explanation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let verdict = if self.allowed() { "allowed" } else { "denied" };
        match self.traffic {
            Traffic::Port(protocol, port) => writeln!(f, "{} -> {} {protocol}/{port}: {verdict}", self.from, self.to)?,
            Traffic::Portless => writeln!(f, "{} -> {} without ports: {verdict}", self.from, self.to)?,
        }
        if let Some((pod, judgement)) = &self.egress {
            self.end(f, pod, judgement, "egress")?;
        }
        match &self.ingress {
            Some((pod, _)) if self.from_own_node => writeln!(f, "  ingress of {pod}: allowed, its node may reach it"),
            Some((pod, judgement)) => self.end(f, pod, judgement, "ingress"),
            None => Ok(()),
        }
    }
}
