//! Several policies: "Network policies do not conflict; they are additive. ... Thus, order of evaluation does not affect the
//! policy result."

use super::policy;
use crate::netpol::scenario::{
    Change::{Apply, Delete},
    Scenario, step,
};

const FROM_Y: &str = policy!(
    "x",
    "from-y",
    "{podSelector: {matchLabels: {pod: a}}, ingress: [{from: [{namespaceSelector: {matchLabels: {ns: y}}}], ports: [{port: 80}]}]}"
);
const FROM_Z: &str = policy!(
    "x",
    "from-z",
    "{podSelector: {matchLabels: {pod: a}}, ingress: [{from: [{namespaceSelector: {matchLabels: {ns: z}}}], ports: [{port: 81}]}]}"
);
const PORT_80: &str =
    policy!("x", "port-80", "{podSelector: {matchLabels: {pod: a}}, ingress: [{ports: [{port: 80}]}]}");
const PORT_81: &str =
    policy!("x", "port-81", "{podSelector: {matchLabels: {pod: a}}, ingress: [{ports: [{port: 81}]}]}");
const OVERLAPPING: &str = concat!(
    policy!(
        "x",
        "one",
        "{podSelector: {matchLabels: {pod: a}}, ingress: [{from: [{namespaceSelector: {matchLabels: {ns: y}}, podSelector: {matchLabels: {pod: b}}}]}]}"
    ),
    policy!(
        "x",
        "two",
        "
  podSelector: {matchExpressions: [{key: pod, operator: In, values: [a, b]}]}
  ingress:
  - from:
    - namespaceSelector: {matchLabels: {ns: z}}
      podSelector: {matchLabels: {pod: c}}"
    ),
);
const DENY_AND_ONE: &str = concat!(
    policy!("x", "deny", "{podSelector: {}, policyTypes: [Ingress, Egress]}"),
    policy!(
        "x",
        "within",
        "{podSelector: {}, policyTypes: [Ingress, Egress], ingress: [{from: [{podSelector: {}}]}], egress: [{to: [{podSelector: {}}]}]}"
    ),
);
const IN_TWO_PARTS: &str = concat!(
    policy!(
        "x",
        "in",
        "{podSelector: {matchLabels: {pod: a}}, policyTypes: [Ingress], ingress: [{ports: [{port: 80}]}]}"
    ),
    policy!(
        "x",
        "out",
        "{podSelector: {matchLabels: {pod: a}}, policyTypes: [Egress], egress: [{ports: [{port: 81}]}]}"
    ),
);
const EVERYWHERE: &str = concat!(
    policy!("x", "deny", "{podSelector: {}, policyTypes: [Ingress]}"),
    policy!("y", "deny", "{podSelector: {}, policyTypes: [Ingress]}"),
    policy!("z", "deny", "{podSelector: {}, policyTypes: [Ingress]}"),
    policy!("z", "web", "{podSelector: {}, ingress: [{from: [{namespaceSelector: {}}], ports: [{port: web}]}]}"),
);
/// The same in one rule, in several rules, and in several policies.
const SPELT_THRICE: &str = concat!(
    policy!(
        "x",
        "p",
        "{podSelector: {}, ingress: [{from: [{podSelector: {matchLabels: {pod: a}}}, {podSelector: {matchLabels: {pod: b}}}]}]}"
    ),
    policy!(
        "y",
        "p",
        "{podSelector: {}, ingress: [{from: [{podSelector: {matchLabels: {pod: a}}}]}, {from: [{podSelector: {matchLabels: {pod: b}}}]}]}"
    ),
    policy!("z", "p", "{podSelector: {}, ingress: [{from: [{podSelector: {matchLabels: {pod: a}}}]}]}"),
    policy!("z", "q", "{podSelector: {}, ingress: [{from: [{podSelector: {matchLabels: {pod: b}}}]}]}"),
);

pub const SCENARIOS: &[Scenario] = &[
    Scenario::new(
        "two policies for one pod",
        &[
            step(
                &[Apply(FROM_Y), Apply(FROM_Z)],
                "deny any to x/a
                 allow y to x/a on tcp/80
                 allow z to x/a on tcp/81",
            ),
            step(
                &[Delete("x", "from-y")],
                "deny any to x/a
                 allow z to x/a on tcp/81",
            ),
            step(&[Delete("x", "from-z")], ""),
        ],
    )
    .with_services(),
    Scenario::new(
        "one port, then another on top",
        &[
            step(&[Apply(PORT_80)], "deny any to x/a\n allow any to x/a on tcp/80"),
            step(&[Apply(PORT_81)], "deny any to x/a\n allow any to x/a on tcp"),
            step(&[Delete("x", "port-80")], "deny any to x/a\n allow any to x/a on tcp/81"),
        ],
    ),
    Scenario::new(
        "overlapping subjects",
        &[step(
            &[Apply(OVERLAPPING)],
            "deny any to x/a, x/b
             allow y/b to x/a
             allow z/c to x/a, x/b",
        )],
    )
    .with_services(),
    Scenario::new(
        "deny all, and within the namespace",
        &[step(
            &[Apply(DENY_AND_ONE)],
            "deny any to x
             deny x to any
             allow x to x",
        )],
    ),
    Scenario::new(
        "ingress and egress by different policies",
        &[step(
            &[Apply(IN_TWO_PARTS)],
            "deny any to x/a
             deny x/a to any
             allow any to x/a on tcp/80
             allow x/a to any on tcp/81",
        )],
    ),
    Scenario::new(
        "policies in every namespace",
        &[step(
            &[Apply(EVERYWHERE)],
            "deny any to any
             allow any to z/a on tcp/80
             allow any to z/b on tcp/81",
        )],
    ),
    Scenario::new(
        "the same said in three ways",
        &[step(
            &[Apply(SPELT_THRICE)],
            "deny any to any
             allow x/a, x/b to x
             allow y/a, y/b to y
             allow z/a, z/b to z",
        )],
    ),
];
