//! In which grain a series is known at each time: by its rows as they came, or by windows of them.
//!
//! Pure: a function of how far back the series can be read and of the longest window that is wanted, never of the rows
//! or the files that exist. So all replicas answer alike, and so do all steps of one query.
//!
//! Rules
//! - Rows stand for themselves where a whole window of them can be read.
//! - Where windows of five minutes and such rows make up an hour, they stand for it; else the hour does, if it can be
//!   read.
//! - A window that stands for its rows stands for all of them: a row that a pin holds inside of it does not count twice.
//!
//! Times are event times in nanoseconds. Where windows stand is told in whole windows, of which the one that ends at
//! `e` holds `e - span + 1 ..= e`.

use crate::aggregate::{FIVE_MINUTES_NS, HOUR_NS, Resolution, Window};
use crate::points::Points;
use crate::retention::{Reach, Spans, is_within, joined};

/// Where windows stand for rows: whole windows, in one resolution at a time.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Grain {
    fives: Spans,
    hours: Spans,
}

/// One series as a read gets it: its rows, and windows where those stand for rows.
#[derive(Clone, Debug, Default)]
pub struct Rolled {
    pub grain: Grain,
    /// Ascending, all of them inside of `grain`.
    pub windows: Vec<Window>,
    /// Whether points that came along are the last samples of windows, the others of which are gone.
    pub has_lasts: bool,
}

impl Rolled {
    /// Nothing was rolled up.
    pub const NOTHING: Self = Self {
        grain: Grain {
            fives: Spans::new_const(),
            hours: Spans::new_const(),
        },
        windows: vec![],
        has_lasts: false,
    };

    pub fn clear(&mut self) {
        *self = Self::NOTHING;
    }
}

/// What of a series is read in which form.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Parts {
    pub grain: Grain,
    /// Rows as they came.
    pub rows: Spans,
    /// Windows of five minutes, and of an hour, of which nothing is read but their last samples.
    pub lasts: [Spans; 2],
}

impl Grain {
    /// With windows of at most `longest_ns`.
    pub(crate) fn of(reach: &Reach, longest_ns: i64) -> Self {
        let rows = reach.rows(false, i64::MIN, i64::MAX);
        let wanted = |resolution: Resolution| match resolution.span_ns() <= longest_ns {
            true => reach.shown(resolution),
            false => Spans::new(),
        };
        let fives = wanted(Resolution::FiveMinutes);
        let fine = joined(rows.iter().chain(&fives).copied());
        let hours = without(&wanted(Resolution::Hour), &inside(&fine, Resolution::Hour));
        let fives = without(&without(&fives, &inside(&rows, Resolution::FiveMinutes)), &hours);
        Self { fives, hours }
    }

    pub fn is_empty(&self) -> bool {
        self.fives.is_empty() && self.hours.is_empty()
    }

    pub(crate) fn spans(&self, resolution: Resolution) -> &Spans {
        match resolution {
            Resolution::FiveMinutes => &self.fives,
            Resolution::Hour => &self.hours,
        }
    }

    /// The last time up to `at` at which one can tell what came before from what came after: the end of the last
    /// window that is over at `at`, where windows stand for rows, else `at`.
    pub fn floor(&self, at: i64) -> i64 {
        for resolution in Resolution::ALL {
            if is_within(self.spans(resolution), at) {
                let end = resolution.end_of(at);
                return if end == at { at } else { end - resolution.span_ns() };
            }
        }
        at
    }
}

impl Parts {
    pub fn of(reach: &Reach, longest_ns: i64, (from, to): (i64, i64)) -> Self {
        let grain = Grain::of(reach, longest_ns);
        let all_rows = reach.rows(false, i64::MIN, i64::MAX);
        let windows = joined(grain.fives.iter().chain(&grain.hours).copied());
        let rows = without(&reach.rows(false, from, to), &windows);
        let lasts = Resolution::ALL.map(|resolution| {
            let known = joined(
                inside(&all_rows, resolution)
                    .into_iter()
                    .chain(around(&windows, resolution)),
            );
            let last = resolution.end_of(to);
            let shown = without(&reach.shown(resolution), &known);
            let wanted = shown.into_iter().filter(|(a, b)| *a <= last && from <= *b);
            wanted.collect()
        });
        Self { grain, rows, lasts }
    }
}

/// Appends the samples that stand for windows at times of `from..=to`.
pub(crate) fn push_lasts(windows: &[Window], (from, to): (i64, i64), out: &mut Points) {
    let samples = windows.iter().flat_map(Window::samples);
    for s in samples.filter(|s| (from..=to).contains(&s.at.0)) {
        out.push(s.at.0, s.value);
    }
}

/// What of `spans` lies in none of `others`.
fn without(spans: &Spans, others: &Spans) -> Spans {
    let mut left = Spans::new();
    for &(a, b) in spans {
        let mut from = Some(a);
        for &(c, d) in others.iter().filter(|(c, d)| *c <= b && a <= *d) {
            let Some(begin) = from else { break };
            if begin < c {
                left.push((begin, c - 1));
            }
            from = d.checked_add(1);
        }
        left.extend(from.filter(|begin| *begin <= b).map(|begin| (begin, b)));
    }
    left
}

/// The whole windows that lie inside of `spans`.
fn inside(spans: &Spans, resolution: Resolution) -> Spans {
    let span = resolution.span_ns();
    let whole = spans.iter().map(|&(a, b)| {
        let start = resolution.end_of(a.saturating_sub(1));
        let end = b.div_euclid(span).saturating_mul(span);
        (start.saturating_add(1), end)
    });
    joined(whole)
}

/// The whole windows that `spans` touch.
fn around(spans: &Spans, resolution: Resolution) -> Spans {
    let span = resolution.span_ns();
    let whole = spans.iter().map(|&(a, b)| {
        let start = resolution.end_of(a).saturating_sub(span);
        (start.saturating_add(1), resolution.end_of(b))
    });
    joined(whole)
}

const _: () = assert!(
    HOUR_NS % FIVE_MINUTES_NS == 0,
    "an hour is made of whole windows of five minutes"
);

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use smallvec::smallvec;

    const MINUTE: i64 = 60_000_000_000;

    /// Of each minute's last nanosecond: `r` rows, `5` and `h` windows, `.` nothing.
    fn drawn(grain: &Grain, rows: &Spans, minutes: std::ops::Range<i64>) -> String {
        let of = |at: i64| match at {
            at if is_within(&grain.fives, at) => '5',
            at if is_within(&grain.hours, at) => 'h',
            at if is_within(rows, at) => 'r',
            _ => '.',
        };
        minutes.map(|m| of((m + 1) * MINUTE)).collect()
    }

    fn span() -> impl Strategy<Value = (i64, i64)> {
        (-400i64..400, 0i64..200).prop_map(|(from, len)| (from * MINUTE + 1, (from + len) * MINUTE))
    }

    fn spans() -> impl Strategy<Value = Spans> {
        prop::collection::vec(span(), 0..4).prop_map(|spans| joined(spans.into_iter()))
    }

    proptest! {
        #[test]
        fn spans_are_taken_apart_as_sets_of_minutes(a in spans(), b in spans(), hour in any::<bool>()) {
            let resolution = if hour { Resolution::Hour } else { Resolution::FiveMinutes };
            let minutes = resolution.span_ns() / MINUTE;
            let (left, whole, touched) = (without(&a, &b), inside(&a, resolution), around(&a, resolution));
            for m in -1_000..1_000i64 {
                let at = m * MINUTE;
                let of_window = || {
                    let end = resolution.end_of(at);
                    (0..minutes).map(move |i| end - i * MINUTE)
                };
                prop_assert_eq!(is_within(&left, at), is_within(&a, at) && !is_within(&b, at));
                prop_assert_eq!(is_within(&whole, at), of_window().all(|at| is_within(&a, at)));
                prop_assert_eq!(is_within(&touched, at), of_window().any(|at| is_within(&a, at)));
            }
        }

        #[test]
        fn no_end_of_time_is_too_far(a in any::<i64>(), b in any::<i64>(), c in any::<i64>(), d in any::<i64>()) {
            let ends = [i64::MIN, i64::MAX, a, b, c, d];
            for (a, b) in ends.iter().flat_map(|a| ends.iter().map(move |b| (*a, *b))) {
                let (one, all) = (joined([(a, b)].into_iter()), smallvec![(i64::MIN, i64::MAX)]);
                prop_assert_eq!(without(&one, &all), Spans::new());
                prop_assert_eq!(without(&one, &Spans::new()), one.clone());
                for resolution in Resolution::ALL {
                    let whole = inside(&one, resolution);
                    prop_assert_eq!(without(&whole, &around(&one, resolution)), Spans::new());
                    prop_assert_eq!(without(&whole, &one), Spans::new());
                }
            }
        }
    }

    mod of_a_series {
        use super::*;
        use crate::retention::testing::reach;
        use expect_test::{Expect, expect};

        /// Minutes since the epoch at which floors stand (the last one that is out), and what pins hold of rows.
        fn check(raw: i64, five: i64, hour: i64, pins: &[(i64, i64, [i64; 3])], longest_ns: i64, expect: Expect) {
            let reach = reach([raw, five, hour], pins);
            let grain = Grain::of(&reach, longest_ns);
            let rows = reach.rows(false, i64::MIN, i64::MAX);
            let lines = (0..5).map(|h| drawn(&grain, &rows, h * 60..(h + 1) * 60) + "\n");
            expect.assert_eq(&lines.collect::<String>());
        }

        fn floors() -> impl Strategy<Value = [i64; 3]> {
            (0i64..20, 0i64..6, 0i64..6).prop_map(|(raw, five, hour)| {
                let raw = raw * 15;
                [raw, raw - five * 15, raw - (five + hour) * 15]
            })
        }

        proptest! {
            #[test]
            fn every_time_has_the_finest_grain_that_holds_all_of_its_window(
                own in floors(),
                pins in prop::collection::vec((0i64..300, 0i64..150, floors()), 0..3),
                longest_ns in prop_oneof![Just(0), Just(FIVE_MINUTES_NS), Just(HOUR_NS)],
            ) {
                let pins: Vec<_> = pins.iter().map(|(from, len, f)| (*from, from + len, *f)).collect();
                let reach = reach(own, &pins);
                let parts = Parts::of(&reach, longest_ns, (i64::MIN, i64::MAX));
                let rows = reach.rows(false, i64::MIN, i64::MAX);
                let is_row = |end: i64, minutes: i64| (0..minutes).all(|m| {
                    is_within(&rows, end - m * MINUTE) && is_within(&rows, end - m * MINUTE - MINUTE + 1)
                });
                let shows = |resolution: Resolution, end: i64| {
                    resolution.span_ns() <= longest_ns && reach.shows(resolution, end)
                };
                for hour in 0..9 {
                    let hour = hour * HOUR_NS;
                    let fives = || (-11..=0).map(|n| hour + n * FIVE_MINUTES_NS);
                    let is_fine = |end: i64| shows(Resolution::FiveMinutes, end) || is_row(end, 5);
                    let by_hour = shows(Resolution::Hour, hour) && !fives().all(is_fine);
                    prop_assert_eq!(is_within(&reach.shown(Resolution::Hour), hour), reach.shows(Resolution::Hour, hour));
                    for end in fives() {
                        let five = Resolution::FiveMinutes;
                        let by_five = !by_hour && !is_row(end, 5) && shows(five, end);
                        prop_assert_eq!(is_within(&reach.shown(five), end), reach.shows(five, end));
                        for at in [end, end - 1, end - MINUTE, end - FIVE_MINUTES_NS + 1] {
                            prop_assert_eq!(is_within(&parts.grain.hours, at), by_hour, "{}", at);
                            prop_assert_eq!(is_within(&parts.grain.fives, at), by_five, "{}", at);
                            let by_row = !by_hour && !by_five && is_within(&rows, at);
                            prop_assert_eq!(is_within(&parts.rows, at), by_row, "{}", at);
                            let floor = match (by_hour, by_five) {
                                (true, _) => at.div_euclid(HOUR_NS) * HOUR_NS,
                                (_, true) => at.div_euclid(FIVE_MINUTES_NS) * FIVE_MINUTES_NS,
                                _ => at,
                            };
                            prop_assert_eq!(parts.grain.floor(at), floor);
                        }
                        let has_last = !by_five && !by_hour && !is_row(end, 5) && reach.shows(five, end);
                        prop_assert_eq!(is_within(&parts.lasts[0], end), has_last);
                    }
                }
            }
        }

        #[test]
        fn rows_then_fives_then_hours() {
            check(
                180,
                120,
                60,
                &[],
                HOUR_NS,
                expect![[r#"
                    ............................................................
                    hhhhhhhhhhhhhhhhhhhhhhhhhhhhhhhhhhhhhhhhhhhhhhhhhhhhhhhhhhhh
                    555555555555555555555555555555555555555555555555555555555555
                    rrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrr
                    rrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrr
                "#]],
            );
        }

        #[test]
        fn windows_that_are_longer_than_wanted_stand_for_nothing() {
            check(
                180,
                120,
                60,
                &[],
                HOUR_NS - 1,
                expect![[r#"
                    ............................................................
                    ............................................................
                    555555555555555555555555555555555555555555555555555555555555
                    rrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrr
                    rrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrr
                "#]],
            );
        }

        #[test]
        fn pinned_rows_give_way_to_the_hours_that_they_lie_in_and_stand_between_windows_of_five_minutes() {
            let pins = [(72, 98, [-60; 3]), (132, 158, [-60; 3])];
            check(
                180,
                120,
                60,
                &pins,
                HOUR_NS,
                expect![[r#"
                    ............................................................
                    hhhhhhhhhhhhhhhhhhhhhhhhhhhhhhhhhhhhhhhhhhhhhhhhhhhhhhhhhhhh
                    555555555555555rrrrrrrrrrrrrrrrrrrr5555555555555555555555555
                    rrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrr
                    rrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrr
                "#]],
            );
            check(
                180,
                120,
                60,
                &pins,
                FIVE_MINUTES_NS,
                expect![[r#"
                    ............................................................
                    ............rrrrrrrrrrrrrrrrrrrrrrrrrr......................
                    555555555555555rrrrrrrrrrrrrrrrrrrr5555555555555555555555555
                    rrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrr
                    rrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrr
                "#]],
            );
        }
    }
}
