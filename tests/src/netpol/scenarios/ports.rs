//! Ports: numbers, names, ranges, protocols.

use super::policy;
use crate::netpol::scenario::{Change::Apply, Scenario, step};

/// A policy for ingress of x/a (by literal), or of all of x, with these ports.
macro_rules! ports {
    ($subject:literal, $ports:literal) => {
        policy!("x", "p", concat!("{podSelector: ", $subject, ", ingress: [{ports: ", $ports, "}]}"))
    };
}

const A: &str = "deny any to x/a";
const TCP_80: &str = ports!("{matchLabels: {pod: a}}", "[{protocol: TCP, port: 80}]");
const NO_PROTOCOL: &str = ports!("{matchLabels: {pod: a}}", "[{port: 81}]");
const UDP_80: &str = ports!("{matchLabels: {pod: a}}", "[{protocol: UDP, port: 80}]");
const ALL_UDP: &str = ports!("{matchLabels: {pod: a}}", "[{protocol: UDP}]");
const SCTP_80: &str = ports!("{matchLabels: {pod: a}}", "[{protocol: SCTP, port: 80}]");
const ALL_SCTP: &str = ports!("{matchLabels: {pod: a}}", "[{protocol: SCTP}]");
const SEVERAL: &str = ports!("{matchLabels: {pod: a}}", "[{port: 80}, {protocol: UDP, port: 81}]");
const NAMED_TCP: &str = ports!("{matchLabels: {pod: a}}", "[{protocol: TCP, port: serve-81-tcp}]");
const NAMED_UDP: &str = ports!("{matchLabels: {pod: a}}", "[{protocol: UDP, port: serve-80-udp}]");
const NAMED_SCTP: &str = ports!("{matchLabels: {pod: a}}", "[{protocol: SCTP, port: serve-80-sctp}]");
const NAMED_WRONG: &str = ports!("{matchLabels: {pod: a}}", "[{protocol: TCP, port: serve-80-udp}, {port: nowhere}]");
const NAMED_WEB: &str = ports!("{}", "[{port: web}]");
const RANGE: &str = ports!("{matchLabels: {pod: a}}", "[{protocol: TCP, port: 80, endPort: 81}]");
const RANGE_BELOW: &str = ports!("{matchLabels: {pod: a}}", "[{protocol: TCP, port: 1, endPort: 80}]");
const RANGE_UDP: &str = ports!("{matchLabels: {pod: a}}", "[{protocol: UDP, port: 81, endPort: 65535}]");
const OTHER_NUMBERS: &str =
    ports!("{matchLabels: {pod: a}}", "[{port: 8080}, {protocol: UDP, port: 8000, endPort: 9000}]");
const NO_PORTS: &str = ports!("{matchLabels: {pod: a}}", "[]");
const WITH_PEERS: &str = policy!(
    "x",
    "p",
    "
  podSelector: {matchLabels: {pod: a}}
  ingress:
  - from: [{namespaceSelector: {matchLabels: {ns: y}}}]
    ports: [{port: 80}]
  - from: [{namespaceSelector: {matchLabels: {ns: z}}}]
    ports: [{port: 81}, {protocol: UDP, port: 80}]"
);

pub const SCENARIOS: &[Scenario] = &[
    Scenario::new("TCP port 80", &[step(&[Apply(TCP_80)], "deny any to x/a\n allow any to x/a on tcp/80")])
        .with_services(),
    // protocol: "If not specified, this field defaults to TCP"
    Scenario::new(
        "a port without protocol",
        &[step(&[Apply(NO_PROTOCOL)], "deny any to x/a\n allow any to x/a on tcp/81")],
    ),
    Scenario::new("UDP port 80", &[step(&[Apply(UDP_80)], "deny any to x/a\n allow any to x/a on udp/80")])
        .with_services(),
    // port: "If this field is not provided, this matches all port names and numbers"
    Scenario::new("a protocol without port", &[step(&[Apply(ALL_UDP)], "deny any to x/a\n allow any to x/a on udp")]),
    Scenario::new("SCTP port 80", &[step(&[Apply(SCTP_80)], "deny any to x/a\n allow any to x/a on sctp/80")])
        .with_services(),
    Scenario::new("all of SCTP", &[step(&[Apply(ALL_SCTP)], "deny any to x/a\n allow any to x/a on sctp")]),
    Scenario::new("several ports", &[step(&[Apply(SEVERAL)], "deny any to x/a\n allow any to x/a on tcp/80, udp/81")]),
    Scenario::new("a named port", &[step(&[Apply(NAMED_TCP)], "deny any to x/a\n allow any to x/a on tcp/81")])
        .with_services(),
    Scenario::new("a named port of UDP", &[step(&[Apply(NAMED_UDP)], "deny any to x/a\n allow any to x/a on udp/80")]),
    Scenario::new(
        "a named port of SCTP",
        &[step(&[Apply(NAMED_SCTP)], "deny any to x/a\n allow any to x/a on sctp/80")],
    ),
    // A name belongs to a container port and its protocol.
    Scenario::new("a name of another protocol, and of nothing", &[step(&[Apply(NAMED_WRONG)], A)]),
    // Each pod's own number counts: 80 at a, 81 at b, none at c.
    Scenario::new(
        "a name that is another number at every pod",
        &[step(
            &[Apply(NAMED_WEB)],
            "deny any to x
             allow any to x/a on tcp/80
             allow any to x/b on tcp/81",
        )],
    ),
    // endPort: "the range of ports from port to endPort if set, inclusive, should be allowed by the policy"
    Scenario::new("a range of ports", &[step(&[Apply(RANGE)], "deny any to x/a\n allow any to x/a on tcp")])
        .with_services(),
    Scenario::new("a range up to 80", &[step(&[Apply(RANGE_BELOW)], "deny any to x/a\n allow any to x/a on tcp/80")]),
    Scenario::new("a range of UDP", &[step(&[Apply(RANGE_UDP)], "deny any to x/a\n allow any to x/a on udp/81")]),
    // The numbers of the services: a policy is about the pod's.
    Scenario::new("ports that the pod does not serve", &[step(&[Apply(OTHER_NUMBERS)], A)]).with_services(),
    // ports: "If this field is empty or missing, this rule matches all ports"
    Scenario::new("an empty list of ports is every port", &[step(&[Apply(NO_PORTS)], "")]),
    // "A rule: traffic must match both ports and from"
    Scenario::new(
        "each rule has its own peers and ports",
        &[step(
            &[Apply(WITH_PEERS)],
            "deny any to x/a
             allow y to x/a on tcp/80
             allow z to x/a on tcp/81, udp/80",
        )],
    ),
];
