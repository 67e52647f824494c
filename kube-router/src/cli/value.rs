//! The types a flag can have: how one occurrence is read, what several occurrences mean, what `--help` calls it.
//!
//! Scalars: the last occurrence wins. Lists: occurrences accumulate. Both as pflag has it.

use std::net::IpAddr;

use super::{
    duration::GoDuration,
    go::{self, GoError},
};

/// A flag's type.
pub trait FlagValue: Clone + Default + PartialEq + Send + Sync + 'static {
    /// The word behind the flag in `--help`; empty for booleans, which take a value only after `=`.
    const TYPE: &'static str;

    /// Reads one occurrence.
    fn parse(text: &str) -> Result<Self, GoError>;

    /// What the occurrences, in their order, come to; `None` if there are none.
    fn join(occurrences: impl Iterator<Item = Self>) -> Option<Self> {
        occurrences.last()
    }
}

impl FlagValue for bool {
    const TYPE: &'static str = "";

    fn parse(text: &str) -> Result<Self, GoError> {
        go::parse_bool(text)
    }
}

impl FlagValue for String {
    const TYPE: &'static str = "string";

    fn parse(text: &str) -> Result<Self, GoError> {
        Ok(text.to_owned())
    }
}

impl FlagValue for GoDuration {
    const TYPE: &'static str = "duration";

    fn parse(text: &str) -> Result<Self, GoError> {
        GoDuration::parse(text)
    }
}

macro_rules! unsigned {
    ($($integer:ty, $name:literal;)*) => {$(
        impl FlagValue for $integer {
            const TYPE: &'static str = $name;

            fn parse(text: &str) -> Result<Self, GoError> {
                let value = go::parse_uint(text, <$integer>::MAX.into())?;
                <$integer>::try_from(value)
                    .map_err(|_| GoError::Range { function: "ParseUint", text: text.to_owned() })
            }
        }
    )*};
}
unsigned! {
    u8, "uint8";
    u16, "uint16";
    u32, "uint32";
    u64, "uint";
}

fn concat<T>(occurrences: impl Iterator<Item = Vec<T>>) -> Option<Vec<T>> {
    occurrences.reduce(|mut all, more| {
        all.extend(more);
        all
    })
}

impl FlagValue for Vec<String> {
    const TYPE: &'static str = "strings";

    fn parse(text: &str) -> Result<Self, GoError> {
        go::parse_csv(text)
    }

    fn join(occurrences: impl Iterator<Item = Self>) -> Option<Self> {
        concat(occurrences)
    }
}

impl FlagValue for Vec<u64> {
    const TYPE: &'static str = "uints";

    /// An empty item is an error (pflag splits `""` into one empty item), so an empty list cannot be given.
    fn parse(text: &str) -> Result<Self, GoError> {
        text.split(',').map(go::parse_uint_decimal).collect()
    }

    fn join(occurrences: impl Iterator<Item = Self>) -> Option<Self> {
        concat(occurrences)
    }
}

impl FlagValue for Vec<IpAddr> {
    const TYPE: &'static str = "ips";

    /// Quotes are dropped and blanks around an item do not count, as in pflag.
    fn parse(text: &str) -> Result<Self, GoError> {
        let bare: String = text.chars().filter(|c| !matches!(c, '"' | '\'' | '`')).collect();
        let items = match go::parse_csv(&bare) {
            Err(GoError::Empty) => Vec::new(),
            other => other?,
        };
        items
            .into_iter()
            .map(|item| item.trim().parse().map(|ip: IpAddr| ip.to_canonical()).map_err(|_| GoError::Ip(item)))
            .collect()
    }

    fn join(occurrences: impl Iterator<Item = Self>) -> Option<Self> {
        concat(occurrences)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses() {
        let ips = <Vec<IpAddr>>::parse("192.0.2.1, '2001:db8::1'").unwrap();
        assert_eq!(ips, ["192.0.2.1".parse::<IpAddr>().unwrap(), "2001:db8::1".parse().unwrap()]);
        assert_eq!(<Vec<IpAddr>>::parse("").unwrap(), Vec::<IpAddr>::new());
        for bad in ["192.0.2", "192.0.2.01", "fe80::1%eth0", "a", "192.0.2.1,"] {
            assert!(matches!(<Vec<IpAddr>>::parse(bad), Err(GoError::Ip(_))), "{bad}");
        }
    }

    #[test]
    fn widths() {
        assert_eq!(u16::parse("0xffff"), Ok(65535));
        assert!(matches!(u16::parse("65536"), Err(GoError::Range { .. })));
        assert!(matches!(u8::parse("256"), Err(GoError::Range { .. })));
        assert!(matches!(u32::parse("4294967296"), Err(GoError::Range { .. })));
        assert_eq!(<Vec<u64>>::parse("65001,65002"), Ok(vec![65001, 65002]));
        assert!(<Vec<u64>>::parse("").is_err());
    }
}
