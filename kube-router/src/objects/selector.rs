//! `metav1.LabelSelector`, as written.

use serde::{Deserialize, Serialize};

use super::Labels;

/// All requirements must hold; without any, everything is selected.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct LabelSelector {
    pub match_labels: Labels,
    pub match_expressions: Box<[LabelRequirement]>,
}

/// An entry of `matchExpressions`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LabelRequirement {
    pub key: Box<str>,
    pub operator: LabelOperator,
    pub values: Box<[Box<str>]>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum LabelOperator {
    In,
    NotIn,
    Exists,
    DoesNotExist,
    /// Anything else, as written.
    Other(Box<str>),
}
