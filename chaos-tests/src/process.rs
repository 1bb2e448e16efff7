//! Nodes as processes of this machine, on loopback.

use anyhow::{Context, Result, bail};
use hindcast_proto::v1;
use hindcast_proto::v1::cluster_client::ClusterClient;
use std::net::{SocketAddr, TcpListener};
use std::ops::Range;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tonic::transport::{Channel, Endpoint};

const READY_TIMEOUT: Duration = Duration::from_secs(60);

pub struct Node {
    pub id: u64,
    pub client: SocketAddr,
    args: Vec<String>,
    log: PathBuf,
    child: Option<Child>,
}

/// A cluster in a temporary folder. Nodes die with it; the folder stays when a test panics.
pub struct Cluster {
    pub nodes: Vec<Node>,
    program: PathBuf,
    dir: PathBuf,
    peers: Vec<SocketAddr>,
}

/// Ports of this machine that nobody listens on, each handed out once by this process. They lie below those that the kernel gives to clients,
/// so that a node that was killed finds its own free when it is started again.
pub fn free_addresses(count: usize) -> Result<Vec<SocketAddr>> {
    const PORTS: Range<u32> = 12_000..32_000;
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let mut free = vec![];
    for _ in PORTS {
        if free.len() == count {
            return Ok(free);
        }
        // Other test programs may run beside this one: each begins elsewhere.
        let n = NEXT
            .fetch_add(1, Ordering::Relaxed)
            .wrapping_add(std::process::id().wrapping_mul(101));
        let port = PORTS.start + n % (PORTS.end - PORTS.start);
        if let Ok(held) = TcpListener::bind(("127.0.0.1", port as u16)) {
            free.push(held.local_addr()?);
        }
    }
    bail!("{count} free ports of {PORTS:?} cannot be found")
}

/// An answer over HTTP, head and all.
pub async fn http_get(address: SocketAddr, path: &str) -> Result<String> {
    let mut stream = tokio::net::TcpStream::connect(address).await?;
    let request = format!("GET {path} HTTP/1.0\r\nHost: {address}\r\n\r\n");
    stream.write_all(request.as_bytes()).await?;
    let mut answer = vec![];
    stream.read_to_end(&mut answer).await?;
    Ok(String::from_utf8_lossy(&answer).into_owned())
}

/// The sum of a metric's rows.
pub async fn metric(address: SocketAddr, name: &str) -> Result<f64> {
    let text = http_get(address, "/metrics").await?;
    let rows = text.lines().filter(|l| l.split(['{', ' ']).next() == Some(name));
    let values = rows.map(|l| Ok(l.rsplit(' ').next().context("a row without a value")?.parse::<f64>()?));
    values.sum()
}

/// A channel that connects when it is first used.
pub fn channel(address: SocketAddr, timeout: Duration) -> Channel {
    let endpoint = Endpoint::from_shared(format!("http://{address}")).expect("an address makes a URL");
    endpoint
        .connect_timeout(Duration::from_secs(2))
        .timeout(timeout)
        .connect_lazy()
}

impl Cluster {
    /// Starts `count` nodes of `program`, with more arguments for each; they are not ready yet.
    pub fn start(name: &str, program: &str, count: u64, more: &[&str]) -> Result<Self> {
        let dir = std::env::temp_dir().join(format!("hindcast-{name}-{}", std::process::id()));
        let _ = std::fs::remove_dir_all(&dir);
        let addresses = free_addresses(2 * count as usize)?;
        let (clients, peers) = addresses.split_at(count as usize);
        let join = peers.iter().map(ToString::to_string).collect::<Vec<_>>().join(",");
        let mut cluster = Self {
            nodes: vec![],
            program: program.into(),
            dir,
            peers: peers.to_vec(),
        };
        for (i, client) in clients.iter().enumerate() {
            let id = i as u64 + 1;
            let data = cluster.dir.join(format!("node-{id}"));
            std::fs::create_dir_all(&data)?;
            let mut args: Vec<String> = vec!["server".into()];
            args.extend([
                "--id".into(),
                id.to_string(),
                "--data-dir".into(),
                data.display().to_string(),
            ]);
            args.extend(["--listen".into(), client.to_string()]);
            if count > 1 {
                args.extend([
                    "--peer-listen".into(),
                    peers[i].to_string(),
                    "--join".into(),
                    join.clone(),
                ]);
            }
            args.extend(more.iter().map(|a| (*a).to_owned()));
            cluster.nodes.push(Node {
                id,
                client: *client,
                args,
                log: data.join("log"),
                child: None,
            });
            cluster.spawn(i)?;
        }
        Ok(cluster)
    }

    /// Starts one more node, which asks the others for its id; its place in `nodes`. It is expected to get `id`.
    pub fn start_joining(&mut self, id: u64, more: &[&str]) -> Result<usize> {
        let addresses = free_addresses(2)?;
        let data = self.dir.join(format!("node-{id}"));
        std::fs::create_dir_all(&data)?;
        let peers = self.peers.iter().map(ToString::to_string).collect::<Vec<_>>().join(",");
        let mut args: Vec<String> = vec!["server".into(), "--data-dir".into(), data.display().to_string()];
        args.extend(["--listen".into(), addresses[0].to_string()]);
        args.extend(["--peer-listen".into(), addresses[1].to_string()]);
        args.extend(["--join-cluster".into(), peers]);
        args.extend(more.iter().map(|a| (*a).to_owned()));
        self.nodes.push(Node {
            id,
            client: addresses[0],
            args,
            log: data.join("log"),
            child: None,
        });
        let i = self.nodes.len() - 1;
        self.spawn(i)?;
        Ok(i)
    }

    /// Forgets a node whose process has ended; its folder stays.
    pub fn drop_node(&mut self, i: usize) {
        self.kill(i);
        self.nodes.remove(i);
    }

    pub fn spawn(&mut self, i: usize) -> Result<()> {
        let node = &mut self.nodes[i];
        let log = std::fs::OpenOptions::new().create(true).append(true).open(&node.log)?;
        let mut command = Command::new(&self.program);
        command
            .args(&node.args)
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log);
        node.child = Some(command.spawn().context("the node cannot be started")?);
        Ok(())
    }

    /// The node's next start has `to` in the place of the argument `from`.
    pub fn replace_argument(&mut self, i: usize, from: &str, to: &str) {
        for argument in self.nodes[i].args.iter_mut().filter(|a| *a == from) {
            to.clone_into(argument);
        }
    }

    /// kill -9: no handler runs, nothing is flushed.
    pub fn kill(&mut self, i: usize) {
        if let Some(mut child) = self.nodes[i].child.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }

    /// Waits until a node that was told to end has ended by itself.
    #[allow(clippy::disallowed_methods, reason = "a test on real processes waits in real time")]
    pub async fn wait_ended(&mut self, i: usize, at_most: Duration) -> Result<()> {
        let started = Instant::now();
        while let Some(child) = self.nodes[i].child.as_mut() {
            if child.try_wait()?.is_some() {
                self.nodes[i].child = None;
                break;
            }
            if started.elapsed() > at_most {
                bail!(
                    "node {} still runs after {at_most:?}\n{}",
                    self.nodes[i].id,
                    self.log_tail(i)
                );
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        Ok(())
    }

    pub fn addresses(&self) -> Vec<SocketAddr> {
        self.nodes.iter().map(|n| n.client).collect()
    }

    pub async fn status(&self, i: usize) -> Result<v1::StatusResponse> {
        let mut cluster = ClusterClient::new(channel(self.nodes[i].client, Duration::from_secs(2)));
        Ok(cluster.status(v1::StatusRequest {}).await?.into_inner())
    }

    /// Waits until every node that runs is ready.
    #[allow(clippy::disallowed_methods, reason = "a test on real processes waits in real time")]
    pub async fn wait_ready(&mut self) -> Result<Duration> {
        let started = Instant::now();
        for i in 0..self.nodes.len() {
            while self.nodes[i].child.is_some() {
                if self.status(i).await.is_ok_and(|s| s.ready) {
                    break;
                }
                if let Some(ended) = self.nodes[i].child.as_mut().and_then(|c| c.try_wait().ok().flatten()) {
                    bail!(
                        "node {} ended by itself: {ended}\n{}",
                        self.nodes[i].id,
                        self.log_tail(i)
                    );
                }
                if started.elapsed() > READY_TIMEOUT {
                    bail!(
                        "node {} is not ready after {READY_TIMEOUT:?}\n{}",
                        self.nodes[i].id,
                        self.log_tail(i)
                    );
                }
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        }
        Ok(started.elapsed())
    }

    /// What a node has logged, over all its lives.
    pub fn log(&self, i: usize) -> String {
        std::fs::read_to_string(&self.nodes[i].log).unwrap_or_default()
    }

    pub fn log_tail(&self, i: usize) -> String {
        let text = self.log(i);
        let lines: Vec<&str> = text.lines().collect();
        lines[lines.len().saturating_sub(20)..].join("\n")
    }

    pub fn data_dir(&self, i: usize) -> PathBuf {
        self.dir.join(format!("node-{}", self.nodes[i].id))
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        for i in 0..self.nodes.len() {
            self.kill(i);
        }
        if std::thread::panicking() {
            eprintln!("the nodes' folders are kept: {}", self.dir.display());
        } else {
            let _ = std::fs::remove_dir_all(&self.dir);
        }
    }
}
