//! Durations and sizes as configuration writes them: text with a unit. A bare number is refused.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use serde::de::{Error, Visitor};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// `90s`, `5m`, `2h`, `1h 30m`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Span(pub Duration);

/// `512 MiB`, `80 GiB`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Size(pub u64);

impl FromStr for Span {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let why = || format!("`{text}` is not a duration: write it with a unit, as in `90s` or `5m`");
        let signed: jiff::SignedDuration = text.parse().map_err(|_| why())?;
        Duration::try_from(signed).map(Self).map_err(|_| why())
    }
}

impl fmt::Display for Span {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0.as_millis() {
            ms if ms % 1000 == 0 => write!(f, "{}s", ms / 1000),
            ms => write!(f, "{ms}ms"),
        }
    }
}

const UNITS: [(&str, u64); 5] = [("TiB", 1 << 40), ("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10), ("B", 1)];

impl FromStr for Size {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let why = || format!("`{text}` is not a size: write it with a unit, as in `512 MiB` or `80 GiB`");
        let (name, factor) = UNITS.iter().find(|(name, _)| text.trim_end().ends_with(name)).ok_or_else(why)?;
        let number: u64 = text.trim().trim_end_matches(name).trim().parse().map_err(|_| why())?;
        number.checked_mul(*factor).map(Self).ok_or_else(why)
    }
}

impl fmt::Display for Size {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (name, factor) =
            UNITS.iter().find(|(_, factor)| self.0 != 0 && self.0.is_multiple_of(*factor)).unwrap_or(&("B", 1));
        write!(f, "{} {name}", self.0 / factor)
    }
}

/// Reads text, and tells whoever wrote a bare number how it is written.
struct Text {
    example: &'static str,
}

impl Text {
    fn bare<E: Error>(&self, number: impl fmt::Display) -> E {
        E::custom(format!("`{number}` has no unit: write it with a unit, as in `{}`", self.example))
    }
}

impl Visitor<'_> for Text {
    type Value = String;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "text with a unit, as in `{}`", self.example)
    }

    fn visit_str<E: Error>(self, text: &str) -> Result<String, E> {
        Ok(text.to_owned())
    }

    fn visit_i64<E: Error>(self, number: i64) -> Result<String, E> {
        Err(self.bare(number))
    }

    fn visit_u64<E: Error>(self, number: u64) -> Result<String, E> {
        Err(self.bare(number))
    }

    fn visit_f64<E: Error>(self, number: f64) -> Result<String, E> {
        Err(self.bare(number))
    }
}

macro_rules! as_text {
    ($($name:ident as in $example:literal),*) => {$(
        impl Serialize for $name {
            fn serialize<S: Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
                s.collect_str(self)
            }
        }

        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
                d.deserialize_any(Text { example: $example })?.parse().map_err(D::Error::custom)
            }
        }
    )*};
}

as_text!(Span as in "30m", Size as in "8 GiB");

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_unit_is_needed_and_kept() {
        assert_eq!("90s".parse::<Span>().map(|s| s.0.as_secs()), Ok(90));
        assert_eq!("1h 30m".parse::<Span>().map(|s| s.0.as_secs()), Ok(5400));
        assert_eq!("80 GiB".parse::<Size>().map(|s| s.to_string()), Ok("80 GiB".into()));
        for bare in ["90", "-5s", "80", "80 GB", ""] {
            assert!(bare.parse::<Span>().is_err() && bare.parse::<Size>().is_err(), "{bare}");
        }
    }
}
