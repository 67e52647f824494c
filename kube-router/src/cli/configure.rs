//! From flags to [`Config`]: the place where the command line's types end.
//!
//! Converts every value that the agent keeps and judges it on the way; an agent that starts has a configuration without
//! surprises. In: the flags, the environment's and the machine's facts. Out: the configuration, or the reason not to
//! start in the original's words.

use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    path::PathBuf,
    time::Duration,
};

use ipnet::IpNet;
use kube_router_common::sizes::Sizes;

use super::{
    Env, Facts,
    duration::GoDuration,
    flags::Flags,
    validate::{StartError, failed, positive},
};
use crate::{
    apply::IpvsTimeouts,
    config::{Config, Fastpath, FirewallConfig, HttpConfig, ProgramsConfig, ProxyConfig, Source},
};

/// Builds the configuration. Does not ask whether the source can be reached (see [`in_cluster`]).
pub fn config(flags: &Flags, env: &Env, facts: &Facts) -> Result<Config, StartError> {
    let source = source(flags)?;
    let proxy = proxy(flags)?;
    positive("cache-sync-timeout", flags.cache_sync_timeout)?;
    let http = http(flags, facts)?;
    if flags.socket.is_empty() {
        return failed("--socket must not be empty");
    }
    Ok(Config {
        node_name: node_name(flags, env, facts)?,
        source,
        cache_sync_timeout: duration("cache-sync-timeout", flags.cache_sync_timeout)?,
        record: path(&flags.record),
        http,
        proxy,
        firewall: firewall(flags)?,
        programs: programs(flags),
        socket: PathBuf::from(&flags.socket),
    })
}

/// Without any other source the pod's service account is used, which works only inside a cluster.
pub fn in_cluster(flags: &Flags, env: &Env) -> Result<(), StartError> {
    let set = |name: &str| env.get(name).is_some_and(|value| !value.is_empty());
    let named = !(flags.kubeconfig.is_empty() && flags.master.is_empty() && flags.manifests.is_empty());
    if named || set("KUBERNETES_SERVICE_HOST") && set("KUBERNETES_SERVICE_PORT") {
        return Ok(());
    }
    Err(StartError(
        "no source of objects: outside a cluster give --kubeconfig, --master or --manifests\n\
         failed to parse kube-router config: unable to initialize inclusterconfig: unable to load in-cluster configuration, \
         KUBERNETES_SERVICE_HOST and KUBERNETES_SERVICE_PORT must be defined"
            .to_owned(),
    ))
}

fn source(flags: &Flags) -> Result<Source, StartError> {
    let manifests = path(&flags.manifests);
    let (kubeconfig, master) = (path(&flags.kubeconfig), Some(flags.master.clone()).filter(|url| !url.is_empty()));
    match manifests {
        None => Ok(Source::Kubernetes { kubeconfig, master }),
        Some(path) if kubeconfig.is_none() && master.is_none() => Ok(Source::Manifests(path)),
        Some(_) => failed("--manifests takes the place of an API server: leave out --kubeconfig and --master"),
    }
}

fn node_name(flags: &Flags, env: &Env, facts: &Facts) -> Result<Box<str>, StartError> {
    let names = [Some(&flags.hostname_override), env.get("NODE_NAME"), facts.hostname.as_ref()];
    match names.into_iter().flatten().find(|name| !name.is_empty()) {
        Some(name) => Ok(name.as_str().into()),
        None => failed("cannot tell this node's name: give --hostname-override or set NODE_NAME"),
    }
}

fn proxy(flags: &Flags) -> Result<ProxyConfig, StartError> {
    let ranges = |flag, items: &[String]| validated_ranges(flag, items, flags.enable_ipv4, flags.enable_ipv6);
    let cluster_ip_ranges = ranges("service-cluster-ip-range", &flags.service_cluster_ip_range)?;
    let external_ip_ranges = ranges("service-external-ip-range", &flags.service_external_ip_range)?;
    let load_balancer_ranges = ranges("loadbalancer-ip-range", &flags.loadbalancer_ip_range)?;
    if !(flags.enable_ipv4 || flags.enable_ipv6) {
        return failed("--enable-ipv4 and --enable-ipv6 are both false: at least one is needed");
    }
    let mut config = ProxyConfig {
        enabled: flags.run_service_proxy,
        ipv4: flags.enable_ipv4,
        ipv6: flags.enable_ipv6,
        masquerade_all: flags.masquerade_all,
        masquerade_outside_pod_cidrs: flags.run_router,
        hairpin_all: flags.hairpin_mode,
        node_port_all_addresses: flags.nodeport_bindon_all_ip,
        guard: flags.ipvs_permit_all,
        cluster_ip_ranges,
        external_ip_ranges,
        load_balancer_ranges,
        strict_external_ips: flags.strict_external_ip_validation,
        ..ProxyConfig::default()
    };
    // The rest is the proxy's alone and judged only if it runs.
    if flags.run_service_proxy {
        positive("ipvs-sync-period", flags.ipvs_sync_period)?;
        config.sync_period = duration("ipvs-sync-period", flags.ipvs_sync_period)?;
        if flags.ipvs_graceful_termination {
            positive("ipvs-graceful-period", flags.ipvs_graceful_period)?;
            config.graceful_period = Some(duration("ipvs-graceful-period", flags.ipvs_graceful_period)?);
        }
        config.excluded_cidrs = cidrs("excluded-cidrs", &flags.excluded_cidrs)
            .or_else(|what| failed(format!("failed to create network services controller: {what}")))?;
        config.timeouts = IpvsTimeouts {
            tcp: timeout("service-tcp-timeout", flags.service_tcp_timeout)?,
            tcp_fin: timeout("service-tcpfin-timeout", flags.service_tcpfin_timeout)?,
            udp: timeout("service-udp-timeout", flags.service_udp_timeout)?,
        };
    }
    Ok(config)
}

/// Judged by [`validate::firewall`](super::validate::firewall) before.
fn firewall(flags: &Flags) -> Result<FirewallConfig, StartError> {
    if !flags.run_firewall {
        return Ok(FirewallConfig::off());
    }
    Ok(FirewallConfig {
        enabled: true,
        default_deny: flags.netpol_default_deny,
        silent: flags.netpol_reject == "drop",
        keep_established: flags.netpol_keep_established,
        antispoof: flags.netpol_anti_spoofing,
        sync_period: duration("iptables-sync-period", flags.iptables_sync_period)?,
        cni_socket: path(&flags.cni_socket),
    })
}

/// Judged by [`validate::programs`](super::validate::programs) later; where to clean up is told in any case.
fn programs(flags: &Flags) -> ProgramsConfig {
    let fastpath = match &*flags.service_fastpath {
        "on" => Fastpath::On,
        "off" => Fastpath::Off,
        _ => Fastpath::Auto,
    };
    ProgramsConfig {
        // Whoever else enforces policy may do it in netfilter, which the fast path goes past: it has to be asked for.
        needed: flags.run_firewall || (flags.run_service_proxy && fastpath == Fastpath::On),
        fastpath,
        pins: PathBuf::from(&flags.bpf_directory),
        sizes: Sizes {
            flows: flags.netpol_max_flows,
            pods: flags.netpol_max_pods,
            peers: flags.netpol_max_peers,
            services: flags.netpol_max_service_ports,
            rows: flags.netpol_max_rows,
        },
    }
}

fn cidr(flag: &str, item: &str) -> Result<IpNet, String> {
    // As Go's net.ParseCIDR: host bits are allowed and dropped.
    item.parse::<IpNet>()
        .map(|net| net.trunc())
        .map_err(|_| format!("failed to parse --{flag} parameter: '{item}': invalid CIDR address: {item}"))
}

fn cidrs(flag: &str, items: &[String]) -> Result<Vec<IpNet>, String> {
    items.iter().map(|item| cidr(flag, item)).collect()
}

fn validated_ranges(flag: &str, items: &[String], ipv4: bool, ipv6: bool) -> Result<Vec<IpNet>, StartError> {
    let check = |item: &String| {
        let net = cidr(flag, item)?;
        let (family, enabled) = match net {
            IpNet::V4(_) => ("IPv4", ipv4),
            IpNet::V6(_) => ("IPv6", ipv6),
        };
        if enabled {
            Ok(net)
        } else {
            Err(format!("{family} CIDR {item} specified in --{flag} while {family} is disabled"))
        }
    };
    let nets: Result<Vec<IpNet>, String> = items.iter().map(check).collect();
    nets.or_else(|what| failed(format!("failed to create service IP validator: {what}")))
}

fn duration(flag: &str, value: GoDuration) -> Result<Duration, StartError> {
    match value.unsigned() {
        Some(duration) => Ok(duration),
        None => failed(format!("--{flag} must not be negative, got {value}")),
    }
}

/// IPVS counts whole seconds and takes 0 for "leave as it is", so a fraction of a second would be lost unsaid.
fn timeout(flag: &str, value: GoDuration) -> Result<Duration, StartError> {
    let duration = duration(flag, value)?;
    if duration.subsec_nanos() != 0 {
        return failed(format!("--{flag} counts whole seconds, got {value}"));
    }
    Ok(duration)
}

fn http(flags: &Flags, facts: &Facts) -> Result<HttpConfig, StartError> {
    let address = |flag: &str, text: &str| match text {
        // One IPv6 socket serves both families, as Go's listener does.
        "" if facts.ipv6 => Ok(IpAddr::V6(Ipv6Addr::UNSPECIFIED)),
        "" => Ok(IpAddr::V4(Ipv4Addr::UNSPECIFIED)),
        text => text.parse().or_else(|_| failed(format!("--{flag} must be an IP address or empty, got '{text}'"))),
    };
    let on = |port: u16, flag: &str, text: &str| address(flag, text).map(|ip| SocketAddr::new(ip, port));
    let health = match flags.health_port {
        0 => None,
        port => Some(on(port, "health-addr", &flags.health_addr)?),
    };
    let metrics = match flags.metrics_port {
        0 | 65535 => None,
        port => Some(on(port, "metrics-addr", &flags.metrics_addr)?),
    };
    if health.is_some() && health == metrics {
        return failed(format!("--health-port and --metrics-port are both {}", flags.health_port));
    }
    let plain = |c: char| c.is_ascii_alphanumeric() || "/-._~".contains(c);
    if metrics.is_some() && !(flags.metrics_path.starts_with('/') && flags.metrics_path.chars().all(plain)) {
        return failed(format!(
            "--metrics-path must start with '/' and hold only letters, digits and '/-._~', got '{}'",
            flags.metrics_path
        ));
    }
    Ok(HttpConfig { health, metrics, metrics_path: flags.metrics_path.clone() })
}

fn path(text: &str) -> Option<PathBuf> {
    if text.is_empty() { None } else { Some(PathBuf::from(text)) }
}
