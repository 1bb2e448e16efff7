//! Functions of instant vectors and scalars: mathematics, calendar, labels, order, classic histograms.

use super::{Evaluator, Out, Turn, at, map_values, non_empty, only_floats, unique, window};
use crate::column::{ABSENT, Column, Point, Steps, is_absent};
use crate::engine::QueryError;
use crate::gather::canonical;
use crate::number::go_json;
use crate::plan::Plan;
use hindcast_model::histogram::Remark;
use hindcast_model::{Histogram, Labels, METRIC_NAME};
use hindcast_promql::Span;
use std::cmp::Ordering;
use std::collections::{BTreeMap, BTreeSet};

/// Refuses smoothing factors outside of (0, 1).
pub fn check_window_params(name: &str, params: &[Vec<f64>; 2]) -> Result<(), QueryError> {
    if name != "double_exponential_smoothing" {
        return Ok(());
    }
    for (what, values) in ["smoothing", "trend"].iter().zip(params) {
        if let Some(v) = values.iter().find(|v| !(**v > 0.0 && **v < 1.0)) {
            let message = format!("invalid {what} factor, expected a number between 0 and 1, got {v}");
            return Err(QueryError::Execution(message));
        }
    }
    Ok(())
}

fn elementwise(name: &str) -> Option<fn(f64) -> f64> {
    Some(match name {
        "abs" => f64::abs,
        "acos" => f64::acos,
        "acosh" => f64::acosh,
        "asin" => f64::asin,
        "asinh" => f64::asinh,
        "atan" => f64::atan,
        "atanh" => f64::atanh,
        "ceil" => f64::ceil,
        "cos" => f64::cos,
        "cosh" => f64::cosh,
        "deg" => f64::to_degrees,
        "exp" => f64::exp,
        "floor" => f64::floor,
        "ln" => f64::ln,
        "log10" => f64::log10,
        "log2" => f64::log2,
        "rad" => f64::to_radians,
        "sgn" => |v| {
            if v < 0.0 {
                -1.0
            } else if v > 0.0 {
                1.0
            } else {
                v
            }
        },
        "sin" => f64::sin,
        "sinh" => f64::sinh,
        "sqrt" => f64::sqrt,
        "tan" => f64::tan,
        "tanh" => f64::tanh,
        "day_of_month" => |t| calendar(t, |d| f64::from(d.day())),
        "day_of_week" => |t| calendar(t, |d| f64::from(d.weekday().to_sunday_zero_offset())),
        "day_of_year" => |t| calendar(t, |d| f64::from(d.day_of_year())),
        "days_in_month" => |t| calendar(t, |d| f64::from(d.days_in_month())),
        "month" => |t| calendar(t, |d| f64::from(d.month())),
        "year" => |t| calendar(t, |d| f64::from(d.year())),
        "hour" => |t| (t.floor().rem_euclid(86_400.0) / 3_600.0).floor(),
        "minute" => |t| (t.floor().rem_euclid(3_600.0) / 60.0).floor(),
        _ => return None,
    })
}

/// A part of the UTC date of a Unix time in seconds; NaN outside of the calendar (years -9999 to 9999).
fn calendar(seconds: f64, part: fn(jiff::civil::Date) -> f64) -> f64 {
    if seconds.is_nan() {
        return f64::NAN;
    }
    jiff::Timestamp::from_second(seconds.floor() as i64)
        .map_or(f64::NAN, |t| part(t.to_zoned(jiff::tz::TimeZone::UTC).date()))
}

impl Evaluator {
    pub(super) async fn call(
        &mut self,
        name: &str,
        args: &[Plan],
        labels: &[(String, String)],
        (span, spans): (Span, &[Span]),
        steps: Steps,
    ) -> Result<Out, QueryError> {
        self.charge(steps.count).await?;
        let times = || steps.iter().map(|t| t as f64 / 1000.0).collect::<Vec<f64>>();
        if let Some(f) = elementwise(name) {
            // Calendar functions speak of the evaluation time when they are given nothing.
            let columns = match args.first() {
                Some(arg) => self.vector(arg, steps).await?,
                None => vec![Column::computed(Labels::empty(), times())],
            };
            return unique(map_values(columns, |v| canonical(f(v)))).map(Out::Vector);
        }
        match name {
            "time" => Ok(Out::Scalar(times())),
            "pi" => Ok(Out::Scalar(vec![std::f64::consts::PI; steps.count])),
            "scalar" => {
                let columns = self.vector(&args[0], steps).await?;
                Ok(Out::Scalar((0..steps.count).map(|i| only(&columns, i)).collect()))
            }
            "vector" => {
                let values = self.scalar(&args[0], steps).await?;
                Ok(Out::Vector(non_empty(Column::computed(Labels::empty(), values))))
            }
            "timestamp" => self.timestamp(&args[0], steps).await.map(Out::Vector),
            "absent" => {
                let columns = self.vector(&args[0], steps).await?;
                let value = |i: usize| {
                    if columns.iter().all(|c| !c.is_present(i)) {
                        1.0
                    } else {
                        ABSENT
                    }
                };
                let values = (0..steps.count).map(value).collect();
                Ok(Out::Vector(non_empty(Column::computed(
                    Labels::new(labels.to_vec()),
                    values,
                ))))
            }
            "clamp" | "clamp_min" | "clamp_max" | "round" => self.bounded(name, args, steps).await.map(Out::Vector),
            "sort" | "sort_desc" | "sort_by_label" | "sort_by_label_desc" => {
                self.sorted(name, args, span, steps).await.map(Out::Vector)
            }
            "label_replace" | "label_join" => self.relabelled(name, args, steps).await.map(Out::Vector),
            "histogram_quantile" | "histogram_quantiles" | "histogram_fraction" => {
                self.estimated(name, args, spans, steps).await.map(Out::Vector)
            }
            _ if name.starts_with("histogram_") => {
                let columns = self.vector(&args[0], steps).await?;
                self.charge(columns.len() * steps.count).await?;
                let mut all = vec![];
                for column in columns {
                    self.turn.worked(column.weight()).await;
                    all.extend(of_histograms(name, column));
                }
                unique(all).map(Out::Vector)
            }
            other => unreachable!("{other} is in the table of functions, but cannot be evaluated"),
        }
    }

    async fn timestamp(&mut self, arg: &Plan, steps: Steps) -> Result<Vec<Column>, QueryError> {
        // Of a selector: the time of the sample. Of anything else: the time of evaluation.
        if let Plan::Instant { source, .. } = arg {
            // The planner had the times made instead of the values.
            let columns = self.made(*source, steps).await?;
            return unique(map_values(columns, |v| v));
        }
        let mut columns = self.vector(arg, steps).await?;
        for c in &mut columns {
            c.labels = c.labels.without(METRIC_NAME);
            for i in 0..c.values.len() {
                if c.native(i).is_some() {
                    c.set(i, Some(Point::Float(0.0)));
                }
            }
            for (v, t) in c.values.iter_mut().zip(steps.iter()).filter(|(v, _)| !is_absent(**v)) {
                *v = t as f64 / 1000.0;
            }
        }
        unique(columns)
    }

    async fn bounded(&mut self, name: &str, args: &[Plan], steps: Steps) -> Result<Vec<Column>, QueryError> {
        let mut columns: Vec<Column> = only_floats(self.vector(&args[0], steps).await?).collect();
        let mut scalars = vec![];
        for arg in &args[1..] {
            scalars.push(self.scalar(arg, steps).await?);
        }
        let at = |n: usize, i: usize| scalars.get(n).map_or(1.0, |s| s[i]);
        for c in &mut columns {
            c.labels = c.labels.without(METRIC_NAME);
            for (i, v) in c.values.iter_mut().enumerate().filter(|(_, v)| !is_absent(**v)) {
                *v = match name {
                    "clamp" if at(1, i) < at(0, i) => ABSENT,
                    "clamp" => least(greatest(*v, at(0, i)), at(1, i)),
                    "clamp_min" => greatest(*v, at(0, i)),
                    "clamp_max" => least(*v, at(0, i)),
                    // Multiplying by the inverse gives fewer rounding errors than dividing.
                    _ => canonical((*v * (1.0 / at(0, i)) + 0.5).floor() / (1.0 / at(0, i))),
                };
            }
        }
        columns.retain(|c| !c.is_empty());
        unique(columns)
    }

    async fn sorted(&mut self, name: &str, args: &[Plan], span: Span, steps: Steps) -> Result<Vec<Column>, QueryError> {
        let mut columns = self.vector(&args[0], steps).await?;
        if matches!(name, "sort" | "sort_desc") {
            columns = only_floats(columns).collect();
        }
        if self.is_range {
            self.note(format!(
                "PromQL warning: sort is ineffective for range queries since results are always ordered by labels (1:{})",
                span.start + 1
            ));
            return Ok(columns);
        }
        if steps.count != 1 {
            return Ok(columns);
        }
        let mut by = vec![];
        for arg in &args[1..] {
            if let Out::Text(label) = self.eval(arg, steps).await? {
                by.push(label);
            }
        }
        columns.sort_by(|a, b| match name {
            "sort" | "sort_desc" => by_value(a, b, name == "sort_desc"),
            _ => {
                let order = by_labels(a, b, &by);
                if name == "sort_by_label_desc" {
                    order.reverse()
                } else {
                    order
                }
            }
        });
        Ok(columns)
    }

    async fn relabelled(&mut self, name: &str, args: &[Plan], steps: Steps) -> Result<Vec<Column>, QueryError> {
        let mut columns = self.vector(&args[0], steps).await?;
        let mut texts = vec![];
        for arg in &args[1..] {
            if let Out::Text(text) = self.eval(arg, steps).await? {
                texts.push(text);
            }
        }
        let refuse = |what: &str, label: &str| {
            Err(QueryError::Execution(format!(
                "invalid {what} label name in {name}(): {label:?}"
            )))
        };
        if texts[0].is_empty() {
            return refuse("destination", &texts[0]);
        }
        if name == "label_replace" {
            let [target, replacement, source, pattern] = &texts[..] else {
                unreachable!("label_replace takes four strings");
            };
            let regex = hindcast_model::matcher::anchored_regex(pattern)
                .map_err(|e| QueryError::Execution(format!("invalid regular expression in label_replace(): {e}")))?;
            for c in &mut columns {
                if let Some(found) = regex.captures(c.labels.value(source)) {
                    let named = replacement.matches('$').count();
                    bounded(name, replacement.len() + named * c.labels.value(source).len())?;
                    let mut value = String::new();
                    found.expand(replacement, &mut value);
                    c.labels = c.labels.with(target, &value);
                }
            }
        } else {
            let (target, separator, sources) = (&texts[0], &texts[1], &texts[2..]);
            if let Some(empty) = sources.iter().find(|s| s.is_empty()) {
                return refuse("source", empty);
            }
            for c in &mut columns {
                let values: Vec<&str> = sources.iter().map(|s| c.labels.value(s)).collect();
                let bytes: usize = values.iter().map(|v| v.len() + separator.len()).sum();
                bounded(name, bytes)?;
                let value = values.join(separator);
                c.labels = c.labels.with(target, &value);
            }
        }
        unique(columns)
    }
}

/// Values of labels that a query makes. One that makes them from each other could make any length.
const RELABELLED_BYTES_MAX: usize = 64 * 1024;

fn bounded(name: &str, bytes: usize) -> Result<(), QueryError> {
    match bytes > RELABELLED_BYTES_MAX {
        true => Err(QueryError::Execution(format!(
            "{name}() would make a label of up to {bytes} bytes, more than {RELABELLED_BYTES_MAX}; name fewer groups or labels"
        ))),
        false => Ok(()),
    }
}

/// NaN when either is, unlike `f64::max`.
fn greatest(a: f64, b: f64) -> f64 {
    if a.is_nan() || b.is_nan() { f64::NAN } else { a.max(b) }
}

fn least(a: f64, b: f64) -> f64 {
    if a.is_nan() || b.is_nan() { f64::NAN } else { a.min(b) }
}

/// The value of the only series at step `i`; NaN when there are none or several.
fn only(columns: &[Column], i: usize) -> f64 {
    let mut present = columns.iter().map(|c| c.values[i]).filter(|v| !is_absent(*v));
    match (present.next(), present.next()) {
        (Some(v), None) => v,
        _ => f64::NAN,
    }
}

/// NaN last in both directions; labels decide between equal values.
fn by_value(a: &Column, b: &Column, descending: bool) -> Ordering {
    let (x, y) = (a.values[0], b.values[0]);
    let order = match (x.is_nan(), y.is_nan()) {
        (false, false) if descending => window::order(y, x),
        (false, false) => window::order(x, y),
        (x, y) => x.cmp(&y),
    };
    order.then_with(|| a.labels.cmp(&b.labels))
}

fn by_labels(a: &Column, b: &Column, names: &[String]) -> Ordering {
    let named = names.iter().map(|n| natural(a.labels.value(n), b.labels.value(n)));
    named.fold(Ordering::Equal, Ordering::then).then_with(|| {
        let (mut a, mut b) = (a.labels.iter(), b.labels.iter());
        loop {
            match (a.next(), b.next()) {
                (Some((n, v)), Some((m, w))) => match n.cmp(m).then_with(|| natural(v, w)) {
                    Ordering::Equal => {}
                    order => return order,
                },
                (x, y) => return x.is_some().cmp(&y.is_some()),
            }
        }
    })
}

/// Text in the order that people expect: runs of digits by their number.
fn natural(a: &str, b: &str) -> Ordering {
    let (mut a, mut b) = (a, b);
    loop {
        let (run_a, run_b) = (digits(a), digits(b));
        if run_a > 0 && run_b > 0 {
            let (x, y) = (a[..run_a].trim_start_matches('0'), b[..run_b].trim_start_matches('0'));
            match x
                .len()
                .cmp(&y.len())
                .then_with(|| x.cmp(y))
                .then_with(|| run_a.cmp(&run_b))
            {
                Ordering::Equal => {}
                order => return order,
            }
            (a, b) = (&a[run_a..], &b[run_b..]);
            continue;
        }
        let (mut rest_a, mut rest_b) = (a.chars(), b.chars());
        match (rest_a.next(), rest_b.next()) {
            (Some(x), Some(y)) if x == y => (a, b) = (rest_a.as_str(), rest_b.as_str()),
            (x, y) => return x.cmp(&y),
        }
    }
}

fn digits(text: &str) -> usize {
    text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len())
}

/// A bucket of a classic histogram at one step.
#[derive(Clone, Copy)]
struct Bucket {
    upper: f64,
    count: f64,
}

/// What is asked of histograms, at one step.
#[derive(Clone, Copy)]
enum Estimate {
    Quantile(f64),
    Fraction(f64, f64),
}

/// Of classic and native histograms, with what is to be said about them.
struct Estimated {
    columns: Vec<Column>,
    remarks: BTreeSet<&'static str>,
}

impl Evaluator {
    async fn estimated(
        &mut self,
        name: &str,
        args: &[Plan],
        spans: &[Span],
        steps: Steps,
    ) -> Result<Vec<Column>, QueryError> {
        // The vector, and the scalars of each estimate.
        let (vector, scalars) = match name {
            "histogram_quantile" => (1, 0..1),
            "histogram_fraction" => (2, 0..2),
            _ => (0, 2..args.len()),
        };
        let mut given = vec![];
        for arg in scalars.clone() {
            given.push(self.scalar(&args[arg], steps).await?);
        }
        let columns = self.vector(&args[vector], steps).await?;
        self.charge(columns.len() * steps.count * given.len()).await?;
        let (label, quantiles) = match name {
            "histogram_fraction" => (None, vec![]),
            "histogram_quantile" => (None, given.clone()),
            _ => match self.eval(&args[1], steps).await? {
                Out::Text(label) => (Some(label), given.clone()),
                _ => unreachable!("the type check wants a string here"),
            },
        };
        for (values, arg) in quantiles.iter().zip(scalars) {
            for q in values.iter().filter(|q| !(0.0..=1.0).contains(*q)) {
                let q = go_json(*q);
                let place = at(spans[arg]);
                self.note(format!(
                    "PromQL warning: quantile value should be between 0 and 1, got {q} {place}"
                ));
            }
        }
        let histograms = self.histograms(columns, steps, at(spans[vector]));
        let mut all = vec![];
        if quantiles.is_empty() {
            let estimate = |i: usize| Estimate::Fraction(given[0][i], given[1][i]);
            all.push((histograms.estimated(steps, estimate, &mut self.turn).await, None));
        }
        for values in &quantiles {
            let estimate = |i: usize| Estimate::Quantile(values[i]);
            all.push((
                histograms.estimated(steps, estimate, &mut self.turn).await,
                Some(values),
            ));
        }
        let mut out = vec![];
        for (estimated, values) in all {
            let place = at(spans[0]);
            for remark in estimated.remarks {
                self.note(format!("PromQL info: {remark} {place}"));
            }
            let (Some(label), Some(values)) = (&label, values) else {
                out.extend(estimated.columns);
                continue;
            };
            for column in estimated.columns {
                out.extend(named_by(column, label, values));
            }
        }
        unique(out)
    }

    /// Puts buckets of classic histograms together. Where there is a classic and a native one of the same name and labels, neither counts.
    fn histograms(&mut self, mut columns: Vec<Column>, steps: Steps, place: String) -> Histograms {
        // Of one bound written in two ways (1 and 1.0) the counts are taken in the order of labels.
        columns.sort_unstable_by(|a, b| a.labels.cmp(&b.labels));
        let mut histograms = Histograms::default();
        for c in columns {
            let metric = c.labels.metric_name().unwrap_or("");
            let of_metric = || match metric {
                "" => String::new(),
                name => format!(" for metric name {name:?}"),
            };
            if c.has_natives() {
                let name = of_metric();
                let kept = c.labels.without(METRIC_NAME);
                histograms.native.push((
                    c.labels.clone(),
                    name,
                    Column {
                        labels: kept,
                        ..c.clone()
                    },
                ));
            }
            if c.values.iter().all(|v| is_absent(*v)) {
                continue;
            }
            match c.labels.get(LE).and_then(parse_bound) {
                Some(upper) => {
                    let of_one = histograms.classic.entry(c.labels.without(LE)).or_default();
                    of_one.push((upper, c.floats()));
                }
                None => {
                    let (le, name) = (c.labels.value(LE), of_metric());
                    self.note(format!(
                        "PromQL warning: bucket label \"le\" is missing or has a malformed value of {le:?}{name} {place}"
                    ));
                }
            }
        }
        for (labels, name, native) in &mut histograms.native {
            let Some(buckets) = histograms.classic.get_mut(labels) else {
                continue;
            };
            for i in 0..steps.count {
                if native.native(i).is_some() && buckets.iter().any(|(_, c)| !is_absent(c.values[i])) {
                    native.set(i, None);
                    buckets.iter_mut().for_each(|(_, c)| c.values[i] = ABSENT);
                    self.note(format!(
                        "PromQL warning: vector contains a mix of classic and native histograms{name} {place}"
                    ));
                }
            }
        }
        histograms
    }
}

const LE: &str = "le";

#[derive(Default)]
struct Histograms {
    /// By the name and the labels without `le`: bounds, and how many lie below.
    classic: BTreeMap<Labels, Vec<(f64, Column)>>,
    /// With the name and labels by which a classic one is told, and how the metric is named in what is said.
    native: Vec<(Labels, String, Column)>,
}

impl Histograms {
    async fn estimated(&self, steps: Steps, estimate: impl Fn(usize) -> Estimate, turn: &mut Turn) -> Estimated {
        let (mut columns, mut remarks) = (vec![], BTreeSet::new());
        for (_, _, native) in &self.native {
            turn.worked(native.weight()).await;
            let mut value = |i: usize| {
                let Some(h) = native.native(i) else { return ABSENT };
                let (value, remark) = match estimate(i) {
                    Estimate::Quantile(q) => h.quantile(q),
                    Estimate::Fraction(lower, upper) => h.fraction(lower, upper),
                };
                remarks.extend(remark.map(said));
                canonical(value)
            };
            let values = (0..steps.count).map(&mut value).collect();
            columns.push(Column {
                labels: native.labels.clone(),
                place: native.place,
                values,
                natives: None,
            });
        }
        for (labels, buckets) in &self.classic {
            let mut value = |i: usize| {
                let at_step = buckets.iter().filter(|(_, c)| !is_absent(c.values[i]));
                let at_step: Vec<Bucket> = at_step
                    .map(|(upper, c)| Bucket {
                        upper: *upper,
                        count: c.values[i],
                    })
                    .collect();
                if at_step.is_empty() {
                    return ABSENT;
                }
                canonical(match estimate(i) {
                    Estimate::Quantile(q) => {
                        let (value, forced) = bucket_quantile(q, at_step);
                        remarks.extend(forced.then_some(FORCED));
                        value
                    }
                    Estimate::Fraction(lower, upper) => bucket_fraction(lower, upper, at_step),
                })
            };
            let values = (0..steps.count).map(&mut value).collect();
            columns.push(Column::computed(labels.without(METRIC_NAME), values));
        }
        columns.retain(|c| !c.is_empty());
        Estimated { columns, remarks }
    }
}

const FORCED: &str = "input to histogram_quantile needed to be fixed for monotonicity \
                      (see https://prometheus.io/docs/prometheus/latest/querying/functions/#histogram_quantile)";

fn said(remark: Remark) -> &'static str {
    match remark {
        Remark::QuantileIsNan => "input to histogram_quantile has NaN observations, result is NaN",
        Remark::QuantileIsHigh => "input to histogram_quantile has NaN observations, result is skewed higher",
        Remark::FractionWithoutNan => {
            "input to histogram_fraction has NaN observations, which are excluded from all fractions"
        }
    }
}

/// The column with the quantile as a label; where that is another one at each step, a column for each.
fn named_by(column: Column, label: &str, quantiles: &[f64]) -> Vec<Column> {
    let mut by_text: BTreeMap<String, Column> = BTreeMap::new();
    for (i, (q, v)) in quantiles
        .iter()
        .zip(&column.values)
        .enumerate()
        .filter(|(_, (_, v))| !is_absent(**v))
    {
        let mut text = go_json(*q);
        if text.bytes().all(|b| b.is_ascii_digit() || b == b'-') {
            text.push_str(".0");
        }
        let named = by_text.entry(text).or_insert_with_key(|text| {
            let labels = column.labels.with(label, text);
            Column::blank(labels, column.place, column.values.len())
        });
        named.values[i] = *v;
    }
    by_text.into_values().collect()
}

/// A number of each histogram. `None`: there is no histogram.
fn of_histograms(name: &str, c: Column) -> Option<Column> {
    let of = match name {
        "histogram_count" => |h: &Histogram| h.count,
        "histogram_sum" => |h: &Histogram| h.sum,
        "histogram_avg" => Histogram::average,
        "histogram_stdvar" => Histogram::variance,
        "histogram_stddev" => |h: &Histogram| h.variance().sqrt(),
        other => unreachable!("{other} is in the table of functions, but cannot be evaluated"),
    };
    let natives = c.natives?;
    let values = natives.iter().map(|h| h.as_ref().map_or(ABSENT, |h| canonical(of(h))));
    let made = Column {
        labels: c.labels.without(METRIC_NAME),
        place: c.place,
        values: values.collect(),
        natives: None,
    };
    Some(made).filter(|c| !c.is_empty())
}

fn parse_bound(le: &str) -> Option<f64> {
    le.parse().ok().filter(|v: &f64| !v.is_nan())
}

/// Linear within the bucket that holds the rank; buckets are cumulative, the last must be +Inf. Also tells whether counts fell and
/// were lifted.
fn bucket_quantile(q: f64, mut buckets: Vec<Bucket>) -> (f64, bool) {
    if q.is_nan() {
        return (f64::NAN, false);
    }
    if !(0.0..=1.0).contains(&q) {
        let beyond = if q < 0.0 { f64::NEG_INFINITY } else { f64::INFINITY };
        return (beyond, false);
    }
    buckets.sort_by(|a, b| a.upper.total_cmp(&b.upper));
    if buckets.last().is_none_or(|b| b.upper != f64::INFINITY) {
        return (f64::NAN, false);
    }
    let (buckets, forced) = monotonic(joined(buckets));
    let last = buckets.len() - 1;
    let observations = buckets[last].count;
    if last == 0 || observations == 0.0 || observations.is_nan() {
        return (f64::NAN, false);
    }
    let rank = q * observations;
    let b = buckets[..last].partition_point(|b| b.count < rank);
    if b == last {
        return (buckets[last - 1].upper, forced);
    }
    if b == 0 && buckets[0].upper <= 0.0 {
        return (buckets[0].upper, forced);
    }
    let (start, below) = if b == 0 {
        (0.0, 0.0)
    } else {
        (buckets[b - 1].upper, buckets[b - 1].count)
    };
    let value = start + (buckets[b].upper - start) * ((rank - below) / (buckets[b].count - below));
    (value, forced)
}

/// Which part of the observations of a classic histogram lies between two values: linear within buckets, from zero on when the first
/// bound is above it.
fn bucket_fraction(lower: f64, upper: f64, mut buckets: Vec<Bucket>) -> f64 {
    buckets.sort_by(|a, b| a.upper.total_cmp(&b.upper));
    if buckets.last().is_none_or(|b| b.upper != f64::INFINITY) {
        return f64::NAN;
    }
    let buckets = joined(buckets);
    let count = buckets[buckets.len() - 1].count;
    if count == 0.0 || lower.is_nan() || upper.is_nan() {
        return f64::NAN;
    }
    if lower >= upper {
        return 0.0;
    }
    let start = if buckets[0].upper <= 0.0 {
        f64::NEG_INFINITY
    } else {
        0.0
    };
    let below = |value: f64| {
        let (mut rank, mut from) = (0.0, start);
        for b in &buckets {
            if from >= value {
                return rank;
            }
            if b.upper > value {
                return match from == f64::NEG_INFINITY {
                    // There is no telling.
                    true => b.count,
                    false => rank + (b.count - rank) * (value - from) / (b.upper - from),
                };
            }
            (rank, from) = (b.count, b.upper);
        }
        count
    };
    (below(upper).min(count) - below(lower).min(count)) / count
}

/// Joins equal bounds.
fn joined(buckets: Vec<Bucket>) -> Vec<Bucket> {
    let mut out: Vec<Bucket> = Vec::with_capacity(buckets.len());
    for b in buckets {
        match out.last_mut() {
            Some(last) if last.upper == b.upper => last.count += b.count,
            _ => out.push(b),
        }
    }
    out
}

/// A difference of counts that is nothing but rounding, as a part of the greater one.
const ROUNDING: f64 = 1e-12;

/// Lifts counts that fall, as scrapes of a moving histogram can make them; whether any fell by more than rounding.
fn monotonic(mut buckets: Vec<Bucket>) -> (Vec<Bucket>, bool) {
    let mut forced = false;
    for i in 1..buckets.len() {
        let before = buckets[i - 1].count;
        if buckets[i].count < before {
            forced |= before - buckets[i].count > ROUNDING * before;
            buckets[i].count = before;
        }
    }
    (buckets, forced)
}
