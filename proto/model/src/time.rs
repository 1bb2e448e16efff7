//! Points and lengths of time, in nanoseconds. Milliseconds exist at the edges only.

use serde::{Deserialize, Serialize};
use std::fmt;
use std::ops::{Add, Sub};

/// A point in time: nanoseconds since the Unix epoch, UTC. Negative before 1970.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct TimestampNs(pub i64);

/// A length of time in nanoseconds; never negative.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct SpanNs(pub u64);

const NS_PER_MS: i64 = 1_000_000;

impl TimestampNs {
    pub const MIN: Self = Self(i64::MIN);
    pub const MAX: Self = Self(i64::MAX);
    pub const EPOCH: Self = Self(0);

    /// Saturates at the ends of the range (years 1677 and 2262).
    pub const fn from_ms(ms: i64) -> Self {
        Self(ms.saturating_mul(NS_PER_MS))
    }

    pub const fn from_secs(s: i64) -> Self {
        Self(s.saturating_mul(1_000_000_000))
    }

    /// Milliseconds, rounded down (also before 1970).
    pub const fn as_ms(self) -> i64 {
        self.0.div_euclid(NS_PER_MS)
    }

    /// The same instant floored to a whole millisecond: the resolution of metric samples (PromQL's).
    pub const fn floor_ms(self) -> Self {
        Self(self.0 - self.0.rem_euclid(NS_PER_MS))
    }

    pub const fn saturating_add(self, d: SpanNs) -> Self {
        Self(self.0.saturating_add_unsigned(d.0))
    }

    pub const fn saturating_sub(self, d: SpanNs) -> Self {
        Self(self.0.saturating_sub_unsigned(d.0))
    }

    /// How long `earlier` lies back; zero when it does not.
    pub const fn since(self, earlier: Self) -> SpanNs {
        let d = self.0 as i128 - earlier.0 as i128;
        SpanNs(if d < 0 {
            0
        } else if d > u64::MAX as i128 {
            u64::MAX
        } else {
            d as u64
        })
    }
}

impl Add<SpanNs> for TimestampNs {
    type Output = Self;
    fn add(self, d: SpanNs) -> Self {
        self.saturating_add(d)
    }
}

impl Sub<SpanNs> for TimestampNs {
    type Output = Self;
    fn sub(self, d: SpanNs) -> Self {
        self.saturating_sub(d)
    }
}

impl SpanNs {
    pub const ZERO: Self = Self(0);
    pub const MAX: Self = Self(u64::MAX);

    pub const fn from_ms(ms: u64) -> Self {
        Self(ms.saturating_mul(NS_PER_MS as u64))
    }
    pub const fn from_secs(s: u64) -> Self {
        Self(s.saturating_mul(1_000_000_000))
    }
    pub const fn as_ms(self) -> u64 {
        self.0 / NS_PER_MS as u64
    }
    pub const fn as_duration(self) -> std::time::Duration {
        std::time::Duration::from_nanos(self.0)
    }

    /// Doubles `times` times, saturating: the usual back-off.
    pub const fn doubled(self, times: u32) -> Self {
        match 1u64.checked_shl(times) {
            Some(f) => Self(self.0.saturating_mul(f)),
            None => Self(u64::MAX),
        }
    }

    /// Parses `30d`, `1h30m`, `250ms`, as Prometheus writes durations (units y w d h m s ms, largest first).
    /// A year is 365 days. A bare number is refused: its unit would be a guess.
    pub fn parse(text: &str) -> Option<Self> {
        const UNITS: [(&str, u64); 7] = [
            ("y", 365 * 86_400_000),
            ("w", 7 * 86_400_000),
            ("d", 86_400_000),
            ("h", 3_600_000),
            ("m", 60_000),
            ("s", 1_000),
            ("ms", 1),
        ];
        if text == "0" {
            return Some(Self::ZERO);
        }
        let (mut rest, mut total_ms, mut next_unit) = (text, 0u64, 0usize);
        if rest.is_empty() {
            return None;
        }
        while !rest.is_empty() {
            let digits = rest.find(|c: char| !c.is_ascii_digit()).filter(|&n| n > 0)?;
            let n: u64 = rest[..digits].parse().ok()?;
            rest = &rest[digits..];
            let len = rest.find(|c: char| c.is_ascii_digit()).unwrap_or(rest.len());
            let unit = UNITS[next_unit..].iter().position(|(u, _)| *u == &rest[..len])? + next_unit;
            total_ms = total_ms.checked_add(n.checked_mul(UNITS[unit].1)?)?;
            next_unit = unit + 1;
            rest = &rest[len..];
        }
        Some(Self::from_ms(total_ms))
    }
}

/// As Prometheus writes it: `1h30m`; below a millisecond in nanoseconds.
impl fmt::Display for SpanNs {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0 == 0 {
            return f.write_str("0s");
        }
        if !self.0.is_multiple_of(NS_PER_MS as u64) {
            return write!(f, "{}ns", self.0);
        }
        let mut ms = self.as_ms();
        for (unit, len) in [
            ("d", 86_400_000),
            ("h", 3_600_000),
            ("m", 60_000),
            ("s", 1_000),
            ("ms", 1),
        ] {
            if ms / len > 0 {
                write!(f, "{}{unit}", ms / len)?;
                ms %= len;
            }
        }
        Ok(())
    }
}

/// Seconds with a fraction, the form that Prometheus APIs use. For people, the edges format RFC 3339.
impl fmt::Display for TimestampNs {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let ms = self.as_ms();
        let (sign, whole) = (if ms < 0 { "-" } else { "" }, ms.unsigned_abs());
        write!(f, "{sign}{}.{:03}", whole / 1000, whole % 1000)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_millisecond_before_1970_is_not_shown_as_two_seconds() {
        let shown = [-1, -1999, -2000, 0, 1, 1500].map(|ms| TimestampNs::from_ms(ms).to_string());
        assert_eq!(shown, ["-0.001", "-1.999", "-2.000", "0.000", "0.001", "1.500"]);
    }

    #[test]
    fn durations_read_as_prometheus_writes_them() {
        for (text, ms) in [
            ("30d", 2_592_000_000),
            ("1h30m", 5_400_000),
            ("250ms", 250),
            ("1m5s10ms", 65_010),
            ("0", 0),
        ] {
            assert_eq!(SpanNs::parse(text), Some(SpanNs::from_ms(ms)), "{text}");
        }
        for text in ["", "5", "m", "1s1m", "1.5h", "-1s", "1s1s", "99999999999y"] {
            assert_eq!(SpanNs::parse(text), None, "{text}");
        }
    }

    proptest! {
        #[test]
        fn a_span_reads_back_what_it_shows(ms in 1u64..10_000_000_000) {
            let span = SpanNs::from_ms(ms);
            prop_assert_eq!(SpanNs::parse(&span.to_string()), Some(span));
        }

        #[test]
        fn flooring_never_moves_forward_nor_a_whole_millisecond_back(ns in i64::MIN + 1_000_000..i64::MAX) {
            let at = TimestampNs(ns);
            let floored = at.floor_ms();
            prop_assert!(floored <= at && at.0 - floored.0 < 1_000_000);
            prop_assert_eq!(floored.as_ms(), at.as_ms());
        }
    }
}
