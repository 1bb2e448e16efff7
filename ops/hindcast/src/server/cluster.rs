//! What the cluster is and how it fares: gRPC `Cluster`, `/api/hindcast/v1/cluster`, `/metrics`.

use axum::extract::State;
use axum::http::header::CONTENT_TYPE;
use axum::response::IntoResponse;
use bytes::Bytes;
use hindcast_model::{GroupId, NodeId};
use hindcast_node::disk_guard::DiskState;
use hindcast_node::io::node::Node;
use hindcast_node::io::servers::IngestCounters;
use hindcast_node::membership::leader_of;
use hindcast_node::node_rows::{NodeRow, Wish};
use hindcast_proto::edge;
use hindcast_proto::v1;
use hindcast_proto::v1::cluster_server::{Cluster, ClusterServer};
use std::fmt::Write as _;
use std::sync::Arc;
use std::time::Duration;
use tonic::{Request, Response, Status};

const CALL_PING: &str = "ping";
const PING_TIMEOUT: Duration = Duration::from_millis(500);
const FLUSH_TIMEOUT: Duration = Duration::from_secs(300);
const FLUSH_PAUSE: Duration = Duration::from_millis(20);

/// The cluster as this node sees it. Clones share it.
#[derive(Clone)]
pub struct View {
    node: Node,
    /// This node's client address, told to the others.
    client_address: String,
    counters: Arc<IngestCounters>,
    maintenance: super::maintain::Maintenance,
}

impl View {
    pub fn new(node: Node, client_address: String, counters: Arc<IngestCounters>) -> Self {
        let own = client_address.clone();
        node.peers.register(
            CALL_PING,
            Arc::new(move |_, _| {
                let own = own.clone();
                Box::pin(async move { Ok(Bytes::from(own)) })
            }),
        );
        Self {
            node,
            client_address,
            counters,
            maintenance: super::maintain::Maintenance::default(),
        }
    }

    async fn nodes(&self) -> Vec<v1::NodeStatus> {
        let asked = self.node.members.rows().into_iter().map(|row| self.ask(row));
        let mut nodes = futures::future::join_all(asked).await;
        nodes.sort_by_key(|n| n.id);
        nodes
    }

    async fn ask(&self, row: NodeRow) -> v1::NodeStatus {
        let (id, peer_address) = (row.id, row.address);
        let state = match row.wish {
            Wish::Waiting => "waiting",
            Wish::Member => "member",
            Wish::Leaving { .. } => "leaving",
            Wish::Removed => "removed",
        };
        if id == self.node.id() {
            return v1::NodeStatus {
                id: id.0,
                peer_address,
                client_address: self.client_address.clone(),
                reachable: true,
                state: state.to_owned(),
            };
        }
        let answer = self.node.peers.call(id, CALL_PING, Bytes::new(), PING_TIMEOUT).await;
        let client_address = answer
            .as_ref()
            .map(|a| String::from_utf8_lossy(a).into_owned())
            .unwrap_or_default();
        v1::NodeStatus {
            id: id.0,
            peer_address,
            client_address,
            reachable: answer.is_ok(),
            state: state.to_owned(),
        }
    }

    /// Who belongs to which group, by the word of its leader.
    async fn members(&self) -> Vec<v1::GroupMembers> {
        let reports = self.node.members.reports().await;
        let leads = self.node.members.leads();
        let ids = |nodes: &[NodeId]| nodes.iter().map(|n| n.0).collect();
        let group = |g: GroupId| {
            let (leader, report) = leader_of(&reports, g)?;
            let members: std::collections::BTreeSet<NodeId> = [&report.voters, &report.learners, &report.outgoing]
                .into_iter()
                .flatten()
                .copied()
                .collect();
            let progress = members.into_iter().map(|node| {
                let peer = report.peers.iter().find(|p| p.node == node);
                let own = reports.get(&node).and_then(|r| r.iter().find(|r| r.group == g));
                v1::MemberProgress {
                    node: node.0,
                    lag: peer.map_or(0, |p| p.lag),
                    active: node == leader || peer.is_some_and(|p| p.is_active),
                    in_snapshot: peer.is_some_and(|p| p.in_snapshot),
                    quarantined: own.and_then(|r| r.quarantined.clone()).unwrap_or_default(),
                    rebuilding: own.is_some_and(|r| r.is_rebuilding),
                    snapshot_bytes_sent: peer.and_then(|p| p.snapshot).map_or(0, |s| s.0),
                    snapshot_bytes: peer.and_then(|p| p.snapshot).map_or(0, |s| s.1),
                }
            });
            Some(v1::GroupMembers {
                group: g.0,
                leader: leader.0,
                voters: ids(&report.voters),
                learners: ids(&report.learners),
                outgoing: ids(&report.outgoing),
                progress: progress.collect(),
                wished_leader: leads.get(&g).map_or(0, |n| n.0),
            })
        };
        self.node.raft.groups().into_iter().filter_map(group).collect()
    }

    fn groups(&self) -> Vec<v1::GroupStatus> {
        let ids = std::iter::once(GroupId::META).chain(self.node.shards.keys().copied());
        let group = |g: GroupId| {
            let s = self.node.raft.status(g);
            let stats = self.node.shards.get(&g).map(|s| s.stats());
            v1::GroupStatus {
                group: g.0,
                leader: s.leader.map_or(0, |l| l.0),
                term: s.term,
                commit: s.commit,
                applied: s.applied,
                durable: s.durable,
                voters: s.voters.iter().map(|v| v.0).collect(),
                digest: s.digest.1.iter().map(|b| format!("{b:02x}")).collect(),
                samples: stats.as_ref().map_or(0, |s| s.samples),
                lines: stats.as_ref().map_or(0, |s| s.lines),
                learners: s.learners.iter().map(|v| v.0).collect(),
                quarantined: s.quarantined.unwrap_or_default(),
            }
        };
        ids.map(group).collect()
    }

    async fn status(&self) -> v1::StatusResponse {
        v1::StatusResponse {
            node: self.node.id().0,
            cluster: self.node.identity.cluster.clone(),
            nodes: self.nodes().await,
            groups: self.groups(),
            ready: self.node.is_ready(),
            members: self.members().await,
        }
    }

    async fn wish(&self, node: u64, wish: Wish) -> Result<Response<v1::WishResponse>, Status> {
        if self.node.identity.nodes.is_empty() {
            let why = "this node is on its own and listens for no peers; a cluster begins with --join on all its nodes";
            return Err(Status::failed_precondition(why));
        }
        let wished = self.node.members.wish(NodeId(node), wish).await;
        wished.map_err(|e| edge::status(&e))?;
        Ok(Response::new(v1::WishResponse {}))
    }

    /// Flushes (and compacts) every shard of this node, and waits for it.
    async fn flush(&self, compact: bool) -> Result<v1::FlushResponse, Status> {
        let shards: Vec<_> = self.node.shards.values().cloned().collect();
        let flushes: Vec<u64> = shards.iter().map(|s| s.ask_flush()).collect();
        let done = async {
            while !shards.iter().zip(&flushes).all(|(s, t)| s.flushed(*t)) {
                tokio::time::sleep(FLUSH_PAUSE).await;
            }
            if compact {
                let compactions: Vec<u64> = shards.iter().map(|s| s.ask_compact()).collect();
                while !shards.iter().zip(&compactions).all(|(s, t)| s.compacted(*t)) {
                    tokio::time::sleep(FLUSH_PAUSE).await;
                }
            }
            // The stats are renewed after the work, by the next round of the owner.
            tokio::time::sleep(FLUSH_PAUSE * 5).await;
        };
        let waited = tokio::time::timeout(FLUSH_TIMEOUT, done).await;
        waited.map_err(|_| Status::deadline_exceeded("not flushed within five minutes; it goes on by itself"))?;
        let stats = shards.iter().map(|s| s.stats());
        let (segments, bytes) = stats.fold((0, 0), |(n, b), s| (n + s.segments as u64, b + s.segment_bytes));
        Ok(v1::FlushResponse { segments, bytes })
    }

    /// `/metrics` in Prometheus' text format.
    fn metrics(&self) -> String {
        let mut out = String::new();
        let mut gauge = |name: &str, help: &str, kind: &str, rows: Vec<(String, f64)>| {
            let _ = writeln!(out, "# HELP {name} {help}\n# TYPE {name} {kind}");
            for (labels, value) in rows {
                let _ = writeln!(out, "{name}{labels} {value}");
            }
        };
        let groups = self.groups();
        let me = self.node.id().0;
        let by_group = |f: &dyn Fn(&v1::GroupStatus) -> f64| {
            groups
                .iter()
                .map(|g| (format!("{{group=\"{}\"}}", g.group), f(g)))
                .collect::<Vec<_>>()
        };
        gauge(
            "hindcast_ready",
            "Whether every group has a leader here.",
            "gauge",
            vec![(String::new(), f64::from(u8::from(self.node.is_ready())))],
        );
        gauge(
            "hindcast_raft_term",
            "Raft term.",
            "gauge",
            by_group(&|g| g.term as f64),
        );
        gauge(
            "hindcast_raft_is_leader",
            "Whether this node leads the group.",
            "gauge",
            by_group(&|g| f64::from(u8::from(g.leader == me))),
        );
        gauge(
            "hindcast_raft_commit_index",
            "Committed entries.",
            "gauge",
            by_group(&|g| g.commit as f64),
        );
        gauge(
            "hindcast_raft_applied_index",
            "Applied entries.",
            "gauge",
            by_group(&|g| g.applied as f64),
        );
        gauge(
            "hindcast_raft_durable_index",
            "Entries whose effect is on disk outside the log.",
            "gauge",
            by_group(&|g| g.durable as f64),
        );
        gauge(
            "hindcast_raft_voters",
            "Members of the group that count, as this node knows.",
            "gauge",
            by_group(&|g| g.voters.len() as f64),
        );
        gauge(
            "hindcast_raft_learners",
            "Members of the group that get everything and count for nothing.",
            "gauge",
            by_group(&|g| g.learners.len() as f64),
        );
        gauge(
            "hindcast_raft_quarantined",
            "Whether this node's copy lost entries it had confirmed and takes no part.",
            "gauge",
            by_group(&|g| f64::from(u8::from(!g.quarantined.is_empty()))),
        );
        let lags = groups.iter().flat_map(|g| {
            let peers = self.node.raft.status(hindcast_model::GroupId(g.group)).peers;
            let row = move |p: &hindcast_raft::PeerProgress| {
                (format!("{{group=\"{}\",node=\"{}\"}}", g.group, p.node), p.lag as f64)
            };
            peers.iter().map(row).collect::<Vec<_>>()
        });
        gauge(
            "hindcast_raft_lag_entries",
            "Committed entries that another member has not confirmed, told by the group's leader.",
            "gauge",
            lags.collect(),
        );
        let disk = &self.node.disk;
        let plain = |value: f64| vec![(String::new(), value)];
        gauge(
            "hindcast_disk_free_bytes",
            "Bytes left on the disk of the data directory.",
            "gauge",
            plain(disk.free() as f64),
        );
        gauge(
            "hindcast_disk_reserve_bytes",
            "Writes are refused when less than this is left.",
            "gauge",
            plain(disk.reserve() as f64),
        );
        gauge(
            "hindcast_disk_writes_refused",
            "Whether writes are refused because the disk is almost full.",
            "gauge",
            plain(f64::from(u8::from(disk.state() != DiskState::Open))),
        );
        gauge(
            "hindcast_disk_refused_parts_total",
            "Parts of batches refused here because the disk was almost full.",
            "counter",
            plain(disk.refused() as f64),
        );
        let by_shard = |f: &dyn Fn(&hindcast_storage::ShardStats) -> f64| {
            let shards = self.node.shards.iter();
            shards
                .map(|(g, s)| (format!("{{group=\"{g}\"}}"), f(&s.stats())))
                .collect::<Vec<_>>()
        };
        gauge(
            "hindcast_storage_samples",
            "Samples held by the shard.",
            "gauge",
            by_shard(&|s| s.samples as f64),
        );
        gauge(
            "hindcast_storage_lines",
            "Log lines held by the shard.",
            "gauge",
            by_shard(&|s| s.lines as f64),
        );
        gauge(
            "hindcast_storage_window_values",
            "Values of windows that old samples were rolled up to.",
            "gauge",
            by_shard(&|s| s.window_values as f64),
        );
        gauge(
            "hindcast_storage_segments",
            "Segment files.",
            "gauge",
            by_shard(&|s| s.segments as f64),
        );
        gauge(
            "hindcast_storage_segment_bytes",
            "Bytes of segment files.",
            "gauge",
            by_shard(&|s| s.segment_bytes as f64),
        );
        gauge(
            "hindcast_storage_cold_segments",
            "Segment files that are in the cold store.",
            "gauge",
            by_shard(&|s| s.cold_segments as f64),
        );
        gauge(
            "hindcast_storage_cold_bytes",
            "Bytes of segment files that are in the cold store, of hindcast_storage_segment_bytes.",
            "gauge",
            by_shard(&|s| s.cold_bytes as f64),
        );
        gauge(
            "hindcast_cold_uploads_total",
            "Files that went to the cold store since this node started.",
            "counter",
            by_shard(&|s| s.cold.puts as f64),
        );
        gauge(
            "hindcast_cold_upload_bytes_total",
            "Bytes of files that went to the cold store since this node started.",
            "counter",
            by_shard(&|s| s.cold.put_bytes as f64),
        );
        gauge(
            "hindcast_cold_deletes_total",
            "Files that were deleted in the cold store since this node started.",
            "counter",
            by_shard(&|s| s.cold.deletes as f64),
        );
        gauge(
            "hindcast_cold_failures_total",
            "Work with the cold store that failed and was to be tried again, since this node started.",
            "counter",
            by_shard(&|s| s.cold.failures as f64),
        );
        if let Some(cold) = &self.node.cold {
            let cache = cold.stats();
            gauge(
                "hindcast_cold_cache_hits_total",
                "Blocks of cold files that were in memory when they were asked for.",
                "counter",
                plain(cache.hits as f64),
            );
            gauge(
                "hindcast_cold_cache_misses_total",
                "Blocks of cold files that were fetched from the store.",
                "counter",
                plain(cache.misses as f64),
            );
            gauge(
                "hindcast_cold_cache_bytes",
                "Bytes of cold files that are held in memory.",
                "gauge",
                plain(cache.bytes as f64),
            );
        }
        let shards = self.node.shards.iter();
        let dropped = shards.flat_map(|(g, s)| s.dropped().into_iter().map(move |(policy, d)| (*g, policy, d)));
        let rows = dropped.flat_map(|(group, policy, d)| {
            let kinds = [
                ("samples", d.samples),
                ("windows", d.windows),
                ("lines", d.lines),
                ("late_samples", d.late),
                ("bytes", d.bytes),
            ];
            let row = move |(kind, n): (&str, u64)| {
                let labels = format!("{{group=\"{group}\",policy={policy:?},kind=\"{kind}\"}}");
                (labels, n as f64)
            };
            kinds.map(row)
        });
        gauge(
            "hindcast_retention_dropped_total",
            "What each retention policy let go on this node since it started, about for bytes.",
            "counter",
            rows.collect(),
        );
        let mut named = std::collections::BTreeMap::<&str, Vec<(String, f64)>>::new();
        let counters = self.counters.list();
        for sample in &counters {
            let pairs: Vec<String> = sample.labels.iter().map(|(n, v)| format!("{n}={v:?}")).collect();
            let labels = if pairs.is_empty() {
                String::new()
            } else {
                format!("{{{}}}", pairs.join(","))
            };
            named
                .entry(sample.name)
                .or_default()
                .push((labels, sample.value as f64));
        }
        for (name, rows) in named {
            gauge(name, "Counted at the edge of ingest.", "counter", rows);
        }
        out
    }
}

/// A node with a full disk still answers reads, so it is ready; that it takes no writes is told beside it.
fn ready_words(disk: DiskState) -> String {
    match disk {
        DiskState::Open => "ready\n".to_owned(),
        DiskState::Refuse { free, reserve } => format!(
            "ready for reads; writes are refused: the disk has {free} bytes left, and {reserve} are kept free\n"
        ),
    }
}

pub fn router(view: View) -> axum::Router {
    use axum::routing::get;
    axum::Router::new()
        .route("/-/healthy", get(|| async { "the process runs\n" }))
        .route(
            "/-/ready",
            get(|State(v): State<View>| async move {
                if v.node.is_ready() {
                    (axum::http::StatusCode::OK, ready_words(v.node.disk.state()))
                } else {
                    let waiting: Vec<String> = v
                        .groups()
                        .iter()
                        .filter(|g| g.leader == 0 || g.applied < g.commit)
                        .map(|g| g.group.to_string())
                        .collect();
                    let words = format!(
                        "not ready: Raft groups {} have no leader or are behind\n",
                        waiting.join(", ")
                    );
                    (axum::http::StatusCode::SERVICE_UNAVAILABLE, words)
                }
            }),
        )
        .route(
            "/metrics",
            get(|State(v): State<View>| async move {
                (
                    [(CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")],
                    v.metrics(),
                )
                    .into_response()
            }),
        )
        .route(
            "/api/hindcast/v1/cluster",
            get(|State(v): State<View>| async move {
                let mut status = crate::cli::cluster::json(&v.status().await);
                status["ui"] = hindcast_web::is_built().into();
                axum::Json(status)
            }),
        )
        .with_state(view)
}

pub fn service(view: View) -> ClusterServer<View> {
    ClusterServer::new(view)
}

#[tonic::async_trait]
impl Cluster for View {
    async fn status(&self, _: Request<v1::StatusRequest>) -> Result<Response<v1::StatusResponse>, Status> {
        Ok(Response::new(View::status(self).await))
    }

    async fn add_node(&self, request: Request<v1::AddNodeRequest>) -> Result<Response<v1::WishResponse>, Status> {
        self.wish(request.into_inner().node, Wish::Member).await
    }

    async fn remove_node(&self, request: Request<v1::RemoveNodeRequest>) -> Result<Response<v1::WishResponse>, Status> {
        let wish = Wish::Leaving { replaced_by: None };
        self.wish(request.into_inner().node, wish).await
    }

    async fn move_node(&self, request: Request<v1::MoveNodeRequest>) -> Result<Response<v1::WishResponse>, Status> {
        let v1::MoveNodeRequest { from, to } = request.into_inner();
        let replaced_by = Some(NodeId(to));
        self.wish(from, Wish::Leaving { replaced_by }).await
    }

    async fn lead_group(&self, request: Request<v1::LeadGroupRequest>) -> Result<Response<v1::WishResponse>, Status> {
        let v1::LeadGroupRequest { group, node } = request.into_inner();
        let group = GroupId(group);
        if !self.node.raft.groups().contains(&group) {
            return Err(Status::not_found(format!("there is no group {group}")));
        }
        let node = (node != 0).then_some(NodeId(node));
        let wished = self.node.members.lead(group, node).await;
        wished.map_err(|e| edge::status(&e))?;
        Ok(Response::new(v1::WishResponse {}))
    }

    async fn flush(&self, request: Request<v1::FlushRequest>) -> Result<Response<v1::FlushResponse>, Status> {
        Ok(Response::new(View::flush(self, request.into_inner().compact).await?))
    }

    type MaintainStream = super::maintain::Progress;

    async fn maintain(&self, request: Request<v1::MaintainRequest>) -> Result<Response<Self::MaintainStream>, Status> {
        let progress = self.maintenance.start(&self.node, &request.into_inner())?;
        Ok(Response::new(progress))
    }
}
