//! The version line.

use crate::sys::version::{COMPILER, DATE, VERSION};

/// `Running <argv0> version <ver>, built on <date>, <compiler>`, as the original prints it.
pub fn line(argv0: &str) -> String {
    format!("Running {argv0} version {VERSION}, built on {DATE}, {COMPILER}")
}
