//! Every flag: name, type and default as recorded, set, last wins or accumulates; the parser survives anything.

use std::collections::BTreeSet;

use proptest::prelude::*;

use super::*;
use crate::cli::{
    args::read_flags,
    flags::{Area, Flags, TABLE},
    help,
    look::Form,
};

/// The original's flags with type and default as its help prints them (`ips` there is `ipSlice`).
const RECORDED: &str = "
advertise-cluster-ip bool false
advertise-external-ip bool false
advertise-loadbalancer-ip bool false
advertise-pod-cidr bool true
auto-mtu bool true
bfd-desired-min-tx-interval uint32 1000
bfd-detection-multiplier uint32 3
bfd-port uint32 3784
bfd-required-min-rx-interval uint32 1000
bgp-graceful-restart bool false
bgp-graceful-restart-deferral-time duration 6m0s
bgp-graceful-restart-time duration 1m30s
bgp-holdtime duration 1m30s
bgp-port uint32 179
cache-sync-timeout duration 1m0s
cleanup-config bool false
cluster-asn uint 0
disable-source-dest-check bool true
enable-bfd bool false
enable-cni bool true
enable-ibgp bool true
enable-ipv4 bool true
enable-ipv6 bool false
enable-overlay bool true
enable-pod-egress bool true
enable-pprof bool false
excluded-cidrs strings
gobgp-admin-address string 127.0.0.1
gobgp-admin-port uint16 50051
hairpin-mode bool false
health-addr string
health-port uint16 20244
help bool false
hostname-override string
injected-routes-sync-period duration 1m0s
iptables-sync-period duration 5m0s
ipvs-graceful-period duration 30s
ipvs-graceful-termination bool false
ipvs-permit-all bool true
ipvs-sync-period duration 5m0s
kubeconfig string
loadbalancer-default-class bool true
loadbalancer-ip-range strings
loadbalancer-sync-period duration 1m0s
masquerade-all bool false
master string
metrics-addr string
metrics-path string /metrics
metrics-port uint16 0
netpol-default-deny bool false
nodeport-bindon-all-ip bool false
nodes-full-mesh bool true
overlay-encap string ipip
overlay-encap-port uint16 5555
overlay-type string subnet
override-nexthop bool false
peer-router-asns uints
peer-router-ips ips
peer-router-multihop-ttl uint8 0
peer-router-passwords strings
peer-router-passwords-file string
peer-router-ports uints
router-id string
routes-sync-period duration 5m0s
run-firewall bool true
run-loadbalancer bool false
run-router bool true
run-service-proxy bool true
runtime-endpoint string
service-cluster-ip-range strings 10.96.0.0/12
service-external-ip-range strings
service-node-port-range string 30000-32767
service-tcp-timeout duration 0s
service-tcpfin-timeout duration 0s
service-udp-timeout duration 0s
strict-external-ip-validation bool true
use-nftables-for-netpol bool false
v string 0
version bool false
";

/// Not in the recording: two of the past, the others ours.
const OTHERS: [&str; 16] = [
    "bpf-directory",
    "cluster-cidr",
    "cni-socket",
    "config-sync-period",
    "manifests",
    "netpol-anti-spoofing",
    "netpol-keep-established",
    "netpol-max-flows",
    "netpol-max-peers",
    "netpol-max-pods",
    "netpol-max-rows",
    "netpol-max-service-ports",
    "netpol-reject",
    "record",
    "service-fastpath",
    "socket",
];

fn flags(args: &[&str]) -> Flags {
    let args: Vec<String> = args.iter().map(|&arg| arg.to_owned()).collect();
    read_flags(&args, false).unwrap_or_else(|e| panic!("{args:?}: {e}")).flags
}

/// Two different values of a type, neither of them a default.
fn samples(type_name: &str) -> (&'static str, &'static str) {
    match type_name {
        "uint8" | "uint16" | "uint32" | "uint" => ("11", "0x0c"),
        "duration" => ("300ms", "2h22m"),
        "ips" => ("192.0.2.1", "2001:db8::1"),
        "uints" => ("65001", "65002"),
        _ => ("one", "two"),
    }
}

#[test]
fn names_types_and_defaults() {
    let mut names: BTreeSet<&str> = OTHERS.into();
    for line in RECORDED.trim().lines() {
        let words: Vec<&str> = line.split(' ').collect();
        let name = words[0];
        assert!(names.insert(name));
        let row = TABLE.iter().find(|row| row.name == name).unwrap_or_else(|| panic!("{name} is missing"));
        let type_name = if row.type_name.is_empty() { "bool" } else { row.type_name };
        assert_eq!(type_name, words[1], "{name}");
        // Writing the recorded default changes nothing.
        if let Some(default) = words.get(2) {
            let written = flags(&[&format!("--{name}={default}")]);
            assert!(!written.given(name).unwrap().differs, "{name}");
        } else {
            assert_eq!(row.default, "", "{name}");
        }
    }
    assert_eq!(names, TABLE.iter().map(|row| row.name).collect());
    assert_eq!(TABLE.len(), names.len(), "a flag is there twice");
}

#[test]
fn set_and_set_again() {
    let unset = flags(&[]);
    for row in TABLE {
        let (name, default) = (row.name, row.default);
        assert_eq!(unset.given(name), None, "{name}");
        if row.type_name.is_empty() {
            let (on, off) = (format!("--{name}"), format!("--{name}=false"));
            assert_eq!(flags(&[&on]), flags(&[&format!("--{name}=T")]));
            assert_eq!(flags(&[&on]).given(name).unwrap().is_true, Some(true), "{name}");
            assert_eq!(flags(&[&off]).given(name).unwrap().is_true, Some(false), "{name}");
            assert_eq!(flags(&[&on]).given(name).unwrap().differs, default == "false", "{name}");
            assert_eq!(flags(&[&on, &off]), flags(&[&off]), "{name}: last one wins");
            assert_eq!(flags(&[&off, &on]), flags(&[&on]), "{name}: last one wins");
            continue;
        }
        let (one, two) = samples(row.type_name);
        let (first, second) = (format!("--{name}={one}"), format!("--{name}={two}"));
        let dashes = format!("--{name}");
        assert!(flags(&[&first]).given(name).unwrap().differs, "{name}");
        assert_ne!(flags(&[&first]), flags(&[&second]), "{name}");
        assert_eq!(flags(&[&first]), flags(&[&dashes, one]), "{name}: value in the next argument");
        if matches!(row.type_name, "strings" | "uints" | "ips") {
            let both = format!("--{name}={one},{two}");
            assert_eq!(flags(&[&first, &second]), flags(&[&both]), "{name}: occurrences accumulate");
        } else {
            assert_eq!(flags(&[&first, &second]), flags(&[&second]), "{name}: last one wins");
        }
    }
}

#[test]
fn short_forms() {
    for args in [&["-v3"][..], &["-v=3"], &["-v", "3"], &["--v=3"], &["--v", "3"]] {
        assert_eq!(flags(args), flags(&["-v", "3"]), "{args:?}");
        assert_eq!(flags(args).verbosity, "3");
    }
    assert!(flags(&["-h"]).help && flags(&["-hV"]).version && flags(&["-Vh"]).help);
    assert!(flags(&["-Vv3"]).version);
    assert!(!flags(&["-V=false"]).version);
    // A value may look like a flag.
    assert_eq!(flags(&["--kubeconfig", "--version"]).kubeconfig, "--version");
    assert_eq!(flags(&["--kubeconfig", "--"]).kubeconfig, "--");
    assert_eq!(flags(&["--kubeconfig=a=b"]).kubeconfig, "a=b");
}

#[test]
fn words_are_collected() {
    let words = |args: &[&str]| {
        let args: Vec<String> = args.iter().map(|&arg| arg.to_owned()).collect();
        read_flags(&args, false).unwrap().words
    };
    assert_eq!(words(&["a", "--run-router", "false", "-", "b"]), ["a", "false", "-", "b"]);
    assert_eq!(words(&["--", "-V", "--no-such-flag"]), ["-V", "--no-such-flag"]);
    assert_eq!(words(&["--"]), [""; 0]);
}

#[test]
fn help_shows_every_flag_in_a_hundred_columns() {
    let program = "kube-router";
    let text = help::agent(program);
    assert!(text.starts_with("Usage of kube-router:\n"));
    for row in TABLE {
        let start = format!("--{}", row.name);
        assert!(text.lines().any(|line| line.split_whitespace().any(|word| word == start)), "{start}");
        assert!(Area::ALL.contains(&row.area) && !row.help.is_empty());
    }
    let forms = [Form::Dump, Form::Explain, Form::Matrix, Form::Monitor];
    let others = [help::plan(program), help::replay(program)];
    let others: Vec<String> = others.into_iter().chain(forms.map(|form| help::look(program, form))).collect();
    for line in others.iter().chain([&text]).flat_map(|text| text.lines()) {
        assert!(line.chars().count() <= 100 && line.trim_end() == line, "{line:?}");
    }
}

fn any_arg() -> impl Strategy<Value = String> {
    let name = (0..TABLE.len()).prop_map(|i| TABLE[i].name);
    let value = prop_oneof![
        "[-+]?[0-9]{0,20}",
        "[0-9a-f:./,]{0,20}",
        "\\PC{0,8}",
        "[\",a]{0,6}",
        "[0-9.]{0,5}(ns|µs|ms|s|m|h|x)?",
        Just("true".to_owned()),
        Just("false".to_owned())
    ];
    prop_oneof![
        (name.clone(), value.clone()).prop_map(|(name, value)| format!("--{name}={value}")),
        name.prop_map(|name| format!("--{name}")),
        value,
        "-{0,3}[a-zA-Zé=]{0,6}",
        prop_oneof![Just("plan"), Just("dump"), Just("services"), Just("replay"), Just("--"), Just("-o")]
            .prop_map(str::to_owned),
    ]
}

proptest! {
    #[test]
    fn never_panics(args in proptest::collection::vec(any_arg(), 0..6), uid in 0..2_u32) {
        let argv = std::iter::once("kube-router".to_owned()).chain(args).map(Into::into);
        if let Err(error) = parse(argv, &in_cluster(), &Facts { uid, ..facts() }) {
            prop_assert!(error.exit_code() <= 2);
            prop_assert!(!error.to_string().is_empty());
        }
    }
}
