//! Native histograms where samples become values: functions of windows in which there are some, and their sums.
//!
//! Pure, and as Prometheus 3 has it: a function that knows floats only passes histograms over and says so; one that knows both has no
//! value where both are in one window.

use super::window::{self, Reach, Stretch, Window};
use super::{Meter, Notes, at};
use crate::column::{Column, Natives, Point, Raw, is_absent};
use crate::gather::{Cell, Mean, Total};
use crate::reduce::{How, Reduction};
use hindcast_model::Histogram;
use hindcast_model::histogram::{Hint, Layout, MixedSchemas};
use hindcast_promql::{BinaryOp, Span};
use std::collections::BTreeMap;
use std::sync::Arc;

/// What is said of what was found, with its place in the query.
pub struct Remarks<'n> {
    notes: &'n mut Notes,
    metric: &'n str,
    span: Span,
}

impl<'n> Remarks<'n> {
    pub fn new(notes: &'n mut Notes, metric: &'n str, span: Span) -> Self {
        Self { notes, metric, span }
    }

    fn warn(&mut self, text: &str) {
        self.notes.insert(format!("PromQL warning: {text} {}", at(self.span)));
    }

    fn info(&mut self, text: &str) {
        self.notes.insert(format!("PromQL info: {text} {}", at(self.span)));
    }

    fn mixed_kinds(&mut self) {
        self.warn(&format!(
            "encountered a mix of histograms and floats for metric name {:?}",
            self.metric
        ));
    }

    pub fn mixed_schemas(&mut self) {
        self.warn(&format!(
            "vector contains a mix of histograms with exponential and custom buckets schemas for metric name {:?}",
            self.metric
        ));
    }

    fn not_counter(&mut self) {
        self.warn(&format!(
            "this native histogram metric is not a counter: {:?}",
            self.metric
        ));
    }

    fn not_gauge(&mut self) {
        self.warn(&format!(
            "this native histogram metric is not a gauge: {:?}",
            self.metric
        ));
    }

    fn ignored(&mut self) {
        self.info(&format!(
            "ignored histograms in a range containing both floats and histograms for metric name {:?}",
            self.metric
        ));
    }

    pub fn reconciled(&mut self, by: &str) {
        self.info(&format!("mismatched custom buckets were reconciled during {by}"));
    }

    pub fn incompatible_kinds(&mut self, op: BinaryOp, left: &str, right: &str) {
        let op = op.as_str();
        self.info(&format!(
            "incompatible sample types encountered for binary operator {op:?}: {left} {op} {right}"
        ));
    }

    pub fn incompatible_layouts(&mut self, op: BinaryOp) {
        self.warn(&format!(
            "incompatible bucket layout encountered for binary operator {}",
            op.as_str()
        ));
    }

    pub fn collision(&mut self, by: &str) {
        self.warn(&format!("conflicting counter resets during histogram {by}"));
    }
}

impl Raw {
    /// A sample, unless it is a staleness marker.
    fn point(&self, i: usize) -> Option<Point> {
        match self.natives.as_ref().and_then(|n| n[i].as_ref()) {
            Some(native) => Some(Point::Native(native.clone())),
            None => Some(self.values[i]).filter(|v| !is_absent(*v)).map(Point::Float),
        }
    }
}

/// The samples of one window, by kind.
struct Mixed<'a> {
    floats: Window<'a>,
    times: &'a [i64],
    natives: &'a [Arc<Histogram>],
}

/// What a reduction makes of a series that has histograms. Ends when `meter` breaks: what is there then is of no use.
pub async fn reduced(raw: Raw, r: &Reduction, notes: &mut Notes, meter: &mut Meter<'_>) -> Option<Column> {
    let mut column = Column::blank(raw.labels.clone(), raw.place, r.steps.count);
    match &r.how {
        How::Newest { lookback_ms, times } => {
            for (i, now) in r.steps.iter().enumerate() {
                let at = r.when.at(now);
                let newest = raw.times.partition_point(|t| *t <= at).checked_sub(1);
                let Some(newest) = newest.filter(|i| raw.times[*i] > at.saturating_sub(*lookback_ms)) else {
                    continue;
                };
                let point = raw.point(newest).map(|point| match times {
                    true => Point::Float(raw.times[newest] as f64 / 1000.0),
                    false => point,
                });
                let spent = meter.spent(1, kept(point.as_ref())).await;
                column.set(i, point);
                if spent.is_break() {
                    break;
                }
            }
        }
        How::Window {
            name,
            span,
            kernel,
            stretch,
            range_ms,
            params,
            ..
        } => {
            let (mut float_times, mut floats) = (vec![], vec![]);
            let (mut times, mut natives) = (vec![], vec![]);
            for i in 0..raw.times.len() {
                match raw.point(i) {
                    None => {}
                    Some(Point::Float(v)) => {
                        float_times.push(raw.times[i]);
                        floats.push(v);
                    }
                    Some(Point::Native(native)) => {
                        times.push(raw.times[i]);
                        natives.push(native);
                    }
                }
            }
            // What the histograms before each one weigh together.
            let mut weights = vec![0];
            weights.extend(natives.iter().scan(0, |sum, h| {
                *sum += h.weight();
                Some(*sum)
            }));
            let mut remarks = Remarks::new(notes, raw.labels.metric_name().unwrap_or(""), *span);
            for (i, now) in r.steps.iter().enumerate() {
                let at = r.when.at(now);
                let from = at.saturating_sub(*range_ms);
                let within = |times: &[i64]| times.partition_point(|t| *t <= from)..times.partition_point(|t| *t <= at);
                let (of_floats, of_natives) = (within(&float_times), within(&times));
                let window = Mixed {
                    floats: Window {
                        times: &float_times[of_floats.clone()],
                        values: &floats[of_floats],
                        at,
                        now,
                        range_ms: *range_ms,
                        params: [0, 1].map(|p| params[p].get(i).copied().unwrap_or(0.0)),
                    },
                    times: &times[of_natives.clone()],
                    natives: &natives[of_natives.clone()],
                };
                let point = window.value(name, *kernel, *stretch, &mut remarks);
                let touched = weights[of_natives.end] - weights[of_natives.start];
                let spent = meter.spent(touched, kept(point.as_ref())).await;
                column.set(i, point);
                if spent.is_break() {
                    break;
                }
            }
        }
    }
    (!column.is_empty()).then_some(column)
}

/// Floats were counted with the steps.
fn kept(point: Option<&Point>) -> usize {
    match point {
        Some(Point::Native(h)) => h.weight(),
        Some(Point::Float(_)) | None => 0,
    }
}

impl Mixed<'_> {
    fn value(
        &self,
        name: &str,
        kernel: window::Kernel,
        stretch: Option<Stretch>,
        remarks: &mut Remarks<'_>,
    ) -> Option<Point> {
        let of_floats = || Some(kernel(&self.floats)).filter(|v| !is_absent(*v)).map(Point::Float);
        let floats = self.floats.values.len();
        if self.natives.is_empty() {
            return of_floats();
        }
        let number = |n: usize| Some(Point::Float(n as f64));
        match name {
            "rate" | "increase" | "delta" | "sum_over_time" | "avg_over_time" if floats > 0 => {
                remarks.mixed_kinds();
                None
            }
            "rate" | "increase" | "delta" => self.stretched(stretch?, remarks).map(native),
            "sum_over_time" | "avg_over_time" => {
                let all: Vec<&Histogram> = self.natives.iter().map(AsRef::as_ref).collect();
                match folded(&all, name == "avg_over_time") {
                    Ok(folded) => folded.map(|folded| {
                        folded.remark(remarks);
                        native(folded.histogram)
                    }),
                    Err(MixedSchemas) => {
                        remarks.mixed_schemas();
                        None
                    }
                }
            }
            "irate" | "idelta" => self.instant(name == "irate", of_floats, remarks),
            "resets" | "changes" => {
                let (mut events, mut before) = (0, None);
                for point in self.in_order() {
                    events += usize::from(before.is_some_and(|before| is_event(name == "resets", before, point)));
                    before = Some(point);
                }
                number(events)
            }
            "count_over_time" => number(floats + self.natives.len()),
            "present_over_time" => number(1),
            "first_over_time" => self.in_order().next().map(Sample::owned),
            "last_over_time" => self.in_order().last().map(Sample::owned),
            "ts_of_first_over_time" | "ts_of_last_over_time" => {
                let all = self.floats.times.iter().chain(self.times);
                let time = if name == "ts_of_first_over_time" {
                    all.min()
                } else {
                    all.max()
                };
                time.map(|t| Point::Float(*t as f64 / 1000.0))
            }
            _ if floats > 0 => {
                remarks.ignored();
                of_floats()
            }
            _ => None,
        }
    }

    fn in_order(&self) -> impl Iterator<Item = Sample<'_>> {
        let (mut float, mut native) = (0, 0);
        std::iter::from_fn(move || {
            let (a, b) = (self.floats.times.get(float), self.times.get(native));
            match (a, b) {
                (None, None) => None,
                (Some(a), b) if b.is_none_or(|b| a < b) => {
                    float += 1;
                    Some(Sample::Float(self.floats.values[float - 1]))
                }
                _ => {
                    native += 1;
                    Some(Sample::Native(&self.natives[native - 1]))
                }
            }
        })
    }

    /// `rate`, `increase`, `delta` of histograms.
    fn stretched(&self, stretch: Stretch, remarks: &mut Remarks<'_>) -> Option<Histogram> {
        let [first, second, ..] = self.natives else { return None };
        let last = self.natives.last()?;
        let ends_are_gauges = [first, last].map(|h| h.hint == Hint::Gauge);
        if stretch.counter && ends_are_gauges.contains(&true) {
            remarks.not_counter();
        }
        // After a reset nothing is left of the first one: then it may also have another layout.
        let starts_anew = stretch.counter && second.is_reset_after(first);
        let base = if starts_anew { second } else { first };
        let mut schema = last.schema.min(base.schema);
        let inner = &self.natives[1..self.natives.len() - 1];
        if stretch.counter {
            if inner.iter().any(|h| h.hint == Hint::Gauge) {
                remarks.not_counter();
            }
            schema = inner.iter().map(|h| h.schema).fold(schema, i32::min);
        }
        let checked = if stretch.counter { inner } else { &[] };
        if checked.iter().chain([last]).any(|h| h.is_custom() != base.is_custom()) {
            remarks.mixed_schemas();
            return None;
        }
        let mut result = Histogram::clone(last).coarser(schema);
        if !starts_anew {
            let difference = result.minus(first).ok()?;
            if difference.reconciled {
                remarks.reconciled("subtraction");
            }
            result = difference.histogram;
        }
        if stretch.counter {
            let from = usize::from(starts_anew);
            for two in self.natives[from..]
                .windows(2)
                .filter(|two| two[1].is_reset_after(&two[0]))
            {
                let sum = result.plus(&two[0]).ok()?;
                if sum.reconciled {
                    remarks.reconciled("addition");
                }
                result = sum.histogram;
            }
        } else if ends_are_gauges.contains(&false) {
            remarks.not_gauge();
        }
        let w = &self.floats;
        let reach = Reach::of(self.times.len(), (self.times[0], *self.times.last()?), w.at, w.range_ms)?;
        let risen = (stretch.counter && result.count > 0.0 && first.count >= 0.0).then(|| first.count / result.count);
        Some(
            result
                .times(reach.factor(risen, w.range_ms, stretch.per_second))
                .gauge(),
        )
    }

    /// `irate`, `idelta`: of the last two samples.
    fn instant(&self, rate: bool, of_floats: impl Fn() -> Option<Point>, remarks: &mut Remarks<'_>) -> Option<Point> {
        let mut all: Vec<(i64, Sample<'_>)> = self
            .times
            .iter()
            .copied()
            .zip(self.natives.iter().map(Sample::Native))
            .collect();
        let floats = self.floats.times.iter().copied();
        all.extend(floats.zip(self.floats.values.iter().map(|v| Sample::Float(*v))));
        all.sort_by_key(|(t, _)| *t);
        let [.., (before_at, before), (last_at, last)] = all[..] else {
            return None;
        };
        let seconds = (last_at - before_at) as f64 / 1000.0;
        let (before, last) = match (before, last) {
            _ if seconds == 0.0 => return None,
            (Sample::Float(_), Sample::Float(_)) => return of_floats(),
            (Sample::Native(before), Sample::Native(last)) => (before, last),
            _ => {
                remarks.mixed_kinds();
                return None;
            }
        };
        let gauges = [before, last].map(|h| h.hint == Hint::Gauge);
        match rate {
            true if gauges.contains(&true) => remarks.not_counter(),
            false if gauges.contains(&false) => remarks.not_gauge(),
            _ => {}
        }
        let mut result = Histogram::clone(last);
        if !rate || !last.is_reset_after(before) {
            match result.minus(before) {
                Ok(difference) => {
                    if difference.reconciled {
                        remarks.reconciled("subtraction");
                    }
                    result = difference.histogram;
                }
                Err(MixedSchemas) => {
                    remarks.mixed_schemas();
                    return None;
                }
            }
        }
        let result = if rate { result.over(seconds) } else { result };
        Some(native(result.gauge()))
    }
}

fn native(h: Histogram) -> Point {
    Point::Native(Arc::new(h))
}

#[derive(Clone, Copy)]
enum Sample<'a> {
    Float(f64),
    Native(&'a Arc<Histogram>),
}

impl Sample<'_> {
    fn owned(self) -> Point {
        match self {
            Self::Float(v) => Point::Float(v),
            Self::Native(h) => Point::Native(h.clone()),
        }
    }
}

/// A reset, or a change; one kind of sample after the other is both.
fn is_event(resets: bool, before: Sample<'_>, now: Sample<'_>) -> bool {
    match (before, now) {
        (Sample::Float(a), Sample::Float(b)) if resets => window::is_reset(a, b),
        (Sample::Float(a), Sample::Float(b)) => window::is_change(a, b),
        (Sample::Native(a), Sample::Native(b)) if resets => b.is_reset_after(a),
        (Sample::Native(a), Sample::Native(b)) => !a.same(b),
        _ => true,
    }
}

/// Several histograms as one.
pub struct Folded {
    pub histogram: Histogram,
    reconciled: bool,
    collision: bool,
}

impl Folded {
    pub fn remark(&self, remarks: &mut Remarks<'_>) {
        if self.collision {
            remarks.collision("aggregation");
        }
        if self.reconciled {
            remarks.reconciled("aggregation");
        }
    }
}

/// The sum or the mean of histograms, number by number as those of floats are made, in this order. `None`: of none.
pub fn folded(all: &[&Histogram], mean: bool) -> Result<Option<Folded>, MixedSchemas> {
    match mean {
        // What a bucket does not hold counts as zero.
        true => fold(all, |cell: &mut Mean, zeros| cell.add_sum(0.0, zeros)),
        false => fold(all, |_: &mut Total, _| {}),
    }
}

fn fold<C: Cell>(all: &[&Histogram], pad: impl Fn(&mut C, u64)) -> Result<Option<Folded>, MixedSchemas> {
    let Some(layout) = Layout::common(all.iter().copied())? else {
        return Ok(None);
    };
    let mut numbers: [C; 3] = Default::default();
    let mut sides: [BTreeMap<i32, (C, u64)>; 2] = Default::default();
    for h in all {
        let h = h.fitted(&layout);
        for (cell, v) in numbers.iter_mut().zip([h.count, h.sum, h.zero_count]) {
            cell.add(v);
        }
        for (cells, side) in sides.iter_mut().zip([&h.positive, &h.negative]) {
            for (index, n) in side {
                let (cell, seen) = cells.entry(*index).or_default();
                cell.add(*n);
                *seen += 1;
            }
        }
    }
    let value = |cell: &C| cell.value().unwrap_or(0.0);
    let [count, sum, zero_count] = numbers.map(|cell| value(&cell));
    let [positive, negative] = sides.map(|cells| {
        let padded = cells.into_iter().map(|(index, (mut cell, seen))| {
            pad(&mut cell, all.len() as u64 - seen);
            (index, value(&cell))
        });
        padded.filter(|(_, n)| *n != 0.0).collect()
    });
    let said = |hint: Hint| all.iter().any(|h| h.hint == hint);
    Ok(Some(Folded {
        histogram: Histogram {
            schema: layout.schema,
            count,
            sum,
            zero_threshold: layout.zero_threshold,
            zero_count,
            positive,
            negative,
            custom: layout.custom,
            hint: all
                .iter()
                .map(|h| h.hint)
                .reduce(|a, b| a.with(b).0)
                .unwrap_or_default(),
        },
        reconciled: layout.reconciled,
        collision: said(Hint::Reset) && said(Hint::NotReset),
    }))
}

/// Samples of a series of both kinds, put together by time: at equal times those of `natives` stay.
pub fn merged(floats: Option<Raw>, natives: Raw) -> Raw {
    let Some(floats) = floats else { return natives };
    let (labels, place) = (natives.labels.clone(), natives.place.min(floats.place));
    let mut all: BTreeMap<i64, (f64, Option<Arc<Histogram>>)> = BTreeMap::new();
    for raw in [floats, natives] {
        let kept: Natives = raw.natives.unwrap_or_else(|| vec![None; raw.times.len()]);
        all.extend(raw.times.into_iter().zip(raw.values.into_iter().zip(kept)));
    }
    let mut raw = Raw {
        labels,
        place,
        times: vec![],
        values: vec![],
        natives: None,
    };
    let mut kept: Natives = vec![];
    for (t, (v, native)) in all {
        raw.times.push(t);
        raw.values.push(v);
        kept.push(native);
    }
    raw.natives = Some(kept);
    raw
}
