//! OpenTelemetry protocol: metrics to Prometheus series, logs and spans to streams.

mod delta;
pub mod logs;
pub mod metrics;
pub(crate) mod names;
mod requests;
pub mod spans;
mod streams;
mod ties;
mod values;

pub(crate) use names::{derived, number};

pub use delta::{DELTA_SERIES_MAX, DeltaState};
pub use opentelemetry_proto::tonic::collector::logs::v1::ExportLogsServiceRequest as LogsRequest;
pub use opentelemetry_proto::tonic::collector::metrics::v1::ExportMetricsServiceRequest as MetricsRequest;
pub use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest as TracesRequest;
pub use requests::{Call, Calls, REQUEST_SETS_MAX, RequestTotals};
pub use spans::Spans;
pub use ties::{TIES_MAX, Ties};

use crate::{AdaptError, Protocol};
use opentelemetry_proto::tonic::common::v1::KeyValue;
use opentelemetry_proto::tonic::resource::v1::Resource;
use prost::Message;
use serde::de::DeserializeOwned;

/// Reads an encoded request. Nesting deeper than prost's limit (100) is refused.
pub fn from_protobuf<M: Message + Default>(protocol: Protocol, body: &[u8]) -> Result<M, AdaptError> {
    M::decode(body).map_err(|e| AdaptError::Malformed {
        protocol,
        why: e.to_string(),
    })
}

/// Reads a request in OTLP's JSON form: unknown fields are ignored, nesting deeper than 128 is refused.
pub fn from_json<M: DeserializeOwned>(protocol: Protocol, body: &[u8]) -> Result<M, AdaptError> {
    serde_json::from_slice(body).map_err(|e| AdaptError::Malformed {
        protocol,
        why: e.to_string(),
    })
}

/// A resource's attributes as text, sorted by name, the last of equal names.
fn attributes_of(resource: Option<Resource>) -> Vec<(String, String)> {
    as_text(resource.map(|r| r.attributes).unwrap_or_default())
}

fn as_text(attributes: Vec<KeyValue>) -> Vec<(String, String)> {
    let sorted: std::collections::BTreeMap<String, String> = attributes
        .into_iter()
        .map(|kv| (kv.key, values::text(kv.value)))
        .filter(|(name, value)| !name.is_empty() && !value.is_empty())
        .collect();
    sorted.into_iter().collect()
}
