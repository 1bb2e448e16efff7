//! Real clients against the real server: Prometheus as remote writer, as judge of our answers, as remote reader and as one that scrapes
//! what we have, and promtool.

#![allow(clippy::disallowed_methods, reason = "a test on real processes runs in real time")]

use anyhow::{Context, Result, ensure};
use hindcast_chaos::process::{Cluster, free_addresses};
use std::net::SocketAddr;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant, SystemTime};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

const PROGRAM: &str = env!("CARGO_BIN_EXE_hindcast-under-test");

/// Stops a process when the test ends, however it ends.
struct Stopped(Child);

impl Drop for Stopped {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn installed(program: &str) -> Result<()> {
    let found = Command::new(program)
        .arg("--version")
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status();
    found
        .map(|_| ())
        .with_context(|| format!("{program} is missing: apt-get install prometheus"))
}

/// GET over HTTP/1.0, so that the body simply ends with the connection.
async fn get(address: SocketAddr, path: &str) -> Result<String> {
    let mut stream = tokio::net::TcpStream::connect(address).await?;
    stream
        .write_all(format!("GET {path} HTTP/1.0\r\nHost: {address}\r\n\r\n").as_bytes())
        .await?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await?;
    let (head, body) = answer.split_once("\r\n\r\n").context("no HTTP answer")?;
    ensure!(head.split(' ').nth(1) == Some("200"), "{path}: {head}\n{body}");
    Ok(body.to_owned())
}

fn encoded(expr: &str) -> String {
    expr.bytes()
        .map(|b| {
            if b.is_ascii_alphanumeric() {
                (b as char).to_string()
            } else {
                format!("%{b:02X}")
            }
        })
        .collect()
}

/// The answer of a server as (labels, value), sorted.
async fn ask(address: SocketAddr, expr: &str, at: f64) -> Result<Vec<(String, f64)>> {
    let body = get(address, &format!("/api/v1/query?query={}&time={at}", encoded(expr))).await?;
    let json: serde_json::Value = serde_json::from_str(&body)?;
    let rows = json["data"]["result"].as_array().context("no result")?;
    let row = |r: &serde_json::Value| -> Result<(String, f64)> {
        let value = r["value"][1].as_str().context("no value")?;
        Ok((r["metric"].to_string(), value.parse()?))
    };
    let mut rows = rows.iter().map(row).collect::<Result<Vec<_>>>()?;
    rows.sort_by(|a, b| a.0.cmp(&b.0));
    Ok(rows)
}

fn unix_now() -> f64 {
    SystemTime::now()
        .duration_since(SystemTime::UNIX_EPOCH)
        .expect("after 1970")
        .as_secs_f64()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs Debian's prometheus: `cargo xtask prove clients` runs it"]
async fn prometheus_writes_to_us_and_gets_its_own_answers_back() {
    run().await.unwrap();
}

async fn run() -> Result<()> {
    installed("prometheus")?;
    installed("promtool")?;
    let mut cluster = Cluster::start("clients", PROGRAM, 1, &[])?;
    cluster.wait_ready().await?;
    let ours = cluster.nodes[0].client;
    let theirs = free_addresses(1)?[0];
    let dir = cluster.data_dir(0);
    let config = format!(
        "global: {{scrape_interval: 1s}}\n\
         scrape_configs: [{{job_name: prometheus, static_configs: [{{targets: ['{theirs}']}}]}}]\n\
         remote_write: [{{url: 'http://{ours}/api/v1/write', queue_config: {{batch_send_deadline: 200ms}}}}]\n"
    );
    let _prometheus = prometheus(&dir, "prometheus", &config, theirs)?;
    let started = Instant::now();
    while ask(ours, "count(up)", unix_now()).await?.is_empty() {
        ensure!(
            started.elapsed() < Duration::from_secs(60),
            "nothing arrived by remote write within a minute"
        );
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    tokio::time::sleep(Duration::from_secs(25)).await;
    // A time that both have whole: what is on its way arrives meanwhile.
    let at = unix_now().floor() - 3.0;
    let queries = [
        "up",
        "prometheus_tsdb_head_series",
        "sum by (code) (prometheus_http_requests_total)",
        "max_over_time(go_goroutines[10s])",
        "count by (job) ({__name__=~\"go_.+\"})",
        "topk(2, prometheus_tsdb_head_chunks)",
        "process_resident_memory_bytes / 1024 > bool 5",
        "sum(scrape_samples_scraped) by (instance)",
    ];
    for query in queries {
        let (a, b) = (ask(ours, query, at).await?, ask(theirs, query, at).await?);
        ensure!(!b.is_empty(), "{query} has no answer to compare with");
        ensure!(
            a.len() == b.len(),
            "{query}: {} series here, {} there",
            a.len(),
            b.len()
        );
        for (x, y) in a.iter().zip(&b) {
            ensure!(
                x.0 == y.0 && (x.1 - y.1).abs() <= 1e-9 * y.1.abs().max(1.0),
                "{query}: {x:?} here, {y:?} there"
            );
        }
        println!("{query}: {} series, equal", a.len());
    }
    let tool = Command::new("promtool")
        .args(["query", "instant", &format!("http://{ours}"), "up"])
        .output()?;
    let said = String::from_utf8_lossy(&tool.stdout);
    ensure!(tool.status.success() && said.contains("up{"), "promtool: {said}");
    println!("promtool query instant: {}", said.trim());
    read_back(ours, &dir, at, &queries).await
}

/// A Prometheus of its own, which has nothing but what it reads and scrapes here.
async fn read_back(ours: SocketAddr, dir: &Path, at: f64, queries: &[&str]) -> Result<()> {
    let reader = free_addresses(1)?[0];
    let config = format!(
        "global: {{scrape_interval: 1s}}\n\
         remote_read: [{{url: 'http://{ours}/api/v1/read', read_recent: true}}]\n\
         scrape_configs: [{{job_name: federate, honor_labels: true, metrics_path: /federate, \
         params: {{'match[]': ['{{job=\"prometheus\"}}']}}, static_configs: [{{targets: ['{ours}']}}]}}]\n"
    );
    let _prometheus = prometheus(dir, "reader", &config, reader)?;
    let started = Instant::now();
    let scraped = "scrape_samples_scraped{job=\"federate\"} > 100";
    loop {
        match ask(reader, scraped, unix_now()).await {
            Ok(found) if !found.is_empty() => break,
            last => ensure!(
                started.elapsed() < Duration::from_secs(60),
                "nothing was scraped from /federate within a minute: {last:?}"
            ),
        }
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    for query in queries {
        let (a, b) = (ask(ours, query, at).await?, ask(reader, query, at).await?);
        ensure!(!b.is_empty() && a == b, "{query}: {a:?} here, {b:?} read back");
    }
    println!("remote read: {} queries, each bit; /federate is scraped", queries.len());
    Ok(())
}

/// A Prometheus that runs until it is dropped.
fn prometheus(dir: &Path, name: &str, config: &str, listen: SocketAddr) -> Result<Stopped> {
    let config_file = dir.join(format!("{name}.yml"));
    std::fs::write(&config_file, config)?;
    let started = Command::new("prometheus")
        .arg(format!("--config.file={}", config_file.display()))
        .arg(format!(
            "--storage.tsdb.path={}",
            dir.join(format!("{name}-tsdb")).display()
        ))
        .arg(format!("--web.listen-address={listen}"))
        .stdout(Stdio::null())
        .stderr(std::fs::File::create(dir.join(format!("{name}.log")))?)
        .spawn()?;
    Ok(Stopped(started))
}
