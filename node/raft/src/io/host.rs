//! All Raft groups of a node behind one door: propose, read, receive, status.
//!
//! Threads of its own, apart from tokio: one for raft, one for the log, a few for the machines, two for what machines do
//! beside their applies.

#![allow(
    clippy::disallowed_methods,
    reason = "this is where the node's replication threads start"
)]

use super::log_thread::LogThread;
use super::logger::logger;
use super::raft_thread::{Beats, Event, Fatal, RaftThread};
use super::times::{Times, TimesSeen};
use super::worker::{Owned, Worker};
use super::workshop::Workshop;
use crate::driver::{Driver, DriverConfig, DriverStatus, Input, ProposalId, Role, Start};
use crate::log::{LogConfig, LogError, LogStore};
use crate::log_start::OpenedLog;
use crate::machine::{Machine, MachineError, SnapshotCheck};
use crate::members::{MemberStep, PeerProgress};
use crate::wire::{self, WireMessage};
use bytes::Bytes;
use hindcast_env::{Clock, Disk, DiskError, Rng, SeededRng};
use hindcast_model::limits::ENTRY_BYTES_MAX;
use hindcast_model::{Class, Classify, GroupId, NodeId, SpanNs};
use parking_lot::Mutex;
use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::mpsc::{Sender, channel};
use std::thread::JoinHandle;
use std::time::Duration;
use tokio::sync::{oneshot, watch};

pub struct GroupSpec {
    pub group: GroupId,
    /// Who has it in a new cluster; later the log knows them. Every node is told the same ones, always.
    pub voters: Vec<NodeId>,
    pub machine: Box<dyn Machine>,
}

#[derive(Clone, Debug)]
pub struct RaftConfig {
    pub node: NodeId,
    pub tick: Duration,
    pub election_ticks: usize,
    /// The election timeout is drawn from `election_ticks..election_ticks + election_spread_ticks`.
    pub election_spread_ticks: u64,
    pub heartbeat_ticks: usize,
    /// One append message, and one batch of proposals.
    pub message_bytes_max: u64,
    /// Appends on their way, per follower and group. With `message_bytes_max` what one that catches up makes others wait for: its
    /// entries pass through the threads of the leader and of its own node in one go.
    pub inflight_messages_max: usize,
    /// Proposed and not yet committed, per group.
    pub uncommitted_bytes_max: u64,
    pub committed_bytes_per_ready_max: u64,
    /// Applied entries kept in the log of each group, so that a short outage needs no snapshot; up to eight times as much while a learner is
    /// on its way through them.
    pub tail_bytes: u64,
    pub log: LogConfig,
    /// Threads that apply, at most one for each group. More than processors: one that installs a snapshot holds up no other group.
    pub apply_workers: usize,
    pub maintain_every: Duration,
    /// Proposals that wait for the raft thread, all groups together.
    pub proposal_queue_bytes_max: usize,
    /// Messages of peers that wait for the raft thread; more are dropped.
    pub receive_queue_bytes_max: usize,
    /// Committed and not yet applied, per group; beyond it proposals are refused and appends dropped.
    pub apply_backlog_bytes_max: usize,
}

impl Default for RaftConfig {
    fn default() -> Self {
        Self {
            node: NodeId(1),
            tick: Duration::from_millis(50),
            election_ticks: 10,
            election_spread_ticks: 6,
            heartbeat_ticks: 2,
            message_bytes_max: 1 << 20,
            inflight_messages_max: 8,
            uncommitted_bytes_max: 64 << 20,
            committed_bytes_per_ready_max: 16 << 20,
            tail_bytes: 32 << 20,
            log: LogConfig::default(),
            apply_workers: 8,
            maintain_every: Duration::from_millis(100),
            proposal_queue_bytes_max: 64 << 20,
            receive_queue_bytes_max: 128 << 20,
            apply_backlog_bytes_max: 64 << 20,
        }
    }
}

/// How messages reach other nodes. Implemented by the peer transport, and by a switch in memory in tests.
pub trait Transport: Send + Sync + 'static {
    /// Never blocks; may drop: raft repairs it.
    fn send(&self, to: NodeId, messages: Vec<WireMessage>);
    /// Brings the files in `dir` to the peer, then `message` (to its `receive_snapshot`), then calls `done`, which
    /// also removes `dir`.
    fn send_snapshot(
        &self,
        to: NodeId,
        group: GroupId,
        message: Bytes,
        dir: String,
        done: Box<dyn FnOnce(bool) + Send>,
    );
}

#[derive(Debug, thiserror::Error)]
pub enum RaftError {
    #[error(transparent)]
    Log(#[from] LogError),
    #[error(transparent)]
    Disk(#[from] DiskError),
    #[error("raft does not start group {group}: {why}")]
    Raft { group: GroupId, why: String },
    #[error("nobody founded group {group}: the list of its first nodes is empty")]
    NoVoters { group: GroupId },
    #[error("a thread of the replication cannot be started: {0}")]
    Thread(std::io::Error),
}

/// Why a proposal has no reply. Only `Unconfirmed` leaves open whether it took effect.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum ProposeError {
    #[error("this node does not lead the group; {}", match leader { Some(l) => format!("node {l} does"), None => "nobody does right now".to_owned() })]
    NotLeader { leader: Option<NodeId> },
    #[error("too many bytes wait to be replicated; try again in a second")]
    Full,
    #[error("the proposal has {bytes} bytes, more than {ENTRY_BYTES_MAX}")]
    TooLarge { bytes: usize },
    #[error("the group did not answer in time; the proposal may still take effect")]
    Unconfirmed,
    #[error("replication has stopped on this node")]
    Stopped,
    #[error("another change of the group's members is under way; try again when it has ended")]
    ChangePending,
    #[error("the members cannot be changed so: {0}")]
    Misfit(&'static str),
}

impl Classify for ProposeError {
    fn class(&self) -> Class {
        match self {
            Self::NotLeader { leader: Some(_) } => Class::AskAnotherNode,
            Self::NotLeader { leader: None } | Self::Stopped => Class::Unavailable,
            Self::Full | Self::ChangePending => Class::RetryLater,
            Self::Misfit(_) => Class::FixRequest,
            Self::TooLarge { .. } => Class::TooLarge,
            Self::Unconfirmed => Class::RetrySameId,
        }
    }
}

/// Why a read was not confirmed. Nothing was changed; it may be tried again, also elsewhere.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum ReadError {
    #[error("group {group} has no leader that this node can reach")]
    NoLeader { group: GroupId },
    #[error("this node did not catch up with group {group} in time")]
    Late { group: GroupId },
    #[error("too many reads wait on this node; try again in a second")]
    Full,
    #[error("replication has stopped on this node")]
    Stopped,
}

impl Classify for ReadError {
    fn class(&self) -> Class {
        match self {
            Self::Full => Class::RetryLater,
            Self::NoLeader { .. } | Self::Late { .. } | Self::Stopped => Class::Unavailable,
        }
    }
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Leadership {
    pub role: Role,
    pub leader: Option<NodeId>,
    pub term: u64,
}

/// Who leads a group, as one node sees it. Gives out copies only: a borrow that someone held over an await would
/// stop the raft thread.
#[derive(Clone)]
pub struct LeadershipWatch(watch::Receiver<Leadership>);

impl LeadershipWatch {
    pub fn now(&self) -> Leadership {
        *self.0.borrow()
    }

    /// Waits for the next change. `None`: replication has stopped.
    pub async fn changed(&mut self) -> Option<Leadership> {
        self.0.changed().await.ok()?;
        Some(*self.0.borrow_and_update())
    }

    /// Waits until `wanted` holds; at once when it does already. `None`: replication has stopped.
    pub async fn wait_for(&mut self, wanted: impl FnMut(&Leadership) -> bool) -> Option<Leadership> {
        self.0.wait_for(wanted).await.ok().map(|l| *l)
    }
}

/// What a group looks like from this node.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct GroupStatus {
    pub role: Role,
    pub leader: Option<NodeId>,
    pub term: u64,
    pub commit: u64,
    pub applied: u64,
    pub durable: u64,
    /// What the log still holds.
    pub first_index: u64,
    pub last_index: u64,
    pub log_bytes: u64,
    pub voters: Vec<NodeId>,
    pub learners: Vec<NodeId>,
    /// While the membership is joint: the voters before, who still count.
    pub outgoing: Vec<NodeId>,
    /// How far the others are; known to the leader only.
    pub peers: Vec<PeerProgress>,
    /// Why this copy takes no more part in the group.
    pub quarantined: Option<String>,
    /// This copy lost what it had and waits for a snapshot.
    pub is_rebuilding: bool,
    /// Index and digest of the state there (I3); refreshed about once a second.
    pub digest: (u64, [u8; 32]),
}

pub struct GroupShared {
    pub status: Mutex<DriverStatus>,
    pub digest: Mutex<(u64, [u8; 32])>,
    pub leadership: watch::Sender<Leadership>,
    pub backlog_bytes: AtomicUsize,
    /// This copy counts in the group, by what is applied here, and is whole.
    pub counts: AtomicBool,
    /// This node is the only member, leads, and has applied all that was ever confirmed: it may be read at any time.
    pub is_alone: AtomicBool,
}

struct Inner {
    config: RaftConfig,
    events: Sender<Event>,
    shared: BTreeMap<GroupId, Arc<GroupShared>>,
    checks: BTreeMap<GroupId, SnapshotCheck>,
    disk: Arc<dyn Disk>,
    fatal: watch::Receiver<Option<String>>,
    receive_queue_bytes: Arc<AtomicUsize>,
    proposal_queue_bytes: Arc<AtomicUsize>,
    log_queue_bytes: Arc<AtomicUsize>,
    syncs: Arc<Times>,
    reads: AtomicUsize,
    boot: u64,
    proposal_seq: AtomicU64,
    threads: Mutex<Vec<JoinHandle<()>>>,
}

impl Drop for Inner {
    fn drop(&mut self) {
        self.stop();
    }
}

impl Inner {
    fn stop(&self) {
        let _ = self.events.send(Event::Stop);
        let me = std::thread::current().id();
        for thread in self.threads.lock().drain(..) {
            if thread.thread().id() != me {
                // A panic was told through `fatal` already.
                let _ = thread.join();
            }
        }
    }
}

/// What waits in the replication of one node, in bytes, each with its bound.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RaftQueues {
    pub proposals: (usize, usize),
    pub received: (usize, usize),
    /// Entries for the log thread. What bounds them: proposed and not committed where this node leads, and on their way from
    /// the leader where it follows.
    pub log: (usize, usize),
    /// Committed and not applied.
    pub backlogs: Vec<(GroupId, usize)>,
    pub backlog_max: usize,
}

/// Reads of one node that may wait for an index.
const READS_MAX: usize = 100_000;

/// Clones share the groups. When the last one goes, the threads stop.
#[derive(Clone)]
pub struct RaftHost(Arc<Inner>);

impl RaftHost {
    /// Opens the log in `dir` of the disk and starts all groups. Blocks while the log is read.
    pub fn start(
        disk: Arc<dyn Disk>,
        dir: &str,
        config: RaftConfig,
        groups: Vec<GroupSpec>,
        transport: Arc<dyn Transport>,
        clock: Arc<dyn Clock>,
        mut rng: SeededRng,
    ) -> Result<Self, RaftError> {
        if let Some(spec) = groups.iter().find(|g| g.voters.is_empty()) {
            return Err(RaftError::NoVoters { group: spec.group });
        }
        let snapshot_dir = format!("{dir}/snapshots");
        // Half-sent exports of an earlier life; received ones are the transport's.
        for name in disk.list(&snapshot_dir)? {
            disk.remove_dir_all(&format!("{snapshot_dir}/{name}"))?;
        }
        let has_others = groups.iter().all(|g| g.voters.iter().any(|v| *v != config.node));
        let mut log = OpenedLog::open(&disk, dir, &config.log, has_others)?;
        let boot = rng.next_u64();
        let (events, event_queue) = channel();
        let (fatal_told, fatal) = watch::channel(None);
        let fatal_tell = Fatal {
            told: Arc::new(fatal_told),
            events: events.clone(),
        };
        let mut drivers = BTreeMap::new();
        let mut shared = BTreeMap::new();
        let workers = config.apply_workers.clamp(1, groups.len().max(1));
        let mut checks = BTreeMap::new();
        let own_disk = disk.clone();
        let mut owned: Vec<BTreeMap<GroupId, Owned>> = (0..workers).map(|_| BTreeMap::new()).collect();
        for GroupSpec { group, voters, machine } in groups {
            let lost = log.loss_of(group);
            let mut driver = start_driver(&config, group, voters, machine.as_ref(), &mut log.store, &mut rng)?;
            if let Some(why) = lost {
                driver.step(Input::Lost { why });
            }
            drivers.insert(group, driver);
            let group_shared = Arc::new(GroupShared {
                status: Mutex::default(),
                digest: Mutex::new((machine.applied(), machine.digest())),
                leadership: watch::Sender::new(Leadership::default()),
                backlog_bytes: AtomicUsize::new(0),
                counts: AtomicBool::new(false),
                is_alone: AtomicBool::new(false),
            });
            shared.insert(group, group_shared.clone());
            checks.insert(group, machine.snapshot_check());
            let durable = machine.durable();
            let slot = Owned {
                machine,
                shared: group_shared,
                durable,
                maintain_after: SpanNs::ZERO,
                install: None,
                forgets: false,
                exports: vec![],
                digested: None,
            };
            owned[(group.0 % workers as u64) as usize].insert(group, slot);
        }
        let (syncs, log_queue_bytes) = (Arc::<Times>::default(), Arc::new(AtomicUsize::new(0)));
        let (log_jobs, log_queue) = channel();
        let mut threads = Vec::new();
        let log_thread = LogThread {
            store: log.store,
            jobs: log_queue,
            events: events.clone(),
            transport: transport.clone(),
            fatal: fatal_tell.clone(),
            clock: clock.clone(),
            syncs: syncs.clone(),
            queued_bytes: log_queue_bytes.clone(),
        };
        threads.push(spawn("raft-log", fatal_tell.clone(), move || log_thread.run())?);
        let (workshop, flushes, merges) = Workshop::new();
        let mut worker_queues = Vec::new();
        for (n, machines) in owned.into_iter().enumerate() {
            let (jobs, queue) = channel();
            worker_queues.push(jobs);
            let worker = Worker {
                machines,
                jobs: queue,
                events: events.clone(),
                disk: disk.clone(),
                clock: clock.clone(),
                maintain_every: config.maintain_every,
                workshop: workshop.clone(),
                fatal: fatal_tell.clone(),
            };
            threads.push(spawn(&format!("apply-{n}"), fatal_tell.clone(), move || worker.run())?);
        }
        drop(workshop);
        let receive_queue_bytes = Arc::new(AtomicUsize::new(0));
        let proposal_queue_bytes = Arc::new(AtomicUsize::new(0));
        let raft_thread = RaftThread {
            drivers,
            shared: shared.clone(),
            events: event_queue,
            sender: events.clone(),
            log: log_jobs,
            workers: worker_queues,
            transport,
            disk,
            clock,
            tick: SpanNs(config.tick.as_nanos() as u64),
            snapshot_dir,
            apply_backlog_bytes_max: config.apply_backlog_bytes_max,
            receive_queue_bytes: receive_queue_bytes.clone(),
            proposal_queue_bytes: proposal_queue_bytes.clone(),
            log_queue_bytes: log_queue_bytes.clone(),
            proposals: BTreeMap::new(),
            reads: BTreeMap::new(),
            read_seq: 0,
            exports: 0,
            beats: Beats::default(),
            published: BTreeMap::new(),
            ticks: 0,
        };
        threads.push(spawn("raft", fatal_tell.clone(), move || raft_thread.run())?);
        // Last, as they end after all that hand them work.
        threads.push(spawn("flush", fatal_tell.clone(), move || flushes.run())?);
        threads.push(spawn("merge", fatal_tell, move || merges.run())?);
        Ok(Self(Arc::new(Inner {
            config,
            events,
            shared,
            checks,
            disk: own_disk,
            fatal,
            receive_queue_bytes,
            proposal_queue_bytes,
            log_queue_bytes,
            syncs,
            reads: AtomicUsize::new(0),
            boot,
            proposal_seq: AtomicU64::new(0),
            threads: Mutex::new(threads),
        })))
    }

    pub fn node(&self) -> NodeId {
        self.0.config.node
    }

    pub fn groups(&self) -> Vec<GroupId> {
        self.0.shared.keys().copied().collect()
    }

    /// Replicates `data` and returns its index and what the machine answered. Only the leader takes proposals.
    pub async fn propose(
        &self,
        group: GroupId,
        data: Vec<u8>,
        timeout: Duration,
    ) -> Result<(u64, Bytes), ProposeError> {
        let inner = &self.0;
        let bytes = data.len();
        assert!(bytes > 0, "an entry without data is raft's own");
        if bytes > ENTRY_BYTES_MAX {
            return Err(ProposeError::TooLarge { bytes });
        }
        if inner.proposal_queue_bytes.fetch_add(bytes, Ordering::Relaxed) + bytes
            > inner.config.proposal_queue_bytes_max
        {
            inner.proposal_queue_bytes.fetch_sub(bytes, Ordering::Relaxed);
            return Err(ProposeError::Full);
        }
        let id = self.next_proposal_id();
        let (reply, answer) = oneshot::channel();
        let event = Event::Propose { group, id, data, reply };
        inner.events.send(event).map_err(|_| ProposeError::Stopped)?;
        match tokio::time::timeout(timeout, answer).await {
            Ok(Ok(result)) => result,
            // Stopped or late: in both cases the entry may be on its way.
            Ok(Err(_)) | Err(_) => Err(ProposeError::Unconfirmed),
        }
    }

    fn next_proposal_id(&self) -> ProposalId {
        let seq = self.0.proposal_seq.fetch_add(1, Ordering::Relaxed);
        let mut id = [0; 16];
        // Random per start, so that ids of different nodes and lives do not meet.
        id[..8].copy_from_slice(&self.0.boot.to_le_bytes());
        id[8..].copy_from_slice(&seq.to_le_bytes());
        id
    }

    /// Confirms with a quorum and waits until this node has applied everything acknowledged before the call. The index is one that was
    /// applied then; more may be.
    pub async fn read_index(&self, group: GroupId, timeout: Duration) -> Result<u64, ReadError> {
        let inner = &self.0;
        // A write is confirmed after it is applied here, and seen nowhere else.
        if let Some(shared) = inner.shared.get(&group).filter(|s| s.is_alone.load(Ordering::Acquire)) {
            return Ok(shared.status.lock().applied);
        }
        if inner.reads.fetch_add(1, Ordering::Relaxed) >= READS_MAX {
            inner.reads.fetch_sub(1, Ordering::Relaxed);
            return Err(ReadError::Full);
        }
        let _counted = Counted(&inner.reads);
        let (reply, answer) = oneshot::channel();
        let sent = inner.events.send(Event::Read { group, reply });
        sent.map_err(|_| ReadError::Stopped)?;
        match tokio::time::timeout(timeout, answer).await {
            Ok(Ok(index)) => Ok(index),
            Ok(Err(_)) => Err(ReadError::Stopped),
            Err(_) if self.status(group).leader.is_none() => Err(ReadError::NoLeader { group }),
            Err(_) => Err(ReadError::Late { group }),
        }
    }

    /// Messages of a peer whose name the transport vouches for. What does not fit the queue is dropped.
    pub fn receive(&self, from: NodeId, messages: Vec<WireMessage>) {
        let inner = &self.0;
        let bytes: usize = messages.iter().map(WireMessage::bytes).sum();
        if inner.receive_queue_bytes.fetch_add(bytes, Ordering::Relaxed) + bytes > inner.config.receive_queue_bytes_max
        {
            inner.receive_queue_bytes.fetch_sub(bytes, Ordering::Relaxed);
            return;
        }
        let mut taken = Vec::with_capacity(messages.len());
        for message in messages {
            let group = message.group;
            match wire::unpack(message, from, inner.config.node) {
                Ok(message) => taken.push((group, message)),
                Err(e) => tracing::warn!(%from, %group, error = %e, "a message of a peer is dropped"),
            }
        }
        let _ = inner.events.send(Event::Received { bytes, messages: taken });
    }

    /// A snapshot whose files are complete in `dir` of this node's disk, as the peer read them; `dir` is removed
    /// afterwards. Reads all of them: not to be called where others wait. An error is to be told to the peer.
    pub fn receive_snapshot(&self, group: GroupId, message: Bytes, dir: String) -> Result<(), MachineError> {
        let checked = self.0.checks.get(&group).map_or(Ok(()), |check| check(&dir));
        if let Err(error) = checked {
            // Installing it would end this node, whose own data is well.
            tracing::error!(%group, %error, "a snapshot is refused: the peer that sent it has damaged files");
            if let Err(error) = self.0.disk.remove_dir_all(&dir) {
                tracing::warn!(dir, %error, "files of a snapshot stay behind until the next start");
            }
            return Err(error);
        }
        match wire::parse(&message) {
            Ok(message) if message.to == self.0.config.node.0 => {
                let input = Input::Snapshot { message, dir };
                let _ = self.0.events.send(Event::Inputs(vec![(group, input)]));
            }
            Ok(message) => tracing::warn!(%group, to = message.to, "a snapshot for another node is left alone"),
            Err(e) => tracing::warn!(%group, error = %e, "a snapshot is left alone"),
        }
        Ok(())
    }

    /// The transport could not reach a node: raft slows down until it answers.
    pub fn report_unreachable(&self, to: NodeId) {
        let groups = self.groups().into_iter();
        let inputs = groups.map(|g| (g, Input::Unreachable { to })).collect();
        let _ = self.0.events.send(Event::Inputs(inputs));
    }

    /// An unknown group has the status of one that never began.
    pub fn status(&self, group: GroupId) -> GroupStatus {
        let Some(shared) = self.0.shared.get(&group) else {
            return GroupStatus::default();
        };
        let s = shared.status.lock().clone();
        GroupStatus {
            role: s.role,
            leader: s.leader,
            term: s.term,
            commit: s.commit,
            applied: s.applied,
            durable: s.durable,
            first_index: s.first_index,
            last_index: s.last_index,
            log_bytes: s.log_bytes,
            voters: s.voters,
            learners: s.learners,
            outgoing: s.outgoing,
            peers: s.peers,
            quarantined: s.quarantined,
            is_rebuilding: s.is_rebuilding,
            digest: *shared.digest.lock(),
        }
    }

    /// Whether this node's copy counts in the group and is whole: then it can answer for the group.
    pub fn counts(&self, group: GroupId) -> bool {
        let shared = self.0.shared.get(&group);
        shared.is_some_and(|s| s.counts.load(Ordering::Acquire))
    }

    pub fn is_leader(&self, group: GroupId) -> bool {
        let shared = self.0.shared.get(&group);
        shared.is_some_and(|s| s.leadership.borrow().role == Role::Leader)
    }

    /// Changes of who leads, as this node sees it. `None`: no such group.
    pub fn leadership(&self, group: GroupId) -> Option<LeadershipWatch> {
        let shared = self.0.shared.get(&group);
        shared.map(|s| LeadershipWatch(s.leadership.subscribe()))
    }

    /// Waits until some node is known to lead.
    pub async fn wait_leader(&self, group: GroupId, timeout: Duration) -> Option<NodeId> {
        let mut leadership = self.leadership(group)?;
        let known = leadership.wait_for(|l| l.leader.is_some());
        tokio::time::timeout(timeout, known).await.ok()??.leader
    }

    /// Changes the members of a group that this node leads; the index of the change. Unconfirmed: look at the status.
    pub async fn change_members(
        &self,
        group: GroupId,
        steps: Vec<MemberStep>,
        timeout: Duration,
    ) -> Result<u64, ProposeError> {
        let id = self.next_proposal_id();
        let (reply, answer) = oneshot::channel();
        let event = Event::Change {
            group,
            id,
            steps,
            reply,
        };
        self.0.events.send(event).map_err(|_| ProposeError::Stopped)?;
        match tokio::time::timeout(timeout, answer).await {
            Ok(Ok(result)) => result.map(|(index, _)| index),
            Ok(Err(_)) | Err(_) => Err(ProposeError::Unconfirmed),
        }
    }

    /// This quarantined copy is no member of its group any more: it is to begin again from a snapshot.
    pub fn rebuild(&self, group: GroupId) {
        let _ = self.0.events.send(Event::Inputs(vec![(group, Input::Rebuild)]));
    }

    /// The files of this copy are damaged and its group does not count it any more: it is to begin again from a snapshot.
    pub fn give_up(&self, group: GroupId, why: String) {
        let _ = self.0.events.send(Event::Inputs(vec![(group, Input::GiveUp { why })]));
    }

    /// The group does not count this copy any more and has enough of them: it is to forget what it has.
    /// Never the meta group, which every node has.
    pub fn release(&self, group: GroupId, why: String) {
        if group == GroupId::META {
            return;
        }
        let _ = self.0.events.send(Event::Inputs(vec![(group, Input::Release { why })]));
    }

    /// Asks the leader (this node) to hand over; proposals meanwhile fail. Does nothing on a follower without leader.
    pub fn transfer_leader(&self, group: GroupId, to: NodeId) {
        let _ = self.0.events.send(Event::Inputs(vec![(group, Input::Transfer { to })]));
    }

    pub fn queues(&self) -> RaftQueues {
        let (inner, config) = (&self.0, &self.0.config);
        let held = |bytes: &AtomicUsize| bytes.load(Ordering::Relaxed);
        let appends = config.inflight_messages_max as u64 * config.message_bytes_max;
        let of_group = config.uncommitted_bytes_max.max(appends) as usize;
        let backlogs = inner.shared.iter();
        RaftQueues {
            proposals: (held(&inner.proposal_queue_bytes), config.proposal_queue_bytes_max),
            received: (held(&inner.receive_queue_bytes), config.receive_queue_bytes_max),
            log: (held(&inner.log_queue_bytes), of_group * inner.shared.len()),
            backlogs: backlogs.map(|(g, s)| (*g, held(&s.backlog_bytes))).collect(),
            backlog_max: config.apply_backlog_bytes_max,
        }
    }

    /// How long rounds of the log took until they were on disk.
    pub fn fsync_times(&self) -> TimesSeen {
        self.0.syncs.seen()
    }

    /// Becomes `Some` when the process must end: the disk or a machine failed, or a promise of ours broke.
    pub fn fatal(&self) -> watch::Receiver<Option<String>> {
        self.0.fatal.clone()
    }

    /// Stops all threads and waits for them. What was not synced stays so.
    pub fn shutdown(&self) {
        self.0.stop();
    }
}

struct Counted<'a>(&'a AtomicUsize);

impl Drop for Counted<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

fn start_driver(
    config: &RaftConfig,
    group: GroupId,
    mut voters: Vec<NodeId>,
    machine: &dyn Machine,
    store: &mut LogStore,
    rng: &mut SeededRng,
) -> Result<Driver, RaftError> {
    voters.sort_unstable();
    let preferred = voters[(group.0 % voters.len() as u64) as usize] == config.node;
    let driver_config = DriverConfig {
        group,
        node: config.node,
        voters,
        election_ticks: config.election_ticks,
        election_spread_ticks: config.election_spread_ticks,
        heartbeat_ticks: config.heartbeat_ticks,
        message_bytes_max: config.message_bytes_max,
        inflight_messages_max: config.inflight_messages_max,
        uncommitted_bytes_max: config.uncommitted_bytes_max,
        committed_bytes_per_ready_max: config.committed_bytes_per_ready_max,
        tail_bytes: config.tail_bytes,
        preferred,
    };
    let start = Start {
        recovered: store.recovered(group),
        view: store.view(group),
        applied: machine.applied(),
        durable: machine.durable(),
        rng: SeededRng::new(rng.next_u64()),
        logger: logger(),
    };
    Driver::new(driver_config, start).map_err(|e| RaftError::Raft {
        group,
        why: e.to_string(),
    })
}

/// A panic of a replication thread ends the process in order, not one thread of it in silence.
fn spawn(name: &str, fatal: Fatal, run: impl FnOnce() + Send + 'static) -> Result<JoinHandle<()>, RaftError> {
    let called = name.to_owned();
    let guarded = move || {
        if let Err(panic) = catch_unwind(AssertUnwindSafe(run)) {
            let text = panic.downcast_ref::<String>().cloned();
            let text = text.or_else(|| panic.downcast_ref::<&str>().map(|s| (*s).to_owned()));
            fatal.set(format!("thread {called} panicked: {}", text.unwrap_or_default()));
        }
    };
    let builder = std::thread::Builder::new().name(name.to_owned());
    builder.spawn(guarded).map_err(RaftError::Thread)
}
