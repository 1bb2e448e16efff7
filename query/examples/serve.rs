//! The query APIs over one shard in memory, fed by Prometheus remote write 1.0 and Loki push (JSON).
//!
//!     cargo run -p hindcast-query --example serve -- 127.0.0.1:9090
//!
//! For trying queries out and for running conformance kits against the evaluator alone. Nothing is kept.

use axum::body::Bytes;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode};
use axum::routing::{get, post};
use hindcast_model::{Labels, LogLine, Owner, Sample, TenantId, TimestampNs};
use hindcast_proto::edge;
use hindcast_query::io::{loki_router, prometheus_router};
use hindcast_query::testing::OneShard;
use hindcast_query::{Engine, Limits};
use prost::Message;
use std::sync::Arc;

/// The part of `prometheus.WriteRequest` that holds float samples.
#[derive(Clone, PartialEq, Message)]
struct WriteRequest {
    #[prost(message, repeated, tag = "1")]
    timeseries: Vec<TimeSeries>,
}

#[derive(Clone, PartialEq, Message)]
struct TimeSeries {
    #[prost(message, repeated, tag = "1")]
    labels: Vec<Label>,
    #[prost(message, repeated, tag = "2")]
    samples: Vec<WireSample>,
}

#[derive(Clone, PartialEq, Message)]
struct Label {
    #[prost(string, tag = "1")]
    name: String,
    #[prost(string, tag = "2")]
    value: String,
}

#[derive(Clone, PartialEq, Message)]
struct WireSample {
    #[prost(double, tag = "1")]
    value: f64,
    #[prost(int64, tag = "2")]
    timestamp: i64,
}

#[derive(serde::Deserialize)]
struct Push {
    streams: Vec<PushStream>,
}

#[derive(serde::Deserialize)]
struct PushStream {
    stream: std::collections::BTreeMap<String, String>,
    values: Vec<(String, String)>,
}

type Refused = (StatusCode, String);

fn bad(error: impl std::fmt::Display) -> Refused {
    (StatusCode::BAD_REQUEST, error.to_string())
}

fn tenant(headers: &HeaderMap) -> Result<TenantId, Refused> {
    edge::tenant_of_header(headers.get(edge::TENANT_KEY).and_then(|v| v.to_str().ok())).map_err(bad)
}

async fn write(State(shard): State<Arc<OneShard>>, headers: HeaderMap, body: Bytes) -> Result<StatusCode, Refused> {
    let tenant = tenant(&headers)?;
    let plain = snap::raw::Decoder::new().decompress_vec(&body).map_err(bad)?;
    for series in WriteRequest::decode(&plain[..]).map_err(bad)?.timeseries {
        let labels: Labels = series.labels.into_iter().map(|l| (l.name, l.value)).collect();
        let samples = series.samples.into_iter().map(|s| Sample {
            at: TimestampNs::from_ms(s.timestamp),
            value: s.value,
        });
        shard.add(&tenant, labels, samples);
    }
    Ok(StatusCode::NO_CONTENT)
}

async fn push(State(shard): State<Arc<OneShard>>, headers: HeaderMap, body: Bytes) -> Result<StatusCode, Refused> {
    let tenant = tenant(&headers)?;
    let push: Push = serde_json::from_slice(&body).map_err(bad)?;
    for s in push.streams {
        let mut lines = vec![];
        for (at, line) in s.values {
            lines.push(LogLine {
                at: TimestampNs(at.parse().map_err(bad)?),
                line: line.into_bytes().into(),
                metadata: vec![],
            });
        }
        shard.add_lines(&tenant, s.stream.into_iter().collect(), Owner::None, lines);
    }
    Ok(StatusCode::NO_CONTENT)
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let listen = std::env::args().nth(1).unwrap_or_else(|| "127.0.0.1:9090".to_owned());
    let shard = Arc::new(OneShard::new());
    let engine = Arc::new(Engine::new(shard.clone(), Limits::default()));
    let ingest = axum::Router::new()
        .route("/api/v1/write", post(write))
        .route("/loki/api/v1/push", post(push))
        .route("/ready", get(|| async { "ready" }))
        .with_state(shard);
    let app = prometheus_router(engine.clone())
        .merge(loki_router(engine))
        .merge(ingest);
    let listener = tokio::net::TcpListener::bind(&listen).await?;
    println!("listening on {}", listener.local_addr()?);
    axum::serve(listener, app).await?;
    Ok(())
}
