//! Real servers on loopback over a sink that records: what a sender sees, and what the sink got.

mod limits;

use super::*;
use crate::entry::{TEXT_BYTES_MAX, decode_part, encode_part};
use crate::write::{BatchSink, Redo, WriteError, Written};
use expect_test::{Expect, expect};
use hindcast_env::SimClock;
use hindcast_ingest::Ids;
use hindcast_ingest::decompress::Encoding;
use hindcast_ingest::intake::{Definition, Numbers};
use hindcast_ingest::new_series::{CountedSeries, WidestLabel};
use hindcast_model::{Batch, Labels, Owner, ShardId, Slot};
use hindcast_proto::v1;
use hindcast_proto::v1::ingest_client::IngestClient;
use http_body_util::{BodyExt, Full};
use hyper_util::client::legacy::Client;
use hyper_util::rt::TokioExecutor;
use opentelemetry_proto::tonic::collector::logs::v1::logs_service_client::LogsServiceClient;
use opentelemetry_proto::tonic::collector::metrics::v1::metrics_service_client::MetricsServiceClient;
use opentelemetry_proto::tonic::collector::trace::v1::trace_service_client::TraceServiceClient;
use prost::Message;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use tonic::Code;

pub(super) const NOW_SECS: i64 = 1_700_000_000;

/// One shard that remembers what its entries hold, and gives ids; answers the next error of its list, if any.
#[derive(Default)]
pub(super) struct Recorder {
    pub batches: Mutex<Vec<Batch>>,
    pub fails: Mutex<Vec<WriteError>>,
    /// Takes nothing now.
    pub is_full: AtomicBool,
    /// Knows every batch already.
    pub knows: AtomicBool,
    /// What comes as a batch, such as descriptions, lies on a shard that does not answer.
    pub hangs: AtomicBool,
    shard: Shard,
}

#[derive(Default)]
struct Shard {
    /// By id.
    names: Mutex<Vec<(TenantId, Definition)>>,
    epoch: AtomicU64,
    stale: AtomicU64,
}

impl Ids for Shard {
    fn shard_of(&self, _: Slot, _: TimestampNs) -> ShardId {
        ShardId(1)
    }
    fn is_timeless(&self) -> bool {
        true
    }
    fn epoch(&self, _: ShardId) -> u64 {
        0
    }
    fn ids(
        &self,
        _: ShardId,
        tenant: &TenantId,
        streams: bool,
        wanted: &[(&Labels, &Owner)],
    ) -> (u64, Vec<Option<u32>>) {
        let names = self.names.lock();
        let find = |(labels, owner): &(&Labels, &Owner)| {
            let is = |(t, d): &(TenantId, Definition)| {
                t == tenant && d.streams == streams && d.labels == **labels && d.owner == **owner
            };
            names.iter().position(is).map(|at| at as u32)
        };
        (0, wanted.iter().map(find).collect())
    }
    fn active_series(&self, tenant: &TenantId, _: TimestampNs) -> CountedSeries {
        let counted = CountedSeries {
            active: 0,
            marks: vec![(ShardId(1), 0)],
        };
        CountedSeries {
            active: self.series_since(tenant, &counted),
            marks: vec![(ShardId(1), self.names.lock().len() as u32)],
        }
    }
    fn series_since(&self, tenant: &TenantId, counted: &CountedSeries) -> u64 {
        let names = self.names.lock();
        let new = names.iter().skip(counted.marks[0].1 as usize);
        new.filter(|(t, d)| t == tenant && !d.streams).count() as u64
    }
    fn widest_label(&self, tenant: &TenantId) -> Option<WidestLabel> {
        let mut values = std::collections::BTreeMap::<String, std::collections::BTreeSet<String>>::new();
        for (_, d) in self.names.lock().iter().filter(|(t, d)| t == tenant && !d.streams) {
            for (name, value) in d.labels.iter() {
                values.entry(name.to_owned()).or_default().insert(value.to_owned());
            }
        }
        let (name, values) = values.into_iter().max_by_key(|(_, v)| v.len())?;
        let values = values.len() as u64;
        Some(WidestLabel { name, values })
    }
}

impl Shard {
    /// Applies one part; `None`: its ids do not hold.
    fn apply(&self, bytes: &[u8]) -> Option<Batch> {
        let part = decode_part(bytes, &mut TEXT_BYTES_MAX.clone()).unwrap();
        if part.has_ids() && part.epoch != self.epoch.load(Ordering::SeqCst) {
            self.stale.fetch_add(1, Ordering::SeqCst);
            return None;
        }
        let mut names = self.names.lock();
        for d in &part.definitions {
            let name = (part.tenant.clone(), d.clone());
            if !names.contains(&name) {
                names.push(name);
            }
        }
        // Read with all names of the shard as its definitions.
        let mut whole = part.clone();
        let first = whole.definitions.len() as u32;
        whole.definitions.extend(names.iter().map(|(_, d)| d.clone()));
        for g in whole.groups.iter_mut().filter(|g| g.numbers == Numbers::Ids) {
            g.runs.iter_mut().for_each(|r| r.first += first);
        }
        for s in whole.streams.iter_mut().filter(|s| s.numbers == Numbers::Ids) {
            s.number += first;
        }
        Some(crate::entry::tests::batch_of(&whole))
    }
}

#[async_trait::async_trait]
impl BatchSink for Recorder {
    async fn write(&self, batch: Batch) -> Result<Written, WriteError> {
        if self.hangs.load(Ordering::SeqCst) {
            return std::future::pending().await;
        }
        let intake = Intake::of_batch(&batch, &self.shard, Naming::Known);
        self.write_intake(intake, &|| Intake::of_batch(&batch, &self.shard, Naming::Defined))
            .await
    }

    fn ids(&self) -> &dyn Ids {
        &self.shard
    }

    async fn write_intake(&self, intake: Intake, redo: Redo<'_>) -> Result<Written, WriteError> {
        if let Some(why) = self.fails.lock().pop() {
            return Err(why);
        }
        if self.is_full.load(Ordering::SeqCst) {
            return Err(WriteError::QueueFull {
                shard: ShardId(1),
                queued_bytes_max: 1,
            });
        }
        if self.knows.load(Ordering::SeqCst) {
            return Ok(Written {
                samples: intake.samples,
                lines: intake.lines,
                duplicate: true,
            });
        }
        // Later batches of a stream are done sooner; answers must still come in order.
        let held = self.batches.lock().len() as u64;
        tokio::time::sleep(std::time::Duration::from_millis(20_u64.saturating_sub(held))).await;
        let encode = |intake: &Intake| encode_part(intake, &intake.shares[0]);
        let batch = self
            .shard
            .apply(&encode(&intake))
            .or_else(|| self.shard.apply(&encode(&redo())));
        let batch = batch.expect("with definitions it holds anywhere");
        let written = Written {
            samples: batch.samples(),
            lines: batch.lines(),
            duplicate: false,
        };
        assert_eq!((written.samples, written.lines), (intake.samples, intake.lines));
        self.batches.lock().push(batch);
        Ok(written)
    }
}

struct Served {
    state: IngestState,
    recorder: Arc<Recorder>,
    counters: Arc<IngestCounters>,
    base: String,
}

async fn serve() -> Served {
    let recorder = Arc::new(Recorder::default());
    let clock = SimClock::at(TimestampNs::from_secs(NOW_SECS));
    let floor: FloorOf = Arc::new(|_| Some(TimestampNs::from_secs(NOW_SECS - 86_400)));
    let state = IngestState::new(recorder.clone(), Arc::new(clock), floor);
    let counters = state.counters.clone();
    let routes = tonic::service::Routes::new(ingest_service(state.clone()))
        .add_service(otlp_metrics_service(state.clone()))
        .add_service(otlp_logs_service(state.clone()))
        .add_service(otlp_traces_service(state.clone()));
    let app = routes.into_axum_router().merge(ingest_router(state.clone()));
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let base = format!("http://{}", listener.local_addr().unwrap());
    tokio::spawn(async move { axum::serve(listener, app).await });
    Served {
        state,
        recorder,
        counters,
        base,
    }
}

impl Served {
    async fn ingest(&self) -> IngestClient<tonic::transport::Channel> {
        IngestClient::connect(self.base.clone()).await.unwrap()
    }

    /// Posts a body; gives status, content type and text.
    async fn post(&self, path: &str, headers: &[(&str, &str)], body: impl Into<Bytes>) -> (u16, String, Bytes) {
        let mut request = hyper::Request::post(format!("{}{path}", self.base));
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let client = Client::builder(TokioExecutor::new()).build_http();
        let answer = client
            .request(request.body(Full::new(body.into())).unwrap())
            .await
            .unwrap();
        let status = answer.status().as_u16();
        let kind = answer
            .headers()
            .get("content-type")
            .map_or("", |v| v.to_str().unwrap())
            .to_owned();
        (status, kind, answer.into_body().collect().await.unwrap().to_bytes())
    }

    fn counted(&self, name: &str, reason: &str) -> u64 {
        let list = self.counters.list().into_iter();
        list.filter(|c| c.name == name && (reason.is_empty() || c.labels.contains(&("reason", reason))))
            .map(|c| c.value)
            .sum()
    }

    fn stored(&self) -> String {
        let mut out = String::new();
        for batch in self.recorder.batches.lock().iter() {
            for s in &batch.series {
                let values: Vec<_> = s.samples.iter().map(|s| format!("{}@{}", s.value, s.at)).collect();
                out += &format!("{} = {}\n", s.labels, values.join(" "));
            }
            for s in &batch.streams {
                for l in &s.lines {
                    out += &format!("{} {:?} {:?}\n", s.labels, String::from_utf8_lossy(&l.line), l.metadata);
                }
            }
        }
        out
    }
}

fn label(name: &str, value: &str) -> v1::Label {
    v1::Label {
        name: name.to_owned(),
        value: value.to_owned(),
    }
}

fn series(name: &str, at_secs: &[i64]) -> v1::Series {
    let point = |s: &i64| v1::Point {
        at_ms: s * 1000,
        value: Some(1.5),
    };
    v1::Series {
        labels: vec![label("__name__", name), label("job", "j")],
        points: at_secs.iter().map(point).collect(),
    }
}

fn write_request(seq: u64, series: Vec<v1::Series>) -> v1::WriteRequest {
    v1::WriteRequest {
        writer: "w".into(),
        seq,
        series,
        ..Default::default()
    }
}

#[tokio::test]
async fn a_write_stores_what_is_allowed_and_names_the_rest() {
    let served = serve().await;
    let mut request = write_request(
        7,
        vec![series("up", &[NOW_SECS, NOW_SECS + 601, 1]), series("", &[NOW_SECS])],
    );
    request.streams.push(v1::Stream {
        labels: vec![label("unit", "sshd")],
        lines: vec![v1::Line {
            at_ns: NOW_SECS * 1_000_000_000 + 7,
            line: "hello ü".into(),
            metadata: vec![label("b", "2"), label("a", "1")],
        }],
    });
    let answer = served.ingest().await.write(request).await.unwrap().into_inner();
    assert_eq!((answer.seq, answer.samples, answer.lines), (7, 1, 1));
    let rejected: Vec<_> = answer
        .rejected
        .iter()
        .map(|r| format!("{} {} {}", r.what, r.items, r.why))
        .collect();
    expect![[r#"
        up{job="j"} 1 its time 2023-11-14T22:23:21Z is more than 10m ahead of 2023-11-14T22:13:20Z; check the sender's clock
        up{job="j"} 1 its time 1970-01-01T00:00:01Z is older than 2023-11-13T22:13:20Z, the oldest that is kept
        {job="j"} 1 it has no label __name__"#]]
    .assert_eq(&rejected.join("\n"));
    expect![[r#"
        up{job="j"} = 1.5@1700000000.000
        {unit="sshd"} "hello ü" [("a", "1"), ("b", "2")]
    "#]]
    .assert_eq(&served.stored());
    assert_eq!(served.counted("hindcast_ingest_refused_items_total", ""), 3);
    let id = served.recorder.batches.lock()[0].id;
    assert!(matches!(id, Some(BatchId::Sequenced { seq: 7, .. })), "{id:?}");
}

#[tokio::test]
async fn a_stream_answers_each_batch_in_order_also_the_refused_ones() {
    let served = serve().await;
    *served.recorder.fails.lock() = vec![WriteError::QueueFull {
        shard: ShardId(2),
        queued_bytes_max: 9,
    }];
    let requests = (1..=100).map(|seq| write_request(seq, vec![series("up", &[NOW_SECS])]));
    let mut answers = served
        .ingest()
        .await
        .write_stream(futures::stream::iter(requests))
        .await
        .unwrap()
        .into_inner();
    let mut got = vec![];
    while let Some(answer) = answers.message().await.unwrap() {
        got.push((answer.seq, answer.status));
    }
    let want: Vec<_> = (1..=100)
        .map(|seq| (seq, if seq == 1 { Code::ResourceExhausted as i32 } else { 0 }))
        .collect();
    assert_eq!(got, want);
    assert_eq!(served.recorder.batches.lock().len(), 99);
}

/// Definitions with the first request of a stream, rows of references with all of them.
fn interned(seq: u64) -> v1::WriteRequest {
    let define = |n: u32| v1::SeriesRef {
        labels: series(&format!("m{n}"), &[]).labels,
        r#ref: n,
    };
    let at = |row: i64| (NOW_SECS + row) * 1000 + seq as i64;
    v1::WriteRequest {
        definitions: if seq == 1 { (0..3).map(define).collect() } else { vec![] },
        rows: vec![v1::Rows {
            at_ms: vec![at(0), at(1)],
            runs: vec![0, 3],
            values: vec![0.0, 1.0, 2.0, 10.0, 11.0, 12.0],
        }],
        ..write_request(seq, vec![])
    }
}

#[tokio::test]
async fn references_hold_for_the_stream_that_gave_them() {
    let served = serve().await;
    let requests = futures::stream::iter((1..=3).map(interned));
    let answers = served.ingest().await.write_stream(requests).await.unwrap().into_inner();
    let answers: Vec<_> = futures::StreamExt::collect(answers).await;
    for (answer, seq) in answers.into_iter().zip(1..) {
        let answer = answer.unwrap();
        assert_eq!((answer.seq, answer.samples, answer.status), (seq, 6, 0), "{answer:?}");
    }
    let stored = served.stored();
    assert_eq!(stored.lines().count(), 9, "{stored}");
    assert!(
        stored.contains("m2{job=\"j\"} = 2@1700000000.003 12@1700000001.003"),
        "{stored}"
    );
    let unary = served.ingest().await.write(interned(4)).await.unwrap_err();
    assert_eq!(unary.code(), Code::InvalidArgument);
    assert!(
        unary.message().contains("series reference 0 was not defined"),
        "{unary}"
    );
}

/// The replica that a request was laid out by is of another epoch than the shard that applies it.
#[tokio::test]
async fn what_a_shard_finds_stale_comes_again_with_definitions_and_is_stored_once() {
    let served = serve().await;
    assert_eq!(remote_write(&served, &remote_body()).await.0, 204);
    served.recorder.shard.epoch.store(1, Ordering::SeqCst);
    assert_eq!(remote_write(&served, &remote_body()).await.0, 204);
    let requests = futures::stream::iter((1..=2).map(interned));
    let answers = served.ingest().await.write_stream(requests).await.unwrap().into_inner();
    let answers: Vec<_> = futures::StreamExt::collect(answers).await;
    assert!(answers.iter().all(|a| a.as_ref().is_ok_and(|a| a.samples == 6)));
    assert!(served.recorder.shard.stale.load(Ordering::SeqCst) >= 1);
    assert_eq!(served.stored().lines().count(), 2 + 6);
}

/// Senders of the same series at once, none of which knows what the others taught.
#[tokio::test]
async fn concurrent_writers_of_the_same_series_lose_and_double_nothing() {
    let served = serve().await;
    let write = |n: i64| {
        let bodies = (0..4).map(move |i| {
            let name = format!("m{i}");
            remote_series(&[("__name__", name.as_str()), ("job", "j")], NOW_SECS - n)
        });
        let body = bodies.collect::<Vec<_>>().concat();
        let served = &served;
        async move { remote_write(served, &body).await.0 }
    };
    for round in 0..3 {
        let codes = futures::future::join_all((0..12).map(|n| write(round * 12 + n))).await;
        assert!(codes.iter().all(|c| *c == 204), "{codes:?}");
    }
    let stored = served.stored();
    let mut lines: Vec<&str> = stored.lines().collect();
    lines.sort_unstable();
    lines.dedup();
    assert_eq!(lines.len(), 4 * 36, "each sample once, each of its series");
    assert_eq!(stored.lines().count(), 4 * 36);
    assert_eq!(served.recorder.shard.names.lock().len(), 4);
}

#[tokio::test]
async fn a_full_queue_says_when_to_retry() {
    let served = serve().await;
    let full = WriteError::QueueFull {
        shard: ShardId(2),
        queued_bytes_max: 9,
    };
    *served.recorder.fails.lock() = vec![full; 2];
    let request = write_request(1, vec![series("up", &[NOW_SECS])]);
    let status = served.ingest().await.write(request).await.unwrap_err();
    assert_eq!(status.code(), Code::ResourceExhausted);
    let details = hindcast_proto::edge::RpcStatus::decode(status.details())
        .unwrap()
        .details;
    assert_eq!(details[0].type_url, "type.googleapis.com/google.rpc.RetryInfo");
    assert_eq!(details[0].value, [0x0a, 2, 8, 1], "a delay of one second");
    let (code, _, text) = remote_write(&served, &remote_body()).await;
    assert_eq!((code, &text[..7]), (429, &b"shard 2"[..]));
    assert_eq!(served.counted("hindcast_ingest_failed_requests_total", "queue_full"), 2);
}

/// `up{job="j"} 1.5` now, as prometheus.WriteRequest.
fn remote_body() -> Vec<u8> {
    remote_series(&[("__name__", "up"), ("job", "j")], NOW_SECS)
}

fn remote_series(labels: &[(&str, &str)], at_secs: i64) -> Vec<u8> {
    // A label of ours is encoded like Prometheus's; its samples have value and time the other way round.
    let mut series = v1::Series {
        labels: labels.iter().map(|(n, v)| label(n, v)).collect(),
        points: vec![],
    }
    .encode_to_vec();
    let mut sample = vec![0x09];
    sample.extend(1.5f64.to_le_bytes());
    sample.push(0x10);
    prost::encoding::encode_varint((at_secs * 1000) as u64, &mut sample);
    series.extend([0x12, sample.len() as u8]);
    series.extend(sample);
    let mut request = vec![0x0a];
    prost::encoding::encode_varint(series.len() as u64, &mut request);
    request.extend(series);
    request
}

/// A snappy block with literals only.
fn snappy(body: &[u8]) -> Vec<u8> {
    let mut block = vec![];
    prost::encoding::encode_varint(body.len() as u64, &mut block);
    for chunk in body.chunks(60) {
        block.push((chunk.len() as u8 - 1) << 2);
        block.extend(chunk);
    }
    block
}

async fn remote_write(served: &Served, body: &[u8]) -> (u16, String, Bytes) {
    let headers = [
        ("content-type", "application/x-protobuf"),
        ("content-encoding", "snappy"),
    ];
    served.post("/api/v1/write", &headers, snappy(body)).await
}

#[tokio::test]
async fn remote_write_is_stored_and_its_bad_parts_are_told() {
    let served = serve().await;
    assert_eq!(remote_write(&served, &remote_body()).await.0, 204);
    let mixed = [remote_body(), remote_series(&[("job", "nameless")], NOW_SECS)].concat();
    let (code, _, text) = remote_write(&served, &mixed).await;
    let text = String::from_utf8_lossy(&text).into_owned();
    assert_eq!(
        (code, text.as_str()),
        (400, "1 refused: {job=\"nameless\"} (1): it has no label __name__\n")
    );
    expect![[r#"
        up{job="j"} = 1.5@1700000000.000
        up{job="j"} = 1.5@1700000000.000
    "#]]
    .assert_eq(&served.stored());
    let ids: Vec<_> = served.recorder.batches.lock().iter().map(|b| b.id).collect();
    assert_ne!(ids[0], ids[1], "another body is another batch");
    assert_eq!(remote_write(&served, &remote_body()).await.0, 204);
    assert_eq!(
        served.recorder.batches.lock()[2].id,
        ids[0],
        "the same body is the same batch"
    );
}

/// Posts a body of remote write 2.0; status, the headers that tell what was stored, and the text.
async fn remote_write_2(served: &Served, body: &[u8]) -> String {
    let request = hyper::Request::post(format!("{}/api/v1/write", served.base))
        .header(
            "content-type",
            "application/x-protobuf;proto=io.prometheus.write.v2.Request",
        )
        .header("content-encoding", "snappy");
    let client = Client::builder(TokioExecutor::new()).build_http();
    let request = request.body(Full::new(Bytes::copy_from_slice(body))).unwrap();
    let answer = client.request(request).await.unwrap();
    let told = ["samples", "histograms", "exemplars"].map(|what| {
        let name = format!("x-prometheus-remote-write-{what}-written");
        answer.headers()[name].to_str().unwrap().to_owned()
    });
    let retry = answer.headers().get("retry-after").is_some();
    let status = answer.status().as_u16();
    let text = answer.into_body().collect().await.unwrap().to_bytes();
    let text = String::from_utf8_lossy(&text).into_owned();
    format!("{status} {} retry: {retry} {text}", told.join(" "))
        .trim()
        .to_owned()
}

#[tokio::test]
async fn a_shard_that_is_away_does_not_hold_up_senders_by_what_they_say_of_their_metrics() {
    let served = serve().await;
    let is = |t: &&hindcast_env::fuzz::Target| t.name == "ingest-remote-write-2";
    let seeds = (hindcast_ingest::fuzz::TARGETS.iter().find(is).unwrap().seeds)();
    served.recorder.hangs.store(true, Ordering::SeqCst);
    let post = async || {
        let answer = remote_write_2(&served, &seeds[0]);
        tokio::time::timeout(std::time::Duration::from_secs(20), answer)
            .await
            .unwrap()
    };
    assert_eq!(post().await, "204 6 1 0 retry: false");
    // It is back, but nobody asks it for a minute: senders do not wait again and again.
    served.recorder.hangs.store(false, Ordering::SeqCst);
    assert_eq!(post().await, "204 6 1 0 retry: false");
    assert_eq!(served.counted("hindcast_ingest_metadata_written_total", ""), 0);
    assert_eq!(served.recorder.batches.lock().len(), 2);
}

#[tokio::test]
async fn remote_write_2_is_told_how_much_was_stored() {
    let served = serve().await;
    let is = |t: &&hindcast_env::fuzz::Target| t.name == "ingest-remote-write-2";
    let seeds = (hindcast_ingest::fuzz::TARGETS.iter().find(is).unwrap().seeds)();
    // Two series of three samples, one of which has a native histogram, and what their metrics are.
    let (block, plain) = (&seeds[0], &seeds[1]);
    expect!["204 6 1 0 retry: false"].assert_eq(&remote_write_2(&served, block).await);
    assert_eq!(served.counted("hindcast_ingest_metadata_written_total", ""), 2);
    assert!(
        served.stored().contains("hindcast_metric_info{help="),
        "{}",
        served.stored()
    );
    // Said again, and not written again.
    let batches = served.recorder.batches.lock().len();
    expect!["204 6 1 0 retry: false"].assert_eq(&remote_write_2(&served, block).await);
    assert_eq!(served.recorder.batches.lock().len(), batches + 1);
    assert_eq!(served.counted("hindcast_ingest_metadata_written_total", ""), 2);

    // One more series, whose second label has no value.
    let mixed = [plain.as_slice(), &[0x2a, 5, 0x0a, 3, 1, 2, 3]].concat();
    let mixed = snappy(&mixed);
    expect!["400 6 1 0 retry: false 0 refused: up (0): its references into the table of symbols cannot be followed: 3 of them, and a label takes two"].assert_eq(&remote_write_2(&served, &mixed).await);
    // A series that breaks off: nothing of it can be read.
    expect!["400 0 0 0 retry: false the body is not a readable remote_write request: it ends in the middle of a field"]
        .assert_eq(&remote_write_2(&served, &snappy(b"\x2a\x02\x12\x07")).await);
    *served.recorder.fails.lock() = vec![WriteError::QueueFull {
        shard: ShardId(2),
        queued_bytes_max: 9,
    }];
    expect!["429 0 0 0 retry: true shard 2 already queues 9 bytes of writes; retry in a second"]
        .assert_eq(&remote_write_2(&served, block).await);
}

/// What HTTP and its media types allow, and what each surface says to the rest.
async fn check(served: &Served, path: &str, headers: &[(&str, &str)], body: &[u8], expect: Expect) {
    let (code, kind, text) = served.post(path, headers, body.to_vec()).await;
    let text: String = String::from_utf8_lossy(&text)
        .chars()
        .filter(|c| !c.is_control())
        .take(90)
        .collect();
    expect.assert_eq(format!("{code} {kind} {text}").trim());
}

#[tokio::test]
async fn bad_input_gets_the_code_of_its_class() {
    let served = serve().await;
    let protobuf = ("content-type", "application/x-protobuf");
    let json = ("content-type", "application/json");
    let text = ("content-type", "text/plain");
    let gzip = ("content-encoding", "gzip");
    let garbage = b"\xff\xff\xff\xff\x07garbage";
    let bomb = [0xff, 0xff, 0xff, 0xff, 0x0f, 0, 0];
    let s = &served;
    assert_eq!(s.post("/v1/metrics", &[text], "x").await.0, 415);
    assert_eq!(
        s.post("/v1/metrics", &[protobuf, ("content-encoding", "br")], "x")
            .await
            .0,
        415
    );
    assert_eq!(s.post("/api/v1/write", &[json], "{}").await.0, 415);
    assert_eq!(s.post("/api/v1/write", &[protobuf, gzip], "x").await.0, 415);
    let version_3 = (
        "content-type",
        "application/x-protobuf;proto=io.prometheus.write.v3.Request",
    );
    check(s, "/api/v1/write", &[version_3], b"x", expect![[r#"415 text/plain; charset=utf-8 content type "application/x-protobuf;proto=io.prometheus.write.v3.Request" is not understo"#]]).await;
    for path in ["/v1/metrics", "/v1/logs", "/v1/traces"] {
        let (code, kind, _) = s.post(path, &[protobuf], &garbage[..]).await;
        assert_eq!((code, kind.as_str()), (400, "application/x-protobuf"), "{path}");
        assert_eq!(s.post(path, &[json], "{\"resource").await.0, 400, "{path}");
        assert_eq!(s.post(path, &[protobuf, gzip], "not gzip").await.0, 400, "{path}");
        assert_eq!(
            s.post(path, &[protobuf], vec![0; 4 * 1024 * 1024 + 1]).await.0,
            413,
            "{path}"
        );
        assert_eq!(
            s.post(path, &[protobuf], "").await,
            (200, "application/x-protobuf".into(), Bytes::new()),
            "{path}"
        );
    }
    check(
        s,
        "/v1/logs",
        &[json],
        b"{\"notAField\":1}",
        expect![[r#"200 application/json {"partialSuccess":null}"#]],
    )
    .await;
    check(s, "/v1/logs", &[json, ("x-scope-orgid", "../x")], b"{}", expect![[r#"400 application/json {"code":3,"message":"\"../x\" is not a tenant name: use 1 to 128 of the characters A-Z a-z"#]]).await;
    check(s, "/api/v1/write", &[protobuf], &bomb, expect!["413 text/plain; charset=utf-8 the request takes more than 16777216 bytes decompressed; send smaller requests"]).await;
    let (code, _, text) = s.post("/api/v1/write", &[protobuf], &b"\x05ab"[..]).await;
    let text = String::from_utf8_lossy(&text).into_owned();
    assert!(
        code == 400 && text.starts_with("the body does not decompress as snappy"),
        "{code} {text}"
    );
    let (code, _, _) = remote_write(s, b"\x0a\xff").await;
    assert_eq!(code, 400, "a sound block of no message");
    assert!(s.recorder.batches.lock().is_empty());
    assert!(s.counted("hindcast_ingest_failed_requests_total", "") >= 17);
}

/// Sends raw bytes as a gRPC message.
async fn raw_grpc(served: &Served, path: &'static str, message: Vec<u8>, gzip: bool) -> Code {
    let channel = tonic::transport::Endpoint::new(served.base.clone())
        .unwrap()
        .connect()
        .await
        .unwrap();
    let mut frame = vec![u8::from(gzip)];
    frame.extend((message.len() as u32).to_be_bytes());
    frame.extend(message);
    let mut request = tonic::codegen::http::Request::post(format!("{}{path}", served.base))
        .header("content-type", "application/grpc")
        .header("te", "trailers");
    if gzip {
        request = request.header("grpc-encoding", "gzip");
    }
    let request = request
        .body(tonic::body::Body::new(Full::new(Bytes::from(frame))))
        .unwrap();
    use tower::{Service, ServiceExt};
    let mut channel = channel;
    let answer = channel.ready().await.unwrap().call(request).await.unwrap();
    let in_head = tonic::Status::from_header_map(answer.headers());
    let trailers = answer.into_body().collect().await.unwrap().trailers().cloned();
    let in_trailers = trailers.as_ref().and_then(tonic::Status::from_header_map);
    in_head.or(in_trailers).map_or(Code::Unknown, |s| s.code())
}

#[tokio::test]
async fn a_malformed_grpc_message_is_the_senders_fault() {
    let served = serve().await;
    let paths = [
        "/hindcast.v1.Ingest/Write",
        "/opentelemetry.proto.collector.metrics.v1.MetricsService/Export",
        "/opentelemetry.proto.collector.logs.v1.LogsService/Export",
        "/opentelemetry.proto.collector.trace.v1.TraceService/Export",
    ];
    for path in paths {
        assert_eq!(
            raw_grpc(&served, path, b"\x0a\xff".to_vec(), false).await,
            Code::InvalidArgument,
            "{path}"
        );
        assert_eq!(
            raw_grpc(&served, path, b"not gzip".to_vec(), true).await,
            Code::InvalidArgument,
            "{path}"
        );
        let wide = vec![0; 4 * 1024 * 1024 + 1];
        assert_eq!(
            raw_grpc(&served, path, wide, false).await,
            Code::InvalidArgument,
            "{path}"
        );
        assert_eq!(raw_grpc(&served, path, vec![], false).await, Code::Ok, "{path}");
    }
    assert_eq!(served.counted("hindcast_ingest_failed_requests_total", "malformed"), 4);
    assert_eq!(
        served.counted("hindcast_ingest_failed_requests_total", "compression"),
        4
    );
    assert_eq!(
        served.counted("hindcast_ingest_failed_requests_total", "wire_too_large"),
        4
    );
}

const OTLP_METRICS: &str = r#"{"resourceMetrics":[{
  "resource":{"attributes":[{"key":"service.name","value":{"stringValue":"shop"}},{"key":"host.name","value":{"stringValue":"web-1"}}]},
  "scopeMetrics":[{"metrics":[
    {"name":"requests","unit":"1","sum":{"aggregationTemporality":1,"isMonotonic":true,"dataPoints":[
      {"asInt":"5","startTimeUnixNano":"1699999990000000000","timeUnixNano":"1700000000000000000"},
      {"asInt":"2","startTimeUnixNano":"1700000000000000000","timeUnixNano":"1700000001000000000"}]}},
    {"name":"latency","unit":"ms","histogram":{"aggregationTemporality":2,"dataPoints":[
      {"timeUnixNano":"1700000000000000000","count":"3","sum":12,"bucketCounts":["1","2"],"explicitBounds":[5]},
      {"timeUnixNano":"1700000000000000000","count":"3","bucketCounts":["1"],"explicitBounds":[5]}]}},
    {"name":"sizes","unit":"By","exponentialHistogram":{"aggregationTemporality":2,"dataPoints":[
      {"timeUnixNano":"1700000000000000000","count":"3","sum":10,"scale":0,"zeroCount":"1","positive":{"offset":1,"bucketCounts":["0","2"]}}]}}
  ]}]}]}"#;

#[tokio::test]
async fn otlp_over_http_and_grpc_is_stored_alike_and_reports_partial_success() {
    let served = serve().await;
    let json = [("content-type", "application/json")];
    let (code, _, answer) = served.post("/v1/metrics", &json, OTLP_METRICS).await;
    assert_eq!(code, 200);
    expect![[r#"{"partialSuccess":{"rejectedDataPoints":1,"errorMessage":"1 refused: latency_milliseconds{instance=\"web-1\", job=\"shop\"} (1): its buckets are not readable: 1 counts for 1 bounds"}}"#]]
        .assert_eq(&String::from_utf8_lossy(&answer));
    let over_http = served.stored();
    expect![[r#"
        requests_total{instance="web-1", job="shop"} = 0@1699999990.000 5@1700000000.000
        requests_total{instance="web-1", job="shop"} = 7@1700000001.000
        target_info{host_name="web-1", instance="web-1", job="shop"} = 1@1700000001.000
        latency_milliseconds_bucket{instance="web-1", job="shop", le="5"} = 1@1700000000.000
        latency_milliseconds_bucket{instance="web-1", job="shop", le="+Inf"} = 3@1700000000.000
        latency_milliseconds_sum{instance="web-1", job="shop"} = 12@1700000000.000
        latency_milliseconds_count{instance="web-1", job="shop"} = 3@1700000000.000
        sizes_bytes{hindcast_trace="histogram", instance="web-1", job="shop"} "h1 s=0 c=3 sum=10 zt=1e-128 zc=1 p=3:2" []
        hindcast_metric_info{metric="sizes_bytes", type="histogram", unit="bytes"} = 1700000000@1700000000.000
        hindcast_metric_info{metric="requests_total", type="counter"} = 1700000000@1700000000.000
        hindcast_metric_info{metric="latency_milliseconds", type="histogram", unit="milliseconds"} = 1700000000@1700000000.000
    "#]]
    .assert_eq(&over_http);
    let batch = served.recorder.batches.lock()[0].clone();
    assert_eq!(
        (batch.edges.len(), batch.resources.len()),
        (1, 2),
        "the service runs on its host"
    );

    let other = serve().await;
    let request: otlp::MetricsRequest = serde_json::from_str(OTLP_METRICS).unwrap();
    let client = MetricsServiceClient::connect(other.base.clone()).await.unwrap();
    for encoding in [
        tonic::codec::CompressionEncoding::Gzip,
        tonic::codec::CompressionEncoding::Zstd,
    ] {
        let answer = client
            .clone()
            .send_compressed(encoding)
            .export(request.clone())
            .await
            .unwrap();
        assert!(answer.into_inner().partial_success.unwrap().rejected_data_points >= 1);
    }
    assert!(other.stored().starts_with(&over_http));
}

#[tokio::test]
async fn logs_become_lines_with_metadata() {
    let served = serve().await;
    let logs = r#"{"resourceLogs":[{"resource":{"attributes":[{"key":"service.name","value":{"stringValue":"shop"}},{"key":"os.type","value":{"stringValue":"linux"}}]},
      "scopeLogs":[{"logRecords":[
        {"timeUnixNano":"1700000000000000007","severityNumber":17,"severityText":"Error","traceId":"5B8EFFF798038103D269B633813FC60C","body":{"stringValue":"disk full"},"attributes":[{"key":"http.status","value":{"intValue":"500"}}]},
        {"observedTimeUnixNano":"1700000000000000009","body":{"kvlistValue":{"values":[{"key":"k","value":{"arrayValue":{"values":[{"intValue":"1"},{"boolValue":true}]}}}]}}},
        {"timeUnixNano":"1800000000000000000","body":{"stringValue":"from the future"}}]}]}]}"#;
    let request: otlp::LogsRequest = serde_json::from_str(logs).unwrap();
    let mut client = LogsServiceClient::connect(served.base.clone()).await.unwrap();
    let partial = client
        .export(request)
        .await
        .unwrap()
        .into_inner()
        .partial_success
        .unwrap();
    assert_eq!(partial.rejected_log_records, 1);
    let push = r#"{"streams":[{"stream":{"job":"loki"},"values":[["1700000000000000001","a line"],["1700000000000000002","more",{"k":"v"}]]}]}"#;
    let json = [("content-type", "application/json")];
    assert_eq!(served.post("/loki/api/v1/push", &json, push).await.0, 204);
    assert_eq!(served.post("/loki/api/v1/push", &json, "{}").await.0, 400);
    expect![[r#"
        {service_name="shop"} "disk full" [("detected_level", "error"), ("http_status", "500"), ("os_type", "linux"), ("severity_number", "17"), ("severity_text", "Error"), ("trace_id", "5b8efff798038103d269b633813fc60c")]
        {service_name="shop"} "{\"k\":[1,true]}" [("os_type", "linux")]
        {job="loki"} "a line" []
        {job="loki"} "more" [("k", "v")]
    "#]]
    .assert_eq(&served.stored());
    assert_eq!(Encoding::parse("zstd"), Some(Encoding::Zstd));
}

/// A server span of the shop with a call to its database, and one that nobody could find again.
const OTLP_SPANS: &str = r#"{"resourceSpans":[{
  "resource":{"attributes":[{"key":"service.name","value":{"stringValue":"shop"}},{"key":"host.name","value":{"stringValue":"web-1"}}]},
  "scopeSpans":[{"spans":[
    {"traceId":"5B8EFFF798038103D269B633813FC60C","spanId":"EEE19B7EC3C1B174","name":"GET /cart","kind":2,
     "startTimeUnixNano":"1700000000000000000","endTimeUnixNano":"1700000000012300000"},
    {"traceId":"5B8EFFF798038103D269B633813FC60C","spanId":"EEE19B7EC3C1B175","parentSpanId":"EEE19B7EC3C1B174","name":"SELECT","kind":3,
     "startTimeUnixNano":"1700000000000000001","endTimeUnixNano":"1700000000002000001","status":{"code":2,"message":"call 010-1234-5678"}},
    {"traceId":"00000000000000000000000000000000","spanId":"EEE19B7EC3C1B176","name":"lost",
     "startTimeUnixNano":"1700000000000000000","endTimeUnixNano":"1700000000000000000"}]}]}]}"#;

#[tokio::test]
async fn spans_over_http_and_grpc_are_kept_alike_and_masked() {
    let served = serve().await;
    let json = [("content-type", "application/json")];
    let (code, _, answer) = served.post("/v1/traces", &json, OTLP_SPANS).await;
    assert_eq!(code, 200);
    expect![[r#"{"partialSuccess":{"rejectedSpans":1,"errorMessage":"1 refused: span \"lost\" of {hindcast_trace=\"span\", host_name=\"web-1\", service_name=\"shop\"} (1): the span cannot be kept: its trace id is all zeros"}}"#]]
        .assert_eq(&String::from_utf8_lossy(&answer));
    let over_http = served.stored();
    expect![[r#"
        {hindcast_trace="span", host_name="web-1", service_name="shop"} "span=\"GET /cart\" kind=server duration=12.3ms status=unset" [("duration", "12.3ms"), ("span_id", "eee19b7ec3c1b174"), ("span_kind", "server"), ("span_name", "GET /cart"), ("span_status", "unset"), ("trace_id", "5b8efff798038103d269b633813fc60c")]
        {hindcast_trace="span", host_name="web-1", service_name="shop"} "span=\"SELECT\" kind=client duration=2ms status=error message=\"call 010-****-5678\"" [("detected_level", "error"), ("duration", "2ms"), ("parent_span_id", "eee19b7ec3c1b174"), ("span_id", "eee19b7ec3c1b175"), ("span_kind", "client"), ("span_name", "SELECT"), ("span_status", "error"), ("span_status_message", "call 010-****-5678"), ("trace_id", "5b8efff798038103d269b633813fc60c")]
    "#]]
    .assert_eq(&over_http);
    let request: otlp::TracesRequest = serde_json::from_str(OTLP_SPANS).unwrap();
    let protobuf = [("content-type", "application/x-protobuf"), ("content-encoding", "zstd")];
    let body = zstd::encode_all(&request.encode_to_vec()[..], 1).unwrap();
    assert_eq!(served.post("/v1/traces", &protobuf, body).await.0, 200);
    let client = TraceServiceClient::connect(served.base.clone()).await.unwrap();
    for encoding in [
        tonic::codec::CompressionEncoding::Gzip,
        tonic::codec::CompressionEncoding::Zstd,
    ] {
        let answer = client
            .clone()
            .send_compressed(encoding)
            .export(request.clone())
            .await
            .unwrap();
        let partial = answer.into_inner().partial_success.unwrap();
        assert!(partial.rejected_spans == 1 && partial.error_message.contains("all zeros"));
    }
    assert_eq!(served.stored(), over_http.repeat(4));
    assert_eq!(served.counted("hindcast_ingest_refused_items_total", "bad_span"), 4);
    // The number of a card, and an id.
    let like_a_card = OTLP_SPANS
        .replace("EEE19B7EC3C1B175", "4111111111111111")
        .replace("SELECT", "pay 4111111111111111");
    assert_eq!(served.post("/v1/traces", &json, like_a_card).await.0, 200);
    let stored = served.stored();
    assert!(
        stored.contains(r#"("span_id", "4111111111111111")"#) && !stored.contains("pay 4111111111111111"),
        "{stored}"
    );
    // An id that is no hex makes the whole of it unreadable, and is named.
    let bad = OTLP_SPANS.replace("EEE19B7EC3C1B175", "no hex");
    let (code, _, said) = served.post("/v1/traces", &json, bad).await;
    let said = String::from_utf8_lossy(&said).into_owned();
    assert!(
        code == 400 && said.contains("not a readable otlp_traces request"),
        "{said}"
    );
    let (_, _, said) = served
        .post(
            "/loki/api/v1/push",
            &json,
            r#"{"streams":[{"stream":{"hindcast_trace":"span"},"values":[["1700000000000000001","a line"]]}]}"#,
        )
        .await;
    assert!(
        String::from_utf8_lossy(&said).contains("reserved"),
        "nobody else makes spans"
    );
}

#[tokio::test]
async fn requests_are_counted_once_and_written_until_they_are_stored() {
    let served = serve().await;
    let json = [("content-type", "application/json")];
    let body = OTLP_SPANS.replace("GET /cart", "GET /010-1234-5678");
    assert_eq!(served.post("/v1/traces", &json, body.clone()).await.0, 200);
    served.recorder.knows.store(true, Ordering::SeqCst);
    assert_eq!(served.post("/v1/traces", &json, body.clone()).await.0, 200);
    served.recorder.knows.store(false, Ordering::SeqCst);
    served.recorder.is_full.store(true, Ordering::SeqCst);
    assert_eq!(served.post("/v1/traces", &json, body).await.0, 429);
    served.state.write_requests().await;
    served.recorder.is_full.store(false, Ordering::SeqCst);
    let spans = served.recorder.batches.lock().drain(..).next().unwrap();
    let tied: Vec<_> = spans
        .resources
        .iter()
        .map(|r| format!("{} {}", r.kind, r.name))
        .collect();
    assert_eq!(tied.len(), 3, "a host, an instance and its service: {tied:?}");
    assert_eq!(
        spans.edges.len(),
        2,
        "the instance runs on the one and is part of the other"
    );
    served.state.write_requests().await;
    served.state.write_requests().await;
    let stored = served.stored();
    let shown = stored.lines().filter(|l| {
        ["_total{", "_sum{", "_count{", "le=\"0.01\"", "le=\"+Inf\""]
            .iter()
            .any(|part| l.contains(part))
    });
    expect![[r#"
        traces_span_metrics_calls_total{instance="web-1", job="shop", service_name="shop", span_kind="SPAN_KIND_SERVER", span_name="GET /010-****-5678", status_code="STATUS_CODE_UNSET"} = 0@1700000000.001 1@1700000000.002 1@1700000000.003
        traces_span_metrics_duration_seconds_bucket{instance="web-1", job="shop", le="0.01", service_name="shop", span_kind="SPAN_KIND_SERVER", span_name="GET /010-****-5678", status_code="STATUS_CODE_UNSET"} = 0@1700000000.001 0@1700000000.002 0@1700000000.003
        traces_span_metrics_duration_seconds_bucket{instance="web-1", job="shop", le="+Inf", service_name="shop", span_kind="SPAN_KIND_SERVER", span_name="GET /010-****-5678", status_code="STATUS_CODE_UNSET"} = 0@1700000000.001 1@1700000000.002 1@1700000000.003
        traces_span_metrics_duration_seconds_sum{instance="web-1", job="shop", service_name="shop", span_kind="SPAN_KIND_SERVER", span_name="GET /010-****-5678", status_code="STATUS_CODE_UNSET"} = 0@1700000000.001 0.0123@1700000000.002 0.0123@1700000000.003
        traces_span_metrics_duration_seconds_count{instance="web-1", job="shop", service_name="shop", span_kind="SPAN_KIND_SERVER", span_name="GET /010-****-5678", status_code="STATUS_CODE_UNSET"} = 0@1700000000.001 1@1700000000.002 1@1700000000.003
        traces_span_metrics_calls_total{instance="web-1", job="shop", service_name="shop", span_kind="SPAN_KIND_CLIENT", span_name="SELECT", status_code="STATUS_CODE_ERROR"} = 0@1700000000.001 1@1700000000.002 1@1700000000.003
        traces_span_metrics_duration_seconds_bucket{instance="web-1", job="shop", le="0.01", service_name="shop", span_kind="SPAN_KIND_CLIENT", span_name="SELECT", status_code="STATUS_CODE_ERROR"} = 0@1700000000.001 1@1700000000.002 1@1700000000.003
        traces_span_metrics_duration_seconds_bucket{instance="web-1", job="shop", le="+Inf", service_name="shop", span_kind="SPAN_KIND_CLIENT", span_name="SELECT", status_code="STATUS_CODE_ERROR"} = 0@1700000000.001 1@1700000000.002 1@1700000000.003
        traces_span_metrics_duration_seconds_sum{instance="web-1", job="shop", service_name="shop", span_kind="SPAN_KIND_CLIENT", span_name="SELECT", status_code="STATUS_CODE_ERROR"} = 0@1700000000.001 0.002@1700000000.002 0.002@1700000000.003
        traces_span_metrics_duration_seconds_count{instance="web-1", job="shop", service_name="shop", span_kind="SPAN_KIND_CLIENT", span_name="SELECT", status_code="STATUS_CODE_ERROR"} = 0@1700000000.001 1@1700000000.002 1@1700000000.003
    "#]].assert_eq(&shown.map(|l| format!("{l}\n")).collect::<String>());
    assert_eq!(stored.lines().count(), 2 * 18, "two sets, each written once");
    let samples = served.counters.list().into_iter();
    let samples: Vec<_> = samples
        .filter(|c| c.name == "hindcast_ingest_samples_total" && c.value > 0)
        .collect();
    assert_eq!((samples.len(), samples[0].value), (1, 2 * 18 * 3));
}

#[tokio::test]
async fn line_protocol_is_stored_and_answered_as_influx_does() {
    let served = serve().await;
    let body =
        "cpu,host=web-1 usage_idle=97.5,ok=t 1700000000\nsystem,host=web-1 uptime_format=\"3 days\" 1700000000\n";
    let gzip = {
        use std::io::Write;
        let mut gzip = flate2::write::GzEncoder::new(vec![], flate2::Compression::fast());
        gzip.write_all(body.as_bytes()).unwrap();
        gzip.finish().unwrap()
    };
    let as_text = [
        ("content-type", "text/plain; charset=utf-8"),
        ("content-encoding", "gzip"),
    ];
    let (code, _, said) = served.post("/write?db=telegraf&precision=s", &as_text, gzip).await;
    assert_eq!((code, said.len()), (204, 0));
    let more = "mem,host=web-1 used=5i 1700000000000000001\nbad\nup value=1\nmem used=oops";
    let (code, kind, said) = served
        .post("/api/v2/write?org=o&bucket=b&precision=ns", &[], more)
        .await;
    assert_eq!((code, kind.as_str()), (400, "application/json"));
    expect![[r#"{"code":"invalid","message":"partial write: 2 refused: line 2 (1): the line cannot be read: it has no fields; line 4 (1): the line cannot be read: the field \"used\": \"oops\" is no number, boolean or text in quotes dropped=2"}"#]]
    .assert_eq(&String::from_utf8_lossy(&said));
    let (code, _, said) = served.post("/write?precision=d", &[], "a v=1").await;
    expect![[r#"400 {"error":"the body is not a readable influx request: precision \"d\" is none of ns, us, ms, s, m and h"}"#]]
    .assert_eq(&format!("{code} {}", String::from_utf8_lossy(&said)));
    expect![[r#"
        cpu_usage_idle{host="web-1"} = 97.5@1700000000.000
        cpu_ok{host="web-1"} = 1@1700000000.000
        mem_used{host="web-1"} = 5@1700000000.000
        up = 1@1700000000.000
    "#]]
    .assert_eq(&served.stored());
    assert_eq!(served.counted("hindcast_ingest_refused_items_total", "text_value"), 1);
    assert_eq!(served.counted("hindcast_ingest_refused_items_total", "bad_line"), 2);
    // What cannot be stored now is sent again: both versions' clients do so at these codes.
    for (fail, code) in [
        (
            WriteError::QueueFull {
                shard: ShardId(2),
                queued_bytes_max: 9,
            },
            429,
        ),
        (WriteError::NoLeader { shard: ShardId(2) }, 503),
    ] {
        *served.recorder.fails.lock() = vec![fail];
        assert_eq!(served.post("/api/v2/write", &[], "a v=1").await.0, code);
    }
    let get = async |path: &str| {
        let client = Client::builder(TokioExecutor::new()).build_http();
        let uri = format!("{}{path}", served.base).parse().unwrap();
        let answer = Client::<_, Full<Bytes>>::get(&client, uri).await.unwrap();
        let head = answer.headers().clone();
        let status = answer.status().as_u16();
        (status, head, answer.into_body().collect().await.unwrap().to_bytes())
    };
    let (code, head, _) = get("/ping").await;
    assert_eq!((code, head["x-influxdb-version"].to_str().unwrap()), (204, "1.8.10"));
    let (code, _, said) = get("/health").await;
    assert!(code == 200 && String::from_utf8_lossy(&said).contains(r#""status":"pass""#));
    let form = [("content-type", "application/x-www-form-urlencoded")];
    let (code, _, said) = served.post("/query", &form, "q=CREATE+DATABASE+%22telegraf%22").await;
    assert_eq!((code, &said[..]), (200, &br#"{"results":[{"statement_id":0}]}"#[..]));
    assert_eq!(served.post("/query?q=SELECT+1", &[], "").await.0, 400);
}
