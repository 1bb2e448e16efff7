//! Records of a log of messages (Kafka's), each a request or a line of its own, as one batch.
//!
//! A record that cannot be read is refused by itself, with the reason; those beside it are stored. Lines keep their order. The caller
//! names the batches.
//!
//! Text: a record is a line. JSON: a record is an object, and the line is its text as it came, so that LogQL's `json` stage has all of
//! it; its time is one of [`TIME_FIELDS`], its level one of [`LEVEL_FIELDS`], where they are there. Lines carry partition, offset and
//! key of their record as metadata.

use crate::otlp::{self, Calls, DeltaState, Ties};
use crate::owners::{Named, Seen};
use crate::{AdaptError, Adapted, Described, Due, LimitsContext, Protocol, Refusal, Rejections, influx};
use bytes::Bytes;
use hindcast_model::{Batch, Labels, LogLine, StreamBlock, TenantId, TimestampNs};
use serde_json::Value;
use std::collections::BTreeMap;

/// Fields of an object that become labels, of one topic.
pub const LABEL_FIELDS_MAX: usize = 8;
/// Where an object's time is looked for, unless a field is named: as Vector, Fluent Bit and others write them.
pub const TIME_FIELDS: [&str; 5] = ["@timestamp", "timestamp", "time", "ts", "date"];
pub const LEVEL_FIELDS: [&str; 3] = ["level", "severity", "severity_text"];
/// How long a level may be, to be one.
const LEVEL_BYTES_MAX: usize = 32;

/// Of OTLP.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Signal {
    Metrics,
    Logs,
    Traces,
}

/// What lines are given.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Lines {
    pub labels: Vec<(String, String)>,
    /// Labels, and the fields that have their values. A dot goes into an object.
    pub label_fields: Vec<(String, String)>,
    pub time_field: Option<String>,
}

/// What records are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Form {
    Text(Lines),
    Json(Lines),
    Influx(influx::Precision),
    Otlp { signal: Signal, json: bool },
}

/// A record with a value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Record {
    pub partition: i32,
    pub offset: i64,
    pub at: Option<TimestampNs>,
    pub key: Option<String>,
    pub value: Bytes,
}

/// What adapters remember.
pub struct Known<'a> {
    pub deltas: &'a mut DeltaState,
    pub ties: &'a mut Ties,
    pub described: &'a Described,
}

/// Records as a batch, and what they bring beside it.
pub struct Read {
    pub adapted: Adapted,
    /// Records of which nothing could be read, with the first reasons.
    pub unreadable: u64,
    pub reasons: Vec<(i64, String)>,
    /// Fields of line protocol with a text.
    pub texts: Rejections,
    pub calls: Vec<Calls>,
    pub due: Due,
    pub exemplars: u64,
    pub exemplars_left_out: u64,
}

/// Reasons that are listed.
pub const REASONS_MAX: usize = 5;

/// Whether a name can be a label's without quotes.
pub fn is_label_name(name: &str) -> bool {
    let mut chars = name.chars();
    chars.next().is_some_and(|c| c.is_ascii_alphabetic() || c == '_')
        && chars.all(|c| c.is_ascii_alphanumeric() || c == '_')
        && name.len() <= hindcast_model::limits::LABEL_NAME_BYTES_MAX
}

/// Makes one batch of records.
pub fn adapt(
    tenant: &TenantId,
    form: &Form,
    records: &[Record],
    limits: &LimitsContext,
    known: &mut Known<'_>,
) -> Read {
    let mut read = Read {
        adapted: Adapted {
            batch: Batch::new(tenant.clone()),
            rejected: Rejections::default(),
        },
        unreadable: 0,
        reasons: vec![],
        texts: Rejections::default(),
        calls: vec![],
        due: Due::default(),
        exemplars: 0,
        exemplars_left_out: 0,
    };
    match form {
        Form::Text(lines) | Form::Json(lines) => {
            let is_json = matches!(form, Form::Json(_));
            adapt_lines(tenant, lines, is_json, records, limits, &mut read);
        }
        Form::Influx(precision) => {
            for record in records {
                // A line without a time has that of its record, and the same one when the record comes again.
                let own = LimitsContext {
                    now: record.at.unwrap_or(limits.now).min(limits.now),
                    ..*limits
                };
                match influx::adapt(tenant, &record.value, *precision, &own) {
                    Ok(one) => {
                        read.texts.merge(one.texts);
                        read.add(one.adapted);
                    }
                    Err(why) => read.refuse(record, &why),
                }
            }
        }
        Form::Otlp { signal, json } => {
            for record in records {
                if let Err(why) = adapt_otlp(tenant, *signal, *json, record, limits, known, &mut read) {
                    read.refuse(record, &why);
                }
            }
        }
    }
    read
}

impl Read {
    fn add(&mut self, one: Adapted) {
        let batch = &mut self.adapted.batch;
        batch.series.extend(one.batch.series);
        batch.streams.extend(one.batch.streams);
        batch.resources.extend(one.batch.resources);
        batch.edges.extend(one.batch.edges);
        self.adapted.rejected.merge(one.rejected);
    }

    fn refuse(&mut self, record: &Record, why: &dyn std::fmt::Display) {
        self.unreadable += 1;
        if self.reasons.len() < REASONS_MAX {
            self.reasons.push((record.offset, why.to_string()));
        }
    }
}

fn otlp_request<M>(protocol: Protocol, json: bool, body: &[u8]) -> Result<M, AdaptError>
where
    M: prost::Message + Default + serde::de::DeserializeOwned,
{
    match json {
        true => otlp::from_json(protocol, body),
        false => otlp::from_protobuf(protocol, body),
    }
}

fn adapt_otlp(
    tenant: &TenantId,
    signal: Signal,
    json: bool,
    record: &Record,
    limits: &LimitsContext,
    known: &mut Known<'_>,
    read: &mut Read,
) -> Result<(), AdaptError> {
    let body = &record.value[..];
    match signal {
        Signal::Metrics => {
            let request: otlp::MetricsRequest = otlp_request(Protocol::OtlpMetrics, json, body)?;
            let exemplars = otlp::metrics::describe(tenant, &request, limits, known.described, &mut read.due);
            let adapted = otlp::metrics::adapt(tenant, request, limits, known.deltas);
            // They are the only lines of metrics.
            let kept: u64 = adapted.batch.streams.iter().map(|s| s.lines.len() as u64).sum();
            read.exemplars += kept;
            read.exemplars_left_out += exemplars.saturating_sub(kept);
            read.add(adapted);
        }
        Signal::Logs => {
            let request: otlp::LogsRequest = otlp_request(Protocol::OtlpLogs, json, body)?;
            read.add(otlp::logs::adapt(tenant, request, limits));
        }
        Signal::Traces => {
            let request: otlp::TracesRequest = otlp_request(Protocol::OtlpTraces, json, body)?;
            let spans = otlp::spans::adapt(tenant, request, limits).tied(known.ties);
            read.calls.extend(spans.calls);
            read.add(spans.adapted);
        }
    }
    Ok(())
}

/// One record as a line.
struct Line {
    labels: Vec<(String, String)>,
    line: LogLine,
}

fn adapt_lines(
    tenant: &TenantId,
    form: &Lines,
    is_json: bool,
    records: &[Record],
    limits: &LimitsContext,
    read: &mut Read,
) {
    let mut seen = Seen::default();
    let mut of_labels: BTreeMap<Vec<(String, String)>, usize> = BTreeMap::new();
    for record in records {
        let line = match is_json {
            true => json_line(form, record, limits.now),
            false => Ok(text_line(form, record, limits.now)),
        };
        let Line { labels, line } = match line {
            Ok(line) => line,
            Err(why) => {
                read.refuse(record, &why);
                continue;
            }
        };
        let fits = limits
            .labels(&labels, false)
            .and_then(|()| limits.time(line.at))
            .and_then(|()| limits.line(line.line.len(), &line.metadata));
        if let Err(why) = fits {
            let what = || {
                format!(
                    "{} partition {} offset {}",
                    Labels::new(labels.clone()),
                    record.partition,
                    record.offset
                )
            };
            read.adapted.rejected.add(1, &why, what);
            continue;
        }
        let streams = &mut read.adapted.batch.streams;
        let at = *of_labels.entry(labels).or_insert_with_key(|labels| {
            let named = Named::new(tenant, Labels::new(labels.clone()), &[]);
            seen.note(&named.resource);
            streams.push(StreamBlock {
                labels: named.labels,
                owner: named.owner,
                lines: vec![],
            });
            streams.len() - 1
        });
        streams[at].lines.push(line);
    }
    seen.into_batch(&mut read.adapted.batch);
}

fn metadata_of(record: &Record) -> Vec<(String, String)> {
    let own = [
        ("kafka_key", record.key.clone()),
        ("kafka_offset", Some(record.offset.to_string())),
        ("kafka_partition", Some(record.partition.to_string())),
    ];
    own.into_iter().filter_map(|(n, v)| Some((n.to_owned(), v?))).collect()
}

fn text_line(form: &Lines, record: &Record, now: TimestampNs) -> Line {
    let value = record.value.strip_suffix(b"\n").unwrap_or(&record.value);
    let value = value.strip_suffix(b"\r").unwrap_or(value);
    let mut metadata = metadata_of(record);
    let line = match std::str::from_utf8(value) {
        Ok(text) => record.value.slice_ref(text.as_bytes()),
        Err(_) => {
            let replaced = value.utf8_chunks().filter(|c| !c.invalid().is_empty()).count();
            metadata.push(("kafka_replaced".to_owned(), replaced.to_string()));
            String::from_utf8_lossy(value).into_owned().into()
        }
    };
    Line {
        labels: form.labels.clone(),
        line: LogLine {
            at: record.at.unwrap_or(now),
            line,
            metadata,
        },
    }
}

fn json_line(form: &Lines, record: &Record, now: TimestampNs) -> Result<Line, Refusal> {
    let bad = |why: String| Refusal::BadLine { why };
    let object: Value = serde_json::from_slice(&record.value).map_err(|e| bad(format!("it is not JSON: {e}")))?;
    if !object.is_object() {
        return Err(bad("it is JSON, but not an object".to_owned()));
    }
    let at = match &form.time_field {
        Some(field) => {
            let value =
                at_path(&object, field).ok_or_else(|| bad(format!("it has no field {field:?} with its time")))?;
            Some(time(value).ok_or_else(|| bad(format!("its field {field:?} is not a time: {}", short(value))))?)
        }
        None => TIME_FIELDS.iter().find_map(|f| time(object.get(f)?)),
    };
    let mut labels = form.labels.clone();
    for (label, field) in &form.label_fields {
        if let Some(value) = at_path(&object, field).and_then(text_of) {
            labels.push((label.clone(), value));
        }
    }
    let mut metadata = metadata_of(record);
    let level = LEVEL_FIELDS.iter().find_map(|f| object.get(f)?.as_str());
    if let Some(level) = level.filter(|l| !l.is_empty() && l.len() <= LEVEL_BYTES_MAX) {
        metadata.insert(0, ("detected_level".to_owned(), level.to_ascii_lowercase()));
    }
    Ok(Line {
        labels,
        line: LogLine {
            at: at.or(record.at).unwrap_or(now),
            // JSON is UTF-8, or it could not be read.
            line: record.value.clone(),
            metadata,
        },
    })
}

fn short(value: &Value) -> String {
    value.to_string().chars().take(60).collect()
}

fn at_path<'v>(object: &'v Value, path: &str) -> Option<&'v Value> {
    object
        .get(path)
        .or_else(|| path.split('.').try_fold(object, |at, part| at.get(part)))
}

fn text_of(value: &Value) -> Option<String> {
    match value {
        Value::String(text) => (!text.is_empty()).then(|| text.clone()),
        Value::Bool(_) | Value::Number(_) => Some(value.to_string()),
        _ => None,
    }
}

/// RFC 3339, or a number since 1970 whose size says its unit: seconds (with fractions), milliseconds, microseconds or nanoseconds.
fn time(value: &Value) -> Option<TimestampNs> {
    match value {
        Value::String(text) => {
            let at: jiff::Timestamp = text.parse().ok()?;
            i64::try_from(at.as_nanosecond()).ok().map(TimestampNs)
        }
        Value::Number(number) => match number.as_i64() {
            Some(n) => {
                let unit = match n.unsigned_abs() {
                    0..100_000_000_000 => 1_000_000_000,
                    100_000_000_000..100_000_000_000_000 => 1_000_000,
                    100_000_000_000_000..100_000_000_000_000_000 => 1_000,
                    _ => 1,
                };
                n.checked_mul(unit).map(TimestampNs)
            }
            None => {
                let seconds = number.as_f64().filter(|s| s.abs() < 9e9)?;
                Some(TimestampNs((seconds * 1e6).round() as i64 * 1_000))
            }
        },
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: i64 = 1_700_000_100;

    fn record(value: &[u8]) -> Record {
        Record {
            partition: 3,
            offset: 7,
            at: Some(TimestampNs::from_secs(1_700_000_000)),
            key: Some("k".to_owned()),
            value: Bytes::copy_from_slice(value),
        }
    }

    fn read(form: &Form, values: &[&[u8]]) -> Read {
        let limits = LimitsContext {
            now: TimestampNs::from_secs(NOW),
            floor: None,
            bounds: crate::Bounds::DEFAULT,
        };
        let records: Vec<_> = values.iter().map(|v| record(v)).collect();
        let mut known = Known {
            deltas: &mut DeltaState::new(10),
            ties: &mut Ties::default(),
            described: &Described::default(),
        };
        adapt(&TenantId::default(), form, &records, &limits, &mut known)
    }

    fn shown(read: &Read) -> String {
        let mut out = String::new();
        for stream in &read.adapted.batch.streams {
            out += &format!("{}\n", stream.labels);
            for l in &stream.lines {
                let metadata: Vec<_> = l.metadata.iter().map(|(n, v)| format!(" {n}={v}")).collect();
                out += &format!(
                    "  {} {:?}{}\n",
                    l.at,
                    String::from_utf8_lossy(&l.line),
                    metadata.concat()
                );
            }
        }
        for (offset, why) in &read.reasons {
            out += &format!("offset {offset}: {why}\n");
        }
        out
    }

    fn lines() -> Lines {
        Lines {
            labels: vec![("kafka_topic".to_owned(), "t".to_owned())],
            ..Lines::default()
        }
    }

    #[test]
    fn a_record_of_text_is_a_line() {
        let read = read(
            &Form::Text(lines()),
            &[b"one\r\n", b"two\nthree\n", b"\xff!\xfe", "é".as_bytes()],
        );
        expect_test::expect![[r#"
            {kafka_topic="t"}
              1700000000.000 "one" kafka_key=k kafka_offset=7 kafka_partition=3
              1700000000.000 "two\nthree" kafka_key=k kafka_offset=7 kafka_partition=3
              1700000000.000 "�!�" kafka_key=k kafka_offset=7 kafka_partition=3 kafka_replaced=2
              1700000000.000 "é" kafka_key=k kafka_offset=7 kafka_partition=3
        "#]]
        .assert_eq(&shown(&read));
    }

    #[test]
    fn an_object_says_its_time_its_level_and_its_labels() {
        let form = Form::Json(Lines {
            label_fields: vec![
                ("host_name".to_owned(), "host".to_owned()),
                ("service_name".to_owned(), "kubernetes.labels.app".to_owned()),
            ],
            ..lines()
        });
        let read = read(
            &form,
            &[
                br#"{"timestamp":"2023-11-14T22:13:20.123456789Z","host":"web-1","level":"WARN","message":"vector"}"#,
                br#"{"@timestamp":1700000000.25,"log":"fluent bit","kubernetes":{"labels":{"app":"shop"}}}"#,
                br#"{"time":1700000000123,"host":7,"a":1}"#,
                br#"{"ts":1700000000123456,"host":""}"#,
                br#"{"date":1700000000123456789}"#,
                br#"{"time":"yesterday"}"#,
                br#"{"a":"#,
                br#"["a"]"#,
            ],
        );
        expect_test::expect![[r#"
            {host_name="web-1", kafka_topic="t"}
              1700000000.123 "{\"timestamp\":\"2023-11-14T22:13:20.123456789Z\",\"host\":\"web-1\",\"level\":\"WARN\",\"message\":\"vector\"}" detected_level=warn kafka_key=k kafka_offset=7 kafka_partition=3
            {kafka_topic="t", service_name="shop"}
              1700000000.250 "{\"@timestamp\":1700000000.25,\"log\":\"fluent bit\",\"kubernetes\":{\"labels\":{\"app\":\"shop\"}}}" kafka_key=k kafka_offset=7 kafka_partition=3
            {host_name="7", kafka_topic="t"}
              1700000000.123 "{\"time\":1700000000123,\"host\":7,\"a\":1}" kafka_key=k kafka_offset=7 kafka_partition=3
            {kafka_topic="t"}
              1700000000.123 "{\"ts\":1700000000123456,\"host\":\"\"}" kafka_key=k kafka_offset=7 kafka_partition=3
              1700000000.123 "{\"date\":1700000000123456789}" kafka_key=k kafka_offset=7 kafka_partition=3
              1700000000.000 "{\"time\":\"yesterday\"}" kafka_key=k kafka_offset=7 kafka_partition=3
            offset 7: the line cannot be read: it is not JSON: EOF while parsing a value at line 1 column 5
            offset 7: the line cannot be read: it is JSON, but not an object
        "#]].assert_eq(&shown(&read));
        assert_eq!(read.unreadable, 2);
        // A field that is named must be there.
        let named = Form::Json(Lines {
            time_field: Some("at".to_owned()),
            ..lines()
        });
        let read = super::tests::read(
            &named,
            &[br#"{"at":"2023-11-14T22:13:20Z"}"#, br#"{"at":"soon"}"#, br#"{}"#],
        );
        expect_test::expect![[r#"
            {kafka_topic="t"}
              1700000000.000 "{\"at\":\"2023-11-14T22:13:20Z\"}" kafka_key=k kafka_offset=7 kafka_partition=3
            offset 7: the line cannot be read: its field "at" is not a time: "soon"
            offset 7: the line cannot be read: it has no field "at" with its time
        "#]]
        .assert_eq(&shown(&read));
    }

    #[test]
    fn what_is_beyond_limits_is_refused_by_itself() {
        let far = format!(r#"{{"time":{}}}"#, NOW + 86_400);
        let read = read(&Form::Json(lines()), &[far.as_bytes(), b"{}"]);
        assert_eq!((read.adapted.batch.lines(), read.adapted.rejected.items()), (1, 1));
        let said = read.adapted.rejected.summary(1);
        assert!(
            said.contains("partition 3 offset 7") && said.contains("ahead of"),
            "{said}"
        );
    }

    #[test]
    fn reasons_are_listed_up_to_a_number_and_all_are_counted() {
        let bad: Vec<&[u8]> = vec![b"x"; REASONS_MAX + 3];
        let signal = Signal::Logs;
        let read = read(&Form::Otlp { signal, json: true }, &bad);
        assert_eq!(
            (read.unreadable, read.reasons.len()),
            (REASONS_MAX as u64 + 3, REASONS_MAX)
        );
        let read = super::tests::read(&Form::Influx(influx::Precision::Seconds), &[b"up value=1", b"\xff"]);
        let sample = &read.adapted.batch.series[0].samples[0];
        assert_eq!(
            sample.at,
            TimestampNs::from_secs(1_700_000_000),
            "the record's own time"
        );
        assert_eq!(read.unreadable, 1);
    }
}
