//! Functions of instant vectors and scalars: mathematics, calendar, labels, order, classic histograms.

use super::{Evaluator, Out, map_values, non_empty, unique, window};
use crate::column::{ABSENT, Column, Steps, is_absent};
use crate::engine::QueryError;
use crate::gather::canonical;
use crate::plan::Plan;
use hindcast_model::{Labels, METRIC_NAME};
use hindcast_promql::Span;
use std::cmp::Ordering;
use std::collections::BTreeMap;

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
        span: Span,
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
                    if columns.iter().all(|c| is_absent(c.values[i])) {
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
            "histogram_quantile" => {
                let q = self.scalar(&args[0], steps).await?;
                let columns = self.vector(&args[1], steps).await?;
                self.charge(columns.len() * steps.count).await?;
                histogram_quantile(&q, columns, steps).map(Out::Vector)
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
            for (v, t) in c.values.iter_mut().zip(steps.iter()).filter(|(v, _)| !is_absent(**v)) {
                *v = t as f64 / 1000.0;
            }
        }
        unique(columns)
    }

    async fn bounded(&mut self, name: &str, args: &[Plan], steps: Steps) -> Result<Vec<Column>, QueryError> {
        let mut columns = self.vector(&args[0], steps).await?;
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
        if self.is_range {
            self.note(format!(
                "PromQL warning: {name} is ineffective for range queries since results are always ordered by labels (1:{})",
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

fn histogram_quantile(q: &[f64], mut columns: Vec<Column>, steps: Steps) -> Result<Vec<Column>, QueryError> {
    // Of one bound written in two ways (1 and 1.0) the counts are taken in the order of labels.
    columns.sort_unstable_by(|a, b| a.labels.cmp(&b.labels));
    let mut histograms: BTreeMap<Labels, Vec<(f64, Column)>> = BTreeMap::new();
    for c in columns {
        let Some(upper) = c.labels.get("le").and_then(parse_bound) else {
            continue;
        };
        let labels = c.labels.filtered(|n| n != "le" && n != METRIC_NAME);
        histograms.entry(labels).or_default().push((upper, c));
    }
    let computed = histograms.into_iter().map(|(labels, buckets)| {
        let value = |i: usize| {
            let at_step: Vec<Bucket> = buckets
                .iter()
                .filter(|(_, c)| !is_absent(c.values[i]))
                .map(|(upper, c)| Bucket {
                    upper: *upper,
                    count: c.values[i],
                })
                .collect();
            if at_step.is_empty() {
                ABSENT
            } else {
                canonical(bucket_quantile(q[i], at_step))
            }
        };
        let values = (0..steps.count).map(value).collect();
        Column::computed(labels, values)
    });
    Ok(computed.filter(|c| !c.is_empty()).collect())
}

fn parse_bound(le: &str) -> Option<f64> {
    le.parse().ok().filter(|v: &f64| !v.is_nan())
}

/// Linear within the bucket that holds the rank; buckets are cumulative, the last must be +Inf.
fn bucket_quantile(q: f64, mut buckets: Vec<Bucket>) -> f64 {
    if q.is_nan() {
        return f64::NAN;
    }
    if !(0.0..=1.0).contains(&q) {
        return if q < 0.0 { f64::NEG_INFINITY } else { f64::INFINITY };
    }
    buckets.sort_by(|a, b| a.upper.total_cmp(&b.upper));
    if buckets.last().is_none_or(|b| b.upper != f64::INFINITY) {
        return f64::NAN;
    }
    let buckets = monotonic(buckets);
    let last = buckets.len() - 1;
    let observations = buckets[last].count;
    if last == 0 || observations == 0.0 || observations.is_nan() {
        return f64::NAN;
    }
    let rank = q * observations;
    let b = buckets[..last].partition_point(|b| b.count < rank);
    if b == last {
        return buckets[last - 1].upper;
    }
    if b == 0 && buckets[0].upper <= 0.0 {
        return buckets[0].upper;
    }
    let (start, below) = if b == 0 {
        (0.0, 0.0)
    } else {
        (buckets[b - 1].upper, buckets[b - 1].count)
    };
    start + (buckets[b].upper - start) * ((rank - below) / (buckets[b].count - below))
}

/// Joins equal bounds, and lifts counts that fall, as scrapes of a moving histogram can make them.
fn monotonic(buckets: Vec<Bucket>) -> Vec<Bucket> {
    let mut out: Vec<Bucket> = Vec::with_capacity(buckets.len());
    for b in buckets {
        match out.last_mut() {
            Some(last) if last.upper == b.upper => last.count += b.count,
            _ => out.push(b),
        }
    }
    for i in 1..out.len() {
        out[i].count = out[i].count.max(out[i - 1].count);
    }
    out
}
