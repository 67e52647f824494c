//! `v1` Pod and Node, and the labels of a Namespace.

use std::{collections::BTreeMap, str::FromStr};

use super::{
    BadField, Field, RawObject, Text, entries,
    field::TextMap,
    raw::{Metadata, NodeAddress},
    text,
};
use crate::objects::{Labels, Node, ObjectKey, Pod, annotations};

pub(super) fn labels(field: Field<TextMap>) -> Result<Labels, BadField> {
    texts(field.get("metadata.labels")?.unwrap_or_default().0, "metadata.labels").map(Labels::from)
}

fn texts(map: BTreeMap<Text, Field<Text>>, path: &str) -> Result<BTreeMap<Text, Text>, BadField> {
    let mut texts = BTreeMap::new();
    for (name, value) in map {
        let value = value.get(format_args!("{path}.{name}"))?.unwrap_or_default();
        texts.insert(name, value);
    }
    Ok(texts)
}

pub(super) fn pod(
    key: ObjectKey,
    metadata: Metadata,
    raw: &mut RawObject,
    ignored: &mut Vec<BadField>,
) -> Result<Pod, BadField> {
    let spec = std::mem::take(&mut raw.spec).get("spec")?.unwrap_or_default();
    let status = std::mem::take(&mut raw.status).get("status")?.unwrap_or_default();

    let mut ips = Vec::new();
    let pod_ips = entries(status.pod_ips, "status.podIPs")?;
    if pod_ips.is_empty() {
        ips.extend(text(status.pod_ip, "status.podIP")?.map(|ip| ("status.podIP".to_owned(), ip)));
    }
    for (path, entry) in pod_ips {
        let path = format!("{path}.ip");
        ips.extend(text(entry.ip, &path)?.map(|ip| (path, ip)));
    }

    let deletion_began = text(metadata.deletion_timestamp, "metadata.deletionTimestamp")?.is_some();
    let deletion_grace = metadata.deletion_grace_period_seconds.get("metadata.deletionGracePeriodSeconds")?;
    let spec_grace = spec.termination_grace_period_seconds.get("spec.terminationGracePeriodSeconds")?;

    Ok(Pod {
        key,
        labels: labels(metadata.labels)?,
        node: text(spec.node_name, "spec.nodeName")?.map(Into::into),
        ips: values(ips, "an IP address", ignored),
        host_network: spec.host_network.get("spec.hostNetwork")?.unwrap_or(false),
        completed: matches!(text(status.phase, "status.phase")?.as_deref(), Some("Succeeded" | "Failed")),
        grace_period_s: deletion_grace.filter(|_| deletion_began).or(spec_grace).map(grace),
    })
}

/// A negative grace period counts as one second (API reference of PodSpec).
fn grace(seconds: i64) -> u32 {
    if seconds < 0 { 1 } else { u32::try_from(seconds).unwrap_or(u32::MAX) }
}

pub(super) fn node(
    key: ObjectKey,
    metadata: Metadata,
    raw: &mut RawObject,
    ignored: &mut Vec<BadField>,
) -> Result<Node, BadField> {
    let spec = std::mem::take(&mut raw.spec).get("spec")?.unwrap_or_default();
    let status = std::mem::take(&mut raw.status).get("status")?.unwrap_or_default();

    let mut pod_cidrs = entries(spec.pod_cidrs, "spec.podCIDRs")?;
    if pod_cidrs.is_empty() {
        pod_cidrs.extend(text(spec.pod_cidr, "spec.podCIDR")?.map(|cidr| ("spec.podCIDR".to_owned(), cidr)));
    }
    let mut annotations = metadata.annotations.get("metadata.annotations")?.unwrap_or_default().0;
    annotations.retain(|name, _| annotations::OF_NODES.contains(&&**name));
    let addresses = entries(status.addresses, "status.addresses")?;

    Ok(Node {
        key,
        internal_ips: values(of_type(&addresses, "InternalIP"), "an IP address", ignored),
        external_ips: values(of_type(&addresses, "ExternalIP"), "an IP address", ignored),
        pod_cidrs: values(pod_cidrs, "a CIDR", ignored),
        annotations: texts(annotations, "metadata.annotations")?,
    })
}

fn of_type(addresses: &[(String, NodeAddress)], wanted: &str) -> Vec<(String, Text)> {
    addresses
        .iter()
        .filter(|(_, entry)| entry.address_type.peek().is_some_and(|name| &**name == wanted))
        .map(|(path, entry)| (format!("{path}.address"), entry.address.peek().cloned().unwrap_or_default()))
        .collect()
}

/// What parses, in order; the rest goes to `ignored`.
fn values<T: FromStr>(written: Vec<(String, Text)>, what: &str, ignored: &mut Vec<BadField>) -> Vec<T> {
    let mut values = Vec::with_capacity(written.len());
    for (path, text) in written {
        match text.parse() {
            Ok(value) => values.push(value),
            Err(_) => ignored.push(BadField::new(path, format!("\"{text}\" is not {what}; it is left out"))),
        }
    }
    values
}
