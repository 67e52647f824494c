//! Label selectors, validated: what can be asked of labels, in one order, so that equal selectors are equal data.

use std::fmt;

use crate::objects::{LabelOperator, LabelSelector, Labels, Namespace};

/// Set by the control plane on every namespace (well-known labels); implied where no control plane has been.
const NAMESPACE_NAME: &str = "kubernetes.io/metadata.name";

/// The labels of a pod, or of a namespace with the one it has by its name.
#[derive(Clone, Copy, Debug)]
pub struct LabelView<'a> {
    labels: Option<&'a Labels>,
    namespace: Option<&'a str>,
}

impl<'a> LabelView<'a> {
    pub fn of_pod(labels: &'a Labels) -> Self {
        LabelView { labels: Some(labels), namespace: None }
    }

    /// `object` is `None` for a namespace that only its pods speak of.
    pub fn of_namespace(name: &'a str, object: Option<&'a Namespace>) -> Self {
        LabelView { labels: object.map(|object| &object.labels), namespace: Some(name) }
    }

    pub fn get(&self, key: &str) -> Option<&'a str> {
        let implied = self.namespace.filter(|_| key == NAMESPACE_NAME);
        implied.or_else(|| self.labels?.get(key))
    }

    pub fn iter(&self) -> impl Iterator<Item = (&'a str, &'a str)> {
        let implied = self.namespace.map(|name| (NAMESPACE_NAME, name));
        let hidden = self.namespace.is_some();
        let written = self.labels.into_iter().flat_map(Labels::iter);
        implied.into_iter().chain(written.filter(move |(key, _)| !hidden || *key != NAMESPACE_NAME))
    }
}

/// What one label must be like.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Test {
    In(Box<[Box<str>]>),
    NotIn(Box<[Box<str>]>),
    Exists,
    DoesNotExist,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Requirement {
    pub key: Box<str>,
    pub test: Test,
}

impl Requirement {
    fn holds(&self, labels: LabelView<'_>) -> bool {
        let value = labels.get(&self.key);
        let among = |values: &[Box<str>]| value.is_some_and(|value| values.iter().any(|known| **known == *value));
        match &self.test {
            Test::In(values) => among(values),
            // A label that is missing is in no list.
            Test::NotIn(values) => !among(values),
            Test::Exists => value.is_some(),
            Test::DoesNotExist => value.is_none(),
        }
    }
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Selector(Box<[Requirement]>);

impl Selector {
    pub fn requirements(&self) -> &[Requirement] {
        &self.0
    }

    pub fn matches(&self, labels: LabelView<'_>) -> bool {
        self.0.iter().all(|requirement| requirement.holds(labels))
    }

    /// The selector made of what makes sense, and what does not: (path below the selector, why).
    pub fn read(written: &LabelSelector) -> (Self, Vec<(String, String)>) {
        let mut bad = Vec::new();
        let one = |(key, value): (&str, &str)| Requirement { key: key.into(), test: Test::In([value.into()].into()) };
        let mut requirements: Vec<Requirement> = written.match_labels.iter().map(one).collect();
        for (i, expression) in written.match_expressions.iter().enumerate() {
            let mut values = expression.values.to_vec();
            values.sort();
            values.dedup();
            let test = match (&expression.operator, values.is_empty()) {
                _ if expression.key.is_empty() && !matches!(expression.operator, LabelOperator::Other(_)) => {
                    Err("a key is missing".to_owned())
                }
                (LabelOperator::In, false) => Ok(Test::In(values.into())),
                (LabelOperator::NotIn, false) => Ok(Test::NotIn(values.into())),
                (LabelOperator::Exists, true) => Ok(Test::Exists),
                (LabelOperator::DoesNotExist, true) => Ok(Test::DoesNotExist),
                (LabelOperator::In | LabelOperator::NotIn, true) => Err("In and NotIn need values".to_owned()),
                (LabelOperator::Exists | LabelOperator::DoesNotExist, false) => {
                    Err("Exists and DoesNotExist take no values".to_owned())
                }
                (LabelOperator::Other(word), _) => {
                    Err(format!("\"{word}\" is no operator (In, NotIn, Exists, DoesNotExist)"))
                }
            };
            match test {
                Ok(test) => requirements.push(Requirement { key: expression.key.clone(), test }),
                Err(why) => bad.push((format!("matchExpressions[{i}]"), why)),
            }
        }
        requirements.sort();
        requirements.dedup();
        (Selector(requirements.into()), bad)
    }
}

impl fmt::Display for Selector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0.is_empty() {
            return f.write_str("*");
        }
        for (i, Requirement { key, test }) in self.0.iter().enumerate() {
            let comma = if i == 0 { "" } else { "," };
            match test {
                Test::In(values) if values.len() == 1 => write!(f, "{comma}{key}={}", values[0])?,
                Test::In(values) => write!(f, "{comma}{key} in ({})", values.join(","))?,
                Test::NotIn(values) => write!(f, "{comma}{key} notin ({})", values.join(","))?,
                Test::Exists => write!(f, "{comma}{key}")?,
                Test::DoesNotExist => write!(f, "{comma}!{key}")?,
            }
        }
        Ok(())
    }
}
