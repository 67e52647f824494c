//! Judging the values that parse but cannot work: ranges, counts and formats.
//!
//! The original judges most of these only when its caches are full, and a few end in a panic. Here all are judged at
//! once, before anything is touched, with the original's message where it has one. What only one function uses is
//! judged only while that function is switched on, as in the original. In: the flags. Out: nothing, or the first reason
//! not to start. Values that the configuration keeps are judged where they are converted (`configure`).

use std::net::Ipv4Addr;

use super::{duration::GoDuration, flags::Flags};

/// A reason not to start; the process ends with exit status 1.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct StartError(pub String);

/// With the original's prefix for errors after the command line and the API configuration were read.
pub(super) fn failed<T>(what: impl std::fmt::Display) -> Result<T, StartError> {
    Err(StartError(format!("failed to run kube-router: {what}")))
}

/// A period of zero would be a busy loop (the original dies of one).
pub(super) fn positive(flag: &str, value: GoDuration) -> Result<(), StartError> {
    if value > GoDuration(0) { Ok(()) } else { failed(format!("--{flag} must be greater than 0, got {value}")) }
}

fn within(flag: &str, value: u64, low: u64, high: u64) -> Result<(), StartError> {
    if (low..=high).contains(&value) {
        Ok(())
    } else {
        failed(format!("--{flag} must be {low} to {high}, got {value}"))
    }
}

/// Network policy's own flags.
pub fn firewall(flags: &Flags) -> Result<(), StartError> {
    positive("iptables-sync-period", flags.iptables_sync_period)?;
    node_port_range(&flags.service_node_port_range).or_else(policy)?;
    if !matches!(&*flags.netpol_reject, "icmp" | "drop") {
        return policy(format!("--netpol-reject must be icmp or drop, got '{}'", flags.netpol_reject));
    }
    match flags.service_cluster_ip_range.len() {
        1..=2 => Ok(()),
        n => policy(format!("--service-cluster-ip-range takes one or two CIDRs, got {n}")),
    }
}

/// Whether there are programs may hang on it.
pub fn fastpath(flags: &Flags) -> Result<(), StartError> {
    match &*flags.service_fastpath {
        "auto" | "on" | "off" => Ok(()),
        other => failed(format!("--service-fastpath must be auto, on or off, got '{other}'")),
    }
}

/// The flags of the BPF programs, which policy and the service fast path share.
pub fn programs(flags: &Flags) -> Result<(), StartError> {
    within("netpol-max-flows", flags.netpol_max_flows.into(), 1_024, 16_777_216)?;
    // A pod's number must fit what a packet can be noted with.
    within("netpol-max-pods", flags.netpol_max_pods.into(), 16, kube_router_common::policy::MAX_PODS.into())?;
    within("netpol-max-peers", flags.netpol_max_peers.into(), 1_024, 16_777_216)?;
    within("netpol-max-service-ports", flags.netpol_max_service_ports.into(), 1_024, 4_194_304)?;
    within("netpol-max-rows", flags.netpol_max_rows.into(), 1_024, 16_777_216)?;
    if !flags.bpf_directory.starts_with('/') {
        return failed(format!("--bpf-directory must begin with '/', got '{}'", flags.bpf_directory));
    }
    Ok(())
}

fn policy<T>(what: String) -> Result<T, StartError> {
    failed(format!("failed to create network policy controller: {what}"))
}

/// `LOW-HIGH` or `LOW:HIGH`, 16 bits, low < high.
fn node_port_range(text: &str) -> Result<(), String> {
    let is_number = |part: &str| !part.is_empty() && part.bytes().all(|c| c.is_ascii_digit());
    let Some((low, high)) = text.split_once(['-', ':']).filter(|(low, high)| is_number(low) && is_number(high)) else {
        return Err(format!("failed to parse node port range given: '{text}' please see specification in help text"));
    };
    let port = |which: &str, part: &str| {
        part.parse::<u16>().map_err(|_| format!("could not parse {which} port number from range given: '{text}'"))
    };
    let (first, last) = (port("first", low)?, port("second", high)?);
    if first >= last {
        return Err(format!("port 1 is greater than or equal to port 2 in range given: '{text}'"));
    }
    Ok(())
}

/// Pod networking's and BGP's own flags.
pub fn router(flags: &Flags) -> Result<(), StartError> {
    if flags.bgp_graceful_restart {
        positive("bgp-graceful-restart-time", flags.bgp_graceful_restart_time)?;
        positive("bgp-graceful-restart-deferral-time", flags.bgp_graceful_restart_deferral_time)?;
        // RFC 4724 section 3 gives the restart time 12 bits.
        if flags.bgp_graceful_restart_time > GoDuration::from_secs(4095) {
            return failed("BGPGracefulRestartTime should be less than 4095 seconds");
        }
        if flags.bgp_graceful_restart_deferral_time > GoDuration::from_secs(18 * 3600) {
            return failed("BGPGracefulRestartDeferralTime should be less than 18 hours");
        }
    }
    positive("routes-sync-period", flags.routes_sync_period)?;
    positive("injected-routes-sync-period", flags.injected_routes_sync_period)?;
    routing(flags).or_else(|what| failed(format!("failed to create network routing controller: {what}")))?;
    within("bgp-port", flags.bgp_port.into(), 1, 65535)?;
    for &port in &flags.peer_router_ports {
        within("peer-router-ports", port, 1, 65535)?;
    }
    if flags.enable_bfd && !flags.peer_router_ips.is_empty() {
        within("bfd-port", flags.bfd_port.into(), 1, 65535)?;
        within("bfd-detection-multiplier", flags.bfd_detection_multiplier.into(), 1, 255)?;
        within("bfd-desired-min-tx-interval", flags.bfd_desired_min_tx_interval.into(), 1, 4_294_967)?;
        within("bfd-required-min-rx-interval", flags.bfd_required_min_rx_interval.into(), 1, 4_294_967)?;
    }
    Ok(())
}

fn routing(flags: &Flags) -> Result<(), String> {
    // The original shows an empty value here.
    if !matches!(&*flags.overlay_encap, "ipip" | "fou") {
        return Err(format!("unknown --overlay-encap option '{}' selected, unable to continue", flags.overlay_encap));
    }
    if flags.overlay_encap_port < 1024 {
        return Err(format!("--overlay-encap-port must be 1024 to 65535, got {}", flags.overlay_encap_port));
    }
    if flags.bgp_holdtime < GoDuration::from_secs(3) || flags.bgp_holdtime > GoDuration::from_secs(65536) {
        return Err("this is an incorrect BGP holdtime range, holdtime must be in the range 3s to 18h12m16s".into());
    }
    if !matches!(flags.cluster_asn, 0 | 64512..=65535 | 4_200_000_000..=4_294_967_294) {
        return Err("invalid ASN number for cluster ASN".into());
    }
    if !(matches!(&*flags.router_id, "" | "generate") || flags.router_id.parse::<Ipv4Addr>().is_ok()) {
        return Err(format!("invalid router-id format: {}", flags.router_id));
    }
    let peers = flags.peer_router_ips.len();
    if !flags.peer_router_passwords.iter().all(|password| is_base64(password)) {
        return Err("failed to parse CLI Peer Passwords flag: could not parse value as a base64 encoded string".into());
    }
    if flags.peer_router_asns.len() != peers {
        return Err("invalid peer router config, the number of IPs and ASN numbers must be equal".into());
    }
    for (name, count) in [("ports", flags.peer_router_ports.len()), ("passwords", flags.peer_router_passwords.len())] {
        if count != 0 && count != peers {
            return Err(format!("invalid peer router config, the number of {name} must be zero or the number of IPs"));
        }
    }
    match flags.peer_router_asns.iter().find(|&&asn| !is_peer_asn(asn)) {
        Some(asn) => Err(format!("reserved ASN number \"{asn}\" for global BGP peer")),
        None => Ok(()),
    }
}

/// Not reserved by IANA's registry of AS numbers (AS_TRANS, documentation, last of each width), as the original has it.
fn is_peer_asn(asn: u64) -> bool {
    matches!(asn, 1..=23455 | 23457..=63999 | 64512..=65534 | 131_072..=4_294_967_294)
}

/// RFC 4648 section 4 with padding; line ends do not count (as in Go's decoder).
fn is_base64(text: &str) -> bool {
    let body: Vec<u8> = text.bytes().filter(|c| !matches!(c, b'\r' | b'\n')).collect();
    let padding = body.iter().rev().take_while(|&&c| c == b'=').count();
    let digits = &body[..body.len() - padding];
    body.len().is_multiple_of(4)
        && padding <= 2
        && digits.iter().all(|&c| c.is_ascii_alphanumeric() || c == b'+' || c == b'/')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn base64() {
        for good in ["", "c2VjcmV0", "YQ==", "YWI=", "c2Vj\ncmV0\n", "+/+/"] {
            assert!(is_base64(good), "{good:?}");
        }
        for bad in ["%%", "a", "ab", "abc", "YQ=", "====", "Y===", "YQ==YQ==", "c2 VjcmV0", "_-_-"] {
            assert!(!is_base64(bad), "{bad:?}");
        }
    }

    #[test]
    fn node_ports() {
        for good in ["30000-32767", "30000:40000", "0-1", "1-65535"] {
            assert!(node_port_range(good).is_ok(), "{good}");
        }
        for bad in ["", "1", "1-", "-1", "1--2", "a-b", "1-65536", "70000-80000", "2-2", "40000-30000", "1-2-3", "+1-2"]
        {
            assert!(node_port_range(bad).is_err(), "{bad}");
        }
    }
}
