//! ipBlock: "selects particular IP CIDR ranges to allow as ingress sources or egress destinations". Pods are meant too where
//! their addresses fall into one. A block is of one family and says nothing about the other.

use super::policy;
use crate::netpol::scenario::{Change::Apply, Scenario, step};

const NODE_2: &str =
    policy!("x", "p", "{podSelector: {matchLabels: {pod: a}}, ingress: [{from: [{ipBlock: {cidr: 10.246.2.0/24}}]}]}");
const NODE_2_IPV6: &str = policy!(
    "x",
    "p",
    "{podSelector: {matchLabels: {pod: a}}, ingress: [{from: [{ipBlock: {cidr: 'fd00:10:246:2::/64'}}]}]}"
);
const EXCEPT: &str = policy!(
    "x",
    "p",
    "
  podSelector: {matchLabels: {pod: a}}
  ingress:
  - from:
    - ipBlock: {cidr: 10.246.0.0/16, except: [10.246.2.22/32, 10.246.1.20/30]}
    - ipBlock: {cidr: 'fd00:10:246::/48', except: ['fd00:10:246:2::22/128']}"
);
const ONE_ADDRESS: &str = policy!(
    "x",
    "p",
    "{podSelector: {}, ingress: [{from: [{ipBlock: {cidr: 10.246.1.32/32}}, {ipBlock: {cidr: 'fd00:10:246:1::32/128'}}]}]}"
);
const EVERYTHING: &str = policy!(
    "x",
    "p",
    "{podSelector: {}, ingress: [{from: [{ipBlock: {cidr: 0.0.0.0/0}}, {ipBlock: {cidr: '::/0'}}]}]}"
);
const EVERYTHING_BUT: &str = policy!(
    "x",
    "p",
    "
  podSelector: {}
  ingress:
  - from:
    - ipBlock: {cidr: 0.0.0.0/0, except: [10.246.1.0/24]}
    - ipBlock: {cidr: '::/0', except: ['fd00:10:246:1::/64']}"
);
const OVERLAP: &str = policy!(
    "x",
    "p",
    "
  podSelector: {matchLabels: {pod: a}}
  ingress:
  - from:
    - ipBlock: {cidr: 10.246.2.0/24, except: [10.246.2.20/30]}
    - ipBlock: {cidr: 10.246.2.22/32}"
);
const SECOND_ALLOWS: &str = concat!(
    policy!(
        "x",
        "first",
        "{podSelector: {matchLabels: {pod: a}}, ingress: [{from: [{ipBlock: {cidr: 10.246.2.0/24, except: [10.246.2.22/32]}}]}]}"
    ),
    policy!(
        "x",
        "second",
        "{podSelector: {matchLabels: {pod: a}}, ingress: [{from: [{ipBlock: {cidr: 10.246.2.22/32}}]}]}"
    ),
);
const WITH_PORTS: &str = policy!(
    "x",
    "p",
    "
  podSelector: {matchLabels: {pod: a}}
  ingress:
  - from: [{ipBlock: {cidr: 10.246.2.0/24}}]
    ports: [{port: 80}]
  - from: [{ipBlock: {cidr: 10.246.2.32/30}}]
    ports: [{protocol: UDP}]"
);
const BESIDE_SELECTOR: &str = policy!(
    "x",
    "p",
    "
  podSelector: {matchLabels: {pod: a}}
  ingress:
  - from:
    - ipBlock: {cidr: 10.246.2.0/24, except: [10.246.2.22/32]}
    - namespaceSelector: {matchLabels: {ns: y}}"
);
const EGRESS: &str = policy!(
    "x",
    "p",
    "
  podSelector: {matchLabels: {pod: a}}
  policyTypes: [Egress]
  egress:
  - to:
    - ipBlock: {cidr: 10.246.2.0/24, except: [10.246.2.33/32]}
    - ipBlock: {cidr: 'fd00:10:246:2::/64', except: ['fd00:10:246:2::33/128']}"
);
const EGRESS_OVERLAP: &str = concat!(
    policy!(
        "x",
        "first",
        "{podSelector: {matchLabels: {pod: a}}, policyTypes: [Egress], egress: [{to: [{ipBlock: {cidr: 10.246.1.0/24, except: [10.246.1.23/32]}}]}]}"
    ),
    policy!(
        "x",
        "second",
        "{podSelector: {matchLabels: {pod: a}}, policyTypes: [Egress], egress: [{to: [{ipBlock: {cidr: 10.246.1.23/32}}], ports: [{port: 81}]}]}"
    ),
);

pub const SCENARIOS: &[Scenario] = &[
    Scenario::new(
        "from a block",
        &[step(
            &[Apply(NODE_2)],
            "deny any to x/a
             allow x/c, y/b, z/a, z/c to x/a over ipv4",
        )],
    ),
    Scenario::new(
        "from a block of IPv6",
        &[step(
            &[Apply(NODE_2_IPV6)],
            "deny any to x/a
             allow x/c, y/b, z/a, z/c to x/a over ipv6",
        )],
    ),
    // except: "a slice of CIDRs that should not be included within an IPBlock". 10.246.1.20/30 holds y/a and y/c.
    Scenario::new(
        "from a block with exceptions",
        &[step(
            &[Apply(EXCEPT)],
            "deny y/b to x/a
             deny y/a, y/c to x/a over ipv4",
        )],
    )
    .with_services(),
    Scenario::new(
        "from one address",
        &[step(
            &[Apply(ONE_ADDRESS)],
            "deny any to x
             allow z/b to x",
        )],
    ),
    Scenario::new("from every address", &[step(&[Apply(EVERYTHING)], "")]),
    Scenario::new(
        "from every address but a node's pods",
        &[step(&[Apply(EVERYTHING_BUT)], "deny x/a, x/b, y/a, y/c, z/b to x")],
    ),
    // An exception takes from its own block only; what another entry gives it does not take away.
    Scenario::new(
        "an excepted address in another block of the rule",
        &[step(
            &[Apply(OVERLAP)],
            "deny any to x/a
             allow x/c, y/b, z/a, z/c to x/a over ipv4",
        )],
    ),
    Scenario::new(
        "an excepted address in another policy",
        &[step(
            &[Apply(SECOND_ALLOWS)],
            "deny any to x/a
             allow x/c, y/b, z/a, z/c to x/a over ipv4",
        )],
    ),
    Scenario::new(
        "blocks with ports",
        &[step(
            &[Apply(WITH_PORTS)],
            "deny any to x/a
             allow x/c, y/b, z/a, z/c to x/a on tcp/80 over ipv4
             allow z/c to x/a on udp over ipv4",
        )],
    ),
    Scenario::new(
        "a block beside a selector",
        &[step(
            &[Apply(BESIDE_SELECTOR)],
            "deny any to x/a
             allow x/c, z/a, z/c to x/a over ipv4
             allow y to x/a",
        )],
    ),
    Scenario::new(
        "to a block with an exception",
        &[step(
            &[Apply(EGRESS)],
            "deny x/a to any
             allow x/a to x/c, y/b, z/a",
        )],
    )
    .with_services(),
    Scenario::new(
        "to an excepted address by another policy, on one port",
        &[step(
            &[Apply(EGRESS_OVERLAP)],
            "deny x/a to any
             allow x/a to x/b, y/a, z/b over ipv4
             allow x/a to y/c on tcp/81 over ipv4",
        )],
    ),
];
