//! The Prometheus HTTP API: parameters in, Prometheus' JSON envelopes out. Decides nothing about queries.
//!
//! Beside Prometheus' fields, an envelope says whether the answer is whole:
//! `"completeness":{"complete":true,"missing":[],"positions":{"1":42}}` (applied index per shard). With the parameter
//! `consistency=stale-ok` this node answers at once from its own replicas, and adds `"stale":true,"age_ms":7`.
//! Times are Unix seconds with a fraction or RFC 3339; lengths are seconds or `1h30m`.

use super::federate::federate;
use super::json;
use super::params::{Params, tenant};
use super::remote_read::remote_read;
use crate::engine::{Engine, InstantQuery, LabelsQuery, Options, QueryError, RangeQuery};
use crate::shards::ShardsError;
use crate::value::Answer;
use axum::Router;
use axum::body::Body;
use axum::extract::{Path, Request, State};
use axum::http::header::{CONTENT_TYPE, X_CONTENT_TYPE_OPTIONS};
use axum::http::{HeaderValue, StatusCode};
use axum::response::Response;
use axum::routing::{get, post};
use hindcast_model::{Class, Classify, Labels, SpanNs, TimestampNs};
use hindcast_proto::edge;
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

/// How long a query may take; the parameter `timeout` can only shorten it.
pub const QUERY_SPAN_MAX: Duration = Duration::from_secs(120);

/// The API under `/api/v1`, as Prometheus 3 has it.
pub fn prometheus_router(engine: Arc<Engine>) -> Router {
    Router::new()
        .route("/api/v1/query", get(query).post(query))
        .route("/api/v1/query_range", get(query_range).post(query_range))
        .route("/api/v1/series", get(series).post(series))
        .route("/api/v1/labels", get(labels).post(labels))
        .route("/api/v1/label/{name}/values", get(label_values))
        .route("/api/v1/format_query", get(format_query).post(format_query))
        .route("/api/v1/read", post(remote_read))
        .route("/federate", get(federate))
        .route("/api/v1/status/buildinfo", get(build_info))
        .with_state(engine.clone())
        .merge(super::status::router(engine))
}

/// Why a request has no answer, in Prometheus' words.
pub(super) struct Refusal {
    status: u16,
    kind: &'static str,
    message: String,
}

impl Refusal {
    pub(super) fn bad_data(message: impl Into<String>) -> Self {
        Self {
            status: 400,
            kind: "bad_data",
            message: message.into(),
        }
    }

    pub(super) fn form_too_large() -> Self {
        Self {
            status: edge::http_status(Class::TooLarge),
            kind: "bad_data",
            message: "the body takes more than 2 MiB; ask for less at once".to_owned(),
        }
    }

    pub(super) fn unavailable(message: impl Into<String>) -> Self {
        Self {
            status: edge::http_status(Class::Unavailable),
            kind: "unavailable",
            message: message.into(),
        }
    }

    pub(super) fn too_large(message: impl Into<String>) -> Self {
        Self {
            status: 422,
            kind: "execution",
            message: message.into(),
        }
    }

    pub(super) fn of(error: &QueryError) -> Self {
        let (status, kind, message) = match error {
            QueryError::Parse(e) => (400, "bad_data", format!("invalid parameter \"query\": {e}")),
            QueryError::Parameter(m) => (400, "bad_data", m.clone()),
            // The code that Prometheus' clients know for "understood, but it has no value".
            QueryError::Execution(_) | QueryError::TooLarge { .. } => (422, "execution", error.to_string()),
            QueryError::Shards(ShardsError::Refused(m)) => (400, "bad_data", m.clone()),
            QueryError::Shards(ShardsError::Unavailable(_)) => {
                (edge::http_status(Class::Unavailable), "unavailable", error.to_string())
            }
        };
        Self { status, kind, message }
    }

    fn response(&self) -> Response {
        let body = format!(
            "{{\"status\":\"error\",\"errorType\":{},\"error\":{}}}",
            json::string(self.kind),
            json::string(&self.message)
        );
        json::response(self.status, body)
    }
}

/// Prometheus' envelope around `data`.
pub(super) fn success<T>(answer: &Answer<T>, data: &str) -> Response {
    let mut body = format!("{{\"status\":\"success\",\"data\":{data}");
    let (infos, warnings): (Vec<_>, Vec<_>) = answer.warnings.iter().partition(|w| w.starts_with("PromQL info"));
    for (name, notes) in [("warnings", warnings), ("infos", infos)] {
        if !notes.is_empty() {
            let notes: Vec<String> = notes.into_iter().map(|n| json::string(n)).collect();
            body.push_str(&format!(",\"{name}\":[{}]", notes.join(",")));
        }
    }
    body.push_str(",\"completeness\":");
    body.push_str(&json::completeness(&answer.completeness));
    body.push('}');
    json::response(200, body)
}

pub(super) async fn answer(run: impl Future<Output = Result<Response, Refusal>>) -> Response {
    run.await.unwrap_or_else(|refusal| refusal.response())
}

/// Runs a query within its time.
pub(super) async fn in_time<T>(
    params: &Params,
    run: impl Future<Output = Result<T, QueryError>>,
) -> Result<T, Refusal> {
    let asked = params.span("timeout")?.map_or(QUERY_SPAN_MAX, SpanNs::as_duration);
    match tokio::time::timeout(asked.min(QUERY_SPAN_MAX), run).await {
        Ok(result) => result.map_err(|e| Refusal::of(&e)),
        Err(_) => Err(Refusal {
            status: 503,
            kind: "timeout",
            message: "query timed out in expression evaluation".to_owned(),
        }),
    }
}

fn options(params: &Params) -> Result<Options, Refusal> {
    let mut options = Options::default();
    if let Some(lookback) = params.span("lookback_delta")? {
        options.lookback = lookback;
    }
    Ok(options)
}

async fn query(State(engine): State<Arc<Engine>>, request: Request<Body>) -> Response {
    answer(async {
        let tenant = tenant(request.headers())?;
        let params = Params::read(request).await?;
        let q = InstantQuery {
            tenant,
            expr: params.required("query")?.to_owned(),
            at: params.time("time")?.unwrap_or_else(super::params::now),
            options: options(&params)?,
        };
        let found = in_time(&params, engine.with(params.consistency()?).instant(&q)).await?;
        Ok(success(&found, &json::query_data(&found.value, q.at)))
    })
    .await
}

async fn query_range(State(engine): State<Arc<Engine>>, request: Request<Body>) -> Response {
    answer(async {
        let tenant = tenant(request.headers())?;
        let params = Params::read(request).await?;
        let need = |name: &str, v: Option<TimestampNs>| {
            v.ok_or_else(|| Refusal::bad_data(format!("invalid parameter {name:?}: it is missing")))
        };
        let q = RangeQuery {
            tenant,
            expr: params.required("query")?.to_owned(),
            start: need("start", params.time("start")?)?,
            end: need("end", params.time("end")?)?,
            step: params
                .span("step")?
                .ok_or_else(|| Refusal::bad_data("invalid parameter \"step\": it is missing"))?,
            options: options(&params)?,
        };
        let found = in_time(&params, engine.with(params.consistency()?).range(&q)).await?;
        Ok(success(&found, &json::query_data(&found.value, q.end)))
    })
    .await
}

/// `match[]`, `start` and `end` of the searches for labels.
async fn labels_query(request: Request<Body>) -> Result<(LabelsQuery, Params), Refusal> {
    let tenant = tenant(request.headers())?;
    let params = Params::read(request).await?;
    let q = LabelsQuery {
        tenant,
        streams: false,
        matching: params.all("match[]").map(str::to_owned).collect(),
        start: params.time("start")?.unwrap_or(TimestampNs::MIN),
        end: params.time("end")?.unwrap_or(TimestampNs::MAX),
    };
    Ok((q, params))
}

/// Cuts a list to the parameter `limit`, and says so.
fn limited<T>(mut found: Answer<Vec<T>>, params: &Params) -> Result<Answer<Vec<T>>, Refusal> {
    let limit = params.number("limit")?.unwrap_or(0);
    if limit > 0 && found.value.len() > limit {
        found.value.truncate(limit);
        found.warnings.push("results truncated due to limit".to_owned());
    }
    Ok(found)
}

async fn series(State(engine): State<Arc<Engine>>, request: Request<Body>) -> Response {
    answer(async {
        let (q, params) = labels_query(request).await?;
        if q.matching.is_empty() {
            return Err(Refusal::bad_data("no match[] parameter provided"));
        }
        let found = limited(
            in_time(&params, engine.with(params.consistency()?).series(&q)).await?,
            &params,
        )?;
        let sets: Vec<String> = found.value.iter().map(|l: &Labels| json::labels(l)).collect();
        Ok(success(&found, &format!("[{}]", sets.join(","))))
    })
    .await
}

async fn labels(State(engine): State<Arc<Engine>>, request: Request<Body>) -> Response {
    answer(async {
        let (q, params) = labels_query(request).await?;
        let found = limited(
            in_time(&params, engine.with(params.consistency()?).label_names(&q)).await?,
            &params,
        )?;
        Ok(success(&found, &json::strings(&found.value)))
    })
    .await
}

async fn label_values(State(engine): State<Arc<Engine>>, Path(name): Path<String>, request: Request<Body>) -> Response {
    answer(async {
        let (q, params) = labels_query(request).await?;
        let found = limited(
            in_time(&params, engine.with(params.consistency()?).label_values(&q, &name)).await?,
            &params,
        )?;
        Ok(success(&found, &json::strings(&found.value)))
    })
    .await
}

/// An expression as this program writes it.
async fn format_query(State(engine): State<Arc<Engine>>, request: Request<Body>) -> Response {
    answer(async {
        let params = Params::read(request).await?;
        let printed = engine.printed_promql(params.required("query")?);
        let printed = json::string(&printed.map_err(|e| Refusal::of(&e))?);
        Ok(json::response(
            200,
            format!("{{\"status\":\"success\",\"data\":{printed}}}"),
        ))
    })
    .await
}

/// Clients choose what to ask for by this version: it names the API that is spoken here, then the program.
async fn build_info() -> Response {
    let version = concat!("3.0.0-hindcast.", env!("CARGO_PKG_VERSION"));
    let body = format!(
        "{{\"status\":\"success\",\"data\":{{\"version\":{},\"revision\":\"\",\"branch\":\"\",\"buildUser\":\"\",\"buildDate\":\"\",\"goVersion\":\"\"}}}}",
        json::string(version)
    );
    json::response(StatusCode::OK.as_u16(), body)
}

/// For the Loki face, which answers errors as plain text with the status of their class.
pub(super) fn plain(status: u16, message: &str) -> Response {
    let mut response = Response::new(Body::from(message.to_owned()));
    *response.status_mut() = StatusCode::from_u16(status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    // Messages repeat what was asked: without a type, a browser would look for markup in it.
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
    headers.insert(X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    response
}

impl Refusal {
    pub(super) fn plain(&self) -> Response {
        plain(self.status, &self.message)
    }

    pub(super) fn by_class(error: &QueryError) -> Self {
        Self {
            status: edge::http_status(error.class()),
            kind: "bad_data",
            message: error.to_string(),
        }
    }
}
