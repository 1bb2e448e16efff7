//! Times as syslog senders write them.
//!
//! RFC 3164 times have neither year nor zone: the zone is the listener's, the year the latest in which the time is not
//! more than [`AHEAD_MAX`] after the message came. So a line of New Year's Eve that comes on New Year's Day keeps its year,
//! and a sender whose zone is not the listener's is hours ahead, not a year behind.

use hindcast_model::{SpanNs, TimestampNs};
use jiff::civil::DateTime;
use jiff::tz::TimeZone;

/// How far ahead of its receipt a time without a year may be before it is taken for one of the year before. No zone is
/// further from another one.
pub const AHEAD_MAX: SpanNs = SpanNs::from_secs(26 * 3600);

const MONTHS: [&str; 12] = [
    "Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec",
];

/// A time as it was sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sent {
    At(TimestampNs),
    /// On the sender's clock on the wall; in UTC, or in a zone that it does not say.
    Wall {
        year: Option<i16>,
        month: i8,
        day: i8,
        second_of_day: i32,
        nanos: i32,
        is_utc: bool,
    },
}

impl Sent {
    /// The same, where `UTC` stands behind it.
    pub const fn in_utc(mut self) -> Self {
        if let Self::Wall { is_utc, .. } = &mut self {
            *is_utc = true;
        }
        self
    }

    /// The instant, for a message that came at `received`. `None`: there is no such day.
    pub fn instant(self, received: TimestampNs, zone: &TimeZone) -> Option<TimestampNs> {
        let (year, month, day, second, nanos, is_utc) = match self {
            Self::At(at) => return Some(at),
            Self::Wall {
                year,
                month,
                day,
                second_of_day,
                nanos,
                is_utc,
            } => (year, month, day, second_of_day, nanos, is_utc),
        };
        let zone = if is_utc { &TimeZone::UTC } else { zone };
        let of_year = |year: i16| -> Option<TimestampNs> {
            let (hour, minute) = ((second / 3600) as i8, (second / 60 % 60) as i8);
            let wall = DateTime::new(year, month, day, hour, minute, (second % 60) as i8, nanos).ok()?;
            let at = zone.to_ambiguous_timestamp(wall).compatible().ok()?;
            i64::try_from(at.as_nanosecond()).ok().map(TimestampNs)
        };
        if let Some(year) = year {
            return of_year(year);
        }
        let now = jiff::Timestamp::from_nanosecond(i128::from(received.0)).ok()?;
        let this = zone.to_datetime(now).year();
        // The 29th of February may be eight years back.
        let years = (0..=9).map(|back| this.saturating_add(1).saturating_sub(back));
        years.filter_map(of_year).find(|at| *at <= received + AHEAD_MAX)
    }
}

/// Reads from the front of a text.
struct Front<'m> {
    rest: &'m str,
}

impl<'m> Front<'m> {
    fn byte(&mut self, wanted: u8) -> Option<()> {
        self.rest = self.rest.strip_prefix(wanted as char)?;
        Some(())
    }

    /// Exactly so many digits.
    fn digits(&mut self, n: usize) -> Option<i32> {
        let digits = self.rest.get(..n)?;
        if !digits.bytes().all(|b| b.is_ascii_digit()) {
            return None;
        }
        self.rest = &self.rest[n..];
        digits.parse().ok()
    }

    /// `.` or `,` and up to nine digits that count; 0 without.
    fn fraction(&mut self) -> Option<i32> {
        let Some(rest) = self.rest.strip_prefix(['.', ',']) else {
            return Some(0);
        };
        let digits = rest.bytes().take_while(u8::is_ascii_digit).count();
        if digits == 0 {
            return None;
        }
        let counted: i32 = rest[..digits.min(9)].parse().ok()?;
        self.rest = &rest[digits..];
        Some(counted * 10_i32.pow(9 - digits.min(9) as u32))
    }

    /// `HH:MM:SS`, with a second 60 where one is put in.
    fn clock(&mut self) -> Option<i32> {
        let hour = self.digits(2)?;
        self.byte(b':')?;
        let minute = self.digits(2)?;
        self.byte(b':')?;
        let second = self.digits(2)?;
        (hour < 24 && minute < 60 && second <= 60).then_some(hour * 3600 + minute * 60 + second.min(59))
    }
}

/// Days from 1970-01-01 to a day of the Gregorian calendar. Years begin in March, so that the odd day comes last.
fn days_since_1970(year: i32, month: i32, day: i32) -> Option<i64> {
    let is_leap = year % 4 == 0 && (year % 100 != 0 || year % 400 == 0);
    let of_month = match month {
        2 => 28 + i32::from(is_leap),
        4 | 6 | 9 | 11 => 30,
        1..=12 => 31,
        _ => return None,
    };
    if day < 1 || day > of_month {
        return None;
    }
    let from_march = (month + 9) % 12;
    let years = i64::from(year - i32::from(month <= 2));
    let leaps = years.div_euclid(4) - years.div_euclid(100) + years.div_euclid(400);
    // Days of the months since March: 0, 31, 61, 92, ...
    let day_of_year = i64::from((153 * from_march + 2) / 5 + day - 1);
    // 719,468 days lie between the 1st of March of the year 0 and 1970.
    Some(years * 365 + leaps + day_of_year - 719_468)
}

/// `2023-11-14T22:13:20.5Z`, as RFC 3339 has it; without a zone it is on the sender's wall. The time and what follows it.
pub fn iso(text: &str) -> Option<(Sent, &str)> {
    let mut front = Front { rest: text };
    let year = front.digits(4)?;
    front.byte(b'-')?;
    let month = front.digits(2)?;
    front.byte(b'-')?;
    let day = front.digits(2)?;
    if !front.rest.starts_with(['T', 't', ' ']) {
        return None;
    }
    front.rest = &front.rest[1..];
    let second = front.clock()?;
    let nanos = front.fraction()?;
    let days = days_since_1970(year, month, day)?;
    let east = match front.rest.as_bytes().first() {
        Some(b'Z' | b'z') => {
            front.rest = &front.rest[1..];
            0
        }
        Some(sign @ (b'+' | b'-')) => {
            front.rest = &front.rest[1..];
            let hours = front.digits(2)?;
            // RFC 3339 has a colon, some senders have none.
            let _ = front.byte(b':');
            let minutes = front.digits(2)?;
            if hours > 23 || minutes > 59 {
                return None;
            }
            (hours * 60 + minutes) * if *sign == b'-' { -60 } else { 60 }
        }
        _ => {
            let wall = Sent::Wall {
                year: Some(year as i16),
                month: month as i8,
                day: day as i8,
                second_of_day: second,
                nanos,
                is_utc: false,
            };
            return Some((wall, front.rest));
        }
    };
    let seconds = days * 86_400 + i64::from(second - east);
    let at = seconds.checked_mul(1_000_000_000)?.checked_add(i64::from(nanos))?;
    Some((Sent::At(TimestampNs(at)), front.rest))
}

/// `Oct  7 22:14:15`, with a year behind the day (`Oct 7 2023 22:14:15`) or the clock, with fractions, with `UTC` behind:
/// what is sent as RFC 3164. The time and what follows it.
pub fn bsd(text: &str) -> Option<(Sent, &str)> {
    let mut front = Front { rest: text };
    let month = MONTHS.iter().position(|m| front.rest.starts_with(m))? as i8 + 1;
    front.rest = &front.rest[3..];
    front.byte(b' ')?;
    let _ = front.byte(b' ');
    let day = front.digits(2).or_else(|| front.digits(1))?;
    front.byte(b' ')?;
    let year = front.rest.as_bytes().get(4) == Some(&b' ');
    let year = match year {
        true => {
            let year = front.digits(4)?;
            front.byte(b' ')?;
            Some(year as i16)
        }
        false => None,
    };
    let second_of_day = front.clock()?;
    let nanos = front.fraction()?;
    let wall = Sent::Wall {
        year,
        month,
        day: day as i8,
        second_of_day,
        nanos,
        is_utc: false,
    };
    Some((wall, front.rest))
}

#[cfg(test)]
mod tests {
    use super::*;
    use expect_test::{Expect, expect};
    use proptest::prelude::*;

    fn ns(text: &str) -> TimestampNs {
        TimestampNs(text.parse::<jiff::Timestamp>().unwrap().as_nanosecond() as i64)
    }

    fn shown(at: Option<TimestampNs>) -> String {
        at.map_or("none".to_owned(), |at| {
            jiff::Timestamp::from_nanosecond(i128::from(at.0)).unwrap().to_string()
        })
    }

    fn check(received: &str, zone: &str, lines: &[&str], expect: Expect) {
        let zone = TimeZone::get(zone).unwrap();
        let mut out = String::new();
        for line in lines {
            let read = iso(line).or_else(|| bsd(line));
            let said = match read {
                None => "no time".to_owned(),
                Some((sent, rest)) => format!("{} {rest:?}", shown(sent.instant(ns(received), &zone))),
            };
            out += &format!("{line} -> {said}\n");
        }
        expect.assert_eq(&out);
    }

    #[test]
    fn a_time_without_a_year_is_of_the_latest_year_that_it_can_be_of() {
        check(
            "2024-01-01T00:00:10Z",
            "UTC",
            &[
                "Jan  1 00:00:09 h",
                "Dec 31 23:59:59 h",
                "Jan  2 01:00:00 h",
                "Jan  3 00:00:00 h",
                "Feb 29 12:00:00 h",
                "Jul 10 12:00:00 h",
                "Feb 30 12:00:00 h",
            ],
            expect![[r#"
                Jan  1 00:00:09 h -> 2024-01-01T00:00:09Z " h"
                Dec 31 23:59:59 h -> 2023-12-31T23:59:59Z " h"
                Jan  2 01:00:00 h -> 2024-01-02T01:00:00Z " h"
                Jan  3 00:00:00 h -> 2023-01-03T00:00:00Z " h"
                Feb 29 12:00:00 h -> 2020-02-29T12:00:00Z " h"
                Jul 10 12:00:00 h -> 2023-07-10T12:00:00Z " h"
                Feb 30 12:00:00 h -> none " h"
            "#]],
        );
        check(
            "2023-12-31T23:59:58Z",
            "UTC",
            &["Jan 1 00:00:03 h"],
            expect![[r#"
                Jan 1 00:00:03 h -> 2024-01-01T00:00:03Z " h"
            "#]],
        );
    }

    #[test]
    fn a_time_without_a_zone_is_of_the_listeners_zone() {
        check(
            "2023-12-31T15:00:05Z",
            "Asia/Seoul",
            &[
                "Jan  1 00:00:05 h",
                "Dec 31 23:59:59.25 h",
                "2024-01-01T00:00:00 h",
                "2024-01-01T00:00:00+00:00 h",
            ],
            expect![[r#"
                Jan  1 00:00:05 h -> 2023-12-31T15:00:05Z " h"
                Dec 31 23:59:59.25 h -> 2023-12-31T14:59:59.25Z " h"
                2024-01-01T00:00:00 h -> 2023-12-31T15:00:00Z " h"
                2024-01-01T00:00:00+00:00 h -> 2024-01-01T00:00:00Z " h"
            "#]],
        );
        // An hour that is skipped, and one that comes twice.
        check(
            "2024-11-04T00:00:00Z",
            "America/New_York",
            &["Mar 10 02:30:00 h", "Nov  3 01:30:00 h"],
            expect![[r#"
                Mar 10 02:30:00 h -> 2024-03-10T07:30:00Z " h"
                Nov  3 01:30:00 h -> 2024-11-03T05:30:00Z " h"
            "#]],
        );
    }

    #[test]
    fn times_are_read_as_senders_write_them() {
        check(
            "2023-11-14T22:13:20Z",
            "UTC",
            &[
                "2023-11-14T22:13:20.123456789Z x",
                "2023-11-14t22:13:20-08:00 x",
                "2023-11-14T22:13:20+0900 x",
                "2023-11-14T22:13:60Z x",
                "Nov 14 2022 22:13:20: x",
                "Nov 4 22:13:20.5 UTC: x",
                "Nov 14 24:00:00 x",
                "Nov 14 22:13 x",
                "2023-02-29T00:00:00Z x",
                "Foo 14 22:13:20 x",
                "2023-11-14 22:13:20,250 x",
            ],
            expect![[r#"
                2023-11-14T22:13:20.123456789Z x -> 2023-11-14T22:13:20.123456789Z " x"
                2023-11-14t22:13:20-08:00 x -> 2023-11-15T06:13:20Z " x"
                2023-11-14T22:13:20+0900 x -> 2023-11-14T13:13:20Z " x"
                2023-11-14T22:13:60Z x -> 2023-11-14T22:13:59Z " x"
                Nov 14 2022 22:13:20: x -> 2022-11-14T22:13:20Z ": x"
                Nov 4 22:13:20.5 UTC: x -> 2023-11-04T22:13:20.5Z " UTC: x"
                Nov 14 24:00:00 x -> no time
                Nov 14 22:13 x -> no time
                2023-02-29T00:00:00Z x -> no time
                Foo 14 22:13:20 x -> no time
                2023-11-14 22:13:20,250 x -> 2023-11-14T22:13:20.25Z " x"
            "#]],
        );
    }

    proptest! {
        /// Our arithmetic and jiff's agree on every instant that both can write.
        #[test]
        fn an_instant_reads_back(seconds in -2_000_000_000i64..8_000_000_000, nanos in 0i64..1_000_000_000) {
            let at = jiff::Timestamp::from_nanosecond(i128::from(seconds * 1_000_000_000 + nanos)).unwrap();
            let text = at.to_string();
            let (sent, rest) = iso(&text).unwrap();
            prop_assert_eq!((sent, rest), (Sent::At(TimestampNs(seconds * 1_000_000_000 + nanos)), ""));
        }

        /// Whatever the day on which it comes, a line of the last eleven months keeps its time.
        #[test]
        fn a_line_of_the_last_months_keeps_its_time(received in 946_684_800i64..4_000_000_000, back in 0i64..330 * 86_400) {
            let sent = jiff::Timestamp::from_second(received - back).unwrap();
            let text = sent.strftime("%b %e %H:%M:%S").to_string();
            let (read, _) = bsd(&text).unwrap();
            let at = read.instant(TimestampNs::from_secs(received), &TimeZone::UTC);
            prop_assert_eq!(at, Some(TimestampNs::from_secs(received - back)));
        }

        #[test]
        fn no_text_panics(text in "([A-Z][a-z]{2} )?[0-9TZ:.,+ -]{0,30}[ㄱ-가]?") {
            for read in [iso(&text), bsd(&text)].into_iter().flatten() {
                for at in [i64::MIN, 0, i64::MAX] {
                    let _ = read.0.instant(TimestampNs(at), &TimeZone::UTC);
                }
            }
        }
    }
}
