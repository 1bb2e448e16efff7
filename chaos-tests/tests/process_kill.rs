//! Three real nodes under kill -9: what was acknowledged is read back exactly once from each of them (I1).

#![allow(clippy::disallowed_methods, reason = "a test on real processes runs in real time")]

use anyhow::{Context, Result, ensure};
use hindcast_chaos::history::{Verdict, Written, check};
use hindcast_chaos::process::{Cluster, channel};
use hindcast_proto::v1;
use hindcast_proto::v1::ingest_client::IngestClient;
use hindcast_proto::v1::query_client::QueryClient;
use std::net::SocketAddr;
use std::time::{Duration, Instant, SystemTime};
use tokio::sync::watch;

const PROGRAM: &str = env!("CARGO_BIN_EXE_hindcast-under-test");

/// How much is written, and how often a node dies meanwhile.
#[derive(Clone, Copy)]
struct Plan {
    writers: u64,
    batches: u64,
    samples_per_batch: u64,
    lines_per_batch: u64,
    pause: Duration,
    kill_every: Duration,
    down_for: Duration,
}

const SHORT: Plan = Plan {
    writers: 4,
    batches: 40,
    samples_per_batch: 250,
    lines_per_batch: 25,
    pause: Duration::from_millis(100),
    kill_every: Duration::from_secs(2),
    down_for: Duration::from_millis(800),
};

/// 1,000,000 samples and 100,000 lines; with the pauses about 50 s, so at least four nodes die.
const LONG: Plan = Plan {
    writers: 4,
    batches: 250,
    samples_per_batch: 1000,
    lines_per_batch: 100,
    pause: Duration::from_millis(180),
    kill_every: Duration::from_secs(10),
    down_for: Duration::from_secs(3),
};

/// Resources that each writer speaks of, so that its data is spread over all shards.
const HOSTS: u64 = 10;

fn now_ms() -> i64 {
    let now = SystemTime::now()
        .duration_since(SystemTime::UNIX_EPOCH)
        .expect("after 1970");
    now.as_millis() as i64
}

fn label(name: &str, value: impl ToString) -> v1::Label {
    v1::Label {
        name: name.into(),
        value: value.to_string(),
    }
}

/// Batch `seq` of a writer: each sample and line carries its own number.
fn batch(plan: Plan, writer: u64, seq: u64, base_ms: i64) -> v1::WriteRequest {
    let host = |item: u64| label("instance", format!("w{writer}h{}:1", item % HOSTS));
    let first = (seq - 1) * plan.samples_per_batch;
    let series = (0..HOSTS).map(|h| v1::Series {
        labels: vec![label("__name__", "node_chaos"), label("writer", writer), host(h)],
        points: (first..first + plan.samples_per_batch)
            .filter(|i| i % HOSTS == h)
            .map(|i| v1::Point {
                at_ms: base_ms + i as i64,
                value: i as f64,
            })
            .collect(),
    });
    let first_line = (seq - 1) * plan.lines_per_batch;
    let streams = (0..HOSTS).map(|h| v1::Stream {
        labels: vec![label("job", "chaos"), label("writer", writer), host(h)],
        lines: (first_line..first_line + plan.lines_per_batch)
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

/// Writes all batches, each until some node confirms it; the longest time a batch took.
async fn write(plan: Plan, writer: u64, base_ms: i64, nodes: Vec<SocketAddr>) -> Result<(Written, Written, Duration)> {
    let clients: Vec<_> = nodes
        .iter()
        .map(|a| IngestClient::new(channel(*a, Duration::from_secs(12))))
        .collect();
    let (mut samples, mut lines, mut longest) = (Written::default(), Written::default(), Duration::ZERO);
    for seq in 1..=plan.batches {
        let request = batch(plan, writer, seq, base_ms);
        let items = |per: u64| (seq - 1) * per..seq * per;
        let started = Instant::now();
        let mut attempt = (writer + seq) as usize;
        loop {
            match clients[attempt % clients.len()].clone().write(request.clone()).await {
                Ok(answer) => {
                    let rejected = answer.into_inner().rejected;
                    ensure!(rejected.is_empty(), "refused: {rejected:?}");
                    break;
                }
                Err(status) => {
                    let retry = [
                        tonic::Code::Unavailable,
                        tonic::Code::DeadlineExceeded,
                        tonic::Code::Cancelled,
                    ]
                    .contains(&status.code())
                        || status.code() == tonic::Code::ResourceExhausted
                        || status.code() == tonic::Code::Unknown;
                    ensure!(retry, "batch {seq} of writer {writer} was refused: {status}");
                    ensure!(
                        started.elapsed() < Duration::from_secs(60),
                        "batch {seq} was not taken in a minute: {status}"
                    );
                    attempt += 1;
                    tokio::time::sleep(Duration::from_millis(20)).await;
                }
            }
        }
        longest = longest.max(started.elapsed());
        samples.acked.extend(items(plan.samples_per_batch));
        lines.acked.extend(items(plan.lines_per_batch));
        tokio::time::sleep(plan.pause).await;
    }
    Ok((samples, lines, longest))
}

/// Kills one node after the other until told to stop; the number of kills.
async fn kill(plan: Plan, cluster: &mut Cluster, mut done: watch::Receiver<bool>) -> Result<u32> {
    let mut kills = 0;
    loop {
        tokio::select! {
            _ = done.wait_for(|d| *d) => return Ok(kills),
            () = tokio::time::sleep(plan.kill_every) => {}
        }
        let victim = kills as usize % cluster.nodes.len();
        cluster.kill(victim);
        kills += 1;
        tokio::time::sleep(plan.down_for).await;
        cluster.spawn(victim)?;
    }
}

async fn read_samples(address: SocketAddr, writer: u64) -> Result<Vec<u64>> {
    let client = QueryClient::new(channel(address, Duration::from_secs(60)));
    let request = v1::InstantRequest {
        expr: format!("node_chaos{{writer=\"{writer}\"}}[2h]"),
        at_ms: now_ms() + 3_600_000,
    };
    let answer = client
        .max_decoding_message_size(256 << 20)
        .instant(request)
        .await?
        .into_inner();
    let complete = answer.completeness.context("no completeness flag")?;
    ensure!(complete.complete, "incomplete: {:?}", complete.missing);
    // Each number stands at its own time: a sample at a wrong place would show as lost and invented.
    Ok(answer
        .series
        .iter()
        .flat_map(|s| s.points.iter().map(|p| p.value as u64))
        .collect())
}

async fn read_lines(address: SocketAddr, writer: u64, base_ms: i64) -> Result<Vec<u64>> {
    let client = QueryClient::new(channel(address, Duration::from_secs(60)));
    let request = v1::LogsRequest {
        expr: format!("{{job=\"chaos\", writer=\"{writer}\"}}"),
        start_ns: base_ms * 1_000_000,
        end_ns: (base_ms + 7_200_000) * 1_000_000,
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

async fn run(name: &str, plan: Plan) -> Result<()> {
    let mut cluster = Cluster::start(name, PROGRAM, 3, &[])?;
    let ready = cluster.wait_ready().await?;
    println!("three nodes are ready after {ready:?}");
    let base_ms = now_ms() - 1_800_000;
    let nodes = cluster.addresses();
    let (done, finished) = watch::channel(false);
    let writers: Vec<_> = (1..=plan.writers)
        .map(|w| tokio::spawn(write(plan, w, base_ms, nodes.clone())))
        .collect();
    let waiting = tokio::spawn(async move {
        let mut written = vec![];
        for w in writers {
            written.push(w.await??);
        }
        let _ = done.send(true);
        anyhow::Ok(written)
    });
    let kills = kill(plan, &mut cluster, finished).await?;
    let written = waiting.await??;
    cluster.wait_ready().await?;
    let longest = written.iter().map(|w| w.2).max().unwrap_or_default();
    println!("{kills} kills; the longest a batch took was {longest:?}");
    ensure!(kills > 0, "nobody died: the plan is too short");

    // All at once: whatever was only in memory anywhere is gone now.
    for i in 0..cluster.nodes.len() {
        cluster.kill(i);
    }
    for i in 0..cluster.nodes.len() {
        cluster.spawn(i)?;
    }
    cluster.wait_ready().await?;

    let mut counted = (0, 0);
    for node in &cluster.nodes {
        for (w, (samples, lines, _)) in (1..).zip(&written) {
            let read = read_samples(node.client, w).await?;
            counted.0 += read.len();
            let verdict = check(samples, read);
            ensure!(
                verdict == Verdict::default(),
                "samples of writer {w} on node {}: {verdict:?}",
                node.id
            );
            let read = read_lines(node.client, w, base_ms).await?;
            counted.1 += read.len();
            let verdict = check(lines, read);
            ensure!(
                verdict == Verdict::default(),
                "lines of writer {w} on node {}: {verdict:?}",
                node.id
            );
        }
    }
    println!(
        "read back from three nodes: {} samples, {} lines; none lost, none doubled",
        counted.0, counted.1
    );

    let mut digests = vec![];
    for i in 0..cluster.nodes.len() {
        digests.push(settled_digests(&cluster, i).await?);
    }
    ensure!(
        digests.windows(2).all(|w| w[0] == w[1]),
        "the nodes' states differ: {digests:?}"
    );
    Ok(())
}

/// (group, applied, digest) of a node, once it has applied all it knows to be committed.
async fn settled_digests(cluster: &Cluster, i: usize) -> Result<Vec<(u64, String)>> {
    let started = Instant::now();
    loop {
        let status = cluster.status(i).await?;
        // The meta group moves on with every lease; its digest is compared by the machine itself.
        let shards: Vec<_> = status.groups.iter().filter(|g| g.group > 0).collect();
        if shards.iter().all(|g| g.applied == g.commit && !g.digest.is_empty())
            && started.elapsed() > Duration::from_millis(500)
        {
            return Ok(shards.iter().map(|g| (g.group, g.digest.clone())).collect());
        }
        ensure!(
            started.elapsed() < Duration::from_secs(20),
            "node {} does not settle",
            cluster.nodes[i].id
        );
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_acknowledged_survives_kill_minus_nine() {
    run("kill-short", SHORT).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "a million samples take a minute: `cargo xtask prove chaos` runs it"]
async fn a_million_samples_survive_a_kill_every_ten_seconds() {
    run("kill-long", LONG).await.unwrap();
}
