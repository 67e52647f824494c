//! What pods send, and both directions at once: "For a connection from a source pod to a destination pod to be allowed,
//! both the egress policy on the source pod and the ingress policy on the destination pod need to allow the connection."

use super::policy;
use crate::netpol::scenario::{Change::Apply, Scenario, step};

const TO_NAMESPACE: &str = policy!(
    "x",
    "p",
    "{podSelector: {matchLabels: {pod: a}}, policyTypes: [Egress], egress: [{to: [{namespaceSelector: {matchLabels: {ns: y}}}]}]}"
);
const TO_BOTH: &str = policy!(
    "x",
    "p",
    "
  podSelector: {matchLabels: {pod: a}}
  policyTypes: [Egress]
  egress:
  - to:
    - namespaceSelector: {matchExpressions: [{key: ns, operator: NotIn, values: [x]}]}
      podSelector: {matchLabels: {pod: b}}"
);
const TO_OWN_NAMESPACE: &str = policy!(
    "x",
    "p",
    "{podSelector: {}, policyTypes: [Egress], egress: [{to: [{podSelector: {matchLabels: {pod: c}}}]}]}"
);
const PORT: &str = policy!(
    "x",
    "p",
    "{podSelector: {matchLabels: {pod: a}}, policyTypes: [Egress], egress: [{ports: [{port: 80}, {protocol: UDP, port: 81}]}]}"
);
const RANGE: &str = policy!(
    "x",
    "p",
    "
  podSelector: {matchLabels: {pod: a}}
  policyTypes: [Egress]
  egress:
  - to: [{namespaceSelector: {matchLabels: {ns: y}}}]
    ports: [{port: 81, endPort: 90}]
  - to: [{namespaceSelector: {matchLabels: {ns: z}}}]
    ports: [{protocol: SCTP, port: 80}, {protocol: UDP, port: 79, endPort: 80}]"
);
const NAMED: &str = policy!(
    "x",
    "p",
    "
  podSelector: {matchLabels: {pod: a}}
  policyTypes: [Egress]
  egress:
  - to: [{namespaceSelector: {matchLabels: {ns: y}}}]
    ports: [{port: web}]
  - to: [{namespaceSelector: {matchLabels: {ns: z}}}]
    ports: [{protocol: UDP, port: serve-81-udp}]"
);
const TWO_WAYS: &str = policy!(
    "x",
    "p",
    "
  podSelector: {matchLabels: {pod: a}}
  policyTypes: [Ingress, Egress]
  ingress:
  - from: [{namespaceSelector: {matchLabels: {ns: y}}, podSelector: {matchLabels: {pod: b}}}]
  egress:
  - to: [{namespaceSelector: {matchLabels: {ns: z}}, podSelector: {matchLabels: {pod: c}}}]
    ports: [{port: 80}]"
);
const OUT_OF_X: &str = policy!(
    "x",
    "out",
    "{podSelector: {matchLabels: {pod: a}}, policyTypes: [Egress], egress: [{to: [{namespaceSelector: {matchLabels: {ns: y}}}]}]}"
);
const INTO_Y_FROM_Z: &str =
    policy!("y", "in", "{podSelector: {}, ingress: [{from: [{namespaceSelector: {matchLabels: {ns: z}}}]}]}");
const INTO_Y_FROM_X: &str = policy!(
    "y",
    "in",
    "{podSelector: {}, ingress: [{from: [{namespaceSelector: {matchLabels: {ns: x}}}], ports: [{port: 81}]}]}"
);
const ONLY_PORTS_MEET: &str = concat!(
    policy!("x", "out", "{podSelector: {}, policyTypes: [Egress], egress: [{ports: [{port: 80}, {protocol: UDP}]}]}"),
    policy!("y", "in", "{podSelector: {}, ingress: [{ports: [{port: 80}, {port: 81}]}]}"),
);

pub const SCENARIOS: &[Scenario] = &[
    Scenario::new(
        "to a namespace",
        &[step(
            &[Apply(TO_NAMESPACE)],
            "deny x/a to any
             allow x/a to y",
        )],
    )
    .with_services(),
    Scenario::new(
        "to pods of other namespaces: both selectors",
        &[step(
            &[Apply(TO_BOTH)],
            "deny x/a to any
             allow x/a to y/b, z/b",
        )],
    )
    .with_services(),
    Scenario::new(
        "to one pod of the same namespace",
        &[step(
            &[Apply(TO_OWN_NAMESPACE)],
            "deny x to any
             allow x to x/c",
        )],
    ),
    Scenario::new(
        "to ports",
        &[step(
            &[Apply(PORT)],
            "deny x/a to any
             allow x/a to any on tcp/80, udp/81",
        )],
    )
    .with_services(),
    Scenario::new(
        "to ranges of ports",
        &[step(
            &[Apply(RANGE)],
            "deny x/a to any
             allow x/a to y on tcp/81
             allow x/a to z on sctp/80, udp/80",
        )],
    ),
    // The name is that of the pod which is talked to.
    Scenario::new(
        "to named ports",
        &[step(
            &[Apply(NAMED)],
            "deny x/a to any
             allow x/a to y/a on tcp/80
             allow x/a to y/b on tcp/81
             allow x/a to z on udp/81",
        )],
    )
    .with_services(),
    Scenario::new(
        "ingress and egress of one pod",
        &[step(
            &[Apply(TWO_WAYS)],
            "deny any to x/a
             deny x/a to any
             allow y/b to x/a
             allow x/a to z/c on tcp/80",
        )],
    )
    .with_services(),
    Scenario::new(
        "both ends have to agree",
        &[
            step(
                &[Apply(OUT_OF_X), Apply(INTO_Y_FROM_Z)],
                "deny x/a to any
                 deny any to y
                 allow z to y",
            ),
            step(
                &[Apply(INTO_Y_FROM_X)],
                "deny x/a to any
                 deny any to y
                 allow x to y on tcp/81",
            ),
        ],
    )
    .with_services(),
    Scenario::new(
        "both ends have to agree about ports",
        &[step(
            &[Apply(ONLY_PORTS_MEET)],
            "deny x to any
             allow x to x, z on tcp/80, udp
             deny any to y
             allow y, z to y on tcp
             allow x to y on tcp/80",
        )],
    ),
];
