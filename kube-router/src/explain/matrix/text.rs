//! The table as text: rows and columns have numbers, cells one sign or a letter, and below stands what they mean.

use std::fmt::Write;

use super::{Matrix, Party, Reach};

pub fn text(matrix: &Matrix) -> String {
    let mut out = String::new();
    let signs = signs(matrix);
    let count = matrix.parties.len();
    let titles: Vec<String> = matrix.parties.iter().map(title).collect();
    let width = titles.iter().map(|title| title.chars().count()).max().unwrap_or(0).max("FROM, TO".len());
    let column = signs.iter().map(String::len).chain([count.to_string().len()]).max().unwrap_or(1) + 1;
    let number = count.to_string().len();
    // Writing to a String cannot fail, here and below.
    let _ = write!(out, "{:number$} {:width$}", "", "FROM, TO");
    for to in 1..=count {
        let _ = write!(out, "{to:>column$}");
    }
    out.push('\n');
    for (from, row) in matrix.cells.iter().enumerate() {
        let _ = write!(out, "{:>number$} {:width$}", from + 1, titles[from]);
        for cell in row {
            let _ = write!(out, "{:>column$}", cell.map_or("", |cell| &signs[cell]));
        }
        out.truncate(out.trim_end().len());
        out.push('\n');
    }
    out.push('\n');
    let letters = if matrix.outcomes.iter().any(|outcome| outcome.reach == Reach::Some) { "   letters:" } else { "" };
    let _ = writeln!(out, "+ every port   . nothing   = a pod and itself{letters}");
    let mut seen = Vec::new();
    for (outcome, sign) in matrix.outcomes.iter().zip(&signs) {
        if outcome.reach == Reach::Some && !seen.contains(&sign) {
            let _ = writeln!(out, "{sign:>3} {}", outcome.label);
            seen.push(sign);
        }
    }
    let grouped = matrix.parties.iter().any(|party| party.pods.len() > 1);
    if grouped {
        let _ = writeln!(out, "note: pods with equal rows and columns share one; -o json lists them");
    }
    for note in &matrix.notes {
        let _ = writeln!(out, "note: {note}");
    }
    out
}

fn title(party: &Party) -> String {
    match party.pods.len() {
        0 | 1 => party.name.clone(),
        many => format!("{} ({many} pods)", party.name),
    }
}

/// A sign for each outcome; what allows the same ports has the same.
fn signs(matrix: &Matrix) -> Vec<String> {
    let mut labels: Vec<&str> = Vec::new();
    let mut signs = Vec::with_capacity(matrix.outcomes.len());
    for outcome in &matrix.outcomes {
        signs.push(match outcome.reach {
            Reach::All => "+".to_owned(),
            Reach::None => ".".to_owned(),
            Reach::Itself => "=".to_owned(),
            Reach::Some => {
                let known = labels.iter().position(|label| *label == outcome.label);
                letters(known.unwrap_or_else(|| {
                    labels.push(&outcome.label);
                    labels.len() - 1
                }))
            }
        });
    }
    signs
}

/// a, b, ... z, aa, ab, ...
fn letters(place: usize) -> String {
    let last = char::from(b'a' + (place % 26) as u8);
    if place < 26 { last.to_string() } else { format!("{}{last}", letters(place / 26 - 1)) }
}
