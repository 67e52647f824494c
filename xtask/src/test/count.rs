//! Counting: libtest's closing lines, and what those that failed said.

use std::fmt;
use std::ops::AddAssign;

/// Tests by outcome.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Count {
    pub passed: u32,
    pub failed: u32,
    pub skipped: u32,
    /// What each failure said, to be told once more when everything is done.
    pub failures: Vec<String>,
}

/// Lines of one failure that are told again.
const MOST_LINES: usize = 12;

impl Count {
    /// Every `test result:` line, in order.
    pub fn of_libtest(output: &[u8]) -> Vec<Count> {
        let text = String::from_utf8_lossy(output);
        text.lines().filter_map(|line| line.strip_prefix("test result: ")).map(Count::of_line).collect()
    }

    /// libtest's `---- NAME stdout ----` sections, the beginning of each.
    pub fn failures_of_libtest(place: &str, output: &[u8]) -> Vec<String> {
        let text = String::from_utf8_lossy(output);
        let mut failures: Vec<Vec<&str>> = Vec::new();
        let mut inside = false;
        for line in text.lines() {
            if let Some(name) = line.strip_prefix("---- ").and_then(|rest| rest.strip_suffix(" stdout ----")) {
                inside = true;
                failures.push(vec![name]);
            } else if line == "failures:" {
                inside = false;
            } else if inside
                && !line.trim().is_empty()
                && let Some(last) = failures.last_mut()
                && last.len() <= MOST_LINES
            {
                last.push(line);
            }
        }
        failures.iter().map(|lines| format!("{place}: {}", lines.join("\n    "))).collect()
    }

    /// `ok. 3 passed; 0 failed; 1 ignored; 0 measured; ...`
    fn of_line(line: &str) -> Count {
        let number = |word: &str| {
            let part = line.split([';', '.']).map(str::trim).find_map(|part| part.strip_suffix(word))?;
            part.trim().parse().ok()
        };
        Count {
            passed: number("passed").unwrap_or(0),
            failed: number("failed").unwrap_or(0),
            skipped: number("ignored").unwrap_or(0),
            failures: Vec::new(),
        }
    }
}

impl AddAssign for Count {
    fn add_assign(&mut self, other: Count) {
        self.passed += other.passed;
        self.failed += other.failed;
        self.skipped += other.skipped;
        self.failures.extend(other.failures);
    }
}

impl fmt::Display for Count {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} passed, {} failed, {} skipped", self.passed, self.failed, self.skipped)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn closing_lines_are_read_and_summed() {
        let output = b"running 4 tests
test a ... ok
test result: ok. 3 passed; 0 failed; 1 ignored; 0 measured; 0 filtered out; finished in 0.01s

test result: FAILED. 10 passed; 2 failed; 0 ignored; 0 measured; 5 filtered out; finished in 1.50s
test result without a colon is not one";
        let counts = Count::of_libtest(output);
        let count = |passed, failed, skipped| Count { passed, failed, skipped, failures: Vec::new() };
        assert_eq!(counts, [count(3, 0, 1), count(10, 2, 0)]);
        let mut sum = count(0, 0, 0);
        counts.into_iter().for_each(|count| sum += count);
        assert_eq!(sum.to_string(), "13 passed, 2 failed, 1 skipped");
        assert_eq!(Count::of_libtest(b"error: could not compile"), []);
    }

    #[test]
    fn what_failures_said_is_found() {
        let output = b"test a ... FAILED
test b ... ok

failures:

---- a stdout ----

thread 'a' panicked at src/a.rs:1:2:
left is not right
---- c::d stdout ----
Error: no


failures:
    a
    c::d

test result: FAILED. 1 passed; 2 failed; 0 ignored; 0 measured; 0 filtered out; finished in 1.50s";
        let failures = Count::failures_of_libtest("here", output);
        let wanted =
            ["here: a\n    thread 'a' panicked at src/a.rs:1:2:\n    left is not right", "here: c::d\n    Error: no"];
        assert_eq!(failures, wanted);
        let long = format!("---- a stdout ----\n{}", "line\n".repeat(50));
        assert_eq!(Count::failures_of_libtest("here", long.as_bytes())[0].lines().count(), 1 + MOST_LINES);
    }
}
