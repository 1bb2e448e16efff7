//! Scraping with real nodes: a small exporter in the test, three nodes that share its targets while one is killed, and Debian's
//! prometheus-node-exporter, read back in PromQL.

#![allow(clippy::disallowed_methods, reason = "a test on real processes runs in real time")]

use anyhow::{Context, Result, ensure};
use hindcast_chaos::process::{Cluster, free_addresses, http_get};
use serde_json::Value;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener};
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

const PROGRAM: &str = env!("CARGO_BIN_EXE_hindcast-under-test");
const PATIENCE: Duration = Duration::from_secs(90);

/// Counts how often it is asked, and tells.
fn exporter() -> Result<(SocketAddr, Arc<AtomicU64>)> {
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let (address, asked) = (listener.local_addr()?, Arc::new(AtomicU64::new(0)));
    let counter = asked.clone();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let Ok(mut stream) = stream else { continue };
            let counter = counter.clone();
            std::thread::spawn(move || {
                let mut buffer = [0; 4096];
                let _ = stream.read(&mut buffer);
                let n = counter.fetch_add(1, Ordering::SeqCst) + 1;
                // The second series is there in the first five pages only.
                let passing = if n <= 5 { "shop_passing 1\n" } else { "" };
                let page = format!("# TYPE shop_asked_total counter\nshop_asked_total {n}\n{passing}");
                let _ = write!(
                    stream,
                    "HTTP/1.1 200 OK\r\nContent-Type: text/plain; version=0.0.4\r\nConnection: close\r\nContent-Length: {}\r\n\r\n{page}",
                    page.len()
                );
            });
        }
    });
    Ok((address, asked))
}

/// A folder that goes with the test.
struct Folder(PathBuf);

impl Folder {
    fn new(name: &str) -> Result<Self> {
        let dir = std::env::temp_dir().join(format!("hindcast-{name}-{}", std::process::id()));
        let _ = std::fs::remove_dir_all(&dir);
        std::fs::create_dir_all(&dir)?;
        Ok(Self(dir))
    }

    fn write(&self, name: &str, text: &str) -> Result<String> {
        let path = self.0.join(name);
        std::fs::write(&path, text)?;
        Ok(path.display().to_string())
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

fn escaped(text: &str) -> String {
    text.bytes().map(|b| format!("%{b:02X}")).collect()
}

/// The body of an answer, read as JSON.
async fn json(node: SocketAddr, path: &str) -> Result<Value> {
    let answer = http_get(node, path).await?;
    let (_, body) = answer.split_once("\r\n\r\n").context("no answer")?;
    Ok(serde_json::from_str(body)?)
}

/// The values of an instant query, by the label `instance`.
async fn query(node: SocketAddr, expr: &str) -> Result<Vec<(String, f64)>> {
    let answer = json(node, &format!("/api/v1/query?query={}", escaped(expr))).await?;
    ensure!(answer["status"] == "success", "{expr}: {answer}");
    let rows = answer["data"]["result"].as_array().context("no result")?;
    let row = |r: &Value| {
        let value = r["value"][1].as_str()?.parse().ok()?;
        Some((r["metric"]["instance"].as_str().unwrap_or_default().to_owned(), value))
    };
    Ok(rows.iter().filter_map(row).collect())
}

/// Waits until an expression has the wanted number of series.
async fn until(node: SocketAddr, expr: &str, count: usize) -> Result<Vec<(String, f64)>> {
    let started = Instant::now();
    loop {
        let last = match query(node, expr).await {
            Ok(rows) if rows.len() == count => return Ok(rows),
            last => last,
        };
        ensure!(started.elapsed() < PATIENCE, "{expr}: not {count} series but {last:?}");
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
}

async fn post(node: SocketAddr, path: &str) -> Result<String> {
    let path = path.to_owned();
    let answer = tokio::task::spawn_blocking(move || -> Result<String> {
        let mut stream = std::net::TcpStream::connect(node)?;
        write!(
            stream,
            "POST {path} HTTP/1.0\r\nHost: {node}\r\nContent-Length: 0\r\n\r\n"
        )?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        Ok(answer)
    });
    answer.await?
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn exporters_are_scraped_and_read_back_and_a_reload_is_whole() -> Result<()> {
    let folder = Folder::new("scrape-files")?;
    let (site, _) = exporter()?;
    let [nobody] = free_addresses(1)?[..] else {
        unreachable!()
    };
    let good = format!(
        "global: {{scrape_interval: 1s, external_labels: {{site: seoul}}}}\nscrape_configs:\n- job_name: shop\n  static_configs: [{{targets: ['{site}', '{nobody}']}}]\n  file_sd_configs: [{{files: ['*.json']}}]\n"
    );
    let file = folder.write("prometheus.yml", &good)?;
    let checked = Command::new(PROGRAM)
        .args(["scrape", "check", &file, "-o", "json"])
        .output()?;
    let checked: Value = serde_json::from_slice(&checked.stdout)?;
    ensure!(checked["activeTargets"][0]["labels"]["job"] == "shop", "{checked}");

    let mut cluster = Cluster::start("scrape", PROGRAM, 1, &["--scrape-config", &file])?;
    cluster.wait_ready().await?;
    let node = cluster.addresses()[0];
    let up = until(node, "up{job=\"shop\",site=\"seoul\"}", 2).await?;
    let of = |address: SocketAddr| up.iter().find(|(i, _)| *i == address.to_string()).map(|(_, v)| *v);
    ensure!((of(site), of(nobody)) == (Some(1.0), Some(0.0)), "{up:?}");
    // A series that is not in the page any more ends at once, and not after the look-back of five minutes.
    until(node, "count_over_time(shop_passing[5m]) >= 4", 1).await?;
    until(node, "shop_passing", 0).await?;
    until(node, "shop_asked_total > 5", 1).await?;
    // Times lie on a grid of whole seconds, shifted, but for scrapes that a busy machine began late.
    let range = json(
        node,
        &format!("/api/v1/query?query={}", escaped("up{job=\"shop\"}[1m]")),
    )
    .await?;
    let times = range["data"]["result"][0]["values"].as_array().context("no samples")?;
    println!(
        "times of samples: {:?}",
        times.iter().map(|v| v[0].clone()).collect::<Vec<_>>()
    );

    let targets = json(node, "/api/v1/targets").await?;
    let active = targets["data"]["activeTargets"].as_array().context("no targets")?;
    let health: Vec<_> = active
        .iter()
        .map(|t| (t["scrapeUrl"].to_string(), t["health"].to_string()))
        .collect();
    ensure!(
        active.len() == 2 && health.iter().any(|(_, h)| h == "\"down\""),
        "{health:?}"
    );
    let down = active
        .iter()
        .find(|t| t["health"] == "down")
        .context("nobody is down")?;
    ensure!(
        down["lastError"].as_str().is_some_and(|e| e.contains("refused")),
        "{down}"
    );

    // A target that comes by a file, without a reload; a broken configuration changes nothing.
    folder.write(
        "more.json",
        &format!("[{{\"targets\": [\"{site}\"], \"labels\": {{\"instance\": \"by-file\"}}}}]"),
    )?;
    until(node, "up{instance=\"by-file\"} == 1", 1).await?;
    folder.write(
        "prometheus.yml",
        "scrape_configs: [{job_name: shop, ec2_sd_configs: []}]",
    )?;
    let said = post(node, "/-/reload").await?;
    ensure!(
        said.contains(" 400 ") && said.contains("prometheus.yml:1") && said.contains("ec2_sd_configs"),
        "{said}"
    );
    until(node, "up{job=\"shop\"}", 3).await?;
    folder.write("prometheus.yml", &good.replace(&format!(", '{nobody}'"), ""))?;
    let said = post(node, "/-/reload").await?;
    ensure!(said.contains(" 200 "), "{said}");
    until(node, "up{job=\"shop\"}", 2).await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nodes_share_targets_and_take_over_those_of_one_that_died() -> Result<()> {
    let folder = Folder::new("scrape-share-files")?;
    let sites: Vec<_> = (0..9).map(|_| exporter()).collect::<Result<_>>()?;
    let list: Vec<_> = sites.iter().map(|(site, _)| format!("'{site}'")).collect();
    let text = format!(
        "global: {{scrape_interval: 2s}}\nscrape_configs: [{{job_name: shop, static_configs: [{{targets: [{}]}}]}}]",
        list.join(",")
    );
    let file = folder.write("prometheus.yml", &text)?;
    let mut cluster = Cluster::start("scrape-share", PROGRAM, 3, &["--scrape-config", &file])?;
    cluster.wait_ready().await?;
    let nodes = cluster.addresses();
    until(nodes[0], "up == 1", 9).await?;
    // Once they know of each other, each page is asked for by one node.
    tokio::time::sleep(Duration::from_secs(4)).await;
    let counts = || {
        sites
            .iter()
            .map(|(_, asked)| asked.load(Ordering::SeqCst))
            .collect::<Vec<_>>()
    };
    let before = counts();
    tokio::time::sleep(Duration::from_secs(10)).await;
    let asked: Vec<_> = counts().iter().zip(&before).map(|(now, then)| now - then).collect();
    println!("asked in ten seconds, every two seconds: {asked:?}");
    ensure!(asked.iter().all(|n| (3..=6).contains(n)), "{asked:?}");
    // Every node answers for all targets, and tells whose they are.
    let targets = json(nodes[1], "/api/v1/targets").await?;
    let active = targets["data"]["activeTargets"].as_array().context("no targets")?;
    let whose: std::collections::BTreeSet<_> = active.iter().filter_map(|t| t["node"].as_u64()).collect();
    ensure!(
        active.len() == 9 && active.iter().all(|t| t["health"] == "up"),
        "{targets}"
    );
    println!("targets are those of nodes {whose:?}");
    ensure!(whose.len() > 1, "{whose:?}");

    let lost = *whose.last().context("no node")?;
    cluster.kill(usize::try_from(lost)? - 1);
    let died = Instant::now();
    let survivor = *nodes
        .iter()
        .find(|n| **n != nodes[lost as usize - 1])
        .context("no node")?;
    let before = counts();
    while counts().iter().zip(&before).any(|(now, then)| now < &(then + 2)) {
        ensure!(died.elapsed() < PATIENCE, "{before:?} and then {:?}", counts());
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    println!(
        "all targets were asked twice {:?} after node {lost} died",
        died.elapsed()
    );
    until(survivor, "up == 1", 9).await?;
    until(survivor, "timestamp(up) > time() - 6", 9).await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs Debian's prometheus-node-exporter: `cargo xtask prove clients` runs it"]
async fn a_real_node_exporter_is_scraped() -> Result<()> {
    let address = free_addresses(1)?[0];
    let mut exporter = Command::new("prometheus-node-exporter")
        .arg(format!("--web.listen-address={address}"))
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .context("prometheus-node-exporter is missing: apt-get install prometheus-node-exporter")?;
    let scraped = scrape_exporter(address).await;
    let _ = exporter.kill();
    let _ = exporter.wait();
    scraped
}

async fn scrape_exporter(address: SocketAddr) -> Result<()> {
    let folder = Folder::new("scrape-node-files")?;
    let text = format!(
        "global: {{scrape_interval: 2s}}\nscrape_configs:\n- job_name: node\n  static_configs: [{{targets: ['{address}']}}]\n  metric_relabel_configs: [{{action: drop, source_labels: [__name__], regex: 'go_.*'}}]\n"
    );
    let file = folder.write("prometheus.yml", &text)?;
    let mut cluster = Cluster::start("scrape-node", PROGRAM, 1, &["--scrape-config", &file])?;
    cluster.wait_ready().await?;
    let node = cluster.addresses()[0];
    until(node, "up{job=\"node\"} == 1", 1).await?;
    until(node, "count_over_time(node_load1[1m]) > 2", 1).await?;
    // What the exporter says itself is what is stored.
    let page = http_get(address, "/metrics").await?;
    let of_page: f64 = page
        .lines()
        .find_map(|l| l.strip_prefix("node_memory_MemTotal_bytes "))
        .context("the exporter says nothing of memory")?
        .trim()
        .parse()?;
    let stored = query(node, "node_memory_MemTotal_bytes").await?;
    ensure!(
        stored == [(address.to_string(), of_page)],
        "{stored:?} and not {of_page}"
    );
    let scraped = query(node, "scrape_samples_scraped").await?[0].1;
    let kept = query(node, "scrape_samples_post_metric_relabeling").await?[0].1;
    let series = query(node, "count({job=\"node\",__name__!~\"up|scrape_.*\"})").await?[0].1;
    println!("{scraped} samples, {kept} kept, {series} series");
    ensure!(scraped > kept && kept == series, "{scraped}, {kept}, {series}");
    ensure!(query(node, "go_goroutines").await?.is_empty());
    let busy = query(node, "sum by (instance) (rate(node_cpu_seconds_total[1m]))").await?;
    ensure!(busy.len() == 1 && busy[0].1 > 0.0, "{busy:?}");
    Ok(())
}
