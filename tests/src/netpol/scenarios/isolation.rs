//! Who is isolated: "By default, a pod is non-isolated"; "a pod is isolated for ingress if there is any NetworkPolicy that
//! both selects the pod and has "Ingress" in its policyTypes", and so for egress.

use super::policy;
use crate::netpol::scenario::{
    Change::{Apply, Delete},
    Scenario, step,
};

const NOTHING_IN: &str = policy!("x", "deny", "{podSelector: {}, policyTypes: [Ingress]}");
const NOTHING_OUT: &str = policy!("x", "deny", "{podSelector: {}, policyTypes: [Egress]}");
const NOTHING: &str = policy!("x", "deny", "{podSelector: {}, policyTypes: [Ingress, Egress]}");
const ALL_IN: &str = policy!("x", "all-in", "{podSelector: {}, policyTypes: [Ingress], ingress: [{}]}");
const ALL_OUT: &str = policy!("x", "all-out", "{podSelector: {}, policyTypes: [Egress], egress: [{}]}");
const ONE_POD: &str = policy!("x", "deny", "{podSelector: {matchLabels: {pod: a}}, policyTypes: [Ingress]}");
const ELSEWHERE: &str = policy!("y", "deny", "{podSelector: {matchLabels: {pod: a}}, policyTypes: [Ingress]}");
const NOBODY: &str =
    policy!("x", "deny", "{podSelector: {matchLabels: {pod: nobody}}, policyTypes: [Ingress, Egress]}");
const NO_TYPES: &str = policy!("x", "p", "{podSelector: {matchLabels: {pod: a}}}");
const NO_TYPES_EGRESS: &str =
    policy!("x", "p", "{podSelector: {matchLabels: {pod: a}}, egress: [{to: [{podSelector: {}}]}]}");
const EGRESS_ONLY: &str =
    policy!("x", "p", "{podSelector: {matchLabels: {pod: a}}, policyTypes: [Egress], ingress: [{}]}");
const EMPTY_LISTS: &str = policy!(
    "x",
    "p",
    "{podSelector: {matchLabels: {pod: a}}, policyTypes: [Ingress, Egress], ingress: [], egress: []}"
);

pub const SCENARIOS: &[Scenario] = &[
    Scenario::new("without a policy everything passes", &[step(&[], "")]).with_services(),
    Scenario::new("deny all ingress of a namespace", &[step(&[Apply(NOTHING_IN)], "deny any to x")]).with_services(),
    // Replies need no rule: "Reply traffic for those allowed connections will also be implicitly allowed."
    Scenario::new("deny all egress of a namespace", &[step(&[Apply(NOTHING_OUT)], "deny x to any")]).with_services(),
    Scenario::new(
        "deny everything of a namespace",
        &[step(
            &[Apply(NOTHING)],
            "deny any to x
             deny x to any",
        )],
    )
    .with_services(),
    // "If you want to allow all incoming connections ..., you can create a policy that explicitly allows that."
    Scenario::new("allow all ingress", &[step(&[Apply(ALL_IN)], "")]),
    Scenario::new("allow all egress", &[step(&[Apply(ALL_OUT)], "")]),
    // "no additional policy or policies can cause any incoming connection to those pods to be denied"
    Scenario::new(
        "allow all beside deny all",
        &[
            step(&[Apply(NOTHING), Apply(ALL_IN)], "deny x to any"),
            step(&[Apply(ALL_OUT)], ""),
            step(&[Delete("x", "all-in")], "deny any to x"),
        ],
    ),
    Scenario::new("deny ingress of one pod", &[step(&[Apply(ONE_POD)], "deny any to x/a")]),
    // podSelector: "selects the pods to which this NetworkPolicy object applies", those of its own namespace
    Scenario::new("a policy is about pods of its own namespace", &[step(&[Apply(ELSEWHERE)], "deny any to y/a")]),
    Scenario::new("a policy that selects nobody", &[step(&[Apply(NOBODY)], "")]),
    // "If no policyTypes are specified on a NetworkPolicy then by default Ingress will always be set"
    Scenario::new("without policyTypes: ingress", &[step(&[Apply(NO_TYPES)], "deny any to x/a")]),
    // "and Egress will be set if the NetworkPolicy has any egress rules"
    Scenario::new(
        "without policyTypes, with egress rules: both",
        &[step(
            &[Apply(NO_TYPES_EGRESS)],
            "deny any to x/a
             deny x/a to any
             allow x/a to x",
        )],
    ),
    // "if you want to write an egress-only policy, you must explicitly specify policyTypes [ "Egress" ]"
    Scenario::new("a section that policyTypes leave out", &[step(&[Apply(EGRESS_ONLY)], "deny x/a to any")]),
    Scenario::new(
        "empty lists of rules allow nothing",
        &[step(
            &[Apply(EMPTY_LISTS)],
            "deny any to x/a
             deny x/a to any",
        )],
    ),
];
