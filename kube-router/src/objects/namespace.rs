//! The fields of a `v1/Namespace` that are read.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::ObjectKey;

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Namespace {
    pub key: ObjectKey,
    pub labels: BTreeMap<Box<str>, Box<str>>,
}
