//! One node: what its raft thread, log thread, apply workers and benches do, event by event.
//!
//! The order of things is that of `hindcast_raft::io`: messages first, then the write; what a write allows only after
//! its sync; applies and flushes elsewhere, meanwhile. A crash may come between any two events, also between writing
//! a round and syncing it.

use crate::check::Ledger;
use crate::plan::{MS, Plan};
use bytes::Bytes;
use hindcast_alerting::gateway::GatewayPart;
use hindcast_env::planted::{Bug, planted};
use hindcast_env::{Clock as _, Disk, DiskError, Rng, SeededRng, SimClock, SimDisk};
use hindcast_itsm::desk::DeskPart;
use hindcast_model::{GroupId, NodeId, ShardId, ShardMap, SpanNs, TimestampNs, codec};
use hindcast_node::cluster_part::ClusterPart;
use hindcast_node::cluster_time::{self, ClusterClock};
use hindcast_node::entry::{self, Control};
use hindcast_node::membership::Step;
use hindcast_node::placement;
use hindcast_node::route::Replicas;
use hindcast_node::shard_machine::{Applied, PartApplied, ShardHandle, ShardMachine};
use hindcast_raft::driver::{
    Driver, DriverConfig, DriverStatus, Input, Outcome, Output, ProposalId, Role, Start, WriteTask, is_for_machine,
    proposal_id,
};
use hindcast_raft::log::{LogError, LogStore, LogWrite};
use hindcast_raft::log_start::OpenedLog;
use hindcast_raft::{
    Entry, LogConfig, Machine, MachineError, MemStores, MemberStep, MetaCommand, MetaMachine, MetaMachineConfig,
    MetaRead, WireMessage, Work, stored_clock, wire,
};
use hindcast_storage::{ShardConfig, StorageError};
use parking_lot::Mutex;
use raft::eraftpb::{Message, MessageType};
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;

pub const TICK: u64 = 50 * MS;
const MAINTAIN_EVERY: u64 = 100 * MS;
/// A snapshot that found the disk full is tried again after this.
const FULL_PAUSE: u64 = 100 * MS;
const WORKERS: u64 = 2;
/// The wall clock at the start of a run.
pub const BEGIN: TimestampNs = TimestampNs::from_secs(1_800_000_000);
/// Ticks that a paused node makes up for at most, as the raft thread does.
const TICKS_MAX: u64 = 2;

/// What is to be done for a caller, wherever the leader is.
#[derive(Clone, Debug)]
pub enum Payload {
    Part(Bytes),
    Meta { part: &'static str, body: Vec<u8> },
    Control(Control),
}

/// What became of it.
#[derive(Clone, Debug)]
pub enum Fate {
    Applied { index: u64, reply: Bytes },
    NotLeader,
    Unconfirmed,
}

/// Who asked, on which node.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Caller {
    pub node: u64,
    pub call: u64,
}

pub enum NodeEvent {
    Tick,
    Maintain,
    Received {
        from: u64,
        messages: Vec<WireMessage>,
    },
    Snapshot {
        /// How its sender hears of it.
        number: u64,
        head: Bytes,
        group: GroupId,
        files: Vec<(String, Bytes)>,
    },
    SnapshotSent {
        group: GroupId,
        to: u64,
        ok: bool,
    },
    Call {
        caller: Caller,
        group: GroupId,
        payload: Payload,
    },
    FoldDue(GroupId),
    LogDone,
    Work(u64),
    Beside(Work),
    /// The leader of the meta group wants it, and waits so long for it.
    Step {
        step: Step,
        due: u64,
    },
}

/// What a node wants of the world.
pub enum Effect {
    Send {
        to: u64,
        messages: Vec<WireMessage>,
    },
    SendSnapshot {
        to: u64,
        group: GroupId,
        head: Bytes,
        files: Vec<(String, Bytes)>,
    },
    SnapshotTaken {
        number: u64,
        ok: bool,
    },
    After {
        delay: u64,
        event: NodeEvent,
    },
    Reply {
        caller: Caller,
        fate: Fate,
    },
    ReadReady {
        id: u64,
        group: GroupId,
        index: u64,
    },
    /// A snapshot's files are in force, and the log does not know yet: a moment that a crash rarely meets.
    InstalledHalf,
    /// A copy takes no more part in its group, and why.
    Quarantined(String),
}

/// Why a node ended.
#[derive(Debug)]
pub enum End {
    /// The disk failed: it starts again later.
    Disk(String),
    /// It says that its data is not what it wrote.
    Damaged(String),
}

impl From<LogError> for End {
    fn from(e: LogError) -> Self {
        match e {
            LogError::Disk(e) => Self::Disk(e.to_string()),
            e => Self::Damaged(e.to_string()),
        }
    }
}

impl From<MachineError> for End {
    fn from(e: MachineError) -> Self {
        match e {
            MachineError::Disk(e) => Self::Disk(e.to_string()),
            e => Self::Damaged(e.to_string()),
        }
    }
}

impl From<StorageError> for End {
    fn from(e: StorageError) -> Self {
        match e {
            StorageError::Disk(e) => Self::Disk(e.to_string()),
            e => Self::Damaged(e.to_string()),
        }
    }
}

impl From<DiskError> for End {
    fn from(e: DiskError) -> Self {
        Self::Disk(e.to_string())
    }
}

enum Job {
    Apply(GroupId, Vec<raft::eraftpb::Entry>),
    Export { group: GroupId, to: NodeId, dir: String },
    Install { group: GroupId, index: u64, dir: String },
    Discard { dir: String },
    Forget(GroupId),
}

/// A round that is written and not synced.
#[derive(Default)]
struct Round {
    sync: bool,
    frees: bool,
    messages: Vec<(GroupId, Message)>,
    done: Vec<(GroupId, Input)>,
}

/// Surroundings of one event.
pub struct Env<'a> {
    pub now: u64,
    pub plan: &'a Plan,
    pub rng: &'a mut SeededRng,
    pub ledger: &'a mut Ledger,
    pub out: &'a mut Vec<Effect>,
}

impl Env<'_> {
    fn within(&mut self, at_most: u64) -> u64 {
        1 + self.rng.below(at_most.max(1))
    }

    fn after(&mut self, delay: u64, event: NodeEvent) {
        self.out.push(Effect::After { delay, event });
    }
}

/// Groups of which this node has a copy that counts.
type Here = Arc<Mutex<BTreeSet<GroupId>>>;

/// A node that runs.
pub struct Running {
    id: u64,
    disk: SimDisk,
    clock: Arc<SimClock>,
    /// Virtual time up to which `clock` has gone.
    seen: u64,
    ticked: u64,
    log: LogStore,
    drivers: BTreeMap<GroupId, Driver>,
    /// Groups that it has said it takes no more part in.
    quarantined: BTreeSet<GroupId>,
    machines: BTreeMap<GroupId, Box<dyn Machine>>,
    durable: BTreeMap<GroupId, u64>,
    pub shards: BTreeMap<ShardId, ShardHandle>,
    pub replicas: Arc<Replicas>,
    here: Here,
    pub meta: Arc<dyn MetaRead>,
    waiting: VecDeque<(GroupId, WriteTask)>,
    round: Option<Round>,
    jobs: BTreeMap<u64, VecDeque<Job>>,
    busy: BTreeSet<u64>,
    folds: BTreeMap<GroupId, Vec<(Caller, Bytes)>>,
    proposals: BTreeMap<ProposalId, Vec<Caller>>,
    names: u64,
    life: u64,
    shown: ClusterClock,
    /// How far the wall clock is ahead of the median of all.
    ahead: i64,
}

fn shard_config(plan: &Plan, group: GroupId) -> ShardConfig {
    ShardConfig {
        group,
        flush_bytes_max: plan.flush_bytes_max,
        flush_age_max: SpanNs::from_secs(5),
        compact_segments_min: 2,
        compact_segments_max: 4,
        ..ShardConfig::default()
    }
}

pub fn log_config(plan: &Plan) -> LogConfig {
    LogConfig {
        segment_bytes_max: plan.segment_bytes_max,
        prewrite_bytes: 4 << 10,
        free_segments_max: 2,
        segments_max: 4,
        cache_bytes_max: 16 << 10,
    }
}

impl Running {
    /// What a process does when it starts. `life` tells apart what it proposes from what earlier ones did.
    pub fn start(
        id: u64,
        life: u64,
        disk: &SimDisk,
        stores: &MemStores,
        founders: &BTreeSet<NodeId>,
        env: &mut Env<'_>,
    ) -> Result<Self, End> {
        let plan = env.plan;
        let clock = Arc::new(SimClock::at(BEGIN));
        let shared: Arc<dyn Disk> = Arc::new(disk.clone());
        for dir in ["raft/snapshots", "received"] {
            disk.remove_dir_all(dir)?;
        }
        let config = MetaMachineConfig {
            snapshot_every_commands: plan.snapshot_every_commands,
            export_rows_per_step_max: 50,
            verify_rows: true,
            ..MetaMachineConfig::new("meta")
        };
        let parts: Vec<Box<dyn hindcast_raft::Part>> =
            vec![Box::new(ClusterPart), Box::new(GatewayPart), Box::new(DeskPart)];
        let meta = MetaMachine::open(shared.clone(), stores.clone(), parts, config)?;
        let rows = meta.reader();
        let mut machines: BTreeMap<GroupId, Box<dyn Machine>> = BTreeMap::new();
        machines.insert(GroupId::META, Box::new(meta));
        let map = ShardMap::even(plan.shards).expect("few shards");
        let mut shards = BTreeMap::new();
        for shard in map.shards() {
            let group = GroupId::from(shard);
            let dir = format!("shard-{}", group.0);
            let machine = ShardMachine::open(shared.clone(), &dir, shard_config(plan, group), clock.clone())?;
            shards.insert(shard, machine.handle());
            machines.insert(group, Box::new(machine));
        }
        let readers = shards.iter().map(|(s, h)| (*s, h.reader.clone())).collect();
        let mut log = OpenedLog::open(&shared, "raft", &log_config(plan), founders.len() > 1)?;
        let mut drivers = BTreeMap::new();
        for (&group, machine) in &machines {
            let voters = placement::founding(group, founders, plan.copies_of(group, founders.len()));
            let config = DriverConfig {
                group,
                node: NodeId(id),
                election_ticks: 10,
                election_spread_ticks: 6,
                heartbeat_ticks: 2,
                message_bytes_max: plan.message_bytes_max,
                inflight_messages_max: 16,
                uncommitted_bytes_max: 1 << 20,
                committed_bytes_per_ready_max: 64 << 10,
                tail_bytes: plan.tail_bytes,
                preferred: voters[(group.0 % voters.len() as u64) as usize].0 == id,
                voters,
            };
            let lost = log.loss_of(group);
            let start = Start {
                recovered: log.store.recovered(group),
                view: log.store.view(group),
                applied: machine.applied(),
                durable: machine.durable(),
                rng: SeededRng::new(env.rng.next_u64()),
                logger: slog::Logger::root(slog::Discard, slog::o!()),
            };
            let mut driver = Driver::new(config, start).map_err(|e| End::Damaged(e.to_string()))?;
            if let Some(why) = lost {
                env.ledger.votes_lost(id);
                driver.step(Input::Lost { why });
            }
            drivers.insert(group, driver);
        }
        let here = Here::default();
        let is_here = here.clone();
        let is_here = move |shard: ShardId| is_here.lock().contains(&GroupId::from(shard));
        let replicas = Arc::new(Replicas::of_copies(map, readers, Arc::new(is_here)));
        let durable = machines.iter().map(|(g, m)| (*g, m.durable())).collect();
        let mut node = Self {
            id,
            disk: disk.clone(),
            clock,
            seen: 0,
            ticked: env.now,
            log: log.store,
            drivers,
            quarantined: BTreeSet::new(),
            machines,
            durable,
            shards,
            replicas,
            here,
            meta: rows,
            waiting: VecDeque::new(),
            round: None,
            jobs: (0..WORKERS).map(|w| (w, VecDeque::new())).collect(),
            busy: BTreeSet::new(),
            folds: BTreeMap::new(),
            proposals: BTreeMap::new(),
            names: 0,
            life,
            shown: ClusterClock::default(),
            ahead: 0,
        };
        let groups: BTreeSet<GroupId> = node.drivers.keys().copied().collect();
        node.settle(&groups, env)?;
        // Nodes do not tick in step.
        let first = env.within(TICK);
        env.after(first, NodeEvent::Tick);
        let first = env.within(MAINTAIN_EVERY);
        env.after(first, NodeEvent::Maintain);
        Ok(node)
    }

    /// Brings the node's clocks to now; the wall clock may be off.
    pub fn set_clock(&mut self, now: u64, off: i64, ahead: i64) {
        self.ahead = ahead;
        self.clock.advance(SpanNs(now.saturating_sub(self.seen)));
        self.seen = self.seen.max(now);
        self.clock.step_to(TimestampNs(BEGIN.0 + now as i64 + off));
    }

    /// What the clocks of most nodes show.
    pub fn corrected_now(&self) -> TimestampNs {
        cluster_time::corrected(self.clock.now(), self.ahead)
    }

    pub fn cluster_now(&self) -> TimestampNs {
        self.show(&mut self.shown.clone())
    }

    /// As `cluster_now`; no later stamp goes behind it.
    fn now(&mut self) -> TimestampNs {
        let mut shown = self.shown;
        let now = self.show(&mut shown);
        self.shown = shown;
        now
    }

    fn show(&self, shown: &mut ClusterClock) -> TimestampNs {
        shown.show(self.corrected_now(), self.clock.monotonic(), stored_clock(&*self.meta))
    }

    /// Up to where the files of each group are, those of a snapshot among them that took force a moment ago.
    pub fn files_at(&self) -> BTreeMap<GroupId, u64> {
        self.machines.iter().map(|(group, m)| (*group, m.durable())).collect()
    }

    pub fn is_short_of_room(&self) -> bool {
        self.disk.free_bytes().is_ok_and(|free| free == 0)
    }

    pub fn life(&self) -> u64 {
        self.life
    }

    pub fn status(&self, group: GroupId) -> DriverStatus {
        self.drivers.get(&group).map(Driver::status).unwrap_or_default()
    }

    pub fn leader(&self, group: GroupId) -> Option<u64> {
        self.status(group).leader.map(|n| n.0)
    }

    /// Whether it answers for the group.
    pub fn counts(&self, group: GroupId) -> bool {
        self.here.lock().contains(&group)
    }

    pub fn shard(&self, group: GroupId) -> Option<&ShardHandle> {
        self.shards.values().find(|h| h.group == group)
    }

    pub fn groups(&self) -> Vec<GroupId> {
        self.drivers.keys().copied().collect()
    }

    pub fn read(&mut self, group: GroupId, id: u64, env: &mut Env<'_>) -> Result<(), End> {
        if let Some(driver) = self.drivers.get(&group).filter(|d| d.is_alone()) {
            // As the shell does.
            let index = driver.status().applied;
            env.out.push(Effect::ReadReady { id, group, index });
            return Ok(());
        }
        self.step(group, Input::Read { id }, env)
    }

    pub fn transfer(&mut self, group: GroupId, to: u64, env: &mut Env<'_>) -> Result<(), End> {
        self.step(group, Input::Transfer { to: NodeId(to) }, env)
    }

    pub fn change(&mut self, group: GroupId, steps: Vec<MemberStep>, env: &mut Env<'_>) -> Result<(), End> {
        let id = self.name();
        self.step(group, Input::Change { id, steps }, env)
    }

    fn step(&mut self, group: GroupId, input: Input, env: &mut Env<'_>) -> Result<(), End> {
        if let Some(driver) = self.drivers.get_mut(&group) {
            driver.step(input);
        }
        self.settle(&BTreeSet::from([group]), env)
    }

    pub fn handle(&mut self, event: NodeEvent, env: &mut Env<'_>) -> Result<(), End> {
        match event {
            NodeEvent::Tick => {
                let due = (env.now.saturating_sub(self.ticked) / TICK).clamp(1, TICKS_MAX);
                self.ticked = env.now;
                for _ in 0..due {
                    self.drivers.values_mut().for_each(|d| d.step(Input::Tick));
                }
                env.after(TICK, NodeEvent::Tick);
                let all = self.drivers.keys().copied().collect();
                self.settle(&all, env)
            }
            NodeEvent::Maintain => {
                env.after(MAINTAIN_EVERY, NodeEvent::Maintain);
                let groups: Vec<GroupId> = self.machines.keys().copied().collect();
                groups.into_iter().try_for_each(|g| self.maintain(g, env))
            }
            NodeEvent::Received { from, messages } => {
                let mut touched = BTreeSet::new();
                for message in messages {
                    let group = message.group;
                    // A read that is passed on to a new leader still bears the name of who asked; as in production it is
                    // dropped, and asked again.
                    let Ok(message) = wire::unpack(message, NodeId(from), NodeId(self.id)) else {
                        continue;
                    };
                    if let Some(driver) = self.drivers.get_mut(&group) {
                        driver.step(Input::Message(message));
                        touched.insert(group);
                    }
                }
                self.settle(&touched, env)
            }
            NodeEvent::Snapshot {
                number,
                head,
                group,
                files,
            } => {
                self.names += 1;
                let dir = format!("received/{}", self.names);
                for (name, bytes) in files {
                    hindcast_env::disk::write_new_file(&self.disk, &format!("{dir}/{name}"), &bytes)?;
                }
                let ok = match (self.machines[&group].snapshot_check())(&dir) {
                    Ok(()) => true,
                    Err(MachineError::Disk(e)) => return Err(e.into()),
                    Err(_) => false,
                };
                env.out.push(Effect::SnapshotTaken { number, ok });
                if !ok {
                    env.ledger.counts.refused_snapshots += 1;
                    self.disk.remove_dir_all(&dir)?;
                    return Ok(());
                }
                let message = wire::parse(&head).map_err(|e| End::Damaged(e.to_string()))?;
                self.step(group, Input::Snapshot { message, dir }, env)
            }
            NodeEvent::SnapshotSent { group, to, ok } => {
                self.step(group, Input::SnapshotSent { to: NodeId(to), ok }, env)
            }
            NodeEvent::Call { caller, group, payload } => self.call(caller, group, payload, env),
            NodeEvent::FoldDue(group) => self.propose_fold(group, env),
            NodeEvent::LogDone => self.log_done(env),
            NodeEvent::Work(worker) => self.work(worker, env),
            NodeEvent::Beside(work) => {
                (work.run)();
                Ok(())
            }
            NodeEvent::Step { due, .. } if env.now > due => Ok(()),
            NodeEvent::Step { step, .. } => match step {
                Step::Change { group, steps, .. } => {
                    env.ledger.counts.changes += 1;
                    self.change(group, steps, env)
                }
                Step::Transfer { group, to, .. } => self.transfer(group, to.0, env),
                Step::Rebuild { group, .. } => self.step(group, Input::Rebuild, env),
                Step::Release { group, .. } => {
                    let why = "other nodes have the copies".to_owned();
                    self.step(group, Input::Release { why }, env)
                }
                Step::Gone { .. } => Ok(()),
            },
        }
    }

    // ---- proposals ----

    fn call(&mut self, caller: Caller, group: GroupId, payload: Payload, env: &mut Env<'_>) -> Result<(), End> {
        if self.leader(group) != Some(self.id) {
            let fate = Fate::NotLeader;
            env.out.push(Effect::Reply { caller, fate });
            return Ok(());
        }
        match payload {
            Payload::Part(part) => {
                let fold = self.folds.entry(group).or_default();
                fold.push((caller, part));
                if fold.len() == 1 {
                    let delay = env.within(env.plan.fold_for);
                    env.after(delay, NodeEvent::FoldDue(group));
                }
                Ok(())
            }
            Payload::Meta { part, body } => {
                let at = self.now();
                let command = MetaCommand {
                    part: part.to_owned(),
                    at,
                    body,
                };
                self.propose(group, vec![caller], codec::to_bytes(&command), env)
            }
            Payload::Control(control) => {
                let data = entry::encode_control(self.now(), &control);
                self.propose(group, vec![caller], data, env)
            }
        }
    }

    /// Of one proposal: no other life and no other node has it.
    fn name(&mut self) -> ProposalId {
        self.names += 1;
        let mut id = [0; 16];
        id[..4].copy_from_slice(&(self.id as u32).to_le_bytes());
        id[4..8].copy_from_slice(&(self.life as u32).to_le_bytes());
        id[8..].copy_from_slice(&self.names.to_le_bytes());
        id
    }

    fn propose_fold(&mut self, group: GroupId, env: &mut Env<'_>) -> Result<(), End> {
        let waiting = self.folds.remove(&group).unwrap_or_default();
        let (callers, parts): (Vec<Caller>, Vec<Bytes>) = waiting.into_iter().unzip();
        if parts.is_empty() {
            return Ok(());
        }
        let data = entry::encode_write(self.now(), &parts);
        if planted(Bug::AckBeforeCommit) {
            self.answer_at_once(group, &callers, env);
        }
        self.propose(group, callers, data, env)
    }

    fn answer_at_once(&self, group: GroupId, callers: &[Caller], env: &mut Env<'_>) {
        let stored = codec::to_bytes(&Applied::Write(vec![PartApplied::Stored]));
        for &caller in callers {
            let fate = Fate::Applied {
                index: self.status(group).last_index + 1,
                reply: stored.clone().into(),
            };
            env.out.push(Effect::Reply { caller, fate });
        }
    }

    fn propose(&mut self, group: GroupId, callers: Vec<Caller>, data: Vec<u8>, env: &mut Env<'_>) -> Result<(), End> {
        let id = self.name();
        self.proposals.insert(id, callers);
        self.step(group, Input::Propose { id, data }, env)
    }

    fn answer(&mut self, id: ProposalId, outcome: Outcome, env: &mut Env<'_>) {
        let callers = self.proposals.remove(&id).unwrap_or_default();
        let many = callers.len();
        for (at, caller) in callers.into_iter().enumerate() {
            let fate = match &outcome {
                Outcome::Applied { index, reply } => Fate::Applied {
                    index: *index,
                    reply: if many > 1 { part_of(reply, at) } else { reply.clone() },
                },
                Outcome::Refused(_) | Outcome::Lost(_) => Fate::NotLeader,
                Outcome::Unknown => Fate::Unconfirmed,
            };
            env.out.push(Effect::Reply { caller, fate });
        }
    }

    // ---- the raft thread ----

    fn settle(&mut self, touched: &BTreeSet<GroupId>, env: &mut Env<'_>) -> Result<(), End> {
        for &group in touched {
            let Some(driver) = self.drivers.get_mut(&group) else {
                continue;
            };
            for output in driver.ready() {
                match output {
                    Output::Send(message) => self.send(group, message, env),
                    Output::Write(task) => self.waiting.push_back((group, task)),
                    Output::Apply(entries) => self.queue(group, Job::Apply(group, entries), env),
                    Output::Install { index, dir } => self.queue(group, Job::Install { group, index, dir }, env),
                    Output::Export { to } => {
                        self.names += 1;
                        let dir = format!("raft/snapshots/out-{}", self.names);
                        self.queue(group, Job::Export { group, to, dir }, env);
                    }
                    Output::Discard { dir } => self.queue(group, Job::Discard { dir }, env),
                    Output::Forget => self.queue(group, Job::Forget(group), env),
                    Output::SendSnapshot { to, message, dir } => {
                        let names = self.disk.list(&dir)?;
                        let read = |name: String| Ok((name.clone(), self.disk.read(&format!("{dir}/{name}"))?));
                        let files = names.into_iter().map(read).collect::<Result<_, DiskError>>()?;
                        self.disk.remove_dir_all(&dir)?;
                        let head = wire::pack(group, message).head;
                        env.out.push(Effect::SendSnapshot {
                            to: to.0,
                            group,
                            head,
                            files,
                        });
                    }
                    Output::Answer { id, outcome } => self.answer(id, outcome, env),
                    Output::ReadReady { id, index } => env.out.push(Effect::ReadReady { id, group, index }),
                }
            }
            let status = self.status(group);
            match &status.quarantined {
                Some(why) if self.quarantined.insert(group) => env.out.push(Effect::Quarantined(why.clone())),
                Some(_) => {}
                None => _ = self.quarantined.remove(&group),
            }
            if status.quarantined.is_none() && !status.is_rebuilding && status.voters.contains(&NodeId(self.id)) {
                self.here.lock().insert(group);
            } else {
                self.here.lock().remove(&group);
            }
            if status.role == Role::Leader {
                env.ledger.leads(self.id, group, status.term);
            }
        }
        self.write_round(env)
    }

    fn send(&self, group: GroupId, message: Message, env: &mut Env<'_>) {
        let (kind, from, to, term) = (message.get_msg_type(), message.from, message.to, message.term);
        match kind {
            // Who asks for votes has voted for itself.
            MessageType::MsgRequestVote => env.ledger.votes(from, group, term, from),
            MessageType::MsgRequestVoteResponse if !message.reject => env.ledger.votes(from, group, term, to),
            _ => {}
        }
        let messages = vec![wire::pack(group, message)];
        env.out.push(Effect::Send { to, messages });
    }

    // ---- the log thread ----

    fn write_round(&mut self, env: &mut Env<'_>) -> Result<(), End> {
        if self.round.is_some() || self.waiting.is_empty() {
            return Ok(());
        }
        let mut round = Round::default();
        for (group, task) in self.waiting.drain(..) {
            round.sync |= task.sync;
            for write in task.writes {
                round.frees |= matches!(write, LogWrite::Truncate(_) | LogWrite::Reset(_));
                self.log.write(group, write)?;
            }
            round.messages.extend(task.messages.into_iter().map(|m| (group, m)));
            if let Some(number) = task.number {
                round.done.push((group, Input::Persisted { number }));
            }
            if task.announces {
                round.done.push((group, Input::Announced));
            }
        }
        // The bytes have left the process; whether they are on the platter is decided by the sync, or by a crash.
        self.log.commit(false)?;
        let delay = if round.sync { env.within(env.plan.sync_for) } else { 1 };
        self.round = Some(round);
        env.after(delay, NodeEvent::LogDone);
        Ok(())
    }

    fn log_done(&mut self, env: &mut Env<'_>) -> Result<(), End> {
        let Some(round) = self.round.take() else { return Ok(()) };
        self.log.commit(round.sync)?;
        for (group, message) in round.messages {
            self.send(group, message, env);
        }
        if round.frees {
            self.log.reclaim()?;
        }
        let mut touched = BTreeSet::new();
        for (group, input) in round.done {
            if let Some(driver) = self.drivers.get_mut(&group) {
                driver.step(input);
                touched.insert(group);
            }
        }
        self.settle(&touched, env)?;
        self.write_round(env)
    }

    // ---- the apply workers ----

    fn queue(&mut self, group: GroupId, job: Job, env: &mut Env<'_>) {
        let worker = group.0 % WORKERS;
        self.jobs.get_mut(&worker).expect("made at the start").push_back(job);
        self.wake(worker, env);
    }

    fn wake(&mut self, worker: u64, env: &mut Env<'_>) {
        if !self.jobs[&worker].is_empty() && self.busy.insert(worker) {
            let delay = env.within(env.plan.apply_for);
            env.after(delay, NodeEvent::Work(worker));
        }
    }

    fn work(&mut self, worker: u64, env: &mut Env<'_>) -> Result<(), End> {
        self.busy.remove(&worker);
        let job = self.jobs.get_mut(&worker).and_then(VecDeque::pop_front);
        match job {
            Some(Job::Apply(group, entries)) => {
                self.apply(group, entries, env)?;
                self.maintain(group, env)?;
            }
            Some(Job::Export { group, to, dir }) => {
                let machine = self.machines.get_mut(&group).expect("jobs are of our groups");
                let result = match machine.export(&dir) {
                    Ok(()) => Some((machine.applied(), dir)),
                    // The peer is asked to wait.
                    Err(_) => None,
                };
                self.step(group, Input::Exported { to, result }, env)?;
            }
            Some(Job::Install { group, index, dir }) => {
                let machine = self.machines.get_mut(&group).expect("jobs are of our groups");
                match machine.install(&dir, index) {
                    // Everything is as it was, and nothing else is done for the group before.
                    Err(MachineError::Disk(e)) if e.is_full() => {
                        let again = Job::Install { group, index, dir };
                        self.jobs.entry(worker).or_default().push_front(again);
                        self.busy.insert(worker);
                        env.after(FULL_PAUSE, NodeEvent::Work(worker));
                        return Ok(());
                    }
                    done => {
                        done?;
                        env.ledger.digest(self.id, group, machine.applied(), machine.digest());
                        self.step(group, Input::Installed { index }, env)?;
                        // The log does not know yet.
                        if env.rng.below(10) == 0 {
                            env.out.push(Effect::InstalledHalf);
                        }
                    }
                }
            }
            Some(Job::Discard { dir }) => self.disk.remove_dir_all(&dir)?,
            Some(Job::Forget(group)) => {
                let machine = self.machines.get_mut(&group).expect("jobs are of our groups");
                machine.forget()?;
                self.step(group, Input::Forgotten, env)?;
            }
            None => {}
        }
        self.wake(worker, env);
        Ok(())
    }

    fn apply(&mut self, group: GroupId, entries: Vec<raft::eraftpb::Entry>, env: &mut Env<'_>) -> Result<(), End> {
        let machine = self.machines.get_mut(&group).expect("jobs are of our groups");
        let index = entries.last().map_or(0, |e| e.index);
        let mut replies = vec![];
        for raw in entries {
            env.ledger.applies(self.id, group, raw.index, raw.term, &raw.data);
            if !is_for_machine(&raw) || raw.index <= machine.applied() {
                continue;
            }
            env.ledger.takes_up(group, raw.index, &raw.data);
            let entry = Entry {
                index: raw.index,
                term: raw.term,
                data: raw.data.clone(),
            };
            let reply = machine.apply(&entry)?;
            env.ledger.digest(self.id, group, raw.index, machine.digest());
            if let Some(id) = proposal_id(&raw) {
                replies.push((raw.index, id, reply));
            }
        }
        self.step(group, Input::Applied { index, replies }, env)?;
        let s = self.status(group);
        // While a snapshot is being installed, members are those of the snapshot already.
        if s.applied == index && s.first_index <= index + 1 {
            let members = [&s.voters, &s.learners, &s.outgoing].map(|m| m.iter().copied().collect());
            env.ledger.members(self.id, group, index, members);
        }
        Ok(())
    }

    fn maintain(&mut self, group: GroupId, env: &mut Env<'_>) -> Result<(), End> {
        let machine = self.machines.get_mut(&group).expect("ours");
        let mut begun = vec![];
        match machine.maintain(&mut |work| begun.push(work)) {
            // Everything is as it was.
            Err(MachineError::Disk(e)) if e.is_full() => {}
            done => done?,
        }
        let durable = machine.durable();
        for work in begun {
            let delay = env.within(env.plan.beside_for);
            env.after(delay, NodeEvent::Beside(work));
        }
        if self.durable.insert(group, durable) != Some(durable) {
            self.step(group, Input::Durable { index: durable }, env)?;
        }
        Ok(())
    }
}

/// The answer to one of several parts of an entry, as if it had been alone.
fn part_of(reply: &Bytes, at: usize) -> Bytes {
    match codec::from_bytes::<Applied>(reply) {
        Ok(Applied::Write(parts)) => codec::to_bytes(&Applied::Write(vec![parts[at]])).into(),
        _ => reply.clone(),
    }
}
