//! The table of the shop, and what it must agree with.

use super::shop::shop;
use crate::explain::{
    Here, Question, answer_explain,
    matrix::{Matrix, MatrixError, Reach, matrix, page, text::text},
};

fn whole() -> Matrix {
    matrix(&shop(), None).unwrap()
}

#[test]
fn the_table_of_the_shop() {
    insta::assert_snapshot!(text(&whole()));
}

#[test]
fn a_namespace_alone() {
    insta::assert_snapshot!(text(&matrix(&shop(), Some("old")).unwrap()));
    let error = matrix(&shop(), Some("shpo")).unwrap_err();
    assert_eq!(error, MatrixError::NoNamespace { name: "shpo".into(), near: vec!["shop".into()] });
}

/// Every cell says of every pair of its pods and every port what `explain` says.
#[test]
fn cells_are_what_explain_says() {
    let (cluster, matrix) = (shop(), whole());
    let mut compared = 0;
    for (i, from) in matrix.parties.iter().enumerate() {
        for (j, to) in matrix.parties.iter().enumerate() {
            let Some(outcome) = matrix.cells[i][j].map(|place| &matrix.outcomes[place]) else {
                assert!(from.pods.is_empty() && to.pods.is_empty());
                continue;
            };
            for sender in &from.pods {
                for asked in to.pods.iter().filter(|asked| *asked != sender) {
                    let question = Question { from: sender.clone(), to: asked.clone(), port: None };
                    let answer = answer_explain(&cluster, Here::default(), &question).unwrap();
                    for way in answer.ways {
                        let port = outcome.ports.iter().find(|port| port.port == way.label);
                        assert_eq!(port.map(|port| port.allowed), Some(way.allowed), "{sender} {asked} {}", way.label);
                        compared += 1;
                    }
                }
            }
        }
    }
    assert!(compared > 200, "{compared}");
}

#[test]
fn equal_pods_share_a_row_and_others_do_not() {
    let names: Vec<(String, usize)> = whole().parties.into_iter().map(|party| (party.name, party.pods.len())).collect();
    assert!(names.contains(&("shop/front-*".to_owned(), 2)), "{names:?}");
    // Of the two databases only the primary may be asked by the front.
    assert!(names.contains(&("db/postgres-0".to_owned(), 1)), "{names:?}");
}

#[test]
fn the_page_holds_the_data_and_needs_nothing_else() {
    let matrix = whole();
    let page = page(&matrix).unwrap();
    for outside in ["http://", "https://", "src=", "@import", "url("] {
        assert!(!page.contains(outside), "{outside}");
    }
    let (_, rest) = page.split_once("id=\"data\">").unwrap();
    let (data, _) = rest.split_once("</script>").unwrap();
    let data: serde_json::Value = serde_json::from_str(data).unwrap();
    assert_eq!(data, serde_json::to_value(&matrix).unwrap());
    assert!(matrix.outcomes.iter().any(|outcome| outcome.reach == Reach::Itself));
}
