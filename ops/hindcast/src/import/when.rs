//! Times as files write them.
//!
//! Pure. Bare numbers are Unix times; their size tells the unit, since the ranges do not meet for years 1973 to 5138:
//! below 1e11 seconds, below 1e14 milliseconds, below 1e17 microseconds, above nanoseconds. Texts are RFC 3339, or a
//! date and time with a space and no zone, which is UTC.

use super::BadLine;

/// Nanoseconds since the Unix epoch of a number, exact for whole numbers.
pub fn number_ns(text: &str) -> Option<i64> {
    if let Ok(whole) = text.parse::<i64>() {
        return whole.checked_mul(unit_ns(whole.unsigned_abs() as f64));
    }
    let n: f64 = text.parse().ok().filter(|n: &f64| n.is_finite())?;
    let unit = unit_ns(n.abs());
    // Whole seconds apart from their fraction: a double holds no nanoseconds of today.
    let ns = n.trunc() as i128 * i128::from(unit) + (n.fract() * unit as f64).round() as i128;
    i64::try_from(ns).ok()
}

fn unit_ns(size: f64) -> i64 {
    match size {
        s if s < 1e11 => 1_000_000_000,
        s if s < 1e14 => 1_000_000,
        s if s < 1e17 => 1_000,
        _ => 1,
    }
}

/// Nanoseconds since the Unix epoch of a number or a date.
pub fn time_ns(text: &str) -> Result<i64, BadLine> {
    let text = text.trim();
    if let Some(ns) = number_ns(text) {
        return Ok(ns);
    }
    let bad = || {
        BadLine::new(format!(
            "{text:?} is not a time (Unix time, RFC 3339, or YYYY-MM-DD HH:MM:SS in UTC)"
        ))
    };
    let zoned: Option<jiff::Timestamp> = text.parse().ok();
    let timestamp = match zoned {
        Some(t) => t,
        None => {
            let civil: jiff::civil::DateTime = text.parse().map_err(|_| bad())?;
            civil.to_zoned(jiff::tz::TimeZone::UTC).map_err(|_| bad())?.timestamp()
        }
    };
    i64::try_from(timestamp.as_nanosecond()).map_err(|_| bad())
}

/// Milliseconds since the Unix epoch, rounded down.
pub fn time_ms(text: &str) -> Result<i64, BadLine> {
    Ok(time_ns(text)?.div_euclid(1_000_000))
}

#[cfg(test)]
mod tests {
    use super::*;
    use expect_test::{Expect, expect};
    use proptest::prelude::*;

    fn check(text: &str, expect: Expect) {
        expect.assert_eq(&time_ns(text).map_or_else(|e| e.to_string(), |ns| ns.to_string()));
    }

    #[test]
    fn a_time_is_a_unix_time_of_any_unit_or_a_date() {
        check("1700000000", expect!["1700000000000000000"]);
        check("1700000000.25", expect!["1700000000250000000"]);
        check("1700000000123", expect!["1700000000123000000"]);
        check("1700000000123456", expect!["1700000000123456000"]);
        check("1700000000123456789", expect!["1700000000123456789"]);
        check("-1.5", expect!["-1500000000"]);
        check("2014-04-01 00:05:00", expect!["1396310700000000000"]);
        check("2014-04-01T00:05:00+09:00", expect!["1396278300000000000"]);
        check(
            "yesterday",
            expect![[r#""yesterday" is not a time (Unix time, RFC 3339, or YYYY-MM-DD HH:MM:SS in UTC)"#]],
        );
        check(
            "NaN",
            expect![[r#""NaN" is not a time (Unix time, RFC 3339, or YYYY-MM-DD HH:MM:SS in UTC)"#]],
        );
    }

    proptest! {
        #[test]
        fn a_millisecond_reads_back_whole_from_every_unit(ms in 100_000_000_000i64..4_000_000_000_000) {
            prop_assert_eq!(time_ms(&ms.to_string()), Ok(ms));
            prop_assert_eq!(time_ms(&format!("{ms}000")), Ok(ms));
            prop_assert_eq!(time_ms(&format!("{ms}000000")), Ok(ms));
            // Seconds with a fraction as OpenMetrics writes them.
            prop_assert_eq!(time_ns(&format!("{}.{:03}", ms / 1000, ms % 1000)).map(|ns| (ns + 500_000) / 1_000_000), Ok(ms));
        }

        #[test]
        fn no_text_is_too_odd(text in ".{0,30}") { let _ = time_ns(&text); }
    }
}
