//! One Raft group, driven: inputs go in, the things to do come out. Around raft-rs' `RawNode`, without any I/O.
//!
//! The order of the ready loop (what is sent at once, what only after it is on disk, when an index counts as
//! applied) is decided here and nowhere else. The shell writes, sends, applies and reports back.
//!
//! Invariants
//! - Votes and append responses leave only in `WriteTask::messages`, that is after the task is on disk; or at once when the
//!   task has nothing to write and all before it are on disk.
//! - Tasks of a group come out in the order in which they must reach the disk.
//! - A snapshot is installed in this order: announced in the log, the machine's files, the log's new start. Nothing
//!   else of the group reaches the disk in between.
//! - A proposal is answered `Applied` only when the entry with its own id was applied, `Lost` only when another
//!   entry stands at its index for good.
//! - A node that lost entries it had confirmed stops this group (`quarantined`) before raft-rs would panic. Told that it
//!   counts no more (`Rebuild`), it forgets its log, keeps its vote, and takes nothing but a snapshot. One whose machine
//!   has damaged files does the same (`GiveUp`), never while it counts by its own log. Started anew in between it waits on if its
//!   machine is empty; else it is quarantined again, for another reason ([`Driver::GIVEN_UP`]), and healed as from a loss.
//! - The membership is the one as of the applied index, also after a crash: what is written is a membership at or before
//!   the machine's durable index, and the entries behind it are in the log.
//! - One change of members at a time. A node that finds itself removed neither leads nor campaigns any more.

use crate::log::{HardState, LogError, LogWrite, Recovered, SnapshotPoint};
use crate::log_view::{LogView, Point, SharedView, ViewError};
use crate::members::{self, Confs, MemberStep, PeerProgress};
use bytes::Bytes;
use hindcast_env::buggify::{Point as Rare, buggify};
use hindcast_env::planted::{Bug, planted};
use hindcast_env::reached::{Mark, reached};
use hindcast_env::{Rng, SeededRng};
use hindcast_model::{GroupId, NodeId};
use protobuf::Message as _;
use raft::eraftpb::{ConfChangeType, ConfChangeV2, ConfState, Entry, EntryType, Message, MessageType, Snapshot};
use raft::{Config, GetEntriesContext, ProgressState, RawNode, SnapshotStatus, StateRole, Storage, StorageError};
use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet, VecDeque};

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
    /// Another change of the members is under way; one at a time.
    ChangePending,
    /// The change of the members would hurt.
    Misfit(&'static str),
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
    /// Changes the members; answered like a proposal, with an empty reply, once the change itself is applied (a joint
    /// membership ends by itself soon after).
    Change {
        id: ProposalId,
        steps: Vec<MemberStep>,
    },
    /// What this copy confirmed is not here any more: it takes no part from now on.
    Lost {
        why: String,
    },
    /// This quarantined copy counts no more in the group: it is to begin again from a snapshot.
    Rebuild,
    /// This copy counts no more in the group, which has enough of them: it is to forget what it has.
    Release {
        why: String,
    },
    /// The machine has forgotten what it had.
    Forgotten,
    /// The machine's files are damaged, and the others have taken this copy out: it is to begin again like one that lost
    /// what it had confirmed. As long as it counts by its own log, it does nothing.
    GiveUp {
        why: String,
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
    /// The machine is to forget what it has.
    Forget,
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
    pub learners: Vec<NodeId>,
    /// While the membership is joint: the voters before, who still count.
    pub outgoing: Vec<NodeId>,
    /// Of the other members; known to the leader only.
    pub peers: Vec<PeerProgress>,
    pub quarantined: Option<String>,
    /// It lost what it had, counts for nothing, and waits for a snapshot.
    pub is_rebuilding: bool,
}

/// See [`Driver::pulse`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pulse {
    role: StateRole,
    leader: u64,
    term: u64,
    commit: u64,
    applied: u64,
    durable: u64,
    is_out: bool,
    pub(crate) is_alone: bool,
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
/// A membership that stays joint for so long is ended by the leader: raft does it by itself, save when leaders change at
/// the wrong moment.
pub const JOINT_TICKS_MAX: u64 = 40;
/// While a group begins, the preferred leader asks for votes at these ticks, well before anyone's timeout.
const EAGER_TICKS: [u64; 3] = [2, 4, 7];

#[derive(Default)]
struct Snapshots {
    wanted: BTreeSet<u64>,
    exporting: BTreeSet<u64>,
    ready: BTreeMap<u64, (Point, String)>,
    sending: BTreeMap<u64, u64>,
}

/// How much of the log learners that are far behind are sent between two ticks. With all of it at once, a node that joins takes
/// processors and disks from those who write.
#[derive(Default)]
struct CatchUp {
    /// Up to this index every voter that is well has the log: who asks for such entries counts for nothing yet, or was away.
    below: u64,
    bytes_left: u64,
    /// Who asked for more.
    waiting: Vec<GetEntriesContext>,
}

/// At ticks of 50 ms: 10 MiB a second.
const CATCH_UP_BYTES_PER_TICK: u64 = 512 << 10;
/// For each learner that is behind so many times what the group grew by, so that all of them catch up however much is written, one after
/// the other.
const CATCH_UP_TIMES: u64 = 4;
/// So many tails of the log are kept for a learner that is on its way through it, lest it needs a second snapshot.
const CATCH_UP_TAILS: u64 = 8;
/// Of one that is silent for so long (a minute) nobody knows whether it comes again.
const CATCH_UP_SILENT_TICKS: u64 = 1_200;
/// Others are sent to with the next heartbeat.
const CATCH_UP_WAITING_MAX: usize = 16;

/// What raft-rs reads.
struct Store {
    view: SharedView,
    hard: HardState,
    confs: Confs,
    snapshots: RefCell<Snapshots>,
    catch_up: RefCell<CatchUp>,
}

fn bytes_of(entries: &[Entry]) -> u64 {
    entries.iter().map(|e| e.data.len() as u64).sum()
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
        Ok(raft::RaftState::new(hard, self.confs.now().clone()))
    }

    fn entries(
        &self,
        low: u64,
        high: u64,
        max_size: impl Into<Option<u64>>,
        context: GetEntriesContext,
    ) -> raft::Result<Vec<Entry>> {
        let mut bytes_max = max_size.into().unwrap_or(u64::MAX);
        let mut catch_up = self.catch_up.borrow_mut();
        // Those that nobody can wait with are not for a peer.
        let is_paced = context.can_async() && low <= catch_up.below;
        if is_paced && catch_up.bytes_left == 0 {
            reached(Mark::CatchUpPaced);
            if catch_up.waiting.len() < CATCH_UP_WAITING_MAX {
                catch_up.waiting.push(context);
            }
            return Err(StorageError::LogTemporarilyUnavailable.into());
        }
        if is_paced {
            bytes_max = bytes_max.min(catch_up.bytes_left);
        }
        let entries = self.view.lock().entries(low, high, bytes_max).map_err(raft_error)?;
        if is_paced {
            catch_up.bytes_left = catch_up.bytes_left.saturating_sub(bytes_of(&entries));
        }
        Ok(entries)
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
        let ready = s
            .ready
            .get(&to)
            .and_then(|(at, _)| Some((at, self.confs.at(at.index)?)));
        match ready {
            // One that the log has meanwhile been cut beyond would only lead to the next one.
            Some((at, conf)) if at.index >= request_index && at.index >= truncated.index => {
                let mut snapshot = Snapshot::default();
                let meta = snapshot.mut_metadata();
                (meta.index, meta.term) = (at.index, at.term);
                meta.set_conf_state(conf.clone());
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

/// One after the other, so that a crash in between leaves a state without its log, which is noticed at the next start.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Forgetting {
    Log,
    Machine,
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
    /// When a member was last heard of. raft forgets it with each of its own checks, once per election timeout.
    heard: BTreeMap<u64, u64>,
    applied: u64,
    durable: u64,
    queued: Vec<(ProposalId, Vec<u8>)>,
    proposed: BTreeMap<u64, ProposalId>,
    reads: Vec<Read>,
    read_prefix: [u8; 16],
    read_seq: u64,
    read_tick: u64,
    /// Since the last tick.
    grown_bytes: u64,
    /// See `is_alone`: the term in which it is.
    alone_in: Option<u64>,
    incoming: Option<(u64, String)>,
    installing: Option<Installing>,
    /// Number of the task that resets the log, and the snapshot's index.
    resetting: Option<(u64, u64)>,
    /// Entries that change members, handed out for applying.
    changes: VecDeque<Entry>,
    /// Index of the last entry for the machine that was handed out.
    machine_index: u64,
    joint_since: Option<u64>,
    /// Nothing but a snapshot is taken: the machine may hold anything until then.
    rebuilding: bool,
    /// There is nothing here that a snapshot would have to make good.
    is_empty: bool,
    /// This copy forgets what it has.
    forgetting: Option<Forgetting>,
    /// Numbers of tasks of earlier lives of this copy lie at or below it.
    numbers_from: u64,
    number: u64,
    /// The last task that was handed out for writing, and the last that is on disk.
    handed: u64,
    persisted: u64,
    hard: HardState,
    view: SharedView,
    logger: slog::Logger,
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
    /// In the reason of a quarantine that is no loss: a crash came between the two halves of letting a copy go, or of its repair.
    pub const GIVEN_UP: &str = "being let go or rebuilt";

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
            heard: BTreeMap::new(),
            applied: start.applied,
            durable: start.durable,
            queued: Vec::new(),
            proposed: BTreeMap::new(),
            reads: Vec::new(),
            read_prefix,
            read_seq: 0,
            read_tick: 0,
            grown_bytes: 0,
            alone_in: None,
            incoming: None,
            installing: None,
            resetting: None,
            changes: VecDeque::new(),
            machine_index: start.applied,
            joint_since: None,
            rebuilding: false,
            is_empty: false,
            forgetting: None,
            numbers_from: 0,
            number: 0,
            handed: 0,
            persisted: 0,
            hard: HardState::default(),
            view: start.view.clone(),
            logger: start.logger,
            out: Vec::new(),
            config,
        };
        let (hard, confs) = driver.recover(&start.recovered, &start.view);
        driver.hard = hard;
        if driver.quarantined.is_some() {
            return Ok(driver);
        }
        driver.begin(confs)?;
        driver.replay_changes(&start.recovered)?;
        driver.draw();
        let alone = |node: &RawNode<Store>| node.raft.prs().is_singleton() && node.raft.promotable();
        if let Some(node) = driver.node.as_mut().filter(|n| alone(n)) {
            node.campaign()?;
            driver.draw();
        }
        Ok(driver)
    }

    fn begin(&mut self, confs: Confs) -> Result<(), raft::Error> {
        let store = Store {
            view: self.view.clone(),
            hard: self.hard,
            confs,
            snapshots: RefCell::default(),
            catch_up: RefCell::default(),
        };
        self.node = Some(RawNode::new(&self.raft_config(), store, &self.logger)?);
        Ok(())
    }

    /// The membership as of the applied index follows from the written one and the log.
    fn replay_changes(&mut self, recovered: &Recovered) -> Result<(), raft::Error> {
        if planted(Bug::RemovedStillCounts) {
            return Ok(());
        }
        let applied = self.applied;
        let Some(node) = &mut self.node else { return Ok(()) };
        let since = node.store().confs.since();
        for &index in recovered.changes.iter().filter(|i| (since + 1..=applied).contains(*i)) {
            let entries = self
                .view
                .lock()
                .entries(index, index + 1, u64::MAX)
                .map_err(raft_error)?;
            // One that did not fit then does not fit now.
            if let Some(change) = entries.first().and_then(read_change)
                && let Ok(conf) = node.apply_conf_change(&change)
            {
                node.mut_store().confs.push(index, conf);
            }
        }
        Ok(())
    }

    /// Puts log, machine and voters together; what does not fit is a loss that nobody may vote or ack upon.
    fn recover(&mut self, recovered: &Recovered, view: &SharedView) -> (HardState, Confs) {
        let mut hard = recovered.hard;
        let mut conf = ConfState::default();
        let mut conf_index = recovered.conf_index;
        let stored = recovered
            .conf
            .as_ref()
            .and_then(|c| ConfState::parse_from_bytes(c).ok());
        match stored {
            Some(stored) => conf = stored,
            None => {
                conf.set_voters(self.config.voters.iter().map(|n| n.0).collect());
                conf_index = 0;
                self.write(vec![conf_write(0, &conf)], true);
            }
        }
        let mut view = view.lock();
        if let Some(SnapshotPoint { at, conf: bytes }) = &recovered.announced
            && self.applied == at.index
            && lacks(&view, *at)
        {
            // The machine's files made it, the new start of the log did not. Where the log has that entry, its rest is worth as much as
            // any: the files may not have made it, and entries brought the copy to where it is.
            reached(Mark::InstallMadeUpFor);
            view.reset(*at);
            if hard.term < at.term {
                (hard.term, hard.vote) = (at.term, 0);
            }
            conf = ConfState::parse_from_bytes(bytes).unwrap_or(conf);
            conf_index = at.index;
            let point = SnapshotPoint {
                at: *at,
                conf: bytes.clone(),
            };
            self.write(vec![LogWrite::Reset(point), LogWrite::HardState(hard)], true);
        }
        let (first, last) = (view.first_index(), view.last_index());
        drop(view);
        // It began again and got no snapshot yet: a group is not founded with this copy as a learner.
        let began_again = last == 0 && conf_index == 0 && conf.learners.contains(&self.config.node.0);
        self.rebuilding = began_again && self.applied == 0 && hard.commit == 0;
        if began_again && !self.rebuilding {
            // Nothing tells for sure that it did not get a snapshot since and lost it: it stays silent, as after a loss.
            reached(Mark::GivenUpHalf);
            self.quarantine(format!(
                "it was {} when the node ended, and its state of before is still here",
                Self::GIVEN_UP
            ));
        } else if (self.applied > last || hard.commit > last) && !planted(Bug::WatermarkIgnored) {
            let known = self.applied.max(hard.commit);
            self.quarantine(format!(
                "the log ends at {last}, but entries up to {known} were committed on this node"
            ));
        } else if self.applied + 1 < first {
            let applied = self.applied;
            self.quarantine(format!("the log starts at {first}, but the state ends at {applied}"));
        } else if conf_index > self.applied {
            let applied = self.applied;
            self.quarantine(format!(
                "the members are known as of {conf_index}, but the state ends at {applied}"
            ));
        }
        // The commit index may be written without a sync; what was applied was committed.
        hard.commit = hard.commit.max(self.applied);
        (hard, Confs::new(conf_index, conf))
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
            max_inflight_msgs: if buggify(Rare::OneAppend) {
                1
            } else {
                c.inflight_messages_max
            },
            max_uncommitted_size: c.uncommitted_bytes_max,
            max_committed_size_per_ready: c.committed_bytes_per_ready_max,
            check_quorum: true,
            pre_vote: true,
            batch_append: true,
            ..Config::default()
        }
    }

    fn quarantine(&mut self, why: String) {
        reached(Mark::Quarantined);
        let group = self.config.group;
        self.quarantined = Some(format!(
            "{why}; this copy takes no more part in group {group} until it is rebuilt from a peer"
        ));
        if let Some(node) = self.node.take() {
            self.hard = node.store().hard;
        }
        let lost: Vec<_> = std::mem::take(&mut self.proposed).into_values().collect();
        for id in lost {
            self.answer(id, Outcome::Unknown);
        }
    }

    pub fn node_id(&self) -> NodeId {
        self.config.node
    }

    pub fn status(&self) -> DriverStatus {
        let mut status = DriverStatus {
            applied: self.applied,
            durable: self.durable,
            voters: self.config.voters.clone(),
            quarantined: self.quarantined.clone(),
            is_rebuilding: self.rebuilding && !self.is_empty,
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
            let conf = node.store().confs.now();
            let ids = |ids: &[u64]| ids.iter().map(|v| NodeId(*v)).collect();
            status.voters = ids(&conf.voters);
            status.learners = ids(&conf.learners);
            status.outgoing = ids(&conf.voters_outgoing);
            if status.role == Role::Leader {
                let others = raft
                    .prs()
                    .iter()
                    .map(|(id, _)| NodeId(*id))
                    .filter(|id| *id != self.config.node);
                status.peers = others.filter_map(|id| progress(node, id, self.is_heard(id))).collect();
                status.peers.sort_by_key(|p| p.node);
            }
            let view = node.store().view.lock();
            (status.first_index, status.last_index) = (view.first_index(), view.last_index());
            status.log_bytes = view.bytes();
        }
        status
    }

    /// What others wait for, cheaply: as long as it is the same, the whole status can wait for a while.
    pub fn pulse(&self) -> Pulse {
        let raft = self.node.as_ref().map(|n| &n.raft);
        Pulse {
            role: raft.map_or(StateRole::Follower, |r| r.state),
            leader: raft.map_or(0, |r| r.leader_id),
            term: raft.map_or(0, |r| r.term),
            commit: raft.map_or(0, |r| r.raft_log.committed),
            applied: self.applied,
            durable: self.durable,
            is_out: self.quarantined.is_some() || self.rebuilding && !self.is_empty,
            is_alone: self.is_alone(),
        }
    }

    /// Whether what the machine has is all that anybody was ever told, as of the last [`ready`](Self::ready): this node leads and nobody
    /// else is a member, so that a write is confirmed, and seen, after it is applied here and nowhere else. No other can be elected
    /// without its vote, nor confirm anything then without its log.
    pub fn is_alone(&self) -> bool {
        self.alone_in.is_some()
    }

    /// Once everything is applied that members of before, or earlier lives of this one, may have confirmed or seen, it stays until there
    /// is another member or another term.
    fn note_alone(&mut self) {
        self.alone_in = self.node.as_ref().and_then(|node| {
            let raft = &node.raft;
            let is_only = raft.state == StateRole::Leader
                && node.store().confs.now().voters == [raft.id]
                && raft.prs().iter().all(|(id, _)| *id == raft.id);
            let has_all = || raft.commit_to_current_term() && self.applied >= raft.raft_log.committed;
            (is_only && (self.alone_in == Some(raft.term) || has_all())).then_some(raft.term)
        });
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
            // Of a state that is given up.
            Input::Durable { .. } if self.rebuilding => {}
            Input::Durable { index } => self.durable = self.durable.max(index),
            Input::Installed { index } => self.installed(index),
            Input::Exported { to, result } => self.exported(to, result),
            Input::SnapshotSent { to, ok } => self.snapshot_sent(to, ok),
            Input::Unreachable { to } => self.raft(|node| node.report_unreachable(to.0)),
            Input::Transfer { to } => self.raft(|node| node.transfer_leader(to.0)),
            Input::Change { id, steps } => self.change(id, &steps),
            Input::Lost { why } => self.quarantine(why),
            // It is well.
            Input::Rebuild => {}
            Input::GiveUp { why } => self.give_up(why),
            Input::Release { why } => self.release(why),
            Input::Forgotten => self.forgotten(),
        }
        self.draw();
    }

    fn step_quarantined(&mut self, input: Input) {
        match input {
            Input::Propose { id, .. } | Input::Change { id, .. } => {
                self.answer(id, Outcome::Refused(Refused::NotLeader(None)));
            }
            Input::Rebuild | Input::GiveUp { .. } => self.rebuild(),
            Input::Release { .. } => self.forget(),
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
        // Between a snapshot and its being applied raft-rs panics when it campaigns: the entries it looks for are gone.
        let may_campaign = self.installing.is_none() && self.resetting.is_none();
        if may_campaign {
            self.raft(|node| node.tick());
        }
        if may_campaign && self.config.preferred && EAGER_TICKS.contains(&self.ticks) && self.leader().is_none() {
            // Pre-vote: whoever knows a leader says no, and nothing has happened.
            self.raft(|node| node.raft.promotable() && node.campaign().is_ok());
        }
        if may_campaign && buggify(Rare::EarlyElection) && self.leader() != Some(self.config.node) {
            self.raft(|node| node.raft.promotable() && node.campaign().is_ok());
        }
        self.end_joint();
        self.pace_learners();
        let oldest = self.ticks.saturating_sub(READ_AGE_TICKS_MAX);
        self.reads.retain(|r| r.since_tick >= oldest);
        if self.ticks.is_multiple_of(COMPACT_EVERY_TICKS) {
            self.compact();
        }
    }

    /// Learners get their next share of the log, and as much as asked for it is sent.
    fn pace_learners(&mut self) {
        let grown_bytes = std::mem::take(&mut self.grown_bytes);
        let Some(node) = &mut self.node else { return };
        let (me, oldest) = (
            self.config.node.0,
            self.ticks.saturating_sub(self.config.election_ticks as u64),
        );
        let is_heard = |id: u64| id == me || self.heard.get(&id).is_some_and(|at| *at >= oldest);
        let learners = node.raft.prs().conf().learners();
        let paces = node.raft.state == StateRole::Leader && !learners.is_empty();
        let truncated = node.store().view.lock().truncated().index;
        let below = paces.then(|| {
            // Not those that are down, whose place a learner is to take.
            let voters = node
                .raft
                .prs()
                .iter()
                .filter(|(id, _)| !learners.contains(id) && is_heard(**id));
            let known = voters.filter_map(|(_, p)| match p.matched {
                // A new leader asks from the end of its log on, and back from there: what it asks for is not known to be there.
                0 => (p.state == ProgressState::Probe && p.next_idx > truncated).then(|| p.next_idx - 1),
                matched => Some(matched),
            });
            known.min().unwrap_or(0)
        });
        let is_behind = |id: &&u64| is_heard(**id) && node.raft.prs().get(**id).map(|p| p.matched) < below;
        let times = CATCH_UP_TIMES.saturating_mul(learners.iter().filter(is_behind).count() as u64);
        let bytes_left = match () {
            () if paces && buggify(Rare::OneAppend) => 1,
            () => grown_bytes.saturating_mul(times).max(CATCH_UP_BYTES_PER_TICK),
        };
        let next = CatchUp {
            below: below.unwrap_or(0),
            bytes_left,
            waiting: vec![],
        };
        let before = node.mut_store().catch_up.replace(next);
        for context in before.waiting {
            node.on_entries_fetched(context);
        }
    }

    /// Within the last election timeout.
    fn is_heard(&self, node: NodeId) -> bool {
        let at = self.heard.get(&node.0);
        at.is_some_and(|at| self.ticks - at <= self.config.election_ticks as u64)
    }

    fn message(&mut self, message: Message) {
        let Some(node) = &mut self.node else { return };
        if node.raft.prs().get(message.from).is_some() {
            self.heard.insert(message.from, self.ticks);
        }
        let last = node.raft.raft_log.last_index();
        let asks_for_vote = matches!(
            message.get_msg_type(),
            MessageType::MsgRequestVote | MessageType::MsgRequestPreVote
        );
        if asks_for_vote && self.rebuilding {
            // To one without a log every other is good enough: it would help somebody to lead who missed what it had confirmed.
            return;
        }
        if message.get_msg_type() == MessageType::MsgHeartbeat
            && message.term >= node.raft.term
            && message.commit > last
            && !planted(Bug::WatermarkIgnored)
        {
            if self.rebuilding {
                // Sent before this copy gave up what it had confirmed, or by a leader that heard late of what it confirmed then. It is
                // answered, so that the leader goes on to entries, and is asked for a snapshot.
                let beat = Message {
                    commit: last,
                    ..message
                };
                let _ = node.step(beat);
                return;
            }
            // The leader commits no further than this node has confirmed.
            let (from, confirmed) = (message.from, message.commit);
            return self.quarantine(format!(
                "the log ends at {last}, but the leader, node {from}, has this node's word for entries up to {confirmed}"
            ));
        }
        if self.rebuilding && message.get_msg_type() == MessageType::MsgAppend {
            return self.ask_for_snapshot(&message);
        }
        let is_installing = self.installing.is_some() || self.resetting.is_some();
        if is_installing && message.get_msg_type() == MessageType::MsgTimeoutNow {
            // Not now: see `tick`.
            return;
        }
        if let Some(answer) = answer_to_read(node, &message) {
            reached(Mark::ReadAnsweredAtOnce);
            self.out.push(Output::Send(answer));
            return;
        }
        // What raft does not take (an unknown peer, a late answer) needs no one's attention.
        let _ = node.step(message);
    }

    /// Instead of entries: the leader is to send a snapshot. (raft's own request wants a log that has caught up.)
    fn ask_for_snapshot(&mut self, append: &Message) {
        let mut beat = Message {
            from: append.from,
            to: append.to,
            term: append.term,
            ..Message::default()
        };
        beat.set_msg_type(MessageType::MsgHeartbeat);
        self.is_empty = false;
        let Some(node) = &mut self.node else { return };
        if append.term < node.raft.term || self.installing.is_some() || self.incoming.is_some() {
            return;
        }
        // The leader is heard of, in its term.
        let _ = node.step(beat);
        let mut answer = Message {
            from: append.to,
            to: append.from,
            term: append.term,
            index: append.index,
            reject: true,
            request_snapshot: 1,
            ..Message::default()
        };
        answer.set_msg_type(MessageType::MsgAppendResponse);
        reached(Mark::SnapshotAskedFor);
        // It promises nothing, so it waits for no disk.
        self.out.push(Output::Send(answer));
    }

    /// Who gives up a log that counts takes back what it confirmed: the copy's own word decides, whatever others saw. It
    /// learns that it is out as a learner, before it is removed, so no message needs to reach it for that.
    fn give_up(&mut self, why: String) {
        let me = self.config.node;
        let counts = self.raft(|node| members::is_voter(node.store().confs.now(), me));
        // A snapshot that is on its way in may be all that is needed.
        let is_installing = self.installing.is_some() || self.resetting.is_some();
        // It begins again from what the group was founded with.
        let is_alone = self.config.voters.iter().all(|v| *v == me);
        if counts || self.may_count_soon() || is_installing || self.rebuilding || is_alone {
            return;
        }
        self.quarantine(why);
        self.rebuild();
    }

    /// As `give_up`, for a copy that nobody needs: it does not wait for a snapshot, and the machine forgets what it has.
    fn release(&mut self, why: String) {
        let me = self.config.node;
        let counts = self.raft(|node| members::is_voter(node.store().confs.now(), me));
        let is_installing = self.installing.is_some() || self.resetting.is_some();
        let is_alone = self.config.voters.iter().all(|v| *v == me);
        // Who is spoken to is a member again, whatever those believed who ask: what it confirms must stay.
        let is_spoken_to = self.heard.keys().any(|n| self.is_heard(NodeId(*n)));
        if counts || self.may_count_soon() || is_installing || is_alone || is_spoken_to || self.forgetting.is_some() {
            return;
        }
        self.quarantine(why);
        self.forget();
    }

    fn forget(&mut self) {
        if self.forgetting.is_none() {
            self.begin_again(true);
        }
    }

    /// From here on there is nothing here, and nothing is waited for. Should it be a member again, it begins with a snapshot: what the
    /// group was founded with, it must not believe, and without that it would count members otherwise than the rest.
    fn forgotten(&mut self) {
        if self.forgetting.take().is_some() && self.installing.is_none() {
            reached(Mark::Forgotten);
            self.is_empty = true;
            // What was said of its old state came late.
            self.forget_state();
        }
    }

    /// What the machine has is none of this copy's log.
    fn forget_state(&mut self) {
        (self.applied, self.durable, self.machine_index) = (0, 0, 0);
    }

    /// For raft a change of members counts when it is applied, and what was confirmed before that counts with it: changes that stand
    /// in the log and are not applied yet may take this copy in. One that makes it a voter counts whatever follows; else the last one that
    /// names it decides: whoever is removed hears no more, and the entry that says so may never be known to be committed here.
    fn may_count_soon(&self) -> bool {
        let view = self.view.lock();
        // What cannot be read may be one.
        let Ok(entries) = view.entries(self.applied + 1, view.last_index() + 1, u64::MAX) else {
            return true;
        };
        let changes = entries.iter().filter(|e| e.get_entry_type() != EntryType::EntryNormal);
        let (mut votes, mut soon) = (false, false);
        for change in changes {
            let Some(change) = read_change(change) else { return true };
            for of_me in change.changes.iter().filter(|c| c.node_id == self.config.node.0) {
                let kind = of_me.get_change_type();
                soon = kind != ConfChangeType::RemoveNode;
                // A voter is among those that must confirm its own removal.
                votes |= kind == ConfChangeType::AddNode;
            }
        }
        votes || soon
    }

    /// Begins again: without a log, as no voter, with the vote that was given. The machine keeps what it has until the
    /// snapshot comes.
    fn rebuild(&mut self) {
        self.begin_again(false);
    }

    /// `forgets`: the machine gives up what it has, once the log is gone.
    fn begin_again(&mut self, forgets: bool) {
        let me = self.config.node;
        let mut conf = ConfState::default();
        let founders = self.config.voters.iter().filter(|v| **v != me);
        conf.set_voters(founders.map(|v| v.0).collect());
        // No group is founded so: by this it is known at the next start that this copy began again.
        conf.set_learners(vec![me.0]);
        if conf.voters.is_empty() {
            return;
        }
        let at = Point::default();
        self.view.lock().reset(at);
        self.hard.commit = 0;
        self.numbers_from = self.number;
        self.forget_state();
        self.changes.clear();
        self.resetting = None;
        let left = self.installing.take().map(|i| i.dir);
        let left = left.into_iter().chain(self.incoming.take().map(|(_, dir)| dir));
        self.out.extend(left.map(|dir| Output::Discard { dir }));
        let bytes = conf.write_to_bytes().expect("voters encode").into();
        let point = SnapshotPoint { at, conf: bytes };
        self.put(WriteTask {
            writes: vec![LogWrite::Reset(point), LogWrite::HardState(self.hard)],
            sync: true,
            announces: forgets,
            ..WriteTask::default()
        });
        self.forgetting = forgets.then_some(Forgetting::Log);
        match self.begin(Confs::new(0, conf)) {
            Ok(()) => {
                reached(Mark::BeganAgain);
                (self.quarantined, self.rebuilding, self.is_empty) = (None, true, false);
            }
            Err(e) => self.quarantine(format!("it cannot begin again ({e})")),
        }
        self.draw();
    }

    fn change(&mut self, id: ProposalId, steps: &[MemberStep]) {
        let leader = self.leader();
        let me = self.config.node;
        let heard: BTreeSet<NodeId> = steps.iter().map(|s| s.node()).filter(|n| self.is_heard(*n)).collect();
        let Some(node) = &mut self.node else { return };
        let refused = match node.raft.state {
            StateRole::Leader => {
                let conf = node.store().confs.now();
                if members::is_joint(conf) || node.raft.has_pending_conf() {
                    Some(Refused::ChangePending)
                } else if node.raft.lead_transferee.is_some() {
                    Some(Refused::NotLeader(None))
                } else {
                    members::misfit(conf, me, steps, |id| progress(node, id, heard.contains(&id))).map(Refused::Misfit)
                }
            }
            _ => Some(Refused::NotLeader(leader)),
        };
        if let Some(refused) = refused {
            return self.answer(id, Outcome::Refused(refused));
        }
        let data = members::encode(node.store().confs.now(), steps);
        match propose_change(node, &id, data) {
            Some(index) => {
                if let Some(earlier) = self.proposed.insert(index, id) {
                    self.answer(earlier, Outcome::Lost(leader));
                }
            }
            None => self.answer(id, Outcome::Refused(Refused::ChangePending)),
        }
    }

    /// Ends a joint membership that stays.
    fn end_joint(&mut self) {
        let ticks = self.ticks;
        let Some(node) = &mut self.node else { return };
        let leads = node.raft.state == StateRole::Leader && node.raft.lead_transferee.is_none();
        if !leads || !members::is_joint(node.store().confs.now()) {
            self.joint_since = None;
            return;
        }
        let since = *self.joint_since.get_or_insert(ticks);
        if ticks - since >= JOINT_TICKS_MAX && !node.raft.has_pending_conf() {
            reached(Mark::JointEndedByWatchdog);
            self.joint_since = Some(ticks);
            propose_change(node, &[], vec![]);
        }
    }

    /// Puts the changes of members up to `index` in force; those that were proposed under an id here or elsewhere.
    fn change_members(&mut self, index: u64) -> Vec<(u64, ProposalId, Bytes)> {
        let mut done = vec![];
        while let Some(entry) = self.changes.pop_front_if(|e| e.index <= index) {
            let Some(node) = &mut self.node else { return done };
            let before: Vec<(u64, u64)> = node.raft.prs().iter().map(|(id, p)| (*id, p.matched)).collect();
            let Some(Ok(conf)) = read_change(&entry).map(|c| node.apply_conf_change(&c)) else {
                // Every member refuses it alike.
                continue;
            };
            node.mut_store().confs.push(entry.index, conf);
            done.extend(proposal_id(&entry).map(|id| (entry.index, id, Bytes::new())));
            if node.raft.state == StateRole::Leader {
                let gone = before.into_iter().filter(|(id, _)| node.raft.prs().get(*id).is_none());
                for (to, matched) in gone.filter(|(id, _)| *id != self.config.node.0) {
                    self.out
                        .push(Output::Send(farewell(node, to, matched.min(entry.index))));
                }
            }
            if !node.raft.promotable() && node.raft.state != StateRole::Follower {
                reached(Mark::RemovedSteppedDown);
                // raft-rs would lead on, or win an election that it asked for before, without counting itself.
                let term = node.raft.term;
                node.raft.become_follower(term, 0);
            }
            // A learner that came with it is behind from now on, not from the next tick.
            self.pace_learners();
        }
        done
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
        self.persisted = self.persisted.max(number);
        if number <= self.numbers_from {
            // Of the log that this copy has given up.
            return;
        }
        let of_raft = number - self.numbers_from;
        self.raft(|node| node.on_persist_ready(of_raft));
        if let Some((reset, index)) = self.resetting
            && number >= reset
        {
            self.resetting = None;
            self.advance(index);
        }
    }

    fn announced(&mut self) {
        if self.forgetting == Some(Forgetting::Log) {
            self.forgetting = Some(Forgetting::Machine);
            return self.out.push(Output::Forget);
        }
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
        self.machine_index = index;
        self.is_empty = false;
        if std::mem::take(&mut self.rebuilding) {
            reached(Mark::Rebuilt);
        }
        self.durable = self.durable.max(index);
        self.out.push(Output::Discard { dir: installing.dir });
        self.out.extend(installing.held.into_iter().map(Output::Write));
        let covered = self.proposed.split_off(&(index + 1));
        for id in std::mem::replace(&mut self.proposed, covered).into_values() {
            reached(Mark::ProposalUnknown);
            self.answer(id, Outcome::Unknown);
        }
    }

    fn applied(&mut self, index: u64, mut replies: Vec<(u64, ProposalId, Bytes)>) {
        // Entries of the life before; or of before a snapshot that raft goes by already, members and all, and that the machine's state is
        // about to be replaced by.
        if self.rebuilding || self.installing.is_some() {
            return;
        }
        let changed = self.change_members(index);
        if !changed.is_empty() {
            replies.extend(changed);
            replies.sort_by_key(|(at, ..)| *at);
        }
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
            reached(Mark::ProposalLost);
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
        let (applied, machine_index) = (self.applied, self.machine_index);
        let Some(node) = &mut self.node else { return };
        // Behind the last entry for the machine come only such as it never sees: its state is also that of now. Without
        // this an idle group could give a new member no snapshot that knows it.
        let result = result.map(|(index, dir)| match index >= machine_index {
            true => (index.max(applied), dir),
            false => (index, dir),
        });
        let term = result.as_ref().and_then(|(index, _)| {
            let conf = node.store().confs.at(*index)?;
            // Who gets a snapshot without itself in it leaves it alone; the next one will have it.
            let knows = members::is_member(conf, to);
            node.raft.raft_log.term(*index).ok().filter(|_| knows)
        });
        let mut snapshots = node.mut_store().snapshots.borrow_mut();
        snapshots.exporting.remove(&to.0);
        let dir = match (result, term) {
            (Some((index, dir)), Some(term)) => {
                let old = snapshots.ready.insert(to.0, (Point { index, term }, dir));
                old.map(|(_, dir)| dir)
            }
            // The log has been cut beyond it meanwhile, or it comes too early.
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
            reached(Mark::SnapshotNeedless);
            self.out.push(Output::Discard { dir });
        }
        self.want_exports();
        self.note_alone();
        std::mem::take(&mut self.out)
    }

    fn one_ready(&mut self) {
        let Some(node) = &mut self.node else { return };
        let mut ready = node.ready();
        for message in ready.take_messages() {
            self.send(message);
        }
        let Some(node) = &mut self.node else { return };
        self.number = self.numbers_from + ready.number();
        let mut task = WriteTask {
            number: Some(self.number),
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
            store.confs = Confs::new(at.index, meta.get_conf_state().clone());
            let conf = meta.get_conf_state().write_to_bytes().expect("voters encode").into();
            // It brings what they would change.
            self.changes.clear();
            task.writes.push(LogWrite::Reset(SnapshotPoint { at, conf }));
        }
        let entries = ready.take_entries();
        if !entries.is_empty() {
            self.grown_bytes += bytes_of(&entries);
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
                // They promise nothing that must be on disk first, and a read is not to wait for a write.
                MessageType::MsgReadIndex | MessageType::MsgHeartbeatResponse => self.out.push(Output::Send(message)),
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
        // With all earlier tasks on disk, an empty one is: a heartbeat and its answer wake no other thread.
        if task.writes.is_empty() && self.installing.is_none() && self.persisted >= self.handed {
            self.out.extend(task.messages.into_iter().map(Output::Send));
            self.persisted(self.number);
        } else {
            self.handed = self.number;
            self.put(task);
        }
        if !committed.is_empty() {
            let is_change = |e: &&Entry| e.get_entry_type() != EntryType::EntryNormal;
            self.changes.extend(committed.iter().filter(is_change).cloned());
            let last = committed.iter().rfind(|e| is_for_machine(e));
            self.machine_index = last.map_or(self.machine_index, |e| e.index);
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
                let is_full = bytes > self.config.message_bytes_max || buggify(Rare::LoneProposals);
                if is_full && !batch.is_empty() {
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
        self.raft(|node| {
            node.read_index(context);
            // raft sends a follower's question without a term; see `answer_to_read`.
            let (me, term) = (node.raft.id, node.raft.term);
            if let Some(asked) = node.raft.msgs.last_mut()
                && asked.get_msg_type() == MessageType::MsgReadIndex
                && asked.from == me
            {
                asked.log_term = term;
            }
        });
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

    /// The entries behind it are on their way to a learner.
    fn needed_by_learners(&self) -> Option<u64> {
        let node = self.node.as_ref().filter(|n| n.raft.state == StateRole::Leader)?;
        let oldest = self.ticks.saturating_sub(CATCH_UP_SILENT_TICKS);
        let learners = node.raft.prs().conf().learners().iter();
        let heard = learners.filter(|id| self.heard.get(id).is_some_and(|at| *at >= oldest));
        let places = heard.filter_map(|id| match node.raft.prs().get(*id)? {
            p if p.state == ProgressState::Replicate => Some(p.matched),
            p if p.state == ProgressState::Probe => Some(p.next_idx - 1),
            _ => None,
        });
        places.min()
    }

    /// Cuts the log to what machine, snapshots and learners under way and the wanted tail leave needless.
    fn compact(&mut self) {
        if self.installing.is_some() || self.resetting.is_some() {
            return;
        }
        self.drop_exports();
        let tail_bytes = if buggify(Rare::NoTail) {
            0
        } else {
            self.config.tail_bytes
        };
        let durable = if planted(Bug::TruncateBeyondDurable) {
            u64::MAX
        } else {
            self.durable
        };
        let limit = self.applied.min(durable);
        let needed = self.needed_by_learners();
        let point = self.raft(|node| {
            let snapshots = node.store().snapshots.borrow();
            let ready = snapshots.ready.values().map(|(at, _)| at.index);
            let limit = ready.chain(snapshots.sending.values().copied()).fold(limit, u64::min);
            let mut view = node.store().view.lock();
            let to = view.excess(limit, tail_bytes)?;
            let to = match needed.filter(|at| *at < to) {
                None => to,
                Some(at) => at.max(
                    view.excess(limit, tail_bytes.saturating_mul(CATCH_UP_TAILS))
                        .unwrap_or(0),
                ),
            };
            view.truncate(to)
        });
        let Some(point) = point else { return };
        let mut writes = vec![];
        if let Some((index, conf)) = self.raft(|node| node.mut_store().confs.forget_before(point.index)) {
            // Before the entries go that it follows from.
            writes.push(conf_write(index, &conf));
        }
        writes.push(LogWrite::Truncate(point));
        self.write(writes, false);
    }

    /// Exports for members that need none any more, or are none, would keep the log from being cut.
    fn drop_exports(&mut self) {
        let Some(node) = &mut self.node else { return };
        let leads = node.raft.state == StateRole::Leader;
        let needless = |to: &u64, at: Point| match node.raft.prs().get(*to) {
            Some(progress) if leads => progress.matched >= at.index,
            _ => true,
        };
        let mut snapshots = node.store().snapshots.borrow_mut();
        let ready = snapshots.ready.iter();
        let gone: Vec<u64> = ready
            .filter(|(to, (at, _))| needless(to, *at))
            .map(|(to, _)| *to)
            .collect();
        let dirs: Vec<_> = gone.iter().filter_map(|to| snapshots.ready.remove(to)).collect();
        drop(snapshots);
        self.out
            .extend(dirs.into_iter().map(|(_, dir)| Output::Discard { dir }));
    }
}

/// Whether a log ends before that entry, or has another one in its place. One that begins behind it does not lack it.
fn lacks(view: &LogView, at: Point) -> bool {
    match view.term(at.index) {
        Ok(term) => term != at.term,
        Err(ViewError::Compacted) => false,
        Err(_) => true,
    }
}

fn conf_write(index: u64, conf: &ConfState) -> LogWrite {
    let conf = conf.write_to_bytes().expect("voters encode").into();
    let at = Point { index, term: 0 };
    LogWrite::Conf(SnapshotPoint { at, conf })
}

/// The leader's answer to a follower's read, where the question itself is the word that is waited for. The log term of a question is the
/// term that the follower was in when it asked, which was after the read began. When it is the leader's own, nobody can have been
/// elected before that without either of them: where the two are a majority, as of three, another round of heartbeats would tell
/// nothing new. Otherwise, and for a question of a node that names no term, raft asks everybody (`ReadOnlyOption::Safe`).
fn answer_to_read(node: &RawNode<Store>, asked: &Message) -> Option<Message> {
    let raft = &node.raft;
    let is_question = asked.get_msg_type() == MessageType::MsgReadIndex && asked.get_entries().len() == 1;
    let is_in_this_term = raft.state == StateRole::Leader && asked.log_term == raft.term;
    if !is_question || !is_in_this_term || !raft.commit_to_current_term() {
        return None;
    }
    let words = [raft.id, asked.from].into_iter().collect();
    if !raft.prs().has_quorum(&words) {
        return None;
    }
    let mut answer = Message {
        from: raft.id,
        to: asked.from,
        term: raft.term,
        index: raft.raft_log.committed,
        entries: asked.entries.clone(),
        ..Message::default()
    };
    answer.set_msg_type(MessageType::MsgReadIndexResp);
    Some(answer)
}

/// What an entry changes; one without data ends a joint membership.
fn read_change(entry: &Entry) -> Option<ConfChangeV2> {
    match entry.get_entry_type() {
        EntryType::EntryConfChangeV2 => ConfChangeV2::parse_from_bytes(&entry.data).ok(),
        // The first form is never proposed here.
        EntryType::EntryConfChange | EntryType::EntryNormal => None,
    }
}

/// The index of the change in the leader's log; `None`: raft put an empty entry in its place, or took none.
fn propose_change(node: &mut RawNode<Store>, context: &[u8], data: Vec<u8>) -> Option<u64> {
    let mut entry = Entry {
        data: data.into(),
        context: Bytes::copy_from_slice(context),
        ..Entry::default()
    };
    entry.set_entry_type(EntryType::EntryConfChangeV2);
    let mut message = Message {
        from: node.raft.id,
        ..Message::default()
    };
    message.set_msg_type(MessageType::MsgPropose);
    message.set_entries(vec![entry].into());
    node.raft.step(message).ok()?;
    let last = node.raft.raft_log.unstable_entries().last()?;
    (last.get_entry_type() == EntryType::EntryConfChangeV2).then_some(last.index)
}

/// A last word to a member that was taken out: with the commit index it learns so by itself.
fn farewell(node: &RawNode<Store>, to: u64, commit: u64) -> Message {
    let mut message = Message {
        from: node.raft.id,
        to,
        term: node.raft.term,
        commit,
        ..Message::default()
    };
    message.set_msg_type(MessageType::MsgHeartbeat);
    message
}

fn progress(node: &RawNode<Store>, id: NodeId, is_heard: bool) -> Option<PeerProgress> {
    let raft = &node.raft;
    let progress = raft.prs().get(id.0)?;
    Some(PeerProgress {
        node: id,
        matched: progress.matched,
        lag: raft.raft_log.committed.saturating_sub(progress.matched),
        is_active: is_heard || progress.recent_active,
        in_snapshot: progress.state == raft::ProgressState::Snapshot,
    })
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
