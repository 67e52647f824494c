//! Counting: libtest's closing lines, summed.

use std::fmt;
use std::ops::AddAssign;

/// Tests by outcome.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Count {
    pub passed: u32,
    pub failed: u32,
    pub skipped: u32,
}

impl Count {
    /// The sum over every `test result:` line, and how many such lines there were.
    pub fn of_libtest(output: &[u8]) -> (Count, u32) {
        let mut sum = Count::default();
        let mut lines = 0;
        for line in String::from_utf8_lossy(output).lines() {
            if let Some(rest) = line.trim().strip_prefix("test result: ") {
                sum += Count::of_line(rest);
                lines += 1;
            }
        }
        (sum, lines)
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
        }
    }
}

impl AddAssign for Count {
    fn add_assign(&mut self, other: Count) {
        self.passed += other.passed;
        self.failed += other.failed;
        self.skipped += other.skipped;
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
    fn closing_lines_are_summed() {
        let output = b"running 4 tests
test a ... ok
test result: ok. 3 passed; 0 failed; 1 ignored; 0 measured; 0 filtered out; finished in 0.01s

test result: FAILED. 10 passed; 2 failed; 0 ignored; 0 measured; 5 filtered out; finished in 1.50s
test result without a colon is not one";
        let (count, lines) = Count::of_libtest(output);
        assert_eq!((count, lines), (Count { passed: 13, failed: 2, skipped: 1 }, 2));
        assert_eq!(count.to_string(), "13 passed, 2 failed, 1 skipped");
        assert_eq!(Count::of_libtest(b"error: could not compile"), (Count::default(), 0));
    }
}
