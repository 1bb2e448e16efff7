//! The part of the Loki HTTP API that Grafana looks around with: sizes, labels, fields, patterns, and the form of a
//! query.

use super::http::Refusal;
use super::json;
use super::loki::{answer, refused, success, window};
use super::params::{Params, tenant};
use crate::engine::{Engine, LabelsQuery};
use crate::explore::{ExploreQuery, Field, Volume, VolumeBy};
use crate::number::go_json;
use crate::shards::Completeness;
use axum::Router;
use axum::body::Body;
use axum::extract::{Path, Request, State};
use axum::response::Response;
use axum::routing::get;
use hindcast_model::{SpanNs, TimestampNs};
use std::sync::Arc;

/// Groups of an answer about volumes that names no limit.
const VOLUMES_DEFAULT: usize = 100;
/// Fields, or values of one, of an answer that names no limit.
const FIELDS_DEFAULT: usize = 1_000;
/// Lines that fields are looked for in, if no number is named.
const FIELD_LINES_DEFAULT: usize = 100;
/// Steps of patterns and volumes that name no step.
const STEPS_DEFAULT: u64 = 250;

pub(super) fn router(engine: Arc<Engine>) -> Router {
    Router::new()
        .route("/loki/api/v1/index/stats", get(stats).post(stats))
        .route("/loki/api/v1/index/volume", get(volume).post(volume))
        .route("/loki/api/v1/index/volume_range", get(volume_range).post(volume_range))
        .route("/loki/api/v1/patterns", get(patterns).post(patterns))
        .route(
            "/loki/api/v1/detected_labels",
            get(detected_labels).post(detected_labels),
        )
        .route(
            "/loki/api/v1/detected_fields",
            get(detected_fields).post(detected_fields),
        )
        .route("/loki/api/v1/detected_field/{name}/values", get(detected_values))
        .route("/loki/api/v1/format_query", get(format_query).post(format_query))
        .with_state(engine)
}

async fn read(request: Request<Body>) -> Result<(ExploreQuery, Params), Refusal> {
    let tenant = tenant(request.headers())?;
    let p = Params::read(request).await?;
    let (start, end) = window(&p)?;
    if end < start {
        return Err(Refusal::bad_data("end timestamp must not be before start time"));
    }
    let q = ExploreQuery {
        tenant,
        expr: p.get("query").unwrap_or("").to_owned(),
        start,
        end,
    };
    Ok((q, p))
}

fn step(p: &Params, q: &ExploreQuery) -> Result<SpanNs, Refusal> {
    let default = SpanNs::from_secs((q.end.since(q.start).0 / STEPS_DEFAULT / 1_000_000_000).max(1));
    Ok(p.span("step")?.filter(|s| s.0 > 0).unwrap_or(default))
}

/// A member of a body that has none of Loki's envelope.
fn how_whole(completeness: &Completeness) -> String {
    format!("\"completeness\":{}", json::completeness(completeness))
}

async fn stats(State(engine): State<Arc<Engine>>, request: Request<Body>) -> Response {
    answer(async {
        let (q, p) = read(request).await?;
        let found = engine.with(p.consistency()?).line_stats(&q).await.map_err(refused)?;
        let s = &found.value;
        // There are no chunks here; who asks wants to know whether there is anything.
        let body = format!(
            "{{\"streams\":{},\"chunks\":{},\"entries\":{},\"bytes\":{},{}}}",
            s.streams,
            s.streams,
            s.entries,
            s.bytes,
            how_whole(&found.completeness)
        );
        Ok(json::response(200, body))
    })
    .await
}

async fn volumes(engine: &Arc<Engine>, request: Request<Body>, is_range: bool) -> Result<Response, Refusal> {
    let (q, p) = read(request).await?;
    let names = match p.get("aggregateBy") {
        None | Some("series") => false,
        Some("labels") => true,
        Some(other) => {
            return Err(Refusal::bad_data(format!(
                "invalid aggregateBy {other:?}: use series or labels"
            )));
        }
    };
    let targets = p.get("targetLabels").unwrap_or("");
    let by = VolumeBy {
        targets: targets
            .split(',')
            .map(str::trim)
            .filter(|t| !t.is_empty())
            .map(str::to_owned)
            .collect(),
        names,
        limit: p.number("limit")?.unwrap_or(VOLUMES_DEFAULT),
    };
    let step = if is_range { Some(step(&p, &q)?) } else { None };
    let engine = engine.with(p.consistency()?);
    let found = engine.line_volume(&q, step, &by).await.map_err(refused)?;
    Ok(success(&volume_data(&found.value, is_range), &found.completeness))
}

fn pair((name, value): &(String, String)) -> String {
    format!("{}:{}", json::string(name), json::string(value))
}

fn point((at, value): &(TimestampNs, f64)) -> String {
    let ms = at.as_ms();
    format!(
        "[{}.{:03},\"{}\"]",
        ms.div_euclid(1000),
        ms.rem_euclid(1000),
        go_json(*value)
    )
}

fn volume_data(found: &[Volume], is_range: bool) -> String {
    let shown: Vec<String> = found
        .iter()
        .filter(|v| !v.points.is_empty())
        .map(|v| {
            let labels: Vec<String> = v.labels.iter().map(pair).collect();
            let points: Vec<String> = v.points.iter().map(point).collect();
            let values = if is_range {
                format!("\"values\":[{}]", points.join(","))
            } else {
                format!("\"value\":{}", points[0])
            };
            format!("{{\"metric\":{{{}}},{values}}}", labels.join(","))
        })
        .collect();
    let kind = if is_range { "matrix" } else { "vector" };
    format!(
        "{{\"resultType\":\"{kind}\",\"result\":[{}],\"stats\":{{}}}}",
        shown.join(",")
    )
}

async fn volume(State(engine): State<Arc<Engine>>, request: Request<Body>) -> Response {
    answer(volumes(&engine, request, false)).await
}

async fn volume_range(State(engine): State<Arc<Engine>>, request: Request<Body>) -> Response {
    answer(volumes(&engine, request, true)).await
}

async fn patterns(State(engine): State<Arc<Engine>>, request: Request<Body>) -> Response {
    answer(async {
        let (q, p) = read(request).await?;
        let engine = engine.with(p.consistency()?);
        let found = engine.line_patterns(&q, step(&p, &q)?).await.map_err(refused)?;
        let shown: Vec<String> = found
            .value
            .iter()
            .map(|(pattern, counts)| {
                let samples: Vec<String> = counts.iter().map(|(at, n)| format!("[{at},{n}]")).collect();
                let pattern = json::string(pattern);
                format!("{{\"pattern\":{pattern},\"samples\":[{}]}}", samples.join(","))
            })
            .collect();
        let data = format!("[{}]", shown.join(","));
        Ok(success(&data, &found.completeness))
    })
    .await
}

async fn detected_labels(State(engine): State<Arc<Engine>>, request: Request<Body>) -> Response {
    answer(async {
        let (q, p) = read(request).await?;
        let is_all = matches!(q.expr.trim(), "" | "{}");
        let labels = LabelsQuery {
            tenant: q.tenant,
            streams: true,
            matching: if is_all { vec![] } else { vec![q.expr] },
            start: q.start,
            end: q.end,
        };
        let engine = engine.with(p.consistency()?);
        let found = engine.detected_labels(&labels).await.map_err(refused)?;
        let shown: Vec<String> = found
            .value
            .iter()
            .map(|(name, n)| format!("{{\"label\":{},\"cardinality\":{n}}}", json::string(name)))
            .collect();
        let (shown, whole) = (shown.join(","), how_whole(&found.completeness));
        Ok(json::response(200, format!("{{\"detectedLabels\":[{shown}],{whole}}}")))
    })
    .await
}

fn field((name, field): (&String, &Field)) -> String {
    let parsers: Vec<String> = field.parsers.iter().map(|p| json::string(p)).collect();
    let parsers = match &parsers[..] {
        [] => "null".to_owned(),
        some => format!("[{}]", some.join(",")),
    };
    format!(
        "{{\"label\":{},\"type\":\"{}\",\"cardinality\":{},\"parsers\":{parsers}}}",
        json::string(name),
        field.kind(),
        field.values.len()
    )
}

async fn detected_fields(State(engine): State<Arc<Engine>>, request: Request<Body>) -> Response {
    answer(async {
        let (q, p) = read(request).await?;
        let lines = p.number("line_limit")?.unwrap_or(FIELD_LINES_DEFAULT);
        let limit = p.number("limit")?.unwrap_or(FIELDS_DEFAULT);
        let engine = engine.with(p.consistency()?);
        let found = engine.detected_fields(&q, lines).await.map_err(refused)?;
        let shown: Vec<String> = found.value.iter().take(limit).map(field).collect();
        let whole = how_whole(&found.completeness);
        let body = format!("{{\"fields\":[{}],\"limit\":{limit},{whole}}}", shown.join(","));
        Ok(json::response(200, body))
    })
    .await
}

async fn detected_values(
    State(engine): State<Arc<Engine>>,
    Path(name): Path<String>,
    request: Request<Body>,
) -> Response {
    answer(async {
        let (q, p) = read(request).await?;
        let lines = p.number("line_limit")?.unwrap_or(FIELD_LINES_DEFAULT);
        let limit = p.number("limit")?.unwrap_or(FIELDS_DEFAULT);
        let engine = engine.with(p.consistency()?);
        let found = engine.detected_fields(&q, lines).await.map_err(refused)?;
        let values = found
            .value
            .get(&name)
            .map(|f| f.values.iter().take(limit).cloned().collect::<Vec<_>>());
        let values = json::strings(&values.unwrap_or_default());
        let whole = how_whole(&found.completeness);
        let body = format!("{{\"values\":{values},\"limit\":{limit},{whole}}}");
        Ok(json::response(200, body))
    })
    .await
}

async fn format_query(State(engine): State<Arc<Engine>>, request: Request<Body>) -> Response {
    answer(async {
        let p = Params::read(request).await?;
        let printed = engine.printed(p.required("query")?).map_err(refused)?;
        let body = format!("{{\"status\":\"success\",\"data\":{}}}", json::string(&printed));
        Ok(json::response(200, body))
    })
    .await
}
