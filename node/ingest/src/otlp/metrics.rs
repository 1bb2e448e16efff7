//! OTLP metrics to Prometheus series.
//!
//! - Gauges and sums become one series; explicit histograms `_bucket`, `_sum`, `_count`; summaries a series per
//!   quantile. Exponential histograms are native ones: a line each (`hindcast_model::histogram`).
//! - Delta sums and histograms become cumulative ones ([`DeltaState`]).
//! - A point that says "no recorded value" becomes the staleness marker.
//! - Resource attributes become a `target_info` series at the time of the resource's newest point.
//!
//! A data point is taken whole or refused whole; refusals count data points, as OTLP's partial success does.

use super::delta::{Amount, DeltaState};
use super::names::{self, Form, derived, label_pairs, metric_name};
use super::{as_text, attributes_of};
use crate::described::{Described, Due, MetricType};
use crate::exemplars::{Exemplar, Exemplars, bucket_of};
use crate::histogram::{self, Budget, HISTOGRAM_BUCKETS_MAX, Width, bad_buckets};
use crate::owners::{Seen, owner_of};
use crate::remote_write::native::line_of;
use crate::{Adapted, LimitsContext, Refusal, Rejections, identity};
use hindcast_model::histogram::{Hint, SCHEMAS, STALE_LINE};
use hindcast_model::{
    Batch, Histogram, Labels, LogLine, METRIC_NAME, Owner, STALE_NAN_BITS, Sample, SeriesBlock, StreamBlock, TenantId,
    TimestampNs,
};
use hindcast_proto::trace::{NATIVE, TRACE_LABEL};
use opentelemetry_proto::tonic::collector::metrics::v1::ExportMetricsServiceRequest;
use opentelemetry_proto::tonic::common::v1::KeyValue;
use opentelemetry_proto::tonic::metrics::v1::{
    AggregationTemporality, DataPointFlags, Exemplar as OtlpExemplar, ExponentialHistogramDataPoint,
    HistogramDataPoint, Metric, NumberDataPoint, ResourceMetrics, SummaryDataPoint, exemplar::Value as ExemplarValue,
    exponential_histogram_data_point::Buckets, metric::Data, number_data_point::Value as Number,
};
use std::collections::BTreeSet;
use std::sync::Arc;

/// Turns a request into a batch without an id: the shell adds the hash of the body that it came from.
pub fn adapt(
    tenant: &TenantId,
    request: ExportMetricsServiceRequest,
    limits: &LimitsContext,
    deltas: &mut DeltaState,
) -> Adapted {
    let mut batch = Batch::new(tenant.clone());
    let mut rejected = Rejections::default();
    let mut seen = Seen::default();
    let mut budget = Budget::default();
    let mut exemplars = Exemplars::default();
    for of_resource in request.resource_metrics {
        let ResourceMetrics {
            resource,
            scope_metrics,
            ..
        } = of_resource;
        let mut one = OneResource {
            tenant,
            limits,
            attrs: attributes_of(resource),
            given: (None, None),
            deltas: &mut *deltas,
            batch: &mut batch,
            rejected: &mut rejected,
            seen: &mut seen,
            budget: &mut budget,
            exemplars: &mut exemplars,
            targets: BTreeSet::new(),
            newest: None,
        };
        one.given = identity::given(&one.attrs);
        for metric in scope_metrics.into_iter().flat_map(|s| s.metrics) {
            one.metric(metric);
        }
        one.finish();
    }
    batch.streams.extend(exemplars.into_blocks());
    seen.into_batch(&mut batch);
    Adapted { batch, rejected }
}

/// Notes what the request says of its metrics; how many exemplars it has.
pub fn describe(
    tenant: &TenantId,
    request: &ExportMetricsServiceRequest,
    limits: &LimitsContext,
    described: &Described,
    due: &mut Due,
) -> u64 {
    let scopes = request.resource_metrics.iter().flat_map(|r| &r.scope_metrics);
    let mut exemplars = 0;
    for metric in scopes.flat_map(|s| &s.metrics) {
        let (form, kind, held) = match &metric.data {
            None => continue,
            Some(Data::Gauge(d)) => (
                Form::Gauge,
                MetricType::Gauge,
                count(&d.data_points, |p| p.exemplars.len()),
            ),
            Some(Data::Sum(d)) => {
                let (form, kind) = match d.is_monotonic {
                    true => (Form::MonotonicSum, MetricType::Counter),
                    false => (Form::Other, MetricType::Gauge),
                };
                (form, kind, count(&d.data_points, |p| p.exemplars.len()))
            }
            Some(Data::Histogram(d)) => (
                Form::Other,
                MetricType::Histogram,
                count(&d.data_points, |p| p.exemplars.len()),
            ),
            Some(Data::ExponentialHistogram(d)) => (
                Form::Other,
                MetricType::Histogram,
                count(&d.data_points, |p| p.exemplars.len()),
            ),
            Some(Data::Summary(_)) => (Form::Other, MetricType::Summary, 0),
        };
        exemplars += held;
        let metric = crate::described::Metric {
            name: &metric_name(&metric.name, &metric.unit, form),
            kind,
            help: &metric.description,
            unit: &names::unit_text(&metric.unit),
        };
        described.look(tenant, &metric, limits, due);
    }
    exemplars
}

fn count<T>(points: &[T], of_one: impl Fn(&T) -> usize) -> u64 {
    points.iter().map(|p| of_one(p) as u64).sum()
}

/// The metrics of one resource on their way into the batch.
struct OneResource<'r> {
    tenant: &'r TenantId,
    limits: &'r LimitsContext,
    attrs: Vec<(String, String)>,
    given: (Option<String>, Option<String>),
    deltas: &'r mut DeltaState,
    batch: &'r mut Batch,
    rejected: &'r mut Rejections,
    seen: &'r mut Seen,
    exemplars: &'r mut Exemplars,
    budget: &'r mut Budget,
    /// `job` and `instance` of the series so far.
    targets: BTreeSet<(String, String)>,
    newest: Option<TimestampNs>,
}

/// Where and when a data point belongs.
struct Place {
    labels: Labels,
    owner: Owner,
    at: TimestampNs,
    /// When a delta began, where that is known and not after `at`.
    start: Option<TimestampNs>,
    stale: bool,
}

impl OneResource<'_> {
    fn metric(&mut self, metric: Metric) {
        let Metric { name, unit, data, .. } = metric;
        let stored = |form| metric_name(&name, &unit, form);
        match data {
            None => self.refuse(1, &Refusal::UnknownData, || name.clone()),
            Some(Data::Gauge(gauge)) => self.numbers(&stored(Form::Gauge), gauge.data_points, Some(false), false),
            Some(Data::Sum(sum)) => {
                let form = if sum.is_monotonic {
                    Form::MonotonicSum
                } else {
                    Form::Other
                };
                let delta = is_delta(sum.aggregation_temporality);
                self.numbers(&stored(form), sum.data_points, delta, sum.is_monotonic);
            }
            Some(Data::Histogram(h)) => {
                let (stored, delta) = (stored(Form::Other), is_delta(h.aggregation_temporality));
                for point in h.data_points {
                    let amount = explicit(&point);
                    let times = (point.start_time_unix_nano, point.time_unix_nano);
                    let extras = (point.flags, point.exemplars);
                    self.histogram(&stored, point.attributes, times, extras, amount, delta);
                }
            }
            Some(Data::ExponentialHistogram(h)) => {
                let (stored, delta) = (stored(Form::Other), is_delta(h.aggregation_temporality));
                for point in h.data_points {
                    let amount = exponential(&point);
                    let times = (point.start_time_unix_nano, point.time_unix_nano);
                    let extras = (point.flags, point.exemplars);
                    self.histogram(&stored, point.attributes, times, extras, amount, delta);
                }
            }
            Some(Data::Summary(summary)) => {
                let stored = stored(Form::Other);
                for point in summary.data_points {
                    self.summary(&stored, point);
                }
            }
        }
    }

    fn refuse(&mut self, points: u64, why: &Refusal, what: impl FnOnce() -> String) {
        self.rejected.add(points, why, what);
    }

    /// Names a data point and checks it, with `extra` further labels and the longest suffix in mind.
    fn place(
        &mut self,
        name: &str,
        attributes: Vec<KeyValue>,
        (start, time): (u64, u64),
        flags: u32,
        extra: Option<&str>,
    ) -> Option<Place> {
        let mut pairs = label_pairs(&as_text(attributes));
        pairs.push((METRIC_NAME.to_owned(), name.to_owned()));
        let bare = Labels::new(pairs);
        let resource = identity::owning(self.tenant, &bare, &self.attrs).map(Arc::new);
        let (kind, key) = identity::derived(&self.attrs, resource.as_deref());
        let mut labels = bare;
        for (label, given, derived) in [("job", &self.given.0, kind), ("instance", &self.given.1, key)] {
            if let Some(value) = given {
                labels = labels.with(label, value);
            } else if let Some(value) = derived.filter(|_| labels.get(label).is_none()) {
                labels = labels.with(label, &value);
            }
        }
        let at = time_of(time).floor_ms();
        let widest: Vec<(&str, &str)> = labels.iter().chain(extra.map(|n| (n, "0"))).collect();
        let fits = self.limits.labels(&widest, true).and_then(|()| self.limits.time(at));
        if let Err(why) = fits {
            self.refuse(1, &why, || labels.to_string());
            return None;
        }
        self.seen.note(&resource);
        self.newest = self.newest.max(Some(at));
        self.targets
            .insert((labels.value("job").to_owned(), labels.value("instance").to_owned()));
        Some(Place {
            owner: owner_of(resource.as_deref()),
            labels,
            at,
            start: Some(time_of(start).floor_ms()).filter(|s| start > 0 && *s <= at && self.limits.time(*s).is_ok()),
            stale: flags & DataPointFlags::NoRecordedValueMask as u32 != 0,
        })
    }

    fn emit(&mut self, labels: Labels, owner: Owner, samples: Vec<Sample>) {
        self.batch.series.push(SeriesBlock { labels, owner, samples });
    }

    /// A delta's running total; `None` when it was refused.
    fn total(&mut self, place: &Place, delta: &Amount) -> Option<(Amount, Option<TimestampNs>)> {
        match self.deltas.add(
            self.tenant,
            &place.labels,
            (place.start, place.at),
            delta,
            self.limits.now,
        ) {
            // A start within the millisecond of the point tells a new total, and leaves no room for a sample before it.
            Ok(total) => Some((total.amount, place.start.filter(|s| total.starts && *s < place.at))),
            Err(why) => {
                self.refuse(1, &why, || place.labels.to_string());
                None
            }
        }
    }

    fn numbers(&mut self, name: &str, points: Vec<NumberDataPoint>, delta: Option<bool>, monotonic: bool) {
        let Some(delta) = delta else {
            return self.refuse(points.len() as u64, &Refusal::UnknownTemporality, || name.to_owned());
        };
        for point in points {
            let times = (point.start_time_unix_nano, point.time_unix_nano);
            let Some(place) = self.place(name, point.attributes, times, point.flags, None) else {
                continue;
            };
            let value = match point.value {
                _ if place.stale => f64::from_bits(STALE_NAN_BITS),
                Some(Number::AsDouble(v)) => v,
                Some(Number::AsInt(v)) => v as f64,
                None => {
                    self.refuse(1, &Refusal::NoValue, || place.labels.to_string());
                    continue;
                }
            };
            let (value, reset) = if delta && !place.stale {
                match self.total(&place, &Amount::Number(value)) {
                    Some((Amount::Number(total), reset)) => (total, reset.filter(|_| monotonic)),
                    _ => continue,
                }
            } else {
                (value, None)
            };
            for exemplar in point.exemplars {
                let exemplar = exemplar_of(exemplar, place.at);
                self.exemplars.add(&place.labels, place.owner, exemplar, self.limits);
            }
            let samples = with_reset(place.at, value, reset);
            self.emit(place.labels, place.owner, samples);
        }
    }

    fn histogram(
        &mut self,
        name: &str,
        attributes: Vec<KeyValue>,
        times: (u64, u64),
        (flags, exemplars): (u32, Vec<OtlpExemplar>),
        amount: Result<Amount, Refusal>,
        delta: Option<bool>,
    ) {
        // The suffix counts towards the checks: `le` as a label, `_bucket` within the value of the name.
        let Some(place) = self.place(name, attributes, times, flags, Some("le")) else {
            return;
        };
        let amount = match (amount, delta) {
            (Err(why), _) => return self.refuse(1, &why, || place.labels.to_string()),
            (_, None) => return self.refuse(1, &Refusal::UnknownTemporality, || place.labels.to_string()),
            (Ok(amount), Some(_)) => amount,
        };
        let (amount, reset) = if delta == Some(true) && !place.stale {
            match self.total(&place, &amount) {
                Some(total) => total,
                None => return,
            }
        } else {
            (amount, None)
        };
        let (buckets, count, sum) = match amount {
            Amount::Histogram { buckets, count, sum } => (buckets, count, sum),
            Amount::Native(histogram) => return self.native(place, &histogram, exemplars, reset),
            Amount::Number(_) => return,
        };
        if let Err(why) = self.budget.take(&place.labels, Width::of(&buckets)) {
            return self.refuse(1, &why, || place.labels.to_string());
        }
        for exemplar in exemplars {
            let exemplar = exemplar_of(exemplar, place.at);
            let bounds = buckets.keys().map(|bound| bound.0);
            let series = bucket_of(&place.labels, bounds, exemplar.value);
            self.exemplars.add(&series, place.owner, exemplar, self.limits);
        }
        let value = |v: f64| if place.stale { f64::from_bits(STALE_NAN_BITS) } else { v };
        histogram::rows(&place.labels, &buckets, count, sum, |labels, v| {
            self.emit(labels, place.owner, with_reset(place.at, value(v), reset));
        });
    }

    fn native(
        &mut self,
        place: Place,
        histogram: &Histogram,
        exemplars: Vec<OtlpExemplar>,
        reset: Option<TimestampNs>,
    ) {
        let mut lines = vec![];
        let none = Histogram {
            schema: histogram.schema,
            zero_threshold: histogram.zero_threshold,
            hint: Hint::Reset,
            ..Histogram::default()
        };
        let zero = reset.map(|at| (at, line_of(&none)));
        let here = match place.stale {
            true => Ok(STALE_LINE.to_owned()),
            false => line_of(histogram),
        };
        for (at, line) in zero.into_iter().chain([(place.at, here)]) {
            let taken = line.and_then(|line| self.budget.take_line(&place.labels, &line).map(|()| line));
            match taken {
                Ok(line) => lines.push(LogLine {
                    at,
                    line: line.into(),
                    metadata: vec![],
                }),
                Err(why) => return self.refuse(1, &why, || place.labels.to_string()),
            }
        }
        for exemplar in exemplars {
            let exemplar = exemplar_of(exemplar, place.at);
            self.exemplars.add(&place.labels, place.owner, exemplar, self.limits);
        }
        self.batch.streams.push(StreamBlock {
            labels: place.labels.with(TRACE_LABEL, NATIVE),
            owner: place.owner,
            lines,
        });
    }

    fn summary(&mut self, name: &str, point: SummaryDataPoint) {
        let times = (point.start_time_unix_nano, point.time_unix_nano);
        let Some(place) = self.place(name, point.attributes, times, point.flags, Some("quantile")) else {
            return;
        };
        if point.quantile_values.len() > HISTOGRAM_BUCKETS_MAX {
            let why = bad_buckets(format!(
                "{} quantiles, more than {HISTOGRAM_BUCKETS_MAX}",
                point.quantile_values.len()
            ));
            return self.refuse(1, &why, || place.labels.to_string());
        }
        let value = |v: f64| if place.stale { f64::from_bits(STALE_NAN_BITS) } else { v };
        for q in point.quantile_values {
            let labels = derived(&place.labels, "", Some(("quantile", names::number(q.quantile))));
            self.emit(labels, place.owner, with_reset(place.at, value(q.value), None));
        }
        for (suffix, v) in [("_sum", point.sum), ("_count", point.count as f64)] {
            let labels = derived(&place.labels, suffix, None);
            self.emit(labels, place.owner, with_reset(place.at, value(v), None));
        }
    }

    /// `target_info`, and who runs on what.
    fn finish(self) {
        let Some(at) = self.newest else { return };
        let (edges, ends) = identity::edges(self.tenant, &self.attrs);
        ends.into_iter().for_each(|r| self.seen.note(&Some(r.into())));
        for edge in edges {
            if !self.batch.edges.contains(&edge) {
                self.batch.edges.push(edge);
            }
        }
        let identifies = ["service.name", "service.namespace", "service.instance.id"];
        let mut telling = self.attrs.clone();
        telling
            .retain(|(n, v)| !identifies.contains(&n.as_str()) && v.len() <= self.limits.bounds.label_value_bytes_max);
        if telling.is_empty() {
            return;
        }
        for (job, instance) in self.targets {
            let mut pairs = label_pairs(&telling);
            pairs.retain(|(n, _)| n != "job" && n != "instance");
            // Resources with more attributes than a label set holds are told in part; the resource keeps all.
            pairs.truncate(self.limits.bounds.labels_max - 3);
            let fixed = [(METRIC_NAME, "target_info"), ("job", &job), ("instance", &instance)];
            pairs.extend(fixed.map(|(n, v)| (n.to_owned(), v.to_owned())));
            if let Err(why) = self.limits.labels(&pairs, true) {
                // No data point of the sender's: the reason is told, nothing is counted as lost.
                self.rejected.add(0, &why, || "target_info".to_owned());
                continue;
            }
            let labels = Labels::new(pairs);
            let resource = identity::owning(self.tenant, &labels, &self.attrs);
            self.batch.series.push(SeriesBlock {
                labels,
                owner: owner_of(resource.as_ref()),
                samples: vec![Sample { at, value: 1.0 }],
            });
        }
    }
}

/// `at`: of the data point, for an exemplar without a time.
fn exemplar_of(exemplar: OtlpExemplar, at: TimestampNs) -> Exemplar {
    let mut labels = label_pairs(&as_text(exemplar.filtered_attributes));
    for (name, id) in [("trace_id", exemplar.trace_id), ("span_id", exemplar.span_id)] {
        if !id.is_empty() {
            let hex = id.iter().map(|byte| format!("{byte:02x}")).collect();
            labels.retain(|(n, _)| n != name);
            labels.push((name.to_owned(), hex));
        }
    }
    Exemplar {
        labels,
        value: match exemplar.value {
            Some(ExemplarValue::AsDouble(v)) => v,
            Some(ExemplarValue::AsInt(v)) => v as f64,
            None => f64::NAN,
        },
        at: match exemplar.time_unix_nano {
            0 => at,
            time => time_of(time),
        },
    }
}

fn time_of(unix_nano: u64) -> TimestampNs {
    TimestampNs(i64::try_from(unix_nano).unwrap_or(i64::MAX))
}

/// `None`: neither delta nor cumulative.
fn is_delta(temporality: i32) -> Option<bool> {
    match AggregationTemporality::try_from(temporality) {
        Ok(AggregationTemporality::Delta) => Some(true),
        Ok(AggregationTemporality::Cumulative) => Some(false),
        _ => None,
    }
}

fn with_reset(at: TimestampNs, value: f64, reset: Option<TimestampNs>) -> Vec<Sample> {
    let zero = reset.map(|at| Sample { at, value: 0.0 });
    zero.into_iter().chain([Sample { at, value }]).collect()
}

fn explicit(point: &HistogramDataPoint) -> Result<Amount, Refusal> {
    let counts = point.bucket_counts.iter().map(|n| *n as f64);
    Ok(Amount::Histogram {
        buckets: histogram::explicit(&point.explicit_bounds, counts)?,
        count: point.count as f64,
        sum: point.sum,
    })
}

/// The threshold of a zero bucket whose sender names none: nothing that is measured is nearer to zero.
const ZERO_THRESHOLD: f64 = 1e-128;

fn exponential(point: &ExponentialHistogramDataPoint) -> Result<Amount, Refusal> {
    if point.scale < *SCHEMAS.start() {
        return Err(bad_buckets(format!(
            "scale {} is less than {}",
            point.scale,
            SCHEMAS.start()
        )));
    }
    let shift = point.scale.saturating_sub(*SCHEMAS.end()).clamp(0, 63) as u32;
    let threshold = point.zero_threshold;
    Ok(Amount::Native(Histogram {
        schema: point.scale.min(*SCHEMAS.end()),
        count: point.count as f64,
        sum: point.sum.unwrap_or_default(),
        zero_threshold: if threshold > 0.0 { threshold } else { ZERO_THRESHOLD },
        zero_count: point.zero_count as f64,
        positive: side(point.positive.as_ref(), shift)?,
        negative: side(point.negative.as_ref(), shift)?,
        ..Histogram::default()
    }))
}

/// Buckets in use, made coarser by so many halvings. OpenTelemetry names a bucket by its lower edge, Prometheus by its upper one.
fn side(buckets: Option<&Buckets>, shift: u32) -> Result<Vec<(i32, f64)>, Refusal> {
    let (offset, counts) = buckets.map_or((0, &[][..]), |b| (i64::from(b.offset), &b.bucket_counts[..]));
    let mut side: Vec<(i32, f64)> = vec![];
    for (at, n) in (offset..).zip(counts).filter(|(_, n)| **n > 0) {
        let index = i32::try_from((at >> shift) + 1);
        let index = index.map_err(|_| bad_buckets(format!("bucket {at} is beyond all numbers")))?;
        match side.last_mut() {
            Some((last, more)) if *last == index => *more += *n as f64,
            _ => side.push((index, *n as f64)),
        }
    }
    Ok(side)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use prost::Message;

    const LIMITS: LimitsContext = LimitsContext {
        now: TimestampNs(i64::MAX),
        floor: None,
        bounds: crate::check::Bounds::DEFAULT,
    };

    #[test]
    fn a_negative_zero_in_json_keeps_its_sign() {
        for (text, bits) in [
            ("-0.0", (-0.0f64).to_bits()),
            ("-0", (-0.0f64).to_bits()),
            ("0", 0),
            ("5e-324", 1),
        ] {
            let body = format!(
                r#"{{"resourceMetrics":[{{"scopeMetrics":[{{"metrics":[{{"name":"m","gauge":{{"dataPoints":
                    [{{"timeUnixNano":"1000000000","asDouble":{text}}}]}}}}]}}]}}]}}"#
            );
            let request = crate::otlp::from_json(crate::Protocol::OtlpMetrics, body.as_bytes()).unwrap();
            let adapted = adapt(&TenantId::default(), request, &LIMITS, &mut DeltaState::new(10));
            let series = adapted
                .batch
                .series
                .iter()
                .find(|s| s.labels.metric_name() == Some("m"));
            assert_eq!(series.unwrap().samples[0].value.to_bits(), bits, "{text}");
        }
    }

    /// Two short-lived senders, one after the other, each done within a millisecond: the second one's count was added to the first one's.
    #[test]
    fn a_delta_that_began_and_ended_in_one_millisecond_begins_a_new_total() {
        let mut deltas = DeltaState::new(10);
        let mut totals = vec![];
        for (start, at) in [("7000100000", "7000200000"), ("7003100000", "7003900000")] {
            let body = format!(
                r#"{{"resourceMetrics":[{{"scopeMetrics":[{{"metrics":[{{"name":"m","sum":{{"isMonotonic":true,"aggregationTemporality":1,"dataPoints":
                    [{{"startTimeUnixNano":"{start}","timeUnixNano":"{at}","asInt":"45"}}]}}}}]}}]}}]}}"#
            );
            let request = crate::otlp::from_json(crate::Protocol::OtlpMetrics, body.as_bytes()).unwrap();
            let adapted = adapt(&TenantId::default(), request, &LIMITS, &mut deltas);
            let is_it = |s: &&SeriesBlock| s.labels.metric_name() == Some("m_total");
            let series = adapted.batch.series.iter().find(is_it).unwrap();
            totals.extend(series.samples.iter().map(|s| (s.at.as_ms(), s.value)));
        }
        assert_eq!(totals, [(7_000, 45.0), (7_003, 45.0)]);
    }

    fn point(scale: i32, offset: i32, counts: Vec<u64>) -> ExponentialHistogramDataPoint {
        ExponentialHistogramDataPoint {
            scale,
            count: counts.iter().sum(),
            positive: Some(Buckets {
                offset,
                bucket_counts: counts.clone(),
            }),
            negative: Some(Buckets {
                offset,
                bucket_counts: counts,
            }),
            ..Default::default()
        }
    }

    proptest! {
        #[test]
        fn buckets_of_any_scale_hold_all_counts(
            scale in -20i32..25, offset: i32, counts in proptest::collection::vec(0u64..100, 0..2000),
        ) {
            let sent: u64 = counts.iter().sum();
            if let Ok(Amount::Native(h)) = exponential(&point(scale, offset, counts)) {
                prop_assert_eq!(h.schema, scale.min(8));
                let all = |side: &[(i32, f64)]| side.iter().map(|(_, n)| n).sum::<f64>();
                prop_assert_eq!((all(&h.positive), all(&h.negative)), (sent as f64, sent as f64));
                prop_assert!(h.positive.is_sorted_by(|a, b| a.0 < b.0));
            } else {
                prop_assert!(scale < -4 || offset > i32::MAX - 2001);
            }
        }

        #[test]
        fn random_bytes_never_panic(body in proptest::collection::vec(any::<u8>(), 0..300)) {
            if let Ok(request) = ExportMetricsServiceRequest::decode(&body[..]) {
                adapt(&TenantId::default(), request, &LIMITS, &mut DeltaState::default());
            }
        }
    }

    #[test]
    fn metrics_are_described_under_the_names_that_are_stored() {
        let body = r#"{"resourceMetrics":[{"scopeMetrics":[{"metrics":[
            {"name":"http.requests","unit":"{request}","description":"Requests that came","sum":{"isMonotonic":true,"aggregationTemporality":2,
                "dataPoints":[{"timeUnixNano":"1","asInt":"3","exemplars":[{"asDouble":1.0},{"asDouble":2.0}]}]}},
            {"name":"disk.io","unit":"By/s","gauge":{"dataPoints":[]}},
            {"name":"took","unit":"ms","description":"How long","histogram":{"aggregationTemporality":2,"dataPoints":[]}}]}]}]}"#;
        let request = crate::otlp::from_json(crate::Protocol::OtlpMetrics, body.as_bytes()).unwrap();
        let (tenant, mut due) = (TenantId::default(), Due::default());
        assert_eq!(describe(&tenant, &request, &LIMITS, &Described::default(), &mut due), 2);
        let rows = due.batch(&tenant, TimestampNs(0)).series;
        let mut shown: Vec<_> = rows.iter().map(|s| s.labels.to_string()).collect();
        shown.sort();
        assert_eq!(
            shown,
            [
                r#"hindcast_metric_info{help="How long", metric="took_milliseconds", type="histogram", unit="milliseconds"}"#,
                r#"hindcast_metric_info{help="Requests that came", metric="http_requests_total", type="counter"}"#,
                r#"hindcast_metric_info{metric="disk_io_bytes_per_second", type="gauge", unit="bytes_per_second"}"#,
            ]
        );
    }

    #[test]
    fn exemplars_lead_from_a_series_to_a_trace() {
        let ids = r#""traceId":"5b8efff798038103d269b633813fc60c","spanId":"eee19b7ec3c1b174""#;
        let attribute = r#""filteredAttributes":[{"key":"http.route","value":{"stringValue":"/cart"}}]"#;
        let body = format!(
            r#"{{"resourceMetrics":[{{"resource":{{"attributes":[{{"key":"service.name","value":{{"stringValue":"shop"}}}}]}},"scopeMetrics":[{{"metrics":[
            {{"name":"http.requests","sum":{{"isMonotonic":true,"aggregationTemporality":2,
                "dataPoints":[{{"timeUnixNano":"7000000","asInt":"3","exemplars":[{{"asInt":"2",{ids},"timeUnixNano":"6000001"}}]}}]}}}},
            {{"name":"took","unit":"s","histogram":{{"aggregationTemporality":2,"dataPoints":[{{"timeUnixNano":"7000000","count":"3","sum":2.0,
                "explicitBounds":[0.1,1],"bucketCounts":["1","1","1"],"exemplars":[{{"asDouble":0.1,{ids},{attribute}}},{{"asDouble":0.2}},{{"asDouble":7}}]}}]}}}}]}}]}}]}}"#
        );
        let request = crate::otlp::from_json(crate::Protocol::OtlpMetrics, body.as_bytes()).unwrap();
        let Adapted { batch, rejected } = adapt(&TenantId::default(), request, &LIMITS, &mut DeltaState::default());
        assert_eq!(rejected.items(), 0);
        let mut shown = String::new();
        for stream in &batch.streams {
            shown += &format!("{}\n", stream.labels);
            let of_metric = |s: &&SeriesBlock| s.owner == stream.owner;
            assert!(batch.series.iter().any(|s| of_metric(&s)));
            for l in &stream.lines {
                let line = String::from_utf8_lossy(&l.line);
                shown += &format!("  {} {line} {:?}\n", l.at.0, l.metadata);
                let (series, _) = hindcast_proto::trace::read_exemplar_line(&l.line).unwrap();
                assert!(batch.series.iter().any(|s| s.labels == series), "it is a stored one");
            }
        }
        expect_test::expect![[r#"
            {hindcast_metric="http_requests_total", hindcast_trace="exemplar"}
              6000001 {"series":{"__name__":"http_requests_total","instance":"shop","job":"shop"},"value":"2"} [("span_id", "eee19b7ec3c1b174"), ("trace_id", "5b8efff798038103d269b633813fc60c")]
            {hindcast_metric="took_seconds_bucket", hindcast_trace="exemplar"}
              7000000 {"series":{"__name__":"took_seconds_bucket","instance":"shop","job":"shop","le":"0.1"},"value":"0.1"} [("http_route", "/cart"), ("span_id", "eee19b7ec3c1b174"), ("trace_id", "5b8efff798038103d269b633813fc60c")]
              7000000 {"series":{"__name__":"took_seconds_bucket","instance":"shop","job":"shop","le":"1"},"value":"0.2"} []
              7000000 {"series":{"__name__":"took_seconds_bucket","instance":"shop","job":"shop","le":"+Inf"},"value":"7"} []
        "#]].assert_eq(&shown);
    }

    #[test]
    fn a_finer_scale_is_merged_without_moving_a_count() {
        let got = exponential(&point(10, 64, vec![1; 16])).unwrap();
        let Amount::Native(h) = got else { panic!("{got:?}") };
        assert_eq!(h.to_line().unwrap(), "h1 s=8 c=16 zt=1e-128 p=17:4,4,4,4 n=17:4,4,4,4");
    }

    #[test]
    fn exponential_histograms_are_lines_of_their_series() {
        let of = |temporality: u8, points: &str| {
            format!(
                r#"{{"resourceMetrics":[{{"resource":{{"attributes":[{{"key":"service.name","value":{{"stringValue":"shop"}}}}]}},
                "scopeMetrics":[{{"metrics":[{{"name":"took","unit":"s","exponentialHistogram":
                    {{"aggregationTemporality":{temporality},"dataPoints":[{points}]}}}}]}}]}}]}}"#
            )
        };
        let point = |at: u64, more: &str| {
            let start = at - 1;
            format!(
                r#"{{"startTimeUnixNano":"{start}000000000","timeUnixNano":"{at}000000000","count":"3","sum":2.5,"scale":1,"zeroCount":"1",
                "positive":{{"offset":-1,"bucketCounts":["2"]}}{more}}}"#
            )
        };
        let exemplar = r#","exemplars":[{"timeUnixNano":"1000000000","asDouble":0.7,"traceId":"5b8efff798038103d269b633813fc60c"}]"#;
        let bodies = [
            of(2, &point(10, exemplar)),
            of(2, &point(11, r#","flags":1"#)),
            // Deltas add up; the first one begins with nothing.
            of(1, &[point(20, ""), point(21, "")].join(",")),
            of(0, &point(30, "")),
            of(2, r#"{"timeUnixNano":"40000000000","scale":-5}"#),
        ];
        let (tenant, mut deltas, mut shown) = (TenantId::default(), DeltaState::new(100), String::new());
        for body in bodies {
            let request = crate::otlp::from_json(crate::Protocol::OtlpMetrics, body.as_bytes()).unwrap();
            let adapted = adapt(&tenant, request, &LIMITS, &mut deltas);
            for r in adapted.rejected.listed() {
                shown += &format!("{}: {}\n", r.code, r.why);
            }
            for s in adapted.batch.streams {
                shown += &format!("{}\n", s.labels);
                for l in s.lines {
                    shown += &format!("  {} {}\n", l.at.as_ms(), String::from_utf8_lossy(&l.line));
                }
            }
        }
        expect_test::expect![[r#"
            took_seconds{hindcast_trace="histogram", instance="shop", job="shop"}
              10000 h1 s=1 c=3 sum=2.5 zt=1e-128 zc=1 p=0:2
            {hindcast_metric="took_seconds", hindcast_trace="exemplar"}
              1000 {"series":{"__name__":"took_seconds","instance":"shop","job":"shop"},"value":"0.7"}
            took_seconds{hindcast_trace="histogram", instance="shop", job="shop"}
              11000 h1 stale
            took_seconds{hindcast_trace="histogram", instance="shop", job="shop"}
              19000 h1 s=1 zt=1e-128 r=r
              20000 h1 s=1 c=3 sum=2.5 zt=1e-128 zc=1 p=0:2
            took_seconds{hindcast_trace="histogram", instance="shop", job="shop"}
              21000 h1 s=1 c=6 sum=5 zt=1e-128 zc=2 p=0:4
            unknown_temporality: its aggregation temporality is neither delta nor cumulative
            bad_buckets: its buckets are not readable: scale -5 is less than -4
        "#]]
        .assert_eq(&shown);
    }

    #[test]
    fn what_cannot_be_read_is_refused_and_counted_as_data_points() {
        let wide = HistogramDataPoint {
            explicit_bounds: vec![0.0; HISTOGRAM_BUCKETS_MAX + 1],
            ..Default::default()
        };
        assert!(explicit(&wide).is_err());
        let falling = HistogramDataPoint {
            explicit_bounds: vec![2.0, 1.0],
            bucket_counts: vec![0; 3],
            ..Default::default()
        };
        assert_eq!(explicit(&falling), Err(bad_buckets("the bounds do not rise")));
        assert!(exponential(&point(-5, 0, vec![1])).is_err());
        assert!(exponential(&point(0, i32::MAX, vec![1])).is_err());
    }
}
