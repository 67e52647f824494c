//! The table of all flags: one row gives name, type, default, area, whether its function exists yet, and its help.
//!
//! From the same rows come the typed struct [`Flags`], the parser's arguments (`args`), the help text (`help`) and the
//! refusals of `later`, so that none of them can forget a flag. Names, types and defaults are the original's;
//! `cluster-cidr` and `config-sync-period` are from its early releases; the last area is ours.

use std::{collections::BTreeMap, net::IpAddr};

use clap::ArgMatches;

use super::{
    args,
    duration::GoDuration,
    later::{Feature, Need},
    value::FlagValue,
};

/// Groups of `--help`, in the order in which they are shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Area {
    General,
    Api,
    Proxy,
    Addresses,
    Observe,
    Policy,
    Routing,
    Bgp,
    LoadBalancer,
    Deprecated,
}

impl Area {
    pub const ALL: [Area; 10] = [
        Area::General,
        Area::Api,
        Area::Proxy,
        Area::Addresses,
        Area::Observe,
        Area::Policy,
        Area::Routing,
        Area::Bgp,
        Area::LoadBalancer,
        Area::Deprecated,
    ];

    pub fn title(self) -> &'static str {
        match self {
            Area::General => "General",
            Area::Api => "Where objects come from",
            Area::Proxy => "Service proxy",
            Area::Addresses => "Address ranges and families",
            Area::Observe => "Health and metrics",
            Area::Policy => "Network policy",
            Area::Routing => "Pod networking",
            Area::Bgp => "BGP",
            Area::LoadBalancer => "Load-balancer address allocator",
            Area::Deprecated => "Deprecated",
        }
    }
}

/// One row of the table.
pub struct Flag {
    /// Without dashes.
    pub name: &'static str,
    pub short: Option<char>,
    /// [`FlagValue::TYPE`]
    pub type_name: &'static str,
    /// As text, the way a user would write it.
    pub default: &'static str,
    pub area: Area,
    pub need: Need,
    pub help: &'static str,
    /// Makes the parser's argument for this row's type.
    pub arg: fn(&'static Flag) -> clap::Arg,
}

impl Flag {
    /// Its value must not be repeated in a message.
    pub fn is_secret(&self) -> bool {
        self.name == "peer-router-passwords"
    }
}

/// What is known of a flag that the user wrote.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Given {
    /// Its final value is not the default.
    pub differs: bool,
    /// Its final value, if it is a boolean.
    pub is_true: Option<bool>,
}

/// Takes a flag's final value out of the matches and notes whether the user wrote it.
fn take<T: FlagValue>(matches: &mut ArgMatches, flag: &'static Flag, given: &mut BTreeMap<&'static str, Given>) -> T {
    let default = match flag.default {
        "" => T::default(),
        text => T::parse(text).unwrap_or_else(|e| unreachable!("a test reads every default: {e}")),
    };
    let Some(value) = matches.remove_many::<T>(flag.name).and_then(T::join) else {
        return default;
    };
    let as_bool = (&value as &dyn std::any::Any).downcast_ref::<bool>().copied();
    given.insert(flag.name, Given { differs: value != default, is_true: as_bool });
    value
}

macro_rules! flags {
    ($($area:ident { $($field:ident $name:literal $($short:literal)?, $type:ty = $default:literal, $need:expr, $help:literal;)* })*) => {
        /// The final value of every flag.
        // No Debug in the program itself: one flag holds passwords.
        #[cfg_attr(test, derive(Debug, PartialEq))]
        pub struct Flags {
            $($(pub $field: $type,)*)*
            given: BTreeMap<&'static str, Given>,
        }

        /// Every flag, area by area.
        pub static TABLE: &[Flag] = &[$($(Flag {
            name: $name,
            short: flags!(@short $($short)?),
            type_name: <$type as FlagValue>::TYPE,
            default: $default,
            area: Area::$area,
            need: $need,
            help: $help,
            arg: args::arg::<$type>,
        },)*)*];

        impl Flags {
            /// `matches` must come from a command with every row of [`TABLE`] among its arguments.
            pub(super) fn take(matches: &mut ArgMatches) -> Flags {
                let mut given = BTreeMap::new();
                let mut rows = TABLE.iter();
                let mut row = || rows.next().unwrap_or_else(|| unreachable!("TABLE has a row for every field"));
                Flags {
                    $($($field: take::<$type>(matches, row(), &mut given),)*)*
                    given,
                }
            }
        }
    };
    (@short) => { None };
    (@short $short:literal) => { Some($short) };
}

impl Flags {
    /// `None`: the user did not write this flag.
    pub fn given(&self, name: &str) -> Option<Given> {
        self.given.get(name).copied()
    }
}

const BGP: Feature = Feature::Router;
use Need::{Asks, Deprecated, Harmless, Shapes, Works};

flags! {
    General {
        cleanup_config "cleanup-config", bool = "false", Works,
            "Remove what kube-router programmed on this node (IPVS services, addresses, packet filter rules, BPF programs) \
             and exit.";
        hostname_override "hostname-override", String = "", Works,
            "Name of this node's Node object. Without it: $NODE_NAME, then the host name.";
        enable_pprof "enable-pprof", bool = "false", Asks(Feature::Profiler),
            "Serve a profiler on port 6060.";
        verbosity "v" 'v', String = "0", Works,
            "Verbosity of the log: 0 what changed, 1 and 2 also why (debug), 3 and more everything (trace). $RUST_LOG, if set, \
             decides instead.";
        help "help" 'h', bool = "false", Works,
            "Print this text.";
        version "version" 'V', bool = "false", Works,
            "Print the version.";
    }
    Api {
        kubeconfig "kubeconfig", String = "", Works,
            "Client configuration file for the API server. Without it and without --master: the pod's service account.";
        master "master", String = "", Works,
            "URL of the API server; overrides the one in the kubeconfig file.";
        cache_sync_timeout "cache-sync-timeout", GoDuration = "1m", Works,
            "Longest wait for the first complete view of the cluster; then the start fails.";
        manifests "manifests", String = "", Works,
            "Read objects from this YAML file, or from the files of this directory, instead of an API server, and follow \
             changes.";
        record "record", String = "", Works,
            "Write every event received to this file as JSON lines, for 'kube-router replay'.";
        socket "socket", String = "/run/kube-router/kube-router.sock", Works,
            "Unix socket on which the running agent answers dump, explain, matrix and monitor.";
    }
    Proxy {
        run_service_proxy "run-service-proxy", bool = "true", Works,
            "Serve Kubernetes Services on this node through IPVS.";
        masquerade_all "masquerade-all", bool = "false", Works,
            "Give every connection to a service this node's address as its source.";
        hairpin_mode "hairpin-mode", bool = "false", Works,
            "Let the pods behind any service reach themselves through it. (One service: annotation \
             kube-router.io/service.hairpin.)";
        nodeport_bindon_all_ip "nodeport-bindon-all-ip", bool = "false", Works,
            "Serve node ports on all addresses of this node instead of its primary one.";
        ipvs_sync_period "ipvs-sync-period", GoDuration = "5m", Works,
            "Period of the full check of services against the kernel, besides the work on each change.";
        ipvs_graceful_termination "ipvs-graceful-termination", bool = "false", Works,
            "Let connections to an endpoint that goes away drain before it is removed.";
        ipvs_graceful_period "ipvs-graceful-period", GoDuration = "30s", Works,
            "Longest drain where the pod does not say.";
        ipvs_permit_all "ipvs-permit-all", bool = "true", Works,
            "Guard service addresses: only traffic to a service's ports may enter.";
        excluded_cidrs "excluded-cidrs", Vec<String> = "", Works,
            "IPVS services with addresses in these CIDRs belong to somebody else and are never removed.";
        service_tcp_timeout "service-tcp-timeout", GoDuration = "0s", Works,
            "IPVS timeout of idle TCP connections; 0 keeps the kernel's.";
        service_tcpfin_timeout "service-tcpfin-timeout", GoDuration = "0s", Works,
            "IPVS timeout of TCP connections after a FIN; 0 keeps the kernel's.";
        service_udp_timeout "service-udp-timeout", GoDuration = "0s", Works,
            "IPVS timeout of UDP flows; 0 keeps the kernel's.";
        runtime_endpoint "runtime-endpoint", String = "", Asks(Feature::Dsr),
            "Container runtime socket, unix://PATH, through which direct server return reaches into pods.";
    }
    Addresses {
        enable_ipv4 "enable-ipv4", bool = "true", Works,
            "Handle IPv4; this node's Node object must have an IPv4 address.";
        enable_ipv6 "enable-ipv6", bool = "false", Works,
            "Handle IPv6; this node's Node object must have an IPv6 address.";
        service_cluster_ip_range "service-cluster-ip-range", Vec<String> = "10.96.0.0/12", Works,
            "CIDRs of cluster IPs, one or two.";
        service_external_ip_range "service-external-ip-range", Vec<String> = "", Works,
            "CIDRs from which services may take external IPs.";
        loadbalancer_ip_range "loadbalancer-ip-range", Vec<String> = "", Works,
            "CIDRs from which services may take load-balancer IPs, and from which the allocator will choose.";
        strict_external_ip_validation "strict-external-ip-validation", bool = "true", Works,
            "Ignore external and load-balancer IPs outside the two ranges above (all of them where no range is given) or \
             inside a cluster IP range. false: accept any.";
    }
    Observe {
        health_addr "health-addr", String = "", Works,
            "Address for /healthz and /readyz; all addresses if empty.";
        health_port "health-port", u16 = "20244", Works,
            "Port for /healthz and /readyz; 0 = off.";
        metrics_addr "metrics-addr", String = "", Works,
            "Address for Prometheus metrics; all addresses if empty.";
        metrics_port "metrics-port", u16 = "0", Works,
            "Port for Prometheus metrics; 0 and 65535 = off.";
        metrics_path "metrics-path", String = "/metrics", Works,
            "Path for Prometheus metrics.";
    }
    Policy {
        run_firewall "run-firewall", bool = "true", Works,
            "Enforce NetworkPolicy. false: nothing is judged; the BPF programs are there for --service-fastpath alone.";
        iptables_sync_period "iptables-sync-period", GoDuration = "5m", Works,
            "Period of the full check of policies.";
        netpol_default_deny "netpol-default-deny", bool = "false", Works,
            "Reject traffic of local pods that the firewall does not cover yet.";
        netpol_reject "netpol-reject", String = "icmp", Works,
            "Answer to refused packets: icmp (port unreachable) or drop (none).";
        netpol_keep_established "netpol-keep-established", bool = "false", Works,
            "Connections live on when a policy starts to forbid them.";
        netpol_anti_spoofing "netpol-anti-spoofing", bool = "true", Works,
            "Pods send from their own IP and hardware addresses only.";
        service_fastpath "service-fastpath", String = "auto", Works,
            "Send what pods send to services and to pods of this node past IPVS, bridge and netfilter: auto (with --run-firewall; \
             not at interfaces with shapers or filters of others, isolated ports or VLANs), on (in any case) or off. What has \
             begun goes on.";
        netpol_max_flows "netpol-max-flows", u32 = "262144", Works,
            "Connections of local pods that are tracked at the same time, a pod's at most half of them; further ones that need it \
             are refused.";
        netpol_max_pods "netpol-max-pods", u32 = "4096", Works,
            "Pods of this node, plus one, at most 4096; further ones are shut.";
        netpol_max_peers "netpol-max-peers", u32 = "262144", Works,
            "Addresses of pods of the cluster, nodes and services that policies tell apart; and a fourth of it, prefixes of \
             ipBlocks. Further ones match no rule that allows.";
        netpol_max_service_ports "netpol-max-service-ports", u32 = "131072", Works,
            "Ports of services; at further ones pods with egress rules are judged by the service's address.";
        netpol_max_rows "netpol-max-rows", u32 = "1048576", Works,
            "Rows that policies are compiled to, each a set of pods, of peers and of ports; pods whose rows do not fit have no \
             new flows.";
        cni_socket "cni-socket", String = "/run/kube-router/cni.sock", Works,
            "Unix socket on which the network plugin kube-router-cni asks for pods that start; empty: none.";
        bpf_directory "bpf-directory", String = "/sys/fs/bpf/kube-router", Works,
            "Where tables and programs are pinned, so that they go on without the agent; in a BPF file system.";
        use_nftables_for_netpol "use-nftables-for-netpol", bool = "false",
            Deprecated("BPF programs enforce policy, neither iptables nor nftables does"),
            "Enforce policy through nftables instead of iptables.";
        service_node_port_range "service-node-port-range", String = "30000-32767",
            Deprecated("which ports are node ports is read from the services"),
            "Ports of node port services, LOW-HIGH or LOW:HIGH, which policy lets through to the node.";
    }
    Routing {
        run_router "run-router", bool = "true", Asks(Feature::Router),
            "Connect pods of different nodes: routes, tunnels, BGP. Its default also makes the service proxy give connections \
             that leave the pod network this node's address.";
        routes_sync_period "routes-sync-period", GoDuration = "5m", Harmless(Feature::Router),
            "Period of the full check of routes and advertisements.";
        injected_routes_sync_period "injected-routes-sync-period", GoDuration = "1m", Harmless(Feature::Router),
            "Period of the check that learned routes are still in the kernel.";
        enable_cni "enable-cni", bool = "true", Harmless(Feature::Router),
            "Write pod ranges and MTU into the CNI configuration ($KUBE_ROUTER_CNI_CONF_FILE).";
        auto_mtu "auto-mtu", bool = "true", Harmless(Feature::Router),
            "Give kube-bridge and pods the MTU of the interface with the node's address.";
        enable_pod_egress "enable-pod-egress", bool = "true", Harmless(Feature::Router),
            "Give traffic from pods to outside the cluster this node's address.";
        enable_overlay "enable-overlay", bool = "true", Harmless(Feature::Router),
            "Tunnel between nodes of different subnets.";
        overlay_type "overlay-type", String = "subnet", Asks(Feature::Router),
            "subnet: tunnel only between subnets; full: between all nodes.";
        overlay_encap "overlay-encap", String = "ipip", Asks(Feature::Router),
            "Encapsulation of tunnels: ipip or fou.";
        overlay_encap_port "overlay-encap-port", u16 = "5555", Shapes(Feature::Router),
            "UDP port of fou tunnels, 1024 or higher.";
        disable_source_dest_check "disable-source-dest-check", bool = "true", Harmless(Feature::Router),
            "On AWS, switch off the source/destination check of this instance.";
    }
    Bgp {
        enable_ibgp "enable-ibgp", bool = "true", Harmless(BGP),
            "Peer with the other nodes.";
        nodes_full_mesh "nodes-full-mesh", bool = "true", Shapes(BGP),
            "All nodes peer with each other in one AS; false: AS per node by annotation, mesh inside each AS.";
        cluster_asn "cluster-asn", u64 = "0", Shapes(BGP),
            "AS of the nodes: 64512-65535 or 4200000000-4294967294; 0 means 64512.";
        router_id "router-id", String = "", Shapes(BGP),
            "BGP router id, or 'generate'; without it the node's IPv4 address.";
        bgp_port "bgp-port", u32 = "179", Shapes(BGP),
            "Port to listen on and to reach other nodes on.";
        bgp_holdtime "bgp-holdtime", GoDuration = "1m30s", Shapes(BGP),
            "Hold time announced to external peers, 3s to 18h12m16s.";
        bgp_graceful_restart "bgp-graceful-restart", bool = "false", Shapes(BGP),
            "Offer graceful restart (RFC 4724), so that peers keep routes while the agent restarts.";
        bgp_graceful_restart_time "bgp-graceful-restart-time", GoDuration = "1m30s", Shapes(BGP),
            "Restart time announced, at most 4095s.";
        bgp_graceful_restart_deferral_time "bgp-graceful-restart-deferral-time", GoDuration = "6m", Shapes(BGP),
            "Longest wait for peers after a restart, at most 18h.";
        advertise_cluster_ip "advertise-cluster-ip", bool = "false", Asks(BGP),
            "Advertise cluster IPs.";
        advertise_external_ip "advertise-external-ip", bool = "false", Asks(BGP),
            "Advertise external IPs.";
        advertise_loadbalancer_ip "advertise-loadbalancer-ip", bool = "false", Asks(BGP),
            "Advertise load-balancer IPs.";
        advertise_pod_cidr "advertise-pod-cidr", bool = "true", Harmless(BGP),
            "Advertise this node's pod ranges to external peers.";
        override_nexthop "override-nexthop", bool = "false", Asks(BGP),
            "Announce this node as next hop to external peers.";
        peer_router_ips "peer-router-ips", Vec<IpAddr> = "", Asks(BGP),
            "External peers of every node.";
        peer_router_asns "peer-router-asns", Vec<u64> = "", Asks(BGP),
            "Their AS numbers, one for each.";
        peer_router_ports "peer-router-ports", Vec<u64> = "", Asks(BGP),
            "Their ports, one for each; without it 179.";
        peer_router_passwords "peer-router-passwords", Vec<String> = "", Asks(BGP),
            "Their passwords in base64, one for each, an empty one for none. Visible to everyone on the node: prefer the file.";
        peer_router_passwords_file "peer-router-passwords-file", String = "", Asks(BGP),
            "File with these passwords, in the same form.";
        peer_router_multihop_ttl "peer-router-multihop-ttl", u8 = "0", Asks(BGP),
            "TTL towards external peers that are not neighbours; counts from 2 up.";
        gobgp_admin_address "gobgp-admin-address", String = "127.0.0.1", Harmless(BGP),
            "Address of the administration interface for the gobgp command.";
        gobgp_admin_port "gobgp-admin-port", u16 = "50051", Harmless(BGP),
            "Its port; 0 = off.";
        enable_bfd "enable-bfd", bool = "false", Asks(Feature::Bfd),
            "Watch the peers of --peer-router-ips by BFD.";
        bfd_port "bfd-port", u32 = "3784", Shapes(Feature::Bfd),
            "UDP port of BFD.";
        bfd_detection_multiplier "bfd-detection-multiplier", u32 = "3", Shapes(Feature::Bfd),
            "Packets that may be missed, 1-255.";
        bfd_desired_min_tx_interval "bfd-desired-min-tx-interval", u32 = "1000", Shapes(Feature::Bfd),
            "Shortest interval of sending, ms, 1-4294967.";
        bfd_required_min_rx_interval "bfd-required-min-rx-interval", u32 = "1000", Shapes(Feature::Bfd),
            "Shortest interval of receiving, ms, 1-4294967.";
    }
    LoadBalancer {
        run_loadbalancer "run-loadbalancer", bool = "false", Asks(Feature::LoadBalancer),
            "Assign addresses of --loadbalancer-ip-range to LoadBalancer services ($POD_NAME, $POD_NAMESPACE name the leader).";
        loadbalancer_default_class "loadbalancer-default-class", bool = "true", Harmless(Feature::LoadBalancer),
            "Serve services without a load-balancer class too.";
        loadbalancer_sync_period "loadbalancer-sync-period", GoDuration = "1m", Harmless(Feature::LoadBalancer),
            "Period of the check for services that were missed.";
    }
    Deprecated {
        cluster_cidr "cluster-cidr", String = "", Deprecated("pod ranges come from the Node objects"),
            "Pod range of the cluster. No effect.";
        config_sync_period "config-sync-period", GoDuration = "1m", Deprecated("changes are watched"),
            "Period of reading all objects again. No effect.";
    }
}

/// The default of a flag as text; empty for an unknown name.
pub fn default(name: &str) -> &'static str {
    TABLE.iter().find(|flag| flag.name == name).map_or("", |flag| flag.default)
}
