//! What is made of a series where it lies: a selector or a function of a window becomes one value per step, so that
//! nobody ever holds the samples of all series at once.
//!
//! Promise: the values depend on the series' samples and the reduction only, to the bit; not on who computes them, on
//! what was computed before in the same buffers, or on how the samples were stored.
//!
//! **Windows.** Where samples were rolled up, functions that can do with windows take those instead of rows. A range
//! `(a, b]` then goes from the last bound of a window up to `a` to the last one up to `b`, and the function has the
//! value that PromQL gives it at the one over what lies between them. So a window counts whole, in the range in which it
//! ends; ranges that adjoin count every sample once; and a range whose ends are bounds of windows is the range that was
//! asked for. Ends that lie where rows are kept stay where they are.

use crate::column::{ABSENT, Steps, is_absent};
use crate::eval::rolled::{self, Parts};
use crate::eval::window::{Kernel, Reaches, Stretch, Window, lost_to_resets};
use crate::plan::When;
use crate::shards::{Columns, ColumnsRequest, NativeSeries, OldForms, SeriesColumn};
use hindcast_model::Labels;
use hindcast_promql::Span;
use hindcast_storage::VisitedSeries;
use hindcast_storage::points::Points;
use hindcast_storage::read::{Rolled, Values};
use std::collections::{HashMap, HashSet};
use std::ops::{ControlFlow, Range};

/// How samples become one value per step.
#[derive(Clone, Debug)]
pub struct Reduction {
    pub how: How,
    pub steps: Steps,
    pub when: When,
}

#[derive(Clone, Debug)]
pub enum How {
    /// The newest sample in `(t - lookback, t]`, unless it is the staleness marker; or its time in seconds.
    Newest { lookback_ms: i64, times: bool },
    /// A function of the samples in `(t - range, t]`, staleness markers aside.
    Window {
        name: &'static str,
        /// Of the range in the query, for what is said about it.
        span: Span,
        kernel: Kernel,
        /// The same function where windows stand for samples. `None`: it needs the samples.
        of_windows: Option<rolled::Kernel>,
        /// When the function is one that stretches a difference; the kernel then gives the same, one window at a time.
        stretch: Option<Stretch>,
        range_ms: i64,
        /// Scalar arguments: one per step, or none.
        params: [Vec<f64>; 2],
    },
}

impl Reduction {
    /// The longest windows that may stand for samples, in nanoseconds: none is longer than the range.
    pub fn longest_window_ns(&self) -> i64 {
        match self.how {
            How::Window {
                of_windows: Some(_),
                range_ms,
                ..
            } => range_ms.saturating_mul(MS_NS),
            _ => 0,
        }
    }
}

const MS_NS: i64 = 1_000_000;

/// The last nanosecond (or the millisecond, of times that are such) of a millisecond.
fn last_of<const PER_MS: i64>(ms: i64) -> i64 {
    let last = i128::from(ms) * i128::from(PER_MS) + i128::from(PER_MS - 1);
    last.clamp(i64::MIN.into(), i64::MAX.into()) as i64
}

fn to_ms<const PER_MS: i64>(at: i64) -> i64 {
    at.div_euclid(PER_MS)
}

/// Computes reductions, one series after the other. Keeps its buffers in between.
#[derive(Default)]
pub struct Reducer {
    frames: Frames,
    /// Those of samples that are no staleness markers; empty while there is no marker.
    live_times: Vec<i64>,
    live_values: Vec<f64>,
    /// Milliseconds, where windows stand beside samples.
    times_ms: Vec<i64>,
    /// Where a value is lower than the one before.
    falls: Vec<usize>,
    /// The first and the last value of each window.
    ends: (Vec<f64>, Vec<f64>),
    /// With their ends in milliseconds.
    windows: Vec<(i64, Values)>,
    forms: OldForms,
    out: Vec<f64>,
}

impl Reducer {
    /// Of samples as shards have them. Empty: there is no value at any step.
    pub fn points(&mut self, r: &Reduction, points: &Points) -> Vec<f64> {
        self.rolled(r, points, &Rolled::NOTHING).0
    }

    /// As `points`, with windows in place of some of the samples.
    pub fn rolled(&mut self, r: &Reduction, points: &Points, rolled: &Rolled) -> (Vec<f64>, OldForms) {
        self.windows.clear();
        self.windows
            .extend(rolled.windows.iter().filter_map(|w| Some((w.end.as_ms(), w.values?))));
        self.forms = OldForms {
            lasts: rolled.has_lasts,
            ..OldForms::default()
        };
        let column = self.of::<MS_NS>(r, &points.times, &points.values, rolled);
        (column, self.forms)
    }

    /// Of times in milliseconds, ascending, and their values. Empty: there is no value at any step.
    pub fn samples(&mut self, r: &Reduction, times: &[i64], values: &[f64]) -> Vec<f64> {
        self.windows.clear();
        self.of::<1>(r, times, values, &Rolled::NOTHING)
    }

    /// Of times of which so many make a millisecond.
    fn of<const PER_MS: i64>(&mut self, r: &Reduction, times: &[i64], values: &[f64], rolled: &Rolled) -> Vec<f64> {
        self.out.clear();
        match &r.how {
            How::Newest {
                lookback_ms,
                times: of_times,
            } => self.newest::<PER_MS>(r, *lookback_ms, *of_times, times, values),
            // Without a branch: hardly any series has one.
            How::Window { .. } if values.iter().fold(false, |any, v| any | is_absent(*v)) => {
                let (mut live_times, mut live_values) = (
                    std::mem::take(&mut self.live_times),
                    std::mem::take(&mut self.live_values),
                );
                live_times.clear();
                live_values.clear();
                for (t, v) in times.iter().zip(values).filter(|(_, v)| !is_absent(**v)) {
                    live_times.push(*t);
                    live_values.push(*v);
                }
                self.windows::<PER_MS>(r, &live_times, &live_values, rolled);
                (self.live_times, self.live_values) = (live_times, live_values);
            }
            How::Window { .. } => self.windows::<PER_MS>(r, times, values, rolled),
        }
        if self.out.iter().all(|v| is_absent(*v)) {
            return vec![];
        }
        self.out.clone()
    }

    fn newest<const PER_MS: i64>(
        &mut self,
        r: &Reduction,
        lookback_ms: i64,
        of_times: bool,
        times: &[i64],
        values: &[f64],
    ) {
        let framed = self
            .frames
            .see::<PER_MS>(Framing::of(r, lookback_ms, Wants::Places), times);
        self.out.extend(framed.frames.iter().map(|frame| {
            let newest = (frame.low < frame.high).then(|| frame.high() - 1);
            match newest.filter(|i| !is_absent(values[*i])) {
                Some(i) if of_times => to_ms::<PER_MS>(times[i]) as f64 / 1000.0,
                Some(i) => values[i],
                None => ABSENT,
            }
        }));
    }

    fn windows<const PER_MS: i64>(&mut self, r: &Reduction, times: &[i64], values: &[f64], rolled: &Rolled) {
        let How::Window {
            kernel,
            stretch,
            range_ms,
            params,
            ..
        } = &r.how
        else {
            return;
        };
        if !rolled.grain.is_empty() || !self.windows.is_empty() {
            let mut times_ms = std::mem::take(&mut self.times_ms);
            times_ms.clear();
            times_ms.extend(times.iter().map(|t| to_ms::<PER_MS>(*t)));
            self.over_windows(r, &times_ms, values, rolled);
            self.times_ms = times_ms;
            return;
        }
        if let Some(stretch) = *stretch {
            return self.stretched::<PER_MS>(r, stretch, *range_ms, times, values);
        }
        let framed = self
            .frames
            .see::<PER_MS>(Framing::of(r, *range_ms, Wants::Times), times);
        let steps = r.steps.iter().zip(&framed.frames).enumerate();
        self.out.extend(steps.map(|(i, (now, frame))| {
            kernel(&Window {
                times: &framed.times_ms[frame.range()],
                values: &values[frame.range()],
                at: r.when.at(now),
                now,
                range_ms: *range_ms,
                params: params_at(params, i),
            })
        }));
    }

    /// `rate`, `increase` or `delta` in the frames of this series' times.
    fn stretched<const PER_MS: i64>(
        &mut self,
        r: &Reduction,
        stretch: Stretch,
        range_ms: i64,
        times: &[i64],
        values: &[f64],
    ) {
        let framed = self.frames.see::<PER_MS>(Framing::of(r, range_ms, Wants::Reach), times);
        self.falls.clear();
        let pairs = || values.windows(2);
        // Most counters never fall, and one pass without a branch tells.
        if stretch.counter && pairs().fold(false, |any, p| any | (p[1] < p[0])) {
            let falls = pairs().enumerate().filter(|(_, p)| p[1] < p[0]);
            self.falls.extend(falls.map(|(i, _)| i + 1));
        }
        let (frames, falls) = (&framed.frames, &self.falls);
        if falls.is_empty() {
            let (firsts, lasts) = &mut self.ends;
            firsts.resize(frames.len(), 0.0);
            lasts.resize(frames.len(), 0.0);
            let value = |i: usize| values.get(i).copied().unwrap_or_default();
            for ((first, last), frame) in firsts.iter_mut().zip(lasts.iter_mut()).zip(frames) {
                (*first, *last) = (value(frame.low()), value(frame.high().wrapping_sub(1)));
            }
            framed
                .reaches
                .stretched((firsts, lasts), range_ms, stretch, &mut self.out);
            return;
        }
        let mut fall = 0;
        self.out.extend(frames.iter().enumerate().map(|(i, frame)| {
            let (low, high) = (frame.low(), frame.high());
            if high - low < 2 {
                return ABSENT;
            }
            while falls.get(fall).is_some_and(|f| *f <= low) {
                fall += 1;
            }
            let falls = falls.get(fall).is_some_and(|f| *f < high);
            let lost = if falls { lost_to_resets(&values[low..high]) } else { 0.0 };
            let reach = framed.reaches.get(i);
            reach.stretched((values[low], values[high - 1]), lost, range_ms, stretch)
        }));
    }

    /// With windows in place of some of the samples, or with rows that lie between such.
    fn over_windows(&mut self, r: &Reduction, times: &[i64], values: &[f64], rolled: &Rolled) {
        let How::Window {
            kernel,
            of_windows,
            range_ms,
            params,
            ..
        } = &r.how
        else {
            return;
        };
        let bound = |at: i64| match rolled.grain.is_empty() {
            true => at,
            false => rolled.grain.floor(at.saturating_mul(MS_NS)).div_euclid(MS_NS),
        };
        let (mut low, mut high) = (0, 0);
        let (mut old_low, mut old_high) = (0, 0);
        for (i, now) in r.steps.iter().enumerate() {
            let at = r.when.at(now);
            let from = at.saturating_sub(*range_ms);
            high = after(times, high, at);
            low = after(times, low, from);
            let ended = |upto: i64, from: usize| {
                let rest = &self.windows[from..];
                from + rest.iter().take_while(|(end, _)| *end <= upto).count()
            };
            (old_low, old_high) = (ended(from, old_low), ended(at, old_high));
            let (from, at) = (bound(from), bound(at));
            let window = Window {
                times: &times[low..high],
                values: &values[low..high],
                at,
                now,
                range_ms: if rolled.grain.is_empty() {
                    *range_ms
                } else {
                    at.saturating_sub(from)
                },
                params: params_at(params, i),
            };
            self.out.push(match of_windows {
                Some(of_windows) if old_low < old_high => {
                    let windows = &self.windows[old_low..old_high];
                    let answer = of_windows(&Parts { windows, rows: window });
                    self.forms.windows = true;
                    self.forms.least |= answer.is_least;
                    answer.value
                }
                _ => kernel(&window),
            });
        }
    }
}

fn params_at(params: &[Vec<f64>; 2], step: usize) -> [f64; 2] {
    [0, 1].map(|p| params[p].get(step).copied().unwrap_or(0.0))
}

/// What frames are made for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Framing {
    steps: Steps,
    when: When,
    range_ms: i64,
    wants: Wants,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Wants {
    /// Which samples lie in each window.
    Places,
    /// Their times in milliseconds, too.
    Times,
    /// How far they reach, for a function that stretches a difference.
    Reach,
}

impl Framing {
    fn of(r: &Reduction, range_ms: i64, wants: Wants) -> Self {
        Self {
            steps: r.steps,
            when: r.when,
            range_ms,
            wants,
        }
    }
}

/// Frames of different times that are kept may take so much, about; those of one series always fit.
const FRAMED_BYTES_MAX: usize = 4 << 20;

/// Which of a series' samples lie in the window of each step. Series of one target share their times, but files have series
/// by their names, each target once for every name: so frames are kept of all targets that fit.
#[derive(Default)]
struct Frames {
    of: Option<Framing>,
    framed: Vec<Framed>,
    /// By a few of their times; the last that had these.
    places: HashMap<Print, usize>,
    /// The one seen last: mostly the next one's as well.
    last: usize,
    bytes: usize,
    /// To work with.
    spaces: Vec<f64>,
}

/// How many times, the first, one in the middle and the last.
type Print = (usize, [i64; 3]);

/// Of the times of one target.
#[derive(Default)]
struct Framed {
    /// As they were given.
    times: Vec<i64>,
    frames: Vec<Frame>,
    /// As many as frames, where they are wanted.
    reaches: Reaches,
    /// Likewise, as many as times.
    times_ms: Vec<i64>,
}

/// Places of samples, of which one series has less than four billion: what is kept of each step counts.
struct Frame {
    low: u32,
    high: u32,
}

impl Frame {
    fn low(&self) -> usize {
        self.low as usize
    }

    fn high(&self) -> usize {
        self.high as usize
    }

    fn range(&self) -> Range<usize> {
        self.low()..self.high()
    }
}

impl Frames {
    /// The frames of ascending times, made unless they are there.
    fn see<const PER_MS: i64>(&mut self, framing: Framing, times: &[i64]) -> &Framed {
        if self.of != Some(framing) {
            self.of = Some(framing);
            self.forget();
        }
        if self.framed.get(self.last).is_none_or(|f| f.times != times) {
            self.last = self.find::<PER_MS>(framing, times);
        }
        &self.framed[self.last]
    }

    fn forget(&mut self) {
        self.places.clear();
        self.framed.clear();
        self.bytes = 0;
    }

    fn find<const PER_MS: i64>(&mut self, framing: Framing, times: &[i64]) -> usize {
        let time = |i: usize| times.get(i).copied().unwrap_or_default();
        let ends = [time(0), time(times.len() / 2), time(times.len().saturating_sub(1))];
        let print = (times.len(), ends);
        if let Some(&place) = self.places.get(&print) {
            if self.framed[place].times != times {
                self.framed[place].make::<PER_MS>(framing, times, &mut self.spaces);
            }
            return place;
        }
        let bytes = Framed::bytes(framing, times.len());
        if self.bytes + bytes > FRAMED_BYTES_MAX {
            self.forget();
        }
        self.bytes += bytes;
        let place = self.framed.len();
        let mut framed = Framed::default();
        framed.make::<PER_MS>(framing, times, &mut self.spaces);
        self.framed.push(framed);
        self.places.insert(print, place);
        place
    }
}

impl Framed {
    /// What frames of so many times take.
    fn bytes(framing: Framing, times: usize) -> usize {
        let per_step = match framing.wants {
            Wants::Reach => size_of::<Frame>() + Reaches::BYTES_OF_ONE,
            Wants::Places | Wants::Times => size_of::<Frame>(),
        };
        let of_itself = size_of::<Self>() + size_of::<(Print, usize)>();
        of_itself + framing.steps.count.saturating_mul(per_step) + times.saturating_mul(2 * size_of::<i64>())
    }

    fn make<const PER_MS: i64>(&mut self, framing: Framing, times: &[i64], spaces: &mut Vec<f64>) {
        let Framing {
            steps,
            when,
            range_ms,
            wants,
        } = framing;
        self.times.clear();
        self.times.extend_from_slice(times);
        self.frames.clear();
        self.times_ms.clear();
        if wants == Wants::Times {
            self.times_ms.extend(times.iter().map(|t| to_ms::<PER_MS>(*t)));
        }
        let (mut low, mut high) = (0, 0);
        // Where windows are whole steps long, one begins where another ended.
        let steps_back = match when.fixed.is_none() && range_ms > 0 && range_ms % steps.step == 0 {
            true => usize::try_from(range_ms / steps.step).unwrap_or(usize::MAX),
            false => usize::MAX,
        };
        self.frames.reserve(steps.count);
        // What is scraped regularly has as many samples in one step as in the one before.
        let mut stride = 0;
        for (i, now) in steps.iter().enumerate() {
            let at = when.at(now);
            let upto = last_of::<PER_MS>(at);
            let before = high;
            high = match before + stride {
                guess if is_after(times, guess, upto) => guess,
                _ => after(times, before, upto),
            };
            stride = high - before;
            low = match i.checked_sub(steps_back) {
                Some(before) => self.frames[before].high(),
                None => after(times, low, last_of::<PER_MS>(at.saturating_sub(range_ms))),
            };
            self.frames.push(Frame {
                low: low as u32,
                high: high as u32,
            });
        }
        if wants == Wants::Reach {
            // Where there is no sample, any time will do.
            let ms = |i: usize| times.get(i).map_or(0, |at| to_ms::<PER_MS>(*at));
            let windows = self.frames.iter().enumerate().map(|(i, frame)| {
                let ends = (ms(frame.low()), ms(frame.high().saturating_sub(1)));
                (frame.range().len(), ends, when.at(steps.at(i)))
            });
            self.reaches.set(windows, range_ms, spaces);
        }
    }
}

/// Whether that is the place of the first of ascending times after `at`.
fn is_after(times: &[i64], place: usize, at: i64) -> bool {
    let ends_before = place == 0 || times.get(place - 1).is_some_and(|t| *t <= at);
    ends_before && times.get(place).is_none_or(|t| *t > at)
}

/// So many samples are looked at one by one.
const NEAR: usize = 6;

/// Of ascending times, the place of the first after `at` that is not before `from`. Looks near `from` first: a step is
/// mostly a few samples.
fn after(times: &[i64], from: usize, at: i64) -> usize {
    let rest = &times[from..];
    if let Some(near) = rest.iter().take(NEAR).position(|t| *t > at) {
        return from + near;
    }
    let mut bound = 1;
    while bound <= rest.len() && rest[bound - 1] <= at {
        bound *= 2;
    }
    let low = bound / 2;
    from + low + rest[low..bound.min(rest.len())].partition_point(|t| *t <= at)
}

/// Makes the columns of one shard from its series as they pass by, within the budget of the query.
pub struct Collector<'a> {
    request: &'a ColumnsRequest,
    reducer: Reducer,
    /// With their ranks.
    found: Vec<(usize, SeriesColumn)>,
    distinct: Distinct,
}

/// Counts the different series of one selector: told apart by their labels once there are as many as it may have.
pub struct Distinct {
    series_max: usize,
    seen: usize,
    labels: Option<HashSet<Labels>>,
}

impl Distinct {
    pub fn new(series_max: usize) -> Self {
        Self {
            series_max,
            seen: 0,
            labels: None,
        }
    }

    /// Another one, after those `before` it. Breaks when there are too many.
    pub fn add<'l>(&mut self, new: &Labels, before: impl Iterator<Item = &'l Labels>) -> ControlFlow<()> {
        self.seen += 1;
        if self.seen > self.series_max {
            let labels = self.labels.get_or_insert_with(|| before.cloned().collect());
            labels.insert(new.clone());
            if labels.len() > self.series_max {
                return ControlFlow::Break(());
            }
        }
        ControlFlow::Continue(())
    }
}

impl<'a> Collector<'a> {
    pub fn new(request: &'a ColumnsRequest) -> Self {
        Self {
            distinct: Distinct::new(request.series.budget.series_max),
            request,
            reducer: Reducer::default(),
            found: vec![],
        }
    }

    /// Breaks when nobody waits for more.
    pub fn take(&mut self, series: VisitedSeries<'_>, points: &Points) -> ControlFlow<()> {
        let VisitedSeries {
            labels,
            owner,
            slot,
            fingerprint,
            rolled,
            rank,
        } = series;
        let budget = &self.request.series.budget;
        if self.request.series.skips(labels) {
            return ControlFlow::Continue(());
        }
        budget.read(points.len() + rolled.windows.len())?;
        let (values, old) = self.reducer.rolled(&self.request.reduction, points, rolled);
        budget.computed(values.len())?;
        let column = SeriesColumn {
            labels: labels.clone(),
            owner,
            slot,
            fingerprint,
            values,
            old,
        };
        self.found.push((rank, column));
        self.distinct.add(labels, self.found.iter().map(|(_, f)| &f.labels))
    }

    /// In the order of ranks, which is that of sums: whoever asked need not put them in order again. Folded, if that is wanted and there
    /// are no native histograms, which are put beside the floats of their series first.
    pub fn finish(mut self, natives: Vec<NativeSeries>) -> Columns {
        self.found.sort_unstable_by_key(|(rank, _)| *rank);
        let columns = self.found.into_iter().map(|(_, column)| column);
        match &self.request.fold {
            Some(fold) if natives.is_empty() => Columns {
                folded: vec![fold.folded(columns.collect(), self.request.reduction.steps.count)],
                ..Columns::default()
            },
            _ => Columns {
                columns: columns.collect(),
                natives,
                folded: vec![],
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::eval::window;
    use hindcast_model::STALE_NAN_BITS;
    use proptest::prelude::*;

    const KERNELS: [&str; 24] = [
        "rate",
        "increase",
        "delta",
        "irate",
        "idelta",
        "resets",
        "changes",
        "deriv",
        "predict_linear",
        "sum_over_time",
        "avg_over_time",
        "min_over_time",
        "max_over_time",
        "count_over_time",
        "present_over_time",
        "last_over_time",
        "first_over_time",
        "stdvar_over_time",
        "stddev_over_time",
        "quantile_over_time",
        "mad_over_time",
        "ts_of_min_over_time",
        "ts_of_max_over_time",
        "log_rate",
    ];

    fn samples() -> impl Strategy<Value = Vec<(i64, f64)>> {
        let value = prop_oneof![
            8 => (0i32..1000).prop_map(f64::from),
            2 => -1e3..1e3f64,
            1 => Just(f64::from_bits(STALE_NAN_BITS)),
            1 => prop_oneof![Just(f64::NAN), Just(f64::INFINITY), Just(-0.0)],
        ];
        prop::collection::vec((1i64..20_000, value), 0..80).prop_map(|gaps| {
            let mut at = -200_000;
            let step = |(gap, v)| {
                at += gap;
                (at, v)
            };
            gaps.into_iter().map(step).collect()
        })
    }

    /// Each window picked out by itself, and no help for the kernel.
    fn naive(r: &Reduction, samples: &[(i64, f64)]) -> Vec<f64> {
        let value = |i: usize| {
            let at = r.when.at(r.steps.at(i));
            match &r.how {
                How::Newest { lookback_ms, times } => match samples.iter().rfind(|(t, _)| *t <= at) {
                    Some((t, v)) if *t > at - lookback_ms && !is_absent(*v) => {
                        if *times {
                            *t as f64 / 1000.0
                        } else {
                            *v
                        }
                    }
                    _ => ABSENT,
                },
                How::Window {
                    kernel,
                    range_ms,
                    params,
                    ..
                } => {
                    let inside = |(t, v): &&(i64, f64)| at - range_ms < *t && *t <= at && !is_absent(*v);
                    let (times, values): (Vec<i64>, Vec<f64>) = samples.iter().filter(inside).copied().unzip();
                    kernel(&Window {
                        times: &times,
                        values: &values,
                        at,
                        now: r.steps.at(i),
                        range_ms: *range_ms,
                        params: params_at(params, i),
                    })
                }
            }
        };
        (0..r.steps.count).map(value).collect()
    }

    fn bits(values: &[f64]) -> Vec<u64> {
        values.iter().map(|v| v.to_bits()).collect()
    }

    #[test]
    fn frames_are_made_once_for_each_target_and_take_what_they_may() {
        let framing = Framing {
            steps: Steps {
                start: 0,
                step: 60_000,
                count: 360,
            },
            when: When::default(),
            range_ms: 300_000,
            wants: Wants::Reach,
        };
        let times = |target: i64| (0..1440).map(|i| i * 15_000 + target).collect::<Vec<i64>>();
        let mut frames = Frames::default();
        let of_two = [0, 1, 0, 1].map(|target| {
            frames.see::<1>(framing, &times(target));
            frames.last
        });
        assert_eq!((of_two, frames.framed.len()), ([0, 1, 0, 1], 2));
        for target in 0..1000 {
            frames.see::<1>(framing, &times(target));
        }
        assert!(frames.bytes <= FRAMED_BYTES_MAX && frames.framed.len() < 200);
        // Of other steps nothing is left.
        let shorter = Framing {
            range_ms: 60_000,
            ..framing
        };
        let at = |frames: &mut Frames, framing| {
            let frame = &frames.see::<1>(framing, &times(7)).frames[100];
            frame.range().len()
        };
        assert_eq!([framing, shorter].map(|f| at(&mut frames, f)), [20, 4]);
        assert_eq!(frames.framed.len(), 1);
    }

    #[test]
    fn times_of_the_same_ends_are_not_taken_for_each_other() {
        let r = Reduction {
            how: How::Newest {
                lookback_ms: 5,
                times: true,
            },
            steps: Steps {
                start: 12,
                step: 1,
                count: 1,
            },
            when: When::default(),
        };
        let mut reducer = Reducer::default();
        let of = |second| [0, second, 20, 31, 40];
        let newest = [10, 11, 10, 11].map(|second| reducer.samples(&r, &of(second), &[1.0; 5]));
        assert_eq!(newest.concat(), [0.010, 0.011, 0.010, 0.011]);
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(200))]
        #[test]
        fn sliding_windows_give_the_bits_of_windows_picked_one_by_one(
            series in prop::collection::vec(samples(), 1..4),
            start in -300_000i64..700_000,
            step in 1i64..60_000,
            range_ms in 1i64..200_000,
            whole_steps in prop::option::of(1i64..6),
            offset_ms in -50_000i64..50_000,
            fixed in prop::option::of(-100_000i64..500_000),
            param in prop_oneof![Just(0.5), Just(-3.0), Just(f64::NAN)],
            beyond_ns in prop_oneof![Just(0), Just(1), Just(999_999)],
        ) {
            let steps = Steps { start, step, count: 25 };
            let range_ms = whole_steps.map_or(range_ms, |n| n * step);
            let when = When { fixed, offset_ms };
            let window = |name: &'static str| How::Window {
                name,
                span: Span::default(),
                kernel: window::kernel(name).unwrap(),
                of_windows: rolled::kernel(name),
                stretch: window::stretch(name),
                range_ms,
                params: [vec![param; 25], vec![]],
            };
            let newest = [false, true].map(|times| How::Newest { lookback_ms: range_ms, times });
            for how in KERNELS.map(window).into_iter().chain(newest) {
                let r = Reduction { how, steps, when };
                // One reducer for all: nothing of a series may be left for the next.
                let mut reducer = Reducer::default();
                // Twice: what is kept of their times must be theirs.
                for samples in series.iter().chain(&series) {
                    let mut points = Points::default();
                    samples.iter().for_each(|(t, v)| points.push(t * 1_000_000 + beyond_ns, *v));
                    let mut wanted = naive(&r, samples);
                    if wanted.iter().all(|v| is_absent(*v)) {
                        wanted.clear();
                    }
                    prop_assert_eq!(bits(&reducer.points(&r, &points)), bits(&wanted), "{:?} {:?}", r, samples);
                }
            }
        }

        #[test]
        fn the_next_time_is_found_from_anywhere_before_it(
            mut times in prop::collection::vec(-50i64..50, 0..40), from in 0usize..40, at in -60i64..60,
        ) {
            times.sort_unstable();
            let wanted = times.partition_point(|t| *t <= at);
            let from = from.min(wanted);
            prop_assert_eq!(after(&times, from, at), wanted);
            for place in 0..times.len() + 2 {
                let is_wanted = place == wanted;
                prop_assert_eq!(is_after(&times, place, at), is_wanted);
            }
        }
    }
}
