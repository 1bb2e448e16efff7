//! This crate's readers as fuzz targets, with seeds as senders write them. See `hindcast_env::fuzz`.

use crate::decompress::{Encoding, decompress};
use crate::intake::Ids;
use crate::otlp::{self, DeltaState, LogsRequest, MetricsRequest, TracesRequest};
use crate::own::SeriesRefs;
use crate::remote_write::Version;
use crate::{
    Books, Described, LimitsContext, Naming, Protocol, SeriesCache, influx, loki, own, records, remote_write, syslog,
    tenant_limits, tsdb,
};
use bytes::Bytes;
use hindcast_env::fuzz::Target;
use hindcast_env::{Disk, SimDisk};
use hindcast_model::{Labels, Owner, ShardId, ShardMap, Slot, TenantId, TimestampNs};
use hindcast_proto::v1;
use opentelemetry_proto::tonic::common::v1::{AnyValue, KeyValue, any_value};
use opentelemetry_proto::tonic::logs::v1::{LogRecord, ResourceLogs, ScopeLogs};
use opentelemetry_proto::tonic::metrics::v1::{
    ExponentialHistogram, ExponentialHistogramDataPoint, Gauge, Histogram, HistogramDataPoint, Metric, NumberDataPoint,
    ResourceMetrics, ScopeMetrics, Sum, metric, number_data_point,
};
use opentelemetry_proto::tonic::resource::v1::Resource;
use opentelemetry_proto::tonic::trace::v1::{ResourceSpans, ScopeSpans, Span, Status, span};
use prost::Message;

/// Every reader of bytes that a client sends.
pub const TARGETS: &[Target] = &[
    Target {
        name: "ingest-own",
        run: own_request,
        seeds: own_seeds,
    },
    Target {
        name: "ingest-remote-write",
        run: remote_write_request,
        seeds: remote_write_seeds,
    },
    Target {
        name: "ingest-remote-write-2",
        run: remote_write_2_request,
        seeds: remote_write_2_seeds,
    },
    Target {
        name: "ingest-native-line",
        run: native_line,
        seeds: native_line_seeds,
    },
    Target {
        name: "ingest-loki-protobuf",
        run: loki_protobuf,
        seeds: loki_protobuf_seeds,
    },
    Target {
        name: "ingest-loki-json",
        run: loki_json,
        seeds: loki_json_seeds,
    },
    Target {
        name: "ingest-otlp-metrics",
        run: otlp_metrics,
        seeds: otlp_metrics_seeds,
    },
    Target {
        name: "ingest-otlp-metrics-json",
        run: otlp_metrics_json,
        seeds: otlp_metrics_json_seeds,
    },
    Target {
        name: "ingest-otlp-logs",
        run: otlp_logs,
        seeds: otlp_logs_seeds,
    },
    Target {
        name: "ingest-otlp-logs-json",
        run: otlp_logs_json,
        seeds: otlp_logs_json_seeds,
    },
    Target {
        name: "ingest-otlp-traces",
        run: otlp_traces,
        seeds: otlp_traces_seeds,
    },
    Target {
        name: "ingest-otlp-traces-json",
        run: otlp_traces_json,
        seeds: otlp_traces_json_seeds,
    },
    Target {
        name: "ingest-syslog",
        run: syslog_messages,
        seeds: syslog_seeds,
    },
    Target {
        name: "ingest-influx",
        run: influx_lines,
        seeds: influx_seeds,
    },
    Target {
        name: "ingest-records",
        run: record_values,
        seeds: record_seeds,
    },
    Target {
        name: "ingest-limits",
        run: limits_file,
        seeds: limits_seeds,
    },
    Target {
        name: "ingest-decompress",
        run: compressed,
        seeds: compressed_seeds,
    },
    Target {
        name: "ingest-tsdb-index",
        run: tsdb_index,
        seeds: tsdb_index_seeds,
    },
    Target {
        name: "ingest-tsdb-chunk",
        run: tsdb_chunk,
        seeds: tsdb_chunk_seeds,
    },
    Target {
        name: "ingest-tsdb-wal",
        run: tsdb_wal,
        seeds: tsdb_wal_seeds,
    },
    Target {
        name: "ingest-tsdb-record",
        run: tsdb_record,
        seeds: tsdb_record_seeds,
    },
    Target {
        name: "ingest-tsdb-head",
        run: tsdb_head,
        seeds: tsdb_head_seeds,
    },
];

fn limits_file(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    if let Ok(limits) = tenant_limits::parse("limits.yml", text) {
        for of in limits.tenants.values().chain([&limits.default]) {
            let rates = [of.samples, of.log_bytes];
            assert!(rates.iter().flatten().all(|r| r.per_second > 0 && r.burst > 0));
            assert!(of.bounds.line_bytes_max > 0 && of.bounds.labels_max >= tenant_limits::LABELS_MIN);
        }
    }
}

fn limits_seeds() -> Vec<Vec<u8>> {
    let whole = "default: {samples_per_second: 50000, log_bytes_per_second: 4MiB, active_series_max: 10}
                 tenants:\n  a: {labels_max: 20, label_value_bytes_max: 1KiB, line_bytes_max: none, lines_too_long: cut}\n  b:\n";
    vec![
        whole.as_bytes().to_vec(),
        b"tenants: {a: {samples_per_second: 1, samples_burst: 5}}".to_vec(),
    ]
}

const LIMITS: LimitsContext = LimitsContext {
    now: TimestampNs(1_700_000_000_000_000_000),
    floor: None,
    bounds: crate::check::Bounds::DEFAULT,
};
const NOW_MS: i64 = 1_700_000_000_000;

/// Replicas of which every second one knows its series.
struct Some2(ShardMap);

impl Ids for Some2 {
    fn shard_of(&self, slot: Slot, at: TimestampNs) -> ShardId {
        self.0.shard_of(slot, at)
    }
    fn is_timeless(&self) -> bool {
        self.0.is_single()
    }
    fn epoch(&self, _: ShardId) -> u64 {
        3
    }
    fn ids(&self, _: ShardId, _: &TenantId, _: bool, wanted: &[(&Labels, &Owner)]) -> (u64, Vec<Option<u32>>) {
        let ids = (0..wanted.len() as u32).map(|i| (i % 2 == 0).then_some(i));
        (3, ids.collect())
    }
}

/// What is learnt from a request must serve the same request again: so each is read twice.
fn with_books(naming: Naming, mut read: impl FnMut(&TenantId, &Books<'_>)) {
    let ids = Some2(ShardMap::even(4).expect("a power of two"));
    let cache = SeriesCache::new(1 << 20);
    let described = Described::default();
    let books = Books {
        ids: &ids,
        cache: &cache,
        described: &described,
        naming,
        new_series: None,
        masker: None,
    };
    let tenant = TenantId::default();
    read(&tenant, &books);
    read(&tenant, &books);
}

fn own_request(bytes: &[u8]) {
    let _ = own::seq_of(bytes);
    let mut refs = SeriesRefs::default();
    with_books(Naming::Known, |tenant, books| {
        if let Ok(request) = own::adapt(tenant, bytes, &LIMITS, books, &mut refs) {
            request.laid.lessons.learn(tenant, books);
        }
    });
}

fn own_label(name: &str, value: &str) -> v1::Label {
    v1::Label {
        name: name.into(),
        value: value.into(),
    }
}

fn own_seeds() -> Vec<Vec<u8>> {
    let labels = |i: i32| {
        let name = own_label("__name__", &format!("node_load{i}"));
        vec![name, own_label("instance", "a:1"), own_label("job", "node")]
    };
    let point = |at: i64, value| v1::Point {
        at_ms: at,
        value: Some(value),
    };
    let series = (0..4).map(|i| v1::Series {
        labels: labels(i),
        points: (0..3).map(|n| point(NOW_MS + n * 1000, f64::from(i))).collect(),
    });
    let streams = (0..2).map(|i| v1::Stream {
        labels: vec![own_label("job", "app"), own_label("n", &i.to_string())],
        lines: (0..3)
            .map(|n| v1::Line {
                at_ns: NOW_MS * 1_000_000 + n,
                line: format!("line {n} of the stream"),
                metadata: vec![own_label("trace_id", "abc")],
            })
            .collect(),
    });
    let plain = v1::WriteRequest {
        writer: "w".into(),
        seq: 7,
        resource: vec![own_label("host.name", "a"), own_label("service.name", "s")],
        series: series.collect(),
        streams: streams.collect(),
        ..Default::default()
    };
    let interned = v1::WriteRequest {
        writer: "w".into(),
        seq: 8,
        definitions: (0..4u32)
            .map(|i| v1::SeriesRef {
                labels: labels(i as i32),
                r#ref: i,
            })
            .collect(),
        rows: vec![v1::Rows {
            at_ms: vec![NOW_MS, NOW_MS + 1000],
            runs: vec![0, 4],
            values: vec![1.5; 8],
        }],
        ..Default::default()
    };
    vec![plain.encode_to_vec(), interned.encode_to_vec()]
}

/// A protobuf field of bytes.
fn field(out: &mut Vec<u8>, number: u32, bytes: &[u8]) {
    prost::encoding::encode_key(number, prost::encoding::WireType::LengthDelimited, out);
    prost::encoding::encode_varint(bytes.len() as u64, out);
    out.extend_from_slice(bytes);
}

fn snappy(bytes: &[u8]) -> Vec<u8> {
    snap::raw::Encoder::new().compress_vec(bytes).unwrap_or_default()
}

/// As it came, and as what a block of snappy holds.
fn twice(bytes: &[u8], mut read: impl FnMut(&[u8])) {
    read(bytes);
    read(&snappy(bytes));
}

fn remote_write_request(bytes: &[u8]) {
    twice(bytes, |body| {
        with_books(Naming::Known, |tenant, books| {
            if let Ok(laid) = remote_write::adapt(Version::One, tenant, body, &LIMITS, books, &mut vec![]) {
                laid.lessons.learn(tenant, books);
            }
        });
    });
}

fn remote_write_seeds() -> Vec<Vec<u8>> {
    let mut request = vec![];
    for i in 0..4 {
        let mut series = vec![];
        for (name, value) in [
            ("__name__", format!("up{i}")),
            ("instance", "a:1".into()),
            ("job", "j".into()),
        ] {
            let mut label = vec![];
            field(&mut label, 1, name.as_bytes());
            field(&mut label, 2, value.as_bytes());
            field(&mut series, 1, &label);
        }
        for n in 0..3 {
            let mut sample = vec![];
            prost::encoding::double::encode(1, &1.5, &mut sample);
            prost::encoding::int64::encode(2, &(NOW_MS + n), &mut sample);
            field(&mut series, 2, &sample);
        }
        if i == 3 {
            field(&mut series, 4, &native_histogram());
        }
        field(&mut request, 1, &series);
    }
    field(&mut request, 3, b"\x08\x02\x12\x02up\x22\x04help");
    vec![snappy(&request), request]
}

fn remote_write_2_request(bytes: &[u8]) {
    twice(bytes, |body| {
        with_books(Naming::Known, |tenant, books| {
            if let Ok(laid) = remote_write::adapt(Version::Two, tenant, body, &LIMITS, books, &mut vec![]) {
                laid.lessons.learn(tenant, books);
            }
        });
    });
}

/// A native histogram with buckets on both sides and about zero.
fn native_histogram() -> Vec<u8> {
    let mut histogram = vec![0x08, 9];
    prost::encoding::double::encode(3, &12.5, &mut histogram);
    prost::encoding::sint32::encode(4, &3, &mut histogram);
    prost::encoding::double::encode(5, &0.001, &mut histogram);
    prost::encoding::uint64::encode(6, &1, &mut histogram);
    for (spans, deltas, counts) in [(8, 9, vec![2]), (11, 12, vec![2, 1, -2])] {
        let mut span = vec![];
        prost::encoding::sint32::encode(1, &-1, &mut span);
        prost::encoding::uint32::encode(2, &(counts.len() as u32), &mut span);
        field(&mut histogram, spans, &span);
        prost::encoding::sint64::encode_packed(deltas, &counts, &mut histogram);
    }
    prost::encoding::int64::encode(15, &NOW_MS, &mut histogram);
    histogram
}

fn remote_write_2_seeds() -> Vec<Vec<u8>> {
    let mut request = vec![];
    for symbol in [
        "",
        "__name__",
        "up",
        "instance",
        "a:1",
        "job",
        "j",
        "Whether it answers",
        "lag",
    ] {
        field(&mut request, 4, symbol.as_bytes());
    }
    for refs in [[1, 2, 3, 4, 5, 6], [1, 8, 3, 4, 5, 6]] {
        let mut series = vec![];
        prost::encoding::uint32::encode_packed(1, &refs, &mut series);
        for n in 0..3 {
            let mut sample = vec![];
            prost::encoding::double::encode(1, &1.5, &mut sample);
            prost::encoding::int64::encode(2, &(NOW_MS + n), &mut sample);
            field(&mut series, 2, &sample);
        }
        if refs[1] == 8 {
            field(&mut series, 3, &native_histogram());
        }
        field(&mut series, 5, &[0x08, 2, 0x18, 7]);
        field(&mut request, 5, &series);
    }
    vec![snappy(&request), request]
}

fn loki_protobuf(bytes: &[u8]) {
    twice(bytes, |body| {
        with_books(Naming::Defined, |tenant, books| {
            if let Ok(laid) = loki::adapt_protobuf(tenant, body, &LIMITS, books, &mut vec![]) {
                laid.lessons.learn(tenant, books);
            }
        });
    });
}

fn loki_protobuf_seeds() -> Vec<Vec<u8>> {
    let mut stream = vec![];
    field(&mut stream, 1, br#"{job="app", host="a \"b\""}"#);
    for n in 0..3i64 {
        let mut at = vec![];
        prost::encoding::int64::encode(1, &(NOW_MS / 1000), &mut at);
        prost::encoding::int64::encode(2, &n, &mut at);
        let mut metadata = vec![];
        field(&mut metadata, 1, b"trace_id");
        field(&mut metadata, 2, b"abc");
        let mut entry = vec![];
        field(&mut entry, 1, &at);
        field(&mut entry, 2, b"a line of text");
        field(&mut entry, 3, &metadata);
        field(&mut stream, 2, &entry);
    }
    let mut request = vec![];
    field(&mut request, 1, &stream);
    field(&mut request, 1, &stream);
    vec![snappy(&request), request]
}

fn loki_json(bytes: &[u8]) {
    let _ = loki::adapt_json(&TenantId::default(), bytes, &LIMITS);
}

fn loki_json_seeds() -> Vec<Vec<u8>> {
    let text = r#"{"streams":[{"stream":{"job":"app","host":"a"},"values":[["1700000000000000000","a line"],
        ["1700000000000000001","é가",{"trace_id":"abc"}]]}]}"#;
    vec![text.as_bytes().to_vec()]
}

fn attributes() -> Vec<KeyValue> {
    let value = |v| Some(AnyValue { value: Some(v) });
    let pair = |key: &str, v| KeyValue {
        key: key.into(),
        value: value(v),
        ..Default::default()
    };
    vec![
        pair("service.name", any_value::Value::StringValue("s".into())),
        pair("host.name", any_value::Value::StringValue("a".into())),
        pair("n", any_value::Value::IntValue(3)),
        pair("ok", any_value::Value::BoolValue(true)),
    ]
}

fn otlp_metrics(bytes: &[u8]) {
    if let Ok(request) = otlp::from_protobuf::<MetricsRequest>(Protocol::OtlpMetrics, bytes) {
        let _ = otlp::metrics::adapt(&TenantId::default(), request, &LIMITS, &mut DeltaState::new(100));
    }
}

fn otlp_metrics_json(bytes: &[u8]) {
    if let Ok(request) = otlp::from_json::<MetricsRequest>(Protocol::OtlpMetrics, bytes) {
        let _ = otlp::metrics::adapt(&TenantId::default(), request, &LIMITS, &mut DeltaState::new(100));
    }
}

fn metrics_request() -> MetricsRequest {
    let at = NOW_MS as u64 * 1_000_000;
    let number = |v| NumberDataPoint {
        attributes: attributes(),
        time_unix_nano: at,
        value: Some(v),
        ..Default::default()
    };
    let numbers = vec![
        number(number_data_point::Value::AsDouble(1.5)),
        number(number_data_point::Value::AsInt(-2)),
    ];
    let histogram = HistogramDataPoint {
        attributes: attributes(),
        time_unix_nano: at,
        count: 6,
        sum: Some(9.0),
        bucket_counts: vec![1, 2, 3],
        explicit_bounds: vec![0.5, 5.0],
        ..Default::default()
    };
    let mut exponential = ExponentialHistogramDataPoint {
        attributes: attributes(),
        time_unix_nano: at,
        count: 6,
        sum: Some(9.0),
        scale: 2,
        zero_count: 1,
        ..Default::default()
    };
    exponential.positive.get_or_insert_default().bucket_counts = vec![2, 3];
    let data = [
        metric::Data::Gauge(Gauge {
            data_points: numbers.clone(),
        }),
        metric::Data::Sum(Sum {
            data_points: numbers,
            aggregation_temporality: 1,
            is_monotonic: true,
        }),
        metric::Data::Histogram(Histogram {
            data_points: vec![histogram],
            aggregation_temporality: 2,
        }),
        metric::Data::ExponentialHistogram(ExponentialHistogram {
            data_points: vec![exponential],
            aggregation_temporality: 1,
        }),
    ];
    let metrics = data.into_iter().enumerate().map(|(i, data)| Metric {
        name: format!("http.server.duration{i}"),
        unit: "ms".into(),
        data: Some(data),
        ..Default::default()
    });
    MetricsRequest {
        resource_metrics: vec![ResourceMetrics {
            resource: Some(Resource {
                attributes: attributes(),
                ..Default::default()
            }),
            scope_metrics: vec![ScopeMetrics {
                metrics: metrics.collect(),
                ..Default::default()
            }],
            ..Default::default()
        }],
    }
}

fn otlp_metrics_seeds() -> Vec<Vec<u8>> {
    vec![metrics_request().encode_to_vec()]
}

fn otlp_metrics_json_seeds() -> Vec<Vec<u8>> {
    serde_json::to_vec(&metrics_request()).into_iter().collect()
}

fn otlp_logs(bytes: &[u8]) {
    if let Ok(request) = otlp::from_protobuf::<LogsRequest>(Protocol::OtlpLogs, bytes) {
        let _ = otlp::logs::adapt(&TenantId::default(), request, &LIMITS);
    }
}

fn otlp_logs_json(bytes: &[u8]) {
    if let Ok(request) = otlp::from_json::<LogsRequest>(Protocol::OtlpLogs, bytes) {
        let _ = otlp::logs::adapt(&TenantId::default(), request, &LIMITS);
    }
}

fn logs_request() -> LogsRequest {
    let record = |n: u64| LogRecord {
        time_unix_nano: NOW_MS as u64 * 1_000_000 + n,
        severity_number: 9,
        severity_text: "INFO".into(),
        body: Some(AnyValue {
            value: Some(any_value::Value::StringValue(format!("line {n}"))),
        }),
        attributes: attributes(),
        trace_id: vec![7; 16],
        span_id: vec![8; 8],
        ..Default::default()
    };
    LogsRequest {
        resource_logs: vec![ResourceLogs {
            resource: Some(Resource {
                attributes: attributes(),
                ..Default::default()
            }),
            scope_logs: vec![ScopeLogs {
                log_records: (0..3).map(record).collect(),
                ..Default::default()
            }],
            ..Default::default()
        }],
    }
}

fn otlp_logs_seeds() -> Vec<Vec<u8>> {
    vec![logs_request().encode_to_vec()]
}

fn otlp_logs_json_seeds() -> Vec<Vec<u8>> {
    serde_json::to_vec(&logs_request()).into_iter().collect()
}

fn spans_of(request: TracesRequest) {
    let scopes = request.resource_spans.iter().flat_map(|r| &r.scope_spans);
    let sent: usize = scopes.map(|s| s.spans.len()).sum();
    let read = otlp::spans::adapt(&TenantId::default(), request, &LIMITS)
        .tied(&mut otlp::Ties::new(3))
        .adapted;
    assert_eq!(read.batch.lines() + read.rejected.items(), sent as u64);
}

fn otlp_traces(bytes: &[u8]) {
    if let Ok(request) = otlp::from_protobuf::<TracesRequest>(Protocol::OtlpTraces, bytes) {
        spans_of(request);
    }
}

fn otlp_traces_json(bytes: &[u8]) {
    if let Ok(request) = otlp::from_json::<TracesRequest>(Protocol::OtlpTraces, bytes) {
        spans_of(request);
    }
}

fn traces_request() -> TracesRequest {
    let span = |n: u8| Span {
        trace_id: vec![7; 16],
        span_id: vec![8 + n; 8],
        parent_span_id: vec![7 + n; usize::from(n) * 8],
        name: format!("GET /{n}"),
        kind: i32::from(n) + 2,
        start_time_unix_nano: NOW_MS as u64 * 1_000_000,
        end_time_unix_nano: NOW_MS as u64 * 1_000_000 + 5,
        attributes: attributes(),
        events: vec![span::Event {
            time_unix_nano: 1,
            name: "retry".into(),
            attributes: attributes(),
            ..Default::default()
        }],
        links: vec![span::Link {
            trace_id: vec![7; 16],
            span_id: vec![9; 8],
            ..Default::default()
        }],
        status: Some(Status {
            code: 2,
            message: "it failed".into(),
        }),
        ..Default::default()
    };
    TracesRequest {
        resource_spans: vec![ResourceSpans {
            resource: Some(Resource {
                attributes: attributes(),
                ..Default::default()
            }),
            scope_spans: vec![ScopeSpans {
                spans: (0..2).map(span).collect(),
                ..Default::default()
            }],
            ..Default::default()
        }],
    }
}

fn otlp_traces_seeds() -> Vec<Vec<u8>> {
    vec![traces_request().encode_to_vec()]
}

fn otlp_traces_json_seeds() -> Vec<Vec<u8>> {
    serde_json::to_vec(&traces_request()).into_iter().collect()
}

/// As a connection brings them, in pieces of two sizes, with stalls between the pieces, and all of it as one datagram; with a
/// charset and without.
fn syslog_messages(bytes: &[u8]) {
    let pieces = [
        syslog::frame::frames_in_steps(bytes, 7),
        syslog::frame::frames_in_steps(bytes, 4096),
    ];
    assert_eq!(pieces[0], pieces[1], "frames do not depend on how their bytes came");
    let stalled = syslog::frame::frames_with_stalls(bytes, 40);
    let of_stalled: usize = stalled.iter().map(|f| f.bytes.len()).sum();
    assert!(of_stalled <= bytes.len(), "no byte is in two frames");
    let frames = pieces.into_iter().flatten().chain(stalled);
    let frames = frames.chain(syslog::frame::datagram(bytes));
    let messages: Vec<_> = frames
        .map(|frame| syslog::Message {
            frame,
            peer: [10, 0, 0, 7].into(),
            received: LIMITS.now,
        })
        .collect();
    for charset in [None, Some(encoding_rs::EUC_KR)] {
        let settings = syslog::Settings {
            tenant: TenantId::default(),
            zone: jiff::tz::TimeZone::UTC,
            charset,
            devices: syslog::Devices::default(),
        };
        let (read, _) = syslog::adapt(&settings, &messages, &LIMITS, &mut syslog::Names::default());
        assert_eq!(read.batch.lines() + read.rejected.items(), messages.len() as u64);
    }
}

fn syslog_seeds() -> Vec<Vec<u8>> {
    let mut mixed = vec![];
    for message in [
        "<34>1 2023-11-14T22:13:20.003Z web-1 su - ID47 [a@1 b=\"c\\\"d\" e=\"f\"][g] \u{feff}'su root' failed",
        "<13>1 - - - - - - 디스크",
        "<14>1 2023-11-14T22:13:20+09:00 h a 1 - -",
    ] {
        mixed.extend_from_slice(format!("{} {message}{message}\n", message.len()).as_bytes());
    }
    let lines =
        b"<34>Oct 11 22:14:15 web-1 su[3]: failed\n<189>45: *Mar  1 18:46:11.123 UTC: %SYS-5-CONFIG_I: x\nplain\n";
    let (korean, ..) = encoding_rs::EUC_KR.encode("<13>Nov 14 22:13:19 web-1 app: 디스크가 가득 찼습니다\n");
    vec![mixed, lines.to_vec(), korean.into_owned()]
}

fn influx_lines(bytes: &[u8]) {
    let _ = influx::adapt(&TenantId::default(), bytes, influx::Precision::Nanoseconds, &LIMITS);
}

fn influx_seeds() -> Vec<Vec<u8>> {
    let text = "# a comment\ncpu,host=web-1,cp\\ u=a\\,b usage=97.5,n=3i,m=4u,ok=t,t=\"a \\\"b\\\"\n c\" 1700000000000000000\n\
                up value=1\nbad\n";
    vec![text.as_bytes().to_vec()]
}

/// The first byte says what the others are.
fn record_values(bytes: &[u8]) {
    let Some((form, value)) = bytes.split_first() else {
        return;
    };
    let lines = records::Lines {
        labels: vec![("kafka_topic".to_owned(), "t".to_owned())],
        label_fields: vec![("a".to_owned(), "a.b".to_owned())],
        time_field: None,
    };
    let signals = [records::Signal::Metrics, records::Signal::Logs, records::Signal::Traces];
    let form = match form % 9 {
        0 => records::Form::Text(lines),
        1 => records::Form::Json(lines),
        2 => records::Form::Influx(influx::Precision::Seconds),
        n => records::Form::Otlp {
            signal: signals[usize::from(n % 3)],
            json: n < 6,
        },
    };
    let one = |offset| records::Record {
        partition: 0,
        offset,
        at: None,
        key: None,
        value: Bytes::copy_from_slice(value),
    };
    let mut known = records::Known {
        deltas: &mut DeltaState::new(100),
        ties: &mut otlp::Ties::default(),
        described: &Described::default(),
    };
    let read = records::adapt(&TenantId::default(), &form, &[one(1), one(2)], &LIMITS, &mut known);
    if let records::Form::Text(_) | records::Form::Json(_) = form {
        let accounted = read.adapted.batch.lines() + read.adapted.rejected.items() + read.unreadable;
        assert_eq!(accounted, 2, "a record is a line or refused");
    }
}

fn record_seeds() -> Vec<Vec<u8>> {
    let with = |form: u8| move |body: Vec<u8>| [&[form][..], &body].concat();
    let json = br#"{"@timestamp":"2023-11-14T22:13:20.5Z","level":"Warn","a":{"b":"c"},"message":"m"}"#;
    let mut seeds = vec![with(0)(b"a line\r\n".to_vec()), with(1)(json.to_vec())];
    seeds.extend(influx_seeds().into_iter().map(with(2)));
    seeds.extend(otlp_logs_json_seeds().into_iter().map(with(4)));
    seeds.extend(otlp_logs_seeds().into_iter().map(with(7)));
    seeds.extend(otlp_metrics_seeds().into_iter().map(with(6)));
    seeds
}

fn compressed(bytes: &[u8]) {
    let body = Bytes::copy_from_slice(bytes);
    for encoding in [Encoding::Gzip, Encoding::Zstd, Encoding::Snappy] {
        let _ = decompress(encoding, &body);
    }
}

fn compressed_seeds() -> Vec<Vec<u8>> {
    use std::io::Write;
    let text = b"the same text again and again, the same text again and again".repeat(4);
    let mut gzip = flate2::write::GzEncoder::new(vec![], flate2::Compression::fast());
    let gzip = gzip.write_all(&text).and_then(|()| gzip.finish()).unwrap_or_default();
    vec![gzip, zstd::encode_all(&text[..], 1).unwrap_or_default(), snappy(&text)]
}

/// Counts what it is told.
#[derive(Default)]
struct Counted(u64);

impl tsdb::Sink for Counted {
    fn native(&mut self, _: &Labels, _: i64, _: Option<&hindcast_model::Histogram>) -> tsdb::Flow {
        self.0 += 1;
        tsdb::Flow::Continue(())
    }
    fn row(&mut self, _: &Labels, _: i64, _: f64) -> tsdb::Flow {
        self.0 += 1;
        tsdb::Flow::Continue(())
    }
    fn at(&mut self, _: &tsdb::Place, _: &tsdb::Tally, _: u64) -> tsdb::Flow {
        tsdb::Flow::Continue(())
    }
    fn found(&mut self, _: tsdb::Finding) {}
}

/// A directory in which one file is the input and others are seeds.
fn tsdb_walk(files: &[(&str, &[u8])]) {
    let disk = SimDisk::default();
    for (path, bytes) in files {
        if let Some((dir, _)) = path.rsplit_once('/') {
            disk.create_dir_all(dir).expect("a disk in memory has room");
        }
        let mut file = disk.create(path).expect("a disk in memory has room");
        file.write_at(0, bytes).expect("a disk in memory has room");
    }
    if let Ok(walk) = tsdb::Walk::open(&disk) {
        let _ = walk.run(tsdb::Place::START, tsdb::Tally::default(), &mut Counted::default());
    }
}

/// What `promtool tsdb create-blocks-from openmetrics` made of a few lines.
const TSDB_INDEX: &[u8] = include_bytes!("../tests/golden/tsdb/01M8M3DB3W6SMNNQBQZR42WM6P/index");
const TSDB_CHUNKS: &[u8] = include_bytes!("../tests/golden/tsdb/01M8M3DB3W6SMNNQBQZR42WM6P/chunks/000001");
/// What a Prometheus 2.42 that was killed left of series, floats and both kinds of native histograms.
const TSDB_WAL: &[u8] = include_bytes!("../tests/golden/tsdb/wal/00000000");

fn tsdb_index(bytes: &[u8]) {
    tsdb_walk(&[("index", bytes), ("chunks/000001", TSDB_CHUNKS)]);
}

/// A native histogram as it is stored; what is made of it must hold up, too.
fn native_line(bytes: &[u8]) {
    use hindcast_model::Histogram as Native;
    let Ok(Some(h)) = Native::of_line(bytes) else { return };
    let line = h.to_line().expect("what was read can be written");
    assert!(Native::of_line(line.as_bytes()).is_ok(), "{line}");
    for q in [-1.0, 0.0, 0.5, 1.0, f64::NAN] {
        let _ = (
            h.quantile(q),
            h.fraction(q, 3.0),
            h.trimmed(q, true),
            h.trimmed(q, false),
        );
    }
    let _ = (h.variance(), h.is_reset_after(&h), h.clone().coarser(-4));
    let wide = Native {
        zero_threshold: 1.0,
        ..Native::default()
    };
    for other in [&h, &wide] {
        let _ = (
            h.plus(other),
            other.minus(&h),
            other.is_reset_after(&h),
            h.is_reset_after(other),
        );
    }
}

fn native_line_seeds() -> Vec<Vec<u8>> {
    let lines = [
        "h1 s=3 c=9 sum=12.5 zt=0.001 zc=1 r=g p=-2:2,3,0,1;7:1 n=0:2",
        "h1 s=-53 c=6 sum=3 r=n p=1:4,2 b=-1,0.25",
        "h1 stale",
    ];
    lines.map(|l| l.as_bytes().to_vec()).to_vec()
}

fn tsdb_index_seeds() -> Vec<Vec<u8>> {
    vec![TSDB_INDEX.to_vec()]
}

/// An encoding, then what it says is behind it; or a chunk file whose index is whole.
fn tsdb_chunk(bytes: &[u8]) {
    if let Some((encoding, data)) = bytes.split_first() {
        let _ = tsdb::chunk::read(*encoding, data, &mut |_, value| {
            if let tsdb::chunk::Value::Native(native) = value
                && let Ok(line) = native.line()
            {
                assert!(hindcast_model::Histogram::of_line(line.as_bytes()).is_ok(), "{line}");
            }
        });
    }
    tsdb_walk(&[("index", TSDB_INDEX), ("chunks/000001", bytes)]);
}

fn tsdb_chunk_seeds() -> Vec<Vec<u8>> {
    // Behind the file's head and the length, a chunk begins with its encoding.
    vec![TSDB_CHUNKS.to_vec(), TSDB_CHUNKS[9..].to_vec()]
}

fn tsdb_wal(bytes: &[u8]) {
    tsdb_walk(&[("wal/00000000", bytes), ("wal/00000001", bytes)]);
}

fn tsdb_wal_seeds() -> Vec<Vec<u8>> {
    vec![TSDB_WAL[..TSDB_WAL.len().min(60_000)].to_vec()]
}

fn tsdb_record(bytes: &[u8]) {
    let _ = tsdb::wal::read(bytes, &mut |_| {});
}

/// The records of a log, unpacked: no checksum stands before their reader.
fn tsdb_record_seeds() -> Vec<Vec<u8>> {
    let disk = SimDisk::default();
    let mut file = disk.create("log").expect("a disk in memory has room");
    file.write_at(0, TSDB_WAL).expect("a disk in memory has room");
    let mut segment = tsdb::wal::Segment::open(&disk, "log", true).expect("it was written");
    let mut seeds = vec![];
    while let tsdb::wal::Next::Record(_, record) = segment.next() {
        seeds.push(record.to_vec());
    }
    seeds.sort_by_key(|r| (r.first().copied(), r.len()));
    seeds.dedup_by_key(|r| r.first().copied());
    seeds
}

fn tsdb_head(bytes: &[u8]) {
    tsdb_walk(&[
        ("wal/00000000", TSDB_WAL),
        ("chunks_head/000001", bytes),
        ("chunks_head/000002", bytes),
    ]);
}

fn tsdb_head_seeds() -> Vec<Vec<u8>> {
    let mut file = [0x0130_BC91u32.to_be_bytes(), [1, 0, 0, 0]].concat();
    // The chunk of the block, as the head writes it.
    let data = &TSDB_CHUNKS[10..8 + 2 + usize::from(TSDB_CHUNKS[8])];
    for series in 1..4u64 {
        let at = file.len();
        file.extend(series.to_be_bytes());
        file.extend([0; 16]);
        file.extend([1, data.len() as u8]);
        file.extend(data);
        file.extend(crc32c::crc32c(&file[at..]).to_be_bytes());
    }
    vec![file]
}

#[cfg(test)]
mod tests {
    use super::*;
    use hindcast_env::io::SystemClock;
    use hindcast_model::SpanNs;

    #[test]
    fn no_reader_panics_or_hangs_on_damaged_bytes() {
        hindcast_env::fuzz::check_targets(TARGETS, &SystemClock::new(), SpanNs::from_ms(800));
    }

    #[test]
    fn seeds_are_what_the_readers_read() {
        with_books(Naming::Known, |tenant, books| {
            for (seed, samples) in own_seeds().iter().zip([12, 8]) {
                let read = own::adapt(tenant, seed, &LIMITS, books, &mut SeriesRefs::default()).unwrap();
                assert_eq!((read.laid.intake.samples, read.laid.rejected.items()), (samples, 0));
            }
            let read = remote_write::adapt(
                Version::One,
                tenant,
                &remote_write_seeds()[0],
                &LIMITS,
                books,
                &mut vec![],
            )
            .unwrap();
            assert_eq!(
                (read.intake.samples, read.intake.lines, read.native.histograms),
                (12, 1, 1)
            );
            let read = remote_write::adapt(
                Version::Two,
                tenant,
                &remote_write_2_seeds()[0],
                &LIMITS,
                books,
                &mut vec![],
            );
            let read = read.unwrap();
            assert_eq!((read.intake.samples, read.native.histograms), (6, 1));
            assert_eq!((read.due.len(), read.rejected.items()), (2, 0));
            let read = loki::adapt_protobuf(tenant, &loki_protobuf_seeds()[0], &LIMITS, books, &mut vec![]).unwrap();
            assert_eq!(read.intake.lines, 6);
        });
        let read = loki::adapt_json(&TenantId::default(), &loki_json_seeds()[0], &LIMITS).unwrap();
        assert_eq!(read.batch.lines(), 2);
        let frames = |seed: &[u8]| syslog::frame::frames_in_steps(seed, 100).len();
        assert_eq!(syslog_seeds().iter().map(|s| frames(s)).collect::<Vec<_>>(), [6, 3, 1]);
        let read = influx::adapt(
            &TenantId::default(),
            &influx_seeds()[0],
            influx::Precision::Nanoseconds,
            &LIMITS,
        );
        let read = read.unwrap();
        assert_eq!((read.adapted.batch.samples(), read.adapted.rejected.items()), (5, 1));
        let request = otlp::from_json::<LogsRequest>(Protocol::OtlpLogs, &otlp_logs_json_seeds()[0]).unwrap();
        assert_eq!(
            otlp::logs::adapt(&TenantId::default(), request, &LIMITS).batch.lines(),
            3
        );
        let request = otlp::from_json::<MetricsRequest>(Protocol::OtlpMetrics, &otlp_metrics_json_seeds()[0]).unwrap();
        let read = otlp::metrics::adapt(&TenantId::default(), request, &LIMITS, &mut DeltaState::new(100));
        assert!(read.batch.samples() > 6, "{:?}", read.rejected);
    }
}
