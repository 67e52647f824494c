//! The version line.

use crate::sys::version::{COMPILER, DATE, VERSION};

/// `Running <argv0> version <ver>, built on <date>, <compiler>`, as the original prints it; without a date where nobody
/// stamped one.
pub fn line(argv0: &str) -> String {
    format(argv0, DATE)
}

fn format(argv0: &str, date: &str) -> String {
    let built = if date.is_empty() { String::new() } else { format!("built on {date}, ") };
    format!("Running {argv0} version {VERSION}, {built}{COMPILER}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_date_is_told_where_there_is_one() {
        let stamped = format("./kube-router", "2026-01-02T03:04:05+0000");
        assert_eq!(
            stamped,
            format!("Running ./kube-router version {VERSION}, built on 2026-01-02T03:04:05+0000, {COMPILER}")
        );
        assert_eq!(format("x", ""), format!("Running x version {VERSION}, {COMPILER}"));
    }
}
