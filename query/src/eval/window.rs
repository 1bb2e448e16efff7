//! Functions over a window of samples: `rate`, `*_over_time` and their kin.
//!
//! Sums over a window run in eight lanes that count from the first sample of the window and are then added in the order
//! of the lanes, so that page bounds and SIMD width never show in a result.

use crate::column::ABSENT;
use crate::gather::{self, Cell, Mean, Sum, canonical};
use fearless_simd::{Level, dispatch};

const LANES: usize = 8;

/// The samples in `(at - range, at]`, without staleness markers.
pub struct Window<'a> {
    pub times: &'a [i64],
    pub values: &'a [f64],
    /// The right end, after `@` and offset.
    pub at: i64,
    /// The instant that is evaluated.
    pub now: i64,
    pub range_ms: i64,
    /// Scalar arguments at this step.
    pub params: [f64; 2],
}

pub type Kernel = fn(&Window) -> f64;

/// The kernel of a function, by its name. `None`: not a plain function of one window.
pub fn kernel(name: &str) -> Option<Kernel> {
    Some(match name {
        "rate" => |w| stretched(w, RATE),
        "increase" => |w| stretched(w, INCREASE),
        "delta" => |w| stretched(w, DELTA),
        "irate" => |w| instant(w, true),
        "idelta" => |w| instant(w, false),
        "resets" => |w| some(w, |w| pairs(w).filter(|(a, b)| is_reset(*a, *b)).count() as f64),
        "changes" => |w| some(w, |w| pairs(w).filter(|(a, b)| is_change(*a, *b)).count() as f64),
        "deriv" => |w| regression(w, *w.times.first().unwrap_or(&0)).map_or(ABSENT, |(slope, _)| slope),
        "predict_linear" => {
            |w| regression(w, w.now).map_or(ABSENT, |(slope, intercept)| slope * w.params[0] + intercept)
        }
        "sum_over_time" => |w| some(w, |w| joined(gather::sums::<LANES>(w.values), w.values.len()).value()),
        "avg_over_time" => |w| some(w, |w| mean(w.values)),
        "min_over_time" => |w| {
            some(w, |w| {
                w.values
                    .iter()
                    .fold(f64::NAN, |m, v| if *v < m || m.is_nan() { *v } else { m })
            })
        },
        "max_over_time" => |w| {
            some(w, |w| {
                w.values
                    .iter()
                    .fold(f64::NAN, |m, v| if *v > m || m.is_nan() { *v } else { m })
            })
        },
        "count_over_time" => |w| some(w, |w| w.values.len() as f64),
        "present_over_time" => |w| some(w, |_| 1.0),
        "last_over_time" => |w| w.values.last().copied().unwrap_or(ABSENT),
        "first_over_time" => |w| w.values.first().copied().unwrap_or(ABSENT),
        "stdvar_over_time" => |w| some(w, |w| variance(w.values)),
        "stddev_over_time" => |w| some(w, |w| variance(w.values).sqrt()),
        "quantile_over_time" => |w| some(w, |w| quantile(w.params[0], &mut w.values.to_vec())),
        "mad_over_time" => |w| some(w, median_distance),
        "double_exponential_smoothing" => smoothed,
        "ts_of_first_over_time" => |w| w.times.first().map_or(ABSENT, |t| *t as f64 / 1000.0),
        "ts_of_last_over_time" => |w| w.times.last().map_or(ABSENT, |t| *t as f64 / 1000.0),
        "ts_of_min_over_time" => |w| time_of(w, |v, best| v <= best),
        "ts_of_max_over_time" => |w| time_of(w, |v, best| v >= best),
        // Over log lines: each sample stands for one line and holds a count or a number of bytes.
        "log_rate" => |w| some(w, |w| sum(w.values.iter().copied()) / (w.range_ms as f64 / 1000.0)),
        _ => return None,
    })
}

/// A kernel of PromQL by a name that came from elsewhere, and the name as the table has it.
pub fn named(name: &str) -> Option<(&'static str, Kernel)> {
    let name = hindcast_promql::functions::find(name)?.name;
    Some((name, kernel(name)?))
}

/// Whether the metric's name stays: the value is still a value of that metric.
pub fn keeps_name(name: &str) -> bool {
    matches!(name, "last_over_time" | "first_over_time")
}

fn some(w: &Window, f: impl Fn(&Window) -> f64) -> f64 {
    if w.values.is_empty() { ABSENT } else { canonical(f(w)) }
}

fn pairs<'a>(w: &Window<'a>) -> impl Iterator<Item = (f64, f64)> + use<'a> {
    w.values.windows(2).map(|p| (p[0], p[1]))
}

pub fn is_reset(before: f64, now: f64) -> bool {
    now < before
}

pub fn is_change(before: f64, now: f64) -> bool {
    before != now && !(before.is_nan() && now.is_nan())
}

fn sum(values: impl Iterator<Item = f64>) -> f64 {
    sum_in_lanes(values).value()
}

/// A compensated sum in lanes.
pub fn sum_in_lanes(values: impl Iterator<Item = f64>) -> Sum {
    let mut lanes = [Sum::default(); LANES];
    let mut used = 0;
    for (i, v) in values.enumerate() {
        lanes[i % LANES].add(v);
        used = used.max(i % LANES + 1);
    }
    joined(lanes, used)
}

/// The lanes of `n` values as one sum.
fn joined(lanes: [Sum; LANES], n: usize) -> Sum {
    let mut total = lanes[0];
    lanes[1..n.clamp(1, LANES)].iter().for_each(|l| total.merge(l));
    total
}

fn mean(values: &[f64]) -> f64 {
    mean_in_lanes(values).value().unwrap_or(f64::NAN)
}

pub fn mean_in_lanes(values: &[f64]) -> Mean {
    let mut lanes = [Mean::default(); LANES];
    for (i, v) in values.iter().enumerate() {
        lanes[i % LANES].add(*v);
    }
    let mut total = lanes[0];
    lanes[1..values.len().clamp(1, LANES)]
        .iter()
        .for_each(|l| total.merge(l));
    total
}

fn variance(values: &[f64]) -> f64 {
    let mean = mean(values);
    sum(values.iter().map(|v| (v - mean) * (v - mean))) / values.len() as f64
}

/// What counter resets took away: the value before each reset, added up in lanes.
pub fn lost_to_resets(values: &[f64]) -> f64 {
    let (before, after) = (&values[..values.len() - 1], &values[1..]);
    let mut lanes = [0.0; LANES];
    for (b, a) in before.chunks(LANES).zip(after.chunks(LANES)) {
        for (lane, (b, a)) in lanes.iter_mut().zip(b.iter().zip(a)) {
            *lane += if a < b { *b } else { 0.0 };
        }
    }
    lanes.iter().sum()
}

/// What `rate`, `increase` and `delta` go by.
pub struct Extent {
    pub count: usize,
    pub first: f64,
    pub last: f64,
    pub first_ms: i64,
    pub last_ms: i64,
    /// What resets took away, for a counter.
    pub lost: f64,
    /// The right end of the window, and its length.
    pub at: i64,
    pub range_ms: i64,
}

fn stretched(w: &Window, stretch: Stretch) -> f64 {
    let (Some(&first), Some(&last)) = (w.values.first(), w.values.last()) else {
        return ABSENT;
    };
    let extent = Extent {
        count: w.values.len(),
        first,
        last,
        first_ms: w.times[0],
        last_ms: w.times[w.times.len() - 1],
        lost: if stretch.counter { lost_to_resets(w.values) } else { 0.0 },
        at: w.at,
        range_ms: w.range_ms,
    };
    extrapolated(&extent, stretch)
}

/// `rate`, `increase`, `delta`: the difference of the samples, stretched to the ends of the window where the series
/// seems to go on up to them; a counter is not stretched below zero.
pub fn extrapolated(e: &Extent, stretch: Stretch) -> f64 {
    match Reach::of(e.count, (e.first_ms, e.last_ms), e.at, e.range_ms) {
        Some(reach) => reach.stretched((e.first, e.last), e.lost, e.range_ms, stretch),
        None => ABSENT,
    }
}

/// Which of the functions that stretch a difference.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stretch {
    /// What resets took away counts as well, and nothing is stretched below zero.
    pub counter: bool,
    pub per_second: bool,
}

/// The functions that stretch a difference, by name.
pub fn stretch(name: &str) -> Option<Stretch> {
    match name {
        "rate" => Some(RATE),
        "increase" => Some(INCREASE),
        "delta" => Some(DELTA),
        _ => None,
    }
}

pub const RATE: Stretch = Stretch {
    counter: true,
    per_second: true,
};
pub const INCREASE: Stretch = Stretch {
    counter: true,
    per_second: false,
};
pub const DELTA: Stretch = Stretch {
    counter: false,
    per_second: false,
};

/// How far the samples of a window reach, and how far a difference of them is stretched, in seconds. Of times alone:
/// series that share theirs share this.
#[derive(Clone, Copy, Debug)]
pub struct Reach {
    sampled: f64,
    to_start: f64,
    to_end: f64,
}

impl Reach {
    /// `None`: fewer than two samples have no difference.
    pub fn of(count: usize, (first_ms, last_ms): (i64, i64), at: i64, range_ms: i64) -> Option<Self> {
        let gaps = [last_ms - first_ms, first_ms - (at - range_ms), at - last_ms];
        (count >= 2).then(|| Self::measured(gaps.map(|ms| ms as f64), (count - 1) as f64))
    }

    /// Of milliseconds between the first and the last sample, before the first, and after the last; and how many spaces are between
    /// samples.
    #[inline(always)]
    fn measured([sampled_ms, before_ms, after_ms]: [f64; 3], spaces: f64) -> Self {
        let sampled = sampled_ms / 1000.0;
        let spacing = sampled / spaces;
        let up_to = |gap: f64| if gap >= spacing * 1.1 { spacing / 2.0 } else { gap };
        Self {
            sampled,
            to_start: up_to(before_ms / 1000.0),
            to_end: up_to(after_ms / 1000.0),
        }
    }

    /// By how much a difference is stretched. `risen`: the part of the difference that the first value is, when nothing may be
    /// stretched below zero.
    #[inline(always)]
    pub fn factor(&self, risen: Option<f64>, range_ms: i64, per_second: bool) -> f64 {
        let to_start = risen.map_or(self.to_start, |r| self.to_start.min(self.sampled * r));
        let factor = (self.sampled + to_start + self.to_end) / self.sampled;
        if per_second {
            factor / (range_ms as f64 / 1000.0)
        } else {
            factor
        }
    }

    /// The function of a window whose first and last values these are; resets took `lost` away.
    #[inline(always)]
    pub fn stretched(&self, (first, last): (f64, f64), lost: f64, range_ms: i64, stretch: Stretch) -> f64 {
        let mut result = last - first;
        let mut risen = None;
        if stretch.counter {
            result += lost;
            risen = (result > 0.0 && first >= 0.0).then(|| first / result);
        }
        canonical(result * self.factor(risen, range_ms, stretch.per_second))
    }
}

/// The reach of each window of a query, part by part, so that what is made of them becomes vector code.
#[derive(Default)]
pub struct Reaches {
    sampled: Vec<f64>,
    to_start: Vec<f64>,
    to_end: Vec<f64>,
    /// Windows that have too little to stretch, ascending.
    gaps: Vec<usize>,
}

impl Reaches {
    /// Gaps aside, which few have.
    pub const BYTES_OF_ONE: usize = 3 * size_of::<f64>();

    /// So many windows, each by the number of its samples, the times of its first and last one, and its end. `spaces` is memory to
    /// work with.
    pub fn set(
        &mut self,
        windows: impl ExactSizeIterator<Item = (usize, (i64, i64), i64)>,
        range_ms: i64,
        spaces: &mut Vec<f64>,
    ) {
        for part in [&mut self.sampled, &mut self.to_start, &mut self.to_end, spaces] {
            part.resize(windows.len(), 0.0);
        }
        self.gaps.clear();
        let starts_and_ends = self.to_start.iter_mut().zip(&mut self.to_end);
        let parts = self.sampled.iter_mut().zip(starts_and_ends).zip(spaces.iter_mut());
        for (i, (part, (count, (first_ms, last_ms), at))) in parts.zip(windows).enumerate() {
            let ((sampled, (to_start, to_end)), spaces) = part;
            if count < 2 {
                self.gaps.push(i);
            }
            // Saturating for the ends of windows that have no sample; where there are some, nothing is near the bounds.
            *sampled = (last_ms - first_ms) as f64;
            *to_start = first_ms.saturating_sub(at.saturating_sub(range_ms)) as f64;
            *to_end = at.saturating_sub(last_ms) as f64;
            *spaces = count as f64 - 1.0;
        }
        let level = Level::new();
        dispatch!(level, _simd => self.measure(spaces));
    }

    #[inline(always)]
    fn measure(&mut self, spaces: &[f64]) {
        let windows = self.sampled.iter_mut().zip(&mut self.to_start).zip(&mut self.to_end);
        for (((sampled, to_start), to_end), spaces) in windows.zip(spaces) {
            let reach = Reach::measured([*sampled, *to_start, *to_end], *spaces);
            (*sampled, *to_start, *to_end) = (reach.sampled, reach.to_start, reach.to_end);
        }
    }

    pub fn get(&self, i: usize) -> Reach {
        Reach {
            sampled: self.sampled[i],
            to_start: self.to_start[i],
            to_end: self.to_end[i],
        }
    }

    /// What [`Reach::stretched`] gives for the first and last values of all windows, where no value is lower than the one before:
    /// appended to `out`, with absence for the gaps, whose ends may be anything.
    pub fn stretched(&self, ends: (&[f64], &[f64]), range_ms: i64, stretch: Stretch, out: &mut Vec<f64>) {
        let start = out.len();
        out.resize(start + self.sampled.len(), 0.0);
        let level = Level::new();
        dispatch!(level, _simd => self.stretch(ends, range_ms, stretch, &mut out[start..]));
        for gap in &self.gaps {
            out[start + gap] = ABSENT;
        }
    }

    #[inline(always)]
    fn stretch(&self, (firsts, lasts): (&[f64], &[f64]), range_ms: i64, stretch: Stretch, out: &mut [f64]) {
        let reaches = self.sampled.iter().zip(&self.to_start).zip(&self.to_end);
        for ((reach, (first, last)), out) in reaches.zip(firsts.iter().zip(lasts)).zip(out) {
            let ((sampled, to_start), to_end) = reach;
            let reach = Reach {
                sampled: *sampled,
                to_start: *to_start,
                to_end: *to_end,
            };
            *out = reach.stretched((*first, *last), 0.0, range_ms, stretch);
        }
    }
}

/// `irate`, `idelta`: of the last two samples.
fn instant(w: &Window, rate: bool) -> f64 {
    let n = w.values.len();
    if n < 2 {
        return ABSENT;
    }
    let (before, last) = (w.values[n - 2], w.values[n - 1]);
    let ms = w.times[n - 1] - w.times[n - 2];
    if ms == 0 {
        return ABSENT;
    }
    // After a reset the counter has risen from zero.
    let rise = if rate && last < before { last } else { last - before };
    canonical(if rate { rise / (ms as f64 / 1000.0) } else { rise })
}

/// Slope per second and value at `origin` of the least-squares line. `None`: fewer than two samples.
fn regression(w: &Window, origin: i64) -> Option<(f64, f64)> {
    if w.values.len() < 2 {
        return None;
    }
    let y0 = w.values[0];
    if w.values.iter().all(|v| *v == y0) {
        return Some(if y0.is_infinite() {
            (f64::NAN, f64::NAN)
        } else {
            (0.0, y0)
        });
    }
    let n = w.values.len() as f64;
    let x = || w.times.iter().map(|t| (t - origin) as f64 / 1000.0);
    let (sx, sy) = (sum(x()), sum(w.values.iter().copied()));
    let sxy = sum(x().zip(w.values).map(|(x, y)| x * y));
    let sxx = sum(x().map(|x| x * x));
    let slope = (sxy - sx * sy / n) / (sxx - sx * sx / n);
    Some((canonical(slope), canonical(sy / n - slope * sx / n)))
}

/// NaN is the smallest value.
pub fn order(a: f64, b: f64) -> std::cmp::Ordering {
    a.partial_cmp(&b).unwrap_or_else(|| b.is_nan().cmp(&a.is_nan()))
}

/// Between the two nearest values, in proportion. Sorts `values`.
pub fn quantile(q: f64, values: &mut [f64]) -> f64 {
    if values.is_empty() || q.is_nan() {
        return f64::NAN;
    }
    if q < 0.0 {
        return f64::NEG_INFINITY;
    }
    if q > 1.0 {
        return f64::INFINITY;
    }
    values.sort_by(|a, b| order(*a, *b));
    let last = values.len() - 1;
    let rank = q * last as f64;
    let lower = (rank.floor() as usize).min(last);
    let upper = (lower + 1).min(last);
    let weight = rank - rank.floor();
    canonical(values[lower] * (1.0 - weight) + values[upper] * weight)
}

fn median_distance(w: &Window) -> f64 {
    let median = quantile(0.5, &mut w.values.to_vec());
    let mut distances: Vec<f64> = w.values.iter().map(|v| (v - median).abs()).collect();
    quantile(0.5, &mut distances)
}

fn time_of(w: &Window, better: fn(f64, f64) -> bool) -> f64 {
    let mut best: Option<(f64, i64)> = None;
    for (v, t) in w.values.iter().zip(w.times) {
        if best.is_none_or(|(b, _)| b.is_nan() || better(*v, b)) {
            best = Some((*v, *t));
        }
    }
    best.map_or(ABSENT, |(_, t)| t as f64 / 1000.0)
}

/// Holt's linear smoothing; `params` are the factors for level and trend.
fn smoothed(w: &Window) -> f64 {
    let [level_factor, trend_factor] = w.params;
    if w.values.len() < 2 {
        return ABSENT;
    }
    let (mut before, mut level) = (0.0, w.values[0]);
    let mut trend = w.values[1] - w.values[0];
    for (i, v) in w.values.iter().enumerate().skip(1) {
        if i > 1 {
            trend = trend_factor * (level - before) + (1.0 - trend_factor) * trend;
        }
        let next = level_factor * v + (1.0 - level_factor) * (level + trend);
        (before, level) = (level, next);
    }
    canonical(level)
}
