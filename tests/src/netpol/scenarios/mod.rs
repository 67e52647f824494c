//! The scenarios. Each truth is written from the documentation of Kubernetes ("Network Policies" in its concepts) and
//! the API reference of NetworkPolicy (networking.k8s.io/v1); sentences in quotes are from there.

mod blocks;
mod egress;
mod isolation;
mod ports;
mod selectors;
mod stacked;
mod updates;

use super::scenario::Scenario;

/// A NetworkPolicy as YAML: namespace, name, spec.
macro_rules! policy {
    ($namespace:literal, $name:literal, $spec:expr) => {
        concat!(
            "\n---\napiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {namespace: ",
            $namespace,
            ", name: ",
            $name,
            "}\nspec: ",
            $spec
        )
    };
}
use policy;

pub fn all() -> impl Iterator<Item = &'static Scenario> {
    let groups = [
        isolation::SCENARIOS,
        selectors::SCENARIOS,
        ports::SCENARIOS,
        blocks::SCENARIOS,
        egress::SCENARIOS,
        stacked::SCENARIOS,
        updates::SCENARIOS,
    ];
    groups.into_iter().flatten()
}

/// Its place among all of them.
pub fn number(scenario: &Scenario) -> usize {
    all().take_while(|known| known.name != scenario.name).count()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;
    use crate::netpol::{Table, objects::Objects};

    #[test]
    fn every_scenario_can_be_read() {
        let mut names = BTreeSet::new();
        for scenario in all() {
            assert!(names.insert(scenario.name), "{} twice", scenario.name);
            let mut objects = Objects::default();
            for step in scenario.steps {
                Table::parse(step.truth).unwrap_or_else(|error| panic!("{}: {error:#}", scenario.name));
                for change in step.changes {
                    objects.apply(*change).unwrap_or_else(|error| panic!("{}: {error:#}", scenario.name));
                }
            }
        }
        assert!(names.len() >= 60, "{}", names.len());
    }
}
