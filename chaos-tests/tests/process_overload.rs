//! A node that is told to use little memory: it turns writers away with a word about when to come again, stays within its bound,
//! takes writes again by itself, and holds all that it acknowledged (P7, I12).

#![allow(clippy::disallowed_methods, reason = "a test on real processes runs in real time")]

use anyhow::{Context, Result, ensure};
use hindcast_chaos::process::{Cluster, channel, http_get, metric};
use hindcast_chaos::workload::{base_ms, label};
use hindcast_proto::v1::ingest_client::IngestClient;
use hindcast_proto::v1::query_client::QueryClient;
use hindcast_proto::{edge, v1};
use std::net::SocketAddr;
use std::time::{Duration, Instant};

const PROGRAM: &str = env!("CARGO_BIN_EXE_hindcast-under-test");
const LIMIT: u64 = 160 << 20;
/// I12: what a process may use above its budget before it counts as broken.
const LIMIT_SLACK: f64 = 1.2;
const WRITERS: u64 = 12;
const LINES_PER_BATCH: u64 = 250;
const LINE_BYTES: usize = 4000;
/// Each writer goes on until it was turned away so often, or for so long.
const REFUSALS_WANTED: u64 = 3;
const LOAD_SPAN_MAX: Duration = Duration::from_secs(60);
const PATIENCE: Duration = Duration::from_secs(60);

/// Text that no compression makes small: every line is another one.
fn line(number: u64) -> String {
    let mut state = number.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let letter = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        char::from(b'a' + (state % 26) as u8)
    };
    format!("line {number} ") + &std::iter::repeat_with(letter).take(LINE_BYTES).collect::<String>()
}

fn batch(writer: u64, seq: u64, base_ms: i64) -> v1::WriteRequest {
    let first = (seq - 1) * LINES_PER_BATCH;
    let lines = (first..first + LINES_PER_BATCH).map(|i| v1::Line {
        at_ns: (base_ms + i as i64) * 1_000_000,
        line: line(writer * 1_000_000 + i),
        metadata: vec![],
    });
    let stream = v1::Stream {
        labels: vec![label("job", "overload"), label("writer", writer)],
        lines: lines.collect(),
    };
    v1::WriteRequest {
        writer: format!("overload-{writer}"),
        seq,
        streams: vec![stream],
        ..Default::default()
    }
}

/// What one writer saw: confirmed batches, and how often it was told to come again.
async fn write(node: SocketAddr, writer: u64, base_ms: i64) -> Result<(u64, u64)> {
    let client = IngestClient::new(channel(node, Duration::from_secs(30)));
    let (started, mut acked, mut refused) = (Instant::now(), 0, 0);
    while refused < REFUSALS_WANTED && started.elapsed() < LOAD_SPAN_MAX {
        let request = batch(writer, acked + 1, base_ms);
        loop {
            let status = match client.clone().write(request.clone()).await {
                Ok(_) => break acked += 1,
                Err(status) => status,
            };
            ensure!(
                started.elapsed() < LOAD_SPAN_MAX + PATIENCE,
                "not taken for too long: {status}"
            );
            if status.code() == tonic::Code::ResourceExhausted {
                refused += 1;
                let pause = edge::retry_info_of(&status).with_context(|| format!("no RetryInfo: {status:?}"))?;
                tokio::time::sleep(pause).await;
            } else {
                // Too busy to confirm in time: it may be stored, and the same id is harmless.
                let may_retry = [
                    tonic::Code::Unavailable,
                    tonic::Code::DeadlineExceeded,
                    tonic::Code::Cancelled,
                ];
                ensure!(may_retry.contains(&status.code()), "{status}");
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        }
    }
    Ok((acked, refused))
}

async fn get(node: SocketAddr, path: &str) -> Result<(u16, String)> {
    let answer = http_get(node, path).await?;
    let status = answer.split(' ').nth(1).and_then(|s| s.parse().ok());
    Ok((status.context("no HTTP answer")?, answer))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_short_of_memory_refuses_recovers_and_loses_nothing() -> Result<()> {
    let limit = LIMIT.to_string();
    let mut cluster = Cluster::start("overload", PROGRAM, 1, &["--memory-limit", &limit, "--shards", "2"])?;
    cluster.wait_ready().await?;
    let node = cluster.addresses()[0];
    println!("idle: {} bytes", metric(node, "hindcast_memory_used_bytes").await?);
    let base_ms = base_ms();
    let writers: Vec<_> = (1..=WRITERS).map(|w| tokio::spawn(write(node, w, base_ms))).collect();

    // While writers are turned away, health and the cluster's state answer.
    let started = Instant::now();
    while metric(node, "hindcast_admission_refused_total").await? == 0.0 {
        ensure!(started.elapsed() < LOAD_SPAN_MAX, "nobody was turned away");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    ensure!(get(node, "/-/healthy").await?.0 == 200);
    ensure!(cluster.status(0).await.is_ok());
    // Queries go before writes; alerts and tickets never go.
    let started = Instant::now();
    loop {
        for path in [
            "/api/v1/alerts",
            "/api/hindcast/v1/incidents",
            "/api/hindcast/v1/tickets",
        ] {
            let (status, answer) = get(node, path).await?;
            ensure!(status == 200, "{path}: {answer}");
        }
        let (status, answer) = get(node, "/api/v1/query?query=up").await?;
        if status == 429 {
            ensure!(answer.to_lowercase().contains("\r\nretry-after: 1\r\n"), "{answer}");
            ensure!(answer.contains("takes no queries now"), "{answer}");
            break;
        }
        ensure!(status == 200, "{answer}");
        ensure!(
            started.elapsed() < LOAD_SPAN_MAX,
            "no query was turned away while writes were"
        );
    }

    let (mut acked, mut refused) = (vec![], 0);
    for writer in writers {
        let (batches, times) = writer.await??;
        acked.push(batches);
        refused += times;
    }
    let total: u64 = acked.iter().sum();
    let used_max = metric(node, "hindcast_memory_used_max_bytes").await?;
    println!("{total} batches were confirmed, {refused} refused; at most {used_max} bytes were used");
    ensure!(refused > 0, "nobody was told to come again");
    ensure!(
        used_max <= LIMIT as f64 * LIMIT_SLACK,
        "{used_max} bytes were used, of {LIMIT}"
    );

    let started = Instant::now();
    while metric(node, "hindcast_memory_pressure").await? > 0.0 {
        ensure!(started.elapsed() < PATIENCE, "memory is short long after the load");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    println!("everything was let in again {:?} after the load", started.elapsed());

    // Each line once, from memory and, after a kill, from the log and files.
    for round in ["before", "after"] {
        for (writer, batches) in (1..).zip(&acked) {
            let counted = count(node, writer, base_ms, batches * LINES_PER_BATCH).await;
            let counted = counted.with_context(|| format!("writer {writer} {round} the kill"))?;
            ensure!(
                counted == batches * LINES_PER_BATCH,
                "{round} the kill writer {writer} has {counted} lines of {batches} batches"
            );
        }
        if round == "before" {
            cluster.kill(0);
            cluster.spawn(0)?;
            cluster.wait_ready().await?;
        }
    }
    Ok(())
}

async fn count(node: SocketAddr, writer: u64, base_ms: i64, lines: u64) -> Result<u64> {
    let client = QueryClient::new(channel(node, Duration::from_secs(60)));
    let request = v1::LogsRequest {
        expr: format!(
            "sum(count_over_time({{job=\"overload\",writer=\"{writer}\"}}[{}ms]))",
            lines + 1
        ),
        start_ns: (base_ms + lines as i64 - 1) * 1_000_000,
        end_ns: (base_ms + lines as i64 - 1) * 1_000_000,
        ..Default::default()
    };
    let started = Instant::now();
    loop {
        match client.clone().logs(request.clone()).await {
            Ok(answer) => {
                let answer = answer.into_inner();
                ensure!(
                    answer.completeness.is_some_and(|c| c.complete),
                    "the answer is not whole"
                );
                let points = answer.series.iter().flat_map(|s| &s.points);
                return Ok(points.map(|p| p.value() as u64).sum());
            }
            // Reading may make memory short again: the same words hold for readers.
            Err(status) if status.code() == tonic::Code::ResourceExhausted && started.elapsed() < PATIENCE => {
                let pause = edge::retry_info_of(&status).context("no RetryInfo")?;
                tokio::time::sleep(pause).await;
            }
            Err(status) => return Err(status.into()),
        }
    }
}
