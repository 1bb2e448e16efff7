//! Imports against the real server: data directories of real Prometheus processes, compared with what Prometheus itself answers about
//! them, and imports that are killed in the middle.

#![allow(clippy::disallowed_methods, reason = "a test on real processes runs in real time")]

use anyhow::{Context, Result, ensure};
use hindcast_chaos::process::{Cluster, free_addresses, http_get};
use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, SystemTime};

const PROGRAM: &str = env!("CARGO_BIN_EXE_hindcast-under-test");

/// Stops a process when the test ends, however it ends.
struct Stopped(Child);

impl Drop for Stopped {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn unix_now() -> i64 {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
    since.expect("after 1970").as_secs() as i64
}

async fn get(address: SocketAddr, path: &str) -> Result<serde_json::Value> {
    let answer = http_get(address, path).await?;
    let (head, body) = answer.split_once("\r\n\r\n").context("no HTTP answer")?;
    ensure!(head.split(' ').nth(1) == Some("200"), "{path}: {head}\n{body}");
    Ok(serde_json::from_str(body)?)
}

fn encoded(expr: &str) -> String {
    let mut out = String::new();
    for b in expr.bytes() {
        if b.is_ascii_alphanumeric() {
            out.push(char::from(b));
        } else {
            let _ = write!(out, "%{b:02X}");
        }
    }
    out
}

/// Every sample of a metric in a window, by series.
async fn samples(
    address: SocketAddr,
    metric: &str,
    window: &str,
    at: i64,
) -> Result<BTreeMap<String, Vec<(String, u64)>>> {
    let expr = encoded(&format!("{{__name__=\"{metric}\"}}[{window}]"));
    let answer = get(address, &format!("/api/v1/query?query={expr}&time={at}")).await?;
    let mut all = BTreeMap::new();
    for series in answer["data"]["result"].as_array().context("no result")? {
        let Some(values) = series["values"].as_array() else {
            continue;
        };
        let value = |v: &serde_json::Value| -> Result<(String, u64)> {
            let number: f64 = v[1].as_str().context("no value")?.parse()?;
            // The text of NaN does not say which one it is.
            Ok((v[0].to_string(), if number.is_nan() { 0 } else { number.to_bits() }))
        };
        let labels: BTreeMap<String, String> = serde_json::from_value(series["metric"].clone())?;
        all.insert(format!("{labels:?}"), values.iter().map(value).collect::<Result<_>>()?);
    }
    Ok(all)
}

/// Compares every sample of every metric; how many there are.
async fn compare(ours: SocketAddr, theirs: SocketAddr, window: &str, at: i64) -> Result<usize> {
    let names = get(theirs, "/api/v1/label/__name__/values?start=0").await?;
    let mut compared = 0;
    for name in names["data"].as_array().context("no names")? {
        let name = name.as_str().context("no name")?;
        let (a, b) = (
            samples(ours, name, window, at).await?,
            samples(theirs, name, window, at).await?,
        );
        for (series, rows) in &b {
            let ours = a.get(series).with_context(|| format!("{series} is missing"))?;
            ensure!(
                ours == rows,
                "{series}: {} samples here, {} there, or others",
                ours.len(),
                rows.len()
            );
            compared += rows.len();
        }
        // Native histograms of theirs have no values of their own.
        ensure!(
            b.is_empty() || a.len() == b.len(),
            "{name}: {} series here, {} there",
            a.len(),
            b.len()
        );
    }
    Ok(compared)
}

fn prometheus(dir: &Path, data: &Path, listen: SocketAddr, config: &str, more: &[&str]) -> Result<Stopped> {
    let config_file = dir.join("prometheus.yml");
    std::fs::write(&config_file, config)?;
    let started = Command::new("prometheus")
        .arg(format!("--config.file={}", config_file.display()))
        .arg(format!("--storage.tsdb.path={}", data.display()))
        .arg(format!("--web.listen-address={listen}"))
        .args(more)
        .stdout(Stdio::null())
        .stderr(std::fs::File::create(
            dir.join(format!("prometheus-{}.log", listen.port())),
        )?)
        .spawn()
        .context("prometheus is missing: apt-get install prometheus")?;
    Ok(Stopped(started))
}

async fn answers(address: SocketAddr) -> Result<()> {
    for _ in 0..300 {
        if http_get(address, "/-/ready").await.is_ok_and(|a| a.contains(" 200 ")) {
            return Ok(());
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    anyhow::bail!("{address} was not ready within half a minute")
}

fn copy(from: &Path, to: &Path) -> Result<()> {
    let done = Command::new("cp").arg("-r").arg(from).arg(to).status()?;
    ensure!(done.success(), "cannot copy {}", from.display());
    Ok(())
}

struct Importer {
    ours: SocketAddr,
    progress: PathBuf,
}

impl Importer {
    fn command(&self, format: &str, file: &Path, more: &[&str]) -> Command {
        let mut command = Command::new(PROGRAM);
        command
            .args([
                "import",
                "--endpoint",
                &format!("http://{}", self.ours),
                "--format",
                format,
                "-o",
                "json",
            ])
            .arg("--progress-dir")
            .arg(&self.progress)
            .args(more)
            .arg(file);
        command
    }

    fn run(&self, format: &str, file: &Path, more: &[&str]) -> Result<(Output, serde_json::Value)> {
        let output = self.command(format, file, more).output()?;
        let said = String::from_utf8_lossy(&output.stdout).into_owned();
        let report = serde_json::from_str(&said)
            .with_context(|| format!("{said}{}", String::from_utf8_lossy(&output.stderr)))?;
        Ok((output, report))
    }

    /// Kills it a few times once it has confirmed something, then lets it end. The report, and how often it was killed.
    async fn run_killed(&self, format: &str, file: &Path) -> Result<(serde_json::Value, u64)> {
        let mut killed = 0;
        for round in 0..4 {
            let before = self.saved();
            let mut child = self
                .command(format, file, &[])
                .stdout(Stdio::null())
                .stderr(Stdio::null())
                .spawn()?;
            // More is confirmed than before, and not all.
            for _ in 0..2000 {
                if self.saved() != before || child.try_wait()?.is_some() {
                    break;
                }
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
            tokio::time::sleep(Duration::from_millis(20 * round)).await;
            if child.try_wait()?.is_none() {
                child.kill()?;
                killed += 1;
            }
            child.wait()?;
        }
        let (output, report) = self.run(format, file, &[])?;
        ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        Ok((report, killed))
    }

    fn saved(&self) -> Vec<Vec<u8>> {
        let files = std::fs::read_dir(&self.progress).into_iter().flatten().flatten();
        files.filter_map(|f| std::fs::read(f.path()).ok()).collect()
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs Debian's prometheus: `cargo xtask prove clients` runs it"]
async fn a_prometheus_is_imported_whole_also_by_an_import_that_is_killed() {
    run().await.unwrap();
}

async fn run() -> Result<()> {
    let mut cluster = Cluster::start("import", PROGRAM, 1, &[])?;
    cluster.wait_ready().await?;
    let dir = cluster.data_dir(0);
    let importer = Importer {
        ours: cluster.nodes[0].client,
        progress: dir.join("progress"),
    };
    // A live one begins now, so that it has cut blocks when the rest is done.
    let live = free_addresses(1)?[0];
    let live_dir = dir.join("live");
    let config = format!(
        "global: {{scrape_interval: 1s}}\nscrape_configs: [{{job_name: self, static_configs: [{{targets: ['{live}']}}]}}]\n"
    );
    let cut = [
        "--storage.tsdb.min-block-duration=15s",
        "--storage.tsdb.max-block-duration=1m",
    ];
    let running = prometheus(&dir, &live_dir, live, &config, &cut)?;
    let began = tokio::time::Instant::now();

    blocks(&importer, &dir).await.context("blocks of promtool")?;
    lines(&importer, &dir).await.context("lines")?;

    // Prometheus looks once a minute whether there is a block to cut.
    tokio::time::sleep_until(began + Duration::from_secs(75)).await;
    let copied = dir.join("copied");
    copy(&live_dir, &copied)?;
    let at = unix_now() + 1;
    drop(running);
    let (output, report) = importer.run("tsdb", &copied, &[])?;
    ensure!(output.status.success(), "{report}");
    ensure!(
        report["tsdb"]["blocks"].as_u64() > Some(0),
        "no block was cut: {report}"
    );
    let reopened = dir.join("reopened");
    copy(&copied, &reopened)?;
    let theirs = free_addresses(1)?[0];
    let _reader = prometheus(&dir, &reopened, theirs, "", &[])?;
    answers(theirs).await?;
    let compared = compare(importer.ours, theirs, "10m", at)
        .await
        .context("a copy of a live one")?;
    ensure!(compared > 10_000, "only {compared} samples");
    println!(
        "a copy of a live Prometheus: {compared} samples, each bit; {}",
        report["tsdb"]
    );
    Ok(())
}

async fn blocks(importer: &Importer, dir: &Path) -> Result<()> {
    let now = unix_now();
    let text = dir.join("samples.txt");
    let mut page = String::new();
    let mut samples = 0;
    for metric in ["a_gauge", "b_gauge"] {
        writeln!(page, "# TYPE {metric} gauge")?;
        for series in 0..100 {
            for i in 0..2_000i64 {
                let value = match (series * 7 + i) % 11 {
                    0 => "NaN".to_owned(),
                    1 => "-0".to_owned(),
                    2 => "+Inf".to_owned(),
                    n => (n as f64 * 0.1 * i as f64).to_string(),
                };
                writeln!(
                    page,
                    "{metric}{{series=\"{series}\",text=\"a b\"}} {value} {}",
                    now - 40_000 + 15 * i
                )?;
                samples += 1;
            }
        }
    }
    page += "# EOF\n";
    std::fs::write(&text, page)?;
    let made = dir.join("blocks");
    let tool = Command::new("promtool")
        .args(["tsdb", "create-blocks-from", "openmetrics"])
        .args([&text, &made])
        .output()
        .context("promtool is missing: apt-get install prometheus")?;
    ensure!(tool.status.success(), "{}", String::from_utf8_lossy(&tool.stderr));
    let (report, killed) = importer.run_killed("tsdb", &made).await?;
    ensure!(killed > 0, "it was done before it could be killed");
    ensure!(report["resumed"].as_u64() > Some(0), "{report}");
    // Each run repeats no more than what of one series was sent, and one batch that was not confirmed.
    let told = report["tsdb"]["samples"].as_u64().context("no samples")?;
    let sent = report["samples_acked"].as_u64().context("no samples")?;
    ensure!(
        told == samples && sent >= told && sent <= told + killed * 12_000,
        "{report}"
    );
    let theirs = free_addresses(1)?[0];
    let reopened = dir.join("blocks-reopened");
    copy(&made, &reopened)?;
    let _reader = prometheus(dir, &reopened, theirs, "", &["--storage.tsdb.retention.time=90d"])?;
    answers(theirs).await?;
    let compared = compare(importer.ours, theirs, "12h", now).await?;
    ensure!(compared as u64 == samples, "{compared} of {samples}");
    println!("blocks of promtool: {samples} samples, each bit, after {killed} kills; {sent} sent");

    // One bit of one chunk.
    let block = std::fs::read_dir(&made)?.next().context("no block")??.path();
    let file = block.join("chunks/000001");
    let mut bytes = std::fs::read(&file)?;
    let middle = bytes.len() / 2;
    bytes[middle] ^= 4;
    std::fs::write(&file, bytes)?;
    let (output, report) = importer.run("tsdb", &made, &["--tenant", "damaged"])?;
    ensure!(output.status.code() == Some(1) && report["damaged"] == 1, "{report}");
    let named = report["found"][0].as_str().context("nothing is named")?;
    ensure!(
        named.contains("chunks/000001 at byte ") && named.contains("checksum"),
        "{named}"
    );
    let told = report["tsdb"]["samples"].as_u64().context("no samples")?;
    ensure!(
        (samples - 120..samples).contains(&told),
        "{told} of {samples} samples are left"
    );
    println!("a flipped bit: {named}; {told} of {samples} samples imported");
    Ok(())
}

/// Lines, which nothing overwrites: each must be there once.
async fn lines(importer: &Importer, dir: &Path) -> Result<()> {
    let now = unix_now();
    let path = dir.join("lines.jsonl");
    let mut file = String::new();
    let lines = 60_000;
    for i in 0..lines {
        let ts = i128::from(now - 3_000) * 1_000_000_000 + i * 1_000_000;
        writeln!(
            file,
            "{{\"ts\":{ts},\"line\":\"line {i} of the file\",\"labels\":{{\"job\":\"import\"}}}}"
        )?;
    }
    std::fs::write(&path, file)?;
    let (report, killed) = importer.run_killed("jsonl", &path).await?;
    ensure!(killed > 0, "it was done before it could be killed");
    ensure!(report["lines_acked"] == lines as u64, "{report}");
    let expr = encoded("sum(count_over_time({job=\"import\"}[2h]))");
    let answer = get(importer.ours, &format!("/loki/api/v1/query?query={expr}&time={now}")).await?;
    let stored = answer["data"]["result"][0]["value"][1]
        .as_str()
        .context("no count")?
        .to_owned();
    ensure!(stored == lines.to_string(), "{stored} of {lines} lines are stored");
    println!("lines: {stored} stored once each, after {killed} kills");
    Ok(())
}
