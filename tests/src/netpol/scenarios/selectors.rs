//! Whom a rule means: selectors of pods and namespaces, together and side by side, with labels and with expressions.

use super::policy;
use crate::netpol::scenario::{Change::Apply, Scenario, step};

const SAME_NAMESPACE: &str = policy!("x", "p", "{podSelector: {}, ingress: [{from: [{podSelector: {}}]}]}");
const ONE_POD: &str =
    policy!("x", "p", "{podSelector: {}, ingress: [{from: [{podSelector: {matchLabels: {pod: a}}}]}]}");
const NAMESPACE: &str = policy!(
    "x",
    "p",
    "{podSelector: {matchLabels: {pod: a}}, ingress: [{from: [{namespaceSelector: {matchLabels: {ns: y}}}]}]}"
);
const BY_NAME: &str = policy!(
    "x",
    "p",
    "
  podSelector: {matchLabels: {pod: a}}
  ingress:
  - from:
    - namespaceSelector: {matchLabels: {kubernetes.io/metadata.name: z}}"
);
const ALL_NAMESPACES: &str = policy!("x", "p", "{podSelector: {}, ingress: [{from: [{namespaceSelector: {}}]}]}");
const BOTH: &str = policy!(
    "x",
    "p",
    "
  podSelector: {matchLabels: {pod: a}}
  ingress:
  - from:
    - namespaceSelector: {matchLabels: {ns: y}}
      podSelector: {matchLabels: {pod: b}}"
);
const EITHER: &str = policy!(
    "x",
    "p",
    "
  podSelector: {matchLabels: {pod: a}}
  ingress:
  - from:
    - namespaceSelector: {matchLabels: {ns: y}}
    - podSelector: {matchLabels: {pod: b}}"
);
const ANY_NAMESPACE_ONE_NAME: &str = policy!(
    "x",
    "p",
    "{podSelector: {}, ingress: [{from: [{namespaceSelector: {}, podSelector: {matchLabels: {pod: c}}}]}]}"
);
const EXPRESSIONS: &str = policy!(
    "x",
    "p",
    "
  podSelector: {matchLabels: {pod: a}}
  ingress:
  - from:
    - namespaceSelector: {matchExpressions: [{key: ns, operator: In, values: [y, z]}]}
      podSelector: {matchExpressions: [{key: pod, operator: NotIn, values: [a]}]}"
);
const EXISTS: &str = policy!(
    "x",
    "p",
    "
  podSelector: {}
  ingress:
  - from:
    - namespaceSelector: {matchExpressions: [{key: ns, operator: Exists}, {key: ns, operator: NotIn, values: [x, y]}]}"
);
const ABSENT: &str = policy!(
    "x",
    "p",
    "
  podSelector: {matchLabels: {pod: a}}
  ingress:
  - from:
    - namespaceSelector: {matchExpressions: [{key: tier, operator: DoesNotExist}]}
      podSelector: {matchExpressions: [{key: role, operator: NotIn, values: [batch]}]}"
);
const NOBODY: &str = policy!(
    "x",
    "p",
    "{podSelector: {}, ingress: [{from: [{namespaceSelector: {matchExpressions: [{key: ns, operator: DoesNotExist}]}}]}]}"
);
const SUBJECTS: &str = policy!(
    "x",
    "p",
    "
  podSelector: {matchExpressions: [{key: pod, operator: In, values: [a, b]}]}
  ingress:
  - from: [{namespaceSelector: {matchLabels: {ns: z}}}]"
);
const TOGETHER: &str = policy!(
    "x",
    "p",
    "
  podSelector: {}
  ingress:
  - from:
    - namespaceSelector: {matchLabels: {ns: y}, matchExpressions: [{key: ns, operator: Exists}]}
      podSelector: {matchLabels: {pod: a}, matchExpressions: [{key: pod, operator: In, values: [a, b]}]}"
);
const FROM_NOBODY_NAMED: &str = policy!("x", "p", "{podSelector: {matchLabels: {pod: a}}, ingress: [{from: []}]}");
const ACROSS: &str = concat!(
    policy!("x", "p", "{podSelector: {}, ingress: [{from: [{namespaceSelector: {matchLabels: {ns: y}}}]}]}"),
    policy!("y", "p", "{podSelector: {}, ingress: [{from: [{namespaceSelector: {matchLabels: {ns: z}}}]}]}"),
    policy!("z", "p", "{podSelector: {}, ingress: [{from: [{namespaceSelector: {matchLabels: {ns: x}}}]}]}"),
);

pub const SCENARIOS: &[Scenario] = &[
    // podSelector alone: "selects particular Pods in the same namespace as the NetworkPolicy"
    Scenario::new(
        "from pods of the same namespace",
        &[step(
            &[Apply(SAME_NAMESPACE)],
            "deny any to x
             allow x to x",
        )],
    ),
    Scenario::new(
        "from one pod of the same namespace",
        &[step(
            &[Apply(ONE_POD)],
            "deny any to x
             allow x/a to x",
        )],
    ),
    Scenario::new(
        "from a namespace",
        &[step(
            &[Apply(NAMESPACE)],
            "deny any to x/a
             allow y to x/a",
        )],
    )
    .with_services(),
    // "the control plane sets an immutable label kubernetes.io/metadata.name on all namespaces"
    Scenario::new(
        "from a namespace by its name",
        &[step(
            &[Apply(BY_NAME)],
            "deny any to x/a
             allow z to x/a",
        )],
    ),
    // "an empty namespaceSelector selects all namespaces", and so every pod
    Scenario::new("from all namespaces", &[step(&[Apply(ALL_NAMESPACES)], "")]),
    // "namespaceSelector and podSelector: a single entry ... selects particular Pods within particular namespaces"
    Scenario::new(
        "from pods of a namespace: both selectors",
        &[step(
            &[Apply(BOTH)],
            "deny any to x/a
             allow y/b to x/a",
        )],
    )
    .with_services(),
    // Two entries: pods of the local namespace with the label, or any pod of the other namespace.
    Scenario::new(
        "from either: two entries",
        &[step(
            &[Apply(EITHER)],
            "deny any to x/a
             allow y, x/b to x/a",
        )],
    ),
    Scenario::new(
        "from pods of one name in all namespaces",
        &[step(
            &[Apply(ANY_NAMESPACE_ONE_NAME)],
            "deny any to x
             allow */c to x",
        )],
    ),
    Scenario::new(
        "expressions In and NotIn",
        &[step(
            &[Apply(EXPRESSIONS)],
            "deny any to x/a
             allow y/b, y/c, z/b, z/c to x/a",
        )],
    ),
    // "All of the requirements, from both matchLabels and matchExpressions, are ANDed together"
    Scenario::new(
        "expressions Exists and NotIn together",
        &[step(
            &[Apply(EXISTS)],
            "deny any to x
             allow z to x",
        )],
    ),
    // NotIn and DoesNotExist hold for what has no such label at all.
    Scenario::new("expressions about labels that nobody has", &[step(&[Apply(ABSENT)], "")]),
    Scenario::new("selectors that match nobody", &[step(&[Apply(NOBODY)], "deny any to x")]),
    Scenario::new(
        "subjects by expression",
        &[step(
            &[Apply(SUBJECTS)],
            "deny any to x/a, x/b
             allow z to x/a, x/b",
        )],
    ),
    Scenario::new(
        "labels and expressions together",
        &[step(
            &[Apply(TOGETHER)],
            "deny any to x
             allow y/a to x",
        )],
    ),
    // from: "If this field is empty or missing, this rule matches all sources"
    Scenario::new("an empty list of peers is everybody", &[step(&[Apply(FROM_NOBODY_NAMED)], "")]),
    Scenario::new(
        "three namespaces in a ring",
        &[step(
            &[Apply(ACROSS)],
            "deny any to any
             allow y to x
             allow z to y
             allow x to z",
        )],
    ),
];
