//! Functions over a range in which windows stand for samples, in part or wholly.
//!
//! What is equal to the function of the samples themselves (`super::window`), and why:
//! - To the bit: `count_`, `present_`, `min_`, `max_`, `first_`, `last_`, `ts_of_first_`, `ts_of_last_over_time` and
//!   `delta`. Windows keep these values as they were, and the first of equal ones wins here as there.
//! - `rate` and `increase`: to the bit where what resets took away adds up exactly, which it does for whole numbers
//!   below 2^53 and for one reset; else up to the last bits, since resets are added in the order of time here, and in
//!   eight lanes there.
//! - `sum_` and `avg_over_time`: to the bit where sums are exact, as for whole numbers; else up to the rounding of plain
//!   additions inside of a window. The order is fixed: the sums of windows in the order of time, compensated; then the
//!   rows, in eight lanes. Only a sum that overflows inside of a window is infinite where the mean would not be.
//! - `resets` and `changes`: where windows tell. One or two samples do; a window of one value has no changes; one without
//!   negative values that lost nothing has no resets. Else the value is the least that it can be, and says so.

use super::window::{self, Extent, Window, extrapolated};
use crate::gather::{Cell, Mean, Sum, canonical};
use hindcast_model::TimestampNs;
use hindcast_storage::read::Values;

/// What lies in one range: at least one window, and rows.
pub struct Parts<'a> {
    /// With their ends in milliseconds, ascending.
    pub windows: &'a [(i64, Values)],
    /// Rows between them; none lies inside of a window. The frame is that of both.
    pub rows: Window<'a>,
}

/// A value of a function of windows.
pub struct Told {
    pub value: f64,
    /// Windows do not tell exactly; it may be more.
    pub is_least: bool,
}

pub type Kernel = fn(&Parts) -> Told;

/// The kernel of a function, by its name. `None`: it needs all samples.
pub fn kernel(name: &str) -> Option<Kernel> {
    Some(match name {
        "rate" => |p| exactly(extrapolated(&p.extent(), window::RATE)),
        "increase" => |p| exactly(extrapolated(&p.extent(), window::INCREASE)),
        "delta" => |p| exactly(extrapolated(&p.extent(), window::DELTA)),
        "resets" => |p| p.events(resets_inside, window::is_reset),
        "changes" => |p| p.events(changes_inside, window::is_change),
        "sum_over_time" => |p| exactly(p.sum()),
        "avg_over_time" => |p| exactly(p.mean()),
        "min_over_time" => |p| exactly(canonical(p.whole().min)),
        "max_over_time" => |p| exactly(canonical(p.whole().max)),
        "count_over_time" => |p| exactly(p.whole().count as f64),
        "present_over_time" => |_| exactly(1.0),
        "last_over_time" => |p| exactly(p.whole().last),
        "first_over_time" => |p| exactly(p.whole().first),
        "ts_of_first_over_time" => |p| exactly(p.whole().first_at.as_ms() as f64 / 1000.0),
        "ts_of_last_over_time" => |p| exactly(p.whole().last_at.as_ms() as f64 / 1000.0),
        _ => return None,
    })
}

fn exactly(value: f64) -> Told {
    Told { value, is_least: false }
}

/// How often something happened in a window, as far as that tells.
struct Tally {
    times: u64,
    is_least: bool,
}

impl Parts<'_> {
    /// Windows and rows in the order of time, each row as a window of its own.
    fn in_order(&self) -> impl Iterator<Item = Values> {
        let (mut windows, mut row) = (self.windows.iter().map(|(_, v)| *v).peekable(), 0);
        std::iter::from_fn(move || {
            let at = self.rows.times.get(row);
            let is_window = windows
                .peek()
                .is_some_and(|w| at.is_none_or(|at| w.last_at.as_ms() < *at));
            if is_window {
                return windows.next();
            }
            let value = Values::of_row(TimestampNs::from_ms(*at?), self.rows.values[row]);
            row += 1;
            Some(value)
        })
    }

    fn whole(&self) -> Values {
        let whole = self.in_order().reduce(|a, b| a.then(&b));
        whole.expect("there is a window")
    }

    fn extent(&self) -> Extent {
        let whole = self.whole();
        Extent {
            count: whole.count as usize,
            first: whole.first,
            last: whole.last,
            first_ms: whole.first_at.as_ms(),
            last_ms: whole.last_at.as_ms(),
            lost: whole.resets,
            at: self.rows.at,
            range_ms: self.rows.range_ms,
        }
    }

    fn sum(&self) -> f64 {
        let mut total = Sum::default();
        self.windows.iter().for_each(|(_, w)| total.add(w.sum));
        if !self.rows.values.is_empty() {
            total.merge(&window::sum_in_lanes(self.rows.values.iter().copied()));
        }
        total.value()
    }

    fn mean(&self) -> f64 {
        let mut total = Mean::default();
        self.windows.iter().for_each(|(_, w)| total.add_sum(w.sum, w.count));
        if !self.rows.values.is_empty() {
            total.merge(&window::mean_in_lanes(self.rows.values));
        }
        total.value().unwrap_or(f64::NAN)
    }

    fn events(&self, inside: fn(&Values) -> Tally, between: fn(f64, f64) -> bool) -> Told {
        let (mut times, mut is_least) = (0, false);
        let mut before: Option<f64> = None;
        for part in self.in_order() {
            let tally = inside(&part);
            times += tally.times + u64::from(before.is_some_and(|before| between(before, part.first)));
            is_least |= tally.is_least;
            before = Some(part.last);
        }
        Told {
            value: times as f64,
            is_least,
        }
    }
}

fn resets_inside(w: &Values) -> Tally {
    let (times, is_least) = match w.count {
        ..=1 => (0, false),
        2 => (u64::from(window::is_reset(w.first, w.last)), false),
        // Each reset takes away the value before it.
        _ => (u64::from(w.resets != 0.0), w.resets != 0.0 || w.min < 0.0),
    };
    Tally { times, is_least }
}

fn changes_inside(w: &Values) -> Tally {
    let is_change = window::is_change(w.first, w.last);
    // The least and the greatest leave NaNs out, the sum does not.
    let is_one_value = w.min.is_nan() || w.min == w.max && !w.sum.is_nan();
    let (times, is_least) = match w.count {
        ..=1 => (0, false),
        2 => (u64::from(is_change), false),
        _ if is_one_value => (0, false),
        // There and back.
        _ => (if is_change { 1 } else { 2 }, true),
    };
    Tally { times, is_least }
}
