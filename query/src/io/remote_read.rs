//! Prometheus remote read: another Prometheus asks for samples as they came, in protobuf under snappy.
//!
//! Answers in the form `SAMPLES` of the protocol, native histograms among them, whole or with an error: a reader cannot be told that something is missing,
//! so an answer that is not whole is refused. Bounded by the engine's limits, all queries of a request together.
//! Source: `remote.proto` and `types.proto` of Prometheus 2.42.

use super::http::Refusal;
use super::params::tenant;
use crate::engine::{Engine, QueryError};
use crate::shards::{Budget, Completeness, SeriesRequest};
use axum::body::{Body, Bytes};
use axum::extract::{FromRequest, Request, State};
use axum::http::StatusCode;
use axum::http::header::{CONTENT_ENCODING, CONTENT_TYPE};
use axum::response::Response;
use hindcast_model::{Labels, MatchOp, Matcher, TenantId, TimestampNs};
use hindcast_proto::native::message;
use hindcast_storage::read::SeriesData;
use prost::Message;
use std::collections::BTreeMap;
use std::sync::Arc;

/// Bytes of a request when it is unpacked: selectors, nothing else.
const REQUEST_BYTES_MAX: usize = 1024 * 1024;
/// Queries of one request.
const QUERIES_MAX: usize = 100;

#[derive(Clone, PartialEq, Message)]
struct ReadRequest {
    #[prost(message, repeated, tag = "1")]
    queries: Vec<Query>,
    #[prost(int32, repeated, tag = "2")]
    accepted: Vec<i32>,
}

#[derive(Clone, PartialEq, Message)]
struct Query {
    #[prost(int64, tag = "1")]
    start_ms: i64,
    /// Included.
    #[prost(int64, tag = "2")]
    end_ms: i64,
    #[prost(message, repeated, tag = "3")]
    matchers: Vec<LabelMatcher>,
}

#[derive(Clone, PartialEq, Message)]
struct LabelMatcher {
    #[prost(int32, tag = "1")]
    kind: i32,
    #[prost(string, tag = "2")]
    name: String,
    #[prost(string, tag = "3")]
    value: String,
}

#[derive(Clone, PartialEq, Message)]
struct ReadResponse {
    #[prost(message, repeated, tag = "1")]
    results: Vec<QueryResult>,
}

#[derive(Clone, PartialEq, Message)]
struct QueryResult {
    #[prost(message, repeated, tag = "1")]
    series: Vec<TimeSeries>,
}

#[derive(Clone, PartialEq, Message)]
struct TimeSeries {
    #[prost(message, repeated, tag = "1")]
    labels: Vec<Label>,
    #[prost(message, repeated, tag = "2")]
    samples: Vec<Sample>,
    /// Each is Prometheus' message `Histogram`.
    #[prost(bytes, repeated, tag = "4")]
    histograms: Vec<Vec<u8>>,
}

#[derive(Clone, PartialEq, Message)]
struct Label {
    #[prost(string, tag = "1")]
    name: String,
    #[prost(string, tag = "2")]
    value: String,
}

#[derive(Clone, Copy, PartialEq, Message)]
struct Sample {
    #[prost(double, tag = "1")]
    value: f64,
    #[prost(int64, tag = "2")]
    at_ms: i64,
}

/// The type `SAMPLES`; the other one, `STREAMED_XOR_CHUNKS`, is 1.
const SAMPLES: i32 = 0;

fn matcher(m: &LabelMatcher) -> Result<Matcher, Refusal> {
    let op = match m.kind {
        0 => MatchOp::Equal,
        1 => MatchOp::NotEqual,
        2 => MatchOp::Regex,
        3 => MatchOp::NotRegex,
        other => return Err(Refusal::bad_data(format!("matcher type {other} is not known"))),
    };
    Matcher::new(&m.name, op, &m.value).map_err(|e| Refusal::bad_data(e.to_string()))
}

fn unpacked(body: &[u8]) -> Result<ReadRequest, Refusal> {
    let bad = |why: String| Refusal::bad_data(format!("the body is no remote read request: {why}"));
    let bytes = snap::raw::decompress_len(body).map_err(|e| bad(e.to_string()))?;
    if bytes > REQUEST_BYTES_MAX {
        return Err(bad(format!(
            "it unpacks to {bytes} bytes, more than {REQUEST_BYTES_MAX}"
        )));
    }
    let raw = snap::raw::Decoder::new().decompress_vec(body);
    let request = ReadRequest::decode(raw.map_err(|e| bad(e.to_string()))?.as_slice());
    let request = request.map_err(|e| bad(e.to_string()))?;
    if request.queries.len() > QUERIES_MAX {
        return Err(bad(format!("it has more than {QUERIES_MAX} queries")));
    }
    if !request.accepted.is_empty() && !request.accepted.contains(&SAMPLES) {
        return Err(Refusal::bad_data(
            "only the response type SAMPLES is served: let the reader accept it, too",
        ));
    }
    Ok(request)
}

/// Whether all was read.
fn check(engine: &Engine, budget: &Budget, completeness: &Completeness) -> Result<(), Refusal> {
    if budget.is_exceeded() {
        return Err(Refusal::of(&QueryError::TooLarge {
            what: "samples",
            max: engine.limits.samples_max,
        }));
    }
    if !completeness.is_complete() {
        let missing = completeness.missing.join("; ");
        return Err(Refusal::unavailable(format!("the answer is not whole: {missing}")));
    }
    Ok(())
}

/// All or an error; sorted by labels, without series that have nothing in between. Both ends included.
pub(super) async fn samples_as_they_came(
    engine: &Engine,
    tenant: &TenantId,
    matchers: Vec<Matcher>,
    (from, to): (TimestampNs, TimestampNs),
    budget: &Arc<Budget>,
) -> Result<Vec<SeriesData>, Refusal> {
    let request = SeriesRequest {
        tenant: tenant.clone(),
        matchers,
        from,
        to,
        as_of: None,
        owners: None,
        only: None,
        budget: budget.clone(),
    };
    let read = engine.shards.series(request).await;
    let (mut found, completeness) = read.map_err(|e| Refusal::of(&QueryError::from(e)))?;
    check(engine, budget, &completeness)?;
    found.retain(|s| !s.samples.is_empty());
    found.sort_unstable_by(|a, b| a.labels.cmp(&b.labels));
    Ok(found)
}

/// Native histograms in between, as messages, by their series. Not whole is an error here, too.
async fn natives(engine: &Engine, request: &SeriesRequest) -> Result<BTreeMap<Labels, Vec<Vec<u8>>>, Refusal> {
    let read = engine.shards.natives(request.clone()).await;
    let (series, completeness) = read.map_err(|e| Refusal::of(&QueryError::from(e)))?;
    check(engine, &request.budget, &completeness)?;
    let mut found: BTreeMap<Labels, BTreeMap<i64, Vec<u8>>> = BTreeMap::new();
    for s in series {
        if s.unreadable > 0 {
            let why = format!("{} lines of {} are no native histograms", s.unreadable, s.labels);
            return Err(Refusal::unavailable(why));
        }
        let of_series = found.entry(s.labels).or_default();
        for (at, native) in s.samples {
            of_series.insert(at.as_ms(), message(native.as_deref(), at.as_ms()));
        }
    }
    let in_order = found
        .into_iter()
        .map(|(labels, all)| (labels, all.into_values().collect()));
    Ok(in_order.collect())
}

async fn result(
    engine: &Engine,
    tenant: &TenantId,
    query: &Query,
    budget: &Arc<Budget>,
) -> Result<QueryResult, Refusal> {
    let ms = |ms: i64| TimestampNs::from_ms(ms.clamp(TimestampNs::MIN.as_ms(), TimestampNs::MAX.as_ms()));
    let (from, to) = (ms(query.start_ms), ms(query.end_ms));
    if to < from {
        return Ok(QueryResult::default());
    }
    let matchers: Vec<_> = query.matchers.iter().map(matcher).collect::<Result<_, _>>()?;
    let request = SeriesRequest {
        tenant: tenant.clone(),
        matchers: matchers.clone(),
        from,
        to,
        as_of: None,
        owners: None,
        only: None,
        budget: budget.clone(),
    };
    let mut natives = natives(engine, &request).await?;
    let series = samples_as_they_came(engine, tenant, matchers, (from, to), budget).await?;
    let label = |(name, value): (&str, &str)| Label {
        name: name.to_owned(),
        value: value.to_owned(),
    };
    let mut of_one = |s: SeriesData| TimeSeries {
        histograms: natives.remove(&s.labels).unwrap_or_default(),
        labels: s.labels.iter().map(label).collect(),
        samples: s
            .samples
            .iter()
            .map(|s| Sample {
                value: s.value,
                at_ms: s.at.as_ms(),
            })
            .collect(),
    };
    let mut all: Vec<(Labels, TimeSeries)> = series.into_iter().map(|s| (s.labels.clone(), of_one(s))).collect();
    all.extend(natives.into_iter().map(|(labels, histograms)| {
        let of_series = TimeSeries {
            labels: labels.iter().map(label).collect(),
            samples: vec![],
            histograms,
        };
        (labels, of_series)
    }));
    all.sort_by(|a, b| a.0.cmp(&b.0));
    Ok(QueryResult {
        series: all.into_iter().map(|(_, series)| series).collect(),
    })
}

async fn read(engine: &Engine, request: Request<Body>) -> Result<Response, Refusal> {
    let tenant = tenant(request.headers())?;
    let body = Bytes::from_request(request, &()).await.map_err(|e| match e.status() {
        StatusCode::PAYLOAD_TOO_LARGE => Refusal::form_too_large(),
        _ => Refusal::bad_data(e.body_text()),
    })?;
    let asked = unpacked(&body)?;
    let budget = Arc::new(Budget::new(engine.limits.samples_max, engine.limits.series_max));
    let mut response = ReadResponse::default();
    for query in &asked.queries {
        response.results.push(result(engine, &tenant, query, &budget).await?);
    }
    let packed = snap::raw::Encoder::new().compress_vec(&response.encode_to_vec());
    let packed = packed.map_err(|e| Refusal::too_large(format!("the answer is too large for snappy: {e}")))?;
    let mut response = Response::new(Body::from(packed));
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, "application/x-protobuf".parse().expect("plain text"));
    headers.insert(CONTENT_ENCODING, "snappy".parse().expect("plain text"));
    Ok(response)
}

pub(super) async fn remote_read(State(engine): State<Arc<Engine>>, request: Request<Body>) -> Response {
    // Readers show the text of an error as it is.
    read(&engine, request).await.unwrap_or_else(|refusal| refusal.plain())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Limits;
    use crate::io::prometheus_router;
    use crate::testing::OneShard;
    use expect_test::{Expect, expect};
    use hindcast_model::{Labels, LogLine, Owner, STALE_NAN_BITS};
    use hindcast_proto::trace::{NATIVE, TRACE_LABEL};
    use http_body_util::BodyExt;
    use tower::ServiceExt;

    /// Posts a body; the status, and what came back.
    fn post(body: Vec<u8>, limits: Limits) -> (u16, Vec<u8>) {
        let (shard, tenant) = (OneShard::new(), TenantId::default());
        let sample = |s: i64, value| hindcast_model::Sample {
            at: TimestampNs::from_secs(s),
            value,
        };
        for (job, value) in [("b", 2.0), ("a", 1.0)] {
            let gone = f64::from_bits(STALE_NAN_BITS);
            shard.add(
                &tenant,
                Labels::from_pairs([("__name__", "up"), ("job", job)]),
                [sample(10, value), sample(20, value + 0.5), sample(30, gone)],
            );
        }
        // `up{job="b"}` is a histogram later on, and one was sent twice.
        for (job, at_s, line) in [
            ("b", 40, "h1 s=0 c=9"),
            ("b", 40, "h1 s=1 c=3 sum=2 p=-1:1;5:2"),
            ("n", 15, "h1 s=-53 c=1 p=1:1 b=5"),
            ("n", 16, "h1 stale"),
        ] {
            let stream = Labels::from_pairs([("__name__", "up"), ("job", job), (TRACE_LABEL, NATIVE)]);
            let line = LogLine {
                at: TimestampNs::from_secs(at_s),
                line: line.into(),
                metadata: vec![],
            };
            shard.add_lines(&tenant, stream, Owner::None, [line]);
        }
        let app = prometheus_router(Arc::new(Engine::new(Arc::new(shard), limits)));
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        let request = Request::post("/api/v1/read").body(Body::from(body)).unwrap();
        runtime.block_on(async {
            let response = app.oneshot(request).await.unwrap();
            let status = response.status().as_u16();
            (
                status,
                response.into_body().collect().await.unwrap().to_bytes().to_vec(),
            )
        })
    }

    fn packed(request: &ReadRequest) -> Vec<u8> {
        snap::raw::Encoder::new()
            .compress_vec(&request.encode_to_vec())
            .unwrap()
    }

    /// Matchers as (type, name, value), and a range in seconds.
    type Asked<'a> = (&'a [(i32, &'a str, &'a str)], i64, i64);

    /// One request.
    fn check(queries: &[Asked], accepted: &[i32], limits: Limits, expected: Expect) {
        let query = |(matchers, start, end): &Asked| Query {
            start_ms: start * 1000,
            end_ms: end * 1000,
            matchers: matchers
                .iter()
                .map(|(kind, name, value)| LabelMatcher {
                    kind: *kind,
                    name: (*name).to_owned(),
                    value: (*value).to_owned(),
                })
                .collect(),
        };
        let request = ReadRequest {
            queries: queries.iter().map(query).collect(),
            accepted: accepted.to_vec(),
        };
        let (status, body) = post(packed(&request), limits);
        let mut shown = format!("{status}\n");
        if status != 200 {
            shown.push_str(&String::from_utf8_lossy(&body));
            return expected.assert_eq(&shown);
        }
        let raw = snap::raw::Decoder::new().decompress_vec(&body).unwrap();
        for (i, result) in ReadResponse::decode(raw.as_slice()).unwrap().results.iter().enumerate() {
            for series in &result.series {
                let labels: Vec<String> = series
                    .labels
                    .iter()
                    .map(|l| format!("{}={}", l.name, l.value))
                    .collect();
                let samples = series.samples.iter().map(|s| format!("{}@{}", s.value, s.at_ms));
                let samples: Vec<String> = samples.collect();
                shown.push_str(&format!("{i}: {} {}\n", labels.join(","), samples.join(" ")));
                for histogram in &series.histograms {
                    shown.push_str(&format!("     {histogram:02x?}\n"));
                }
            }
        }
        expected.assert_eq(&shown);
    }

    #[test]
    fn a_reader_gets_samples_as_they_came_both_ends_included() {
        let name = (0, "__name__", "up");
        let job = (2, "job", "a|b");
        check(
            &[
                (&[name, job], 10, 20),
                (&[name, (2, "job", "a|c")], 20, 30),
                (&[name, job, (1, "job", "a")], 11, 19),
                (&[name, (3, "job", "b")], 30, 10),
            ],
            &[1, 0],
            Limits::default(),
            expect![[r#"
                200
                0: __name__=up,job=a 1@10000 1.5@20000
                0: __name__=up,job=b 2@10000 2.5@20000
                1: __name__=up,job=a 1.5@20000 NaN@30000
            "#]],
        );
    }

    #[test]
    fn a_reader_of_more_histograms_than_a_query_may_read_is_refused() {
        let limits = Limits {
            samples_max: 20,
            ..Limits::default()
        };
        check(
            &[(&[(0, "__name__", "up")], 35, 50)],
            &[],
            limits,
            expect![[r#"
                422
                the query needs more than 20 samples; ask for less time, fewer series or a longer step"#]],
        );
    }

    #[test]
    fn histograms_are_messages_of_their_series() {
        let name = (0, "__name__", "up");
        check(
            &[(&[name, (1, "job", "a")], 15, 50)],
            &[],
            Limits::default(),
            expect![[r#"
                200
                0: __name__=up,job=b 2.5@20000 NaN@30000
                     [11, 00, 00, 00, 00, 00, 00, 08, 40, 19, 00, 00, 00, 00, 00, 00, 00, 40, 20, 02, 5a, 04, 08, 01, 10, 01, 5a, 04, 08, 0a, 10, 01, 6a, 10, 00, 00, 00, 00, 00, 00, f0, 3f, 00, 00, 00, 00, 00, 00, 00, 40, 78, c0, b8, 02]
                0: __name__=up,job=n 
                     [11, 00, 00, 00, 00, 00, 00, f0, 3f, 20, 69, 5a, 04, 08, 02, 10, 01, 6a, 08, 00, 00, 00, 00, 00, 00, f0, 3f, 78, 98, 75, 82, 01, 08, 00, 00, 00, 00, 00, 00, 14, 40]
                     [11, 02, 00, 00, 00, 00, 00, f0, 7f, 19, 02, 00, 00, 00, 00, 00, f0, 7f, 78, 80, 7d]
            "#]],
        );
    }

    #[test]
    fn what_cannot_be_answered_is_refused_with_the_reason() {
        let name = (0, "__name__", "up");
        let all: &[Asked] = &[(&[name], 0, 100)];
        check(
            all,
            &[1],
            Limits::default(),
            expect![[r#"
            400
            only the response type SAMPLES is served: let the reader accept it, too"#]],
        );
        check(
            &[(&[(2, "job", "(")], 0, 1)],
            &[],
            Limits::default(),
            expect![[r#"
            400
            the regular expression "(" cannot be used: error: unclosed group"#]],
        );
        check(
            &[(&[(9, "job", "a")], 0, 1)],
            &[],
            Limits::default(),
            expect![[r#"
            400
            matcher type 9 is not known"#]],
        );
        let few = Limits {
            samples_max: 3,
            ..Limits::default()
        };
        check(
            all,
            &[],
            few,
            expect![[r#"
                422
                the query needs more than 3 samples; ask for less time, fewer series or a longer step"#]],
        );
        let many = ReadRequest {
            queries: vec![Query::default(); QUERIES_MAX + 1],
            accepted: vec![],
        };
        let large = snap::raw::Encoder::new()
            .compress_vec(&vec![0; REQUEST_BYTES_MAX + 1])
            .unwrap();
        for body in [packed(&many), large, b"no snappy".to_vec(), vec![]] {
            let (status, said) = post(body, Limits::default());
            assert_eq!(status, 400, "{}", String::from_utf8_lossy(&said));
        }
    }
}
