//! Writers whose every sample and line carries its own number, and the reads that hold answers against them.

#![allow(clippy::disallowed_methods, reason = "a test on real processes runs in real time")]

use crate::history::{Verdict, Written, check};
use crate::process::{Cluster, channel};
use anyhow::{Context, Result, ensure};
use hindcast_proto::v1;
use hindcast_proto::v1::ingest_client::IngestClient;
use hindcast_proto::v1::query_client::QueryClient;
use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::ops::Range;
use std::time::{Duration, Instant, SystemTime};
use tokio::sync::watch;
use tonic::transport::Channel;

/// How much is written, and how fast.
#[derive(Clone, Copy, Debug)]
pub struct Load {
    pub writers: u64,
    pub samples_per_batch: u64,
    pub lines_per_batch: u64,
    pub pause: Duration,
    /// A batch that is not taken for so long fails the test.
    pub patience: Duration,
}

/// Resources that each writer speaks of, so that its data is spread over all shards.
pub const HOSTS: u64 = 10;
/// Lines asked for at once.
const LINES_PER_READ: u64 = 50_000;
const SAMPLES_PER_READ: u64 = 250_000;
/// A reader that is turned away, for lack of memory, comes again for so long.
const READ_PATIENCE: Duration = Duration::from_secs(60);
const READ_TIMEOUT: Duration = Duration::from_secs(60);
/// Item `i` of a writer is stamped so many milliseconds after the start; all of it must lie in the past.
const START_BEFORE_NOW_MS: i64 = 12 * 3_600_000;

/// The wall clock.
pub fn now_ms() -> i64 {
    let now = SystemTime::now()
        .duration_since(SystemTime::UNIX_EPOCH)
        .expect("after 1970");
    now.as_millis() as i64
}

/// The instant of the first items of a test that begins now.
pub fn base_ms() -> i64 {
    now_ms() - START_BEFORE_NOW_MS
}

pub fn label(name: &str, value: impl ToString) -> v1::Label {
    v1::Label {
        name: name.into(),
        value: value.to_string(),
    }
}

/// Batch `seq` of a writer.
pub fn batch(load: Load, writer: u64, seq: u64, base_ms: i64) -> v1::WriteRequest {
    let host = |item: u64| label("instance", format!("w{writer}h{}:1", item % HOSTS));
    let first = (seq - 1) * load.samples_per_batch;
    let series = (0..HOSTS).map(|h| v1::Series {
        labels: vec![label("__name__", "node_chaos"), label("writer", writer), host(h)],
        points: (first..first + load.samples_per_batch)
            .filter(|i| i % HOSTS == h)
            .map(|i| v1::Point {
                at_ms: base_ms + i as i64,
                value: Some(i as f64),
            })
            .collect(),
    });
    let first_line = (seq - 1) * load.lines_per_batch;
    let streams = (0..HOSTS).map(|h| v1::Stream {
        labels: vec![label("job", "chaos"), label("writer", writer), host(h)],
        lines: (first_line..first_line + load.lines_per_batch)
            .filter(|i| i % HOSTS == h)
            .map(|i| v1::Line {
                at_ns: (base_ms + i as i64) * 1_000_000,
                line: format!("line {i}"),
                metadata: vec![],
            })
            .collect(),
    });
    v1::WriteRequest {
        writer: format!("chaos-{writer}"),
        seq,
        resource: vec![],
        series: series.filter(|s| !s.points.is_empty()).collect(),
        streams: streams.filter(|s| !s.lines.is_empty()).collect(),
        ..v1::WriteRequest::default()
    }
}

/// One writer's confirmed batches, and the longest time that one took.
#[derive(Clone, Debug, Default)]
pub struct Progress {
    pub batches: u64,
    pub longest: Duration,
}

/// Connections to all nodes, for one writer.
pub struct Clients(Vec<IngestClient<Channel>>);

/// A call that takes longer may have been taken.
const WRITE_TIMEOUT: Duration = Duration::from_secs(12);
const RETRY_PAUSE: Duration = Duration::from_millis(20);
/// What a batch is sent again for, with the same number.
const RETRY: [tonic::Code; 5] = [
    tonic::Code::Unavailable,
    tonic::Code::DeadlineExceeded,
    tonic::Code::Cancelled,
    tonic::Code::ResourceExhausted,
    tonic::Code::Unknown,
];

impl Clients {
    pub fn new(nodes: &[SocketAddr]) -> Self {
        let client = |a: &SocketAddr| IngestClient::new(channel(*a, WRITE_TIMEOUT));
        Self(nodes.iter().map(client).collect())
    }

    /// Sends a batch to one node after the other until one confirms it; how long that took.
    pub async fn confirm(&self, load: Load, writer: u64, seq: u64, base_ms: i64) -> Result<Duration> {
        let request = batch(load, writer, seq, base_ms);
        let started = Instant::now();
        let mut attempt = (writer + seq) as usize;
        loop {
            match self.0[attempt % self.0.len()].clone().write(request.clone()).await {
                Ok(answer) => {
                    let rejected = answer.into_inner().rejected;
                    ensure!(rejected.is_empty(), "refused: {rejected:?}");
                    return Ok(started.elapsed());
                }
                Err(status) => {
                    ensure!(
                        RETRY.contains(&status.code()),
                        "batch {seq} of writer {writer} was refused: {status}"
                    );
                    ensure!(
                        started.elapsed() < load.patience,
                        "batch {seq} was not taken in {:?}: {status}",
                        load.patience
                    );
                    attempt += 1;
                    tokio::time::sleep(RETRY_PAUSE).await;
                }
            }
        }
    }
}

/// Writes batches after those in `done` until `batches_max` are confirmed or `stop` turns true; each batch until some
/// node confirms it.
pub async fn write(
    load: Load,
    writer: u64,
    base_ms: i64,
    nodes: Vec<SocketAddr>,
    mut done: Progress,
    batches_max: u64,
    stop: watch::Receiver<bool>,
) -> Result<Progress> {
    let clients = Clients::new(&nodes);
    while done.batches < batches_max && !*stop.borrow() {
        let took = clients.confirm(load, writer, done.batches + 1, base_ms).await?;
        done.batches += 1;
        done.longest = done.longest.max(took);
        tokio::time::sleep(load.pause).await;
    }
    Ok(done)
}

/// The numbers of a writer's samples in a range of numbers, as a node has them.
pub async fn read_samples(node: Channel, writer: u64, base_ms: i64, items: Range<u64>) -> Result<Vec<u64>> {
    let client = QueryClient::new(node);
    let request = v1::InstantRequest {
        // Left-open, right-closed.
        expr: format!("node_chaos{{writer=\"{writer}\"}}[{}ms]", items.end - items.start),
        at_ms: base_ms + items.end as i64 - 1,
    };
    let answer = client
        .max_decoding_message_size(256 << 20)
        .instant(request)
        .await?
        .into_inner();
    let complete = answer.completeness.context("no completeness flag")?;
    ensure!(complete.complete, "incomplete: {:?}", complete.missing);
    let points = answer.series.iter().flat_map(|s| &s.points);
    points
        .map(|p| {
            ensure!(
                p.at_ms == base_ms + p.value() as i64,
                "sample {} stands at another time",
                p.value()
            );
            Ok(p.value() as u64)
        })
        .collect()
}

pub async fn read_lines(node: Channel, writer: u64, base_ms: i64, items: Range<u64>) -> Result<Vec<u64>> {
    let client = QueryClient::new(node);
    let request = v1::LogsRequest {
        expr: format!("{{job=\"chaos\", writer=\"{writer}\"}}"),
        start_ns: (base_ms + items.start as i64) * 1_000_000,
        end_ns: (base_ms + items.end as i64) * 1_000_000,
        limit: 100_000,
        forward: true,
        step_ms: 0,
    };
    let answer = client
        .max_decoding_message_size(256 << 20)
        .logs(request)
        .await?
        .into_inner();
    let complete = answer.completeness.context("no completeness flag")?;
    ensure!(complete.complete, "incomplete: {:?}", complete.missing);
    let number = |line: &str| {
        line.strip_prefix("line ")
            .and_then(|n| n.parse().ok())
            .context("a foreign line")
    };
    answer
        .streams
        .iter()
        .flat_map(|s| &s.entries)
        .map(|e| number(&e.line))
        .collect()
}

fn pieces(items: Range<u64>, step: u64) -> impl Iterator<Item = Range<u64>> {
    let end = items.end;
    items
        .step_by(step as usize)
        .map(move |from| from..(from + step).min(end))
}

/// Reads, again while the node takes no queries now.
async fn patiently<F: Future<Output = Result<Vec<u64>>>>(read: impl Fn() -> F) -> Result<Vec<u64>> {
    let started = Instant::now();
    loop {
        let answer = read().await;
        let status = answer.as_ref().err().and_then(|e| e.downcast_ref::<tonic::Status>());
        let is_turned_away = status.is_some_and(|s| s.code() == tonic::Code::ResourceExhausted);
        if !is_turned_away || started.elapsed() > READ_PATIENCE {
            return answer;
        }
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
}

/// The numbers of all samples and all lines of a writer's batches (counted from 0), as a node has them.
pub async fn read_batches(
    load: Load,
    node: &Channel,
    writer: u64,
    base_ms: i64,
    batches: &Range<u64>,
) -> Result<(Vec<u64>, Vec<u64>)> {
    let items = |per: u64| batches.start * per..batches.end * per;
    let mut samples = vec![];
    for piece in pieces(items(load.samples_per_batch), SAMPLES_PER_READ) {
        samples.extend(patiently(|| read_samples(node.clone(), writer, base_ms, piece.clone())).await?);
    }
    let mut lines = vec![];
    for piece in pieces(items(load.lines_per_batch), LINES_PER_READ) {
        lines.extend(patiently(|| read_lines(node.clone(), writer, base_ms, piece.clone())).await?);
    }
    Ok((samples, lines))
}

/// I1 for one writer's batches on one node: each sample and each line exactly once. How many were read.
async fn check_writer(
    load: Load,
    node: &Channel,
    writer: u64,
    base_ms: i64,
    batches: Range<u64>,
) -> Result<(usize, usize)> {
    let items = |per: u64| batches.start * per..batches.end * per;
    let written = |items: Range<u64>| Written {
        acked: items.collect(),
        ..Written::default()
    };
    let (samples, lines) = read_batches(load, node, writer, base_ms, &batches).await?;
    let counted = (samples.len(), lines.len());
    for (what, read, per) in [
        ("samples", samples, load.samples_per_batch),
        ("lines", lines, load.lines_per_batch),
    ] {
        let verdict = check(&written(items(per)), read);
        ensure!(verdict == Verdict::default(), "{what} of writer {writer}: {verdict:?}");
    }
    Ok(counted)
}

/// Every node holds every writer's batches exactly once, and all shards have equal digests (I1, I3).
pub async fn check_cluster(
    load: Load,
    cluster: &Cluster,
    base_ms: i64,
    batches: &[Range<u64>],
) -> Result<(usize, usize)> {
    let mut counted = (0, 0);
    for node in &cluster.nodes {
        let channel = channel(node.client, READ_TIMEOUT);
        for (writer, batches) in (1..).zip(batches) {
            let read = check_writer(load, &channel, writer, base_ms, batches.clone()).await;
            let (samples, lines) = read.with_context(|| format!("on node {}", node.id))?;
            counted.0 += samples;
            counted.1 += lines;
        }
    }
    agree(cluster).await?;
    Ok(counted)
}

/// Waits until all nodes have applied the same and have the same digests (I3). Entries may still be under way, so a
/// difference counts only when it stays; digests are chained over all entries, so a real one stays.
async fn agree(cluster: &Cluster) -> Result<()> {
    let started = Instant::now();
    loop {
        let mut states = vec![];
        for i in 0..cluster.nodes.len() {
            states.push(shard_states(cluster, i).await?);
        }
        let told = states.iter().flatten().all(|(_, _, digest)| !digest.is_empty());
        let mut of_group = BTreeMap::<u64, BTreeSet<(u64, &str)>>::new();
        for (group, applied, digest) in states.iter().flatten() {
            of_group.entry(*group).or_default().insert((*applied, digest));
        }
        if told && !of_group.is_empty() && of_group.values().all(|states| states.len() == 1) {
            return Ok(());
        }
        ensure!(
            started.elapsed() < Duration::from_secs(20),
            "the nodes' states differ: {states:?}"
        );
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

/// (group, applied, digest) of the shards of which a node has a copy. The meta group moves on with every lease; its digest is compared by
/// the machine itself.
async fn shard_states(cluster: &Cluster, i: usize) -> Result<Vec<(u64, u64, String)>> {
    let status = cluster.status(i).await?;
    let shards = status.groups.into_iter().filter(|g| g.group > 0 && g.has_copy);
    Ok(shards.map(|g| (g.group, g.applied, g.digest)).collect())
}
