//! Amounts of memory and time as whole numbers, so that every machine decides alike. A difference of bytes is signed: an
//! unsigned subtraction, which could turn a shortage into a fortune, does not exist.

use std::fmt;
use std::iter::Sum;
use std::ops::{Add, AddAssign};
use std::str::FromStr;

use serde::{Deserialize, Serialize};

const MIB: u64 = 1 << 20;
const GIB: u64 = 1 << 30;

/// Bytes of memory. Sums saturate, so a hostile size stays too big instead of becoming small.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Bytes(u64);

impl Bytes {
    pub const ZERO: Self = Self(0);

    pub const fn new(bytes: u64) -> Self {
        Self(bytes)
    }

    pub const fn mib(count: u64) -> Self {
        Self(count.saturating_mul(MIB))
    }

    pub const fn gib(count: u64) -> Self {
        Self(count.saturating_mul(GIB))
    }

    pub const fn get(self) -> u64 {
        self.0
    }

    /// For sums with a sign; no sum of these can overflow.
    pub const fn signed(self) -> i128 {
        self.0 as i128
    }

    /// What is there of a signed sum: nothing when it is negative.
    pub fn there(sum: i128) -> Self {
        Self(u64::try_from(sum.max(0)).unwrap_or(u64::MAX))
    }

    /// `self - other`.
    pub fn over(self, other: Self) -> i64 {
        let difference = self.signed() - other.signed();
        i64::try_from(difference).unwrap_or(if difference > 0 { i64::MAX } else { i64::MIN })
    }

    #[must_use]
    pub const fn times(self, count: u64) -> Self {
        Self(self.0.saturating_mul(count))
    }

    /// That many thousandths of it, rounded up.
    #[must_use]
    pub fn permille(self, permille: u32) -> Self {
        Self::there((self.signed() * i128::from(permille) + 999) / 1000)
    }

    /// A share of `count` equal ones, rounded up. `count` 0 counts as 1.
    #[must_use]
    pub const fn share(self, count: u64) -> Self {
        Self(self.0.div_ceil(if count == 0 { 1 } else { count }))
    }
}

impl Add for Bytes {
    type Output = Self;

    fn add(self, other: Self) -> Self {
        Self(self.0.saturating_add(other.0))
    }
}

impl AddAssign for Bytes {
    fn add_assign(&mut self, other: Self) {
        *self = *self + other;
    }
}

impl Sum for Bytes {
    fn sum<I: Iterator<Item = Self>>(all: I) -> Self {
        all.fold(Self::ZERO, Add::add)
    }
}

impl fmt::Display for Bytes {
    /// `41.2 GiB`, below a GiB `512 MiB`, below a MiB `17 B`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0 >= GIB {
            let tenths = (u128::from(self.0) * 10 + u128::from(GIB) / 2) / u128::from(GIB);
            write!(f, "{}.{} GiB", tenths / 10, tenths % 10)
        } else if self.0 >= MIB || self.0 == 0 {
            write!(f, "{} MiB", (self.0 + MIB / 2) / MIB)
        } else {
            write!(f, "{} B", self.0)
        }
    }
}

/// A text is no amount with a unit.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{text}` is not {wanted}")]
pub struct ParseQuantityError {
    text: String,
    wanted: &'static str,
}

/// Splits `12.5GiB` into its number, in thousandths, and its unit.
fn number_and_unit(text: &str) -> Option<(u64, &str)> {
    let text = text.trim();
    let end = text.find(|c: char| !c.is_ascii_digit() && c != '.')?;
    let (number, unit) = text.split_at(end);
    let (whole, fraction) = number.split_once('.').unwrap_or((number, "0"));
    if fraction.is_empty() || fraction.len() > 3 {
        return None;
    }
    let scale = 10u64.pow(3 - u32::try_from(fraction.len()).ok()?);
    let thousandths =
        whole.parse::<u64>().ok()?.checked_mul(1000)?.checked_add(fraction.parse::<u64>().ok()? * scale)?;
    Some((thousandths, unit.trim()))
}

impl FromStr for Bytes {
    type Err = ParseQuantityError;

    /// `80 GiB`, `512MiB`, `1.5GiB`, `7 B`.
    fn from_str(text: &str) -> Result<Self, ParseQuantityError> {
        let parsed = number_and_unit(text).and_then(|(thousandths, unit)| {
            let size = match unit {
                "B" => 1,
                "MiB" => MIB,
                "GiB" => GIB,
                _ => return None,
            };
            u64::try_from(u128::from(thousandths) * u128::from(size) / 1000).ok().map(Self)
        });
        parsed.ok_or_else(|| ParseQuantityError {
            text: text.chars().take(40).collect(),
            wanted: "a size such as `80 GiB`",
        })
    }
}

/// Milliseconds: an instant of the caller's monotonic clock, or a length of time. The two never leave a process, and a
/// later instant less an earlier one is the only difference there is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Millis(u64);

impl Millis {
    pub const ZERO: Self = Self(0);

    pub const fn new(millis: u64) -> Self {
        Self(millis)
    }

    pub const fn secs(seconds: u64) -> Self {
        Self(seconds.saturating_mul(1000))
    }

    pub const fn get(self) -> u64 {
        self.0
    }

    /// From `earlier` to this instant; nothing when `earlier` is later, as a sample may be that was taken meanwhile.
    #[must_use]
    pub const fn since(self, earlier: Self) -> Self {
        Self(self.0.saturating_sub(earlier.0))
    }

    #[must_use]
    pub const fn times(self, count: u64) -> Self {
        Self(self.0.saturating_mul(count))
    }
}

impl Add for Millis {
    type Output = Self;

    fn add(self, other: Self) -> Self {
        Self(self.0.saturating_add(other.0))
    }
}

impl AddAssign for Millis {
    fn add_assign(&mut self, other: Self) {
        *self = *self + other;
    }
}

impl fmt::Display for Millis {
    /// `350ms`, `1.5s`, `41s`, from two minutes on `3m20s`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let seconds = (self.0 + 500) / 1000;
        match self.0 {
            0 => f.write_str("0s"),
            1..1000 => write!(f, "{}ms", self.0),
            1000..10_000 if !self.0.is_multiple_of(1000) => write!(f, "{}.{}s", self.0 / 1000, self.0 % 1000 / 100),
            _ if seconds < 120 => write!(f, "{seconds}s"),
            _ if seconds.is_multiple_of(60) => write!(f, "{}m", seconds / 60),
            _ => write!(f, "{}m{}s", seconds / 60, seconds % 60),
        }
    }
}

impl FromStr for Millis {
    type Err = ParseQuantityError;

    /// `500ms`, `12s`, `1.5s`, `3m`, `1h`.
    fn from_str(text: &str) -> Result<Self, ParseQuantityError> {
        let parsed = number_and_unit(text).and_then(|(thousandths, unit)| {
            let millis = match unit {
                "ms" => 1,
                "s" => 1000,
                "m" => 60_000,
                "h" => 3_600_000,
                _ => return None,
            };
            u64::try_from(u128::from(thousandths) * millis / 1000).ok().map(Self)
        });
        parsed
            .ok_or_else(|| ParseQuantityError { text: text.chars().take(40).collect(), wanted: "a time such as `12s`" })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn amounts_are_read_and_shown_with_their_units() {
        for (text, bytes, shown) in
            [("80 GiB", Bytes::gib(80), "80.0 GiB"), ("1.5GiB", Bytes::mib(1536), "1.5 GiB"), ("7 B", Bytes(7), "7 B")]
        {
            assert_eq!(text.parse(), Ok(bytes));
            assert_eq!(bytes.to_string(), shown);
        }
        for (text, millis, shown) in
            [("1.5s", Millis(1500), "1.5s"), ("3m", Millis::secs(180), "3m"), ("90s", Millis::secs(90), "90s")]
        {
            assert_eq!(text.parse(), Ok(millis));
            assert_eq!(millis.to_string(), shown);
        }
    }

    #[test]
    fn an_amount_without_a_unit_is_refused() {
        for text in ["80", "", "GiB", "80 GB", "1.2345 GiB", "-1 GiB", "99999999999999999999 GiB"] {
            assert!(text.parse::<Bytes>().is_err(), "{text}");
        }
        for text in ["12", "s", "12 parsecs", "1.s"] {
            assert!(text.parse::<Millis>().is_err(), "{text}");
        }
    }

    proptest! {
        #[test]
        fn a_difference_has_a_sign_and_a_sum_never_wraps(a: u64, b: u64) {
            let (a, b) = (Bytes(a), Bytes(b));
            prop_assert_eq!(a.over(b) > 0, a > b);
            prop_assert!(a + b >= a && a + b >= b);
            prop_assert_eq!(Bytes::there(a.signed() - b.signed()) > Bytes::ZERO, a > b);
        }
    }
}
