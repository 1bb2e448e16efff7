//! The HTTP write routes: `/api/v1/write`, `/v1/metrics`, `/v1/logs`, `/v1/traces`, `/loki/api/v1/push`, and Influx's:
//! `/write`, `/api/v2/write`, with `/ping`, `/health` and `/query`, which its clients ask first.
//!
//! OTLP answers in the encoding of the request; errors there are a `google.rpc.Status`. Remote write and Loki
//! answer 204, and 400 with the reasons when parts were refused: the rest of such a request is stored. Remote write 2.0 is told by
//! headers how much of it was.

use super::grpc::{logs_answer, metrics_answer, traces_answer, wire_too_large};
use super::{IngestError, IngestState, SHOWN_MAX, Taken};
use axum::Router;
use axum::body::Body;
use axum::extract::{RawQuery, State};
use axum::http::header::{CONTENT_ENCODING, CONTENT_TYPE, RETRY_AFTER};
use axum::http::{HeaderMap, HeaderName, Request, StatusCode};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use bytes::Bytes;
use hindcast_ingest::decompress::{Encoding, decompress};
use hindcast_ingest::remote_write::Version;
use hindcast_ingest::{AdaptError, Protocol, influx, loki, otlp};
use hindcast_model::limits::REQUEST_WIRE_BYTES_MAX;
use hindcast_model::{Classify, TenantId};
use hindcast_proto::edge;
use http_body_util::{BodyExt, LengthLimitError, Limited};
use prost::Message;

const PROTOBUF: &str = "application/x-protobuf";
const JSON: &str = "application/json";

/// The routes. The state is in them: merge the router as it is.
pub fn ingest_router(state: IngestState) -> Router {
    Router::new()
        .route("/api/v1/write", post(remote_write))
        .route("/v1/metrics", post(otlp_metrics))
        .route("/v1/logs", post(otlp_logs))
        .route("/v1/traces", post(otlp_traces))
        .route("/loki/api/v1/push", post(loki_push))
        .route("/write", post(influx_write))
        .route("/api/v2/write", post(influx_write))
        .route("/query", get(influx_query).post(influx_query))
        .route("/ping", get(influx_ping).head(influx_ping))
        .route("/health", get(influx_health))
        .with_state(state)
}

/// How a body is written.
#[derive(Clone, Copy, PartialEq)]
enum Form {
    Protobuf,
    Json,
    Text,
}

/// A request's body and what its headers say.
struct Incoming {
    tenant: TenantId,
    form: Form,
    encoding: Encoding,
    body: Bytes,
}

fn header(headers: &HeaderMap, name: &HeaderName) -> Option<String> {
    let value = headers.get(name)?;
    Some(String::from_utf8_lossy(value.as_bytes()).into_owned())
}

/// The body's form by its media type; parameters such as a charset are of no matter.
fn form_of(headers: &HeaderMap) -> Result<Form, AdaptError> {
    let given = header(headers, &CONTENT_TYPE).unwrap_or_default();
    let media = given.split(';').next().unwrap_or_default();
    match media.trim().to_ascii_lowercase().as_str() {
        PROTOBUF => Ok(Form::Protobuf),
        JSON => Ok(Form::Json),
        _ => Err(AdaptError::UnknownType {
            given,
            wanted: "application/x-protobuf or application/json",
        }),
    }
}

fn encoding_of(headers: &HeaderMap) -> Result<Encoding, AdaptError> {
    let given = header(headers, &CONTENT_ENCODING).unwrap_or_default();
    Encoding::parse(&given).ok_or(AdaptError::UnknownEncoding {
        given,
        wanted: "gzip, zstd, snappy or none",
    })
}

/// `text`: the body is text, whatever its type says.
async fn incoming(request: Request<Body>, text: bool) -> Result<Incoming, IngestError> {
    let headers = request.headers();
    let tenant = header(headers, &HeaderName::from_static(edge::TENANT_KEY));
    let tenant = edge::tenant_of_header(tenant.as_deref())?;
    let form = if text { Form::Text } else { form_of(headers)? };
    let encoding = encoding_of(headers)?;
    let body = Limited::new(request.into_body(), REQUEST_WIRE_BYTES_MAX)
        .collect()
        .await;
    let body = body.map_err(|e| match e.downcast::<LengthLimitError>() {
        Ok(_) => wire_too_large(),
        Err(other) => IngestError::BrokenOff(other.to_string()),
    })?;
    Ok(Incoming {
        tenant,
        form,
        encoding,
        body: body.to_bytes(),
    })
}

impl IngestState {
    /// Reads a request's head and body; what is refused here is counted here.
    async fn incoming(&self, protocol: Protocol, request: Request<Body>) -> Result<Incoming, IngestError> {
        let read = incoming(request, protocol == Protocol::Influx).await;
        read.inspect_err(|e| self.counters.failed(protocol, e.code()))
    }
}

fn status_of(error: &IngestError) -> StatusCode {
    match error {
        IngestError::Adapt(e) if e.is_unsupported_media() => StatusCode::UNSUPPORTED_MEDIA_TYPE,
        other => StatusCode::from_u16(edge::http_status(other.class())).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR),
    }
}

fn with_retry(error: &IngestError, mut response: Response) -> Response {
    if let Some(secs) = edge::retry_after_secs(error) {
        response.headers_mut().insert(RETRY_AFTER, secs.into());
    }
    response
}

/// 204, or the refusals as text.
fn plain_answer(taken: Result<Taken, IngestError>) -> Response {
    match taken {
        Ok(taken) if taken.rejected.is_empty() => StatusCode::NO_CONTENT.into_response(),
        Ok(taken) => (StatusCode::BAD_REQUEST, taken.rejected.summary(SHOWN_MAX) + "\n").into_response(),
        Err(why) => with_retry(&why, (status_of(&why), format!("{why}\n")).into_response()),
    }
}

/// Which message a body of remote write holds: the parameter `proto` of its media type says it, and 1.0 where there is none.
fn version_of(headers: &HeaderMap) -> Result<Version, AdaptError> {
    let given = header(headers, &CONTENT_TYPE).unwrap_or_default();
    let mut parameters = given.split(';').skip(1).filter_map(|p| p.split_once('='));
    let proto = parameters.find(|(name, _)| name.trim().eq_ignore_ascii_case("proto"));
    match proto.map_or("", |(_, v)| v.trim().trim_matches('"')) {
        "" | "prometheus.WriteRequest" => Ok(Version::One),
        "io.prometheus.write.v2.Request" => Ok(Version::Two),
        _ => Err(AdaptError::UnknownType {
            given,
            wanted: "proto=prometheus.WriteRequest or proto=io.prometheus.write.v2.Request",
        }),
    }
}

/// As [`plain_answer`]; a sender of version 2.0 is also told how much was stored.
fn remote_write_answer(version: Version, taken: Result<Taken, IngestError>) -> Response {
    let stored = taken
        .as_ref()
        .map_or([0; 3], |taken| [taken.samples, taken.histograms, taken.exemplars]);
    let mut response = plain_answer(taken);
    if version == Version::Two {
        for (name, n) in [
            ("x-prometheus-remote-write-samples-written", stored[0]),
            ("x-prometheus-remote-write-histograms-written", stored[1]),
            ("x-prometheus-remote-write-exemplars-written", stored[2]),
        ] {
            response.headers_mut().insert(HeaderName::from_static(name), n.into());
        }
    }
    response
}

async fn remote_write(State(state): State<IngestState>, request: Request<Body>) -> Response {
    let protocol = Protocol::RemoteWrite;
    let version = version_of(request.headers());
    let incoming = match state.incoming(protocol, request).await {
        Ok(incoming) => incoming,
        Err(why) => return remote_write_answer(version.unwrap_or(Version::One), Err(why)),
    };
    let unsupported = match (incoming.form, incoming.encoding, version) {
        (Form::Json | Form::Text, ..) => AdaptError::UnknownType {
            given: JSON.to_owned(),
            wanted: PROTOBUF,
        },
        (_, _, Err(why)) => why,
        // The protocol knows one compression; some senders leave the header out.
        (_, Encoding::Snappy | Encoding::Identity, Ok(version)) => {
            let taken = state.remote_write(version, &incoming.tenant, &incoming.body).await;
            return remote_write_answer(version, taken);
        }
        (_, other, _) => AdaptError::UnknownEncoding {
            given: format!("{other:?}").to_lowercase(),
            wanted: "snappy",
        },
    };
    plain_answer(state.take(protocol, Err(unsupported.into())).await)
}

async fn loki_push(State(state): State<IngestState>, request: Request<Body>) -> Response {
    let incoming = match state.incoming(Protocol::Loki, request).await {
        Ok(incoming) => incoming,
        Err(why) => return plain_answer(Err(why)),
    };
    if incoming.form == Form::Protobuf {
        return plain_answer(state.loki_protobuf(&incoming.tenant, &incoming.body).await);
    }
    let limits = state.limits(&incoming.tenant);
    let read = decompress(incoming.encoding, &incoming.body)
        .and_then(|body| loki::adapt_json(&incoming.tenant, &body, &limits));
    let taken = state.take_hashed(Protocol::Loki, &incoming.tenant, &incoming.body, read);
    plain_answer(taken.await)
}

/// An OTLP answer in the request's own form.
fn otlp_answer<M: Message + serde::Serialize>(form: Form, status: StatusCode, message: &M) -> Response {
    match form {
        Form::Protobuf => (status, [(CONTENT_TYPE, PROTOBUF)], message.encode_to_vec()).into_response(),
        Form::Json | Form::Text => {
            let json = serde_json::to_vec(message).unwrap_or_else(|_| b"{}".to_vec());
            (status, [(CONTENT_TYPE, JSON)], json).into_response()
        }
    }
}

fn otlp_error(form: Form, why: &IngestError) -> Response {
    let rpc = edge::rpc_status(why);
    let response = match form {
        Form::Protobuf => (status_of(why), [(CONTENT_TYPE, PROTOBUF)], rpc.encode_to_vec()).into_response(),
        Form::Json | Form::Text => {
            let json = serde_json::json!({ "code": rpc.code, "message": rpc.message }).to_string();
            (status_of(why), [(CONTENT_TYPE, JSON)], json).into_response()
        }
    };
    with_retry(why, response)
}

/// The request as its form says, decompressed.
fn otlp_request<M>(protocol: Protocol, incoming: &Incoming) -> Result<M, AdaptError>
where
    M: Message + Default + serde::de::DeserializeOwned,
{
    let body = decompress(incoming.encoding, &incoming.body)?;
    match incoming.form {
        Form::Protobuf => otlp::from_protobuf(protocol, &body),
        Form::Json | Form::Text => otlp::from_json(protocol, &body),
    }
}

async fn otlp_metrics(State(state): State<IngestState>, request: Request<Body>) -> Response {
    let form = form_of(request.headers()).unwrap_or(Form::Protobuf);
    let incoming = match state.incoming(Protocol::OtlpMetrics, request).await {
        Ok(incoming) => incoming,
        Err(why) => return otlp_error(form, &why),
    };
    let read = otlp_request(Protocol::OtlpMetrics, &incoming);
    match state.otlp_metrics(&incoming.tenant, &incoming.body, read).await {
        Ok(taken) => otlp_answer(form, StatusCode::OK, &metrics_answer(&taken)),
        Err(why) => otlp_error(form, &why),
    }
}

async fn otlp_logs(State(state): State<IngestState>, request: Request<Body>) -> Response {
    let form = form_of(request.headers()).unwrap_or(Form::Protobuf);
    let incoming = match state.incoming(Protocol::OtlpLogs, request).await {
        Ok(incoming) => incoming,
        Err(why) => return otlp_error(form, &why),
    };
    let read = otlp_request(Protocol::OtlpLogs, &incoming);
    match state.otlp_logs(&incoming.tenant, &incoming.body, read).await {
        Ok(taken) => otlp_answer(form, StatusCode::OK, &logs_answer(&taken)),
        Err(why) => otlp_error(form, &why),
    }
}

async fn otlp_traces(State(state): State<IngestState>, request: Request<Body>) -> Response {
    let form = form_of(request.headers()).unwrap_or(Form::Protobuf);
    let incoming = match state.incoming(Protocol::OtlpTraces, request).await {
        Ok(incoming) => incoming,
        Err(why) => return otlp_error(form, &why),
    };
    let read = otlp_request(Protocol::OtlpTraces, &incoming);
    match state.otlp_traces(&incoming.tenant, &incoming.body, read).await {
        Ok(taken) => otlp_answer(form, StatusCode::OK, &traces_answer(&taken)),
        Err(why) => otlp_error(form, &why),
    }
}

/// One parameter of a query string, decoded.
fn parameter(query: &str, name: &str) -> Option<String> {
    let pair = query
        .split('&')
        .find_map(|p| p.split_once('=').filter(|(n, _)| *n == name));
    let bytes = pair?.1.as_bytes();
    let (mut out, mut at) = (vec![], 0);
    while let Some(&byte) = bytes.get(at) {
        let hex = bytes
            .get(at + 1..at + 3)
            .and_then(|h| u8::from_str_radix(std::str::from_utf8(h).ok()?, 16).ok());
        match (byte, hex) {
            (b'%', Some(decoded)) => {
                out.push(decoded);
                at += 2;
            }
            (b'+', _) => out.push(b' '),
            _ => out.push(byte),
        }
        at += 1;
    }
    Some(String::from_utf8_lossy(&out).into_owned())
}

/// Both versions' writes. Database, bucket, organisation and retention policy say nothing here: who writes is said by the tenant's header,
/// as for every other protocol.
async fn influx_write(State(state): State<IngestState>, RawQuery(query): RawQuery, request: Request<Body>) -> Response {
    let is_v2 = request.uri().path().starts_with("/api/v2/");
    let answer = |taken| influx_answer(is_v2, taken);
    let incoming = match state.incoming(Protocol::Influx, request).await {
        Ok(incoming) => incoming,
        Err(why) => return answer(Err(why)),
    };
    let given = parameter(&query.unwrap_or_default(), "precision").unwrap_or_default();
    let Some(precision) = influx::Precision::parse(&given) else {
        let why = AdaptError::Malformed {
            protocol: Protocol::Influx,
            why: format!("precision {given:?} is none of ns, us, ms, s, m and h"),
        };
        return answer(state.take(Protocol::Influx, Err(why.into())).await);
    };
    let body = decompress(incoming.encoding, &incoming.body);
    answer(state.influx(&incoming.tenant, body, precision).await)
}

/// 204, or the reasons as each version's clients read them.
fn influx_answer(is_v2: bool, taken: Result<Taken, IngestError>) -> Response {
    let (status, code, message, error) = match taken {
        Ok(taken) if taken.rejected.is_empty() => return StatusCode::NO_CONTENT.into_response(),
        Ok(taken) => {
            // What Telegraf looks for, so as not to send the lines that are stored again.
            let dropped = taken.rejected.items();
            let message = format!("partial write: {} dropped={dropped}", taken.rejected.summary(SHOWN_MAX));
            (StatusCode::BAD_REQUEST, "invalid", message, None)
        }
        Err(why) => {
            let status = status_of(&why);
            let code = match status {
                StatusCode::TOO_MANY_REQUESTS => "too many requests",
                StatusCode::SERVICE_UNAVAILABLE => "unavailable",
                StatusCode::PAYLOAD_TOO_LARGE => "request too large",
                s if s.is_server_error() => "internal error",
                _ => "invalid",
            };
            (status, code, why.to_string(), Some(why))
        }
    };
    let json = match is_v2 {
        true => serde_json::json!({ "code": code, "message": message }),
        false => serde_json::json!({ "error": message }),
    };
    let response = (status, [(CONTENT_TYPE, JSON)], json.to_string()).into_response();
    match &error {
        Some(why) => with_retry(why, response),
        None => response,
    }
}

/// Telegraf asks to make its database before it writes. There is none to make; queries are PromQL's business.
async fn influx_query(RawQuery(query): RawQuery, body: Bytes) -> Response {
    let query = query.unwrap_or_default();
    let asked = parameter(&query, "q").or_else(|| parameter(&String::from_utf8_lossy(&body), "q"));
    let is_create = asked.is_some_and(|q| q.trim_start().to_ascii_uppercase().starts_with("CREATE DATABASE"));
    let (status, json) = match is_create {
        true => (
            StatusCode::OK,
            serde_json::json!({ "results": [{ "statement_id": 0 }] }),
        ),
        false => (
            StatusCode::BAD_REQUEST,
            serde_json::json!({ "error": "InfluxQL is not spoken here: ask /api/v1/query in PromQL" }),
        ),
    };
    (status, [(CONTENT_TYPE, JSON)], json.to_string()).into_response()
}

/// The version whose writes are understood.
const INFLUX_VERSION: &str = "1.8.10";

async fn influx_ping(RawQuery(query): RawQuery) -> Response {
    let head = [("x-influxdb-version", INFLUX_VERSION), ("x-influxdb-build", "hindcast")];
    match parameter(&query.unwrap_or_default(), "verbose").as_deref() {
        Some("true") => {
            let json = serde_json::json!({ "version": INFLUX_VERSION }).to_string();
            (head, [(CONTENT_TYPE, JSON)], json).into_response()
        }
        _ => (StatusCode::NO_CONTENT, head).into_response(),
    }
}

async fn influx_health() -> Response {
    let json = serde_json::json!({
        "name": "hindcast", "message": "ready for writes", "status": "pass", "checks": [], "version": env!("CARGO_PKG_VERSION"),
    });
    ([(CONTENT_TYPE, JSON)], json.to_string()).into_response()
}
