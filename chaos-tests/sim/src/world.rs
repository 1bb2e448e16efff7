//! The scheduler: a heap of events in virtual time, one thread, one seed.
//!
//! First faults happen, as the plan says. Then everything is healed, clients finish, nodes catch up, and what every
//! node holds is compared with what was acknowledged.

use crate::check::{Counts, Ledger};
use crate::desk::Desk;
use crate::log_rot::{self, Rot, Taken};
use crate::members::Members;
use crate::node::{Caller, Effect, End, Env, Fate, NodeEvent, Payload, Running};
use crate::pins::{Pins, Readable};
use crate::plan::{MS, Plan, SECOND};
use crate::writers::Shape;
use bytes::Bytes;
use hindcast_env::buggify;
use hindcast_env::planted::{Bug, planted};
use hindcast_env::reached::{self, Mark, Reached, reached};
use hindcast_env::{Rng, SeededRng, SimDisk};
use hindcast_ingest::{Intake, Naming};
use hindcast_model::{GroupId, Labels, Matcher, NodeId, Owner, ShardMap, TenantId, TimestampNs, codec, resource};
use hindcast_node::entry;
use hindcast_node::membership::Reports;
use hindcast_node::shard_machine::{Applied, PartApplied};
use hindcast_raft::{MemStores, MemberStep, Role};
use hindcast_storage::logs::Filter;
use hindcast_storage::read::{Direction, SelectLines, SelectSeries};
use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, BinaryHeap, VecDeque};

/// Of a message that nothing delays.
const FLIGHT: u64 = 2 * MS;
/// How long a caller waits for the answer of another node.
const CALL_TIMEOUT: u64 = 5 * SECOND;
/// How long one node tries for one client.
const NODE_PATIENCE: u64 = 10 * SECOND;
const PAUSE: u64 = 50 * MS;
/// After the last fault: until when all must have caught up (I13).
const CALM: u64 = 40 * SECOND;
/// And then so many entries may have been applied, one after the other: some machines take long for each.
const CALM_ENTRIES: u64 = 200;
const BAD_READS_EVERY: u64 = 3 * SECOND;
/// Events of one run; more is a loop.
const EVENTS_MAX: u64 = 4_000_000;
/// Lines of the trace that are kept for the report.
const TRACE_MAX: usize = 60;

pub enum Event {
    Node {
        node: u64,
        life: u64,
        event: NodeEvent,
    },
    /// Over the network, to whichever life is there.
    Arrive {
        to: u64,
        event: NodeEvent,
    },
    Reply {
        caller: Caller,
        fate: Fate,
    },
    CallTimeout {
        call: u64,
    },
    Retry {
        writer: u64,
        attempt: u64,
        share: usize,
    },
    WriterTurn {
        writer: u64,
    },
    ReaderTurn {
        reader: u64,
    },
    DeskTurn {
        node: u64,
        life: u64,
    },
    Client(crate::desk::Timer),
    MembersTurn {
        node: u64,
        life: u64,
    },
    MembersAct {
        node: u64,
        life: u64,
        reports: Reports,
    },
    Join {
        joiner: u64,
    },
    SnapshotEnd {
        number: u64,
        ok: bool,
    },
    /// Somebody reads all that a node with damaged files has.
    Look {
        node: u64,
    },
    ReadWell {
        node: u64,
    },
    Start {
        node: u64,
    },
    Resume {
        node: u64,
    },
    Fault(Fault),
    HealLinks {
        wave: u64,
    },
    HealDisk {
        node: u64,
    },
    Calm,
    Judge,
}

#[derive(Clone, Copy, Debug)]
pub enum Fault {
    Crash,
    AllCrash,
    Pause,
    Partition,
    Transfer,
    Change,
    SyncError,
    Full,
    ClockStep,
    Wipe,
    Grow,
    Rot,
    LogRot,
    BadReads,
}

struct Node {
    disk: SimDisk,
    stores: MemStores,
    running: Option<Running>,
    life: u64,
    paused: bool,
    /// Events that wait for the end of a pause.
    held: VecDeque<Event>,
    clock_off: i64,
    /// Of the version before this one.
    older: bool,
    /// Its disk is lost: it never starts again.
    lost: bool,
    /// Its files may be damaged.
    spoilt: bool,
    /// Its log was damaged: where the logs of its groups ended. Until it is whole again it does not count as a sound one.
    owed: Option<BTreeMap<GroupId, u64>>,
}

impl Node {
    fn new(clock_off: i64) -> Self {
        Self {
            disk: SimDisk::new(),
            stores: MemStores::default(),
            running: None,
            life: 0,
            paused: false,
            held: VecDeque::new(),
            clock_off,
            older: false,
            lost: false,
            spoilt: false,
            owed: None,
        }
    }
}

/// What a call's answer is for.
pub enum Then {
    Writer { writer: u64, attempt: u64, share: usize },
    Desk(crate::desk::Then),
    Members(crate::members::Then),
    Pins(crate::pins::Then),
}

struct Call {
    node: u64,
    then: Then,
}

/// A client that writes one batch after the other.
struct Writer {
    seq: u64,
    op: Option<Op>,
}

struct Op {
    shape: Shape,
    began: u64,
    /// Unlike all others, so that no answer to an earlier batch counts for this one. 0: none is under way.
    attempt: u64,
    attempt_began: u64,
    node: u64,
    parts: Vec<Part>,
}

struct Part {
    group: GroupId,
    bytes: Bytes,
    done: Option<u64>,
}

struct Read {
    node: u64,
    told_before: u64,
}

/// How a run ended.
#[derive(Clone, Debug)]
pub struct Report {
    pub seed: u64,
    pub violation: Option<String>,
    pub counts: Counts,
    pub reached: Reached,
    pub trace: Vec<String>,
    /// Equal for equal runs.
    pub fingerprint: u64,
}

pub struct World {
    pub plan: Plan,
    pub now: u64,
    seq: u64,
    heap: BinaryHeap<Reverse<(u64, u64)>>,
    events: BTreeMap<u64, Event>,
    pub rng: SeededRng,
    nodes: BTreeMap<u64, Node>,
    founders: BTreeSet<NodeId>,
    /// Pairs from, to that nothing crosses.
    cut: BTreeSet<(u64, u64)>,
    wave: u64,
    pub ledger: Ledger,
    calls: BTreeMap<u64, Call>,
    next_call: u64,
    writers: BTreeMap<u64, Writer>,
    unknown: Vec<Shape>,
    acked: Vec<Shape>,
    reads: BTreeMap<u64, Read>,
    next_read: u64,
    next_attempt: u64,
    desk: Desk,
    members: Members,
    pins: Pins,
    /// On their way: sender, its life, group, receiver.
    snapshots: BTreeMap<u64, (u64, u64, GroupId, u64)>,
    next_snapshot: u64,
    /// What the cores do rarely and the plan has them do often, as long as faults happen.
    bent: Option<buggify::Guard>,
    calm: bool,
    over: bool,
    trace: VecDeque<String>,
    verbose: bool,
    fingerprint: u64,
}

/// Files that are written once.
fn is_immutable(path: &str) -> bool {
    let name = path.rsplit('/').next().unwrap_or(path);
    let kinds = ["segment-", "series-", "aux-", "newest-", "manifest-", "meta.snapshot"];
    kinds.iter().any(|kind| name.starts_with(kind)) && !name.ends_with(".tmp")
}

/// What a node answers when it is asked for everything that writers wrote.
struct Held {
    samples: BTreeMap<(String, i64), Vec<u64>>,
    lines: BTreeMap<(String, i64, String), u64>,
}

fn held_by(running: &Running, of: impl Fn(GroupId) -> bool) -> Result<Held, String> {
    let tenant = TenantId::default();
    let mut samples: BTreeMap<(String, i64), Vec<u64>> = BTreeMap::new();
    let mut lines: BTreeMap<(String, i64, String), u64> = BTreeMap::new();
    for handle in running.shards.values().filter(|h| of(h.group)) {
        let series = handle.reader.series(&SelectSeries {
            tenant: tenant.clone(),
            matchers: vec![Matcher::equal("job", "node")],
            from: TimestampNs::MIN,
            to: TimestampNs::MAX,
            as_of: None,
            owners: None,
        });
        let streams = handle.reader.lines(&SelectLines {
            tenant: tenant.clone(),
            matchers: vec![Matcher::equal("job", "log")],
            from: TimestampNs::MIN,
            to: TimestampNs::MAX,
            as_of: None,
            owners: None,
            filter: Filter::all(),
            limit: None,
            direction: Direction::Forward,
        });
        for s in &series.map_err(|e| e.to_string())? {
            for p in &s.samples {
                let at = samples.entry((s.labels.to_string(), p.at.0)).or_default();
                at.push(p.value.to_bits());
            }
        }
        for s in &streams.map_err(|e| e.to_string())? {
            for l in &s.lines {
                let text = String::from_utf8_lossy(&l.line).into_owned();
                *lines.entry((s.labels.to_string(), l.at.0, text)).or_default() += 1;
            }
        }
    }
    Ok(Held { samples, lines })
}

fn off_by(rng: &mut SeededRng, most: u64) -> i64 {
    if most == 0 {
        0
    } else {
        rng.below(2 * most) as i64 - most as i64
    }
}

/// Runs one seed to its end. `verbose` prints what happens.
pub fn run(plan: Plan, verbose: bool) -> Report {
    let mut world = World::new(plan, verbose);
    world.go();
    world.into_report()
}

/// What a run without faults left behind on the disk of its only node, and what must be there.
pub struct Grown {
    plan: Plan,
    pub disk: SimDisk,
    acked: Vec<Shape>,
    desk: Desk,
}

/// Runs a plan to its end.
///
/// # Panics
/// When something does not hold in it.
pub fn grow(plan: Plan) -> Grown {
    let mut world = World::new(plan.clone(), false);
    world.go();
    assert_eq!(world.ledger.violation(), None, "a run without faults");
    Grown {
        disk: world.nodes[&1].disk.clone(),
        acked: world.acked,
        desk: world.desk.after_restart(),
        plan,
    }
}

impl Grown {
    /// Starts the node with `disk` in the place of its own, and asks for everything that was acknowledged.
    pub fn open(&self, disk: SimDisk) -> Report {
        let plan = Plan {
            faulty_until: 0,
            writers: 0,
            readers: 0,
            ..self.plan.clone()
        };
        let mut world = World::new(plan, false);
        world.nodes.get_mut(&1).expect("the only node").disk = disk;
        world.acked.clone_from(&self.acked);
        world.desk = self.desk.clone();
        world.go();
        world.into_report()
    }
}

impl World {
    fn into_report(self) -> Report {
        Report {
            seed: self.plan.seed,
            violation: self.ledger.violation().map(str::to_owned),
            counts: self.ledger.counts,
            reached: reached::take(),
            trace: self.trace.into(),
            fingerprint: self.fingerprint,
        }
    }

    fn new(plan: Plan, verbose: bool) -> Self {
        let mut rng = SeededRng::new(plan.seed ^ 0x5117);
        let founders = (1..=plan.nodes).map(NodeId).collect();
        // One clock may be far off, the others are about right.
        let wrong = 1 + rng.below(plan.nodes);
        let nodes = plan.node_ids().map(|id| {
            let clock_off = if id == wrong {
                off_by(&mut rng, plan.clock_off)
            } else {
                off_by(&mut rng, 20 * MS)
            };
            let older = rng.below(100) < plan.older;
            let node = Node::new(clock_off);
            (id, Node { older, ..node })
        });
        let nodes = nodes.collect();
        let writers = (1..=plan.writers).map(|w| (w, Writer { seq: 0, op: None })).collect();
        let desk = Desk::new(&plan, &mut rng);
        Self {
            plan,
            now: 0,
            seq: 0,
            heap: BinaryHeap::new(),
            events: BTreeMap::new(),
            rng,
            nodes,
            founders,
            cut: BTreeSet::new(),
            wave: 0,
            ledger: Ledger::default(),
            calls: BTreeMap::new(),
            next_call: 0,
            writers,
            unknown: vec![],
            acked: vec![],
            reads: BTreeMap::new(),
            next_read: 0,
            next_attempt: 0,
            desk,
            members: Members::default(),
            pins: Pins::default(),
            snapshots: BTreeMap::new(),
            next_snapshot: 0,
            bent: None,
            calm: false,
            over: false,
            trace: VecDeque::new(),
            verbose,
            fingerprint: 0,
        }
    }

    pub fn note(&mut self, what: impl FnOnce() -> String) {
        let line = format!("{:>9.3} ms  {}", self.now as f64 / 1e6, what());
        if self.verbose {
            println!("{line}");
        }
        self.fingerprint = xxhash_rust::xxh3::xxh3_64_with_seed(line.as_bytes(), self.fingerprint);
        if self.trace.len() >= TRACE_MAX {
            self.trace.pop_front();
        }
        self.trace.push_back(line);
    }

    pub fn at(&mut self, delay: u64, event: Event) {
        self.seq += 1;
        self.heap.push(Reverse((self.now + delay, self.seq)));
        self.events.insert(self.seq, event);
    }

    /// A client's own clock.
    pub fn later(&mut self, delay: u64, timer: crate::desk::Timer) {
        self.at(delay, Event::Client(timer));
    }

    fn go(&mut self) {
        // What a run before this one left that ended in a panic.
        reached::take();
        self.bent = Some(buggify::put_in_force(&self.plan.bends, self.plan.seed));
        for node in self.plan.node_ids() {
            let delay = self.rng.below(300 * MS);
            self.at(delay, Event::Start { node });
        }
        for writer in 1..=self.plan.writers {
            self.at(SECOND, Event::WriterTurn { writer });
        }
        for reader in 1..=self.plan.readers {
            self.at(SECOND, Event::ReaderTurn { reader });
        }
        self.plan_faults();
        let calm_at = self.plan.faulty_until;
        self.at(calm_at, Event::Calm);
        while let Some(Reverse((at, seq))) = self.heap.pop() {
            self.now = at;
            let Some(event) = self.events.remove(&seq) else {
                continue;
            };
            self.ledger.counts.events += 1;
            self.take(event);
            if self.over || self.ledger.violation().is_some() {
                return;
            }
            if self.ledger.counts.events > EVENTS_MAX {
                return self
                    .ledger
                    .violated(format!("the run does not end: {EVENTS_MAX} events"));
            }
        }
    }

    // ---- faults ----

    fn plan_faults(&mut self) {
        let p = &self.plan;
        let kinds = [
            (p.crash_every, if p.all_crash { Fault::AllCrash } else { Fault::Crash }),
            (p.crash_every, Fault::Crash),
            (p.pause_every, Fault::Pause),
            (p.partition_every, Fault::Partition),
            (p.transfer_every, Fault::Transfer),
            (p.change_every, Fault::Change),
            (p.sync_errors_every, Fault::SyncError),
            (p.full_every, Fault::Full),
            (if p.clock_steps { 3 * SECOND } else { 0 }, Fault::ClockStep),
            (p.wipe_every, Fault::Wipe),
            (p.grow_every, Fault::Grow),
            (p.rot_every, Fault::Rot),
            (p.log_rot_every, Fault::LogRot),
            (if p.bad_reads > 0 { BAD_READS_EVERY } else { 0 }, Fault::BadReads),
        ];
        for (every, fault) in kinds {
            if every > 0 {
                let delay = self.rng.below(2 * every);
                self.at(delay, Event::Fault(fault));
            }
        }
    }

    fn again(&mut self, fault: Fault) {
        let p = &self.plan;
        let every = match fault {
            // All at once is rarer.
            Fault::AllCrash => 4 * p.crash_every,
            Fault::Crash => p.crash_every,
            Fault::Pause => p.pause_every,
            Fault::Partition => p.partition_every,
            Fault::Transfer => p.transfer_every,
            Fault::Change => p.change_every,
            Fault::SyncError => p.sync_errors_every,
            Fault::Full => p.full_every,
            Fault::ClockStep => 3 * SECOND,
            Fault::Wipe => p.wipe_every,
            Fault::Grow => p.grow_every,
            Fault::Rot => p.rot_every,
            Fault::LogRot => p.log_rot_every,
            Fault::BadReads => BAD_READS_EVERY,
        };
        let delay = 1 + self.rng.below(2 * every);
        self.at(delay, Event::Fault(fault));
    }

    fn any_node(&mut self) -> u64 {
        let living = self.living();
        living[self.rng.below(living.len() as u64) as usize]
    }

    /// All nodes but the lost ones.
    pub fn living(&self) -> Vec<u64> {
        let living = self.nodes.iter().filter(|(_, n)| !n.lost);
        living.map(|(id, _)| *id).collect()
    }

    pub fn lost(&self) -> Vec<u64> {
        let lost = self.nodes.iter().filter(|(_, n)| n.lost);
        lost.map(|(id, _)| *id).collect()
    }

    fn fault(&mut self, fault: Fault) {
        if self.calm {
            return;
        }
        self.again(fault);
        self.made_whole();
        let node = self.any_node();
        match fault {
            Fault::Crash => self.crash(node, "power cut"),
            Fault::AllCrash => self
                .living()
                .into_iter()
                .for_each(|n| self.crash(n, "power cut of all")),
            Fault::Pause => {
                let n = self.nodes.get_mut(&node).expect("a node");
                if n.running.is_some() && !n.paused {
                    n.paused = true;
                    self.ledger.counts.pauses += 1;
                    let most = self.plan.pause_for;
                    let delay = 1 + self.rng.below(most);
                    self.at(delay, Event::Resume { node });
                    self.note(|| format!("node {node} pauses for {} ms", delay / MS));
                }
            }
            Fault::Partition => self.partition(node),
            Fault::Transfer => {
                let groups = self.plan.shards + 1;
                let group = GroupId(self.rng.below(groups));
                let to = self.any_node();
                if let Some(leader) = self.leader_of(group) {
                    self.ledger.counts.transfers += 1;
                    self.note(|| format!("leadership of group {group} is to go from node {leader} to node {to}"));
                    self.with(leader, |n, env| n.transfer(group, to, env));
                }
            }
            Fault::Change => self.change_members(),
            Fault::SyncError => {
                let n = self.rng.below(3);
                self.nodes[&node].disk.fail_sync_after(n);
                self.note(|| format!("syncs of node {node} are about to fail"));
            }
            Fault::Full => {
                self.nodes[&node].disk.set_full(true);
                self.note(|| format!("the disk of node {node} is full"));
                let delay = SECOND + self.rng.below(3 * SECOND);
                self.at(delay, Event::HealDisk { node });
            }
            Fault::ClockStep => {
                let far = self
                    .nodes
                    .values()
                    .filter(|n| n.clock_off.unsigned_abs() > 20 * MS)
                    .count();
                let is_far = self.nodes[&node].clock_off.unsigned_abs() > 20 * MS;
                let most = if far == 0 || is_far {
                    self.plan.clock_off.max(SECOND)
                } else {
                    20 * MS
                };
                let off = off_by(&mut self.rng, most);
                self.nodes.get_mut(&node).expect("a node").clock_off = off;
                self.note(|| format!("the clock of node {node} is now {} ms off", off / MS as i64));
            }
            Fault::Wipe => {
                if self.may_lose(node) {
                    self.ledger.counts.wiped += 1;
                    self.lose(node, "its disk is replaced by an empty one");
                }
            }
            Fault::Grow => Members::grow(self),
            Fault::Rot => self.rot(node),
            Fault::LogRot => self.log_rot(node),
            Fault::BadReads => {
                if self.nodes[&node].running.is_some() && self.may_spoil(node) {
                    let rng = SeededRng::new(self.rng.next_u64());
                    self.nodes[&node]
                        .disk
                        .read_badly(rng, self.plan.bad_reads, is_immutable);
                    self.note(|| format!("the disk of node {node} gives wrong bits"));
                    let delay = SECOND + self.rng.below(3 * SECOND);
                    self.at(delay / 2, Event::Look { node });
                    self.at(delay, Event::ReadWell { node });
                }
            }
        }
    }

    // ---- lost and damaged nodes ----

    /// Whether a majority of sound copies stays in every group when this node is lost or damaged too.
    fn may_lose(&self, node: u64) -> bool {
        let is_unsound = |id: u64, n: &Node| match n.lost {
            true => self.members.counts(id),
            false => n.spoilt || n.owed.is_some() || id == node,
        };
        let unsound = self.nodes.iter().filter(|(id, n)| is_unsound(**id, n)).count() as u64;
        let is_sound = |id: &&NodeId| {
            let n = self.nodes.get(&id.0);
            n.is_some_and(|n| !n.lost && !n.spoilt && n.owed.is_none() && id.0 != node)
        };
        let stays_whole = |group: GroupId| {
            let leads = self.all_running().map(|(_, r)| r.status(group));
            let newest = leads.filter(|s| s.role == Role::Leader).max_by_key(|s| s.term);
            let is_whole = |voters: &[NodeId]| voters.iter().filter(is_sound).count() > voters.len() / 2;
            newest.is_some_and(|s| is_whole(&s.voters) && (s.outgoing.is_empty() || is_whole(&s.outgoing)))
        };
        // Copies move: any unsound nodes may come to have the same shard.
        let together = self.plan.copies_of(GroupId(1), self.plan.nodes as usize) as u64;
        unsound <= (together - 1) / 2 && (0..=self.plan.shards).map(GroupId).all(stays_whole)
    }

    fn may_spoil(&mut self, node: u64) -> bool {
        let may = self.nodes[&node].spoilt || self.may_lose(node);
        if may {
            self.nodes.get_mut(&node).expect("a node").spoilt = true;
        }
        may
    }

    /// Bits flip on the platter.
    fn rot(&mut self, node: u64) {
        let mut files = self.nodes[&node].disk.files();
        files.retain(|(path, len)| *len > 0 && is_immutable(path));
        if files.is_empty() || !self.may_spoil(node) {
            return;
        }
        for _ in 0..=self.rng.below(3) {
            let (path, len) = files[self.rng.below(files.len() as u64) as usize].clone();
            let (byte, bit) = (self.rng.below(len as u64) as usize, self.rng.below(8) as u8);
            let flipped = self.nodes[&node].disk.flip_bit(&path, byte, bit);
            flipped.expect("the file is there");
            self.ledger.counts.rotten += 1;
            self.note(|| format!("node {node}: bit {bit} of byte {byte} of {path} flips"));
        }
        if self.rng.below(3) == 0 {
            let delay = 1 + self.rng.below(2 * SECOND);
            self.at(delay, Event::Look { node });
        }
    }

    /// Power off, and what the disk gives afterwards of the Raft log is not what was written.
    fn log_rot(&mut self, node: u64) {
        let n = &self.nodes[&node];
        // One whose log is damaged already has lost enough.
        if n.running.is_none() || n.spoilt || n.owed.is_some() || !self.may_lose(node) {
            return;
        }
        let voters = (0..=self.plan.shards).map(|g| (GroupId(g), self.voters_of(GroupId(g))));
        let voters: BTreeMap<GroupId, Vec<Vec<NodeId>>> = voters.collect();
        let files: BTreeMap<GroupId, u64> = self.nodes[&node]
            .running
            .as_ref()
            .map_or_else(BTreeMap::new, Running::files_at);
        self.crash(node, "power cut, and its log rots");
        let disk = self.nodes[&node].disk.clone();
        let Ok(mut before) = log_rot::read(disk.fork(), &self.plan) else {
            // It is on its way aside already.
            return;
        };
        for (group, said) in &mut before {
            if said.announced() > files.get(group).copied() {
                said.forget_announced();
            }
        }
        let Some(rot) = Rot::draw(&disk, &mut self.rng) else {
            return;
        };
        let damaged = disk.fork();
        rot.befall(&damaged);
        let taken = log_rot::taken(&before, &log_rot::read(damaged, &self.plan));
        let may_be = match &taken {
            Taken::Nothing | Taken::All => true,
            Taken::Entries(entries) => self.others_hold(node, entries, &voters),
            Taken::Vote => false,
        };
        if !may_be {
            return;
        }
        rot.befall(&disk);
        if matches!(taken, Taken::Entries(_)) {
            reached(Mark::TailTaken);
        }
        if !matches!(taken, Taken::Nothing) {
            self.ledger.counts.log_rots += 1;
            let owed = before.iter().map(|(group, said)| (*group, said.known()));
            self.nodes.get_mut(&node).expect("a node").owed = Some(owed.collect());
        }
        self.note(|| format!("node {node}: {rot:?} takes {taken:?} from its log"));
    }

    /// The majorities that a group's newest leader counts by.
    fn voters_of(&self, group: GroupId) -> Vec<Vec<NodeId>> {
        let all = self.all_running().map(|(_, r)| r.status(group));
        let newest = all.filter(|s| s.role == Role::Leader).max_by_key(|s| s.term);
        let sides = newest.map(|s| vec![s.voters, s.outgoing]).unwrap_or_default();
        sides.into_iter().filter(|side| !side.is_empty()).collect()
    }

    /// Whether a majority without `node` has all of these on its disks, whatever happens next.
    fn others_hold(
        &self,
        node: u64,
        entries: &[(GroupId, u64, u64)],
        voters: &BTreeMap<GroupId, Vec<Vec<NodeId>>>,
    ) -> bool {
        let sound = self
            .nodes
            .iter()
            .filter(|(id, n)| **id != node && !n.lost && n.owed.is_none());
        let logs =
            sound.filter_map(|(id, n)| Some((NodeId(*id), log_rot::read(n.disk.fork_synced(), &self.plan).ok()?)));
        let logs: BTreeMap<NodeId, log_rot::Log> = logs.collect();
        entries.iter().all(|(group, index, term)| {
            let holds = |n: &&NodeId| {
                logs.get(*n)
                    .is_some_and(|log| log_rot::holds(log, *group, *index, *term))
            };
            let is_held = |side: &Vec<NodeId>| side.iter().filter(holds).count() > side.len() / 2;
            let sides = &voters[group];
            !sides.is_empty() && sides.iter().all(is_held)
        })
    }

    /// Nodes whose logs were damaged and that have again what they had.
    fn made_whole(&mut self) {
        for n in self.nodes.values_mut() {
            let (Some(running), Some(owed)) = (&n.running, &n.owed) else {
                continue;
            };
            let is_whole = owed.iter().all(|(group, last)| {
                let s = running.status(*group);
                s.quarantined.is_none() && !s.is_rebuilding && s.last_index >= *last
            });
            if is_whole {
                reached(Mark::MadeWhole);
                n.owed = None;
            }
        }
    }

    /// Everything on its disk is gone, and it with it. A new node takes its place.
    fn lose(&mut self, node: u64, why: &str) {
        self.stop(node, why);
        let n = self.nodes.get_mut(&node).expect("a node");
        n.life += 1;
        (n.disk, n.stores, n.owed) = (SimDisk::new(), MemStores::default(), None);
        if planted(Bug::WipedKeepsId) {
            return self.at(SECOND, Event::Start { node });
        }
        n.lost = true;
        Members::replace(self, node);
    }

    pub fn add_node(&mut self, id: u64) {
        let clock_off = off_by(&mut self.rng, 20 * MS);
        let clock_off = if self.calm { 0 } else { clock_off };
        if self.nodes.insert(id, Node::new(clock_off)).is_some() {
            self.ledger.violated(format!("I10: id {id} is given a second time"));
        }
        self.at(1, Event::Start { node: id });
    }

    /// P6: what a node with damaged files answers is what was written, or an error that says what is damaged.
    fn look(&mut self, node: u64) {
        let Some(running) = &self.nodes[&node].running else {
            return;
        };
        let held = match held_by(running, |_| true) {
            Ok(held) => held,
            Err(why) => {
                self.ledger.counts.refused_reads += 1;
                self.note(|| format!("node {node} refuses a read: {why}"));
                return self.must_name(node, &why);
            }
        };
        let under_way = self.writers.values().filter_map(|w| Some(w.op.as_ref()?.shape));
        let shapes: Vec<Shape> = self
            .acked
            .iter()
            .chain(&self.unknown)
            .copied()
            .chain(under_way)
            .collect();
        let samples = shapes.iter().flat_map(|s| s.samples());
        let samples: BTreeMap<_, _> = samples.map(|(labels, at, v)| ((labels.to_string(), at.0), v)).collect();
        let lines = shapes.iter().flat_map(|s| s.lines());
        let lines: BTreeSet<_> = lines
            .map(|(labels, at, text)| (labels.to_string(), at.0, text))
            .collect();
        let wrong = held
            .samples
            .iter()
            .find(|(key, values)| values.iter().any(|v| samples.get(*key) != Some(v)));
        if let Some(wrong) = wrong {
            let why = format!("P6: node {node} serves a sample that nobody wrote: {wrong:?}");
            return self.ledger.violated(why);
        }
        if let Some(wrong) = held.lines.keys().find(|key| !lines.contains(*key)) {
            let why = format!("P6: node {node} serves a line that nobody wrote: {wrong:?}");
            self.ledger.violated(why);
        }
    }

    /// A refusal for damage names a file, or the group whose log lacks something now.
    fn must_name(&mut self, node: u64, why: &str) {
        let places = ["shard-", "raft/", "meta/", "received/", " group "];
        if !places.iter().any(|p| why.contains(p)) {
            let why = format!("P6: node {node} refuses without naming what is damaged: {why}");
            self.ledger.violated(why);
        }
    }

    /// A node with damaged files is put in order: looked at, started anew, scrubbed. One in which anything is found is
    /// replaced.
    fn scrub(&mut self, node: u64) {
        let Some(running) = &self.nodes[&node].running else {
            return;
        };
        let mut files = running.shards.values().flat_map(|h| h.reader.files());
        let damage = files.find_map(|file| {
            let mut check = file.check();
            while check.next_bytes() > 0 {
                check.step();
            }
            check.finish().pop()
        });
        match damage {
            Some(damage) => {
                self.note(|| format!("a scrub of node {node} finds {damage}"));
                self.lose(node, "a scrub found damage");
            }
            None => self.nodes.get_mut(&node).expect("a node").spoilt = false,
        }
    }

    fn leader_of(&self, group: GroupId) -> Option<u64> {
        let leads = |(id, n): (&u64, &Node)| n.running.as_ref().is_some_and(|r| r.leader(group) == Some(*id));
        self.nodes.iter().find(|n| leads((n.0, n.1))).map(|(id, _)| *id)
    }

    /// Asks a leader to add, promote, demote or remove somebody. What is unwise it refuses.
    fn change_members(&mut self) {
        let group = GroupId(self.rng.below(self.plan.shards + 1));
        let Some(leader) = self.leader_of(group) else { return };
        let Some(running) = self.runs(leader) else { return };
        let s = running.status(group);
        let outside = self.living().into_iter().map(NodeId);
        let outside: Vec<NodeId> = outside
            .filter(|n| !s.voters.contains(n) && !s.learners.contains(n))
            .collect();
        let victims: Vec<NodeId> = s.voters.iter().copied().filter(|n| n.0 != leader).collect();
        let Some(&victim) = victims.get(self.rng.below(victims.len().max(1) as u64) as usize) else {
            return;
        };
        let may_shrink = s.voters.len() > 3;
        let steps = match (self.rng.below(5), s.learners.first(), outside.first()) {
            (0 | 1, None, Some(new)) => vec![MemberStep::Learner(*new)],
            (0 | 1, Some(learner), _) => vec![MemberStep::Voter(*learner)],
            (2, Some(learner), _) => vec![MemberStep::Voter(*learner), MemberStep::Remove(victim)],
            (3, _, _) if may_shrink => vec![MemberStep::Remove(victim)],
            (4, _, _) if may_shrink => vec![MemberStep::Learner(victim)],
            _ => return,
        };
        self.ledger.counts.changes += 1;
        self.note(|| format!("group {group}, led by node {leader}: {steps:?}"));
        self.with(leader, |n, env| n.change(group, steps, env));
    }

    /// After the last fault everybody belongs to every group again, so that all can be compared.
    fn bring_all_in(&mut self) {
        for group in (0..=self.plan.shards).map(GroupId) {
            if self.plan.copies > 0 {
                // That is the cluster's own business.
                continue;
            }
            let Some(leader) = self.leader_of(group) else { continue };
            let Some(running) = self.runs(leader) else { continue };
            let s = running.status(group);
            // One that is to begin again is taken in afterwards.
            let is_well = |n: &NodeId| self.runs(n.0).is_some_and(|r| r.status(group).quarantined.is_none());
            let mut all = self.living().into_iter().map(NodeId).filter(is_well);
            let missing = all.find(|n| !s.voters.contains(n) && !s.learners.contains(n));
            if let Some(node) = missing {
                self.with(leader, |n, env| n.change(group, vec![MemberStep::Learner(node)], env));
            }
        }
    }

    fn partition(&mut self, node: u64) {
        self.wave += 1;
        self.ledger.counts.partitions += 1;
        self.cut.clear();
        let all = self.living();
        let side: BTreeSet<u64> = match self.rng.below(3) {
            0 => BTreeSet::from([node]),
            1 => {
                let group = GroupId(self.rng.below(2));
                self.leader_of(group).into_iter().collect()
            }
            _ => all.iter().copied().filter(|_| self.rng.below(2) == 0).collect(),
        };
        let one_way = self.plan.one_way.then(|| self.rng.below(2));
        for &a in &all {
            for &b in all.iter().filter(|b| side.contains(&a) != side.contains(b)) {
                let outward = u64::from(side.contains(&a));
                if one_way.is_none_or(|w| w == outward) {
                    self.cut.insert((a, b));
                }
            }
        }
        let wave = self.wave;
        let delay = 100 * MS + self.rng.below(6 * SECOND);
        self.at(delay, Event::HealLinks { wave });
        self.note(|| format!("partition: {side:?} apart, one way: {one_way:?}, for {} ms", delay / MS));
    }

    /// Power off, and on again later.
    fn crash(&mut self, node: u64, why: &str) {
        if self.nodes[&node].running.is_none() {
            return;
        }
        let most = if self.calm { 200 * MS } else { self.plan.down_for };
        let delay = 1 + self.rng.below(most);
        self.at(delay, Event::Start { node });
        self.ledger.counts.crashes += 1;
        self.stop(node, why);
    }

    fn stop(&mut self, node: u64, why: &str) {
        let n = self.nodes.get_mut(&node).expect("a node");
        if n.running.take().is_none() {
            return;
        }
        n.life += 1;
        n.paused = false;
        n.held.clear();
        n.disk.crash(&mut self.rng);
        if self.plan.rows_are_lost {
            n.stores = MemStores::default();
        }
        let gone: Vec<u64> = self
            .calls
            .iter()
            .filter(|(_, c)| c.node == node)
            .map(|(id, _)| *id)
            .collect();
        let gone: Vec<Call> = gone.iter().filter_map(|id| self.calls.remove(id)).collect();
        self.reads.retain(|_, r| r.node != node);
        self.desk.forget(node);
        self.pins.forget(node);
        self.note(|| format!("node {node} is down: {why}"));
        // What was asked of it is not known; clients ask another one.
        for call in gone {
            self.answered(call, Fate::Unconfirmed);
        }
    }

    // ---- events ----

    fn take(&mut self, event: Event) {
        match event {
            Event::Node { node, life, event } => {
                let n = self.nodes.get_mut(&node).expect("a node");
                if n.life != life || n.running.is_none() {
                    return;
                }
                if n.paused {
                    return n.held.push_back(Event::Node { node, life, event });
                }
                self.with(node, |r, env| r.handle(event, env));
            }
            Event::Arrive { to, event } => {
                let n = self.nodes.get_mut(&to).expect("a node");
                if n.running.is_none() {
                    return;
                }
                if n.paused {
                    return n.held.push_back(Event::Arrive { to, event });
                }
                self.with(to, |r, env| r.handle(event, env));
            }
            Event::Reply { caller, fate } => {
                if let Some(call) = self.calls.remove(&caller.call) {
                    self.answered(call, fate);
                }
            }
            Event::CallTimeout { call } => {
                if let Some(call) = self.calls.remove(&call) {
                    self.answered(call, Fate::Unconfirmed);
                }
            }
            Event::Retry { writer, attempt, share } => self.send_part(writer, attempt, share),
            Event::WriterTurn { writer } => self.writer_turn(writer),
            Event::ReaderTurn { reader } => self.reader_turn(reader),
            Event::DeskTurn { node, life } => {
                if self.nodes[&node].life == life && self.nodes[&node].running.is_some() {
                    self.at(100 * MS, Event::DeskTurn { node, life });
                    if !self.nodes[&node].paused {
                        Desk::turn(self, node);
                        Pins::turn(self, node);
                    }
                }
            }
            Event::Client(timer) => Desk::timer(self, timer),
            Event::MembersTurn { node, life } => {
                if self.nodes[&node].life == life && self.nodes[&node].running.is_some() {
                    // Its rounds take a while too: they never fall into step with raft's own ticks.
                    let pause = crate::members::PAUSE + self.rng.below(50 * MS);
                    self.at(pause, Event::MembersTurn { node, life });
                    Members::turn(self, node);
                }
            }
            Event::MembersAct { node, life, reports } => Members::act(self, node, life, reports),
            Event::SnapshotEnd { number, ok } => {
                if let Some((node, life, group, to)) = self.snapshots.remove(&number) {
                    let event = NodeEvent::SnapshotSent { group, to, ok };
                    self.take(Event::Node { node, life, event });
                }
            }
            Event::Join { joiner } => Members::join(self, joiner),
            Event::Look { node } => self.look(node),
            Event::ReadWell { node } => {
                self.look(node);
                self.ledger.counts.bad_reads += self.nodes[&node].disk.read_well();
                self.note(|| format!("the disk of node {node} gives right bits again"));
            }
            Event::Start { node } => self.start(node),
            Event::Resume { node } => {
                let n = self.nodes.get_mut(&node).expect("a node");
                if n.paused {
                    n.paused = false;
                    let held = std::mem::take(&mut n.held);
                    self.note(|| format!("node {node} goes on"));
                    held.into_iter().for_each(|e| self.at(0, e));
                }
            }
            Event::Fault(fault) => self.fault(fault),
            Event::HealLinks { wave } => {
                if wave == self.wave {
                    self.cut.clear();
                    self.note(|| "the partition ends".to_owned());
                }
            }
            Event::HealDisk { node } => {
                self.nodes[&node].disk.set_full(false);
                self.note(|| format!("the disk of node {node} has room again"));
            }
            Event::Calm => {
                self.calm = true;
                self.bent = None;
                self.cut.clear();
                self.note(|| "no more faults".to_owned());
                for node in self.living() {
                    self.nodes[&node].disk.heal();
                    self.nodes.get_mut(&node).expect("a node").clock_off = 0;
                    self.at(0, Event::Resume { node });
                    if self.nodes[&node].spoilt {
                        self.look(node);
                        self.ledger.counts.bad_reads += self.nodes[&node].disk.read_well();
                        self.crash(node, "to be scrubbed");
                    }
                }
                self.at(2 * SECOND, Event::Judge);
            }
            Event::Judge => self.judge(),
        }
    }

    fn start(&mut self, node: u64) {
        let ahead = self.ahead(node);
        let Self {
            plan,
            rng,
            ledger,
            nodes,
            now,
            founders,
            ..
        } = self;
        let n = nodes.get_mut(&node).expect("a node");
        if n.running.is_some() || n.lost {
            return;
        }
        if n.life > 0 && n.older && rng.below(2) == 0 {
            n.older = false;
            ledger.counts.upgrades += 1;
        }
        // A new process, and a kernel that has forgotten the error.
        n.disk.heal_syncs();
        let mut out = vec![];
        let mut env = Env {
            now: *now,
            plan,
            rng,
            ledger,
            out: &mut out,
        };
        let started = Running::start(node, n.life, &n.disk, &n.stores, founders, &mut env);
        match started {
            Ok(mut running) => {
                running.set_clock(*now, n.clock_off, ahead);
                n.running = Some(running);
                let life = n.life;
                self.note(|| format!("node {node} starts, life {life}"));
                self.carry_out(node, out);
                self.at(100 * MS, Event::DeskTurn { node, life });
                if self.plan.arranges() {
                    self.at(crate::members::PAUSE, Event::MembersTurn { node, life });
                }
                if self.calm && self.nodes[&node].spoilt {
                    self.scrub(node);
                }
            }
            Err(end) => self.ended(node, end),
        }
    }

    /// How far a node's clock is off the median: nodes compare their clocks all the time, and remember.
    fn ahead(&self, node: u64) -> i64 {
        let own = self.nodes[&node].clock_off;
        // A node that is away keeps its say until it is removed.
        let has_say = |id: u64, n: &Node| id != node && (!n.lost || self.members.counts(id));
        let others = self.nodes.iter().filter(|(id, n)| has_say(**id, n));
        let offsets: Vec<i64> = others.map(|(_, n)| n.clock_off - own).collect();
        hindcast_node::cluster_time::ahead_of_median(&offsets)
    }

    /// Lets a node do something, carries out what comes of it, and lets it die of it.
    fn with(&mut self, node: u64, act: impl FnOnce(&mut Running, &mut Env<'_>) -> Result<(), End>) {
        let ahead = self.ahead(node);
        let Self {
            plan,
            rng,
            ledger,
            nodes,
            now,
            ..
        } = self;
        let n = nodes.get_mut(&node).expect("a node");
        let Some(running) = &mut n.running else { return };
        running.set_clock(*now, n.clock_off, ahead);
        let mut out = vec![];
        let mut env = Env {
            now: *now,
            plan,
            rng,
            ledger,
            out: &mut out,
        };
        let done = act(running, &mut env);
        match done {
            Ok(()) => self.carry_out(node, out),
            Err(end) => self.ended(node, end),
        }
    }

    fn ended(&mut self, node: u64, end: End) {
        let may_fail = self.plan.sync_errors_every > 0 || self.plan.full_every > 0;
        match end {
            End::Disk(why) if may_fail => {
                self.ledger.counts.disk_ends += 1;
                self.note(|| format!("node {node} ends: {why}"));
                let n = self.nodes.get_mut(&node).expect("a node");
                if n.running.is_some() {
                    self.crash(node, "its disk failed");
                } else {
                    self.at(SECOND, Event::Start { node });
                }
            }
            End::Disk(why) => self
                .ledger
                .violated(format!("node {node} ends without a fault of its disk: {why}")),
            End::Damaged(why) if self.nodes[&node].spoilt => {
                self.ledger.counts.refusals += 1;
                self.note(|| format!("node {node} refuses its data: {why}"));
                self.must_name(node, &why);
                self.lose(node, "it refuses its data");
            }
            End::Damaged(why) => self
                .ledger
                .violated(format!("P6: node {node} does not take its own data: {why}")),
        }
    }

    fn carry_out(&mut self, node: u64, out: Vec<Effect>) {
        let life = self.nodes[&node].life;
        for effect in out {
            match effect {
                Effect::After { delay, event } => self.at(delay, Event::Node { node, life, event }),
                Effect::Send { to, messages } => {
                    self.ledger.counts.messages += 1;
                    let copies = 1 + u64::from(self.rng.below(100) < self.plan.duplicates && !self.calm);
                    for _ in 0..copies {
                        if let Some(delay) = self.flight(node, to) {
                            let event = NodeEvent::Received {
                                from: node,
                                messages: messages.clone(),
                            };
                            self.at(delay, Event::Arrive { to, event });
                        }
                    }
                }
                Effect::SendSnapshot { to, group, head, files } => {
                    self.ledger.counts.snapshots += 1;
                    self.next_snapshot += 1;
                    let number = self.next_snapshot;
                    self.snapshots.insert(number, (node, life, group, to));
                    // A snapshot takes a while; its end is reported, or given up.
                    let there = self.flight(node, to).filter(|_| self.nodes[&to].running.is_some());
                    let given_up_after = match there {
                        Some(delay) => {
                            let event = NodeEvent::Snapshot {
                                number,
                                head,
                                group,
                                files,
                            };
                            self.at(delay + 20 * MS, Event::Arrive { to, event });
                            CALL_TIMEOUT
                        }
                        None => SECOND,
                    };
                    self.at(given_up_after, Event::SnapshotEnd { number, ok: false });
                }
                Effect::SnapshotTaken { number, ok } => {
                    let sender = self.snapshots.get(&number).map(|(sender, ..)| *sender);
                    if let Some(delay) = sender.and_then(|sender| self.flight(node, sender)) {
                        self.at(delay, Event::SnapshotEnd { number, ok });
                    }
                }
                Effect::Reply { caller, fate } => {
                    if let Some(delay) = self.flight(node, caller.node) {
                        self.at(delay, Event::Reply { caller, fate });
                    }
                }
                Effect::InstalledHalf => {
                    if self.plan.crash_every > 0 && !self.calm {
                        self.crash(node, "power cut within an installation");
                    }
                }
                Effect::Quarantined(why) => {
                    self.ledger.counts.quarantines += 1;
                    self.note(|| format!("node {node}: {why}"));
                    self.must_name(node, &why);
                    let n = &self.nodes[&node];
                    if !n.spoilt && n.owed.is_none() && !why.contains(hindcast_raft::driver::Driver::GIVEN_UP) {
                        let why = format!("P6: node {node} does not take its own data: {why}");
                        self.ledger.violated(why);
                    }
                }
                Effect::ReadReady { id, group, index } => {
                    if let Some(read) = self.reads.remove(&id) {
                        let applied = self.nodes[&node]
                            .running
                            .as_ref()
                            .map_or(0, |r| r.status(group).applied);
                        self.ledger.reads(node, group, read.told_before, index, applied);
                    }
                }
            }
        }
    }

    /// How long a message is under way; `None`: it does not arrive.
    pub fn flight(&mut self, from: u64, to: u64) -> Option<u64> {
        let delay = 1 + self.rng.below(FLIGHT);
        if from == to {
            return Some(delay / 10);
        }
        if self.cut.contains(&(from, to)) {
            return None;
        }
        if self.calm {
            return Some(delay);
        }
        if self.rng.below(100) < self.plan.loss {
            return None;
        }
        let late = self.rng.below(100) < self.plan.late;
        let more = if late { self.rng.below(self.plan.late_by) } else { 0 };
        Some(delay + more)
    }

    // ---- calls ----

    pub fn runs(&self, node: u64) -> Option<&Running> {
        let n = &self.nodes[&node];
        n.running.as_ref().filter(|_| !n.paused)
    }

    pub fn is_older(&self, node: u64) -> bool {
        self.nodes[&node].older
    }

    pub fn is_calm(&self) -> bool {
        self.calm
    }

    /// Who leads a group by what `node` knows: by its own copy, or by the word of some node that has one.
    fn leader_by(&mut self, node: u64, group: GroupId) -> Option<u64> {
        let own = self.runs(node)?;
        if own.counts(group) || self.plan.copies == 0 {
            return own.leader(group);
        }
        let holders: Vec<u64> = self
            .living()
            .into_iter()
            .filter(|n| self.runs(*n).is_some_and(|r| r.counts(group)))
            .collect();
        let asked = *holders.get(self.rng.below(holders.len().max(1) as u64) as usize)?;
        let is_heard = self.flight(node, asked).is_some() && self.flight(asked, node).is_some();
        self.runs(asked).filter(|_| is_heard)?.leader(group)
    }

    /// `node` asks the leader of a group, as far as it knows one.
    pub fn call(&mut self, node: u64, group: GroupId, payload: Payload, then: Then) {
        self.next_call += 1;
        let call = self.next_call;
        self.calls.insert(call, Call { node, then });
        let caller = Caller { node, call };
        match self.leader_by(node, group) {
            None => self.at(
                MS,
                Event::Reply {
                    caller,
                    fate: Fate::NotLeader,
                },
            ),
            Some(leader) => {
                if let Some(delay) = self.flight(node, leader) {
                    let event = NodeEvent::Call { caller, group, payload };
                    self.at(delay, Event::Arrive { to: leader, event });
                }
                self.at(CALL_TIMEOUT, Event::CallTimeout { call });
            }
        }
    }

    fn answered(&mut self, call: Call, fate: Fate) {
        match call.then {
            Then::Writer { writer, attempt, share } => self.part_answered(writer, attempt, share, fate),
            Then::Desk(then) => Desk::answered(self, call.node, then, fate),
            Then::Members(then) => Members::answered(self, then, fate),
            Then::Pins(then) => Pins::answered(self, call.node, then, fate),
        }
    }

    // ---- writers ----

    pub fn running_node(&mut self) -> Option<u64> {
        let running: Vec<u64> = self
            .nodes
            .iter()
            .filter(|(_, n)| n.running.is_some())
            .map(|(id, _)| *id)
            .collect();
        (!running.is_empty()).then(|| running[self.rng.below(running.len() as u64) as usize])
    }

    fn writer_turn(&mut self, writer: u64) {
        let now = self.now;
        let w = self.writers.get_mut(&writer).expect("a writer");
        match &mut w.op {
            None if self.calm => {}
            None => {
                w.seq += 1;
                let shape = Shape::draw(writer, w.seq, &mut self.rng);
                w.op = Some(Op {
                    shape,
                    began: now,
                    attempt: 0,
                    attempt_began: now,
                    node: 0,
                    parts: vec![],
                });
                self.attempt(writer);
            }
            Some(op) if now >= op.began + self.plan.patience => self.give_up(writer),
            Some(_) => self.attempt(writer),
        }
    }

    /// The client does not learn what became of its batch.
    fn give_up(&mut self, writer: u64) {
        let op = self
            .writers
            .get_mut(&writer)
            .and_then(|w| w.op.take())
            .expect("under way");
        self.unknown.push(op.shape);
        self.ledger.counts.batches_unknown += 1;
        self.at(PAUSE, Event::WriterTurn { writer });
    }

    /// The client brings its batch to some node.
    fn attempt(&mut self, writer: u64) {
        let Some(node) = self.running_node() else {
            return self.at(200 * MS, Event::WriterTurn { writer });
        };
        let replicas = self.nodes[&node].running.as_ref().expect("it runs").replicas.clone();
        self.next_attempt += 1;
        let op = self
            .writers
            .get_mut(&writer)
            .expect("a writer")
            .op
            .as_mut()
            .expect("under way");
        op.attempt = self.next_attempt;
        op.attempt_began = self.now;
        op.node = node;
        let intake = Intake::of_batch(&op.shape.batch(), replicas.as_ref(), Naming::Known);
        let part = |s: &hindcast_ingest::intake::Share| Part {
            group: s.shard.into(),
            bytes: entry::encode_part(&intake, s).into(),
            done: None,
        };
        op.parts = intake.shares.iter().map(part).collect();
        let (attempt, parts) = (op.attempt, op.parts.len());
        for share in 0..parts {
            self.send_part(writer, attempt, share);
        }
    }

    fn send_part(&mut self, writer: u64, attempt: u64, share: usize) {
        let Some(op) = self.writers.get_mut(&writer).and_then(|w| w.op.as_mut()) else {
            return;
        };
        if op.attempt != attempt || op.parts[share].done.is_some() {
            return;
        }
        if self.now >= op.attempt_began + NODE_PATIENCE {
            // The node gives up; the client comes again.
            op.attempt = 0;
            return self.at(PAUSE, Event::WriterTurn { writer });
        }
        let (node, group, bytes) = (op.node, op.parts[share].group, op.parts[share].bytes.clone());
        self.call(
            node,
            group,
            Payload::Part(bytes),
            Then::Writer { writer, attempt, share },
        );
    }

    fn part_answered(&mut self, writer: u64, attempt: u64, share: usize, fate: Fate) {
        let Some(op) = self.writers.get_mut(&writer).and_then(|w| w.op.as_mut()) else {
            return;
        };
        if op.attempt != attempt {
            return;
        }
        let node = op.node;
        match fate {
            Fate::Applied { index, reply } => {
                let applied = match codec::from_bytes::<Applied>(&reply) {
                    Ok(Applied::Write(parts)) if parts.len() == 1 => parts[0],
                    other => return self.ledger.violated(format!("a part is answered with {other:?}")),
                };
                match applied {
                    PartApplied::Stored | PartApplied::Duplicate => op.parts[share].done = Some(index),
                    PartApplied::Stale => {
                        let Some(running) = &self.nodes[&node].running else {
                            return self.at(PAUSE, Event::WriterTurn { writer });
                        };
                        let ids = running.replicas.clone();
                        let intake = Intake::of_batch(&op.shape.batch(), ids.as_ref(), Naming::Defined);
                        let group = op.parts[share].group;
                        let again = intake
                            .shares
                            .iter()
                            .find(|s| GroupId::from(s.shard) == group)
                            .expect("as before");
                        op.parts[share].bytes = entry::encode_part(&intake, again).into();
                        return self.send_part(writer, attempt, share);
                    }
                    // A node alone has only its own clock; when that leaps, ids are forgotten early, and the client is
                    // told that nobody knows.
                    PartApplied::SequenceTooOld if self.plan.nodes == 1 => return self.give_up(writer),
                    PartApplied::SequenceTooOld => {
                        let why = format!("batch {:?} is called too old", op.shape);
                        return self.ledger.violated(why);
                    }
                }
                if op.parts.iter().all(|p| p.done.is_some()) {
                    self.acknowledged(writer);
                }
            }
            Fate::NotLeader | Fate::Unconfirmed => {
                if self.nodes[&node].running.is_none() {
                    op.attempt = 0;
                    return self.at(PAUSE, Event::WriterTurn { writer });
                }
                self.at(PAUSE, Event::Retry { writer, attempt, share });
            }
        }
    }

    fn acknowledged(&mut self, writer: u64) {
        let op = self
            .writers
            .get_mut(&writer)
            .and_then(|w| w.op.take())
            .expect("under way");
        for (group, index) in op.parts.iter().filter_map(|p| Some((p.group, p.done?))) {
            self.ledger.tell(group, index);
        }
        self.ledger.counts.batches_acked += 1;
        self.acked.push(op.shape);
        let pause = self.rng.below(120 * MS);
        self.at(pause, Event::WriterTurn { writer });
    }

    // ---- readers ----

    fn reader_turn(&mut self, reader: u64) {
        let pause = 50 * MS + self.rng.below(300 * MS);
        if !self.calm {
            self.at(pause, Event::ReaderTurn { reader });
        }
        let Some(node) = self.running_node() else { return };
        if self.nodes[&node].paused {
            return;
        }
        let group = GroupId(self.rng.below(self.plan.shards + 1));
        if !self.runs(node).is_some_and(|r| r.counts(group)) && self.plan.copies > 0 {
            // Another node is asked.
            return;
        }
        self.next_read += 1;
        let id = self.next_read;
        let told_before = self.ledger.told(group);
        self.reads.insert(id, Read { node, told_before });
        self.with(node, |r, env| r.read(group, id, env));
    }

    // ---- the end ----

    fn judge(&mut self) {
        let busy: Vec<String> = self.unsettled();
        if busy.is_empty() {
            self.over = true;
            self.judge_data();
            Desk::judge(self);
            Pins::judge(self);
            return;
        }
        let waited = self.now - self.plan.faulty_until;
        if waited > CALM + CALM_ENTRIES * self.plan.apply_for {
            self.ledger.violated(format!(
                "I13: {} s after the last fault: {}",
                waited / SECOND,
                busy.join("; ")
            ));
            return;
        }
        self.bring_all_in();
        self.at(500 * MS, Event::Judge);
    }

    /// What is not at rest yet.
    fn unsettled(&self) -> Vec<String> {
        let mut busy = vec![];
        let living = self.living();
        for (id, n) in self.nodes.iter().filter(|(_, n)| !n.lost) {
            if n.running.is_none() {
                busy.push(format!("node {id} does not run"));
            }
        }
        if !busy.is_empty() {
            return busy;
        }
        let running = || self.nodes.iter().filter_map(|(id, n)| Some((id, n.running.as_ref()?)));
        for group in (0..=self.plan.shards).map(GroupId) {
            let members = running().map(|(_, r)| r.status(group)).find(|s| s.role == Role::Leader);
            let peers = members.as_ref().map(|s| s.peers.clone());
            let on_the_way = members.as_ref().map_or(0, |s| s.learners.len() + s.outgoing.len());
            let members = members.map_or(vec![], |s| [s.voters, s.learners, s.outgoing].concat());
            let copies = self.plan.copies_of(group, living.len());
            // Where nodes of before are, nothing goes.
            let nothing_goes =
                self.plan.copies > 0 && group != GroupId::META && living.iter().any(|n| self.is_older(*n));
            let is_enough = |n: usize| n == copies || n > copies && nothing_goes;
            if self.plan.copies > 0 && on_the_way > 0 && !nothing_goes {
                busy.push(format!(
                    "of the members {members:?} of group {group} {on_the_way} do not count yet"
                ));
            }
            if !members.iter().all(|n| living.contains(&n.0)) || !is_enough(members.len()) {
                busy.push(format!(
                    "group {group} has members {members:?}, alive are {living:?}, its leader knows {peers:?}"
                ));
            }
            let (inside, outside): (Vec<_>, Vec<_>) = running().partition(|(id, _)| members.contains(&NodeId(**id)));
            let states = || inside.iter().map(|(_, r)| r.status(group));
            let leaders: BTreeSet<Option<u64>> = inside.iter().map(|(_, r)| r.leader(group)).collect();
            // The driver's count: machines do not see the empty entries of new leaders.
            let applied: BTreeSet<u64> = states().map(|s| s.applied).collect();
            let commits: BTreeSet<u64> = states().map(|s| s.commit).collect();
            // A leader knows what is committed only once an entry of its own is: until then its log has more.
            let lasts: BTreeSet<u64> = states().map(|s| s.last_index).collect();
            let has_state = |r: &Running| {
                let s = r.status(group);
                s.applied > 0 || s.quarantined.is_some() || s.is_rebuilding
            };
            let left: Vec<u64> = outside
                .iter()
                .filter(|(_, r)| has_state(r))
                .map(|(id, _)| **id)
                .collect();
            if !left.is_empty() && !nothing_goes {
                busy.push(format!(
                    "group {group} is still on nodes {left:?}, which have no copy of it"
                ));
            }
            if leaders.len() != 1 || leaders.contains(&None) {
                busy.push(format!("group {group} has leaders {leaders:?}"));
            } else if applied.len() != 1 || applied != commits || applied != lasts {
                busy.push(format!(
                    "group {group} is applied up to {applied:?} of {commits:?} in logs up to {lasts:?}"
                ));
            }
        }
        for (id, w) in &self.writers {
            if w.op.is_some() {
                busy.push(format!("writer {id} waits"));
            }
        }
        busy.extend(self.members.unsettled(self));
        busy.extend(self.desk.unsettled(self));
        busy
    }

    /// I1, I8: on every node, what was acknowledged and not let go is there exactly once, and nothing else is.
    fn judge_data(&mut self) {
        let tenant = TenantId::default();
        let seq_max = self.acked.iter().chain(&self.unknown).map(|s| s.seq).max().unwrap_or(0);
        let groups = (1..=self.plan.shards).map(GroupId);
        let readable: BTreeMap<GroupId, Readable> = match self.plan.keep {
            0 => BTreeMap::new(),
            _ => groups.map(|g| (g, Readable::after(&self.ledger, g, seq_max))).collect(),
        };
        let map = ShardMap::even(self.plan.shards).expect("few shards");
        let (mut let_go, mut held) = (0, 0);
        let group_of = |labels: &Labels, at: TimestampNs, lines: bool| -> GroupId {
            let owner = match lines {
                true => Owner::None,
                false => resource::owner(&tenant, labels, &[]),
            };
            map.shard_of(owner.slot(labels), at).into()
        };
        // Whether a row is to be there if it was stored.
        let mut stays = |shape: &Shape, labels: &Labels, lines: bool| {
            if readable.is_empty() {
                return true;
            }
            let group = group_of(labels, shape.at(), lines);
            let stays = readable[&group].has(lines, shape.seq);
            let is_old = readable[&group].is_old(lines, shape.at());
            let_go += u64::from(!stays);
            held += u64::from(stays && is_old);
            stays
        };
        let mut findings = vec![];
        for (id, running) in self.all_running() {
            let (mut samples, mut lines) = match held_by(running, |g| self.has_copy(running, g)) {
                Ok(held) => (held.samples, held.lines),
                Err(e) => {
                    findings.push(format!("P6: node {id} cannot read what it holds: {e}"));
                    continue;
                }
            };
            let mut take = |shape: &Shape, must: bool| {
                for (labels, at, value) in shape.samples() {
                    if !self.has_copy(running, group_of(&labels, at, false)) {
                        continue;
                    }
                    let stays = stays(shape, &labels, false);
                    match samples.remove(&(labels.to_string(), at.0)) {
                        Some(found) if found == [value] && stays => {}
                        None if !must || !stays => {}
                        found => findings.push(format!(
                            "I1, I8: node {id}: sample {labels} of writer {} batch {} is {found:?}, not [{value}]; it is \
                             to be there: {stays}",
                            shape.writer, shape.seq
                        )),
                    }
                }
                for (labels, at, text) in shape.lines() {
                    if !self.has_copy(running, group_of(&labels, at, true)) {
                        continue;
                    }
                    let stays = stays(shape, &labels, true);
                    match lines.remove(&(labels.to_string(), at.0, text.clone())) {
                        Some(1) if stays => {}
                        None if !must || !stays => {}
                        found => findings.push(format!(
                            "I1, I8: node {id}: line {text:?} is there {} times; it is to be there: {stays}",
                            found.unwrap_or(0)
                        )),
                    }
                }
            };
            self.acked.iter().for_each(|s| take(s, true));
            self.unknown.iter().for_each(|s| take(s, false));
            if let Some((what, _)) = samples.first_key_value() {
                findings.push(format!("I1: node {id} holds a sample that nobody wrote: {what:?}"));
            }
            if let Some((what, _)) = lines.first_key_value() {
                findings.push(format!("I1: node {id} holds a line that nobody wrote: {what:?}"));
            }
        }
        self.ledger.counts.let_go += let_go;
        self.ledger.counts.held += held;
        if let Some(first) = findings.first() {
            let more = findings.len() - 1;
            self.ledger.violated(format!("{first} (and {more} more)"));
        }
    }

    /// Whether what a node has of a group is compared with what others have.
    pub fn has_copy(&self, running: &Running, group: GroupId) -> bool {
        self.plan.copies == 0 || running.counts(group)
    }

    pub fn pins(&mut self) -> &mut Pins {
        &mut self.pins
    }

    pub fn pins_ref(&self) -> &Pins {
        &self.pins
    }

    pub fn members_ref(&self) -> &Members {
        &self.members
    }

    pub fn members(&mut self) -> &mut Members {
        &mut self.members
    }

    pub fn desk(&mut self) -> &mut Desk {
        &mut self.desk
    }

    pub fn desk_ref(&self) -> &Desk {
        &self.desk
    }

    pub fn all_running(&self) -> impl Iterator<Item = (u64, &Running)> {
        self.nodes.iter().filter_map(|(id, n)| Some((*id, n.running.as_ref()?)))
    }
}
