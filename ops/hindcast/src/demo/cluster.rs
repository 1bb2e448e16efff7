//! Nodes as child processes, and what the story asks of them over their public API.

use crate::cli::Failure;
use hindcast_proto::v1;
use hindcast_proto::v1::alerts_client::AlertsClient;
use hindcast_proto::v1::cluster_client::ClusterClient;
use hindcast_proto::v1::desk_client::DeskClient;
use hindcast_proto::v1::query_client::QueryClient;
use hindcast_proto::v1::replay_client::ReplayClient;
use hindcast_query::replay::{AsOf, decode_spec};
use std::collections::BTreeMap;
use std::net::{SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;
use tokio::process::{Child, Command};
use tonic::transport::{Channel, Endpoint};

const CALL_TIMEOUT: Duration = Duration::from_secs(30);
const PROBE_TIMEOUT: Duration = Duration::from_secs(2);

struct Node {
    client: SocketAddr,
    args: Vec<String>,
    log: PathBuf,
    child: Option<Child>,
}

pub struct Cluster {
    nodes: BTreeMap<u64, Node>,
    program: PathBuf,
}

pub fn digest_hex(digest: &[u8]) -> String {
    digest.iter().map(|b| format!("{b:02x}")).collect()
}

/// Free loopback ports, all different: held until all are known, then let go.
fn free_ports(count: usize) -> std::io::Result<Vec<SocketAddr>> {
    let held: Vec<TcpListener> = (0..count)
        .map(|_| TcpListener::bind(("127.0.0.1", 0)))
        .collect::<std::io::Result<_>>()?;
    held.iter().map(TcpListener::local_addr).collect()
}

fn channel(address: SocketAddr, timeout: Duration) -> Option<Channel> {
    let endpoint = Endpoint::from_shared(format!("http://{address}")).ok()?;
    Some(endpoint.connect_timeout(PROBE_TIMEOUT).timeout(timeout).connect_lazy())
}

impl Cluster {
    pub async fn start(dir: &Path, count: u64) -> Result<Self, Failure> {
        let failed = |e: std::io::Error| Failure::no(format!("the nodes cannot be started: {e}"));
        let program = std::env::current_exe().map_err(failed)?;
        let ports = free_ports(2 * count as usize).map_err(failed)?;
        let (clients, peers) = ports.split_at(count as usize);
        let join: Vec<String> = peers.iter().map(ToString::to_string).collect();
        let mut cluster = Self {
            nodes: BTreeMap::new(),
            program,
        };
        for (i, client) in clients.iter().enumerate() {
            let id = i as u64 + 1;
            let data = dir.join(format!("node-{id}"));
            std::fs::create_dir_all(&data).map_err(failed)?;
            let path = |p: &Path| p.display().to_string();
            let mut args: Vec<String> = ["server", "--id", &id.to_string(), "--data-dir", &path(&data)]
                .map(str::to_owned)
                .into_iter()
                .chain(["--listen".to_owned(), client.to_string()])
                .chain(["--rules".to_owned(), path(&dir.join("rules.yml"))])
                .chain(["--routes".to_owned(), path(&dir.join("routes.yml"))])
                .collect();
            if count > 1 {
                args.extend([
                    "--peer-listen".to_owned(),
                    peers[i].to_string(),
                    "--join".to_owned(),
                    join.join(","),
                ]);
            }
            cluster.nodes.insert(
                id,
                Node {
                    client: *client,
                    args,
                    log: data.join("log"),
                    child: None,
                },
            );
            cluster.spawn(id)?;
        }
        Ok(cluster)
    }

    fn spawn(&mut self, id: u64) -> Result<(), Failure> {
        let Some(node) = self.nodes.get_mut(&id) else {
            return Ok(());
        };
        let failed = |e: std::io::Error| Failure::no(format!("node {id} cannot be started: {e}"));
        let log = std::fs::OpenOptions::new()
            .create(true)
            .append(true)
            .open(&node.log)
            .map_err(failed)?;
        let child = Command::new(&self.program)
            .args(&node.args)
            .stdin(Stdio::null())
            .stdout(log.try_clone().map_err(failed)?)
            .stderr(log)
            .kill_on_drop(true)
            .spawn();
        node.child = Some(child.map_err(failed)?);
        Ok(())
    }

    pub fn ids(&self) -> Vec<u64> {
        self.nodes.keys().copied().collect()
    }

    pub fn url(&self, id: u64) -> String {
        self.nodes
            .get(&id)
            .map(|n| format!("http://{}", n.client))
            .unwrap_or_default()
    }

    pub fn urls(&self) -> Vec<String> {
        self.ids().into_iter().map(|id| self.url(id)).collect()
    }

    /// Channels to the nodes that run, probes that must not wait long.
    fn living(&self) -> Vec<Channel> {
        let living = self.nodes.values().filter(|n| n.child.is_some());
        living.filter_map(|n| channel(n.client, PROBE_TIMEOUT)).collect()
    }

    fn channel_of(&self, id: u64) -> Result<Channel, Failure> {
        let found = self.nodes.get(&id).and_then(|n| channel(n.client, CALL_TIMEOUT));
        found.ok_or_else(|| Failure::no(format!("there is no node {id}")))
    }

    pub async fn wait_ready(&mut self) -> Result<(), Failure> {
        for id in self.ids() {
            super::until(&format!("readiness of node {id}"), || async {
                let channel = self.nodes.get(&id).and_then(|n| channel(n.client, PROBE_TIMEOUT))?;
                let status = ClusterClient::new(channel).status(v1::StatusRequest {}).await.ok()?;
                status.into_inner().ready.then_some(())
            })
            .await?;
        }
        Ok(())
    }

    pub async fn kill(&mut self, id: u64) {
        if let Some(mut child) = self.nodes.get_mut(&id).and_then(|n| n.child.take()) {
            // tokio's kill is SIGKILL: no handler runs, nothing is flushed.
            let _ = child.kill().await;
        }
    }

    pub async fn restart(&mut self, id: u64) -> Result<(), Failure> {
        self.spawn(id)
    }

    pub async fn stop(&mut self) {
        for id in self.ids() {
            self.kill(id).await;
        }
    }

    /// The end of each node's log, for who has to find out what went wrong.
    pub fn print_logs(&self) {
        for (id, node) in &self.nodes {
            let text = std::fs::read_to_string(&node.log).unwrap_or_default();
            let lines: Vec<&str> = text.lines().collect();
            eprintln!("--- the last lines of node {id}");
            for line in &lines[lines.len().saturating_sub(15)..] {
                eprintln!("{line}");
            }
        }
    }

    /// Tells a node to read its rule and route files again.
    pub async fn reload(&self, id: u64) -> Result<(), Failure> {
        let client = hyper_util::client::legacy::Client::builder(hyper_util::rt::TokioExecutor::new()).build_http();
        let request = hyper::Request::post(format!("{}/-/reload", self.url(id)));
        let request = request.body(http_body_util::Empty::<bytes::Bytes>::new());
        let request = request.map_err(|e| Failure::no(e.to_string()))?;
        let answer = client
            .request(request)
            .await
            .map_err(|e| Failure::no(format!("node {id} cannot reload: {e}")))?;
        match answer.status().is_success() {
            true => Ok(()),
            false => Err(Failure::no(format!(
                "node {id} does not take the rules: {}",
                answer.status()
            ))),
        }
    }

    pub async fn first_incident(&self) -> Option<v1::Incident> {
        for channel in self.living() {
            let listed = AlertsClient::new(channel)
                .list_incidents(v1::ListIncidentsRequest::default())
                .await;
            if let Some(first) = listed
                .ok()
                .and_then(|l| l.into_inner().incidents.into_iter().next_back())
            {
                return Some(first);
            }
        }
        None
    }

    /// The living node that leads the meta group, by its own word.
    pub async fn meta_leader(&self) -> Option<u64> {
        for (id, node) in self.nodes.iter().filter(|(_, n)| n.child.is_some()) {
            let Some(channel) = channel(node.client, PROBE_TIMEOUT) else {
                continue;
            };
            let Ok(status) = ClusterClient::new(channel).status(v1::StatusRequest {}).await else {
                continue;
            };
            if status
                .into_inner()
                .groups
                .iter()
                .any(|g| g.group == 0 && g.leader == *id)
            {
                return Some(*id);
            }
        }
        None
    }

    /// Effects of an incident that are not delivered; all are assumed pending while nobody answers.
    pub async fn undelivered(&self, incident: &str) -> usize {
        for channel in self.living() {
            let asked = v1::ListDeliveriesRequest {
                incident: incident.to_owned(),
            };
            if let Ok(listed) = AlertsClient::new(channel).list_deliveries(asked).await {
                return listed
                    .into_inner()
                    .deliveries
                    .iter()
                    .filter(|d| d.state != "delivered")
                    .count();
            }
        }
        usize::MAX
    }

    pub async fn tickets(&self) -> Vec<v1::Ticket> {
        for channel in self.living() {
            if let Ok(listed) = DeskClient::new(channel).list(v1::ListTicketsRequest::default()).await {
                return listed.into_inner().tickets;
            }
        }
        vec![]
    }

    /// The rule of the incident's first alert.
    pub async fn alert_of(&self, incident: &v1::Incident) -> Result<String, Failure> {
        for channel in self.living() {
            if let Ok(listed) = AlertsClient::new(channel).list_alerts(v1::ListAlertsRequest {}).await {
                let found = listed
                    .into_inner()
                    .alerts
                    .into_iter()
                    .find(|a| a.incident == incident.id);
                if let Some(alert) = found {
                    return Ok(alert.rule);
                }
            }
        }
        Err(Failure::no(format!("no alert of {} is listed", incident.id)))
    }

    /// Samples and log lines that a node holds, by asking it to count them; History and topology are not counted.
    pub async fn counts(&self, id: u64) -> Result<(u64, u64), Failure> {
        let value = |series: &[v1::SeriesResult]| {
            series
                .first()
                .and_then(|s| s.points.last())
                .map_or(0, |p| p.value() as u64)
        };
        let mut query = QueryClient::new(self.channel_of(id)?);
        #[allow(clippy::disallowed_methods, reason = "the demo asks for what is there by now")]
        let now = std::time::SystemTime::now()
            .duration_since(std::time::UNIX_EPOCH)
            .unwrap_or_default();
        let at_ms = now.as_millis() as i64 + 1_000;
        let start_ms = at_ms - 6 * 3_600_000;
        let named = v1::LabelsRequest {
            label: "__name__".to_owned(),
            start_ms,
            end_ms: at_ms,
            matching: vec![],
        };
        let mut samples = 0;
        // Name by name: a count over all names at once would join series that differ in nothing else.
        for name in query.labels(named).await?.into_inner().values {
            let expr = format!("sum(count_over_time({{__name__={name:?}}}[6h]))");
            samples += value(
                &query
                    .instant(v1::InstantRequest { expr, at_ms })
                    .await?
                    .into_inner()
                    .series,
            );
        }
        // Streams of the agent and of the world all name a host; History and topology do not.
        let expr = r#"sum(count_over_time({host_name=~".+"}[6h]))"#.to_owned();
        let end_ns = now.as_nanos() as i64 + 1_000_000_000;
        let logs = v1::LogsRequest {
            expr,
            start_ns: end_ns,
            end_ns,
            ..v1::LogsRequest::default()
        };
        Ok((samples, value(&query.logs(logs).await?.into_inner().series)))
    }

    /// The cut at which an unsealed incident can be played by everybody: made by the first node that plays it.
    pub async fn cut_for(&self, incident: &str) -> Result<String, Failure> {
        let mut replay = ReplayClient::new(self.channel_of(1)?);
        let request = v1::PlayRequest {
            incident: incident.to_owned(),
            ..v1::PlayRequest::default()
        };
        let first = replay.play(request).await?.into_inner().message().await?;
        let first = first.ok_or_else(|| Failure::no("the replay has no frames"))?;
        let spec = decode_spec(&first.frame).map_err(|e| Failure::no(format!("the spec cannot be read: {e}")))?;
        match spec.as_of {
            AsOf::Cut { id, .. } => Ok(id.to_string()),
            AsOf::Corrected => Err(Failure::no("the replay was not played at a cut")),
        }
    }

    /// Plays an incident on one node: the last digest, and how many frames there were (the spec aside).
    pub async fn play(&self, id: u64, incident: &str, cut: &str) -> Result<(Vec<u8>, u64), Failure> {
        let mut replay = ReplayClient::new(self.channel_of(id)?);
        let request = v1::PlayRequest {
            incident: incident.to_owned(),
            as_of: cut.to_owned(),
            digest_only: true,
            ..v1::PlayRequest::default()
        };
        let mut frames = replay.play(request).await?.into_inner();
        let mut last = None;
        while let Some(frame) = frames.message().await? {
            last = Some(frame);
        }
        match last {
            Some(frame) if frame.last => Ok((frame.digest.to_vec(), frame.number)),
            _ => Err(Failure::no(format!("node {id} did not play {incident} to its end"))),
        }
    }
}
