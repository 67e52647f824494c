//! Names of rules and pods: the one place where a rule becomes words.

use std::{collections::BTreeMap, fmt};

use serde::{Deserialize, Serialize};

use crate::{
    cluster::ClusterState,
    compile::policy::{explain::rule_text, model::RuleRef, normalize::Source},
    desired::policy::{Direction, RuleInfo},
    objects::ObjectKey,
    plan::adopt::Numbered,
};

/// A rule, for people and programs. Prints as `NetworkPolicy web/allow ingress[0]`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct RuleName {
    /// Of the policy object.
    pub kind: Box<str>,
    pub policy: ObjectKey,
    pub direction: Direction,
    /// Place in the policy's list.
    pub index: u32,
    /// What it says.
    pub text: Box<str>,
}

impl RuleName {
    pub fn of_info(info: &RuleInfo) -> Self {
        RuleName {
            kind: info.tier.kind().into(),
            policy: info.policy.clone(),
            direction: info.direction,
            index: info.index,
            text: info.text.clone(),
        }
    }

    pub fn of_ref(cluster: &ClusterState, rule: &RuleRef) -> Self {
        RuleName {
            kind: rule.tier.kind().into(),
            policy: rule.policy.clone(),
            direction: rule.direction,
            index: rule.index,
            text: rule_text(cluster, rule).unwrap_or_default().into(),
        }
    }

    /// The same rule, whatever is said about it?
    pub fn is_same(&self, other: &RuleName) -> bool {
        (&self.kind, &self.policy, self.direction, self.index)
            == (&other.kind, &other.policy, other.direction, other.index)
    }
}

impl fmt::Display for RuleName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {} {}[{}]", self.kind, self.policy, self.direction.name(), self.index)
    }
}

/// What isolates pods, as `NetworkPolicy web/deny` or `Namespace web`.
pub fn source_name(source: &Source) -> String {
    source.subject().to_string()
}

/// What the numbers in the kernel's tables stand for.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PolicyNames {
    pub pods: BTreeMap<u32, ObjectKey>,
    pub rules: BTreeMap<u32, RuleName>,
}

impl PolicyNames {
    pub fn of(compiler: Numbered<'_>) -> Self {
        PolicyNames {
            pods: compiler.pods().map(|(key, number)| (number, key.clone())).collect(),
            rules: compiler.rules().map(|(number, info)| (number, RuleName::of_info(info))).collect(),
        }
    }

    /// `pod 7` where nobody knows its name; 0 is nobody.
    pub fn pod(&self, number: u32) -> String {
        match self.pods.get(&number) {
            Some(key) => key.to_string(),
            None if number == 0 => "-".to_owned(),
            None => format!("pod {number}"),
        }
    }

    pub fn rule(&self, number: u32) -> String {
        match self.rules.get(&number) {
            Some(rule) => rule.to_string(),
            None if number == 0 => "-".to_owned(),
            None => format!("rule {number}"),
        }
    }
}
