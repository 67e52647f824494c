//! `networking.k8s.io/v1` NetworkPolicy.
//!
//! A policy is never refused for something inside it: without it its pods would be open. A selector that cannot be
//! read becomes one with a requirement that makes no sense, a rule that cannot be read an unreadable one; the compiler
//! knows what to do with either.

use super::{
    BadField, Field, RawObject, entries,
    field::NumberOrText,
    raw::{self, List},
    text,
};
use crate::objects::{
    IpBlock, LabelOperator, LabelRequirement, LabelSelector, Labels, NetworkPolicy, ObjectKey, PolicyPeer, PolicyPort,
    PolicyRule, PortRef,
};

pub(super) fn parse(key: ObjectKey, raw: &mut RawObject) -> Result<NetworkPolicy, BadField> {
    let spec = std::mem::take(&mut raw.spec).get("spec")?.unwrap_or_default();
    let pod_selector = spec.pod_selector.get("spec.podSelector").and_then(|raw| match raw {
        Some(raw) => selector(raw, "spec.podSelector"),
        None => Ok(LabelSelector::default()),
    });
    let policy_types = match entries(spec.policy_types, "spec.policyTypes") {
        Ok(types) => types.into_iter().map(|(_, word)| word).collect(),
        Err(bad) => [bad.text.into()].into(),
    };
    Ok(NetworkPolicy {
        key,
        pod_selector: pod_selector.unwrap_or_else(|bad| nonsense(&bad)),
        policy_types,
        ingress: rules(spec.ingress, "spec.ingress", "from"),
        egress: rules(spec.egress, "spec.egress", "to"),
    })
}

/// A selector that the compiler will refuse, with the reason.
pub(super) fn nonsense(bad: &BadField) -> LabelSelector {
    let requirement = LabelRequirement {
        key: "".into(),
        operator: LabelOperator::Other(bad.to_string().into()),
        values: Box::default(),
    };
    LabelSelector { match_labels: Labels::new(), match_expressions: [requirement].into() }
}

fn unreadable(bad: BadField) -> PolicyRule {
    PolicyRule { unreadable: Some(bad.to_string().into()), ..PolicyRule::default() }
}

fn rules(field: List<raw::PolicyRule>, path: &str, peers: &str) -> Box<[PolicyRule]> {
    let list = match field.get(path) {
        Ok(list) => list.unwrap_or_default(),
        Err(bad) => return [unreadable(bad)].into(),
    };
    let mut rules = Vec::with_capacity(list.len());
    for (i, entry) in list.into_iter().enumerate() {
        let path = format!("{path}[{i}]");
        let read = entry.get(&path).and_then(|raw| match raw {
            Some(raw) => rule(raw, &path, peers),
            // `- ` alone is a mistake more often than the wish to allow everything.
            None => Err(BadField::new(&path, "empty; write {} to allow everything")),
        });
        rules.push(read.unwrap_or_else(unreadable));
    }
    rules.into()
}

fn rule(raw: raw::PolicyRule, path: &str, peers: &str) -> Result<PolicyRule, BadField> {
    let list = if peers == "from" { raw.from } else { raw.to };
    let mut rule = PolicyRule::default();
    let mut found = Vec::new();
    for (path, raw) in strict(list, &format!("{path}.{peers}"))? {
        found.push(peer(raw, &path)?);
    }
    rule.peers = found.into();
    let mut found = Vec::new();
    for (path, raw) in strict(raw.ports, &format!("{path}.ports"))? {
        found.push(port(raw, &path)?);
    }
    rule.ports = found.into();
    Ok(rule)
}

/// Like [`entries`], but a `null` entry is an error: a list of nothing but those must not read as "all".
pub(super) fn strict<T: super::Shape>(field: List<T>, path: &str) -> Result<Vec<(String, T)>, BadField> {
    let mut list = Vec::new();
    for (i, entry) in field.get(path)?.unwrap_or_default().into_iter().enumerate() {
        let path = format!("{path}[{i}]");
        let entry = entry.get(&path)?.ok_or_else(|| BadField::new(&path, "empty"))?;
        list.push((path, entry));
    }
    Ok(list)
}

fn peer(raw: raw::PolicyPeer, path: &str) -> Result<PolicyPeer, BadField> {
    let select = |field: Field<raw::Selector>, name: &str| {
        let path = format!("{path}.{name}");
        field.get(&path)?.map(|raw| selector(raw, &path)).transpose()
    };
    let block = raw.ip_block.get(format_args!("{path}.ipBlock"))?;
    Ok(PolicyPeer {
        pods: select(raw.pod_selector, "podSelector")?,
        namespaces: select(raw.namespace_selector, "namespaceSelector")?,
        block: block.map(|raw| ip_block(raw, &format!("{path}.ipBlock"))).transpose()?,
    })
}

fn ip_block(raw: raw::IpBlock, path: &str) -> Result<IpBlock, BadField> {
    let cidr = text(raw.cidr, format_args!("{path}.cidr"))?.unwrap_or_default();
    let except = strict(raw.except, &format!("{path}.except"))?;
    Ok(IpBlock { cidr, except: except.into_iter().map(|(_, cidr)| cidr).collect() })
}

fn port(raw: raw::PolicyPort, path: &str) -> Result<PolicyPort, BadField> {
    let port = raw.port.get(format_args!("{path}.port"))?.map(|port| match port {
        NumberOrText::Number(number) => PortRef::Number(number),
        NumberOrText::Text(name) => PortRef::Name(name),
    });
    Ok(PolicyPort {
        protocol: text(raw.protocol, format_args!("{path}.protocol"))?,
        port,
        end_port: raw.end_port.get(format_args!("{path}.endPort"))?,
    })
}

pub(super) fn selector(raw: raw::Selector, path: &str) -> Result<LabelSelector, BadField> {
    let mut labels = Vec::new();
    for (key, value) in raw.match_labels.get(format_args!("{path}.matchLabels"))?.unwrap_or_default().0 {
        let value = value.get(format_args!("{path}.matchLabels.{key}"))?.unwrap_or_default();
        labels.push((key, value));
    }
    let mut expressions = Vec::new();
    for (path, raw) in strict(raw.match_expressions, &format!("{path}.matchExpressions"))? {
        let word = text(raw.operator, format_args!("{path}.operator"))?.unwrap_or_default();
        let values = entries(raw.values, &format!("{path}.values"))?;
        expressions.push(LabelRequirement {
            key: text(raw.key, format_args!("{path}.key"))?.unwrap_or_default(),
            operator: match &*word {
                "In" => LabelOperator::In,
                "NotIn" => LabelOperator::NotIn,
                "Exists" => LabelOperator::Exists,
                "DoesNotExist" => LabelOperator::DoesNotExist,
                _ => LabelOperator::Other(word),
            },
            values: values.into_iter().map(|(_, value)| value).collect(),
        });
    }
    Ok(LabelSelector { match_labels: labels.into_iter().collect(), match_expressions: expressions.into() })
}
