//! Windows of samples: what is left of rows that are too old to be kept as they came.
//!
//! A window is named by its end and holds the samples after its start up to and including its end, as PromQL's ranges
//! do; windows lie on multiples of their span since 1970. Everything here is a pure function of the rows (settled:
//! ascending, of equal times the last commit), with one fixed order of additions, so that every replica gets the same
//! bits whenever it computes them. An hour is *defined* as its twelve windows of five minutes put together, never as
//! computed from rows, so that it does not matter what of the two a replica still has.
//!
//! - Staleness markers are no values. That a window's last row is one is kept (`stale_at`).
//! - Other NaNs are values: they count, make the sum NaN, and are least or greatest only where there is nothing else.
//!   A NaN that arithmetic makes is the one canonical NaN, so that processors do not differ.
//! - `resets` is what a counter lost at its resets inside of the window: the value before each one, added up. With
//!   `first` and `last` the increase over any run of windows comes out as PromQL counts it over the rows.

use hindcast_model::{Sample, TimestampNs, is_stale};
use serde::{Deserialize, Serialize};

pub const FIVE_MINUTES_NS: i64 = 300 * 1_000_000_000;
pub const HOUR_NS: i64 = 12 * FIVE_MINUTES_NS;

/// How long windows are.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[repr(u8)]
pub enum Resolution {
    FiveMinutes = 0,
    Hour = 1,
}

impl Resolution {
    pub const ALL: [Self; 2] = [Self::FiveMinutes, Self::Hour];

    pub const fn span_ns(self) -> i64 {
        match self {
            Self::FiveMinutes => FIVE_MINUTES_NS,
            Self::Hour => HOUR_NS,
        }
    }

    /// The end of the window that an instant lies in.
    pub fn end_of(self, at: i64) -> i64 {
        let past = at.rem_euclid(self.span_ns());
        if past == 0 {
            at
        } else {
            at.saturating_add(self.span_ns() - past)
        }
    }
}

/// What the samples of a window come to; there is at least one.
#[derive(Clone, Copy, Debug)]
pub struct Values {
    pub count: u64,
    pub first_at: TimestampNs,
    pub last_at: TimestampNs,
    pub first: f64,
    pub last: f64,
    pub min: f64,
    pub max: f64,
    pub sum: f64,
    pub resets: f64,
}

/// One window that has a row.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Window {
    pub end: TimestampNs,
    /// `None`: there are staleness markers only.
    pub values: Option<Values>,
    /// The window's last row, where that is a staleness marker.
    pub stale_at: Option<TimestampNs>,
}

impl PartialEq for Values {
    /// By bits, as for samples.
    fn eq(&self, other: &Self) -> bool {
        let key = |v: &Self| {
            let bits = [v.first, v.last, v.min, v.max, v.sum, v.resets].map(f64::to_bits);
            (v.count, v.first_at, v.last_at, bits)
        };
        key(self) == key(other)
    }
}

fn canonical(v: f64) -> f64 {
    if v.is_nan() { f64::NAN } else { v }
}

/// What a counter lost between two values.
fn reset(before: f64, now: f64) -> f64 {
    if now < before { before } else { 0.0 }
}

fn least(a: f64, b: f64) -> f64 {
    if b < a || a.is_nan() { b } else { a }
}

fn greatest(a: f64, b: f64) -> f64 {
    if b > a || a.is_nan() { b } else { a }
}

impl Values {
    fn of(s: &Sample) -> Self {
        Self::of_row(s.at, s.value)
    }

    /// Of one sample, which is no staleness marker.
    pub fn of_row(at: TimestampNs, value: f64) -> Self {
        Self {
            count: 1,
            first_at: at,
            last_at: at,
            first: value,
            last: value,
            min: value,
            max: value,
            sum: canonical(value),
            resets: 0.0,
        }
    }

    /// Puts what came later behind this.
    pub fn then(&self, later: &Self) -> Self {
        Self {
            count: self.count + later.count,
            first_at: self.first_at,
            last_at: later.last_at,
            first: self.first,
            last: later.last,
            min: least(self.min, later.min),
            max: greatest(self.max, later.max),
            sum: canonical(self.sum + later.sum),
            resets: canonical(self.resets + reset(self.last, later.first) + later.resets),
        }
    }

    /// How far a counter rose from the first sample to the last, resets counted.
    pub fn increase(&self) -> f64 {
        self.last - self.first + self.resets
    }
}

impl Window {
    /// What digests go by: all of it, bit for bit.
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut out = self.end.0.to_le_bytes().to_vec();
        out.extend(self.stale_at.map_or(i64::MIN, |at| at.0).to_le_bytes());
        if let Some(v) = &self.values {
            for whole in [v.count as i64, v.first_at.0, v.last_at.0] {
                out.extend(whole.to_le_bytes());
            }
            for value in [v.first, v.last, v.min, v.max, v.sum, v.resets] {
                out.extend(value.to_bits().to_le_bytes());
            }
        }
        out
    }

    /// The rows that stand for it where samples are asked for: its last value, and the marker behind it.
    pub fn samples(&self) -> impl Iterator<Item = Sample> {
        let last = self.values.map(|v| Sample {
            at: v.last_at,
            value: v.last,
        });
        let marker = self.stale_at.map(|at| Sample {
            at,
            value: f64::from_bits(hindcast_model::STALE_NAN_BITS),
        });
        last.into_iter().chain(marker)
    }
}

/// The windows of five minutes of settled rows.
pub fn windows_of(rows: &[Sample]) -> Vec<Window> {
    let end = |s: &Sample| Resolution::FiveMinutes.end_of(s.at.0);
    let window = |rows: &[Sample]| {
        let values = rows.iter().filter(|s| !is_stale(s.value)).map(Values::of);
        let stale = rows.last().filter(|s| is_stale(s.value));
        Window {
            end: TimestampNs(end(&rows[0])),
            values: values.reduce(|a, b| a.then(&b)),
            stale_at: stale.map(|s| s.at),
        }
    };
    rows.chunk_by(|a, b| end(a) == end(b)).map(window).collect()
}

/// The hours of ascending windows of five minutes.
pub fn hours_of(windows: &[Window]) -> Vec<Window> {
    let end = |w: &Window| Resolution::Hour.end_of(w.end.0);
    let hour = |windows: &[Window]| Window {
        end: TimestampNs(end(&windows[0])),
        values: windows.iter().filter_map(|w| w.values).reduce(|a, b| a.then(&b)),
        stale_at: windows.last().and_then(|w| w.stale_at),
    };
    windows.chunk_by(|a, b| end(a) == end(b)).map(hour).collect()
}

// ---- as columns: a file of windows holds samples at the windows' ends, one column after the other ----

/// Columns of a window. The order is part of the format.
pub const COLUMNS: u32 = 10;
const FIRST_AT: u32 = 0;
const LAST_AT: u32 = 1;
pub const COUNT: u32 = 2;
const FIRST: u32 = 3;
const LAST: u32 = 4;
const MIN: u32 = 5;
const MAX: u32 = 6;
const SUM: u32 = 7;
const RESETS: u32 = 8;
pub const STALE_AT: u32 = 9;

/// Under which a series' column stands in a file of windows. `None`: the series' number is too high for that.
pub fn column_id(series: u32, column: u32) -> Option<u32> {
    series.checked_mul(COLUMNS)?.checked_add(column)
}

pub const fn series_of(column_id: u32) -> u32 {
    column_id / COLUMNS
}

/// One column of windows. Times stand as nanoseconds before the end: small whole numbers.
pub fn column(windows: &[Window], column: u32) -> Vec<Sample> {
    let before = |w: &Window, at: TimestampNs| (w.end.0 - at.0) as f64;
    let value = |w: &Window| {
        if column == STALE_AT {
            return w.stale_at.map(|at| before(w, at));
        }
        let v = w.values?;
        Some(match column {
            FIRST_AT => before(w, v.first_at),
            LAST_AT => before(w, v.last_at),
            COUNT => v.count as f64,
            FIRST => v.first,
            LAST => v.last,
            MIN => v.min,
            MAX => v.max,
            SUM => v.sum,
            _ => v.resets,
        })
    };
    let sample = |w: &Window| {
        Some(Sample {
            at: w.end,
            value: value(w)?,
        })
    };
    windows.iter().filter_map(sample).collect()
}

/// Windows from their columns, each ascending; `None`: they do not fit together.
pub fn from_columns(columns: &[Vec<Sample>; COLUMNS as usize]) -> Option<Vec<Window>> {
    let col = |c: u32| &columns[c as usize];
    let counts = col(COUNT);
    let fits = |c: u32| col(c).len() == counts.len() && col(c).iter().zip(counts).all(|(a, b)| a.at == b.at);
    if !(0..COLUMNS).filter(|c| *c != STALE_AT).all(fits) {
        return None;
    }
    let after = |end: TimestampNs, before: f64| {
        let is_near = (0.0..HOUR_NS as f64).contains(&before);
        is_near.then(|| TimestampNs(end.0.saturating_sub(before as i64)))
    };
    let mut windows = Vec::with_capacity(counts.len());
    let mut stale = col(STALE_AT).iter().peekable();
    for (i, c) in counts.iter().enumerate() {
        while let Some(s) = stale.next_if(|s| s.at < c.at) {
            let stale_at = Some(after(s.at, s.value)?);
            windows.push(Window {
                end: s.at,
                values: None,
                stale_at,
            });
        }
        let at = |column: u32| col(column)[i].value;
        let values = Values {
            count: c.value as u64,
            first_at: after(c.at, at(FIRST_AT))?,
            last_at: after(c.at, at(LAST_AT))?,
            first: at(FIRST),
            last: at(LAST),
            min: at(MIN),
            max: at(MAX),
            sum: at(SUM),
            resets: at(RESETS),
        };
        let marker = stale.next_if(|s| s.at == c.at);
        windows.push(Window {
            end: c.at,
            values: Some(values),
            stale_at: match marker {
                Some(s) => Some(after(s.at, s.value)?),
                None => None,
            },
        });
    }
    for s in stale {
        windows.push(Window {
            end: s.at,
            values: None,
            stale_at: Some(after(s.at, s.value)?),
        });
    }
    Some(windows)
}

#[cfg(test)]
mod tests {
    use super::*;
    use expect_test::{Expect, expect};
    use hindcast_model::STALE_NAN_BITS;
    use proptest::prelude::*;

    /// `second=value`, `s` for a staleness marker.
    fn rows(script: &str) -> Vec<Sample> {
        let row = |item: &str| {
            let (at, value) = item.split_once('=').unwrap();
            let value = match value {
                "s" => f64::from_bits(STALE_NAN_BITS),
                v => v.parse().unwrap(),
            };
            Sample {
                at: TimestampNs::from_secs(at.parse().unwrap()),
                value,
            }
        };
        script.split_whitespace().map(row).collect()
    }

    fn show(w: &Window) -> String {
        let secs = |t: TimestampNs| t.0 / 1_000_000_000;
        let stale = w.stale_at.map_or(String::new(), |t| format!(" stale at {}", secs(t)));
        let values = w.values.map_or("nothing".to_owned(), |v| {
            format!(
                "{} from {}={} to {}={} min {} max {} sum {} increase {}",
                v.count,
                secs(v.first_at),
                v.first,
                secs(v.last_at),
                v.last,
                v.min,
                v.max,
                v.sum,
                v.increase()
            )
        });
        format!("{}: {values}{stale}\n", secs(w.end))
    }

    fn check(script: &str, expect: Expect) {
        let windows = windows_of(&rows(script));
        let hours = hours_of(&windows);
        let shown: String = windows
            .iter()
            .map(show)
            .chain(["--\n".to_owned()])
            .chain(hours.iter().map(show))
            .collect();
        expect.assert_eq(&shown);
    }

    #[test]
    fn a_window_holds_what_comes_after_its_start_up_to_its_end() {
        check(
            "-1=5 0=6 1=7 300=8 301=9 3600=10 3601=11",
            expect![[r#"
                0: 2 from -1=5 to 0=6 min 5 max 6 sum 11 increase 1
                300: 2 from 1=7 to 300=8 min 7 max 8 sum 15 increase 1
                600: 1 from 301=9 to 301=9 min 9 max 9 sum 9 increase 0
                3600: 1 from 3600=10 to 3600=10 min 10 max 10 sum 10 increase 0
                3900: 1 from 3601=11 to 3601=11 min 11 max 11 sum 11 increase 0
                --
                0: 2 from -1=5 to 0=6 min 5 max 6 sum 11 increase 1
                3600: 4 from 1=7 to 3600=10 min 7 max 10 sum 34 increase 3
                7200: 1 from 3601=11 to 3601=11 min 11 max 11 sum 11 increase 0
            "#]],
        );
    }

    #[test]
    fn a_counter_rises_over_its_resets_inside_and_between_windows() {
        check(
            "100=10 200=4 300=6 400=1 500=3",
            expect![[r#"
                300: 3 from 100=10 to 300=6 min 4 max 10 sum 20 increase 6
                600: 2 from 400=1 to 500=3 min 1 max 3 sum 4 increase 2
                --
                3600: 5 from 100=10 to 500=3 min 1 max 10 sum 24 increase 9
            "#]],
        );
    }

    #[test]
    fn markers_are_no_values_and_nans_are() {
        check(
            "10=1 20=s 30=2 310=s 610=NaN 620=3 910=4 920=s",
            expect![[r#"
                300: 2 from 10=1 to 30=2 min 1 max 2 sum 3 increase 1
                600: nothing stale at 310
                900: 2 from 610=NaN to 620=3 min 3 max 3 sum NaN increase NaN
                1200: 1 from 910=4 to 910=4 min 4 max 4 sum 4 increase 0 stale at 920
                --
                3600: 5 from 10=1 to 910=4 min 1 max 4 sum NaN increase 3 stale at 920
            "#]],
        );
    }

    fn any_rows() -> impl Strategy<Value = Vec<Sample>> {
        let value = prop_oneof![
            4 => (0u32..100).prop_map(f64::from),
            1 => any::<u64>().prop_map(f64::from_bits),
            1 => Just(f64::from_bits(STALE_NAN_BITS)),
        ];
        prop::collection::btree_map(-20_000i64..20_000, value, 0..80).prop_map(|rows| {
            let sample = |(at, value)| Sample {
                at: TimestampNs::from_secs(at),
                value,
            };
            rows.into_iter().map(sample).collect()
        })
    }

    proptest! {
        #[test]
        fn windows_come_back_from_their_columns(rows in any_rows()) {
            for windows in [windows_of(&rows), hours_of(&windows_of(&rows))] {
                let columns = std::array::from_fn(|c| column(&windows, c as u32));
                prop_assert_eq!(from_columns(&columns).unwrap(), windows);
            }
        }

        #[test]
        fn any_columns_are_windows_or_refused(
            columns in prop::collection::vec(any_rows(), COLUMNS as usize..=COLUMNS as usize)
        ) {
            let _ = from_columns(&columns.try_into().unwrap());
        }

        #[test]
        fn an_hour_says_what_its_rows_say(rows in any_rows()) {
            for hour in hours_of(&windows_of(&rows)) {
                let inside = |s: &&Sample| Resolution::Hour.end_of(s.at.0) == hour.end.0;
                let all: Vec<&Sample> = rows.iter().filter(inside).collect();
                let values: Vec<f64> = all.iter().map(|s| s.value).filter(|v| !is_stale(*v)).collect();
                prop_assert_eq!(hour.values.map_or(0, |v| v.count as usize), values.len());
                prop_assert_eq!(hour.stale_at, all.last().filter(|s| is_stale(s.value)).map(|s| s.at));
                if let Some(v) = hour.values {
                    let least = values.iter().copied().fold(f64::NAN, f64::min);
                    prop_assert!(least.is_nan() && v.min.is_nan() || least == v.min);
                    prop_assert_eq!(v.last.to_bits(), values[values.len() - 1].to_bits());
                    let small = values.iter().all(|v| v.fract() == 0.0 && v.abs() < 1e6);
                    if small {
                        prop_assert_eq!(v.sum, values.iter().sum::<f64>());
                        let rises = values.windows(2).map(|w| if w[1] < w[0] { w[1] } else { w[1] - w[0] });
                        prop_assert_eq!(v.increase(), rises.sum::<f64>());
                    }
                }
            }
        }
    }
}
