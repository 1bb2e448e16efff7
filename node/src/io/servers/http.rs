//! The HTTP write routes: `/api/v1/write`, `/v1/metrics`, `/v1/logs`, `/loki/api/v1/push`.
//!
//! OTLP answers in the encoding of the request; errors there are a `google.rpc.Status`. Remote write and Loki
//! answer 204, and 400 with the reasons when parts were refused: the rest of such a request is stored.

use super::grpc::{logs_answer, metrics_answer, wire_too_large};
use super::{IngestError, IngestState, SHOWN_MAX, Taken};
use axum::Router;
use axum::body::Body;
use axum::extract::State;
use axum::http::header::{CONTENT_ENCODING, CONTENT_TYPE, RETRY_AFTER};
use axum::http::{HeaderMap, HeaderName, Request, StatusCode};
use axum::response::{IntoResponse, Response};
use axum::routing::post;
use bytes::Bytes;
use hindcast_ingest::decompress::{Encoding, decompress};
use hindcast_ingest::{AdaptError, Protocol, loki, otlp};
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
        .route("/loki/api/v1/push", post(loki_push))
        .with_state(state)
}

/// How a body is written.
#[derive(Clone, Copy, PartialEq)]
enum Form {
    Protobuf,
    Json,
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

/// The body's form by its media type; parameters such as a charset are of no matter, except remote write's `proto`.
fn form_of(headers: &HeaderMap) -> Result<Form, AdaptError> {
    let given = header(headers, &CONTENT_TYPE).unwrap_or_default();
    let (media, parameters) = given.split_once(';').unwrap_or((&given, ""));
    let version_2 = parameters.contains("io.prometheus.write.v2");
    match media.trim().to_ascii_lowercase().as_str() {
        PROTOBUF if !version_2 => Ok(Form::Protobuf),
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

async fn incoming(request: Request<Body>) -> Result<Incoming, IngestError> {
    let headers = request.headers();
    let tenant = header(headers, &HeaderName::from_static(edge::TENANT_KEY));
    let tenant = edge::tenant_of_header(tenant.as_deref())?;
    let (form, encoding) = (form_of(headers)?, encoding_of(headers)?);
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
        let read = incoming(request).await;
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
    if let Some(secs) = edge::retry_after_secs(error.class()) {
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

async fn remote_write(State(state): State<IngestState>, request: Request<Body>) -> Response {
    let protocol = Protocol::RemoteWrite;
    let incoming = match state.incoming(protocol, request).await {
        Ok(incoming) => incoming,
        Err(why) => return plain_answer(Err(why)),
    };
    let unsupported = match (incoming.form, incoming.encoding) {
        (Form::Json, _) => AdaptError::UnknownType {
            given: JSON.to_owned(),
            wanted: PROTOBUF,
        },
        // The protocol knows one compression; some senders leave the header out.
        (_, Encoding::Snappy | Encoding::Identity) => {
            return plain_answer(state.remote_write(&incoming.tenant, &incoming.body).await);
        }
        (_, other) => AdaptError::UnknownEncoding {
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
        Form::Json => {
            let json = serde_json::to_vec(message).unwrap_or_else(|_| b"{}".to_vec());
            (status, [(CONTENT_TYPE, JSON)], json).into_response()
        }
    }
}

fn otlp_error(form: Form, why: &IngestError) -> Response {
    let rpc = edge::rpc_status(why);
    let response = match form {
        Form::Protobuf => (status_of(why), [(CONTENT_TYPE, PROTOBUF)], rpc.encode_to_vec()).into_response(),
        Form::Json => {
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
        Form::Json => otlp::from_json(protocol, &body),
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
