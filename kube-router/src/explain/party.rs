//! Who is meant by `web/frontend`, `10.1.0.7` or `svc/web/shop`.

use std::net::IpAddr;

use super::{answer::Refusal, near::near};
use crate::{
    cluster::ClusterState,
    objects::{ObjectKey, Service},
};

/// An end of the question.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Party {
    Pod(ObjectKey),
    /// Whoever has it.
    Address(IpAddr),
    /// `None`: all its addresses.
    Service(ObjectKey, Option<IpAddr>),
}

/// A name without a namespace, as kubectl takes it.
const NAMESPACE: &str = "default";

/// Pods come before services of the same name; `pod/` and `svc/` in front say which is meant.
///
/// # Errors
/// There is nobody of this name; the refusal lists near ones.
pub fn read(cluster: &ClusterState, text: &str) -> Result<Party, Refusal> {
    if let Ok(ip) = text.parse::<IpAddr>() {
        let ip = ip.to_canonical();
        let service = cluster.services().find(|service| addresses(service).any(|own| own == ip));
        return Ok(service.map_or(Party::Address(ip), |service| Party::Service(service.key.clone(), Some(ip))));
    }
    let kinds = [("svc/", false, true), ("service/", false, true), ("pod/", true, false)];
    let prefixed =
        kinds.iter().find_map(|(prefix, pods, services)| Some((text.strip_prefix(prefix)?, *pods, *services)));
    let (name, pods, services) = prefixed.unwrap_or((text, true, true));
    let key = match name.split_once('/') {
        Some((namespace, name)) => ObjectKey::new(namespace, name),
        None => ObjectKey::new(NAMESPACE, name),
    };
    if pods && cluster.pod(&key).is_some() {
        return Ok(Party::Pod(key));
    }
    if services && cluster.service(&key).is_some() {
        return Ok(Party::Service(key, None));
    }
    let known_pods = cluster.pods().filter(|_| pods).map(|pod| pod.key.to_string());
    let known_services = cluster.services().filter(|_| services).map(|service| service.key.to_string());
    let what = match (pods, services) {
        (true, false) => "pod",
        (false, true) => "service",
        _ => "pod or service",
    };
    Err(Refusal::Unknown {
        what,
        name: key.to_string(),
        near: near(&key.to_string(), known_pods.chain(known_services)),
    })
}

/// Every address at which a service answers, but node ports.
pub fn addresses(service: &Service) -> impl Iterator<Item = IpAddr> {
    let ingress = service.lb_ingress.iter().filter(|ingress| !ingress.proxy_mode).map(|ingress| &ingress.ip);
    let written = service.external_ips.iter().chain(ingress).filter_map(|text| text.parse().ok());
    service.cluster_ips.iter().copied().chain(written).map(|ip: IpAddr| ip.to_canonical())
}
