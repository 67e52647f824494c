//! `networking.k8s.io/v1` NetworkPolicy. Only its name is kept until network policy is enforced: the agent counts
//! policies to be able to say that it does not enforce them.

use serde::{Deserialize, Serialize};

use super::ObjectKey;

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct NetworkPolicy {
    pub key: ObjectKey,
}
