//! `hindcast.v1.Query`: wire messages in and out. Errors by class, through the table of the edge.

use crate::engine::{Engine, InstantQuery, LabelsQuery, LogsQuery, Options, RangeQuery};
use crate::number::go_histogram;
use crate::rows::RowsQuery;
use crate::shards::{Completeness, Consistency, Freshness};
use crate::value::{Answer, LogStream, LogsValue, Value};
use hindcast_model::{Histogram, Labels, SpanNs, TimestampNs};
use hindcast_proto::edge;
use hindcast_proto::v1;
use hindcast_proto::v1::query_server::{Query, QueryServer};
use hindcast_storage::read::Direction;
use std::sync::Arc;
use tonic::{Request, Response, Status};

/// Lines of an answer that names no limit.
const LIMIT_DEFAULT: u32 = 100;

struct Service {
    engine: Arc<Engine>,
}

/// The service; the tenant comes with each call.
pub fn query_service(engine: Arc<Engine>) -> QueryServer<impl Query> {
    QueryServer::new(Service { engine })
}

fn ms(at: i64) -> TimestampNs {
    TimestampNs::from_ms(at)
}

pub(super) fn completeness(c: &Completeness) -> v1::Completeness {
    v1::Completeness {
        complete: c.is_complete(),
        missing: c.missing.clone(),
        positions: edge::positions_to_wire(&c.positions),
        stale: c.freshness != Freshness::Linearizable,
        age_ms: match c.freshness {
            Freshness::Stale { age } => age.map(SpanNs::as_ms),
            Freshness::Linearizable => None,
        },
    }
}

impl Service {
    /// Over shards that are read as the call asks for.
    fn engine_for(&self, metadata: &tonic::metadata::MetadataMap) -> Result<Arc<Engine>, Status> {
        let Some(given) = metadata.get(edge::CONSISTENCY_KEY) else {
            return Ok(self.engine.clone());
        };
        let asked = given.to_str().ok().and_then(Consistency::parse);
        let asked = asked.ok_or_else(|| {
            Status::invalid_argument(format!("{} is linearizable or stale-ok", edge::CONSISTENCY_KEY))
        })?;
        Ok(self.engine.with(asked))
    }
}

type Histograms<'a> = &'a [(TimestampNs, Arc<Histogram>)];

fn series(
    labels: &Labels,
    points: impl IntoIterator<Item = (TimestampNs, f64)>,
    histograms: Histograms<'_>,
) -> v1::SeriesResult {
    let point = |(at, value): (TimestampNs, f64)| v1::ResultPoint {
        at_ms: at.as_ms(),
        value: Some(value),
        histogram: String::new(),
    };
    let mut points: Vec<v1::ResultPoint> = points.into_iter().map(point).collect();
    points.extend(histograms.iter().map(|(at, h)| v1::ResultPoint {
        at_ms: at.as_ms(),
        // Who does not know histograms is not to see a zero.
        value: Some(f64::NAN),
        histogram: go_histogram(h),
    }));
    points.sort_by_key(|p| p.at_ms);
    v1::SeriesResult {
        labels: edge::labels_to_wire(labels),
        points,
    }
}

/// Series and text of a value; `at` is the time of a scalar.
fn value(value: &Value, at: TimestampNs) -> (Vec<v1::SeriesResult>, String) {
    match value {
        Value::Scalar(v) => (vec![series(&Labels::empty(), [(at, *v)], &[])], String::new()),
        Value::String(text) => (vec![], text.clone()),
        Value::Vector(samples) => (
            samples
                .iter()
                .map(|s| match &s.histogram {
                    Some(h) => series(&s.labels, [], &[(s.at, h.clone())]),
                    None => series(&s.labels, [(s.at, s.value)], &[]),
                })
                .collect(),
            String::new(),
        ),
        Value::Matrix(all) => (
            all.iter()
                .map(|s| series(&s.labels, s.points.iter().copied(), &s.histograms))
                .collect(),
            String::new(),
        ),
    }
}

fn response(answer: &Answer<Value>, at: TimestampNs) -> Response<v1::QueryResponse> {
    let (series, text) = value(&answer.value, at);
    Response::new(v1::QueryResponse {
        kind: answer.value.kind().to_owned(),
        series,
        text,
        completeness: Some(completeness(&answer.completeness)),
        notes: answer.warnings.clone(),
    })
}

fn stream(s: &LogStream) -> v1::StreamResult {
    let entries = s.lines.iter().map(|l| v1::LogEntry {
        at_ns: l.at.0,
        line: String::from_utf8_lossy(&l.line).into_owned(),
        metadata: l
            .metadata
            .iter()
            .map(|(name, value)| v1::Label {
                name: name.clone(),
                value: value.clone(),
            })
            .collect(),
    });
    let pairs = s.labels.iter().chain(s.parsed.iter());
    let labels: Labels = pairs.map(|(n, v)| (n.to_owned(), v.to_owned())).collect();
    v1::StreamResult {
        labels: edge::labels_to_wire(&labels),
        entries: entries.collect(),
    }
}

/// Both ends 0: all of time.
fn window(start_ms: i64, end_ms: i64) -> (TimestampNs, TimestampNs) {
    if start_ms == 0 && end_ms == 0 {
        (TimestampNs::MIN, TimestampNs::MAX)
    } else {
        (ms(start_ms), ms(end_ms))
    }
}

#[tonic::async_trait]
impl Query for Service {
    async fn instant(&self, r: Request<v1::InstantRequest>) -> Result<Response<v1::QueryResponse>, Status> {
        let tenant = edge::tenant_of_metadata(r.metadata())?;
        let engine = self.engine_for(r.metadata())?;
        let r = r.into_inner();
        let q = InstantQuery {
            tenant,
            expr: r.expr,
            at: ms(r.at_ms),
            options: Options::default(),
        };
        let answer = engine.instant(&q).await.map_err(|e| edge::status(&e))?;
        Ok(response(&answer, q.at))
    }

    async fn range(&self, r: Request<v1::RangeRequest>) -> Result<Response<v1::QueryResponse>, Status> {
        let tenant = edge::tenant_of_metadata(r.metadata())?;
        let engine = self.engine_for(r.metadata())?;
        let r = r.into_inner();
        let q = RangeQuery {
            tenant,
            expr: r.expr,
            start: ms(r.start_ms),
            end: ms(r.end_ms),
            step: SpanNs::from_ms(r.step_ms),
            options: Options::default(),
        };
        let answer = engine.range(&q).await.map_err(|e| edge::status(&e))?;
        Ok(response(&answer, q.end))
    }

    async fn logs(&self, r: Request<v1::LogsRequest>) -> Result<Response<v1::LogsResponse>, Status> {
        let tenant = edge::tenant_of_metadata(r.metadata())?;
        let engine = self.engine_for(r.metadata())?;
        let r = r.into_inner();
        let limit = if r.limit == 0 { LIMIT_DEFAULT } else { r.limit };
        let q = LogsQuery {
            tenant,
            expr: r.expr,
            start: TimestampNs(r.start_ns),
            end: TimestampNs(r.end_ns),
            step: (r.step_ms > 0).then(|| SpanNs::from_ms(r.step_ms)),
            limit: limit as usize,
            direction: if r.forward {
                Direction::Forward
            } else {
                Direction::Backward
            },
            options: Options::default(),
        };
        let answer = engine.logs(&q).await.map_err(|e| edge::status(&e))?;
        let (streams, series) = match &answer.value {
            LogsValue::Streams(streams) => (streams.iter().map(stream).collect(), vec![]),
            LogsValue::Metric(v) => (vec![], value(v, q.end).0),
        };
        Ok(Response::new(v1::LogsResponse {
            streams,
            series,
            completeness: Some(completeness(&answer.completeness)),
        }))
    }

    async fn labels(&self, r: Request<v1::LabelsRequest>) -> Result<Response<v1::LabelsResponse>, Status> {
        let tenant = edge::tenant_of_metadata(r.metadata())?;
        let engine = self.engine_for(r.metadata())?;
        let r = r.into_inner();
        let (start, end) = window(r.start_ms, r.end_ms);
        let q = LabelsQuery {
            tenant,
            streams: false,
            matching: r.matching,
            start,
            end,
        };
        let answer = if r.label.is_empty() {
            engine.label_names(&q).await
        } else {
            engine.label_values(&q, &r.label).await
        };
        let answer = answer.map_err(|e| edge::status(&e))?;
        Ok(Response::new(v1::LabelsResponse {
            values: answer.value,
            completeness: Some(completeness(&answer.completeness)),
        }))
    }

    async fn series(&self, r: Request<v1::SeriesRequest>) -> Result<Response<v1::SeriesResponse>, Status> {
        let tenant = edge::tenant_of_metadata(r.metadata())?;
        let engine = self.engine_for(r.metadata())?;
        let r = r.into_inner();
        let (start, end) = window(r.start_ms, r.end_ms);
        let q = LabelsQuery {
            tenant,
            streams: false,
            matching: r.matching,
            start,
            end,
        };
        let answer = engine.series(&q).await.map_err(|e| edge::status(&e))?;
        Ok(Response::new(v1::SeriesResponse {
            series: answer.value.iter().map(|labels| series(labels, [], &[])).collect(),
            completeness: Some(completeness(&answer.completeness)),
        }))
    }

    type RowsStream = super::rows::RowsStream;

    async fn rows(&self, r: Request<v1::RowsRequest>) -> Result<Response<Self::RowsStream>, Status> {
        let tenant = edge::tenant_of_metadata(r.metadata())?;
        let r = r.into_inner();
        let q = RowsQuery {
            tenant,
            selector: r.selector,
            lines: r.lines,
            start: TimestampNs(r.start_ns),
            end: TimestampNs(r.end_ns),
        };
        Ok(Response::new(super::rows::stream(self.engine.clone(), q)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use hindcast_model::STALE_NAN_BITS;
    use prost::Message;

    /// `-1 * 0` was answered as 0: protobuf leaves a zero out, and -0 passed for one.
    #[test]
    fn a_negative_zero_keeps_its_sign_on_the_way_out() {
        let odd = [
            -0.0,
            0.0,
            f64::NEG_INFINITY,
            f64::from_bits(0x7ff0_0000_0000_0001),
            f64::from_bits(STALE_NAN_BITS),
        ];
        let points = odd
            .iter()
            .enumerate()
            .map(|(i, v)| (TimestampNs::from_ms(i as i64), *v));
        let sent = series(&Labels::empty(), points, &[]).encode_to_vec();
        let got = v1::SeriesResult::decode(&sent[..]).unwrap();
        assert!(got.points.iter().map(|p| p.value().to_bits()).eq(odd.map(f64::to_bits)));
    }
}
