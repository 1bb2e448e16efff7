//! Roll-up on a running node: days of samples, a policy that keeps them as windows of five minutes, and the same
//! answers over HTTP from the rows, from windows of rows that are still in memory, and from windows in files.

#![allow(clippy::disallowed_methods, reason = "a test on real processes runs in real time")]

use anyhow::{Context, Result, ensure};
use hindcast_chaos::process::{Cluster, channel, http_get};
use hindcast_chaos::workload::{label, now_ms};
use hindcast_proto::v1;
use hindcast_proto::v1::ingest_client::IngestClient;
use serde_json::Value;
use std::net::SocketAddr;
use std::process::Command;
use std::time::{Duration, Instant};

const PROGRAM: &str = env!("CARGO_BIN_EXE_hindcast-under-test");
const HOUR_MS: i64 = 3_600_000;
const DAYS: i64 = 3;
const SCRAPE_MS: i64 = 15_000;
const HOSTS: usize = 4;
/// The floor is proposed ten seconds after a start, and then once a minute.
const FLOOR_TIMEOUT: Duration = Duration::from_secs(150);

/// A counter that starts anew every seven hours, a gauge of whole numbers, and one of fractions.
fn value(metric: usize, host: usize, at_ms: i64) -> f64 {
    let n = at_ms / SCRAPE_MS;
    let noise = ((n as u64 ^ (host as u64) << 40).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 44) as f64;
    match metric {
        0 => (n % (7 * 240) * (host as i64 + 1)) as f64,
        1 => noise - 500_000.0,
        _ => noise / 1e6,
    }
}

const METRICS: [&str; 3] = ["shop_requests_total", "shop_queue", "shop_load"];

async fn write(address: SocketAddr, seq: u64, times: &[i64]) -> Result<()> {
    let mut ingest = IngestClient::new(channel(address, Duration::from_secs(60)));
    let series = (0..METRICS.len() * HOSTS).map(|i| {
        let (metric, host) = (i / HOSTS, i % HOSTS);
        let point = |at: &i64| v1::Point {
            at_ms: *at,
            value: Some(value(metric, host, *at)),
        };
        v1::Series {
            labels: vec![
                label("__name__", METRICS[metric]),
                label("instance", format!("h{host}:1")),
            ],
            points: times.iter().map(point).collect(),
        }
    });
    let request = v1::WriteRequest {
        writer: "rollup".into(),
        seq,
        series: series.collect(),
        ..v1::WriteRequest::default()
    };
    let answer = ingest.write(request).await?.into_inner();
    ensure!(answer.rejected.is_empty(), "{:?}", answer.rejected);
    Ok(())
}

/// Result and notes of a range query.
async fn ask(address: SocketAddr, expr: &str, start_ms: i64, end_ms: i64, step_ms: i64) -> Result<(Value, Value)> {
    let encoded: String = expr
        .bytes()
        .map(|b| match b {
            b'a'..=b'z' | b'_' | b'0'..=b'9' => char::from(b).to_string(),
            b => format!("%{b:02X}"),
        })
        .collect();
    let path = format!(
        "/api/v1/query_range?query={encoded}&start={}&end={}&step={}",
        start_ms / 1000,
        end_ms / 1000,
        step_ms / 1000
    );
    let answer = http_get(address, &path).await?;
    let body = answer.split_once("\r\n\r\n").context("no body")?.1;
    let body: Value = serde_json::from_str(&body[body.find('{').unwrap_or(0)..=body.rfind('}').unwrap_or(0)])
        .with_context(|| format!("{expr}: {answer}"))?;
    ensure!(
        body["status"] == "success" && body["completeness"]["complete"] == true,
        "{expr}: {body}"
    );
    Ok((body["data"]["result"].clone(), body["infos"].clone()))
}

async fn metric(address: SocketAddr, name: &str) -> Result<f64> {
    let text = http_get(address, "/metrics").await?;
    let values = text
        .lines()
        .filter(|l| l.starts_with(name))
        .filter_map(|l| l.split(' ').next_back());
    Ok(values.filter_map(|v| v.parse::<f64>().ok()).sum())
}

fn storage(address: SocketAddr, work: &str) -> Result<()> {
    let mut command = Command::new(PROGRAM);
    command.args(["storage", work, "--endpoint", &format!("http://{address}")]);
    let output = command.output().context("the command cannot be started")?;
    ensure!(
        output.status.success(),
        "{work}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    Ok(())
}

const EXPRS: [&str; 14] = [
    "rate(shop_requests_total[1h])",
    "increase(shop_requests_total[30m])",
    "sum by (instance) (rate(shop_requests_total[5m]))",
    "delta(shop_queue[1h])",
    "min_over_time(shop_queue[1h])",
    "max_over_time(shop_queue[10m])",
    "avg_over_time(shop_queue[1h])",
    "sum_over_time(shop_queue[2h])",
    "count_over_time(shop_load[1h])",
    "min_over_time(shop_load[1h])",
    "last_over_time(shop_load[5m])",
    "first_over_time(shop_load[15m])",
    "max_over_time(rate(shop_requests_total[10m])[6h:30m])",
    "shop_queue",
];

struct Asking {
    address: SocketAddr,
    start: i64,
    end: i64,
}

impl Asking {
    async fn all(&self) -> Result<Vec<(Value, Value)>> {
        let mut answers = vec![];
        for expr in EXPRS {
            answers.push(ask(self.address, expr, self.start, self.end, HOUR_MS / 2).await?);
        }
        Ok(answers)
    }
}

fn same(before: &[(Value, Value)], after: &[(Value, Value)]) -> Result<()> {
    for ((expr, before), after) in EXPRS.iter().zip(before).zip(after) {
        ensure!(before.0 == after.0, "{expr} was\n{}\nand is\n{}", before.0, after.0);
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn days_that_are_rolled_up_on_a_running_node_answer_as_before() {
    run().await.unwrap();
}

async fn run() -> Result<()> {
    let dir = std::env::temp_dir().join(format!("hindcast-rollup-policy-{}", std::process::id()));
    std::fs::create_dir_all(&dir)?;
    let config = dir.join("hindcast.toml");
    std::fs::write(&config, "")?;
    let args = ["--shards", "2", "--config", config.to_str().context("a path in UTF-8")?];
    let mut cluster = Cluster::start("rollup", PROGRAM, 1, &args)?;
    cluster.wait_ready().await?;
    let address = cluster.nodes[0].client;

    // Days of event time, up to a while ago: a policy comes later, else they would be too late to be taken.
    let last = (now_ms() / HOUR_MS - 1) * HOUR_MS;
    let first = last - DAYS * 24 * HOUR_MS;
    let times: Vec<i64> = (0..DAYS * 24 * HOUR_MS / SCRAPE_MS)
        .map(|i| first + (i + 1) * SCRAPE_MS)
        .collect();
    for (i, part) in times.chunks(240).enumerate() {
        write(address, i as u64 + 1, part).await?;
    }
    storage(address, "flush")?;
    // What comes last stays in memory.
    let more: Vec<i64> = (1..=120).map(|i| last + i * SCRAPE_MS).collect();
    write(address, 1_000_000, &more).await?;

    // From deep below the floor to what is above.
    let asking = Asking {
        address,
        start: first + 6 * HOUR_MS,
        end: last + HOUR_MS / 2,
    };
    let rows = asking.all().await?;
    ensure!(rows.iter().all(|(_, notes)| !notes.to_string().contains("rolled up")));
    ensure!(metric(address, "hindcast_retention_dropped_total").await? == 0.0);

    std::fs::write(
        &config,
        "[[policy]]\nname = \"short\"\nselector = '{__name__=~\"shop_.*\"}'\nkeep = \"1h\"\nkeep_5m = \"30d\"\n",
    )?;
    cluster.kill(0);
    cluster.spawn(0)?;
    cluster.wait_ready().await?;
    let started = Instant::now();
    // The floor is there once answers say that windows were used.
    let windows = loop {
        let answers = asking.all().await?;
        same(&rows, &answers)?;
        if answers[0].1.to_string().contains("whole windows") {
            break answers;
        }
        ensure!(
            started.elapsed() < FLOOR_TIMEOUT,
            "no window after {FLOOR_TIMEOUT:?}\n{}",
            cluster.log_tail(0)
        );
        tokio::time::sleep(Duration::from_secs(1)).await;
    };
    println!("the floor was there after {:?}", started.elapsed());
    same(&rows, &windows)?;
    storage(address, "flush")?;
    storage(address, "compact")?;
    let rolled = asking.all().await?;
    same(&rows, &rolled)?;
    let dropped = metric(address, "hindcast_retention_dropped_total").await?;
    println!(
        "{} rows were written, {dropped} let go",
        times.len() * METRICS.len() * HOSTS
    );
    ensure!(dropped > 0.0, "no row was let go: nothing was rolled up");

    cluster.kill(0);
    cluster.spawn(0)?;
    cluster.wait_ready().await?;
    same(&rows, &asking.all().await?)?;
    std::fs::remove_dir_all(&dir)?;
    Ok(())
}
