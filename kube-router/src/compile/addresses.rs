//! Which addresses a service may have; external and load-balancer ones (`--strict-external-ip-validation`, GHSA-phqm-jgc3-qf8g).

use std::net::IpAddr;

use ipnet::IpNet;

use crate::config::ProxyConfig;

/// Where an address was asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AddressKind {
    ExternalIp,
    LoadBalancerIp,
}

impl AddressKind {
    fn field(self) -> &'static str {
        match self {
            AddressKind::ExternalIp => "externalIP",
            AddressKind::LoadBalancerIp => "loadBalancerIP",
        }
    }

    fn flag(self) -> &'static str {
        match self {
            AddressKind::ExternalIp => "--service-external-ip-range",
            AddressKind::LoadBalancerIp => "--loadbalancer-ip-range",
        }
    }
}

/// The address in its plain form, or why no service can have it, whatever the ranges say.
pub fn possible(address: IpAddr) -> Result<IpAddr, &'static str> {
    // `::ffff:192.0.2.1` is an IPv4 address in other clothes, for the ranges and for the kernel.
    let address = address.to_canonical();
    // The node would answer for itself.
    if address.is_unspecified() || address.is_loopback() || address.is_multicast() {
        return Err("unspecified, loopback and multicast addresses cannot be service addresses");
    }
    // kube-dummy-if has link-local addresses of its own, so nobody could tell when to take this one away again.
    if matches!(address, IpAddr::V6(v6) if v6.is_unicast_link_local()) {
        return Err("link-local IPv6 addresses cannot be service addresses");
    }
    Ok(address)
}

/// The address, or why it is ignored.
pub fn validate(text: &str, kind: AddressKind, config: &ProxyConfig) -> Result<IpAddr, String> {
    let reject = |why: &str| Err(format!("rejecting {} {text}: {why}", kind.field()));
    let Ok(address) = text.parse::<IpAddr>() else { return reject("not an IP address") };
    let address = match possible(address) {
        Ok(address) => address,
        Err(why) => return reject(why),
    };
    if !config.strict_external_ips {
        return Ok(address);
    }
    let within = |ranges: &[IpNet]| ranges.iter().any(|range| range.contains(&address));
    if within(&config.cluster_ip_ranges) {
        return reject("conflicts with cluster IP range");
    }
    let ranges = match kind {
        AddressKind::ExternalIp => &config.external_ip_ranges,
        AddressKind::LoadBalancerIp => &config.load_balancer_ranges,
    };
    if ranges.is_empty() {
        return reject(&format!("no {} is configured (strict mode default-deny)", kind.flag()));
    }
    if !within(ranges) {
        return reject(&format!("not within any configured {}", kind.flag()));
    }
    Ok(address)
}
