//! One Raft group, driven: inputs go in, the things to do come out. Around raft-rs' `RawNode`, without any I/O.
//!
//! The order of the ready loop (what is sent at once, what only after it is on disk, when an index counts as
//! applied) is decided here and nowhere else. The shell writes, sends, applies and reports back.
//!
//! Invariants
//! - Votes and append responses leave only in `WriteTask::messages`, that is after the task is on disk.
//! - Tasks of a group come out in the order in which they must reach the disk.
//! - A snapshot is installed in this order: announced in the log, the machine's files, the log's new start. Nothing
//!   else of the group reaches the disk in between.
//! - A proposal is answered `Applied` only when the entry with its own id was applied, `Lost` only when another
//!   entry stands at its index for good.
//! - A node that lost entries it had confirmed stops this group (`quarantined`) before raft-rs would panic.

use crate::log::{HardState, LogError, LogWrite, Recovered, SnapshotPoint};
use crate::log_view::{Point, SharedView, ViewError};
use bytes::Bytes;
use hindcast_env::planted::{Bug, planted};
use hindcast_env::{Rng, SeededRng};
use hindcast_model::{GroupId, NodeId};
use protobuf::Message as _;
use raft::eraftpb::{ConfState, Entry, EntryType, Message, MessageType, Snapshot};
use raft::{Config, GetEntriesContext, RawNode, SnapshotStatus, StateRole, Storage, StorageError};
use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};

/// Chosen by the proposer, carried in the entry: how a reply finds its proposal.
pub type ProposalId = [u8; 16];

#[derive(Clone, Debug)]
pub struct DriverConfig {
    pub group: GroupId,
    pub node: NodeId,
    /// Voters when the group begins; later the log knows them.
    pub voters: Vec<NodeId>,
    pub election_ticks: usize,
    /// The election timeout is drawn from `election_ticks..election_ticks + election_spread_ticks`.
    pub election_spread_ticks: u64,
    pub heartbeat_ticks: usize,
    pub message_bytes_max: u64,
    pub inflight_messages_max: usize,
    pub uncommitted_bytes_max: u64,
    pub committed_bytes_per_ready_max: u64,
    /// Applied entries that stay in the log so that a short outage needs no snapshot.
    pub tail_bytes: u64,
    /// Whether this node should lead when all begin together.
    pub preferred: bool,
}

/// Why a proposal failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refused {
    NotLeader(Option<NodeId>),
    /// Too much is proposed and not yet committed.
    Full,
}

#[derive(Clone, Debug, PartialEq)]
pub enum Outcome {
    Applied {
        index: u64,
        reply: Bytes,
    },
    Refused(Refused),
    /// Another entry took its place: certainly not committed.
    Lost(Option<NodeId>),
    /// A snapshot covered its place: nobody here can tell.
    Unknown,
}

#[derive(Debug)]
pub enum Input {
    Tick,
    /// From a peer; parsed, from whom it says it is.
    Message(Message),
    /// A snapshot message whose files lie in `dir`.
    Snapshot {
        message: Message,
        dir: String,
    },
    Propose {
        id: ProposalId,
        data: Vec<u8>,
    },
    /// Asks for an index at which a read sees every write acknowledged before now.
    Read {
        id: u64,
    },
    /// The task with this number, and all before it, are on disk.
    Persisted {
        number: u64,
    },
    Announced,
    /// The machine has applied everything up to `index`; replies of entries that carried an id.
    Applied {
        index: u64,
        replies: Vec<(u64, ProposalId, Bytes)>,
    },
    /// The machine's state is on disk up to here.
    Durable {
        index: u64,
    },
    Installed {
        index: u64,
    },
    /// An export for a peer is complete, or failed.
    Exported {
        to: NodeId,
        result: Option<(u64, String)>,
    },
    SnapshotSent {
        to: NodeId,
        ok: bool,
    },
    Unreachable {
        to: NodeId,
    },
    Transfer {
        to: NodeId,
    },
}

/// Records that reach the disk together with what may be sent only then.
#[derive(Debug, Default)]
pub struct WriteTask {
    /// To be reported as `Persisted` (or `Announced`, or not at all).
    pub number: Option<u64>,
    pub announces: bool,
    pub writes: Vec<LogWrite>,
    pub sync: bool,
    pub messages: Vec<Message>,
}

#[derive(Debug)]
pub enum Output {
    /// Now, before anything of this round is on disk.
    Send(Message),
    Write(WriteTask),
    /// Committed entries, in order. Those without data only count.
    Apply(Vec<Entry>),
    Install {
        index: u64,
        dir: String,
    },
    Export {
        to: NodeId,
    },
    SendSnapshot {
        to: NodeId,
        message: Message,
        dir: String,
    },
    /// The files of a snapshot are not needed.
    Discard {
        dir: String,
    },
    Answer {
        id: ProposalId,
        outcome: Outcome,
    },
    ReadReady {
        id: u64,
        index: u64,
    },
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Role {
    Leader,
    #[default]
    Follower,
    Candidate,
}

/// What the group looks like from here.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct DriverStatus {
    pub role: Role,
    pub leader: Option<NodeId>,
    pub term: u64,
    pub commit: u64,
    pub applied: u64,
    pub durable: u64,
    pub first_index: u64,
    pub last_index: u64,
    pub log_bytes: u64,
    pub voters: Vec<NodeId>,
    pub quarantined: Option<String>,
}

/// raft draws its timeouts from a generator that no seed reaches. It is given so wide a range that what it draws is
/// above this for all practical purposes; that tells when it has drawn, and ours takes its place at once.
const DRAWN_BY_US_MAX: usize = 1 << 10;
const DRAWN_BY_RAFT_MAX: usize = 1 << 40;
/// How many ticks may pass before an unanswered read is asked for again: raft drops requests without a word.
const READ_RETRY_TICKS: u64 = 2;
/// Reads older than this are forgotten; their callers have given up long ago.
const READ_AGE_TICKS_MAX: u64 = 1200;
const COMPACT_EVERY_TICKS: u64 = 10;
/// While a group begins, the preferred leader asks for votes at these ticks, well before anyone's timeout.
const EAGER_TICKS: [u64; 3] = [2, 4, 7];

#[derive(Default)]
struct Snapshots {
    wanted: BTreeSet<u64>,
    exporting: BTreeSet<u64>,
    ready: BTreeMap<u64, (Point, String)>,
    sending: BTreeMap<u64, u64>,
}

/// What raft-rs reads.
struct Store {
    view: SharedView,
    hard: HardState,
    conf: ConfState,
    snapshots: RefCell<Snapshots>,
}

fn raft_error(e: ViewError) -> raft::Error {
    match e {
        ViewError::Compacted => StorageError::Compacted.into(),
        ViewError::Unavailable => StorageError::Unavailable.into(),
        ViewError::Log(e) => StorageError::Other(Box::new(e)).into(),
    }
}

impl Storage for Store {
    fn initial_state(&self) -> raft::Result<raft::RaftState> {
        let mut hard = raft::eraftpb::HardState::default();
        (hard.term, hard.vote, hard.commit) = (self.hard.term, self.hard.vote, self.hard.commit);
        Ok(raft::RaftState::new(hard, self.conf.clone()))
    }

    fn entries(
        &self,
        low: u64,
        high: u64,
        max_size: impl Into<Option<u64>>,
        _: GetEntriesContext,
    ) -> raft::Result<Vec<Entry>> {
        let bytes_max = max_size.into().unwrap_or(u64::MAX);
        self.view.lock().entries(low, high, bytes_max).map_err(raft_error)
    }

    fn term(&self, index: u64) -> raft::Result<u64> {
        self.view.lock().term(index).map_err(raft_error)
    }

    fn first_index(&self) -> raft::Result<u64> {
        Ok(self.view.lock().first_index())
    }

    fn last_index(&self) -> raft::Result<u64> {
        Ok(self.view.lock().last_index())
    }

    fn snapshot(&self, request_index: u64, to: u64) -> raft::Result<Snapshot> {
        let mut s = self.snapshots.borrow_mut();
        let truncated = self.view.lock().truncated();
        match s.ready.get(&to) {
            // One that the log has meanwhile been cut beyond would only lead to the next one.
            Some((at, _)) if at.index >= request_index && at.index >= truncated.index => {
                let mut snapshot = Snapshot::default();
                let meta = snapshot.mut_metadata();
                (meta.index, meta.term) = (at.index, at.term);
                meta.set_conf_state(self.conf.clone());
                Ok(snapshot)
            }
            _ => {
                if !s.exporting.contains(&to) {
                    s.wanted.insert(to);
                }
                Err(StorageError::SnapshotTemporarilyUnavailable.into())
            }
        }
    }
}

struct Read {
    id: u64,
    /// The first request that was issued after the read began.
    seq: u64,
    since_tick: u64,
    index: Option<u64>,
}

struct Installing {
    index: u64,
    dir: String,
    number: u64,
    announced: bool,
    /// Tasks that wait for the machine.
    held: Vec<WriteTask>,
}

pub struct Driver {
    config: DriverConfig,
    node: Option<RawNode<Store>>,
    quarantined: Option<String>,
    rng: SeededRng,
    draws: u64,
    ticks: u64,
    applied: u64,
    durable: u64,
    queued: Vec<(ProposalId, Vec<u8>)>,
    proposed: BTreeMap<u64, ProposalId>,
    reads: Vec<Read>,
    read_prefix: [u8; 16],
    read_seq: u64,
    read_tick: u64,
    incoming: Option<(u64, String)>,
    installing: Option<Installing>,
    /// Number of the task that resets the log, and the snapshot's index.
    resetting: Option<(u64, u64)>,
    out: Vec<Output>,
}

/// What a driver starts from.
pub struct Start {
    pub recovered: Recovered,
    pub view: SharedView,
    pub applied: u64,
    pub durable: u64,
    pub rng: SeededRng,
    pub logger: slog::Logger,
}

impl Driver {
    pub fn new(config: DriverConfig, start: Start) -> Result<Self, raft::Error> {
        let mut rng = start.rng;
        let mut read_prefix = [0; 16];
        read_prefix[..8].copy_from_slice(&config.node.0.to_le_bytes());
        read_prefix[8..].copy_from_slice(&rng.next_u64().to_le_bytes());
        let mut driver = Self {
            node: None,
            quarantined: None,
            rng,
            draws: 0,
            ticks: 0,
            applied: start.applied,
            durable: start.durable,
            queued: Vec::new(),
            proposed: BTreeMap::new(),
            reads: Vec::new(),
            read_prefix,
            read_seq: 0,
            read_tick: 0,
            incoming: None,
            installing: None,
            resetting: None,
            out: Vec::new(),
            config,
        };
        let (hard, conf) = driver.recover(&start.recovered, &start.view);
        if driver.quarantined.is_some() {
            return Ok(driver);
        }
        let store = Store {
            view: start.view,
            hard,
            conf,
            snapshots: RefCell::default(),
        };
        let node = RawNode::new(&driver.raft_config(), store, &start.logger)?;
        let alone = node.raft.prs().is_singleton();
        driver.node = Some(node);
        driver.draw();
        if alone && let Some(node) = &mut driver.node {
            node.campaign()?;
            driver.draw();
        }
        Ok(driver)
    }

    /// Puts log, machine and voters together; what does not fit is a loss that nobody may vote or ack upon.
    fn recover(&mut self, recovered: &Recovered, view: &SharedView) -> (HardState, ConfState) {
        let mut hard = recovered.hard;
        let mut conf = ConfState::default();
        let stored = recovered
            .conf
            .as_ref()
            .and_then(|c| ConfState::parse_from_bytes(c).ok());
        match stored {
            Some(stored) => conf = stored,
            None => {
                conf.set_voters(self.config.voters.iter().map(|n| n.0).collect());
                let bytes = conf.write_to_bytes().expect("voters encode").into();
                self.write(vec![LogWrite::Conf(bytes)], true);
            }
        }
        let mut view = view.lock();
        if let Some(SnapshotPoint { at, conf: bytes }) = &recovered.announced
            && self.applied == at.index
            && view.last_index() != at.index
        {
            // The machine's files made it, the new start of the log did not.
            view.reset(*at);
            if hard.term < at.term {
                (hard.term, hard.vote) = (at.term, 0);
            }
            conf = ConfState::parse_from_bytes(bytes).unwrap_or(conf);
            let point = SnapshotPoint {
                at: *at,
                conf: bytes.clone(),
            };
            self.write(vec![LogWrite::Reset(point), LogWrite::HardState(hard)], true);
        }
        let (first, last) = (view.first_index(), view.last_index());
        drop(view);
        if self.applied > last || hard.commit > last {
            let known = self.applied.max(hard.commit);
            self.quarantine(format!(
                "the log ends at {last}, but entries up to {known} were committed on this node"
            ));
        } else if self.applied + 1 < first {
            let applied = self.applied;
            self.quarantine(format!("the log starts at {first}, but the state ends at {applied}"));
        }
        // The commit index may be written without a sync; what was applied was committed.
        hard.commit = hard.commit.max(self.applied);
        (hard, conf)
    }

    fn raft_config(&self) -> Config {
        let c = &self.config;
        Config {
            id: c.node.0,
            election_tick: c.election_ticks,
            heartbeat_tick: c.heartbeat_ticks,
            min_election_tick: c.election_ticks,
            max_election_tick: DRAWN_BY_RAFT_MAX,
            applied: self.applied,
            max_size_per_msg: c.message_bytes_max,
            max_inflight_msgs: c.inflight_messages_max,
            max_uncommitted_size: c.uncommitted_bytes_max,
            max_committed_size_per_ready: c.committed_bytes_per_ready_max,
            check_quorum: true,
            pre_vote: true,
            batch_append: true,
            ..Config::default()
        }
    }

    fn quarantine(&mut self, why: String) {
        let group = self.config.group;
        self.quarantined = Some(format!(
            "{why}; this copy takes no more part in group {group} until it is rebuilt from a peer"
        ));
        self.node = None;
        let lost: Vec<_> = std::mem::take(&mut self.proposed).into_values().collect();
        for id in lost {
            self.answer(id, Outcome::Unknown);
        }
    }

    pub fn status(&self) -> DriverStatus {
        let mut status = DriverStatus {
            applied: self.applied,
            durable: self.durable,
            voters: self.config.voters.clone(),
            quarantined: self.quarantined.clone(),
            ..DriverStatus::default()
        };
        if let Some(node) = &self.node {
            let raft = &node.raft;
            status.role = match raft.state {
                StateRole::Leader => Role::Leader,
                StateRole::Follower => Role::Follower,
                StateRole::Candidate | StateRole::PreCandidate => Role::Candidate,
            };
            status.leader = node_id(raft.leader_id);
            (status.term, status.commit) = (raft.term, raft.raft_log.committed);
            status.voters = node.store().conf.voters.iter().map(|v| NodeId(*v)).collect();
            let view = node.store().view.lock();
            (status.first_index, status.last_index) = (view.first_index(), view.last_index());
            status.log_bytes = view.bytes();
        }
        status
    }

    /// Takes one input. What comes of it is collected until `ready`.
    pub fn step(&mut self, input: Input) {
        if self.node.is_none() {
            return self.step_quarantined(input);
        }
        match input {
            Input::Tick => self.tick(),
            Input::Message(message) => self.message(message),
            Input::Snapshot { message, dir } => self.snapshot(message, dir),
            Input::Propose { id, data } => self.queued.push((id, data)),
            Input::Read { id } if planted(Bug::ReadWithoutIndex) => {
                let index = self.applied;
                self.out.push(Output::ReadReady { id, index });
            }
            Input::Read { id } => self.reads.push(Read {
                id,
                seq: self.read_seq + 1,
                since_tick: self.ticks,
                index: None,
            }),
            Input::Persisted { number } => self.persisted(number),
            Input::Announced => self.announced(),
            Input::Applied { index, replies } => self.applied(index, replies),
            Input::Durable { index } => self.durable = self.durable.max(index),
            Input::Installed { index } => self.installed(index),
            Input::Exported { to, result } => self.exported(to, result),
            Input::SnapshotSent { to, ok } => self.snapshot_sent(to, ok),
            Input::Unreachable { to } => self.raft(|node| node.report_unreachable(to.0)),
            Input::Transfer { to } => self.raft(|node| node.transfer_leader(to.0)),
        }
        self.draw();
    }

    fn step_quarantined(&mut self, input: Input) {
        match input {
            Input::Propose { id, .. } => self.answer(id, Outcome::Refused(Refused::NotLeader(None))),
            Input::Snapshot { dir, .. }
            | Input::Exported {
                result: Some((_, dir)), ..
            } => {
                self.out.push(Output::Discard { dir });
            }
            _ => {}
        }
    }

    fn raft<T: Default>(&mut self, f: impl FnOnce(&mut RawNode<Store>) -> T) -> T {
        self.node.as_mut().map_or_else(T::default, f)
    }

    /// Our own timeout in place of raft's, whenever raft has drawn one.
    fn draw(&mut self) {
        let Some(node) = &mut self.node else { return };
        if node.raft.randomized_election_timeout() < DRAWN_BY_US_MAX {
            return;
        }
        let mut ticks = self.config.election_ticks + self.rng.below(self.config.election_spread_ticks) as usize;
        if !self.config.preferred && self.draws == 0 {
            // The preferred leader goes first.
            ticks += self.config.election_ticks / 2;
        }
        self.draws += 1;
        node.raft
            .set_randomized_election_timeout(ticks.min(DRAWN_BY_US_MAX - 1));
    }

    fn tick(&mut self) {
        self.ticks += 1;
        self.raft(|node| node.tick());
        if self.config.preferred && EAGER_TICKS.contains(&self.ticks) && self.leader().is_none() {
            // Pre-vote: whoever knows a leader says no, and nothing has happened.
            self.raft(|node| node.campaign().is_ok());
        }
        let oldest = self.ticks.saturating_sub(READ_AGE_TICKS_MAX);
        self.reads.retain(|r| r.since_tick >= oldest);
        if self.ticks.is_multiple_of(COMPACT_EVERY_TICKS) {
            self.compact();
        }
    }

    fn message(&mut self, message: Message) {
        let Some(node) = &mut self.node else { return };
        let last = node.raft.raft_log.last_index();
        if message.get_msg_type() == MessageType::MsgHeartbeat
            && message.term >= node.raft.term
            && message.commit > last
        {
            // The leader commits no further than this node has confirmed.
            let (from, confirmed) = (message.from, message.commit);
            return self.quarantine(format!(
                "the log ends at {last}, but the leader, node {from}, has this node's word for entries up to {confirmed}"
            ));
        }
        // What raft does not take (an unknown peer, a late answer) needs no one's attention.
        let _ = node.step(message);
    }

    fn snapshot(&mut self, message: Message, dir: String) {
        if self.installing.is_some() || self.resetting.is_some() || self.incoming.is_some() {
            // The leader sends it again if it is still needed.
            return self.out.push(Output::Discard { dir });
        }
        self.incoming = Some((message.get_snapshot().get_metadata().index, dir));
        self.message(message);
    }

    fn persisted(&mut self, number: u64) {
        self.raft(|node| node.on_persist_ready(number));
        if let Some((reset, index)) = self.resetting
            && number >= reset
        {
            self.resetting = None;
            self.advance(index);
        }
    }

    fn announced(&mut self) {
        if let Some(installing) = &mut self.installing
            && !installing.announced
        {
            installing.announced = true;
            let (index, dir) = (installing.index, installing.dir.clone());
            self.out.push(Output::Install { index, dir });
        }
    }

    fn installed(&mut self, index: u64) {
        let Some(installing) = self.installing.take() else {
            return;
        };
        assert_eq!(installing.index, index, "one snapshot is installed at a time");
        self.resetting = Some((installing.number, index));
        self.durable = self.durable.max(index);
        self.out.push(Output::Discard { dir: installing.dir });
        self.out.extend(installing.held.into_iter().map(Output::Write));
        let covered = self.proposed.split_off(&(index + 1));
        for id in std::mem::replace(&mut self.proposed, covered).into_values() {
            self.answer(id, Outcome::Unknown);
        }
    }

    fn applied(&mut self, index: u64, replies: Vec<(u64, ProposalId, Bytes)>) {
        let leader = self.leader();
        for (at, id, reply) in replies {
            self.lose_below(at, leader);
            match self.proposed.remove(&at) {
                Some(ours) if ours == id => self.answer(id, Outcome::Applied { index: at, reply }),
                Some(other) => self.answer(other, Outcome::Lost(leader)),
                None => {}
            }
        }
        self.lose_below(index + 1, leader);
        self.advance(index);
    }

    /// Entries below `index` are applied; proposals that had a place there were not among them.
    fn lose_below(&mut self, index: u64, leader: Option<NodeId>) {
        let rest = self.proposed.split_off(&index);
        for id in std::mem::replace(&mut self.proposed, rest).into_values() {
            self.answer(id, Outcome::Lost(leader));
        }
    }

    fn advance(&mut self, index: u64) {
        assert!(
            index >= self.applied,
            "applied goes back from {} to {index}",
            self.applied
        );
        self.applied = index;
        self.raft(|node| {
            node.advance_apply_to(index);
            // What is applied here and has reached every member is not read again, save by one that comes back.
            let members = node.raft.prs().iter().map(|(_, p)| p.matched);
            let reached = match node.raft.state {
                StateRole::Leader => members.min().unwrap_or(index),
                _ => index,
            };
            node.store().view.lock().release(index.min(reached));
        });
        self.serve_reads();
    }

    fn exported(&mut self, to: NodeId, result: Option<(u64, String)>) {
        let Some(node) = &mut self.node else { return };
        let term = result
            .as_ref()
            .and_then(|(index, _)| node.raft.raft_log.term(*index).ok());
        let mut snapshots = node.mut_store().snapshots.borrow_mut();
        snapshots.exporting.remove(&to.0);
        let dir = match (result, term) {
            (Some((index, dir)), Some(term)) => {
                let old = snapshots.ready.insert(to.0, (Point { index, term }, dir));
                old.map(|(_, dir)| dir)
            }
            // The log has been cut beyond it meanwhile.
            (Some((_, dir)), None) => Some(dir),
            (None, _) => None,
        };
        self.out.extend(dir.map(|dir| Output::Discard { dir }));
    }

    fn snapshot_sent(&mut self, to: NodeId, ok: bool) {
        let status = if ok {
            SnapshotStatus::Finish
        } else {
            SnapshotStatus::Failure
        };
        self.raft(|node| {
            node.mut_store().snapshots.borrow_mut().sending.remove(&to.0);
            node.report_snapshot(to.0, status);
        });
    }

    fn leader(&self) -> Option<NodeId> {
        self.node.as_ref().and_then(|n| node_id(n.raft.leader_id))
    }

    fn answer(&mut self, id: ProposalId, outcome: Outcome) {
        self.out.push(Output::Answer { id, outcome });
    }

    fn write(&mut self, writes: Vec<LogWrite>, sync: bool) {
        self.put(WriteTask {
            writes,
            sync,
            ..WriteTask::default()
        });
    }

    /// Hands a task out, or keeps it until the snapshot before it is installed.
    fn put(&mut self, task: WriteTask) {
        match &mut self.installing {
            Some(installing) => installing.held.push(task),
            None => self.out.push(Output::Write(task)),
        }
    }

    /// Everything that is to be done now. Call after a batch of inputs.
    pub fn ready(&mut self) -> Vec<Output> {
        self.propose_queued();
        self.ask_for_reads();
        while self.node.as_ref().is_some_and(RawNode::has_ready) {
            self.one_ready();
            self.draw();
        }
        if self.installing.is_none()
            && let Some((_, dir)) = self.incoming.take()
        {
            // Raft had no use for it.
            self.out.push(Output::Discard { dir });
        }
        self.want_exports();
        std::mem::take(&mut self.out)
    }

    fn one_ready(&mut self) {
        let Some(node) = &mut self.node else { return };
        let mut ready = node.ready();
        for message in ready.take_messages() {
            self.send(message);
        }
        let Some(node) = &mut self.node else { return };
        let mut task = WriteTask {
            number: Some(ready.number()),
            sync: ready.must_sync(),
            ..WriteTask::default()
        };
        let meta = ready.snapshot().get_metadata().clone();
        if meta.index > 0 {
            let at = Point {
                index: meta.index,
                term: meta.term,
            };
            let store = node.mut_store();
            store.view.lock().reset(at);
            store.conf = meta.get_conf_state().clone();
            let conf = store.conf.write_to_bytes().expect("voters encode").into();
            task.writes.push(LogWrite::Reset(SnapshotPoint { at, conf }));
        }
        let entries = ready.take_entries();
        if !entries.is_empty() {
            let version = node.store().view.lock().append(&entries);
            task.writes.push(LogWrite::Entries { version, entries });
        }
        if let Some(hs) = ready.hs() {
            let hard = HardState {
                term: hs.term,
                vote: hs.vote,
                commit: hs.commit,
            };
            node.mut_store().hard = hard;
            let vote = if planted(Bug::VoteNotPersisted) { 0 } else { hard.vote };
            task.writes.push(LogWrite::HardState(HardState { vote, ..hard }));
        }
        for message in ready.take_persisted_messages() {
            // Made while this node led; as a follower it has nothing to do with snapshots for others.
            match message.get_msg_type() {
                MessageType::MsgSnapshot => {}
                _ if planted(Bug::ReplyBeforeSync) => self.out.push(Output::Send(message)),
                _ => task.messages.push(message),
            }
        }
        let committed = ready.take_committed_entries();
        let read_states = ready.take_read_states();
        node.advance_append_async(ready);
        if meta.index > 0 {
            self.begin_install(&task, meta.index);
        }
        self.put(task);
        if !committed.is_empty() {
            self.out.push(Output::Apply(committed));
        }
        for state in read_states {
            self.read_confirmed(state.index, &state.request_ctx);
        }
    }

    fn begin_install(&mut self, task: &WriteTask, index: u64) {
        let Some((_, dir)) = self.incoming.take().filter(|(at, _)| *at == index) else {
            return self.quarantine(format!(
                "raft wants to install a snapshot at {index} whose files are not here"
            ));
        };
        let Some(LogWrite::Reset(point)) = task.writes.first() else {
            unreachable!("a snapshot's task starts with the reset");
        };
        self.put(WriteTask {
            announces: true,
            writes: vec![LogWrite::Announce(point.clone())],
            sync: true,
            ..WriteTask::default()
        });
        self.installing = Some(Installing {
            index,
            dir,
            number: task.number.expect("a ready's task has a number"),
            announced: false,
            held: Vec::new(),
        });
    }

    fn send(&mut self, message: Message) {
        if message.get_msg_type() != MessageType::MsgSnapshot {
            return self.out.push(Output::Send(message));
        }
        let Some(node) = &mut self.node else { return };
        let to = message.to;
        let mut snapshots = node.mut_store().snapshots.borrow_mut();
        if let Some((at, dir)) = snapshots.ready.remove(&to) {
            snapshots.sending.insert(to, at.index);
            drop(snapshots);
            let to = NodeId(to);
            self.out.push(Output::SendSnapshot { to, message, dir });
        }
    }

    fn want_exports(&mut self) {
        let Some(node) = &mut self.node else { return };
        let mut snapshots = node.mut_store().snapshots.borrow_mut();
        for to in std::mem::take(&mut snapshots.wanted) {
            snapshots.exporting.insert(to);
            self.out.push(Output::Export { to: NodeId(to) });
        }
    }

    /// All waiting proposals as few messages: raft then replicates them together.
    fn propose_queued(&mut self) {
        let queued = std::mem::take(&mut self.queued);
        let mut queued = queued.into_iter().peekable();
        while queued.peek().is_some() {
            let mut bytes = 0;
            let mut batch = Vec::new();
            while let Some((_, data)) = queued.peek() {
                bytes += data.len() as u64;
                if bytes > self.config.message_bytes_max && !batch.is_empty() {
                    break;
                }
                batch.extend(queued.next());
            }
            self.propose(batch);
        }
    }

    fn propose(&mut self, batch: Vec<(ProposalId, Vec<u8>)>) {
        let leader = self.leader();
        let ids: Vec<_> = batch.iter().map(|(id, _)| *id).collect();
        let accepted = match &mut self.node {
            // A follower would forward it, and the proposer would never learn what became of it.
            Some(node) if node.raft.state == StateRole::Leader && node.raft.lead_transferee.is_none() => {
                let mut message = Message::default();
                message.set_msg_type(MessageType::MsgPropose);
                message.from = node.raft.id;
                let entries = batch.into_iter().map(|(id, data)| Entry {
                    data: data.into(),
                    context: Bytes::copy_from_slice(&id),
                    ..Entry::default()
                });
                message.set_entries(entries.collect::<Vec<_>>().into());
                match node.raft.step(message) {
                    Ok(()) => Ok(node.raft.raft_log.last_index()),
                    Err(_) => Err(Refused::Full),
                }
            }
            Some(node) if node.raft.state == StateRole::Leader => Err(Refused::NotLeader(None)),
            _ => Err(Refused::NotLeader(leader)),
        };
        match accepted {
            Ok(last) => {
                let first = last + 1 - ids.len() as u64;
                for (index, id) in (first..).zip(ids) {
                    if let Some(earlier) = self.proposed.insert(index, id) {
                        // This leader's log holds another entry there, so that one was never committed.
                        self.answer(earlier, Outcome::Lost(leader));
                    }
                }
            }
            Err(refused) => {
                for id in ids {
                    self.answer(id, Outcome::Refused(refused));
                }
            }
        }
        self.draw();
    }

    fn ask_for_reads(&mut self) {
        let new = self.reads.last().is_some_and(|r| r.seq > self.read_seq);
        let waiting = self.reads.iter().any(|r| r.index.is_none());
        let again = waiting && self.ticks >= self.read_tick + READ_RETRY_TICKS;
        if !new && !again {
            return;
        }
        self.read_seq += 1;
        self.read_tick = self.ticks;
        let context = [self.read_prefix.as_slice(), &self.read_seq.to_le_bytes()].concat();
        self.raft(|node| node.read_index(context));
    }

    fn read_confirmed(&mut self, index: u64, context: &[u8]) {
        let Some(seq) = context.strip_prefix(self.read_prefix.as_slice()) else {
            return;
        };
        let Ok(seq) = seq.try_into().map(u64::from_le_bytes) else {
            return;
        };
        for read in self.reads.iter_mut().filter(|r| r.seq <= seq && r.index.is_none()) {
            read.index = Some(index);
        }
        self.serve_reads();
    }

    fn serve_reads(&mut self) {
        let (applied, out) = (self.applied, &mut self.out);
        self.reads.retain(|read| match read.index {
            Some(index) if index <= applied => {
                out.push(Output::ReadReady { id: read.id, index });
                false
            }
            _ => true,
        });
    }

    /// Cuts the log to what machine, snapshots under way and the wanted tail leave needless.
    fn compact(&mut self) {
        if self.installing.is_some() || self.resetting.is_some() {
            return;
        }
        let tail_bytes = self.config.tail_bytes;
        let durable = if planted(Bug::TruncateBeyondDurable) {
            u64::MAX
        } else {
            self.durable
        };
        let limit = self.applied.min(durable);
        let point = self.raft(|node| {
            let snapshots = node.store().snapshots.borrow();
            let ready = snapshots.ready.values().map(|(at, _)| at.index);
            let limit = ready.chain(snapshots.sending.values().copied()).fold(limit, u64::min);
            let mut view = node.store().view.lock();
            let to = view.excess(limit, tail_bytes)?;
            view.truncate(to)
        });
        if let Some(point) = point {
            self.write(vec![LogWrite::Truncate(point)], false);
        }
    }
}

fn node_id(id: u64) -> Option<NodeId> {
    (id != 0).then_some(NodeId(id))
}

/// The id that an entry was proposed under.
pub fn proposal_id(entry: &Entry) -> Option<ProposalId> {
    entry.context.as_ref().try_into().ok()
}

/// Whether an entry is for the machine: raft adds empty ones of its own.
pub fn is_for_machine(entry: &Entry) -> bool {
    entry.get_entry_type() == EntryType::EntryNormal && !entry.data.is_empty()
}

impl From<LogError> for raft::Error {
    fn from(e: LogError) -> Self {
        StorageError::Other(Box::new(e)).into()
    }
}
