//! What the configuration holds for given flags.

use std::{path::PathBuf, time::Duration};

use ipnet::IpNet;

use super::*;
use crate::{
    apply::IpvsTimeouts,
    config::{FirewallConfig, HttpConfig, ProxyConfig, Source},
};

fn nets(items: &[&str]) -> Vec<IpNet> {
    items.iter().map(|item| item.parse().unwrap()).collect()
}

#[test]
fn defaults() {
    let config = run("");
    assert_eq!(config.proxy, ProxyConfig::default());
    assert_eq!(config.source, Source::Kubernetes { kubeconfig: None, master: None });
    assert_eq!(config.cache_sync_timeout, Duration::from_secs(60));
    assert_eq!(config.record, None);
    assert_eq!(config.socket, PathBuf::from("/run/kube-router/kube-router.sock"));
    assert_eq!(
        config.http,
        HttpConfig { health: Some("[::]:20244".parse().unwrap()), metrics: None, metrics_path: "/metrics".into() }
    );
}

/// The arguments of the flannel document's DaemonSet.
#[test]
fn flannel_and_service_proxy_only() {
    let config = run("--run-router=false --run-firewall=false --run-service-proxy=true \
                      --kubeconfig=/var/lib/kube-router/kubeconfig --masquerade-all --ipvs-sync-period=5s \
                      --iptables-sync-period=10s --cluster-cidr=10.20.0.0/16 --metrics-port=80");
    let kubeconfig = Some("/var/lib/kube-router/kubeconfig".into());
    assert_eq!(config.source, Source::Kubernetes { kubeconfig, master: None });
    let proxy = ProxyConfig {
        masquerade_all: true,
        masquerade_outside_pod_cidrs: false,
        sync_period: Duration::from_secs(5),
        ..ProxyConfig::default()
    };
    assert_eq!(config.proxy, proxy);
    assert_eq!(config.http.metrics, Some("[::]:80".parse().unwrap()));
}

#[test]
fn every_switch_of_the_proxy() {
    let config = run("--run-router=false --run-firewall=false --enable-ipv6 --masquerade-all=1 --hairpin-mode \
                      --nodeport-bindon-all-ip --ipvs-permit-all=false --ipvs-graceful-termination \
                      --ipvs-graceful-period=15s --ipvs-sync-period=1m30s \
                      --excluded-cidrs=203.0.113.200/32,172.30.0.0/16 --excluded-cidrs=2001:db8::/64 \
                      --service-cluster-ip-range=10.96.0.0/12,fd00:10:96::1/112 \
                      --service-external-ip-range=203.0.113.0/25 --loadbalancer-ip-range=203.0.113.128/25 \
                      --strict-external-ip-validation=F --service-tcp-timeout=600s --service-tcpfin-timeout=1m \
                      --service-udp-timeout=2m");
    let proxy = ProxyConfig {
        enabled: true,
        ipv4: true,
        ipv6: true,
        masquerade_all: true,
        masquerade_outside_pod_cidrs: false,
        hairpin_all: true,
        node_port_all_addresses: true,
        guard: false,
        graceful_period: Some(Duration::from_secs(15)),
        sync_period: Duration::from_secs(90),
        excluded_cidrs: nets(&["203.0.113.200/32", "172.30.0.0/16", "2001:db8::/64"]),
        // Host bits are dropped, as Go does.
        cluster_ip_ranges: nets(&["10.96.0.0/12", "fd00:10:96::/112"]),
        external_ip_ranges: nets(&["203.0.113.0/25"]),
        load_balancer_ranges: nets(&["203.0.113.128/25"]),
        strict_external_ips: false,
        timeouts: IpvsTimeouts {
            tcp: Duration::from_secs(600),
            tcp_fin: Duration::from_secs(60),
            udp: Duration::from_secs(120),
        },
    };
    assert_eq!(config.proxy, proxy);
}

#[test]
fn whether_programs_are_needed_is_one_thing_and_whether_policy_is_enforced_another() {
    for (line, needed, enforced) in [
        ("", true, true),
        ("--service-fastpath=off", true, true),
        ("--run-service-proxy=false --service-fastpath=off", true, true),
        ("--run-firewall=false", false, false),
        ("--run-firewall=false --service-fastpath=on", true, false),
        ("--run-firewall=false --service-fastpath=off", false, false),
    ] {
        let config = run(line);
        assert_eq!((config.programs.needed, config.firewall.enabled), (needed, enforced), "{line}");
    }
    // What only policy asks for is not there without it; where programs are pinned always is.
    let config = run("--run-firewall=false --netpol-default-deny --netpol-reject=drop --netpol-keep-established \
                      --bpf-directory=/sys/fs/bpf/here");
    assert_eq!(config.firewall, FirewallConfig::off());
    assert_eq!(config.programs.pins, PathBuf::from("/sys/fs/bpf/here"));
    // Their flags are judged where they have a use.
    for flag in ["--netpol-max-pods=1", "--bpf-directory=here"] {
        let (code, text) = refused(&format!("--run-firewall=false --service-fastpath=on {flag}"));
        assert!(code == 1 && text.contains(flag.split('=').next().unwrap()), "{text}");
        run(&format!("--run-firewall=false {flag}"));
    }
    assert!(refused("--run-firewall=false --service-fastpath=maybe").1.contains("--service-fastpath"));
}

#[test]
fn listeners() {
    let http = |line: &str| run(line).http;
    assert_eq!(http("--health-port=0").health, None);
    assert_eq!(http("--health-addr=127.0.0.1 --health-port=1").health, Some("127.0.0.1:1".parse().unwrap()));
    for off in ["0", "65535"] {
        assert_eq!(http(&format!("--metrics-port={off}")).metrics, None);
    }
    let metrics = http("--metrics-port=65534 --metrics-addr=fd00::1 --metrics-path=/m");
    assert_eq!((metrics.metrics, &*metrics.metrics_path), (Some("[fd00::1]:65534".parse().unwrap()), "/m"));
    // Two addresses may share a port; a kernel without IPv6 listens on IPv4.
    http("--metrics-port=20244 --metrics-addr=127.0.0.1 --health-addr=127.0.0.2");
    let old = Facts { ipv6: false, ..facts() };
    let Command::Run(config) = read_in("", &in_cluster(), &old).unwrap().command else { panic!() };
    assert_eq!(config.http.health, Some("0.0.0.0:20244".parse().unwrap()));
}

#[test]
fn sources() {
    let master = Some("http://h:8080".to_owned());
    assert_eq!(run("--master=http://h:8080").source, Source::Kubernetes { kubeconfig: None, master: master.clone() });
    assert_eq!(
        run("--master=http://h:8080 --kubeconfig=/k").source,
        Source::Kubernetes { kubeconfig: Some("/k".into()), master }
    );
    assert_eq!(run("--manifests=/m").source, Source::Manifests("/m".into()));
    assert_eq!(run("--record=/r --socket=/s").record, Some("/r".into()));
}

#[test]
fn node_names() {
    let with_name = |line: &str, name: &str| {
        let mut env = in_cluster();
        env.insert("NODE_NAME".into(), name.into());
        let Command::Run(config) = read_in(line, &env, &facts()).unwrap().command else { panic!() };
        config.node_name.into_string()
    };
    assert_eq!(with_name("--hostname-override=flag", "env"), "flag");
    assert_eq!(with_name("", "env"), "env");
    assert_eq!(with_name("", ""), "host");
    let nameless = Facts { hostname: None, ..facts() };
    assert_eq!(read_in("", &in_cluster(), &nameless).unwrap_err().exit_code(), 1);
}

/// The message by which operators know that the API server did not answer.
#[test]
fn a_view_that_does_not_come_in_time_is_told_in_the_original_s_words() {
    for (line, text) in [("", "1m0s"), ("--cache-sync-timeout=1500ms", "1.5s"), ("--cache-sync-timeout=2h", "2h0m0s")] {
        let error = crate::cli::no_view_in_time(&run(line));
        assert_eq!(error.to_string(), format!("failed to synchronize cache: {text} timeout"));
    }
}
