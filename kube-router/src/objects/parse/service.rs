//! `v1` Service.

use std::collections::BTreeMap;

use k8s_openapi::jiff::Timestamp;

use super::{
    BadField, Field, RawObject, Text, entries, port, protocol,
    raw::{Metadata, Spec},
    text, unknown,
};
use crate::objects::{
    LoadBalancerIngress, ObjectKey, Service, ServicePort, ServiceType, TrafficPolicy, annotations::ServiceAnnotations,
};

/// The API server's default of `sessionAffinityConfig.clientIP.timeoutSeconds`: three hours.
const AFFINITY_TIMEOUT_S: u32 = 10_800;

const PROXY_NAME_LABEL: &str = "service.kubernetes.io/service-proxy-name";
pub(super) const HEADLESS_LABEL: &str = "service.kubernetes.io/headless";

pub(super) fn parse(key: ObjectKey, metadata: Metadata, raw: &mut RawObject) -> Result<Service, BadField> {
    let mut spec = std::mem::take(&mut raw.spec).get("spec")?.unwrap_or_default();
    let status = std::mem::take(&mut raw.status).get("status")?.unwrap_or_default();
    let mut labels = metadata.labels.get("metadata.labels")?.unwrap_or_default().0;
    let label = labels.remove(PROXY_NAME_LABEL).unwrap_or_default();
    let (cluster_ips, bad_cluster_ips) = cluster_ips(&mut spec)?;

    Ok(Service {
        key,
        created_s: created(metadata.creation_timestamp)?,
        service_type: service_type(spec.service_type)?,
        cluster_ips,
        bad_cluster_ips,
        external_ips: entries(spec.external_ips, "spec.externalIPs")?.into_iter().map(|(_, ip)| ip).collect(),
        lb_ingress: ingress(status.load_balancer)?,
        ports: ports(spec.ports)?,
        affinity_timeout_s: affinity(spec.session_affinity, spec.session_affinity_config)?,
        internal_traffic_policy: policy(spec.internal_traffic_policy, "spec.internalTrafficPolicy")?,
        external_traffic_policy: policy(spec.external_traffic_policy, "spec.externalTrafficPolicy")?,
        health_check_node_port: port(spec.health_check_node_port, "spec.healthCheckNodePort")?,
        proxy_name: label.get(format_args!("metadata.labels.{PROXY_NAME_LABEL}"))?,
        headless_label: labels.contains_key(HEADLESS_LABEL),
        annotations: ServiceAnnotations::from_map(&annotations(metadata.annotations)?),
    })
}

fn annotations(field: Field<super::field::OurAnnotations>) -> Result<BTreeMap<String, String>, BadField> {
    let mut texts = BTreeMap::new();
    for (name, value) in field.get("metadata.annotations")?.unwrap_or_default().0 {
        let value = value.get(format_args!("metadata.annotations.{name}"))?;
        texts.insert(name.into_string(), value.unwrap_or_default().into_string());
    }
    Ok(texts)
}

pub(super) fn created(field: Field<Text>) -> Result<i64, BadField> {
    const PATH: &str = "metadata.creationTimestamp";
    text(field, PATH)?.map_or(Ok(0), |time| {
        time.parse::<Timestamp>()
            .map(Timestamp::as_second)
            .map_err(|error| BadField::new(PATH, format!("\"{time}\" is not an RFC 3339 time: {error}")))
    })
}

fn service_type(field: Field<Text>) -> Result<ServiceType, BadField> {
    const PATH: &str = "spec.type";
    match text(field, PATH)?.as_deref() {
        None | Some("ClusterIP") => Ok(ServiceType::ClusterIp),
        Some("NodePort") => Ok(ServiceType::NodePort),
        Some("LoadBalancer") => Ok(ServiceType::LoadBalancer),
        Some("ExternalName") => Ok(ServiceType::ExternalName),
        Some(word) => Err(unknown(PATH, word, "ClusterIP, NodePort, LoadBalancer or ExternalName")),
    }
}

fn policy(field: Field<Text>, path: &str) -> Result<TrafficPolicy, BadField> {
    match text(field, path)?.as_deref() {
        None | Some("Cluster") => Ok(TrafficPolicy::Cluster),
        Some("Local") => Ok(TrafficPolicy::Local),
        Some(word) => Err(unknown(path, word, "Cluster or Local")),
    }
}

type Addresses = (Vec<std::net::IpAddr>, Vec<Text>);

/// `clusterIPs`, else `clusterIP`. "None" in any case (of letters, too) means that the service has no address.
fn cluster_ips(spec: &mut Spec) -> Result<Addresses, BadField> {
    let mut written: Vec<Text> = entries(std::mem::take(&mut spec.cluster_ips), "spec.clusterIPs")?
        .into_iter()
        .map(|(_, ip)| ip)
        .filter(|ip| !ip.is_empty())
        .collect();
    let single = text(std::mem::take(&mut spec.cluster_ip), "spec.clusterIP")?;
    if written.is_empty() {
        written.extend(single);
    }
    let (mut good, mut bad) = (Vec::with_capacity(written.len()), Vec::new());
    for ip in written {
        if ip.eq_ignore_ascii_case("None") {
            return Ok(Addresses::default());
        }
        match ip.parse() {
            Ok(ip) => good.push(ip),
            Err(_) => bad.push(ip),
        }
    }
    Ok((good, bad))
}

fn ports(field: Field<Vec<Field<super::raw::Port>>>) -> Result<Vec<ServicePort>, BadField> {
    let entries = entries(field, "spec.ports")?;
    let mut ports = Vec::with_capacity(entries.len());
    for (path, entry) in entries {
        ports.push(ServicePort {
            name: entry.name.get(format_args!("{path}.name"))?.unwrap_or_default(),
            protocol: protocol(entry.protocol, format_args!("{path}.protocol"))?,
            port: port(entry.port, format_args!("{path}.port"))?,
            node_port: port(entry.node_port, format_args!("{path}.nodePort"))?,
        });
    }
    Ok(ports)
}

fn affinity(mode: Field<Text>, config: Field<super::raw::AffinityConfig>) -> Result<Option<u32>, BadField> {
    match text(mode, "spec.sessionAffinity")?.as_deref() {
        None | Some("None") => return Ok(None),
        Some("ClientIP") => {}
        Some(word) => return Err(unknown("spec.sessionAffinity", word, "ClientIP or None")),
    }
    const PATH: &str = "spec.sessionAffinityConfig.clientIP.timeoutSeconds";
    let client_ip = match config.get("spec.sessionAffinityConfig")? {
        Some(config) => config.client_ip.get("spec.sessionAffinityConfig.clientIP")?,
        None => None,
    };
    let Some(seconds) = client_ip.unwrap_or_default().timeout_seconds.get(PATH)? else {
        return Ok(Some(AFFINITY_TIMEOUT_S));
    };
    let seconds = u32::try_from(seconds).ok().filter(|seconds| *seconds > 0);
    seconds.map(Some).ok_or_else(|| BadField::new(PATH, "not a number of seconds greater than 0"))
}

fn ingress(field: Field<super::raw::LoadBalancer>) -> Result<Vec<LoadBalancerIngress>, BadField> {
    let list = field.get("status.loadBalancer")?.unwrap_or_default().ingress;
    let mut found = Vec::new();
    for (path, entry) in entries(list, "status.loadBalancer.ingress")? {
        // An entry with only a host name is somebody else's address.
        if let Some(ip) = text(entry.ip, format_args!("{path}.ip"))? {
            let mode = text(entry.ip_mode, format_args!("{path}.ipMode"))?;
            found.push(LoadBalancerIngress { ip, proxy_mode: mode.as_deref() == Some("Proxy") });
        }
    }
    Ok(found)
}
