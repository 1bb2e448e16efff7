//! Reads that do not wait for a leader: at once and nearly new while all is well, and with a growing age once the other nodes are
//! dead. And `/metrics` of a real node against the document that lists it.

#![allow(clippy::disallowed_methods, reason = "a test on real processes runs in real time")]

use anyhow::{Context, Result, ensure};
use hindcast_chaos::process::{Cluster, channel, http_get};
use hindcast_chaos::workload::{label, now_ms};
use hindcast_proto::edge::CONSISTENCY_KEY;
use hindcast_proto::v1;
use hindcast_proto::v1::ingest_client::IngestClient;
use hindcast_proto::v1::query_client::QueryClient;
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

const PROGRAM: &str = env!("CARGO_BIN_EXE_hindcast-under-test");
const METRICS_DOC: &str = include_str!("../../../ops/hindcast/METRICS.md");
/// Told only where there is a cold store.
const ABSENT: [&str; 3] = [
    "hindcast_cold_cache_hits_total",
    "hindcast_cold_cache_misses_total",
    "hindcast_cold_cache_bytes",
];

async fn ask(
    node: SocketAddr,
    at_ms: i64,
    consistency: Option<&'static str>,
) -> Result<v1::QueryResponse, tonic::Status> {
    let mut request = tonic::Request::new(v1::InstantRequest {
        expr: "sum(stale_try)".to_owned(),
        at_ms,
    });
    if let Some(consistency) = consistency {
        request
            .metadata_mut()
            .insert(CONSISTENCY_KEY, consistency.parse().unwrap());
    }
    let client = QueryClient::new(channel(node, Duration::from_secs(30)));
    client.clone().instant(request).await.map(tonic::Response::into_inner)
}

fn value(answer: &v1::QueryResponse) -> Option<f64> {
    answer.series.first()?.points.first().map(v1::ResultPoint::value)
}

/// Name to (kind, words), as the document has it.
fn documented() -> BTreeMap<&'static str, (&'static str, &'static str)> {
    let rows = METRICS_DOC.lines().filter_map(|l| l.strip_prefix("| `"));
    rows.filter_map(|row| {
        let (name, rest) = row.split_once("` | ")?;
        let (kind, help) = rest.strip_suffix(" |")?.split_once(" | ")?;
        Some((name, (kind, help)))
    })
    .collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stale_read_answers_at_once_and_says_how_old_it_is() -> Result<()> {
    let mut cluster = Cluster::start("stale", PROGRAM, 3, &[])?;
    cluster.wait_ready().await?;
    let nodes = cluster.addresses();
    let at_ms = now_ms();
    let series = (0..20).map(|i| v1::Series {
        labels: vec![
            label("__name__", "stale_try"),
            label("n", i),
            label("instance", format!("h{i}")),
        ],
        points: vec![v1::Point {
            at_ms,
            value: Some(f64::from(i)),
        }],
    });
    let request = v1::WriteRequest {
        writer: "stale".to_owned(),
        seq: 1,
        series: series.collect(),
        ..Default::default()
    };
    IngestClient::new(channel(nodes[0], Duration::from_secs(30)))
        .write(request)
        .await?;

    // All is well: each node has it, and knows about how old it is. Linearizable answers say nothing of an age.
    for node in &nodes {
        let fresh = ask(*node, at_ms, None).await?;
        let seen = fresh.completeness.clone().context("no completeness")?;
        ensure!(
            value(&fresh) == Some(190.0) && !seen.stale && seen.age_ms.is_none(),
            "{fresh:?}"
        );
        ensure!(!seen.positions.is_empty(), "no positions");
        let stale = ask(*node, at_ms, Some("stale-ok")).await?;
        let seen = stale.completeness.clone().context("no completeness")?;
        ensure!(value(&stale) == Some(190.0) && seen.stale && seen.complete, "{stale:?}");
        ensure!(
            seen.age_ms.is_some_and(|ms| ms < 5_000) && !seen.positions.is_empty(),
            "{seen:?}"
        );
    }
    let refused = ask(nodes[0], at_ms, Some("sometimes"))
        .await
        .err()
        .context("it was taken")?;
    ensure!(refused.code() == tonic::Code::InvalidArgument, "{refused}");
    let http = http_get(
        nodes[1],
        &format!(
            "/api/v1/query?query=sum(stale_try)&time={}&consistency=stale-ok",
            at_ms as f64 / 1000.0
        ),
    )
    .await?;
    ensure!(
        http.contains("\"stale\":true,\"age_ms\":") && http.contains("\"positions\":{\"1\":"),
        "{http}"
    );
    let http = http_get(nodes[1], "/api/v1/query?query=up&consistency=sometimes").await?;
    ensure!(http.contains("neither linearizable nor stale-ok"), "{http}");

    // The document is true.
    let told = http_get(nodes[0], "/metrics").await?;
    let documented = documented();
    let mut seen = BTreeMap::new();
    for line in told.lines() {
        if let Some((name, help)) = line.strip_prefix("# HELP ").and_then(|l| l.split_once(' ')) {
            let (_, words) = documented
                .get(name)
                .with_context(|| format!("{name} is not documented"))?;
            ensure!(help == *words, "{name}: {help}");
            ensure!(seen.insert(name, ()).is_none(), "{name} is told in two places");
        } else if let Some((name, kind)) = line.strip_prefix("# TYPE ").and_then(|l| l.split_once(' ')) {
            ensure!(documented.get(name).is_some_and(|(k, _)| *k == kind), "{name}: {kind}");
        }
    }
    for name in documented.keys().filter(|n| !ABSENT.contains(n)) {
        ensure!(seen.contains_key(name), "{name} is documented, and not told");
    }

    // Nobody to ask any more: the linearizable read fails, the other one grows old.
    cluster.kill(0);
    cluster.kill(1);
    let fresh = ask(nodes[2], at_ms, None).await;
    let whole = fresh.is_ok_and(|a| a.completeness.is_some_and(|c| c.complete));
    ensure!(!whole, "a node without a majority gave a linearizable answer");
    let started = Instant::now();
    let stale = ask(nodes[2], at_ms, Some("stale-ok")).await?;
    let first = stale.completeness.clone().context("no completeness")?;
    ensure!(
        value(&stale) == Some(190.0) && first.stale && first.complete,
        "{stale:?}"
    );
    ensure!(
        started.elapsed() < Duration::from_secs(2),
        "it waited for {:?}",
        started.elapsed()
    );
    tokio::time::sleep(Duration::from_secs(1)).await;
    let later = ask(nodes[2], at_ms, Some("stale-ok"))
        .await?
        .completeness
        .context("no completeness")?;
    ensure!(
        later.age_ms >= first.age_ms.map(|ms| ms + 900),
        "{first:?}, then {later:?}"
    );
    Ok(())
}
