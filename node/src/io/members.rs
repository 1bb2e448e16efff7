//! Members of the cluster: joining it, learning of others, and carrying out what `membership` decides.

use super::disk_watch::DiskWatch;
use super::identity::{self, Identity, IdentityError};
use super::meta_client::MetaClient;
use super::node::StartError;
use super::peers::{CALL_JOIN, Peers, call_address};
use super::tls::Tls;
use crate::cluster_part::{CLUSTER_PART, ClusterCommand};
use crate::disk_guard::DiskState;
use crate::membership::Waiting;
use crate::membership::{GroupReport, Moves, PeerReport, Reports, Step, leader_of, next_steps};
use crate::node_rows::{self, NodeRow, Wish};
use crate::shard_machine::ShardHandle;
use bytes::Bytes;
use futures::future::join_all;
use hindcast_env::{Clock, Disk, Rng, SeededRng};
use hindcast_model::{Class, Classify, GroupId, NodeId, codec};
use hindcast_raft::{MemberStep, Meta, MetaError, ProposeError, RaftHost};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;
use tonic::{Code, Status};

const CALL_REPORTS: &str = "groups";
const CALL_STEP: &str = "step";
/// How often addresses are learnt, and the cluster is looked at while something is to be done.
const PAUSE: Duration = Duration::from_millis(500);
/// Of so many looks, one asks everybody, while nothing is to be done as far as this node can see by itself.
const QUIET_LOOKS: u32 = 4;
const REPORT_TIMEOUT: Duration = Duration::from_millis(800);
const STEP_TIMEOUT: Duration = Duration::from_secs(5);
const JOIN_PAUSE: Duration = Duration::from_millis(300);

#[derive(Serialize, Deserialize)]
struct JoinRequest {
    token: [u8; 16],
    address: String,
}

/// What a node needs to take part.
#[derive(Serialize, Deserialize)]
struct Welcome {
    id: NodeId,
    cluster: String,
    founders: BTreeMap<NodeId, String>,
    known: BTreeMap<NodeId, String>,
    shards: u64,
    replicas: u64,
}

/// A step, at the node that carries it out.
#[derive(Serialize, Deserialize)]
enum Order {
    Change {
        group: GroupId,
        steps: Vec<MemberStep>,
        /// Voters and learners that it was decided on: an order that comes late must not take back what came after it.
        #[serde(default)]
        decided_on: Option<(Vec<NodeId>, Vec<NodeId>)>,
    },
    Transfer {
        group: GroupId,
        to: NodeId,
    },
    Rebuild {
        group: GroupId,
    },
    Release {
        group: GroupId,
    },
}

/// Whether it is to be looked at again soon.
fn is_odd(report: &GroupReport) -> bool {
    let is_moving = !report.learners.is_empty() || !report.outgoing.is_empty();
    is_moving
        || report.quarantined.is_some()
        || report.is_rebuilding
        || report.damaged.is_some()
        || report.is_short_of_room
}

/// Who this node is: by its file, or by asking a cluster. Waits for as long as none of the addresses answers.
pub async fn known_or_joined(
    addresses: &[String],
    own_address: &str,
    tls: Option<&Tls>,
    disk: &dyn Disk,
    rng: &mut SeededRng,
) -> Result<NodeId, StartError> {
    if let Some(known) = identity::load(disk)? {
        return Ok(known.node);
    }
    let draw = || {
        let mut token = [0; 16];
        token[..8].copy_from_slice(&rng.next_u64().to_le_bytes());
        token[8..].copy_from_slice(&rng.next_u64().to_le_bytes());
        token
    };
    let request = JoinRequest {
        token: identity::joining_token(disk, draw)?,
        address: own_address.to_owned(),
    };
    let body = Bytes::from(codec::to_bytes(&request));
    let mut said = String::new();
    loop {
        for address in addresses {
            let why = match call_address(address, tls, NodeId(0), CALL_JOIN, body.clone()).await {
                Ok(answer) => match codec::from_bytes::<Welcome>(&answer) {
                    Ok(welcome) => return Ok(settle(disk, welcome)?),
                    Err(e) => return Err(StartError::Joining(e.to_string())),
                },
                Err(status) if status.code() == Code::FailedPrecondition => {
                    return Err(StartError::Joining(status.message().to_owned()));
                }
                Err(status) => format!("{address}: {}", status.message()),
            };
            if why != said {
                tracing::info!(why, "not in the cluster yet; asking again");
                said = why;
            }
        }
        tokio::time::sleep(JOIN_PAUSE).await;
    }
}

fn settle(disk: &dyn Disk, welcome: Welcome) -> Result<NodeId, IdentityError> {
    let identity = Identity {
        cluster: welcome.cluster,
        node: welcome.id,
        nodes: welcome.founders,
        known: welcome.known,
        shards: welcome.shards,
        replicas: welcome.replicas,
        welcomed: BTreeSet::new(),
    };
    identity::store(disk, &identity)?;
    tracing::info!(node = %identity.node, cluster = identity.cluster, "joined a cluster");
    Ok(identity.node)
}

/// Clones share it.
#[derive(Clone)]
pub struct Members(Arc<Inner>);

struct Inner {
    identity: Arc<Identity>,
    raft: RaftHost,
    peers: Arc<Peers>,
    meta: MetaClient,
    shards: Arc<BTreeMap<GroupId, ShardHandle>>,
    disk: DiskWatch,
    clock: Arc<dyn Clock>,
}

impl Members {
    pub fn start(
        identity: Arc<Identity>,
        raft: RaftHost,
        peers: Arc<Peers>,
        meta: MetaClient,
        shards: Arc<BTreeMap<GroupId, ShardHandle>>,
        disk: DiskWatch,
        clock: Arc<dyn Clock>,
    ) -> Self {
        let members = Self(Arc::new(Inner {
            identity,
            raft,
            peers,
            meta,
            shards,
            disk,
            clock,
        }));
        members.register();
        // A node on its own has nobody to look after.
        if !members.0.identity.nodes.is_empty() {
            members.learn();
            tokio::spawn(members.clone().run());
        }
        members
    }

    fn register(&self) {
        let peers = &self.0.peers;
        let m = self.clone();
        peers.register(
            CALL_JOIN,
            Arc::new(move |_, body| {
                let m = m.clone();
                Box::pin(async move { m.welcome(&body).await })
            }),
        );
        let m = self.clone();
        peers.register(
            CALL_REPORTS,
            Arc::new(move |_, _| {
                let reports = codec::to_bytes(&m.own_reports());
                Box::pin(async move { Ok(reports.into()) })
            }),
        );
        let m = self.clone();
        peers.register(
            CALL_STEP,
            Arc::new(move |from, body| {
                let m = m.clone();
                Box::pin(async move {
                    let order = codec::from_bytes(&body).map_err(|e| Status::invalid_argument(e.to_string()))?;
                    let done = m.obey(order).await;
                    done.map_err(|e| Status::aborted(format!("asked by node {from}: {e}")))?;
                    Ok(Bytes::new())
                })
            }),
        );
    }

    async fn welcome(&self, body: &[u8]) -> Result<Bytes, Status> {
        let asked: JoinRequest = codec::from_bytes(body).map_err(|e| Status::invalid_argument(e.to_string()))?;
        let identity = &self.0.identity;
        let command = ClusterCommand::JoinNode {
            token: asked.token,
            address: asked.address,
        };
        let reply = self.propose(command).await.map_err(|e| match e.class() {
            Class::FixRequest => Status::failed_precondition(e.to_string()),
            _ => Status::unavailable(e.to_string()),
        })?;
        let row: NodeRow = codec::from_bytes(&reply).map_err(|e| Status::internal(e.to_string()))?;
        let known = self.rows().into_iter().map(|r| (r.id, r.address));
        let welcome = Welcome {
            id: row.id,
            cluster: identity.cluster.clone(),
            founders: identity.nodes.clone(),
            known: known.filter(|(id, _)| *id != row.id).collect(),
            shards: identity.shards,
            replicas: identity.replicas,
        };
        Ok(codec::to_bytes(&welcome).into())
    }

    async fn propose(&self, command: ClusterCommand) -> Result<Bytes, MetaError> {
        self.0.meta.propose(CLUSTER_PART, codec::to_bytes(&command)).await
    }

    /// Writes down what somebody wants of a node.
    pub async fn wish(&self, node: NodeId, wish: Wish) -> Result<(), MetaError> {
        self.propose(ClusterCommand::WishNode { node, wish }).await.map(drop)
    }

    /// Writes down who is to lead a group.
    pub async fn lead(&self, group: GroupId, node: Option<NodeId>) -> Result<(), MetaError> {
        self.propose(ClusterCommand::LeadGroup { group, node }).await.map(drop)
    }

    /// The nodes that are not gone, as this node knows.
    pub fn rows(&self) -> Vec<NodeRow> {
        let identity = &self.0.identity;
        let mut rows = node_rows::nodes(&*self.0.meta.stale());
        if rows.is_empty() {
            let row = |(id, address): (&NodeId, &String)| NodeRow {
                id: *id,
                address: address.clone(),
                wish: Wish::Member,
                token: None,
            };
            rows = identity.nodes.iter().map(row).collect();
        }
        rows.retain(|r| r.wish != Wish::Removed);
        if !rows.iter().any(|r| r.id == identity.node) {
            let wish = match identity.nodes.is_empty() {
                true => Wish::Member,
                false => Wish::Waiting,
            };
            rows.push(NodeRow {
                id: identity.node,
                address: String::new(),
                wish,
                token: None,
            });
        }
        rows
    }

    /// Who is wished to lead what.
    pub fn leads(&self) -> BTreeMap<GroupId, NodeId> {
        node_rows::leads(&*self.0.meta.stale())
    }

    fn own_reports(&self) -> Vec<GroupReport> {
        self.0.raft.groups().into_iter().map(|g| self.own_report(g)).collect()
    }

    fn own_report(&self, group: GroupId) -> GroupReport {
        let s = self.0.raft.status(group);
        let peer = |p: &hindcast_raft::PeerProgress| PeerReport {
            node: p.node,
            lag: p.lag,
            is_active: p.is_active,
            in_snapshot: p.in_snapshot,
            snapshot: self
                .0
                .peers
                .courier
                .progress(group, p.node)
                .map(|p| (p.bytes_sent, p.bytes)),
        };
        let sorted = |mut nodes: Vec<NodeId>| {
            nodes.sort_unstable();
            nodes
        };
        let has_state = s.applied > 0 || s.quarantined.is_some() || s.is_rebuilding;
        GroupReport {
            group,
            is_leader: s.role == hindcast_raft::Role::Leader,
            term: s.term,
            peers: s.peers.iter().map(peer).collect(),
            voters: sorted(s.voters),
            learners: sorted(s.learners),
            outgoing: sorted(s.outgoing),
            quarantined: s.quarantined,
            is_rebuilding: s.is_rebuilding,
            damaged: self.damaged(group),
            is_short_of_room: self.0.disk.state() != DiskState::Open,
            has_state: Some(has_state),
        }
    }

    /// The first damage that is known of this node's files of a group.
    fn damaged(&self, group: GroupId) -> Option<String> {
        let shard = self.0.shards.get(&group)?;
        shard.reader.damaged().first().map(ToString::to_string)
    }

    /// How the groups stand, by the word of every node that answers.
    pub async fn reports(&self) -> Reports {
        let peers = &self.0.peers;
        let asked = peers.ids().into_iter().map(|id| async move {
            let answer = peers.call(id, CALL_REPORTS, Bytes::new(), REPORT_TIMEOUT).await.ok()?;
            Some((id, codec::from_bytes(&answer).ok()?))
        });
        let mut reports: Reports = join_all(asked).await.into_iter().flatten().collect();
        reports.insert(self.0.identity.node, self.own_reports());
        reports
    }

    /// Addresses are rows of the meta group, of which this node has a copy.
    fn learn(&self) {
        for row in node_rows::nodes(&*self.0.meta.stale()) {
            if row.id == self.0.identity.node {
                continue;
            }
            if row.wish == Wish::Removed {
                self.0.peers.forget(row.id);
            } else if let Err(error) = self.0.peers.learn(row.id, &row.address) {
                tracing::error!(node = %row.id, address = row.address, %error, "a node's address cannot be used");
            }
        }
    }

    async fn run(self) {
        let mut moves = Moves::default();
        let mut told = Waiting::new();
        let mut led = false;
        let mut before = Default::default();
        let mut quiet = QUIET_LOOKS;
        loop {
            tokio::time::sleep(PAUSE).await;
            self.learn();
            if !self.0.meta.is_leader() {
                led = false;
                continue;
            }
            if !led {
                // Leaders of a cluster that just came up are let settle before they are spread.
                moves = Moves::starting(self.0.clock.monotonic());
                led = true;
                quiet = QUIET_LOOKS;
            }
            let seen = (self.rows(), self.leads());
            quiet += 1;
            if quiet < QUIET_LOOKS && seen == before && !self.own_reports().iter().any(is_odd) {
                continue;
            }
            before = seen;
            match self.round(&mut moves).await {
                Ok(true) => quiet = 0,
                // Something is under way.
                Ok(false) => quiet = QUIET_LOOKS,
                Err(error) => {
                    quiet = QUIET_LOOKS;
                    tracing::debug!(%error, "the members have to wait");
                }
            }
            for ((group, node), why) in moves.waiting() {
                if told.get(&(*group, *node)) != Some(why) {
                    tracing::warn!(%group, %node, %why, "a copy with damaged files is not repaired now; see the runbook of scrub findings");
                }
            }
            told.clone_from(moves.waiting());
        }
    }

    /// True: every copy is as it should be, and nothing was to be done.
    async fn round(&self, moves: &mut Moves) -> Result<bool, MetaError> {
        let read = self.0.meta.read().await?;
        let rows = node_rows::nodes(&*read);
        if rows.is_empty() {
            let nodes = self.0.identity.nodes.clone();
            return self.propose(ClusterCommand::FoundNodes { nodes }).await.map(|_| false);
        }
        let leads = node_rows::leads(&*read);
        let reports = self.reports().await;
        let groups = self.0.raft.groups();
        let now = self.0.clock.monotonic();
        let copies = self.copies();
        let steps = next_steps(&rows, &leads, &groups, copies, &reports, now, moves);
        let is_quiet = steps.is_empty() && !reports.values().flatten().any(is_odd);
        join_all(steps.into_iter().map(|step| self.carry_out(step, &reports))).await;
        Ok(is_quiet)
    }

    /// How many nodes have a shard, as was said when the cluster was founded.
    fn copies(&self) -> usize {
        usize::try_from(self.0.identity.replicas).unwrap_or(usize::MAX).max(1)
    }

    async fn carry_out(&self, step: Step, reports: &Reports) {
        let words = format!("{step:?}");
        let done = match step {
            Step::Change { group, leader, steps } => {
                let decided_on = leader_of(reports, group).map(|(_, r)| (r.voters.clone(), r.learners.clone()));
                let order = Order::Change {
                    group,
                    steps,
                    decided_on,
                };
                self.send(leader, order).await
            }
            Step::Transfer { group, leader, to } => self.send(leader, Order::Transfer { group, to }).await,
            Step::Rebuild { group, node } => self.send(node, Order::Rebuild { group }).await,
            Step::Release { group, node } => self.send(node, Order::Release { group }).await,
            Step::Gone { node } => self
                .propose(ClusterCommand::NodeGone { node })
                .await
                .map(drop)
                .map_err(|e| e.to_string()),
        };
        match done {
            Ok(()) => tracing::info!(step = words, "members"),
            // It is seen again in the next round.
            Err(why) => tracing::info!(step = words, why, "members: this step has to wait"),
        }
    }

    async fn send(&self, to: NodeId, order: Order) -> Result<(), String> {
        if to == self.0.identity.node {
            return self.obey(order).await.map_err(|e| e.to_string());
        }
        let body = codec::to_bytes(&order).into();
        let answer = self.0.peers.call(to, CALL_STEP, body, STEP_TIMEOUT).await;
        answer.map(drop).map_err(|status| status.message().to_owned())
    }

    async fn obey(&self, order: Order) -> Result<(), ProposeError> {
        match order {
            Order::Change {
                group,
                steps,
                decided_on,
            } => {
                let now = self.own_report(group);
                if decided_on.is_some_and(|on| on != (now.voters, now.learners)) {
                    return Err(ProposeError::Misfit("they have changed since this was decided"));
                }
                self.0.raft.change_members(group, steps, STEP_TIMEOUT).await.map(drop)
            }
            Order::Transfer { group, to } => {
                self.0.raft.transfer_leader(group, to);
                Ok(())
            }
            Order::Rebuild { group } => {
                match self.damaged(group) {
                    Some(why) => {
                        tracing::warn!(%group, why, "this node gives up its damaged copy and waits for the leader's snapshot");
                        self.0.raft.give_up(group, why);
                    }
                    None => self.0.raft.rebuild(group),
                }
                Ok(())
            }
            Order::Release { group } => {
                let why = "other nodes have all the copies of it that there are to be".to_owned();
                self.0.raft.release(group, why);
                Ok(())
            }
        }
    }
}
