//! What the cluster is and how it fares: gRPC `Cluster`, `/api/hindcast/v1/cluster`, and `/metrics` (`metrics.rs`).

use super::admit::Requests;
use axum::extract::State;
use axum::http::header::CONTENT_TYPE;
use axum::response::IntoResponse;
use bytes::Bytes;
use hindcast_alerting::io::Sends;
use hindcast_masking::InForce;
use hindcast_model::{GroupId, NodeId};
use hindcast_node::disk_guard::DiskState;
use hindcast_node::io::node::Node;
use hindcast_node::io::servers::kafka::Kafka;
use hindcast_node::io::servers::scrape::Scraper;
use hindcast_node::io::servers::snmp::Traps;
use hindcast_node::io::servers::syslog::SyslogStats;
use hindcast_node::io::servers::tenants::Tenants;
use hindcast_node::io::servers::{IngestCounters, IngestState};
use hindcast_node::io::tls::Tls;
use hindcast_node::membership::leader_of;
use hindcast_node::node_rows::{NodeRow, Wish};
use hindcast_proto::edge;
use hindcast_proto::v1;
use hindcast_proto::v1::cluster_server::{Cluster, ClusterServer};
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
    pub(super) node: Node,
    /// This node's client address, told to the others.
    client_address: String,
    pub(super) counters: Arc<IngestCounters>,
    pub(super) syslog: Arc<SyslogStats>,
    pub(super) maintenance: super::maintain::Maintenance,
    /// Of the client port.
    pub(super) tls: Option<Tls>,
    pub(super) requests: Arc<Requests>,
    pub(super) sends: Sends,
    pub(super) masks: Arc<InForce>,
    pub(super) tenants: Arc<Tenants>,
    pub(super) scraper: Option<Scraper>,
    pub(super) traps: Option<Traps>,
    pub(super) kafka: Option<Kafka>,
}

impl View {
    pub fn new(
        node: Node,
        client_address: String,
        ingest: &IngestState,
        syslog: Arc<SyslogStats>,
        tls: Option<Tls>,
        requests: Arc<Requests>,
        sends: Sends,
    ) -> Self {
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
            counters: ingest.counters.clone(),
            syslog,
            maintenance: super::maintain::Maintenance::default(),
            tls,
            requests,
            sends,
            masks: ingest.masking.clone(),
            tenants: ingest.tenants.clone(),
            scraper: None,
            traps: None,
            kafka: None,
        }
    }

    pub fn with_scraper(self, scraper: Option<Scraper>) -> Self {
        Self { scraper, ..self }
    }

    pub fn with_traps(self, traps: Option<Traps>) -> Self {
        Self { traps, ..self }
    }

    pub fn with_kafka(self, kafka: Option<Kafka>) -> Self {
        Self { kafka, ..self }
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
                    damaged: own.and_then(|r| r.damaged.clone()).unwrap_or_default(),
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

    pub(super) fn groups(&self) -> Vec<v1::GroupStatus> {
        let ids = std::iter::once(GroupId::META).chain(self.node.shards.keys().copied());
        let group = |g: GroupId| {
            let s = self.node.raft.status(g);
            let stats = self.node.shards.get(&g).map(|s| s.stats());
            v1::GroupStatus {
                group: g.0,
                leader: self.node.whereabouts.leader(g).map_or(0, |l| l.0),
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
                has_copy: self.node.whereabouts.is_here(g),
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
            copies: self.node.identity.replicas,
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

async fn ready(State(v): State<View>) -> (axum::http::StatusCode, String) {
    if v.node.is_ready() {
        return (axum::http::StatusCode::OK, ready_words(v.node.disk.state()));
    }
    let waiting: Vec<String> = v
        .groups()
        .iter()
        .map(|g| GroupId(g.group))
        .filter(|g| !v.node.is_ready_for(*g))
        .map(|g| g.to_string())
        .collect();
    let words = format!(
        "not ready: Raft groups {} have no leader or are behind\n",
        waiting.join(", ")
    );
    (axum::http::StatusCode::SERVICE_UNAVAILABLE, words)
}

pub fn router(view: View) -> axum::Router {
    use axum::routing::get;
    axum::Router::new()
        .route("/-/healthy", get(|| async { "the process runs\n" }))
        .route("/-/ready", get(ready))
        // Loki's clients ask here.
        .route("/ready", get(ready))
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
