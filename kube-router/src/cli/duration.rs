//! Go's durations (`time.ParseDuration`, `Duration.String`): `300ms`, `1.5h`, `2h22m`, `-1s`, `0`.
//!
//! Whole numbers are exact to the nanosecond over Go's whole range of +-292 years; a fraction goes through a double,
//! as in Go, so that the two agree in the last nanosecond too. Ready-made crates were tried and either panic on `1µs`
//! or refuse `1.5h`.

use std::{fmt, time::Duration};

use super::go::GoError;

/// Nanoseconds, signed, as in Go.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct GoDuration(pub i64);

/// 2^63, the largest magnitude Go lets a term reach.
const LIMIT: u64 = 1 << 63;

impl GoDuration {
    pub const fn from_secs(secs: i64) -> Self {
        GoDuration(secs * 1_000_000_000)
    }

    /// Saturates far beyond any time limit.
    pub fn from_std(duration: Duration) -> Self {
        GoDuration(i64::try_from(duration.as_nanos()).unwrap_or(i64::MAX))
    }

    /// `None` if negative.
    pub fn unsigned(self) -> Option<Duration> {
        u64::try_from(self.0).ok().map(Duration::from_nanos)
    }

    /// `time.ParseDuration`: an optional sign, then `0` or one or more of number (with optional fraction) and unit.
    pub fn parse(text: &str) -> Result<Self, GoError> {
        let invalid = || GoError::Duration(quote_bytes(text));
        let (negative, mut rest) = match text.as_bytes().first() {
            Some(b'-') => (true, &text[1..]),
            Some(b'+') => (false, &text[1..]),
            _ => (false, text),
        };
        if rest == "0" {
            return Ok(GoDuration(0));
        }
        if rest.is_empty() {
            return Err(invalid());
        }
        let mut total = 0_u64;
        while !rest.is_empty() {
            let (whole, after) = leading_digits(rest);
            let (fraction, after) = match after.strip_prefix('.') {
                Some(tail) => leading_digits(tail),
                None => ("", after),
            };
            if whole.is_empty() && fraction.is_empty() {
                return Err(invalid());
            }
            let end = after.find(|c: char| c == '.' || c.is_ascii_digit()).unwrap_or(after.len());
            let (unit, after) = after.split_at(end);
            if unit.is_empty() {
                // Go judges the number before the unit.
                leading_value(whole).ok_or_else(invalid)?;
                return Err(GoError::MissingUnit(quote_bytes(text)));
            }
            let value = leading_value(whole).ok_or_else(invalid)?;
            let nanos = unit_nanos(unit)
                .ok_or_else(|| GoError::UnknownUnit { unit: quote_bytes(unit), text: quote_bytes(text) })?;
            let term = value.checked_mul(nanos).filter(|&t| t <= LIMIT).ok_or_else(invalid)?;
            let term = term.checked_add(fraction_nanos(fraction, nanos)).filter(|&t| t <= LIMIT).ok_or_else(invalid)?;
            total = total.checked_add(term).filter(|&t| t <= LIMIT).ok_or_else(invalid)?;
            rest = after;
        }
        if negative {
            return Ok(GoDuration(0_i64.wrapping_sub_unsigned(total)));
        }
        i64::try_from(total).map(GoDuration).map_err(|_| invalid())
    }
}

fn leading_digits(text: &str) -> (&str, &str) {
    text.split_at(text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len()))
}

fn leading_value(digits: &str) -> Option<u64> {
    digits.bytes().try_fold(0_u64, |value, digit| {
        value.checked_mul(10)?.checked_add(u64::from(digit - b'0')).filter(|&v| v <= LIMIT)
    })
}

/// Digits beyond what fits are without effect, as in Go.
fn fraction_nanos(digits: &str, unit: u64) -> u64 {
    let (mut value, mut scale) = (0_u64, 1_f64);
    for digit in digits.bytes() {
        match value.checked_mul(10).and_then(|v| v.checked_add(u64::from(digit - b'0'))).filter(|&v| v <= LIMIT) {
            Some(next) => (value, scale) = (next, scale * 10.0),
            None => break,
        }
    }
    (value as f64 * (unit as f64 / scale)) as u64
}

fn unit_nanos(unit: &str) -> Option<u64> {
    Some(match unit {
        "ns" => 1,
        // The micro sign and the Greek letter mu.
        "us" | "\u{b5}s" | "\u{3bc}s" => 1_000,
        "ms" => 1_000_000,
        "s" => 1_000_000_000,
        "m" => 60_000_000_000,
        "h" => 3_600_000_000_000,
        _ => return None,
    })
}

/// The `time` package's own quoting: every byte outside printable ASCII in hex.
fn quote_bytes(text: &str) -> String {
    let mut out = String::from("\"");
    for byte in text.bytes() {
        match byte {
            b'"' | b'\\' => out.extend(['\\', char::from(byte)]),
            b' '..=b'~' | 0x7f => out.push(char::from(byte)),
            _ => out.push_str(&format!("\\x{byte:02x}")),
        }
    }
    out.push('"');
    out
}

/// `Duration.String`: `5m0s`, `1.5s`, `300ms`, `0s`.
impl fmt::Display for GoDuration {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let nanos = self.0.unsigned_abs();
        if self.0 < 0 {
            f.write_str("-")?;
        }
        let small = |f: &mut fmt::Formatter<'_>, unit: u64, name: &str| decimal(f, nanos, unit).and(f.write_str(name));
        match nanos {
            0 => f.write_str("0s"),
            1..1_000 => small(f, 1, "ns"),
            1_000..1_000_000 => small(f, 1_000, "\u{b5}s"),
            1_000_000..1_000_000_000 => small(f, 1_000_000, "ms"),
            _ => {
                let minutes = nanos / 60_000_000_000;
                if minutes >= 60 {
                    write!(f, "{}h", minutes / 60)?;
                }
                if minutes > 0 {
                    write!(f, "{}m", minutes % 60)?;
                }
                decimal(f, nanos % 60_000_000_000, 1_000_000_000)?;
                f.write_str("s")
            }
        }
    }
}

/// `value / unit` without trailing zeros; `unit` is a power of ten.
fn decimal(f: &mut fmt::Formatter<'_>, value: u64, unit: u64) -> fmt::Result {
    write!(f, "{}", value / unit)?;
    let rest = value % unit;
    if rest > 0 {
        let width = unit.ilog10() as usize;
        write!(f, ".{}", format!("{rest:0width$}").trim_end_matches('0'))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn go_examples() {
        for (text, nanos) in [
            ("0", 0),
            ("-0", 0),
            ("0s", 0),
            ("5s", 5_000_000_000),
            ("300ms", 300_000_000),
            ("1.5h", 5_400_000_000_000),
            ("2h22m", 8_520_000_000_000),
            ("1\u{b5}s", 1_000),
            ("1\u{3bc}s", 1_000),
            ("1us", 1_000),
            (".5s", 500_000_000),
            ("5.s", 5_000_000_000),
            ("-1m", -60_000_000_000),
            ("+1m", 60_000_000_000),
            ("0.1s0.1s", 200_000_000),
            ("1s1h", 3_601_000_000_000),
            ("0.100000000000000000000h", 360_000_000_000),
            ("0.830103483285477580700h", 2_988_372_539_827),
            ("9223372036854775807ns", i64::MAX),
            ("-9223372036854775808ns", i64::MIN),
            ("9223372036.854775807s", i64::MAX),
        ] {
            assert_eq!(GoDuration::parse(text), Ok(GoDuration(nanos)), "{text}");
        }
    }

    #[test]
    fn refused_with_go_words() {
        for (text, message) in [
            ("", "time: invalid duration \"\""),
            ("-", "time: invalid duration \"-\""),
            (".", "time: invalid duration \".\""),
            (".s", "time: invalid duration \".s\""),
            ("5", "time: missing unit in duration \"5\""),
            ("1.5", "time: missing unit in duration \"1.5\""),
            ("5 s", "time: unknown unit \" s\" in duration \"5 s\""),
            ("5d", "time: unknown unit \"d\" in duration \"5d\""),
            ("abc", "time: invalid duration \"abc\""),
            ("1sx", "time: unknown unit \"sx\" in duration \"1sx\""),
            ("9223372036854775808ns", "time: invalid duration \"9223372036854775808ns\""),
            ("3000000h", "time: invalid duration \"3000000h\""),
            ("5é", "time: unknown unit \"\\xc3\\xa9\" in duration \"5\\xc3\\xa9\""),
        ] {
            assert_eq!(GoDuration::parse(text).unwrap_err().to_string(), message, "{text}");
        }
    }

    #[test]
    fn prints_as_go_does() {
        for (nanos, text) in [
            (0, "0s"),
            (1, "1ns"),
            (1_100, "1.1\u{b5}s"),
            (2_200_000, "2.2ms"),
            (3_300_000_000, "3.3s"),
            (300_000_000_000, "5m0s"),
            (5_400_000_000_000, "1h30m0s"),
            (60_001_000_000, "1m0.001s"),
            (-1_000_000_000, "-1s"),
            (i64::MIN, "-2562047h47m16.854775808s"),
        ] {
            assert_eq!(GoDuration(nanos).to_string(), text);
        }
    }

    proptest! {
        #[test]
        fn text_and_back(nanos: i64) {
            // Go's own printing loses the last bits only through the double of a fraction; whole units are exact.
            let whole = GoDuration(nanos / 1_000_000_000 * 1_000_000_000);
            prop_assert_eq!(GoDuration::parse(&whole.to_string()), Ok(whole));
        }

        #[test]
        fn never_panics(text in "[-+]?[0-9.hmsnuµ é]{0,24}|\\PC{0,12}") {
            let _ = GoDuration::parse(&text);
        }
    }
}
