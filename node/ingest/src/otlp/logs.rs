//! OTLP log records to lines.
//!
//! A fixed list of resource attributes names the stream; everything else is structured metadata: attributes of
//! record, resource and scope, severity, trace and span id. A structured body becomes JSON. The time is the
//! record's own, else when it was observed, else now.

use super::names::label_name;
use super::streams::{Streams, stream_pairs};
use super::{as_text, attributes_of, values};
use crate::owners::Named;
use crate::{Adapted, LimitsContext, Rejections, identity};
use bytes::Bytes;
use hindcast_model::{Batch, Labels, LogLine, TenantId, TimestampNs};
use opentelemetry_proto::tonic::collector::logs::v1::ExportLogsServiceRequest;
use opentelemetry_proto::tonic::common::v1::InstrumentationScope;
use opentelemetry_proto::tonic::logs::v1::LogRecord;
use std::collections::BTreeMap;

/// Turns a request into a batch without an id: the shell adds the hash of the body that it came from.
pub fn adapt(tenant: &TenantId, request: ExportLogsServiceRequest, limits: &LimitsContext) -> Adapted {
    let mut rejected = Rejections::default();
    let mut streams = Streams::default();
    for of_resource in request.resource_logs {
        let attrs = attributes_of(of_resource.resource);
        let records = of_resource.scope_logs.iter().map(|s| s.log_records.len() as u64).sum();
        let pairs = stream_pairs(&attrs);
        if let Err(why) = limits.labels(&pairs, false) {
            rejected.add(records, &why, || Labels::new(pairs).to_string());
            continue;
        }
        let named = Named::new(tenant, Labels::new(pairs), &attrs);
        let mut lines = Vec::with_capacity(records as usize);
        for of_scope in of_resource.scope_logs {
            let shared = shared_metadata(&attrs, of_scope.scope);
            for record in of_scope.log_records {
                let line = line(record, &shared, limits.now);
                let fits = limits
                    .time(line.at)
                    .and_then(|()| limits.line(line.line.len(), &line.metadata));
                match fits {
                    Ok(()) => lines.push(line),
                    Err(why) => rejected.add(1, &why, || named.labels.to_string()),
                }
            }
        }
        streams.add(tenant, &attrs, named, lines);
    }
    let mut batch = Batch::new(tenant.clone());
    streams.into_batch(&mut batch);
    Adapted { batch, rejected }
}

/// What all records of a scope have in common.
pub(super) fn shared_metadata(
    attrs: &[(String, String)],
    scope: Option<InstrumentationScope>,
) -> BTreeMap<String, String> {
    let others = attrs.iter().filter(|(n, _)| !identity::is_stream_attribute(n));
    let mut metadata: BTreeMap<_, _> = others.map(|(n, v)| (label_name(n), v.clone())).collect();
    if let Some(scope) = scope {
        metadata.extend(as_text(scope.attributes).into_iter().map(|(n, v)| (label_name(&n), v)));
        metadata.insert("scope_name".into(), scope.name);
        metadata.insert("scope_version".into(), scope.version);
    }
    metadata
}

fn line(record: LogRecord, shared: &BTreeMap<String, String>, now: TimestampNs) -> LogLine {
    let mut metadata = shared.clone();
    metadata.extend(as_text(record.attributes).into_iter().map(|(n, v)| (label_name(&n), v)));
    let own = [
        ("severity_text", record.severity_text.clone()),
        ("detected_level", level(record.severity_number, &record.severity_text)),
        ("trace_id", values::hex(&record.trace_id)),
        ("span_id", values::hex(&record.span_id)),
        ("event_name", record.event_name),
    ];
    metadata.extend(
        own.map(|(n, v)| (n.to_owned(), v))
            .into_iter()
            .filter(|(_, v)| !v.is_empty()),
    );
    if record.severity_number != 0 {
        metadata.insert("severity_number".into(), record.severity_number.to_string());
    }
    metadata.retain(|_, v| !v.is_empty());
    let at = [record.time_unix_nano, record.observed_time_unix_nano]
        .into_iter()
        .find(|t| *t > 0);
    LogLine {
        at: at.map_or(now, |t| TimestampNs(i64::try_from(t).unwrap_or(i64::MAX))),
        line: Bytes::from(values::text(record.body)),
        metadata: metadata.into_iter().collect(),
    }
}

/// The level as a word, from the number's band or the sender's own text. "" when neither says.
fn level(number: i32, text: &str) -> String {
    let word = match number {
        1..=4 => "trace",
        5..=8 => "debug",
        9..=12 => "info",
        13..=16 => "warn",
        17..=20 => "error",
        21..=24 => "fatal",
        _ => return text.to_ascii_lowercase(),
    };
    word.to_owned()
}
