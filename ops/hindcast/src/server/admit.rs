//! The door of the client port: which work a request is, and what it hears when there is no room for it.
//!
//! Paths decide, before anything of the body is read. A request that is turned away did nothing, and is told when to come again.

use axum::body::Body;
use axum::response::{IntoResponse, Response};
use hindcast_env::Clock;
use hindcast_model::{Classify, SpanNs};
use hindcast_node::io::admission::{Admission, IngestPlace, Overload, QueryPlace, ingest_cost};
use hindcast_node::memory_guard::Work;
use hindcast_proto::edge;
use hindcast_raft::io::{Times, TimesSeen};
use hyper::header::HeaderName;
use hyper::header::{CONTENT_ENCODING, CONTENT_LENGTH, CONTENT_TYPE, RETRY_AFTER};
use hyper::{HeaderMap, Request, StatusCode};
use prost::Message;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::task::{Context, Poll};

/// What a path asks for.
pub fn work_of(path: &str) -> Work {
    const INGEST: [&str; 10] = [
        "/api/v1/write",
        "/v1/metrics",
        "/v1/logs",
        "/v1/traces",
        "/loki/api/v1/push",
        "/write",
        "/api/v2/write",
        "/opentelemetry.proto.collector.metrics.v1.MetricsService/Export",
        "/opentelemetry.proto.collector.logs.v1.LogsService/Export",
        "/opentelemetry.proto.collector.trace.v1.TraceService/Export",
    ];
    const WATCHING: [&str; 5] = [
        "/api/v1/status/buildinfo",
        "/api/v1/status/config",
        "/api/v1/status/flags",
        "/api/v1/status/runtimeinfo",
        "/loki/api/v1/status/buildinfo",
    ];
    const ALERTING: [&str; 2] = ["/api/v1/rules", "/api/v1/alerts"];
    if INGEST.contains(&path) || path.starts_with("/hindcast.v1.Ingest/") {
        return Work::Ingest;
    }
    if ALERTING.contains(&path) || path.starts_with("/hindcast.v1.Alerts/") {
        return Work::Alerting;
    }
    if WATCHING.contains(&path) {
        return Work::Watching;
    }
    if path.starts_with("/hindcast.v1.Desk/") || path.starts_with("/api/hindcast/v1/tickets") {
        return Work::Desk;
    }
    if path.starts_with("/api/hindcast/v1/alerts") || path.starts_with("/api/hindcast/v1/incidents") {
        return Work::Alerting;
    }
    let queries = [
        "/api/v1/",
        "/federate",
        "/loki/api/v1/",
        "/hindcast.v1.Query/",
        "/hindcast.v1.Replay/",
        "/api/hindcast/v1/cardinality",
    ];
    match queries.iter().any(|q| path.starts_with(q)) {
        true => Work::Queries,
        false => Work::Watching,
    }
}

/// What is held while a request is under way.
enum Place {
    Free,
    Ingest(#[allow(dead_code, reason = "it is given back when it is dropped")] IngestPlace),
    Query(QueryPlace),
}

async fn enter(admission: &Admission, path: &str, headers: &HeaderMap) -> Result<Place, Overload> {
    match work_of(path) {
        // Its batches are let in one by one.
        Work::Ingest if path.ends_with("/WriteStream") => admission.memory_for(Work::Ingest).map(|()| Place::Free),
        Work::Ingest => {
            let text = |name: HeaderName| headers.get(name).and_then(|v| v.to_str().ok());
            let length = text(CONTENT_LENGTH).and_then(|v| v.parse().ok());
            // Remote write is always compressed, and some senders do not say so.
            let is_remote_write = path == "/api/v1/write";
            let encodings = [text(CONTENT_ENCODING), text(HeaderName::from_static("grpc-encoding"))];
            let is_compressed = is_remote_write || encodings.into_iter().flatten().any(|e| e != "identity");
            let cost = ingest_cost(length, is_compressed);
            admission.ingest(cost).await.map(Place::Ingest)
        }
        // Played for minutes in the time of people, and paced by what the player takes: it is not held for so long.
        Work::Queries if path.starts_with("/hindcast.v1.Replay/") => {
            admission.memory_for(Work::Queries).map(|()| Place::Free)
        }
        Work::Queries => admission.query().await.map(Place::Query),
        work => admission.memory_for(work).map(|()| Place::Free),
    }
}

/// What became of requests, by work.
#[derive(Default)]
pub struct Requests {
    counts: [[AtomicU64; OUTCOMES.len()]; Work::ALL.len()],
    times: [Times; Work::ALL.len()],
}

const OUTCOMES: [&str; 3] = ["answered", "refused", "failed"];

impl Requests {
    fn add(&self, work: Work, response: &Response, took: SpanNs) {
        let grpc = response.headers().get("grpc-status").and_then(|v| v.to_str().ok());
        let outcome = match (response.status(), grpc) {
            (status, _) if status.is_server_error() => 2,
            (status, _) if status.is_client_error() => 1,
            // Unknown, internal, unavailable, data loss.
            (_, Some("2" | "13" | "14" | "15")) => 2,
            (_, None | Some("0")) => 0,
            (_, Some(_)) => 1,
        };
        self.counts[work as usize][outcome].fetch_add(1, Relaxed);
        self.times[work as usize].add(took);
    }

    /// Work, outcome, how many.
    pub fn counts(&self) -> Vec<(&'static str, &'static str, u64)> {
        let of = |work: Work| {
            let counts = OUTCOMES.into_iter().zip(&self.counts[work as usize]);
            counts.map(move |(outcome, n)| (work.as_str(), outcome, n.load(Relaxed)))
        };
        served().flat_map(of).collect()
    }

    pub fn times(&self) -> Vec<(&'static str, TimesSeen)> {
        served().map(|w| (w.as_str(), self.times[w as usize].seen())).collect()
    }
}

/// What comes through this door; forwarded parts come through the peers'.
fn served() -> impl Iterator<Item = Work> {
    Work::ALL.into_iter().filter(|w| *w != Work::Forwarded)
}

/// What the door needs. Clones share it.
#[derive(Clone)]
pub struct Door {
    pub admission: Admission,
    pub requests: Arc<Requests>,
    pub clock: Arc<dyn Clock>,
}

/// Around all routes.
pub async fn admit(
    axum::extract::State(door): axum::extract::State<Door>,
    request: Request<Body>,
    next: axum::middleware::Next,
) -> Response {
    let (began, work) = (door.clock.monotonic(), work_of(request.uri().path()));
    let response = match enter(&door.admission, request.uri().path(), request.headers()).await {
        Ok(Place::Query(place)) => {
            let held = |body| Body::new(Held { body, _place: place });
            with_retry(next.run(request).await.map(held))
        }
        Ok(_place) => with_retry(next.run(request).await),
        Err(why) => refusal(&why, request.headers(), request.uri().path()),
    };
    let took = SpanNs(door.clock.monotonic().0.saturating_sub(began.0));
    door.requests.add(work, &response, took);
    response
}

/// Whoever is told to come again is told when, whichever handler said so.
fn with_retry(mut response: Response) -> Response {
    let is_busy = matches!(
        response.status(),
        StatusCode::TOO_MANY_REQUESTS | StatusCode::SERVICE_UNAVAILABLE
    );
    if is_busy && !response.headers().contains_key(RETRY_AFTER) {
        response
            .headers_mut()
            .insert(RETRY_AFTER, edge::RETRY_SECS_DEFAULT.into());
    }
    response
}

/// In the words of the protocol.
fn refusal(why: &Overload, headers: &HeaderMap, path: &str) -> Response {
    let content = headers
        .get(CONTENT_TYPE)
        .and_then(|v| v.to_str().ok())
        .unwrap_or_default();
    if content.starts_with("application/grpc") {
        return edge::status(why).into_http::<tonic::body::Body>().map(Body::new);
    }
    let status = StatusCode::from_u16(edge::http_status(why.class())).unwrap_or(StatusCode::TOO_MANY_REQUESTS);
    let is_otlp = path.starts_with("/v1/");
    let rpc = edge::rpc_status(why);
    let response = if is_otlp && !content.starts_with("application/json") {
        (status, [(CONTENT_TYPE, "application/x-protobuf")], rpc.encode_to_vec()).into_response()
    } else if is_otlp {
        let body = serde_json::json!({ "code": rpc.code, "message": rpc.message });
        (status, axum::Json(body)).into_response()
    } else if work_of(path) == Work::Queries {
        // As Prometheus answers errors.
        let body = serde_json::json!({ "status": "error", "errorType": "unavailable", "error": why.to_string() });
        (status, axum::Json(body)).into_response()
    } else {
        (status, format!("{why}\n")).into_response()
    };
    with_retry(response)
}

/// A query's place is given back when its answer was sent, or given up.
struct Held {
    body: Body,
    _place: QueryPlace,
}

impl hyper::body::Body for Held {
    type Data = bytes::Bytes;
    type Error = axum::Error;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<hyper::body::Frame<bytes::Bytes>, axum::Error>>> {
        Pin::new(&mut self.get_mut().body).poll_frame(cx)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> hyper::body::SizeHint {
        self.body.size_hint()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_path_has_its_work() {
        let mut out = String::new();
        for path in [
            "/api/v1/write",
            "/hindcast.v1.Ingest/Write",
            "/hindcast.v1.Ingest/WriteStream",
            "/opentelemetry.proto.collector.logs.v1.LogsService/Export",
            "/loki/api/v1/push",
            "/write",
            "/api/v2/write",
            "/ping",
            "/health",
            "/loki/api/v1/query_range",
            "/api/v1/query",
            "/api/v1/read",
            "/federate",
            "/api/v1/label/job/values",
            "/hindcast.v1.Query/Rows",
            "/hindcast.v1.Replay/Play",
            "/api/v1/rules",
            "/api/hindcast/v1/incidents/INC-1",
            "/hindcast.v1.Alerts/ListIncidents",
            "/api/hindcast/v1/tickets/T-1/notes",
            "/hindcast.v1.Desk/Take",
            "/api/hindcast/v1/cluster",
            "/hindcast.v1.Cluster/Status",
            "/grpc.health.v1.Health/Check",
            "/metrics",
            "/-/ready",
            "/",
        ] {
            out += &format!("{path}: {}\n", work_of(path).as_str());
        }
        expect_test::expect![[r#"
            /api/v1/write: ingest
            /hindcast.v1.Ingest/Write: ingest
            /hindcast.v1.Ingest/WriteStream: ingest
            /opentelemetry.proto.collector.logs.v1.LogsService/Export: ingest
            /loki/api/v1/push: ingest
            /write: ingest
            /api/v2/write: ingest
            /ping: watching
            /health: watching
            /loki/api/v1/query_range: queries
            /api/v1/query: queries
            /api/v1/read: queries
            /federate: queries
            /api/v1/label/job/values: queries
            /hindcast.v1.Query/Rows: queries
            /hindcast.v1.Replay/Play: queries
            /api/v1/rules: alerting
            /api/hindcast/v1/incidents/INC-1: alerting
            /hindcast.v1.Alerts/ListIncidents: alerting
            /api/hindcast/v1/tickets/T-1/notes: desk
            /hindcast.v1.Desk/Take: desk
            /api/hindcast/v1/cluster: watching
            /hindcast.v1.Cluster/Status: watching
            /grpc.health.v1.Health/Check: watching
            /metrics: watching
            /-/ready: watching
            /: watching
        "#]]
        .assert_eq(&out);
    }

    #[test]
    fn a_refusal_is_in_the_words_of_the_protocol() {
        let why = Overload::IngestBytes { bytes_max: 5 };
        let said = |content: &str, path: &str| {
            let mut headers = HeaderMap::new();
            headers.insert(CONTENT_TYPE, content.parse().unwrap());
            refusal(&why, &headers, path)
        };
        let grpc = said("application/grpc", "/hindcast.v1.Ingest/Write");
        let status = tonic::Status::from_header_map(grpc.headers()).unwrap();
        assert_eq!(status.code(), tonic::Code::ResourceExhausted);
        assert_eq!(edge::retry_info_of(&status).map(|d| d.as_secs()), Some(1));
        for (content, path) in [
            ("application/x-protobuf", "/v1/metrics"),
            ("application/json", "/v1/logs"),
            ("application/x-protobuf", "/api/v1/write"),
            ("application/json", "/loki/api/v1/push"),
            ("text/plain", "/api/v1/query"),
        ] {
            let response = said(content, path);
            assert_eq!(response.status(), StatusCode::TOO_MANY_REQUESTS, "{path}");
            assert_eq!(response.headers()[RETRY_AFTER], "1", "{path}");
        }
    }
}
