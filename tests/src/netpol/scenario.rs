//! What a scenario is: changes to the cluster's objects, step by step, and after each step the truth.

/// One thing that users do. Later changes of a step see earlier ones.
#[derive(Clone, Copy, Debug)]
pub enum Change {
    /// `kubectl apply` of these documents (NetworkPolicies).
    Apply(&'static str),
    /// `kubectl delete networkpolicy`: namespace and name.
    Delete(&'static str, &'static str),
    /// `kubectl label pod --overwrite`: pod as `x/a`; an empty value removes the label.
    LabelPod(&'static str, &'static str, &'static str),
    /// The same for a namespace.
    LabelNamespace(&'static str, &'static str, &'static str),
    /// Its containers have ended: phase and pod.
    Phase(&'static str, &'static str),
    /// A new pod of this namespace, without labels, gets the address of one that has ended. In a truth table it has that one's
    /// name.
    Inherit(&'static str, &'static str),
    /// `kubectl delete pod`: it is being terminated, and its containers still run.
    Terminate(&'static str),
}

#[derive(Clone, Copy, Debug)]
pub struct Step {
    pub changes: &'static [Change],
    /// Sentences of [`Table`](super::Table).
    pub truth: &'static str,
}

/// Begins in a cluster without policies and with its first labels.
#[derive(Clone, Copy, Debug)]
pub struct Scenario {
    pub name: &'static str,
    pub steps: &'static [Step],
    /// Also played through service addresses.
    pub services: bool,
}

impl Scenario {
    /// One policy or several, and their truth.
    pub const fn new(name: &'static str, steps: &'static [Step]) -> Scenario {
        Scenario { name, steps, services: false }
    }

    pub const fn with_services(self) -> Scenario {
        Scenario { services: true, ..self }
    }
}

pub const fn step(changes: &'static [Change], truth: &'static str) -> Step {
    Step { changes, truth }
}
