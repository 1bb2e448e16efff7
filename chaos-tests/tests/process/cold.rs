//! A real node whose old files go to a folder: they leave the data directory, answers stay the same byte for byte, also
//! after kill -9; a store that is away is said, and retention deletes what is there.

#![allow(clippy::disallowed_methods, reason = "a test on real processes runs in real time")]

use anyhow::{Context, Result, ensure};
use hindcast_chaos::process::{Cluster, channel, metric};
use hindcast_chaos::workload::{label, now_ms};
use hindcast_proto::v1;
use hindcast_proto::v1::ingest_client::IngestClient;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::{Duration, Instant};

const PROGRAM: &str = env!("CARGO_BIN_EXE_hindcast-under-test");
const DAY_MS: i64 = 86_400_000;
const PATIENCE: Duration = Duration::from_secs(60);

/// Numbers that do not pack well, so that the files are more than their tables.
fn noise(seed: u64) -> f64 {
    let mut x = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15);
    x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    f64::from_bits(0x3ff0_0000_0000_0000 | ((x ^ (x >> 31)) >> 12))
}

/// 2,000 samples and 400 lines of nobody in particular, from `at_ms` on.
async fn write(address: SocketAddr, seq: u64, at_ms: i64) -> Result<()> {
    let mut ingest = IngestClient::new(channel(address, Duration::from_secs(20)));
    let series = (0..20u64).map(|h| v1::Series {
        labels: vec![label("__name__", "cold_noise"), label("instance", format!("h{h}:1"))],
        points: (0..100i64)
            .map(|i| v1::Point {
                at_ms: at_ms + i * 1000,
                value: Some(noise(h * 1_000_003 + seq * 1000 + i as u64)),
            })
            .collect(),
    });
    let lines = (0..400i64).map(|i| v1::Line {
        at_ns: (at_ms + i * 250) * 1_000_000,
        line: format!(
            "{i} 주문 {seq} failed after {} ms, token {:016x}",
            i * 7,
            noise(seq * 7919 + i as u64).to_bits()
        ),
        metadata: vec![],
    });
    let request = v1::WriteRequest {
        writer: "cold".into(),
        seq,
        resource: vec![],
        series: series.collect(),
        streams: vec![v1::Stream {
            labels: vec![label("job", "cold")],
            lines: lines.collect(),
        }],
        ..v1::WriteRequest::default()
    };
    let answer = ingest.write(request).await?.into_inner();
    ensure!(answer.rejected.is_empty(), "{:?}", answer.rejected);
    Ok(())
}

fn hindcast(address: SocketAddr, args: &[&str]) -> Result<Output> {
    let mut command = Command::new(PROGRAM);
    command.args(args).args(["--endpoint", &format!("http://{address}")]);
    command.output().context("the command cannot be started")
}

fn said(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// Everything that lies between, as the command prints it.
fn answers(address: SocketAddr, from_ms: i64, to_ms: i64) -> Result<String> {
    let (from, to) = ((from_ms / 1000).to_string(), (to_ms / 1000).to_string());
    let range = ["--start", &from, "--end", &to];
    let mut all = String::new();
    for args in [
        ["query", "cold_noise", "--step", "10s"].as_slice(),
        &["query", "sum by (instance) (delta(cold_noise[1m]))", "--step", "30s"],
        &["logs", "{job=\"cold\"} |= \"failed\"", "--limit", "5000"],
    ] {
        let output = hindcast(address, &[args, &range, &["-o", "json"]].concat())?;
        ensure!(
            output.status.success() && said(&output).is_empty(),
            "{args:?}: {}",
            said(&output)
        );
        all += &without_positions(&String::from_utf8_lossy(&output.stdout));
    }
    Ok(all)
}

/// How far the node had applied moves on; the data must not.
fn without_positions(mut answer: &str) -> String {
    let mut rest = String::new();
    while let Some((before, after)) = answer.split_once("\"positions\"") {
        rest += before;
        answer = after.split_once('}').map_or("", |(_, after)| after);
    }
    rest + answer
}

/// The last JSON line of a storage command.
fn storage(address: SocketAddr, action: &str) -> Result<serde_json::Value> {
    let output = hindcast(address, &["storage", action, "-o", "json"])?;
    ensure!(output.status.code() == Some(0), "{}", said(&output));
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let last = text.lines().last().context("no summary")?;
    Ok(serde_json::from_str(last)?)
}

/// Files below a folder whose names begin so.
fn found(dir: &Path, begins: &str) -> Vec<PathBuf> {
    let Ok(entries) = std::fs::read_dir(dir) else {
        return vec![];
    };
    let mut files = vec![];
    for path in entries.filter_map(|e| Some(e.ok()?.path())) {
        if path.is_dir() {
            files.extend(found(&path, begins));
        } else if path
            .file_name()
            .is_some_and(|n| n.to_string_lossy().starts_with(begins))
        {
            files.push(path);
        }
    }
    files.sort();
    files
}

async fn until(what: &str, mut is_so: impl FnMut() -> Result<bool>) -> Result<()> {
    let started = Instant::now();
    while !is_so()? {
        ensure!(started.elapsed() < PATIENCE, "not within {PATIENCE:?}: {what}");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn old_files_go_to_a_folder_and_come_back_in_answers() {
    run().await.unwrap();
}

async fn run() -> Result<()> {
    let store = fresh_folder("store")?;
    let url = format!("file://{}", store.display());
    let more = [
        "--shards",
        "1",
        "--retention",
        "1y",
        "--cold-store",
        &url,
        "--cold-after",
        "1d",
        "--cold-cache-bytes",
        "1MiB",
    ];
    let mut cluster = Cluster::start("cold", PROGRAM, 1, &[&more[..], &["--test-only-small-files"]].concat())?;
    cluster.wait_ready().await?;
    let address = cluster.nodes[0].client;
    let data = cluster.data_dir(0);
    let (now, old) = (now_ms(), now_ms() - 3 * DAY_MS);
    for seq in 1..=6 {
        write(address, seq, old + seq as i64 * 100_000).await?;
    }
    let before = answers(address, old, old + 800_000)?;
    ensure!(
        before.len() > 100_000,
        "there is something to compare: {} bytes",
        before.len()
    );
    storage(address, "compact")?;

    until("the old files are in the store", || {
        let stats = storage(address, "flush")?;
        Ok(stats["cold_segments"].as_u64() >= Some(2) && found(&data, "table-").len() as u64 == stats["cold_segments"])
    })
    .await?;
    // A merge in the background may have made files of which some went before the others were ready.
    let mut seen = 0;
    while seen != found(&store, "segment-").len() {
        seen = found(&store, "segment-").len();
        tokio::time::sleep(Duration::from_secs(8)).await;
    }
    // What is new lies in files of its own: merged with the old, both would stay until the newest row is old.
    write(address, 7, now - 120_000).await?;
    let recent = answers(address, now - 200_000, now)?;
    let objects = found(&store, "segment-");
    let bytes = |files: &[PathBuf]| -> Result<u64> {
        let sizes: std::io::Result<Vec<u64>> = files.iter().map(|f| Ok(f.metadata()?.len())).collect();
        Ok(sizes?.into_iter().sum())
    };
    let own = store.join(cluster.status(0).await?.cluster).join("node-1");
    ensure!(objects.iter().all(|o| o.starts_with(&own)), "{objects:?}");
    let cold_bytes = bytes(&objects)?;
    until("the old files left the data directory", || {
        Ok(found(&data, "segment-").iter().all(|f| {
            objects.iter().all(|o| {
                let name = f
                    .file_name()
                    .map(|n| n.to_string_lossy().into_owned())
                    .unwrap_or_default();
                !o.to_string_lossy().contains(&name)
            })
        }))
    })
    .await?;
    let tables = bytes(&found(&data, "table-"))?;
    ensure!(tables * 4 < cold_bytes, "{tables} bytes of tables stay of {cold_bytes}");
    ensure!(
        answers(address, old, old + 800_000)? == before,
        "another answer from the store"
    );
    let scrub = storage(address, "scrub")?;
    ensure!(scrub["findings"] == 0 && scrub["files_unchecked"] == 0, "{scrub}");
    ensure!(metric(address, "hindcast_storage_cold_bytes").await? == cold_bytes as f64);
    ensure!(metric(address, "hindcast_cold_uploads_total").await? == objects.len() as f64);
    ensure!(metric(address, "hindcast_cold_cache_misses_total").await? > 0.0);
    ensure!(metric(address, "hindcast_cold_failures_total").await? == 0.0);

    cluster.kill(0);
    cluster.spawn(0)?;
    cluster.wait_ready().await?;
    ensure!(
        answers(address, old, old + 800_000)? == before,
        "another answer after a restart"
    );

    away(&mut cluster, &store, (old, now), (&before, &recent)).await?;

    cluster.kill(0);
    cluster.replace_argument(0, "1y", "2d");
    cluster.spawn(0)?;
    cluster.wait_ready().await?;
    until("retention deleted the files in the store", || {
        Ok(found(&store, "segment-").is_empty())
    })
    .await?;
    until("their tables went", || Ok(found(&data, "table-").is_empty())).await?;
    ensure!(
        answers(address, now - 200_000, now)? == recent,
        "what is recent is not what it was"
    );
    std::fs::remove_dir_all(&store)?;
    Ok(())
}

/// The folder is not where it was, from before the node starts until it is back.
async fn away(
    cluster: &mut Cluster,
    store: &Path,
    (old, now): (i64, i64),
    (before, recent): (&str, &str),
) -> Result<()> {
    let address = cluster.nodes[0].client;
    let elsewhere = store.with_extension("elsewhere");
    cluster.kill(0);
    std::fs::rename(store, &elsewhere)?;
    cluster.spawn(0)?;
    cluster.wait_ready().await?;
    ensure!(
        answers(address, now - 200_000, now)? == recent,
        "what is here is read without the store"
    );
    let (from, to) = ((old / 1000).to_string(), (old / 1000 + 800).to_string());
    let output = hindcast(
        address,
        &["query", "cold_noise", "--start", &from, "--end", &to, "--step", "10s"],
    )?;
    let words = said(&output);
    ensure!(
        !output.status.success()
            && words.contains(&format!("file://{}", store.display()))
            && words.contains("segment-"),
        "{words}"
    );
    let _ = std::fs::remove_dir_all(store);
    std::fs::rename(&elsewhere, store)?;
    ensure!(
        answers(address, old, old + 800_000)? == before,
        "another answer when the store is back"
    );
    Ok(())
}

fn fresh_folder(name: &str) -> Result<PathBuf> {
    let dir = std::env::temp_dir().join(format!("hindcast-cold-{name}-{}", std::process::id()));
    let _ = std::fs::remove_dir_all(&dir);
    std::fs::create_dir_all(&dir)?;
    Ok(dir)
}
