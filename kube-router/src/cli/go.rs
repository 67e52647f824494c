//! The value grammar of the original's command line, which is that of Go's standard library.
//!
//! Manifests in the field were written against Go's parsers, so a value must mean here what it meant there, down to
//! `0x` prefixes and quoted list items. In: the text behind a flag. Out: a value, or the sentence Go prints, because
//! operators search for it. Sources: Go's `strconv`, `encoding/csv`; pflag for which base goes with which flag type.
//! Durations have a room of their own ([`super::duration`]).

use std::fmt::Write as _;

/// A value that Go's parsers refuse; prints as Go prints it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum GoError {
    #[error("strconv.{function}: parsing {}: invalid syntax", quote(.text))]
    Syntax { function: &'static str, text: String },
    #[error("strconv.{function}: parsing {}: value out of range", quote(.text))]
    Range { function: &'static str, text: String },
    #[error("time: invalid duration {0}")]
    Duration(String),
    #[error("time: missing unit in duration {0}")]
    MissingUnit(String),
    #[error("time: unknown unit {unit} in duration {text}")]
    UnknownUnit { unit: String, text: String },
    #[error("parse error on line 1, column {column}: bare \" in non-quoted field")]
    BareQuote { column: usize },
    #[error("parse error on line 1, column {column}: extraneous or missing \" in quoted-field")]
    Quote { column: usize },
    #[error("EOF")]
    Empty,
    #[error("invalid string being converted to IP address: {0}")]
    Ip(String),
}

/// `strconv.ParseBool`: 1 t T TRUE true True and their opposites, nothing else.
pub fn parse_bool(text: &str) -> Result<bool, GoError> {
    match text {
        "1" | "t" | "T" | "TRUE" | "true" | "True" => Ok(true),
        "0" | "f" | "F" | "FALSE" | "false" | "False" => Ok(false),
        _ => Err(GoError::Syntax { function: "ParseBool", text: text.to_owned() }),
    }
}

/// `strconv.ParseUint` with base 0: `0x`, `0o`, `0b` and a leading `0` (octal) choose the base, `_` may separate digits.
/// The value is at most `max`.
pub fn parse_uint(text: &str, max: u64) -> Result<u64, GoError> {
    let lower = text.to_ascii_lowercase();
    let (base, digits) = match lower.as_bytes() {
        [b'0', b'x', _, ..] => (16, &lower[2..]),
        [b'0', b'o', _, ..] => (8, &lower[2..]),
        [b'0', b'b', _, ..] => (2, &lower[2..]),
        [b'0', ..] => (8, &lower[1..]),
        _ => (10, &lower[..]),
    };
    if text.is_empty() || !underscores_fit(&lower) {
        return Err(GoError::Syntax { function: "ParseUint", text: text.to_owned() });
    }
    accumulate("ParseUint", text, digits.bytes().filter(|&c| c != b'_'), base, max)
}

/// `strconv.ParseUint` with base 10, as list items are read: no prefix, no `_`.
pub fn parse_uint_decimal(text: &str) -> Result<u64, GoError> {
    if text.is_empty() {
        return Err(GoError::Syntax { function: "ParseUint", text: text.to_owned() });
    }
    accumulate("ParseUint", text, text.bytes(), 10, u64::MAX)
}

/// `strconv.ParseInt(text, 10, 32)`, which reads the log level.
pub fn parse_int32(text: &str) -> Result<i32, GoError> {
    let (negative, digits) = match text.as_bytes() {
        [b'-', ..] => (true, &text[1..]),
        [b'+', ..] => (false, &text[1..]),
        _ => (false, text),
    };
    if digits.is_empty() {
        return Err(GoError::Syntax { function: "ParseInt", text: text.to_owned() });
    }
    let max = u64::from(i32::MAX.unsigned_abs()) + u64::from(negative);
    let value = accumulate("ParseInt", text, digits.bytes(), 10, max)?;
    let value = i64::try_from(value).unwrap_or(i64::MAX) * if negative { -1 } else { 1 };
    i32::try_from(value).map_err(|_| GoError::Range { function: "ParseInt", text: text.to_owned() })
}

fn accumulate(
    function: &'static str,
    text: &str,
    digits: impl Iterator<Item = u8>,
    base: u32,
    max: u64,
) -> Result<u64, GoError> {
    let mut value = 0_u64;
    for digit in digits {
        let Some(digit) = char::from(digit).to_digit(base) else {
            return Err(GoError::Syntax { function, text: text.to_owned() });
        };
        value = value
            .checked_mul(u64::from(base))
            .and_then(|v| v.checked_add(u64::from(digit)))
            .filter(|&v| v <= max)
            .ok_or_else(|| GoError::Range { function, text: text.to_owned() })?;
    }
    Ok(value)
}

/// Go's rule for `_` in numbers: only between digits, or between a base prefix and a digit.
fn underscores_fit(lower: &str) -> bool {
    let bytes = lower.as_bytes();
    let prefixed = matches!(bytes, [b'0', b'x' | b'o' | b'b', ..]);
    let mut after_digit = prefixed;
    let mut after_underscore = false;
    for &c in &bytes[if prefixed { 2 } else { 0 }..] {
        match c {
            b'_' if !after_digit => return false,
            b'_' => (after_digit, after_underscore) = (false, true),
            _ if c.is_ascii_hexdigit() => (after_digit, after_underscore) = (true, false),
            // Not a digit of any base: the digits' own check names it.
            _ => return true,
        }
    }
    !after_underscore
}

/// One record of comma-separated values (RFC 4180 quoting), as pflag reads string lists: `a,"b,c"` is two items.
/// The empty text is the empty list; only the first line counts.
pub fn parse_csv(text: &str) -> Result<Vec<String>, GoError> {
    if text.is_empty() {
        return Ok(Vec::new());
    }
    let line = text.trim_start_matches(['\n', '\r']);
    if line.is_empty() {
        return Err(GoError::Empty);
    }
    let column = |rest: &str| line.len() - rest.len() + 1;
    let mut items = Vec::new();
    let mut rest = line;
    loop {
        let mut item = String::new();
        if let Some(mut quoted) = rest.strip_prefix('"') {
            loop {
                let Some(end) = quoted.find('"') else {
                    return Err(GoError::Quote { column: line.len() + 1 });
                };
                item.push_str(&quoted[..end]);
                rest = &quoted[end + 1..];
                match rest.strip_prefix('"') {
                    Some(more) => {
                        item.push('"');
                        quoted = more;
                    }
                    None => break,
                }
            }
            if !(rest.is_empty() || rest.starts_with([',', '\n']) || rest.starts_with("\r\n") || rest == "\r") {
                return Err(GoError::Quote { column: column(rest) - 1 });
            }
        } else {
            let end = rest.find([',', '\n']).unwrap_or(rest.len());
            let mut field = &rest[..end];
            if !rest[end..].starts_with(',') {
                field = field.strip_suffix('\r').unwrap_or(field);
            }
            if let Some(at) = field.find('"') {
                return Err(GoError::BareQuote { column: column(rest) + at });
            }
            item.push_str(field);
            rest = &rest[end..];
        }
        items.push(item);
        match rest.strip_prefix(',') {
            Some(more) => rest = more,
            None => return Ok(items),
        }
    }
}

/// Text in double quotes with Go's escapes (`%q`), so that a message shows blanks and control characters.
pub fn quote(text: &str) -> String {
    let mut out = String::with_capacity(text.len() + 2);
    out.push('"');
    for c in text.chars() {
        match c {
            '"' => out.push_str("\\\""),
            '\\' => out.push_str("\\\\"),
            '\x07' => out.push_str("\\a"),
            '\x08' => out.push_str("\\b"),
            '\x0c' => out.push_str("\\f"),
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            '\x0b' => out.push_str("\\v"),
            c if c.is_ascii_control() => write!(out, "\\x{:02x}", u32::from(c)).unwrap_or_default(),
            c if c.is_control() => write!(out, "\\u{:04x}", u32::from(c)).unwrap_or_default(),
            c => out.push(c),
        }
    }
    out.push('"');
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_in_go_bases() {
        for (text, value) in [
            ("0", 0),
            ("00", 0),
            ("179", 179),
            ("010", 8),
            ("0x1F", 31),
            ("0b101", 5),
            ("0o17", 15),
            ("0_7", 7),
            ("1_000", 1000),
            ("0x_f", 15),
        ] {
            assert_eq!(parse_uint(text, u64::MAX), Ok(value), "{text}");
        }
        for text in ["", "-1", "+1", "08", "1x", "0x", "1__0", "_1", "1_", "0xg", " 1", "1 ", "0b2", "ten", "0x_"] {
            assert!(matches!(parse_uint(text, u64::MAX), Err(GoError::Syntax { .. })), "{text}");
        }
        assert!(matches!(parse_uint("256", 255), Err(GoError::Range { .. })));
        assert!(matches!(parse_uint("18446744073709551616", u64::MAX), Err(GoError::Range { .. })));
        assert_eq!(
            parse_uint("70000", 65535).unwrap_err().to_string(),
            "strconv.ParseUint: parsing \"70000\": value out of range"
        );
        assert_eq!(parse_uint_decimal("010"), Ok(10));
        assert!(parse_uint_decimal("0x10").is_err());
        assert!(parse_uint_decimal("1_0").is_err());
    }

    #[test]
    fn log_levels() {
        assert_eq!(parse_int32("3"), Ok(3));
        assert_eq!(parse_int32("+3"), Ok(3));
        assert_eq!(parse_int32("-2147483648"), Ok(i32::MIN));
        assert!(matches!(parse_int32("2147483648"), Err(GoError::Range { .. })));
        assert!(matches!(parse_int32("-"), Err(GoError::Syntax { .. })));
        assert_eq!(parse_int32("abc").unwrap_err().to_string(), "strconv.ParseInt: parsing \"abc\": invalid syntax");
    }

    #[test]
    fn lists() {
        for (text, items) in [
            ("", vec![]),
            ("a", vec!["a"]),
            ("a,b", vec!["a", "b"]),
            ("a,,b,", vec!["a", "", "b", ""]),
            (",", vec!["", ""]),
            (r#""a,b",c"#, vec!["a,b", "c"]),
            (r#""say ""hi""""#, vec![r#"say "hi""#]),
            ("a, b", vec!["a", " b"]),
            ("a\nb", vec!["a"]),
            ("\"a\nb\",c\r", vec!["a\nb", "c"]),
        ] {
            assert_eq!(parse_csv(text).unwrap(), items, "{text:?}");
        }
        assert_eq!(parse_csv(r#"a"b"#), Err(GoError::BareQuote { column: 2 }));
        assert_eq!(parse_csv(r#"x,"a"b"#), Err(GoError::Quote { column: 5 }));
        assert_eq!(parse_csv(r#""a"#), Err(GoError::Quote { column: 3 }));
        assert_eq!(parse_csv("\n"), Err(GoError::Empty));
    }

    #[test]
    fn quoting() {
        assert_eq!(quote("a\"b\\\n\x01é"), r#""a\"b\\\n\x01é""#);
    }
}
