//! The table as one page that needs nothing else: data, style and script inside.

use super::Matrix;

const TEMPLATE: &str = include_str!("page.html");
/// Where the data goes, as JSON.
const PLACE: &str = "/*DATA*/null";

/// The page; the data stands in it as JSON.
///
/// # Errors
/// The matrix cannot be written as JSON.
pub fn page(matrix: &Matrix) -> serde_json::Result<String> {
    // In a script element only `</` and `<!--` end or change anything; without `<` there is neither.
    let data = serde_json::to_string(matrix)?.replace('<', "\\u003c");
    Ok(TEMPLATE.replacen(PLACE, &data, 1))
}
