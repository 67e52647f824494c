//! `policy.networking.k8s.io` ClusterNetworkPolicy.
//!
//! Never refused for something inside it, as a policy that is not there denies nothing. See `policy.rs`.

use super::{
    BadField, Field, RawObject,
    policy::{nonsense, selector, strict},
    raw::{self, List},
    text,
};
use crate::objects::{
    ClusterNetworkPolicy, ClusterPeer, ClusterProtocol, ClusterRule, ClusterSubject, DestinationPort, LabelSelector,
    NamespacedPod, ObjectKey,
};

pub(super) fn parse(key: ObjectKey, raw: &mut RawObject) -> Result<ClusterNetworkPolicy, BadField> {
    let spec = std::mem::take(&mut raw.spec).get("spec")?.unwrap_or_default();
    let tier = text(spec.tier, "spec.tier").unwrap_or_else(|bad| Some(bad.text.into()));
    Ok(ClusterNetworkPolicy {
        key,
        tier: tier.unwrap_or_default(),
        priority: spec.priority.peek().copied(),
        subject: subject(spec.subject)
            .unwrap_or_else(|bad| ClusterSubject { namespaces: Some(nonsense(&bad)), pods: None }),
        ingress: rules(spec.ingress, "spec.ingress", "from"),
        egress: rules(spec.egress, "spec.egress", "to"),
    })
}

fn subject(field: Field<raw::ClusterSubject>) -> Result<ClusterSubject, BadField> {
    let raw = field.get("spec.subject")?.unwrap_or_default();
    Ok(ClusterSubject {
        namespaces: select(raw.namespaces, "spec.subject.namespaces")?,
        pods: pods(raw.pods, "spec.subject.pods")?,
    })
}

fn select(field: Field<raw::Selector>, path: &str) -> Result<Option<LabelSelector>, BadField> {
    field.get(path)?.map(|raw| selector(raw, path)).transpose()
}

fn pods(field: Field<raw::NamespacedPod>, path: &str) -> Result<Option<NamespacedPod>, BadField> {
    let Some(raw) = field.get(path)? else { return Ok(None) };
    Ok(Some(NamespacedPod {
        namespaces: select(raw.namespace_selector, &format!("{path}.namespaceSelector"))?.unwrap_or_default(),
        pods: select(raw.pod_selector, &format!("{path}.podSelector"))?.unwrap_or_default(),
    }))
}

fn unreadable(action: Box<str>, bad: &BadField) -> ClusterRule {
    ClusterRule { action, unreadable: Some(bad.to_string().into()), ..ClusterRule::default() }
}

fn rules(field: List<raw::PolicyRule>, path: &str, peers: &str) -> Box<[ClusterRule]> {
    let list = match field.get(path) {
        Ok(list) => list.unwrap_or_default(),
        Err(bad) => return [unreadable(Box::default(), &bad)].into(),
    };
    let read = |(i, entry): (usize, Field<raw::PolicyRule>)| {
        let path = format!("{path}[{i}]");
        match entry.get(&path) {
            Ok(raw) => rule(raw.unwrap_or_default(), &path, peers),
            Err(bad) => unreadable(Box::default(), &bad),
        }
    };
    list.into_iter().enumerate().map(read).collect()
}

fn rule(raw: raw::PolicyRule, path: &str, peers: &str) -> ClusterRule {
    let action = raw.action.peek().cloned().unwrap_or_default();
    let list = if peers == "from" { raw.from } else { raw.to };
    let rest = || -> Result<ClusterRule, BadField> {
        let mut found = Vec::new();
        for (path, raw) in strict(list, &format!("{path}.{peers}"))? {
            found.push(peer(raw, &path)?);
        }
        let protocols = match raw.protocols {
            Field::Absent => None,
            field => {
                let list = strict(field, &format!("{path}.protocols"))?;
                Some(list.into_iter().map(|(path, raw)| protocol(raw, &path)).collect::<Result<_, _>>()?)
            }
        };
        Ok(ClusterRule {
            // Decides nothing.
            name: raw.name.peek().cloned().unwrap_or_default(),
            action: action.clone(),
            peers: found.into(),
            protocols,
            unreadable: None,
        })
    };
    rest().unwrap_or_else(|bad| unreadable(action.clone(), &bad))
}

fn peer(raw: raw::PolicyPeer, path: &str) -> Result<ClusterPeer, BadField> {
    let texts = |field: List<raw::Text>, name: &str| match field {
        Field::Absent => Ok(None),
        field => {
            let list = strict(field, &format!("{path}.{name}"))?;
            Ok(Some(list.into_iter().map(|(_, text)| text).collect()))
        }
    };
    Ok(ClusterPeer {
        namespaces: select(raw.namespaces, &format!("{path}.namespaces"))?,
        pods: pods(raw.pods, &format!("{path}.pods"))?,
        nodes: select(raw.nodes, &format!("{path}.nodes"))?,
        networks: texts(raw.networks, "networks")?,
        domain_names: texts(raw.domain_names, "domainNames")?,
    })
}

fn protocol(raw: raw::PolicyProtocol, path: &str) -> Result<ClusterProtocol, BadField> {
    let transport = |field: Field<raw::Transport>, name: &str| {
        let path = format!("{path}.{name}");
        let Some(raw) = field.get(&path)? else { return Ok(None) };
        let path = format!("{path}.destinationPort");
        let port = raw.destination_port.get(&path)?.unwrap_or_default();
        let range = port.range.get(format_args!("{path}.range"))?;
        let bounds = |range: raw::PortRange| {
            let start = range.start.get(format_args!("{path}.range.start"))?;
            Ok((start, range.end.get(format_args!("{path}.range.end"))?))
        };
        let number = port.number.get(format_args!("{path}.number"))?;
        Ok(Some(DestinationPort { number, range: range.map(bounds).transpose()? }))
    };
    Ok(ClusterProtocol {
        tcp: transport(raw.tcp, "tcp")?,
        udp: transport(raw.udp, "udp")?,
        sctp: transport(raw.sctp, "sctp")?,
        named_port: text(raw.destination_named_port, format_args!("{path}.destinationNamedPort"))?,
    })
}
