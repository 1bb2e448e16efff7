//! The Loki HTTP API for reading: parameters in, Loki's JSON out. Errors are plain text, as Loki's are.
//!
//! Times are nanoseconds, Unix seconds with a fraction, or RFC 3339. Lines come as streams, newest first unless asked
//! otherwise; structured metadata shows as labels, or apart when the client asks for `categorize-labels`.

use super::http::{QUERY_SPAN_MAX, Refusal, plain};
use super::json;
use super::params::{self, Params, tenant};
use crate::engine::{Engine, LabelsQuery, LogsQuery, Options, QueryError};
use crate::shards::Completeness;
use crate::value::{Answer, LogStream, LogsValue};
use axum::Router;
use axum::body::Body;
use axum::extract::{Path, Request, State};
use axum::http::HeaderMap;
use axum::response::Response;
use axum::routing::get;
use hindcast_model::{Labels, SpanNs, TimestampNs};
use hindcast_storage::read::Direction;
use std::collections::BTreeMap;
use std::fmt::Write;
use std::future::Future;
use std::sync::Arc;

/// Lines of an answer that names no limit.
const LIMIT_DEFAULT: usize = 100;
/// How far back a query looks that names no start.
const SINCE_DEFAULT: SpanNs = SpanNs::from_secs(3600);
/// Steps of a metric query that names no step.
const STEPS_DEFAULT: u64 = 250;

/// The API under `/loki/api/v1`.
pub fn loki_router(engine: Arc<Engine>) -> Router {
    Router::new()
        .route("/loki/api/v1/query", get(query).post(query))
        .route("/loki/api/v1/query_range", get(query_range).post(query_range))
        .route("/loki/api/v1/labels", get(labels).post(labels))
        .route("/loki/api/v1/label/{name}/values", get(label_values).post(label_values))
        .route("/loki/api/v1/series", get(series).post(series))
        .route("/loki/api/v1/status/buildinfo", get(build_info))
        .with_state(engine.clone())
        .merge(super::loki_explore::router(engine.clone()))
        .merge(super::tail::router(engine))
}

pub(super) async fn answer(run: impl Future<Output = Result<Response, Refusal>>) -> Response {
    match tokio::time::timeout(QUERY_SPAN_MAX, run).await {
        Ok(result) => result.unwrap_or_else(|refusal| refusal.plain()),
        Err(_) => plain(503, "the query took too long"),
    }
}

pub(super) fn refused(error: QueryError) -> Refusal {
    Refusal::by_class(&error)
}

/// `start` and `end`, or `since` before the end, or the last hour.
pub(super) fn window(p: &Params) -> Result<(TimestampNs, TimestampNs), Refusal> {
    let end = p.log_time("end")?.unwrap_or_else(params::now);
    let since = p.span("since")?.unwrap_or(SINCE_DEFAULT);
    Ok((p.log_time("start")?.unwrap_or(end - since), end))
}

fn direction(p: &Params) -> Result<Direction, Refusal> {
    match p.get("direction").map(str::to_ascii_lowercase).as_deref() {
        None | Some("backward") => Ok(Direction::Backward),
        Some("forward") => Ok(Direction::Forward),
        Some(other) => Err(Refusal::bad_data(format!(
            "invalid direction {other:?}: use forward or backward"
        ))),
    }
}

async fn query(State(engine): State<Arc<Engine>>, request: Request<Body>) -> Response {
    answer(async {
        let tenant = tenant(request.headers())?;
        let p = Params::read(request).await?;
        let at = p.log_time("time")?.unwrap_or_else(params::now);
        let q = LogsQuery {
            tenant,
            expr: p.required("query")?.to_owned(),
            // Empty: an instant has no lines, only values.
            start: at,
            end: at,
            step: None,
            limit: p.number("limit")?.unwrap_or(LIMIT_DEFAULT),
            direction: direction(&p)?,
            options: Options::default(),
        };
        let found = engine.with(p.consistency()?).logs(&q).await.map_err(refused)?;
        if matches!(found.value, LogsValue::Streams(_)) {
            return Err(Refusal::bad_data(
                "log queries are not supported as an instant query type, use query_range",
            ));
        }
        Ok(shown(&found, at, false, q.direction))
    })
    .await
}

async fn query_range(State(engine): State<Arc<Engine>>, request: Request<Body>) -> Response {
    answer(async {
        let tenant = tenant(request.headers())?;
        let apart = categorized(request.headers());
        let p = Params::read(request).await?;
        let (start, end) = window(&p)?;
        if end < start {
            return Err(Refusal::bad_data(
                "end timestamp must not be before or equal to start time",
            ));
        }
        let step_default = SpanNs::from_secs((end.since(start).0 / STEPS_DEFAULT / 1_000_000_000).max(1));
        let q = LogsQuery {
            tenant,
            expr: p.required("query")?.to_owned(),
            start,
            end,
            step: Some(p.span("step")?.unwrap_or(step_default)),
            limit: p.number("limit")?.unwrap_or(LIMIT_DEFAULT),
            direction: direction(&p)?,
            options: Options::default(),
        };
        let found = engine.with(p.consistency()?).logs(&q).await.map_err(refused)?;
        Ok(shown(&found, end, apart, q.direction))
    })
    .await
}

fn categorized(headers: &HeaderMap) -> bool {
    let flags = headers
        .get("x-loki-response-encoding-flags")
        .and_then(|v| v.to_str().ok());
    flags.is_some_and(|f| f.split(',').any(|f| f.trim() == "categorize-labels"))
}

fn shown(found: &Answer<LogsValue>, at: TimestampNs, apart: bool, direction: Direction) -> Response {
    let (kind, result, lines) = match &found.value {
        LogsValue::Metric(value) => {
            let mut out = String::new();
            json::result(&mut out, value, at);
            (value.kind(), out, 0)
        }
        LogsValue::Streams(streams) => {
            let lines = streams.iter().map(|s| s.lines.len()).sum::<usize>();
            let shown = if apart {
                streams_apart(streams)
            } else {
                streams_merged(streams, direction)
            };
            ("streams", shown, lines)
        }
    };
    let flags = if apart {
        ",\"encodingFlags\":[\"categorize-labels\"]"
    } else {
        ""
    };
    let read = found.completeness.lines;
    let summary = format!(
        "{{\"totalLinesProcessed\":{},\"totalBytesProcessed\":{},\"totalEntriesReturned\":{lines}}}",
        read.lines, read.bytes
    );
    let data = format!("{{\"resultType\":\"{kind}\",\"result\":{result},\"stats\":{{\"summary\":{summary}}}{flags}}}");
    success(&data, &found.completeness)
}

pub(super) fn success(data: &str, completeness: &Completeness) -> Response {
    let completeness = json::completeness(completeness);
    json::response(
        200,
        format!("{{\"status\":\"success\",\"data\":{data},\"completeness\":{completeness}}}"),
    )
}

/// Metadata beside each line.
fn streams_apart(streams: &[LogStream]) -> String {
    let shown = streams.iter().map(|s| {
        let values = s.lines.iter().map(|l| {
            let metadata = Labels::new(l.metadata.clone());
            let kinds = [("structuredMetadata", &metadata), ("parsed", &s.parsed)];
            let extra: Vec<String> = kinds
                .into_iter()
                .filter(|(_, labels)| !labels.is_empty())
                .map(|(kind, labels)| format!("\"{kind}\":{}", json::labels(labels)))
                .collect();
            let extra = format!("{{{}}}", extra.join(","));
            format!(
                "[\"{}\",{},{extra}]",
                l.at.0,
                json::string(&String::from_utf8_lossy(&l.line))
            )
        });
        stream(&s.labels, &values.collect::<Vec<_>>())
    });
    format!("[{}]", shown.collect::<Vec<_>>().join(","))
}

/// Metadata and what was parsed as labels: lines of one stream that differ in them come as different streams. Each
/// stream's lines are in the direction that was asked for.
pub(super) fn streams_merged(streams: &[LogStream], direction: Direction) -> String {
    let mut merged: BTreeMap<Labels, Vec<(TimestampNs, String)>> = BTreeMap::new();
    for s in streams {
        // Lines that follow each other mostly have the same metadata, or none.
        for run in s.lines.chunk_by(|a, b| a.metadata == b.metadata) {
            let own = s.labels.iter().chain(s.parsed.iter());
            let own = own.map(|(n, v)| (n.to_owned(), v.to_owned()));
            let labels = match &run[0].metadata[..] {
                [] if s.parsed.is_empty() => s.labels.clone(),
                metadata => metadata.iter().cloned().chain(own).collect(),
            };
            let values = run.iter().map(|l| {
                let line = json::string(&String::from_utf8_lossy(&l.line));
                (l.at, format!("[\"{}\",{line}]", l.at.0))
            });
            merged.entry(labels).or_default().extend(values);
        }
    }
    let shown: Vec<String> = merged
        .into_iter()
        .map(|(labels, mut values)| {
            // Lines of two streams may have come out with the same labels.
            match direction {
                Direction::Forward => values.sort_by_key(|(at, _)| *at),
                Direction::Backward => values.sort_by_key(|(at, _)| std::cmp::Reverse(*at)),
            }
            let values: Vec<String> = values.into_iter().map(|(_, shown)| shown).collect();
            stream(&labels, &values)
        })
        .collect();
    format!("[{}]", shown.join(","))
}

fn stream(labels: &Labels, values: &[String]) -> String {
    let mut out = String::new();
    let _ = write!(
        out,
        "{{\"stream\":{},\"values\":[{}]}}",
        json::labels(labels),
        values.join(",")
    );
    out
}

/// Whose API this is, to clients that choose by the version what they ask: that of Loki whose LogQL is spoken here.
const LOKI_VERSION: &str = "3.5.0";

async fn build_info() -> Response {
    json::response(
        200,
        format!(
            "{{\"version\":\"{LOKI_VERSION}\",\"revision\":\"\",\"branch\":\"\",\"buildUser\":\"\",\"buildDate\":\"\",\"goVersion\":\"\"}}"
        ),
    )
}

async fn labels_query(request: Request<Body>, selector: &str) -> Result<LabelsQuery, Refusal> {
    let tenant = tenant(request.headers())?;
    let p = Params::read(request).await?;
    let (start, end) = window(&p)?;
    Ok(LabelsQuery {
        tenant,
        streams: true,
        matching: p.all(selector).filter(|s| !s.is_empty()).map(str::to_owned).collect(),
        start,
        end,
    })
}

async fn labels(State(engine): State<Arc<Engine>>, request: Request<Body>) -> Response {
    answer(async {
        let q = labels_query(request, "query").await?;
        let found = engine.label_names(&q).await.map_err(refused)?;
        Ok(success(&json::strings(&found.value), &found.completeness))
    })
    .await
}

async fn label_values(State(engine): State<Arc<Engine>>, Path(name): Path<String>, request: Request<Body>) -> Response {
    answer(async {
        let q = labels_query(request, "query").await?;
        let found = engine.label_values(&q, &name).await.map_err(refused)?;
        Ok(success(&json::strings(&found.value), &found.completeness))
    })
    .await
}

async fn series(State(engine): State<Arc<Engine>>, request: Request<Body>) -> Response {
    answer(async {
        let q = labels_query(request, "match[]").await?;
        let found = engine.series(&q).await.map_err(refused)?;
        let sets: Vec<String> = found.value.iter().map(json::labels).collect();
        Ok(success(&format!("[{}]", sets.join(",")), &found.completeness))
    })
    .await
}
