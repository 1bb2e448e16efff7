//! Topics of a broker of our own into a sink that knows what it stored, as shards do.

#![allow(
    clippy::disallowed_methods,
    reason = "a test lays out files as an operator does, and waits for sockets"
)]

use super::broker::FakeBroker;
use super::*;
use crate::io::servers::tests::{NOW_SECS, Recorder};
use crate::write::{BatchSink, Redo, WriteError, Written};
use hindcast_env::SimClock;
use hindcast_ingest::{Ids, Intake};
use hindcast_model::{Batch, BatchId, TimestampNs, WriterId};
use std::sync::atomic::{AtomicUsize, Ordering};

/// A sink that knows batches which come in order, as shards do. It may store a batch and say nothing.
#[derive(Default)]
struct Once {
    recorder: Recorder,
    last: Mutex<BTreeMap<WriterId, u64>>,
    known: AtomicUsize,
    /// Batches that are stored without a word from now on.
    mute: AtomicUsize,
    /// Nothing is stored, and nothing said.
    hangs: std::sync::atomic::AtomicBool,
}

#[async_trait::async_trait]
impl BatchSink for Once {
    async fn write(&self, batch: Batch) -> Result<Written, WriteError> {
        self.recorder.write(batch).await
    }

    fn ids(&self) -> &dyn Ids {
        self.recorder.ids()
    }

    async fn write_intake(&self, intake: Intake, redo: Redo<'_>) -> Result<Written, WriteError> {
        let Some(BatchId::Ordered { writer, seq }) = intake.id else {
            panic!("batches come in order")
        };
        if self.hangs.load(Ordering::SeqCst) {
            return std::future::pending().await;
        }
        if self.last.lock().get(&writer).is_some_and(|last| seq <= *last) {
            self.known.fetch_add(1, Ordering::SeqCst);
            return Ok(Written {
                samples: intake.samples,
                lines: intake.lines,
                duplicate: true,
            });
        }
        let written = self.recorder.write_intake(intake, redo).await?;
        self.last.lock().insert(writer, seq);
        if self.mute.load(Ordering::SeqCst) > 0 {
            self.mute.fetch_sub(1, Ordering::SeqCst);
            return std::future::pending().await;
        }
        Ok(written)
    }
}

impl Once {
    /// Lines by stream's labels, in the order in which they were stored.
    fn lines(&self) -> Vec<String> {
        let batches = self.recorder.batches.lock();
        let streams = batches.iter().flat_map(|b| &b.streams);
        let lines = streams.flat_map(|s| s.lines.iter());
        lines.map(|l| String::from_utf8(l.line.to_vec()).unwrap()).collect()
    }
}

fn loaded(text: &str) -> Loaded {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("kafka.yml");
    std::fs::write(&file, text).unwrap();
    load(&file).unwrap_or_else(|e| panic!("{e}"))
}

fn source(broker: &FakeBroker, topics: &str) -> String {
    let address = broker.address;
    format!("sources: [{{name: plant, brokers: ['{address}'], session_timeout: 6s, topics: [{topics}]}}]")
}

/// A node with threads of its own, so that it can be killed.
struct NodeUnderTest {
    kafka: Kafka,
    ingest: IngestState,
    stop: watch::Sender<bool>,
    task: tokio::task::JoinHandle<()>,
    threads: tokio::runtime::Runtime,
}

impl NodeUnderTest {
    fn start(sink: &Arc<Once>, text: &str, me: u64) -> Self {
        Self::bounded(sink, text, me, WAITING_BYTES_MAX)
    }

    fn bounded(sink: &Arc<Once>, text: &str, me: u64, waiting_bytes_max: usize) -> Self {
        let threads = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()
            .unwrap();
        let clock = SimClock::at(TimestampNs::from_secs(NOW_SECS));
        let ingest = IngestState::new(sink.clone(), Arc::new(clock), Arc::new(|_| None));
        let kafka = Kafka::bounded(loaded(text), ingest.clone(), None, NodeId(me), waiting_bytes_max);
        let (stop, stopped) = watch::channel(false);
        let task = threads.spawn(kafka.clone().run(stopped));
        Self {
            kafka,
            ingest,
            stop,
            task,
            threads,
        }
    }

    /// As `kill -9`: nothing is ended, nobody is told.
    fn kill(self) {
        self.threads.shutdown_background();
    }

    async fn stop(self) {
        let _ = self.stop.send(true);
        self.task.await.unwrap();
        self.threads.shutdown_background();
    }

    fn row(&self, name: &str) -> f64 {
        self.kafka
            .rows()
            .iter()
            .filter(|(n, ..)| *n == name)
            .map(|(.., v)| v)
            .sum()
    }

    fn refused(&self, reason: &str) -> f64 {
        let labels = format!("{{source=\"plant\",reason=\"{reason}\"}}");
        let rows = self.kafka.rows();
        let mut of = rows
            .iter()
            .filter(|(n, l, _)| *n == "hindcast_kafka_refused_records_total" && *l == labels);
        of.next().map_or(-1.0, |(.., v)| *v)
    }

    fn error(&self) -> String {
        let states = self.kafka.0.stats.states.lock();
        states.get("plant").map(|s| s.error.clone()).unwrap_or_default()
    }
}

async fn until(what: &str, is: impl Fn() -> bool) {
    for _ in 0..6_000 {
        if is() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    panic!("{what} does not come about");
}

fn numbers(range: std::ops::Range<usize>) -> Vec<String> {
    range.map(|i| format!("line {i}")).collect()
}

fn produce(broker: &FakeBroker, topic: &str, partition: i32, kind: i16, range: std::ops::Range<usize>) {
    let lines = numbers(range);
    broker.produce(
        topic,
        partition,
        kind,
        &lines.iter().map(String::as_str).collect::<Vec<_>>(),
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn lines_are_stored_in_order_and_committed_when_they_are() {
    let broker = FakeBroker::start(&[("logs", 1)]).await;
    for kind in 0..5 {
        let first = kind as usize * 10;
        produce(&broker, "logs", 0, kind, first..first + 10);
    }
    let sink = Arc::new(Once::default());
    let node = NodeUnderTest::start(
        &sink,
        &source(&broker, "{topic: logs, format: text, labels: {service_name: shop}}"),
        1,
    );
    until("storing", || broker.committed("logs", 0) == 50).await;
    assert_eq!(sink.lines(), numbers(0..50));
    let batch = sink.recorder.batches.lock()[0].clone();
    let labels = batch.streams[0].labels.to_string();
    assert_eq!(labels, r#"{kafka_topic="logs", service_name="shop"}"#);
    let line = &batch.streams[0].lines[3];
    assert_eq!(line.at, TimestampNs::from_secs(NOW_SECS - 10));
    assert_eq!(
        line.metadata,
        [
            ("kafka_offset".to_owned(), "3".to_owned()),
            ("kafka_partition".to_owned(), "0".to_owned())
        ]
    );
    produce(&broker, "logs", 0, 0, 50..60);
    until("storing", || broker.committed("logs", 0) == 60).await;
    assert_eq!(sink.lines(), numbers(0..60));
    assert_eq!(
        (
            node.row("hindcast_kafka_records_total"),
            node.row("hindcast_kafka_lag_records")
        ),
        (60.0, 0.0)
    );
    let told = node.kafka.told().await;
    assert_eq!(
        (told.sources[0].state.as_str(), told.partitions[0].offset),
        ("consuming", 60)
    );
    node.stop().await;
    // No offset was committed before what lies before it was stored: its note tells what was under way.
    let state = broker.state.lock();
    assert_eq!(state.complaints, Vec::<String>::new());
    assert!(state.commits.iter().is_sorted_by_key(|(.., offset, _)| *offset));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_batch_that_was_stored_without_a_word_is_made_again_by_the_next_node_and_stored_once() {
    let broker = FakeBroker::start(&[("logs", 1)]).await;
    produce(&broker, "logs", 0, 0, 0..10);
    let sink = Arc::new(Once::default());
    sink.mute.store(1, Ordering::SeqCst);
    let text = source(&broker, "{topic: logs, format: text}");
    let first = NodeUnderTest::start(&sink, &text, 1);
    until("storing", || sink.lines().len() == 10).await;
    first.kill();
    // More has come meanwhile: a batch of what is there now would be another one.
    produce(&broker, "logs", 0, 3, 10..30);
    assert_eq!(broker.committed("logs", 0), 0, "nothing was said to be stored");
    let second = NodeUnderTest::start(&sink, &text, 2);
    until("storing", || broker.committed("logs", 0) == 30).await;
    assert_eq!(sink.lines(), numbers(0..30));
    assert_eq!(sink.known.load(Ordering::SeqCst), 1);
    assert_eq!(second.row("hindcast_kafka_known_batches_total"), 1.0);
    // Somebody sets the offset to have records read again: they are, and stored again.
    second.stop().await;
    broker
        .state
        .lock()
        .committed
        .insert(("logs".to_owned(), 0), (20, String::new()));
    let third = NodeUnderTest::start(&sink, &text, 3);
    until("storing", || sink.lines().len() == 40).await;
    assert_eq!(sink.lines()[30..], numbers(20..30));
    third.kill();
    assert_eq!(broker.state.lock().complaints, Vec::<String>::new());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nodes_share_partitions_and_take_over_what_one_leaves() {
    let broker = FakeBroker::start(&[("logs", 4)]).await;
    let sink = Arc::new(Once::default());
    let text = source(&broker, "{topic: logs, format: text}");
    let first = NodeUnderTest::start(&sink, &text, 1);
    let has = |node: &NodeUnderTest| node.row("hindcast_kafka_partitions");
    until("joining", || has(&first) == 4.0).await;
    let fill = |from: usize| {
        for partition in 0..4 {
            produce(
                &broker,
                "logs",
                partition,
                0,
                from + partition as usize * 1000..from + partition as usize * 1000 + 50,
            );
        }
    };
    fill(0);
    let second = NodeUnderTest::start(&sink, &text, 2);
    until("sharing", || (has(&first), has(&second)) == (2.0, 2.0)).await;
    fill(50);
    let all = |end: i64| (0..4).all(|p| broker.committed("logs", p) == end);
    until("storing", || all(100)).await;
    assert!(first.row("hindcast_kafka_rebalances_total") >= 1.0);
    // One says goodbye, and the other has all at once.
    first.stop().await;
    fill(100);
    until("storing", || all(150)).await;
    // One dies without a word: the broker notices when its session is over.
    let third = NodeUnderTest::start(&sink, &text, 3);
    until("sharing", || (has(&second), has(&third)) == (2.0, 2.0)).await;
    second.kill();
    fill(150);
    until("storing", || all(200)).await;
    let mut lines = sink.lines();
    for partition in 0..4usize {
        let own = numbers(partition * 1000..partition * 1000 + 200);
        let stored: Vec<_> = lines.iter().filter(|l| own.contains(l)).cloned().collect();
        assert_eq!(stored, own, "partition {partition} is in order");
    }
    lines.sort();
    lines.dedup();
    assert_eq!(lines.len(), 800);
    third.stop().await;
    assert_eq!(broker.state.lock().complaints, Vec::<String>::new());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_lost_its_place_writes_nothing_more() {
    let broker = FakeBroker::start(&[("logs", 1)]).await;
    let sink = Arc::new(Once::default());
    let node = NodeUnderTest::start(&sink, &source(&broker, "{topic: logs, format: text}"), 1);
    until("joining", || node.row("hindcast_kafka_partitions") == 1.0).await;
    until("committing", || broker.committed("logs", 0) == 0).await;
    broker.state.lock().commit_codes = vec![22];
    let joins = broker.state.lock().joins;
    produce(&broker, "logs", 0, 0, 0..5);
    until("joining", || broker.state.lock().joins > joins).await;
    until("storing", || broker.committed("logs", 0) == 5).await;
    assert_eq!(sink.lines(), numbers(0..5));
    assert_eq!(
        sink.known.load(Ordering::SeqCst),
        0,
        "it was not written before its note stood"
    );
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_cannot_be_stored_now_waits_and_what_never_can_is_passed_over_and_counted() {
    let broker = FakeBroker::start(&[("events", 1)]).await;
    let sink = Arc::new(Once::default());
    sink.recorder.is_full.store(true, Ordering::SeqCst);
    let topic = "{topic: events, format: json, label_fields: {service_name: service}}";
    let node = NodeUnderTest::start(&sink, &source(&broker, topic), 1);
    broker.produce(
        "events",
        0,
        0,
        &[r#"{"service":"a","level":"WARN","timestamp":"2023-11-14T22:13:00Z","message":"one"}"#],
    );
    until("waiting", || node.row("hindcast_kafka_write_waits_total") >= 2.0).await;
    assert_eq!(broker.committed("events", 0), 0);
    sink.recorder.is_full.store(false, Ordering::SeqCst);
    until("storing", || broker.committed("events", 0) == 1).await;
    let batch = sink.recorder.batches.lock()[0].clone();
    assert_eq!(
        batch.streams[0].labels.to_string(),
        r#"{kafka_topic="events", service_name="a"}"#
    );
    let line = batch.streams[0].lines[0].clone();
    assert_eq!(line.at, TimestampNs::from_secs(1_699_999_980));
    assert_eq!(line.metadata[0], ("detected_level".to_owned(), "warn".to_owned()));
    // Not JSON, no object, no value, bytes that are no batch; and something good behind each.
    let good = br#"{"service":"b"}"#;
    broker.produce_bytes(
        "events",
        0,
        0,
        &[Some(b"nonsense"), Some(&good[..]), Some(b"[1]"), None, Some(b"")],
    );
    let mut damaged = hindcast_kafka::records::encode::Batch::new(6, vec![vec![0; 9]]).bytes();
    damaged[30] ^= 1;
    broker.produce_raw("events", 0, damaged, 1);
    broker.produce("events", 0, 0, &[r#"{"service":"c"}"#]);
    until("storing", || broker.committed("events", 0) == 8).await;
    let services: Vec<_> = sink
        .recorder
        .batches
        .lock()
        .iter()
        .flat_map(|b| b.streams.clone())
        .map(|s| s.labels.get("service_name").unwrap().to_owned())
        .collect();
    assert_eq!(services, ["a", "b", "c"]);
    assert_eq!(
        [
            node.refused("unreadable"),
            node.refused("empty"),
            node.refused("checksum")
        ],
        [2.0, 2.0, 1.0]
    );
    // Never, whoever asks.
    sink.recorder.fails.lock().push(WriteError::TooLarge {
        shard: hindcast_model::ShardId(1),
        bytes: 9,
        entry_bytes_max: 1,
    });
    broker.produce("events", 0, 0, &["{}"]);
    until("refusing", || broker.committed("events", 0) == 9).await;
    assert_eq!(node.refused("too_large"), 1.0);
    // Many are cut in halves.
    sink.recorder.fails.lock().push(WriteError::TooLarge {
        shard: hindcast_model::ShardId(1),
        bytes: 9,
        entry_bytes_max: 1,
    });
    broker.produce(
        "events",
        0,
        0,
        &[r#"{"service":"d"}"#, r#"{"service":"e"}"#, r#"{"service":"f"}"#],
    );
    until("storing", || broker.committed("events", 0) == 12).await;
    let stored: usize = sink
        .recorder
        .batches
        .lock()
        .iter()
        .flat_map(|b| &b.streams)
        .map(|s| s.lines.len())
        .sum();
    assert_eq!(stored, 6);
    node.stop().await;
    assert_eq!(broker.state.lock().complaints, Vec::<String>::new());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn masking_and_limits_hold_for_records_as_for_others() {
    let broker = FakeBroker::start(&[("logs", 1)]).await;
    let sink = Arc::new(Once::default());
    let node = NodeUnderTest::start(
        &sink,
        &source(&broker, "{topic: logs, format: text, tenant: team-a}"),
        1,
    );
    let limits = hindcast_ingest::tenant_limits::parse(
        "f",
        "tenants: {team-a: {line_bytes_max: 40, log_bytes_per_second: 1000000}}",
    );
    node.ingest.limit(limits.unwrap());
    broker.produce("logs", 0, 0, &["mail of kim@example.org", &"x".repeat(41), "short"]);
    until("storing", || broker.committed("logs", 0) == 3).await;
    let lines = sink.lines();
    assert_eq!(lines.len(), 2, "{lines:?}");
    assert!(
        !lines[0].contains("kim@example.org") && lines[0].starts_with("mail of "),
        "{lines:?}"
    );
    assert_eq!(sink.recorder.batches.lock()[0].tenant.as_str(), "team-a");
    let refused = node.ingest.counters.list();
    let refused: Vec<_> = refused
        .iter()
        .filter(|s| s.name == "hindcast_ingest_refused_items_total" && s.labels.contains(&("protocol", "kafka")))
        .collect();
    assert_eq!((refused.len(), refused[0].value), (1, 1));
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn deltas_of_a_batch_that_is_cut_in_halves_all_count() {
    let broker = FakeBroker::start(&[("deltas", 1)]).await;
    let sink = Arc::new(Once::default());
    // All of them in one batch, which is too large.
    let points: Vec<String> = (1..=4)
        .map(|i| {
            let (start, at) = (1_700_000_000 + 10 * (i - 1), 1_700_000_000 + 10 * i);
            let point = format!(r#"{{"startTimeUnixNano":"{start}000000000","timeUnixNano":"{at}000000000","asDouble":{i}}}"#);
            format!(r#"{{"resourceMetrics":[{{"scopeMetrics":[{{"metrics":[{{"name":"calls","sum":{{"aggregationTemporality":1,"isMonotonic":true,"dataPoints":[{point}]}}}}]}}]}}]}}"#)
        })
        .collect();
    broker.produce("deltas", 0, 0, &points.iter().map(String::as_str).collect::<Vec<_>>());
    sink.recorder.fails.lock().push(WriteError::TooLarge {
        shard: hindcast_model::ShardId(1),
        bytes: 9,
        entry_bytes_max: 1,
    });
    let node = NodeUnderTest::start(&sink, &source(&broker, "{topic: deltas, format: otlp_metrics_json}"), 1);
    until("storing", || broker.committed("deltas", 0) == 4).await;
    let totals: Vec<f64> = {
        let batches = sink.recorder.batches.lock();
        let series = batches.iter().flat_map(|b| &b.series);
        let calls = series.filter(|s| s.labels.metric_name() == Some("calls_total"));
        calls.flat_map(|s| s.samples.iter().map(|s| s.value)).collect()
    };
    assert_eq!(totals, [0.0, 1.0, 3.0, 6.0, 10.0]);
    assert!(sink.recorder.batches.lock().len() > 1);
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn records_of_each_format_are_stored() {
    use prost::Message;
    let logs = r#"{"resourceLogs":[{"resource":{"attributes":[{"key":"service.name","value":{"stringValue":"shop"}}]},"scopeLogs":[{"logRecords":[{"timeUnixNano":"1700000000000000000","body":{"stringValue":"from json"}}]}]}]}"#;
    let metrics = r#"{"resourceMetrics":[{"scopeMetrics":[{"metrics":[{"name":"up","gauge":{"dataPoints":[{"timeUnixNano":"1700000000000000000","asDouble":1.5}]}}]}]}]}"#;
    let spans = r#"{"resourceSpans":[{"resource":{"attributes":[{"key":"service.name","value":{"stringValue":"shop"}}]},"scopeSpans":[{"spans":[{"traceId":"5b8efff798038103d269b633813fc60c","spanId":"eee19b7ec3c1b174","name":"pay","kind":2,"startTimeUnixNano":"1699999999000000000","endTimeUnixNano":"1700000000000000000"}]}]}]}"#;
    let topics = [
        "influx",
        "otlp_logs_json",
        "otlp_logs",
        "otlp_metrics_json",
        "otlp_metrics",
        "otlp_traces_json",
        "otlp_traces",
    ];
    let broker = FakeBroker::start(&topics.map(|t| (t, 1))).await;
    let list: Vec<_> = topics.iter().map(|t| format!("{{topic: {t}, format: {t}}}")).collect();
    let sink = Arc::new(Once::default());
    let node = NodeUnderTest::start(&sink, &source(&broker, &list.join(",")), 1);
    broker.produce(
        "influx",
        0,
        1,
        &["cpu,host=a usage=12.5 1700000000000000000\ncpu,host=a idle=87.5"],
    );
    broker.produce("otlp_logs_json", 0, 0, &[logs]);
    broker.produce("otlp_metrics_json", 0, 0, &[metrics]);
    broker.produce("otlp_traces_json", 0, 0, &[spans]);
    let logs: hindcast_ingest::otlp::LogsRequest =
        serde_json::from_str(&logs.replace("from json", "from protobuf")).unwrap();
    let metrics: hindcast_ingest::otlp::MetricsRequest = serde_json::from_str(metrics).unwrap();
    let spans: hindcast_ingest::otlp::TracesRequest = serde_json::from_str(spans).unwrap();
    for (topic, body) in [
        ("otlp_logs", logs.encode_to_vec()),
        ("otlp_metrics", metrics.encode_to_vec()),
        ("otlp_traces", spans.encode_to_vec()),
    ] {
        broker.produce_bytes(topic, 0, 0, &[Some(b"\xff\xff not protobuf"), Some(&body)]);
    }
    until("storing", || {
        topics
            .iter()
            .all(|t| broker.committed(t, 0) == if t.ends_with("json") || *t == "influx" { 1 } else { 2 })
    })
    .await;
    let mut shown = vec![];
    for batch in sink.recorder.batches.lock().iter() {
        shown.extend(
            batch
                .series
                .iter()
                .filter(|s| !s.labels.to_string().contains("hindcast_metric_info"))
                .map(|s| format!("{} {}", s.labels, s.samples[0].value)),
        );
        shown.extend(batch.streams.iter().flat_map(|s| {
            s.lines
                .iter()
                .map(move |l| format!("{} {}", s.labels, String::from_utf8_lossy(&l.line)))
        }));
    }
    shown.sort();
    expect_test::expect![[r#"
        cpu_idle{host="a"} 87.5
        cpu_usage{host="a"} 12.5
        up 1.5
        up 1.5
        {hindcast_trace="span", service_name="shop"} span="pay" kind=server duration=1s status=unset
        {hindcast_trace="span", service_name="shop"} span="pay" kind=server duration=1s status=unset
        {service_name="shop"} from json
        {service_name="shop"} from protobuf"#]]
    .assert_eq(&shown.join("\n"));
    assert_eq!(node.refused("unreadable"), 3.0);
    node.stop().await;
    assert_eq!(broker.state.lock().complaints, Vec::<String>::new());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn offsets_that_are_gone_are_said_and_a_topic_that_was_made_anew_is_read_from_its_beginning() {
    let broker = FakeBroker::start(&[("logs", 1)]).await;
    let sink = Arc::new(Once::default());
    let node = NodeUnderTest::start(&sink, &source(&broker, "{topic: logs, format: text}"), 1);
    produce(&broker, "logs", 0, 0, 0..10);
    until("storing", || broker.committed("logs", 0) == 10).await;
    {
        let mut state = broker.state.lock();
        let log = state.logs.get_mut(&("logs".to_owned(), 0)).unwrap();
        (log.start, log.end) = (30, 30);
    }
    until("noticing", || node.row("hindcast_kafka_lost_offsets_total") == 20.0).await;
    produce(&broker, "logs", 0, 0, 30..35);
    until("storing", || broker.committed("logs", 0) == 35).await;
    broker.add_partitions("logs", 0..1);
    produce(&broker, "logs", 0, 0, 100..105);
    until("storing", || broker.committed("logs", 0) == 5).await;
    let wanted = [numbers(0..10), numbers(30..35), numbers(100..105)].concat();
    assert_eq!(sink.lines(), wanted);
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_source_begins_where_it_is_told_follows_leaders_and_finds_new_topics() {
    let broker = FakeBroker::start(&[("logs", 1)]).await;
    produce(&broker, "logs", 0, 0, 0..10);
    let sink = Arc::new(Once::default());
    let text = source(&broker, "{topic: logs, format: text}, {topic: later, format: text}");
    let text = text.replace("topics:", "start: latest, topics:");
    let node = NodeUnderTest::start(&sink, &text, 1);
    // Where it begins is known to the group before anything comes.
    until("committing", || broker.committed("logs", 0) == 10).await;
    until("missing", || node.error().contains("later")).await;
    broker.state.lock().fetch_codes = vec![6, 6];
    produce(&broker, "logs", 0, 0, 10..12);
    until("storing", || broker.committed("logs", 0) == 12).await;
    assert_eq!(sink.lines(), numbers(10..12));
    // A reload that leaves a source as it was does not disturb it; one that changes it does.
    let joins = broker.state.lock().joins;
    node.kafka.replace(loaded(&text));
    broker.add_partitions("later", 0..1);
    let other = text.replace("start: latest", "start: earliest");
    node.kafka.replace(loaded(&other));
    until("joining", || broker.state.lock().joins > joins).await;
    produce(&broker, "later", 0, 0, 50..53);
    until("storing", || broker.committed("later", 0) == 3).await;
    assert_eq!(sink.lines()[2..], numbers(50..53));
    node.stop().await;
    assert_eq!(broker.state.lock().complaints, Vec::<String>::new());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn why_a_broker_cannot_be_used_is_said() {
    let authority = crate::io::tls::tests::Authority::new();
    let files = authority.sign("kafka", "", 2099);
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let key = crate::io::tls::read_key(&files.cert, &files.key, &provider).unwrap();
    let config = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_cert_resolver(Arc::new(rustls::sign::SingleCertAndKey::from(key)));
    let acceptor = tokio_rustls::TlsAcceptor::from(Arc::new(config));
    let broker = FakeBroker::start_with(&[("logs", 1)], Some(acceptor)).await;
    broker.state.lock().user = Some(("reader".to_owned(), "pencil".to_owned()));
    produce(&broker, "logs", 0, 0, 0..3);
    let ca = files.ca.unwrap().display().to_string();
    let with = |more: &str| {
        let text = source(&broker, "{topic: logs, format: text}");
        text.replace("topics:", &format!("{more} topics:"))
    };
    let tls = format!("tls: {{ca_file: '{ca}'}},");
    let sasl = |mechanism: &str, password: &str| {
        format!("{tls} sasl: {{mechanism: {mechanism}, username: reader, password: {password}}},")
    };
    let sink = Arc::new(Once::default());
    for (more, says) in [
        (String::new(), "if its port speaks TLS"),
        ("tls: {},".to_owned(), "TLS: "),
        (
            sasl("PLAIN", "wrong"),
            "signing in is refused: user or password is wrong (Authentication failed)",
        ),
        (
            sasl("SCRAM-SHA-256", "pencil"),
            "SCRAM-SHA-256: the broker does not know this SASL mechanism; it knows PLAIN",
        ),
    ] {
        let node = NodeUnderTest::start(&sink, &with(&more), 1);
        until(says, || node.error().contains(says)).await;
        node.stop().await;
    }
    broker.state.lock().complaints.clear();
    let node = NodeUnderTest::start(&sink, &with(&sasl("PLAIN", "pencil")), 1);
    until("storing", || broker.committed("logs", 0) == 3).await;
    node.stop().await;
    assert_eq!(broker.state.lock().complaints, Vec::<String>::new());
    broker.state.lock().knows_not = Some(11);
    let node = NodeUnderTest::start(&sink, &with(&sasl("PLAIN", "pencil")), 1);
    until("refusing", || {
        node.error()
            .contains("JoinGroup version 5; Kafka 2.3 or later is needed")
    })
    .await;
    node.stop().await;
    let nobody = source(&broker, "{topic: logs, format: text}").replace(&broker.address.to_string(), "127.0.0.1:1");
    let node = NodeUnderTest::start(&sink, &nobody, 1);
    until("refusing", || {
        node.error().contains("broker 127.0.0.1:1: it cannot be reached")
    })
    .await;
    assert!(node.row("hindcast_kafka_failures_total") >= 1.0);
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_more_is_asked_for_than_may_wait() {
    const MIB: f64 = 1024.0 * 1024.0;
    let broker = FakeBroker::start(&[("logs", 2)]).await;
    let line = "x".repeat(200_000);
    for i in 0..80 {
        broker.produce("logs", i % 2, 0, &[&line]);
    }
    let text = source(&broker, "{topic: logs, format: text}");
    // Of one partition two batches and what one answer brings; of a node what is allowed, and what one answer brings.
    for (waiting_bytes_max, fits) in [(WAITING_BYTES_MAX, 2.0 * 3.0 * MIB), (100_000, 2.0 * MIB)] {
        let sink = Arc::new(Once::default());
        sink.hangs.store(true, Ordering::SeqCst);
        let node = NodeUnderTest::bounded(&sink, &text, 1, waiting_bytes_max);
        until("waiting", || node.row("hindcast_kafka_waiting_bytes") > 0.0).await;
        tokio::time::sleep(Duration::from_millis(600)).await;
        let waiting = node.row("hindcast_kafka_waiting_bytes");
        assert!(waiting < fits, "{waiting_bytes_max}: {waiting}");
        assert_eq!(node.row("hindcast_kafka_lag_records"), 80.0);
        // A node that stops does not wait for ever for a store that does not answer.
        let began = tokio::time::Instant::now();
        node.stop().await;
        assert!(began.elapsed() < Duration::from_secs(9), "{:?}", began.elapsed());
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_has_no_more_partitions_of_a_source_than_it_may() {
    let broker = FakeBroker::start(&[("logs", PARTITIONS_MAX as i32 + 3)]).await;
    let sink = Arc::new(Once::default());
    let node = NodeUnderTest::start(&sink, &source(&broker, "{topic: logs, format: text}"), 1);
    let has = || node.row("hindcast_kafka_partitions") as usize;
    until("joining", || has() > 0).await;
    assert_eq!(has(), PARTITIONS_MAX);
    assert_eq!(node.kafka.told().await.partitions.len(), PARTITIONS_MAX);
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whoever_answers_with_too_much_is_no_broker() {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((mut socket, _)) = listener.accept().await {
            let _ = socket.read(&mut [0; 100]).await;
            let len = hindcast_kafka::messages::FRAME_BYTES_MAX as u32 + 1;
            let _ = socket.write_all(&len.to_be_bytes()).await;
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
    });
    let text = format!("sources: [{{name: plant, brokers: ['{address}'], topics: [{{topic: logs, format: text}}]}}]");
    let sink = Arc::new(Once::default());
    let node = NodeUnderTest::start(&sink, &text, 1);
    until("refusing", || {
        node.error()
            .contains("answers with 67108865 bytes, more than 67108864: no broker of Kafka")
    })
    .await;
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_broker_that_keeps_no_notes_is_named_and_nothing_is_lost() {
    let broker = FakeBroker::start(&[("logs", 1)]).await;
    broker.state.lock().forgets_notes = true;
    produce(&broker, "logs", 0, 0, 0..10);
    let sink = Arc::new(Once::default());
    sink.mute.store(1, Ordering::SeqCst);
    let text = source(&broker, "{topic: logs, format: text}");
    let first = NodeUnderTest::start(&sink, &text, 1);
    until("saying", || first.error().contains("keeps no notes beside offsets")).await;
    until("storing", || sink.lines().len() == 10).await;
    first.kill();
    let second = NodeUnderTest::start(&sink, &text, 2);
    until("storing", || broker.committed("logs", 0) == 10).await;
    assert_eq!(
        sink.lines(),
        [numbers(0..10), numbers(0..10)].concat(),
        "twice rather than never"
    );
    second.stop().await;
}
