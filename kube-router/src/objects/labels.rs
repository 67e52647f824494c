//! Labels of an object, ordered by key. A slice, not a tree: pods are many and their labels few, and the smallest tree
//! has room for eleven.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

type Map = BTreeMap<Box<str>, Box<str>>;

/// Each key stands once. Reads and writes as a map.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(from = "Map", into = "Map")]
pub struct Labels(Box<[(Box<str>, Box<str>)]>);

impl Labels {
    pub fn new() -> Self {
        Labels::default()
    }

    pub fn get(&self, key: &str) -> Option<&str> {
        let at = self.0.binary_search_by(|(known, _)| (**known).cmp(key)).ok()?;
        Some(&self.0[at].1)
    }

    pub fn contains_key(&self, key: &str) -> bool {
        self.get(key).is_some()
    }

    pub fn len(&self) -> usize {
        self.0.len()
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub fn iter(&self) -> impl Iterator<Item = (&str, &str)> {
        self.0.iter().map(|(key, value)| (&**key, &**value))
    }
}

impl From<Map> for Labels {
    fn from(map: Map) -> Self {
        Labels(map.into_iter().collect())
    }
}

impl From<Labels> for Map {
    fn from(labels: Labels) -> Self {
        labels.0.into_iter().collect()
    }
}

/// Of several values for one key the last one stands.
impl<K: Into<Box<str>>, V: Into<Box<str>>> FromIterator<(K, V)> for Labels {
    fn from_iter<I: IntoIterator<Item = (K, V)>>(labels: I) -> Self {
        labels.into_iter().map(|(key, value)| (key.into(), value.into())).collect::<Map>().into()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_are_found_by_key_and_read_back_as_a_map() {
        let labels: Labels = [("tier", "web"), ("app", "shop"), ("tier", "db")].into_iter().collect();
        assert_eq!((labels.get("app"), labels.get("tier"), labels.get("zone")), (Some("shop"), Some("db"), None));
        let text = serde_json::to_string(&labels).unwrap();
        assert_eq!(text, r#"{"app":"shop","tier":"db"}"#);
        assert_eq!(serde_json::from_str::<Labels>(&text).unwrap(), labels);
    }
}
