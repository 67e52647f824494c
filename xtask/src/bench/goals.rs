//! A goal, what was measured, and whether it was met: rows of the first table of every report.

use std::fmt::Write;

pub struct Goal {
    pub what: String,
    pub goal: String,
    pub is: String,
    pub met: bool,
}

impl Goal {
    /// A missing value misses.
    pub fn at_most(what: impl Into<String>, limit: f64, value: Option<f64>, unit: &str) -> Goal {
        let unit = if unit.is_empty() { String::new() } else { format!(" {unit}") };
        Goal {
            what: what.into(),
            goal: format!("at most {limit}{unit}"),
            is: value.map_or("unknown".to_owned(), |value| format!("{value:.2}{unit}")),
            met: value.is_some_and(|value| value <= limit),
        }
    }
}

pub fn table(goals: &[Goal]) -> String {
    let mut out = "| | goal | is | |\n|---|---|---|---|\n".to_owned();
    for Goal { what, goal, is, met } in goals {
        let _ = writeln!(out, "| {what} | {goal} | {is} | {} |", if *met { "met" } else { "**missed**" });
    }
    out
}

pub fn all_met(goals: &[Goal]) -> bool {
    goals.iter().all(|goal| goal.met)
}
