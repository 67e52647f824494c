//! Changes: of policies, of labels of pods and namespaces, and the end of pods. "Pod lifecycle": policies hold for pods as they
//! are now, and a pod that has completed is none any more.

use super::policy;
use crate::netpol::scenario::{
    Change::{Apply, Delete, Inherit, LabelNamespace, LabelPod, Phase, Terminate},
    Scenario, step,
};

const ALLOW_ALL: &str = policy!("x", "p", "{podSelector: {}, policyTypes: [Ingress], ingress: [{}]}");
const DENY_ALL: &str = policy!("x", "p", "{podSelector: {}, policyTypes: [Ingress]}");
const FROM_Y: &str =
    policy!("x", "p", "{podSelector: {}, ingress: [{from: [{namespaceSelector: {matchLabels: {ns: y}}}]}]}");
const FROM_UPDATED: &str = policy!(
    "x",
    "p",
    "
  podSelector: {matchLabels: {pod: a}}
  ingress:
  - from:
    - namespaceSelector: {}
      podSelector: {matchLabels: {updated: 'yes'}}"
);
const FROM_UPDATED_NAMESPACE: &str = policy!(
    "x",
    "p",
    "{podSelector: {matchLabels: {pod: a}}, ingress: [{from: [{namespaceSelector: {matchLabels: {ns: updated}}}]}]}"
);
const NOT_FROM_Y: &str = policy!(
    "x",
    "p",
    "
  podSelector: {matchLabels: {pod: a}}
  ingress:
  - from:
    - namespaceSelector: {matchExpressions: [{key: ns, operator: NotIn, values: [y]}]}"
);
const FOR_UPDATED: &str =
    policy!("x", "p", "{podSelector: {matchLabels: {updated: 'yes'}}, policyTypes: [Ingress, Egress]}");
const TO_UPDATED: &str = policy!(
    "x",
    "p",
    "
  podSelector: {matchLabels: {pod: a}}
  policyTypes: [Egress]
  egress:
  - to: [{namespaceSelector: {matchLabels: {team: blue}}, podSelector: {matchExpressions: [{key: role, operator: Exists}]}}]"
);
const FOR_A: &str = policy!("x", "p", "{podSelector: {matchLabels: {pod: a}}}");
const FOR_B: &str = policy!("x", "p", "{podSelector: {matchLabels: {pod: b}}}");
const INTO: &str = policy!("x", "p", "{podSelector: {matchLabels: {pod: a}}, policyTypes: [Ingress]}");
const OUT: &str = policy!("x", "p", "{podSelector: {matchLabels: {pod: a}}, policyTypes: [Egress]}");
const FROM_Z: &str = policy!(
    "x",
    "p",
    "{podSelector: {matchLabels: {pod: a}}, ingress: [{from: [{namespaceSelector: {matchLabels: {ns: z}}}]}]}"
);
const FROM_Z_RENAMED: &str = policy!(
    "x",
    "q",
    "{podSelector: {matchLabels: {pod: a}}, ingress: [{from: [{namespaceSelector: {matchLabels: {ns: z}}}]}]}"
);

pub const SCENARIOS: &[Scenario] = &[
    Scenario::new(
        "a policy comes, changes and goes",
        &[
            step(&[Apply(ALLOW_ALL)], ""),
            step(&[Apply(DENY_ALL)], "deny any to x"),
            step(&[Apply(FROM_Y)], "deny any to x\n allow y to x"),
            step(&[Apply(ALLOW_ALL)], ""),
            step(&[Apply(DENY_ALL)], "deny any to x"),
            step(&[Delete("x", "p")], ""),
        ],
    )
    .with_services(),
    Scenario::new(
        "a policy gets other subjects, and another direction",
        &[
            step(&[Apply(FOR_A)], "deny any to x/a"),
            step(&[Apply(FOR_B)], "deny any to x/b"),
            step(&[Apply(OUT)], "deny x/a to any"),
            step(&[Apply(INTO)], "deny any to x/a"),
        ],
    ),
    Scenario::new(
        "a policy is replaced by one of another name",
        &[
            step(&[Apply(FROM_Z)], "deny any to x/a\n allow z to x/a"),
            step(&[Apply(FROM_Z_RENAMED), Delete("x", "p")], "deny any to x/a\n allow z to x/a"),
        ],
    ),
    Scenario::new(
        "a peer's labels change",
        &[
            step(&[Apply(FROM_UPDATED)], "deny any to x/a"),
            step(&[LabelPod("y/b", "updated", "yes")], "deny any to x/a\n allow y/b to x/a"),
            step(
                &[LabelPod("x/b", "updated", "yes"), LabelPod("z/c", "updated", "yes")],
                "deny any to x/a\n allow y/b, x/b, z/c to x/a",
            ),
            step(&[LabelPod("y/b", "updated", "no")], "deny any to x/a\n allow x/b, z/c to x/a"),
            step(&[LabelPod("x/b", "updated", "")], "deny any to x/a\n allow z/c to x/a"),
        ],
    )
    .with_services(),
    Scenario::new(
        "a namespace's labels change",
        &[
            step(&[Apply(FROM_UPDATED_NAMESPACE)], "deny any to x/a"),
            step(&[LabelNamespace("y", "ns", "updated")], "deny any to x/a\n allow y to x/a"),
            step(
                &[LabelNamespace("y", "ns", "y"), LabelNamespace("z", "ns", "updated")],
                "deny any to x/a\n allow z to x/a",
            ),
            step(&[LabelNamespace("z", "ns", "")], "deny any to x/a"),
        ],
    )
    .with_services(),
    Scenario::new(
        "a namespace loses the label that kept it out",
        &[
            step(&[Apply(NOT_FROM_Y)], "deny y to x/a"),
            step(&[LabelNamespace("y", "ns", "")], ""),
            step(&[LabelNamespace("z", "ns", "y")], "deny z to x/a"),
        ],
    ),
    Scenario::new(
        "a pod is labelled into a policy and out of it",
        &[
            step(&[Apply(FOR_UPDATED)], ""),
            step(&[LabelPod("x/b", "updated", "yes")], "deny any to x/b\n deny x/b to any"),
            step(
                &[LabelPod("x/c", "updated", "yes"), LabelPod("x/b", "updated", "")],
                "deny any to x/c\n deny x/c to any",
            ),
            step(&[LabelPod("x/c", "updated", "")], ""),
        ],
    ),
    Scenario::new(
        "labels of pod and namespace make a destination",
        &[
            step(&[Apply(TO_UPDATED)], "deny x/a to any"),
            step(&[LabelPod("y/c", "role", "db")], "deny x/a to any"),
            step(&[LabelNamespace("y", "team", "blue")], "deny x/a to any\n allow x/a to y/c"),
            step(&[LabelPod("y/a", "role", "")], "deny x/a to any\n allow x/a to y/c"),
            step(&[LabelPod("y/a", "role", "db"), LabelPod("y/c", "role", "")], "deny x/a to any\n allow x/a to y/a"),
        ],
    ),
    // A pod that is being terminated still runs, and is a pod in everything.
    Scenario::new(
        "a terminating peer, and a terminating subject",
        &[
            step(&[Apply(FROM_Z), Terminate("z/c")], "deny any to x/a\n allow z to x/a"),
            step(&[Terminate("x/a")], "deny any to x/a\n allow z to x/a"),
            step(&[Apply(OUT)], "deny x/a to any"),
        ],
    )
    // Its endpoint serves on, as there is no other.
    .with_services(),
    // One that has completed has given its address back: it is no peer, whoever uses the address now, and no endpoint. Whether a
    // policy still holds for what it left behind is nobody's business.
    Scenario::new(
        "a completed peer",
        &[
            step(&[Apply(FROM_Z)], "deny any to x/a\n allow z to x/a"),
            step(
                &[Phase("Succeeded", "z/c"), Phase("Failed", "z/b")],
                "deny any to x/a\n allow z/a to x/a\n skip any to z/b, z/c\n skip z/b, z/c to x/b, x/c, y, z",
            ),
            step(&[Phase("Running", "z/c"), Phase("Running", "z/b")], "deny any to x/a\n allow z to x/a"),
        ],
    )
    .with_services(),
    // The next one at its address is what that one's own namespace and labels make it, as peer and as subject.
    Scenario::new(
        "the address of a completed pod is another one's",
        &[
            step(&[Apply(FROM_Z)], "deny any to x/a\n allow z to x/a"),
            step(&[Phase("Succeeded", "z/c"), Inherit("y", "z/c")], "deny any to x/a\n allow z/a, z/b to x/a"),
            step(
                &[Apply(FROM_Y), Phase("Failed", "x/b"), Inherit("y", "x/b")],
                "deny any to x/a, x/c\n allow y, z/c, x/b to x/a, x/c",
            ),
        ],
    )
    .with_services(),
];
