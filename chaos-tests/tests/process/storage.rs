//! `hindcast storage` against a real node that goes on serving: flush, compact, scrub, and damage that a scrub finds.

#![allow(clippy::disallowed_methods, reason = "a test on real processes runs in real time")]

use anyhow::{Context, Result, ensure};
use hindcast_chaos::process::{Cluster, channel, metric};
use hindcast_chaos::workload::{label, now_ms};
use hindcast_proto::v1;
use hindcast_proto::v1::cluster_client::ClusterClient;
use hindcast_proto::v1::ingest_client::IngestClient;
use std::net::SocketAddr;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::{Duration, Instant};

const PROGRAM: &str = env!("CARGO_BIN_EXE_hindcast-under-test");
const SAMPLES: i64 = 3000;
const HOSTS: u64 = 40;

/// Numbers that do not pack well, so that there are bytes to check.
fn noise(seed: u64) -> f64 {
    f64::from_bits(0x3ff0_0000_0000_0000 | (seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 12))
}

async fn write(address: SocketAddr, round: i64) -> Result<()> {
    let mut ingest = IngestClient::new(channel(address, Duration::from_secs(20)));
    let series = (0..HOSTS).map(|h| v1::Series {
        labels: vec![label("__name__", "node_noise"), label("instance", format!("h{h}:1"))],
        points: (0..SAMPLES / HOSTS as i64)
            .map(|i| v1::Point {
                at_ms: now_ms() - 3_600_000 + round * 10_000 + i,
                value: Some(noise(h * 1_000_003 + (round * SAMPLES + i) as u64)),
            })
            .collect(),
    });
    let request = v1::WriteRequest {
        writer: "storage".into(),
        seq: round as u64 + 1,
        resource: vec![],
        series: series.collect(),
        ..v1::WriteRequest::default()
    };
    let answer = ingest.write(request).await?.into_inner();
    ensure!(answer.rejected.is_empty(), "{:?}", answer.rejected);
    Ok(())
}

fn storage(address: SocketAddr, args: &[&str]) -> Result<Output> {
    let endpoint = format!("http://{address}");
    let mut command = Command::new(PROGRAM);
    command.arg("storage").args(args).args(["--endpoint", &endpoint]);
    command.output().context("the command cannot be started")
}

/// The JSON lines of a command.
fn events(output: &Output) -> Result<Vec<serde_json::Value>> {
    let text = String::from_utf8_lossy(&output.stdout);
    let lines = text.lines().map(|l| serde_json::from_str(l).context(l.to_owned()));
    lines.collect()
}

fn said(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

fn segments(cluster: &Cluster) -> Result<Vec<PathBuf>> {
    let mut found = vec![];
    for dir in std::fs::read_dir(cluster.data_dir(0))? {
        let dir = dir?.path();
        let is_shard = dir
            .file_name()
            .is_some_and(|n| n.to_string_lossy().starts_with("shard-"));
        if !is_shard {
            continue;
        }
        for file in std::fs::read_dir(dir)? {
            let file = file?.path();
            if file
                .file_name()
                .is_some_and(|n| n.to_string_lossy().starts_with("segment-"))
            {
                found.push(file);
            }
        }
    }
    found.sort();
    Ok(found)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_live_node_flushes_compacts_and_finds_damage_while_it_serves() {
    run().await.unwrap();
}

/// A byte goes bad on the disk, under a living node.
fn damage(path: &Path) -> Result<u64> {
    let file = std::fs::OpenOptions::new().read(true).write(true).open(path)?;
    let at = file.metadata()?.len() / 3;
    let mut byte = [0];
    file.read_exact_at(&mut byte, at)?;
    file.write_all_at(&[byte[0] ^ 0x10], at)?;
    file.sync_all()?;
    Ok(at)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_finds_by_itself_what_went_bad_on_its_disk() {
    find_alone().await.unwrap();
}

async fn find_alone() -> Result<()> {
    let mut cluster = Cluster::start("daily", PROGRAM, 1, &["--shards", "1", "--test-only-small-files"])?;
    cluster.wait_ready().await?;
    let address = cluster.nodes[0].client;
    write(address, 0).await?;
    let flush = storage(address, &["flush"])?;
    ensure!(flush.status.code() == Some(0), "{}", said(&flush));
    let started = Instant::now();
    while metric(address, "hindcast_scrub_bytes_total").await? == 0.0 {
        ensure!(started.elapsed() < Duration::from_secs(20), "nothing is read by itself");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    ensure!(
        metric(address, "hindcast_scrub_findings_total").await? == 0.0,
        "nothing is wrong yet"
    );
    damage(&segments(&cluster)?.pop().context("no segment")?)?;
    let started = Instant::now();
    while metric(address, "hindcast_scrub_findings_total").await? == 0.0 {
        ensure!(started.elapsed() < Duration::from_secs(20), "the damage is not found");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    ensure!(cluster.status(0).await?.ready, "the node is not ready any more");
    Ok(())
}

async fn run() -> Result<()> {
    let mut cluster = Cluster::start("storage", PROGRAM, 1, &["--shards", "2"])?;
    cluster.wait_ready().await?;
    let address = cluster.nodes[0].client;
    for round in 0..5 {
        write(address, round).await?;
        let flush = storage(address, &["flush", "-o", "json"])?;
        ensure!(flush.status.code() == Some(0), "{}", said(&flush));
        let summary = events(&flush)?.pop().context("no summary")?;
        ensure!(summary["event"] == "summary" && summary["shards"] == 2, "{summary}");
        ensure!(
            summary["segments"].as_u64() >= Some(1),
            "nothing was written: {summary}"
        );
    }

    let compact = storage(address, &["compact", "-o", "json"])?;
    ensure!(compact.status.code() == Some(0), "{}", said(&compact));
    let events_of_compact = events(&compact)?;
    let merging = events_of_compact.iter().any(|e| e["state"] == "merging");
    let done = events_of_compact.iter().filter(|e| e["state"] == "done").count();
    ensure!(merging && done == 2, "{events_of_compact:?}");
    let after = events_of_compact.last().context("no summary")?["segments"]
        .as_u64()
        .context("no number")?;
    ensure!(
        after == segments(&cluster)?.len() as u64 || after > 0,
        "{after} segments"
    );

    let scrub = storage(address, &["scrub"])?;
    ensure!(scrub.status.code() == Some(0), "{}", said(&scrub));
    ensure!(
        String::from_utf8_lossy(&scrub.stdout).contains(" 0 damaged places"),
        "{}",
        String::from_utf8_lossy(&scrub.stdout)
    );

    // Slow enough to be met by a second one, and to see that the node goes on.
    let slow = tokio::spawn(scrub_slowly(address));
    tokio::time::sleep(Duration::from_millis(300)).await;
    let second = storage(address, &["scrub"])?;
    ensure!(
        second.status.code() == Some(1) && said(&second).contains("runs already"),
        "{}",
        said(&second)
    );
    write(address, 5).await?;
    // Dropping the call ends the first scrub.
    slow.abort();
    let _ = slow.await;

    let victim = segments(&cluster)?.pop().context("no segment")?;
    let at = damage(&victim)?;
    let found = scrub_until_free(address).await?;
    ensure!(found.status.code() == Some(1), "{found:?}");
    ensure!(said(&found).contains("scrub-findings.md"), "{}", said(&found));
    let events_found = events(&found)?;
    let findings: Vec<_> = events_found.iter().filter(|e| e["event"] == "finding").collect();
    ensure!(findings.len() == 1, "{findings:?}");
    let f = findings[0];
    let name = victim.file_name().context("a name")?.to_string_lossy().into_owned();
    ensure!(f["file"].as_str().is_some_and(|p| p.ends_with(&name)), "{f}");
    let (from, to) = (f["from"].as_u64().context("from")?, f["to"].as_u64().context("to")?);
    ensure!(from <= at && at < to, "{at} is not in {f}");
    ensure!(f["next"].as_str().is_some_and(|n| n.contains("export")), "{f}");
    // It told, and it serves on.
    write(address, 6).await?;
    ensure!(cluster.status(0).await?.ready, "the node is not ready any more");

    let wrong = storage(address, &["scrub", "--shard", "99"])?;
    ensure!(
        wrong.status.code() == Some(2) && said(&wrong).contains("it has 1, 2"),
        "{}",
        said(&wrong)
    );
    cluster.kill(0);
    let gone = storage(address, &["flush"])?;
    ensure!(gone.status.code() == Some(3), "{}", said(&gone));
    Ok(())
}

/// 10,000 bytes per second, and every message of it.
async fn scrub_slowly(address: SocketAddr) -> Result<()> {
    let mut cluster = ClusterClient::new(channel(address, Duration::from_secs(60)));
    let request = v1::MaintainRequest {
        work: v1::maintain_request::Work::Scrub.into(),
        groups: vec![],
        bytes_per_second_max: 10_000,
    };
    let mut progress = cluster.maintain(request).await?.into_inner();
    while progress.message().await?.is_some() {}
    Ok(())
}

/// The scrub whose caller went away ends at its next piece.
async fn scrub_until_free(address: SocketAddr) -> Result<Output> {
    let started = Instant::now();
    loop {
        let output = storage(address, &["scrub", "-o", "json"])?;
        if !said(&output).contains("runs already") {
            return Ok(output);
        }
        ensure!(
            started.elapsed() < Duration::from_secs(10),
            "the scrub that nobody listens to goes on"
        );
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}
