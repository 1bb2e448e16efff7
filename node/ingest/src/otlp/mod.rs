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

pub use delta::{Before, DELTA_SERIES_MAX, DeltaState};
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

/// Reads a request in OTLP's JSON form: unknown fields are ignored, nesting deeper than 128 is refused. So are names as protobuf writes them,
/// which this form does not have: ignored, what they hold would be lost without a word.
pub fn from_json<M: DeserializeOwned>(protocol: Protocol, body: &[u8]) -> Result<M, AdaptError> {
    let malformed = |why: String| AdaptError::Malformed { protocol, why };
    let request = serde_json::from_slice(body).map_err(|e| malformed(e.to_string()))?;
    match NAMES_OF_PROTOBUF.iter().find(|(name, _)| has_key(body, name)) {
        None => Ok(request),
        Some((name, own)) => Err(malformed(format!("{name:?} is written {own:?} in OTLP's JSON"))),
    }
}

/// What nothing is found without.
const NAMES_OF_PROTOBUF: [(&str, &str); 26] = [
    ("resource_metrics", "resourceMetrics"),
    ("scope_metrics", "scopeMetrics"),
    ("data_points", "dataPoints"),
    ("time_unix_nano", "timeUnixNano"),
    ("as_double", "asDouble"),
    ("as_int", "asInt"),
    ("resource_logs", "resourceLogs"),
    ("scope_logs", "scopeLogs"),
    ("log_records", "logRecords"),
    ("resource_spans", "resourceSpans"),
    ("scope_spans", "scopeSpans"),
    ("string_value", "stringValue"),
    ("int_value", "intValue"),
    ("double_value", "doubleValue"),
    ("bool_value", "boolValue"),
    ("array_value", "arrayValue"),
    ("kvlist_value", "kvlistValue"),
    ("is_monotonic", "isMonotonic"),
    ("aggregation_temporality", "aggregationTemporality"),
    ("bucket_counts", "bucketCounts"),
    ("explicit_bounds", "explicitBounds"),
    ("trace_id", "traceId"),
    ("span_id", "spanId"),
    ("start_time_unix_nano", "startTimeUnixNano"),
    ("end_time_unix_nano", "endTimeUnixNano"),
    ("severity_number", "severityNumber"),
];

/// Whether a text of JSON has such a key. Within a value its quotes would be escaped, or no colon would follow.
fn has_key(json: &[u8], name: &str) -> bool {
    let quoted = format!("\"{name}\"");
    let mut found = memchr::memmem::find_iter(json, &quoted);
    found.any(|at| {
        let rest = &json[at + quoted.len()..];
        rest.iter().find(|b| !b.is_ascii_whitespace()) == Some(&b':')
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn json_with_the_names_of_protobuf_is_refused_and_not_taken_for_an_empty_request() {
        let read =
            |json: &str| from_json::<LogsRequest>(Protocol::OtlpLogs, json.as_bytes()).map_err(|e| e.to_string());
        let refused = read(r#"{"resource_logs" : []}"#).unwrap_err();
        assert!(
            refused.contains(r#""resource_logs" is written "resourceLogs""#),
            "{refused}"
        );
        let nested = r#"{"resourceLogs":[{"scopeLogs":[{"log_records":[]}]}]}"#;
        assert!(read(nested).is_err());
        let named_in_a_line = r#"{"resourceLogs":[{"scopeLogs":[{"logRecords":[{"body":{"stringValue":"{\"resource_logs\":1}"},
            "attributes":[{"key":"log_records","value":{"stringValue":"log_records"}}]}]}]}]}"#;
        assert!(read(named_in_a_line).is_ok());
    }
}
