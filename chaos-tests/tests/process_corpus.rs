//! The corpus of bad input against a live node: every case of `chaos-tests/corpus` is sent as it stands there, and what it expects is looked
//! for: the answer's code and words, what is stored in spite of it, what is counted; and then the node must be ready and take the surface's next good
//! request.
//!
//! `HINDCAST_CORPUS=loki/` runs those whose names begin so, `HINDCAST_CORPUS_SHOW=1` prints every answer.

#![allow(clippy::disallowed_methods, reason = "a test on real processes runs in real time")]

use anyhow::{Context, Result, bail, ensure};
use bytes::Bytes;
use futures::StreamExt as _;
use hindcast_chaos::process::free_addresses;
use hindcast_corpus::{Case, Check, Modifier, Send, Surface};
use http_body_util::BodyExt as _;
use serde_json::Value;
use std::fmt::Write as _;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant, SystemTime};
use tower::ServiceExt as _;

const PROGRAM: &str = env!("CARGO_BIN_EXE_hindcast-under-test");
const START_SPAN_MAX: Duration = Duration::from_secs(60);
/// How long what was sent may take until it can be read: syslog and scraping answer nobody.
const SEEN_SPAN_MAX: Duration = Duration::from_secs(15);
/// The process never had more, whatever it was sent; a body has 16 MiB at most, and there are a few at a time.
const PEAK_BYTES_MAX: u64 = 1 << 30;
/// The case of each surface that everybody sends on good days.
const GOOD: &str = "good";

struct Bench {
    dir: PathBuf,
    client: SocketAddr,
    udp: SocketAddr,
    tcp: SocketAddr,
    server: Child,
    runtime: tokio::runtime::Runtime,
}

impl Drop for Bench {
    fn drop(&mut self) {
        let _ = self.server.kill();
        let _ = self.server.wait();
        if std::thread::panicking() {
            eprintln!("the folder is kept: {}", self.dir.display());
        } else {
            let _ = std::fs::remove_dir_all(&self.dir);
        }
    }
}

/// What came of a case.
#[derive(Debug, Default)]
struct Answer {
    status: String,
    text: String,
}

fn now_ms() -> i64 {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
    since.map_or(0, |d| d.as_millis() as i64)
}

/// The tail of a message with its length chunk by chunk, made whole.
fn dechunked(mut rest: &[u8]) -> Vec<u8> {
    let mut out = vec![];
    while let Some(end) = rest.windows(2).position(|w| w == b"\r\n") {
        let Ok(head) = std::str::from_utf8(&rest[..end]) else {
            break;
        };
        let Ok(len) = usize::from_str_radix(head.trim(), 16) else {
            break;
        };
        let Some(chunk) = rest.get(end + 2..end + 2 + len) else {
            break;
        };
        if len == 0 {
            break;
        }
        out.extend_from_slice(chunk);
        rest = rest.get(end + 4 + len..).unwrap_or_default();
    }
    out
}

/// Whether an answer of HTTP is all there, as far as its head says how long it is.
fn is_whole(raw: &[u8]) -> bool {
    let Some(end) = raw.windows(4).position(|w| w == b"\r\n\r\n") else {
        return false;
    };
    let head = String::from_utf8_lossy(&raw[..end]).to_ascii_lowercase();
    let length = head
        .lines()
        .find_map(|l| l.strip_prefix("content-length:")?.trim().parse::<usize>().ok());
    head.starts_with("http/1") && length.is_some_and(|length| raw.len() >= end + 4 + length)
}

/// Sends bytes and reads until the answer is there or the other side closes, or for so long.
fn exchange(address: SocketAddr, bytes: &[u8], within: Duration) -> Result<Answer> {
    let mut stream = TcpStream::connect(address)?;
    stream.set_write_timeout(Some(within))?;
    let mut writer = stream.try_clone()?;
    let bytes = bytes.to_vec();
    // Beside the reader: a server may answer before it has read all.
    let sent = std::thread::spawn(move || writer.write_all(&bytes));
    let deadline = Instant::now() + within;
    let (mut raw, mut piece, mut is_open) = (vec![], [0; 65536], true);
    while let Some(left) = deadline.checked_duration_since(Instant::now()).filter(|l| !l.is_zero()) {
        stream.set_read_timeout(Some(left))?;
        match stream.read(&mut piece) {
            Ok(0) | Err(_) if Instant::now() < deadline => {
                is_open = false;
                break;
            }
            Ok(n) => raw.extend_from_slice(&piece[..n]),
            Err(_) => break,
        }
        if is_whole(&raw) {
            is_open = false;
            break;
        }
    }
    let _ = stream.shutdown(std::net::Shutdown::Both);
    let _ = sent.join();
    let head_end = raw.windows(4).position(|w| w == b"\r\n\r\n").unwrap_or(raw.len());
    let head = String::from_utf8_lossy(&raw[..head_end]).into_owned();
    let body = raw.get(head_end + 4..).unwrap_or_default();
    let body = match head.to_ascii_lowercase().contains("transfer-encoding: chunked") {
        true => dechunked(body),
        false => body.to_vec(),
    };
    let status = match (head.starts_with("HTTP/1"), raw.is_empty(), is_open) {
        (true, ..) => head.split(' ').nth(1).unwrap_or("?").to_owned(),
        (false, true, false) => "closed".to_owned(),
        (false, _, true) => "open".to_owned(),
        (false, false, false) => "spoke".to_owned(),
    };
    let text = format!("{head}\n\n{}", String::from_utf8_lossy(&body));
    Ok(Answer { status, text })
}

fn percent(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut out, byte| {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'_' | b'.' | b'~' => out.push(*byte as char),
            _ => {
                let _ = write!(out, "%{byte:02X}");
            }
        }
        out
    })
}

fn form(params: &[(String, Vec<u8>)]) -> String {
    let pairs: Vec<String> = params
        .iter()
        .map(|(n, v)| format!("{}={}", percent(n.as_bytes()), percent(v)))
        .collect();
    pairs.join("&")
}

/// As an HTTP/1.1 client writes it.
fn http_request(case: &Case, method: &str, target: &str, host: SocketAddr) -> Result<Vec<u8>> {
    let mut body = case.body()?;
    let has = |name: &str| case.headers.iter().any(|(n, _)| n.eq_ignore_ascii_case(name));
    let mut target = target.to_owned();
    let mut more = String::new();
    if !case.params.is_empty() {
        if method == "POST" {
            body = form(&case.params).into_bytes();
            more += "Content-Type: application/x-www-form-urlencoded\r\n";
        } else {
            target = format!("{target}?{}", form(&case.params));
        }
    }
    if case.modifiers.contains(&Modifier::Chunked) {
        let mut chunks = vec![];
        for piece in body.chunks(1000) {
            write!(chunks, "{:x}\r\n", piece.len())?;
            chunks.extend_from_slice(piece);
            chunks.extend_from_slice(b"\r\n");
        }
        chunks.extend_from_slice(b"0\r\n\r\n");
        body = chunks;
        more += "Transfer-Encoding: chunked\r\n";
    } else if !has("Content-Length") && (method != "GET" || !body.is_empty()) {
        let _ = write!(more, "Content-Length: {}\r\n", body.len());
    }
    if !has("Host") {
        let _ = write!(more, "Host: {host}\r\n");
    }
    if !has("Connection") {
        more += "Connection: close\r\n";
    }
    let mut bytes = format!("{method} {target} HTTP/1.1\r\n{more}").into_bytes();
    for (name, value) in &case.headers {
        bytes.extend_from_slice(name.as_bytes());
        bytes.extend_from_slice(b": ");
        bytes.extend_from_slice(value);
        bytes.extend_from_slice(b"\r\n");
    }
    bytes.extend_from_slice(b"\r\n");
    bytes.extend_from_slice(&body);
    Ok(bytes)
}

/// gRPC's codes have names; tonic prints them in camel case.
fn grpc_name(code: &str) -> String {
    let named = format!("{:?}", tonic::Code::from_bytes(code.as_bytes()));
    named.chars().fold(String::new(), |mut out, c| {
        if c.is_ascii_uppercase() && !out.is_empty() {
            out.push('_');
        }
        out.push(c.to_ascii_uppercase());
        out
    })
}

fn unpercent(text: &str) -> String {
    let (mut out, mut rest) = (vec![], text.as_bytes());
    while let Some((first, tail)) = rest.split_first() {
        let hex = tail
            .get(..2)
            .and_then(|h| u8::from_str_radix(std::str::from_utf8(h).ok()?, 16).ok());
        match (first, hex) {
            (b'%', Some(byte)) => {
                out.push(byte);
                rest = &tail[2..];
            }
            _ => {
                out.push(*first);
                rest = tail;
            }
        }
    }
    String::from_utf8_lossy(&out).into_owned()
}

async fn grpc(case: &Case, path: &str, address: SocketAddr) -> Result<Answer> {
    let mut body = case.body()?;
    if !case.modifiers.contains(&Modifier::Unframed) {
        let is_packed = case
            .modifiers
            .iter()
            .any(|m| matches!(m, Modifier::Gzip | Modifier::Zstd));
        let mut framed = vec![u8::from(is_packed)];
        framed.extend((body.len() as u32).to_be_bytes());
        framed.append(&mut body);
        body = framed;
    }
    let channel = tonic::transport::Endpoint::from_shared(format!("http://{address}"))?
        .connect()
        .await?;
    let mut request = hyper::Request::post(format!("http://{address}{path}"))
        .header("content-type", "application/grpc")
        .header("te", "trailers");
    let (stall, metadata): (Vec<_>, Vec<_>) = case.headers.iter().partition(|(n, _)| n == "Stall");
    for (name, value) in metadata {
        request = request.header(name.to_ascii_lowercase(), &value[..]);
    }
    let body = match stall.is_empty() {
        true => tonic::body::Body::new(http_body_util::Full::new(Bytes::from(body))),
        false => {
            let half = Bytes::copy_from_slice(&body[..body.len() / 2]);
            let half = futures::stream::iter([Ok::<_, tonic::Status>(hyper::body::Frame::data(half))]);
            tonic::body::Body::new(http_body_util::StreamBody::new(half.chain(futures::stream::pending())))
        }
    };
    let response = channel.oneshot(request.body(body)?).await?;
    let (head, body) = response.into_parts();
    let collected = body.collect().await?;
    let trailers = collected.trailers().cloned().unwrap_or_default();
    let of = |name: &str| {
        let value = head.headers.get(name).or_else(|| trailers.get(name));
        value.map(|v| String::from_utf8_lossy(v.as_bytes()).into_owned())
    };
    let status = of("grpc-status").map_or_else(|| format!("HTTP {}", head.status.as_u16()), |c| grpc_name(&c));
    let body = collected.to_bytes();
    let text = format!(
        "{}\n\n{}",
        unpercent(&of("grpc-message").unwrap_or_default()),
        String::from_utf8_lossy(body.get(5..).unwrap_or_default())
    );
    Ok(Answer { status, text })
}

/// Serves each case's page to the node that scrapes; runs until the test ends.
fn serve_pages(listener: TcpListener, cases: Vec<Case>) {
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let cases = cases.clone();
            std::thread::spawn(move || {
                let _ = serve_page(stream, &cases);
            });
        }
    });
}

fn serve_page(mut stream: TcpStream, cases: &[Case]) -> Result<()> {
    let mut head = vec![];
    let mut piece = [0; 4096];
    while !head.windows(4).any(|w| w == b"\r\n\r\n") {
        let n = stream.read(&mut piece)?;
        ensure!(n > 0, "closed");
        head.extend_from_slice(&piece[..n]);
    }
    let head = String::from_utf8_lossy(&head).into_owned();
    let path = head
        .split(' ')
        .nth(1)
        .unwrap_or_default()
        .trim_start_matches('/')
        .to_owned();
    let case = cases.iter().find(|c| c.name == path).context("no such page")?;
    let body = case.body()?;
    let mut status = b"200 OK".to_vec();
    let mut lines = vec![];
    let mut stalls = false;
    for (name, value) in &case.headers {
        match name.as_str() {
            "Status" => status.clone_from(value),
            "Stall" => stalls = true,
            _ => {
                lines.extend_from_slice(name.as_bytes());
                lines.extend_from_slice(b": ");
                lines.extend_from_slice(value);
                lines.extend_from_slice(b"\r\n");
            }
        }
    }
    let mut answer = [b"HTTP/1.1 ", &status[..], b"\r\nConnection: close\r\n", &lines].concat();
    if !case.headers.iter().any(|(n, _)| n == "Content-Length") {
        answer.extend(format!("Content-Length: {}\r\n", body.len()).bytes());
    }
    answer.extend_from_slice(b"\r\n");
    stream.write_all(&answer)?;
    if stalls {
        stream.write_all(&body[..body.len() / 2])?;
        std::thread::sleep(Duration::from_secs(20));
    }
    stream.write_all(&body)?;
    Ok(())
}

/// A job for each page.
fn scrape_config(cases: &[Case], pages: SocketAddr) -> String {
    let mut config = "global: { scrape_interval: 5s, scrape_timeout: 4s }\nscrape_configs:\n".to_owned();
    for case in cases {
        let _ = write!(
            config,
            "  - job_name: {}\n    metrics_path: /{}\n    static_configs: [ {{ targets: [ \"{pages}\" ] }} ]\n",
            id(&case.name),
            case.name
        );
        for (_, lines) in &case.files {
            for line in String::from_utf8_lossy(lines).lines() {
                let _ = writeln!(config, "    {line}");
            }
        }
    }
    config
}

fn id(name: &str) -> String {
    name.chars()
        .map(|c| if c.is_ascii_alphanumeric() { c } else { '_' })
        .collect()
}

impl Bench {
    fn start(surfaces: &[Surface]) -> Result<Self> {
        let dir = std::env::temp_dir().join(format!("hindcast-corpus-{}", std::process::id()));
        let _ = std::fs::remove_dir_all(&dir);
        std::fs::create_dir_all(&dir)?;
        let addresses = free_addresses(3)?;
        let [client, udp, tcp] = addresses[..] else {
            unreachable!()
        };
        let pages = TcpListener::bind("127.0.0.1:0")?;
        let scraped: Vec<Case> = surfaces
            .iter()
            .flat_map(|s| &s.cases)
            .filter(|c| c.send == Send::Scrape)
            .cloned()
            .collect();
        let config = dir.join("prometheus.yml");
        std::fs::write(&config, scrape_config(&scraped, pages.local_addr()?))?;
        serve_pages(pages, scraped);
        let log = std::fs::File::create(dir.join("log"))?;
        let mut server = Command::new(PROGRAM);
        server.args(["server", "--listen", &client.to_string()]);
        server.args(["--syslog-listen", &format!("udp://{udp}?zone=UTC,tcp://{tcp}?zone=UTC")]);
        server
            .arg("--data-dir")
            .arg(dir.join("data"))
            .arg("--scrape-config")
            .arg(&config);
        server.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
        let bench = Self {
            client,
            udp,
            tcp,
            server: server.spawn().context("the server cannot be started")?,
            runtime: tokio::runtime::Runtime::new()?,
            dir,
        };
        let started = Instant::now();
        while !bench.is_ready() {
            ensure!(
                started.elapsed() < START_SPAN_MAX,
                "the node is not ready\n{}",
                bench.log()
            );
            std::thread::sleep(Duration::from_millis(50));
        }
        Ok(bench)
    }

    fn log(&self) -> String {
        std::fs::read_to_string(self.dir.join("log")).unwrap_or_default()
    }

    fn get(&self, target: &str, tenant: Option<&[u8]>) -> Result<Answer> {
        let mut request = format!(
            "GET {target} HTTP/1.1\r\nHost: {}\r\nConnection: close\r\n",
            self.client
        )
        .into_bytes();
        if let Some(tenant) = tenant {
            request.extend_from_slice(b"X-Scope-OrgID: ");
            request.extend_from_slice(tenant);
            request.extend_from_slice(b"\r\n");
        }
        request.extend_from_slice(b"\r\n");
        exchange(self.client, &request, Duration::from_secs(20))
    }

    fn is_ready(&self) -> bool {
        self.get("/-/ready", None).is_ok_and(|a| a.status == "200")
    }

    /// A group may be late on a machine that does much else; one that stays away is found.
    fn is_ready_soon(&self) -> bool {
        let began = Instant::now();
        while !self.is_ready() {
            if began.elapsed() > SEEN_SPAN_MAX {
                return false;
            }
            std::thread::sleep(Duration::from_millis(100));
        }
        true
    }

    /// Cases are sent side by side, and some are large: whoever is turned away for that comes again, as it is told to.
    fn send(&self, case: &Case) -> Result<Answer> {
        const TRIES_MAX: usize = 10;
        for _ in 1..TRIES_MAX {
            let answer = self.send_once(case)?;
            if !["429", "RESOURCE_EXHAUSTED"].contains(&answer.status.as_str()) {
                return Ok(answer);
            }
            std::thread::sleep(Duration::from_secs(1));
        }
        self.send_once(case)
    }

    fn send_once(&self, case: &Case) -> Result<Answer> {
        match &case.send {
            Send::Http(method, target) => {
                let request = http_request(case, method, target, self.client)?;
                exchange(self.client, &request, case.within)
            }
            Send::Raw => exchange(self.client, &case.body()?, case.within),
            Send::Grpc(path) => self.runtime.block_on(async {
                let sent = tokio::time::timeout(case.within, grpc(case, path, self.client));
                sent.await.context("no answer in time")?
            }),
            Send::SyslogUdp => {
                UdpSocket::bind("127.0.0.1:0")?.send_to(&case.body()?, self.udp)?;
                Ok(Answer::default())
            }
            Send::SyslogTcp => {
                let mut stream = TcpStream::connect(self.tcp)?;
                stream.write_all(&case.body()?)?;
                stream.shutdown(std::net::Shutdown::Write)?;
                Ok(Answer::default())
            }
            Send::Scrape => self.scraped(case),
            Send::Cli(args) => self.run(case, args),
        }
    }

    /// Waits until the node has scraped a case's page; what it says of the target.
    fn scraped(&self, case: &Case) -> Result<Answer> {
        let started = Instant::now();
        while started.elapsed() < SEEN_SPAN_MAX {
            let answer = self.get("/api/v1/targets", None)?;
            let body = answer.text.split_once("\n\n").map_or("", |(_, body)| body);
            let targets: Value = serde_json::from_str(body).context("targets")?;
            let active = targets["data"]["activeTargets"].as_array().cloned().unwrap_or_default();
            let own = active.into_iter().find(|t| t["labels"]["job"] == id(&case.name));
            // A node that has just begun has no targets yet.
            let own = own.unwrap_or_default();
            let health = own["health"].as_str().unwrap_or("unknown");
            if health != "unknown" {
                return Ok(Answer {
                    status: health.to_owned(),
                    text: own["lastError"].as_str().unwrap_or_default().to_owned(),
                });
            }
            std::thread::sleep(Duration::from_millis(100));
        }
        bail!("not scraped after {SEEN_SPAN_MAX:?}")
    }

    fn run(&self, case: &Case, args: &[String]) -> Result<Answer> {
        let dir = self.dir.join(id(&case.name));
        std::fs::create_dir_all(&dir)?;
        for (name, body) in &case.files {
            std::fs::write(dir.join(name), body)?;
        }
        let mut child = Command::new(PROGRAM)
            .args(args)
            .current_dir(&dir)
            .env("HINDCAST_ENDPOINT", format!("http://{}", self.client))
            .stdin(Stdio::null())
            .stdout(std::fs::File::create(dir.join("stdout"))?)
            .stderr(std::fs::File::create(dir.join("stderr"))?)
            .spawn()?;
        let started = Instant::now();
        let status = loop {
            if let Some(status) = child.try_wait()? {
                break status.code().map_or_else(|| format!("{status}"), |c| c.to_string());
            }
            if started.elapsed() > case.within {
                child.kill()?;
                child.wait()?;
                break "still running".to_owned();
            }
            std::thread::sleep(Duration::from_millis(5));
        };
        let said = |name: &str| std::fs::read(dir.join(name)).unwrap_or_default();
        let text = [said("stderr"), said("stdout")].concat();
        Ok(Answer {
            status,
            text: String::from_utf8_lossy(&text).into_owned(),
        })
    }

    /// A row of `/metrics`; 0 where there is none.
    fn counter(&self, row: &str) -> Result<f64> {
        let answer = self.get("/metrics", None)?;
        let line = answer.text.lines().find_map(|l| l.strip_prefix(row)?.strip_prefix(' '));
        line.map_or(Ok(0.0), |v| v.trim().parse().context("a row without a value"))
    }

    fn value(&self, path: &str, expression: &str, time: i64, tenant: Option<&[u8]>) -> Result<String> {
        let query = percent(expression.as_bytes());
        let answer = self.get(&format!("{path}?query={query}&time={time}"), tenant)?;
        let body = answer.text.split_once("\n\n").map_or("", |(_, body)| body);
        let json: Value = serde_json::from_str(body).with_context(|| format!("{expression}: {}", answer.text))?;
        let result = &json["data"]["result"];
        let value = match json["data"]["resultType"].as_str() {
            Some("scalar") => result[1].clone(),
            Some("vector") if result.as_array().is_some_and(|r| r.len() > 1) => return Ok("several".into()),
            Some("vector") => result[0]["value"][1].clone(),
            _ => bail!("{expression}: {}", answer.text),
        };
        Ok(value.as_str().unwrap_or("none").to_owned())
    }

    /// What of a check is not so.
    fn look(&self, check: &Check, answer: &Answer, tenant: Option<&[u8]>, before: f64) -> Result<Option<String>> {
        let differs = |got: String, want: &str, of: &str| (got != want).then(|| format!("{of}: {got}, not {want}"));
        Ok(match check {
            Check::Status(want) => differs(answer.status.clone(), want, "status"),
            Check::Says(text) => (!answer.text.contains(text)).then(|| format!("does not say {text:?}")),
            Check::Silent(text) => answer.text.contains(text).then(|| format!("says {text:?}")),
            Check::Stored(want, expression) => {
                let got = self.value("/api/v1/query", expression, now_ms() / 1000, tenant)?;
                differs(got, want, expression)
            }
            Check::Lines(want, selector) => {
                let count = format!("sum(count_over_time({selector} [31d]))");
                // Lines may be a little ahead.
                let got = self.value("/loki/api/v1/query", &count, now_ms() / 1000 + 700, tenant)?;
                let got = if got == "none" { "0".to_owned() } else { got };
                differs(got, &want.to_string(), selector)
            }
            Check::Counted(want, row) => {
                let got = self.counter(row)? - before;
                (got < *want).then(|| format!("{row} grew by {got}, not by {want}"))
            }
        })
    }

    /// Everything about a case that is not as it says.
    fn check(&self, case: &Case) -> Result<Vec<String>> {
        let tenant = case
            .headers
            .iter()
            .find(|(n, _)| n.eq_ignore_ascii_case("x-scope-orgid"));
        let tenant = tenant
            .map(|(_, v)| &v[..])
            .filter(|v| v.iter().all(|b| (0x21..0x7f).contains(b)));
        let before: Vec<f64> = case
            .checks
            .iter()
            .map(|c| match c {
                Check::Counted(_, row) => self.counter(row),
                _ => Ok(0.0),
            })
            .collect::<Result<_>>()?;
        let began = Instant::now();
        let answer = self.send(case)?;
        if std::env::var_os("HINDCAST_CORPUS_SHOW").is_some() {
            let shown: String = answer.text.chars().take(1500).collect();
            let took = began.elapsed();
            println!("== {} {took:.1?}\n{} {}\n", case.name, answer.status, shown.trim());
        }
        let mut wrong = vec![];
        for (check, before) in case.checks.iter().zip(before) {
            let started = Instant::now();
            let found = loop {
                let found = self.look(check, &answer, tenant, before)?;
                let may_come = matches!(check, Check::Stored(..) | Check::Lines(..) | Check::Counted(..));
                if found.is_none() || !may_come || started.elapsed() > SEEN_SPAN_MAX {
                    break found;
                }
                std::thread::sleep(Duration::from_millis(50));
            };
            wrong.extend(found);
        }
        if !wrong.is_empty() {
            let shown: String = answer.text.chars().take(800).collect();
            wrong.push(format!("the answer was {} {}", answer.status, shown.trim()));
        }
        Ok(wrong)
    }

    /// The cases of a surface, one after the other; after each the node must live and take a good request.
    fn play(&self, surface: &Surface) -> Vec<String> {
        let mut findings = vec![];
        let good = surface.cases.iter().find(|c| c.name.ends_with(&format!("/{GOOD}")));
        for case in &surface.cases {
            match self.check(case) {
                Ok(wrong) if wrong.is_empty() => {}
                Ok(wrong) => {
                    let finding = format!("{}:\n    {}", case.name, wrong.join("\n    "));
                    println!("!! {finding}");
                    findings.push(finding);
                }
                Err(e) => {
                    println!("!! {}: {e:#}", case.name);
                    findings.push(format!("{}: {e:#}", case.name));
                }
            }
            if !self.is_ready_soon() {
                findings.push(format!("{}: the node is not ready afterwards", case.name));
                break;
            }
            let Some(good) = good.filter(|g| g.send != Send::Scrape) else {
                continue;
            };
            let again = self.send(good).map(|a| {
                (good.checks.iter().find_map(|c| match c {
                    Check::Status(want) => Some(*want == a.status),
                    _ => None,
                }))
                .unwrap_or(true)
            });
            if !again.is_ok_and(|good| good) {
                findings.push(format!("{}: the next good request was not taken", case.name));
            }
        }
        findings
    }
}

fn peak_bytes(pid: u32) -> Result<u64> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status"))?;
    let line = status
        .lines()
        .find_map(|l| l.strip_prefix("VmHWM:"))
        .context("no VmHWM")?;
    let kib: u64 = line.trim().trim_end_matches("kB").trim().parse()?;
    Ok(kib * 1024)
}

#[test]
fn bad_input_is_answered_as_the_corpus_says_and_the_node_lives() -> Result<()> {
    let began = Instant::now();
    let wanted = std::env::var("HINDCAST_CORPUS").unwrap_or_default();
    let mut surfaces = hindcast_corpus::load(&hindcast_corpus::dir(), now_ms())?;
    for surface in &mut surfaces {
        surface.cases.retain(|c| c.name.starts_with(&wanted));
    }
    let cases: usize = surfaces.iter().map(|s| s.cases.len()).sum();
    ensure!(cases > 0, "no case begins with {wanted:?}");
    let mut bench = Bench::start(&surfaces)?;
    // Side by side: most of a case is waiting.
    let findings: Vec<String> = std::thread::scope(|scope| {
        let played: Vec<_> = surfaces.iter().map(|s| scope.spawn(|| bench.play(s))).collect();
        played
            .into_iter()
            .flat_map(|p| p.join().expect("a surface ends"))
            .collect()
    });
    let ended = bench.server.try_wait()?;
    let peak = peak_bytes(bench.server.id()).unwrap_or(0);
    println!(
        "{cases} cases of {} surfaces, {:?}, peak {} MiB",
        surfaces.len(),
        began.elapsed(),
        peak >> 20
    );
    let log = bench.log();
    let panics: Vec<&str> = log.lines().filter(|l| l.contains("panicked")).collect();
    assert!(ended.is_none(), "the node ended: {ended:?}\n{log}");
    assert!(
        findings.is_empty(),
        "{} of {cases} cases:\n{}",
        findings.len(),
        findings.join("\n")
    );
    assert!(panics.is_empty(), "{panics:?}");
    assert!((1..PEAK_BYTES_MAX).contains(&peak), "peak of {peak} bytes");
    Ok(())
}
