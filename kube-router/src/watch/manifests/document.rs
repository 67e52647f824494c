//! One file: from text to objects and rejections, each with its place.
//!
//! The text is cut into documents before it is parsed, so that a broken document does not hide its neighbours. YAML
//! makes that easy: a line that begins with `---` cannot be part of any value (YAML 1.2, 9.1.4 "forbidden content").

use std::path::Path;

use tracing::{debug, warn};

use crate::objects::{
    Kind, Object,
    parse::{BadField, Claim, Field, Parsed, RawObject, Rejection},
};

/// What a file says.
#[derive(Debug, Default)]
pub(super) struct Contents {
    /// With the line at which the object's document begins.
    pub(super) objects: Vec<(u64, Object)>,
    pub(super) rejections: Vec<Rejected>,
    /// Some document could not be understood at all, so an object that is missing here may be in it.
    pub(super) has_gaps: bool,
}

#[derive(Debug, PartialEq, Eq)]
pub(super) struct Rejected {
    /// `line` or `line items[3]`.
    pub(super) place: String,
    pub(super) reason: String,
    /// The object that is meant, as far as it can be named: what is known of it stays.
    pub(super) object: Option<(Kind, crate::objects::ObjectKey)>,
}

/// Reads the text of the file at `path` (which decides between JSON and YAML, and is not opened).
pub(super) fn read(path: &Path, text: &str) -> Contents {
    let mut contents = Contents::default();
    if path.extension().is_some_and(|extension| extension == "json") {
        match serde_json::from_str::<Field<RawObject>>(text) {
            Ok(document) => contents.document(1, document),
            Err(error) => contents.gap(error.line() as u64, error.to_string()),
        }
        return contents;
    }
    for (line, document) in split(text) {
        // YAML 1.2: `n` and `on` are names like others. No budget: the file is the operator's, and may hold a cluster.
        let options = serde_saphyr::options! { with_snippet: false, budget: None, strict_booleans: true };
        match serde_saphyr::from_str_with_options::<Field<RawObject>>(document, options) {
            Ok(document) => contents.document(line, document),
            Err(error) => {
                let at = error.location().map_or(line, |location| line - 1 + location.line().max(1));
                contents.gap(at, error.to_string());
            }
        }
    }
    contents
}

/// The documents of a YAML text with the numbers of their first lines.
fn split(text: &str) -> Vec<(u64, &str)> {
    let mut documents = Vec::new();
    let (mut start, mut start_line, mut offset) = (0, 1, 0);
    for (number, line) in (1..).zip(text.split_inclusive('\n')) {
        let marker =
            line.strip_prefix("---").is_some_and(|rest| rest.is_empty() || rest.starts_with([' ', '\t', '\r', '\n']));
        // Directives (`%YAML 1.2`) belong to the document that the marker opens.
        if marker && has_content(&text[start..offset]) {
            documents.push((start_line, &text[start..offset]));
            (start, start_line) = (offset, number);
        }
        offset += line.len();
    }
    if has_content(&text[start..]) {
        documents.push((start_line, &text[start..]));
    }
    documents
}

fn has_content(text: &str) -> bool {
    text.lines()
        .map(|line| line.strip_prefix("---").unwrap_or(line).trim())
        .any(|line| !line.is_empty() && !line.starts_with(['#', '%']))
}

impl Contents {
    fn gap(&mut self, line: u64, reason: String) {
        self.has_gaps = true;
        self.rejections.push(Rejected { place: line.to_string(), reason, object: None });
    }

    fn document(&mut self, line: u64, document: Field<RawObject>) {
        match document.get("document") {
            Ok(None) => {}
            Ok(Some(object)) => self.object(line, &line.to_string(), object),
            Err(BadField { text, .. }) => self.gap(line, format!("{text}: this is not a Kubernetes object")),
        }
    }

    fn object(&mut self, line: u64, place: &str, object: RawObject) {
        if let (Some(text), Claim::Ours(_) | Claim::List(_)) = (object.deprecation(), object.claim()) {
            warn!(place, "{text}");
        }
        match object.claim() {
            Claim::Ours(kind) => self.take(line, place, object.parse(kind)),
            Claim::List(kind) => self.list(line, kind, object),
            Claim::Foreign => debug!(place, kind = object.kind.peek(), "a kind that is not used"),
            Claim::Unusable(bad) => {
                self.has_gaps = true;
                self.rejections.push(Rejected { place: place.to_owned(), reason: bad.to_string(), object: None });
            }
        }
    }

    /// Items of a typed list carry neither `apiVersion` nor `kind`; those of `v1/List` do. Lists do not nest.
    fn list(&mut self, line: u64, of: Option<Kind>, list: RawObject) {
        let items = match list.items.get("items") {
            Ok(items) => items.unwrap_or_default(),
            Err(bad) => return self.gap(line, bad.to_string()),
        };
        for (i, item) in items.into_iter().enumerate() {
            let place = format!("{line} items[{i}]");
            match (item.get("item"), of) {
                (Ok(None), _) => {}
                (Ok(Some(object)), Some(kind)) => self.take(line, &place, object.parse(kind)),
                (Ok(Some(object)), None) if matches!(object.claim(), Claim::List(_)) => {
                    self.has_gaps = true;
                    let reason = "a list inside a list is not read".to_owned();
                    self.rejections.push(Rejected { place, reason, object: None });
                }
                (Ok(Some(object)), None) => self.object(line, &place, object),
                (Err(bad), _) => {
                    self.has_gaps = true;
                    self.rejections.push(Rejected { place, reason: bad.text, object: None });
                }
            }
        }
    }

    fn take(&mut self, line: u64, place: &str, parsed: Result<Parsed, Rejection>) {
        match parsed {
            Ok(Parsed { object, ignored }) => {
                if !ignored.is_empty() {
                    let reasons: Vec<String> = ignored.iter().map(ToString::to_string).collect();
                    let reason = format!("{} {}: {}", object.kind(), object.key(), reasons.join("; "));
                    self.rejections.push(Rejected { place: place.to_owned(), reason, object: None });
                }
                self.objects.push((line, object));
            }
            Err(rejection) => {
                self.has_gaps |= rejection.key.is_none();
                let reason = rejection.to_string();
                let object = rejection.key.map(|key| (rejection.kind, key));
                self.rejections.push(Rejected { place: place.to_owned(), reason, object });
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn yaml(text: &str) -> Contents {
        read(Path::new("x.yaml"), text)
    }

    #[test]
    fn documents_begin_where_yaml_says() {
        for (text, want) in [
            ("", &[][..]),
            ("# nothing\n---\n\n---\n# either\n", &[]),
            ("a: 1\n", &[(1, "a: 1\n")]),
            ("---\na: 1\n---\nb: 2\n", &[(1, "---\na: 1\n"), (3, "---\nb: 2\n")]),
            ("%YAML 1.2\n---\na: 1\n", &[(1, "%YAML 1.2\n---\na: 1\n")]),
            ("a: |\n  --- x\n ---\n--- {b: 1}", &[(1, "a: |\n  --- x\n ---\n"), (4, "--- {b: 1}")]),
            ("a: ---b\n----\n", &[(1, "a: ---b\n----\n")]),
            ("a: 1\r\n---\r\nb: 2\r\n", &[(1, "a: 1\r\n"), (2, "---\r\nb: 2\r\n")]),
        ] {
            assert_eq!(split(text), want, "{text:?}");
        }
    }

    #[test]
    fn errors_have_the_line_of_the_file() {
        let contents = yaml(
            "apiVersion: v1\nkind: Service\nmetadata: {name: a}\n---\napiVersion: v1\nkind: Service\nmetadata: {name: b\n---\n\
             apiVersion: v1\nkind: Service\nmetadata: {name: c}\nspec: {ports: [{port: eighty}]}\n---\n[1]\n---\nkind: Service\n",
        );
        let names: Vec<String> = contents.objects.iter().map(|(_, object)| object.key().to_string()).collect();
        assert_eq!(names, ["default/a"]);
        let places: Vec<&str> = contents.rejections.iter().map(|rejected| rejected.place.as_str()).collect();
        // The flow mapping of line 7 is not closed; the parser notices at the end of its document.
        assert_eq!(&places[1..], ["8", "13", "15"]);
        assert!(["7", "8"].contains(&places[0]), "{places:?}");
        assert!(contents.has_gaps);
        assert_eq!(
            contents.rejections[1].reason,
            "Service default/c: spec.ports[0].port: expected a whole number, found a string"
        );
        assert!(contents.rejections[3].reason.contains("apiVersion"), "{:?}", contents.rejections[3]);
    }

    #[test]
    fn lists_as_kubectl_prints_them() {
        let contents = yaml(
            "apiVersion: v1\nkind: List\nmetadata: {resourceVersion: ''}\nitems:\n\
             - {apiVersion: v1, kind: Service, metadata: {name: a, namespace: x}}\n\
             - {apiVersion: v1, kind: Service, metadata: {name: b, namespace: x}, spec: {type: [odd]}}\n\
             - {apiVersion: apps/v1, kind: Deployment, metadata: {name: d}, spec: {ports: what}}\n\
             - {apiVersion: v1, kind: Node, metadata: {name: n}}\n",
        );
        let names: Vec<String> = contents.objects.iter().map(|(_, object)| object.key().to_string()).collect();
        assert_eq!(names, ["x/a", "n"]);
        assert_eq!(contents.rejections.len(), 1);
        assert_eq!(contents.rejections[0].place, "1 items[1]");
        assert!(!contents.has_gaps, "the broken one has a name");

        let typed = read(
            Path::new("x.json"),
            r#"{"apiVersion": "v1", "kind": "PodList", "items": [{"metadata": {"name": "p", "namespace": "x"}}, null]}"#,
        );
        assert_eq!((typed.objects.len(), typed.rejections.len()), (1, 0));
    }

    #[test]
    fn broken_json_is_named_by_line() {
        let contents = read(Path::new("x.json"), "{\n\"kind\": \"Service\",\n]");
        assert_eq!(contents.rejections[0].place, "3");
        assert!(contents.has_gaps && contents.objects.is_empty());
    }

    #[test]
    fn duplicate_keys_are_an_error_of_their_document() {
        let contents = yaml("apiVersion: v1\nkind: Service\nkind: Pod\nmetadata: {name: a}\n");
        assert_eq!((contents.objects.len(), contents.rejections.len()), (0, 1));
    }
}
