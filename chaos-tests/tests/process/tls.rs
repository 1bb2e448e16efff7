//! Three real nodes that speak TLS, driven by the commands that an operator types: what is acknowledged is read back from each,
//! and whoever has no certificate of this cluster is refused with words.

#![allow(clippy::disallowed_methods, reason = "a test on real processes runs in real time")]

use anyhow::{Context, Result, ensure};
use hindcast_chaos::process::free_addresses;
use std::io::{Read, Write};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

const PROGRAM: &str = env!("CARGO_BIN_EXE_hindcast-under-test");
const NODES: usize = 3;
const PATIENCE: Duration = Duration::from_secs(60);

/// Nodes end with the test; their folder stays when it fails.
struct Nodes {
    dir: PathBuf,
    clients: Vec<SocketAddr>,
    running: Vec<Child>,
}

impl Drop for Nodes {
    fn drop(&mut self) {
        for node in &mut self.running {
            let _ = node.kill();
            let _ = node.wait();
        }
        if std::thread::panicking() {
            eprintln!("the nodes' folders are kept: {}", self.dir.display());
        } else {
            let _ = std::fs::remove_dir_all(&self.dir);
        }
    }
}

fn command(args: &[&str]) -> Result<Output> {
    let mut command = Command::new(PROGRAM);
    Ok(command.args(args).stdin(Stdio::null()).output()?)
}

fn done(args: &[&str]) -> Result<String> {
    let output = command(args)?;
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    ensure!(output.status.success(), "{args:?}: {said}");
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// What a client names: where to, and as whom.
fn as_client(endpoint: &str, certs: &Path, name: &str) -> Vec<String> {
    let file = |f: String| certs.join(f).display().to_string();
    let flags = [
        ("--endpoint", endpoint.to_owned()),
        ("--tls-ca", file("ca.pem".to_owned())),
        ("--tls-cert", file(format!("client-{name}.pem"))),
        ("--tls-key", file(format!("client-{name}-key.pem"))),
    ];
    flags.into_iter().flat_map(|(f, v)| [f.to_owned(), v]).collect()
}

fn with<'a>(args: &[&'a str], flags: &'a [String]) -> Vec<&'a str> {
    args.iter().copied().chain(flags.iter().map(String::as_str)).collect()
}

impl Nodes {
    fn log(&self, i: usize) -> String {
        std::fs::read_to_string(self.dir.join(format!("log-{i}"))).unwrap_or_default()
    }

    fn url(&self, i: usize) -> String {
        format!("https://{}", self.clients[i])
    }

    fn start(certs: &Path, dir: PathBuf) -> Result<Self> {
        let addresses = free_addresses(2 * NODES)?;
        let (clients, peers) = addresses.split_at(NODES);
        let join = peers.iter().map(ToString::to_string).collect::<Vec<_>>().join(",");
        let mut nodes = Self {
            dir,
            clients: clients.to_vec(),
            running: vec![],
        };
        for i in 0..NODES {
            let id = (i + 1).to_string();
            let log = std::fs::File::create(nodes.dir.join(format!("log-{i}")))?;
            let mut node = Command::new(PROGRAM);
            node.args(["server", "--id", &id, "--join", &join]);
            node.args([
                "--listen",
                &clients[i].to_string(),
                "--peer-listen",
                &peers[i].to_string(),
            ]);
            node.arg("--data-dir").arg(nodes.dir.join(format!("node-{id}")));
            node.arg("--tls-ca").arg(certs.join("ca.pem"));
            node.arg("--tls-cert").arg(certs.join(format!("node-{id}.pem")));
            node.arg("--tls-key").arg(certs.join(format!("node-{id}-key.pem")));
            node.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
            nodes.running.push(node.spawn().context("the node cannot be started")?);
        }
        Ok(nodes)
    }
}

/// Waits until `what` is true.
fn wait(what: &str, mut is: impl FnMut() -> Result<bool>) -> Result<()> {
    let started = Instant::now();
    while !is()? {
        ensure!(started.elapsed() < PATIENCE, "{what}: not after {PATIENCE:?}");
        std::thread::sleep(Duration::from_millis(200));
    }
    Ok(())
}

#[test]
fn three_nodes_with_tls_take_and_give_and_refuse_strangers() -> Result<()> {
    let dir = std::env::temp_dir().join(format!("hindcast-tls-{}", std::process::id()));
    let _ = std::fs::remove_dir_all(&dir);
    std::fs::create_dir_all(&dir)?;
    let (certs, strange) = (dir.join("certs"), dir.join("strange"));
    let certs_dir = certs.display().to_string();
    let strange_dir = strange.display().to_string();
    done(&["cert", "ca", "--dir", &certs_dir])?;
    for id in ["1", "2", "3"] {
        done(&["cert", "node", "--id", id, "--dir", &certs_dir])?;
    }
    done(&["cert", "client", "--name", "tester", "--dir", &certs_dir])?;
    let mut nodes = Nodes::start(&certs, dir.clone())?;
    for i in 0..NODES {
        let me = as_client(&nodes.url(i), &certs, "tester");
        wait(&format!("node {i} is ready\n{}", nodes.log(i)), || {
            Ok(command(&with(&["cluster", "status"], &me))?.status.success())
        })?;
    }

    // Taken at one node, given by all.
    let samples: String = (0..200).map(|i| format!("tls_try{{n=\"{i}\"}} {i}\n")).collect();
    let file = dir.join("try.prom");
    std::fs::write(&file, samples + "# EOF\n")?;
    let file = file.display().to_string();
    let me = as_client(&nodes.url(0), &certs, "tester");
    done(&with(&["import", "--format", "openmetrics", &file], &me))?;
    for i in 0..NODES {
        let me = as_client(&nodes.url(i), &certs, "tester");
        let answer = done(&with(&["query", "sum(tls_try) + count(tls_try)", "-o", "csv"], &me))?;
        ensure!(answer.contains("20100"), "node {i} says {answer}");
    }

    // Without TLS, without a certificate, with one of somewhere else.
    let said = |flags: &[String]| -> Result<(Option<i32>, String)> {
        let output = command(&with(&["cluster", "status"], flags))?;
        Ok((
            output.status.code(),
            String::from_utf8_lossy(&output.stderr).into_owned(),
        ))
    };
    let plain = format!("http://{}", nodes.clients[0]);
    let (code, words) = said(&["--endpoint".to_owned(), plain])?;
    ensure!(
        code == Some(2) && words.contains("this port speaks TLS"),
        "{code:?}: {words}"
    );
    let mut http = std::net::TcpStream::connect(nodes.clients[0])?;
    http.write_all(b"GET /-/ready HTTP/1.1\r\nHost: x\r\n\r\n")?;
    let mut answer = String::new();
    http.read_to_string(&mut answer)?;
    ensure!(
        answer.starts_with("HTTP/1.1 400") && answer.contains("this port speaks TLS"),
        "{answer}"
    );
    let (code, words) = said(&me[..4])?;
    ensure!(code == Some(3) && words.contains("--tls-cert"), "{code:?}: {words}");
    let (code, words) = said(&me[..2])?;
    ensure!(
        code == Some(3) && words.contains("authority that is not trusted here"),
        "{code:?}: {words}"
    );
    done(&["cert", "ca", "--dir", &strange_dir])?;
    done(&["cert", "client", "--name", "tester", "--dir", &strange_dir])?;
    let mut stranger = as_client(&nodes.url(0), &strange, "tester");
    stranger[3] = certs.join("ca.pem").display().to_string();
    let (code, words) = said(&stranger)?;
    ensure!(code == Some(3) && words.contains("--tls-cert"), "{code:?}: {words}");
    let log = nodes.log(0);
    for reason in ["plain", "no_certificate", "foreign_ca"] {
        ensure!(log.contains(reason), "{reason} is not in the log:\n{log}");
    }

    // Seen by hand: a node on its own drew an id of its own, and refused every client of its authority.
    let log = std::fs::File::create(dir.join("log-alone"))?;
    let address = free_addresses(1)?[0].to_string();
    let file = |name: &str| certs.join(name).display().to_string();
    let (ca, cert, key) = (file("ca.pem"), file("node-2.pem"), file("node-2-key.pem"));
    let mut alone = Command::new(PROGRAM);
    alone.args(["server", "--id", "2", "--listen", &address]);
    alone.args(["--tls-ca", &ca, "--tls-cert", &cert, "--tls-key", &key]);
    alone.arg("--data-dir").arg(dir.join("alone"));
    alone.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
    nodes.running.push(alone.spawn()?);
    let client = as_client(&format!("https://{address}"), &certs, "tester");
    wait("the node on its own", || Ok(said(&client)?.0 == Some(0)))?;

    // A new certificate is taken without a restart.
    done(&["cert", "node", "--id", "1", "--dir", &certs_dir, "--force"])?;
    wait("the new certificate", || {
        Ok(nodes.log(0).contains("new certificates are in use"))
    })?;
    wait("node 1 with its new certificate", || Ok(said(&me)?.0 == Some(0)))?;
    Ok(())
}
