//! Syslog and line protocol against the real server: raw sockets and a `kill -9`; and real senders, Debian's rsyslogd and
//! util-linux' logger, by UDP, TCP and TLS, read back in LogQL.

#![allow(clippy::disallowed_methods, reason = "a test on real processes runs in real time")]

use anyhow::{Context, Result, ensure};
use hindcast_chaos::process::free_addresses;
use serde_json::Value;
use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream, UdpSocket};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

const PROGRAM: &str = env!("CARGO_BIN_EXE_hindcast-under-test");
const PATIENCE: Duration = Duration::from_secs(60);

/// Processes end with the test; the folder stays when it fails.
struct Scene {
    dir: PathBuf,
    running: Vec<Child>,
}

impl Drop for Scene {
    fn drop(&mut self) {
        for process in &mut self.running {
            let _ = process.kill();
            let _ = process.wait();
        }
        if std::thread::panicking() {
            eprintln!("the folder is kept: {}", self.dir.display());
        } else {
            let _ = std::fs::remove_dir_all(&self.dir);
        }
    }
}

impl Scene {
    fn new(name: &str) -> Result<Self> {
        let dir = std::env::temp_dir().join(format!("hindcast-{name}-{}", std::process::id()));
        let _ = std::fs::remove_dir_all(&dir);
        std::fs::create_dir_all(&dir)?;
        Ok(Self { dir, running: vec![] })
    }

    fn spawn(&mut self, command: &mut Command, log: &str) -> Result<()> {
        let log = std::fs::OpenOptions::new()
            .create(true)
            .append(true)
            .open(self.dir.join(log))?;
        command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
        let shown = format!("{command:?} cannot be started");
        self.running.push(command.spawn().context(shown)?);
        Ok(())
    }

    fn log(&self, name: &str) -> String {
        std::fs::read_to_string(self.dir.join(name)).unwrap_or_default()
    }
}

fn done(program: &str, args: &[&str]) -> Result<String> {
    let output = Command::new(program).args(args).stdin(Stdio::null()).output()?;
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    ensure!(output.status.success(), "{program} {args:?}: {said}");
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// Waits until `what` is true.
fn wait(what: &str, mut is: impl FnMut() -> Result<bool>) -> Result<()> {
    let started = Instant::now();
    while !is()? {
        ensure!(started.elapsed() < PATIENCE, "{what}: not after {PATIENCE:?}");
        std::thread::sleep(Duration::from_millis(100));
    }
    Ok(())
}

/// A line as it is read back.
#[derive(Clone, Debug)]
struct Line {
    line: String,
    labels: BTreeMap<String, String>,
    metadata: BTreeMap<String, String>,
}

/// The lines of a LogQL query, oldest first. `who`: the flags that say where and as whom.
fn lines(query: &str, who: &[String]) -> Result<Vec<Line>> {
    let mut args = vec![
        "logs",
        query,
        "--forward",
        "--limit",
        "5000",
        "--end",
        "now-0s",
        "-o",
        "json",
    ];
    args.extend(who.iter().map(String::as_str));
    let answer: Value = serde_json::from_str(&done(PROGRAM, &args)?)?;
    let pairs = |v: &Value| -> BTreeMap<String, String> {
        let pairs = v.as_object().into_iter().flatten();
        pairs
            .map(|(n, v)| (n.clone(), v.as_str().unwrap_or_default().to_owned()))
            .collect()
    };
    let rows = answer["lines"].as_array().context("no lines")?;
    Ok(rows
        .iter()
        .map(|r| Line {
            line: r["line"].as_str().unwrap_or_default().to_owned(),
            labels: pairs(&r["labels"]),
            metadata: pairs(&r["metadata"]),
        })
        .collect())
}

/// Posts over HTTP/1.0; the status.
fn post(address: SocketAddr, path: &str, body: &str) -> Result<u16> {
    let mut stream = TcpStream::connect(address)?;
    let head = format!(
        "POST {path} HTTP/1.0\r\nHost: {address}\r\nContent-Length: {}\r\n\r\n",
        body.len()
    );
    stream.write_all(head.as_bytes())?;
    stream.write_all(body.as_bytes())?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    Ok(answer.split(' ').nth(1).context("no HTTP answer")?.parse()?)
}

#[test]
fn syslog_and_line_protocol_are_read_back_also_after_a_kill() -> Result<()> {
    let mut scene = Scene::new("syslog")?;
    let addresses = free_addresses(3)?;
    let [client, udp, tcp] = addresses[..] else {
        unreachable!()
    };
    let listen = format!("udp://{udp}?zone=UTC&devices=sw-*,tcp://{tcp}?zone=UTC&charset=euc-kr");
    let start = |scene: &mut Scene| -> Result<()> {
        let mut server = Command::new(PROGRAM);
        server.args(["server", "--listen", &client.to_string(), "--syslog-listen", &listen]);
        server.arg("--data-dir").arg(scene.dir.join("data"));
        scene.spawn(&mut server, "log")?;
        wait("the server", || {
            Ok(done(
                PROGRAM,
                &["cluster", "status", "--endpoint", &format!("http://{client}")],
            )
            .is_ok())
        })
    };
    start(&mut scene)?;
    let who = ["--endpoint".to_owned(), format!("http://{client}")];

    // Ten connections, each with both framings; then datagrams, one at a time, so that the kernel drops none.
    for c in 0..10 {
        let mut stream = TcpStream::connect(tcp)?;
        for n in 0..100 {
            let message = format!("<14>1 - web-{c} app {n} - - line {c}-{n}");
            match n % 2 {
                0 => writeln!(stream, "{message}")?,
                _ => write!(stream, "{} {message}", message.len())?,
            }
        }
        if c == 0 {
            stream.write_all(b"<14>app: \xb4\xeb\xc7\xd1\xb9\xce\xb1\xb9\n")?;
        }
    }
    let socket = UdpSocket::bind("127.0.0.1:0")?;
    socket.send_to(b"<189>a link is down", udp)?;
    socket.send_to(b"<189>1 - sw-7 - - - - a link is down", udp)?;
    let sent = Instant::now();
    let app = r#"{app_name="app", syslog_format="rfc5424"}"#;
    wait("all lines", || Ok(lines(app, &who)?.len() == 1000))?;
    println!("1,000 lines by TCP were readable after {:?}", sent.elapsed());
    wait("the device's line", || {
        Ok(lines(r#"{syslog_device="sw-7"}"#, &who)?.len() == 1)
    })?;
    let korean = lines(r#"{app_name="app"} |= `대한민국`"#, &who)?;
    ensure!(
        korean.len() == 1 && korean[0].metadata["syslog_charset"] == "EUC-KR",
        "{korean:?}"
    );

    let now = std::time::SystemTime::now()
        .duration_since(std::time::SystemTime::UNIX_EPOCH)?
        .as_secs();
    let body = format!("cpu,host=web-1 usage_idle=97.5,text=\"no\" {now}\nup,host=web-1 value=1 {now}\n");
    ensure!(
        post(client, "/write?db=telegraf&precision=s", &body)? == 204,
        "line protocol"
    );
    ensure!(post(client, "/api/v2/write?precision=s", "bad")? == 400, "a bad line");

    // What was readable was confirmed: it is there after a kill, once.
    for mut server in scene.running.drain(..) {
        server.kill()?;
        server.wait()?;
    }
    start(&mut scene)?;
    let mut read: Vec<String> = lines(app, &who)?.into_iter().map(|l| l.line).collect();
    read.sort();
    let mut want: Vec<String> = (0..10)
        .flat_map(|c| (0..100).map(move |n| format!("line {c}-{n}")))
        .collect();
    want.sort();
    ensure!(read == want, "{} lines after the kill", read.len());
    let endpoint = format!("http://{client}");
    let value = done(
        PROGRAM,
        &[
            "query",
            "cpu_usage_idle + on (host) up",
            "-o",
            "csv",
            "--endpoint",
            &endpoint,
        ],
    )?;
    ensure!(value.contains("98.5"), "{value}");
    Ok(())
}

fn installed(program: &str, package: &str) -> Result<()> {
    let found = Command::new(program)
        .arg("-v")
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status();
    found
        .map(|_| ())
        .with_context(|| format!("{program} is missing: apt-get install {package}"))
}

const RSYSLOG_LINES: usize = 500;

/// Takes lines at a socket of its own and sends them on: `by-udp` as RFC 3164, `by-tcp` and `by-tls` as RFC 5424.
fn rsyslog_config(dir: &Path, certs: &Path, [udp, tcp, tls]: [SocketAddr; 3]) -> String {
    let file = |name: &str| certs.join(name).display().to_string();
    format!(
        r#"
global(
    workDirectory="{work}" localHostname="rsyslog-host"
    defaultNetstreamDriverCAFile="{ca}"
    defaultNetstreamDriverCertFile="{cert}"
    defaultNetstreamDriverKeyFile="{key}"
)
module(load="imuxsock" SysSock.Use="off")
input(type="imuxsock" Socket="{socket}" RateLimit.Interval="0" UseSysTimeStamp="on")
if $programname == "by-udp" then
    action(type="omfwd" Target="127.0.0.1" Port="{udp}" Protocol="udp" Template="RSYSLOG_TraditionalForwardFormat")
if $programname == "by-tcp" then
    action(type="omfwd" Target="127.0.0.1" Port="{tcp}" Protocol="tcp" TCP_Framing="octet-counted"
           Template="RSYSLOG_SyslogProtocol23Format")
if $programname == "by-lines" then
    action(type="omfwd" Target="127.0.0.1" Port="{tcp}" Protocol="tcp" Template="RSYSLOG_ForwardFormat")
if $programname == "by-tls" then
    action(type="omfwd" Target="127.0.0.1" Port="{tls}" Protocol="tcp" TCP_Framing="octet-counted"
           StreamDriver="gtls" StreamDriverMode="1" StreamDriverAuthMode="x509/certvalid"
           Template="RSYSLOG_SyslogProtocol23Format")
"#,
        work = dir.display(),
        ca = file("ca.pem"),
        cert = file("client-rsyslog.pem"),
        key = file("client-rsyslog-key.pem"),
        socket = dir.join("in.sock").display(),
        udp = udp.port(),
        tcp = tcp.port(),
        tls = tls.port(),
    )
}

#[test]
#[ignore = "needs Debian's rsyslog: `cargo xtask prove clients` runs it"]
fn rsyslogd_and_logger_are_read_back() -> Result<()> {
    installed("rsyslogd", "rsyslog rsyslog-gnutls")?;
    installed("logger", "bsdutils")?;
    let mut scene = Scene::new("rsyslog")?;
    let certs = scene.dir.join("certs");
    let certs_dir = certs.display().to_string();
    done(PROGRAM, &["cert", "ca", "--dir", &certs_dir])?;
    done(PROGRAM, &["cert", "node", "--id", "1", "--dir", &certs_dir])?;
    for name in ["rsyslog", "tester"] {
        done(PROGRAM, &["cert", "client", "--name", name, "--dir", &certs_dir])?;
    }
    let addresses = free_addresses(4)?;
    let [client, udp, tcp, tls] = addresses[..] else {
        unreachable!()
    };
    let mut server = Command::new(PROGRAM);
    server.args(["server", "--listen", &client.to_string()]);
    server.args(["--syslog-listen", &format!("udp://{udp},tcp://{tcp},tls://{tls}")]);
    server.arg("--data-dir").arg(scene.dir.join("data"));
    for (flag, name) in [
        ("--tls-ca", "ca.pem"),
        ("--tls-cert", "node-1.pem"),
        ("--tls-key", "node-1-key.pem"),
    ] {
        server.arg(flag).arg(certs.join(name));
    }
    scene.spawn(&mut server, "server.log")?;
    let file = |name: &str| certs.join(name).display().to_string();
    let who = [
        ("--endpoint", format!("https://{client}")),
        ("--tls-ca", file("ca.pem")),
        ("--tls-cert", file("client-tester.pem")),
        ("--tls-key", file("client-tester-key.pem")),
    ];
    let who: Vec<String> = who.into_iter().flat_map(|(f, v)| [f.to_owned(), v]).collect();
    let status: Vec<&str> = ["cluster", "status"]
        .into_iter()
        .chain(who.iter().map(String::as_str))
        .collect();
    wait("the server", || Ok(done(PROGRAM, &status).is_ok()))?;

    let config = scene.dir.join("rsyslog.conf");
    std::fs::write(&config, rsyslog_config(&scene.dir, &certs, [udp, tcp, tls]))?;
    let mut rsyslog = Command::new("rsyslogd");
    rsyslog
        .arg("-n")
        .arg("-f")
        .arg(&config)
        .arg("-i")
        .arg(scene.dir.join("pid"));
    scene.spawn(&mut rsyslog, "rsyslog.log")?;
    let socket = scene.dir.join("in.sock");
    wait(&format!("rsyslogd's socket\n{}", scene.log("rsyslog.log")), || {
        Ok(socket.exists())
    })?;
    let socket = socket.display().to_string();
    let text = scene.dir.join("lines.txt");
    let body: String = (0..RSYSLOG_LINES)
        .map(|n| format!("디스크 {n} is at 93 % \"full\"\n"))
        .collect();
    std::fs::write(&text, body)?;
    let text = text.display().to_string();
    for (tag, format) in [
        ("by-udp", "rfc3164"),
        ("by-tcp", "rfc5424"),
        ("by-lines", "rfc3164"),
        ("by-tls", "rfc5424"),
    ] {
        let sent = Instant::now();
        done(
            "logger",
            &["--socket", &socket, "-t", tag, "-p", "local3.warning", "-f", &text],
        )?;
        let query = format!(r#"{{host_name="rsyslog-host", app_name="{tag}", facility="local3", severity="warning"}}"#);
        wait(
            &format!("{tag}\n{}\n{}", scene.log("rsyslog.log"), scene.log("server.log")),
            || Ok(lines(&query, &who)?.len() >= RSYSLOG_LINES),
        )?;
        let read = lines(&query, &who)?;
        let mut numbers: Vec<usize> = vec![];
        for line in &read {
            // rsyslog's template of RFC 5424 keeps the space that stood behind the tag; it is kept here, too.
            let text = line.line.strip_prefix(' ').unwrap_or(&line.line);
            let number = text
                .strip_prefix("디스크 ")
                .and_then(|l| l.strip_suffix(" is at 93 % \"full\""));
            numbers.push(number.with_context(|| format!("{line:?}"))?.parse()?);
            ensure!(line.labels["syslog_format"] == format, "{line:?}");
            ensure!(line.metadata["detected_level"] == "warn", "{line:?}");
        }
        numbers.sort_unstable();
        ensure!(numbers.into_iter().eq(0..RSYSLOG_LINES), "{tag}: each line once");
        println!(
            "rsyslogd, {tag}: {} lines as {format}, each once, {:?} after logger began",
            read.len(),
            sent.elapsed()
        );
    }

    // logger itself.
    let (udp_port, tcp_port) = (udp.port().to_string(), tcp.port().to_string());
    let sd = [
        "--rfc5424",
        "--msgid",
        "ID7",
        "--sd-id",
        "zoo@123",
        "--sd-param",
        "tiger=\"hungry\"",
    ];
    let cases: [(&str, Vec<&str>, &str); 6] = [
        ("udp-3164", vec!["-d", "-P", &udp_port, "--rfc3164"], "rfc3164"),
        (
            "udp-5424",
            [vec!["-d", "-P", &udp_port], sd.to_vec()].concat(),
            "rfc5424",
        ),
        ("tcp-3164", vec!["-T", "-P", &tcp_port, "--rfc3164"], "rfc3164"),
        (
            "tcp-5424",
            [vec!["-T", "-P", &tcp_port], sd.to_vec()].concat(),
            "rfc5424",
        ),
        (
            "tcp-counted",
            [vec!["-T", "-P", &tcp_port, "--octet-count"], sd.to_vec()].concat(),
            "rfc5424",
        ),
        (
            "tcp-counted-3164",
            vec!["-T", "-P", &tcp_port, "--octet-count", "--rfc3164"],
            "rfc3164",
        ),
    ];
    for (tag, how, format) in cases {
        let message = format!("{tag}: 주문 42 placed");
        let args = [
            vec!["-n", "127.0.0.1", "-t", tag, "-i", "-p", "auth.err"],
            how,
            vec![message.as_str()],
        ]
        .concat();
        let sent = Instant::now();
        done("logger", &args)?;
        let query = format!(r#"{{app_name="{tag}", facility="auth", severity="err", syslog_format="{format}"}}"#);
        wait(&format!("{tag}\n{}", scene.log("server.log")), || {
            Ok(!lines(&query, &who)?.is_empty())
        })?;
        let took = sent.elapsed();
        let read = lines(&query, &who)?;
        ensure!(read.len() == 1 && read[0].line == message, "{read:?}");
        ensure!(read[0].metadata.contains_key("procid"), "{read:?}");
        if format == "rfc5424" {
            ensure!(
                read[0].metadata["msgid"] == "ID7" && read[0].metadata["sd_zoo_123_tiger"] == "hungry",
                "{read:?}"
            );
        }
        println!(
            "logger, {tag}: {} {:?}, read back {took:?} after it began",
            read[0].line, read[0].metadata
        );
    }
    let unknown = lines(r#"{syslog_format="unknown"}"#, &who)?;
    ensure!(unknown.is_empty(), "all of it was understood: {unknown:?}");
    Ok(())
}
