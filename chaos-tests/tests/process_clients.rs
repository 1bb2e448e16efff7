//! Real clients against the real server: Prometheus as remote writer, as judge of our answers, as remote reader and as one that scrapes
//! what we have, promtool, and the OpenTelemetry SDK for Python.

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

/// To be asked of both: every function and aggregation of which both know, over what a Prometheus tells of itself.
fn queries() -> Vec<String> {
    let mut all: Vec<String> = [
        "up",
        "topk(2, prometheus_tsdb_head_chunks)",
        "process_resident_memory_bytes / 1024 > bool 5",
        "count by (job) ({__name__=~\"go_.+\"})",
        "go_goroutines offset 5s",
        "max_over_time(rate(prometheus_http_requests_total[10s])[10s:1s])",
        "sum_over_time(go_goroutines[15s] offset 2s)",
        "absent(nothing{at=\"all\"})",
        "absent_over_time(nothing[10s])",
        "vector(time())",
        "scalar(go_goroutines) + vector(1)",
        "label_replace(up, \"port\", \"$1\", \"instance\", \".*:(.*)\")",
        "label_join(up, \"both\", \"-\", \"job\", \"instance\")",
        "prometheus_http_requests_total unless on (handler) prometheus_http_requests_total{code!=\"200\"}",
        "prometheus_http_requests_total{code=\"200\"} and on (handler) prometheus_http_request_duration_seconds_count",
        "up or go_goroutines",
        "prometheus_http_requests_total / on (instance) group_left () prometheus_tsdb_head_series",
        "count_values(\"value\", prometheus_http_requests_total)",
    ]
    .map(str::to_owned)
    .into();
    let ranges = [
        "rate",
        "increase",
        "irate",
        "delta",
        "idelta",
        "deriv",
        "changes",
        "resets",
        "avg_over_time",
        "min_over_time",
        "max_over_time",
        "sum_over_time",
        "count_over_time",
        "stddev_over_time",
        "stdvar_over_time",
        "last_over_time",
        "present_over_time",
    ];
    let of = [
        "prometheus_http_requests_total",
        "go_goroutines",
        "go_memstats_alloc_bytes",
        "scrape_duration_seconds",
    ];
    for metric in of {
        all.extend(ranges.map(|f| format!("{f}({metric}[17s])")));
        all.push(format!("quantile_over_time(0.9, {metric}[17s])"));
        all.push(format!("predict_linear({metric}[17s], 60)"));
    }
    let maths = [
        "abs",
        "ceil",
        "floor",
        "ln",
        "log2",
        "log10",
        "sqrt",
        "sgn",
        "round",
        "deg",
        "rad",
        "sin",
        "cos",
        "atan",
        "sinh",
        "timestamp",
        "hour",
        "minute",
        "day_of_week",
        "day_of_year",
        "days_in_month",
        "month",
        "year",
        "sort",
        "-",
        "+",
    ];
    all.extend(maths.map(|f| format!("{f}(rate(prometheus_http_requests_total[17s]))")));
    all.push("clamp(go_goroutines, 1, 5)".to_owned());
    all.push("clamp_min(go_goroutines, 1000)".to_owned());
    all.push("clamp_max(go_goroutines, 3)".to_owned());
    let sums = ["sum", "avg", "min", "max", "count", "group", "stddev", "stdvar"];
    for by in ["by (code)", "by (handler, code)", "without (instance)", ""] {
        for metric in [
            "prometheus_http_requests_total",
            "rate(prometheus_http_requests_total[17s])",
        ] {
            all.extend(sums.map(|f| format!("{f} {by} ({metric})")));
            all.push(format!("quantile {by} (0.7, {metric})"));
        }
    }
    let operators = [
        "+", "-", "*", "/", "%", "^", "==", "!=", ">", "<", ">=", "<=", "> bool", "atan2",
    ];
    all.extend(operators.map(|op| format!("go_goroutines {op} on (instance) go_threads")));
    for q in ["0", "0.5", "0.9", "0.99", "1", "2"] {
        let buckets = "prometheus_http_request_duration_seconds_bucket";
        all.push(format!("histogram_quantile({q}, {buckets})"));
        all.push(format!(
            "histogram_quantile({q}, sum by (le, handler) (rate({buckets}[17s])))"
        ));
    }
    all
}

fn is_near(a: f64, b: f64) -> bool {
    a == b || a.is_nan() && b.is_nan() || (a - b).abs() <= 1e-9 * b.abs().max(1.0)
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
    // So that there is something to tell of.
    for _ in 0..25 {
        for path in [
            "/-/ready",
            "/-/healthy",
            "/graph",
            "/api/v1/labels",
            "/api/v1/targets",
            "/api/v1/series",
            "/api/v1/rules",
        ] {
            let _ = get(theirs, path).await;
        }
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
    // A time that both have whole: what is on its way arrives meanwhile.
    let at = unix_now().floor() - 3.0;
    let queries = queries();
    ensure!(queries.len() >= 200, "only {} queries", queries.len());
    let (mut series, mut unlike) = (0, vec![]);
    for query in &queries {
        let (a, b) = (ask(ours, query, at).await?, ask(theirs, query, at).await?);
        series += a.len();
        if a.len() != b.len() {
            unlike.push(format!("{query}: {} series here, {} there", a.len(), b.len()));
        }
        let mut pairs = a.iter().zip(&b);
        let found = pairs.find(|(x, y)| x.0 != y.0 || !is_near(x.1, y.1));
        unlike.extend(found.map(|(x, y)| format!("{query}: {x:?} here, {y:?} there")));
    }
    ensure!(unlike.is_empty(), "not as Prometheus has it:\n{}", unlike.join("\n"));
    println!("{} queries, {series} series in their answers, equal", queries.len());
    ensure!(series > 500, "the answers are too small to say much");
    let tool = Command::new("promtool")
        .args(["query", "instant", &format!("http://{ours}"), "up"])
        .output()?;
    let said = String::from_utf8_lossy(&tool.stdout);
    ensure!(tool.status.success() && said.contains("up{"), "promtool: {said}");
    println!("promtool query instant: {}", said.trim());
    read_back(ours, &dir, at).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs a python with the OpenTelemetry SDK; PYTHON names it: `cargo xtask prove clients` runs it"]
async fn the_opentelemetry_sdk_for_python_is_read_back() {
    sdk().await.unwrap();
}

/// What `otel_sdk.py` sends by each of its exporters.
async fn sdk() -> Result<()> {
    let python = std::env::var("PYTHON").unwrap_or_else(|_| "python3".to_owned());
    let mut cluster = Cluster::start("otel-sdk", PROGRAM, 1, &[])?;
    cluster.wait_ready().await?;
    let ours = cluster.nodes[0].client;
    let script = cluster.data_dir(0).join("otel_sdk.py");
    std::fs::write(&script, include_str!("otel_sdk.py"))?;
    for way in ["grpc", "http"] {
        let sent = Command::new(&python)
            .arg(&script)
            .args([way, &ours.to_string()])
            .output()?;
        let said = String::from_utf8_lossy(&sent.stderr);
        ensure!(
            sent.status.success() && said.trim().is_empty(),
            "{way}: {said}\nWhere the SDK is missing: `python3 -m venv v && v/bin/pip install opentelemetry-sdk \
             opentelemetry-exporter-otlp`, and PYTHON=v/bin/python"
        );
        let trace = String::from_utf8(sent.stdout)?.trim().to_owned();
        let job = format!("job=\"shop-{way}\",instance=\"one\"");
        let wanted = [
            (format!("orders_total{{city=\"서울\",{job}}}"), 10.0),
            (format!("queue_length{{{job}}}"), 5.0),
            (format!("room_temperature_celsius{{{job}}}"), 21.5),
            (format!("wait_seconds_bucket{{le=\"1\",{job}}}"), 2.0),
            (format!("wait_seconds_bucket{{le=\"+Inf\",{job}}}"), 4.0),
            (format!("wait_seconds_sum{{{job}}}"), 55.55),
            (format!("histogram_count(basket_size{{{job}}})"), 4.0),
            (format!("histogram_sum(basket_size{{{job}}})"), 55.55),
            (format!("target_info{{host_name=\"web-1\",{job}}}"), 1.0),
        ];
        for (expr, value) in wanted {
            let found = ask(ours, &expr, unix_now()).await?;
            ensure!(
                found.len() == 1 && is_near(found[0].1, value),
                "{way}: {expr} is {found:?}, not {value}"
            );
        }
        let (from, to) = (unix_now() - 600.0, unix_now() + 60.0);
        for (kind, selector) in [
            (
                "its line",
                format!("{{service_name=\"shop-{way}\"}} |= `주문 42 is late` | trace_id=`{trace}`"),
            ),
            (
                "its span",
                format!(
                    "{{hindcast_trace=\"span\",service_name=\"shop-{way}\"}} | trace_id=`{trace}` | span_kind=`server`"
                ),
            ),
        ] {
            let path = format!(
                "/loki/api/v1/query_range?query={}&start={from:.0}&end={to:.0}",
                encoded(&selector)
            );
            let body: serde_json::Value = serde_json::from_str(&get(ours, &path).await?)?;
            let streams = body["data"]["result"].as_array().context("no result")?;
            let lines: usize = streams
                .iter()
                .filter_map(|s| s["values"].as_array())
                .map(Vec::len)
                .sum();
            ensure!(lines == 1, "{way}: {kind} is there {lines} times: {body}");
        }
        println!("{way}: metrics of five kinds, a line and a span, as they were sent");
    }
    Ok(())
}

/// A Prometheus of its own, which has nothing but what it reads and scrapes here.
async fn read_back(ours: SocketAddr, dir: &Path, at: f64) -> Result<()> {
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
    let queries = [
        "up",
        "max_over_time(go_goroutines[10s])",
        "sum by (code) (prometheus_http_requests_total)",
    ];
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
