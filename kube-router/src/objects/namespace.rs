//! The fields of a `v1/Namespace` that are read.

use serde::{Deserialize, Serialize};

use super::{Labels, ObjectKey};

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Namespace {
    pub key: ObjectKey,
    pub labels: Labels,
    /// Annotation [`NETWORK_POLICY`](super::annotations::NETWORK_POLICY), as written.
    #[serde(default)]
    pub isolation: Option<Box<str>>,
}
