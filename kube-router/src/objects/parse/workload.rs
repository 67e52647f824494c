//! `v1` Pod, Node and Namespace.

use std::{collections::BTreeMap, str::FromStr};

use super::{
    BadField, Field, RawObject, Text, entries,
    field::TextMap,
    raw::{Container, List, Metadata, NodeAddress, PodIp},
    service::created,
    text,
};
use crate::objects::{
    Labels, NamedPort, Namespace, Node, ObjectKey, Pod, Protocol,
    annotations::{self, MIRRORED, NETWORK_POLICY},
};

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

pub(super) fn namespace(key: ObjectKey, metadata: Metadata) -> Result<Namespace, BadField> {
    let labels = labels(metadata.labels)?;
    let annotations = metadata.annotations.get("metadata.annotations")?.unwrap_or_default().0;
    let isolation = texts(annotations, "metadata.annotations")?.remove(NETWORK_POLICY);
    Ok(Namespace { key, labels, isolation })
}

pub(super) fn pod(
    key: ObjectKey,
    metadata: Metadata,
    raw: &mut RawObject,
    ignored: &mut Vec<BadField>,
) -> Result<Pod, BadField> {
    let spec = std::mem::take(&mut raw.spec).get("spec")?.unwrap_or_default();
    let status = std::mem::take(&mut raw.status).get("status")?.unwrap_or_default();

    let ips = addresses(status.pod_ips, status.pod_ip, "status.podIP")?;
    let host_ips = addresses(status.host_ips, status.host_ip, "status.hostIP")?;
    let mut ports = named_ports(spec.containers, "spec.containers", |_| true)?;
    // One that restarts always is a sidecar: it runs as long as the pod.
    let sidecar = |container: &Container| container.restart_policy.peek().is_some_and(|policy| &**policy == "Always");
    ports.extend(named_ports(spec.init_containers, "spec.initContainers", sidecar)?);

    let deletion_began = text(metadata.deletion_timestamp, "metadata.deletionTimestamp")?.is_some();
    let deletion_grace = metadata.deletion_grace_period_seconds.get("metadata.deletionGracePeriodSeconds")?;
    let spec_grace = spec.termination_grace_period_seconds.get("spec.terminationGracePeriodSeconds")?;

    let annotations = metadata.annotations.get("metadata.annotations")?.unwrap_or_default().0;
    let mirrored = texts(annotations, "metadata.annotations")?.remove(MIRRORED);
    let uid = mirrored.or(text(metadata.uid, "metadata.uid")?);

    Ok(Pod {
        key,
        uid,
        created_s: created(metadata.creation_timestamp)?,
        labels: labels(metadata.labels)?,
        node: text(spec.node_name, "spec.nodeName")?.map(Into::into),
        host_ips: values(host_ips, "an IP address", ignored).into(),
        ips: values(ips, "an IP address", ignored),
        host_network: spec.host_network.get("spec.hostNetwork")?.unwrap_or(false),
        completed: matches!(text(status.phase, "status.phase")?.as_deref(), Some("Succeeded" | "Failed")),
        terminating: deletion_began,
        ports: ports.into(),
        grace_period_s: deletion_grace.filter(|_| deletion_began).or(spec_grace).map(grace),
    })
}

/// The addresses of a list, or the single one that stood there before there were lists.
fn addresses(list: List<PodIp>, single: Field<Text>, path: &str) -> Result<Vec<(String, Text)>, BadField> {
    let list = entries(list, &format!("{path}s"))?;
    if list.is_empty() {
        return Ok(text(single, path)?.map(|ip| (path.to_owned(), ip)).into_iter().collect());
    }
    let mut addresses = Vec::with_capacity(list.len());
    for (path, entry) in list {
        let path = format!("{path}.ip");
        addresses.extend(text(entry.ip, &path)?.map(|ip| (path, ip)));
    }
    Ok(addresses)
}

/// Only names matter: a policy that knows the number does not ask what the containers declare. Entries of containers
/// that the API server would not take are passed over, as nothing else of a pod depends on them.
fn named_ports(
    containers: List<Container>,
    path: &str,
    counts: impl Fn(&Container) -> bool,
) -> Result<Vec<NamedPort>, BadField> {
    let mut ports = Vec::new();
    for (path, container) in entries(containers, path)?.into_iter().filter(|(_, container)| counts(container)) {
        for (_, port) in entries(container.ports, &format!("{path}.ports"))? {
            let number = port.container_port.peek().and_then(|number| u16::try_from(*number).ok());
            let protocol = match port.protocol.peek().map(|word| &**word) {
                None | Some("" | "TCP") => Some(Protocol::Tcp),
                Some("UDP") => Some(Protocol::Udp),
                Some("SCTP") => Some(Protocol::Sctp),
                Some(_) => None,
            };
            if let (Some(name), Some(port), Some(protocol)) = (port.name.peek(), number, protocol)
                && !name.is_empty()
                && port != 0
            {
                ports.push(NamedPort { name: (&**name).into(), protocol, port });
            }
        }
    }
    Ok(ports)
}

/// A negative grace period counts as one second (API reference of PodSpec).
fn grace(seconds: i64) -> u32 {
    if seconds < 0 { 1 } else { u32::try_from(seconds).unwrap_or(u32::MAX) }
}

const ZONE_LABEL: &str = "topology.kubernetes.io/zone";

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
    let mut labels = metadata.labels.get("metadata.labels")?.unwrap_or_default().0;
    let zone = text(labels.remove(ZONE_LABEL).unwrap_or_default(), format_args!("metadata.labels.{ZONE_LABEL}"))?;

    Ok(Node {
        key,
        zone,
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
