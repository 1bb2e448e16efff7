//! Functions over a window of samples: `rate`, `*_over_time` and their kin.
//!
//! Sums over a window run in eight lanes that count from the first sample of the window and are then added in the order
//! of the lanes, so that page bounds and SIMD width never show in a result.

use crate::column::ABSENT;
use crate::gather::{self, Cell, Mean, Sum, canonical};

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
    /// It is known that no value is lower than the one before. False: it is not known.
    pub rises: bool,
}

pub type Kernel = fn(&Window) -> f64;

/// The kernel of a function, by its name. `None`: not a plain function of one window.
pub fn kernel(name: &str) -> Option<Kernel> {
    Some(match name {
        "rate" => |w| stretched(w, true, true),
        "increase" => |w| stretched(w, true, false),
        "delta" => |w| stretched(w, false, false),
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

/// Whether the kernel is faster when it knows whether values fall.
pub fn is_counter(name: &str) -> bool {
    matches!(name, "rate" | "increase")
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
fn lost_to_resets(values: &[f64]) -> f64 {
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

fn stretched(w: &Window, counter: bool, per_second: bool) -> f64 {
    let (Some(&first), Some(&last)) = (w.values.first(), w.values.last()) else {
        return ABSENT;
    };
    let lost = if !counter || w.rises {
        0.0
    } else {
        lost_to_resets(w.values)
    };
    let extent = Extent {
        count: w.values.len(),
        first,
        last,
        first_ms: w.times[0],
        last_ms: w.times[w.times.len() - 1],
        lost,
        at: w.at,
        range_ms: w.range_ms,
    };
    extrapolated(&extent, counter, per_second)
}

/// `rate`, `increase`, `delta`: the difference of the samples, stretched to the ends of the window where the series
/// seems to go on up to them; a counter is not stretched below zero.
pub fn extrapolated(e: &Extent, counter: bool, per_second: bool) -> f64 {
    if e.count < 2 {
        return ABSENT;
    }
    let mut result = e.last - e.first;
    if counter {
        result += e.lost;
    }
    let seconds = |ms: i64| ms as f64 / 1000.0;
    let mut to_start = seconds(e.first_ms - (e.at - e.range_ms));
    let mut to_end = seconds(e.at - e.last_ms);
    let sampled = seconds(e.last_ms - e.first_ms);
    let spacing = sampled / (e.count - 1) as f64;
    let threshold = spacing * 1.1;
    if to_start >= threshold {
        to_start = spacing / 2.0;
    }
    if counter && result > 0.0 && e.first >= 0.0 {
        to_start = to_start.min(sampled * (e.first / result));
    }
    if to_end >= threshold {
        to_end = spacing / 2.0;
    }
    let mut factor = (sampled + to_start + to_end) / sampled;
    if per_second {
        factor /= seconds(e.range_ms);
    }
    canonical(result * factor)
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
